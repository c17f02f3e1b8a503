package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/types"

	"ostree-image/internal/layer"
	"ostree-image/internal/ostree"
	"ostree-image/internal/testutil"
	"ostree-image/internal/ui"
)

// TestMain makes the test binary a tool where it is called by a name that says so.
func TestMain(m *testing.M) {
	testutil.FakeToolMain()
	if filepath.Base(os.Args[0]) == "parent-of-sleeper" {
		os.Exit(parentOfSleeper())
	}
	os.Exit(runTests(m))
}

// runTests keeps what the tests prove of blobs apart from what the user has.
func runTests(m *testing.M) int {
	cache, err := os.MkdirTemp("", "ostree-image-cache-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(cache) }()
	_ = os.Setenv("XDG_CACHE_HOME", cache)
	return m.Run()
}

// testRun is what a test imports with.
type testRun struct {
	*settings
	said *testutil.SyncBuffer // standard error
	repo *repository
}

// testOptions are what a testRun can have beside the defaults.
type testOptions struct {
	mode        string // of the repository, bare-user if ""
	repo        string // one that exists, instead of a new one
	ostree, tar string
	unpack      engineName
	log         string
	timeout     time.Duration
	tmpdir      string
	preserve    bool
	timestamp   *int64
}

func newTestRun(t testing.TB, o testOptions) *testRun {
	t.Helper()
	testutil.NeedTools(t, "ostree", "tar")
	said := &testutil.SyncBuffer{}
	j, err := openJournal(o.log, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.close() })
	orElse := func(s, other string) string {
		if s == "" {
			return other
		}
		return s
	}
	s := &settings{
		proven: newProvenCommits(), stderr: said, journal: j, progress: ui.NewProgress(said, ui.Plain), noFsync: true, tmpdir: o.tmpdir,
		unpack: engineName(orElse(string(o.unpack), string(engineAuto))), preserveDigests: o.preserve, timestamp: o.timestamp,
	}
	s.runner = newRunner(orElse(o.ostree, "ostree"), orElse(o.tar, "tar"), o.timeout, j)
	path := o.repo
	if path == "" {
		path = newRepo(t, orElse(o.mode, ostree.BareUser))
	}
	return &testRun{settings: s, said: said, repo: &repository{path: path, run: s.runner}}
}

// newRepo makes a repository.
func newRepo(t testing.TB, mode string) string {
	t.Helper()
	testutil.NeedTools(t, "ostree")
	path := filepath.Join(t.TempDir(), "repo")
	testutil.Run(t, "ostree", "init", "--repo="+path, "--mode="+mode)
	return path
}

// testImage is an image to import.
type testImage struct {
	layers   [][]byte
	types    []string // media types of the layers, tar where it is shorter
	config   []byte   // "" for one that fits
	confType string   // the config's media type
	manifest []byte   // "" for one that fits
}

var testPlatform = imgspecv1.Platform{OS: "linux", Architecture: "riscv64"}

func (i *testImage) Finish(t testing.TB) *testImage {
	t.Helper()
	if i.confType == "" {
		i.confType = imgspecv1.MediaTypeImageConfig
	}
	for len(i.types) < len(i.layers) {
		i.types = append(i.types, imgspecv1.MediaTypeImageLayer)
	}
	if i.config == nil {
		c := imgspecv1.Image{Platform: testPlatform, RootFS: imgspecv1.RootFS{Type: "layers"}}
		for _, l := range i.layers {
			c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, diffIDOf(l))
		}
		i.config = marshal(t, c)
	}
	if i.manifest == nil {
		m := imgspecv1.Manifest{MediaType: imgspecv1.MediaTypeImageManifest}
		m.SchemaVersion = 2
		m.Config = imgspecv1.Descriptor{MediaType: i.confType, Digest: digest.FromBytes(i.config), Size: int64(len(i.config))}
		m.Layers = []imgspecv1.Descriptor{}
		for n, l := range i.layers {
			m.Layers = append(m.Layers, imgspecv1.Descriptor{MediaType: i.types[n], Digest: digest.FromBytes(l), Size: int64(len(l))})
		}
		i.manifest = marshal(t, m)
	}
	return i
}

// diffIDOf returns the digest of a layer's tar stream, and that of its bytes where they are none.
func diffIDOf(content []byte) digest.Digest {
	stream, _, err := layer.Decompress(bytes.NewReader(content), func() {})
	if err != nil {
		return digest.FromBytes(content)
	}
	defer func() { _ = stream.Close() }()
	sum, err := digest.FromReader(stream)
	if err != nil {
		return digest.FromBytes(content)
	}
	return sum
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// testSys asks for the platform that testImages are for.
var testSys = &types.SystemContext{OSChoice: testPlatform.OS, ArchitectureChoice: testPlatform.Architecture}

// destination begins a copy to an image of the repository.
func (r *testRun) destination(t testing.TB, name string) *destination {
	t.Helper()
	ref, err := newReference(ostreeTransport{r.settings}, name, r.repo.path)
	if err != nil {
		t.Fatal(err)
	}
	d, err := newDestination(t.Context(), ref, testSys)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// put does what the library does with a destination: layers that are not there, the config, the
// manifest, the end.
func put(ctx context.Context, d *destination, i *testImage) (err error) {
	defer func() {
		if cerr := d.Close(); err == nil {
			err = cerr
		}
	}()
	var copies sync.WaitGroup
	failures := make([]error, len(i.layers))
	slots := make(chan struct{}, 6)
	for n, l := range i.layers {
		copies.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			info := types.BlobInfo{Digest: digest.FromBytes(l), Size: int64(len(l)), MediaType: i.types[n]}
			reused, _, err := d.TryReusingBlob(ctx, info, nil, false)
			if err == nil && !reused {
				_, err = d.PutBlob(ctx, bytes.NewReader(l), info, nil, false)
			}
			failures[n] = err
		})
	}
	copies.Wait()
	for _, err := range failures {
		if err != nil {
			return err
		}
	}
	info := types.BlobInfo{Digest: digest.FromBytes(i.config), Size: int64(len(i.config)), MediaType: i.confType}
	if _, err := d.PutBlob(ctx, bytes.NewReader(i.config), info, nil, true); err != nil {
		return err
	}
	if err := d.PutManifest(ctx, i.manifest, nil); err != nil {
		return err
	}
	return d.Commit(ctx, nil)
}

// importImage imports an image under a name.
func (r *testRun) importImage(t testing.TB, name string, i *testImage) error {
	t.Helper()
	return put(t.Context(), r.destination(t, name), i.Finish(t))
}

// commits returns the commits of all refs.
func (r *testRun) commits(t testing.TB) map[string]string {
	t.Helper()
	return refCommits(t, r.repo.path)
}

func refCommits(t testing.TB, repo string) map[string]string {
	t.Helper()
	refs := strings.Fields(testutil.Run(t, "ostree", "refs", "--repo="+repo))
	commits := map[string]string{}
	if len(refs) == 0 {
		return commits
	}
	slices.Sort(refs)
	sums := strings.Fields(testutil.Run(t, "ostree", append([]string{"rev-parse", "--repo=" + repo}, refs...)...))
	for i, r := range refs {
		commits[r] = sums[i]
	}
	return commits
}

// sameCommits compares what two repositories hold.
func sameCommits(t testing.TB, what string, got, want map[string]string, name func(ref string) string) {
	t.Helper()
	for ref, sum := range want {
		if got[ref] != sum {
			t.Errorf("%s: %s (%s) is %q, want %q", what, ref, name(ref), got[ref], sum)
		}
	}
	for ref := range got {
		if want[ref] == "" {
			t.Errorf("%s: %s (%s) is there and should not be", what, ref, name(ref))
		}
	}
}

func fsck(t testing.TB, repo string) {
	t.Helper()
	testutil.Run(t, "ostree", "fsck", "--quiet", "--repo="+repo)
}

// nothingLeft holds that a failed import left no ref, no file and no process.
func (r *testRun) nothingLeft(t testing.TB) {
	t.Helper()
	if refs := testutil.Run(t, "ostree", "refs", "--repo="+r.repo.path); refs != "" {
		t.Errorf("refs are left: %s", refs)
	}
	r.nothingInTmp(t)
	if found := testutil.ProcessesOf(r.repo.path); len(found) > 0 {
		t.Errorf("processes are left: %q", found)
	}
}

func (r *testRun) nothingInTmp(t testing.TB) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(r.repo.path, "tmp"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "cache" {
			t.Errorf("%s is left in the repository's tmp/", e.Name())
		}
	}
}
