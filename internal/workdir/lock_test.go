package workdir

import (
	"bufio"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestFlockHolder(t *testing.T) {
	t.Parallel()
	const locks = `1: FLOCK  ADVISORY  WRITE 11 08:01:77 0 EOF
1: -> FLOCK  ADVISORY  WRITE 12 08:01:78 0 EOF
2: POSIX  ADVISORY  WRITE 13 08:01:78 0 EOF
3: FLOCK  ADVISORY  READ 14 00:2f:78 0 EOF
4: FLOCK  ADVISORY  WRITE 15 08:01:78 0 EOF
5: FLOCK
6: FLOCK  ADVISORY  WRITE x y 0 EOF
`
	for _, tt := range []struct {
		dev, inode uint64
		want       int
	}{{unix.Mkdev(8, 1), 78, 15}, {unix.Mkdev(0, 0x2f), 78, 14}, {unix.Mkdev(9, 9), 77, 11}, {unix.Mkdev(8, 1), 79, 0}} {
		if got := flockHolder(bufio.NewScanner(strings.NewReader(locks)), tt.dev, tt.inode); got != tt.want {
			t.Errorf("%d %d: %d, want %d", tt.dev, tt.inode, got, tt.want)
		}
	}
}
