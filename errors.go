package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/pkg/errors"
)

// Exit statuses, as the README lists them.
const (
	exitDone     = 0
	exitFailed   = 1
	exitUsage    = 2
	exitNotFound = 3
	exitCheck    = 4
)

// usageError says that the command line itself is wrong.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

func usagef(format string, args ...any) error {
	return usageError{fmt.Sprintf(format, args...)}
}

// notFoundError says that an image or a repository does not exist.
type notFoundError struct{ text string }

func (e notFoundError) Error() string { return e.text }

func notFoundf(format string, args ...any) error {
	return notFoundError{fmt.Sprintf(format, args...)}
}

// checkError says that a digest, a signature or the repository did not hold what it should.
type checkError struct{ text string }

func (e checkError) Error() string { return e.text }

func checkf(format string, args ...any) error {
	return checkError{fmt.Sprintf(format, args...)}
}

// accessError says that this user may not read what is there, which is no damage.
type accessError struct {
	repo string
	err  error
}

func (e *accessError) Error() string {
	return fmt.Sprintf("this user may not read all of the repository %s: %s; run as its owner, or make it readable", e.repo, e.err)
}

func (e *accessError) Unwrap() error { return e.err }

// goneError says that an image was removed while it was read, which is no damage either.
type goneError struct{ name string }

func (e goneError) Error() string {
	return fmt.Sprintf("image %s is gone: it was removed meanwhile", e.name)
}

// toolError is a child process that ran and did not end well, or was stopped.
type toolError struct {
	Tool     string   // the program as it was called
	Args     []string // its arguments
	ExitCode int      // -1 where a signal ended it
	Stderr   string   // the last 8 KiB of its standard error
	Err      error    // the cause: *exec.ExitError, or why the context ended
}

// Error names the tool, its subcommand, the status and the last words of its standard error.
func (e *toolError) Error() string {
	name := e.Tool
	if len(e.Args) > 0 && !strings.HasPrefix(e.Args[0], "-") {
		name += " " + e.Args[0]
	}
	text := name + ": " + e.Err.Error()
	if s := e.lastLines(3); s != "" {
		text += ": " + s
	}
	return text
}

// lastLines returns the last n lines of the standard error as one line, without "error: ", which ostree puts in front.
func (e *toolError) lastLines(n int) string {
	lines := strings.FieldsFunc(e.Stderr, func(r rune) bool { return r == '\n' || r == '\r' })
	lines = lines[max(0, len(lines)-n):]
	for i, l := range lines {
		lines[i] = strings.TrimPrefix(strings.TrimSpace(l), "error: ")
	}
	return strings.Join(lines, "; ")
}

func (e *toolError) Unwrap() error { return e.Err }

// noRoom names the place that a tool has filled, since tools often name none.
func noRoom(err error, place string) error {
	var terr *toolError
	if !errors.As(err, &terr) {
		return err
	}
	for _, said := range []string{"No space left on device", "min-free-space", "Disk quota exceeded", "Wrote only"} { // the last is tar's word for it
		if strings.Contains(terr.Stderr, said) {
			return errors.WithMessagef(err, "no space left in %s", place)
		}
	}
	return err
}

// advice is what helps with an error that a tool or the kernel has in a few words of its own.
func advice(text string) string {
	lower := strings.ToLower(text)
	switch {
	case strings.Contains(lower, "too many open files"):
		return fmt.Sprintf(" (no more than %d files may be open at a time; raise that with: ulimit -n)",
			openFilesLimit())
	case strings.Contains(lower, "setxattr") && strings.Contains(lower, "not supported"):
		return " (the file system there keeps no extended attributes; checkout --user-mode needs none, " +
			"nor does a repository of mode archive)"
	}
	return ""
}

// missingToolError is a program that is not there, or is too old to be used.
type missingToolError struct {
	Tool string
	Why  string
}

func (e *missingToolError) Error() string {
	return fmt.Sprintf("%s: %s", e.Tool, e.Why)
}

// signalError is the cause of a context that a signal ended.
type signalError struct{ sig syscall.Signal }

func (e signalError) Error() string { return "stopped by " + e.sig.String() }

// notifyContext returns a context that SIGINT, SIGTERM or SIGHUP ends, with a signalError as its
// cause. A second signal ends the program at once; the kernel then takes the children with it
// (Pdeathsig). A signal that the program was started deaf to, as nohup(1) does it, stays ignored.
func notifyContext(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	ch := make(chan os.Signal, 2)
	for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(sig) {
			signal.Notify(ch, sig)
		}
	}
	go func() {
		first := true
		for s := range ch {
			sig, ok := s.(syscall.Signal)
			if !ok {
				continue
			}
			if !first {
				os.Exit(128 + int(sig))
			}
			first = false
			cancel(signalError{sig})
		}
	}()
	return ctx, func() {
		signal.Stop(ch)
		close(ch)
		cancel(nil)
	}
}

// exitStatus maps an error to the program's exit status.
func exitStatus(ctx context.Context, err error) int {
	if err == nil {
		return exitDone
	}
	var sig signalError
	if errors.As(context.Cause(ctx), &sig) {
		return 128 + int(sig.sig)
	}
	var usage usageError
	var notFound notFoundError
	var check checkError
	switch {
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &notFound):
		return exitNotFound
	case errors.As(err, &check):
		return exitCheck
	}
	return exitFailed
}

// closeWith closes c and makes its error the function's, where there is none yet. For what was written: a file that
// cannot be closed may not hold what was put into it.
func closeWith(err *error, c io.Closer) {
	if cerr := c.Close(); cerr != nil && *err == nil {
		*err = errors.WithStack(cerr)
	}
}
