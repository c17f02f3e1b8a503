package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/types"

	"ostree-image/internal/imageref"
	"ostree-image/internal/ostree"
)

// TryReusingBlob finds a blob that is complete in the repository: its size and diffID are known,
// and its bytes can be given back. A layer that an older layout left without that is imported anew.
func (d *destination) TryReusingBlob(
	ctx context.Context,
	info types.BlobInfo,
	_ types.BlobInfoCache,
	_ bool,
) (bool, types.BlobInfo, error) {
	defer d.idle.work()()
	if err := info.Digest.Validate(); err != nil {
		return false, types.BlobInfo{}, errors.Wrapf(err, "blob digest %q", info.Digest)
	}
	if err := d.opened(); err != nil {
		return false, types.BlobInfo{}, err
	}
	d.mu.Lock()
	if info.Size >= 0 { // as the manifest names it
		d.sizes[info.Digest] = info.Size
	}
	b := d.blobs[info.Digest]
	known, exactBlob := d.refs[imageref.BlobRef(info.Digest)] &&
		!d.partial[imageref.SidecarRef(info.Digest)], d.exactBlob
	d.mu.Unlock()
	if b != nil {
		<-b.done
		return b.err == nil, b.info, b.err
	}
	if !known || d.settings.signs() { // what is there may have no signature: made again it is the same commit, with one
		return false, types.BlobInfo{}, nil
	}
	if d.settings.reimport.wants(info.Digest) {
		return false, types.BlobInfo{}, nil
	}
	b, ok, err := d.complete(ctx, info, exactBlob)
	if err != nil || !ok {
		// Whatever is wrong with what is there, the blob can still be fetched.
		d.settings.debugf("blob %s is not reused: %v", info.Digest, err)
		return false, types.BlobInfo{}, ctx.Err()
	}
	b.info.Digest, b.info.MediaType, b.reused, b.done = info.Digest, info.MediaType, true, make(chan struct{})
	close(b.done)
	d.mu.Lock()
	d.blobs[info.Digest] = b
	d.mu.Unlock()
	return true, b.info, nil
}

// complete tells whether the repository holds all of a blob, and has it proved. It asks one
// question where it can: each is a process. What is returned has its size, and what was proved.
func (d *destination) complete(
	ctx context.Context,
	info types.BlobInfo,
	exactBlob bool,
) (*destinationBlob, bool, error) {
	if info.Size >= 0 && imageref.IsLayerType(info.MediaType) {
		d.lookUp.Do(func() {
			known := d.lookUpImages(ctx, info.Digest)
			d.mu.Lock()
			defer d.mu.Unlock()
			d.known = known
		})
		proved := d.known.proved[info.Digest]
		exact := proved.digest == info.Digest
		if d.known.layers[info.Digest] && proved.size == info.Size && (exact || !exactBlob) {
			return &destinationBlob{
				info:   types.BlobInfo{Size: info.Size},
				proved: proved.digest,
				exact:  exact,
			}, true, nil
		}
	}
	stored, err := d.store.blob(ctx, info.Digest)
	if err != nil {
		return nil, false, err
	}
	isLayer := imageref.IsLayerType(info.MediaType)
	if stored.layer != isLayer || isLayer && !stored.canRebuild() || exactBlob && !stored.isExact() {
		return nil, false, nil
	}
	b := &destinationBlob{info: types.BlobInfo{Size: info.Size}, exact: stored.isExact()}
	if info.Size < 0 {
		b.info.Size = stored.size
	}
	if stored.size < 0 || stored.size != b.info.Size {
		return nil, false, nil
	}
	if b.proved, err = d.prove(ctx, stored); err != nil {
		return nil, false, err
	}
	return b, true, nil
}

// prove reads a blob of the repository and checks it, unless that was done before on this machine.
// It returns the digest of what it holds: a layer's diffID, or the blob's own.
func (d *destination) prove(ctx context.Context, b *storedBlob) (digest.Digest, error) {
	sidecar := ""
	if b.side != "" {
		sums, err := d.repo.revParse(ctx, b.side)
		if err != nil {
			return "", err
		}
		sidecar = sums[0]
	}
	mode, err := d.mode()
	if err != nil {
		return "", err
	}
	return d.settings.proveBlob(ctx, d.store, b, sidecar, mode)
}

// knownImages are what images of the repository are known to hold without asking for each blob.
type knownImages struct {
	own    *ostree.Commit // what the image's name stands for, nil where that was not asked
	proved map[digest.Digest]provenBlob
	layers map[digest.Digest]bool // which of them are layers
}

// encodedColon stands before the tag, or the hex part of the digest, in the ref of any image.
const encodedColon = "_3A"

// mostSiblings is how many images with the same name and another tag are looked at.
const mostSiblings = 3

// lookUpImages reads the image that has the name so far, and then others that differ from it in the
// tag, until one has the layer.
func (d *destination) lookUpImages(ctx context.Context, layer digest.Digest) knownImages {
	own := d.ref.ref()
	known := knownImages{proved: map[digest.Digest]provenBlob{}, layers: map[digest.Digest]bool{}}
	var siblings []string
	for ref := range d.refs {
		if ref != own && strings.HasPrefix(ref, own[:strings.LastIndex(own, encodedColon)+len(encodedColon)]) {
			siblings = append(siblings, ref)
		}
	}
	slices.Sort(siblings)
	slices.Reverse(siblings) // the highest version is the likeliest
	for _, ref := range append([]string{own}, siblings[:min(len(siblings), mostSiblings)]...) {
		info, blobs := d.imageBlobs(ctx, ref)
		if ref == own {
			known.own = info
		}
		if len(blobs) == 0 {
			continue
		}
		d.findProven(ctx, blobs, known)
		if known.layers[layer] {
			break
		}
	}
	return known
}

// imageBlobs returns an image's commit, where that can be read, and its blobs, the config first,
// where it is no index.
func (d *destination) imageBlobs(ctx context.Context, ref string) (*ostree.Commit, []types.BlobInfo) {
	if !d.refs[ref] {
		return nil, nil
	}
	info, err := d.repo.commitInfo(ctx, ref)
	if err != nil {
		return nil, nil
	}
	blob, mimeType, err := d.repo.readManifest(ctx, info)
	if err != nil || manifest.MIMETypeIsMultiImage(mimeType) {
		return &info, nil
	}
	blobs, err := imageref.Blobs(blob, mimeType)
	if err != nil {
		return &info, nil
	}
	return &info, blobs
}

// findProven finds out with one process which of an image's blobs are there and were proved before.
func (d *destination) findProven(ctx context.Context, blobs []types.BlobInfo, known knownImages) {
	var refs []string
	seen := map[string]bool{}
	for _, b := range blobs {
		for _, ref := range []string{imageref.BlobRef(b.Digest), imageref.SidecarRef(b.Digest)} {
			if d.refs[ref] && !seen[ref] {
				seen[ref] = true
				refs = append(refs, ref)
			}
		}
	}
	if len(refs) == 0 {
		return
	}
	commits, err := d.repo.commitsOf(ctx, among(d.refs, refs))
	if err != nil {
		return
	}
	for i, b := range blobs {
		commit := commits[imageref.BlobRef(b.Digest)]
		if commit == "" || d.partial[imageref.SidecarRef(b.Digest)] {
			continue
		}
		if proved, ok := d.settings.proven.find(
			provenKey(b.Digest, commit, commits[imageref.SidecarRef(b.Digest)]),
		); ok {
			known.proved[b.Digest] = proved
			known.layers[b.Digest] = i > 0
		}
	}
}

// reimports are the blobs of a run that the repository has, and that are not to be reused. It is
// safe for parallel use.
type reimports struct{ blobs sync.Map }

func (r *reimports) add(blob digest.Digest) { r.blobs.Store(blob, true) }

func (r *reimports) wants(blob digest.Digest) bool {
	_, ok := r.blobs.Load(blob)
	return ok
}

// reimportError says that a blob which was to be reused must be imported. The copy can be started
// over.
type reimportError struct{ blob digest.Digest }

func (e *reimportError) Error() string {
	return fmt.Sprintf("layer %s in the repository is not what the image's config names", e.blob)
}
