package main

import (
	"bytes"
	"io"
	"io/fs"
	"testing"

	"github.com/pkg/errors"
)

func TestHeldStream(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		size   int
		onDisk bool
	}{
		"nothing":             {0, false},
		"small":               {smallStream, false},
		"one byte too many":   {smallStream + 1, true},
		"larger than a piece": {2*smallStream + 3*copyBuffer/2, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			h := &heldStream{dir: dir}
			want := bytes.Repeat([]byte("0123456"), tt.size/7+1)[:tt.size]
			if _, err := io.CopyBuffer(h, struct{ io.Reader }{bytes.NewReader(want)}, make([]byte, copyBuffer+1)); err != nil {
				t.Fatal(err)
			}
			onlyEntries(t, dir) // what a run that is killed would leave
			if onDisk := h.file != nil; onDisk != tt.onDisk {
				t.Errorf("on disk: %v", onDisk)
			}
			for range 2 { // a commit that loses a race reads it again
				var got bytes.Buffer
				if err := h.copyTo(&got); err != nil {
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
func TestHeldStreamInMemory(t *testing.T) {
	t.Parallel()
	h := &heldStream{}
	if _, err := h.Write(make([]byte, smallStream-1)); err != nil {
		t.Fatal(err)
	}
	if !h.fits(1) || h.fits(2) {
		t.Error("it does not know its limit")
	}
}

// No more is held than the disk can be asked for.
func TestHeldStreamLimits(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h := &heldStream{dir: dir, size: maxHeld - 1}
	if !h.fits(1) || h.fits(2) {
		t.Error("it does not know its limit")
	}
}

func TestHeldStreamNoDirectory(t *testing.T) {
	t.Parallel()
	h := &heldStream{dir: t.TempDir() + "/missing"}
	var err error
	for range 2 {
		_, err = h.Write(make([]byte, smallStream))
	}
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}
