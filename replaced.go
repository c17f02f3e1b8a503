package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strconv"
	"syscall"

	"github.com/pkg/errors"
	"github.com/vbatts/tar-split/archive/tar"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/imageref"
	"ostree-image/internal/normalize"
	"ostree-image/internal/ostree"
	"ostree-image/internal/spool"
	"ostree-image/internal/tarstream"
)

// A layer that names something twice replaces what it brought before, and its commit holds only
// what it comes to by itself. Above other layers what was replaced can still count: of s/one, s ->
// e, where a layer below has s -> d, the file is in d. So a checkout extracts it out of the layer's
// own bytes, which are kept of every such layer.

// replacedDir is where what layer i replaces itself is extracted, by the places of its entries in
// the layer.
func (c *checkout) replacedDir(i int) string { return c.work.Join(fmt.Sprintf("replaced-%d", i)) }

// fetchReplaced extracts those of layer i's entries that the layer itself replaces later.
func (c *checkout) fetchReplaced(ctx context.Context, b *storedBlob, i int, entries []layerEntry) (err error) {
	sink := &replacedSink{
		wanted:    map[string]bool{},
		perms:     c.perms,
		plain:     c.options.UserMode,
		canonical: c.mode == ostree.BareUserOnly,
	}
	for _, e := range entries {
		if e.replaced {
			sink.wanted[e.source] = true
		}
	}
	if len(sink.wanted) == 0 {
		return nil
	}
	if !b.hasFile[imageref.FileBlob] {
		return errdefs.Checkf("it replaces what it holds itself, and its bytes are not kept")
	}
	dir, input := c.replacedDir(i), fmt.Sprintf("replaced-%d.tar", i)
	c.settings.journal.step("a directory for what the layer itself replaces", "mkdir", dir)
	if err := makeDir(dir); err != nil {
		return err
	}
	kept, err := c.settings.journal.record.stream(input)
	if err != nil {
		return err
	}
	whole := false
	defer func() {
		if rerr := kept.end(whole); err == nil {
			err = rerr
		}
	}()
	p, stdin, err := untar(
		ctx,
		c.settings.runner,
		dir,
		input,
		"extract what layer "+b.digest.String()+" itself replaces",
	)
	if err != nil {
		return err
	}
	extraction := &tarEngine{process: p, stdin: stdin}
	buffered := bufio.NewWriterSize(kept.tee(extraction), spool.CopyBuffer)
	sink.out = tarstream.NewWriter(buffered)
	if _, err = c.store.scanLayer(ctx, b, sink); err == nil {
		err = sink.out.Close()
	}
	if err == nil {
		err = buffered.Flush()
	}
	whole = err == nil
	if err == nil {
		err = kept.broken()
	}
	if err == nil {
		return extraction.wait()
	}
	aborted := extraction.abort()
	if errors.Is(err, syscall.EPIPE) { // it had ended by itself
		err = aborted
	}
	return err
}

// replacedSink makes a normalized tar stream of some of a layer's entries, each named by its place
// in the layer.
type replacedSink struct {
	wanted    map[string]bool
	perms     permissions
	plain     bool // no owners and no attributes, as with --user-mode
	canonical bool // what a bare-user-only repository holds
	out       *tarstream.Writer
	index     int
}

func (s *replacedSink) Entry(hdr *tar.Header) (io.Writer, error) {
	place := replacedName(s.index)
	s.index++
	if !s.wanted[place] {
		return nil, nil
	}
	e, _, err := normalize.Entry(hdr, s.perms)
	if err != nil {
		return nil, err
	}
	e.Name = place
	if s.plain || s.canonical {
		e.UID, e.GID, e.Xattrs = 0, 0, nil
	}
	switch {
	case e.Kind == tarstream.Symlink:
	case s.canonical:
		e.Mode &= 0o755
	case s.plain && e.Kind == tarstream.File:
		e.Mode &^= 0o6000
	}
	if err := s.out.WriteEntry(e); err != nil || e.Kind != tarstream.File {
		return nil, err
	}
	return s.out, nil
}

// replacedName is the name of what the entry at this place of a layer brings.
func replacedName(place int) string { return strconv.Itoa(place) }
