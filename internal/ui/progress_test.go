package ui

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/types"
)

func TestParseProgress(t *testing.T) {
	for text, want := range map[string][2]ProgressMode{ // elsewhere, on a terminal
		"auto": {Plain, Bars}, "plain": {Plain, Plain}, "json": {JSON, JSON}, "none": {Silent, Silent},
	} {
		for i, terminal := range []bool{false, true} {
			if got, err := ParseProgress(text, terminal); got != want[i] || err != nil {
				t.Errorf("%s, terminal %v: %v, %v", text, terminal, got, err)
			}
		}
	}
	if _, err := ParseProgress("loud", true); err == nil {
		t.Error("no error")
	}
}

// show uses all of a progress.
func show(p *Progress) {
	d := digest.FromString("x")
	if w := p.Report(); w != nil {
		_, _ = fmt.Fprintln(w, "of the library")
	}
	events, end := p.Follow()
	if events != nil {
		artifact := types.BlobInfo{Digest: d, Size: 10}
		for _, e := range []types.ProgressEvent{
			types.ProgressEventNewArtifact, types.ProgressEventRead, types.ProgressEventDone, types.ProgressEventSkipped,
		} {
			events <- types.ProgressProperties{Event: e, Artifact: artifact, Offset: 7}
		}
	}
	end()
	bar := p.Importing(d, -1)
	_ = p.Reading(d, strings.NewReader("x"))
	bar.Done()
	count := p.Count("reading images", 3)
	count.Add(3)
	count.Done()
	p.Print("a note\n")
	_, _ = fmt.Fprint(p.W, "two li")
	_, _ = fmt.Fprint(p.W, "nes\nin parts\n")
	p.Close()
	p.Error(`why "it" fails`)
}

func TestProgressJSON(t *testing.T) {
	var out bytes.Buffer
	show(NewProgress(&out, JSON))
	var got []string
	for line := range strings.Lines(out.String()) {
		var e Event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if e.Blob != "" && e.Blob != digest.FromString("x") {
			t.Errorf("blob %q", e.Blob)
		}
		got = append(got, strings.TrimSpace(fmt.Sprintf("%s %d/%d %s", e.Event, e.Offset, e.Size, e.Text)))
	}
	want := `copying 7/10
copying 7/10
copied 7/10
skipped 7/10
importing 0/-1
imported 0/0
counting 0/3 reading images
message 0/0 a note
message 0/0 two lines
message 0/0 in parts
error 0/0 why "it" fails`
	if text := strings.Join(got, "\n"); text != want {
		t.Errorf("got\n%s\nwant\n%s", text, want)
	}
}

func TestProgressPlain(t *testing.T) {
	for mode, want := range map[ProgressMode]string{
		Plain:  "of the library\nImporting layer " + digest.FromString("x").String() + "\na note\ntwo lines\nin parts\nostree-image: why \"it\" fails\n",
		Silent: "a note\ntwo lines\nin parts\nostree-image: why \"it\" fails\n",
	} {
		var out bytes.Buffer
		show(NewProgress(&out, mode))
		if out.String() != want {
			t.Errorf("mode %d: got %q, want %q", mode, &out, want)
		}
	}
	show(NewProgress(&bytes.Buffer{}, Bars)) // ends
}
