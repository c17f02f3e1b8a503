package normalize

import (
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/pkg/errors"
	"github.com/vbatts/tar-split/archive/tar"

	"ostree-image/internal/tarstream"
	"ostree-image/internal/ui"
)

// Plan is what a non-canonical layer comes to once all of it is known: for each of its entries
// that is still there in the end, the names that it has then.
type Plan struct {
	perms   rules
	root    *planNode
	Index   int
	Emit    map[int][]tarstream.Entry // by the entry's place in the layer: first the thing itself, then hard links to it
	dirs    map[int][]tarstream.Entry // all directories as they are in the end, by the place before which they must be there
	Implied []string                  // those of them that no entry names
	LeftOut []string                  // where devices, fifos and sockets would stand in the end
	Dangles map[string]string         // hard links to what the layer does not hold, and what they name
	Limits  Limits
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

// NewPlan returns one that has no entry.
func NewPlan(perms rules) *Plan {
	return &Plan{
		perms: perms, root: newPlanDir(),
		Emit: map[int][]tarstream.Entry{}, dirs: map[int][]tarstream.Entry{}, Dangles: map[string]string{},
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

// pathLength is how long the path of what lies in the directory n is. The names of a layer can add
// up through its own links.
func (n *planNode) pathLength(base string) int { return n.length + len("/") + len(base) }

// Add takes the next header of the layer.
func (p *Plan) Add(hdr *tar.Header) error {
	index := p.Index
	p.Index++
	e, ok, err := Entry(hdr, p.perms)
	if err != nil || !ok {
		return err
	}
	inode := &planInode{index, e}
	if e.Name == "" {
		p.root.inode = inode
		return nil
	}
	if e.Kind == LeftOut {
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
			p.Dangles[e.Name] = e.Link
			inode.entry.Kind, inode.entry.Link = tarstream.File, ""
			dir.children[base] = &planNode{kind: tarstream.File, inode: inode}
		case target.kind == tarstream.Dir:
			return errors.Errorf("the hard link %s leads to the directory %s", ui.Quoted(hdr.Name), ui.Quoted(e.Link))
		case dir.children[base].holds(target):
			return errors.Errorf(
				"the hard link %s leads to %s, below the directory that it replaces",
				ui.Quoted(hdr.Name),
				ui.Quoted(e.Link),
			)
		default:
			dir.children[base] = &planNode{kind: target.kind, inode: target.inode}
		}
	default:
		dir.children[base] = &planNode{kind: e.Kind, inode: inode}
	}
	return nil
}

// parent returns the directory that name lies in. Symbolic links of the same layer lead on, from
// the layer's root at the most; what is missing becomes a directory that nothing names.
func (p *Plan) parent(name string) (*planNode, string, error) {
	dir, base := path.Split(name)
	node, err := p.walk(strings.TrimSuffix(dir, "/"), true)
	if err != nil {
		return nil, "", errors.WithMessagef(err, "placing %s", ui.Quoted(name))
	}
	if n := node.pathLength(base); n > maxPathBytes {
		return nil, "", errors.Errorf(
			"the file name %s has %d bytes once the layer's links are followed, and %d is the most",
			ui.Quoted(name),
			n,
			maxPathBytes,
		)
	}
	return node, base, nil
}

// lookup returns what stands at name, nil for nothing. A symbolic link at its end is not followed.
func (p *Plan) lookup(name string) (*planNode, error) {
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
func (p *Plan) walk(dir string, create bool) (*planNode, error) {
	chain := []*planNode{p.root}
	todo := strings.Split(dir, "/")
	for follows := 0; len(todo) > 0; {
		if p.steps++; p.Limits.Files > 0 && p.steps > p.Limits.steps() {
			return nil, errors.Errorf(
				"its names lead through more than %d directories and links, which is what --max-layer-files=%d allows",
				p.Limits.steps(),
				p.Limits.Files,
			)
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
				return nil, errors.Errorf(
					"the path has %d bytes once the layer's links are followed, and %d is the most",
					next.length,
					maxPathBytes,
				)
			}
			p.made++
			if err := p.Limits.checkImplied(p.made); err != nil {
				return nil, err
			}
			here.children[part] = next
			chain = append(chain, next)
		case next.kind == tarstream.Dir:
			chain = append(chain, next)
		case strings.HasPrefix(part, WhiteoutPrefix) && next.kind != tarstream.Dir:
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

// Finish settles which entry has which names, and where the directories must be there: before the
// first entry that lies in them. One that holds nothing is there at its own entry, or at the end.
func (p *Plan) Finish() {
	first := map[*planInode]string{}
	var visit func(name string, n *planNode) (place int)
	visit = func(name string, n *planNode) (place int) {
		place = p.Index
		if n.kind == LeftOut {
			p.LeftOut = append(p.LeftOut, name)
			return place
		}
		e := impliedDir(name, p.perms)
		if n.inode != nil {
			place = n.inode.index
			e = n.inode.entry
			e.Name = name
			if target, linked := first[n.inode]; linked && n.kind == tarstream.File {
				e = tarstream.Entry{
					Name: name,
					Kind: tarstream.HardLink,
					Link: target,
					Mode: e.Mode,
					UID:  e.UID,
					GID:  e.GID,
				}
			} else {
				first[n.inode] = name
			}
			p.Emit[place] = append(p.Emit[place], e)
		} else if name != "" {
			p.Implied = append(p.Implied, name)
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

// PlanFilter writes the normalized tar stream of a layer that has a plan.
type PlanFilter struct {
	plan  *Plan
	out   EntryWriter
	index int
}

// NewPlanFilter returns one that writes to out.
func NewPlanFilter(plan *Plan, out EntryWriter) *PlanFilter {
	plan.Finish()
	return &PlanFilter{plan: plan, out: out}
}

// Entry writes what the plan makes of the next header, and returns where its payload is to go, nil
// for nowhere.
func (f *PlanFilter) Entry(*tar.Header) (io.Writer, error) {
	dirs, entries := f.plan.dirs[f.index], f.plan.Emit[f.index]
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

// Finish writes the end of the stream.
func (f *PlanFilter) Finish() error {
	if err := writeEntries(f.out, f.plan.dirs[f.plan.Index]); err != nil {
		return err
	}
	return f.out.Close()
}

// payloadThenLinks passes a file's payload on and then writes its hard links.
type payloadThenLinks struct {
	out     EntryWriter
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

func writeEntries(out EntryWriter, entries []tarstream.Entry) error {
	for _, e := range entries {
		if err := out.WriteEntry(e); err != nil {
			return err
		}
	}
	return nil
}
