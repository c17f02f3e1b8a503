package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
)

// describeMachine says in one line what figures depend on: the processor, the kernel, the file
// system of the work directory, and the versions of what runs. What cannot be found out is left
// out.
func describeMachine(ctx context.Context, work string) string {
	processor := runtime.GOARCH
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
				processor = strings.TrimSpace(value)
				break
			}
		}
	}
	parts := []string{fmt.Sprintf("%s, %d cores", processor, runtime.NumCPU())}
	for _, one := range []struct {
		label   string
		command []string
	}{
		{"Linux", []string{"uname", "-r"}},
		{"", []string{"findmnt", "-no", "FSTYPE", "-T", work}},
		{"ostree", []string{"sh", "-c", `ostree --version | sed -n "s/^ *Version: *'*\([^']*\).*/\1/p"`}},
		{"tar", []string{"sh", "-c", `tar --version | sed -n '1s/.* //p'`}},
		{"umoci", []string{"sh", "-c", `umoci --version | sed -n '1s/.*version //p'`}},
		{"skopeo", []string{"sh", "-c", `skopeo --version | sed -n '1s/.*version //p'`}},
	} {
		said, err := exec.CommandContext(ctx, one.command[0], one.command[1:]...).Output()
		if text := strings.TrimSpace(string(said)); err == nil && text != "" {
			parts = append(parts, strings.TrimSpace(one.label+" "+text))
		}
	}
	return strings.Join(append(parts, "Go "+strings.TrimPrefix(runtime.Version(), "go")), ", ")
}
