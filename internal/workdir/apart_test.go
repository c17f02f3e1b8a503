package workdir

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMakeApart(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	path := filepath.Join(parent, "stage")
	if err := MakeApart(path); err != nil {
		t.Fatal(err)
	}
	names, err := os.ReadDir(parent)
	if err != nil {
		t.Fatal(err)
	}
	if len(names) != 1 || names[0].Name() != "stage" || !names[0].IsDir() {
		t.Errorf("beside the directory there is something: %v", names)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != os.ModeDir|0o700 {
		t.Errorf("it is no private directory: %v, %v", info, err)
	}
	if err := os.WriteFile(filepath.Join(path, "file"), nil, 0o600); err != nil {
		t.Error(err)
	}
	if err := MakeApart(path); err == nil {
		t.Error("a directory with something in it was replaced")
	}
	if err := MakeApart(filepath.Join(parent, "missing", "stage")); err == nil {
		t.Error("a directory was made in one that is not there")
	}
}

func TestSpread(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	flags := func() (uint32, error) {
		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		return unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	}
	before, err := flags()
	Spread(dir)
	after, _ := flags()
	if after&^fsTopdirFlag != before&^fsTopdirFlag {
		t.Errorf("flags %#x before, %#x after", before, after)
	}
	var fs unix.Statfs_t
	if serr := unix.Statfs(dir, &fs); serr != nil {
		t.Fatal(serr)
	}
	if err == nil && fs.Type == unix.EXT4_SUPER_MAGIC && after&fsTopdirFlag == 0 {
		t.Error("directories in it stay beside one another")
	}
	Spread(filepath.Join(dir, "missing")) // is nothing to complain of
}
