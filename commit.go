package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/types"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/imageref"
	"ostree-image/internal/ostree"
	"ostree-image/internal/workdir"
)

// Commit publishes the image.
func (d *destination) Commit(ctx context.Context, source types.UnparsedImage) error {
	defer d.idle.work()()
	if err := d.opened(); err != nil {
		return err
	}
	if err := d.putNamedIndex(ctx, source); err != nil {
		return err
	}
	top := d.manifests[d.top]
	d.queue.running.Wait()
	if d.ctx.Err() != nil {
		return context.Cause(d.ctx)
	}
	if top == nil {
		return errors.New("the image has no manifest")
	}
	if d.staging == nil {
		if err := d.checkLayers(ctx); err != nil {
			return err
		}
	}
	unchanged := d.staging == nil && len(d.partial) == 0 && !hasLeftovers(d.refs)
	if unchanged && d.isStored(ctx, d.refs, top, d.known.own) {
		// Whatever others do, it was there, with all that it needs, a moment ago.
		d.sweep()
		return d.sync(d.ref.ref()) // the run that brought it may have been ended before
	}
	need, err := d.neededBlobs()
	if err != nil {
		return err
	}
	unlock, err := d.repo.lock(d.ctx)
	if err != nil {
		return err
	}
	defer unlock()
	refs, err := d.repo.refs(d.ctx)
	if err != nil {
		return err
	}
	if err := d.putArtifacts(); err != nil {
		return err
	}
	if err := d.checkLayers(ctx); err != nil {
		return err
	}
	if err := d.keepSigned(ctx); err != nil {
		return err
	}
	if err := d.repo.dropLeftovers(ctx, refs); err != nil {
		return err
	}
	whole, err := d.repo.whole(ctx, refs)
	if err != nil {
		return err
	}
	for _, blob := range need {
		if d.isReused(blob) &&
			(!whole[imageref.BlobRef(blob)] || d.refs[imageref.SidecarRef(blob)] && !whole[imageref.SidecarRef(blob)]) {
			return &vanishedError{blob}
		}
	}
	if d.staging == nil && !unchanged && d.isStored(ctx, whole, top, nil) {
		d.sweep()
		return d.sync(d.ref.ref())
	}
	image, err := d.commitImage(top)
	if err != nil {
		return err
	}
	return d.publish(ctx, refs, whole, image)
}

// sweep removes what runs left that were killed after they had published: a run that has nothing to
// do makes no work directory, and so removes none.
func (d *destination) sweep() {
	d.repo.sweep()
	if d.settings.tmpdir == "" {
		return
	}
	if dir, err := d.settings.openTmpdir(); err == nil {
		workdir.Sweep(dir.At)
		dir.Unpin()
	}
}

// commitImage commits the image to the staging repository and returns the commit's checksum.
func (d *destination) commitImage(top *destinationManifest) (string, error) {
	st, err := d.stagingArea()
	if err != nil {
		return "", err
	}
	metadata := []ostree.Metadata{
		{Key: imageref.KeyDigest, Value: d.top.String()},
		{Key: imageref.KeySignatures, Value: strconv.Itoa(len(top.signatures))},
	}
	if m := (ostree.Metadata{Key: imageref.KeyManifest, Value: string(top.blob)}); m.Fits() {
		metadata = append([]ostree.Metadata{m}, metadata...)
	}
	config := d.imageConfig(top).Metadata()
	for _, key := range slices.Sorted(maps.Keys(config)) {
		metadata = append(metadata, ostree.Metadata{Key: key, Value: config[key]})
	}
	o := ostree.CommitOptions{
		Branch: d.ref.ref(), Metadata: metadata, Timestamp: d.imageTimestamp(top), Why: "commit image " + d.ref.image,
	}
	return st.commitFiles(d.ctx, d.imageFiles(), o)
}

// vanishedError says that a blob that was there when the copy began is gone. The copy can be
// started over.
type vanishedError struct{ blob digest.Digest }

func (e *vanishedError) Error() string {
	return fmt.Sprintf("blob %s was removed from the repository while the image was copied; copy it again", e.blob)
}

func (d *destination) isReused(blob digest.Digest) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	b := d.blobs[blob]
	return b == nil || b.reused
}

// putImage is a manifest that was put and is no index, and the blobs that it names, the config first.
type putImage struct {
	*destinationManifest
	blobs []types.BlobInfo
}

// images returns the manifests that were put, in their order, without indexes.
func (d *destination) images() (images []putImage, err error) {
	for _, sum := range d.order {
		m := d.manifests[sum]
		if manifest.MIMETypeIsMultiImage(m.mimeType) {
			continue
		}
		blobs, err := imageref.Blobs(m.blob, m.mimeType)
		if err != nil {
			return nil, err
		}
		images = append(images, putImage{m, blobs})
	}
	return images, nil
}

// neededBlobs returns the blobs that the image's manifests name, each once.
func (d *destination) neededBlobs() ([]digest.Digest, error) {
	var need []digest.Digest
	seen := map[digest.Digest]bool{}
	images, err := d.images()
	if err != nil {
		return nil, err
	}
	for _, m := range images {
		blobs := m.blobs
		for _, b := range blobs {
			if !seen[b.Digest] {
				seen[b.Digest] = true
				need = append(need, b.Digest)
			}
		}
	}
	return need, nil
}

// putArtifacts keeps blobs that are no layers though their media type says so: tools put files of
// any kind under the type of a tar layer. An image that would run has no such.
func (d *destination) putArtifacts() error {
	artifact := map[digest.Digest]bool{}
	images, err := d.images()
	if err != nil {
		return err
	}
	for _, m := range images {
		blobs := m.blobs
		for _, info := range blobs[1:] {
			if was, known := artifact[info.Digest]; !known || was {
				artifact[info.Digest] = !imageref.IsConfigType(blobs[0].MediaType)
			}
		}
	}
	for _, sum := range slices.Sorted(maps.Keys(d.blobs)) {
		b := d.blobs[sum]
		if b.noTar == nil {
			continue
		}
		if !artifact[sum] {
			return errors.WithMessage(b.noTar, "importing")
		}
		var err error
		b.ref, b.commit, err = d.putContent(
			d.staging,
			b.info,
			treeFile{name: imageref.FileContent, from: b.staged.Path, input: b.staged.Name()},
		)
		if err != nil {
			return err
		}
	}
	return nil
}

// keepSigned keeps the exact bytes of the layers that a signature covers, where the copy did not
// announce signatures, of those that nothing else proves, and of a layer that is the config, too.
func (d *destination) keepSigned(ctx context.Context) error {
	images, err := d.images()
	if err != nil {
		return err
	}
	for _, m := range images {
		blobs := m.blobs
		proofs, err := imageref.DiffIDs(d.configs[blobs[0].Digest], blobs)
		if err != nil {
			return err
		}
		if len(m.signatures) == 0 && proofs != nil && imageref.CanChangeLayers(m.blob, m.mimeType) {
			blobs = blobs[:1]
		}
		for _, info := range blobs {
			b := d.blobs[info.Digest]
			if b == nil || b.layer == nil || b.layer.kept || !b.layer.needsBlob(true) {
				continue
			}
			if err := d.staging.keepSidecar(ctx, b.layer, true); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkLayers holds the layers against the diffIDs that the configs name. A layer that was imported
// now and has another is refused. One that was there may be another's: it is imported anew.
func (d *destination) checkLayers(ctx context.Context) error {
	images, err := d.images()
	if err != nil {
		return err
	}
	for _, m := range images {
		blobs := m.blobs
		config := d.configs[blobs[0].Digest]
		if want := blobs[0].Size; config != nil && want != int64(len(config)) {
			return errdefs.Checkf(
				"config %s has %d bytes, and the manifest names %d",
				blobs[0].Digest,
				len(config),
				want,
			)
		}
		proofs, err := imageref.DiffIDs(config, blobs)
		if err != nil {
			return err
		}
		needExact := proofs == nil || !imageref.CanChangeLayers(m.blob, m.mimeType)
		for i, info := range blobs[1:] {
			b := d.blobs[info.Digest]
			switch {
			case b == nil || !imageref.IsLayerType(info.MediaType):
			case b.layer != nil:
				if size := b.layer.blob.Size(); info.Size >= 0 && info.Size != size {
					return errdefs.Checkf(
						"layer %s has %d bytes, and the manifest names %d",
						info.Digest,
						size,
						info.Size,
					)
				}
				if err := checkDiffID(info.Digest, b.layer.diffID, proofs, i); err != nil {
					return err
				}
			case b.reused && (needExact && !b.exact && !d.isLayerKept(ctx, info.Digest) || checkDiffID(info.Digest, b.proved, proofs, i) != nil):
				d.settings.reimport.add(info.Digest)
				return &reimportError{info.Digest}
			}
		}
	}
	return nil
}

// imageConfig is what the config of an image says. That of an index says nothing.
func (d *destination) imageConfig(top *destinationManifest) imageref.Config {
	if manifest.MIMETypeIsMultiImage(top.mimeType) {
		return imageref.Config{}
	}
	blobs, err := imageref.Blobs(top.blob, top.mimeType)
	if err != nil {
		return imageref.Config{}
	}
	return imageref.ParseConfig(d.configs[blobs[0].Digest])
}

// imageTimestamp is that of the image's commit: the config's "created", in seconds since 1970, and
// 0 where it has none, or one that no file system knows. The user may want another.
func (d *destination) imageTimestamp(top *destinationManifest) int64 {
	if d.settings.timestamp != nil {
		return *d.settings.timestamp
	}
	created := d.imageConfig(top).Created
	if created == nil {
		return 0
	}
	return max(0, created.Unix())
}

// isStored tells whether the repository holds this very image under its name. info is the commit of
// that name, where it is known.
func (d *destination) isStored(
	ctx context.Context,
	refs map[string]bool,
	top *destinationManifest,
	info *ostree.Commit,
) bool {
	if !refs[d.ref.ref()] || len(top.signatures) > 0 {
		return false
	}
	if info == nil {
		now, err := d.repo.commitInfo(ctx, d.ref.ref())
		if err != nil {
			return false
		}
		info = &now
	}
	text := info.Metadata[imageref.KeyManifest]
	says, _ := imageref.ConfigFromMetadata(info.Metadata)
	return maps.Equal(says.Metadata(), d.imageConfig(top).Metadata()) && info.CheckBinding(d.ref.ref()) == nil &&
		info.Timestamp == uint64(d.imageTimestamp(top)) &&
		info.Metadata[imageref.KeyDigest] == d.top.String() &&
		info.Metadata[imageref.KeySignatures] == "0" &&
		(text == "" || text == string(top.blob)) &&
		d.hasTree(*info, d.imageFiles())
}
