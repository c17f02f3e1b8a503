package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/docker/go-units"
	"github.com/pkg/errors"
	"github.com/urfave/cli/v2"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/pkg/compression"
	"go.podman.io/image/v5/pkg/shortnames"
	"go.podman.io/image/v5/transports"
	"go.podman.io/image/v5/transports/alltransports"
	"go.podman.io/image/v5/types"

	"ostree-image/internal/errdefs"
)

func (p *program) copyCommand() *cli.Command {
	return &cli.Command{
		Name: "copy", Category: "Images", Usage: "copy an image between any two transports",
		ArgsUsage: "SOURCE DESTINATION",
		Description: "ostree-image copy oci:/images/debian:12 ostree:debian:12@/ostree/repo\n" +
			"ostree-image copy ostree:debian:12@/ostree/repo docker://registry.example.com/debian:12",
		Flags: append(p.copyFlags(), p.importFlags()...), Before: wantArgs(2, 2), Action: p.copy,
	}
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
	return p.copyImage(c.Context, source, destination, o)
}

func (p *program) pullCommand() *cli.Command {
	return &cli.Command{
		Name: "pull", Category: "Images", Usage: "copy an image into the repository",
		ArgsUsage: "SOURCE [NAME]",
		Description: "ostree-image pull quay.io/podman/stable\n" +
			"ostree-image --repo=/ostree/repo pull oci-archive:debian.tar debian:12",
		Flags: append(p.copyFlags(), p.importFlags()...), Before: wantArgs(1, 2), Action: p.pull,
	}
}

func (p *program) pull(c *cli.Context) error {
	o, err := p.copySettings(c)
	if err != nil {
		return err
	}
	sources, err := p.pullSources(c.Args().Get(0), o.source)
	if err != nil {
		return err
	}
	for _, source := range sources {
		name := c.Args().Get(1)
		if c.NArg() == 1 {
			if name, err = pullName(source.ref, o.source); err != nil {
				return err
			}
		}
		destination, rerr := p.reference(name)
		if rerr != nil {
			return rerr
		}
		err = p.copyImage(c.Context, source.ref, destination, o)
		if err == nil && source.record != nil {
			err = errors.Wrap(source.record(), "noting what the short name stands for")
		}
		var missing errdefs.NotFoundError
		if !errors.As(err, &missing) { // the next registry may have it
			return err
		}
	}
	return err
}

// copyImage copies an image, and settles what a signal leaves of it.
func (p *program) copyImage(ctx context.Context, source, destination types.ImageReference, o copyOptions) error {
	if _, ours := destination.(ostreeReference); ours {
		p.stopped = "the repository is as it was"
	} else {
		p.stopped = transports.ImageName(destination) + " may have a part of the image"
	}
	return p.settings.copyImage(ctx, source, destination, o)
}

// pullSource is where an image can be.
type pullSource struct {
	ref    types.ImageReference
	record func() error // is called where it was there; nil for nothing
}

// pullSources returns where an image can be: what the name says, or, without a transport, in a
// registry. A short name can be one of several, as registries.conf says.
func (p *program) pullSources(name string, sys *types.SystemContext) ([]pullSource, error) {
	if alltransports.TransportFromImageName(name) == nil {
		if _, err := reference.ParseNormalizedNamed(name); err == nil {
			if shortnames.IsShortName(name) {
				return shortNameSources(name, sys)
			}
			name = "docker://" + name
		}
	}
	source, err := p.settings.parseImage(name)
	return []pullSource{{ref: source}}, err
}

func shortNameSources(name string, sys *types.SystemContext) (sources []pullSource, err error) {
	resolved, err := shortnames.Resolve(sys, name)
	if err != nil {
		return nil, errdefs.Usagef("%s; if it is Docker Hub's, write docker://%s", err, name)
	}
	for _, candidate := range resolved.PullCandidates {
		source, err := docker.NewReference(candidate.Value)
		if err != nil {
			return nil, errors.WithStack(err)
		}
		sources = append(sources, pullSource{source, candidate.Record})
	}
	return sources, nil
}

func (p *program) pushCommand() *cli.Command {
	return &cli.Command{
		Name: "push", Category: "Images", Usage: "copy an image out of the repository",
		ArgsUsage: "NAME DESTINATION",
		Description: "ostree-image push debian:12 docker://registry.example.com/debian:12\n" +
			"ostree-image push debian:12 oci-archive:debian.tar",
		Flags: p.copyFlags(), Before: wantArgs(2, 2), Action: p.push,
	}
}

func (p *program) push(c *cli.Context) error {
	o, err := p.copySettings(c)
	if err != nil {
		return err
	}
	source, err := p.image(c.Context, c.Args().Get(0))
	if err != nil {
		return err
	}
	destination, err := p.settings.parseImage(c.Args().Get(1))
	if err != nil {
		return err
	}
	return p.copyImage(c.Context, source, destination, o)
}

// copyFlags are the options of every command that copies.
func (p *program) copyFlags() []cli.Flag {
	g := &p.global
	flags := []cli.Flag{
		&cli.BoolFlag{
			Name:        "all",
			Aliases:     []string{"a"},
			Usage:       "copy all instances of a multi-architecture image",
			Destination: &g.all,
		},
		&cli.StringFlag{
			Name:        "multi-arch",
			Usage:       "of an index copy `WHICH`: system, all or index-only",
			DefaultText: "system",
			Destination: &g.multiArch,
		},
		&cli.StringSliceFlag{
			Name:        "platform",
			Usage:       "of an index copy the instances for `OS/ARCH`; may be given several times",
			Destination: &g.platforms,
		},
		&cli.BoolFlag{
			Name:        "tls-verify",
			Usage:       "want HTTPS and a valid certificate of the registry, on either side",
			Value:       true,
			Destination: &g.tlsVerify,
		},
		&cli.StringFlag{
			Name:        "dest-compress-format",
			Category:    "Destination",
			Usage:       "have the destination compress layers with `FORMAT`, such as gzip or zstd",
			Destination: &g.compressFormat,
		},
		&cli.IntFlag{
			Name:        "dest-compress-level",
			Category:    "Destination",
			Usage:       "compress them with the `LEVEL`",
			DefaultText: "the format's own",
			Destination: &g.compressLevel,
		},
		&cli.StringFlag{
			Name:        "format",
			Aliases:     []string{"f"},
			Usage:       "convert the manifest to `TYPE`: oci, v2s1 or v2s2",
			Destination: &g.format,
		},
		&cli.BoolFlag{Name: "preserve-digests", Usage: "keep the manifest's digest, or fail", Destination: &g.preserve},
		&cli.BoolFlag{
			Name:        "remove-signatures",
			Usage:       "leave the image's signatures behind",
			Destination: &g.removeSignatures,
		},
		&cli.StringFlag{
			Name: "sign-by-sigstore-private-key", Destination: &g.sigstoreKey,
			Usage: "add a sigstore signature by the private key in `FILE`",
		},
		&cli.StringFlag{
			Name:        "sign-passphrase-file",
			Usage:       "read that key's passphrase from `FILE`",
			Destination: &g.passphraseFile,
		},
		&cli.StringFlag{
			Name:        "digestfile",
			Usage:       "write the digest of the copied manifest to `FILE`",
			Destination: &g.digestFile,
		},
		&cli.IntFlag{
			Name:        "retry-times",
			Usage:       "try again up to `N` times when a copy fails",
			Destination: &g.retries,
		},
		&cli.UintFlag{
			Name:        "image-parallel-copies",
			Usage:       "copy at most `N` blobs at a time",
			DefaultText: "6",
			Destination: &g.parallel,
		},
	}
	for _, side := range []struct {
		prefix, what, category string
		e                      *endpoint
	}{{"src-", "source", "Source", &g.source}, {"dest-", "destination", "Destination", &g.destination}} {
		flags = append(flags, endpointFlags(side.e, side.prefix, side.what, side.category)...)
		flags = append(flags, &cli.StringFlag{
			Name:        side.prefix + "authfile",
			Category:    side.category,
			Usage:       "read the credentials for the " + side.what + " from `FILE`",
			Destination: &side.e.authFile,
		})
	}
	return flags
}

// importFlags are the options of commands that write into a repository.
func (p *program) importFlags() []cli.Flag {
	g := &p.global
	return []cli.Flag{
		&cli.StringFlag{
			Name:        "unpack",
			Category:    "Import",
			Usage:       "turn layers into commits with `ENGINE`: auto, stream or tar",
			Value:       string(engineAuto),
			Destination: &g.unpack,
		},
		&cli.StringFlag{
			Name:        "max-layer-size",
			Category:    "Import",
			Usage:       "refuse a layer of more than `SIZE` unpacked",
			Value:       "32GiB",
			Destination: &g.maxLayerSize,
		},
		&cli.IntFlag{
			Name:        "max-layer-files",
			Category:    "Import",
			Usage:       "refuse a layer of more than `N` files",
			Value:       2_000_000,
			Destination: &g.limits.Files,
		},
		&cli.StringFlag{
			Name:        "max-manifest-size",
			Category:    "Import",
			Usage:       "refuse a manifest of more than `SIZE`",
			Value:       "4MiB",
			Destination: &g.maxManifestSize,
		},
		&cli.StringFlag{
			Name:        "timestamp",
			Category:    "Import",
			Usage:       "give all commits the time `now|SECONDS` (default: the same for the same image)",
			EnvVars:     []string{"SOURCE_DATE_EPOCH"},
			Destination: &g.timestamp,
		},
		&cli.StringFlag{
			Name:        "gpg-sign",
			Category:    "Import",
			Usage:       "sign each commit with the GPG key `KEY-ID`",
			Destination: &g.gpgSign,
		},
		&cli.StringFlag{
			Name: "sign", Category: "Import", Destination: &g.sign,
			Usage: "sign each commit with the secret `KEY`, where ostree can; " +
				"all users can see it in the list of processes",
		},
		&cli.StringFlag{
			Name: "keys-file", Category: "Import", Destination: &g.keysFile,
			Usage: "sign each commit with the secret keys in `FILE`, a line each",
		},
		&cli.StringFlag{
			Name:        "sign-type",
			Category:    "Import",
			Usage:       "the `KIND` of that signature",
			Value:       "ed25519",
			Destination: &g.signType,
		},
		&cli.StringFlag{
			Name:        "gpg-homedir",
			Category:    "Import",
			Usage:       "look for that key in `DIR`",
			Destination: &g.homedir,
		},
		&cli.DurationFlag{
			Name: "idle-timeout", Category: "Import", Value: defaultIdleTimeout, Destination: &g.idleTimeout,
			Usage: "give up where a registry has sent nothing for `DURATION`; 0s never",
		},
		&cli.BoolFlag{
			Name: "no-fsync", Category: "Import", Destination: &g.noFsync,
			Usage: "do not wait for the disk: a loss of power soon after can take the image, or damage the repository",
		},
	}
}

// copySettings reads the options of a copy.
func (p *program) copySettings(c *cli.Context) (copyOptions, error) {
	g, s := &p.global, p.settings
	o := copyOptions{
		format: g.format, removeSignatures: g.removeSignatures, digestFile: g.digestFile, retries: g.retries,
	}
	var err error
	if o.instances, err = parseInstances(g.all, g.multiArch, g.platforms.Value()); err != nil {
		return o, err
	}
	if o.sigstoreKey, o.sigstorePassphrase, err = sigstoreKey(g.sigstoreKey, g.passphraseFile); err != nil {
		return o, err
	}
	s.preserveDigests, s.noFsync, s.parallelCopies = g.preserve, g.noFsync, g.parallel
	if g.idleTimeout < 0 {
		return copyOptions{}, errdefs.Usagef("--idle-timeout %s: it cannot be negative", g.idleTimeout)
	}
	s.splitInto, s.splitFrom = min(s.parallelImports(), maxParts), splitFrom
	if g.unpack != "" {
		s.unpack = engineName(g.unpack)
	}
	switch s.unpack {
	case engineAuto, engineStream, engineTar:
	default:
		return o, errdefs.Usagef("--unpack %q: it is auto, stream or tar", g.unpack)
	}
	if g.sign != "" && g.keysFile != "" {
		return o, errdefs.Usagef("--sign and --keys-file are mutually exclusive")
	}
	if g.sign == "" && g.keysFile == "" && c.IsSet("sign-type") {
		return o, errdefs.Usagef("--sign-type is the kind of signature of --sign or --keys-file, which are not given")
	}
	if (g.sign != "" || g.keysFile != "") && g.signType == "" {
		return o, errdefs.Usagef("--sign-type is empty: it is ed25519, or what else this ostree has")
	}
	s.journal.hide(g.sign)
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
	if s.limits.Bytes, err = parseSize("--max-layer-size", g.maxLayerSize); err != nil {
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
	for _, side := range []struct {
		name, prefix string
		options      endpoint
		sys          **types.SystemContext
	}{{"the source", "src", g.source, &o.source}, {"the destination", "dest", g.destination, &o.destination}} {
		given := c.IsSet(side.prefix + "-tls-verify")
		if !given && c.IsSet("tls-verify") {
			given, side.options.tlsVerify = true, g.tlsVerify
		}
		if *side.sys, err = p.systemContext(side.options, given); err != nil {
			return o, errors.WithMessage(err, side.name)
		}
	}
	if only := o.instances.only; only != nil {
		only.choose(o.source)
		only.choose(o.destination)
	}
	return o, compressWith(o.destination, g.compressFormat, g.compressLevel, c.IsSet("dest-compress-level"))
}

// compressWith tells a destination how to compress layers.
func compressWith(sys *types.SystemContext, format string, level int, levelGiven bool) error {
	if format != "" {
		algorithm, err := compression.AlgorithmByName(format)
		if err != nil {
			return errdefs.Usagef("--dest-compress-format %q: it is gzip, zstd or zstd:chunked", format)
		}
		sys.CompressionFormat = &algorithm
	}
	if levelGiven {
		sys.CompressionLevel = &level
	}
	return nil
}

// sigstoreKey returns the file of a private key, and its passphrase.
func sigstoreKey(key, passphraseFile string) (file string, passphrase []byte, err error) {
	if key == "" {
		if passphraseFile != "" {
			return "", nil, errdefs.Usagef(
				"--sign-passphrase-file is for --sign-by-sigstore-private-key, which is not given",
			)
		}
		return "", nil, nil
	}
	if err := mayRead(key); err != nil {
		return "", nil, errors.WithMessage(err, "--sign-by-sigstore-private-key")
	}
	if passphraseFile != "" {
		if passphrase, err = os.ReadFile(passphraseFile); err != nil {
			return "", nil, errors.Wrap(err, "--sign-passphrase-file")
		}
		passphrase, _, _ = bytes.Cut(passphrase, []byte("\n"))
	}
	return key, passphrase, nil
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

// mayRead tells why a file cannot be read.
func mayRead(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return errors.WithStack(err)
	}
	return errors.WithStack(f.Close())
}
