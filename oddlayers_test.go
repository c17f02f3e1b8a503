package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ostree-image/internal/testutil"
)

// member is an entry of a tar archive, written as it is, however odd.
type member struct {
	name   string
	flag   byte   // '0' if 0
	mode   int64  // 0644, 0755 for directories and 0777 for symbolic links if 0; -1 for 0
	uid    int64  // in base 256 where it is large or negative
	gid    int64  // the same
	body   string // payload
	size   int64  // what the header says, the payload's where it is 0
	link   string
	pax    map[string]string // an extended header before it
	format string            // "ustar" if "", or "gnu", "v7"; a long name in ustar goes into the extended header
	prefix string            // ustar's name prefix
	raw    string            // bytes that stand there instead of all of this
}

// archive writes members and the end of an archive.
func archive(members ...member) []byte { return append(unended(members...), make([]byte, 1024)...) }

// unended writes members.
func unended(members ...member) []byte {
	var b bytes.Buffer
	for _, m := range members {
		if m.raw != "" {
			b.WriteString(m.raw)
			continue
		}
		m.write(&b)
	}
	return b.Bytes()
}

func (m member) write(b *bytes.Buffer) {
	if m.flag == 0 {
		m.flag = '0'
	}
	switch {
	case m.mode == -1:
		m.mode = 0
	case m.mode == 0 && (m.flag == '5' || m.flag == 'D'):
		m.mode = 0o755
	case m.mode == 0 && m.flag == '2':
		m.mode = 0o777
	case m.mode == 0:
		m.mode = 0o644
	}
	pax := maps.Clone(m.pax)
	if pax == nil {
		pax = map[string]string{}
	}
	for _, f := range []struct {
		value *string
		key   string
		flag  byte
	}{{&m.link, "linkpath", 'K'}, {&m.name, "path", 'L'}} {
		if len(*f.value) <= 100 {
			continue
		}
		if m.format == "gnu" {
			block(b, member{name: "././@LongLink", flag: f.flag, format: "gnu"}, int64(len(*f.value)+1))
			payload(b, *f.value+"\x00")
		} else {
			pax[f.key] = *f.value
		}
		*f.value = (*f.value)[:100]
	}
	if len(pax) > 0 {
		paxHeader(b, 'x', pax)
	}
	size := int64(len(m.body))
	if m.size != 0 {
		size = m.size
	}
	block(b, m, size)
	payload(b, m.body)
}

func payload(b *bytes.Buffer, body string) {
	b.WriteString(body)
	b.Write(make([]byte, -len(body)&511))
}

func paxHeader(b *bytes.Buffer, flag byte, records map[string]string) {
	var text strings.Builder
	for _, k := range slices.Sorted(maps.Keys(records)) {
		n := len(k) + len(records[k]) + 3
		for len(fmt.Sprint(n)) != len(fmt.Sprint(n-len(k)-len(records[k])-3)) || n != len(k)+len(records[k])+3+len(fmt.Sprint(n)) {
			n = len(k) + len(records[k]) + 3 + len(fmt.Sprint(n))
			if n == len(k)+len(records[k])+3+len(fmt.Sprint(n)) {
				break
			}
		}
		fmt.Fprintf(&text, "%d %s=%s\n", n, k, records[k])
	}
	block(b, member{name: "PaxHeaders.0/x", flag: flag, mode: 0o644}, int64(text.Len()))
	payload(b, text.String())
}

func block(b *bytes.Buffer, m member, size int64) {
	h := make([]byte, 512)
	number := func(field []byte, n int64) {
		if limit := int64(1) << (3 * (len(field) - 1)); n >= 0 && n < limit {
			copy(field, fmt.Sprintf("%0*o", len(field)-1, n))
			return
		}
		var wide [16]byte
		if n < 0 {
			for i := range wide {
				wide[i] = 0xff
			}
		}
		binary.BigEndian.PutUint64(wide[8:], uint64(n))
		copy(field, wide[16-len(field):])
		field[0] |= 0x80
	}
	copy(h[:100], m.name)
	number(h[100:108], m.mode)
	number(h[108:116], m.uid)
	number(h[116:124], m.gid)
	number(h[124:136], size)
	number(h[136:148], 1700000000)
	h[156] = m.flag
	copy(h[157:257], m.link)
	switch m.format {
	case "v7":
	case "gnu":
		copy(h[257:], "ustar  \x00root\x00")
	default:
		copy(h[257:], "ustar\x0000root\x00")
		copy(h[345:500], m.prefix)
	}
	if m.flag == '3' || m.flag == '4' {
		number(h[329:337], 1)
		number(h[337:345], 3)
	}
	copy(h[148:156], "        ")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
	b.Write(h)
}

func global(records map[string]string) member {
	var b bytes.Buffer
	paxHeader(&b, 'g', records)
	return member{raw: b.String()}
}

// xattrs are extended attributes of a member.
func xattrs(pairs ...string) map[string]string {
	pax := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		pax["SCHILY.xattr."+pairs[i]] = pairs[i+1]
	}
	return pax
}

const (
	capV2 = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	capV3 = "\x01\x00\x00\x03\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
)

// oddLayer is a layer, and what is to become of it.
type oddLayer struct {
	name    string
	layer   []byte
	plain   bool     // its tree is that of a plain "tar -x"
	inexact bool     // its bytes cannot be rebuilt from the tree
	want    []string // its tree where that is not plain: lines of lsLine, less the root's where that is 0755 0:0
	refused string   // why it is refused
}

var (
	name255  = strings.Repeat("n", 255)
	bigBody  = strings.Repeat("0123456789abcdef", 40000)
	deepPath = strings.Repeat("d/", 1000) + "f"
	longest  = strings.Repeat(strings.Repeat("p", 255)+"/", 15) + strings.Repeat("q", 250) // 4090 bytes
)

// file, dir and the others are members with nothing odd about them.
func file(name, body string) member      { return member{name: name, body: body} }
func dir(name string) member             { return member{name: name, flag: '5'} }
func soft(name, target string) member    { return member{name: name, flag: '2', link: target} }
func hard(name, target string) member    { return member{name: name, flag: '1', link: target} }
func special(name string, f byte) member { return member{name: name, flag: f} }

func oddLayers(t testing.TB) []oddLayer {
	t.Helper()
	many := []member{dir("many")}
	for i := range 3000 {
		many = append(many, file(fmt.Sprintf("many/file-%x-%d", i*i*7919, i), fmt.Sprint(i)))
	}
	layers := []oddLayer{
		// What archivers write.
		{name: "no entries", layer: archive(), plain: true},
		{name: "zero bytes", layer: []byte{}, want: []string{"d00755 0 0 /"}},
		{name: "no end", layer: unended(file("no-end", "x")), plain: true},
		{name: "half an end", layer: append(unended(file("half-an-end", "x")), make([]byte, 512)...), plain: true},
		{name: "long end", layer: append(archive(file("long-end", "x")), make([]byte, 20480)...), plain: true},
		{name: "junk after the end", layer: append(archive(file("junk", "x")), "junk"...), plain: true},
		{name: "much junk after the end", layer: append(archive(file("junk2", "x")), bigBody...), plain: true},
		{name: "two archives", layer: append(archive(file("first", "x")), archive(file("second", "y"))...), plain: true},
		{name: "all kinds", layer: archive(dir("d/"), file("d/f", "x"), soft("s", "d/f"), hard("h", "d/f"), file("e", "")), plain: true},
		{name: "sizes", layer: archive(file("s0", ""), file("s1", "x"), file("s511", bigBody[:511]), file("s512", bigBody[:512]),
			file("s513", bigBody[:513]), file("large", bigBody), file("larger", bigBody+bigBody+"y")), plain: true},
		{name: "many files", layer: archive(many...), plain: true},
		{name: "v7", layer: archive(member{name: "d/", mode: 0o755, flag: '5', format: "v7"}, member{name: "d/f", body: "v7", format: "v7"},
			member{name: "old/", mode: 0o700, raw: string(v7Dir("old/"))}), plain: true},
		{name: "gnu", layer: archive(member{name: "gnu-d", flag: '5', format: "gnu"}, member{name: "gnu-d/f", body: "gnu", format: "gnu"}), plain: true},
		{name: "ustar prefix", layer: archive(member{name: "f", prefix: "pre/fix", body: "x"}, member{name: "g", flag: '5', prefix: "pre"}), plain: true},
		{name: "long names, pax", layer: archive(file(strings.Repeat("long/", 60)+"f", "x"), soft("soft", strings.Repeat("t/", 90)),
			hard(strings.Repeat("h", 150), strings.Repeat("long/", 60)+"f")), plain: true},
		{name: "long names, gnu", layer: archive(member{name: strings.Repeat("gnul/", 60) + "f", format: "gnu", body: "x"},
			member{name: "soft", flag: '2', link: strings.Repeat("u/", 90), format: "gnu"},
			member{name: strings.Repeat("g", 150), flag: '1', link: strings.Repeat("gnul/", 60) + "f", format: "gnu"}), plain: true},
		{name: "names of 100 bytes", layer: archive(file(strings.Repeat("c", 100), "x"), file(strings.Repeat("c", 99), "y"), file(strings.Repeat("c", 98), "z"),
			file(strings.Repeat("c", 101), "w"), soft("l", strings.Repeat("c", 100)), hard("m", strings.Repeat("c", 100))), plain: true},
		{name: "names of 255 bytes", layer: archive(dir(name255), file(name255+"/"+name255, "x"), hard(name255+"/h", name255+"/"+name255)), plain: true},
		{name: "deep", layer: archive(file(deepPath, "x"), dir(strings.Repeat("e/", 1000))), plain: true},
		{name: "longest path", layer: archive(file(longest, "x"), hard("to-longest", longest), soft("soft", strings.Repeat("s", 4095))), plain: true},
		{name: "not ASCII, ustar", layer: archive(dir("größe"), file("größe/Ω", "x"), soft("→", "größe/Ω"), hard("ħ", "größe/Ω")), plain: true},
		{name: "not ASCII, pax", layer: archive(member{name: "x", pax: map[string]string{"path": "paß/ﬁle 😀"}, body: "x"},
			member{name: "x", flag: '2', pax: map[string]string{"path": "l-ü", "linkpath": "paß/ﬁle 😀"}},
			member{name: "x", flag: '1', pax: map[string]string{"path": "h-ü", "linkpath": "paß/ﬁle 😀"}}), plain: true},
		{name: "not ASCII and long", layer: archive(file(strings.Repeat("ö", 80)+"/"+strings.Repeat("e\u0301", 40), "x"), soft("so", strings.Repeat("ö\u0308", 60)),
			hard("ha", strings.Repeat("ö", 80)+"/"+strings.Repeat("e\u0301", 40))), plain: true},
		{name: "composed and not", layer: archive(file("nf-\u00e9", "NFC"), file("nf-e\u0301", "NFD"), soft("s-e\u0301", "nf-e\u0301"), hard("h-e\u0301", "nf-e\u0301"),
			file("\u212b", "angstrom"), file("\u00c5", "ring"), file("\uf900", "compatibility")), plain: true},
		{name: "odd names", layer: archive(file("new\nline", "1"), file("tab\there", "2"), file(`back\slash`, "3"), file("-dash", "4"), file("--checkpoint-action=exec=sh", "5"),
			file("trailing ", "6"), file(" leading", "7"), file(`"quote"`, "8"), file("it's", "9"), file("*?[]", "10"), file("...", "11"), file(" ", "12"),
			file("\x01\x1b[31m\x7f", "13"), file("cr\rlf\r\n", "14"), file("a:b", "15"), file("@file", "16"), file("..x", "17"), file("x..", "18"), file("$HOME", "19"),
			file("._apple", "20"), file(`\n\t\101`, "21"), file("path", "22"), file("linkpath", "23"), file("PaxHeader", "24"), file("GNUSparseFile.0", "25"),
			dir("dir\n"), file("dir\n/f\n", "26"), soft("soft\n", "to\n"), hard("hard\n", "new\nline"), file("\u2028\u200b\ufeff", "27"), file("\u0085", "28"),
			file("\ufffe\uffff\ufdd0", "29"), file("#!", "30"), file("=", "31"), file("%41%", "32"), file("-", "33")), plain: true},
		{name: "cases", layer: archive(file("README", "1"), file("readme", "2"), dir("Dir"), dir("dir"), file("dir/f", "x")), plain: true},
		{name: "dots", layer: archive(dir("./"), dir("./a/"), file("./a/./b", "x"), file("a//c", "y"), hard("./d", "./a//b"), soft("./e", "./a/b"), file(".f", "z")), plain: true},
		{name: "absolute", layer: archive(dir("/abs"), file("/abs/f", "x"), hard("/abs/h", "/abs/f"), soft("/abs/s", "/abs/f"), file("//abs//g", "y")), plain: true},
		{name: "no parents", layer: archive(file("a/b/c/f", "x"), soft("b/c/s", "t"), dir("c/d/e"), hard("d/h", "a/b/c/f")), plain: true},
		{name: "parents later", layer: archive(file("pl/q/f", "x"), member{name: "pl/q", flag: '5', mode: 0o700, uid: 5}, member{name: "pl", flag: '5', mode: 0o1777}), plain: true},
		{name: "parents between", layer: archive(member{name: "./", flag: '5', mode: 0o711, uid: 3}, member{name: "root/", flag: '5', mode: 0o700},
			member{name: "root/.ssh/x/key", mode: 0o600, uid: 1000, gid: 1000, body: "k"}, member{name: "tmp/", flag: '5', mode: 0o1777}, member{name: "tmp/a/b", uid: 1000, body: "t"}), plain: true},
		{name: "parents later, attributes", layer: archive(member{name: "px/q/f", uid: 5, body: "x", pax: xattrs("user.f", "1")}, member{name: "px/q", flag: '5', mode: 0o2700, uid: 5, pax: xattrs("user.d", "1")},
			member{name: "px", flag: '5', mode: 0o3777, gid: 7, pax: xattrs("user.e", "2")}, file("px/q/g", "y"), file("px/r/h", "z")), want: []string{
			"d03777 0 7 { [(b'user.e', [byte 0x32])] } /px", "d02700 5 0 { [(b'user.d', [byte 0x31])] } /px/q",
			"-00644 5 0 1 { [(b'user.f', [byte 0x31])] } /px/q/f", "-00644 0 0 1 /px/q/g", "d00755 0 0 /px/r", "-00644 0 0 1 /px/r/h",
		}},
		{name: "directories below one that hands its group down", layer: archive(member{name: "sg", flag: '5', mode: 0o2775, gid: 9}, file("sg/a/f", "x"), dir("away"),
			member{name: "sg/b", flag: '5'}, file("sg/b/f", "y"), member{name: "sg/a", flag: '5', mode: 0o700, uid: 4}), want: []string{
			"d00755 0 0 /away", "d02775 0 9 /sg", "d00700 4 0 /sg/a", "-00644 0 0 1 /sg/a/f", "d00755 0 0 /sg/b", "-00644 0 0 1 /sg/b/f",
		}},
		{name: "coming back to closed directories", layer: archive(member{name: "cb", flag: '5', mode: 0o555}, file("cb/f", "x"), dir("cc"), file("cb/g", "y"), member{name: "cb/d", flag: '5', mode: -1},
			file("cc/f", "z"), file("cb/d/h", "w")), plain: true},
		{name: "no name", layer: archive(member{flag: '5', mode: 0o750, uid: 6}, file("nn", "x")), want: []string{"d00750 6 0 /", "-00644 0 0 1 /nn"}},
		{name: "dot dot within", layer: archive(file("a/../b", "x"), hard("./h", "x/y/../../b"), dir("c/./d/.."), file("c/../c/e", "y"), member{name: "f/..", flag: '5', mode: 0o700}), want: []string{
			"d00700 0 0 /", "-00644 0 0 1 /b", "d00755 0 0 /c", "-00644 0 0 1 /c/e", "-00644 0 0 1 /h",
		}},
		{name: "order of directories", layer: archive(member{name: "z", flag: '5', mode: 0o500}, file("z/f", "x"), member{name: "z/y", flag: '5', mode: 0o111}, file("z/y/g", "y")), plain: true},
		{name: "root", layer: archive(member{name: "./", flag: '5', mode: 0o1700, uid: 7, gid: 8, pax: xattrs("user.r", "root")}, file("f", "x")), plain: true},
		{name: "root as a dot", layer: archive(member{name: ".", flag: '5', mode: 0o711}, file("g", "x")), plain: true},
		{name: "a private directory below one that hands its group down", layer: archive(member{name: "sp", flag: '5', mode: 0o2775, gid: 9}, dir("away"),
			member{name: "sp/a", flag: '5', mode: 0o700, uid: 5}, member{name: "sp/b", flag: '5', mode: 0o2700}), want: []string{
			"d00755 0 0 /away", "d02775 0 9 /sp", "d00700 5 0 /sp/a", "d02700 0 0 /sp/b",
		}},
		{name: "the same with newlines", layer: archive(member{name: "s\n", flag: '5', mode: 0o2775, gid: 9}, dir("later"), member{name: "s\n/p\n", flag: '5', mode: 0o700, uid: 5},
			member{name: "s\n/g", mode: 0o2755, body: "x"}), want: []string{"d00755 0 0 /later", "d02775 0 9 /s", "d00700 5 0 /s", "-02755 0 0 1 /s"}}, // as ostree lists them
		{name: "root later", layer: archive(file("f", "root later"), member{name: "./", flag: '5', mode: 0o2750, uid: 9}), plain: true},
		{name: "root twice", layer: archive(member{name: "./", flag: '5', mode: 0o700, uid: 7}, file("f", "root twice"), member{name: "./", flag: '5', mode: 0o755, uid: 10}), plain: true, inexact: true},
		{name: "root as a slash", layer: archive(member{name: "/", flag: '5', mode: 0o750}, file("f", "slash")), want: []string{"d00750 0 0 /", "-00644 0 0 5 /f"}},
		{name: "root closed", layer: archive(member{name: ".", flag: '5', mode: -1}, file("rc", "x"), member{name: "rd", flag: '5', mode: 0o111}), plain: true},
		{name: "modes", layer: archive(member{name: "suid", mode: 0o4755, body: "x"}, member{name: "sgid", mode: 0o2755, uid: 3, gid: 4}, member{name: "all", mode: 0o7777, gid: 4},
			member{name: "tmp", flag: '5', mode: 0o1777}, member{name: "sdir", flag: '5', mode: 0o6755, uid: 5, gid: 6}, file("sdir/f", "y"), member{name: "none", mode: -1, body: "z"},
			member{name: "nodir", flag: '5', mode: -1}, file("nodir/f", "w"), member{name: "wonly", mode: 0o222}, member{name: "type", mode: 0o100755}), plain: true},
		{name: "owners", layer: archive(member{name: "u1", uid: 1000, gid: 100}, member{name: "u21", uid: 1 << 21, gid: 1 << 21}, member{name: "u31", uid: 1<<31 + 1, gid: 1<<31 + 2},
			member{name: "u32", uid: 1<<32 - 2, gid: 1<<32 - 2, flag: '5'}, member{name: "upax", pax: map[string]string{"uid": "3000000000", "gid": "4000000000", "uname": "root", "gname": "root"}},
			member{name: "s", flag: '2', link: "x", uid: 5, gid: 6}), plain: true},
		{name: "pax records", layer: archive(member{name: "x", body: "x", pax: map[string]string{
			"mtime": "1.5", "atime": "-3.25", "ctime": "9", "comment": "hello", "path": "pax-path", "LIBARCHIVE.creationtime": "5", "size": "1", "VENDOR.odd": "\x01\x02", "uid": "5",
		}}), plain: true},
		{name: "global pax header", layer: archive(global(map[string]string{"comment": "0123456789abcdef"}), file("git", "x")), plain: true},
		{name: "two global pax headers", layer: archive(global(map[string]string{"comment": "1"}), file("git2", "x"), global(map[string]string{"comment": "2"})), plain: true, inexact: true},
		{name: "pax and gnu", layer: archive(member{raw: string(unended(member{name: strings.Repeat("m", 120), format: "gnu", pax: xattrs("user.mixed", "1"), body: "x"}))}), plain: true},
		{name: "size in base 256", layer: archive(member{raw: string(base256Size("b256", "12345"))}), plain: true},
		{name: "volume label", layer: archive(member{name: "my label", flag: 'V', mode: -1}, file("labelled", "x")), plain: true},
		{name: "contiguous and unknown", layer: archive(member{name: "cont", flag: '7', body: "x"}, member{name: "unknown", flag: 'Z', body: "y"}), plain: true},
		{name: "directory as a file", layer: archive(member{name: "dd/", flag: '0', mode: 0o755}, file("dd/f", "x"), member{name: "ee/", flag: '7', mode: 0o700}), plain: true},
		{name: "directory with a payload", layer: archive(member{name: "dp/", flag: '0', mode: 0o755, body: "payload"}), want: []string{"d00755 0 0 /dp"}, inexact: true},
		{name: "incremental", layer: archive(member{name: "inc/", flag: 'D', body: "Yf\x00\x00"}, file("inc/f", "x")), plain: true, inexact: true},
		{name: "directory with a size", layer: archive(member{name: "ds/", flag: '5', size: 4096}, file("ds/f", "x")), plain: true},
		{name: "hard link with a size", layer: archive(file("hs", "four"), member{name: "hs2", flag: '1', link: "hs", size: 4}), plain: true},
		{name: "devices", layer: archive(dir("dev"), special("dev/null", '3'), special("dev/sda", '4'), special("dev/pipe", '6'), file("dev/f", "x")), plain: true},
		{name: "device without parents", layer: archive(special("d1/d2/null", '3')), plain: true},
		{name: "only a device", layer: archive(special("null", '3')), plain: true},
		{name: "whiteouts", layer: archive(dir("w"), file("w/.wh.gone", ""), file("w/.wh..wh..opq", ""), file(".wh.top", ""), dir(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", ""),
			file(".wh.", ""), dir(".wh.dir"), soft(".wh.soft", "x"), file("w/.wh...", ""), file("w/.wh..", "")), plain: true},
		{name: "attributes", layer: archive(member{name: "xa", body: "x", pax: xattrs("user.b", "2", "user.a", "1", "user.c", "3", "user.B", "\x00\xff")},
			member{name: "xd", flag: '5', pax: xattrs("user.z", "1", "user.y", "2")}, member{name: "ping", mode: 0o755, body: "p", pax: xattrs("security.capability", capV2, "user.a", "1", "user.z", "2")},
			member{name: "v3", mode: 0o755, body: "p", pax: xattrs("security.capability", capV3+"\xe8\x03\x00\x00")}, member{name: "x4k", pax: xattrs("user.big", strings.Repeat("v", 3000))},
			member{name: "é", pax: xattrs("user.ü", "ö")}), plain: true},
		{
			name: "attributes that go", layer: archive(member{name: "xo", body: "x", pax: xattrs("user.ostreemeta", "evil", "trusted.overlay.opaque", "y", "security.selinux", "system_u:object_r:x\x00",
				"user.overlay.opaque", "y", "user.overlay.", "y", "system.posix_acl_access", "\x02\x00\x00\x00", "trusted.x", "y", "user.", "nothing", "security.ima", "x", "user.kept", "1")},
				member{name: "bad", pax: xattrs("security.capability", "junk")}, member{name: "short", pax: xattrs("security.capability", capV2[:19])},
				member{name: "v3zero", pax: xattrs("security.capability", capV3+"\x00\x00\x00\x00")}, member{name: "v1", pax: xattrs("security.capability", "\x01\x00\x00\x01\x00\x20\x00\x00\x00\x00\x00\x00")},
				member{name: "s", flag: '2', link: "x", pax: xattrs("user.a", "1")}),
			want: []string{
				"-00644 0 0 0 /bad", "l00777 0 0 0 /s -> x", "-00644 0 0 0 /short", "-00644 0 0 0 /v1",
				"-00644 0 0 0 { [(b'security.capability', [byte 0x01, 0x00, 0x00, 0x02, 0x00, 0x20, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00])] } /v3zero",
				"-00644 0 0 1 { [(b'user.kept', [byte 0x31])] } /xo",
			},
		},
		{
			name: "attributes of a hard link", layer: archive(file("ha", "x"), member{name: "hb", flag: '1', link: "ha", mode: 0o4711, uid: 9, pax: xattrs("user.a", "1")}),
			want: []string{"-00644 0 0 1 /ha", "-00644 0 0 1 /hb"},
		},
		{
			name: "attribute with a percent sign", layer: archive(member{name: "pc", pax: xattrs("user.a%3Db", "1", "user.c%25", "2", "user.d%", "3", "user.e%41", "4")}),
			want: []string{"-00644 0 0 0 { [(b'user.a%3Db', [byte 0x31]), (b'user.c%25', [0x32]), (b'user.d%', [0x33]), (b'user.e%41', [0x34])] } /pc"},
		},

		// Links.
		{name: "hard link to a hard link", layer: archive(file("a", "hh"), hard("b", "a"), hard("c", "b"), hard("d", "c")), plain: true},
		{name: "hard link to a symbolic link", layer: archive(file("a", "hs"), soft("s", "a"), hard("t", "s"), hard("u", "t"), soft("v", "/none"), hard("w", "v")), plain: true},
		{name: "hard link to what is overwritten", layer: archive(file("a", "old"), hard("b", "a"), file("a", "new, longer")), plain: true, inexact: true},
		{name: "hard link overwritten", layer: archive(file("a", "old2"), hard("b", "a"), file("b", "own")), plain: true, inexact: true},
		{name: "hard link to itself", layer: archive(file("a", "self"), hard("a", "a")), plain: true, inexact: true},
		{name: "hard link twice", layer: archive(file("a", "twice"), hard("b", "a"), hard("b", "a")), plain: true, inexact: true},
		{name: "hard link moved", layer: archive(file("a", "1"), file("b", "22"), hard("c", "a"), hard("c", "b")), plain: true, inexact: true},
		{name: "first name replaced", layer: archive(file("z", "first"), hard("m", "z"), hard("a", "z"), file("z", "second")), plain: true, inexact: true},
		{name: "chain cut", layer: archive(file("a", "1"), hard("b", "a"), hard("c", "b"), file("b", "2"), file("a", "3")), plain: true, inexact: true},
		{name: "hard link over a file", layer: archive(file("a", "1"), file("b", "22"), hard("b", "a")), plain: true, inexact: true},
		{name: "hard link forward", layer: archive(hard("a", "b"), file("b", "forward")), want: []string{"-00644 0 0 0 /a", "-00644 0 0 7 /b"}, inexact: true},
		{name: "hard link to nothing", layer: archive(member{name: "a", flag: '1', link: "lower/file", mode: 0o4755, uid: 5}), want: []string{"-04755 5 0 0 /a"}, inexact: true},
		{name: "hard link to itself, alone", layer: archive(hard("a", "a")), want: []string{"-00644 0 0 0 /a"}, inexact: true},
		{name: "hard link to a device", layer: archive(special("null", '3'), hard("also", "null"), hard("more", "also")), plain: true},
		{
			name: "hard link through a symbolic link", layer: archive(dir("d"), file("d/f", "x"), soft("s", "d"), hard("h", "s/f")),
			want: []string{"d00755 0 0 /d", "-00644 0 0 1 /d/f", "-00644 0 0 1 /h", "l00777 0 0 0 /s -> d"}, inexact: true,
		},

		// Names that come twice: the last one stays.
		{name: "file, file", layer: archive(file("f", "old"), file("f", "new")), plain: true, inexact: true},
		{name: "file, file of another name", layer: archive(file("f", "old"), file("./f", "newer"), file("/f", "newest")), plain: true, inexact: true},
		{name: "file, empty file", layer: archive(file("f", "old"), file("f", "")), plain: true, inexact: true},
		{name: "directory, directory", layer: archive(dir("d"), file("d/f", "x"), member{name: "d/", flag: '5', mode: 0o700, uid: 5}, file("d/g", "y")), plain: true, inexact: true},
		{name: "directory, file", layer: archive(dir("d"), file("d", "now a file")), plain: true, inexact: true},
		{name: "full directory, file", layer: archive(dir("d"), file("d/f", "x"), file("d", "now a file")), want: []string{"-00644 0 0 10 /d"}, inexact: true},
		{name: "file, directory", layer: archive(file("d", "x"), dir("d"), file("d/f", "y")), plain: true, inexact: true},
		{
			name: "file, directory that nobody names", layer: archive(file("d", "x"), file("d", ""), soft("d", "e"), file("d/f", "y")),
			want: []string{"l00777 0 0 0 /d -> e", "d00755 0 0 /e", "-00644 0 0 1 /e/f"}, inexact: true,
		},
		{name: "directory, symbolic link", layer: archive(dir("d"), file("d/f", "x"), dir("e"), soft("d", "e")), want: []string{"l00777 0 0 0 /d -> e", "d00755 0 0 /e"}, inexact: true},
		{
			name: "symbolic link, directory", layer: archive(soft("d", "e"), dir("e"), member{name: "d", flag: '5', mode: 0o700}, file("d/f", "x")),
			want: []string{"d00700 0 0 /d", "-00644 0 0 1 /d/f", "d00755 0 0 /e"}, inexact: true,
		},
		{name: "symbolic link, symbolic link", layer: archive(soft("s", "a"), soft("s", "b")), plain: true, inexact: true},
		{name: "symbolic link, file", layer: archive(soft("s", "a"), file("a", "1"), file("s", "2")), plain: true, inexact: true},
		{name: "absolute symbolic link, file", layer: archive(soft("s", "/a"), file("s", "2")), want: []string{"-00644 0 0 1 /s"}, inexact: true},
		{name: "file, symbolic link", layer: archive(file("s", "1"), soft("s", "a")), plain: true, inexact: true},
		{name: "file, device", layer: archive(file("f", "1"), special("f", '3')), plain: true, inexact: true},
		{name: "device, file", layer: archive(special("f", '3'), file("f", "1")), plain: true, inexact: true},
		{name: "directory, device", layer: archive(dir("f"), special("f", '6')), plain: true, inexact: true},
		{name: "device, directory", layer: archive(special("f", '6'), dir("f"), file("f/g", "x")), plain: true, inexact: true},
		{name: "file, file, links", layer: archive(file("f", "1"), hard("g", "f"), soft("h", "f"), file("f", "2"), hard("g", "f")), plain: true, inexact: true},
		{name: "whiteout twice", layer: archive(file(".wh.x", ""), file(".wh.x", "")), plain: true, inexact: true},

		// Files through links of the same layer.
		{
			name: "through a link", layer: archive(dir("d"), soft("s", "d"), file("s/f", "x"), file("s/g/h", "y")),
			want: []string{"d00755 0 0 /d", "-00644 0 0 1 /d/f", "d00755 0 0 /d/g", "-00644 0 0 1 /d/g/h", "l00777 0 0 0 /s -> d"}, inexact: true,
		},
		{
			name: "through an absolute link", layer: archive(dir("d"), soft("s", "/d"), file("s/f", "x")),
			want: []string{"d00755 0 0 /d", "-00644 0 0 1 /d/f", "l00777 0 0 0 /s -> /d"}, inexact: true,
		},
		{
			name: "through a link that leads out", layer: archive(soft("s", "../../../../tmp"), file("s/evil", "x")),
			want: []string{"l00777 0 0 0 /s -> ../../../../tmp", "d00755 0 0 /tmp", "-00644 0 0 1 /tmp/evil"}, inexact: true,
		},
		{
			name: "through two links", layer: archive(soft("a/b", "../c"), soft("c", "d/e"), file("a/b/f", "x")),
			want: []string{"d00755 0 0 /a", "l00777 0 0 0 /a/b -> ../c", "l00777 0 0 0 /c -> d/e", "d00755 0 0 /d", "d00755 0 0 /d/e", "-00644 0 0 1 /d/e/f"}, inexact: true,
		},
		{name: "device through a link", layer: archive(dir("d"), soft("s", "d"), special("s/null", '3')), want: []string{"d00755 0 0 /d", "l00777 0 0 0 /s -> d"}, inexact: true},
		{name: "unreadable directories", layer: archive(member{name: "u", flag: '5', mode: 0o100}, member{name: "u/v", flag: '5', mode: -1}, file("u/v/f", "x"), soft("u/v/s", "f"),
			member{name: "u/w", flag: '5', mode: 0o333}, member{name: "u/w/g", mode: -1, body: "y"}), plain: true},

		// What is refused.
		{name: "loop", layer: archive(soft("a", "b"), soft("b", "a"), file("a/f", "x")), refused: `placing "a/f": "a" leads through more than 40 symbolic links`},
		{name: "below a file", layer: archive(file("a", "x"), file("a/b", "y")), refused: `placing "a/b": "a" lies below a file`},
		{name: "below a device", layer: archive(special("a", '3'), file("a/b", "y")), refused: `placing "a/b": "a" lies below a file`},
		{name: "hard link to a directory", layer: archive(dir("d"), hard("h", "d")), refused: `the hard link "h" leads to the directory "d"`},
		{name: "hard link below a file", layer: archive(file("f", "x"), hard("h", "f/g")), refused: `the hard link "h": "f" lies below a file`},
		{name: "dot dot", layer: archive(file("../evil", "x")), refused: `the file name "../evil" leads out of the layer with ".."`},
		{name: "dot dot later", layer: archive(dir("a"), file("a/../../b", "x")), refused: `the file name "a/../../b" leads out of the layer with ".."`},
		{name: "absolute dot dot", layer: archive(file("/../b", "x")), refused: `the file name "/../b" leads out of the layer with ".."`},
		{name: "hard link dot dot later", layer: archive(file("b", "x"), hard("h", "a/../../b")), refused: `the hard link "h": the file name "a/../../b" leads out of the layer with ".."`},
		{name: "hard link dot dot", layer: archive(hard("h", "../../etc/passwd")), refused: `the hard link "h": the file name "../../etc/passwd" leads out of the layer with ".."`},
		{name: "device dot dot", layer: archive(special("../null", '3')), refused: `the file name "../null" leads out of the layer with ".."`},
		{name: "file without a name", layer: archive(file("", "x")), refused: `a file has no name`},
		{name: "hard link to no name", layer: archive(hard("h", "")), refused: `the hard link "h" has no target`},
		{name: "symbolic link to no name", layer: archive(soft("s", "")), refused: `the symbolic link "s" has no target`},
		{name: "root as a file", layer: archive(file("./", "x"), file(".", "y")), refused: `"." is the layer's root, which must be a directory`},
		{name: "root as a link", layer: archive(soft("/", "x")), refused: `"/" is the layer's root, which must be a directory`},
		{name: "hard link to the root", layer: archive(hard("h", ".")), refused: `the hard link "h" leads to the directory ""`},
		{name: "name not UTF-8", layer: archive(file("bad-\xff", "x")), refused: `the file name "bad-\xff" is not UTF-8, and OSTree holds no other`},
		{name: "name not UTF-8, surrogate", layer: archive(file("\xed\xa0\x80", "x")), refused: `the file name "\xed\xa0\x80" is not UTF-8, and OSTree holds no other`},
		{name: "name not UTF-8, overlong", layer: archive(file("\xc0\xaf", "x")), refused: `the file name "\xc0\xaf" is not UTF-8, and OSTree holds no other`},
		{name: "target not UTF-8", layer: archive(soft("s", "bad-\xff")), refused: `the target "bad-\xff" of the symbolic link "s" is not UTF-8, and OSTree holds no other`},
		{name: "hard link not UTF-8", layer: archive(hard("h", "\xff")), refused: `the hard link "h": the file name "\xff" is not UTF-8, and OSTree holds no other`},
		{
			name: "part too long", layer: archive(file("d/"+name255+"n", "x")),
			refused: `the file name "d/` + name255[:78] + `"… has a part of 256 bytes, and 255 is the most`,
		},
		{
			name: "path too long", layer: archive(file(strings.Repeat(name255+"/", 16)+"f", "x")),
			refused: `the file name "` + name255[:80] + `"… has 4097 bytes, and 4095 is the most`,
		},
		{name: "target too long", layer: archive(soft("s", strings.Repeat("s", 4096))), refused: `the target of the symbolic link "s" has 4096 bytes, and 4095 is the most`},
		{name: "nobody's", layer: archive(member{name: "f", uid: 1<<32 - 1}), refused: `"f" belongs to 4294967295:0, which no user or group can be`},
		{name: "negative owner", layer: archive(member{name: "f", gid: -1}), refused: `"f" belongs to 0:-1, which no user or group can be`},
		{name: "another volume's", layer: archive(member{name: "m", flag: 'M', body: "x"}), refused: `"m" continues a file of another archive`},
		{name: "text", layer: []byte(strings.Repeat("this is no tar archive\n", 100)), refused: "not a tar archive"},
		{name: "short text", layer: []byte("hello\n"), refused: "not a tar archive"},
		{name: "bad checksum", layer: corrupt(archive(file("a", "x"), file("b", "y")), 1024+10), refused: "not a tar archive after its entry 1"},
		{name: "junk between", layer: append(append(unended(file("a", "x")), bytes.Repeat([]byte("junk"), 128)...), archive(file("b", "y"))...), refused: "not a tar archive after its entry 1"},
		{name: "cut in a payload", layer: archive(file("a", "x"), file("b", bigBody))[:20000], refused: "the tar archive breaks off in its entry 2"},
		{name: "cut in a header", layer: archive(file("a", "x"), file("b", "y"))[:1224], refused: "the tar archive breaks off in its entry 2"},
		{name: "end in the middle", layer: append(append(unended(file("a", "x")), make([]byte, 512)...), archive(file("b", "y"))...), refused: "not a tar archive after its entry 1"},
	}
	for _, s := range []struct{ name, option, version string }{
		{"old gnu", "--format=gnu", ""}, {"pax 0.0", "--format=pax", "0.0"}, {"pax 0.1", "--format=pax", "0.1"}, {"pax 1.0", "--format=pax", "1.0"},
	} {
		options := []string{"--sparse", s.option, "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "--sort=name"}
		if s.version != "" {
			options = append(options, "--sparse-version="+s.version, "--pax-option=exthdr.name=%d/x/%f,delete=atime,delete=ctime")
		}
		layers = append(layers, oddLayer{name: "sparse, " + s.name, layer: sparseLayer(t, options...), plain: true, inexact: true})
	}
	return layers
}

func v7Dir(name string) []byte {
	b := unended(member{name: name, mode: 0o700, format: "v7"})
	// A file by its type, a directory by its name.
	b[156] = 0
	return fixChecksum(b)
}

func base256Size(name, body string) []byte {
	b := unended(member{name: name, body: body, format: "gnu"})
	copy(b[124:136], make([]byte, 12))
	b[124], b[135] = 0x80, byte(len(body))
	return fixChecksum(b)
}

func fixChecksum(b []byte) []byte {
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

func corrupt(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 1
	return b
}

// sparseLayer is an archive of files with holes, as GNU tar makes it.
func sparseLayer(t testing.TB, options ...string) []byte {
	t.Helper()
	testutil.NeedTools(t, "tar")
	d := t.TempDir()
	for name, at := range map[string][]int64{"holes": {0, 1 << 20, 3 << 20}, "begins-with-a-hole": {2 << 20}, "many": {0, 1 << 16, 2 << 16, 3 << 16, 4 << 16, 5 << 16, 6 << 16, 7 << 16, 8 << 16}} {
		f, err := os.Create(filepath.Join(d, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range at {
			if _, err := f.WriteAt([]byte("data"), a); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Truncate(at[len(at)-1] + 100000); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(f.Name(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("tar", append(options, "--hole-detection=raw", "-C", d, "-cf", "-", "begins-with-a-hole", "holes", "many")...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C.UTF-8"}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}
