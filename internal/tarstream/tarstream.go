// Package tarstream writes POSIX tar streams (pax, IEEE Std 1003.1-2008) of regular files,
// directories and links.
//
// It exists because libostree before 2023 keeps extended attributes in the order in which
// libarchive returns them, which is the reverse of the stream's, and stores an object that its own
// fsck calls corrupt unless that order is sorted. archive/tar always writes pax records in
// ascending order, so it cannot write such a stream.
package tarstream

import (
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/pkg/errors"
)

const (
	blockSize = 512
	nameField = 100 // bytes that a header has for a name. They are taken as they are, ASCII or not
)

// Kind is the type of an entry, the type flag of its header.
type Kind byte

// The kinds that OSTree can hold.
const (
	File     Kind = '0'
	HardLink Kind = '1'
	Symlink  Kind = '2'
	Dir      Kind = '5'
)

// Entry is one member of the stream. All times are 0, and no user or group is named.
type Entry struct {
	Name   string // without a leading or trailing slash; "" is the tree's root
	Kind   Kind
	Mode   uint32 // permission bits, 0 to 07777
	UID    uint32
	GID    uint32
	Size   int64             // bytes of payload, 0 unless a File
	Link   string            // the target of a link
	Xattrs map[string]string // extended attributes
}

// Writer writes a stream. It must not be used by two goroutines at once.
type Writer struct {
	w       io.Writer
	block   [blockSize]byte
	pax     []byte
	missing int64 // bytes of the current payload still to come
	padding int   // bytes to write behind it
	err     error // sticky
}

// NewWriter returns a Writer to w. Each header is one Write, or two.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// WriteEntry begins an entry. The payload of the one before must be complete.
func (t *Writer) WriteEntry(e Entry) error {
	if t.err != nil {
		return t.err
	}
	if t.err = t.endPayload(); t.err != nil {
		return t.err
	}
	t.pax = t.pax[:0]
	name := "./" + e.Name
	if e.Kind == Dir && e.Name != "" {
		name += "/"
	}
	link := e.Link
	longName, longLink := len(name) > nameField, len(link) > nameField
	if longName && !isASCII(name) || longLink && !isASCII(link) {
		// Or libarchive takes them for UTF-8 to be normalized, and gives "e" with a combining
		// accent back as one character.
		t.record("hdrcharset", "BINARY")
	}
	if longName {
		t.record("path", name)
		name = "path"
	}
	if longLink {
		t.record("linkpath", link)
		link = "linkpath"
	}
	uid, gid, size := int64(e.UID), int64(e.GID), e.Size
	if uid > 0o7777777 {
		t.record("uid", strconv.FormatInt(uid, 10))
		uid = 0
	}
	if gid > 0o7777777 {
		t.record("gid", strconv.FormatInt(gid, 10))
		gid = 0
	}
	if size > 0o77777777777 {
		t.record("size", strconv.FormatInt(size, 10))
		size = 0
	}
	// In descending order: libarchive hands them out in reverse.
	names := make([]string, 0, len(e.Xattrs))
	for n := range e.Xattrs {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range slices.Backward(names) {
		t.record("SCHILY.xattr."+n, e.Xattrs[n])
	}
	if len(t.pax) > 0 {
		n := int64(len(t.pax))
		t.header('x', "./PaxHeader", "", 0o644, 0, 0, n)
		if t.err = t.write(t.block[:]); t.err != nil {
			return t.err
		}
		t.pax = append(t.pax, make([]byte, padding(n))...)
		if t.err = t.write(t.pax); t.err != nil {
			return t.err
		}
	}
	t.header(byte(e.Kind), name, link, e.Mode, uid, gid, size)
	t.missing, t.padding = e.Size, padding(e.Size)
	t.err = t.write(t.block[:])
	return t.err
}

// Write writes payload of the current entry.
func (t *Writer) Write(b []byte) (int, error) {
	if t.err != nil {
		return 0, t.err
	}
	if int64(len(b)) > t.missing {
		t.err = errors.New("tar stream: more payload than the entry has")
		return 0, t.err
	}
	n, err := t.w.Write(b)
	t.missing -= int64(n)
	t.err = err
	return n, err
}

// Close writes the end of the archive. It does not close the stream below.
func (t *Writer) Close() error {
	if t.err != nil {
		return t.err
	}
	if t.err = t.endPayload(); t.err != nil {
		return t.err
	}
	t.err = t.write(make([]byte, 2*blockSize))
	return t.err
}

func (t *Writer) endPayload() error {
	if t.missing > 0 {
		return errors.Errorf("tar stream: %d bytes of payload are missing", t.missing)
	}
	if t.padding == 0 {
		return nil
	}
	clear(t.block[:t.padding])
	err := t.write(t.block[:t.padding])
	t.padding = 0
	return err
}

func (t *Writer) write(b []byte) error {
	_, err := t.w.Write(b)
	return err
}

func padding(size int64) int { return int(-size & (blockSize - 1)) }

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// record appends a pax record, "LENGTH KEY=VALUE\n", where LENGTH counts itself.
func (t *Writer) record(key, value string) {
	n := len(key) + len(value) + 3
	length := n + len(strconv.Itoa(n))
	if len(strconv.Itoa(length)) != len(strconv.Itoa(n)) {
		length = n + len(strconv.Itoa(length))
	}
	t.pax = strconv.AppendInt(t.pax, int64(length), 10)
	t.pax = append(t.pax, ' ')
	t.pax = append(t.pax, key...)
	t.pax = append(t.pax, '=')
	t.pax = append(t.pax, value...)
	t.pax = append(t.pax, '\n')
}

// header fills t.block with a ustar header.
func (t *Writer) header(kind byte, name, link string, mode uint32, uid, gid, size int64) {
	b := t.block[:]
	clear(b)
	copy(b[0:100], name)
	octal(b[100:108], int64(mode))
	octal(b[108:116], uid)
	octal(b[116:124], gid)
	octal(b[124:136], size)
	octal(b[136:148], 0)
	b[156] = kind
	copy(b[157:257], link)
	copy(b[257:265], "ustar\x0000")
	copy(b[148:156], strings.Repeat(" ", 8))
	sum := int64(0)
	for _, c := range b {
		sum += int64(c)
	}
	octal(b[148:155], sum)
}

// octal writes n in octal digits, leading zeros and a NUL.
func octal(field []byte, n int64) {
	for i := len(field) - 2; i >= 0; i-- {
		field[i] = byte('0' + n&7)
		n >>= 3
	}
	field[len(field)-1] = 0
}
