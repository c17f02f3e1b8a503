#!/usr/bin/env python3
"""Copies and checks out where the disk is full, in bytes or in inodes, at every size from far too small to just enough.

What fails says where there is no room, ends with status 1, and leaves all as it was; once there is room, it succeeds.
Run it as root in a mount namespace of its own: unshare --mount python3 disk.py"""

import argparse
import os
import subprocess

import trial

NO_ROOM = ("no space left", "No space left")
ROOM = "size=64m,nr_inodes=20000"


class Disk:
    def __init__(self, options, program, work):
        self.options, self.program, self.work = options, program, work
        self.oci = trial.make_images(work, {"kept": ["k"], "one": ["o", "p"]}, files=40, size=400_000)
        self.disk = os.path.join(work, "disk")
        self.tries = self.failed = 0
        os.mkdir(self.disk)

    def mount(self, options):
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", self.disk], check=True)

    def remount(self, options):
        subprocess.run(["mount", "-o", f"remount,{options}", self.disk], check=True)

    def umount(self):
        subprocess.run(["umount", self.disk], check=True)

    def used(self, what):
        st = os.statvfs(self.disk)
        return (st.f_blocks - st.f_bfree) * st.f_frsize if what == "size" else st.f_files - st.f_ffree

    def sizes(self, least, most):
        return [least + (most - least) * n // (self.options.sizes - 1) for n in range(self.options.sizes)]

    def ladder(self, what, quota, mode, paths, args):
        """Tries args on a disk of each size; paths names what of repo, tmp, out and record is on the disk."""
        def prepare(place):
            subprocess.run(["rm", "-rf", place], check=True)
            self.mount(ROOM)
            found = {}
            for name in ("repo", "tmp", "out", "record"):
                found[name] = os.path.join(self.disk if name in paths else place, name)
                if name not in ("repo", "record"):
                    os.makedirs(found[name])
            os.makedirs(place, exist_ok=True)
            trial.new_repo(found["repo"], mode)
            self.program.run(found["repo"], "pull", "--no-fsync", f"oci:{self.oci}:kept", "kept")
            return found, [a.format(oci=self.oci, **found) for a in args]
        place = os.path.join(self.work, "place")
        where, command = prepare(place)
        least = self.used(quota)
        self.program.run(where["repo"], *command)
        most = least + 3 * (self.used(quota) - least) + (2_500_000 if quota == "size" else 100)
        self.umount()
        failed = done = 0
        for limit in self.sizes(least + (4096 if quota == "size" else 1), most):
            where, command = prepare(place)
            what_now = f"{what}, {mode}, {quota}={limit}"
            try:
                self.remount(f"{quota}={limit}")
                before = trial.state(where["repo"])
                self.tries += 1
                try:
                    self.program.run(where["repo"], *command)
                    done += 1
                except trial.Failure as e:
                    self.refused(e, where, before)
                    failed += 1
                    self.remount(ROOM)
                    subprocess.run(["rm", "-rf", where["record"]], check=True)
                    self.program.run(where["repo"], *command)
                trial.fsck(where["repo"], whole=True)
                self.remount(ROOM)
                self.program.check(where["repo"], ["kept:latest"] + ["one:latest"] * ("one" in command))
                trial.same("left in --tmpdir", os.listdir(where["tmp"]), [])
            except trial.Failure as e:
                raise trial.Failure(f"{what_now}: {e}") from e
            finally:
                self.umount()
        if not failed or not done:
            raise trial.Failure(f"{what}, {mode}, {quota}: {failed} sizes were too small, {done} were enough: this tries nothing")
        self.failed += failed

    def refused(self, failure, where, before):
        """The error is one of room, names a place, and nothing has changed."""
        last = (failure.said.splitlines() or [""])[-1]
        if "status 1 " not in str(failure) or not any(word in last for word in NO_ROOM):
            raise trial.Failure(f"not the error to expect: {failure}")
        if not any(path in last for path in where.values()):
            raise trial.Failure(f"the error names no place: {failure}")
        trial.unpublished("after the failure", trial.state(where["repo"]), before)
        for name in ("tmp", "out"):
            trial.same(f"left in {name}", os.listdir(where[name]), [])
        trial.fsck(where["repo"])
        trial.no_strays(where["repo"])

    def run(self):
        pull = ["--tmpdir={tmp}", "pull", "--no-fsync", "oci:{oci}:one", "one"]
        for quota in ("size", "nr_inodes"):
            for n, mode in enumerate(self.options.modes.split(",")):
                self.ladder("repository", quota, mode, ["repo"], pull)
                self.ladder("repository, tar", quota, mode, ["repo"], [*pull[:2], "--unpack=tar", *pull[2:]])
                self.ladder("both", quota, mode, ["repo", "tmp"], pull)
                self.ladder("checkout", quota, mode, ["out"], ["checkout", "kept", "{out}/root"])
                if n == 0:
                    self.ladder("--tmpdir", quota, mode, ["tmp"], pull)
                    self.ladder("--record", quota, mode, ["record"], ["--record={record}", *pull])
        return f"{self.tries} disks tried: {self.failed} were too small, said so, and left refs and temporary files as they were; once there was room, all succeeded"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, default=20, help="of each kind of disk")
    parser.add_argument("--modes", default=",".join(trial.MODES), help="the modes to try, parted by commas")
    trial.main(parser, lambda options, program, work: Disk(options, program, work).run())


if __name__ == "__main__":
    main()
