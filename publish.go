package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/pkg/errors"
	"golang.org/x/sync/errgroup"

	"ostree-image/internal/imageref"
)

// publish moves all that is staged into the repository: first the blobs, as one transaction, then
// the image's ref, as one. Within one, ostree writes refs in any order, so an image must come by
// itself. Its commit comes with the blobs: it would stay marked as partial where the transaction
// that brings it is killed at its very end, and then nobody may see it. Where it fails, the refs
// are as they were. The repository has refs, and of these the whole ones can be relied on.
func (d *destination) publish(ctx context.Context, refs, whole map[string]bool, image string) (err error) {
	st := d.staging
	// A replay may come to another commit, and is to compare it.
	j := d.settings.journal
	j.name(image, "(ostree rev-parse --repo="+j.path(st.repo.path)+" "+d.ref.ref()+")")
	defer j.forget(image)
	blobs := d.stagedRefs(whole)
	d.dropStaged()
	published := append(slices.Clone(blobs), d.ref.ref())
	named, err := d.repo.commitsOf(ctx, among(refs, published)) // with a process, where a name moves
	if err != nil {
		return err
	}
	if err := st.check(ctx); err != nil {
		return err
	}
	running := d.repo.transactions()
	defer func() {
		if err != nil {
			d.rollBack(ctx, refs, running, named, published)
		}
	}()
	if err := d.pullStaged(ctx, st, refs, "publish the blobs", append(slices.Clone(blobs), image)...); err != nil {
		return errors.WithMessage(err, "publishing the blobs")
	}
	if err := d.sync(blobs...); err != nil { // before the image, which needs them
		return err
	}
	var group errgroup.Group
	group.SetLimit(d.settings.parallelImports())
	group.Go(func() error { return d.nameMissing(ctx, blobs) })
	group.Go(func() error {
		return errors.WithMessage(d.pullStaged(ctx, st, refs, "publish the image", d.ref.ref()), "publishing the image")
	})
	if err := group.Wait(); err != nil {
		return err
	}
	if err := d.repo.deleteRefs(
		ctx,
		"remove what does not belong to the layers",
		d.foreignSidecars(refs)...); err != nil {
		return err
	}
	if err := d.sync(published...); err != nil {
		return err
	}
	d.rememberProven()
	return d.settings.journal.record.wrote(ctx, published)
}

// foreignSidecars returns the sidecar refs of layers that were imported anew since what the
// repository had was wrong, and that need none.
func (d *destination) foreignSidecars(refs map[string]bool) []string {
	var foreign []string
	for sum, b := range d.blobs {
		if b.layer != nil && b.layer.sidecar == "" && refs[imageref.SidecarRef(sum)] && d.replaces(sum) {
			foreign = append(foreign, imageref.SidecarRef(sum))
		}
	}
	slices.Sort(foreign)
	return foreign
}

// rememberProven notes what this run has imported: each blob was checked as it came.
func (d *destination) rememberProven() {
	for sum, b := range d.blobs {
		switch {
		case b.layer != nil:
			d.settings.proven.add(
				provenKey(sum, b.layer.commit, b.layer.sidecar),
				provenBlob{b.layer.diffID, b.layer.blob.Size()},
			)
		case b.commit != "" && b.ref == imageref.BlobRef(sum):
			d.settings.proven.add(provenKey(sum, b.commit, ""), provenBlob{sum, b.info.Size})
		}
	}
}

// nameMissing names the blobs that were published and are not named all the same: another process
// has pulled them from a remote since the copy began (see pullStaged).
func (d *destination) nameMissing(ctx context.Context, blobs []string) error {
	there, err := d.repo.refsAmong(ctx, blobs)
	if err != nil {
		return err
	}
	for _, ref := range blobs {
		if there[ref] {
			continue
		}
		if err := d.nameStaged(ctx, ref); err != nil {
			return err
		}
	}
	return nil
}

// nameStaged makes a ref name what it does in the staging repository.
func (d *destination) nameStaged(ctx context.Context, ref string) error {
	sums, err := d.staging.repo.revParse(ctx, ref)
	if err != nil {
		return err
	}
	return d.repo.setRef(ctx, "name it, though a remote has the same", ref, sums[0])
}

// dropStaged removes the layers as they came: all that is needed of them is committed. What ostree
// publishes it writes out to the disk, and with it everything else that is still to be written
// there.
func (d *destination) dropStaged() {
	for _, b := range d.blobs {
		if b.layer != nil {
			_ = os.Remove(b.layer.blob.Path)
		}
	}
}

// rollBackLimit is how long a run that fails, or was told to end, rolls back what it has published.
const rollBackLimit = time.Minute

// rollBack undoes what a publishing that failed has done to the repository: refs that were not
// there before are removed, those that were name again what they did, and what ostree leaves of a
// transaction that is ended goes. Objects are left to prune, and so is what cannot be removed: the
// reason of the failure is what the user must know.
func (d *destination) rollBack(
	ctx context.Context,
	before, running map[string]bool,
	named map[string]string,
	published []string,
) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollBackLimit)
	defer cancel()
	err := d.repo.dropTransactions(running)
	now, rerr := d.repo.refs(ctx)
	if err == nil {
		err = rerr
	}
	commits, rerr := d.repo.commitsOf(ctx, among(now, published))
	if err == nil {
		err = rerr
	}
	var fresh []string
	for ref, commit := range commits {
		switch old := named[ref]; {
		case commit == old:
		case old != "":
			if rerr := d.repo.setRef(ctx, "put the ref back", ref, old); err == nil {
				err = rerr
			}
		case !before[ref]:
			fresh = append(fresh, ref)
		}
	}
	slices.Sort(fresh)
	if derr := d.repo.deleteRefs(ctx, "take the refs back", fresh...); err == nil {
		err = derr
	}
	if err != nil {
		d.settings.debugf("what was published is not all taken back: %v", err)
	}
}

// among returns those of wanted that refs has.
func among(refs map[string]bool, wanted []string) map[string]bool {
	found := map[string]bool{}
	for _, ref := range wanted {
		if refs[ref] {
			found[ref] = true
		}
	}
	return found
}

// pullStaged moves refs and what they name from the staging repository into the target, which had
// the refs before.
func (d *destination) pullStaged(
	ctx context.Context,
	st *staging,
	before map[string]bool,
	why string,
	refs ...string,
) error {
	err := again(ctx, func() error { return d.repo.pullLocal(ctx, st.repo.path, !d.settings.noFsync, why, refs...) })
	if err != nil {
		if _, serr := os.Stat(filepath.Join(st.repo.path, "config")); os.IsNotExist(serr) {
			return st.repo.vanished()
		}
		return err
	}
	// ostree takes a ref that only a remote has for the local one, and does not write it where it
	// names the same commit.
	underRemote := func(ref string) bool {
		for spec := range before {
			if remote, same := splitSpec(spec); remote != "" && same == ref {
				return true
			}
		}
		return false
	}
	for _, ref := range refs { // of a checksum there is none
		if before[ref] || !underRemote(ref) {
			continue
		}
		if err := d.nameStaged(ctx, ref); err != nil {
			return err
		}
	}
	return nil
}

// stagedRefs returns the refs of blobs to publish. Side commits that another copy has published
// meanwhile stay, unless ours holds a blob.
func (d *destination) stagedRefs(refs map[string]bool) []string {
	var list []string
	for sum, b := range d.blobs {
		if b.ref != "" {
			list = append(list, b.ref)
		}
		if l := b.layer; l != nil {
			list = append(list, imageref.BlobRef(sum))
			if side := imageref.SidecarRef(
				sum,
			); l.kept ||
				l.exact && !l.inline && (!refs[side] || d.settings.signs() || d.replaces(sum)) {
				list = append(list, side)
			}
		}
	}
	slices.Sort(list)
	return list
}

// imageFiles returns the tree of the image's commit.
func (d *destination) imageFiles() []treeFile {
	var files []treeFile
	for _, sum := range d.order {
		m := d.manifests[sum]
		prefix := ""
		if sum != d.top {
			prefix = imageref.DirInstances + "/" + sum.Encoded() + "/"
		}
		files = append(files, treeFile{name: prefix + imageref.FileManifest, content: m.blob})
		for i, s := range m.signatures {
			files = append(files, treeFile{name: prefix + imageref.FileSignature + strconv.Itoa(i+1), content: s})
		}
	}
	return files
}
