package main

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/pkg/errors"
	"go.podman.io/image/v5/types"

	"ostree-image/internal/imageref"
	"ostree-image/internal/ostree"
	"ostree-image/internal/testutil"
)

// TestBlobWithoutDigest: a blob may come without a digest, and is the same as with one from then
// on.
func TestBlobWithoutDigest(t *testing.T) {
	t.Parallel()
	layer := archive(file("f", bigBody), file("g", ""))
	tests := []struct {
		name, mediaType string
		blob            []byte
		isConfig        bool
		wantErr         string
	}{
		{"layer", imgspecv1.MediaTypeImageLayer, layer, false, ""},
		{"compressed layer", imgspecv1.MediaTypeImageLayerGzip, zipped(t, layer), false, ""},
		{"layer without a type", "", layer, false, ""},
		{"content", "text/plain", []byte("text"), false, ""},
		{"config", imgspecv1.MediaTypeImageConfig, []byte(`{}`), true, ""},
		{"large config", imgspecv1.MediaTypeImageConfig, make([]byte, maxConfigBytes+1), true, "is larger than "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newTestRun(t, testOptions{mode: ostree.Archive})
			for _, name := range []string{"first", "second"} { // the second time the repository has it
				d := r.destination(t, name)
				var sum digest.Digest
				for range 2 {
					info, err := d.PutBlob(t.Context(), bytes.NewReader(tt.blob), types.BlobInfo{Size: -1, MediaType: tt.mediaType}, nil, tt.isConfig)
					if !strings.Contains(testutil.ErrText(err), tt.wantErr) || (err == nil) != (tt.wantErr == "") {
						t.Errorf("error %q, want %q", testutil.ErrText(err), tt.wantErr)
					}
					sum = info.Digest
					if err == nil && (sum != digest.FromBytes(tt.blob) || info.Size != int64(len(tt.blob))) {
						t.Errorf("it is %s of %d bytes", sum, info.Size)
					}
				}
				if tt.wantErr != "" {
					if err := d.Close(); err != nil {
						t.Error(err)
					}
					r.nothingLeft(t)
					return
				}
				// Who asks for it now is answered.
				if reused, _, err := d.TryReusingBlob(t.Context(), blobInfo(tt.blob, tt.mediaType), nil, false); err != nil || !reused {
					t.Errorf("reused %t, %v", reused, err)
				}
				i := &testImage{layers: [][]byte{tt.blob}, types: []string{tt.mediaType}}
				if tt.isConfig {
					i = &testImage{config: tt.blob}
				}
				if err := put(t.Context(), d, i.Finish(t)); err != nil {
					t.Fatal(err)
				}
			}
			r.allWell(t, 2)
			r.nothingInTmp(t)
		})
	}
}

// TestConfigOfLayer: the config of an artifact may be a layer, of this image or of another. It must
// be readable as both.
func TestConfigOfLayer(t *testing.T) {
	t.Parallel()
	layer := archive(file("f", "config and layer"))
	for _, tt := range []struct {
		name string
		blob []byte
		kind string
	}{
		{"plain", layer, imgspecv1.MediaTypeImageLayer},
		{"compressed", zipped(t, layer), imgspecv1.MediaTypeImageLayerGzip},
	} {
		image := &testImage{layers: [][]byte{tt.blob}, types: []string{tt.kind}}
		both := &testImage{layers: [][]byte{tt.blob}, types: []string{tt.kind}, config: tt.blob, confType: "application/vnd.example"}
		config := &testImage{config: tt.blob, confType: "application/vnd.example"}
		for what, order := range map[string][2]*testImage{
			"image, both": {image, both}, "image, config": {image, config}, "config, image": {config, image}, "both, config": {both, config},
		} {
			if tt.name == "plain" && what != "image, both" {
				continue
			}
			t.Run(tt.name+" "+what, func(t *testing.T) {
				t.Parallel()
				r := newTestRun(t, testOptions{})
				for n, i := range order {
					copied := *i
					err := r.importImage(t, []string{"one", "two"}[n], &copied)
					var again *reimportError
					if errors.As(err, &again) { // as a copy does
						err = r.importImage(t, []string{"one", "two"}[n], &copied)
					}
					if err != nil {
						t.Fatal(err)
					}
				}
				r.allWell(t, 2)
				r.listed(t, 2)
				for n, i := range order {
					if i == image {
						continue
					}
					src := r.source(t, []string{"one", "two"}[n])
					if b, err := getBlob(t.Context(), src, digest.FromBytes(tt.blob)); err != nil || !bytes.Equal(b, tt.blob) {
						t.Errorf("image %d: the config is %q: %v", n, b, err)
					}
				}
				copied := *order[1]
				r.checkAgain(t, "two", copied)
			})
		}
	}
}

// listed holds that so many images can be listed, and no other is there.
func (r *testRun) listed(t *testing.T, n int) {
	t.Helper()
	images, err := r.repo.listImages(t.Context(), imageListOptions{parallel: 2, unpacked: true, broken: func(name string, err error) { t.Errorf("list: %s: %v", name, err) }})
	if err != nil || len(images) != n {
		t.Errorf("%d images are listed, want %d: %v", len(images), n, err)
	}
}

// TestIncompleteLayer: a layer that an older program left without what its bytes need is imported
// anew, whoever made the image that has it, and under whatever name that stands.
func TestIncompleteLayer(t *testing.T) {
	t.Parallel()
	image := &testImage{layers: [][]byte{archive(file("f", "shared")), archive(file("g", "too"))}}
	var many []member
	for n := range 3000 {
		many = append(many, file(digest.FromString(string(rune(n))).Encoded(), ""))
	}
	large := &testImage{layers: [][]byte{archive(many...)}}
	broken := map[string]func(metadata map[string]string){
		"no record": func(m map[string]string) { delete(m, imageref.KeyTarSplit) },
		"no diffID": func(m map[string]string) { delete(m, imageref.KeyUncompressedDigest) },
		"of 2017": func(m map[string]string) {
			delete(m, imageref.KeyTarSplit)
			delete(m, imageref.KeyUncompressedDigest)
			delete(m, imageref.KeyUncompressedSize)
		},
		"other size": func(m map[string]string) { m[imageref.KeySize] = "1" },
	}
	for what, edit := range broken {
		for _, again := range []string{"app:1", "app:2", "other"} {
			for name, i := range map[string]*testImage{"": image, ", record beside it": large} {
				if what != "no record" && (again != "app:2" || what == "no diffID" && i == image) || i == large && (what != "no diffID" || again != "app:2") {
					continue
				}
				t.Run(what+", "+again+name, func(t *testing.T) {
					t.Parallel()
					r := newTestRun(t, testOptions{})
					copied := *i
					if err := r.importImage(t, "app:1", &copied); err != nil {
						t.Fatal(err)
					}
					want := r.commits(t)
					r.tamper(t, imageref.BlobRef(digest.FromBytes(i.layers[0])), edit)
					if err := r.importImage(t, again, &copied); err != nil {
						t.Fatal(err)
					}
					got := r.commits(t)
					for ref := range got {
						if want[ref] == "" && !slices.Contains([]string{"app:2", "other:latest"}, nameOfRef(ref)) {
							t.Errorf("%s is new", ref)
						}
						if want[ref] != "" && got[ref] != want[ref] {
							t.Errorf("%s is not what it was", ref)
						}
					}
					r.sameLayers(t, again, &copied, copied.layers)
					r.allWell(t, -1)
				})
			}
		}
	}
}

func nameOfRef(ref string) string {
	name, _ := imageref.ImageName(ref)
	return name
}
