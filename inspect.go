package main

import (
	"context"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/image"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/transports"
	"go.podman.io/image/v5/types"

	"ostree-image/internal/errdefs"
)

// inspectInfo is what inspect says, with the keys of skopeo inspect.
type inspectInfo struct {
	Name          string `json:",omitempty"`
	Digest        digest.Digest
	Instance      digest.Digest `json:",omitempty"` // of an index, whose digest Digest is: the instance that the rest describes
	RepoTags      []string
	Created       *time.Time
	DockerVersion string
	Labels        map[string]string
	Architecture  string
	Os            string
	Layers        []string
	LayersData    []types.ImageInspectLayer `json:",omitempty"`
	Env           []string
}

// openAny opens an image of any transport. What is not there is a NotFoundError.
func openAny(ctx context.Context, ref types.ImageReference, sys *types.SystemContext) (types.ImageSource, error) {
	src, err := ref.NewImageSource(ctx, sys)
	if _, ok := ref.(ostreeReference); err != nil && !ok {
		err = explainCopy(errors.WithMessagef(err, "initializing source %s", transports.ImageName(ref)))
	}
	return src, err
}

// titleOf is what an error calls an image.
func titleOf(ref types.ImageReference) string {
	if r, ok := ref.(ostreeReference); ok {
		return "image " + r.image
	}
	return "image " + transports.ImageName(ref)
}

// inspectImage describes an image of any transport, or the instance of an index that fits.
func inspectImage(
	ctx context.Context, ref types.ImageReference, sys *types.SystemContext,
) (info inspectInfo, err error) {
	src, err := openAny(ctx, ref, sys)
	if err != nil {
		return info, err // which names the image
	}
	defer errdefs.Close(&err, src)
	info, err = inspectSource(ctx, src, sys)
	return info, errors.WithMessage(err, titleOf(ref))
}

func inspectSource(
	ctx context.Context, src types.ImageSource, sys *types.SystemContext,
) (info inspectInfo, err error) {
	ref := src.Reference()
	top := image.UnparsedInstance(src, nil)
	blob, mimeType, err := top.Manifest(ctx)
	if err != nil {
		return info, explainCopy(err)
	}
	img, err := image.FromUnparsedImage(ctx, sys, top)
	if err != nil {
		return info, errors.WithStack(err)
	}
	data, err := img.Inspect(ctx)
	var artifact manifest.NonImageArtifactError
	if errors.As(err, &artifact) { // it has no config that would say more
		data, err = inspectArtifact(img), nil
	}
	if err != nil {
		return info, errors.WithStack(err)
	}
	sum, err := manifest.Digest(blob)
	if err != nil {
		return info, errors.WithStack(err)
	}
	instance, err := chosenInstance(blob, mimeType, sys)
	if err != nil {
		return info, err
	}
	info = inspectInfo{
		Digest:        sum,
		Instance:      instance,
		RepoTags:      []string{},
		Created:       data.Created,
		DockerVersion: data.DockerVersion,
		Labels:        data.Labels,
		Architecture:  data.Architecture,
		Os:            data.Os,
		Layers:        data.Layers,
		LayersData:    data.LayersData,
		Env:           data.Env,
	}
	if r, ok := ref.(ostreeReference); ok {
		info.Name = r.image
	} else if named := ref.DockerReference(); named != nil {
		info.Name = named.Name()
	}
	if ref.Transport().Name() == docker.Transport.Name() {
		if tags, err := docker.GetRepositoryTags(ctx, sys, ref); err == nil { // not every registry lists them
			info.RepoTags = tags
		}
	}
	return info, nil
}

// chosenInstance returns the instance of an index that fits, and "" for an image that is none.
func chosenInstance(blob []byte, mimeType string, sys *types.SystemContext) (digest.Digest, error) {
	if !manifest.MIMETypeIsMultiImage(mimeType) {
		return "", nil
	}
	list, err := manifest.ListFromBlob(blob, mimeType)
	if err != nil {
		return "", errors.WithStack(err)
	}
	instance, err := list.ChooseInstance(sys)
	return instance, errors.WithStack(err)
}

// platformOf returns a context that wants images of the platform that an image is for.
func platformOf(ctx context.Context, ref ostreeReference) (sys *types.SystemContext, err error) {
	sys = &types.SystemContext{}
	src, err := openSource(ctx, ref)
	if err != nil || manifest.MIMETypeIsMultiImage(src.mimeType) {
		return sys, err
	}
	img, err := image.FromUnparsedImage(ctx, sys, image.UnparsedInstance(src, nil))
	if err != nil {
		return nil, errors.WithMessage(err, titleOf(ref))
	}
	if data, err := img.Inspect(ctx); err == nil { // an artifact has none
		sys.OSChoice, sys.ArchitectureChoice, sys.VariantChoice = data.Os, data.Architecture, data.Variant
	}
	return sys, nil
}

// inspectArtifact tells what the manifest alone says.
func inspectArtifact(img types.Image) *types.ImageInspectInfo {
	info := &types.ImageInspectInfo{}
	for _, l := range img.LayerInfos() {
		info.Layers = append(info.Layers, l.Digest.String())
		info.LayersData = append(
			info.LayersData,
			types.ImageInspectLayer{MIMEType: l.MediaType, Digest: l.Digest, Size: l.Size, Annotations: l.Annotations},
		)
	}
	return info
}

// writeRaw writes the exact bytes of an image's manifest.
func writeRaw(ctx context.Context, ref types.ImageReference, sys *types.SystemContext, w io.Writer) (err error) {
	src, err := openAny(ctx, ref, sys)
	if err != nil {
		return err
	}
	defer errdefs.Close(&err, src)
	blob, _, err := image.UnparsedInstance(src, nil).Manifest(ctx)
	if err != nil {
		return errors.WithMessage(explainCopy(err), titleOf(ref))
	}
	_, err = w.Write(blob)
	return errors.Wrap(err, "writing the manifest")
}

// writeConfig writes the exact bytes of an image's config.
func writeConfig(ctx context.Context, ref types.ImageReference, sys *types.SystemContext, w io.Writer) (err error) {
	src, err := openAny(ctx, ref, sys)
	if err != nil {
		return err
	}
	defer errdefs.Close(&err, src)
	img, err := image.FromUnparsedImage(ctx, sys, image.UnparsedInstance(src, nil))
	if err != nil {
		return errors.WithMessage(explainCopy(err), titleOf(ref))
	}
	config, err := img.ConfigBlob(ctx)
	if err != nil {
		return errors.Wrapf(err, "the config of %s", titleOf(ref))
	}
	_, err = w.Write(config)
	return errors.Wrap(err, "writing the config")
}
