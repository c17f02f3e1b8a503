package ui

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// OneLine is the text of an error without line breaks.
func OneLine(err error) string {
	return Printable(
		strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' }), " "),
	)
}

// Printable returns text with what a terminal would act on escaped. Images, and what tools say of
// them, are others' texts.
func Printable(text string) string {
	var b strings.Builder
	for _, r := range text {
		if strconv.IsPrint(r) {
			b.WriteRune(r)
		} else {
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
	}
	return b.String()
}

// Quoted returns a name for an error, in quotes, its beginning where it is long.
func Quoted(name string) string {
	if len(name) <= quotedBytes {
		return strconv.Quote(name)
	}
	return fmt.Sprintf("%.*q…", quotedBytes, name)
}

const quotedBytes = 200

// Wrap breaks the lines of a help text that are longer than width, at blanks. What hangs over
// begins in the column of the line's second part, which at least two blanks part from its first. A
// width of less than 40 leaves the text as it is.
func Wrap(text string, width int) string {
	const least = 40
	if width < least {
		return text
	}
	var b strings.Builder
	for line := range strings.Lines(text) {
		wrapLine(&b, strings.TrimSuffix(line, "\n"), width)
	}
	return b.String()
}

// leastColumn is how many characters a column must have.
const leastColumn = 20

func wrapLine(b *strings.Builder, line string, width int) {
	indent := len(line) - len(strings.TrimLeft(line, " "))
	if gap := strings.Index(line[indent:], "  "); gap >= 0 {
		rest := line[indent+gap:]
		indent = len(line) - len(strings.TrimLeft(rest, " "))
	}
	if width-indent < leastColumn { // there is no room for a column
		indent = width / 8
	}
	for utf8.RuneCountInString(line) > width {
		at := strings.LastIndex(string([]rune(line)[:width+1]), " ")
		if at <= indent {
			break // a word that is longer than the line
		}
		b.WriteString(strings.TrimRight(line[:at], " ") + "\n")
		line = strings.Repeat(" ", indent) + strings.TrimLeft(line[at:], " ")
	}
	b.WriteString(line + "\n")
}
