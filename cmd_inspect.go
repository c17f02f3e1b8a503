package main

import (
	"time"

	"github.com/urfave/cli/v2"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/ui"
)

// inspectOptions are the options of inspect.
type inspectOptions struct {
	format      string
	raw, config bool
}

func (p *program) inspectCommand() *cli.Command {
	var o inspectOptions
	return &cli.Command{
		Name: "inspect", Usage: "describe an image of the repository",
		ArgsUsage:   "NAME",
		Description: "ostree-image inspect debian:12\nostree-image inspect --raw debian:12",
		Flags: []cli.Flag{
			formatFlag(&o.format, "json"),
			&cli.BoolFlag{Name: "raw", Usage: "print the manifest's exact bytes", Destination: &o.raw},
			&cli.BoolFlag{Name: "config", Usage: "print the config's exact bytes", Destination: &o.config},
		},
		Before: wantArgs(1, 1), Action: func(c *cli.Context) error { return p.inspect(c, o) },
	}
}

func (p *program) inspect(c *cli.Context, o inspectOptions) error {
	if o.raw && o.config {
		return errdefs.Usagef("inspect: --raw and --config exclude each other")
	}
	asJSON, err := wantsJSON(o.format)
	if err != nil {
		return err
	}
	ref, err := p.reference(c.Args().First())
	if err != nil {
		return err
	}
	sys, err := p.systemContext(endpoint{}, false)
	if err != nil {
		return err
	}
	if o.raw {
		return writeRaw(c.Context, ref, p.stdout)
	}
	if o.config {
		return writeConfig(c.Context, ref, sys, p.stdout)
	}
	info, err := inspectImage(c.Context, ref, sys)
	if err != nil {
		return err
	}
	if asJSON {
		return ui.PrintJSON(p.stdout, info)
	}
	created := "unknown"
	if info.Created != nil {
		created = info.Created.Format(time.DateTime)
	}
	if info.Instance != "" {
		return ui.PrintTable(p.stdout, "NAME\tDIGEST\tINSTANCE\tOS/ARCH\tLAYERS\tCREATED", func(row func(...any)) {
			row(info.Name, info.Digest, info.Instance, info.Os+"/"+info.Architecture, len(info.Layers), created)
		})
	}
	return ui.PrintTable(p.stdout, "NAME\tDIGEST\tOS/ARCH\tLAYERS\tCREATED", func(row func(...any)) {
		row(info.Name, info.Digest, info.Os+"/"+info.Architecture, len(info.Layers), created)
	})
}
