package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/pkg/errors"
)

// sample is one measured run. The times are in seconds, those of processors of the process and all
// its descendants.
type sample struct {
	Wall      float64 `json:"wall"`
	User      float64 `json:"user"`
	System    float64 `json:"system"`
	PeakMB    float64 `json:"peakMB"`              // all processes together; MiB
	WrittenMB float64 `json:"writtenMB"`           // MiB
	Processes int     `json:"processes,omitempty"` // that ostree-image started; 0 where unknown
}

// bench is one case in one mode.
type bench struct {
	o    options
	c    benchCase
	mode string
	// dir lies below the work directory and lives as long as the section: repositories that more
	// than one run needs.
	dir   string
	kept  map[string]*repository
	image image // what the contender works on
	// source is what ostree-image and skopeo read the image from. registry tells that it is a
	// registry without TLS.
	source   string
	registry *registry
	run      string      // the directory of one run, in which its command is started
	fresh    *fileSystem // that of the run, where it has one of its own
	repo     string      // the repository of one run
}

func (b *bench) path(name string) string { return filepath.Join(b.run, name) }

// measureSection runs the contenders of a case in turns and adds their samples to s.
func measureSection(ctx context.Context, o options, c benchCase, s *section) (err error) {
	b := &bench{o: o, c: c, mode: s.Mode, kept: map[string]*repository{}}
	b.dir = filepath.Join(o.work, "section")
	remove, err := makeSectionDir(ctx, b.dir, c.aged)
	if err != nil {
		return err
	}
	defer func() {
		if rerr := remove(); err == nil {
			err = rerr
		}
	}()
	log.Printf("%s, %s: preparing", c.name, b.mode)
	if c.setup != nil {
		defer b.stopRegistry()
		if err := c.setup(ctx, b); err != nil {
			return err
		}
	}
	contenders := slices.DeleteFunc(slices.Clone(c.contenders), func(c contender) bool {
		return c.modes != nil && !slices.Contains(c.modes, b.mode)
	})
	for _, c := range contenders {
		s.Series = append(s.Series, series{Name: c.name, X: c.x})
	}
	s.Rounds = o.rounds
	if c.slow {
		s.Rounds = min(s.Rounds, 3)
	}
	for round := range s.Rounds {
		for n := range contenders {
			i := (n + round) % len(contenders) // what comes before a run is part of what it costs
			c := contenders[i]
			one, err := b.measure(ctx, c)
			if err != nil {
				return errors.WithMessage(err, c.name)
			}
			log.Printf("%s, %s, round %d of %d: %s %.2f s, %.0f MB", b.c.name, b.mode, round+1, s.Rounds, c.label(), one.Wall, one.PeakMB)
			s.Series[i].Samples = append(s.Series[i].Samples, one)
			s.Series[i].Layers = len(b.image.layers)
		}
	}
	return nil
}

// makeSectionDir makes the directory of a section, on a file system of its own unless the disk is
// wanted as it is, and returns what ends it.
func makeSectionDir(ctx context.Context, dir string, aged bool) (remove func() error, err error) {
	if aged {
		return func() error { return errors.WithStack(os.RemoveAll(dir)) }, errors.WithStack(os.MkdirAll(dir, 0o755))
	}
	fs, err := newFileSystem(ctx, dir)
	if err != nil {
		return nil, err
	}
	return fs.remove, nil
}

// longest is how long a run may take before it counts as one that hangs.
const longest = 30 * time.Minute

func (b *bench) measure(ctx context.Context, c contender) (s sample, err error) {
	in := b.c.input
	if c.input != nil {
		in = c.input
	}
	if b.image, err = in(ctx, b.o.work); err != nil {
		return s, err
	}
	if b.registry == nil {
		b.source = "oci:" + b.image.layout + ":image"
	}
	remove, err := b.makeRunDir()
	if err != nil {
		return s, err
	}
	defer func() {
		if rerr := remove(); err == nil {
			err = rerr
		}
	}()
	if err := c.prepare(ctx, b); err != nil {
		return s, err
	}
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	syscall.Sync() // what came before is not to be paid by this run
	cmd := c.command(ctx, b)
	cmd.Dir = b.run
	if s, err = measureCommand(cmd); err != nil {
		return s, err
	}
	s.Processes, err = countCommands(b.path("log"))
	return s, err
}

// makeRunDir makes the directory of a run, and returns what ends it. What a run leaves on the
// section's file system stays there, see newFileSystem.
func (b *bench) makeRunDir() (remove func() error, err error) {
	if b.c.aged {
		if b.run, err = os.MkdirTemp(b.o.work, "run-"); err != nil {
			return nil, errors.WithStack(err)
		}
		return func() error { return errors.WithStack(os.RemoveAll(b.run)) }, nil
	}
	b.fresh = nil
	b.run, err = os.MkdirTemp(b.dir, "run-")
	return func() error {
		if b.fresh == nil {
			return nil
		}
		return b.fresh.remove()
	}, errors.WithStack(err)
}

// measureCommand runs the command in a session of its own, by which its descendants are known.
func measureCommand(cmd *exec.Cmd) (s sample, err error) {
	var stderr tail
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return s, errors.WithStack(err)
	}
	done, peak := make(chan struct{}), make(chan int64, 1)
	go func() { peak <- watchMemory(cmd.Process.Pid, done) }()
	err = cmd.Wait()
	s.Wall = rounded(time.Since(began).Seconds())
	close(done)
	peakKiB := <-peak
	if err != nil {
		return s, errors.Wrapf(err, "%s: %s", cmd.Args[0], strings.TrimSpace(string(stderr)))
	}
	usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return s, errors.New("no resource usage")
	}
	s.User, s.System = rounded(cmd.ProcessState.UserTime().Seconds()), rounded(cmd.ProcessState.SystemTime().Seconds())
	s.PeakMB, s.WrittenMB = rounded(float64(max(peakKiB, largestProcess(usage)))/1024), rounded(float64(usage.Oublock)*512/(1<<20))
	return s, nil
}

// tail keeps the end of what is written to it: some programs repeat an error without end.
type tail []byte

func (t *tail) Write(p []byte) (int, error) {
	*t = append(*t, p...)
	if excess := len(*t) - 4096; excess > 0 {
		*t = append((*t)[:0], (*t)[excess:]...)
	}
	return len(p), nil
}

// rounded keeps what is worth keeping of a figure.
func rounded(f float64) float64 {
	f, _ = strconv.ParseFloat(strconv.FormatFloat(f, 'f', 3, 64), 64)
	return f
}

// watchInterval is how long peaks may last without being seen. A look at a few processes takes well
// below a millisecond.
const watchInterval = 25 * time.Millisecond

// watchMemory adds up the memory of a session's processes now and then until done is closed, and
// returns the highest sum in KiB. A page that several processes share is counted once, as far as
// they are all in the session; files that are only in the page cache are not counted.
func watchMemory(session int, done <-chan struct{}) (peakKiB int64) {
	// A process seen in another session never comes into this one, so it is looked at once.
	others := map[int]bool{}
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	for {
		peakKiB = max(peakKiB, sessionMemory(session, others))
		select {
		case <-done:
			return peakKiB
		case <-ticker.C:
		}
	}
}

// sessionMemory adds up the proportional set sizes. A process that ends meanwhile counts nothing.
func sessionMemory(session int, others map[int]bool) (kiB int64) {
	proc, err := os.Open("/proc")
	if err != nil {
		return 0
	}
	defer func() { _ = proc.Close() }()
	names, err := proc.Readdirnames(-1)
	if err != nil {
		return 0
	}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || others[pid] {
			continue
		}
		stat, err := os.ReadFile("/proc/" + name + "/stat")
		if err != nil {
			continue
		}
		if sessionOf(string(stat)) != session {
			others[pid] = true
			continue
		}
		if pid != session && executable(pid) == executable(session) {
			continue // it is about to become another program, and has the very memory of the first until then (vfork(2))
		}
		if rollup, err := os.ReadFile("/proc/" + name + "/smaps_rollup"); err == nil {
			kiB += fieldKiB(string(rollup), "Pss:")
		}
	}
	return kiB
}

// executable returns the path of what a process runs, "" where it has ended.
func executable(pid int) string {
	path, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return path
}

// sessionOf returns the session in the text of /proc/PID/stat, 0 where there is none. The name
// before it may hold anything.
func sessionOf(stat string) int {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:]) // state, parent, group, session
	if len(fields) < 4 {
		return 0
	}
	session, _ := strconv.Atoi(fields[3])
	return session
}

// fieldKiB returns the figure of a line "KEY 123 kB", 0 where there is none.
func fieldKiB(text, key string) int64 {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, key); ok {
			n, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return n
		}
	}
	return 0
}

// largestProcess returns the peak of the largest process in KiB, which may have come and gone
// between two looks. The kernel starts a process with the peak of the one that started it, this one
// here: a peak that is no higher says nothing.
func largestProcess(usage *syscall.Rusage) int64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil || usage.Maxrss <= fieldKiB(string(status), "VmHWM:") {
		return 0
	}
	return usage.Maxrss
}

// countCommands counts the processes in a command log.
func countCommands(path string) (int, error) {
	content, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return 0, nil
	}
	n := 0
	for line := range strings.Lines(string(content)) {
		if strings.HasPrefix(line, "ostree ") || strings.HasPrefix(line, "tar ") {
			n++
		}
	}
	return n, errors.WithStack(err)
}

func output(cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	return errors.Wrapf(err, "%s: %s", strings.Join(cmd.Args, " "), out)
}
