// Bench builds images, runs ostree-image and what people would use instead of it side by side in
// turns, and prints the medians as Markdown. It needs root, ostree, tar, gzip, umoci, skopeo,
// docker-registry and mmdebstrap.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"math"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/pkg/errors"
)

type options struct {
	program string  // the ostree-image to measure
	work    string  // where inputs and repositories lie
	rounds  int     // how often each contender runs; cases may ask for fewer
	only    string  // patterns of the names of the cases to run, parted by commas; "" for all
	modes   string  // the modes to run, parted by commas; "" for all that a case has
	write   string  // the Markdown file to put the results into; "" to print them
	scale   float64 // what the sizes of generated inputs are multiplied by
}

func main() {
	log.SetFlags(0)
	var o options
	flag.StringVar(&o.program, "program", "bin/ostree-image", "the `program` to measure")
	flag.StringVar(&o.work, "work", "", "keep inputs in `DIR` for the next run (default: a temporary directory)")
	flag.IntVar(&o.rounds, "rounds", 5, "run everything `N` times, in turns; what is slow at most 3 times")
	flag.StringVar(&o.only, "only", "", "run only the cases with these `names`, such as debian,growth-*")
	flag.StringVar(&o.modes, "modes", "", "run only these `modes` of repositories, such as bare,archive")
	flag.StringVar(&o.write, "write", "", "put the results into `FILE`, between its markers, and keep those of the cases that were not run")
	flag.Float64Var(&o.scale, "scale", 1, "make generated inputs `F` times as large, such as 0.01 for a quick look")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		log.Fatalf("bench: %s", err)
	}
}

// run measures all that o selects. What fails does not keep the rest from running, nor from being
// written.
func run(ctx context.Context, o options) (err error) {
	if o.rounds < 1 || o.scale <= 0 {
		return errors.New("-rounds and -scale want more than 0")
	}
	if o.write != "" && o.scale != 1 {
		return errors.New("-write wants inputs of full size, without -scale")
	}
	if o.program, err = filepath.Abs(o.program); err != nil {
		return errors.WithStack(err)
	}
	if o.work == "" {
		if o.work, err = os.MkdirTemp("", "ostree-image-bench-"); err != nil {
			return errors.WithStack(err)
		}
		defer func() { _ = os.RemoveAll(o.work) }()
	}
	if o.work, err = filepath.Abs(o.work); err != nil {
		return errors.WithStack(err)
	}
	if err := os.MkdirAll(o.work, 0o755); err != nil {
		return errors.WithStack(err)
	}
	cases := allCases(o.scale)
	var names []string
	for _, c := range cases {
		names = append(names, c.name)
	}
	if err := errors.WithMessage(checkSelection(o.only, names), "-only"); err != nil {
		return err
	}
	if err := errors.WithMessage(checkSelection(o.modes, allModes), "-modes"); err != nil {
		return err
	}
	var all results
	if o.write != "" {
		if all, err = readResults(o.write); err != nil {
			return err
		}
	}
	failed, err := measureCases(ctx, o, cases, &all)
	if err != nil {
		return err
	}
	if o.write == "" {
		fmt.Print(markdown(all))
	}
	if len(failed) > 0 {
		return errors.Errorf("failed: %s", strings.Join(failed, "; "))
	}
	return nil
}

// measureCases runs the cases that o selects, adds what it measures to all, and returns the names
// of those that failed.
func measureCases(ctx context.Context, o options, cases []benchCase, all *results) (failed []string, err error) {
	machine := describeMachine(ctx, o.work)
	if o.scale != 1 {
		machine += fmt.Sprintf(", with generated inputs of %g times their size", o.scale)
	}
	for _, c := range cases {
		if !selected(o.only, c.name) {
			continue
		}
		for _, mode := range c.modes {
			if !selected(o.modes, mode) {
				continue
			}
			s := section{Case: c.name, Mode: mode, What: c.what, Growth: c.growth, Machine: machine, Date: time.Now().UTC().Format(time.DateOnly)}
			if err := measureSection(ctx, o, c, &s); err != nil {
				log.Printf("%s, %s: %s", c.name, mode, err)
				failed = append(failed, c.name+", "+mode)
				if ctx.Err() != nil {
					return failed, nil
				}
				continue
			}
			all.put(s, cases)
			if o.write != "" {
				if err := all.write(o.write); err != nil {
					return nil, err
				}
			}
		}
	}
	return failed, nil
}

// selected tells whether one of the patterns, parted by commas, matches the name. No pattern at all
// matches every name.
func selected(patterns, name string) bool {
	return patterns == "" || slices.ContainsFunc(strings.Split(patterns, ","), func(pattern string) bool {
		ok, err := path.Match(pattern, name)
		return err == nil && ok
	})
}

// checkSelection refuses a pattern that matches none of the names.
func checkSelection(patterns string, names []string) error {
	for pattern := range strings.SplitSeq(patterns, ",") {
		if !slices.ContainsFunc(names, func(name string) bool { return selected(pattern, name) }) {
			return errors.Errorf("%q is none of %s", pattern, strings.Join(names, ", "))
		}
	}
	return nil
}

// scaled multiplies a size or a number of files, and leaves at least 1 of it.
func scaled(n int64, scale float64) int64 {
	return max(1, int64(math.Round(float64(n)*scale)))
}
