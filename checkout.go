package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/containers/image/v5/manifest"
	"github.com/containers/image/v5/types"
	"github.com/pkg/errors"
	"github.com/vbatts/tar-split/archive/tar"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"ostree-image/internal/tarstream"
)

// The names of whiteouts (the OCI image specification, layer.md).
const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// checkoutOptions are the options of checkout, as ostree has them.
type checkoutOptions struct {
	userMode         bool // no owners and no attributes
	requireHardlinks bool // fail rather than copy a file

	subpath  string // the directory to check out, "" for the whole tree
	skipList string // a file that names what to leave out, "" for none
}

// checkoutImage makes dir the image's root file system. dir must not exist, or be empty; where the checkout fails it is
// left as it was.
//
// Each layer is checked out by ostree into a directory of its own. The first becomes the root; what each other layer
// holds is then moved into it, entry by entry as the layer names them, by a rootFS, which nothing in an image can lead
// out of the root.
func checkoutImage(ctx context.Context, ref ostreeReference, dir string, sys *types.SystemContext, o checkoutOptions) (err error) {
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
	if os.Geteuid() != 0 && mode != modeBare && !o.userMode {
		o.userMode = true
		src.settings.warnf("not root, repository of mode %s: files belong to you, as with --user-mode", mode)
	}
	target, err := openTarget(dir, src.settings.runner)
	if err != nil {
		return err
	}
	defer func() {
		if rerr := target.end(); err == nil {
			err = rerr
		}
	}()
	src.settings.journal.name(target.work.path, "WORK")
	src.settings.journal.name(target.dir, "OUT")
	c := &checkout{store: src.store, settings: src.settings, options: o, work: target.work}
	c.copies = mode != modeBare && (mode != modeBareUser || !o.userMode)
	if err := c.build(ctx, layers); err != nil {
		return noRoom(err, filepath.Dir(target.work.path))
	}
	j := src.settings.journal
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
	named, err := manifestBlobs(blob, mimeType)
	if err != nil {
		return nil, err
	}
	for _, info := range named[1:] {
		if !isLayerType(info.MediaType) {
			return nil, errors.Errorf("image %s has a layer of type %s, which is no file system", s.ref.image, info.MediaType)
		}
	}
	layers, err := s.layers(ctx, named[1:])
	if err != nil {
		return nil, err
	}
	for _, b := range layers {
		if !b.layer {
			return nil, checkf("layer %s is in the repository as a file, not as a file system", b.digest)
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
}

func openTarget(dir string, r *runner) (*checkoutTarget, error) {
	if dir == "" {
		return nil, usagef("checkout: the directory has no name")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	t := &checkoutTarget{dir: dir}
	info, err := os.Lstat(dir)
	switch {
	case err == nil && !info.IsDir():
		return nil, errors.Errorf("%s is there, and is no directory", dir)
	case err == nil:
		sweepCheckouts(dir)
		names, err := os.ReadDir(dir)
		if err != nil {
			return nil, errors.WithStack(err)
		}
		if len(names) > 0 {
			return nil, errors.Errorf("the directory %s is not empty", dir)
		}
		t.inside = !canReplace(dir, info)
	case !os.IsNotExist(err):
		return nil, errors.WithStack(err)
	}
	parent := filepath.Dir(dir)
	if t.inside {
		parent = dir
	}
	t.work, err = newCheckoutDir(parent, r)
	return t, errors.WithMessage(err, "checking out")
}

const checkoutPrefix = ".ostree-image-checkout-"

// newCheckoutDir makes the private directory of a checkout. It lies in one of its own, since newWorkDir takes all that bears a
// certain name for a dead run's: that may look nowhere where others keep their files.
func newCheckoutDir(parent string, r *runner) (*workDir, error) {
	sweepCheckouts(parent)
	for tries := 1; ; tries++ {
		private, err := os.MkdirTemp(parent, checkoutPrefix)
		if err != nil {
			return nil, errors.WithStack(err)
		}
		spread(private)
		work, err := newWorkDir(private, r)
		if err == nil {
			work.done = append(work.done, func() { _ = os.Remove(private) })
			return work, nil
		}
		if swept := os.IsNotExist(os.Remove(private)); !swept || tries == sweptTries {
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
		sweepWorkDirs(path)
		_ = os.Remove(path) // fails where something is left; another checkout that has just made it makes another
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
	parent, err := os.Lstat(filepath.Dir(dir)) // before Linux 5.8
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
		return errors.WithMessagef(moveEntry(root, t.dir), "moving the finished tree to %s", t.dir)
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
		return errors.WithMessagef(err, "moving the finished tree into %s", t.dir)
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
	if err := os.Chmod(from, mode|0o200); err != nil {
		return errors.WithStack(err)
	}
	if err := unix.Rename(from, to); err != nil {
		return errors.WithStack(err)
	}
	return errors.WithStack(os.Chmod(to, mode))
}

// copyDirMeta gives one directory the owner, the mode and the attributes of another.
func copyDirMeta(from, to string) (err error) {
	asRoot := os.Geteuid() == 0
	source, err := openRootFS(from, asRoot)
	if err != nil {
		return err
	}
	defer closeWith(&err, source)
	target, err := openRootFS(to, asRoot)
	if err != nil {
		return err
	}
	defer closeWith(&err, target)
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
	copies   bool // ostree makes files anew, as hard links would be wrong
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
		return makeDir(c.root())
	}
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
	return group.Wait()
}

// fetch has layer i checked out, and reads meanwhile what it names.
func (c *checkout) fetch(ctx context.Context, b *storedBlob, i int) (entries []layerEntry, err error) {
	if c.copies && os.Geteuid() == 0 && runtime.GOMAXPROCS(0) > 1 && named(b) && b.tarSize >= c.settings.divideFrom {
		return c.fetchDivided(ctx, b, i)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wait := c.store.repo.checkout(ctx, b.spec, c.layerDir(i), c.options)
	if named(b) {
		if entries, err = c.entries(ctx, b, i == 0, nil); err != nil {
			cancel()
		}
	}
	if werr := wait(); werr != nil && (err == nil || !errors.Is(werr, context.Canceled)) {
		err = werr
	}
	return entries, err
}

// named tells whether the repository knows what a layer names. Otherwise its tree is all that there is (layers of 2017).
func named(b *storedBlob) bool { return b.canRebuild() || b.hasRecord() }

// apply applies layer i, which is checked out, to the tree. entries are what it names, where that is known.
func (c *checkout) apply(ctx context.Context, b *storedBlob, i int, entries []layerEntry) (err error) {
	asRoot := os.Geteuid() == 0
	dir := c.layerDir(i)
	steps, err := c.settings.journal.record.steps(fmt.Sprintf("layer-%d.sh", i))
	if err != nil {
		return err
	}
	defer func() {
		if rerr := steps.end(); err == nil {
			err = rerr
		}
		if steps != nil && err == nil {
			c.settings.journal.recorded("apply layer "+b.digest.String(), fmt.Sprintf(`ROOT=%s LAYER=%s sh "$BLOBS"/layer-%d.sh`,
				c.settings.journal.path(c.root()), c.settings.journal.path(dir), i))
		}
	}()
	root, err := openRootFS(c.root(), asRoot)
	if err != nil {
		return err
	}
	root.steps = steps
	defer closeWith(&err, root)
	layer := root
	if i > 0 {
		if layer, err = openRootFS(dir, asRoot); err != nil {
			return err
		}
		defer func() {
			_ = layer.Close()
			if rerr := removeTree(dir); err == nil {
				err = rerr
			}
		}()
	}
	a := &applier{root: root, layer: layer, base: i == 0, settings: c.settings}
	if !named(b) {
		c.settings.warnf("layer %s was stored without its tar-split data: every directory of its tree counts as one that it names", b.digest)
		if entries, err = treeEntries(layer); err != nil {
			return err
		}
	}
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
	return nil
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
}

// needed tells whether there is anything to do for an entry. What the lowest layer holds is mostly there already.
func (e layerEntry) needed(base bool) bool {
	return !base || e.kind == tarstream.HardLink || e.kind == goneKind || isWhiteout(e)
}

// Kinds beside those of tarstream.
const (
	// goneKind is the kind of what the layer's tree does not hold: devices, fifos and sockets, and what the layer itself replaces later.
	// Nothing takes the place of what was there.
	goneKind tarstream.Kind = 'g'
	// plainDirKind is that of a directory which a later entry describes.
	plainDirKind tarstream.Kind = 'd'
)

// entries returns what a layer names and the applier needs to know, in the layer's order. base tells that it is the lowest. weights, unless it
// is nil, learns how much there is to check out; of a layer that reaches through its own links nothing.
func (c *checkout) entries(ctx context.Context, b *storedBlob, base bool, weights *treeWeights) ([]layerEntry, error) {
	var entries []layerEntry
	odd := false // noted here too: not every source of headers gives the error back
	filter := newLayerFilter(permissions{}, nil)
	err := c.store.headers(ctx, b, func(hdr *tar.Header) error {
		e, ok, err := filter.take(hdr)
		if errors.Is(err, errOddLayer) {
			odd = true
		}
		if err != nil {
			return err
		}
		entry := layerEntry{kind: e.Kind, name: e.Name, link: e.Link, source: e.Name}
		switch {
		case isDevice(hdr):
			if entry, err = deviceEntry(hdr); err != nil {
				return err
			}
		case !ok:
			return nil
		case hdr.Typeflag == tar.TypeLink && e.Kind == tarstream.Symlink: // ostree has no hard links to links
			entry.kind = tarstream.HardLink
			if entry.link, err = cleanName(hdr.Linkname); err != nil {
				return err
			}
		}
		if e.Kind != tarstream.Dir && !isDevice(hdr) {
			weights.add(e.Name, e.Size)
		}
		if entry.needed(base) {
			entries = append(entries, entry)
		}
		return nil
	})
	if odd {
		weights.forget()
	}
	switch {
	case odd && base:
		return c.plannedEntries(ctx, b)
	case odd:
		return c.oddEntries(ctx, b)
	}
	return entries, err
}

// plannedEntries is entries for the first layer, where that names something twice or reaches through its own links: the entries are
// those of what it comes to in the end, which is what is there already.
func (c *checkout) plannedEntries(ctx context.Context, b *storedBlob) ([]layerEntry, error) {
	plan := newLayerPlan(permissions{})
	if err := c.store.headers(ctx, b, plan.add); err != nil {
		return nil, err
	}
	plan.finish()
	var entries []layerEntry
	for i := range plan.index {
		for n, e := range plan.emit[i] {
			entry := layerEntry{kind: e.Kind, name: e.Name, source: e.Name}
			if n > 0 { // more names of the same thing
				entry.kind, entry.link = tarstream.HardLink, plan.emit[i][0].Name
			}
			if entry.needed(true) {
				entries = append(entries, entry)
			}
		}
	}
	return entries, nil
}

// oddEntries is entries for any other such layer. Each entry is applied in its turn, to what is there then. What it brings is where the
// plan has put it, unless that is gone in the end.
func (c *checkout) oddEntries(ctx context.Context, b *storedBlob) ([]layerEntry, error) {
	plan := newLayerPlan(permissions{})
	var entries []layerEntry
	var places []int // in the layer
	err := c.store.headers(ctx, b, func(hdr *tar.Header) error {
		var entry layerEntry
		e, ok, err := cleanEntry(hdr, permissions{})
		if ok {
			entry = layerEntry{kind: e.Kind, name: e.Name, link: e.Link}
		} else if err == nil && isDevice(hdr) {
			ok = true
			entry, err = deviceEntry(hdr)
		}
		if err != nil {
			return err
		}
		if ok {
			entries, places = append(entries, entry), append(places, plan.index)
		}
		return plan.add(hdr)
	})
	if err != nil {
		return nil, err
	}
	plan.finish()
	for i := range entries {
		e := &entries[i]
		if there := plan.emit[places[i]]; len(there) > 0 {
			e.source = there[0].Name
			continue
		}
		switch e.kind {
		case tarstream.Dir:
			e.kind = plainDirKind
		case tarstream.File, tarstream.Symlink:
			e.kind = goneKind
		}
	}
	return entries, nil
}

func isDevice(hdr *tar.Header) bool {
	return hdr.Typeflag == tar.TypeChar || hdr.Typeflag == tar.TypeBlock || hdr.Typeflag == tar.TypeFifo
}

func deviceEntry(hdr *tar.Header) (layerEntry, error) {
	name, err := cleanName(hdr.Name)
	return layerEntry{kind: goneKind, name: name}, err
}

// treeEntries returns what a checked out layer holds, whiteouts first in each directory.
func treeEntries(layer *rootFS) ([]layerEntry, error) {
	entries := []layerEntry{{kind: tarstream.Dir}}
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
			kind, err := layer.kind(real)
			if err != nil {
				return err
			}
			e := layerEntry{kind: tarstream.File, name: real, source: real}
			switch kind {
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

// applier applies the entries of one layer.
type applier struct {
	root, layer *rootFS
	base        bool            // the layer is the root already: only whiteouts, devices and hard links are left to do
	upper       map[string]bool // real paths that this layer has made, and the directories above them; nil where it has no whiteouts
	settings    *settings
}

func isWhiteout(e layerEntry) bool { return strings.HasPrefix(path.Base(e.name), whiteoutPrefix) }

func (a *applier) apply(e layerEntry) error {
	dir, base := splitPath(e.name)
	if strings.HasPrefix(base, whiteoutPrefix) {
		return a.whiteout(e, dir, base)
	}
	if a.base {
		switch e.kind {
		case tarstream.HardLink:
			return a.relink(e)
		case goneKind: // a device. The directory that it is in is there all the same
			_, _, err := a.root.resolveDir(dir, true, func(string) {})
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
	isDir := e.kind == tarstream.Dir || e.kind == plainDirKind
	switch {
	case kind == 0 || kind == unix.S_IFDIR && isDir:
	case kind == unix.S_IFDIR || isDir || e.kind == goneKind:
		if err := a.root.removeAll(real, nil); err != nil {
			return err
		}
	default: // the new name replaces it
		a.root.forget(real, kind)
	}
	switch e.kind {
	case goneKind:
		return nil
	case tarstream.Dir, plainDirKind:
		if kind != unix.S_IFDIR {
			if err := a.root.mkdir(real); err != nil {
				return err
			}
		}
		return a.describe(e, real)
	case tarstream.HardLink:
		return a.hardLink(e, real)
	}
	return a.root.place(a.layer, e.source, real)
}

// describe makes a directory of the root what the layer's one is.
func (a *applier) describe(e layerEntry, real string) error {
	if e.kind == plainDirKind {
		return nil
	}
	meta, err := a.layer.meta(e.source)
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
	if a.base { // nothing lies below; the file that marks it goes
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
		return errors.Errorf("%q is no whiteout of a file", e.name)
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
	if ok {
		return a.root.link(target, real)
	}
	if e.source == "" { // the layer replaces both later
		return nil
	}
	a.settings.warnf("the hard link %q leads to %q, which is not there: it is a file of its own", e.name, e.link)
	return a.root.place(a.layer, e.source, real)
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
