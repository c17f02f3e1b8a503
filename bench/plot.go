package main

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// panel is one plot: seconds against a size, both on logarithmic axes.
type panel struct {
	name  string // of the case
	title string
	axis  string
	unit  float64 // what the sizes are divided by
}

var panels = []panel{
	{"growth-files", "One layer, more files", "files of 1 KiB in the layer", 1},
	{"growth-bytes", "One file, more bytes", "MB in the file", 1e6},
	{"growth-layers", "More layers", "layers of 100 files", 1},
	{"growth-images", "One image beside others", "other images in the repository", 1},
}

// The measures of the picture, in its units.
const (
	panelWidth, panelHeight           = 460, 300
	plotLeft, plotTop                 = 64, 36
	plotWidth, plotHeight             = 370, 206
	fontSize, smallFontSize           = 13, 11
	ink, faint, grid                  = "#222", "#666", "#ddd"
	labelBelow, axisBelow, legendStep = 16, 34, 16
)

// colours of the series of a panel; there are no more series than these.
var colours = []string{"#0b5fa5", "#c2570c", "#2b7a3d", "#7b3fa0", "#9a7d0a"}

// plot draws the growth cases as an SVG picture: points at the medians, bars from the fastest to
// the slowest run, and a dashed line for what is proportional to the size.
func plot(r results) string {
	var out strings.Builder
	fmt.Fprintf(
		&out, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" font-family="sans-serif" `+
			`font-size="%[3]d" fill="%[4]s">`+"\n",
		2*panelWidth, 2*panelHeight, fontSize, ink,
	)
	out.WriteString(`<rect width="100%" height="100%" fill="#fff"/>` + "\n") // or the text cannot be read in dark mode
	for i, p := range panels {
		j := slices.IndexFunc(r, func(s section) bool { return s.Case == p.name })
		if j < 0 {
			continue
		}
		fmt.Fprintf(&out, `<g transform="translate(%d %d)">`+"\n", i%2*panelWidth, i/2*panelHeight)
		p.draw(&out, r[j])
		out.WriteString("</g>\n")
	}
	return out.String() + "</svg>\n"
}

// scale maps values from low to high to places from begin to end.
type scale struct{ low, high, begin, end float64 }

func (s scale) place(value float64) float64 {
	return s.begin + (s.end-s.begin)*math.Log(value/s.low)/math.Log(s.high/s.low)
}

func (p panel) draw(out *strings.Builder, s section) {
	var sizes, seconds []float64
	var names []string
	for _, one := range s.Series {
		sizes = append(sizes, one.X/p.unit)
		seconds = append(seconds, one.values(wall)...)
		if !slices.Contains(names, one.Name) {
			names = append(names, one.Name)
		}
	}
	slices.Sort(sizes)
	sizes = slices.Compact(sizes)
	x := scale{sizes[0] / 1.5, sizes[len(sizes)-1] * 1.5, plotLeft, plotLeft + plotWidth}
	ticks := niceTicks(slices.Min(seconds), slices.Max(seconds))
	y := scale{ticks[0], ticks[len(ticks)-1], plotTop + plotHeight, plotTop}
	p.drawAxes(out, x, y, sizes, ticks)
	if len(names) == 1 {
		drawProportional(out, x, y, s.Series[0].X/p.unit, s.Series[0].median(wall))
	}
	for i, name := range names {
		p.drawSeries(out, x, y, s, name, colours[i])
		if len(names) > 1 {
			fmt.Fprintf(
				out, `<text x="%d" y="%d" font-size="%d" fill="%s">%s</text>`+"\n", plotLeft+8,
				plotTop+legendStep*(i+1), smallFontSize, colours[i], html.EscapeString(name),
			)
		}
	}
}

func (p panel) drawAxes(out *strings.Builder, x, y scale, sizes, ticks []float64) {
	fmt.Fprintf(out, `<text x="%d" y="%d" font-weight="bold">%s</text>`+"\n", plotLeft, plotTop-12, html.EscapeString(p.title))
	for _, tick := range ticks {
		at := y.place(tick)
		fmt.Fprintf(out, `<path d="M%d %.1fh%d" stroke="%s"/>`+"\n", plotLeft, at, plotWidth, grid)
		fmt.Fprintf(
			out, `<text x="%d" y="%.1f" text-anchor="end" font-size="%d">%s</text>`+"\n", plotLeft-6, at+4, smallFontSize, shortest(tick),
		)
	}
	for _, size := range sizes {
		at := x.place(size)
		fmt.Fprintf(out, `<path d="M%.1f %dv5" stroke="%s"/>`+"\n", at, plotTop+plotHeight, ink)
		label := shortest(size)
		if size >= 1000 {
			label = thousands(size)
		}
		fmt.Fprintf(
			out, `<text x="%.1f" y="%d" text-anchor="middle" font-size="%d">%s</text>`+"\n", at, plotTop+plotHeight+labelBelow, smallFontSize, label,
		)
	}
	fmt.Fprintf(out, `<path d="M%d %dv%dh%d" fill="none" stroke="%s"/>`+"\n", plotLeft, plotTop, plotHeight, plotWidth, ink)
	fmt.Fprintf(
		out, `<text x="%d" y="%d" text-anchor="middle">%s</text>`+"\n", plotLeft+plotWidth/2, plotTop+plotHeight+axisBelow,
		html.EscapeString(p.axis),
	)
	fmt.Fprintf(
		out, `<text transform="translate(%d %d) rotate(-90)" text-anchor="middle">seconds</text>`+"\n", fontSize+2, plotTop+plotHeight/2,
	)
}

// drawProportional draws the line through a point that the others would lie on if time grew as size
// does, as far as it is inside.
func drawProportional(out *strings.Builder, x, y scale, size, seconds float64) {
	from := max(x.low, y.low/seconds*size)
	to := min(x.high, y.high/seconds*size)
	fmt.Fprintf(
		out, `<path d="M%.1f %.1fL%.1f %.1f" stroke="%s" stroke-dasharray="4 4"/>`+"\n", x.place(from), y.place(from*seconds/size),
		x.place(to), y.place(to*seconds/size), faint,
	)
}

func (p panel) drawSeries(out *strings.Builder, x, y scale, s section, name, colour string) {
	var line []string
	for _, one := range s.Series {
		if one.Name != name {
			continue
		}
		walls := one.values(wall)
		across, middle := x.place(one.X/p.unit), y.place(median(walls))
		line = append(line, fmt.Sprintf("%.1f %.1f", across, middle))
		fmt.Fprintf(
			out, `<path d="M%.1f %.1fV%.1f" stroke="%s" stroke-width="2"/><circle cx="%.1f" cy="%.1f" r="4" fill="%s"/>`+"\n",
			across, y.place(slices.Min(walls)), y.place(slices.Max(walls)), colour, across, middle, colour,
		)
	}
	fmt.Fprintf(out, `<path d="M%s" fill="none" stroke="%s"/>`+"\n", strings.Join(line, "L"), colour)
}

// niceTicks returns ascending values 1, 2 and 5 times powers of ten, the first not above low and
// the last not below high.
func niceTicks(low, high float64) (ticks []float64) {
	low = max(low, 0.001) // what the samples are rounded to
	for power := math.Floor(math.Log10(low)); ; power++ {
		for _, step := range []float64{1, 2, 5} {
			tick := step * math.Pow(10, power)
			if tick <= low {
				ticks = ticks[:0]
			}
			ticks = append(ticks, tick)
			if tick >= high && len(ticks) > 1 {
				return ticks
			}
		}
	}
}

// shortest writes a number with no more digits than it needs.
func shortest(f float64) string { return fmt.Sprintf("%.4g", f) }
