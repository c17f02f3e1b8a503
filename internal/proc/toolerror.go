package proc

import (
	"fmt"
	"strings"

	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
)

// ToolError is a child process that ran and did not end well, or was stopped.
type ToolError struct {
	Tool     string   // the program as it was called
	Args     []string // its arguments
	ExitCode int      // -1 where a signal ended it
	Stderr   string   // the last 8 KiB of its standard error
	Err      error    // the cause: *exec.ExitError, or why the context ended
}

// Error names the tool, its subcommand, the status and the last words of its standard error.
func (e *ToolError) Error() string {
	name := e.Tool
	if len(e.Args) > 0 && !strings.HasPrefix(e.Args[0], "-") {
		name += " " + e.Args[0]
	}
	text := name + ": " + e.Err.Error()
	if s := e.LastLines(3); s != "" {
		text += ": " + s
	}
	return text
}

// LastLines returns the last n lines of the standard error as one line, without "error: ", which
// ostree puts in front.
func (e *ToolError) LastLines(n int) string {
	lines := strings.FieldsFunc(e.Stderr, func(r rune) bool { return r == '\n' || r == '\r' })
	lines = lines[max(0, len(lines)-n):]
	for i, l := range lines {
		lines[i] = strings.TrimPrefix(strings.TrimSpace(l), "error: ")
	}
	return strings.Join(lines, "; ")
}

func (e *ToolError) Unwrap() error { return e.Err }

// NoRoom names the place that a tool has filled, since tools often name none.
func NoRoom(err error, place string) error {
	var terr *ToolError
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

// Advice is what helps with an error that a tool or the kernel has in a few words of its own.
func Advice(text string) string {
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

// fewFiles is how many descriptors a process may surely have.
const fewFiles = 4096

// openFilesLimit is how many descriptors the process may have.
func openFilesLimit() uint64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 8 * fewFiles
	}
	return limit.Cur
}
