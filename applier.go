package main

import (
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/pkg/errors"
	"golang.org/x/sys/unix"

	"ostree-image/internal/normalize"
	"ostree-image/internal/rootfs"
	"ostree-image/internal/tarstream"
	"ostree-image/internal/ui"
)

// applier applies the entries of one layer.
type applier struct {
	root, layer *rootfs.FS
	replaced    *rootfs.FS      // what the layer itself replaces later, nil where that is nothing
	base        bool            // the layer is the root already: only whiteouts, devices and hard links are left to do
	upper       map[string]bool // real paths that this layer has made, and the directories above them; nil where it has no whiteouts
	settings    *settings

	marks   []string // directories of the lowest layer that are whiteouts
	implied []string // directories of the lowest layer that it does not name, where it has whiteouts
	devices []string // directories of devices, with a slash
}

func isWhiteout(e layerEntry) bool {
	return strings.HasPrefix(path.Base(e.name), normalize.WhiteoutPrefix)
}

func (a *applier) apply(e layerEntry) error {
	dir, base := rootfs.SplitPath(e.name)
	if strings.HasPrefix(base, normalize.WhiteoutPrefix) {
		return a.whiteout(e, dir, base)
	}
	if a.base { // it is there already
		switch e.kind {
		case tarstream.Dir:
			a.root.Times.SetDir(e.name, e.time)
		case impliedKind:
			a.root.Times.PlainDir(e.name)
			if a.upper != nil {
				a.implied = append(a.implied, e.name)
			}
		case tarstream.File, tarstream.Symlink:
			a.root.Times.SetFile(e.name, e.time)
		case tarstream.HardLink:
			a.root.Times.SetFile(e.name, e.time)
			return a.relink(e)
		case goneKind: // a device. The directory that it is in is there all the same
			real, _, err := a.root.ResolveDir(dir, true, func(string) {})
			if a.upper != nil {
				a.devices = append(a.devices, real+"/")
			}
			return err
		}
		return nil
	}
	if e.name == "" {
		return a.describe(e, "")
	}
	parent, _, err := a.root.ResolveDir(dir, true, a.keep)
	if err != nil {
		return err
	}
	real := rootfs.JoinPath(parent, base)
	kind, err := a.root.Kind(real)
	if err != nil {
		return err
	}
	a.keep(real)
	isDir := e.kind == tarstream.Dir
	switch {
	case kind == 0 || kind == unix.S_IFDIR && isDir:
	case kind == unix.S_IFDIR || isDir || e.kind == goneKind:
		if err := a.root.RemoveAll(real, nil); err != nil {
			return err
		}
	case e.kind != tarstream.HardLink: // the new name replaces it; a hard link may lead to itself
		a.root.Forget(real, kind)
	}
	switch e.kind {
	case goneKind:
		return nil
	case tarstream.Dir:
		if kind != unix.S_IFDIR {
			if err := a.root.Mkdir(real); err != nil {
				return err
			}
		}
		return a.describe(e, real)
	case tarstream.HardLink:
		return a.hardLink(e, real)
	}
	return a.place(e, real)
}

// place moves what an entry brings to a real path.
func (a *applier) place(e layerEntry, real string) error {
	a.root.Times.SetFile(real, e.time)
	return a.root.Place(a.tree(e), e.source, real)
}

// tree is the tree that holds what an entry brings.
func (a *applier) tree(e layerEntry) *rootfs.FS {
	if e.replaced {
		return a.replaced
	}
	return a.layer
}

// finish takes what is only there for whiteouts out of the lowest layer: directories that are
// whiteouts, and those that hold nothing else and are not named. Where files lie in a whiteout, it
// stays as a directory that is not named.
func (a *applier) Finish() error {
	dirs := slices.Concat(a.marks, a.implied)
	slices.Sort(dirs)
	for _, real := range slices.Backward(slices.Compact(dirs)) { // what lies deeper comes first
		names, err := a.root.Names(real)
		if err != nil {
			return disagreement(err)
		}
		if len(names) == 0 &&
			!slices.ContainsFunc(a.devices, func(dir string) bool { return strings.HasPrefix(dir, real+"/") }) {
			err = a.root.RemoveAll(real, nil)
		} else if strings.HasPrefix(
			path.Base(real),
			normalize.WhiteoutPrefix,
		) {
			a.root.Times.PlainDir(real)
			err = a.root.Describe(real, a.root.PlainMeta())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// describe makes a directory of the root what the layer's one is.
func (a *applier) describe(e layerEntry, real string) error {
	a.root.Times.SetDir(real, e.time)
	meta, err := a.tree(e).Meta(e.source)
	if err != nil {
		return err
	}
	return a.root.Describe(real, meta)
}

// keep marks what this layer has made, so that its own whiteouts leave it alone.
func (a *applier) keep(real string) {
	for p := real; a.upper != nil && p != "" && !a.upper[p]; p, _ = rootfs.SplitPath(p) {
		a.upper[p] = true
	}
}

// whiteout removes from the layers below what a whiteout names. What the same layer has put there
// stays, wherever it stands in the layer.
func (a *applier) whiteout(e layerEntry, dir, base string) error {
	if a.base { // nothing lies below; what marks it goes
		if kind, err := a.root.Kind(e.name); err != nil || kind == unix.S_IFDIR {
			a.marks = append(a.marks, e.name)
			return err
		}
		return a.root.RemoveAll(e.name, nil)
	}
	kept := func(real string) bool { return a.upper[real] }
	parent, ok, err := a.root.ResolveDir(dir, false, nil)
	if err != nil || !ok {
		return err
	}
	if base == normalize.WhiteoutOpaque {
		return a.root.Empty(parent, kept)
	}
	name := strings.TrimPrefix(base, normalize.WhiteoutPrefix)
	if name == "" || name == "." || name == ".." {
		a.settings.warnf("the whiteout %s names no file: nothing is removed", ui.Quoted(e.name))
		return nil
	}
	return a.root.RemoveAll(rootfs.JoinPath(parent, name), kept)
}

// linkTarget returns the real path of what a hard link names.
func (a *applier) linkTarget(e layerEntry) (real string, ok bool, err error) {
	dir, base := rootfs.SplitPath(e.link)
	parent, ok, err := a.root.ResolveDir(dir, false, nil)
	if err != nil || !ok {
		return "", false, err
	}
	real = rootfs.JoinPath(parent, base)
	kind, err := a.root.Kind(real)
	if kind == unix.S_IFDIR {
		return "", false, errors.Errorf("the hard link %q leads to the directory %q", e.name, e.link)
	}
	return real, kind != 0, err
}

func (a *applier) hardLink(e layerEntry, real string) error {
	target, ok, err := a.linkTarget(e)
	if err != nil || ok && target == real {
		return err
	}
	if err := a.root.RemoveAll(real, nil); err != nil {
		return err
	}
	switch {
	case ok:
		return a.root.Link(target, real)
	case e.source == "": // a device, or what a whiteout of this layer has removed
		return nil
	}
	a.settings.warnf("the hard link %q leads to %q, which is not there: it is a file of its own", e.name, e.link)
	return a.place(e, real)
}

// relink makes a hard link of the first layer one again where ostree made a copy.
func (a *applier) relink(e layerEntry) error {
	target, ok, err := a.linkTarget(e)
	if err != nil || !ok || target == e.name {
		return err
	}
	was, err := a.root.Stat(e.name)
	if errors.Is(err, fs.ErrNotExist) { // it lay below what passes for a whiteout
		return nil
	}
	if err != nil {
		return err
	}
	is, err := a.root.Stat(target)
	if err != nil || was.Ino == is.Ino {
		return err
	}
	if err := a.root.RemoveAll(e.name, nil); err != nil {
		return err
	}
	return a.root.Link(target, e.name)
}
