package testutil

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Node is what a file is, as far as checkouts are compared.
type Node struct {
	Kind   fs.FileMode // 0 for a regular file
	Perm   uint32
	Owner  string
	Body   string // a link's target, a file's content, or its checksum where that is long
	Xattrs string
	Inode  uint64
	Links  uint64
	Time   time.Time

	Verbatim string // the text, in a node that a test made up
}

func (n Node) String() string {
	if n.Verbatim != "" {
		return n.Verbatim
	}
	switch n.Kind {
	case 0:
		return fmt.Sprintf("file %04o %s %q%s", n.Perm, n.Owner, n.Body, n.Xattrs)
	case fs.ModeDir:
		return fmt.Sprintf("dir %04o %s%s", n.Perm, n.Owner, n.Xattrs)
	case fs.ModeSymlink:
		return fmt.Sprintf("link %s %q", n.Owner, n.Body)
	}
	return n.Kind.String()
}

// Brief leaves modes, owners and attributes out.
func (n Node) Brief() string { return fmt.Sprintf("%s %q", n.Kind, n.Body) }

// TreeOf returns what is below dir, "." for dir itself.
func TreeOf(t testing.TB, dir string) map[string]Node {
	t.Helper()
	nodes := map[string]Node{}
	var visit func(path, name string)
	visit = func(path, name string) {
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			t.Errorf("%s: %v", path, err)
			return
		}
		n := Node{Perm: st.Mode & 0o7777, Owner: fmt.Sprintf("%d:%d", st.Uid, st.Gid), Inode: st.Ino, Links: uint64(st.Nlink), Time: time.Unix(st.Mtim.Unix())} //nolint:unconvert // smaller on some machines
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			if err != nil {
				t.Error(err)
			}
			if n.Body = string(b); len(b) > 100 {
				n.Body = fmt.Sprintf("%d bytes, %x", len(b), sha256.Sum256(b))
			}
		case unix.S_IFDIR:
			n.Kind = fs.ModeDir
		case unix.S_IFLNK:
			n.Kind = fs.ModeSymlink
			n.Body, _ = os.Readlink(path)
		default:
			n.Kind = fs.ModeDevice
		}
		if n.Kind == 0 || n.Kind == fs.ModeDir {
			n.Xattrs = rootXattrs(t, path)
		}
		nodes[name] = n
		if n.Kind != fs.ModeDir {
			return
		}
		entries, err := os.ReadDir(path)
		if err != nil {
			t.Error(err)
		}
		for _, e := range entries {
			visit(path+"/"+e.Name(), filepath.Join(name, e.Name()))
		}
	}
	visit(dir, ".")
	return nodes
}

// rootXattrs are the attributes that layers keep, in their order.
func rootXattrs(t testing.TB, path string) string {
	t.Helper()
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		t.Errorf("%s: %v", path, err)
		return ""
	}
	var texts []string
	for name := range strings.SplitSeq(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		if name != "security.capability" && !strings.HasPrefix(name, "user.") || name == "user.ostreemeta" {
			continue
		}
		value := make([]byte, 4096)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		texts = append(texts, fmt.Sprintf(" %s=%q", name, value[:n]))
	}
	slices.Sort(texts)
	return strings.Join(texts, "")
}
