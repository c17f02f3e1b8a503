#!/usr/bin/env python3
"""cases.py [--long] GROUP REPO SCRATCH PROGRAM: imports the images of a group of corpus.py into a repository, each within bounds.

Each must end as the table says, in one line where it is an error, and one that fails must leave the refs and the repository's tmp/ as
they were, and no process. A line for each case goes to standard error, and to standard output the names of the images that came in.
The status is 1 where a case was not as it should be; the last line on standard error counts them.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import traceback

from bounded import Bounds
from corpus import CASES, wanted


def refs(repo):
    found = {}
    for directory, _, names in os.walk(os.path.join(repo, "refs")):
        for name in names:
            with open(os.path.join(directory, name)) as f:
                found[os.path.join(directory, name)] = f.read()
    return found


def wrong(status, text, want, want_text):
    """What is not as the table says, "" for nothing."""
    if status != want:
        return f"status {status} instead of {want}"
    if want == 0:
        return ""
    errors = [line for line in text.split("\n") if line.startswith("ostree-image: ") and not line.startswith("ostree-image: warning: ")]
    if len(errors) != 1 or text.rstrip("\n").split("\n")[-1] != errors[0]:
        return "not one error line, the last"
    if len(errors[0]) > 1000 or re.search(r"[\x00-\x1f\x7f-\x9f]", errors[0]):
        return "the error is long, or has control characters"
    return "" if want_text in errors[0] else f"the error lacks: {want_text}"


def made_aside(make, layout, long):
    """Makes an image in a process of its own: the memory that it takes would count as that of the next that is started."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            make(layout, long)
            status = 0
        except BaseException:  # it must not get out of here
            traceback.print_exc()
        finally:
            os._exit(status)
    if os.waitpid(pid, 0)[1]:
        sys.exit("the image could not be made")


def main():
    args = sys.argv[1:]
    long = args[:1] == ["--long"]
    group, repo, scratch, program = args[1:] if long else args
    victims = os.path.join(scratch, "victims")
    os.mkdir(victims)
    bounds = Bounds(*((1800, 2 << 30, 4 << 30) if long else (60, 512 << 20, 300 << 20)), (repo, victims))
    before, count, bad = refs(repo), 0, []
    for name, (_, make, size, want, want_text, options) in wanted(group, long):
        layout = os.path.join(scratch, "image")
        os.mkdir(layout)
        made_aside(make, layout, long)
        limits = [] if long and size == "both" else options.split()
        with tempfile.TemporaryFile() as err:
            status, took, broken = bounds.run(
                [program, "--insecure-policy", "--quiet", f"--repo={repo}", "pull", *limits, f"oci:{layout}:x", f"case:{name}"],
                cwd=victims, env={**os.environ, "TMPDIR": ""}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=err)
            err.seek(0)
            text = err.read(100_000).decode(errors="backslashreplace")
        shutil.rmtree(layout)
        problems = ["the bounds"] if broken else [p for p in [wrong(status, text, want, want_text)] if p]
        now = refs(repo)
        if status != 0 and now != before:
            problems.append("the refs changed")
        left = [n for n in os.listdir(os.path.join(repo, "tmp")) if n != "cache"] + os.listdir(victims)
        if left:
            problems.append(f"it left {left}")
        before = now
        count += 1
        print(f"{name}: {status}: {took}: {text.rstrip()}{''.join(f' BAD: {p}' for p in problems)}", file=sys.stderr)
        if problems:
            bad.append(name)
        if status == 0:
            print(f"case:{name}")
    print(f"{count} cases, {len(bad)} not as they should be: {' '.join(bad)}" if bad else f"{count} cases", file=sys.stderr)
    sys.exit(1 if bad or not count else 0)


main()
