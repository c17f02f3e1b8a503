package rootfs

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/pkg/errors"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/shellquote"
)

// The trees that a script of steps works on, as variables that the record's script sets.
const (
	treeRoot     = "ROOT"     // the root file system that is made
	LayerTree    = "LAYER"    // the layer that is applied to it
	ReplacedTree = "REPLACED" // what that layer brings and replaces itself
)

// Script writes down what a checkout does to a tree between the commands, as a script of the
// record. It is not safe for parallel use. A nil one takes everything and does nothing.
type Script struct {
	file  *os.File
	ended func(sum string)
	buf   *bufio.Writer
	sum   hash.Hash
	err   error

	// Files that are moved from one directory to another, one after the other, are one command.
	from, to string
	moved    []string
}

const (
	stepHeader  = "# What the program itself did to the tree $" + treeRoot + ", of files of $" + LayerTree + ".\nset -eu\n"
	pathsAtOnce = 200
)

// NewScript begins a script in a file. ended learns of its SHA-256 when it has ended.
func NewScript(file *os.File, ended func(sum string)) *Script {
	s := &Script{file: file, ended: ended, sum: sha256.New()}
	s.buf = bufio.NewWriter(io.MultiWriter(file, s.sum))
	s.print(stepHeader + shellquote.Prelude + "\n")
	return s
}

func (s *Script) print(text string) {
	if _, err := s.buf.WriteString(text); err != nil && s.err == nil {
		s.err = err
	}
}

// inTree names a path within a tree for the shell.
func inTree(tree, real string) string {
	if real == "" {
		return `"$` + tree + `"`
	}
	return `"$` + tree + `"/` + shellquote.Word(real)
}

// run writes a command whose last argument is a path of the root.
func (s *Script) run(real string, words ...string) {
	if s == nil {
		return
	}
	s.flush()
	s.print(shellquote.Words(words...) + " " + inTree(treeRoot, real) + "\n")
}

// move writes that a file of another tree comes into the root.
func (s *Script) move(tree, source, real string) {
	if s == nil {
		return
	}
	from, name := SplitPath(source)
	to, base := SplitPath(real)
	if tree != LayerTree || name != base {
		s.run(real, "rm", "-f")
		s.print("mv " + inTree(tree, source) + " " + inTree(treeRoot, real) + "\n")
		return
	}
	if from != s.from || to != s.to || len(s.moved) >= pathsAtOnce {
		s.flush()
	}
	s.from, s.to = from, to
	s.moved = append(s.moved, name)
}

// link writes a hard link within the root.
func (s *Script) link(target, real string) {
	if s == nil {
		return
	}
	s.flush()
	s.print("ln -f " + inTree(treeRoot, target) + " " + inTree(treeRoot, real) + "\n")
}

// touch writes the modification time of things in the root.
func (s *Script) touch(at Time, paths []string) {
	s.flush()
	s.print("touch -h -d @" + timeText(at))
	for _, real := range paths {
		s.print(" " + inTree(treeRoot, real))
	}
	s.print("\n")
}

// describe writes what a directory is given. Of the attributes, all are set anew.
func (s *Script) describe(real string, m Meta, old []string) {
	if s == nil {
		return
	}
	if os.Geteuid() == 0 {
		s.run(real, "chown", fmt.Sprintf("%d:%d", m.uid, m.gid))
	}
	for _, name := range old {
		if _, stays := m.xattrs[name]; !stays {
			s.run(real, "setfattr", "-x", name)
		}
	}
	for name, value := range m.xattrs {
		s.run(real, "setfattr", "-n", name, "-v", "0x"+hex.EncodeToString([]byte(value)))
	}
	s.run(real, "chmod", fmt.Sprintf("%04o", m.mode))
}

// flush writes the moves that were gathered.
func (s *Script) flush() {
	if len(s.moved) == 0 {
		return
	}
	// mv moves no file over another name of itself, which rename(2) takes for done.
	s.print("rm -f")
	for _, name := range s.moved {
		s.print(" " + inTree(treeRoot, JoinPath(s.to, name)))
	}
	s.print("\nmv -f")
	for _, name := range s.moved {
		s.print(" " + inTree(LayerTree, JoinPath(s.from, name)))
	}
	s.print(" " + inTree(treeRoot, s.to) + "/\n")
	s.moved = s.moved[:0]
}

// End ends the script and says what it comes to.
func (s *Script) End() error {
	if s == nil {
		return nil
	}
	s.flush()
	err := s.err
	if ferr := s.buf.Flush(); err == nil {
		err = ferr
	}
	errdefs.Close(&err, s.file)
	s.ended(hex.EncodeToString(s.sum.Sum(nil)))
	return errors.WithMessage(err, "writing the record")
}
