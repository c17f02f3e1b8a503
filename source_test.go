package main

import (
	"bytes"
	"context"
	"io"
	"testing"

	"github.com/containers/image/v5/types"
	"github.com/opencontainers/go-digest"
)

// source opens an image of the repository.
func (r *testRun) source(t testing.TB, name string) *source {
	t.Helper()
	src, err := r.openSource(t.Context(), t, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = src.Close() })
	return src
}

func (r *testRun) openSource(ctx context.Context, t testing.TB, name string) (*source, error) {
	t.Helper()
	return openSource(ctx, r.reference(t, name))
}

func (r *testRun) reference(t testing.TB, name string) ostreeReference {
	t.Helper()
	ref, err := newReference(ostreeTransport{r.settings}, name, r.repo.path)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// getBlob reads a blob to its end.
func getBlob(ctx context.Context, src *source, d digest.Digest) ([]byte, error) {
	stream, size, err := src.GetBlob(ctx, types.BlobInfo{Digest: d, Size: -1}, nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = stream.Close() }()
	var b bytes.Buffer
	if _, err = io.Copy(&b, stream); err == nil && size >= 0 && size != int64(b.Len()) {
		err = checkf("it has %d bytes, and %d were announced", b.Len(), size)
	}
	return b.Bytes(), err
}

// tars reads the tar streams of all layers, as a copy out of the repository does.
func tars(ctx context.Context, src *source) (layers [][]byte, err error) {
	infos, err := src.LayerInfosForCopy(ctx, nil)
	if err != nil {
		return nil, err
	}
	for _, info := range infos {
		b, err := getBlob(ctx, src, info.Digest)
		if err != nil {
			return nil, err
		}
		layers = append(layers, b)
	}
	return layers, nil
}

// sameLayers holds that an image gives its layers back: their tar streams, and the blobs themselves where exact is set.
func (r *testRun) sameLayers(t testing.TB, name string, i *testImage, streams [][]byte, exact bool) {
	t.Helper()
	src := r.source(t, name)
	got, err := tars(t.Context(), src)
	if err != nil {
		t.Error(err)
		return
	}
	if len(got) != len(streams) {
		t.Fatalf("%d layers, want %d", len(got), len(streams))
	}
	for n := range streams {
		if !bytes.Equal(got[n], streams[n]) {
			t.Errorf("layer %d is %s of %d bytes, want %s of %d", n, digest.FromBytes(got[n]), len(got[n]), digest.FromBytes(streams[n]), len(streams[n]))
		}
	}
	if !exact {
		return
	}
	for n, l := range i.layers {
		if b, err := getBlob(t.Context(), r.source(t, name), digest.FromBytes(l)); err != nil || !bytes.Equal(b, l) {
			t.Errorf("blob %d is %s, want %s: %v", n, digest.FromBytes(b), digest.FromBytes(l), err)
		}
	}
}
