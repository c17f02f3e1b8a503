package main

import (
	gotar "archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/types"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/imageref"
	"ostree-image/internal/ostree"
	"ostree-image/internal/testutil"
)

// source opens an image of the repository.
func (r *testRun) source(t testing.TB, name string) *source {
	t.Helper()
	src, err := r.openSource(t.Context(), t, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = src.Close() })
	return src
}

func (r *testRun) openSource(ctx context.Context, t testing.TB, name string) (*source, error) {
	t.Helper()
	return openSource(ctx, r.reference(t, name))
}

func (r *testRun) reference(t testing.TB, name string) ostreeReference {
	t.Helper()
	ref, err := newReference(ostreeTransport{r.settings}, name, r.repo.path)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// getBlob reads a blob to its end.
func getBlob(ctx context.Context, src *source, d digest.Digest) ([]byte, error) {
	stream, size, err := src.GetBlob(ctx, types.BlobInfo{Digest: d, Size: -1}, nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = stream.Close() }()
	var b bytes.Buffer
	if _, err = io.Copy(&b, stream); err == nil && size >= 0 && size != int64(b.Len()) {
		err = errdefs.Checkf("it has %d bytes, and %d were announced", b.Len(), size)
	}
	return b.Bytes(), err
}

// tars reads the tar streams of all layers, as a copy out of the repository does.
func tars(ctx context.Context, src *source) (layers [][]byte, err error) {
	infos, err := src.LayerInfosForCopy(ctx, nil)
	if err != nil {
		return nil, err
	}
	for _, info := range infos {
		b, err := getBlob(ctx, src, info.Digest)
		if err != nil {
			return nil, err
		}
		layers = append(layers, b)
	}
	return layers, nil
}

// sameLayers holds that an image gives its layers back: their tar streams, and the blobs
// themselves.
func (r *testRun) sameLayers(t testing.TB, name string, i *testImage, streams [][]byte) {
	t.Helper()
	src := r.source(t, name)
	got, err := tars(t.Context(), src)
	if err != nil {
		t.Error(err)
		return
	}
	if len(got) != len(streams) {
		t.Fatalf("%d layers, want %d", len(got), len(streams))
	}
	for n := range streams {
		if !bytes.Equal(got[n], streams[n]) {
			t.Errorf("layer %d is %s of %d bytes, want %s of %d", n, digest.FromBytes(got[n]), len(got[n]), digest.FromBytes(streams[n]), len(streams[n]))
		}
	}
	for n, l := range i.layers {
		if b, err := getBlob(t.Context(), r.source(t, name), digest.FromBytes(l)); err != nil || !bytes.Equal(b, l) {
			t.Errorf("blob %d is %s, want %s: %v", n, digest.FromBytes(b), digest.FromBytes(l), err)
		}
	}
}

// tamper gives a ref another commit with the same tree, and the metadata that edit makes of the
// old.
func (r *testRun) tamper(t *testing.T, ref string, edit func(metadata map[string]string)) {
	t.Helper()
	info, err := r.repo.commitInfo(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	edit(info.Metadata)
	args := []string{"commit", "--repo=" + r.repo.path, "--branch=" + ref, "--tree=ref=" + info.Checksum, "--timestamp=@0", "--parent=none"}
	for _, k := range slices.Sorted(maps.Keys(info.Metadata)) {
		args = append(args, "--add-metadata-string="+k+"="+info.Metadata[k])
	}
	testutil.Run(t, "ostree", args...)
}

// record returns tar-split data as the metadata of a commit has it.
func record(t *testing.T, lines ...string) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write([]byte(strings.Join(lines, "\n") + "\n")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(b.Bytes())
}

// recordLines returns the lines of tar-split data that a commit has as metadata.
func recordLines(t *testing.T, data string) []string {
	t.Helper()
	r, err := gzip.NewReader(base64.NewDecoder(base64.StdEncoding, strings.NewReader(data)))
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

// A commit that lies is an error, of status 4, that names the blob. Nothing hangs, and no process
// is left.
func TestLyingMetadata(t *testing.T) {
	layer := tarOf(t,
		&gotar.Header{Name: "dir/", Typeflag: gotar.TypeDir, Mode: 0o755},
		&gotar.Header{Name: "dir/a", Typeflag: gotar.TypeReg, Mode: 0o644, Size: 10},
		&gotar.Header{Name: "big", Typeflag: gotar.TypeReg, Mode: 0o644, Size: 3_000_000},
		&gotar.Header{Name: "link", Typeflag: gotar.TypeSymlink, Linkname: "dir/a"},
		&gotar.Header{Name: "loop", Typeflag: gotar.TypeSymlink, Linkname: "loop"},
	)
	file := func(name string, size int) string {
		return fmt.Sprintf(`{"type":1,"name":%q,"size":%d,"payload":"AAAAAAAAAAA=","position":0}`, name, size)
	}
	setRecord := func(lines ...string) func(*testing.T, map[string]string) {
		return func(t *testing.T, m map[string]string) { m[imageref.KeyTarSplit] = record(t, lines...) }
	}
	set := func(key, value string) func(*testing.T, map[string]string) {
		return func(_ *testing.T, m map[string]string) { m[key] = value }
	}
	many := make([]string, 10000)
	for i := range many {
		many[i] = file("dir/a", 10)
	}
	tests := []struct {
		name string
		edit func(*testing.T, map[string]string)
		want string
	}{
		{"another diffID", set(imageref.KeyUncompressedDigest, "sha256:"+strings.Repeat("0", 64)), "and the image's config names"},
		{"no diffID", set(imageref.KeyUncompressedDigest, "sha256:x"), "names the diffID"},
		{"another diffID's kind", set(imageref.KeyUncompressedDigest, "md5:"+strings.Repeat("0", 32)), "names the diffID"},
		{"no size", set(imageref.KeySize, "many"), `says that docker.size is "many"`},
		{"negative size", set(imageref.KeyUncompressedSize, "-5"), `docker.uncompressed_size is "-5"`},
		{"no base64", set(imageref.KeyTarSplit, "!!!"), "cannot be read"},
		{"no gzip", set(imageref.KeyTarSplit, "aGVsbG8gd29ybGQK"), "cannot be read"},
		{"cut gzip", func(_ *testing.T, m map[string]string) { m[imageref.KeyTarSplit] = m[imageref.KeyTarSplit][:200] }, "cannot be read"},
		{"no JSON", setRecord("hello"), "cannot be read"},
		{"no entries", setRecord(), "it is damaged"},
		{"file outside", setRecord(file("../../../../etc/passwd", 10)), `leads out of the layer`},
		{"file outside, in the middle", setRecord(file("dir/../../etc/passwd", 10)), `leads out of the layer`},
		{"absolute name", setRecord(file("/dir/a", 10)), "integrity checksum failed"},
		{"missing file", setRecord(file("dir/b", 10)), "damaged"},
		{"file that is no file", setRecord(file("dir", 10)), "damaged"},
		{"root", setRecord(file("/", 10)), "tar-split data is wrong"},
		{"symbolic link", setRecord(file("link", 10)), "integrity checksum failed"},
		{"loop of links", setRecord(file("loop", 10)), "damaged"},
		{"name of an option", setRecord(file("--repo=/", 10)), "damaged"},
		{"name with a NUL", setRecord(`{"type":1,"name":"a\u0000b","size":10,"payload":"AAAAAAAAAAA="}`), "holds a NUL"},
		{"huge size", setRecord(file("dir/a", 1<<62)), "damaged"},
		{"negative size of a file", setRecord(file("dir/a", -1)), "tar-split data is wrong"},
		{"short size", setRecord(file("dir/a", 3)), "integrity checksum failed"},
		{"twice the same name", setRecord(file("dir/a", 10), file("dir/a", 10)), "damaged"},
		{"ten thousand times the same name", setRecord(many...), "damaged"},
		{"a large file over and over", func(t *testing.T, m map[string]string) {
			var large string
			for _, line := range recordLines(t, m[imageref.KeyTarSplit]) {
				if strings.Contains(line, `"name":"big"`) {
					large = line
				}
			}
			m[imageref.KeyTarSplit] = record(t, slices.Repeat([]string{large}, 20)...)
		}, "longer than its commit says"},
		{"a type that is none", setRecord(`{"type":7,"name":"dir/a","size":10}`), "it is damaged"},
		{"only segments", setRecord(`{"type":2,"payload":"aGVsbG8="}`), "it is damaged"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newTestRun(t, testOptions{})
			i := &testImage{layers: [][]byte{layer}}
			if err := r.importImage(t, "a", i); err != nil {
				t.Fatal(err)
			}
			r.tamper(t, imageref.BlobRef(digest.FromBytes(layer)), func(m map[string]string) { tt.edit(t, m) })
			before := testutil.ProcessesOf(r.repo.path)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			_, err := tars(ctx, r.source(t, "a"))
			if errdefs.ExitStatus(ctx, err) != errdefs.StatusCheck || !strings.Contains(testutil.ErrText(err), tt.want) {
				t.Errorf("export: %v (status %d), want %q", err, errdefs.ExitStatus(ctx, err), tt.want)
			}
			if !strings.Contains(testutil.ErrText(err), "sha256:") {
				t.Errorf("the error names no blob: %v", err)
			}
			if len(testutil.ErrText(err)) > 1000 {
				t.Errorf("the error has %d bytes", len(testutil.ErrText(err)))
			}
			results, err := verifyImages(ctx, r.settings, r.repo, nil, 2)
			if err != nil || len(results) != 1 || results[0].OK {
				t.Errorf("verify: %+v, %v", results, err)
			}
			if _, err := r.repo.listImages(ctx, imageListOptions{unpacked: true, broken: func(string, error) {}}); err != nil {
				t.Errorf("list: %v", err)
			}
			if after := testutil.ProcessesOf(r.repo.path); len(after) > len(before) {
				t.Errorf("processes are left: %q", after)
			}
		})
	}
}

// What an image's commit says of its manifest is checked.
func TestLyingImage(t *testing.T) {
	tests := []struct {
		name string
		edit func(map[string]string)
		want string
	}{
		{"another digest", func(m map[string]string) { m[imageref.KeyDigest] = "sha256:" + strings.Repeat("1", 64) }, "its commit says"},
		{"no digest", func(m map[string]string) { m[imageref.KeyDigest] = "hello" }, "names the manifest digest"},
		{"signatures that are not there", func(m map[string]string) { m[imageref.KeySignatures] = "3" }, "0 signature files"},
		{"signatures that are no number", func(m map[string]string) { m[imageref.KeySignatures] = "many" }, `signature`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newTestRun(t, testOptions{})
			if err := r.importImage(t, "a", otherImage(t)); err != nil {
				t.Fatal(err)
			}
			r.tamper(t, r.reference(t, "a").ref(), tt.edit)
			src, err := r.openSource(t.Context(), t, "a")
			if err == nil {
				_, err = src.GetSignatures(t.Context(), nil)
			}
			if errdefs.ExitStatus(t.Context(), err) != errdefs.StatusCheck || !strings.Contains(testutil.ErrText(err), tt.want) || !strings.Contains(testutil.ErrText(err), "a:latest") {
				t.Errorf("%v", err)
			}
			results, err := verifyImages(t.Context(), r.settings, r.repo, nil, 2)
			if err != nil || len(results) != 1 || results[0].OK {
				t.Errorf("verify: %+v, %v", results, err)
			}
		})
	}
	t.Run("another text in the metadata", func(t *testing.T) {
		r := newTestRun(t, testOptions{})
		i := otherImage(t)
		if err := r.importImage(t, "a", i); err != nil {
			t.Fatal(err)
		}
		r.tamper(t, r.reference(t, "a").ref(), func(m map[string]string) { m[imageref.KeyManifest] = "{}" })
		if b, _, err := r.source(t, "a").GetManifest(t.Context(), nil); err != nil || string(b) != string(i.manifest) {
			t.Errorf("the manifest is %q: %v", b, err)
		}
	})
}

// A layer that is kept as it came is read as what its commit says it is, or not at all.
func TestLyingBlob(t *testing.T) {
	t.Parallel()
	testutil.NeedRoot(t)
	r := newTestRun(t, testOptions{})
	layer, other := archive(file("f", "one"), file("f", "two")), archive(file("f", "one"), file("g", "two"))
	if err := r.importImage(t, "a", &testImage{layers: [][]byte{archive(file("base", "")), layer}}); err != nil {
		t.Fatal(err)
	}
	for want, blob := range map[string][]byte{
		"what the repository holds gives": other, "longer than its commit says": append(bytes.Clone(layer), make([]byte, 1<<20)...),
	} {
		tree := t.TempDir()
		if err := os.WriteFile(filepath.Join(tree, imageref.FileBlob), blob, 0o644); err != nil {
			t.Fatal(err)
		}
		testutil.Run(t, "ostree", "commit", "--repo="+r.repo.path, "--branch="+imageref.SidecarRef(digest.FromBytes(layer)), "--tree=dir="+tree)
		if _, err := tars(t.Context(), r.source(t, "a")); errdefs.ExitStatus(t.Context(), err) != errdefs.StatusCheck {
			t.Errorf("it is exported: %v", err)
		}
		target := filepath.Join(t.TempDir(), "root")
		if err := r.checkoutTo(t, "a", target, ostree.CheckoutOptions{}); errdefs.ExitStatus(t.Context(), err) != errdefs.StatusCheck || !strings.Contains(testutil.ErrText(err), want) {
			t.Errorf("it is checked out: %v, want %q", err, want)
		}
		if results, err := verifyImages(t.Context(), r.settings, r.repo, nil, 1); err != nil || len(results) != 1 || results[0].OK {
			t.Errorf("verify: %+v, %v", results, err)
		}
	}
}

// A file of the tree that is longer than the layer has it is no part of the layer, and is not
// passed over where the layer ends with it.
func TestLongerTree(t *testing.T) {
	t.Parallel()
	r := newTestRun(t, testOptions{})
	layers := map[string][]byte{}
	for name, size := range map[string]int64{"short": 3, "long": 10} {
		layers[name] = tarOf(t, &gotar.Header{Name: "file", Typeflag: gotar.TypeReg, Mode: 0o644, Size: size})
		if err := r.importImage(t, name, &testImage{layers: [][]byte{layers[name]}}); err != nil {
			t.Fatal(err)
		}
	}
	short, long := imageref.BlobRef(digest.FromBytes(layers["short"])), imageref.BlobRef(digest.FromBytes(layers["long"]))
	info, err := r.repo.commitInfo(t.Context(), short)
	if err != nil {
		t.Fatal(err)
	}
	r.tamper(t, long, func(m map[string]string) { maps.Copy(m, info.Metadata) })
	testutil.Run(t, "ostree", "refs", "--repo="+r.repo.path, "--force", "--create="+short, long)
	if _, err := tars(t.Context(), r.source(t, "short")); errdefs.ExitStatus(t.Context(), err) != errdefs.StatusCheck || !strings.Contains(testutil.ErrText(err), "longer than its tar-split data says") {
		t.Errorf("it is exported: %v", err)
	}
	results, err := verifyImages(t.Context(), r.settings, r.repo, []ostreeReference{r.reference(t, "short")}, 1)
	if err != nil || len(results) != 1 || results[0].OK {
		t.Errorf("verify: %+v, %v", results, err)
	}
}

// No digest becomes a part of a ref or of a path before it is known to be one.
func TestBlobDigests(t *testing.T) {
	t.Parallel()
	r := newTestRun(t, testOptions{})
	if err := r.importImage(t, "a", otherImage(t)); err != nil {
		t.Fatal(err)
	}
	src, dest := r.source(t, "a"), r.destination(t, "b")
	for _, d := range []digest.Digest{"sha256:../../a_3Alatest", "nonsense", "", "md5:d41d8cd98f00b204e9800998ecf8427e"} {
		_, err := src.store.blob(t.Context(), d)
		if errdefs.ExitStatus(t.Context(), err) != errdefs.StatusCheck || !strings.Contains(testutil.ErrText(err), "blob digest ") {
			t.Errorf("blob %q: %v", d, err)
		}
		if _, _, err := src.GetManifest(t.Context(), &d); !strings.Contains(testutil.ErrText(err), "manifest digest ") {
			t.Errorf("manifest %q: %v", d, err)
		}
		if _, _, err := dest.TryReusingBlob(t.Context(), types.BlobInfo{Digest: d}, nil, false); !strings.Contains(testutil.ErrText(err), "blob digest ") {
			t.Errorf("reusing %q: %v", d, err)
		}
	}
	if err := dest.Close(); err != nil {
		t.Error(err)
	}
}

// A commit that may not be whole is none that verify can answer for.
func TestVerifyPartial(t *testing.T) {
	t.Parallel()
	r := newTestRun(t, testOptions{})
	if err := r.importImage(t, "a", otherImage(t)); err != nil {
		t.Fatal(err)
	}
	for ref, commit := range r.commits(t) {
		mark := r.repo.partialMark(commit)
		if err := os.WriteFile(mark, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		results, err := verifyImages(t.Context(), r.settings, r.repo, nil, 1)
		if err != nil || len(results) != 1 || !strings.Contains(fmt.Sprint(results[0].Problems), "is marked as partial") {
			t.Errorf("%s: %+v, %v", ref, results, err)
		}
		if err := os.Remove(mark); err != nil {
			t.Fatal(err)
		}
	}
}

// What an index's commit holds for an instance is checked against the name that it has there.
func TestLyingInstance(t *testing.T) {
	t.Parallel()
	r := newTestRun(t, testOptions{})
	lie := digest.FromString("what it should be")
	index := marshal(t, imgspecv1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imgspecv1.MediaTypeImageIndex,
		Manifests: []imgspecv1.Descriptor{{MediaType: imgspecv1.MediaTypeImageManifest, Digest: lie, Platform: &testPlatform}},
	})
	tree := t.TempDir()
	mkdir(t, filepath.Join(tree, instanceDir(lie)))
	for name, content := range map[string][]byte{imageref.FileManifest: index, instanceDir(lie) + imageref.FileManifest: (&testImage{}).Finish(t).manifest} {
		if err := os.WriteFile(filepath.Join(tree, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	testutil.Run(t, "ostree", "commit", "--repo="+r.repo.path, "--branch="+r.reference(t, "a").ref(), "--tree=dir="+tree,
		"--add-metadata-string="+imageref.KeyDigest+"="+digest.FromBytes(index).String(), "--add-metadata-string="+imageref.KeySignatures+"=0")
	_, _, err := r.source(t, "a").GetManifest(t.Context(), &lie)
	if errdefs.ExitStatus(t.Context(), err) != errdefs.StatusCheck || !strings.Contains(testutil.ErrText(err), "the manifest of instance "+lie.String()) {
		t.Errorf("it is read: %v", err)
	}
	if _, err := pruneRepository(t.Context(), r.settings, r.repo, false, func([]string) {}); errdefs.ExitStatus(t.Context(), err) != errdefs.StatusCheck {
		t.Errorf("prune: %v", err)
	}
	if results, err := verifyImages(t.Context(), r.settings, r.repo, nil, 1); err != nil || len(results) != 1 || results[0].OK {
		t.Errorf("verify: %+v, %v", results, err)
	}
}

// A stream that is closed early ends its processes, and so does the end of the context.
func TestCloseEarly(t *testing.T) {
	var headers []*gotar.Header
	for i := range 6000 { // more than one part
		headers = append(headers, &gotar.Header{Name: fmt.Sprintf("d%d/f%d", i%50, i), Typeflag: gotar.TypeReg, Mode: 0o644, Size: 2000})
	}
	layer := tarOf(t, headers...)
	r := newTestRun(t, testOptions{})
	if err := r.importImage(t, "a", &testImage{layers: [][]byte{layer}}); err != nil {
		t.Fatal(err)
	}
	r.sameLayers(t, "a", &testImage{layers: [][]byte{layer}}, [][]byte{layer})
	half := int64(len(layer)) / 2
	for _, n := range []int64{0, 1, 100_000, half, 2*half - 1000} {
		src := r.source(t, "a")
		stream, _, err := src.GetBlob(t.Context(), types.BlobInfo{Digest: digest.FromBytes(layer)}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, stream, n); err != nil {
			t.Errorf("reading %d bytes: %v", n, err)
		}
		if err := stream.Close(); err != nil {
			t.Errorf("closing: %v", err)
		}
		if found := testutil.ProcessesOf(r.repo.path); len(found) > 0 {
			t.Errorf("after %d bytes and Close %q runs", n, found)
		}
		ctx, cancel := context.WithCancel(t.Context())
		if stream, _, err = r.source(t, "a").GetBlob(ctx, types.BlobInfo{Digest: digest.FromBytes(layer)}, nil); err != nil {
			t.Fatal(err)
		}
		_, _ = io.CopyN(io.Discard, stream, n)
		cancel()
		_, err = io.Copy(io.Discard, stream)
		if err == nil && n <= half { // near its end all of it has been put together
			t.Errorf("after %d bytes and the end of the context the layer ends well", n)
		}
		if errdefs.ExitStatus(t.Context(), err) == errdefs.StatusCheck {
			t.Errorf("after the end of the context: %v", err)
		}
		_ = stream.Close()
		if found := testutil.ProcessesOf(r.repo.path); len(found) > 0 {
			t.Errorf("after %d bytes and the end of the context %q runs", n, found)
		}
	}
}
