package main

import (
	gotar "archive/tar"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"encoding/base64"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
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
	add("go", filepath.Join(strings.TrimSpace(tool(t, "go", "env", "GOROOT")), "src/archive/tar/testdata"))
	split := strings.TrimSpace(tool(t, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/vbatts/tar-split"))
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

// readable tells whether an archive can be read to its end, by the readers of Go and of tar-split. Holes are not read: what would be
// is no more than a gigabyte.
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
		if _, err := io.CopyN(io.Discard, in, 1<<30); err != nil && err != io.EOF {
			return false
		}
	}
}

// Every archive that Go and tar-split read in their own tests comes back byte for byte, or is refused and leaves nothing.
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
				r.sameLayers(t, "a", i, [][]byte{b}, true)
				return
			}
			r.nothingLeft(t)
			text := errText(err)
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
	for _, engine := range []engineName{engineStream, engineTar} {
		t.Run(string(engine), func(t *testing.T) {
			rules := []fakeRule{
				{Match: "--branch=", Stderr: said, Exit: 1, Once: true},
				{Match: "pull-local", Stderr: said, Exit: 1, Once: true},
			}
			if engine == engineStream {
				rules = append(rules, fakeRule{Match: "--tree=tar=-", Stderr: said, Exit: 1, Once: true})
			}
			r := newTestRun(t, testOptions{ostree: fakeTool(t, "ostree", rules...), unpack: engine})
			layer := tarOf(t, &gotar.Header{Name: "a", Typeflag: gotar.TypeReg, Mode: 0o644, Size: 3})
			i := &testImage{layers: [][]byte{layer}}
			if err := r.importImage(t, "a", i); err != nil {
				t.Fatal(err)
			}
			r.sameLayers(t, "a", i, [][]byte{layer}, true)
			r.nothingInTmp(t)
		})
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
			if _, err := io.CopyN(w, endless(h.Name+"\n"), h.Size); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// endless gives a text over and over.
type endless string

func (e endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = e[i%len(e)]
	}
	return len(p), nil
}

// An image that is there under a remote is imported under its own name all the same.
func TestSameUnderRemote(t *testing.T) {
	from := newTestRun(t, testOptions{mode: modeArchive})
	if err := from.importImage(t, "a", otherImage(t)); err != nil {
		t.Fatal(err)
	}
	r := newTestRun(t, testOptions{})
	tool(t, "ostree", "remote", "add", "--no-gpg-verify", "--repo="+r.repo.path, "origin", "file://"+from.repo.path)
	for ref := range from.commits(t) {
		tool(t, "ostree", "pull", "--repo="+r.repo.path, "origin", ref)
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
