package ui

import (
	"bytes"
	"encoding/json"
	"io"
	"reflect"
	"strings"
	"text/template"

	"github.com/pkg/errors"

	"ostree-image/internal/errdefs"
)

// Format is how a result is printed: as a table, as JSON, or by a Go template.
type Format struct {
	JSON     bool
	text     string
	template *template.Template // nil for the others
}

// ParseFormat reads the value of --format. The error is a usage error.
func ParseFormat(text string) (Format, error) {
	switch {
	case text == "table":
		return Format{}, nil
	case text == "json":
		return Format{JSON: true}, nil
	case !strings.Contains(text, "{{"):
		return Format{}, errdefs.Usagef("--format %q: it is table, json or a Go template", text)
	}
	asJSON := func(v any) (string, error) {
		b, err := json.Marshal(v)
		return string(b), err
	}
	t, err := template.New("--format").Option("missingkey=error").Funcs(template.FuncMap{
		"json":  asJSON,
		"lower": strings.ToLower,
		"upper": strings.ToUpper,
		"join":  strings.Join,
		"split": strings.Split,
	}).Parse(text)
	if err != nil {
		return Format{}, errdefs.Usagef("--format %q: %s", text, err)
	}
	return Format{text: text, template: t}, nil
}

// Shows tells whether a field can be in what is printed, but for a table.
func (f Format) Shows(field string) bool {
	return f.JSON || f.template != nil && (strings.Contains(f.text, field) || strings.Contains(f.text, "json"))
}

// Print prints v: all of it as JSON, or by the template, a line for each element of a slice, or by
// the function table.
func (f Format) Print(w io.Writer, v any, table func() error) error {
	switch {
	case f.JSON:
		return PrintJSON(w, v)
	case f.template == nil:
		return table()
	}
	var out bytes.Buffer
	each := func(item any) error {
		if err := f.template.Execute(&out, item); err != nil {
			return errdefs.Usagef("--format: %s", err)
		}
		out.WriteByte('\n')
		return nil
	}
	if list := reflect.ValueOf(v); list.Kind() == reflect.Slice {
		for i := range list.Len() {
			if err := each(list.Index(i).Interface()); err != nil {
				return err
			}
		}
	} else if err := each(v); err != nil {
		return err
	}
	_, err := w.Write(out.Bytes())
	return errors.Wrap(err, "writing the result")
}
