// Package proc starts, reads and ends processes, in a clean environment of their own, and says how
// they failed.
package proc

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
)

// What a process is given.
const (
	StderrTail   = 8 << 10          // bytes of a child's standard error that an error keeps
	KillAfter    = 5 * time.Second  // from the polite signal to SIGKILL
	WaitDelay    = 10 * time.Second // how long a grandchild may hold a pipe after its parent has ended
	outputLimit  = 64 << 20         // bytes of standard output that are read into memory
	pipeCapacity = 1 << 20          // bytes, the most that an unprivileged user may ask for (fs.pipe-max-size)
)

// AllowedEnvironment names the variables that children get. Everything else stays out: TAR_OPTIONS
// adds options to tar that run programs, OSTREE_REPO and SOURCE_DATE_EPOCH change what ostree does,
// G_MESSAGES_DEBUG writes into its output.
var AllowedEnvironment = []string{"PATH", "HOME", "TMPDIR", "GNUPGHOME", "XDG_RUNTIME_DIR"}

// observer learns of each command.
type observer interface {
	// Started is called before a command starts. hasOutput says that its standard output is read.
	// It returns the command's number.
	Started(c Command, hasOutput bool) int
	// Ended says how the command with that number has ended, and after how long.
	Ended(number int, err error, took time.Duration)
}

// Runner starts every process of the program: one seam for the clean environment, the process
// group, the observer and the errors. It is safe for parallel use.
type Runner struct {
	Programs map[string]string // what "ostree" and "tar" are called
	timeout  time.Duration     // of one command, 0 for none
	observer observer
	inherit  []*os.File // every child gets these: locks that end with the last process that holds them

	mu      sync.Mutex
	Found   map[string]string // the programs' paths, looked up once
	threads sync.Once
	spawn   chan func()
}

// NewRunner returns a runner that calls ostree and tar by these names. timeout is that of one
// command, 0 for none.
func NewRunner(ostree, tar string, timeout time.Duration, o observer) *Runner {
	return &Runner{
		Programs: map[string]string{OSTree: ostree, Tar: tar, Shell: Shell},
		timeout:  timeout,
		observer: o,
		Found:    map[string]string{},
		spawn:    make(chan func()),
	}
}

// The programs that are run, by the names that Command.Tool has for them.
const (
	OSTree = "ostree"
	Tar    = "tar"
	Shell  = "sh" // only for replay, whose work is to run a script
)

// OldestOSTree is the oldest release that the program is tested with.
const OldestOSTree = "2022.7"

// Packages says what to install for a tool that is missing.
var Packages = map[string]string{
	OSTree: "install the package ostree (libostree " + OldestOSTree + " or newer), or name the program with --ostree",
	Tar:    "install GNU tar (the package tar), or name the program with --tar",
}

// Command is a process to be.
type Command struct {
	Tool  string // toolOSTree or toolTar
	Args  []string
	Why   string // for the journal
	Input string // what the journal calls the standard input, see entry
	Read  bool   // only reads the repository, see entry

	Absent bool // see entry

	Hidden bool     // not for the journal: it serves the record
	Env    []string // variables beside those that every child gets

	Unlogged []string // last arguments, not for the journal either: keys, which nobody who runs it again has

	ErrLimit int // bytes of standard error that an error keeps, 0 for stderrTail
	OutLimit int // bytes of standard output that are read into memory, 0 for outputLimit
	Memory   int // bytes of memory that the process may have beside files that it maps, 0 for any number
}

// Inheriting makes every child from now on hold file open. The returned function ends that.
func (r *Runner) Inheriting(file *os.File) func() {
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
func (r *Runner) program(tool string) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if path := r.Found[tool]; path != "" {
		return path, nil
	}
	name := r.Programs[tool]
	path, err := exec.LookPath(name)
	if err != nil {
		return "", &errdefs.MissingToolError{Tool: name, Why: "not found: " + Packages[tool]}
	}
	r.Found[tool] = path
	return path, nil
}

// environment is what a child gets.
func environment() []string {
	env := []string{"LC_ALL=C.UTF-8"}
	for _, name := range AllowedEnvironment {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// Start starts c with the given streams, any of which may be nil. It writes the command into the
// journal first.
func (r *Runner) Start(ctx context.Context, c Command, stdin *os.File, stdout io.Writer) (*Process, error) {
	path, err := r.program(c.Tool)
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
	if c.ErrLimit == 0 {
		c.ErrLimit = StderrTail
	}
	p := &Process{
		Stderr: tail{limit: c.ErrLimit}, tool: r.Programs[c.Tool], args: c.Args, run: r,
		above: above, ctx: ctx, cancel: cancel, clock: clock, memory: c.Memory,
	}
	p.Cmd = exec.CommandContext(ctx, path, append(slices.Clip(c.Args), c.Unlogged...)...)
	p.Cmd.Args[0] = p.tool
	p.Cmd.Env = append(environment(), c.Env...)
	p.Cmd.Dir = "/" // a relative path in an argument would otherwise mean what the caller's directory makes of it
	if stdin != nil {
		p.Cmd.Stdin = stdin
	}
	p.Cmd.Stdout = stdout
	p.Cmd.Stderr = &p.Stderr
	p.Cmd.WaitDelay = WaitDelay
	p.Cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p.Cmd.Cancel = func() error {
		p.killer = time.AfterFunc(KillAfter, p.Kill)
		return p.Signal(syscall.SIGTERM)
	}
	if !c.Hidden {
		p.number = r.observer.Started(c, c.Read && stdout != nil)
	}
	p.began = time.Now()
	if err := r.onSpawnThread(p.begin); err != nil {
		terr := &ToolError{Tool: p.tool, Args: c.Args, ExitCode: -1, Err: startCause(ctx, err, c.Args)}
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

// onSpawnThread runs start on one thread that lives as long as the program. Pdeathsig is sent when
// the thread that started a child ends, not the process (prctl(2)), and Go ends threads as it
// likes.
func (r *Runner) onSpawnThread(start func() error) error {
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

// Run runs c to its end, without input, its output unread.
func (r *Runner) Run(ctx context.Context, c Command) error {
	p, err := r.Start(ctx, c, nil, nil)
	if err != nil {
		return err
	}
	return p.Wait()
}

// Output runs c to its end and returns its standard output.
func (r *Runner) Output(ctx context.Context, c Command) ([]byte, error) {
	out := &LimitedBuffer{Limit: outputLimit}
	if c.OutLimit > 0 {
		out.Limit = c.OutLimit
	}
	p, err := r.Start(ctx, c, nil, out)
	if err != nil {
		return nil, err
	}
	if err := p.Wait(); err != nil {
		return nil, err
	}
	return out.Bytes, nil
}

// Reader starts c and returns its standard output as a stream. It gives io.EOF only after the
// process has ended well: a stream that was cut is an error. Close ends the process where it still
// runs, and waits for it.
func (r *Runner) Reader(ctx context.Context, c Command) (*Reader, error) {
	out, theirs, err := newPipe()
	if err != nil {
		return nil, err
	}
	p, err := r.Start(ctx, c, nil, theirs)
	if cerr := theirs.Close(); cerr != nil && err == nil {
		p.Kill()
		_ = p.Wait()
		err = errors.WithStack(cerr)
	}
	if err != nil {
		_ = out.Close()
		return nil, err
	}
	return &Reader{P: p, out: &Pipe{out, p.clock}}, nil
}

// Reader is the standard output of a process: see Runner.Reader.
type Reader struct {
	P     *Process
	out   *Pipe
	ended bool
	err   error

	Explain func(error) error // of how the process ended, nil for none
}

func (pr *Reader) Read(b []byte) (int, error) {
	if pr.ended {
		return 0, pr.err
	}
	n, err := pr.out.Read(b)
	if err != nil {
		pr.ended = true
		pr.err = err
		if werr := pr.P.Wait(); werr != nil {
			pr.err = werr
			if pr.Explain != nil {
				pr.err = pr.Explain(werr)
			}
		}
	}
	if n > 0 {
		return n, nil
	}
	return 0, pr.err
}

// Kill ends the process at once. It may come while another goroutine reads.
func (pr *Reader) Kill() { pr.P.Kill() }

// Close ends the process where it still runs, and waits for it.
func (pr *Reader) Close() error {
	if !pr.ended {
		pr.ended = true
		pr.err = os.ErrClosed
		pr.P.Kill()
		_ = pr.P.Wait()
	}
	return pr.out.Close()
}

// Writer starts c and returns it with a pipe to its standard input. The caller closes the pipe,
// then calls wait; or calls kill before it closes the pipe, where the process must not take the
// stream for whole.
func (r *Runner) Writer(ctx context.Context, c Command, stdout io.Writer) (*Process, *Pipe, error) {
	theirs, in, err := newPipe()
	if err != nil {
		return nil, nil, err
	}
	p, err := r.Start(ctx, c, theirs, stdout)
	_ = theirs.Close()
	if err != nil {
		_ = in.Close()
		return nil, nil, err
	}
	return p, &Pipe{in, p.clock}, nil
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

// LimitedBuffer keeps what is written to it, up to a limit.
type LimitedBuffer struct {
	Bytes []byte
	Limit int
}

func (b *LimitedBuffer) Write(p []byte) (int, error) {
	if len(b.Bytes)+len(p) > b.Limit {
		return 0, errors.Errorf("more than %d bytes of output", b.Limit)
	}
	b.Bytes = append(b.Bytes, p...)
	return len(p), nil
}
