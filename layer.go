package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"github.com/vbatts/tar-split/archive/tar"
	"golang.org/x/sync/errgroup"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/imageref"
	"ostree-image/internal/shellquote"
	"ostree-image/internal/tarstream"
	"ostree-image/internal/ui"
	"ostree-image/internal/spool"
)

// engineName is how a layer's clean stream becomes a commit.
type engineName string

const (
	engineAuto   engineName = "auto"   // stream where this ostree can, tar otherwise
	engineStream engineName = "stream" // piped into ostree commit
	engineTar    engineName = "tar"    // extracted by tar, then committed as a directory
)

// staging is where a run makes its commits before they are published: a repository of the target's mode on the
// target's file system, without fsync.
type staging struct {
	settings *settings
	target   *repository
	work     *workDir // in the target's tmp/, holds all below
	blobWork *workDir // of --tmpdir, nil where the blobs lie in work
	tmpdir   *pinnedDir
	repo     *repository
	mode     string
	engine   engineName
	perms    permissions
	warned   atomic.Bool
	trees    atomic.Int64 // how many small trees were committed

	prepared chan struct{} // closed when repo can be used, or err is set: see ready
	err      error
}

// newStaging makes the directories at once and the repository in the background, while the first layer is read already. The target's
// mode, and what its ostree can do, are known.
func newStaging(ctx context.Context, s *settings, target *repository, mode string, features ostreeFeatures) (st *staging, err error) {
	if mode == "archive-z2" {
		mode = modeArchive
	}
	if !slices.Contains([]string{modeBare, modeBareUser, modeBareUserOnly, modeArchive}, mode) {
		return nil, errors.Errorf("repository %s has the unknown mode %q", target.path, mode)
	}
	st = &staging{settings: s, target: target, mode: mode, perms: permissionsFor(mode, os.Geteuid(), os.Getegid()), prepared: make(chan struct{})}
	if st.engine, err = chooseEngine(ctx, s.runner, features, s.unpack); err != nil {
		return nil, err
	}
	st.perms.forTar = st.engine == engineTar
	if mode == modeBare {
		st.perms.namespace = limitedNamespace(
			"use a repository of mode bare-user or archive, which notes owners without making them")
	}
	if st.work, err = newWorkDir(target.tmp(), s.runner); err != nil {
		return nil, errors.WithMessagef(err, "the repository %s cannot be written", target.path)
	}
	s.journal.name(st.work.path, "WORK")
	if s.tmpdir != "" {
		if st.tmpdir, err = s.openTmpdir(); err == nil {
			st.blobWork, err = newWorkDir(st.tmpdir.at, s.runner)
		}
		if err != nil {
			_ = st.remove()
			return nil, errors.WithMessagef(err, "the temporary directory %s cannot be used", s.tmpdir)
		}
	}
	st.repo = &repository{
		path: st.work.join("stage"), run: s.runner, staged: true,
		sign: s.signArgs(), keysFile: s.keysFile, signType: s.signType,
	}
	go func() {
		defer close(st.prepared)
		st.err = errors.WithMessage(st.prepare(ctx), "making the staging repository")
	}()
	return st, nil
}

// blobDir is where blobs are staged.
func (st *staging) blobDir() string {
	if st.blobWork != nil {
		return st.blobWork.path
	}
	return st.work.path
}

// objectSettings are the settings of a repository that decide which objects a commit makes, and when the disk is too full for
// them: of ostree.repo-config(5) those that are not about waiting for the disk, locks, remotes, summaries or deployments. A
// staging repository has the target's and no others: a pull that links asks the target for none of them.
var objectSettings = map[string][]string{
	"core":    {"collection-id", "disable-xattrs", "min-free-space-percent", "min-free-space-size", "payload-link-threshold"},
	"archive": {"zlib-level"},
	// Of releases after 2023.1 the second, and before the first.
	"fsverity":     {"opportunistic", "required"},
	"ex-integrity": {"fsverity"},
}

// prepare makes the staging repository as the target is, as far as objects are concerned.
func (st *staging) prepare(ctx context.Context) error {
	j := st.settings.journal
	j.shell("a fresh repository where REPO is none", fmt.Sprintf(`[ -e "$REPO"/config ] || ostree init --repo="$REPO" --mode=%s`,
		shellquote.Word(st.mode)))
	if err := makeApart(st.repo.path); err != nil {
		return err
	}
	if err := st.repo.init(ctx, st.mode); err != nil {
		return err
	}
	lines, err := st.target.configLines(objectSettings)
	if err != nil || lines == "" {
		return err
	}
	return appendConfig(j, st.repo, lines)
}

// appendConfig adds lines to the configuration of a repository of our own.
func appendConfig(j *journal, repo *repository, lines string) (err error) {
	path := filepath.Join(repo.path, "config")
	j.shell("the repository's own settings of objects", fmt.Sprintf("printf %s >>%s", printfFormat([]byte(lines)), j.path(path)))
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return errors.WithStack(err)
	}
	defer errdefs.Close(&err, f)
	_, err = f.WriteString(lines)
	return errors.WithStack(err)
}

// chooseEngine settles which engine is used, and that its programs can do what it needs.
func chooseEngine(ctx context.Context, r *runner, features ostreeFeatures, wanted engineName) (engineName, error) {
	canStream := features.has("libarchive")
	if wanted == engineStream && !canStream {
		return "", errors.Errorf("--unpack=stream: this ostree (%s) is built without libarchive; use --unpack=tar", features.version)
	}
	if wanted == engineStream || wanted == engineAuto && canStream {
		return engineStream, nil
	}
	_, err := tarVersion(ctx, r)
	return engineTar, err
}

// ready waits until the staging repository can be used. Whoever runs a command on it calls ready before.
func (st *staging) ready(ctx context.Context) error {
	select {
	case <-st.prepared:
		return st.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// warnExceptions says once what this user and this repository cannot keep.
func (st *staging) warnExceptions() {
	if text := st.perms.exceptions(st.mode, st.engine); text != "" && !st.warned.Swap(true) {
		st.settings.warnf("%s", text)
	}
}

// remove ends the staging area. It waits for what prepares it.
func (st *staging) remove() error {
	var err error
	if st.blobWork != nil {
		err = st.blobWork.remove()
	}
	if st.tmpdir != nil {
		st.tmpdir.unpin()
	}
	if werr := st.work.remove(); err == nil {
		err = werr
	}
	st.settings.journal.forget(st.work.path)
	return errors.WithMessage(err, "removing the staging area")
}

// timestamp is that of every commit that holds no image.
func (st *staging) timestamp() int64 {
	if st.settings.timestamp != nil {
		return *st.settings.timestamp
	}
	return 0
}

// importedLayer is a layer that is committed in the staging repository.
type importedLayer struct {
	blob   *stagedBlob
	digest digest.Digest
	plain  bool // the blob is the tar stream itself
	exact  bool // tree and record give the tar stream back
	split  *splitFile
	inline bool // the record is in the commit's metadata
	kept   bool // the side commit holds the blob

	diffID          digest.Digest // of its tar stream
	commit, sidecar string        // checksums; sidecar is "" where there is none
}

// needsBlob tells whether the blob must be kept for what is asked: its exact bytes, or just those of its tar stream.
func (l *importedLayer) needsBlob(exactBlob bool) bool { return !l.exact || exactBlob && !l.plain }

// cleanSink makes a clean stream of the entries that it is given, and ends it.
type cleanSink interface {
	entrySink
	finish() error
}

// importLayer commits the layer in b while it arrives, and what is needed to give its bytes back. Nothing is committed
// before b is verified. exactBlob asks to keep the blob as it came.
func (st *staging) importLayer(ctx context.Context, b *stagedBlob, exactBlob bool) (l *importedLayer, err error) {
	st.warnExceptions()
	err = again(ctx, func() error {
		l, err = st.importOnce(ctx, b, exactBlob)
		return err
	})
	return l, err
}

func (st *staging) importOnce(ctx context.Context, b *stagedBlob, exactBlob bool) (*importedLayer, error) {
	path := b.path + "." + imageref.FileTarSplit
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) { // of an attempt before
		return nil, errors.WithStack(err)
	}
	split, err := newSplitFile(path)
	if err != nil {
		return nil, err
	}
	scan := &layerScan{packer: split.packer()}
	tree, plain, err := st.unpackClean(ctx, b, scan)
	defer func() { tree.drop() }()
	if cerr := split.close(); err == nil {
		err = cerr
	}
	if err == nil && scan.odd {
		tree, err = st.unpackOdd(ctx, b)
	}
	if err != nil {
		return nil, err
	}
	if err := st.settings.journal.record.keep(split.path, b.name()+"."+imageref.FileTarSplit); err != nil {
		return nil, err
	}
	l := &importedLayer{blob: b, digest: b.digest, plain: plain, exact: scan.exact, split: split, diffID: scan.diffID}
	st.logChecks(l, scan.diffID)
	options := commitOptions{
		branch: imageref.BlobRef(l.digest), timestamp: st.timestamp(), why: "commit layer " + l.digest.String(),
		metadata: []metadataString{
			{imageref.KeySize, strconv.FormatInt(b.size(), 10)},
			{imageref.KeyUncompressedSize, strconv.FormatInt(scan.size, 10)},
			{imageref.KeyUncompressedDigest, scan.diffID.String()},
		},
	}
	if l.exact {
		m, ok, err := split.inline()
		if err != nil {
			return nil, err
		}
		if l.inline = ok; ok {
			options.metadata = append(options.metadata, m)
		}
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return again(groupCtx, func() (err error) {
			l.commit, err = st.commitLayer(groupCtx, b, options, tree)
			return err
		})
	})
	group.Go(func() error { return st.keepSide(groupCtx, l, exactBlob) })
	err = group.Wait()
	if rerr := st.removeTree(b); err == nil {
		err = rerr
	}
	if err != nil {
		return nil, err
	}
	if scan.skipped > 0 {
		st.settings.notef("layer %s: %d devices, fifos or sockets left out", l.digest, scan.skipped)
	}
	return l, nil
}

// layerTree is what a layer's commit is made of.
type layerTree struct {
	args   []string    // of ostree commit
	commit string      // what of it is committed already, "" for nothing
	stream *spool.Buffered // that it reads, nil for nothing
	input  string      // what the journal calls that stream
}

// drop gives back what the tree takes on disk, and is called when it is committed or is not to be.
func (t layerTree) drop() {
	if t.stream != nil {
		_ = t.stream.Close()
	}
}

func (st *staging) commitLayer(ctx context.Context, b *stagedBlob, o commitOptions, tree layerTree) (sum string, err error) {
	if err := st.ready(ctx); err != nil {
		return "", err
	}
	if tree.stream == nil {
		return st.repo.commit(ctx, o, tree.args...)
	}
	e := streamEngine{held: tree.stream, start: func() (*streamCommit, error) { return st.repo.commitStream(ctx, o, tree.input) }}
	committed, err := e.finish()
	return committed.commit, errors.WithMessagef(err, "layer %s", b.name())
}

// unpackOdd commits a layer that names something twice, or reaches through its own links: it is read once to learn what
// it comes to, and once more to commit that.
func (st *staging) unpackOdd(ctx context.Context, b *stagedBlob) (tree layerTree, err error) {
	plan := newLayerPlan(st.perms)
	plan.limits = st.settings.limits
	if _, err := st.scan(ctx, b, &layerScan{sink: planSink{plan}}); err != nil {
		return tree, err
	}
	if n := len(plan.dangles); n > 0 {
		st.settings.warnf("layer %s: %d hard links lead to files of layers below, such as %s: empty files keep their places",
			b.digest, n, ui.Quoted(slices.Min(slices.Collect(maps.Keys(plan.dangles)))))
	}
	tree, _, err = st.unpack(ctx, b, b.name()+".again.tar", &layerScan{}, func(out entryWriter) cleanSink { return newPlanFilter(plan, out) })
	return tree, err
}

// planSink gives a layer's headers to a plan.
type planSink struct{ plan *layerPlan }

func (s planSink) entry(hdr *tar.Header) (io.Writer, error) { return nil, s.plan.add(hdr) }

// scan reads the layer in b once and tells whether it is not compressed.
func (st *staging) scan(ctx context.Context, b *stagedBlob, scan *layerScan) (plain bool, err error) {
	in, err := b.open()
	if err != nil {
		return false, err
	}
	defer func() { _ = in.Close() }()
	stream, plain, err := decompress(st.settings.progress.Reading(b.want.Digest, in), func() {
		st.settings.warnf("layer %s: zeros follow its gzip data, and are ignored, as by gzip", b.name())
	})
	if err == nil {
		defer func() { _ = stream.Close() }()
		scan.limits = st.settings.limits
		err = scan.run(ctx, stream)
	} else {
		err = &noTarError{err}
	}
	if err == nil {
		return plain, b.wait()
	}
	// Where the blob itself is wrong, what follows from that is of no interest.
	if serr := b.failure(); serr != nil {
		return plain, serr
	}
	return plain, errors.WithMessagef(err, "layer %s", b.name())
}

// unpack commits the clean stream that makeSink makes of b and returns what its commit is made of. Where the scan finds the layer odd there
// is none. input is what the journal calls the stream.
func (st *staging) unpack(ctx context.Context, b *stagedBlob, input string, scan *layerScan, makeSink func(entryWriter) cleanSink) (
	tree layerTree, plain bool, err error,
) {
	opening := &openingWriter{modes: map[string]uint32{}}
	tree, err = st.feed(ctx, b, input, opening, func(w io.Writer) (err error) {
		var out entryWriter = tarstream.NewWriter(w)
		if st.engine == engineTar && st.perms.uid != 0 {
			opening.entryWriter, out = out, opening
		}
		plain, err = st.scanInto(ctx, b, scan, makeSink(out))
		return err
	})
	if scan.odd && errors.Is(err, errOddLayer) {
		err = st.removeTree(b)
	}
	return tree, plain, err
}

// scanInto reads the layer in b once, makes sink's clean stream of it, and tells whether the layer is not compressed. Where the scan finds
// the layer odd, the stream is worth nothing, and the error is errOddLayer.
func (st *staging) scanInto(ctx context.Context, b *stagedBlob, scan *layerScan, sink cleanSink) (plain bool, err error) {
	scan.sink = sink
	if plain, err = st.scan(ctx, b, scan); err != nil {
		return plain, err
	}
	if scan.odd {
		return plain, errOddLayer
	}
	return plain, sink.finish()
}

// feed gives the stream that write writes to the engine and returns what its commit is made of. input is what the journal calls the
// stream. opening keeps the modes that are not in the stream, and is nil where the layer has more than this one.
func (st *staging) feed(ctx context.Context, b *stagedBlob, input string, opening *openingWriter, write func(io.Writer) error) (
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
	w, err := st.startEngine(ctx, b, input, opening)
	if err != nil {
		return tree, err
	}
	buffered := bufio.NewWriterSize(kept.tee(w), copyBuffer)
	if err = write(buffered); err == nil {
		err = buffered.Flush()
	}
	whole = err == nil
	if err == nil {
		err = kept.broken()
	}
	if err == nil {
		tree, err = w.finish()
		return tree, errors.WithMessagef(err, "layer %s", b.name())
	}
	aborted := w.abort()
	if errors.Is(err, syscall.EPIPE) { // it had ended by itself
		err = errors.WithMessagef(aborted, "layer %s", b.name())
	}
	return layerTree{}, err
}

// layerWriter takes a clean stream. One of finish and abort is called, once.
type layerWriter interface {
	io.Writer
	finish() (tree layerTree, err error)
	// abort ends the engine. The error is how that ended, and says something only where it had ended before.
	abort() error
}

func (st *staging) startEngine(ctx context.Context, b *stagedBlob, input string, opening *openingWriter) (layerWriter, error) {
	if st.engine == engineStream {
		alone := opening != nil
		held := &spool.Buffered{}
		// In this mode alone ostree would write each file again to make a commit with the layer's metadata of one without.
		if st.mode == modeBareUserOnly && alone {
			held.Dir = st.work.path // which has room for the files, too
		}
		large := b.want.Size > surelyLarge && held.Dir == ""
		return &streamEngine{alone: alone, large: large, input: input, held: held, start: func() (*streamCommit, error) {
			if err := st.ready(ctx); err != nil {
				return nil, err
			}
			return st.repo.commitStream(ctx, commitOptions{why: "commit the files of layer " + b.name()}, input)
		}}, nil
	}
	dir := st.treeDir(b)
	st.settings.journal.step("a directory for the files of layer "+b.name(), "mkdir", dir)
	if err := makeApart(dir); err != nil {
		return nil, err
	}
	if err := ownDir(dir); err != nil {
		return nil, err
	}
	p, stdin, err := untar(ctx, st.settings.runner, dir, input, "extract layer "+b.name())
	if err != nil {
		return nil, err
	}
	return &tarEngine{st: st, dir: dir, process: p, stdin: stdin, opening: opening}, nil
}

func (st *staging) treeDir(b *stagedBlob) string { return st.work.join(b.name() + ".tree") }

// removeTree removes what the tar engine extracted.
func (st *staging) removeTree(b *stagedBlob) error {
	if st.engine != engineTar {
		return nil
	}
	dir := st.treeDir(b)
	st.settings.journal.step("the extracted files have had their turn", "rm", "-rf", dir)
	return removeTree(dir)
}

// makeDir makes a directory of mode 0755, whatever the umask, without what the directory above it hands down.
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

// surelyLarge is the size in bytes of a layer, compressed or not, whose clean stream is not waited for to be found larger than a small one.
const surelyLarge = spool.Small / 2

// streamEngine pipes a clean stream into ostree commit, once it is more than can be held.
type streamEngine struct {
	alone  bool // the stream is all of the layer
	large  bool // it will be more than a small one
	input  string
	start  func() (*streamCommit, error)
	held   *spool.Buffered   // the stream so far, where commit is nil
	commit *streamCommit // nil while the stream is held
}

func (e *streamEngine) Write(b []byte) (int, error) {
	if e.commit == nil {
		if !e.large && e.held.Fits(len(b)) {
			return e.held.Write(b)
		}
		if err := e.begin(); err != nil {
			return 0, err
		}
		if err := e.held.Close(); err != nil {
			return 0, err
		}
	}
	return e.commit.Write(b)
}

// begin starts ostree and gives it what came so far.
func (e *streamEngine) begin() (err error) {
	if e.commit, err = e.start(); err == nil {
		err = e.held.CopyTo(e.commit)
	}
	return err
}

func (e *streamEngine) finish() (tree layerTree, err error) {
	if e.commit == nil && e.alone {
		return layerTree{stream: e.held, input: e.input}, nil
	}
	if e.commit == nil {
		err = e.begin()
	}
	if err != nil {
		if e.commit != nil { // what is held may be read again
			if aborted := e.abort(); errors.Is(err, syscall.EPIPE) { // it had ended by itself
				err = aborted
			}
		}
		return tree, err
	}
	sum, err := e.commit.finish()
	if err != nil {
		return tree, err
	}
	return layerTree{args: []string{"--tree=ref=" + sum}, commit: sum}, nil
}

func (e *streamEngine) abort() error {
	if e.commit == nil {
		return e.held.Close()
	}
	return e.commit.abort()
}

type tarEngine struct {
	st      *staging
	dir     string
	process *process
	stdin   *pipeEnd
	opening *openingWriter
}

func (e *tarEngine) Write(b []byte) (int, error) { return e.stdin.Write(b) }

func (e *tarEngine) abort() error {
	s := streamCommit{process: e.process, stdin: e.stdin}
	return s.abort()
}

// wait ends the stream, and waits for tar to extract all of it.
func (e *tarEngine) wait() error {
	cerr := e.stdin.Close()
	if err := e.process.wait(); err != nil {
		return err
	}
	if cerr != nil {
		return errors.WithStack(cerr)
	}
	if strings.Contains(e.process.stderr.String(), tarLostAttribute) {
		return e.process.failed("the files cannot have all attributes here")
	}
	return nil
}

// finish waits for tar, makes what it extracted readable for ostree, and says how to commit it with the modes that the
// layer has.
func (e *tarEngine) finish() (tree layerTree, err error) {
	if err := e.wait(); err != nil {
		return tree, err
	}
	j, perms := e.st.settings.journal, e.st.perms
	overrides, err := perms.fixTree(e.dir)
	if err != nil {
		return tree, errors.WithMessage(err, "making the extracted files readable")
	}
	overrides = append(overrides, e.opening.overrides()...)
	options := treeOptions{
		owner:   perms.uid != 0 && !perms.asOwn,
		consume: e.st.mode == modeBare,
	}
	if perms.uid != 0 {
		j.shell("make the extracted files readable", fmt.Sprintf(
			`find %[1]s -type d ! -perm -0700 -exec chmod u+rwx {} \; ; find %[1]s -type f ! -perm -0400 -exec chmod u+r {} \;`, j.path(e.dir)))
	}
	if len(overrides) > 0 {
		options.statOverride = e.dir + ".modes"
		if err := e.st.settings.journal.writeFile(options.statOverride, []byte(strings.Join(overrides, "\n")+"\n"), "the modes that they have in the layer"); err != nil {
			return tree, err
		}
	}
	return layerTree{args: treeArgs(e.dir, options)}, nil
}

// logChecks writes the checks that a blob passed into the journal.
func (st *staging) logChecks(l *importedLayer, diffID digest.Digest) {
	blob := `"$BLOBS"/` + shellquote.Word(l.blob.name())
	st.settings.journal.shell("the blob's digest holds", fmt.Sprintf(`echo "%s  $BLOBS/%s" | %ssum -c -`,
		l.digest.Encoded(), l.blob.name(), l.digest.Algorithm()))
	if l.plain && diffID == l.digest {
		return
	}
	st.settings.journal.shell("so does that of its tar stream", fmt.Sprintf(
		`for z in 'gzip -dc' 'zstd -dc' 'bzip2 -dc' 'xz -dc' cat; do $z <%s 2>/dev/null | sha256sum; done | grep -q %s`, blob, diffID.Encoded()))
}

// keepSide commits what a layer's exact bytes need beside its tree: the tar-split record that does not fit into the
// commit of the layer, and the blob as it came where the record does not do.
func (st *staging) keepSide(ctx context.Context, l *importedLayer, exactBlob bool) error {
	blob := l.needsBlob(exactBlob)
	record := l.exact && !l.inline
	if l.kept = blob; !blob && !record {
		return nil
	}
	var files []treeFile
	if record {
		files = append(files, treeFile{name: imageref.FileTarSplit, from: l.split.path, input: l.blob.name() + "." + imageref.FileTarSplit})
	}
	if blob {
		files = append(files, treeFile{name: imageref.FileBlob, from: l.blob.path, input: l.blob.name()})
	}
	sum, err := st.commitFiles(ctx, files, commitOptions{
		branch: imageref.SidecarRef(l.digest), timestamp: st.timestamp(), why: "what the exact bytes of layer " + l.digest.String() + " need",
	})
	l.sidecar = sum
	return err
}

// treeFile is a file of a commit that holds no layer: bytes, or a file on disk.
type treeFile struct {
	name    string // its path in the tree
	content []byte
	from    string // the file to take, "" for content
	input   string // what the journal calls that file
}

// commitFiles commits files that belong to 0:0 with mode 0644, in directories of mode 0755, whoever does it, and returns the
// commit's checksum.
func (st *staging) commitFiles(ctx context.Context, files []treeFile, o commitOptions) (sum string, err error) {
	if err := st.ready(ctx); err != nil {
		return "", err
	}
	j := st.settings.journal
	tree := st.work.join(fmt.Sprintf("tree-%d", st.trees.Add(1)))
	defer func() { _ = removeTree(tree) }()
	made := map[string]bool{}
	mkdir := func(path string) error {
		if made[path] {
			return nil
		}
		made[path] = true
		j.step("a tree to commit", "mkdir", "-p", path)
		return makeDir(path)
	}
	if err := mkdir(tree); err != nil {
		return "", err
	}
	for _, f := range files {
		parent := tree
		for _, part := range strings.Split(filepath.Dir(f.name), "/") {
			parent = filepath.Join(parent, part)
			if err := mkdir(parent); err != nil {
				return "", err
			}
		}
		if err := st.placeFile(filepath.Join(tree, f.name), f); err != nil {
			return "", err
		}
	}
	j.step("readable whatever the umask", "chmod", "-R", "u=rwX,go=rX", tree)
	options := treeOptions{owner: os.Geteuid() == 0 || st.mode != modeBare, noXattrs: true}
	commit := func() error { sum, err = st.repo.commitTree(ctx, tree, options, o); return err }
	if err := again(ctx, commit); err != nil {
		return "", err
	}
	j.step("the tree is committed", "rm", "-rf", tree)
	return sum, nil
}

func (st *staging) placeFile(path string, f treeFile) error {
	if f.from == "" {
		return st.settings.journal.writeFile(path, f.content, "")
	}
	st.settings.journal.shell("", fmt.Sprintf(`cp "$BLOBS"/%s %s`, shellquote.Word(f.input), st.settings.journal.path(path)))
	if err := os.Link(f.from, path); err != nil {
		if err := copyFile(f.from, path); err != nil {
			return err
		}
	}
	return errors.WithStack(os.Chmod(path, 0o644))
}

// copyFile copies a file where it cannot be linked.
func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return errors.WithStack(err)
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return errors.WithStack(err)
	}
	defer errdefs.Close(&err, out)
	_, err = io.Copy(out, in)
	return errors.WithStack(err)
}

// name is what the journal and errors call the blob: the hex part of its digest where that is known before it is here.
func (b *stagedBlob) name() string {
	if b.want.Digest != "" {
		return b.want.Digest.Encoded()
	}
	return filepath.Base(b.path)
}

// failure returns why the blob is not what it should be, nil where it is or is still to come.
func (b *stagedBlob) failure() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}
