package main

import (
	"context"
	"regexp"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"go.podman.io/image/v5/transports/alltransports"
	"go.podman.io/image/v5/types"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/imageref"
)

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
		// Nothing can be made there, so the library keeps its cache of blobs in memory, where it is
		// without cgo anyway.
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
		return nil, errdefs.Usagef("credentials and no credentials are mutually exclusive")
	case e.noCreds:
		sys.DockerAuthConfig = &types.DockerAuthConfig{}
	case e.creds != "":
		user, password, ok := strings.Cut(e.creds, ":")
		if user == "" || !ok || password == "" {
			return nil, errdefs.Usagef("credentials must be USER:PASSWORD")
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

// formatFlag is the option of what prints a table or JSON.
func formatFlag(format *string, value string) cli.Flag {
	return &cli.StringFlag{
		Name:        "format",
		Aliases:     []string{"f"},
		Usage:       "print as `FORMAT`: table, json or a Go template, such as {{.Name}}",
		Value:       value,
		Destination: format,
	}
}

// wantArgs checks how many arguments a command gets; most is -1 for any number.
func wantArgs(least, most int) cli.BeforeFunc {
	return func(c *cli.Context) error {
		if n := c.NArg(); n < least || most >= 0 && n > most {
			usage := strings.TrimSpace("ostree-image " + c.Command.Name + " " + c.Command.ArgsUsage)
			if n < least {
				missing := strings.Fields(c.Command.ArgsUsage)[n:least]
				verb := "is"
				if len(missing) > 1 {
					verb = "are"
				}
				return errdefs.Usagef(
					"%s: %s %s missing; usage: %s",
					c.Command.Name,
					strings.Join(missing, " and "),
					verb,
					usage,
				)
			}
			return errdefs.Usagef(
				"%s: %q is one argument too many; usage: %s",
				c.Command.Name,
				c.Args().Get(most),
				usage,
			)
		}
		return nil
	}
}

func onUsageError(_ *cli.Context, err error, _ bool) error {
	return errdefs.UsageError{Text: err.Error()}
}

// reference reads the name of an image in the repository: a plain NAME, or ostree:NAME@/PATH.
func (p *program) reference(name string) (ostreeReference, error) {
	return ostreeTransport{p.settings}.parse(strings.TrimPrefix(name, transportName+":"))
}

// anyImage reads the name of an image of the repository, or of another transport.
func (p *program) anyImage(ctx context.Context, name string) (types.ImageReference, error) {
	if t := alltransports.TransportFromImageName(name); t != nil && t.Name() != transportName {
		return p.settings.parseImage(name)
	}
	return p.image(ctx, name)
}

// digestName is what may be a manifest's digest, or the beginning of one, in the place of a name.
var digestName = regexp.MustCompile(`^(?:sha256:)?([0-9a-f]{4,64})$`)

// image reads the name of an image that is in the repository, or its manifest's digest, or an
// unambiguous beginning of that. Of several names that it has the first counts.
func (p *program) image(ctx context.Context, name string) (ostreeReference, error) {
	ref, names, err := p.imageNames(ctx, name)
	if err != nil || len(names) == 0 {
		return ref, err
	}
	return newReference(ref.transport, names[0], ref.repo)
}

// imageNames reads what image does. Where it is a digest, names are those that the image has.
func (p *program) imageNames(ctx context.Context, name string) (ref ostreeReference, names []string, err error) {
	text, _, _ := strings.Cut(strings.TrimPrefix(name, transportName+":"), "@/")
	hex := digestName.FindStringSubmatch(text)
	if hex != nil && text == hex[1] && len(text) == 64 { // which the library takes for no name
		name = strings.Replace(name, text, "sha256:"+text, 1)
	}
	if ref, err = p.reference(name); err != nil || hex == nil {
		return ref, nil, err
	}
	repo := ref.repository()
	store, err := openBlobStore(ctx, repo)
	if err != nil {
		return ref, nil, err
	}
	if _, err := store.findImage(ref); err == nil {
		return ref, nil, nil
	}
	first := ""
	all, specs := store.images()
	for i, spec := range specs {
		info, err := repo.commitInfo(ctx, spec)
		if ctx.Err() != nil {
			return ref, nil, context.Cause(ctx)
		}
		sum := info.Metadata[imageref.KeyDigest]
		if err != nil || !strings.HasPrefix(sum, "sha256:"+hex[1]) { // one that cannot be read is none that was meant
			continue
		}
		if first == "" {
			first = sum
		}
		if sum != first {
			return ref, nil, errdefs.Usagef(
				"%s is the beginning of the digests of several images, such as %s and %s",
				text,
				names[0],
				all[i],
			)
		}
		if !slices.Contains(names, all[i]) {
			names = append(names, all[i])
		}
	}
	return ref, names, nil // whoever looks for what has no name says that it is not there
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

// references reads the arguments of a command as images of one repository.
func (p *program) references(c *cli.Context) (*repository, []ostreeReference, error) {
	var refs []ostreeReference
	for _, name := range c.Args().Slice() {
		ref, err := p.image(c.Context, name)
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

// endpointFlags are the options of a place that may be a registry: what is what they call it.
func endpointFlags(e *endpoint, prefix, what, category string) []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{
			Name:        prefix + "tls-verify",
			Category:    category,
			Usage:       "require HTTPS and verify the certificates of the " + what,
			Value:       true,
			Destination: &e.tlsVerify,
		},
		&cli.StringFlag{
			Name:        prefix + "creds",
			Category:    category,
			Usage:       "log in at the " + what + " as `USER:PASSWORD`",
			Destination: &e.creds,
		},
		&cli.BoolFlag{
			Name:        prefix + "no-creds",
			Category:    category,
			Usage:       "use no credentials at the " + what,
			Destination: &e.noCreds,
		},
		&cli.StringFlag{
			Name:        prefix + "cert-dir",
			Category:    category,
			Usage:       "use the certificates in `DIR` for the " + what,
			Destination: &e.certDir,
		},
		&cli.StringFlag{
			Name:        prefix + "registry-token",
			Category:    category,
			Usage:       "use the bearer `TOKEN` at the " + what,
			Destination: &e.registryToken,
		},
	}
}
