package main

import (
	"slices"
	"strings"

	"go.podman.io/image/v5/manifest"
	"github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// The modes of a repository (ostree(1), ostree-init).
const (
	modeBare         = "bare"
	modeBareUser     = "bare-user"
	modeBareUserOnly = "bare-user-only"
	modeArchive      = "archive"
)

// The keys of commit metadata. All values are strings.
const (
	keySize               = "docker.size"                // bytes of the blob as the manifest names it
	keyUncompressedSize   = "docker.uncompressed_size"   // bytes of the layer's tar stream
	keyUncompressedDigest = "docker.uncompressed_digest" // of the layer's tar stream: its diffID
	keyTarSplit           = "tarsplit.output"            // base64 of gzip of the tar-split record
	keyManifest           = "docker.manifest"            // the manifest's text, for old readers
	keyDigest             = "docker.digest"              // the manifest's digest
	keySignatures         = "signatures"                 // how many, in decimal
)

// keyRefBinding is the key under which ostree itself notes for which refs a commit was made. Its value is a list of strings.
const keyRefBinding = "ostree.ref-binding"

// The files of commits that hold no layer.
const (
	fileContent   = "content"           // of a config, or any blob that is no layer
	fileManifest  = "manifest.json"     // of an image
	fileSignature = "signature-"        // of an image, followed by a number from 1
	dirInstances  = "instances"         // of a multi-architecture image
	fileSplit     = "tar-split.json.gz" // of a layer's side commit
	fileBlob      = "blob"              // of a layer's side commit
)

// blobRef is where a blob is.
func blobRef(d digest.Digest) string { return refPrefix + d.Encoded() }

// sideRef is where lies what a layer's exact bytes need beside its tree.
func sideRef(d digest.Digest) string { return splitPrefix + d.Encoded() }

// blobHex returns the hex digits in the ref of a blob. ok is false for other refs.
func blobHex(ref string) (hex string, ok bool) {
	hex, ok = strings.CutPrefix(ref, refPrefix)
	return hex, ok && isBlobHex(hex)
}

// sideHex returns the hex digits in a layer's side ref. ok is false for other refs.
func sideHex(ref string) (hex string, ok bool) {
	hex, ok = strings.CutPrefix(ref, splitPrefix)
	return hex, ok && isBlobHex(hex)
}

// isBlobHex tells whether s is the hex part of a sha256, sha384 or sha512 digest.
func isBlobHex(s string) bool {
	return (len(s) == 64 || len(s) == 96 || len(s) == 128) && strings.Trim(s, "0123456789abcdef") == ""
}

// blobDigest returns the digest that has these hex digits, which isBlobHex has seen.
func blobDigest(hex string) digest.Digest {
	algorithm := map[int]digest.Algorithm{64: digest.SHA256, 96: digest.SHA384, 128: digest.SHA512}[len(hex)]
	return digest.NewDigestFromEncoded(algorithm, hex)
}

// layerTypes are the media types of tar layers, without what says how they are compressed.
var layerTypes = []string{
	manifest.DockerV2SchemaLayerMediaTypeUncompressed,
	"application/vnd.docker.image.rootfs.foreign.diff.tar",
	imgspecv1.MediaTypeImageLayer,
	"application/vnd.oci.image.layer.nondistributable.v1.tar",
}

// isLayerType tells whether a blob of this media type must be a tar layer. A blob without a type is taken for one.
func isLayerType(mediaType string) bool {
	if mediaType == "" {
		return true
	}
	for _, t := range layerTypes {
		compression, ok := strings.CutPrefix(mediaType, t)
		if ok && slices.Contains([]string{"", ".gzip", "+gzip", ".zstd", "+zstd"}, compression) {
			return true
		}
	}
	return false
}
