package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"time"

	"github.com/pkg/errors"
)

// registry is a docker-registry on a port of its own, and a proxy before it that may be slow.
type registry struct {
	process *exec.Cmd
	proxy   net.Listener
}

// fromRegistry makes a registry with the case's image the source. rate is the bandwidth in bytes a
// second, 0 for all there is.
func fromRegistry(name string, rate float64) func(ctx context.Context, b *bench) error {
	return func(ctx context.Context, b *bench) error {
		img, err := b.c.input(ctx, b.o.work)
		if err != nil {
			return err
		}
		b.registry = &registry{}
		address, err := b.registry.start(ctx, filepath.Join(b.dir, "registry"))
		if err != nil {
			return err
		}
		push := exec.CommandContext(
			ctx, "skopeo", "copy", "--quiet", "--insecure-policy", "--preserve-digests", "--dest-tls-verify=false",
			"oci:"+img.layout+":image", "docker://"+address+"/bench/"+name+":1",
		)
		if err := output(push); err != nil {
			return err
		}
		if rate > 0 {
			if b.registry.proxy, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
				return errors.WithStack(err)
			}
			go serveSlowly(b.registry.proxy, address, &limiter{rate: rate})
			address = b.registry.proxy.Addr().String()
		}
		b.source = "docker://" + address + "/bench/" + name + ":1"
		return nil
	}
}

func (b *bench) stopRegistry() {
	if b.registry == nil {
		return
	}
	if b.registry.proxy != nil {
		_ = b.registry.proxy.Close()
	}
	if b.registry.process != nil {
		_ = b.registry.process.Process.Kill()
		_ = b.registry.process.Wait()
	}
}

var listening = regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)

// start runs docker-registry with its files in dir and returns its address.
func (r *registry) start(ctx context.Context, dir string) (address string, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", errors.WithStack(err)
	}
	config := fmt.Sprintf("version: 0.1\nstorage: {filesystem: {rootdirectory: '%s/files'}}\nhttp: {addr: '127.0.0.1:0'}\n", dir)
	if err := os.WriteFile(filepath.Join(dir, "config.yml"), []byte(config), 0o644); err != nil {
		return "", errors.WithStack(err)
	}
	logFile, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return "", errors.WithStack(err)
	}
	defer func() { _ = logFile.Close() }()
	cmd := exec.CommandContext(ctx, "docker-registry", "serve", filepath.Join(dir, "config.yml"))
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none") // or newer ones look for a collector
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return "", errors.WithStack(err)
	}
	r.process = cmd
	var said []byte
	for range 200 {
		if said, err = os.ReadFile(logFile.Name()); err != nil {
			return "", errors.WithStack(err)
		}
		if found := listening.FindSubmatch(said); found != nil {
			return string(found[1]), nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return "", errors.Errorf("docker-registry did not start: %s", bytes.TrimSpace(said))
}

// limiter spaces out bytes so that all who take from it together get rate bytes a second.
type limiter struct {
	rate float64
	mu   sync.Mutex
	free time.Time // when the next bytes may go
}

// slack is how much of the time that nobody used may be made up for: a sleep is often longer than
// it was to be.
const slack = 10 * time.Millisecond

// reserve books n bytes and returns how long to wait before they may go.
func (l *limiter) reserve(now time.Time, n int) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if earliest := now.Add(-slack); l.free.Before(earliest) {
		l.free = earliest
	}
	wait := l.free.Sub(now)
	l.free = l.free.Add(time.Duration(float64(n) / l.rate * float64(time.Second)))
	return max(0, wait)
}

// serveSlowly passes connections on to the address, and what comes back from there by way of the
// limiter, until the listener is closed.
func serveSlowly(listener net.Listener, address string, limit *limiter) {
	for {
		client, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = client.Close() }()
			server, err := net.Dial("tcp", address)
			if err != nil {
				return
			}
			defer func() { _ = server.Close() }()
			go func() {
				_, _ = io.Copy(server, client)
				_ = server.Close() // the client is gone: end the other direction, too
			}()
			copySlowly(client, server, limit)
		}()
	}
}

// copySlowly copies in small chunks, so that connections share the bandwidth evenly.
func copySlowly(to io.Writer, from io.Reader, limit *limiter) {
	chunk := make([]byte, 16<<10)
	for {
		n, err := from.Read(chunk)
		if n > 0 {
			time.Sleep(limit.reserve(time.Now(), n))
			if _, werr := to.Write(chunk[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
