package main

import (
	"os"
	"path/filepath"
	"time"

	"github.com/docker/go-units"
	"github.com/pkg/errors"
	"github.com/urfave/cli/v2"

	"ostree-image/internal/errdefs"
)

func (p *program) copyCommand() *cli.Command {
	return &cli.Command{
		Name: "copy", Usage: "copy an image between any two transports",
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
	return p.settings.copyImage(c.Context, source, destination, o)
}

func (p *program) pullCommand() *cli.Command {
	return &cli.Command{
		Name: "pull", Usage: "copy an image into the repository",
		ArgsUsage: "SOURCE [NAME]",
		Description: "ostree-image pull docker://docker.io/library/debian:12\n" +
			"ostree-image --repo=/ostree/repo pull oci-archive:debian.tar debian:12",
		Flags: append(p.copyFlags(), p.importFlags()...), Before: wantArgs(1, 2), Action: p.pull,
	}
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

func (p *program) pushCommand() *cli.Command {
	return &cli.Command{
		Name: "push", Usage: "copy an image out of the repository",
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

// mayRead tells why a file cannot be read.
func mayRead(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return errors.WithStack(err)
	}
	return errors.WithStack(f.Close())
}
