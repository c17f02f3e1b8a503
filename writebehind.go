package main

import (
	"context"
	"io"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	writeBehindEvery = 500 * time.Millisecond
	// slowArrival is how many bytes arrive in that time where it is the network that an import waits for: 50 MB a second.
	slowArrival = 25 << 20
)

// writeBehind has what is staged written to the disk while blobs arrive slowly. At the end an import waits for all of it to be there, and has
// nothing else to do. Where they arrive fast, it is better left until the staged blobs have been removed, which then never get there.
type writeBehind struct {
	arriving atomic.Int32 // blobs
	bytes    atomic.Int64 // that arrived since it was last looked at
	slow     bool         // when it was last looked at
	wrote    atomic.Bool
	write    func()
}

// newWriteBehind writes out the file system that dir is on, until ctx ends.
func newWriteBehind(ctx context.Context, dir string) *writeBehind {
	w := &writeBehind{write: func() {
		if f, err := os.Open(dir); err == nil {
			_ = unix.Syncfs(int(f.Fd())) // ostree does it again, and then it counts
			_ = f.Close()
		}
	}}
	go w.run(ctx, time.NewTicker(writeBehindEvery))
	return w
}

func (w *writeBehind) run(ctx context.Context, ticker *time.Ticker) {
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			w.look()
		}
	}
}

// look writes where blobs are on their way and few bytes came, for the second time in a row: the end of a fast one is no slow one.
func (w *writeBehind) look() {
	n := w.bytes.Swap(0)
	before := w.slow
	w.slow = n > 0 && n < slowArrival && w.arriving.Load() > 0
	if before && w.slow {
		w.write()
		w.wrote.Store(true)
	}
}

// hasWritten tells whether most of what is staged can be on the disk already.
func (w *writeBehind) hasWritten() bool { return w != nil && w.wrote.Load() }

// watch returns the stream of a blob that arrives, and a function to call when it has.
func (w *writeBehind) watch(r io.Reader) (io.Reader, func()) {
	if w == nil {
		return r, func() {}
	}
	w.arriving.Add(1)
	return io.TeeReader(r, w), func() { w.arriving.Add(-1) }
}

// Write counts what arrives.
func (w *writeBehind) Write(b []byte) (int, error) {
	w.bytes.Add(int64(len(b)))
	return len(b), nil
}
