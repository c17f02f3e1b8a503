package main

import (
	"io"
	"os"
	"time"

	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
)

// pipeEnd is this program's end of a pipe to or from a process. It must not be used by two goroutines at once.
//
// ostree takes 8 KiB at a time. Whoever waits for room is woken for each of them, and two processes that wake one another so often
// do little else. So where the pipe is full, or empty, the end looks again after a while in which the other end fills or empties
// no more than the pipe holds.
type pipeEnd struct {
	fd    int
	pause time.Duration
	clock *commandClock // of the process at the other end
}

// pipeRate is faster than any process fills or empties a pipe, in bytes a second.
const pipeRate = 1 << 30

// longestPause is how many times longer than the first pause a pause may get, where nothing happens.
const longestPause = 4

// newPipe returns a pipe that holds as much as the kernel grants: the end for a process, and ours. toProcess says which of them is written to.
func newPipe(toProcess bool) (theirs *os.File, ours *pipeEnd, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, errors.Wrap(err, "making a pipe")
	}
	their, our := fds[0], fds[1]
	if !toProcess {
		their, our = our, their
	}
	theirs, ours = os.NewFile(uintptr(their), "pipe"), &pipeEnd{fd: our}
	size, err := unix.FcntlInt(uintptr(our), unix.F_SETPIPE_SZ, pipeCapacity)
	if err != nil { // it is more than this user may have now
		size, err = unix.FcntlInt(uintptr(our), unix.F_GETPIPE_SZ, 0)
	}
	if err == nil {
		err = unix.SetNonblock(our, true)
	}
	if err != nil {
		_ = theirs.Close()
		_ = ours.Close()
		return nil, nil, errors.Wrap(err, "making a pipe")
	}
	ours.pause = time.Duration(size) * time.Second / pipeRate
	return theirs, ours, nil
}

// try calls f until it does not say that the pipe is full, or empty.
func (p *pipeEnd) try(f func() (int, error)) (int, error) {
	waiting := false
	defer func() {
		if waiting {
			p.clock.leave()
		}
	}()
	for pause := p.pause; ; {
		n, err := f()
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			if !waiting {
				waiting = true
				p.clock.enter()
			}
			time.Sleep(pause)
			pause = min(2*pause, longestPause*p.pause)
		case err != nil:
			return 0, errors.WithStack(err)
		default:
			return n, nil
		}
	}
}

func (p *pipeEnd) Write(b []byte) (done int, err error) {
	for done < len(b) {
		n, err := p.try(func() (int, error) { return unix.Write(p.fd, b[done:]) })
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

func (p *pipeEnd) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	n, err := p.try(func() (int, error) { return unix.Read(p.fd, b) })
	if err == nil && n == 0 {
		err = io.EOF
	}
	return n, err
}

// Close closes the end. A second time is an error.
func (p *pipeEnd) Close() error {
	fd := p.fd
	p.fd = -1
	return errors.WithStack(unix.Close(fd))
}
