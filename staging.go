package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/pkg/errors"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/ostree"
	"ostree-image/internal/shellquote"
	"ostree-image/internal/workdir"
)

// staging is where a run makes its commits before they are published: a repository of the target's
// mode on the target's file system, without fsync.
type staging struct {
	settings *settings
	target   *repository
	work     *workdir.Dir // in the target's tmp/, holds all below
	blobWork *workdir.Dir // of --tmpdir, nil where the blobs lie in work
	tmpdir   *workdir.Pinned
	repo     *repository
	mode     string
	engine   engineName
	perms    permissions
	warned   atomic.Bool
	trees    atomic.Int64 // how many small trees were committed

	prepared chan struct{} // closed when repo can be used, or err is set: see ready
	err      error
}

// newStaging makes the directories at once and the repository in the background, while the first
// layer is read already. The target's mode, and what its ostree can do, are known.
func newStaging(
	ctx context.Context,
	s *settings,
	target *repository,
	mode string,
	features ostree.Features,
) (st *staging, err error) {
	if mode, err = ostree.ParseMode(mode); err != nil {
		return nil, errors.WithMessagef(err, "repository %s", target.path)
	}
	st = &staging{
		settings: s,
		target:   target,
		mode:     mode,
		perms:    permissionsFor(mode, os.Geteuid(), os.Getegid()),
		prepared: make(chan struct{}),
	}
	if st.engine, err = chooseEngine(ctx, s.runner, features, s.unpack); err != nil {
		return nil, err
	}
	st.perms.forTar = st.engine == engineTar
	if mode == ostree.Bare {
		st.perms.namespace = limitedNamespace(
			"use a repository of mode bare-user or archive, which notes owners without making them")
	}
	if st.work, err = workdir.New(target.tmp(), s.runner); err != nil {
		return nil, errors.WithMessagef(err, "the repository %s cannot be written", target.path)
	}
	s.journal.name(st.work.Path, "WORK")
	if s.tmpdir != "" {
		if st.tmpdir, err = s.openTmpdir(); err == nil {
			st.blobWork, err = workdir.New(st.tmpdir.At, s.runner)
		}
		if err != nil {
			_ = st.remove()
			return nil, errors.WithMessagef(err, "the temporary directory %s cannot be used", s.tmpdir)
		}
	}
	st.repo = &repository{
		path: st.work.Join("stage"), run: s.runner, staged: true,
		sign: s.signArgs(), keysFile: s.keysFile, signType: s.signType,
	}
	go func() {
		defer close(st.prepared)
		st.err = errors.WithMessage(st.prepare(ctx), "making the staging repository")
	}()
	return st, nil
}

// blobDir is where blobs are staged.
func (st *staging) blobDir() string {
	if st.blobWork != nil {
		return st.blobWork.Path
	}
	return st.work.Path
}

// objectSettings are the settings of a repository that decide which objects a commit makes, and
// when the disk is too full for them: of ostree.repo-config(5) those that are not about waiting for
// the disk, locks, remotes, summaries or deployments. A staging repository has the target's and no
// others: a pull that links asks the target for none of them.
var objectSettings = map[string][]string{
	"core": {
		"collection-id",
		"disable-xattrs",
		"min-free-space-percent",
		"min-free-space-size",
		"payload-link-threshold",
	},
	"archive": {"zlib-level"},
	// Of releases after 2023.1 the second, and before the first.
	"fsverity":     {"opportunistic", "required"},
	"ex-integrity": {"fsverity"},
}

// prepare makes the staging repository as the target is, as far as objects are concerned.
func (st *staging) prepare(ctx context.Context) error {
	j := st.settings.journal
	j.shell(
		"a fresh repository where REPO is none",
		fmt.Sprintf(`[ -e "$REPO"/config ] || ostree init --repo="$REPO" --mode=%s`,
			shellquote.Word(st.mode)),
	)
	if err := workdir.MakeApart(st.repo.path); err != nil {
		return err
	}
	if err := st.repo.init(ctx, st.mode); err != nil {
		return err
	}
	lines, err := st.target.configLines(objectSettings)
	if err != nil || lines == "" {
		return err
	}
	return appendConfig(j, st.repo, lines)
}

// appendConfig adds lines to the configuration of a repository of our own.
func appendConfig(j *journal, repo *repository, lines string) (err error) {
	path := filepath.Join(repo.path, "config")
	j.shell(
		"the repository's own settings of objects",
		fmt.Sprintf("printf %s >>%s", printfFormat([]byte(lines)), j.path(path)),
	)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return errors.WithStack(err)
	}
	defer errdefs.Close(&err, f)
	_, err = f.WriteString(lines)
	return errors.WithStack(err)
}

// chooseEngine settles which engine is used, and that its programs can do what it needs.
func chooseEngine(ctx context.Context, r *runner, features ostree.Features, wanted engineName) (engineName, error) {
	canStream := features.Has("libarchive")
	if wanted == engineStream && !canStream {
		return "", errors.Errorf(
			"--unpack=stream: this ostree (%s) is built without libarchive; use --unpack=tar",
			features.Version,
		)
	}
	if wanted == engineStream || wanted == engineAuto && canStream {
		return engineStream, nil
	}
	_, err := tarVersion(ctx, r)
	return engineTar, err
}

// ready waits until the staging repository can be used. Whoever runs a command on it calls ready
// before.
func (st *staging) ready(ctx context.Context) error {
	select {
	case <-st.prepared:
		return st.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// warnExceptions says once what this user and this repository cannot keep.
func (st *staging) warnExceptions() {
	if text := st.perms.exceptions(st.mode, st.engine); text != "" && !st.warned.Swap(true) {
		st.settings.warnf("%s", text)
	}
}

// remove ends the staging area. It waits for what prepares it.
func (st *staging) remove() error {
	var err error
	if st.blobWork != nil {
		err = st.blobWork.Remove()
	}
	if st.tmpdir != nil {
		st.tmpdir.Unpin()
	}
	if werr := st.work.Remove(); err == nil {
		err = werr
	}
	st.settings.journal.forget(st.work.Path)
	return errors.WithMessage(err, "removing the staging area")
}

// timestamp is that of every commit that holds no image.
func (st *staging) timestamp() int64 {
	if st.settings.timestamp != nil {
		return *st.settings.timestamp
	}
	return 0
}
