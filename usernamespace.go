package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"github.com/pkg/errors"

	"ostree-image/internal/proc"
	"ostree-image/internal/ui"
)

// userNamespace knows the users and groups that there are in the namespace in which this process is
// root (user_namespaces(7)). No file can be given to others there. A nil one has all.
type userNamespace struct {
	users, groups []idRange
	instead       string // what to do for such a file
}

type idRange struct{ first, count uint64 }

// allIDs is what the line of a process has that is in no namespace of its own.
const allIDs = 1<<32 - 1

// limitedNamespace returns the namespace of this process, where it is root and has not all users.
func limitedNamespace(instead string) *userNamespace {
	if os.Geteuid() != 0 {
		return nil
	}
	users, groups := readIDs("/proc/self/uid_map"), readIDs("/proc/self/gid_map")
	if users == nil && groups == nil {
		return nil
	}
	return &userNamespace{users, groups, instead}
}

// readIDs reads a map of ids: lines of the first id within, the first outside, and how many. nil is
// for all, and for what cannot be read.
func readIDs(path string) (ranges []idRange) {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var r idRange
		var outside uint64
		_, err := fmt.Sscan(lines.Text(), &r.first, &outside, &r.count)
		if err != nil || r.first == 0 && r.count >= allIDs {
			return nil
		}
		ranges = append(ranges, r)
	}
	return ranges
}

func hasID(ranges []idRange, id uint32) bool {
	for _, r := range ranges {
		if uint64(id) >= r.first && uint64(id)-r.first < r.count {
			return true
		}
	}
	return ranges == nil
}

// foreignOwnerError says that a file belongs to somebody who is not in the namespace.
type foreignOwnerError struct{ text string }

func (e *foreignOwnerError) Error() string { return e.text }

// check refuses a file that cannot be given to its owner.
func (n *userNamespace) check(name string, uid, gid uint32) error {
	if n == nil || hasID(n.users, uid) && hasID(n.groups, gid) {
		return nil
	}
	return &foreignOwnerError{fmt.Sprintf(
		"%s belongs to %d:%d, and this user namespace has no such owner (see /proc/self/uid_map); %s",
		ui.Quoted(name), uid, gid, n.instead)}
}

// explain says what may be the reason that a tool could not give a file to its owner.
func (n *userNamespace) explain(err error) error {
	var terr *proc.ToolError
	if n == nil || !errors.As(err, &terr) || !strings.Contains(terr.Stderr, "Invalid argument") {
		return err
	}
	return errors.WithMessagef(
		err,
		"a file in the repository belongs to somebody whom this user namespace does not have "+
			"(see /proc/self/uid_map); %s",
		n.instead,
	)
}
