// Package doctor finds out what a machine and a directory can do, and keeps what was found.
package doctor

import "fmt"

// Status is how a finding is.
type Status string

// The statuses. A note is what a user may want to know; a problem is what makes a command fail.
const (
	OK      Status = "ok"
	Note    Status = "note"
	Problem Status = "problem"
)

// Finding is what was found. Its JSON keys are part of the program's interface.
type Finding struct {
	Check  string `json:"check"` // what was looked at, such as "ostree"
	Status Status `json:"status"`
	Text   string `json:"text"`
	Advice string `json:"advice"` // what to do, "" for nothing
}

// Report is what was found, in order.
type Report []Finding

// OK adds what is as it should be.
func (r *Report) OK(check, format string, args ...any) {
	*r = append(*r, Finding{Check: check, Status: OK, Text: fmt.Sprintf(format, args...)})
}

// Note adds what the user may want to know, and what to do about it.
func (r *Report) Note(check, advice, format string, args ...any) {
	*r = append(*r, Finding{check, Note, fmt.Sprintf(format, args...), advice})
}

// Problem adds what makes commands fail, and what to do about it.
func (r *Report) Problem(check, advice, format string, args ...any) {
	*r = append(*r, Finding{check, Problem, fmt.Sprintf(format, args...), advice})
}

// Problems returns how many problems there are.
func (r Report) Problems() (n int) {
	for _, f := range r {
		if f.Status == Problem {
			n++
		}
	}
	return n
}
