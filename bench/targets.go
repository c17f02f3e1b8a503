package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// figure is what one mode, or one case, came to.
type figure struct {
	text  string
	holds bool
}

// target is a line of the summary. Without figures it was not measured and is left out.
type target struct {
	text    string
	figures []figure
}

// What is aimed at, apart from ratios that stand in one line only.
const (
	nothingNewSeconds   = 0.15
	nothingNewProcesses = 4 // and one a layer
	peakMB              = 150
)

// targets compares the results with what the program aims at.
func targets(r results) []target {
	all := allModes
	bare, archive := []string{"bare", "bare-user"}, []string{"archive"}
	return []target{
		{"import into an empty repository: at most 0.4 of (a)", r.ratios("debian", slices.Concat(bare, archive), ours, sequential, 0.4)},
		{"the same on a new file system", r.ratios("debian-fresh", slices.Concat(bare, archive), ours, sequential, 0.4)},
		{"import into an empty repository: at most 1.15 of (b)", r.ratios("debian", bare, ours, parallel, 1.15)},
		{"the same on a new file system", r.ratios("debian-fresh", bare, ours, parallel, 1.15)},
		{"import into an empty repository: at most 0.8 of (b)", r.ratios("debian", archive, ours, parallel, 0.8)},
		{"the same on a new file system", r.ratios("debian-fresh", archive, ours, parallel, 0.8)},
		{
			fmt.Sprintf("nothing new: at most %.2f s and %d processes beside one a layer", nothingNewSeconds, nothingNewProcesses),
			r.nothingNew("debian", "layers"),
		},
		{"one changed layer of 60: at most 1.25 of that layer alone", r.ratios("layers-changed", all, ours, layerAlone, 1.25)},
		{"one changed layer of Debian: at most 1.25 of that layer alone", r.ratios("debian-shared", all, ours, layerAlone, 1.25)},
		{"60 layers at 20 MB/s: at most 1.15 of the download", r.ratios("registry-layers-20", all, ours, download, 1.15)},
		{"Debian at 20 MB/s: at most 1.15 of the download", r.ratios("registry-debian-20", all, ours, download, 1.15)},
		{"Debian at 20 MB/s, after the download: at most what its last layer alone takes", r.afterDownload("registry-debian-20")},
		{"checkout: at most 0.35 of umoci unpack", r.ratios("checkout", bare, checkout.name, unpack, 0.35)},
		{"checkout: at most 0.45 of umoci unpack", r.ratios("checkout", archive, checkout.name, unpack, 0.45)},
		{"checkout on a new file system: at most 0.35 of umoci unpack", r.ratios("checkout-fresh", bare, checkout.name, unpack, 0.35)},
		{"checkout on a new file system: at most 0.45 of umoci unpack", r.ratios("checkout-fresh", archive, checkout.name, unpack, 0.45)},
		{"export: at most 1.5 of ostree cat", r.ratios("export", all, export.name, catFiles, 1.5)},
		{fmt.Sprintf("peak memory: below %d MB everywhere", peakMB), r.highestPeak()},
		{"import beside the most images: less than 1.10 of that beside one", r.besideMany()},
	}
}

// targetTable has a row for each target that was measured.
func targetTable(r results) string {
	var out strings.Builder
	for _, t := range targets(r) {
		if len(t.figures) == 0 {
			continue
		}
		var texts []string
		for _, f := range t.figures {
			texts = append(texts, f.text)
		}
		holds := "yes"
		if slices.ContainsFunc(t.figures, func(f figure) bool { return !f.holds }) {
			holds = "no"
		}
		fmt.Fprintf(&out, "| %s | %s | %s |\n", t.text, strings.Join(texts, ", "), holds)
	}
	if out.Len() == 0 {
		return ""
	}
	return "### Targets\n\n| target | measured | holds |\n|---|---|---|\n" + out.String() + "\n"
}

// ratios compares two contenders in each mode that was measured.
func (r results) ratios(name string, modes []string, contender, other string, limit float64) (all []figure) {
	for _, mode := range modes {
		s := r.find(name, mode)
		one, two := s.named(contender), s.named(other)
		if one == nil || two == nil {
			continue
		}
		ratio := one.ratio(*two)
		all = append(all, figure{fmt.Sprintf("%s %.2f", mode, ratio), ratio <= limit})
	}
	return all
}

func (r results) nothingNew(names ...string) (all []figure) {
	for _, name := range names {
		for _, mode := range allModes {
			one := r.find(name, mode).named(nothingNew)
			if one == nil {
				continue
			}
			seconds, processes := one.median(wall), one.median(func(s sample) float64 { return float64(s.Processes) })
			all = append(all, figure{
				fmt.Sprintf("%s %s %.2f s, %.0f processes", name, mode, seconds, processes),
				seconds <= nothingNewSeconds && processes <= float64(nothingNewProcesses+one.Layers),
			})
		}
	}
	return all
}

// afterDownload compares the time that an import takes beyond its download with that of its last
// layer.
func (r results) afterDownload(name string) (all []figure) {
	for _, mode := range allModes {
		s := r.find(name, mode)
		whole, alone, last := s.named(ours), s.named(download), s.named(lastAlone)
		if whole == nil || alone == nil || last == nil {
			continue
		}
		after, limit := whole.median(wall)-alone.median(wall), last.median(wall)
		all = append(all, figure{fmt.Sprintf("%s %.2f of %.2f s", mode, after, limit), after <= limit})
	}
	return all
}

// highestPeak names the run of ostree-image that took the most memory of all.
func (r results) highestPeak() []figure {
	var highest float64
	var where string
	for _, s := range r {
		for _, one := range s.Series {
			if !strings.HasPrefix(one.Name, ours) {
				continue
			}
			if peak := slices.Max(one.values(func(s sample) float64 { return s.PeakMB })); peak > highest {
				highest, where = peak, fmt.Sprintf("%s, %s", s.Case, s.Mode)
			}
		}
	}
	if where == "" {
		return nil
	}
	return []figure{{fmt.Sprintf("%.0f MB at most (%s)", math.Ceil(highest), where), highest < peakMB}}
}

// besideMany compares imports beside the most images with the same beside one.
func (r results) besideMany() (all []figure) {
	s := r.find("growth-images", "bare-user")
	for _, name := range []string{ours, oursLarge} {
		first := s.named(name)
		if first == nil {
			continue
		}
		last := *first
		for _, one := range s.Series {
			if one.Name == name && one.X > last.X {
				last = one
			}
		}
		if last.X > first.X {
			ratio := last.ratio(*first)
			all = append(all, figure{fmt.Sprintf("%s, beside %s %.2f", name, thousands(last.X), ratio), ratio < 1.10})
		}
	}
	return all
}
