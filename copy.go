package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/docker/distribution/registry/api/errcode"
	v2 "github.com/docker/distribution/registry/api/v2"
	"github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/pkg/errors"
	"go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/directory"
	dockerarchive "go.podman.io/image/v5/docker/archive"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/manifest"
	ociarchive "go.podman.io/image/v5/oci/archive"
	"go.podman.io/image/v5/oci/layout"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/transports"
	"go.podman.io/image/v5/transports/alltransports"
	"go.podman.io/image/v5/types"
	"golang.org/x/sys/unix"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/proc"
	"ostree-image/internal/ui"
	"ostree-image/internal/workdir"
)

// copyOptions are the options of copy, pull and push.
type copyOptions struct {
	source, destination *types.SystemContext
	instances           instances
	format              string // oci, v2s2, or a media type; "" leaves the manifest as it is
	removeSignatures    bool
	sigstoreKey         string // the file of the private key that signs the image, "" for none
	sigstorePassphrase  []byte
	digestFile          string
	retries             int
	silent              bool // nothing is said of the steps
}

// instances are those of an index that are copied; none is set for the one that fits this machine.
type instances struct {
	all, indexOnly bool
	platforms      []copy.InstancePlatformFilter // the index with those of several
	only           *platform                     // the image of one, without the index
}

// platform is what an image runs on.
type platform struct{ os, arch, variant string }

// choose tells the library which instance of an index it is to take.
func (p platform) choose(sys *types.SystemContext) {
	sys.OSChoice, sys.ArchitectureChoice, sys.VariantChoice = p.os, p.arch, p.variant
}

// parseInstances reads --all, --multi-arch and --platform.
func parseInstances(all bool, multiArch string, platforms []string) (i instances, err error) {
	given := 0
	for _, set := range []bool{all, multiArch != "", len(platforms) > 0} {
		if set {
			given++
		}
	}
	if given > 1 {
		return i, errdefs.Usagef("--all, --multi-arch and --platform are mutually exclusive")
	}
	switch multiArch {
	case "", "system":
	case "all":
		all = true
	case "index-only":
		i.indexOnly = true
	default:
		return i, errdefs.Usagef("--multi-arch %q: it is system, all or index-only", multiArch)
	}
	i.all = all
	for _, text := range platforms {
		system, rest, ok := strings.Cut(text, "/")
		arch, variant, _ := strings.Cut(rest, "/") // of several platforms the library takes all variants
		if !ok || system == "" || arch == "" {
			return i, errdefs.Usagef("--platform %q: it is OS/ARCH[/VARIANT], such as linux/arm64", text)
		}
		i.platforms = append(i.platforms, copy.InstancePlatformFilter{OS: system, Architecture: arch})
		if len(platforms) == 1 {
			return instances{only: &platform{system, arch, variant}}, nil
		}
	}
	return i, nil
}

// choose tells the library.
func (i instances) choose(o *copy.Options) {
	switch {
	case i.all:
		o.ImageListSelection = copy.CopyAllImages
	case i.indexOnly || len(i.platforms) > 0:
		o.ImageListSelection, o.InstancePlatforms = copy.CopySpecificImages, i.platforms
	}
}

// manifestFormats are the names that skopeo has for --format.
var manifestFormats = map[string]string{
	"oci":  imgspecv1.MediaTypeImageManifest,
	"v2s1": manifest.DockerV2Schema1SignedMediaType,
	"v2s2": manifest.DockerV2Schema2MediaType,
}

// parseImage reads an image name of any transport.
func (s *settings) parseImage(name string) (types.ImageReference, error) {
	if rest, ok := strings.CutPrefix(name, "docker://"); ok { // whose library refuses a tag with a digest
		name = "docker://" + s.dropTag(rest)
	}
	ref, err := alltransports.ParseImageName(name)
	if err == nil {
		return ref, nil
	}
	var notFound errdefs.NotFoundError
	if errors.As(err, &notFound) {
		return nil, err
	}
	return nil, errdefs.Usagef("%s%s", err, didYouMeanRegistry(name))
}

// didYouMeanRegistry proposes docker:// for a name that has no transport and could be one of a
// registry.
func didYouMeanRegistry(name string) string {
	if transport, _, ok := strings.Cut(name, ":"); ok && transports.Get(transport) != nil {
		return ""
	}
	if _, err := reference.ParseNormalizedNamed(name); err != nil {
		return ""
	}
	return "; did you mean docker://" + name + "?"
}

// copyImage copies an image between two transports.
func (s *settings) copyImage(ctx context.Context, source, destination types.ImageReference, o copyOptions) (err error) {
	format := manifestFormats[o.format]
	if o.format != "" && format == "" {
		return errdefs.Usagef("--format %q: it is oci, v2s1 or v2s2", o.format)
	}
	if err := s.checkSigning(ctx, destination); err != nil {
		return err
	}
	s.removeSignatures, s.sameRepository = o.removeSignatures, inOneRepository(source, destination)
	if err := s.checkManifestFiles(source); err != nil {
		return err
	}
	policy, err := s.policyContext(o.source)
	if err != nil {
		return err
	}
	defer func() {
		if derr := policy.Destroy(); err == nil {
			err = errors.WithStack(derr)
		}
	}()
	events, endEvents := s.progress.Follow()
	defer endEvents()
	options := &copy.Options{
		SourceCtx: o.source, DestinationCtx: o.destination,
		RemoveSignatures:             o.removeSignatures,
		SignBySigstorePrivateKeyFile: o.sigstoreKey, SignSigstorePrivateKeyPassphrase: o.sigstorePassphrase,
		PreserveDigests: s.preserveDigests, ForceManifestMIMEType: format,
		MaxParallelDownloads: s.parallelCopies, ReportWriter: s.progress.Report(),
	}
	if destination.DockerReference() == nil { // a signature says of which name
		options.SignIdentity = source.DockerReference()
	}
	if o.silent {
		options.ReportWriter = nil
	} else if events != nil {
		options.Progress, options.ProgressInterval = events, ui.ProgressInterval
	}
	o.instances.choose(options)
	var written []byte
	for attempt := 0; ; attempt++ {
		written, err = s.copyOnce(ctx, policy, source, destination, options)
		if err == nil {
			break
		}
		var vanished *vanishedError
		var distrusted *reimportError
		again := attempt < o.retries && isPassing(err) ||
			attempt < vanishedRetries && (errors.As(err, &vanished) || errors.As(err, &distrusted))
		if !again || ctx.Err() != nil {
			if into, ok := destination.(ostreeReference); ok {
				err = proc.NoRoom(err, "the repository "+into.repo)
			}
			return explainCopy(err)
		}
		s.notef("%s: trying again", err)
		if err := sleep(ctx, time.Second<<min(attempt, 5)); err != nil {
			return err
		}
	}
	if o.digestFile != "" {
		sum, err := manifest.Digest(written)
		if err != nil {
			return errors.WithStack(err)
		}
		if err := writeDigestFile(o.digestFile, sum); err != nil {
			return errors.Wrap(err, "writing the digest file")
		}
	}
	return nil
}

// copyOnce copies an image, and gives up where a registry sends nothing any more.
func (s *settings) copyOnce(
	ctx context.Context, policy *signature.PolicyContext,
	source, destination types.ImageReference, options *copy.Options,
) ([]byte, error) {
	if _, ok := destination.(ostreeReference); !ok {
		return copy.Image(ctx, policy, destination, source, options)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.idle = newIdleWatch(source, s.idleTimeout, cancel)
	defer s.idle.end()
	written, err := copy.Image(ctx, policy, destination, source, options)
	var idle *idleError
	if err != nil && errors.As(context.Cause(ctx), &idle) {
		err = idle
	}
	return written, err
}

// writeDigestFile writes --digestfile. A symbolic link there may be anyone's, and is not followed,
// but those of open files.
func writeDigestFile(path string, sum digest.Digest) (err error) {
	flags := os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	if path = filepath.Clean(path); path != "/dev/stdout" && path != "/dev/stderr" && filepath.Dir(path) != "/dev/fd" {
		flags |= unix.O_NOFOLLOW
	}
	f, err := workdir.OpenFile(path, flags, 0o644)
	if err != nil {
		return err
	}
	defer errdefs.Close(&err, f)
	_, err = f.WriteString(sum.String())
	return errors.WithStack(err)
}

// checkManifestFiles refuses an image on disk with a manifest that is too large: the library reads
// all of it before it asks. What cannot be read here is the library's to complain of.
func (s *settings) checkManifestFiles(source types.ImageReference) error {
	var files []string
	path := source.StringWithinTransport()
	switch source.Transport().Name() {
	case directory.Transport.Name():
		files = []string{filepath.Join(path, "manifest.json")}
	case layout.Transport.Name():
		dir, _, _ := strings.Cut(path, ":")
		index := filepath.Join(dir, imgspecv1.ImageIndexFile)
		if err := s.checkManifestFile(index); err != nil {
			return err
		}
		top, err := layout.LoadManifestDescriptor(source)
		if err != nil {
			return nil
		}
		file, ok := layoutBlob(dir, top.Digest)
		if !ok {
			return nil
		}
		files = []string{file}
		if manifest.MIMETypeIsMultiImage(top.MediaType) && s.checkManifestFile(file) == nil {
			files = append(files, instanceFiles(dir, file, top.MediaType)...)
		}
	}
	for _, f := range files {
		if err := s.checkManifestFile(f); err != nil {
			return err
		}
	}
	return nil
}

func (s *settings) checkManifestFile(path string) error {
	info, err := os.Stat(path)
	if err != nil || s.maxManifest == 0 || info.Size() <= s.maxManifest {
		return nil
	}
	return errors.Errorf(
		"the manifest %s has %d bytes, more than %d, the limit of --max-manifest-size",
		path,
		info.Size(),
		s.maxManifest,
	)
}

// layoutBlob returns where an OCI layout has a blob.
func layoutBlob(dir string, d digest.Digest) (path string, ok bool) {
	if d.Validate() != nil {
		return "", false
	}
	return filepath.Join(dir, imgspecv1.ImageBlobsDir, d.Algorithm().String(), d.Encoded()), true
}

// instanceFiles returns where an OCI layout has the manifests that an index names.
func instanceFiles(dir, index, mimeType string) (files []string) {
	blob, err := os.ReadFile(index)
	if err != nil {
		return nil
	}
	list, err := manifest.ListFromBlob(blob, mimeType)
	if err != nil {
		return nil
	}
	for _, d := range list.Instances() {
		if file, ok := layoutBlob(dir, d); ok {
			files = append(files, file)
		}
	}
	return files
}

// inOneRepository tells whether both sides of a copy are in the same OSTree repository.
func inOneRepository(source, destination types.ImageReference) bool {
	from, ok1 := source.(ostreeReference)
	to, ok2 := destination.(ostreeReference)
	return ok1 && ok2 && from.repo == to.repo
}

// vanishedRetries is how often a copy starts over because another run removed a blob that it had
// found.
const vanishedRetries = 3

// isPassing tells whether an error may be gone at the next try. The program's own verdicts stay.
func isPassing(err error) bool {
	var usage errdefs.UsageError
	var notFound errdefs.NotFoundError
	var check errdefs.CheckError
	var tool *proc.ToolError
	var missing *errdefs.MissingToolError
	return !errors.As(err, &usage) && !errors.As(err, &notFound) && !errors.As(err, &check) &&
		!errors.As(err, &tool) && !errors.As(err, &missing)
}

// explainCopy adds what the user can do about the library's error, and makes an image that is not
// there an error of that kind.
func explainCopy(err error) error {
	var rejected signature.PolicyRequirementError
	var invalid signature.InvalidSignatureError
	var open *openError
	switch {
	case errors.As(err, &open):
		return open.err
	case isMissingSource(err):
		return errdefs.NotFoundError{Text: err.Error()}
	case errors.As(err, &rejected),
		errors.As(err, &invalid),
		strings.Contains(err.Error(), "does not match expected sha"),
		strings.Contains(err.Error(), "Digest did not match"),
		strings.Contains(err.Error(), "Digest of source image's manifest would not match destination reference"),
		strings.Contains(err.Error(), "does not match provided manifest digest"):
		return errdefs.CheckError{Text: err.Error()}
	}
	if strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") {
		return errors.WithMessage(
			err,
			"the registry speaks no HTTPS; if it is to be trusted all the same, use --tls-verify=false",
		)
	}
	if strings.Contains(err.Error(), "Cannot write sigstore signature") ||
		strings.Contains(err.Error(), "unsupported signature format") ||
		strings.Contains(err.Error(), "sigstore-json") {
		return errors.WithMessage(
			err,
			"the image has sigstore signatures, which ostree: cannot hold; leave them behind with --remove-signatures",
		)
	}
	return err
}

// isMissingSource tells whether a copy failed since its source has no such image.
func isMissingSource(err error) bool {
	var inLayout layout.ImageNotFoundError
	var inArchive ociarchive.ImageNotFoundError
	var archive ociarchive.ArchiveFileNotFoundError
	if errors.As(err, &inLayout) || errors.As(err, &inArchive) || errors.As(err, &archive) {
		return true
	}
	var registry errcode.Error
	if errors.As(err, &registry) {
		return registry.Code == v2.ErrorCodeManifestUnknown || registry.Code == v2.ErrorCodeNameUnknown
	}
	// The other transports say it in words only.
	return (strings.HasPrefix(err.Error(), "initializing source ") || strings.HasPrefix(err.Error(), "determining manifest MIME type for ")) &&
		(errors.Is(err, os.ErrNotExist) || strings.Contains(err.Error(), "not found"))
}

// sleep waits for d, or for the end of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// pullName returns the name under which an image is stored that the user did not name: its own, or,
// of an archive that docker or podman made, the first of its tags.
func pullName(source types.ImageReference, sys *types.SystemContext) (string, error) {
	if r, ok := source.(ostreeReference); ok {
		return r.image, nil
	}
	if named := source.DockerReference(); named != nil {
		return named.String(), nil
	}
	if source.Transport().Name() == dockerarchive.Transport.Name() {
		if name := archiveName(source, sys); name != "" {
			return name, nil
		}
	}
	return "", errdefs.Usagef(
		"%s:%s has no name of its own; give a NAME to store it under",
		source.Transport().Name(),
		source.StringWithinTransport(),
	)
}

// archiveName returns the first tag of the only image of an archive, "" where there is none.
func archiveName(source types.ImageReference, sys *types.SystemContext) string {
	reader, err := dockerarchive.NewReader(sys, source.StringWithinTransport())
	if err != nil {
		return "" // who opens it for the copy says why
	}
	defer func() { _ = reader.Close() }()
	images, err := reader.List()
	if err != nil || len(images) != 1 {
		return ""
	}
	for _, ref := range images[0] {
		if named := ref.DockerReference(); named != nil {
			return named.String()
		}
	}
	return ""
}
