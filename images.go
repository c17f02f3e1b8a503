package main

import (
	"context"
	"encoding/json"
	"sort"
	"strconv"
	"sync"
	"time"

	"github.com/containers/image/v5/manifest"
	"github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/pkg/errors"
	"golang.org/x/sync/errgroup"
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
	repo *repository

	mu    sync.Mutex
	sizes map[digest.Digest]int64 // of the layers' tar streams, 0 where unknown
}

func newImageReader(repo *repository) *imageReader {
	return &imageReader{repo: repo, sizes: map[digest.Digest]int64{}}
}

// readManifest returns the manifest of an image's commit, verified, and its media type.
func (r *repository) readManifest(ctx context.Context, info commitInfo) ([]byte, string, error) {
	want := digest.Digest(info.metadata[keyDigest])
	blob := []byte(info.metadata[keyManifest])
	if len(blob) == 0 || want.Validate() != nil || want.Algorithm().FromBytes(blob) != want {
		var err error
		if blob, err = r.catFile(ctx, info.checksum, fileManifest, maxManifestBytes); err != nil {
			return nil, "", errors.WithMessage(err, "reading the manifest")
		}
	}
	if want != "" {
		if err := want.Validate(); err != nil {
			return nil, "", checkf("the commit names the manifest digest %q: %s", want, err)
		}
		if got := want.Algorithm().FromBytes(blob); got != want {
			return nil, "", checkf("the manifest is %s, and its commit says %s", got, want)
		}
	}
	return blob, manifest.GuessMIMEType(blob), nil
}

// info reads one image. What cannot be read is an error that comes with what could.
func (r *imageReader) info(ctx context.Context, name, ref string) (imageInfo, error) {
	image := imageInfo{Name: name, Ref: ref}
	info, err := r.repo.commitInfo(ctx, ref)
	if err != nil {
		return image, err
	}
	image.Commit = info.checksum
	if text := info.metadata[keySignatures]; text != "" {
		if image.Signatures, err = strconv.Atoi(text); err != nil {
			return image, checkf("the commit says that it has %q signatures", text)
		}
	}
	blob, mimeType, err := r.repo.readManifest(ctx, info)
	if err != nil {
		return image, err
	}
	image.Digest, image.MediaType = digest.FromBytes(blob).String(), mimeType
	image.Created = time.Unix(int64(info.timestamp), 0).UTC()
	image.Size = int64(len(blob))
	if manifest.MIMETypeIsMultiImage(mimeType) {
		return image, nil
	}
	blobs, err := manifestBlobs(blob, mimeType)
	if err != nil {
		return image, err
	}
	image.Layers = len(blobs) - 1
	for _, b := range blobs {
		image.Size += max(0, b.Size)
	}
	for _, b := range blobs[1:] {
		size, err := r.uncompressedSize(ctx, b.Digest)
		if err != nil {
			return image, err
		}
		image.UncompressedSize += size
	}
	content, err := r.repo.catFile(ctx, blobRef(blobs[0].Digest), fileContent, maxConfigBytes)
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

func (r *imageReader) uncompressedSize(ctx context.Context, layer digest.Digest) (int64, error) {
	r.mu.Lock()
	size, known := r.sizes[layer]
	r.mu.Unlock()
	if known {
		return size, nil
	}
	text, _, err := r.repo.metadataKey(ctx, blobRef(layer), keyUncompressedSize)
	if err != nil {
		return 0, err
	}
	size, _ = strconv.ParseInt(text, 10, 64)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sizes[layer] = size
	return size, nil
}

// listImages returns all images of a repository by name. One that cannot be read is told to broken, and the rest
// are still listed.
func (r *repository) listImages(ctx context.Context, parallel int, broken func(name string, err error)) ([]imageInfo, error) {
	all, err := r.refs(ctx)
	if err != nil {
		return nil, err
	}
	var names, refs []string
	for ref := range all {
		if name, ok := imageName(ref); ok {
			names, refs = append(names, name), append(refs, ref)
		}
	}
	reader := newImageReader(r)
	images := make([]imageInfo, len(refs))
	failures := make([]error, len(refs))
	var group errgroup.Group
	group.SetLimit(max(1, parallel))
	for i, ref := range refs {
		group.Go(func() error {
			images[i], failures[i] = reader.info(ctx, names[i], ref)
			return nil
		})
	}
	_ = group.Wait()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	good := images[:0]
	for i, err := range failures {
		if err != nil {
			broken(names[i], err)
			continue
		}
		good = append(good, images[i])
	}
	sort.Slice(good, func(i, j int) bool { return good[i].Name < good[j].Name })
	return good, nil
}
