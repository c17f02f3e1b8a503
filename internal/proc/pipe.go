package proc

import (
	"io"
	"os"

	"github.com/pkg/errors"
	"golang.org/x/sys/unix"
)

// Pipe is this program's end of a pipe to or from a process.
type Pipe struct {
	file  *os.File
	clock *commandClock // of the process at the other end
}

// newPipe returns the two ends of a pipe that holds as much as the kernel grants.
func newPipe() (out, in *os.File, err error) {
	if out, in, err = os.Pipe(); err != nil {
		return nil, nil, errors.Wrap(err, "making a pipe")
	}
	conn, err := in.SyscallConn()
	if err == nil {
		err = conn.Control(func(fd uintptr) { // not in.Fd(), which makes it a blocking one
			_, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeCapacity) // fails where this user has too many
		})
	}
	if err != nil {
		_ = out.Close()
		_ = in.Close()
		return nil, nil, errors.Wrap(err, "making a pipe")
	}
	return out, in, nil
}

func (p *Pipe) Write(b []byte) (int, error) {
	p.clock.enter()
	defer p.clock.leave()
	n, err := p.file.Write(b)
	return n, errors.WithStack(err)
}

func (p *Pipe) Read(b []byte) (int, error) {
	p.clock.enter()
	defer p.clock.leave()
	n, err := p.file.Read(b)
	if err == io.EOF {
		return n, io.EOF
	}
	return n, errors.WithStack(err)
}

// Close closes the end. A second time is an error.
func (p *Pipe) Close() error { return errors.WithStack(p.file.Close()) }
