package imageref

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// Config is what a list shows of an image's config.
type Config struct {
	OS           string     `json:"os"`
	Architecture string     `json:"architecture"`
	Created      *time.Time `json:"created"` // nil where it says nothing
}

// ParseConfig reads a config. What is no image's has nothing.
func ParseConfig(content []byte) Config {
	var c Config
	if err := json.Unmarshal(content, &c); err != nil {
		return Config{}
	}
	return c
}

// maxConfigValue is how many bytes of text an image's metadata has of its config, for each key.
const maxConfigValue = 128

// Metadata returns what an image's commit says of its config, by key. What it does not have is left
// out, and what no image has.
func (c Config) Metadata() map[string]string {
	metadata := map[string]string{KeyOS: c.OS, KeyArchitecture: c.Architecture}
	if c.Created != nil {
		metadata[KeyCreated] = c.Created.UTC().Format(time.RFC3339Nano)
	}
	for key, value := range metadata {
		if value == "" || len(value) > maxConfigValue || strings.ContainsFunc(value, isOddRune) {
			delete(metadata, key)
		}
	}
	return metadata
}

// isOddRune tells whether r is not printable ASCII.
func isOddRune(r rune) bool { return r < ' ' || r > '~' }

// ConfigFromMetadata is the reverse of Metadata. ok is false where an image's commit says nothing of
// its config, as those of earlier releases.
func ConfigFromMetadata(metadata map[string]string) (c Config, ok bool) {
	c.OS, c.Architecture = metadata[KeyOS], metadata[KeyArchitecture]
	if created, err := time.Parse(time.RFC3339Nano, metadata[KeyCreated]); err == nil {
		c.Created = &created
	}
	return c, c != Config{}
}

// Platforms returns the platforms that an index names for its instances, as OS/ARCH or
// OS/ARCH/VARIANT. What runs on none, such as an attestation, is left out.
func Platforms(index []byte) map[digest.Digest]string {
	var list struct {
		Manifests []struct {
			Digest   digest.Digest
			Platform struct{ OS, Architecture, Variant string }
		}
	}
	if err := json.Unmarshal(index, &list); err != nil {
		return nil
	}
	platforms := map[digest.Digest]string{}
	for _, m := range list.Manifests {
		p := m.Platform
		if p.OS == "" || p.OS == "unknown" {
			continue
		}
		platforms[m.Digest] = strings.TrimSuffix(p.OS+"/"+p.Architecture+"/"+p.Variant, "/")
	}
	return platforms
}
