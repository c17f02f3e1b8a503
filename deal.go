package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"math/bits"
	"path"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"ostree-image/internal/tarstream"
)

const (
	// dealFrom is the size of a compressed layer from which it is worth another reading of it and a merge.
	dealFrom = 4 << 20
	// maxParts bounds how often one layer is decompressed: a part costs as much of that as compressing a twelfth of the layer.
	maxParts = 8
	// maxHeldDirs is of how many directories a share keeps the entry back until it knows where that belongs.
	maxHeldDirs = 1 << 17
	// shareOfEntry is what a file or link costs beside its payload, as bytes of payload.
	shareOfEntry = 4 << 10
)

// parts is into how many commits a layer is dealt out. In an archive repository nearly all of the time goes into compressing
// the files, which one ostree does on one core.
func (st *staging) parts(b *stagedBlob) int {
	if st.mode != modeArchive || st.engine != engineStream || b.want.Size < st.settings.dealFrom {
		return 1
	}
	return max(1, st.settings.dealTo)
}

// unpackClean commits the clean stream of b, in as many parts as that is worth, and returns what its commit is made
// of. Each part reads the blob by itself, as fast as its own ostree takes it. Where the scan finds the layer odd there
// is nothing.
func (st *staging) unpackClean(ctx context.Context, b *stagedBlob, scan *layerScan) (tree layerTree, plain bool, err error) {
	parts := st.parts(b)
	filter := func(w io.Writer) *layerFilter {
		f := newLayerFilter(st.perms, w)
		f.limits = st.settings.limits
		return f
	}
	if parts == 1 {
		return st.unpack(ctx, b, b.name()+".tar", true, scan, func(w io.Writer) cleanSink { return filter(w) })
	}
	trees := make([]layerTree, parts)
	odd := make([]bool, parts)
	group, ctx := errgroup.WithContext(ctx)
	for part := range parts {
		group.Go(func() (err error) {
			s, isPlain := scan, &plain
			if part > 0 {
				s, isPlain = &layerScan{beside: true}, new(bool)
			}
			trees[part], *isPlain, err = st.unpack(ctx, b, fmt.Sprintf("%s.%d.tar", b.name(), part+1), false, s, func(w io.Writer) cleanSink {
				f := filter(w)
				f.out = newShare(w, part, parts, f.key)
				return f
			})
			odd[part] = s.odd
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return tree, false, err
	}
	if scan.odd = slices.Contains(odd, true); scan.odd {
		return tree, plain, nil
	}
	for _, t := range trees {
		tree.args = append(tree.args, t.args...)
	}
	return tree, plain, nil
}

// share is one part of a layer's clean stream: some of its files, with the directories above them. The shares of all parts
// together are the whole layer, once each is given all entries in the same order. The parts are even, and a directory is divided among
// them as seldom as can be: to merge commits, ostree reads and writes all files again that lie in a directory of more than one of them,
// but for those of the first.
type share struct {
	out   *tarstream.Writer
	part  int
	load  []int64 // of each part, in bytes
	dirs  map[uint64]shareDir
	moved map[uint64]int8          // the part of files that are not where the first file beside them is
	key   func(name string) uint64 // that of the filter, which finds out where two names have one
	taken bool                     // the payload that comes is of this part

	maxHeld int // directories: where there are more, each part gets all that come
}

type shareDir struct {
	in    uint8            // a bit for each part that holds it
	first int8             // the part of its first file
	files int32            // how many there are
	own   int64            // bytes of files in it that a merge writes again if more than one part holds it
	held  *tarstream.Entry // its own entry, where that is still to be written
}

// alone tells whether one part only holds the directory.
func (d shareDir) alone() bool { return bits.OnesCount8(d.in) == 1 }

func newShare(w io.Writer, part, parts int, key func(name string) uint64) *share {
	s := &share{
		out: tarstream.NewWriter(w), part: part, load: make([]int64, parts), dirs: map[uint64]shareDir{}, moved: map[uint64]int8{}, key: key,
		maxHeld: maxHeldDirs,
	}
	s.dirs[s.key("")] = shareDir{in: s.all()} // every commit has a root
	return s
}

// all has a bit for each part.
func (s *share) all() uint8 { return uint8(1<<len(s.load) - 1) }

// WriteEntry takes the next entry of the whole stream.
func (s *share) WriteEntry(e tarstream.Entry) error {
	s.taken = false
	if e.Kind == tarstream.Dir {
		return s.directory(e)
	}
	part := s.partOf(e)
	if err := s.hold(parentOf(e.Name), part); err != nil {
		return err
	}
	s.count(e, part)
	if part != s.part {
		return nil
	}
	s.taken = true
	return s.out.WriteEntry(e)
}

// count notes which part has taken a file or link.
func (s *share) count(e tarstream.Entry, part int) {
	size := e.Size + shareOfEntry
	s.load[part] += size
	key := s.key(parentOf(e.Name))
	d := s.dirs[key]
	if d.files++; d.files == 1 {
		d.first = int8(part)
	} else if int(d.first) != part {
		s.moved[s.key(e.Name)] = int8(part)
	}
	if part > 0 {
		d.own += size
	}
	s.dirs[key] = d
}

// Write takes payload of the entry.
func (s *share) Write(b []byte) (int, error) {
	if !s.taken {
		return len(b), nil
	}
	return s.out.Write(b)
}

// directory keeps a directory back until something below it is of this part, unless that has come before.
func (s *share) directory(e tarstream.Entry) error {
	if len(s.dirs) >= s.maxHeld {
		for part := range s.load {
			if err := s.hold(e.Name, part); err != nil {
				return err
			}
		}
	}
	key := s.key(e.Name)
	d := s.dirs[key]
	if d.in>>s.part&1 != 0 {
		return s.out.WriteEntry(e)
	}
	d.held = &e
	s.dirs[key] = d
	return nil
}

// partOf decides where an entry goes that is no directory. A hard link must go where the file is that it leads to. Any other goes to the
// one part that holds its directory, or to the first part if several do.
func (s *share) partOf(e tarstream.Entry) int {
	if e.Kind == tarstream.HardLink {
		if part, ok := s.moved[s.key(e.Link)]; ok {
			return int(part)
		}
		return int(s.dirs[s.key(parentOf(e.Link))].first)
	}
	dir := parentOf(e.Name)
	switch d := s.dirs[s.key(dir)]; {
	case d.alone():
		return bits.TrailingZeros8(d.in)
	case d.in != 0:
		return 0
	}
	best, least := 0, int64(math.MaxInt64)
	for part, load := range s.load {
		// What must be written again is done by one process at the end, while all others wait.
		if cost := load + 2*int64(len(s.load))*s.penalty(dir, part); cost < least {
			best, least = part, cost
		}
	}
	return best
}

// penalty is how many bytes more a merge has to write again if part comes to hold the directory name.
func (s *share) penalty(name string, part int) (bytes int64) {
	for {
		name = parentOf(name)
		d := s.dirs[s.key(name)]
		if d.in>>part&1 != 0 {
			return bytes
		}
		if d.alone() {
			bytes += d.own
		}
	}
}

// hold makes a part hold the directory name and all above it.
func (s *share) hold(name string, part int) error {
	var held []*tarstream.Entry
	for {
		key := s.key(name)
		d := s.dirs[key]
		if d.in>>part&1 != 0 {
			break
		}
		d.in |= 1 << part
		if part == s.part && d.held != nil {
			held = append(held, d.held)
			d.held = nil
		}
		s.dirs[key] = d
		name = parentOf(name)
	}
	for _, e := range slices.Backward(held) {
		if err := s.out.WriteEntry(*e); err != nil {
			return err
		}
	}
	return nil
}

// Close gives the directories that have no file to the part that has the directory above, and ends the stream.
func (s *share) Close() error {
	var empty []tarstream.Entry
	for _, d := range s.dirs {
		if d.in == 0 && d.held != nil {
			empty = append(empty, *d.held)
		}
	}
	slices.SortFunc(empty, func(a, b tarstream.Entry) int { return strings.Compare(a.Name, b.Name) })
	for _, e := range empty {
		part := bits.TrailingZeros8(s.dirs[s.key(parentOf(e.Name))].in)
		if err := s.hold(e.Name, part); err != nil {
			return err
		}
	}
	return s.out.Close()
}

// parentOf returns the directory that holds name, "" for the root.
func parentOf(name string) string {
	if dir := path.Dir(name); dir != "." {
		return dir
	}
	return ""
}
