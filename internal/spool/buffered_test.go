package spool

import (
	"bytes"
	"io"
	"io/fs"
	"testing"

	"github.com/pkg/errors"

	"ostree-image/internal/testutil"
)

func TestBuffered(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		size   int
		onDisk bool
	}{
		"nothing":             {0, false},
		"small":               {Small, false},
		"one byte too many":   {Small + 1, true},
		"larger than a piece": {2*Small + 3*copySize/2, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			h := &Buffered{Dir: dir}
			want := bytes.Repeat([]byte("0123456"), tt.size/7+1)[:tt.size]
			if _, err := io.CopyBuffer(h, struct{ io.Reader }{bytes.NewReader(want)}, make([]byte, copySize+1)); err != nil {
				t.Fatal(err)
			}
			testutil.OnlyEntries(t, dir) // what a run that is killed would leave
			if onDisk := h.file != nil; onDisk != tt.onDisk {
				t.Errorf("on disk: %v", onDisk)
			}
			for range 2 { // a commit that loses a race reads it again
				var got bytes.Buffer
				if err := h.CopyTo(&got); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got.Bytes(), want) {
					t.Errorf("%d bytes written, other %d read", len(want), got.Len())
				}
			}
			for range 2 {
				if err := h.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// One that has no directory holds what is small, and says so.
func TestBufferedInMemory(t *testing.T) {
	t.Parallel()
	h := &Buffered{}
	if _, err := h.Write(make([]byte, Small-1)); err != nil {
		t.Fatal(err)
	}
	if !h.Fits(1) || h.Fits(2) {
		t.Error("it does not know its limit")
	}
}

// No more is held than the disk can be asked for.
func TestBufferedLimits(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h := &Buffered{Dir: dir, size: maxBuffered - 1}
	if !h.Fits(1) || h.Fits(2) {
		t.Error("it does not know its limit")
	}
}

func TestBufferedNoDirectory(t *testing.T) {
	t.Parallel()
	h := &Buffered{Dir: t.TempDir() + "/missing"}
	var err error
	for range 2 {
		_, err = h.Write(make([]byte, Small))
	}
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}
