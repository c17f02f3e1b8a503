package main

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pkg/errors"
	"go.podman.io/image/v5/types"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/imageref"
	"ostree-image/internal/testutil"
	"ostree-image/internal/ui"
)

const someHex = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func newTransport(repo string) ostreeTransport {
	return ostreeTransport{settings: &settings{repo: repo, progress: ui.NewProgress(io.Discard, ui.Plain)}}
}

func TestParseReference(t *testing.T) {
	dir := resolved(t, t.TempDir())
	if err := os.Symlink(dir, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "repo"), 0o755); err != nil {
		t.Fatal(err)
	}
	longTag := strings.Repeat("c", 128)
	tests := []struct {
		name, text  string
		image, repo string
		encoded     string
		wantErr     string
	}{
		{"short name", "debian", "debian:latest", "DIR/default", "debian_3Alatest", ""},
		{"tag", "debian:12", "debian:12", "DIR/default", "debian_3A12", ""},
		{"full name", "docker.io/library/busybox:latest", "docker.io/library/busybox:latest", "DIR/default", "docker.io_2Flibrary_2Fbusybox_3Alatest", ""},
		{"full name without tag", "docker.io/library/busybox", "docker.io/library/busybox:latest", "DIR/default", "docker.io_2Flibrary_2Fbusybox_3Alatest", ""},
		{"port", "localhost:5000/x", "localhost:5000/x:latest", "DIR/default", "localhost_3A5000_2Fx_3Alatest", ""},
		{"port and tag", "localhost:5000/a/b:1", "localhost:5000/a/b:1", "DIR/default", "localhost_3A5000_2Fa_2Fb_3A1", ""},
		{"digest", "a@sha256:" + someHex, "a@sha256:" + someHex, "DIR/default", "a_40sha256_3A" + someHex, ""},
		{"tag and digest", "a:1@sha256:" + someHex, "a@sha256:" + someHex, "DIR/default", "a_40sha256_3A" + someHex, ""},
		{"underscore and dots", "a_b.c-d:E_f.G-h", "a_b.c-d:E_f.G-h", "DIR/default", "a_5Fb.c-d_3AE_5Ff.G-h", ""},
		{"repository", "a:1@DIR/repo", "a:1", "DIR/repo", "a_3A1", ""},
		{"repository to be", "a@DIR/none", "a:latest", "DIR/none", "a_3Alatest", ""},
		{"digest and repository", "a@sha256:" + someHex + "@DIR/repo", "a@sha256:" + someHex, "DIR/repo", "a_40sha256_3A" + someHex, ""},
		{"repository through a link", "a@DIR/link/repo", "a:latest", "DIR/repo", "a_3Alatest", ""},
		{"repository with a slash", "a@DIR/repo/", "a:latest", "DIR/repo", "a_3Alatest", ""},
		{"repository with dots", "a@DIR/repo/../repo/.", "a:latest", "DIR/repo", "a_3Alatest", ""},
		{"repository with an @", "a@DIR/re@po", "a:latest", "DIR/re@po", "a_3Alatest", ""},
		{"repository with @/", "a@DIR@/x", "", "", "", `repository path "DIR@/x": its parent directory does not exist`},
		{
			"longest", "a/" + strings.Repeat("b", 120) + ":" + longTag, "a/" + strings.Repeat("b", 120) + ":" + longTag, "DIR/default",
			"a_2F" + strings.Repeat("b", 120) + "_3A" + longTag, "",
		},
		{
			"too long", "a/" + strings.Repeat("b", 121) + ":" + longTag, "", "", "",
			`image name "a/` + strings.Repeat("b", 121) + ":" + longTag + `" is too long: its ref has 256 bytes, and 255 is the most`,
		},
		{"empty", "", "", "", "", "the image name is empty; it is NAME[:TAG|@DIGEST]"},
		{"empty with repository", "@DIR/repo", "", "", "", "the image name is empty; it is NAME[:TAG|@DIGEST]"},
		{"upper case", "UPPER", "", "", "", `image name "UPPER": invalid reference format: repository name must be lowercase`},
		{"two tags", "a:b:c", "", "", "", `image name "a:b:c": invalid reference format`},
		{"bad tag", "x:bad+tag", "", "", "", `image name "x:bad+tag": invalid reference format`},
		{"blank", "a b", "", "", "", `image name "a b": invalid reference format`},
		{"newline", "a\nb", "", "", "", `image name "a\nb": invalid reference format`},
		{"not UTF-8", "a\xff", "", "", "", `image name "a\xff": invalid reference format: repository name must be lowercase`},
		{"dots", "../../etc", "", "", "", `image name "../../etc": invalid reference format`},
		{"hex", someHex, "", "", "", `image name "` + someHex + `": invalid repository name (` + someHex + `), cannot specify 64-byte hexadecimal strings`},
		{"short digest", "a@sha256:abc", "", "", "", `image name "a@sha256:abc": invalid reference format`},
		{"option", "-x", "", "", "", `image name "-x": invalid reference format`},
		{"colon in repository", "a@DIR/re:po", "", "", "", `repository path "DIR/re:po": a colon cannot stand in it`},
		{"no parent", "a@DIR/no/such", "", "", "", `repository path "DIR/no/such": its parent directory does not exist`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			here := func(s string) string { return strings.ReplaceAll(s, "DIR", dir) }
			ref, err := newTransport(dir + "/default").parse(here(tt.text))
			testutil.SameText(t, "error", testutil.ErrText(err), here(tt.wantErr))
			if err != nil {
				var usage errdefs.UsageError
				var notFound errdefs.NotFoundError
				if !errors.As(err, &usage) && !errors.As(err, &notFound) {
					t.Errorf("%T is neither a usageError nor a notFoundError", err)
				}
				return
			}
			testutil.SameText(t, "image", ref.image, here(tt.image))
			testutil.SameText(t, "repository", ref.repo, here(tt.repo))
			testutil.SameText(t, "ref", ref.ref(), "ociimage/"+tt.encoded)
			testutil.SameText(t, "text", ref.StringWithinTransport(), here(tt.image+"@"+tt.repo))
			if name, ok := imageref.ImageName(ref.ref()); !ok || name != ref.image {
				t.Errorf("the ref gives back %q, %t", name, ok)
			}
			again, err := newTransport("/").parse(ref.StringWithinTransport())
			if err != nil || again.image != ref.image || again.repo != ref.repo {
				t.Errorf("%q is read as %+v, %v", ref.StringWithinTransport(), again, err)
			}
			for _, scope := range append(ref.PolicyConfigurationNamespaces(), ref.PolicyConfigurationIdentity()) {
				if err := newTransport("/").ValidatePolicyConfigurationScope(scope); err != nil {
					t.Errorf("scope %q: %v", scope, err)
				}
			}
		})
	}
}

func resolved(t testing.TB, path string) string {
	t.Helper()
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TestDefaultRepository: --repo, then $OSTREE_REPO, then /ostree/repo, then the embedded one.
func TestDefaultRepository(t *testing.T) {
	dir := resolved(t, t.TempDir())
	t.Setenv("XDG_DATA_HOME", dir+"/data")
	t.Setenv("OSTREE_REPO", dir+"/environment")
	check := func(what string, tr ostreeTransport, want string) {
		t.Helper()
		ref, err := tr.parse("a")
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		testutil.SameText(t, what, ref.repo, want)
	}
	check("--repo", newTransport(dir+"/given"), dir+"/given")
	check("environment", newTransport(""), dir+"/environment")
	t.Setenv("OSTREE_REPO", "")
	if _, err := os.Stat(systemRepo); err == nil {
		check("system", newTransport(""), systemRepo)
		return
	}
	check("embedded", newTransport(""), dir+"/data/ostree-image/repo")
	t.Setenv("XDG_DATA_HOME", "relative")
	t.Setenv("HOME", dir+"/home")
	check("relative XDG_DATA_HOME", newTransport(""), dir+"/home/.local/share/ostree-image/repo")
	t.Chdir(dir)
	check("relative --repo", newTransport("given"), dir+"/given")
}

func TestPolicy(t *testing.T) {
	tests := []struct {
		image, identity string
		spaces          []string
	}{
		{"a:1", "/r:a:1", []string{"/r:a"}},
		{"docker.io/library/a:1", "/r:docker.io/library/a:1", []string{"/r:docker.io/library/a", "/r:docker.io/library", "/r:docker.io"}},
		{"localhost:5000/a:1", "/r:localhost:5000/a:1", []string{"/r:localhost:5000/a", "/r:localhost:5000"}},
		{"a/b@sha256:" + someHex, "/r:a/b@sha256:" + someHex, []string{"/r:a/b", "/r:a"}},
		{"a:1@sha256:" + someHex, "/r:a:1@sha256:" + someHex, []string{"/r:a"}},
	}
	for _, tt := range tests {
		t.Run(tt.image, func(t *testing.T) {
			r := ostreeReference{image: tt.image, repo: "/r"}
			testutil.SameText(t, "identity", r.PolicyConfigurationIdentity(), tt.identity)
			if got := r.PolicyConfigurationNamespaces(); !slices.Equal(got, tt.spaces) {
				t.Errorf("namespaces %q, want %q", got, tt.spaces)
			}
		})
	}
}

func TestPolicyScope(t *testing.T) {
	tests := []struct{ scope, wantErr string }{
		{"/r:a", ""},
		{"/r:a:1", ""},
		{"/r/s:docker.io/library", ""},
		{"/r:a@sha256:" + someHex, ""},
		{"", `invalid scope "": it is /REPO:NAME`},
		{"/r", `invalid scope "/r": it is /REPO:NAME`},
		{"r:a", `invalid scope "r:a": the repository's path is not absolute and clean`},
		{"/r/:a", `invalid scope "/r/:a": the repository's path is not absolute and clean`},
		{"/r/../s:a", `invalid scope "/r/../s:a": the repository's path is not absolute and clean`},
		{"/r:", `invalid scope "/r:": no image name`},
		{"/r:a@b", `invalid scope "/r:a@b": no image name`},
	}
	for _, tt := range tests {
		t.Run(tt.scope, func(t *testing.T) {
			testutil.SameText(t, "error", testutil.ErrText(newTransport("/").ValidatePolicyConfigurationScope(tt.scope)), tt.wantErr)
		})
	}
}

func TestDockerReference(t *testing.T) {
	tests := []struct{ image, want string }{
		{"docker.io/library/a:1", "docker.io/library/a:1"},
		{"localhost:5000/a:1", "localhost:5000/a:1"},
		{"a:1", ""}, // not docker.io/library/a
		{"library/a:1", ""},
	}
	for _, tt := range tests {
		t.Run(tt.image, func(t *testing.T) {
			got := ""
			if n := (ostreeReference{image: tt.image}).DockerReference(); n != nil {
				got = n.String()
			}
			testutil.SameText(t, "name", got, tt.want)
		})
	}
}

func FuzzParseReference(f *testing.F) {
	for _, s := range []string{"", "a", "a:1", "a@/x", "a@/x:y", "UPPER", "a:b:c", "@/", "a@//", "a@/\x00", "a@sha256:" + someHex, "localhost:5000/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var ref types.ImageReference
		ref, err := newTransport("/tmp").ParseReference(text)
		if err != nil {
			return
		}
		r, ok := ref.(ostreeReference)
		if !ok {
			t.Fatalf("%T", ref)
		}
		if strings.Contains(r.repo, ":") || !filepath.IsAbs(r.repo) {
			t.Errorf("%q is in the repository %q", text, r.repo)
		}
		if name, ok := imageref.ImageName(r.ref()); !ok || name != r.image {
			t.Errorf("%q has the ref %q, which is of %q, %t", text, r.ref(), name, ok)
		}
		if n := len(r.ref()) - len(imageref.Prefix); n > imageref.MaxComponent {
			t.Errorf("%q has a ref of %d bytes", text, n)
		}
	})
}
