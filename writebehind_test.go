package main

import (
	"io"
	"strings"
	"testing"
)

func TestWriteBehind(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		bytes  int64
		ended  bool
		writes int
	}{
		{name: "slow", bytes: 1 << 20, writes: 1},
		{name: "fast", bytes: slowArrival},
		{name: "all has arrived", bytes: 1 << 20, ended: true},
		{name: "nothing comes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			writes := 0
			w := &writeBehind{write: func() { writes++ }}
			blob, arrived := w.watch(strings.NewReader(strings.Repeat("x", int(c.bytes))))
			if n, err := io.Copy(io.Discard, blob); n != c.bytes || err != nil {
				t.Fatalf("%d bytes read of %d: %v", n, c.bytes, err)
			}
			if c.ended {
				arrived()
			}
			w.look()
			w.look() // nothing came since
			if writes != c.writes {
				t.Errorf("written %d times, not %d", writes, c.writes)
			}
		})
	}
}
