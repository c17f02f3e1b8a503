package main

import (
	"context"
	"sync"
)

// importQueue runs imports in the background, a bounded number at a time.
type importQueue struct {
	slots   chan struct{}
	running sync.WaitGroup
}

func newImportQueue(n int) *importQueue { return &importQueue{slots: make(chan struct{}, max(1, n))} }

// add runs f once there is a slot for it, or never if ctx ends before.
func (q *importQueue) add(ctx context.Context, f func()) {
	q.running.Go(func() {
		select {
		case q.slots <- struct{}{}:
			defer func() { <-q.slots }()
		case <-ctx.Done():
			return
		}
		if ctx.Err() == nil { // though there was a slot, too
			f()
		}
	})
}
