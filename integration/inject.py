#!/usr/bin/env python3
"""Has system calls fail, of ostree, of tar and of the program itself, one kind at a time, and looks at what comes of it.

A run that ends with 0 has done its work: fsck finds nothing, every image is whole. One that fails says so, leaves the image as it was that
no run is about, and the same run succeeds afterwards. None hangs."""

import argparse
import itertools
import os
import shutil
import stat
import subprocess

import crash
import trial

CALLS = ["write", "fsync,fdatasync,syncfs", "renameat,renameat2,rename", "linkat,link,symlinkat", "close", "mmap", "openat", "fsetxattr,lsetxattr,fchmod",
         "fchown,lchown,fchownat", "mkdirat,mkdir", "unlinkat,unlink,rmdir", "read,pread64", "getdents64", "statx,newfstatat,fstat"]
ERRORS = ["ENOSPC", "EIO"]
TARGETS = ["ostree commit", "ostree pull-local", "ostree refs", "ostree prune", "ostree checkout", "tar", "the program"]
COMMANDS = {  # what each target has a part in
    "ostree commit": ["copy", "copy --unpack=tar"], "ostree pull-local": ["copy"], "ostree refs": ["copy", "remove"], "ostree prune": ["remove", "prune"],
    "ostree checkout": ["checkout"], "tar": ["copy --unpack=tar"], "the program": list(crash.COMMANDS),
}


class Inject(crash.Crash):
    def wrapper(self, target, inject):
        """A program in the place of ostree or tar. Where one fails, all that are started afterwards may, too."""
        tool, _, verb = target.partition(" ")
        path = os.path.join(self.work, tool)
        with open(path, "w", encoding="utf-8") as f:
            f.write(f'#!/bin/sh\n[ "{verb}" = "" ] || [ "$1" = "{verb}" ] || exec {tool} "$@"\nexec strace -f -qqq -o /dev/null {inject} {tool} "$@"\n')
        os.chmod(path, stat.S_IRWXU)
        return [f"--{tool}={path}"]

    def run_once(self, mode, target, command, calls, error):
        _, whole = self.whole(mode, command)
        place = crash.Place(self, mode, command)
        before = place.state()
        when = int(2 ** self.chance.uniform(0, 8 if target == "the program" else 7))
        inject = f"--trace={calls} --inject={calls}:error={error}:when={when}"
        arguments = place.arguments()
        if target == "the program":
            line = ["strace", "-f", "-qqq", "-o", "/dev/null", *inject.split(), *self.program.command(place.repo, *arguments)]
        else:
            line = self.program.command(place.repo, *self.wrapper(target, inject), *arguments)
        what = f"{mode}, {command}, {target}: {calls} fails with {error} at its call {when}"
        try:
            try:
                done = subprocess.run(line, capture_output=True, text=True, timeout=trial.LIMIT, check=False)
            except subprocess.TimeoutExpired as e:
                raise trial.Failure(f"no end within {trial.LIMIT} s") from e
            if done.returncode == 0:
                self.counts["succeeded"] += 1
                refs, want = place.state()["refs"], whole["refs"]
                if command == "remove":  # which only warns where the blobs have to stay for now
                    refs, want = ([ref for ref in some if "_3A" in ref] for some in (refs, want))
                trial.same("refs", refs, want)
            else:
                self.counts["failed"] += 1
                if not done.stderr.strip() and calls != "write":  # which is how it would say so
                    raise trial.Failure(f"status {done.returncode} without a word")
                if command.startswith("copy") and target != "the program":
                    trial.same("refs", place.state()["refs"], before["refs"])
            self.program.check(place.repo, [crash.KEPT])
            place.again()
            trial.fsck(place.repo, whole=True)
            self.program.check(place.repo, [crash.KEPT])
            self.program.run(place.repo, "prune")
            trial.same_state("after the next run and a prune", place.state(), whole)
        except trial.Failure as e:
            raise trial.Failure(f"{what}: {e}: {e.said}") from e

    def run(self):
        o = self.options
        cases = list(itertools.product([o.target] if o.target else TARGETS, [o.calls] if o.calls else CALLS, ERRORS))
        self.chance.shuffle(cases)
        for n, (target, calls, error) in zip(range(o.runs), itertools.cycle(cases)):
            # archive: only there does ostree lose an error
            mode = o.mode or self.chance.choice([*trial.MODES, "archive"])
            self.run_once(mode, target, self.chance.choice(COMMANDS[target]), calls, error)
            if (n + 1) % 50 == 0:
                print(f"{n + 1} runs", flush=True)
        c = self.counts
        return (f"{sum(c.values())} runs with system calls that failed: {c['failed']} failed and said so, {c['succeeded']} did their work all the same; "
                "nothing was lost, the next run succeeded")


def main():
    if not shutil.which("strace"):
        raise SystemExit("strace is not installed")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=600, help="how many runs in which a kind of system call fails")
    parser.add_argument("--target", choices=TARGETS, help="the one whose calls fail")
    parser.add_argument("--calls", help="which calls fail, as strace --inject has them")
    parser.add_argument("--mode", help="of the repositories")
    trial.main(parser, lambda options, program, work: Inject(options, program, work).run())


if __name__ == "__main__":
    main()
