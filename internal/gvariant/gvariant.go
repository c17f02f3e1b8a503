// Package gvariant reads GVariant text, the form in which ostree prints metadata.
package gvariant

import (
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/pkg/errors"
)

// gvariant reads GVariant text, the form in which ostree prints metadata (GLib's "GVariant Text
// Format"). It knows what a commit can hold: strings, byte strings, byte arrays, integers,
// booleans, arrays, tuples, dictionaries, variants.
//
// A string becomes a string; a byte string or an array of bytes a []byte; a number a uint64 or an
// int64; an array or a tuple a []any; a dictionary a map[string]any, whose keys must be strings; a
// variant what it holds.
type gvariant struct {
	text   string
	at     int
	depth  int
	values int // that were read
}

const (
	gvariantMaxDepth  = 64
	gvariantMaxValues = 1 << 20 // each takes some ten times as much memory as text
)

// Parse reads the one value that text holds, which may end with a newline.
func Parse(text string) (any, error) {
	p := gvariant{text: strings.TrimSuffix(text, "\n")}
	v, err := p.value()
	if err == nil && p.at != len(p.text) {
		err = p.errorf("something stands behind the value")
	}
	if err != nil {
		return nil, err
	}
	return v, nil
}

// ParseString reads a string, as "ostree show --print-metadata-key" prints it.
func ParseString(text string) (string, error) {
	v, err := Parse(text)
	if err != nil {
		return "", err
	}
	s, ok := v.(string)
	if !ok {
		return "", errors.New("GVariant text: not a string")
	}
	return s, nil
}

func (p *gvariant) errorf(format string, args ...any) error {
	return errors.Errorf("GVariant text, byte %d: "+format, append([]any{p.at}, args...)...)
}

func (p *gvariant) skipBlanks() {
	for p.at < len(p.text) && p.text[p.at] == ' ' {
		p.at++
	}
}

// accept steps over token where it comes next.
func (p *gvariant) accept(token string) bool {
	if strings.HasPrefix(p.text[p.at:], token) {
		p.at += len(token)
		return true
	}
	return false
}

func (p *gvariant) value() (any, error) {
	p.depth++
	defer func() { p.depth-- }()
	if p.depth > gvariantMaxDepth {
		return nil, p.errorf("nested more than %d deep", gvariantMaxDepth)
	}
	if p.values++; p.values > gvariantMaxValues {
		return nil, p.errorf("more than %d values", gvariantMaxValues)
	}
	p.skipBlanks()
	if p.at >= len(p.text) {
		return nil, p.errorf("a value is missing")
	}
	switch c := p.text[p.at]; {
	case c == '\'' || c == '"':
		return p.quoted(false)
	case c == 'b' && p.at+1 < len(p.text) && (p.text[p.at+1] == '\'' || p.text[p.at+1] == '"'):
		p.at++
		s, err := p.quoted(true)
		return append([]byte(s), 0), err // this form is for bytes that end with their only NUL
	case c == '[':
		return p.list('[', ']')
	case c == '(':
		return p.list('(', ')')
	case c == '{':
		return p.dictionary()
	case c == '<':
		p.at++
		v, err := p.value()
		if err != nil {
			return nil, err
		}
		p.skipBlanks()
		if !p.accept(">") {
			return nil, p.errorf("a variant has no end")
		}
		return v, nil
	case c == '@':
		return p.typed()
	case c == '-' || c == '+' || c >= '0' && c <= '9':
		return p.number(p.word())
	default:
		return p.keyword()
	}
}

// typed reads a value behind its type, "@ay []".
func (p *gvariant) typed() (any, error) {
	end := strings.IndexByte(p.text[p.at:], ' ')
	if end < 2 {
		return nil, p.errorf("a type has no value")
	}
	kind := p.text[p.at+1 : p.at+end]
	p.at += end
	v, err := p.value()
	if list, ok := v.([]any); ok && len(list) == 0 && kind == "ay" {
		return []byte{}, err
	}
	return v, err
}

func (p *gvariant) word() string {
	start := p.at
	for p.at < len(p.text) && strings.IndexByte(" ,)]}>:", p.text[p.at]) < 0 {
		p.at++
	}
	return p.text[start:p.at]
}

// keyword reads true, false, and numbers that carry their type: "uint64 5", "byte 0x1f".
func (p *gvariant) keyword() (any, error) {
	switch w := p.word(); w {
	case "true":
		return true, nil
	case "false":
		return false, nil
	case "byte":
		p.skipBlanks()
		n, err := strconv.ParseUint(p.word(), 0, 8)
		if err != nil {
			return nil, p.errorf("not a byte")
		}
		return byte(n), nil
	case "uint64", "int64", "uint32", "int32", "uint16", "int16":
		p.skipBlanks()
		return p.number(p.word())
	default:
		return nil, p.errorf("unknown word %.20q", w)
	}
}

func (p *gvariant) number(word string) (any, error) {
	if n, err := strconv.ParseUint(word, 0, 64); err == nil {
		return n, nil
	}
	n, err := strconv.ParseInt(word, 0, 64)
	if err != nil {
		return nil, p.errorf("not a number: %.20q", word)
	}
	return n, nil
}

// list reads an array or a tuple. An array whose first element is marked as a byte holds bytes.
func (p *gvariant) list(open, end byte) (any, error) {
	p.at++
	items := []any{}
	var bytes []byte
	isBytes := false
	for {
		p.skipBlanks()
		if p.accept(string(end)) {
			break
		}
		if len(items)+len(bytes) > 0 {
			if !p.accept(",") {
				return nil, p.errorf("a comma or %q is missing", end)
			}
			p.skipBlanks()
			if open == '(' && p.accept(string(end)) { // a tuple of one: ('x',)
				break
			}
		}
		v, err := p.value()
		if err != nil {
			return nil, err
		}
		b, marked := v.(byte)
		n, plain := v.(uint64)
		switch {
		case marked && open == '[' && len(items) == 0:
			isBytes = true
			bytes = append(bytes, b)
		case isBytes && plain && n < 256: // only the first is marked: [byte 0x01, 0x02]
			bytes = append(bytes, byte(n))
		case isBytes:
			return nil, p.errorf("not a byte in an array of bytes")
		default:
			items = append(items, v)
		}
	}
	if isBytes {
		return bytes, nil
	}
	return items, nil
}

func (p *gvariant) dictionary() (any, error) {
	p.at++
	dict := map[string]any{}
	for first := true; ; first = false {
		p.skipBlanks()
		if p.accept("}") {
			return dict, nil
		}
		if !first && !p.accept(",") {
			return nil, p.errorf("a comma or '}' is missing")
		}
		k, err := p.value()
		if err != nil {
			return nil, err
		}
		key, ok := k.(string)
		if !ok {
			return nil, p.errorf("a key is no string")
		}
		p.skipBlanks()
		if !p.accept(":") {
			return nil, p.errorf("a key has no value")
		}
		v, err := p.value()
		if err != nil {
			return nil, err
		}
		if _, twice := dict[key]; !twice { // ostree reads the first of two
			dict[key] = v
		}
	}
}

// quoted reads a string, or a byte string, whose escapes are octal. GLib prints a string in single
// quotes, or in double quotes when it holds a single one.
func (p *gvariant) quoted(isBytes bool) (string, error) {
	quote := p.text[p.at]
	p.at++
	var b strings.Builder
	for p.at < len(p.text) {
		c := p.text[p.at]
		p.at++
		switch c {
		case quote:
			s := b.String()
			if !isBytes && !utf8.ValidString(s) {
				return "", p.errorf("a string is not UTF-8")
			}
			return s, nil
		case '\\':
			if err := p.escape(&b, isBytes); err != nil {
				return "", err
			}
		default:
			b.WriteByte(c)
		}
	}
	return "", p.errorf("a string has no end")
}

var gvariantEscapes = map[byte]byte{
	'a': '\a', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t', 'v': '\v', '\\': '\\', '\'': '\'', '"': '"',
}

func (p *gvariant) escape(b *strings.Builder, isBytes bool) error {
	if p.at >= len(p.text) {
		return p.errorf("an escape has no end")
	}
	c := p.text[p.at]
	p.at++
	if plain, ok := gvariantEscapes[c]; ok {
		b.WriteByte(plain)
		return nil
	}
	digits, base := 0, 16
	switch {
	case !isBytes && c == 'u':
		digits = 4
	case !isBytes && c == 'U':
		digits = 8
	case isBytes && c >= '0' && c <= '7':
		digits, base = 3, 8
		p.at--
	default:
		return p.errorf("unknown escape %q", c)
	}
	if p.at+digits > len(p.text) {
		return p.errorf("an escape has no end")
	}
	n, err := strconv.ParseUint(p.text[p.at:p.at+digits], base, 32)
	if err != nil {
		return p.errorf("an escape is no number")
	}
	p.at += digits
	if isBytes {
		if n > 255 {
			return p.errorf("an escape is no byte")
		}
		b.WriteByte(byte(n))
		return nil
	}
	if !utf8.ValidRune(rune(n)) || n > utf8.MaxRune {
		return p.errorf("an escape is no character")
	}
	b.WriteRune(rune(n))
	return nil
}

// IsText tells whether s can be a string of a GVariant: UTF-8 without NUL.
func IsText(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }
