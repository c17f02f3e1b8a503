// Package treesum computes the checksums that OSTree gives to files, directories and trees, from
// the entries of a tar stream. Nothing is written: it tells what "ostree commit" of the same
// entries comes to.
//
// The forms of the objects are those of libostree's ostree-core.h: OSTREE_FILEMETA_GVARIANT_FORMAT,
// OSTREE_DIRMETA_GVARIANT_FORMAT and OSTREE_TREE_GVARIANT_FORMAT, serialized as the GVariant
// specification says.
package treesum

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"maps"
	"slices"
	"strings"

	"github.com/pkg/errors"

	"ostree-image/internal/tarstream"
)

// The kinds of file in a mode (inode(7)).
const (
	typeDir  = 0o040000
	typeFile = 0o100000
	typeLink = 0o120000
)

type checksum = [sha256.Size]byte

// Root is what a commit says of its tree.
type Root struct {
	Tree string // checksum of the root's directory listing, in hex
	Meta string // checksum of the root's owner, mode and attributes, in hex
}

// Writer takes the entries of a normalized tar stream, each followed by its payload, and sums up
// the tree that they make. It must not be used by two goroutines at once.
type Writer struct {
	root    *dir
	file    hash.Hash // of the current file's object
	name    string    // of the current file
	missing int64     // bytes of its payload still to come
	err     error     // sticky
}

type dir struct {
	meta  checksum
	files map[string]checksum
	dirs  map[string]*dir
}

// NewWriter returns a Writer with an empty tree. A directory that no entry names belongs to 0:0 and
// has the mode 0755.
func NewWriter() *Writer { return &Writer{root: newDir()} }

var impliedMeta = dirMeta(tarstream.Entry{Mode: 0o755})

func newDir() *dir {
	return &dir{meta: impliedMeta, files: map[string]checksum{}, dirs: map[string]*dir{}}
}

// WriteEntry begins an entry. The payload of the one before must be complete.
func (w *Writer) WriteEntry(e tarstream.Entry) error {
	if w.err == nil {
		w.err = w.add(e)
	}
	return w.err
}

func (w *Writer) add(e tarstream.Entry) error {
	if w.missing > 0 {
		return errors.Errorf("%d bytes of %q are missing", w.missing, w.name)
	}
	if e.Kind == tarstream.Dir {
		d, err := w.dir(e.Name)
		if err != nil {
			return err
		}
		d.meta = dirMeta(e)
		return nil
	}
	parent, base, err := w.parent(e.Name)
	if err != nil {
		return err
	}
	if _, twice := parent.files[base]; twice || parent.dirs[base] != nil {
		return errors.Errorf("%q is there twice", e.Name)
	}
	switch e.Kind {
	case tarstream.HardLink:
		from, target, err := w.parent(e.Link)
		if err != nil {
			return err
		}
		sum, ok := from.files[target]
		if !ok {
			return errors.Errorf("the hard link %q leads to %q, which is no file before it", e.Name, e.Link)
		}
		parent.files[base] = sum
	case tarstream.Symlink:
		parent.files[base] = checksum(fileHash(e).Sum(nil))
	default:
		w.file, w.name, w.missing = fileHash(e), e.Name, e.Size
		return w.endFile()
	}
	return nil
}

// Write takes payload of the current file.
func (w *Writer) Write(b []byte) (int, error) {
	if w.err == nil && int64(len(b)) > w.missing {
		w.err = errors.Errorf("%q has more payload than its entry says", w.name)
	}
	if w.err != nil || len(b) == 0 {
		return 0, w.err
	}
	_, _ = w.file.Write(b)
	w.missing -= int64(len(b))
	w.err = w.endFile()
	return len(b), w.err
}

// endFile notes the current file's checksum once its payload is complete.
func (w *Writer) endFile() error {
	if w.missing > 0 {
		return nil
	}
	parent, base, err := w.parent(w.name)
	if err == nil {
		parent.files[base] = checksum(w.file.Sum(nil))
	}
	return err
}

// Close ends the stream.
func (w *Writer) Close() error {
	if w.err == nil && w.missing > 0 {
		w.err = errors.Errorf("%d bytes of %q are missing", w.missing, w.name)
	}
	return w.err
}

// Root returns the checksums of the tree so far.
func (w *Writer) Root() Root {
	tree := w.root.sum()
	return Root{hex.EncodeToString(tree[:]), hex.EncodeToString(w.root.meta[:])}
}

// dir returns the directory of that name, and makes it and those above it where they are missing.
func (w *Writer) dir(name string) (*dir, error) {
	d := w.root
	for part := range strings.SplitSeq(name, "/") {
		if part == "" {
			continue
		}
		if _, isFile := d.files[part]; isFile {
			return nil, errors.Errorf("%q leads through a file", name)
		}
		if d.dirs[part] == nil {
			d.dirs[part] = newDir()
		}
		d = d.dirs[part]
	}
	return d, nil
}

func (w *Writer) parent(name string) (d *dir, base string, err error) {
	above := ""
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		above, name = name[:i], name[i+1:]
	}
	d, err = w.dir(above)
	return d, name, err
}

// sum returns the checksum of a directory's listing: (a(say)a(sayay)), files and directories by
// name.
func (d *dir) sum() checksum {
	var files, dirs array
	for _, name := range slices.Sorted(maps.Keys(d.files)) {
		sum := d.files[name]
		files.add(tuple{text(name), sum[:]}.bytes())
	}
	for _, name := range slices.Sorted(maps.Keys(d.dirs)) {
		child := d.dirs[name]
		sum := child.sum()
		dirs.add(tuple{text(name), sum[:], child.meta[:]}.bytes())
	}
	return sha256.Sum256(tuple{files.bytes(), dirs.bytes()}.bytes())
}

// dirMeta returns the checksum of a directory's owner, mode and attributes: (uuua(ayay)).
func dirMeta(e tarstream.Entry) checksum {
	b := binary.BigEndian.AppendUint32(nil, e.UID)
	b = binary.BigEndian.AppendUint32(b, e.GID)
	b = binary.BigEndian.AppendUint32(b, typeDir|e.Mode)
	return sha256.Sum256(append(b, xattrs(e.Xattrs)...))
}

// fileHash returns the hash of a file's object up to its content: the header (uuuusa(ayay)), behind
// its length in four bytes and four zeros. The fourth number is for devices, which no repository
// holds.
func fileHash(e tarstream.Entry) hash.Hash {
	mode, target := typeFile|e.Mode, ""
	if e.Kind == tarstream.Symlink {
		mode, target = typeLink|0o777, e.Link
	}
	numbers := binary.BigEndian.AppendUint32(nil, e.UID)
	numbers = binary.BigEndian.AppendUint32(numbers, e.GID)
	numbers = binary.BigEndian.AppendUint32(numbers, mode)
	numbers = binary.BigEndian.AppendUint32(numbers, 0)
	header := tuple{append(numbers, text(target)...), xattrs(e.Xattrs)}.bytes()
	sum := sha256.New()
	_, _ = sum.Write(binary.BigEndian.AppendUint32(nil, uint32(len(header))))
	_, _ = sum.Write(make([]byte, 4))
	_, _ = sum.Write(header)
	return sum
}

// xattrs serializes attributes by name, a(ayay). A name ends with a NUL.
func xattrs(attrs map[string]string) []byte {
	var list array
	for _, name := range slices.Sorted(maps.Keys(attrs)) {
		list.add(tuple{text(name), []byte(attrs[name])}.bytes())
	}
	return list.bytes()
}

// text serializes a string: its bytes and a NUL.
func text(s string) []byte { return append([]byte(s), 0) }

// tuple is a tuple whose members but the last have no fixed size, or stand before the first that
// has none. No member needs alignment behind another.
type tuple [][]byte

// bytes returns the members one after another, and behind them where each but the last ends, in
// reverse order.
func (t tuple) bytes() []byte {
	var b []byte
	var ends []int
	for i, member := range t {
		b = append(b, member...)
		if i < len(t)-1 {
			ends = append(ends, len(b))
		}
	}
	slices.Reverse(ends)
	return appendOffsets(b, ends)
}

// array is an array of elements without a fixed size.
type array struct {
	body []byte
	ends []int
}

func (a *array) add(element []byte) {
	a.body = append(a.body, element...)
	a.ends = append(a.ends, len(a.body))
}

// bytes returns the elements one after another, and behind them where each ends.
func (a *array) bytes() []byte { return appendOffsets(a.body, a.ends) }

// appendOffsets appends framing offsets in the fewest bytes that can name the end of the whole,
// little endian.
func appendOffsets(b []byte, ends []int) []byte {
	size := 8
	for _, n := range []int{1, 2, 4} {
		if uint64(len(b)+n*len(ends)) < 1<<(8*n) {
			size = n
			break
		}
	}
	for _, end := range ends {
		b = append(b, binary.LittleEndian.AppendUint64(nil, uint64(end))[:size]...)
	}
	return b
}
