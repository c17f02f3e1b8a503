#!/usr/bin/env python3
"""bounded.py SECONDS MEMORY-MB DISK-MB DIR… -- COMMAND…: runs a command within bounds, and ends as it does.

Where it takes longer, where one of its processes has more memory, or where the directories hold so much more than before, the command
is killed, and the status is 99, as it is where the command leaves processes behind. What it took is the last line on standard error.
"""

import os
import signal
import subprocess
import sys
import time


def allocated(directories):
    """Bytes on disk below some directories."""
    total = 0
    for top in directories:
        for directory, _, names in os.walk(top, onerror=lambda _: None):
            for name in names:
                try:
                    info = os.lstat(os.path.join(directory, name))
                except OSError:
                    continue
                total += info.st_blocks * 512 // info.st_nlink  # what two names lead to is there once
    return total


def session(leader):
    """The processes of a session."""
    pids = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            if os.getsid(pid) == leader:
                pids.append(pid)
        except OSError:
            continue
    return pids


def memory(leader):
    """The most bytes that one process of a session has had, of those that run."""
    most = 0
    for pid in session(leader):
        try:
            with open(f"/proc/{pid}/status") as f:
                for line in f:
                    if line.startswith("VmHWM:"):
                        most = max(most, int(line.split()[1]) << 10)
        except OSError:
            continue
    return most


class Bounds:
    """What a command may take: seconds, and bytes of memory of one process and of disk below some directories."""

    def __init__(self, seconds, memory, disk, directories):
        self.seconds, self.memory, self.disk, self.directories = seconds, memory, disk, directories

    def run(self, command, **options):
        """Returns a command's status, what it took, in words, and whether that was too much."""
        before, peak, disk, broken = allocated(self.directories), 0, 0, ""
        began = time.monotonic()
        child = subprocess.Popen(command, start_new_session=True, **options)
        pause = 0.01
        status = None
        while status is None:  # not by poll, which would throw away what the process took
            pid, state, usage = os.wait4(child.pid, os.WNOHANG)
            if pid:
                status = os.waitstatus_to_exitcode(state)
                peak = max(peak, usage.ru_maxrss << 10)
                break
            time.sleep(pause)
            pause = min(pause * 1.5, 0.5)
            disk = max(disk, allocated(self.directories) - before)
            peak = max(peak, memory(child.pid))
            broken = broken or self.broken(time.monotonic() - began, peak, disk)
            if broken:
                kill_all(session(child.pid))
        child.returncode = status
        left = session(child.pid)
        kill_all(left)
        took = time.monotonic() - began
        broken = broken or self.broken(0, peak, disk) or (f"{len(left)} of its processes are left" if left else "")
        text = f"{took:.1f} s, {peak >> 20} MB of memory, {disk >> 20} MB of disk{', ' if broken else ''}{broken}"
        return status if status >= 0 else 128 - status, text, bool(broken)

    def broken(self, took, peak, disk):
        if took > self.seconds:
            return f"it takes more than {self.seconds:.0f} s"
        if disk > self.disk:
            return f"it takes {disk >> 20} MB of disk"
        if peak > self.memory:
            return f"it takes {peak >> 20} MB of memory"
        return ""


def kill_all(pids):
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass


def main():
    end = sys.argv.index("--")
    bounds = Bounds(float(sys.argv[1]), int(sys.argv[2]) << 20, int(sys.argv[3]) << 20, sys.argv[4:end])
    status, text, broken = bounds.run(sys.argv[end + 1:])
    print("bounded:", text, file=sys.stderr)
    sys.exit(99 if broken else status)


if __name__ == "__main__":
    main()
