package main

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// markdown renders the results: the machine of the latest section, the targets, and a table for
// each section.
func markdown(r results) string {
	if len(r) == 0 {
		return ""
	}
	var out strings.Builder
	latest := slices.MaxFunc(r, func(a, b section) int { return strings.Compare(a.Date, b.Date) })
	fmt.Fprintf(&out, "Measured on %s. Last run: %s.\n\n", latest.Machine, latest.Date)
	out.WriteString(targetTable(r))
	if r.hasGrowth() {
		fmt.Fprintf(&out, "![Seconds against files, bytes, layers and images](%s)\n\n", plotFile)
	}
	for _, s := range r {
		fmt.Fprintf(&out, "### %s, %s\n\n%s. Rounds: %d, %s.\n", s.Case, s.Mode, s.What, s.Rounds, s.Date)
		if s.Machine != latest.Machine {
			fmt.Fprintf(&out, "On another machine: %s.\n", s.Machine)
		}
		out.WriteString("\n" + s.table() + "\n")
	}
	return out.String()
}

// table has a row for each contender.
func (s section) table() string {
	var out strings.Builder
	ratio := "ostree-image ÷ this"
	if s.Growth {
		ratio = "× smallest"
	}
	fmt.Fprintf(&out, "| | seconds | min–max | %s | user | system | peak MB | processes | MB written |\n", ratio)
	out.WriteString("|---|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	for _, one := range s.Series {
		name, ratio := one.Name, s.Series[0].ratio(one)
		if s.Growth {
			name += ", " + thousands(one.X)
			ratio = one.ratio(*s.named(one.Name))
		}
		walls := one.values(wall)
		processes := "–"
		if n := one.median(func(s sample) float64 { return float64(s.Processes) }); n > 0 {
			processes = strconv.FormatFloat(n, 'f', -1, 64)
		}
		fmt.Fprintf(
			&out, "| %s | %s | %s–%s | %s | %.2f | %.2f | %.0f | %s | %.0f |\n", name, figures(median(walls)), figures(slices.Min(walls)),
			figures(slices.Max(walls)), figures(ratio), one.median(func(s sample) float64 { return s.User }),
			one.median(func(s sample) float64 { return s.System }), one.median(func(s sample) float64 { return s.PeakMB }), processes,
			one.median(func(s sample) float64 { return s.WrittenMB }),
		)
	}
	return out.String()
}

// figures writes a number with two digits after the point, or with fewer where it is large.
func figures(f float64) string {
	switch {
	case f >= 99.95:
		return strconv.FormatFloat(f, 'f', 0, 64)
	case f >= 9.995:
		return strconv.FormatFloat(f, 'f', 1, 64)
	}
	return strconv.FormatFloat(f, 'f', 2, 64)
}

// thousands writes a whole number with commas.
func thousands(f float64) string {
	digits := strconv.FormatInt(int64(math.Round(f)), 10)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}
