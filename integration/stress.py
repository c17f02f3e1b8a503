#!/usr/bin/env python3
"""Sixteen copies of overlapping images into one repository at once, while remove, prune and plain ostree prune run against them.

Each run succeeds, or fails with a reason that is listed here; none hangs; and no image is ever listed with a blob missing."""

import argparse
import collections
import os
import random
import subprocess
import threading
import time

import trial

COPIERS, IMAGES = 16, 8
REASONS = {  # what may go wrong where others take things away
    "pull": ["was removed from the repository while the image was copied"],
    "remove": ["no image "],
    "prune": [],
    "verify": ["no image "],
    "ostree prune": [],
}
# What ostree itself says where it waits in vain for its lock, or loses a race: nobody's fault, and nothing happens.
BUSY = ["Resource temporarily unavailable"]


class Stress:
    def __init__(self, options, program, work, mode):
        self.options, self.program, self.work, self.mode = options, program, work, mode
        layers = [f"l{n}" for n in range(IMAGES)]
        self.images = {f"image{n}": [layers[n], layers[(n + 1) % IMAGES], layers[(n + 3) % IMAGES]] for n in range(IMAGES)}
        self.oci = trial.make_images(work, self.images, files=40, size=100_000)
        self.repo = trial.new_repo(os.path.join(work, f"repo-{mode}"), mode)
        self.program.run(self.repo, "pull", "--no-fsync", f"oci:{self.oci}:image0", "kept")
        self.end = time.monotonic() + options.seconds
        self.counts, self.failures = collections.Counter(), []

    def once(self, kind, command):
        """Runs a command of a kind and counts how it ends."""
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=trial.LIMIT, check=False)
        except subprocess.TimeoutExpired as e:
            raise trial.Failure(f"{kind}: no end within {trial.LIMIT} s") from e
        self.counts[kind] += 1
        if done.returncode == 0:
            return
        last = (done.stderr.splitlines() or [""])[-1]
        for reason in REASONS[kind] + BUSY:
            if reason in last:
                self.counts["refused", reason] += 1
                return
        raise trial.Failure(f"{kind}: status {done.returncode}: {done.stderr}{done.stdout}")

    def loop(self, kind, seed, make, pause):
        chance = random.Random(f"{self.options.seed} {kind} {seed}")
        try:
            while time.monotonic() < self.end and not self.failures:
                self.once(kind, make(chance))
                time.sleep(chance.uniform(0, pause))
        except Exception as e:  # pylint: disable=broad-except
            self.failures.append(f"{self.mode}: {e}")

    def run(self):
        def ours(*args):
            return self.program.command(self.repo, *args)

        def pull(chance):
            name = chance.choice(list(self.images))
            return ours("pull", "--no-fsync", "--unpack=" + chance.choice(["stream", "tar"]), f"oci:{self.oci}:{name}", f"{name}:{chance.randrange(3)}")

        def some(chance):
            return f"{chance.choice(list(self.images))}:{chance.randrange(3)}"

        # verify reads the repository as it was when it began, so only what nobody removes can be held against it.
        kinds = [("pull", n, pull, 0.1) for n in range(COPIERS)] + [
            ("remove", 0, lambda chance: ours("remove", some(chance)), 0.3),
            ("prune", 0, lambda _: ours("prune"), 1),
            ("ostree prune", 0, lambda _: ["ostree", "prune", f"--repo={self.repo}", "--refs-only"], 1),
            ("verify", 0, lambda _: ours("verify", "kept"), 2),
        ]
        threads = [threading.Thread(target=self.loop, args=kind, daemon=True) for kind in kinds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=self.options.seconds + trial.LIMIT + 30)
            if thread.is_alive():
                self.failures.append(f"{self.mode}: a run does not end")
        if not self.failures:
            self.check()
        if self.failures:
            raise trial.Failure("\n".join(self.failures[:3]))
        return self.counts

    def check(self):
        """At the end all that is listed is whole, nothing is left over, and each image can be copied."""
        self.program.check(self.repo, ["kept:latest"])
        trial.fsck(self.repo, whole=True)
        trial.no_strays(self.repo)
        for name in self.images:
            self.program.run(self.repo, "pull", "--no-fsync", f"oci:{self.oci}:{name}", f"{name}:0")
        self.program.check(self.repo, ["kept:latest"] + [f"{name}:0" for name in self.images])
        trial.same("tmp/", trial.state(self.repo)["tmp"], [])
        trial.same("state/", trial.state(self.repo)["state"], [])


def run(options, program, work):
    total = collections.Counter()
    for mode in options.modes.split(","):
        os.mkdir(os.path.join(work, mode))
        total += Stress(options, program, os.path.join(work, mode), mode).run()
    refused = {kind: n for kind, n in total.items() if isinstance(kind, tuple)}
    text = ", ".join(f"{total[kind]} {kind}" for kind in REASONS)
    reasons = "; ".join(f"{n} said \"{kind[1].strip()}\"" for kind, n in sorted(refused.items()))
    return f"{text}: {sum(total[kind] for kind in REASONS) - sum(refused.values())} succeeded; {reasons or 'none failed'}; no image lacked a blob"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=150, help="how long to go on in each mode")
    parser.add_argument("--modes", default="archive,bare-user", help="the modes to try, parted by commas")
    trial.main(parser, run)


if __name__ == "__main__":
    main()
