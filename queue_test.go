package main

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pkg/errors"

	"ostree-image/internal/testutil"
)

// TestImportQueue: no more run at a time than have a turn, those that read before it is theirs are few, and none keeps what it was given.
func TestImportQueue(t *testing.T) {
	t.Parallel()
	const turns, each = 2, 40
	q := newImportQueue(turns)
	var running, ran atomic.Int64
	work := func() {
		if n := running.Add(1); n > turns {
			t.Errorf("%d run at a time", n)
		}
		time.Sleep(time.Millisecond)
		running.Add(-1)
		ran.Add(1)
	}
	for range each {
		q.add(t.Context(), func(*turn) { work() })
		if !q.mayRead() {
			continue
		}
		q.read(func(own *turn) {
			for range 2 { // a second time it has it already
				if err := own.take(t.Context()); err != nil {
					t.Error(err)
				}
			}
			work()
		})
	}
	q.running.Wait()
	if ran.Load() <= each {
		t.Errorf("%d ran", ran.Load())
	}
	if len(q.turns)+len(q.readers) != 0 {
		t.Errorf("%d turns and %d readers are still taken", len(q.turns), len(q.readers))
	}
}

func TestImportQueueReaders(t *testing.T) {
	t.Parallel()
	q := newImportQueue(2)
	for n := range maxReaders + 1 {
		if may := q.mayRead(); may != (n < maxReaders) {
			t.Errorf("reader %d: %t", n+1, may)
		}
	}
	if newImportQueue(1).mayRead() {
		t.Error("one reads while another has its turn, though one thing is to be done at a time")
	}
}

// TestImportQueueEnds: who waits for a turn when the copy ends learns why, and runs nothing.
func TestImportQueueEnds(t *testing.T) {
	t.Parallel()
	q := newImportQueue(2)
	ctx, cancel := context.WithCancelCause(t.Context())
	hold := make(chan struct{})
	for range 2 {
		q.add(t.Context(), func(*turn) { <-hold })
	}
	testutil.Eventually(t, "two turns", func() bool { return len(q.turns) == 2 })
	why := errors.New("the copy has ended")
	q.add(ctx, func(*turn) { t.Error("it runs") })
	if !q.mayRead() {
		t.Fatal("it may not read")
	}
	waited := make(chan error)
	q.read(func(own *turn) { waited <- own.take(ctx) })
	cancel(why)
	if err := <-waited; !errors.Is(err, why) {
		t.Errorf("the error is %v", err)
	}
	close(hold)
	q.running.Wait()
	if len(q.turns)+len(q.readers) != 0 {
		t.Errorf("%d turns and %d readers are still taken", len(q.turns), len(q.readers))
	}
}
