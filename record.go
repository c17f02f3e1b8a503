package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"github.com/klauspost/compress/zstd"
	"github.com/pkg/errors"
	"golang.org/x/sys/unix"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/ostree"
	"ostree-image/internal/proc"
	"ostree-image/internal/rootfs"
	"ostree-image/internal/shellquote"
	"ostree-image/internal/spool"
	"ostree-image/internal/ui"
	"ostree-image/internal/workdir"
)

// The files of a record.
const (
	recordScript   = "commands.sh"
	recordBlobs    = "blobs"    // what the commands read
	recordSums     = "sums"     // sha256 of the files in blobs that have no digest for a name
	recordRepo     = "repo"     // the commits that the run read of REPO
	recordSource   = "source"   // those that it read of SOURCE, where it copied between two repositories
	recordRemotes  = "remotes"  // "CHECKSUM REF" for each of the refs of REPO's remotes that it read
	recordRefs     = "refs"     // "CHECKSUM REF" for each ref that was written
	recordVersions = "versions" // of the programs
)

// recordEnd is the last line of the script of a run that ended well.
const recordEnd = "ENDED=yes"

// recorder keeps what is needed to run a run's commands again where nothing of it is left:
// --record. It is written as the run goes, so that one that is killed leaves a record up to where
// it was. It is safe for parallel use.
type recorder struct {
	dir string
	run *runner

	mu     sync.Mutex
	script *os.File
	refs   *os.File
	sums   *os.File
	repos  []*keptRepository // first the one that the run works on
	mode   string            // of that
	err    error             // the first failure
}

// keptRepository is what a record keeps of a repository that the run reads.
type keptRepository struct {
	source, kept *repository
	pulled       map[string]bool
}

const recordHeader = `#!/bin/sh
# The commands that one run of ostree-image %s ran.
#
# Run them again with: sh commands.sh. That needs ostree, tar, zstd and the decompressors of the image's layers.
#   REPO=/other/repo sh commands.sh   runs them against another repository, or a copy of the original
#   WORK=/some/dir sh commands.sh     works in that directory, which stays
# Without them REPO is a fresh repository in WORK, and WORK a fresh directory. The file refs says what must come of it.
#
# Each command has a number and a comment on what it is for, and how long it took. "Taken back" are commands whose
# stream is not there: the run ended them, and began anew or failed. Commands that only read may fail where they did when
# they were recorded.
set -eu
%s
ENDED=
MISSED=
KNOWN=
missed() { MISSED="$MISSED $1"; }
checked() {
    for n in $MISSED; do
        case " $KNOWN " in *" $n "*) ;; *) echo "command $n only reads, and fails now though it did not when it was recorded" >&2; ENDED=no ;; esac
    done
    [ "$ENDED" != no ]
}
trap '[ $? -ne 0 ] || [ "$ENDED" ] || { echo "the record ends here: the run was cut off" >&2; exit 1; }' EXIT
RECORD=$(cd "$(dirname "$0")" && pwd)
BLOBS=$RECORD/blobs
WORK=${WORK:-$(mktemp -d)}
REPO=${REPO:-$WORK/repo}
OUT=${OUT:-$WORK/out}
echo "working in $WORK, on the repository $REPO" >&2
`

// newRecorder begins a record in dir, which must not exist or be empty.
func newRecorder(dir string, run *runner) (rec *recorder, err error) {
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, errors.WithStack(err)
	}
	if info, err := os.Lstat(dir); err == nil {
		names, rerr := os.ReadDir(dir)
		if !info.IsDir() || rerr != nil || len(names) > 0 {
			return nil, errors.Errorf("--record: %s is there, and is no empty directory", dir)
		}
		if !workdir.OwnedByUser(info) {
			return nil, errors.Errorf(
				"--record: %s belongs to somebody else, who could change what is written there",
				dir,
			)
		}
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return nil, errors.Wrap(err, "--record")
	}
	above, err := run.Pin(filepath.Dir(dir))
	if err != nil {
		return nil, errors.WithMessage(err, "--record")
	}
	defer above.Unpin()
	if err := unix.Mkdirat(above.Fd, filepath.Base(dir), 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, errors.Wrapf(err, "--record: making %s", dir)
	}
	here, err := run.PinBelow(above, filepath.Base(dir))
	if err != nil {
		return nil, errors.WithMessage(err, "--record")
	}
	dir = here.At // private: whoever could change it would have the user run his commands
	if err := os.Mkdir(filepath.Join(dir, recordBlobs), 0o700); err != nil {
		return nil, errors.Wrap(err, "--record")
	}
	rec = &recorder{dir: dir, run: run}
	for name, f := range map[string]**os.File{recordScript: &rec.script, recordRefs: &rec.refs, recordSums: &rec.sums} {
		if *f, err = os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
			return nil, errors.Wrap(err, "--record")
		}
	}
	rec.write(rec.script, fmt.Sprintf(recordHeader, version, shellquote.Prelude))
	return rec, nil
}

func (rec *recorder) write(f *os.File, text string) {
	if _, err := f.WriteString(text); err != nil && rec.err == nil {
		rec.err = errors.Wrap(err, "writing the record")
	}
}

// steps begins a script of the record. A nil recorder returns nil.
func (rec *recorder) steps(name string) (*rootfs.Script, error) {
	if rec == nil {
		return nil, nil
	}
	f, err := os.OpenFile(filepath.Join(rec.dir, recordBlobs, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return nil, errors.Wrap(err, "writing the record")
	}
	return rootfs.NewScript(f, func(sum string) {
		rec.mu.Lock()
		defer rec.mu.Unlock()
		rec.write(rec.sums, fmt.Sprintf("%s  %s/%s\n", sum, recordBlobs, name))
	}), nil
}

// print appends to the script. A nil recorder takes everything and does nothing.
func (rec *recorder) print(text string) {
	if rec == nil {
		return
	}
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.write(rec.script, text)
}

// begin writes down which programs there are.
func (rec *recorder) begin(ctx context.Context) {
	text := fmt.Sprintf("ostree-image %s (%s, %s/%s)\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	for _, tool := range []string{proc.OSTree, proc.Tar} {
		out, err := rec.run.Output(ctx, proc.Command{Tool: tool, Args: []string{"--version"}, Hidden: true})
		if err != nil {
			out = []byte(err.Error() + "\n")
		}
		text += string(out)
	}
	if err := os.WriteFile(filepath.Join(rec.dir, recordVersions), []byte(text), 0o600); err != nil {
		rec.fail(err)
	}
}

func (rec *recorder) fail(err error) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if rec.err == nil && err != nil {
		rec.err = errors.WithMessage(err, "writing the record")
	}
}

// repository says which repository the run works on. Its mode is that of the fresh one in which the
// script runs.
func (rec *recorder) repository(ctx context.Context, repo *repository, variable string) error {
	if rec == nil || variable == "" || rec.find(repo.path) != nil {
		return nil
	}
	quiet := &repository{path: repo.path, run: repo.run, hidden: true}
	mode, err := quiet.config(ctx, "core.mode")
	if err != nil {
		return err
	}
	rec.mu.Lock()
	defer rec.mu.Unlock()
	dir := recordRepo
	if len(rec.repos) > 0 {
		dir = recordSource
	}
	k := &keptRepository{
		quiet,
		&repository{path: filepath.Join(rec.dir, dir), run: rec.run, hidden: true},
		map[string]bool{},
	}
	rec.repos = append(rec.repos, k)
	if dir == recordSource {
		rec.write(rec.script, "# 0: the repository that the image comes from, with what the run read there\n"+
			variable+`=${`+variable+`:-$RECORD/`+recordSource+"}\n")
		return k.kept.init(ctx, mode)
	}
	rec.mode = mode
	rec.write(rec.script, fmt.Sprintf(`# 0: the repository, with what the run read from the original
[ -e "$REPO"/config ] || ostree init --repo="$REPO" --mode=%s
[ ! -d "$RECORD"/repo ] || ostree pull-local --repo="$REPO" --disable-verify-bindings "$RECORD"/repo
[ ! -e "$RECORD"/remotes ] || while read -r c r; do ostree refs --repo="$REPO" --force --create="$r" "$c"; done <"$RECORD"/remotes
`, shellquote.Word(mode)))
	return nil
}

// find returns what is kept of a repository, nil for one that the run does not work on.
func (rec *recorder) find(path string) *keptRepository {
	for _, k := range rec.repos {
		if k.source.path == path {
			return k
		}
	}
	return nil
}

// reads keeps the commits of refs of the repository at path that are about to be read.
func (rec *recorder) reads(ctx context.Context, path string, revs ...string) {
	if rec == nil {
		return
	}
	rec.mu.Lock()
	defer rec.mu.Unlock()
	k := rec.find(path)
	if k == nil {
		return
	}
	var fresh []string
	for _, rev := range revs {
		if k.pulled[rev] ||
			ostree.ChecksumPattern.MatchString(rev) { // a checksum was learned from a ref, so it is there
			continue
		}
		k.pulled[rev] = true
		fresh = append(fresh, rev)
	}
	if len(fresh) == 0 {
		return
	}
	if err := rec.pull(ctx, k, fresh); err != nil && rec.err == nil && !errors.Is(err, errNoRef) {
		rec.err = errors.WithMessage(err, "writing the record")
	}
}

func (rec *recorder) pull(ctx context.Context, k *keptRepository, refs []string) error {
	if _, err := os.Stat(k.kept.path); os.IsNotExist(err) {
		if err := k.kept.init(ctx, rec.mode); err != nil {
			return err
		}
	}
	known, err := k.source.refs(ctx)
	if err != nil {
		return err
	}
	var there []string
	for _, r := range refs {
		if !known[r] {
			continue
		}
		if !strings.Contains(r, ":") {
			there = append(there, r)
		} else if err := rec.pullRemote(ctx, k, r); err != nil {
			return err
		}
	}
	if len(there) == 0 {
		return nil
	}
	return k.kept.pullLocal(ctx, k.source.path, false, "", there...)
}

// pullRemote keeps the commit of a remote's ref. ostree pulls no such ref from a repository by its
// name.
func (rec *recorder) pullRemote(ctx context.Context, k *keptRepository, ref string) error {
	sums, err := k.source.revParse(ctx, ref)
	if err != nil {
		return err
	}
	if err := k.kept.pullLocal(ctx, k.source.path, false, "", sums[0]); err != nil {
		return err
	}
	if k.kept.path != filepath.Join(rec.dir, recordRepo) {
		return k.kept.setRef(ctx, "", ref, sums[0])
	}
	// The script pulls all refs of it, and can do so only where none is a remote's.
	if err := k.kept.setRef(ctx, "", keptPrefix+"/"+sums[0], sums[0]); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(rec.dir, recordRemotes), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return errors.WithStack(err)
	}
	_, err = fmt.Fprintf(f, "%s %s\n", sums[0], ref)
	errdefs.Close(&err, f)
	return errors.WithStack(err)
}

// wrote notes the refs that the run has written.
func (rec *recorder) wrote(ctx context.Context, refs []string) error {
	if rec == nil {
		return nil
	}
	checksums, err := rec.repos[0].source.revParse(ctx, refs...)
	if err != nil {
		return errors.WithMessage(err, "writing the record")
	}
	rec.mu.Lock()
	defer rec.mu.Unlock()
	for i, ref := range refs {
		rec.write(rec.refs, checksums[i]+" "+ref+"\n")
	}
	return nil
}

// link links a file that is about to be written into the record's blobs, so that a run that is
// killed leaves as much of it as there was. keep does the rest.
func (rec *recorder) link(path, name string) {
	if rec != nil && os.Chmod(path, 0o644) == nil {
		_ = os.Link(path, filepath.Join(rec.dir, recordBlobs, name))
	}
}

// keep puts a file into the record's blobs: a link where that can be, a copy otherwise. A file that
// is linked may still grow.
func (rec *recorder) keep(path, name string) error {
	if rec == nil {
		return nil
	}
	to := filepath.Join(rec.dir, recordBlobs, name)
	if err := os.Chmod(path, 0o644); err != nil { // the directory of the original is private
		return errors.Wrap(err, "writing the record")
	}
	err := os.Link(path, to)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		err = copyFile(path, to)
		if err == nil {
			err = os.Chmod(to, 0o644)
		}
	}
	return errors.WithMessage(err, "writing the record")
}

// recordedStream is a stream that the program made for a command, kept compressed.
type recordedStream struct {
	rec  *recorder
	name string
	file *os.File
	sum  hash.Hash
	buf  *bufio.Writer
	zst  *zstd.Encoder
	lost error // the command reads no more
}

// stream begins to keep a stream under name, instead of one that an attempt before left. A nil
// recorder returns nil.
func (rec *recorder) stream(name string) (*recordedStream, error) {
	if rec == nil {
		return nil, nil
	}
	name += ".zst"
	path := filepath.Join(rec.dir, recordBlobs, name)
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return nil, errors.Wrap(err, "writing the record")
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, errors.Wrap(err, "writing the record")
	}
	s := &recordedStream{rec: rec, name: name, file: f, sum: sha256.New()}
	s.buf = bufio.NewWriterSize(io.MultiWriter(f, s.sum), spool.CopyBuffer)
	s.zst, err = zstd.NewWriter(
		s.buf,
		zstd.WithEncoderLevel(zstd.SpeedFastest),
		zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(512<<10),
	)
	return s, errors.WithStack(err)
}

// tee returns a writer to command and to the stream. Where the command ends before its input does,
// the stream goes on: a replay is to fail in the same way, so it needs what the command would have
// got. broken tells of it. A nil stream leaves command alone.
func (s *recordedStream) tee(command io.Writer) io.Writer {
	if s == nil {
		return command
	}
	return recordedTee{s, command}
}

type recordedTee struct {
	s       *recordedStream
	command io.Writer
}

func (t recordedTee) Write(b []byte) (int, error) {
	if t.s.lost == nil {
		n, err := t.command.Write(b)
		if err != nil && !errors.Is(err, syscall.EPIPE) {
			return n, err
		}
		t.s.lost = err
	}
	n, err := t.s.zst.Write(b)
	return n, errors.Wrap(err, "writing the record")
}

// broken returns the error of a command that read no more.
func (s *recordedStream) broken() error {
	if s == nil {
		return nil
	}
	return s.lost
}

// end ends the stream: whole, or taken back.
func (s *recordedStream) end(whole bool) (err error) {
	if s == nil {
		return nil
	}
	err = s.zst.Close()
	if ferr := s.buf.Flush(); err == nil {
		err = ferr
	}
	errdefs.Close(&err, s.file)
	if !whole {
		return errors.WithStack(os.Remove(s.file.Name()))
	}
	s.rec.mu.Lock()
	defer s.rec.mu.Unlock()
	s.rec.write(s.rec.sums, fmt.Sprintf("%x  %s/%s\n", s.sum.Sum(nil), recordBlobs, s.name))
	return errors.WithMessage(err, "writing the record")
}

var (
	userinfo = regexp.MustCompile(`://[^/@\s"']+@`)
	// A query can be what lets everybody in who has it, such as the signature of a URL that storage
	// gives out.
	urlQuery = regexp.MustCompile(`(?i)(\bhttps?://[^\s"'<>?]*\?)[^\s"'<>]+`)
)

// redact takes what may be secret out of a text.
func redact(text string, secrets []string) string {
	text = userinfo.ReplaceAllString(text, "://***@")
	text = urlQuery.ReplaceAllString(text, "$1***")
	for _, s := range secrets {
		if s != "" {
			text = strings.ReplaceAll(text, s, "***")
		}
	}
	return text
}

// finish ends the record, which says so: without its last line it is known to be one of a run that
// was killed. A run that failed ends with the same error when it is replayed, where none of its
// commands does so before.
func (rec *recorder) Finish(failure error, status int, secrets []string) error {
	if rec == nil {
		return nil
	}
	if failure == nil {
		rec.print("checked\n" + recordEnd + "\n")
	} else {
		text := redact(ui.OneLine(failure), secrets)
		rec.print(
			fmt.Sprintf(
				"# the run failed here\n{ echo %s >&2; exit %d; }\n",
				shellquote.Word("ostree-image: "+text),
				status,
			),
		)
	}
	rec.mu.Lock()
	defer rec.mu.Unlock()
	err := rec.err
	for _, f := range []*os.File{rec.script, rec.refs, rec.sums} {
		errdefs.Close(&err, f)
	}
	return err
}
