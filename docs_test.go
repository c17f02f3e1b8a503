package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func readAll(t *testing.T, patterns ...string) map[string]string {
	t.Helper()
	texts := map[string]string{}
	for _, pattern := range patterns {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			texts[file] = string(text)
		}
	}
	return texts
}

// TestLinks holds that the documents lead to files and headings that there are.
func TestLinks(t *testing.T) {
	documents := readAll(t, "*.md", "docs/*.md")
	headings := map[string][]string{}
	for file, text := range documents {
		for _, heading := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(text, -1) {
			anchor := regexp.MustCompile(`[^a-z0-9 -]`).ReplaceAllString(strings.ToLower(heading[1]), "")
			headings[file] = append(headings[file], strings.ReplaceAll(anchor, " ", "-"))
		}
	}
	for file, text := range documents {
		for _, link := range regexp.MustCompile(`\]\(([^)\s]*)\)`).FindAllStringSubmatch(text, -1) {
			if strings.Contains(link[1], "://") {
				continue
			}
			target, anchor, _ := strings.Cut(link[1], "#")
			if target = filepath.Join(filepath.Dir(file), target); strings.HasPrefix(link[1], "#") {
				target = file
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: %v", file, err)
			}
			if anchor != "" && !slices.Contains(headings[target], anchor) {
				t.Errorf("%s: %s has no heading %s", file, target, anchor)
			}
		}
	}
}

// sourceOf returns the text of the program.
func sourceOf(t *testing.T) string {
	t.Helper()
	var source strings.Builder
	for file, text := range readAll(t, "*.go", "internal/*/*.go") {
		if !strings.HasSuffix(file, "_test.go") {
			source.WriteString(text)
		}
	}
	return source.String()
}

// TestArchitecture holds that the files and the names in ARCHITECTURE.md are there.
func TestArchitecture(t *testing.T) {
	words := map[string]bool{"TestArguments": true} // of a test
	for _, word := range regexp.MustCompile(`\w+`).FindAllString(sourceOf(t), -1) {
		words[word] = true
	}
	text := readAll(t, "ARCHITECTURE.md")["ARCHITECTURE.md"]
	for _, name := range regexp.MustCompile("`(\\w+(?:\\.\\w+)*)`").FindAllStringSubmatch(text, -1) {
		if strings.HasSuffix(name[1], ".go") {
			if _, err := os.Stat(name[1]); err != nil {
				t.Error(err)
			}
			continue
		}
		for part := range strings.SplitSeq(name[1], ".") {
			if !words[part] {
				t.Errorf("%s: there is no %s", name[1], part)
			}
		}
	}
}

// ofOthers are texts of errors that the library makes.
var ofOthers = []string{"http: server gave HTTP response to HTTPS client", "Source image rejected", "unknown transport"}

// TestTroubleshooting holds that the texts by which errors are found are those of errors.
func TestTroubleshooting(t *testing.T) {
	source := regexp.MustCompile(`"\s*\+\s*"`).ReplaceAllString(sourceOf(t), "")
	text := readAll(t, "docs/troubleshooting.md")["docs/troubleshooting.md"]
	rows := regexp.MustCompile("(?m)^\\| (`[^|]*) \\|").FindAllStringSubmatch(text, -1)
	if len(rows) < 10 {
		t.Fatalf("%d rows", len(rows))
	}
	for _, row := range rows {
		for _, said := range regexp.MustCompile("`([^`]*)`").FindAllStringSubmatch(row[1], -1) {
			for part := range strings.SplitSeq(said[1], "…") {
				part = strings.TrimSpace(part)
				if !strings.Contains(source, part) && !slices.Contains(ofOthers, part) {
					t.Errorf("no error says %q", part)
				}
			}
		}
	}
}
