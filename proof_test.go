package main

import (
	gotar "archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/oci/layout"

	"ostree-image/internal/imageref"
	"ostree-image/internal/ostree"
	"ostree-image/internal/testutil"
)

// forgery is a repository that holds two images, and where they come from.
type forgery struct {
	*testRun
	layout  string
	images  map[string]*testImage
	streams map[string][][]byte // of their layers
}

// gzipped returns an image with its layers compressed.
func gzipped(t testing.TB, i *testImage) *testImage {
	t.Helper()
	config := imgspecv1.Image{Platform: testPlatform, RootFS: imgspecv1.RootFS{Type: "layers"}}
	zipped := &testImage{}
	for _, l := range i.layers {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		_, err := w.Write(l)
		must(t, err)
		must(t, w.Close())
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(l))
		zipped.layers, zipped.types = append(zipped.layers, b.Bytes()), append(zipped.types, imgspecv1.MediaTypeImageLayerGzip)
	}
	zipped.config = marshal(t, config)
	return zipped.Finish(t)
}

// newForgery imports images of all kinds into a new repository: layers whose record is in the
// commit, beside it, or that are kept as they came, plain and compressed.
func newForgery(t testing.TB, mode string) *forgery {
	t.Helper()
	r := rand.New(rand.NewPCG(7, 7))
	many := []*gotar.Header{{Name: "many/", Typeflag: gotar.TypeDir, Mode: 0o755}}
	for i := range 3000 { // its record is too long for the commit
		many = append(many, &gotar.Header{Name: fmt.Sprintf("many/%08x", r.Uint32()), Typeflag: gotar.TypeReg, Mode: 0o644, Uname: fmt.Sprint(i)})
	}
	small := smallImage(t)
	small.layers = append(small.layers, tarOf(t, many...))
	f := &forgery{testRun: newTestRun(t, testOptions{mode: mode}), layout: t.TempDir()}
	f.insecurePolicy = true
	f.images = map[string]*testImage{"small": small.Finish(t), "other": gzipped(t, otherImage(t))}
	f.streams = map[string][][]byte{"small": small.layers, "other": otherImage(t).layers}
	writeLayout(t, f.layout, f.images)
	for name := range f.images {
		if err := f.pull(t, name); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// pull copies an image from where it came.
func (f *forgery) pull(t testing.TB, name string) error {
	t.Helper()
	source, err := layout.ParseReference(f.layout + ":" + name)
	if err != nil {
		t.Fatal(err)
	}
	return f.copyImage(t.Context(), source, f.reference(t, name), copyOptions{source: testSys, destination: testSys})
}

// problems verifies all images and returns what is wrong, by their names.
func (f *forgery) problems(t testing.TB) map[string]string {
	t.Helper()
	results, err := verifyImages(t.Context(), f.settings, f.repo, nil, 2)
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{}
	for _, r := range results {
		for _, p := range r.Problems {
			texts[strings.TrimSuffix(r.Name, ":latest")] += p.Error + "; "
		}
	}
	return texts
}

// copyOf returns the forgery with a copy of its repository.
func (f *forgery) copyOf(t testing.TB) *forgery {
	t.Helper()
	path := filepath.Join(t.TempDir(), "repo")
	testutil.Run(t, "cp", "-a", f.repo.path, path)
	other := &forgery{testRun: newTestRun(t, testOptions{repo: path}), layout: f.layout, images: f.images, streams: f.streams}
	other.insecurePolicy = true
	return other
}

// edit gives a ref a commit with the same metadata and another tree: change is called with a
// directory that holds it.
func (f *forgery) edit(t testing.TB, ref string, change func(dir string)) {
	t.Helper()
	info, err := f.repo.commitInfo(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "tree")
	testutil.Run(t, "ostree", "checkout", "--repo="+f.repo.path, "--force-copy", ref, dir)
	change(dir)
	f.commit(t, ref, info, "--tree=dir="+dir)
}

// commit gives a ref a commit that says what info does.
func (f *forgery) commit(t testing.TB, ref string, info ostree.Commit, tree string) {
	t.Helper()
	args := []string{"commit", "--repo=" + f.repo.path, "--branch=" + ref, tree, "--parent=none", fmt.Sprintf("--timestamp=@%d", info.Timestamp)}
	for _, k := range slices.Sorted(maps.Keys(info.Metadata)) {
		args = append(args, "--add-metadata-string="+k+"="+info.Metadata[k])
	}
	testutil.Run(t, "ostree", args...)
}

// layerRef is the ref of a layer of the image small.
func (f *forgery) layerRef(n int) string {
	return imageref.BlobRef(digest.FromBytes(f.images["small"].layers[n]))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestForgeries holds that verify finds what is not what the image's name stands for, that neither
// checkout nor push hands it out, and that none of it survives a pull of the image.
func TestForgeries(t *testing.T) {
	t.Parallel()
	testutil.NeedRoot(t)
	testutil.NeedTools(t, "cp")
	original := newForgery(t, ostree.BareUser)
	if found := original.problems(t); len(found) > 0 {
		t.Fatalf("what was imported is wrong: %v", found)
	}
	// Of another image, with content of its own: what an attacker would have it be.
	evil := &testImage{layers: [][]byte{tarOf(t, &gotar.Header{Name: "evil", Typeflag: gotar.TypeReg, Mode: 0o4755, Size: 5})}}
	must(t, original.importImage(t, "evil", evil))
	evilRef := imageref.BlobRef(digest.FromBytes(evil.layers[0]))
	tests := []struct {
		name   string
		change func(t *testing.T, f *forgery)
		want   string // a part of what verify says
		hidden bool   // checkout does not hand it out and so does not say it
	}{
		{"another layer in its place", func(t *testing.T, f *forgery) {
			info, err := f.repo.commitInfo(t.Context(), evilRef)
			must(t, err)
			f.commit(t, f.layerRef(0), info, "--tree=ref="+info.Checksum)
		}, "and the image's config names", false},
		{"a set-user-ID bit", func(t *testing.T, f *forgery) {
			f.edit(t, f.layerRef(2), func(dir string) { must(t, os.Chmod(filepath.Join(dir, "many"), 0o1777)) })
		}, "the tree of its commit is not what", false},
		{"a file more", func(t *testing.T, f *forgery) {
			f.edit(t, f.layerRef(0), func(dir string) { must(t, os.WriteFile(filepath.Join(dir, "more"), nil, 0o644)) })
		}, "the tree of its commit is not what", false},
		{"a link elsewhere", func(t *testing.T, f *forgery) {
			f.edit(t, f.layerRef(0), func(dir string) {
				must(t, os.Remove(filepath.Join(dir, "usr/link")))
				must(t, os.Symlink("/etc/shadow", filepath.Join(dir, "usr/link")))
			})
		}, "the tree of its commit is not what", false},
		{"an owner", func(t *testing.T, f *forgery) {
			f.edit(t, f.layerRef(0), func(dir string) { must(t, os.Lchown(filepath.Join(dir, "usr"), 1000, 0)) })
		}, "the tree of its commit is not what", false},
		{"content of a layer that is kept as it came", func(t *testing.T, f *forgery) {
			f.edit(t, f.layerRef(1), func(dir string) {
				must(t, os.WriteFile(filepath.Join(dir, "etc/twice"), []byte("another"), 0o600))
			})
		}, "the tree of its commit is not what", false},
		{"a kept blob", func(t *testing.T, f *forgery) {
			dir := t.TempDir()
			must(t, os.WriteFile(filepath.Join(dir, imageref.FileBlob), evil.layers[0], 0o644))
			testutil.Run(t, "ostree", "commit", "--repo="+f.repo.path, "--branch="+imageref.SidecarRef(digest.FromBytes(f.images["small"].layers[0])), "--tree=dir="+dir)
		}, "instead of", false},
		{"a kept blob of a compressed layer", func(t *testing.T, f *forgery) {
			dir := t.TempDir()
			must(t, os.WriteFile(filepath.Join(dir, imageref.FileBlob), f.images["small"].layers[0], 0o644))
			testutil.Run(t, "ostree", "commit", "--repo="+f.repo.path, "--branch="+imageref.SidecarRef(digest.FromBytes(f.images["other"].layers[0])), "--tree=dir="+dir)
		}, "its compressed bytes", false},
		{"a layer as of 2017", func(t *testing.T, f *forgery) {
			ref := f.layerRef(0)
			info, err := f.repo.commitInfo(t.Context(), ref)
			must(t, err)
			info.Metadata = map[string]string{imageref.KeySize: info.Metadata[imageref.KeySize]}
			f.commit(t, ref, info, "--tree=ref="+info.Checksum)
		}, "was stored without what proves its files", true},
		{"the commit of another image", func(t *testing.T, f *forgery) {
			sum := strings.TrimSpace(testutil.Run(t, "ostree", "rev-parse", "--repo="+f.repo.path, f.reference(t, "evil").ref()))
			testutil.Run(t, "ostree", "refs", "--repo="+f.repo.path, "--force", "--create="+f.reference(t, "small").ref(), sum)
		}, "was made for", true},
		{"another config", func(t *testing.T, f *forgery) {
			f.edit(t, imageref.BlobRef(digest.FromBytes(f.images["small"].config)), func(dir string) {
				must(t, os.WriteFile(filepath.Join(dir, imageref.FileContent), evil.config, 0o644))
			})
		}, "instead of", false},
		{"no size of the config", func(t *testing.T, f *forgery) {
			ref := imageref.BlobRef(digest.FromBytes(f.images["small"].config))
			info, err := f.repo.commitInfo(t.Context(), ref)
			must(t, err)
			f.commit(t, ref, ostree.Commit{Timestamp: info.Timestamp}, "--tree=ref="+info.Checksum)
		}, "its commit says that it has -1 bytes", true},
		{"a layer in the config's place", func(t *testing.T, f *forgery) {
			sum := strings.TrimSpace(testutil.Run(t, "ostree", "rev-parse", "--repo="+f.repo.path, f.layerRef(0)))
			ref := imageref.BlobRef(digest.FromBytes(f.images["small"].config))
			testutil.Run(t, "ostree", "refs", "--repo="+f.repo.path, "--force", "--create="+ref, sum)
		}, "was made for the refs", false},
		{"a layer in the config's place, made for it", func(t *testing.T, f *forgery) {
			info, err := f.repo.commitInfo(t.Context(), f.layerRef(0))
			must(t, err)
			f.commit(t, imageref.BlobRef(digest.FromBytes(f.images["small"].config)), info, "--tree=ref="+info.Checksum)
		}, "No such file or directory: /content", false},
		{"a config without content", func(t *testing.T, f *forgery) {
			f.edit(t, imageref.BlobRef(digest.FromBytes(f.images["small"].config)), func(dir string) {
				must(t, os.Remove(filepath.Join(dir, imageref.FileContent)))
			})
		}, "was stored without what proves its files", false},
		{"another manifest", func(t *testing.T, f *forgery) {
			f.edit(t, f.reference(t, "small").ref(), func(dir string) {
				must(t, os.WriteFile(filepath.Join(dir, imageref.FileManifest), evil.manifest, 0o644))
			})
		}, "does not match its digest", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := original.copyOf(t)
			tt.change(t, f)
			image := "small"
			if strings.Contains(tt.name, "compressed layer") {
				image = "other"
			}
			if found := f.problems(t); !strings.Contains(found[image], tt.want) {
				t.Errorf("verify says %q, want %q", found, tt.want)
			}
			dir := filepath.Join(t.TempDir(), "rootfs")
			if err := checkoutImage(t.Context(), f.reference(t, image), dir, testSys, ostree.CheckoutOptions{}); !tt.hidden && err == nil {
				t.Error("checkout hands it out")
			} else if _, serr := os.Lstat(dir); !tt.hidden && !os.IsNotExist(serr) {
				t.Errorf("checkout leaves %s", dir)
			}
			for _, name := range []string{"small", "other"} {
				if err := f.pull(t, name); err != nil {
					t.Errorf("pulling %s: %v", name, err)
				}
			}
			if found := f.problems(t); len(found) > 0 {
				t.Errorf("after a pull verify says %v", found)
			}
			for name, want := range f.streams {
				streams, err := tars(t.Context(), f.source(t, name))
				must(t, err)
				for n := range want {
					if !bytes.Equal(streams[n], want[n]) {
						t.Errorf("layer %d of %s is another", n, name)
					}
				}
			}
		})
	}
}

// TestForgeriesAtRandom changes one thing at random, in all modes: verify finds each, and none
// survives a pull. With OSTREE_IMAGE_FORGERIES=N it tries N of them, with a fresh seed.
func TestForgeriesAtRandom(t *testing.T) {
	t.Parallel()
	testutil.NeedRoot(t)
	testutil.NeedTools(t, "cp")
	count, seed := 4, uint64(1)
	if n, err := strconv.Atoi(os.Getenv("OSTREE_IMAGE_FORGERIES")); err == nil {
		count, seed = n, rand.Uint64()
	}
	t.Logf("seed %d, %d changes", seed, count)
	modes := []string{ostree.Bare, ostree.BareUser, ostree.BareUserOnly, ostree.Archive}
	originals := map[string]*forgery{}
	for _, mode := range modes {
		originals[mode] = newForgery(t, mode)
	}
	for i := range count {
		mode := modes[i%len(modes)]
		t.Run(fmt.Sprint(i, " ", mode), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			f := originals[mode].copyOf(t)
			before := f.commits(t)
			what := f.forge(t, r, slices.Sorted(maps.Keys(before)))
			if after := f.commits(t); maps.Equal(before, after) {
				return // it was like that
			}
			if found := f.problems(t); len(found) == 0 {
				t.Errorf("%s: not found", what)
			}
			for name := range f.images {
				if err := f.pull(t, name); err != nil {
					t.Errorf("%s: pulling %s: %v", what, name, err)
				}
			}
			if found := f.problems(t); len(found) > 0 {
				t.Errorf("%s: after a pull verify says %v", what, found)
			}
		})
	}
}

// forge changes one ref and says what it did.
func (f *forgery) forge(t testing.TB, r *rand.Rand, refs []string) string {
	t.Helper()
	ref := refs[r.IntN(len(refs))]
	info, err := f.repo.commitInfo(t.Context(), ref)
	must(t, err)
	switch r.IntN(4) {
	case 0:
		from := refs[r.IntN(len(refs))]
		sum := strings.TrimSpace(testutil.Run(t, "ostree", "rev-parse", "--repo="+f.repo.path, from))
		testutil.Run(t, "ostree", "refs", "--repo="+f.repo.path, "--force", "--create="+ref, sum)
		return ref + " is what " + from + " is"
	case 1:
		keys := slices.Sorted(maps.Keys(info.Metadata))
		if len(keys) == 0 {
			break
		}
		key := keys[r.IntN(len(keys))]
		if slices.Contains([]string{imageref.KeyManifest, imageref.KeyDigest, imageref.KeySignatures}, key) {
			info.Metadata[key] += "1" // without them it is as in 2017
			f.commit(t, ref, info, "--tree=ref="+info.Checksum)
			return fmt.Sprintf("%s has another %s", ref, key)
		}
		from := refs[r.IntN(len(refs))]
		other, err := f.repo.commitInfo(t.Context(), from)
		must(t, err)
		if value, ok := other.Metadata[key]; ok && value != info.Metadata[key] && r.IntN(2) == 0 {
			info.Metadata[key] = value
		} else {
			delete(info.Metadata, key)
		}
		f.commit(t, ref, info, "--tree=ref="+info.Checksum)
		return fmt.Sprintf("%s has another %s", ref, key)
	case 2:
		if imageref.IsImage(ref) {
			break // an image that is not there is no wrong one
		}
		testutil.Run(t, "ostree", "refs", "--repo="+f.repo.path, "--delete", ref)
		return ref + " is gone"
	}
	what := ""
	_, isLayer := info.Metadata[imageref.KeyUncompressedDigest]
	f.edit(t, ref, func(dir string) { what = changeTree(t, r, dir, isLayer) })
	return ref + ": " + what
}

// changeTree changes one file below dir. The modes of files that are no layer's mean nothing.
func changeTree(t testing.TB, r *rand.Rand, dir string, isLayer bool) string {
	t.Helper()
	var paths []string
	must(t, filepath.Walk(dir, func(path string, _ os.FileInfo, err error) error {
		paths = append(paths, path)
		return err
	}))
	path := paths[r.IntN(len(paths))]
	info, err := os.Lstat(path)
	must(t, err)
	switch n := r.IntN(5); {
	case info.IsDir() || n == 0:
		if !info.IsDir() {
			path = filepath.Dir(path)
		}
		must(t, os.WriteFile(filepath.Join(path, "more"), []byte("more"), 0o755))
		return "a file more in " + path
	case n == 1 && info.Mode().IsRegular() && isLayer:
		must(t, os.Chmod(path, info.Mode()^0o111))
		return "the mode of " + path
	case n == 2:
		must(t, os.Remove(path))
		return path + " removed"
	case n == 3 && info.Mode().IsRegular():
		must(t, os.WriteFile(path, []byte("other"), info.Mode()))
		return "the content of " + path
	}
	must(t, os.Remove(path))
	must(t, os.Symlink("elsewhere", path))
	return path + " is a link"
}
