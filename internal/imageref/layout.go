// Package imageref knows how images lie in a repository: the refs of images and blobs, the keys of
// their metadata, their files, and which blobs a manifest names.
package imageref

import (
	"strings"

	"github.com/opencontainers/go-digest"
)

// Where images and blobs lie in a repository: below these prefixes of refs.
const (
	Prefix        = "ociimage/"
	SidecarPrefix = "ociimage/tarsplit/"
)

// The keys of commit metadata. All values are strings.
const (
	KeySize               = "docker.size"                // bytes of the blob as the manifest names it
	KeyUncompressedSize   = "docker.uncompressed_size"   // bytes of the layer's tar stream
	KeyUncompressedDigest = "docker.uncompressed_digest" // of the layer's tar stream: its diffID
	KeyTarSplit           = "tarsplit.output"            // base64 of gzip of the tar-split record
	KeyManifest           = "docker.manifest"            // the manifest's text, for old readers
	KeyDigest             = "docker.digest"              // the manifest's digest
	KeySignatures         = "signatures"                 // how many, in decimal
	KeyOS                 = "docker.os"                  // of the image's config, as the next two
	KeyArchitecture       = "docker.architecture"
	KeyCreated            = "docker.created" // RFC 3339
)

// The files of commits that hold no layer.
const (
	FileContent   = "content"           // of a config, or any blob that is no layer
	FileManifest  = "manifest.json"     // of an image
	FileSignature = "signature-"        // of an image, followed by a number from 1
	DirInstances  = "instances"         // of a multi-architecture image
	FileTarSplit  = "tar-split.json.gz" // of a layer's sidecar commit
	FileBlob      = "blob"              // of a layer's sidecar commit
)

// BlobRef is where a blob is.
func BlobRef(d digest.Digest) string { return Prefix + d.Encoded() }

// SidecarRef is where a layer's sidecar is: what its exact bytes need that its tree does not hold.
func SidecarRef(d digest.Digest) string { return SidecarPrefix + d.Encoded() }

// BlobHex returns the hex digits in the ref of a blob. ok is false for other refs.
func BlobHex(ref string) (hex string, ok bool) {
	hex, ok = strings.CutPrefix(ref, Prefix)
	return hex, ok && isBlobHex(hex)
}

// SidecarHex returns the hex digits in a layer's sidecar. ok is false for other refs.
func SidecarHex(ref string) (hex string, ok bool) {
	hex, ok = strings.CutPrefix(ref, SidecarPrefix)
	return hex, ok && isBlobHex(hex)
}

// isBlobHex tells whether s is the hex part of a sha256, sha384 or sha512 digest.
func isBlobHex(s string) bool {
	return (len(s) == 64 || len(s) == 96 || len(s) == 128) && strings.Trim(s, "0123456789abcdef") == ""
}

// BlobDigest returns the digest that has these hex digits, which isBlobHex has seen.
func BlobDigest(hex string) digest.Digest {
	algorithm := map[int]digest.Algorithm{64: digest.SHA256, 96: digest.SHA384, 128: digest.SHA512}[len(hex)]
	return digest.NewDigestFromEncoded(algorithm, hex)
}
