package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/pkg/errors"
	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"
	"golang.org/x/sys/unix"

	"ostree-image/internal/imageref"
	"ostree-image/internal/normalize"
	"ostree-image/internal/ostree"
	"ostree-image/internal/rootfs"
	"ostree-image/internal/testutil"
	"ostree-image/internal/workdir"
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
	return tFile(filepath.Join(filepath.Dir(name), normalize.WhiteoutPrefix+filepath.Base(name)), "")
}

func tOpaque(dir string) tarItem { return tFile(filepath.Join(dir, normalize.WhiteoutOpaque), "") }

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
	for n, i := range items {
		h := i.Header
		if h.ModTime.IsZero() { // one of its own, so that none is taken for another
			h.ModTime = time.Unix(1e9+int64(n), int64(len(h.Name)*1000+n))
		}
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
	return i.Finish(t)
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

// compareTrees holds got against want: what is there, what it is, and that what is one file in want
// is one in got.
func compareTrees(t testing.TB, what string, got, want map[string]testutil.Node, text func(testutil.Node) string) {
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
		if w.Kind == fs.ModeDir || w.Links < 2 {
			continue
		}
		other, ok := first[w.Inode]
		if !ok {
			first[w.Inode] = name
			continue
		}
		if got[name].Inode != got[other].Inode {
			t.Errorf("%s: %q and %q should be one file", what, name, other)
		}
	}
}

// compareCopies holds a checkout by copies against what umoci has unpacked since began: beside what
// compareTrees does, that no two names are one file which are two in want, and the times.
func compareCopies(t testing.TB, what string, got, want map[string]testutil.Node, began time.Time, text func(testutil.Node) string) {
	t.Helper()
	compareTrees(t, what, got, want, text)
	for name, w := range want {
		g, ok := got[name]
		if !ok || w.Verbatim != "" {
			continue
		}
		if w.Kind != fs.ModeDir && g.Links != w.Links {
			t.Errorf("%s: %q has %d names, and should have %d", what, name, g.Links, w.Links)
		}
		// umoci forgets the time of a directory in which it makes another that no layer names, or
		// removes what a whiteout two levels above names.
		if w.Kind == fs.ModeDir && !w.Time.Before(began) {
			continue
		}
		if !g.Time.Equal(w.Time) {
			t.Errorf("%s: %q is of %s, and should be of %s", what, name, g.Time, w.Time)
		}
	}
}

// listed makes a tree of lines "NAME: NODE", as fsNode.String writes them; "= NAME" at the end
// names what is the same file.
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

func compareListed(t testing.TB, what string, got map[string]testutil.Node, lines []string) {
	t.Helper()
	want := listed(t, lines)
	for name, w := range want {
		if g, ok := got[name]; !ok {
			t.Errorf("%s: %q is missing; it should be %s", what, name, w)
		} else if same, ok := strings.CutPrefix(w, "= "); ok {
			if got[same].Inode != g.Inode {
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
func umociTree(t testing.TB, layout, name string) map[string]testutil.Node {
	t.Helper()
	bundle := filepath.Join(t.TempDir(), "bundle")
	testutil.Run(t, "umoci", "unpack", "--image", layout+":"+name, bundle)
	return testutil.TreeOf(t, filepath.Join(bundle, "rootfs"))
}

// checkoutTo checks an image out.
func (r *testRun) checkoutTo(t testing.TB, name, dir string, o ostree.CheckoutOptions) error {
	t.Helper()
	return r.checkoutContext(t.Context(), t, name, dir, o)
}

func (r *testRun) checkoutContext(ctx context.Context, t testing.TB, name, dir string, o ostree.CheckoutOptions) error {
	t.Helper()
	ref, err := newReference(ostreeTransport{r.settings}, name, r.repo.path)
	if err != nil {
		t.Fatal(err)
	}
	return checkoutImage(ctx, ref, dir, testSys, o)
}

// pullCommits copies all refs of a repository into a new one of another mode.
func pullCommits(t testing.TB, from, mode string) string {
	t.Helper()
	repo := newRepo(t, mode)
	testutil.Run(t, "ostree", "pull-local", "--repo="+repo, from)
	return repo
}

// --- the stacks ------------------------------------------------------------------------------------------------------

// stackCase is a stack of layers, the lowest first. What it comes to is what umoci makes of it, or,
// where umoci fails or is wrong by the OCI image specification, the lines of want.
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
		{name: "one layer of whiteouts only", layers: stackOf(layerOf(tWh("x"), tOpaque("y"), tDir("z", 0o700), tWh("z/f"), tFile(".wh..wh.plnk", "")))},
		{name: "whiteouts that are something else", layers: stackOf(
			append(base[:len(base):len(base)], tDir("x/.wh.y", 0o700), tFile("x/.wh.y/f", "f"), tDir(".wh.z", 0o700).x("user.a", "1"), tFile("p/q/.wh.r", ""), tDevice("p/.wh.s/n", tar.TypeFifo)),
			layerOf(tDir(".wh.top", 0o700).own(1, 2), tFile(".wh.top/f", "below"), tSym("d/.wh.a", "b"), tFile("d/.wh.b", "not empty"), tHard("d/sub/.wh.c", "d/.wh.b"),
				tFile(".wh..wh.plnk/1.2", "x"), tDir("d/sub/.wh..wh..opq", 0o755), tFile("d/sub/.wh..wh..opq/deep/f", "f"), tDevice(".wh.s", tar.TypeChar)))},
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
		{name: "a path changes its meaning in the layer", layers: over(tFile("s/one", "1"), tDir("e", 0o755), tSym("s", "e"), tFile("e/two", "2"))},
		{name: "a link that is named again", layers: stackOf(layerOf(tDir("usr", 0o755), tDir("usr/lib", 0o750)), layerOf(
			tSym("lib", "usr/lib"), tFile("lib/one", "1"), tSym("lib", "usr/lib"), tFile("lib/two", "2"), tSym("l", "usr/lib"), tFile("l/three", "3"), tFile("l", "file"),
			tSym("m", "usr"), tFile("m/lib/four", "4"), tDir("m", 0o700), tFile("m/five", "5"), tSym("n", "m"), tFile("n/six", "6"), tSym("n", "usr"), tFile("n/seven", "7"),
			tSym("o", "usr/lib"), tFile("o/eight", "8").mode(0o4750).own(5, 6).x("user.a", "a"), tWh("o"), tSym("o", "/usr"), tFile("o/nine", "9"), tHard("o/ten", "lib/one")))},
		{name: "what the layer replaces, through a link below", layers: over(
			tFile("s/one", "1").mode(0o6711).own(5, 6).x("user.a", "a"), tDir("s/dir", 0o2700).own(7, 8), tSym("s/link", "one").own(9, 9), tHard("s/hard", "s/one"),
			tSym("s/l2", "/e"), tFile("s/l2/f", "f"), tDevice("s/a", tar.TypeChar), tDir("e", 0o755), tSym("s", "e"), tHard("s/again", "d/one"))},

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
		{
			name: "setuid, setgid, sticky", layers: stackOf(
				layerOf(tFile("u", "u").mode(0o4755).own(1, 2), tFile("g", "g").mode(0o2755).own(1, 2), tDir("d", 0o2775).own(1, 2), tDir("d/t", 0o1777).own(1, 2)),
				layerOf(tFile("u2", "u").mode(0o6711).own(1, 2), tFile("d/new/f", "f"), tDir("d/e", 0o755), tFile("u", "less").mode(0o755), tHard("g3", "g"))),
			but: []string{"d/new: dir 0755 0:0"},
		}, // umoci's mkdir inherits from d, which is setgid, what no layer says
		{name: "capabilities", layers: stackOf(
			layerOf(tFile("ping", "p").mode(0o755).x(rootfs.Capability, netRaw), tFile("pong", "p").mode(0o755).x(rootfs.Capability, netRaw)),
			layerOf(tFile("new", "p").mode(0o755).own(9, 9).x(rootfs.Capability, netRaw), tFile("pong", "p").mode(0o755), tHard("ping2", "new")))},
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
	for n := range 60 {
		i := n % 13 // the same layers again and again, for imports take their time
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
	testutil.NeedRoot(t)
	testutil.NeedTools(t, "umoci")
	cases := stackCases()
	images := map[string]*testImage{}
	bare := newTestRun(t, testOptions{mode: ostree.Bare})
	bare.divideFrom = divideFrom                                  // the other modes divide every layer
	only := newTestRun(t, testOptions{mode: ostree.BareUserOnly}) // for some, with --user-mode
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
				if i%6 != 2 {
					return
				}
				if err := only.importImage(t, c.tag(i), images[c.tag(i)]); err != nil {
					t.Fatal(err)
				}
			})
		}
	})
	runs := map[string]*testRun{ostree.Bare: bare}
	for _, mode := range []string{ostree.BareUser, ostree.Archive} {
		runs[mode] = newTestRun(t, testOptions{repo: pullCommits(t, bare.repo.path, mode)})
	}
	t.Run("checkout", func(t *testing.T) {
		began := time.Now()
		for i, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				var want map[string]testutil.Node
				if c.want == nil {
					want = umociTree(t, layout, c.tag(i))
					dropDevices(want)
					for name, line := range listed(t, c.but) {
						if want[name] = (testutil.Node{Verbatim: line}); line == "-" {
							delete(want, name)
						}
					}
				}
				for _, mode := range []string{ostree.Bare, []string{ostree.BareUser, ostree.Archive}[i%2]} { // those two both copy
					dir := filepath.Join(t.TempDir(), "root")
					if err := runs[mode].checkoutTo(t, c.tag(i), dir, ostree.CheckoutOptions{}); err != nil {
						t.Errorf("%s: %v", mode, err)
						continue
					}
					testutil.OnlyEntries(t, filepath.Dir(dir), "root")
					if c.want != nil {
						compareListed(t, mode, testutil.TreeOf(t, dir), c.want)
					} else {
						compareCopies(t, mode, testutil.TreeOf(t, dir), want, began, testutil.Node.String)
					}
				}
				if i%6 == 2 && c.want == nil && c.but == nil {
					dir := filepath.Join(t.TempDir(), "root")
					if err := only.checkoutTo(t, c.tag(i), dir, ostree.CheckoutOptions{UserMode: true}); err != nil {
						t.Fatal(err)
					}
					compareTrees(t, ostree.BareUserOnly, testutil.TreeOf(t, dir), want, testutil.Node.Brief)
				}
			})
		}
	})
	for _, mode := range []string{ostree.Bare, ostree.BareUser, ostree.Archive} {
		fsck(t, runs[mode].repo.path)
	}
}

func (c stackCase) tag(i int) string { return fmt.Sprintf("case-%d", i) }

// dropDevices leaves devices out.
func dropDevices(nodes map[string]testutil.Node) {
	for name, n := range nodes {
		if n.Kind == fs.ModeDevice {
			delete(nodes, name)
		}
	}
}

// --- hostile stacks --------------------------------------------------------------------------------------------------

// hostileCase is a stack that aims at files outside. fails is a part of the error, "" where the
// checkout succeeds; has is what is within the root then.
type hostileCase struct {
	name   string
	layers [][]tarItem
	fails  string
	has    []string
}

// hostileCases aim at the directory victim, and at one of that name beside the checkout and in each
// directory above.
func hostileCases(victim string) []hostileCase {
	inside := strings.TrimPrefix(victim, "/")
	up := func(n int) string { return strings.Repeat("../", n) + "victim" }
	cases := []hostileCase{
		{name: "file through an absolute link", layers: stackOf(layerOf(tSym("e", victim)), layerOf(tFile("e/new", "x"), tFile("e/file", "x"))), has: []string{inside + "/new"}},
		{name: "directory through an absolute link", layers: stackOf(layerOf(tSym("e", victim)), layerOf(tDir("e/sub", 0o700).own(7, 7), tDir("e/n", 0o777))), has: []string{inside + "/sub"}},
		{name: "directory over an absolute link", layers: stackOf(layerOf(tSym("e", victim)), layerOf(tDir("e", 0o700).own(7, 7), tFile("e/f", "x"))), has: []string{"e/f"}},
		{name: "link deep below", layers: stackOf(layerOf(tSym("a/b/c/e", victim)), layerOf(tFile("a/b/c/e/sub/new", "x"))), has: []string{inside + "/sub/new"}},
		{name: "link in the same layer", layers: stackOf(layerOf(tFile("x", "")), layerOf(tSym("e", victim), tFile("e/new", "x"))), has: []string{inside + "/new"}},
		{name: "link in the first layer, which is odd", layers: stackOf(layerOf(tSym("e", victim), tFile("e/new", "x"), tWh("e/file"), tOpaque("e/sub"))), has: []string{inside + "/new"}},
		{name: "directory, then a link in its place", layers: stackOf(layerOf(tDir("e", 0o755), tFile("e/f", "")), layerOf(tSym("e", victim), tFile("e/new", "x"), tWh("e/file"))), has: []string{inside + "/new"}},
		{name: "directory, then a link in the next layer", layers: stackOf(layerOf(tDir("e", 0o755)), layerOf(tSym("e", victim)), layerOf(tFile("e/new", "x"), tDir("e/sub", 0o700))), has: []string{inside + "/new"}},
		{name: "link, directory, link", layers: stackOf(layerOf(tSym("e", victim)), layerOf(tDir("e", 0o755)), layerOf(tSym("e", up(3))), layerOf(tFile("e/new", "x"))), has: []string{"victim/new"}},
		{name: "link to a file", layers: stackOf(layerOf(tSym("e", victim+"/file")), layerOf(tFile("e", "x").mode(0o4777))), has: []string{"e"}},
		{name: "file below a link to a file", layers: stackOf(layerOf(tSym("e", victim+"/file")), layerOf(tFile("e/new", "x"))), has: []string{inside + "/file/new"}},
		{name: "dangling link", layers: stackOf(layerOf(tSym("e", victim+"/made")), layerOf(tFile("e/new", "x"), tFile("e/deep/er", "x"))), has: []string{inside + "/made/new"}},
		{name: "chain of links", layers: stackOf(layerOf(tSym("a", "b/../c"), tSym("b", "/"), tSym("c", "d/e"), tSym("d", "../.."), tSym("e", victim)), layerOf(tFile("a/new", "x"))), has: []string{inside + "/new"}},
		{name: "loop of links", layers: stackOf(layerOf(tSym("a", "b"), tSym("b", "a")), layerOf(tFile("a/new", "x"))), fails: "more than 40 symbolic links"},
		{name: "link to itself", layers: stackOf(layerOf(tSym("a", "a/../a")), layerOf(tWh("a/f"))), fails: "more than 40 symbolic links"},
		{name: "link that doubles", layers: stackOf(layerOf(tSym("a", "b/b"), tSym("b", "c/c"), tSym("c", "d/../d"), tSym("d", "."), tSym("d2", strings.Repeat("a/", 1000))), layerOf(tFile("a/f", "x"), tFile("d2/f", "x"))), fails: "more than 40 symbolic links"},
		{name: "whiteout of a link", layers: stackOf(layerOf(tSym("e", victim)), layerOf(tWh("e"), tFile("e/new", "x"))), has: []string{"e/new"}},
		{name: "whiteouts through a link", layers: stackOf(layerOf(tSym("e", victim)), layerOf(tWh("e/file"), tWh("e/sub"), tOpaque("e"), tOpaque("e/sub")))},
		{name: "opaque in a directory that became a link", layers: stackOf(layerOf(tDir("e", 0o755), tFile("e/f", "")), layerOf(tSym("e", victim)), layerOf(tOpaque("e"), tDir("e", 0o755))), has: []string{"e"}},
		{name: "whiteout of the directory above", layers: stackOf(layerOf(tFile("f", "")), layerOf(tFile(".wh...", ""))), has: []string{"f"}},
		{name: "whiteout of the directory above, deep", layers: stackOf(layerOf(tFile("a/b/f", "")), layerOf(tFile("a/b/.wh...", ""))), has: []string{"a/b/f"}},
		{name: "whiteout of the directory itself", layers: stackOf(layerOf(tFile("f", "")), layerOf(tFile(".wh..", ""))), has: []string{"f"}},
		{name: "whiteout of nothing", layers: stackOf(layerOf(tFile("f", "")), layerOf(tFile(".wh.", ""))), has: []string{"f"}},
		{name: "odd whiteouts in the first layer", layers: stackOf(layerOf(tFile("f", ""), tFile(".wh...", ""), tFile(".wh..", ""), tFile(".wh.", ""), tFile("a/.wh...", ""))), has: []string{"f"}},
		{name: "whiteout that is a link", layers: stackOf(layerOf(tFile("e/f", "")), layerOf(tSym(".wh.e", victim)), layerOf(tSym(".wh..wh..opq", victim))), has: []string{"."}},
		{name: "hard link through a link", layers: stackOf(layerOf(tSym("e", victim)), layerOf(tHard("h", "e/file"), tHard("e/h", "e/file"))), has: []string{"h"}},
		{name: "hard link to a link, then written", layers: stackOf(layerOf(tSym("e", victim+"/file")), layerOf(tHard("h", "e")), layerOf(tFile("h", "x"), tFile("e", "x"))), has: []string{"h", "e"}},
		{name: "hard link to an absolute path", layers: stackOf(layerOf(tFile("f", "")), layerOf(tHard("h", victim+"/file"))), has: []string{"h"}},
		{name: "hard link to /etc/passwd", layers: stackOf(layerOf(tHard("h", "/etc/passwd"), tFile("f", "")), layerOf(tHard("i", "/etc/passwd"))), has: []string{"h", "i"}},
		{name: "hard link to a directory", layers: stackOf(layerOf(tDir("d", 0o755)), layerOf(tHard("h", "d"))), fails: `leads to the directory "d"`},
		{name: "links into /proc", layers: stackOf(layerOf(tSym("p", "/proc/self/cwd"), tSym("q", "/proc/self/fd/3"), tSym("r", "/proc/self/root")), layerOf(tFile("p/new", "x"), tFile("q/new", "x"), tFile("r"+victim+"/new", "x"))), has: []string{"proc/self/root" + victim + "/new"}},
		{name: "devices", layers: stackOf(layerOf(tSym("e", victim)), layerOf(tDevice("e/file", tar.TypeChar), tDevice("e/sub", tar.TypeBlock), tDevice("e", tar.TypeFifo)))},
		{name: "owner and mode of the root", layers: stackOf(layerOf(tSym("d", "..")), layerOf(tDir(".", 0o700).own(7, 7), tDir("d/.", 0o700), tDir("d/victim", 0o700).own(7, 7))), has: []string{"d/victim"}},
	}
	for n := 1; n <= 5; n++ {
		cases = append(cases, hostileCase{
			name: fmt.Sprintf("relative link, %d up", n), has: []string{"victim/new", "victim/deep"},
			layers: stackOf(layerOf(tSym("e", up(n)), tSym("a/b/e", up(n+2)), tSym("a/b/f", "../../e")),
				layerOf(tFile("e/new", "x"), tFile("a/b/e/file", "x"), tFile("a/b/f/deep", "x"), tWh("e/sub"), tOpaque("a/b/f"), tHard("h", "e/file"))),
		})
	}
	return cases
}

// victims makes directories that must stay as they are, in dir and in each directory below down to
// deepest, and returns what tells whether they have.
func victims(t *testing.T, dirs ...string) func(t testing.TB, what string) {
	t.Helper()
	state := func(t testing.TB) string {
		var b strings.Builder
		for _, d := range dirs {
			nodes := testutil.TreeOf(t, filepath.Join(d, "victim"))
			var names []string
			for name := range nodes {
				names = append(names, name)
			}
			slices.Sort(names)
			for _, name := range names {
				info, err := os.Lstat(filepath.Join(d, "victim", name))
				if err != nil {
					t.Error(err)
					continue
				}
				fmt.Fprintf(&b, "%s/%s %s %d links %s\n", d, name, nodes[name], nodes[name].Links, info.ModTime())
			}
		}
		return b.String()
	}
	for _, d := range dirs {
		v := filepath.Join(d, "victim")
		if err := os.MkdirAll(filepath.Join(v, "sub"), 0o751); err != nil {
			t.Fatal(err)
		}
		for _, f := range []string{"file", "sub/file"} {
			if err := os.WriteFile(filepath.Join(v, f), []byte("victim"), 0o640); err != nil {
				t.Fatal(err)
			}
		}
		for _, f := range []string{"file", "sub/file", "sub", "."} {
			if err := os.Chtimes(filepath.Join(v, f), time.Unix(1, 0), time.Unix(1, 0)); err != nil {
				t.Fatal(err)
			}
		}
	}
	before := state(t)
	return func(t testing.TB, what string) {
		t.Helper()
		testutil.SameText(t, what+": the victims", state(t), before)
	}
}

// TestCheckoutHostile holds that no stack gets out of the root.
func TestCheckoutHostile(t *testing.T) {
	outer := t.TempDir()
	victim := filepath.Join(outer, "victim")
	cases := hostileCases(victim)
	run := newTestRun(t, testOptions{mode: ostree.Bare})
	if os.Geteuid() != 0 {
		run = newTestRun(t, testOptions{mode: ostree.BareUser})
	}
	t.Run("import", func(t *testing.T) {
		for i, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				if err := run.importImage(t, fmt.Sprint("hostile-", i), stackImage(t, c.layers, false)); err != nil {
					t.Fatal(err)
				}
			})
		}
	})
	t.Run("checkout", func(t *testing.T) {
		for i, c := range cases {
			middle := filepath.Join(outer, fmt.Sprint("m", i))
			parent := filepath.Join(middle, "p")
			dir := filepath.Join(parent, "root")
			if err := os.MkdirAll(parent, 0o755); err != nil {
				t.Fatal(err)
			}
			untouched := victims(t, outer, middle, parent)
			err := run.checkoutTo(t, fmt.Sprint("hostile-", i), dir, ostree.CheckoutOptions{})
			untouched(t, c.name)
			testutil.OnlyEntries(t, middle, "p", "victim")
			if c.fails != "" {
				testutil.OnlyEntries(t, parent, "victim")
				if err == nil || !strings.Contains(err.Error(), c.fails) {
					t.Errorf("%s: error %v, want %q", c.name, err, c.fails)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
				continue
			}
			testutil.OnlyEntries(t, parent, "root", "victim")
			for _, name := range c.has {
				if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
					t.Errorf("%s: %v", c.name, err)
				}
			}
			for name, n := range testutil.TreeOf(t, dir) { // nothing in it is a file of the victims'
				if n.Kind == 0 && n.Body == "victim" {
					t.Errorf("%s: %q is a victim's file", c.name, name)
				}
			}
		}
	})
	fsck(t, run.repo.path)
}

// --- options, targets, ends ------------------------------------------------------------------------------------------

// simpleImage has two layers.
func simpleImage(t testing.TB) *testImage {
	t.Helper()
	return stackImage(t, stackOf(
		layerOf(tDir(".", 0o711).own(5, 6).x("user.root", "r"), tDir("d", 0o750).own(1, 2), tFile("d/f", "f").own(3, 4), tFile("gone", ""), tFile("big", strings.Repeat("big", 1<<20))),
		layerOf(tWh("gone"), tDir("d", 0o2751).own(7, 8).x("user.d", "d"), tFile("d/g", "g").mode(0o4755), tSym("l", "d"))), false)
}

func TestCheckoutTarget(t *testing.T) {
	testutil.NeedRoot(t)
	run := newTestRun(t, testOptions{mode: ostree.Bare})
	if err := run.importImage(t, "simple", simpleImage(t)); err != nil {
		t.Fatal(err)
	}
	broken := stackImage(t, stackOf(layerOf(tDir("d", 0o755), tFile("d/f", "f")), layerOf(tHard("h", "d"))), false)
	if err := run.importImage(t, "broken", broken); err != nil {
		t.Fatal(err)
	}
	want := []string{
		`.: dir 0711 5:6 user.root="r"`, `d: dir 2751 7:8 user.d="d"`, `d/f: file 0644 3:4 "f"`, `d/g: file 4755 0:0 "g"`, `l: link 0:0 "d"`,
		fmt.Sprintf(`big: file 0644 0:0 "%d bytes, %x"`, 3<<20, sha256.Sum256(bytes.Repeat([]byte("big"), 1<<20))),
	}
	mkdir := func(t *testing.T, path string) string {
		if err := os.Mkdir(path, 0o770); err != nil {
			t.Fatal(err)
		}
		return path
	}
	mount := func(t *testing.T, source, dir, kind string, flags uintptr, data string) {
		if err := unix.Mount(source, dir, kind, flags, data); err != nil {
			testutil.Skip(t, "no mount: %v", err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(dir, 0); err != nil {
				t.Error(err)
			}
		})
	}
	for _, c := range []struct {
		name   string
		dir    func(t *testing.T, parent string) string
		stays  bool // it is the same directory afterwards
		beside []string
	}{
		{name: "a new directory", dir: func(_ *testing.T, p string) string { return p + "/root" }, beside: []string{"root"}},
		{name: "an untidy name", dir: func(_ *testing.T, p string) string { return p + "/.//x/../root/" }, beside: []string{"root"}},
		{name: "an empty directory", dir: func(t *testing.T, p string) string { return mkdir(t, p+"/root") }, beside: []string{"root"}},
		{name: "the current directory", dir: func(t *testing.T, p string) string { t.Chdir(mkdir(t, p+"/root")); return "." }, stays: true, beside: []string{"root"}},
		{name: "a relative name", dir: func(t *testing.T, p string) string { t.Chdir(p); return "root" }, beside: []string{"root"}},
		{name: "a mount point", dir: func(t *testing.T, p string) string {
			mount(t, "tmpfs", mkdir(t, p+"/root"), "tmpfs", 0, "size=32m")
			return p + "/root"
		}, stays: true, beside: []string{"root"}},
		{name: "a mount point of the same file system", dir: func(t *testing.T, p string) string {
			mount(t, mkdir(t, p+"/other"), mkdir(t, p+"/root"), "", unix.MS_BIND, "")
			return p + "/root"
		}, stays: true, beside: []string{"other", "root"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			parent := t.TempDir()
			dir := c.dir(t, parent)
			var before, after unix.Stat_t
			_ = unix.Stat(filepath.Clean(dir), &before)
			children := func(dir string) []string {
				var names []string
				entries, _ := os.ReadDir(dir)
				for _, e := range entries {
					names = append(names, e.Name())
				}
				return names
			}
			beside := children(parent)
			if err := run.checkoutTo(t, "broken", dir, ostree.CheckoutOptions{}); err == nil || !strings.Contains(err.Error(), "leads to the directory") {
				t.Errorf("the broken image: %v", err)
			}
			if got := children(parent); !slices.Equal(got, beside) {
				t.Errorf("beside are %q, and were %q", got, beside)
			}
			if got := children(dir); len(got) > 0 {
				t.Errorf("left: %q", got)
			}
			_ = unix.Stat(dir, &after)
			if before.Mode != after.Mode || before.Ino != after.Ino {
				t.Errorf("it was %o %d, and is %o %d", before.Mode, before.Ino, after.Mode, after.Ino)
			}
			if err := run.checkoutTo(t, "simple", dir, ostree.CheckoutOptions{}); err != nil {
				t.Fatal(err)
			}
			testutil.OnlyEntries(t, parent, c.beside...)
			compareListed(t, c.name, testutil.TreeOf(t, filepath.Clean(dir)), want)
			if _ = unix.Stat(dir, &after); c.stays && before.Ino != after.Ino {
				t.Error("it is another directory")
			}
			err := run.checkoutTo(t, "simple", dir, ostree.CheckoutOptions{})
			if err == nil || !strings.Contains(err.Error(), "is not empty") {
				t.Errorf("once more: %v", err)
			}
			testutil.OnlyEntries(t, parent, c.beside...)
		})
	}
	for _, c := range []struct {
		name, fails string
		dir         func(t *testing.T, parent string) string
		stays       []string
	}{
		{"no name", "the directory has no name", func(*testing.T, string) string { return "" }, nil},
		{"a file", "is not a directory", func(t *testing.T, p string) string {
			if err := os.WriteFile(p+"/root", nil, 0o644); err != nil {
				t.Fatal(err)
			}
			return p + "/root"
		}, []string{"root"}},
		{"a symlink to a directory", "is not a directory", func(t *testing.T, p string) string {
			if err := os.Symlink(mkdir(t, p+"/real"), p+"/root"); err != nil {
				t.Fatal(err)
			}
			return p + "/root/"
		}, []string{"real", "root"}},
		{"a dangling symlink", "is not a directory", func(t *testing.T, p string) string {
			if err := os.Symlink("nowhere", p+"/root"); err != nil {
				t.Fatal(err)
			}
			return p + "/root"
		}, []string{"root"}},
		{"no directory above", "no such file or directory", func(_ *testing.T, p string) string { return p + "/no/root" }, nil},
		{"a file above", "not a directory", func(t *testing.T, p string) string {
			if err := os.WriteFile(p+"/no", nil, 0o644); err != nil {
				t.Fatal(err)
			}
			return p + "/no/root"
		}, []string{"no"}},
		{"a full disk", "No space left on device", func(t *testing.T, p string) string {
			mount(t, "tmpfs", p, "tmpfs", 0, "size=1m")
			return p + "/root"
		}, nil},
		{"a full disk, mounted there", "No space left on device", func(t *testing.T, p string) string {
			mount(t, "tmpfs", mkdir(t, p+"/root"), "tmpfs", 0, "size=1m")
			return p + "/root"
		}, []string{"root"}},
		{"files of the user with names like ours", "is not empty", func(t *testing.T, p string) string {
			mkdir(t, mkdir(t, p+"/root")+"/ostree-image-1")
			mkdir(t, mkdir(t, p+"/root/.ostree-image-checkout-2")+"/ostree-image-3")
			mkdir(t, p+"/ostree-image-4")
			return p + "/root"
		}, []string{"ostree-image-4", "root"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			parent := t.TempDir()
			dir := c.dir(t, parent)
			err := run.checkoutTo(t, "simple", dir, ostree.CheckoutOptions{})
			if err == nil || !strings.Contains(err.Error(), c.fails) {
				t.Errorf("error %v, want %q", err, c.fails)
			}
			testutil.OnlyEntries(t, parent, c.stays...)
			if dir == parent+"/root" && strings.HasPrefix(c.name, "files of") {
				testutil.OnlyEntries(t, dir, ".ostree-image-checkout-2", "ostree-image-1")
			}
		})
	}
	t.Run("the user's directories beside stay", func(t *testing.T) {
		parent := t.TempDir()
		for _, n := range []string{"ostree-image-0.1", "ostree-image-5", "ostree-image-main"} {
			mkdir(t, filepath.Join(parent, n))
		}
		if err := run.checkoutTo(t, "simple", parent+"/root", ostree.CheckoutOptions{}); err != nil {
			t.Fatal(err)
		}
		testutil.OnlyEntries(t, parent, "ostree-image-0.1", "ostree-image-5", "ostree-image-main", "root")
	})
	t.Run("what a killed checkout left goes", func(t *testing.T) {
		parent := t.TempDir()
		pinned, err := run.runner.Pin(parent)
		if err != nil {
			t.Fatal(err)
		}
		defer pinned.Unpin()
		w, err := newCheckoutDir(pinned, run.runner)
		if err != nil {
			t.Fatal(err)
		}
		mkdir(t, w.Join("root"))
		w.Abandon()
		other, err := newCheckoutDir(pinned, run.runner)
		if err != nil {
			t.Fatal(err)
		}
		if err := run.checkoutTo(t, "simple", parent+"/root", ostree.CheckoutOptions{}); err != nil {
			t.Fatal(err)
		}
		testutil.OnlyEntries(t, parent, "root", directoryName(t, filepath.Dir(other.Path)))
		if err := other.Remove(); err != nil {
			t.Error(err)
		}
		testutil.OnlyEntries(t, parent, "root")
		_ = w.Remove()
	})
	fsck(t, run.repo.path)
}

// directoryName returns the name of the directory that a link of /proc leads to.
func directoryName(t *testing.T, link string) string {
	t.Helper()
	path, err := os.Readlink(link)
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Base(path)
}

// TestSweepCheckouts: of what has the name of a checkout's directory, only what a checkout makes
// goes.
func TestSweepCheckouts(t *testing.T) {
	testutil.NeedRoot(t)
	parent := t.TempDir()
	for _, d := range []struct {
		name  string
		mode  os.FileMode
		owner int
		holds string
	}{
		{"1", 0o700, 0, ""},
		{"2", 0o700, 0, "precious"},
		{"3", 0o755, 0, ""},
		{"4", 0o700, otherID, ""},
		{"5-mine", 0o700, 0, ""},
		{"6", 0o700, 0, workdir.NewWorkPrefix + "1"}, // killed before it was marked
	} {
		path := filepath.Join(parent, checkoutPrefix+d.name)
		mkdir(t, filepath.Join(path, d.holds))
		for _, err := range []error{os.Chown(path, d.owner, d.owner), os.Chmod(path, d.mode)} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	sweepCheckouts(parent)
	testutil.OnlyEntries(t, parent, checkoutPrefix+"2", checkoutPrefix+"3", checkoutPrefix+"4", checkoutPrefix+"5-mine")
}

// TestCheckoutGroup: a root that no layer describes is root's, whatever the directory above it
// hands down.
func TestCheckoutGroup(t *testing.T) {
	testutil.NeedRoot(t)
	r := newTestRun(t, testOptions{})
	if err := r.importImage(t, "empty", &testImage{}); err != nil {
		t.Fatal(err)
	}
	parent := t.TempDir()
	for _, err := range []error{os.Chown(parent, 0, otherID), os.Chmod(parent, 0o755|os.ModeSetgid), r.checkoutTo(t, "empty", parent+"/root", ostree.CheckoutOptions{})} {
		if err != nil {
			t.Fatal(err)
		}
	}
	testutil.SameText(t, "the root", testutil.Run(t, "stat", "-c", "%a %u:%g", parent+"/root"), "755 0:0\n")
}

func TestCheckoutOptions(t *testing.T) {
	testutil.NeedRoot(t)
	bare := newTestRun(t, testOptions{mode: ostree.Bare})
	if err := bare.importImage(t, "simple", simpleImage(t)); err != nil {
		t.Fatal(err)
	}
	only := newTestRun(t, testOptions{mode: ostree.BareUserOnly})
	if err := only.importImage(t, "simple", simpleImage(t)); err != nil {
		t.Fatal(err)
	}
	runs := map[string]*testRun{ostree.Bare: bare, ostree.BareUserOnly: only}
	for _, mode := range []string{ostree.BareUser, ostree.Archive} {
		runs[mode] = newTestRun(t, testOptions{repo: pullCommits(t, bare.repo.path, mode)})
	}
	dirMode := map[string]string{ostree.Bare: "2751", ostree.BareUser: "2751", ostree.Archive: "2751", ostree.BareUserOnly: "0751"}
	for mode, r := range runs {
		t.Run("written "+mode, func(t *testing.T) {
			for _, o := range []ostree.CheckoutOptions{{}, {UserMode: true}, {ForceCopy: true}} {
				dir, other := filepath.Join(t.TempDir(), "root"), filepath.Join(t.TempDir(), "root")
				for _, d := range []string{other, dir} {
					if err := r.checkoutTo(t, "simple", d, o); err != nil {
						t.Fatal(err)
					}
				}
				before := testutil.TreeOf(t, other)
				for name, n := range testutil.TreeOf(t, dir) {
					if n.Kind != 0 {
						continue
					}
					f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_APPEND, 0)
					if err != nil {
						t.Fatal(err)
					}
					if _, err := f.WriteString("more"); err != nil {
						t.Fatal(err)
					}
					if err := f.Chmod(0o777); err != nil {
						t.Fatal(err)
					}
					if err := f.Close(); err != nil {
						t.Fatal(err)
					}
				}
				compareCopies(t, "the other one", testutil.TreeOf(t, other), before, time.Now(), testutil.Node.String)
				fsck(t, r.repo.path)
			}
		})
		t.Run("--user-mode "+mode, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "root")
			if err := r.checkoutTo(t, "simple", dir, ostree.CheckoutOptions{UserMode: true}); err != nil {
				t.Fatal(err)
			}
			got := testutil.TreeOf(t, dir)
			for name, n := range got {
				if n.Owner != "0:0" || n.Xattrs != "" {
					t.Errorf("%q: %s", name, n)
				}
			}
			testutil.SameText(t, "d", got["d"].String(), "dir "+dirMode[mode]+" 0:0")
			testutil.SameText(t, "d/f", got["d/f"].String(), `file 0644 0:0 "f"`)
			testutil.SameText(t, "d/g", got["d/g"].String(), `file 0755 0:0 "g"`)
			if _, ok := got["gone"]; ok || len(got) != 6 {
				t.Errorf("there are %v", got)
			}
		})
		t.Run("--require-hardlinks "+mode, func(t *testing.T) {
			for _, o := range []ostree.CheckoutOptions{{RequireHardlinks: true}, {RequireHardlinks: true, UserMode: true}} {
				dir := filepath.Join(t.TempDir(), "root")
				err := r.checkoutTo(t, "simple", dir, o)
				var st unix.Stat_t
				_ = unix.Stat(dir+"/big", &st)
				if linked := mode == ostree.Bare && !o.UserMode || mode == ostree.BareUser && o.UserMode || mode == ostree.BareUserOnly; linked {
					if err != nil || st.Nlink < 2 {
						t.Errorf("%+v: %v, and %d links", o, err, st.Nlink)
					}
				} else if err == nil {
					t.Errorf("%+v: no error", o)
				} else {
					t.Log(err)
					testutil.OnlyEntries(t, filepath.Dir(dir))
				}
			}
		})
	}
	t.Run("--require-hardlinks, another file system", func(t *testing.T) {
		dir := t.TempDir()
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=32m"); err != nil {
			testutil.Skip(t, "no mount: %v", err)
		}
		defer func() { _ = unix.Unmount(dir, 0) }()
		err := bare.checkoutTo(t, "simple", dir+"/root", ostree.CheckoutOptions{RequireHardlinks: true})
		if err == nil || !strings.Contains(err.Error(), "across devices") {
			t.Errorf("error %v", err)
		}
		testutil.OnlyEntries(t, dir)
		if err := bare.checkoutTo(t, "simple", dir+"/root", ostree.CheckoutOptions{}); err != nil {
			t.Error(err)
		}
	})
	for _, r := range runs {
		fsck(t, r.repo.path)
	}
}

// TestCheckoutInterrupted ends checkouts at many moments.
func TestCheckoutInterrupted(t *testing.T) {
	run := newTestRun(t, testOptions{mode: ostree.BareUser})
	var layers [][]tarItem
	for l := range 6 {
		var items []tarItem
		for i := range 300 {
			items = append(items, tFile(fmt.Sprintf("d%d/%d-%d", i%20, l%3, i), fmt.Sprint(l)))
		}
		layers = append(layers, items)
	}
	if err := run.importImage(t, "image", stackImage(t, layers, false)); err != nil {
		t.Fatal(err)
	}
	parent := t.TempDir()
	dir := filepath.Join(parent, "root")
	began := time.Now()
	if err := run.checkoutTo(t, "image", dir, ostree.CheckoutOptions{UserMode: true}); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	stopped := 0
	for n := range 12 {
		ctx, cancel := context.WithCancelCause(t.Context())
		timer := time.AfterFunc(took*time.Duration(n)/12, func() { cancel(errInterrupted) })
		err := run.checkoutContext(ctx, t, "image", dir, ostree.CheckoutOptions{UserMode: true})
		timer.Stop()
		cancel(nil)
		if err == nil {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			continue
		}
		stopped++
		if !errors.Is(err, errInterrupted) {
			t.Errorf("error %v", err)
		}
		testutil.OnlyEntries(t, parent)
	}
	if stopped == 0 {
		t.Error("none was stopped")
	}
	if left := testutil.ProcessesOf(parent); len(left) > 0 {
		t.Errorf("processes are left: %q", left)
	}
}

var errInterrupted = errors.New("interrupted by the test")

// TestCheckoutOldLayers checks out what the old transport stored in 2017: no diffID, no tar-split
// data.
func TestCheckoutOldLayers(t *testing.T) {
	testutil.NeedRoot(t)
	run := newTestRun(t, testOptions{mode: ostree.Bare})
	layers := stackOf(
		layerOf(tDir("d", 0o750).own(1, 2), tFile("d/f", "1"), tFile("d/-", "1"), tDir("e", 0o755), tFile("e/old", "1"), tFile("x", "1"), tSym("s", "d")),
		layerOf(tWh("x"), tDir("d", 0o711).own(3, 4).x("user.d", "d"), tFile("d/-", "2"), tWh("d/-"), tDir("e", 0o700), tFile("e/!", "2"), tOpaque("e"), tFile("s/implied/f", "2")))
	image := stackImage(t, layers, false)
	if err := run.importImage(t, "image", image); err != nil {
		t.Fatal(err)
	}
	for _, l := range image.layers {
		d := digest.FromBytes(l)
		ref := imageref.BlobRef(d)
		testutil.Run(t, "ostree", "commit", "--repo="+run.repo.path, "--branch="+ref, "--tree=ref="+ref, "--add-metadata-string=docker.size="+fmt.Sprint(len(l)))
		if strings.Contains(testutil.Run(t, "ostree", "refs", "--repo="+run.repo.path), imageref.SidecarRef(d)) {
			testutil.Run(t, "ostree", "refs", "--repo="+run.repo.path, "--delete", imageref.SidecarRef(d))
		}
	}
	dir := filepath.Join(t.TempDir(), "root")
	if err := run.checkoutTo(t, "image", dir, ostree.CheckoutOptions{}); err != nil {
		t.Fatal(err)
	}
	compareListed(t, "old layers", testutil.TreeOf(t, dir), []string{
		".: dir 0755 0:0", `d: dir 0711 3:4 user.d="d"`, `d/f: file 0644 0:0 "1"`, `d/-: file 0644 0:0 "2"`, "e: dir 0700 0:0", `e/!: file 0644 0:0 "2"`,
		// In the tree nothing tells that the layer went through a link of a layer below: s is a
		// directory there.
		"s: dir 0755 0:0", "s/implied: dir 0755 0:0", `s/implied/f: file 0644 0:0 "2"`,
	})
	for _, l := range image.layers {
		want := fmt.Sprintf("warning: layer %s was stored without its tar-split data: every directory of its tree counts as one that it names", digest.FromBytes(l))
		if n := strings.Count(run.said.String(), want); n != 1 {
			t.Errorf("said %d times: %s\n%s", n, want, run.said)
		}
	}
	fsck(t, run.repo.path)
}

// TestCheckoutHostileRepository checks out what no import of ours makes: a record that names other
// things than the tree.
func TestCheckoutHostileRepository(t *testing.T) {
	outer := t.TempDir()
	victim := filepath.Join(outer, "victim")
	honest := layerOf(tDir("d", 0o755), tFile("d/f", "f"), tSym("l", "d"), tSym("e", victim), tFile("e2/new", "x"))
	run := newTestRun(t, testOptions{mode: ostree.BareUser})
	image := stackImage(t, stackOf(layerOf(tFile("base", "")), honest), false)
	if err := run.importImage(t, "image", image); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		record []tarItem
		fails  string
	}{
		{"names that lead out", layerOf(tFile("../victim/new", "")), `with ".."`},
		{"links that lead out", layerOf(tHard("h", "../victim/file")), `with ".."`},
		{"whiteouts that lead out", layerOf(tFile("d/../../.wh.victim", "")), `with ".."`},
		{"a file that is a directory", layerOf(tFile("d", "")), ""},
		{"a directory that is a file", layerOf(tDir("d", 0o755), tDir("d/f", 0o700)), "not a directory"},
		{"a directory that is a link", layerOf(tDir("e", 0o700), tFile("e/file", "")), "not a directory"},
		{"what is not there", layerOf(tFile("nothing", "")), "no such file or directory"},
		{"a link for a file", layerOf(tFile("e", "")), ""},
		{"below a link", layerOf(tSym("e2", victim), tFile("e2/new", "")), "no such file or directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ref := imageref.BlobRef(digest.FromBytes(image.layers[1]))
			args := []string{"commit", "--repo=" + run.repo.path, "--branch=" + ref, "--tree=ref=" + ref, "--add-metadata-string=" + imageref.KeyTarSplit + "=" + tarSplitOf(t, stackTar(t, c.record))}
			for _, k := range []string{imageref.KeySize, imageref.KeyUncompressedSize, imageref.KeyUncompressedDigest} {
				value := strings.TrimSpace(testutil.Run(t, "ostree", "show", "--repo="+run.repo.path, "--print-metadata-key="+k, ref))
				args = append(args, "--add-metadata-string="+k+"="+strings.Trim(value, "'"))
			}
			testutil.Run(t, "ostree", args...)
			// As if it had been proved: checkout is to hold by itself, too.
			commit := strings.TrimSpace(testutil.Run(t, "ostree", "rev-parse", "--repo="+run.repo.path, ref))
			run.proven.add(provenKey(digest.FromBytes(image.layers[1]), commit, ""), provenBlob{digest.FromBytes(image.layers[1]), int64(len(image.layers[1]))})
			parent := filepath.Join(t.TempDir(), "p")
			if err := os.Mkdir(parent, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(victim); err != nil {
				t.Fatal(err)
			}
			untouched := victims(t, outer, parent)
			err := run.checkoutTo(t, "image", parent+"/root", ostree.CheckoutOptions{UserMode: os.Geteuid() != 0})
			untouched(t, c.name)
			if c.fails != "" {
				testutil.OnlyEntries(t, parent, "victim")
			}
			if (err == nil) != (c.fails == "") || err != nil && !strings.Contains(err.Error(), c.fails) {
				t.Errorf("error %v, want %q", err, c.fails)
			}
		})
	}
}

// tarSplitOf is the tar-split data of a layer, as a commit's metadata have it.
func tarSplitOf(t testing.TB, layer []byte) string {
	t.Helper()
	var b bytes.Buffer
	gz := gzip.NewWriter(&b)
	in, done, err := asm.NewInputTarStreamWithDone(bytes.NewReader(layer), storage.NewJSONPacker(gz), storage.NewDiscardFilePutter())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := gz.Close(); err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(b.Bytes())
}

// writeIndexLayout makes an OCI layout that has an index of linux/amd64 and linux/arm64 under the
// name multi, and returns its path.
func writeIndexLayout(t *testing.T) string {
	t.Helper()
	layout := filepath.Join(t.TempDir(), "layout")
	images := map[string]*testImage{}
	index := imgspecv1.Index{Versioned: imgspec.Versioned{SchemaVersion: 2}, MediaType: imgspecv1.MediaTypeImageIndex}
	for _, arch := range []string{"amd64", "arm64"} {
		i := stackImage(t, stackOf(layerOf(tFile("arch", arch)), layerOf(tFile("common", "c"))), false)
		i.config = bytes.Replace(i.config, []byte(testPlatform.Architecture), []byte(arch), 1)
		i.manifest = nil
		images[arch] = i.Finish(t)
		index.Manifests = append(index.Manifests, imgspecv1.Descriptor{
			MediaType: imgspecv1.MediaTypeImageManifest, Digest: digest.FromBytes(i.manifest), Size: int64(len(i.manifest)),
			Platform: &imgspecv1.Platform{OS: "linux", Architecture: arch},
		})
	}
	writeLayout(t, layout, images)
	blob := marshal(t, index)
	d := digest.FromBytes(blob)
	top := imgspecv1.Index{Versioned: imgspec.Versioned{SchemaVersion: 2}, Manifests: []imgspecv1.Descriptor{{
		MediaType: imgspecv1.MediaTypeImageIndex, Digest: d, Size: int64(len(blob)), Annotations: map[string]string{imgspecv1.AnnotationRefName: "multi"},
	}}}
	for name, b := range map[string][]byte{"blobs/sha256/" + d.Encoded(): blob, "index.json": marshal(t, top)} {
		if err := os.WriteFile(filepath.Join(layout, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return layout
}

// TestCheckoutIndex checks instances of an index out.
func TestCheckoutIndex(t *testing.T) {
	run := newTestRun(t, testOptions{mode: ostree.BareUser})
	layout := writeIndexLayout(t)
	oi := func(want int, args ...string) string {
		t.Helper()
		var out, stderr bytes.Buffer
		if got := runProgram(t, append([]string{"--insecure-policy", "--repo=" + run.repo.path}, args...), &out, &stderr); got != want {
			t.Fatalf("%q: status %d, want %d: %s", args, got, want, &stderr)
		}
		return stderr.String()
	}
	oi(0, "copy", "--all", "oci:"+layout+":multi", "ostree:multi@"+run.repo.path)
	for _, arch := range []string{"amd64", "arm64"} {
		dir := filepath.Join(t.TempDir(), "root")
		oi(0, "--override-os=linux", "--override-arch="+arch, "checkout", "--user-mode", "multi", dir)
		if b, err := os.ReadFile(filepath.Join(dir, "arch")); err != nil || string(b) != arch {
			t.Errorf("%s: %q, %v", arch, b, err)
		}
	}
	dir := filepath.Join(t.TempDir(), "root")
	if text := oi(1, "--override-os=linux", "--override-arch=s390x", "checkout", "multi", dir); !strings.Contains(text, "choosing an instance") {
		t.Errorf("it says %s", text)
	}
	testutil.OnlyEntries(t, filepath.Dir(dir))
	oi(3, "checkout", "none", dir)
	oi(2, "checkout", "multi")
	oi(2, "checkout", "multi", "")
	oi(2, "checkout", "multi", dir, "--no-such-option")
	testutil.OnlyEntries(t, filepath.Dir(dir))
}

// programRuns is for runProgram: all programs of a process share the library's flag --help.
var programRuns sync.Mutex

// runProgram runs the program as its own process would, one at a time.
func runProgram(t testing.TB, args []string, stdout, stderr io.Writer) int {
	t.Helper()
	programRuns.Lock()
	defer programRuns.Unlock()
	return run(t.Context(), append([]string{"ostree-image"}, args...), stdout, stderr)
}

// TestCheckoutProcess is the program in a process of its own, for other tests: it runs each list of
// arguments, and says how that ended.
func TestCheckoutProcess(t *testing.T) {
	var calls [][]string
	text := os.Getenv("CHECKOUT_CALLS")
	if text == "" {
		return // no skip: there is nothing to test here
	}
	if err := json.Unmarshal([]byte(text), &calls); err != nil {
		t.Fatal(err)
	}
	status := 0
	for _, args := range calls {
		var stderr bytes.Buffer
		if status = run(context.Background(), append([]string{"ostree-image"}, args...), io.Discard, &stderr); status != 0 {
			fmt.Printf("status %d: %q: %.500q\n", status, args, stderr.String())
		}
		fmt.Print(&stderr)
	}
	var self, children unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &self)
	_ = unix.Getrusage(unix.RUSAGE_CHILDREN, &children)
	fmt.Printf("maxrss %d %d\n", self.Maxrss, children.Maxrss)
	os.Exit(status)
}

// checkoutProcess makes that process, of another user where uid is not 0.
func checkoutProcess(t testing.TB, uid int, calls ...[]string) *exec.Cmd {
	t.Helper()
	cmd := testutil.TestAs(t, uid, "TestCheckoutProcess")
	cmd.Env = append(cmd.Env, "CHECKOUT_CALLS="+string(marshal(t, calls)))
	return cmd
}

// openTempDir makes a directory that every user can reach, and that belongs to one.
func openTempDir(t testing.TB, uid int) string {
	t.Helper()
	dir := testutil.OpenDirOf(t, uid)
	t.Cleanup(func() { // before that of the directory, which cannot remove all that a layer can hold
		if err := workdir.RemoveTree(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestCheckoutAsUser imports and checks out as a user who is not root.
func TestCheckoutAsUser(t *testing.T) {
	testutil.NeedRoot(t)
	testutil.NeedTools(t, "umoci")
	var cases []stackCase
	for _, c := range stackCases() {
		for _, part := range []string{
			"one layer", "whiteouts only", "opaque last", "there and back", "new mode", "implied and named", "own entry", "through a chain", "links in",
			"setuid", "capabilities", "keep others out", "a path twice", "attributes of", "many kinds",
		} {
			if strings.Contains(c.name, part) {
				cases = append(cases, c)
				break
			}
		}
	}
	cases = append(cases, stackCase{name: "a root that cannot be written", layers: stackOf(
		layerOf(tDir(".", 0o555), tDir("d", 0o555), tFile("d/f", "f"), tDir("d/e", 0), tFile("d/e/f", "f")), layerOf(tFile("n", "n"), tFile("d/n", "n"), tWh("d/e/f")))})
	dir := openTempDir(t, testutil.SomeUser)
	layout := filepath.Join(dir, "layout")
	images := map[string]*testImage{}
	for i, c := range cases {
		images[c.tag(i)] = stackImage(t, c.layers, false)
	}
	writeLayout(t, layout, images)
	modes := []string{ostree.Bare, ostree.BareUser}
	var calls [][]string
	for _, mode := range modes {
		repo := filepath.Join(dir, mode)
		testutil.Run(t, "ostree", "init", "--repo="+repo, "--mode="+mode)
		testutil.Run(t, "chown", "-R", fmt.Sprint(testutil.SomeUser, ":", testutil.SomeUser), repo)
		testutil.Run(t, "mkdir", "-m", "777", filepath.Join(dir, mode+"-roots"))
	}
	for i, c := range cases {
		for _, mode := range modes {
			repo := filepath.Join(dir, mode)
			calls = append(calls, []string{"--insecure-policy", "--repo=" + repo, "--override-arch=" + testPlatform.Architecture, "copy", "--no-fsync", "oci:" + layout + ":" + c.tag(i), "ostree:" + c.tag(i) + "@" + repo},
				[]string{"--repo=" + repo, "checkout", c.tag(i), filepath.Join(dir, mode+"-roots", c.tag(i))})
		}
	}
	b, err := checkoutProcess(t, testutil.SomeUser, calls...).CombinedOutput()
	if err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "status") {
			t.Error(line)
		}
	}
	if want := "warning: not root, repository of mode bare-user: files belong to you, as with --user-mode"; !strings.Contains(string(b), want) {
		t.Errorf("it does not say: %s", want)
	}
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			want := umociTree(t, layout, c.tag(i))
			for _, mode := range modes {
				got := testutil.TreeOf(t, filepath.Join(dir, mode+"-roots", c.tag(i)))
				for name, w := range want {
					if mode == ostree.BareUser {
						w.Perm, w.Xattrs = 0, ""
					}
					w.Owner = fmt.Sprint(testutil.SomeUser, ":", testutil.SomeUser)
					if w.Xattrs = withoutCapability(w.Xattrs); w.Kind == 0 {
						w.Perm |= 0o400 // as imported
					}
					want[name] = w
				}
				for name, g := range got {
					if mode == ostree.BareUser {
						g.Perm, g.Xattrs = 0, ""
						if g.Kind == 0 {
							g.Perm = 0o400
						}
					}
					got[name] = g
				}
				for name, line := range listed(t, c.but) {
					want[name] = got[name]
					if got[name].Kind != fs.ModeDir {
						t.Errorf("%q is not %s", name, line)
					}
				}
				compareTrees(t, mode, got, want, testutil.Node.String)
			}
		})
	}
	for _, mode := range modes {
		testutil.OnlyEntries(t, filepath.Join(dir, mode+"-roots"), tagsOf(cases)...)
		fsck(t, filepath.Join(dir, mode))
	}
}

func tagsOf(cases []stackCase) (tags []string) {
	for i, c := range cases {
		tags = append(tags, c.tag(i))
	}
	return tags
}

func withoutCapability(xattrs string) string {
	if i := strings.Index(xattrs, " "+rootfs.Capability); i >= 0 {
		return xattrs[:i]
	}
	return xattrs
}

// TestCheckoutSignal interrupts the program while ostree runs.
func TestCheckoutSignal(t *testing.T) {
	r := newTestRun(t, testOptions{mode: ostree.BareUser})
	if err := r.importImage(t, "image", simpleImage(t)); err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	slow := filepath.Join(bin, "slow-ostree")
	script := "#!/bin/sh\ncase \"$*\" in checkout*) ostree \"$@\"; exec sleep 60;; esac\nexec ostree \"$@\"\n"
	if err := os.WriteFile(slow, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	for signal, status := range map[syscall.Signal]int{unix.SIGINT: 130, unix.SIGTERM: 143} {
		parent := t.TempDir()
		cmd := checkoutProcess(t, 0, []string{"--repo=" + r.repo.path, "--ostree=" + slow, "checkout", "--user-mode", "image", parent + "/root"})
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		testutil.Eventually(t, "a tree", func() bool {
			found, _ := filepath.Glob(parent + "/" + checkoutPrefix + "*/*/root/d/f")
			return len(found) > 0
		})
		if err := cmd.Process.Signal(signal); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait()
		if got := cmd.ProcessState.ExitCode(); got != status {
			t.Errorf("%v: exit status %d, want %d: %s", signal, got, status, &out)
		}
		testutil.OnlyEntries(t, parent)
		if left := testutil.ProcessesOf(parent); len(left) > 0 {
			t.Errorf("processes are left: %q", left)
		}
	}
}
