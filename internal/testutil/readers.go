package testutil

import (
	"io"
	"testing"
)

// Endless gives a text over and over.
type Endless string

func (e Endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = e[i%len(e)]
	}
	return len(p), nil
}

// ReaderFunc is a function that reads.
type ReaderFunc func([]byte) (int, error)

func (f ReaderFunc) Read(p []byte) (int, error) { return f(p) }

// ReadN reads n bytes, or all if n is negative.
func ReadN(t testing.TB, r io.Reader, n int64) []byte {
	t.Helper()
	if n < 0 {
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		t.Fatal(err)
	}
	return b
}
