package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pkg/errors"
	"github.com/urfave/cli/v2"
)

// manCommand writes the man pages. It is hidden, since packages and "make man" are for that.
func (p *program) manCommand() *cli.Command {
	return &cli.Command{
		Name: "man", Hidden: true, Usage: "write the man pages into DIR", ArgsUsage: "DIR",
		Before: wantArgs(1, 1), Action: func(c *cli.Context) error {
			dir := c.Args().First()
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return errors.WithStack(err)
			}
			for name, text := range manPages(c.App) {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
					return errors.WithStack(err)
				}
			}
			return nil
		},
	}
}

// manPages returns a man page for the program and for each command, by file name, in roff (man(7)).
// They say what --help says.
func manPages(app *cli.App) map[string]string {
	commands := app.VisibleCommands()
	pages := map[string]string{app.Name + ".1": programPage(app, commands)}
	for _, c := range commands {
		pages[app.Name+"-"+c.Name+".1"] = commandPage(app, c)
	}
	return pages
}

// exitStatuses are those of the README.
var exitStatuses = [][2]string{
	{"0", "done"},
	{"1", "failed"},
	{"2", "wrong usage"},
	{"3", "no such image or repository"},
	{"4", "a digest, signature or repository check failed"},
	{"130, 143", "interrupted; nothing is left behind"},
}

func programPage(app *cli.App, commands []*cli.Command) string {
	m := newManPage(app.Name, app.Name, app.Usage)
	m.line(".B %s", roff(app.Name))
	m.line("[\\fIglobal options\\fR] \\fICOMMAND\\fR [\\fIoptions\\fR] [\\fIarguments\\fR]")
	m.section("DESCRIPTION")
	m.text("Options stand anywhere, before or behind the command and its arguments. \"--\" ends them. " +
		"Of an option that is given twice the later one counts.")
	m.section("COMMANDS")
	for _, c := range commands {
		m.item("\\fB"+roff(app.Name+"-"+c.Name)+"\\fR(1)", c.Usage)
	}
	m.section("GLOBAL OPTIONS")
	m.options(append(slices.Clip(app.Flags), cli.VersionFlag))
	m.section("EXIT STATUS")
	for _, s := range exitStatuses {
		m.item(roff(s[0]), s[1])
	}
	m.seeAlso(
		"ostree(1)",
		"skopeo(1)",
		"containers-policy.json(5)",
		"containers-registries.conf(5)",
		"containers-transports(5)",
	)
	return m.String()
}

func commandPage(app *cli.App, c *cli.Command) string {
	m := newManPage(app.Name+"-"+c.Name, app.Name+"-"+c.Name, c.Usage)
	m.line(".B %s", roff(app.Name+" "+c.Name))
	m.line("[\\fIoptions\\fR] %s", roff(c.ArgsUsage))
	examples, more, _ := strings.Cut(c.Description, "\n\n")
	m.section("DESCRIPTION")
	m.text(strings.ToUpper(c.Usage[:1]) + c.Usage[1:] + ".")
	if more != "" {
		m.line(".PP")
		m.text(strings.ReplaceAll(more, "\n", " "))
	}
	if len(c.Aliases) > 0 {
		m.line(".PP")
		m.text("It is also called " + strings.Join(c.Aliases, ", ") + ".")
	}
	var categories []string
	for _, f := range c.Flags {
		if g, ok := f.(cli.CategorizableFlag); ok && !slices.Contains(categories, g.GetCategory()) {
			categories = append(categories, g.GetCategory())
		}
	}
	slices.Sort(categories)
	for _, category := range categories {
		m.section(strings.TrimSpace(strings.ToUpper(category) + " OPTIONS"))
		m.options(slices.DeleteFunc(slices.Clone(c.Flags), func(f cli.Flag) bool {
			g, ok := f.(cli.CategorizableFlag)
			return !ok || g.GetCategory() != category
		}))
	}
	m.section("EXAMPLES")
	m.line(".EX")
	for e := range strings.SplitSeq(examples, "\n") {
		m.line("%s", roff(e))
	}
	m.line(".EE")
	m.seeAlso(app.Name + "(1)")
	return m.String()
}

// manPage is a man page that is being written.
type manPage struct{ strings.Builder }

func newManPage(title, name, what string) *manPage {
	m := &manPage{}
	m.line(".TH %s 1 \"\" \"ostree-image %s\" \"User Commands\"", roff(strings.ToUpper(title)), version)
	m.section("NAME")
	m.line("%s \\- %s", roff(name), roff(what))
	m.section("SYNOPSIS")
	return m
}

func (m *manPage) line(format string, args ...any) { _, _ = fmt.Fprintf(m, format+"\n", args...) }

func (m *manPage) section(title string) { m.line(".SH %s", title) }

func (m *manPage) text(text string) { m.line("%s", roff(text)) }

// item is a paragraph with a term, which is roff already.
func (m *manPage) item(term, text string) {
	m.line(".TP\n%s", term)
	m.text(text)
}

func (m *manPage) options(flags []cli.Flag) {
	for _, f := range flags {
		g, ok := f.(cli.DocGenerationFlag)
		if !ok {
			continue
		}
		usage, value := g.GetUsage(), ""
		if before, rest, found := strings.Cut(usage, "`"); found {
			value, usage, _ = strings.Cut(rest, "`")
			usage = before + value + usage
		}
		var names []string
		for _, n := range f.Names() {
			if len(n) == 1 {
				names = append(names, "\\fB\\-"+roff(n)+"\\fR")
			} else {
				names = append(names, "\\fB\\-\\-"+roff(n)+"\\fR")
			}
		}
		term := strings.Join(names, ", ")
		if value != "" {
			term += " \\fI" + roff(value) + "\\fR"
		}
		if d := g.GetDefaultText(); d != "" && (g.TakesValue() || d == "true") {
			usage += " (default: " + d + ")"
		}
		if vars := g.GetEnvVars(); len(vars) > 0 {
			usage += " [$" + strings.Join(vars, ", $") + "]"
		}
		m.item(term, usage)
	}
}

func (m *manPage) seeAlso(pages ...string) {
	m.section("SEE ALSO")
	for i, p := range pages {
		name, section, _ := strings.Cut(p, "(")
		comma := ","
		if i == len(pages)-1 {
			comma = ""
		}
		m.line(".BR %s (%s%s", roff(name), section, comma)
	}
}

// roff escapes text for the middle of a line, and a line that begins like a request.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "…", "...").Replace(text)
	if strings.HasPrefix(text, ".") {
		text = `\&` + text
	}
	return text
}
