package rootfs

import (
	"testing"
	"time"

	"ostree-image/internal/testutil"
)

func TestTimeText(t *testing.T) {
	for _, c := range []struct {
		time time.Time
		want string
	}{
		{time.Unix(0, 0), "0"},
		{time.Unix(1700000000, 0), "1700000000"},
		{time.Unix(1700000000, 123456789), "1700000000.123456789"},
		{time.Unix(1, 5e8), "1.5"},
		{time.Unix(0, 1), "0.000000001"},
		{time.Unix(-4, 0), "-4"},
		{time.Unix(-4, 75e7), "-3.25"},
		{time.Unix(-1, 25e7), "-0.75"},
		{time.Unix(7e10, 0), "70000000000"},
	} {
		testutil.SameText(t, c.time.String(), timeText(TimeOf(c.time)), c.want)
	}
}
