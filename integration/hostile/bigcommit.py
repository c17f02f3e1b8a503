#!/usr/bin/env python3
"""bigcommit.py REPO REF COUNT NEW-REF…: makes a commit like that of REF with COUNT integers for its metadata, and gives it new refs.

ostree can make no such commit, since an argument ends at 128 KiB, so the object is put together here: a GVariant of type
(a{sv}aya(say)sstayay), with the sizes of its members behind them."""

import array
import hashlib
import os
import sys

VARIABLE = 6  # of its eight members have no fixed size, and are not the last


def framed(members, ends):
    """A container: its members, and then where each ends, in as few bytes as the whole needs."""
    width = next(w for w in (1, 2, 4, 8) if len(members) + w * len(ends) < 1 << 8 * w)
    return members + b"".join(end.to_bytes(width, "little") for end in ends)


def ends_of(commit):
    width = next(w for w in (1, 2, 4, 8) if len(commit) < 1 << 8 * w)
    return [int.from_bytes(commit[len(commit) - width * (i + 1):len(commit) - width * i], "little") for i in range(VARIABLE)], width * VARIABLE


def aligned(n):
    return (n + 7) // 8 * 8


def numbers(count):
    """A dictionary of one entry, "k": the integers as a variant."""
    entry = framed(b"k".ljust(8, b"\0") + array.array("i", range(count)).tobytes() + b"\0ai", [2])
    return framed(entry, [len(entry)])


def main():
    repo, ref, count, new_refs = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]
    with open(os.path.join(repo, "refs/heads", ref)) as f:
        name = f.read().strip()
    with open(os.path.join(repo, "objects", name[:2], name[2:] + ".commit"), "rb") as f:
        old = f.read()
    ends, tail = ends_of(old)
    new, new_ends = numbers(count), []
    for i in range(4):  # parent, related commits, subject, body
        new_ends.append(len(new))
        new += old[ends[i]:ends[i + 1]]
    new_ends.append(len(new))
    begin = aligned(ends[4])
    new = new.ljust(aligned(len(new)), b"\0") + old[begin:begin + 8] + old[begin + 8:ends[5]]  # the time, the root
    new_ends.append(len(new))
    new = framed(new + old[ends[5]:len(old) - tail], new_ends[::-1])
    name = hashlib.sha256(new).hexdigest()
    os.makedirs(os.path.join(repo, "objects", name[:2]), exist_ok=True)
    with open(os.path.join(repo, "objects", name[:2], name[2:] + ".commit"), "wb") as f:
        f.write(new)
    for ref in new_refs:
        with open(os.path.join(repo, "refs/heads", ref), "w") as f:
            f.write(name + "\n")


if __name__ == "__main__":
    main()
