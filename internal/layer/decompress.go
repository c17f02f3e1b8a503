package layer

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/binary"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pkg/errors"
	"go.podman.io/image/v5/pkg/compression"

	"ostree-image/internal/spool"
)

const (
	// maxZstdWindow is how much of its output a zstd stream may make the reader remember, in bytes:
	// as much as zstd(1) takes.
	maxZstdWindow = 128 << 20
	// gzipPieces is how many pieces the gzip decoder goes ahead, on a core of its own, of who reads
	// from it.
	gzipPieces = 4
	// tarHeaderSize is how many bytes a tar header has.
	tarHeaderSize = 512
)

// Decompress returns the tar stream in r, which the caller closes, and whether it is not
// compressed. The bytes decide, as for other tools, and not the media type. zeros is called where
// zeros follow the data of gzip, at the stream's end.
func Decompress(r io.Reader, zeros func()) (stream io.ReadCloser, plain bool, err error) {
	in := bufio.NewReaderSize(r, spool.CopyBuffer)
	start, err := in.Peek(tarHeaderSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, false, errors.WithMessage(err, "finding out its compression")
	}
	if isTarHeader(start) { // a file's name may begin with the magic number of bzip2, BZh
		return io.NopCloser(in), true, nil
	}
	algorithm, decompressor, _, err := compression.DetectCompressionFormat(bytes.NewReader(start))
	switch {
	case err != nil:
		return nil, false, errors.WithMessage(err, "finding out its compression")
	case algorithm.Name() == compression.Gzip.Name(): // the library's refuses zeros at the end
		gz, err := newGzipReader(in, zeros)
		if err != nil {
			return nil, false, err
		}
		return spool.NewReadAhead(gz, spool.NewPieces(gzipPieces), func() {}), false, nil
	case algorithm.Name() == compression.Zstd.Name() || isZstdSkippable(start): // the library's takes a window of 512 MiB
		decoder, err := zstd.NewReader(in, zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, false, errors.Wrap(err, "decompressing")
		}
		return decoder.IOReadCloser(), false, nil
	case decompressor == nil:
		return io.NopCloser(in), true, nil
	}
	stream, err = decompressor(in)
	return stream, false, errors.WithMessage(err, "decompressing")
}

// isTarHeader tells whether a stream that begins with these bytes is a tar archive as it is.
func isTarHeader(start []byte) bool {
	_, err := tar.NewReader(bytes.NewReader(start)).Next()
	return err == nil && len(start) == tarHeaderSize
}

// isZstdSkippable tells whether a stream begins with a frame of zstd that holds no data (RFC 8878,
// section 3.1.2).
func isZstdSkippable(start []byte) bool {
	return len(start) >= 4 && binary.LittleEndian.Uint32(start)&^0xf == 0x184D2A50
}

// gzipReader reads the members of a gzip stream (RFC 1952), and what gzip(1) takes behind them:
// zeros, as tapes and some uploads are padded with.
type gzipReader struct {
	in    *bufio.Reader
	gz    *gzip.Reader
	zeros func() // is called where there are some
}

func newGzipReader(in *bufio.Reader, zeros func()) (*gzipReader, error) {
	gz, err := gzip.NewReader(in)
	if err != nil {
		return nil, errors.Wrap(unexpectedEnd(err), "decompressing")
	}
	gz.Multistream(false)
	return &gzipReader{in, gz, zeros}, nil
}

func (g *gzipReader) Read(p []byte) (int, error) {
	for {
		n, err := g.gz.Read(p)
		if !errors.Is(err, io.EOF) {
			return n, err
		}
		if n > 0 {
			return n, nil
		}
		if err := g.next(); err != nil {
			return 0, err
		}
	}
}

// next goes on to the next member, and returns io.EOF where there is none.
func (g *gzipReader) next() error {
	start, err := g.in.Peek(1)
	if err != nil {
		return err
	}
	if start[0] != 0 {
		err := g.gz.Reset(g.in)
		g.gz.Multistream(false)
		return unexpectedEnd(err)
	}
	g.zeros()
	for {
		b, err := g.in.ReadByte()
		if err != nil {
			return err
		}
		if b != 0 {
			return errors.New("something other than gzip data follows the gzip data")
		}
	}
}

func (g *gzipReader) Close() error { return g.gz.Close() }

// unexpectedEnd is for what must not end by itself.
func unexpectedEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
