package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/pkg/errors"
	"golang.org/x/sys/unix"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/rootfs"
	"ostree-image/internal/workdir"
)

// checkoutTarget is the directory that becomes the root file system, and the private one beside it,
// or within it where another cannot take its place, in which the work is done.
type checkoutTarget struct {
	dir    string
	inside bool
	work   *workdir.Dir
	pins   []*workdir.Pinned
}

func openTarget(dir string, r *runner) (_ *checkoutTarget, err error) {
	if dir == "" {
		return nil, errdefs.Usagef("checkout: the directory has no name")
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, errors.WithStack(err)
	}
	t := &checkoutTarget{}
	defer func() {
		if err != nil {
			t.unpin()
		}
	}()
	parent, err := t.pin(r.Pin(filepath.Dir(dir)))
	if err != nil {
		return nil, errors.WithMessage(err, "checking out")
	}
	t.dir = filepath.Join(parent.At, filepath.Base(dir))
	if dir == "/" {
		t.dir = parent.Within()
	}
	info, err := os.Lstat(t.dir)
	switch {
	case err == nil && !info.IsDir():
		return nil, errors.Errorf("%s exists and is not a directory", dir)
	case err == nil:
		here, err := t.pin(r.Pin(dir))
		if err != nil {
			return nil, err
		}
		sweepCheckouts(here.At)
		names, err := os.ReadDir(here.At)
		if err != nil {
			return nil, errors.WithStack(err)
		}
		if len(names) > 0 {
			return nil, errors.Errorf("the directory %s is not empty", dir)
		}
		if t.inside = !canReplace(t.dir, info); t.inside {
			parent, t.dir = here, here.Within()
		}
	case !os.IsNotExist(err):
		return nil, errors.WithStack(err)
	}
	t.work, err = newCheckoutDir(parent, r)
	return t, errors.WithMessage(err, "checking out")
}

// pin keeps what is pinned until unpin.
func (t *checkoutTarget) pin(p *workdir.Pinned, err error) (*workdir.Pinned, error) {
	if err == nil {
		t.pins = append(t.pins, p)
	}
	return p, err
}

func (t *checkoutTarget) unpin() {
	for _, p := range t.pins {
		p.Unpin()
	}
}

const checkoutPrefix = ".ostree-image-checkout-"

// newCheckoutDir makes the private directory of a checkout. It lies in one of its own, since
// workdir.New takes all that bears a certain name for a dead run's: that may look nowhere where
// others keep their files. Only this user may enter that one, and it is pinned: others may own the
// parent, and see its name in the list of processes.
func newCheckoutDir(parent *workdir.Pinned, r *runner) (*workdir.Dir, error) {
	sweepCheckouts(parent.At)
	for tries := 1; ; tries++ {
		path, err := os.MkdirTemp(parent.At, checkoutPrefix)
		if err != nil {
			return nil, errors.WithStack(err)
		}
		private, err := r.PinBelow(parent, filepath.Base(path))
		if errors.Is(err, fs.ErrNotExist) && tries < workdir.SweptTries {
			continue // swept
		}
		if err != nil {
			return nil, err
		}
		workdir.Spread(private.At)
		work, err := workdir.New(private.At, r)
		if err == nil {
			work.OnEnd(func() {
				private.Unpin()
				_ = unix.Rmdir(path)
			})
			return work, nil
		}
		private.Unpin()
		if swept := errors.Is(unix.Rmdir(path), unix.ENOENT); !swept || tries == workdir.SweptTries {
			return nil, err
		}
	}
}

// sweepCheckouts removes what checkouts that were killed have left in parent.
func sweepCheckouts(parent string) {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return // the caller is about to learn it
	}
	for _, e := range entries {
		number, ours := strings.CutPrefix(e.Name(), checkoutPrefix)
		if !ours || strings.Trim(number, "0123456789") != "" {
			continue
		}
		info, err := e.Info()
		if err != nil || info.Mode() != fs.ModeDir|0o700 || !workdir.OwnedByUser(info) {
			continue
		}
		path := filepath.Join(parent, e.Name())
		// Whatever is put there now is not swept.
		dir, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue
		}
		if now, err := dir.Stat(); err == nil && os.SameFile(info, now) {
			workdir.Sweep(workdir.ProcPath(int(dir.Fd())))
		}
		_ = dir.Close()
		_ = unix.Rmdir(path) // fails where something is left; another checkout that has just made it makes another
	}
}

// canReplace tells whether a directory can give way to another: it is no mount point, its parent
// can be written, and this process does not stand in it, nor then, most likely, the shell that
// started it.
func canReplace(dir string, info os.FileInfo) bool {
	if unix.Access(filepath.Dir(dir), unix.W_OK) != nil {
		return false
	}
	if here, err := os.Stat("."); err != nil || os.SameFile(here, info) {
		return false
	}
	var at unix.Statx_t
	if err := unix.Statx(
		unix.AT_FDCWD,
		dir,
		unix.AT_SYMLINK_NOFOLLOW,
		0,
		&at,
	); err == nil &&
		at.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return at.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0
	}
	parent, err := os.Stat(filepath.Dir(dir)) // before Linux 5.8
	if err != nil {
		return false
	}
	a, ok1 := info.Sys().(*syscall.Stat_t)
	b, ok2 := parent.Sys().(*syscall.Stat_t)
	return ok1 && ok2 && a.Dev == b.Dev && a.Ino != b.Ino
}

// publish makes the finished tree the target: at once, or, where that must stay the directory that
// it is, by moving what the tree holds.
func (t *checkoutTarget) publish(root string) error {
	if !t.inside {
		return errors.WithMessage(moveEntry(root, t.dir), "moving the finished tree to its place")
	}
	names, err := os.ReadDir(root)
	if err != nil {
		return errors.WithStack(err)
	}
	var moved []string
	for _, d := range names {
		to := filepath.Join(t.dir, d.Name())
		if err = moveEntry(filepath.Join(root, d.Name()), to); err != nil {
			break
		}
		moved = append(moved, to)
	}
	if err == nil {
		err = copyDirMeta(root, t.dir)
	}
	if err != nil {
		for _, m := range moved {
			_ = workdir.RemoveTree(m)
		}
		return errors.WithMessage(err, "moving the finished tree into its place")
	}
	return nil
}

// moveEntry renames a file or a directory. A directory must be writable for that, since its ".."
// changes (rename(2)).
func moveEntry(from, to string) error {
	info, err := os.Lstat(from)
	if err != nil {
		return errors.WithStack(err)
	}
	mode := info.Mode()
	if os.Geteuid() == 0 || !mode.IsDir() || mode&0o200 != 0 {
		return errors.WithStack(unix.Rename(from, to)) // os.Rename would refuse a directory that is there
	}
	dir, err := unix.Open(from, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return errors.WithStack(err)
	}
	defer func() { _ = unix.Close(dir) }()
	moved := workdir.ProcPath(dir) // whatever is put there afterwards
	if err := os.Chmod(moved, mode|0o200); err != nil {
		return errors.WithStack(err)
	}
	if err := unix.Rename(from, to); err != nil {
		return errors.WithStack(err)
	}
	return errors.WithStack(os.Chmod(moved, mode))
}

// copyDirMeta gives one directory the owner, the mode and the attributes of another.
func copyDirMeta(from, to string) (err error) {
	asRoot := os.Geteuid() == 0
	source, err := rootfs.Open(from, asRoot)
	if err != nil {
		return err
	}
	defer errdefs.Close(&err, source)
	target, err := rootfs.Open(to, asRoot)
	if err != nil {
		return err
	}
	defer errdefs.Close(&err, target)
	meta, err := source.Meta("")
	if err != nil {
		return err
	}
	return target.Describe("", meta)
}

// end removes the private directory.
func (t *checkoutTarget) end() error { return t.work.Remove() }
