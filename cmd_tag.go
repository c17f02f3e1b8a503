package main

import (
	"context"

	"github.com/urfave/cli/v2"

	"ostree-image/internal/errdefs"
)

func (p *program) tagCommand() *cli.Command {
	return &cli.Command{
		Name: "tag", Category: "Images", Usage: "give an image of the repository another name",
		ArgsUsage: "NAME NEW",
		Description: "ostree-image tag debian:12 debian:latest\nostree-image tag 99cbbc2a debian:12\n\n" +
			"An image that has the name NEW loses it.",
		Before: wantArgs(2, 2), Action: p.tag,
	}
}

func (p *program) tag(c *cli.Context) error {
	source, err := p.image(c.Context, c.Args().Get(0))
	if err != nil {
		return err
	}
	destination, err := p.reference(c.Args().Get(1))
	if err != nil {
		return err
	}
	if err := sameRepository(c, source.repo, destination.repo); err != nil {
		return err
	}
	if source.image == destination.image {
		return errdefs.Usagef("tag: both names are %s", source.image)
	}
	return p.settings.tagImage(c.Context, source, destination)
}

// tagImage gives an image of a repository another name there. The image is there already, whatever
// its platform and whatever a policy says of it now: it is copied with all its instances, and each
// blob is found.
func (s *settings) tagImage(ctx context.Context, source, destination ostreeReference) error {
	sys, err := platformOf(ctx, source)
	if err != nil {
		return err
	}
	s.insecurePolicy = true
	return s.copyImage(ctx, source, destination, copyOptions{
		source: sys, destination: sys, instances: instances{all: true}, silent: true,
	})
}

func (p *program) untagCommand() *cli.Command {
	return &cli.Command{
		Name:      "untag",
		Category:  "Images",
		Usage:     "take names from images of the repository",
		ArgsUsage: "NAME…",
		Description: "ostree-image untag debian:latest\nostree-image untag debian:11 debian:12\n\n" +
			"What no image needs then stays until prune.",
		Before: wantArgs(
			1,
			-1,
		),
		Action: func(c *cli.Context) error { return p.remove(c, removeOptions{noPrune: true}) },
	}
}
