package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"sort"
	"strconv"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"github.com/pkg/errors"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/imageref"
	"ostree-image/internal/layer"
	"ostree-image/internal/ostree"
	"ostree-image/internal/proc"
	"ostree-image/internal/shellquote"
	"ostree-image/internal/spool"
	"ostree-image/internal/treesum"
)

// blobStore reads the blobs of a repository, as its refs were when it was opened. It is safe for
// parallel use.
type blobStore struct {
	repo *repository
	refs map[string]bool
	near string       // the remote, with its colon, whose refs are looked at first; "" for none
	free spool.Pieces // for layers that are put together
}

func openBlobStore(ctx context.Context, repo *repository) (*blobStore, error) {
	refs, err := repo.refs(ctx)
	if err != nil {
		return nil, err
	}
	return &blobStore{repo: repo, refs: refs, free: spool.NewPieces(spool.AheadPieces)}, nil
}

// find returns the refspec under which a ref is there: as it is, or under a remote from which it
// was pulled.
func (s *blobStore) find(ref string) (spec string, ok bool) {
	if s.near != "" && s.refs[s.near+ref] {
		return s.near + ref, true
	}
	if s.refs[ref] {
		return ref, true
	}
	var remotes []string
	for have := range s.refs {
		if remote, ok := strings.CutSuffix(have, ":"+ref); ok && !strings.Contains(remote, "/") {
			remotes = append(remotes, have)
		}
	}
	sort.Strings(remotes)
	if len(remotes) == 0 {
		return "", false
	}
	return remotes[0], true
}

// findImage returns the refspec of an image.
func (s *blobStore) findImage(ref ostreeReference) (string, error) {
	spec, ok := s.find(ref.ref())
	if !ok {
		return "", errdefs.NotFoundf("no image %s in the repository %s; see ostree-image list", ref.image, s.repo.path)
	}
	return spec, nil
}

// images returns the names and refspecs of all images, by name. Of two with one name the first is
// the one that the name finds.
func (s *blobStore) images() (names, specs []string) {
	for spec := range s.refs {
		if _, ref := splitSpec(spec); imageref.IsImage(ref) {
			specs = append(specs, spec)
		}
	}
	sort.Slice(specs, func(i, j int) bool {
		remoteI, refI := splitSpec(specs[i])
		remoteJ, refJ := splitSpec(specs[j])
		nameI, _ := imageref.ImageName(refI)
		nameJ, _ := imageref.ImageName(refJ)
		return nameI < nameJ || nameI == nameJ && remoteI < remoteJ
	})
	for _, spec := range specs {
		_, ref := splitSpec(spec)
		name, _ := imageref.ImageName(ref)
		names = append(names, name)
	}
	return names, specs
}

// beside returns a store that looks first where the image at spec lies: under the remote that it
// was pulled from.
func (s *blobStore) beside(spec string) *blobStore {
	_, ref := splitSpec(spec)
	near := *s
	near.near = strings.TrimSuffix(spec, ref)
	return &near
}

// storedBlob is a blob in the repository, and what there is to give its bytes back.
type storedBlob struct {
	digest  digest.Digest
	spec    string        // of its own commit
	side    string        // of its sidecar commit, "" for none
	size    int64         // as the manifest names it, -1 where the commit does not say
	layer   bool          // its commit's tree is a file system; otherwise it holds the file "content"
	diffID  digest.Digest // "" where the commit does not say (layers of 2017)
	tarSize int64         // bytes of the tar stream, -1 where the commit does not say
	record  string        // tar-split data from the metadata, in base64; "" for none
	hasFile map[string]bool
	commit  string       // checksum
	binding error        // that it was made for another ref
	tree    treesum.Root // of the commit
}

// blob finds a blob. Nothing but its commits is read.
func (s *blobStore) blob(ctx context.Context, d digest.Digest) (*storedBlob, error) {
	if err := d.Validate(); err != nil {
		return nil, errdefs.Checkf("blob digest %q: %s", d, err)
	}
	spec, ok := s.find(imageref.BlobRef(d))
	if !ok {
		return nil, errdefs.Checkf("blob %s is missing from the repository %s", d, s.repo.path)
	}
	info, err := s.repo.readCommit(ctx, spec)
	if err != nil {
		return nil, errors.WithMessagef(err, "blob %s", d)
	}
	b := &storedBlob{
		digest:  d,
		spec:    spec,
		size:    -1,
		tarSize: -1,
		record:  info.Metadata[imageref.KeyTarSplit],
		hasFile: map[string]bool{},
		commit:  info.Checksum,
		binding: info.CheckBinding(imageref.BlobRef(d)),
		tree:    treesum.Root{Tree: info.Root, Meta: info.RootMeta},
	}
	if b.size, err = sizeOf(info, imageref.KeySize); err != nil {
		return nil, errors.WithMessagef(err, "blob %s", d)
	}
	if b.tarSize, err = sizeOf(info, imageref.KeyUncompressedSize); err != nil {
		return nil, errors.WithMessagef(err, "blob %s", d)
	}
	if text, ok := info.Metadata[imageref.KeyUncompressedDigest]; ok {
		b.layer, b.diffID = true, digest.Digest(text)
		if err := b.diffID.Validate(); err != nil {
			return nil, errdefs.Checkf("blob %s: its commit names the diffID %q: %s", d, text, err)
		}
	}
	if side, ok := s.find(imageref.SidecarRef(d)); ok {
		// What a run left that was ended while it brought the blob of a layer that does without.
		if b.layer && b.record != "" {
			if partial, err := s.repo.isPartial(ctx, side); err != nil {
				return nil, errors.WithMessagef(err, "blob %s", d)
			} else if partial {
				return b, nil
			}
		}
		b.side = side
		names, err := s.repo.fileNames(ctx, side, "")
		if err != nil {
			return nil, errors.WithMessagef(damage(err), "blob %s", d)
		}
		for _, n := range names {
			b.hasFile[n] = true
		}
	}
	if !b.layer { // a config, or a layer of 2017, whose commit says nothing of a diffID
		if isContent, err := s.repo.hasFile(ctx, spec, imageref.FileContent); err != nil {
			return nil, errors.WithMessagef(damage(err), "blob %s", d)
		} else if !isContent {
			b.layer = true
		}
	}
	return b, nil
}

// sizeOf reads a number of bytes from a commit's metadata, -1 where it is not there.
func sizeOf(info ostree.Commit, key string) (int64, error) {
	text, ok := info.Metadata[key]
	if !ok {
		return -1, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return -1, errdefs.Checkf("its commit says that %s is %q", key, text)
	}
	return n, nil
}

// hasRecord tells whether there is tar-split data.
func (b *storedBlob) hasRecord() bool { return b.record != "" || b.hasFile[imageref.FileTarSplit] }

// canRebuild tells whether the layer's tar stream can be given back.
func (b *storedBlob) canRebuild() bool {
	return b.diffID != "" && (b.hasRecord() || b.hasFile[imageref.FileBlob])
}

// isExact tells whether the blob can be given back as the manifest names it.
func (b *storedBlob) isExact() bool {
	return !b.layer || b.hasFile[imageref.FileBlob] || b.diffID == b.digest && b.hasRecord()
}

// open returns the blob as the manifest names it. The stream ends well only if it matches the
// digest.
func (s *blobStore) open(ctx context.Context, b *storedBlob) (io.ReadCloser, error) {
	var stream io.ReadCloser
	var err error
	switch {
	case b.hasFile[imageref.FileBlob]:
		stream, err = s.repo.cat(ctx, b.side, imageref.FileBlob)
	case !b.layer:
		stream, err = s.repo.cat(ctx, b.spec, imageref.FileContent)
	case b.diffID == b.digest && b.hasRecord():
		return s.openTar(ctx, b)
	default:
		return nil, errors.Errorf(
			"blob %s: compressed bytes are not stored; re-import with --preserve-digests, or export with --remove-signatures",
			b.digest,
		)
	}
	if err != nil {
		return nil, err
	}
	return b.verified(stream, b.digest), nil
}

// openTar returns the layer's tar stream. It ends well only if it matches the diffID.
func (s *blobStore) openTar(ctx context.Context, b *storedBlob) (io.ReadCloser, error) {
	if b.diffID == "" || !b.canRebuild() {
		return nil, errors.Errorf(
			"layer %s was stored without what its exact bytes need (tar-split data), as the ostree transport did in 2017; it can be checked out, not exported",
			b.digest,
		)
	}
	if !b.hasRecord() {
		return s.openBlobTar(ctx, b)
	}
	record, err := s.openRecord(ctx, b)
	if err != nil {
		return nil, err
	}
	s.recordRebuild(b)
	return b.verifiedTar(s.newRebuild(ctx, b.spec, newRecordReader(b, record))), nil
}

// recordRebuild writes into a record how to put the layer together without this program, where the
// program tar-split is.
func (s *blobStore) recordRebuild(b *storedBlob) {
	repo := s.repo.run.journal.path(s.repo.path)
	split := "ostree cat --repo=" + repo + " " + shellquote.Word(b.side) + " /" + imageref.FileTarSplit
	if b.record != "" {
		split = "ostree show --repo=" + repo + " --print-metadata-key=" + imageref.KeyTarSplit + " " + shellquote.Word(
			b.spec,
		) + ` | tr -d "'" | base64 -d`
	}
	s.repo.run.journal.recorded("put layer "+b.digest.String()+" together, where the program tar-split is", fmt.Sprintf(
		`! command -v tar-split >/dev/null || { ostree checkout --repo=%[4]s --user-mode %[1]s "$WORK"/rebuilt; %[2]s >"$WORK"/split; `+
			`tar-split asm --input "$WORK"/split --path "$WORK"/rebuilt --output - | sha256sum | grep -q %[3]s; rm -rf "$WORK"/rebuilt "$WORK"/split; }`,
		shellquote.Word(b.spec),
		split,
		b.diffID.Encoded(),
		repo,
	))
}

// openBlobTar returns the tar stream of a layer that is kept as it came. It ends well only if it
// matches the diffID, and the blob its digest.
func (s *blobStore) openBlobTar(ctx context.Context, b *storedBlob) (io.ReadCloser, error) {
	packed, err := s.repo.cat(ctx, b.side, imageref.FileBlob)
	if err != nil {
		return nil, err
	}
	blob := b.verified(packed, b.digest)
	stream, _, err := layer.Decompress(blob, func() {})
	if err != nil {
		_ = blob.Close()
		return nil, err
	}
	return b.verifiedTar(&stackedReader{Reader: &drainingReader{stream, blob}, below: []io.Closer{stream, blob}}), nil
}

// drainingReader reads a compressed stream to its end where the decompressed one has ended, so that
// all of it is verified.
type drainingReader struct{ r, packed io.Reader }

func (d *drainingReader) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	if errors.Is(err, io.EOF) {
		if _, perr := io.Copy(io.Discard, d.packed); perr != nil {
			return n, perr
		}
	}
	return n, err
}

// openRecord returns the tar-split data: JSON, an object a line.
func (s *blobStore) openRecord(ctx context.Context, b *storedBlob) (io.ReadCloser, error) {
	var packed io.ReadCloser
	if b.record != "" {
		packed = io.NopCloser(base64.NewDecoder(base64.StdEncoding, strings.NewReader(b.record)))
	} else {
		var err error
		if packed, err = s.repo.cat(ctx, b.side, imageref.FileTarSplit); err != nil {
			return nil, err
		}
	}
	gz, err := gzip.NewReader(packed)
	if err != nil {
		_ = packed.Close()
		return nil, badRecord(b, err)
	}
	return &stackedReader{Reader: gz, below: []io.Closer{gz, packed}}, nil
}

// badRecord says that a layer's tar-split data cannot be read, and why.
func badRecord(b *storedBlob, err error) error {
	return badData(err, "the tar-split data of layer %s cannot be read", b.digest)
}

// badData makes an error of understanding what a repository holds one of the repository, unless it
// is a tool's, or of the end of the run.
func badData(err error, format string, args ...any) error {
	var terr *proc.ToolError
	var check errdefs.CheckError
	if errors.As(err, &terr) || errors.As(err, &check) || errors.Is(err, context.Canceled) ||
		errors.Is(err, context.DeadlineExceeded) {
		return errors.WithMessagef(damage(err), format, args...)
	}
	return errdefs.Checkf(format+": %s", append(args, err)...)
}

// stackedReader closes what lies below a reader with it.
type stackedReader struct {
	io.Reader
	below []io.Closer
}

func (s *stackedReader) Close() error {
	var err error
	for _, c := range s.below {
		if cerr := c.Close(); err == nil {
			err = cerr
		}
	}
	return err
}
