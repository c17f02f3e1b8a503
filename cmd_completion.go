package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/pkg/errors"
	"github.com/urfave/cli/v2"
	"go.podman.io/image/v5/transports"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/imageref"
)

// completionScripts have a shell ask the hidden command __complete for the words that may come
// next.
var completionScripts = map[string]string{
	"bash": `# bash completion for ostree-image
_ostree_image() {
    local line=${COMP_LINE:0:COMP_POINT} words current prefix IFS=$' \t'
    read -r -a words <<<"$line"
    [[ $line != *[[:space:]] ]] || words+=('')
    current=${words[-1]}
    IFS=$'\n'
    COMPREPLY=($("${words[0]}" __complete -- "${words[@]:1}" 2>/dev/null))
    # bash replaces what stands behind the last colon or equals sign.
    prefix=${current%"${current##*[:=]}"}
    COMPREPLY=("${COMPREPLY[@]#"$prefix"}")
    [[ ${#COMPREPLY[@]} != 1 || ${COMPREPLY[0]} != *[:=] ]] || compopt -o nospace
}
complete -o default -F _ostree_image ostree-image
`,
	"zsh": `#compdef ostree-image
# zsh completion for ostree-image
_ostree_image() {
    local -a found nospace
    found=("${(@f)$("${words[1]}" __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    found=(${found:#})
    if ((${#found})); then
        nospace=(${(M)found:#*[:=]})
        found=(${found:#*[:=]})
        ((${#found} == 0)) || compadd -- "${found[@]}"
        ((${#nospace} == 0)) || compadd -S '' -- "${nospace[@]}"
    else
        _files
    fi
}
if [[ ${funcstack[1]-} == _ostree-image ]]; then _ostree_image "$@"; else compdef _ostree_image ostree-image; fi
`,
	"fish": `# fish completion for ostree-image
function __ostree_image_complete
    set -l words (commandline -opc) (commandline -ct)
    $words[1] __complete -- $words[2..-1] 2>/dev/null
end
complete -c ostree-image -f -n 'test -n "$(__ostree_image_complete)"' -a '(__ostree_image_complete)'
`,
}

func (p *program) completionCommand() *cli.Command {
	return &cli.Command{
		Name:        "completion",
		Category:    "Help",
		Usage:       "print a script with which a shell completes commands, options and names",
		ArgsUsage:   "bash|zsh|fish",
		Description: "ostree-image completion bash >/etc/bash_completion.d/ostree-image\nostree-image completion fish | source",
		Before:      wantArgs(1, 1),
		Action: func(c *cli.Context) error {
			script, ok := completionScripts[c.Args().First()]
			if !ok {
				return errdefs.Usagef("completion: unknown shell %q: it is bash, zsh or fish", c.Args().First())
			}
			_, err := fmt.Fprint(p.stdout, script)
			return errors.Wrap(err, "writing the script")
		},
	}
}

// completeCommand is what the scripts call.
func (p *program) completeCommand() *cli.Command {
	return &cli.Command{
		Name: "__complete", Hidden: true, Action: func(c *cli.Context) error {
			for _, word := range p.complete(c.Context, c.App, c.Args().Slice()) {
				if _, err := fmt.Fprintln(p.stdout, word); err != nil {
					return errors.WithStack(err)
				}
			}
			return nil
		},
	}
}

// valuesOf are what the options can have as values that have a few.
var valuesOf = map[string][]string{
	"unpack":               {"auto", "stream", "tar"},
	"multi-arch":           {"system", "all", "index-only"},
	"dest-compress-format": {"gzip", "zstd", "zstd:chunked"},
	"format":               {"table", "json", "oci", "v2s1", "v2s2"},
}

// complete returns what the last of some words may become, nothing where that is for the shell to
// know, such as a file.
func (p *program) complete(ctx context.Context, app *cli.App, words []string) []string {
	if len(words) == 0 {
		words = []string{""}
	}
	before, last := words[:len(words)-1], words[len(words)-1]
	sorter, command := readWords(app, before)
	if command == nil && len(sorter.operands) > 0 {
		return nil
	}
	if name, value, ok := strings.Cut(strings.TrimLeft(last, "-"), "="); ok && strings.HasPrefix(last, "--") {
		return withPrefix("--"+name+"=", valuesOf[name], value)
	}
	if n := len(before); n > 0 && len(before[n-1]) > 1 && before[n-1][0] == '-' && before[n-1] != "--" {
		if _, flag := sorter.find(strings.TrimLeft(before[n-1], "-")); flag != nil && takesValue(flag) {
			return withPrefix("", valuesOf[flag.Names()[0]], last)
		}
	}
	switch {
	case strings.HasPrefix(last, "-"):
		return withPrefix("", optionNames(sorter.flags), last)
	case command == nil:
		return withPrefix("", commandNames(app), last)
	}
	return withPrefix("", p.operandsOf(ctx, app, command, len(sorter.operands)-1, repoOption(sorter)), last)
}

// operandsOf returns what the operand at a place may be.
func (p *program) operandsOf(ctx context.Context, app *cli.App, command *cli.Command, at int, repo string) []string {
	usage := strings.Fields(command.ArgsUsage)
	if len(usage) == 0 {
		return nil
	}
	kind := strings.Trim(usage[min(at, len(usage)-1)], "[]…")
	if at >= len(usage) && !strings.Contains(command.ArgsUsage, "…") {
		return nil
	}
	switch kind {
	case "NAME":
		return p.imageNamesIn(ctx, repo)
	case "NAME|SOURCE":
		return append(p.imageNamesIn(ctx, repo), transportPrefixes()...)
	case "SOURCE", "DESTINATION":
		return transportPrefixes()
	case "COMMAND":
		return commandNames(app)
	case "bash|zsh|fish":
		return strings.Split(kind, "|")
	}
	return nil
}

// commandNames returns the names of the commands that help shows.
func commandNames(app *cli.App) (names []string) {
	for _, c := range app.VisibleCommands() {
		names = append(names, c.Name)
	}
	return names
}

// imageNamesIn returns the names of a repository's images, none where it is not there.
func (p *program) imageNamesIn(ctx context.Context, path string) []string {
	if path == "" {
		path = os.Getenv("OSTREE_REPO")
	}
	if path == "" {
		path = systemRepo
		if _, err := os.Stat(path); err != nil {
			if path, err = embeddedRepo(); err != nil {
				return nil
			}
		}
	}
	repo, err := normalizeRepo(path)
	if err != nil {
		return nil
	}
	refs, err := p.settings.repository(repo).refs(ctx)
	if err != nil {
		return nil
	}
	var names []string
	for spec := range refs {
		_, ref := splitSpec(spec)
		if name, ok := imageref.ImageName(ref); ok {
			names = append(names, name)
		}
	}
	return names
}

// repoOption returns the value of --repo among the words that were sorted.
func repoOption(w *wordSorter) (path string) {
	for _, options := range w.options {
		for _, o := range options {
			if value, ok := strings.CutPrefix(o, "--repo="); ok {
				path = value
			}
		}
	}
	return path
}

// transportPrefixes are how the names of images in other places begin.
func transportPrefixes() []string {
	var all []string
	for _, name := range transports.ListNames() {
		switch name {
		case "docker":
			all = append(all, "docker://")
		case "atomic", "tarball": // obsolete, and for files only
		default:
			all = append(all, name+":")
		}
	}
	return all
}

// withPrefix returns the words that begin with what was written, sorted, each behind a prefix.
func withPrefix(prefix string, words []string, written string) []string {
	var found []string
	for _, w := range words {
		if strings.HasPrefix(w, written) && !strings.ContainsAny(w, " \n") {
			found = append(found, prefix+w)
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}
