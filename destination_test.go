package main

import (
	gotar "archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/pkg/errors"
	"go.podman.io/image/v5/types"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/imageref"
	"ostree-image/internal/ostree"
	"ostree-image/internal/testutil"
	"ostree-image/internal/workdir"
)

func zipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func blobInfo(b []byte, mediaType string) types.BlobInfo {
	return types.BlobInfo{Digest: digest.FromBytes(b), Size: int64(len(b)), MediaType: mediaType}
}

func TestPutBlobErrors(t *testing.T) {
	t.Parallel()
	layer := archive(file("good", bigBody))
	zip := zipped(t, layer)
	const layerType = imgspecv1.MediaTypeImageLayer
	hex := digest.FromBytes(layer).Encoded()
	zipHex := digest.FromBytes(zip).Encoded()
	junk := func(b []byte) types.BlobInfo { return blobInfo(b, layerType) }
	with := func(d digest.Digest) types.BlobInfo {
		return types.BlobInfo{Digest: d, Size: -1, MediaType: layerType}
	}
	badZip := append(bytes.Clone(zip[:len(zip)-8]), "junkjunk"...)
	notGzip := append([]byte("\x1f\x8b\x08"), bytes.Repeat([]byte("no"), 100)...)
	trailing := append(bytes.Clone(zip), "trailing junk that is no gzip"...)
	tests := []struct {
		name     string
		blob     []byte
		info     types.BlobInfo
		isConfig bool
		wantErr  string
		isCheck  bool // the exit status says so
	}{
		{"truncated", layer[:5000], junk(layer), false, "blob sha256:" + hex + " has 5000 bytes, and its manifest names " + fmt.Sprint(len(layer)) + ": it was cut short", true},
		{"truncated gzip", zip[:len(zip)/2], junk(zip), false, fmt.Sprintf("blob sha256:%s has %d bytes, and its manifest names %d: it was cut short", zipHex, len(zip)/2, len(zip)), true},
		{"too long", append(bytes.Clone(layer), 0), junk(layer), false, fmt.Sprintf("blob sha256:%s is larger than the %d bytes that its manifest names", hex, len(layer)), true},
		{"wrong digest", corrupt(layer, 2000), junk(layer), false, "blob sha256:" + hex + " does not match its digest: what arrived is " + digest.FromBytes(corrupt(layer, 2000)).String(), true},
		{"truncated config", []byte("{}"), types.BlobInfo{Digest: digest.FromString("{} "), Size: 3}, true, "config " + digest.FromString("{} ").String() + " does not match its digest: what arrived is " + digest.FromString("{}").String(), true},
		{"no digest", layer, with("nonsense"), false, `blob digest "nonsense": invalid checksum digest format`, false},
		{"a path as a digest", layer, with("sha256:../../../../../tmp/evil"), false, `blob digest "sha256:../../../../../tmp/evil": invalid checksum digest length`, false},
		{"unknown algorithm", layer, with("md5:d41d8cd98f00b204e9800998ecf8427e"), false, `blob digest "md5:d41d8cd98f00b204e9800998ecf8427e": unsupported digest algorithm`, false},
		{"no digest of a config", layer, with("nonsense"), true, `blob digest "nonsense": invalid checksum digest format`, false},
		{"bad checksum of gzip", badZip, junk(badZip), false, "importing: layer " + digest.FromBytes(badZip).Encoded() + ": gzip: invalid checksum", false},
		{"no gzip", notGzip, junk(notGzip), false, "importing: layer " + digest.FromBytes(notGzip).Encoded() + ": decompressing: ", false},
		{"junk behind gzip", trailing, junk(trailing), false, "importing: layer " + digest.FromBytes(trailing).Encoded() + ": gzip: invalid header", false},
	}
	r := newTestRun(t, testOptions{mode: ostree.Archive})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := r.destination(t, "a")
			_, err := d.PutBlob(t.Context(), bytes.NewReader(tt.blob), tt.info, nil, tt.isConfig)
			if err == nil { // what is wrong with a blob that is what its digest says is told at the latest by Commit
				i := (&testImage{}).Finish(t)
				if err = d.PutManifest(t.Context(), i.manifest, nil); err == nil {
					err = d.Commit(t.Context(), nil)
				}
			}
			if !strings.HasPrefix(testutil.ErrText(err), tt.wantErr) || err == nil {
				t.Errorf("error %q, want %q", testutil.ErrText(err), tt.wantErr)
			}
			var check errdefs.CheckError
			if errors.As(err, &check) != tt.isCheck {
				t.Errorf("%T is a checkError: %t, want %t", err, !tt.isCheck, tt.isCheck)
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
			r.nothingLeft(t)
		})
	}
}

func TestBrokenStream(t *testing.T) {
	t.Parallel()
	r := newTestRun(t, testOptions{mode: ostree.Archive})
	layer := archive(file("f", bigBody))
	d := r.destination(t, "a")
	stream := io.MultiReader(bytes.NewReader(layer[:100000]), testutil.ReaderFunc(func([]byte) (int, error) { return 0, errors.New("the network is gone") }))
	_, err := d.PutBlob(t.Context(), stream, blobInfo(layer, ""), nil, false)
	testutil.SameText(t, "error", testutil.ErrText(err), "reading blob "+digest.FromBytes(layer).String()+" after 100000 bytes: the network is gone")
	testutil.SameText(t, "error of Commit", testutil.ErrText(d.Commit(t.Context(), nil)), testutil.ErrText(err))
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	r.nothingLeft(t)
}

func TestPlatform(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, config string
		sys          types.SystemContext
		wantErr      string
	}{
		{"same", `{"os":"linux","architecture":"riscv64"}`, *testSys, ""},
		{"none", `{}`, *testSys, ""},
		{"architecture", `{"os":"linux","architecture":"s390x"}`, *testSys, "the image is for linux/s390x, and linux/riscv64 is wanted; to store it all the same, use --override-os=linux --override-arch=s390x"},
		{"os", `{"os":"windows","architecture":"riscv64"}`, *testSys, "the image is for windows/riscv64, and linux/riscv64 is wanted; to store it all the same, use --override-os=windows --override-arch=riscv64"},
		{"overridden", `{"os":"windows","architecture":"s390x"}`, types.SystemContext{OSChoice: "windows", ArchitectureChoice: "s390x"}, ""},
		{"no json", `x`, *testSys, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			testutil.SameText(t, "error", testutil.ErrText(checkPlatform([]byte(tt.config), &tt.sys)), tt.wantErr)
		})
	}
	r := newTestRun(t, testOptions{mode: ostree.Archive})
	err := r.importImage(t, "a", &testImage{layers: [][]byte{archive(file("f", "x"))}, config: []byte(tests[2].config)})
	testutil.SameText(t, "error of an import", testutil.ErrText(err), tests[2].wantErr)
	r.nothingLeft(t)
}

func TestManifests(t *testing.T) {
	t.Parallel()
	r := newTestRun(t, testOptions{mode: ostree.Archive})
	other := digest.FromString("other")
	tests := []struct {
		name, manifest string
		instance       *digest.Digest
		wantErr        string
		rejected       bool
	}{
		{"schema 1", `{"schemaVersion":1,"name":"a","fsLayers":[],"history":[]}`, nil, `a manifest of type "application/vnd.docker.distribution.manifest.v1+json" cannot be stored; use --format oci or v2s2`, true},
		{"nothing", ``, nil, `a manifest of type "" cannot be stored; use --format oci or v2s2`, true},
		{"no manifest", `{"a":1}`, nil, `a manifest of type "" cannot be stored; use --format oci or v2s2`, true},
		{"other instance", `{"schemaVersion":2,"mediaType":"` + imgspecv1.MediaTypeImageManifest + `"}`, &other, "manifest " + other.String() + " does not match its digest: what arrived is ", false},
		{"index in an index", `{"schemaVersion":2,"mediaType":"` + imgspecv1.MediaTypeImageIndex + `"}`, &other, "an index within an index cannot be stored", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := r.destination(t, "a")
			err := d.PutManifest(t.Context(), []byte(tt.manifest), tt.instance)
			if !strings.HasPrefix(testutil.ErrText(err), tt.wantErr) {
				t.Errorf("error %q, want %q", testutil.ErrText(err), tt.wantErr)
			}
			var rejected types.ManifestTypeRejectedError
			if errors.As(err, &rejected) != tt.rejected {
				t.Errorf("%T", err)
			}
			testutil.SameText(t, "error of Commit", testutil.ErrText(d.Commit(t.Context(), nil)), "the image has no manifest")
			if err := d.Close(); err != nil {
				t.Error(err)
			}
			r.nothingLeft(t)
		})
	}
	t.Run("the name asks for another", func(t *testing.T) {
		d := r.destination(t, "a@"+other.String())
		i := (&testImage{}).Finish(t)
		err := put(t.Context(), d, i)
		testutil.SameText(t, "error", testutil.ErrText(err), "the image's manifest is "+digest.FromBytes(i.manifest).String()+", and its name asks for "+other.String())
	})
}

// refsOf are the refs that an image of these blobs has.
func refsOf(name string, blobs ...string) []string {
	refs := []string{imageref.Prefix + imageref.Encode(name)}
	for _, b := range blobs {
		if hex, side := strings.CutPrefix(b, "side:"); side {
			refs = append(refs, imageref.SidecarPrefix+digest.FromString(hex).Encoded())
		} else {
			refs = append(refs, imageref.Prefix+digest.FromString(b).Encoded())
		}
	}
	slices.Sort(refs)
	return refs
}

func TestImages(t *testing.T) {
	t.Parallel()
	layer, empty := archive(file("f", "images")), `{}`
	gz := zipped(t, layer)
	var many []member
	for i := range 3000 {
		many = append(many, file(fmt.Sprintf("f-%x-%d", i*i*7919, i), ""))
	}
	large := archive(many...)
	tests := []struct {
		name  string
		image testImage
		refs  []string // of blobs, by content
	}{
		{"no layers", testImage{}, nil},
		{"a layer twice", testImage{layers: [][]byte{layer, layer, archive(file("g", "x")), layer}}, []string{string(layer), string(archive(file("g", "x")))}},
		{"the same tree twice", testImage{layers: [][]byte{layer, gz}, types: []string{imgspecv1.MediaTypeImageLayer, imgspecv1.MediaTypeImageLayerGzip}}, []string{string(layer), string(gz)}},
		{"layer without a type", testImage{layers: [][]byte{layer}, types: []string{""}}, []string{string(layer)}},
		{
			"artifact",
			testImage{layers: [][]byte{[]byte("text"), []byte("\x00\xff")}, types: []string{"text/plain", "application/octet-stream"}, config: []byte(`{"a":1}`), confType: "application/vnd.example+json"},
			[]string{"text", "\x00\xff"},
		},
		{
			"config and layer of one digest",
			testImage{layers: [][]byte{[]byte(empty)}, types: []string{"application/vnd.oci.empty.v1+json"}, config: []byte(empty), confType: "application/vnd.oci.empty.v1+json"},
			[]string{empty},
		},
		{"a large record", testImage{layers: [][]byte{large}}, []string{string(large), "side:" + string(large)}},
		{"empty blob", testImage{layers: [][]byte{{}}, types: []string{"text/plain"}, confType: "application/vnd.example+json"}, []string{""}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newTestRun(t, testOptions{})
			i := tt.image
			if err := r.importImage(t, "image", &i); err != nil {
				t.Fatal(err)
			}
			want := slices.Compact(refsOf("image:latest", append(tt.refs, string(i.config))...))
			got := r.commits(t)
			if names := slices.Sorted(maps.Keys(got)); !slices.Equal(names, want) {
				t.Errorf("refs\n%q, want\n%q", names, want)
			}
			fsck(t, r.repo.path)
			r.nothingInTmp(t)
			manifest, err := r.repo.catFile(t.Context(), want[slices.IndexFunc(want, func(s string) bool { return strings.Contains(s, "_3A") })], imageref.FileManifest, 1<<20)
			if err != nil || !bytes.Equal(manifest, i.manifest) {
				t.Errorf("manifest %q, %v", manifest, err)
			}
			r.checkAgain(t, "image", i)
		})
	}
}

// checkAgain imports an image again and holds that nothing is committed or changed.
func (r *testRun) checkAgain(t *testing.T, name string, i testImage) {
	t.Helper()
	before := r.commits(t)
	fake, fakeTar := testutil.FakeTool(t, "ostree"), testutil.FakeTool(t, "tar")
	again := newTestRun(t, testOptions{repo: r.repo.path, ostree: fake, tar: fakeTar})
	if err := again.importImage(t, name, &i); err != nil {
		t.Error(err)
	}
	for _, call := range testutil.FakeCalls(t, fake) {
		if verb, _, _ := strings.Cut(call, " "); verb == "commit" || verb == "pull-local" || verb == "init" {
			t.Errorf("again: ostree %.200s", call)
		}
	}
	if calls := testutil.FakeCalls(t, fakeTar); !slices.Equal(calls, []string{""}) {
		t.Errorf("again: tar %q", calls)
	}
	sameCommits(t, "again", again.commits(t), before, func(string) string { return "" })
}

// What the image that has the name already holds is not asked for layer by layer.
func TestManyLayersAgain(t *testing.T) {
	t.Parallel()
	image := func(changed int) *testImage {
		i := &testImage{}
		for n := range 12 {
			size := int64(10 + n)
			if n == changed {
				size = 100
			}
			i.layers = append(i.layers, tarOf(t, &gotar.Header{Name: fmt.Sprint("file-", n), Typeflag: gotar.TypeReg, Mode: 0o644, Size: size}))
		}
		return i
	}
	first := newTestRun(t, testOptions{mode: ostree.Archive})
	if err := first.importImage(t, "image", image(-1)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		what, name     string
		image          *testImage
		questions, all int
	}{
		{"nothing new", "image", image(-1), 5, 5},
		{"one changed layer", "image", image(3), 6, 20}, // one more, of the commit that the name leaves
		{"another tag", "image:2", image(3), 5, 13},
		{"another name", "other", image(3), 16, 24},
	} {
		fake := testutil.FakeTool(t, "ostree")
		r := newTestRun(t, testOptions{repo: first.repo.path, ostree: fake})
		if err := r.importImage(t, tt.name, tt.image); err != nil {
			t.Fatal(err)
		}
		questions, calls := 0, testutil.FakeCalls(t, fake)
		for _, call := range calls {
			if verb, _, _ := strings.Cut(call, " "); slices.Contains([]string{"show", "cat", "ls", "refs", "rev-parse"}, verb) {
				questions++
			}
		}
		if questions > tt.questions || len(calls) > tt.all {
			t.Errorf("%s: %d questions of %d processes, want at most %d of %d:\n%s", tt.what, questions, len(calls), tt.questions, tt.all, strings.Join(calls, "\n"))
		}
		r.allWell(t, -1)
	}
}

// TestInlineRecord: the tar-split data stands in the layer's commit as long as that argument has
// room for it.
func TestInlineRecord(t *testing.T) {
	t.Parallel()
	r := newTestRun(t, testOptions{mode: ostree.Archive})
	random := rand.New(rand.NewSource(1)) // names that cannot be compressed much
	for _, n := range []int{1, 500, 1500} {
		var members []member
		for range n {
			members = append(members, file(fmt.Sprintf("%016x%016x%016x%016x", random.Uint64(), random.Uint64(), random.Uint64(), random.Uint64()), ""))
		}
		layer := archive(members...)
		if err := r.importImage(t, fmt.Sprint("image:", n), &testImage{layers: [][]byte{layer}}); err != nil {
			t.Fatal(err)
		}
		info, err := r.repo.commitInfo(t.Context(), imageref.BlobRef(digest.FromBytes(layer)))
		if err != nil {
			t.Fatal(err)
		}
		_, inline := info.Metadata[imageref.KeyTarSplit]
		_, side := r.commits(t)[imageref.SidecarRef(digest.FromBytes(layer))]
		if want := n <= 500; inline != want || side == want {
			t.Errorf("%d files: inline %t, side commit %t, want inline %t", n, inline, side, want)
		}
	}
}

func TestLargeManifest(t *testing.T) {
	t.Parallel()
	r := newTestRun(t, testOptions{mode: ostree.Archive})
	m := imgspecv1.Manifest{MediaType: imgspecv1.MediaTypeImageManifest, Annotations: map[string]string{"a": strings.Repeat("x", ostree.MaxArgument)}}
	m.SchemaVersion = 2
	config := []byte(`{"os":"linux","architecture":"riscv64"}`)
	m.Config = imgspecv1.Descriptor{MediaType: imgspecv1.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))}
	i := &testImage{config: config, manifest: marshal(t, m)}
	if err := r.importImage(t, "large", i); err != nil {
		t.Fatal(err)
	}
	info, err := r.repo.commitInfo(t.Context(), "ociimage/large_3Alatest")
	if err != nil {
		t.Fatal(err)
	}
	if text, ok := info.Metadata[imageref.KeyManifest]; ok {
		t.Errorf("%s has %d bytes", imageref.KeyManifest, len(text))
	}
	testutil.SameText(t, imageref.KeyDigest, info.Metadata[imageref.KeyDigest], digest.FromBytes(i.manifest).String())
	images, err := r.repo.listImages(t.Context(), imageListOptions{unpacked: true, broken: func(name string, err error) { t.Errorf("%s: %v", name, err) }})
	if err != nil || len(images) != 1 || images[0].Digest != digest.FromBytes(i.manifest).String() || images[0].Name != "large:latest" {
		t.Errorf("%+v, %v", images, err)
	}
	r.checkAgain(t, "large", *i)
}

func TestTimestamps(t *testing.T) {
	t.Parallel()
	seconds := int64(1234567890)
	tests := []struct {
		name, config string
		timestamp    *int64
		image, blob  uint64
	}{
		{"created", `"created":"2024-05-06T07:08:09.5Z"`, nil, 1714979289, 0},
		{"created elsewhere", `"created":"2024-05-06T09:08:09+02:00"`, nil, 1714979289, 0},
		{"not created", `"author":"x"`, nil, 0, 0},
		{"no time", `"created":null`, nil, 0, 0},
		{"year 1", `"created":"0001-01-01T00:00:00Z"`, nil, 0, 0},
		{"before 1970", `"created":"1969-12-31T23:59:59Z"`, nil, 0, 0},
		{"year 9999", `"created":"9999-12-31T23:59:59Z"`, nil, 253402300799, 0},
		{"bad", `"created":"yesterday"`, nil, 0, 0},
		{"given", `"created":"2024-05-06T07:08:09Z"`, &seconds, 1234567890, 1234567890},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newTestRun(t, testOptions{mode: ostree.Archive, timestamp: tt.timestamp})
			layer := archive(file("f", "x"))
			i := &testImage{layers: [][]byte{layer}, config: []byte(`{"os":"linux","architecture":"riscv64",` + tt.config + `}`)}
			if err := r.importImage(t, "a", i); err != nil {
				t.Fatal(err)
			}
			for ref, want := range map[string]uint64{
				"ociimage/a_3Alatest": tt.image, imageref.BlobRef(digest.FromBytes(layer)): tt.blob, imageref.BlobRef(digest.FromBytes(i.config)): tt.blob,
			} {
				if info, err := r.repo.commitInfo(t.Context(), ref); err != nil || info.Timestamp != want {
					t.Errorf("%s: %d, %v, want %d", ref, info.Timestamp, err, want)
				}
			}
		})
	}
}

func TestVanishedBlob(t *testing.T) {
	t.Parallel()
	r := newTestRun(t, testOptions{mode: ostree.Archive})
	layer := archive(file("f", "vanishes"))
	i := &testImage{layers: [][]byte{layer}}
	if err := r.importImage(t, "first", i); err != nil {
		t.Fatal(err)
	}
	d := r.destination(t, "second")
	if ok, _, err := d.TryReusingBlob(t.Context(), blobInfo(layer, i.types[0]), nil, false); !ok || err != nil {
		t.Fatalf("it is not reused: %t, %v", ok, err)
	}
	testutil.Run(t, "ostree", "refs", "--repo="+r.repo.path, "--delete", imageref.BlobRef(digest.FromBytes(layer)))
	before := r.commits(t)
	err := put(t.Context(), d, i)
	testutil.SameText(t, "error", testutil.ErrText(err), "blob "+digest.FromBytes(layer).String()+" was removed from the repository while the image was copied; copy it again")
	var vanished *vanishedError
	if !errors.As(err, &vanished) {
		t.Errorf("%T is no vanishedError", err)
	}
	sameCommits(t, "after it", r.commits(t), before, func(string) string { return "" })
	r.nothingInTmp(t)
}

// TestPartial: a commit that is marked as partial, as a run that was killed may leave any, is made
// anew by the next copy.
func TestPartial(t *testing.T) {
	t.Parallel()
	r := newTestRun(t, testOptions{mode: ostree.Archive})
	var many []member
	for i := range 3000 { // the tar-split data has a commit of its own
		many = append(many, file(fmt.Sprintf("f-%x-%d", i*i*7919, i), ""))
	}
	layer := archive(many...)
	images := map[string]*testImage{
		"many": {layers: [][]byte{layer}},
		"kept": {layers: [][]byte{zipped(t, archive(file("f", "kept")))}, types: []string{imgspecv1.MediaTypeImageLayerGzip}},
	}
	for name, i := range images {
		if err := newTestRun(t, testOptions{repo: r.repo.path, preserve: name == "kept"}).importImage(t, name, i); err != nil {
			t.Fatal(err)
		}
	}
	commits := r.commits(t)
	mark := func(ref string) (path string) {
		t.Helper()
		path = r.repo.partialMark(commits[ref])
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for ref := range commits {
		path := mark(ref)
		for name, i := range images {
			if err := r.importImage(t, name, i); err != nil {
				t.Errorf("%s: %v", ref, err)
			}
		}
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s is still marked as partial: %v", ref, err)
			_ = os.Remove(path)
		}
		sameCommits(t, ref, r.commits(t), commits, func(string) string { return "" })
	}
	for _, ref := range []string{imageref.BlobRef(digest.FromBytes(layer)), imageref.SidecarRef(digest.FromBytes(layer))} {
		d := r.destination(t, "many:2")
		if ok, _, err := d.TryReusingBlob(t.Context(), blobInfo(layer, ""), nil, false); !ok || err != nil {
			t.Fatalf("it is not reused: %t, %v", ok, err)
		}
		path := mark(ref)
		var vanished *vanishedError
		if err := put(t.Context(), d, images["many"]); !errors.As(err, &vanished) {
			t.Errorf("%s becomes partial while the image is copied: %v", ref, err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	r.allWell(t, len(images))
}

// TestFailingCommands: whatever fails, no ref appears that was not there.
func TestFailingCommands(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, match, wantErr string }{
		{"no staging repository", "init ", "making the staging repository: FAKE init: exit status 1: no"},
		{"no mode", "config --repo=", "FAKE config: exit status 1: no"},
		{"no version", "--version", "FAKE: exit status 1: no"},
		{"no layer", "--branch=ociimage/LAYER", "layer LAYER: FAKE commit: exit status 1: no"},
		{"no config", "--branch=ociimage/CONFIG", "FAKE commit: exit status 1: no"},
		{"no blobs", "pull-local --repo=REPO --disable-fsync REPO/tmp/", "publishing the blobs: FAKE pull-local: exit status 1: no"},
		{"no image", "--branch=ociimage/a_3Alatest", "FAKE commit: exit status 1: no"},
		{"image not published", "stage ociimage/a_3Alatest", "publishing the image: FAKE pull-local: exit status 1: no"},
	}
	layer := archive(file("f", "fails"))
	i := (&testImage{layers: [][]byte{layer}}).Finish(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			repo := newRepo(t, ostree.Archive)
			here := strings.NewReplacer("LAYER", digest.FromBytes(layer).Encoded(), "CONFIG", digest.FromBytes(i.config).Encoded(), "REPO", repo)
			fake := testutil.FakeTool(t, "ostree", testutil.FakeRule{Match: here.Replace(tt.match), Stderr: "error: no\n", Exit: 1})
			r := newTestRun(t, testOptions{repo: repo, ostree: fake})
			err := r.importImage(t, "a", &testImage{layers: i.layers, types: i.types, config: i.config, manifest: i.manifest, confType: i.confType})
			text := strings.ReplaceAll(strings.TrimPrefix(testutil.ErrText(err), "importing: "), fake, "FAKE")
			testutil.SameText(t, "error", text, here.Replace(tt.wantErr))
			for ref := range refCommits(t, repo) {
				if strings.Contains(ref, "_3A") {
					t.Errorf("%s is there", ref)
				}
			}
			r.nothingInTmp(t)
			fsck(t, repo)
		})
	}
}

// TestRolledBack: where the publishing fails after it has moved refs, each names what it did
// before, and new ones are gone.
func TestRolledBack(t *testing.T) {
	t.Parallel()
	shared := archive(file("f", "shared"))
	r := newTestRun(t, testOptions{mode: ostree.Archive})
	for name, layer := range map[string][]byte{"a": archive(file("f", "old")), "other": shared} {
		if err := r.importImage(t, name, &testImage{layers: [][]byte{layer}}); err != nil {
			t.Fatal(err)
		}
	}
	// A layer that says nothing of its bytes is imported anew, and its ref moves.
	r.tamper(t, imageref.BlobRef(digest.FromBytes(shared)), func(m map[string]string) { clear(m) })
	before := r.commits(t)
	next := (&testImage{layers: [][]byte{shared, archive(file("g", "new"))}}).Finish(t)
	for _, tt := range []struct{ name, match, then, wantErr string }{
		{"the image's ref is moved", "ociimage/a_3Alatest", "echo 'error: too late' >&2; exit 1", "too late"},
		{"those of blobs are", "ociimage/" + digest.FromBytes(shared).Encoded(), "echo 'error: too late' >&2; exit 1", "too late"},
		{"interrupted", "ociimage/a_3Alatest", `: >"$0.done"; exec sleep 60`, "stopped by interrupt"},
	} {
		// It does what it is asked for, and fails then.
		fake := filepath.Join(t.TempDir(), "ostree")
		script := "#!/bin/sh\nostree \"$@\" || exit\ncase \"$*\" in *pull-local*'" + tt.match + "'*) " + tt.then + " ;; esac\n"
		if err := os.WriteFile(fake, []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		failing := newTestRun(t, testOptions{repo: r.repo.path, ostree: fake})
		ctx, cancel := context.WithCancelCause(t.Context())
		d, ended := failing.destination(t, "a"), make(chan error)
		d.ctx, d.fail = ctx, cancel
		go func() { ended <- put(ctx, d, next) }()
		if tt.name == "interrupted" {
			testutil.Eventually(t, "the publishing", func() bool { _, err := os.Stat(fake + ".done"); return err == nil })
			cancel(errdefs.SignalError{Sig: syscall.SIGINT})
		}
		if err := <-ended; !strings.Contains(testutil.ErrText(err), tt.wantErr) {
			t.Errorf("%s: %v", tt.name, err)
		}
		cancel(nil)
		sameCommits(t, tt.name, r.commits(t), before, func(string) string { return "" })
		r.nothingInTmp(t)
	}
	fsck(t, r.repo.path)
	if err := r.importImage(t, "a", next); err != nil {
		t.Error(err)
	}
}

// TestSignedBytes: what a signature covers is kept to the byte, announced or not, and is not taken
// from where it is not.
func TestSignedBytes(t *testing.T) {
	t.Parallel()
	layer := archive(file("f", "signed"))
	gz := zipped(t, layer)
	i := (&testImage{layers: [][]byte{gz}, types: []string{imgspecv1.MediaTypeImageLayerGzip}}).Finish(t)
	r := newTestRun(t, testOptions{mode: ostree.Archive})
	if err := r.importImage(t, "unsigned", i); err != nil {
		t.Fatal(err)
	}
	announced := r.destination(t, "announced")
	if err := announced.SupportsSignatures(t.Context()); err != nil {
		t.Fatal(err)
	}
	info := blobInfo(gz, i.types[0])
	if reused, _, err := announced.TryReusingBlob(t.Context(), info, nil, false); reused || err != nil {
		t.Errorf("a layer without its bytes is taken for a signed image: %v", err)
	}
	for name, d := range map[string]*destination{"announced": announced, "silent": r.destination(t, "silent")} {
		for _, b := range []struct {
			content  []byte
			info     types.BlobInfo
			isConfig bool
		}{{gz, info, false}, {i.config, blobInfo(i.config, i.confType), true}} {
			if _, err := d.PutBlob(t.Context(), bytes.NewReader(b.content), b.info, nil, b.isConfig); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.PutManifest(t.Context(), i.manifest, nil); err != nil {
			t.Fatal(err)
		}
		if err := d.PutSignatures(t.Context(), [][]byte{[]byte(name)}, nil); err != nil {
			t.Fatal(err)
		}
		if err := d.Commit(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if b, err := getBlob(t.Context(), r.source(t, name), digest.FromBytes(gz)); err != nil || !bytes.Equal(b, gz) {
			t.Errorf("%s: %d bytes of %d: %v", name, len(b), len(gz), err)
		}
		// The next has to begin anew.
		testutil.Run(t, "ostree", "refs", "--repo="+r.repo.path, "--delete", imageref.SidecarRef(digest.FromBytes(gz)))
	}
}

// TestPublishing: the image's commit comes with the blobs, so that a transaction that is killed
// cannot leave it marked as partial, and its ref when all that it needs is there.
func TestPublishing(t *testing.T) {
	t.Parallel()
	repo := newRepo(t, ostree.Archive)
	fake := testutil.FakeTool(t, "ostree")
	r := newTestRun(t, testOptions{repo: repo, ostree: fake})
	layer := archive(file("f", "published"))
	if err := r.importImage(t, "a", &testImage{layers: [][]byte{layer}}); err != nil {
		t.Fatal(err)
	}
	const image = "ociimage/a_3Alatest"
	commits := r.commits(t)
	var pulls []string
	for _, call := range testutil.FakeCalls(t, fake) {
		if strings.HasPrefix(call, "pull-local ") {
			pulls = append(pulls, call)
		}
	}
	if len(pulls) != 2 || !strings.HasSuffix(pulls[0], " "+commits[image]) || !strings.HasSuffix(pulls[1], "/stage "+image) {
		t.Fatalf("published by %q", pulls)
	}
	for ref := range commits {
		if strings.Contains(pulls[0], ref) != (ref != image) {
			t.Errorf("%s is in the wrong transaction: %q", ref, pulls)
		}
	}
}

// TestLockedAtTheEnd: while a layer is still imported, others can publish and remove.
func TestLockedAtTheEnd(t *testing.T) {
	t.Parallel()
	fake := filepath.Join(t.TempDir(), "ostree")
	script := `#!/bin/sh
case "$*" in
*--tree=tar=-*) : >"$0.layer"; until [ -e "$0.go" ]; do sleep 0.05; done ;;
esac
exec ostree "$@"
`
	if err := os.WriteFile(fake, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	r := newTestRun(t, testOptions{ostree: fake})
	large := (&testImage{layers: [][]byte{archive(file("f", strings.Repeat("large", 1<<20)))}}).Finish(t)
	d, ended := r.destination(t, "a"), make(chan error)
	go func() { ended <- put(t.Context(), d, large) }()
	there := func(name string) func() bool {
		return func() bool { _, err := os.Stat(fake + name); return err == nil }
	}
	testutil.Eventually(t, "the layer's import", there(".layer"))
	for range 20 {
		dir, err := os.Open(r.repo.path)
		if err != nil {
			t.Fatal(err)
		}
		if ok, err := workdir.TryLock(dir); !ok || err != nil {
			t.Errorf("the repository is locked while a layer is imported: %v", err)
		}
		_ = dir.Close()
		time.Sleep(10 * time.Millisecond)
	}
	mkdirFile(t, fake+".go", nil)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	fsck(t, r.repo.path)
}

// TestNothingNewWaitsForNobody: an image that is there is not published again, so nobody who
// publishes need end first.
func TestNothingNewWaitsForNobody(t *testing.T) {
	t.Parallel()
	r := newTestRun(t, testOptions{mode: ostree.Archive})
	i := (&testImage{layers: [][]byte{archive(file("f", "there"))}}).Finish(t)
	if err := r.importImage(t, "a", i); err != nil {
		t.Fatal(err)
	}
	unlock, err := r.repo.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	before := r.commits(t)
	if err := put(ctx, r.destination(t, "a"), i); err != nil {
		t.Error(err)
	}
	sameCommits(t, "after it", r.commits(t), before, func(string) string { return "" })
}

// TestEndlessInput: a config and a signature are read into memory, as far as they may be.
func TestEndlessInput(t *testing.T) {
	t.Parallel()
	r := newTestRun(t, testOptions{mode: ostree.Archive})
	d := r.destination(t, "a")
	config := &io.LimitedReader{R: zeroReader{}, N: 3 * maxConfigBytes}
	_, err := d.PutBlob(t.Context(), config, types.BlobInfo{Size: -1}, nil, true)
	if !strings.Contains(testutil.ErrText(err), "is larger than 16777216 bytes") || config.N < maxConfigBytes {
		t.Errorf("%v, with %d bytes left", err, config.N)
	}
	i := (&testImage{}).Finish(t)
	if err := d.PutManifest(t.Context(), i.manifest, nil); err != nil {
		t.Fatal(err)
	}
	for size, want := range map[int]string{maxSignatureBytes: "", maxSignatureBytes + 1: "a signature is larger than 4194304 bytes"} {
		testutil.SameText(t, "error", testutil.ErrText(d.PutSignatures(t.Context(), [][]byte{nil, make([]byte, size)}, nil)), want)
	}
	r.maxManifest = int64(len(i.manifest))
	if err := d.PutManifest(t.Context(), i.manifest, nil); err != nil {
		t.Error(err)
	}
	r.maxManifest--
	if err := d.PutManifest(t.Context(), i.manifest, nil); !strings.Contains(testutil.ErrText(err), "the limit of --max-manifest-size") {
		t.Errorf("a larger manifest: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	r.nothingLeft(t)
}

// TestBlobDirectory: blobs are staged where --tmpdir says, and leave nothing there.
func TestBlobDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := newTestRun(t, testOptions{mode: ostree.Archive, tmpdir: dir})
	layer := archive(file("f", "staged"), file("f", "twice"))
	d := r.destination(t, "a")
	if _, err := d.PutBlob(t.Context(), bytes.NewReader(layer), blobInfo(layer, ""), nil, false); err != nil {
		t.Fatal(err)
	}
	if found, err := filepath.Glob(dir + "/ostree-image-*/blob-*"); err != nil || len(found) == 0 {
		t.Errorf("nothing is staged in %s: %v", dir, err)
	}
	if err := put(t.Context(), d, (&testImage{layers: [][]byte{layer}, types: []string{""}}).Finish(t)); err != nil {
		t.Fatal(err)
	}
	if left := names(t, dir); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	r = newTestRun(t, testOptions{repo: r.repo.path, tmpdir: dir + "/none"})
	d = r.destination(t, "b")
	_, err := d.PutBlob(t.Context(), strings.NewReader("x"), types.BlobInfo{Size: -1}, nil, false)
	if !strings.HasPrefix(testutil.ErrText(err), "the temporary directory "+dir+"/none cannot be used: ") {
		t.Errorf("%v", err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	r.nothingInTmp(t)
	if _, err := os.Stat(dir + "/none"); !os.IsNotExist(err) {
		t.Errorf("%s/none: %v", dir, err)
	}
}

// TestOpenError: that the repository cannot be used is said as it is, and not as something that
// befell a blob.
func TestOpenError(t *testing.T) {
	t.Parallel()
	r := newTestRun(t, testOptions{})
	dir := t.TempDir()
	r.repo.path = dir
	want := dir + " is no OSTree repository; create one elsewhere with: ostree init --repo=PATH --mode=bare-user"
	layer := archive(file("a", "1"))
	info := blobInfo(layer, imgspecv1.MediaTypeImageLayer)
	for what, ask := range map[string]func(d *destination) error{
		"TryReusingBlob": func(d *destination) error { _, _, err := d.TryReusingBlob(t.Context(), info, nil, false); return err },
		"PutBlob": func(d *destination) error {
			_, err := d.PutBlob(t.Context(), bytes.NewReader(layer), info, nil, false)
			return err
		},
		"Commit": func(d *destination) error { return d.Commit(t.Context(), nil) },
	} {
		d := r.destination(t, "a")
		err := explainCopy(errors.WithMessage(ask(d), "what the library says of it"))
		testutil.SameText(t, what, testutil.ErrText(err), want)
		var notFound errdefs.NotFoundError
		if !errors.As(err, &notFound) {
			t.Errorf("%s: %T is no notFoundError", what, err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestRemoteArrives: what another process pulls from a remote while the image is copied gets the
// copy's own refs all the same.
func TestRemoteArrives(t *testing.T) {
	t.Parallel()
	image := func() *testImage { return &testImage{layers: [][]byte{archive(file("a", "1"))}} }
	origin := newTestRun(t, testOptions{})
	if err := origin.importImage(t, "a", image()); err != nil {
		t.Fatal(err)
	}
	want := origin.commits(t)
	r := newTestRun(t, testOptions{})
	d := r.destination(t, "a")
	if err := d.opened(); err != nil {
		t.Fatal(err)
	}
	testutil.Run(t, "ostree", "pull-local", "--repo="+r.repo.path, "--remote=origin", origin.repo.path)
	if err := put(t.Context(), d, image().Finish(t)); err != nil {
		t.Fatal(err)
	}
	got := r.commits(t)
	for ref, commit := range want {
		if _, isBlob := imageref.BlobHex(ref); isBlob && got[ref] != commit {
			t.Errorf("%s is %q, want %s", ref, got[ref], commit)
		}
	}
}

// TestBlobBesideTheManifest: a blob that the library puts and the manifest does not name, an empty
// layer of a schema1 image, is rolled back to what it was, too.
func TestBlobBesideTheManifest(t *testing.T) {
	t.Parallel()
	empty := archive()
	first := newTestRun(t, testOptions{})
	if err := first.importImage(t, "a", &testImage{layers: [][]byte{empty}}); err != nil {
		t.Fatal(err)
	}
	first.tamper(t, imageref.BlobRef(digest.FromBytes(empty)), func(m map[string]string) { clear(m) }) // and so imported anew
	before := first.commits(t)
	failing := newTestRun(t, testOptions{repo: first.repo.path, ostree: testutil.FakeTool(t, "ostree", testutil.FakeRule{Match: "stage ociimage/b_3Alatest", Stderr: "error: no\n", Exit: 1})})
	d := failing.destination(t, "b")
	if _, err := d.PutBlob(t.Context(), bytes.NewReader(empty), blobInfo(empty, imgspecv1.MediaTypeImageLayer), nil, false); err != nil {
		t.Fatal(err)
	}
	if err := put(t.Context(), d, (&testImage{layers: [][]byte{archive(file("b", "1"))}}).Finish(t)); !strings.Contains(testutil.ErrText(err), "publishing the image") {
		t.Errorf("it ends with %v", err)
	}
	sameCommits(t, "taken back", first.commits(t), before, func(string) string { return "" })
}
