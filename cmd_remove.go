package main

import (
	"strings"

	"github.com/urfave/cli/v2"
)

// removeOptions are the options of remove.
type removeOptions struct{ noPrune bool }

func (p *program) removeCommand() *cli.Command {
	var o removeOptions
	return &cli.Command{
		Name: "remove", Aliases: []string{"rm"}, Usage: "remove images, and the blobs that no image needs any more",
		ArgsUsage: "NAME…",
		Description: "ostree-image remove debian:12\nostree-image remove --no-prune debian:11 debian:12\n\n" +
			"Only commits of these images and blobs go, and the objects that no commit needs then.\n" +
			"Commits that no ref names, such as what an image's name meant before, stay until prune.",
		Flags:  []cli.Flag{&cli.BoolFlag{Name: "no-prune", Usage: "leave the blobs, for prune to remove", Destination: &o.noPrune}},
		Before: wantArgs(1, -1), Action: func(c *cli.Context) error { return p.remove(c, o) },
	}
}

func (p *program) remove(c *cli.Context, o removeOptions) error {
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
	return removeImages(c.Context, p.settings, repo, images, !o.noPrune)
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
