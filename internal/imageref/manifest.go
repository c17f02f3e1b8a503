package imageref

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/pkg/errors"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/pkg/compression"
	"go.podman.io/image/v5/types"

	"ostree-image/internal/errdefs"
)

// Blobs returns the config and the layers that a manifest names, in that order. Each digest is
// valid.
func Blobs(blob []byte, mimeType string) ([]types.BlobInfo, error) {
	m, err := manifest.FromBlob(blob, mimeType)
	if err != nil {
		return nil, errors.Wrap(err, "reading the manifest")
	}
	blobs := []types.BlobInfo{m.ConfigInfo()}
	for _, l := range m.LayerInfos() {
		blobs = append(blobs, l.BlobInfo)
	}
	for _, b := range blobs {
		if err := b.Digest.Validate(); err != nil {
			return nil, errors.Wrapf(err, "the manifest names the blob %q", b.Digest)
		}
	}
	return blobs, nil
}

// CanChangeLayers tells whether a manifest can name the layers as tar streams, or compressed anew,
// instead of what it names. It cannot where one is of a type that the library does not know to
// change, or lies somewhere else.
func CanChangeLayers(blob []byte, mimeType string) bool {
	for _, change := range []types.BlobInfo{
		{CompressionOperation: types.Decompress},
		{CompressionOperation: types.Compress, CompressionAlgorithm: &compression.Gzip},
	} {
		m, err := manifest.FromBlob(blob, mimeType)
		if err != nil {
			return false
		}
		var changed []types.BlobInfo
		for _, l := range m.LayerInfos() {
			if len(l.URLs) > 0 || !IsLayerType(l.MediaType) {
				return false
			}
			changed = append(changed, change)
		}
		if m.UpdateLayerInfos(changed) != nil {
			return false
		}
	}
	return true
}

// IsConfigType tells whether a blob of this media type is the config of an image that runs.
func IsConfigType(mediaType string) bool {
	return mediaType == imgspecv1.MediaTypeImageConfig || mediaType == manifest.DockerV2Schema2ConfigMediaType
}

// CheckDigest refuses a manifest that is not the one that an image's name asks for.
func CheckDigest(name string, manifest []byte) error {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nil //nolint:nilerr // a name of another kind holds no digest
	}
	digested, ok := named.(reference.Digested)
	if !ok {
		return nil
	}
	want := digested.Digest()
	if got := want.Algorithm().FromBytes(manifest); got != want {
		return errdefs.Checkf("the image's manifest is %s, and its name asks for %s", got, want)
	}
	return nil
}

// DiffIDs returns the diffIDs that an image's config names, one for each layer. It is nil where
// nothing names them: for artifacts, and for a config without any, or one that is no JSON. Their
// layers are kept byte for byte, so that the manifest proves them.
func DiffIDs(config []byte, blobs []types.BlobInfo) ([]digest.Digest, error) {
	if !IsConfigType(blobs[0].MediaType) {
		return nil, nil
	}
	var image struct {
		RootFS struct {
			DiffIDs []digest.Digest `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(config, &image); err != nil || len(image.RootFS.DiffIDs) == 0 {
		return nil, nil //nolint:nilerr // its digest is right, whatever it is
	}
	diffIDs := image.RootFS.DiffIDs
	if len(diffIDs) != len(blobs)-1 {
		return nil, errdefs.Checkf(
			"the config %s names %d diffIDs, and the manifest %d layers",
			blobs[0].Digest,
			len(diffIDs),
			len(blobs)-1,
		)
	}
	for _, d := range diffIDs {
		if err := d.Validate(); err != nil {
			return nil, errdefs.Checkf("the config %s names the diffID %q: %s", blobs[0].Digest, d, err)
		}
	}
	return diffIDs, nil
}

// LayerTypes are the media types of tar layers, without what says how they are compressed.
var LayerTypes = []string{
	manifest.DockerV2SchemaLayerMediaTypeUncompressed,
	"application/vnd.docker.image.rootfs.foreign.diff.tar",
	imgspecv1.MediaTypeImageLayer,
	"application/vnd.oci.image.layer.nondistributable.v1.tar",
}

// IsLayerType tells whether a blob of this media type must be a tar layer. A blob without a type is
// taken for one.
func IsLayerType(mediaType string) bool {
	if mediaType == "" {
		return true
	}
	for _, t := range LayerTypes {
		compression, ok := strings.CutPrefix(mediaType, t)
		if ok && slices.Contains([]string{"", ".gzip", "+gzip", ".zstd", "+zstd"}, compression) {
			return true
		}
	}
	return false
}
