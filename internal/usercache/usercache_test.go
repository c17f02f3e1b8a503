package usercache

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestLines(t *testing.T) {
	f := &File{Path: filepath.Join(t.TempDir(), "made", "file"), Most: 100}
	if got := f.Lines(); got != nil {
		t.Errorf("a file that is not there has %q", got)
	}
	f.Append("one\n", "two\n")
	f.Append()
	f.Append("three\n")
	if got := f.Lines(); !slices.Equal(got, []string{"one\n", "two\n", "three\n"}) {
		t.Errorf("%q", got)
	}
	for range 30 {
		f.Append("a line\n")
	}
	f.Append("last\n")
	got := f.Lines()
	if n := len(strings.Join(got, "")); n > 50 || n < 40 || got[len(got)-1] != "last\n" || got[0] != "a line\n" {
		t.Errorf("%d bytes are kept of a large file: %q", n, got)
	}
	if again := f.Lines(); !slices.Equal(again, got) {
		t.Errorf("later %q, before %q", again, got)
	}
	var none *File
	none.Append("x\n")
	if got := none.Lines(); got != nil {
		t.Errorf("no file has %q", got)
	}
}

// TestForeign: what others could have written, or would be written elsewhere, is not used.
func TestForeign(t *testing.T) {
	dir := t.TempDir()
	for name, spoil := range map[string]func(path string) error{
		"a file that others can write":      func(path string) error { return os.Chmod(path, 0o666) },
		"a directory that others can write": func(path string) error { return os.Chmod(filepath.Dir(path), 0o777) },
		"a link": func(path string) error {
			other := filepath.Join(dir, "other")
			if err := os.Rename(path, other); err != nil {
				return err
			}
			return os.Symlink(other, path)
		},
		"a directory": func(path string) error { _ = os.Remove(path); return os.Mkdir(path, 0o700) },
	} {
		f := &File{Path: filepath.Join(dir, name, "file"), Most: 100}
		f.Append("good\n")
		if len(f.Lines()) != 1 {
			t.Fatal("nothing was written")
		}
		if err := spoil(f.Path); err != nil {
			t.Fatal(err)
		}
		f.Append("bad\n")
		if got := f.Lines(); got != nil {
			t.Errorf("%s gives %q", name, got)
		}
	}
}
