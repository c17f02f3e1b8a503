package spool

import (
	"bytes"
	"context"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"go.podman.io/image/v5/types"

	"ostree-image/internal/testutil"
)

func TestStagedBlob(t *testing.T) {
	content := strings.Repeat("0123456789", 100000)
	whole := digest.FromString(content)
	whole512 := digest.SHA512.FromString(content)
	broken := errors.New("the network is gone")
	tests := []struct {
		name    string
		want    types.BlobInfo
		stream  io.Reader
		digest  digest.Digest
		wantErr string
	}{
		{"whole", types.BlobInfo{Digest: whole, Size: 1000000}, strings.NewReader(content), whole, ""},
		{"size unknown", types.BlobInfo{Digest: whole, Size: -1}, strings.NewReader(content), whole, ""},
		{"digest unknown", types.BlobInfo{Size: 1000000}, strings.NewReader(content), whole, ""},
		{"both unknown", types.BlobInfo{Size: -1}, strings.NewReader(content), whole, ""},
		{"sha512", types.BlobInfo{Digest: whole512, Size: 1000000}, strings.NewReader(content), whole512, ""},
		{"empty", types.BlobInfo{Digest: digest.FromString(""), Size: 0}, strings.NewReader(""), digest.FromString(""), ""},
		{"a byte at a time", types.BlobInfo{Digest: digest.FromString("slow"), Size: 4}, iotest.OneByteReader(strings.NewReader("slow")), digest.FromString("slow"), ""},
		{"data with EOF", types.BlobInfo{Digest: digest.FromString("data"), Size: 4}, iotest.DataErrReader(strings.NewReader("data")), digest.FromString("data"), ""},
		{"short", types.BlobInfo{Digest: whole, Size: 1000000}, strings.NewReader(content[:999999]), "", "blob " + whole.String() + " has 999999 bytes, and its manifest names 1000000: it was cut short"},
		{"nothing", types.BlobInfo{Digest: whole, Size: 1000000}, strings.NewReader(""), "", "blob " + whole.String() + " has 0 bytes, and its manifest names 1000000: it was cut short"},
		{"long", types.BlobInfo{Digest: whole, Size: 1000000}, strings.NewReader(content + "x"), "", "blob " + whole.String() + " is larger than the 1000000 bytes that its manifest names"},
		{"endless", types.BlobInfo{Digest: whole, Size: 5}, testutil.Endless("x"), "", "blob " + whole.String() + " is larger than the 5 bytes that its manifest names"},
		{
			"other",
			types.BlobInfo{Digest: whole, Size: 1000000},
			strings.NewReader(content[:999999] + "x"), "",
			"blob " + whole.String() + " does not match its digest: what arrived is " + digest.FromString(content[:999999]+"x").String(),
		},
		{
			"other sha512",
			types.BlobInfo{Digest: whole512, Size: 1},
			strings.NewReader("x"), "",
			"blob " + whole512.String() + " does not match its digest: what arrived is " + digest.SHA512.FromString("x").String(),
		},
		{
			"breaks off",
			types.BlobInfo{Digest: whole, Size: 1000000},
			io.MultiReader(strings.NewReader(content[:500000]), iotest.ErrReader(broken)), "",
			"reading blob " + whole.String() + " after 500000 bytes: the network is gone",
		},
		{"unknown algorithm", types.BlobInfo{Digest: "md5:" + whole[7:39], Size: 5}, strings.NewReader(content), "", `blob digest "md5:` + string(whole[7:39]) + `": unsupported digest algorithm`},
		{"no digest", types.BlobInfo{Digest: "sha256:../../x", Size: 5}, strings.NewReader(content), "", `blob digest "sha256:../../x": invalid checksum digest length`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b, f, err := NewBlob(t.TempDir(), tt.want, 0)
			if err != nil {
				t.Fatal(err)
			}
			var readers sync.WaitGroup
			for range 3 { // while it is written
				readers.Go(func() { checkReader(t, b, content, tt.wantErr) })
			}
			err = b.Fill(t.Context(), tt.stream, f)
			testutil.SameText(t, "error", testutil.ErrText(err), tt.wantErr)
			testutil.SameText(t, "error of wait", testutil.ErrText(b.Wait()), tt.wantErr)
			if err == nil {
				testutil.SameText(t, "digest", string(b.Digest), string(tt.digest))
			}
			readers.Wait()
			checkReader(t, b, content, tt.wantErr) // and after
			if _, err := f.Write([]byte("x")); !errors.Is(err, os.ErrClosed) {
				t.Errorf("the file is still open: %v", err)
			}
		})
	}
}

// checkReader reads a blob: what it gives is what arrived, and it ends well only with all of it.
func checkReader(t *testing.T, b *Blob, content, wantErr string) {
	t.Helper()
	r, err := b.Open()
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = r.Close() }()
	got, err := io.ReadAll(r)
	testutil.SameText(t, "error of a reader", testutil.ErrText(err), wantErr)
	if wantErr == "" && int64(len(got)) != b.Size() {
		t.Errorf("a reader got %d of %d bytes", len(got), b.Size())
	}
	if wantErr != "" && len(got) > 0 && !strings.HasPrefix(content+"x", string(got)) && got[0] != 'x' && !strings.HasPrefix(string(got), content[:999999]) {
		t.Errorf("a reader got what never arrived")
	}
	if n, again := r.Read(make([]byte, 10)); n != 0 || again == nil {
		t.Errorf("after its end a reader gets %d, %v", n, again)
	}
}

// TestReadersFollow: each reader gets what has arrived without waiting for the rest.
func TestReadersFollow(t *testing.T) {
	b, f, err := NewBlob(t.TempDir(), types.BlobInfo{Size: -1}, 0)
	if err != nil {
		t.Fatal(err)
	}
	pr, pw := io.Pipe()
	filled := make(chan error, 1)
	go func() { filled <- b.Fill(t.Context(), pr, f) }()
	var readers []io.ReadCloser
	for range 3 {
		r, err := b.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = r.Close() }()
		readers = append(readers, r)
	}
	for _, part := range []string{"first", "second", "third"} {
		if _, err := pw.Write([]byte(part)); err != nil {
			t.Fatal(err)
		}
		for _, r := range readers {
			if got := testutil.ReadN(t, r, int64(len(part))); string(got) != part {
				t.Errorf("%q, want %q", got, part)
			}
		}
	}
	if err := pw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-filled; err != nil {
		t.Error(err)
	}
	for _, r := range readers {
		if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("at the end: %d, %v", n, err)
		}
	}
}

func TestStagingStops(t *testing.T) {
	b, f, err := NewBlob(t.TempDir(), types.BlobInfo{Size: -1}, 0)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	whim := errors.New("a whim")
	stream := io.MultiReader(bytes.NewReader(make([]byte, 100)), testutil.ReaderFunc(func([]byte) (int, error) { cancel(whim); return 0, nil }), testutil.Endless("x"))
	if err := b.Fill(ctx, stream, f); !errors.Is(err, whim) {
		t.Errorf("%v, want %v", err, whim)
	}
	r, err := b.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	if _, err := io.ReadAll(r); !errors.Is(err, whim) {
		t.Errorf("a reader ends with %v, want %v", err, whim)
	}
}

// TestStagedFileCut: what somebody else makes shorter is not taken for whole.
func TestStagedFileCut(t *testing.T) {
	b, f, err := NewBlob(t.TempDir(), types.BlobInfo{Size: -1}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Fill(t.Context(), strings.NewReader("content"), f); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(b.Path, 3); err != nil {
		t.Fatal(err)
	}
	r, err := b.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	_, err = io.ReadAll(r)
	testutil.SameText(t, "error", testutil.ErrText(err), "staged blob "+b.Path+" became shorter")
}

// TestEndlessBlob: a blob whose size nobody names ends where a layer may have no more.
func TestEndlessBlob(t *testing.T) {
	t.Parallel()
	b, f, err := NewBlob(t.TempDir(), types.BlobInfo{Size: -1}, 1000)
	if err != nil {
		t.Fatal(err)
	}
	err = b.Fill(t.Context(), strings.NewReader(strings.Repeat("x", 1001)), f)
	if err == nil || !strings.Contains(err.Error(), "more than 1000 bytes, the limit of --max-layer-size") {
		t.Errorf("error %v", err)
	}
}
