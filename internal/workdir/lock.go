package workdir

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
)

const (
	// LockFile lies in the repository's directory. ostree looks at no file there but its own.
	LockFile = ".ostree-image-lock"

	lockPoll = 20 * time.Millisecond
	// LockPatience is how long a run waits before it says for whom.
	LockPatience = 2 * time.Second
	// DefaultLockTimeout is ostree's own (core.lock-timeout-secs).
	DefaultLockTimeout = 5 * time.Minute
)

// LockOptions say how a run waits for the lock of a repository.
type LockOptions struct {
	Timeout time.Duration                    // the longest wait, 0 for any
	Warn    func(format string, args ...any) // learns who is waited for, nil for nobody
}

// Lock waits for the lock of a repository, which publishing, remove and prune share: a flock(2) on a file in the
// repository that those can open who may write the repository, and nobody else. A lock on the
// directory itself would be anyone's who can read it. It ends with the returned function, or with
// the process.
func Lock(ctx context.Context, repo string, o LockOptions) (unlock func(), err error) {
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for began, warned := time.Now(), false; ; {
		f, err := openLockFile(repo)
		if err != nil {
			return nil, err
		}
		ok, err := TryLock(f)
		if ok && err == nil && isLockFile(f) {
			return func() { _ = f.Close() }, nil
		}
		waited := time.Since(began)
		late := o.Timeout > 0 && waited >= o.Timeout
		holder := ""
		if err == nil && (late || !warned && waited >= LockPatience) {
			holder = lockHolder(f)
		}
		_ = f.Close()
		switch {
		case err != nil:
			return nil, errors.Wrapf(err, "locking the repository %s", repo)
		case late:
			return nil, errors.Errorf(
				"the repository %s is locked by %s: gave up after %s; try again later, or wait longer with --lock-timeout",
				repo,
				holder,
				waited.Round(time.Millisecond),
			)
		case holder != "":
			warned = true
			if o.Warn != nil {
				o.Warn("waiting for the lock of the repository %s, which %s has", repo, holder)
			}
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// openLockFile opens the lock file of a repository, made where it is missing. It gives it the
// repository's owner and the permissions to write that the repository's directory has: several
// users share a repository by its group.
func openLockFile(repo string) (_ *os.File, err error) {
	dir, err := os.OpenFile(repo, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, errors.Wrap(err, "locking the repository")
	}
	defer func() { _ = dir.Close() }()
	var above unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &above); err != nil {
		return nil, errors.WithStack(err)
	}
	path := filepath.Join(repo, LockFile)
	mode := uint32(0o600) | (above.Mode&0o022)*3
	const flags = unix.O_RDWR | unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY // whatever lies there
	fd, err := unix.Openat(int(dir.Fd()), LockFile, flags, 0)
	made := false
	if errors.Is(err, unix.ENOENT) {
		fd, err = unix.Openat(int(dir.Fd()), LockFile, flags|unix.O_CREAT|unix.O_EXCL, 0o600)
		if made = err == nil; errors.Is(err, unix.EEXIST) { // another run was faster
			fd, err = unix.Openat(int(dir.Fd()), LockFile, flags, 0)
		}
	}
	switch {
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM), errors.Is(err, unix.EROFS):
		return nil, errors.Wrapf(err, "the repository %s cannot be written: opening its lock %s", repo, path)
	case err != nil:
		return nil, errors.Wrapf(err, "opening %s, the lock of the repository, which is to be a plain file", path)
	}
	f := os.NewFile(uintptr(fd), path)
	if made {
		owner := -1
		if os.Geteuid() == 0 {
			owner = int(above.Uid)
		}
		_ = f.Chown(owner, int(above.Gid)) // fails where the user is not in the group: then the group does without
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	if err == nil {
		ours := int(st.Uid) == os.Geteuid() || st.Uid == 0 || st.Uid == above.Uid || above.Mode&0o022 != 0
		mayChmod := os.Geteuid() == 0 || int(st.Uid) == os.Geteuid()
		switch {
		case st.Mode&unix.S_IFMT != unix.S_IFREG || !ours:
			err = errors.Errorf(
				"%s, the lock of the repository, is to be a plain file of the repository's owner; remove it",
				path,
			)
		case st.Nlink > 1: // a copy of the repository by hard links has the same; or somebody linked another's file here
		case st.Mode&0o7777 != mode && mayChmod:
			err = f.Chmod(os.FileMode(mode)) // what others could open they could lock
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, errors.WithStack(err)
	}
	return f, nil
}

// isLockFile tells whether f is still what its name stands for: a lock on a file that somebody has
// replaced keeps nobody out.
func isLockFile(f *os.File) bool {
	locked, err := f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Lstat(f.Name())
	return err == nil && os.SameFile(locked, named)
}

// lockHolder says who has the lock on f, as far as /proc tells it.
func lockHolder(f *os.File) string {
	const unknown = "another process"
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return unknown
	}
	locks, err := os.Open("/proc/locks")
	if err != nil {
		return unknown
	}
	defer func() { _ = locks.Close() }()
	pid := flockHolder(bufio.NewScanner(locks), st.Dev, st.Ino)
	if pid <= 0 { // of another namespace
		return unknown
	}
	// Not its arguments: there may be a password among them.
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return fmt.Sprintf("the process %d", pid)
	}
	return fmt.Sprintf("the process %d (%s)", pid, strings.TrimSuffix(string(name), "\n"))
}

// flockHolder returns the process that /proc/locks names for a file, 0 for none. A line of it is
// "1: FLOCK  ADVISORY  WRITE 4711 08:01:1234 0 EOF", with "->" before FLOCK for one who waits.
func flockHolder(locks *bufio.Scanner, dev, inode uint64) int {
	pid := 0
	for locks.Scan() {
		fields := strings.Fields(locks.Text())
		if len(fields) < 6 || fields[1] != "FLOCK" {
			continue
		}
		place := strings.Split(fields[5], ":")
		if len(place) != 3 || place[2] != strconv.FormatUint(inode, 10) {
			continue
		}
		n, err := strconv.Atoi(fields[4])
		if err != nil {
			continue
		}
		if place[0]+":"+place[1] == fmt.Sprintf("%02x:%02x", unix.Major(dev), unix.Minor(dev)) {
			return n
		}
		pid = n // btrfs and overlayfs tell stat(2) of another device
	}
	return pid
}

// TryLock takes an exclusive flock(2) on f without waiting and tells whether it got it. The lock
// belongs to the open file, so it lasts until every process that inherited it has closed it.
func TryLock(f *os.File) (bool, error) {
	var lockErr error
	raw, err := f.SyscallConn()
	if err != nil {
		return false, err
	}
	if err := raw.Control(func(fd uintptr) {
		lockErr = unix.Flock(int(fd), unix.LOCK_EX|unix.LOCK_NB)
	}); err != nil {
		return false, err
	}
	if lockErr == unix.EWOULDBLOCK {
		return false, nil
	}
	return lockErr == nil, lockErr
}
