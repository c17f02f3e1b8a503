package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"github.com/vbatts/tar-split/archive/tar"
)

// zeros is a stream of n zero bytes.
func zeros(n int64) io.Reader { return io.LimitReader(zeroReader{}, n) }

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// TestScanLimits holds what headers may announce, by themselves and together.
func TestScanLimits(t *testing.T) {
	file := func(name string, size int64) *tar.Header {
		return &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644}
	}
	long := strings.Repeat("n", 2995)
	longs := func(n int) (list []*tar.Header) {
		for i := range n {
			list = append(list, file(fmt.Sprintf("%s/%04d", long, i), 0))
		}
		return list
	}
	tests := []struct {
		name    string
		limits  layerLimits
		headers []*tar.Header
		wantErr string
	}{
		{"as many bytes as may be", layerLimits{bytes: 100}, []*tar.Header{file("a", 60), file("b", 40)}, ""},
		{"more bytes", layerLimits{bytes: 100}, []*tar.Header{file("a", 60), file("b", 41)}, `with "b", which has 41 bytes, it has more than 100 bytes unpacked`},
		{"bytes that overflow", layerLimits{bytes: 100}, []*tar.Header{file("a", 60), file("b", 1<<63-1)}, "more than 100 bytes unpacked"},
		{"a link's size is none", layerLimits{bytes: 100}, []*tar.Header{{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "a", Size: 1 << 40}}, ""},
		{"long names", layerLimits{files: 1}, longs(leastFiles * namesPerFile / 3000), ""},
		{"longer names", layerLimits{files: 1}, longs(leastFiles*namesPerFile/3000 + 1), "which is what --max-layer-files=1 allows"},
		{"no limit", layerLimits{}, append(longs(1000), file("a", 1<<62)), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := &layerScan{limits: tt.limits}
			var err error
			for _, hdr := range tt.headers {
				s.entries++
				if err = s.checkHeader(hdr); err != nil {
					break
				}
			}
			if got := errText(err); tt.wantErr == "" && got != "" || !strings.Contains(got, tt.wantErr) {
				t.Errorf("%q, want %q", got, tt.wantErr)
			}
		})
	}
}

// TestHeaderGuard holds that headers end, and that payloads may be of any length.
func TestHeaderGuard(t *testing.T) {
	g := &headerGuard{r: zeros(100), left: 50}
	if n, err := io.Copy(io.Discard, g); n != 50 || !errors.Is(err, errLongHeaders) {
		t.Errorf("%d bytes of headers, %v", n, err)
	}
	g.left = -1
	if n, err := io.Copy(io.Discard, g); n != 50 || err != nil {
		t.Errorf("%d bytes of payload, %v", n, err)
	}
}

func TestLengthReader(t *testing.T) {
	for _, tt := range []struct {
		has, says int64
		wantErr   string
	}{{100, 100, ""}, {99, 100, ""}, {101, 100, "longer than its commit says"}, {1 << 20, 0, "longer than its commit says"}} {
		n, err := io.Copy(io.Discard, &lengthReader{r: zeros(tt.has), left: tt.says})
		if got := errText(err); tt.wantErr == "" && got != "" || !strings.Contains(got, tt.wantErr) || n > tt.says {
			t.Errorf("%d bytes of %d: %d came, %q, want %q", tt.has, tt.says, n, got, tt.wantErr)
		}
	}
}

// TestRecordReader holds how much tar-split data may say.
func TestRecordReader(t *testing.T) {
	const entry = `{"type":1,"name":"a","size":0}`
	tests := []struct {
		name    string
		record  io.Reader
		tarSize int64
		entries int
		wantErr string
	}{
		{"as many files as there is room for", strings.NewReader(strings.Repeat(entry, 4)), 2 * tarBlock, 4, ""},
		{"one more", strings.NewReader(strings.Repeat(entry, 5)), 2 * tarBlock, 4, "more entries than the layer's tar stream has room for"},
		{"a size that overflows", strings.NewReader(entry), 1<<63 - 1, 1, ""},
		{"an unknown size", strings.NewReader(entry), -1, 1, ""},
		{"blanks without end", io.MultiReader(strings.NewReader(entry), blanks{}), 1 << 20, 1, "one of its entries has more than 67108864 bytes"},
		{"no JSON", strings.NewReader(entry + "x"), 1 << 20, 1, "invalid character"},
		{"half an entry", strings.NewReader(entry[:9]), 1 << 20, 0, "unexpected EOF"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			u := newRecordReader(&storedBlob{digest: digest.FromString(tt.name), tarSize: tt.tarSize}, io.NopCloser(tt.record))
			var err error
			n := 0
			for ; err == nil; n++ {
				_, err = u.Next()
			}
			if errors.Is(err, io.EOF) {
				err = nil
			}
			if got := errText(err); n-1 != tt.entries || tt.wantErr == "" && got != "" || !strings.Contains(got, tt.wantErr) {
				t.Errorf("%d entries, %q; want %d, %q", n-1, got, tt.entries, tt.wantErr)
			}
		})
	}
}

type blanks struct{}

func (blanks) Read(p []byte) (int, error) { return copy(p, bytes.Repeat([]byte{' '}, len(p))), nil }

func TestQuoted(t *testing.T) {
	for _, tt := range []struct{ name, want string }{
		{"plain", `"plain"`},
		{"\x1b[2J\n", `"\x1b[2J\n"`},
		{strings.Repeat("n", 201), `"` + strings.Repeat("n", 200) + `"…`},
	} {
		if got := quoted(tt.name); got != tt.want {
			t.Errorf("%q is quoted as %s", tt.name, got)
		}
	}
	if got, want := printable("a\x1b[2J\u202e馬\t"), `a\x1b[2J\u202e馬\t`; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
