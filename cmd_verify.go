package main

import (
	"path/filepath"
	"runtime"

	"github.com/pkg/errors"
	"github.com/urfave/cli/v2"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/ui"
)

// verifyOptions are the options of verify.
type verifyOptions struct {
	format, gpgHomedir string
	gpgVerify          bool
}

func (p *program) verifyCommand() *cli.Command {
	var o verifyOptions
	return &cli.Command{
		Name: "verify", Category: "Repository", Usage: "rebuild every blob of images and compare the digests",
		ArgsUsage:   "[NAME…]",
		Description: "ostree-image verify\nostree-image verify --format=json debian:12",
		Flags: []cli.Flag{
			formatFlag(&o.format, "table"),
			&cli.BoolFlag{
				Name:        "gpg-verify",
				Usage:       "want a good GPG signature on each commit",
				Destination: &o.gpgVerify,
			},
			&cli.StringFlag{
				Name:        "gpg-homedir",
				Usage:       "accept the keys in the *.gpg files of `DIR`",
				Destination: &o.gpgHomedir,
			},
		},
		Before: wantArgs(0, -1), Action: func(c *cli.Context) error { return p.verify(c, o) },
	}
}

func (p *program) verify(c *cli.Context, o verifyOptions) error {
	format, err := ui.ParseFormat(o.format)
	if err != nil {
		return err
	}
	if o.gpgVerify != (o.gpgHomedir != "") {
		return errdefs.Usagef(
			"verify: --gpg-verify and --gpg-homedir go together: the one asks for signatures, the other says by whom",
		)
	} else if o.gpgVerify {
		p.settings.gpgVerify = true
		if p.settings.gpgHomedir, err = filepath.Abs(o.gpgHomedir); err != nil {
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
	err = format.Print(p.stdout, results, func() error {
		return ui.PrintTable(p.stdout, "NAME\tRESULT\tBLOB\tPROBLEM", func(row func(...any)) {
			for _, r := range results {
				if r.OK {
					row(r.Name, "ok", "", "")
				}
				for _, problem := range r.Problems {
					row(r.Name, "damaged", problem.Blob, problem.Error)
				}
			}
		})
	})
	if err == nil && bad > 0 {
		err = errdefs.Checkf("%d of %d images are damaged", bad, len(results))
	}
	if missing := len(refs) - len(results); err == nil && missing > 0 {
		err = errdefs.NotFoundf("%d of %d images are gone: they were removed meanwhile", missing, len(refs))
	}
	return err
}
