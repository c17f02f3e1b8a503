package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.podman.io/image/v5/types"
	"github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestMain makes the test binary a tool where it is called by a name that says so: see fakeTool.
func TestMain(m *testing.M) {
	switch name := filepath.Base(os.Args[0]); {
	case strings.HasPrefix(name, "fake-"):
		os.Exit(fakeMain())
	case name == "parent-of-sleeper":
		os.Exit(parentOfSleeper())
	}
	os.Exit(runTests(m))
}

// runTests keeps what the tests prove of blobs apart from what the user has.
func runTests(m *testing.M) int {
	cache, err := os.MkdirTemp("", "ostree-image-cache-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(cache) }()
	_ = os.Setenv("XDG_CACHE_HOME", cache)
	return m.Run()
}

// skip leaves a test out and says why. With REQUIRE_TOOLS=1, as in CI, that is a failure.
func skip(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("REQUIRE_TOOLS") == "1" {
		t.Fatalf("REQUIRE_TOOLS=1, and this test would be left out: "+format, args...)
	}
	t.Skipf(format, args...)
}

// needTools leaves a test out where a program is missing.
func needTools(t testing.TB, names ...string) {
	t.Helper()
	for _, n := range names {
		if _, err := exec.LookPath(n); err != nil {
			skip(t, "no %s on this machine", n)
		}
	}
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, "only root can give files to others")
	}
}

// tool runs a program and returns its standard output.
func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %.300q: %v\n%s", name, args, err, tailOf(stderr.String()))
	}
	return string(out)
}

func tailOf(s string) string { return s[max(0, len(s)-2000):] }

// fakeRule is what a fake tool does when it is called with arguments that hold match.
type fakeRule struct {
	Match  string // a part of the arguments, joined by blanks; "" for all
	Stdout string
	Stderr string
	Exit   int
	Signal int           // ends itself with it
	Sleep  time.Duration // before it ends, deaf to SIGTERM
	Read   int64         // bytes of its input that it reads first; -1 for all
	Close  bool          // closes its input first
	Child  bool          // starts a child that is deaf to SIGTERM and keeps no pipe, and writes its id to "child"
	Env    bool          // writes its environment to standard output
	Fds    bool          // writes what its files are to standard output
	Then   string        // becomes this program afterwards, with the same arguments
	Once   bool          // only the first time
}

// fakeTool returns a program that does what the first matching rule says, and becomes the program real where none matches. A rule
// that was never used fails the test.
func fakeTool(t *testing.T, real string, rules ...fakeRule) string {
	t.Helper()
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "fake-tool")
	if err := os.Symlink(self, path); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(fakeSpec{Real: real, Rules: rules})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "spec.json"), b, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for i, r := range rules {
			if _, err := os.Stat(filepath.Join(dir, fmt.Sprint("used-", i))); err != nil && !t.Skipped() {
				t.Errorf("rule %d (%q) of the fake tool was never used", i, r.Match)
			}
		}
	})
	return path
}

type fakeSpec struct {
	Real  string
	Rules []fakeRule
}

// fakeCalls returns the arguments of all calls of a fake tool.
func fakeCalls(t *testing.T, path string) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(filepath.Dir(path), "calls"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

func fakeMain() int {
	dir := filepath.Dir(os.Args[0])
	b, err := os.ReadFile(filepath.Join(dir, "spec.json"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 99
	}
	var spec fakeSpec
	if err := json.Unmarshal(b, &spec); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 99
	}
	args := strings.Join(os.Args[1:], " ")
	if f, err := os.OpenFile(filepath.Join(dir, "calls"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644); err == nil {
		_, _ = fmt.Fprintf(f, "%s\n", strings.ReplaceAll(args, "\n", " "))
		_ = f.Close()
	}
	for i, r := range spec.Rules {
		if !strings.Contains(args, r.Match) {
			continue
		}
		used := filepath.Join(dir, fmt.Sprint("used-", i))
		if _, err := os.Stat(used); err == nil && r.Once {
			continue
		}
		_ = os.WriteFile(used, nil, 0o644)
		return r.act(dir)
	}
	return become(spec.Real)
}

func (r fakeRule) act(dir string) int {
	if r.Child {
		child := exec.Command("sh", "-c", `trap "" TERM; while :; do sleep 0.2; done`)
		if err := child.Start(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 99
		}
		_ = os.WriteFile(filepath.Join(dir, "child.new"), []byte(fmt.Sprint(child.Process.Pid)), 0o644)
		_ = os.Rename(filepath.Join(dir, "child.new"), filepath.Join(dir, "child"))
	}
	_, _ = io.WriteString(os.Stderr, r.Stderr)
	switch {
	case r.Read < 0:
		_, _ = io.Copy(io.Discard, os.Stdin)
	case r.Read > 0:
		_, _ = io.CopyN(io.Discard, os.Stdin, r.Read)
	}
	if r.Close {
		_ = os.Stdin.Close()
	}
	_, _ = io.WriteString(os.Stdout, r.Stdout)
	if r.Env {
		fmt.Println(strings.Join(os.Environ(), "\n"))
	}
	if r.Fds {
		names, _ := filepath.Glob("/proc/self/fd/*")
		for _, n := range names {
			target, _ := os.Readlink(n)
			fmt.Println(filepath.Base(n), target)
		}
	}
	if r.Sleep > 0 {
		ignoreTerm()
		time.Sleep(r.Sleep)
	}
	if r.Signal != 0 {
		_ = syscall.Kill(os.Getpid(), syscall.Signal(r.Signal))
		time.Sleep(time.Minute)
	}
	if r.Then != "" {
		return become(r.Then)
	}
	return r.Exit
}

// become makes the process another program.
func become(program string) int {
	if program == "" {
		return 0
	}
	path, err := exec.LookPath(program)
	if err == nil {
		err = syscall.Exec(path, append([]string{program}, os.Args[1:]...), os.Environ())
	}
	fmt.Fprintln(os.Stderr, err)
	return 99
}

// running tells whether a process runs and is no zombie.
func running(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}

// eventually waits a while for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Errorf("not seen in time: %s", what)
}

// processesOf returns the command lines of the processes that have text among their arguments, without this one.
func processesOf(text string) []string {
	var found []string
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil && bytes.Contains(b, []byte(text)) && f != fmt.Sprintf("/proc/%d/cmdline", os.Getpid()) {
			found = append(found, strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return found
}

// syncBuffer is a buffer for several goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// testRun is what a test imports with.
type testRun struct {
	*settings
	said *syncBuffer // standard error
	repo *repository
}

// testOptions are what a testRun can have beside the defaults.
type testOptions struct {
	mode        string // of the repository, bare-user if ""
	repo        string // one that exists, instead of a new one
	ostree, tar string
	unpack      engineName
	log         string
	timeout     time.Duration
	tmpdir      string
	preserve    bool
	timestamp   *int64
}

func newTestRun(t testing.TB, o testOptions) *testRun {
	t.Helper()
	needTools(t, "ostree", "tar")
	said := &syncBuffer{}
	j, err := openJournal(o.log, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.close() })
	orElse := func(s, other string) string {
		if s == "" {
			return other
		}
		return s
	}
	s := &settings{
		proven: newProvenCommits(), stderr: said, journal: j, progress: newProgress(said, false, false), noFsync: true, tmpdir: o.tmpdir,
		unpack: engineName(orElse(string(o.unpack), string(engineAuto))), preserveDigests: o.preserve, timestamp: o.timestamp,
	}
	s.runner = newRunner(orElse(o.ostree, "ostree"), orElse(o.tar, "tar"), o.timeout, j)
	path := o.repo
	if path == "" {
		path = newRepo(t, orElse(o.mode, modeBareUser))
	}
	return &testRun{settings: s, said: said, repo: &repository{path: path, run: s.runner}}
}

// newRepo makes a repository.
func newRepo(t testing.TB, mode string) string {
	t.Helper()
	needTools(t, "ostree")
	path := filepath.Join(t.TempDir(), "repo")
	tool(t, "ostree", "init", "--repo="+path, "--mode="+mode)
	return path
}

// testImage is an image to import.
type testImage struct {
	layers   [][]byte
	types    []string // media types of the layers, tar where it is shorter
	config   []byte   // "" for one that fits
	confType string   // the config's media type
	manifest []byte   // "" for one that fits
}

var testPlatform = imgspecv1.Platform{OS: "linux", Architecture: "riscv64"}

func (i *testImage) finish(t testing.TB) *testImage {
	t.Helper()
	if i.confType == "" {
		i.confType = imgspecv1.MediaTypeImageConfig
	}
	for len(i.types) < len(i.layers) {
		i.types = append(i.types, imgspecv1.MediaTypeImageLayer)
	}
	if i.config == nil {
		c := imgspecv1.Image{Platform: testPlatform, RootFS: imgspecv1.RootFS{Type: "layers"}}
		for _, l := range i.layers {
			c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, diffIDOf(l))
		}
		i.config = marshal(t, c)
	}
	if i.manifest == nil {
		m := imgspecv1.Manifest{MediaType: imgspecv1.MediaTypeImageManifest}
		m.SchemaVersion = 2
		m.Config = imgspecv1.Descriptor{MediaType: i.confType, Digest: digest.FromBytes(i.config), Size: int64(len(i.config))}
		m.Layers = []imgspecv1.Descriptor{}
		for n, l := range i.layers {
			m.Layers = append(m.Layers, imgspecv1.Descriptor{MediaType: i.types[n], Digest: digest.FromBytes(l), Size: int64(len(l))})
		}
		i.manifest = marshal(t, m)
	}
	return i
}

// diffIDOf returns the digest of a layer's tar stream, and that of its bytes where they are none.
func diffIDOf(layer []byte) digest.Digest {
	stream, _, err := decompress(bytes.NewReader(layer), func() {})
	if err != nil {
		return digest.FromBytes(layer)
	}
	defer func() { _ = stream.Close() }()
	sum, err := digest.FromReader(stream)
	if err != nil {
		return digest.FromBytes(layer)
	}
	return sum
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// testSys asks for the platform that testImages are for.
var testSys = &types.SystemContext{OSChoice: testPlatform.OS, ArchitectureChoice: testPlatform.Architecture}

// destination begins a copy to an image of the repository.
func (r *testRun) destination(t testing.TB, name string) *destination {
	t.Helper()
	ref, err := newReference(ostreeTransport{r.settings}, name, r.repo.path)
	if err != nil {
		t.Fatal(err)
	}
	d, err := newDestination(t.Context(), ref, testSys)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// put does what the library does with a destination: layers that are not there, the config, the manifest, the end.
func put(ctx context.Context, d *destination, i *testImage) (err error) {
	defer func() {
		if cerr := d.Close(); err == nil {
			err = cerr
		}
	}()
	var copies sync.WaitGroup
	failures := make([]error, len(i.layers))
	slots := make(chan struct{}, 6)
	for n, l := range i.layers {
		copies.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			info := types.BlobInfo{Digest: digest.FromBytes(l), Size: int64(len(l)), MediaType: i.types[n]}
			reused, _, err := d.TryReusingBlob(ctx, info, nil, false)
			if err == nil && !reused {
				_, err = d.PutBlob(ctx, bytes.NewReader(l), info, nil, false)
			}
			failures[n] = err
		})
	}
	copies.Wait()
	for _, err := range failures {
		if err != nil {
			return err
		}
	}
	info := types.BlobInfo{Digest: digest.FromBytes(i.config), Size: int64(len(i.config)), MediaType: i.confType}
	if _, err := d.PutBlob(ctx, bytes.NewReader(i.config), info, nil, true); err != nil {
		return err
	}
	if err := d.PutManifest(ctx, i.manifest, nil); err != nil {
		return err
	}
	return d.Commit(ctx, nil)
}

// importImage imports an image under a name.
func (r *testRun) importImage(t testing.TB, name string, i *testImage) error {
	t.Helper()
	return put(t.Context(), r.destination(t, name), i.finish(t))
}

// commits returns the commits of all refs.
func (r *testRun) commits(t testing.TB) map[string]string {
	t.Helper()
	return refCommits(t, r.repo.path)
}

func refCommits(t testing.TB, repo string) map[string]string {
	t.Helper()
	refs := strings.Fields(tool(t, "ostree", "refs", "--repo="+repo))
	commits := map[string]string{}
	if len(refs) == 0 {
		return commits
	}
	slices.Sort(refs)
	sums := strings.Fields(tool(t, "ostree", append([]string{"rev-parse", "--repo=" + repo}, refs...)...))
	for i, r := range refs {
		commits[r] = sums[i]
	}
	return commits
}

// sameCommits compares what two repositories hold.
func sameCommits(t testing.TB, what string, got, want map[string]string, name func(ref string) string) {
	t.Helper()
	for ref, sum := range want {
		if got[ref] != sum {
			t.Errorf("%s: %s (%s) is %q, want %q", what, ref, name(ref), got[ref], sum)
		}
	}
	for ref := range got {
		if want[ref] == "" {
			t.Errorf("%s: %s (%s) is there and should not be", what, ref, name(ref))
		}
	}
}

func fsck(t testing.TB, repo string) {
	t.Helper()
	tool(t, "ostree", "fsck", "--quiet", "--repo="+repo)
}

// nothingLeft holds that a failed import left no ref, no file and no process.
func (r *testRun) nothingLeft(t testing.TB) {
	t.Helper()
	if refs := tool(t, "ostree", "refs", "--repo="+r.repo.path); refs != "" {
		t.Errorf("refs are left: %s", refs)
	}
	r.nothingInTmp(t)
	if found := processesOf(r.repo.path); len(found) > 0 {
		t.Errorf("processes are left: %q", found)
	}
}

func (r *testRun) nothingInTmp(t testing.TB) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(r.repo.path, "tmp"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "cache" {
			t.Errorf("%s is left in the repository's tmp/", e.Name())
		}
	}
}

// sameText compares and shows both.
func sameText(t testing.TB, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s:\n got %q\nwant %q", what, got, want)
	}
}

// errText is the text of an error, "" for none.
func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func ignoreTerm() { signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP) }
