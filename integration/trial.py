"""What crash.py, disk.py and stress.py share: the images, the program as it is run, and what must hold of a repository whatever
has happened to it. Other tools judge as far as they can: ostree fsck, and the files themselves."""

import fcntl
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time

import image

MODES = ["bare", "bare-user", "bare-user-only", "archive"]
LIMIT = 120  # seconds that any one run may take


class Failure(Exception):
    """What must not be. said is what the program said, where it was that."""

    def __init__(self, text, said=""):
        super().__init__(text)
        self.said = said


def make_layer(path, seed, files, size):
    """A layer of small files, and a large one that cannot be compressed."""
    chance, layer = random.Random(seed), image.Layer()
    for n in range(files):
        layer.file(f"{seed}/{n % 10}/{n}", chance.randbytes(100).hex())
    layer.sym(f"{seed}/link", "0/0").file(f"{seed}/large", chance.randbytes(size))
    with open(path, "wb") as f:
        f.write(layer.end())


def make_images(work, images, files=150, size=1 << 20):
    """Writes an OCI layout of images, {name: [layers]}, and returns its path. A layer of one name is the same in all."""
    layout = os.path.join(work, "oci")
    for layer in sorted({layer for layers in images.values() for layer in layers}):
        make_layer(os.path.join(work, layer), layer, files, size)
    for name, layers in images.items():
        image.write_image(layout, name, [os.path.join(work, layer) for layer in layers], image.native_arch(), "linux", image.CREATED, None)
    return layout


class Program:
    def __init__(self, path):
        self.path = os.path.abspath(path)

    def command(self, repo, *args):
        return [self.path, "--quiet", "--insecure-policy", f"--repo={repo}", *args]

    def run(self, repo, *args, want=(0,)):
        """Runs the program and returns its standard output and the last line of its standard error. No run may take long."""
        try:
            done = subprocess.run(self.command(repo, *args), capture_output=True, text=True, timeout=LIMIT, check=False)
        except subprocess.TimeoutExpired as e:
            raise Failure(f"{' '.join(args)}: no end within {LIMIT} s") from e
        if done.returncode not in want:
            raise Failure(f"{' '.join(args)}: status {done.returncode} instead of {want}: {done.stderr}", done.stderr)
        return done.stdout, (done.stderr.splitlines() or [""])[-1]

    def images(self, repo):
        """The names that list shows; it must show all without a word of complaint."""
        out, err = self.run(repo, "list", "--format=json")
        if err:
            raise Failure(f"list says: {err}")
        return [i["name"] for i in json.loads(out)]

    def check(self, repo, expected=()):
        """What holds at any time: fsck finds nothing, the expected images are listed, and all that are listed are whole."""
        fsck(repo)
        names = self.images(repo)
        if missing := set(expected) - set(names):
            raise Failure(f"list does not show {missing}")
        if names:
            self.run(repo, "verify")
        return names


def ostree(*args):
    done = subprocess.run(["ostree", *args], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(f"ostree {' '.join(args)}: status {done.returncode}: {done.stderr}")
    return done.stdout


def new_repo(path, mode):
    ostree("init", f"--repo={path}", f"--mode={mode}")
    # What the disk does is not what is tried, and the 3 % that ostree keeps free depend on the machine.
    ostree("config", f"--repo={path}", "set", "core.fsync", "false")
    return path


def fsck(repo, whole=False):
    """ostree fsck finds nothing. whole: nor does it leave commits out that it takes for half."""
    out = ostree("fsck", f"--repo={repo}")
    if whole and "partial" in out:
        raise Failure(f"fsck of {repo}: {out}")


def files_below(path):
    return sorted(os.path.relpath(os.path.join(d, f), path) for d, _, names in os.walk(path) for f in names)


def refs(repo):
    """{ref: checksum}, those under a remote too."""
    def read(ref):
        with open(os.path.join(repo, "refs", ref), encoding="ascii") as f:
            return f.read().strip()
    return {ref: read(ref) for ref in files_below(os.path.join(repo, "refs"))}


def state(repo):
    """All that a run can change: the refs, the objects, and what lies in tmp/ and state/ but is no cache."""
    return {
        "refs": refs(repo),
        "objects": files_below(os.path.join(repo, "objects")),
        "tmp": [name for name in sorted(os.listdir(os.path.join(repo, "tmp"))) if name != "cache"],
        "state": sorted(os.listdir(os.path.join(repo, "state"))) if os.path.isdir(os.path.join(repo, "state")) else [],
    }


def tree(path):
    """What a directory holds, but for times."""
    found = {}
    for d, dirs, names in os.walk(path):
        for name in dirs + names:
            full = os.path.join(d, name)
            st = os.lstat(full)
            content = os.readlink(full) if os.path.islink(full) else ""
            if os.path.isfile(full) and not os.path.islink(full):
                with open(full, "rb") as f:
                    content = hashlib.sha256(f.read()).hexdigest()
            found[os.path.relpath(full, path)] = (st.st_mode, st.st_uid, st.st_gid, content)
    return found


def same(what, got, want):
    if got == want:
        return
    if isinstance(want, dict):
        keys = [k for k in sorted({*got, *want}) if got.get(k) != want.get(k)]
        text = "; ".join(f"{k}: {got.get(k)} instead of {want.get(k)}" for k in keys[:5])
    elif isinstance(want, list):
        text = f"too much {sorted(set(got) - set(want))[:5]}, missing {sorted(set(want) - set(got))[:5]}"
    else:
        text = f"{got} instead of {want}"
    raise Failure(f"{what}: {text}")


def same_state(what, got, want):
    for part, value in want.items():
        same(f"{what}: {part}", got[part], value)


def unpublished(what, got, want):
    """No ref has changed, and no temporary file is left. Objects that no ref needs are prune's to remove."""
    for part in ("refs", "tmp"):
        same(f"{what}: {part}", got[part], want[part])


def processes(path):
    """The processes, but this one, whose arguments name a path."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                args = f.read().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if path in args and int(pid) != os.getpid():
            found[int(pid)] = args
    return found


def held(path):
    """The work directories in path whose lock somebody holds: a process that ends has no arguments any more, but still its files."""
    found = []
    for name in os.listdir(path):
        if not name.startswith("ostree-image-"):
            continue
        fd = os.open(os.path.join(path, name), os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            found.append(name)
        finally:
            os.close(fd)
    return found


def wait_gone(path, work_dirs, seconds=5):
    """Waits until no process works on a path any more, or holds a work directory in one of work_dirs."""
    end = time.monotonic() + seconds
    while left := processes(path) or [name for parent in work_dirs for name in held(parent)]:
        if time.monotonic() > end:
            raise Failure(f"still running: {left}")
        time.sleep(0.02)


STRAY = re.compile(r"/tmp\.[^/]{6}$")


def no_strays(repo):
    """No ref is left that ostree was about to rename."""
    if strays := [ref for ref in refs(repo) if STRAY.search(ref)]:
        raise Failure(f"stray refs: {strays}")


def work_dir(path):
    """A directory of this run's own, in memory where no other is named: creating files is most of the time on a disk."""
    return tempfile.mkdtemp(prefix="ostree-image-trial-", dir=path or ("/dev/shm" if os.access("/dev/shm", os.W_OK) else None))


def main(parser, run):
    """Runs a trial with the options that all have. What it leaves behind is there for whoever wants to see why it failed."""
    parser.add_argument("--program", default="bin/ostree-image", help="the program to try")
    parser.add_argument("--work", help="work below this directory instead of /dev/shm")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"), help="of what is left to chance")
    options = parser.parse_args()
    work = work_dir(options.work)
    os.umask(0o022)
    print(f"seed {options.seed}", flush=True)
    try:
        print(run(options, Program(options.program), work), flush=True)
    except Failure as e:
        sys.exit(f"FAILED (seed {options.seed}, see {work}): {e}")
    shutil.rmtree(work)
