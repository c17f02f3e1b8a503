package main

import (
	"context"
	"encoding/json"
	"maps"
	"os"
	"runtime"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/pkg/errors"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/types"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/imageref"
	"ostree-image/internal/ostree"
	"ostree-image/internal/spool"
)

const (
	maxConfigBytes    = 16 << 20
	maxManifestBytes  = 16 << 20
	maxSignatureBytes = 4 << 20
)

// destination puts one image into a repository (types.ImageDestination). Blobs are imported into a
// staging repository as they arrive; Commit publishes them, and last the image, so that an image is
// there with all it needs or not at all.
type destination struct {
	ref      ostreeReference
	settings *settings
	sys      *types.SystemContext
	repo     *repository
	ctx      context.Context // ends with the first failed import, and with Close
	fail     context.CancelCauseFunc
	queue    *importQueue
	idle     *idleWatch // learns when this is at work

	// What the repository is asked at the start. The answers come while the source is opened.
	opened   func() error    // waits for refs and partial, which nobody reads before it has returned
	refs     map[string]bool // of the repository when the copy began
	partial  map[string]bool // refs that it had too, of commits that may not be whole
	mode     func() (string, error)
	features func() (ostree.Features, error)

	lookUp sync.Once
	store  *blobStore // of refs, once it is known

	mu        sync.Mutex
	known     knownImages // once it was looked up
	staging   *staging    // nil until something must be committed
	blobs     map[digest.Digest]*destinationBlob
	exactBlob bool // layers are kept as they come
	configs   map[digest.Digest][]byte
	sizes     map[digest.Digest]int64 // of blobs, as the manifest names them
	manifests map[digest.Digest]*destinationManifest
	order     []digest.Digest // of manifests
	top       digest.Digest   // the manifest that the image's name stands for
}

// destinationBlob is a blob that is in the repository, or in the staging repository, or on its way
// there.
type destinationBlob struct {
	info   types.BlobInfo
	reused bool
	proved digest.Digest  // what a reused one was proved to hold: a layer's diffID, or its own digest
	exact  bool           // a reused layer can be given back as the manifest names it
	commit string         // of one that is no layer, where it was committed
	ref    string         // where it is committed, unless it is a layer; known once the queue is empty
	layer  *importedLayer // nil for other blobs, and until the import has ended
	noTar  error          // a layer by its media type that is none: what is wrong with it
	staged *spool.Blob    // such a one
	done   chan struct{}  // closed when the blob has arrived and info is known
	err    error          // of its arrival
}

type destinationManifest struct {
	blob       []byte
	mimeType   string
	signatures [][]byte
}

func newDestination(ctx context.Context, ref ostreeReference, sys *types.SystemContext) (*destination, error) {
	if sys == nil {
		sys = &types.SystemContext{}
	}
	s := ref.transport.settings
	d := &destination{
		ref: ref, settings: s, sys: sys, repo: ref.repository(),
		queue: newImportQueue(s.parallelImports()), exactBlob: s.preserveDigests,
		blobs: map[digest.Digest]*destinationBlob{}, configs: map[digest.Digest][]byte{},
		sizes: map[digest.Digest]int64{}, manifests: map[digest.Digest]*destinationManifest{}, idle: s.idle,
	}
	if err := s.useRepository(ctx, d.repo); err != nil {
		return nil, err
	}
	if _, err := os.Stat(d.repo.path); err != nil { // before a registry is asked for what cannot be stored
		return nil, d.repo.explainPath(errors.WithStack(err))
	}
	d.ctx, d.fail = context.WithCancelCause(ctx)
	repo, ctx := d.repo, d.ctx
	refs := ask(s, func() (map[string]bool, error) { return repo.refs(ctx) })
	d.mode = ask(s, func() (string, error) { return repo.config(ctx, "core.mode") })
	d.features = ask(s, func() (ostree.Features, error) { return ostreeVersion(ctx, s.runner) })
	d.opened = sync.OnceValue(func() error {
		if err := d.open(refs); err != nil {
			return &openError{d.cause(err)}
		}
		return nil
	})
	return d, nil
}

// ask calls f in the background, and returns a function that waits for its answer. Where one thing
// is to be done at a time, it waits at once.
func ask[T any](s *settings, f func() (T, error)) func() (T, error) {
	answer := sync.OnceValues(f)
	if s.parallelImports() == 1 {
		_, _ = answer()
	} else {
		go func() { _, _ = answer() }()
	}
	return answer
}

// open takes what the repository has when the copy begins.
func (d *destination) open(ask func() (map[string]bool, error)) error {
	refs, err := ask()
	if err != nil {
		return err
	}
	if d.refs, err = d.repo.whole(d.ctx, refs); err != nil {
		return err
	}
	d.partial = maps.Clone(refs)
	maps.DeleteFunc(d.partial, func(ref string, _ bool) bool { return d.refs[ref] })
	d.store = &blobStore{repo: d.repo, refs: d.refs, free: spool.NewPieces(spool.AheadPieces)}
	return nil
}

// openError says why the repository cannot be used at all. It counts for the whole copy, whichever
// blob meets it first.
type openError struct{ err error }

func (e *openError) Error() string { return e.err.Error() }

func (e *openError) Unwrap() error { return e.err }

func (d *destination) Reference() types.ImageReference { return d.ref }

// Close ends what still runs and removes the staging area.
func (d *destination) Close() error {
	d.fail(errors.New("the copy has ended"))
	_ = d.opened() // each is a process
	_, _ = d.mode()
	_, _ = d.features()
	d.queue.running.Wait()
	if d.staging == nil {
		return nil
	}
	<-d.staging.prepared
	return d.staging.remove()
}

func (d *destination) SupportedManifestMIMETypes() []string {
	return []string{
		imgspecv1.MediaTypeImageManifest, manifest.DockerV2Schema2MediaType,
		imgspecv1.MediaTypeImageIndex, manifest.DockerV2ListMediaType,
	}
}

// SupportsSignatures is asked before any blob of an image with signatures is copied. They are
// worthless without the exact bytes that they sign, so the layers are kept as they come.
func (d *destination) SupportsSignatures(context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.exactBlob = true
	return nil
}

func (d *destination) DesiredLayerCompression() types.LayerCompression { return types.PreserveOriginal }

func (d *destination) AcceptsForeignLayerURLs() bool { return false }

// MustMatchRuntimeOS is false, since the library would then refuse every artifact, and only log a
// real mismatch. PutManifest refuses an image for another platform.
func (d *destination) MustMatchRuntimeOS() bool { return false }

func (d *destination) IgnoresEmbeddedDockerReference() bool { return true }

func (d *destination) HasThreadSafePutBlob() bool { return true }

// stagingArea returns the staging area, made by the first who asks.
func (d *destination) stagingArea() (*staging, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.staging != nil {
		return d.staging, nil
	}
	mode, err := d.mode()
	if err != nil {
		return nil, err
	}
	features, err := d.features()
	if err != nil {
		return nil, err
	}
	if d.staging, err = newStaging(d.ctx, d.settings, d.repo, mode, features); err != nil {
		return nil, err
	}
	if d.settings.parallelImports() == 1 { // one thing at a time
		return d.staging, d.staging.ready(d.ctx)
	}
	return d.staging, nil
}

// PutManifest takes the image's manifest, or that of one instance of an index.
func (d *destination) PutManifest(_ context.Context, blob []byte, instance *digest.Digest) error {
	if limit := d.settings.maxManifest; limit > 0 && int64(len(blob)) > limit {
		return errors.Errorf(
			"the manifest has %d bytes, more than %d, the limit of --max-manifest-size",
			len(blob),
			limit,
		)
	}
	mimeType := manifest.GuessMIMEType(blob)
	switch mimeType {
	case imgspecv1.MediaTypeImageManifest, manifest.DockerV2Schema2MediaType:
	case imgspecv1.MediaTypeImageIndex, manifest.DockerV2ListMediaType:
		if instance != nil {
			return errors.New("an index within an index cannot be stored")
		}
	default:
		return types.ManifestTypeRejectedError{
			Err: errors.Errorf("a manifest of type %q cannot be stored; use --format oci or v2s2", mimeType),
		}
	}
	sum := digest.FromBytes(blob)
	if instance != nil && *instance != sum {
		return errdefs.Checkf("manifest %s does not match its digest: what arrived is %s", *instance, sum)
	}
	if instance == nil {
		if err := d.checkTop(blob, mimeType); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.manifests[sum] == nil {
		d.order = append(d.order, sum)
	}
	d.manifests[sum] = &destinationManifest{blob: blob, mimeType: mimeType}
	if instance == nil {
		d.top = sum
	}
	return nil
}

// checkTop refuses an image that is not for the platform that the user asks for.
func (d *destination) checkTop(blob []byte, mimeType string) error {
	if manifest.MIMETypeIsMultiImage(mimeType) {
		return nil
	}
	m, err := manifest.FromBlob(blob, mimeType)
	if err != nil {
		return errors.Wrap(err, "reading the manifest")
	}
	config := m.ConfigInfo()
	if !imageref.IsConfigType(config.MediaType) {
		return nil // an artifact runs nowhere
	}
	d.mu.Lock()
	content := d.configs[config.Digest]
	d.mu.Unlock()
	return checkPlatform(content, d.sys)
}

// checkPlatform refuses an image for another OS or architecture than wanted.
func checkPlatform(config []byte, sys *types.SystemContext) error {
	var image imgspecv1.Image
	if err := json.Unmarshal(config, &image); err != nil {
		return nil // whoever reads it as a config will say so
	}
	wantOS, wantArch := runtime.GOOS, runtime.GOARCH
	if sys.OSChoice != "" {
		wantOS = sys.OSChoice
	}
	if sys.ArchitectureChoice != "" {
		wantArch = sys.ArchitectureChoice
	}
	if image.OS != "" && image.OS != wantOS || image.Architecture != "" && image.Architecture != wantArch {
		return errors.Errorf(
			"the image is for %s/%s, and %s/%s is wanted; to store it all the same, use --override-os=%s --override-arch=%s",
			image.OS,
			image.Architecture,
			wantOS,
			wantArch,
			image.OS,
			image.Architecture,
		)
	}
	return nil
}

// PutSignatures takes the signatures of a manifest that was put before.
func (d *destination) PutSignatures(_ context.Context, signatures [][]byte, instance *digest.Digest) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	sum := d.top
	if instance != nil {
		sum = *instance
	}
	m := d.manifests[sum]
	if m == nil {
		return errors.Errorf("signatures of a manifest %q that is not stored", sum)
	}
	for _, s := range signatures {
		if len(s) > maxSignatureBytes {
			return errors.Errorf("a signature is larger than %d bytes", maxSignatureBytes)
		}
	}
	m.signatures = signatures
	return nil
}

// putNamedIndex refuses an image that is not the one that its name asks for. A name that asks for
// an index gets it, above the instance that was copied of it: source says what the copy began with,
// and may be nil.
func (d *destination) putNamedIndex(ctx context.Context, source types.UnparsedImage) error {
	top := d.manifests[d.top]
	if top == nil {
		return nil
	}
	other := imageref.CheckDigest(d.ref.image, top.blob)
	if other == nil || source == nil || manifest.MIMETypeIsMultiImage(top.mimeType) {
		return other
	}
	blob, mimeType, err := source.Manifest(ctx)
	if err != nil || !manifest.MIMETypeIsMultiImage(mimeType) || imageref.CheckDigest(d.ref.image, blob) != nil {
		return other
	}
	list, err := manifest.ListFromBlob(blob, mimeType)
	if err != nil {
		return errors.Wrap(err, "reading the index")
	}
	if !slices.Contains(list.Instances(), d.top) {
		return errdefs.Checkf("the image's manifest is %s, which the index that its name asks for does not have", d.top)
	}
	return d.PutManifest(ctx, blob, nil)
}

// parallelImports is how many layers are imported at a time.
func (s *settings) parallelImports() int {
	n := runtime.GOMAXPROCS(0)
	if s.parallelCopies > 0 {
		n = min(n, int(s.parallelCopies))
	}
	return n
}

// ensureDefaultRepo makes the embedded default repository at its first use. Any other must exist.
func (s *settings) ensureDefaultRepo(ctx context.Context, r *repository) error {
	path, err := embeddedRepo()
	if err != nil || path != r.path {
		return nil
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		return nil
	}
	mode := ostree.BareUser
	if os.Geteuid() == 0 {
		mode = ostree.Bare
	}
	return errors.WithMessage(r.init(ctx, mode), "making the default repository")
}
