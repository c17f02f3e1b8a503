package main

import (
	"context"
	"fmt"
	"os"
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
	layers, err := src.rootLayers(ctx, sys)
	if err != nil {
		return err
	}
	mode, err := src.store.repo.config(ctx, "core.mode")
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
	c := &checkout{store: src.store, settings: src.settings, options: o, work: target.work}
	if err := c.build(ctx, layers); err != nil {
		return err
	}
	return target.publish(c.root())
}

// rootLayers returns the layers of the image, or of the instance of an index that fits, the lowest first.
func (s *source) rootLayers(ctx context.Context, sys *types.SystemContext) ([]*storedBlob, error) {
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
	var layers []*storedBlob
	for _, info := range named[1:] {
		if !isLayerType(info.MediaType) {
			return nil, errors.Errorf("image %s has a layer of type %s, which is no file system", s.ref.image, info.MediaType)
		}
		b, err := s.blob(ctx, info.Digest)
		if err != nil {
			return nil, err
		}
		if !b.layer {
			return nil, checkf("layer %s is in the repository as a file, not as a file system", info.Digest)
		}
		layers = append(layers, b)
	}
	return layers, nil
}

// checkoutTarget is the directory that becomes the root file system, and the private one beside it, or within it where it is
// a mount point, in which the work is done.
type checkoutTarget struct {
	dir     string
	existed bool
	inside  bool
	work    *workDir
	done    bool
}

func openTarget(dir string, r *runner) (*checkoutTarget, error) {
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
		t.existed = true
		sweepWorkDirs(dir)
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
	t.work, err = newWorkDir(parent, r)
	return t, errors.WithMessage(err, "checking out")
}

// canReplace tells whether a directory can give way to another: it is no mount point, and its parent can be written.
func canReplace(dir string, info os.FileInfo) bool {
	parent, err := os.Lstat(filepath.Dir(dir))
	if err != nil || unix.Access(filepath.Dir(dir), unix.W_OK) != nil {
		return false
	}
	a, ok1 := info.Sys().(*syscall.Stat_t)
	b, ok2 := parent.Sys().(*syscall.Stat_t)
	return ok1 && ok2 && a.Dev == b.Dev && a.Ino != b.Ino
}

// publish makes the finished tree the target: at once, or, on a mount point, by moving what it holds.
func (t *checkoutTarget) publish(root string) error {
	if !t.inside {
		if err := os.Rename(root, t.dir); err != nil {
			return errors.Wrapf(err, "moving the finished tree to %s", t.dir)
		}
		t.done = true
		return nil
	}
	names, err := os.ReadDir(root)
	if err != nil {
		return errors.WithStack(err)
	}
	var moved []string
	for _, d := range names {
		to := filepath.Join(t.dir, d.Name())
		if err = os.Rename(filepath.Join(root, d.Name()), to); err != nil {
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
		return errors.Wrapf(err, "moving the finished tree into %s", t.dir)
	}
	t.done = true
	return nil
}

// copyDirMeta gives one directory the owner and the mode of another.
func copyDirMeta(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		if err := unix.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	}
	return unix.Chmod(to, st.Mode&0o7777)
}

// end removes the private directory.
func (t *checkoutTarget) end() error { return t.work.remove() }

// checkout is the work on one root file system.
type checkout struct {
	store    *blobStore
	settings *settings
	options  checkoutOptions
	work     *workDir
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
		return makeDir(c.root())
	}
	group, ctx := errgroup.WithContext(ctx)
	ready := make([]chan struct{}, len(layers))
	slots := make(chan struct{}, runtime.GOMAXPROCS(0))
	for i := range layers {
		ready[i] = make(chan struct{})
	}
	group.Go(func() error { // in their order, so that the lowest come first
		for i, b := range layers {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			group.Go(func() error {
				defer func() { <-slots }()
				if err := c.store.repo.checkout(ctx, b.spec, c.layerDir(i), c.options); err != nil {
					return errors.WithMessagef(err, "layer %s", b.digest)
				}
				close(ready[i])
				return nil
			})
		}
		return nil
	})
	group.Go(func() error {
		for i, b := range layers {
			select {
			case <-ready[i]:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			if err := c.apply(ctx, b, i); err != nil {
				return errors.WithMessagef(err, "layer %s", b.digest)
			}
		}
		return nil
	})
	return group.Wait()
}

// apply applies layer i, which is checked out, to the tree.
func (c *checkout) apply(ctx context.Context, b *storedBlob, i int) (err error) {
	asRoot := os.Geteuid() == 0
	dir := c.layerDir(i)
	root, err := openRootFS(c.root(), asRoot)
	if err != nil {
		return err
	}
	defer closeWith(&err, closerFunc(root.close))
	layer := root
	if i > 0 {
		if layer, err = openRootFS(dir, asRoot); err != nil {
			return err
		}
		defer func() {
			_ = layer.close()
			if rerr := removeTree(dir); err == nil {
				err = rerr
			}
		}()
	}
	entries, err := c.entries(ctx, b, layer)
	if err != nil {
		return err
	}
	a := &applier{root: root, layer: layer, base: i == 0, owners: !c.options.userMode, upper: map[string]bool{}, settings: c.settings}
	for _, e := range entries {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := a.apply(e); err != nil {
			return err
		}
	}
	return nil
}

type closerFunc func() error

func (f closerFunc) Close() error { return f() }

// entries returns what a layer names, in its order. Where the layer names something twice, it is what stands in the end.
func (c *checkout) entries(ctx context.Context, b *storedBlob, layer *rootFS) ([]tarstream.Entry, error) {
	if !b.canRebuild() && !b.hasRecord() {
		c.settings.warnf("layer %s was stored without its tar-split data: every directory of its tree counts as one that it names", b.digest)
		return treeEntries(layer)
	}
	var entries []tarstream.Entry
	filter := newLayerFilter(permissions{}, nil)
	err := c.store.headers(ctx, b, func(hdr *tar.Header) error {
		e, ok, err := filter.take(hdr)
		if ok && err == nil {
			entries = append(entries, e)
		}
		return err
	})
	if !errors.Is(err, errOddLayer) {
		return entries, err
	}
	entries = entries[:0]
	plan := newLayerPlan(permissions{})
	if err := c.store.headers(ctx, b, plan.add); err != nil {
		return nil, err
	}
	plan.finish()
	for i := range plan.index {
		for _, e := range plan.emit[i] {
			if target, ok := plan.dangles[e.Name]; ok {
				e.Kind, e.Link = tarstream.HardLink, target
			}
			entries = append(entries, e)
		}
	}
	return entries, nil
}

// treeEntries returns what a checked out layer holds, whiteouts first in each directory.
func treeEntries(layer *rootFS) ([]tarstream.Entry, error) {
	var entries []tarstream.Entry
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
			e := tarstream.Entry{Name: real, Kind: tarstream.File, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid}
			switch st.Mode & unix.S_IFMT {
			case unix.S_IFDIR:
				e.Kind = tarstream.Dir
			case unix.S_IFLNK:
				e.Kind = tarstream.Symlink
			}
			entries = append(entries, e)
			if e.Kind == tarstream.Dir {
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
	base        bool // the layer is the root already: only whiteouts and hard links are left to do
	owners      bool
	upper       map[string]bool // real paths that this layer has made, and the directories above them
	settings    *settings
}

func (a *applier) apply(e tarstream.Entry) error {
	dir, base := splitPath(e.Name)
	if strings.HasPrefix(base, whiteoutPrefix) {
		return a.whiteout(e, dir, base)
	}
	if a.base {
		if e.Kind == tarstream.HardLink {
			return a.relink(e)
		}
		return nil
	}
	if e.Name == "" {
		return a.root.describe("", e.UID, e.GID, e.Mode, e.Xattrs, a.owners)
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
	if kind != 0 && (kind != unix.S_IFDIR || e.Kind != tarstream.Dir) {
		if kind == unix.S_IFDIR || e.Kind == tarstream.Dir {
			err = a.root.removeAll(real, nil)
		} else {
			a.root.forget(real, kind)
		}
		if err != nil {
			return err
		}
	}
	a.keep(real)
	switch e.Kind {
	case tarstream.Dir:
		if kind != unix.S_IFDIR {
			if err := a.root.mkdir(real); err != nil {
				return err
			}
		}
		return a.root.describe(real, e.UID, e.GID, e.Mode, e.Xattrs, a.owners)
	case tarstream.HardLink:
		return a.hardLink(e, real)
	case tarstream.Symlink:
		clear(a.root.resolved)
	}
	return a.root.place(a.layer, e.Name, real)
}

// keep marks what this layer has made, so that its own whiteouts leave it alone.
func (a *applier) keep(real string) {
	for p := real; p != "" && !a.upper[p]; p, _ = splitPath(p) {
		a.upper[p] = true
	}
}

// whiteout removes from the layers below what a whiteout names. What the same layer has put there stays, wherever it
// stands in the layer.
func (a *applier) whiteout(e tarstream.Entry, dir, base string) error {
	if a.base { // nothing lies below; the file that marks it goes
		return a.root.removeAll(e.Name, nil)
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
		return errors.Errorf("%q is no whiteout of a file", e.Name)
	}
	return a.root.removeAll(joinPath(parent, name), kept)
}

// linkTarget returns the real path of what a hard link names.
func (a *applier) linkTarget(e tarstream.Entry) (real string, ok bool, err error) {
	dir, base := splitPath(e.Link)
	parent, ok, err := a.root.resolveDir(dir, false, nil)
	if err != nil || !ok {
		return "", false, err
	}
	real = joinPath(parent, base)
	kind, err := a.root.kind(real)
	if kind == unix.S_IFDIR {
		return "", false, errors.Errorf("the hard link %q leads to the directory %q", e.Name, e.Link)
	}
	return real, kind != 0, err
}

func (a *applier) hardLink(e tarstream.Entry, real string) error {
	target, ok, err := a.linkTarget(e)
	if err != nil {
		return err
	}
	if !ok {
		a.settings.warnf("the hard link %q leads to %q, which is not there: it is an empty file", e.Name, e.Link)
		return a.root.place(a.layer, e.Name, real)
	}
	if target == real {
		return nil
	}
	if err := a.root.removeAll(real, nil); err != nil {
		return err
	}
	return a.root.link(target, real)
}

// relink makes a hard link of the first layer one again where ostree made a copy.
func (a *applier) relink(e tarstream.Entry) error {
	target, ok, err := a.linkTarget(e)
	if err != nil || !ok || target == e.Name {
		return err
	}
	was, err := a.root.stat(e.Name)
	if err != nil {
		return err
	}
	is, err := a.root.stat(target)
	if err != nil || was.Ino == is.Ino {
		return err
	}
	if err := a.root.removeAll(e.Name, nil); err != nil {
		return err
	}
	return a.root.link(target, e.Name)
}

// checkout makes dir, which must not be there, the tree of a commit.
func (r *repository) checkout(ctx context.Context, rev, dir string, o checkoutOptions) error {
	return r.perform(ctx, "check out "+rev, "checkout", checkoutArgs(rev, dir, o)...)
}

func checkoutArgs(rev, dir string, o checkoutOptions) []string {
	var args []string
	if o.userMode {
		args = append(args, "--user-mode")
	}
	if o.requireHardlinks {
		args = append(args, "--require-hardlinks")
	}
	return append(args, rev, dir)
}
