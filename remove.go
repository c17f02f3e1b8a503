package main

import (
	"context"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/types"
	"golang.org/x/sync/errgroup"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/imageref"
	"ostree-image/internal/ostree"
	"ostree-image/internal/ui"
)

// DeleteImage removes the image, and the blobs that no image needs any more.
func (r ostreeReference) DeleteImage(ctx context.Context, _ *types.SystemContext) error {
	return removeImages(ctx, r.transport.settings, r.repository(), []removal{{image: r}}, removeOptions{})
}

// removal is an image to remove: by a name that an image can be given, by any other under which
// list shows it, or by its ref.
type removal struct {
	image   ostreeReference // where it is the first
	text    string          // the others, "" for the first
	invalid error           // why text is no name, nil for a ref
}

// find returns the refspec of the image.
func (r removal) find(store *blobStore) (string, error) {
	if r.text == "" {
		return store.findImage(r.image)
	}
	names, specs := store.images()
	for i, name := range names {
		if r.text == specs[i] || r.text == name || r.text == ui.Printable(name) {
			return specs[i], nil
		}
	}
	if r.invalid != nil {
		return "", r.invalid
	}
	return "", errdefs.NotFoundf("no image %s in the repository %s; see ostree-image list", r.text, store.repo.path)
}

// prunedBlob is a blob that prune removes. Its JSON keys are part of the program's interface.
type prunedBlob struct {
	Ref    string `json:"ref"`
	Commit string `json:"commit"`
}

// removeImages removes images, or all that the repository has: all of them or none, and, unless the
// options say no, the blobs that no image needs then. Commits that have no ref and are none of
// these stay, and so does all that an image may need which cannot be read.
func removeImages(ctx context.Context, s *settings, repo *repository, images []removal, o removeOptions) error {
	unlock, err := repo.lock(ctx)
	if err != nil {
		return repo.explainPath(err)
	}
	defer unlock()
	repo.sweep()
	store, err := openBlobStore(ctx, repo)
	if err != nil {
		return err
	}
	if err := repo.dropLeftovers(ctx, store.refs); err != nil {
		return err
	}
	var specs []string
	if o.all {
		_, specs = store.images()
	}
	for _, image := range images {
		spec, err := image.find(store)
		var missing errdefs.NotFoundError
		if o.force && errors.As(err, &missing) {
			continue
		}
		if err != nil {
			return err
		}
		specs = append(specs, spec)
	}
	gone := map[string]bool{}
	if !o.noPrune {
		// That of a broken image may not be found.
		commits, _ := repo.commitsOf(ctx, among(store.refs, specs))
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		for _, commit := range commits { // of an image that is broken the commit may stay, for prune
			gone[commit] = true
		}
	}
	if err := repo.deleteRefs(ctx, "remove the images", specs...); err != nil {
		return err
	}
	if err := repo.sync(); err != nil { // before what they need goes
		return err
	}
	if o.noPrune {
		return nil
	}
	blobs, broken, err := pruneBlobs(ctx, s, repo, false)
	for _, b := range blobs {
		gone[b.Commit] = true
	}
	if err == nil {
		err = damage(repo.pruneCommits(ctx, gone, pruning(repo, broken)))
	}
	var check errdefs.CheckError
	if err == nil {
		err = broken
	}
	if ctx.Err() == nil && errors.As(err, &check) { // the images are removed all the same
		s.warnf("what the images needed takes space until the next prune: %v", err)
		return nil
	}
	return errors.WithMessage(err, "the images are removed, and what they needed takes space until the next prune")
}

// pruning returns how commits are removed: with what they alone need, or, where something that is
// to stay is broken, by themselves. ostree would take it at its word, and delete what it does not
// name any more.
func pruning(repo *repository, broken error) func(context.Context) error {
	if broken != nil {
		return repo.pruneCommitObjects
	}
	return repo.prune
}

// pruneRepository removes the blobs that no image needs, and the commits that no ref names; or just
// says which. unnamed is told of these commits, if any, before one is removed. Where something that
// is to stay is broken, all that it may need stays too, and the error says so, beside what was
// done.
func pruneRepository(
	ctx context.Context, s *settings, repo *repository, dryRun bool, unnamed func(commits []string),
) ([]prunedBlob, error) {
	if !dryRun { // whoever may only read can look
		unlock, err := repo.lock(ctx)
		if err != nil {
			return nil, repo.explainPath(err)
		}
		defer unlock()
		repo.sweep()
	}
	commits, err := repo.unnamedCommits(ctx)
	if err != nil {
		return nil, damage(err)
	}
	if len(commits) > 0 {
		unnamed(commits)
	}
	blobs, broken, err := pruneBlobs(ctx, s, repo, dryRun)
	if err == nil && !dryRun {
		err = damage(pruning(repo, broken)(ctx))
	}
	if err != nil {
		return nil, err
	}
	return blobs, broken
}

// pruneBlobs removes the refs of the blobs that no image needs, or just names them. The caller
// holds the lock, and prunes the repository afterwards. broken is why that must leave all objects,
// nil where it need not.
func pruneBlobs(
	ctx context.Context,
	s *settings,
	repo *repository,
	dryRun bool,
) (blobs []prunedBlob, broken, err error) {
	blobs = []prunedBlob{}
	refs, err := repo.refs(ctx)
	if err != nil {
		return nil, nil, err
	}
	if !dryRun {
		if err := repo.dropLeftovers(ctx, refs); err != nil {
			return nil, nil, err
		}
	}
	needed, broken, err := neededHex(ctx, s, repo, refs)
	if err != nil || broken != nil {
		return blobs, broken, err
	}
	var specs []string
	for _, spec := range slices.Sorted(maps.Keys(refs)) {
		_, ref := splitSpec(spec)
		hex, isBlob := imageref.BlobHex(ref)
		if !isBlob {
			if hex, isBlob = imageref.SidecarHex(ref); !isBlob {
				continue
			}
		}
		if !needed[hex] {
			specs = append(specs, spec)
		}
	}
	commits, err := repo.revParse(ctx, specs...)
	if err != nil {
		return nil, nil, err
	}
	for i, spec := range specs {
		blobs = append(blobs, prunedBlob{Ref: spec, Commit: commits[i]})
	}
	err = repo.checkMetadata(ctx, refs, without(slices.Collect(maps.Keys(refs)), specs))
	var check errdefs.CheckError
	if ctx.Err() == nil && errors.As(err, &check) {
		broken, err = errors.WithMessage(err, "all files stay"), nil
	}
	if err == nil && !dryRun {
		err = repo.deleteRefs(ctx, "remove the blobs that no image needs", specs...)
	}
	return blobs, broken, err
}

// without returns what is in list and not in others.
func without(list, others []string) []string {
	drop := map[string]bool{}
	for _, s := range others {
		drop[s] = true
	}
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return drop[s] })
}

// checkMetadata makes sure that the images and blobs that stay can be read down to their last file.
// What prune keeps is what commits and directories name, and it takes them at their word: it would
// delete what a broken one named before, or one that is lost.
func (r *repository) checkMetadata(ctx context.Context, refs map[string]bool, specs []string) error {
	store := &blobStore{repo: r, refs: refs}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for _, spec := range specs {
		if _, ref := splitSpec(spec); !strings.HasPrefix(ref, imageref.Prefix) {
			continue
		}
		group.Go(func() error {
			err := r.list(ctx, spec, store.mostOf(ctx, spec), func(string) {})
			var access *errdefs.AccessError
			if errors.As(err, &access) || ctx.Err() != nil {
				return err
			}
			if err != nil {
				return &damageError{errors.WithMessage(err, spec)}
			}
			return nil
		})
	}
	return group.Wait()
}

// mostOf returns how many files and directories the tree of a ref may have: a layer many, all
// others a few.
func (s *blobStore) mostOf(ctx context.Context, spec string) func() (int, error) {
	_, ref := splitSpec(spec)
	hex, ok := imageref.BlobHex(ref)
	if !ok {
		return nil
	}
	return func() (int, error) {
		b, err := s.beside(spec).blob(ctx, imageref.BlobDigest(hex))
		if err != nil {
			return 0, err
		}
		return s.mostPaths(ctx, b)
	}
}

// splitSpec parts a refspec into its remote, "" for none, and its ref.
func splitSpec(spec string) (remote, ref string) {
	if before, after, ok := strings.Cut(spec, ":"); ok {
		return before, after
	}
	return "", spec
}

// neededHex returns the hex digits of all blobs that some image needs, local or pulled from a
// remote. What is no image at all, though its ref is an image's, needs none, and is named. broken
// names the images that cannot be read, nil for none.
func neededHex(
	ctx context.Context, s *settings, repo *repository, refs map[string]bool,
) (needed map[string]bool, broken, err error) {
	needed = map[string]bool{}
	var unread []string
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for spec := range refs {
		_, ref := splitSpec(spec)
		name, ok := imageref.ImageName(ref)
		if !ok {
			continue
		}
		group.Go(func() error {
			blobs, err := repo.imageBlobs(ctx, spec)
			var nonsense *nonsenseError
			if errors.As(err, &nonsense) {
				s.warnf("%s is no image, and needs no blobs: %v", spec, err)
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			var check errdefs.CheckError
			if ctx.Err() == nil && errors.As(damage(err), &check) {
				unread = append(unread, fmt.Sprintf("image %s: %v", name, err))
				return nil
			}
			if err != nil {
				return errors.WithMessagef(err, "image %s", name)
			}
			for _, b := range blobs {
				needed[b.Digest.Encoded()] = true
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil || len(unread) == 0 {
		return needed, nil, err
	}
	slices.Sort(unread)
	return needed, errdefs.Checkf(
		"the blobs that no other image needs stay, and so do all files: %s",
		strings.Join(unread, "; "),
	), nil
}

// imageBlobs returns the blobs that an image's manifests name: of the image itself, or of each
// instance that is there.
func (r *repository) imageBlobs(ctx context.Context, rev string) ([]types.BlobInfo, error) {
	info, err := r.readCommit(ctx, rev)
	if err != nil {
		return nil, err
	}
	blob, mimeType, err := r.readManifest(ctx, info)
	if err != nil {
		ok, herr := r.hasFile(ctx, info.Checksum, imageref.FileManifest)
		if herr == nil && !ok && info.Metadata[imageref.KeyManifest] == "" {
			return nil, &nonsenseError{errors.New("its commit has no manifest")}
		}
		return nil, damage(err)
	}
	if !manifest.MIMETypeIsMultiImage(mimeType) {
		return understoodBlobs(info, blob, mimeType)
	}
	instances, err := r.instances(ctx, info.Checksum)
	if err != nil {
		return nil, err
	}
	var blobs []types.BlobInfo
	for _, i := range instances {
		more, err := imageref.Blobs(i.blob, i.mimeType)
		if err != nil {
			return nil, &nonsenseError{err} // its digest is right
		}
		blobs = append(blobs, more...)
	}
	return blobs, nil
}

// nonsenseError says that a commit which is whole is no image.
type nonsenseError struct{ err error }

func (e *nonsenseError) Error() string { return e.err.Error() }

// Unwrap makes it one of the errors that have an exit status of their own.
func (e *nonsenseError) Unwrap() error { return errdefs.CheckError{Text: e.Error()} }

// understoodBlobs is manifestBlobs of a manifest out of a commit. One that is whole, by its digest,
// and that nobody understands is nonsense; another is damaged.
func understoodBlobs(info ostree.Commit, blob []byte, mimeType string) ([]types.BlobInfo, error) {
	blobs, err := imageref.Blobs(blob, mimeType)
	if err != nil && info.Metadata[imageref.KeyDigest] != "" {
		return nil, &nonsenseError{err}
	}
	return blobs, err
}

// instance is one image of a multi-architecture image.
type instance struct {
	blob     []byte
	mimeType string
}

// instances returns the instances of an index that are in its commit, verified against the names
// that they have there.
func (r *repository) instances(ctx context.Context, commit string) ([]instance, error) {
	ok, err := r.hasFile(ctx, commit, imageref.DirInstances)
	if err != nil || !ok {
		return nil, damage(err)
	}
	names, err := r.fileNames(ctx, commit, imageref.DirInstances+"/")
	if err != nil {
		return nil, damage(err)
	}
	var all []instance
	for _, hex := range names {
		want := digest.NewDigestFromEncoded(digest.SHA256, hex)
		blob, err := r.catFile(ctx, commit, imageref.DirInstances+"/"+hex+"/"+imageref.FileManifest, maxManifestBytes)
		if err != nil {
			return nil, damage(err)
		}
		if got := digest.FromBytes(blob); got != want {
			return nil, errdefs.Checkf("the manifest of instance %s is %s", want, got)
		}
		all = append(all, instance{blob, manifest.GuessMIMEType(blob)})
	}
	return all, nil
}
