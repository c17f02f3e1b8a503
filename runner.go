package main

import (
	"context"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/pkg/errors"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/shellquote"
)

const (
	stderrTail   = 8 << 10          // bytes of a child's standard error that an error keeps
	killAfter    = 5 * time.Second  // from the polite signal to SIGKILL
	waitDelay    = 10 * time.Second // how long a grandchild may hold a pipe after its parent has ended
	outputLimit  = 64 << 20         // bytes of standard output that are read into memory
	pipeCapacity = 1 << 20          // bytes, the most that an unprivileged user may ask for (fs.pipe-max-size)
)

// allowedEnvironment names the variables that children get. Everything else stays out: TAR_OPTIONS adds options to tar
// that run programs, OSTREE_REPO and SOURCE_DATE_EPOCH change what ostree does, G_MESSAGES_DEBUG writes into its output.
var allowedEnvironment = []string{"PATH", "HOME", "TMPDIR", "GNUPGHOME", "XDG_RUNTIME_DIR"}

// runner starts every process of the program: one seam for the clean environment, the process group, the journal and
// the errors. It is safe for parallel use.
type runner struct {
	programs map[string]string // what "ostree" and "tar" are called
	timeout  time.Duration     // of one command, 0 for none
	journal  *journal
	inherit  []*os.File // every child gets these: locks that end with the last process that holds them

	mu      sync.Mutex
	names   map[string]string // how the user named the pinned directories, by their paths
	found   map[string]string // the programs' paths, looked up once
	threads sync.Once
	spawn   chan func()
}

func newRunner(ostree, tar string, timeout time.Duration, j *journal) *runner {
	return &runner{
		programs: map[string]string{toolOSTree: ostree, toolTar: tar, toolShell: toolShell},
		timeout:  timeout,
		journal:  j,
		found:    map[string]string{},
		names:    map[string]string{},
		spawn:    make(chan func()),
	}
}

const (
	toolOSTree = "ostree"
	toolTar    = "tar"
	toolShell  = "sh" // only for replay, whose work is to run a script
)

// packages says what to install for a tool that is missing.
var packages = map[string]string{
	toolOSTree: "install the package ostree (libostree " + oldestOSTree + " or newer), or name the program with --ostree",
	toolTar:    "install GNU tar (the package tar), or name the program with --tar",
}

// command is a process to be.
type command struct {
	tool  string // toolOSTree or toolTar
	args  []string
	why   string // for the journal
	input string // what the journal calls the standard input, see entry
	read  bool   // only reads the repository, see entry

	absent bool // see entry

	hidden bool     // not for the journal: it serves the record
	env    []string // variables beside those that every child gets

	unlogged []string // last arguments, not for the journal either: keys, which nobody who runs it again has

	errLimit int // bytes of standard error that an error keeps, 0 for stderrTail
	outLimit int // bytes of standard output that are read into memory, 0 for outputLimit
	memory   int // bytes of memory that the process may have, 0 for any number
}

// inheriting makes every child from now on hold file open. The returned function ends that.
func (r *runner) inheriting(file *os.File) func() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.inherit = append(r.inherit, file)
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		for i, f := range r.inherit {
			if f == file {
				r.inherit = append(r.inherit[:i:i], r.inherit[i+1:]...)
				return
			}
		}
	}
}

// program returns the path of a tool, or a *missingToolError.
func (r *runner) program(tool string) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if path := r.found[tool]; path != "" {
		return path, nil
	}
	name := r.programs[tool]
	path, err := exec.LookPath(name)
	if err != nil {
		return "", &errdefs.MissingToolError{Tool: name, Why: "not found: " + packages[tool]}
	}
	r.found[tool] = path
	return path, nil
}

// environment is what a child gets.
func environment() []string {
	env := []string{"LC_ALL=C.UTF-8"}
	for _, name := range allowedEnvironment {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// start starts c with the given streams, any of which may be nil. It writes the command into the journal first.
func (r *runner) start(ctx context.Context, c command, stdin *os.File, stdout io.Writer) (*process, error) {
	path, err := r.program(c.tool)
	if err != nil {
		return nil, err
	}
	above := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	var clock *commandClock
	if r.timeout > 0 {
		clock = newCommandClock(r.timeout, func() {
			cancel(errors.Errorf("stopped after %s, the limit of --command-timeout", r.timeout))
		})
	}
	if c.errLimit == 0 {
		c.errLimit = stderrTail
	}
	p := &process{
		stderr: tail{limit: c.errLimit}, tool: r.programs[c.tool], args: c.args, run: r,
		above: above, ctx: ctx, cancel: cancel, clock: clock, memory: c.memory,
	}
	p.cmd = exec.CommandContext(ctx, path, append(slices.Clip(c.args), c.unlogged...)...)
	p.cmd.Args[0] = p.tool
	p.cmd.Env = append(environment(), c.env...)
	p.cmd.Dir = "/" // a relative path in an argument would otherwise mean what the caller's directory makes of it
	if stdin != nil {
		p.cmd.Stdin = stdin
	}
	p.cmd.Stdout = stdout
	p.cmd.Stderr = &p.stderr
	p.cmd.WaitDelay = waitDelay
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p.cmd.Cancel = func() error {
		p.killer = time.AfterFunc(killAfter, p.kill)
		return p.signal(syscall.SIGTERM)
	}
	if !c.hidden {
		p.number = r.journal.command(entry{
			why: c.why, words: append([]string{c.tool}, c.args...), input: c.input, read: c.read, absent: c.absent, out: c.read && stdout != nil,
		})
	}
	p.began = time.Now()
	if err := r.onSpawnThread(p.begin); err != nil {
		terr := &toolError{Tool: p.tool, Args: c.args, ExitCode: -1, Err: startCause(ctx, err, c.args)}
		cancel(nil) // only now: the cause is to be an ended context only where that was the cause
		p.ended(terr)
		return nil, terr
	}
	return p, nil
}

// startCause explains an error of starting a process.
func startCause(ctx context.Context, err error, args []string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, syscall.E2BIG) {
		longest := 0
		for _, a := range args {
			longest = max(longest, len(a))
		}
		return errors.WithMessagef(err, "starting it with %d arguments, the longest of %d bytes", len(args), longest)
	}
	return err
}

// onSpawnThread runs start on one thread that lives as long as the program. Pdeathsig is sent when the thread that
// started a child ends, not the process (prctl(2)), and Go ends threads as it likes.
func (r *runner) onSpawnThread(start func() error) error {
	r.threads.Do(func() {
		go func() {
			runtime.LockOSThread()
			for f := range r.spawn {
				f()
			}
		}()
	})
	done := make(chan error, 1)
	r.spawn <- func() { done <- start() }
	return <-done
}

// run runs c to its end, without input, its output unread.
func (r *runner) run(ctx context.Context, c command) error {
	p, err := r.start(ctx, c, nil, nil)
	if err != nil {
		return err
	}
	return p.wait()
}

// output runs c to its end and returns its standard output.
func (r *runner) output(ctx context.Context, c command) ([]byte, error) {
	out := &limitedBuffer{limit: outputLimit}
	if c.outLimit > 0 {
		out.limit = c.outLimit
	}
	p, err := r.start(ctx, c, nil, out)
	if err != nil {
		return nil, err
	}
	if err := p.wait(); err != nil {
		return nil, err
	}
	return out.bytes, nil
}

// runShell runs lines of a recorded script, with its variables. What they print goes to w.
func runShell(ctx context.Context, r *runner, w io.Writer, lines string, variables map[string]string) error {
	c := command{tool: toolShell, args: []string{"-eus"}, hidden: true}
	for name, value := range variables {
		c.env = append(c.env, name+"="+value)
	}
	p, stdin, err := r.writer(ctx, c, w)
	if err != nil {
		return err
	}
	// On standard input, since an argument may have no more than 128 kB. The braces make the shell read all of it first, and keep
	// the commands from reading on there.
	_, werr := io.WriteString(stdin, shellquote.Prelude+"\n{\n"+lines+"\n} </dev/null\n")
	if cerr := stdin.Close(); werr == nil {
		werr = cerr
	}
	if err := p.wait(); err != nil {
		return err
	}
	return errors.Wrap(werr, "giving the commands to the shell")
}

// reader starts c and returns its standard output as a stream. It gives io.EOF only after the process has ended well: a
// stream that was cut is an error. Close ends the process where it still runs, and waits for it.
func (r *runner) reader(ctx context.Context, c command) (*processReader, error) {
	out, theirs, err := newPipe()
	if err != nil {
		return nil, err
	}
	p, err := r.start(ctx, c, nil, theirs)
	if cerr := theirs.Close(); cerr != nil && err == nil {
		p.kill()
		_ = p.wait()
		err = errors.WithStack(cerr)
	}
	if err != nil {
		_ = out.Close()
		return nil, err
	}
	return &processReader{p: p, out: &pipeEnd{out, p.clock}}, nil
}

type processReader struct {
	p     *process
	out   *pipeEnd
	ended bool
	err   error

	explain func(error) error // of how the process ended, nil for none
}

func (pr *processReader) Read(b []byte) (int, error) {
	if pr.ended {
		return 0, pr.err
	}
	n, err := pr.out.Read(b)
	if err != nil {
		pr.ended = true
		pr.err = err
		if werr := pr.p.wait(); werr != nil {
			pr.err = werr
			if pr.explain != nil {
				pr.err = pr.explain(werr)
			}
		}
	}
	if n > 0 {
		return n, nil
	}
	return 0, pr.err
}

// kill ends the process at once. It may come while another goroutine reads.
func (pr *processReader) kill() { pr.p.kill() }

func (pr *processReader) Close() error {
	if !pr.ended {
		pr.ended = true
		pr.err = os.ErrClosed
		pr.p.kill()
		_ = pr.p.wait()
	}
	return pr.out.Close()
}

// writer starts c and returns it with a pipe to its standard input. The caller closes the pipe, then calls wait; or
// calls kill before it closes the pipe, where the process must not take the stream for whole.
func (r *runner) writer(ctx context.Context, c command, stdout io.Writer) (*process, *pipeEnd, error) {
	theirs, in, err := newPipe()
	if err != nil {
		return nil, nil, err
	}
	p, err := r.start(ctx, c, theirs, stdout)
	_ = theirs.Close()
	if err != nil {
		_ = in.Close()
		return nil, nil, err
	}
	return p, &pipeEnd{in, p.clock}, nil
}

// tail keeps the last bytes that are written to it.
type tail struct {
	limit int
	mu    sync.Mutex
	buf   []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b[max(0, len(b)-t.limit):]...)
	if over := len(t.buf) - t.limit; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.ToValidUTF8(string(t.buf), "\uFFFD")
}

// limitedBuffer keeps what is written to it, up to a limit.
type limitedBuffer struct {
	bytes []byte
	limit int
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if len(b.bytes)+len(p) > b.limit {
		return 0, errors.Errorf("more than %d bytes of output", b.limit)
	}
	b.bytes = append(b.bytes, p...)
	return len(p), nil
}
