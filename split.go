package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math"
	"math/bits"
	"slices"

	"github.com/pkg/errors"
	"golang.org/x/sync/errgroup"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/layer"
	"ostree-image/internal/normalize"
	"ostree-image/internal/ostree"
	"ostree-image/internal/spool"
	"ostree-image/internal/tarstream"
)

const (
	// splitFrom is the size of a compressed layer from which it is worth a merge.
	splitFrom = 4 << 20
	// maxParts bounds into how many a layer is split: decompressing it takes about a twelfth of
	// what compressing its files does.
	maxParts = 8
	// maxHeldDirs is of how many directories a splitter keeps the entry back until it knows where
	// that belongs.
	maxHeldDirs = 1 << 17
	// shareOfEntry is what a file or link costs beside its payload, as bytes of payload.
	shareOfEntry = 4 << 10
)

// parts is into how many commits a layer is split. In an archive repository nearly all of the time
// goes into compressing the files, which one ostree does on one core.
func (st *staging) parts(b *spool.Blob) int {
	if st.mode != ostree.Archive || st.engine != engineStream || b.Want.Size < st.settings.splitFrom {
		return 1
	}
	return max(1, st.settings.splitInto)
}

// unpackLayer commits the normalized tar stream of b, in as many parts as that is worth, and
// returns what its commit is made of. Where the scan finds that the layer is not canonical there is
// nothing.
func (st *staging) unpackLayer(
	ctx context.Context,
	b *spool.Blob,
	scan *layer.Scan,
) (tree layerTree, plain bool, err error) {
	filter := normalize.NewFilter(st.perms, nil)
	filter.Limits = st.settings.limits
	parts := st.parts(b)
	if parts > 1 {
		return st.unpackSplit(ctx, b, scan, filter, parts)
	}
	return st.unpack(ctx, b, b.Name()+".tar", scan, func(out normalize.EntryWriter) normalizedSink {
		filter.Out = out
		return filter
	})
}

// unpackSplit reads the layer once, and splits what filter makes of it out to so many commits. Each
// takes its part from a spool as fast as it can, for what is in a row in the layer mostly goes to
// one of them.
func (st *staging) unpackSplit(ctx context.Context, b *spool.Blob, scan *layer.Scan, filter *normalize.Filter, parts int) (
	tree layerTree, plain bool, err error,
) {
	spools := make([]*spool.Spool, parts)
	outs := make([]io.Writer, parts)
	for part := range parts {
		if spools[part], err = spool.New(st.blobDir()); err != nil {
			return tree, false, err
		}
		defer errdefs.Close(&err, spools[part])
		outs[part] = spools[part]
	}
	trees := make([]layerTree, parts)
	group, ctx := errgroup.WithContext(ctx)
	for part, s := range spools {
		group.Go(func() (err error) {
			defer s.Leave()
			trees[part], err = st.feed(
				ctx,
				b,
				fmt.Sprintf("%s.%d.tar", b.Name(), part+1),
				nil,
				func(w io.Writer) error {
					_, err := io.Copy(w, s)
					return err
				},
			)
			return err
		})
	}
	group.Go(func() (err error) {
		filter.Out = newSplitter(outs, filter.Key)
		plain, err = st.scanInto(ctx, b, scan, filter)
		for _, s := range spools {
			s.End(err)
		}
		if errors.Is(err, spool.ErrLeft) {
			return nil // who left says why
		}
		return err
	})
	if err = group.Wait(); err != nil {
		if scan.NonCanonical && errors.Is(err, normalize.ErrNonCanonical) {
			err = nil
		}
		return tree, plain, err
	}
	for _, t := range trees {
		tree.args = append(tree.args, t.args...)
	}
	return tree, plain, nil
}

// splitter splits a layer's normalized tar stream out to several: to each some of the files, with
// the directories above them. Together they are the whole layer. They are even, and a directory is
// divided among them as seldom as can be: to merge commits, ostree reads and writes all files again
// that lie in a directory of more than one of them, but for those of the first.
type splitter struct {
	buffers []*bufio.Writer
	outs    []*tarstream.Writer
	load    []int64 // of each part, in bytes
	dirs    map[uint64]splitDir
	moved   map[uint64]int8          // the part of files that are not where the first file beside them is
	key     func(name string) uint64 // that of the filter, which finds out where two names have one
	payload io.Writer                // takes that of the last entry

	maxHeld int // directories: where there are more, each part gets all that come
}

type splitDir struct {
	in    uint8            // a bit for each part that holds it
	first int8             // the part of its first file
	files int32            // how many there are
	own   int64            // bytes of files in it that a merge writes again if more than one part holds it
	held  *tarstream.Entry // its own entry, where that came and is still to be written to some part
}

// alone tells whether one part only holds the directory.
func (d splitDir) alone() bool { return bits.OnesCount8(d.in) == 1 }

func newSplitter(outs []io.Writer, key func(name string) uint64) *splitter {
	s := &splitter{
		load:    make([]int64, len(outs)),
		dirs:    map[uint64]splitDir{},
		moved:   map[uint64]int8{},
		key:     key,
		maxHeld: maxHeldDirs,
	}
	for _, w := range outs {
		buffer := bufio.NewWriterSize(w, spool.CopyBuffer)
		s.buffers, s.outs = append(s.buffers, buffer), append(s.outs, tarstream.NewWriter(buffer))
	}
	s.dirs[s.key("")] = splitDir{in: s.all()} // every commit has a root
	return s
}

// all has a bit for each part.
func (s *splitter) all() uint8 { return uint8(1<<len(s.outs) - 1) }

// WriteEntry takes the next entry.
func (s *splitter) WriteEntry(e tarstream.Entry) error {
	if e.Kind == tarstream.Dir {
		return s.directory(e)
	}
	part := s.partOf(e)
	if err := s.hold(normalize.ParentOf(e.Name), part); err != nil {
		return err
	}
	s.count(e, part)
	s.payload = s.outs[part]
	return s.outs[part].WriteEntry(e)
}

// count notes which part has taken a file or link.
func (s *splitter) count(e tarstream.Entry, part int) {
	size := e.Size + shareOfEntry
	s.load[part] += size
	key := s.key(normalize.ParentOf(e.Name))
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

// Write takes payload of the last entry.
func (s *splitter) Write(b []byte) (int, error) { return s.payload.Write(b) }

// directory writes a directory to the parts that hold it, and keeps it back for those that come to.
func (s *splitter) directory(e tarstream.Entry) error {
	if len(s.dirs) >= s.maxHeld {
		for part := range s.outs {
			if err := s.hold(e.Name, part); err != nil {
				return err
			}
		}
	}
	key := s.key(e.Name)
	d := s.dirs[key]
	for part, out := range s.outs {
		if d.in>>part&1 == 0 {
			continue
		}
		if err := out.WriteEntry(e); err != nil {
			return err
		}
	}
	if d.in != s.all() {
		d.held = &e
	}
	s.dirs[key] = d
	return nil
}

// partOf decides where an entry goes that is no directory. A hard link must go where the file is
// that it leads to. Any other goes to the one part that holds its directory, or to the first part
// if several do.
func (s *splitter) partOf(e tarstream.Entry) int {
	if e.Kind == tarstream.HardLink {
		if part, ok := s.moved[s.key(e.Link)]; ok {
			return int(part)
		}
		return int(s.dirs[s.key(normalize.ParentOf(e.Link))].first)
	}
	dir := normalize.ParentOf(e.Name)
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

// penalty is how many bytes more a merge has to write again if part comes to hold the directory
// name.
func (s *splitter) penalty(name string, part int) (bytes int64) {
	for {
		name = normalize.ParentOf(name)
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
func (s *splitter) hold(name string, part int) error {
	var held []*tarstream.Entry
	for {
		key := s.key(name)
		d := s.dirs[key]
		if d.in>>part&1 != 0 {
			break
		}
		d.in |= 1 << part
		if d.held != nil {
			held = append(held, d.held)
		}
		if d.in == s.all() {
			d.held = nil
		}
		s.dirs[key] = d
		name = normalize.ParentOf(name)
	}
	for _, e := range slices.Backward(held) {
		if err := s.outs[part].WriteEntry(*e); err != nil {
			return err
		}
	}
	return nil
}

// Close gives the directories that have no file to the part that has the directory above, and ends
// all parts.
func (s *splitter) Close() error {
	var empty []string
	for _, d := range s.dirs {
		if d.in == 0 && d.held != nil {
			empty = append(empty, d.held.Name)
		}
	}
	slices.Sort(empty)
	for _, name := range empty {
		part := bits.TrailingZeros8(s.dirs[s.key(normalize.ParentOf(name))].in)
		if err := s.hold(name, part); err != nil {
			return err
		}
	}
	for part, out := range s.outs {
		if err := out.Close(); err != nil {
			return err
		}
		if err := s.buffers[part].Flush(); err != nil {
			return err
		}
	}
	return nil
}
