package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"github.com/xrash/smetrics"

	"ostree-image/internal/errdefs"
)

// sortArgs puts the words of a command line in the order that the flag library reads: the program's
// name, global options, the command, its options, "--", and the operands. It takes options in any
// place, short ones combined, and global ones behind the command, too; "--" ends them. Of an option
// that is given twice the later one counts.
func sortArgs(app *cli.App, args []string) ([]string, error) {
	if len(args) == 0 {
		return args, nil
	}
	words, command := readWords(app, args[1:])
	if len(words.operands) == 0 {
		return append(args[:1:1], words.options[0]...), words.unknown("")
	}
	if command == nil {
		return nil, unknownCommand(app, words.operands[0])
	}
	if err := words.unknown(command.Name); err != nil {
		return nil, err
	}
	sorted := append(args[:1:1], words.options[1]...)
	sorted = append(append(sorted, command.Name), words.options[0]...)
	return append(append(sorted, "--"), words.operands[1:]...), nil
}

// readWords sorts the words behind the program's name, by the options of the command that they
// name, and then the global ones. Where they name none, command is nil.
func readWords(app *cli.App, args []string) (words *wordSorter, command *cli.Command) {
	// The command says which options there are, and an option says whether the next word is its
	// value.
	global := append(slices.Clip(app.Flags), cli.VersionFlag)
	words = &wordSorter{flags: [][]cli.Flag{global}}
	for _, c := range app.Commands {
		words.flags = append(words.flags, c.Flags)
	}
	words.sort(args)
	if len(words.operands) > 0 {
		command = app.Command(words.operands[0])
	}
	if command != nil {
		words = &wordSorter{flags: [][]cli.Flag{command.Flags, global}}
		words.sort(args)
	}
	return words, command
}

// wordSorter parts options from operands.
type wordSorter struct {
	flags    [][]cli.Flag // that there are; the first list that has one counts
	options  [][]string   // the words of the options of each list
	operands []string
	strange  []string // options that no list has
}

func (w *wordSorter) sort(args []string) {
	w.options = make([][]string, len(w.flags))
	for i := 0; i < len(args); i++ {
		word := args[i]
		if word == "--" {
			w.operands = append(w.operands, args[i+1:]...)
			return
		}
		if len(word) < 2 || word[0] != '-' {
			w.operands = append(w.operands, word)
			continue
		}
		if w.option(word, args[i+1:]) {
			i++
		}
	}
}

// option takes a word that begins with "-". It tells whether the next one is its value.
func (w *wordSorter) option(word string, next []string) (tookNext bool) {
	name, value, hasValue := strings.Cut(strings.TrimPrefix(word[1:], "-"), "=")
	if list, flag := w.find(name); list >= 0 {
		if hasValue {
			w.add(list, flag, &value)
			return false
		}
		return w.addNext(list, flag, next)
	}
	if strings.HasPrefix(word, "--") || !w.areShort(word[1:]) {
		w.strange = append(w.strange, word)
		return false
	}
	return w.short(word[1:], next)
}

// areShort tells whether letters are short options, such as qa, of which the last may have its value
// behind it, such as fjson.
func (w *wordSorter) areShort(letters string) bool {
	for i := range len(letters) {
		list, flag := w.find(letters[i : i+1])
		if list < 0 || takesValue(flag) {
			return list >= 0
		}
	}
	return true
}

// short takes what areShort has seen. It tells whether the next word is a value.
func (w *wordSorter) short(letters string, next []string) (tookNext bool) {
	for i := range len(letters) {
		list, flag := w.find(letters[i : i+1])
		if rest := letters[i+1:]; rest != "" && takesValue(flag) {
			value := strings.TrimPrefix(rest, "=")
			w.add(list, flag, &value)
			return false
		}
		tookNext = w.addNext(list, flag, next)
	}
	return tookNext
}

// addNext adds an option, whose value is the next word where it has one. Where that is missing, the
// library says so.
func (w *wordSorter) addNext(list int, flag cli.Flag, next []string) (tookNext bool) {
	if !takesValue(flag) || len(next) == 0 {
		w.add(list, flag, nil)
		return false
	}
	w.add(list, flag, &next[0])
	return true
}

// find returns the list that has an option, -1 for none.
func (w *wordSorter) find(name string) (list int, flag cli.Flag) {
	if slices.Contains(cli.HelpFlag.Names(), name) { // the command's own, where there is one
		return 0, cli.HelpFlag
	}
	for i, flags := range w.flags {
		for _, f := range flags {
			if slices.Contains(f.Names(), name) {
				return i, f
			}
		}
	}
	return -1, nil
}

// add puts an option under its first name, since the library takes only one of them.
func (w *wordSorter) add(list int, flag cli.Flag, value *string) {
	word := "--" + flag.Names()[0]
	if value != nil {
		word += "=" + *value
	}
	w.options[list] = append(w.options[list], word)
}

// takesValue tells whether an option has a value, which may be the next word.
func takesValue(flag cli.Flag) bool {
	f, ok := flag.(cli.DocGenerationFlag)
	return ok && f.TakesValue()
}

// unknown is the error of the first option that no list has.
func (w *wordSorter) unknown(command string) error {
	if len(w.strange) == 0 {
		return nil
	}
	option, _, _ := strings.Cut(w.strange[0], "=")
	help := "ostree-image --help"
	if command != "" {
		help = "ostree-image " + command + " --help"
	}
	return errdefs.Usagef("unknown option %s%s; see %s", option, didYouMean(option, optionNames(w.flags)), help)
}

// optionNames returns the long names of options.
func optionNames(lists [][]cli.Flag) (names []string) {
	for _, flags := range lists {
		for _, f := range flags {
			for _, n := range f.Names() {
				if len(n) > 1 {
					names = append(names, "--"+n)
				}
			}
		}
	}
	return names
}

func unknownCommand(app *cli.App, name string) error {
	var names []string
	for _, c := range app.Commands {
		names = append(names, c.Names()...)
	}
	return errdefs.Usagef("unknown command %q%s; see ostree-image --help", name, didYouMean(name, names))
}

// didYouMean proposes the name that is nearest to what was written, if one is near.
func didYouMean(written string, names []string) string {
	const near = 0.85 // by Jaro and Winkler, where 1 is the same
	best, nearest := near, ""
	for _, n := range names {
		if d := smetrics.JaroWinkler(strings.TrimLeft(written, "-"), strings.TrimLeft(n, "-"), 0.7, 4); d >= best {
			best, nearest = d, n
		}
	}
	if nearest == "" {
		return ""
	}
	return "; did you mean " + nearest + "?"
}
