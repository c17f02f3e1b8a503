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
	"ostree-image/internal/ostree"
	"ostree-image/internal/proc"
	"ostree-image/internal/testutil"
)

const (
	sumA = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	sumB = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

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
				_, err = r.commit(t.Context(), ostree.CommitOptions{}, "--tree=dir=/")
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
		{"commit", ostree.CommitArgs(ostree.CommitOptions{}), "--parent=none --timestamp=@0 --fsync=false --orphan"},
		{
			"commit with all", ostree.CommitArgs(ostree.CommitOptions{Branch: "a/b", Timestamp: 7, Metadata: []ostree.Metadata{{Key: "k", Value: "v w"}, {Key: "l", Value: ""}}, Why: "x"}),
			"--parent=none --timestamp=@7 --fsync=false --branch=a/b --add-metadata-string=k=v w --add-metadata-string=l=",
		},
		{"tree", ostree.TreeArgs("/d", ostree.TreeOptions{}), "--tree=dir=/d"},
		{
			"tree with all", ostree.TreeArgs("/d", ostree.TreeOptions{Owner: true, StatOverride: "/s", Consume: true, NoXattrs: true}),
			"--tree=dir=/d --owner-uid=0 --owner-gid=0 --no-xattrs --statoverride=/s --consume",
		},
		{"checkout", ostree.CheckoutArgs("r", "/d", ostree.CheckoutOptions{}), "--force-copy r /d"},
		{
			"checkout with all", ostree.CheckoutArgs("r", "/d", ostree.CheckoutOptions{UserMode: true, RequireHardlinks: true, Subpath: "s/t", SkipList: "/l"}),
			"--user-mode --require-hardlinks --subpath=/s/t --skip-list=/l r /d",
		},
		{"cat", ostree.CatArgs("r", []string{"a", "/b", "-c"}), "r /a /b /-c"},
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
	repo := newRepo(t, ostree.BareUser)
	fake := testutil.FakeTool(t, "ostree", testutil.FakeRule{Match: "refs", Stderr: "error: Listing refs: openat(ociimage/a_3A1): No such file or directory\n", Exit: 1, Once: true})
	r := newTestRun(t, testOptions{ostree: fake, repo: repo})
	if refs, err := r.repo.refs(t.Context()); err != nil || len(refs) != 0 {
		t.Errorf("%v, %v", refs, err)
	}
}

// TestAgain: what lost a race is done again, and not for ever.
func TestAgain(t *testing.T) {
	lost := &proc.ToolError{Stderr: "error: opendir(staging-a): No such file or directory\n", Err: errors.New("exit status 1")}
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

// TestLongestArgument holds maxArgument against the kernel.
func TestLongestArgument(t *testing.T) {
	t.Parallel()
	r := newTestRun(t, testOptions{mode: ostree.Archive})
	dir := t.TempDir()
	longest := ostree.Metadata{Key: "k", Value: ""}
	longest.Value = strings.Repeat("x", ostree.MaxArgument-len(longest.Arg()))
	if _, err := r.repo.commit(t.Context(), ostree.CommitOptions{Metadata: []ostree.Metadata{longest}}, "--tree=dir="+dir); err != nil {
		t.Fatal(err)
	}
	longest.Value += "x"
	_, err := r.repo.commit(t.Context(), ostree.CommitOptions{Metadata: []ostree.Metadata{longest}}, "--tree=dir="+dir)
	testutil.SameText(t, "error", testutil.ErrText(err), "ostree commit: starting it with 8 arguments, the longest of 131072 bytes: fork/exec "+
		r.runner.Found[proc.OSTree]+": argument list too long")
}

func TestMissingFile(t *testing.T) {
	t.Parallel()
	r := newTestRun(t, testOptions{mode: ostree.Archive})
	ctx := t.Context()
	if _, err := r.repo.commit(ctx, ostree.CommitOptions{Branch: "a/b"}, "--tree=dir="+t.TempDir()); err != nil {
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

// Each call that takes a list of refs takes one that is longer than the arguments of a process may
// be.
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
	other := &repository{path: newRepo(t, ostree.BareUser), run: r.runner}
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
	r := newTestRun(t, testOptions{mode: ostree.Archive})
	var metadata []ostree.Metadata
	for i, s := range nastyStrings {
		m := ostree.Metadata{Key: fmt.Sprintf("test.%d", i), Value: s}
		if !m.Fits() {
			t.Fatalf("%.40q does not fit", s)
		}
		metadata = append(metadata, m)
	}
	metadata = append(metadata, ostree.Metadata{Key: "it's \"a\" key\\", Value: "odd"})
	ctx := t.Context()
	if _, err := r.repo.commit(ctx, ostree.CommitOptions{Branch: "test/strings", Metadata: metadata}, "--tree=dir="+t.TempDir()); err != nil {
		t.Fatal(err)
	}
	info, err := r.repo.commitInfo(ctx, "test/strings")
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range metadata {
		if info.Metadata[m.Key] != m.Value {
			t.Errorf("commitInfo: got %.80q, want %.80q", info.Metadata[m.Key], m.Value)
		}
		if i%3 != 0 { // a process each
			continue
		}
		got, ok, err := r.repo.metadataKey(ctx, "test/strings", m.Key)
		if err != nil || !ok || got != m.Value {
			t.Errorf("metadataKey: got %.80q, %t, %v, want %.80q", got, ok, err, m.Value)
		}
	}
	if _, ok, err := r.repo.metadataKey(ctx, "test/strings", "no.such"); ok || err != nil {
		t.Errorf("a key that is not there: %t, %v", ok, err)
	}
}
