package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"github.com/pkg/errors"
	"golang.org/x/sys/unix"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/ostree"
)

// provenCommits remembers which blobs this program has imported or proved for this user on this
// machine, by their digests and the checksums of their commits: these name all that a commit holds,
// so what was proved of one stays true in every repository. It is a file of the user's cache that
// may be deleted at any time. Where it cannot be used, each blob is proved anew.
//
// It is safe for parallel use. A nil one knows nothing.
type provenCommits struct {
	path string

	mu     sync.Mutex
	loaded bool
	blobs  map[string]provenBlob // by their keys
}

// provenBlob is what was proved of a commit.
type provenBlob struct {
	digest digest.Digest // of a layer's tar stream, or of any other blob's bytes
	size   int64         // bytes that the commit says the blob has, -1 where it does not
}

const (
	// provenFile has a number in its name that grows when a release proves more, or makes another
	// tree of a layer.
	provenFile = "proven-2"
	// maxProvenFile is from which size on only the newer half of the file is kept.
	maxProvenFile = 4 << 20
)

// newProvenCommits returns what lies in the user's cache directory (XDG base directory
// specification).
func newProvenCommits() *provenCommits {
	dir, err := os.UserCacheDir()
	if err != nil {
		return nil
	}
	return &provenCommits{path: filepath.Join(dir, "ostree-image", provenFile)}
}

// provenKey is what is remembered of a blob: its commit is what its digest stands for, with the
// commit of its sidecar, "" for none.
func provenKey(blob digest.Digest, commit, sidecar string) string {
	return strings.TrimSuffix(blob.Encoded()+"+"+commit+"+"+sidecar, "+")
}

// find returns what was proved.
func (p *provenCommits) find(key string) (b provenBlob, ok bool) {
	if p == nil {
		return b, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.load()
	b, ok = p.blobs[key]
	return b, ok
}

// add remembers a blob.
func (p *provenCommits) add(key string, b provenBlob) {
	if have, ok := p.find(key); p == nil || ok && have == b {
		return
	}
	p.write(key, b)
}

// drop forgets a blob that turned out to be wrong.
func (p *provenCommits) drop(key string) {
	if _, ok := p.find(key); ok {
		p.write(key, provenBlob{})
	}
}

// write appends a line, with one write so that those of other processes stay whole.
func (p *provenCommits) write(key string, b provenBlob) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.note(key, b)
	if err := os.MkdirAll(filepath.Dir(p.path), 0o700); err != nil {
		return // a cache that cannot be written is none
	}
	f, err := p.open(os.O_WRONLY | os.O_APPEND | os.O_CREATE)
	if err != nil {
		return
	}
	_, _ = fmt.Fprintf(f, "%s %d %s\n", key, b.size, b.digest)
	_ = f.Close()
}

func (p *provenCommits) note(key string, b provenBlob) {
	if b.digest == "" {
		delete(p.blobs, key)
	} else {
		p.blobs[key] = b
	}
}

// load reads the file, once. A line is a key, a size and a digest, which is missing for one that
// was dropped.
func (p *provenCommits) load() {
	if p.loaded {
		return
	}
	p.loaded, p.blobs = true, map[string]provenBlob{}
	f, err := p.open(os.O_RDONLY)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return
	}
	if info.Size() > maxProvenFile {
		if _, err := f.Seek(-maxProvenFile/2, 2); err != nil {
			return
		}
	}
	var kept bytes.Buffer
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Split(lines.Text(), " ")
		if len(fields) != 3 || !ostree.ChecksumPattern.MatchString(fields[0][:min(len(fields[0]), 64)]) {
			continue // the first line of a half, or of a write that was cut
		}
		d := digest.Digest(fields[2])
		size, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil || d != "" && d.Validate() != nil {
			continue
		}
		p.note(fields[0], provenBlob{d, size})
		kept.WriteString(lines.Text() + "\n")
	}
	if info.Size() > maxProvenFile {
		_ = writeFileAtomic(p.path, kept.Bytes())
	}
}

// open opens the file where it and its directory are the user's own, and nobody else can write
// them.
func (p *provenCommits) open(flags int) (*os.File, error) {
	dir, err := os.Lstat(filepath.Dir(p.path))
	if err != nil {
		return nil, errors.WithStack(err)
	}
	if !dir.IsDir() || dir.Mode().Perm()&0o022 != 0 || !ownedByUser(dir) {
		return nil, errors.Errorf("%s is not the user's own", filepath.Dir(p.path))
	}
	f, err := os.OpenFile(p.path, flags|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	info, err := f.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Mode().Perm()&0o022 != 0 || !ownedByUser(info)) {
		err = errors.Errorf("%s is not the user's own", p.path)
	}
	if err != nil {
		_ = f.Close()
		return nil, errors.WithStack(err)
	}
	return f, nil
}

// writeFileAtomic replaces a file by one of mode 0600 at once.
func writeFileAtomic(path string, content []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".")
	if err != nil {
		return errors.WithStack(err)
	}
	_, err = f.Write(content)
	errdefs.Close(&err, f)
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return errors.WithStack(err)
}
