package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"sort"
	"strconv"
	"strings"
	"syscall"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"github.com/vbatts/tar-split/archive/tar"
	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/imageref"
	"ostree-image/internal/shellquote"
	"ostree-image/internal/treesum"
)

// blobStore reads the blobs of a repository, as its refs were when it was opened. It is safe for parallel use.
type blobStore struct {
	repo *repository
	refs map[string]bool
	near string // the remote, with its colon, whose refs are looked at first; "" for none
	free pieces // for layers that are put together
}

func openBlobStore(ctx context.Context, repo *repository) (*blobStore, error) {
	refs, err := repo.refs(ctx)
	if err != nil {
		return nil, err
	}
	return &blobStore{repo: repo, refs: refs, free: newPieces(aheadPieces)}, nil
}

// find returns the refspec under which a ref is there: as it is, or under a remote from which it was pulled.
func (s *blobStore) find(ref string) (spec string, ok bool) {
	if s.near != "" && s.refs[s.near+ref] {
		return s.near + ref, true
	}
	if s.refs[ref] {
		return ref, true
	}
	var remotes []string
	for have := range s.refs {
		if remote, ok := strings.CutSuffix(have, ":"+ref); ok && !strings.Contains(remote, "/") {
			remotes = append(remotes, have)
		}
	}
	sort.Strings(remotes)
	if len(remotes) == 0 {
		return "", false
	}
	return remotes[0], true
}

// findImage returns the refspec of an image.
func (s *blobStore) findImage(ref ostreeReference) (string, error) {
	spec, ok := s.find(ref.ref())
	if !ok {
		return "", errdefs.NotFoundf("no image %s in the repository %s; see ostree-image list", ref.image, s.repo.path)
	}
	return spec, nil
}

// images returns the names and refspecs of all images, by name. Of two with one name the first is the one that the name finds.
func (s *blobStore) images() (names, specs []string) {
	for spec := range s.refs {
		if _, ref := splitSpec(spec); imageref.IsImage(ref) {
			specs = append(specs, spec)
		}
	}
	sort.Slice(specs, func(i, j int) bool {
		remoteI, refI := splitSpec(specs[i])
		remoteJ, refJ := splitSpec(specs[j])
		nameI, _ := imageref.ImageName(refI)
		nameJ, _ := imageref.ImageName(refJ)
		return nameI < nameJ || nameI == nameJ && remoteI < remoteJ
	})
	for _, spec := range specs {
		_, ref := splitSpec(spec)
		name, _ := imageref.ImageName(ref)
		names = append(names, name)
	}
	return names, specs
}

// beside returns a store that looks first where the image at spec lies: under the remote that it was pulled from.
func (s *blobStore) beside(spec string) *blobStore {
	_, ref := splitSpec(spec)
	near := *s
	near.near = strings.TrimSuffix(spec, ref)
	return &near
}

// storedBlob is a blob in the repository, and what there is to give its bytes back.
type storedBlob struct {
	digest  digest.Digest
	spec    string        // of its own commit
	side    string        // of its side commit, "" for none
	size    int64         // as the manifest names it, -1 where the commit does not say
	layer   bool          // its commit's tree is a file system; otherwise it holds the file "content"
	diffID  digest.Digest // "" where the commit does not say (layers of 2017)
	tarSize int64         // bytes of the tar stream, -1 where the commit does not say
	record  string        // tar-split data from the metadata, in base64; "" for none
	hasFile map[string]bool
	commit  string       // checksum
	binding error        // that it was made for another ref
	tree    treesum.Root // of the commit
}

// blob finds a blob. Nothing but its commits is read.
func (s *blobStore) blob(ctx context.Context, d digest.Digest) (*storedBlob, error) {
	if err := d.Validate(); err != nil {
		return nil, errdefs.Checkf("blob digest %q: %s", d, err)
	}
	spec, ok := s.find(imageref.BlobRef(d))
	if !ok {
		return nil, errdefs.Checkf("blob %s is missing from the repository %s", d, s.repo.path)
	}
	info, err := s.repo.readCommit(ctx, spec)
	if err != nil {
		return nil, errors.WithMessagef(err, "blob %s", d)
	}
	b := &storedBlob{
		digest: d, spec: spec, size: -1, tarSize: -1, record: info.metadata[imageref.KeyTarSplit], hasFile: map[string]bool{},
		commit: info.checksum, binding: info.checkBinding(imageref.BlobRef(d)), tree: treesum.Root{Tree: info.root, Meta: info.rootMeta},
	}
	if b.size, err = sizeOf(info, imageref.KeySize); err != nil {
		return nil, errors.WithMessagef(err, "blob %s", d)
	}
	if b.tarSize, err = sizeOf(info, imageref.KeyUncompressedSize); err != nil {
		return nil, errors.WithMessagef(err, "blob %s", d)
	}
	if text, ok := info.metadata[imageref.KeyUncompressedDigest]; ok {
		b.layer, b.diffID = true, digest.Digest(text)
		if err := b.diffID.Validate(); err != nil {
			return nil, errdefs.Checkf("blob %s: its commit names the diffID %q: %s", d, text, err)
		}
	}
	if side, ok := s.find(imageref.SidecarRef(d)); ok {
		// What a run left that was ended while it brought the blob of a layer that does without.
		if b.layer && b.record != "" {
			if partial, err := s.repo.isPartial(ctx, side); err != nil {
				return nil, errors.WithMessagef(err, "blob %s", d)
			} else if partial {
				return b, nil
			}
		}
		b.side = side
		names, err := s.repo.fileNames(ctx, side, "")
		if err != nil {
			return nil, errors.WithMessagef(damage(err), "blob %s", d)
		}
		for _, n := range names {
			b.hasFile[n] = true
		}
	}
	if !b.layer { // a config, or a layer of 2017, whose commit says nothing of a diffID
		if isContent, err := s.repo.hasFile(ctx, spec, imageref.FileContent); err != nil {
			return nil, errors.WithMessagef(damage(err), "blob %s", d)
		} else if !isContent {
			b.layer = true
		}
	}
	return b, nil
}

// sizeOf reads a number of bytes from a commit's metadata, -1 where it is not there.
func sizeOf(info commitInfo, key string) (int64, error) {
	text, ok := info.metadata[key]
	if !ok {
		return -1, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return -1, errdefs.Checkf("its commit says that %s is %q", key, text)
	}
	return n, nil
}

// hasRecord tells whether there is tar-split data.
func (b *storedBlob) hasRecord() bool { return b.record != "" || b.hasFile[imageref.FileTarSplit] }

// canRebuild tells whether the layer's tar stream can be given back.
func (b *storedBlob) canRebuild() bool {
	return b.diffID != "" && (b.hasRecord() || b.hasFile[imageref.FileBlob])
}

// isExact tells whether the blob can be given back as the manifest names it.
func (b *storedBlob) isExact() bool {
	return !b.layer || b.hasFile[imageref.FileBlob] || b.diffID == b.digest && b.hasRecord()
}

// open returns the blob as the manifest names it. The stream ends well only if it matches the digest.
func (s *blobStore) open(ctx context.Context, b *storedBlob) (io.ReadCloser, error) {
	var stream io.ReadCloser
	var err error
	switch {
	case b.hasFile[imageref.FileBlob]:
		stream, err = s.repo.cat(ctx, b.side, imageref.FileBlob)
	case !b.layer:
		stream, err = s.repo.cat(ctx, b.spec, imageref.FileContent)
	case b.diffID == b.digest && b.hasRecord():
		return s.openTar(ctx, b)
	default:
		return nil, errors.Errorf("blob %s is in the repository unpacked, without its compressed bytes; import it again with --preserve-digests; where it is its signatures that ask for them, --remove-signatures leaves those behind", b.digest)
	}
	if err != nil {
		return nil, err
	}
	return b.verified(stream, b.digest), nil
}

// openTar returns the layer's tar stream. It ends well only if it matches the diffID.
func (s *blobStore) openTar(ctx context.Context, b *storedBlob) (io.ReadCloser, error) {
	if b.diffID == "" || !b.canRebuild() {
		return nil, errors.Errorf("layer %s was stored without what its exact bytes need (tar-split data), as the ostree transport did in 2017; it can be checked out, not exported", b.digest)
	}
	if !b.hasRecord() {
		return s.openBlobTar(ctx, b)
	}
	record, err := s.openRecord(ctx, b)
	if err != nil {
		return nil, err
	}
	s.recordRebuild(b)
	return b.verifiedTar(s.newRebuild(ctx, b.spec, newRecordReader(b, record))), nil
}

// recordRebuild writes into a record how to put the layer together without this program, where the program tar-split is.
func (s *blobStore) recordRebuild(b *storedBlob) {
	repo := s.repo.run.journal.path(s.repo.path)
	split := "ostree cat --repo=" + repo + " " + shellquote.Word(b.side) + " /" + imageref.FileTarSplit
	if b.record != "" {
		split = "ostree show --repo=" + repo + " --print-metadata-key=" + imageref.KeyTarSplit + " " + shellquote.Word(b.spec) + ` | tr -d "'" | base64 -d`
	}
	s.repo.run.journal.recorded("put layer "+b.digest.String()+" together, where the program tar-split is", fmt.Sprintf(
		`! command -v tar-split >/dev/null || { ostree checkout --repo=%[4]s --user-mode %[1]s "$WORK"/rebuilt; %[2]s >"$WORK"/split; `+
			`tar-split asm --input "$WORK"/split --path "$WORK"/rebuilt --output - | sha256sum | grep -q %[3]s; rm -rf "$WORK"/rebuilt "$WORK"/split; }`,
		shellquote.Word(b.spec), split, b.diffID.Encoded(), repo))
}

// openBlobTar returns the tar stream of a layer that is kept as it came. It ends well only if it matches the diffID, and the
// blob its digest.
func (s *blobStore) openBlobTar(ctx context.Context, b *storedBlob) (io.ReadCloser, error) {
	packed, err := s.repo.cat(ctx, b.side, imageref.FileBlob)
	if err != nil {
		return nil, err
	}
	blob := b.verified(packed, b.digest)
	stream, _, err := decompress(blob, func() {})
	if err != nil {
		_ = blob.Close()
		return nil, err
	}
	return b.verifiedTar(&stackedReader{Reader: &drainingReader{stream, blob}, below: []io.Closer{stream, blob}}), nil
}

// drainingReader reads a compressed stream to its end where the decompressed one has ended, so that all of it is verified.
type drainingReader struct{ r, packed io.Reader }

func (d *drainingReader) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	if errors.Is(err, io.EOF) {
		if _, perr := io.Copy(io.Discard, d.packed); perr != nil {
			return n, perr
		}
	}
	return n, err
}

// openRecord returns the tar-split data: JSON, an object a line.
func (s *blobStore) openRecord(ctx context.Context, b *storedBlob) (io.ReadCloser, error) {
	var packed io.ReadCloser
	if b.record != "" {
		packed = io.NopCloser(base64.NewDecoder(base64.StdEncoding, strings.NewReader(b.record)))
	} else {
		var err error
		if packed, err = s.repo.cat(ctx, b.side, imageref.FileTarSplit); err != nil {
			return nil, err
		}
	}
	gz, err := gzip.NewReader(packed)
	if err != nil {
		_ = packed.Close()
		return nil, badRecord(b, err)
	}
	return &stackedReader{Reader: gz, below: []io.Closer{gz, packed}}, nil
}

// badRecord says that a layer's tar-split data cannot be read, and why.
func badRecord(b *storedBlob, err error) error {
	return badData(err, "the tar-split data of layer %s cannot be read", b.digest)
}

// badData makes an error of understanding what a repository holds one of the repository, unless it is a tool's, or of the end of the run.
func badData(err error, format string, args ...any) error {
	var terr *toolError
	var check errdefs.CheckError
	if errors.As(err, &terr) || errors.As(err, &check) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return errors.WithMessagef(damage(err), format, args...)
	}
	return errdefs.Checkf(format+": %s", append(args, err)...)
}

// headers calls f for each entry of the layer, in the layer's order. The layer must be one that can be rebuilt.
func (s *blobStore) headers(ctx context.Context, b *storedBlob, f func(*tar.Header) error) error {
	if b.hasRecord() {
		record, err := s.openRecord(ctx, b)
		if err != nil {
			return err
		}
		defer func() { _ = record.Close() }()
		if err := recordHeaders(newRecordReader(b, record), boundedHeaders(f)); err != nil {
			return badRecord(b, err)
		}
		return nil
	}
	blob, err := s.openBlobTar(ctx, b)
	if err != nil {
		return err
	}
	stream := b.verifiedTar(blob)
	defer func() { _ = stream.Close() }()
	err = streamHeaders(ctx, stream, boundedHeaders(f))
	var wrong *digestError
	if errors.As(err, &wrong) {
		return errdefs.Checkf("layer %s: its tar stream is %s, and its commit says %s", b.digest, wrong.actual, wrong.expected)
	}
	if err != nil {
		return badData(err, "layer %s cannot be read", b.digest)
	}
	return nil
}

// mostPaths returns how many files and directories a blob's tree may have: a layer's by its
// headers, with room for what links lead to. Of a layer without what its exact bytes need nothing
// says how many.
func (s *blobStore) mostPaths(ctx context.Context, b *storedBlob) (int, error) {
	const room = 4
	switch {
	case !b.layer:
		return listedPaths, nil
	case !b.canRebuild():
		return room * listedPaths, nil
	}
	most := listedPaths
	err := s.headers(ctx, b, func(hdr *tar.Header) error {
		most += room * (1 + strings.Count(hdr.Name, "/"))
		return nil
	})
	return most, err
}

// recordHeaders calls f for the header of each entry that tar-split data has. A header is what stands before an entry and
// behind the padding of the one before. What stands behind the last entry is the end of the archive and what follows that: it
// is none, whatever it looks like. tar-split's own IterateHeaders would read it as headers.
func recordHeaders(up storage.Unpacker, f func(*tar.Header) error) error {
	var head []byte // since the last entry
	padding, size := int64(0), int64(0)
	for {
		e, err := up.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch e.Type {
		case storage.SegmentType:
			if size += int64(len(e.Payload)); size <= maxHeaders {
				head = append(head, e.Payload...)
			}
		case storage.FileType:
			if size > maxHeaders {
				return errLongHeaders
			}
			if size < padding {
				return errors.Errorf("the entry %q has no header", e.GetName())
			}
			tr := tar.NewReader(bytes.NewReader(head[padding:]))
			hdr, err := tr.Next()
			if err != nil {
				return errors.WithMessagef(err, "the header of the entry %q", e.GetName())
			}
			if err := f(hdr); err != nil {
				return err
			}
			head, padding, size = head[:0], tr.ExpectedPadding(), 0
		default:
			return errors.Errorf("it has an entry of the unknown type %d", e.Type)
		}
	}
}

// streamHeaders calls f for each header of a tar stream, and reads the stream to its end. What was stored is within the limits
// of its import, so none are set here; payloads, which may be sparse, are skipped.
func streamHeaders(ctx context.Context, stream io.Reader, f func(*tar.Header) error) error {
	in := bufio.NewReaderSize(stream, copyBuffer)
	tr := tar.NewReader(in)
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			_, err := io.Copy(io.Discard, in)
			return err
		}
		if err != nil {
			return err
		}
		if err := f(hdr); err != nil {
			return err
		}
	}
}

// maxHeaderMemory is how many bytes the headers of one layer may take in memory.
const maxHeaderMemory = 2 << 30

// boundedHeaders gives f headers as long as they can be kept in memory.
func boundedHeaders(f func(*tar.Header) error) func(*tar.Header) error {
	const each = 256 // bytes, about what one takes beside its names
	left := int64(maxHeaderMemory)
	return func(hdr *tar.Header) error {
		if left -= int64(each + len(hdr.Name) + len(hdr.Linkname)); left < 0 {
			return errdefs.Checkf("its headers take more than %d bytes", int64(maxHeaderMemory))
		}
		return f(hdr)
	}
}

// stackedReader closes what lies below a reader with it.
type stackedReader struct {
	io.Reader
	below []io.Closer
}

func (s *stackedReader) Close() error {
	var err error
	for _, c := range s.below {
		if cerr := c.Close(); err == nil {
			err = cerr
		}
	}
	return err
}

// digestError says that bytes out of the repository are not what their digest names.
type digestError struct{ expected, actual digest.Digest }

func (e *digestError) Error() string {
	return "what the repository holds gives " + e.actual.String() + " instead of " + e.expected.String() + ": it is damaged"
}

// Unwrap makes it one of the errors that have an exit status of their own.
func (e *digestError) Unwrap() error { return errdefs.CheckError{Text: e.Error()} }

// unknownTarLimit is how long a tar stream may be whose commit does not say.
const unknownTarLimit = 32 << 30

// tarLimit is how many bytes the layer's tar stream has at the most.
func (b *storedBlob) tarLimit() int64 {
	if b.tarSize < 0 {
		return unknownTarLimit
	}
	return b.tarSize
}

// verifiedTar is verified for the blob's tar stream. It breaks off where that is longer than it should be.
func (b *storedBlob) verifiedTar(r io.ReadCloser) io.ReadCloser {
	return b.verified(&stackedReader{Reader: &lengthReader{r: r, left: b.tarLimit()}, below: []io.Closer{r}}, b.diffID)
}

// lengthReader is a reader of a stream that must not be longer than it says.
type lengthReader struct {
	r    io.Reader
	left int64
}

func (l *lengthReader) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return 0, errdefs.Checkf("its tar stream is longer than its commit says: it is damaged")
	}
	return n, err
}

// verified returns a reader of the blob, or of its tar stream, that ends well only if all that it gave matches the digest.
func (b *storedBlob) verified(r io.ReadCloser, want digest.Digest) io.ReadCloser {
	return &verifiedReader{blob: b.digest, r: r, want: want, sum: want.Algorithm().Digester()}
}

type verifiedReader struct {
	blob digest.Digest
	r    io.ReadCloser
	want digest.Digest
	sum  digest.Digester
}

func (v *verifiedReader) Read(p []byte) (int, error) {
	n, err := v.r.Read(p)
	_, _ = v.sum.Hash().Write(p[:n])
	if errors.Is(err, io.EOF) {
		if got := v.sum.Digest(); got != v.want {
			return n, errors.WithMessagef(&digestError{expected: v.want, actual: got}, "reading blob %s", v.blob)
		}
		return n, err
	}
	var below *digestError
	if err != nil && !errors.As(err, &below) { // else it was said
		err = errors.WithMessagef(damage(err), "reading blob %s", v.blob)
	}
	return n, err
}

// damageError is an error of reading a commit that is there: the repository does not hold what it should.
type damageError struct{ err error }

func (e *damageError) Error() string { return e.err.Error() + ": the repository is damaged" }

// Unwrap makes it one of the errors that have an exit status of their own.
func (e *damageError) Unwrap() []error { return []error{errdefs.CheckError{Text: e.Error()}, e.err} }

// damageSigns are what ostree says of objects that are missing or broken. A broken commit can end it with a signal, too.
var damageSigns = []string{
	"No such metadata object", "Couldn't find file object", "Corrupted ", "Invalid ", "File header size", "Need more input",
	"No such file or directory: /", "Can't open directory",
}

// damage tells an error that says that the repository is damaged from all others.
func damage(err error) error {
	var check errdefs.CheckError
	var notFound errdefs.NotFoundError
	var missing *errdefs.MissingToolError
	var access *errdefs.AccessError
	var terr *toolError
	switch {
	case err == nil, errors.As(err, &check), errors.As(err, &notFound), errors.As(err, &missing), errors.As(err, &access),
		errors.Is(err, os.ErrClosed), errors.Is(err, io.ErrClosedPipe), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.As(err, &terr):
		for _, sign := range damageSigns {
			if strings.Contains(terr.Stderr, sign) {
				return &damageError{err}
			}
		}
		if text := terr.Err.Error(); strings.Contains(text, syscall.SIGSEGV.String()) || strings.Contains(text, syscall.SIGABRT.String()) {
			return &damageError{err}
		}
	}
	return err
}

// readCommit returns what a commit that is there says. One that cannot be understood is damage.
func (r *repository) readCommit(ctx context.Context, spec string) (commitInfo, error) {
	info, err := r.commitInfo(ctx, spec)
	var terr *toolError
	if err == nil || errors.As(err, &terr) || errors.Is(err, errNoRef) {
		return info, damage(err)
	}
	var notFound errdefs.NotFoundError
	var missing *errdefs.MissingToolError
	if errors.As(err, &notFound) || errors.As(err, &missing) {
		return info, err
	}
	return info, &damageError{err}
}

func (v *verifiedReader) Close() error { return v.r.Close() }

// What is read of a layer's tar-split data before the files of that part are asked for, with one process.
const (
	batchFiles   = 4096
	batchEntries = 64 << 10
	batchNames   = 512 << 10 // bytes of paths, for execve(2) takes about 2 MB of arguments
	batchBytes   = 8 << 20   // bytes of headers and padding
)

// rebuild puts a layer's tar stream together from tar-split data and the files of its commit. It is what
// asm.NewOutputTarStream needs on both sides: entries, and the payload of each when its turn comes. The next part is
// prepared, and read ahead, while one is read, so at most two processes run.
type rebuild struct {
	parts  chan rebuildPart
	part   rebuildPart
	size   int64 // of the file whose turn it is
	cancel context.CancelFunc
	out    *io.PipeReader
	ended  chan struct{} // closed when nothing is written any more
}

type rebuildPart struct {
	entries []*storage.Entry
	files   *readAhead // their payloads, one after another; nil for none
	err     error      // io.EOF behind the last part
}

// maxRecordEntry is how long one entry of tar-split data may be: what the padding of an archive takes, and more than any header does.
const maxRecordEntry = 64 << 20

// recordReader reads tar-split data. Unlike the library's reader it remembers no names, and ends where no archive of the
// layer's size has as much: what a repository holds may be made to fill the memory, or to have no end.
type recordReader struct {
	io.ReadCloser
	blob *storedBlob
	dec  *json.Decoder
	left int   // bytes of the data until the end of the entry
	room int64 // bytes of archive that more entries may stand for
}

func newRecordReader(b *storedBlob, r io.ReadCloser) *recordReader {
	u := &recordReader{ReadCloser: r, blob: b, room: 2 * min(b.tarLimit(), math.MaxInt64/2)}
	u.dec = json.NewDecoder(u)
	return u
}

func (u *recordReader) Read(p []byte) (int, error) {
	if u.left <= 0 {
		return 0, errors.Errorf("one of its entries has more than %d bytes", maxRecordEntry)
	}
	n, err := u.ReadCloser.Read(p)
	u.left -= n
	return n, err
}

// Next returns the next entry (storage.Unpacker).
func (u *recordReader) Next() (*storage.Entry, error) {
	u.left = maxRecordEntry
	var e storage.Entry
	if err := u.dec.Decode(&e); err == io.EOF {
		return nil, err
	} else if err != nil {
		return nil, badRecord(u.blob, err)
	}
	size := int64(1) // whatever it is
	if e.Type == storage.FileType {
		size = tarBlock // its header at the least, which an entry of its own gives
	}
	if u.room -= size; u.room < 0 {
		return nil, badRecord(u.blob, errors.New("it has more entries than the layer's tar stream has room for"))
	}
	return &e, nil
}

func (s *blobStore) newRebuild(ctx context.Context, commit string, record *recordReader) io.ReadCloser {
	ctx, cancel := context.WithCancel(ctx)
	out, in := io.Pipe()
	r := &rebuild{parts: make(chan rebuildPart), cancel: cancel, out: out, ended: make(chan struct{})}
	go func() {
		defer close(r.parts)
		defer func() { _ = record.Close() }()
		for {
			part := s.readPart(ctx, commit, record)
			select {
			case r.parts <- part:
			case <-ctx.Done():
				part.close()
				return
			}
			if part.err != nil {
				return
			}
		}
	}()
	go func() {
		defer close(r.ended)
		buffered := bufio.NewWriterSize(in, copyBuffer) // a layer is many small pieces
		err := asm.WriteOutputTarStream(r, r, buffered)
		if err == nil {
			err = buffered.Flush()
		}
		r.part.close()
		var terr *toolError
		if err != nil && ctx.Err() == nil && !errors.As(err, &terr) { // a payload whose checksum is not what the data says
			err = &damageError{err}
		}
		_ = in.CloseWithError(err) // a nil error is io.EOF
	}()
	return r
}

// readPart reads the next part of the tar-split data and starts to read its files.
func (s *blobStore) readPart(ctx context.Context, commit string, up storage.Unpacker) rebuildPart {
	var part rebuildPart
	var paths []string
	names, bytes := 0, 0
	for len(part.entries) < batchEntries && len(paths) < batchFiles && names < batchNames && bytes < batchBytes {
		e, err := up.Next()
		if err != nil {
			part.err = err
			break
		}
		bytes += len(e.Payload)
		if e.Type == storage.FileType && e.Size != 0 {
			name, err := cleanName(e.GetName())
			if err == nil && (e.Size < 0 || name == "") {
				err = errors.Errorf("the file %q has %d bytes", name, e.Size)
			}
			if err != nil {
				part.err = errdefs.Checkf("the tar-split data is wrong: %s", err)
				return part
			}
			paths = append(paths, name)
			names += len(name) + 16
		}
		part.entries = append(part.entries, e)
	}
	if len(paths) == 0 {
		return part
	}
	ctx, cancel := context.WithCancel(ctx)
	files, err := s.repo.cat(ctx, commit, paths...)
	if err != nil {
		cancel()
		return rebuildPart{err: err}
	}
	part.files = newReadAhead(files, s.free, func() { files.kill(); cancel() })
	return part
}

// close ends what reads a part's files.
func (p *rebuildPart) close() {
	if p.files != nil {
		_ = p.files.Close()
	}
}

// Next returns the next entry (storage.Unpacker).
func (r *rebuild) Next() (*storage.Entry, error) {
	for len(r.part.entries) == 0 {
		if err := r.endPart(); err != nil {
			return nil, err
		}
		if r.part.err != nil {
			return nil, r.part.err
		}
		part, ok := <-r.parts
		if !ok {
			return nil, io.ErrUnexpectedEOF
		}
		r.part = part
	}
	e := r.part.entries[0]
	r.part.entries = r.part.entries[1:]
	r.size = e.Size
	return e, nil
}

// endPart makes sure that the part's files were read to their end, and that their process ended well.
func (r *rebuild) endPart() error {
	if r.part.files == nil {
		return nil
	}
	var one [1]byte
	n, err := io.ReadFull(r.part.files, one[:])
	r.part.close()
	r.part.files = nil
	if n > 0 {
		return errdefs.Checkf("the files of the layer are longer than its tar-split data says")
	}
	if err != io.EOF {
		return err
	}
	return nil
}

// Get returns the payload of the entry that Next gave last (storage.FileGetter).
func (r *rebuild) Get(name string) (io.ReadCloser, error) {
	if r.part.files == nil {
		return nil, errdefs.Checkf("the tar-split data asks for %q out of turn", path.Clean(name))
	}
	return io.NopCloser(io.LimitReader(r.part.files, r.size)), nil
}

func (r *rebuild) Read(p []byte) (int, error) { return r.out.Read(p) }

// Close ends the processes that still run.
func (r *rebuild) Close() error {
	r.cancel()
	err := r.out.Close()
	for part := range r.parts {
		part.close()
	}
	<-r.ended
	return err
}
