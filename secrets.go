package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/pkg/errors"
)

// maxAuthFile is how many bytes of a file of credentials are looked at.
const maxAuthFile = 4 << 20

// authFiles are where the library may find credentials of registries: containers-auth.json(5).
func authFiles(named string) []string {
	paths := []string{named, os.Getenv("REGISTRY_AUTH_FILE")}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		paths = append(paths, filepath.Join(dir, "containers/auth.json"))
	}
	paths = append(paths, fmt.Sprintf("/run/containers/%d/auth.json", os.Getuid()))
	if dir := os.Getenv("XDG_CONFIG_HOME"); dir != "" {
		paths = append(paths, filepath.Join(dir, "containers/auth.json"))
	}
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		paths = append(paths, filepath.Join(dir, "config.json"))
	}
	if home, err := os.UserHomeDir(); err == nil {
		for _, name := range []string{".config/containers/auth.json", ".docker/config.json", ".dockercfg"} {
			paths = append(paths, filepath.Join(home, name))
		}
	}
	return paths
}

// storedCredentials are those of one registry.
type storedCredentials struct {
	Auth          string `json:"auth"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// readAuths returns the credentials in a file, by their registries.
func readAuths(path string) (map[string]storedCredentials, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxAuthFile {
		return nil, errors.Errorf("no file of less than %d bytes", maxAuthFile)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	var file struct {
		Auths map[string]storedCredentials `json:"auths"`
	}
	err = json.Unmarshal(text, &file)
	if err != nil || file.Auths == nil {
		_ = json.Unmarshal(text, &file.Auths) // .dockercfg
	}
	return file.Auths, errors.WithStack(err)
}

// authSecrets returns what is secret in a file of credentials, as it stands there and as it is
// sent. What cannot be read the library cannot use either.
func authSecrets(path string) (secrets []string) {
	auths, _ := readAuths(path)
	for _, c := range auths {
		secrets = append(secrets, c.Auth, c.Password, c.IdentityToken, c.RegistryToken)
		if both, err := base64.StdEncoding.DecodeString(c.Auth); err == nil {
			secrets = append(secrets, userAndPassword(string(both))...)
		}
	}
	return secrets
}

// userAndPassword returns what is secret in USER:PASSWORD, and the forms of it that a registry is
// sent.
func userAndPassword(both string) []string {
	_, password, ok := strings.Cut(strings.TrimRight(both, "\x00"), ":")
	if !ok || password == "" {
		return nil
	}
	return []string{
		both, base64.StdEncoding.EncodeToString([]byte(both)), base64.URLEncoding.EncodeToString([]byte(both)),
		password, base64.StdEncoding.EncodeToString([]byte(password)),
	}
}
