package normalize

import "github.com/pkg/errors"

// Limits are how much of a layer is taken before it is refused. 0 is no limit.
type Limits struct {
	Bytes int64 // of the tar stream
	Files int   // entries
}

// What follows from a limit on files: how much may be known by heart of them, and how much work it
// may be to place them.
const (
	NamesPerFile = 256 // bytes of names and attributes
	StepsPerFile = 256 // directories and links that lead to one
	LeastFiles   = 8192
)

// Names is how many bytes the names and attributes of all entries may have, 0 for any number.
func (l Limits) Names() int64 { return l.perFile(NamesPerFile) }

// steps is how many directories and links the names of all entries may lead through, 0 for any
// number.
func (l Limits) steps() int64 { return l.perFile(StepsPerFile) }

func (l Limits) perFile(n int64) int64 {
	if l.Files == 0 {
		return 0
	}
	return n * int64(max(l.Files, LeastFiles))
}

// Sparse is how many bytes the sparse files of one layer may come to, in all.
func (l Limits) Sparse() int64 {
	if l.Bytes == 0 {
		return MaxSparse
	}
	return l.Bytes / 2
}

// MaxSparse is how many bytes the sparse files of one layer may come to where nothing else is said.
// A header of 512 bytes can ask for more than any disk holds.
const MaxSparse = 16 << 30

// checkImplied refuses a layer with too many directories above its files that it does not name: one
// name can ask for two thousand.
func (l Limits) checkImplied(n int) error {
	if l.Files > 0 && n > l.Files {
		return errors.Errorf(
			"its files lie in more than %d directories that it does not name, the limit of --max-layer-files",
			l.Files,
		)
	}
	return nil
}
