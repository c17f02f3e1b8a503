// Package spool keeps streams: a blob that is read while it is written and checked, one that waits in memory or on
// disk, and one that is read before it is asked for.
package spool

import (
	"io"
	"os"
	"sync"

	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
)

const (
	// spoolLimit is how many bytes of a spool wait on disk for its reader before the writer waits
	// too.
	spoolLimit = 256 << 20
	// spoolPiece is of how many bytes that are read the room on disk is given back at a time.
	spoolPiece = 8 << 20
)

// ErrLeft is what the writer of a spool gets that nobody reads any more.
var ErrLeft = errors.New("nobody reads the stream any more")

// Spool is a stream that waits in a file without a name for a reader who is slower than its writer.
// One of each may use it at a time.
type Spool struct {
	file  *os.File
	limit int64 // bytes

	mu      sync.Mutex
	changed *sync.Cond
	written int64
	read    int64
	ended   bool
	err     error // instead of io.EOF, once ended
	left    bool
}

// New makes an empty spool in dir.
func New(dir string) (*Spool, error) {
	f, err := newUnnamed(dir)
	if err != nil {
		return nil, err
	}
	s := &Spool{file: f, limit: spoolLimit}
	s.changed = sync.NewCond(&s.mu)
	return s, nil
}

// Write appends to the stream.
func (s *Spool) Write(b []byte) (int, error) {
	s.mu.Lock()
	for s.written-s.read > s.limit && !s.left {
		s.changed.Wait()
	}
	at, left := s.written, s.left
	s.mu.Unlock()
	if left {
		return 0, ErrLeft
	}
	n, err := s.file.WriteAt(b, at)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.written += int64(n)
	s.changed.Broadcast()
	return n, errors.Wrap(err, "staging a part of a layer")
}

// End ends the stream. err is what its reader gets at the end, io.EOF where it is nil.
func (s *Spool) End(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended, s.err = true, err
	s.changed.Broadcast()
}

// Read waits where the stream is still to come. What was read is gone from the disk, on file
// systems that can do that.
func (s *Spool) Read(b []byte) (int, error) {
	s.mu.Lock()
	for s.read == s.written && !s.ended {
		s.changed.Wait()
	}
	at, ready, err := s.read, s.written-s.read, s.err
	s.mu.Unlock()
	if err != nil {
		return 0, err
	}
	if ready == 0 {
		return 0, io.EOF
	}
	n, err := s.file.ReadAt(b[:min(int64(len(b)), ready)], at)
	if first, end := at/spoolPiece*spoolPiece, (at+int64(n))/spoolPiece*spoolPiece; first < end {
		_ = unix.Fallocate(int(s.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, first, end-first)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.read += int64(n)
	s.changed.Broadcast()
	return n, errors.Wrap(err, "reading a part of a layer")
}

// Leave tells the writer that nobody reads any more.
func (s *Spool) Leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left = true
	s.changed.Broadcast()
}

// Close gives the file back. Neither end is to be used any more.
func (s *Spool) Close() error { return errors.WithStack(s.file.Close()) }
