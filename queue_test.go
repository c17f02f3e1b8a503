package main

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pkg/errors"

	"ostree-image/internal/testutil"
)

// TestImportQueue: all run, and no more at a time than there are slots.
func TestImportQueue(t *testing.T) {
	t.Parallel()
	const slots, each = 2, 40
	q := newImportQueue(slots)
	var running, ran atomic.Int64
	for range each {
		q.add(t.Context(), func() {
			if n := running.Add(1); n > slots {
				t.Errorf("%d run at a time", n)
			}
			time.Sleep(time.Millisecond)
			running.Add(-1)
			ran.Add(1)
		})
	}
	q.running.Wait()
	if ran.Load() != each {
		t.Errorf("%d ran", ran.Load())
	}
}

// TestImportQueueEnds: what waits for a slot when the copy ends does not run.
func TestImportQueueEnds(t *testing.T) {
	t.Parallel()
	q := newImportQueue(2)
	ctx, cancel := context.WithCancelCause(t.Context())
	hold := make(chan struct{})
	for range 2 {
		q.add(t.Context(), func() { <-hold })
	}
	testutil.Eventually(t, "two slots are taken", func() bool { return len(q.slots) == 2 })
	q.add(ctx, func() { t.Error("it runs") })
	cancel(errors.New("the copy has ended"))
	close(hold)
	q.running.Wait()
}
