package main

import (
	"github.com/urfave/cli/v2"

	"ostree-image/internal/ui"
)

// pruneOptions are the options of prune.
type pruneOptions struct {
	format string
	dryRun bool
}

func (p *program) pruneCommand() *cli.Command {
	var o pruneOptions
	return &cli.Command{
		Name:     "prune",
		Category: "Repository",
		Usage:    "remove the blobs that no image needs, and all commits that no ref names",
		Description: "ostree-image prune\nostree-image prune --dry-run --format=json\n\n" +
			"Commits that no ref names go whoever made them; standard error says how many before, and with --dry-run which.",
		Flags: []cli.Flag{
			formatFlag(&o.format, "table"),
			&cli.BoolFlag{Name: "dry-run", Usage: "only show what would be removed", Destination: &o.dryRun},
		},
		Before: wantArgs(0, 0),
		Action: func(c *cli.Context) error { return p.prune(c, o) },
	}
}

func (p *program) prune(c *cli.Context, o pruneOptions) error {
	format, err := ui.ParseFormat(o.format)
	if err != nil {
		return err
	}
	repo, err := p.repository(c.Context)
	if err != nil {
		return err
	}
	p.stopped = "ostree-image prune goes on"
	blobs, err := pruneRepository(c.Context, p.settings, repo, o.dryRun, func(commits []string) {
		if !o.dryRun {
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
	perr := format.Print(p.stdout, blobs, func() error {
		return ui.PrintTable(p.stdout, "REF\tCOMMIT", func(row func(...any)) {
			for _, b := range blobs {
				row(b.Ref, b.Commit)
			}
		})
	})
	if err == nil {
		err = perr
	}
	return err
}
