package imageref

import (
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

func TestConfigMetadata(t *testing.T) {
	for content, want := range map[string]map[string]string{
		`{"os":"linux","architecture":"arm64","created":"2026-01-02T03:04:05.5+02:00"}`: {
			KeyOS: "linux", KeyArchitecture: "arm64", KeyCreated: "2026-01-02T01:04:05.5Z",
		},
		`{"os":"linux"}`:                       {KeyOS: "linux"},
		`{}`:                                   {},
		`no JSON`:                              {},
		`{"os":"linux","created":"yesterday"}`: {},
		`{"os":"li\nux","architecture":"a"}`:   {KeyArchitecture: "a"},
		`{"os":"` + strings.Repeat("x", 10_000) + `"}`: {},
		`{"os":["linux"]}`: {},
	} {
		got := ParseConfig([]byte(content)).Metadata()
		if !maps.Equal(got, want) {
			t.Errorf("%.80s: %q, want %q", content, got, want)
		}
		back, ok := ConfigFromMetadata(got)
		if ok != (len(want) > 0) || !maps.Equal(back.Metadata(), want) {
			t.Errorf("%.80s: back %+v, %v", content, back, ok)
		}
	}
	if c, ok := ConfigFromMetadata(map[string]string{KeyOS: "x", KeyCreated: "junk"}); !ok || c.OS != "x" || c.Created != nil {
		t.Errorf("%+v, %v", c, ok)
	}
	if c := ParseConfig([]byte(`{"created":"2026-01-02T03:04:05Z"}`)); !c.Created.Equal(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)) {
		t.Errorf("%+v", c)
	}
}

func TestPlatforms(t *testing.T) {
	a, b := digest.FromString("a"), digest.FromString("b")
	got := Platforms([]byte(`{"manifests":[{"digest":"` + a.String() + `","platform":{"os":"linux","architecture":"arm","variant":"v7"}},
		{"digest":"` + b.String() + `","platform":{"os":"unknown","architecture":"unknown"}},{"digest":"x"}]}`))
	if !maps.Equal(got, map[digest.Digest]string{a: "linux/arm/v7"}) {
		t.Errorf("%q", got)
	}
	if got := Platforms([]byte("no JSON")); len(got) > 0 {
		t.Errorf("%q", got)
	}
}
