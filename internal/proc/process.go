package proc

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/pkg/errors"
	"golang.org/x/sys/unix"

	"ostree-image/internal/errdefs"
)

// Process is a running command. The caller calls Wait, exactly once; Kill may come at any time.
type Process struct {
	Cmd    *exec.Cmd
	tool   string
	args   []string
	Stderr tail
	above  context.Context // the caller's
	ctx    context.Context // ends with that, or with --command-timeout
	cancel context.CancelCauseFunc
	killer *time.Timer // sends SIGKILL a while after SIGTERM
	clock  *commandClock
	number int
	memory int // see command
	began  time.Time
	took   time.Duration // once it has ended
	run    *Runner

	mu     sync.Mutex
	reaped bool // its number may be another process's
}

// begin starts the process with the files that it inherits, none of which is let go meanwhile.
func (p *Process) begin() error {
	p.run.mu.Lock()
	defer p.run.mu.Unlock()
	p.Cmd.ExtraFiles = append([]*os.File(nil), p.run.inherit...)
	err := p.Cmd.Start()
	if err == nil && p.memory > 0 {
		go p.watchMemory()
	}
	return err
}

// memoryInterval is how often is looked how much memory a process has.
const memoryInterval = 5 * time.Millisecond

// watchMemory ends a process that has more memory than it may, with a CheckError. A limit of the
// kernel's counts what a program reserves, too, and a wrapper in another language reserves a lot.
func (p *Process) watchMemory() {
	ticker := time.NewTicker(memoryInterval)
	defer ticker.Stop()
	path := fmt.Sprintf("/proc/%d/statm", p.Cmd.Process.Pid)
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-ticker.C:
		}
		var size, resident, shared int
		if b, err := os.ReadFile(path); err == nil {
			_, _ = fmt.Sscan(string(b), &size, &resident, &shared)
		}
		if (resident-shared)*os.Getpagesize() > p.memory {
			p.cancel(errdefs.Checkf("it takes more than %d bytes of memory", p.memory))
			return
		}
	}
}

// Kill ends the whole process group at once. Wait is still to be called.
func (p *Process) Kill() { _ = p.Signal(syscall.SIGKILL) }

// Signal sends a signal to the whole process group, unless the process was waited for: then another
// may have its number.
func (p *Process) Signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		return os.ErrProcessDone
	}
	return syscall.Kill(-p.Cmd.Process.Pid, sig)
}

// awaitEnd returns when the process has ended, and its number is still its own.
func (p *Process) awaitEnd() {
	for errors.Is(unix.Waitid(unix.P_PID, p.Cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil), unix.EINTR) {
	}
}

// Wait waits for the end of the process. Any end but exit status 0 is a *ToolError; where the
// caller's context ended it, it is that context's cause.
func (p *Process) Wait() error {
	err := p.outcome()
	p.ended(err)
	return err
}

func (p *Process) outcome() error {
	p.clock.enter()
	p.awaitEnd()
	p.clock.leave()
	p.mu.Lock()
	if p.ctx.Err() != nil { // the rest of the group: a child of the command's own can be deaf to SIGTERM
		_ = syscall.Kill(-p.Cmd.Process.Pid, syscall.SIGKILL)
	}
	p.reaped = true
	p.mu.Unlock()
	err := p.Cmd.Wait()
	p.took = time.Since(p.began)
	if p.killer != nil {
		p.killer.Stop()
	}
	if err == nil {
		p.cancel(nil)
		return nil
	}
	if p.above.Err() != nil { // the command is not to blame: something else ended the run
		cause := context.Cause(p.above)
		p.cancel(nil)
		return cause
	}
	cause := err
	if p.ctx.Err() != nil {
		cause = context.Cause(p.ctx)
	}
	p.cancel(nil)
	return &ToolError{
		Tool:     p.tool,
		Args:     p.args,
		ExitCode: p.Cmd.ProcessState.ExitCode(),
		Stderr:   p.Stderr.String(),
		Err:      cause,
	}
}

// Failed is the error of a process that has ended well and not done its work.
func (p *Process) Failed(why string) error {
	return &ToolError{Tool: p.tool, Args: p.args, Stderr: p.Stderr.String(), Err: errors.New(why)}
}

// ended tells the observer.
func (p *Process) ended(err error) {
	if p.number > 0 {
		p.run.observer.Ended(p.number, err, p.took)
	}
}
