package main

import (
	"context"
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/pkg/errors"
	"github.com/urfave/cli/v2"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"

	"ostree-image/internal/doctor"
	"ostree-image/internal/imageref"
	"ostree-image/internal/ostree"
	"ostree-image/internal/ui"
	"ostree-image/internal/workdir"
)

// doctorOptions are the options of doctor.
type doctorOptions struct{ format string }

func (p *program) doctorCommand() *cli.Command {
	var o doctorOptions
	return &cli.Command{
		Name:        "doctor",
		Category:    "Debugging",
		Usage:       "say what this machine and the repository can do, and what is wrong",
		Description: "ostree-image doctor\nostree-image --repo=/srv/images doctor --format=json",
		Flags:       []cli.Flag{formatFlag(&o.format, "table")},
		Before:      wantArgs(0, 0),
		Action:      func(c *cli.Context) error { return p.doctor(c, o) },
	}
}

// doctor changes nothing but what it tries out, which is gone afterwards, and what killed runs left.
func (p *program) doctor(c *cli.Context, o doctorOptions) error {
	format, err := ui.ParseFormat(o.format)
	if err != nil {
		return err
	}
	sys, err := p.systemContext(endpoint{}, false)
	if err != nil {
		return err
	}
	var r doctor.Report
	engine := p.checkTools(c.Context, &r)
	doctor.Machine(&r)
	if engine != "" {
		p.checkRepository(c.Context, &r, engine)
	}
	if p.settings.tmpdir != "" {
		p.checkTmpdir(&r)
	}
	p.checkPolicy(&r, sys)
	checkRegistries(&r, sys)
	checkCredentials(&r, sys)
	if c.Err() != nil {
		return context.Cause(c.Context)
	}
	err = format.Print(p.stdout, []doctor.Finding(r), func() error {
		return ui.PrintTable(p.stdout, "STATUS\tCHECK\tFOUND", func(row func(...any)) {
			for _, f := range r {
				row(f.Status, f.Check, f.Text)
				if f.Advice != "" {
					row("", "", "→ "+f.Advice)
				}
			}
		})
	})
	if n := r.Problems(); err == nil && n > 0 {
		err = errors.Errorf("%d of %d checks found a problem", n, len(r))
	}
	return err
}

// checkTools adds which ostree and tar there are, and returns the engine that imports use, "" where
// there is no ostree.
func (p *program) checkTools(ctx context.Context, r *doctor.Report) engineName {
	r.OK("ostree-image", "version %s", version)
	engine := engineStream
	features, err := ostreeVersion(ctx, p.settings.runner)
	switch {
	case err != nil:
		engine = ""
		r.Problem("ostree", "", "%s", ui.OneLine(err))
	case !features.Has("libarchive"):
		engine = engineTar
		r.Note("ostree", "", "version %s, without libarchive: layers are extracted by tar first", features.Version)
	default:
		r.OK("ostree", "version %s, with %s", features.Version, strings.Join(features.Features, " "))
	}
	if tar, err := tarVersion(ctx, p.settings.runner); err == nil {
		r.OK("tar", "GNU tar %s", tar)
	} else if engine == engineTar {
		r.Problem("tar", "", "%s", ui.OneLine(err))
	} else {
		r.Note("tar", "", "the engine tar, checkout and replay need it: %s", ui.OneLine(err))
	}
	return engine
}

// checkRepository adds what there is of the repository, and what it can do.
func (p *program) checkRepository(ctx context.Context, r *doctor.Report, engine engineName) {
	const check = "repository"
	path, embedded, err := p.settings.findRepo()
	if embedded && err == nil {
		if _, err := os.Lstat(path); os.IsNotExist(err) {
			r.Note(check, "name another with --repo or $OSTREE_REPO", "%s is made when it is used first", path)
			return
		}
	}
	if err == nil {
		path, err = normalizeRepo(path)
	}
	if err != nil {
		r.Problem(check, "", "%s", ui.OneLine(err))
		return
	}
	repo := p.settings.repository(path)
	mode, err := repo.config(ctx, "core.mode")
	if err == nil {
		mode, err = ostree.ParseMode(mode)
	}
	var refs map[string]bool
	if err == nil {
		refs, err = repo.refs(ctx)
	}
	if err != nil {
		r.Problem(check, "", "%s", ui.OneLine(err))
		return
	}
	images, leftovers := 0, 0
	for ref := range refs {
		_, name := splitSpec(ref)
		if imageref.IsImage(name) {
			images++
		}
		if leftoverRef.MatchString(ref) || isKept(ref) {
			leftovers++
		}
	}
	r.OK(check, "%s, mode %s, images: %d", path, mode, images)
	if marks, err := repo.partialCommits(); err != nil || len(marks)+leftovers > 0 {
		r.Note(
			check,
			"nothing: the next import, or ostree-image prune, removes them; ostree-image verify looks at all images",
			"%d refs and %d commits that a run left which was ended",
			leftovers,
			len(marks),
		)
	}
	if text := permissionsFor(mode, os.Geteuid(), os.Getegid()).exceptions(mode, engine); text != "" {
		r.Note(check, "run as root, or use the mode bare-user", "%s", text)
	}
	if limitedNamespace("") != nil {
		r.Note(check, "map more: /etc/subuid, /etc/subgid",
			"this user namespace does not have all users and groups: a file of one that is missing is refused")
	}
	if fsync, err := repo.config(ctx, "core.fsync"); err == nil && fsync == "false" {
		r.Note(check, "ostree config set core.fsync true", "core.fsync is false: images can be lost with the power")
	}
	reserved := 3.0 // ostree's own (core.min-free-space-percent)
	if text, err := repo.config(ctx, "core.min-free-space-percent"); err == nil && text != "" {
		reserved, _ = strconv.ParseFloat(text, 64)
	}
	doctor.Space(r, "space", path, reserved)
	p.checkAbilities(r, repo, mode)
}

// checkAbilities adds what the file system of a repository can do.
func (p *program) checkAbilities(r *doctor.Report, repo *repository, mode string) {
	const check = "file system"
	var a doctor.Abilities
	work, err := workdir.New(repo.tmp(), p.settings.runner)
	if err == nil {
		a, err = doctor.Probe(work.Path)
		if rerr := work.Remove(); err == nil {
			err = rerr
		}
	}
	if errors.Is(err, os.ErrPermission) || errors.Is(err, syscall.EROFS) {
		r.Note(check, "change the owner, or run as the user that has it", "the repository can be read and not written")
		return
	}
	if err != nil {
		r.Problem(check, "", "%s", ui.OneLine(err))
		return
	}
	switch {
	case a.Attributes:
		r.OK(check, "keeps extended attributes")
	case mode == ostree.BareUser:
		r.Problem(
			check,
			"move the repository, or use the mode archive",
			"keeps no extended attributes, which the mode bare-user needs",
		)
	case mode == ostree.Bare:
		r.Note(
			check,
			"move the repository, or use the mode archive",
			"keeps no extended attributes: a layer that has some is refused",
		)
	}
	if a.HardLinks {
		r.OK(check, "has hard links")
	} else {
		r.Note(check, "use checkout without -H", "has no hard links: checkout --require-hardlinks fails")
	}
	if a.Reflinks {
		r.OK(check, "has reflinks: a checkout shares the data of its files")
	} else {
		r.OK(check, "has no reflinks: a checkout copies files")
	}
}

// checkTmpdir adds what is wrong with the directory of --tmpdir.
func (p *program) checkTmpdir(r *doctor.Report) {
	dir, err := p.settings.openTmpdir()
	if err != nil {
		r.Problem("tmpdir", "name another with --tmpdir, or unset TMPDIR", "%s", ui.OneLine(err))
		return
	}
	dir.Unpin()
	doctor.Space(r, "tmpdir", p.settings.tmpdir, 0)
}

// checkPolicy adds what the signature policy accepts.
func (p *program) checkPolicy(r *doctor.Report, sys *types.SystemContext) {
	const check = "policy.json"
	if p.settings.insecurePolicy {
		r.Note(check, "", "--insecure-policy: every image is accepted")
		return
	}
	policy, err := signature.DefaultPolicy(sys)
	if err != nil {
		r.Problem(
			check,
			"install containers-common (golang-github-containers-common in Debian), name a file with --policy, or accept every image with --insecure-policy",
			"%s",
			ui.OneLine(err),
		)
		return
	}
	rules, err := json.Marshal(policy.Default)
	if err != nil {
		r.Problem(check, "", "%s", ui.OneLine(err))
		return
	}
	switch text := string(rules); {
	case strings.Contains(text, "insecureAcceptAnything"):
		r.OK(
			check,
			"images are accepted without a signature, but for what has a rule of its own (%d)",
			len(policy.Transports),
		)
	case strings.Contains(text, `"reject"`):
		r.Note(check, "", "images are refused, but for what has a rule of its own (%d)", len(policy.Transports))
	default:
		r.OK(check, "images need signatures: %s", text)
	}
}

// checkRegistries adds what registries.conf says.
func checkRegistries(r *doctor.Report, sys *types.SystemContext) {
	const check = "registries.conf"
	search, err := sysregistriesv2.UnqualifiedSearchRegistries(sys)
	switch {
	case err != nil:
		r.Problem(check, "mend it, or name another with --registries-conf", "%s", ui.OneLine(err))
	case len(search) == 0:
		r.Note(
			check,
			"name some as unqualified-search-registries, or write full names such as docker.io/library/alpine",
			"no registry for short names such as alpine",
		)
	default:
		r.OK(check, "short names are looked for at %s", strings.Join(search, ", "))
	}
}

// checkCredentials adds for which registries there are credentials. It shows none.
func checkCredentials(r *doctor.Report, sys *types.SystemContext) {
	const check = "credentials"
	found := false
	seen := map[string]bool{}
	for _, path := range authFiles(sys.AuthFilePath) {
		info, err := os.Stat(path)
		if path == "" || seen[path] || err != nil {
			continue
		}
		seen[path] = true
		auths, err := readAuths(path)
		registries := slices.Sorted(maps.Keys(auths))
		switch {
		case err != nil:
			r.Problem(check, "mend or remove it", "%s: %s", path, ui.OneLine(err))
		case info.Mode().Perm()&0o077 != 0 && len(registries) > 0:
			r.Note(check, "chmod 600 "+path, "%s, which others can read: %s", path, strings.Join(registries, ", "))
		default:
			r.OK(check, "%s: %s", path, strings.Join(registries, ", "))
		}
		found = true
	}
	if !found {
		r.OK(check, "none; ostree-image login REGISTRY keeps some")
	}
}
