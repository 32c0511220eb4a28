"""Debug mode: slow callbacks, wrong threads, wrong arguments, and where a callback was scheduled."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from tests.backends import deviates
from tests.peers import run_child


@pytest.fixture
def debugged(loop):
    loop.set_debug(True)
    return loop


def from_thread(function, *args):
    """Call in another thread; return the exception, or None."""
    seen = []

    def call():
        try:
            function(*args)
        except Exception as exc:
            seen.append(exc)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return seen[0] if seen else None


def test_off_by_default_and_switched(loop):
    assert loop.get_debug() is False
    loop.set_debug(True)
    assert loop.get_debug() is True
    loop.set_debug(False)
    assert loop.get_debug() is False


def test_switched_while_running(loop):
    async def main():
        loop.set_debug(True)
        await asyncio.sleep(0)
        loop.set_debug(False)
        await asyncio.sleep(0)

    loop.run_until_complete(main())


def test_environment_switches_it_on(backend):
    child = run_child(backend, "print(backend.new_event_loop().get_debug())", PYTHONASYNCIODEBUG="1")
    assert child.stdout == "True\n", child.stderr


class TestSlowCallbacks:
    def test_default_threshold(self, loop):
        assert loop.slow_callback_duration == 0.1

    def test_are_logged(self, debugged, caplog):
        def some_callback():
            debugged.stop()

        debugged.slow_callback_duration = 0.0
        debugged.call_soon(some_callback)
        with caplog.at_level(logging.WARNING, "asyncio"):
            debugged.run_forever()
        messages = [message for message in caplog.messages if "some_callback" in message]
        assert len(messages) == 1
        assert messages[0].startswith("Executing <Handle")
        assert "took 0." in messages[0]
        assert messages[0].endswith("seconds")

    def test_tasks_are_named(self, debugged, caplog):
        async def some_coroutine():
            pass

        debugged.slow_callback_duration = 0.0
        with caplog.at_level(logging.WARNING, "asyncio"):
            debugged.run_until_complete(some_coroutine())
        assert any("some_coroutine" in message and message.startswith("Executing <Task") for message in caplog.messages)

    def test_quick_ones_are_not_logged(self, debugged, caplog):
        debugged.slow_callback_duration = 60
        debugged.call_soon(debugged.stop)
        with caplog.at_level(logging.WARNING, "asyncio"):
            debugged.run_forever()
        assert caplog.messages == []

    def test_nothing_is_logged_without_debug(self, loop, caplog):
        loop.slow_callback_duration = 0.0
        loop.call_soon(loop.stop)
        with caplog.at_level(logging.WARNING, "asyncio"):
            loop.run_forever()
        assert caplog.messages == []


class TestWrongThread:
    @pytest.mark.parametrize(
        "call",
        [
            lambda loop: loop.call_soon(print),
            lambda loop: loop.call_later(0, print),
            lambda loop: loop.call_at(0, print),
        ],
        ids=["call_soon", "call_later", "call_at"],
    )
    def test_is_refused_while_the_loop_runs(self, debugged, call):
        async def main():
            return from_thread(call, debugged)

        error = debugged.run_until_complete(main())
        assert isinstance(error, RuntimeError)
        assert "Non-thread-safe operation invoked on an event loop other than the current one" in str(error)

    def test_threadsafe_is_allowed(self, debugged):
        async def main():
            done = asyncio.Event()
            assert from_thread(debugged.call_soon_threadsafe, done.set) is None
            await done.wait()

        debugged.run_until_complete(main())

    def test_a_loop_that_does_not_run_has_no_thread(self, debugged):
        assert from_thread(debugged.call_soon, int) is None
        debugged.call_soon(debugged.stop)
        debugged.run_forever()


unchecked = deviates("uvloop", "takes anything")


class TestWrongCallback:
    @pytest.mark.parametrize("name", ["call_soon", "call_soon_threadsafe", "call_at", "call_later"])
    @pytest.mark.parametrize("what", [1, None, "print"])
    @unchecked
    def test_not_callable(self, debugged, name, what):
        with pytest.raises(TypeError, match="a callable object was expected by call_"):
            self.schedule(debugged, name, what)

    @pytest.mark.parametrize("name", ["call_soon", "call_soon_threadsafe", "call_at", "call_later"])
    @unchecked
    def test_coroutine_function(self, debugged, name):
        async def function():
            pass

        with pytest.raises(TypeError, match="coroutines cannot be used with call_"):
            self.schedule(debugged, name, function)

    @pytest.mark.parametrize("name", ["call_soon", "call_soon_threadsafe", "call_at", "call_later"])
    @unchecked
    def test_coroutine_object(self, debugged, name):
        async def function():
            pass

        coroutine = function()
        try:
            with pytest.raises(TypeError, match="coroutines cannot be used with call_"):
                self.schedule(debugged, name, coroutine)
        finally:
            coroutine.close()

    @pytest.mark.parametrize("name", ["call_soon", "call_soon_threadsafe", "call_at"])
    @unchecked
    def test_the_text_names_the_method(self, debugged, name):
        with pytest.raises(TypeError, match=rf"a callable object was expected by {name}\(\), got 1"):
            self.schedule(debugged, name, 1)

    @unchecked
    def test_the_text_names_run_in_executor(self, debugged):
        with pytest.raises(TypeError, match=r"a callable object was expected by run_in_executor\(\), got 1"):
            debugged.run_in_executor(None, 1).add_done_callback(lambda future: future.exception())

    def test_without_debug_not_callable_is_reported_when_run(self, loop, handled):
        loop.call_soon(1)
        loop.call_soon(loop.stop)
        loop.run_forever()
        assert isinstance(handled[0]["exception"], TypeError)

    @staticmethod
    def schedule(loop, name, what):
        first = {"call_at": (0,), "call_later": (1,)}.get(name, ())
        handle = getattr(loop, name)(*first, what)
        handle.cancel()


class TestOrigin:
    def test_handle_remembers_where_it_was_scheduled(self, debugged):
        handle = debugged.call_soon(int)
        assert handle._source_traceback[-1].name == self.test_handle_remembers_where_it_was_scheduled.__name__
        handle.cancel()
        timer = debugged.call_later(1000, int)
        assert timer._source_traceback[-1].name == self.test_handle_remembers_where_it_was_scheduled.__name__
        timer.cancel()

    def test_its_repr_tells(self, debugged):
        handle = debugged.call_soon(int)
        assert "created at" in repr(handle)
        handle.cancel()

    def test_future_remembers_where_it_was_made(self, debugged):
        future = debugged.create_future()
        names = [frame.name for frame in future._source_traceback]
        assert self.test_future_remembers_where_it_was_made.__name__ in names

    @deviates("uvloop", "drops it")
    def test_cancelled_handle_keeps_its_repr(self, debugged):
        def some_callback():
            pass

        handle = debugged.call_soon(some_callback)
        handle.cancel()
        assert "some_callback" in repr(handle)
