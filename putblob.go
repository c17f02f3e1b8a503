package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"slices"
	"strconv"

	"github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"go.podman.io/image/v5/types"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/imageref"
	"ostree-image/internal/layer"
	"ostree-image/internal/ostree"
	"ostree-image/internal/spool"
	"ostree-image/internal/treesum"
)

// PutBlob stages a blob and verifies it. A layer is imported meanwhile and after: what goes wrong
// there ends the copy, at the latest in Commit.
func (d *destination) PutBlob(
	ctx context.Context,
	stream io.Reader,
	info types.BlobInfo,
	_ types.BlobInfoCache,
	isConfig bool,
) (types.BlobInfo, error) {
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
func (d *destination) putUnknown(
	ctx context.Context,
	stream io.Reader,
	info types.BlobInfo,
	isConfig bool,
) (types.BlobInfo, error) {
	st, err := d.stagingArea()
	if err != nil {
		return types.BlobInfo{}, err
	}
	limit := d.settings.limits.Bytes
	if isConfig { // a larger one is refused as any other
		stream, limit = io.LimitReader(stream, maxConfigBytes+1), 0
	}
	staged, file, err := spool.NewBlob(st.blobDir(), info, limit)
	if err != nil {
		return types.BlobInfo{}, err
	}
	defer func() { _ = os.Remove(staged.Path) }()
	if err := staged.Fill(d.ctx, stream, file); err != nil {
		err = d.cause(err)
		d.fail(err)
		return types.BlobInfo{}, err
	}
	in, err := staged.Open()
	if err != nil {
		return types.BlobInfo{}, err
	}
	defer func() { _ = in.Close() }()
	info.Digest, info.Size = staged.Digest, staged.Size()
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

func (d *destination) receive(
	ctx context.Context,
	b *destinationBlob,
	stream io.Reader,
	info types.BlobInfo,
	isConfig bool,
) (_ types.BlobInfo, err error) {
	defer func() { err = d.cause(err) }()
	if isConfig {
		return d.putConfig(ctx, b, stream, info)
	}
	st, err := d.stagingArea()
	if err != nil {
		return types.BlobInfo{}, err
	}
	staged, file, err := spool.NewBlob(st.blobDir(), info, d.settings.limits.Bytes)
	if err != nil {
		return types.BlobInfo{}, err
	}
	record := d.settings.journal.record
	record.link(staged.Path, staged.Name())
	isLayer := imageref.IsLayerType(info.MediaType)
	// A large layer is imported while it arrives. A small one would only keep a slot from others
	// that are there already.
	early := isLayer && (info.Size < 0 || info.Size > spool.Small)
	if early {
		d.queueLayer(st, staged, b)
	}
	stop := context.AfterFunc(ctx, func() { d.fail(context.Cause(ctx)) })
	defer stop()
	if err := staged.Fill(d.ctx, stream, file); err != nil {
		d.fail(err)
		return types.BlobInfo{}, err
	}
	if err := record.keep(staged.Path, staged.Name()); err != nil {
		return types.BlobInfo{}, err
	}
	if isLayer && !early {
		d.queueLayer(st, staged, b)
	}
	info = types.BlobInfo{Digest: staged.Digest, Size: staged.Size(), MediaType: info.MediaType}
	if !isLayer {
		file := treeFile{name: imageref.FileContent, from: staged.Path, input: staged.Name()}
		if b.ref, b.commit, err = d.putContent(st, info, file); err != nil {
			return types.BlobInfo{}, err
		}
	}
	return info, nil
}

// queueLayer has a staged layer imported once there is a slot for it.
func (d *destination) queueLayer(st *staging, staged *spool.Blob, b *destinationBlob) {
	d.queue.add(d.ctx, func() { d.importLayer(st, staged, b) })
}

// importLayer imports a staged layer, while it arrives or after. The first error ends the copy.
func (d *destination) importLayer(st *staging, staged *spool.Blob, b *destinationBlob) {
	d.mu.Lock()
	exactBlob, known := d.exactBlob, d.refs[imageref.BlobRef(staged.Want.Digest)]
	d.mu.Unlock()
	if known && !exactBlob {
		// A digest that is kept as some other blob's content must stay readable as that. What
		// cannot be read is no loss.
		exactBlob, _ = d.repo.hasFile(d.ctx, imageref.BlobRef(staged.Want.Digest), imageref.FileContent)
	}
	if side := imageref.SidecarRef(
		staged.Want.Digest,
	); (d.settings.signs() && d.refs[side] || d.partial[side] || d.replaces(staged.Want.Digest)) &&
		!exactBlob {
		exactBlob, _ = d.repo.hasFile(
			d.ctx,
			side,
			imageref.FileBlob,
		) // it is made anew, to be signed or whole, and must not lose what it has
	}
	bar := d.settings.progress.Importing(staged.Want.Digest, staged.Want.Size)
	defer bar.Done()
	imported, err := st.importLayer(d.ctx, staged, exactBlob)
	var noTar *layer.NoTarError
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
	b.layer = imported
	d.mu.Unlock()
}

// replaces tells whether a layer is imported that the repository has already, but not as it should
// be.
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
func (d *destination) putConfig(
	ctx context.Context,
	b *destinationBlob,
	stream io.Reader,
	info types.BlobInfo,
) (types.BlobInfo, error) {
	content, err := d.readConfig(stream, info)
	if err != nil {
		return types.BlobInfo{}, err
	}
	got := types.BlobInfo{Digest: info.Digest, Size: int64(len(content)), MediaType: info.MediaType}
	d.mu.Lock()
	present := d.refs[imageref.BlobRef(got.Digest)]
	known := d.known.proved[got.Digest] == provenBlob{got.Digest, got.Size}
	d.mu.Unlock()
	if present && !d.settings.signs() &&
		(known || d.holdsContent(ctx, got.Digest, content) || d.isLayerKept(ctx, got.Digest)) {
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

// keepConfig keeps a config that has the digest of a layer which the repository has. Of a layer
// that is imported keepExact keeps the bytes.
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

// holdsContent tells whether the commit of a blob that is no layer holds these bytes, and nothing
// else, and says so. What cannot be read is made anew.
func (d *destination) holdsContent(ctx context.Context, blob digest.Digest, content []byte) bool {
	info, err := d.repo.commitInfo(ctx, imageref.BlobRef(blob))
	return err == nil && info.CheckBinding(imageref.BlobRef(blob)) == nil &&
		info.Metadata[imageref.KeySize] == strconv.Itoa(len(content)) &&
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
func (d *destination) hasTree(info ostree.Commit, files []treeFile) bool {
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
		return err == nil && tree == treesum.Root{Tree: info.Root, Meta: info.RootMeta}
	})
}

// putContent commits a blob that is no layer and returns its ref. Where its digest is that of a
// layer already, the layer stays, and the blob goes beside it.
func (d *destination) putContent(st *staging, info types.BlobInfo, file treeFile) (ref, commit string, err error) {
	o := ostree.CommitOptions{
		Branch: imageref.BlobRef(info.Digest), Timestamp: st.timestamp(), Why: "commit blob " + info.Digest.String(),
		Metadata: []ostree.Metadata{{Key: imageref.KeySize, Value: strconv.FormatInt(info.Size, 10)}},
	}
	if d.refs[o.Branch] {
		there, err := d.store.blob(d.ctx, info.Digest)
		if err != nil && !errors.Is(err, errNoRef) { // a prune can have removed it since
			return "", "", err
		}
		// What only calls itself a layer, or has other bytes, gives way.
		if err == nil && there.layer && d.hasBytes(there, file) {
			o.Branch, o.Metadata, file.name = imageref.SidecarRef(info.Digest), nil, imageref.FileBlob
		}
	}
	commit, err = st.commitFiles(d.ctx, []treeFile{file}, o)
	return o.Branch, commit, err
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
	stream, _, err := layer.Decompress(blob, func() {})
	if err != nil {
		return false
	}
	defer func() { _ = stream.Close() }()
	_, err = io.Copy(io.Discard, b.verifiedTar(stream))
	return err == nil
}
