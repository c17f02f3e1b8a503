package spool

import (
	"context"
	"crypto/sha256"
	"hash"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"go.podman.io/image/v5/types"

	"ostree-image/internal/errdefs"
)

// CopyBuffer is in how large parts streams are copied, in bytes.
const CopyBuffer = 256 << 10

// Blob is a blob that is written to disk as it arrives. Others can read it from its start at
// the same time, as often as they need, and learn at its end whether it is what its digest and size
// say.
type Blob struct {
	Path string
	Want types.BlobInfo // Digest "" or Size -1 where unknown
	most int64          // bytes where the size is unknown, 0 for any number

	mu      sync.Mutex
	more    *sync.Cond
	written int64
	ended   bool
	err     error         // why it is not to be used, once ended
	Digest  digest.Digest // of what arrived, once ended well
}

// NewBlob makes an empty blob in dir. most is how many bytes it may get where its size is
// unknown, 0 for any number.
func NewBlob(dir string, want types.BlobInfo, most int64) (*Blob, *os.File, error) {
	f, err := os.CreateTemp(dir, "blob-")
	if err != nil {
		return nil, nil, errors.Wrap(err, "staging a blob")
	}
	b := &Blob{Path: f.Name(), Want: want, most: most}
	b.more = sync.NewCond(&b.mu)
	return b, f, nil
}

// Fill writes r into the blob, to r's end, and verifies it. The error is also what the blob's
// readers get.
func (b *Blob) Fill(ctx context.Context, r io.Reader, f *os.File) error {
	sum, algorithm, err := b.hasher()
	if err == nil {
		err = b.copy(ctx, r, f, sum)
	}
	errdefs.Close(&err, f)
	var got digest.Digest
	if err == nil {
		got = digest.NewDigest(algorithm, sum)
		err = b.verify(got)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended, b.err, b.Digest = true, err, got
	b.more.Broadcast()
	return err
}

// hasher returns the hash of the wanted digest's algorithm.
func (b *Blob) hasher() (hash.Hash, digest.Algorithm, error) {
	if b.Want.Digest == "" {
		return sha256.New(), digest.SHA256, nil
	}
	if err := b.Want.Digest.Validate(); err != nil {
		return nil, "", errors.Wrapf(err, "blob digest %q", b.Want.Digest)
	}
	a := b.Want.Digest.Algorithm()
	return a.Hash(), a, nil
}

func (b *Blob) copy(ctx context.Context, r io.Reader, w io.Writer, sum io.Writer) error {
	buf := make([]byte, CopyBuffer)
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := r.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				return errors.Wrap(werr, "staging a blob")
			}
			_, _ = sum.Write(buf[:n])
			b.mu.Lock()
			b.written += int64(n)
			over := b.Want.Size >= 0 && b.written > b.Want.Size
			endless := b.Want.Size < 0 && b.most > 0 && b.written > b.most
			b.more.Broadcast()
			b.mu.Unlock()
			if over {
				return errdefs.Checkf(
					"blob %s is larger than the %d bytes that its manifest names",
					b.Want.Digest,
					b.Want.Size,
				)
			}
			if endless {
				return errors.Errorf(
					"a blob whose size nobody names (%s) has more than %d bytes, the limit of --max-layer-size",
					b.Name(),
					b.most,
				)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return errors.WithMessagef(err, "reading blob %s after %d bytes", b.Want.Digest, b.Size())
		}
	}
}

func (b *Blob) verify(got digest.Digest) error {
	if b.Want.Size >= 0 && b.Size() != b.Want.Size {
		return errdefs.Checkf(
			"blob %s has %d bytes, and its manifest names %d: it was cut short",
			b.Want.Digest,
			b.Size(),
			b.Want.Size,
		)
	}
	if b.Want.Digest != "" && got != b.Want.Digest {
		return errdefs.Checkf("blob %s does not match its digest: what arrived is %s", b.Want.Digest, got)
	}
	return nil
}

// Size returns how many bytes have arrived.
func (b *Blob) Size() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.written
}

// Wait waits for the blob's end and returns what its readers get there.
func (b *Blob) Wait() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for !b.ended {
		b.more.Wait()
	}
	return b.err
}

// Open returns a reader of the whole blob that waits where the blob is still to come. It gives
// io.EOF only if the blob is what it should be, and the reason otherwise.
func (b *Blob) Open() (io.ReadCloser, error) {
	f, err := os.Open(b.Path)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	return &stagedReader{b: b, f: f}, nil
}

type stagedReader struct {
	b  *Blob
	f  *os.File
	at int64
}

func (r *stagedReader) Read(p []byte) (int, error) {
	r.b.mu.Lock()
	for r.at == r.b.written && !r.b.ended {
		r.b.more.Wait()
	}
	ready, ended, err := r.b.written-r.at, r.b.ended, r.b.err
	r.b.mu.Unlock()
	if ended && err != nil {
		return 0, err
	}
	if ready == 0 {
		return 0, io.EOF
	}
	n, err := r.f.Read(p[:min(int64(len(p)), ready)])
	r.at += int64(n)
	if errors.Is(err, io.EOF) {
		err = errors.Errorf("staged blob %s became shorter", r.b.Path)
	}
	return n, err
}

func (r *stagedReader) Close() error { return r.f.Close() }

// Name is what the journal and errors call the blob: the hex part of its digest where that is known
// before it is here.
func (b *Blob) Name() string {
	if b.Want.Digest != "" {
		return b.Want.Digest.Encoded()
	}
	return filepath.Base(b.Path)
}

// Failure returns why the blob is not what it should be, nil where it is or is still to come.
func (b *Blob) Failure() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}
