package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"ostree-image/internal/imageref"
	"ostree-image/internal/ostree"
	"ostree-image/internal/testutil"
)

// accepted are the non-canonical layers that can be imported, each once.
func accepted(t testing.TB) []oddLayer {
	t.Helper()
	seen := map[string]string{}
	layers := slices.DeleteFunc(oddLayers(t), func(l oddLayer) bool { return l.refused != "" })
	for _, l := range layers {
		if other := seen[string(l.layer)]; other != "" {
			t.Fatalf("the layers %q and %q are the same", other, l.name)
		}
		seen[string(l.layer)] = l.name
	}
	return layers
}

// imageOf is one image of all the layers.
func imageOf(layers []oddLayer) *testImage {
	i := &testImage{}
	for _, l := range layers {
		i.layers = append(i.layers, l.layer)
	}
	return i
}

func (l oddLayer) ref() string  { return imageref.BlobRef(digest.FromBytes(l.layer)) }
func (l oddLayer) side() string { return imageref.SidecarRef(digest.FromBytes(l.layer)) }

// nameOf returns how the test calls the layer of a ref.
func nameOf(layers []oddLayer) func(string) string {
	names := map[string]string{}
	for _, l := range layers {
		names[l.ref()], names[l.side()] = l.name, l.name+", its side commit"
	}
	return func(ref string) string { return names[ref] }
}

// TestOddLayers imports all of them with both engines into repositories of all modes.
func TestOddLayers(t *testing.T) {
	t.Parallel()
	testutil.NeedRoot(t)
	whole := t
	layers := accepted(t)
	if len(layers) < 60 {
		t.Errorf("%d layers, and 60 are the least", len(layers))
	}
	t.Logf("%d layers", len(layers))
	commits := map[string]map[string]string{}
	// integration/015-odd.bats has non-canonical layers in all modes.
	for _, mode := range []string{ostree.Archive, ostree.BareUser} {
		runs := map[engineName]*testRun{}
		t.Run(mode, func(t *testing.T) {
			for _, engine := range []engineName{engineStream, engineTar} {
				t.Run(string(engine), func(t *testing.T) {
					r := newTestRun(t, testOptions{mode: mode, unpack: engine, repo: newSharedRepo(whole, mode)})
					if mode == ostree.Archive && engine == engineStream { // what comes of it is compared with the others'
						r.splitInto = 3
					}
					if err := r.importImage(t, "odd", imageOf(layers)); err != nil {
						t.Fatal(err)
					}
					fsck(t, r.repo.path)
					r.nothingInTmp(t)
					commits[mode+string(engine)] = r.commits(t)
					runs[engine] = r
				})
			}
			if t.Failed() {
				return
			}
			sameCommits(t, "the tar engine", commits[mode+"tar"], commits[mode+"stream"], nameOf(layers))
		})
		if mode == ostree.Archive {
			t.Run("as tar extracts them", func(t *testing.T) { checkPlain(t, runs[engineStream], layers) })
			t.Run("as they should be", func(t *testing.T) { checkWanted(t, runs[engineStream], layers) })
			t.Run("rebuilt", func(t *testing.T) { checkRebuilt(t, runs[engineStream], layers) })
		}
	}
	if commits[ostree.BareUser+"stream"] != nil && commits[ostree.Archive+"stream"] != nil { // not left out by -run, nor failed
		sameCommits(t, ostree.BareUser, commits[ostree.BareUser+"stream"], commits[ostree.Archive+"stream"], nameOf(layers))
	}
	t.Run("another user", func(t *testing.T) { checkOtherUser(t, commits[ostree.Archive+"stream"], layers) })
}

// newSharedRepo makes a repository that lasts as long as the whole test, in memory where that can
// be.
func newSharedRepo(t testing.TB, mode string) string {
	t.Helper()
	dir, err := os.MkdirTemp(fastDir(), "shared-") //nolint:usetesting // t.TempDir() is on disk
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "repo")
	testutil.Run(t, "ostree", "init", "--repo="+path, "--mode="+mode)
	return path
}

// fastDir is a directory in memory, if this machine has one where files can have attributes, or the
// usual one. A test that makes thousands of small files spends most of its time with those.
func fastDir() string {
	f, err := os.CreateTemp("/dev/shm", "attributes-")
	if err != nil {
		return ""
	}
	defer func() {
		_ = f.Close()
		_ = os.Remove(f.Name())
	}()
	if unix.Setxattr(f.Name(), "user.a", []byte(strings.Repeat("x", 5000)), 0) != nil {
		return ""
	}
	return "/dev/shm"
}

// checkPlain holds the layers' trees against those of a plain tar -x.
func checkPlain(t *testing.T, r *testRun, layers []oddLayer) {
	t.Helper()
	all := t.TempDir()
	raw := filepath.Join(t.TempDir(), "raw.tar")
	for i, l := range layers {
		if !l.plain {
			continue
		}
		d := filepath.Join(all, fmt.Sprint(i))
		if err := makeDir(d); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(raw, l.layer, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("sh", "-c", `umask 022; exec env -u TAR_OPTIONS LC_ALL=C.UTF-8 tar -x -p -m -f "$1" --numeric-owner --same-owner `+
			`--xattrs --xattrs-include='user.*' --xattrs-include=security.capability --directory="$2"`, "sh", raw, d).CombinedOutput()
		if err != nil {
			t.Errorf("%s: tar: %v\n%s", l.name, err, testutil.TailOf(string(out)))
		}
	}
	testutil.Run(t, "find", all, "(", "-type", "b", "-o", "-type", "c", "-o", "-type", "p", "-o", "-type", "s", ")", "-delete")
	repo := newRepo(t, ostree.Archive)
	testutil.Run(t, "ostree", "commit", "--repo="+repo, "--branch=all/plain", "--tree=dir="+all)
	want := map[string]string{}
	for line := range strings.Lines(testutil.Run(t, "ostree", "ls", "-C", "--repo="+repo, "all/plain")) {
		f := strings.Fields(line)
		want[strings.TrimPrefix(f[6], "/")] = f[4] + " " + f[5]
	}
	for i, l := range layers {
		if !l.plain {
			continue
		}
		f := strings.Fields(testutil.Run(t, "ostree", "ls", "-d", "-C", "--repo="+r.repo.path, l.ref(), "/"))
		if got := f[4] + " " + f[5]; got != want[fmt.Sprint(i)] {
			t.Errorf("%s: tree %s, want %s\nimported:\n%s\nextracted:\n%s", l.name, got, want[fmt.Sprint(i)],
				testutil.TailOf(testutil.Run(t, "ostree", "ls", "-RXC", "--repo="+r.repo.path, l.ref())),
				testutil.TailOf(testutil.Run(t, "ostree", "ls", "-RXC", "--repo="+repo, "all/plain", "/"+fmt.Sprint(i))))
		}
	}
}

var lsFields = regexp.MustCompile(`(?m)^([-dl][0-7]{5}) +(\d+) +(\d+) +(\d+) \{ (.*) \} (.*)$`)

// lsLines lists a tree: mode, owner, group, the size of what is no directory, attributes where
// there are any, name.
func lsLines(t testing.TB, repo, ref string) []string {
	t.Helper()
	var lines []string
	for _, f := range lsFields.FindAllStringSubmatch(testutil.Run(t, "ostree", "ls", "-R", "-X", "--repo="+repo, ref), -1) {
		line := strings.Join(f[1:4], " ")
		if f[1][0] != 'd' {
			line += " " + f[4]
		}
		if f[5] != "@a(ayay) []" {
			line += " { " + f[5] + " }"
		}
		lines = append(lines, line+" "+f[6])
	}
	return lines
}

// checkWanted holds the layers that are not plain against what their row says.
func checkWanted(t *testing.T, r *testRun, layers []oddLayer) {
	t.Helper()
	for _, l := range layers {
		if l.plain {
			continue
		}
		got := lsLines(t, r.repo.path, l.ref())
		want := l.want
		if len(want) == 0 || !strings.HasSuffix(want[0], " /") {
			want = append([]string{"d00755 0 0 /"}, want...)
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s:\n got %s\nwant %s", l.name, strings.Join(got, "\n     "), strings.Join(want, "\n     "))
		}
	}
}

// checkRebuilt holds that every layer's bytes can be given back.
func checkRebuilt(t *testing.T, r *testRun, layers []oddLayer) {
	t.Helper()
	refs := r.commits(t)
	for _, l := range layers {
		t.Run(l.name, func(t *testing.T) {
			info, err := r.repo.commitInfo(t.Context(), l.ref())
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]string{
				imageref.KeySize: fmt.Sprint(len(l.layer)), imageref.KeyUncompressedSize: fmt.Sprint(len(l.layer)), imageref.KeyUncompressedDigest: digest.FromBytes(l.layer).String(),
			}
			for k, v := range want {
				testutil.SameText(t, k, info.Metadata[k], v)
			}
			record := []byte(nil)
			inline, isInline := info.Metadata[imageref.KeyTarSplit]
			if isInline {
				if record, err = base64.StdEncoding.DecodeString(inline); err != nil {
					t.Fatal(err)
				}
			}
			var files []string
			if refs[l.side()] != "" {
				for _, line := range lsLines(t, r.repo.path, l.side()) {
					files = append(files, line[strings.LastIndex(line, "/"):])
				}
			}
			slices.Sort(files)
			switch {
			case l.inexact:
				if isInline || !slices.Equal(files, []string{"/", "/blob"}) {
					t.Errorf("inline %t, side commit %q, want the blob in it", isInline, files)
				}
				got, err := r.repo.catFile(t.Context(), l.side(), imageref.FileBlob, 64<<20)
				if err != nil || string(got) != string(l.layer) {
					t.Errorf("the blob that is kept is another, %v", err)
				}
				return
			case !isInline && slices.Equal(files, []string{"/", "/tar-split.json.gz"}):
				if record, err = r.repo.catFile(t.Context(), l.side(), imageref.FileTarSplit, 64<<20); err != nil {
					t.Fatal(err)
				}
			case !isInline || files != nil:
				t.Fatalf("inline %t, side commit %q, want one of them", isInline, files)
			}
			if got := rebuildLayer(t, r, l.ref(), record); string(got) != string(l.layer) {
				t.Errorf("the layer that was rebuilt has other bytes: %d, want %d", len(got), len(l.layer))
			}
		})
	}
}

// checkOtherUser imports the layers as a user who is not root.
func checkOtherUser(t *testing.T, root map[string]string, layers []oddLayer) {
	t.Helper()
	dir := publicDir(t)
	for i, l := range layers {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%03d.tar", i)), l.layer, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	asOtherUser(t, "TestAsAnotherUser", dir)
	commits := map[string]map[string]string{}
	for _, mode := range []string{ostree.Archive, ostree.Bare, ostree.BareUser, ostree.BareUserOnly} {
		for _, engine := range []engineName{engineStream, engineTar} {
			run := mode + "-" + string(engine)
			got := map[string]string{}
			b, err := os.ReadFile(filepath.Join(dir, run+".json"))
			if err == nil {
				err = json.Unmarshal(b, &got)
			}
			if err != nil {
				t.Fatal(err)
			}
			commits[run] = got
		}
	}
	for _, run := range []string{ostree.Archive + "-stream", ostree.BareUser + "-stream"} {
		sameCommits(t, run+" of another user", commits[run], root, nameOf(layers))
	}
	// In these modes the tar engine has no exception of its own.
	for _, mode := range []string{ostree.Bare, ostree.BareUserOnly} {
		sameCommits(t, mode+" of another user, the tar engine", commits[mode+"-tar"], commits[mode+"-stream"], nameOf(layers))
	}
	sameCommits(t, "archive of another user, the tar engine", commits[ostree.Archive+"-tar"], commits[ostree.BareUser+"-tar"], nameOf(layers))
}

// imageIn is the image of the layers that lie in dir for another user.
func imageIn(t *testing.T, dir string) *testImage {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.tar"))
	if err != nil {
		t.Fatal(err)
	}
	image := &testImage{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		image.layers = append(image.layers, b)
	}
	return image
}

// TestAsAnotherUser is the part of TestOddLayers that another user runs.
func TestAsAnotherUser(t *testing.T) {
	dir := os.Getenv(asUserDir)
	if dir == "" {
		return
	}
	all := imageIn(t, dir)
	some := imageOf(someLayers(t))
	defer syscall.Umask(syscall.Umask(0o077))
	tests := []struct {
		mode   string
		engine engineName
		image  *testImage
	}{
		{ostree.Archive, engineStream, all},
		{ostree.BareUser, engineStream, all},
		{ostree.BareUserOnly, engineStream, some},
		{ostree.Bare, engineStream, some},
		{ostree.Archive, engineTar, some},
		{ostree.BareUser, engineTar, some},
		{ostree.BareUserOnly, engineTar, some},
		{ostree.Bare, engineTar, some},
	}
	for _, tt := range tests {
		t.Run(tt.mode+" "+string(tt.engine), func(t *testing.T) {
			r := newTestRun(t, testOptions{mode: tt.mode, unpack: tt.engine})
			if err := r.importImage(t, "odd", tt.image); err != nil {
				t.Fatal(err)
			}
			fsck(t, r.repo.path)
			r.nothingInTmp(t)
			if err := os.WriteFile(filepath.Join(dir, tt.mode+"-"+string(tt.engine)+".json"), marshal(t, r.commits(t)), 0o644); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// someLayers are those where a user who is not root gets exceptions.
func someLayers(t testing.TB) []oddLayer {
	t.Helper()
	names := []string{"all kinds", "modes", "owners", "attributes", "unreadable directories", "root", "root later", "root closed", "odd names", "order of directories", "coming back to closed directories"}
	layers := slices.DeleteFunc(oddLayers(t), func(l oddLayer) bool { return !slices.Contains(names, l.name) })
	if len(layers) != len(names) {
		t.Fatalf("%d layers, want %d", len(layers), len(names))
	}
	return layers
}

func TestRefusedLayers(t *testing.T) {
	t.Parallel()
	for _, engine := range []engineName{engineStream, engineTar} {
		t.Run(string(engine), func(t *testing.T) {
			t.Parallel()
			r := newTestRun(t, testOptions{mode: ostree.Archive, unpack: engine})
			for _, l := range oddLayers(t) {
				if l.refused == "" {
					continue
				}
				t.Run(l.name, func(t *testing.T) {
					err := r.importImage(t, "odd", imageOf([]oddLayer{{layer: archive(file("good", l.name))}, l}))
					testutil.SameText(t, "error", testutil.ErrText(err), "importing: layer "+digest.FromBytes(l.layer).Encoded()+": "+l.refused)
					r.nothingLeft(t)
				})
			}
			fsck(t, r.repo.path)
		})
	}
}

// rebuildLayer puts a layer's bytes together again, from what tar-split recorded and the files of
// its tree.
func rebuildLayer(t testing.TB, r *testRun, ref string, record []byte) []byte {
	t.Helper()
	paths, sizes := recorded(t, record)
	rc, err := r.repo.cat(context.Background(), ref, paths...)
	if len(paths) == 0 {
		return assemble(t, record, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rc.Close() }()
	contents := map[string][]byte{}
	for i, p := range paths {
		contents[p] = testutil.ReadN(t, rc, sizes[i])
	}
	if rest := testutil.ReadN(t, rc, -1); len(rest) > 0 {
		t.Errorf("ostree cat gave %d bytes too many", len(rest))
	}
	return assemble(t, record, contents)
}
