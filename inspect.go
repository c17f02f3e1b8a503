package main

import (
	"context"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"go.podman.io/image/v5/image"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/types"
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

// inspectImage describes an image, or the instance of an index that fits.
func inspectImage(ctx context.Context, ref ostreeReference, sys *types.SystemContext) (inspectInfo, error) {
	src, err := openSource(ctx, ref)
	if err != nil {
		return inspectInfo{}, err
	}
	img, err := image.FromUnparsedImage(ctx, sys, image.UnparsedInstance(src, nil))
	if err != nil {
		return inspectInfo{}, errors.Wrapf(err, "image %s", ref.image)
	}
	data, err := img.Inspect(ctx)
	var artifact manifest.NonImageArtifactError
	if errors.As(err, &artifact) { // it has no config that would say more
		data, err = inspectArtifact(img), nil
	}
	if err != nil {
		return inspectInfo{}, errors.Wrapf(err, "image %s", ref.image)
	}
	sum, err := manifest.Digest(src.manifest)
	if err != nil {
		return inspectInfo{}, errors.Wrapf(err, "image %s", ref.image)
	}
	instance, err := chosenInstance(src, sys)
	if err != nil {
		return inspectInfo{}, errors.Wrapf(err, "image %s", ref.image)
	}
	return inspectInfo{
		Name: ref.image, Digest: sum, Instance: instance, RepoTags: []string{}, Created: data.Created, DockerVersion: data.DockerVersion, Labels: data.Labels,
		Architecture: data.Architecture, Os: data.Os, Layers: data.Layers, LayersData: data.LayersData, Env: data.Env,
	}, nil
}

// chosenInstance returns the instance of an index that fits, and "" for an image that is none.
func chosenInstance(src *source, sys *types.SystemContext) (digest.Digest, error) {
	if !manifest.MIMETypeIsMultiImage(src.mimeType) {
		return "", nil
	}
	list, err := manifest.ListFromBlob(src.manifest, src.mimeType)
	if err != nil {
		return "", errors.WithStack(err)
	}
	instance, err := list.ChooseInstance(sys)
	return instance, errors.WithStack(err)
}

// inspectArtifact tells what the manifest alone says.
func inspectArtifact(img types.Image) *types.ImageInspectInfo {
	info := &types.ImageInspectInfo{}
	for _, l := range img.LayerInfos() {
		info.Layers = append(info.Layers, l.Digest.String())
		info.LayersData = append(info.LayersData, types.ImageInspectLayer{MIMEType: l.MediaType, Digest: l.Digest, Size: l.Size, Annotations: l.Annotations})
	}
	return info
}

// writeRaw writes the exact bytes of an image's manifest.
func writeRaw(ctx context.Context, ref ostreeReference, w io.Writer) error {
	src, err := openSource(ctx, ref)
	if err != nil {
		return err
	}
	_, err = w.Write(src.manifest)
	return errors.Wrap(err, "writing the manifest")
}

// writeConfig writes the exact bytes of an image's config.
func writeConfig(ctx context.Context, ref ostreeReference, sys *types.SystemContext, w io.Writer) error {
	src, err := openSource(ctx, ref)
	if err != nil {
		return err
	}
	img, err := image.FromUnparsedImage(ctx, sys, image.UnparsedInstance(src, nil))
	if err != nil {
		return errors.Wrapf(err, "image %s", ref.image)
	}
	config, err := img.ConfigBlob(ctx)
	if err != nil {
		return errors.Wrapf(err, "the config of image %s", ref.image)
	}
	_, err = w.Write(config)
	return errors.Wrap(err, "writing the config")
}
