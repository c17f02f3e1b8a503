package main

import (
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
)

// rootFS is a directory tree that layers are applied to. Every name that it is given is resolved within the tree, one component after
// another and by file descriptors that were opened without following links: an absolute link means the tree's own root, and
// ".." stops there. Nothing that the tree holds can lead out of it.
//
// A real path is one without links, relative, "" for the root.
type rootFS struct {
	dirs     map[string]int    // open directories by their real paths
	resolved map[string]string // real paths of directories by the names that led there
	restore  map[string]uint32 // modes of directories that were opened up for work, by their real paths
	asRoot   bool
}

const (
	maxOpenDirs = 512
	dirFlags    = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
)

// openRootFS opens the tree at the given path.
func openRootFS(root string, asRoot bool) (*rootFS, error) {
	fd, err := unix.Open(root, dirFlags, 0)
	if err != nil {
		return nil, errors.Wrapf(err, "opening %s", root)
	}
	return &rootFS{
		dirs: map[string]int{"": fd}, resolved: map[string]string{}, restore: map[string]uint32{}, asRoot: asRoot,
	}, nil
}

// close gives the directories back the modes that they had and closes the tree.
func (r *rootFS) close() error {
	var failed error
	paths := slices.Sorted(maps.Keys(r.restore))
	for _, p := range slices.Backward(paths) { // what lies deeper comes first
		if fd, err := r.dir(p); err == nil {
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

// dir returns an open descriptor of the directory at a real path. It stays the tree's own.
func (r *rootFS) dir(real string) (int, error) {
	if fd, ok := r.dirs[real]; ok {
		return fd, nil
	}
	above, base := splitPath(real)
	parent, err := r.dir(above)
	if err != nil {
		return -1, err
	}
	fd, err := r.openDir(parent, base, real)
	if err != nil {
		return -1, err
	}
	if len(r.dirs) >= maxOpenDirs {
		for p, old := range r.dirs {
			if p != "" {
				_ = unix.Close(old)
				delete(r.dirs, p)
			}
		}
	}
	r.dirs[real] = fd
	return fd, nil
}

// openDir opens a directory. A user who is not root may need to open it up first.
func (r *rootFS) openDir(parent int, base, real string) (int, error) {
	if !r.asRoot {
		var st unix.Stat_t
		if err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return -1, errors.Wrapf(err, "opening %q", real)
		}
		if mode := st.Mode & 0o7777; st.Mode&unix.S_IFMT == unix.S_IFDIR && mode&0o700 != 0o700 {
			if err := unix.Fchmodat(parent, base, mode|0o700, 0); err != nil {
				return -1, errors.Wrapf(err, "opening %q", real)
			}
			r.restore[real] = mode
		}
	}
	fd, err := unix.Openat(parent, base, dirFlags, 0)
	return fd, errors.Wrapf(err, "opening %q", real)
}

// splitPath parts a real path into the directory and the name in it.
func splitPath(real string) (dir, base string) {
	dir, base = path.Split(real)
	return strings.TrimSuffix(dir, "/"), base
}

func joinPath(dir, base string) string {
	if dir == "" {
		return base
	}
	return dir + "/" + base
}

// kind returns the type of what is at a real path, as in stat(2), and 0 for nothing.
func (r *rootFS) kind(real string) (uint32, error) {
	st, err := r.stat(real)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	return st.Mode & unix.S_IFMT, err
}

func (r *rootFS) stat(real string) (unix.Stat_t, error) {
	var st unix.Stat_t
	if real == "" {
		fd, err := r.dir("")
		if err != nil {
			return st, err
		}
		return st, errors.WithStack(unix.Fstat(fd, &st))
	}
	dir, base := splitPath(real)
	fd, err := r.dir(dir)
	if err != nil {
		return st, err
	}
	return st, errors.Wrapf(unix.Fstatat(fd, base, &st, unix.AT_SYMLINK_NOFOLLOW), "looking at %q", real)
}

// resolveDir returns the real path of the directory that name leads to. With create, what is missing is made, with mode 0755, and
// a file in the way gives way; each directory that was made is told to made. Without, ok is false where something is missing.
func (r *rootFS) resolveDir(name string, create bool, made func(real string)) (real string, ok bool, err error) {
	if real, ok := r.resolved[name]; ok {
		return real, true, nil
	}
	todo := strings.Split(name, "/")
	for follows := 0; len(todo) > 0; {
		part := todo[0]
		todo = todo[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			real, _ = splitPath(real)
			continue
		}
		next := joinPath(real, part)
		kind, err := r.kind(next)
		if err != nil {
			return "", false, err
		}
		switch {
		case kind == unix.S_IFDIR:
			real = next
			continue
		case kind == unix.S_IFLNK:
			if follows++; follows > maxLinkFollow {
				return "", false, errors.Errorf("%q leads through more than %d symbolic links", name, maxLinkFollow)
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
		case !create:
			return "", false, nil
		case kind != 0:
			if err := r.removeAll(next, nil); err != nil {
				return "", false, err
			}
		}
		if err := r.mkdir(next); err != nil {
			return "", false, err
		}
		made(next)
		real = next
	}
	r.resolved[name] = real
	return real, true, nil
}

func (r *rootFS) readlink(real string) (string, error) {
	dir, base := splitPath(real)
	fd, err := r.dir(dir)
	if err != nil {
		return "", err
	}
	buf := make([]byte, maxPathBytes+1)
	n, err := unix.Readlinkat(fd, base, buf)
	if err != nil {
		return "", errors.Wrapf(err, "reading the link %q", real)
	}
	return string(buf[:n]), nil
}

// mkdir makes a directory of mode 0755, whatever the umask, that belongs to the user.
func (r *rootFS) mkdir(real string) error {
	dir, base := splitPath(real)
	fd, err := r.dir(dir)
	if err != nil {
		return err
	}
	if err := unix.Mkdirat(fd, base, 0o755); err != nil {
		return errors.Wrapf(err, "making the directory %q", real)
	}
	child, err := r.dir(real)
	if err != nil {
		return err
	}
	if r.asRoot { // a directory above that is set-group-id would hand its group down
		if err := unix.Fchown(child, 0, 0); err != nil {
			return errors.Wrapf(err, "making the directory %q", real)
		}
	}
	return errors.Wrapf(unix.Fchmod(child, 0o755), "making the directory %q", real)
}

// names returns what a directory holds.
func (r *rootFS) names(real string) ([]string, error) {
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

// removeAll removes what is at a real path, unless keep says that it must stay; a directory then loses what may go.
func (r *rootFS) removeAll(real string, keep func(real string) bool) error {
	kind, err := r.kind(real)
	if err != nil || kind == 0 {
		return err
	}
	stays := keep != nil && keep(real)
	if kind == unix.S_IFDIR {
		if err := r.empty(real, keep); err != nil {
			return err
		}
	}
	if stays {
		return nil
	}
	r.forget(real, kind)
	dir, base := splitPath(real)
	fd, err := r.dir(dir)
	if err != nil {
		return err
	}
	flags := 0
	if kind == unix.S_IFDIR {
		flags = unix.AT_REMOVEDIR
	}
	return errors.Wrapf(unix.Unlinkat(fd, base, flags), "removing %q", real)
}

// empty removes what a directory holds, except what keep says.
func (r *rootFS) empty(real string, keep func(real string) bool) error {
	names, err := r.names(real)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := r.removeAll(joinPath(real, name), keep); err != nil {
			return err
		}
	}
	return nil
}

// forget drops what is remembered of a path that is about to change.
func (r *rootFS) forget(real string, kind uint32) {
	switch kind {
	case unix.S_IFDIR:
		if fd, ok := r.dirs[real]; ok {
			_ = unix.Close(fd)
			delete(r.dirs, real)
		}
		delete(r.restore, real)
		clear(r.resolved)
	case unix.S_IFLNK:
		clear(r.resolved)
	}
}

// place moves the file or link at a real path of another tree on the same file system to a real path of this one, where
// nothing stands, or no directory.
func (r *rootFS) place(from *rootFS, source, real string) error {
	sourceDir, sourceBase := splitPath(source)
	fromFd, err := from.dir(sourceDir)
	if err != nil {
		return err
	}
	dir, base := splitPath(real)
	fd, err := r.dir(dir)
	if err != nil {
		return err
	}
	return errors.Wrapf(unix.Renameat(fromFd, sourceBase, fd, base), "placing %q", real)
}

// link makes a second name of a file of this tree. It replaces what is there.
func (r *rootFS) link(target, real string) error {
	targetDir, targetBase := splitPath(target)
	targetFd, err := r.dir(targetDir)
	if err != nil {
		return err
	}
	dir, base := splitPath(real)
	fd, err := r.dir(dir)
	if err != nil {
		return err
	}
	return errors.Wrapf(unix.Linkat(targetFd, targetBase, fd, base, 0), "linking %q to %q", real, target)
}

// describe gives a directory the owner, the mode and the attributes that its entry has. Attributes that it has beside are removed.
func (r *rootFS) describe(real string, uid, gid, mode uint32, xattrs map[string]string, owners bool) error {
	fd, err := r.dir(real)
	if err != nil {
		return err
	}
	if owners {
		if err := unix.Fchown(fd, int(uid), int(gid)); err != nil {
			return errors.Wrapf(err, "setting the owner of %q", real)
		}
	}
	if err := setXattrs(fd, xattrs, owners); err != nil {
		return errors.WithMessagef(err, "setting the attributes of %q", real)
	}
	delete(r.restore, real)
	if !r.asRoot && mode&0o700 != 0o700 { // work goes on below: the mode comes at the end
		r.restore[real] = mode
		mode |= 0o700
	}
	return errors.Wrapf(unix.Fchmod(fd, mode), "setting the mode of %q", real)
}

// setXattrs gives an open directory these attributes of the kinds that layers keep, and no other of them.
func setXattrs(fd int, xattrs map[string]string, privileged bool) error {
	size, err := unix.Flistxattr(fd, nil)
	if err != nil {
		if errors.Is(err, unix.ENOTSUP) && len(xattrs) == 0 {
			return nil
		}
		return errors.WithStack(err)
	}
	if size > 0 {
		buf := make([]byte, size)
		if size, err = unix.Flistxattr(fd, buf); err != nil {
			return errors.WithStack(err)
		}
		for name := range strings.SplitSeq(strings.TrimRight(string(buf[:size]), "\x00"), "\x00") {
			_, stays := xattrs[name]
			if stays || !strings.HasPrefix(name, "user.") && name != capability {
				continue
			}
			if err := unix.Fremovexattr(fd, name); err != nil {
				return errors.WithStack(err)
			}
		}
	}
	for name, value := range xattrs {
		if name == capability && !privileged {
			continue
		}
		if err := unix.Fsetxattr(fd, name, []byte(value), 0); err != nil {
			return errors.Wrap(err, name)
		}
	}
	return nil
}
