package main

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// within tells whether a path is a directory, or lies in it.
func within(path, dir string) bool {
	return dir == "" || path == dir || strings.HasPrefix(path, dir+"/")
}

// Each file is in one part, and the parts come in an order in which they can be put together.
func TestDivide(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 2))
		weights, files := newTreeWeights(), []string{}
		for i := range 1 + r.IntN(300) {
			name := fmt.Sprint("f", i)
			for range r.IntN(9) {
				name = fmt.Sprintf("%c/%s", 'a'+rune(r.IntN(4)), name)
			}
			files = append(files, name)
			weights.add(name, r.Int64N(1<<20))
		}
		processes := 2 + r.IntN(7)
		parts := weights.divide(processes)
		if parts[0].path != "" || len(parts) > 4*processes {
			t.Errorf("seed %d: %d parts for %d processes, the first of %q", seed, len(parts), processes, parts[0].path)
		}
		for _, f := range files {
			var have []string
			for _, p := range parts {
				skipped := false
				for _, s := range p.skip {
					skipped = skipped || within(f, s)
				}
				if within(f, p.path) && !skipped {
					have = append(have, p.path)
				}
			}
			if len(have) != 1 {
				t.Errorf("seed %d: %q is in the parts %q", seed, f, have)
			}
		}
		there := map[string]bool{}
		for _, p := range parts {
			there[p.path] = true
			for _, s := range p.skip {
				if there[s] {
					t.Errorf("seed %d: %q comes before %q, which it lies in", seed, s, p.path)
				}
			}
		}
	}
}

func TestDivideEvenly(t *testing.T) {
	t.Parallel()
	weights := newTreeWeights()
	for d := range 8 {
		for f := range 100 {
			weights.add(fmt.Sprintf("usr/share/d%02d/f%d", d, f), 1000)
			weights.add(fmt.Sprintf("usr/lib/d%02d/g/h/f%d", d, f), 1000)
		}
	}
	for _, processes := range []int{2, 3, 4, 6} {
		heaviest := int64(0)
		for _, p := range weights.divide(processes) {
			heaviest = max(heaviest, p.weight)
		}
		if even := weights.below[""] / int64(processes); heaviest > even*5/4 {
			t.Errorf("%d processes: one part has %d of %d", processes, heaviest, weights.below[""])
		}
	}
}

// What cannot be named in a list of paths stays with the directory above.
func TestDivideNames(t *testing.T) {
	t.Parallel()
	weights := newTreeWeights()
	for i := range 100 {
		weights.add(fmt.Sprintf("a\nb/c/f%d", i), 1000)
	}
	if parts := weights.divide(4); len(parts) != 1 || len(parts[0].skip) != 0 {
		t.Errorf("the parts are %v", parts)
	}
}
