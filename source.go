package main

import (
	"bytes"
	"context"
	"io"
	"maps"
	"runtime"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/types"
	"golang.org/x/sync/errgroup"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/imageref"
	"ostree-image/internal/ostree"
)

// source reads one image out of a repository (types.ImageSource). What the image's name stands for
// is settled when it is opened, so a name that moves meanwhile cannot mix two images. It is safe
// for parallel use.
type source struct {
	ref      ostreeReference
	settings *settings
	store    *blobStore
	commit   string // checksum
	info     ostree.Commit
	manifest []byte
	mimeType string

	mu    sync.Mutex
	blobs map[digest.Digest]*storedBlob // by the digest that the manifest names
	tars  map[digest.Digest]*storedBlob // by the digest of the tar stream
}

// NewImageSource opens the image for reading.
func (r ostreeReference) NewImageSource(ctx context.Context, _ *types.SystemContext) (types.ImageSource, error) {
	return openSource(ctx, r)
}

func openSource(ctx context.Context, ref ostreeReference) (*source, error) {
	s := ref.transport.settings
	repo := ref.repository()
	if err := s.useRepository(ctx, repo); err != nil {
		return nil, err
	}
	store, err := openBlobStore(ctx, repo)
	if err != nil {
		return nil, err
	}
	spec, err := store.findImage(ref)
	if err != nil {
		return nil, err
	}
	store = store.beside(spec)
	info, err := repo.readCommit(ctx, spec)
	if err != nil {
		return nil, errors.WithMessagef(err, "image %s", ref.image)
	}
	src := &source{
		ref: ref, settings: s, store: store, commit: info.Checksum, info: info,
		blobs: map[digest.Digest]*storedBlob{}, tars: map[digest.Digest]*storedBlob{},
	}
	src.manifest, src.mimeType, err = repo.readManifest(ctx, info)
	if err == nil {
		err = imageref.CheckDigest(ref.image, src.manifest)
	}
	return src, errors.WithMessagef(damage(err), "image %s", ref.image)
}

func (s *source) Reference() types.ImageReference { return s.ref }

func (s *source) Close() error { return nil }

func (s *source) HasThreadSafeGetBlob() bool { return true }

// GetManifest returns the exact bytes of the image's manifest, or of an instance's.
func (s *source) GetManifest(ctx context.Context, instance *digest.Digest) ([]byte, string, error) {
	if instance == nil || *instance == digest.FromBytes(s.manifest) {
		return s.manifest, s.mimeType, nil
	}
	if err := instance.Validate(); err != nil {
		return nil, "", errors.Wrapf(err, "manifest digest %q", *instance)
	}
	path := instanceDir(*instance) + imageref.FileManifest
	ok, err := s.store.repo.hasFile(ctx, s.commit, path)
	if err != nil {
		return nil, "", damage(err)
	}
	if !ok {
		return nil, "", errdefs.NotFoundf(
			"instance %s of %s is not in the repository; copy the image with --all to have all",
			*instance,
			s.ref.image,
		)
	}
	blob, err := s.store.repo.catFile(ctx, s.commit, path, maxManifestBytes)
	if err != nil {
		return nil, "", damage(err)
	}
	if got := instance.Algorithm().FromBytes(blob); got != *instance {
		return nil, "", errdefs.Checkf("the manifest of instance %s is %s: the repository is damaged", *instance, got)
	}
	return blob, manifest.GuessMIMEType(blob), nil
}

// instanceDir is where an instance of an index lies within the image's commit.
func instanceDir(d digest.Digest) string { return imageref.DirInstances + "/" + d.Encoded() + "/" }

// sigstoreMark begins a file that holds no simple signature.
var sigstoreMark = []byte("\x00sigstore-json\n")

// GetSignatures returns the signatures of the image, or of an instance. Those in sigstore form,
// which the old transport could hold, cannot pass through the library's interface and are left out
// with a warning.
func (s *source) GetSignatures(ctx context.Context, instance *digest.Digest) ([][]byte, error) {
	dir := ""
	if instance != nil && *instance != digest.FromBytes(s.manifest) {
		dir = instanceDir(*instance)
	}
	if n := s.info.Metadata[imageref.KeySignatures]; dir == "" && n == "0" {
		return nil, nil
	}
	numbers, err := s.store.repo.signatureNumbers(ctx, s.info, dir)
	if err != nil {
		return nil, errors.WithMessagef(err, "image %s", s.ref.image)
	}
	var signatures [][]byte
	for _, n := range numbers {
		blob, err := s.store.repo.catFile(ctx, s.commit, dir+imageref.FileSignature+strconv.Itoa(n), maxSignatureBytes)
		if err != nil {
			return nil, damage(err)
		}
		if bytes.HasPrefix(blob, sigstoreMark) {
			s.settings.warnf("image %s: signature %d is in sigstore form, and is left out", s.ref.image, n)
			continue
		}
		signatures = append(signatures, blob)
	}
	return signatures, nil
}

// signatureNumbers returns the numbers of the signature files in a directory of an image's commit,
// and checks that there are as many as the commit says.
func (r *repository) signatureNumbers(ctx context.Context, info ostree.Commit, dir string) ([]int, error) {
	names, err := r.fileNames(ctx, info.Checksum, dir)
	if err != nil {
		return nil, damage(err)
	}
	var numbers []int
	for _, name := range names {
		if n, err := strconv.Atoi(
			strings.TrimPrefix(name, imageref.FileSignature),
		); err == nil &&
			strings.HasPrefix(name, imageref.FileSignature) {
			numbers = append(numbers, n)
		}
	}
	sort.Ints(numbers)
	if want := info.Metadata[imageref.KeySignatures]; dir == "" && want != "" && want != strconv.Itoa(len(numbers)) {
		return nil, errdefs.Checkf("it has %d signature files, and its commit says %q", len(numbers), want)
	}
	return numbers, nil
}

// LayerInfosForCopy names the uncompressed layers, which is what the repository holds. It is nil
// where the manifest must stay as it is, since the library refuses changed layers then: digests are
// to be preserved, the image or its index has signatures that go with it, or the copy stays within
// one repository.
func (s *source) LayerInfosForCopy(ctx context.Context, instance *digest.Digest) ([]types.BlobInfo, error) {
	blob, mimeType, err := s.GetManifest(ctx, instance)
	if err != nil {
		return nil, err
	}
	if s.settings.preserveDigests || s.settings.sameRepository || manifest.MIMETypeIsMultiImage(mimeType) {
		return nil, nil
	}
	if !s.settings.removeSignatures {
		signatures, err := s.GetSignatures(ctx, instance)
		if err != nil || len(signatures) > 0 {
			return nil, err
		}
	}
	signedIndex, exact := false, true
	if instance != nil && !s.settings.removeSignatures { // its signatures cover the manifests of all instances
		signatures, err := s.GetSignatures(ctx, nil)
		if err != nil {
			return nil, err
		}
		signedIndex = len(signatures) > 0
	}
	named, err := imageref.Blobs(blob, mimeType)
	if err != nil {
		return nil, err
	}
	tarType := imageref.LayerTypes[0]
	if mimeType != manifest.DockerV2Schema2MediaType {
		tarType = imageref.LayerTypes[2]
	}
	layers, err := s.layers(ctx, named[1:])
	if err != nil {
		return nil, err
	}
	proofs, err := s.layerProofs(ctx, named)
	if err != nil {
		return nil, err
	}
	infos := []types.BlobInfo{}
	for i, b := range layers {
		if !b.layer {
			return nil, nil // an artifact, whose blobs are what they are
		}
		if !b.canRebuild() {
			if _, err := s.store.openTar(ctx, b); err != nil {
				return nil, err
			}
		}
		if err := checkDiffID(b.digest, b.diffID, proofs, i); err != nil {
			return nil, err
		}
		exact = exact && b.isExact()
		infos = append(
			infos,
			types.BlobInfo{
				Digest:      b.diffID,
				Size:        b.tarSize,
				MediaType:   tarType,
				Annotations: annotationsOf(named[1+i], b),
			},
		)
	}
	if exact && (signedIndex || !imageref.CanChangeLayers(blob, mimeType)) {
		return nil, nil
	}
	return infos, nil
}

// layerProofs returns the diffIDs that the config of a manifest of the image names: see
// layerProofs.
func (s *source) layerProofs(ctx context.Context, named []types.BlobInfo) ([]digest.Digest, error) {
	if !imageref.IsConfigType(named[0].MediaType) {
		return nil, nil
	}
	config, err := s.store.readSmall(ctx, named[0].Digest)
	if err != nil {
		return nil, damage(err)
	}
	return imageref.DiffIDs(config, named)
}

// proveLayers proves that layers of the image are what the manifest and the config name, as far as
// that was not done before on this machine. Those of 2017 have nothing to prove them with, which is
// said.
func (s *source) proveLayers(ctx context.Context, named []types.BlobInfo, layers []*storedBlob, mode string) error {
	proofs, err := s.layerProofs(ctx, named)
	if err != nil {
		return err
	}
	var sides []string
	for _, b := range layers {
		if b.side != "" {
			sides = append(sides, b.side)
		}
	}
	sidecars := map[string]string{"": ""}
	if len(sides) > 0 {
		sums, err := s.store.repo.revParse(ctx, sides...)
		if err != nil {
			return err
		}
		for i, spec := range sides {
			sidecars[spec] = sums[i]
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i, b := range layers {
		if !b.canRebuild() {
			continue // said when it is applied
		}
		if err := checkDiffID(b.digest, b.diffID, proofs, i); err != nil {
			return err
		}
		group.Go(func() error {
			_, err := s.settings.proveBlob(ctx, s.store, b, sidecars[b.side], mode)
			return errors.WithMessagef(err, "image %s", s.ref.image)
		})
	}
	return group.Wait()
}

// compressedNotes begin the keys of annotations that describe the compressed bytes of a layer:
// those of zstd:chunked, eStargz and OverlayBD.
var compressedNotes = []string{
	"io.github.containers.zstd-chunked.",
	"containerd.io/snapshot/stargz/",
	"io.containers.estargz.",
	"containerd.io/snapshot/overlaybd/",
}

// annotationsOf returns the annotations of a layer that goes out as its tar stream.
func annotationsOf(named types.BlobInfo, b *storedBlob) map[string]string {
	if b.diffID == named.Digest || named.Annotations == nil {
		return named.Annotations
	}
	kept := maps.Clone(named.Annotations)
	maps.DeleteFunc(kept, func(key, _ string) bool {
		return slices.ContainsFunc(compressedNotes, func(prefix string) bool { return strings.HasPrefix(key, prefix) })
	})
	return kept
}

// layers finds layers of the image, in their order. They are looked up side by side.
func (s *source) layers(ctx context.Context, named []types.BlobInfo) ([]*storedBlob, error) {
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	seen := map[digest.Digest]bool{}
	for _, info := range named {
		if !seen[info.Digest] {
			seen[info.Digest] = true
			group.Go(func() error {
				_, _ = s.blob(ctx, info.Digest) // what fails is asked for once more below, in order
				return nil
			})
		}
	}
	_ = group.Wait()
	var found []*storedBlob
	for _, info := range named {
		b, err := s.blob(ctx, info.Digest)
		if err != nil {
			return nil, err
		}
		found = append(found, b)
	}
	return found, nil
}

// blob finds a blob of the image, once.
func (s *source) blob(ctx context.Context, d digest.Digest) (*storedBlob, error) {
	s.mu.Lock()
	b := s.blobs[d]
	s.mu.Unlock()
	if b != nil {
		return b, nil
	}
	b, err := s.store.blob(ctx, d)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blobs[d] = b
	if b.diffID != "" {
		s.tars[b.diffID] = b
	}
	return b, nil
}

// GetBlob returns a config, a layer as the manifest names it, or a layer's tar stream that
// LayerInfosForCopy named.
func (s *source) GetBlob(
	ctx context.Context,
	info types.BlobInfo,
	_ types.BlobInfoCache,
) (io.ReadCloser, int64, error) {
	s.mu.Lock()
	asTar := s.tars[info.Digest]
	s.mu.Unlock()
	if asTar != nil {
		stream, err := s.store.openTar(ctx, asTar)
		return stream, asTar.tarSize, err
	}
	b, err := s.blob(ctx, info.Digest)
	if err != nil {
		return nil, 0, err
	}
	stream, err := s.store.open(ctx, b)
	return stream, b.size, err
}
