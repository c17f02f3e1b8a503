package ui

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/pkg/errors"
)

// PrintJSON prints v as indented JSON.
func PrintJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "    ")
	e.SetEscapeHTML(false)
	return errors.Wrap(e.Encode(v), "writing the result")
}

// PrintTable prints a table. head and the cells of a row are parted by tabs.
func PrintTable(out io.Writer, head string, fill func(row func(cells ...any))) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, head)
	fill(func(cells ...any) {
		for i, c := range cells {
			if i > 0 {
				_, _ = fmt.Fprint(w, "\t")
			}
			_, _ = fmt.Fprint(w, Printable(fmt.Sprint(c)))
		}
		_, _ = fmt.Fprintln(w)
	})
	return errors.Wrap(w.Flush(), "writing the result")
}
