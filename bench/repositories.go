package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/pkg/errors"
	"golang.org/x/sync/errgroup"
)

// repository is one that more than one run of a section uses.
type repository struct {
	path string
	// holds tells whether image:1 is in it.
	holds bool
}

func (b *bench) initRepo(ctx context.Context, path string) error {
	return output(exec.CommandContext(ctx, "ostree", "init", "--repo="+path, "--mode="+b.mode))
}

// freshRepo gives the run a repository of its own, on a file system of its own unless the case
// wants the disk as it is.
func freshRepo(ctx context.Context, b *bench) (err error) {
	if !b.c.aged {
		b.run = filepath.Join(b.o.work, "run")
		if b.fresh, err = newFileSystem(ctx, b.run); err != nil {
			return err
		}
	}
	b.repo = b.path("repo")
	return b.initRepo(ctx, b.repo)
}

// withImage gives the run a repository that has its image.
func withImage(ctx context.Context, b *bench) error {
	if _, err := b.keep(ctx, "image"); err != nil {
		return err
	}
	return beside("image", true)(ctx, b)
}

// updating gives the run a repository that has the image before, and not yet its own one.
func updating(before input) func(ctx context.Context, b *bench) error {
	return func(ctx context.Context, b *bench) error {
		r, err := b.keep(ctx, "before")
		if err != nil {
			return err
		}
		if _, err := os.Stat(filepath.Join(r.path, "refs", "heads", "ociimage")); err != nil {
			old, err := before(ctx, b.o.work)
			if err != nil {
				return err
			}
			if err := b.importImage(ctx, r.path, old, "image:0"); err != nil {
				return err
			}
		}
		return beside("before", false)(ctx, b)
	}
}

// beside gives the run a kept repository that has, or has not, its image. A run that finds it
// without the image imports it.
func beside(name string, holds bool) func(ctx context.Context, b *bench) error {
	return func(ctx context.Context, b *bench) error {
		r, ok := b.kept[name]
		if !ok {
			return errors.Errorf("no repository %s", name)
		}
		b.repo = r.path
		switch {
		case holds && !r.holds:
			if err := b.importImage(ctx, r.path, b.image, "image:1"); err != nil {
				return err
			}
		case !holds && r.holds:
			if err := output(exec.CommandContext(ctx, b.o.program, "--quiet", "--repo="+r.path, "remove", "image:1")); err != nil {
				return err
			}
		}
		r.holds = true
		return nil
	}
}

// keep returns the section's repository of that name, which is empty at first.
func (b *bench) keep(ctx context.Context, name string) (*repository, error) {
	if r, ok := b.kept[name]; ok {
		return r, nil
	}
	r := &repository{path: filepath.Join(b.dir, name)}
	b.kept[name] = r
	return r, b.initRepo(ctx, r.path)
}

func (b *bench) importImage(ctx context.Context, repo string, img image, name string) error {
	source := "oci:" + img.layout + ":image"
	return output(exec.CommandContext(ctx, b.o.program, "--quiet", "--insecure-policy", "--repo="+repo, "pull", source, name))
}

// fillRepositories makes a repository for each count, with so many small images. Counts ascend:
// each repository is the copy of one that grows.
func fillRepositories(counts []int) func(ctx context.Context, b *bench) error {
	return func(ctx context.Context, b *bench) error {
		growing, err := b.keep(ctx, "growing")
		if err != nil {
			return err
		}
		have := 0
		for _, count := range counts {
			log.Printf("%s, %s: importing %d small images", b.c.name, b.mode, count-have)
			group, groupCtx := errgroup.WithContext(ctx)
			group.SetLimit(runtime.NumCPU())
			for number := have; number < count; number++ {
				group.Go(func() error { return b.fill(groupCtx, growing.path, number) })
			}
			have = count
			if err := group.Wait(); err != nil {
				return err
			}
			for _, name := range []string{besideName(count), besideName(count) + forLarge} {
				r := &repository{path: filepath.Join(b.dir, name)}
				// Not by hard links: the repositories are not to share files.
				if err := output(exec.CommandContext(ctx, "cp", "-a", growing.path, r.path)); err != nil {
					return err
				}
				b.kept[name] = r
			}
		}
		return errors.WithStack(os.RemoveAll(growing.path))
	}
}

// fill imports the small image of that number.
func (b *bench) fill(ctx context.Context, repo string, number int) error {
	img, err := fillingImage(number)(ctx, b.dir)
	if err != nil {
		return err
	}
	if err := b.importImage(ctx, repo, img, fmt.Sprintf("filling:%d", number)); err != nil {
		return err
	}
	return errors.WithStack(os.RemoveAll(img.layout))
}
