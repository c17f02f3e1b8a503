package spool

import (
	"bytes"
	"io"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/pkg/errors"

	"ostree-image/internal/testutil"
)

func newTestSpool(t *testing.T, limit int64) *Spool {
	t.Helper()
	dir := t.TempDir()
	s, err := New(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	testutil.OnlyEntries(t, dir) // what a run that is killed would leave
	s.limit = limit
	return s
}

func TestSpool(t *testing.T) {
	t.Parallel()
	s := newTestSpool(t, 1000)
	var want bytes.Buffer
	go func() {
		for i := range 5000 {
			piece := bytes.Repeat([]byte{byte(i)}, i%700)
			want.Write(piece)
			if n, err := s.Write(piece); err != nil || n != len(piece) {
				t.Errorf("%d bytes written of %d: %v", n, len(piece), err)
			}
		}
		s.End(nil)
	}()
	got, err := io.ReadAll(s)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want.Bytes()) {
		t.Errorf("%d bytes written, other %d read", want.Len(), len(got))
	}
}

// A writer that is far ahead waits, and a reader that goes lets it go.
func TestSpoolLimit(t *testing.T) {
	t.Parallel()
	s := newTestSpool(t, 1000)
	written := make(chan int64)
	go func() {
		for {
			if _, err := s.Write(make([]byte, 100)); err != nil {
				if !errors.Is(err, ErrLeft) {
					t.Errorf("the error is %v", err)
				}
				written <- s.written
				return
			}
		}
	}()
	select {
	case n := <-written:
		t.Fatalf("it stopped after %d bytes", n)
	case <-time.After(100 * time.Millisecond):
	}
	s.Leave()
	if n := <-written; n < 1000 || n > 1200 {
		t.Errorf("%d bytes were written, with a limit of 1000", n)
	}
}

// A reader learns why the stream is not whole, and never takes it for whole.
func TestSpoolEnd(t *testing.T) {
	t.Parallel()
	s := newTestSpool(t, 1000)
	failure := errors.New("the layer is wrong")
	go func() {
		_, _ = s.Write([]byte("some"))
		s.End(failure)
	}()
	if _, err := io.ReadAll(s); !errors.Is(err, failure) {
		t.Errorf("the error is %v", err)
	}
}

// What was read takes no more room.
func TestSpoolGivesRoomBack(t *testing.T) {
	t.Parallel()
	s := newTestSpool(t, spoolLimit)
	for range 4 {
		if _, err := s.Write(make([]byte, spoolPiece)); err != nil {
			t.Fatal(err)
		}
	}
	s.End(nil)
	if _, err := io.CopyN(io.Discard, s, 3*spoolPiece+1); err != nil {
		t.Fatal(err)
	}
	info, err := s.file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Fallocate(int(s.file.Fd()), 3, 0, 1); errors.Is(err, syscall.EOPNOTSUPP) {
		t.Skip(os.TempDir() + " cannot have holes")
	}
	if room := info.Sys().(*syscall.Stat_t).Blocks * 512; room > 2*spoolPiece {
		t.Errorf("%d bytes on disk, and %d are unread", room, spoolPiece-1)
	}
}
