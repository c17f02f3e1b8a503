package main

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/pkg/errors"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"ostree-image/internal/proc"
	"ostree-image/internal/testutil"
	"ostree-image/internal/workdir"
)

func names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func mkdir(t testing.TB, path string, files ...string) {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(path, f), []byte(f), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSweep(t *testing.T) {
	parent := t.TempDir()
	mkdir(t, parent+"/ostree-image-dead", workdir.WorkMark, "blob")
	mkdir(t, parent+"/ostree-image-dead/stage/objects", "x")
	mkdir(t, parent+"/ostree-image-unmarked", "precious")
	mkdir(t, parent+"/.ostree-image-new-marked", workdir.WorkMark)
	mkdir(t, parent+"/.ostree-image-new-empty")
	mkdir(t, parent+"/.ostree-image-new-kept", "precious")
	beginning := mkLocked(t, parent+"/.ostree-image-new-locked")
	defer func() { _ = beginning.Close() }()
	mkdir(t, parent+"/staging-other", "x")
	mkdir(t, parent+"/cache")
	mkdir(t, parent+"/outside", workdir.WorkMark, "victim")
	mkdir(t, parent, "ostree-image-file")
	mkdir(t, parent+"/ostree-image-mark-is-a-directory/"+workdir.WorkMark)
	mkdir(t, parent+"/ostree-image-mark-is-a-link")
	for link, target := range map[string]string{
		"ostree-image-link": parent + "/outside", "ostree-image-dead/link": parent + "/outside",
		"ostree-image-mark-is-a-link/" + workdir.WorkMark: parent + "/outside/" + workdir.WorkMark,
	} {
		if err := os.Symlink(target, filepath.Join(parent, link)); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{
		".ostree-image-new-kept", ".ostree-image-new-locked", "cache", "ostree-image-file", "ostree-image-link", "ostree-image-mark-is-a-directory", "ostree-image-mark-is-a-link",
		"ostree-image-unmarked", "outside", "staging-other",
	}
	if os.Geteuid() == 0 {
		for name, theirs := range map[string][]string{"ostree-image-foreign": {"", workdir.WorkMark}, "ostree-image-foreign-dir": {""}, "ostree-image-foreign-mark": {workdir.WorkMark}} {
			mkdir(t, filepath.Join(parent, name), workdir.WorkMark)
			for _, path := range theirs {
				if err := os.Lchown(filepath.Join(parent, name, path), otherID, otherID); err != nil {
					t.Fatal(err)
				}
			}
			want = append(want, name)
		}
	}
	living, err := workdir.New(parent, newRunner("true", "true", 0, &journal{}))
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, filepath.Base(living.Path))
	slices.Sort(want)
	workdir.Sweep(parent)
	if got := names(t, parent); !slices.Equal(got, want) {
		t.Errorf("left: %q, want %q", got, want)
	}
	if got := names(t, parent+"/outside"); !slices.Equal(got, []string{workdir.WorkMark, "victim"}) {
		t.Errorf("outside: %q", got)
	}
	if err := living.Remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(living.Path); !os.IsNotExist(err) {
		t.Errorf("a work directory that was removed is there: %v", err)
	}
}

// mkLocked makes a directory that a living run has.
func mkLocked(t *testing.T, path string) *os.File {
	t.Helper()
	mkdir(t, path)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := workdir.TryLock(f); err != nil || !ok {
		t.Fatalf("locking %s: %v", path, err)
	}
	return f
}

// TestWorkDirsAtOnce: runs that begin and end side by side sweep one another's directories before
// they are locked, and none fails.
func TestWorkDirsAtOnce(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	r := newRunner("true", "true", 0, &journal{})
	pinned, err := r.Pin(parent)
	if err != nil {
		t.Fatal(err)
	}
	defer pinned.Unpin()
	var group errgroup.Group
	for i := range 8 {
		group.Go(func() error {
			for range 50 {
				newDir := workdir.New
				if i%2 == 1 {
					newDir = func(string, workdir.Heirs) (*workdir.Dir, error) { return newCheckoutDir(pinned, r) }
				}
				w, err := newDir(parent, r)
				if err != nil {
					return err
				}
				if err := os.WriteFile(w.Join("file"), nil, 0o600); err != nil {
					return err
				}
				if err := w.Remove(); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	if got := names(t, parent); len(got) > 0 {
		t.Errorf("left: %q", got)
	}
}

// TestLeftByOthers: whatever a run comes to, it removes what runs that were killed have left.
func TestLeftByOthers(t *testing.T) {
	t.Parallel()
	tmpdir := t.TempDir()
	r := newTestRun(t, testOptions{tmpdir: tmpdir})
	for _, name := range []string{"a", "b"} {
		if err := r.importImage(t, name, smallImage(t)); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		what string
		run  func() error
	}{
		{"a copy of what is there", func() error { return r.importImage(t, "a", smallImage(t)) }},
		{"another copy", func() error { return r.importImage(t, "c", otherImage(t)) }},
		{"remove", func() error { return r.removeAll(t, false, "b") }},
		{"prune", func() error {
			_, err := pruneRepository(t.Context(), r.settings, r.repo, false, func([]string) {})
			return err
		}},
	} {
		const dead, stray = "ostree-image-dead", "ociimage/tmp.AbC123"
		mkdir(t, filepath.Join(r.repo.tmp(), dead), workdir.WorkMark, "blob")
		mkdir(t, filepath.Join(tmpdir, dead), workdir.WorkMark, "blob")
		copyOf, err := os.ReadFile(filepath.Join(r.repo.path, "refs/heads/ociimage/a_3Alatest"))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(r.repo.path, "refs/heads", stray), copyOf, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := tt.run(); err != nil {
			t.Errorf("%s: %v", tt.what, err)
		}
		r.nothingInTmp(t)
		if r.commits(t)[stray] != "" {
			t.Errorf("%s leaves the ref %s", tt.what, stray)
		}
		if left := names(t, tmpdir); len(left) > 0 && strings.Contains(tt.what, "copy") { // the others have no --tmpdir
			t.Errorf("%s leaves %q in --tmpdir", tt.what, left)
		}
		if err := os.RemoveAll(filepath.Join(tmpdir, dead)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSweepWaitsForChildren: a child that outlives the program still writes there.
func TestSweepWaitsForChildren(t *testing.T) {
	testutil.NeedTools(t, "sleep")
	parent := t.TempDir()
	r := newRunner("sleep", "tar", 0, &journal{})
	w, err := workdir.New(parent, r)
	if err != nil {
		t.Fatal(err)
	}
	p, err := r.Start(t.Context(), proc.Command{Tool: proc.OSTree, Args: []string{"600"}}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	// The program dies: its own hold on the directory ends, the child's does not.
	w.Abandon()
	workdir.Sweep(parent)
	if _, err := os.Stat(w.Path); err != nil {
		t.Errorf("it is swept while a child lives: %v", err)
	}
	p.Kill()
	_ = p.Wait()
	workdir.Sweep(parent)
	if _, err := os.Stat(w.Path); !os.IsNotExist(err) {
		t.Errorf("it is not swept after the last child's end: %v", err)
	}
	_ = w.Remove()
}

// TestRemovalBreaksOff: a work directory whose removal was killed is still known for one.
func TestRemovalBreaksOff(t *testing.T) {
	parent := t.TempDir()
	w, err := workdir.New(parent, newRunner("true", "true", 0, &journal{}))
	if err != nil {
		t.Fatal(err)
	}
	mkdir(t, w.Path+"/stuck", "file")
	// A file that cannot be removed stands for the kill. Nobody, root neither, removes from a
	// directory that is not there.
	if os.Geteuid() != 0 {
		testutil.Skip(t, "only root can make a file that cannot be removed")
	}
	immutable(t, w.Path+"/stuck/file", true)
	if err := w.Remove(); err == nil {
		t.Error("what cannot be removed is removed")
	}
	immutable(t, w.Path+"/stuck/file", false)
	workdir.Sweep(parent)
	if got := names(t, parent); len(got) > 0 {
		t.Errorf("left: %q", got)
	}
}

// immutable sets or clears the attribute of chattr(1).
func immutable(t *testing.T, path string, on bool) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	const flag = 0x10 // FS_IMMUTABLE_FL
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil {
		flags &^= flag
		if on {
			flags |= flag
		}
		err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags)
	}
	if err != nil {
		testutil.Skip(t, "no attributes of files here: %v", err)
	}
}

// hostileNames are names that a file can have, and text tools stumble over.
var hostileNames = []string{
	"new\nline", "tab\t", `back\slash`, "-dash", " lead", "trail ", "\xff\xfe", "e\u0301", "'", `"`, "*", "...", "$(id)", "\x01", strings.Repeat("n", 255),
}

// closedTree makes a tree with things that their owner cannot read, and a link that leads out of it
// to a victim.
func closedTree(t testing.TB, dir, victim string) {
	t.Helper()
	mkdir(t, dir)
	for _, n := range hostileNames {
		mkdir(t, filepath.Join(dir, "closed-"+n[:min(len(n), 240)], "deeper"), n)
		mkdir(t, dir, n)
	}
	for _, link := range []string{"link", "closed-tab\t/link"} {
		if err := os.Symlink(victim, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(dir+"/fifo", 0o644); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(dir+"/closed-*/fifo", 0o644); err != nil {
		t.Fatal(err)
	}
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			dirs = append(dirs, path)
		case d.Type().IsRegular():
			return os.Chmod(path, 0)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range slices.Backward(dirs) {
		if err := os.Chmod(d, fs.ModeSetgid|0o011); err != nil {
			t.Fatal(err)
		}
	}
}

const (
	asUserDir = "OSTREE_IMAGE_TEST_AS_USER" // set where this is not the first process
	otherID   = 54321
)

// asOtherUser runs a test of this binary again as a user who is not root.
func asOtherUser(t *testing.T, test, dir string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "test")
	// Not by this process: one forked meanwhile would hold the file open, and nobody could run it.
	testutil.Run(t, "cp", "--", self, program)
	for path, mode := range map[string]os.FileMode{dir: 0o777, program: 0o755} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(program, "-test.run=^"+test+"$", "-test.v")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), asUserDir+"="+dir, "HOME="+dir, "TMPDIR="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: otherID, Gid: otherID}}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: "+test) {
		t.Fatalf("%v\n%s", err, out)
	}
}

func publicDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(fastDir(), "as-user-") //nolint:usetesting // the directory above t.TempDir() is closed to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// TestClosedTrees: what not even their owner can read is removed, and made readable, without
// following a link.
func TestClosedTrees(t *testing.T) {
	if os.Geteuid() == 0 && os.Getenv(asUserDir) == "" {
		asOtherUser(t, "TestClosedTrees", publicDir(t))
		return
	}
	victim := t.TempDir() + "/victim"
	mkdir(t, victim, "file")
	for _, path := range []string{victim + "/file", victim} {
		if err := os.Chmod(path, 0o100); err != nil {
			t.Fatal(err)
		}
	}
	intact := func() {
		t.Helper()
		if err := os.Chmod(victim, 0o700); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(victim + "/file")
		if err != nil || info.Mode() != 0o100 {
			t.Errorf("the victim is %v, %v", info, err)
		}
	}
	t.Run("removed", func(t *testing.T) {
		dir := t.TempDir() + "/tree"
		closedTree(t, dir, victim)
		if err := workdir.RemoveTree(dir); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(dir); !os.IsNotExist(err) {
			t.Errorf("it is there: %v", err)
		}
		intact()
	})
	for _, readable := range []bool{false, true} {
		t.Run("made readable", func(t *testing.T) {
			dir := t.TempDir() + "/tree"
			closedTree(t, dir, victim)
			overrides, err := (permissions{uid: os.Geteuid(), gid: os.Getegid(), readable: readable}).fixTree(dir)
			if err != nil {
				t.Fatal(err)
			}
			checkReadable(t, dir)
			checkOverrides(t, dir, overrides, readable)
			intact()
		})
	}
}

func checkReadable(t *testing.T, dir string) {
	t.Helper()
	found := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		found++
		switch {
		case d.IsDir() && info.Mode()&0o777 != 0o711:
			t.Errorf("%q has the mode %s, want 0711", path, info.Mode())
		case d.Type().IsRegular() && info.Mode() != 0o400:
			t.Errorf("%q has the mode %s, want 0400", path, info.Mode())
		case d.Type()&fs.ModeNamedPipe != 0:
			t.Errorf("%q is left", path)
		}
		return nil
	})
	if want := 1 + 4*len(hostileNames) + 2; err != nil || found != want {
		t.Errorf("%d things, %v, want %d", found, err, want)
	}
}

// checkOverrides: every mode that was changed is given back, but for what a line cannot name and
// what is to be readable.
func checkOverrides(t *testing.T, dir string, overrides []string, readable bool) {
	t.Helper()
	want := []string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, dir)
		if name == "" {
			name = "/"
		}
		if strings.Contains(name, "\n") || d.Type()&fs.ModeSymlink != 0 || readable && !d.IsDir() {
			return nil
		}
		line := "=0 " + name
		if d.IsDir() {
			info, err := d.Info()
			if err != nil {
				return err
			}
			line = "=9 " + name
			if info.Mode()&fs.ModeSetgid != 0 {
				line = "=1033 " + name
			}
		}
		want = append(want, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(want)
	slices.Sort(overrides)
	if !slices.Equal(overrides, want) {
		t.Errorf("overrides\n%q, want\n%q", overrides, want)
	}
}

// TestFixTreeAsRoot: root reads everything, so nothing is changed but what OSTree cannot hold.
func TestFixTreeAsRoot(t *testing.T) {
	dir := t.TempDir() + "/tree"
	victim := t.TempDir()
	closedTree(t, dir, victim)
	t.Cleanup(func() { _ = workdir.RemoveTree(dir) })
	if os.Geteuid() != 0 {
		return // TestClosedTrees
	}
	overrides, err := permissions{}.fixTree(dir)
	if err != nil || overrides != nil {
		t.Errorf("%q, %v", overrides, err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode() != fs.ModeDir|fs.ModeSetgid|0o011 {
		t.Errorf("the root is %v, %v", info, err)
	}
	for _, f := range []string{"/fifo", "/closed-*/fifo"} {
		if _, err := os.Lstat(dir + f); !os.IsNotExist(err) {
			t.Errorf("%s is there: %v", f, err)
		}
	}
	if err := os.Symlink(dir, victim+"/link"); err != nil {
		t.Fatal(err)
	}
	if _, err := (permissions{uid: 1}).fixTree(victim + "/link"); err == nil {
		t.Error("a link is taken for a tree")
	}
}

func TestParentsOfOthers(t *testing.T) {
	testutil.NeedRoot(t)
	base := t.TempDir()
	tests := []struct {
		name    string
		mode    os.FileMode
		uid     int
		gid     int
		wantErr string
	}{
		{"ours", 0o755, 0, 0, ""},
		{"our group's", 0o775, 0, 0, ""},
		{"sticky", 0o777 | os.ModeSticky, 0, 0, ""},
		{"open", 0o777, 0, 0, "it is not sticky"},
		{"another group's", 0o775, 0, 12345, "it is not sticky"},
		{"somebody's", 0o755, 12345, 0, "belongs to the user 12345"},
		{"somebody's sticky", 0o777 | os.ModeSticky, 12345, 0, "belongs to the user 12345"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(base, strings.ReplaceAll(tt.name, " ", "-"))
			mkdir(t, dir)
			if err := os.Chown(dir, tt.uid, tt.gid); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(dir, tt.mode); err != nil {
				t.Fatal(err)
			}
			if got := testutil.ErrText(workdir.CheckParent(dir)); tt.wantErr == "" && got != "" || !strings.Contains(got, tt.wantErr) {
				t.Errorf("%q, want %q", got, tt.wantErr)
			}
		})
	}
}

func TestRemovalLeavesAnotherDirectoryAlone(t *testing.T) {
	base := t.TempDir()
	victim := filepath.Join(base, "victim")
	mkdir(t, victim, "precious")
	for name, plant := range map[string]func(path string) error{
		"a link":      func(path string) error { return os.Symlink(victim, path) },
		"a directory": func(path string) error { return os.Rename(victim, path) },
	} {
		t.Run(name, func(t *testing.T) {
			w, err := workdir.New(base, newRunner("", "", 0, nil))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(w.Path, w.Path+"-away"); err != nil {
				t.Fatal(err)
			}
			if err := plant(w.Path); err != nil {
				t.Fatal(err)
			}
			if got := testutil.ErrText(w.Remove()); !strings.Contains(got, "is no longer the directory that this run made") {
				t.Errorf("the error is %q", got)
			}
			if got := names(t, w.Path); !slices.Equal(got, []string{"precious"}) {
				t.Errorf("the other directory holds %q", got)
			}
			if err := os.RemoveAll(w.Path + "-away"); err != nil {
				t.Fatal(err)
			}
			_ = os.Rename(w.Path, victim) // back, for the next: a link would go where it leads
			mkdir(t, victim, "precious")
		})
	}
}

func TestWorkDirThatCannotBeFilled(t *testing.T) {
	// There is room for the directory's name, and none for that of a file in it.
	parent := t.TempDir()
	for len(parent) < 4050 {
		parent = filepath.Join(parent, strings.Repeat("d", min(200, 4050-len(parent))))
	}
	if err := os.MkdirAll(parent, 0o700); err != nil {
		t.Skipf("no such long path here: %v", err)
	}
	if _, err := workdir.New(parent, nil); !errors.Is(err, syscall.ENAMETOOLONG) {
		t.Errorf("newWorkDir: %v", err)
	}
	if left, err := os.ReadDir(parent); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
