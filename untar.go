package main

import (
	"context"
	"os"
	"regexp"

	"github.com/pkg/errors"
)

// oldestTar is the oldest GNU tar with --xattrs-include.
const oldestTar = "1.27"

// tarLostAttribute is a part of what tar says of an attribute that it could not set, with exit status 0.
const tarLostAttribute = " extended attribute for file "

var tarVersionLine = regexp.MustCompile(`^tar \(GNU tar\) ([0-9][0-9.]*)`)

// tarVersion asks tar for its version. One that is not GNU tar, or too old, is a *missingToolError.
func tarVersion(ctx context.Context, r *runner) (string, error) {
	out, err := r.output(ctx, command{tool: toolTar, args: []string{"--version"}, why: "which tar this is", read: true})
	if err != nil {
		return "", err
	}
	m := tarVersionLine.FindSubmatch(out)
	if m == nil {
		return "", &missingToolError{Tool: r.programs[toolTar], Why: "not GNU tar: " + packages[toolTar]}
	}
	version := string(m[1])
	if compareVersions(version, oldestTar) < 0 {
		return version, &missingToolError{Tool: r.programs[toolTar], Why: "version " + version + " is too old: " + packages[toolTar]}
	}
	return version, nil
}

// untarArgs extract a clean stream into dir with all that a commit keeps. -m leaves the times alone, which no commit
// holds; nothing looks up the names of users. The unknown keyword is hdrcharset, which libarchive needs and tar does not.
func untarArgs(dir string, asRoot bool) []string {
	args := []string{"-x", "-p", "-m", "-f", "-", "--numeric-owner", "--warning=no-unknown-keyword", "--directory=" + dir}
	if asRoot {
		return append(args, "--same-owner", "--xattrs", "--xattrs-include=user.*", "--xattrs-include="+capability)
	}
	return append(args, "--no-same-owner", "--xattrs", "--xattrs-include=user.*")
}

// extractArchive extracts an archive that tar finds out how to decompress, into dir.
func extractArchive(ctx context.Context, r *runner, archive, dir string) error {
	return r.run(ctx, command{
		tool: toolTar, hidden: true, why: "extract an archive",
		args: []string{"-x", "--no-same-owner", "--no-same-permissions", "--file=" + archive, "--force-local", "--directory=" + dir},
	})
}

// untar starts tar on a clean stream, which the caller writes to the returned pipe.
func untar(ctx context.Context, r *runner, dir, input, why string) (*process, *pipeEnd, error) {
	c := command{tool: toolTar, args: untarArgs(dir, os.Geteuid() == 0), why: why, input: input}
	p, stdin, err := r.writer(ctx, c, nil)
	return p, stdin, errors.WithMessage(err, "starting the extraction")
}
