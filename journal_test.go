package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"go.podman.io/image/v5/types"

	"ostree-image/internal/imageref"
	"ostree-image/internal/layer"
	"ostree-image/internal/normalize"
	"ostree-image/internal/ostree"
	"ostree-image/internal/shellquote"
	"ostree-image/internal/spool"
	"ostree-image/internal/tarstream"
	"ostree-image/internal/testutil"
)

var update = flag.Bool("update", false, "write the golden files in testdata anew")

// newTestJournal returns a journal and the file that it writes.
func newTestJournal(t testing.TB) (*journal, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log")
	j, err := openJournal(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	return j, path
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestJournalWords(t *testing.T) {
	tests := []struct{ name, arg, want string }{
		{"plain", "commit", "commit"},
		{"empty", "", "''"},
		{"quotes", "it's", `'it'\''s'`},
		{"newline", "a\nb", `'a'"$NL"'b'`},
		{"repository", "/r", `"$REPO"`},
		{"below the repository", "/r/tmp/x", `"$REPO"/tmp/x`},
		{"option", "--repo=/r", `--repo="$REPO"`},
		{"nested", "/r/tmp/w/stage", `"$WORK"/stage`},
		{"nested option", "--repo=/r/tmp/w", `--repo="$WORK"`},
		{"tree", "--tree=dir=/r/tmp/w/a b", `--tree=dir="$WORK"'/a b'`},
		{"other name", "/r2", "/r2"},
		{"name in the middle", "/x/r/tmp", "/x/r/tmp"},
		{"option of another", "--repo=/x/r", "--repo=/x/r"},
		{"in metadata", "--add-metadata-string=k=/r/tmp/w", "--add-metadata-string=k=/r/tmp/w"},
		{"in a value of metadata", `--add-metadata-string=k={"a":"=/r/x"}`, `'--add-metadata-string=k={"a":"=/r/x"}'`},
		{"in the key of metadata", "--add-metadata-string=/r=v", "--add-metadata-string=/r=v"},
		{"twice", "--repo=/r/r", `--repo="$REPO"/r`},
		{"behind another name", "--repo=/r2/r", "--repo=/r2/r"},
	}
	j, _ := newTestJournal(t)
	j.name("/r", "REPO")
	j.name("/r/tmp/w", "WORK")
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { testutil.SameText(t, "word", j.path(tt.arg), tt.want) })
	}
	j.forget("/r/tmp/w")
	testutil.SameText(t, "a place that is gone", j.path("/r/tmp/w/x"), `"$REPO"/tmp/w/x`)
}

func TestJournalLines(t *testing.T) {
	j, path := newTestJournal(t)
	j.name("/r", "REPO")
	j.hide("s3cret")
	n := j.command(entry{why: "try it", words: []string{"ostree", "commit", "--repo=/r", "--x=a\nb"}, input: "a b.tar"})
	j.Ended(n, errors.New("exit status 1:\nno s3cret\n  space"), 1500*time.Millisecond)
	j.command(entry{why: "look", words: []string{"ostree", "refs"}, read: true, out: true})
	j.step("make it", "mkdir", "/r/x y")
	j.shell("", "printf x >y")
	n = j.command(entry{words: []string{"ostree", "well"}})
	j.Ended(n, nil, time.Second)
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	_, body, ok := strings.Cut(readFile(t, path), "BLOBS=${BLOBS:-.}\n")
	if !ok {
		t.Fatal("no header")
	}
	want := `# 1: try it
ostree commit --repo="$REPO" '--x=a'"$NL"'b' <"$BLOBS"/'a b.tar'
# 1 failed after 1.500 s: exit status 1: no xxxx   space
# 2: look
ostree refs >/dev/null || :
# 3: make it
mkdir "$REPO"'/x y'
printf x >y
ostree well
`
	testutil.SameText(t, "log", normalSecrets(body), want)
}

// normalSecrets writes xxxx for whatever stands for a secret.
func normalSecrets(s string) string {
	return regexp.MustCompile(`(no )\S+(   space)`).ReplaceAllString(s, "${1}xxxx$2")
}

func TestJournalFile(t *testing.T) {
	dir := t.TempDir()
	t.Run("mode", func(t *testing.T) {
		j, err := openJournal(dir+"/log", nil)
		if err != nil {
			t.Fatal(err)
		}
		j.step("x", "true")
		if err := j.close(); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(dir + "/log"); err != nil || info.Mode() != 0o600 {
			t.Errorf("%v, %v, want mode 0600", info, err)
		}
	})
	t.Run("appended to", func(t *testing.T) {
		before := readFile(t, dir+"/log")
		j, err := openJournal(dir+"/log", nil)
		if err != nil {
			t.Fatal(err)
		}
		j.step("y", "true")
		if err := j.close(); err != nil {
			t.Fatal(err)
		}
		if got := readFile(t, dir+"/log"); !strings.HasPrefix(got, before) || strings.Count(got, "set -eu") != 2 {
			t.Errorf("the log is now %q", got)
		}
	})
	t.Run("symbolic link", func(t *testing.T) {
		if err := os.Symlink(dir+"/log", dir+"/link"); err != nil {
			t.Fatal(err)
		}
		_, err := openJournal(dir+"/link", nil)
		testutil.SameText(t, "error", testutil.ErrText(err), "opening the command log: open "+dir+"/link: too many levels of symbolic links")
	})
	t.Run("no directory", func(t *testing.T) {
		_, err := openJournal(dir+"/none/log", nil)
		testutil.SameText(t, "error", testutil.ErrText(err), "opening the command log: open "+dir+"/none/log: no such file or directory")
	})
	t.Run("full disk", func(t *testing.T) {
		if _, err := os.Stat("/dev/full"); err != nil {
			testutil.Skip(t, "no /dev/full")
		}
		j, err := openJournal("/dev/full", nil)
		if err != nil {
			t.Fatal(err)
		}
		j.step("x", "true")
		testutil.SameText(t, "error", testutil.ErrText(j.close()), "writing the command log: write /dev/full: no space left on device")
	})
}

func TestDebug(t *testing.T) {
	var b bytes.Buffer
	j, err := openJournal("", &b)
	if err != nil {
		t.Fatal(err)
	}
	j.name("/r", "REPO")
	j.command(entry{why: "x", words: []string{"ostree", "refs", "--repo=/r", "a\nb"}})
	j.step("no command", "mkdir", "/x")
	testutil.SameText(t, "debug", b.String(), "+ ostree refs --repo=/r 'a'\"$NL\"'b'\n")
}

func TestPrintf(t *testing.T) {
	testutil.NeedTools(t, "sh")
	for _, content := range []string{"", "plain", "%s%n\\n", "it's\n\n", "\n", "\xff\x00\\x", "\x00", "end\n", "-n", "ü", "=5 /new\nline"} {
		script := shellquote.Prelude + "\nprintf " + printfFormat([]byte(content))
		out, err := exec.Command("sh", "-c", script).Output()
		if err != nil || string(out) != content {
			t.Errorf("%q comes back as %q, %v", content, out, err)
		}
	}
}

// journalImage is a tiny image: one layer with a bit of all, and a fixed config.
func journalImage() *testImage {
	layer := archive(member{name: "./", flag: '5'}, dir("d"), file("d/it's a\nfile", "x"), member{name: "d/suid", mode: 0o4755, uid: 5, gid: 6, body: "y"}, soft("s", "d"), hard("h", "d/suid"))
	return &testImage{layers: [][]byte{layer}}
}

// blobsOf writes what the log of an import reads: the blobs, the normalized tar streams made of the
// layers and their records.
func blobsOf(t *testing.T, dir string, perms permissions, layers ...[]byte) {
	t.Helper()
	for _, l := range layers {
		hex := digest.FromBytes(l).Encoded()
		var clean bytes.Buffer
		split, err := layer.NewRecord(filepath.Join(dir, hex+"."+imageref.FileTarSplit))
		if err != nil {
			t.Fatal(err)
		}
		filter := normalize.NewFilter(perms, tarstream.NewWriter(&clean))
		scan := &layer.Scan{Packer: split.Packer(), Sink: filter}
		if err := scan.Run(t.Context(), bytes.NewReader(l)); err != nil {
			t.Fatal(err)
		}
		if err := split.Close(); err != nil {
			t.Fatal(err)
		}
		if !scan.NonCanonical {
			if err := filter.Finish(); err != nil {
				t.Fatal(err)
			}
		} else {
			clean.Reset()
			plan := normalize.NewPlan(perms)
			if err := (&layer.Scan{Sink: planSink{plan}}).Run(t.Context(), bytes.NewReader(l)); err != nil {
				t.Fatal(err)
			}
			planned := normalize.NewPlanFilter(plan, tarstream.NewWriter(&clean))
			if err := (&layer.Scan{Sink: planned}).Run(t.Context(), bytes.NewReader(l)); err != nil {
				t.Fatal(err)
			}
			if err := planned.Finish(); err != nil {
				t.Fatal(err)
			}
			mkdirFile(t, filepath.Join(dir, hex+".again.tar"), clean.Bytes())
			clean.Reset()
			// What the first attempt had when it was taken back: the log's line has something to
			// read.
			mkdirFile(t, filepath.Join(dir, hex+".tar"), archive())
		}
		if clean.Len() > 0 {
			mkdirFile(t, filepath.Join(dir, hex+".tar"), clean.Bytes())
		}
		mkdirFile(t, filepath.Join(dir, hex), l)
	}
}

func mkdirFile(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
}

// normalLog takes out of a log, or a record's script, what is another one each time.
func normalLog(log string) string {
	for _, r := range []struct{ pattern, with string }{
		{`# ostree-image \S+, \S+Z`, "# ostree-image VERSION, TIME"},
		{`(?m)^(# \d+) failed after .*$`, "$1 failed"},
		{`(?m)^(# \d+) took [0-9.]+ s$`, "$1 took TIME"},
	} {
		log = regexp.MustCompile(r.pattern).ReplaceAllString(log, r.with)
	}
	return log
}

func TestGoldenLog(t *testing.T) {
	t.Parallel()
	testutil.NeedRoot(t)
	log := filepath.Join(t.TempDir(), "log")
	r := newTestRun(t, testOptions{mode: ostree.Archive, log: log})
	r.importInOrder(t, "tiny", journalImage())
	got := normalLog(readFile(t, log))
	checkGolden(t, "import.sh", got)
	for i, line := range strings.Split(got, "\n") {
		if err := exec.Command("sh", "-n", "-c", line).Run(); err != nil {
			t.Errorf("line %d is no shell: %q", i+1, line)
		}
	}
	if strings.Contains(got, r.repo.path) {
		t.Error("the log names the repository's own path")
	}
}

// runScript runs a log, or a record's script, in a poor environment, and returns what it says on
// standard error.
func runScript(path string, variables ...string) (said string, err error) {
	cmd := exec.Command("sh", path)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C.UTF-8", "HOME=/"}, variables...)
	cmd.Dir = "/"
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err = cmd.Run()
	return stderr.String(), err
}

// TestReplayLog runs a log where nothing is left of the run that wrote it.
func TestReplayLog(t *testing.T) {
	t.Parallel()
	testutil.NeedTools(t, "sh", "sha256sum", "ostree", "tar")
	many := []member{dir("many")}
	for i := range 3000 {
		many = append(many, file(fmt.Sprintf("many/f-%x-%d", i*i*7919, i), fmt.Sprint(i)))
	}
	engines := map[string]engineName{"many files": engineStream, "no layers": engineStream, "hostile content": engineStream, "of an artifact": engineStream}
	images := map[string]*testImage{
		"tiny":            journalImage(),
		"odd":             {layers: [][]byte{archive(file("f", "1"), file("f", "2"), hard("g", "f")), archive(soft("s", "t"), file("s/x", "1"))}},
		"many files":      {layers: [][]byte{archive(many...)}},
		"of an artifact":  {layers: [][]byte{[]byte("text\x00\xff")}, types: []string{"text/plain"}, config: []byte("{}"), confType: "application/vnd.example+json"},
		"closed":          {layers: [][]byte{archive(member{name: ".", flag: '5', mode: -1}, member{name: "d", flag: '5', mode: 0o100}, member{name: "d/f", mode: -1, body: "x"})}},
		"no layers":       {},
		"hostile content": {layers: [][]byte{archive(file("a", "hc"))}, config: []byte(`{"os":"linux","architecture":"riscv64","author":"it's $(id) \n %s \\ =/r"}`)},
	}
	for name, image := range images {
		for _, engine := range []engineName{engineStream, engineTar} {
			if only := engines[name]; only != "" && only != engine {
				continue
			}
			t.Run(name+" "+string(engine), func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				log := filepath.Join(dir, "log")
				r := newTestRun(t, testOptions{mode: ostree.BareUser, unpack: engine, log: log})
				i := &testImage{layers: image.layers, types: image.types, config: image.config, confType: image.confType}
				if err := r.importImage(t, "image", i); err != nil {
					t.Fatal(err)
				}
				want := r.commits(t)
				blobs := filepath.Join(dir, "blobs")
				mkdir(t, blobs)
				perms := permissionsFor(ostree.BareUser, os.Geteuid(), os.Getegid())
				perms.forTar = engine == engineTar
				if len(i.layers) > 0 && imageref.IsLayerType(i.types[0]) {
					blobsOf(t, blobs, perms, i.layers...)
				} else {
					for _, l := range i.layers {
						mkdirFile(t, filepath.Join(blobs, digest.FromBytes(l).Encoded()), l)
					}
				}
				if err := os.RemoveAll(r.repo.path); err != nil {
					t.Fatal(err)
				}
				repo := filepath.Join(dir, "again")
				mkdir(t, filepath.Join(dir, "work"))
				if said, err := runScript(log, "BLOBS="+blobs, "REPO="+repo, "WORK="+filepath.Join(dir, "work")); err != nil {
					t.Fatalf("%v: %s\n%s", err, testutil.TailOf(said), testutil.TailOf(readFile(t, log)))
				}
				sameCommits(t, "replayed", refCommits(t, repo), want, func(ref string) string { return ref })
				fsck(t, repo)
			})
		}
	}
}

// TestLoggedChecks runs the lines that check a blob.
func TestLoggedChecks(t *testing.T) {
	t.Parallel()
	testutil.NeedTools(t, "sh", "sha256sum", "sha512sum", "gzip", "zstd")
	layer := archive(file("checked", "x"))
	var gz, zst bytes.Buffer
	zip := gzip.NewWriter(&gz)
	std, err := zstd.NewWriter(&zst)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []io.WriteCloser{zip, std} {
		if _, err := w.Write(layer); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name      string
		blob      []byte
		algorithm digest.Algorithm
	}{
		{"plain", layer, digest.SHA256}, {"plain, sha512", layer, digest.SHA512}, {"gzip", gz.Bytes(), digest.SHA256}, {"zstd", zst.Bytes(), digest.SHA512},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			j, path := newTestJournal(t)
			d := tt.algorithm.FromBytes(tt.blob)
			l := &importedLayer{digest: d, plain: bytes.Equal(tt.blob, layer), blob: &spool.Blob{Want: types.BlobInfo{Digest: d}}}
			(&staging{settings: &settings{journal: j}}).logChecks(l, digest.FromBytes(layer))
			if err := j.close(); err != nil {
				t.Fatal(err)
			}
			blobs := t.TempDir()
			run := func() error {
				cmd := exec.Command("sh", path)
				cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "BLOBS=" + blobs, "WORK=" + blobs}
				return cmd.Run()
			}
			mkdirFile(t, filepath.Join(blobs, d.Encoded()), tt.blob)
			if err := run(); err != nil {
				t.Errorf("the checks fail: %v\n%s", err, readFile(t, path))
			}
			mkdirFile(t, filepath.Join(blobs, d.Encoded()), append(bytes.Clone(tt.blob), 0))
			if err := run(); err == nil {
				t.Errorf("the checks do not fail for another blob\n%s", readFile(t, path))
			}
		})
	}
}
