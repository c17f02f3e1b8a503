package main

import (
	"fmt"
	"runtime"
	"strings"

	"github.com/pkg/errors"
	"github.com/urfave/cli/v2"
)

func (p *program) versionCommand() *cli.Command {
	return &cli.Command{
		Name: "version", Category: "Help", Usage: "show the versions of this program, ostree and tar",
		Description: "ostree-image version\nostree-image --ostree=/opt/bin/ostree version",
		Before:      wantArgs(0, 0), Action: p.version,
	}
}

func (p *program) version(c *cli.Context) error {
	features, err := ostreeVersion(c.Context, p.settings.runner)
	if err != nil {
		return err
	}
	tar, err := tarVersion(c.Context, p.settings.runner)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(
		p.stdout,
		"ostree-image %s (%s, %s/%s)\nostree %s (%s)\ntar %s\n",
		version,
		runtime.Version(),
		runtime.GOOS,
		runtime.GOARCH,
		features.Version,
		strings.Join(features.Features, " "),
		tar,
	)
	return errors.Wrap(err, "writing the result")
}
