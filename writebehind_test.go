package main

import (
	"io"
	"testing"
)

func TestWriteBehind(t *testing.T) {
	t.Parallel()
	const few, many = 1 << 20, slowArrival
	for _, c := range []struct {
		name   string
		bytes  []int // that came until each look
		ended  bool
		writes int
	}{
		{name: "slow", bytes: []int{few, few, few}, writes: 2},
		{name: "fast", bytes: []int{many, many, many}},
		{name: "the end of what is fast", bytes: []int{many, few}},
		{name: "fast in between", bytes: []int{few, many, few}},
		{name: "nothing comes any more", bytes: []int{few, 0, 0}},
		{name: "all has arrived", bytes: []int{few, few}, ended: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			writes := 0
			w := &writeBehind{write: func() { writes++ }}
			in, out := io.Pipe()
			blob, arrived := w.watch(in)
			if c.ended {
				arrived()
			}
			for _, n := range c.bytes {
				go func() { _, _ = out.Write(make([]byte, n)) }()
				if got, err := io.CopyN(io.Discard, blob, int64(n)); int(got) != n || err != nil {
					t.Fatalf("%d bytes read of %d: %v", got, n, err)
				}
				w.look()
			}
			if writes != c.writes {
				t.Errorf("written %d times, not %d", writes, c.writes)
			}
		})
	}
}
