package spool

import (
	"io"
	"os"

	"github.com/pkg/errors"
)

// maxBuffered is of how many bytes a stream is held at most. A larger one is ostree's to refuse
// where there is no room for it.
const maxBuffered = 512 << 20

// copySize is how many bytes are copied at a time.
const copySize = 256 << 10

// Small is the size in bytes up to which a stream is held in memory.
const Small = 4 << 20

// Buffered is a stream that is kept to be read later, as often as is wanted: in memory while it is
// small, and then, where it was given a directory, in a file without a name there.
type Buffered struct {
	Dir  string // "" for a stream that is never more than a small one
	head []byte // of a small stream
	file *os.File
	size int64 // bytes
}

// Fits tells whether n bytes more can be held.
func (h *Buffered) Fits(n int) bool {
	if h.Dir == "" {
		return h.staysSmall(n)
	}
	return h.size+int64(n) <= maxBuffered
}

// staysSmall tells whether the stream with n bytes more is held in memory.
func (h *Buffered) staysSmall(n int) bool { return h.size+int64(n) <= Small }

// Write appends to the stream.
func (h *Buffered) Write(b []byte) (int, error) {
	if h.staysSmall(len(b)) {
		h.head = append(h.head, b...)
		h.size += int64(len(b))
		return len(b), nil
	}
	if h.file == nil {
		if err := h.spill(); err != nil {
			return 0, err
		}
	}
	n, err := h.file.Write(b)
	h.size += int64(n)
	return n, errors.Wrap(err, "staging a layer's stream")
}

// spill moves the stream to a file.
func (h *Buffered) spill() (err error) {
	if h.file, err = newUnnamed(h.Dir); err != nil {
		return err
	}
	_, err = h.file.Write(h.head)
	h.head = nil
	return errors.Wrap(err, "staging a layer's stream")
}

// newUnnamed makes a file in dir that is gone when it is closed, however this program ends.
func newUnnamed(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "stream-")
	if err != nil {
		return nil, errors.Wrap(err, "staging a layer's stream")
	}
	if err := os.Remove(f.Name()); err != nil {
		_ = f.Close()
		return nil, errors.Wrap(err, "staging a layer's stream")
	}
	return f, nil
}

// CopyTo writes the whole stream to w.
func (h *Buffered) CopyTo(w io.Writer) error {
	if h.file == nil {
		_, err := w.Write(h.head)
		return err
	}
	_, err := io.CopyBuffer(w, io.NewSectionReader(h.file, 0, h.size), make([]byte, copySize))
	return err
}

// Close gives back what the stream takes.
func (h *Buffered) Close() error {
	h.head = nil
	if h.file == nil {
		return nil
	}
	f := h.file
	h.file = nil
	return errors.WithStack(f.Close())
}
