package doctor

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/docker/go-units"
	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
)

// littleSpace is below how many free bytes a note is worth.
const littleSpace = 1 << 30

// fileSystems are the names of file systems, by their magic numbers (statfs(2)).
var fileSystems = map[uint32]string{
	unix.EXT4_SUPER_MAGIC:      "ext4",
	unix.XFS_SUPER_MAGIC:       "XFS",
	unix.BTRFS_SUPER_MAGIC:     "btrfs",
	unix.TMPFS_MAGIC:           "tmpfs",
	unix.OVERLAYFS_SUPER_MAGIC: "overlayfs",
	unix.NFS_SUPER_MAGIC:       "NFS",
	unix.FUSE_SUPER_MAGIC:      "FUSE",
	unix.F2FS_SUPER_MAGIC:      "F2FS",
	unix.SMB2_SUPER_MAGIC:      "SMB",
	unix.MSDOS_SUPER_MAGIC:     "FAT",
	0x2fc12fc1:                 "ZFS",
	unix.V9FS_MAGIC:            "9p",
	unix.SQUASHFS_MAGIC:        "squashfs",
	unix.EROFS_SUPER_MAGIC_V1:  "EROFS",
	unix.ISOFS_SUPER_MAGIC:     "ISO 9660",
}

// Space adds how much is free at a directory. Below reserved percent of the file system nothing can
// be written there.
func Space(r *Report, check, dir string, reserved float64) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		r.Problem(check, "", "%s: %s", dir, err)
		return
	}
	name := fileSystems[uint32(st.Type)]
	if name == "" {
		name = fmt.Sprintf("the file system 0x%x", st.Type)
	}
	free, total := float64(st.Bavail)*float64(st.Bsize), float64(st.Blocks)*float64(st.Bsize)
	where := fmt.Sprintf("%s of %s free on %s at %s", units.HumanSize(free), units.HumanSize(total), name, dir)
	switch {
	case st.Flags&unix.ST_RDONLY != 0:
		r.Note(check, "", "%s, which is mounted read-only", where)
	case st.Files > 0 && st.Ffree == 0:
		r.Problem(check, "remove files there, or make a file system with more inodes", "%s, and no inode", where)
	case total > 0 && free < total*reserved/100:
		r.Problem(
			check,
			"free some: ostree-image remove, ostree-image prune; or set core.min-free-space-percent of the repository",
			"%s, less than the %g %% that ostree keeps free",
			where,
			reserved,
		)
	case free < littleSpace:
		r.Note(check, "free some: ostree-image remove, ostree-image prune", "%s", where)
	default:
		r.OK(check, "%s", where)
	}
}

// Abilities are what the file system at a directory can do.
type Abilities struct {
	Attributes bool // keeps extended attributes of the user
	HardLinks  bool
	Reflinks   bool // copies share their data
}

// Probe finds out what the file system at a directory can do. The files that it makes there are the
// caller's to remove.
func Probe(dir string) (a Abilities, err error) {
	f, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		return a, errors.WithStack(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.Write(make([]byte, 4096)); err != nil {
		return a, errors.WithStack(err)
	}
	a.Attributes = unix.Fsetxattr(int(f.Fd()), "user.ostree-image", []byte("x"), 0) == nil
	a.HardLinks = os.Link(f.Name(), f.Name()+"-link") == nil
	copied, err := os.Create(filepath.Join(dir, "copy"))
	if err != nil {
		return a, errors.WithStack(err)
	}
	defer func() { _ = copied.Close() }()
	a.Reflinks = unix.IoctlFileClone(int(copied.Fd()), int(f.Fd())) == nil
	return a, nil
}
