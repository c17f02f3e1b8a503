package main

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/manifest"

	"ostree-image/internal/layer"
	"ostree-image/internal/testutil"
)

// packed is a layer in one form of compression.
type packed struct {
	name  string
	tool  string // reads it with -dc, "" for none
	bytes []byte
	err   string // "" where it is taken
	zeros bool   // whether zeros behind it are told of
}

// through gives bytes to a compressor, by a pipe: it does not learn how many there are.
func through(t *testing.T, b []byte, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = io.MultiReader(bytes.NewReader(b))
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v", name, args, err)
	}
	return out
}

// gzipMember is a member with an extra field, a name, a comment and a checksum of the header.
func gzipMember(b []byte) []byte {
	head := []byte{0x1f, 0x8b, 8, 1<<1 | 1<<2 | 1<<3 | 1<<4, 0, 0, 0, 0, 0, 3, 4, 0, 'e', 'x', 0, 0}
	head = append(head, "name\x00comment\x00"...)
	head = binary.LittleEndian.AppendUint16(head, uint16(crc32.ChecksumIEEE(head)))
	out := bytes.NewBuffer(head)
	w, _ := flate.NewWriter(out, flate.BestCompression)
	_, _ = w.Write(b)
	_ = w.Close()
	tail := binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE(b))
	return append(out.Bytes(), binary.LittleEndian.AppendUint32(tail, uint32(len(b)))...)
}

func packedForms(t *testing.T, layer []byte) []packed {
	t.Helper()
	testutil.NeedTools(t, "gzip", "zstd", "bzip2", "xz")
	gz, bz, xz := through(t, layer, "gzip", "-c"), through(t, layer, "bzip2", "-c"), through(t, layer, "xz", "-c")
	zst := through(t, layer, "zstd", "-c")
	half := len(layer) / 2
	halves := func(name string) []byte {
		return slices.Concat(through(t, layer[:half], name, "-c"), through(t, layer[half:], name, "-c"))
	}
	empty := func(name string) []byte { return through(t, nil, name, "-c") }
	skip := slices.Concat([]byte{0x5a, 0x2a, 0x4d, 0x18, 5, 0, 0, 0}, []byte("skip!"))
	skipNothing := []byte{0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0}
	zeros := make([]byte, 1000)
	wrong := func(b []byte, at int) []byte {
		b = bytes.Clone(b)
		b[at] ^= 0x55
		return b
	}
	return []packed{
		{name: "plain", bytes: layer},
		{name: "plain, a name like bzip2's magic number", bytes: archive(file("BZh91AY", "x"))},
		{name: "plain, a name like gzip's", bytes: archive(file("\x1f\x8b\b", "x"))},
		{name: "gzip", tool: "gzip", bytes: gz},
		{name: "gzip, two members", tool: "gzip", bytes: halves("gzip")},
		{name: "gzip, an empty member first", tool: "gzip", bytes: slices.Concat(empty("gzip"), gz)},
		{name: "gzip, empty members between", tool: "gzip", bytes: slices.Concat(empty("gzip"), halves("gzip"), empty("gzip"))},
		{name: "gzip, an empty member last", tool: "gzip", bytes: slices.Concat(gz, empty("gzip"))},
		{name: "gzip, all fields", tool: "gzip", bytes: gzipMember(layer)},
		{name: "gzip, a zero behind", tool: "gzip", bytes: slices.Concat(gz, zeros[:1]), zeros: true},
		{name: "gzip, zeros behind two members", tool: "gzip", bytes: slices.Concat(halves("gzip"), zeros), zeros: true},
		{name: "gzip, stored", tool: "gzip", bytes: storedGzip(t, layer)},
		{name: "zstd", tool: "zstd", bytes: zst},
		{name: "zstd, two frames", tool: "zstd", bytes: halves("zstd")},
		{name: "zstd, an empty frame first and last", tool: "zstd", bytes: slices.Concat(empty("zstd"), zst, empty("zstd"))},
		{name: "zstd, skippable frames first", tool: "zstd", bytes: slices.Concat(skipNothing, skip, zst)},
		{name: "zstd, a skippable frame between", tool: "zstd", bytes: slices.Concat(through(t, layer[:half], "zstd", "-c"), skip, through(t, layer[half:], "zstd", "-c"))},
		{name: "zstd, a skippable frame last", tool: "zstd", bytes: slices.Concat(zst, skip)},
		{name: "zstd, no checksum", tool: "zstd", bytes: through(t, layer, "zstd", "-c", "--no-check")},
		{name: "zstd, a window of 128 MiB", tool: "zstd", bytes: through(t, layer, "zstd", "-c", "--long=27")},
		{name: "bzip2", tool: "bzip2", bytes: bz},
		{name: "bzip2, two streams", tool: "bzip2", bytes: halves("bzip2")},
		{name: "bzip2, an empty stream first and last", tool: "bzip2", bytes: slices.Concat(empty("bzip2"), bz, empty("bzip2"))},
		{name: "xz", tool: "xz", bytes: xz},
		{name: "xz, two streams", tool: "xz", bytes: halves("xz")},
		{name: "xz, an empty stream first and last", tool: "xz", bytes: slices.Concat(empty("xz"), xz, empty("xz"))},
		{name: "xz, padding", tool: "xz", bytes: slices.Concat(through(t, layer[:half], "xz", "-c"), zeros[:8], through(t, layer[half:], "xz", "-c"), zeros[:4])},
		{name: "xz, no checksum", tool: "xz", bytes: through(t, layer, "xz", "-c", "--check=none")},
		{name: "xz, SHA-256", tool: "xz", bytes: through(t, layer, "xz", "-c", "--check=sha256")},

		{name: "gzip, cut in the data", bytes: gz[:len(gz)/2], err: "unexpected EOF"},
		{name: "gzip, cut before the checksum", bytes: gz[:len(gz)-8], err: "unexpected EOF"},
		{name: "gzip, cut in the checksum", bytes: gz[:len(gz)-3], err: "unexpected EOF"},
		{name: "gzip, cut in the next member's name", bytes: slices.Concat(gz, gzipMember(layer)[:18]), err: "unexpected EOF"},
		{name: "gzip, cut in the name", bytes: gzipMember(layer)[:18], err: "unexpected EOF"},
		{name: "gzip, a wrong checksum", bytes: wrong(gz, len(gz)-6), err: "invalid checksum"},
		{name: "gzip, a wrong length", bytes: wrong(gz, len(gz)-2), err: "invalid checksum"},
		{name: "gzip, junk behind", bytes: slices.Concat(gz, []byte("junk behind it")), err: "invalid header"},
		{name: "gzip, junk behind zeros", bytes: slices.Concat(gz, zeros, []byte("junk")), err: "something other than gzip data"},
		{name: "gzip, a member behind zeros", bytes: slices.Concat(gz, zeros, gz), err: "something other than gzip data"},
		{name: "zstd, cut", bytes: zst[:len(zst)-5], err: "unexpected EOF"},
		{name: "zstd, cut in a skippable frame", bytes: slices.Concat(zst, skip[:10]), err: "unexpected EOF"},
		{name: "zstd, a wrong checksum", bytes: wrong(zst, len(zst)-1), err: "CRC check failed"},
		{name: "zstd, junk behind", bytes: slices.Concat(zst, []byte("junk behind it")), err: "magic number"},
		{name: "zstd, a window of 256 MiB", bytes: through(t, layer, "zstd", "-c", "--ultra", "--long=28"), err: "window size exceeded"},
		{name: "bzip2, cut", bytes: bz[:len(bz)-5], err: "unexpected EOF"},
		{name: "bzip2, a wrong checksum", bytes: wrong(bz, 11), err: "checksum mismatch"},
		{name: "bzip2, junk behind", bytes: slices.Concat(bz, []byte("junk")), err: "bad magic value"},
		{name: "xz, cut", bytes: xz[:len(xz)-5], err: "unexpected EOF"},
		{name: "xz, a wrong end", bytes: wrong(xz, len(xz)-1), err: "xz: footer magic"},
		{name: "xz, junk behind", bytes: slices.Concat(xz, []byte("junk behind it")), err: "xz: "},
	}
}

// storedGzip is gzip data that is not compressed.
func storedGzip(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.NoCompression)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write(b)
	_ = w.Close()
	return out.Bytes()
}

func compressionLayer() []byte {
	return archive(dir("d"), file("d/f", strings.Repeat("what a layer holds ", 5000)), file("g", "x"))
}

// TestDecompress holds each form of compression against the program that is for it.
func TestDecompress(t *testing.T) {
	t.Parallel()
	content := compressionLayer()
	for _, p := range packedForms(t, content) {
		zeros := 0
		var got []byte
		stream, plain, err := layer.Decompress(bytes.NewReader(p.bytes), func() { zeros++ })
		if err == nil {
			got, err = io.ReadAll(stream)
			_ = stream.Close()
		}
		if p.err != "" {
			if err == nil || !strings.Contains(err.Error(), p.err) {
				t.Errorf("%s: %d bytes, error %v, want %q", p.name, len(got), err, p.err)
			}
			continue
		}
		want := p.bytes
		if p.tool != "" {
			if want = through(t, p.bytes, p.tool, "-dc"); !bytes.Equal(want, content) {
				t.Errorf("%s: %s itself reads something else", p.name, p.tool)
			}
		}
		if err != nil || !bytes.Equal(got, want) || plain != (p.tool == "") || (zeros > 0) != p.zeros || zeros > 1 {
			t.Errorf("%s: %d bytes of %d, plain %t, zeros %d, error %v", p.name, len(got), len(want), plain, zeros, err)
		}
	}
}

// TestCompressedImages imports each form of compression, and verifies, checks out and exports what
// became of it.
func TestCompressedImages(t *testing.T) {
	t.Parallel()
	layer := compressionLayer()
	mediaTypes := []string{
		imgspecv1.MediaTypeImageLayer, imgspecv1.MediaTypeImageLayerGzip, imgspecv1.MediaTypeImageLayerZstd, "",
		manifest.DockerV2SchemaLayerMediaTypeUncompressed, manifest.DockerV2Schema2LayerMediaType,
	}
	forms, each := &testImage{}, &testImage{}
	for n, p := range packedForms(t, layer) {
		if p.err != "" || p.tool == "" && p.name != "plain" {
			continue
		}
		forms.layers, forms.types = append(forms.layers, p.bytes), append(forms.types, mediaTypes[n%len(mediaTypes)])
		if p.name == "bzip2" {
			for _, mediaType := range mediaTypes {
				each.layers, each.types = append(each.layers, p.bytes), append(each.types, mediaType)
			}
		}
	}
	for name, i := range map[string]*testImage{"forms": forms, "one form, each type": each} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := imgspecv1.Image{Platform: testPlatform, RootFS: imgspecv1.RootFS{Type: "layers"}}
			streams := make([][]byte, len(i.layers))
			for n := range i.layers {
				streams[n] = layer
				c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, digest.FromBytes(layer))
			}
			i.config = marshal(t, c)
			root := goesThrough(t, i, streams)
			if b, err := os.ReadFile(filepath.Join(root, "g")); err != nil || string(b) != "x" {
				t.Errorf("%q, %v", b, err)
			}
		})
	}
}

// TestZerosBehindGzip holds that the user learns, once a layer, what was ignored.
func TestZerosBehindGzip(t *testing.T) {
	t.Parallel()
	r := newTestRun(t, testOptions{})
	layer := append(zipped(t, compressionLayer()), make([]byte, 10)...)
	if err := r.importImage(t, "a", &testImage{layers: [][]byte{layer}}); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(r.said.String(), "zeros follow its gzip data"); n != 1 {
		t.Errorf("said %d times: %s", n, r.said.String())
	}
}
