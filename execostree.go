package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/pkg/errors"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/gvariant"
	"ostree-image/internal/imageref"
	"ostree-image/internal/ostree"
	"ostree-image/internal/proc"
	"ostree-image/internal/workdir"
)

// repository is an OSTree repository, used by running ostree(1). It is safe for parallel use.
type repository struct {
	path   string // absolute
	run    *runner
	hidden bool     // its commands serve the record, and are not written down
	staged bool     // it is one of this run's own, for what is not yet published
	sign   []string // the options of commit that sign what gets a ref

	keysFile, signType string // what else signs it, see signByFile; "" for nothing

	locking workdir.LockOptions
}

// lock waits for the repository's lock. It ends with the returned function, or with the process.
func (r *repository) lock(ctx context.Context) (unlock func(), err error) {
	return workdir.Lock(ctx, r.path, r.locking)
}

// errNoRef says that a repository has no such ref.
var errNoRef = errors.New("no such ref")

// ostreeVersion asks the program for its version and features. One that is too old is a
// *missingToolError.
func ostreeVersion(ctx context.Context, r *runner) (ostree.Features, error) {
	out, err := r.Output(
		ctx,
		proc.Command{Tool: proc.OSTree, Args: []string{"--version"}, Why: "which ostree this is", Read: true},
	)
	if err != nil {
		return ostree.Features{}, err
	}
	f, err := ostree.ParseVersion(string(out))
	if err != nil {
		return f, errors.WithMessagef(err, "asking %s for its version", r.Programs[proc.OSTree])
	}
	if ostree.CompareVersions(f.Version, proc.OldestOSTree) < 0 {
		return f, &errdefs.MissingToolError{
			Tool: r.Programs[proc.OSTree],
			Why:  "version " + f.Version + " is too old: " + proc.Packages[proc.OSTree],
		}
	}
	return f, nil
}

// notThere is what ostree says of a repository that is not there, or not all of it.
var notThere = regexp.MustCompile(
	`(?:opendir\(objects\)|openat\(config\)|opening repo: opendir\(.*\)): No such file or directory`)

// explain turns what ostree says of a repository or a ref that is not there into the program's own
// errors.
func (r *repository) explain(err error) error {
	var terr *proc.ToolError
	if !errors.As(err, &terr) {
		return err
	}
	switch s := terr.Stderr; {
	case r.staged && notThere.MatchString(s):
		return r.vanished()
	case strings.Contains(s, "opendir(objects): No such file or directory"),
		strings.Contains(s, "openat(config): No such file or directory"):
		return errdefs.NotFoundf(
			"%s is no OSTree repository; create one elsewhere with: ostree init --repo=PATH --mode=bare-user",
			r.path,
		)
	case strings.Contains(s, "opening repo: opendir(") && strings.Contains(s, "No such file or directory"):
		return errdefs.NotFoundf(
			"no repository at %s; create it with: ostree init --repo=%s --mode=bare-user",
			r.path,
			r.path,
		)
	case strings.Contains(s, "opening repo: opendir(") && strings.Contains(s, "Not a directory"):
		return errdefs.NotFoundf("%s is no OSTree repository", r.path)
	case strings.Contains(s, "Refspec '") && strings.Contains(s, "' not found"):
		return errors.WithMessage(errNoRef, terr.LastLines(1))
	case ostree.MayNotRead(s):
		return &errdefs.AccessError{Repo: r.path, Err: err}
	}
	return err
}

// vanished is the error of a staging area that is gone.
func (r *repository) vanished() error {
	return errors.Errorf("the staging area %s is gone, or a part of it: something has removed it while it was in use",
		r.path)
}

func (r *repository) command(why string, verb string, args ...string) proc.Command {
	return proc.Command{
		Tool:   proc.OSTree,
		Args:   append([]string{verb, "--repo=" + r.path}, args...),
		Why:    why,
		Hidden: r.hidden,
	}
}

// reads tells the record that commits are about to be read.
func (r *repository) reads(ctx context.Context, revs ...string) {
	if !r.hidden {
		r.run.journal.record.reads(ctx, r.path, revs...)
	}
}

func (r *repository) query(ctx context.Context, why, verb string, args ...string) ([]byte, error) {
	c := r.command(why, verb, args...)
	c.Read = true
	out, err := r.run.Output(ctx, c)
	return out, r.explain(err)
}

func (r *repository) perform(ctx context.Context, why, verb string, args ...string) error {
	return r.mayNotWrite(r.explain(r.run.Run(ctx, r.command(why, verb, args...))))
}

// mayNotWrite names the repository where ostree says only that it may not write.
func (r *repository) mayNotWrite(err error) error {
	var terr *proc.ToolError
	var access *errdefs.AccessError
	if errors.As(err, &access) {
		return err
	}
	if errors.As(err, &terr) &&
		(strings.Contains(terr.Stderr, "Permission denied") || strings.Contains(terr.Stderr, "Read-only file system")) {
		return errors.WithMessagef(err, "the repository %s cannot be written", r.path)
	}
	return err
}

// raceRetries is how often a process that lost a race against another ostree is started again.
const raceRetries = 20

// lostRace is what ostree says where a file of another ostree went while it looked: at its start
// into the directories that other processes have in the repository's tmp/, and where it lists refs
// that one of them removes (seen with 2022.7).
var lostRace = regexp.MustCompile(`opendir\(staging-|Listing refs: .*: No such file or directory`)

// again calls f until it loses no race. Where it did, nothing has happened.
func again(ctx context.Context, f func() error) error {
	for attempt := 0; ; attempt++ {
		err := f()
		var terr *proc.ToolError
		if !errors.As(err, &terr) || !lostRace.MatchString(terr.Stderr) || attempt == raceRetries || ctx.Err() != nil {
			return err
		}
	}
}

// refs returns all refs of the repository. Those of a remote stand as REMOTE:REF.
func (r *repository) refs(ctx context.Context) (map[string]bool, error) {
	var out []byte
	err := again(ctx, func() (err error) {
		out, err = r.query(ctx, "the refs of the repository", "refs")
		return err
	})
	return usable(ostree.Lines(out)), err
}

// usable returns refs without those of a remote whose name begins with "-": ostree itself takes
// none as an argument.
func usable(refs map[string]bool) map[string]bool {
	maps.DeleteFunc(refs, func(ref string, _ bool) bool { return strings.HasPrefix(ref, "-") })
	return refs
}

// refsAmong returns those of the given refs that the repository itself has. It takes no longer the
// more others there are.
func (r *repository) refsAmong(ctx context.Context, wanted []string) (map[string]bool, error) {
	found := map[string]bool{}
	for chunk := range ostree.Chunks(wanted) {
		var out []byte
		err := again(ctx, func() (err error) {
			out, err = r.query(ctx, "which of these refs there are", "refs", append([]string{"--list"}, chunk...)...)
			return err
		})
		if err != nil {
			return nil, err
		}
		maps.Copy(found, among(ostree.Lines(out), chunk))
	}
	return found, nil
}

// commitsOf returns the commits that refs name. A ref that is gone meanwhile is left out.
func (r *repository) commitsOf(ctx context.Context, refs map[string]bool) (map[string]string, error) {
	commits := map[string]string{}
	for chunk := range ostree.Chunks(slices.Sorted(maps.Keys(refs))) {
		sums, err := r.revParse(ctx, chunk...)
		if errors.Is(err, errNoRef) {
			now, rerr := r.refs(ctx)
			if rerr != nil {
				return nil, rerr
			}
			there := maps.Clone(refs)
			maps.DeleteFunc(there, func(ref string, _ bool) bool { return !now[ref] })
			if len(there) < len(refs) {
				return r.commitsOf(ctx, there)
			}
		}
		if err != nil {
			return nil, err
		}
		for i, ref := range chunk {
			commits[ref] = sums[i]
		}
	}
	return commits, nil
}

// partialSuffix is the end of the names of the files with which ostree marks commits.
const partialSuffix = ".commitpartial"

// partialMark is the file with which ostree marks a commit of which it may not have everything.
func (r *repository) partialMark(commit string) string {
	return filepath.Join(r.path, "state", commit+partialSuffix)
}

// partialCommits returns the commits that are marked as partial.
func (r *repository) partialCommits() (map[string]bool, error) {
	entries, err := os.ReadDir(filepath.Dir(r.partialMark("")))
	if err != nil && !os.IsNotExist(err) {
		return nil, errors.WithStack(err)
	}
	marks := map[string]bool{}
	for _, e := range entries {
		if commit, ok := strings.CutSuffix(e.Name(), partialSuffix); ok {
			marks[commit] = true
		}
	}
	return marks, nil
}

// isPartial tells whether a ref names a commit that is marked as partial.
func (r *repository) isPartial(ctx context.Context, spec string) (bool, error) {
	marks, err := r.partialCommits()
	if err != nil || len(marks) == 0 {
		return false, err
	}
	sums, err := r.revParse(ctx, spec)
	if err != nil {
		return false, err
	}
	return marks[sums[0]], nil
}

// whole returns refs but those of commits that are marked as partial. A transaction that was killed
// leaves the mark on what it had written, even where that is all there; fsck leaves such a commit
// out, and only another transaction takes the mark away.
func (r *repository) whole(ctx context.Context, refs map[string]bool) (map[string]bool, error) {
	marks, err := r.partialCommits()
	if err != nil {
		return nil, err
	}
	if len(marks) == 0 {
		return refs, nil
	}
	commits, err := r.commitsOf(ctx, refs)
	if err != nil {
		return nil, err
	}
	whole := maps.Clone(refs)
	maps.DeleteFunc(whole, func(ref string, _ bool) bool { return marks[commits[ref]] })
	return whole, nil
}

// leftoverRef is what a ref is called while ostree writes it: a process that is killed then leaves
// it.
var leftoverRef = regexp.MustCompile(`^` + imageref.Prefix + `(?:[^/]+/)?tmp\.[^/]{6}$`)

// hasLeftovers tells whether there are such refs.
func hasLeftovers(refs map[string]bool) bool {
	for ref := range refs {
		if leftoverRef.MatchString(ref) {
			return true
		}
	}
	return false
}

// dropLeftovers deletes such refs, and those of a removal that was killed, and takes them out of
// refs.
func (r *repository) dropLeftovers(ctx context.Context, refs map[string]bool) error {
	var leftovers []string
	for ref := range refs {
		if leftoverRef.MatchString(ref) || isKept(ref) {
			leftovers = append(leftovers, ref)
			delete(refs, ref)
		}
	}
	slices.Sort(leftovers)
	return r.deleteRefs(ctx, "remove what a run that was killed left", leftovers...)
}

// metadataKey returns a string of a commit's metadata. ok is false where the commit has no such
// key.
func (r *repository) metadataKey(ctx context.Context, ref, key string) (value string, ok bool, err error) {
	r.reads(ctx, ref)
	out, err := r.query(ctx, "what "+ref+" says of "+key, "show", "--print-metadata-key="+key, ref)
	if err != nil {
		var terr *proc.ToolError
		if errors.As(err, &terr) && strings.Contains(terr.Stderr, "No such metadata key '"+key+"'") {
			return "", false, nil
		}
		return "", false, err
	}
	value, err = gvariant.ParseString(string(out))
	if err != nil {
		return "", false, errors.WithMessagef(err, "metadata %s of %s", key, ref)
	}
	return value, true, nil
}

// maxCommitText is how many bytes of text a commit is read of. Ours have less than two arguments of
// a program.
const maxCommitText = 4 << 20

// commitMemory is how many bytes ostree may have to read a commit. It would convert hundreds of
// megabytes of numbers, and print them all, before any of that comes here.
const commitMemory = 16 * maxCommitText

// commitInfo returns what the commit of a ref or checksum says, with one process.
func (r *repository) commitInfo(ctx context.Context, rev string) (ostree.Commit, error) {
	r.reads(ctx, rev)
	c := r.command("all that "+rev+" says", "show", "--raw", rev)
	c.Read, c.OutLimit, c.Memory = true, maxCommitText, commitMemory
	out, err := r.run.Output(ctx, c)
	if err != nil {
		return ostree.Commit{}, r.explain(err)
	}
	info, err := ostree.ParseCommit(string(out))
	return info, errors.WithMessagef(err, "reading the commit of %s", rev)
}

// revParse returns the checksums that revs stand for, in their order. Any that does not exist is an
// error.
func (r *repository) revParse(ctx context.Context, revs ...string) ([]string, error) {
	r.reads(ctx, revs...)
	var sums []string
	for chunk := range ostree.Chunks(revs) {
		out, err := r.query(ctx, "the commits of refs", "rev-parse", chunk...)
		if err != nil {
			return nil, err
		}
		sums = append(sums, strings.Fields(string(out))...)
	}
	if len(sums) != len(revs) {
		return nil, errors.Errorf("ostree rev-parse: %d answers for %d refs", len(sums), len(revs))
	}
	for _, s := range sums {
		if !ostree.ChecksumPattern.MatchString(s) {
			return nil, errors.Errorf("ostree rev-parse: %.80q is no checksum", s)
		}
	}
	return sums, nil
}

// config returns a key of the repository's configuration, such as core.mode, and "" where it is not
// set.
func (r *repository) config(ctx context.Context, key string) (string, error) {
	out, err := r.query(ctx, "the repository's "+key, "config", "get", key)
	if err != nil {
		var terr *proc.ToolError
		if errors.As(err, &terr) && (strings.Contains(terr.Stderr, "does not have key") ||
			strings.Contains(terr.Stderr, "does not have group")) {
			return "", nil
		}
		return "", err
	}
	return strings.TrimSpace(string(out)), nil
}

// maxConfig is how many bytes of a repository's configuration are read.
const maxConfig = 1 << 20

// configLines returns the lines of the repository's configuration that set some of the wanted keys,
// by group, as they stand there. It reads the file: a question to ostree for each key takes longer
// than all else that happens before the first layer.
func (r *repository) configLines(wanted map[string][]string) (string, error) {
	f, err := os.Open(filepath.Join(r.path, "config"))
	if err != nil {
		return "", r.explainPath(errors.WithStack(err))
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err == nil && len(text) > maxConfig {
		err = errors.Errorf("more than %d bytes", maxConfig)
	}
	if err != nil {
		return "", errors.Wrapf(err, "reading %s", f.Name())
	}
	lines, err := ostree.ConfigLines(string(text), wanted)
	return lines, errors.WithMessagef(err, "reading %s", f.Name())
}

// cat returns the contents of regular files, one after another.
func (r *repository) cat(ctx context.Context, rev string, paths ...string) (*proc.Reader, error) {
	r.reads(ctx, rev)
	c := r.command(fmt.Sprintf("read %d files of %s", len(paths), rev), "cat", ostree.CatArgs(rev, paths)...)
	c.Read = true
	out, err := r.run.Reader(ctx, c)
	if err == nil {
		out.Explain = r.explain
	}
	return out, err
}

// catFile returns the contents of a file of at most limit bytes.
func (r *repository) catFile(ctx context.Context, rev, path string, limit int64) (content []byte, err error) {
	rc, err := r.cat(ctx, rev, path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rc.Close() }()
	content, err = io.ReadAll(io.LimitReader(rc, limit+1))
	if err != nil {
		return nil, r.explain(err)
	}
	if int64(len(content)) > limit {
		return nil, errdefs.Checkf("%s of %s is larger than %d bytes", path, rev, limit)
	}
	return content, nil
}

// hasFile tells whether a commit holds a file.
func (r *repository) hasFile(ctx context.Context, rev, path string) (bool, error) {
	r.reads(ctx, rev)
	_, err := r.query(ctx, "whether "+rev+" holds "+path, "ls", rev, "/"+path)
	var terr *proc.ToolError
	if errors.As(err, &terr) && strings.Contains(terr.Stderr, "No such file or directory") {
		return false, nil
	}
	return err == nil, err
}

// fileNames returns the names of the files in a directory of a commit, "" or with a slash at its
// end.
func (r *repository) fileNames(ctx context.Context, rev, dir string) ([]string, error) {
	r.reads(ctx, rev)
	out, err := r.query(ctx, "the files of "+rev, "ls", "--nul-filenames-only", rev, "/"+strings.TrimSuffix(dir, "/"))
	if err != nil {
		return nil, err
	}
	var names []string
	for path := range strings.SplitSeq(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		if name, ok := strings.CutPrefix(path, "/"+dir); ok && name != "" && !strings.Contains(name, "/") {
			names = append(names, name)
		}
	}
	return names, nil
}

// diff returns the files in which two commits differ, as ostree diff says it.
func (r *repository) diff(ctx context.Context, from, to string) (string, error) {
	out, err := r.query(ctx, "how two commits differ", "diff", from, to)
	return string(out), err
}

// signed tells whether a commit has a good signature by a key in the GPG directory home. What
// ostree says of signatures is the last that it prints, and what comes before may be made to look
// like it, so a commit must have some at all.
func (r *repository) signed(ctx context.Context, commit, home string) (bool, error) {
	_, err := r.query(
		ctx,
		"whether "+commit+" is signed",
		"show",
		"--print-detached-metadata-key=ostree.gpgsigs",
		commit,
	)
	var terr *proc.ToolError
	if errors.As(err, &terr) && terr.ExitCode == 1 {
		return false, nil
	} else if err != nil {
		return false, err
	}
	out, err := r.query(ctx, "by whom "+commit+" is signed", "show", "--gpg-homedir="+home, commit)
	if err != nil {
		return false, err
	}
	text := string(out)
	verdict := text[max(0, strings.LastIndex(text, "\nFound ")):]
	return strings.Contains(verdict, "\n  Good signature from ") &&
		!strings.Contains(verdict, "\n  BAD signature "), nil
}

// init makes the directory a repository of the given mode.
func (r *repository) init(ctx context.Context, mode string) error {
	return r.perform(ctx, "make a repository", "init", "--mode="+mode)
}

// commitTree commits a directory and returns the commit's checksum.
func (r *repository) commitTree(
	ctx context.Context,
	dir string,
	t ostree.TreeOptions,
	o ostree.CommitOptions,
) (string, error) {
	return r.commit(ctx, o, ostree.TreeArgs(dir, t)...)
}

// commitCommand is the command that commits a tree. What gets a ref is signed.
func (r *repository) commitCommand(o ostree.CommitOptions, tree ...string) proc.Command {
	c := r.command(o.Why, "commit", append(ostree.CommitArgs(o), tree...)...)
	if o.Branch != "" {
		c.Unlogged = r.sign
	}
	return c
}

func (r *repository) commit(ctx context.Context, o ostree.CommitOptions, tree ...string) (string, error) {
	out, err := r.run.Output(ctx, r.commitCommand(o, tree...))
	if err != nil {
		return "", r.explain(err)
	}
	return r.made(ctx, o, out)
}

// made returns the checksum that ostree commit has printed, of a commit that is signed by then. The
// keys in a file are how no key stands among the arguments of a program, for everybody to read;
// whoever runs the command again need not have that file.
func (r *repository) made(ctx context.Context, o ostree.CommitOptions, out []byte) (string, error) {
	sum, err := ostree.ParseChecksum(out)
	if err != nil || o.Branch == "" || r.keysFile == "" {
		return sum, err
	}
	c := r.command("sign commit "+sum, "sign", "--sign-type="+r.signType, "--keys-file="+r.keysFile, sum)
	c.Absent = true
	_, err = r.run.Output(ctx, c)
	return sum, r.explain(err)
}

// streamCommit is a running commit of a tar stream.
type streamCommit struct {
	process *proc.Process
	stdin   *proc.Pipe
	out     *proc.LimitedBuffer
	made    func(out []byte) (string, error) // see repository.made
}

// commitStream starts a commit whose tree is the tar stream that is written to the result. input is
// what the journal calls that stream. The stream must be clean: see normalize.Filter.
func (r *repository) commitStream(ctx context.Context, o ostree.CommitOptions, input string) (*streamCommit, error) {
	c := r.commitCommand(o, "--tree=tar=-")
	c.Input = input
	s := &streamCommit{
		out:  &proc.LimitedBuffer{Limit: 4 << 10},
		made: func(out []byte) (string, error) { return r.made(ctx, o, out) },
	}
	p, stdin, err := r.run.Writer(ctx, c, s.out)
	if err != nil {
		return nil, r.explain(err)
	}
	s.process, s.stdin = p, stdin
	return s, nil
}

func (s *streamCommit) Write(b []byte) (int, error) { return s.stdin.Write(b) }

// finish ends the stream and returns the commit's checksum.
func (s *streamCommit) Finish() (string, error) {
	cerr := s.stdin.Close()
	if err := s.process.Wait(); err != nil {
		return "", err
	}
	if cerr != nil {
		return "", errors.WithStack(cerr)
	}
	return s.made(s.out.Bytes)
}

// abort ends the commit so that nothing comes of it. ostree is killed before its input ends: given
// a short stream it can write to its standard error forever (in archive mode), or commit what there
// was. The error is how ostree ended, which is of interest where that was before.
func (s *streamCommit) abort() error {
	s.process.Kill()
	_ = s.stdin.Close()
	if err := s.process.Wait(); err != nil {
		return err
	}
	return s.process.Failed("it ended before its input did")
}

// pullLocal copies refs, or all where none is given, from another repository on this machine, as
// one transaction where one process can take them all.
func (r *repository) pullLocal(ctx context.Context, source string, fsync bool, why string, refs ...string) error {
	args := []string{source}
	if !fsync {
		args = []string{"--disable-fsync", source}
	}
	if len(refs) == 0 {
		return r.perform(ctx, why, "pull-local", args...)
	}
	for chunk := range ostree.Chunks(refs) {
		if err := r.perform(ctx, why, "pull-local", append(slices.Clip(args), chunk...)...); err != nil {
			return err
		}
	}
	return nil
}

// explainPath explains an error of opening the repository's directory.
func (r *repository) explainPath(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return errdefs.NotFoundf(
			"no repository at %s; create it with: ostree init --repo=%s --mode=bare-user",
			r.path,
			r.path,
		)
	}
	return err
}

// deleteRefs deletes refs. Each must be a whole ref: ostree takes the argument for a prefix, and
// none of ours is the prefix of another.
func (r *repository) deleteRefs(ctx context.Context, why string, specs ...string) error {
	for chunk := range ostree.Chunks(specs) {
		if err := r.perform(ctx, why, "refs", append([]string{"--delete"}, chunk...)...); err != nil {
			return err
		}
	}
	return nil
}

// setRef makes a ref name a commit, whatever it names now.
func (r *repository) setRef(ctx context.Context, why, ref, commit string) error {
	return r.perform(ctx, why, "refs", "--force", "--create="+ref, commit)
}

// prune deletes the commits that no ref names, and all objects that no commit needs then. The
// commits go first and by themselves: where one prune of all is killed, ostree may have deleted
// files of a commit that is still there, and fsck calls that corruption. Before that, the refs that
// were removed must stay removed, whatever becomes of the power.
func (r *repository) prune(ctx context.Context) error {
	if err := r.pruneCommitObjects(ctx); err != nil {
		return err
	}
	return again(
		ctx,
		func() error { return r.perform(ctx, "remove what no commit needs any more", "prune", "--refs-only") },
	)
}

// pruneCommitObjects deletes the commits that no ref names, and nothing that they need.
func (r *repository) pruneCommitObjects(ctx context.Context) error {
	if err := r.sync(); err != nil {
		return err
	}
	return again(ctx, func() error {
		return r.perform(ctx, "remove the commits that no ref names", "prune", "--refs-only", "--commit-only")
	})
}

// keptPrefix is that of the refs that hold other people's commits while prune runs.
const keptPrefix = "ostree-image/kept"

// isKept tells whether a ref is one of those.
func isKept(ref string) bool { return strings.HasPrefix(ref, keptPrefix+"/") }

// pruneCommits has prune delete these commits, if no ref names them, as it does. Other commits
// without a ref stay. ostree deletes commits by name one per process, and leaves a tombstone and a
// changed configuration for it, so the others get refs for as long as it takes, which the next
// removal takes away where this one is killed. A commit that gets there without a ref meanwhile is
// not safe, as it never is from a prune.
func (r *repository) pruneCommits(
	ctx context.Context,
	commits map[string]bool,
	prune func(context.Context) error,
) error {
	others, err := r.unnamedCommits(ctx)
	if err != nil {
		return err
	}
	others = slices.DeleteFunc(others, func(commit string) bool { return commits[commit] })
	if len(others) == 0 {
		return prune(ctx)
	}
	if err = r.keepCommits(ctx, others); err == nil {
		err = prune(ctx)
	}
	// Whatever ended the run.
	if derr := r.dropKept(context.WithoutCancel(ctx)); err == nil {
		err = derr
	}
	return err
}

// dropKept deletes the refs of keepCommits.
func (r *repository) dropKept(ctx context.Context) error {
	return r.deleteRefs(ctx, "give back the commits of others", keptPrefix)
}

// keepCommits gives commits refs below keptPrefix, with a process for each: ostree makes one ref at
// a time.
func (r *repository) keepCommits(ctx context.Context, commits []string) error {
	for _, commit := range commits {
		c := r.command("keep a commit of others", "refs", "--create="+keptPrefix+"/"+commit, commit)
		c.Absent = true // there are none where a record is replayed
		if _, err := r.run.Output(ctx, c); err != nil {
			return r.mayNotWrite(r.explain(err))
		}
	}
	return nil
}

// unnamedLine is what ostree says of a commit that prune would delete, among what else it says for
// those who debug it.
var unnamedLine = regexp.MustCompile(`: Pruning unneeded object ([0-9a-f]{64})\.commit$`)

// unnamedTotal is with what it ends.
var unnamedTotal = regexp.MustCompile(`^Would delete: ([0-9]+) objects, |^(No unreachable objects)$`)

// unnamedCommits returns the commits that neither a ref names nor the history of one: those that
// prune deletes.
func (r *repository) unnamedCommits(ctx context.Context) (commits []string, err error) {
	err = again(ctx, func() error {
		commits, err = r.unnamedOnce(ctx)
		return err
	})
	return commits, err
}

func (r *repository) unnamedOnce(ctx context.Context) (commits []string, err error) {
	c := r.command("which commits no ref names", "prune", "--refs-only", "--commit-only", "--no-prune")
	c.Read, c.Env = true, []string{"G_MESSAGES_DEBUG=OSTree"} // the one way to have it name them
	out, err := r.run.Reader(ctx, c)
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Close() }()
	total := -1
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if m := unnamedLine.FindStringSubmatch(lines.Text()); m != nil {
			commits = append(commits, m[1])
		} else if m := unnamedTotal.FindStringSubmatch(lines.Text()); m != nil {
			total, _ = strconv.Atoi("0" + m[1])
		}
	}
	if err := lines.Err(); err != nil {
		return nil, r.mayNotWrite(r.explain(err))
	}
	if total != len(commits) {
		return nil, errors.Errorf(
			"ostree prune: it names %d commits without a ref, and says that there are %d",
			len(commits),
			total,
		)
	}
	return commits, nil
}

// listedPaths is of how many files and directories a tree is listed without a question whether it
// may have as many.
const listedPaths = 1 << 17

// list calls f for each line of what ostree ls says of all files of a commit: type and mode, owner,
// group, size, path. Any object but a file's content that is missing or cannot be read is an error.
// A few directories that name one another twice stand for more paths than anybody can list: where
// there are many, most is asked how many there may be. nil is for trees of a few.
func (r *repository) list(ctx context.Context, rev string, most func() (int, error), f func(line string)) error {
	r.reads(ctx, rev)
	c := r.command("list all files of "+rev, "ls", "-R", rev)
	c.Read = true
	out, err := r.run.Reader(ctx, c)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	lines := bufio.NewScanner(out)
	limit := listedPaths
	for n := 1; lines.Scan(); n++ {
		if n == listedPaths && most != nil {
			if limit, err = most(); err != nil {
				return err
			}
		}
		if n > limit {
			return errdefs.Checkf(
				"the tree of %s has more than %d files and directories, which is more than it may have",
				rev,
				limit,
			)
		}
		f(lines.Text())
	}
	return r.explain(lines.Err())
}

// withoutRefs makes the directory a repository that has all objects of r, by reading them there,
// and none of its refs.
func (r *repository) withoutRefs(ctx context.Context, path string) (*repository, error) {
	view := &repository{path: path, run: r.run, hidden: true}
	mode, err := r.config(ctx, "core.mode")
	if err != nil {
		return nil, err
	}
	if err := makeDir(path); err != nil {
		return nil, err
	}
	if err := view.init(ctx, mode); err != nil {
		return nil, err
	}
	return view, view.perform(ctx, "read objects elsewhere", "config", "set", "core.parent", r.path)
}

// fsckLimit is how much of what fsck finds is read: a line for each broken object.
const fsckLimit = 1 << 20

// fsckClosing is the line with which fsck ends where it has found anything.
const fsckClosing = "error: Repository corruption encountered"

// fsck checks all objects and returns what is wrong, a line each.
func (r *repository) fsck(ctx context.Context) ([]string, error) {
	c := r.command("check all objects", "fsck", "--all", "--quiet")
	c.Read, c.ErrLimit = true, fsckLimit
	_, err := r.run.Output(ctx, c)
	var terr *proc.ToolError
	if !errors.As(err, &terr) || terr.ExitCode <= 0 {
		return nil, r.explain(err)
	}
	var access *errdefs.AccessError
	if err := r.explain(err); !errors.As(err, &terr) || errors.As(err, &access) {
		return nil, err
	}
	var lines []string
	for line := range strings.Lines(terr.Stderr) {
		if line = strings.TrimSpace(line); line != "" && line != fsckClosing {
			lines = append(lines, line)
		}
	}
	if len(lines) == 0 {
		return nil, err
	}
	return lines, nil
}

// checkout makes dir, which must not be there, the tree of a commit.
func (r *repository) checkout(ctx context.Context, rev, dir string, o ostree.CheckoutOptions) error {
	return r.explain(r.run.Run(ctx, r.command("check out "+rev, "checkout", ostree.CheckoutArgs(rev, dir, o)...)))
}
