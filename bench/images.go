package main

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/pkg/errors"
)

// image is an OCI layout that holds one image, by the name "image".
type image struct {
	layout string
	layers []layer
}

type layer struct {
	descriptor descriptor
	diffID     string
	// devices tells that the layer holds device nodes in ./dev, which ostree commit refuses.
	devices bool
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

func (d descriptor) hex() string { return strings.TrimPrefix(d.Digest, "sha256:") }

type ociIndex struct {
	SchemaVersion int          `json:"schemaVersion"`
	Manifests     []descriptor `json:"manifests"`
}

type ociManifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

type ociConfig struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	RootFS       struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

// input makes an image below the directory work, or finds it there.
type input func(ctx context.Context, work string) (image, error)

// debian makes the image of a real system: a base with python, perl and git, and a layer that
// changes some of it.
func debian(ctx context.Context, work string) (image, error) {
	layout := filepath.Join(work, "debian")
	if _, err := os.Stat(layout); err != nil {
		script := `
cd "$WORK"
rm -rf upper debian.new
mmdebstrap --quiet --variant=minbase --include=python3,perl,git bookworm base.tar
mkdir upper
tar -C upper -xf base.tar ./etc ./usr/bin ./usr/share/doc
touch upper/etc/.wh.passwd
tar -C upper --numeric-owner -cf upper.tar .
umoci init --layout debian.new
umoci new --image debian.new:image
umoci raw add-layer --image debian.new:image base.tar
umoci raw add-layer --image debian.new:image upper.tar
umoci gc --layout debian.new
rm -rf upper upper.tar base.tar
mv debian.new debian`
		cmd := exec.CommandContext(ctx, "sh", "-euc", script)
		cmd.Env = append(os.Environ(), "WORK="+work)
		if err := output(cmd); err != nil {
			return image{}, err
		}
	}
	img, err := readImage(layout)
	if err != nil {
		return image{}, err
	}
	img.layers[0].devices = true
	return img, nil
}

// generated is the image of so many layers, each of so many files of the given size, half of each
// random.
func generated(layers int, files, size int64) input {
	return func(_ context.Context, work string) (image, error) {
		name := fmt.Sprintf("generated-%dx%dx%d", layers, files, size)
		return writeImage(filepath.Join(work, name), func(layout string) (all []layer, err error) {
			for n := range layers {
				l, err := generateLayer(layout, uint64(n), files, size)
				if err != nil {
					return nil, err
				}
				all = append(all, l)
			}
			return all, nil
		})
	}
}

// replaced is the image of another input with its layer n, from 0, replaced by a generated one.
func replaced(of input, n int, files, size int64) input {
	return func(ctx context.Context, work string) (image, error) {
		old, err := of(ctx, work)
		if err != nil {
			return image{}, err
		}
		return writeImage(fmt.Sprintf("%s-%d-%dx%d", old.layout, n, files, size), func(layout string) (all []layer, err error) {
			for i, l := range old.layers {
				if i == n {
					l, err = generateLayer(layout, replacedSeed, files, size)
				} else {
					err = os.Link(blobPath(old.layout, l.descriptor.Digest), blobPath(layout, l.descriptor.Digest))
				}
				if err != nil {
					return nil, errors.WithStack(err)
				}
				all = append(all, l)
			}
			return all, nil
		})
	}
}

// onlyLayer is the image that has just layer n, from 0, of another input, a generated one.
func onlyLayer(of input, n int) input {
	return func(ctx context.Context, work string) (image, error) {
		old, err := of(ctx, work)
		if err != nil {
			return image{}, err
		}
		return writeImage(fmt.Sprintf("%s-%d-only", old.layout, n), func(layout string) ([]layer, error) {
			digest := old.layers[n].descriptor.Digest
			return old.layers[n : n+1], errors.WithStack(os.Link(blobPath(old.layout, digest), blobPath(layout, digest)))
		})
	}
}

// Seeds of layers that must differ from those of generated, which counts from 0.
const (
	replacedSeed = 1 << 20
	fillingSeed  = 1 << 21
)

// writeImage makes the layout unless it exists. fill puts the layers' blobs into the directory that
// it is given.
func writeImage(layout string, fill func(layout string) ([]layer, error)) (image, error) {
	if _, err := os.Stat(layout); err == nil {
		return readImage(layout)
	}
	fresh := layout + ".new" // renamed when it is whole
	if err := os.RemoveAll(fresh); err != nil {
		return image{}, errors.WithStack(err)
	}
	if err := os.MkdirAll(filepath.Join(fresh, "blobs", "sha256"), 0o755); err != nil {
		return image{}, errors.WithStack(err)
	}
	layers, err := fill(fresh)
	if err != nil {
		return image{}, err
	}
	config := ociConfig{OS: "linux", Architecture: "amd64"}
	config.RootFS.Type = "layers"
	manifest := ociManifest{SchemaVersion: 2, MediaType: "application/vnd.oci.image.manifest.v1+json"}
	for _, l := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.diffID)
		manifest.Layers = append(manifest.Layers, l.descriptor)
	}
	if manifest.Config, err = writeBlob(fresh, "application/vnd.oci.image.config.v1+json", config); err != nil {
		return image{}, err
	}
	top, err := writeBlob(fresh, manifest.MediaType, manifest)
	if err != nil {
		return image{}, err
	}
	top.Annotations = map[string]string{"org.opencontainers.image.ref.name": "image"}
	index, err := json.Marshal(ociIndex{SchemaVersion: 2, Manifests: []descriptor{top}})
	if err != nil {
		return image{}, errors.WithStack(err)
	}
	if err := os.WriteFile(filepath.Join(fresh, "index.json"), index, 0o644); err != nil {
		return image{}, errors.WithStack(err)
	}
	if err := os.WriteFile(filepath.Join(fresh, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644); err != nil {
		return image{}, errors.WithStack(err)
	}
	return image{layout: layout, layers: layers}, errors.WithStack(os.Rename(fresh, layout))
}

func readImage(layout string) (image, error) {
	var index ociIndex
	if err := readJSON(filepath.Join(layout, "index.json"), &index); err != nil {
		return image{}, err
	}
	if len(index.Manifests) != 1 {
		return image{}, errors.Errorf("%s: %d images where one is wanted", layout, len(index.Manifests))
	}
	var manifest ociManifest
	if err := readJSON(blobPath(layout, index.Manifests[0].Digest), &manifest); err != nil {
		return image{}, err
	}
	var config ociConfig
	if err := readJSON(blobPath(layout, manifest.Config.Digest), &config); err != nil {
		return image{}, err
	}
	if len(config.RootFS.DiffIDs) != len(manifest.Layers) {
		return image{}, errors.Errorf("%s: %d layers and %d diffIDs", layout, len(manifest.Layers), len(config.RootFS.DiffIDs))
	}
	img := image{layout: layout}
	for i, d := range manifest.Layers {
		img.layers = append(img.layers, layer{descriptor: d, diffID: config.RootFS.DiffIDs[i]})
	}
	return img, nil
}

func blobPath(layout, digest string) string {
	return filepath.Join(layout, "blobs", "sha256", strings.TrimPrefix(digest, "sha256:"))
}

func readJSON(path string, v any) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return errors.WithStack(err)
	}
	return errors.Wrap(json.Unmarshal(content, v), path)
}

func writeBlob(layout, mediaType string, v any) (descriptor, error) {
	content, err := json.Marshal(v)
	if err != nil {
		return descriptor{}, errors.WithStack(err)
	}
	sum := sha256.Sum256(content)
	d := descriptor{MediaType: mediaType, Digest: "sha256:" + hex.EncodeToString(sum[:]), Size: int64(len(content))}
	return d, errors.WithStack(os.WriteFile(blobPath(layout, d.Digest), content, 0o644))
}

// generateLayer writes a layer of so many files of the given size, 500 to a directory, into the
// layout. Layers of the same seed and numbers are the same.
func generateLayer(layout string, seed uint64, files, size int64) (l layer, err error) {
	f, err := os.CreateTemp(layout, "layer-")
	if err != nil {
		return l, errors.WithStack(err)
	}
	defer func() { _ = f.Close() }()
	compressed, plain := sha256.New(), sha256.New()
	buffered := bufio.NewWriterSize(io.MultiWriter(f, compressed), 1<<20)
	gz, err := gzip.NewWriterLevel(buffered, gzip.BestSpeed)
	if err != nil {
		return l, errors.WithStack(err)
	}
	if err := generateFiles(io.MultiWriter(gz, plain), seed, files, size); err != nil {
		return l, err
	}
	for _, finish := range []func() error{gz.Close, buffered.Flush} {
		if err := finish(); err != nil {
			return l, errors.WithStack(err)
		}
	}
	info, err := f.Stat()
	if err != nil {
		return l, errors.WithStack(err)
	}
	l = layer{
		descriptor: descriptor{
			MediaType: "application/vnd.oci.image.layer.v1.tar+gzip",
			Digest:    "sha256:" + hex.EncodeToString(compressed.Sum(nil)), Size: info.Size(),
		},
		diffID: "sha256:" + hex.EncodeToString(plain.Sum(nil)),
	}
	return l, errors.WithStack(os.Rename(f.Name(), blobPath(layout, l.descriptor.Digest)))
}

// generateFiles writes a tar stream. Half of each block of a file is random and half is the same in
// all blocks, so that it shrinks to about half.
func generateFiles(w io.Writer, seed uint64, files, size int64) error {
	tw := tar.NewWriter(w)
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	random := rand.NewChaCha8(key)
	block := make([]byte, 64<<10)
	for n := range files {
		name := fmt.Sprintf("layer-%d/dir-%03d/file-%06d", seed, n/500, n)
		if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size, Typeflag: tar.TypeReg}); err != nil {
			return errors.WithStack(err)
		}
		for left := size; left > 0; {
			part := block[:min(left, int64(len(block)))]
			if _, err := random.Read(part[:len(part)/2]); err != nil {
				return errors.WithStack(err)
			}
			clear(part[len(part)/2:])
			if _, err := tw.Write(part); err != nil {
				return errors.WithStack(err)
			}
			left -= int64(len(part))
		}
	}
	return errors.WithStack(tw.Close())
}
