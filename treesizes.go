package main

import (
	"context"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"

	"github.com/vbatts/tar-split/archive/tar"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/normalize"
	"ostree-image/internal/ostree"
)

// listedFile is a line of ostree ls about a file, or a symbolic link and its target.
var listedFile = regexp.MustCompile(`^([-l])0[0-7]{4} +[0-9]+ +[0-9]+ +([0-9]+) /(.*)$`)

// fileSizes returns the sizes that a commit gives its files, but those with a name of two lines. In
// an archive repository they stand in headers that no checksum covers. most is that of list.
func (r *repository) fileSizes(ctx context.Context, rev string, most func() (int, error)) (map[string]int64, error) {
	sizes := map[string]int64{}
	var wrong error
	err := r.list(ctx, rev, most, func(line string) {
		m := listedFile.FindStringSubmatch(line)
		if m == nil {
			return
		}
		size, err := strconv.ParseInt(m[2], 10, 64)
		if m[1] == "-" && err == nil {
			sizes[m[3]] = size
		} else if size != 0 {
			wrong = errdefs.Checkf("the tree says that the symbolic link %q has %s bytes", m[3], m[2])
		}
	})
	if err == nil {
		err = wrong
	}
	return sizes, err
}

// checkSizes compares the sizes that the tree of a layer gives its files with those in the layer's
// headers.
func (v *verifier) checkSizes(ctx context.Context, store *blobStore, b *storedBlob) error {
	listed, err := v.repo.fileSizes(ctx, b.spec, func() (int, error) { return store.mostPaths(ctx, b) })
	if err != nil {
		return err
	}
	want := map[string]int64{}
	err = store.headers(ctx, b, func(hdr *tar.Header) error {
		name, err := normalize.CleanName(hdr.Name)
		if err != nil {
			return errdefs.Checkf("%s", err)
		}
		if delete(want, name); hdr.Typeflag == tar.TypeReg {
			want[name] = hdr.Size
		}
		return nil
	})
	if err != nil {
		return err
	}
	for name, size := range want {
		if got, ok := listed[name]; ok && got != size {
			return errdefs.Checkf("the tree says that %q has %d bytes, and the layer that it has %d", name, got, size)
		}
	}
	return nil
}

// checkTree checks the sizes of one of a blob's commits.
func (v *verifier) checkTree(ctx context.Context, store *blobStore, b *storedBlob, spec string) error {
	switch {
	case !v.packed:
		return nil
	case !b.layer || spec == b.side:
		return v.checkPlainSizes(ctx, spec)
	case !b.canRebuild():
		_, err := v.repo.fileSizes(ctx, spec, func() (int, error) { return store.mostPaths(ctx, b) })
		return err
	}
	return v.checkSizes(ctx, store, b)
}

// checkPlainSizes compares the sizes that a commit of a few files gives them with what they are.
func (v *verifier) checkPlainSizes(ctx context.Context, rev string) error {
	listed, err := v.repo.fileSizes(ctx, rev, nil)
	if err != nil || len(listed) == 0 {
		return err
	}
	var got int64
	for chunk := range ostree.Chunks(slices.Sorted(maps.Keys(listed))) {
		n, err := v.length(ctx, rev, chunk)
		if err != nil {
			return err
		}
		got += n
	}
	var want int64
	for _, size := range listed {
		want += size
	}
	if got != want {
		return errdefs.Checkf("the tree says that its files have %d bytes, and they have %d", want, got)
	}
	return nil
}

// length returns how many bytes files of a commit have.
func (v *verifier) length(ctx context.Context, rev string, paths []string) (int64, error) {
	in, err := v.repo.cat(ctx, rev, paths...)
	if err != nil {
		return 0, err
	}
	defer func() { _ = in.Close() }()
	return io.Copy(io.Discard, in)
}
