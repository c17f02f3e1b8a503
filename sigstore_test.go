package main

import (
	"os"
	"path/filepath"
	"testing"

	"go.podman.io/image/v5/directory"
	"go.podman.io/image/v5/signature/sigstore"
)

// TestSigstoreSignature: an image that is pushed gets a signature by a private key, whose
// passphrase lies in a file.
func TestSigstoreSignature(t *testing.T) {
	t.Parallel()
	keys, err := sigstore.GenerateKeyPair([]byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	key, passphrase, out := filepath.Join(dir, "key"), filepath.Join(dir, "passphrase"), filepath.Join(dir, "out")
	mkdirFile(t, key, keys.PrivateKey)
	r := newTestRun(t, testOptions{})
	r.insecurePolicy = true
	if err := r.importImage(t, "example.com/a:1", smallImage(t)); err != nil {
		t.Fatal(err)
	}
	destination, err := directory.NewReference(out)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"wrong\n", "secret\n"} {
		mkdirFile(t, passphrase, []byte(text))
		o := copyOptions{source: testSys, destination: testSys}
		if o.sigstoreKey, o.sigstorePassphrase, err = sigstoreKey(key, passphrase); err != nil {
			t.Fatal(err)
		}
		err := r.copyImage(t.Context(), r.reference(t, "example.com/a:1"), destination, o)
		if text == "wrong\n" {
			if err == nil {
				t.Error("it is signed with a wrong passphrase")
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(out, "signature-1")); err != nil {
		t.Error(err)
	}
}
