// Package shellquote writes strings so that a POSIX shell reads them back byte for byte.
package shellquote

import "strings"

// Prelude defines NL, which quoted words use for a newline, so that a command stays on one line.
// A script runs it before the first quoted word.
const Prelude = `NL=$(printf '\nx'); NL=${NL%x}`

// Word returns s as one shell word. A string of harmless characters stays as it is, others go into single quotes
// (XCU 2.2.2 of POSIX: nothing is special in them but their own end), and a newline becomes "$NL" (see Prelude).
// A NUL byte cannot stand in an argument; the caller must not pass one.
func Word(s string) string {
	if s == "" {
		return "''"
	}
	if isPlain(s) {
		return s
	}
	var b strings.Builder
	for i, line := range strings.Split(s, "\n") {
		if i > 0 {
			b.WriteString(`"$NL"`)
		}
		for j, part := range strings.Split(line, "'") {
			if j > 0 {
				b.WriteString(`\'`)
			}
			if part != "" {
				b.WriteString("'" + part + "'")
			}
		}
	}
	return b.String()
}

// Words returns the words of args, quoted and separated by blanks.
func Words(args ...string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		quoted[i] = Word(a)
	}
	return strings.Join(quoted, " ")
}

// isPlain tells whether s means itself to a shell wherever it stands as an argument. A leading "~" would expand, and so
// would one behind "=" or ":" in an assignment, so it is not among the plain characters.
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
