package main

import (
	"context"
	"encoding/json"
	"io"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/pkg/errors"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/types"
	"golang.org/x/sync/errgroup"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/imageref"
	"ostree-image/internal/ostree"
)

// imageInfo is a line of list. Its JSON keys are part of the program's interface.
type imageInfo struct {
	Name             string    `json:"name"`
	Ref              string    `json:"ref"`
	Commit           string    `json:"commit"`
	Digest           string    `json:"digest"`
	MediaType        string    `json:"mediaType"`
	Created          time.Time `json:"created"`
	OS               string    `json:"os"`
	Architecture     string    `json:"architecture"`
	Layers           int       `json:"layers"`
	Size             int64     `json:"size"`             // bytes of the blobs as the manifest names them
	UncompressedSize int64     `json:"uncompressedSize"` // bytes of the layers' tar streams, as far as they are known
	Signatures       int       `json:"signatures"`
}

// imageReader reads images of a repository. It asks each blob once, however many images share it.
type imageReader struct {
	store    *blobStore
	unpacked bool // sizes of tar streams are wanted, which takes a process for each layer

	mu    sync.Mutex
	sizes map[string]int64 // of layers' tar streams, by their refspecs; 0 where unknown
}

func newImageReader(store *blobStore, unpacked bool) *imageReader {
	return &imageReader{store: store, unpacked: unpacked, sizes: map[string]int64{}}
}

// readManifest returns the manifest of an image's commit, verified, and its media type.
func (r *repository) readManifest(ctx context.Context, info ostree.Commit) ([]byte, string, error) {
	want := digest.Digest(info.Metadata[imageref.KeyDigest])
	blob := []byte(info.Metadata[imageref.KeyManifest])
	if len(blob) == 0 || want.Validate() != nil || want.Algorithm().FromBytes(blob) != want {
		var err error
		if blob, err = r.catFile(ctx, info.Checksum, imageref.FileManifest, maxManifestBytes); err != nil {
			return nil, "", errors.WithMessage(err, "reading the manifest")
		}
	}
	if want != "" {
		if err := want.Validate(); err != nil {
			return nil, "", errdefs.Checkf("the commit names the manifest digest %q: %s", want, err)
		}
		if got := want.Algorithm().FromBytes(blob); got != want {
			return nil, "", errdefs.Checkf("the manifest is %s, and its commit says %s", got, want)
		}
	}
	return blob, manifest.GuessMIMEType(blob), nil
}

// info reads one image. What cannot be read is an error that comes with what could.
func (r *imageReader) info(ctx context.Context, name, spec string) (imageInfo, error) {
	image := imageInfo{Name: name, Ref: spec}
	store := r.store.beside(spec)
	info, err := store.repo.commitInfo(ctx, spec)
	if err != nil {
		return image, err
	}
	image.Commit = info.Checksum
	if text := info.Metadata[imageref.KeySignatures]; text != "" {
		if image.Signatures, err = strconv.Atoi(text); err != nil {
			return image, errdefs.Checkf("the commit says that it has %q signatures", text)
		}
	}
	blob, mimeType, err := store.repo.readManifest(ctx, info)
	if err != nil {
		return image, err
	}
	image.Digest, image.MediaType = digest.FromBytes(blob).String(), mimeType
	image.Created = time.Unix(int64(info.Timestamp), 0).UTC()
	image.Size = int64(len(blob))
	if manifest.MIMETypeIsMultiImage(mimeType) {
		return image, r.sumInstances(ctx, store, info.Checksum, &image)
	}
	blobs, err := imageref.Blobs(blob, mimeType)
	if err != nil {
		return image, err
	}
	image.Layers = len(blobs) - 1
	if err := r.sum(ctx, store, blobs, &image); err != nil {
		return image, err
	}
	content, err := store.readSmall(ctx, blobs[0].Digest)
	if err != nil {
		return image, err
	}
	var config imgspecv1.Image
	if json.Unmarshal(content, &config) == nil {
		image.OS, image.Architecture = config.OS, config.Architecture
		if config.Created != nil {
			image.Created = config.Created.UTC()
		}
	}
	return image, nil
}

// sum adds up the sizes of blobs, the first of which is a config.
func (r *imageReader) sum(ctx context.Context, store *blobStore, blobs []types.BlobInfo, image *imageInfo) error {
	for _, b := range blobs {
		image.Size += max(0, b.Size)
	}
	for _, b := range blobs[1:] {
		size, err := r.uncompressedSize(ctx, store, b.Digest)
		if err != nil {
			return err
		}
		image.UncompressedSize += size
	}
	return nil
}

// sumInstances adds up the sizes of a multi-architecture image. What several instances share counts
// once.
func (r *imageReader) sumInstances(ctx context.Context, store *blobStore, commit string, image *imageInfo) error {
	instances, err := store.repo.instances(ctx, commit)
	if err != nil {
		return err
	}
	seen := map[digest.Digest]bool{}
	for _, i := range instances {
		image.Size += int64(len(i.blob))
		blobs, err := imageref.Blobs(i.blob, i.mimeType)
		if err != nil {
			return err
		}
		fresh := blobs[:1:1]
		if seen[blobs[0].Digest] {
			fresh[0].Size = 0
		}
		seen[blobs[0].Digest] = true
		for _, b := range blobs[1:] {
			if !seen[b.Digest] {
				seen[b.Digest] = true
				fresh = append(fresh, b)
			}
		}
		if err := r.sum(ctx, store, fresh, image); err != nil {
			return err
		}
	}
	return nil
}

func (r *imageReader) uncompressedSize(ctx context.Context, store *blobStore, layer digest.Digest) (int64, error) {
	spec, ok := store.find(imageref.BlobRef(layer))
	if !ok {
		return 0, errdefs.Checkf("blob %s is missing from the repository %s", layer, store.repo.path)
	}
	r.mu.Lock()
	size, known := r.sizes[spec]
	r.mu.Unlock()
	if known || !r.unpacked {
		return size, nil
	}
	text, _, err := store.repo.metadataKey(ctx, spec, imageref.KeyUncompressedSize)
	if err != nil {
		return 0, err
	}
	size, _ = strconv.ParseInt(text, 10, 64)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sizes[spec] = size
	return size, nil
}

// readSmall returns a small blob, such as a config. It matches its digest.
func (s *blobStore) readSmall(ctx context.Context, d digest.Digest) ([]byte, error) {
	spec, ok := s.find(imageref.BlobRef(d))
	if !ok {
		return nil, errdefs.Checkf("blob %s is missing from the repository %s", d, s.repo.path)
	}
	content, err := s.repo.catFile(ctx, spec, imageref.FileContent, maxConfigBytes)
	if err == nil {
		if got := d.Algorithm().FromBytes(content); got != d {
			return nil, errors.WithMessagef(&digestError{expected: d, actual: got}, "reading blob %s", d)
		}
		return content, nil
	}
	// The digest of a layer, too.
	b, berr := s.blob(ctx, d)
	if berr != nil || !b.layer || !b.isExact() {
		return nil, err
	}
	stream, err := s.open(ctx, b)
	if err != nil {
		return nil, err
	}
	defer func() { _ = stream.Close() }()
	content, err = io.ReadAll(io.LimitReader(stream, maxConfigBytes+1))
	if err == nil && len(content) > maxConfigBytes {
		err = errdefs.Checkf("config %s is larger than %d bytes", d, maxConfigBytes)
	}
	return content, err
}

// listImages returns all images of a repository by name, those under a remote too. One that cannot
// be read is told to broken, with a goneError where it was removed meanwhile, and the rest are
// still listed. UncompressedSize is only filled in where unpacked is set.
func (r *repository) listImages(
	ctx context.Context,
	parallel int,
	unpacked bool,
	broken func(name string, err error),
) ([]imageInfo, error) {
	store, err := openBlobStore(ctx, r)
	if err != nil {
		return nil, err
	}
	names, specs := store.images()
	reader := newImageReader(store, unpacked)
	images := make([]imageInfo, len(specs))
	failures := make([]error, len(specs))
	var group errgroup.Group
	group.SetLimit(max(1, parallel))
	for i, spec := range specs {
		group.Go(func() error {
			images[i], failures[i] = reader.info(ctx, names[i], spec)
			return nil
		})
	}
	_ = group.Wait()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err := r.listAgain(ctx, reader, specs, names, images, failures); err != nil {
		return nil, err
	}
	good := images[:0]
	for i, err := range failures {
		if err != nil {
			broken(names[i], err)
			continue
		}
		good = append(good, images[i])
	}
	return good, nil
}

// listAgain reads those images once more whose failures may be those of a repository that changed
// meanwhile.
func (r *repository) listAgain(
	ctx context.Context,
	reader *imageReader,
	specs, names []string,
	images []imageInfo,
	failures []error,
) error {
	if !slices.ContainsFunc(failures, func(err error) bool { return err != nil }) {
		return nil
	}
	store, err := openBlobStore(ctx, r)
	if err != nil {
		return err
	}
	again := newImageReader(store, reader.unpacked)
	for i, err := range failures {
		if err == nil {
			continue
		}
		if store.refs[specs[i]] {
			images[i], failures[i] = again.info(ctx, names[i], specs[i])
		}
		if errors.Is(failures[i], errNoRef) || !store.refs[specs[i]] {
			failures[i] = errdefs.GoneError{Name: names[i]}
		}
	}
	return nil
}
