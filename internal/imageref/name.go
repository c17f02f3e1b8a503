package imageref

import (
	"encoding/hex"
	"strings"
	"unicode/utf8"

	"go.podman.io/image/v5/docker/reference"

	"ostree-image/internal/errdefs"
)

// MaxComponent is how many bytes one component of a ref may have: it is a file name (NAME_MAX).
const MaxComponent = 255

// Normalize returns the name under which an image is stored: as it was written, with :latest where
// it has neither tag nor digest. The error of a name that cannot be one is a usage error.
func Normalize(name string) (string, error) {
	if name == "" {
		return "", errdefs.Usagef("the image name is empty; it is NAME[:TAG|@DIGEST]")
	}
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return "", errdefs.Usagef("image name %q: %s", name, err)
	}
	if reference.IsNameOnly(named) {
		name += ":latest"
	}
	if n := len(Encode(name)); n > MaxComponent {
		return "", errdefs.Usagef(
			"image name %q is too long: its ref has %d bytes, and %d is the most",
			name,
			n,
			MaxComponent,
		)
	}
	return name, nil
}

// Encode makes an image name one component of a ref: every byte outside [A-Za-z0-9.-] becomes "_"
// and two upper-case hex digits.
func Encode(name string) string {
	const digits = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(name) {
		c := name[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '-':
			b.WriteByte(c)
		default:
			b.WriteByte('_')
			b.WriteByte(digits[c>>4])
			b.WriteByte(digits[c&15])
		}
	}
	return b.String()
}

// decodeName is the inverse of Encode. ok is false for what that never writes.
func decodeName(encoded string) (name string, ok bool) {
	var b strings.Builder
	for i := 0; i < len(encoded); i++ {
		if encoded[i] != '_' {
			b.WriteByte(encoded[i])
			continue
		}
		if i+3 > len(encoded) {
			return "", false
		}
		c, err := hex.DecodeString(encoded[i+1 : i+3])
		if err != nil {
			return "", false
		}
		b.WriteByte(c[0])
		i += 2
	}
	name = b.String()
	return name, Encode(name) == encoded
}

// ImageName returns the name of the image that a ref holds. ok is false for the refs of blobs, and
// all others.
func ImageName(ref string) (name string, ok bool) {
	encoded, ok := strings.CutPrefix(ref, Prefix)
	if !ok || strings.Contains(encoded, "/") {
		return "", false
	}
	name, ok = decodeName(encoded)
	if !ok || !strings.ContainsAny(name, ":@") || !utf8.ValidString(name) {
		return "", false
	}
	return name, true
}

// IsImage tells whether a ref is that of an image.
func IsImage(ref string) bool {
	_, ok := ImageName(ref)
	return ok
}
