package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/imageref"
	"ostree-image/internal/ostree"
	"ostree-image/internal/testutil"
	"ostree-image/internal/usercache"
)

// createdImage is an image that says when it was made.
func createdImage(t *testing.T, created string) *testImage {
	t.Helper()
	i := smallImage(t).Finish(t)
	i.config = bytes.Replace(i.config, []byte(`{`), []byte(fmt.Sprintf(`{"created":%q,`, created)), 1)
	i.manifest = nil
	return i.Finish(t)
}

// TestListCache: what list has read of a commit it does not read again, whatever becomes of the
// file that says so.
func TestListCache(t *testing.T) {
	fake := testutil.FakeTool(t, "ostree")
	r := newTestRun(t, testOptions{ostree: fake})
	for _, name := range []string{"a", "b"} {
		if err := r.importImage(t, name, createdImage(t, "2026-01-02T03:04:05.678+01:00")); err != nil {
			t.Fatal(err)
		}
	}
	// As an earlier release wrote it.
	r.tamper(t, "ociimage/b_3Alatest", func(m map[string]string) {
		for _, key := range []string{imageref.KeyOS, imageref.KeyArchitecture, imageref.KeyCreated} {
			if m[key] == "" {
				t.Errorf("the image's commit does not have %s: %v", key, m)
			}
			delete(m, key)
		}
	})
	file := &usercache.File{Path: filepath.Join(t.TempDir(), "cache", "commits"), Most: 1 << 20}
	list := func() (images []imageInfo, calls []string) {
		before := len(testutil.FakeCalls(t, fake))
		images, err := r.repo.listImages(t.Context(), imageListOptions{
			unpacked: true, cache: file, broken: func(name string, err error) { t.Errorf("%s: %v", name, err) },
		})
		if err != nil {
			t.Fatal(err)
		}
		return images, testutil.FakeCalls(t, fake)[before:]
	}
	verbs := func(calls []string) (all []string) {
		for _, c := range calls {
			verb, _, _ := strings.Cut(c, " ")
			all = append(all, verb)
		}
		slices.Sort(all)
		return slices.Compact(all)
	}
	first, calls := list()
	if len(first) != 2 || first[0].UncompressedSize == 0 || first[0].Layers != 2 ||
		first[0].Created.Format(time.RFC3339Nano) != "2026-01-02T02:04:05.678Z" || first[0].Architecture != "riscv64" || first[0].Platforms != nil {
		t.Errorf("%+v", first)
	}
	if n := strings.Count(strings.Join(calls, "\n"), "cat "); n != 1 {
		t.Errorf("%d files were read, and one image says all without: %q", n, calls)
	}
	again, calls := list()
	if !reflect.DeepEqual(again, first) {
		t.Errorf("got %+v, want %+v", again, first)
	}
	if got := verbs(calls); !slices.Equal(got, []string{"refs", "rev-parse"}) || len(calls) != 3 {
		t.Errorf("it is read again: %q", calls)
	}
	whole, err := os.ReadFile(file.Path)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"nothing": "", "cut": string(whole[:len(whole)/2]), "no JSON": "junk\n{}\nnull\n", "bytes": "\x00\xff\n",
		"another's": `{"commit":"x","image":{"name":"evil"}}` + "\n",
	} {
		if err := os.WriteFile(file.Path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, _ := list(); !reflect.DeepEqual(got, first) {
			t.Errorf("cache with %s: got %+v, want %+v", name, got, first)
		}
	}
	// A blob that is gone is found all the same.
	testutil.Run(t, "ostree", "refs", "--repo="+r.repo.path, "--delete", imageref.BlobRef(diffIDOf(smallImage(t).layers[0])))
	var broken []string
	if _, err := r.repo.listImages(t.Context(), imageListOptions{
		cache: file, broken: func(name string, _ error) { broken = append(broken, name) },
	}); err != nil || !slices.Equal(broken, []string{"a:latest", "b:latest"}) {
		t.Errorf("without a layer: broken %q, %v", broken, err)
	}
}

// TestOldImageCommit: an image that an earlier release imported gets what is new in its commit when
// it is imported again.
func TestOldImageCommit(t *testing.T) {
	r := newTestRun(t, testOptions{})
	i := createdImage(t, "2026-01-02T03:04:05Z")
	if err := r.importImage(t, "a", i); err != nil {
		t.Fatal(err)
	}
	want := r.commits(t)
	r.tamper(t, "ociimage/a_3Alatest", func(m map[string]string) { delete(m, imageref.KeyOS) })
	if err := r.importImage(t, "a", i); err != nil {
		t.Fatal(err)
	}
	if got := r.commits(t); !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestListIndex: of an index list shows what its instances have.
func TestListIndex(t *testing.T) {
	r := newTestRun(t, testOptions{mode: ostree.BareUser})
	run := func(args ...string) string {
		t.Helper()
		var out, stderr bytes.Buffer
		if got := runProgram(t, append([]string{"--insecure-policy", "--repo=" + r.repo.path}, args...), &out, &stderr); got != 0 {
			t.Fatalf("%q: status %d: %s", args, got, &stderr)
		}
		return out.String()
	}
	run("copy", "--all", "oci:"+writeIndexLayout(t)+":multi", "ostree:multi@"+r.repo.path)
	if text := run("list"); !strings.Contains(text, " linux/amd64,linux/arm64  ") {
		t.Errorf("list shows %s", text)
	}
	for range 2 {
		var images []imageInfo
		if err := json.Unmarshal([]byte(run("list", "--format=json")), &images); err != nil || len(images) != 1 {
			t.Fatal(err)
		}
		// Each instance has a layer of its own, and they share one.
		if i := images[0]; i.OS != "" || i.Layers != 3 || !slices.Equal(i.Platforms, []string{"linux/amd64", "linux/arm64"}) || i.UncompressedSize == 0 {
			t.Errorf("%+v", i)
		}
	}
}

// TestForgedConfigMetadata: what an image's commit says of its config is verified, and put right by
// importing the image again.
func TestForgedConfigMetadata(t *testing.T) {
	r := newTestRun(t, testOptions{})
	i := createdImage(t, "2026-01-02T03:04:05Z")
	for key, value := range map[string]string{
		imageref.KeyOS: "plan9", imageref.KeyArchitecture: "", imageref.KeyCreated: "2000-01-01T00:00:00Z",
	} {
		if err := r.importImage(t, "a", i); err != nil {
			t.Fatal(err)
		}
		r.allWell(t, 1)
		r.tamper(t, "ociimage/a_3Alatest", func(m map[string]string) { m[key] = value })
		var out, stderr bytes.Buffer
		if got := runProgram(t, []string{"--repo=" + r.repo.path, "verify"}, &out, &stderr); got != errdefs.StatusCheck ||
			!strings.Contains(out.String(), "its config says another thing") {
			t.Errorf("%s: status %d: %s%s", key, got, &out, &stderr)
		}
	}
}
