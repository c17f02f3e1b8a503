package ui

import (
	"fmt"
	"strconv"
	"strings"
)

// OneLine is the text of an error without line breaks.
func OneLine(err error) string {
	return Printable(strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' }), " "))
}

// Printable returns text with what a terminal would act on escaped. Images, and what tools say of them, are others' texts.
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
