package main

import (
	"context"
	"os"
	"os/exec"

	"github.com/pkg/errors"
)

// fileSystem is an ext4 of its own in a sparse file, on a loop device.
type fileSystem struct{ path, file string }

// fileSystemSize is the most that one may hold. What is not written takes no room.
const fileSystemSize = 40 << 30

// newFileSystem mounts an empty file system at path. For a minute or more after files were removed,
// ext4 passes their inodes over one by one whenever it makes a file, and so a run after another was
// seen to take twice its time.
func newFileSystem(ctx context.Context, path string) (fs *fileSystem, err error) {
	fs = &fileSystem{path: path, file: path + ".ext4"}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, errors.WithStack(err)
	}
	f, err := os.Create(fs.file)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	err = f.Truncate(fileSystemSize)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = output(exec.CommandContext(ctx, "mkfs.ext4", "-q", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", fs.file))
	}
	if err == nil {
		err = output(exec.CommandContext(ctx, "mount", "-o", "loop,noinit_itable", fs.file, path))
	}
	if err != nil {
		_ = os.Remove(fs.file)
		return nil, errors.WithStack(err)
	}
	return fs, nil
}

// remove unmounts the file system and removes all that it held. It does so whatever has ended the
// run.
func (fs *fileSystem) remove() error {
	if err := output(exec.Command("umount", fs.path)); err != nil {
		return err
	}
	if err := os.Remove(fs.file); err != nil {
		return errors.WithStack(err)
	}
	return errors.WithStack(os.Remove(fs.path))
}
