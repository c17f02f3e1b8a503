package main

import (
	"context"
	"io"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/types"
	"golang.org/x/sync/errgroup"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/imageref"
	"ostree-image/internal/ostree"
	"ostree-image/internal/ui"
	"ostree-image/internal/usercache"
)

// imageInfo is a line of list. Its JSON keys are part of the program's interface.
type imageInfo struct {
	Name             string    `json:"name"`
	Ref              string    `json:"ref"`
	Commit           string    `json:"commit"`
	Digest           string    `json:"digest"`
	MediaType        string    `json:"mediaType"`
	Created          time.Time `json:"created"`          // of an index the newest of its instances'
	OS               string    `json:"os"`               // "" for an index
	Architecture     string    `json:"architecture"`     // "" for an index
	Layers           int       `json:"layers"`           // of an index those of all instances
	Size             int64     `json:"size"`             // bytes of the blobs as the manifest names them
	UncompressedSize int64     `json:"uncompressedSize"` // bytes of the layers' tar streams, as far as they are known
	Signatures       int       `json:"signatures"`

	// Platforms are those of the instances of an index that were copied, as OS/ARCH or OS/ARCH/VARIANT.
	Platforms []string `json:"platforms,omitempty"`
}

// imageSummary is what an image's commit says, wherever it is.
type imageSummary struct {
	imageInfo // without Name, Ref and UncompressedSize
	Configs   []digest.Digest
	Blobs     []digest.Digest // the layers, each as often as its size counts
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

// summary reads the commit of an image.
func (s *blobStore) summary(ctx context.Context, spec string) (image imageSummary, err error) {
	info, err := s.repo.commitInfo(ctx, spec)
	if err != nil {
		return image, err
	}
	image.Commit = info.Checksum
	if text := info.Metadata[imageref.KeySignatures]; text != "" {
		if image.Signatures, err = strconv.Atoi(text); err != nil {
			return image, errdefs.Checkf("the commit says that it has %q signatures", text)
		}
	}
	blob, mimeType, err := s.repo.readManifest(ctx, info)
	if err != nil {
		return image, err
	}
	image.Digest, image.MediaType = digest.FromBytes(blob).String(), mimeType
	image.Created = time.Unix(int64(info.Timestamp), 0).UTC()
	image.Size = int64(len(blob))
	if manifest.MIMETypeIsMultiImage(mimeType) {
		return image, s.addInstances(ctx, blob, &image)
	}
	blobs, err := imageref.Blobs(blob, mimeType)
	if err != nil {
		return image, err
	}
	image.add(blobs)
	config, ok := imageref.ConfigFromMetadata(info.Metadata)
	if !ok {
		if config, err = s.imageConfig(ctx, blobs[0].Digest); err != nil {
			return image, err
		}
	}
	image.OS, image.Architecture = config.OS, config.Architecture
	if config.Created != nil {
		image.Created = config.Created.UTC()
	}
	return image, nil
}

// add counts blobs, the first of which is a config.
func (i *imageSummary) add(blobs []types.BlobInfo) {
	for _, b := range blobs {
		i.Size += max(0, b.Size)
	}
	i.Configs = append(i.Configs, blobs[0].Digest)
	for _, b := range blobs[1:] {
		i.Layers++
		i.Blobs = append(i.Blobs, b.Digest)
	}
}

// imageConfig reads a config. One that is no image's is empty.
func (s *blobStore) imageConfig(ctx context.Context, d digest.Digest) (config imageref.Config, err error) {
	content, err := s.readSmall(ctx, d)
	if err == nil {
		config = imageref.ParseConfig(content)
	}
	return config, err
}

// addInstances adds what an index names, as far as it was copied. What several instances share
// counts once.
func (s *blobStore) addInstances(ctx context.Context, index []byte, image *imageSummary) error {
	instances, err := s.repo.instances(ctx, image.Commit)
	if err != nil {
		return err
	}
	platforms := imageref.Platforms(index)
	seen := map[digest.Digest]bool{}
	repeated := func(b types.BlobInfo) bool {
		was := seen[b.Digest]
		seen[b.Digest] = true
		return was
	}
	var newest time.Time
	for _, i := range instances {
		image.Size += int64(len(i.blob))
		if p := platforms[digest.FromBytes(i.blob)]; p != "" {
			image.Platforms = append(image.Platforms, p)
		}
		blobs, err := imageref.Blobs(i.blob, i.mimeType)
		if err != nil {
			return err
		}
		config, err := s.imageConfig(ctx, blobs[0].Digest)
		if err != nil {
			return err
		}
		if config.Created != nil && config.Created.After(newest) {
			newest = *config.Created
			image.Created = newest.UTC()
		}
		if repeated(blobs[0]) {
			blobs[0].Size = 0
		}
		image.add(append(blobs[:1:1], slices.DeleteFunc(blobs[1:], repeated)...))
	}
	slices.Sort(image.Platforms)
	return nil
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

// imageListOptions say how images are listed.
type imageListOptions struct {
	parallel int
	unpacked bool            // UncompressedSize is wanted, which takes a process for each new layer
	cache    *usercache.File // what is known of commits, nil for nothing
	progress *ui.Progress    // nil for none

	// broken learns of an image that cannot be read, with a GoneError where it was removed meanwhile.
	broken func(name string, err error)
}

// listImages returns all images of a repository by name, those under a remote too. Those that
// cannot be read are left out.
func (r *repository) listImages(ctx context.Context, o imageListOptions) ([]imageInfo, error) {
	known := readKnownCommits(o.cache)
	defer known.save()
	images, err := r.readImages(ctx, o, known, nil)
	if err != nil {
		return nil, err
	}
	if err := r.readAgain(ctx, o, known, images); err != nil {
		return nil, err
	}
	good := []imageInfo{}
	for _, i := range images {
		if i.err != nil {
			o.broken(i.info.Name, i.err)
		} else {
			good = append(good, i.info)
		}
	}
	return good, nil
}

// readAgain reads the images once more that could not be read: the repository may have changed
// meanwhile. What is no longer there is gone.
func (r *repository) readAgain(
	ctx context.Context,
	o imageListOptions,
	known *knownCommits,
	images []listedImage,
) error {
	failed := map[string]bool{}
	for _, i := range images {
		if i.err != nil {
			failed[i.info.Ref] = true
		}
	}
	if len(failed) == 0 {
		return nil
	}
	again, err := r.readImages(ctx, o, known, failed)
	if err != nil {
		return err
	}
	found := map[string]listedImage{}
	for _, i := range again {
		found[i.info.Ref] = i
	}
	for n, i := range images {
		if !failed[i.info.Ref] {
			continue
		}
		now, there := found[i.info.Ref]
		if !there || errors.Is(now.err, errNoRef) {
			now = listedImage{info: i.info, err: errdefs.GoneError{Name: i.info.Name}}
		}
		images[n] = now
	}
	return nil
}

// listedImage is an image of a repository, or why it cannot be read.
type listedImage struct {
	info   imageInfo
	layers []string // their refspecs, each as often as its size counts
	err    error
}

// readImages reads images, by name: those of the refspecs in only, where it is not nil.
func (r *repository) readImages(
	ctx context.Context,
	o imageListOptions,
	known *knownCommits,
	only map[string]bool,
) ([]listedImage, error) {
	store, err := openBlobStore(ctx, r)
	if err != nil {
		return nil, err
	}
	names, specs := store.images()
	wanted := map[string]bool{}
	var images []listedImage
	for i, spec := range specs {
		if only == nil || only[spec] {
			wanted[spec] = true
			images = append(images, listedImage{info: imageInfo{Name: names[i], Ref: spec}})
		}
	}
	commits, err := r.commitsOf(ctx, wanted)
	if err != nil {
		return nil, err
	}
	count := o.progress.Count("reading images", len(images))
	defer count.Done()
	var group errgroup.Group
	group.SetLimit(max(1, o.parallel))
	for i := range images {
		group.Go(func() error {
			defer count.Add(1)
			images[i].err = store.readImage(ctx, &images[i], commits[images[i].info.Ref], known)
			return nil
		})
	}
	_ = group.Wait()
	if o.unpacked && ctx.Err() == nil {
		err = store.addTarSizes(ctx, o, known, images)
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return images, err
}

// readImage reads one image, whose commit is given, "" where it is gone.
func (s *blobStore) readImage(ctx context.Context, image *listedImage, commit string, known *knownCommits) error {
	if commit == "" {
		return errdefs.GoneError{Name: image.info.Name}
	}
	name, spec := image.info.Name, image.info.Ref
	store := s.beside(spec)
	summary, isKnown := known.image(commit)
	if !isKnown {
		var err error
		if summary, err = store.summary(ctx, spec); err != nil {
			return err
		}
		known.addImage(summary)
	}
	image.info = summary.imageInfo
	image.info.Name, image.info.Ref = name, spec
	for _, d := range summary.Configs {
		if _, ok := store.find(imageref.BlobRef(d)); !ok {
			return errdefs.Checkf("blob %s is missing from the repository %s", d, s.repo.path)
		}
	}
	for _, d := range summary.Blobs {
		layer, ok := store.find(imageref.BlobRef(d))
		if !ok {
			return errdefs.Checkf("blob %s is missing from the repository %s", d, s.repo.path)
		}
		image.layers = append(image.layers, layer)
	}
	return nil
}

// addTarSizes adds up the sizes of the tar streams of the images' layers, as far as their commits
// tell. An image with a layer whose commit cannot be read gets the error.
func (s *blobStore) addTarSizes(
	ctx context.Context,
	o imageListOptions,
	known *knownCommits,
	images []listedImage,
) error {
	wanted := map[string]bool{}
	for _, i := range images {
		for _, spec := range i.layers {
			wanted[spec] = true
		}
	}
	commits, err := s.repo.commitsOf(ctx, wanted)
	if err != nil {
		return err
	}
	unknown := map[string]error{}
	for _, commit := range commits {
		if _, ok := known.tarSize(commit); !ok {
			unknown[commit] = nil
		}
	}
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(max(1, o.parallel))
	for _, commit := range slices.Collect(maps.Keys(unknown)) {
		group.Go(func() error {
			text, _, err := s.repo.metadataKey(ctx, commit, imageref.KeyUncompressedSize)
			if err == nil {
				size, _ := strconv.ParseInt(text, 10, 64)
				known.addTarSize(commit, size)
			}
			mu.Lock()
			defer mu.Unlock()
			unknown[commit] = err
			return nil
		})
	}
	_ = group.Wait()
	for i := range images {
		for _, spec := range images[i].layers {
			size, _ := known.tarSize(commits[spec])
			images[i].info.UncompressedSize += size
			if err := unknown[commits[spec]]; err != nil && images[i].err == nil {
				images[i].err = err
			}
		}
	}
	return nil
}
