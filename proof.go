package main

import (
	"context"
	"io"
	"os"
	"syscall"

	"github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"github.com/vbatts/tar-split/archive/tar"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/imageref"
	"ostree-image/internal/layer"
	"ostree-image/internal/normalize"
	"ostree-image/internal/tarstream"
	"ostree-image/internal/treesum"
	"ostree-image/internal/ui"
)

// What a commit says of itself proves nothing: a repository may be another's. An image is proved by
// a chain in which each link is held against the one before: the digest in the image's name, the
// manifest, the config, the diffIDs that it names, each layer's tar stream, and the tree in the
// layer's commit. verify, checkout, push and an import that finds blobs in the repository all use
// what stands here.

// unprovenError says that there is nothing to prove a layer's tree with.
type unprovenError struct{ layer digest.Digest }

func (e *unprovenError) Error() string {
	return "layer " + e.layer.String() + " was stored without what proves its files (its tar-split data); import the image again"
}

// Unwrap makes it one of the errors that have an exit status of their own.
func (e *unprovenError) Unwrap() error { return errdefs.CheckError{Text: e.Error()} }

// proveLayer reads a layer and checks all that can be checked of it alone: that its tar stream
// matches the diffID in its commit, that the compressed bytes, where they are kept, match its
// digest and come to the same stream, and that the tree of its commit is what the stream comes to,
// down to owners, modes, links and attributes.
func (s *blobStore) proveLayer(ctx context.Context, b *storedBlob, mode string) error {
	if !b.canRebuild() {
		return &unprovenError{b.digest}
	}
	for name := range b.hasFile {
		if name != imageref.FileTarSplit && name != imageref.FileBlob {
			return errdefs.Checkf(
				"layer %s: its sidecar commit holds %s, which does not belong there",
				b.digest,
				ui.Quoted(name),
			)
		}
	}
	if b.hasRecord() && b.hasFile[imageref.FileBlob] {
		stream, err := s.openBlobTar(ctx, b)
		if err == nil {
			_, err = io.Copy(io.Discard, stream)
			_ = stream.Close()
		}
		if err != nil {
			return errors.WithMessage(err, "its compressed bytes")
		}
	}
	owner, err := s.repo.owner()
	if err != nil {
		return err
	}
	var tree treesum.Root
	var size int64
	for _, perms := range storedPermissions(mode, owner) {
		if tree, size, err = s.layerTree(ctx, b, perms); err != nil {
			return err
		}
		if size != b.tarSize {
			return errdefs.Checkf(
				"layer %s: its tar stream has %d bytes, and its commit says %d",
				b.digest,
				size,
				b.tarSize,
			)
		}
		if tree == b.tree {
			return nil
		}
	}
	return errdefs.Checkf("layer %s: the tree of its commit is not what its tar stream comes to: "+
		"files were changed, or another tool or an older release imported it; import the image again", b.digest)
}

// proveBlob checks a blob, unless that was done before on this machine, and returns the digest of
// what it holds: a layer's diffID, or the blob's own. sidecar is the commit of its sidecar, "" for
// none.
func (s *settings) proveBlob(
	ctx context.Context, store *blobStore, b *storedBlob, sidecar, mode string,
) (digest.Digest, error) {
	key := provenKey(b.digest, b.commit, sidecar)
	if proved, ok := s.proven.find(key); ok {
		return proved.digest, nil
	}
	proved := b.diffID
	err := b.binding
	switch {
	case err != nil:
	case b.layer:
		err = store.proveLayer(ctx, b, mode)
	default:
		proved = b.digest
		err = store.proveContent(ctx, b)
	}
	if err != nil {
		s.proven.drop(key)
		return "", err
	}
	s.proven.add(key, provenBlob{proved, b.size})
	return proved, nil
}

// proveContent reads a blob that is no layer and checks its digest.
func (s *blobStore) proveContent(ctx context.Context, b *storedBlob) error {
	stream, err := s.open(ctx, b)
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	_, err = io.Copy(io.Discard, stream)
	return err
}

// owner is the user and the group that the repository's directory belongs to.
func (r *repository) owner() (*syscall.Stat_t, error) {
	info, err := os.Stat(r.path)
	if err != nil {
		return nil, r.explainPath(errors.WithStack(err))
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, errors.Errorf("%s: its owner is unknown", r.path)
	}
	return stat, nil
}

// layerTree returns what the layer's tar stream comes to under the rules of perms, and the stream's
// size in bytes. The stream ends well only if it matches the diffID. A layer that names something
// twice is read twice.
func (s *blobStore) layerTree(
	ctx context.Context,
	b *storedBlob,
	perms permissions,
) (tree treesum.Root, size int64, err error) {
	sum := treesum.NewWriter()
	var sink normalizedSink = normalize.NewFilter(perms, sum)
	scan, err := s.scanLayer(ctx, b, sink)
	if err != nil {
		return tree, 0, err
	}
	if scan.NonCanonical {
		plan := normalize.NewPlan(perms)
		if err := s.headers(ctx, b, plan.Add); err != nil {
			return tree, 0, err
		}
		sum = treesum.NewWriter()
		sink = normalize.NewPlanFilter(plan, sum)
		if _, err := s.scanLayer(ctx, b, sink); err != nil {
			return tree, 0, err
		}
	}
	err = sink.Finish()
	return sum.Root(), scan.Size, err
}

// scanLayer reads the layer's tar stream once and gives it to the sink.
func (s *blobStore) scanLayer(ctx context.Context, b *storedBlob, sink layer.Sink) (*layer.Scan, error) {
	stream, err := s.openTar(ctx, b)
	if err != nil {
		return nil, err
	}
	defer func() { _ = stream.Close() }()
	scan := &layer.Scan{Sink: &boundedSink{sink: sink, left: maxHeaderMemory}}
	if !b.hasRecord() { // it may have sparse files, which come to no more than the tree has
		sizes, err := s.repo.fileSizes(ctx, b.spec, func() (int, error) { return s.mostPaths(ctx, b) })
		if err != nil {
			return nil, err
		}
		for _, size := range sizes {
			scan.SparseMost += size
		}
	}
	if err := scan.Run(ctx, stream); err != nil {
		return nil, badData(err, "layer %s cannot be read", b.digest)
	}
	return scan, nil
}

// boundedSink passes entries on as long as what is remembered of them fits into memory.
type boundedSink struct {
	sink layer.Sink
	left int64 // bytes
}

func (s *boundedSink) Entry(hdr *tar.Header) (io.Writer, error) {
	const each = 512 // bytes, about what one takes beside its names
	if s.left -= int64(each + 2*len(hdr.Name) + len(hdr.Linkname)); s.left < 0 {
		return nil, errdefs.Checkf("its headers take more than %d bytes", int64(maxHeaderMemory))
	}
	return s.sink.Entry(hdr)
}

// fileTree returns what the tree of a commit of small files comes to: see staging.commitFiles.
func fileTree(files []treeFile, perms permissions) (treesum.Root, error) {
	sum := treesum.NewWriter()
	made := map[string]bool{}
	entry := func(e tarstream.Entry, content []byte) error {
		perms.Own(&e)
		err := sum.WriteEntry(e)
		if err == nil {
			_, err = sum.Write(content)
		}
		return err
	}
	dir := func(name string) error {
		made[name] = true
		return entry(tarstream.Entry{Name: name, Kind: tarstream.Dir, Mode: 0o755}, nil)
	}
	if err := dir(""); err != nil {
		return treesum.Root{}, err
	}
	for _, f := range files {
		for i, c := range f.name {
			if c == '/' && !made[f.name[:i]] {
				if err := dir(f.name[:i]); err != nil {
					return treesum.Root{}, err
				}
			}
		}
		e := tarstream.Entry{Name: f.name, Kind: tarstream.File, Mode: 0o644, Size: int64(len(f.content))}
		if err := entry(e, f.content); err != nil {
			return treesum.Root{}, err
		}
	}
	return sum.Root(), sum.Close()
}

// checkDiffID refuses a layer whose tar stream is another than the config names. proofs is what
// layerProofs returned.
func checkDiffID(layer, got digest.Digest, proofs []digest.Digest, n int) error {
	if proofs == nil || proofs[n] == got {
		return nil
	}
	if got == "" {
		return &unprovenError{layer}
	}
	return errdefs.Checkf("layer %s: its tar stream is %s, and the image's config names %s", layer, got, proofs[n])
}
