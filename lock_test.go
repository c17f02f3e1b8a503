package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ostree-image/internal/testutil"
	"ostree-image/internal/workdir"
)

// lockRepo makes a directory that is locked as a repository is.
func lockRepo(t *testing.T, o workdir.LockOptions) *repository {
	t.Helper()
	return &repository{path: t.TempDir(), locking: o}
}

// TestLockKeepsReadersOut: who can only read the repository keeps nobody waiting, whatever he
// locks.
func TestLockKeepsReadersOut(t *testing.T) {
	t.Parallel()
	testutil.NeedRoot(t)
	testutil.NeedTools(t, "flock", "setpriv")
	r := lockRepo(t, workdir.LockOptions{Timeout: 300 * time.Millisecond})
	for _, dir := range []string{filepath.Dir(r.path), r.path} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // the second finds the file of the first
		reader := exec.Command("setpriv", fmt.Sprintf("--reuid=%d", otherID), fmt.Sprintf("--regid=%d", otherID), "--clear-groups", "--",
			"sh", "-c", `exec 8<"$1"; flock -s 8; { exec 9<"$1/`+workdir.LockFile+`" && flock -s 9; }; echo locked; exec sleep 60`, "-", r.path)
		out, err := reader.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := reader.Start(); err != nil {
			t.Fatal(err)
		}
		_, _ = bufio.NewReader(out).ReadString('\n')
		unlock, err := r.lock(t.Context())
		if err != nil {
			t.Error(err)
		} else {
			unlock()
		}
		_ = reader.Process.Kill()
		_ = reader.Wait()
	}
}

// TestLockFile: the lock can be opened by those who may write the repository, and is a plain file
// of its owner.
func TestLockFile(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		dir     os.FileMode
		prepare func(path string) error
		want    os.FileMode
		wantErr string
	}{
		{"new", 0o755, func(string) error { return nil }, 0o600, ""},
		{"of a group", 0o2775, func(string) error { return nil }, 0o660, ""},
		{"of all", 0o1777, func(string) error { return nil }, 0o666, ""},
		{"that others could open", 0o755, func(path string) error { return os.WriteFile(path, nil, 0o644) }, 0o600, ""},
		{"a link", 0o755, func(path string) error { return os.Symlink("/dev/null", path) }, 0, "which is to be a plain file: too many levels"},
		{"a directory", 0o755, func(path string) error { return os.Mkdir(path, 0o755) }, 0, "which is to be a plain file: is a directory"},
		{"a fifo", 0o755, func(path string) error { return unix.Mkfifo(path, 0o600) }, 0, "is to be a plain file of the repository's owner"},
		{"a file of two names", 0o755, func(path string) error {
			if err := os.WriteFile(path+"2", nil, 0o644); err != nil {
				return err
			}
			return os.Link(path+"2", path)
		}, 0o644, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := lockRepo(t, workdir.LockOptions{})
			if err := unix.Chmod(r.path, uint32(tt.dir)); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(r.path, workdir.LockFile)
			if err := tt.prepare(path); err != nil {
				t.Fatal(err)
			}
			unlock, err := r.lock(t.Context())
			if tt.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
					t.Errorf("error %v, want %q", err, tt.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer unlock()
			if info, err := os.Lstat(path); err != nil || info.Mode().Perm() != tt.want {
				t.Errorf("%v, %v; want mode %o", info, err, tt.want)
			}
		})
	}
}

// TestLockOfOwner: what root locks first its owner can lock afterwards.
func TestLockOfOwner(t *testing.T) {
	t.Parallel()
	testutil.NeedRoot(t)
	r := lockRepo(t, workdir.LockOptions{})
	if err := os.Chown(r.path, otherID, otherID); err != nil {
		t.Fatal(err)
	}
	unlock, err := r.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	info, err := os.Lstat(filepath.Join(r.path, workdir.LockFile))
	if err != nil {
		t.Fatal(err)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Uid != otherID || st.Gid != otherID || info.Mode().Perm() != 0o600 {
		t.Errorf("the lock is %+v", info)
	}
}

// TestLockWaits: who waits says for whom, once, and gives up in time.
func TestLockWaits(t *testing.T) {
	t.Parallel()
	var warned []string
	r := lockRepo(t, workdir.LockOptions{Timeout: workdir.LockPatience + 500*time.Millisecond, Warn: func(format string, args ...any) {
		warned = append(warned, fmt.Sprintf(format, args...))
	}})
	unlock, err := (&repository{path: r.path}).lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	_, err = r.lock(t.Context())
	holder := fmt.Sprintf("the process %d (", os.Getpid())
	if err == nil || !strings.Contains(err.Error(), "is locked by "+holder) || !strings.Contains(err.Error(), "--lock-timeout") {
		t.Errorf("error %v", err)
	}
	if len(warned) != 1 || !strings.HasPrefix(warned[0], "waiting for the lock of the repository "+r.path+", which "+holder) {
		t.Errorf("warned: %q", warned)
	}
	began := time.Now()
	if _, err := (&repository{path: r.path, locking: workdir.LockOptions{Timeout: 1}}).lock(t.Context()); err == nil || time.Since(began) > time.Second {
		t.Errorf("without waiting: %v after %s", err, time.Since(began))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := (&repository{path: r.path}).lock(ctx); err == nil {
		t.Error("a run that has ended has the lock")
	}
}

// TestLockReplaced: a lock on a file that was replaced meanwhile is none.
func TestLockReplaced(t *testing.T) {
	t.Parallel()
	r := lockRepo(t, workdir.LockOptions{Timeout: time.Minute})
	path := filepath.Join(r.path, workdir.LockFile)
	first, err := r.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		unlock, err := r.lock(context.Background())
		if err == nil {
			_, err = os.Lstat(path)
			unlock()
		}
		ended <- err
	}()
	time.Sleep(100 * time.Millisecond)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	first()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
