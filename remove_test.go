package main

import (
	gotar "archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"go.podman.io/image/v5/types"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/imageref"
	"ostree-image/internal/ostree"
	"ostree-image/internal/testutil"
)

// removeAll removes images by name.
func (r *testRun) removeAll(t testing.TB, prune bool, names ...string) error {
	t.Helper()
	var images []removal
	for _, n := range names {
		images = append(images, removal{image: r.reference(t, n)})
	}
	return removeImages(t.Context(), r.settings, r.repo, images, removeOptions{noPrune: !prune})
}

// allWell holds that every image that is there verifies, and that there are n.
func (r *testRun) allWell(t testing.TB, n int) {
	t.Helper()
	results, err := verifyImages(t.Context(), r.settings, r.repo, nil, 2)
	if err != nil {
		t.Fatal(err)
	}
	if n >= 0 && len(results) != n {
		t.Errorf("%d images, want %d", len(results), n)
	}
	for _, result := range results {
		if !result.OK {
			t.Errorf("%s: %+v", result.Name, result.Problems)
		}
	}
	fsck(t, r.repo.path)
}

func TestRemoveKeepsWhatOthersNeed(t *testing.T) {
	for _, mode := range []string{ostree.Bare, ostree.Archive} {
		t.Run(mode, func(t *testing.T) {
			r := newTestRun(t, testOptions{mode: mode})
			small := smallImage(t)
			for _, name := range []string{"a", "b"} {
				if err := r.importImage(t, name, small); err != nil {
					t.Fatal(err)
				}
			}
			// Shares a layer with both.
			if err := r.importImage(t, "c", &testImage{layers: [][]byte{small.layers[1], otherImage(t).layers[0]}}); err != nil {
				t.Fatal(err)
			}
			// Of others, and not of ours: a branch and its history.
			files := t.TempDir()
			if err := os.WriteFile(filepath.Join(files, "theirs"), []byte("theirs\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			first := strings.TrimSpace(testutil.Run(t, "ostree", "commit", "--repo="+r.repo.path, "--branch=their/branch", "--tree=dir="+files))
			if err := os.WriteFile(filepath.Join(files, "more"), []byte("more\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			testutil.Run(t, "ostree", "commit", "--repo="+r.repo.path, "--branch=their/branch", "--tree=dir="+files)

			if err := r.removeAll(t, true, "a", "a"); err != nil {
				t.Errorf("one image, named twice: %v", err)
			}
			r.allWell(t, 2)
			if err := r.removeAll(t, true, "b", "missing", "c"); errdefs.ExitStatus(t.Context(), err) != errdefs.StatusNotFound {
				t.Errorf("removing one that is not there: %v", err)
			}
			r.allWell(t, 2)
			if err := r.removeAll(t, false, "b"); err != nil {
				t.Error(err)
			}
			r.allWell(t, 1)
			blobs := r.commits(t)
			would, err := pruneRepository(t.Context(), r.settings, r.repo, true, func([]string) {})
			if err != nil || len(would) != 2 { // the layer that only small has, and its config
				t.Errorf("prune would remove %v: %v", would, err)
			}
			sameCommits(t, "after a dry run", r.commits(t), blobs, func(string) string { return "" })
			did, err := pruneRepository(t.Context(), r.settings, r.repo, false, func([]string) {})
			if err != nil || !slices.Equal(did, would) {
				t.Errorf("prune has removed %v: %v", did, err)
			}
			r.sameLayers(t, "c", &testImage{layers: [][]byte{small.layers[1], otherImage(t).layers[0]}}, [][]byte{small.layers[1], otherImage(t).layers[0]})
			r.allWell(t, 1)
			if err := r.reference(t, "c").DeleteImage(t.Context(), nil); err != nil {
				t.Error(err)
			}
			if refs := strings.Fields(testutil.Run(t, "ostree", "refs", "--repo="+r.repo.path)); !slices.Equal(refs, []string{"their/branch"}) {
				t.Errorf("refs are %q", refs)
			}
			if text := testutil.Run(t, "ostree", "cat", "--repo="+r.repo.path, first, "/theirs") + testutil.Run(t, "ostree", "cat", "--repo="+r.repo.path, "their/branch", "/more"); text != "theirs\nmore\n" {
				t.Errorf("of others is left: %q", text)
			}
			commits := 0
			for _, o := range objects(t, r.repo.path) {
				if filepath.Ext(o) == ".commit" {
					commits++
				}
			}
			if commits != 2 {
				t.Errorf("%d commits are left", commits)
			}
		})
	}
}

// theirs makes commits of others: one that no ref names, a history of two whose branch is gone, and
// one of which only the commit object is there. It returns those that no ref names.
func theirs(t *testing.T, repo string) []string {
	t.Helper()
	var unnamed []string
	files := t.TempDir()
	commit := func(repo string, args ...string) string {
		if err := os.WriteFile(filepath.Join(files, "theirs"), []byte(fmt.Sprintln("theirs", len(unnamed))), 0o644); err != nil {
			t.Fatal(err)
		}
		sum := strings.TrimSpace(testutil.Run(t, "ostree", append([]string{"commit", "--repo=" + repo, "--tree=dir=" + files}, args...)...))
		unnamed = append(unnamed, sum)
		return sum
	}
	commit(repo, "--orphan")
	commit(repo, "--branch=their/branch")
	commit(repo, "--branch=their/branch")
	testutil.Run(t, "ostree", "refs", "--repo="+repo, "--delete", "their/branch")
	other := newRepo(t, ostree.Archive)
	testutil.Run(t, "ostree", "pull-local", "--repo="+repo, "--commit-metadata-only", other, commit(other, "--branch=partial"))
	return unnamed
}

// Only prune removes commits of others that no ref names, and says so before.
func TestRemoveKeepsUnnamedCommits(t *testing.T) {
	for _, mode := range []string{ostree.BareUser, ostree.Archive} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			r := newTestRun(t, testOptions{mode: mode})
			unnamed := theirs(t, r.repo.path)
			before := objects(t, r.repo.path)
			for _, i := range []*testImage{smallImage(t), otherImage(t)} { // the second takes the name of the first
				if err := r.importImage(t, "a", i); err != nil {
					t.Fatal(err)
				}
			}
			old := testutil.Run(t, "ostree", "rev-parse", "--repo="+r.repo.path, "ociimage/a_3Alatest")
			if err := r.importImage(t, "a", smallImage(t)); err != nil {
				t.Fatal(err)
			}
			config := readFile(t, filepath.Join(r.repo.path, "config"))
			if err := r.removeAll(t, true, "a"); err != nil {
				t.Fatal(err)
			}
			testutil.SameText(t, "refs", testutil.Run(t, "ostree", "refs", "--repo="+r.repo.path), "")
			testutil.SameText(t, "config", readFile(t, filepath.Join(r.repo.path, "config")), config)
			// Of ours is left what the name meant before, and no more than its commit, file, tree
			// and modes.
			testutil.Run(t, "ostree", "show", "--repo="+r.repo.path, strings.TrimSpace(old))
			if more := len(objects(t, r.repo.path)) - len(before); more > 4 {
				t.Errorf("%d objects more than before", more)
			}
			for _, commit := range unnamed[:3] {
				testutil.Run(t, "ostree", "cat", "--repo="+r.repo.path, commit, "/theirs")
			}
			testutil.Run(t, "ostree", "show", "--repo="+r.repo.path, unnamed[3])
			fsck(t, r.repo.path)
			r.nothingInTmp(t)

			for _, dry := range []bool{true, false} {
				var named []string
				if _, err := pruneRepository(t.Context(), r.settings, r.repo, dry, func(commits []string) { named = commits }); err != nil {
					t.Fatal(err)
				}
				want := append([]string{strings.TrimSpace(old)}, unnamed...)
				slices.Sort(want)
				slices.Sort(named)
				if !slices.Equal(named, want) {
					t.Errorf("prune names the commits %q, want %q", named, want)
				}
			}
			if left, _ := filepath.Glob(filepath.Join(r.repo.path, "objects/??/*")); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
}

// A removal that is killed while it keeps the commits of others leaves them as they are, and the
// next one takes its refs away.
func TestRemoveIsKilledWhileItKeeps(t *testing.T) {
	t.Parallel()
	fake := testutil.FakeTool(t, "ostree", testutil.FakeRule{Match: "--no-prune", Then: "ostree"}, testutil.FakeRule{Match: "prune ", Signal: 9, Once: true})
	r := newTestRun(t, testOptions{ostree: fake})
	unnamed := theirs(t, r.repo.path)
	for _, name := range []string{"a", "b"} {
		if err := r.importImage(t, name, otherImage(t)); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.removeAll(t, true, "a"); err == nil {
		t.Error("the killed prune is no error")
	}
	// As where the whole run was killed.
	testutil.Run(t, "ostree", "refs", "--repo="+r.repo.path, "--create="+keptPrefix+"/"+unnamed[0], unnamed[0])
	if err := r.removeAll(t, true, "b"); err != nil {
		t.Error(err)
	}
	testutil.SameText(t, "refs", testutil.Run(t, "ostree", "refs", "--repo="+r.repo.path), "")
	for _, commit := range unnamed {
		testutil.Run(t, "ostree", "show", "--repo="+r.repo.path, commit)
	}
	fsck(t, r.repo.path)
}

// Where ostree is killed while it deletes files, no commit may be there that had them: fsck would
// call that corruption.
func TestPruneIsKilled(t *testing.T) {
	t.Parallel()
	fake := testutil.FakeTool(t, "ostree", testutil.FakeRule{Match: "--commit-only", Then: "ostree"}, testutil.FakeRule{Match: "prune ", Signal: 9})
	r := newTestRun(t, testOptions{ostree: fake})
	if err := r.importImage(t, "gone", otherImage(t)); err != nil {
		t.Fatal(err)
	}
	if err := r.removeAll(t, true, "gone"); err == nil {
		t.Error("the killed prune is no error")
	}
	for _, o := range objects(t, r.repo.path) {
		if strings.HasSuffix(o, ".commit") {
			t.Errorf("%s is still there", o)
		}
	}
	fsck(t, r.repo.path)
}

// A prune that another ostree gets in the way of is started again, each of its halves.
func TestPruneLosesRace(t *testing.T) {
	t.Parallel()
	lost := testutil.FakeRule{Stderr: "error: opendir(staging-a): No such file or directory\n", Exit: 1, Once: true}
	first, second := lost, lost
	first.Match, second.Match = "--commit-only", "prune "
	r := newTestRun(t, testOptions{ostree: testutil.FakeTool(t, "ostree", first, testutil.FakeRule{Match: "--commit-only", Then: "ostree"}, second)})
	if err := r.importImage(t, "gone", otherImage(t)); err != nil {
		t.Fatal(err)
	}
	if err := r.removeAll(t, true, "gone"); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(filepath.Join(r.repo.path, "objects/??/*")); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// A layer of one image is the config of another, and of the same.
func TestOneDigestTwoUses(t *testing.T) {
	layer := tarOf(t, &gotar.Header{Name: "a", Typeflag: gotar.TypeReg, Mode: 0o600, Size: 10})
	var packed bytes.Buffer
	gz := gzip.NewWriter(&packed)
	if _, err := gz.Write(layer); err != nil {
		t.Fatal(err)
	}
	if err := gz.Close(); err != nil {
		t.Fatal(err)
	}
	for _, order := range [][]string{{"layer", "config"}, {"config", "layer"}, {"both"}, {"both, packed"}} {
		t.Run(strings.Join(order, " then "), func(t *testing.T) {
			r := newTestRun(t, testOptions{})
			images := map[string]*testImage{
				"layer":  {layers: [][]byte{layer}},
				"config": {config: layer, confType: "application/vnd.example.config", layers: otherImage(t).layers},
				"both":   {config: layer, confType: "application/vnd.example.config", layers: [][]byte{layer}},
				"both, packed": {
					config: packed.Bytes(), confType: "application/vnd.example.config", layers: [][]byte{packed.Bytes()},
					types: []string{"application/vnd.oci.image.layer.v1.tar+gzip"},
				},
			}
			for _, name := range order {
				if err := r.importImage(t, name[:4], images[name]); err != nil {
					t.Fatal(err)
				}
			}
			for _, name := range order {
				streams := [][]byte{layer}
				if name == "config" {
					streams = images[name].layers
				}
				r.sameLayers(t, name[:4], images[name], streams)
				src := r.source(t, name[:4])
				if b, err := getBlob(t.Context(), src, digest.FromBytes(images[name].config)); err != nil || string(b) != string(images[name].config) {
					t.Errorf("config of %s: %v", name, err)
				}
			}
			images2, err := r.repo.listImages(t.Context(), imageListOptions{unpacked: true, broken: func(name string, err error) { t.Errorf("list %s: %v", name, err) }})
			if err != nil || len(images2) != len(order) {
				t.Errorf("list: %v %v", images2, err)
			}
			r.allWell(t, len(order))
		})
	}
}

// What publishes or removes waits for others that do, before it as much as looks.
func TestWaitsForLock(t *testing.T) {
	t.Parallel()
	fake := testutil.FakeTool(t, "ostree")
	r := newTestRun(t, testOptions{ostree: fake})
	if err := r.importImage(t, "a", smallImage(t)); err != nil {
		t.Fatal(err)
	}
	d, i := r.destination(t, "b"), (&testImage{}).Finish(t)
	if _, err := d.PutBlob(t.Context(), bytes.NewReader(i.config), blobInfo(i.config, i.confType), nil, true); err != nil {
		t.Fatal(err)
	}
	if err := d.PutManifest(t.Context(), i.manifest, nil); err != nil {
		t.Fatal(err)
	}
	d.queue.running.Wait() // the config's commit needs no lock
	for _, tt := range []struct {
		what string
		run  func() error
	}{
		{"copy", func() error { return d.Commit(t.Context(), nil) }},
		{"remove", func() error { return r.removeAll(t, true, "a") }},
		{"prune", func() error {
			_, err := pruneRepository(t.Context(), r.settings, r.repo, false, func([]string) {})
			return err
		}},
	} {
		unlock, err := r.repo.lock(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		before, ended := len(testutil.FakeCalls(t, fake)), make(chan error, 1)
		go func() { ended <- tt.run() }()
		time.Sleep(300 * time.Millisecond)
		for _, call := range testutil.FakeCalls(t, fake)[before:] {
			if strings.Contains(call+" ", "--repo="+r.repo.path+" ") { // what is staged may go on
				t.Errorf("%s does not wait, and runs %q", tt.what, call)
			}
		}
		unlock()
		if err := <-ended; err != nil {
			t.Errorf("%s: %v", tt.what, err)
		}
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	r.allWell(t, 1)
}

// Copies, removals and prunes at the same time: an image that is there has all that it needs.
func TestRemoveWhileCopying(t *testing.T) {
	const lasts = 12 * time.Second
	r := newTestRun(t, testOptions{})
	var layers [][]byte
	for i := range 6 {
		layers = append(layers, tarOf(t, &gotar.Header{Name: fmt.Sprint("file-", i), Typeflag: gotar.TypeReg, Mode: 0o644, Size: int64(100 + i)}))
	}
	end := time.Now().Add(lasts)
	var group sync.WaitGroup
	var mu sync.Mutex
	counts := map[string]int{}
	count := func(what string) {
		mu.Lock()
		defer mu.Unlock()
		counts[what]++
	}
	for w := range 3 {
		group.Go(func() { // copies
			random := rand.New(rand.NewPCG(1, uint64(w)))
			for time.Now().Before(end) {
				i := (&testImage{layers: [][]byte{layers[random.IntN(6)], layers[random.IntN(6)]}}).Finish(t)
				err := put(context.Background(), r.destination(t, fmt.Sprint("image-", random.IntN(4))), i)
				var vanished *vanishedError
				switch {
				case err == nil:
					count("copied")
				case errors.As(err, &vanished):
					count("vanished")
				default:
					t.Errorf("copy: %v", err)
				}
			}
		})
	}
	group.Go(func() {
		random := rand.New(rand.NewPCG(2, 2))
		for time.Now().Before(end) {
			err := r.removeAll(t, random.IntN(3) > 0, fmt.Sprint("image-", random.IntN(4)))
			switch {
			case err == nil:
				count("removed")
			case errdefs.ExitStatus(context.Background(), err) != errdefs.StatusNotFound:
				t.Errorf("remove: %v", err)
			}
			time.Sleep(100 * time.Millisecond)
		}
	})
	group.Go(func() {
		for time.Now().Before(end) {
			if _, err := pruneRepository(context.Background(), r.settings, r.repo, false, func([]string) {}); err != nil {
				t.Errorf("prune: %v", err)
			}
			count("pruned")
			time.Sleep(300 * time.Millisecond) // or it would hold the lock all the time
		}
	})
	group.Wait()
	t.Log(counts)
	for _, what := range []string{"copied", "removed", "pruned"} {
		if counts[what] == 0 {
			t.Errorf("nothing was %s", what)
		}
	}
	r.allWell(t, -1)
	r.nothingInTmp(t)
}

// What is read after its image is gone is an error, not a short layer.
func TestReadWhileRemoving(t *testing.T) {
	r := newTestRun(t, testOptions{})
	i := smallImage(t)
	if err := r.importImage(t, "a", i); err != nil {
		t.Fatal(err)
	}
	src := r.source(t, "a")
	infos, err := src.LayerInfosForCopy(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.removeAll(t, true, "a"); err != nil {
		t.Fatal(err)
	}
	for _, info := range infos {
		stream, _, err := src.GetBlob(t.Context(), types.BlobInfo{Digest: info.Digest}, nil)
		if err == nil {
			_, err = io.Copy(io.Discard, stream)
			_ = stream.Close()
		}
		if err == nil {
			t.Errorf("layer %s is read though it is gone", info.Digest)
		}
	}
}

// An image that is removed while others are verified or listed is gone, and neither damaged nor in
// the way of the rest.
func TestImageGoesWhileItIsRead(t *testing.T) {
	for when, commands := range map[string][]string{
		"fsck ": {"verify", "verify a"}, "config ": {"verify", "verify a"}, "ls ": {"verify", "verify a"},
		"show .*a_3Alatest": {"verify", "verify a", "list"}, "rev-parse .*a_3Alatest": {"list"}, "cat ": {"verify", "verify a"},
	} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			r := newTestRun(t, testOptions{})
			now := time.Now().UnixNano()
			r.timestamp = &now // a commit that no list has seen
			if err := r.importImage(t, "b", otherImage(t)); err != nil {
				t.Fatal(err)
			}
			refs := r.reference(t, "a").ref()
			for _, layer := range smallImage(t).layers {
				refs += " " + imageref.BlobRef(digest.FromBytes(layer))
			}
			script := filepath.Join(t.TempDir(), "ostree")
			text := fmt.Sprintf("#!/bin/sh\nif echo \"$*\" | grep -q '%[1]s' && mkdir %[2]s.done 2>/dev/null; then\n"+
				"ostree refs --repo=%[3]s --delete %[4]s >/dev/null; ostree prune --repo=%[3]s --refs-only >/dev/null\nfi\nexec ostree \"$@\"\n",
				when, script, r.repo.path, refs)
			if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
				t.Fatal(err)
			}
			for _, command := range commands {
				t.Run(command, func(t *testing.T) {
					if err := r.importImage(t, "a", smallImage(t)); err != nil {
						t.Fatal(err)
					}
					_ = os.Remove(script + ".done")
					var stdout, stderr testutil.SyncBuffer
					args := append([]string{"--ostree=" + script, "--repo=" + r.repo.path}, strings.Fields(command)...)
					status := runProgram(t, args, &stdout, &stderr)
					if _, err := os.Stat(script + ".done"); err != nil {
						t.Fatal("nothing was removed")
					}
					want := errdefs.StatusDone
					if command == "verify a" {
						want = errdefs.StatusNotFound
					}
					if status != want || strings.Contains(stdout.String(), "damaged") || strings.Contains(stderr.String(), "damaged") {
						t.Errorf("status %d: %s%s", status, stdout.String(), stderr.String())
					}
					if command != "verify a" && !strings.Contains(stdout.String(), "b:latest") {
						t.Errorf("the rest is not shown: %s", stdout.String())
					}
				})
			}
		})
	}
}

// TestStoppedAnytime: a run that is stopped at any moment says so, or has done its work.
func TestStoppedAnytime(t *testing.T) {
	base := newTestRun(t, testOptions{})
	if err := base.importImage(t, "a", smallImage(t)); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for what, done := range map[string]func(repo, out string) bool{
		"remove a":            func(repo, _ string) bool { return !hasRef(repo, "ociimage/a_3Alatest") },
		"remove --no-prune a": func(repo, _ string) bool { return !hasRef(repo, "ociimage/a_3Alatest") },
		"untag a":             func(repo, _ string) bool { return !hasRef(repo, "ociimage/a_3Alatest") },
		"tag a b":             func(repo, _ string) bool { return hasRef(repo, "ociimage/b_3Alatest") },
		"checkout -U a OUT":   func(_, out string) bool { _, err := os.Stat(out + "/usr"); return err == nil },
		"push a dir:OUT":      func(_, out string) bool { _, err := os.Stat(out + "/manifest.json"); return err == nil },
	} {
		t.Run(what, func(t *testing.T) {
			programRuns.Lock()
			defer programRuns.Unlock()
			seed := rand.Uint64()
			chance := rand.New(rand.NewPCG(seed, 0))
			statuses := map[int]int{}
			longest := 200 * time.Millisecond
			for n := range 12 {
				work := filepath.Join(dir, fmt.Sprintf("%s-%d", strings.Fields(what)[0]+fmt.Sprint(len(what)), n))
				testutil.Run(t, "cp", "-a", "--", base.repo.path, work)
				ctx, cancel := context.WithCancelCause(t.Context())
				wait := time.Duration(chance.Int64N(int64(longest)))
				timer := time.AfterFunc(wait, func() { cancel(errdefs.SignalError{Sig: syscall.SIGINT}) })
				args := strings.Fields(strings.ReplaceAll(what, "OUT", work+".out"))
				var out, stderr bytes.Buffer
				began := time.Now()
				status := run(ctx, append([]string{"ostree-image", "--insecure-policy", "--quiet", "--repo=" + work}, args...), &out, &stderr)
				if timer.Stop() && status == 0 { // so long does it take
					longest = time.Since(began) * 5 / 4
				}
				cancel(nil)
				statuses[status]++
				if status == 0 && !done(work, work+".out") || status != 0 && status != 130 {
					t.Errorf("seed %d, stopped after %s: status %d: %s", seed, wait, status, &stderr)
				}
			}
			t.Logf("seed %d: %v", seed, statuses)
		})
	}
}

// hasRef tells whether a repository has a ref.
func hasRef(repo, ref string) bool {
	return exec.Command("ostree", "rev-parse", "--repo="+repo, ref).Run() == nil
}

// countedContext is one that ends when it is asked for the n-th time whether it has ended.
type countedContext struct {
	context.Context
	cancel context.CancelCauseFunc
	left   atomic.Int64
}

func newCountedContext(t *testing.T, n int64) *countedContext {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	c := &countedContext{Context: ctx, cancel: cancel}
	c.left.Store(n)
	return c
}

func (c *countedContext) Err() error {
	if c.left.Add(-1) == 0 {
		c.cancel(errdefs.SignalError{Sig: syscall.SIGINT})
	}
	return c.Context.Err()
}

// TestStoppedAtEachCheck: a removal that is stopped wherever it looks for that is an error, or
// done.
func TestStoppedAtEachCheck(t *testing.T) {
	for _, o := range []removeOptions{{}, {noPrune: true}} {
		for n, ended := int64(1), false; !ended; n++ {
			r := newTestRun(t, testOptions{})
			if err := r.importImage(t, "a", smallImage(t)); err != nil {
				t.Fatal(err)
			}
			ctx := newCountedContext(t, n)
			err := removeImages(ctx, r.settings, r.repo, []removal{{image: r.reference(t, "a")}}, o)
			ended = ctx.left.Load() > 0
			ctx.cancel(nil)
			if err == nil && hasRef(r.repo.path, "ociimage/a_3Alatest") {
				t.Errorf("%+v, stopped at check %d: no error, and nothing is done", o, n)
			}
			if ended && err != nil {
				t.Error(err)
			}
		}
	}
}
