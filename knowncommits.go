package main

import (
	"encoding/json"
	"sync"

	"ostree-image/internal/ostree"
	"ostree-image/internal/usercache"
)

const (
	// knownFile has a number in its name that grows when a release reads more of a commit.
	knownFile = "commits-1"
	// maxKnownFile is from which size on only the newer half of the file is kept.
	maxKnownFile = 32 << 20
)

// knownCommits remembers what list has read of commits, by their checksums, which stand for all
// that a commit says: in whatever repository it is, it stays right. Only list uses it. It is safe
// for parallel use.
type knownCommits struct {
	file *usercache.File

	mu       sync.Mutex
	images   map[string]imageSummary
	tarSizes map[string]int64 // of layers' commits, 0 where they do not say
	fresh    []string         // lines that the file does not have
}

// knownCommit is a line of the file.
type knownCommit struct {
	Commit  string        `json:"commit"`
	Image   *imageSummary `json:"image,omitempty"`
	TarSize *int64        `json:"tarSize,omitempty"`
}

// readKnownCommits reads a file.
func readKnownCommits(file *usercache.File) *knownCommits {
	k := &knownCommits{file: file, images: map[string]imageSummary{}, tarSizes: map[string]int64{}}
	for _, line := range file.Lines() {
		var c knownCommit
		if json.Unmarshal([]byte(line), &c) != nil || !ostree.ChecksumPattern.MatchString(c.Commit) {
			continue // a write that was cut
		}
		if c.Image != nil {
			k.images[c.Commit] = *c.Image
		}
		if c.TarSize != nil {
			k.tarSizes[c.Commit] = *c.TarSize
		}
	}
	return k
}

// image returns what is known of an image's commit.
func (k *knownCommits) image(commit string) (i imageSummary, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	i, ok = k.images[commit]
	return i, ok
}

func (k *knownCommits) addImage(i imageSummary) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.images[i.Commit] = i
	k.note(knownCommit{Commit: i.Commit, Image: &i})
}

// tarSize returns how many bytes the tar stream of a layer has, by the layer's commit.
func (k *knownCommits) tarSize(commit string) (size int64, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	size, ok = k.tarSizes[commit]
	return size, ok
}

func (k *knownCommits) addTarSize(commit string, size int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.tarSizes[commit] = size
	k.note(knownCommit{Commit: commit, TarSize: &size})
}

// note remembers a line. The caller holds the lock.
func (k *knownCommits) note(c knownCommit) {
	if line, err := json.Marshal(c); err == nil {
		k.fresh = append(k.fresh, string(line)+"\n")
	}
}

// save adds what is new to the file.
func (k *knownCommits) save() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.file.Append(k.fresh...)
	k.fresh = nil
}
