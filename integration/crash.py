#!/usr/bin/env python3
"""Ends the program at random moments of every command that writes, in all repository modes, and looks at what is left.

SIGKILL goes to the program alone, or to it and all its children, in turns. After it no process of it is left, ostree fsck finds nothing, every image
that is listed is whole, the same command run again succeeds, and then the repository is, file by file, as one run that nobody killed leaves it.
SIGINT, SIGTERM and SIGHUP end the program with their own status, and all is as before, at once."""

import argparse
import collections
import itertools
import os
import random
import shutil
import signal
import subprocess
import time

import trial

KEPT, ONE = "kept:latest", "one:latest"
COMMANDS = {  # the repository that it begins with, and its arguments
    "copy": ("kept", ["pull", "--no-fsync", "oci:{oci}:one", "one"]),
    "copy --unpack=tar": ("kept", ["pull", "--unpack=tar", "oci:{oci}:one", "one"]),
    "remove": ("both", ["remove", "one"]),
    "prune": ("loose", ["prune"]),
    "checkout": ("kept", ["checkout", "kept", "{out}/root"]),
}
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


class Place:
    """Where one command is run: a repository, a directory for --tmpdir, and one for what is checked out."""

    def __init__(self, crash, mode, command):
        self.crash, self.command = crash, command
        self.path = os.path.join(crash.work, "place")
        shutil.rmtree(self.path, ignore_errors=True)
        self.repo, self.tmp, self.out = (os.path.join(self.path, name) for name in ("repo", "tmp", "out"))
        base, self.args = COMMANDS[command]
        shutil.copytree(crash.base(mode, base), self.repo, symlinks=True, copy_function=os.link)
        for path in (self.tmp, self.out):
            os.mkdir(path)

    def arguments(self):
        return [f"--tmpdir={self.tmp}", *(a.format(oci=self.crash.oci, out=self.out) for a in self.args)]

    def start(self):
        command = self.crash.program.command(self.repo, *self.arguments())
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=listen)

    def again(self):
        """Runs the command again, or what is left to do where its work was done but for the rest."""
        root = os.path.join(self.out, "root")
        if self.command == "remove" and ONE not in self.crash.program.images(self.repo):
            self.crash.program.run(self.repo, *self.arguments(), want=(3,))
            self.crash.program.run(self.repo, "prune")
            return
        if os.path.exists(root):  # it was done
            trial.same("the tree", trial.tree(root), self.crash.trees[self.repo_mode()])
            shutil.rmtree(root)
        self.crash.program.run(self.repo, *self.arguments())

    def repo_mode(self):
        return trial.ostree("config", f"--repo={self.repo}", "get", "core.mode").strip().removesuffix("-z2")  # of archive

    def state(self):
        return {**trial.state(self.repo), "tmpdir": os.listdir(self.tmp), "beside DIR": os.listdir(self.out)}


def listen():
    """What starts in the background of a shell is deaf to SIGINT, and so are its children."""
    for s in STATUS:
        signal.signal(s, signal.SIG_DFL)


class Crash:
    def __init__(self, options, program, work):
        self.options, self.program, self.work = options, program, work
        self.chance = random.Random(options.seed)
        self.oci = trial.make_images(work, {"kept": ["shared", "k"], "one": ["shared", "o", "p"]})
        self.wholes, self.trees = {}, {}
        self.counts = collections.Counter()

    def base(self, mode, name):
        """A repository to begin with: kept holds that image, both one more, and in loose nobody needs the other's blobs any more."""
        path = os.path.join(self.work, f"{mode}-{name}")
        if os.path.exists(path):
            return path
        trial.new_repo(path, mode)
        for tag in ["kept"] + ["one"] * (name != "kept"):
            self.program.run(path, "pull", "--no-fsync", f"oci:{self.oci}:{tag}", tag)
        if name == "loose":
            self.program.run(path, "remove", "--no-prune", "one")
        return path

    def whole(self, mode, command):
        """How long a run takes that nobody ends, and what it leaves."""
        if (mode, command) not in self.wholes:
            place = Place(self, mode, command)
            began = time.monotonic()
            self.program.run(place.repo, *place.arguments())
            seconds = time.monotonic() - began
            self.wholes[mode, command] = seconds, place.state()
            if command == "checkout":
                self.trees[mode] = trial.tree(os.path.join(place.out, "root"))
        return self.wholes[mode, command]

    def end(self, mode, command, sig, children):
        """Starts a command, ends it at a moment of its run, and returns where that was, and its status and standard error. Where it was
        faster, it starts again."""
        seconds, _ = self.whole(mode, command)
        while True:
            place = Place(self, mode, command)
            before, moment = place.state(), self.chance.uniform(0, seconds)
            process = place.start()
            time.sleep(moment)
            if process.poll() is None:
                for pid in [process.pid] + (descendants(process.pid) if children else []):
                    try:
                        os.kill(pid, sig)
                    except ProcessLookupError:
                        pass
            _, stderr = process.communicate(timeout=trial.LIMIT)
            trial.wait_gone(self.work, [os.path.join(place.repo, "tmp"), place.tmp])
            if process.returncode == 0:
                self.counts["too late"] += 1
                trial.same_state(f"{mode}, {command}, ended by itself", place.state(), self.whole(mode, command)[1])
                continue
            return place, before, process.returncode, stderr, moment / seconds

    def kill(self, mode, command, children):
        place, before, status, stderr, moment = self.end(mode, command, signal.SIGKILL, children)
        what = f"{mode}, {command}, SIGKILL {'to all' if children else 'alone'} at {moment:.0%}"
        if status != -signal.SIGKILL:
            raise trial.Failure(f"{what}: status {status}: {stderr}")
        try:
            self.program.check(place.repo, [KEPT])
            left, (_, whole) = place.state(), self.whole(mode, command)
            self.counts["killed"] += 1
            self.counts[came_of_it(before, left, whole)] += 1
            self.counts["left something behind"] += any(left[part] != before[part] for part in ("tmp", "state", "tmpdir", "beside DIR"))
            place.again()
            trial.same_state("after the next run", place.state(), whole)
            trial.fsck(place.repo, whole=True)
            self.program.check(place.repo, [KEPT])
        except trial.Failure as e:
            raise trial.Failure(f"{what}: {e}") from e

    def interrupt(self, mode, command, sig):
        place, before, status, stderr, moment = self.end(mode, command, sig, False)
        what = f"{mode}, {command}, {sig.name} at {moment:.0%}"
        if status == -sig and stderr == "":  # before the program was there to hear it
            self.counts["too early"] += 1
        elif status != STATUS[sig] or f"stopped by {signal.strsignal(sig).lower()}" not in stderr.splitlines()[-1]:
            raise trial.Failure(f"{what}: status {status}: {stderr}")
        self.counts["interrupted"] += 1
        try:
            if command in ("remove", "prune"):  # what is gone is gone
                trial.same("tmp/", place.state()["tmp"], [])
            else:
                trial.unpublished("at once", place.state(), before)
            self.program.check(place.repo, [KEPT])
        except trial.Failure as e:
            raise trial.Failure(f"{what}: {e}") from e

    def run(self):
        cases = list(itertools.product(trial.MODES, COMMANDS))
        self.chance.shuffle(cases)
        turns = itertools.cycle(cases)
        for n in range(self.options.kills):
            # With an even number of cases, each gets both in its turns.
            self.kill(*next(turns), children=(n + n // len(cases)) % 2 == 1)
            if (n + 1) % 50 == 0:
                print(f"{n + 1} kills", flush=True)
        for n in range(self.options.signals):
            self.interrupt(*next(turns), list(STATUS)[n % len(STATUS)])
        c = self.counts
        return (f"{c['killed']} runs killed ({c['too late'] + c['killed'] + c['interrupted']} started): {c['undone']} left all as it was, {c['half']} some of the "
                f"work, {c['done']} all of it; {c['left something behind']} left files behind, which the next run removed; "
                f"{c['interrupted']} runs ended by SIGINT, SIGTERM or SIGHUP left none")


def came_of_it(before, left, whole):
    if all(left[part] == before[part] for part in ("refs", "beside DIR")):
        return "undone"
    return "done" if all(left[part] == whole[part] for part in ("refs", "beside DIR")) else "half"


def descendants(pid):
    found = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as f:
                children = [int(child) for child in f.read().split()]
            for child in children:
                found += [child, *descendants(child)]
    except OSError:
        pass  # it has ended
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=300, help="how many runs to kill")
    parser.add_argument("--signals", type=int, default=90, help="how many to end by SIGINT, SIGTERM and SIGHUP")
    trial.main(parser, lambda options, program, work: Crash(options, program, work).run())


if __name__ == "__main__":
    main()
