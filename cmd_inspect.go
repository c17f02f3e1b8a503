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
	registry    endpoint
}

func (p *program) inspectCommand() *cli.Command {
	var o inspectOptions
	return &cli.Command{
		Name: "inspect", Category: "Images", Usage: "describe an image of the repository, or of any transport",
		ArgsUsage:   "NAME|SOURCE",
		Description: "ostree-image inspect debian:12\nostree-image inspect --raw docker://quay.io/podman/stable",
		Flags: append(endpointFlags(&o.registry, "", "registry", ""),
			formatFlag(&o.format, "json"),
			&cli.BoolFlag{Name: "raw", Usage: "print the manifest's exact bytes", Destination: &o.raw},
			&cli.BoolFlag{Name: "config", Usage: "print the config's exact bytes", Destination: &o.config},
		),
		Before: wantArgs(1, 1), Action: func(c *cli.Context) error { return p.inspect(c, o) },
	}
}

func (p *program) inspect(c *cli.Context, o inspectOptions) error {
	if o.raw && o.config {
		return errdefs.Usagef("inspect: --raw and --config are mutually exclusive")
	}
	format, err := ui.ParseFormat(o.format)
	if err != nil {
		return err
	}
	ref, err := p.anyImage(c.Context, c.Args().First())
	if err != nil {
		return err
	}
	sys, err := p.systemContext(o.registry, c.IsSet("tls-verify"))
	if err != nil {
		return err
	}
	if o.raw {
		return writeRaw(c.Context, ref, sys, p.stdout)
	}
	if o.config {
		return writeConfig(c.Context, ref, sys, p.stdout)
	}
	info, err := inspectImage(c.Context, ref, sys)
	if err != nil {
		return err
	}
	return format.Print(p.stdout, info, func() error { return p.printInspect(info) })
}

func (p *program) printInspect(info inspectInfo) error {
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
