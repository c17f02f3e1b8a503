package main

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/ostree"
	"ostree-image/internal/testutil"
)

// TestSecrets: whatever a registry says of what it was sent, no log and no record holds it.
func TestSecrets(t *testing.T) {
	dir := t.TempDir()
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	named := write("named.json", `{"auths":{"one.example":{"auth":"`+b64("ann:firstPass")+`"},"two.example":{"identitytoken":"tokenTwo"}}}`)
	write("home/.docker/config.json", `{"auths":{"three.example":{"auth":"`+b64("bob:thirdPass")+`"}},"credsStore":"x"}`)
	write("home/.dockercfg", `{"four.example":{"auth":"`+b64("cid:fourthPass")+`"}}`)
	t.Setenv("HOME", filepath.Join(dir, "home"))
	t.Setenv("XDG_RUNTIME_DIR", write("run/containers/auth.json", `{"auths":{"five.example":{"auth":"`+b64("dan:fifthPass")+`"}}}`)+"/../..")
	log, record := filepath.Join(dir, "log"), filepath.Join(dir, "record")
	said := "no access for ann:firstPass " + b64("ann:firstPass") + " tokenTwo bob:thirdPass " + b64("bob:thirdPass") + " fourthPass fifthPass " +
		b64("eve:sixthPass") + " https://storage.example/blob?X-Amz-Signature=seventhPass&x=y"
	fake := testutil.FakeTool(t, "ostree", testutil.FakeRule{Match: "refs", Stderr: "error: " + said + "\n", Exit: 1})
	run := newTestRun(t, testOptions{mode: ostree.BareUserOnly})
	name, _ := lyingRegistry(t, "well")
	var out strings.Builder
	status := runProgram(t, []string{
		"--insecure-policy", "--authfile=" + named, "--ostree=" + fake, "--log-commands=" + log, "--record=" + record, "--repo=" + run.repo.path,
		"pull", "--src-creds=eve:sixthPass", "--src-tls-verify=false", name, "x",
	}, &out, &out)
	if status != errdefs.StatusFailed {
		t.Fatalf("status %d: %s", status, out.String())
	}
	for _, path := range []string{log, filepath.Join(record, recordScript)} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), "no access for") {
			t.Errorf("%s does not say what failed: %s", path, text)
		}
		for _, secret := range []string{
			"firstPass", "tokenTwo", "thirdPass", "fourthPass", "fifthPass", "sixthPass", "seventhPass", "X-Amz",
			b64("ann:firstPass"), b64("bob:thirdPass"), b64("eve:sixthPass"),
		} {
			if strings.Contains(string(text), secret) {
				t.Errorf("%s holds %s", path, secret)
			}
		}
	}
}
