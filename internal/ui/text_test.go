package ui

import (
	"testing"

	"ostree-image/internal/testutil"
)

func TestWrap(t *testing.T) {
	t.Parallel()
	const text = "NAME:\n   --option VALUE  says a lot of things that do not fit into one line of a terminal\n" +
		"   a sentence that goes on and on until the line is at its end\nshort\n"
	testutil.SameText(t, "no width", Wrap(text, 0), text)
	testutil.SameText(t, "40", Wrap(text, 40), "NAME:\n   --option VALUE  says a lot of things\n"+
		"                   that do not fit into\n                   one line of a\n                   terminal\n"+
		"   a sentence that goes on and on until\n   the line is at its end\nshort\n")
	const long = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n"
	testutil.SameText(t, "a long word", Wrap(long, 40), long)
}
