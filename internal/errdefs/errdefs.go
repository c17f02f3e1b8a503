// Package errdefs has the kinds of error that the program tells apart, and the exit status of each.
package errdefs

import (
	"context"
	"fmt"
	"io"
	"syscall"

	"github.com/pkg/errors"
)

// Exit statuses, as the README lists them.
const (
	StatusDone     = 0
	StatusFailed   = 1
	exitUsage      = 2
	StatusNotFound = 3
	StatusCheck    = 4
)

// UsageError says that the command line itself is wrong.
type UsageError struct{ Text string }

func (e UsageError) Error() string { return e.Text }

// Usagef returns a UsageError.
func Usagef(format string, args ...any) error {
	return UsageError{Text: fmt.Sprintf(format, args...)}
}

// NotFoundError says that an image or a repository does not exist.
type NotFoundError struct{ Text string }

func (e NotFoundError) Error() string { return e.Text }

// NotFoundf returns a NotFoundError.
func NotFoundf(format string, args ...any) error {
	return NotFoundError{Text: fmt.Sprintf(format, args...)}
}

// CheckError says that a digest, a signature or the repository did not hold what it should.
type CheckError struct{ Text string }

func (e CheckError) Error() string { return e.Text }

// Checkf returns a CheckError.
func Checkf(format string, args ...any) error {
	return CheckError{Text: fmt.Sprintf(format, args...)}
}

// AccessError says that this user may not read what is there, which is no damage.
type AccessError struct {
	Repo string
	Err  error
}

func (e *AccessError) Error() string {
	return fmt.Sprintf(
		"this user may not read all of the repository %s: %s; run as its owner, or make it readable",
		e.Repo,
		e.Err,
	)
}

func (e *AccessError) Unwrap() error { return e.Err }

// GoneError says that an image was removed while it was read, which is no damage either.
type GoneError struct{ Name string }

func (e GoneError) Error() string {
	return fmt.Sprintf("image %s is gone: it was removed meanwhile", e.Name)
}

// MissingToolError is a program that is not there, or is too old to be used.
type MissingToolError struct {
	Tool string
	Why  string
}

func (e *MissingToolError) Error() string {
	return fmt.Sprintf("%s: %s", e.Tool, e.Why)
}

// SignalError is the cause of a context that a signal ended.
type SignalError struct{ Sig syscall.Signal }

func (e SignalError) Error() string { return "stopped by " + e.Sig.String() }

// ExitStatus maps an error to the program's exit status.
func ExitStatus(ctx context.Context, err error) int {
	if err == nil {
		return StatusDone
	}
	var sig SignalError
	if errors.As(context.Cause(ctx), &sig) {
		return 128 + int(sig.Sig)
	}
	var usage UsageError
	var notFound NotFoundError
	var check CheckError
	switch {
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &notFound):
		return StatusNotFound
	case errors.As(err, &check):
		return StatusCheck
	}
	return StatusFailed
}

// Close closes c and makes its error the function's, where there is none yet. For what was written:
// a file that cannot be closed may not hold what was put into it.
func Close(err *error, c io.Closer) {
	if cerr := c.Close(); cerr != nil && *err == nil {
		*err = errors.WithStack(cerr)
	}
}
