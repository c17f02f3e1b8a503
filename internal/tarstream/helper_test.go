package tarstream

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func ostree(t testing.TB, stdin []byte, args ...string) string {
	t.Helper()
	cmd := exec.Command("ostree", args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C.UTF-8"}
	cmd.Stdin = bytes.NewReader(stdin)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("ostree %.200q: %v: %s", args, err, &stderr)
	}
	return string(out)
}

func newRepo(t testing.TB, mode string) string {
	t.Helper()
	repo := filepath.Join(t.TempDir(), "repo")
	ostree(t, nil, "init", "--repo="+repo, "--mode="+mode)
	return repo
}

// commit commits a stream and returns the commit's checksum.
func commit(t testing.TB, repo string, stream []byte) string {
	t.Helper()
	return strings.TrimSpace(ostree(t, stream, "commit", "--repo="+repo, "--branch=test/ref", "--parent=none", "--timestamp=@0",
		"--tar-autocreate-parents", "--tree=tar=-"))
}

// fields are those of a line of "ostree ls -X": mode, owner, group, size, attributes, name.
var fields = regexp.MustCompile(`^([-dl][0-7]{5}) +(\d+) +(\d+) +(\d+) \{ (.*?) \} (.*)$`)

// listing makes one line of every entry of "ostree ls", also of a name with a newline, which
// becomes a \x01.
func listing(text string) string {
	starts := regexp.MustCompile(`(?m)^[-dl][0-7]{5} `).FindAllStringIndex(text, -1)
	var b strings.Builder
	for i, s := range starts {
		end := len(text)
		if i+1 < len(starts) {
			end = starts[i+1][0]
		}
		b.WriteString(strings.ReplaceAll(strings.TrimSuffix(text[s[0]:end], "\n"), "\n", "\x01") + "\n")
	}
	return b.String()
}

// xattrText is how ostree lists attributes: each name and value as an array of bytes that ends with
// a NUL for the name.
func xattrText(xattrs map[string]string) string {
	if len(xattrs) == 0 {
		return "@a(ayay) []"
	}
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(xattrs)) {
		parts = append(parts, fmt.Sprintf("(%s, %s)", byteText(name+"\x00"), byteText(xattrs[name])))
	}
	return "[" + strings.Join(parts, ", ") + "]"
}

// byteText is GVariant text of an array of bytes, less the mark "byte" at the first one: a string
// where it ends with its only NUL.
func byteText(s string) string {
	if i := strings.IndexByte(s, 0); i >= 0 && i == len(s)-1 {
		var b strings.Builder
		for _, c := range []byte(s[:i]) {
			switch {
			case c >= 0x20 && c < 0x7f && c != '\'' && c != '\\':
				b.WriteByte(c)
			default:
				fmt.Fprintf(&b, `\%03o`, c)
			}
		}
		return "b'" + b.String() + "'"
	}
	var parts []string
	for _, c := range []byte(s) {
		parts = append(parts, fmt.Sprintf("0x%02x", c))
	}
	return "[" + strings.Join(parts, ", ") + "]"
}
