package ostree

import (
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"ostree-image/internal/testutil"
)

const sumA = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

var parseCommitTests = []struct {
	name    string
	text    string
	want    Commit
	wantErr string
}{
	{
		"own", "commit " + sumA + "\n({'docker.size': <'5'>, 'ostree.ref-binding': <['x']>, 'it\\'s': <'b\"c'>}, @ay [], @a(say) [], '', '', uint64 7, [byte 0xaa, 0x01], [byte 0xbb, 0x02])\n",
		Commit{Metadata: map[string]string{"docker.size": "5", "it's": `b"c`}, Timestamp: 7, Root: "aa01", RootMeta: "bb02"},
		"",
	},
	{
		"no metadata", "commit " + sumA + "\n(@a{sv} {}, [byte 0x00, 0x00], @a(say) [], 'subject', 'body', uint64 18446744073709551615, [byte 0xaa], [byte 0xbb])",
		Commit{Metadata: map[string]string{}, Timestamp: 1<<64 - 1, Root: "aa", RootMeta: "bb"},
		"",
	},
	{"empty", "", Commit{}, `not a commit: ""`},
	{"other object", "dirtree " + sumA + "\n()", Commit{}, `not a commit: "dirtree aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"`},
	{"no body", "commit " + sumA, Commit{}, "GVariant text, byte 0: a value is missing"},
	{"too few fields", "commit " + sumA + "\n({}, @ay [])", Commit{}, "not a commit object"},
	{"no tuple", "commit " + sumA + "\n'a'", Commit{}, "not a commit object"},
	{"wrong time", "commit " + sumA + "\n(@a{sv} {}, @ay [], @a(say) [], '', '', 'now', [byte 0xaa], [byte 0xbb])", Commit{}, "not a commit object"},
	{"wrong root", "commit " + sumA + "\n(@a{sv} {}, @ay [], @a(say) [], '', '', uint64 7, 'a', [byte 0xbb])", Commit{}, "not a commit object"},
	{"cut", "commit " + sumA + "\n(@a{sv} {}, @ay [], @a(sa", Commit{}, "GVariant text, byte 20: a type has no value"},
}

func TestParseCommit(t *testing.T) {
	for _, tt := range parseCommitTests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseCommit(tt.text)
			testutil.SameText(t, "error", testutil.ErrText(err), tt.wantErr)
			if err == nil && (!maps.Equal(got.Metadata, tt.want.Metadata) || got.Timestamp != tt.want.Timestamp || got.Root != tt.want.Root ||
				got.RootMeta != tt.want.RootMeta) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func FuzzParseCommit(f *testing.F) {
	for _, tt := range parseCommitTests {
		f.Add(tt.text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		info, err := ParseCommit(text)
		if err == nil && info.Metadata == nil {
			t.Errorf("%q: no error and no commit", text)
		}
	})
}

func TestParseOSTreeVersion(t *testing.T) {
	tests := []struct {
		name, text, version, features, wantErr string
	}{
		{"debian 12", "libostree:\n Version: '2022.7'\n Features:\n  - libcurl\n  - libarchive\n", "2022.7", "libcurl libarchive", ""},
		{"with git", "libostree:\n Version: '2025.2.1+git'\n Git: abc\n Features:\n  - gpgme\n", "2025.2.1", "gpgme", ""},
		{"no features", "libostree:\n Version: '2022.7'\n", "2022.7", "", ""},
		{"empty", "", "", "", `it answers "", which is not what ostree says`},
		{"other program", "tar (GNU tar) 1.34\n", "", "", `it answers "tar (GNU tar) 1.34\n", which is not what ostree says`},
		{"no number", "libostree:\n Version: 'none'\n", "", "", `it answers "libostree:\n Version: 'none'\n", which is not what ostree says`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := ParseVersion(tt.text)
			testutil.SameText(t, "error", testutil.ErrText(err), tt.wantErr)
			testutil.SameText(t, "version", f.Version, tt.version)
			testutil.SameText(t, "features", strings.Join(f.Features, " "), tt.features)
		})
	}
}

func TestCompareVersions(t *testing.T) {
	ascending := []string{"", "1", "1.26", "1.27", "1.27.1", "1.34", "2021.6", "2022.7", "2022.10", "2023.1", "2100"}
	for i, a := range ascending {
		for j, b := range ascending {
			if got := CompareVersions(a, b); (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("%q and %q: %d", a, b, got)
			}
		}
	}
	for _, same := range [][2]string{{"2022.7", "2022.7.0"}, {"1", "1.0.0"}, {"1.07", "1.7"}} {
		if got := CompareVersions(same[0], same[1]); got != 0 {
			t.Errorf("%q and %q: %d", same[0], same[1], got)
		}
	}
}

func TestMetadataFits(t *testing.T) {
	prefix := len("--add-metadata-string=k=")
	tests := []struct {
		name  string
		value string
		want  bool
	}{
		{"empty", "", true},
		{"longest", strings.Repeat("x", MaxArgument-prefix), true},
		{"too long", strings.Repeat("x", MaxArgument-prefix+1), false},
		{"NUL", "a\x00b", false},
		{"not UTF-8", "\xff", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := (Metadata{Key: "k", Value: tt.value}).Fits(); got != tt.want {
				t.Errorf("%t, want %t", got, tt.want)
			}
		})
	}
}

func TestConfigLines(t *testing.T) {
	wanted := map[string][]string{"core": {"a", "b"}, "archive": {"level"}}
	for _, tt := range []struct{ name, text, want, wantErr string }{
		{name: "nothing"},
		{name: "nothing wanted", text: "[core]\nmode=bare\n"},
		{name: "all", text: "# x\n[core]\n\nmode=bare\na=1\n b = 2 \n[remote \"o\"]\na=3\n[archive]\nlevel=9", want: "[core]\na=1\nb = 2\n[archive]\nlevel=9\n"},
		{name: "a group twice", text: "[core]\na=1\n[archive]\nlevel=1\n[core]\na=2\n", want: "[core]\na=1\n[archive]\nlevel=1\n[core]\na=2\n"},
		{name: "a key outside of groups", text: "a=1\n", wantErr: "sets no key of a group"},
		{name: "no key", text: "[core]\na\n", wantErr: "sets no key of a group"},
		{name: "a group without end", text: "[core\na=1\n", wantErr: "begins no group"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ConfigLines(tt.text, wanted)
			if got != tt.want || !strings.Contains(testutil.ErrText(err), tt.wantErr) || (err == nil) != (tt.wantErr == "") {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

// Whatever the refs are, no process gets more of them than execve(2) takes, and each is there once.
func TestChunks(t *testing.T) {
	for _, tt := range []struct{ number, bytes, want int }{
		{0, 0, 0}, {1, 10, 1}, {1, MaxArgument, 1}, {30_000, 70, 5}, {3000, 4000, 24}, {20, MaxArgument, 7},
	} {
		var args, got []string
		for i := range tt.number {
			args = append(args, fmt.Sprintf("%0*d", tt.bytes, i))
		}
		n := 0
		for chunk := range Chunks(args) {
			n++
			got = append(got, chunk...)
			if err := exec.Command("true", chunk...).Run(); err != nil { // as the kernel sees it
				t.Errorf("%d of %d bytes: %v", tt.number, tt.bytes, err)
			}
		}
		if n != tt.want || !slices.Equal(got, args) {
			t.Errorf("%d of %d bytes come in %d lists of %d in all, want %d", tt.number, tt.bytes, n, len(got), tt.want)
		}
	}
}
