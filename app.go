package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pkg/errors"
	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"
	"go.podman.io/image/v5/transports"
	"golang.org/x/term"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/ui"
	"ostree-image/internal/workdir"
)

// program is one call of the program.
type program struct {
	stdout, stderr io.Writer
	settings       *settings
	stopped        string // what a signal leaves, once a command is at work

	global struct {
		settings
		logCommands, record, ostree, tar, tmpdir       string
		progressForm, logLevel                         string
		timeout, lockWait                              time.Duration
		os, arch, variant, registriesConf, registriesD string
		authFile                                       string
		preserve, all, removeSignatures, noFsync       bool
		unpack, timestamp, format, digestFile          string
		multiArch, compressFormat                      string
		sigstoreKey, passphraseFile                    string
		platforms                                      cli.StringSlice
		tlsVerify                                      bool
		compressLevel                                  int
		homedir                                        string
		maxLayerSize, maxManifestSize                  string
		retries                                        int
		parallel                                       uint
		source, destination                            endpoint
	}
}

// endpoint are the options of one side of a copy.
type endpoint struct {
	tlsVerify                               bool
	noCreds                                 bool
	creds, certDir, authFile, registryToken string
}

func (p *program) app() *cli.App {
	g := &p.global
	// The library has these as globals.
	cli.VersionFlag = &cli.BoolFlag{
		Name:               "version",
		Aliases:            []string{"v"},
		Usage:              "print the version",
		DisableDefaultText: true,
	}
	cli.VersionPrinter = func(c *cli.Context) { _, _ = fmt.Fprintln(c.App.Writer, c.App.Name, c.App.Version) }
	cli.HelpPrinter = func(w io.Writer, text string, data any) {
		var b bytes.Buffer
		cli.HelpPrinterCustom(&b, text, data, nil)
		_, _ = io.WriteString(w, ui.Wrap(b.String(), terminalWidth(p.stdout)))
	}
	app := &cli.App{
		Name:            "ostree-image",
		Usage:           "put OCI and Docker images into an OSTree repository, and get them back byte for byte",
		Version:         version,
		Writer:          p.stdout,
		ErrWriter:       p.stderr,
		HideHelpCommand: true,
		ExitErrHandler:  func(*cli.Context, error) {},
		OnUsageError:    onUsageError,
		Before:          p.before,
		Action:          cli.ShowAppHelp,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "repo", Usage: "use the OSTree repository at `PATH`", Destination: &g.repo},
			&cli.BoolFlag{
				Name:        "debug",
				Usage:       "show each command on standard error as it starts",
				Destination: &g.debug,
			},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "show no progress", Destination: &g.quiet},
			&cli.StringFlag{
				Name:        "progress",
				Usage:       "show progress as `FORM`: auto, plain, json or none",
				Value:       "auto",
				Destination: &g.progressForm,
			},
			&cli.StringFlag{
				Name:        "log-level",
				Usage:       "say what is of `LEVEL` or worse: error, warn, info or debug",
				Value:       "warn",
				Destination: &g.logLevel,
			},
			&cli.StringFlag{
				Name:        "log-commands",
				Usage:       "append each command that runs to `FILE`, for a shell to run again",
				EnvVars:     []string{"OSTREE_IMAGE_LOG"},
				Destination: &g.logCommands,
			},
			&cli.StringFlag{
				Name:        "record",
				Usage:       "keep in `DIR` all that is needed to run the same commands again elsewhere",
				Destination: &g.record,
			},
			&cli.StringFlag{
				Name:        "tmpdir",
				Usage:       "stage blobs below `DIR` (default: the repository's tmp/)",
				EnvVars:     []string{"TMPDIR"},
				Destination: &g.tmpdir,
			},
			&cli.DurationFlag{
				Name:        "command-timeout",
				Usage:       "stop a command that runs longer than `DURATION`, such as 10m",
				DefaultText: "never",
				Destination: &g.timeout,
			},
			&cli.DurationFlag{
				Name:        "lock-timeout",
				Usage:       "wait for a repository that another run has locked at most `DURATION`; 0s not at all, -1s without limit",
				Value:       workdir.DefaultLockTimeout,
				Destination: &g.lockWait,
			},
			&cli.StringFlag{
				Name:        "ostree",
				Usage:       "run `PROGRAM` as ostree",
				Value:       "ostree",
				EnvVars:     []string{"OSTREE_IMAGE_OSTREE"},
				Destination: &g.ostree,
			},
			&cli.StringFlag{
				Name:        "tar",
				Usage:       "run `PROGRAM` as tar",
				Value:       "tar",
				EnvVars:     []string{"OSTREE_IMAGE_TAR"},
				Destination: &g.tar,
			},
			&cli.StringFlag{Name: "policy", Usage: "read the signature policy from `FILE`", Destination: &g.policyFile},
			&cli.BoolFlag{
				Name:        "insecure-policy",
				Usage:       "accept every image, whatever the signature policy says",
				Destination: &g.insecurePolicy,
			},
			&cli.StringFlag{
				Name:        "override-os",
				Usage:       "want images for `OS` instead of this machine's",
				Destination: &g.os,
			},
			&cli.StringFlag{
				Name:        "override-arch",
				Usage:       "want images for `ARCH` instead of this machine's",
				Destination: &g.arch,
			},
			&cli.StringFlag{
				Name:        "override-variant",
				Usage:       "want images for the architecture's `VARIANT` instead of this machine's",
				Destination: &g.variant,
			},
			&cli.StringFlag{
				Name:        "registries-conf",
				Usage:       "read the registries' configuration from `FILE`",
				Destination: &g.registriesConf,
			},
			&cli.StringFlag{
				Name:        "registries.d",
				Usage:       "read where registries keep signatures from `DIR`",
				Destination: &g.registriesD,
			},
			&cli.StringFlag{
				Name:        "authfile",
				Usage:       "read credentials from `FILE`",
				EnvVars:     []string{"REGISTRY_AUTH_FILE"},
				Destination: &g.authFile,
			},
		},
		Commands: []*cli.Command{
			p.copyCommand(),
			p.pullCommand(),
			p.pushCommand(),
			p.listCommand(),
			p.inspectCommand(),
			p.checkoutCommand(),
			p.tagCommand(),
			p.untagCommand(),
			p.removeCommand(),
			p.pruneCommand(),
			p.verifyCommand(),
			p.loginCommand(),
			p.logoutCommand(),
			p.replayCommand(),
			p.helpCommand(),
			p.doctorCommand(),
			p.versionCommand(),
			p.completionCommand(),
			p.completeCommand(),
			p.manCommand(),
		},
	}
	app.Flags = append(app.Flags, cli.HelpFlag) // the library adds it only where it has the command help as its own
	plainHelp(app.Flags)
	for _, c := range app.Commands {
		c.OnUsageError = onUsageError
		c.HideHelpCommand = true
		c.CustomHelpTemplate = commandHelp
		plainHelp(c.Flags)
	}
	return app
}

// commandHelp is the help of a command: the library's, without the group that it is in, and with
// examples for its description.
var commandHelp = strings.NewReplacer(
	"{{if .Category}}\n\nCATEGORY:\n   {{.Category}}{{end}}", "", "\n\nDESCRIPTION:\n", "\n\nEXAMPLES:\n",
).Replace(cli.CommandHelpTemplate)

// terminalWidth is how many characters a line of the terminal has that w is, 0 where it is none.
func terminalWidth(w io.Writer) int {
	file, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		return 0
	}
	width, _, err := term.GetSize(int(file.Fd()))
	if err != nil {
		return 0
	}
	return width
}

// plainHelp leaves out that an option is off unless it is given.
func plainHelp(flags []cli.Flag) {
	for _, f := range flags {
		if b, ok := f.(*cli.BoolFlag); ok {
			b.DisableDefaultText = !b.Value
		}
	}
}

// beginProgress settles how progress is shown: the value of --progress says it.
func (p *program) beginProgress(value string) error {
	s := &p.global.settings
	file, isFile := p.stderr.(*os.File)
	terminal := isFile && term.IsTerminal(int(file.Fd())) && os.Getenv("TERM") != "dumb"
	mode, err := ui.ParseProgress(value, terminal)
	if s.quiet && mode != ui.JSON {
		mode = ui.Silent
	}
	s.progress = ui.NewProgress(p.stderr, mode)
	return err
}

// setLogLevel settles what is said beside results and progress, by the value of --log-level.
func (s *settings) setLogLevel(value string) error {
	levels := map[string]logrus.Level{
		"error": logrus.ErrorLevel, "warn": logrus.WarnLevel, "info": logrus.InfoLevel, "debug": logrus.DebugLevel,
	}
	level, ok := levels[value]
	if !ok {
		return errdefs.Usagef("--log-level %q: it is error, warn, info or debug", value)
	}
	logrus.SetLevel(level)
	s.noWarnings = level == logrus.ErrorLevel
	s.debug = s.debug || level == logrus.DebugLevel
	return nil
}

// before settles what all commands share.
func (p *program) before(c *cli.Context) error {
	g := &p.global
	s := &g.settings
	if err := p.beginProgress(g.progressForm); err != nil {
		return err
	}
	s.stderr = s.progress.W
	s.proven = newProvenCommits()
	logrus.SetOutput(s.stderr)
	if err := s.setLogLevel(g.logLevel); err != nil {
		return err
	}
	logrus.SetFormatter(&logrus.TextFormatter{DisableColors: true}) // so it escapes what others wrote
	var debug io.Writer
	if s.debug {
		debug = s.stderr
	}
	journal, err := openJournal(g.logCommands, debug)
	if err != nil {
		return err
	}
	s.journal = journal
	p.settings = s
	if g.timeout < 0 {
		return errdefs.Usagef("--command-timeout %s: it cannot be negative", g.timeout)
	}
	if s.lockTimeout = max(0, g.lockWait); g.lockWait == 0 {
		s.lockTimeout = time.Nanosecond
	}
	if g.tmpdir != "" {
		if s.tmpdir, err = filepath.Abs(g.tmpdir); err != nil {
			return errors.WithStack(err)
		}
	}
	s.unpack = engineAuto
	s.runner = newRunner(g.ostree, g.tar, g.timeout, journal)
	if g.record != "" {
		if journal.record, err = newRecorder(g.record, s.runner); err != nil {
			return err
		}
		journal.record.begin(c.Context)
	}
	transports.Delete(transportName) // the library's stub, which only says that the transport was removed
	transports.Register(ostreeTransport{settings: s})
	return nil
}
