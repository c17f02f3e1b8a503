#!/usr/bin/env python3
"""Cuts the power of a disk at its flushes, and at random moments between two, while images come and go, and looks at what is left.

After a run has ended well, its image is there, or gone, whatever is lost of what the disk was not told to keep. At any moment an image is
there whole or not at all, those that no run is about are whole, and the same run succeeds afterwards."""

import argparse
import collections
import os
import random
import subprocess

import blocklog
import trial

FILE_SYSTEMS = {  # how large each is, how to make it, and how to repair it, as a system does that starts after a loss of power
    "ext4": (128 << 20, ["mkfs.ext4", "-q"], None),
    "ext4-without-journal": (128 << 20, ["mkfs.ext4", "-q", "-O", "^has_journal"], ["fsck.ext4", "-y"]),
    "xfs": (304 << 20, ["mkfs.xfs", "-q"], None),
    "btrfs": (128 << 20, ["mkfs.btrfs", "-q"], None),
}
KEPT = "kept:latest"
STEPS = [  # what is run, and which images are there, or gone, afterwards
    (["pull", "oci:{oci}:one", "one"], {"one:latest": True}),
    (["pull", "--preserve-digests", "oci:{oci}:kept", "exact"], {"exact:latest": True}),
    (["remove", "one"], {"one:latest": False}),
    (["pull", "oci:{oci}:two", "two"], {"two:latest": True}),
    (["remove", "two", "exact"], {"two:latest": False, "exact:latest": False}),
]


class PowerCut:
    def __init__(self, options, program, work):
        self.options, self.program, self.work = options, program, work
        self.chance = random.Random(options.seed)
        self.oci = trial.make_images(work, {"kept": ["shared", "k"], "one": ["shared", "o"], "two": ["o", "t"]}, files=40, size=100_000)
        self.counts = collections.Counter()

    def record(self, system, mode):
        """Runs the steps, and returns the log of the disk, and where in it each step began and ended."""
        size, make, _ = FILE_SYSTEMS[system]
        marks = []
        with blocklog.Disk(os.path.join(self.work, "made"), size) as disk:
            subprocess.run([*make, disk.device], stdout=subprocess.DEVNULL, check=True)
            with disk.mounted() as tree:
                repo = os.path.join(tree, "repo")
                trial.ostree("init", f"--repo={repo}", f"--mode={mode}")
                trial.ostree("config", f"--repo={repo}", "set", "core.min-free-space-percent", "0")
                self.program.run(repo, "pull", f"oci:{self.oci}:kept", "kept")
                subprocess.run(["sync", "--file-system", tree], check=True)
                for args, _ in STEPS:
                    began = len(disk.log)
                    self.program.run(repo, *(a.format(oci=self.oci) for a in args))
                    marks.append((began, len(disk.log)))
            return size, disk.log, marks

    def moments(self, system, log, marks):
        """So many moments (flush, lost): up to the flush all is on the disk, and of what comes behind it, up to lost, some is."""
        first = marks[0][0]
        flushes = [n for n in range(first, marks[-1][1]) if log[n] is blocklog.FLUSH]
        ends = [end for _, end in marks]  # the hardest: the run has just ended, and nothing more was written
        found = [(last_flush(log, end), end) for end in ends]
        if system == "ext4-without-journal":  # what it loses while it is written to, it may lose of any file
            return found
        rest = [(n, n + 1) for n in flushes]
        for _ in range(self.options.points):
            at = self.chance.randrange(first, marks[-1][1])
            rest.append((last_flush(log, at), at))
        self.chance.shuffle(rest)
        return sorted((found + rest)[:self.options.points])

    def run_on(self, system, mode):
        size, log, marks = self.record(system, mode)
        blocks, done = {}, 0
        for flush, at in self.moments(system, log, marks):
            for event in log[done:flush]:
                if event is not blocklog.FLUSH:
                    blocklog.write_blocks(blocks, {}, *event)
            done = max(done, flush)
            lost = dict(blocks)
            for event in log[flush:at]:
                if event is not blocklog.FLUSH and self.chance.random() < self.chance.choice([0, 0.5, 0.9]):
                    blocklog.write_blocks(lost, {}, *event)
            try:
                self.look(system, size, lost, marks, at)
            except (trial.Failure, subprocess.CalledProcessError) as e:
                raise trial.Failure(f"{system}, {mode}, write {at} of {len(log)}, all up to {flush} kept: {e}: {getattr(e, 'said', '')}") from e
            self.counts[system] += 1

    def look(self, system, size, blocks, marks, at):
        repair = FILE_SYSTEMS[system][2]
        with blocklog.Disk(os.path.join(self.work, "cut"), size, blocks) as disk:
            if repair:
                subprocess.run([*repair, disk.device], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
            with disk.mounted() as tree:
                self.judge(os.path.join(tree, "repo"), marks, at)

    def judge(self, repo, marks, at):
        reboot(repo)
        names = self.program.images(repo)
        if KEPT not in names:
            raise trial.Failure(f"{KEPT} is gone")
        self.program.run(repo, "verify")
        running = None
        expected = {KEPT: True}
        for (began, end), (args, images) in zip(marks, STEPS):
            if at >= end:
                expected.update(images)
            elif at > began:
                running = args
                expected = {name: there for name, there in expected.items() if name not in images}
        for name, there in expected.items():
            if (name in names) != there:
                raise trial.Failure(f"{name} is {'lost' if there else 'back'}: there are {names}")
        if running and running[0] == "remove":
            # Of objects that nothing needs a part may be gone already.
            self.program.run(repo, "remove", *running[1:], want=(0, 3))
            self.program.run(repo, "prune")
        elif running:
            self.program.run(repo, *(a.format(oci=self.oci) for a in running))
        trial.fsck(repo)
        self.program.run(repo, "verify")

    def run(self):
        for n, system in enumerate(self.options.systems.split(",")):
            mode = self.options.mode or trial.MODES[(n + self.options.seed) % len(trial.MODES)]
            self.run_on(system, mode)
            print(f"{system}, {mode}: {self.counts[system]} moments", flush=True)
        return f"{sum(self.counts.values())} losses of power: no image lost, none back, none half; the next run succeeded"


def reboot(repo):
    """ostree goes on with what a transaction of this boot has left, and only of this boot: its directories have the boot's number."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as f:
        now = f.read().strip()
    for name in os.listdir(os.path.join(repo, "tmp")):
        if now in name:
            os.rename(os.path.join(repo, "tmp", name), os.path.join(repo, "tmp", name.replace(now, "0" * 8 + now[8:])))


def last_flush(log, end):
    """The number of the first event behind the last flush before end."""
    return next((n + 1 for n in range(end - 1, -1, -1) if log[n] is blocklog.FLUSH), 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--points", type=int, default=200, help="moments on each file system")
    parser.add_argument("--systems", default="ext4,xfs", help=f"of {','.join(FILE_SYSTEMS)}")
    parser.add_argument("--mode", help="of the repository, instead of one that the seed chooses")
    trial.main(parser, lambda options, program, work: PowerCut(options, program, work).run())


if __name__ == "__main__":
    main()
