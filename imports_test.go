package main

import (
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// mayImport is which packages of internal/ each of them may import. What tests share is for tests
// only.
var mayImport = map[string][]string{
	"doctor": nil, "errdefs": nil, "gvariant": nil, "rootfs": {"errdefs", "shellquote"}, "shellquote": nil, "spool": {"errdefs"}, "tarstream": nil, "treesum": {"tarstream"},
	"imageref":  {"errdefs"},
	"ostree":    {"errdefs", "gvariant"},
	"layer":     {"errdefs", "imageref", "normalize", "ostree", "spool", "ui"},
	"normalize": {"gvariant", "tarstream", "ui"},
	"proc":      {"errdefs"},
	"testutil":  nil,
	"ui":        {"errdefs"},
	"usercache": {"errdefs"}, "workdir": nil,
}

// TestImports holds the direction of the packages: what knows more imports what knows less, and
// only one starts processes.
func TestImports(t *testing.T) {
	dirs, err := filepath.Glob("internal/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		name := filepath.Base(dir)
		allowed, known := mayImport[name]
		if !known {
			t.Errorf("the package %s has no row here", name)
		}
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
			if err != nil {
				t.Fatal(err)
			}
			for _, i := range parsed.Imports {
				path, err := strconv.Unquote(i.Path.Value)
				if err != nil {
					t.Fatal(err)
				}
				if path == "os/exec" && name != "proc" && name != "testutil" {
					t.Errorf("%s imports os/exec: it is proc that starts processes", file)
				}
				other, ours := strings.CutPrefix(path, "ostree-image")
				if ours && !slices.Contains(allowed, strings.TrimPrefix(other, "/internal/")) {
					t.Errorf("%s imports %s, which package %s may not", file, path, name)
				}
			}
		}
	}
}
