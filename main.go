// Ostree-image puts OCI and Docker images into an OSTree repository and gets them back byte for
// byte, by running the programs ostree and tar.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"github.com/pkg/errors"
	"go.podman.io/storage/pkg/reexec"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/proc"
	"ostree-image/internal/ui"
)

// version is the program's. A build sets it.
var version = "0.1.0"

func main() {
	if reexec.Init() { // the containers-storage transport starts this program again, under other names
		return
	}
	proc.KeepFiles()
	syscall.Umask(
		syscall.Umask(0o077) | 0o002,
	) // a umask of 000 would let anyone write what ends up in a record or a repository
	os.Exit(run(context.Background(), os.Args, os.Stdout, os.Stderr))
}

// run is the program but for its process: it returns the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	ctx, stop := notifyContext(ctx)
	defer stop()
	p := &program{stdout: stdout, stderr: stderr}
	app := p.app()
	args, err := sortArgs(app, withoutExtensionName(args))
	if err == nil {
		err = app.RunContext(ctx, args)
	}
	if p.settings != nil {
		if cerr := p.settings.close(err, errdefs.ExitStatus(ctx, err)); err == nil {
			err = cerr
		}
	}
	status := errdefs.ExitStatus(ctx, err)
	if err != nil {
		var sig errdefs.SignalError
		text := ui.OneLine(err)
		if errors.As(context.Cause(ctx), &sig) { // whatever failed, this is why
			text = sig.Error()
			if p.stopped != "" {
				text += ": " + p.stopped
			}
		}
		if p.settings != nil && p.settings.runner != nil {
			text = p.settings.runner.Shown(text)
		}
		text += proc.Advice(text)
		if progress := p.global.progress; progress != nil {
			progress.Error(text)
		} else {
			_, _ = fmt.Fprintf(stderr, "ostree-image: %s\n", text)
		}
	}
	return status
}

// withoutExtensionName drops the "image" that ostree puts first when it runs the program as its own
// subcommand, "ostree image …". Options that were given to ostree may stand before it.
func withoutExtensionName(args []string) []string {
	for i := 1; i < len(args); i++ {
		if args[i] == "image" {
			return append(args[:i:i], args[i+1:]...)
		}
		if !strings.HasPrefix(args[i], "--repo=") {
			break
		}
	}
	return args
}
