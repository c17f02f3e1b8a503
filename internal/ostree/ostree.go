// Package ostree has what ostree prints and takes, as values: commits, versions, and the arguments
// of its verbs.
package ostree

import (
	"encoding/hex"
	"fmt"
	"iter"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/pkg/errors"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/gvariant"
)

// The modes of a repository (ostree(1), ostree-init).
const (
	Bare         = "bare"
	BareUser     = "bare-user"
	BareUserOnly = "bare-user-only"
	Archive      = "archive"
)

// ParseMode returns a mode as it stands in a repository's configuration, where that of an old
// archive has another name. Any other than the four is an error.
func ParseMode(text string) (string, error) {
	if text == "archive-z2" {
		return Archive, nil
	}
	if !slices.Contains([]string{Bare, BareUser, BareUserOnly, Archive}, text) {
		return "", errors.Errorf("unknown mode %q", text)
	}
	return text, nil
}

// KeyRefBinding is the key under which ostree itself notes for which refs a commit was made. Its
// value is a list of strings.
const KeyRefBinding = "ostree.ref-binding"

// Commit is what a commit object says.
type Commit struct {
	Checksum  string
	Metadata  map[string]string // its metadata of type string
	Bindings  []string          // the refs that it was made for
	Timestamp uint64            // seconds since 1970
	Root      string            // checksum of the root's dirtree
	RootMeta  string            // checksum of the root's dirmeta
}

// CheckBinding refuses a commit that was made for other refs. An old one names none.
func (c Commit) CheckBinding(ref string) error {
	if len(c.Bindings) == 0 || slices.Contains(c.Bindings, ref) {
		return nil
	}
	return errdefs.Checkf("commit %s was made for the refs %q, and not for %s", c.Checksum, c.Bindings, ref)
}

// Features is what an ostree program says of itself.
type Features struct {
	Version  string
	Features []string
}

// Has tells whether the program lists a feature.
func (f Features) Has(feature string) bool { return slices.Contains(f.Features, feature) }

var ostreeVersionLine = regexp.MustCompile(`^ *Version: *'([0-9][0-9.]*)[^']*'$`)

// ParseVersion reads what "ostree --version" prints.
func ParseVersion(text string) (Features, error) {
	var f Features
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if m := ostreeVersionLine.FindStringSubmatch(line); m != nil {
			f.Version = m[1]
		}
		if feature, ok := strings.CutPrefix(strings.TrimSpace(line), "- "); ok {
			f.Features = append(f.Features, feature)
		}
	}
	if f.Version == "" {
		return f, errors.Errorf("it answers %.80q, which is not what ostree says", text)
	}
	return f, nil
}

// CompareVersions compares dotted numbers, as strings.Compare does strings.
func CompareVersions(a, b string) int {
	as, bs := strings.Split(a, "."), strings.Split(b, ".")
	for i := range max(len(as), len(bs)) {
		an, bn := 0, 0
		if i < len(as) {
			an, _ = strconv.Atoi(as[i])
		}
		if i < len(bs) {
			bn, _ = strconv.Atoi(bs[i])
		}
		if an != bn {
			return an - bn
		}
	}
	return 0
}

// mayNotReadLine is how ostree ends what it says of a file or directory that this user may not
// open.
var mayNotReadLine = regexp.MustCompile(`(?m)(?:open|openat|opendir)(?:\(.*\))?: Permission denied$`)

// MayNotRead tells whether ostree says that this user may not open a file or directory.
func MayNotRead(text string) bool { return mayNotReadLine.MatchString(text) }

// Lines returns the lines of text.
func Lines(text []byte) map[string]bool {
	lines := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		lines[strings.TrimSuffix(line, "\n")] = true
	}
	return lines
}

// ParseCommit reads what "ostree show --raw" prints: a line "commit CHECKSUM" and the commit
// object, whose type is (a{sv}aya(say)sstayay): metadata, parent, related, subject, body,
// timestamp, root dirtree, root dirmeta.
func ParseCommit(text string) (Commit, error) {
	head, body, _ := strings.Cut(text, "\n")
	checksum, ok := strings.CutPrefix(head, "commit ")
	if !ok || !ChecksumPattern.MatchString(checksum) {
		return Commit{}, errors.Errorf("not a commit: %.40q", head)
	}
	body, _, _ = strings.Cut(
		body,
		"\nFound ",
	) // what ostree says of the commit's GPG signatures; the object is one line
	v, err := gvariant.Parse(strings.TrimRight(body, "\n"))
	if err != nil {
		return Commit{}, err
	}
	fields, ok := v.([]any)
	if !ok || len(fields) != 8 {
		return Commit{}, errors.New("not a commit object")
	}
	metadata, ok1 := fields[0].(map[string]any)
	timestamp, ok2 := fields[5].(uint64)
	root, ok3 := fields[6].([]byte)
	meta, ok4 := fields[7].([]byte)
	if !ok1 || !ok2 || !ok3 || !ok4 {
		return Commit{}, errors.New("not a commit object")
	}
	info := Commit{
		Checksum:  checksum,
		Metadata:  map[string]string{},
		Timestamp: timestamp,
		Root:      hex.EncodeToString(root),
		RootMeta:  hex.EncodeToString(meta),
	}
	for k, v := range metadata {
		switch v := v.(type) {
		case string:
			info.Metadata[k] = v
		case []any:
			for _, ref := range v {
				if ref, ok := ref.(string); ok && k == KeyRefBinding {
					info.Bindings = append(info.Bindings, ref)
				}
			}
		}
	}
	return info, nil
}

// ChecksumPattern is what the checksum of an object looks like.
var ChecksumPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

// ConfigLines reads a key file of GLib: groups in brackets, and lines KEY=VALUE.
func ConfigLines(text string, wanted map[string][]string) (string, error) {
	var found strings.Builder
	group, last := "", ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if name, ok := strings.CutPrefix(line, "["); ok {
			if group, ok = strings.CutSuffix(name, "]"); !ok {
				return "", errors.Errorf("%.80q begins no group", line)
			}
			continue
		}
		key, _, ok := strings.Cut(line, "=")
		if !ok || group == "" {
			return "", errors.Errorf("%.80q sets no key of a group", line)
		}
		if !slices.Contains(wanted[group], strings.TrimSpace(key)) {
			continue
		}
		if group != last {
			fmt.Fprintf(&found, "[%s]\n", group)
			last = group
		}
		found.WriteString(line + "\n")
	}
	return found.String(), nil
}

// CatArgs has a slash before each path: ostree takes none for a path below the root, "./x" is
// refused.
func CatArgs(rev string, paths []string) []string {
	args := make([]string, 0, len(paths)+1)
	args = append(args, rev)
	for _, p := range paths {
		args = append(args, "/"+strings.TrimPrefix(p, "/"))
	}
	return args
}

// CommitOptions are the parts of a commit beside its tree.
type CommitOptions struct {
	Branch    string // "" for a commit without a ref
	Metadata  []Metadata
	Timestamp int64 // seconds since 1970
	Why       string
}

// Metadata is a string of a commit's metadata.
type Metadata struct{ Key, Value string }

// Arg is the argument that sets m.
func (m Metadata) Arg() string { return "--add-metadata-string=" + m.Key + "=" + m.Value }

// MaxArgument is how long one argument of a program may be, its NUL not counted (MAX_ARG_STRLEN of
// execve(2)).
const MaxArgument = 128<<10 - 1

// Fits tells whether m can be given to ostree: it must fit into one argument, be UTF-8 and hold no
// NUL.
func (m Metadata) Fits() bool {
	return len(m.Arg()) <= MaxArgument && gvariant.IsText(m.Value)
}

// CommitArgs are the arguments of every commit that the program makes. Each is there for the same
// checksum every time: without
// --parent=none a branch's last commit becomes the parent, without a timestamp it is the time of day, and "@" is needed since
// ostree takes a bare small number for an hour of today. A staging repository needs no fsync: what
// is published from it is synced then.
func CommitArgs(o CommitOptions) []string {
	args := []string{"--parent=none", "--timestamp=@" + strconv.FormatInt(o.Timestamp, 10), "--fsync=false"}
	if o.Branch == "" {
		args = append(args, "--orphan")
	} else {
		args = append(args, "--branch="+o.Branch)
	}
	for _, m := range o.Metadata {
		args = append(args, m.Arg())
	}
	return args
}

// TreeOptions say how a directory becomes a commit's tree.
type TreeOptions struct {
	Owner        bool   // everything belongs to 0:0
	StatOverride string // a file of modes, see ostree-commit(1); "" for none
	Consume      bool   // the files may be moved away
	NoXattrs     bool
}

// TreeArgs commit the directory dir.
func TreeArgs(dir string, o TreeOptions) []string {
	args := []string{"--tree=dir=" + dir}
	if o.Owner {
		args = append(args, "--owner-uid=0", "--owner-gid=0")
	}
	if o.NoXattrs {
		args = append(args, "--no-xattrs")
	}
	if o.StatOverride != "" {
		args = append(args, "--statoverride="+o.StatOverride)
	}
	if o.Consume {
		args = append(args, "--consume")
	}
	return args
}

// ParseChecksum reads what "ostree commit" prints.
func ParseChecksum(out []byte) (string, error) {
	sum := strings.TrimSuffix(string(out), "\n")
	if !ChecksumPattern.MatchString(sum) {
		return "", errors.Errorf("ostree commit: %.80q is no checksum", out)
	}
	return sum, nil
}

// maxArguments is how many bytes of refs or paths one process gets: with the environment, of which
// each variable may be as long as the longest argument, well below the 2 MB that execve(2) takes.
const maxArguments = 512 << 10

// Chunks parts arguments into lists that one process takes each.
func Chunks(args []string) iter.Seq[[]string] {
	return func(yield func([]string) bool) {
		begin, bytes := 0, 0
		for i, arg := range args {
			size := len(arg) + 1 + 8 // its NUL, and a pointer to it
			if bytes += size; bytes > maxArguments && i > begin {
				if !yield(args[begin:i:i]) {
					return
				}
				begin, bytes = i, size
			}
		}
		if begin < len(args) {
			yield(args[begin:])
		}
	}
}

// CheckoutArgs are the arguments of a checkout of a commit into a directory.
func CheckoutArgs(rev, dir string, o CheckoutOptions) []string {
	var args []string
	if o.UserMode {
		args = append(args, "--user-mode")
	}
	if o.RequireHardlinks {
		args = append(args, "--require-hardlinks")
	} else {
		args = append(args, "--force-copy")
	}
	if o.Subpath != "" {
		args = append(args, "--subpath=/"+o.Subpath)
	}
	if o.SkipList != "" {
		args = append(args, "--skip-list="+o.SkipList)
	}
	return append(args, rev, dir)
}

// CheckoutOptions are the options of checkout, as ostree has them.
type CheckoutOptions struct {
	UserMode         bool // no owners and no attributes
	RequireHardlinks bool // the repository's own files; fail rather than copy one
	ForceCopy        bool // copy each file, as is done anyway

	Subpath  string // the directory to check out, "" for the whole tree
	SkipList string // a file that names what to leave out, "" for none
}
