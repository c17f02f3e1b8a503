package main

import (
	"fmt"
	"runtime"
	"strings"

	"github.com/pkg/errors"
	"github.com/urfave/cli/v2"

	"ostree-image/internal/ui"
)

// versionOptions are the options of version.
type versionOptions struct{ format string }

func (p *program) versionCommand() *cli.Command {
	var o versionOptions
	return &cli.Command{
		Name: "version", Category: "Help", Usage: "show the versions of this program, ostree and tar",
		Description: "ostree-image version\nostree-image version --format=json",
		Flags:       []cli.Flag{formatFlag(&o.format, "table")},
		Before:      wantArgs(0, 0), Action: func(c *cli.Context) error { return p.version(c, o) },
	}
}

// versionInfo is what version prints. Its JSON keys are part of the program's interface.
type versionInfo struct {
	Version        string   `json:"version"`
	GoVersion      string   `json:"goVersion"`
	OS             string   `json:"os"`
	Architecture   string   `json:"architecture"`
	OSTree         string   `json:"ostree"` // its version
	OSTreeFeatures []string `json:"ostreeFeatures"`
	Tar            string   `json:"tar"` // its version
}

func (p *program) version(c *cli.Context, o versionOptions) error {
	format, err := ui.ParseFormat(o.format)
	if err != nil {
		return err
	}
	features, err := ostreeVersion(c.Context, p.settings.runner)
	if err != nil {
		return err
	}
	tar, err := tarVersion(c.Context, p.settings.runner)
	if err != nil {
		return err
	}
	v := versionInfo{version, runtime.Version(), runtime.GOOS, runtime.GOARCH, features.Version, features.Features, tar}
	return format.Print(p.stdout, v, func() error {
		_, err := fmt.Fprintf(p.stdout, "ostree-image %s (%s, %s/%s)\nostree %s (%s)\ntar %s\n",
			v.Version, v.GoVersion, v.OS, v.Architecture, v.OSTree, strings.Join(v.OSTreeFeatures, " "), v.Tar)
		return errors.Wrap(err, "writing the result")
	})
}
