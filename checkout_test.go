package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// --- layers that tests stack -----------------------------------------------------------------------------------------

// tarItem is an entry of a layer.
type tarItem struct {
	tar.Header
	body string
}

func tDir(name string, mode int64) tarItem {
	return tarItem{Header: tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode}}
}

func tFile(name, body string) tarItem {
	return tarItem{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, body: body}
}

func tSym(name, target string) tarItem {
	return tarItem{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}}
}

func tHard(name, target string) tarItem {
	return tarItem{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644}}
}

func tDevice(name string, kind byte) tarItem {
	return tarItem{Header: tar.Header{Typeflag: kind, Name: name, Mode: 0o600, Devmajor: 1, Devminor: 3}}
}

// tWh is the whiteout of what is at name; tOpaque that of all that lies in dir.
func tWh(name string) tarItem {
	return tFile(filepath.Join(filepath.Dir(name), whiteoutPrefix+filepath.Base(name)), "")
}

func tOpaque(dir string) tarItem { return tFile(filepath.Join(dir, whiteoutOpaque), "") }

func (i tarItem) mode(mode int64) tarItem { i.Mode = mode; return i }

func (i tarItem) own(uid, gid int) tarItem { i.Uid, i.Gid = uid, gid; return i }

// x adds an extended attribute.
func (i tarItem) x(name, value string) tarItem {
	records := map[string]string{"SCHILY.xattr." + name: value}
	for k, v := range i.PAXRecords {
		records[k] = v
	}
	i.PAXRecords = records
	return i
}

func stackTar(t testing.TB, items []tarItem) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, i := range items {
		h := i.Header
		h.Size = int64(len(i.body))
		h.Format = tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("%q: %v", h.Name, err)
		}
		if _, err := w.Write([]byte(i.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// stackImage is the image of these layers, which are compressed where zip is set.
func stackImage(t testing.TB, layers [][]tarItem, zip bool) *testImage {
	t.Helper()
	config := imgspecv1.Image{Platform: testPlatform, RootFS: imgspecv1.RootFS{Type: "layers", DiffIDs: []digest.Digest{}}}
	i := &testImage{}
	for _, items := range layers {
		blob, kind := stackTar(t, items), imgspecv1.MediaTypeImageLayer
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(blob))
		if zip {
			var b bytes.Buffer
			w := gzip.NewWriter(&b)
			if _, err := w.Write(blob); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			blob, kind = b.Bytes(), imgspecv1.MediaTypeImageLayerGzip
		}
		i.layers, i.types = append(i.layers, blob), append(i.types, kind)
	}
	i.config = marshal(t, config)
	return i.finish(t)
}

// writeLayout writes images into an OCI layout, under their names.
func writeLayout(t testing.TB, dir string, images map[string]*testImage) {
	t.Helper()
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(path string, b []byte) {
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	blob := func(b []byte) digest.Digest {
		d := digest.FromBytes(b)
		write(filepath.Join(blobs, d.Encoded()), b)
		return d
	}
	index := imgspecv1.Index{Versioned: imgspec.Versioned{SchemaVersion: 2}}
	for name, i := range images {
		for _, l := range i.layers {
			blob(l)
		}
		blob(i.config)
		index.Manifests = append(index.Manifests, imgspecv1.Descriptor{
			MediaType: imgspecv1.MediaTypeImageManifest, Digest: blob(i.manifest), Size: int64(len(i.manifest)),
			Annotations: map[string]string{imgspecv1.AnnotationRefName: name},
		})
	}
	write(filepath.Join(dir, "index.json"), marshal(t, index))
	write(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`))
}

// --- what a root file system is --------------------------------------------------------------------------------------

// fsNode is what a file is, as far as checkouts are compared.
type fsNode struct {
	kind   fs.FileMode // 0 for a regular file
	mode   uint32
	owner  string
	body   string // a link's target, a file's content, or its checksum where that is long
	xattrs string
	inode  uint64
	links  uint64

	verbatim string // the text, in a node that a test made up
}

func (n fsNode) String() string {
	if n.verbatim != "" {
		return n.verbatim
	}
	switch n.kind {
	case 0:
		return fmt.Sprintf("file %04o %s %q%s", n.mode, n.owner, n.body, n.xattrs)
	case fs.ModeDir:
		return fmt.Sprintf("dir %04o %s%s", n.mode, n.owner, n.xattrs)
	case fs.ModeSymlink:
		return fmt.Sprintf("link %s %q", n.owner, n.body)
	}
	return n.kind.String()
}

// brief leaves modes, owners and attributes out.
func (n fsNode) brief() string { return fmt.Sprintf("%s %q", n.kind, n.body) }

// rootTree returns what is below dir, "." for dir itself.
func rootTree(t testing.TB, dir string) map[string]fsNode {
	t.Helper()
	nodes := map[string]fsNode{}
	var visit func(path, name string)
	visit = func(path, name string) {
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			t.Errorf("%s: %v", path, err)
			return
		}
		n := fsNode{mode: st.Mode & 0o7777, owner: fmt.Sprintf("%d:%d", st.Uid, st.Gid), inode: st.Ino, links: uint64(st.Nlink)}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			if err != nil {
				t.Error(err)
			}
			if n.body = string(b); len(b) > 100 {
				n.body = fmt.Sprintf("%d bytes, %x", len(b), sha256.Sum256(b))
			}
		case unix.S_IFDIR:
			n.kind = fs.ModeDir
		case unix.S_IFLNK:
			n.kind = fs.ModeSymlink
			n.body, _ = os.Readlink(path)
		default:
			n.kind = fs.ModeDevice
		}
		if n.kind == 0 || n.kind == fs.ModeDir {
			n.xattrs = rootXattrs(t, path)
		}
		nodes[name] = n
		if n.kind != fs.ModeDir {
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
		if name != capability && !strings.HasPrefix(name, "user.") || name == "user.ostreemeta" {
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

// compareTrees holds got against want: what is there, what it is, and that what is one file in want is one in got.
func compareTrees(t testing.TB, what string, got, want map[string]fsNode, text func(fsNode) string) {
	t.Helper()
	for name, w := range want {
		if g, ok := got[name]; !ok {
			t.Errorf("%s: %q is missing; it should be %s", what, name, text(w))
		} else if text(g) != text(w) {
			t.Errorf("%s: %q\n got %s\nwant %s", what, name, text(g), text(w))
		}
	}
	for name, g := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s: %q is there and should not be: %s", what, name, text(g))
		}
	}
	first := map[uint64]string{}
	for name, w := range want {
		if w.kind == fs.ModeDir || w.links < 2 {
			continue
		}
		other, ok := first[w.inode]
		if !ok {
			first[w.inode] = name
			continue
		}
		if got[name].inode != got[other].inode {
			t.Errorf("%s: %q and %q should be one file", what, name, other)
		}
	}
}

// listed makes a tree of lines "NAME: NODE", as fsNode.String writes them; "= NAME" at the end names what is the same file.
func listed(t testing.TB, lines []string) map[string]string {
	t.Helper()
	nodes := map[string]string{}
	for _, l := range lines {
		name, node, ok := strings.Cut(l, ": ")
		if !ok {
			t.Fatalf("bad line %q", l)
		}
		nodes[name] = node
	}
	return nodes
}

func compareListed(t testing.TB, what string, got map[string]fsNode, lines []string) {
	t.Helper()
	want := listed(t, lines)
	for name, w := range want {
		if g, ok := got[name]; !ok {
			t.Errorf("%s: %q is missing; it should be %s", what, name, w)
		} else if same, ok := strings.CutPrefix(w, "= "); ok {
			if got[same].inode != g.inode {
				t.Errorf("%s: %q and %q should be one file", what, name, same)
			}
		} else if g.String() != w {
			t.Errorf("%s: %q\n got %s\nwant %s", what, name, g, w)
		}
	}
	for name, g := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s: %q is there and should not be: %s", what, name, g)
		}
	}
}

// umociTree is the root file system that umoci makes of an image of a layout.
func umociTree(t testing.TB, layout, name string) map[string]fsNode {
	t.Helper()
	bundle := filepath.Join(t.TempDir(), "bundle")
	tool(t, "umoci", "unpack", "--image", layout+":"+name, bundle)
	return rootTree(t, filepath.Join(bundle, "rootfs"))
}

// checkoutTo checks an image out.
func (r *testRun) checkoutTo(t testing.TB, name, dir string, o checkoutOptions) error {
	t.Helper()
	return r.checkoutContext(t.Context(), t, name, dir, o)
}

func (r *testRun) checkoutContext(ctx context.Context, t testing.TB, name, dir string, o checkoutOptions) error {
	t.Helper()
	ref, err := newReference(ostreeTransport{r.settings}, name, r.repo.path)
	if err != nil {
		t.Fatal(err)
	}
	return checkoutImage(ctx, ref, dir, testSys, o)
}

// onlyEntry holds that a directory holds these names and nothing else, such as a work directory that was left.
func onlyEntries(t testing.TB, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, e := range entries {
		have = append(have, e.Name())
	}
	slices.Sort(names)
	if !slices.Equal(have, names) {
		t.Errorf("%s holds %q, and should hold %q", dir, have, names)
	}
}

// pullCommits copies all refs of a repository into a new one of another mode.
func pullCommits(t testing.TB, from, mode string) string {
	t.Helper()
	repo := newRepo(t, mode)
	tool(t, "ostree", "pull-local", "--repo="+repo, from)
	return repo
}

// --- the stacks ------------------------------------------------------------------------------------------------------

// stackCase is a stack of layers, the lowest first. What it comes to is what umoci makes of it, or, where umoci fails or is wrong
// by the OCI image specification, the lines of want.
type stackCase struct {
	name   string
	layers [][]tarItem
	want   []string
	but    []string // lines that differ from what umoci makes
}

func stackOf(layers ...[]tarItem) [][]tarItem { return layers }

func layerOf(items ...tarItem) []tarItem { return items }

// netRaw is the capability cap_net_raw, effective and permitted.
const netRaw = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

func stackCases() []stackCase {
	base := layerOf(tDir("d", 0o755), tFile("d/a", "a"), tFile("d/b", "b"), tDir("d/sub", 0o750).own(3, 4), tFile("d/sub/c", "c"),
		tFile("top", "top"), tSym("s", "d"), tSym("abs", "/d/sub"), tSym("dangling", "made/later"))
	over := func(items ...tarItem) [][]tarItem { return stackOf(base, items) }
	cases := []stackCase{
		{name: "no layer", layers: stackOf()},
		{name: "one layer", layers: stackOf(base)},
		{name: "an empty layer", layers: stackOf(layerOf())},
		{name: "empty layers between", layers: stackOf(layerOf(), base, layerOf(), layerOf(tFile("n", "n")), layerOf())},
		{name: "the same layer twice", layers: stackOf(base, layerOf(tWh("d"), tFile("top", "new")), base)},
		{name: "the same whiteouts twice", layers: stackOf(base, layerOf(tWh("top")), layerOf(tFile("top", "2")), layerOf(tWh("top")))},
		{name: "one layer of whiteouts only", layers: stackOf(layerOf(tWh("x"), tOpaque("y"), tDir("z", 0o700), tWh("z/f"), tFile(".wh..wh.plnk", ""))),
			but: []string{"y: dir 0755 0:0"}}, // in the layer's tree it holds the whiteout; that nothing lies below is no reason to look
		{name: "whiteouts only above", layers: over(tWh("top"), tWh("d/a"), tWh("d/sub"))},
		{name: "whiteout of a file", layers: over(tDir("d", 0o755), tWh("d/a"))},
		{name: "whiteout of a directory", layers: over(tWh("d"))},
		{name: "whiteouts in the root", layers: over(tWh("d"), tWh("top"), tWh("s"), tWh("abs"), tWh("dangling"))},
		{name: "whiteout of what is not there", layers: over(tWh("nothing"), tWh("d/nothing"))},
		{name: "whiteout below a missing directory", layers: over(tWh("no/such/thing"), tOpaque("nor/this"))},
		{name: "whiteout below a file", layers: over(tWh("top/thing"))},
		{name: "whiteout of a symlink, not of what it leads to", layers: over(tWh("s"), tWh("abs"))},
		{name: "whiteout through a symlink", layers: over(tWh("s/a"), tWh("abs/c"))},
		{name: "whiteout of a hard link", layers: stackOf(layerOf(tFile("f", "f"), tHard("g", "f"), tHard("h", "f")), layerOf(tWh("f")))},
		{name: "opaque first", layers: over(tDir("d", 0o755), tOpaque("d"), tFile("d/new", "n"), tFile("d/b", "B"))},
		{name: "opaque last", layers: over(tDir("d", 0o755), tFile("d/new", "n"), tFile("d/b", "B"), tOpaque("d"))},
		{name: "opaque in the middle", layers: over(tFile("d/new", "n"), tOpaque("d"), tFile("d/b", "B"), tDir("d/sub", 0o711))},
		{name: "opaque in the root", layers: over(tFile("new", "n"), tOpaque(""), tFile("d/x", "x"))},
		{name: "opaque keeps what the layer put deeper", layers: over(tFile("d/sub/new/er", "n"), tOpaque("d"))},
		{name: "opaque through a symlink", layers: over(tOpaque("s"), tFile("s/n", "n"))},
		{name: "opaque of a subdirectory, then one above", layers: over(tOpaque("d/sub"), tFile("d/sub/n", "n"), tOpaque("d"))},
		{name: "whiteout and the same name again", layers: stackOf(
			layerOf(tFile("-", "1"), tFile("+", "1"), tFile("!", "1"), tFile("z", "1"), tDir("e", 0o700), tFile("e/old", "1")),
			layerOf(tFile("!", "2"), tFile("+", "2"), tFile("-", "2"), tWh("!"), tWh("+"), tWh("-"), tWh("e"), tWh("z"), tDir("e", 0o755), tFile("e/new", "2"), tFile("z", "2")))},
		{name: "whiteout after the same name again", layers: stackOf(
			layerOf(tFile("f", "1"), tDir("e", 0o700), tFile("e/old", "1"), tDir("e/deep", 0o700), tFile("e/deep/old", "1")),
			layerOf(tFile("f", "2"), tWh("f"), tDir("e", 0o755), tFile("e/deep/new", "2"), tWh("e")))},
		{name: "whiteout of a directory that the layer implies", layers: over(tFile("d/sub/new", "n"), tWh("d"))},
		{name: "file becomes directory", layers: over(tDir("top", 0o711), tFile("top/f", "f"))},
		{name: "file becomes an implied directory", layers: over(tFile("top/sub/f", "f")), want: []string{ // umoci stops: mkdir top: not a directory. The entry names a file in a directory: it is one
			".: dir 0755 0:0", "d: dir 0755 0:0", `d/a: file 0644 0:0 "a"`, `d/b: file 0644 0:0 "b"`, "d/sub: dir 0750 3:4", `d/sub/c: file 0644 0:0 "c"`,
			"top: dir 0755 0:0", "top/sub: dir 0755 0:0", `top/sub/f: file 0644 0:0 "f"`, `s: link 0:0 "d"`, `abs: link 0:0 "/d/sub"`, `dangling: link 0:0 "made/later"`,
		}},
		{name: "directory becomes file", layers: over(tFile("d", "d"))},
		{name: "file becomes symlink", layers: over(tSym("top", "d/a"))},
		{name: "symlink becomes file", layers: over(tFile("s", "f"), tFile("dangling", "g"))},
		{name: "directory becomes symlink", layers: over(tSym("d", "top"))},
		{name: "symlink to a directory becomes one", layers: over(tDir("s", 0o711), tFile("s/a", "mine"), tDir("abs", 0o700), tDir("dangling", 0o700))},
		{name: "there and back", layers: stackOf(base, layerOf(tFile("d", "d")), layerOf(tSym("d", "top")), layerOf(tDir("d", 0o700)), layerOf(tSym("d", "x")), layerOf(tFile("d", "d")))},
		{name: "symlink to another place", layers: stackOf(base, layerOf(tDir("e", 0o755), tSym("s", "e")), layerOf(tFile("s/f", "f")))},
		{name: "a path changes its meaning in the layer", layers: over(tFile("s/one", "1"), tDir("e", 0o755), tSym("s", "e"), tFile("e/two", "2")),
			but: []string{"d/one: -"}}, // the commit is of what the layer comes to by itself, where s/one is gone

		{name: "new mode and owner of a directory", layers: over(tDir("d", 0o2701).own(7, 8), tDir("d/sub", 0o1777))},
		{name: "attributes of a directory", layers: stackOf(
			layerOf(tDir("d", 0o755).x("user.a", "1").x("user.b", "2"), tDir("e", 0o755).x("user.a", "1"), tDir("f", 0o755).x("user.a", "1")),
			layerOf(tDir("d", 0o755).x("user.b", "3").x("user.c", "4"), tDir("e", 0o755), tFile("f/x", "x")))},
		{name: "attributes of a file", layers: stackOf(
			layerOf(tFile("f", "f").x("user.a", "1"), tFile("g", "g").x("user.a", "1"), tFile("h", "h")),
			layerOf(tFile("f", "f"), tFile("g", "g").x("user.b", "2"), tFile("h", "h").x("user.with space", "\x00\xff")))},
		{name: "implied and named directories", layers: stackOf(
			layerOf(tDir("named", 0o700).own(1, 2), tFile("implied/f", "f")),
			layerOf(tFile("named/f", "f"), tDir("implied", 0o711).own(3, 4)), layerOf(tFile("implied/g", "g"), tFile("named/g", "g")))},
		{name: "the root's own entry", layers: stackOf(base, layerOf(tDir(".", 0o711).own(5, 6).x("user.root", "r"), tFile("n", "n")))},
		{name: "the root's own entry below", layers: stackOf(layerOf(tDir(".", 0o1700).own(5, 6).x("user.root", "r")), layerOf(tFile("n", "n")))},
		{name: "the root's attributes go", layers: stackOf(layerOf(tDir(".", 0o700).own(5, 6).x("user.root", "r")), layerOf(tDir("/", 0o755)))},
		{name: "through a relative symlink", layers: over(tFile("s/n", "n"), tFile("s/sub/n", "n"), tFile("s/deep/er", "n"))},
		{name: "through an absolute symlink", layers: over(tFile("abs/n", "n"), tDir("abs/e", 0o700))},
		{name: "through a chain of symlinks", layers: stackOf(base, layerOf(tSym("c1", "c2"), tSym("c2", "./d/../c3/."), tSym("c3", "/s/sub")), layerOf(tFile("c1/n", "n"), tFile("c1/up/n", "n")))},
		{name: "through a dangling symlink", layers: over(tFile("dangling/n", "n"))},
		{name: "through a symlink above the root", layers: stackOf(base, layerOf(tSym("up", "../../../d"), tSym("d/up", "../../../../../d")), layerOf(tFile("up/n", "n"), tFile("d/up/m", "m")))},
		{name: "through a symlink to the root", layers: stackOf(base, layerOf(tSym("r", "/"), tSym("here", ".")), layerOf(tFile("r/n", "n"), tFile("here/m", "m"), tFile("r/here/r/d/o", "o")))},
		{name: "through what is missing and back", layers: stackOf(base, layerOf(tSym("m", "missing/../d")), layerOf(tFile("m/n", "n")))},
		{name: "through what is a file and back", layers: stackOf(base, layerOf(tSym("m", "top/../d")), layerOf(tFile("m/n", "n")))},
		{name: "hard links in a layer", layers: stackOf(base, layerOf(tFile("f", "f").mode(0o600).own(1, 1), tHard("g", "f"), tHard("d/h", "g"), tHard("./i", "./d/h")))},
		{name: "hard links in the first layer", layers: stackOf(layerOf(tFile("f", "f").mode(0o600).own(1, 1), tHard("g", "f"), tHard("e/h", "g"), tFile("empty", ""), tHard("empty2", "empty")))},
		{name: "hard links to files below", layers: over(tHard("h", "d/a"), tHard("d/sub/h", "top"), tHard("i", "s/b"), tHard("j", "abs/c"))},
		{name: "hard link to what the layer replaced", layers: over(tFile("d/a", "A"), tHard("h", "d/a"), tHard("i", "s/a"))},
		{name: "hard link, then its target is replaced", layers: stackOf(layerOf(tFile("f", "f"), tHard("g", "f"), tHard("h", "f")), layerOf(tFile("f", "new").mode(0o4711).own(4, 4)), layerOf(tHard("h", "f")))},
		{name: "hard link over other things", layers: over(tHard("top", "d/a"), tHard("s", "d/a"), tHard("d/sub", "d/a"))},
		{name: "hard link to a symlink", layers: stackOf(base, layerOf(tSym("l", "d/a"), tHard("m", "l"), tHard("n", "m")))},
		{name: "hard link to a symlink in the first layer", layers: stackOf(layerOf(tSym("l", "d/a"), tHard("m", "l"), tHard("n", "m")), layerOf(tFile("l", "f")))},
		{name: "hard link to a symlink below", layers: over(tHard("t", "s"), tHard("u", "dangling"))},
		{name: "hard links of empty files", layers: stackOf(base, layerOf(tFile("e", ""), tHard("f", "e"), tHard("g", "e")))},
		{name: "hard links of links to files below", layers: over(tHard("x", "top"), tHard("a", "x"), tHard("z", "x"))},
		{name: "hard link to a file below, then a file", layers: over(tHard("x", "top"), tFile("x", "x"))},
		{name: "hard link to a file below, through a symlink of the layer", layers: over(tSym("l", "d"), tHard("l/x", "top"))},
		{name: "hard link to itself", layers: over(tFile("n", "n"), tHard("n", "n")), want: []string{ // umoci removes n and fails. Nothing changes where a name becomes its own
			".: dir 0755 0:0", "d: dir 0755 0:0", `d/a: file 0644 0:0 "a"`, `d/b: file 0644 0:0 "b"`, "d/sub: dir 0750 3:4", `d/sub/c: file 0644 0:0 "c"`,
			`top: file 0644 0:0 "top"`, `n: file 0644 0:0 "n"`, `s: link 0:0 "d"`, `abs: link 0:0 "/d/sub"`, `dangling: link 0:0 "made/later"`,
		}},
		{name: "setuid, setgid, sticky", layers: stackOf(
			layerOf(tFile("u", "u").mode(0o4755).own(1, 2), tFile("g", "g").mode(0o2755).own(1, 2), tDir("d", 0o2775).own(1, 2), tDir("d/t", 0o1777).own(1, 2)),
			layerOf(tFile("u2", "u").mode(0o6711).own(1, 2), tFile("d/new/f", "f"), tDir("d/e", 0o755), tFile("u", "less").mode(0o755), tHard("g3", "g"))),
			but: []string{"d/new: dir 0755 0:0"}}, // umoci's mkdir inherits from d, which is setgid, what no layer says
		{name: "capabilities", layers: stackOf(
			layerOf(tFile("ping", "p").mode(0o755).x(capability, netRaw), tFile("pong", "p").mode(0o755).x(capability, netRaw)),
			layerOf(tFile("new", "p").mode(0o755).own(9, 9).x(capability, netRaw), tFile("pong", "p").mode(0o755), tHard("ping2", "new")))},
		{name: "modes that keep others out", layers: stackOf(
			layerOf(tDir("none", 0), tFile("none/f", "f").mode(0), tDir("none/sub", 0o555), tFile("none/sub/g", "g"), tDir("ro", 0o555), tFile("ro/f", "f").mode(0o400)),
			layerOf(tFile("none/new", "n").mode(0), tWh("none/sub/g"), tDir("ro", 0o500), tFile("ro/n", "n"), tDir("none2", 0), tDir("none2/in", 0o111), tFile("none2/in/f", "f")))},
		{name: "long names", layers: stackOf(
			layerOf(tFile(strings.Repeat("n", 255), "n"), tDir(strings.Repeat("d", 255), 0o700), tFile(strings.Repeat(strings.Repeat("e", 200)+"/", 12)+"f", "f"), tSym("l", strings.Repeat("t/", 2000))),
			layerOf(tWh(strings.Repeat("w", 200)), tFile(strings.Repeat("d", 255)+"/"+strings.Repeat("f", 255), "f"), tWh(strings.Repeat(strings.Repeat("e", 200)+"/", 12)+"f"), tHard("h", strings.Repeat("n", 255))))},
		{name: "names of many kinds", layers: stackOf(
			layerOf(tDir("größe", 0o700), tFile("größe/Ω", "1"), tFile("new\nline", "1"), tFile("tab\t", "1"), tFile("-rf", "1"), tFile("...", "1"), tFile("quote'\"", "1"), tFile("e\u0301", "1"), tFile(" ", "1"), tFile("\x01\x7f", "1")),
			layerOf(tWh("new\nline"), tWh("größe/Ω"), tFile("größe/\u00e9", "2"), tFile("größe/e\u0301", "3"), tWh("-rf"), tWh("..."), tWh(" "), tFile("back\\slash", "2"), tDir("new\nline2", 0o700), tFile("new\nline2/\n", "2"), tSym("größe/😀", "../new\nline2"), tFile("größe/😀/x", "x")))},
		{name: "a path twice", layers: over(tFile("f", "1"), tFile("f", "2").mode(0o600), tDir("e", 0o700), tDir("e", 0o711).own(1, 1), tFile("top", "1"), tFile("top", "2"))},
		{name: "a path twice in the first layer", layers: stackOf(layerOf(tFile("f", "1"), tHard("g", "f"), tFile("f", "2"), tSym("l", "1"), tSym("l", "2"), tDir("./", 0o700), tDir("./", 0o711)))},
		{name: "directory becomes file in one layer", layers: stackOf(layerOf(tDir("e", 0o755), tFile("e/f", "f"), tFile("e", "file")), layerOf(tDir("e", 0o700), tFile("e/g", "g"), tSym("e", "x")))},
		{name: "file becomes directory in one layer", layers: stackOf(layerOf(tFile("e", "file"), tDir("e", 0o755), tFile("e/f", "f")), layerOf(tFile("e", "g"), tDir("e", 0o711), tFile("e/h", "h")))},
		{name: "through an absolute symlink of the same layer", layers: stackOf(
			layerOf(tDir("d", 0o755), tSym("run", "/var/run"), tFile("run/pid", "1")),
			layerOf(tSym("lib", "/d"), tFile("lib/so", "so"), tFile("run/pid2", "2")))},
		{name: "through two symlinks, one of the same layer", layers: stackOf(layerOf(tDir("real", 0o700), tSym("low", "real")), layerOf(tSym("up", "low"), tFile("up/f", "f")))},
		{name: "device in the place of a file", layers: over(tDevice("top", tar.TypeChar), tDevice("d", tar.TypeBlock), tDevice("s", tar.TypeFifo), tDevice("new/dev", tar.TypeChar))},
		{name: "file in the place of a device", layers: stackOf(layerOf(tDevice("n", tar.TypeChar), tFile("o", "o"), tDevice("dev/fifo", tar.TypeFifo)), layerOf(tDevice("o", tar.TypeChar), tFile("o", "O"), tFile("n", "n")))},
		{name: "a whiteout is a directory", layers: over(tDir(".wh.top", 0o755))},
		{name: "plnk and other marks of aufs", layers: over(tFile(".wh..wh.plnk", ""), tFile(".wh..wh.aufs", ""), tFile("d/.wh..wh.orph", ""))},
		{name: "absolute and untidy names", layers: stackOf(layerOf(tFile("/a", "a"), tFile("./b//c", "c"), tDir("/e/.", 0o700)), layerOf(tWh("/a"), tFile("//e/./f", "f")))},
		{name: "whiteout, then a hard link to it", layers: stackOf(layerOf(tFile("f", "1")), layerOf(tFile("f", "2"), tWh("f"), tHard("g", "f")))},
		{name: "same content in many places", layers: stackOf(layerOf(tFile("a", "same"), tFile("b", "same")), layerOf(tFile("a", "same"), tFile("c", "same")), layerOf(tFile("b", "other")))},
	}
	sixty := stackOf()
	for i := range 60 {
		sixty = append(sixty, layerOf(tFile("last", fmt.Sprint(i)), tFile(fmt.Sprint("f", i%7), fmt.Sprint(i)), tDir("d", int64(0o700+i)), tWh(fmt.Sprint("f", (i+3)%7))))
	}
	cases = append(cases, stackCase{name: "sixty layers", layers: sixty})
	// More directories than are kept open, and hard links between them.
	var many, more []tarItem
	for i := range 600 {
		many = append(many, tDir(fmt.Sprint("d", i), 0o755), tFile(fmt.Sprintf("d%d/f", i), fmt.Sprint(i)))
		more = append(more, tHard(fmt.Sprintf("d%d/l", i), fmt.Sprintf("d%d/f", (i+300)%600)), tFile(fmt.Sprintf("d%d/s/n", i), fmt.Sprint("n", i)), tHard(fmt.Sprintf("d%d/s/m", i), fmt.Sprintf("d%d/s/n", i/2)))
	}
	cases = append(cases, stackCase{name: "many directories", layers: stackOf(many, more)})
	deep := strings.Repeat("d/", 500)
	cases = append(cases, stackCase{name: "deep directories", layers: stackOf(layerOf(tFile(deep+"f", "f")), layerOf(tFile(deep+"d/g", "g"), tHard("h", deep+"f")), layerOf(tWh(strings.Repeat("d/", 250)+"d")))})
	return cases
}

// TestCheckoutStacks holds the checkout against umoci's.
func TestCheckoutStacks(t *testing.T) {
	needRoot(t)
	needTools(t, "umoci")
	cases := stackCases()
	images := map[string]*testImage{}
	bare := newTestRun(t, testOptions{mode: modeBare})
	layout := filepath.Join(t.TempDir(), "layout")
	for i := range cases {
		images[cases[i].tag(i)] = stackImage(t, cases[i].layers, i%2 == 1)
	}
	writeLayout(t, layout, images)
	t.Run("import", func(t *testing.T) {
		for i, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				if err := bare.importImage(t, c.tag(i), images[c.tag(i)]); err != nil {
					t.Fatal(err)
				}
			})
		}
	})
	runs := map[string]*testRun{modeBare: bare}
	for _, mode := range []string{modeBareUser, modeArchive} {
		runs[mode] = newTestRun(t, testOptions{repo: pullCommits(t, bare.repo.path, mode)})
	}
	t.Run("checkout", func(t *testing.T) {
		for i, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				var want map[string]fsNode
				if c.want == nil {
					want = umociTree(t, layout, c.tag(i))
					dropDevices(want)
					for name, line := range listed(t, c.but) {
						if want[name] = (fsNode{verbatim: line}); line == "-" {
							delete(want, name)
						}
					}
				}
				for _, mode := range []string{modeBare, modeBareUser, modeArchive} {
					dir := filepath.Join(t.TempDir(), "root")
					if err := runs[mode].checkoutTo(t, c.tag(i), dir, checkoutOptions{}); err != nil {
						t.Errorf("%s: %v", mode, err)
						continue
					}
					onlyEntries(t, filepath.Dir(dir), "root")
					if c.want != nil {
						compareListed(t, mode, rootTree(t, dir), c.want)
					} else {
						compareTrees(t, mode, rootTree(t, dir), want, fsNode.String)
					}
				}
			})
		}
	})
	for _, mode := range []string{modeBare, modeBareUser, modeArchive} {
		fsck(t, runs[mode].repo.path)
	}
}

func (c stackCase) tag(i int) string { return fmt.Sprintf("case-%d", i) }

// dropDevices leaves devices out.
func dropDevices(nodes map[string]fsNode) {
	for name, n := range nodes {
		if n.kind == fs.ModeDevice {
			delete(nodes, name)
		}
	}
}
