package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/pkg/errors"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/ostree"
	"ostree-image/internal/shellquote"
	"ostree-image/internal/workdir"
)

// treeFile is a file of a commit that holds no layer: bytes, or a file on disk.
type treeFile struct {
	name    string // its path in the tree
	content []byte
	from    string // the file to take, "" for content
	input   string // what the journal calls that file
}

// commitFiles commits files that belong to 0:0 with mode 0644, in directories of mode 0755, whoever
// does it, and returns the commit's checksum.
func (st *staging) commitFiles(ctx context.Context, files []treeFile, o ostree.CommitOptions) (sum string, err error) {
	if err := st.ready(ctx); err != nil {
		return "", err
	}
	j := st.settings.journal
	tree := st.work.Join(fmt.Sprintf("tree-%d", st.trees.Add(1)))
	defer func() { _ = workdir.RemoveTree(tree) }()
	made := map[string]bool{}
	mkdir := func(path string) error {
		if made[path] {
			return nil
		}
		made[path] = true
		j.step("a tree to commit", "mkdir", "-p", path)
		return makeDir(path)
	}
	if err := mkdir(tree); err != nil {
		return "", err
	}
	for _, f := range files {
		parent := tree
		for _, part := range strings.Split(filepath.Dir(f.name), "/") {
			parent = filepath.Join(parent, part)
			if err := mkdir(parent); err != nil {
				return "", err
			}
		}
		if err := st.placeFile(filepath.Join(tree, f.name), f); err != nil {
			return "", err
		}
	}
	j.step("readable whatever the umask", "chmod", "-R", "u=rwX,go=rX", tree)
	options := ostree.TreeOptions{Owner: os.Geteuid() == 0 || st.mode != ostree.Bare, NoXattrs: true}
	commit := func() error { sum, err = st.repo.commitTree(ctx, tree, options, o); return err }
	if err := again(ctx, commit); err != nil {
		return "", err
	}
	j.step("the tree is committed", "rm", "-rf", tree)
	return sum, nil
}

func (st *staging) placeFile(path string, f treeFile) error {
	if f.from == "" {
		return st.settings.journal.writeFile(path, f.content, "")
	}
	st.settings.journal.shell(
		"",
		fmt.Sprintf(`cp "$BLOBS"/%s %s`, shellquote.Word(f.input), st.settings.journal.path(path)),
	)
	if err := os.Link(f.from, path); err != nil {
		if err := copyFile(f.from, path); err != nil {
			return err
		}
	}
	return errors.WithStack(os.Chmod(path, 0o644))
}

// copyFile copies a file where it cannot be linked.
func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return errors.WithStack(err)
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return errors.WithStack(err)
	}
	defer errdefs.Close(&err, out)
	_, err = io.Copy(out, in)
	return errors.WithStack(err)
}
