package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"math"
	"path"

	"github.com/pkg/errors"
	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/layer"
	"ostree-image/internal/normalize"
	"ostree-image/internal/proc"
	"ostree-image/internal/spool"
)

// What is read of a layer's tar-split data before the files of that part are asked for, with one
// process.
const (
	batchFiles   = 4096
	batchEntries = 64 << 10
	batchNames   = 512 << 10 // bytes of paths, for execve(2) takes about 2 MB of arguments
	batchBytes   = 8 << 20   // bytes of headers and padding
)

// rebuild puts a layer's tar stream together from tar-split data and the files of its commit. It is
// what asm.NewOutputTarStream needs on both sides: entries, and the payload of each when its turn
// comes. The next part is prepared, and read ahead, while one is read, so at most two processes
// run.
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
	files   *spool.ReadAhead // their payloads, one after another; nil for none
	err     error            // io.EOF behind the last part
}

// maxRecordEntry is how long one entry of tar-split data may be: what the padding of an archive
// takes, and more than any header does.
const maxRecordEntry = 64 << 20

// recordReader reads tar-split data. Unlike the library's reader it remembers no names, and ends
// where no archive of the layer's size has as much: what a repository holds may be made to fill the
// memory, or to have no end.
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
		size = layer.TarBlock // its header at the least, which an entry of its own gives
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
		buffered := bufio.NewWriterSize(in, spool.CopyBuffer) // a layer is many small pieces
		err := asm.WriteOutputTarStream(r, r, buffered)
		if err == nil {
			err = buffered.Flush()
		}
		r.part.close()
		var terr *proc.ToolError
		if err != nil && ctx.Err() == nil &&
			!errors.As(err, &terr) { // a payload whose checksum is not what the data says
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
			name, err := normalize.CleanName(e.GetName())
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
	part.files = spool.NewReadAhead(files, s.free, func() { files.Kill(); cancel() })
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

// endPart makes sure that the part's files were read to their end, and that their process ended
// well.
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
