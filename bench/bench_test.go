package main

import (
	"bytes"
	"encoding/xml"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pkg/errors"
)

// seconds makes a series with a sample for each time.
func seconds(name string, x float64, walls ...float64) series {
	s := series{Name: name, X: x, Layers: 2}
	for _, w := range walls {
		s.Samples = append(s.Samples, sample{Wall: w, PeakMB: 10, Processes: 6})
	}
	return s
}

func TestMedianIsTheMiddleOrTheMeanOfTheTwoThere(t *testing.T) {
	for _, one := range []struct {
		values []float64
		want   float64
	}{{[]float64{3}, 3}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 2, 8}, 3}} {
		if got := median(one.values); got != one.want {
			t.Errorf("median of %v: %g, want %g", one.values, got, one.want)
		}
	}
}

// A slow minute must not change a ratio: only runs of the same round are compared.
func TestRatioIsOfTheSameRounds(t *testing.T) {
	one, other := seconds("one", 0, 1, 10, 2), seconds("other", 0, 2, 20, 4)
	if got := one.ratio(other); got != 0.5 {
		t.Errorf("ratio %g, want 0.5", got)
	}
}

func TestTargetsAreThoseThatWereMeasured(t *testing.T) {
	r := results{
		{Case: "debian", Mode: "bare", Series: []series{seconds(ours, 0, 3), seconds(sequential, 0, 10), seconds(nothingNew, 0, 0.2)}},
		{Case: "debian", Mode: "archive", Series: []series{seconds(ours, 0, 5), seconds(sequential, 0, 10)}},
		{Case: "growth-images", Mode: "bare-user", Growth: true, Series: []series{seconds(ours, 1, 1), seconds(ours, 1000, 1.15), seconds(oursLarge, 1, 4), seconds(oursLarge, 1000, 4.04)}},
		{
			Case: "registry-debian-20", Mode: "archive",
			Series: []series{seconds(ours, 0, 8), seconds(download, 0, 6), seconds(lastAlone, 0, 7)},
		},
	}
	want := `### Targets

| target | measured | holds |
|---|---|---|
| import into an empty repository: at most 0.4 of (a) | bare 0.30, archive 0.50 | no |
| nothing new: at most 0.15 s and 4 processes beside one a layer | debian bare 0.20 s, 6 processes | no |
| Debian at 20 MB/s: at most 1.15 of the download | archive 1.33 | no |
| Debian at 20 MB/s, after the download: at most what its last layer alone takes | archive 2.00 of 7.00 s | yes |
| peak memory: below 150 MB everywhere | 10 MB at most (debian, bare) | yes |
| import beside the most images: less than 1.10 of that beside one | ostree-image, beside 1,000 1.15, ostree-image, the Debian image, beside 1,000 1.01 | no |

`
	if got := targetTable(r); got != want {
		t.Errorf("got\n%s", got)
	}
	if got := targetTable(nil); got != "" {
		t.Errorf("without results: %q", got)
	}
}

func TestTableHasARowForEachContender(t *testing.T) {
	s := section{Series: []series{seconds(ours, 0, 1, 2, 3), seconds(sequential, 0, 10, 20, 300)}}
	s.Series[1].Samples[0].Processes, s.Series[1].Samples[1].Processes, s.Series[1].Samples[2].Processes = 0, 0, 0
	want := `| | seconds | min–max | ostree-image ÷ this | user | system | peak MB | processes | MB written |
|---|--:|--:|--:|--:|--:|--:|--:|--:|
| ostree-image | 2.00 | 1.00–3.00 | 1.00 | 0.00 | 0.00 | 10 | 6 | 0 |
| (a) gzip, tar, ostree in sequence | 20.0 | 10.0–300 | 0.10 | 0.00 | 0.00 | 10 | – | 0 |
`
	if got := s.table(); got != want {
		t.Errorf("got\n%s", got)
	}
}

func TestResultsReplaceOnlyTheirOwnSections(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "BENCHMARKS.md")
	if err := os.WriteFile(file, []byte("before\n"+beginMarker+"stale\n"+endMarker+"after\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	cases := []benchCase{{name: "alpine"}, {name: "debian"}}
	for _, s := range []section{
		{Case: "debian", Mode: "archive", What: "first", Series: []series{seconds(ours, 0, 1)}},
		{Case: "alpine", Mode: "bare", What: "kept", Series: []series{seconds(ours, 0, 1)}},
		{Case: "debian", Mode: "archive", What: "second", Series: []series{seconds(ours, 0, 2)}},
	} {
		r, err := readResults(file)
		if err != nil {
			t.Fatal(err)
		}
		r.put(s, cases)
		if err := r.write(file); err != nil {
			t.Fatal(err)
		}
	}
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := string(content)
	kept, second := strings.Index(text, "kept"), strings.Index(text, "second")
	if kept < 0 || second < kept || strings.Contains(text, "first") || strings.Contains(text, "stale") {
		t.Errorf("wrong sections:\n%s", text)
	}
	if !strings.HasPrefix(text, "before\n"+beginMarker) || !strings.HasSuffix(text, endMarker+"after\n") {
		t.Errorf("what stands around the markers has changed:\n%s", text)
	}
}

func TestAFileWithoutMarkersIsRefused(t *testing.T) {
	for _, text := range []string{"", beginMarker, endMarker + beginMarker} {
		if got, err := between(text, "new"); err == nil {
			t.Errorf("%q became %q", text, got)
		}
	}
}

func TestPlotIsXML(t *testing.T) {
	var r results
	for _, p := range panels {
		r = append(r, section{Case: p.name, Growth: true, Series: []series{
			seconds(ours, p.unit, 1, 1.5, 2), seconds(nothingNew, p.unit, 0.1), seconds(ours, 1000*p.unit, 20),
		}})
	}
	r[0].Series = []series{seconds(ours, 1000, 0.3, 0.5), seconds(ours, 64_000, 30)}
	picture := plot(r)
	decoder := xml.NewDecoder(strings.NewReader(picture))
	circles := 0
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if start, ok := token.(xml.StartElement); ok && start.Name.Local == "circle" {
			circles++
		}
	}
	if circles != 11 || strings.Contains(picture, "NaN") || strings.Contains(picture, "Inf") {
		t.Errorf("%d points, want 11, in\n%s", circles, picture)
	}
}

func TestTicksEncloseWhatTheyMark(t *testing.T) {
	for _, one := range []struct {
		low, high   float64
		first, last float64
	}{{0.15, 30, 0.1, 50}, {1, 1, 1, 2}, {0.2, 0.5, 0.2, 0.5}, {0, 0.3, 0.001, 0.5}} {
		ticks := niceTicks(one.low, one.high)
		if first, last := ticks[0], ticks[len(ticks)-1]; rounded(first) != one.first || rounded(last) != one.last {
			t.Errorf("%g to %g: ticks %v", one.low, one.high, ticks)
		}
	}
}

func TestSessionAndMemoryAreRead(t *testing.T) {
	if got := sessionOf("12 (a) 7 (b)) S 1 12 77 0 -1 4194560"); got != 77 {
		t.Errorf("session %d, want 77", got)
	}
	if got := sessionOf(""); got != 0 {
		t.Errorf("session %d of nothing", got)
	}
	if got := fieldKiB("Rss:  9 kB\nPss:           1234 kB\nPss_Anon: 5 kB\n", "Pss:"); got != 1234 {
		t.Errorf("%d KiB, want 1234", got)
	}
}

func TestTailKeepsTheEnd(t *testing.T) {
	var kept tail
	for range 1000 {
		if n, err := kept.Write([]byte("ten bytes\n")); n != 10 || err != nil {
			t.Fatalf("%d bytes written, %v", n, err)
		}
	}
	if _, err := kept.Write([]byte("end")); err != nil || len(kept) != 4096 || !strings.HasSuffix(string(kept), "ten bytes\nend") {
		t.Errorf("%d bytes kept, %v", len(kept), err)
	}
}

func TestThousands(t *testing.T) {
	for f, want := range map[float64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567"} {
		if got := thousands(f); got != want {
			t.Errorf("%g: %s, want %s", f, got, want)
		}
	}
}

func TestPatternsSelectCases(t *testing.T) {
	for _, one := range []struct {
		patterns, name string
		want           bool
	}{{"", "debian", true}, {"debian", "debian-ways", false}, {"files,growth-*", "growth-files", true}, {"growth-*", "files", false}} {
		if got := selected(one.patterns, one.name); got != one.want {
			t.Errorf("%q selects %s: %v", one.patterns, one.name, got)
		}
	}
	for patterns, valid := range map[string]bool{"": true, "debian,growth-*": true, "debian,nothing": false} {
		if err := checkSelection(patterns, []string{"debian", "growth-files"}); (err == nil) != valid {
			t.Errorf("%q: %v", patterns, err)
		}
	}
}

func TestLimiterGivesAllTogetherItsRate(t *testing.T) {
	now := time.Now()
	l := limiter{rate: 1000}
	var wait time.Duration
	for range 10 {
		wait = l.reserve(now, 100)
	}
	// The tenth starts when nine have gone, but for what may be made up for at the start.
	if want := 900*time.Millisecond - slack; wait != want {
		t.Errorf("the tenth waits for %s, want %s", wait, want)
	}
	// Idle time is not saved up.
	if wait := l.reserve(now.Add(time.Hour), 100); wait != 0 {
		t.Errorf("after an hour: %s", wait)
	}
	if wait := l.reserve(now.Add(time.Hour), 100); wait != 100*time.Millisecond-slack {
		t.Errorf("after an hour, the second: %s", wait)
	}
}

func TestSlowConnectionsShareTheRateAndLoseNothing(t *testing.T) {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Close() }()
	content := bytes.Repeat([]byte("0123456789abcdef"), 10_000) // 160 kB
	go func() {
		for {
			c, err := server.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = c.Write(content)
				_ = c.Close()
			}()
		}
	}()
	proxy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = proxy.Close() }()
	go serveSlowly(proxy, server.Addr().String(), &limiter{rate: 1e6})
	began := time.Now()
	type answer struct {
		content []byte
		err     error
	}
	answers := make(chan answer)
	for range 2 {
		go func() {
			c, err := net.Dial("tcp", proxy.Addr().String())
			if err != nil {
				answers <- answer{nil, err}
				return
			}
			defer func() { _ = c.Close() }()
			got, err := io.ReadAll(c)
			answers <- answer{got, err}
		}()
	}
	for range 2 {
		if got := <-answers; got.err != nil || !bytes.Equal(got.content, content) {
			t.Errorf("%d bytes, %v", len(got.content), got.err)
		}
	}
	// 320 kB at 1 MB/s; the last chunk goes when those before it have.
	if took := time.Since(began); took < 250*time.Millisecond {
		t.Errorf("took %s, the limit is not shared", took)
	}
}
