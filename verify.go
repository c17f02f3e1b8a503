package main

import (
	"context"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
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
	blobs   map[digest.Digest][]verifyProblem
	objects map[string]string // what fsck says of the commits that it names, by their checksums
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
		for _, spec := range slices.Sorted(maps.Keys(store.refs)) {
			_, ref := splitSpec(spec)
			if name, ok := imageName(ref); ok {
				names, specs = append(names, name), append(specs, spec)
			}
		}
	}
	v := &verifier{settings: s, repo: repo, store: store, blobs: map[digest.Digest][]verifyProblem{}}
	unknown, err := v.fsck(ctx)
	if err != nil {
		return nil, err
	}
	results := make([]verifyResult, len(specs))
	for i, spec := range specs {
		problems := v.image(ctx, spec, parallel)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		results[i] = verifyResult{Name: names[i], OK: len(problems) == 0, Problems: append([]verifyProblem{}, problems...)}
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

// fsck runs ostree fsck and sorts what it says by the commits that it names. unknown is what names none.
func (v *verifier) fsck(ctx context.Context) (unknown []string, err error) {
	v.objects = map[string]string{}
	lines, err := v.repo.fsck(ctx)
	if err != nil {
		return nil, err
	}
	for _, line := range lines {
		text := strings.TrimPrefix(line, "error: ")
		commits, found := fsckCommits(text)
		if !found {
			unknown = append(unknown, "ostree fsck: "+text)
			continue
		}
		for _, c := range commits {
			v.objects[c] = "ostree fsck: " + text
		}
	}
	return unknown, nil
}

// fsckCommits returns the commits for which a line of fsck speaks: "In commits A, B: …".
func fsckCommits(line string) (commits []string, ok bool) {
	rest, ok := strings.CutPrefix(line, "In commits ")
	if !ok {
		return nil, false
	}
	list, _, ok := strings.Cut(rest, ": ")
	if !ok {
		return nil, false
	}
	for c := range strings.SplitSeq(list, ", ") {
		if !checksumPattern.MatchString(c) {
			return nil, false
		}
		commits = append(commits, c)
	}
	return commits, true
}

// image checks one image.
func (v *verifier) image(ctx context.Context, spec string, parallel int) []verifyProblem {
	info, err := v.repo.commitInfo(ctx, spec)
	if err != nil {
		return []verifyProblem{{Error: oneLine(err)}}
	}
	var problems []verifyProblem
	if text := v.objects[info.checksum]; text != "" {
		problems = append(problems, verifyProblem{Error: text})
	}
	// The file counts, not its copy in the metadata, so the file is read whatever that says.
	want := digest.Digest(info.metadata[keyDigest])
	content, err := v.repo.catFile(ctx, info.checksum, fileManifest, maxManifestBytes)
	if err != nil {
		problems = append(problems, verifyProblem{Expected: want.String(), Error: oneLine(errors.WithMessage(err, "reading the manifest"))})
	} else if got := digest.FromBytes(content); want != "" && got != want {
		problems = append(problems, verifyProblem{Expected: want.String(), Actual: got.String(), Error: "the manifest does not match its digest"})
	}
	blobs, err := v.repo.imageBlobs(ctx, info.checksum)
	if err != nil {
		return append(problems, verifyProblem{Error: oneLine(err)})
	}
	var group errgroup.Group
	group.SetLimit(max(1, parallel))
	for _, b := range blobs {
		group.Go(func() error {
			v.blob(ctx, b.Digest)
			return nil
		})
	}
	_ = group.Wait()
	seen := map[digest.Digest]bool{}
	for _, b := range blobs {
		if !seen[b.Digest] {
			seen[b.Digest] = true
			problems = append(problems, v.blobs[b.Digest]...)
		}
	}
	return problems
}

// blob checks one blob, unless that was done before.
func (v *verifier) blob(ctx context.Context, d digest.Digest) {
	v.mu.Lock()
	_, done := v.blobs[d]
	if !done {
		v.blobs[d] = nil
	}
	v.mu.Unlock()
	if done {
		return
	}
	problems := v.checkBlob(ctx, d)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.blobs[d] = problems
}

func (v *verifier) checkBlob(ctx context.Context, d digest.Digest) []verifyProblem {
	b, err := v.store.blob(ctx, d)
	if err != nil {
		return []verifyProblem{{Blob: d.String(), Expected: d.String(), Error: oneLine(err)}}
	}
	var problems []verifyProblem
	for _, spec := range []string{b.spec, b.side} {
		if spec == "" {
			continue
		}
		sums, err := v.repo.revParse(ctx, spec)
		if err != nil {
			problems = append(problems, verifyProblem{Blob: d.String(), Error: oneLine(err)})
		} else if text := v.objects[sums[0]]; text != "" {
			problems = append(problems, verifyProblem{Blob: d.String(), Error: text})
		}
	}
	check := func(want digest.Digest, open func(context.Context, *storedBlob) (io.ReadCloser, error)) {
		stream, err := open(ctx, b)
		if err == nil {
			_, err = io.Copy(io.Discard, stream)
			_ = stream.Close()
		}
		if err != nil {
			p := verifyProblem{Blob: d.String(), Expected: want.String(), Error: oneLine(err)}
			var wrong *digestError
			if errors.As(err, &wrong) {
				p.Actual = wrong.actual.String()
			}
			problems = append(problems, p)
		}
	}
	switch {
	case b.isExact():
		check(d, v.store.open)
	case b.canRebuild():
		check(b.diffID, v.store.openTar)
	default:
		v.settings.warnf("layer %s was stored without what its exact bytes need; only its objects are checked", d)
	}
	if b.isExact() && b.hasRecord() && b.diffID != d { // the compressed bytes, and beside them what the tree gives
		check(b.diffID, v.store.openTar)
	}
	return problems
}
