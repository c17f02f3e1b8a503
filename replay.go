package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"golang.org/x/sys/unix"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/ostree"
	"ostree-image/internal/proc"
	"ostree-image/internal/shellquote"
	"ostree-image/internal/ui"
	"ostree-image/internal/workdir"
)

// replayOptions are the options of replay.
type replayOptions struct {
	repo     string // the repository to run against, "" for a fresh one
	work     string // the directory to work in, which stays; "" for a fresh one that goes
	list     bool   // only show the commands
	from, to int    // the numbers of the first and the last command to run, 0 for no limit
	step     bool   // ask before each command
	keep     bool   // leave the work directory
	trust    bool   // run a record that somebody else made
}

// recordedCommand is one numbered step of a record.
type recordedCommand struct {
	number int
	why    string
	lines  []string
	took   string // as the record says, "" where it does not
	failed string // why it failed when it was recorded, "" where it did not
}

// replayer runs a record again.
type replayer struct {
	settings *settings
	options  replayOptions
	record   string // the record's directory
	work     string
	repo     string
	in       *bufio.Reader // where the answers to --step come from
	ended    bool          // the record has its end
	missed   []int         // commands that only read, and failed now though not when they were recorded
}

// replayRecord runs the commands of a record, or of a .tar.gz of one, in a fresh repository, and
// compares every ref with what the recorded run wrote. A difference is an error of the kind that a
// failed check is.
func replayRecord(
	ctx context.Context,
	s *settings,
	path string,
	o replayOptions,
	in io.Reader,
	out io.Writer,
) (err error) {
	if err := workdir.CheckParent(os.TempDir()); err != nil {
		return errors.WithMessage(err, "the temporary directory cannot be used")
	}
	work, err := workdir.New(os.TempDir(), s.runner)
	if err != nil {
		return err
	}
	r := &replayer{settings: s, options: o, work: work.Join("work"), in: bufio.NewReader(in)}
	defer func() {
		if o.keep && !o.list {
			s.notef("the work directory is left at %s", work.Path)
			work.Release()
			return
		}
		if rerr := work.Remove(); err == nil {
			err = rerr
		}
	}()
	if r.record, err = r.openRecord(ctx, path, work); err != nil {
		return err
	}
	commands, err := r.commands()
	if err != nil {
		return err
	}
	if o.list {
		return listCommands(out, commands)
	}
	if err := r.checkBlobs(); err != nil {
		return err
	}
	if o.work != "" {
		if r.work, err = filepath.Abs(o.work); err != nil {
			return errors.WithStack(err)
		}
	}
	if err := os.MkdirAll(r.work, 0o700); err != nil {
		return errors.WithStack(err)
	}
	r.repo = filepath.Join(r.work, "repo")
	if o.repo != "" {
		if r.repo, err = filepath.Abs(o.repo); err != nil {
			return errors.WithStack(err)
		}
	}
	for _, c := range commands {
		if c.number > 0 && (c.number < o.from || o.to > 0 && c.number > o.to) {
			continue
		}
		if stop, err := r.step(ctx, c); err != nil || stop {
			return err
		}
	}
	if o.to > 0 {
		return r.checkMissed()
	}
	if !r.ended {
		return errdefs.Checkf("the record ends after %d commands: the run was cut off", len(commands))
	}
	if err := r.compare(ctx, out); err != nil {
		return err
	}
	return r.checkMissed()
}

// checkMissed makes a difference of commands that read less than when they were recorded.
func (r *replayer) checkMissed() error {
	if len(r.missed) == 0 {
		return nil
	}
	return errdefs.Checkf(
		"commands that only read fail now, though they did not when they were recorded: %s",
		strings.Trim(fmt.Sprint(r.missed), "[]"),
	)
}

// openRecord returns the directory of a record. An archive is extracted first.
func (r *replayer) openRecord(ctx context.Context, path string, work *workdir.Dir) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", errors.WithStack(err)
	}
	f, err := os.Open(path)
	if err != nil {
		return "", errors.Wrap(err, "opening the record")
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return "", errors.Wrap(err, "opening the record")
	}
	if err := r.checkMaker(path, info); err != nil {
		return "", err
	}
	switch {
	case info.IsDir():
		return path, r.checkRecord(path)
	case !info.Mode().IsRegular():
		return "", errors.Errorf("%s is neither a record nor the archive of one", path)
	}
	dir := work.Join("record")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", errors.WithStack(err)
	}
	if err := extractArchive(ctx, r.settings.runner, f, dir); err != nil {
		return "", errors.WithMessage(err, "opening the record")
	}
	if path, err = recordWithin(dir); err != nil {
		return "", err
	}
	return path, r.checkRecord(path)
}

// checkMaker refuses what somebody else made, or could have changed. A record is a program, which
// runs as the user who replays it.
func (r *replayer) checkMaker(path string, info fs.FileInfo) error {
	// Nothing is run for --list. A directory that others may write to is not theirs to fill where
	// it is sticky, such as /tmp.
	if r.options.trust || r.options.list || workdir.OwnedByUser(info) && info.Mode().Perm()&0o022 == 0 {
		return nil
	}
	return errors.Errorf(
		"%s belongs to somebody else, or may be written by others, and a record is a program: read it, and run it with --trust",
		path,
	)
}

// checkRecord makes sure that the files of a record are there, plain files, and the user's own.
func (r *replayer) checkRecord(dir string) error {
	if info, err := os.Lstat(filepath.Join(dir, recordScript)); err != nil || !info.Mode().IsRegular() {
		return errors.Errorf("%s is no record: it has no %s", dir, recordScript)
	}
	dirs := []string{recordBlobs, recordRepo, recordSource}
	names := append(dirs, recordScript, recordRefs, recordSums, recordVersions, recordRemotes)
	blobs, err := os.ReadDir(filepath.Join(dir, recordBlobs))
	if err != nil {
		return errors.Wrap(err, "reading the record")
	}
	for _, e := range blobs {
		names = append(names, filepath.Join(recordBlobs, e.Name()))
	}
	for _, name := range names {
		info, err := os.Lstat(filepath.Join(dir, name))
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return errors.Wrap(err, "reading the record")
		}
		if isDir := slices.Contains(dirs, name); info.IsDir() != isDir || !isDir && !info.Mode().IsRegular() {
			return errors.Errorf("the record's %s is not what it should be: %s", name, info.Mode())
		}
		if err := r.checkMaker(filepath.Join(dir, name), info); err != nil {
			return err
		}
	}
	return nil
}

// recordWithin returns the one directory below dir that is a record, or dir, for a record that was
// packed without its directory.
func recordWithin(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", errors.WithStack(err)
	}
	var found []string
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if info, err := os.Lstat(
			filepath.Join(path, recordScript),
		); err == nil && e.IsDir() &&
			info.Mode().IsRegular() {
			found = append(found, path)
		}
	}
	if len(found) == 1 {
		return found[0], nil
	}
	return dir, nil
}

var (
	commandLine = regexp.MustCompile(`^# ([0-9]+): (.*)$`)
	tookLine    = regexp.MustCompile(`^# ([0-9]+) took ([0-9.]+ s)$`)
	failedLine  = regexp.MustCompile(`^# ([0-9]+) failed after ([0-9.]+ s): (.*)$`)
)

const maxRecordLine = 64 << 20

// commands reads the script.
func (r *replayer) commands() ([]*recordedCommand, error) {
	f, err := os.Open(filepath.Join(r.record, recordScript))
	if err != nil {
		return nil, errors.WithStack(err)
	}
	defer func() { _ = f.Close() }()
	var all []*recordedCommand
	byNumber := map[string]*recordedCommand{}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, maxRecordLine)
	for lines.Scan() {
		line := lines.Text()
		if m := commandLine.FindStringSubmatch(line); m != nil {
			n, err := strconv.Atoi(m[1])
			if err != nil {
				return nil, errors.Errorf("the record has a command number %s", m[1])
			}
			c := &recordedCommand{number: n, why: m[2]}
			all, byNumber[m[1]] = append(all, c), c
		} else if m := tookLine.FindStringSubmatch(line); m != nil && byNumber[m[1]] != nil {
			byNumber[m[1]].took = m[2]
		} else if m := failedLine.FindStringSubmatch(line); m != nil && byNumber[m[1]] != nil {
			byNumber[m[1]].took, byNumber[m[1]].failed = m[2], m[3]
		} else if line == recordEnd {
			r.ended = true
		} else if line != "" && !strings.HasPrefix(line, "#") && len(all) > 0 {
			c := all[len(all)-1]
			c.lines = append(c.lines, line)
		}
	}
	return all, errors.Wrap(lines.Err(), "reading the record")
}

// listCommands shows the commands with their numbers and times.
func listCommands(out io.Writer, commands []*recordedCommand) error {
	for _, c := range commands {
		took := c.took
		if c.failed != "" {
			took += ", failed: " + c.failed
		}
		if took != "" {
			took = " (" + took + ")"
		}
		if _, err := fmt.Fprintf(out, "%4d  %s%s\n", c.number, ui.Printable(c.why), ui.Printable(took)); err != nil {
			return errors.Wrap(err, "writing the list")
		}
		for _, line := range c.lines {
			if _, err := fmt.Fprintf(out, "      %s\n", ui.Printable(line)); err != nil {
				return errors.Wrap(err, "writing the list")
			}
		}
	}
	return nil
}

// checkBlobs refuses a record whose blobs are not what their names, or the file sums, say.
func (r *replayer) checkBlobs() error {
	dir := filepath.Join(r.record, recordBlobs)
	names, err := os.ReadDir(dir)
	if err != nil {
		return errors.Wrap(err, "reading the record")
	}
	sums, err := os.ReadFile(filepath.Join(r.record, recordSums))
	if err != nil && !os.IsNotExist(err) {
		return errors.Wrap(err, "reading the record")
	}
	want := map[string]digest.Digest{}
	for line := range strings.Lines(string(sums)) {
		if sum, path, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "  "); ok {
			want[filepath.Base(path)] = digest.NewDigestFromEncoded(digest.SHA256, sum)
		}
	}
	for _, e := range names {
		if ostree.ChecksumPattern.MatchString(e.Name()) {
			want[e.Name()] = digest.NewDigestFromEncoded(digest.SHA256, e.Name())
		}
	}
	for name, d := range want {
		if err := checkFile(filepath.Join(dir, name), d); err != nil {
			return errors.WithMessagef(err, "the record's %s/%s", recordBlobs, name)
		}
	}
	return nil
}

func checkFile(path string, want digest.Digest) error {
	if err := want.Validate(); err != nil {
		return errdefs.Checkf("%s", err)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return errors.WithStack(err)
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return errors.Errorf("%s is no plain file", path)
	}
	got, err := want.Algorithm().FromReader(f)
	if err != nil {
		return errors.WithStack(err)
	}
	if got != want {
		return errdefs.Checkf("does not match its digest: it is %s, and should be %s", got, want)
	}
	return nil
}

// answer reads a line of what the user says. The reading goes on after the end of ctx, which is
// that of the program.
func (r *replayer) answer(ctx context.Context) (string, error) {
	type line struct {
		text string
		err  error
	}
	read := make(chan line, 1)
	go func() {
		text, err := r.in.ReadString('\n')
		read <- line{text, errors.WithStack(err)}
	}()
	select {
	case l := <-read:
		return l.text, l.err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// missedStatus is with what a command of a record ends that only reads, and fails. missedFunction
// makes it so, in place of what the record's script has for a run of its own.
const (
	missedStatus   = 66
	missedFunction = "missed() { exit 66; }\nchecked() { :; }\nKNOWN=\n"
)

// step runs one command. stop is true where the user wants no more.
func (r *replayer) step(ctx context.Context, c *recordedCommand) (stop bool, err error) {
	show := func(text string) {
		if !r.settings.quiet || r.options.step {
			r.settings.progress.Print(text)
		}
	}
	show(fmt.Sprintf("# %d: %s\n", c.number, c.why))
	for _, line := range c.lines {
		show("+ " + line + "\n")
	}
	if r.options.step {
		show("run it? [Y/n/q] ")
		answer, err := r.answer(ctx)
		if err != nil && !errors.Is(err, io.EOF) {
			return false, err
		}
		switch strings.ToLower(strings.TrimSpace(answer)) {
		case "n", "no":
			return false, nil
		case "q", "quit":
			return true, nil
		}
		if err != nil {
			return true, nil
		}
	}
	began := time.Now()
	printed := r.settings.stderr
	if r.settings.quiet {
		printed = io.Discard
	}
	err = runShell(ctx, r.settings.runner, printed, missedFunction+strings.Join(c.lines, "\n"), map[string]string{
		"RECORD": r.record,
		"SOURCE": filepath.Join(r.record, recordSource),
		"BLOBS":  filepath.Join(r.record, recordBlobs),
		"WORK":   r.work,
		"REPO":   r.repo,
		"OUT":    filepath.Join(r.work, "out"),
	})
	var terr *proc.ToolError
	if errors.As(err, &terr) && terr.ExitCode == missedStatus {
		if c.failed == "" {
			r.missed = append(r.missed, c.number)
			show(fmt.Sprintf("# %d only reads, and fails now though it did not when it was recorded\n", c.number))
		}
		return false, nil
	}
	if err != nil {
		if c.failed != "" {
			err = errors.WithMessage(err, "as it did when it was recorded")
		}
		return false, errors.WithMessagef(err, "command %d failed", c.number)
	}
	if c.took != "" {
		show(fmt.Sprintf("# took %.3f s, recorded with %s\n", time.Since(began).Seconds(), c.took))
	}
	return false, nil
}

// compare compares every ref with what the recorded run wrote.
func (r *replayer) compare(ctx context.Context, out io.Writer) error {
	content, err := os.ReadFile(filepath.Join(r.record, recordRefs))
	if err != nil {
		return errors.Wrap(err, "reading the record")
	}
	repo := &repository{path: r.repo, run: r.settings.runner, hidden: true}
	differ, total := 0, 0
	for line := range strings.Lines(string(content)) {
		want, ref, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if !ok || !ostree.ChecksumPattern.MatchString(want) {
			return errdefs.Checkf("the record's refs have a line %q", line)
		}
		total++
		verdict := "same"
		got, err := repo.revParse(ctx, ref)
		switch {
		case errors.Is(err, errNoRef):
			verdict = "missing"
		case err != nil:
			return err
		case got[0] != want:
			verdict = "other checksum " + got[0] + r.diff(ctx, repo, want, got[0])
		}
		if verdict != "same" {
			differ++
		}
		if _, err := fmt.Fprintf(out, "%s %s: %s\n", want, ref, verdict); err != nil {
			return errors.Wrap(err, "writing the result")
		}
	}
	if differ > 0 {
		return errdefs.Checkf("%d of %d refs differ from the record", differ, total)
	}
	return nil
}

// diff says how two commits differ, where both are there.
func (r *replayer) diff(ctx context.Context, repo *repository, want, got string) string {
	text, err := repo.diff(ctx, want, got)
	if err != nil {
		return ", and the recorded commit is not there to compare with"
	}
	if text == "" {
		return ", with the same files"
	}
	return ":\n" + strings.TrimRight(text, "\n")
}

// runShell runs lines of a recorded script, with its variables. What they print goes to w.
func runShell(ctx context.Context, r *runner, w io.Writer, lines string, variables map[string]string) error {
	c := proc.Command{Tool: proc.Shell, Args: []string{"-eus"}, Hidden: true}
	for name, value := range variables {
		c.Env = append(c.Env, name+"="+value)
	}
	p, stdin, err := r.Writer(ctx, c, w)
	if err != nil {
		return err
	}
	// On standard input, since an argument may have no more than 128 kB. The braces make the shell
	// read all of it first, and keep the commands from reading on there.
	_, werr := io.WriteString(stdin, shellquote.Prelude+"\n{\n"+lines+"\n} </dev/null\n")
	if cerr := stdin.Close(); werr == nil {
		werr = cerr
	}
	if err := p.Wait(); err != nil {
		return err
	}
	return errors.Wrap(werr, "giving the commands to the shell")
}
