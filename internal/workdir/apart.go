package workdir

import (
	"os"
	"path/filepath"

	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
)

// fsTopdirFlag is FS_TOPDIR_FL of linux/fs.h, "T" of chattr(1).
const fsTopdirFlag = 0x00020000

// Spread asks the file system to place the directories that are made in dir apart from one another.
// Only ext4 does so.
//
// ext4 places a file near its directory, and a directory near the one above. Where it has no
// journal, it passes the inodes of files that were removed in the last minutes over, one by one,
// for each new file (recently_deleted in the kernel's fs/ext4/ialloc.c): on such a disk, where
// images come and go, an import took twice as long as on a new one. Directories within one with
// this flag go each to a part of the disk that has few, and where ext4 begins to look follows from
// their names: random ones hardly ever meet what another run has removed.
func Spread(dir string) {
	f, err := os.Open(dir)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	if flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS); err == nil {
		_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags|fsTopdirFlag))
	}
}

// MakeApart makes a directory of mode 0700 for many files, placed apart from everything that lies
// beside it (see spread).
func MakeApart(path string) error {
	top, err := os.MkdirTemp(filepath.Dir(path), "apart-")
	if err != nil {
		return errors.WithStack(err)
	}
	defer func() { _ = os.RemoveAll(top) }()
	Spread(top)
	dir, err := os.MkdirTemp(top, "")
	if err != nil {
		return errors.WithStack(err)
	}
	return errors.WithStack(os.Rename(dir, path))
}
