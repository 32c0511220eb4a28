"""How a program gets a tideloop loop: run, Runner, new_event_loop, EventLoop, install."""

import asyncio
import os
import subprocess
import sys
import textwrap

import pytest
import tideloop


async def kind():
    return type(asyncio.get_running_loop())


async def debug():
    return asyncio.get_running_loop().get_debug()


def test_run():
    assert tideloop.run(kind()) is tideloop.EventLoop


def test_run_takes_debug():
    assert tideloop.run(debug(), debug=True) is True
    assert tideloop.run(debug(), debug=False) is False


def test_run_inside_a_loop_is_refused_and_leaves_nothing():
    async def main():
        with pytest.raises(RuntimeError, match="cannot be called from a running event loop"):
            tideloop.run(kind())  # closed by run: no "never awaited" warning

    tideloop.run(main())


def test_run_wants_a_coroutine():
    with pytest.raises((ValueError, TypeError), match="coroutine"):
        tideloop.run(42)


def test_runner():
    with tideloop.Runner() as runner:
        assert runner.run(kind()) is tideloop.EventLoop
        assert runner.get_loop().is_closed() is False
    with asyncio.Runner(loop_factory=tideloop.new_event_loop) as runner:
        assert runner.run(kind()) is tideloop.EventLoop


def test_an_event_loop_is_asyncios():
    loop = tideloop.EventLoop()
    assert isinstance(loop, asyncio.AbstractEventLoop)
    assert isinstance(loop, asyncio.BaseEventLoop)
    loop.close()


@pytest.mark.parametrize(("selector", "name"), [("polling", "polling"), ("default", None)])
def test_the_selector_can_be_chosen(selector, name):
    loop = tideloop.EventLoop(selector=selector)
    assert loop.selector_name == (name or ("epoll" if sys.platform == "linux" else "polling"))
    assert loop.run_until_complete(asyncio.sleep(0, "runs")) == "runs"
    loop.close()


def test_an_unknown_selector_is_named():
    with pytest.raises(ValueError, match=r'selector is "kqueue"; expected .default. or .polling.'):
        tideloop.EventLoop(selector="kqueue")


def child(code, **environment):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, **environment},
    )


def test_the_environment_chooses_the_selector():
    code = "import tideloop; loop = tideloop.new_event_loop(); print(loop.selector_name); loop.close()"
    assert child(code, TIDELOOP_SELECTOR="polling").stdout == "polling\n"
    failed = child(code, TIDELOOP_SELECTOR="poll")
    assert 'selector is "poll"' in failed.stderr


INSTALL = """
import asyncio, tideloop
async def kind(): return type(asyncio.get_running_loop())
tideloop.install()
print(asyncio.run(kind()) is tideloop.EventLoop)
"""


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="policies are deprecated from 3.14 on")
def test_install_makes_it_the_default():
    done = child(INSTALL)
    assert (done.stdout, done.stderr) == ("True\n", "")


@pytest.mark.skipif(sys.version_info < (3, 14), reason="policies are fine before 3.14")
def test_install_warns_of_policies_and_works():
    assert "DeprecationWarning: tideloop.install() sets an event loop policy" in child(INSTALL).stderr
    quiet = "import warnings; warnings.simplefilter('ignore')\n" + textwrap.dedent(INSTALL)
    assert child(quiet).stdout == "True\n"
