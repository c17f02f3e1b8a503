package main

import (
	"context"
	"os"
	"regexp"
	"strings"

	"github.com/pkg/errors"

	"ostree-image/internal/ostree"
	"ostree-image/internal/proc"
	"ostree-image/internal/workdir"
)

// fsck runs ostree fsck and sorts what it says by the commits that it names. unknown is what names
// none: it may concern any image, and ends fsck before it has checked all.
func (v *verifier) fsck(ctx context.Context) (unknown []string, err error) {
	return v.fsckOf(ctx, v.repo)
}

// fsckObjects runs ostree fsck without the refs of the repository. Whoever may add one can give it
// a name or a content that ends fsck before it checks any object; what such a ref means for an
// image is found where the image is read. refs is what fsck said of them.
func (v *verifier) fsckObjects(ctx context.Context, refs []string) (unknown []string, err error) {
	work, err := workdir.New(os.TempDir(), v.settings.runner)
	if err != nil {
		return nil, errors.WithMessage(err, "making a repository for ostree fsck")
	}
	defer func() {
		if rerr := work.Remove(); err == nil {
			err = rerr
		}
	}()
	view, err := v.repo.withoutRefs(ctx, work.Join("objects"))
	if err != nil {
		return nil, err
	}
	unknown, err = v.fsckOf(ctx, view)
	if err == nil && len(unknown) == 0 {
		v.settings.warnf("%s: that ends it at a ref, so the objects were checked without the refs", refs[0])
	}
	return unknown, err
}

func (v *verifier) fsckOf(ctx context.Context, repo *repository) (unknown []string, err error) {
	v.objects = map[string]string{}
	lines, err := repo.fsck(ctx)
	var terr *proc.ToolError
	if errors.As(err, &terr) && terr.ExitCode < 0 && ctx.Err() == nil {
		return []string{v.text(err)}, nil // a broken object has killed it
	}
	if err != nil {
		return nil, err
	}
	for _, line := range lines {
		text := strings.TrimPrefix(line, "error: ")
		if fsckNoise.MatchString(text) {
			continue
		}
		commits, found := fsckCommits(text)
		if !found {
			unknown = append(unknown, "ostree fsck: "+text)
			continue
		}
		for _, c := range commits {
			if v.objects[c] == "" {
				v.objects[c] = "ostree fsck: " + text
			}
		}
	}
	return unknown, nil
}

// fsckNoise are lines of fsck that follow from others, and what its libraries say.
var fsckNoise = regexp.MustCompile(
	`^(Marking commit as partial: |[0-9]+ partial commits (not verified|from fsck-detected corruption)$|\(.*\): GLib)`,
)

// fsckAbout are the forms in which a line of fsck names the commits that it speaks of.
var fsckAbout = regexp.MustCompile(
	`^(?:In commits|Object missing in commits) ([0-9a-f, ]+): |^fsck ([0-9a-f]{64})\.commit: |^Object missing: ([0-9a-f]{64})\.commit$`,
)

// fsckCommits returns the commits for which a line of fsck speaks: "In commits A, B: …".
func fsckCommits(line string) (commits []string, ok bool) {
	m := fsckAbout.FindStringSubmatch(line)
	if m == nil {
		return nil, false
	}
	for c := range strings.SplitSeq(m[1]+m[2]+m[3], ", ") {
		if !ostree.ChecksumPattern.MatchString(c) {
			return nil, false
		}
		commits = append(commits, c)
	}
	return commits, true
}
