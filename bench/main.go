// Bench builds images, runs ostree-image and what people would use instead of it side by side in turns, and prints the medians as
// Markdown. It needs root, ostree, tar, umoci, skopeo, mmdebstrap and gzip.
package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/pkg/errors"
)

type options struct {
	program string // the ostree-image to measure
	work    string // where inputs and repositories lie
	rounds  int
	only    string // the names of the cases to run, parted by commas; "" for all
}

func main() {
	log.SetFlags(0)
	var o options
	flag.StringVar(&o.program, "program", "bin/ostree-image", "the `program` to measure")
	flag.StringVar(&o.work, "work", "", "keep inputs in `DIR` for the next run (default: a temporary directory)")
	flag.IntVar(&o.rounds, "rounds", 5, "run everything `N` times, in turns")
	flag.StringVar(&o.only, "only", "", "run only the cases with these `names`, such as debian,files")
	flag.Parse()
	if err := run(o); err != nil {
		log.Fatalf("bench: %s", err)
	}
}

func run(o options) (err error) {
	if o.program, err = filepath.Abs(o.program); err != nil {
		return errors.WithStack(err)
	}
	if o.work == "" {
		if o.work, err = os.MkdirTemp("", "ostree-image-bench-"); err != nil {
			return errors.WithStack(err)
		}
		defer func() { _ = os.RemoveAll(o.work) }()
	}
	if o.work, err = filepath.Abs(o.work); err != nil {
		return errors.WithStack(err)
	}
	if err := os.MkdirAll(o.work, 0o755); err != nil {
		return errors.WithStack(err)
	}
	for _, c := range cases {
		if o.only != "" && !slices.Contains(strings.Split(o.only, ","), c.name) {
			continue
		}
		rounds := o.rounds
		if c.slow {
			rounds = (rounds + 1) / 2
		}
		log.Printf("%s: making the image", c.name)
		layout, err := c.image(o.work)
		if err != nil {
			return errors.WithMessage(err, c.name)
		}
		for _, mode := range c.modes {
			b := &bench{o: o, name: c.name, layout: layout, mode: mode}
			table, err := b.run(c.contenders, rounds)
			if err != nil {
				return errors.WithMessagef(err, "%s, %s", c.name, mode)
			}
			fmt.Printf("### %s, %s\n\n%s, medians of %d rounds.\n\n%s\n", c.name, mode, c.what, rounds, table)
		}
	}
	return nil
}

type benchCase struct {
	name, what string
	slow       bool
	modes      []string
	image      func(work string) (layout string, err error)
	contenders []contender
}

// contender is one way to do the work. prepare is not measured.
type contender struct {
	name    string
	prepare func(b *bench) error
	command func(b *bench) *exec.Cmd
}

var allModes = []string{"bare", "bare-user", "archive", "bare-user-only"}

var cases = []benchCase{
	{
		name: "alpine", what: "Import of one layer of 500 small files, 8 MB", modes: []string{"bare-user", "archive"},
		image: generated("alpine", 1, 500, 16<<10), contenders: importers,
	},
	{
		name: "debian", what: "Import of a two-layer Debian image with python, perl and git", modes: allModes,
		image: debian, contenders: slices.Concat(importers, []contender{recorded, again, tarOnly, gzipOnly}),
	},
	{
		name: "layers", what: "Import of 60 layers of 100 small files", modes: []string{"bare-user"},
		image: generated("layers", 60, 100, 4<<10), contenders: importers,
	},
	{
		name: "files", what: "Import of one layer of 200,000 files, 2 GB", slow: true, modes: []string{"bare-user"},
		image: generated("files", 1, 200_000, 10<<10), contenders: importers,
	},
	{
		name: "onefile", what: "Import of one layer of one file of 2 GB", slow: true, modes: []string{"bare-user"},
		image: generated("onefile", 1, 1, 2<<30), contenders: importers,
	},
	{
		name: "checkout", what: "Checkout of the Debian image", modes: []string{"bare", "archive"},
		image: debian, contenders: []contender{checkout, umociUnpack},
	},
	{
		name: "export", what: "Export of the Debian image to dir:", modes: []string{"bare", "archive"},
		image: debian, contenders: []contender{export, catAll, skopeoCopy},
	},
}

var importers = []contender{
	{"ostree-image", freshRepo, func(b *bench) *exec.Cmd {
		return exec.Command(b.o.program, "--quiet", "--insecure-policy", "--log-commands="+b.path("log"), "--repo="+b.path("repo"),
			"pull", "oci:"+b.layout+":image", "image:1")
	}},
	{"ostree-image --unpack=tar", freshRepo, func(b *bench) *exec.Cmd {
		return exec.Command(b.o.program, "--quiet", "--insecure-policy", "--log-commands="+b.path("log"), "--repo="+b.path("repo"),
			"pull", "--unpack=tar", "oci:"+b.layout+":image", "image:1")
	}},
	{"(a) gzip, tar, ostree in sequence", freshRepo, shell(`
for l in $LAYERS; do
	mkdir tree
	gzip -dc "$LAYOUT/blobs/sha256/$l" | tar -x --numeric-owner --xattrs --xattrs-include='*' -C tree
	find tree \( -type b -o -type c -o -type p -o -type s \) -delete
	ostree commit --repo=repo --branch="ociimage/$l" --tree=dir=tree >/dev/null
	rm -rf tree
done`)},
	{"(b) streamed in parallel, staged", freshRepo, shell(`
ostree init --repo=repo/tmp/stage --mode="$MODE"
for l in $LAYERS; do
	gzip -dc "$LAYOUT/blobs/sha256/$l" | tar --delete -f - --wildcards './dev/*' 2>/dev/null |
		ostree commit --repo=repo/tmp/stage --fsync=false --branch="ociimage/$l" --tar-autocreate-parents --tree=tar=- >/dev/null &
done
wait
ostree pull-local --repo=repo repo/tmp/stage >/dev/null
rm -rf repo/tmp/stage`)},
}

var (
	recorded = contender{"ostree-image --record", freshRepo, func(b *bench) *exec.Cmd {
		return exec.Command(b.o.program, "--quiet", "--insecure-policy", "--record="+b.path("record"), "--repo="+b.path("repo"),
			"pull", "oci:"+b.layout+":image", "image:1")
	}}
	again = contender{"nothing new", haveImage, func(b *bench) *exec.Cmd {
		return exec.Command(b.o.program, "--quiet", "--insecure-policy", "--log-commands="+b.path("log"), "--repo="+b.path("repo"),
			"pull", "oci:"+b.layout+":image", "image:1")
	}}
	tarOnly  = contender{"(d) tar -x alone", freshRepo, shell(`mkdir tree; for l in $LAYERS; do gzip -dc "$LAYOUT/blobs/sha256/$l" | tar -x -C tree; done; rm -rf tree`)}
	gzipOnly = contender{"(d) gzip -dc alone", freshRepo, shell(`for l in $LAYERS; do gzip -dc "$LAYOUT/blobs/sha256/$l" >/dev/null; done`)}
	checkout = contender{"ostree-image checkout", haveImage, func(b *bench) *exec.Cmd {
		return exec.Command(b.o.program, "--quiet", "--log-commands="+b.path("log"), "--repo="+b.path("repo"), "checkout", "image:1", b.path("root"))
	}}
	umociUnpack = contender{"(c) umoci unpack", haveImage, shell(`umoci unpack --image "$LAYOUT:image" root >/dev/null`)}
	export      = contender{"ostree-image push dir:", haveImage, func(b *bench) *exec.Cmd {
		return exec.Command(b.o.program, "--quiet", "--insecure-policy", "--log-commands="+b.path("log"), "--repo="+b.path("repo"), "push", "image:1", "dir:"+b.path("dir"))
	}}
	catAll = contender{"ostree cat of the same files", haveImage, shell(`
for l in $LAYERS; do
	ostree ls --repo=repo -R "ociimage/$l" | sed -n 's/^-[^/]*//p' | tr '\n' '\0' | xargs -0 -n 4000 ostree cat --repo=repo "ociimage/$l"
done >cat`)}
	skopeoCopy = contender{"(c) skopeo copy oci: dir:", haveImage, shell(`skopeo copy --quiet --insecure-policy "oci:$LAYOUT:image" dir:dir`)}
)

// bench is one image in one mode.
type bench struct {
	o            options
	name, layout string
	mode         string
	dir          string
	layers       []string
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

func shell(script string) func(b *bench) *exec.Cmd {
	return func(b *bench) *exec.Cmd {
		cmd := exec.Command("sh", "-euc", script)
		cmd.Env = append(os.Environ(), "LAYOUT="+b.layout, "MODE="+b.mode, "LAYERS="+strings.Join(b.layers, " "), "LC_ALL=C.UTF-8")
		return cmd
	}
}

func freshRepo(b *bench) error {
	return output(exec.Command("ostree", "init", "--repo="+b.path("repo"), "--mode="+b.mode))
}

func haveImage(b *bench) error {
	if err := freshRepo(b); err != nil {
		return err
	}
	return output(exec.Command(b.o.program, "--quiet", "--insecure-policy", "--repo="+b.path("repo"), "pull", "oci:"+b.layout+":image", "image:1"))
}

func output(cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	return errors.Wrapf(err, "%s: %s", strings.Join(cmd.Args, " "), out)
}

// sample is one measured run. The times are those of the process and all its children.
type sample struct {
	wall, user, sys time.Duration
	peakKiB         int64 // of the largest process
	writtenMiB      float64
	processes       int // that ostree-image started, 0 where unknown
}

func (b *bench) run(contenders []contender, rounds int) (string, error) {
	var err error
	if b.layers, err = layersOf(b.layout); err != nil {
		return "", err
	}
	samples := make([][]sample, len(contenders))
	for round := range rounds {
		for i, c := range contenders {
			s, err := b.measure(c)
			if err != nil {
				return "", errors.WithMessage(err, c.name)
			}
			log.Printf("%s, %s, round %d: %s %.2f s", b.name, b.mode, round+1, c.name, s.wall.Seconds())
			samples[i] = append(samples[i], s)
		}
	}
	var out strings.Builder
	fmt.Fprintln(&out, "| | seconds | spread | ratio | user | system | peak MB | processes | MB written |\n|---|---|---|---|---|---|---|---|---|")
	first := median(samples[0], func(s sample) float64 { return s.wall.Seconds() })
	for i, c := range contenders {
		walls := values(samples[i], func(s sample) float64 { return s.wall.Seconds() })
		wall := walls[len(walls)/2]
		processes := "–"
		if n := median(samples[i], func(s sample) float64 { return float64(s.processes) }); n > 0 {
			processes = fmt.Sprint(n)
		}
		fmt.Fprintf(&out, "| %s | %.2f | %.2f–%.2f | %.2f | %.2f | %.2f | %.0f | %s | %.0f |\n", c.name, wall, walls[0], walls[len(walls)-1], wall/first,
			median(samples[i], func(s sample) float64 { return s.user.Seconds() }), median(samples[i], func(s sample) float64 { return s.sys.Seconds() }),
			median(samples[i], func(s sample) float64 { return float64(s.peakKiB) / 1024 }), processes,
			median(samples[i], func(s sample) float64 { return s.writtenMiB }))
	}
	return out.String(), nil
}

func values(samples []sample, f func(sample) float64) []float64 {
	all := make([]float64, len(samples))
	for i, s := range samples {
		all[i] = f(s)
	}
	slices.Sort(all)
	return all
}

func median(samples []sample, f func(sample) float64) float64 {
	all := values(samples, f)
	return all[len(all)/2]
}

func (b *bench) measure(c contender) (s sample, err error) {
	if b.dir, err = os.MkdirTemp(b.o.work, "run-"); err != nil {
		return s, errors.WithStack(err)
	}
	defer func() {
		if rerr := os.RemoveAll(b.dir); err == nil {
			err = errors.WithStack(rerr)
		}
	}()
	if err := c.prepare(b); err != nil {
		return s, err
	}
	syscall.Sync() // what came before is not to be paid by this run
	cmd := c.command(b)
	cmd.Dir = b.dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	began := time.Now()
	if err := cmd.Run(); err != nil {
		return s, errors.Wrap(err, stderr.String())
	}
	s.wall = time.Since(began)
	usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return s, errors.New("no resource usage")
	}
	s.user, s.sys = cmd.ProcessState.UserTime(), cmd.ProcessState.SystemTime()
	s.peakKiB, s.writtenMiB = usage.Maxrss, float64(usage.Oublock)*512/(1<<20)
	s.processes, err = countCommands(b.path("log"))
	return s, err
}

// countCommands counts the processes in a command log.
func countCommands(path string) (int, error) {
	content, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return 0, nil
	}
	n := 0
	for line := range strings.Lines(string(content)) {
		if strings.HasPrefix(line, "ostree ") || strings.HasPrefix(line, "tar ") {
			n++
		}
	}
	return n, errors.WithStack(err)
}

// layersOf returns the hex digests of an image's layers.
func layersOf(layout string) ([]string, error) {
	type descriptor struct {
		Digest string `json:"digest"`
	}
	var index struct {
		Manifests []descriptor `json:"manifests"`
	}
	if err := readJSON(filepath.Join(layout, "index.json"), &index); err != nil {
		return nil, err
	}
	var manifest struct {
		Layers []descriptor `json:"layers"`
	}
	if err := readJSON(blobPath(layout, index.Manifests[0].Digest), &manifest); err != nil {
		return nil, err
	}
	var layers []string
	for _, l := range manifest.Layers {
		layers = append(layers, strings.TrimPrefix(l.Digest, "sha256:"))
	}
	return layers, nil
}

func blobPath(layout, digest string) string {
	return filepath.Join(layout, "blobs", "sha256", strings.TrimPrefix(digest, "sha256:"))
}

func readJSON(path string, v any) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return errors.WithStack(err)
	}
	return errors.Wrap(json.Unmarshal(content, v), path)
}

// debian makes the image of a real system: a base with python, perl and git, and a layer that changes some of it.
func debian(work string) (string, error) {
	layout := filepath.Join(work, "debian")
	if _, err := os.Stat(layout); err == nil {
		return layout, nil
	}
	script := `
cd "$WORK"
mmdebstrap --quiet --variant=minbase --include=python3,perl,git bookworm base.tar
mkdir upper
tar -C upper -xf base.tar ./etc ./usr/bin ./usr/share/doc
touch upper/etc/.wh.passwd
tar -C upper --numeric-owner -cf upper.tar .
umoci init --layout debian.new
umoci new --image debian.new:image
umoci raw add-layer --image debian.new:image base.tar
umoci raw add-layer --image debian.new:image upper.tar
umoci gc --layout debian.new
rm -rf upper upper.tar base.tar
mv debian.new debian`
	cmd := exec.Command("sh", "-euc", script)
	cmd.Env = append(os.Environ(), "WORK="+work)
	return layout, output(cmd)
}

// generated returns what makes an image of so many layers, each of so many files of the given size, half of each random.
func generated(name string, layers, files int, size int64) func(string) (string, error) {
	return func(work string) (string, error) {
		layout := filepath.Join(work, name)
		if _, err := os.Stat(layout); err == nil {
			return layout, nil
		}
		fresh := layout + ".new"
		if err := os.RemoveAll(fresh); err != nil {
			return "", errors.WithStack(err)
		}
		if err := os.MkdirAll(filepath.Join(fresh, "blobs", "sha256"), 0o755); err != nil {
			return "", errors.WithStack(err)
		}
		var diffIDs []string
		var descriptors []map[string]any
		for n := range layers {
			d, diffID, err := generateLayer(fresh, uint64(n), files, size)
			if err != nil {
				return "", err
			}
			diffIDs, descriptors = append(diffIDs, diffID), append(descriptors, d)
		}
		config, err := writeBlob(fresh, "application/vnd.oci.image.config.v1+json", map[string]any{
			"os": "linux", "architecture": "amd64", "rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs},
		})
		if err != nil {
			return "", err
		}
		manifest, err := writeBlob(fresh, "application/vnd.oci.image.manifest.v1+json", map[string]any{
			"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": descriptors,
		})
		if err != nil {
			return "", err
		}
		manifest["annotations"] = map[string]string{"org.opencontainers.image.ref.name": "image"}
		index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []any{manifest}})
		if err != nil {
			return "", errors.WithStack(err)
		}
		if err := os.WriteFile(filepath.Join(fresh, "index.json"), index, 0o644); err != nil {
			return "", errors.WithStack(err)
		}
		if err := os.WriteFile(filepath.Join(fresh, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644); err != nil {
			return "", errors.WithStack(err)
		}
		return layout, errors.WithStack(os.Rename(fresh, layout))
	}
}

func writeBlob(layout, mediaType string, v any) (map[string]any, error) {
	content, err := json.Marshal(v)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	sum := sha256.Sum256(content)
	digest := "sha256:" + hex.EncodeToString(sum[:])
	d := map[string]any{"mediaType": mediaType, "digest": digest, "size": len(content)}
	return d, errors.WithStack(os.WriteFile(blobPath(layout, digest), content, 0o644))
}

func generateLayer(layout string, seed uint64, files int, size int64) (descriptor map[string]any, diffID string, err error) {
	f, err := os.CreateTemp(layout, "layer-")
	if err != nil {
		return nil, "", errors.WithStack(err)
	}
	defer func() { _ = f.Close() }()
	compressed, plain := sha256.New(), sha256.New()
	buffered := bufio.NewWriterSize(io.MultiWriter(f, compressed), 1<<20)
	gz, err := gzip.NewWriterLevel(buffered, gzip.BestSpeed)
	if err != nil {
		return nil, "", errors.WithStack(err)
	}
	tw := tar.NewWriter(io.MultiWriter(gz, plain))
	random := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 1})
	block := make([]byte, 64<<10)
	for n := range files {
		name := fmt.Sprintf("layer-%d/dir-%03d/file-%06d", seed, n/500, n)
		if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size, Typeflag: tar.TypeReg}); err != nil {
			return nil, "", errors.WithStack(err)
		}
		for left := size; left > 0; {
			k := min(left, int64(len(block)))
			if _, err := random.Read(block[:k/2]); err != nil {
				return nil, "", errors.WithStack(err)
			}
			if _, err := tw.Write(block[:k]); err != nil {
				return nil, "", errors.WithStack(err)
			}
			left -= k
		}
	}
	for _, close := range []func() error{tw.Close, gz.Close, buffered.Flush} {
		if err := close(); err != nil {
			return nil, "", errors.WithStack(err)
		}
	}
	info, err := f.Stat()
	if err != nil {
		return nil, "", errors.WithStack(err)
	}
	digest := "sha256:" + hex.EncodeToString(compressed.Sum(nil))
	if err := os.Rename(f.Name(), blobPath(layout, digest)); err != nil {
		return nil, "", errors.WithStack(err)
	}
	return map[string]any{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": info.Size()},
		"sha256:" + hex.EncodeToString(plain.Sum(nil)), nil
}
