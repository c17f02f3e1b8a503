// Package rootfs is a directory tree that layers are applied to: it is entered by file descriptors only, and nothing
// in it leads out of it.
package rootfs

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
)

const (
	maxLinks = 40 // symbolic links that one path may lead through, as in path_resolution(7)

	// Capability is the attribute that holds the capabilities of a file (capabilities(7)).
	Capability = "security.capability"
)

// FS is a directory tree that layers are applied to. Every name that it is given is resolved
// within the tree, one component after another and by file descriptors that were opened without
// following links: an absolute link means the tree's own root, and ".." stops there. Nothing that
// the tree holds can lead out of it.
//
// A real path is one without links, relative, "" for the root.
type FS struct {
	dirs     map[string]int    // open directories by their real paths
	resolved map[string]string // real paths of directories by the names that led there
	restore  map[string]uint32 // modes of directories that were opened up for work, by their real paths
	pinned   string            // the real path of a directory that stays open
	most     int               // how many directories are open at a time
	AsRoot   bool
	Times    *Times  // what has which time in the end, nil where that is of no interest
	Name     string  // what scripts call the tree
	Steps    *Script // writes down what is done, nil without a record
}

const (
	maxOpenDirs = 512
	dirFlags    = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
)

// mostOpenDirs is how many directories are open at a time: a part of what the process may open.
func mostOpenDirs() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return maxOpenDirs
	}
	return int(max(4, min(maxOpenDirs, limit.Cur/8)))
}

// Open opens the tree at the given path, which no other user can change.
func Open(root string, asRoot bool) (*FS, error) {
	r := &FS{
		dirs: map[string]int{}, resolved: map[string]string{}, restore: map[string]uint32{}, AsRoot: asRoot,
		most: mostOpenDirs(),
	}
	fd, err := r.openDir(unix.AT_FDCWD, root, "")
	if err != nil {
		return nil, errors.WithMessage(err, root)
	}
	r.dirs[""] = fd
	return r, nil
}

// Close gives the directories back the modes that they had and closes the tree.
func (r *FS) Close() error {
	var failed error
	paths := slices.Sorted(maps.Keys(r.restore))
	for _, p := range slices.Backward(paths) { // what lies deeper comes first
		if fd, err := r.dir(p); err == nil {
			r.Steps.run(p, "chmod", fmt.Sprintf("%04o", r.restore[p]))
			if err := unix.Fchmod(fd, r.restore[p]); err != nil && failed == nil {
				failed = errors.Wrapf(err, "setting the mode of %q", p)
			}
		}
	}
	for _, fd := range r.dirs {
		_ = unix.Close(fd)
	}
	return failed
}

// dir returns an open descriptor of the directory at a real path. It stays the tree's own, and open
// until dir is called again.
func (r *FS) dir(real string) (int, error) {
	if fd, ok := r.dirs[real]; ok {
		return fd, nil
	}
	above, base := SplitPath(real)
	parent, err := r.dir(above)
	if err != nil {
		return -1, err
	}
	fd, err := r.openDir(parent, base, real)
	if err != nil {
		return -1, err
	}
	if len(r.dirs) >= r.most {
		for p, old := range r.dirs {
			if p != "" && p != r.pinned {
				_ = unix.Close(old)
				delete(r.dirs, p)
			}
		}
	}
	r.dirs[real] = fd
	return fd, nil
}

// openDir opens a directory. A user who is not root may need to open it up first.
func (r *FS) openDir(parent int, base, real string) (int, error) {
	if !r.AsRoot {
		var st unix.Stat_t
		if err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return -1, errors.Wrapf(err, "opening %q", real)
		}
		if mode := st.Mode & 0o7777; st.Mode&unix.S_IFMT == unix.S_IFDIR && mode&0o700 != 0o700 {
			if err := unix.Fchmodat(parent, base, mode|0o700, 0); err != nil {
				return -1, errors.Wrapf(err, "opening %q", real)
			}
			r.Steps.run(real, "chmod", "u+rwx")
			r.restore[real] = mode
		}
	}
	fd, err := unix.Openat(parent, base, dirFlags, 0)
	return fd, errors.Wrapf(err, "opening %q", real)
}

// SplitPath parts a real path into the directory and the name in it.
func SplitPath(real string) (dir, base string) {
	dir, base = path.Split(real)
	return strings.TrimSuffix(dir, "/"), base
}

// JoinPath returns the path of base in dir, which is "" for the root.
func JoinPath(dir, base string) string {
	if dir == "" {
		return base
	}
	return dir + "/" + base
}

// Kind returns the type of what is at a real path, as in stat(2), and 0 for nothing.
func (r *FS) Kind(real string) (uint32, error) {
	st, err := r.Stat(real)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	return st.Mode & unix.S_IFMT, err
}

// Stat describes what is at a real path, a link itself.
func (r *FS) Stat(real string) (unix.Stat_t, error) {
	var st unix.Stat_t
	if real == "" {
		fd, err := r.dir("")
		if err != nil {
			return st, err
		}
		return st, errors.WithStack(unix.Fstat(fd, &st))
	}
	dir, base := SplitPath(real)
	fd, err := r.dir(dir)
	if err != nil {
		return st, err
	}
	return st, errors.Wrapf(unix.Fstatat(fd, base, &st, unix.AT_SYMLINK_NOFOLLOW), "looking at %q", real)
}

// ResolveDir returns the real path of the directory that name leads to. With create, what is
// missing is made, with mode 0755, and a file in the way gives way; each directory that was made is
// told to made. Without, ok is false where something is missing.
func (r *FS) ResolveDir(name string, create bool, made func(real string)) (real string, ok bool, err error) {
	rest := name
	for known := name; known != ""; known, _ = SplitPath(known) {
		if real, ok = r.resolved[known]; ok {
			rest = strings.TrimPrefix(name[len(known):], "/")
			break
		}
	}
	if rest == "" {
		return real, true, nil
	}
	todo := strings.Split(rest, "/")
	missing := false // something of real was, when it was looked at
	for follows := 0; len(todo) > 0; {
		part := todo[0]
		todo = todo[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			real, _ = SplitPath(real)
			continue
		}
		next := JoinPath(real, part)
		kind, err := r.Kind(next)
		switch {
		case errors.Is(err, unix.ENOTDIR):
		case err != nil:
			return "", false, err
		case kind == unix.S_IFLNK:
			if follows++; follows > maxLinks {
				return "", false, errors.Errorf("%q leads through more than %d symbolic links", name, maxLinks)
			}
			target, err := r.readlink(next)
			if err != nil {
				return "", false, err
			}
			if strings.HasPrefix(target, "/") {
				real = ""
			}
			todo = append(strings.Split(target, "/"), todo...)
			continue
		}
		missing = missing || kind != unix.S_IFDIR
		real = next // whether it is there is of no interest yet: ".." may follow
	}
	if missing {
		if ok, err := r.makeAll(real, create, made); !ok || err != nil {
			return "", false, err
		}
	}
	r.resolved[name] = real
	return real, true, nil
}

// makeAll makes the directory at a real path, and those above it, where create is set. ok tells
// whether it is there.
func (r *FS) makeAll(real string, create bool, made func(real string)) (ok bool, err error) {
	done := 0
	for part := range strings.SplitSeq(real, "/") {
		done += len(part)
		next := real[:done]
		done++
		kind, err := r.Kind(next)
		if err != nil {
			return false, err
		}
		if kind == unix.S_IFDIR {
			continue
		}
		if !create {
			return false, nil
		}
		if err := r.RemoveAll(next, nil); err != nil {
			return false, err
		}
		if err := r.Mkdir(next); err != nil {
			return false, err
		}
		made(next)
	}
	return true, nil
}

func (r *FS) readlink(real string) (string, error) {
	dir, base := SplitPath(real)
	fd, err := r.dir(dir)
	if err != nil {
		return "", err
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, base, buf)
	if err != nil {
		return "", errors.Wrapf(err, "reading the link %q", real)
	}
	return string(buf[:n]), nil
}

// Mkdir makes a directory of mode 0755, whatever the umask, that belongs to the user.
func (r *FS) Mkdir(real string) error {
	dir, base := SplitPath(real)
	fd, err := r.dir(dir)
	if err != nil {
		return err
	}
	if err := unix.Mkdirat(fd, base, 0o755); err != nil {
		return errors.Wrapf(err, "making the directory %q", real)
	}
	r.Steps.run(real, "mkdir")
	r.Times.PlainDir(real)
	child, err := r.dir(real)
	if err != nil {
		return err
	}
	if r.AsRoot { // a directory above that is set-group-id would hand its group down
		if err := unix.Fchown(child, 0, 0); err != nil {
			return errors.Wrapf(err, "making the directory %q", real)
		}
		r.Steps.run(real, "chown", "0:0")
	}
	r.Steps.run(real, "chmod", "0755")
	return errors.Wrapf(unix.Fchmod(child, 0o755), "making the directory %q", real)
}

// Names returns what a directory holds.
func (r *FS) Names(real string) ([]string, error) {
	fd, err := r.dir(real)
	if err != nil {
		return nil, err
	}
	again, err := unix.Openat(fd, ".", dirFlags, 0) // a descriptor with a position of its own
	if err != nil {
		return nil, errors.Wrapf(err, "reading the directory %q", real)
	}
	defer func() { _ = unix.Close(again) }()
	var names []string
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.ReadDirent(again, buf)
		if err != nil {
			return nil, errors.Wrapf(err, "reading the directory %q", real)
		}
		if n == 0 {
			return names, nil
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}

// RemoveAll removes what is at a real path, unless keep says that it must stay; a directory then
// loses what may go.
func (r *FS) RemoveAll(real string, keep func(real string) bool) error {
	kind, err := r.Kind(real)
	if err != nil || kind == 0 {
		return err
	}
	stays := keep != nil && keep(real)
	if kind == unix.S_IFDIR {
		if err := r.Empty(real, keep); err != nil {
			return err
		}
	}
	if stays {
		return nil
	}
	r.Forget(real, kind)
	dir, base := SplitPath(real)
	fd, err := r.dir(dir)
	if err != nil {
		return err
	}
	r.Steps.run(real, "rm", "-rf")
	flags := 0
	if kind == unix.S_IFDIR {
		flags = unix.AT_REMOVEDIR
	}
	return errors.Wrapf(unix.Unlinkat(fd, base, flags), "removing %q", real)
}

// Empty removes what a directory holds, except what keep says.
func (r *FS) Empty(real string, keep func(real string) bool) error {
	names, err := r.Names(real)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := r.RemoveAll(JoinPath(real, name), keep); err != nil {
			return err
		}
	}
	return nil
}

// Forget drops what is remembered of a path that is about to change.
func (r *FS) Forget(real string, kind uint32) {
	r.Times.drop(real)
	switch kind {
	case unix.S_IFDIR:
		if fd, ok := r.dirs[real]; ok {
			_ = unix.Close(fd)
			delete(r.dirs, real)
		}
		delete(r.restore, real)
	case unix.S_IFLNK:
	default:
		return
	}
	if len(r.resolved) > 0 {
		r.resolved = map[string]string{} // clear would look at all that it has ever held, each time
	}
}

// Place moves the file or link at a real path of another tree on the same file system to a real
// path of this one, where nothing stands, or no directory.
func (r *FS) Place(from *FS, source, real string) error {
	sourceDir, sourceBase := SplitPath(source)
	fromFd, err := from.dir(sourceDir)
	if err != nil {
		return err
	}
	dir, base := SplitPath(real)
	fd, err := r.dir(dir)
	if err != nil {
		return err
	}
	r.Steps.move(from.Name, source, real)
	return errors.Wrapf(unix.Renameat(fromFd, sourceBase, fd, base), "placing %q", real)
}

// Adopt moves a directory from elsewhere on the same file system to a real path of this tree, where
// nothing stands. The directory above stays as old as it is.
func (r *FS) Adopt(from, real string) error {
	dir, base := SplitPath(real)
	fd, err := r.dir(dir)
	if err != nil {
		return err
	}
	var above unix.Stat_t
	if err := unix.Fstat(fd, &above); err != nil {
		return errors.Wrapf(err, "placing %q", real)
	}
	if err := unix.Renameat(unix.AT_FDCWD, from, fd, base); err != nil {
		return errors.Wrapf(err, "placing %q", real)
	}
	return errors.Wrapf(unix.UtimesNanoAt(fd, ".", []unix.Timespec{above.Atim, above.Mtim}, 0), "placing %q", real)
}

// Link makes a second name of a file of this tree, where nothing stands.
func (r *FS) Link(target, real string) error {
	targetDir, targetBase := SplitPath(target)
	targetFd, err := r.dir(targetDir)
	if err != nil {
		return err
	}
	r.pinned = targetDir
	defer func() { r.pinned = "" }()
	dir, base := SplitPath(real)
	fd, err := r.dir(dir)
	if err != nil {
		return err
	}
	r.Steps.link(target, real)
	r.Times.link(target, real)
	return errors.Wrapf(unix.Linkat(targetFd, targetBase, fd, base, 0), "linking %q to %q", real, target)
}

// Meta is what a directory has beside a name.
type Meta struct {
	uid, gid, mode uint32
	xattrs         map[string]string // those of the kinds that layers keep
}

// PlainMeta is what a directory has that no layer describes.
func (r *FS) PlainMeta() Meta {
	m := Meta{uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()), mode: 0o755}
	if r.AsRoot {
		m.uid, m.gid = 0, 0
	}
	return m
}

// Meta returns what the directory at a real path has.
func (r *FS) Meta(real string) (Meta, error) {
	fd, err := r.dir(real)
	if err != nil {
		return Meta{}, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return Meta{}, errors.Wrapf(err, "looking at %q", real)
	}
	m := Meta{uid: st.Uid, gid: st.Gid, mode: st.Mode & 0o7777}
	if mode, ok := r.restore[real]; ok {
		m.mode = mode
	}
	names, err := listXattrs(fd)
	for i := 0; i < len(names) && err == nil; i++ {
		buf := make([]byte, maxXattrBytes)
		var n int
		if n, err = unix.Fgetxattr(fd, names[i], buf); err == nil {
			if m.xattrs == nil {
				m.xattrs = map[string]string{}
			}
			m.xattrs[names[i]] = string(buf[:n])
		}
	}
	return m, errors.Wrapf(err, "reading the attributes of %q", real)
}

// Describe gives a directory these owners, mode and attributes. Attributes that it has beside are
// removed.
func (r *FS) Describe(real string, m Meta) error {
	fd, err := r.dir(real)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return errors.Wrapf(err, "looking at %q", real)
	}
	if st.Uid != m.uid || st.Gid != m.gid {
		if err := unix.Fchown(fd, int(m.uid), int(m.gid)); err != nil {
			return errors.Wrapf(err, "setting the owner of %q", real)
		}
	}
	if r.Steps != nil {
		old, err := listXattrs(fd)
		if err != nil {
			return errors.WithMessagef(err, "reading the attributes of %q", real)
		}
		r.Steps.describe(real, m, old)
	}
	if err := setXattrs(fd, m.xattrs); err != nil {
		return errors.WithMessagef(err, "setting the attributes of %q", real)
	}
	delete(r.restore, real)
	mode := m.mode
	if !r.AsRoot && mode&0o700 != 0o700 { // work goes on below: the mode comes at the end
		r.restore[real] = mode
		mode |= 0o700
	}
	return errors.Wrapf(unix.Fchmod(fd, mode), "setting the mode of %q", real)
}

// maxXattrBytes is XATTR_SIZE_MAX, and XATTR_LIST_MAX too.
const maxXattrBytes = 64 << 10

// listXattrs returns the names of the attributes of an open directory that are of the kinds that
// layers keep.
func listXattrs(fd int) ([]string, error) {
	size, err := unix.Flistxattr(fd, nil)
	if size == 0 || errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	buf := make([]byte, maxXattrBytes)
	if err == nil {
		size, err = unix.Flistxattr(fd, buf)
	}
	if err != nil {
		return nil, errors.WithStack(err)
	}
	var names []string
	for name := range strings.SplitSeq(strings.TrimRight(string(buf[:size]), "\x00"), "\x00") {
		if strings.HasPrefix(name, "user.") || name == Capability {
			names = append(names, name)
		}
	}
	return names, nil
}

// setXattrs gives an open directory these attributes, and no other of the kinds that layers keep.
func setXattrs(fd int, xattrs map[string]string) error {
	names, err := listXattrs(fd)
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, stays := xattrs[name]; stays {
			continue
		}
		if err := unix.Fremovexattr(fd, name); err != nil {
			return errors.Wrap(err, name)
		}
	}
	for name, value := range xattrs {
		if err := unix.Fsetxattr(fd, name, []byte(value), 0); err != nil {
			return errors.Wrap(err, name)
		}
	}
	return nil
}
