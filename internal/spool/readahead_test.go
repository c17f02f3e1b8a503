package spool

import (
	"bytes"
	"context"
	"io"
	"testing"
	"testing/iotest"

	"github.com/pkg/errors"
)

// unending is a stream that goes on until it is ended.
type unending struct{ ctx context.Context }

func (e unending) Read(p []byte) (int, error) {
	if e.ctx.Err() != nil {
		return 0, e.ctx.Err()
	}
	return len(p), nil
}

func (e unending) Close() error { return nil }

func TestReadAhead(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for _, c := range []struct {
		name  string
		bytes int
		err   error
	}{
		{name: "nothing"},
		{name: "less than a piece", bytes: AheadPiece - 1},
		{name: "a piece", bytes: AheadPiece},
		{name: "more than all pieces hold", bytes: 5*AheadPiece + 1},
		{name: "an error at once", err: broken},
		{name: "an error in a piece", bytes: AheadPiece + 1, err: broken},
		{name: "an error after a piece", bytes: AheadPiece, err: broken},
		{name: "a stream that breaks off", bytes: 1, err: io.ErrUnexpectedEOF},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			want := make([]byte, c.bytes)
			for i := range want {
				want[i] = byte(i >> 8)
			}
			var stream io.Reader = bytes.NewReader(want)
			if c.err != nil {
				stream = io.MultiReader(stream, iotest.ErrReader(c.err))
			}
			free := NewPieces(2)
			r := NewReadAhead(io.NopCloser(stream), free, func() {})
			got, err := io.ReadAll(iotest.HalfReader(r))
			if !bytes.Equal(got, want) || !errors.Is(err, c.err) {
				t.Errorf("%d bytes and %v, not %d and %v", len(got), err, len(want), c.err)
			}
			atEnd := c.err
			if atEnd == nil {
				atEnd = io.EOF
			}
			if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, atEnd) {
				t.Errorf("after the end come %d bytes, %v", n, err)
			}
			if err := r.Close(); err != nil || len(free) != 2 {
				t.Errorf("closed: %v, with %d pieces given back", err, len(free))
			}
		})
	}
}

// A stream that nobody reads takes all pieces that are shared, and no other has to wait for it.
func TestReadAheadWhileAnotherWaits(t *testing.T) {
	t.Parallel()
	free := NewPieces(2)
	ctx, cancel := context.WithCancel(t.Context())
	waiting := NewReadAhead(unending{ctx}, free, cancel)
	for len(free) > 0 {
		if ctx.Err() != nil {
			t.Fatal(ctx.Err())
		}
	}
	want := bytes.Repeat([]byte("stream"), AheadPiece)
	other := NewReadAhead(io.NopCloser(bytes.NewReader(want)), free, func() {})
	if got, err := io.ReadAll(other); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d, %v", len(got), len(want), err)
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
	if err := waiting.Close(); err != nil || len(free) != 2 {
		t.Errorf("closed: %v, with %d pieces given back", err, len(free))
	}
}
