package main

import (
	gotar "archive/tar"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"go.podman.io/image/v5/types"

	"ostree-image/internal/imageref"
	"ostree-image/internal/ostree"
	"ostree-image/internal/proc"
	"ostree-image/internal/spool"
	"ostree-image/internal/testutil"
)

// corpus returns the archives that Go and tar-split test their readers with, by name.
func corpus(t testing.TB) map[string][]byte {
	t.Helper()
	archives, seen := map[string][]byte{}, map[digest.Digest]bool{}
	add := func(origin, dir string) {
		files, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range files {
			name := filepath.Base(path)
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			var r io.Reader = f
			switch filepath.Ext(name) {
			case ".gz", "": // without it is one that is named by its digest
				if r, err = gzip.NewReader(r); err != nil {
					t.Fatal(err)
				}
			case ".bz2":
				r = bzip2.NewReader(r)
			case ".base64":
				r = base64.NewDecoder(base64.StdEncoding, r)
			case ".txt":
				_ = f.Close()
				continue
			}
			b, err := io.ReadAll(r)
			_ = f.Close()
			if err != nil {
				t.Fatal(err)
			}
			if d := digest.FromBytes(b); !seen[d] { // most of tar-split's are Go's
				seen[d] = true
				archives[origin+"/"+name] = b
			}
		}
	}
	add("go", filepath.Join(strings.TrimSpace(testutil.Run(t, "go", "env", "GOROOT")), "src/archive/tar/testdata"))
	split := strings.TrimSpace(testutil.Run(t, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/vbatts/tar-split"))
	add("tar-split", filepath.Join(split, "archive/tar/testdata"))
	add("asm", filepath.Join(split, "tar/asm/testdata"))
	return archives
}

// refusedArchives are those of the corpus that any reader can read and an import refuses, and why.
var refusedArchives = map[string]string{
	"asm/iso-8859.tar.gz":          "is not UTF-8",
	"go/gnu-not-utf8.tar":          "is not UTF-8",
	"go/gnu-sparse-big.tar.base64": "is a sparse file of 60000000000 bytes",
	"go/pax-sparse-big.tar.base64": "is a sparse file of 60000000000 bytes",
}

// readable tells whether an archive can be read to its end, by the readers of Go and of tar-split.
// Holes are not read: what would be is no more than a gigabyte.
func readable(b []byte) bool {
	in := gotar.NewReader(bytes.NewReader(b))
	for {
		_, err := in.Next()
		if err == io.EOF {
			return true
		}
		if err != nil {
			return false
		}
		if _, err := io.CopyN(io.Discard, in, 1<<30); err != nil && !errors.Is(err, io.EOF) {
			return false
		}
	}
}

// Every archive that Go and tar-split read in their own tests comes back byte for byte, or is
// refused and leaves nothing.
func TestCorpus(t *testing.T) {
	for name, b := range corpus(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newTestRun(t, testOptions{})
			i := &testImage{layers: [][]byte{b}}
			err := r.importImage(t, "a", i)
			if err == nil {
				if want := refusedArchives[name]; want != "" {
					t.Errorf("it is imported, and was to be refused: %s", want)
				}
				r.sameLayers(t, "a", i, [][]byte{b})
				return
			}
			r.nothingLeft(t)
			text := testutil.ErrText(err)
			if !strings.Contains(text, "layer "+digest.FromBytes(b).Encoded()+": ") {
				t.Errorf("the error does not name the layer: %s", text)
			}
			if want, known := refusedArchives[name]; known {
				if !strings.Contains(text, want) {
					t.Errorf("refused with %q, want %q", text, want)
				}
			} else if readable(b) {
				t.Errorf("a readable archive is refused: %s", text)
			}
		})
	}
}

// ostree fails now and then when another ends at the moment when it starts. It is started again.
func TestLostRace(t *testing.T) {
	const said = "error: opendir(staging-ca849a65-20c6-4cb6-bef6-ed52fd141fa6-C4y2XY): No such file or directory\n"
	for _, tt := range []struct {
		name   string
		mode   string
		engine engineName
		size   int64
	}{
		{"stream", ostree.BareUser, engineStream, 3},
		{"a large stream", ostree.BareUser, engineStream, 2 * spool.Small},             // whose commit begins before all of the layer is there
		{"a surely large one", ostree.BareUser, engineStream, surelyLarge},             // and with the first byte
		{"a large one that waits", ostree.BareUserOnly, engineStream, 2 * spool.Small}, // on disk, for one commit
		{"tar", ostree.BareUser, engineTar, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rules := []testutil.FakeRule{
				{Match: "--branch=", Stderr: said, Exit: 1, Once: true},
				{Match: "pull-local", Stderr: said, Exit: 1, Once: true},
			}
			if tt.engine == engineStream {
				rules = append(rules, testutil.FakeRule{Match: "--tree=tar=-", Stderr: said, Exit: 1, Once: true})
			}
			r := newTestRun(t, testOptions{mode: tt.mode, ostree: testutil.FakeTool(t, "ostree", rules...), unpack: tt.engine})
			layer := tarOf(t, &gotar.Header{Name: "a", Typeflag: gotar.TypeReg, Mode: 0o644, Size: tt.size})
			i := &testImage{layers: [][]byte{layer}}
			if err := r.importImage(t, "a", i); err != nil {
				t.Fatal(err)
			}
			r.sameLayers(t, "a", i, [][]byte{layer})
			r.nothingInTmp(t)
		})
	}
}

// TestLostRaces: a commit that loses every race begins anew with the extraction of its layer.
func TestLostRaces(t *testing.T) {
	t.Parallel()
	layer := tarOf(t, &gotar.Header{Name: "a", Typeflag: gotar.TypeReg, Mode: 0o644, Size: 3})
	lost := testutil.FakeRule{
		Match: "--branch=" + imageref.BlobRef(digest.FromBytes(layer)), Exit: 1, Once: true,
		Stderr: "error: opendir(staging-ca849a65-20c6-4cb6-bef6-ed52fd141fa6-C4y2XY): No such file or directory\n",
	}
	r := newTestRun(t, testOptions{ostree: testutil.FakeTool(t, "ostree", slices.Repeat([]testutil.FakeRule{lost}, raceRetries+1)...), unpack: engineTar})
	i := &testImage{layers: [][]byte{layer}}
	if err := r.importImage(t, "a", i); err != nil {
		t.Fatal(err)
	}
	r.sameLayers(t, "a", i, [][]byte{layer})
	r.nothingInTmp(t)
}

// The paths of a layer's files can be longer than the arguments of a process may be.
func TestManyLongPaths(t *testing.T) {
	t.Parallel()
	dir := strings.Repeat(strings.Repeat("d", 200)+"/", 15)
	var headers []*gotar.Header
	var paths []string
	for i := range 1500 {
		name := fmt.Sprint(dir, "file", i)
		paths = append(paths, name)
		headers = append(headers, &gotar.Header{Name: name, Typeflag: gotar.TypeReg, Mode: 0o644, Size: 3})
	}
	if err := exec.Command("true", paths...).Run(); !errors.Is(err, syscall.E2BIG) {
		t.Fatalf("the list is too short for this test: %v", err)
	}
	i := &testImage{layers: [][]byte{tarOf(t, headers...)}}
	for mode, engine := range map[string]engineName{ostree.BareUser: engineStream, ostree.Archive: engineTar} {
		r := newTestRun(t, testOptions{mode: mode, unpack: engine})
		if err := r.importImage(t, "a", i); err != nil {
			t.Fatal(err)
		}
		r.sameLayers(t, "a", i, i.layers)
		r.allWell(t, 1)
		if err := r.checkoutTo(t, "a", filepath.Join(t.TempDir(), "root"), ostree.CheckoutOptions{}); err != nil {
			t.Error(err)
		}
	}
}

// tarOf writes an archive. A file's bytes are its name, over and over.
func tarOf(t testing.TB, headers ...*gotar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gotar.NewWriter(&b)
	for _, h := range headers {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == gotar.TypeReg {
			if _, err := io.CopyN(w, testutil.Endless(h.Name+"\n"), h.Size); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// An image that is there under a remote is imported under its own name all the same.
func TestSameUnderRemote(t *testing.T) {
	from := newTestRun(t, testOptions{mode: ostree.Archive})
	if err := from.importImage(t, "a", otherImage(t)); err != nil {
		t.Fatal(err)
	}
	r := newTestRun(t, testOptions{})
	testutil.Run(t, "ostree", "remote", "add", "--no-gpg-verify", "--repo="+r.repo.path, "origin", "file://"+from.repo.path)
	for ref := range from.commits(t) {
		testutil.Run(t, "ostree", "pull", "--repo="+r.repo.path, "origin", ref)
	}
	if err := r.importImage(t, "a", otherImage(t)); err != nil {
		t.Fatal(err)
	}
	got := r.commits(t)
	for ref, sum := range from.commits(t) {
		if got[ref] != sum || got["origin:"+ref] != sum {
			t.Errorf("%s is %q, and %q under the remote; want %q", ref, got[ref], got["origin:"+ref], sum)
		}
	}
}

// fuzzLayer makes a layer out of a fuzzer's bytes: names from a small stock, so that they meet;
// every type and format.
func fuzzLayer(data []byte) []byte {
	next := func() int {
		if len(data) == 0 {
			return 0
		}
		b := data[0]
		data = data[1:]
		return int(b)
	}
	parts := []string{
		"a", "b", "c", "usr", "etc", "é", "e\u0301", ".wh.a", ".wh..wh..opq", "with blank", "new\nline", "-", "...", "ostree",
		strings.Repeat("n", 120), strings.Repeat("m", 255), "\x01\x7f", "a'b\"", "*", "馬",
	}
	prefixes := []string{"", "", "", "", "./", "/", ".//", "d/", "d/", "d/e/", "d/e/f/", "d/./"} // which few entries replace
	name := func() string {
		s := prefixes[next()%len(prefixes)] + parts[next()%len(parts)]
		switch n := next(); n % 32 {
		case 0:
			s += "/" + parts[n/32]
		case 1:
			s = "d"
		}
		return s
	}
	kinds := []byte{
		gotar.TypeReg, gotar.TypeReg, gotar.TypeReg, gotar.TypeDir, gotar.TypeDir, gotar.TypeSymlink, gotar.TypeLink, gotar.TypeLink,
		gotar.TypeChar, gotar.TypeBlock, gotar.TypeFifo, gotar.TypeCont, gotar.TypeXGlobalHeader, 0,
	}
	formats := []gotar.Format{gotar.FormatUnknown, gotar.FormatUSTAR, gotar.FormatPAX, gotar.FormatGNU}
	var b bytes.Buffer
	w := gotar.NewWriter(&b)
	for range 25 {
		if len(data) == 0 {
			break
		}
		h := &gotar.Header{
			Name: name(), Typeflag: kinds[next()%len(kinds)], Format: formats[next()%len(formats)], Mode: int64(next()) * 16 & 0o7777,
			ModTime: time.Unix(int64(next())*10_000_000-1_000_000, int64(next()%2)*5),
		}
		if n := next(); n > 128 {
			h.Uid, h.Gid, h.Uname = n*n*n, next(), "user"
		}
		switch h.Typeflag {
		case gotar.TypeReg, gotar.TypeCont:
			h.Size = int64(next()) * int64(next()%16)
		case gotar.TypeDir:
			h.Name += "/"
		case gotar.TypeSymlink, gotar.TypeLink:
			h.Linkname = name()
			if h.Typeflag == gotar.TypeSymlink && next()%3 == 0 {
				h.Linkname = "../" + h.Linkname
			}
		case gotar.TypeXGlobalHeader:
			*h = gotar.Header{Name: h.Name, Typeflag: h.Typeflag, PAXRecords: map[string]string{"comment": "é"}}
		}
		if n := next(); n%5 == 0 && h.Format != gotar.FormatGNU && h.Format != gotar.FormatUSTAR {
			h.PAXRecords = map[string]string{"SCHILY.xattr.user." + parts[n/5%6]: strings.Repeat("v", n), "SCHILY.xattr.trusted.x": "y"}
		}
		if err := w.WriteHeader(h); err != nil {
			continue // not every header fits into every format
		}
		if h.Size > 0 {
			_, _ = io.CopyN(w, testutil.Endless(h.Name), h.Size)
		}
	}
	end := next()
	if end%4 != 0 {
		_ = w.Close()
	} else {
		_ = w.Flush()
	}
	if end%3 == 0 {
		b.Write(bytes.Repeat([]byte{byte(end)}, end*7))
	}
	layer := b.Bytes()
	if at := next()*256 + next(); end%7 == 0 && at < len(layer) {
		layer[at] ^= byte(next()) // often what no archiver writes
	}
	return layer
}

// FuzzRoundTrip holds that a layer which is imported comes back byte for byte, and that one which
// is not was refused by the program itself. It goes without images: a layer into a staging
// repository, and out of it. Give it -fuzzminimizetime=1x, or the time goes into making inputs
// smaller that are merely new.
func FuzzRoundTrip(f *testing.F) {
	random := rand.New(rand.NewPCG(7, 7))
	for range 25 {
		b := make([]byte, 30+random.IntN(400))
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		f.Add(b)
	}
	modes := []string{ostree.BareUser, ostree.Bare, ostree.Archive, ostree.BareUserOnly}
	r := newTestRun(f, testOptions{mode: modes[os.Getpid()%len(modes)]})
	ctx := context.Background()
	mode, err := r.repo.config(ctx, "core.mode")
	if err != nil {
		f.Fatal(err)
	}
	features, err := ostreeVersion(ctx, r.runner)
	if err != nil {
		f.Fatal(err)
	}
	st, err := newStaging(ctx, r.settings, r.repo, mode, features)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := st.remove(); err != nil {
			f.Error(err)
		}
	})
	if err := st.ready(ctx); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		layer := fuzzLayer(data)
		d := digest.FromBytes(layer)
		staged, file, err := spool.NewBlob(st.blobDir(), types.BlobInfo{Digest: d, Size: int64(len(layer))}, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			_ = os.Remove(staged.Path)
			_ = os.Remove(staged.Path + "." + imageref.FileTarSplit)
		}()
		if err := staged.Fill(ctx, bytes.NewReader(layer), file); err != nil {
			t.Fatal(err)
		}
		l, err := st.importLayer(ctx, staged, false)
		var terr *proc.ToolError
		if errors.As(err, &terr) {
			t.Fatalf("a tool has failed: %v", err)
		}
		if err != nil {
			t.Logf("refused: %v", err)
			return
		}
		store := &blobStore{repo: st.repo, refs: map[string]bool{imageref.BlobRef(d): true}}
		if l.kept || l.exact && !l.inline {
			store.refs[imageref.SidecarRef(d)] = true
		}
		b, err := store.blob(ctx, d)
		if err != nil {
			t.Fatal(err)
		}
		stream, err := store.open(ctx, b)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(stream)
		_ = stream.Close()
		if err != nil || !bytes.Equal(got, layer) {
			t.Fatalf("%d bytes came back of %d: %v", len(got), len(layer), err)
		}
		for ref := range store.refs {
			testutil.Run(t, "ostree", "refs", "--repo="+st.repo.path, "--delete", ref)
		}
	})
}
