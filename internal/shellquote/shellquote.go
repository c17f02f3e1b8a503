// Package shellquote writes strings so that a POSIX shell reads them back byte for byte.
package shellquote

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Prelude defines NL, which quoted words use for a newline, so that a command stays on one line.
// A script runs it before the first quoted word.
const Prelude = `NL=$(printf '\nx'); NL=${NL%x}`

// Word returns s as one shell word of printable characters. A string of harmless ones stays as it
// is, others go into single quotes (XCU 2.2.2 of POSIX: nothing is special in them but their own
// end), a newline becomes "$NL" (see Prelude), and what is no printable character, which a terminal
// might act on, is written by printf. A NUL byte cannot stand in an argument; the caller must not
// pass one.
func Word(s string) string {
	if s == "" {
		return "''"
	}
	if isPlain(s) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		text := span(s, true)
		for j, part := range strings.Split(text, "'") {
			if j > 0 {
				b.WriteString(`\'`)
			}
			if part != "" {
				b.WriteString("'" + part + "'")
			}
		}
		s = s[len(text):]
		odd := span(s, false)
		switch {
		case odd == "":
		case odd[0] == '\n':
			odd = odd[:1]
			b.WriteString(`"$NL"`)
		default:
			odd, _, _ = strings.Cut(odd, "\n")
			b.WriteString(`"$(printf '`)
			for i := range len(odd) {
				fmt.Fprintf(&b, `\%03o`, odd[i])
			}
			b.WriteString(`')"`)
		}
		s = s[len(odd):]
	}
	return b.String()
}

// span returns the beginning of s whose characters are all printable, or none of them.
func span(s string, printable bool) string {
	for i, r := range s {
		isText := r != utf8.RuneError || strings.HasPrefix(s[i:], string(utf8.RuneError))
		if (isText && strconv.IsPrint(r)) != printable {
			return s[:i]
		}
	}
	return s
}

// Words returns the words of args, quoted and separated by blanks.
func Words(args ...string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		quoted[i] = Word(a)
	}
	return strings.Join(quoted, " ")
}

// isPlain tells whether s means itself to a shell wherever it stands as an argument. A leading "~"
// would expand, and so would one behind "=" or ":" in an assignment, so it is not among the plain
// characters.
func isPlain(s string) bool {
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case strings.IndexByte("%+,-./:=@_", c) >= 0:
		default:
			return false
		}
	}
	return true
}
