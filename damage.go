package main

import (
	"context"
	"io"
	"os"
	"strings"
	"syscall"

	"github.com/pkg/errors"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/ostree"
	"ostree-image/internal/proc"
)

// damageError is an error of reading a commit that is there: the repository does not hold what it
// should.
type damageError struct{ err error }

func (e *damageError) Error() string { return e.err.Error() + ": the repository is damaged" }

// Unwrap makes it one of the errors that have an exit status of their own.
func (e *damageError) Unwrap() []error { return []error{errdefs.CheckError{Text: e.Error()}, e.err} }

// damageSigns are what ostree says of objects that are missing or broken. A broken commit can end
// it with a signal, too.
var damageSigns = []string{
	"No such metadata object",
	"Couldn't find file object",
	"Corrupted ",
	"Invalid ",
	"File header size",
	"Need more input",
	"No such file or directory: /",
	"Can't open directory",
}

// damage tells an error that says that the repository is damaged from all others.
func damage(err error) error {
	var check errdefs.CheckError
	var notFound errdefs.NotFoundError
	var missing *errdefs.MissingToolError
	var access *errdefs.AccessError
	var terr *proc.ToolError
	switch {
	case err == nil,
		errors.As(err, &check),
		errors.As(err, &notFound),
		errors.As(err, &missing),
		errors.As(err, &access),
		errors.Is(
			err,
			os.ErrClosed,
		),
		errors.Is(err, io.ErrClosedPipe),
		errors.Is(err, context.Canceled),
		errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.As(err, &terr):
		for _, sign := range damageSigns {
			if strings.Contains(terr.Stderr, sign) {
				return &damageError{err}
			}
		}
		if text := terr.Err.Error(); strings.Contains(text, syscall.SIGSEGV.String()) ||
			strings.Contains(text, syscall.SIGABRT.String()) {
			return &damageError{err}
		}
	}
	return err
}

// readCommit returns what a commit that is there says. One that cannot be understood is damage.
func (r *repository) readCommit(ctx context.Context, spec string) (ostree.Commit, error) {
	info, err := r.commitInfo(ctx, spec)
	var terr *proc.ToolError
	if err == nil || errors.As(err, &terr) || errors.Is(err, errNoRef) {
		return info, damage(err)
	}
	var notFound errdefs.NotFoundError
	var missing *errdefs.MissingToolError
	if errors.As(err, &notFound) || errors.As(err, &missing) {
		return info, err
	}
	return info, &damageError{err}
}
