#!/usr/bin/env python3
"""bounded.py SECONDS MEMORY-MB DISK-MB DIR… -- COMMAND…: runs a command within bounds, and ends as it does.

Where it takes longer, where one of its processes has more memory, or where the directories hold more than before, the command is
killed, and the status is 99. What it took is the last line on standard error.
"""

import os
import resource
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


def memory(leader):
    """The most bytes that one process of a session has had, of those that run."""
    most = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.getsid(int(pid)) != leader:
                continue
            with open(f"/proc/{pid}/status") as f:
                for line in f:
                    if line.startswith("VmHWM:"):
                        most = max(most, int(line.split()[1]) << 10)
        except (OSError, ValueError):
            continue
    return most


def main():
    end = sys.argv.index("--")
    seconds, most_memory, most_disk = float(sys.argv[1]), int(sys.argv[2]) << 20, int(sys.argv[3]) << 20
    directories, command = sys.argv[4:end], sys.argv[end + 1:]
    before, peak, disk, broken = allocated(directories), 0, 0, ""
    began = time.monotonic()
    child = subprocess.Popen(command, start_new_session=True)
    pause = 0.01
    while True:
        try:
            child.wait(pause)
            break
        except subprocess.TimeoutExpired:
            pause = min(pause * 2, 0.5)
        disk = max(disk, allocated(directories) - before)
        peak = max(peak, memory(child.pid))
        took = time.monotonic() - began
        if took > seconds:
            broken = f"it takes more than {seconds:.0f} s"
        elif disk > most_disk:
            broken = f"it takes {disk >> 20} MB of disk"
        elif peak > most_memory:
            broken = f"it takes {peak >> 20} MB of memory"
        if broken:
            for pid in filter(str.isdigit, os.listdir("/proc")):
                try:
                    if os.getsid(int(pid)) == child.pid:
                        os.kill(int(pid), signal.SIGKILL)
                except OSError:
                    pass
            child.wait()
            break
    peak = max(peak, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10)
    if not broken and peak > most_memory:
        broken = f"it took {peak >> 20} MB of memory"
    print(f"bounded: {time.monotonic() - began:.1f} s, {peak >> 20} MB of memory, {disk >> 20} MB of disk{', ' if broken else ''}{broken}",
          file=sys.stderr)
    sys.exit(99 if broken else child.returncode if child.returncode >= 0 else 128 - child.returncode)


main()
