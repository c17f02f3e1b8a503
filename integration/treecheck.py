#!/usr/bin/env python3
"""Holds the tree of a layer's commit, as `ostree ls -RXC` lists it, against the layer's tar file.

What is expected comes from Python's tarfile module and FORMAT.md alone: names, types, modes, owners, sizes and links,
and, through OSTree's checksum of a file object, every file's content and extended attributes.
"""

import argparse
import hashlib
import posixpath
import re
import struct
import subprocess
import sys
import tarfile

FILE, DIR, LINK = "-", "d", "l"
TYPE_BITS = {FILE: 0o100000, DIR: 0o040000, LINK: 0o120000}


class Node:
    def __init__(self, kind, mode, uid, gid, size=0, target="", data=b"", xattrs=()):
        self.kind, self.mode, self.uid, self.gid = kind, mode, uid, gid
        self.size, self.target, self.data, self.xattrs = size, target, data, dict(xattrs)


def offset(n, size):
    """One framing offset of GVariant's serial form, in a container of size bytes."""
    return struct.pack("<B" if size <= 0xFF else "<H" if size <= 0xFFFF else "<I", n)


def with_offsets(parts, ends):
    """Body and framing offsets, whose own width depends on the size of the whole."""
    body = b"".join(parts)
    for width in (1, 2, 4):
        size = len(body) + width * len(ends)
        if size < 1 << 8 * width:
            return body + b"".join(offset(e, size) for e in ends)
    raise ValueError("too large")


def xattr_array(xattrs):
    """a(ayay)"""
    items = []
    for name, value in sorted(xattrs.items()):
        name = name.encode() + b"\0"
        items.append(with_offsets([name, value], [len(name)]))
    ends, total = [], 0
    for i in items:
        total += len(i)
        ends.append(total)
    return with_offsets(items, ends) if items else b""


def file_checksum(n):
    """The checksum of a content object: its header, (uuuusa(ayay)), framed by its size, and the file's bytes."""
    head = struct.pack(">IIII", n.uid, n.gid, TYPE_BITS[n.kind] | n.mode, 0) + n.target.encode() + b"\0"
    header = with_offsets([head, xattr_array(n.xattrs)], [len(head)])
    total = hashlib.sha256(struct.pack(">II", len(header), 0) + header)
    total.update(n.data)
    return total.hexdigest()


def dir_checksum(n):
    """The checksum of a dirmeta object, (uuua(ayay))."""
    return hashlib.sha256(struct.pack(">III", n.uid, n.gid, TYPE_BITS[DIR] | n.mode) + xattr_array(n.xattrs)).hexdigest()


def clean(name):
    return posixpath.normpath("/" + name).lstrip("/")


def kept_xattrs(headers):
    kept = {}
    for key, value in headers.items():
        name = key[len("SCHILY.xattr."):] if key.startswith("SCHILY.xattr.") else ""
        value = value.encode("utf-8", "surrogateescape")
        if not value or name.startswith("user.overlay.") or name == "user.ostreemeta":
            continue
        if name == "security.capability" or name.startswith("user."):
            kept[name] = value
    return kept


def read_layer(path):
    """The layer's files by their names, the last of a name winning."""
    nodes = {}
    with tarfile.open(path, "r:*", errorlevel=2) as tar:
        for m in tar:
            name = clean(m.name)
            if m.isdev():
                continue
            if m.islnk():
                nodes[name] = nodes[clean(m.linkname)]
                continue
            mode = m.mode & 0o7777
            if m.isdir():
                nodes[name] = Node(DIR, mode, m.uid, m.gid, xattrs=kept_xattrs(m.pax_headers))
            elif m.issym():
                nodes[name] = Node(LINK, 0o777, m.uid, m.gid, target=m.linkname)
            else:
                data = tar.extractfile(m).read()
                nodes[name] = Node(FILE, mode, m.uid, m.gid, len(data), "", data, kept_xattrs(m.pax_headers))
    for name in list(nodes):
        while name:
            name = posixpath.dirname(name)
            nodes.setdefault(name, Node(DIR, 0o755, 0, 0))
    nodes.setdefault("", Node(DIR, 0o755, 0, 0))
    return nodes


def adapt(n, mode, own):
    """What FORMAT.md's exceptions make of a file. own is (uid, gid) of a user who is not root, or None."""
    out = Node(n.kind, n.mode, n.uid, n.gid, n.size, n.target, n.data, n.xattrs)
    if own and mode in ("bare", "bare-user-only") and n.kind == FILE:
        out.mode |= 0o400
    if own and mode == "bare":
        out.uid, out.gid = own
        out.xattrs.pop("security.capability", None)
    if mode == "bare-user-only":
        out.uid = out.gid = 0
        out.xattrs = {}
        if n.kind == FILE:
            out.mode &= 0o755
        elif n.kind == DIR:
            out.mode &= 0o755
    return out


def expected(nodes, mode, own):
    lines = {}
    for name, n in nodes.items():
        n = adapt(n, mode, own)
        text = f"{n.kind}0{n.mode:04o} {n.uid} {n.gid} {n.size} "
        text += dir_checksum(n) if n.kind == DIR else file_checksum(n)
        text += f" /{name}" + (f" -> {n.target}" if n.kind == LINK else "")
        lines["/" + name] = text
    return lines


RECORD = re.compile(rb"^([-dl])(0[0-7]{4}) (\d+) (\d+) +(\d+) ([0-9a-f]{64})((?: [0-9a-f]{64})?) \{ (.*?) \} (/.*?)(?=\n[-dl]0[0-7]{4} |\n\Z)",
                    re.S | re.M)


def listed(repo, ref):
    out = subprocess.run(["ostree", "ls", "--repo=" + repo, "-RXC", ref], check=True, stdout=subprocess.PIPE,
                         env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}).stdout
    lines = {}
    length = 0
    for r in RECORD.finditer(out):
        kind, mode, uid, gid, size, first, second, xattrs, name = (g.decode() for g in r.groups())
        length += len(r.group(0)) + 1
        checksum = second.strip() if kind == DIR else first
        path = name.split(" -> ")[0] if kind == LINK else name
        lines[path] = f"{kind}{mode} {uid} {gid} {size} {checksum} {name}"
    if length != len(out):
        sys.exit(f"{ref}: ostree ls printed {len(out)} bytes, {length} of them understood")
    return lines


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--repo", required=True)
    p.add_argument("--mode", required=True)
    p.add_argument("--own", help="UID:GID of an importer who is not root")
    p.add_argument("pairs", nargs="+", help="REF LAYER …")
    a = p.parse_args()
    own = tuple(int(n) for n in a.own.split(":")) if a.own else None
    bad = 0
    for ref, layer in zip(a.pairs[::2], a.pairs[1::2]):
        want, got = expected(read_layer(layer), a.mode, own), listed(a.repo, ref)
        for name in sorted(want.keys() | got.keys()):
            if want.get(name) != got.get(name):
                bad += 1
                if bad <= 20:
                    print(f"layer:  {want.get(name, 'nothing')}\ncommit: {got.get(name, 'nothing')}")
        print(f"{ref}: {len(want)} files")
    sys.exit(1 if bad else 0)


main()
