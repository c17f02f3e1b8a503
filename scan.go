package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"hash"
	"hash/crc64"
	"hash/maphash"
	"io"
	"os"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"github.com/vbatts/tar-split/archive/tar"
	"github.com/vbatts/tar-split/tar/storage"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/imageref"
	"ostree-image/internal/normalize"
	"ostree-image/internal/ostree"
	"ostree-image/internal/spool"
	"ostree-image/internal/ui"
)

// entrySink takes a layer's entries, in their order.
type entrySink interface {
	// Entry takes a header and returns where its payload is to go, nil for nowhere.
	Entry(hdr *tar.Header) (io.Writer, error)
}

// layerScan is one reading of a layer's tar stream: its digest and size, what tar-split records of
// it, and, through the sink, the normalized tar stream for an engine.
//
// The loop is that of tar-split's NewInputTarStream, with the library's own tar reader and packer.
// It is written again since that function gives away neither headers nor where a payload ends, so
// the layer would have to be parsed a second time.
type layerScan struct {
	packer storage.Packer // nil where no record is wanted
	sink   entrySink      // nil where no normalized tar stream is wanted
	limits normalize.Limits
	// sparseMost is how many bytes sparse files may come to in place of what limits says, 0 for
	// that.
	sparseMost int64

	names    int64 // bytes of the names and attributes so far
	declared int64 // bytes that the headers so far announce

	diffID       digest.Digest // of the whole stream
	size         int64         // bytes of the whole stream
	entries      int
	skipped      int   // devices, fifos and sockets
	sparse       int64 // bytes of sparse files, with their holes
	exact        bool  // the record and the tree give back the very same bytes
	nonCanonical bool  // the sink gave errNonCanonical and took nothing more
}

const (
	maxZeroReads = 100
	tarBlock     = 512 // bytes: the least that an archive's entry has
)

// maxHeaders is how many bytes the headers of one entry may have, with the padding of the entry
// before. The tar reader keeps them all, and any number of extended headers can stand before one
// file.
const maxHeaders = 8 << 20

var errLongHeaders = errors.Errorf("more than %d bytes of headers", maxHeaders)

// headerGuard ends the reading of headers that have no end.
type headerGuard struct {
	r    io.Reader
	left int // bytes of headers; negative while a payload is read
}

func (g *headerGuard) Read(p []byte) (int, error) {
	if g.left < 0 {
		return g.r.Read(p)
	}
	if g.left == 0 && len(p) > 0 {
		return 0, errLongHeaders
	}
	n, err := g.r.Read(p[:min(len(p), g.left)])
	g.left -= n
	return n, err
}

// run reads the layer. The stream is uncompressed; ctx ends it between two entries.
func (s *layerScan) run(ctx context.Context, r io.Reader) error {
	seed := maphash.MakeSeed()
	raw := &rawHash{r: r, limit: s.limits.Bytes, sum: sha256.New()}
	raw.fast.SetSeed(seed)
	var rebuilt maphash.Hash // of the bytes that the record and the payloads come to
	rebuilt.SetSeed(seed)

	s.exact = s.packer != nil
	in := bufio.NewReaderSize(raw, spool.CopyBuffer)
	guard := &headerGuard{r: in}
	tr := tar.NewReader(guard)
	tr.RawAccounting = true
	crc := crc64.New(storage.CRCTable)
	buf := make([]byte, spool.CopyBuffer)
	segment := func(b []byte) error {
		if len(b) == 0 {
			return nil
		}
		_, _ = rebuilt.Write(b)
		return s.pack(storage.Entry{Type: storage.SegmentType, Payload: b})
	}
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		guard.left = maxHeaders
		hdr, err := tr.Next()
		guard.left = -1
		if errors.Is(err, io.EOF) {
			if err := segment(tr.RawBytes()); err != nil {
				return err
			}
			break
		}
		if err != nil {
			return s.readError(err, s.entries+1, raw.n)
		}
		if err := segment(tr.RawBytes()); err != nil {
			return err
		}
		s.entries++
		if s.limits.Files > 0 && s.entries > s.limits.Files {
			return errors.Errorf("it has more than %d entries, the limit of --max-layer-files", s.limits.Files)
		}
		if err := s.checkHeader(hdr); err != nil {
			return err
		}
		payload, err := s.offer(hdr)
		if err != nil {
			return err
		}
		crc.Reset()
		n, err := copyPayload(buf, tr, crc, &rebuilt, payload)
		if err != nil {
			var sinkErr *sinkError
			if errors.As(err, &sinkErr) {
				return sinkErr.err
			}
			return s.readError(err, s.entries, raw.n)
		}
		if n > 0 && payload == nil {
			s.exact = false // the tree does not hold these bytes
		}
		e := storage.Entry{Type: storage.FileType, Size: n}
		if n > 0 {
			e.Payload = crc.Sum(nil)
		}
		e.SetName(hdr.Name)
		if err := s.pack(e); err != nil {
			return err
		}
		if err := segment(tr.RawBytes()); err != nil {
			return err
		}
	}
	// What follows the archive's end belongs to the layer's bytes too.
	for {
		n, err := spool.ReadPiece(in, buf) // a whole one: the record must not depend on how the layer comes in
		if perr := segment(buf[:n]); perr != nil {
			return perr
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	s.diffID, s.size = digest.NewDigest(digest.SHA256, raw.sum), raw.n
	s.exact = s.exact && !s.nonCanonical && raw.fast.Sum64() == rebuilt.Sum64()
	return nil
}

// checkHeader refuses what a header announces where that alone is too much.
func (s *layerScan) checkHeader(hdr *tar.Header) error {
	s.names += int64(len(hdr.Name) + len(hdr.Linkname))
	for k, v := range hdr.PAXRecords {
		if strings.HasPrefix(k, paxXattr) {
			s.names += int64(len(k) + len(v))
		}
	}
	if most := s.limits.Names(); most > 0 && s.names > most {
		return errors.Errorf(
			"the names and attributes of its first %d files have more than %d bytes, which is what --max-layer-files=%d allows",
			s.entries,
			most,
			s.limits.Files,
		)
	}
	if isSparse(hdr) {
		most := s.sparseMost
		if most == 0 {
			most = s.limits.Sparse()
		}
		if s.sparse += hdr.Size; s.sparse > most || s.sparse < 0 {
			text := fmt.Sprintf(
				"%s is a sparse file of %d bytes, and a layer's sparse files may have no more than %d",
				ui.Quoted(hdr.Name),
				hdr.Size,
				most,
			)
			if s.limits.Bytes > 0 {
				text += ", half the limit of --max-layer-size"
			}
			return errors.New(text)
		}
		return nil
	}
	switch hdr.Typeflag {
	case tar.TypeLink,
		tar.TypeSymlink,
		tar.TypeChar,
		tar.TypeBlock,
		tar.TypeDir,
		tar.TypeFifo: // they have no payload, whatever they say
		return nil
	}
	if s.limits.Bytes > 0 && hdr.Size > s.limits.Bytes-s.declared {
		return errors.Errorf(
			"with %s, which has %d bytes, it has more than %d bytes unpacked, the limit of --max-layer-size",
			ui.Quoted(hdr.Name),
			hdr.Size,
			s.limits.Bytes,
		)
	}
	s.declared += hdr.Size
	return nil
}

// offer gives a header to the sink.
func (s *layerScan) offer(hdr *tar.Header) (io.Writer, error) {
	switch hdr.Typeflag {
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		s.skipped++
	}
	if s.sink == nil {
		return nil, nil
	}
	w, err := s.sink.Entry(hdr)
	if errors.Is(err, normalize.ErrNonCanonical) {
		s.sink, s.nonCanonical = nil, true
		return nil, nil
	}
	return w, err
}

// isSparse tells whether a file has holes, in any of the ways that GNU tar writes them.
func isSparse(hdr *tar.Header) bool {
	return hdr.Typeflag == tar.TypeGNUSparse || hdr.PAXRecords["GNU.sparse.major"] != "" ||
		hdr.PAXRecords["GNU.sparse.map"] != ""
}

// pack records an entry. A layer that tar-split cannot record is not exact, and no error.
func (s *layerScan) pack(e storage.Entry) error {
	if s.packer == nil {
		return nil
	}
	_, err := s.packer.AddEntry(e)
	if errors.Is(err, storage.ErrDuplicatePath) {
		s.packer, s.exact = nil, false
		return nil
	}
	return errors.WithMessage(err, "recording the layer's tar stream")
}

// noTarError says that the bytes of a layer are none, from the first on.
type noTarError struct{ error }

func (e *noTarError) Unwrap() error { return e.error }

// readError names a stream that is no tar archive, or what is wrong with its n-th entry. read is
// how much of it was read.
func (s *layerScan) readError(err error, n int, read int64) error {
	switch {
	case errors.Is(err, tar.ErrHeader) && s.entries == 0, errors.Is(err, io.ErrUnexpectedEOF) && read < tarBlock:
		return &noTarError{errors.New("not a tar archive")}
	case errors.Is(err, tar.ErrHeader):
		return errors.Errorf("not a tar archive after its entry %d", s.entries)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errors.Errorf("the tar archive breaks off in its entry %d", n)
	case errors.Is(err, errLongHeaders), errors.Is(err, tar.ErrFieldTooLong):
		return errors.Errorf("the headers of its entry %d are longer than any archiver makes them", n)
	}
	var file *os.PathError
	reason := errors.WithMessagef(err, "reading the layer after its entry %d", s.entries)
	if s.entries > 0 || errors.As(err, &file) || errors.Is(err, context.Canceled) ||
		errors.Is(err, context.DeadlineExceeded) {
		return reason
	}
	return &noTarError{reason} // compressed data that only begin as such
}

// sinkError is an error of the normalized tar stream's reader, not of the layer.
type sinkError struct{ err error }

func (e *sinkError) Error() string { return e.err.Error() }

// copyPayload copies an entry's payload to both sums, and to w unless that is nil. It returns the
// payload's size.
func copyPayload(buf []byte, r io.Reader, crc hash.Hash64, sum *maphash.Hash, w io.Writer) (int64, error) {
	var total int64
	for idle := 0; ; {
		n, err := r.Read(buf)
		if n > 0 {
			total += int64(n)
			_, _ = crc.Write(buf[:n])
			_, _ = sum.Write(buf[:n])
			if w != nil {
				if _, werr := w.Write(buf[:n]); werr != nil {
					return total, &sinkError{werr}
				}
			}
			idle = 0
		}
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		if n == 0 {
			if idle++; idle > maxZeroReads {
				return total, io.ErrNoProgress
			}
		}
	}
}

// rawHash sums up all that is read through it.
type rawHash struct {
	r     io.Reader
	limit int64 // bytes, 0 for none
	n     int64
	sum   hash.Hash
	fast  maphash.Hash
}

func (h *rawHash) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	h.n += int64(n)
	if h.limit > 0 && h.n > h.limit {
		return 0, errors.Errorf("it has more than %d bytes unpacked, the limit of --max-layer-size", h.limit)
	}
	_, _ = h.sum.Write(p[:n])
	_, _ = h.fast.Write(p[:n])
	return n, err
}

// splitFile is a layer's tar-split record on disk: gzip of one JSON object a line. Its bytes are a
// part of a commit, whose checksum must stay the same: see go.mod.
type splitFile struct {
	path string
	file *os.File
	buf  *bufio.Writer
	gz   *gzip.Writer
}

func newSplitFile(path string) (*splitFile, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, errors.Wrap(err, "recording the layer's tar stream")
	}
	s := &splitFile{path: path, file: f, buf: bufio.NewWriterSize(f, spool.CopyBuffer)}
	s.gz = gzip.NewWriter(s.buf)
	return s, nil
}

func (s *splitFile) packer() storage.Packer { return storage.NewJSONPacker(s.gz) }

// close ends the file.
func (s *splitFile) close() error {
	err := s.gz.Close()
	if ferr := s.buf.Flush(); err == nil {
		err = ferr
	}
	errdefs.Close(&err, s.file)
	return errors.WithMessage(err, "recording the layer's tar stream")
}

// inline returns the file in base64 as metadata of a commit. ok is false where it does not fit into
// one argument.
func (s *splitFile) inline() (m ostree.Metadata, ok bool, err error) {
	m.Key = imageref.KeyTarSplit
	info, err := os.Stat(s.path)
	if err != nil {
		return m, false, errors.WithStack(err)
	}
	if len(m.Arg())+base64.StdEncoding.EncodedLen(int(min(info.Size(), ostree.MaxArgument))) > ostree.MaxArgument {
		return m, false, nil
	}
	content, err := os.ReadFile(s.path)
	if err != nil {
		return m, false, errors.WithStack(err)
	}
	m.Value = base64.StdEncoding.EncodeToString(content)
	return m, m.Fits(), nil
}
