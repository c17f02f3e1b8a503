package main

import (
	"io"

	"github.com/opencontainers/go-digest"
	"github.com/pkg/errors"

	"ostree-image/internal/errdefs"
)

// digestError says that bytes out of the repository are not what their digest names.
type digestError struct{ expected, actual digest.Digest }

func (e *digestError) Error() string {
	return "what the repository holds gives " + e.actual.String() + " instead of " + e.expected.String() + ": it is damaged"
}

// Unwrap makes it one of the errors that have an exit status of their own.
func (e *digestError) Unwrap() error { return errdefs.CheckError{Text: e.Error()} }

// unknownTarLimit is how long a tar stream may be whose commit does not say.
const unknownTarLimit = 32 << 30

// tarLimit is how many bytes the layer's tar stream has at the most.
func (b *storedBlob) tarLimit() int64 {
	if b.tarSize < 0 {
		return unknownTarLimit
	}
	return b.tarSize
}

// verifiedTar is verified for the blob's tar stream. It breaks off where that is longer than it
// should be.
func (b *storedBlob) verifiedTar(r io.ReadCloser) io.ReadCloser {
	return b.verified(&stackedReader{Reader: &lengthReader{r: r, left: b.tarLimit()}, below: []io.Closer{r}}, b.diffID)
}

// lengthReader is a reader of a stream that must not be longer than it says.
type lengthReader struct {
	r    io.Reader
	left int64
}

func (l *lengthReader) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return 0, errdefs.Checkf("its tar stream is longer than its commit says: it is damaged")
	}
	return n, err
}

// verified returns a reader of the blob, or of its tar stream, that ends well only if all that it
// gave matches the digest.
func (b *storedBlob) verified(r io.ReadCloser, want digest.Digest) io.ReadCloser {
	return &verifiedReader{blob: b.digest, r: r, want: want, sum: want.Algorithm().Digester()}
}

type verifiedReader struct {
	blob digest.Digest
	r    io.ReadCloser
	want digest.Digest
	sum  digest.Digester
}

func (v *verifiedReader) Read(p []byte) (int, error) {
	n, err := v.r.Read(p)
	_, _ = v.sum.Hash().Write(p[:n])
	if errors.Is(err, io.EOF) {
		if got := v.sum.Digest(); got != v.want {
			return n, errors.WithMessagef(&digestError{expected: v.want, actual: got}, "reading blob %s", v.blob)
		}
		return n, err
	}
	var below *digestError
	if err != nil && !errors.As(err, &below) { // else it was said
		err = errors.WithMessagef(damage(err), "reading blob %s", v.blob)
	}
	return n, err
}

func (v *verifiedReader) Close() error { return v.r.Close() }
