package main

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/rootfs"
)

const (
	// divideFrom is the size of a layer's tar stream from which its checkout is divided. Before
	// that, its headers must be read.
	divideFrom = 96 << 20
	// weightOfEntry is what it costs to make a file beside its content, as bytes of content.
	weightOfEntry = 16 << 10
	// maxWeighedDepth is how many directories deep a tree is looked at.
	maxWeighedDepth = 5
	// maxWeighed bounds how many directories are looked at.
	maxWeighed = 1 << 16
)

// subtree is a part of a layer's tree that one ostree checks out.
type subtree struct {
	path   string   // of the directory, "" for the whole tree
	skip   []string // the directories in it that others check out
	weight int64
}

// treeWeights is how much work there is below each directory of a layer, and which directories it
// holds. A nil one takes everything and does nothing.
type treeWeights struct {
	below map[string]int64
	dirs  map[string][]string
}

func newTreeWeights() *treeWeights {
	return &treeWeights{below: map[string]int64{}, dirs: map[string][]string{}}
}

// add counts a file. What lies too deep counts for the directory above.
func (w *treeWeights) add(name string, size int64) {
	if w == nil {
		return
	}
	weight, above := size+weightOfEntry, ""
	w.below[above] += weight
	for range maxWeighedDepth {
		start := len(above)
		if start > 0 {
			start++ // the slash
		}
		n := strings.IndexByte(name[start:], '/')
		if n < 0 {
			return
		}
		dir := name[:start+n]
		if _, known := w.below[dir]; !known {
			if len(w.below) >= maxWeighed || strings.Contains(dir, "\n") { // a list of paths to skip has one a line
				return
			}
			w.dirs[above] = append(w.dirs[above], dir)
		}
		w.below[dir] += weight
		above = dir
	}
}

// forget drops all that was counted: the tree is then not divided.
func (w *treeWeights) forget() {
	if w != nil {
		*w = *newTreeWeights()
	}
}

// divide divides the tree so that so many processes have about as much to do. What it returns
// begins with the part that holds the root, and a part comes before those that lie in a directory
// of it.
func (w *treeWeights) divide(processes int) []subtree {
	total := w.below[""]
	parts := []subtree{{weight: total}}
	even, least := total/int64(2*processes), total/int64(8*processes)
	for len(parts) < 4*processes {
		from, heaviest, most := -1, "", least
		for i, p := range parts {
			if p.weight <= even {
				continue
			}
			for _, dir := range w.dirs[p.path] {
				if w.below[dir] > most && !slices.Contains(p.skip, dir) {
					from, heaviest, most = i, dir, w.below[dir]
				}
			}
		}
		if from < 0 {
			break
		}
		parts[from].skip = append(parts[from].skip, heaviest)
		parts[from].weight -= w.below[heaviest]
		parts = append(parts, subtree{path: heaviest, weight: w.below[heaviest]})
	}
	slices.SortFunc(parts, func(a, b subtree) int { return strings.Compare(a.path, b.path) })
	return parts
}

// fetchDivided has layer i checked out by several processes, each of which makes a part of the
// tree, and puts these together. What the layer names must be read first.
func (c *checkout) fetchDivided(ctx context.Context, b *storedBlob, i int) (entries []layerEntry, err error) {
	weights := newTreeWeights()
	if entries, err = c.entries(ctx, b, i == 0, weights); err != nil {
		return nil, err
	}
	parts := weights.divide(runtime.GOMAXPROCS(0))
	dirs := map[string]string{}
	for n, p := range parts {
		if dirs[p.path] = c.layerDir(i); p.path != "" {
			dirs[p.path] = c.work.Join(fmt.Sprintf("layer-%d-part-%d", i, n))
		}
	}
	first := slices.SortedStableFunc(
		slices.Values(parts),
		func(a, b subtree) int { return cmp.Compare(b.weight, a.weight) },
	)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for _, p := range first { // what lasts longest
		group.Go(func() error { return c.checkoutPart(ctx, b, dirs[p.path], p) })
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	tree, err := rootfs.Open(c.layerDir(i), true)
	if err != nil {
		return nil, err
	}
	defer errdefs.Close(&err, tree)
	for _, p := range parts {
		if p.path == "" {
			continue
		}
		c.settings.journal.step("its place in the tree", "mv", dirs[p.path], filepath.Join(c.layerDir(i), p.path))
		if err := tree.Adopt(dirs[p.path], p.path); err != nil {
			return nil, disagreement(err)
		}
	}
	return entries, err
}

// checkoutPart has ostree make dir a part of a layer's tree.
func (c *checkout) checkoutPart(ctx context.Context, b *storedBlob, dir string, p subtree) error {
	o := c.options
	o.Subpath = p.path
	if len(p.skip) > 0 {
		var list strings.Builder
		for _, skip := range p.skip { // "/" is the directory that is checked out, and one "/" follows each directory
			list.WriteString("/" + strings.TrimPrefix(strings.TrimPrefix(skip, p.path), "/") + "/\n")
		}
		o.SkipList = dir + ".skip"
		if err := c.settings.journal.writeFile(o.SkipList, []byte(list.String()), "what others check out"); err != nil {
			return err
		}
	}
	return c.store.repo.checkout(ctx, b.spec, dir, o)
}
