package spool

import (
	"io"
	"os"
)

const (
	// AheadPiece is in how large pieces streams are read ahead, in bytes.
	AheadPiece = 256 << 10
	// AheadPieces is how many of them wait at the most, of all streams that share them, beside one
	// of each.
	AheadPieces = 128
)

// Pieces are buffers that wait for a reader. One that is nil is still to be made.
type Pieces chan []byte

// NewPieces returns n of them.
func NewPieces(n int) Pieces {
	free := make(Pieces, n)
	for range n {
		free <- nil
	}
	return free
}

// ReadAhead reads a stream before it is asked for, as far as there are free pieces: the process
// that writes it then works while another's turn lasts. It always has one piece of its own, so that
// none waits for another.
type ReadAhead struct {
	stream io.ReadCloser
	end    func()           // ends who writes the stream
	read   chan filledPiece // closed when no more will come
	now    filledPiece
	at     int // bytes of it that were given away
}

type filledPiece struct {
	bytes []byte
	err   error // after them
	from  Pieces
}

func (f filledPiece) giveBack() {
	if f.from != nil {
		f.from <- f.bytes[:0]
	}
}

// NewReadAhead begins to read stream. free is shared with other streams, and end makes a Read of
// the stream end that waits.
func NewReadAhead(stream io.ReadCloser, free Pieces, end func()) *ReadAhead {
	stop := make(chan struct{})
	r := &ReadAhead{stream: stream, end: func() { close(stop); end() }, read: make(chan filledPiece, cap(free)+1)}
	go r.fill(free, NewPieces(1), stop)
	return r
}

func (r *ReadAhead) fill(free, own Pieces, stop <-chan struct{}) {
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
			f.bytes = make([]byte, 0, AheadPiece)
		}
		var n int
		n, f.err = ReadPiece(r.stream, f.bytes[:AheadPiece])
		f.bytes = f.bytes[:n]
		r.read <- f // has room for all pieces that there are
		if f.err != nil {
			return
		}
	}
}

func (r *ReadAhead) Read(p []byte) (int, error) {
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
func (r *ReadAhead) Close() error {
	r.end()
	r.now.giveBack()
	r.now, r.at = filledPiece{}, 0
	for f := range r.read {
		f.giveBack()
	}
	return r.stream.Close()
}

// ReadPiece reads until buf is full or r gives an error, and returns that as it is: io.ReadFull
// makes of an early end what a stream that was cut gives, too.
func ReadPiece(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var more int
		more, err = r.Read(buf[n:])
		n += more
	}
	return n, err
}
