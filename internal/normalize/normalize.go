// Package normalize makes the entries of a layer those of a normalized tar stream, which OSTree and tar read alike: every
// name checked and given once, every directory before what it holds.
package normalize

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
	maxPathBytes = 4095 // PATH_MAX without its NUL: no file system call takes more
	// MaxNameBytes is NAME_MAX.
	MaxNameBytes  = 255
	maxLinkFollow = 40 // symbolic links that one path may lead through, as in path_resolution(7)
)

// LeftOut is the kind of what OSTree cannot hold: devices, fifos and sockets, and hard links to
// them. A checkout takes it for what it is: nothing takes the place of what was there.
const LeftOut tarstream.Kind = 'g'

// The names of whiteouts (OCI image specification, layer.md): of a file of the layers below, and of
// all that a directory had there.
const (
	WhiteoutPrefix = ".wh."
	WhiteoutOpaque = ".wh..wh..opq"
)

// rules say what a repository can hold of a layer's entries.
type rules interface {
	// Own gives an entry the owner, the mode and the attributes that it has there.
	Own(e *tarstream.Entry)
	// Xattrs returns the extended attributes that are kept of an entry's PAX records.
	Xattrs(records map[string]string) map[string]string
	// CheckOwner refuses a file that cannot belong to these.
	CheckOwner(name string, uid, gid uint32) error
}

// ErrNonCanonical says that a layer must be read twice: it names something twice, or puts a file
// where a link leads.
var ErrNonCanonical = errors.New("the layer names a path twice, or one below a link")

// Filter makes a layer's entries those of a normalized tar stream, which ostree and tar read
// alike: regular files, directories and links only, every name checked, relative and given once, a
// hard link to a file that stands before it and is no link itself, and every directory before what
// it holds. What the layer does not name before its first child is written as a directory of 0:0
// with mode 0755, and once more where an entry names it later, which then counts. It does so as the
// layer arrives and gives ErrNonCanonical where an entry would change any other that is gone by:
// then a Plan takes the whole layer first.
type Filter struct {
	perms   rules
	Out     EntryWriter
	seed    maphash.Seed
	seen    map[uint64]tarstream.Kind // by a hash of the name: a layer of 10 million names stays within bounds
	files   map[string]string         // hard links to what they lead to, where that is a link too
	links   map[string]tarstream.Entry
	Implied map[string]struct{} // directories that no entry has named yet, the root among them
	missing []string            // those of them that the last entry needs and are still to be written, the lowest first
	Limits  Limits              // on what the layer does not name
}

// EntryWriter takes the entries of a normalized tar stream, each followed by its payload.
type EntryWriter interface {
	WriteEntry(e tarstream.Entry) error
	io.Writer
	Close() error
}

// NewFilter returns one that writes to out.
func NewFilter(perms rules, out EntryWriter) *Filter {
	return &Filter{
		perms: perms, Out: out, seed: maphash.MakeSeed(), seen: map[uint64]tarstream.Kind{},
		files: map[string]string{}, links: map[string]tarstream.Entry{}, Implied: map[string]struct{}{},
	}
}

// Entry takes the next header and returns where its payload is to go, nil for nowhere.
func (f *Filter) Entry(hdr *tar.Header) (io.Writer, error) {
	e, ok, err := f.Take(hdr)
	if err != nil {
		return nil, err
	}
	for _, dir := range slices.Backward(f.missing) {
		if err := f.Out.WriteEntry(impliedDir(dir, f.perms)); err != nil {
			return nil, err
		}
	}
	if !ok {
		return nil, nil
	}
	if err := f.Out.WriteEntry(e); err != nil {
		return nil, err
	}
	if e.Kind == tarstream.File {
		return f.Out, nil
	}
	return nil, nil
}

// Take returns what the next header becomes in the normalized tar stream. ok is false for what that
// leaves out.
func (f *Filter) Take(hdr *tar.Header) (e tarstream.Entry, ok bool, err error) {
	f.missing = f.missing[:0]
	e, ok, err = Entry(hdr, f.perms)
	if err != nil || !ok {
		return e, false, err
	}
	if e.Name != "" {
		if err := f.parents(e.Name); err != nil {
			return e, false, err
		}
	}
	key := f.Key(e.Name)
	if _, twice := f.seen[key]; twice {
		if _, implied := f.Implied[e.Name]; !implied || e.Kind != tarstream.Dir {
			return e, false, ErrNonCanonical
		}
		delete(f.Implied, e.Name)
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
	return e, e.Kind != LeftOut, nil
}

// parents notes the directories above name that no entry has named.
func (f *Filter) parents(name string) error {
	for name != "" {
		dir := ParentOf(name)
		key := f.Key(dir)
		kind, known := f.seen[key]
		if known && kind == tarstream.Dir {
			return nil
		}
		if known {
			return ErrNonCanonical
		}
		f.seen[key] = tarstream.Dir
		f.Implied[dir] = struct{}{}
		f.missing = append(f.missing, dir)
		if err := f.Limits.checkImplied(len(f.Implied) - 1); err != nil { // every layer has a root
			return err
		}
		name = dir
	}
	return nil
}

// hardLink leads e to what ostree can link to, which takes no link to a link.
func (f *Filter) hardLink(e tarstream.Entry) (tarstream.Entry, error) {
	if target, ok := f.files[e.Link]; ok {
		e.Link = target
	}
	kind, known := f.seen[f.Key(e.Link)]
	if !known || kind == tarstream.Dir || e.Link == e.Name {
		return e, ErrNonCanonical
	}
	switch kind {
	case LeftOut: // a second name of a device
		e.Kind = LeftOut
	case tarstream.Symlink: // a second name of a symbolic link: the same link again
		name := e.Name
		e = f.links[e.Link]
		e.Name = name
	default:
		f.files[e.Name] = e.Link
	}
	return e, nil
}

// Key is a number that stands for a name.
func (f *Filter) Key(name string) uint64 { return maphash.String(f.seed, name) }

// Finish writes the end of the stream. A layer without entries has a root, too.
func (f *Filter) Finish() error {
	if _, begun := f.seen[f.Key("")]; !begun {
		if err := f.Out.WriteEntry(impliedDir("", f.perms)); err != nil {
			return err
		}
	}
	return f.Out.Close()
}

// impliedDir is a directory that a layer does not name but needs: 0:0 and 0755, whatever made the
// stream and whoever reads it.
func impliedDir(name string, perms rules) tarstream.Entry {
	e := tarstream.Entry{Name: name, Kind: tarstream.Dir, Mode: 0o755}
	perms.Own(&e)
	return e
}

// Entry returns what a layer's header becomes in a normalized tar stream. ok is false for
// headers that are no entries. An error names the entry and says what is wrong with it.
func Entry(hdr *tar.Header, perms rules) (e tarstream.Entry, ok bool, err error) {
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
		e.Kind = LeftOut
	default: // tar extracts what it does not know as a regular file
		e.Kind = tarstream.File
		if strings.HasSuffix(hdr.Name, "/") {
			e.Kind = tarstream.Dir
		}
	}
	if e.Name, err = CleanName(hdr.Name); err != nil {
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
		if err := CheckTarget(hdr.Name, e.Link); err != nil {
			return e, false, err
		}
	case tarstream.HardLink:
		if hdr.Linkname == "" {
			return e, false, errors.Errorf("the hard link %s has no target", ui.Quoted(hdr.Name))
		}
		if e.Link, err = CleanName(hdr.Linkname); err != nil {
			return e, false, errors.WithMessagef(err, "the hard link %s", ui.Quoted(hdr.Name))
		}
	}
	if e.Kind == tarstream.File || e.Kind == tarstream.Dir {
		e.Xattrs = perms.Xattrs(hdr.PAXRecords)
	}
	perms.Own(&e)
	return e, true, perms.CheckOwner(hdr.Name, e.UID, e.GID)
}

// CleanName returns name without what leads nowhere ("/", "./", "//", "a/../"), or an error for one
// that no archiver extracts. As in umoci, ".." takes away the part before it, wherever that may
// lead as a link. The root of the layer is "", also where it has no name.
func CleanName(name string) (string, error) {
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
		if len(part) > MaxNameBytes {
			return "", errors.Errorf(
				"the file name %.80q… has a part of %d bytes, and %d is the most",
				name,
				len(part),
				MaxNameBytes,
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

// CheckTarget refuses the target of a symbolic link that OSTree cannot hold.
func CheckTarget(name, target string) error {
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

// ParentOf returns the directory that holds name, "" for the root.
func ParentOf(name string) string {
	if dir := path.Dir(name); dir != "." {
		return dir
	}
	return ""
}
