package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"

	"ostree-image/internal/normalize"
	"ostree-image/internal/ostree"
	"ostree-image/internal/tarstream"
	"ostree-image/internal/testutil"
	"ostree-image/internal/treesum"
)

// TestTreesum holds the checksums that treesum computes against those of ostree, in all modes.
func TestTreesum(t *testing.T) {
	t.Parallel()
	testutil.NeedRoot(t)
	const seed = 1
	t.Logf("seed %d", seed)
	trees := map[string][]tarstream.Entry{"empty": nil}
	var wide []tarstream.Entry
	for i := range 2500 { // more than 65,535 bytes of names, and of checksums
		wide = append(wide, tarstream.Entry{Name: fmt.Sprintf("file-%04d-with-a-name-of-some-length", i), Kind: tarstream.File, Mode: 0o644})
	}
	trees["wide"] = wide
	deep := ""
	for range 400 {
		deep += "/d"
		trees["deep"] = append(trees["deep"], tarstream.Entry{Name: deep[1:], Kind: tarstream.Dir, Mode: 0o700})
	}
	r := rand.New(rand.NewPCG(seed, seed))
	for i := range 12 {
		trees[fmt.Sprint("random ", i)] = randomTree(r)
	}
	for _, mode := range []string{ostree.Bare, ostree.BareUser, ostree.BareUserOnly, ostree.Archive} {
		repo := newRepo(t, mode)
		perms := permissions{canonical: mode == ostree.BareUserOnly}
		for name, entries := range trees {
			if name == "wide" && mode != ostree.Archive {
				continue // it is about sizes, which are the same everywhere
			}
			var stream bytes.Buffer
			tw, sum := tarstream.NewWriter(&stream), treesum.NewWriter()
			for _, e := range append([]tarstream.Entry{{Kind: tarstream.Dir, Mode: 0o755}}, entries...) {
				body := bytes.Repeat([]byte{'x'}, int(e.Size))
				for n, w := range []normalize.EntryWriter{tw, sum} {
					if n == 1 {
						perms.Own(&e)
					}
					if err := w.WriteEntry(e); err != nil {
						t.Fatal(err)
					}
					if _, err := w.Write(body); err != nil {
						t.Fatal(err)
					}
				}
			}
			for _, w := range []normalize.EntryWriter{tw, sum} {
				if err := w.Close(); err != nil {
					t.Fatal(err)
				}
			}
			commit := exec.Command("ostree", "commit", "--repo="+repo, "--orphan", "--fsync=false", "--tree=tar=-")
			commit.Stdin, commit.Stderr = &stream, os.Stderr
			commit.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
			out, err := commit.Output()
			if err != nil {
				t.Fatalf("%s, %s: %v", mode, name, err)
			}
			info, err := ostree.ParseCommit(testutil.Run(t, "ostree", "show", "--raw", "--repo="+repo, strings.TrimSpace(string(out))))
			if err != nil {
				t.Fatal(err)
			}
			if got, want := sum.Root(), (treesum.Root{Tree: info.Root, Meta: info.RootMeta}); got != want {
				t.Errorf("%s, %s: %v, ostree has %v", mode, name, got, want)
			}
		}
	}
}

// randomTree returns a small tree, parents first.
func randomTree(r *rand.Rand) []tarstream.Entry {
	var entries []tarstream.Entry
	dirs, files := []string{""}, []string{}
	modes := []uint32{0, 0o644, 0o755, 0o4755, 0o2711, 0o1777, 0o666, 0o400, 0o7777}
	ids := []uint32{0, 1, 1000, 65534, 1<<31 - 2}
	for i := range r.IntN(40) {
		name := strings.TrimPrefix(dirs[r.IntN(len(dirs))]+"/"+fmt.Sprintf("%c%dé", 'a'+r.IntN(26), i), "/")
		e := tarstream.Entry{Name: name, Mode: modes[r.IntN(len(modes))], UID: ids[r.IntN(len(ids))], GID: ids[r.IntN(len(ids))]}
		for range r.IntN(3) {
			if e.Xattrs == nil {
				e.Xattrs = map[string]string{}
			}
			e.Xattrs[fmt.Sprintf("user.%c", 'a'+r.IntN(20))] = strings.Repeat("v", 1+r.IntN(300))
		}
		switch n := r.IntN(10); {
		case n < 3:
			e.Kind, dirs = tarstream.Dir, append(dirs, name)
		case n == 3:
			e.Kind, e.Link, e.Xattrs, e.Mode = tarstream.Symlink, "to/"+strings.Repeat("t", r.IntN(300)), nil, 0o777
		case n == 4 && len(files) > 0:
			e.Kind, e.Link, e.Xattrs = tarstream.HardLink, files[r.IntN(len(files))], nil
		default:
			e.Kind, e.Size, files = tarstream.File, int64(r.IntN(2000)), append(files, name)
		}
		entries = append(entries, e)
	}
	return entries
}
