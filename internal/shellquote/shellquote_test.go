package shellquote

import (
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"ostree-image/internal/testutil"
)

var hostile = []string{
	"", "plain", "a b", "a'b", "'", "''", "a\nb", "\n", "\n\n", "a\n", "\nb", "$HOME", "`id`", "$(id)", `\`, `a\nb`, `"`, "~", "~root",
	"*", "?", "[a]", "a;b", "a&b", "a|b", "<x", ">x", "#c", "!x", "{a,b}", "a\tb", "\x01\x1b[31m", "\xff\xfe", "é✓", "\u202e", "a\u00a0b", "\x7f", "\x1b1", "\n\x01\n", "\xff\n", "-n", "--", "=x", "NL", "$NL",
	"a'\n'b", "--add-metadata-string=docker.manifest={\n  \"a\": 'b'\n}",
}

func roundTrip(t testing.TB, shell string, words []string) []string {
	t.Helper()
	script := Prelude + "\nfor a in " + Words(words...) + "; do printf '%s\\0' \"$a\"; done\n"
	if n := strings.Count(script, "\n"); n != 2 {
		t.Fatalf("script has %d lines, want 2: %q", n, script)
	}
	if i := strings.IndexFunc(script, func(r rune) bool { return r != '\n' && !strconv.IsPrint(r) || r == utf8.RuneError }); i >= 0 {
		t.Fatalf("a terminal would act on %q", script[i:])
	}
	cmd := exec.Command(shell)
	cmd.Stdin = strings.NewReader(script)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", shell, err, script)
	}
	return strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
}

func TestWordsComeBackFromAShell(t *testing.T) {
	for _, shell := range []string{"sh", "bash", "dash"} {
		t.Run(shell, func(t *testing.T) {
			testutil.NeedTools(t, shell)
			got := roundTrip(t, shell, hostile)
			if len(got) != len(hostile) {
				t.Fatalf("%d words came back, want %d", len(got), len(hostile))
			}
			for i, want := range hostile {
				if got[i] != want {
					t.Errorf("word %d: got %q, want %q", i, got[i], want)
				}
			}
		})
	}
}

func FuzzWord(f *testing.F) {
	for _, s := range hostile {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if strings.ContainsRune(s, 0) {
			t.Skip("no argument holds a NUL")
		}
		if got := roundTrip(t, "sh", []string{s}); got[0] != s {
			t.Errorf("got %q, want %q", got[0], s)
		}
	})
}
