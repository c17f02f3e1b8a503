package gvariant

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"ostree-image/internal/testutil"
)

var gvariantTests = []struct {
	name    string
	text    string
	want    any
	wantErr string
}{
	{"string", `'plain'`, "plain", ""},
	{"string and newline", "'plain'\n", "plain", ""},
	{"empty string", `''`, "", ""},
	{"double quotes", `"it's"`, "it's", ""},
	{"double quotes within", `"it's \"so\""`, `it's "so"`, ""},
	{"double in single", `'say "so"'`, `say "so"`, ""},
	{"escaped single", `'it\'s'`, "it's", ""},
	{"control escapes", `'\a\b\f\n\r\t\v'`, "\a\b\f\n\r\t\v", ""},
	{"backslash", `'a\\nb'`, `a\nb`, ""},
	{"u escape", `'\u00e9\u200b\u0001'`, "é\u200b\x01", ""},
	{"U escape", `'\U0001f600\U0010ffff'`, "😀\U0010ffff", ""},
	{"literal UTF-8", `'é😀'`, "é😀", ""},
	{"blanks around", `  'x'`, "x", ""},
	{"bytestring", `b'abc'`, []byte("abc\x00"), ""},
	{"bytestring in double quotes", `b"it's"`, []byte("it's\x00"), ""},
	{"bytestring octal", `b'\001\377\\\n'`, []byte("\x01\xff\\\n\x00"), ""},
	{"bytes", `[byte 0x01, 0x02, 0xff]`, []byte{1, 2, 255}, ""},
	{"one byte", `[byte 0x01]`, []byte{1}, ""},
	{"no bytes", `@ay []`, []byte{}, ""},
	{"no strings", `@as []`, []any{}, ""},
	{"no pairs", `@a(say) []`, []any{}, ""},
	{"strings", `['a', 'b']`, []any{"a", "b"}, ""},
	{"arrays of bytes", `[[byte 0x01], [0x02]]`, []any{[]byte{1}, []any{uint64(2)}}, ""},
	{"tuple", `('a', 5)`, []any{"a", uint64(5)}, ""},
	{"tuple of one", `('a',)`, []any{"a"}, ""},
	{"tuple of none", `()`, []any{}, ""},
	{"bytes in a tuple", `(byte 0x01, byte 0x02)`, []any{byte(1), byte(2)}, ""},
	{"variant", `<'a'>`, "a", ""},
	{"variant of variant", `<<[byte 0x01]>>`, []byte{1}, ""},
	{"dictionary", `{'a': <'1'>, 'b': <uint64 2>}`, map[string]any{"a": "1", "b": uint64(2)}, ""},
	{"first of two keys", `{'a': <'1'>, 'a': <'2'>}`, map[string]any{"a": "1"}, ""},
	{"empty dictionary", `@a{sv} {}`, map[string]any{}, ""},
	{"number", `5`, uint64(5), ""},
	{"negative", `-5`, int64(-5), ""},
	{"largest", `uint64 18446744073709551615`, uint64(1<<64 - 1), ""},
	{"least", `int64 -9223372036854775808`, int64(-1 << 63), ""},
	{"hex", `0x1f`, uint64(31), ""},
	{"int16", `int16 -1`, int64(-1), ""},
	{"true", `true`, true, ""},
	{"false", `[true, false]`, []any{true, false}, ""},
	{"byte", `byte 0x1f`, byte(31), ""},
	{"deep enough", strings.Repeat("<", 63) + "1" + strings.Repeat(">", 63), uint64(1), ""},

	{"nothing", ``, nil, "GVariant text, byte 0: a value is missing"},
	{"blank", ` `, nil, "GVariant text, byte 1: a value is missing"},
	{"garbage", `hello`, nil, `GVariant text, byte 5: unknown word "hello"`},
	{"long garbage", strings.Repeat("h", 99), nil, `GVariant text, byte 99: unknown word "hhhhhhhhhhhhhhhhhhhh"`},
	{"two values", `'a' 'b'`, nil, "GVariant text, byte 3: something stands behind the value"},
	{"two lines", "'a'\n\n", nil, "GVariant text, byte 3: something stands behind the value"},
	{"no end", `'abc`, nil, "GVariant text, byte 4: a string has no end"},
	{"ends in an escape", `'abc\`, nil, "GVariant text, byte 5: an escape has no end"},
	{"unknown escape", `'\x41'`, nil, "GVariant text, byte 3: unknown escape 'x'"},
	{"short u", `'\u12'`, nil, "GVariant text, byte 3: an escape has no end"},
	{"u is no number", `'\u12g4'`, nil, "GVariant text, byte 3: an escape is no number"},
	{"u with a sign", `'\u+123'`, nil, "GVariant text, byte 3: an escape is no number"},
	{"surrogate", `'\ud800'`, nil, "GVariant text, byte 7: an escape is no character"},
	{"too large", `'\U00110000'`, nil, "GVariant text, byte 11: an escape is no character"},
	{"octal in a string", `'\001'`, nil, "GVariant text, byte 3: unknown escape '0'"},
	{"u in a bytestring", `b'\u0041'`, nil, "GVariant text, byte 4: unknown escape 'u'"},
	{"octal too large", `b'\777'`, nil, "GVariant text, byte 6: an escape is no byte"},
	{"not UTF-8", "'\xff'", nil, "GVariant text, byte 3: a string is not UTF-8"},
	{"open array", `['a'`, nil, "GVariant text, byte 4: a comma or ']' is missing"},
	{"array and junk", `['a' 'b']`, nil, "GVariant text, byte 5: a comma or ']' is missing"},
	{"array ends in a comma", `['a',]`, nil, `GVariant text, byte 5: unknown word ""`},
	{"open tuple", `('a', `, nil, "GVariant text, byte 6: a value is missing"},
	{"open variant", `<'a'`, nil, "GVariant text, byte 4: a variant has no end"},
	{"open dictionary", `{'a': <'b'>`, nil, "GVariant text, byte 11: a comma or '}' is missing"},
	{"key without value", `{'a'}`, nil, "GVariant text, byte 4: a key has no value"},
	{"key no string", `{1: 2}`, nil, "GVariant text, byte 2: a key is no string"},
	{"type without value", `@ay`, nil, "GVariant text, byte 0: a type has no value"},
	{"empty type", `@ []`, nil, "GVariant text, byte 0: a type has no value"},
	{"type and nothing", `@ay `, nil, "GVariant text, byte 4: a value is missing"},
	{"byte too large", `byte 256`, nil, "GVariant text, byte 8: not a byte"},
	{"byte missing", `byte`, nil, "GVariant text, byte 4: not a byte"},
	{"large byte in an array", `[byte 0x01, 0x100]`, nil, "GVariant text, byte 17: not a byte in an array of bytes"},
	{"string among bytes", `[byte 0x01, 'a']`, nil, "GVariant text, byte 15: not a byte in an array of bytes"},
	{"too large a number", `18446744073709551616`, nil, `GVariant text, byte 20: not a number: "18446744073709551616"`},
	{"no number", `5x`, nil, `GVariant text, byte 2: not a number: "5x"`},
	{"too deep", strings.Repeat("<", 64) + "1" + strings.Repeat(">", 64), nil, "GVariant text, byte 64: nested more than 64 deep"},
	{"very deep", strings.Repeat("[", 1<<20), nil, "GVariant text, byte 64: nested more than 64 deep"},
}

func TestGVariant(t *testing.T) {
	for _, tt := range gvariantTests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse(tt.text)
			testutil.SameText(t, "error", testutil.ErrText(err), tt.wantErr)
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %#v, want %#v", got, tt.want)
			}
		})
	}
}

func TestGVariantString(t *testing.T) {
	tests := []struct{ name, text, want, wantErr string }{
		{"string", "'a'\n", "a", ""},
		{"bytes", "b'a'\n", "", "GVariant text: not a string"},
		{"number", "5", "", "GVariant text: not a string"},
		{"empty output", "", "", "GVariant text, byte 0: a value is missing"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseString(tt.text)
			testutil.SameText(t, "string", got, tt.want)
			testutil.SameText(t, "error", testutil.ErrText(err), tt.wantErr)
		})
	}
}

// gvariantText writes a string as GLib does.
func gvariantText(s string) string {
	quote := '\''
	if strings.ContainsRune(s, '\'') {
		quote = '"'
	}
	var b strings.Builder
	b.WriteRune(quote)
	for _, r := range s {
		switch {
		case r == '\\' || r == quote:
			b.WriteString("\\" + string(r))
		case r < 0x20 || r == 0x7f:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteRune(quote)
	return b.String()
}

func FuzzGVariant(f *testing.F) {
	for _, tt := range gvariantTests {
		f.Add(tt.text[:min(len(tt.text), 200)])
	}
	f.Fuzz(func(t *testing.T, text string) {
		v, err := Parse(text)
		if err != nil && v != nil {
			t.Errorf("%#v comes with the error %v", v, err)
		}
		if s, ok := v.(string); ok && !utf8.ValidString(s) {
			t.Errorf("%q is no text", s)
		}
		if !IsText(text) {
			return
		}
		got, err := ParseString(gvariantText(text))
		if err != nil || got != text {
			t.Errorf("%q came back as %q, %v", text, got, err)
		}
	})
}
