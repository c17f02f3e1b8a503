package main

import (
	gotar "archive/tar"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/imageref"
	"ostree-image/internal/ostree"
	"ostree-image/internal/testutil"
)

// smallImage has a layer that its tree gives back, one that is kept as it came, and a config.
func smallImage(t testing.TB) *testImage {
	t.Helper()
	twice := tarOf(t,
		&gotar.Header{Name: "etc/", Typeflag: gotar.TypeDir, Mode: 0o750},
		&gotar.Header{Name: "etc/twice", Typeflag: gotar.TypeReg, Mode: 0o644, Size: 20},
		&gotar.Header{Name: "etc/twice", Typeflag: gotar.TypeReg, Mode: 0o600, Size: 30},
	)
	once := tarOf(t,
		&gotar.Header{Name: "usr/", Typeflag: gotar.TypeDir, Mode: 0o755},
		&gotar.Header{Name: "usr/file", Typeflag: gotar.TypeReg, Mode: 0o4755, Size: 3000},
		&gotar.Header{Name: "usr/link", Typeflag: gotar.TypeSymlink, Linkname: "file", Mode: 0o777},
		&gotar.Header{Name: "usr/name", Typeflag: gotar.TypeLink, Linkname: "usr/file"},
	)
	return &testImage{layers: [][]byte{once, twice}}
}

// otherImage shares nothing with smallImage but what is empty.
func otherImage(t testing.TB) *testImage {
	t.Helper()
	return &testImage{layers: [][]byte{tarOf(t, &gotar.Header{Name: "other", Typeflag: gotar.TypeReg, Mode: 0o640, Uid: 7, Size: 77})}}
}

// objects returns the paths of a repository's objects.
func objects(t testing.TB, repo string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(repo, "objects/??/*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no objects in %s: %v", repo, err)
	}
	slices.Sort(files)
	return files
}

// damaged runs f on copies of a repository, in each of which one object is not what it was.
func damaged(t *testing.T, repo string, kinds []string, change func(t *testing.T, path string), f func(t *testing.T, repo, object string)) {
	t.Helper()
	const most = 5 // of a kind: each costs a copy of the repository, and some ten processes
	taken := map[string]int{}
	for _, path := range objects(t, repo) {
		kind := filepath.Ext(path)
		if taken[kind]++; !slices.Contains(kinds, kind) || taken[kind] > most {
			continue
		}
		sum := filepath.Base(filepath.Dir(path)) + filepath.Base(path)
		t.Run(sum[:8]+kind, func(t *testing.T) {
			t.Parallel()
			// fsck writes into state/ what it finds, so each has a copy of its own.
			other := filepath.Join(t.TempDir(), "repo")
			testutil.Run(t, "cp", "-a", repo, other)
			change(t, filepath.Join(other, strings.TrimPrefix(path, repo)))
			f(t, other, sum)
		})
	}
}

func write(t testing.TB, path string, b []byte) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0) // the same file, with its attributes
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	if _, err := file.Write(b); err != nil {
		t.Fatal(err)
	}
}

// flip returns what changes one bit of an object, or a link's target.
func flip(at func(size int) int) func(t *testing.T, path string) {
	return func(t *testing.T, path string) {
		if target, err := os.Readlink(path); err == nil {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(string(target[0]^1)+target[1:], path); err != nil {
				t.Fatal(err)
			}
			return
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) == 0 {
			b = []byte{1}
		} else {
			b[at(len(b))] ^= 0x10
		}
		write(t, path, b)
	}
}

// owners returns which images need an object, by its checksum.
func (r *testRun) owners(t testing.TB, names ...string) map[string][]string {
	t.Helper()
	owners := map[string][]string{}
	for _, name := range names {
		ref := r.reference(t, name)
		blobs, err := r.repo.imageBlobs(t.Context(), ref.ref())
		if err != nil {
			t.Fatal(err)
		}
		revs := []string{ref.ref()}
		for _, b := range blobs {
			revs = append(revs, imageref.BlobRef(b.Digest))
			if r.commits(t)[imageref.SidecarRef(b.Digest)] != "" {
				revs = append(revs, imageref.SidecarRef(b.Digest))
			}
		}
		for _, rev := range revs {
			text := testutil.Run(t, "ostree", "rev-parse", "--repo="+r.repo.path, rev) + testutil.Run(t, "ostree", "ls", "-R", "-C", "--repo="+r.repo.path, rev)
			for _, sum := range checksums.FindAllString(text, -1) {
				if !slices.Contains(owners[sum], ref.image) {
					owners[sum] = append(owners[sum], ref.image)
				}
			}
		}
	}
	return owners
}

var checksums = regexp.MustCompile(`\b[0-9a-f]{64}\b`)

// Whatever happens to an object, verify says so of the images that need it, list shows the others,
// and nothing is pruned.
func TestDamagedObject(t *testing.T) {
	middle := flip(func(n int) int { return n / 2 })
	tests := []struct {
		name, mode string
		kinds      []string // of the objects that are damaged
		change     func(t *testing.T, path string)
	}{
		{"flipped bit", ostree.Bare, []string{".file"}, middle},
		{"flipped bit", ostree.Archive, []string{".commit", ".dirtree", ".dirmeta", ".filez"}, middle},
		{"flipped first byte", ostree.BareUser, []string{".dirtree"}, flip(func(int) int { return 0 })},
		{"flipped size", ostree.Archive, []string{".filez"}, flip(func(n int) int { return min(15, n-1) })},
		{"gone", ostree.BareUser, []string{".commit", ".dirtree", ".file"}, func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}},
		{"cut", ostree.Archive, []string{".commit"}, func(t *testing.T, path string) {
			if err := os.Truncate(path, 5); err != nil {
				t.Fatal(err)
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name+" "+tt.mode, func(t *testing.T) {
			whole := newTestRun(t, testOptions{mode: tt.mode})
			t.Parallel()
			for name, i := range map[string]*testImage{"small": smallImage(t), "other": otherImage(t)} {
				if err := whole.importImage(t, name, i); err != nil {
					t.Fatal(err)
				}
			}
			owners := whole.owners(t, "small", "other")
			damaged(t, whole.repo.path, tt.kinds, tt.change, func(t *testing.T, repo, object string) {
				sum := strings.TrimSuffix(object, filepath.Ext(object))
				if len(owners[sum]) == 0 {
					t.Fatalf("no image needs object %s", object)
				}
				r := newTestRun(t, testOptions{repo: repo})
				before := objects(t, repo)
				_, perr := pruneRepository(t.Context(), r.settings, r.repo, false, func([]string) {})
				if after := objects(t, repo); !slices.Equal(before, after) {
					t.Errorf("prune (%v) has removed objects: %q", perr, without(before, after))
				}
				if perr != nil && errdefs.ExitStatus(t.Context(), perr) != errdefs.StatusCheck {
					t.Errorf("prune ends with %v", perr)
				}

				var broken []string
				images, err := r.repo.listImages(t.Context(), imageListOptions{parallel: 2, unpacked: true, broken: func(name string, err error) {
					broken = append(broken, name)
					if strings.ContainsAny(testutil.ErrText(err), "\n\x00") || len(testutil.ErrText(err)) > 2000 {
						t.Errorf("list says of %s: %q", name, err)
					}
				}})
				if err != nil {
					t.Errorf("list: %v", err)
				}
				if len(images)+len(broken) != 2 || len(without(broken, owners[sum])) > 0 {
					t.Errorf("list cannot read %q, and it is %q that needs the object", broken, owners[sum])
				}

				results, err := verifyImages(t.Context(), r.settings, r.repo, nil, 2)
				if err != nil || len(results) != 2 {
					t.Fatalf("verify: %d results, %v", len(results), err)
				}
				for _, result := range results {
					// A lost or cut object ends fsck, which has not checked the rest then.
					stopped := strings.Contains(fmt.Sprint(result.Problems), "ostree fsck: No such metadata object") ||
						strings.Contains(fmt.Sprint(result.Problems), "ostree fsck: Loading commit for ref") ||
						strings.Contains(fmt.Sprint(result.Problems), "ostree fsck: Invalid checksum of length 0")
					if needs := slices.Contains(owners[sum], result.Name); result.OK && needs || !result.OK && !needs && !stopped {
						t.Errorf("verify says of %s (which needs the object: %v): %+v", result.Name, needs, result)
					}
				}
			})
		})
	}
}

// TestFsckLines: what fsck says is told of the commits that it names, and of all images where it
// names none.
func TestFsckLines(t *testing.T) {
	t.Parallel()
	const closing = "error: Repository corruption encountered\n"
	for _, tt := range []struct {
		name, says string
		exit       int
		signal     int
		objects    map[string]string
		unknown    []string
		wantErr    string
	}{
		{name: "well"},
		{
			name: "two commits", says: "error: In commits " + sumA + ", " + sumB + ": fsck content object x: Corrupted\n" + closing, exit: 1,
			objects: map[string]string{
				sumA: "ostree fsck: In commits " + sumA + ", " + sumB + ": fsck content object x: Corrupted",
				sumB: "ostree fsck: In commits " + sumA + ", " + sumB + ": fsck content object x: Corrupted",
			},
		},
		{
			name: "the first of two lines", says: "Object missing in commits " + sumA + ": x.file\nfsck " + sumA + ".commit: Corrupted\n" + closing, exit: 1,
			objects: map[string]string{sumA: "ostree fsck: Object missing in commits " + sumA + ": x.file"},
		},
		{
			name: "what follows from others", exit: 1,
			says:    "Object missing: " + sumA + ".commit\nMarking commit as partial: " + sumA + "\n1 partial commits from fsck-detected corruption\n(ostree fsck:1): GLib-CRITICAL **: x\n" + closing,
			objects: map[string]string{sumA: "ostree fsck: Object missing: " + sumA + ".commit"},
		},
		{name: "no commit", says: "error: fsck dirtree x: Corrupted\n" + closing, exit: 1, unknown: []string{"ostree fsck: fsck dirtree x: Corrupted"}},
		{
			name: "half a name", says: "In commits " + sumA + ", " + sumB[1:] + ": x\n" + closing, exit: 1,
			unknown: []string{"ostree fsck: In commits " + sumA + ", " + sumB[1:] + ": x"},
		},
		{name: "killed", says: "so far\n", signal: 9, unknown: []string{"FAKE fsck: signal: killed: so far"}},
		{name: "no reason", exit: 1, wantErr: "FAKE fsck: exit status 1"},
		{name: "only that it has", says: closing, exit: 1, wantErr: "FAKE fsck: exit status 1: Repository corruption encountered"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r, fake := fakeRunner(t, 0, testutil.FakeRule{Match: "fsck", Stderr: tt.says, Exit: tt.exit, Signal: tt.signal})
			v := &verifier{repo: &repository{path: "/nowhere", run: r}}
			unknown, err := v.fsck(t.Context())
			testutil.SameText(t, "error", strings.ReplaceAll(testutil.ErrText(err), fake, "FAKE"), tt.wantErr)
			for i := range unknown {
				unknown[i] = strings.ReplaceAll(unknown[i], fake, "FAKE")
			}
			if !slices.Equal(unknown, tt.unknown) || !maps.Equal(v.objects, tt.objects) {
				t.Errorf("got %q and %q, want %q and %q", v.objects, unknown, tt.objects, tt.unknown)
			}
		})
	}
}
