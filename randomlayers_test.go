package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/pkg/errors"

	"ostree-image/internal/imageref"
	"ostree-image/internal/layer"
	"ostree-image/internal/normalize"
	"ostree-image/internal/ostree"
	"ostree-image/internal/tarstream"
	"ostree-image/internal/testutil"
)

// randomSource makes layers of a few entries in three levels, with names so few that they meet:
// directories that nothing names, names that come twice, links that lead somewhere, whiteouts, and
// modes that a directory can hand down.
type randomSource struct {
	*rand.Rand
	up     bool // some links lead upwards, and from the layer's root
	lines  bool // some names have a newline
	opened bool // files with attributes can be written: ostree itself gives no others attributes in a bare repository of another user
}

func newRandomSource(seed uint64) *randomSource {
	return &randomSource{Rand: rand.New(rand.NewPCG(seed, 15))}
}

func pick[T any](r *randomSource, of ...T) T { return of[r.IntN(len(of))] }

func (r *randomSource) name() string {
	parts := []string{pick(r, "a", "b", "c", "d")}
	for len(parts) < 3 && r.IntN(5) > 1 {
		part := pick(r, "a", "b", "x")
		if r.lines && r.IntN(8) == 0 {
			part += "\n"
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, "/")
}

func (r *randomSource) xattrs() map[string]string {
	if r.IntN(5) > 0 {
		return nil
	}
	return xattrs("user."+pick(r, "k", "l"), pick(r, "1", "2"))
}

func (r *randomSource) member(n int) member {
	owner := func() int64 { return pick[int64](r, 0, 0, 1000, 7, 65534) }
	m := member{name: r.name(), uid: owner(), gid: owner(), pax: r.xattrs()}
	switch k := r.IntN(20); {
	case k < 7:
		m.flag, m.mode = '5', pick[int64](r, 0o755, 0o755, 0o700, -1, 0o555, 0o111, 0o333, 0o1777, 0o2755, 0o2070, 0o6755, 0o3711)
	case k < 13:
		m.body, m.mode = strings.Repeat("x", r.IntN(3))+fmt.Sprint(n), pick[int64](r, 0o644, 0o600, -1, 0o4755, 0o2755, 0o444)
		if r.opened && m.pax != nil {
			m.mode = 0o640
		}
	case k < 15:
		m.flag, m.link = '2', pick(r, "a", "b", "a/b", "x", "nowhere", ".")
		if r.up {
			m.link = pick(r, m.link, "/a", "../a", "/")
		}
	case k < 17:
		m.flag, m.link = '1', r.name()
	case k == 17:
		m.name, m.mode = path.Join(path.Dir(m.name), pick(r, ".wh.", ".wh..wh..opq", ".wh.")+pick(r, "a", "b")), 0o644
		if strings.HasPrefix(path.Base(m.name), ".wh..wh..opq") {
			m.name = path.Join(path.Dir(m.name), ".wh..wh..opq")
		}
	case k == 18:
		m.flag = pick[byte](r, '3', '6')
	default:
		m.name, m.flag, m.mode = "./", '5', pick[int64](r, 0o755, 0o700, 0o2755, 0o1777)
	}
	switch k := r.IntN(32); {
	case m.name == "./":
	case k < 4:
		m.name = "./" + m.name
	case k == 4:
		m.name = "x/../" + m.name
	case k < 8 && m.flag == '5':
		m.name += "/"
	}
	return m
}

// layer returns the members of a layer that can be imported.
func (r *randomSource) layer(t testing.TB) []member {
	t.Helper()
	for {
		members := make([]member, 1+r.IntN(10))
		for i := range members {
			members[i] = r.member(i)
		}
		// A layer that must be read twice is refused then, if it is at all.
		if filterPlanned(archive(members...), permissions{}, normalize.Limits{}, &bytes.Buffer{}) == nil {
			return members
		}
	}
}

// under returns the members as they are in a layer that has this one in a directory.
func under(name string, members []member) []member {
	inner := slices.Clone(members)
	for i := range inner {
		m := &inner[i]
		m.name = name + "/" + m.name
		if m.flag == '1' || m.flag == '2' && strings.HasPrefix(m.link, "/") {
			m.link = name + "/" + m.link
		}
		if m.flag == '2' && strings.HasPrefix(m.link, name) {
			m.link = "/" + m.link
		}
	}
	return inner
}

func isOdd(members []member) bool {
	scan := &layer.Scan{Sink: normalize.NewFilter(permissions{}, tarstream.NewWriter(&bytes.Buffer{}))}
	err := scan.Run(context.Background(), bytes.NewReader(archive(members...)))
	return err != nil || scan.NonCanonical
}

// randomImage has so many random layers, each by itself if single, or all as directories of two:
// those that are read once, and the odd ones.
func randomImage(t testing.TB, r *randomSource, n int, single bool) (*testImage, map[string][]byte) {
	t.Helper()
	i := &testImage{}
	raw := map[string][]byte{}
	seen := map[string]bool{}
	var plain, odd []member
	for len(raw) < n {
		members := r.layer(t)
		layer := archive(members...)
		if seen[string(layer)] {
			continue
		}
		seen[string(layer)] = true
		name := fmt.Sprintf("L%03d", len(raw))
		if single {
			raw[imageref.BlobRef(digest.FromBytes(layer))] = layer
			i.layers = append(i.layers, layer)
		} else {
			raw[name] = layer
			inner := under(name, members)
			if isOdd(members) {
				odd = append(odd, inner...)
			} else {
				plain = append(plain, inner...)
			}
		}
	}
	if !single {
		i.layers = [][]byte{archive(plain...), archive(odd...)}
	}
	return i, raw
}

// engineRun is one way to import an image.
type engineRun struct {
	mode   string
	engine engineName
	dealt  bool
}

func (e engineRun) String() string {
	if e.dealt {
		return e.mode + " " + string(e.engine) + " dealt"
	}
	return e.mode + " " + string(e.engine)
}

// allEngineRuns are all modes with both engines, and a layer that is split.
func allEngineRuns() []engineRun {
	runs := []engineRun{{ostree.Archive, engineStream, true}}
	for _, mode := range []string{ostree.Archive, ostree.Bare, ostree.BareUser, ostree.BareUserOnly} {
		runs = append(runs, engineRun{mode, engineStream, false}, engineRun{mode, engineTar, false})
	}
	return runs
}

func (e engineRun) importImage(t testing.TB, i *testImage) *testRun {
	t.Helper()
	r := newTestRun(t, testOptions{mode: e.mode, unpack: e.engine, repo: newSharedRepo(t, e.mode)})
	if e.dealt {
		r.splitInto = 3
	}
	if err := r.importImage(t, "random", i); err != nil {
		t.Errorf("%s: %v", e, err)
	}
	return r
}

// checkRandomLayers imports random layers in all ways and holds that they come to the same, and to
// what tar extracts. As root.
func checkRandomLayers(t *testing.T, seed uint64, n int, single bool) {
	t.Helper()
	r := newRandomSource(seed)
	r.up, r.lines = single, !single
	image, raw := randomImage(t, r, n, single)
	want := map[string]map[string]string{} // by the mode
	var first *testRun
	names := func(string) string { return fmt.Sprintf("seed %d", seed) }
	for _, e := range allEngineRuns() {
		r := e.importImage(t, image)
		if first == nil {
			first = r
		}
		group := "all"
		if e.mode == ostree.BareUserOnly { // which holds canonical permissions
			group = e.mode
		}
		got := r.commits(t)
		if want[group] == nil {
			want[group] = got
			continue
		}
		sameCommits(t, e.String(), got, want[group], names)
		if t.Failed() {
			other := first.repo.path
			if group != "all" {
				return
			}
			for ref, sum := range got {
				if want[group][ref] != sum {
					t.Fatalf("%s, %s:\n%s", e, ref, differingLines(lsLines(t, r.repo.path, ref), lsLines(t, other, ref)))
				}
			}
		}
	}
	checkAsTar(t, first, seed, raw, single)
}

// differingLines shows what only one of them has.
func differingLines(got, want []string) string {
	var b strings.Builder
	for _, l := range got {
		if !slices.Contains(want, l) {
			b.WriteString(" got " + l + "\n")
		}
	}
	for _, l := range want {
		if !slices.Contains(got, l) {
			b.WriteString("want " + l + "\n")
		}
	}
	return testutil.TailOf(b.String())
}

// extractEach extracts each layer with a plain tar -x, as root, and says on which it fails.
const extractEach = `umask 022; for f in *.tar; do mkdir "${f%.tar}" && tar -x -p -m -f "$f" --numeric-owner --same-owner --directory="${f%.tar}" 2>"$f.said" &&
	! [ -s "$f.said" ] || echo "${f%.tar}"; done`

var attributesField = regexp.MustCompile(` \{ .* \} `)

// checkAsTar holds the layers' trees, but for attributes, against those of tar -x where that has
// nothing to say.
func checkAsTar(t *testing.T, r *testRun, seed uint64, raw map[string][]byte, single bool) {
	t.Helper()
	dir, err := os.MkdirTemp(fastDir(), "extracted-") //nolint:usetesting // t.TempDir() is on disk
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	for name, layer := range raw {
		if err := os.WriteFile(filepath.Join(dir, path.Base(name)+".tar"), layer, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("sh", "-c", extractEach)
	cmd.Dir, cmd.Env = dir, []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C.UTF-8"}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	failed := strings.Fields(string(out))
	testutil.Run(t, "find", dir, "(", "-type", "b", "-o", "-type", "c", "-o", "-type", "p", "-o", "-name", "*.tar", "-o", "-name", "*.said", ")", "-delete")
	repo := newRepo(t, ostree.Archive)
	testutil.Run(t, "ostree", "commit", "--repo="+repo, "--branch=all/plain", "--tree=dir="+dir)
	extracted, imported := map[string][]string{}, map[string][]string{}
	split := func(to map[string][]string, lines []string, layer string) {
		for _, line := range lines {
			line = attributesField.ReplaceAllString(line, " ")
			at := strings.Index(line, " /") + 1
			name, in := layer, line[at:]
			if layer == "" {
				name, in, _ = strings.Cut(strings.TrimPrefix(in, "/"), "/")
				in = "/" + in
			}
			to[name] = append(to[name], line[:at]+in)
		}
	}
	split(extracted, lsLines(t, repo, "all/plain"), "")
	for ref := range r.commits(t) {
		if !strings.Contains(ref, "/tarsplit/") && !imageref.IsImage(ref) {
			if name := ""; single {
				name = path.Base(ref)
				split(imported, lsLines(t, r.repo.path, ref), name)
			} else {
				split(imported, lsLines(t, r.repo.path, ref), name)
			}
		}
	}
	compared := 0
	for name := range raw {
		layer := path.Base(name)
		// ostree ls cuts a name at its newline.
		if slices.Contains(failed, layer) || hasNewline(t, raw[name]) || replacesItsLink(t, raw[name]) {
			continue
		}
		compared++
		want, got := withoutHandedDown(t, raw[name], extracted[layer]), withoutHandedDown(t, raw[name], imported[layer])
		if !slices.Equal(want, got) {
			t.Errorf("seed %d, layer %s: tar -x has another tree\n%s%s", seed, name, differingLines(got, want), describe(raw[name]))
		}
	}
	t.Logf("seed %d: of %d layers tar extracted %d without a word", seed, len(raw), compared)
}

// hasNewline tells whether a layer has a name with a newline.
func hasNewline(t *testing.T, layer []byte) bool {
	t.Helper()
	return slices.ContainsFunc(headers(t, layer), func(hdr *tar.Header) bool { return strings.Contains(hdr.Name, "\n") })
}

// replacesItsLink tells whether a layer has an entry that a link leads to the link itself, such as
// a/a where a leads to ".". As with umoci it takes the link's place; tar removes the link, and then
// makes a directory a for it.
func replacesItsLink(t *testing.T, layer []byte) bool {
	t.Helper()
	all := headers(t, layer)
	return slices.ContainsFunc(all, func(link *tar.Header) bool {
		name := path.Clean("/" + link.Name)
		return link.Typeflag == tar.TypeSymlink && slices.ContainsFunc(all, func(hdr *tar.Header) bool {
			rest, below := strings.CutPrefix(path.Clean("/"+hdr.Name), name+"/")
			return below && path.Join(path.Dir(name), link.Linkname, rest) == name
		})
	})
}

// headers returns those of a layer.
func headers(t *testing.T, layer []byte) (all []*tar.Header) {
	t.Helper()
	for tr := tar.NewReader(bytes.NewReader(layer)); ; {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, hdr)
	}
}

// withoutHandedDown sorts the lines of a tree. Where the layer has a directory with the
// set-group-ID bit it leaves those out that get the bit from the kernel with tar, but not here:
// directories that the layer does not name, and private ones, whose mode tar takes for the one it made.
func withoutHandedDown(t *testing.T, layer []byte, lines []string) []string {
	t.Helper()
	exact := map[string]bool{}
	handsDown := false
	for _, hdr := range headers(t, layer) {
		private := hdr.Mode&0o077 == 0
		name := path.Clean("/" + hdr.Name)
		before, known := exact[name]
		exact[name] = !private && (before || !known)
		handsDown = handsDown || hdr.Typeflag == tar.TypeDir && hdr.Mode&0o2000 != 0
	}
	lines = slices.Clone(lines)
	slices.Sort(lines)
	return slices.DeleteFunc(lines, func(line string) bool {
		return handsDown && line[0] == 'd' && !exact[line[strings.Index(line, " /")+1:]]
	})
}

// describe lists an archive.
func describe(layer []byte) string {
	cmd := exec.Command("tar", "-tvPf", "-", "--numeric-owner", "--xattrs")
	cmd.Stdin = bytes.NewReader(layer)
	out, _ := cmd.CombinedOutput()
	return string(out)
}

// TestRandomLayers imports random layers with both engines in all modes. With
// OSTREE_IMAGE_LAYERS=N it tries N of them, with a fresh seed or that of OSTREE_IMAGE_SEED.
func TestRandomLayers(t *testing.T) {
	t.Parallel()
	testutil.NeedRoot(t)
	count, seed := 500, uint64(1)
	if n, ok := numberFrom(t, "OSTREE_IMAGE_LAYERS"); ok {
		count, seed = int(n), rand.Uint64()>>1
	}
	if n, ok := numberFrom(t, "OSTREE_IMAGE_SEED"); ok {
		seed = n
	}
	t.Logf("seed %d, %d layers", seed, count)
	t.Run("many in one", func(t *testing.T) {
		t.Parallel()
		checkRandomLayers(t, seed, count, false)
	})
	t.Run("each by itself", func(t *testing.T) {
		t.Parallel()
		checkRandomLayers(t, seed+1, 6, true)
	})
	t.Run("another user", func(t *testing.T) {
		t.Parallel()
		checkRandomLayersOfUser(t, seed+2, 60)
	})
}

// checkRandomLayersOfUser imports random layers in all ways as a user who is not root, and holds
// that they come to the same.
func checkRandomLayersOfUser(t *testing.T, seed uint64, n int) {
	t.Helper()
	dir := publicDir(t)
	r := newRandomSource(seed)
	r.opened = true
	image, _ := randomImage(t, r, n, false)
	for i, l := range image.layers {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%03d.tar", i)), l, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	asOtherUser(t, "TestRandomLayersOfUser", dir)
	read := func(e engineRun) map[string]string {
		commits := map[string]string{}
		b, err := os.ReadFile(filepath.Join(dir, e.String()+".json"))
		if err == nil {
			err = json.Unmarshal(b, &commits)
		}
		if err != nil {
			t.Fatal(err)
		}
		return commits
	}
	names := func(string) string { return fmt.Sprintf("seed %d", seed) }
	root := engineRun{ostree.Archive, engineStream, false}.importImage(t, image)
	want := map[engineRun]map[string]string{{ostree.Archive, engineTar, false}: read(engineRun{ostree.BareUser, engineTar, false})}
	for _, e := range allEngineRuns() {
		switch {
		case e.mode == ostree.Bare || e.mode == ostree.BareUserOnly:
			want[e] = read(engineRun{e.mode, engineStream, false})
		case e.engine == engineStream:
			want[e] = root.commits(t)
		}
	}
	for e, commits := range want {
		sameCommits(t, e.String()+" of another user", read(e), commits, names)
	}
	for _, l := range image.layers {
		ref := imageref.BlobRef(digest.FromBytes(l))
		got, err := os.ReadFile(filepath.Join(dir, path.Base(ref)+".list"))
		if err != nil {
			t.Fatal(err)
		}
		if want := withoutOwners(lsLines(t, root.repo.path, ref)); string(got) != strings.Join(want, "\n") {
			t.Errorf("seed %d, but for owners, the tar engine of another user has another tree:\n%s", seed, differingLines(strings.Split(string(got), "\n"), want))
		}
	}
}

var ownersOf = regexp.MustCompile(`^(\S+) \d+ \d+ `)

func withoutOwners(lines []string) []string {
	lines = slices.Clone(lines)
	for i := range lines {
		lines[i] = ownersOf.ReplaceAllString(lines[i], "$1 ")
	}
	return lines
}

// TestRandomLayersOfUser is the part of TestRandomLayers that another user runs.
func TestRandomLayersOfUser(t *testing.T) {
	dir := os.Getenv(asUserDir)
	if dir == "" {
		return
	}
	image := imageIn(t, dir)
	readOnly := archive(member{name: "ro", mode: 0o444, pax: xattrs("user.k", "1")}, member{name: "none", mode: -1, pax: xattrs("user.k", "1")}, hard("too", "none"))
	for _, e := range allEngineRuns() {
		r := e.importImage(t, image)
		if e == (engineRun{ostree.Archive, engineTar, false}) {
			for _, l := range image.layers {
				ref := imageref.BlobRef(digest.FromBytes(l))
				list := strings.Join(withoutOwners(lsLines(t, r.repo.path, ref)), "\n")
				if err := os.WriteFile(filepath.Join(dir, path.Base(ref)+".list"), []byte(list), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := os.WriteFile(filepath.Join(dir, e.String()+".json"), marshal(t, r.commits(t)), 0o644); err != nil {
			t.Fatal(err)
		}
		if e.mode == ostree.Bare || e.mode == ostree.BareUserOnly {
			continue
		}
		if err := r.importImage(t, "attributes", &testImage{layers: [][]byte{readOnly}}); err != nil {
			t.Errorf("%s: %v", e, err)
			continue
		}
		attribute := "0 { [(b'user.k', [byte 0x31])] }"
		want := []string{"d00755 /", "-00000 " + attribute + " /none", "-00444 " + attribute + " /ro", "-00000 " + attribute + " /too"}
		if got := withoutOwners(lsLines(t, r.repo.path, imageref.BlobRef(digest.FromBytes(readOnly)))); !slices.Equal(got, want) {
			t.Errorf("%s: %s", e, differingLines(got, want))
		}
	}
}
