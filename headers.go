package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"strings"

	"github.com/pkg/errors"
	"github.com/vbatts/tar-split/archive/tar"
	"github.com/vbatts/tar-split/tar/storage"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/layer"
	"ostree-image/internal/spool"
)

// headers calls f for each entry of the layer, in the layer's order. The layer must be one that can
// be rebuilt.
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
		return errdefs.Checkf(
			"layer %s: its tar stream is %s, and its commit says %s",
			b.digest,
			wrong.actual,
			wrong.expected,
		)
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

// recordHeaders calls f for the header of each entry that tar-split data has. A header is what
// stands before an entry and behind the padding of the one before. What stands behind the last
// entry is the end of the archive and what follows that: it is none, whatever it looks like.
// tar-split's own IterateHeaders would read it as headers.
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
			if size += int64(len(e.Payload)); size <= layer.MaxHeaders {
				head = append(head, e.Payload...)
			}
		case storage.FileType:
			if size > layer.MaxHeaders {
				return layer.ErrLongHeaders
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

// streamHeaders calls f for each header of a tar stream, and reads the stream to its end. What was
// stored is within the limits of its import, so none are set here; payloads, which may be sparse,
// are skipped.
func streamHeaders(ctx context.Context, stream io.Reader, f func(*tar.Header) error) error {
	in := bufio.NewReaderSize(stream, spool.CopyBuffer)
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
