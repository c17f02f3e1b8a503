package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
)

// sync returns when all that was written to the repository is on the disk. ostree syncs what it publishes and the file of a
// ref, but not what names that file, so that a loss of power soon after it has ended takes the ref, or brings back one that was
// removed. The directories of refs alone are not enough: ext4 without a journal loses the file's link count.
func (r *repository) sync() (err error) {
	f, err := os.Open(r.path)
	if err != nil {
		return errors.WithStack(err)
	}
	defer closeWith(&err, f)
	return errors.Wrapf(unix.Syncfs(int(f.Fd())), "waiting until the repository %s is on the disk", r.path)
}

// sync waits for the disk unless the user does not want that.
func (d *destination) sync() error {
	if d.settings.noFsync {
		return nil
	}
	return d.repo.sync()
}

// partialCommits returns the commits that are marked as partial.
func (r *repository) partialCommits() (map[string]bool, error) {
	entries, err := os.ReadDir(filepath.Dir(r.partialMark("")))
	if err != nil && !os.IsNotExist(err) {
		return nil, errors.WithStack(err)
	}
	marks := map[string]bool{}
	for _, e := range entries {
		if commit, ok := strings.CutSuffix(e.Name(), partialSuffix); ok {
			marks[commit] = true
		}
	}
	return marks, nil
}

// isPartial tells whether a ref names a commit that is marked as partial.
func (r *repository) isPartial(ctx context.Context, spec string) (bool, error) {
	marks, err := r.partialCommits()
	if err != nil || len(marks) == 0 {
		return false, err
	}
	sums, err := r.revParse(ctx, spec)
	if err != nil {
		return false, err
	}
	return marks[sums[0]], nil
}

// check makes sure that all that is staged is as it was written. In an archive repository ostree (2022.7) loses the error of a
// file's last write, and ends well although the file is cut off. Once published it would be taken for the file by every
// later import that has the same.
func (st *staging) check(ctx context.Context) error {
	if st.mode != modeArchive {
		return nil
	}
	broken, err := st.repo.fsck(ctx)
	if err != nil {
		return errors.WithMessage(err, "checking what was staged")
	}
	if len(broken) > 0 {
		return errors.Errorf("what was staged in %s is not what was written there, so nothing is published: is the disk full, or broken? %s",
			st.repo.path, broken[0])
	}
	return nil
}
