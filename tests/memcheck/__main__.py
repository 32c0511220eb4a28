"""Runs the stress under valgrind and judges what memcheck found. ``make memcheck``

    python -m tests.memcheck [--programs 300] [--seed 1]

Fails on every invalid read, write or free, wherever it shows, and on anything else that has one of our frames
in its stack. What the interpreter does by itself with undefined values is not our concern and is only counted.
The exit code is 1 on a finding, 2 where there is no valgrind.
"""

from __future__ import annotations

import argparse
import collections
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from pathlib import Path

TIME_LIMIT = 1_800
OURS = "_tideloop"
ALWAYS = ("InvalidRead", "InvalidWrite", "InvalidFree", "MismatchedFree", "InvalidJump", "Overlap")
"""Kinds of errors that count wherever they show: a reference dropped too often is used by the interpreter."""


def errors(report: Path) -> list[xml.Element]:
    """The errors in memcheck's report, without leaks; a process that died has left the report's end out."""
    text = report.read_text(errors="replace")
    if "</valgrindoutput>" not in text:
        text += "</valgrindoutput>"
    # What lives to the end is the interpreter's; growth is the soak's concern. With XML, memcheck lists it anyway.
    found = xml.fromstring(text).findall("error")
    return [error for error in found if not str(error.findtext("kind")).startswith("Leak")]


def is_ours(error: xml.Element) -> bool:
    frames = error.iterfind(".//stack/frame/obj")
    return error.findtext("kind") in ALWAYS or any(OURS in (frame.text or "") for frame in frames)


def describe(error: xml.Element) -> str:
    lines = [error.findtext("what") or error.findtext("xwhat/text") or str(error.findtext("kind"))]
    for part in error:
        if part.tag == "auxwhat":
            lines.append(f"  {part.text}")
        for frame in part.iterfind("frame") if part.tag == "stack" else ():
            place = f"{frame.findtext('file')}:{frame.findtext('line')}" if frame.findtext("file") else ""
            where = place or Path(frame.findtext("obj") or "").name
            lines.append(f"    {frame.findtext('fn') or frame.findtext('ip')} ({where})")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if shutil.which("valgrind") is None:
        print("memcheck: no valgrind here (on Debian: apt-get install valgrind)", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "memcheck.xml"
        memcheck = ["valgrind", "--tool=memcheck", "--xml=yes", f"--xml-file={report}", "--num-callers=25"]
        memcheck += ["--leak-check=no", "--child-silent-after-fork=yes"]
        stress = [sys.executable, "-m", "tests.memcheck.stress"]
        sizes = ["--programs", str(options.programs), "--seed", str(options.seed)]
        environment = os.environ | {"PYTHONMALLOC": "malloc"}
        done = subprocess.run(memcheck + stress + sizes, env=environment, check=False, timeout=TIME_LIMIT)
        found = errors(report)
    ours = [error for error in found if is_ours(error)]
    for error in ours:
        print(describe(error))
    others = collections.Counter(error.findtext("kind") for error in found if not is_ours(error))
    print(f"memcheck: {len(ours)} errors; the interpreter's own: {dict(others) or 'none'}")
    if done.returncode:
        print(f"memcheck: the stress ended with exit code {done.returncode}")
    return 1 if ours or done.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
