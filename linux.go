package main

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

const oNoFollow = unix.O_NOFOLLOW

// keepFiles keeps what the caller has left open from the program's children, which would inherit
// it: they read what others made.
func keepFiles() {
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return // nothing says what there is
	}
	for _, file := range open {
		if fd, err := strconv.Atoi(file.Name()); err == nil && fd > unix.Stderr {
			unix.CloseOnExec(fd)
		}
	}
}

// tryLock takes an exclusive flock(2) on f without waiting and tells whether it got it. The lock
// belongs to the open file, so it lasts until every process that inherited it has closed it.
func tryLock(f *os.File) (bool, error) {
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
