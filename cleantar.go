package main

import (
	"hash/maphash"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/pkg/errors"
	"github.com/vbatts/tar-split/archive/tar"

	"ostree-image/internal/gvariant"
	"ostree-image/internal/tarstream"
	"ostree-image/internal/ui"
)

const (
	maxPathBytes  = 4095 // PATH_MAX without its NUL: no file system call takes more
	maxNameBytes  = 255  // NAME_MAX
	maxLinkFollow = 40   // symbolic links that one path may lead through, as in path_resolution(7)
)

// leftOut is the kind of what OSTree cannot hold: devices, fifos and sockets, and hard links to them. A checkout takes it for what it is.
const leftOut = goneKind

// errOddLayer says that a layer must be read twice: it names something twice, or puts a file where a link leads.
var errOddLayer = errors.New("the layer names a path twice, or one below a link")

// layerFilter makes a layer's entries those of a clean stream, which ostree and tar read alike: regular files, directories and
// links only, every name checked, relative and given once, a hard link to a file that stands before it and is no link itself,
// and every directory before what it holds. What the layer does not name before its first child is written as a directory of
// 0:0 with mode 0755, and once more where an entry names it later, which then counts. It does so as the layer arrives and
// gives errOddLayer where an entry would change any other that is gone by: then layerPlan takes the whole layer first.
type layerFilter struct {
	perms   permissions
	out     entryWriter
	seed    maphash.Seed
	seen    map[uint64]tarstream.Kind // by a hash of the name: a layer of 10 million names stays within bounds
	files   map[string]string         // hard links to what they lead to, where that is a link too
	links   map[string]tarstream.Entry
	implied map[string]struct{} // directories that no entry has named yet, the root among them
	missing []string            // those of them that the last entry needs and are still to be written, the lowest first
	limits  layerLimits         // on what the layer does not name
}

// entryWriter takes the entries of a clean stream, each followed by its payload.
type entryWriter interface {
	WriteEntry(e tarstream.Entry) error
	io.Writer
	Close() error
}

func newLayerFilter(perms permissions, out entryWriter) *layerFilter {
	return &layerFilter{
		perms: perms, out: out, seed: maphash.MakeSeed(), seen: map[uint64]tarstream.Kind{},
		files: map[string]string{}, links: map[string]tarstream.Entry{}, implied: map[string]struct{}{},
	}
}

// entry takes the next header and returns where its payload is to go, nil for nowhere.
func (f *layerFilter) entry(hdr *tar.Header) (io.Writer, error) {
	e, ok, err := f.take(hdr)
	if err != nil {
		return nil, err
	}
	for _, dir := range slices.Backward(f.missing) {
		if err := f.out.WriteEntry(impliedDir(dir, f.perms)); err != nil {
			return nil, err
		}
	}
	if !ok {
		return nil, nil
	}
	if err := f.out.WriteEntry(e); err != nil {
		return nil, err
	}
	if e.Kind == tarstream.File {
		return f.out, nil
	}
	return nil, nil
}

// take returns what the next header becomes in the clean stream. ok is false for what that leaves out.
func (f *layerFilter) take(hdr *tar.Header) (e tarstream.Entry, ok bool, err error) {
	f.missing = f.missing[:0]
	e, ok, err = cleanEntry(hdr, f.perms)
	if err != nil || !ok {
		return e, false, err
	}
	if e.Name != "" {
		if err := f.parents(e.Name); err != nil {
			return e, false, err
		}
	}
	key := f.key(e.Name)
	if _, twice := f.seen[key]; twice {
		if _, implied := f.implied[e.Name]; !implied || e.Kind != tarstream.Dir {
			return e, false, errOddLayer
		}
		delete(f.implied, e.Name)
	}
	if e.Kind == tarstream.HardLink {
		if e, err = f.hardLink(e); err != nil {
			return e, false, err
		}
	}
	if e.Kind == tarstream.Symlink {
		f.links[e.Name] = e
	}
	f.seen[key] = e.Kind
	return e, e.Kind != leftOut, nil
}

// parents notes the directories above name that no entry has named.
func (f *layerFilter) parents(name string) error {
	for name != "" {
		dir := parentOf(name)
		key := f.key(dir)
		kind, known := f.seen[key]
		if known && kind == tarstream.Dir {
			return nil
		}
		if known {
			return errOddLayer
		}
		f.seen[key] = tarstream.Dir
		f.implied[dir] = struct{}{}
		f.missing = append(f.missing, dir)
		if err := f.limits.checkImplied(len(f.implied) - 1); err != nil { // every layer has a root
			return err
		}
		name = dir
	}
	return nil
}

// checkImplied refuses a layer with too many directories above its files that it does not name: one name can ask for two thousand.
func (l layerLimits) checkImplied(n int) error {
	if l.files > 0 && n > l.files {
		return errors.Errorf("its files lie in more than %d directories that it does not name, the limit of --max-layer-files", l.files)
	}
	return nil
}

// hardLink leads e to what ostree can link to, which takes no link to a link.
func (f *layerFilter) hardLink(e tarstream.Entry) (tarstream.Entry, error) {
	if target, ok := f.files[e.Link]; ok {
		e.Link = target
	}
	kind, known := f.seen[f.key(e.Link)]
	if !known || kind == tarstream.Dir || e.Link == e.Name {
		return e, errOddLayer
	}
	switch kind {
	case leftOut: // a second name of a device
		e.Kind = leftOut
	case tarstream.Symlink: // a second name of a symbolic link: the same link again
		name := e.Name
		e = f.links[e.Link]
		e.Name = name
	default:
		f.files[e.Name] = e.Link
	}
	return e, nil
}

func (f *layerFilter) key(name string) uint64 { return maphash.String(f.seed, name) }

// finish writes the end of the stream. A layer without entries has a root, too.
func (f *layerFilter) finish() error {
	if _, begun := f.seen[f.key("")]; !begun {
		if err := f.out.WriteEntry(impliedDir("", f.perms)); err != nil {
			return err
		}
	}
	return f.out.Close()
}

// impliedDir is a directory that a layer does not name but needs: 0:0 and 0755, whatever made the stream and whoever reads
// it.
func impliedDir(name string, perms permissions) tarstream.Entry {
	e := tarstream.Entry{Name: name, Kind: tarstream.Dir, Mode: 0o755}
	perms.own(&e)
	return e
}

// cleanEntry returns what a layer's header becomes in a clean stream. ok is false for headers that are no entries. An error
// names the entry and says what is wrong with it.
func cleanEntry(hdr *tar.Header, perms permissions) (e tarstream.Entry, ok bool, err error) {
	switch hdr.Typeflag {
	case tar.TypeXGlobalHeader, 'V': // no entry; a GNU volume label
		return e, false, nil
	case 'M': // the rest of a file that another volume began (GNU tar)
		return e, false, errors.Errorf("%s continues a file of another archive", ui.Quoted(hdr.Name))
	case tar.TypeDir, 'D': // 'D' is a directory with a list of its files (GNU tar, --incremental)
		e.Kind = tarstream.Dir
	case tar.TypeSymlink:
		e.Kind = tarstream.Symlink
	case tar.TypeLink:
		e.Kind = tarstream.HardLink
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		e.Kind = leftOut
	default: // tar extracts what it does not know as a regular file
		e.Kind = tarstream.File
		if strings.HasSuffix(hdr.Name, "/") {
			e.Kind = tarstream.Dir
		}
	}
	if e.Name, err = cleanName(hdr.Name); err != nil {
		return e, false, err
	}
	if hdr.Name == "" && e.Kind != tarstream.Dir {
		return e, false, errors.New("a file has no name")
	}
	if e.Name == "" && e.Kind != tarstream.Dir {
		return e, false, errors.Errorf("%s is the layer's root, which must be a directory", ui.Quoted(hdr.Name))
	}
	// Among them -1, in base 256: chown(2) takes it for "leave it as it is", so no file can have it. umoci makes 4294967294
	// of it, GNU tar root or whoever runs it; a layer that says so is broken, and is not guessed at.
	if hdr.Uid < 0 || int64(hdr.Uid) >= 1<<32-1 || hdr.Gid < 0 || int64(hdr.Gid) >= 1<<32-1 {
		return e, false, errors.Errorf("%s belongs to %d:%d, which no user or group can be", ui.Quoted(hdr.Name), hdr.Uid, hdr.Gid)
	}
	e.UID, e.GID, e.Mode = uint32(hdr.Uid), uint32(hdr.Gid), uint32(hdr.Mode&0o7777)
	switch e.Kind {
	case tarstream.File:
		e.Size = hdr.Size
	case tarstream.Symlink:
		e.Mode = 0o777
		e.Link = hdr.Linkname
		if err := checkTarget(hdr.Name, e.Link); err != nil {
			return e, false, err
		}
	case tarstream.HardLink:
		if hdr.Linkname == "" {
			return e, false, errors.Errorf("the hard link %s has no target", ui.Quoted(hdr.Name))
		}
		if e.Link, err = cleanName(hdr.Linkname); err != nil {
			return e, false, errors.WithMessagef(err, "the hard link %s", ui.Quoted(hdr.Name))
		}
	}
	if e.Kind == tarstream.File || e.Kind == tarstream.Dir {
		e.Xattrs = perms.xattrs(hdr.PAXRecords)
	}
	perms.own(&e)
	return e, true, perms.namespace.check(hdr.Name, e.UID, e.GID)
}

// cleanName returns name without what leads nowhere ("/", "./", "//", "a/../"), or an error for one that no archiver extracts.
// As in umoci, ".." takes away the part before it, wherever that may lead as a link. The root of the layer is "", also where it
// has no name.
func cleanName(name string) (string, error) {
	if !utf8.ValidString(name) {
		return "", errors.Errorf("the file name %s is not UTF-8, and OSTree holds no other", ui.Quoted(name))
	}
	depth := 0
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "", ".":
		case "..":
			if depth--; depth < 0 {
				return "", errors.Errorf("the file name %s leads out of the layer with \"..\"", ui.Quoted(name))
			}
		default:
			depth++
		}
	}
	clean := strings.TrimPrefix(path.Clean("/"+name), "/")
	for part := range strings.SplitSeq(clean, "/") {
		if len(part) > maxNameBytes {
			return "", errors.Errorf("the file name %.80q… has a part of %d bytes, and %d is the most", name, len(part), maxNameBytes)
		}
	}
	if len(clean) > maxPathBytes {
		return "", errors.Errorf("the file name %.80q… has %d bytes, and %d is the most", name, len(clean), maxPathBytes)
	}
	if strings.ContainsRune(clean, 0) {
		return "", errors.Errorf("the file name %s holds a NUL", ui.Quoted(name))
	}
	return clean, nil
}

func checkTarget(name, target string) error {
	switch {
	case target == "":
		return errors.Errorf("the symbolic link %s has no target", ui.Quoted(name))
	case len(target) > maxPathBytes:
		return errors.Errorf("the target of the symbolic link %s has %d bytes, and %d is the most", ui.Quoted(name), len(target), maxPathBytes)
	case !gvariant.IsText(target):
		return errors.Errorf("the target %s of the symbolic link %s is not UTF-8, and OSTree holds no other", ui.Quoted(target), ui.Quoted(name))
	}
	return nil
}

// layerPlan is what an odd layer comes to once all of it is known: for each of its entries that is still there in the
// end, the names that it has then.
type layerPlan struct {
	perms   permissions
	root    *planNode
	index   int
	emit    map[int][]tarstream.Entry // by the entry's place in the layer: first the thing itself, then hard links to it
	dirs    map[int][]tarstream.Entry // all directories as they are in the end, by the place before which they must be there
	implied []string                  // those of them that no entry names
	leftOut []string                  // where devices, fifos and sockets would stand in the end
	dangles map[string]string         // hard links to what the layer does not hold, and what they name
	limits  layerLimits
	made    int   // directories that no entry has named
	steps   int64 // directories and links that names have led through
}

type planNode struct {
	kind     tarstream.Kind
	length   int                  // bytes of a directory's path
	children map[string]*planNode // of a directory
	inode    *planInode           // nil for a directory that no entry named, and for what is left out
}

// holds tells whether a node lies below n, which may be nil.
func (n *planNode) holds(node *planNode) bool {
	if n == nil {
		return false
	}
	for _, child := range n.children {
		if child == node || child.holds(node) {
			return true
		}
	}
	return false
}

// planInode is a file, a symbolic link, or what a directory's entry says.
type planInode struct {
	index int
	entry tarstream.Entry
}

func newLayerPlan(perms permissions) *layerPlan {
	return &layerPlan{
		perms: perms, root: newPlanDir(),
		emit: map[int][]tarstream.Entry{}, dirs: map[int][]tarstream.Entry{}, dangles: map[string]string{},
	}
}

func newPlanDir() *planNode {
	return &planNode{kind: tarstream.Dir, children: map[string]*planNode{}}
}

// newChild returns a directory that is to lie in n.
func (n *planNode) newChild(base string) *planNode {
	child := newPlanDir()
	child.length = n.pathLength(base)
	return child
}

// pathLength is how long the path of what lies in the directory n is. The names of a layer can add up through its own links.
func (n *planNode) pathLength(base string) int { return n.length + len("/") + len(base) }

// add takes the next header of the layer.
func (p *layerPlan) add(hdr *tar.Header) error {
	index := p.index
	p.index++
	e, ok, err := cleanEntry(hdr, p.perms)
	if err != nil || !ok {
		return err
	}
	inode := &planInode{index, e}
	if e.Name == "" {
		p.root.inode = inode
		return nil
	}
	if e.Kind == leftOut {
		inode = nil
	}
	dir, base, err := p.parent(e.Name)
	if err != nil {
		return err
	}
	switch e.Kind {
	case tarstream.Dir:
		if old := dir.children[base]; old == nil || old.kind != tarstream.Dir {
			dir.children[base] = dir.newChild(base)
		}
		dir.children[base].inode = inode
	case tarstream.HardLink:
		target, err := p.lookup(e.Link)
		if err != nil {
			return errors.WithMessagef(err, "the hard link %s", ui.Quoted(hdr.Name))
		}
		switch {
		case target == nil: // in a layer below: an empty file keeps its place
			p.dangles[e.Name] = e.Link
			inode.entry.Kind, inode.entry.Link = tarstream.File, ""
			dir.children[base] = &planNode{kind: tarstream.File, inode: inode}
		case target.kind == tarstream.Dir:
			return errors.Errorf("the hard link %s leads to the directory %s", ui.Quoted(hdr.Name), ui.Quoted(e.Link))
		case dir.children[base].holds(target):
			return errors.Errorf("the hard link %s leads to %s, below the directory that it replaces", ui.Quoted(hdr.Name), ui.Quoted(e.Link))
		default:
			dir.children[base] = &planNode{kind: target.kind, inode: target.inode}
		}
	default:
		dir.children[base] = &planNode{kind: e.Kind, inode: inode}
	}
	return nil
}

// parent returns the directory that name lies in. Symbolic links of the same layer lead on, from the layer's root at the most; what
// is missing becomes a directory that nothing names.
func (p *layerPlan) parent(name string) (*planNode, string, error) {
	dir, base := path.Split(name)
	node, err := p.walk(strings.TrimSuffix(dir, "/"), true)
	if err != nil {
		return nil, "", errors.WithMessagef(err, "placing %s", ui.Quoted(name))
	}
	if n := node.pathLength(base); n > maxPathBytes {
		return nil, "", errors.Errorf("the file name %s has %d bytes once the layer's links are followed, and %d is the most", ui.Quoted(name), n, maxPathBytes)
	}
	return node, base, nil
}

// lookup returns what stands at name, nil for nothing. A symbolic link at its end is not followed.
func (p *layerPlan) lookup(name string) (*planNode, error) {
	if name == "" {
		return p.root, nil
	}
	dir, base := path.Split(name)
	node, err := p.walk(strings.TrimSuffix(dir, "/"), false)
	if err != nil || node == nil {
		return nil, err
	}
	return node.children[base], nil
}

// walk returns the directory at dir. Without create it is nil where something is missing.
func (p *layerPlan) walk(dir string, create bool) (*planNode, error) {
	chain := []*planNode{p.root}
	todo := strings.Split(dir, "/")
	for follows := 0; len(todo) > 0; {
		if p.steps++; p.limits.files > 0 && p.steps > p.limits.steps() {
			return nil, errors.Errorf("its names lead through more than %d directories and links, which is what --max-layer-files=%d allows",
				p.limits.steps(), p.limits.files)
		}
		part := todo[0]
		todo = todo[1:]
		here := chain[len(chain)-1]
		switch part {
		case "", ".":
			continue
		case "..":
			chain = chain[:max(1, len(chain)-1)]
			continue
		}
		next := here.children[part]
		switch {
		case next == nil && !create:
			return nil, nil
		case next == nil:
			next = here.newChild(part)
			if next.length > maxPathBytes {
				return nil, errors.Errorf("the path has %d bytes once the layer's links are followed, and %d is the most", next.length, maxPathBytes)
			}
			p.made++
			if err := p.limits.checkImplied(p.made); err != nil {
				return nil, err
			}
			here.children[part] = next
			chain = append(chain, next)
		case next.kind == tarstream.Dir:
			chain = append(chain, next)
		case strings.HasPrefix(part, whiteoutPrefix) && next.kind != tarstream.Dir:
			return nil, errors.Errorf("%s lies below a whiteout", ui.Quoted(dir))
		case next.kind == tarstream.Symlink:
			if follows++; follows > maxLinkFollow {
				return nil, errors.Errorf("%s leads through more than %d symbolic links", ui.Quoted(dir), maxLinkFollow)
			}
			target := next.inode.entry.Link
			if strings.HasPrefix(target, "/") {
				chain = chain[:1]
			}
			todo = append(strings.Split(target, "/"), todo...)
		default:
			return nil, errors.Errorf("%s lies below a file", ui.Quoted(dir))
		}
	}
	return chain[len(chain)-1], nil
}

// finish settles which entry has which names, and where the directories must be there: before the first entry that lies in them. One that
// holds nothing is there at its own entry, or at the end.
func (p *layerPlan) finish() {
	first := map[*planInode]string{}
	var visit func(name string, n *planNode) (place int)
	visit = func(name string, n *planNode) (place int) {
		place = p.index
		if n.kind == leftOut {
			p.leftOut = append(p.leftOut, name)
			return place
		}
		e := impliedDir(name, p.perms)
		if n.inode != nil {
			place = n.inode.index
			e = n.inode.entry
			e.Name = name
			if target, linked := first[n.inode]; linked && n.kind == tarstream.File {
				e = tarstream.Entry{Name: name, Kind: tarstream.HardLink, Link: target, Mode: e.Mode, UID: e.UID, GID: e.GID}
			} else {
				first[n.inode] = name
			}
			p.emit[place] = append(p.emit[place], e)
		} else if name != "" {
			p.implied = append(p.implied, name)
		}
		for _, base := range slices.Sorted(maps.Keys(n.children)) {
			place = min(place, visit(path.Join(name, base), n.children[base]))
		}
		if n.kind == tarstream.Dir {
			p.dirs[place] = append(p.dirs[place], e)
		}
		return place
	}
	visit("", p.root)
	for _, dirs := range p.dirs { // what holds a directory comes before it
		slices.Reverse(dirs)
	}
}

// planFilter writes the clean stream of a layer that has a plan.
type planFilter struct {
	plan  *layerPlan
	out   entryWriter
	index int
}

func newPlanFilter(plan *layerPlan, out entryWriter) *planFilter {
	plan.finish()
	return &planFilter{plan: plan, out: out}
}

func (f *planFilter) entry(*tar.Header) (io.Writer, error) {
	dirs, entries := f.plan.dirs[f.index], f.plan.emit[f.index]
	f.index++
	if err := writeEntries(f.out, dirs); err != nil {
		return nil, err
	}
	if len(entries) == 0 || entries[0].Kind == tarstream.Dir {
		return nil, nil
	}
	if err := f.out.WriteEntry(entries[0]); err != nil {
		return nil, err
	}
	if entries[0].Kind == tarstream.File && entries[0].Size > 0 {
		return &payloadThenLinks{f.out, entries[0].Size, entries[1:]}, nil
	}
	return nil, writeEntries(f.out, entries[1:])
}

func (f *planFilter) finish() error {
	if err := writeEntries(f.out, f.plan.dirs[f.plan.index]); err != nil {
		return err
	}
	return f.out.Close()
}

// payloadThenLinks passes a file's payload on and then writes its hard links.
type payloadThenLinks struct {
	out     entryWriter
	missing int64
	links   []tarstream.Entry
}

func (p *payloadThenLinks) Write(b []byte) (int, error) {
	n, err := p.out.Write(b)
	if p.missing -= int64(n); p.missing == 0 && err == nil {
		err = writeEntries(p.out, p.links)
	}
	return n, err
}

func writeEntries(out entryWriter, entries []tarstream.Entry) error {
	for _, e := range entries {
		if err := out.WriteEntry(e); err != nil {
			return err
		}
	}
	return nil
}
