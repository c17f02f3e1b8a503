package rootfs

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ostree-image/internal/testutil"
)

// openTree makes a directory of these entries, "d/" for a directory, "l -> target" for a symlink,
// anything else for a file that holds its own name, and opens it.
func openTree(t testing.TB, entries ...string) (*FS, string) {
	t.Helper()
	dir := t.TempDir()
	for _, e := range entries {
		link, target, isLink := strings.Cut(e, " -> ")
		path := filepath.Join(dir, link)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		switch {
		case err != nil:
		case isLink:
			err = os.Symlink(target, path)
		case strings.HasSuffix(e, "/"):
			err = os.MkdirAll(path, 0o755)
		default:
			err = os.WriteFile(path, []byte(e), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	before := openFiles(t)
	r, err := Open(dir, os.Geteuid() == 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if after := openFiles(t); after > before {
			t.Errorf("%d descriptors are open, and %d were", after, before)
		}
	})
	return r, dir
}

func openFiles(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestRootFSResolveDir(t *testing.T) {
	tree := []string{
		"d/sub/", "d/file", "rel -> d", "abs -> /d/sub", "up -> ../../../d", "d/back -> ..", "chain -> rel/back/./abs", "dangling -> no/where", "loop -> loop2", "loop2 -> loop",
		"self -> self/x", "root -> /", "here -> .", "tofile -> d/file", "missup -> no/../d", "fileup -> d/file/../sub", "out -> /etc", "slash -> d//sub///", "empty/", "new\nline/ü/",
	}
	for _, c := range []struct{ name, want, fails, create string }{ // create is what there is with create, where there is nothing without
		{name: "", want: ""},
		{name: "d", want: "d"},
		{name: "d/sub", want: "d/sub"},
		{name: "rel", want: "d"},
		{name: "rel/sub", want: "d/sub"},
		{name: "abs", want: "d/sub"},
		{name: "up", want: "d"},
		{name: "d/back", want: ""},
		{name: "d/back/d/back/rel/sub", want: "d/sub"},
		{name: "chain", want: "d/sub"},
		{name: "root/root/here/rel", want: "d"},
		{name: "slash", want: "d/sub"},
		{name: "missup", want: "d"},
		{name: "fileup", want: "d/sub"},
		{name: "new\nline/ü", want: "new\nline/ü"},
		{name: "loop", fails: "more than 40"},
		{name: "d/back/loop2/x", fails: "more than 40"},
		{name: "self", fails: "more than 40"},
		{name: "no", create: "no"},
		{name: "dangling", create: "no/where"},
		{name: "dangling/x", create: "no/where/x"},
		{name: "out", create: "etc"},
		{name: "out/passwd", create: "etc/passwd"},
		{name: "tofile", create: "d/file"},
		{name: "d/file/x", create: "d/file/x"},
		{name: "rel/file/x/y", create: "d/file/x/y"},
		{name: strings.Repeat("n", 255), create: strings.Repeat("n", 255)},
		{name: strings.Repeat("n", 256), fails: "file name too long"},
	} {
		t.Run(fmt.Sprintf("%.40q", c.name), func(t *testing.T) {
			r, dir := openTree(t, tree...)
			if c.name == "" {
				if real, ok, err := r.ResolveDir("", true, nil); real != "" || !ok || err != nil {
					t.Errorf("%q, %v, %v", real, ok, err)
				}
				return
			}
			for range 2 { // the second time from what is remembered
				real, ok, err := r.ResolveDir(c.name, false, nil)
				if c.fails != "" {
					if err == nil || !strings.Contains(err.Error(), c.fails) {
						t.Fatalf("error %v, want %q", err, c.fails)
					}
					continue
				}
				if err != nil || ok != (c.create == "") || ok && real != c.want {
					t.Fatalf("%q, %v, %v", real, ok, err)
				}
			}
			made := map[string]bool{}
			real, ok, err := r.ResolveDir(c.name, true, func(p string) { made[p] = true })
			if c.fails != "" {
				return
			}
			if want := c.want + c.create; err != nil || !ok || real != want {
				t.Fatalf("with create: %q, %v, %v", real, ok, err)
			}
			if info, err := os.Lstat(filepath.Join(dir, real)); err != nil || !info.IsDir() || made[real] && info.Mode().Perm() != 0o755 {
				t.Errorf("%v, %v", info, err)
			}
			if made[real] != (c.create != "") {
				t.Errorf("made %v", made)
			}
			if _, err := os.Lstat(filepath.Join(dir, "no")); (err == nil) != made["no"] {
				t.Errorf("no: %v", err)
			}
		})
	}
}

func TestRootFSForgets(t *testing.T) {
	r, _ := openTree(t, "a/x/", "b/x/", "l -> a", "f")
	resolve := func(name, want string) {
		t.Helper()
		real, ok, err := r.ResolveDir(name, false, nil)
		if err != nil || ok != (want != "") || real != want {
			t.Errorf("%s: %q, %v, %v, want %q", name, real, ok, err, want)
		}
	}
	resolve("l/x", "a/x")
	resolve("l", "a")
	if err := r.RemoveAll("l", nil); err != nil {
		t.Fatal(err)
	}
	resolve("l/x", "")
	if err := r.Mkdir("l"); err != nil {
		t.Fatal(err)
	}
	resolve("l", "l")
	resolve("l/x", "")
	if err := r.RemoveAll("l", nil); err != nil {
		t.Fatal(err)
	}
	if err := r.Link("f", "l"); err != nil {
		t.Fatal(err)
	}
	resolve("l", "")
	resolve("a/x", "a/x")
	if err := r.RemoveAll("a", nil); err != nil {
		t.Fatal(err)
	}
	resolve("a/x", "")
	if _, err := r.dir("a/x"); err == nil {
		t.Error("a directory that is gone can be opened")
	}
}

func TestRootFSRemoveAll(t *testing.T) {
	entries := []string{"d/a", "d/b/c", "d/b/d/e", "d/l -> /etc", "d/m -> ../other", "d/new\nline/\x01", "d/b/-rf", "other/file"}
	for _, c := range []struct {
		name, what string
		keep       []string
		left       []string
	}{
		{"a directory", "d", nil, []string{".", "other", "other/file"}},
		{"what is not there", "no", nil, []string{".", "d", "d/a", "d/b", "d/b/-rf", "d/b/c", "d/b/d", "d/b/d/e", "d/l", "d/m", "d/new\nline", "d/new\nline/\x01", "other", "other/file"}},
		{"below what is not there", "no/such", nil, []string{".", "d", "d/a", "d/b", "d/b/-rf", "d/b/c", "d/b/d", "d/b/d/e", "d/l", "d/m", "d/new\nline", "d/new\nline/\x01", "other", "other/file"}},
		{"a link", "d/m", nil, []string{".", "d", "d/a", "d/b", "d/b/-rf", "d/b/c", "d/b/d", "d/b/d/e", "d/l", "d/new\nline", "d/new\nline/\x01", "other", "other/file"}},
		{"all but a deep file", "d", []string{"d", "d/b", "d/b/d", "d/b/d/e"}, []string{".", "d", "d/b", "d/b/d", "d/b/d/e", "other", "other/file"}},
		{"all but a directory", "d", []string{"d", "d/b"}, []string{".", "d", "d/b", "other", "other/file"}},
		{"all but a link", "d", []string{"d", "d/l"}, []string{".", "d", "d/l", "other", "other/file"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, dir := openTree(t, entries...)
			keep := map[string]bool{}
			for _, k := range c.keep {
				keep[k] = true
			}
			if err := r.RemoveAll(c.what, func(real string) bool { return keep[real] }); err != nil {
				t.Fatal(err)
			}
			got := testutil.TreeOf(t, dir)
			for _, name := range c.left {
				if _, ok := got[name]; !ok {
					t.Errorf("%q is gone", name)
				}
				delete(got, name)
			}
			for name := range got {
				t.Errorf("%q is left", name)
			}
		})
	}
}

func TestRootFSNeverFollows(t *testing.T) {
	r, dir := openTree(t, "l -> d", "d/f", "f")
	for name, call := range map[string]func() error{
		"dir":      func() error { _, err := r.dir("l"); return err },
		"stat":     func() error { _, err := r.Stat("l/f"); return err },
		"mkdir":    func() error { return r.Mkdir("l/new") },
		"names":    func() error { _, err := r.Names("l"); return err },
		"link":     func() error { return r.Link("f", "l/new") },
		"link to":  func() error { return r.Link("l/f", "new") },
		"describe": func() error { return r.Describe("l", Meta{mode: 0o700}) },
		"meta":     func() error { _, err := r.Meta("l"); return err },
		"place":    func() error { return r.Place(r, "f", "l/new") },
		"remove":   func() error { return r.RemoveAll("l/f", nil) },
		"file":     func() error { _, err := r.dir("f"); return err },
	} {
		if err := call(); err == nil {
			t.Errorf("%s goes through a link", name)
		}
	}
	if got := testutil.TreeOf(t, dir); len(got) != 5 || got["d"].Perm != 0o755 {
		t.Errorf("there are %v", got)
	}
}

func TestRootFSDescribe(t *testing.T) {
	r, dir := openTree(t, "d/f", "e/", "f")
	uid, gid := uint32(os.Geteuid()), uint32(os.Getegid())
	meta := Meta{uid: uid, gid: gid, mode: 0o1750, xattrs: map[string]string{"user.a": "1", "user.with space": "\x00\xff"}}
	if r.AsRoot {
		meta.uid, meta.gid, meta.mode = 1, 2, 0o2701
	}
	for _, d := range []string{"d", ""} {
		if err := r.Describe(d, meta); err != nil {
			t.Fatal(err)
		}
		got, err := r.Meta(d)
		if testutil.SameText(t, d, fmt.Sprint(got, err), fmt.Sprint(meta, nil)); err != nil {
			t.Error(err)
		}
	}
	meta.xattrs = map[string]string{"user.b": strings.Repeat("x", 1000)}
	if err := r.Describe("d", meta); err != nil {
		t.Fatal(err)
	}
	n := testutil.TreeOf(t, dir)["d"]
	testutil.SameText(t, "attributes", n.Xattrs, fmt.Sprintf(" user.b=%q", meta.xattrs["user.b"]))
	if err := r.Describe("f", meta); err == nil {
		t.Error("it describes a file")
	}
	if err := r.Describe("e", Meta{uid: uid, gid: gid, mode: 0o755}); err != nil {
		t.Error(err)
	}
}

// TestRootFSManyDirectories goes through more directories than stay open, and links between those.
func TestRootFSManyDirectories(t *testing.T) {
	const n = 3*maxOpenDirs + 7
	r, dir := openTree(t, "f")
	before := openFiles(t)
	for i := range n {
		if err := r.Mkdir(fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			if err := r.Link("f", "0/f"); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := r.Link(fmt.Sprintf("%d/f", i*7919%i), fmt.Sprintf("%d/f", i)); err != nil {
			t.Fatal(err)
		}
	}
	if open := openFiles(t) - before; open > maxOpenDirs+1 {
		t.Errorf("%d directories are open", open)
	}
	for i := range n {
		if err := r.Link(fmt.Sprintf("%d/f", i), fmt.Sprintf("%d/%d", (i+maxOpenDirs)%n, i)); err != nil {
			t.Fatal(err)
		}
	}
	got := testutil.TreeOf(t, dir)
	if len(got) != 2+n+2*n || got["f"].Links != 1+2*n {
		t.Errorf("there are %d files, and the file has %d names", len(got), got["f"].Links)
	}
	if err := r.Empty("", nil); err != nil {
		t.Fatal(err)
	}
	testutil.OnlyEntries(t, dir)
}

// TestRootFSDeep goes 3,000 directories deep.
func TestRootFSDeep(t *testing.T) {
	r, dir := openTree(t)
	name := strings.TrimSuffix(strings.Repeat("d/", 2000), "/")
	if _, ok, err := r.ResolveDir(name, true, func(string) {}); !ok || err != nil {
		t.Fatal(err)
	}
	// Through a link it goes deeper than one path can say.
	if err := os.Symlink(name, filepath.Join(dir, "l")); err != nil {
		t.Fatal(err)
	}
	real, ok, err := r.ResolveDir("l/"+strings.TrimSuffix(strings.Repeat("e/", 1000), "/"), true, func(string) {})
	if !ok || err != nil || len(real) != 2*3000-1 {
		t.Fatalf("%d bytes, %v, %v", len(real), ok, err)
	}
	if err := r.Mkdir(real + "/f"); err != nil {
		t.Fatal(err)
	}
	if err := r.Describe(real, Meta{uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()), mode: 0o711}); err != nil {
		t.Fatal(err)
	}
	if err := r.RemoveAll("d", nil); err != nil {
		t.Fatal(err)
	}
	testutil.OnlyEntries(t, dir, "l")
}

// TestRootFSUnprivileged works in directories that their owner may not enter, and leaves them so.
// Root may always: it becomes another user for the time.
func TestRootFSUnprivileged(t *testing.T) {
	dir := t.TempDir()
	if os.Geteuid() == 0 {
		cmd := testutil.TestAs(t, testutil.SomeUser, "TestRootFSUnprivileged")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	for _, d := range []string{"none", "none/in", "ro", "gone", "gone/in", "open"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		path string
		mode os.FileMode
	}{{"none/in", 0}, {"none", 0}, {"ro", 0o555}, {"gone/in", 0}, {"gone", 0o500}, {".", 0o555}} {
		if err := os.Chmod(filepath.Join(dir, c.path), c.mode); err != nil {
			t.Fatal(err)
		}
	}
	r, err := Open(dir, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		r.Mkdir("none/in/new"), r.Mkdir("ro/new"), r.RemoveAll("gone", nil), r.Mkdir("new"), r.Mkdir("open/new"),
		r.Describe("open", Meta{uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()), mode: 0o100}), r.Mkdir("open/more"),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	if m, err := r.Meta("none/in"); err != nil || m.mode != 0 {
		t.Errorf("none/in has mode %o: %v", m.mode, err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	for _, c := range []struct {
		path string
		mode uint32
	}{{".", 0o555}, {"none", 0}, {"ro", 0o555}, {"open", 0o100}, {"new", 0o755}, {"ro/new", 0o755}} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, c.path), &st); err != nil || st.Mode&0o7777 != c.mode {
			t.Errorf("%s has mode %o, want %o: %v", c.path, st.Mode&0o7777, c.mode, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "gone")); !os.IsNotExist(err) {
		t.Errorf("gone: %v", err)
	}
	for _, p := range []string{".", "none", "none/in", "open"} {
		_ = os.Chmod(filepath.Join(dir, p), 0o700)
	}
	for _, p := range []string{"none/in/new", "open/new", "open/more"} {
		if _, err := os.Lstat(filepath.Join(dir, p)); err != nil {
			t.Error(err)
		}
	}
	_ = os.Chmod(filepath.Join(dir, "ro"), 0o700)
}
