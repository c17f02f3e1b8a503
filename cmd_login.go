package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/pkg/errors"
	"github.com/urfave/cli/v2"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/pkg/docker/config"
	"golang.org/x/term"

	"ostree-image/internal/errdefs"
)

// loginOptions are the options of login.
type loginOptions struct {
	username, password, certDir string
	passwordStdin, tlsVerify    bool
	getLogin                    bool
}

func (p *program) loginCommand() *cli.Command {
	var o loginOptions
	return &cli.Command{
		Name:        "login",
		Category:    "Registries",
		Usage:       "check credentials for a registry, and keep them",
		ArgsUsage:   "REGISTRY",
		Description: "ostree-image login quay.io\nostree-image login --username me --password-stdin registry.example.com <secret",
		Flags: []cli.Flag{
			&cli.StringFlag{
				Name:        "username",
				Aliases:     []string{"u"},
				Usage:       "log in as `USER` (default: ask)",
				Destination: &o.username,
			},
			&cli.StringFlag{
				Name:        "password",
				Aliases:     []string{"p"},
				Usage:       "use the `PASSWORD`, which all users can see in the list of processes",
				Destination: &o.password,
			},
			&cli.BoolFlag{
				Name:        "password-stdin",
				Usage:       "read the password from standard input",
				Destination: &o.passwordStdin,
			},
			&cli.BoolFlag{
				Name:        "tls-verify",
				Usage:       "want HTTPS and a valid certificate of the registry",
				Value:       true,
				Destination: &o.tlsVerify,
			},
			&cli.StringFlag{Name: "cert-dir", Usage: "use the certificates in `DIR`", Destination: &o.certDir},
			&cli.BoolFlag{Name: "get-login", Usage: "only print who is logged in there", Destination: &o.getLogin},
		},
		Before: wantArgs(1, 1),
		Action: func(c *cli.Context) error { return p.login(c, o, os.Stdin) },
	}
}

func (p *program) login(c *cli.Context, o loginOptions, stdin io.Reader) error {
	registry, err := registryName(c.Args().First())
	if err != nil {
		return err
	}
	sys, err := p.systemContext(endpoint{tlsVerify: o.tlsVerify, certDir: o.certDir}, c.IsSet("tls-verify"))
	if err != nil {
		return err
	}
	if o.getLogin {
		known, err := config.GetCredentials(sys, registry)
		if err != nil {
			return errors.WithStack(err)
		}
		if known.Username == "" {
			return errdefs.NotFoundf("nobody is logged in to %s", registry)
		}
		_, err = fmt.Fprintln(p.stdout, known.Username)
		return errors.Wrap(err, "writing the result")
	}
	if o.password != "" && o.passwordStdin {
		return errdefs.Usagef("login: --password and --password-stdin are mutually exclusive")
	}
	if o.passwordStdin && o.username == "" {
		return errdefs.Usagef("login: --password-stdin needs --username")
	}
	in := bufio.NewReader(stdin)
	if o.username == "" {
		if o.username, err = p.prompt(in, "Username: "); err != nil {
			return err
		}
	}
	switch {
	case o.passwordStdin:
		text, rerr := io.ReadAll(io.LimitReader(in, 64<<10))
		o.password, err = strings.TrimRight(string(text), "\r\n"), errors.Wrap(rerr, "reading the password")
	case o.password == "":
		o.password, err = p.promptPassword(stdin, in)
	}
	if err != nil {
		return err
	}
	if o.username == "" || o.password == "" {
		return errdefs.Usagef("login: the user or the password is empty")
	}
	p.settings.journal.hide(userAndPassword(o.username + ":" + o.password)...)
	if err := docker.CheckAuth(c.Context, sys, o.username, o.password, registry); err != nil {
		var wrong docker.ErrUnauthorizedForCredentials
		if errors.As(err, &wrong) {
			return errdefs.Checkf("%s: invalid username or password", registry)
		}
		return explainCopy(errors.WithMessagef(err, "logging in to %s", registry))
	}
	if _, err := config.SetCredentials(sys, registry, o.username, o.password); err != nil {
		return errors.Wrap(err, "keeping the credentials")
	}
	_, err = fmt.Fprintln(p.stdout, "Login Succeeded!")
	return errors.Wrap(err, "writing the result")
}

// prompt asks for a line.
func (p *program) prompt(in *bufio.Reader, question string) (string, error) {
	_, _ = fmt.Fprint(p.stderr, question)
	line, err := in.ReadString('\n')
	if err != nil && line == "" {
		return "", errors.Wrap(err, "reading the answer")
	}
	return strings.TrimRight(line, "\r\n"), nil
}

// promptPassword asks for a password, which a terminal does not show.
func (p *program) promptPassword(stdin io.Reader, in *bufio.Reader) (string, error) {
	file, ok := stdin.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		return p.prompt(in, "Password: ")
	}
	_, _ = fmt.Fprint(p.stderr, "Password: ")
	password, err := term.ReadPassword(int(file.Fd()))
	_, _ = fmt.Fprintln(p.stderr)
	return string(password), errors.Wrap(err, "reading the password")
}

// registryName reads the name of a registry, HOST[:PORT], or of a namespace there.
func registryName(text string) (string, error) {
	name := strings.TrimSuffix(strings.TrimPrefix(text, "docker://"), "/")
	if name == "" || strings.Contains(name, "://") {
		return "", errdefs.Usagef("%q is no registry: it is HOST[:PORT], or HOST[:PORT]/NAMESPACE", text)
	}
	return name, nil
}

// logoutOptions are the options of logout.
type logoutOptions struct{ all bool }

func (p *program) logoutCommand() *cli.Command {
	var o logoutOptions
	return &cli.Command{
		Name:        "logout",
		Category:    "Registries",
		Usage:       "forget the credentials for a registry",
		ArgsUsage:   "[REGISTRY]",
		Description: "ostree-image logout quay.io\nostree-image logout --all",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "forget all credentials", Destination: &o.all},
		},
		Before: wantArgs(0, 1),
		Action: func(c *cli.Context) error { return p.logout(c, o) },
	}
}

func (p *program) logout(c *cli.Context, o logoutOptions) error {
	if o.all != (c.NArg() == 0) {
		return errdefs.Usagef("logout: name the registry, or give --all")
	}
	sys, err := p.systemContext(endpoint{}, false)
	if err != nil {
		return err
	}
	if o.all {
		if err := config.RemoveAllAuthentication(sys); err != nil {
			return errors.Wrap(err, "forgetting all credentials")
		}
		_, err = fmt.Fprintln(p.stdout, "Removed all login credentials")
		return errors.Wrap(err, "writing the result")
	}
	registry, err := registryName(c.Args().First())
	if err != nil {
		return err
	}
	err = config.RemoveAuthentication(sys, registry)
	if errors.Is(err, config.ErrNotLoggedIn) {
		return errdefs.NotFoundf("nobody is logged in to %s", registry)
	}
	if err != nil {
		return errors.Wrapf(err, "forgetting the credentials for %s", registry)
	}
	_, err = fmt.Fprintf(p.stdout, "Removed login credentials for %s\n", registry)
	return errors.Wrap(err, "writing the result")
}
