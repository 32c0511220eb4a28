"""The watchdog sees what blocks a loop while it does."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import tideloop

BLOCKS = Path(__file__).with_name("blocks.py")
PACKAGE = Path(tideloop.__file__).parent.parent
linux = pytest.mark.skipif(sys.platform != "linux", reason="causes are known from /proc")


def run(*arguments, threshold="0.1", program=(str(BLOCKS),), **environment):
    given = {
        "PYTHONPATH": os.pathsep.join([str(PACKAGE), str(BLOCKS.parents[2])]),
        "TIDELOOP_BLOCK_THRESHOLD": threshold,
        **environment,
    }
    return subprocess.run(
        [sys.executable, "-W", "error", *program, *arguments],
        capture_output=True,
        text=True,
        timeout=25,
        env={**os.environ, **given},
    )


WAYS = ["sleeps", "computes", "matches", "waits", "collects"]
CAUSES = dict(zip(WAYS, ["syscall", "python", "c", "syscall", "gc"], strict=True))


@pytest.fixture(scope="module")
def seen():
    """What the program was told of each way, and what it has logged."""
    done = run(*WAYS)
    assert done.returncode == 0, done.stderr
    return {block["task"]: block for block in json.loads(done.stdout)}, done.stderr


@linux
@pytest.mark.parametrize("way", WAYS)
def test_what_blocks_is_found_with_its_frame_and_its_cause(seen, way):
    block = seen[0][way]
    functions = [function for file, line, function in block["stack"] if file == str(BLOCKS) and function[0].isalpha()]
    functions = [function for function in functions if function not in ("bit", "block")]
    assert functions[0] == way
    assert block["duration"] >= 0.1
    assert block["stacks"] >= 1
    assert 0.1 <= block["captured"] <= block["duration"]
    expected = {CAUSES[way]}
    ran, waited = block["spent"]
    if waited > 3 * ran:
        # It may well have been a processor that was missing.
        expected.add("cpu_starved")
    if sys.version_info < (3, 13) and CAUSES[way] in ("python", "c"):
        expected.add("cpu")
        if block["stacks"] > 1:
            # It is Python if stacks differ, as those of a match and of what calls it do.
            expected.add("python")
    assert block["cause"] in expected


@linux
def test_the_innermost_frame_is_the_one_that_calls_into_c(seen):
    # From 3.15 on match() is an alias of the other one.
    names = ("match", "prefixmatch")
    found = [
        line for file, line, name in seen[0]["matches"]["innermost"] if Path(file).parent.name == "re" and name in names
    ]
    assert found
    assert all(line > 0 for line in found)


@linux
def test_hooks_run_in_the_context_of_the_task(seen):
    for way, block in seen[0].items():
        if sys.version_info >= (3, 12):
            assert (block["request"], block["has_context"]) == (f"request of {way}", True)
        else:
            assert (block["request"], block["has_context"]) == ("none", False)


@linux
def test_blocks_are_logged(seen):
    logged = seen[1].splitlines()
    warnings = [line for line in logged if line.startswith("tideloop WARNING the loop was blocked for ")]
    assert len(warnings) >= 4
    assert any(line.strip().endswith("in sleeps") for line in logged)


@linux
def test_the_thread_is_stopped_for_a_fork_and_the_child_has_its_own():
    done = run("fork")
    assert done.returncode == 0, done.stderr
    threads, child = json.loads(done.stdout)
    assert threads == 2
    assert child == 0
    assert "DeprecationWarning" not in done.stderr


def test_off_means_no_thread_and_no_event():
    done = run("sleeps", threshold="off")
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
    not_observed = run("sleeps", TIDELOOP_OBSERVE="0")
    assert (not_observed.returncode, not_observed.stdout, not_observed.stderr) == (0, "[]\n", "")


SIGNALS = """
import asyncio, faulthandler, os, signal, time, tideloop
from tests.observe import captured
from tideloop import watchdog

if {handled}:
    signal.signal(signal.SIGURG, lambda *args: print("mine"))
found = []

async def main():
    tideloop.observe.on_block(found.append)
    if {late}:
        signal.signal(signal.SIGURG, lambda *args: print("mine"))
    # Where none is captured there is nothing to wait for.
    (time.sleep if {late} else lambda seconds: captured.block(seconds, lambda: time.sleep(0.01)))(0.1)
    await asyncio.sleep(0)
    await asyncio.sleep(0)

with asyncio.Runner(loop_factory=tideloop.EventLoop) as runner:
    runner.run(main())
longest = max(found, key=lambda block: block.duration)
print(bool(longest.stack), watchdog._free_signal() == signal.SIGURG)
"""


@linux
@pytest.mark.parametrize(
    ("handled", "late", "printed"), [(0, 0, "True False"), (1, 0, "True False"), (0, 1, "False False")]
)
def test_a_signal_that_somebody_handles_is_left_alone(handled, late, printed):
    code = SIGNALS.format(handled=handled, late=late)
    done = run(program=("-c", code), threshold="0.05")
    assert done.stdout == printed + "\n", done.stderr


THREAD = """
import asyncio, threading, time, tideloop
from tests.observe import captured

blocks = []

async def main():
    tideloop.observe.on_block(blocks.append)
    def sleeps():
        time.sleep(0.01)
    captured.block(0.1, sleeps)
    await asyncio.sleep(0)
    await asyncio.sleep(0)

def work():
    with asyncio.Runner(loop_factory=tideloop.EventLoop) as runner:
        runner.run(main())

thread = threading.Thread(target=work)
thread.start()
thread.join()
longest = max(blocks, key=lambda block: block.duration)
print(longest.cause, "sleeps" in [frame.function for frame in longest.stack[:2]])
"""


@linux
def test_a_loop_in_another_thread_is_watched():
    done = run(program=("-c", THREAD), threshold="0.05")
    assert done.stdout == "syscall True\n", done.stderr


RETURNS = """
import asyncio, tideloop

class Held:
    pass

blocks = []

async def returns():
    held = [Held() for _ in range(400_000)]
    await asyncio.sleep(0)

async def main():
    tideloop.observe.on_block(blocks.append)
    await asyncio.create_task(returns())
    await asyncio.sleep(0)
    await asyncio.sleep(0)

with asyncio.Runner(loop_factory=tideloop.EventLoop) as runner:
    runner.run(main())
print(any(block.stack and block.stack[0].function != "returns" for block in blocks))
"""


@linux
def test_a_stack_is_taken_while_what_a_coroutine_leaves_is_destroyed():
    # Its own frame is gone by then, and the innermost one is of the interpreter's own (python/cpython#123967).
    done = run(program=("-c", RETURNS), threshold="0.005")
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


STORM = """
import asyncio, os, subprocess, sys, tideloop
from tideloop import watchdog

async def main():
    number = watchdog._asked_by[0]
    sends = "for _ in range(2000): os.kill(to, number); time.sleep(0.0001)"
    code = "import os, sys, time; to, number = map(int, sys.argv[1:])\\n" + sends
    sender = subprocess.Popen([sys.executable, "-I", "-c", code, str(os.getpid()), str(number)])
    numbers = list(range(2_000))
    while sender.poll() is None:
        numbers.sort(key=lambda number: number)
    print(sender.returncode)

with asyncio.Runner(loop_factory=tideloop.EventLoop) as runner:
    runner.run(main())
"""


@linux
def test_stacks_are_taken_while_c_code_calls_python():
    # CPython 3.11 and 3.12 show frames in the beginning of such a call before these are there.
    done = run(program=("-c", STORM), threshold="60")
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


TOGETHER = """
import asyncio, threading, time, tideloop

blocks, begin = [], threading.Barrier(2)

async def main():
    for _ in range(3):
        begin.wait()
        await asyncio.sleep(0)
        time.sleep(0.09)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

def work():
    with asyncio.Runner(loop_factory=tideloop.EventLoop) as runner:
        runner.run(main())

tideloop.observe.on_block(blocks.append)
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
slept = [block for block in blocks if block.duration >= 0.09]
print(len(slept), sum(bool(block.stack) for block in slept))
"""


@linux
def test_loops_that_block_together_each_have_a_stack():
    done = run(program=("-c", TOGETHER), threshold="0.04")
    assert done.stdout == "6 6\n", done.stderr


EXIT = """
import asyncio, sys, time, tideloop

async def main():
    for _ in range(5):
        time.sleep(0.02)
        await asyncio.sleep(0)
    sys.exit(7)

tideloop.observe.on_block(print)
tideloop.EventLoop().run_until_complete(main())
"""


def test_the_interpreter_may_end_with_a_loop_that_was_watched():
    done = run(program=("-W", "ignore::ResourceWarning", "-c", EXIT), threshold="0.005")
    assert done.returncode == 7, done.stderr
    assert done.stdout.count("the loop was blocked") >= 4


DAEMON = """
import asyncio, sys, threading, time, tideloop

async def main():
    while True:
        time.sleep(0.02)
        await asyncio.sleep(0)

threading.Thread(target=lambda: tideloop.EventLoop().run_until_complete(main()), daemon=True).start()
time.sleep(0.1)
sys.exit(7)
"""


@pytest.mark.skipif(sys.version_info < (3, 14), reason="before 3.14 a daemon thread in native code ends the process")
def test_the_interpreter_may_end_while_a_loop_is_watched():
    assert run(program=("-c", DAEMON), threshold="0.005").returncode == 7


def test_an_exception_of_a_hook_reaches_the_exception_handler():
    code = """
        import asyncio, time, tideloop
        seen = []
        @tideloop.observe.on_block
        def hook(block):
            raise ZeroDivisionError("from the hook")
        async def main():
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: seen.append(context["exception"]))
            time.sleep(0.03)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        with asyncio.Runner(loop_factory=tideloop.EventLoop) as runner:
            runner.run(main())
        print(seen[:1])  # a busy machine may have blocked it otherwise, too
    """
    done = run(program=("-c", textwrap.dedent(code)), threshold="0.02")
    assert done.stdout == "[ZeroDivisionError('from the hook')]\n", done.stderr


def test_thresholds_and_hooks_are_checked(monkeypatch):
    assert tideloop.observe.block_threshold() is None
    for nonsense in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"seconds is .*; expected at least 0\.001, or None"):
            tideloop.observe.set_block_threshold(nonsense)
    with pytest.raises(TypeError, match="hook is 3; expected a callable"):
        tideloop.observe.on_block(3)
    with pytest.raises(ValueError, match=r"was not given to on_block\(\)"):
        tideloop.observe.off_block(print)
    failed = run(program=("-c", "import tideloop; tideloop.observe"), threshold="soon")
    assert "TIDELOOP_BLOCK_THRESHOLD is 'soon'; expected seconds, at least 0.001, or 'off'" in failed.stderr


@linux
def test_the_example():
    example = Path(__file__).parents[2] / "examples" / "who_blocks.py"
    done = run(program=(str(example),))
    assert done.returncode == 0, done.stderr
    # A busy machine may have blocked it otherwise, too.
    *blocks, longest = done.stdout.splitlines()
    assert "fetch 3 syscall fetch" in blocks
    assert longest.endswith(" s, fetch")
    assert float(longest.split()[0]) >= 0.4
