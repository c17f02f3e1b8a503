package main

import (
	"os"

	"github.com/urfave/cli/v2"

	"ostree-image/internal/errdefs"
)

func (p *program) replayCommand() *cli.Command {
	var o replayOptions
	return &cli.Command{
		Name:        "replay",
		Category:    "Debugging",
		Usage:       "run a recorded run again in a fresh repository and compare every ref; a record is a program",
		ArgsUsage:   "RECORD",
		Description: "ostree-image replay ./record\nostree-image replay --list record.tar.gz",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "list", Usage: "only show the commands, their numbers and times", Destination: &o.list},
			&cli.IntFlag{Name: "from", Usage: "begin with command `N`", Destination: &o.from},
			&cli.IntFlag{Name: "to", Usage: "end with command `N`, and compare nothing", Destination: &o.to},
			&cli.BoolFlag{Name: "step", Usage: "ask before each command", Destination: &o.step},
			&cli.BoolFlag{
				Name:        "trust",
				Usage:       "run a record that somebody else made, or that others may have changed",
				Destination: &o.trust,
			},
			&cli.BoolFlag{Name: "keep", Usage: "leave the work directory", Destination: &o.keep},
			&cli.StringFlag{
				Name:        "work",
				Usage:       "work in `DIR`, where an earlier replay left off",
				Destination: &o.work,
			},
		},
		Before: wantArgs(1, 1),
		Action: func(c *cli.Context) error { return p.replay(c, o) },
	}
}

func (p *program) replay(c *cli.Context, o replayOptions) error {
	o.repo = p.global.repo
	if o.from < 0 || o.to < 0 || o.to > 0 && o.from > o.to {
		return errdefs.Usagef("replay: --from %d --to %d name no commands", o.from, o.to)
	}
	return replayRecord(c.Context, p.settings, c.Args().First(), o, os.Stdin, p.stdout)
}
