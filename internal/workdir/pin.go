package workdir

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
)

// Pins knows how the user named the directories that a run has pinned.
type Pins struct {
	mu    sync.Mutex
	names map[string]string // of pinned directories, by their paths
}

// NewPins returns one that knows none.
func NewPins() *Pins { return &Pins{names: map[string]string{}} }

// Pinned is a directory that stays the one that it is, whoever moves or replaces what leads to
// it: its path goes through a descriptor of this process, which the children of the process can
// use, too.
type Pinned struct {
	Fd    int
	At    string // its path, that of a link
	shown string // how the user named it
}

// Pin opens a directory, step by step: a symbolic link is followed only where nobody else can have
// made it, or can change it. The caller calls unpin. What others see of a directory below is up to
// its mode.
func (r *Pins) Pin(path string) (*Pinned, error) {
	fd, err := openDirectly(path)
	if err != nil {
		return nil, err
	}
	return r.pinned(fd, path)
}

// PinBelow opens a directory of this user's in a pinned one, which must be empty, and makes it
// private.
func (r *Pins) PinBelow(parent *Pinned, name string) (*Pinned, error) {
	shown := filepath.Join(parent.shown, name)
	fd, err := unix.Openat(parent.Fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, errors.WithStack(&fs.PathError{Op: "open", Path: shown, Err: err})
	}
	p, err := r.pinned(fd, shown)
	if err != nil {
		return nil, err
	}
	info, err := os.Lstat(p.Within())
	if err == nil && !OwnedByUser(info) {
		err = errors.Errorf("%s is not the directory that was made there: somebody has put another in its place", shown)
	}
	if err == nil {
		err = os.Chmod(p.Within(), 0o700)
	}
	if err == nil {
		var entries []os.DirEntry
		if entries, err = os.ReadDir(p.At); err == nil && len(entries) > 0 {
			err = errors.Errorf("%s is not empty, as it was made: somebody has put another in its place", shown)
		}
	}
	if err != nil {
		p.Unpin()
		return nil, errors.WithStack(err)
	}
	return p, nil
}

// pinned is a directory that is open. Where there is no /proc it is known by its path, which others
// must not be able to change.
func (r *Pins) pinned(fd int, path string) (*Pinned, error) {
	p := &Pinned{Fd: fd, At: ProcPath(fd), shown: path}
	var open, there unix.Stat_t
	err := unix.Fstat(fd, &open)
	if err == nil && (unix.Stat(p.At, &there) != nil || open.Dev != there.Dev || open.Ino != there.Ino) {
		p.At = path
		for dir := filepath.Dir(path); err == nil && dir != "/"; dir = filepath.Dir(dir) {
			err = CheckParent(dir)
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, errors.WithStack(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.names[p.At] = path // a descriptor's number may be used again: the last counts
	return p, nil
}

// ProcPath is the path of what a descriptor of this process stands for, that of a link (proc(5)).
func ProcPath(fd int) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd) }

// Within is the path of the directory itself, not of the link.
func (p *Pinned) Within() string { return p.At + "/." }

// Unpin closes the directory.
func (p *Pinned) Unpin() { _ = unix.Close(p.Fd) }

// descriptorPath is the path of a pinned directory.
var descriptorPath = regexp.MustCompile(`/proc/[0-9]+/fd/[0-9]+`)

// Shown returns text with the paths of pinned directories as the user named them.
func (r *Pins) Shown(text string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return descriptorPath.ReplaceAllStringFunc(text, func(path string) string {
		if name, ok := r.names[path]; ok {
			return name
		}
		return path
	})
}

// OpenFile is os.OpenFile for a file whose directory others may own a part of the way to: see pin.
// The last part of the path is followed where it is a link, unless flags say otherwise.
func OpenFile(path string, flags int, mode uint32) (*os.File, error) {
	full, err := filepath.Abs(path)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	dir, err := openDirectly(filepath.Dir(full))
	var failed *fs.PathError
	if errors.As(err, &failed) {
		err = errors.WithStack(&fs.PathError{Op: "open", Path: path, Err: failed.Err})
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(dir) }()
	fd, err := unix.Openat(dir, filepath.Base(full), flags|unix.O_CLOEXEC, mode)
	if err != nil {
		return nil, errors.WithStack(&fs.PathError{Op: "open", Path: path, Err: err})
	}
	return os.NewFile(uintptr(fd), path), nil
}

// mostLinks is how many symbolic links a path may have, as the kernel has it (path_resolution(7)).
const mostLinks = 40

// openDirectly opens the directory at an absolute path (O_PATH).
func openDirectly(path string) (fd int, err error) {
	const flags = unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
	open := func(at int, name string) int {
		if err == nil {
			var next int
			if next, err = unix.Openat(at, name, flags, 0); err == nil {
				return next
			}
			err = &fs.PathError{Op: "open", Path: path, Err: err}
		}
		return -1
	}
	dir := open(unix.AT_FDCWD, "/")
	defer func() {
		if err != nil {
			_ = unix.Close(dir)
			dir, err = -1, errors.WithStack(err)
		}
	}()
	todo, links := strings.Split(path, "/"), 0
	for len(todo) > 0 && err == nil {
		name := todo[0]
		todo = todo[1:]
		if name == "" || name == "." {
			continue
		}
		next := open(dir, name)
		if err != nil {
			return dir, err
		}
		var st, above unix.Stat_t
		if err = unix.Fstat(next, &st); err == nil {
			err = unix.Fstat(dir, &above)
		}
		switch {
		case err != nil:
		case st.Mode&unix.S_IFMT == unix.S_IFDIR:
			_ = unix.Close(dir)
			dir = next
			continue
		case st.Mode&unix.S_IFMT != unix.S_IFLNK:
			err = &fs.PathError{Op: "open", Path: path, Err: unix.ENOTDIR}
		case !isTrusted(st, above):
			err = errors.Errorf("%s leads through the symbolic link %s, which another user could have lead elsewhere",
				path, name)
		default:
			if links++; links > mostLinks {
				err = &fs.PathError{Op: "open", Path: path, Err: unix.ELOOP}
				break
			}
			var target string
			if target, err = readLink(next); err != nil {
				break
			}
			if strings.HasPrefix(target, "/") {
				_ = unix.Close(dir)
				dir = open(unix.AT_FDCWD, "/")
			}
			todo = append(strings.Split(target, "/"), todo...)
		}
		_ = unix.Close(next)
	}
	return dir, err
}

// isTrusted tells whether only root and this user can have made a link, and can put another thing
// in its place.
func isTrusted(link, dir unix.Stat_t) bool {
	return isTrustedUser(link.Uid) && isTrustedUser(dir.Uid) && !isShared(dir.Mode, dir.Gid)
}

// isShared tells whether others can put things into a directory of this mode and group, and take
// away what is not theirs.
func isShared(mode, gid uint32) bool {
	return (mode&0o002 != 0 || mode&0o020 != 0 && int(gid) != os.Getegid()) && mode&unix.S_ISVTX == 0
}

// isTrustedUser tells whether a user is this one, or root: whoever owns the root directory is that
// too, since in a user namespace root has another number.
func isTrustedUser(uid uint32) bool {
	var root unix.Stat_t
	return uid == 0 || int(uid) == os.Geteuid() || unix.Stat("/", &root) == nil && uid == root.Uid
}

// readLink returns the target of a link that is open.
func readLink(fd int) (string, error) {
	target := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", target)
	if err != nil {
		return "", err
	}
	return string(target[:n]), nil
}
