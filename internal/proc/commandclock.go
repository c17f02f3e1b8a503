package proc

import (
	"sync"
	"time"
)

// commandClock says when a command has run longer than it may. It goes only while this program
// waits for the command: what a command waits for, such as a layer that comes over a slow network,
// is no time of its own. A nil clock never runs out. It is safe for parallel use.
type commandClock struct {
	runOut func()

	mu      sync.Mutex
	left    time.Duration
	waiting int       // how many wait for the command
	since   time.Time // when the first of them began
	timer   *time.Timer
}

func newCommandClock(limit time.Duration, runOut func()) *commandClock {
	return &commandClock{runOut: runOut, left: limit}
}

// enter says that somebody begins to wait for the command.
func (c *commandClock) enter() {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting++; c.waiting == 1 {
		c.since = time.Now()
		c.timer = time.AfterFunc(c.left, c.runOut)
	}
}

// leave says that somebody who waited does so no more.
func (c *commandClock) leave() {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting--; c.waiting == 0 {
		c.timer.Stop()
		c.left -= time.Since(c.since)
	}
}
