package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/types"
)

// defaultIdleTimeout is how long a registry may send nothing.
const defaultIdleTimeout = time.Minute

// idleError says that a registry has sent nothing for too long.
type idleError struct {
	source string
	limit  time.Duration
}

func (e *idleError) Error() string {
	return fmt.Sprintf("%s has sent nothing for %s, the limit of --idle-timeout", e.source, e.limit)
}

// idleWatch ends a copy from a registry that sends nothing any more. The library sets no such
// limit, so that a connection which hangs would keep the copy, and the disk that it takes, for
// ever. What the destination does meanwhile takes its time: it says when it is at work, and when it
// waits for a stream. A nil watch watches nothing. It is safe for parallel use.
type idleWatch struct {
	limit time.Duration

	mu    sync.Mutex
	busy  int // how many are at work, and do not wait for the registry
	timer *time.Timer
}

// newIdleWatch calls stop where a copy from source waits for longer than limit, 0 for any time.
func newIdleWatch(source types.ImageReference, limit time.Duration, stop func(error)) *idleWatch {
	if limit == 0 || source.Transport().Name() != docker.Transport.Name() {
		return nil
	}
	name := source.Transport().Name() + ":" + source.StringWithinTransport()
	return &idleWatch{limit: limit, timer: time.AfterFunc(limit, func() { stop(&idleError{name, limit}) })}
}

// end ends the watch.
func (w *idleWatch) end() {
	if w != nil {
		w.timer.Stop()
	}
}

// work says that the caller is at work until it calls what is returned.
func (w *idleWatch) work() (done func()) {
	if w == nil {
		return func() {}
	}
	w.add(1)
	return func() { w.add(-1) }
}

func (w *idleWatch) add(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.busy += n; w.busy == 0 {
		w.timer.Reset(w.limit)
	} else {
		w.timer.Stop()
	}
}

// stream returns a stream whose reader, who is at work, is not while it waits for more.
func (w *idleWatch) stream(r io.Reader) io.Reader {
	if w == nil {
		return r
	}
	return &idleStream{w, r}
}

type idleStream struct {
	watch *idleWatch
	r     io.Reader
}

func (s *idleStream) Read(p []byte) (int, error) {
	s.watch.add(-1)
	defer s.watch.add(1)
	return s.r.Read(p)
}
