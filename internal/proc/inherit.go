package proc

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// KeepFiles keeps what the caller has left open from the program's children, which would inherit
// it: they read what others made.
func KeepFiles() {
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
