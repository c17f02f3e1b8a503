package main

import (
	"hash/maphash"
	"io"
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

// leftOut is the kind of what OSTree cannot hold: devices, fifos and sockets, and hard links to
// them. A checkout takes it for what it is.
const leftOut = goneKind

// errNonCanonical says that a layer must be read twice: it names something twice, or puts a file
// where a link leads.
var errNonCanonical = errors.New("the layer names a path twice, or one below a link")

// layerFilter makes a layer's entries those of a normalized tar stream, which ostree and tar read
// alike: regular files, directories and links only, every name checked, relative and given once, a
// hard link to a file that stands before it and is no link itself, and every directory before what
// it holds. What the layer does not name before its first child is written as a directory of 0:0
// with mode 0755, and once more where an entry names it later, which then counts. It does so as the
// layer arrives and gives errNonCanonical where an entry would change any other that is gone by:
// then layerPlan takes the whole layer first.
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

// entryWriter takes the entries of a normalized tar stream, each followed by its payload.
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

// take returns what the next header becomes in the normalized tar stream. ok is false for what that
// leaves out.
func (f *layerFilter) take(hdr *tar.Header) (e tarstream.Entry, ok bool, err error) {
	f.missing = f.missing[:0]
	e, ok, err = normalizedEntry(hdr, f.perms)
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
			return e, false, errNonCanonical
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
			return errNonCanonical
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

// checkImplied refuses a layer with too many directories above its files that it does not name: one
// name can ask for two thousand.
func (l layerLimits) checkImplied(n int) error {
	if l.files > 0 && n > l.files {
		return errors.Errorf(
			"its files lie in more than %d directories that it does not name, the limit of --max-layer-files",
			l.files,
		)
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
		return e, errNonCanonical
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

// impliedDir is a directory that a layer does not name but needs: 0:0 and 0755, whatever made the
// stream and whoever reads it.
func impliedDir(name string, perms permissions) tarstream.Entry {
	e := tarstream.Entry{Name: name, Kind: tarstream.Dir, Mode: 0o755}
	perms.own(&e)
	return e
}

// normalizedEntry returns what a layer's header becomes in a normalized tar stream. ok is false for
// headers that are no entries. An error names the entry and says what is wrong with it.
func normalizedEntry(hdr *tar.Header, perms permissions) (e tarstream.Entry, ok bool, err error) {
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
	// Among them -1, in base 256: chown(2) takes it for "leave it as it is", so no file can have
	// it. umoci makes 4294967294 of it, GNU tar root or whoever runs it; a layer that says so is
	// broken, and is not guessed at.
	if hdr.Uid < 0 || int64(hdr.Uid) >= 1<<32-1 || hdr.Gid < 0 || int64(hdr.Gid) >= 1<<32-1 {
		return e, false, errors.Errorf(
			"%s belongs to %d:%d, which no user or group can be",
			ui.Quoted(hdr.Name),
			hdr.Uid,
			hdr.Gid,
		)
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

// cleanName returns name without what leads nowhere ("/", "./", "//", "a/../"), or an error for one
// that no archiver extracts. As in umoci, ".." takes away the part before it, wherever that may
// lead as a link. The root of the layer is "", also where it has no name.
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
			return "", errors.Errorf(
				"the file name %.80q… has a part of %d bytes, and %d is the most",
				name,
				len(part),
				maxNameBytes,
			)
		}
	}
	if len(clean) > maxPathBytes {
		return "", errors.Errorf(
			"the file name %.80q… has %d bytes, and %d is the most",
			name,
			len(clean),
			maxPathBytes,
		)
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
		return errors.Errorf(
			"the target of the symbolic link %s has %d bytes, and %d is the most",
			ui.Quoted(name),
			len(target),
			maxPathBytes,
		)
	case !gvariant.IsText(target):
		return errors.Errorf(
			"the target %s of the symbolic link %s is not UTF-8, and OSTree holds no other",
			ui.Quoted(target),
			ui.Quoted(name),
		)
	}
	return nil
}
