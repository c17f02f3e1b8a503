package main

import (
	"context"
	"strings"

	"github.com/pkg/errors"
	"github.com/urfave/cli/v2"

	"ostree-image/internal/errdefs"
)

// removeOptions are the options of remove.
type removeOptions struct {
	noPrune bool // leave the blobs that no image needs then
	all     bool // images of the repository, whichever are named
	force   bool // what is not there is no error
}

func (p *program) removeCommand() *cli.Command {
	var o removeOptions
	return &cli.Command{
		Name:      "remove",
		Category:  "Images",
		Aliases:   []string{"rm"},
		Usage:     "remove images, and the blobs that no image needs any more",
		ArgsUsage: "NAME…",
		Description: "ostree-image remove debian:12\nostree-image remove --no-prune debian:11 debian:12\nostree-image remove --all\n\n" +
			"Only commits of these images and blobs go, and the objects that no commit needs then.\n" +
			"Commits that no ref names, such as what an image's name meant before, stay until prune.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "no-prune", Usage: "leave the blobs, for prune to remove", Destination: &o.noPrune},
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "remove all images", Destination: &o.all},
			&cli.BoolFlag{Name: "force", Usage: "do not fail where an image is not there", Destination: &o.force},
		},
		Before: wantArgs(0, -1),
		Action: func(c *cli.Context) error { return p.remove(c, o) },
	}
}

func (p *program) remove(c *cli.Context, o removeOptions) error {
	if o.all != (c.NArg() == 0) {
		return errdefs.Usagef("remove: name the images, or give --all")
	}
	p.stopped = "ostree-image list shows what is left, and ostree-image prune removes the rest"
	if o.all {
		repo, err := p.repository(c.Context)
		if err != nil {
			return err
		}
		return removeImages(c.Context, p.settings, repo, nil, o)
	}
	var repo *repository
	var images []removal
	for _, text := range c.Args().Slice() {
		image, path, err := p.removal(c.Context, text)
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
	return removeImages(c.Context, p.settings, repo, images, o)
}

// removal reads a name or ref, and the repository that it lies in. What others have put there can
// have a name that no image would be given, or one that another image has under another remote.
func (p *program) removal(ctx context.Context, text string) (image removal, repo string, err error) {
	name, path, err := ostreeTransport{p.settings}.split(strings.TrimPrefix(text, transportName+":"))
	if err != nil {
		return image, "", err
	}
	ref, names, err := p.imageNames(ctx, text)
	if len(names) > 1 {
		return image, "", errdefs.Usagef(
			"%s has the names %s: say which of them to remove",
			text,
			strings.Join(names, ", "),
		)
	}
	if len(names) == 1 {
		ref, err = newReference(ref.transport, names[0], ref.repo)
	}
	var usage errdefs.UsageError
	if !errors.As(err, &usage) {
		return removal{image: ref}, ref.repo, err
	}
	image = removal{text: name, invalid: err}
	repo, err = normalizeRepo(path)
	return image, repo, err
}
