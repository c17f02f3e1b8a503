package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"ostree-image/internal/errdefs"
)

// notifyContext returns a context that SIGINT, SIGTERM or SIGHUP ends, with a signalError as its
// cause. A second signal ends the program at once; the kernel then takes the children with it
// (Pdeathsig). A signal that the program was started deaf to, as nohup(1) does it, stays ignored.
func notifyContext(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	ch := make(chan os.Signal, 2)
	for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(sig) {
			signal.Notify(ch, sig)
		}
	}
	go func() {
		first := true
		for s := range ch {
			sig, ok := s.(syscall.Signal)
			if !ok {
				continue
			}
			if !first {
				os.Exit(128 + int(sig))
			}
			first = false
			cancel(errdefs.SignalError{Sig: sig})
		}
	}()
	return ctx, func() {
		signal.Stop(ch)
		close(ch)
		cancel(nil)
	}
}
