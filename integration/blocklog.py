"""Disks in memory, whose writes and flushes are logged in their order: a file of a FUSE file system that this process serves,
and a loop device on it. Any moment of a disk can be made a disk again, as a loss of power leaves it."""

import contextlib
import ctypes
import errno
import os
import stat
import struct
import subprocess
import threading

BLOCK = 4096
FLUSH = None  # in a log, among the writes (offset, bytes)

# fuse.h of Linux: the operations, and the sizes of their headers.
LOOKUP, FORGET, GETATTR, SETATTR, OPEN, READ, WRITE, STATFS, RELEASE, FSYNC, FLUSH_FILE, INIT = 1, 2, 3, 4, 14, 15, 16, 17, 18, 20, 25, 26
OPENDIR, RELEASEDIR, INTERRUPT, DESTROY, BATCH_FORGET = 27, 29, 36, 38, 42
IN_HEADER, WRITE_IN, MAX_WRITE = 40, 40, 1 << 20
BIG_WRITES, MAX_PAGES = 1 << 5, 1 << 22
ROOT, FILE = 1, 2

libc = ctypes.CDLL(None, use_errno=True)


def check_call(result, what):
    if result < 0:
        raise OSError(ctypes.get_errno(), what)


class Disk:
    """A disk of so many bytes. blocks are {number: bytes} to begin with, and left alone. Below the directory path it is mounted."""

    def __init__(self, path, size, blocks=None):
        self.size, self.below, self.blocks, self.log = size, blocks or {}, {}, []
        self.fuse, self.tree = os.path.join(path, "fuse"), os.path.join(path, "tree")
        for name in (self.fuse, self.tree):
            os.makedirs(name, exist_ok=True)
        self.fd = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self.fd},rootmode=40000,user_id=0,group_id=0"
        check_call(libc.mount(b"blocklog", self.fuse.encode(), b"fuse", 0, options.encode()), "mount")
        self.server = threading.Thread(target=self.serve, daemon=True)
        self.server.start()
        self.device = subprocess.run(["losetup", "--find", "--show", os.path.join(self.fuse, "disk")], stdout=subprocess.PIPE, text=True,
                                     check=True).stdout.strip()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        subprocess.run(["losetup", "--detach", self.device], check=True)
        subprocess.run(["umount", self.fuse], check=True)
        self.server.join()
        os.close(self.fd)

    @contextlib.contextmanager
    def mounted(self):
        """Mounts the disk, and gives the directory."""
        subprocess.run(["mount", self.device, self.tree], check=True)
        try:
            yield self.tree
        finally:
            subprocess.run(["umount", self.tree], check=True)

    def read(self, offset, size):
        parts = []
        for n in range(offset // BLOCK, (offset + size + BLOCK - 1) // BLOCK):
            parts.append(self.blocks.get(n) or self.below.get(n) or bytes(BLOCK))
        skip = offset % BLOCK
        return b"".join(parts)[skip:skip + min(size, self.size - offset)]

    def write(self, offset, data):
        write_blocks(self.blocks, self.below, offset, data)
        self.log.append((offset, data))

    def serve(self):
        while True:
            try:
                request = os.read(self.fd, MAX_WRITE + BLOCK)
            except OSError as e:
                if e.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    continue
                return  # ENODEV: it is unmounted
            _, operation, unique, node = struct.unpack_from("<IIQQ", request)
            if operation in (FORGET, BATCH_FORGET, INTERRUPT):
                continue
            answer = self.answer(operation, node, request[IN_HEADER:])
            error, answer = (-answer, b"") if isinstance(answer, int) else (0, answer)
            try:
                os.write(self.fd, struct.pack("<IiQ", 16 + len(answer), error, unique) + answer)
            except OSError:
                pass  # whoever asked is gone

    def answer(self, operation, node, body):
        """The bytes of the answer, or an error's number."""
        if operation == INIT:
            return struct.pack("<IIIIHHIIHHI28x", 7, 31, 1 << 20, BIG_WRITES | MAX_PAGES, 16, 12, MAX_WRITE, 1, MAX_WRITE // BLOCK, 0, 0)
        if operation == LOOKUP:
            if body.rstrip(b"\0") != b"disk":
                return errno.ENOENT
            return struct.pack("<QQQQII", FILE, 0, 3600, 3600, 0, 0) + self.attributes(FILE)
        if operation in (GETATTR, SETATTR):
            return struct.pack("<QII", 3600, 0, 0) + self.attributes(node)
        if operation in (OPEN, OPENDIR):
            return struct.pack("<QII", 0, 0, 0)
        if operation == READ:
            _, offset, size = struct.unpack_from("<QQI", body)
            return self.read(offset, size)
        if operation == WRITE:
            _, offset, size = struct.unpack_from("<QQI", body)
            self.write(offset, body[WRITE_IN:WRITE_IN + size])
            return struct.pack("<II", size, 0)
        if operation == FSYNC:
            self.log.append(FLUSH)
            return b""
        if operation == STATFS:
            return struct.pack("<QQQQQIIII24x", 1, 1, 1, 1, 1, BLOCK, 255, BLOCK, 0)
        if operation in (FLUSH_FILE, RELEASE, RELEASEDIR, DESTROY):
            return b""
        return errno.ENOSYS

    def attributes(self, node):
        mode, size = (stat.S_IFREG | 0o600, self.size) if node == FILE else (stat.S_IFDIR | 0o700, 0)
        return struct.pack("<QQQQQQIIIIIIIIII", node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, BLOCK, 0)


def write_blocks(blocks, below, offset, data):
    """Writes into blocks what is not there of below."""
    at = 0
    while at < len(data):
        n, skip = divmod(offset + at, BLOCK)
        part = data[at:at + BLOCK - skip]
        if len(part) < BLOCK:
            whole = blocks.get(n) or below.get(n) or bytes(BLOCK)
            part = whole[:skip] + part + whole[skip + len(part):]
        blocks[n] = part
        at += BLOCK - skip
