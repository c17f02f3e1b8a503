package main

import (
	"bytes"
	"io"
	"regexp"
	"strings"
	"testing"
)

// TestManPages holds that the pages have each option of --help, and nothing that roff would take
// for a request.
func TestManPages(t *testing.T) {
	p := &program{stdout: io.Discard, stderr: io.Discard}
	pages := manPages(p.app())
	for name, page := range pages {
		if name == "ostree-image-help.1" { // whose --help is the program's
			continue
		}
		t.Run(name, func(t *testing.T) {
			args := []string{"ostree-image"}
			if command, ok := strings.CutPrefix(strings.TrimSuffix(name, ".1"), "ostree-image-"); ok {
				args = append(args, command)
			}
			var out, errs bytes.Buffer
			if status := run(t.Context(), append(args, "--help"), &out, &errs); status != 0 {
				t.Fatalf("--help ends with %d: %s", status, errs.String())
			}
			plain := strings.ReplaceAll(page, `\-`, "-")
			_, options, _ := strings.Cut(out.String(), "OPTIONS:")
			for _, option := range regexp.MustCompile(`(?m)^ +(--[a-z.-]+)`).FindAllStringSubmatch(options, -1) {
				if option[1] != "--help" && !strings.Contains(plain, `\fB`+option[1]+`\fR`) {
					t.Errorf("%s is missing", option[1])
				}
			}
			for line := range strings.Lines(page) {
				if strings.HasPrefix(line, "'") || strings.HasPrefix(line, ".") && !regexp.MustCompile(`^\.(TH|SH|TP|PP|B|BR|EX|EE)\b`).MatchString(line) {
					t.Errorf("a line is a request: %q", line)
				}
			}
		})
	}
}
