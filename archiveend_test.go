package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"ostree-image/internal/ostree"
	"ostree-image/internal/testutil"
)

// goesThrough holds that an image is imported, verified and checked out, and that the tar streams
// of its layers come back. It returns the checked out tree.
func goesThrough(t *testing.T, i *testImage, want [][]byte) string {
	t.Helper()
	r := newTestRun(t, testOptions{})
	if err := r.importImage(t, "image", i); err != nil {
		t.Fatal(err)
	}
	results, err := verifyImages(t.Context(), r.settings, r.repo, nil, 1)
	if err != nil || len(results) != 1 || !results[0].OK {
		t.Errorf("verify says %v, %v", results, err)
	}
	src := r.source(t, "image")
	streams, err := tars(t.Context(), src)
	if err != nil {
		t.Fatal(err)
	}
	if len(streams) == 0 { // the manifest cannot name tar streams instead: the layers go out as they came
		want = i.layers
		for _, l := range i.layers {
			b, err := getBlob(t.Context(), src, digest.FromBytes(l))
			if err != nil {
				t.Fatal(err)
			}
			streams = append(streams, b)
		}
	}
	for n := range want {
		if !bytes.Equal(streams[n], want[n]) {
			t.Errorf("layer %d comes back as another", n)
		}
	}
	dir := filepath.Join(t.TempDir(), "rootfs")
	if err := checkoutImage(t.Context(), r.reference(t, "image"), dir, testSys, ostree.CheckoutOptions{}); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestArchiveEnd holds that what follows an archive's end is kept, and means nothing.
func TestArchiveEnd(t *testing.T) {
	t.Parallel()
	second := string(archive(file(".wh.keep", ""), file("more", "x"), dir("usr")))
	for name, tail := range map[string]string{
		"nothing":          "",
		"a zero":           "\x00",
		"100 zeros":        strings.Repeat("\x00", 100),
		"zero blocks":      strings.Repeat("\x00", 18<<10),
		"junk":             "junk",
		"much junk":        strings.Repeat("junk", 3<<20),
		"a signature":      strings.Repeat("s", 512) + "\x00\x00\x00sig",
		"a second archive": second,
		"a header":         second[:512],
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lower := append(archive(file("keep", "kept"), file("usr", "a file")), tail...)
			upper := append(archive(file("upper", "u")), tail...)
			layers := [][]byte{lower, upper}
			root := goesThrough(t, &testImage{layers: layers}, layers)
			for _, f := range []string{"keep", "usr", "upper"} {
				if info, err := os.Lstat(filepath.Join(root, f)); err != nil || !info.Mode().IsRegular() {
					t.Errorf("%s: %v", f, err)
				}
			}
			if _, err := os.Lstat(filepath.Join(root, "more")); err == nil {
				t.Error("what follows the end was looked at")
			}
		})
	}
}

// TestSparseLayers holds that sparse files that were imported can be read, whatever part of them is
// holes.
func TestSparseLayers(t *testing.T) {
	t.Parallel()
	testutil.NeedTools(t, "tar", "truncate")
	dir := t.TempDir()
	testutil.Run(t, "truncate", "--size=3M", filepath.Join(dir, "holes"))
	if err := os.WriteFile(filepath.Join(dir, "full"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, format := range [][]string{
		{"--format=gnu"}, {"--format=pax", "--sparse-version=0.0"}, {"--format=pax", "--sparse-version=0.1"}, {"--format=pax", "--sparse-version=1.0"},
	} {
		t.Run(strings.Join(format, " "), func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command("tar", append(format, "--create", "--sparse", "--directory="+dir, "holes", "full")...)
			layer, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			if len(layer) > 64<<10 {
				t.Fatalf("%d bytes are not sparse", len(layer))
			}
			layers := [][]byte{layer, layer}
			root := goesThrough(t, &testImage{layers: layers}, layers)
			if info, err := os.Stat(filepath.Join(root, "holes")); err != nil || info.Size() != 3<<20 {
				t.Errorf("%v, %v", info, err)
			}
		})
	}
}
