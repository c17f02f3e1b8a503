package main

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os/exec"
	"path"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/pkg/errors"

	"ostree-image/internal/layer"
	"ostree-image/internal/normalize"
	"ostree-image/internal/ostree"
	"ostree-image/internal/shellquote"
	"ostree-image/internal/tarstream"
	"ostree-image/internal/ui"
)

// FuzzHeaders holds that whatever archive comes in, what ostree and tar are given is one that they
// read alike: relative names without "..", each once but for directories, below directories that
// came before, hard links to files before them, and an end.
func FuzzHeaders(f *testing.F) {
	for _, l := range someLayers(f) {
		if len(l.layer) < 64<<10 {
			f.Add(l.layer)
		}
	}
	limits := normalize.Limits{Bytes: 1 << 20, Files: 1000}
	f.Fuzz(func(t *testing.T, content []byte) {
		var clean bytes.Buffer
		perms := permissionsFor(ostree.BareUser, 0, 0)
		filter := normalize.NewFilter(perms, tarstream.NewWriter(&clean))
		filter.Limits = limits
		scan := &layer.Scan{Limits: limits, Sink: filter}
		err := scan.Run(context.Background(), bytes.NewReader(content))
		if err == nil && !scan.NonCanonical {
			err = filter.Finish()
		} else if err == nil {
			clean.Reset()
			err = filterPlanned(content, perms, limits, &clean)
		}
		if err != nil {
			if text := ui.OneLine(err); len(text) > 2000 || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
				t.Errorf("an error of %d bytes: %q", len(text), text)
			}
			return
		}
		checkCleanStream(t, &clean)
	})
}

// filterPlanned makes a normalized tar stream of a non-canonical layer, as unpackNonCanonical does.
func filterPlanned(content []byte, perms permissions, limits normalize.Limits, out io.Writer) error {
	plan := normalize.NewPlan(perms)
	plan.Limits = limits
	if err := (&layer.Scan{Limits: limits, Sink: planSink{plan}}).Run(context.Background(), bytes.NewReader(content)); err != nil {
		return err
	}
	planned := normalize.NewPlanFilter(plan, tarstream.NewWriter(out))
	if err := (&layer.Scan{Limits: limits, Sink: planned}).Run(context.Background(), bytes.NewReader(content)); err != nil {
		return err
	}
	return planned.Finish()
}

func checkCleanStream(t *testing.T, clean io.Reader) {
	t.Helper()
	seen := map[string]byte{}
	for tr := tar.NewReader(clean); ; {
		hdr, err := tr.Next()
		if err == io.EOF {
			if seen[""] != tar.TypeDir {
				t.Fatal("it has no root")
			}
			return
		}
		if err != nil {
			t.Fatalf("the clean stream is none: %v", err)
		}
		name := strings.TrimSuffix(strings.TrimPrefix(hdr.Name, "./"), "/")
		if name == "." {
			name = ""
		}
		if !utf8.ValidString(name) || name != "" && path.Clean("/"+name) != "/"+name {
			t.Fatalf("the name %q", hdr.Name)
		}
		if kind, twice := seen[name]; twice && (kind != tar.TypeDir || hdr.Typeflag != tar.TypeDir) {
			t.Fatalf("%q twice", name)
		}
		if name != "" && seen[normalize.ParentOf(name)] != tar.TypeDir {
			t.Fatalf("%q lies where no directory is", name)
		}
		switch hdr.Typeflag {
		case tar.TypeReg, tar.TypeDir, tar.TypeSymlink:
		case tar.TypeLink:
			if target := strings.TrimPrefix(hdr.Linkname, "./"); seen[target] != tar.TypeReg {
				t.Fatalf("%q is a hard link to %q, which is no file before it", name, hdr.Linkname)
			}
		default:
			t.Fatalf("%q is of the type %q", name, hdr.Typeflag)
		}
		if seen[name] = hdr.Typeflag; hdr.Typeflag == tar.TypeLink {
			seen[name] = tar.TypeReg
		}
		if _, err := io.Copy(io.Discard, tr); err != nil {
			t.Fatal(err)
		}
	}
}

// FuzzJournalWord holds that a shell makes of what the log has the argument that it was.
func FuzzJournalWord(f *testing.F) {
	for _, s := range []string{"", "/r", "/r/x y", "--repo=/r", "--tree=dir=/r/w/'", "--add-metadata-string=k=/r/$(id)", "$REPO", "a\nb\x01\\", "~/x", "-n", "\xff", "--a=/r/\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, arg string) {
		if strings.ContainsRune(arg, 0) || len(arg) > ostree.MaxArgument/8 {
			t.Skip("no argument is like that")
		}
		j := &journal{}
		j.name("/r", "REPO")
		j.name("/r/w", "WORK")
		script := shellquote.Prelude + "\nREPO=/r WORK=/r/w\nprintf '%s|' " + j.word(arg) + " " + j.word(arg) + "\n"
		got, err := exec.Command("sh", "-c", script).CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Skip(err)
		}
		if want := arg + "|" + arg + "|"; string(got) != want {
			t.Errorf("%q became %q by the script %q", want, got, script)
		}
	})
}
