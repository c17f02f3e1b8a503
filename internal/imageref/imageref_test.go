package imageref

import (
	"fmt"
	"strings"
	"testing"

	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/manifest"
)

// anyHex is the hex part of some digest.
var anyHex = strings.Repeat("0123456789abcdef", 4)

func TestImageName(t *testing.T) {
	tests := []struct {
		ref, want string
		ok        bool
	}{
		{"ociimage/a_3A1", "a:1", true},
		{"ociimage/a_40sha256_3A" + anyHex, "a@sha256:" + anyHex, true},
		{"ociimage/docker.io_2Flibrary_2Fbusybox_3Alatest", "docker.io/library/busybox:latest", true},
		{"ociimage/" + anyHex, "", false},                           // a blob
		{"ociimage/tarsplit/" + anyHex, "", false},                  // what a layer's bytes need
		{"ociimage/tmp.AbC123", "", false},                          // left by a killed pull-local
		{"ociimage/tarsplit/tmp.AbC123", "", false},                 // there too
		{"ociimage/a_3A1/b", "", false},                             // not one component
		{"ociimage/a", "", false},                                   // neither tag nor digest
		{"ociimage/a_3a1", "", false},                               // lower-case digits
		{"ociimage/a_3", "", false},                                 // cut
		{"ociimage/a_", "", false},                                  // cut
		{"ociimage/a_3A_61", "", false},                             // an "a" that needs no escape
		{"ociimage/a_3A_FF", "", false},                             // not UTF-8
		{"ociimage/a:1", "", false},                                 // a colon that is not encoded
		{"ociimage/", "", false},                                    // nothing
		{"other/a_3A1", "", false},                                  // not ours
		{"remote:ociimage/a_3A1", "", false},                        // a remote's
		{"ociimage/" + anyHex + anyHex, "", false},                  // a sha512 blob
		{"ociimage/tmp.AbC_3A1", "tmp.AbC:1", true},                 // a name, if an odd one
		{"ostree/container/image/docker_3A__2F_2Fx_3A1", "", false}, // another program's
	}
	for _, tt := range tests {
		t.Run(tt.ref, func(t *testing.T) {
			got, ok := ImageName(tt.ref)
			if got != tt.want || ok != tt.ok {
				t.Errorf("%q, %t; want %q, %t", got, ok, tt.want, tt.ok)
			}
		})
	}
}

func TestBlobRefs(t *testing.T) {
	tests := []struct {
		ref        string
		blob, side bool
	}{
		{"ociimage/" + anyHex, true, false},
		{"ociimage/" + anyHex[:48] + anyHex[:48], true, false},
		{"ociimage/" + anyHex + anyHex, true, false},
		{"ociimage/tarsplit/" + anyHex, false, true},
		{"ociimage/" + anyHex[1:], false, false},
		{"ociimage/" + strings.ToUpper(anyHex), false, false},
		{"ociimage/a_3A1", false, false},
		{"ociimage/tarsplit/tmp.AbC123", false, false},
		{anyHex, false, false},
	}
	for _, tt := range tests {
		t.Run(tt.ref, func(t *testing.T) {
			if _, ok := BlobHex(tt.ref); ok != tt.blob {
				t.Errorf("a blob: %t, want %t", ok, tt.blob)
			}
			if _, ok := SidecarHex(tt.ref); ok != tt.side {
				t.Errorf("a layer's side commit: %t, want %t", ok, tt.side)
			}
		})
	}
}

func TestLayerTypes(t *testing.T) {
	tests := []struct {
		mediaType string
		want      bool
	}{
		{"", true},
		{"application/vnd.docker.image.rootfs.diff.tar", true},
		{"application/vnd.docker.image.rootfs.diff.tar.gzip", true},
		{"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", true},
		{"application/vnd.oci.image.layer.v1.tar", true},
		{"application/vnd.oci.image.layer.v1.tar+gzip", true},
		{"application/vnd.oci.image.layer.v1.tar+zstd", true},
		{"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", true},
		{"application/vnd.oci.image.layer.v1.tar+encrypted", false},
		{"application/vnd.oci.image.config.v1+json", false},
		{"application/vnd.oci.empty.v1+json", false},
		{"text/plain", false},
		{".gzip", false},
	}
	for _, tt := range tests {
		t.Run(tt.mediaType, func(t *testing.T) {
			if got := IsLayerType(tt.mediaType); got != tt.want {
				t.Errorf("%t, want %t", got, tt.want)
			}
		})
	}
}

func FuzzDecodeName(f *testing.F) {
	for _, s := range []string{"", "a", "a_3A1", "_", "_3", "_3a", "_41", "_00", "_FF", "a:1", "tmp.x", "__", "_5F", "ü"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got, ok := decodeName(Encode(s)); !ok || got != s {
			t.Errorf("%q is encoded as %q, which is decoded as %q, %t", s, Encode(s), got, ok)
		}
		if strings.Trim(Encode(s), "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_") != "" {
			t.Errorf("%q is encoded as %q", s, Encode(s))
		}
		if name, ok := decodeName(s); ok && Encode(name) != s {
			t.Errorf("%q is decoded as %q, which is encoded as %q", s, name, Encode(name))
		}
	})
}

// FuzzManifest holds that the blobs which a manifest names have refs of their own, and no others.
func FuzzManifest(f *testing.F) {
	types := []string{imgspecv1.MediaTypeImageManifest, manifest.DockerV2Schema2MediaType, manifest.DockerV2Schema1SignedMediaType, ""}
	for _, digest := range []string{"sha256:" + anyHex, "sha256:../../x", "sha512:" + anyHex, "", "sha256:" + strings.ToUpper(anyHex)} {
		f.Add([]byte(fmt.Sprintf(`{"schemaVersion":2,"config":{"digest":%q,"size":1},"layers":[{"digest":%q,"size":-1}]}`, digest, digest)), uint8(0))
		f.Add([]byte(fmt.Sprintf(`{"schemaVersion":1,"fsLayers":[{"blobSum":%q}],"history":[{"v1Compatibility":"{}"}]}`, digest)), uint8(2))
	}
	f.Fuzz(func(t *testing.T, text []byte, kind uint8) {
		blobs, err := Blobs(text, types[int(kind)%len(types)])
		if err != nil {
			return
		}
		for _, b := range blobs {
			for _, ref := range []string{BlobRef(b.Digest), SidecarRef(b.Digest)} {
				name := ref[strings.LastIndex(ref, "/")+1:]
				if strings.Trim(name, "0123456789abcdef") != "" || len(name) < 64 || IsImage(ref) {
					t.Errorf("the blob %q has the ref %q", b.Digest, ref)
				}
			}
		}
	})
}
