package doctor

import (
	"os"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"
)

const (
	// fewFiles is below how many open files an import of many layers can fail.
	fewFiles = 256
	// littleArguments is below how many bytes of arguments programs have to be called more often.
	littleArguments = 512 << 10
)

// Machine adds what the kernel and the limits of this process allow.
func Machine(r *Report) {
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		r.OK("kernel", "%s %s on %s", text(u.Sysname[:]), text(u.Release[:]), text(u.Machine[:]))
	}
	if _, err := os.Stat("/proc/self/fd"); err != nil {
		r.Note("proc", "mount it: mount -t proc proc /proc",
			"/proc is not there: directories are known by their paths only, so nobody else may own one above them")
	}
	var files, stack unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &files) == nil {
		if files.Cur < fewFiles {
			r.Problem(
				"open files",
				"allow more: ulimit -n 1024",
				"%d files may be open, and imports need up to %d",
				files.Cur,
				fewFiles,
			)
		} else {
			r.OK("open files", "%s may be open", limit(files.Cur))
		}
	}
	// A quarter of the stack is for arguments (execve(2)).
	if unix.Getrlimit(unix.RLIMIT_STACK, &stack) == nil && stack.Cur/4 < littleArguments {
		r.Note(
			"arguments",
			"allow more: ulimit -s 8192",
			"a program gets at most %s of arguments, so ostree is called more often",
			units.BytesSize(float64(stack.Cur/4)),
		)
	}
	namespaces(r)
}

// namespaces adds whether a user who is not root can make a user namespace, as podman unshare does.
func namespaces(r *Report) {
	const check = "user namespaces"
	if os.Geteuid() == 0 {
		return
	}
	for _, sysctl := range []struct{ file, off string }{
		{"/proc/sys/user/max_user_namespaces", "0"},
		{"/proc/sys/kernel/unprivileged_userns_clone", "0"},
		{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"},
	} {
		value, err := os.ReadFile(sysctl.file)
		if err == nil && strings.TrimSpace(string(value)) == sysctl.off {
			r.Note(check, "sysctl of "+sysctl.file+", or run as root",
				"not for this user (%s is %s): files can only belong to the user", sysctl.file, sysctl.off)
			return
		}
	}
	r.OK(check, "this user can make one: podman unshare, or unshare --map-auto --map-root-user, keeps owners")
}

func limit(n uint64) string {
	if n == unix.RLIM_INFINITY {
		return "any number"
	}
	return strconv.FormatUint(n, 10)
}

// text returns what a field of uname(2) says.
func text(field []byte) string {
	s, _, _ := strings.Cut(string(field), "\x00")
	return s
}
