package main

import (
	"time"

	"ostree-image/internal/proc"
	"ostree-image/internal/workdir"
)

// runner starts the processes of a run, and knows its journal and how the user named the
// directories that it has pinned.
type runner struct {
	*proc.Runner
	*workdir.Pins
	journal *journal
}

func newRunner(ostree, tar string, timeout time.Duration, j *journal) *runner {
	return &runner{Runner: proc.NewRunner(ostree, tar, timeout, j), Pins: workdir.NewPins(), journal: j}
}
