package main

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/pkg/errors"

	"ostree-image/internal/gvariant"
	"ostree-image/internal/layer"
	"ostree-image/internal/normalize"
	"ostree-image/internal/ostree"
	"ostree-image/internal/rootfs"
	"ostree-image/internal/tarstream"
)

// permissions are the rules for owners, modes and attributes, the same for a header and for an
// extracted tree. They say what a repository of the given mode can hold when this user writes it.
type permissions struct {
	uid, gid int  // the user's own, used where asOwn
	asOwn    bool // everything belongs to the user, without file capabilities
	readable bool // the owner can read every file: u+r is added
	forTar   bool // the normalized tar stream is for GNU tar, see tarAttribute

	namespace *userNamespace // whose owners alone there can be, nil for all

	// What OSTree and tar make of the normalized stream by themselves. These say what a commit that
	// is there holds.
	canonical bool // as in bare-user-only: everything belongs to 0:0, without attributes, no more than 0755
	rootOwned bool // everything belongs to 0:0, without file capabilities
}

// permissionsFor returns the rules. Only a user who is not root, in a mode that keeps files as they
// are on disk, gets any exception: there ostree must read the files again, and cannot give them
// away.
func permissionsFor(mode string, euid, egid int) permissions {
	p := permissions{uid: euid, gid: egid}
	if euid != 0 {
		p.asOwn = mode == ostree.Bare
		p.readable = mode == ostree.Bare || mode == ostree.BareUserOnly
	}
	return p
}

// storedPermissions returns the rules under which a layer can have been imported into a repository
// whose directory belongs to owner, the likeliest first. What not even its owner could have made so
// is none of them.
func storedPermissions(mode string, owner *syscall.Stat_t) []permissions {
	own := permissions{uid: int(owner.Uid), gid: int(owner.Gid), asOwn: true, readable: true}
	foreign := owner.Uid != 0
	switch mode {
	case ostree.Bare:
		if foreign {
			mine := own
			mine.gid = os.Getegid()
			return []permissions{own, mine, {}}
		}
	case ostree.BareUserOnly:
		if foreign {
			return []permissions{{canonical: true, readable: true}, {canonical: true}}
		}
		return []permissions{{canonical: true}}
	default:
		// The tar engine keeps no owners for anyone but root. Root is not to take a file for its
		// own that is not.
		if foreign && int(owner.Uid) == os.Geteuid() {
			return []permissions{{}, {rootOwned: true}}
		}
	}
	return []permissions{{}}
}

// exceptions says in words what the rules change, "" for nothing.
func (p permissions) exceptions(mode string, engine engineName) string {
	var texts []string
	if p.asOwn {
		texts = append(texts, fmt.Sprintf("all files belong to %d:%d and have no file capabilities", p.uid, p.gid))
	} else if p.uid != 0 && engine == engineTar && mode != ostree.BareUserOnly {
		texts = append(
			texts,
			"the tar engine keeps no owners and no file capabilities, and a name with a newline keeps the mode it has on disk",
		)
	}
	if p.readable {
		texts = append(texts, "files that their owner cannot read become readable for the owner")
	}
	if len(texts) == 0 {
		return ""
	}
	return fmt.Sprintf("not root, repository of mode %s: %s", mode, strings.Join(texts, "; "))
}

// CheckOwner refuses a file that cannot be given to its owner in this user namespace.
func (p permissions) CheckOwner(name string, uid, gid uint32) error {
	return p.namespace.check(name, uid, gid)
}

// Own applies the rules to an entry.
func (p permissions) Own(e *tarstream.Entry) {
	if p.asOwn {
		e.UID, e.GID = uint32(p.uid), uint32(p.gid)
	}
	if p.rootOwned || p.canonical {
		e.UID, e.GID = 0, 0
	}
	if p.readable && e.Kind == tarstream.File {
		e.Mode |= 0o400
	}
	if p.canonical {
		e.Xattrs = nil
		if e.Kind != tarstream.Symlink {
			e.Mode &= 0o755
		}
	}
}

// tarAttribute writes an attribute's name so that GNU tar reads it as it is. tar takes "%3D" for
// "=" and "%25" for "%", and leaves other percent signs alone.
var tarAttribute = strings.NewReplacer("%3D", "%253D", "%25", "%2525")

// Xattrs returns the extended attributes that a layer's file keeps of its PAX records, nil for
// none: its capabilities and the user's own. ostree keeps no empty value, user.ostreemeta is where
// a bare-user repository keeps its own, and the labels and the marks of overlayfs belong to the
// machine that made the layer.
func (p permissions) Xattrs(records map[string]string) map[string]string {
	var kept map[string]string
	for key, value := range records {
		name, ok := strings.CutPrefix(key, layer.PaxXattr)
		switch {
		case !ok:
			continue
		case name == rootfs.Capability && !p.asOwn && !p.rootOwned:
			value = cleanCapability(value)
		case strings.HasPrefix(name, "user.") && len(name) > len("user.") && len(name) <= 255 && gvariant.IsText(name) &&
			name != "user.ostreemeta" && !strings.HasPrefix(name, "user.overlay."):
		default:
			continue
		}
		if value == "" || len(value) > 64<<10 {
			continue
		}
		if kept == nil {
			kept = map[string]string{}
		}
		if p.forTar {
			name = tarAttribute.Replace(name)
		}
		kept[name] = value
	}
	return kept
}

// cleanCapability returns a value that the kernel takes and gives back unchanged, or ""
// (linux/capability.h): revision 2 has 20 bytes, revision 3 ends with the id of a user namespace's
// root, and with 0 there the kernel gives revision 2 back.
func cleanCapability(value string) string {
	const (
		revision     = 0xff000000
		revision2    = 0x02000000
		revision3    = 0x03000000
		size2, size3 = 20, 24
	)
	b := []byte(value)
	if len(b) < 4 {
		return ""
	}
	magic := binary.LittleEndian.Uint32(b)
	switch {
	case magic&revision == revision2 && len(b) == size2:
		return value
	case magic&revision == revision3 && len(b) == size3:
		if binary.LittleEndian.Uint32(b[size2:]) != 0 {
			return value
		}
		binary.LittleEndian.PutUint32(b, magic&^revision|revision2)
		return string(b[:size2])
	}
	return ""
}

// extractableWriter passes entries on to tar with modes that it can extract, and keeps those that
// they have in the layer. No directory hands its group down: tar would give that bit to what it
// makes there later, and leave it where that is to have the mode 0700. A tar that is not run by
// root gets the bits that it needs on the way, and ostree behind it: tar comes back to directories
// that it has left, and gives files their attributes after their modes.
type extractableWriter struct {
	normalize.EntryWriter
	asRoot bool
	modes  map[string]uint32 // of what was changed, by its name
}

// WriteEntry passes an entry on.
func (w *extractableWriter) WriteEntry(e tarstream.Entry) error {
	var need, not uint32
	switch mode, changed := w.modes[e.Link]; {
	case e.Kind == tarstream.Dir:
		need, not = 0o700, handsDown
	case e.Kind == tarstream.File && len(e.Xattrs) > 0:
		need = 0o600
	case e.Kind == tarstream.File:
		need = 0o400
	case e.Kind == tarstream.HardLink && changed:
		w.modes[e.Name] = mode
	}
	if w.asRoot {
		need = 0
	}
	if e.Kind != tarstream.HardLink {
		delete(w.modes, e.Name) // of a directory that came before
	}
	if mode := e.Mode&^not | need; mode != e.Mode {
		w.modes[e.Name] = e.Mode
		e.Mode = mode
	}
	return w.EntryWriter.WriteEntry(e)
}

// handsDown is the set-group-ID bit, with which a directory gives its group, and the bit, to the
// directories that are made in it (inode(7)).
const handsDown = 0o2000

// overrides returns the lines of a --statoverride file that give the commit the modes back. A line
// cannot name what has a newline.
func (w *extractableWriter) overrides() []string {
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(w.modes)) {
		if !strings.Contains(name, "\n") {
			lines = append(lines, overrideLine(w.modes[name], "/"+name))
		}
	}
	return lines
}

// handDown gives the directories in the extracted tree at dir that no override can name their
// set-group-ID bit back, and returns their names.
func (w *extractableWriter) handDown(dir string) ([]string, error) {
	var names []string
	for name, mode := range w.modes {
		if mode&handsDown != 0 && strings.Contains(name, "\n") {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil, nil
	}
	slices.Sort(names)
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	defer func() { _ = root.Close() }()
	var dirs []string
	for _, name := range names {
		info, err := root.Lstat(name)
		if err == nil && info.IsDir() { // a file has kept its bit
			dirs = append(dirs, name)
			err = root.Chmod(name, info.Mode()|fs.ModeSetgid)
		}
		if err != nil {
			return nil, errors.WithStack(err)
		}
	}
	return dirs, nil
}

func overrideLine(mode uint32, path string) string { return fmt.Sprintf("=%d %s", mode, path) }

// fixTree makes the tree at dir, as tar extracted it, one that ostree can read, and returns the
// lines of a --statoverride file that give the commit the modes back. Devices, fifos and sockets
// go. It never follows a link, and does not leave dir: the paths it changes are those of
// directories and regular files, found by lstat(2) below an open directory.
func (p permissions) fixTree(dir string) (overrides []string, err error) {
	info, err := os.Lstat(dir)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	if !info.IsDir() {
		return nil, errors.Errorf("%s is no directory", dir)
	}
	if err := p.open(
		func(m fs.FileMode) error { return os.Chmod(dir, m) },
		"/",
		info.Mode(),
		0o700,
		&overrides,
	); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	defer func() { _ = root.Close() }()
	err = p.fixDir(root, ".", "", &overrides)
	return overrides, err
}

// fixDir does the work of fixTree below one directory. name is its path for root, path the one
// within the commit.
func (p permissions) fixDir(root *os.Root, name, path string, overrides *[]string) error {
	names, err := readNames(root, name)
	if err != nil {
		return err
	}
	for _, base := range names {
		child, childPath := base, path+"/"+base
		if name != "." {
			child = name + "/" + child
		}
		info, err := root.Lstat(child)
		if err != nil {
			return errors.WithStack(err)
		}
		mode := info.Mode()
		chmod := func(m fs.FileMode) error { return root.Chmod(child, m) }
		switch {
		case mode.IsDir():
			if err := p.open(chmod, childPath, mode, 0o700, overrides); err != nil {
				return err
			}
			if err := p.fixDir(root, child, childPath, overrides); err != nil {
				return err
			}
		case mode.IsRegular():
			if err := p.open(chmod, childPath, mode, 0o400, overrides); err != nil {
				return err
			}
		case mode&fs.ModeSymlink != 0:
		default:
			if err := root.Remove(child); err != nil {
				return errors.WithStack(err)
			}
		}
	}
	return nil
}

// readNames returns what a directory holds. io/fs would refuse a name that is not UTF-8.
func readNames(root *os.Root, name string) ([]string, error) {
	dir, err := root.Open(name)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	defer func() { _ = dir.Close() }()
	names, err := dir.Readdirnames(-1)
	return names, errors.WithStack(err)
}

// open adds the bits to a mode where they are missing, and notes the mode that what is at path had.
func (p permissions) open(
	chmod func(fs.FileMode) error,
	path string,
	mode, bits fs.FileMode,
	overrides *[]string,
) error {
	if p.uid == 0 || mode&bits == bits {
		return nil
	}
	if err := chmod(mode | bits); err != nil {
		return errors.WithStack(err)
	}
	if strings.Contains(path, "\n") || (p.readable && mode.IsRegular()) {
		return nil // a line cannot name it; or the commit is to have the bits too
	}
	*overrides = append(*overrides, overrideLine(unixMode(mode), path))
	return nil
}

// unixMode returns the permission bits as the kernel counts them.
func unixMode(mode fs.FileMode) uint32 {
	m := uint32(mode.Perm())
	if mode&fs.ModeSetuid != 0 {
		m |= 0o4000
	}
	if mode&fs.ModeSetgid != 0 {
		m |= 0o2000
	}
	if mode&fs.ModeSticky != 0 {
		m |= 0o1000
	}
	return m
}
