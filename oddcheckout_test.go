package main

import (
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"ostree-image/internal/imageref"
	"ostree-image/internal/normalize"
	"ostree-image/internal/ostree"
	"ostree-image/internal/testutil"
)

// oddBase is what non-canonical layers are checked out above: some of their names, as something
// else or with other permissions, and some of its own.
func oddBase(t testing.TB) []byte {
	t.Helper()
	return stackTar(t, layerOf(
		tDir(".", 0o755), tDir("d", 0o711).own(5, 6), tFile("d/old", "old"), tFile("d/f", "below"), tDir("w", 0o750), tFile("w/gone", "gone"), tFile("top", "top"),
		tSym("l", "d"), tDir("a", 0o700).x("user.a", "1"), tFile("a/under", "under"), tSym("lib", "usr/lib"), tDir("usr/lib", 0o755), tFile("f", "f"), tDir("x", 0o2755).own(0, 7)))
}

// notAsUmoci are the non-canonical layers that umoci refuses, or of which it makes something else,
// and why. A checkout of them has what their commits have.
var notAsUmoci = map[string]string{
	"longest path":               "umoci cannot write it below its own directory",
	"parents later, attributes":  "umoci lets a directory hand its group down to one that nothing names",
	"global pax header":          "umoci takes the header for an entry",
	"two global pax headers":     "umoci takes the headers for entries",
	"volume label":               "umoci knows no labels",
	"contiguous and unknown":     "umoci knows no other types, and tar says that they are files",
	"directory as a file":        "umoci takes it for a file, and refuses what lies below",
	"directory with a payload":   "umoci takes it for a file",
	"sparse, old gnu":            "umoci does not know the type of the files",
	"incremental":                "umoci does not know the type of the directory",
	"whiteouts":                  "umoci removes its own root for one that names nothing",
	"attributes that go":         "umoci cannot set some of them",
	"hard link to itself":        "umoci removes the file first",
	"hard link to itself, alone": "umoci refuses a link to what is not there",
	"hard link forward":          "umoci refuses a link to what is not there",
	"hard link to nothing":       "umoci refuses a link to what is not there",
}

// oddRemoves are what non-canonical layers remove of the base.
var oddRemoves = map[string][]string{
	"whiteouts":                  {"/top", "/w/gone"},
	"hard link to itself":        {"/a/under"},
	"hard link to itself, alone": {"/a/under"},
	"hard link forward":          {"/a/under"},
	"hard link to nothing":       {"/a/under"},
}

// TestOddCheckouts holds checkouts of non-canonical layers, alone and above another one, against
// what umoci makes of them, or against their commits.
func TestOddCheckouts(t *testing.T) {
	t.Parallel()
	testutil.NeedRoot(t)
	testutil.NeedTools(t, "umoci", "ostree", "tar")
	odd := accepted(t)
	blobs := [][]byte{oddBase(t)}
	for _, l := range odd {
		blobs = append(blobs, l.layer)
	}
	modes := []string{ostree.Bare, ostree.Archive}
	pool := newStackPool(t, blobs, modes)
	images := map[string]*testImage{}
	for i := range odd {
		images[fmt.Sprint("alone-", i+1)] = (&testImage{layers: [][]byte{blobs[i+1]}}).Finish(t)
		images[fmt.Sprint("above-", i+1)] = (&testImage{layers: [][]byte{blobs[0], blobs[i+1]}}).Finish(t)
	}
	writeLayout(t, pool.layout, images)
	t.Run("checkout", func(t *testing.T) {
		for i, l := range odd {
			t.Run(l.name, func(t *testing.T) {
				t.Parallel()
				for n, stack := range map[string][]int{"alone": {i + 1}, "above": {0, i + 1}} {
					mode := modes[(i+len(stack))%len(modes)]
					pool.checkOdd(t, l.name, mode, fmt.Sprintf("%s-%d", n, i+1), stack)
				}
			})
		}
	})
}

// checkOdd checks a non-canonical layer out, alone or above the base.
func (p *stackPool) checkOdd(t *testing.T, name, mode, image string, stack []int) {
	t.Helper()
	began := time.Now()
	dir := t.TempDir()
	out, uerr := exec.Command("umoci", "raw", "unpack", "--image", p.layout+":"+image, dir+"/umoci").CombinedOutput()
	run := newTestRun(t, testOptions{repo: p.runs[mode].repo.path})
	root := filepath.Join(dir, "root")
	if err := p.checkout(t.Context(), run.settings, mode, root, stack); err != nil {
		t.Errorf("%s, %s: %v (umoci: %v %s)", image, mode, err, uerr, testutil.TailOf(string(out)))
		return
	}
	if _, known := notAsUmoci[name]; !known {
		if uerr != nil {
			t.Errorf("%s, %s: umoci refuses it: %s", image, mode, testutil.TailOf(string(out)))
			return
		}
		want := testutil.TreeOf(t, dir+"/umoci")
		dropDevices(want)
		compareCopies(t, image+", "+mode, testutil.TreeOf(t, root), want, began, testutil.Node.String)
		return
	}
	// Nothing but what the layer's commit has, above what the base has.
	listed := map[string]string{}
	for _, n := range stack {
		for _, line := range lsLines(t, run.repo.path, imageref.BlobRef(digest.FromBytes(p.blobs[n]))) {
			listed[line[strings.Index(line, " /"):]] = line
		}
	}
	for _, removed := range oddRemoves[name] {
		delete(listed, " "+removed)
	}
	want := slices.DeleteFunc(slices.Sorted(maps.Values(listed)), func(line string) bool {
		return strings.Contains(line, "/"+normalize.WhiteoutPrefix) && !strings.Contains(line, "/.wh..wh.plnk")
	})
	commits := newSharedRepo(t, ostree.Archive)
	testutil.Run(t, "ostree", "commit", "--repo="+commits, "--branch=root", "--tree=dir="+root)
	have := lsLines(t, commits, "root")
	slices.Sort(have)
	if !slices.Equal(have, want) {
		t.Errorf("%s, %s:\n%s", image, mode, differingLines(have, want))
	}
}
