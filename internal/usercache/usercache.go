// Package usercache keeps lines of text in a file of the user's cache directory, for what is found
// out again where the file is gone.
package usercache

import (
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/pkg/errors"

	"ostree-image/internal/errdefs"
)

// File is a file of lines. It may be deleted at any time, and several processes may use it. One
// that cannot be read has no lines, and one that cannot be written stays as it is. A nil File has
// none, and keeps none.
type File struct {
	Path string
	Most int64 // bytes; of a larger file only the newer half is kept
}

// New returns the file of this name in the user's cache directory (XDG base directory
// specification), nil where there is no such directory.
func New(name string, most int64) *File {
	dir, err := os.UserCacheDir()
	if err != nil {
		return nil
	}
	return &File{Path: filepath.Join(dir, "ostree-image", name), Most: most}
}

// Lines returns the lines that there are, the oldest first. The last one may have been cut.
func (f *File) Lines() []string {
	if f == nil {
		return nil
	}
	text, large, err := f.read()
	if err != nil {
		return nil
	}
	if large {
		_, text, _ = bytes.Cut(text, []byte("\n"))
		_ = f.replace(text)
	}
	return slices.Collect(strings.Lines(string(text)))
}

// read returns the file's text, and only the newer half of a large one.
func (f *File) read() (text []byte, large bool, err error) {
	file, err := f.open(os.O_RDONLY)
	if err != nil {
		return nil, false, err
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return nil, false, errors.WithStack(err)
	}
	if large = info.Size() > f.Most; large {
		if _, err := file.Seek(-f.Most/2, io.SeekEnd); err != nil {
			return nil, false, errors.WithStack(err)
		}
	}
	text, err = io.ReadAll(io.LimitReader(file, f.Most))
	return text, large, errors.WithStack(err)
}

// Append adds lines, each of which ends with a newline, with one write: so those of other processes
// stay whole.
func (f *File) Append(lines ...string) {
	if f == nil || len(lines) == 0 || os.MkdirAll(filepath.Dir(f.Path), 0o700) != nil {
		return
	}
	file, err := f.open(os.O_WRONLY | os.O_APPEND | os.O_CREATE)
	if err != nil {
		return
	}
	_, _ = io.WriteString(file, strings.Join(lines, ""))
	_ = file.Close()
}

// open opens the file where it and its directory are the user's own, and nobody else can write
// them.
func (f *File) open(flags int) (*os.File, error) {
	dir, err := os.Lstat(filepath.Dir(f.Path))
	if err != nil {
		return nil, errors.WithStack(err)
	}
	if !dir.IsDir() || !isOwn(dir) {
		return nil, errors.Errorf("%s is not the user's own", filepath.Dir(f.Path))
	}
	file, err := os.OpenFile(f.Path, flags|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	info, err := file.Stat()
	if err == nil && (!info.Mode().IsRegular() || !isOwn(info)) {
		err = errors.Errorf("%s is not the user's own", f.Path)
	}
	if err != nil {
		_ = file.Close()
		return nil, errors.WithStack(err)
	}
	return file, nil
}

func isOwn(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == os.Geteuid() && info.Mode().Perm()&0o022 == 0
}

// replace makes text the content of the file at once.
func (f *File) replace(text []byte) (err error) {
	file, err := os.CreateTemp(filepath.Dir(f.Path), filepath.Base(f.Path)+".")
	if err != nil {
		return errors.WithStack(err)
	}
	_, err = file.Write(text)
	errdefs.Close(&err, file)
	if err == nil {
		err = os.Rename(file.Name(), f.Path)
	}
	if err != nil {
		_ = os.Remove(file.Name())
	}
	return errors.WithStack(err)
}
