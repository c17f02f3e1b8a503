package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"syscall"

	"github.com/pkg/errors"

	"ostree-image/internal/ostree"
	"ostree-image/internal/proc"
	"ostree-image/internal/spool"
	"ostree-image/internal/workdir"
)

// layerWriter takes a normalized tar stream. One of finish and abort is called, once.
type layerWriter interface {
	io.Writer
	Finish() (tree layerTree, err error)
	// abort ends the engine. The error is how that ended, and says something only where it had
	// ended before.
	abort() error
}

func (st *staging) startEngine(
	ctx context.Context,
	b *spool.Blob,
	input string,
	extractable *extractableWriter,
) (layerWriter, error) {
	if st.engine == engineStream {
		alone := extractable != nil
		held := &spool.Buffered{}
		// In this mode alone ostree would write each file again to make a commit with the layer's
		// metadata of one without.
		if st.mode == ostree.BareUserOnly && alone {
			held.Dir = st.work.Path // which has room for the files, too
		}
		large := b.Want.Size > surelyLarge && held.Dir == ""
		return &streamEngine{
			alone: alone,
			large: large,
			input: input,
			held:  held,
			start: func() (*streamCommit, error) {
				if err := st.ready(ctx); err != nil {
					return nil, err
				}
				return st.repo.commitStream(
					ctx,
					ostree.CommitOptions{Why: "commit the files of layer " + b.Name()},
					input,
				)
			},
		}, nil
	}
	dir := st.treeDir(b)
	st.settings.journal.step("a directory for the files of layer "+b.Name(), "mkdir", dir)
	if err := workdir.MakeApart(dir); err != nil {
		return nil, err
	}
	if err := ownDir(dir); err != nil {
		return nil, err
	}
	p, stdin, err := untar(ctx, st.settings.runner, dir, input, "extract layer "+b.Name())
	if err != nil {
		return nil, err
	}
	return &tarEngine{st: st, dir: dir, process: p, stdin: stdin, extractable: extractable}, nil
}

// streamEngine pipes a normalized tar stream into ostree commit, once it is more than can be held.
type streamEngine struct {
	alone  bool // the stream is all of the layer
	large  bool // it will be more than a small one
	input  string
	start  func() (*streamCommit, error)
	held   *spool.Buffered // the stream so far, where commit is nil
	commit *streamCommit   // nil while the stream is held
}

func (e *streamEngine) Write(b []byte) (int, error) {
	if e.commit == nil {
		if !e.large && e.held.Fits(len(b)) {
			return e.held.Write(b)
		}
		if err := e.begin(); err != nil {
			return 0, err
		}
		if err := e.held.Close(); err != nil {
			return 0, err
		}
	}
	return e.commit.Write(b)
}

// begin starts ostree and gives it what came so far.
func (e *streamEngine) begin() (err error) {
	if e.commit, err = e.start(); err == nil {
		err = e.held.CopyTo(e.commit)
	}
	return err
}

func (e *streamEngine) Finish() (tree layerTree, err error) {
	if e.commit == nil && e.alone {
		return layerTree{stream: e.held, input: e.input}, nil
	}
	if e.commit == nil {
		err = e.begin()
	}
	if err != nil {
		if e.commit != nil { // what is held may be read again
			if aborted := e.abort(); errors.Is(err, syscall.EPIPE) { // it had ended by itself
				err = aborted
			}
		}
		return tree, err
	}
	sum, err := e.commit.Finish()
	if err != nil {
		return tree, err
	}
	return layerTree{args: []string{"--tree=ref=" + sum}, commit: sum}, nil
}

func (e *streamEngine) abort() error {
	if e.commit == nil {
		return e.held.Close()
	}
	return e.commit.abort()
}

type tarEngine struct {
	st          *staging
	dir         string
	process     *proc.Process
	stdin       *proc.Pipe
	extractable *extractableWriter
}

func (e *tarEngine) Write(b []byte) (int, error) { return e.stdin.Write(b) }

func (e *tarEngine) abort() error {
	s := streamCommit{process: e.process, stdin: e.stdin}
	return s.abort()
}

// wait ends the stream, and waits for tar to extract all of it.
func (e *tarEngine) wait() error {
	cerr := e.stdin.Close()
	if err := e.process.Wait(); err != nil {
		return err
	}
	if cerr != nil {
		return errors.WithStack(cerr)
	}
	if strings.Contains(e.process.Stderr.String(), tarLostAttribute) {
		return e.process.Failed("the files cannot have all attributes here")
	}
	return nil
}

// finish waits for tar, makes what it extracted readable for ostree, and says how to commit it with
// the modes that the layer has.
func (e *tarEngine) Finish() (tree layerTree, err error) {
	if err := e.wait(); err != nil {
		return tree, err
	}
	j, perms := e.st.settings.journal, e.st.perms
	handing, err := e.extractable.handDown(e.dir)
	if err != nil {
		return tree, errors.WithMessage(err, "giving directories their set-group-ID bit")
	}
	for _, name := range handing {
		j.step("the bit that it has in the layer", "chmod", "g+s", e.dir+"/"+name)
	}
	overrides, err := perms.fixTree(e.dir)
	if err != nil {
		return tree, errors.WithMessage(err, "making the extracted files readable")
	}
	overrides = append(overrides, e.extractable.overrides()...)
	options := ostree.TreeOptions{
		Owner:   perms.uid != 0 && !perms.asOwn,
		Consume: e.st.mode == ostree.Bare,
	}
	if perms.uid != 0 {
		j.shell("make the extracted files readable", fmt.Sprintf(
			`find %[1]s -type d ! -perm -0700 -exec chmod u+rwx {} \; ; find %[1]s -type f ! -perm -0400 -exec chmod u+r {} \;`,
			j.path(e.dir),
		))
	}
	if len(overrides) > 0 {
		options.StatOverride = e.dir + ".modes"
		if err := e.st.settings.journal.writeFile(
			options.StatOverride,
			[]byte(strings.Join(overrides, "\n")+"\n"),
			"the modes that they have in the layer",
		); err != nil {
			return tree, err
		}
	}
	return layerTree{args: ostree.TreeArgs(e.dir, options)}, nil
}
