package ui

import (
	"bytes"
	"strings"
	"testing"

	"github.com/pkg/errors"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/testutil"
)

func TestFormat(t *testing.T) {
	t.Parallel()
	type item struct {
		Name string `json:"name"`
		Tags []string
	}
	list := []item{{"a", []string{"x", "y"}}, {"b", nil}}
	for _, tt := range []struct{ format, want, err string }{
		{format: "table", want: "the table\n"},
		{format: "{{.Name}}", want: "a\nb\n"},
		{format: `{{upper .Name}} {{join .Tags ","}}`, want: "A x,y\nB \n"},
		{format: "{{json .}}", want: `{"name":"a","Tags":["x","y"]}` + "\n" + `{"name":"b","Tags":null}` + "\n"},
		{format: "xml", err: "it is table, json or a Go template"},
		{format: "{{.Name", err: "unclosed action"},
		{format: "{{.Nothing}}", err: "can't evaluate field Nothing"},
	} {
		t.Run(tt.format, func(t *testing.T) {
			var out bytes.Buffer
			f, err := ParseFormat(tt.format)
			if err == nil {
				err = f.Print(&out, list, func() error { out.WriteString("the table\n"); return nil })
			}
			var usage errdefs.UsageError
			if tt.err != "" && (!errors.As(err, &usage) || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("the error is %v, want %q", err, tt.err)
			}
			if tt.err == "" && err != nil {
				t.Error(err)
			}
			testutil.SameText(t, "printed", out.String(), tt.want)
		})
	}
}
