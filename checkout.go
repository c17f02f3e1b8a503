package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/pkg/errors"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/types"
	"golang.org/x/sync/errgroup"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/imageref"
	"ostree-image/internal/ostree"
	"ostree-image/internal/proc"
	"ostree-image/internal/rootfs"
	"ostree-image/internal/workdir"
)

// checkoutImage makes dir the image's root file system. dir must not exist, or be empty; where the
// checkout fails it is left as it was.
//
// Each layer is checked out by ostree into a directory of its own. The first becomes the root; what
// each other layer holds is then moved into it, entry by entry as the layer names them, by a
// rootfs.FS, which nothing in an image can lead out of the root.
func checkoutImage(
	ctx context.Context,
	ref ostreeReference,
	dir string,
	sys *types.SystemContext,
	o ostree.CheckoutOptions,
) error {
	if o.RequireHardlinks && o.ForceCopy {
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

// mayLink refuses a checkout by hard links from a repository whose files are not, on disk, what they
// are to be in the tree (ostree-checkout(1)).
func mayLink(mode string, userMode bool) error {
	switch {
	case mode == ostree.Bare && userMode:
		return errors.New("checkout: the files of a bare repository have owners; " +
			"--require-hardlinks cannot go with --user-mode there")
	case mode == ostree.BareUser && !userMode:
		return errors.New("checkout: the files of a bare-user repository have no owners; " +
			"--require-hardlinks needs --user-mode there")
	case mode == ostree.Bare, mode == ostree.BareUser, mode == ostree.BareUserOnly:
		return nil
	}
	return errors.Errorf("checkout: the files of a repository of mode %s are compressed, and cannot have hard links; "+
		"leave --require-hardlinks out", mode)
}

// checkoutLayers is checkoutImage for layers of a repository of the given mode.
func checkoutLayers(
	ctx context.Context,
	store *blobStore,
	s *settings,
	layers []*storedBlob,
	mode, dir string,
	o ostree.CheckoutOptions,
) (err error) {
	if os.Geteuid() != 0 && mode != ostree.Bare && !o.UserMode {
		o.UserMode = true
		s.warnf("not root, repository of mode %s: files belong to you, as with --user-mode", mode)
	}
	if o.RequireHardlinks {
		if err := mayLink(mode, o.UserMode); err != nil {
			return err
		}
		s.warnf(
			"the files of %s are those of the repository: what writes into one changes it there and in every other image that has it",
			dir,
		)
	}
	target, err := openTarget(dir, s.runner)
	if err != nil {
		return err
	}
	times := rootfs.NewTimes(rootfs.TimeOf(time.Now()), !o.RequireHardlinks)
	defer func() {
		if rerr := target.end(); err == nil {
			err = rerr
		}
		if err == nil && target.inside { // the end of the private directory has changed it
			err = times.SetRoot(target.dir)
		}
		target.unpin()
	}()
	j := s.journal
	j.name(target.work.Path, "WORK")
	j.name(target.dir, "OUT")
	c := &checkout{store: store, settings: s, options: o, work: target.work, mode: mode, times: times}
	c.perms = permissionsFor(mode, os.Geteuid(), os.Getegid())
	c.perms.forTar = true
	if !o.UserMode && mode != ostree.BareUserOnly {
		c.perms.namespace = limitedNamespace("with --user-mode all files belong to you")
	}
	if err := c.build(ctx, layers); err != nil {
		return proc.NoRoom(err, filepath.Dir(target.work.Path))
	}
	j.shell(
		"the tree is finished",
		fmt.Sprintf("rmdir %[2]s 2>/dev/null || : ; mv %[1]s %[2]s", j.path(c.root()), j.path(target.dir)),
	)
	return target.publish(c.root())
}

// rootLayers returns the layers of the image, or of the instance of an index that fits, the lowest
// first. They are proved.
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
			return nil, errors.Errorf(
				"image %s has a layer of type %s, which is no file system",
				s.ref.image,
				info.MediaType,
			)
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

// checkout is the work on one root file system.
type checkout struct {
	store    *blobStore
	settings *settings
	options  ostree.CheckoutOptions
	work     *workdir.Dir
	mode     string // of the repository
	perms    permissions
	times    *rootfs.Times
}

func (c *checkout) root() string { return c.work.Join("root") }

func (c *checkout) layerDir(i int) string {
	if i == 0 {
		return c.root()
	}
	return c.work.Join(fmt.Sprintf("layer-%d", i))
}

// build makes the tree. ostree checks the layers out side by side, while those that are there are
// applied in their order.
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
	return c.withRoot(
		"times.sh",
		"set the times",
		"",
		func(root *rootfs.FS) error { return disagreement(c.times.SetTimes(buildCtx, root)) },
	)
}

// withRoot calls f with the tree, and writes what it does into a script of the record. variables
// are what that needs beside the root.
func (c *checkout) withRoot(script, why, variables string, f func(root *rootfs.FS) error) (err error) {
	j := c.settings.journal
	steps, err := j.record.steps(script)
	if err != nil {
		return err
	}
	root, err := rootfs.Open(c.root(), os.Geteuid() == 0)
	if err == nil {
		root.Steps, root.Times = steps, c.times
		err = f(root)
		errdefs.Close(&err, root)
	}
	if serr := steps.End(); err == nil {
		err = serr
	}
	if steps != nil && err == nil {
		j.recorded(why, fmt.Sprintf(`ROOT=%s %ssh "$BLOBS"/%s`, j.path(c.root()), variables, script))
	}
	return err
}

// fetch has layer i checked out, and reads meanwhile what it names.
func (c *checkout) fetch(ctx context.Context, b *storedBlob, i int) (entries []layerEntry, err error) {
	if !c.options.RequireHardlinks && os.Geteuid() == 0 && runtime.GOMAXPROCS(0) > 1 && named(b) &&
		b.tarSize >= c.settings.divideFrom {
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

// named tells whether the repository knows what a layer names. Otherwise its tree is all that there
// is (layers of 2017).
func named(b *storedBlob) bool { return b.canRebuild() || b.hasRecord() }

// apply applies layer i, which is checked out, to the tree. entries are what it names, where that
// is known.
func (c *checkout) apply(ctx context.Context, b *storedBlob, i int, entries []layerEntry) error {
	j := c.settings.journal
	replaces := slices.ContainsFunc(entries, func(e layerEntry) bool { return e.replaced })
	trees := fmt.Sprintf("LAYER=%s ", j.path(c.layerDir(i)))
	if replaces {
		trees += fmt.Sprintf("REPLACED=%s ", j.path(c.replacedDir(i)))
	}
	return c.withRoot(
		fmt.Sprintf("layer-%d.sh", i),
		"apply layer "+b.digest.String(),
		trees,
		func(root *rootfs.FS) (err error) {
			a := &applier{root: root, layer: root, base: i == 0, settings: c.settings}
			for _, t := range []struct {
				tree   **rootfs.FS
				name   string
				dir    string
				wanted bool
			}{
				{&a.layer, rootfs.LayerTree, c.layerDir(i), i > 0},
				{&a.replaced, rootfs.ReplacedTree, c.replacedDir(i), replaces},
			} {
				if !t.wanted {
					continue
				}
				tree, err := rootfs.Open(t.dir, root.AsRoot)
				if err != nil {
					return err
				}
				tree.Name, *t.tree = t.name, tree
				defer func() {
					_ = tree.Close()
					if rerr := workdir.RemoveTree(t.dir); err == nil {
						err = rerr
					}
				}()
			}
			if !named(b) {
				c.settings.warnf(
					"layer %s was stored without its tar-split data: every directory of its tree counts as one that it names",
					b.digest,
				)
				if entries, err = treeEntries(a.layer); err != nil {
					return err
				}
			}
			return a.applyAll(ctx, entries)
		},
	)
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
	return a.Finish()
}

// disagreement makes an error of finding other things in a layer's tree than the layer names one of
// the repository.
func disagreement(err error) error {
	for _, errno := range []syscall.Errno{syscall.ENOENT, syscall.ENOTDIR, syscall.EISDIR, syscall.ELOOP} {
		if errors.Is(err, errno) {
			return &damageError{err}
		}
	}
	return err
}
