package main

import (
	"bytes"
	"io"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/gzip"
	"github.com/pkg/errors"
	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"

	"ostree-image/internal/layer"
	"ostree-image/internal/normalize"
	"ostree-image/internal/testutil"
)

func unzipped(t testing.TB, record []byte) io.Reader {
	t.Helper()
	gz, err := gzip.NewReader(bytes.NewReader(record))
	if err != nil {
		t.Fatal(err)
	}
	return gz
}

// recorded returns the files with a payload that a tar-split record names, as they are called in
// the layer's tree, and their sizes.
func recorded(t testing.TB, record []byte) (paths []string, sizes []int64) {
	t.Helper()
	up := storage.NewJSONUnpacker(unzipped(t, record))
	for {
		e, err := up.Next()
		if errors.Is(err, io.EOF) {
			return paths, sizes
		}
		if err != nil {
			t.Fatal(err)
		}
		if e.Type != storage.FileType || e.Size == 0 {
			continue
		}
		name, err := normalize.CleanName(e.GetName())
		if err != nil {
			t.Fatal(err)
		}
		paths, sizes = append(paths, name), append(sizes, e.Size)
	}
}

// contentGetter gives tar-split the payloads.
type contentGetter map[string][]byte

func (c contentGetter) Get(name string) (io.ReadCloser, error) {
	clean, err := normalize.CleanName(name)
	if err != nil {
		return nil, err
	}
	b, ok := c[clean]
	if !ok {
		return nil, errors.Errorf("no file %q", name)
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

func assemble(t testing.TB, record []byte, contents map[string][]byte) []byte {
	t.Helper()
	rc := asm.NewOutputTarStream(contentGetter(contents), storage.NewJSONUnpacker(unzipped(t, record)))
	defer func() { _ = rc.Close() }()
	return testutil.ReadN(t, rc, -1)
}

// TestScanPieces: however a layer comes in, byte by byte or at once, what is recorded of it is the
// same, and so is its commit.
func TestScanPieces(t *testing.T) {
	t.Parallel()
	for _, l := range oddLayers(t) {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			record := func(r io.Reader) string {
				var out bytes.Buffer
				// One that is refused is so with the same words.
				if err := (&layer.Scan{Packer: storage.NewJSONPacker(&out)}).Run(t.Context(), r); err != nil {
					return err.Error()
				}
				return out.String()
			}
			stream := func() io.Reader {
				r, _, err := layer.Decompress(bytes.NewReader(l.layer), func() {})
				if err != nil {
					t.Fatal(err)
				}
				return r
			}
			want := record(stream())
			for name, r := range map[string]io.Reader{"bytes": iotest.OneByteReader(stream()), "halves": iotest.HalfReader(stream()), "the end with the last ones": iotest.DataErrReader(stream())} {
				testutil.SameText(t, name, record(r), want)
			}
		})
	}
}
