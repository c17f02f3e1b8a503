package main

import (
	"context"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"github.com/vbatts/tar-split/archive/tar"
	"golang.org/x/sync/errgroup"
)

// verifyResult is what verify says of an image. Its JSON keys are part of the program's interface.
type verifyResult struct {
	Name     string          `json:"name"`
	OK       bool            `json:"ok"`
	Problems []verifyProblem `json:"problems"`
}

type verifyProblem struct {
	Blob     string `json:"blob"`     // the digest that a manifest names, "" for the image itself
	Expected string `json:"expected"` // the digest that the bytes should have
	Actual   string `json:"actual"`   // the digest that they have, "" where they cannot be read
	Error    string `json:"error"`
}

// verifier checks images of one repository. Each blob is read once, however many images need it.
type verifier struct {
	settings *settings
	repo     *repository
	store    *blobStore

	mu      sync.Mutex
	blobs   map[string][]verifyProblem // by the remote and the digest
	objects map[string]string          // what fsck says of the commits that it names, by their checksums
	packed  bool                       // the repository is of mode archive
	denied  error                      // the first thing that this user may not read
}

// text is that of an error for a problem. What this user may not read is none, and ends the run instead.
func (v *verifier) text(err error) string {
	var access *accessError
	if errors.As(err, &access) {
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.denied == nil {
			v.denied = err
		}
	}
	return oneLine(err)
}

// verifyImages checks all that the images need: that their objects are what ostree fsck expects, and that their manifests,
// configs and layers give the bytes that their digests name.
func verifyImages(ctx context.Context, s *settings, repo *repository, images []ostreeReference, parallel int) ([]verifyResult, error) {
	store, err := openBlobStore(ctx, repo)
	if err != nil {
		return nil, err
	}
	var names, specs []string
	for _, image := range images {
		spec, err := store.findImage(image)
		if err != nil {
			return nil, err
		}
		names, specs = append(names, image.image), append(specs, spec)
	}
	if len(images) == 0 {
		names, specs = store.images()
	}
	v := &verifier{settings: s, repo: repo, store: store, blobs: map[string][]verifyProblem{}}
	unknown, err := v.fsck(ctx)
	for tries := 1; err == nil && len(unknown) > 0 && tries < fsckTries; tries++ { // it trips over what is removed meanwhile
		unknown, err = v.fsck(ctx)
	}
	if err != nil {
		return nil, err
	}
	mode, err := repo.config(ctx, "core.mode")
	if err != nil {
		return nil, err
	}
	v.packed = mode == modeArchive || mode == "archive-z2"
	results := []verifyResult{}
	var gone error
	for i, spec := range specs {
		problems, err := v.settledImage(ctx, spec, parallel)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if errors.Is(err, errNoRef) {
			gone = notFoundError{goneError{names[i]}.Error()}
			s.notef("%s", gone)
			continue
		}
		if err != nil {
			return nil, err
		}
		results = append(results, verifyResult{Name: names[i], OK: len(problems) == 0, Problems: append([]verifyProblem{}, problems...)})
	}
	if len(images) > 0 && len(results) == 0 {
		return nil, gone
	}
	if len(unknown) > 0 {
		// A broken object that no commit can be named for may belong to any image.
		for i := range results {
			results[i].OK = false
			for _, text := range unknown {
				results[i].Problems = append(results[i].Problems, verifyProblem{Error: text})
			}
		}
	}
	return results, nil
}

// How often is looked again where something is found that a removal meanwhile explains.
const (
	fsckTries  = 3
	imageTries = 5
)

// settledImage checks an image, and once more where its problems may be those of a repository that changed meanwhile. The error
// is errNoRef where the image is gone.
func (v *verifier) settledImage(ctx context.Context, spec string, parallel int) (problems []verifyProblem, err error) {
	for range imageTries {
		problems = v.image(ctx, spec, parallel)
		if v.denied != nil || len(problems) == 0 || ctx.Err() != nil {
			return problems, v.denied
		}
		now, err := v.repo.refs(ctx)
		if err != nil {
			return nil, err
		}
		if !now[spec] {
			return nil, errNoRef
		}
		if maps.Equal(now, v.store.refs) {
			return problems, nil
		}
		store := *v.store
		store.refs = now
		v.store, v.blobs = &store, map[string][]verifyProblem{}
		if _, err := v.fsck(ctx); err != nil {
			return nil, err
		}
	}
	return problems, nil
}

// fsck runs ostree fsck and sorts what it says by the commits that it names. unknown is what names none: it may concern
// any image, and ends fsck before it has checked all.
func (v *verifier) fsck(ctx context.Context) (unknown []string, err error) {
	v.objects = map[string]string{}
	lines, err := v.repo.fsck(ctx)
	var terr *toolError
	if errors.As(err, &terr) && terr.ExitCode < 0 && ctx.Err() == nil {
		return []string{v.text(err)}, nil // a broken object has killed it
	}
	if err != nil {
		return nil, err
	}
	for _, line := range lines {
		text := strings.TrimPrefix(line, "error: ")
		if fsckNoise.MatchString(text) {
			continue
		}
		commits, found := fsckCommits(text)
		if !found {
			unknown = append(unknown, "ostree fsck: "+text)
			continue
		}
		for _, c := range commits {
			if v.objects[c] == "" {
				v.objects[c] = "ostree fsck: " + text
			}
		}
	}
	return unknown, nil
}

// fsckNoise are lines of fsck that follow from others, and what its libraries say.
var fsckNoise = regexp.MustCompile(`^(Marking commit as partial: |[0-9]+ partial commits (not verified|from fsck-detected corruption)$|\(.*\): GLib)`)

// fsckAbout are the forms in which a line of fsck names the commits that it speaks of.
var fsckAbout = regexp.MustCompile(`^(?:In commits|Object missing in commits) ([0-9a-f, ]+): |^fsck ([0-9a-f]{64})\.commit: |^Object missing: ([0-9a-f]{64})\.commit$`)

// fsckCommits returns the commits for which a line of fsck speaks: "In commits A, B: …".
func fsckCommits(line string) (commits []string, ok bool) {
	m := fsckAbout.FindStringSubmatch(line)
	if m == nil {
		return nil, false
	}
	for c := range strings.SplitSeq(m[1]+m[2]+m[3], ", ") {
		if !checksumPattern.MatchString(c) {
			return nil, false
		}
		commits = append(commits, c)
	}
	return commits, true
}

// listedFile is a line of ostree ls about a file, or a symbolic link and its target.
var listedFile = regexp.MustCompile(`^([-l])0[0-7]{4} +[0-9]+ +[0-9]+ +([0-9]+) /(.*)$`)

// listedSizes returns the sizes that a commit gives its files, but those with a name of two lines. In an archive repository they stand in
// headers that no checksum covers.
func (v *verifier) listedSizes(ctx context.Context, rev string) (map[string]int64, error) {
	sizes := map[string]int64{}
	var wrong error
	err := v.repo.list(ctx, rev, func(line string) {
		m := listedFile.FindStringSubmatch(line)
		if m == nil {
			return
		}
		size, err := strconv.ParseInt(m[2], 10, 64)
		if m[1] == "-" && err == nil {
			sizes[m[3]] = size
		} else if size != 0 {
			wrong = checkf("the tree says that the symbolic link %q has %s bytes", m[3], m[2])
		}
	})
	if err == nil {
		err = wrong
	}
	return sizes, err
}

// checkSizes compares the sizes that the tree of a layer gives its files with those in the layer's headers.
func (v *verifier) checkSizes(ctx context.Context, store *blobStore, b *storedBlob) error {
	listed, err := v.listedSizes(ctx, b.spec)
	if err != nil {
		return err
	}
	want := map[string]int64{}
	err = store.headers(ctx, b, func(hdr *tar.Header) error {
		name, err := cleanName(hdr.Name)
		if err != nil {
			return checkf("%s", err)
		}
		if delete(want, name); hdr.Typeflag == tar.TypeReg {
			want[name] = hdr.Size
		}
		return nil
	})
	if err != nil {
		return err
	}
	for name, size := range want {
		if got, ok := listed[name]; ok && got != size {
			return checkf("the tree says that %q has %d bytes, and the layer that it has %d", name, got, size)
		}
	}
	return nil
}

// checkTree checks the sizes of one of a blob's commits.
func (v *verifier) checkTree(ctx context.Context, store *blobStore, b *storedBlob, spec string) error {
	switch {
	case !v.packed:
		return nil
	case !b.layer || spec == b.side:
		return v.checkPlainSizes(ctx, spec)
	case !b.canRebuild():
		_, err := v.listedSizes(ctx, spec)
		return err
	}
	return v.checkSizes(ctx, store, b)
}

// checkPlainSizes compares the sizes that a commit of a few files gives them with what they are.
func (v *verifier) checkPlainSizes(ctx context.Context, rev string) error {
	listed, err := v.listedSizes(ctx, rev)
	if err != nil || len(listed) == 0 {
		return err
	}
	var got int64
	for chunk := range chunks(slices.Sorted(maps.Keys(listed))) {
		n, err := v.length(ctx, rev, chunk)
		if err != nil {
			return err
		}
		got += n
	}
	var want int64
	for _, size := range listed {
		want += size
	}
	if got != want {
		return checkf("the tree says that its files have %d bytes, and they have %d", want, got)
	}
	return nil
}

// length returns how many bytes files of a commit have.
func (v *verifier) length(ctx context.Context, rev string, paths []string) (int64, error) {
	in, err := v.repo.cat(ctx, rev, paths...)
	if err != nil {
		return 0, err
	}
	defer func() { _ = in.Close() }()
	return io.Copy(io.Discard, in)
}

// checkKeyrings refuses a directory without public keys: ostree reads them from *.gpg files, and not from the pubring.kbx of today's gpg.
func checkKeyrings(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return errors.WithStack(err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".gpg") && e.Name() != "trustdb.gpg" && e.Name() != "secring.gpg" {
			return nil
		}
	}
	return errors.Errorf("%s holds no *.gpg file, where ostree looks for public keys; write one with: gpg --export KEY-ID >DIR/KEY.gpg", dir)
}

// commitProblem returns what is known to be wrong with a commit and its objects, "" for nothing.
func (v *verifier) commitProblem(ctx context.Context, checksum string) string {
	if v.settings.gpgVerify {
		if ok, err := v.repo.signed(ctx, checksum, v.settings.gpgHomedir); err != nil {
			return v.text(err)
		} else if !ok {
			return "commit " + checksum + " has no good signature by a key in " + v.settings.gpgHomedir
		}
	}
	if text := v.objects[checksum]; text != "" {
		return text
	}
	if _, err := os.Lstat(v.repo.partialMark(checksum)); err == nil {
		return "commit " + checksum + " is marked as partial, so it is not checked; pull or copy the image again"
	}
	return ""
}

// image checks one image.
func (v *verifier) image(ctx context.Context, spec string, parallel int) []verifyProblem {
	info, err := v.repo.readCommit(ctx, spec)
	if err != nil {
		return []verifyProblem{{Error: v.text(err)}}
	}
	store := v.store.beside(spec)
	var problems []verifyProblem
	if text := v.commitProblem(ctx, info.checksum); text != "" {
		problems = append(problems, verifyProblem{Error: text})
	} else if v.packed {
		if err := v.checkPlainSizes(ctx, info.checksum); err != nil {
			problems = append(problems, verifyProblem{Error: v.text(damage(err))})
		}
	}
	// The file counts, not its copy in the metadata, so the file is read whatever that says.
	want := digest.Digest(info.metadata[keyDigest])
	content, err := v.repo.catFile(ctx, info.checksum, fileManifest, maxManifestBytes)
	if err != nil {
		problems = append(problems, verifyProblem{Expected: want.String(), Error: v.text(errors.WithMessage(err, "reading the manifest"))})
	} else if got := digest.FromBytes(content); want != "" && got != want {
		problems = append(problems, verifyProblem{Expected: want.String(), Actual: got.String(), Error: "the manifest does not match its digest"})
	}
	if _, err := v.repo.signatureNumbers(ctx, info, ""); err != nil {
		problems = append(problems, verifyProblem{Error: v.text(err)})
	}
	blobs, err := v.repo.imageBlobs(ctx, info.checksum)
	if err != nil {
		return append(problems, verifyProblem{Error: v.text(err)})
	}
	var group errgroup.Group
	group.SetLimit(max(1, parallel))
	for _, b := range blobs {
		group.Go(func() error {
			v.blob(ctx, store, b.Digest)
			return nil
		})
	}
	_ = group.Wait()
	seen := map[digest.Digest]bool{}
	for _, b := range blobs {
		if !seen[b.Digest] {
			seen[b.Digest] = true
			problems = append(problems, v.blobs[store.near+b.Digest.String()]...)
		}
	}
	return problems
}

// blob checks one blob, unless that was done before.
func (v *verifier) blob(ctx context.Context, store *blobStore, d digest.Digest) {
	key := store.near + d.String()
	v.mu.Lock()
	_, done := v.blobs[key]
	if !done {
		v.blobs[key] = nil
	}
	v.mu.Unlock()
	if done {
		return
	}
	problems := v.checkBlob(ctx, store, d)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.blobs[key] = problems
}

func (v *verifier) checkBlob(ctx context.Context, store *blobStore, d digest.Digest) []verifyProblem {
	b, err := store.blob(ctx, d)
	if err != nil {
		return []verifyProblem{{Blob: d.String(), Expected: d.String(), Error: v.text(err)}}
	}
	var problems []verifyProblem
	for _, spec := range []string{b.spec, b.side} {
		if spec == "" {
			continue
		}
		sums, err := v.repo.revParse(ctx, spec)
		if err != nil {
			problems = append(problems, verifyProblem{Blob: d.String(), Error: v.text(err)})
		} else if text := v.commitProblem(ctx, sums[0]); text != "" {
			problems = append(problems, verifyProblem{Blob: d.String(), Error: text})
		} else if err := v.checkTree(ctx, store, b, spec); err != nil {
			problems = append(problems, verifyProblem{Blob: d.String(), Error: v.text(damage(err))})
		}
	}
	check := func(want digest.Digest, open func(context.Context, *storedBlob) (io.ReadCloser, error)) {
		stream, err := open(ctx, b)
		if err == nil {
			_, err = io.Copy(io.Discard, stream)
			_ = stream.Close()
		}
		if err != nil {
			p := verifyProblem{Blob: d.String(), Expected: want.String(), Error: v.text(err)}
			var wrong *digestError
			if errors.As(err, &wrong) {
				p.Actual = wrong.actual.String()
			}
			problems = append(problems, p)
		}
	}
	switch {
	case b.isExact():
		check(d, store.open)
	case b.canRebuild():
		check(b.diffID, store.openTar)
	default:
		v.settings.warnf("layer %s was stored without what its exact bytes need; only its objects are checked", d)
	}
	if b.isExact() && b.hasRecord() && b.diffID != d { // the compressed bytes, and beside them what the tree gives
		check(b.diffID, store.openTar)
	}
	return problems
}
