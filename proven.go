package main

import (
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"ostree-image/internal/ostree"
	"ostree-image/internal/usercache"
)

// provenCommits remembers which blobs this program has imported or proved for this user on this
// machine, by their digests and the checksums of their commits: these name all that a commit holds,
// so what was proved of one stays true in every repository. It is a file of the user's cache that
// may be deleted at any time. Where it cannot be used, each blob is proved anew.
//
// It is safe for parallel use. A nil one knows nothing.
type provenCommits struct {
	file *usercache.File

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

func newProvenCommits() *provenCommits {
	return &provenCommits{file: usercache.New(provenFile, maxProvenFile)}
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

func (p *provenCommits) write(key string, b provenBlob) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.note(key, b)
	p.file.Append(fmt.Sprintf("%s %d %s\n", key, b.size, b.digest))
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
	for _, line := range p.file.Lines() {
		fields := strings.Split(strings.TrimSuffix(line, "\n"), " ")
		if len(fields) != 3 || !ostree.ChecksumPattern.MatchString(fields[0][:min(len(fields[0]), 64)]) {
			continue // a write that was cut
		}
		d := digest.Digest(fields[2])
		size, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil || d != "" && d.Validate() != nil {
			continue
		}
		p.note(fields[0], provenBlob{d, size})
	}
}
