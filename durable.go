package main

import (
	"context"
	"os"
	"path/filepath"

	"github.com/pkg/errors"
	"golang.org/x/sys/unix"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/imageref"
	"ostree-image/internal/ostree"
)

// sync returns when these refs are on the disk as they are now, and which of ours there are, and
// the marks of partial commits. ostree syncs what it publishes and the content of a ref's file, but
// not what names that file, so that a loss of power soon after it has ended takes the ref, or
// brings back one that was removed. The directories alone are not enough: ext4 without a journal
// loses the link count of a file that was renamed into place.
func (r *repository) sync(specs ...string) error {
	var paths []string
	for _, spec := range specs {
		if remote, ref := splitSpec(spec); remote != "" {
			paths = append(paths, filepath.Join("refs/remotes", remote, ref))
		} else {
			paths = append(paths, filepath.Join("refs/heads", ref))
		}
	}
	tops := []string{"refs/heads"} // what has our refs
	remotes, err := os.ReadDir(filepath.Join(r.path, "refs/remotes"))
	if err != nil && !os.IsNotExist(err) {
		return errors.WithStack(err)
	}
	for _, remote := range remotes {
		if remote.IsDir() {
			tops = append(tops, filepath.Join("refs/remotes", remote.Name()))
		}
	}
	for _, top := range tops {
		paths = append(paths, filepath.Join(top, imageref.SidecarPrefix), filepath.Join(top, imageref.Prefix), top)
	}
	for _, path := range append(paths, "refs/remotes", "refs", "state") {
		if err := syncFile(filepath.Join(r.path, path)); err != nil {
			return errors.WithMessage(err, "waiting until the refs are on the disk")
		}
	}
	return nil
}

// syncFile returns when a file or directory, which need not be there, is on the disk.
func syncFile(path string) (err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return errors.WithStack(err)
	}
	defer errdefs.Close(&err, f)
	return errors.WithStack(f.Sync())
}

// sync waits for the disk unless the user does not want that.
func (d *destination) sync(refs ...string) error {
	if d.settings.noFsync {
		return nil
	}
	return d.repo.sync(refs...)
}

// check makes sure that all that is staged is as it was written. In an archive repository ostree
// (2022.7) loses the error of a file's last write, and ends well although the file is cut off. Once
// published it would be taken for the file by every later import that has the same.
func (st *staging) check(ctx context.Context) error {
	if st.mode != ostree.Archive {
		return nil
	}
	broken, err := st.repo.fsck(ctx)
	if err != nil {
		return errors.WithMessage(err, "checking what was staged")
	}
	if len(broken) > 0 {
		return errors.Errorf("what was staged in %s is not what was written there, so nothing is published: "+
			"is the disk full, or broken? %s", st.repo.path, broken[0])
	}
	return nil
}
