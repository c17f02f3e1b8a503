package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
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
	"ostree-image/internal/treesum"
	"ostree-image/internal/spool"
)

const (
	maxConfigBytes    = 16 << 20
	maxManifestBytes  = 16 << 20
	maxSignatureBytes = 4 << 20
)

// destination puts one image into a repository (types.ImageDestination). Blobs are imported into a staging repository as
// they arrive; Commit publishes them, and last the image, so that an image is there with all it needs or not at all.
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
	features func() (ostreeFeatures, error)

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

// destinationBlob is a blob that is in the repository, or in the staging repository, or on its way there.
type destinationBlob struct {
	info   types.BlobInfo
	reused bool
	proved digest.Digest  // what a reused one was proved to hold: a layer's diffID, or its own digest
	exact  bool           // a reused layer can be given back as the manifest names it
	commit string         // of one that is no layer, where it was committed
	ref    string         // where it is committed, unless it is a layer; known once the queue is empty
	layer  *importedLayer // nil for other blobs, and until the import has ended
	noTar  error          // a layer by its media type that is none: what is wrong with it
	staged *stagedBlob    // such a one
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
	refs := ask(s, func() (map[string]bool, error) { return d.repo.refs(d.ctx) })
	d.mode = ask(s, func() (string, error) { return d.repo.config(d.ctx, "core.mode") })
	d.features = ask(s, func() (ostreeFeatures, error) { return ostreeVersion(d.ctx, s.runner) })
	d.opened = sync.OnceValue(func() error {
		if err := d.open(refs); err != nil {
			return &openError{d.cause(err)}
		}
		return nil
	})
	return d, nil
}

// ask calls f in the background, and returns a function that waits for its answer. Where one thing is to be done at a time,
// it waits at once.
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
	d.store = &blobStore{repo: d.repo, refs: d.refs, free: newPieces(aheadPieces)}
	return nil
}

// openError says why the repository cannot be used at all. It counts for the whole copy, whichever blob meets it first.
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

// SupportsSignatures is asked before any blob of an image with signatures is copied. They are worthless without the
// exact bytes that they sign, so the layers are kept as they come.
func (d *destination) SupportsSignatures(context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.exactBlob = true
	return nil
}

func (d *destination) DesiredLayerCompression() types.LayerCompression { return types.PreserveOriginal }

func (d *destination) AcceptsForeignLayerURLs() bool { return false }

// MustMatchRuntimeOS is false, since the library would then refuse every artifact, and only log a real mismatch. PutManifest refuses an
// image for another platform.
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

// PutBlob stages a blob and verifies it. A layer is imported meanwhile and after: what goes wrong there ends the copy,
// at the latest in Commit.
func (d *destination) PutBlob(ctx context.Context, stream io.Reader, info types.BlobInfo, _ types.BlobInfoCache, isConfig bool) (types.BlobInfo, error) {
	defer d.idle.work()()
	if err := d.opened(); err != nil {
		return types.BlobInfo{}, err
	}
	return d.putBlob(ctx, d.idle.stream(stream), info, isConfig)
}

// putBlob is PutBlob for a repository that is open.
func (d *destination) putBlob(
	ctx context.Context, stream io.Reader, info types.BlobInfo, isConfig bool,
) (types.BlobInfo, error) {
	if info.Digest == "" {
		return d.putUnknown(ctx, stream, info, isConfig)
	}
	if info.Size < 0 { // the registry does not say
		d.mu.Lock()
		if size, ok := d.sizes[info.Digest]; ok {
			info.Size = size
		}
		d.mu.Unlock()
	}
	// Before it becomes a part of a path.
	if err := info.Digest.Validate(); err != nil {
		return types.BlobInfo{}, errors.Wrapf(err, "blob digest %q", info.Digest)
	}
	b, mine := d.claim(info)
	if !mine {
		<-b.done
		if b.err == nil && isConfig {
			return b.info, d.cause(d.keepConfig(ctx, b, stream, info))
		}
		return b.info, b.err
	}
	b.info, b.err = d.receive(ctx, b, stream, info, isConfig)
	close(b.done)
	return b.info, b.err
}

// putUnknown puts a blob whose digest nobody knows before it is here.
func (d *destination) putUnknown(ctx context.Context, stream io.Reader, info types.BlobInfo, isConfig bool) (types.BlobInfo, error) {
	st, err := d.stagingArea()
	if err != nil {
		return types.BlobInfo{}, err
	}
	limit := d.settings.limits.bytes
	if isConfig { // a larger one is refused as any other
		stream, limit = io.LimitReader(stream, maxConfigBytes+1), 0
	}
	staged, file, err := newStagedBlob(st.blobDir(), info, limit)
	if err != nil {
		return types.BlobInfo{}, err
	}
	defer func() { _ = os.Remove(staged.path) }()
	if err := staged.fill(d.ctx, stream, file); err != nil {
		err = d.cause(err)
		d.fail(err)
		return types.BlobInfo{}, err
	}
	in, err := staged.open()
	if err != nil {
		return types.BlobInfo{}, err
	}
	defer func() { _ = in.Close() }()
	info.Digest, info.Size = staged.digest, staged.size()
	return d.putBlob(ctx, in, info, isConfig)
}

// cause returns what ended the copy where that is over, since err is then only what that led to.
func (d *destination) cause(err error) error {
	if err != nil && d.ctx.Err() != nil {
		return context.Cause(d.ctx)
	}
	return err
}

// claim makes a blob the caller's to receive, unless it is there or on its way.
func (d *destination) claim(info types.BlobInfo) (b *destinationBlob, mine bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if b, ok := d.blobs[info.Digest]; ok {
		return b, false
	}
	b = &destinationBlob{done: make(chan struct{})}
	d.blobs[info.Digest] = b
	return b, true
}

func (d *destination) receive(ctx context.Context, b *destinationBlob, stream io.Reader, info types.BlobInfo, isConfig bool) (_ types.BlobInfo, err error) {
	defer func() { err = d.cause(err) }()
	if isConfig {
		return d.putConfig(ctx, b, stream, info)
	}
	st, err := d.stagingArea()
	if err != nil {
		return types.BlobInfo{}, err
	}
	staged, file, err := newStagedBlob(st.blobDir(), info, d.settings.limits.bytes)
	if err != nil {
		return types.BlobInfo{}, err
	}
	record := d.settings.journal.record
	record.link(staged.path, staged.name())
	isLayer := imageref.IsLayerType(info.MediaType)
	// A large layer is imported while it arrives. A small one would only keep a slot from others that are there already.
	early := isLayer && (info.Size < 0 || info.Size > spool.Small)
	if early {
		d.queueLayer(st, staged, b)
	}
	stop := context.AfterFunc(ctx, func() { d.fail(context.Cause(ctx)) })
	defer stop()
	if err := staged.fill(d.ctx, stream, file); err != nil {
		d.fail(err)
		return types.BlobInfo{}, err
	}
	if err := record.keep(staged.path, staged.name()); err != nil {
		return types.BlobInfo{}, err
	}
	if isLayer && !early {
		d.queueLayer(st, staged, b)
	}
	info = types.BlobInfo{Digest: staged.digest, Size: staged.size(), MediaType: info.MediaType}
	if !isLayer {
		file := treeFile{name: imageref.FileContent, from: staged.path, input: staged.name()}
		if b.ref, b.commit, err = d.putContent(st, info, file); err != nil {
			return types.BlobInfo{}, err
		}
	}
	return info, nil
}

// queueLayer has a staged layer imported once there is a slot for it.
func (d *destination) queueLayer(st *staging, staged *stagedBlob, b *destinationBlob) {
	d.queue.add(d.ctx, func() { d.importLayer(st, staged, b) })
}

// importLayer imports a staged layer, while it arrives or after. The first error ends the copy.
func (d *destination) importLayer(st *staging, staged *stagedBlob, b *destinationBlob) {
	d.mu.Lock()
	exactBlob, known := d.exactBlob, d.refs[imageref.BlobRef(staged.want.Digest)]
	d.mu.Unlock()
	if known && !exactBlob {
		// A digest that is kept as some other blob's content must stay readable as that. What cannot be read is no loss.
		exactBlob, _ = d.repo.hasFile(d.ctx, imageref.BlobRef(staged.want.Digest), imageref.FileContent)
	}
	if side := imageref.SidecarRef(staged.want.Digest); (d.settings.signs() && d.refs[side] || d.partial[side] || d.replaces(staged.want.Digest)) && !exactBlob {
		exactBlob, _ = d.repo.hasFile(d.ctx, side, imageref.FileBlob) // it is made anew, to be signed or whole, and must not lose what it has
	}
	bar := d.settings.progress.Importing(staged.want.Digest, staged.want.Size)
	defer bar.Done()
	layer, err := st.importLayer(d.ctx, staged, exactBlob)
	var noTar *noTarError
	if errors.As(err, &noTar) {
		d.mu.Lock()
		b.noTar, b.staged = err, staged // an artifact may have it: its manifest says so, and comes last
		d.mu.Unlock()
		return
	}
	if err != nil {
		if d.ctx.Err() == nil {
			d.fail(errors.WithMessage(err, "importing"))
		}
		return
	}
	d.mu.Lock()
	b.layer = layer
	d.mu.Unlock()
}

// replaces tells whether a layer is imported that the repository has already, but not as it should be.
func (d *destination) replaces(layer digest.Digest) bool {
	return d.refs[imageref.BlobRef(layer)] && !d.settings.signs()
}

// readConfig reads an image's configuration, which is small, and keeps it in memory.
func (d *destination) readConfig(stream io.Reader, info types.BlobInfo) ([]byte, error) {
	content, err := io.ReadAll(io.LimitReader(stream, maxConfigBytes+1))
	if err != nil {
		return nil, errors.Wrapf(err, "reading config %s", info.Digest)
	}
	if len(content) > maxConfigBytes {
		return nil, errors.Errorf("config %s is larger than %d bytes", info.Digest, maxConfigBytes)
	}
	if got := info.Digest.Algorithm().FromBytes(content); got != info.Digest {
		return nil, errdefs.Checkf("config %s does not match its digest: what arrived is %s", info.Digest, got)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.configs[info.Digest] = content
	return content, nil
}

// putConfig takes an image's configuration, and leaves it alone where the repository has it.
func (d *destination) putConfig(ctx context.Context, b *destinationBlob, stream io.Reader, info types.BlobInfo) (types.BlobInfo, error) {
	content, err := d.readConfig(stream, info)
	if err != nil {
		return types.BlobInfo{}, err
	}
	got := types.BlobInfo{Digest: info.Digest, Size: int64(len(content)), MediaType: info.MediaType}
	d.mu.Lock()
	present := d.refs[imageref.BlobRef(got.Digest)]
	known := d.known.proved[got.Digest] == provenBlob{got.Digest, got.Size}
	d.mu.Unlock()
	if present && !d.settings.signs() && (known || d.holdsContent(ctx, got.Digest, content) || d.isLayerKept(ctx, got.Digest)) {
		b.reused = true
		return got, nil
	}
	st, err := d.stagingArea()
	if err != nil {
		return types.BlobInfo{}, err
	}
	commit := func() (err error) {
		b.ref, b.commit, err = d.putContent(st, got, treeFile{name: imageref.FileContent, content: content})
		return err
	}
	if d.settings.parallelImports() == 1 { // one thing at a time
		return got, commit()
	}
	// The config comes last: it need not be waited for.
	d.queue.add(d.ctx, func() {
		if err := commit(); err != nil {
			d.fail(err)
		}
	})
	return got, nil
}

// keepConfig keeps a config that has the digest of a layer which the repository has. Of a layer that is imported keepExact keeps
// the bytes.
func (d *destination) keepConfig(ctx context.Context, b *destinationBlob, stream io.Reader, info types.BlobInfo) error {
	content, err := d.readConfig(stream, info)
	if err != nil || !b.reused || b.exact || d.isLayerKept(ctx, info.Digest) {
		return err
	}
	st, err := d.stagingArea()
	if err != nil {
		return err
	}
	b.ref, b.commit, err = d.putContent(st, b.info, treeFile{name: imageref.FileContent, content: content})
	return err
}

// holdsContent tells whether the commit of a blob that is no layer holds these bytes, and nothing else, and says so. What cannot be
// read is made anew.
func (d *destination) holdsContent(ctx context.Context, blob digest.Digest, content []byte) bool {
	info, err := d.repo.commitInfo(ctx, imageref.BlobRef(blob))
	return err == nil && info.checkBinding(imageref.BlobRef(blob)) == nil && info.metadata[imageref.KeySize] == strconv.Itoa(len(content)) &&
		d.hasTree(info, []treeFile{{name: imageref.FileContent, content: content}})
}

// isLayerKept tells whether a blob is a layer that can be given back byte for byte.
func (d *destination) isLayerKept(ctx context.Context, blob digest.Digest) bool {
	b, err := d.store.blob(ctx, blob)
	if err != nil || !b.layer || !b.isExact() {
		return false
	}
	_, err = d.prove(ctx, b)
	return err == nil
}

// hasTree tells whether a commit's tree is that of these files, whoever has made it.
func (d *destination) hasTree(info commitInfo, files []treeFile) bool {
	mode, err := d.mode()
	if err != nil {
		return false
	}
	owner, err := d.repo.owner()
	if err != nil {
		return false
	}
	return slices.ContainsFunc(storedPermissions(mode, owner), func(perms permissions) bool {
		tree, err := fileTree(files, perms)
		return err == nil && tree == treesum.Root{Tree: info.root, Meta: info.rootMeta}
	})
}

// putContent commits a blob that is no layer and returns its ref. Where its digest is that of a layer already, the layer
// stays, and the blob goes beside it.
func (d *destination) putContent(st *staging, info types.BlobInfo, file treeFile) (ref, commit string, err error) {
	o := commitOptions{
		branch: imageref.BlobRef(info.Digest), timestamp: st.timestamp(), why: "commit blob " + info.Digest.String(),
		metadata: []metadataString{{imageref.KeySize, strconv.FormatInt(info.Size, 10)}},
	}
	if d.refs[o.branch] {
		there, err := d.store.blob(d.ctx, info.Digest)
		if err != nil && !errors.Is(err, errNoRef) { // a prune can have removed it since
			return "", "", err
		}
		// What only calls itself a layer, or has other bytes, gives way.
		if err == nil && there.layer && d.hasBytes(there, file) {
			o.branch, o.metadata, file.name = imageref.SidecarRef(info.Digest), nil, imageref.FileBlob
		}
	}
	commit, err = st.commitFiles(d.ctx, []treeFile{file}, o)
	return o.branch, commit, err
}

// hasBytes tells whether a layer of the repository is whole, and these are the bytes of its blob:
// they come to its tar stream.
func (d *destination) hasBytes(b *storedBlob, file treeFile) bool {
	if _, err := d.prove(d.ctx, b); err != nil {
		return false
	}
	blob := io.NopCloser(bytes.NewReader(file.content))
	if file.from != "" {
		f, err := os.Open(file.from)
		if err != nil {
			return false
		}
		blob = f
	}
	defer func() { _ = blob.Close() }()
	stream, _, err := decompress(blob, func() {})
	if err != nil {
		return false
	}
	defer func() { _ = stream.Close() }()
	_, err = io.Copy(io.Discard, b.verifiedTar(stream))
	return err == nil
}

// TryReusingBlob finds a blob that is complete in the repository: its size and diffID are known, and its bytes can be
// given back. A layer that an older layout left without that is imported anew.
func (d *destination) TryReusingBlob(ctx context.Context, info types.BlobInfo, _ types.BlobInfoCache, _ bool) (bool, types.BlobInfo, error) {
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
	known, exactBlob := d.refs[imageref.BlobRef(info.Digest)] && !d.partial[imageref.SidecarRef(info.Digest)], d.exactBlob
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

// complete tells whether the repository holds all of a blob, and has it proved. It asks one question where it can: each is a
// process. What is returned has its size, and what was proved.
func (d *destination) complete(ctx context.Context, info types.BlobInfo, exactBlob bool) (*destinationBlob, bool, error) {
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
			return &destinationBlob{info: types.BlobInfo{Size: info.Size}, proved: proved.digest, exact: exact}, true, nil
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

// prove reads a blob of the repository and checks it, unless that was done before on this machine. It returns the digest of
// what it holds: a layer's diffID, or the blob's own.
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
	own    *commitInfo // what the image's name stands for, nil where that was not asked
	proved map[digest.Digest]provenBlob
	layers map[digest.Digest]bool // which of them are layers
}

// encodedColon stands before the tag, or the hex part of the digest, in the ref of any image.
const encodedColon = "_3A"

// mostSiblings is how many images with the same name and another tag are looked at.
const mostSiblings = 3

// lookUpImages reads the image that has the name so far, and then others that differ from it in the tag, until one has the layer.
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

// imageBlobs returns an image's commit, where that can be read, and its blobs, the config first, where it is no index.
func (d *destination) imageBlobs(ctx context.Context, ref string) (*commitInfo, []types.BlobInfo) {
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
		if proved, ok := d.settings.proven.find(provenKey(b.Digest, commit, commits[imageref.SidecarRef(b.Digest)])); ok {
			known.proved[b.Digest] = proved
			known.layers[b.Digest] = i > 0
		}
	}
}

// PutManifest takes the image's manifest, or that of one instance of an index.
func (d *destination) PutManifest(_ context.Context, blob []byte, instance *digest.Digest) error {
	if limit := d.settings.maxManifest; limit > 0 && int64(len(blob)) > limit {
		return errors.Errorf("the manifest has %d bytes, more than %d, the limit of --max-manifest-size", len(blob), limit)
	}
	mimeType := manifest.GuessMIMEType(blob)
	switch mimeType {
	case imgspecv1.MediaTypeImageManifest, manifest.DockerV2Schema2MediaType:
	case imgspecv1.MediaTypeImageIndex, manifest.DockerV2ListMediaType:
		if instance != nil {
			return errors.New("an index within an index cannot be stored")
		}
	default:
		return types.ManifestTypeRejectedError{Err: errors.Errorf("a manifest of type %q cannot be stored; use --format oci or v2s2", mimeType)}
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
		return errors.Errorf("the image is for %s/%s, and %s/%s is wanted; to store it all the same, use --override-os=%s --override-arch=%s",
			image.OS, image.Architecture, wantOS, wantArch, image.OS, image.Architecture)
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

// putNamedIndex refuses an image that is not the one that its name asks for. A name that asks for an index gets it, above the
// instance that was copied of it: source says what the copy began with, and may be nil.
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
	unchanged := d.staging == nil && len(d.partial) == 0 && !hasStrays(d.refs)
	if unchanged && d.isStored(ctx, d.refs, top, d.known.own) { // whatever others do, it was there, with all that it needs, a moment ago
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
	if err := d.repo.dropStrays(ctx, refs); err != nil {
		return err
	}
	whole, err := d.repo.whole(ctx, refs)
	if err != nil {
		return err
	}
	for _, blob := range need {
		if d.isReused(blob) && (!whole[imageref.BlobRef(blob)] || d.refs[imageref.SidecarRef(blob)] && !whole[imageref.SidecarRef(blob)]) {
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

// sweep removes what runs left that were killed after they had published: a run that has nothing to do makes no work directory, and so
// removes none.
func (d *destination) sweep() {
	d.repo.sweep()
	if d.settings.tmpdir == "" {
		return
	}
	if dir, err := d.settings.openTmpdir(); err == nil {
		sweepWorkDirs(dir.at)
		dir.unpin()
	}
}

// commitImage commits the image to the staging repository and returns the commit's checksum.
func (d *destination) commitImage(top *destinationManifest) (string, error) {
	st, err := d.stagingArea()
	if err != nil {
		return "", err
	}
	metadata := []metadataString{
		{imageref.KeyDigest, d.top.String()},
		{imageref.KeySignatures, strconv.Itoa(len(top.signatures))},
	}
	if m := (metadataString{imageref.KeyManifest, string(top.blob)}); m.fits() {
		metadata = append([]metadataString{m}, metadata...)
	}
	o := commitOptions{
		branch: d.ref.ref(), metadata: metadata, timestamp: d.imageTimestamp(top), why: "commit image " + d.ref.image,
	}
	return st.commitFiles(d.ctx, d.imageFiles(), o)
}

// vanishedError says that a blob that was there when the copy began is gone. The copy can be started over.
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

// neededBlobs returns the blobs that the image's manifests name, each once.
func (d *destination) neededBlobs() ([]digest.Digest, error) {
	var need []digest.Digest
	seen := map[digest.Digest]bool{}
	for _, sum := range d.order {
		m := d.manifests[sum]
		if manifest.MIMETypeIsMultiImage(m.mimeType) {
			continue
		}
		blobs, err := imageref.Blobs(m.blob, m.mimeType)
		if err != nil {
			return nil, err
		}
		for _, b := range blobs {
			if !seen[b.Digest] {
				seen[b.Digest] = true
				need = append(need, b.Digest)
			}
		}
	}
	return need, nil
}

// putArtifacts keeps blobs that are no layers though their media type says so: tools put files of any kind under the type of a
// tar layer. An image that would run has no such.
func (d *destination) putArtifacts() error {
	artifact := map[digest.Digest]bool{}
	for _, sum := range d.order {
		m := d.manifests[sum]
		if manifest.MIMETypeIsMultiImage(m.mimeType) {
			continue
		}
		blobs, err := imageref.Blobs(m.blob, m.mimeType)
		if err != nil {
			return err
		}
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
		b.ref, b.commit, err = d.putContent(d.staging, b.info, treeFile{name: imageref.FileContent, from: b.staged.path, input: b.staged.name()})
		if err != nil {
			return err
		}
	}
	return nil
}

// keepSigned keeps the exact bytes of the layers that a signature covers, where the copy did not announce signatures, of those
// that nothing else proves, and of a layer that is the config, too.
func (d *destination) keepSigned(ctx context.Context) error {
	for _, m := range d.manifests {
		if manifest.MIMETypeIsMultiImage(m.mimeType) {
			continue
		}
		blobs, err := imageref.Blobs(m.blob, m.mimeType)
		if err != nil {
			return err
		}
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
			if err := d.staging.keepSide(ctx, b.layer, true); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkLayers holds the layers against the diffIDs that the configs name. A layer that was imported now and has another is
// refused. One that was there may be another's: it is imported anew.
func (d *destination) checkLayers(ctx context.Context) error {
	for _, sum := range d.order {
		m := d.manifests[sum]
		if manifest.MIMETypeIsMultiImage(m.mimeType) {
			continue
		}
		blobs, err := imageref.Blobs(m.blob, m.mimeType)
		if err != nil {
			return err
		}
		config := d.configs[blobs[0].Digest]
		if want := blobs[0].Size; config != nil && want != int64(len(config)) {
			return errdefs.Checkf("config %s has %d bytes, and the manifest names %d", blobs[0].Digest, len(config), want)
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
				if size := b.layer.blob.size(); info.Size >= 0 && info.Size != size {
					return errdefs.Checkf("layer %s has %d bytes, and the manifest names %d", info.Digest, size, info.Size)
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

// reimports are the blobs of a run that the repository has, and that are not to be reused. It is safe for parallel use.
type reimports struct{ blobs sync.Map }

func (r *reimports) add(blob digest.Digest) { r.blobs.Store(blob, true) }

func (r *reimports) wants(blob digest.Digest) bool {
	_, ok := r.blobs.Load(blob)
	return ok
}

// reimportError says that a blob which was to be reused must be imported. The copy can be started over.
type reimportError struct{ blob digest.Digest }

func (e *reimportError) Error() string {
	return fmt.Sprintf("layer %s in the repository is not what the image's config names", e.blob)
}

// imageTimestamp is that of the image's commit.
func (d *destination) imageTimestamp(top *destinationManifest) int64 {
	if manifest.MIMETypeIsMultiImage(top.mimeType) {
		return d.timestampOf(nil)
	}
	blobs, err := imageref.Blobs(top.blob, top.mimeType)
	if err != nil {
		return d.timestampOf(nil)
	}
	return d.timestampOf(d.configs[blobs[0].Digest])
}

// timestampOf is the config's "created", in seconds since 1970, and 0 where it has none, or one that no file system knows. The user may
// want another.
func (d *destination) timestampOf(config []byte) int64 {
	if d.settings.timestamp != nil {
		return *d.settings.timestamp
	}
	var image struct {
		Created *time.Time `json:"created"`
	}
	if err := json.Unmarshal(config, &image); err != nil || image.Created == nil {
		return 0
	}
	return max(0, image.Created.Unix())
}

// isStored tells whether the repository holds this very image under its name. info is the commit of that name, where it is known.
func (d *destination) isStored(ctx context.Context, refs map[string]bool, top *destinationManifest, info *commitInfo) bool {
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
	text := info.metadata[imageref.KeyManifest]
	return info.checkBinding(d.ref.ref()) == nil && info.timestamp == uint64(d.imageTimestamp(top)) && info.metadata[imageref.KeyDigest] == d.top.String() &&
		info.metadata[imageref.KeySignatures] == "0" && (text == "" || text == string(top.blob)) && d.hasTree(*info, d.imageFiles())
}

// publish moves all that is staged into the repository: first the blobs, as one transaction, then the image's ref, as one.
// Within one, ostree writes refs in any order, so an image must come by itself. Its commit comes with the blobs: it would stay marked as
// partial where the transaction that brings it is killed at its very end, and then nobody may see it.
// Where it fails, the refs are as they were. The repository has refs, and of these the whole ones can be relied on.
func (d *destination) publish(ctx context.Context, refs, whole map[string]bool, image string) (err error) {
	st := d.staging
	// A replay may come to another commit, and is to compare it.
	j := d.settings.journal
	j.name(image, "(ostree rev-parse --repo="+j.path(st.repo.path)+" "+d.ref.ref()+")")
	defer j.forget(image)
	blobs := d.stagedRefs(whole)
	d.dropStaged()
	published := append(slices.Clone(blobs), d.ref.ref())
	named, err := d.repo.commitsOf(ctx, among(refs, published)) // with a process, where a name moves
	if err != nil {
		return err
	}
	if err := st.check(ctx); err != nil {
		return err
	}
	running := d.repo.transactions()
	defer func() {
		if err != nil {
			d.takeBack(ctx, refs, running, named, published)
		}
	}()
	if err := d.pullStaged(ctx, st, refs, "publish the blobs", append(slices.Clone(blobs), image)...); err != nil {
		return errors.WithMessage(err, "publishing the blobs")
	}
	if err := d.sync(blobs...); err != nil { // before the image, which needs them
		return err
	}
	var group errgroup.Group
	group.SetLimit(d.settings.parallelImports())
	group.Go(func() error { return d.nameMissing(ctx, blobs) })
	group.Go(func() error {
		return errors.WithMessage(d.pullStaged(ctx, st, refs, "publish the image", d.ref.ref()), "publishing the image")
	})
	if err := group.Wait(); err != nil {
		return err
	}
	if err := d.repo.deleteRefs(ctx, "remove what does not belong to the layers", d.foreignSidecars(refs)...); err != nil {
		return err
	}
	if err := d.sync(published...); err != nil {
		return err
	}
	d.rememberProven()
	return d.settings.journal.record.wrote(ctx, published)
}

// foreignSidecars returns the sidecar refs of layers that were imported anew since what the repository had was wrong, and that
// need none.
func (d *destination) foreignSidecars(refs map[string]bool) []string {
	var foreign []string
	for sum, b := range d.blobs {
		if b.layer != nil && b.layer.sidecar == "" && refs[imageref.SidecarRef(sum)] && d.replaces(sum) {
			foreign = append(foreign, imageref.SidecarRef(sum))
		}
	}
	slices.Sort(foreign)
	return foreign
}

// rememberProven notes what this run has imported: each blob was checked as it came.
func (d *destination) rememberProven() {
	for sum, b := range d.blobs {
		switch {
		case b.layer != nil:
			d.settings.proven.add(provenKey(sum, b.layer.commit, b.layer.sidecar), provenBlob{b.layer.diffID, b.layer.blob.size()})
		case b.commit != "" && b.ref == imageref.BlobRef(sum):
			d.settings.proven.add(provenKey(sum, b.commit, ""), provenBlob{sum, b.info.Size})
		}
	}
}

// nameMissing names the blobs that were published and are not named all the same: another process has pulled them from a remote since the
// copy began (see pullStaged).
func (d *destination) nameMissing(ctx context.Context, blobs []string) error {
	there, err := d.repo.refsAmong(ctx, blobs)
	if err != nil {
		return err
	}
	for _, ref := range blobs {
		if there[ref] {
			continue
		}
		if err := d.nameStaged(ctx, ref); err != nil {
			return err
		}
	}
	return nil
}

// nameStaged makes a ref name what it does in the staging repository.
func (d *destination) nameStaged(ctx context.Context, ref string) error {
	sums, err := d.staging.repo.revParse(ctx, ref)
	if err != nil {
		return err
	}
	return d.repo.setRef(ctx, "name it, though a remote has the same", ref, sums[0])
}

// dropStaged removes the layers as they came: all that is needed of them is committed. What ostree publishes it writes out to the disk, and
// with it everything else that is still to be written there.
func (d *destination) dropStaged() {
	for _, b := range d.blobs {
		if b.layer != nil {
			_ = os.Remove(b.layer.blob.path)
		}
	}
}

// takeBackLimit is how long a run that fails, or was told to end, takes back what it has published.
const takeBackLimit = time.Minute

// takeBack undoes what a publishing that failed has done to the repository: refs that were not there before are removed, those that were
// name again what they did, and what ostree leaves of a transaction that is ended goes. Objects are left to prune, and so is what cannot be
// removed: the reason of the failure is what the user must know.
func (d *destination) takeBack(ctx context.Context, before, running map[string]bool, named map[string]string, published []string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), takeBackLimit)
	defer cancel()
	err := d.repo.dropTransactions(running)
	now, rerr := d.repo.refs(ctx)
	if err == nil {
		err = rerr
	}
	commits, rerr := d.repo.commitsOf(ctx, among(now, published))
	if err == nil {
		err = rerr
	}
	var fresh []string
	for ref, commit := range commits {
		switch old := named[ref]; {
		case commit == old:
		case old != "":
			if rerr := d.repo.setRef(ctx, "put the ref back", ref, old); err == nil {
				err = rerr
			}
		case !before[ref]:
			fresh = append(fresh, ref)
		}
	}
	slices.Sort(fresh)
	if derr := d.repo.deleteRefs(ctx, "take the refs back", fresh...); err == nil {
		err = derr
	}
	if err != nil {
		d.settings.debugf("what was published is not all taken back: %v", err)
	}
}

// among returns those of wanted that refs has.
func among(refs map[string]bool, wanted []string) map[string]bool {
	found := map[string]bool{}
	for _, ref := range wanted {
		if refs[ref] {
			found[ref] = true
		}
	}
	return found
}

// pullStaged moves refs and what they name from the staging repository into the target, which had the refs before.
func (d *destination) pullStaged(ctx context.Context, st *staging, before map[string]bool, why string, refs ...string) error {
	err := again(ctx, func() error { return d.repo.pullLocal(ctx, st.repo.path, !d.settings.noFsync, why, refs...) })
	if err != nil {
		if _, serr := os.Stat(filepath.Join(st.repo.path, "config")); os.IsNotExist(serr) {
			return st.repo.vanished()
		}
		return err
	}
	// ostree takes a ref that only a remote has for the local one, and does not write it where it names the same commit.
	underRemote := func(ref string) bool {
		for spec := range before {
			if remote, same := splitSpec(spec); remote != "" && same == ref {
				return true
			}
		}
		return false
	}
	for _, ref := range refs { // of a checksum there is none
		if before[ref] || !underRemote(ref) {
			continue
		}
		if err := d.nameStaged(ctx, ref); err != nil {
			return err
		}
	}
	return nil
}

// stagedRefs returns the refs of blobs to publish. Side commits that another copy has published meanwhile stay, unless ours holds a blob.
func (d *destination) stagedRefs(refs map[string]bool) []string {
	var list []string
	for sum, b := range d.blobs {
		if b.ref != "" {
			list = append(list, b.ref)
		}
		if l := b.layer; l != nil {
			list = append(list, imageref.BlobRef(sum))
			if side := imageref.SidecarRef(sum); l.kept || l.exact && !l.inline && (!refs[side] || d.settings.signs() || d.replaces(sum)) {
				list = append(list, side)
			}
		}
	}
	slices.Sort(list)
	return list
}

// imageFiles returns the tree of the image's commit.
func (d *destination) imageFiles() []treeFile {
	var files []treeFile
	for _, sum := range d.order {
		m := d.manifests[sum]
		prefix := ""
		if sum != d.top {
			prefix = imageref.DirInstances + "/" + sum.Encoded() + "/"
		}
		files = append(files, treeFile{name: prefix + imageref.FileManifest, content: m.blob})
		for i, s := range m.signatures {
			files = append(files, treeFile{name: prefix + imageref.FileSignature + strconv.Itoa(i+1), content: s})
		}
	}
	return files
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
	mode := modeBareUser
	if os.Geteuid() == 0 {
		mode = modeBare
	}
	return errors.WithMessage(r.init(ctx, mode), "making the default repository")
}
