package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/types"

	"ostree-image/internal/ostree"
	"ostree-image/internal/testutil"
)

// newRecordedRun is a run on a repository that is kept in a record.
func newRecordedRun(t *testing.T, o testOptions) (r *testRun, dir string) {
	t.Helper()
	r = newTestRun(t, o)
	r.divideFrom = divideFrom // commands side by side come in any order
	dir = filepath.Join(t.TempDir(), "record")
	rec, err := newRecorder(dir, r.runner)
	if err != nil {
		t.Fatal(err)
	}
	r.journal.record = rec
	rec.begin(t.Context())
	if err := r.useRepository(t.Context(), r.repo); err != nil {
		t.Fatal(err)
	}
	return r, dir
}

// replayed runs a record's script where nothing of the run is left, and returns what it said.
func replayed(t *testing.T, dir string) (work, said string, err error) {
	t.Helper()
	testutil.NeedTools(t, "sh", "ostree", "zstd", "sha256sum")
	work = filepath.Join(t.TempDir(), "work")
	mkdir(t, work)
	said, err = runScript(filepath.Join(dir, recordScript), "WORK="+work)
	return work, said, err
}

// importInOrder imports an image of one layer so that its commands come in the same order each
// time: a layer is else imported beside the config, and the refs are read beside the last commits.
func (r *testRun) importInOrder(t *testing.T, name string, i *testImage) {
	t.Helper()
	r.parallelCopies = 1
	i.Finish(t)
	d := r.destination(t, name)
	info := types.BlobInfo{Digest: digest.FromBytes(i.layers[0]), Size: int64(len(i.layers[0])), MediaType: i.types[0]}
	if _, err := d.PutBlob(t.Context(), bytes.NewReader(i.layers[0]), info, nil, false); err != nil {
		t.Fatal(err)
	}
	d.queue.running.Wait()
	i.layers = nil
	if err := put(t.Context(), d, i); err != nil {
		t.Fatal(err)
	}
}

// checkGolden compares with a file of testdata, or writes it.
func checkGolden(t *testing.T, name, got string) {
	t.Helper()
	golden := filepath.Join("testdata", name)
	if *update {
		mkdirFile(t, golden, []byte(got))
	}
	if want := readFile(t, golden); got != want {
		t.Errorf("another text than %s (see testdata/README.md):\n%s", golden, got)
	}
}

// TestGoldenRecord holds that the scripts of records are what a reader has reviewed, and give the
// same again.
func TestGoldenRecord(t *testing.T) {
	t.Parallel()
	testutil.NeedRoot(t)
	repo := newRepo(t, ostree.BareUser)
	sameRefs := func(t *testing.T, dir, work string) {
		t.Helper()
		got := refCommits(t, filepath.Join(work, "repo"))
		for line := range strings.Lines(readFile(t, filepath.Join(dir, recordRefs))) {
			sum, ref, _ := strings.Cut(strings.TrimSpace(line), " ")
			if got[ref] != sum {
				t.Errorf("%s is %s, and the record says %s", ref, got[ref], sum)
			}
		}
	}
	root := filepath.Join(t.TempDir(), "root")
	steps := []struct {
		name string
		run  func(t *testing.T, r *testRun)
		same func(t *testing.T, dir, work string)
	}{
		{
			"import", func(t *testing.T, r *testRun) { r.importInOrder(t, "tiny", journalImage()) },
			func(t *testing.T, dir, work string) {
				sameRefs(t, dir, work)
				if n := strings.Count(readFile(t, filepath.Join(dir, recordRefs)), "\n"); n != 3 {
					t.Errorf("the record names %d refs", n)
				}
			},
		},
		{
			"checkout", func(t *testing.T, r *testRun) {
				if err := r.checkoutTo(t, "tiny", root, ostree.CheckoutOptions{}); err != nil {
					t.Fatal(err)
				}
			},
			func(t *testing.T, _, work string) {
				compareCopies(t, "replayed", testutil.TreeOf(t, filepath.Join(work, "out")), testutil.TreeOf(t, root), time.Now(), testutil.Node.String)
			},
		},
		{
			"export", func(t *testing.T, r *testRun) {
				src := r.source(t, "tiny")
				m, _, err := src.GetManifest(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				layers, err := tars(t.Context(), src)
				if err != nil || len(layers) != 1 || len(m) == 0 {
					t.Errorf("the image has %d layers, %v", len(layers), err)
				}
			},
			func(*testing.T, string, string) {},
		},
	}
	for _, step := range steps {
		t.Run(step.name, func(t *testing.T) {
			r, dir := newRecordedRun(t, testOptions{repo: repo})
			step.run(t, r)
			if err := r.journal.record.Finish(nil, 0, nil); err != nil {
				t.Fatal(err)
			}
			script := readFile(t, filepath.Join(dir, recordScript))
			for _, place := range []string{repo, dir, root} {
				if strings.Contains(script, place) {
					t.Errorf("the script names %s", place)
				}
			}
			checkGolden(t, "record-"+step.name+".sh", normalLog(script))
			work, said, err := replayed(t, dir)
			if err != nil {
				t.Fatalf("the script ends with %v: %s", err, said)
			}
			step.same(t, dir, work)
		})
	}
}

// TestRecordOfFailure holds that a record of a command that failed fails with that command, and
// that its input is all there.
func TestRecordOfFailure(t *testing.T) {
	t.Parallel()
	testutil.NeedRoot(t)
	// ostree ends at once, or in the middle of a layer that no pipe holds.
	for name, read := range map[string]int64{"at once": 0, "in the middle": 3 << 20} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fake := testutil.FakeTool(t, "ostree", testutil.FakeRule{Match: "--tree=tar=-", Read: read, Close: true, Stderr: "error: the disk is full\n", Exit: 1})
			r, dir := newRecordedRun(t, testOptions{ostree: fake, mode: ostree.Archive})
			content := make([]byte, 8<<20)
			image := &testImage{layers: [][]byte{archive(member{name: "big", body: string(content)}, file("last", "x"))}}
			err := r.importImage(t, "image", image)
			if err == nil || !strings.Contains(err.Error(), "the disk is full") {
				t.Fatalf("the import ends with %v", err)
			}
			if err := r.journal.record.Finish(err, 1, nil); err != nil {
				t.Fatal(err)
			}
			script := readFile(t, filepath.Join(dir, recordScript))
			if !strings.Contains(script, " failed after ") || !strings.Contains(script, "the disk is full") {
				t.Errorf("the script does not say what failed:\n%s", testutil.TailOf(script))
			}
			// With a disk that is not full the command does well, and the record ends as the run
			// did.
			work, said, err := replayed(t, dir)
			if err == nil || !strings.Contains(said, "the disk is full") {
				t.Errorf("the replay ends with %v: %s", err, said)
			}
			found := testutil.Run(t, "find", filepath.Join(work, "stage", "objects"), "-name", "*.commit")
			if strings.Count(found, "\n") == 0 {
				t.Error("the replay did not run the command that failed")
			}
		})
	}
}
