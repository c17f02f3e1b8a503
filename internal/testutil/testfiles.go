package testutil

import (
	"os"
	"slices"
	"testing"
)

// OnlyEntries holds that a directory holds these names and nothing else, such as a work directory
// that was left.
func OnlyEntries(t testing.TB, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, e := range entries {
		have = append(have, e.Name())
	}
	slices.Sort(names)
	if !slices.Equal(have, names) {
		t.Errorf("%s holds %q, and should hold %q", dir, have, names)
	}
}
