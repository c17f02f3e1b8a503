package main

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/pkg/errors"
	"go.podman.io/image/v5/directory/explicitfilepath"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/image"
	"go.podman.io/image/v5/types"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/imageref"
)

const transportName = "ostree"

// ostreeTransport is the "ostree:" of image names. Its settings are those of the run.
type ostreeTransport struct{ settings *settings }

// ostreeReference is an image in a repository.
type ostreeReference struct {
	transport ostreeTransport
	image     string // with tag or digest, otherwise as it was written
	repo      string // absolute, symbolic links resolved
}

func (t ostreeTransport) Name() string { return transportName }

// ParseReference reads NAME[:TAG|@DIGEST][@/PATH/OF/REPO], the syntax that skopeo had.
func (t ostreeTransport) ParseReference(text string) (types.ImageReference, error) {
	return t.parse(text)
}

func (t ostreeTransport) parse(text string) (ostreeReference, error) {
	name, path, err := t.split(text)
	if err != nil {
		return ostreeReference{}, err
	}
	return newReference(t, name, path)
}

// split parts an image's name from the path of its repository, which is the default one where none
// is named.
func (t ostreeTransport) split(text string) (name, path string, err error) {
	name, path, named := strings.Cut(text, "@/")
	if named {
		return name, "/" + path, nil
	}
	path, err = t.settings.defaultRepo()
	return name, path, err
}

// newReference returns the reference of an image in the repository at path. The name becomes
// NAME:latest where it has neither tag nor digest, loses the tag where it has both, and stays as it
// was written otherwise.
func newReference(t ostreeTransport, name, path string) (ostreeReference, error) {
	name, err := imageref.Normalize(t.settings.dropTag(name))
	if err != nil {
		return ostreeReference{}, err
	}
	path, err = normalizeRepo(path)
	if err != nil {
		return ostreeReference{}, err
	}
	return ostreeReference{transport: t, image: name, repo: path}, nil
}

// dropTag takes the tag out of a name that has a digest, too, and says so: the digest says which
// image it is.
func (s *settings) dropTag(name string) string {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	tagged, ok1 := named.(reference.Tagged)
	_, ok2 := named.(reference.Digested)
	repository, sum, ok3 := strings.Cut(name, "@")
	if !ok1 || !ok2 || !ok3 {
		return name
	}
	s.warnf("image name %q: the tag is ignored, since the digest says which image it is", name)
	return strings.TrimSuffix(repository, ":"+tagged.Tag()) + "@" + sum
}

// normalizeRepo makes a repository's path absolute and resolves symbolic links. A colon would make
// the policy's scopes ambiguous, so the old transport refused it, and so does this; ostree
// pull-local reads a path as a URL.
func normalizeRepo(path string) (string, error) {
	resolved := path
	if !strings.ContainsAny(path, ":%#") {
		var err error
		if resolved, err = explicitfilepath.ResolvePathToFullyExplicit(path); err != nil {
			if os.IsNotExist(errors.Cause(err)) {
				return "", errdefs.NotFoundf("repository path %q: its parent directory does not exist", path)
			}
			return "", errdefs.Usagef("repository path %q: %s", path, err)
		}
	}
	for _, c := range []struct{ sign, name string }{{":", "a colon"}, {"%", "a percent sign"}, {"#", "a number sign"}} {
		if strings.Contains(resolved, c.sign) {
			return "", errdefs.Usagef("repository path %q: %s cannot stand in it", resolved, c.name)
		}
	}
	return resolved, nil
}

var scopeName = regexp.MustCompile(`^[^@]+$`)

// ValidatePolicyConfigurationScope accepts what the two methods below give: /REPO:NAME with any
// number of the name's last components left out.
func (t ostreeTransport) ValidatePolicyConfigurationScope(scope string) error {
	repo, name, ok := strings.Cut(scope, ":")
	if !ok {
		return errors.Errorf("invalid scope %q: it is /REPO:NAME", scope)
	}
	if !strings.HasPrefix(repo, "/") || filepath.Clean(repo) != repo {
		return errors.Errorf("invalid scope %q: the repository's path is not absolute and clean", scope)
	}
	if !scopeName.MatchString(name) && !strings.Contains(name, "@sha256:") {
		return errors.Errorf("invalid scope %q: no image name", scope)
	}
	return nil
}

func (r ostreeReference) Transport() types.ImageTransport { return r.transport }

func (r ostreeReference) StringWithinTransport() string { return r.image + "@" + r.repo }

// DockerReference returns the name where it is written in full, so that signatures can name it, and
// nil otherwise: "debian:latest" in a repository is not docker.io/library/debian:latest.
func (r ostreeReference) DockerReference() reference.Named {
	named, err := reference.ParseNormalizedNamed(r.image)
	if err != nil || named.String() != r.image {
		return nil
	}
	return named
}

func (r ostreeReference) PolicyConfigurationIdentity() string { return r.repo + ":" + r.image }

func (r ostreeReference) PolicyConfigurationNamespaces() []string {
	name := r.image
	if i := strings.LastIndexByte(name, '@'); i >= 0 {
		name = name[:i]
	}
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name = name[:i]
	}
	var spaces []string
	for {
		spaces = append(spaces, r.repo+":"+name)
		i := strings.LastIndexByte(name, '/')
		if i < 0 {
			return spaces
		}
		name = name[:i]
	}
}

func (r ostreeReference) NewImage(ctx context.Context, sys *types.SystemContext) (types.ImageCloser, error) {
	source, err := r.NewImageSource(ctx, sys)
	if err != nil {
		return nil, err
	}
	img, err := image.FromSource(ctx, sys, source)
	if err != nil {
		_ = source.Close()
	}
	return img, err
}

func (r ostreeReference) NewImageDestination(
	ctx context.Context,
	sys *types.SystemContext,
) (types.ImageDestination, error) {
	return newDestination(ctx, r, sys)
}

// ref is where the image is in the repository.
func (r ostreeReference) ref() string { return imageref.Prefix + imageref.Encode(r.image) }

// repository returns the reference's repository.
func (r ostreeReference) repository() *repository {
	return r.transport.settings.repository(r.repo)
}
