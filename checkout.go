package main

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/pkg/errors"
	"github.com/vbatts/tar-split/archive/tar"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/types"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/imageref"
	"ostree-image/internal/tarstream"
	"ostree-image/internal/ui"
)

// The names of whiteouts (the OCI image specification, layer.md).
const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// checkoutOptions are the options of checkout, as ostree has them.
type checkoutOptions struct {
	userMode         bool // no owners and no attributes
	requireHardlinks bool // the repository's own files; fail rather than copy one
	forceCopy        bool // copy each file, as is done anyway

	subpath  string // the directory to check out, "" for the whole tree
	skipList string // a file that names what to leave out, "" for none
}

// checkoutImage makes dir the image's root file system. dir must not exist, or be empty; where the checkout fails it is
// left as it was.
//
// Each layer is checked out by ostree into a directory of its own. The first becomes the root; what each other layer
// holds is then moved into it, entry by entry as the layer names them, by a rootFS, which nothing in an image can lead
// out of the root.
func checkoutImage(ctx context.Context, ref ostreeReference, dir string, sys *types.SystemContext, o checkoutOptions) error {
	if o.requireHardlinks && o.forceCopy {
		return errdefs.Usagef("checkout: --require-hardlinks and --force-copy are mutually exclusive")
	}
	src, err := openSource(ctx, ref)
	if err != nil {
		return err
	}
	mode, err := src.store.repo.config(ctx, "core.mode")
	if err != nil {
		return err
	}
	layers, err := src.rootLayers(ctx, sys, mode)
	if err != nil {
		return err
	}
	return checkoutLayers(ctx, src.store, src.settings, layers, mode, dir, o)
}

// checkoutLayers is checkoutImage for layers of a repository of the given mode.
func checkoutLayers(ctx context.Context, store *blobStore, s *settings, layers []*storedBlob, mode, dir string, o checkoutOptions) (err error) {
	if os.Geteuid() != 0 && mode != modeBare && !o.userMode {
		o.userMode = true
		s.warnf("not root, repository of mode %s: files belong to you, as with --user-mode", mode)
	}
	if o.requireHardlinks {
		s.warnf("the files of %s are those of the repository: what writes into one changes it there and in every other image that has it", dir)
	}
	target, err := openTarget(dir, s.runner)
	if err != nil {
		return err
	}
	times := newTreeTimes(fileTimeOf(time.Now()), !o.requireHardlinks)
	defer func() {
		if rerr := target.end(); err == nil {
			err = rerr
		}
		if err == nil && target.inside { // the end of the private directory has changed it
			err = times.setRoot(target.dir)
		}
		target.unpin()
	}()
	j := s.journal
	j.name(target.work.path, "WORK")
	j.name(target.dir, "OUT")
	c := &checkout{store: store, settings: s, options: o, work: target.work, mode: mode, times: times}
	c.perms = permissionsFor(mode, os.Geteuid(), os.Getegid())
	c.perms.forTar = true
	if !o.userMode && mode != modeBareUserOnly {
		c.perms.namespace = limitedNamespace("with --user-mode all files belong to you")
	}
	if err := c.build(ctx, layers); err != nil {
		return noRoom(err, filepath.Dir(target.work.path))
	}
	j.shell("the tree is finished", fmt.Sprintf("rmdir %[2]s 2>/dev/null || : ; mv %[1]s %[2]s", j.path(c.root()), j.path(target.dir)))
	return target.publish(c.root())
}

// rootLayers returns the layers of the image, or of the instance of an index that fits, the lowest first. They are proved.
func (s *source) rootLayers(ctx context.Context, sys *types.SystemContext, mode string) ([]*storedBlob, error) {
	blob, mimeType := s.manifest, s.mimeType
	if manifest.MIMETypeIsMultiImage(mimeType) {
		list, err := manifest.ListFromBlob(blob, mimeType)
		if err != nil {
			return nil, errors.Wrap(err, "reading the index")
		}
		chosen, err := list.ChooseInstance(sys)
		if err != nil {
			return nil, errors.Wrap(err, "choosing an instance of the image")
		}
		if blob, mimeType, err = s.GetManifest(ctx, &chosen); err != nil {
			return nil, err
		}
	}
	named, err := imageref.Blobs(blob, mimeType)
	if err != nil {
		return nil, err
	}
	for _, info := range named[1:] {
		if !imageref.IsLayerType(info.MediaType) {
			return nil, errors.Errorf("image %s has a layer of type %s, which is no file system", s.ref.image, info.MediaType)
		}
	}
	layers, err := s.layers(ctx, named[1:])
	if err != nil {
		return nil, err
	}
	for _, b := range layers {
		if !b.layer {
			return nil, errdefs.Checkf("layer %s is in the repository as a file, not as a file system", b.digest)
		}
	}
	return layers, s.proveLayers(ctx, named, layers, mode)
}

// checkoutTarget is the directory that becomes the root file system, and the private one beside it, or within it where another
// cannot take its place, in which the work is done.
type checkoutTarget struct {
	dir    string
	inside bool
	work   *workDir
	pins   []*pinnedDir
}

func openTarget(dir string, r *runner) (_ *checkoutTarget, err error) {
	if dir == "" {
		return nil, errdefs.Usagef("checkout: the directory has no name")
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, errors.WithStack(err)
	}
	t := &checkoutTarget{}
	defer func() {
		if err != nil {
			t.unpin()
		}
	}()
	parent, err := t.pin(r.pin(filepath.Dir(dir)))
	if err != nil {
		return nil, errors.WithMessage(err, "checking out")
	}
	t.dir = filepath.Join(parent.at, filepath.Base(dir))
	if dir == "/" {
		t.dir = parent.within()
	}
	info, err := os.Lstat(t.dir)
	switch {
	case err == nil && !info.IsDir():
		return nil, errors.Errorf("%s is there, and is no directory", dir)
	case err == nil:
		here, err := t.pin(r.pin(dir))
		if err != nil {
			return nil, err
		}
		sweepCheckouts(here.at)
		names, err := os.ReadDir(here.at)
		if err != nil {
			return nil, errors.WithStack(err)
		}
		if len(names) > 0 {
			return nil, errors.Errorf("the directory %s is not empty", dir)
		}
		if t.inside = !canReplace(t.dir, info); t.inside {
			parent, t.dir = here, here.within()
		}
	case !os.IsNotExist(err):
		return nil, errors.WithStack(err)
	}
	t.work, err = newCheckoutDir(parent, r)
	return t, errors.WithMessage(err, "checking out")
}

// pin keeps what is pinned until unpin.
func (t *checkoutTarget) pin(p *pinnedDir, err error) (*pinnedDir, error) {
	if err == nil {
		t.pins = append(t.pins, p)
	}
	return p, err
}

func (t *checkoutTarget) unpin() {
	for _, p := range t.pins {
		p.unpin()
	}
}

const checkoutPrefix = ".ostree-image-checkout-"

// newCheckoutDir makes the private directory of a checkout. It lies in one of its own, since
// newWorkDir takes all that bears a certain name for a dead run's: that may look nowhere where
// others keep their files. Only this user may enter that one, and it is pinned: others may own the
// parent, and see its name in the list of processes.
func newCheckoutDir(parent *pinnedDir, r *runner) (*workDir, error) {
	sweepCheckouts(parent.at)
	for tries := 1; ; tries++ {
		path, err := os.MkdirTemp(parent.at, checkoutPrefix)
		if err != nil {
			return nil, errors.WithStack(err)
		}
		private, err := r.pinBelow(parent, filepath.Base(path))
		if errors.Is(err, fs.ErrNotExist) && tries < sweptTries {
			continue // swept
		}
		if err != nil {
			return nil, err
		}
		spread(private.at)
		work, err := newWorkDir(private.at, r)
		if err == nil {
			work.done = append(work.done, func() {
				private.unpin()
				_ = unix.Rmdir(path)
			})
			return work, nil
		}
		private.unpin()
		if swept := errors.Is(unix.Rmdir(path), unix.ENOENT); !swept || tries == sweptTries {
			return nil, err
		}
	}
}

// sweepCheckouts removes what checkouts that were killed have left in parent.
func sweepCheckouts(parent string) {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return // the caller is about to learn it
	}
	for _, e := range entries {
		number, ours := strings.CutPrefix(e.Name(), checkoutPrefix)
		if !ours || strings.Trim(number, "0123456789") != "" {
			continue
		}
		info, err := e.Info()
		if err != nil || info.Mode() != fs.ModeDir|0o700 || !ownedByUser(info) {
			continue
		}
		path := filepath.Join(parent, e.Name())
		// Whatever is put there now is not swept.
		dir, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|oNoFollow, 0)
		if err != nil {
			continue
		}
		if now, err := dir.Stat(); err == nil && os.SameFile(info, now) {
			sweepWorkDirs(procPath(int(dir.Fd())))
		}
		_ = dir.Close()
		_ = unix.Rmdir(path) // fails where something is left; another checkout that has just made it makes another
	}
}

// canReplace tells whether a directory can give way to another: it is no mount point, its parent can be written, and this process
// does not stand in it, nor then, most likely, the shell that started it.
func canReplace(dir string, info os.FileInfo) bool {
	if unix.Access(filepath.Dir(dir), unix.W_OK) != nil {
		return false
	}
	if here, err := os.Stat("."); err != nil || os.SameFile(here, info) {
		return false
	}
	var at unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW, 0, &at); err == nil && at.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return at.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0
	}
	parent, err := os.Stat(filepath.Dir(dir)) // before Linux 5.8
	if err != nil {
		return false
	}
	a, ok1 := info.Sys().(*syscall.Stat_t)
	b, ok2 := parent.Sys().(*syscall.Stat_t)
	return ok1 && ok2 && a.Dev == b.Dev && a.Ino != b.Ino
}

// publish makes the finished tree the target: at once, or, where that must stay the directory that it is, by moving what the tree holds.
func (t *checkoutTarget) publish(root string) error {
	if !t.inside {
		return errors.WithMessage(moveEntry(root, t.dir), "moving the finished tree to its place")
	}
	names, err := os.ReadDir(root)
	if err != nil {
		return errors.WithStack(err)
	}
	var moved []string
	for _, d := range names {
		to := filepath.Join(t.dir, d.Name())
		if err = moveEntry(filepath.Join(root, d.Name()), to); err != nil {
			break
		}
		moved = append(moved, to)
	}
	if err == nil {
		err = copyDirMeta(root, t.dir)
	}
	if err != nil {
		for _, m := range moved {
			_ = removeTree(m)
		}
		return errors.WithMessage(err, "moving the finished tree into its place")
	}
	return nil
}

// moveEntry renames a file or a directory. A directory must be writable for that, since its ".." changes (rename(2)).
func moveEntry(from, to string) error {
	info, err := os.Lstat(from)
	if err != nil {
		return errors.WithStack(err)
	}
	mode := info.Mode()
	if os.Geteuid() == 0 || !mode.IsDir() || mode&0o200 != 0 {
		return errors.WithStack(unix.Rename(from, to)) // os.Rename would refuse a directory that is there
	}
	dir, err := unix.Open(from, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return errors.WithStack(err)
	}
	defer func() { _ = unix.Close(dir) }()
	moved := procPath(dir) // whatever is put there afterwards
	if err := os.Chmod(moved, mode|0o200); err != nil {
		return errors.WithStack(err)
	}
	if err := unix.Rename(from, to); err != nil {
		return errors.WithStack(err)
	}
	return errors.WithStack(os.Chmod(moved, mode))
}

// copyDirMeta gives one directory the owner, the mode and the attributes of another.
func copyDirMeta(from, to string) (err error) {
	asRoot := os.Geteuid() == 0
	source, err := openRootFS(from, asRoot)
	if err != nil {
		return err
	}
	defer errdefs.Close(&err, source)
	target, err := openRootFS(to, asRoot)
	if err != nil {
		return err
	}
	defer errdefs.Close(&err, target)
	meta, err := source.meta("")
	if err != nil {
		return err
	}
	return target.describe("", meta)
}

// end removes the private directory.
func (t *checkoutTarget) end() error { return t.work.remove() }

// checkout is the work on one root file system.
type checkout struct {
	store    *blobStore
	settings *settings
	options  checkoutOptions
	work     *workDir
	mode     string // of the repository
	perms    permissions
	times    *treeTimes
}

func (c *checkout) root() string { return c.work.join("root") }

func (c *checkout) layerDir(i int) string {
	if i == 0 {
		return c.root()
	}
	return c.work.join(fmt.Sprintf("layer-%d", i))
}

// build makes the tree. ostree checks the layers out side by side, while those that are there are applied in their order.
func (c *checkout) build(ctx context.Context, layers []*storedBlob) error {
	if len(layers) == 0 {
		c.settings.journal.step("an image without layers", "mkdir", c.root())
		if err := makeDir(c.root()); err != nil {
			return err
		}
	}
	buildCtx := ctx
	group, ctx := errgroup.WithContext(ctx)
	fetched := make([]chan []layerEntry, len(layers))
	slots := make(chan struct{}, runtime.GOMAXPROCS(0))
	for i := range layers {
		fetched[i] = make(chan []layerEntry, 1)
	}
	group.Go(func() error { // in their order, so that the lowest come first
		for i, b := range layers {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			group.Go(func() error {
				entries, err := c.fetch(ctx, b, i)
				if err == nil {
					err = c.fetchReplaced(ctx, b, i, entries)
				}
				if err != nil {
					return errors.WithMessagef(err, "layer %s", b.digest)
				}
				fetched[i] <- entries
				return nil
			})
		}
		return nil
	})
	group.Go(func() error {
		for i, b := range layers {
			var entries []layerEntry
			select {
			case entries = <-fetched[i]:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			if err := c.apply(ctx, b, i, entries); err != nil {
				return errors.WithMessagef(err, "layer %s", b.digest)
			}
			<-slots // not before: what layers name takes memory
		}
		return nil
	})
	if err := group.Wait(); err != nil {
		return err
	}
	return c.withRoot("times.sh", "set the times", "", func(root *rootFS) error { return c.times.setTimes(buildCtx, root) })
}

// withRoot calls f with the tree, and writes what it does into a script of the record. variables are what that needs beside the root.
func (c *checkout) withRoot(script, why, variables string, f func(root *rootFS) error) (err error) {
	j := c.settings.journal
	steps, err := j.record.steps(script)
	if err != nil {
		return err
	}
	root, err := openRootFS(c.root(), os.Geteuid() == 0)
	if err == nil {
		root.steps, root.times = steps, c.times
		err = f(root)
		errdefs.Close(&err, root)
	}
	if serr := steps.end(); err == nil {
		err = serr
	}
	if steps != nil && err == nil {
		j.recorded(why, fmt.Sprintf(`ROOT=%s %ssh "$BLOBS"/%s`, j.path(c.root()), variables, script))
	}
	return err
}

// fetch has layer i checked out, and reads meanwhile what it names.
func (c *checkout) fetch(ctx context.Context, b *storedBlob, i int) (entries []layerEntry, err error) {
	if !c.options.requireHardlinks && os.Geteuid() == 0 && runtime.GOMAXPROCS(0) > 1 && named(b) && b.tarSize >= c.settings.divideFrom {
		return c.fetchDivided(ctx, b, i)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- c.store.repo.checkout(ctx, b.spec, c.layerDir(i), c.options) }()
	if named(b) {
		if entries, err = c.entries(ctx, b, i == 0, nil); err != nil {
			cancel()
		}
	}
	var foreign *foreignOwnerError // tells more than ostree does
	if werr := <-done; werr != nil && !errors.As(err, &foreign) && (err == nil || !errors.Is(werr, context.Canceled)) {
		err = c.perms.namespace.explain(werr)
	}
	return entries, err
}

// named tells whether the repository knows what a layer names. Otherwise its tree is all that there is (layers of 2017).
func named(b *storedBlob) bool { return b.canRebuild() || b.hasRecord() }

// apply applies layer i, which is checked out, to the tree. entries are what it names, where that is known.
func (c *checkout) apply(ctx context.Context, b *storedBlob, i int, entries []layerEntry) error {
	j := c.settings.journal
	replaces := slices.ContainsFunc(entries, func(e layerEntry) bool { return e.replaced })
	trees := fmt.Sprintf("LAYER=%s ", j.path(c.layerDir(i)))
	if replaces {
		trees += fmt.Sprintf("REPLACED=%s ", j.path(c.replacedDir(i)))
	}
	return c.withRoot(fmt.Sprintf("layer-%d.sh", i), "apply layer "+b.digest.String(), trees, func(root *rootFS) (err error) {
		a := &applier{root: root, layer: root, base: i == 0, settings: c.settings}
		for _, t := range []struct {
			tree   **rootFS
			name   string
			dir    string
			wanted bool
		}{
			{&a.layer, treeLayer, c.layerDir(i), i > 0},
			{&a.replaced, treeReplaced, c.replacedDir(i), replaces},
		} {
			if !t.wanted {
				continue
			}
			tree, err := openRootFS(t.dir, root.asRoot)
			if err != nil {
				return err
			}
			tree.name, *t.tree = t.name, tree
			defer func() {
				_ = tree.Close()
				if rerr := removeTree(t.dir); err == nil {
					err = rerr
				}
			}()
		}
		if !named(b) {
			c.settings.warnf("layer %s was stored without its tar-split data: every directory of its tree counts as one that it names", b.digest)
			if entries, err = treeEntries(a.layer); err != nil {
				return err
			}
		}
		return a.applyAll(ctx, entries)
	})
}

// applyAll applies all that a layer names.
func (a *applier) applyAll(ctx context.Context, entries []layerEntry) error {
	if slices.ContainsFunc(entries, isWhiteout) {
		a.upper = map[string]bool{}
	}
	for _, e := range entries {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := a.apply(e); err != nil {
			return disagreement(err)
		}
	}
	return a.finish()
}

// disagreement makes an error of finding other things in a layer's tree than the layer names one of the repository.
func disagreement(err error) error {
	for _, errno := range []syscall.Errno{syscall.ENOENT, syscall.ENOTDIR, syscall.EISDIR, syscall.ELOOP} {
		if errors.Is(err, errno) {
			return &damageError{err}
		}
	}
	return err
}

// layerEntry is what a layer names. Owners, modes and attributes are those of what ostree has checked out.
type layerEntry struct {
	kind   tarstream.Kind
	name   string // clean, "" for the root
	link   string // what a hard link leads to
	source string // where the tree of the layer has it, "" for nowhere

	replaced bool     // the layer itself replaces it later: source is a name in the tree of fetchReplaced
	time     fileTime // of its modification
}

// Kinds beside those of tarstream.
const (
	// goneKind is the kind of what no tree holds: devices, fifos and sockets. Nothing takes the place of what was there.
	goneKind tarstream.Kind = 'g'
	// impliedKind is that of a directory of the lowest layer that the layer does not name.
	impliedKind tarstream.Kind = 'i'
)

// entries returns what a layer names and the applier needs to know, in the layer's order. base tells that it is the lowest. weights, unless it
// is nil, learns how much there is to check out; of a layer that reaches through its own links nothing.
func (c *checkout) entries(ctx context.Context, b *storedBlob, base bool, weights *treeWeights) ([]layerEntry, error) {
	var entries []layerEntry
	odd := false // noted here too: not every source of headers gives the error back
	var foreign *foreignOwnerError
	filter := newLayerFilter(permissions{namespace: c.perms.namespace}, nil)
	err := c.store.headers(ctx, b, func(hdr *tar.Header) error {
		e, ok, err := filter.take(hdr)
		if errors.Is(err, errOddLayer) {
			odd = true
		}
		_ = errors.As(err, &foreign)
		if err != nil {
			return err
		}
		entry := layerEntry{kind: e.Kind, name: e.Name, source: e.Name, time: fileTimeOf(hdr.ModTime)}
		if e.Kind == tarstream.HardLink {
			entry.link = e.Link
		}
		switch {
		case !ok && e.Kind != leftOut:
			return nil
		case hdr.Typeflag == tar.TypeLink && e.Kind == tarstream.Symlink: // ostree has no hard links to links
			entry.kind = tarstream.HardLink
			if entry.link, err = cleanName(hdr.Linkname); err != nil {
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
		return c.oddEntries(ctx, b)
	}
	if base {
		delete(filter.implied, "") // the root is always there
		entries = appendImplied(entries, slices.Collect(maps.Keys(filter.implied)))
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

// plannedEntries is entries for the first layer, where that names something twice or reaches through its own links: the entries are
// those of what it comes to in the end, which is what is there already.
func (c *checkout) plannedEntries(ctx context.Context, b *storedBlob) ([]layerEntry, error) {
	plan := newLayerPlan(permissions{})
	var times []fileTime
	err := c.store.headers(ctx, b, func(hdr *tar.Header) error {
		times = append(times, fileTimeOf(hdr.ModTime))
		return plan.add(hdr)
	})
	if err != nil {
		return nil, err
	}
	plan.finish()
	var entries []layerEntry
	for i := range plan.index {
		for n, e := range plan.emit[i] {
			entry := layerEntry{kind: e.Kind, name: e.Name, source: e.Name, time: times[i]}
			if n > 0 { // more names of the same thing
				entry.kind, entry.link = tarstream.HardLink, plan.emit[i][0].Name
			}
			entries = append(entries, entry)
		}
	}
	for _, name := range plan.leftOut {
		entries = append(entries, layerEntry{kind: goneKind, name: name})
	}
	return appendImplied(entries, plan.implied), nil
}

// oddEntries is entries for any other such layer. Each entry is applied in its turn, to what is there then. What it brings is where the
// plan has put it, or, where that is gone in the end, among what fetchReplaced extracts.
func (c *checkout) oddEntries(ctx context.Context, b *storedBlob) ([]layerEntry, error) {
	plan := newLayerPlan(permissions{})
	var entries []layerEntry
	var places []int // in the layer
	err := c.store.headers(ctx, b, func(hdr *tar.Header) error {
		e, ok, err := cleanEntry(hdr, permissions{})
		if err != nil {
			return err
		}
		if ok {
			entries, places = append(entries, layerEntry{kind: e.Kind, name: e.Name, link: e.Link, time: fileTimeOf(hdr.ModTime)}), append(places, plan.index)
		}
		return plan.add(hdr)
	})
	if err != nil {
		return nil, err
	}
	plan.finish()
	for i := range entries {
		e := &entries[i]
		switch there := plan.emit[places[i]]; {
		case len(there) > 0:
			e.source = there[0].Name
		case e.kind == tarstream.Dir, e.kind == tarstream.File, e.kind == tarstream.Symlink:
			e.source, e.replaced = replacedName(places[i]), true
		}
	}
	return entries, nil
}

// treeEntries returns what a checked out layer holds, whiteouts first in each directory.
func treeEntries(layer *rootFS) ([]layerEntry, error) {
	st, err := layer.stat("")
	if err != nil {
		return nil, err
	}
	entries := []layerEntry{{kind: tarstream.Dir, time: changed(st)}}
	var visit func(dir string) error
	visit = func(dir string) error {
		names, err := layer.names(dir)
		if err != nil {
			return err
		}
		slices.SortFunc(names, func(a, b string) int {
			if x, y := strings.HasPrefix(a, whiteoutPrefix), strings.HasPrefix(b, whiteoutPrefix); x != y {
				if x {
					return -1
				}
				return 1
			}
			return strings.Compare(a, b)
		})
		for _, name := range names {
			real := joinPath(dir, name)
			st, err := layer.stat(real)
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

func changed(st unix.Stat_t) fileTime { return fileTimeOf(time.Unix(st.Mtim.Unix())) }

// applier applies the entries of one layer.
type applier struct {
	root, layer *rootFS
	replaced    *rootFS         // what the layer itself replaces later, nil where that is nothing
	base        bool            // the layer is the root already: only whiteouts, devices and hard links are left to do
	upper       map[string]bool // real paths that this layer has made, and the directories above them; nil where it has no whiteouts
	settings    *settings

	marks   []string // directories of the lowest layer that are whiteouts
	implied []string // directories of the lowest layer that it does not name, where it has whiteouts
	devices []string // directories of devices, with a slash
}

func isWhiteout(e layerEntry) bool { return strings.HasPrefix(path.Base(e.name), whiteoutPrefix) }

func (a *applier) apply(e layerEntry) error {
	dir, base := splitPath(e.name)
	if strings.HasPrefix(base, whiteoutPrefix) {
		return a.whiteout(e, dir, base)
	}
	if a.base { // it is there already
		switch e.kind {
		case tarstream.Dir:
			a.root.times.setDir(e.name, e.time)
		case impliedKind:
			a.root.times.plainDir(e.name)
			if a.upper != nil {
				a.implied = append(a.implied, e.name)
			}
		case tarstream.File, tarstream.Symlink:
			a.root.times.setFile(e.name, e.time)
		case tarstream.HardLink:
			a.root.times.setFile(e.name, e.time)
			return a.relink(e)
		case goneKind: // a device. The directory that it is in is there all the same
			real, _, err := a.root.resolveDir(dir, true, func(string) {})
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
	parent, _, err := a.root.resolveDir(dir, true, a.keep)
	if err != nil {
		return err
	}
	real := joinPath(parent, base)
	kind, err := a.root.kind(real)
	if err != nil {
		return err
	}
	a.keep(real)
	isDir := e.kind == tarstream.Dir
	switch {
	case kind == 0 || kind == unix.S_IFDIR && isDir:
	case kind == unix.S_IFDIR || isDir || e.kind == goneKind:
		if err := a.root.removeAll(real, nil); err != nil {
			return err
		}
	case e.kind != tarstream.HardLink: // the new name replaces it; a hard link may lead to itself
		a.root.forget(real, kind)
	}
	switch e.kind {
	case goneKind:
		return nil
	case tarstream.Dir:
		if kind != unix.S_IFDIR {
			if err := a.root.mkdir(real); err != nil {
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
	a.root.times.setFile(real, e.time)
	return a.root.place(a.tree(e), e.source, real)
}

// tree is the tree that holds what an entry brings.
func (a *applier) tree(e layerEntry) *rootFS {
	if e.replaced {
		return a.replaced
	}
	return a.layer
}

// finish takes what is only there for whiteouts out of the lowest layer: directories that are whiteouts, and those that hold nothing
// else and are not named. Where files lie in a whiteout, it stays as a directory that is not named.
func (a *applier) finish() error {
	dirs := slices.Concat(a.marks, a.implied)
	slices.Sort(dirs)
	for _, real := range slices.Backward(slices.Compact(dirs)) { // what lies deeper comes first
		names, err := a.root.names(real)
		if err != nil {
			return disagreement(err)
		}
		if len(names) == 0 && !slices.ContainsFunc(a.devices, func(dir string) bool { return strings.HasPrefix(dir, real+"/") }) {
			err = a.root.removeAll(real, nil)
		} else if strings.HasPrefix(path.Base(real), whiteoutPrefix) {
			a.root.times.plainDir(real)
			err = a.root.describe(real, a.root.plainMeta())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// describe makes a directory of the root what the layer's one is.
func (a *applier) describe(e layerEntry, real string) error {
	a.root.times.setDir(real, e.time)
	meta, err := a.tree(e).meta(e.source)
	if err != nil {
		return err
	}
	return a.root.describe(real, meta)
}

// keep marks what this layer has made, so that its own whiteouts leave it alone.
func (a *applier) keep(real string) {
	for p := real; a.upper != nil && p != "" && !a.upper[p]; p, _ = splitPath(p) {
		a.upper[p] = true
	}
}

// whiteout removes from the layers below what a whiteout names. What the same layer has put there stays, wherever it
// stands in the layer.
func (a *applier) whiteout(e layerEntry, dir, base string) error {
	if a.base { // nothing lies below; what marks it goes
		if kind, err := a.root.kind(e.name); err != nil || kind == unix.S_IFDIR {
			a.marks = append(a.marks, e.name)
			return err
		}
		return a.root.removeAll(e.name, nil)
	}
	kept := func(real string) bool { return a.upper[real] }
	parent, ok, err := a.root.resolveDir(dir, false, nil)
	if err != nil || !ok {
		return err
	}
	if base == whiteoutOpaque {
		return a.root.empty(parent, kept)
	}
	name := strings.TrimPrefix(base, whiteoutPrefix)
	if name == "" || name == "." || name == ".." {
		a.settings.warnf("the whiteout %s names no file: nothing is removed", ui.Quoted(e.name))
		return nil
	}
	return a.root.removeAll(joinPath(parent, name), kept)
}

// linkTarget returns the real path of what a hard link names.
func (a *applier) linkTarget(e layerEntry) (real string, ok bool, err error) {
	dir, base := splitPath(e.link)
	parent, ok, err := a.root.resolveDir(dir, false, nil)
	if err != nil || !ok {
		return "", false, err
	}
	real = joinPath(parent, base)
	kind, err := a.root.kind(real)
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
	if err := a.root.removeAll(real, nil); err != nil {
		return err
	}
	switch {
	case ok:
		return a.root.link(target, real)
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
	was, err := a.root.stat(e.name)
	if errors.Is(err, fs.ErrNotExist) { // it lay below what passes for a whiteout
		return nil
	}
	if err != nil {
		return err
	}
	is, err := a.root.stat(target)
	if err != nil || was.Ino == is.Ino {
		return err
	}
	if err := a.root.removeAll(e.name, nil); err != nil {
		return err
	}
	return a.root.link(target, e.name)
}
