package main

import (
	"context"
	"strings"

	"github.com/urfave/cli/v2"
	"go.podman.io/image/v5/types"

	"ostree-image/internal/errdefs"
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

// formatFlag is the option of what prints a table or JSON.
func formatFlag(format *string, value string) cli.Flag {
	return &cli.StringFlag{Name: "format", Aliases: []string{"f"}, Usage: "print as `FORMAT`: table or json", Value: value, Destination: format}
}

// wantsJSON reads --format of what prints a table or JSON.
func wantsJSON(format string) (bool, error) {
	switch format {
	case "table":
		return false, nil
	case "json":
		return true, nil
	default:
		return false, errdefs.Usagef("--format %q: it is table or json", format)
	}
}

// wantArgs checks how many arguments a command gets; most is -1 for any number.
func wantArgs(least, most int) cli.BeforeFunc {
	return func(c *cli.Context) error {
		if n := c.NArg(); n < least || most >= 0 && n > most {
			return errdefs.Usagef("%s: %d arguments given; usage: ostree-image %s %s", c.Command.Name, n, c.Command.Name, c.Command.ArgsUsage)
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
