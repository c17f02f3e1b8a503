package testutil

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// SomeUser is an id that no user of the machine needs to have.
const SomeUser = 54321

// TestAs makes a process that runs one test, as another user where uid is not 0.
func TestAs(t testing.TB, uid int, test string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	env := os.Environ()
	if uid != 0 { // the test binary lies where only root gets
		dir := OpenDirOf(t, uid)
		program := filepath.Join(dir, "program")
		// Not by this process: one forked meanwhile would hold the file open, and nobody could run it.
		Run(t, "cp", "--", self, program)
		self, env = program, append(env, "TMPDIR="+dir, "HOME="+dir)
	}
	cmd := exec.Command(self, "-test.run=^"+test+"$")
	cmd.Dir, cmd.Env = "/", env
	if uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	return cmd
}

// OpenDirOf makes a directory that every user can reach, and that belongs to one.
func OpenDirOf(t testing.TB, uid int) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "test-as-") //nolint:usetesting // the directory above t.TempDir() is closed to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	for _, err := range []error{os.Chmod(dir, 0o755), os.Lchown(dir, uid, uid)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
