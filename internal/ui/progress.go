// Package ui shows things to the user: progress, tables, JSON, and text that is safe on a terminal.
package ui

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"go.podman.io/image/v5/types"

	"ostree-image/internal/errdefs"
)

const (
	progressWidth = 40
	// ProgressInterval is how often the library reports how far a copy is.
	ProgressInterval = 200 * time.Millisecond
	// ShortDigest is how many hex digits of a digest a table shows.
	ShortDigest = 12
)

// ProgressMode is how progress is shown.
type ProgressMode int

// The modes.
const (
	Plain  ProgressMode = iota // a line for each step
	Bars                       // on a terminal
	JSON                       // an object a line, of all that is shown: see Event
	Silent                     // not at all
)

// ParseProgress reads the value of --progress: auto, plain, json or none. terminal says whether it
// is shown on one that knows how to move the cursor. The error is a usage error.
func ParseProgress(text string, terminal bool) (ProgressMode, error) {
	switch text {
	case "auto":
		if terminal {
			return Bars, nil
		}
		return Plain, nil
	case "plain":
		return Plain, nil
	case "json":
		return JSON, nil
	case "none":
		return Silent, nil
	}
	return Plain, errdefs.Usagef("--progress %q: it is auto, plain, json or none", text)
}

// Event is what a line says in the mode JSON. Its keys are part of the program's interface.
type Event struct {
	Event  string        `json:"event"`          // copying, copied, skipped, importing, imported, counting, message or error
	Blob   digest.Digest `json:"blob,omitempty"` // "" for a message and an error
	Offset int64         `json:"offset"`         // bytes that were copied, or things that were counted
	Size   int64         `json:"size"`           // bytes of the blob, -1 where unknown, or things to count
	Text   string        `json:"text,omitempty"` // of a message or an error, or what is counted
}

// Progress shows how far a copy is. It is safe for parallel use.
type Progress struct {
	W    io.Writer // whole writes, one at a time: the library writes there from several goroutines
	mode ProgressMode

	mu        sync.Mutex
	pool      *mpb.Progress // nil but for bars
	downloads map[digest.Digest]*mpb.Bar
	imports   map[digest.Digest]*mpb.Bar
}

// NewProgress returns a progress that is shown on w.
func NewProgress(w io.Writer, mode ProgressMode) *Progress {
	p := &Progress{
		W:         &serialWriter{w: w},
		mode:      mode,
		downloads: map[digest.Digest]*mpb.Bar{},
		imports:   map[digest.Digest]*mpb.Bar{},
	}
	switch mode {
	case Bars:
		p.pool = mpb.New(mpb.WithOutput(w), mpb.WithWidth(progressWidth))
	case JSON:
		p.W = &messageWriter{out: p.W}
	case Plain, Silent:
	}
	return p
}

// messageWriter makes an event of each line.
type messageWriter struct {
	mu   sync.Mutex
	out  io.Writer
	line []byte // that has not ended
}

func (m *messageWriter) Write(b []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.line = append(m.line, b...)
	for {
		line, rest, ended := bytes.Cut(m.line, []byte("\n"))
		if !ended {
			return len(b), nil
		}
		if err := writeEvent(m.out, Event{Event: "message", Text: string(line)}); err != nil {
			return 0, err
		}
		m.line = slices.Clone(rest)
	}
}

func writeEvent(w io.Writer, e Event) error {
	line, err := json.Marshal(e)
	if err == nil {
		_, err = w.Write(append(line, '\n'))
	}
	return errors.Wrap(err, "showing progress")
}

// event shows an event, in the mode JSON.
func (p *Progress) event(e Event) {
	if m, ok := p.W.(*messageWriter); ok {
		_ = writeEvent(m.out, e)
	}
}

// Error shows why the program fails, in one line.
func (p *Progress) Error(text string) {
	if p.mode == JSON {
		p.event(Event{Event: "error", Text: text})
		return
	}
	p.Print("ostree-image: " + text + "\n")
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
	if p.mode != Plain {
		return nil
	}
	return p.W
}

// Follow returns the channel on which the library tells how far its downloads are, nil where nobody
// looks. The returned function ends it.
func (p *Progress) Follow() (chan types.ProgressProperties, func()) {
	if p.mode != Bars && p.mode != JSON {
		return nil, func() {}
	}
	events := make(chan types.ProgressProperties)
	var ended sync.WaitGroup
	ended.Go(func() {
		for e := range events {
			p.follow(e)
		}
	})
	return events, func() {
		close(events)
		ended.Wait()
	}
}

func (p *Progress) follow(e types.ProgressProperties) {
	if p.mode == JSON {
		name := map[types.ProgressEvent]string{types.ProgressEventDone: "copied", types.ProgressEventSkipped: "skipped"}[e.Event]
		p.event(
			Event{
				Event:  cmp.Or(name, "copying"),
				Blob:   e.Artifact.Digest,
				Offset: int64(e.Offset),
				Size:   e.Artifact.Size,
			},
		)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pool == nil {
		return
	}
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
type Counter struct {
	bar *mpb.Bar
}

// Count shows that many things are about to be done, on a terminal. A nil Progress shows nothing.
func (p *Progress) Count(what string, total int) Counter {
	if p == nil {
		return Counter{}
	}
	p.event(Event{Event: "counting", Text: what, Size: int64(total)})
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
	switch p.mode {
	case Plain:
		p.Print(fmt.Sprintf("Importing layer %s\n", d))
	case JSON:
		p.event(Event{Event: "importing", Blob: d, Size: size})
	case Bars:
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.pool != nil {
			p.imports[d] = p.bar("import", d, size)
		}
	case Silent:
	}
	return ImportBar{p, d}
}

// Done ends the bar.
func (b ImportBar) Done() {
	b.p.event(Event{Event: "imported", Blob: b.d})
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
