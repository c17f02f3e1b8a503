package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// benchCase is one piece of work, done by all contenders in turns.
type benchCase struct {
	name, what string
	slow       bool // 3 rounds are enough
	aged       bool // it has the disk as it is, with what the runs before made and removed, see newFileSystem
	growth     bool // the contenders do the same in different sizes; the first is the smallest
	modes      []string
	input      input
	// setup makes what all runs of one mode need. It may be nil.
	setup      func(ctx context.Context, b *bench) error
	contenders []contender
}

// contender is one way to do the work. prepare is not measured.
type contender struct {
	name    string
	x       float64  // the size, in cases of growth
	modes   []string // nil for all
	input   input    // nil for that of the case
	prepare func(ctx context.Context, b *bench) error
	command func(ctx context.Context, b *bench) *exec.Cmd
}

func (c contender) label() string {
	if c.x == 0 {
		return c.name
	}
	return c.name + " " + thousands(c.x)
}

var allModes = []string{"bare", "bare-user", "archive", "bare-user-only"}

// Names that the targets look for.
const (
	ours        = "ostree-image"
	sequential  = "(a) gzip, tar, ostree in sequence"
	parallel    = "(b) streamed in parallel, staged"
	nothingNew  = "ostree-image, nothing new"
	layerAlone  = "ostree-image, that layer alone"
	lastAlone   = "ostree-image, its last layer alone, from disk"
	oursLarge   = "ostree-image, the Debian image"
	download    = "(c) skopeo copy docker: dir:"
	oursUser    = "ostree-image checkout --user-mode"
	unpack      = "(c) umoci unpack"
	catFiles    = "(d) ostree cat of the same files"
	listImages  = "ostree-image list"
	listFirst   = "ostree-image list, without a cache"
	slowNetwork = 20e6 // bytes a second
)

// allCases returns the cases in the order in which they run. The sizes of generated inputs are
// multiplied by scale.
func allCases(scale float64) []benchCase {
	files := func(n int64) int64 { return scaled(n, scale) }
	alpine := generated(1, files(500), 16<<10)
	layers60 := generated(60, files(100), 4<<10)
	changed60 := replaced(layers60, 30, files(100), 4<<10)
	shared := replaced(debian, 1, files(1500), 16<<10)
	cases := []benchCase{
		{
			name: "alpine", what: "Import of one layer of 500 files of 16 KiB", modes: []string{"bare-user", "archive"},
			input: alpine, contenders: importers,
		},
		{
			name: "debian", what: "Import of a two-layer Debian image with python, perl and git", modes: []string{"bare", "bare-user", "archive"},
			aged: true, input: debian, contenders: slices.Concat(importers, []contender{again}),
		},
		{
			name: "debian-fresh", what: "The same, each run on a new file system", modes: allModes, slow: true,
			input: debian, contenders: slices.Concat(importers, []contender{tarOnly, gzipOnly}),
		},
		{
			name: "debian-ways", what: "Other ways to import the Debian image", slow: true, modes: []string{"bare-user", "archive"},
			input: debian, contenders: []contender{importer, extracted, recorded},
		},
		{
			name: "debian-shared", what: "Import of the Debian base with another upper layer (1,500 files, 24 MB) beside the Debian image",
			modes: allModes, input: shared, contenders: update(debian, onlyLayer(shared, 1)),
		},
		{
			name: "layers", what: "Import of 60 layers of 100 files of 4 KiB", modes: []string{"bare-user"},
			input: layers60, contenders: slices.Concat(importers, []contender{again}),
		},
		{
			name: "layers-changed", what: "Import of the 60 layers with one of them changed beside the 60", modes: allModes,
			input: changed60, contenders: update(layers60, onlyLayer(changed60, 30)),
		},
		{
			name: "files", what: "Import of one layer of 200,000 files, 2 GB", slow: true, modes: []string{"bare-user"},
			input: generated(1, files(200_000), 10<<10), contenders: importers,
		},
		{
			name: "onefile", what: "Import of one layer of one file of 2 GB", slow: true, modes: []string{"bare-user"},
			input: generated(1, 1, scaled(2<<30, scale)), contenders: importers,
		},
		{
			name: "checkout", what: "Checkout of the Debian image", modes: []string{"bare", "bare-user", "archive"},
			aged: true, input: debian, contenders: []contender{checkout, checkoutUser, checkoutLinks, umociUnpack},
		},
		{
			name: "checkout-fresh", what: "The same on a new file system", modes: []string{"bare", "bare-user", "archive"}, slow: true,
			input: debian, contenders: []contender{checkout, checkoutUser, checkoutLinks, umociUnpack},
		},
		{
			name: "export", what: "Export of the Debian image to dir:, uncompressed", modes: []string{"bare", "bare-user", "archive"},
			aged: true, input: debian, contenders: []contender{export, catAll, skopeoCopy},
		},
	}
	for _, source := range []struct {
		name, what string
		input      input
	}{
		{"debian", "the Debian image", debian},
		{"layers", "60 layers of 100 files of 20 KiB", generated(60, files(100), 20<<10)},
	} {
		contenders := []contender{importer, skopeoDownload}
		if source.name == "debian" {
			contenders = append(contenders, lastLayer)
		}
		cases = append(
			cases, benchCase{
				name: "registry-" + source.name, what: "Import from a registry: " + source.what, modes: []string{"bare-user"},
				input: source.input, setup: fromRegistry(source.name, 0), contenders: []contender{importer, skopeoDownload},
			}, benchCase{
				name: "registry-" + source.name + "-20", what: "Import from a registry at 20 MB/s: " + source.what,
				modes: []string{"bare-user", "archive"}, input: source.input,
				setup: fromRegistry(source.name, slowNetwork), contenders: contenders,
			})
	}
	return append(cases, growthCases(scale, alpine)...)
}

func growthCases(scale float64, alpine input) []benchCase {
	cases := []benchCase{
		{name: "growth-files", what: "Import of one layer of so many files of 1 KiB"},
		{name: "growth-bytes", what: "Import of one layer of one file of so many bytes"},
		{name: "growth-layers", what: "Import of so many layers of 100 files of 4 KiB"},
		{name: "growth-images", what: "Import of one layer of 500 files beside so many images, the same again, a list, and the Debian image", input: alpine},
	}
	for i := range cases {
		cases[i].growth, cases[i].slow, cases[i].modes = true, true, []string{"bare-user"}
	}
	sized := func(i int, x int64, in input) {
		one := importer
		one.x, one.input = float64(x), in
		cases[i].contenders = append(cases[i].contenders, one)
	}
	for _, n := range []int64{1000, 4000, 16_000, 64_000} {
		n = scaled(n, scale)
		sized(0, n, generated(1, n, 1<<10))
	}
	for _, mb := range []int64{16, 64, 256, 1024} {
		bytes := scaled(mb*1e6, scale)
		sized(1, bytes, generated(1, 1, bytes))
	}
	for _, n := range []int{1, 5, 20, 60} {
		sized(2, int64(n), generated(n, scaled(100, scale), 4<<10))
	}
	var counts []int
	for _, n := range []int64{1, 10, 100, 1000} {
		counts = append(counts, int(scaled(n, scale)))
	}
	counts = slices.Compact(counts)
	cases[3].setup = fillRepositories(counts)
	for _, n := range counts {
		name := besideName(n)
		cases[3].contenders = append(
			cases[3].contenders,
			contender{name: ours, x: float64(n), prepare: beside(name, false), command: pull()},
			contender{name: nothingNew, x: float64(n), prepare: beside(name, true), command: pull()},
			contender{name: listFirst, x: float64(n), prepare: beside(name, true), command: listWithoutCache},
			contender{name: listImages, x: float64(n), prepare: listedOnce(name), command: program("list")},
		)
	}
	for _, n := range slices.Compact([]int{counts[0], counts[len(counts)-1]}) {
		cases[3].contenders = append(cases[3].contenders,
			contender{name: oursLarge, x: float64(n), input: debian, prepare: beside(besideName(n)+forLarge, false), command: pull()})
	}
	return cases
}

// The contenders of imports, all into an empty repository.
var (
	importer = contender{name: ours, prepare: freshRepo, command: pull()}

	importers = []contender{
		importer,
		{name: sequential, prepare: freshRepo, command: shell(`
for l in $LAYERS; do
	mkdir tree
	gzip -dc "$LAYOUT/blobs/sha256/$l" | tar -x --numeric-owner --xattrs --xattrs-include='*' -C tree
	find tree \( -type b -o -type c -o -type p -o -type s \) -delete
	ostree commit --repo="$REPO" --branch="ociimage/$l" --tree=dir=tree >/dev/null
	rm -rf tree
done`)},
		{name: parallel, prepare: freshRepo, command: shell(`
stage=$REPO/tmp/stage
ostree init --repo="$stage" --mode="$MODE"
# tar --delete cuts off the end of a stream in which it finds nothing to delete, so only layers with devices go through it.
stream() {
	case " $DEVICES " in
	*" $1 "*) gzip -dc "$LAYOUT/blobs/sha256/$1" | tar --delete -f - --wildcards './dev/*' ;;
	*) gzip -dc "$LAYOUT/blobs/sha256/$1" ;;
	esac
}
pids=
for l in $LAYERS; do
	stream "$l" |
		ostree commit --repo="$stage" --fsync=false --branch="ociimage/$l" --tar-autocreate-parents --tree=tar=- >/dev/null &
	pids="$pids $!"
done
for pid in $pids; do wait "$pid"; done
ostree pull-local --repo="$REPO" "$stage" >/dev/null
rm -rf "$stage"`)},
	}

	extracted = contender{name: "ostree-image --unpack=tar", prepare: freshRepo, command: pull("--unpack=tar")}
	recorded  = contender{
		name: "ostree-image --record", prepare: freshRepo,
		command: func(ctx context.Context, b *bench) *exec.Cmd {
			return program("--insecure-policy", "--record="+b.path("record"), "pull", b.source, "image:1")(ctx, b)
		},
	}
	again   = contender{name: nothingNew, prepare: withImage, command: pull()}
	tarOnly = contender{name: "(d) tar -x alone", prepare: freshRepo, command: shell(`
mkdir tree
for l in $LAYERS; do gzip -dc "$LAYOUT/blobs/sha256/$l" | tar -x -C tree; done
rm -rf tree`)}
	gzipOnly = contender{
		name: "(d) gzip -dc alone", prepare: freshRepo,
		command: shell(`for l in $LAYERS; do gzip -dc "$LAYOUT/blobs/sha256/$l" >/dev/null; done`),
	}
	lastLayer      = contender{name: lastAlone, input: onlyLayer(debian, 0), prepare: freshRepo, command: pullLayout}
	skopeoDownload = contender{name: download, prepare: freshRepo, command: shell(`
skopeo copy --quiet --insecure-policy --src-tls-verify=false "$SOURCE" dir:dir`)}
)

// update compares the import of an image beside another one, which has all its layers but one, with
// the import of that layer.
func update(before, difference input) []contender {
	alone, inSequence := importer, importers[1]
	alone.name, alone.input = layerAlone, difference
	inSequence.name, inSequence.input = sequential+", that layer alone", difference
	return []contender{{name: ours, prepare: updating(before), command: pull()}, alone, inSequence}
}

// The contenders of checkouts and exports.
var (
	checkout     = contender{name: "ostree-image checkout", prepare: withImage, command: program("checkout", "image:1", "root")}
	checkoutUser = contender{
		name: oursUser, modes: []string{"bare-user"}, prepare: withImage,
		command: program("checkout", "--user-mode", "image:1", "root"),
	}
	checkoutLinks = contender{
		name: "ostree-image checkout -H", modes: []string{"bare"}, prepare: withImage,
		command: program("checkout", "--require-hardlinks", "image:1", "root"),
	}
	umociUnpack = contender{name: unpack, prepare: withImage, command: shell(`umoci unpack --image "$LAYOUT:image" root >/dev/null`)}
	export      = contender{
		name: "ostree-image push dir:", prepare: withImage, command: program("--insecure-policy", "push", "image:1", "dir:dir"),
	}
	// The paths are listed beforehand, and 30,000 of them go into one call.
	catAll = contender{
		name: catFiles,
		prepare: func(ctx context.Context, b *bench) error {
			if err := withImage(ctx, b); err != nil {
				return err
			}
			list := shell(`
for l in $LAYERS; do
	ostree ls --repo="$REPO" -R "ociimage/$l" | sed -n 's/^-[^/]*//p' | tr '\n' '\0' >"paths-$l"
done`)(ctx, b)
			list.Dir = b.run
			return output(list)
		},
		command: shell(`
for l in $LAYERS; do
	xargs -0 -n 30000 -s 1800000 ostree cat --repo="$REPO" "ociimage/$l" <"paths-$l"
done >cat`),
	}
	skopeoCopy = contender{name: "(c) skopeo copy oci: dir:", prepare: withImage, command: shell(`
skopeo copy --quiet --insecure-policy "oci:$LAYOUT:image" dir:dir`)}
)

// program runs ostree-image in the run's directory, on the run's repository.
func program(arguments ...string) func(ctx context.Context, b *bench) *exec.Cmd {
	return func(ctx context.Context, b *bench) *exec.Cmd {
		global := []string{"--quiet", "--log-commands=" + b.path("log"), "--repo=" + b.repo}
		return exec.CommandContext(ctx, b.o.program, append(global, arguments...)...)
	}
}

// listWithoutCache lists the images where nothing is known of their commits.
func listWithoutCache(ctx context.Context, b *bench) *exec.Cmd {
	cmd := program("list")(ctx, b)
	cmd.Env = append(os.Environ(), "XDG_CACHE_HOME="+b.path("cache"))
	return cmd
}

// listedOnce takes the section's repository of that name, of which all is known.
func listedOnce(name string) func(ctx context.Context, b *bench) error {
	return func(ctx context.Context, b *bench) error {
		if err := beside(name, true)(ctx, b); err != nil {
			return err
		}
		return output(program("list")(ctx, b))
	}
}

// pull imports the image as image:1.
func pull(flags ...string) func(ctx context.Context, b *bench) *exec.Cmd {
	return func(ctx context.Context, b *bench) *exec.Cmd {
		all := append([]string{"--insecure-policy", "pull", "--src-tls-verify=false"}, flags...)
		return program(append(all, b.source, "image:1")...)(ctx, b)
	}
}

// pullLayout imports the image as pull does, from disk wherever the others have it from.
func pullLayout(ctx context.Context, b *bench) *exec.Cmd {
	return program("--insecure-policy", "pull", "oci:"+b.image.layout+":image", "image:1")(ctx, b)
}

// shell runs a script of others' tools, in which each failure is one of the whole.
func shell(script string) func(ctx context.Context, b *bench) *exec.Cmd {
	return func(ctx context.Context, b *bench) *exec.Cmd {
		cmd := exec.CommandContext(ctx, "sh", "-euc", script)
		var layers, devices []string
		for _, l := range b.image.layers {
			layers = append(layers, l.descriptor.hex())
			if l.devices {
				devices = append(devices, l.descriptor.hex())
			}
		}
		cmd.Env = append(
			os.Environ(), "LAYOUT="+b.image.layout, "SOURCE="+b.source, "REPO="+b.repo, "MODE="+b.mode,
			"LAYERS="+strings.Join(layers, " "), "DEVICES="+strings.Join(devices, " "), "LC_ALL=C.UTF-8",
		)
		return cmd
	}
}

// forLarge ends the name of a repository's copy, which gets the Debian image.
const forLarge = "-large"

// besideName is what the repository with n other images is called.
func besideName(n int) string { return "beside-" + strconv.Itoa(n) }

// fillingImage is a small image of its own for each number.
func fillingImage(number int) input {
	return func(_ context.Context, work string) (image, error) {
		layout := filepath.Join(work, fmt.Sprintf("filling-%d", number))
		return writeImage(layout, func(layout string) ([]layer, error) {
			l, err := generateLayer(layout, fillingSeed+uint64(number), 3, 1<<10)
			return []layer{l}, err
		})
	}
}
