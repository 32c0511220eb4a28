"""docs/patterns.md: every block of Python runs, every name exists, every link leads somewhere."""

from __future__ import annotations

import ast
import asyncio
import functools
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
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


ROW = re.compile(r"^\| .+ \| `([^`]+)` \| \[.+\]\(.+\) \|$", re.MULTILINE)
ROWS = [line for line in ROW.findall(TEXT) if line not in ("tideloop lab", "pytest --tideloop")]
WITH_MORE = ("tideloop.qt", "tideloop.run(", "run_process", 'kind="process"')
"""Rows that a virtual clock has not what they want: another loop, threads, processes."""


async def act(source: str) -> dict[str, Any]:
    """Run a row of the table between stand-ins for what it mentions."""
    names: dict[str, Any] = {"__name__": "patterns"}
    exec(BLOCKS[0][1], names)
    shown: list[Any] = []

    async def main() -> str:
        return "done"

    async def chunks() -> AsyncIterator[str]:
        for number in range(3):
            yield f"/{number}"

    async def numbered(number: int) -> list[int]:
        return [number] if number < 3 else []

    async def reduce(chunk: list[int]) -> int:
        return sum(chunk)

    queue: tideloop.Queue[int] = tideloop.Queue()
    await queue.put_many(range(3))
    queue.shutdown()
    ended, rx = tideloop.Channel[int]()
    ended.try_send(1)
    ended.close()
    roomy = tideloop.Channel[str](1)
    stand_ins = {
        "app": None,
        "chunks": chunks,
        "close": main,
        "connect": object,
        "main": main,
        "numbered": numbered,
        "parse": str.upper,
        "queue": queue,
        "reduce": reduce,
        "reduce_all": lambda numbers: dict.fromkeys(numbers, 0),
        "rx": rx,
        "show": shown.append,
        "steps": {"a": (main, []), "b": (lambda _: main(), ["a"])},
        "tx": roomy.tx,
    }
    async with tideloop.group() as g, tideloop.Background() as background:
        done = g.spawn(names["fetch"], "/group", key="/group")
        names |= stand_ins | {"g": g, "background": background}
        code = compile(source, PAGE, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        blocks = "blocking_send" in source
        result = await tideloop.run_blocking(eval, code, names) if blocks else eval(code, names)
        if inspect.iscoroutine(result):
            await result
    if "on_block" in source:
        tideloop.observe.off_block(print)
    assert done.done()
    assert "show(" not in source or shown
    return names


@pytest.mark.parametrize("source", [row for row in ROWS if not any(word in row for word in WITH_MORE)])
def test_each_line_of_the_table_runs(source, kind):
    loop = new_virtual_loop(kind)
    try:
        if kind == "asyncio" and "metrics()" in source:
            pytest.skip("asyncio's loop has no metrics")
        names = loop.run_until_complete(asyncio.wait_for(act(source), PATIENCE))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        assert not asyncio.all_tasks(loop)
        if "pages" in source.partition("=")[0]:
            assert len(names["pages"]) == 40
        if "outcomes" in source.partition("=")[0]:
            assert sum(outcome.failed for outcome in names["outcomes"]) == 1
    finally:
        loop.close()


@pytest.mark.parametrize("source", [row for row in ROWS if any(word in row for word in WITH_MORE)])
def test_calls_of_the_other_lines_are_right(source):
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    checked = 0
    for call in calls:
        path = ast.unparse(call.func)
        if path.startswith("tideloop.") and path != "tideloop.qt.run":  # which needs a binding to import
            function = functools.reduce(getattr, path.split(".")[1:], tideloop)
            inspect.signature(function).bind(*call.args, **{str(word.arg): word.value for word in call.keywords})
            checked += 1
    assert checked or "tideloop.qt" in source


def test_no_row_is_passed_over():
    table = TEXT.partition("## Line for line")[2].partition("\n## ")[0]
    assert len(ROWS) + 2 == len(re.findall(r"^\| ", table, re.MULTILINE)) - 1 > 40


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
        text = (PAGE.parent / (path or PAGE.name)).read_text(encoding="utf-8")
        headings = {
            re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
            for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        }
        assert not anchor or anchor in headings, target
    for path in re.findall(r"`((?:examples|tests)/[^`]+)`", TEXT):
        assert (ROOT / path).exists(), path
