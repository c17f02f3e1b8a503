package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"

	"github.com/pkg/errors"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/shellquote"
)

// The trees that a script of steps works on, as variables that the record's script sets.
const (
	treeRoot     = "ROOT"     // the root file system that is made
	treeLayer    = "LAYER"    // the layer that is applied to it
	treeReplaced = "REPLACED" // what that layer brings and replaces itself
)

// stepScript writes down what a checkout does to a tree between the commands, as a script of the
// record. It is not safe for parallel use. A nil one takes everything and does nothing.
type stepScript struct {
	rec  *recorder
	name string
	file *os.File
	buf  *bufio.Writer
	sum  hash.Hash
	err  error

	// Files that are moved from one directory to another, one after the other, are one command.
	from, to string
	moved    []string
}

const (
	stepHeader  = "# What the program itself did to the tree $" + treeRoot + ", of files of $" + treeLayer + ".\nset -eu\n"
	pathsAtOnce = 200
)

// steps begins a script. A nil recorder returns nil.
func (rec *recorder) steps(name string) (*stepScript, error) {
	if rec == nil {
		return nil, nil
	}
	f, err := os.OpenFile(filepath.Join(rec.dir, recordBlobs, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return nil, errors.Wrap(err, "writing the record")
	}
	s := &stepScript{rec: rec, name: name, file: f, sum: sha256.New()}
	s.buf = bufio.NewWriter(io.MultiWriter(f, s.sum))
	s.print(stepHeader + shellquote.Prelude + "\n")
	return s, nil
}

func (s *stepScript) print(text string) {
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
func (s *stepScript) run(real string, words ...string) {
	if s == nil {
		return
	}
	s.flush()
	s.print(shellquote.Words(words...) + " " + inTree(treeRoot, real) + "\n")
}

// move writes that a file of another tree comes into the root.
func (s *stepScript) move(tree, source, real string) {
	if s == nil {
		return
	}
	from, name := splitPath(source)
	to, base := splitPath(real)
	if tree != treeLayer || name != base {
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
func (s *stepScript) link(target, real string) {
	if s == nil {
		return
	}
	s.flush()
	s.print("ln -f " + inTree(treeRoot, target) + " " + inTree(treeRoot, real) + "\n")
}

// touch writes the modification time of things in the root.
func (s *stepScript) touch(at fileTime, paths []string) {
	s.flush()
	s.print("touch -h -d @" + timeText(at))
	for _, real := range paths {
		s.print(" " + inTree(treeRoot, real))
	}
	s.print("\n")
}

// describe writes what a directory is given. Of the attributes, all are set anew.
func (s *stepScript) describe(real string, m dirMeta, old []string) {
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
func (s *stepScript) flush() {
	if len(s.moved) == 0 {
		return
	}
	// mv moves no file over another name of itself, which rename(2) takes for done.
	s.print("rm -f")
	for _, name := range s.moved {
		s.print(" " + inTree(treeRoot, joinPath(s.to, name)))
	}
	s.print("\nmv -f")
	for _, name := range s.moved {
		s.print(" " + inTree(treeLayer, joinPath(s.from, name)))
	}
	s.print(" " + inTree(treeRoot, s.to) + "/\n")
	s.moved = s.moved[:0]
}

// end ends the script and tells the record what it comes to.
func (s *stepScript) end() error {
	if s == nil {
		return nil
	}
	s.flush()
	err := s.err
	if ferr := s.buf.Flush(); err == nil {
		err = ferr
	}
	errdefs.Close(&err, s.file)
	s.rec.mu.Lock()
	defer s.rec.mu.Unlock()
	s.rec.write(s.rec.sums, fmt.Sprintf("%x  %s/%s\n", s.sum.Sum(nil), recordBlobs, s.name))
	return errors.WithMessage(err, "writing the record")
}
