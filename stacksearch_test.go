package main

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"ostree-image/internal/normalize"
	"ostree-image/internal/ostree"
	"ostree-image/internal/testutil"
	"ostree-image/internal/workdir"
)

// The search for stacks of layers of which a checkout makes something else than umoci.
// OSTREE_IMAGE_STACKS is how many are tried, in all modes then, and OSTREE_IMAGE_SEED where to
// begin.

const (
	fewStacks      = 24
	fewLayers      = 12 // in the one pool that these are made of
	stacksPerPool  = 100
	layersPerPool  = 24
	entriesInLayer = 9
)

// stackDifference is where a checkout is meant to differ from umoci.
type stackDifference struct {
	umoci *regexp.Regexp // what umoci says of a stack that it refuses
	why   string         // what the checkout does, and for which reason
}

var stackDifferences = []stackDifference{
	{
		regexp.MustCompile(`mkdir parent: mkdir .*: (not a directory|file exists)`),
		"a name leads through what is a file in a layer below: the layer says that it is a directory, so it becomes one, and a device is not there at all",
	},
	{
		regexp.MustCompile(`link: (no such file or|not a) directory`),
		"a hard link to what is not there: a warning, and the empty file that the layer's commit has; to a device of a layer below, too",
	},
	{
		regexp.MustCompile(`link: operation not permitted`),
		"a hard link to a directory: refused, or, where a whiteout of the same layer has removed that, as if it were not there",
	},
	{
		regexp.MustCompile(`too many levels of symbolic links`),
		"a name leads through more than 40 links: refused with the name",
	},
}

// randomStackLayer makes a layer of few names, so that they meet.
func randomStackLayer(r *rand.Rand) []tarItem {
	pick := func(from ...string) string { return from[r.IntN(len(from))] }
	// Directories, links and files have names of their own, most of the time.
	name := func(last ...string) string {
		n := ""
		for r.IntN(5) < 3 && len(n) < 6 {
			n += pick("a", "a", "b", "l") + "/"
		}
		if r.IntN(8) == 0 {
			last = []string{"a", "b", "l", "m", "f", "g"}
		}
		return n + pick(last...)
	}
	var items []tarItem
	var files []string
	add := func(i tarItem) {
		i.ModTime = time.Unix(r.Int64N(2e9), r.Int64N(1e9))
		if r.IntN(2) == 0 {
			i.ModTime = time.Unix(1500000000+r.Int64N(3), 0)
		}
		if r.IntN(4) == 0 {
			i = i.own(r.IntN(3), r.IntN(3))
		}
		items = append(items, i)
	}
	again := func(n string) string { // what this layer has named before
		if len(items) > 0 && r.IntN(4) == 0 {
			return strings.TrimSuffix(items[r.IntN(len(items))].Name, "/")
		}
		return n
	}
	whiteout := func(n string) string {
		return filepath.Join(filepath.Dir(n), normalize.WhiteoutPrefix+filepath.Base(n))
	}
	for range 1 + r.IntN(entriesInLayer) {
		switch k := r.IntN(100); {
		case k < 34:
			n := again(name("f", "g"))
			files = append(files, n)
			add(tFile(n, fmt.Sprint(r.IntN(4))).mode(int64(0o600 + r.IntN(2)*0o44)))
		case k < 50:
			add(tDir(again(name("a", "b")), int64(0o700+r.IntN(2)*0o55)))
		case k < 68:
			add(tSym(again(name("l", "m")), pick("", "/", "../", "./")+name("a", "b", "l")))
		case k < 76 && len(files) > 0:
			add(tHard(again(name("f", "g", "h")), files[len(files)-1]))
		case k < 86:
			add(tWh(name("f", "g", "a", "b", "l")))
		case k < 90:
			add(tOpaque(name("a", "b", "l")))
		case k < 91:
			add(tOpaque(""))
		case k < 92:
			add(tDevice(name("f", "g", "n"), pick("3", "6")[0]))
		case k < 93:
			add(tDir(".", 0o711))
		case k < 94:
			add(tFile(whiteout(name("f", "a")), "not empty"))
		case k < 95:
			add(tSym(whiteout(name("f", "a")), name("a")))
		case k < 96:
			add(tDir(whiteout(name("f", "a")), 0o750))
		case k < 97:
			add(tFile(whiteout(name("f", "a"))+"/"+pick("a", ".wh.b"), "below"))
		default:
			add(tDir(name("a", "b"), 0o755).x("user.a", "1"))
		}
	}
	return items
}

// stackPool is many layers in one image, which stacks are then made of.
type stackPool struct {
	blobs  [][]byte
	runs   map[string]*testRun
	stored map[string][]*storedBlob // by mode
	layout string
}

// randomStackLayers makes so many layers that can be imported.
func randomStackLayers(t *testing.T, r *rand.Rand, n int) [][]byte {
	t.Helper()
	var blobs [][]byte
	seen := map[digest.Digest]bool{}
	for len(blobs) < n {
		blob := stackTar(t, randomStackLayer(r))
		d := digest.FromBytes(blob)
		if !seen[d] && filterPlanned(blob, permissions{}, normalize.Limits{}, io.Discard) == nil {
			blobs = append(blobs, blob)
		}
		seen[d] = true
	}
	return blobs
}

// newStackPool imports layers into a repository of each of the modes.
func newStackPool(t *testing.T, blobs [][]byte, modes []string) *stackPool {
	t.Helper()
	p := &stackPool{blobs: blobs, runs: map[string]*testRun{}, stored: map[string][]*storedBlob{}, layout: filepath.Join(t.TempDir(), "layout")}
	pool := &testImage{layers: p.blobs}
	for _, mode := range modes {
		o := testOptions{mode: mode}
		if first := p.runs[modes[0]]; first != nil && mode != ostree.BareUserOnly {
			o = testOptions{repo: pullCommits(t, first.repo.path, mode)}
		}
		run := newTestRun(t, o)
		p.runs[mode] = run
		if o.repo == "" {
			if err := run.importImage(t, "pool", pool); err != nil {
				t.Fatal(err)
			}
		}
		store, err := openBlobStore(t.Context(), run.repo)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range p.blobs {
			stored, err := store.blob(t.Context(), digest.FromBytes(b))
			if err != nil {
				t.Fatal(err)
			}
			p.stored[mode] = append(p.stored[mode], stored)
		}
	}
	return p
}

// checkout checks a stack out.
func (p *stackPool) checkout(ctx context.Context, s *settings, mode, dir string, stack []int) error {
	store, err := openBlobStore(ctx, &repository{path: p.runs[mode].repo.path, run: s.runner})
	if err != nil {
		return err
	}
	var layers []*storedBlob
	for _, n := range stack {
		layers = append(layers, p.stored[mode][n])
	}
	return checkoutLayers(ctx, store, s, layers, mode, dir, ostree.CheckoutOptions{})
}

// describe says what a stack is made of.
func (p *stackPool) describe(stack []int) string {
	var b strings.Builder
	for _, n := range stack {
		b.WriteString("\nlayer:\n" + describe(p.blobs[n]))
	}
	return b.String()
}

// numberFrom returns a number from the environment. ok is false where there is none.
func numberFrom(t testing.TB, name string) (n uint64, ok bool) {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return 0, false
	}
	n, err := strconv.ParseUint(text, 10, 63)
	if err != nil {
		t.Fatal(err)
	}
	return n, true
}

// TestSearchStacks holds random stacks against what umoci makes of them.
func TestSearchStacks(t *testing.T) {
	testutil.NeedRoot(t)
	testutil.NeedTools(t, "umoci", "ostree", "tar")
	stacks, layers, seed := fewStacks, fewLayers, uint64(1)
	wanted, all := numberFrom(t, "OSTREE_IMAGE_STACKS")
	if all {
		stacks, layers, seed = int(wanted), layersPerPool, rand.Uint64N(1<<32)
	}
	if n, ok := numberFrom(t, "OSTREE_IMAGE_SEED"); ok {
		seed = n
	}
	t.Logf("OSTREE_IMAGE_STACKS=%d OSTREE_IMAGE_SEED=%d", stacks, seed)
	modes := []string{ostree.Bare, ostree.BareUser, ostree.Archive, ostree.BareUserOnly}
	var mu sync.Mutex
	counts := map[string]int{}
	count := func(what string) {
		mu.Lock()
		defer mu.Unlock()
		counts[what]++
	}
	for done := 0; done < stacks; done += stacksPerPool {
		r := rand.New(rand.NewPCG(seed, uint64(done)))
		t.Run(fmt.Sprint("from ", done), func(t *testing.T) {
			pool := newStackPool(t, randomStackLayers(t, r, layers), modes)
			tried := make([][]int, min(stacksPerPool, stacks-done))
			images := map[string]*testImage{}
			for n := range tried {
				var blobs [][]byte
				for range 2 + r.IntN(3) {
					layer := r.IntN(len(pool.blobs))
					tried[n], blobs = append(tried[n], layer), append(blobs, pool.blobs[layer])
				}
				images[fmt.Sprint("stack-", n)] = (&testImage{layers: blobs}).Finish(t)
			}
			writeLayout(t, pool.layout, images)
			for n, stack := range tried {
				t.Run(fmt.Sprint("stack ", done+n), func(t *testing.T) {
					t.Parallel()
					tryModes := modes
					if !all {
						tryModes = []string{modes[n%len(modes)]}
					}
					pool.try(t, n, stack, tryModes, count)
				})
			}
		})
	}
	t.Log(counts)
	if counts["as umoci"] < stacks/2 {
		t.Errorf("umoci takes only %d of %d", counts["as umoci"], stacks)
	}
}

// try holds one stack against umoci.
func (p *stackPool) try(t *testing.T, n int, stack []int, modes []string, count func(string)) {
	t.Helper()
	began := time.Now()
	dir := t.TempDir()
	cmd := exec.Command("umoci", "raw", "unpack", "--image", fmt.Sprintf("%s:stack-%d", p.layout, n), dir+"/umoci")
	var want map[string]testutil.Node
	refused, err := cmd.CombinedOutput()
	if err == nil {
		want = testutil.TreeOf(t, dir+"/umoci")
		dropDevices(want)
	}
	for _, mode := range modes {
		s := newTestRun(t, testOptions{repo: p.runs[mode].repo.path}).settings
		if s.divideFrom = 1 << 40; n%8 == 0 { // of some, every layer is divided
			s.divideFrom = 0
		}
		root := filepath.Join(dir, mode)
		oerr := p.checkout(t.Context(), s, mode, root, stack)
		switch {
		case want == nil:
			known := slices.IndexFunc(stackDifferences, func(d stackDifference) bool { return d.umoci.Match(refused) })
			if known < 0 {
				t.Errorf("umoci refuses it, the checkout says %v: %s", oerr, testutil.TailOf(string(refused)))
			}
			count(fmt.Sprintf("refused by umoci (%d), %v here", known, oerr != nil))
		case oerr != nil:
			t.Errorf("%s: %v", mode, oerr)
		case mode == ostree.BareUserOnly:
			count("as umoci")
			compareCopies(t, mode, canonical(testutil.TreeOf(t, root)), canonical(maps.Clone(want)), began, testutil.Node.String)
		default:
			count("as umoci")
			compareCopies(t, mode, testutil.TreeOf(t, root), want, began, testutil.Node.String)
		}
		if n%6 == 0 && oerr == nil {
			p.replay(t, mode, stack, dir)
		}
	}
	if t.Failed() {
		t.Log(p.describe(stack))
	}
}

// replay holds what the record of a checkout makes against the checkout itself.
func (p *stackPool) replay(t *testing.T, mode string, stack []int, dir string) {
	t.Helper()
	s := newTestRun(t, testOptions{repo: p.runs[mode].repo.path}).settings
	j, record := s.journal, filepath.Join(dir, "record")
	var err error
	if j.record, err = newRecorder(record, s.runner); err != nil {
		t.Fatal(err)
	}
	root, again := filepath.Join(dir, "recorded"), filepath.Join(dir, "replayed")
	if err := p.checkout(t.Context(), s, mode, root, stack); err != nil {
		t.Fatal(err)
	}
	if err := j.record.Finish(nil, 0, nil); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", filepath.Join(record, "commands.sh"))
	cmd.Env = append(os.Environ(), "WORK="+t.TempDir(), "OUT="+again, "REPO="+p.runs[mode].repo.path, "LC_ALL=C.UTF-8")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s, replayed: %v: %s", mode, err, testutil.TailOf(string(out)))
	}
	compareCopies(t, mode+", replayed", testutil.TreeOf(t, again), testutil.TreeOf(t, root), time.Now(), testutil.Node.String)
	for _, d := range []string{root, again, record} {
		if err := workdir.RemoveTree(d); err != nil {
			t.Fatal(err)
		}
	}
}

// canonical makes nodes what a bare-user-only repository holds of them.
func canonical(nodes map[string]testutil.Node) map[string]testutil.Node {
	for name, n := range nodes {
		n.Owner, n.Xattrs = "0:0", ""
		if n.Kind != fs.ModeSymlink {
			n.Perm &= 0o755
		}
		nodes[name] = n
	}
	return nodes
}
