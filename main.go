// Ostree-image puts OCI and Docker images into an OSTree repository and gets them back byte for byte, by running the
// programs ostree and tar.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/pkg/errors"
	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"
	"go.podman.io/image/v5/transports"
	"go.podman.io/image/v5/types"
	"go.podman.io/storage/pkg/reexec"
	"golang.org/x/term"

	"ostree-image/internal/errdefs"
)

// version is the program's. A build sets it.
var version = "0.1.0"

// memoryTarget is the size in bytes from which on the collector works harder. More than that may be used where it is needed.
const memoryTarget = 96 << 20

func main() {
	// Layers that follow one another leave garbage behind, which would otherwise wait until the heap has doubled.
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryTarget)
	}
	if reexec.Init() { // the containers-storage transport starts this program again, under other names
		return
	}
	keepFiles()
	syscall.Umask(syscall.Umask(0o077) | 0o002) // a umask of 000 would let anyone write what ends up in a record or a repository
	os.Exit(run(context.Background(), os.Args, os.Stdout, os.Stderr))
}

// run is the program but for its process: it returns the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	ctx, stop := notifyContext(ctx)
	defer stop()
	p := &program{stdout: stdout, stderr: stderr}
	err := p.app().RunContext(ctx, withoutExtensionName(args))
	if p.settings != nil {
		if cerr := p.settings.close(err, errdefs.ExitStatus(ctx, err)); err == nil {
			err = cerr
		}
	}
	status := errdefs.ExitStatus(ctx, err)
	if err != nil {
		var sig errdefs.SignalError
		if errors.As(context.Cause(ctx), &sig) { // whatever failed, this is why
			err = sig
		}
		text := oneLine(err)
		if p.settings != nil && p.settings.runner != nil {
			text = p.settings.runner.shown(text)
		}
		text += advice(text)
		_, _ = fmt.Fprintf(stderr, "ostree-image: %s\n", text)
	}
	return status
}

// oneLine is the text of an error without line breaks.
func oneLine(err error) string {
	return printable(strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' }), " "))
}

// printable returns text with what a terminal would act on escaped. Images, and what tools say of them, are others' texts.
func printable(text string) string {
	var b strings.Builder
	for _, r := range text {
		if strconv.IsPrint(r) {
			b.WriteRune(r)
		} else {
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
	}
	return b.String()
}

// withoutExtensionName drops the "image" that ostree puts first when it runs the program as its own subcommand, "ostree
// image …". Options that were given to ostree may stand before it.
func withoutExtensionName(args []string) []string {
	for i := 1; i < len(args); i++ {
		if args[i] == "image" {
			return append(args[:i:i], args[i+1:]...)
		}
		if !strings.HasPrefix(args[i], "--repo=") {
			break
		}
	}
	return args
}

// program is one call of the program.
type program struct {
	stdout, stderr io.Writer
	settings       *settings

	global struct {
		settings
		logCommands, record, ostree, tar, tmpdir                               string
		timeout, lockWait                                                      time.Duration
		os, arch, variant, registriesConf, registriesD                         string
		authFile                                                               string
		preserve, all, removeSignatures, noFsync, raw, config, noPrune, dryRun bool
		unpack, timestamp, format, signBy, digestFile                          string
		homedir                                                                string
		maxLayerSize, maxManifestSize                                          string
		retries                                                                int
		parallel                                                               uint
		outputFormat                                                           string
		source, destination                                                    endpoint
		checkout                                                               checkoutOptions
		replay                                                                 replayOptions
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
	app := &cli.App{
		Name:            "ostree-image",
		Usage:           "put OCI and Docker images into an OSTree repository, and get them back byte for byte",
		Version:         version,
		HideVersion:     true,
		Writer:          p.stdout,
		ErrWriter:       p.stderr,
		HideHelpCommand: true,
		ExitErrHandler:  func(*cli.Context, error) {},
		OnUsageError:    onUsageError,
		Before:          p.before,
		Action: func(c *cli.Context) error {
			if name := c.Args().First(); name != "" {
				return errdefs.Usagef("unknown command %q; see ostree-image --help", name)
			}
			return cli.ShowAppHelp(c)
		},
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "repo", Usage: "use the OSTree repository at `PATH`", Destination: &g.repo},
			&cli.BoolFlag{Name: "debug", Usage: "show each command on standard error as it starts", Destination: &g.debug},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "show no progress", Destination: &g.quiet},
			&cli.StringFlag{Name: "log-commands", Usage: "append each command that runs to `FILE`, for a shell to run again", EnvVars: []string{"OSTREE_IMAGE_LOG"}, Destination: &g.logCommands},
			&cli.StringFlag{Name: "record", Usage: "keep in `DIR` all that is needed to run the same commands again elsewhere", Destination: &g.record},
			&cli.StringFlag{Name: "tmpdir", Usage: "stage blobs below `DIR` (default: the repository's tmp/)", EnvVars: []string{"TMPDIR"}, Destination: &g.tmpdir},
			&cli.DurationFlag{Name: "command-timeout", Usage: "stop a command that runs longer than `DURATION`, such as 10m (default: never)", Destination: &g.timeout},
			&cli.DurationFlag{Name: "lock-timeout", Usage: "wait for a repository that another run has locked at most `DURATION`; 0s not at all, -1s without limit", Value: defaultLockTimeout, Destination: &g.lockWait},
			&cli.StringFlag{Name: "ostree", Usage: "run `PROGRAM` as ostree", Value: "ostree", EnvVars: []string{"OSTREE_IMAGE_OSTREE"}, Destination: &g.ostree},
			&cli.StringFlag{Name: "tar", Usage: "run `PROGRAM` as tar", Value: "tar", EnvVars: []string{"OSTREE_IMAGE_TAR"}, Destination: &g.tar},
			&cli.StringFlag{Name: "policy", Usage: "read the signature policy from `FILE`", Destination: &g.policyFile},
			&cli.BoolFlag{Name: "insecure-policy", Usage: "accept every image, whatever the signature policy says", Destination: &g.insecurePolicy},
			&cli.StringFlag{Name: "override-os", Usage: "want images for `OS` instead of this machine's", Destination: &g.os},
			&cli.StringFlag{Name: "override-arch", Usage: "want images for `ARCH` instead of this machine's", Destination: &g.arch},
			&cli.StringFlag{Name: "override-variant", Usage: "want images for the architecture's `VARIANT` instead of this machine's", Destination: &g.variant},
			&cli.StringFlag{Name: "registries-conf", Usage: "read the registries' configuration from `FILE`", Destination: &g.registriesConf},
			&cli.StringFlag{Name: "registries.d", Usage: "read where registries keep signatures from `DIR`", Destination: &g.registriesD},
			&cli.StringFlag{Name: "authfile", Usage: "read credentials from `FILE`", EnvVars: []string{"REGISTRY_AUTH_FILE"}, Destination: &g.authFile},
		},
		Commands: []*cli.Command{
			{
				Name: "copy", Usage: "copy an image between any two transports",
				ArgsUsage: "SOURCE DESTINATION",
				Description: "ostree-image copy oci:/images/debian:12 ostree:debian:12@/ostree/repo\n" +
					"ostree-image copy ostree:debian:12@/ostree/repo docker://registry.example.com/debian:12",
				Flags: append(p.copyFlags(), p.importFlags()...), Before: wantArgs(2, 2), Action: p.copy,
			},
			{
				Name: "pull", Usage: "copy an image into the repository",
				ArgsUsage: "SOURCE [NAME]",
				Description: "ostree-image pull docker://docker.io/library/debian:12\n" +
					"ostree-image --repo=/ostree/repo pull oci-archive:debian.tar debian:12",
				Flags: append(p.copyFlags(), p.importFlags()...), Before: wantArgs(1, 2), Action: p.pull,
			},
			{
				Name: "push", Usage: "copy an image out of the repository",
				ArgsUsage: "NAME DESTINATION",
				Description: "ostree-image push debian:12 docker://registry.example.com/debian:12\n" +
					"ostree-image push debian:12 oci-archive:debian.tar",
				Flags: p.copyFlags(), Before: wantArgs(2, 2), Action: p.push,
			},
			{
				Name: "list", Aliases: []string{"ls"}, Usage: "show the images of the repository",
				Description: "ostree-image list\nostree-image --repo=/ostree/repo list --format=json",
				Flags:       []cli.Flag{p.formatFlag("table")}, Before: wantArgs(0, 0), Action: p.list,
			},
			{
				Name: "inspect", Usage: "describe an image of the repository",
				ArgsUsage:   "NAME",
				Description: "ostree-image inspect debian:12\nostree-image inspect --raw debian:12",
				Flags: []cli.Flag{
					p.formatFlag("json"),
					&cli.BoolFlag{Name: "raw", Usage: "print the manifest's exact bytes", Destination: &g.raw},
					&cli.BoolFlag{Name: "config", Usage: "print the config's exact bytes", Destination: &g.config},
				},
				Before: wantArgs(1, 1), Action: p.inspect,
			},
			{
				Name: "checkout", Usage: "make DIR the root file system of an image",
				ArgsUsage:   "NAME DIR",
				Description: "ostree-image checkout debian:12 /srv/debian\nostree-image checkout --user-mode debian:12 ./rootfs",
				Flags: []cli.Flag{
					&cli.BoolFlag{Name: "user-mode", Aliases: []string{"U"}, Usage: "set no owners and no attributes", Destination: &g.checkout.userMode},
					&cli.BoolFlag{Name: "require-hardlinks", Aliases: []string{"H"}, Usage: "take the repository's own files as hard links, which must not be written; fail rather than copy one", Destination: &g.checkout.requireHardlinks},
					&cli.BoolFlag{Name: "force-copy", Aliases: []string{"C"}, Usage: "copy each file, as is done without --require-hardlinks", Destination: &g.checkout.forceCopy},
				},
				Before: wantArgs(2, 2), Action: p.checkout,
			},
			{
				Name: "remove", Aliases: []string{"rm"}, Usage: "remove images, and the blobs that no image needs any more",
				ArgsUsage: "NAME…",
				Description: "ostree-image remove debian:12\nostree-image remove --no-prune debian:11 debian:12\n\n" +
					"Only commits of these images and blobs go, and the objects that no commit needs then.\n" +
					"Commits that no ref names, such as what an image's name meant before, stay until prune.",
				Flags:  []cli.Flag{&cli.BoolFlag{Name: "no-prune", Usage: "leave the blobs, for prune to remove", Destination: &g.noPrune}},
				Before: wantArgs(1, -1), Action: p.remove,
			},
			{
				Name: "prune", Usage: "remove the blobs that no image needs, and all commits that no ref names",
				Description: "ostree-image prune\nostree-image prune --dry-run --format=json\n\n" +
					"Commits that no ref names go whoever made them; standard error says how many before, and with --dry-run which.",
				Flags: []cli.Flag{
					p.formatFlag("table"),
					&cli.BoolFlag{Name: "dry-run", Usage: "only show what would be removed", Destination: &g.dryRun},
				},
				Before: wantArgs(0, 0), Action: p.prune,
			},
			{
				Name: "verify", Usage: "rebuild every blob of images and compare the digests",
				ArgsUsage:   "[NAME…]",
				Description: "ostree-image verify\nostree-image verify --format=json debian:12",
				Flags: []cli.Flag{
					p.formatFlag("table"),
					&cli.BoolFlag{Name: "gpg-verify", Usage: "want a good GPG signature on each commit", Destination: &g.gpgVerify},
					&cli.StringFlag{Name: "gpg-homedir", Usage: "accept the keys in the *.gpg files of `DIR`", Destination: &g.homedir},
				},
				Before: wantArgs(0, -1), Action: p.verify,
			},
			{
				Name: "replay", Usage: "run a recorded run again in a fresh repository and compare every ref; a record is a program",
				ArgsUsage:   "RECORD",
				Description: "ostree-image replay ./record\nostree-image replay --list record.tar.gz",
				Flags: []cli.Flag{
					&cli.BoolFlag{Name: "list", Usage: "only show the commands, their numbers and times", Destination: &g.replay.list},
					&cli.IntFlag{Name: "from", Usage: "begin with command `N`", Destination: &g.replay.from},
					&cli.IntFlag{Name: "to", Usage: "end with command `N`, and compare nothing", Destination: &g.replay.to},
					&cli.BoolFlag{Name: "step", Usage: "ask before each command", Destination: &g.replay.step},
					&cli.BoolFlag{Name: "trust", Usage: "run a record that somebody else made, or that others may have changed", Destination: &g.replay.trust},
					&cli.BoolFlag{Name: "keep", Usage: "leave the work directory", Destination: &g.replay.keep},
					&cli.StringFlag{Name: "work", Usage: "work in `DIR`, where an earlier replay left off", Destination: &g.replay.work},
				},
				Before: wantArgs(1, 1), Action: p.replay,
			},
			{
				Name: "version", Usage: "show the versions of this program, ostree and tar",
				Description: "ostree-image version\nostree-image --ostree=/opt/bin/ostree version",
				Before:      wantArgs(0, 0), Action: p.version,
			},
		},
	}
	for _, c := range app.Commands {
		c.OnUsageError = onUsageError
		c.HideHelpCommand = true
	}
	return app
}

func onUsageError(_ *cli.Context, err error, _ bool) error {
	return errdefs.UsageError{Text: err.Error()}
}

// wantArgs checks how many arguments a command gets; most is -1 for any number. The flag library takes an option behind an argument for one more
// argument.
func wantArgs(least, most int) cli.BeforeFunc {
	return func(c *cli.Context) error {
		for _, a := range c.Args().Slice() {
			if strings.HasPrefix(a, "-") && a != "-" {
				return errdefs.Usagef("%s: options stand before the arguments: move %s to the front", c.Command.Name, a)
			}
		}
		if n := c.NArg(); n < least || most >= 0 && n > most {
			return errdefs.Usagef("%s: %d arguments given; usage: ostree-image %s %s", c.Command.Name, n, c.Command.Name, c.Command.ArgsUsage)
		}
		return nil
	}
}

func (p *program) formatFlag(value string) cli.Flag {
	return &cli.StringFlag{Name: "format", Aliases: []string{"f"}, Usage: "print as `FORMAT`: table or json", Value: value, Destination: &p.global.outputFormat}
}

// copyFlags are the options of every command that copies.
func (p *program) copyFlags() []cli.Flag {
	g := &p.global
	flags := []cli.Flag{
		&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "copy all instances of a multi-architecture image", Destination: &g.all},
		&cli.StringFlag{Name: "format", Aliases: []string{"f"}, Usage: "convert the manifest to `TYPE`: oci, v2s1 or v2s2", Destination: &g.format},
		&cli.BoolFlag{Name: "preserve-digests", Usage: "keep the manifest's digest, or fail", Destination: &g.preserve},
		&cli.BoolFlag{Name: "remove-signatures", Usage: "leave the image's signatures behind", Destination: &g.removeSignatures},
		&cli.StringFlag{Name: "sign-by", Usage: "sign the image with the GPG key `FINGERPRINT`", Destination: &g.signBy},
		&cli.StringFlag{Name: "digestfile", Usage: "write the digest of the copied manifest to `FILE`", Destination: &g.digestFile},
		&cli.IntFlag{Name: "retry-times", Usage: "try again up to `N` times when a copy fails", Destination: &g.retries},
		&cli.UintFlag{Name: "image-parallel-copies", Usage: "copy at most `N` blobs at a time (default: 6)", Destination: &g.parallel},
	}
	for _, side := range []struct {
		prefix, what string
		e            *endpoint
	}{{"src", "source", &g.source}, {"dest", "destination", &g.destination}} {
		e := side.e
		flags = append(flags,
			&cli.BoolFlag{Name: side.prefix + "-tls-verify", Usage: "require HTTPS and verify the certificates of the " + side.what, Value: true, Destination: &e.tlsVerify},
			&cli.StringFlag{Name: side.prefix + "-creds", Usage: "log in at the " + side.what + " as `USER[:PASSWORD]`", Destination: &e.creds},
			&cli.BoolFlag{Name: side.prefix + "-no-creds", Usage: "use no credentials at the " + side.what, Destination: &e.noCreds},
			&cli.StringFlag{Name: side.prefix + "-cert-dir", Usage: "use the certificates in `DIR` for the " + side.what, Destination: &e.certDir},
			&cli.StringFlag{Name: side.prefix + "-authfile", Usage: "read the credentials for the " + side.what + " from `FILE`", Destination: &e.authFile},
			&cli.StringFlag{Name: side.prefix + "-registry-token", Usage: "use the bearer `TOKEN` at the " + side.what, Destination: &e.registryToken},
		)
	}
	return flags
}

// importFlags are the options of commands that write into a repository.
func (p *program) importFlags() []cli.Flag {
	g := &p.global
	return []cli.Flag{
		&cli.StringFlag{Name: "unpack", Usage: "turn layers into commits with `ENGINE`: auto, stream or tar", Value: string(engineAuto), Destination: &g.unpack},
		&cli.StringFlag{Name: "max-layer-size", Usage: "refuse a layer of more than `SIZE` unpacked", Value: "32GiB", Destination: &g.maxLayerSize},
		&cli.IntFlag{Name: "max-layer-files", Usage: "refuse a layer of more than `N` files", Value: 2_000_000, Destination: &g.limits.files},
		&cli.StringFlag{Name: "max-manifest-size", Usage: "refuse a manifest of more than `SIZE`", Value: "4MiB", Destination: &g.maxManifestSize},
		&cli.StringFlag{Name: "timestamp", Usage: "give all commits the time `now|SECONDS` (default: the same for the same image)", EnvVars: []string{"SOURCE_DATE_EPOCH"}, Destination: &g.timestamp},
		&cli.StringFlag{Name: "gpg-sign", Usage: "sign each commit with the GPG key `KEY-ID`", Destination: &g.gpgSign},
		&cli.StringFlag{
			Name: "sign", Destination: &g.sign,
			Usage: "sign each commit with the secret `KEY`, where ostree can; " +
				"all users can see it in the list of processes",
		},
		&cli.StringFlag{
			Name: "keys-file", Destination: &g.keysFile,
			Usage: "sign each commit with the secret keys in `FILE`, a line each",
		},
		&cli.StringFlag{Name: "sign-type", Usage: "the `KIND` of that signature", Value: "ed25519", Destination: &g.signType},
		&cli.StringFlag{Name: "gpg-homedir", Usage: "look for that key in `DIR`", Destination: &g.homedir},
		&cli.DurationFlag{
			Name: "idle-timeout", Value: defaultIdleTimeout, Destination: &g.idleTimeout,
			Usage: "give up where a registry has sent nothing for `DURATION`; 0s never",
		},
		&cli.BoolFlag{
			Name: "no-fsync", Destination: &g.noFsync,
			Usage: "do not wait for the disk: a loss of power soon after can take the image, or damage the repository",
		},
	}
}

// before settles what all commands share.
func (p *program) before(c *cli.Context) error {
	g := &p.global
	s := &g.settings
	file, isFile := p.stderr.(*os.File)
	s.progress = newProgress(p.stderr, isFile && term.IsTerminal(int(file.Fd())), s.quiet)
	s.stderr = s.progress.w
	s.proven = newProvenCommits()
	logrus.SetOutput(s.stderr)
	logrus.SetLevel(logrus.WarnLevel)
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

// systemContext returns what the library is told about one side of a copy.
func (p *program) systemContext(e endpoint, tlsGiven bool) (*types.SystemContext, error) {
	g := &p.global
	sys := &types.SystemContext{
		OSChoice: g.os, ArchitectureChoice: g.arch, VariantChoice: g.variant,
		SystemRegistriesConfPath: g.registriesConf, RegistriesDirPath: g.registriesD,
		AuthFilePath: g.authFile, SignaturePolicyPath: g.policyFile,
		DockerCertPath: e.certDir, OCICertPath: e.certDir, DockerDaemonCertPath: e.certDir,
		DockerBearerRegistryToken: e.registryToken, DockerRegistryUserAgent: "ostree-image/" + version,
		BigFilesTemporaryDir: p.settings.tmpdir,
		// Nothing can be made there, so the library keeps its cache of blobs in memory, where it is without cgo anyway.
		BlobInfoCacheDir: "/dev/null/none",
	}
	if e.authFile != "" {
		sys.AuthFilePath = e.authFile
	}
	if tlsGiven {
		sys.DockerInsecureSkipTLSVerify = types.NewOptionalBool(!e.tlsVerify)
		sys.OCIInsecureSkipTLSVerify = !e.tlsVerify
		sys.DockerDaemonInsecureSkipTLSVerify = !e.tlsVerify
	}
	switch {
	case e.creds != "" && e.noCreds:
		return nil, errdefs.Usagef("credentials are given, and are not to be used")
	case e.noCreds:
		sys.DockerAuthConfig = &types.DockerAuthConfig{}
	case e.creds != "":
		user, password, ok := strings.Cut(e.creds, ":")
		if user == "" || !ok || password == "" {
			return nil, errdefs.Usagef("the credentials are not USER:PASSWORD")
		}
		sys.DockerAuthConfig = &types.DockerAuthConfig{Username: user, Password: password}
		p.settings.journal.hide(userAndPassword(e.creds)...)
	}
	if p.settings.journal.keeps() {
		for _, path := range authFiles(sys.AuthFilePath) {
			p.settings.journal.hide(authSecrets(path)...)
		}
	}
	p.settings.journal.hide(e.registryToken)
	return sys, nil
}

// mayRead tells why a file cannot be read.
func mayRead(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return errors.WithStack(err)
	}
	return errors.WithStack(f.Close())
}

// copySettings reads the options of a copy.
func (p *program) copySettings(c *cli.Context) (copyOptions, error) {
	g, s := &p.global, p.settings
	o := copyOptions{
		all: g.all, format: g.format, removeSignatures: g.removeSignatures, signBy: g.signBy, digestFile: g.digestFile, retries: g.retries,
	}
	s.preserveDigests, s.noFsync, s.parallelCopies = g.preserve, g.noFsync, g.parallel
	if g.idleTimeout < 0 {
		return copyOptions{}, errdefs.Usagef("--idle-timeout %s: it cannot be negative", g.idleTimeout)
	}
	s.dealTo, s.dealFrom = min(s.parallelImports(), maxParts), dealFrom
	if g.unpack != "" {
		s.unpack = engineName(g.unpack)
	}
	switch s.unpack {
	case engineAuto, engineStream, engineTar:
	default:
		return o, errdefs.Usagef("--unpack %q: it is auto, stream or tar", g.unpack)
	}
	if g.sign != "" && g.keysFile != "" {
		return o, errdefs.Usagef("--sign and --keys-file exclude each other")
	}
	if g.sign == "" && g.keysFile == "" && c.IsSet("sign-type") {
		return o, errdefs.Usagef("--sign-type is the kind of signature of --sign or --keys-file, which are not given")
	}
	if (g.sign != "" || g.keysFile != "") && g.signType == "" {
		return o, errdefs.Usagef("--sign-type is empty: it is ed25519, or what else this ostree has")
	}
	s.journal.hide(g.sign)
	var err error
	if g.keysFile != "" {
		if s.keysFile, err = filepath.Abs(g.keysFile); err != nil {
			return o, errors.WithStack(err)
		}
		// ostree signs with the keys of a file that is missing, which are none.
		if err := mayRead(s.keysFile); err != nil {
			return o, errors.WithMessage(err, "--keys-file")
		}
	}
	if g.homedir != "" {
		if g.gpgSign == "" {
			return o, errdefs.Usagef("--gpg-homedir says where the key of --gpg-sign is, which is not given")
		}
		if s.gpgHomedir, err = filepath.Abs(g.homedir); err != nil {
			return o, errors.WithStack(err)
		}
	}
	if s.limits.bytes, err = parseSize("--max-layer-size", g.maxLayerSize); err != nil {
		return o, err
	}
	if s.maxManifest, err = parseSize("--max-manifest-size", g.maxManifestSize); err != nil {
		return o, err
	}
	if g.timestamp != "" {
		t, err := parseTimestamp(g.timestamp, time.Now())
		if err != nil {
			return o, err
		}
		s.timestamp = &t
	}
	if o.source, err = p.systemContext(g.source, c.IsSet("src-tls-verify")); err != nil {
		return o, errors.WithMessage(err, "the source")
	}
	if o.destination, err = p.systemContext(g.destination, c.IsSet("dest-tls-verify")); err != nil {
		return o, errors.WithMessage(err, "the destination")
	}
	return o, nil
}

// parseSize reads a number of bytes, which may have a unit. "" is 0.
func parseSize(option, text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	n, err := units.RAMInBytes(text)
	if err != nil || n <= 0 {
		return 0, errdefs.Usagef("%s %q: it is a size, such as 512MiB", option, text)
	}
	return n, nil
}

func (p *program) copy(c *cli.Context) error {
	o, err := p.copySettings(c)
	if err != nil {
		return err
	}
	source, err := p.settings.parseImage(c.Args().Get(0))
	if err != nil {
		return err
	}
	destination, err := p.settings.parseImage(c.Args().Get(1))
	if err != nil {
		return err
	}
	return p.settings.copyImage(c.Context, source, destination, o)
}

func (p *program) pull(c *cli.Context) error {
	o, err := p.copySettings(c)
	if err != nil {
		return err
	}
	source, err := p.settings.parseImage(c.Args().Get(0))
	if err != nil {
		return err
	}
	name := c.Args().Get(1)
	if c.NArg() == 1 {
		if name, err = pullName(source); err != nil {
			return err
		}
	}
	destination, err := p.reference(name)
	if err != nil {
		return err
	}
	return p.settings.copyImage(c.Context, source, destination, o)
}

// reference reads the name of an image in the repository: a plain NAME, or ostree:NAME@/PATH.
func (p *program) reference(name string) (ostreeReference, error) {
	return ostreeTransport{p.settings}.parse(strings.TrimPrefix(name, transportName+":"))
}

// repository returns the repository of a command that names no image.
func (p *program) repository(ctx context.Context) (*repository, error) {
	path, err := p.settings.defaultRepo()
	if err != nil {
		return nil, err
	}
	if path, err = normalizeRepo(path); err != nil {
		return nil, err
	}
	r := p.settings.repository(path)
	return r, p.settings.useRepository(ctx, r)
}

func (p *program) push(c *cli.Context) error {
	o, err := p.copySettings(c)
	if err != nil {
		return err
	}
	source, err := p.reference(c.Args().Get(0))
	if err != nil {
		return err
	}
	destination, err := p.settings.parseImage(c.Args().Get(1))
	if err != nil {
		return err
	}
	return p.settings.copyImage(c.Context, source, destination, o)
}

func (p *program) inspect(c *cli.Context) error {
	if p.global.raw && p.global.config {
		return errdefs.Usagef("inspect: --raw and --config exclude each other")
	}
	asJSON, err := p.wantsJSON()
	if err != nil {
		return err
	}
	ref, err := p.reference(c.Args().First())
	if err != nil {
		return err
	}
	sys, err := p.systemContext(endpoint{}, false)
	if err != nil {
		return err
	}
	if p.global.raw {
		return writeRaw(c.Context, ref, p.stdout)
	}
	if p.global.config {
		return writeConfig(c.Context, ref, sys, p.stdout)
	}
	info, err := inspectImage(c.Context, ref, sys)
	if err != nil {
		return err
	}
	if asJSON {
		return p.printJSON(info)
	}
	created := "unknown"
	if info.Created != nil {
		created = info.Created.Format(time.DateTime)
	}
	if info.Instance != "" {
		return p.printRows("NAME\tDIGEST\tINSTANCE\tOS/ARCH\tLAYERS\tCREATED", func(row func(...any)) {
			row(info.Name, info.Digest, info.Instance, info.Os+"/"+info.Architecture, len(info.Layers), created)
		})
	}
	return p.printRows("NAME\tDIGEST\tOS/ARCH\tLAYERS\tCREATED", func(row func(...any)) {
		row(info.Name, info.Digest, info.Os+"/"+info.Architecture, len(info.Layers), created)
	})
}

func (p *program) checkout(c *cli.Context) error {
	ref, err := p.reference(c.Args().Get(0))
	if err != nil {
		return err
	}
	sys, err := p.systemContext(endpoint{}, false)
	if err != nil {
		return err
	}
	p.settings.divideFrom = divideFrom
	return checkoutImage(c.Context, ref, c.Args().Get(1), sys, p.global.checkout)
}

// references reads the arguments of a command as images of one repository.
func (p *program) references(c *cli.Context) (*repository, []ostreeReference, error) {
	var refs []ostreeReference
	for _, name := range c.Args().Slice() {
		ref, err := p.reference(name)
		if err != nil {
			return nil, nil, err
		}
		if len(refs) > 0 {
			if err := sameRepository(c, refs[0].repo, ref.repo); err != nil {
				return nil, nil, err
			}
		}
		refs = append(refs, ref)
	}
	if len(refs) == 0 {
		repo, err := p.repository(c.Context)
		return repo, nil, err
	}
	repo := refs[0].repository()
	return repo, refs, p.settings.useRepository(c.Context, repo)
}

// sameRepository refuses a command about images of two repositories.
func sameRepository(c *cli.Context, one, other string) error {
	if one != other {
		return errdefs.Usagef("%s: the images are in two repositories, %s and %s", c.Command.Name, one, other)
	}
	return nil
}

func (p *program) remove(c *cli.Context) error {
	var repo *repository
	var images []removal
	for _, text := range c.Args().Slice() {
		image, path, err := p.removal(text)
		if err != nil {
			return err
		}
		if repo == nil {
			repo = p.settings.repository(path)
		}
		if err := sameRepository(c, repo.path, path); err != nil {
			return err
		}
		images = append(images, image)
	}
	if err := p.settings.useRepository(c.Context, repo); err != nil {
		return err
	}
	return removeImages(c.Context, p.settings, repo, images, !p.global.noPrune)
}

// removal reads a name or ref, and the repository that it lies in. What others have put there can
// have a name that no image would be given, or one that another image has under another remote.
func (p *program) removal(text string) (image removal, repo string, err error) {
	name, path, err := ostreeTransport{p.settings}.split(strings.TrimPrefix(text, transportName+":"))
	if err != nil {
		return image, "", err
	}
	ref, err := newReference(ostreeTransport{p.settings}, name, path)
	if err == nil {
		return removal{image: ref}, ref.repo, nil
	}
	image = removal{text: name, invalid: err}
	repo, err = normalizeRepo(path)
	return image, repo, err
}

func (p *program) prune(c *cli.Context) error {
	asJSON, err := p.wantsJSON()
	if err != nil {
		return err
	}
	repo, err := p.repository(c.Context)
	if err != nil {
		return err
	}
	blobs, err := pruneRepository(c.Context, p.settings, repo, p.global.dryRun, func(commits []string) {
		if !p.global.dryRun {
			p.settings.notef("%d commits that no ref names are removed, too, whoever made them", len(commits))
			return
		}
		for _, commit := range commits {
			p.settings.notef("commit %s, which no ref names, would be removed, too", commit)
		}
	})
	if blobs == nil {
		return err
	}
	var perr error
	if asJSON {
		perr = p.printJSON(blobs)
	} else {
		perr = p.printRows("REF\tCOMMIT", func(row func(...any)) {
			for _, b := range blobs {
				row(b.Ref, b.Commit)
			}
		})
	}
	if err == nil {
		err = perr
	}
	return err
}

func (p *program) verify(c *cli.Context) error {
	asJSON, err := p.wantsJSON()
	if err != nil {
		return err
	}
	if g := &p.global; g.gpgVerify != (g.homedir != "") {
		return errdefs.Usagef("verify: --gpg-verify and --gpg-homedir go together: the one asks for signatures, the other says by whom")
	} else if g.gpgVerify {
		if p.settings.gpgHomedir, err = filepath.Abs(g.homedir); err != nil {
			return errors.WithStack(err)
		}
		if err := checkKeyrings(p.settings.gpgHomedir); err != nil {
			return err
		}
	}
	repo, refs, err := p.references(c)
	if err != nil {
		return err
	}
	results, err := verifyImages(c.Context, p.settings, repo, refs, runtime.GOMAXPROCS(0))
	if err != nil {
		return err
	}
	bad := 0
	for _, r := range results {
		if !r.OK {
			bad++
		}
	}
	if asJSON {
		err = p.printJSON(results)
	} else {
		err = p.printRows("NAME\tRESULT\tBLOB\tPROBLEM", func(row func(...any)) {
			for _, r := range results {
				if r.OK {
					row(r.Name, "ok", "", "")
				}
				for _, problem := range r.Problems {
					row(r.Name, "damaged", problem.Blob, problem.Error)
				}
			}
		})
	}
	if err == nil && bad > 0 {
		err = errdefs.Checkf("%d of %d images are damaged", bad, len(results))
	}
	if missing := len(refs) - len(results); err == nil && missing > 0 {
		err = errdefs.NotFoundf("%d of %d images are gone: they were removed meanwhile", missing, len(refs))
	}
	return err
}

func (p *program) replay(c *cli.Context) error {
	o := p.global.replay
	o.repo = p.global.repo
	if o.from < 0 || o.to < 0 || o.to > 0 && o.from > o.to {
		return errdefs.Usagef("replay: --from %d --to %d name no commands", o.from, o.to)
	}
	return replayRecord(c.Context, p.settings, c.Args().First(), o, os.Stdin, p.stdout)
}

func (p *program) list(c *cli.Context) error {
	asJSON, err := p.wantsJSON()
	if err != nil {
		return err
	}
	repo, err := p.repository(c.Context)
	if err != nil {
		return err
	}
	var failed error
	images, err := repo.listImages(c.Context, runtime.GOMAXPROCS(0), asJSON, func(name string, err error) {
		var gone errdefs.GoneError
		var access *errdefs.AccessError
		switch {
		case errors.As(err, &gone):
			p.settings.notef("%s", gone)
			return
		case errors.As(err, &access) && failed == nil:
			failed = errors.New("some images cannot be read by this user")
		case !errors.As(err, &access):
			failed = errdefs.Checkf("some images cannot be read")
		}
		p.settings.progress.print(fmt.Sprintf("ostree-image: image %s: %s\n", printable(name), oneLine(err)))
	})
	if err != nil {
		return err
	}
	if asJSON {
		err = p.printJSON(images)
	} else {
		err = p.printTable(images)
	}
	if err == nil {
		err = failed
	}
	return err
}

func (p *program) wantsJSON() (bool, error) {
	switch f := p.global.outputFormat; f {
	case "table":
		return false, nil
	case "json":
		return true, nil
	default:
		return false, errdefs.Usagef("--format %q: it is table or json", f)
	}
}

func (p *program) printJSON(v any) error {
	e := json.NewEncoder(p.stdout)
	e.SetIndent("", "    ")
	e.SetEscapeHTML(false)
	return errors.Wrap(e.Encode(v), "writing the result")
}

// printRows prints a table. head and the cells of a row are parted by tabs.
func (p *program) printRows(head string, fill func(row func(cells ...any))) error {
	w := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, head)
	fill(func(cells ...any) {
		for i, c := range cells {
			if i > 0 {
				_, _ = fmt.Fprint(w, "\t")
			}
			_, _ = fmt.Fprint(w, printable(fmt.Sprint(c)))
		}
		_, _ = fmt.Fprintln(w)
	})
	return errors.Wrap(w.Flush(), "writing the result")
}

func (p *program) printTable(images []imageInfo) error {
	return p.printRows("NAME\tDIGEST\tLAYERS\tSIZE\tCREATED", func(row func(...any)) {
		for _, i := range images {
			short := strings.TrimPrefix(i.Digest, "sha256:")
			row(i.Name, short[:min(shortDigest, len(short))], i.Layers, units.HumanSize(float64(i.Size)), i.Created.Format(time.DateTime))
		}
	})
}

func (p *program) version(c *cli.Context) error {
	features, err := ostreeVersion(c.Context, p.settings.runner)
	if err != nil {
		return err
	}
	tar, err := tarVersion(c.Context, p.settings.runner)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(p.stdout, "ostree-image %s (%s, %s/%s)\nostree %s (%s)\ntar %s\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH,
		features.version, strings.Join(features.features, " "), tar)
	return errors.Wrap(err, "writing the result")
}
