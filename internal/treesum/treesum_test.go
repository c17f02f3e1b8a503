package treesum

import (
	"strings"
	"testing"

	"ostree-image/internal/tarstream"
)

// TestRoot holds checksums that "ostree ls --checksum" shows for the same trees. How they are
// computed for all kinds of entries is held against ostree itself, in the tests of the program.
func TestRoot(t *testing.T) {
	const meta755 = "446a0ef11b7cc167f3b603e585c7eeeeb675faa412d5ec73f62988eb0b6c5488"
	tests := []struct {
		name    string
		entries []tarstream.Entry
		want    Root
	}{
		{"nothing", nil, Root{"6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d", meta755}},
		{
			"a directory that no entry names",
			[]tarstream.Entry{{Name: "a/b", Kind: tarstream.Dir, Mode: 0o755}},
			Root{"b78e75ead0141b1edc663ebce5a1d36a114d6c734d173c1a3918b2cf57a9fde2", meta755},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := NewWriter()
			for _, e := range tt.entries {
				if err := w.WriteEntry(e); err != nil {
					t.Fatal(err)
				}
			}
			if got := w.Root(); got != tt.want {
				t.Errorf("%v, want %v", got, tt.want)
			}
		})
	}
}

// TestErrors holds what is no tree.
func TestErrors(t *testing.T) {
	file := func(name string, size int64) tarstream.Entry {
		return tarstream.Entry{Name: name, Kind: tarstream.File, Size: size}
	}
	tests := []struct {
		name    string
		entries []tarstream.Entry
		payload string // behind the last
		want    string
	}{
		{"twice", []tarstream.Entry{file("a", 0), file("a", 0)}, "", `"a" is there twice`},
		{"a file over a directory", []tarstream.Entry{file("a/b", 0), file("a", 0)}, "", `"a" is there twice`},
		{"below a file", []tarstream.Entry{file("a", 0), file("a/b", 0)}, "", `"a" leads through a file`},
		{"a link to nothing", []tarstream.Entry{{Name: "a", Kind: tarstream.HardLink, Link: "b"}}, "", `the hard link "a" leads to "b"`},
		{"too little", []tarstream.Entry{file("a", 2)}, "x", `1 bytes of "a" are missing`},
		{"too much", []tarstream.Entry{file("a", 2)}, "xxx", `"a" has more payload`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := NewWriter()
			var err error
			for _, e := range tt.entries {
				if err == nil {
					err = w.WriteEntry(e)
				}
			}
			if err == nil {
				_, err = w.Write([]byte(tt.payload))
			}
			if err == nil {
				err = w.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}
