package main

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/pkg/errors"
	"github.com/vbatts/tar-split/archive/tar"
	"golang.org/x/sys/unix"

	"ostree-image/internal/normalize"
	"ostree-image/internal/rootfs"
	"ostree-image/internal/tarstream"
)

// layerEntry is what a layer names. Owners, modes and attributes are those of what ostree has
// checked out.
type layerEntry struct {
	kind   tarstream.Kind
	name   string // clean, "" for the root
	link   string // what a hard link leads to
	source string // where the tree of the layer has it, "" for nowhere

	replaced bool        // the layer itself replaces it later: source is a name in the tree of fetchReplaced
	time     rootfs.Time // of its modification
}

// Kinds beside those of tarstream.
const (
	goneKind = normalize.LeftOut
	// impliedKind is that of a directory of the lowest layer that the layer does not name.
	impliedKind tarstream.Kind = 'i'
)

// entries returns what a layer names and the applier needs to know, in the layer's order. base
// tells that it is the lowest. weights, unless it is nil, learns how much there is to check out; of
// a layer that reaches through its own links nothing.
func (c *checkout) entries(ctx context.Context, b *storedBlob, base bool, weights *treeWeights) ([]layerEntry, error) {
	var entries []layerEntry
	odd := false // noted here too: not every source of headers gives the error back
	var foreign *foreignOwnerError
	filter := normalize.NewFilter(permissions{namespace: c.perms.namespace}, nil)
	err := c.store.headers(ctx, b, func(hdr *tar.Header) error {
		e, ok, err := filter.Take(hdr)
		if errors.Is(err, normalize.ErrNonCanonical) {
			odd = true
		}
		_ = errors.As(err, &foreign)
		if err != nil {
			return err
		}
		entry := layerEntry{kind: e.Kind, name: e.Name, source: e.Name, time: rootfs.TimeOf(hdr.ModTime)}
		if e.Kind == tarstream.HardLink {
			entry.link = e.Link
		}
		switch {
		case !ok && e.Kind != normalize.LeftOut:
			return nil
		case hdr.Typeflag == tar.TypeLink && e.Kind == tarstream.Symlink: // ostree has no hard links to links
			entry.kind = tarstream.HardLink
			if entry.link, err = normalize.CleanName(hdr.Linkname); err != nil {
				return err
			}
		}
		if ok && e.Kind != tarstream.Dir {
			weights.add(e.Name, e.Size)
		}
		entries = append(entries, entry)
		return nil
	})
	if odd {
		weights.forget()
	}
	if foreign != nil {
		return nil, foreign
	}
	switch {
	case odd && base:
		return c.plannedEntries(ctx, b)
	case odd:
		return c.nonCanonicalEntries(ctx, b)
	}
	if base {
		delete(filter.Implied, "") // the root is always there
		entries = appendImplied(entries, slices.Collect(maps.Keys(filter.Implied)))
	}
	return entries, err
}

// appendImplied adds directories that the lowest layer does not name to its entries.
func appendImplied(entries []layerEntry, dirs []string) []layerEntry {
	for _, dir := range dirs {
		entries = append(entries, layerEntry{kind: impliedKind, name: dir, source: dir})
	}
	return entries
}

// plannedEntries is entries for the first layer, where that names something twice or reaches
// through its own links: the entries are those of what it comes to in the end, which is what is
// there already.
func (c *checkout) plannedEntries(ctx context.Context, b *storedBlob) ([]layerEntry, error) {
	plan := normalize.NewPlan(permissions{})
	var times []rootfs.Time
	err := c.store.headers(ctx, b, func(hdr *tar.Header) error {
		times = append(times, rootfs.TimeOf(hdr.ModTime))
		return plan.Add(hdr)
	})
	if err != nil {
		return nil, err
	}
	plan.Finish()
	var entries []layerEntry
	for i := range plan.Index {
		for n, e := range plan.Emit[i] {
			entry := layerEntry{kind: e.Kind, name: e.Name, source: e.Name, time: times[i]}
			if n > 0 { // more names of the same thing
				entry.kind, entry.link = tarstream.HardLink, plan.Emit[i][0].Name
			}
			entries = append(entries, entry)
		}
	}
	for _, name := range plan.LeftOut {
		entries = append(entries, layerEntry{kind: goneKind, name: name})
	}
	return appendImplied(entries, plan.Implied), nil
}

// nonCanonicalEntries is entries for any other such layer. Each entry is applied in its turn, to
// what is there then. What it brings is where the plan has put it, or, where that is gone in the
// end, among what fetchReplaced extracts.
func (c *checkout) nonCanonicalEntries(ctx context.Context, b *storedBlob) ([]layerEntry, error) {
	plan := normalize.NewPlan(permissions{})
	var entries []layerEntry
	var places []int // in the layer
	err := c.store.headers(ctx, b, func(hdr *tar.Header) error {
		e, ok, err := normalize.Entry(hdr, permissions{})
		if err != nil {
			return err
		}
		if ok {
			entries, places = append(
				entries,
				layerEntry{kind: e.Kind, name: e.Name, link: e.Link, time: rootfs.TimeOf(hdr.ModTime)},
			), append(
				places,
				plan.Index,
			)
		}
		return plan.Add(hdr)
	})
	if err != nil {
		return nil, err
	}
	plan.Finish()
	for i := range entries {
		e := &entries[i]
		switch there := plan.Emit[places[i]]; {
		case len(there) > 0:
			e.source = there[0].Name
		case e.kind == tarstream.Dir, e.kind == tarstream.File, e.kind == tarstream.Symlink:
			e.source, e.replaced = replacedName(places[i]), true
		}
	}
	return entries, nil
}

// treeEntries returns what a checked out layer holds, whiteouts first in each directory.
func treeEntries(layer *rootfs.FS) ([]layerEntry, error) {
	st, err := layer.Stat("")
	if err != nil {
		return nil, err
	}
	entries := []layerEntry{{kind: tarstream.Dir, time: changed(st)}}
	var visit func(dir string) error
	visit = func(dir string) error {
		names, err := layer.Names(dir)
		if err != nil {
			return err
		}
		slices.SortFunc(names, func(a, b string) int {
			if x, y := strings.HasPrefix(a, normalize.WhiteoutPrefix), strings.HasPrefix(b, normalize.WhiteoutPrefix); x != y {
				if x {
					return -1
				}
				return 1
			}
			return strings.Compare(a, b)
		})
		for _, name := range names {
			real := rootfs.JoinPath(dir, name)
			st, err := layer.Stat(real)
			if err != nil {
				return err
			}
			e := layerEntry{kind: tarstream.File, name: real, source: real, time: changed(st)}
			switch st.Mode & unix.S_IFMT {
			case unix.S_IFDIR:
				e.kind = tarstream.Dir
			case unix.S_IFLNK:
				e.kind = tarstream.Symlink
			}
			entries = append(entries, e)
			if e.kind == tarstream.Dir {
				if err := visit(real); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return entries, visit("")
}

func changed(st unix.Stat_t) rootfs.Time { return rootfs.TimeOf(time.Unix(st.Mtim.Unix())) }
