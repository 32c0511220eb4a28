"""Exceptions nobody catches: where they are reported and with which context."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import socket
import sys

import pytest

from tests.backends import deviates
from tests.peers import turns

color = contextvars.ContextVar("color", default="none")


class Expected(Exception):
    pass


def fail(*args):
    raise Expected(*args)


def run_ready(loop):
    loop.call_soon(loop.stop)
    loop.run_forever()


class TestCallback:
    def test_context_names_message_exception_and_handle(self, loop, handled):
        handle = loop.call_soon(fail)
        run_ready(loop)
        (context,) = handled
        assert context["message"].startswith("Exception in callback")
        assert "fail" in context["message"]
        assert isinstance(context["exception"], Expected)
        assert context["exception"].__traceback__ is not None
        assert context["handle"] is handle

    def test_of_a_timer(self, loop, handled):
        handle = loop.call_later(0, fail)
        loop.call_later(0.002, loop.stop)
        loop.run_forever()
        assert handled[0]["handle"] is handle
        assert isinstance(handled[0]["exception"], Expected)

    @pytest.mark.parametrize("among", [0, 300])
    @pytest.mark.parametrize("way", ["call_soon", "call_later", "call_soon_threadsafe"])
    def test_of_one_that_has_cancelled_its_own_handle(self, loop, handled, way, among):
        def callback():
            handle.cancel()
            fail()

        others = [loop.call_later(1000, int) for _ in range(among)]
        schedule = getattr(loop, way)
        handle = schedule(0, callback) if way == "call_later" else schedule(callback)
        loop.call_later(0.002, loop.stop)
        loop.run_forever()
        assert [(type(context["exception"]), context["handle"]) for context in handled] == [(Expected, handle)]
        for other in others:
            other.cancel()

    @pytest.mark.parametrize("side", ["reader", "writer"])
    def test_of_a_watched_socket_that_the_callback_lets_go_of(self, loop, handled, side):
        self.watch(loop, side, lambda add, remove, watched: remove(watched))
        assert [type(context["exception"]) for context in handled] == [Expected]

    @pytest.mark.parametrize("side", ["reader", "writer"])
    def test_of_a_watched_socket_that_gets_another_callback(self, loop, handled, side):
        self.watch(loop, side, lambda add, remove, watched: add(watched, int))
        assert [type(context["exception"]) for context in handled] == [Expected]

    def watch(self, loop, side, change):
        """Runs until a callback of a socket has made a change, and failed."""
        add, remove = getattr(loop, f"add_{side}"), getattr(loop, f"remove_{side}")
        first, second = socket.socketpair()
        with first, second:
            first.setblocking(False)
            second.send(b"x")

            def callback():
                loop.stop()
                change(add, remove, first)
                fail()

            add(first, callback)
            loop.run_forever()
            remove(first)

    def test_the_others_of_the_turn_still_run(self, loop, handled):
        seen = []
        loop.call_soon(seen.append, 1)
        loop.call_soon(fail, 1)
        loop.call_soon(fail, 2)
        loop.call_soon(seen.append, 2)
        run_ready(loop)
        assert seen == [1, 2]
        assert [context["exception"].args for context in handled] == [(1,), (2,)]

    def test_base_exceptions_are_reported_too(self, loop, handled):
        class Base(BaseException):
            pass

        def fail_hard():
            raise Base

        loop.call_soon(fail_hard)
        loop.call_soon(lambda: (_ for _ in ()).throw(GeneratorExit))
        loop.call_soon(lambda: (_ for _ in ()).throw(asyncio.CancelledError))
        run_ready(loop)
        assert [type(context["exception"]) for context in handled] == [Base, GeneratorExit, asyncio.CancelledError]

    def test_debug_adds_where_it_was_scheduled(self, loop, handled):
        loop.set_debug(True)
        loop.call_soon(fail)
        run_ready(loop)
        (context,) = handled
        assert any(
            frame.name == self.test_debug_adds_where_it_was_scheduled.__name__ for frame in context["source_traceback"]
        )

    @deviates("uvloop", "never shows them")
    def test_debug_shows_the_arguments(self, loop, handled):
        loop.set_debug(True)
        handle = loop.call_soon(fail, "an argument")
        assert "an argument" in repr(handle)
        run_ready(loop)
        assert "an argument" in handled[0]["message"]

    @deviates("uvloop", "never shows them", when=sys.version_info < (3, 13))
    def test_without_debug_arguments_are_shown_before_python_3_13(self, loop, handled):
        handle = loop.call_soon(fail, "an argument")
        shown = sys.version_info < (3, 13)
        assert ("an argument" in repr(handle)) == shown
        run_ready(loop)
        assert ("an argument" in handled[0]["message"]) == shown

    def test_without_debug_that_is_absent(self, loop, handled):
        loop.call_soon(fail)
        run_ready(loop)
        assert "source_traceback" not in handled[0]


class TestHandler:
    def test_none_is_the_default(self, backend):
        loop = backend.new_event_loop()
        assert loop.get_exception_handler() is None
        loop.close()

    def test_custom_one_gets_loop_and_context(self, loop):
        seen = []
        handler = lambda *args: seen.append(args)  # noqa: E731
        loop.set_exception_handler(handler)
        assert loop.get_exception_handler() is handler
        context = {"message": "hello", "extra": 1}
        loop.call_exception_handler(context)
        assert seen == [(loop, context)]

    @pytest.mark.parametrize("what", [1, "handler"])
    def test_what_is_not_callable_is_refused(self, loop, what):
        with pytest.raises(TypeError, match="A callable object or None is expected"):
            loop.set_exception_handler(what)

    def test_default_logs_message_traceback_and_what_else_is_known(self, loop, caplog):
        loop.set_exception_handler(None)
        loop.call_soon(fail, "expected")
        run_ready(loop)
        (record,) = caplog.records
        assert record.name == "asyncio"
        assert record.levelno == logging.ERROR
        assert record.message.startswith("Exception in callback")
        assert "handle: <Handle" in record.message
        assert record.exc_info[0] is Expected

    def test_default_may_be_called(self, loop, caplog):
        loop.default_exception_handler({"message": "hello", "color": "red"})
        assert caplog.messages == ["hello\ncolor: 'red'"]
        loop.default_exception_handler({})
        assert caplog.messages[1].startswith("Unhandled exception in event loop")

    def test_one_that_raises_is_logged_and_the_loop_goes_on(self, loop, caplog):
        def broken(loop, context):
            raise LookupError("in the handler")

        seen = []
        loop.set_exception_handler(broken)
        loop.call_soon(fail)
        loop.call_soon(seen.append, 1)
        run_ready(loop)
        (record,) = caplog.records
        assert record.message.startswith("Unhandled error in exception handler")
        assert seen == [1]

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
    def test_one_that_ends_the_program_does(self, loop, error):
        def leave(loop, context):
            raise error

        loop.set_exception_handler(leave)
        with pytest.raises(error):
            loop.call_exception_handler({"message": "hello"})
        loop.call_soon(fail)
        with pytest.raises(error):
            loop.run_forever()
        loop.set_exception_handler(None)
        run_ready(loop)

    def test_may_be_replaced_by_itself_and_may_schedule(self, loop):
        seen = []

        def first(loop, context):
            seen.append("first")
            loop.set_exception_handler(second)
            loop.call_soon(fail)

        def second(loop, context):
            seen.append("second")
            loop.stop()

        loop.set_exception_handler(first)
        loop.call_soon(fail)
        loop.run_forever()
        run_ready(loop)
        assert seen == ["first", "second"]

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="the handler's context is that of the callback since 3.12")
    def test_runs_in_the_context_of_the_callback(self, loop):
        seen = []
        loop.set_exception_handler(lambda loop, context: seen.append(color.get()))
        context = contextvars.copy_context()
        context.run(color.set, "red")
        loop.call_soon(fail, context=context)
        run_ready(loop)
        assert seen == ["red"]


class TestTasks:
    async def test_an_exception_that_nobody_retrieves(self, loop, handled):
        async def failing():
            fail("expected")

        task = loop.create_task(failing())
        await turns()
        assert handled == []
        del task
        gc.collect()
        (context,) = handled
        assert context["message"] == "Task exception was never retrieved"
        assert isinstance(context["exception"], Expected)
        assert isinstance(context["future"], asyncio.Task)
        handled.clear()

    async def test_a_future_that_nobody_retrieves(self, loop, handled):
        future = loop.create_future()
        future.set_exception(Expected())
        del future
        gc.collect()
        (context,) = handled
        assert context["message"] == "Future exception was never retrieved"
        handled.clear()

    async def test_a_pending_task_that_is_destroyed(self, loop, handled):
        async def forever():
            await asyncio.Future()

        task = asyncio.Task(forever(), loop=loop)
        await turns()
        del task
        gc.collect()
        (context,) = handled
        assert context["message"] == "Task was destroyed but it is pending!"
        assert isinstance(context["task"], asyncio.Task)
        # The handler's context has revived the task: let it end before the loop's tasks are counted.
        context["task"].cancel()
        await turns()
        handled.clear()

    async def test_a_future_callback_that_raises(self, loop, handled):
        future = loop.create_future()
        seen = []
        future.add_done_callback(lambda f: fail())
        future.add_done_callback(seen.append)
        future.set_result(1)
        await turns()
        assert isinstance(handled[0]["exception"], Expected)
        assert seen == [future]
