package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"go.podman.io/image/v5/types"
)

const (
	progressWidth    = 40
	progressInterval = 200 * time.Millisecond
	shortDigest      = 12
)

// progress shows how far a copy is: bars on a terminal, a line for each step elsewhere, nothing where the user wants
// quiet. It is safe for parallel use.
type progress struct {
	w     io.Writer // whole writes, one at a time: the library writes there from several goroutines
	quiet bool

	mu        sync.Mutex
	pool      *mpb.Progress // nil unless w is a terminal
	downloads map[digest.Digest]*mpb.Bar
	imports   map[digest.Digest]*mpb.Bar
}

func newProgress(w io.Writer, terminal, quiet bool) *progress {
	p := &progress{w: &serialWriter{w: w}, quiet: quiet, downloads: map[digest.Digest]*mpb.Bar{}, imports: map[digest.Digest]*mpb.Bar{}}
	if terminal && !quiet {
		p.pool = mpb.New(mpb.WithOutput(w), mpb.WithWidth(progressWidth))
	}
	return p
}

// serialWriter lets one write through at a time.
type serialWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (s *serialWriter) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(b)
}

// print writes whole lines, above the bars where there are any.
func (p *progress) print(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pool != nil {
		_, _ = io.WriteString(p.pool, text)
		return
	}
	_, _ = io.WriteString(p.w, text)
}

// report is where the library writes its own lines, nil where there are bars or quiet is wanted.
func (p *progress) report() io.Writer {
	if p.quiet || p.pool != nil {
		return nil
	}
	return p.w
}

// follow returns the channel on which the library tells how far its downloads are, nil where nobody looks. The
// returned function ends it.
func (p *progress) follow() (chan types.ProgressProperties, func()) {
	if p.pool == nil {
		return nil, func() {}
	}
	events := make(chan types.ProgressProperties)
	var ended sync.WaitGroup
	ended.Go(func() {
		for e := range events {
			p.event(e)
		}
	})
	return events, func() {
		close(events)
		ended.Wait()
	}
}

func (p *progress) event(e types.ProgressProperties) {
	p.mu.Lock()
	defer p.mu.Unlock()
	bar := p.downloads[e.Artifact.Digest]
	if bar == nil {
		bar = p.bar("copy", e.Artifact.Digest, e.Artifact.Size)
		p.downloads[e.Artifact.Digest] = bar
	}
	switch e.Event {
	case types.ProgressEventRead:
		bar.SetCurrent(int64(e.Offset))
	case types.ProgressEventDone, types.ProgressEventSkipped:
		bar.SetTotal(-1, true)
	case types.ProgressEventNewArtifact:
	}
}

// bar adds a bar. The caller holds the lock.
func (p *progress) bar(what string, d digest.Digest, size int64) *mpb.Bar {
	name := d.String()
	if d.Validate() == nil {
		name = d.Encoded()[:shortDigest]
	}
	bar := p.pool.AddBar(0, // a bar that begins with its size could not be ended before it has reached it
		mpb.BarFillerClearOnComplete(),
		mpb.PrependDecorators(decor.Name(fmt.Sprintf("%-6s %s", what, name))),
		mpb.AppendDecorators(decor.OnComplete(decor.CountersKibiByte("% .1f / % .1f"), "done")),
	)
	bar.SetTotal(max(size, 0), false)
	return bar
}

// importBar is the bar of a layer's import.
type importBar struct {
	p *progress
	d digest.Digest
}

// importing says that the import of a layer begins. size is that of the blob, -1 where unknown.
func (p *progress) importing(d digest.Digest, size int64) importBar {
	if p.quiet {
		return importBar{p, d}
	}
	if p.pool == nil {
		p.print(fmt.Sprintf("Importing layer %s\n", d))
		return importBar{p, d}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.imports[d] = p.bar("import", d, size)
	return importBar{p, d}
}

func (b importBar) done() {
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	if bar := b.p.imports[b.d]; bar != nil {
		bar.SetTotal(-1, true)
	}
}

// reading returns r, and moves the bar of the import that reads it.
func (p *progress) reading(d digest.Digest, r io.Reader) io.Reader {
	p.mu.Lock()
	defer p.mu.Unlock()
	if bar := p.imports[d]; bar != nil {
		bar.SetCurrent(0)
		if counted, err := bar.ProxyReader(r); err == nil {
			return counted
		}
	}
	return r
}

// close ends all bars.
func (p *progress) close() {
	p.mu.Lock()
	pool := p.pool
	p.pool = nil
	bars := []*mpb.Bar{}
	for _, b := range p.downloads {
		bars = append(bars, b)
	}
	for _, b := range p.imports {
		bars = append(bars, b)
	}
	p.mu.Unlock()
	if pool == nil {
		return
	}
	for _, b := range bars {
		b.Abort(false)
	}
	pool.Wait()
}
