package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// What a transaction has left goes, unless it was there before, or somebody still works there.
func TestDropTransactions(t *testing.T) {
	t.Parallel()
	r := &repository{path: t.TempDir()}
	for _, name := range []string{"staging-before", "staging-running", "staging-left", "staging-lockless"} {
		mkdir(t, filepath.Join(r.tmp(), name), "object")
	}
	mkdir(t, r.tmp(), "staging-before-lock", "staging-running-lock", "staging-left-lock")
	lock, err := os.OpenFile(filepath.Join(r.tmp(), "staging-running-lock"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Close() }()
	if err := unix.FcntlFlock(lock.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK}); err != nil {
		t.Fatal(err)
	}
	if err := r.dropTransactions(map[string]bool{filepath.Join(r.tmp(), "staging-before"): true}); err != nil {
		t.Error(err)
	}
	want := []string{"staging-before", "staging-before-lock", "staging-running", "staging-running-lock"}
	if left := names(t, r.tmp()); !slices.Equal(left, want) {
		t.Errorf("left: %q, want %q", left, want)
	}
}
