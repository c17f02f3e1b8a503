package main

import (
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"ostree-image/internal/testutil"
)

func sorted(args ...string) (string, error) {
	p := &program{stdout: io.Discard, stderr: io.Discard}
	got, err := sortArgs(p.app(), append([]string{"ostree-image"}, args...))
	return strings.Join(got, " "), err
}

func TestSortArgs(t *testing.T) {
	for _, tt := range []struct{ args, want, err string }{
		{"list", "ostree-image list --", ""},
		{"", "ostree-image", ""},
		{"--help", "ostree-image --help", ""},
		{"-v", "ostree-image --version", ""},
		{"copy oci:a ostree:b -q", "ostree-image --quiet copy -- oci:a ostree:b", ""},
		{"--repo /r list", "ostree-image --repo=/r list --", ""},
		{"list --repo=/r", "ostree-image --repo=/r list --", ""},
		{"list --repo /r -f json", "ostree-image --repo=/r list --format=json --", ""},
		{"ls -fjson", "ostree-image list --format=json --", ""},
		{"pull -qa x", "ostree-image --quiet pull --all -- x", ""},
		{"pull -aftype x", "ostree-image pull --all --format=type -- x", ""},
		{"pull -af type x", "ostree-image pull --all --format=type -- x", ""},
		{"--all pull x", "ostree-image pull --all -- x", ""},
		{"-repo /r list", "ostree-image --repo=/r list --", ""},
		{"--repo /r --repo /s list", "ostree-image --repo=/r --repo=/s list --", ""},
		{"remove -- -x --all", "ostree-image remove -- -x --all", ""},
		{"remove - x", "ostree-image remove -- - x", ""},
		{"--lock-timeout -1s list", "ostree-image --lock-timeout=-1s list --", ""},
		{"pull x --repo", "ostree-image --repo pull -- x", ""},
		{"pull --help", "ostree-image pull --help --", ""},
		{"--help pull", "ostree-image pull --help --", ""},
		{"pul x", "", `unknown command "pul"; did you mean pull?; see ostree-image --help`},
		{"pull x --tls-verfy=false", "", "unknown option --tls-verfy; did you mean --tls-verify?; see ostree-image pull --help"},
		{"list --xyzzy", "", "unknown option --xyzzy; see ostree-image list --help"},
		{"--xyzzy", "", "unknown option --xyzzy; see ostree-image --help"},
		{"list -qz", "", "unknown option -qz; see ostree-image list --help"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			got, err := sorted(strings.Fields(tt.args)...)
			testutil.SameText(t, "error", testutil.ErrText(err), tt.err)
			if err == nil {
				testutil.SameText(t, "words", got, tt.want)
			}
		})
	}
}

// TestSortArgsInAnyOrder: wherever options stand, the call is the same, as long as operands keep
// their order among one another, and so do the values of one option.
func TestSortArgsInAnyOrder(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	options := [][]string{
		{"-q"},
		{"--repo", "/r"},
		{"--repo=/r"},
		{"--format", "oci"},
		{"-foci"},
		{"-f", "oci"},
		{"-a"},
		{"--all"},
		{"-qa"},
		{"--src-tls-verify=false"},
		{"--src-creds", "a:b"},
		{"--debug"},
		{"--timestamp", "-1"},
		{"--platform", "linux/arm64"},
	}
	canonical := func(args []string) string {
		got, err := sorted(args...)
		if err != nil {
			t.Fatalf("%q: %v", args, err)
		}
		before, operands, _ := strings.Cut(got, " -- ")
		words := strings.Fields(before)
		slices.Sort(words)
		return strings.Join(slices.Compact(words), " ") + " -- " + operands
	}
	for range 2000 {
		operands := [][]string{{"pull"}, {"oci:a"}, {"b"}}
		var chosen [][]string
		for range r.IntN(6) {
			chosen = append(chosen, options[r.IntN(len(options))])
		}
		plain := slices.Concat(append(slices.Clone(chosen), operands...)...)
		mixed := slices.Clone(operands)
		for _, o := range chosen {
			mixed = slices.Insert(mixed, r.IntN(len(mixed)+1), o)
		}
		if got, want := canonical(slices.Concat(mixed...)), canonical(plain); got != want {
			t.Fatalf("%q is %q, and %q is %q", slices.Concat(mixed...), got, plain, want)
		}
	}
}
