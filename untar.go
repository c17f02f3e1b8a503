package main

import (
	"archive/tar"
	"context"
	"io"
	"os"
	"path"
	"regexp"
	"strings"
	"syscall"

	"github.com/pkg/errors"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/layer"
	"ostree-image/internal/normalize"
	"ostree-image/internal/ostree"
	"ostree-image/internal/proc"
	"ostree-image/internal/rootfs"
	"ostree-image/internal/tarstream"
	"ostree-image/internal/ui"
)

// oldestTar is the oldest GNU tar with --xattrs-include.
const oldestTar = "1.27"

// tarLostAttribute is a part of what tar says of an attribute that it could not set, with exit
// status 0.
const tarLostAttribute = " extended attribute for file "

var tarVersionLine = regexp.MustCompile(`^tar \(GNU tar\) ([0-9][0-9.]*)`)

// tarVersion asks tar for its version. One that is not GNU tar, or too old, is a *missingToolError.
func tarVersion(ctx context.Context, r *runner) (string, error) {
	out, err := r.Output(
		ctx,
		proc.Command{Tool: proc.Tar, Args: []string{"--version"}, Why: "which tar this is", Read: true},
	)
	if err != nil {
		return "", err
	}
	m := tarVersionLine.FindSubmatch(out)
	if m == nil {
		return "", &errdefs.MissingToolError{Tool: r.Programs[proc.Tar], Why: "not GNU tar: " + proc.Packages[proc.Tar]}
	}
	version := string(m[1])
	if ostree.CompareVersions(version, oldestTar) < 0 {
		return version, &errdefs.MissingToolError{
			Tool: r.Programs[proc.Tar],
			Why:  "version " + version + " is too old: " + proc.Packages[proc.Tar],
		}
	}
	return version, nil
}

// untarArgs extract a normalized tar stream into dir with all that a commit keeps. -m leaves the
// times alone, which no commit holds; nothing looks up the names of users. The unknown keyword is
// hdrcharset, which libarchive needs and tar does not.
func untarArgs(dir string, asRoot bool) []string {
	args := []string{
		"-x",
		"-p",
		"-m",
		"-f",
		"-",
		"--numeric-owner",
		"--warning=no-unknown-keyword",
		"--directory=" + dir,
	}
	if asRoot {
		return append(args, "--same-owner", "--xattrs", "--xattrs-include=user.*", "--xattrs-include="+rootfs.Capability)
	}
	return append(args, "--no-same-owner", "--xattrs", "--xattrs-include=user.*")
}

// The most that the archive of a record may have.
const (
	maxArchiveBytes = 256 << 30
	maxArchiveFiles = 2_000_000
)

// extractArchive extracts the archive of a record, plain or compressed, into dir. Files,
// directories, and links within it are all that it may have; nothing of it leads out of dir.
func extractArchive(ctx context.Context, r *runner, archive *os.File, dir string) (err error) {
	stream, _, err := layer.Decompress(archive, func() {})
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	p, stdin, err := r.Writer(ctx, proc.Command{
		Tool:   proc.Tar,
		Hidden: true,
		Why:    "extract an archive",
		Args: []string{
			"-x",
			"-f",
			"-",
			"--no-same-owner",
			"--no-same-permissions",
			"--warning=no-unknown-keyword",
			"--directory=" + dir,
		},
	}, nil)
	if err != nil {
		return err
	}
	out := tarstream.NewWriter(stdin)
	err = checkedArchive(ctx, stream, out)
	if err == nil {
		err = out.Close()
	}
	if cerr := stdin.Close(); err == nil {
		err = errors.WithStack(cerr)
	}
	if err != nil && !errors.Is(err, syscall.EPIPE) { // else tar says why
		p.Kill()
		_ = p.Wait()
		return err
	}
	return p.Wait()
}

// checkedArchive copies an archive as far as that is what a record can hold.
func checkedArchive(ctx context.Context, stream io.Reader, out *tarstream.Writer) error {
	kinds := map[string]tarstream.Kind{"": tarstream.Dir}
	total := int64(0)
	for in := tar.NewReader(stream); ; {
		hdr, err := in.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return errors.Wrap(err, "reading the archive")
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		e := tarstream.Entry{Mode: uint32(hdr.Mode) & 0o777, Size: hdr.Size}
		if e.Name, err = normalize.CleanName(hdr.Name); err != nil {
			return err
		}
		if strings.HasPrefix(hdr.Name, "/") {
			return errors.Errorf("the archive has the absolute name %s", ui.Quoted(hdr.Name))
		}
		for above := path.Dir(e.Name); above != "."; above = path.Dir(above) {
			if kind, ok := kinds[above]; ok && kind != tarstream.Dir {
				return errors.Errorf("the archive has %s below what is no directory", ui.Quoted(hdr.Name))
			}
		}
		switch hdr.Typeflag {
		case tar.TypeReg:
			e.Kind = tarstream.File
		case tar.TypeDir:
			e.Kind = tarstream.Dir
		case tar.TypeSymlink: // an object of a repository of mode bare: nothing is ever read through it
			e.Kind, e.Link = tarstream.Symlink, hdr.Linkname
			if err := normalize.CheckTarget(hdr.Name, hdr.Linkname); err != nil {
				return err
			}
		case tar.TypeLink:
			e.Kind = tarstream.HardLink
			if e.Link, err = normalize.CleanName(hdr.Linkname); err != nil {
				return err
			}
			if kinds[e.Link] != tarstream.File && kinds[e.Link] != tarstream.HardLink {
				return errors.Errorf(
					"the archive has the hard link %s to %s, which is no file of it",
					ui.Quoted(hdr.Name),
					ui.Quoted(hdr.Linkname),
				)
			}
		default:
			return errors.Errorf(
				"the archive has %s, which is neither a file nor a directory nor a link",
				ui.Quoted(hdr.Name),
			)
		}
		if kind, twice := kinds[e.Name]; twice && (kind != tarstream.Dir || e.Kind != tarstream.Dir) {
			return errors.Errorf("the archive has %s twice", ui.Quoted(hdr.Name))
		}
		kinds[e.Name] = e.Kind
		if total += e.Size; total > maxArchiveBytes || len(kinds) > maxArchiveFiles {
			return errors.Errorf(
				"the archive has more than %d bytes, or more than %d files",
				int64(maxArchiveBytes),
				maxArchiveFiles,
			)
		}
		if err := out.WriteEntry(e); err != nil {
			return err
		}
		if _, err := io.Copy(out, in); err != nil {
			return errors.WithMessagef(err, "reading %s of the archive", ui.Quoted(hdr.Name))
		}
	}
}

// untar starts tar on a normalized tar stream, which the caller writes to the returned pipe.
func untar(ctx context.Context, r *runner, dir, input, why string) (*proc.Process, *proc.Pipe, error) {
	c := proc.Command{Tool: proc.Tar, Args: untarArgs(dir, os.Geteuid() == 0), Why: why, Input: input}
	p, stdin, err := r.Writer(ctx, c, nil)
	return p, stdin, errors.WithMessage(err, "starting the extraction")
}
