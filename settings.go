package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pkg/errors"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/normalize"
	"ostree-image/internal/ui"
	"ostree-image/internal/workdir"
)

// settings are what one run of the program was told, and what all its parts share.
type settings struct {
	repo             string // --repo, "" for the first of the defaults
	quiet            bool
	debug            bool
	noWarnings       bool
	tmpdir           string // where blobs are staged, "" for the repository's tmp/
	policyFile       string
	insecurePolicy   bool
	unpack           engineName
	preserveDigests  bool   // keep every layer as it came
	removeSignatures bool   // its signatures stay behind
	sameRepository   bool   // the copy's two sides are one repository
	timestamp        *int64 // of every commit, seconds since 1970; nil for the reproducible ones
	noFsync          bool
	limits           normalize.Limits
	splitInto        int           // how many commits share a large layer where that is faster, 0 for one
	splitFrom        int64         // how many bytes a large layer has
	divideFrom       int64         // how many bytes a layer's tar stream has whose checkout is divided
	maxManifest      int64         // bytes, 0 for the library's own limit
	parallelCopies   uint          // blobs that are copied at a time, 0 for the library's own number
	gpgSign          string        // the key that signs the commits, "" for none
	gpgHomedir       string        // where that key is, "" for gpg's own place
	gpgVerify        bool          // verify wants good signatures
	sign             string        // the key that signs the commits by signType, "" for none
	keysFile         string        // the file of the keys that sign the commits by signType, "" for none
	signType         string        // a kind of signature that this ostree may have, such as ed25519
	lockTimeout      time.Duration // how long to wait for a repository's lock, 0 for any time
	idleTimeout      time.Duration // how long a registry may send nothing, 0 for any time

	stderr   io.Writer
	journal  *journal
	runner   *runner
	progress *ui.Progress
	proven   *provenCommits
	reimport reimports
	idle     *idleWatch // of the copy that runs, nil for none

	said sync.Map // the warnings that were given
}

// warnf says on standard error what the user should know, once.
func (s *settings) warnf(format string, args ...any) {
	if s.noWarnings {
		return
	}
	text := fmt.Sprintf(format, args...)
	if _, twice := s.said.LoadOrStore(text, true); !twice {
		s.progress.Print("ostree-image: warning: " + ui.Printable(text) + "\n")
	}
}

// notef says a step of the work, unless the user wants quiet.
func (s *settings) notef(format string, args ...any) {
	if !s.quiet {
		s.progress.Print(ui.Printable(fmt.Sprintf(format, args...)) + "\n")
	}
}

// debugf says what only a search for an error needs.
func (s *settings) debugf(format string, args ...any) {
	if s.debug {
		s.progress.Print("# " + ui.Printable(fmt.Sprintf(format, args...)) + "\n")
	}
}

// repository is the one at a path, as this run uses it.
func (s *settings) repository(path string) *repository {
	return &repository{path: path, run: s.runner, locking: s.lockOptions()}
}

// lockOptions say how this run waits for the lock of a repository.
func (s *settings) lockOptions() workdir.LockOptions {
	return workdir.LockOptions{Timeout: s.lockTimeout, Warn: s.warnf}
}

// signs tells whether commits are to be signed.
func (s *settings) signs() bool { return s.gpgSign != "" || s.sign != "" || s.keysFile != "" }

// signArgs are the options of ostree commit that sign a commit.
func (s *settings) signArgs() []string {
	var args []string
	if s.gpgSign != "" {
		args = append(args, "--gpg-sign="+s.gpgSign)
		if s.gpgHomedir != "" {
			args = append(args, "--gpg-homedir="+s.gpgHomedir)
		}
	}
	if s.sign != "" {
		args = append(args, "--sign="+s.sign, "--sign-type="+s.signType)
	}
	return args
}

// checkSigning fails where commits are to be signed that this run does not make, or as this ostree
// cannot.
func (s *settings) checkSigning(ctx context.Context, destination types.ImageReference) error {
	if !s.signs() {
		return nil
	}
	if _, ok := destination.(ostreeReference); !ok {
		return errdefs.Usagef(
			"--gpg-sign, --sign and --keys-file sign commits, and %s: makes none; --sign-by-sigstore-private-key signs an image",
			destination.Transport().Name(),
		)
	}
	features, err := ostreeVersion(ctx, s.runner)
	if err != nil {
		return err
	}
	if s.gpgSign != "" && !features.Has("gpgme") {
		return errors.Errorf("--gpg-sign: this ostree (%s) is built without the feature gpgme", features.Version)
	}
	canSign := slices.ContainsFunc(features.Features, func(f string) bool { return strings.Contains(f, s.signType) })
	if (s.sign != "" || s.keysFile != "") && !canSign {
		return errors.Errorf("--sign and --keys-file: this ostree (%s) is built without the feature sign-%s; "+
			"--gpg-sign may be had instead", features.Version, s.signType)
	}
	return nil
}

// embeddedRepo is the repository that is used where no other is named or there, made at its first
// use.
func embeddedRepo() (string, error) {
	base := os.Getenv("XDG_DATA_HOME")
	if base == "" || !filepath.IsAbs(base) { // the XDG base directory specification ignores relative paths
		home, err := os.UserHomeDir()
		if err != nil {
			return "", errors.Wrap(err, "finding the default repository")
		}
		base = filepath.Join(home, ".local", "share")
	}
	return filepath.Join(base, "ostree-image", "repo"), nil
}

// systemRepo is the repository of an OSTree system.
const systemRepo = "/ostree/repo"

// defaultRepo is the repository of image names that name none.
func (s *settings) defaultRepo() (string, error) {
	path, embedded, err := s.findRepo()
	if err != nil || !embedded {
		return path, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", errors.Wrap(err, "making the default repository")
	}
	return path, nil
}

// findRepo returns the path of that repository, and whether it is the one that is made at its first
// use.
func (s *settings) findRepo() (path string, embedded bool, err error) {
	if path = cmp.Or(s.repo, os.Getenv("OSTREE_REPO")); path != "" {
		path, err = filepath.Abs(path)
		return path, false, errors.WithStack(err)
	}
	if _, err := os.Stat(systemRepo); err == nil {
		return systemRepo, false, nil
	}
	path, err = embeddedRepo()
	return path, true, err
}

// parseTimestamp reads --timestamp: "now" or seconds since 1970.
func parseTimestamp(text string, now time.Time) (int64, error) {
	if text == "now" {
		return now.Unix(), nil
	}
	var n int64
	if _, err := fmt.Sscanf(text+"\n", "%d\n", &n); err != nil || n < 0 || fmt.Sprint(n) != text {
		return 0, errdefs.Usagef("timestamp %q: it is \"now\" or a number of seconds since 1970", text)
	}
	return n, nil
}

// policyContext returns what decides which images may be copied.
func (s *settings) policyContext(sys *types.SystemContext) (*signature.PolicyContext, error) {
	var policy *signature.Policy
	var err error
	switch {
	case s.insecurePolicy:
		policy = &signature.Policy{Default: []signature.PolicyRequirement{signature.NewPRInsecureAcceptAnything()}}
	case s.policyFile != "":
		policy, err = signature.NewPolicyFromFile(s.policyFile)
	default:
		policy, err = signature.DefaultPolicy(sys)
	}
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, errors.Wrap(
				err,
				"reading the signature policy (name one with --policy, or accept every image with --insecure-policy)",
			)
		}
		return nil, errors.Wrap(err, "reading the signature policy")
	}
	pc, err := signature.NewPolicyContext(policy)
	return pc, errors.Wrap(err, "reading the signature policy")
}

// useRepository settles that the run works on a repository: the journal calls it REPO, the embedded
// default is made where it is missing, and a record begins with it.
func (s *settings) useRepository(ctx context.Context, repo *repository) error {
	variable := s.journal.nameRepository(repo.path)
	if err := s.ensureDefaultRepo(ctx, repo); err != nil {
		return err
	}
	return s.journal.record.repository(ctx, repo, variable)
}

// close ends what the settings hold open. failure and status are how the run ends.
func (s *settings) close(failure error, status int) error {
	s.progress.Close()
	err := s.journal.record.Finish(failure, status, s.journal.secrets)
	if jerr := s.journal.close(); err == nil {
		err = jerr
	}
	return err
}

// openTmpdir pins the directory of --tmpdir.
func (s *settings) openTmpdir() (*workdir.Pinned, error) {
	dir, err := s.runner.Pin(s.tmpdir)
	if err != nil {
		return nil, err
	}
	if err := workdir.CheckParent(dir.At); err != nil {
		dir.Unpin()
		return nil, err
	}
	return dir, nil
}
