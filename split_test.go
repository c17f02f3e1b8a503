package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/pkg/errors"

	"ostree-image/internal/normalize"
	"ostree-image/internal/tarstream"
)

// readDealt returns what a part's stream holds: for each name, its header and payload as a line.
func readDealt(t *testing.T, stream []byte) map[string]string {
	t.Helper()
	found := map[string]string{}
	for tr := tar.NewReader(bytes.NewReader(stream)); ; {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.Trim(strings.TrimPrefix(hdr.Name, "./"), "/")
		if found[name] != "" && hdr.Typeflag != tar.TypeDir {
			t.Errorf("%q is there twice", name)
		}
		found[name] = fmt.Sprintf("%c %o %d:%d %s %s", hdr.Typeflag, hdr.Mode, hdr.Uid, hdr.Gid, hdr.Linkname, body)
	}
}

// deal deals entries out; the payload of a file is its own name, again and again.
func deal(t *testing.T, entries []tarstream.Entry, parts, maxHeld int) []map[string]string {
	t.Helper()
	streams := make([]bytes.Buffer, parts)
	outs := make([]io.Writer, parts)
	for part := range streams {
		outs[part] = &streams[part]
	}
	s := newSplitter(outs, normalize.NewFilter(permissions{}, nil).Key)
	s.maxHeld = maxHeld
	for _, e := range entries {
		if err := s.WriteEntry(e); err != nil {
			t.Fatal(err)
		}
		if e.Size == 0 {
			continue
		}
		body := strings.Repeat(e.Name, 100)[:e.Size]
		if n, err := s.Write([]byte(body)); err != nil || n != len(body) {
			t.Fatalf("%d bytes written of %d: %v", n, len(body), err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	dealt := make([]map[string]string, parts)
	for part := range streams {
		dealt[part] = readDealt(t, streams[part].Bytes())
	}
	return dealt
}

// randomEntries are those of a layer as layerFilter makes them: a name once, a link after the file
// that it leads to, and every directory before what it holds, some once more behind that.
func randomEntries(r *rand.Rand, n int) []tarstream.Entry {
	dirs := []string{""}
	var files []string
	var entries, after []tarstream.Entry
	add := func(e tarstream.Entry, late bool) {
		e.UID = r.Uint32N(3)
		if late {
			entries = append(entries, tarstream.Entry{Name: e.Name, Kind: tarstream.Dir, Mode: 0o755})
			after = append(after, e)
		} else {
			entries = append(entries, e)
		}
	}
	add(tarstream.Entry{Kind: tarstream.Dir, Mode: 0o750}, r.IntN(2) == 0)
	for i := range n {
		name := path.Join(dirs[r.IntN(len(dirs))], fmt.Sprintf("n%d", i))
		switch kind := r.IntN(10); {
		case kind < 3:
			dirs = append(dirs, name)
			add(tarstream.Entry{Name: name, Kind: tarstream.Dir, Mode: 0o700 + r.Uint32N(64)}, r.IntN(4) == 0)
		case kind == 3:
			add(tarstream.Entry{Name: name, Kind: tarstream.Symlink, Link: "anywhere", Mode: 0o777}, false)
		case kind == 4 && len(files) > 0:
			add(tarstream.Entry{Name: name, Kind: tarstream.HardLink, Link: files[r.IntN(len(files))], Mode: 0o644}, false)
		default:
			files = append(files, name)
			add(tarstream.Entry{Name: name, Kind: tarstream.File, Size: int64(r.IntN(2 * len(name))), Mode: 0o644}, false)
		}
	}
	r.Shuffle(len(after), func(i, j int) { after[i], after[j] = after[j], after[i] })
	return slices.Concat(entries, after)
}

func TestDealt(t *testing.T) {
	t.Parallel()
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		entries := randomEntries(r, 1+r.IntN(60))
		parts := 2 + r.IntN(maxParts-1)
		whole := deal(t, entries, 1, maxHeldDirs)[0]
		dealt := deal(t, entries, parts, 1+r.IntN(20))
		together := map[string]string{}
		for part, have := range dealt {
			maps.Copy(together, have)
			for name, what := range have {
				if what != whole[name] {
					t.Errorf("seed %d: %q is %q in part %d, and %q in the layer", seed, name, what, part, whole[name])
				}
				for dir := name; dir != ""; {
					dir = normalize.ParentOf(dir)
					if have[dir] == "" {
						t.Errorf("seed %d: part %d has %q, and not %q above it", seed, part, name, dir)
					}
				}
			}
		}
		if !maps.Equal(together, whole) {
			t.Errorf("seed %d: the parts hold %d entries, the layer %d", seed, len(together), len(whole))
		}
		for _, e := range entries {
			parts := 0
			for _, have := range dealt {
				if have[e.Name] != "" {
					parts++
				}
				if e.Kind == tarstream.HardLink && have[e.Name] != "" && have[e.Link] == "" {
					t.Errorf("seed %d: a part has the hard link %q, and not %q", seed, e.Name, e.Link)
				}
			}
			if e.Kind != tarstream.Dir && parts != 1 {
				t.Errorf("seed %d: %q is in %d parts", seed, e.Name, parts)
			}
		}
	}
}

// Of many directories without a file, only so many entries are kept back.
func TestDealerHoldsLittle(t *testing.T) {
	t.Parallel()
	s := newSplitter([]io.Writer{io.Discard, io.Discard}, normalize.NewFilter(permissions{}, nil).Key)
	s.maxHeld = 10
	for i := range 1000 {
		if err := s.WriteEntry(tarstream.Entry{Name: fmt.Sprintf("d%d", i), Kind: tarstream.Dir, Mode: 0o755}); err != nil {
			t.Fatal(err)
		}
	}
	held := 0
	for _, d := range s.dirs {
		if d.held != nil {
			held++
		}
	}
	if held == 0 || held > 10 {
		t.Errorf("%d entries are held", held)
	}
}

// The parts are even, and hardly a file lies where a merge must write it again: in a directory of
// several parts, and not in the first.
func TestDealtEvenly(t *testing.T) {
	t.Parallel()
	var entries []tarstream.Entry
	for d := range 40 {
		top := fmt.Sprintf("usr/d%02d", d)
		for f := range 10 { // half of them beside directories, half below
			entries = append(entries,
				tarstream.Entry{Name: fmt.Sprintf("%s/f%d", top, f), Kind: tarstream.File, Mode: 0o644, Size: 5},
				tarstream.Entry{Name: fmt.Sprintf("%s/g%d/f", top, f), Kind: tarstream.File, Mode: 0o644, Size: 5})
		}
	}
	for _, parts := range []int{2, 3, 4, 8} {
		dealt := deal(t, entries, parts, maxHeldDirs)
		again := 0
		for part, have := range dealt {
			files := 0
			for name, what := range have {
				if what[0] == '5' {
					continue
				}
				files++
				if part > 0 && slices.ContainsFunc(slices.Concat(dealt[:part], dealt[part+1:]), func(other map[string]string) bool {
					return other[normalize.ParentOf(name)] != ""
				}) {
					again++
				}
			}
			if even := len(entries) / parts; files < even*3/4 || files > even*5/4 {
				t.Errorf("part %d of %d has %d of %d files", part, parts, files, len(entries))
			}
		}
		if again > len(entries)/20 {
			t.Errorf("%d of %d files must be written again", again, len(entries))
		}
	}
}
