package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"syscall"

	"github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"github.com/vbatts/tar-split/archive/tar"
	"golang.org/x/sync/errgroup"

	"ostree-image/internal/imageref"
	"ostree-image/internal/layer"
	"ostree-image/internal/normalize"
	"ostree-image/internal/ostree"
	"ostree-image/internal/shellquote"
	"ostree-image/internal/spool"
	"ostree-image/internal/tarstream"
	"ostree-image/internal/ui"
	"ostree-image/internal/workdir"
)

// engineName is how a layer's normalized tar stream becomes a commit.
type engineName string

const (
	engineAuto   engineName = "auto"   // stream where this ostree can, tar otherwise
	engineStream engineName = "stream" // piped into ostree commit
	engineTar    engineName = "tar"    // extracted by tar, then committed as a directory
)

// importedLayer is a layer that is committed in the staging repository.
type importedLayer struct {
	blob   *spool.Blob
	digest digest.Digest
	plain  bool // the blob is the tar stream itself
	exact  bool // tree and record give the tar stream back
	split  *layer.Record
	inline bool // the record is in the commit's metadata
	kept   bool // the sidecar commit holds the blob

	diffID          digest.Digest // of its tar stream
	commit, sidecar string        // checksums; sidecar is "" where there is none
}

// needsBlob tells whether the blob must be kept for what is asked: its exact bytes, or just those
// of its tar stream.
func (l *importedLayer) needsBlob(exactBlob bool) bool { return !l.exact || exactBlob && !l.plain }

// normalizedSink makes a normalized tar stream of the entries that it is given, and ends it.
type normalizedSink interface {
	layer.Sink
	Finish() error
}

// importLayer commits the layer in b while it arrives, and what is needed to give its bytes back.
// Nothing is committed before b is verified. exactBlob asks to keep the blob as it came.
func (st *staging) importLayer(ctx context.Context, b *spool.Blob, exactBlob bool) (l *importedLayer, err error) {
	st.warnExceptions()
	err = again(ctx, func() error {
		l, err = st.importOnce(ctx, b, exactBlob)
		return err
	})
	return l, err
}

func (st *staging) importOnce(ctx context.Context, b *spool.Blob, exactBlob bool) (*importedLayer, error) {
	path := b.Path + "." + imageref.FileTarSplit
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) { // of an attempt before
		return nil, errors.WithStack(err)
	}
	split, err := layer.NewRecord(path)
	if err != nil {
		return nil, err
	}
	scan := &layer.Scan{Packer: split.Packer()}
	tree, plain, err := st.unpackLayer(ctx, b, scan)
	defer func() { tree.drop() }()
	if cerr := split.Close(); err == nil {
		err = cerr
	}
	if err == nil && scan.NonCanonical {
		tree, err = st.unpackNonCanonical(ctx, b)
	}
	if err != nil {
		return nil, err
	}
	if err := st.settings.journal.record.keep(split.Path, b.Name()+"."+imageref.FileTarSplit); err != nil {
		return nil, err
	}
	l := &importedLayer{blob: b, digest: b.Digest, plain: plain, exact: scan.Exact, split: split, diffID: scan.DiffID}
	st.logChecks(l, scan.DiffID)
	options := ostree.CommitOptions{
		Branch: imageref.BlobRef(l.digest), Timestamp: st.timestamp(), Why: "commit layer " + l.digest.String(),
		Metadata: []ostree.Metadata{
			{Key: imageref.KeySize, Value: strconv.FormatInt(b.Size(), 10)},
			{Key: imageref.KeyUncompressedSize, Value: strconv.FormatInt(scan.Size, 10)},
			{Key: imageref.KeyUncompressedDigest, Value: scan.DiffID.String()},
		},
	}
	if l.exact {
		m, ok, err := split.Inline()
		if err != nil {
			return nil, err
		}
		if l.inline = ok; ok {
			options.Metadata = append(options.Metadata, m)
		}
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return again(groupCtx, func() (err error) {
			l.commit, err = st.commitLayer(groupCtx, b, options, tree)
			return err
		})
	})
	group.Go(func() error { return st.keepSidecar(groupCtx, l, exactBlob) })
	err = group.Wait()
	if rerr := st.removeTree(b); err == nil {
		err = rerr
	}
	if err != nil {
		return nil, err
	}
	if scan.Skipped > 0 {
		st.settings.notef("layer %s: %d devices, fifos or sockets left out", l.digest, scan.Skipped)
	}
	return l, nil
}

// layerTree is what a layer's commit is made of.
type layerTree struct {
	args   []string        // of ostree commit
	commit string          // what of it is committed already, "" for nothing
	stream *spool.Buffered // that it reads, nil for nothing
	input  string          // what the journal calls that stream
}

// drop gives back what the tree takes on disk, and is called when it is committed or is not to be.
func (t layerTree) drop() {
	if t.stream != nil {
		_ = t.stream.Close()
	}
}

func (st *staging) commitLayer(
	ctx context.Context,
	b *spool.Blob,
	o ostree.CommitOptions,
	tree layerTree,
) (sum string, err error) {
	if err := st.ready(ctx); err != nil {
		return "", err
	}
	if tree.stream == nil {
		return st.repo.commit(ctx, o, tree.args...)
	}
	e := streamEngine{
		held:  tree.stream,
		start: func() (*streamCommit, error) { return st.repo.commitStream(ctx, o, tree.input) },
	}
	committed, err := e.Finish()
	return committed.commit, errors.WithMessagef(err, "layer %s", b.Name())
}

// unpackNonCanonical commits a layer that names something twice, or reaches through its own links:
// it is read once to learn what it comes to, and once more to commit that.
func (st *staging) unpackNonCanonical(ctx context.Context, b *spool.Blob) (tree layerTree, err error) {
	plan := normalize.NewPlan(st.perms)
	plan.Limits = st.settings.limits
	if _, err := st.scan(ctx, b, &layer.Scan{Sink: planSink{plan}}); err != nil {
		return tree, err
	}
	if n := len(plan.Dangles); n > 0 {
		st.settings.warnf(
			"layer %s: %d hard links lead to files of layers below, such as %s: empty files keep their places",
			b.Digest,
			n,
			ui.Quoted(slices.Min(slices.Collect(maps.Keys(plan.Dangles)))),
		)
	}
	tree, _, err = st.unpack(
		ctx,
		b,
		b.Name()+".again.tar",
		&layer.Scan{},
		func(out normalize.EntryWriter) normalizedSink { return normalize.NewPlanFilter(plan, out) },
	)
	return tree, err
}

// planSink gives a layer's headers to a plan.
type planSink struct{ plan *normalize.Plan }

func (s planSink) Entry(hdr *tar.Header) (io.Writer, error) { return nil, s.plan.Add(hdr) }

// scan reads the layer in b once and tells whether it is not compressed.
func (st *staging) scan(ctx context.Context, b *spool.Blob, scan *layer.Scan) (plain bool, err error) {
	in, err := b.Open()
	if err != nil {
		return false, err
	}
	defer func() { _ = in.Close() }()
	stream, plain, err := layer.Decompress(st.settings.progress.Reading(b.Want.Digest, in), func() {
		st.settings.warnf("layer %s: zeros follow its gzip data, and are ignored, as by gzip", b.Name())
	})
	if err == nil {
		defer func() { _ = stream.Close() }()
		scan.Limits = st.settings.limits
		err = scan.Run(ctx, stream)
	} else {
		err = &layer.NoTarError{Err: err}
	}
	if err == nil {
		return plain, b.Wait()
	}
	// Where the blob itself is wrong, what follows from that is of no interest.
	if serr := b.Failure(); serr != nil {
		return plain, serr
	}
	return plain, errors.WithMessagef(err, "layer %s", b.Name())
}

// unpack commits the normalized tar stream that makeSink makes of b and returns what its commit is
// made of. Where the scan finds that the layer is not canonical there is none. input is what the
// journal calls the stream.
func (st *staging) unpack(
	ctx context.Context,
	b *spool.Blob,
	input string,
	scan *layer.Scan,
	makeSink func(normalize.EntryWriter) normalizedSink,
) (
	tree layerTree, plain bool, err error,
) {
	extractable := &extractableWriter{asRoot: st.perms.uid == 0, modes: map[string]uint32{}}
	tree, err = st.feed(ctx, b, input, extractable, func(w io.Writer) (err error) {
		var out normalize.EntryWriter = tarstream.NewWriter(w)
		if st.engine == engineTar {
			extractable.EntryWriter, out = out, extractable
		}
		plain, err = st.scanInto(ctx, b, scan, makeSink(out))
		return err
	})
	if scan.NonCanonical && errors.Is(err, normalize.ErrNonCanonical) {
		err = st.removeTree(b)
	}
	return tree, plain, err
}

// scanInto reads the layer in b once, makes sink's normalized tar stream of it, and tells whether
// the layer is not compressed. Where the scan finds the layer odd, the stream is worth nothing, and
// the error is normalize.ErrNonCanonical.
func (st *staging) scanInto(
	ctx context.Context,
	b *spool.Blob,
	scan *layer.Scan,
	sink normalizedSink,
) (plain bool, err error) {
	scan.Sink = sink
	if plain, err = st.scan(ctx, b, scan); err != nil {
		return plain, err
	}
	if scan.NonCanonical {
		return plain, normalize.ErrNonCanonical
	}
	return plain, sink.Finish()
}

// feed gives the stream that write writes to the engine and returns what its commit is made of.
// input is what the journal calls the stream. extractable keeps the modes that are not in the stream,
// and is nil where the layer has more than this one.
func (st *staging) feed(
	ctx context.Context,
	b *spool.Blob,
	input string,
	extractable *extractableWriter,
	write func(io.Writer) error,
) (
	tree layerTree, err error,
) {
	kept, err := st.settings.journal.record.stream(input)
	if err != nil {
		return tree, err
	}
	whole := false
	defer func() {
		if rerr := kept.end(whole); err == nil {
			err = rerr
		}
	}()
	w, err := st.startEngine(ctx, b, input, extractable)
	if err != nil {
		return tree, err
	}
	buffered := bufio.NewWriterSize(kept.tee(w), spool.CopyBuffer)
	if err = write(buffered); err == nil {
		err = buffered.Flush()
	}
	whole = err == nil
	if err == nil {
		err = kept.broken()
	}
	if err == nil {
		tree, err = w.Finish()
		return tree, errors.WithMessagef(err, "layer %s", b.Name())
	}
	aborted := w.abort()
	if errors.Is(err, syscall.EPIPE) { // it had ended by itself
		err = errors.WithMessagef(aborted, "layer %s", b.Name())
	}
	return layerTree{}, err
}

func (st *staging) treeDir(b *spool.Blob) string { return st.work.Join(b.Name() + ".tree") }

// removeTree removes what the tar engine extracted.
func (st *staging) removeTree(b *spool.Blob) error {
	if st.engine != engineTar {
		return nil
	}
	dir := st.treeDir(b)
	st.settings.journal.step("the extracted files have had their turn", "rm", "-rf", dir)
	return workdir.RemoveTree(dir)
}

// makeDir makes a directory of mode 0755, whatever the umask, without what the directory above it
// hands down.
func makeDir(path string) error {
	if err := os.Mkdir(path, 0o755); err != nil {
		return errors.WithStack(err)
	}
	return ownDir(path)
}

// ownDir gives a directory that was just made the owner and the mode of makeDir.
func ownDir(path string) error {
	if os.Geteuid() == 0 {
		if err := os.Lchown(path, 0, 0); err != nil {
			return errors.WithStack(err)
		}
	}
	return errors.WithStack(os.Chmod(path, 0o755))
}

// surelyLarge is the size in bytes of a layer, compressed or not, whose normalized tar stream is
// not waited for to be found larger than a small one.
const surelyLarge = spool.Small / 2

// logChecks writes the checks that a blob passed into the journal.
func (st *staging) logChecks(l *importedLayer, diffID digest.Digest) {
	blob := `"$BLOBS"/` + shellquote.Word(l.blob.Name())
	st.settings.journal.shell("the blob's digest holds", fmt.Sprintf(`echo "%s  $BLOBS/%s" | %ssum -c -`,
		l.digest.Encoded(), l.blob.Name(), l.digest.Algorithm()))
	if l.plain && diffID == l.digest {
		return
	}
	st.settings.journal.shell("so does that of its tar stream", fmt.Sprintf(
		`for z in 'gzip -dc' 'zstd -dc' 'bzip2 -dc' 'xz -dc' cat; do $z <%s 2>/dev/null | sha256sum; done | grep -q %s`,
		blob,
		diffID.Encoded(),
	))
}

// keepSidecar commits what a layer's exact bytes need beside its tree: the tar-split record that
// does not fit into the commit of the layer, and the blob as it came where the record does not do.
func (st *staging) keepSidecar(ctx context.Context, l *importedLayer, exactBlob bool) error {
	blob := l.needsBlob(exactBlob)
	record := l.exact && !l.inline
	if l.kept = blob; !blob && !record {
		return nil
	}
	var files []treeFile
	if record {
		files = append(
			files,
			treeFile{
				name:  imageref.FileTarSplit,
				from:  l.split.Path,
				input: l.blob.Name() + "." + imageref.FileTarSplit,
			},
		)
	}
	if blob {
		files = append(files, treeFile{name: imageref.FileBlob, from: l.blob.Path, input: l.blob.Name()})
	}
	sum, err := st.commitFiles(ctx, files, ostree.CommitOptions{
		Branch: imageref.SidecarRef(
			l.digest,
		),
		Timestamp: st.timestamp(),
		Why:       "what the exact bytes of layer " + l.digest.String() + " need",
	})
	l.sidecar = sum
	return err
}
