// Package workdir keeps private directories of a run, which a lock keeps from others, removes what dead runs
// left, and knows directories by descriptors, so that nobody puts another in their place.
package workdir

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
)

const (
	workPrefix = "ostree-image-"
	// NewWorkPrefix begins the name of a directory that is not marked yet.
	NewWorkPrefix = ".ostree-image-new-"

	// WorkMark is the file that tells a work directory from one that somebody gave such a name.
	WorkMark = ".ostree-image-work"

	// In a repository's tmp/ ostree removes what is older than a day. A work directory has a time
	// so far ahead that no clock which is set right meanwhile makes it old; whatever is put into it
	// takes that time away, which comes back within touchInterval.
	touchInterval = time.Second
	timeAhead     = 10 * 365 * 24 * time.Hour
	// SweptTries is how often a directory is made that others take for left over before it is
	// locked.
	SweptTries = 20
)

// errSwept says that another run has taken a directory for left over that this one had just made.
var errSwept = errors.New("another run has removed it")

// Dir is a private directory of one run. A lock on it, which every child inherits, lasts until
// the last process that could still write there has ended; what a dead run left behind is removed
// by the next.
type Dir struct {
	Path string
	lock *os.File
	done []func()
}

// CheckParent refuses a directory where somebody else could put other things in the place of ours:
// what is written there by its name, read and removed, would be theirs to choose.
func CheckParent(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return errors.WithStack(err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() {
		return errors.Errorf("%s is no directory", dir)
	}
	if !isTrustedUser(stat.Uid) {
		return errors.Errorf("%s belongs to the user %d, who could put other files in the place of ours", dir, stat.Uid)
	}
	if isShared(stat.Mode, stat.Gid) {
		return errors.Errorf(
			"others can write %s, and it is not sticky: they could put other files in the place of ours",
			dir,
		)
	}
	return nil
}

// Heirs has the children of the process inherit a file, until the returned function is called.
type Heirs interface {
	Inheriting(file *os.File) (end func())
}

// New makes a work directory below parent, after it has removed those that dead runs left
// there.
func New(parent string, children Heirs) (*Dir, error) {
	Sweep(parent)
	w, err := lockedDir(parent)
	for tries := 1; errors.Is(err, errSwept) && tries < SweptTries; tries++ {
		w, err = lockedDir(parent)
	}
	if err != nil {
		return nil, err
	}
	w.done = append(w.done, children.Inheriting(w.lock), w.keepYoung())
	return w, nil
}

// lockedDir makes a directory, locks it, and then marks it. Whoever sweeps takes the lock first:
// what it removes no living run has, or one that has done nothing with it yet. Then the error is
// errSwept.
func lockedDir(parent string) (w *Dir, err error) {
	fresh, err := os.MkdirTemp(parent, NewWorkPrefix)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	made := &Dir{Path: fresh}
	defer func() {
		if err != nil {
			_ = made.Remove()
		}
	}()
	if made.lock, err = os.Open(fresh); err != nil {
		return nil, orSwept(err, fresh)
	}
	if ok, err := TryLock(made.lock); err != nil {
		return nil, errors.Wrapf(err, "locking %s", fresh)
	} else if !ok {
		return nil, errors.WithMessage(errSwept, fresh)
	}
	if err := os.WriteFile(made.Join(WorkMark), nil, 0o600); err != nil {
		return nil, orSwept(err, fresh)
	}
	// The first name is nobody else's, so that even an empty one is ours; under this one, which is
	// also what users call theirs, the mark tells.
	final := filepath.Join(parent, workPrefix+strings.TrimPrefix(filepath.Base(fresh), NewWorkPrefix))
	if err := os.Rename(fresh, final); err != nil {
		return nil, errors.WithStack(err)
	}
	made.Path = final
	return made, nil
}

// orSwept makes errSwept, about the directory, of an error that says that a file is not there.
func orSwept(err error, dir string) error {
	if os.IsNotExist(err) {
		return errors.WithMessage(errSwept, dir)
	}
	return errors.WithStack(err)
}

// keepYoung sets the directory's time again and again.
func (w *Dir) keepYoung() (stop func()) {
	touch := func() {
		ahead := time.Now().Add(timeAhead)
		_ = os.Chtimes(w.Path, ahead, ahead)
	}
	touch()
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		tick := time.NewTicker(touchInterval)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				touch()
			}
		}
	}()
	return cancel
}

// Join returns a path within the directory.
func (w *Dir) Join(names ...string) string {
	return filepath.Join(append([]string{w.Path}, names...)...)
}

// Remove ends the directory and all that is in it. What could not be removed is left to the next
// run.
func (w *Dir) Remove() error {
	defer w.unlock()
	if err := w.check(); err != nil {
		return err
	}
	return removeWorkDir(w.Path)
}

// check fails where the path leads to another directory than the one that was made: it would be
// somebody else's that is removed.
func (w *Dir) check() error {
	if w.lock == nil {
		return nil
	}
	made, err := w.lock.Stat()
	if err != nil {
		return errors.WithStack(err)
	}
	there, err := os.Lstat(w.Path)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return errors.WithStack(err)
	}
	if !os.SameFile(made, there) {
		return errors.Errorf(
			"%s is no longer the directory that this run made: somebody has put another there, which is left alone",
			w.Path,
		)
	}
	return nil
}

// removeWorkDir removes the mark last: whatever ends the removal, the rest is still known for what
// it is. Without the mark it is known by its name.
func removeWorkDir(path string) error {
	entries, err := os.ReadDir(path)
	if err != nil && !os.IsNotExist(err) {
		return errors.WithStack(err)
	}
	for _, e := range entries {
		if e.Name() == WorkMark {
			continue
		}
		if err := RemoveTree(filepath.Join(path, e.Name())); err != nil {
			return err
		}
	}
	if number, named := strings.CutPrefix(filepath.Base(path), workPrefix); named {
		if bare := filepath.Join(filepath.Dir(path), NewWorkPrefix+number); os.Rename(path, bare) == nil {
			path = bare
		}
	}
	return RemoveTree(path)
}

// OnEnd has a function called when the directory is removed or released.
func (w *Dir) OnEnd(f func()) { w.done = append(w.done, f) }

// Abandon ends this process's hold on the directory, as its death does; the children's lasts. It is
// for tests, which call Remove in the end.
func (w *Dir) Abandon() { _ = w.lock.Close() }

// Release ends the hold on the directory, which stays, and is nobody's to sweep.
func (w *Dir) Release() {
	_ = os.Remove(w.Join(WorkMark))
	w.unlock()
}

func (w *Dir) unlock() {
	for _, f := range w.done {
		f()
	}
	if w.lock != nil {
		_ = w.lock.Close()
	}
}

// Sweep removes the work directories below parent whose owners are gone, as far as they are
// this user's own.
func Sweep(parent string) {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return // the caller is about to learn it
	}
	for _, e := range entries {
		fresh := strings.HasPrefix(e.Name(), NewWorkPrefix)
		if !fresh && !strings.HasPrefix(e.Name(), workPrefix) {
			continue
		}
		info, err := e.Info()
		if err != nil || !OwnedByUser(info) {
			continue
		}
		path := filepath.Join(parent, e.Name())
		if !fresh && !isMarked(path) {
			continue
		}
		lock, err := os.OpenFile(
			path,
			os.O_RDONLY|syscall.O_DIRECTORY|unix.O_NOFOLLOW,
			0,
		) // fails where a link leads to a directory
		if err != nil {
			continue
		}
		if ok, err := TryLock(lock); err == nil && ok {
			if isMarked(path) {
				_ = removeWorkDir(path)
			} else if fresh {
				_ = os.Remove(path) // fails where somebody keeps something there
			}
		}
		_ = lock.Close()
	}
}

func isMarked(path string) bool {
	mark, err := os.Lstat(filepath.Join(path, WorkMark))
	return err == nil && mark.Mode().IsRegular() && OwnedByUser(mark)
}

// OwnedByUser tells whether a file belongs to this user.
func OwnedByUser(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == os.Geteuid()
}

// RemoveTree removes a directory of ours. A layer can hold directories that not even their owner
// may enter, and ones so deep that there are not as many descriptors, or no path is as long.
func RemoveTree(path string) error {
	err := os.RemoveAll(path)
	if err == nil {
		return nil
	}
	for _, cause := range []error{fs.ErrPermission, unix.EMFILE, unix.ENFILE, unix.ENAMETOOLONG} {
		if errors.Is(err, cause) {
			flatten(path)
			return errors.WithStack(os.RemoveAll(path))
		}
	}
	return errors.WithStack(err)
}

// flatten moves all directories below one, however deep, into that one, and lets their owner do
// everything. What it cannot do the removal meets again.
func flatten(path string) {
	_ = os.Chmod(path, 0o700)
	todo := openedDirectories(path)
	for n := 0; len(todo) > 0; {
		dir := todo[0]
		todo = todo[1:]
		for _, below := range openedDirectories(dir) {
			to := filepath.Join(path, fmt.Sprintf("%s%d", NewWorkPrefix, n))
			if n++; os.Rename(below, to) == nil {
				todo = append(todo, to)
			}
		}
	}
}

// openedDirectories returns the paths of the directories in one, in which their owner can do
// everything from now on: also to be moved a directory must be writable (rename(2)).
func openedDirectories(path string) (dirs []string) {
	entries, _ := os.ReadDir(path)
	for _, e := range entries {
		if e.IsDir() {
			dir := filepath.Join(path, e.Name())
			_ = os.Chmod(dir, 0o700)
			dirs = append(dirs, dir)
		}
	}
	return dirs
}
