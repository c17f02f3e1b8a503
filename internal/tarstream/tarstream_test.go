package tarstream

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"ostree-image/internal/testutil"

	"github.com/pkg/errors"
)

// capability is that of /usr/bin/ping: cap_net_raw, effective and permitted.
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

var longDir = strings.Repeat("directory-", 20) + "end"

var entries = []Entry{
	{Name: "", Kind: Dir, Mode: 0o755},
	{Name: "d", Kind: Dir, Mode: 0o1777, UID: 5, GID: 6},
	{Name: "d/f", Kind: File, Mode: 0o4755, Size: 5},
	{Name: "empty", Kind: File, Mode: 0o600},
	{Name: "block", Kind: File, Mode: 0o644, Size: 512},
	{Name: "mode0", Kind: File, Mode: 0, Size: 513},
	{Name: "hard", Kind: HardLink, Link: "d/f", Mode: 0o4755},
	{Name: "soft", Kind: Symlink, Link: "../anywhere", Mode: 0o777},
	{Name: "dangling", Kind: Symlink, Link: strings.Repeat("x/", 2000), Mode: 0o777},
	{Name: strings.Repeat("n", 98), Kind: File, Mode: 0o644},  // "./" and this: 100 bytes, which still fit
	{Name: strings.Repeat("n", 99), Kind: File, Mode: 0o644},  // 101
	{Name: strings.Repeat("d", 97), Kind: Dir, Mode: 0o755},   // "./" and "/": 100
	{Name: strings.Repeat("d", 98), Kind: Dir, Mode: 0o755},   // 101
	{Name: strings.Repeat("n", 255), Kind: File, Mode: 0o644}, // the longest name of a file
	{Name: longDir, Kind: Dir, Mode: 0o755},
	{Name: longDir + "/" + longDir, Kind: Dir, Mode: 0o755},
	{Name: longDir + "/" + longDir + "/file", Kind: File, Mode: 0o644, Size: 3},
	{Name: "hard-long", Kind: HardLink, Link: longDir + "/" + longDir + "/file", Mode: 0o644},
	{Name: "soft100", Kind: Symlink, Link: strings.Repeat("t", 100), Mode: 0o777},
	{Name: "soft101", Kind: Symlink, Link: strings.Repeat("t", 101), Mode: 0o777},
	{Name: "größe/Ω", Kind: File, Mode: 0o644, Size: 1},
	{Name: "größe", Kind: Dir, Mode: 0o700},
	{Name: "NFC-\u00e9", Kind: File, Mode: 0o644, Size: 1},
	{Name: "NFD-e\u0301", Kind: File, Mode: 0o644, Size: 2},
	{Name: "soft-ü", Kind: Symlink, Link: "größe/Ω", Mode: 0o777},
	{Name: "soft-nfd", Kind: Symlink, Link: "NFD-e\u0301", Mode: 0o777},
	{Name: "hard-ü", Kind: HardLink, Link: "größe/Ω", Mode: 0o644},
	{Name: "hard-nfd", Kind: HardLink, Link: "NFD-e\u0301", Mode: 0o644},
	{Name: longDir + "/e\u0301", Kind: File, Mode: 0o644, Size: 3},
	{Name: longDir + "/\u00e9", Kind: File, Mode: 0o644, Size: 4},
	{Name: "soft-long-nfd", Kind: Symlink, Link: longDir + "/e\u0301", Mode: 0o777},
	{Name: "hard-long-nfd", Kind: HardLink, Link: longDir + "/e\u0301", Mode: 0o644},
	{Name: "new\nline\ttab\\back 'quote\" ", Kind: File, Mode: 0o644},
	{Name: "-dash", Kind: File, Mode: 0o644},
	{Name: "😀", Kind: File, Mode: 0o644},
	{Name: "uid21", Kind: File, Mode: 0o644, UID: 1<<21 - 1, GID: 1<<21 - 1},
	{Name: "uid22", Kind: File, Mode: 0o644, UID: 1 << 21, GID: 1 << 21},
	{Name: "uid31", Kind: Dir, Mode: 0o755, UID: 1<<31 + 5, GID: 1<<31 + 6},
	{Name: "uid32", Kind: File, Mode: 0o644, UID: 1<<32 - 2, GID: 1<<32 - 2},
	{Name: "x1", Kind: File, Mode: 0o644, Xattrs: map[string]string{"user.a": "1"}},
	{Name: "x3", Kind: File, Mode: 0o644, Xattrs: map[string]string{"user.b": "2", "user.a": "1", "user.c": "3\n\x00=\xff"}},
	{
		Name: "x5", Kind: Dir, Mode: 0o755,
		Xattrs: map[string]string{"user.zz": "1", "user.m": "2", "user.B": "3", "user.é": "4", "user.mm": strings.Repeat("v", 900)},
	},
	{Name: "cap", Kind: File, Mode: 0o755, Xattrs: map[string]string{"security.capability": capability, "user.z": "1", "user.a": "2"}},
}

// payload is what a file of these tests holds.
func payload(e Entry) []byte {
	return bytes.Repeat([]byte(e.Name+"\x00"), int(e.Size)/(len(e.Name)+1)+1)[:e.Size]
}

func write(t testing.TB, entries ...Entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := NewWriter(&b)
	for _, e := range entries {
		if err := w.WriteEntry(e); err != nil {
			t.Fatalf("%q: %v", e.Name, err)
		}
		if e.Kind != File {
			continue
		}
		for c := range slices.Chunk(payload(e), 100) {
			if _, err := w.Write(c); err != nil {
				t.Fatalf("%q: %v", e.Name, err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// memberName is how an entry is called in the stream.
func memberName(e Entry) string {
	if e.Kind == Dir && e.Name != "" {
		return "./" + e.Name + "/"
	}
	return "./" + e.Name
}

func TestArchiveTarReadsItBack(t *testing.T) {
	stream := write(t, entries...)
	if len(stream)%blockSize != 0 {
		t.Errorf("%d bytes are no whole blocks", len(stream))
	}
	r := tar.NewReader(bytes.NewReader(stream))
	for _, e := range entries {
		hdr, err := r.Next()
		if err != nil {
			t.Fatalf("%q: %v", e.Name, err)
		}
		got := Entry{Kind: Kind(hdr.Typeflag), Mode: uint32(hdr.Mode), UID: uint32(hdr.Uid), GID: uint32(hdr.Gid), Size: hdr.Size, Link: hdr.Linkname}
		for k, v := range hdr.PAXRecords {
			if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
				if got.Xattrs == nil {
					got.Xattrs = map[string]string{}
				}
				got.Xattrs[name] = v
			}
		}
		want := e
		want.Name = ""
		if !reflect.DeepEqual(got, want) || hdr.Name != memberName(e) {
			t.Errorf("%q:\n got %q %+v\nwant %q %+v", e.Name, hdr.Name, got, memberName(e), want)
		}
		if !hdr.ModTime.Equal(time.Unix(0, 0)) || hdr.Uname+hdr.Gname != "" {
			t.Errorf("%q: time %s, owner %q:%q; want none", e.Name, hdr.ModTime, hdr.Uname, hdr.Gname)
		}
		content, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(content, payload(e)) && e.Kind == File {
			t.Errorf("%q: payload %.40q, %v; want %.40q", e.Name, content, err, payload(e))
		}
	}
	if _, err := r.Next(); err != io.EOF {
		t.Errorf("at the end: %v, want EOF", err)
	}
}

func TestTarListsIt(t *testing.T) {
	testutil.NeedTools(t, "tar")
	plain := slices.DeleteFunc(slices.Clone(entries), func(e Entry) bool { return strings.ContainsAny(e.Name, "\n\\") })
	cmd := exec.Command("tar", "--warning=no-unknown-keyword", "--quoting-style=literal", "--numeric-owner", "--utc", "--full-time", "-tvf", "-")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C.UTF-8"}
	cmd.Stdin = bytes.NewReader(write(t, plain...))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || stderr.String() != "" {
		t.Fatalf("tar: %v: %s", err, &stderr)
	}
	lines := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	if len(lines) != len(plain) {
		t.Fatalf("tar lists %d members, want %d", len(lines), len(plain))
	}
	for i, e := range plain {
		want := modeText(e) + " " + fmt.Sprintf("%d/%d", e.UID, e.GID) + " " + fmt.Sprint(e.Size) + " 1970-01-01 00:00:00 " + memberName(e)
		switch e.Kind {
		case Symlink:
			want += " -> " + e.Link
		case HardLink:
			want += " link to " + e.Link
		}
		// The first blanks align columns.
		f := strings.SplitN(lines[i], " ", 3)
		if got := f[0] + " " + f[1] + " " + strings.TrimLeft(f[2], " "); got != want {
			t.Errorf("tar lists\n%q, want\n%q", got, want)
		}
	}
}

func modeText(e Entry) string {
	text := []byte(map[Kind]string{File: "-", HardLink: "h", Symlink: "l", Dir: "d"}[e.Kind] + "rwxrwxrwx")
	for i := range 9 {
		if e.Mode&(1<<(8-i)) == 0 {
			text[i+1] = '-'
		}
	}
	for i, c := range []struct {
		bit  uint32
		sets byte
	}{{0o4000, 's'}, {0o2000, 's'}, {0o1000, 't'}} {
		if e.Mode&c.bit != 0 {
			text[3*i+3] = c.sets
		}
	}
	return string(text)
}

func TestOSTreeCommitsIt(t *testing.T) {
	testutil.NeedTools(t, "ostree")
	for _, mode := range []string{"bare", "bare-user", "archive"} {
		t.Run(mode, func(t *testing.T) {
			if mode == "bare" && os.Geteuid() != 0 {
				testutil.Skip(t, "a bare repository with many owners takes root")
			}
			repo := newRepo(t, mode)
			commit(t, repo, write(t, entries...))
			ostree(t, nil, "fsck", "--quiet", "--repo="+repo)
			checkTree(t, repo, entries)
		})
	}
}

// checkTree compares what ostree lists with the entries.
func checkTree(t *testing.T, repo string, entries []Entry) {
	t.Helper()
	want := map[string]string{}
	byName := map[string]Entry{}
	for _, e := range entries {
		byName[e.Name] = e
	}
	for _, e := range entries {
		link := ""
		switch e.Kind {
		case Symlink:
			link = " -> " + e.Link
		case HardLink:
			target := byName[e.Link]
			target.Name = e.Name
			e = target
		}
		typ := map[Kind]string{File: "-", Symlink: "l", Dir: "d"}[e.Kind]
		want["/"+e.Name] = fmt.Sprintf("%s%05o %d %d %d %s", typ, e.Mode, e.UID, e.GID, e.Size, xattrText(e.Xattrs)) + link
	}
	got := map[string]string{}
	for line := range strings.Lines(listing(ostree(t, nil, "ls", "-R", "-X", "--repo="+repo, "test/ref"))) {
		f := fields.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if f == nil {
			t.Fatalf("ostree lists %q", line)
		}
		f[5] = strings.ReplaceAll(f[5], "byte ", "")
		name, link, isLink := strings.Cut(f[6], " -> ")
		if isLink {
			link = " -> " + link
		}
		got[strings.ReplaceAll(name, "\x01", "\n")] = fmt.Sprintf("%s %s %s %s %s%s", f[1], f[2], f[3], f[4], f[5], link)
	}
	if !maps.Equal(got, want) {
		for _, name := range slices.Sorted(maps.Keys(want)) {
			if got[name] != want[name] {
				t.Errorf("%.60q:\n got %q\nwant %q", name, got[name], want[name])
			}
			delete(got, name)
		}
		for name := range got {
			t.Errorf("%q is there and should not be", name)
		}
	}
}

func TestXattrsInAnyOrder(t *testing.T) {
	testutil.NeedTools(t, "ostree")
	if os.Geteuid() != 0 {
		testutil.Skip(t, "security.capability takes root")
	}
	names := []string{"user.a", "security.capability", "user.b"}
	repo := newRepo(t, "bare")
	sums := map[string]bool{}
	for range 6 { // whatever the order of the map
		xattrs := map[string]string{}
		names = append(names[1:], names[0])
		for _, n := range names {
			xattrs[n] = capability
		}
		sums[commit(t, repo, write(t, Entry{Name: "f", Kind: File, Mode: 0o755, Xattrs: xattrs}))] = true
	}
	if len(sums) != 1 {
		t.Errorf("%d commits, want 1", len(sums))
	}
	ostree(t, nil, "fsck", "--quiet", "--repo="+repo)
}

func TestPayloadMustFit(t *testing.T) {
	file := Entry{Name: "f", Kind: File, Size: 3}
	tests := []struct {
		name    string
		entries []Entry
		payload string
		wantErr string
	}{
		{"exact", []Entry{file}, "abc", ""},
		{"none", []Entry{file}, "", "tar stream: 3 bytes of payload are missing"},
		{"short", []Entry{file}, "ab", "tar stream: 1 bytes of payload are missing"},
		{"long", []Entry{file}, "abcd", "tar stream: more payload than the entry has"},
		{"before any entry", nil, "a", "tar stream: more payload than the entry has"},
		{"of a directory", []Entry{{Name: "d", Kind: Dir}}, "a", "tar stream: more payload than the entry has"},
		{"an entry in a payload", []Entry{file, file}, "", "tar stream: 3 bytes of payload are missing"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := NewWriter(io.Discard)
			var err error
			keep := func(e error) {
				if err == nil {
					err = e
				}
			}
			for _, e := range tt.entries {
				keep(w.WriteEntry(e))
			}
			if tt.payload != "" {
				_, werr := w.Write([]byte(tt.payload))
				keep(werr)
			}
			keep(w.Close())
			if got := testutil.ErrText(err); got != tt.wantErr {
				t.Errorf("error %q, want %q", got, tt.wantErr)
			}
			if err == nil {
				return
			}
			// An error stays: a stream that went wrong is never ended as if it were whole.
			if got := testutil.ErrText(w.Close()); got != tt.wantErr {
				t.Errorf("error of a second Close %q, want %q", got, tt.wantErr)
			}
			if got := testutil.ErrText(w.WriteEntry(Entry{Name: "d", Kind: Dir})); got != tt.wantErr {
				t.Errorf("error of a later entry %q, want %q", got, tt.wantErr)
			}
		})
	}
}

type brokenWriter struct{ left int }

var errBroken = errors.New("the reader is gone")

func (b *brokenWriter) Write(p []byte) (int, error) {
	if b.left -= len(p); b.left < 0 {
		return 0, errBroken
	}
	return len(p), nil
}

func TestErrorsOfTheStreamBelow(t *testing.T) {
	whole := len(write(t, entries[:3]...))
	for left := 0; left < whole; left += 256 {
		w := NewWriter(&brokenWriter{left})
		var err error
		for _, e := range entries[:3] {
			if err == nil {
				err = w.WriteEntry(e)
			}
			if err == nil && e.Size > 0 {
				_, err = w.Write(payload(e))
			}
		}
		if err == nil {
			err = w.Close()
		}
		if !errors.Is(err, errBroken) {
			t.Errorf("after %d bytes: %v, want %v", left, err, errBroken)
		}
	}
}

func TestLargeSize(t *testing.T) {
	for _, size := range []int64{1<<33 - 1, 1 << 33, 1 << 42} {
		var b bytes.Buffer
		if err := NewWriter(&b).WriteEntry(Entry{Name: "f", Kind: File, Size: size}); err != nil {
			t.Fatal(err)
		}
		hdr, err := tar.NewReader(&b).Next()
		if err != nil || hdr.Size != size {
			t.Errorf("size %d, %v; want %d", hdr.Size, err, size)
		}
	}
}

func FuzzRecordLength(f *testing.F) {
	for _, n := range []int{0, 1, 5, 6, 7, 85, 86, 87, 88, 980, 985, 986, 987, 988, 9980, 9983, 9984, 9985, 99980} {
		f.Add(n)
	}
	f.Fuzz(func(t *testing.T, n int) {
		if n < 0 || n > 200000 {
			t.Skip("no such value")
		}
		w := NewWriter(io.Discard)
		w.record("k", strings.Repeat("v", n))
		var length int
		if _, err := fmt.Sscanf(string(w.pax), "%d ", &length); err != nil || length != len(w.pax) {
			t.Errorf("a record of %d bytes says %d", len(w.pax), length)
		}
	})
}
