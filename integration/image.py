#!/usr/bin/env python3
"""Writes OCI layouts and the odd layers that the suites import.

  image.py oci LAYOUT TAG LAYER…   adds an image; a layer is a tar file, gzip'd unless it is compressed, or named plain-*
  image.py layers LAYOUT TAG       prints the hex digests of an image's layers
  image.py digest LAYOUT TAG       prints the digest of an image's manifest
  image.py files TARFILE N         a layer of N small files
  image.py bad DIR                 a tar file each for layers that must be refused
  image.py hostile TARFILE         a layer of names that mean something to a shell
  image.py xattrs DIR              fails where the file system of DIR keeps no user.* attributes
  image.py odd DIR                 a tar file each for many odd layers; *-tar.* are those that tar extracts as they are meant
"""

import argparse
import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import struct
import subprocess
import sys
import tarfile
import tempfile

CREATED = "2023-04-05T06:07:08Z"
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"


def native_arch():
    """This machine's architecture, as images name it."""
    machine = os.uname().machine
    return {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "armv6l": "arm", "i686": "386"}.get(machine, machine)


def put_blob(layout, data):
    hex_digest = hashlib.sha256(data).hexdigest()
    path = os.path.join(layout, "blobs", "sha256")
    os.makedirs(path, exist_ok=True)
    with open(os.path.join(path, hex_digest), "wb") as f:
        f.write(data)
    return {"digest": "sha256:" + hex_digest, "size": len(data)}


def read_index(layout):
    try:
        with open(os.path.join(layout, "index.json")) as f:
            return json.load(f)
    except FileNotFoundError:
        return {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}


def find(layout, tag):
    for m in read_index(layout)["manifests"]:
        if m.get("annotations", {}).get("org.opencontainers.image.ref.name") == tag:
            return m
    sys.exit(f"{layout} holds no {tag}")


def read_layer(path):
    """The blob, the tar stream in it, and the suffix of its media type."""
    with open(path, "rb") as f:
        blob = f.read()
    if path.endswith(".gz"):
        return blob, gzip.decompress(blob), "+gzip"
    if path.endswith(".bz2"):
        return blob, bz2.decompress(blob), ""
    if path.endswith(".xz"):
        return blob, lzma.decompress(blob), ""
    if path.endswith(".zst"):
        return blob, subprocess.run(["zstd", "-dcq"], input=blob, stdout=subprocess.PIPE, check=True).stdout, "+zstd"
    if os.path.basename(path).startswith("plain-"):
        return blob, blob, ""
    return gzip.compress(blob, 6, mtime=0), blob, "+gzip"


def write_image(layout, tag, layers, arch, system, created, author):
    config = {"architecture": arch, "os": system, "config": {}, "rootfs": {"type": "layers", "diff_ids": []}}
    if created:
        config["created"] = created
    if author:
        config["author"] = author
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": None, "layers": []}
    for path in layers:
        blob, stream, suffix = read_layer(path)
        manifest["layers"].append({"mediaType": LAYER + suffix, **put_blob(layout, blob)})
        config["rootfs"]["diff_ids"].append("sha256:" + hashlib.sha256(stream).hexdigest())
    manifest["config"] = {"mediaType": CONFIG, **put_blob(layout, json.dumps(config).encode())}
    index = read_index(layout)
    index["manifests"] = [m for m in index["manifests"]
                          if m.get("annotations", {}).get("org.opencontainers.image.ref.name") != tag]
    index["manifests"].append({"mediaType": MANIFEST, **put_blob(layout, json.dumps(manifest).encode()),
                               "annotations": {"org.opencontainers.image.ref.name": tag}})
    with open(os.path.join(layout, "index.json"), "w") as f:
        json.dump(index, f)
    with open(os.path.join(layout, "oci-layout"), "w") as f:
        f.write('{"imageLayoutVersion":"1.0.0"}')


def write_files(path, count):
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for i in range(count):
            data = f"file {i}\n".encode()
            name = hashlib.sha256(data).hexdigest()  # so that the record of many does not get small by compression
            for directory in ([] if i % 500 else ["."] * (i == 0) + [f"dir{i // 500}"]):  # so that the layer is its own clean stream
                info = tarfile.TarInfo(directory)
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(info)
            info = tarfile.TarInfo(f"dir{i // 500}/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


# --- odd layers ---------------------------------------------------------------------------------------------------------

class Layer:
    """A tar file that is written header by header."""

    def __init__(self, format=tarfile.PAX_FORMAT):
        self.out, self.format = io.BytesIO(), format

    def add(self, name, data=None, kind=None, link="", mode=None, uid=0, gid=0, xattrs=None, pax=None, **other):
        info = tarfile.TarInfo(name)
        info.type = kind or (tarfile.REGTYPE if data is not None else tarfile.DIRTYPE)
        info.mode = (0o644 if data is not None else 0o755) if mode is None else mode
        info.uid, info.gid, info.linkname, info.mtime = uid, gid, link, other.pop("mtime", 1600000000)
        if data is not None:
            data = data.encode() if isinstance(data, str) else data
            info.size = len(data)
        for k, v in other.items():
            setattr(info, k, v)
        info.pax_headers = dict(pax or {})
        for k, v in (xattrs or {}).items():
            info.pax_headers["SCHILY.xattr." + k] = v.decode("utf-8", "surrogateescape") if isinstance(v, bytes) else v
        head = info.tobuf(self.format, "utf-8", "surrogateescape")
        self.out.write(head)
        if data:
            self.out.write(data + b"\0" * (-len(data) % 512))
        return self

    def file(self, name, data="content\n", **kw):
        return self.add(name, data, **kw)

    def dir(self, name, **kw):
        return self.add(name, **kw)

    def sym(self, name, target, **kw):
        return self.add(name, kind=tarfile.SYMTYPE, link=target, **kw)

    def hard(self, name, target, **kw):
        return self.add(name, kind=tarfile.LNKTYPE, link=target, **kw)

    def raw(self, data):
        self.out.write(data)
        return self

    def end(self, blocks=2):
        self.out.write(b"\0" * 512 * blocks)
        return self.out.getvalue()


def v7(name, data=b"", flag=b"\0", link=b"", mode=0o644, uid=0, gid=0):
    """A header of the seventh edition: no magic, no user name."""
    head = bytearray(512)
    head[0:len(name)] = name
    for at, width, value in ((100, 8, mode), (108, 8, uid), (116, 8, gid), (124, 12, len(data)), (136, 12, 1600000000)):
        head[at:at + width] = b"%0*o\0" % (width - 1, value)
    head[156:157] = flag
    head[157:157 + len(link)] = link
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + data + b"\0" * (-len(data) % 512)


def sparse(*options):
    """What GNU tar makes of a file with holes."""
    with tempfile.TemporaryDirectory() as d:
        with open(os.path.join(d, "holes"), "wb") as f:
            f.write(b"begin")
            f.seek(1 << 20)
            f.write(b"middle")
            f.truncate(3 << 20)
        with open(os.path.join(d, "plain"), "wb") as f:
            f.write(b"after the holes\n")
        return subprocess.run(["tar", "-c", "-f", "-", "-S", "--owner=0", "--group=0", "--mtime=@1600000000", "-C", d, *options,
                               "holes", "plain"], check=True, stdout=subprocess.PIPE).stdout


def odd_layers():
    """Yields (name, bytes, well): well where a plain tar -x gives what is meant."""
    gnu, ustar = tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT
    cap2 = struct.pack("<IIIII", 0x02000001, 0x2000, 0, 0, 0)
    cap3 = struct.pack("<IIIIII", 0x03000001, 0x2000, 0, 0, 0, 0)

    yield "empty", Layer().end(), True
    yield "empty-20-blocks", Layer().end(20), True
    yield "dot-prefix", Layer().dir("./").dir("./a").file("./a/b").end(), True
    yield "slash-prefix", Layer().dir("/a").file("/a/b").hard("/c", "/a/b").end(), True
    yield "dots-within", Layer().dir("a//b/./c").file("./a/.//b/./d").end(), False
    yield "missing-parents", Layer().file("a/b/c/d").sym("x/y/z", "../q").end(), True
    yield "parent-comes-late", Layer().file("a/b").dir("a", mode=0o750, uid=7, gid=8).end(), False
    yield "file-twice", Layer().file("a", "first").file("b").file("a", "second", mode=0o600).end(), True
    yield "file-twice-same", Layer().file("a").file("a").end(), True
    yield "parents-between", Layer().dir("./", mode=0o711).dir("root", mode=0o700).file("root/.ssh/x/key", uid=1000, gid=1000).dir(
        "tmp", mode=0o1777).file("tmp/a/b", uid=1000).end(), True
    yield "parent-hands-down", Layer().dir("a", mode=0o2775, gid=9).file("a/b/c").dir("d").dir("a/e").file("a/e/f").end(), False
    yield "closed-and-back", Layer().dir("a", mode=0o555).file("a/b").dir("c").file("a/d").dir("a/e", mode=0).file("c/f").file("a/e/g").end(), True
    yield "no-name", v7(b"", flag=b"5", mode=0o711) + v7(b"a", b"x") + Layer().end(), False
    yield "dots-back", Layer().file("a/../b").hard("c", "d/../b").dir("e/f/..").file("e/../g/h").end(), False
    yield "dir-twice", Layer().dir("a", mode=0o700).file("a/b").dir("a", mode=0o2775, gid=50).end(), False
    yield "file-then-dir", Layer().file("a").dir("a").file("a/b").end(), False
    yield "dir-then-file", Layer().dir("a").file("a/b").file("a", "now a file").end(), False
    yield "dir-then-link", Layer().dir("a").file("a/b").sym("a", "c").end(), False
    yield "link-then-file", Layer().sym("a", "b").file("a", "now a file").end(), False
    yield "link-then-dir", Layer().dir("b").sym("a", "b").dir("a").file("a/c").end(), False
    yield "link-twice", Layer().sym("a", "b").sym("a", "c").end(), False
    yield "through-link", Layer().dir("usr").dir("usr/lib").sym("lib", "usr/lib").file("lib/x").end(), True
    yield "through-absolute-link", Layer().dir("real").sym("l", "/real").file("l/x").end(), False
    yield "through-dotdot-link", Layer().dir("a").dir("b").sym("a/l", "../b").file("a/l/x").end(), False
    yield "link-to-hard-link", Layer().file("a").hard("b", "a").hard("c", "b").hard("d", "c").end(), True
    yield "link-to-symlink", Layer().sym("a", "nowhere").hard("b", "a").hard("c", "b").end(), True
    yield "hard-link-prefixes", Layer().dir("d").file("d/a").hard("b", "./d/a").hard("./c", "d/a").end(), True
    yield "hard-link-forward", Layer().hard("b", "a").file("a").end(), False
    yield "hard-link-below", Layer().hard("b", "in/another/layer").file("a").end(), False
    yield "hard-link-itself", Layer().file("a").hard("a", "a").end(), False
    yield "hard-link-overwritten", Layer().file("a", "old").hard("b", "a").file("a", "new").end(), False
    yield "hard-link-replaces", Layer().file("a", "one").file("b", "two").hard("b", "a").end(), False
    yield "hard-link-own-mode", Layer().file("a", mode=0o600, uid=3).hard("b", "a", mode=0o777, uid=4).end(), True
    yield "hard-link-setuid", Layer().file("a", mode=0o4755).hard("b", "a").end(), True
    yield "pax-long-path", Layer().file("/".join(["d" * 60] * 8)).end(), True
    yield "pax-long-link", Layer().sym("l", "t/" * 300 + "t").end(), True
    yield "pax-names", Layer().file("žluťoučký kůň").file("馬").sym("🐎", "馬/č").end(), True
    yield "pax-decomposed", Layer().file("\u00e9").file("e\u0301", "another file").sym("l", "e\u0301").hard("h", "e\u0301").end(), True
    yield "pax-global", Layer().raw(tarfile.TarInfo.create_pax_global_header({"comment": "none"})).file("a").end(), True
    yield "pax-times", Layer().file("a", mtime=-3).file("b", pax={"mtime": "1600000000.123456789", "atime": "1.5"}).end(), True
    yield "pax-large-ids", Layer().file("a", uid=2097152, gid=2147483646).dir("d", uid=2 ** 31 - 2).end(), True
    yield "pax-user-names", Layer().file("a", uid=33, uname="nobody", gname="žluť").end(), True
    yield "gnu-long-names", Layer(gnu).file("d" * 90 + "/" + "f" * 200).sym("s" * 120, "t" * 300).hard(
        "h" * 130, "d" * 90 + "/" + "f" * 200).end(), True
    yield "gnu-binary-ids", Layer(gnu).file("a", uid=3000000, gid=4000000).end(), True
    yield "gnu-binary-time", Layer(gnu).file("a", mtime=-100).file("b", mtime=2 ** 34).end(), True
    yield "gnu-volume", Layer(gnu).add("the label", kind=b"V").file("a").end(), True
    yield "gnu-dumpdir", Layer(gnu).add("d", b"Ya\0\0", kind=b"D", mode=0o755).file("d/a").end(), False
    yield "ustar", Layer(ustar).dir("d", mode=0o711).file("d/a", uid=1, gid=2).sym("l", "d/a").hard("h", "d/a").end(), True
    yield "ustar-prefix", Layer(ustar).file("p" * 100 + "/" + "q" * 40 + "/" + "n" * 90).end(), True
    yield "v7-file", v7(b"a", b"v7\n", uid=5, gid=6) + Layer().end(), True
    yield "v7-dir", v7(b"d/", mode=0o750) + v7(b"d/a", b"in it") + Layer().end(), True
    yield "v7-links", v7(b"a", b"x") + v7(b"h", flag=b"1", link=b"a") + v7(b"s", flag=b"2", link=b"a") + Layer().end(), True
    yield "name-255", Layer().file("n" * 255).file("é" * 127).end(), True
    yield "name-newline", Layer().file("a\nb").dir("c\nd", mode=0o700).file("c\nd/e").hard("f\ng", "a\nb").sym("h\ni", "j\nk").end(), True
    yield "name-quotes", Layer().file("it's").file('a "b"').file("$HOME `id` $(id)").file("a\\b\\").file("*?[a]").file("~").end(), True
    yield "name-dashes", Layer().file("--checkpoint=1").file("--checkpoint-action=exec=sh").file("-").file("--").file("-rf").end(), True
    yield "name-blanks", Layer().file(" ").file("a ").file(" b").file("tab\there").file("\r").file("\x01\x1b[31m\x7f").end(), True
    yield "name-dots", Layer().file("...").dir("..a").file("..a/b..").file("a.").end(), True
    yield "name-percent", Layer().file("%s%n").file("a=b").file("=1 /a").file("a:b").file("#c").file("{d,e}").end(), True
    yield "whiteouts", Layer().dir("a").file("a/.wh..wh..opq", "").file(".wh.b", "").dir("b").file("b/c").file("a/.wh.-", "").file(
        "a/-").end(), True
    yield "whiteout-odd", Layer().file(".wh.", "").file(".wh...", "").file(".wh..wh.plnk", "full").end(), True
    yield "modes", Layer().file("u", mode=0o4711).file("g", mode=0o2755).file("t", mode=0o1644).dir("d", mode=0o1777).dir(
        "s", mode=0o2770).file("all", mode=0o7777).end(), True
    yield "modes-none", Layer().file("f", mode=0).dir("d", mode=0).file("d/f", mode=0o111).file("w", mode=0o222).end(), True
    yield "modes-type-bits", Layer(gnu).file("f", mode=0o100644).dir("d", mode=0o040755).file("x", mode=0o177777).end(), False
    yield "modes-of-link", Layer().sym("l", "t", mode=0o644).sym("m", "t", mode=0, uid=9, gid=9).end(), True
    yield "root-entry", Layer().dir("./", mode=0o711, uid=5, gid=6).file("a").end(), True
    yield "root-twice", Layer().dir(".", mode=0o700).file("a").dir("./", mode=0o755).end(), False
    yield "root-late", Layer().file("a").dir("./", mode=0o750).end(), True
    yield "xattrs-user", Layer().file("f", xattrs={"user.a": "1", "user.b.c": "žluť"}).dir("d", xattrs={"user.d": "2"}).end(), True
    yield "xattrs-binary", Layer().file("f", xattrs={"user.bin": bytes(range(1, 256))}).end(), True
    yield "xattrs-capability", Layer().file("f", mode=0o755, xattrs={"security.capability": cap2}).hard("g", "f").end(), True
    yield "xattrs-capability-3", Layer().file("f", xattrs={"security.capability": cap3}).end(), False
    yield "xattrs-dropped", Layer().file("f", xattrs={
        "security.selinux": "system_u:object_r:bin_t:s0", "trusted.overlay.opaque": "y", "user.overlay.opaque": "y",
        "user.ostreemeta": "x" * 12, "security.ima": "x"}).end(), False
    yield "xattrs-empty", Layer().file("f", xattrs={"user.empty": "", "user.full": "x"}).end(), False
    yield "xattrs-link", Layer().sym("l", "t", xattrs={"user.a": "1"}).end(), False
    yield "devices", Layer().add("c", kind=tarfile.CHRTYPE, devmajor=1, devminor=3).add("b", kind=tarfile.BLKTYPE, devmajor=7).add(
        "f", kind=tarfile.FIFOTYPE).file("a").end(), False
    yield "device-then-file", Layer().add("a", kind=tarfile.CHRTYPE, devmajor=1).file("a", "now a file").end(), False
    yield "file-then-device", Layer().file("a").add("a", kind=tarfile.CHRTYPE, devmajor=1).end(), False
    yield "contiguous", Layer().add("a", "whole", kind=tarfile.CONTTYPE).end(), True
    yield "type-unknown", Layer().add("a", "what", kind=b"Z").end(), False
    yield "dir-with-size", Layer().add("d", "", kind=tarfile.DIRTYPE, mode=0o755).file("d/a").end(), True
    yield "slash-means-dir", v7(b"d/", flag=b"0", mode=0o755) + v7(b"d/a", b"x") + Layer().end(), False
    yield "sizes", Layer().file("0", "").file("1", "x").file("511", "x" * 511).file("512", "x" * 512).file("513", "x" * 513).file(
        "100000", "y" * 100000).end(), True
    yield "zeros", Layer().file("z", b"\0" * 5000).end(), True
    yield "no-end", Layer().file("a").end(0), True
    yield "half-end", Layer().file("a").end(1), False
    yield "rubbish-after-end", Layer().file("a").end() + b"rubbish" * 999, True
    yield "archive-after-end", Layer().file("a").end() + Layer().file("b").end(), True
    yield "deep", Layer().file("/".join("d%d" % i for i in range(120)) + "/f").end(), True
    yield "sparse-gnu", sparse("--format=gnu"), True
    for v in ("0.0", "0.1", "1.0"):
        yield "sparse-pax-" + v, sparse("--format=pax", "--sparse-version=" + v), True
    many = Layer()
    for i in range(700):
        many.file(f"many/{i}", str(i))
    yield "many", many.end(), True


def write_bad(directory):
    """Layers that must be refused."""
    for name, data in (
        ("name-not-utf8", Layer(tarfile.GNU_FORMAT).file("a\udcff").end()),
        ("target-not-utf8", Layer(tarfile.GNU_FORMAT).sym("a", "b\udcff").end()),
        ("name-dotdot", Layer().file("a/../../b").end()),
        ("no-tar", b"this is no tar archive\n" * 500),
        ("cut-header", Layer().file("a", "x" * 2000).file("b").out.getvalue()[:2560 + 100]),
        ("cut-payload", Layer().file("a", "x" * 200000).out.getvalue()[:100000]),
        ("below-file", Layer().file("a").file("a/b").end()),
        ("link-loop", Layer().sym("a", "b").sym("b", "a").file("a/c").end()),
        ("link-to-dir", Layer().dir("a").hard("b", "a").end()),
    ):
        with open(os.path.join(directory, name + ".tar"), "wb") as f:
            f.write(data)


def write_hostile(path):
    """A layer of names that mean something to a shell, of modes that a log must restore."""
    layer = Layer().dir("./")
    for n in ("it's", 'a "b" c', "$HOME `id` $(id)", "back\\slash\\", "*?[a]", "~", "--checkpoint=1", "-n", "%s\\n", "a=b;c&d|e", "#c", "{d,e}",
              " lead and trail ", "tab\there", "\x01\x1b[31m", "žluť 馬", "a>b<c", "!x"):
        layer.file(n, n, mode=0)
    with open(path, "wb") as f:
        f.write(layer.end())


def write_odd(directory):
    for n, (name, data, well) in enumerate(odd_layers()):
        path = os.path.join(directory, f"{n:03}-{name}{'-tar' if well else ''}.tar")
        with open(path, "wb") as f:
            f.write(data)
    data = Layer().dir("c").file("c/packed", "the same in every compression\n" * 100)
    for name, suffix, pack in (("gzip", ".gz", gzip.compress), ("bzip2", ".bz2", bz2.compress), ("xz", ".xz", lzma.compress)):
        with open(os.path.join(directory, f"9-{name}-tar.tar{suffix}"), "wb") as f:
            f.write(pack(data.file(f"c/{name}").out.getvalue() + b"\0" * 1024))
    with open(os.path.join(directory, "9-members-tar.tar.gz"), "wb") as f:  # gzip of two members is one stream
        stream = data.file("c/members").out.getvalue() + b"\0" * 1024
        f.write(gzip.compress(stream[:700]) + gzip.compress(stream[700:]))
    stream = data.file("c/zstd").out.getvalue() + b"\0" * 1024
    with open(os.path.join(directory, "9-zstd-tar.tar.zst"), "wb") as f:
        f.write(subprocess.run(["zstd", "-cq"], input=stream, stdout=subprocess.PIPE, check=True).stdout)
    with open(os.path.join(directory, "plain-tar.tar"), "wb") as f:
        f.write(data.file("c/plain").out.getvalue() + b"\0" * 1024)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("command", choices=["oci", "layers", "digest", "files", "odd", "bad", "hostile", "xattrs"])
    p.add_argument("args", nargs="+")
    p.add_argument("--arch", default=native_arch())
    p.add_argument("--os", default="linux")
    p.add_argument("--created", default=CREATED)
    p.add_argument("--author")
    a = p.parse_args()
    if a.command == "oci":
        write_image(a.args[0], a.args[1], a.args[2:], a.arch, a.os, a.created, a.author)
    elif a.command == "digest":
        print(find(*a.args)["digest"])
    elif a.command == "layers":
        with open(os.path.join(a.args[0], "blobs", find(*a.args)["digest"].replace(":", "/"))) as f:
            for layer in json.load(f)["layers"]:
                print(layer["digest"].split(":")[1])
    elif a.command == "files":
        write_files(a.args[0], int(a.args[1]))
    elif a.command == "odd":
        write_odd(a.args[0])
    elif a.command == "hostile":
        write_hostile(a.args[0])
    elif a.command == "bad":
        write_bad(a.args[0])
    else:
        with tempfile.NamedTemporaryFile(dir=a.args[0]) as f:
            os.setxattr(f.name, "user.test", b"x")


if __name__ == "__main__":
    main()
