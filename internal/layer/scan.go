// Package layer reads the tar stream of a layer once: its digest, a record of what its exact bytes need, and, for a sink,
// its entries, within limits.
package layer

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

// Sink takes a layer's entries, in their order.
type Sink interface {
	// Entry takes a header and returns where its payload is to go, nil for nowhere.
	Entry(hdr *tar.Header) (io.Writer, error)
}

// Scan is one reading of a layer's tar stream: its digest and size, what tar-split records of
// it, and, through the sink, the normalized tar stream for an engine.
//
// The loop is that of tar-split's NewInputTarStream, with the library's own tar reader and packer.
// It is written again since that function gives away neither headers nor where a payload ends, so
// the layer would have to be parsed a second time.
type Scan struct {
	Packer storage.Packer // nil where no record is wanted
	Sink   Sink           // nil where no normalized tar stream is wanted
	Limits normalize.Limits
	// sparseMost is how many bytes sparse files may come to in place of what limits says, 0 for
	// that.
	SparseMost int64

	names    int64 // bytes of the names and attributes so far
	declared int64 // bytes that the headers so far announce

	DiffID       digest.Digest // of the whole stream
	Size         int64         // bytes of the whole stream
	Entries      int
	Skipped      int   // devices, fifos and sockets
	sparse       int64 // bytes of sparse files, with their holes
	Exact        bool  // the record and the tree give back the very same bytes
	NonCanonical bool  // the sink gave normalize.ErrNonCanonical and took nothing more
}

// PaxXattr begins the PAX records that hold extended attributes.
const PaxXattr = "SCHILY.xattr."

const (
	maxZeroReads = 100
	// TarBlock is the least that an archive's entry has, in bytes.
	TarBlock = 512
)

// MaxHeaders is how many bytes the headers of one entry may have, with the padding of the entry
// before. The tar reader keeps them all, and any number of extended headers can stand before one
// file.
const MaxHeaders = 8 << 20

// ErrLongHeaders says that an entry has too many of them.
var ErrLongHeaders = errors.Errorf("more than %d bytes of headers", MaxHeaders)

// HeaderGuard ends the reading of headers that have no end.
type HeaderGuard struct {
	R    io.Reader
	Left int // bytes of headers; negative while a payload is read
}

func (g *HeaderGuard) Read(p []byte) (int, error) {
	if g.Left < 0 {
		return g.R.Read(p)
	}
	if g.Left == 0 && len(p) > 0 {
		return 0, ErrLongHeaders
	}
	n, err := g.R.Read(p[:min(len(p), g.Left)])
	g.Left -= n
	return n, err
}

// Run reads the layer. The stream is uncompressed; ctx ends it between two entries.
func (s *Scan) Run(ctx context.Context, r io.Reader) error {
	seed := maphash.MakeSeed()
	raw := &rawHash{r: r, limit: s.Limits.Bytes, sum: sha256.New()}
	raw.fast.SetSeed(seed)
	var rebuilt maphash.Hash // of the bytes that the record and the payloads come to
	rebuilt.SetSeed(seed)

	s.Exact = s.Packer != nil
	in := bufio.NewReaderSize(raw, spool.CopyBuffer)
	guard := &HeaderGuard{R: in}
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
		guard.Left = MaxHeaders
		hdr, err := tr.Next()
		guard.Left = -1
		if errors.Is(err, io.EOF) {
			if err := segment(tr.RawBytes()); err != nil {
				return err
			}
			break
		}
		if err != nil {
			return s.readError(err, s.Entries+1, raw.n)
		}
		if err := segment(tr.RawBytes()); err != nil {
			return err
		}
		s.Entries++
		if s.Limits.Files > 0 && s.Entries > s.Limits.Files {
			return errors.Errorf("it has more than %d entries, the limit of --max-layer-files", s.Limits.Files)
		}
		if err := s.CheckHeader(hdr); err != nil {
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
			return s.readError(err, s.Entries, raw.n)
		}
		if n > 0 && payload == nil {
			s.Exact = false // the tree does not hold these bytes
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
	s.DiffID, s.Size = digest.NewDigest(digest.SHA256, raw.sum), raw.n
	s.Exact = s.Exact && !s.NonCanonical && raw.fast.Sum64() == rebuilt.Sum64()
	return nil
}

// CheckHeader refuses what a header announces where that alone is too much.
func (s *Scan) CheckHeader(hdr *tar.Header) error {
	s.names += int64(len(hdr.Name) + len(hdr.Linkname))
	for k, v := range hdr.PAXRecords {
		if strings.HasPrefix(k, PaxXattr) {
			s.names += int64(len(k) + len(v))
		}
	}
	if most := s.Limits.Names(); most > 0 && s.names > most {
		return errors.Errorf(
			"the names and attributes of its first %d files have more than %d bytes, which is what --max-layer-files=%d allows",
			s.Entries,
			most,
			s.Limits.Files,
		)
	}
	if isSparse(hdr) {
		most := s.SparseMost
		if most == 0 {
			most = s.Limits.Sparse()
		}
		if s.sparse += hdr.Size; s.sparse > most || s.sparse < 0 {
			text := fmt.Sprintf(
				"%s is a sparse file of %d bytes, and a layer's sparse files may have no more than %d",
				ui.Quoted(hdr.Name),
				hdr.Size,
				most,
			)
			if s.Limits.Bytes > 0 {
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
	if s.Limits.Bytes > 0 && hdr.Size > s.Limits.Bytes-s.declared {
		return errors.Errorf(
			"with %s, which has %d bytes, it has more than %d bytes unpacked, the limit of --max-layer-size",
			ui.Quoted(hdr.Name),
			hdr.Size,
			s.Limits.Bytes,
		)
	}
	s.declared += hdr.Size
	return nil
}

// offer gives a header to the sink.
func (s *Scan) offer(hdr *tar.Header) (io.Writer, error) {
	switch hdr.Typeflag {
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		s.Skipped++
	}
	if s.Sink == nil {
		return nil, nil
	}
	w, err := s.Sink.Entry(hdr)
	if errors.Is(err, normalize.ErrNonCanonical) {
		s.Sink, s.NonCanonical = nil, true
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
func (s *Scan) pack(e storage.Entry) error {
	if s.Packer == nil {
		return nil
	}
	_, err := s.Packer.AddEntry(e)
	if errors.Is(err, storage.ErrDuplicatePath) {
		s.Packer, s.Exact = nil, false
		return nil
	}
	return errors.WithMessage(err, "recording the layer's tar stream")
}

// NoTarError says that the bytes of a layer are none, from the first on.
type NoTarError struct{ Err error }

func (e *NoTarError) Error() string { return e.Err.Error() }

func (e *NoTarError) Unwrap() error { return e.Err }

// readError names a stream that is no tar archive, or what is wrong with its n-th entry. read is
// how much of it was read.
func (s *Scan) readError(err error, n int, read int64) error {
	switch {
	case errors.Is(err, tar.ErrHeader) && s.Entries == 0, errors.Is(err, io.ErrUnexpectedEOF) && read < TarBlock:
		return &NoTarError{errors.New("not a tar archive")}
	case errors.Is(err, tar.ErrHeader):
		return errors.Errorf("not a tar archive after its entry %d", s.Entries)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errors.Errorf("the tar archive breaks off in its entry %d", n)
	case errors.Is(err, ErrLongHeaders), errors.Is(err, tar.ErrFieldTooLong):
		return errors.Errorf("the headers of its entry %d are longer than any archiver makes them", n)
	}
	var file *os.PathError
	reason := errors.WithMessagef(err, "reading the layer after its entry %d", s.Entries)
	if s.Entries > 0 || errors.As(err, &file) || errors.Is(err, context.Canceled) ||
		errors.Is(err, context.DeadlineExceeded) {
		return reason
	}
	return &NoTarError{reason} // compressed data that only begin as such
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

// Record is a layer's tar-split record on disk: gzip of one JSON object a line. Its bytes are a
// part of a commit, whose checksum must stay the same: see go.mod.
type Record struct {
	Path string
	file *os.File
	buf  *bufio.Writer
	gz   *gzip.Writer
}

// NewRecord begins a record.
func NewRecord(path string) (*Record, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, errors.Wrap(err, "recording the layer's tar stream")
	}
	s := &Record{Path: path, file: f, buf: bufio.NewWriterSize(f, spool.CopyBuffer)}
	s.gz = gzip.NewWriter(s.buf)
	return s, nil
}

// Packer takes what tar-split says of a stream.
func (s *Record) Packer() storage.Packer { return storage.NewJSONPacker(s.gz) }

// Close ends the file.
func (s *Record) Close() error {
	err := s.gz.Close()
	if ferr := s.buf.Flush(); err == nil {
		err = ferr
	}
	errdefs.Close(&err, s.file)
	return errors.WithMessage(err, "recording the layer's tar stream")
}

// Inline returns the file in base64 as metadata of a commit. ok is false where it does not fit into
// one argument.
func (s *Record) Inline() (m ostree.Metadata, ok bool, err error) {
	m.Key = imageref.KeyTarSplit
	info, err := os.Stat(s.Path)
	if err != nil {
		return m, false, errors.WithStack(err)
	}
	if len(m.Arg())+base64.StdEncoding.EncodedLen(int(min(info.Size(), ostree.MaxArgument))) > ostree.MaxArgument {
		return m, false, nil
	}
	content, err := os.ReadFile(s.Path)
	if err != nil {
		return m, false, errors.WithStack(err)
	}
	m.Value = base64.StdEncoding.EncodeToString(content)
	return m, m.Fits(), nil
}
