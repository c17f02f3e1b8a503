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

	"ostree-image/internal/layer"
	"ostree-image/internal/normalize"
	"ostree-image/internal/tarstream"
	"ostree-image/internal/testutil"
	"ostree-image/internal/ui"
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
	with := func(size int64, records ...string) *tar.Header {
		hdr := file("f", size)
		hdr.PAXRecords = map[string]string{}
		for i := 0; i < len(records); i += 2 {
			hdr.PAXRecords[records[i]] = records[i+1]
		}
		return hdr
	}
	sparse := func(size int64) *tar.Header { return with(size, "GNU.sparse.major", "1") }
	attributes := with(0, layer.PaxXattr+"user.a", strings.Repeat("v", normalize.LeastFiles*normalize.NamesPerFile/2))
	tests := []struct {
		name    string
		limits  normalize.Limits
		headers []*tar.Header
		wantErr string
	}{
		{"as many bytes as may be", normalize.Limits{Bytes: 100}, []*tar.Header{file("a", 60), file("b", 40)}, ""},
		{"more bytes", normalize.Limits{Bytes: 100}, []*tar.Header{file("a", 60), file("b", 41)}, `with "b", which has 41 bytes, it has more than 100 bytes unpacked`},
		{"bytes that overflow", normalize.Limits{Bytes: 100}, []*tar.Header{file("a", 60), file("b", 1<<63-1)}, "more than 100 bytes unpacked"},
		{"a link's size is none", normalize.Limits{Bytes: 100}, []*tar.Header{{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "a", Size: 1 << 40}}, ""},
		{"long names", normalize.Limits{Files: 1}, longs(normalize.LeastFiles * normalize.NamesPerFile / 3000), ""},
		{"longer names", normalize.Limits{Files: 1}, longs(normalize.LeastFiles*normalize.NamesPerFile/3000 + 1), "which is what --max-layer-files=1 allows"},
		{"long attributes", normalize.Limits{Files: 1}, []*tar.Header{attributes}, ""},
		{"longer attributes", normalize.Limits{Files: 1}, []*tar.Header{attributes, attributes}, "which is what --max-layer-files=1 allows"},
		{"no limit", normalize.Limits{}, append(longs(1000), file("a", 1<<62)), ""},
		{"sparse files", normalize.Limits{Bytes: 100}, []*tar.Header{sparse(20), sparse(30), file("a", 100)}, ""},
		{"larger sparse files", normalize.Limits{Bytes: 100}, []*tar.Header{sparse(20), sparse(31)}, "may have no more than 50, half the limit of --max-layer-size"},
		{"sparse files that overflow", normalize.Limits{}, []*tar.Header{sparse(1), sparse(1<<63 - 1)}, "may have no more than 17179869184"},
		{"sparse files without a limit", normalize.Limits{}, []*tar.Header{sparse(normalize.MaxSparse), sparse(1)}, "may have no more than 17179869184"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := &layer.Scan{Limits: tt.limits}
			var err error
			for _, hdr := range tt.headers {
				s.Entries++
				if err = s.CheckHeader(hdr); err != nil {
					break
				}
			}
			if got := testutil.ErrText(err); tt.wantErr == "" && got != "" || !strings.Contains(got, tt.wantErr) {
				t.Errorf("%q, want %q", got, tt.wantErr)
			}
		})
	}
}

// TestPlanLimits holds what the names of a non-canonical layer may ask for.
func TestPlanLimits(t *testing.T) {
	empty := func(name string) *tar.Header { return &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644} }
	link := func(name, target string) *tar.Header {
		return &tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target}
	}
	far := []*tar.Header{link("l", strings.Repeat("./", 2000)+"."), {Typeflag: tar.TypeDir, Name: "d/", Mode: 0o755}}
	for i := range normalize.LeastFiles * normalize.StepsPerFile / 2000 {
		far = append(far, empty(fmt.Sprintf("l/f%d", i)))
	}
	deep := strings.Repeat("d/", 1500)
	for _, tt := range []struct {
		name    string
		files   int
		headers []*tar.Header
		wantErr string
	}{
		{"directories that nothing names", 2, []*tar.Header{empty("a/b/c")}, ""},
		{"more of them", 2, []*tar.Header{empty("a/b/c"), empty("d/e")}, "in more than 2 directories that it does not name, the limit of --max-layer-files"},
		{"a long way", 1001, far[:1000], ""},
		{"a longer way", 1001, far, "which is what --max-layer-files=1001 allows"},
		{"deep", 5000, []*tar.Header{link("l", deep), empty("l/a")}, ""},
		{"deep below itself", 5000, []*tar.Header{link("l", deep), empty("l/" + deep + "a")}, "the path has 4096 bytes once the layer's links are followed"},
		{"a long name in the deep", 5000, []*tar.Header{link("l", deep), empty("l/" + strings.Repeat("d/", 500) + strings.Repeat("n", 200))}, "4095 is the most"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := normalize.NewPlan(permissions{})
			p.Limits.Files = tt.files
			var err error
			for _, hdr := range tt.headers {
				if err = p.Add(hdr); err != nil {
					break
				}
			}
			if got := testutil.ErrText(err); tt.wantErr == "" && got != "" || !strings.Contains(got, tt.wantErr) {
				t.Errorf("%.300q, want %q", got, tt.wantErr)
			}
		})
	}
}

// TestOddEntries: what a filter that has seen no more than this must leave to a plan.
func TestOddEntries(t *testing.T) {
	entry := func(kind byte, name, link string) *tar.Header {
		return &tar.Header{Typeflag: kind, Name: name, Linkname: link, Mode: 0o755}
	}
	root, a, below := entry(tar.TypeDir, "./", ""), entry(tar.TypeReg, "a", ""), entry(tar.TypeReg, "a/b", "")
	for _, tt := range []struct {
		name    string
		headers []*tar.Header
		odd     bool
	}{
		{"the root", []*tar.Header{root, a}, false},
		{"the root twice", []*tar.Header{root, a, root}, true},
		{"a file twice", []*tar.Header{a, a}, true},
		{"a directory before what is below it", []*tar.Header{entry(tar.TypeDir, "a/", ""), below}, false},
		{"a directory after what is below it", []*tar.Header{below, entry(tar.TypeDir, "a/", "")}, false},
		{"a directory twice after that", []*tar.Header{below, entry(tar.TypeDir, "a/", ""), entry(tar.TypeDir, "a/", "")}, true},
		{"a file for a directory", []*tar.Header{below, a}, true},
		{"below a file", []*tar.Header{a, below}, true},
		{"below a link", []*tar.Header{entry(tar.TypeSymlink, "a", "x"), below}, true},
		{"a hard link", []*tar.Header{a, entry(tar.TypeLink, "h", "a")}, false},
		{"a hard link ahead of its file", []*tar.Header{entry(tar.TypeLink, "h", "a"), a}, true},
		{"a hard link to a directory", []*tar.Header{below, entry(tar.TypeLink, "h", "a")}, true},
		{"a hard link to itself", []*tar.Header{entry(tar.TypeLink, "h", "h")}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := normalize.NewFilter(permissions{}, tarstream.NewWriter(io.Discard))
			var err error
			for _, hdr := range tt.headers {
				if _, _, err = f.Take(hdr); err != nil {
					break
				}
			}
			if errors.Is(err, normalize.ErrNonCanonical) != tt.odd || !tt.odd && err != nil {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestHeaderGuard holds that headers end, and that payloads may be of any length.
func TestHeaderGuard(t *testing.T) {
	g := &layer.HeaderGuard{R: zeros(100), Left: 50}
	if n, err := io.Copy(io.Discard, g); n != 50 || !errors.Is(err, layer.ErrLongHeaders) {
		t.Errorf("%d bytes of headers, %v", n, err)
	}
	g.Left = -1
	if n, err := io.Copy(io.Discard, g); n != 50 || err != nil {
		t.Errorf("%d bytes of payload, %v", n, err)
	}
}

// TestScanLongPayload: what is held against headers is not held against a file that is longer than
// any.
func TestScanLongPayload(t *testing.T) {
	content := archive(file("f", strings.Repeat("x", layer.MaxHeaders+1)), file("g", ""))
	s := &layer.Scan{}
	if err := s.Run(t.Context(), bytes.NewReader(content)); err != nil || s.DiffID != digest.FromBytes(content) {
		t.Errorf("%v, %s", err, s.DiffID)
	}
}

// TestCleanName holds what a name may be, in a layer and in what a repository says of one.
func TestCleanName(t *testing.T) {
	long := strings.Repeat("n", normalize.MaxNameBytes)
	deep := strings.TrimSuffix(strings.Repeat(long+"/", 16), "/")
	for _, tt := range []struct{ name, want, wantErr string }{
		{"a/b", "a/b", ""},
		{"/a//b/./c/", "a/b/c", ""},
		{"./", "", ""},
		{"..a/b..", "..a/b..", ""},
		{"", "", ""},
		{"..", "", `leads out of the layer with ".."`},
		{"a/../b", "b", ""},
		{"/a/./b/../../c/", "c", ""},
		{"a/..", "", ""},
		{long + "n/../b", "b", ""},
		{"a/../../b", "", `leads out of the layer with ".."`},
		{"/../b", "", `leads out of the layer with ".."`},
		{"a//../../b", "", `leads out of the layer with ".."`},
		{"a\x00b", "", "holds a NUL"},
		{"a\xff", "", "is not UTF-8"},
		{long, long, ""},
		{long + "n", "", "has a part of 256 bytes, and 255 is the most"},
		{deep, deep, ""},
		{deep + "/n", "", "has 4097 bytes, and 4095 is the most"},
	} {
		got, err := normalize.CleanName(tt.name)
		if text := testutil.ErrText(err); got != tt.want || tt.wantErr == "" && text != "" || !strings.Contains(text, tt.wantErr) {
			t.Errorf("%.20q… becomes %.20q…, %q; want %.20q…, %q", tt.name, got, text, tt.want, tt.wantErr)
		}
	}
}

func TestLengthReader(t *testing.T) {
	for _, tt := range []struct {
		has, says int64
		wantErr   string
	}{{100, 100, ""}, {99, 100, ""}, {101, 100, "longer than its commit says"}, {1 << 20, 0, "longer than its commit says"}} {
		n, err := io.Copy(io.Discard, &lengthReader{r: zeros(tt.has), left: tt.says})
		if got := testutil.ErrText(err); tt.wantErr == "" && got != "" || !strings.Contains(got, tt.wantErr) || n > tt.says {
			t.Errorf("%d bytes of %d: %d came, %q, want %q", tt.has, tt.says, n, got, tt.wantErr)
		}
	}
}

// TestBoundedHeaders holds how much memory the headers of a stored layer may take.
func TestBoundedHeaders(t *testing.T) {
	hdr := &tar.Header{Name: strings.Repeat("n", 32<<20), Linkname: strings.Repeat("l", 32<<20)}
	taken := 0
	f := boundedHeaders(func(*tar.Header) error { taken++; return nil })
	var err error
	for err == nil && taken < 100 {
		err = f(hdr)
	}
	if !strings.Contains(testutil.ErrText(err), "its headers take more than 2147483648 bytes") || taken != maxHeaderMemory/(64<<20)-1 {
		t.Errorf("%d headers are taken: %v", taken, err)
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
		{"as many files as there is room for", strings.NewReader(strings.Repeat(entry, 4)), 2 * layer.TarBlock, 4, ""},
		{"one more", strings.NewReader(strings.Repeat(entry, 5)), 2 * layer.TarBlock, 4, "more entries than the layer's tar stream has room for"},
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
			if got := testutil.ErrText(err); n-1 != tt.entries || tt.wantErr == "" && got != "" || !strings.Contains(got, tt.wantErr) {
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
		if got := ui.Quoted(tt.name); got != tt.want {
			t.Errorf("%q is quoted as %s", tt.name, got)
		}
	}
	if got, want := ui.Printable("a\x1b[2J\u202e馬\t"), `a\x1b[2J\u202e馬\t`; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
