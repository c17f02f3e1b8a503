package main

import (
	"github.com/urfave/cli/v2"

	"ostree-image/internal/ostree"
)

func (p *program) checkoutCommand() *cli.Command {
	var o ostree.CheckoutOptions
	return &cli.Command{
		Name:        "checkout",
		Category:    "Images",
		Usage:       "make DIR the root file system of an image",
		ArgsUsage:   "NAME DIR",
		Description: "ostree-image checkout debian:12 /srv/debian\nostree-image checkout --user-mode debian:12 ./rootfs",
		Flags: []cli.Flag{
			&cli.BoolFlag{
				Name:        "user-mode",
				Aliases:     []string{"U"},
				Usage:       "set no owners and no attributes",
				Destination: &o.UserMode,
			},
			&cli.BoolFlag{
				Name:        "require-hardlinks",
				Aliases:     []string{"H"},
				Usage:       "take the repository's own files as hard links, which must not be written; fail rather than copy one",
				Destination: &o.RequireHardlinks,
			},
			&cli.BoolFlag{
				Name:        "force-copy",
				Aliases:     []string{"C"},
				Usage:       "copy each file, as is done without --require-hardlinks",
				Destination: &o.ForceCopy,
			},
		},
		Before: wantArgs(2, 2),
		Action: func(c *cli.Context) error { return p.checkout(c, o) },
	}
}

func (p *program) checkout(c *cli.Context, o ostree.CheckoutOptions) error {
	ref, err := p.image(c.Context, c.Args().Get(0))
	if err != nil {
		return err
	}
	sys, err := p.systemContext(endpoint{}, false)
	if err != nil {
		return err
	}
	p.settings.divideFrom = divideFrom
	p.stopped = c.Args().Get(1) + " is as it was"
	return checkoutImage(c.Context, ref, c.Args().Get(1), sys, o)
}
