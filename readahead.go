package main

import (
	"io"
	"os"
)

const (
	// aheadPiece is in how large pieces streams are read ahead, in bytes.
	aheadPiece = 256 << 10
	// aheadPieces is how many of them wait at the most, of all streams that share them, beside one
	// of each.
	aheadPieces = 128
)

// pieces are buffers that wait for a reader. One that is nil is still to be made.
type pieces chan []byte

func newPieces(n int) pieces {
	free := make(pieces, n)
	for range n {
		free <- nil
	}
	return free
}

// readAhead reads a stream before it is asked for, as far as there are free pieces: the process
// that writes it then works while another's turn lasts. It always has one piece of its own, so that
// none waits for another.
type readAhead struct {
	stream io.ReadCloser
	end    func()           // ends who writes the stream
	read   chan filledPiece // closed when no more will come
	now    filledPiece
	at     int // bytes of it that were given away
}

type filledPiece struct {
	bytes []byte
	err   error // after them
	from  pieces
}

func (f filledPiece) giveBack() {
	if f.from != nil {
		f.from <- f.bytes[:0]
	}
}

// newReadAhead begins to read stream. free is shared with other streams, and end makes a Read of
// the stream end that waits.
func newReadAhead(stream io.ReadCloser, free pieces, end func()) *readAhead {
	stop := make(chan struct{})
	r := &readAhead{stream: stream, end: func() { close(stop); end() }, read: make(chan filledPiece, cap(free)+1)}
	go r.fill(free, newPieces(1), stop)
	return r
}

func (r *readAhead) fill(free, own pieces, stop <-chan struct{}) {
	defer close(r.read)
	for {
		var f filledPiece
		select {
		case f.bytes = <-own:
			f.from = own
		case f.bytes = <-free:
			f.from = free
		case <-stop:
			return
		}
		if f.bytes == nil {
			f.bytes = make([]byte, 0, aheadPiece)
		}
		var n int
		n, f.err = readPiece(r.stream, f.bytes[:aheadPiece])
		f.bytes = f.bytes[:n]
		r.read <- f // has room for all pieces that there are
		if f.err != nil {
			return
		}
	}
}

func (r *readAhead) Read(p []byte) (int, error) {
	for r.at == len(r.now.bytes) {
		if r.now.err != nil {
			return 0, r.now.err
		}
		r.now.giveBack()
		f, ok := <-r.read
		if !ok {
			f.err = os.ErrClosed
		}
		r.now, r.at = f, 0
	}
	n := copy(p, r.now.bytes[r.at:])
	r.at += n
	return n, nil
}

// Close ends who writes the stream, and gives all pieces back. It must not be called twice.
func (r *readAhead) Close() error {
	r.end()
	r.now.giveBack()
	r.now, r.at = filledPiece{}, 0
	for f := range r.read {
		f.giveBack()
	}
	return r.stream.Close()
}

// readPiece reads until buf is full or r gives an error, and returns that as it is: io.ReadFull
// makes of an early end what a stream that was cut gives, too.
func readPiece(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var more int
		more, err = r.Read(buf[n:])
		n += more
	}
	return n, err
}
