package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pkg/errors"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/ostree"
	"ostree-image/internal/proc"
	"ostree-image/internal/spool"
	"ostree-image/internal/testutil"
)

// fakeRunner runs a fake ostree. The returned function takes its path out of texts.
func fakeRunner(t *testing.T, timeout time.Duration, rules ...testutil.FakeRule) (r *runner, path string) {
	t.Helper()
	path = testutil.FakeTool(t, "", rules...)
	return newRunner(path, "tar", timeout, &journal{}), path
}

func TestRunnerErrors(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		rule    testutil.FakeRule
		args    []string
		want    string
		code    int
		wantErr string
	}{
		{"well", testutil.FakeRule{Stdout: "out\n"}, []string{"verb"}, "out\n", 0, ""},
		{"says nothing", testutil.FakeRule{}, []string{"verb"}, "", 0, ""},
		{"warns only", testutil.FakeRule{Stdout: "out", Stderr: "warning\n"}, []string{"verb"}, "out", 0, ""},
		{"fails", testutil.FakeRule{Stdout: "half", Stderr: "error: no\n", Exit: 1}, []string{"verb", "--repo=x"}, "", 1, "FAKE verb: exit status 1: no"},
		{"fails silently", testutil.FakeRule{Exit: 3}, []string{"verb"}, "", 3, "FAKE verb: exit status 3"},
		{"no verb", testutil.FakeRule{Stderr: "what?", Exit: 2}, []string{"--version"}, "", 2, "FAKE: exit status 2: what?"},
		{"no arguments", testutil.FakeRule{Exit: 2}, nil, "", 2, "FAKE: exit status 2"},
		{"the last lines", testutil.FakeRule{Stderr: "one\ntwo\nthree\n\nerror: four\r\n", Exit: 1}, []string{"verb"}, "", 1, "FAKE verb: exit status 1: two; three; four"},
		{"a flood", testutil.FakeRule{Stderr: strings.Repeat("flood\n", 100000) + "error: why\n", Exit: 1}, []string{"verb"}, "", 1, "FAKE verb: exit status 1: flood; flood; why"},
		{"not UTF-8", testutil.FakeRule{Stderr: "a\xffb\n", Exit: 1}, []string{"verb"}, "", 1, "FAKE verb: exit status 1: a\uFFFDb"},
		{"killed", testutil.FakeRule{Stderr: "so far\n", Signal: int(syscall.SIGKILL)}, []string{"verb"}, "", -1, "FAKE verb: signal: killed: so far"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r, path := fakeRunner(t, 0, tt.rule)
			out, err := r.Output(t.Context(), proc.Command{Tool: proc.OSTree, Args: tt.args})
			testutil.SameText(t, "output", string(out), tt.want)
			testutil.SameText(t, "error", strings.ReplaceAll(testutil.ErrText(err), path, "FAKE"), tt.wantErr)
			if tt.wantErr == "" {
				return
			}
			var terr *proc.ToolError
			if !errors.As(err, &terr) || terr.ExitCode != tt.code || !slices.Equal(terr.Args, tt.args) || len(terr.Stderr) > proc.StderrTail+10 {
				t.Errorf("%#v, want exit code %d and arguments %q", err, tt.code, tt.args)
			}
		})
	}
}

func TestMissingProgram(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/plain", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	tests := []struct{ name, tool, wantErr string }{
		{
			"ostree", proc.OSTree,
			"ostree: not found: install the package ostree (libostree 2022.7 or newer), or name the program with --ostree",
		},
		{"tar", proc.Tar, dir + "/plain: not found: install GNU tar (the package tar), or name the program with --tar"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRunner("ostree", dir+"/plain", 0, &journal{})
			err := r.Run(t.Context(), proc.Command{Tool: tt.tool})
			testutil.SameText(t, "error", testutil.ErrText(err), tt.wantErr)
			var missing *errdefs.MissingToolError
			if !errors.As(err, &missing) {
				t.Errorf("%T is no missingToolError", err)
			}
		})
	}
}

func TestEnvironment(t *testing.T) {
	for _, name := range []string{"TAR_OPTIONS", "OSTREE_REPO", "SOURCE_DATE_EPOCH", "G_MESSAGES_DEBUG", "LD_PRELOAD", "LANG", "LC_ALL", "LANGUAGE", "OSTREE_DEBUG", "POSIXLY_CORRECT"} {
		t.Setenv(name, "/evil")
	}
	t.Setenv("GNUPGHOME", "/keys")
	r, _ := fakeRunner(t, 0, testutil.FakeRule{Env: true})
	out, err := r.Output(t.Context(), proc.Command{Tool: proc.OSTree})
	if err != nil {
		t.Fatal(err)
	}
	allowed := append([]string{"LC_ALL"}, proc.AllowedEnvironment...)
	got := map[string]string{}
	for line := range strings.Lines(string(out)) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		got[name] = value
		if !slices.Contains(allowed, name) && name != "PWD" { // the Go runtime of the fake sets none
			t.Errorf("%s reaches the command", name)
		}
	}
	testutil.SameText(t, "LC_ALL", got["LC_ALL"], "C.UTF-8")
	testutil.SameText(t, "GNUPGHOME", got["GNUPGHOME"], "/keys")
	testutil.SameText(t, "PATH", got["PATH"], os.Getenv("PATH"))
}

// TestCancel ends commands whose child is deaf to SIGTERM, and looks for that.
func TestCancel(t *testing.T) {
	t.Parallel()
	whim := errors.New("a whim")
	tests := []struct {
		name    string
		rule    testutil.FakeRule
		timeout time.Duration
		wantErr string
	}{
		{"that ends", testutil.FakeRule{Child: true, Read: -1}, 0, "a whim"},
		{"that is deaf itself", testutil.FakeRule{Child: true, Sleep: time.Minute}, 0, "a whim"},
		{"out of time", testutil.FakeRule{Child: true, Stderr: "error: slow\n", Read: -1}, 4 * time.Second, "FAKE verb: stopped after 4s, the limit of --command-timeout: slow"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r, path := fakeRunner(t, tt.timeout, tt.rule)
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			began := time.Now()
			p, stdin, err := r.Writer(ctx, proc.Command{Tool: proc.OSTree, Args: []string{"verb"}}, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = stdin.Close() }()
			file := filepath.Join(filepath.Dir(path), "child")
			testutil.Eventually(t, "the child", func() bool { _, err := os.Stat(file); return err == nil })
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			child, err := strconv.Atoi(string(b))
			if err != nil {
				t.Fatal(err)
			}
			if tt.timeout == 0 {
				cancel(whim)
			}
			err = p.Wait()
			testutil.SameText(t, "error", strings.ReplaceAll(testutil.ErrText(err), path, "FAKE"), tt.wantErr)
			if tt.timeout == 0 && !errors.Is(err, whim) {
				t.Errorf("%v is not its cause", err)
			}
			// Whatever the program does next, such as ending, nothing is left.
			testutil.Eventually(t, "the end of the child", func() bool { return !testutil.Running(child) })
			if testutil.Running(p.Cmd.Process.Pid) {
				t.Error("the command still runs")
			}
			if took := time.Since(began); took > proc.WaitDelay+15*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

// TestTimeOfTheCommand: what a command waits for, and what nobody waits for yet, is no time of its
// own.
func TestTimeOfTheCommand(t *testing.T) {
	t.Parallel()
	const limit = 2 * time.Second
	r := newRunner(testutil.FakeTool(t, "ostree", testutil.FakeRule{Match: "commit", Read: -1, Stdout: "done"}, testutil.FakeRule{Match: "cat", Stdout: "all"}), "tar", limit, &journal{})
	out := &proc.LimitedBuffer{Limit: 100}
	p, stdin, err := r.Writer(t.Context(), proc.Command{Tool: proc.OSTree, Args: []string{"commit"}}, out)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := r.Reader(t.Context(), proc.Command{Tool: proc.OSTree, Args: []string{"cat"}})
	if err != nil {
		t.Fatal(err)
	}
	for range 4 { // a slow network
		if _, err := stdin.Write([]byte("x")); err != nil {
			t.Error(err)
		}
		time.Sleep(limit / 3)
	}
	if err := stdin.Close(); err != nil {
		t.Error(err)
	}
	if err := p.Wait(); err != nil {
		t.Error(err)
	}
	testutil.SameText(t, "what it printed", string(out.Bytes), "done")
	all, err := io.ReadAll(stream)
	if err != nil {
		t.Error(err)
	}
	testutil.SameText(t, "what was read late", string(all), "all")
}

// TestNoSignalToOthers: the number of a process that was waited for may be another's.
func TestNoSignalToOthers(t *testing.T) {
	t.Parallel()
	r, _ := fakeRunner(t, 0, testutil.FakeRule{})
	p, err := r.Start(t.Context(), proc.Command{Tool: proc.OSTree, Args: []string{"verb"}}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err != nil {
		t.Error(err)
	}
	if err := p.Signal(syscall.SIGKILL); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("a signal to it: %v", err)
	}
}

// TestDeafReader: a process whose stream is read ahead, and no longer wanted, ends at once.
func TestDeafReader(t *testing.T) {
	t.Parallel()
	r := newRunner(testutil.FakeTool(t, "ostree", testutil.FakeRule{Match: "cat", Stdout: "all", Sleep: time.Minute}), "tar", 0, &journal{})
	stream, err := r.Reader(t.Context(), proc.Command{Tool: proc.OSTree, Args: []string{"cat"}})
	if err != nil {
		t.Fatal(err)
	}
	testutil.ReadN(t, stream, 3) // it is there, and deaf
	ahead := spool.NewReadAhead(stream, spool.NewPieces(1), stream.Kill)
	began := time.Now()
	if err := ahead.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took >= proc.KillAfter {
		t.Errorf("it took %s", took)
	}
	if testutil.Running(stream.P.Cmd.Process.Pid) {
		t.Error("the command still runs")
	}
	stream.Kill() // by now its number may be another's
	if n, err := ahead.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrClosed) {
		t.Errorf("a closed stream gives %d bytes, %v", n, err)
	}
}

// TestDeafChildKeepsStream: the end of the run ends a stream too that a child of the command's own
// keeps open, deaf to SIGTERM.
func TestDeafChildKeepsStream(t *testing.T) {
	t.Parallel()
	fake := filepath.Join(t.TempDir(), "ostree")
	script := "#!/bin/sh\n(trap '' TERM; echo; while :; do sleep 0.2; done) &\nwait\n"
	if err := os.WriteFile(fake, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	rc, err := newRunner(fake, "tar", 0, &journal{}).Reader(ctx, proc.Command{Tool: proc.OSTree})
	if err != nil {
		t.Fatal(err)
	}
	testutil.ReadN(t, rc, 1) // the child is there, and deaf
	whim, ended := errors.New("a whim"), make(chan error, 1)
	cancel(whim)
	go func() {
		_, err := io.ReadAll(rc)
		ended <- err
	}()
	select {
	case err := <-ended:
		if !errors.Is(err, whim) {
			t.Errorf("it ends with %v", err)
		}
	case <-time.After(proc.KillAfter + proc.WaitDelay + 5*time.Second):
		t.Error("it does not end")
	}
	_ = rc.Close()
}

func TestEndedContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errdefs.SignalError{Sig: syscall.SIGINT})
	r := newRunner("true", "true", 0, &journal{})
	err := r.Run(ctx, proc.Command{Tool: proc.OSTree, Args: []string{"verb"}})
	if !strings.HasSuffix(testutil.ErrText(err), "stopped by interrupt") {
		t.Errorf("%v", err)
	}
	var sig errdefs.SignalError
	if !errors.As(err, &sig) || sig.Sig != syscall.SIGINT {
		t.Errorf("%#v is no signalError", err)
	}
}

func TestCutOutput(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		rule    testutil.FakeRule
		want    string
		wantErr string
	}{
		{"whole", testutil.FakeRule{Stdout: "all of it"}, "all of it", ""},
		{"empty", testutil.FakeRule{}, "", ""},
		{"cut", testutil.FakeRule{Stdout: "half of", Stderr: "error: no such file\n", Exit: 1}, "half of", "FAKE cat: exit status 1: no such file"},
		{"killed", testutil.FakeRule{Stdout: "half of", Signal: int(syscall.SIGKILL)}, "half of", "FAKE cat: signal: killed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r, path := fakeRunner(t, 0, tt.rule)
			rc, err := r.Reader(t.Context(), proc.Command{Tool: proc.OSTree, Args: []string{"cat"}})
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(rc)
			testutil.SameText(t, "output", string(got), tt.want)
			testutil.SameText(t, "error", strings.ReplaceAll(testutil.ErrText(err), path, "FAKE"), tt.wantErr)
			if n, again := rc.Read(make([]byte, 1)); n != 0 || testutil.ErrText(again) == "" || tt.wantErr != "" && again.Error() != err.Error() {
				t.Errorf("after its end it reads %d, %v", n, again)
			}
			if err := rc.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestClosedReader: whoever needs no more ends the command.
func TestClosedReader(t *testing.T) {
	t.Parallel()
	r, _ := fakeRunner(t, 0, testutil.FakeRule{Stdout: "some", Sleep: time.Minute})
	rc, err := r.Reader(t.Context(), proc.Command{Tool: proc.OSTree, Args: []string{"cat"}})
	if err != nil {
		t.Fatal(err)
	}
	if b := testutil.ReadN(t, rc, 4); string(b) != "some" {
		t.Errorf("%q", b)
	}
	began := time.Now()
	if err := rc.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	if n, err := rc.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrClosed) {
		t.Errorf("a closed reader reads %d, %v", n, err)
	}
	if testutil.Running(rc.P.Cmd.Process.Pid) {
		t.Error("the command still runs")
	}
}

func TestOutputLimit(t *testing.T) {
	b := &proc.LimitedBuffer{Limit: 5}
	for _, tt := range []struct{ text, wantErr string }{{"abc", ""}, {"de", ""}, {"f", "more than 5 bytes of output"}} {
		_, err := b.Write([]byte(tt.text))
		testutil.SameText(t, "error of "+tt.text, testutil.ErrText(err), tt.wantErr)
	}
	testutil.SameText(t, "output", string(b.Bytes), "abcde")
}

// TestWorkingDirectory: where a command is run, a relative path means nothing of the caller's.
func TestWorkingDirectory(t *testing.T) {
	t.Parallel()
	testutil.NeedTools(t, "pwd")
	out, err := newRunner("pwd", "tar", 0, &journal{}).Output(t.Context(), proc.Command{Tool: proc.OSTree, Args: []string{"-P"}})
	testutil.SameText(t, "directory", string(out)+testutil.ErrText(err), "/\n")
}

// TestInheritedLock: every child holds the locks of the run, and none of its other files.
func TestInheritedLock(t *testing.T) {
	t.Parallel()
	r, _ := fakeRunner(t, 0, testutil.FakeRule{Fds: true})
	lock, err := os.Create(filepath.Join(t.TempDir(), "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Close() }()
	other, err := os.Create(filepath.Join(t.TempDir(), "other"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	stop := r.Inheriting(lock)
	for _, held := range []bool{true, false} {
		out, err := r.Output(t.Context(), proc.Command{Tool: proc.OSTree})
		if err != nil {
			t.Fatal(err)
		}
		if got := bytes.Contains(out, []byte(lock.Name())); got != held {
			t.Errorf("the child holds the lock: %t, want %t\n%s", got, held, out)
		}
		if bytes.Contains(out, []byte(other.Name())) {
			t.Errorf("the child holds other files\n%s", out)
		}
		stop()
	}
}

// TestLockLetGo: a run ends its hold on a directory while another one starts commands.
func TestLockLetGo(t *testing.T) {
	t.Parallel()
	testutil.NeedTools(t, "true")
	r := newRunner("true", "true", 0, &journal{})
	dir := t.TempDir()
	var runs sync.WaitGroup
	for range 4 {
		runs.Go(func() {
			for range 25 {
				lock, err := os.Open(dir)
				if err != nil {
					t.Error(err)
					return
				}
				stop := r.Inheriting(lock)
				if err := r.Run(t.Context(), proc.Command{Tool: proc.OSTree}); err != nil {
					t.Error(err)
				}
				stop()
				_ = lock.Close()
			}
		})
	}
	runs.Wait()
}

// TestParentKilled: a child does not outlive the program, however that ends.
func TestParentKilled(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	parent := filepath.Join(dir, "parent-of-sleeper")
	if err := os.Symlink(self, parent); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(parent)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var child int
	if _, err := fmt.Fscan(out, &child); err != nil {
		t.Fatal(err)
	}
	if !testutil.Running(child) {
		t.Error("the child does not run")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	testutil.Eventually(t, "the end of the child", func() bool { return !testutil.Running(child) })
}

// parentOfSleeper is the program of TestParentKilled. The thread on which it asks for the child
// ends, as any of a Go program may.
func parentOfSleeper() int {
	runtime.LockOSThread() // the first thread of all, which stays
	started := make(chan *proc.Process)
	go func() {
		runtime.LockOSThread()
		p, err := newRunner("sleep", "tar", 0, &journal{}).Start(context.Background(), proc.Command{Tool: proc.OSTree, Args: []string{"600"}}, nil, nil)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		started <- p
	}()
	p := <-started
	if p == nil {
		return 1
	}
	time.Sleep(500 * time.Millisecond)
	fmt.Println(p.Cmd.Process.Pid)
	_ = p.Wait()
	return 0
}

// TestEngineEnds: an engine that ends before its input does says why.
func TestEngineEnds(t *testing.T) {
	t.Parallel()
	layer := archive(file("large", strings.Repeat(bigBody, 4)))
	tests := []struct {
		name    string
		engine  engineName
		rule    testutil.FakeRule
		timeout time.Duration
		wantErr string
	}{
		{"fails", engineStream, testutil.FakeRule{Match: "--tree=tar=-", Read: 1000, Stderr: "error: no space\n", Exit: 1}, 0, "FAKE commit: exit status 1: no space"},
		{"crashes", engineStream, testutil.FakeRule{Match: "--tree=tar=-", Read: 1000, Stderr: "assertion\n", Signal: int(syscall.SIGKILL)}, 0, "FAKE commit: signal: killed: assertion"},
		{"hangs", engineStream, testutil.FakeRule{Match: "--tree=tar=-", Read: 1000, Sleep: time.Minute}, 2 * time.Second, "FAKE commit: stopped after 2s, the limit of --command-timeout"},
		{"ends well, too early", engineStream, testutil.FakeRule{Match: "--tree=tar=-", Read: 1000, Stdout: sumA + "\n"}, 0, "FAKE commit: it ended before its input did"},
		{"no checksum", engineStream, testutil.FakeRule{Match: "--tree=tar=-", Read: -1, Stdout: "done\n"}, 0, `ostree commit: "done\n" is no checksum`},
		{"tar fails", engineTar, testutil.FakeRule{Match: "-x", Read: 1000, Stderr: "tar: no space\n", Exit: 2}, 0, "FAKE: exit status 2: tar: no space"},
		{"tar hangs", engineTar, testutil.FakeRule{Match: "-x", Read: 1000, Sleep: time.Minute}, 2 * time.Second, "FAKE: stopped after 2s, the limit of --command-timeout"},
		{
			"tar fails at the end", engineTar,
			testutil.FakeRule{Match: "-x", Read: -1, Stderr: "tar: Exiting with failure status due to previous errors\n", Exit: 2},
			0,
			"FAKE: exit status 2: tar: Exiting with failure status due to previous errors",
		},
		{
			"tar cannot set an attribute", engineTar,
			testutil.FakeRule{Match: "-x", Read: -1, Stderr: "tar: setxattrat: Cannot set 'user.a' extended attribute for file 'x': No space left on device\n"},
			0,
			"FAKE: the files cannot have all attributes here: tar: setxattrat: Cannot set 'user.a' extended attribute for file 'x': No space left on device",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			o := testOptions{mode: ostree.Archive, unpack: tt.engine, timeout: tt.timeout}
			fake := ""
			if tt.engine == engineTar {
				fake = testutil.FakeTool(t, "tar", tt.rule)
				o.tar = fake
			} else {
				fake = testutil.FakeTool(t, "ostree", tt.rule)
				o.ostree = fake
			}
			r := newTestRun(t, o)
			err := r.importImage(t, "a", &testImage{layers: [][]byte{layer}})
			got := strings.ReplaceAll(testutil.ErrText(err), fake, "FAKE")
			_, got, _ = strings.Cut(strings.TrimPrefix(got, "importing: layer "), ": ")
			testutil.SameText(t, "error", got, tt.wantErr)
			r.nothingLeft(t)
		})
	}
}
