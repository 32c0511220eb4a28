"""tideloop.observe.dump_traces(): traces that are written by themselves."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tideloop

from tests.observe import chrome_format

PACKAGE = Path(tideloop.__file__).parent.parent
signals = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to be sent")

HEAD = """
import asyncio, os, signal, sys, time, tideloop
from pathlib import Path
folder = Path(sys.argv[1])

def written(count):
    end = time.monotonic() + 20
    while time.monotonic() < end:
        names = sorted(path.name for path in folder.glob("*.json"))
        if len(names) >= count:
            return names
        time.sleep(0.001)
    raise TimeoutError(os.listdir(folder))

def run(main):
    with asyncio.Runner(loop_factory=tideloop.EventLoop) as runner:
        return runner.run(main())
"""


def run(code, folder, **environment):
    given = {"PYTHONPATH": str(PACKAGE), "TIDELOOP_OBSERVE": "trace", **environment}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", HEAD + code, str(folder)],
        capture_output=True,
        text=True,
        timeout=25,
        env={**os.environ, "TIDELOOP_BLOCK_THRESHOLD": "off", **given},
    )
    assert done.returncode == 0, done.stderr
    return done


BLOCKS = """
tideloop.observe.set_block_threshold(0.02)
tideloop.observe.dump_traces(folder)

async def main():
    # It ends when it was seen and dumped, so that it is dumped while it lasts.
    print(*written(1))

run(main)
"""


def test_a_block_is_dumped_while_it_lasts_and_when_it_has_ended(tmp_path):
    done = run(BLOCKS, tmp_path)
    (path,) = tmp_path.iterdir()
    assert done.stdout.split() == [path.name]
    assert path.name.startswith("trace-")
    assert path.name.endswith("-block-1.json")
    # It was written anew by the time that the process had ended.
    phases = chrome_format.check(path.read_bytes())
    (told,) = [event for event in phases["i"] if event["name"] == "blocked"]
    assert told["args"]["for_ns"] >= 20_000_000
    step = max((event for event in phases["X"] if event["tid"] == 1), key=lambda event: event["dur"])
    assert step["name"] == "main"
    assert step["ts"] <= told["ts"] <= step["ts"] + step["dur"]


SIGNALLED = """
tideloop.observe.dump_traces(folder, on_block=False, on_signal=signal.SIGUSR2, most=2)

async def main():
    for number in range(1, 4):
        os.kill(os.getpid(), signal.SIGUSR2)
        # The loop does nothing meanwhile.
        while not list(folder.glob(f"*-signal-{number}.json")):
            time.sleep(0.001)

run(main)
tideloop.observe.stop_dumping_traces()
print(signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL, *written(2))
"""


@signals
def test_a_signal_has_one_written_whatever_the_loop_does(tmp_path):
    done = run(SIGNALLED, tmp_path)
    default, *names = done.stdout.split()
    assert default == "True"
    # The first one is gone.
    assert [name.rpartition("-")[2] for name in names] == ["2.json", "3.json"]
    for path in tmp_path.iterdir():
        chrome_format.check(path.read_bytes())


FORKS = """
async def main():
    await asyncio.sleep(0)
    child = os.fork()
    if child == 0:
        asyncio.events._set_running_loop(None)
        os.kill(os.getpid(), signal.SIGUSR2)
        async def again():
            os.kill(os.getpid(), signal.SIGUSR2)
            written(1)
        run(again)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    (name,) = written(1)
    assert name.startswith(f"trace-{child}-"), (name, child)
    os.kill(os.getpid(), signal.SIGUSR2)
    written(2)

run(main)
"""


@signals
def test_the_environment_asks_for_it_and_a_forked_child_does_it_for_itself(tmp_path):
    run(FORKS, tmp_path, TIDELOOP_TRACE_DUMPS=str(tmp_path), TIDELOOP_TRACE_SIGNAL="SIGUSR2")
    assert len(list(tmp_path.iterdir())) == 2


UNTRACED = """
tideloop.observe.dump_traces(folder, on_signal=signal.SIGUSR2)

async def main():
    os.kill(os.getpid(), signal.SIGUSR2)

run(main)
"""


@signals
def test_without_a_loop_that_is_traced_nothing_is_written(tmp_path):
    run(UNTRACED, tmp_path, TIDELOOP_OBSERVE="tasks")
    assert not list(tmp_path.iterdir())


GONE = """
tideloop.observe.dump_traces(folder, on_signal=signal.SIGUSR2)
folder.rmdir()

async def main():
    os.kill(os.getpid(), signal.SIGUSR2)

loop = tideloop.EventLoop()
loop.run_until_complete(main())
tideloop.observe.stop_dumping_traces()
loop.close()
"""


@signals
def test_what_cannot_be_written_is_told(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    done = run(GONE, folder)
    assert "-signal-1.json cannot be written: No such file" in done.stderr


def test_what_is_asked_for_is_checked(tmp_path, monkeypatch):
    dump = tideloop.observe.dump_traces
    with pytest.raises(NotADirectoryError, match="expected a directory"):
        dump(tmp_path / "nothing")
    with pytest.raises(ValueError, match="seconds is -1"):
        dump(tmp_path, seconds=-1)
    with pytest.raises(ValueError, match="most is 0"):
        dump(tmp_path, most=0)
    if sys.platform != "win32":
        with pytest.raises(ValueError, match="on_signal is 1000; expected a signal"):
            dump(tmp_path, on_signal=1000)
        with pytest.raises(ValueError, match="which somebody handles already"):
            dump(tmp_path, on_signal=signal.SIGINT)
        with pytest.raises(OSError, match="Invalid argument"):
            dump(tmp_path, on_signal=signal.SIGKILL)
    monkeypatch.setenv("TIDELOOP_TRACE_DUMPS", str(tmp_path))
    monkeypatch.setenv("TIDELOOP_TRACE_SIGNAL", "SIGNOTHING")
    loop = tideloop.EventLoop(observe="trace")
    try:
        from tideloop.observe import dumps

        monkeypatch.setattr(dumps, "_hooked", False)
        with pytest.raises(ValueError, match="TIDELOOP_TRACE_SIGNAL is 'SIGNOTHING'"):
            loop.run_forever()
    finally:
        loop.close()
    assert not list(tmp_path.iterdir())
