// Package ui shows things to the user: progress, tables, JSON, and text that is safe on a terminal.
package ui

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
	progressWidth = 40
	// ProgressInterval is how often the library reports how far a copy is.
	ProgressInterval = 200 * time.Millisecond
	// ShortDigest is how many hex digits of a digest a table shows.
	ShortDigest = 12
)

// Progress shows how far a copy is: bars on a terminal, a line for each step elsewhere, nothing
// where the user wants quiet. It is safe for parallel use.
type Progress struct {
	W     io.Writer // whole writes, one at a time: the library writes there from several goroutines
	quiet bool

	mu        sync.Mutex
	pool      *mpb.Progress // nil unless w is a terminal
	downloads map[digest.Digest]*mpb.Bar
	imports   map[digest.Digest]*mpb.Bar
}

// NewProgress returns a progress that is shown on w: by bars where that is a terminal, and not at
// all where the user wants quiet.
func NewProgress(w io.Writer, terminal, quiet bool) *Progress {
	p := &Progress{
		W:         &serialWriter{w: w},
		quiet:     quiet,
		downloads: map[digest.Digest]*mpb.Bar{},
		imports:   map[digest.Digest]*mpb.Bar{},
	}
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

// Print writes whole lines, above the bars where there are any.
func (p *Progress) Print(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pool != nil {
		_, _ = io.WriteString(p.pool, text)
		return
	}
	_, _ = io.WriteString(p.W, text)
}

// Report is where the library writes its own lines, nil where there are bars or quiet is wanted.
func (p *Progress) Report() io.Writer {
	if p.quiet || p.pool != nil {
		return nil
	}
	return p.W
}

// Follow returns the channel on which the library tells how far its downloads are, nil where nobody
// looks. The returned function ends it.
func (p *Progress) Follow() (chan types.ProgressProperties, func()) {
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

func (p *Progress) event(e types.ProgressProperties) {
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
func (p *Progress) bar(what string, d digest.Digest, size int64) *mpb.Bar {
	name := d.String()
	if d.Validate() == nil {
		name = d.Encoded()[:ShortDigest]
	}
	bar := p.pool.AddBar(0, // a bar that begins with its size could not be ended before it has reached it
		mpb.BarFillerClearOnComplete(),
		mpb.PrependDecorators(decor.Name(fmt.Sprintf("%-6s %s", what, name))),
		mpb.AppendDecorators(decor.OnComplete(decor.CountersKibiByte("% .1f / % .1f"), "done")),
	)
	bar.SetTotal(max(size, 0), false)
	return bar
}

// Counter counts what is done of many things.
type Counter struct{ bar *mpb.Bar }

// Count shows that many things are about to be done, on a terminal. A nil Progress shows nothing.
func (p *Progress) Count(what string, total int) Counter {
	if p == nil {
		return Counter{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pool == nil {
		return Counter{}
	}
	return Counter{p.pool.AddBar(int64(total),
		mpb.BarRemoveOnComplete(),
		mpb.PrependDecorators(decor.Name(what)),
		mpb.AppendDecorators(decor.CountersNoUnit("%d / %d")),
	)}
}

// Add counts n more.
func (c Counter) Add(n int) {
	if c.bar != nil {
		c.bar.IncrBy(n)
	}
}

// Done takes the bar away.
func (c Counter) Done() {
	if c.bar != nil {
		c.bar.Abort(true)
		c.bar.Wait()
	}
}

// ImportBar is the bar of a layer's import.
type ImportBar struct {
	p *Progress
	d digest.Digest
}

// Importing says that the import of a layer begins. size is that of the blob, -1 where unknown.
func (p *Progress) Importing(d digest.Digest, size int64) ImportBar {
	if p.quiet {
		return ImportBar{p, d}
	}
	if p.pool == nil {
		p.Print(fmt.Sprintf("Importing layer %s\n", d))
		return ImportBar{p, d}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.imports[d] = p.bar("import", d, size)
	return ImportBar{p, d}
}

// Done ends the bar.
func (b ImportBar) Done() {
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	if bar := b.p.imports[b.d]; bar != nil {
		bar.SetTotal(-1, true)
	}
}

// Reading returns r, and moves the bar of the import that reads it.
func (p *Progress) Reading(d digest.Digest, r io.Reader) io.Reader {
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

// Close ends all bars.
func (p *Progress) Close() {
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
