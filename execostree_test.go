package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/pkg/errors"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/testutil"
)

const (
	sumA = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	sumB = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

var parseCommitTests = []struct {
	name    string
	text    string
	want    commitInfo
	wantErr string
}{
	{
		"own", "commit " + sumA + "\n({'docker.size': <'5'>, 'ostree.ref-binding': <['x']>, 'it\\'s': <'b\"c'>}, @ay [], @a(say) [], '', '', uint64 7, [byte 0xaa, 0x01], [byte 0xbb, 0x02])\n",
		commitInfo{metadata: map[string]string{"docker.size": "5", "it's": `b"c`}, timestamp: 7, root: "aa01", rootMeta: "bb02"},
		"",
	},
	{
		"no metadata", "commit " + sumA + "\n(@a{sv} {}, [byte 0x00, 0x00], @a(say) [], 'subject', 'body', uint64 18446744073709551615, [byte 0xaa], [byte 0xbb])",
		commitInfo{metadata: map[string]string{}, timestamp: 1<<64 - 1, root: "aa", rootMeta: "bb"},
		"",
	},
	{"empty", "", commitInfo{}, `not a commit: ""`},
	{"other object", "dirtree " + sumA + "\n()", commitInfo{}, `not a commit: "dirtree aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"`},
	{"no body", "commit " + sumA, commitInfo{}, "GVariant text, byte 0: a value is missing"},
	{"too few fields", "commit " + sumA + "\n({}, @ay [])", commitInfo{}, "not a commit object"},
	{"no tuple", "commit " + sumA + "\n'a'", commitInfo{}, "not a commit object"},
	{"wrong time", "commit " + sumA + "\n(@a{sv} {}, @ay [], @a(say) [], '', '', 'now', [byte 0xaa], [byte 0xbb])", commitInfo{}, "not a commit object"},
	{"wrong root", "commit " + sumA + "\n(@a{sv} {}, @ay [], @a(say) [], '', '', uint64 7, 'a', [byte 0xbb])", commitInfo{}, "not a commit object"},
	{"cut", "commit " + sumA + "\n(@a{sv} {}, @ay [], @a(sa", commitInfo{}, "GVariant text, byte 20: a type has no value"},
}

func TestParseCommit(t *testing.T) {
	for _, tt := range parseCommitTests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseCommit(tt.text)
			testutil.SameText(t, "error", testutil.ErrText(err), tt.wantErr)
			if err == nil && (!maps.Equal(got.metadata, tt.want.metadata) || got.timestamp != tt.want.timestamp || got.root != tt.want.root ||
				got.rootMeta != tt.want.rootMeta) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func FuzzParseCommit(f *testing.F) {
	for _, tt := range parseCommitTests {
		f.Add(tt.text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		info, err := parseCommit(text)
		if err == nil && info.metadata == nil {
			t.Errorf("%q: no error and no commit", text)
		}
	})
}

func TestParseOSTreeVersion(t *testing.T) {
	tests := []struct {
		name, text, version, features, wantErr string
	}{
		{"debian 12", "libostree:\n Version: '2022.7'\n Features:\n  - libcurl\n  - libarchive\n", "2022.7", "libcurl libarchive", ""},
		{"with git", "libostree:\n Version: '2025.2.1+git'\n Git: abc\n Features:\n  - gpgme\n", "2025.2.1", "gpgme", ""},
		{"no features", "libostree:\n Version: '2022.7'\n", "2022.7", "", ""},
		{"empty", "", "", "", `it answers "", which is not what ostree says`},
		{"other program", "tar (GNU tar) 1.34\n", "", "", `it answers "tar (GNU tar) 1.34\n", which is not what ostree says`},
		{"no number", "libostree:\n Version: 'none'\n", "", "", `it answers "libostree:\n Version: 'none'\n", which is not what ostree says`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := parseOSTreeVersion(tt.text)
			testutil.SameText(t, "error", testutil.ErrText(err), tt.wantErr)
			testutil.SameText(t, "version", f.version, tt.version)
			testutil.SameText(t, "features", strings.Join(f.features, " "), tt.features)
		})
	}
}

func TestCompareVersions(t *testing.T) {
	ascending := []string{"", "1", "1.26", "1.27", "1.27.1", "1.34", "2021.6", "2022.7", "2022.10", "2023.1", "2100"}
	for i, a := range ascending {
		for j, b := range ascending {
			if got := compareVersions(a, b); (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("%q and %q: %d", a, b, got)
			}
		}
	}
	for _, same := range [][2]string{{"2022.7", "2022.7.0"}, {"1", "1.0.0"}, {"1.07", "1.7"}} {
		if got := compareVersions(same[0], same[1]); got != 0 {
			t.Errorf("%q and %q: %d", same[0], same[1], got)
		}
	}
}

func TestVersionsOfTools(t *testing.T) {
	tests := []struct {
		name        string
		ostree, tar testutil.FakeRule
		ostreeErr   string
		tarErr      string
	}{
		{
			"new enough", testutil.FakeRule{Stdout: "libostree:\n Version: '2022.7'\n"}, testutil.FakeRule{Stdout: "tar (GNU tar) 1.27\nCopyright\n"}, "", "",
		},
		{
			"too old",
			testutil.FakeRule{Stdout: "libostree:\n Version: '2021.6'\n"},
			testutil.FakeRule{Stdout: "tar (GNU tar) 1.26\n"},
			"OSTREE: version 2021.6 is too old: install the package ostree (libostree 2022.7 or newer), or name the program with --ostree",
			"TAR: version 1.26 is too old: install GNU tar (the package tar), or name the program with --tar",
		},
		{
			"other programs",
			testutil.FakeRule{Stdout: "hello\n"},
			testutil.FakeRule{Stdout: "bsdtar 3.6.2 - libarchive 3.6.2\n"},
			`asking OSTREE for its version: it answers "hello\n", which is not what ostree says`,
			"TAR: not GNU tar: install GNU tar (the package tar), or name the program with --tar",
		},
		{
			"failing",
			testutil.FakeRule{Stderr: "what?\n", Exit: 3},
			testutil.FakeRule{Stderr: "error: no\n", Exit: 1},
			"OSTREE: exit status 3: what?", "TAR: exit status 1: no",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ostree, tar := testutil.FakeTool(t, "", tt.ostree), testutil.FakeTool(t, "", tt.tar)
			r := newRunner(ostree, tar, 0, &journal{})
			_, err := ostreeVersion(t.Context(), r)
			testutil.SameText(t, "error of ostree", strings.ReplaceAll(testutil.ErrText(err), ostree, "OSTREE"), tt.ostreeErr)
			_, err = tarVersion(t.Context(), r)
			testutil.SameText(t, "error of tar", strings.ReplaceAll(testutil.ErrText(err), tar, "TAR"), tt.tarErr)
		})
	}
}

func TestStrictOutput(t *testing.T) {
	tests := []struct {
		name, verb, stdout, wantErr string
	}{
		{"commit", "commit", sumA + "\n", ""},
		{"commit says nothing", "commit", "", `ostree commit: "" is no checksum`},
		{"commit says more", "commit", sumA + "\n" + sumB + "\n", `ostree commit: "` + sumA + `\nbbbbbbbbbbbbbbb" is no checksum`},
		{"commit says too little", "commit", sumA[1:] + "\n", `ostree commit: "` + sumA[1:] + `\n" is no checksum`},
		{"rev-parse", "rev-parse", sumA + "\n" + sumB + "\n", ""},
		{"rev-parse says nothing", "rev-parse", "", "ostree rev-parse: 0 answers for 2 refs"},
		{"rev-parse says one", "rev-parse", sumA + "\n", "ostree rev-parse: 1 answers for 2 refs"},
		{"rev-parse says other", "rev-parse", sumA + "\nx\n", `ostree rev-parse: "x" is no checksum`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := &repository{path: "/nowhere", run: newRunner(testutil.FakeTool(t, "", testutil.FakeRule{Match: tt.verb, Stdout: tt.stdout}), "tar", 0, &journal{})}
			var err error
			switch tt.verb {
			case "commit":
				_, err = r.commit(t.Context(), commitOptions{}, "--tree=dir=/")
			case "rev-parse":
				_, err = r.revParse(t.Context(), "a/b", "c/d")
			}
			testutil.SameText(t, "error", testutil.ErrText(err), tt.wantErr)
		})
	}
}

// TestSigned: only what ostree says last counts, and a commit's own text can look like it.
func TestSigned(t *testing.T) {
	t.Parallel()
	const found, good, bad = "\nFound 1 signature:\n\n", "  Good signature from \"a\"\n", "  BAD signature from \"a\"\n"
	for _, tt := range []struct {
		name, says string
		none, want bool
	}{
		{"good", "commit a" + found + good, false, true},
		{"bad", "commit a" + found + bad, false, false},
		{"a good and a bad one", "commit a" + found + good + bad, false, false},
		{"no key for it", "commit a" + found + "  Can't check signature: public key not found\n", false, false},
		{"good in the text", "commit a" + found + good + found + "  Can't check signature: public key not found\n", false, false},
		{"good in the text of one that has none", "commit a" + found + good, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rules := []testutil.FakeRule{{Match: "--print-detached-metadata-key=ostree.gpgsigs", Stdout: "[[0x1]]\n"}, {Match: "--gpg-homedir=/keys", Stdout: tt.says}}
			says := filepath.Join(t.TempDir(), "says") // what anyone hears who does not ask for signatures first
			if err := os.WriteFile(says, []byte("#!/bin/sh\ncat <<'END'\n"+tt.says+"END\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			if tt.none {
				rules = []testutil.FakeRule{{Match: "--print-detached-metadata-key=ostree.gpgsigs", Exit: 1}}
			}
			r := &repository{path: "/nowhere", run: newRunner(testutil.FakeTool(t, says, rules...), "tar", 0, &journal{})}
			if got, err := r.signed(t.Context(), sumA, "/keys"); got != tt.want || err != nil {
				t.Errorf("%t, %v; want %t", got, err, tt.want)
			}
		})
	}
}

func TestRepositoryErrors(t *testing.T) {
	t.Parallel()
	r := newTestRun(t, testOptions{})
	dir := t.TempDir()
	file := dir + "/file"
	testutil.Run(t, "touch", file)
	tests := []struct{ name, repo, wantErr string }{
		{"none", dir + "/none", "no repository at " + dir + "/none; create it with: ostree init --repo=" + dir + "/none --mode=bare-user"},
		{"other directory", dir, dir + " is no OSTree repository; create one elsewhere with: ostree init --repo=PATH --mode=bare-user"},
		{"file", file, file + " is no OSTree repository"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := (&repository{path: tt.repo, run: r.runner}).refs(t.Context())
			testutil.SameText(t, "error", testutil.ErrText(err), tt.wantErr)
			var notFound errdefs.NotFoundError
			if !errors.As(err, &notFound) {
				t.Errorf("%T is no notFoundError", err)
			}
		})
	}
	_, err := r.repo.revParse(t.Context(), "no/such")
	if !errors.Is(err, errNoRef) {
		t.Errorf("%v is not %v", err, errNoRef)
	}
	if refs, err := r.repo.refs(t.Context()); err != nil || len(refs) != 0 {
		t.Errorf("an empty repository has the refs %v, %v", refs, err)
	}
}

func TestArguments(t *testing.T) {
	tests := []struct {
		name string
		got  []string
		want string
	}{
		{"commit", commitArgs(commitOptions{}), "--parent=none --timestamp=@0 --fsync=false --orphan"},
		{
			"commit with all", commitArgs(commitOptions{branch: "a/b", timestamp: 7, metadata: []metadataString{{"k", "v w"}, {"l", ""}}, why: "x"}),
			"--parent=none --timestamp=@7 --fsync=false --branch=a/b --add-metadata-string=k=v w --add-metadata-string=l=",
		},
		{"tree", treeArgs("/d", treeOptions{}), "--tree=dir=/d"},
		{
			"tree with all", treeArgs("/d", treeOptions{owner: true, statOverride: "/s", consume: true, noXattrs: true}),
			"--tree=dir=/d --owner-uid=0 --owner-gid=0 --no-xattrs --statoverride=/s --consume",
		},
		{"checkout", checkoutArgs("r", "/d", checkoutOptions{}), "--force-copy r /d"},
		{
			"checkout with all", checkoutArgs("r", "/d", checkoutOptions{userMode: true, requireHardlinks: true, subpath: "s/t", skipList: "/l"}),
			"--user-mode --require-hardlinks --subpath=/s/t --skip-list=/l r /d",
		},
		{"cat", catArgs("r", []string{"a", "/b", "-c"}), "r /a /b /-c"},
		{
			"tar as root", untarArgs("/d", true),
			"-x -p -m -f - --numeric-owner --warning=no-unknown-keyword --directory=/d --same-owner --xattrs --xattrs-include=user.* --xattrs-include=security.capability",
		},
		{
			"tar as another", untarArgs("/d", false),
			"-x -p -m -f - --numeric-owner --warning=no-unknown-keyword --directory=/d --no-same-owner --xattrs --xattrs-include=user.*",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { testutil.SameText(t, "arguments", strings.Join(tt.got, " "), tt.want) })
	}
}

// A ref that another ostree removes while this one lists them is no reason to fail.
func TestRefsWhileOneIsRemoved(t *testing.T) {
	t.Parallel()
	repo := newRepo(t, modeBareUser)
	fake := testutil.FakeTool(t, "ostree", testutil.FakeRule{Match: "refs", Stderr: "error: Listing refs: openat(ociimage/a_3A1): No such file or directory\n", Exit: 1, Once: true})
	r := newTestRun(t, testOptions{ostree: fake, repo: repo})
	if refs, err := r.repo.refs(t.Context()); err != nil || len(refs) != 0 {
		t.Errorf("%v, %v", refs, err)
	}
}

// TestAgain: what lost a race is done again, and not for ever.
func TestAgain(t *testing.T) {
	lost := &toolError{Stderr: "error: opendir(staging-a): No such file or directory\n", Err: errors.New("exit status 1")}
	ended, end := context.WithCancel(t.Context())
	end()
	for _, tt := range []struct {
		name  string
		ctx   context.Context
		fails int // how often
		err   error
		calls int
		want  error
	}{
		{"well", t.Context(), 0, lost, 1, nil},
		{"once", t.Context(), 1, lost, 2, nil},
		{"as often as it may", t.Context(), raceRetries, lost, raceRetries + 1, nil},
		{"always", t.Context(), 1000, lost, raceRetries + 1, lost},
		{"another error", t.Context(), 1000, errNoRef, 1, errNoRef},
		{"the run has ended", ended, 1000, lost, 1, lost},
	} {
		calls := 0
		err := again(tt.ctx, func() error {
			if calls++; calls <= tt.fails {
				return tt.err
			}
			return nil
		})
		if calls != tt.calls || !errors.Is(err, tt.want) {
			t.Errorf("%s: %d calls, %v; want %d, %v", tt.name, calls, err, tt.calls, tt.want)
		}
	}
}

func TestMetadataFits(t *testing.T) {
	prefix := len("--add-metadata-string=k=")
	tests := []struct {
		name  string
		value string
		want  bool
	}{
		{"empty", "", true},
		{"longest", strings.Repeat("x", maxArgument-prefix), true},
		{"too long", strings.Repeat("x", maxArgument-prefix+1), false},
		{"NUL", "a\x00b", false},
		{"not UTF-8", "\xff", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := (metadataString{"k", tt.value}).fits(); got != tt.want {
				t.Errorf("%t, want %t", got, tt.want)
			}
		})
	}
}

// TestLongestArgument holds maxArgument against the kernel.
func TestLongestArgument(t *testing.T) {
	t.Parallel()
	r := newTestRun(t, testOptions{mode: modeArchive})
	dir := t.TempDir()
	longest := metadataString{"k", ""}
	longest.value = strings.Repeat("x", maxArgument-len(longest.arg()))
	if _, err := r.repo.commit(t.Context(), commitOptions{metadata: []metadataString{longest}}, "--tree=dir="+dir); err != nil {
		t.Fatal(err)
	}
	longest.value += "x"
	_, err := r.repo.commit(t.Context(), commitOptions{metadata: []metadataString{longest}}, "--tree=dir="+dir)
	testutil.SameText(t, "error", testutil.ErrText(err), "ostree commit: starting it with 8 arguments, the longest of 131072 bytes: fork/exec "+
		r.runner.found[toolOSTree]+": argument list too long")
}

func TestMissingFile(t *testing.T) {
	t.Parallel()
	r := newTestRun(t, testOptions{mode: modeArchive})
	ctx := t.Context()
	if _, err := r.repo.commit(ctx, commitOptions{branch: "a/b"}, "--tree=dir="+t.TempDir()); err != nil {
		t.Fatal(err)
	}
	if ok, err := r.repo.hasFile(ctx, "a/b", "no/such"); ok || err != nil {
		t.Errorf("%t, %v", ok, err)
	}
	_, err := r.repo.catFile(ctx, "a/b", "none", 10)
	testutil.SameText(t, "error", testutil.ErrText(err), "ostree cat: exit status 1: No such file or directory: /none")
	if v, err := r.repo.config(ctx, "archive.zlib-level"); v != "" || err != nil {
		t.Errorf("a key that is not set: %q, %v", v, err)
	}
	if v, err := r.repo.config(ctx, "core.no-such"); v != "" || err != nil {
		t.Errorf("a key that is not set: %q, %v", v, err)
	}
	if _, err := r.repo.refs(ctx); err != nil {
		t.Error(err)
	}
	want := []string{"a/b"}
	refs, err := r.repo.refs(ctx)
	if got := slices.Sorted(maps.Keys(refs)); err != nil || !slices.Equal(got, want) {
		t.Errorf("refs %q, %v, want %q", got, err, want)
	}
}

func TestConfigLines(t *testing.T) {
	wanted := map[string][]string{"core": {"a", "b"}, "archive": {"level"}}
	for _, tt := range []struct{ name, text, want, wantErr string }{
		{name: "nothing"},
		{name: "nothing wanted", text: "[core]\nmode=bare\n"},
		{name: "all", text: "# x\n[core]\n\nmode=bare\na=1\n b = 2 \n[remote \"o\"]\na=3\n[archive]\nlevel=9", want: "[core]\na=1\nb = 2\n[archive]\nlevel=9\n"},
		{name: "a group twice", text: "[core]\na=1\n[archive]\nlevel=1\n[core]\na=2\n", want: "[core]\na=1\n[archive]\nlevel=1\n[core]\na=2\n"},
		{name: "a key outside of groups", text: "a=1\n", wantErr: "sets no key of a group"},
		{name: "no key", text: "[core]\na\n", wantErr: "sets no key of a group"},
		{name: "a group without end", text: "[core\na=1\n", wantErr: "begins no group"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := configLines(tt.text, wanted)
			if got != tt.want || !strings.Contains(testutil.ErrText(err), tt.wantErr) || (err == nil) != (tt.wantErr == "") {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

// Whatever the refs are, no process gets more of them than execve(2) takes, and each is there once.
func TestChunks(t *testing.T) {
	for _, tt := range []struct{ number, bytes, want int }{
		{0, 0, 0}, {1, 10, 1}, {1, maxArgument, 1}, {30_000, 70, 5}, {3000, 4000, 24}, {20, maxArgument, 7},
	} {
		var args, got []string
		for i := range tt.number {
			args = append(args, fmt.Sprintf("%0*d", tt.bytes, i))
		}
		n := 0
		for chunk := range chunks(args) {
			n++
			got = append(got, chunk...)
			if err := exec.Command("true", chunk...).Run(); err != nil { // as the kernel sees it
				t.Errorf("%d of %d bytes: %v", tt.number, tt.bytes, err)
			}
		}
		if n != tt.want || !slices.Equal(got, args) {
			t.Errorf("%d of %d bytes come in %d lists of %d in all, want %d", tt.number, tt.bytes, n, len(got), tt.want)
		}
	}
}

// Each call that takes a list of refs takes one that is longer than the arguments of a process may be.
func TestManyLongRefs(t *testing.T) {
	testutil.NeedTools(t, "ostree")
	ctx := t.Context()
	r := newTestRun(t, testOptions{})
	commit := strings.TrimSpace(testutil.Run(t, "ostree", "commit", "--repo="+r.repo.path, "--orphan", "--no-bindings", "--tree=dir="+t.TempDir()))
	// Refs are made by hand: that of ostree takes a process each.
	const number = 3000
	names := map[string]bool{}
	for i := range number {
		dir := fmt.Sprintf("their/%0200d/%0200d/%0200d/%0200d", i%7, i%7, i%7, i%7)
		if i < 7 {
			if err := os.MkdirAll(filepath.Join(r.repo.path, "refs/heads", dir), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		ref := fmt.Sprintf("%s/%0200d", dir, i)
		names[ref] = true
		if err := os.WriteFile(filepath.Join(r.repo.path, "refs/heads", ref), []byte(commit+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	refs := slices.Sorted(maps.Keys(names))
	if err := exec.Command("true", refs...).Run(); !errors.Is(err, syscall.E2BIG) {
		t.Fatalf("the list is too short for this test: %v", err)
	}
	if got, err := r.repo.refsAmong(ctx, refs); err != nil || len(got) != number {
		t.Errorf("refsAmong: %d %v", len(got), err)
	}
	if got, err := r.repo.revParse(ctx, refs...); err != nil || len(got) != number {
		t.Errorf("revParse: %d %v", len(got), err)
	}
	if got, err := r.repo.commitsOf(ctx, names); err != nil || len(got) != number {
		t.Errorf("commitsOf: %d %v", len(got), err)
	}
	other := &repository{path: newRepo(t, modeBareUser), run: r.runner}
	if err := other.pullLocal(ctx, r.repo.path, false, "", refs...); err != nil {
		t.Errorf("pullLocal: %v", err)
	}
	if err := other.deleteRefs(ctx, "", refs...); err != nil {
		t.Errorf("deleteRefs: %v", err)
	}
	if left, err := other.refs(ctx); err != nil || len(left) > 0 {
		t.Errorf("%d refs are left, %v", len(left), err)
	}
}

// A repository may have any name, also one that means something to a matcher of names.
func TestPathWithPattern(t *testing.T) {
	for _, name := range []string{"[", "[a-", "a*b?", `\`, "{x,y}", "-n", "a b\n"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newTestRun(t, testOptions{})
			path := filepath.Join(filepath.Dir(r.repo.path), name)
			if err := os.Rename(r.repo.path, path); err != nil {
				t.Fatal(err)
			}
			r.repo.path = path
			if err := r.importImage(t, "a", smallImage(t)); err != nil {
				t.Fatal(err)
			}
			ref := r.reference(t, "a").ref()
			sums, err := r.repo.revParse(t.Context(), ref)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(r.repo.partialMark(sums[0]), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			for _, dir := range []string{"a", "a-lock", "b"} {
				if err := os.Mkdir(filepath.Join(r.repo.tmp(), transactionPrefix+dir), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if got := r.repo.transactions(); len(got) != 2 {
				t.Errorf("transactions: %v", got)
			}
			if got, err := r.repo.whole(t.Context(), map[string]bool{ref: true}); err != nil || len(got) > 0 {
				t.Errorf("the partial commit is taken for whole: %v %v", got, err)
			}
			if err := r.removeAll(t, true, "a"); err != nil {
				t.Error(err)
			}
		})
	}
}

// nastyStrings are values that must come back from ostree as they went in.
var nastyStrings = []string{
	"", "plain", "it's", `say "so"`, `it's "both"`, `back\slash`, `\n`, "new\nline", "\n", "tab\tcr\rbell\a\b\f\v", "\x01\x1f\x7f", "é", "e\u0301", "😀\U0010ffff",
	"\u200b\u200e\u2028\u2029\ufeff\u00ad", "\u0085\u009f\u00a0", "\ue000\ufffd\ufffe\uffff", " lead and trail ", "a=b=c", "$HOME `id` $(id)", "%s%n", "-", "--x",
	"@ay []", "b'x'", "true", "5", "<'x'>", "{}", "\\u0041", strings.Repeat("long", 20000), `{"a": "b's", "c": "\u00e9\\"}`, "\ufdd0", "\ud7ff", "\r\n",
}

func TestStringsComeBackFromOSTree(t *testing.T) {
	t.Parallel()
	r := newTestRun(t, testOptions{mode: modeArchive})
	var metadata []metadataString
	for i, s := range nastyStrings {
		m := metadataString{fmt.Sprintf("test.%d", i), s}
		if !m.fits() {
			t.Fatalf("%.40q does not fit", s)
		}
		metadata = append(metadata, m)
	}
	metadata = append(metadata, metadataString{"it's \"a\" key\\", "odd"})
	ctx := t.Context()
	if _, err := r.repo.commit(ctx, commitOptions{branch: "test/strings", metadata: metadata}, "--tree=dir="+t.TempDir()); err != nil {
		t.Fatal(err)
	}
	info, err := r.repo.commitInfo(ctx, "test/strings")
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range metadata {
		if info.metadata[m.key] != m.value {
			t.Errorf("commitInfo: got %.80q, want %.80q", info.metadata[m.key], m.value)
		}
		if i%3 != 0 { // a process each
			continue
		}
		got, ok, err := r.repo.metadataKey(ctx, "test/strings", m.key)
		if err != nil || !ok || got != m.value {
			t.Errorf("metadataKey: got %.80q, %t, %v, want %.80q", got, ok, err, m.value)
		}
	}
	if _, ok, err := r.repo.metadataKey(ctx, "test/strings", "no.such"); ok || err != nil {
		t.Errorf("a key that is not there: %t, %v", ok, err)
	}
}
