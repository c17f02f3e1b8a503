package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pkg/errors"
)

// results is all that was measured, in the order of the cases.
type results []section

// section is what one case in one mode came to.
type section struct {
	Case    string   `json:"case"`
	Mode    string   `json:"mode"`
	What    string   `json:"what"`
	Growth  bool     `json:"growth,omitempty"`
	Rounds  int      `json:"rounds"`
	Date    string   `json:"date"` // 2006-01-02
	Machine string   `json:"machine"`
	Series  []series `json:"series"`
}

// series is one contender. Samples of the same index in the series of a section were taken in the
// same round.
type series struct {
	Name    string   `json:"name"`
	X       float64  `json:"x,omitempty"` // the size, in cases of growth
	Layers  int      `json:"layers"`
	Samples []sample `json:"samples"`
}

// Where results are kept, and the plot, beside the Markdown file.
const (
	resultsFile = "bench/results.json"
	plotFile    = "bench/growth.svg"
)

const (
	beginMarker = "<!-- bench:begin -->\n"
	endMarker   = "<!-- bench:end -->\n"
)

// put adds the section, or replaces the one of that case and mode, and orders all as the cases are.
func (r *results) put(s section, cases []benchCase) {
	*r = append(slices.DeleteFunc(*r, func(old section) bool { return old.Case == s.Case && old.Mode == s.Mode }), s)
	place := func(s section) int {
		i := slices.IndexFunc(cases, func(c benchCase) bool { return c.name == s.Case })
		return i*len(allModes) + slices.Index(allModes, s.Mode)
	}
	slices.SortStableFunc(*r, func(a, b section) int { return place(a) - place(b) })
}

// readResults reads what is kept for the Markdown file, nothing if that has no results yet.
func readResults(markdownFile string) (r results, err error) {
	content, err := os.ReadFile(markdownFile)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	if _, err := between(string(content), ""); err != nil {
		return nil, errors.WithMessage(err, markdownFile)
	}
	path := filepath.Join(filepath.Dir(markdownFile), resultsFile)
	if _, err := os.Stat(path); os.IsNotExist(err) {
		return nil, nil
	}
	return r, readJSON(path, &r)
}

// write keeps the results, and renders them into the Markdown file and the plot.
func (r results) write(markdownFile string) error {
	dir := filepath.Dir(markdownFile)
	content, err := r.encode()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, resultsFile)), 0o755); err != nil {
		return errors.WithStack(err)
	}
	if err := replaceFile(filepath.Join(dir, resultsFile), content); err != nil {
		return err
	}
	if r.hasGrowth() {
		if err := replaceFile(filepath.Join(dir, plotFile), []byte(plot(r))); err != nil {
			return err
		}
	}
	old, err := os.ReadFile(markdownFile)
	if err != nil {
		return errors.WithStack(err)
	}
	text, err := between(string(old), markdown(r))
	if err != nil {
		return errors.WithMessage(err, markdownFile)
	}
	return replaceFile(markdownFile, []byte(text))
}

// replaceFile writes a file that is whole at any time.
func replaceFile(path string, content []byte) error {
	if err := os.WriteFile(path+".new", content, 0o644); err != nil {
		return errors.WithStack(err)
	}
	return errors.WithStack(os.Rename(path+".new", path))
}

// encode returns a JSON array with a section a line, so that diffs show which have changed.
func (r results) encode() ([]byte, error) {
	lines := make([][]byte, len(r))
	for i, s := range r {
		line, err := json.Marshal(s)
		if err != nil {
			return nil, errors.WithStack(err)
		}
		lines[i] = line
	}
	return slices.Concat([]byte("[\n"), bytes.Join(lines, []byte(",\n")), []byte("\n]\n")), nil
}

// between puts the text between the markers of a Markdown file, in place of what stands there.
func between(old, text string) (string, error) {
	before, rest, ok := strings.Cut(old, beginMarker)
	if !ok {
		return "", errors.Errorf("no line %q", strings.TrimSpace(beginMarker))
	}
	_, after, ok := strings.Cut(rest, endMarker)
	if !ok {
		return "", errors.Errorf("no line %q", strings.TrimSpace(endMarker))
	}
	return before + beginMarker + text + endMarker + after, nil
}

func (r results) hasGrowth() bool {
	return slices.ContainsFunc(r, func(s section) bool { return s.Growth })
}

// find returns the section of that case and mode, nil if it was not measured.
func (r results) find(name, mode string) *section {
	i := slices.IndexFunc(r, func(s section) bool { return s.Case == name && s.Mode == mode })
	if i < 0 {
		return nil
	}
	return &r[i]
}

// named returns the first series of that name, that of the smallest size in cases of growth; nil if
// there is none.
func (s *section) named(name string) *series {
	if s == nil {
		return nil
	}
	i := slices.IndexFunc(s.Series, func(one series) bool { return one.Name == name })
	if i < 0 {
		return nil
	}
	return &s.Series[i]
}

func wall(s sample) float64 { return s.Wall }

func (s series) values(f func(sample) float64) []float64 {
	all := make([]float64, len(s.Samples))
	for i, one := range s.Samples {
		all[i] = f(one)
	}
	return all
}

func (s series) median(f func(sample) float64) float64 { return median(s.values(f)) }

// ratio returns the median of how many times as long as other a run took that was made in the same
// round.
func (s series) ratio(other series) float64 {
	ratios := make([]float64, min(len(s.Samples), len(other.Samples)))
	for i := range ratios {
		ratios[i] = s.Samples[i].Wall / other.Samples[i].Wall
	}
	return median(ratios)
}

// median returns the middle value, or the mean of the two in the middle. There must be one.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}
