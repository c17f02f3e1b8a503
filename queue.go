package main

import (
	"context"
	"sync"
)

// importQueue imports layers in the background, a bounded number at a time.
type importQueue struct {
	turns   chan struct{} // has room for those whose turn it is
	readers chan struct{} // for those that are read before it is theirs
	running sync.WaitGroup
}

func newImportQueue(n int) *importQueue {
	q := &importQueue{turns: make(chan struct{}, max(1, n))}
	if n > 1 {
		q.readers = make(chan struct{}, maxReaders)
	}
	return q
}

// maxReaders is how many layers may be read before it is their turn: as many as the library fetches at once, unless it is told otherwise.
// Each takes some megabytes of memory.
const maxReaders = 6

// turn is the right to run processes. Whoever was given it by read takes it before the first, and then keeps it.
type turn struct {
	queue *importQueue
	mu    sync.Mutex
	taken bool
	read  bool // it counts among the readers
}

// take waits for the turn. Once ctx has ended, that is the error, even of a turn that was taken.
func (t *turn) take(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if ctx.Err() != nil { // though there may be room, too, or it has it
		return context.Cause(ctx)
	}
	if t.taken {
		return nil
	}
	select {
	case t.queue.turns <- struct{}{}:
		t.taken = true
		t.leave()
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// leave makes room for another reader.
func (t *turn) leave() {
	if t.read {
		<-t.queue.readers
		t.read = false
	}
}

func (t *turn) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.leave()
	if t.taken {
		<-t.queue.turns
	}
}

// add runs f when it is its turn, or never if ctx ends before.
func (q *importQueue) add(ctx context.Context, f func(*turn)) {
	q.running.Go(func() {
		t := &turn{queue: q}
		defer t.end()
		if t.take(ctx) == nil {
			f(t)
		}
	})
}

// mayRead tells whether there is room for a reader, and keeps it for one that is then given to read.
func (q *importQueue) mayRead() bool {
	select {
	case q.readers <- struct{}{}:
		return true
	default:
		return false
	}
}

// read runs f at once. It is to take the turn that it is given before it runs a process.
func (q *importQueue) read(f func(*turn)) {
	q.running.Go(func() {
		t := &turn{queue: q, read: true}
		defer t.end()
		f(t)
	})
}
