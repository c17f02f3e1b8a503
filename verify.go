package main

import (
	"context"
	"maps"
	"os"
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
	blobs   map[string]func() checkedBlob // by the remote and the digest
	objects map[string]string             // what fsck says of the commits that it names, by their checksums
	mode    string                        // of the repository
	packed  bool                          // it is archive
	denied  error                         // the first thing that this user may not read
}

// text is that of an error for a problem. What this user may not read is none, and ends the run
// instead.
func (v *verifier) text(err error) string {
	var access *errdefs.AccessError
	if errors.As(err, &access) {
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.denied == nil {
			v.denied = err
		}
	}
	return ui.OneLine(err)
}

// verifyImages checks all that the images need: that their objects are what ostree fsck expects,
// and that their manifests, configs and layers give the bytes that their digests name.
func verifyImages(
	ctx context.Context,
	s *settings,
	repo *repository,
	images []ostreeReference,
	parallel int,
) ([]verifyResult, error) {
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
	v := &verifier{settings: s, repo: repo, store: store, blobs: map[string]func() checkedBlob{}}
	unknown, err := v.fsck(ctx)
	for tries := 1; err == nil && len(unknown) > 0 && tries < fsckTries; tries++ { // it trips over what is removed meanwhile
		unknown, err = v.fsck(ctx)
	}
	if err == nil && len(unknown) > 0 {
		unknown, err = v.fsckObjects(ctx, unknown)
	}
	if err != nil {
		return nil, err
	}
	mode, err := repo.config(ctx, "core.mode")
	if err != nil {
		return nil, err
	}
	v.mode, v.packed = mode, mode == ostree.Archive || mode == "archive-z2"
	results := []verifyResult{}
	var gone error
	for i, spec := range specs {
		problems, err := v.settledImage(ctx, names[i], spec, parallel)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if errors.Is(err, errNoRef) {
			gone = errdefs.NotFoundError{Text: errdefs.GoneError{Name: names[i]}.Error()}
			s.notef("%s", gone)
			continue
		}
		if err != nil {
			return nil, err
		}
		results = append(
			results,
			verifyResult{Name: names[i], OK: len(problems) == 0, Problems: append([]verifyProblem{}, problems...)},
		)
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

// settledImage checks an image, and once more where its problems may be those of a repository that
// changed meanwhile. The error is errNoRef where the image is gone.
func (v *verifier) settledImage(
	ctx context.Context,
	name, spec string,
	parallel int,
) (problems []verifyProblem, err error) {
	for range imageTries {
		problems = v.image(ctx, name, spec, parallel)
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
		v.store, v.blobs = &store, map[string]func() checkedBlob{}
		if _, err := v.fsck(ctx); err != nil {
			return nil, err
		}
	}
	return problems, nil
}

// checkKeyrings refuses a directory without public keys: ostree reads them from *.gpg files, and
// not from the pubring.kbx of today's gpg.
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
	return errors.Errorf(
		"%s holds no *.gpg file, where ostree looks for public keys; write one with: gpg --export KEY-ID >DIR/KEY.gpg",
		dir,
	)
}

// commitProblem returns what is known to be wrong with the commit of a ref and its objects, "" for
// nothing.
func (v *verifier) commitProblem(ctx context.Context, spec string, info ostree.Commit) string {
	if v.settings.gpgVerify {
		if ok, err := v.repo.signed(ctx, info.Checksum, v.settings.gpgHomedir); err != nil {
			return v.text(err)
		} else if !ok {
			return "commit " + info.Checksum + " has no good signature by a key in " + v.settings.gpgHomedir
		}
	}
	// Whoever made or signed it may have made others, which are good under their own refs only. Old
	// commits name none.
	_, ref := splitSpec(spec)
	if v.settings.gpgVerify && len(info.Bindings) == 0 {
		return "commit " + info.Checksum + " does not say for which refs it was made"
	}
	if err := info.CheckBinding(ref); err != nil {
		return err.Error()
	}
	if text := v.objects[info.Checksum]; text != "" {
		return text
	}
	if _, err := os.Lstat(v.repo.partialMark(info.Checksum)); err == nil {
		return "commit " + info.Checksum + " is marked as partial, so it is not checked; pull or copy the image again"
	}
	return ""
}

// image checks one image.
func (v *verifier) image(ctx context.Context, name, spec string, parallel int) (problems []verifyProblem) {
	add := func(err error) { problems = append(problems, v.problem("", err)) }
	info, err := v.repo.readCommit(ctx, spec)
	if err != nil {
		add(err)
		return problems
	}
	store := v.store.beside(spec)
	if text := v.commitProblem(ctx, spec, info); text != "" {
		problems = append(problems, verifyProblem{Error: text})
	} else if v.packed {
		if err := v.checkPlainSizes(ctx, info.Checksum); err != nil {
			add(damage(err))
		}
	}
	// The file counts, not its copy in the metadata, so the file is read whatever that says.
	want := digest.Digest(info.Metadata[imageref.KeyDigest])
	content, err := v.repo.catFile(ctx, info.Checksum, imageref.FileManifest, maxManifestBytes)
	if err != nil {
		problems = append(
			problems,
			verifyProblem{Expected: want.String(), Error: v.text(errors.WithMessage(err, "reading the manifest"))},
		)
	} else if got := digest.FromBytes(content); want != "" && got != want {
		problems = append(
			problems,
			verifyProblem{
				Expected: want.String(),
				Actual:   got.String(),
				Error:    "the manifest does not match its digest",
			},
		)
	}
	if text := info.Metadata[imageref.KeyManifest]; text != "" && err == nil && text != string(content) {
		add(errdefs.Checkf("the manifest in the commit's metadata is another than the file %s", imageref.FileManifest))
	}
	if _, err := v.repo.signatureNumbers(ctx, info, ""); err != nil {
		add(err)
	}
	if err := v.checkNames(ctx, info.Checksum, func(name string) bool {
		return name == imageref.FileManifest || name == imageref.DirInstances ||
			strings.HasPrefix(name, imageref.FileSignature)
	}); err != nil {
		add(err)
	}
	top, mimeType, err := v.repo.readManifest(ctx, info)
	if err == nil {
		err = imageref.CheckDigest(name, top)
	}
	if err != nil {
		add(err)
		return problems
	}
	manifests := []instance{{top, mimeType}}
	if manifest.MIMETypeIsMultiImage(mimeType) {
		if manifests, err = v.repo.instances(ctx, info.Checksum); err != nil {
			add(err)
			return problems
		}
	}
	seen := map[digest.Digest]bool{}
	var config []byte // empty for an index, nil where it cannot be read
	for _, m := range manifests {
		blobs, err := imageref.Blobs(m.blob, m.mimeType)
		if err != nil {
			add(err)
			continue
		}
		found, content := v.manifest(ctx, store, blobs, seen, parallel)
		problems = append(problems, found...)
		if config = content; manifest.MIMETypeIsMultiImage(mimeType) {
			config = []byte{}
		}
	}
	if err := checkSaid(info, config); err != nil && config != nil {
		add(err)
	}
	return problems
}

// checkSaid refuses an image's commit that says other things of the config than the config does. The
// commit of an index, and one of an earlier release, says nothing.
func checkSaid(info ostree.Commit, config []byte) error {
	said, ok := imageref.ConfigFromMetadata(info.Metadata)
	if !ok || maps.Equal(said.Metadata(), imageref.ParseConfig(config).Metadata()) {
		return nil
	}
	return errdefs.Checkf("the image's commit says that it is for %s/%s, made %s, and its config says another thing",
		said.OS, said.Architecture, info.Metadata[imageref.KeyCreated])
}

// checkNames refuses a commit of files of ours that holds anything else.
func (v *verifier) checkNames(ctx context.Context, commit string, ours func(name string) bool) error {
	names, err := v.repo.fileNames(ctx, commit, "")
	if err != nil {
		return damage(err)
	}
	for _, name := range names {
		if !ours(name) {
			return errdefs.Checkf("commit %s holds %s, which does not belong there", commit, ui.Quoted(name))
		}
	}
	return nil
}

// manifest checks the blobs that one manifest names, a config and layers. What is wrong with one is
// returned only once for all manifests that share seen. The config is nil
// where it cannot be read.
func (v *verifier) manifest(
	ctx context.Context, store *blobStore, blobs []types.BlobInfo, seen map[digest.Digest]bool, parallel int,
) (problems []verifyProblem, config []byte) {
	checked := make([]checkedBlob, len(blobs))
	var group errgroup.Group
	group.SetLimit(max(1, parallel))
	for i, b := range blobs {
		group.Go(func() error {
			checked[i] = v.blob(ctx, store, b.Digest)
			return nil
		})
	}
	_ = group.Wait()
	for i, b := range blobs {
		if !seen[b.Digest] {
			seen[b.Digest] = true
			problems = append(problems, checked[i].problems...)
		}
	}
	if len(checked[0].problems) > 0 {
		return problems, nil
	}
	config, err := store.readSmall(ctx, blobs[0].Digest)
	var proofs []digest.Digest
	if err == nil {
		proofs, err = imageref.DiffIDs(config, blobs)
	}
	if err != nil {
		return append(problems, v.problem(blobs[0].Digest, err)), nil
	}
	for i, b := range checked {
		if want := blobs[i].Size; len(b.problems) == 0 && b.size != want && want >= 0 {
			problems = append(problems, v.problem(
				blobs[i].Digest,
				errdefs.Checkf(
					"its commit says that it has %d bytes (-1 for nothing), and the manifest %d",
					b.size,
					want,
				),
			))
		}
	}
	for i, b := range checked[1:] {
		layer := blobs[i+1].Digest
		switch {
		case len(b.problems) > 0 || !b.layer:
		case proofs == nil && !b.exact:
			problems = append(
				problems,
				v.problem(layer, errdefs.Checkf("nothing that the image names proves this layer: no diffID, "+
					"and its compressed bytes are not stored; import the image again with --preserve-digests")),
			)
		default:
			if err := checkDiffID(layer, b.diffID, proofs, i); err != nil {
				p := v.problem(layer, err)
				p.Expected, p.Actual = proofs[i].String(), b.diffID.String()
				problems = append(problems, p)
			}
		}
	}
	return problems, config
}

// problem describes an error about a blob, "" for the image itself.
func (v *verifier) problem(blob digest.Digest, err error) verifyProblem {
	p := verifyProblem{Blob: blob.String(), Error: v.text(err)}
	var wrong *digestError
	if errors.As(err, &wrong) {
		p.Expected, p.Actual = wrong.expected.String(), wrong.actual.String()
	}
	return p
}

// checkedBlob is what came of checking a blob.
type checkedBlob struct {
	problems []verifyProblem
	size     int64 // bytes as its commit says, -1 where it does not
	layer    bool
	exact    bool          // it can be given back as the manifest names it
	diffID   digest.Digest // of a layer, "" where its commit does not say
}

// blob checks one blob, unless that was done before.
func (v *verifier) blob(ctx context.Context, store *blobStore, d digest.Digest) checkedBlob {
	key := store.near + d.String()
	v.mu.Lock()
	check, known := v.blobs[key]
	if !known {
		check = sync.OnceValue(func() checkedBlob { return v.checkBlob(ctx, store, d) })
		v.blobs[key] = check
	}
	v.mu.Unlock()
	return check()
}

func (v *verifier) checkBlob(ctx context.Context, store *blobStore, d digest.Digest) (checked checkedBlob) {
	add := func(err error) { checked.problems = append(checked.problems, v.problem(d, err)) }
	b, err := store.blob(ctx, d)
	if err != nil {
		p := v.problem(d, err)
		p.Expected = d.String()
		checked.problems = append(checked.problems, p)
		return checked
	}
	checked.size, checked.layer, checked.exact, checked.diffID = b.size, b.layer, b.isExact(), b.diffID
	sidecar := ""
	for _, spec := range []string{b.spec, b.side} {
		if spec == "" {
			continue
		}
		info, err := v.repo.readCommit(ctx, spec)
		if err != nil {
			add(err)
			continue
		}
		if spec == b.side {
			sidecar = info.Checksum
		}
		if text := v.commitProblem(ctx, spec, info); text != "" {
			checked.problems = append(checked.problems, verifyProblem{Blob: d.String(), Error: text})
		} else if err := v.checkTree(ctx, store, b, spec); err != nil {
			add(damage(err))
		}
		if !b.layer && spec == b.spec {
			if err := v.checkNames(
				ctx,
				info.Checksum,
				func(name string) bool { return name == imageref.FileContent },
			); err != nil {
				add(err)
			}
		}
	}
	var proved digest.Digest
	if b.layer {
		proved, err = b.diffID, store.proveLayer(ctx, b, v.mode)
	} else {
		proved, err = d, store.proveContent(ctx, b)
	}
	if err != nil {
		p := v.problem(d, err)
		if p.Expected == "" {
			if p.Expected = d.String(); !b.isExact() {
				p.Expected = b.diffID.String()
			}
		}
		checked.problems = append(checked.problems, p)
	}
	if key := provenKey(d, b.commit, sidecar); len(checked.problems) > 0 {
		v.settings.proven.drop(key)
	} else {
		v.settings.proven.add(key, provenBlob{proved, b.size})
	}
	return checked
}
