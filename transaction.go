package main

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/pkg/errors"
	"golang.org/x/sys/unix"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/workdir"
)

// The names in a repository's tmp/ of a transaction of ostree: a directory, and beside it the lock
// that lasts as long as its process.
const (
	transactionPrefix = "staging-"
	transactionLock   = "-lock"
)

// tmp is where the repository's temporary files lie, and ours in directories of their own.
func (r *repository) tmp() string { return filepath.Join(r.path, "tmp") }

// sweep removes what runs that were killed have left in the repository's tmp/.
func (r *repository) sweep() { workdir.Sweep(r.tmp()) }

// transactions returns the directories of transactions in the repository's tmp/, running or left by
// a process that was killed.
func (r *repository) transactions() map[string]bool {
	found := map[string]bool{}
	entries, _ := os.ReadDir(r.tmp())
	for _, e := range entries {
		if name := e.Name(); strings.HasPrefix(name, transactionPrefix) && !strings.HasSuffix(name, transactionLock) {
			found[filepath.Join(r.tmp(), name)] = true
		}
	}
	return found
}

// dropTransactions removes what transactions have left, but those that were there before: ostree
// itself keeps it for the next one, and with it the space that it takes. What a process still holds
// stays.
func (r *repository) dropTransactions(before map[string]bool) error {
	for path := range r.transactions() {
		if before[path] {
			continue
		}
		if err := dropTransaction(path); err != nil {
			return err
		}
	}
	return nil
}

func dropTransaction(path string) (err error) {
	lock, err := os.OpenFile(path+transactionLock, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if os.IsNotExist(err) {
		return workdir.RemoveTree(path)
	}
	if err != nil {
		return errors.WithStack(err)
	}
	defer errdefs.Close(&err, lock)
	if err := unix.FcntlFlock(lock.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		return nil //nolint:nilerr // another process is at work there
	}
	if err := workdir.RemoveTree(path); err != nil {
		return err
	}
	return errors.WithStack(os.Remove(path + transactionLock))
}
