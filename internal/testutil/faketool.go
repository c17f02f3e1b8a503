package testutil

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// FakeRule is what a fake tool does when it is called with arguments that hold match.
type FakeRule struct {
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

// FakeTool returns a program that does what the first matching rule says, and becomes the program
// real where none matches. A rule that was never used fails the test.
func FakeTool(t *testing.T, real string, rules ...FakeRule) string {
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
	Rules []FakeRule
}

// FakeCalls returns the arguments of all calls of a fake tool.
func FakeCalls(t *testing.T, path string) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(filepath.Dir(path), "calls"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

// FakeToolMain makes this process the tool that it is called by the name of, and returns where that
// is none. TestMain is to call it first.
func FakeToolMain() {
	if strings.HasPrefix(filepath.Base(os.Args[0]), "fake-") {
		os.Exit(fakeMain())
	}
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

func (r FakeRule) act(dir string) int {
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

func ignoreTerm() { signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP) }
