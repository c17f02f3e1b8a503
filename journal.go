package main

import (
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pkg/errors"
	"golang.org/x/sys/unix"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/gvariant"
	"ostree-image/internal/proc"
	"ostree-image/internal/shellquote"
	"ostree-image/internal/ui"
	"ostree-image/internal/workdir"
)

// journal writes down every command that runs, and every step that Go itself does to files that a
// command will read, as lines that a POSIX shell runs to the same effect. Each line is written when
// its step starts, after all that it needs has ended, so the lines can be run from top to bottom
// although layers are imported side by side. It is safe for parallel use.
type journal struct {
	mu      sync.Mutex
	log     *os.File  // --log-commands, nil without
	debug   io.Writer // --debug, nil without
	header  bool      // the log's header is written
	number  int       // of the last line
	places  []place
	repos   []string  // that the run works on, in the order of their variables
	record  *recorder // --record, nil without
	secrets []string  // what must never be written
	err     error     // the first failure to write the log
}

// place is a directory that the journal calls by a shell variable, so that a script can be aimed
// elsewhere.
type place struct{ path, variable string }

// entry is one line of the journal.
type entry struct {
	why   string   // what it is for, written as a comment before it
	words []string // the command and its arguments, not quoted
	input string   // a file in the journal's BLOBS that is its standard input, "" for none
	out   bool     // its standard output is data that the program reads
	read  bool     // it only reads the repository, and its failure may be an answer: a replay is to fail where the run did
	// absent says that what it names need not be there where it is run again.
	absent bool
}

const journalHeader = `
# ostree-image %s, %s
# Run it with: BLOBS=directory sh FILE. BLOBS holds what the commands read: the blobs, each named by the hex part of its
# digest, and the clean tar streams made of them, named HEX.tar. REPO is a fresh repository unless it is set.
set -eu
%s
WORK=${WORK:-$(mktemp -d)}
REPO=${REPO:-$WORK/repo}
BLOBS=${BLOBS:-.}
`

// openJournal returns the journal of a run. path is the log's file, "" for none: it is appended to,
// created with mode 0600 since commands can hold what is private, and never followed when it is a
// symbolic link.
func openJournal(path string, debug io.Writer) (*journal, error) {
	j := &journal{debug: debug}
	if path != "" {
		f, err := workdir.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, errors.Wrap(err, "opening the command log")
		}
		j.log = f
	}
	return j, nil
}

// name makes the journal write path as $variable from now on, and what lies within it accordingly.
func (j *journal) name(path, variable string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.places = append(slices.Clip(j.places), place{path, variable})
	// Where one place lies within another, the inner one is to be found first.
	slices.SortStableFunc(j.places, func(a, b place) int { return len(b.path) - len(a.path) })
}

// The variables of the repositories that a run works on: of a copy between two, the one that is
// written comes first.
var repoVariables = []string{"REPO", "SOURCE"}

// nameRepository names a repository that the run works on, once, and returns its variable.
func (j *journal) nameRepository(path string) string {
	j.mu.Lock()
	n := slices.Index(j.repos, path)
	fresh := n < 0 && len(j.repos) < len(repoVariables)
	if fresh {
		j.repos = append(j.repos, path)
		n = len(j.repos) - 1
		if n > 0 {
			j.printHeader()
			j.print(repoVariables[n] + "=${" + repoVariables[n] + ":-" + shellquote.Word(path) + "}\n")
		}
	}
	j.mu.Unlock()
	if n < 0 {
		return ""
	}
	if fresh {
		j.name(path, repoVariables[n])
	}
	return repoVariables[n]
}

// forget ends the name of a directory that is gone.
func (j *journal) forget(path string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for i, p := range j.places {
		if p.path == path {
			j.places = slices.Delete(j.places, i, i+1)
			return
		}
	}
}

// command writes down a process that is about to start and returns its number.
func (j *journal) command(e entry) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.debug != nil {
		_, _ = fmt.Fprintf(j.debug, "+ %s\n", shellquote.Words(e.words...))
	}
	return j.write(e)
}

// Started writes a command down: see proc.Observer.
func (j *journal) Started(c proc.Command, hasOutput bool) int {
	return j.command(entry{
		why:    c.Why,
		words:  append([]string{c.Tool}, c.Args...),
		input:  c.Input,
		read:   c.Read,
		absent: c.Absent,
		out:    hasOutput,
	})
}

// step writes down what Go does to files that a command will read, as the command of the same
// effect.
func (j *journal) step(why string, words ...string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.write(entry{why: why, words: words})
}

// shell is step for a line that is more than one command and its arguments. The caller quotes, with
// word.
func (j *journal) shell(why, line string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.writeLines(why, line, line)
}

// writeFile writes a small file of mode 0644, and the same into the journal.
func (j *journal) writeFile(path string, content []byte, why string) error {
	j.shell(why, fmt.Sprintf("printf %s >%s", printfFormat(content), j.path(path)))
	if err := os.WriteFile(path, content, 0o644); err != nil {
		return errors.WithStack(err)
	}
	return errors.WithStack(os.Chmod(path, 0o644))
}

// printfFormat returns the arguments with which printf(1) writes content.
func printfFormat(content []byte) string {
	if gvariant.IsText(string(content)) {
		return "%s " + shellquote.Word(string(content))
	}
	var b strings.Builder
	for _, c := range content {
		fmt.Fprintf(&b, `\%03o`, c)
	}
	return shellquote.Word(b.String())
}

// recorded writes a line into the record only: a log has no files that it could need.
func (j *journal) recorded(why, line string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.number++
	j.record.print(fmt.Sprintf("# %d: %s\n%s\n", j.number, ui.Printable(why), line))
}

// Ended writes down how long a command took, and why it did not end well.
func (j *journal) Ended(number int, err error, took time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err == nil {
		j.record.print(fmt.Sprintf("# %d took %.3f s\n", number, took.Seconds()))
		return
	}
	text := fmt.Sprintf("# %d failed after %.3f s: %s\n", number, took.Seconds(), redact(ui.OneLine(err), j.secrets))
	j.record.print(text + fmt.Sprintf("KNOWN=\"$KNOWN %d\"\n", number))
	j.print(text)
}

// path returns how a line of the journal names a path.
func (j *journal) path(path string) string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.word(path)
}

func (j *journal) write(e entry) int {
	words := make([]string, len(e.words))
	for i, w := range e.words {
		words[i] = j.word(w)
	}
	line := strings.Join(words, " ")
	end := ""
	if e.out {
		end += " >/dev/null"
	}
	logEnd := end
	switch {
	case e.absent:
		logEnd, end = end+" || :", end+" || :"
	case e.read:
		logEnd, end = end+" || :", fmt.Sprintf("%s || missed %d", end, j.number+1)
	}
	if e.input == "" {
		return j.writeLines(e.why, line+logEnd, line+end)
	}
	// The record holds the stream compressed, and not at all where the command was taken back.
	input := shellquote.Word(e.input)
	return j.writeLines(e.why, line+` <"$BLOBS"/`+input+logEnd, fmt.Sprintf(
		`[ ! -e "$BLOBS"/%[1]s.zst ] || { zstd -dc "$BLOBS"/%[1]s.zst >"$WORK"/%[1]s; %[2]s <"$WORK"/%[1]s%[3]s; rm "$WORK"/%[1]s; }`,
		input,
		line,
		end,
	))
}

// writeLines writes a line into the log, and one of the same effect into the record.
func (j *journal) writeLines(why, logLine, recordLine string) int {
	j.number++
	comment := ""
	if why != "" {
		comment = fmt.Sprintf("# %d: %s\n", j.number, ui.Printable(why))
	}
	j.record.print(comment + recordLine + "\n")
	j.printHeader()
	j.print(comment + logLine + "\n")
	return j.number
}

// printHeader begins the log.
func (j *journal) printHeader() {
	if j.log != nil && !j.header {
		j.header = true
		j.print(fmt.Sprintf(journalHeader, version, time.Now().UTC().Format(time.RFC3339), shellquote.Prelude))
	}
}

func (j *journal) print(text string) {
	if j.log == nil {
		return
	}
	if _, err := j.log.WriteString(text); err != nil && j.err == nil {
		j.err = errors.Wrap(err, "writing the command log")
	}
}

// pathOption is what can stand before a path in an argument.
var pathOption = regexp.MustCompile(`^--[a-z-]+=(dir=|tar=)?`)

// word quotes one argument. A named directory at its start, or at the start of an option's value,
// becomes a variable.
func (j *journal) word(arg string) string {
	for _, p := range j.places {
		at := len(pathOption.FindString(arg))
		rest, ok := strings.CutPrefix(arg[at:], p.path)
		if !ok || rest != "" && rest[0] != '/' {
			continue
		}
		quoted := `"$` + p.variable + `"`
		if at > 0 {
			quoted = shellquote.Word(arg[:at]) + quoted
		}
		if rest != "" {
			quoted += shellquote.Word(rest)
		}
		return quoted
	}
	return shellquote.Word(arg)
}

// keeps tells whether the journal writes anything that stays.
func (j *journal) keeps() bool { return j.log != nil || j.record != nil }

// hide makes sure that the journal never holds these texts.
func (j *journal) hide(secrets ...string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.secrets = append(j.secrets, secrets...)
}

// close ends the journal. Its error is the first that writing it met.
func (j *journal) close() (err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.log == nil {
		return nil
	}
	err = j.err
	errdefs.Close(&err, j.log)
	return err
}
