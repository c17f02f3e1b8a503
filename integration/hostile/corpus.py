#!/usr/bin/env python3
"""The hostile images that 160-hostile.bats imports, each made from its description below, as an OCI layout with the tag "x".

A case's status is how an import must end: 0 where the image must come in whole, otherwise its text is what the error says. Its size is
"short" where it takes little, "long" where it takes much or differs little from others, "both" where the long one is larger, and is
imported with the limits that the program has by itself instead of those in its options.
"""

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

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from image import CONFIG, INDEX, LAYER, MANIFEST, Layer, native_arch, put_blob, v7  # noqa: E402

KB, MB, GB, TB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
END = b"\0" * 1024
GNU, USTAR = tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT


# --- layers that are streams ----------------------------------------------------------------------------------------------

class Blob:
    """A blob that is written piece by piece."""

    def __init__(self, layout):
        self.directory = os.path.join(layout, "blobs", "sha256")
        os.makedirs(self.directory, exist_ok=True)
        self.file = tempfile.NamedTemporaryFile(dir=self.directory, delete=False)
        self.sum, self.size = hashlib.sha256(), 0

    def write(self, data):
        self.file.write(data)
        self.sum.update(data)
        self.size += len(data)

    def end(self):
        self.file.close()
        os.chmod(self.file.name, 0o644)
        os.rename(self.file.name, os.path.join(self.directory, self.sum.hexdigest()))
        return {"digest": "sha256:" + self.sum.hexdigest(), "size": self.size}


def zstd(data, *options):
    return subprocess.run(["zstd", "-qc", *options], input=data, stdout=subprocess.PIPE, check=True).stdout


def xz(data, dictionary=8 * MB):
    return lzma.compress(data, lzma.FORMAT_XZ, filters=[{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": dictionary}])


def bomb(pack, size, head=b"", piece=64 * MB):
    """head and then size bytes of zeros, as compressed streams one behind the other."""
    def write(out):
        if head:
            out.write(pack(head))
        member = pack(b"\0" * piece)
        for _ in range(size // piece):
            out.write(member)
    return write


def through_zstd(pieces):
    """What a generator yields, compressed as one stream."""
    def write(out):
        with subprocess.Popen(["zstd", "-qc", "-1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            if os.fork() == 0:
                child.stdout.close()
                for piece in pieces():
                    child.stdin.write(piece)
                child.stdin.close()
                os._exit(0)
            child.stdin.close()
            while data := child.stdout.read(MB):
                out.write(data)
        os.wait()
    return write


def header(name, size=0, kind=b"0", link=b"", **fields):
    """A header of GNU tar. size and the fields uid, gid, mtime may be bytes, which are taken as they are."""
    head = bytearray(512)
    head[:len(name)] = name
    for at, width, value in ((100, 8, fields.get("mode", 0o644)), (108, 8, fields.get("uid", 0)), (116, 8, fields.get("gid", 0)), (124, 12, size),
                             (136, 12, fields.get("mtime", 1600000000))):
        if isinstance(value, int):
            value = b"%0*o\0" % (width - 1, value) if value < 8 ** (width - 1) else base256(value, width)
        head[at:at + width] = value
    head[156:157] = kind
    head[157:157 + len(link)] = link
    head[257:265] = b"ustar  \0"
    extra = fields.get("extra", b"")  # at 345: what a sparse header has
    head[345:345 + len(extra)] = extra
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % (sum(head) + fields.get("lie", 0))
    return bytes(head)


def base256(value, width):
    """A number of a header as GNU tar writes those that octal digits cannot: in binary."""
    b = bytearray((value & ((1 << (8 * width)) - 1)).to_bytes(width, "big"))
    b[0] = 0xff if value < 0 else 0x80
    return bytes(b)


def padded(data):
    return data + b"\0" * (-len(data) % 512)


def record(key, value):
    """A record of a pax header."""
    body = b" " + key + b"=" + value + b"\n"
    size = len(body)
    while size != len(body) + len(str(size)):
        size = len(body) + len(str(size))
    return str(size).encode() + body


def pax(*records, kind=b"x"):
    body = b"".join(record(k, v) for k, v in records)
    return header(b"pax", len(body), kind) + padded(body)


def gnu_long(kind, text):
    return header(b"././@LongLink", len(text) + 1, kind) + padded(text + b"\0")


def octal(value):
    return b"%011o\0" % value if value < 8 ** 11 else base256(value, 12)


def old_sparse(name, size, regions=((0, 0),)):
    """A file with holes, as GNU tar wrote it first."""
    extra = b"\0" * 41 + b"".join(octal(o) + octal(n) for o, n in regions[:4])
    extra += b"\0" * (41 + 96 + 1 - len(extra)) + octal(size)
    return header(name, 0, b"S", extra=extra)


def pax_sparse(name, size, regions="0,0"):
    return pax((b"GNU.sparse.major", b"0"), (b"GNU.sparse.minor", b"1"), (b"GNU.sparse.numblocks", str(len(regions.split(",")) // 2).encode()),
               (b"GNU.sparse.map", regions.encode()), (b"GNU.sparse.size", str(size).encode())) + header(name)


def many_files(count, name=lambda i: b"d%05d/f%03d" % (i // 1000, i % 1000)):
    """A generator of the headers of many empty files."""
    blank = bytearray(header(b""))

    def pieces():
        zero = sum(blank[:148]) + sum(blank[156:]) + 8 * 32
        batch = []
        for i in range(count):
            n = name(i)
            head = bytearray(blank)
            head[:len(n)] = n
            head[148:156] = b"%06o\0 " % (zero + sum(n))
            batch.append(bytes(head))
            if len(batch) == 4096:
                yield b"".join(batch)
                batch = []
        yield b"".join(batch) + END
    return pieces


def long_name(name):
    return gnu_long(b"L", name)


def named(names):
    """Empty files of long names."""
    return b"".join(long_name(n) + header(b"x") for n in names)


# --- images ---------------------------------------------------------------------------------------------------------------

def image(layout, layers=(), config=None, edit=None, raw=None, media=None):
    """Writes an image. A layer is bytes, or a function that writes them. edit changes the manifest; raw replaces its text."""
    infos = []
    for layer in layers:
        blob = Blob(layout)
        layer(blob) if callable(layer) else blob.write(layer)
        infos.append({"mediaType": LAYER, **blob.end()})
    if config is None:
        config = {"architecture": native_arch(), "os": "linux", "rootfs": {"type": "layers", "diff_ids": [i["digest"] for i in infos]}}
    if not isinstance(config, bytes):
        config = json.dumps(config).encode()
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": {"mediaType": CONFIG, **put_blob(layout, config)}, "layers": infos}
    if edit:
        edit(manifest)
    text = json.dumps(manifest).encode() if raw is None else raw(manifest)
    top(layout, {"mediaType": media or MANIFEST, **put_blob(layout, text)})


def top(layout, descriptor):
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [{**descriptor, "annotations": {"org.opencontainers.image.ref.name": "x"}}]}
    for name, value in (("index.json", index), ("oci-layout", {"imageLayoutVersion": "1.0.0"})):
        with open(os.path.join(layout, name), "w") as f:
            json.dump(value, f)


CASES = {}


def case(name, group, make, text="", status=None, options="", size="short"):
    """make(layout, long) makes the image. Without a text it must come in."""
    assert name not in CASES, name
    CASES[name] = (group, make, size, (1 if text else 0) if status is None else status, text, options)


def config_of(*streams):
    """The config of an image whose layers come to these tar streams."""
    return {"architecture": native_arch(), "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(s).hexdigest() for s in streams]}}


def layer_case(name, group, layer, text="", status=None, options="", size="short", config=None):
    """A case of one layer: bytes, a function that writes them, or a function of whether all of it is wanted that returns either."""
    def make(layout, long):
        image(layout, [layer(long) if size == "both" else layer], config=config)
    case(name, group, make, text, status, options, size)


def manifest_case(name, edit=None, text="", status=None, **image_options):
    def make(layout, _):
        image(layout, [SMALL], edit=edit, **image_options)
    case(name, "manifests", make, text, status)


SMALL = Layer().dir("d").file("d/f").end()
OVER = "unpacked, the limit of --max-layer-size"
FILES = "the limit of --max-layer-files"

# Bombs: little that becomes much.
for form, pack in (("gzip", gzip.compress), ("zstd", zstd), ("bzip2", bz2.compress), ("xz", xz)):
    layer_case(f"{form}-zeros", "bombs", lambda long, pack=pack: bomb(pack, 100 * GB if long else GB // 4, piece=64 * MB if long else 16 * MB), OVER, options="--max-layer-size=16MiB", size="both")
    layer_case(f"{form}-file", "bombs", bomb(pack, 64 * MB, header(b"zeros", 100 * GB), piece=16 * MB), f'with "zeros", which has {100 * GB} bytes, it has more than {32 * GB} bytes {OVER}')
layer_case("gzip-files", "bombs", bomb(gzip.compress, 0, header(b"a", 20 * MB) + b"\0" * 20 * MB + header(b"b", 20 * MB)), f'with "b", which has {20 * MB} bytes',
           options="--max-layer-size=32MiB")
layer_case("xz-dictionary", "bombs", bomb(lambda b: xz(b, 1536 * MB), 100 * GB, piece=GB), OVER, size="long")
layer_case("zstd-window", "bombs", zstd(SMALL, "--ultra", "--long=31"), "window size exceeded")
layer_case("gzip-empty-members", "bombs", gzip.compress(b"") * 200000 + gzip.compress(SMALL), config=config_of(SMALL))
layer_case("gzip-in-gzip", "bombs", gzip.compress(gzip.compress(SMALL)), "not a tar archive")
layer_case("sparse-gnu", "bombs", old_sparse(b"holes", TB) + END, f'"holes" is a sparse file of {TB} bytes')
layer_case("sparse-pax", "bombs", pax_sparse(b"holes", TB) + END, f'"holes" is a sparse file of {TB} bytes')
layer_case("sparse-most", "bombs", pax_sparse(b"holes", 2 ** 63 - 1) + END, "half the limit of --max-layer-size")
layer_case("sparse-many", "bombs", b"".join(pax_sparse(b"holes%d" % i, 3 * MB) for i in range(20)) + END,
           "half the limit of --max-layer-size", options="--max-layer-size=100MiB")
layer_case("files", "bombs", lambda long: through_zstd(many_files(10_000_000 if long else 20_000)), FILES, options="--max-layer-files=5000", size="both")
layer_case("pax-1G", "bombs", bomb(gzip.compress, GB, header(b"pax", GB, b"x"), piece=16 * MB), "the headers of its entry 1 are longer than any archiver makes them")
layer_case("pax-endless", "bombs", through_zstd(lambda: (pax((b"comment", b"c" * 500 * KB)) for _ in range(1000))),
           "the headers of its entry 1 are longer than any archiver makes them")
layer_case("long-names-endless", "bombs", through_zstd(lambda: (gnu_long(b"L", b"n" * 500 * KB) for _ in range(1000))),
           "the headers of its entry 1 are longer than any archiver makes them")
layer_case("name-1M", "bombs", named([b"n" * 10 ** 6]) + END, "has a part of 1000000 bytes, and 255 is the most")
layer_case("name-1M-pax", "bombs", pax((b"path", b"n/" * 500000)) + header(b"x") + END, "has 999999 bytes, and 4095 is the most")
layer_case("name-1M-dots", "bombs", named([b"./" * 500000 + b"a"]) + END)
layer_case("name-1M-in-and-out", "bombs", named([b"a/" * 500000 + b"../../b"]) + END, "and 4095 is the most")
layer_case("name-1M-out", "bombs", named([b"../" * 300000 + b"b"]) + END, "leads out of the layer")
layer_case("target-1M", "bombs", gnu_long(b"K", b"t/" * 500000) + header(b"s", kind=b"2") + END, "has 1000000 bytes, and 4095 is the most")
layer_case("names", "bombs", lambda long: through_zstd(lambda: (named([b"%08d-" % i + b"n" * 200 + b"/." * 1900]) for i in range(200_000 if long else 700))),
           "the names and attributes of its first", options="--max-layer-files=1000", size="both")
layer_case("directories", "bombs", lambda long: through_zstd(lambda: (named([b"%08d/" % i + b"d/" * 2000 + b"f"]) for i in range(2000 if long else 10))),
           "directories that it does not name, the limit of --max-layer-files", options="--max-layer-files=5000", size="both")
# Each name leads through 39 links of 2,000 steps each.
LINKS = [gnu_long(b"K", (b"l%02d/" % (i - 1) if i else b"") + b"./" * 1990 + b".") + header(b"l%02d" % i, kind=b"2") for i in range(39)]
layer_case("steps", "bombs", lambda long: through_zstd(lambda: [header(b"d/", kind=b"5"), *LINKS] + [header(b"l38/f%d" % i) for i in range(200_000 if long else 60)]),
           "directories and links, which is what --max-layer-files=", options="--max-layer-files=1000", size="both")
layer_case("deep", "bombs", named([b"d/" * 2000 + b"f"]) + END)
layer_case("deep-by-links", "bombs", b"".join([gnu_long(b"K", (b"l%d/" % (i - 1) if i else b"") + b"d/" * 1900 + b"e") + header(b"l%d" % i, kind=b"2") for i in range(9)]) +
           header(b"l8/f") + END, "once the layer's links are followed, and 4095 is the most")

# Names that lead elsewhere.
UTF8 = "is not UTF-8, and OSTree holds no other"
for name, layer, text in (
    ("dotdot", Layer().file("../victim").end(), "leads out of the layer"),
    ("dotdot-deep", Layer().dir("a").file("a/b/../../../victim").end(), "leads out of the layer"),
    ("dotdot-dir", Layer().dir("..", mode=0o777).end(), "leads out of the layer"),
    ("dotdot-hard-link", Layer().hard("a", "../../../../etc/passwd").end(), "leads out of the layer"),
    ("absolute", Layer().file("/victim").end(), ""),
    ("absolute-hard-link", Layer().hard("a", "/etc/passwd").end(), ""),
    ("through-link-out", Layer().sym("l", "../../../../../tmp").file("l/victim").end(), ""),
    ("through-link-absolute", Layer().sym("l", "/tmp").file("l/victim").end(), ""),
    ("through-proc", Layer().sym("l", "/proc/self/root/tmp").file("l/victim").end(), ""),
    ("link-then-dir-out", Layer().sym("l", "/tmp").dir("l", mode=0o777).file("l/victim").end(), ""),
    ("hard-link-to-link-out", Layer().sym("l", "/etc/passwd").hard("h", "l").file("h", "new").end(), ""),
    ("link-loop", Layer().sym("a", "b").sym("b", "a").file("a/c").end(), "leads through more than 40 symbolic links"),
    ("link-to-itself", Layer().sym("a", "a").file("a/b").end(), "leads through more than 40 symbolic links"),
    ("link-loop-alone", Layer().sym("a", "b").sym("b", "a").end(), ""),
    ("hard-link-loop", Layer().hard("a", "b").hard("b", "a").end(), ""),
    ("hard-link-to-root", Layer().hard("a", "./").end(), "leads to the directory"),
    ("hard-link-nowhere", Layer().add("a", kind=tarfile.LNKTYPE, link="").end(), "has no target"),
    ("link-nowhere", Layer().sym("a", "").end(), "has no target"),
    ("devices", Layer().add("dev/mem", kind=tarfile.CHRTYPE, devmajor=1, devminor=1).add("dev/sda", kind=tarfile.BLKTYPE, devmajor=8).add(
        "fifo", kind=tarfile.FIFOTYPE).hard("again", "dev/mem").end(), ""),
    ("through-device", Layer().add("a", kind=tarfile.CHRTYPE, devmajor=1).file("a/b").end(), "lies below a file"),
    ("whiteouts", Layer().file(".wh..", "").file(".wh...", "").file(".wh.", "").file("a/.wh..wh..opq", "").end(), ""),
    ("nul", pax((b"path", b"a\0b")) + header(b"x") + END, "not a tar archive"),
    ("no-name", header(b"") + END, "a file has no name"),
    ("root-is-file", header(b"./.") + END, "is the layer's root, which must be a directory"),
    ("root-is-link", Layer().sym("/", "/etc").end(), "is the layer's root, which must be a directory"),
    ("not-utf8", header(b"a\xff\xfe") + END, UTF8),
    ("target-not-utf8", header(b"a", kind=b"2", link=b"\xc0\xaf") + END, UTF8),
    ("overlong-utf8", header(b"\xc0\xae\xc0\xae/victim") + END, UTF8),
    ("surrogate-utf8", header(b"\xed\xa0\x80") + END, UTF8),
    ("control", Layer().file("\x1b]0;pwned\x07").file("a\nb\rc").file("\u202egnp.exe").file("\x7f\u0085").end(), ""),
    ("control-refused", header(b"\x1b[2J\xff") + END, r'"\x1b[2J\xff"'),
    ("options", Layer().file("--checkpoint=1").file("--checkpoint-action=exec=touch victim").file("-rf").file("@/etc/passwd").end(), ""),
    ("shell", Layer().file("$(touch victim)").file("`touch victim`").file("; touch victim").file("a' 'b").end(), ""),
    ("part-256", named([b"n" * 256]) + END, "has a part of 256 bytes, and 255 is the most"),
    ("path-4096", named([(b"n" * 255 + b"/") * 16]) + END, ""),
    ("path-4097", named([(b"n" * 255 + b"/") * 16 + b"n"]) + END, "has 4097 bytes, and 4095 is the most"),
    ("ostree-names", Layer().dir(".ostree").file("refs/heads/main").file("objects/ab/cd.commit").file("config").end(), ""),
):
    layer_case(name, "names", layer, text)

# Headers that lie.
BROKEN = "not a tar archive"
for name, layer, text in (
    ("checksum", header(b"a", lie=1) + END, BROKEN),
    ("checksum-later", SMALL[:-1024 * 10] + Layer().file("a").end(0) + header(b"b", lie=1) + END, "not a tar archive after its entry"),
    ("size-negative", header(b"a", base256(-1, 12)) + END, BROKEN),
    ("size-least", header(b"a", base256(-2 ** 63, 12)) + END, BROKEN),
    ("size-most", header(b"a", base256(2 ** 63 - 1, 12)) + END, OVER),
    ("size-too-large", header(b"a", base256(2 ** 80, 12)) + END, BROKEN),
    ("size-1T", header(b"a", TB) + END, OVER),
    ("size-longer", header(b"a", 10 ** 6) + b"x" * 5000, "the tar archive breaks off in its entry 1"),
    ("size-shorter", header(b"a", 3) + padded(b"x" * 5000) + END, "not a tar archive after its entry 1"),
    ("size-no-number", header(b"a", b"hello world\0") + END, BROKEN),
    ("size-pax-negative", pax((b"size", b"-5")) + header(b"a") + END, BROKEN),
    ("size-pax-most", pax((b"size", str(2 ** 63 - 1).encode())) + header(b"a") + END, OVER),
    ("size-pax-huge", pax((b"size", b"9" * 40)) + header(b"a") + END, BROKEN),
    ("size-of-link", header(b"l", TB, b"2", b"t") + header(b"h", TB, b"5") + END, ""),
    ("size-twice", pax((b"size", b"4")) + header(b"a", 0) + padded(b"four") + END, ""),
    ("uid-negative", header(b"a", uid=base256(-1, 8)) + END, "which no user or group can be"),
    ("uid-overflow", header(b"a", uid=2 ** 32) + END, "which no user or group can be"),
    ("uid-no-one", header(b"a", uid=2 ** 32 - 1) + END, "which no user or group can be"),
    ("gid-no-one", header(b"a", gid=2 ** 32 - 1) + END, "which no user or group can be"),
    ("gid-pax-huge", pax((b"gid", b"99999999999999999999")) + header(b"a") + END, BROKEN),
    ("uid-pax-negative", pax((b"uid", b"-1")) + header(b"a") + END, "which no user or group can be"),
    ("mtime-most", header(b"a", mtime=base256(2 ** 62, 12)) + END, ""),
    ("mtime-negative", header(b"a", mtime=base256(-2 ** 62, 12)) + END, ""),
    ("mtime-pax-huge", pax((b"mtime", b"9" * 400)) + header(b"a") + END, BROKEN),
    ("mode-all-bits", header(b"a", mode=0o7777777) + END, ""),
    ("type-unknown", header(b"a", 5, b"\xfe") + padded(b"hello") + END, ""),
    ("pax-length-lies", header(b"pax", 20, b"x") + padded(b"99 path=victim\n") + header(b"a") + END, BROKEN),
    ("pax-length-zero", header(b"pax", 8, b"x") + padded(b"0 a=b\n") + header(b"a") + END, BROKEN),
    ("pax-length-negative", header(b"pax", 12, b"x") + padded(b"-9 a=b\n") + header(b"a") + END, BROKEN),
    ("pax-no-equals", header(b"pax", 8, b"x") + padded(b"8 hello\n") + header(b"a") + END, BROKEN),
    ("pax-alone", pax((b"path", b"a")), ""),
    ("pax-global-path", pax((b"path", b"../victim"), kind=b"g") + header(b"a") + END, ""),
    ("pax-twice", pax((b"path", b"../victim")) + pax((b"path", b"a")) + header(b"b") + END, ""),
    ("long-name-alone", long_name(b"a" * 300), ""),
    ("volume-continued", header(b"a", 5, b"M") + padded(b"hello") + END, "continues a file of another archive"),
    ("sparse-overlap", pax_sparse(b"a", 100, "0,50,25,50") + END, BROKEN),
    ("sparse-backwards", pax_sparse(b"a", 100, "50,10,0,10") + END, BROKEN),
    ("sparse-negative", pax_sparse(b"a", 100, "-5,10") + END, BROKEN),
    ("sparse-beyond", pax_sparse(b"a", 100, "90,50") + END, BROKEN),
    ("sparse-map-long", pax_sparse(b"a", 10 ** 7, ",".join(f"{2 * i},0" for i in range(50000))) + END, ""),
    ("sparse-size-negative", pax_sparse(b"a", -100) + END, BROKEN),
    ("sparse-data-missing", pax_sparse(b"a", 100, "0,100") + END, "sparse file references non-existent data"),
    ("xattr-huge", b"".join(pax((b"SCHILY.xattr.user.big", b"v" * 900000)) + header(b"a%d" % i) for i in range(4)) + END, ""),
    ("xattr-many", pax(*((b"SCHILY.xattr.user.%d" % i, b"v") for i in range(5000))) + header(b"a") + END, "Argument list too long"),
    ("xattr-capability-lies", pax((b"SCHILY.xattr.security.capability", b"\x01")) + header(b"a") + END, ""),
    ("zero-block-in-the-middle", Layer().file("a").end(1) + header(b"b") + END, BROKEN),
    ("text", b"this is no archive\n" * 1000, BROKEN),
    ("one-byte", b"x", BROKEN),
    ("nothing", b"", ""),
    ("gzip-cut", gzip.compress(SMALL * 100)[:-30], "unexpected EOF"),
    ("gzip-checksum", gzip.compress(SMALL)[:-8] + b"\0" * 8, "invalid checksum"),
    ("gzip-rubbish-behind", gzip.compress(SMALL) + b"rubbish" * 100, "invalid header"),
    ("zstd-cut", zstd(SMALL * 100)[:-10], "unexpected EOF"),
    ("zstd-rubbish", b"\x28\xb5\x2f\xfd" + b"\xff" * 1000, "layer"),
    ("xz-rubbish", b"\xfd7zXZ\0" + b"\xff" * 1000, "layer"),
    ("bzip2-rubbish", b"BZh9" + b"\xff" * 1000, "layer"),
):
    layer_case(name, "headers", layer, text)


# Manifests and configs that lie.
def first_layer(**fields):
    return lambda m: m["layers"][0].update(fields)


def the_config(**fields):
    return lambda m: m["config"].update(fields)


def both(**fields):
    return lambda m: m.update(fields)


def million_layers(m):
    layer = json.dumps(m["layers"][0])
    return json.dumps({**m, "layers": ["LAYERS"]}).replace('"LAYERS"', ", ".join([layer] * 1_000_000)).encode()


def deep(n):
    return b"[" * n + b"]" * n


manifest_case("layers-1M", text="more than 4194304, the limit of --max-manifest-size", raw=million_layers)
manifest_case("layers-2000-the-same", lambda m: m.update(layers=m["layers"] * 2000), config=config_of(*[SMALL] * 2000))
manifest_case("layer-size-negative", first_layer(size=-5))
manifest_case("layer-size-unknown", first_layer(size=-1))
manifest_case("layer-size-huge", first_layer(size=2 ** 62), "the manifest names", status=4)
manifest_case("layer-size-less", first_layer(size=10), "the manifest names 10", status=4)
manifest_case("layer-size-overflow", first_layer(size=2 ** 64), "cannot unmarshal number")
manifest_case("layer-size-text", first_layer(size="10"), "cannot unmarshal string")
manifest_case("config-size-negative", the_config(size=-7), "the manifest names -7", status=4)
manifest_case("config-size-huge", the_config(size=2 ** 62), "the manifest names", status=4)
for what, change in (("layer", first_layer), ("config", the_config)):
    for kind, value, text in (("path", "sha256:../../x", "invalid checksum digest"), ("absolute", "sha256:/etc/passwd", "invalid checksum digest"),
                              ("short", "sha256:abcd", "invalid checksum digest length"), ("upper", "sha256:" + "A" * 64, "invalid checksum digest"),
                              ("algorithm", "md5:" + "a" * 32, "unsupported digest algorithm"), ("no-digest", "x" * 80, "invalid checksum digest format"),
                              ("empty", "", "invalid checksum digest format"), ("nul", "sha256:\0" + "a" * 63, "invalid checksum digest"),
                              ("missing", "sha256:" + "a" * 64, "no such file or directory"), ("sha512", "sha512:" + "a" * 128, "no such file or directory")):
        manifest_case(f"{what}-digest-{kind}", change(digest=value), text)
manifest_case("manifest-deep", text="exceeded max depth", raw=lambda m: json.dumps(m).encode()[:-1] + b', "x": ' + deep(200_000) + b"}")
manifest_case("config-deep", config=b'{"architecture": "%s", "os": "linux", "x": %s}' % (native_arch().encode(), deep(200_000)))
manifest_case("config-empty", config=b"")
manifest_case("config-list", config=b"[]")
manifest_case("config-text", config=b"hello")
manifest_case("config-binary", config=bytes(range(256)) * 10)
manifest_case("config-null", config=b"null")
manifest_case("config-wrong-types", config=b'{"architecture": 5, "os": [], "created": "never", "rootfs": "x", "history": 1}')
manifest_case("config-control", config=b'{"architecture": "\\u001b[2J", "os": "\\n"}', text=r"\x1b[2J")
manifest_case("config-huge", config=b" " * (20 * MB) + b"{}", text="exceeded maximum allowed size")
manifest_case("config-is-layer", lambda m: m["config"].update(digest=m["layers"][0]["digest"], size=m["layers"][0]["size"]))
manifest_case("layer-is-config", lambda m: m["layers"][0].update(digest=m["config"]["digest"], size=m["config"]["size"]), "not a tar archive")
manifest_case("layer-type-text", first_layer(mediaType="text/plain"))
manifest_case("layer-type-none", first_layer(mediaType=""))
manifest_case("layer-type-odd", first_layer(mediaType="application/vnd.oci.image.layer.v1.tar+" + "z" * 10000))
manifest_case("layer-type-lies", first_layer(mediaType=LAYER + "+zstd"))
manifest_case("layer-type-control", first_layer(mediaType="\x1b[2J\n"))
manifest_case("config-type-layer", the_config(mediaType=LAYER))
manifest_case("manifest-type-unknown", text="unsupported manifest MIME types", edit=both(mediaType="application/x-unknown"), media="application/x-unknown")
manifest_case("type-lies", text="manifest", media="application/vnd.docker.distribution.manifest.v2+json")
manifest_case("type-signed-v1", text="manifest", media="application/vnd.docker.distribution.manifest.v1+prettyjws")
manifest_case("schema-text", both(schemaVersion="2"), "cannot unmarshal string")
manifest_case("layers-null", both(layers=None), "names 1 diffIDs, and the manifest 0 layers", status=4)
manifest_case("layers-object", both(layers={}), "cannot unmarshal object")
manifest_case("layers-and-manifests", both(manifests=[]), "rejecting ambiguous manifest")
manifest_case("no-config", lambda m: m.pop("config"), "invalid checksum digest format")
manifest_case("key-twice", text="", raw=lambda m: json.dumps(m).encode()[:-1] + b', "layers": []}')
manifest_case("rubbish-behind", text="invalid character", raw=lambda m: json.dumps(m).encode() + b"{}")
manifest_case("no-json", text="invalid character", raw=lambda m: b"\0" * 1000)
manifest_case("manifest-empty", text="unexpected end of JSON input", raw=lambda m: b"")
manifest_case("annotation-3M", both(annotations={"a": "b" * 3 * MB}))
manifest_case("annotation-control", both(annotations={"\x1b[2J": "\0\n"}))
manifest_case("foreign-file", first_layer(mediaType="application/vnd.oci.image.layer.nondistributable.v1.tar", urls=["file:///etc/passwd"]))


def index_case(name, change, text, status=1):
    def make(layout, _):
        image(layout, [SMALL])
        with open(os.path.join(layout, "index.json")) as f:
            entry = json.load(f)["manifests"][0]
        entry = {**entry, "platform": {"os": "linux", "architecture": native_arch()}}
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}
        change(index, entry, layout)
        top(layout, {"mediaType": INDEX, **put_blob(layout, json.dumps(index).encode())})
    case(name, "manifests", make, text, status if text else 0)


def nested(index, entry, layout):
    entry.update(mediaType=INDEX, **put_blob(layout, json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [dict(entry)]}).encode()))


def other_digest(index, entry, layout):
    wrong = "c" * 64
    os.link(os.path.join(layout, "blobs/sha256", entry["digest"][7:]), os.path.join(layout, "blobs/sha256", wrong))
    entry["digest"] = "sha256:" + wrong


index_case("index", lambda i, e, _: None, "")
index_case("index-nothing", lambda i, e, _: i.update(manifests=[]), "no image found")
index_case("index-missing", lambda i, e, _: e.update(digest="sha256:" + "b" * 64), "no such file or directory")
index_case("index-digest-path", lambda i, e, _: e.update(digest="sha256:../../x"), "invalid checksum digest")
index_case("index-in-index", nested, "manifest")
index_case("index-100000", lambda i, e, _: i.update(manifests=[e] * 100_000), "the limit of --max-manifest-size")
index_case("index-other-digest", other_digest, "does not match", status=4)


# What differs little from others is for the long run.
for name in """
    bzip2-zeros xz-zeros gzip-file bzip2-file xz-file gzip-in-gzip sparse-pax name-1M-pax target-1M pax-endless
    dotdot-dir absolute-hard-link through-link-absolute link-then-dir-out link-to-itself hard-link-to-root hard-link-nowhere through-device no-name
    root-is-link overlong-utf8 surrogate-utf8 path-4096 shell link-loop-alone
    checksum size-least size-too-large size-1T size-no-number size-pax-negative size-pax-huge size-of-link uid-overflow gid-pax-huge uid-pax-negative
    mtime-most mtime-pax-huge type-unknown pax-length-zero pax-length-negative pax-no-equals pax-alone pax-twice long-name-alone sparse-backwards
    sparse-negative sparse-size-negative xattr-huge zero-block-in-the-middle text one-byte gzip-rubbish-behind zstd-cut xz-rubbish bzip2-rubbish
    layer-size-unknown layer-size-less layer-size-text config-size-huge layer-digest-absolute layer-digest-short layer-digest-upper layer-digest-no-digest
    layer-digest-empty layer-digest-sha512 config-digest-absolute config-digest-short config-digest-upper config-digest-algorithm config-digest-no-digest
    config-digest-empty config-digest-nul config-digest-missing config-digest-sha512 config-list config-text config-null config-is-layer layer-type-text
    layer-type-none layer-type-lies layer-type-control config-type-layer type-signed-v1 schema-text layers-object key-twice no-json manifest-empty
    annotation-control index-digest-path index-in-index
""".split():
    CASES[name] = (*CASES[name][:2], "long", *CASES[name][3:])


def wanted(group, long):
    """The cases of a group: without long those that take little, with long those that do not."""
    return [(name, case) for name, case in CASES.items() if case[0] == group and case[2] in (("both", "long") if long else ("both", "short"))]
