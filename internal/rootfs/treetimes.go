package rootfs

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/pkg/errors"
	"golang.org/x/sys/unix"

	"ostree-image/internal/errdefs"
)

// Times are the modification times that what is in a tree is to have, by real paths. Making,
// moving and removing files changes those of directories, so all are set at the end.
type Times struct {
	now   Time // of what no layer names
	files bool // files and links are the tree's own, and have times, too
	of    map[string]Time
}

// Time is a time to the nanosecond, since 1970.
type Time struct {
	sec  int64
	nsec int32
}

// TimeOf returns a time as file systems have it.
func TimeOf(t time.Time) Time { return Time{t.Unix(), int32(t.Nanosecond())} }

// timespec returns the time for the kernel, or the last one that it takes (on machines of 32 bits).
func (t Time) timespec() unix.Timespec {
	at, err := unix.TimeToTimespec(time.Unix(t.sec, int64(t.nsec)))
	if err != nil {
		return unix.Timespec{Sec: math.MaxInt32}
	}
	return at
}

// NewTimes begins with the root, which is as old as umoci makes it where no layer names it.
func NewTimes(now Time, files bool) *Times {
	return &Times{now: now, files: files, of: map[string]Time{"": {}}}
}

// SetDir notes the time of a directory.
func (t *Times) SetDir(real string, at Time) {
	if t != nil {
		t.of[real] = at
	}
}

// PlainDir sets the time of a directory that no layer names.
func (t *Times) PlainDir(real string) {
	if t != nil {
		t.of[real] = t.now
	}
}

// SetFile notes the time of anything else.
func (t *Times) SetFile(real string, at Time) {
	if t != nil && t.files {
		t.of[real] = at
	}
}

// link gives a second name of a file the time of the first.
func (t *Times) link(target, real string) {
	if t == nil {
		return
	}
	if at, ok := t.of[target]; ok {
		t.of[real] = at
	}
}

func (t *Times) drop(real string) {
	if t != nil {
		delete(t.of, real)
	}
}

// SetTimes gives the finished tree its times, and writes that down.
func (t *Times) SetTimes(ctx context.Context, root *FS) error {
	paths := slices.Sorted(maps.Keys(t.of)) // what lies in one directory comes together
	for i, real := range paths {
		if i&0xfff == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := root.setTime(real, t.of[real]); err != nil {
			return err
		}
	}
	if root.Steps == nil {
		return nil
	}
	slices.SortStableFunc(paths, func(a, b string) int { return compareTimes(t.of[a], t.of[b]) })
	for len(paths) > 0 {
		at, n := t.of[paths[0]], 1
		for n < min(len(paths), pathsAtOnce) && t.of[paths[n]] == at {
			n++
		}
		root.Steps.touch(at, paths[:n])
		paths = paths[n:]
	}
	return nil
}

// SetRoot sets the time of the directory that the tree's root has become.
func (t *Times) SetRoot(dir string) (err error) {
	root, err := Open(dir, os.Geteuid() == 0)
	if err != nil {
		return err
	}
	defer errdefs.Close(&err, root)
	return root.setTime("", t.of[""])
}

func compareTimes(a, b Time) int {
	return cmp.Or(cmp.Compare(a.sec, b.sec), cmp.Compare(a.nsec, b.nsec))
}

// timeText is a time in seconds since 1970, as touch(1) takes it.
func timeText(at Time) string {
	sec, nsec, sign := at.sec, at.nsec, ""
	if sec < 0 {
		if nsec > 0 {
			sec, nsec = sec+1, 1e9-nsec
		}
		sec, sign = -sec, "-"
	}
	text := fmt.Sprintf("%s%d", sign, sec)
	if nsec > 0 {
		text += strings.TrimRight(fmt.Sprintf(".%09d", nsec), "0")
	}
	return text
}

// setTime sets the modification time of what is at a real path, a link's own.
func (r *FS) setTime(real string, at Time) error {
	dir, base := SplitPath(real)
	if real == "" {
		base = "."
	}
	fd, err := r.dir(dir)
	if err != nil {
		return err
	}
	ts := at.timespec()
	return errors.Wrapf(
		unix.UtimesNanoAt(fd, base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW),
		"setting the time of %q",
		real,
	)
}
