"""Tasks seen from another process: `python -m asyncio ps PID` and `pstree PID`, which Python has since 3.14.

The interpreter reads the other process's memory, so this is a test of how tasks are laid out. It needs the
right to read it (ptrace); where the kernel refuses, the tests are skipped and say so.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.version_info < (3, 14), reason="python -m asyncio ps came with Python 3.14")

PROGRAM = """
import asyncio, importlib, sys

async def leaf(gate):
    await gate

async def branch(gate):
    async with asyncio.TaskGroup() as group:
        group.create_task(leaf(gate), name="leaf one")
        group.create_task(leaf(gate), name="leaf two")

async def second_reader(task):
    await asyncio.shield(task)

async def root():
    gate = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(branch(gate), name="branch")
    reader = asyncio.create_task(second_reader(task), name="reader")
    ended = asyncio.create_task(asyncio.sleep(0), name="ended")
    direct = [
        asyncio.create_task(asyncio.sleep(1000), name="sleeper"),
        asyncio.create_task(asyncio.wait_for(leaf(gate), 1000), name="limited"),
        asyncio.create_task(asyncio.wait([asyncio.get_running_loop().create_future()]), name="waiter"),
    ]
    await ended
    asyncio.current_task().set_name("root")
    for _ in range(5):
        await asyncio.sleep(0)
    for other in direct:
        asyncio.format_call_graph(other)  # a look from inside must not mislead the one from outside
    asyncio.get_running_loop().call_soon(print_ready)  # all of them wait by then, this one too
    await asyncio.gather(task, reader)

def print_ready():
    print("ready", flush=True)

module = importlib.import_module(sys.argv[1])
if sys.argv[2:]:
    module.accelerate()
module.new_event_loop().run_until_complete(root())
"""

REFUSALS = ("Operation not permitted", "Permission denied", "CAP_SYS_PTRACE", "PermissionError")
UNSUPPORTED = ("not supported", "NotImplementedError")


@pytest.fixture(params=["asyncio", "tideloop", "tideloop-stock", "tideloop-accelerated"])
def watched(request):
    """The process id of a program whose tasks wait for each other for ever."""
    module, _, how = request.param.partition("-")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment["TIDELOOP_TASKS"] = "stock" if how == "stock" else ""
    program = [sys.executable, "-c", PROGRAM, module, *(["accelerated"] if how == "accelerated" else [])]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process.pid
        finally:
            process.kill()


def ask(tool: str, pid: int) -> str:
    """What `python -m asyncio` says about a process."""
    done = subprocess.run(
        [sys.executable, "-m", "asyncio", tool, str(pid)], capture_output=True, text=True, check=False, timeout=20
    )
    said = done.stdout + done.stderr
    if done.returncode and any(word in said for word in (*REFUSALS, *UNSUPPORTED)):
        pytest.skip(f"reading another process is refused here: {said.strip().splitlines()[-1]}")
    assert done.returncode == 0, said
    return done.stdout


def rows(table: str) -> list[dict[str, str]]:
    """A table whose columns begin where their heads do."""
    head, _, *lines = table.splitlines()
    heads = list(re.finditer(r"\S+(?: \S+)*", head))
    starts = [found.start() for found in heads]
    ends = [*starts[1:], None]
    spans = list(zip([found.group() for found in heads], starts, ends, strict=True))
    return [{name: line[start:end].strip() for name, start, end in spans} for line in lines if line.strip()]


def test_ps_shows_names_stacks_and_who_awaits_whom(watched, request):
    found = rows(ask("ps", watched))
    names = {"root", "branch", "reader", "leaf one", "leaf two", "sleeper", "limited", "waiter"}
    assert {row["task name"] for row in found} == names
    assert {row["tid"] for row in found} == {str(watched)}
    stacks = {row["task name"]: row["coroutine stack"] for row in found}
    assert stacks["leaf one"] == stacks["leaf two"] == "leaf"
    assert stacks["reader"] == "second_reader"
    assert stacks["root"] == "root"
    if request.node.callspec.params["watched"] == "tideloop-accelerated":
        # What has no frame of the interpreter's is not to be seen in a process's memory.
        assert stacks["branch"] == "branch"
        assert stacks["sleeper"] == stacks["limited"] == stacks["waiter"] == ""
    else:
        assert stacks["branch"].endswith("TaskGroup.__aexit__ -> branch")
        assert stacks["sleeper"] == "sleep"
        assert stacks["limited"] == "leaf -> wait_for"
        assert stacks["waiter"] == "_wait -> wait"
    awaiters = {(row["task name"], row["awaiter name"]) for row in found}
    assert {("leaf one", "branch"), ("leaf two", "branch"), ("branch", "root"), ("reader", "root")} <= awaiters
    ids = {row["task name"]: row["task id"] for row in found}
    assert all(ids[row["awaiter name"]] == row["awaiter id"] for row in found if row["awaiter name"])


def test_pstree_shows_the_leaves_below_the_branch_below_the_root(watched):
    lines = ask("pstree", watched).splitlines()
    depths = {found.group(1): found.start() for line in lines if (found := re.search(r"\(T\) (.+)$", line))}
    assert {"root", "branch", "reader", "leaf one", "leaf two"} <= depths.keys()
    assert depths["root"] < depths["branch"] < depths["leaf one"] == depths["leaf two"]
    assert "ended" not in depths
    assert any("leaf <string>:" in line or " leaf " in line for line in lines)
