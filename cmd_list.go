package main

import (
	"cmp"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/pkg/errors"
	"github.com/urfave/cli/v2"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/ui"
	"ostree-image/internal/usercache"
)

// listOptions are the options of list.
type listOptions struct {
	format         string
	quiet, noTrunc bool
}

func (p *program) listCommand() *cli.Command {
	var o listOptions
	return &cli.Command{
		Name: "list", Category: "Images", Aliases: []string{"ls"}, Usage: "show the images of the repository",
		Description: "ostree-image list\nostree-image --repo=/ostree/repo list --format=json",
		Flags: []cli.Flag{
			formatFlag(&o.format, "table"),
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "only print the names", Destination: &o.quiet},
			&cli.BoolFlag{Name: "no-trunc", Usage: "print digests and platforms in full", Destination: &o.noTrunc},
		},
		Before: wantArgs(0, 0), Action: func(c *cli.Context) error { return p.list(c, o) },
	}
}

func (p *program) list(c *cli.Context, o listOptions) error {
	if o.quiet && !c.IsSet("format") {
		o.format = "{{.Name}}"
	}
	format, err := ui.ParseFormat(o.format)
	if err != nil {
		return err
	}
	repo, err := p.repository(c.Context)
	if err != nil {
		return err
	}
	var failed error
	broken := func(name string, err error) {
		var gone errdefs.GoneError
		var access *errdefs.AccessError
		switch {
		case errors.As(err, &gone):
			p.settings.notef("%s", gone)
			return
		case errors.As(err, &access) && failed == nil:
			failed = errors.New("some images cannot be read by this user")
		case !errors.As(err, &access):
			failed = errdefs.Checkf("some images cannot be read")
		}
		p.settings.progress.Print(fmt.Sprintf("ostree-image: image %s: %s\n", ui.Printable(name), ui.OneLine(err)))
	}
	images, err := repo.listImages(c.Context, imageListOptions{
		parallel: runtime.GOMAXPROCS(0),
		unpacked: format.Shows("UncompressedSize"),
		cache:    usercache.New(knownFile, maxKnownFile),
		progress: p.settings.progress,
		broken:   broken,
	})
	if err != nil {
		return err
	}
	err = format.Print(p.stdout, images, func() error { return p.printImages(images, o.noTrunc) })
	if err == nil {
		err = failed
	}
	return err
}

func (p *program) printImages(images []imageInfo, noTrunc bool) error {
	return ui.PrintTable(p.stdout, "NAME\tDIGEST\tLAYERS\tSIZE\tCREATED", func(row func(...any)) {
		for _, i := range images {
			sum, platforms := i.Digest, i.Platforms
			if !noTrunc {
				sum = strings.TrimPrefix(sum, "sha256:")
				sum = sum[:min(ui.ShortDigest, len(sum))]
				if more := len(platforms) - shownPlatforms; more > 0 {
					platforms = append(slices.Clone(platforms[:shownPlatforms]), fmt.Sprintf("+%d", more))
				}
			}
			// Of an index it says more what it is for.
			layers := cmp.Or(strings.Join(platforms, ","), strconv.Itoa(i.Layers))
			row(i.Name, sum, layers, units.HumanSize(float64(i.Size)), i.Created.Format(time.DateTime))
		}
	})
}

// shownPlatforms is how many platforms of an index a table names.
const shownPlatforms = 2
