"""docs/patterns.md: every block of Python runs, every name exists, every link leads somewhere."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import tideloop
from tideloop.testing import new_virtual_loop

from tests.toolkit.harness import PATIENCE

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "patterns.md"
TEXT = PAGE.read_text(encoding="utf-8")
PATTERN = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [(TEXT.count("\n", 0, found.start(1)), found[1]) for found in PATTERN.finditer(TEXT)]
"""The line before each block, and the block."""


def run(source: str, line: int, names: dict[str, Any], kind: str) -> None:
    """Run a block: in a task of a loop on a virtual clock if it awaits, else without a loop."""
    code = compile("\n" * line + source, PAGE, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    if not code.co_flags & inspect.CO_COROUTINE:
        exec(code, names)
        return
    loop = new_virtual_loop(kind)
    try:
        loop.run_until_complete(asyncio.wait_for(eval(code, names), PATIENCE))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        assert not asyncio.all_tasks(loop)
    finally:
        loop.close()


@pytest.mark.parametrize(("line", "source"), BLOCKS[1:], ids=[f"line {line + 1}" for line, _ in BLOCKS[1:]])
def test_each_block_runs_after_the_first(line, source, kind):
    names: dict[str, Any] = {"__name__": "patterns"}
    run(BLOCKS[0][1], BLOCKS[0][0], names, kind)
    run(source, line, names, kind)


def test_types_are_right(tmp_path):
    """The page is short, so it does without annotations; for the rest mypy is strict about how it uses tideloop."""
    lines: list[str] = []
    for line, source in BLOCKS:
        code = compile(source, PAGE, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        awaits = code.co_flags & inspect.CO_COROUTINE
        lines += [""] * (line - 1 - len(lines))
        # In the place of the block's fence, so that line numbers are the page's.
        lines.append(f"async def block_{line}() -> None:" if awaits else "")
        lines += (textwrap.indent(source, "    ") if awaits else source).splitlines()
    module = tmp_path / "patterns.py"
    module.write_text("\n".join(lines) + "\n", encoding="utf-8")
    unannotated = ["--allow-untyped-defs", "--allow-incomplete-defs", "--allow-untyped-calls"]
    unannotated += ["--allow-redefinition", "--disable-error-code", "var-annotated"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), *unannotated, str(module)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_block_is_passed_over():
    assert len(BLOCKS) == TEXT.count("```python") == TEXT.count("```") / 2 > 20


def test_names_that_the_page_mentions_exist():
    names = set(re.findall(r"tideloop\.(\w+)", TEXT)) - {"testing"}
    assert {"amap", "Channel", "group"} <= names
    assert [name for name in sorted(names) if not hasattr(tideloop, name)] == []


def test_links_and_paths_lead_somewhere():
    targets = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert len(targets) > 20
    for target in targets:
        path, _, anchor = target.partition("#")
        text = (PAGE.parent / path).read_text(encoding="utf-8")
        headings = {
            re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
            for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        }
        assert not anchor or anchor in headings, target
    for path in re.findall(r"`((?:examples|tests)/[^`]+)`", TEXT):
        assert (ROOT / path).exists(), path
