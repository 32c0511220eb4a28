"""add_reader, add_writer and their removal on plain file descriptors."""

from __future__ import annotations

import asyncio
import contextvars
import os
import socket

import pytest

from tests.backends import deviates
from tests.peers import facing_socket, socket_pair, turns

color = contextvars.ContextVar("color", default="none")


@pytest.fixture
def pair():
    left, right = socket_pair()
    yield left, right
    left.close()
    right.close()


@pytest.fixture(params=["int", "object"])
def name_of(request):
    """How the descriptor is passed: as a number or as the socket."""
    return (lambda sock: sock.fileno()) if request.param == "int" else (lambda sock: sock)


class TestReader:
    async def test_fires_with_its_arguments(self, loop, pair, name_of):
        left, right = pair
        future = loop.create_future()
        loop.add_reader(name_of(left), lambda *args: future.done() or future.set_result(args), 1, 2)
        right.send(b"x")
        assert await future == (1, 2)
        loop.remove_reader(name_of(left))

    async def test_fires_again_while_data_is_left(self, loop, pair):
        left, right = pair
        seen = []
        done = loop.create_future()

        def read_one():
            seen.append(left.recv(1))
            if len(seen) == 3:
                done.set_result(None)

        right.send(b"abc")
        loop.add_reader(left, read_one)
        await done
        loop.remove_reader(left)
        assert seen == [b"a", b"b", b"c"]

    async def test_does_not_fire_without_data(self, loop, pair):
        left, _ = pair
        seen = []
        loop.add_reader(left, seen.append, 1)
        await turns()
        loop.remove_reader(left)
        assert seen == []

    async def test_a_second_one_replaces_the_first(self, loop, pair):
        left, right = pair
        seen = []
        done = loop.create_future()
        loop.add_reader(left, seen.append, "first")
        loop.add_reader(left, lambda: done.done() or done.set_result("second"))
        right.send(b"x")
        assert await done == "second"
        loop.remove_reader(left)
        assert seen == []

    async def test_may_remove_itself(self, loop, pair):
        left, right = pair
        seen = []

        def once():
            seen.append(1)
            loop.remove_reader(left)

        loop.add_reader(left, once)
        right.send(b"x")
        while not seen:
            await turns(1)
        await turns()
        assert seen == [1]

    async def test_may_remove_another_that_is_ready_too(self, loop, pair):
        left, right = pair
        seen = []

        def only_one(mine, other):
            seen.append(mine)
            loop.remove_reader(other)
            loop.remove_reader(mine)

        left.send(b"x")
        right.send(b"x")
        loop.add_reader(left, only_one, left, right)
        loop.add_reader(right, only_one, right, left)
        while not seen:
            await turns(1)
        await turns()
        assert len(seen) == 1

    async def test_may_close_its_descriptor(self, loop):
        left, right = socket_pair()
        done = loop.create_future()

        def close():
            loop.remove_reader(left)
            left.close()
            done.set_result(None)

        loop.add_reader(left, close)
        right.close()
        await done

    async def test_one_that_raises_is_reported_and_stays(self, loop, pair, handled):
        left, right = pair
        seen = []

        def fail():
            seen.append(left.recv(1))
            raise LookupError("expected")

        loop.add_reader(left, fail)
        for data in (b"a", b"b"):
            right.send(data)
            while data not in seen:
                await turns(1)
        loop.remove_reader(left)
        assert [type(context["exception"]) for context in handled] == [LookupError] * 2

    async def test_end_of_file_makes_it_ready(self, loop, pair):
        left, right = pair
        done = loop.create_future()
        loop.add_reader(left, lambda: done.done() or done.set_result(left.recv(10)))
        right.close()
        assert await done == b""
        loop.remove_reader(left)

    async def test_on_a_pipe(self, loop):
        reader, writer = os.pipe()
        done = loop.create_future()
        loop.add_reader(reader, lambda: done.done() or done.set_result(os.read(reader, 10)))
        os.write(writer, b"x")
        assert await done == b"x"
        loop.remove_reader(reader)
        os.close(reader)
        os.close(writer)

    async def test_runs_in_the_context_of_add_reader(self, loop, pair):
        left, right = pair
        done = loop.create_future()

        def add():
            color.set("red")
            loop.add_reader(left, lambda: done.done() or done.set_result(color.get()))

        contextvars.copy_context().run(add)
        right.send(b"x")
        assert await done == "red"
        loop.remove_reader(left)

    async def test_a_reused_descriptor_number_is_a_new_one(self, loop):
        seen = []
        for _ in range(20):
            left, right = socket_pair()
            done = loop.create_future()
            number = left.fileno()
            seen.append(number)
            loop.add_reader(number, lambda done=done: done.done() or done.set_result(True))
            right.send(b"x")
            assert await done
            loop.remove_reader(number)
            left.close()
            right.close()
        assert len(set(seen)) < 20

    async def test_100_at_once(self, loop):
        pairs = [socket_pair() for _ in range(100)]
        done = {left: loop.create_future() for left, _ in pairs}
        for left, _ in pairs:
            loop.add_reader(left, lambda left=left: done[left].done() or done[left].set_result(left.recv(10)))
        for i, (_, right) in enumerate(pairs):
            right.send(b"%d" % i)
        assert await asyncio.gather(*done.values()) == [b"%d" % i for i in range(100)]
        for left, right in pairs:
            loop.remove_reader(left)
            left.close()
            right.close()


class TestWriter:
    async def test_fires_at_once_on_an_empty_buffer(self, loop, pair, name_of):
        left, _ = pair
        done = loop.create_future()
        loop.add_writer(name_of(left), lambda *args: done.done() or done.set_result(args), 1)
        assert await done == (1,)
        loop.remove_writer(name_of(left))

    async def test_waits_for_room(self, loop, pair):
        left, right = pair
        sent = fill(left)
        seen = []
        loop.add_writer(left, seen.append, 1)
        await turns()
        assert seen == []
        drained = 0
        while drained < sent:
            drained += len(right.recv(1 << 20))
        while not seen:
            await turns(1)
        loop.remove_writer(left)

    async def test_a_second_one_replaces_the_first(self, loop, pair):
        left, _ = pair
        seen = []
        done = loop.create_future()
        loop.add_writer(left, seen.append, "first")
        loop.add_writer(left, lambda: done.done() or done.set_result("second"))
        assert await done == "second"
        loop.remove_writer(left)
        assert seen == []

    async def test_a_gone_peer_makes_it_ready(self, loop, pair):
        left, right = pair
        fill(left)
        done = loop.create_future()
        loop.add_writer(left, lambda: done.done() or done.set_result(True))
        right.close()
        assert await done
        loop.remove_writer(left)


class TestBoth:
    @pytest.mark.parametrize("order", ["reader then writer", "writer then reader"])
    async def test_on_one_descriptor_both_fire(self, loop, pair, order):
        left, right = pair
        readable, writable = loop.create_future(), loop.create_future()
        calls = [
            lambda: loop.add_reader(left, lambda: readable.done() or readable.set_result(left.recv(10))),
            lambda: loop.add_writer(left, lambda: writable.done() or writable.set_result(True)),
        ]
        for call in calls if order.startswith("reader") else calls[::-1]:
            call()
        right.send(b"x")
        assert await writable
        assert await readable == b"x"
        loop.remove_reader(left)
        loop.remove_writer(left)

    async def test_removing_one_keeps_the_other(self, loop, pair):
        left, right = pair
        readable, writable = loop.create_future(), loop.create_future()
        loop.add_reader(left, lambda: readable.done() or readable.set_result(True))
        loop.add_writer(left, lambda: writable.done() or writable.set_result(True))
        assert await writable
        loop.remove_writer(left)
        right.send(b"x")
        assert await readable
        loop.add_writer(left, lambda: None)
        loop.remove_reader(left)
        loop.remove_writer(left)

    async def test_the_writer_may_remove_the_reader_and_back(self, loop, pair):
        left, right = pair
        right.send(b"x")
        seen = []

        def gone(name, remove):
            seen.append(name)
            remove(left)

        loop.add_reader(left, gone, "reader", loop.remove_writer)
        loop.add_writer(left, gone, "writer", loop.remove_reader)
        while not seen:
            await turns(1)
        await turns(3)
        assert len(set(seen)) == 1
        loop.remove_reader(left)
        loop.remove_writer(left)


class TestRemove:
    @deviates("uvloop", "returns None after removing")
    def test_tells_whether_there_was_one(self, loop, pair, name_of):
        left, _ = pair
        for add, remove in ((loop.add_reader, loop.remove_reader), (loop.add_writer, loop.remove_writer)):
            add(name_of(left), print)
            assert remove(name_of(left)) is True
            assert remove(name_of(left)) is False

    @deviates("uvloop", "returns None unless the descriptor was watched before")
    def test_what_was_never_added_is_false(self, loop, pair, name_of):
        left, _ = pair
        assert loop.remove_reader(name_of(left)) is False
        assert loop.remove_writer(name_of(left)) is False


class TestRefused:
    @pytest.mark.parametrize("what", [-1, "fd", None, object(), 1.5], ids=lambda what: type(what).__name__)
    @pytest.mark.parametrize("method", ["add_reader", "add_writer"])
    def test_what_is_no_descriptor(self, loop, method, what):
        with pytest.raises((ValueError, TypeError)):
            getattr(loop, method)(what, print)

    @pytest.mark.parametrize("method", ["add_reader", "add_writer"])
    def test_a_closed_socket(self, loop, method):
        left, right = socket_pair()
        left.close()
        right.close()
        with pytest.raises(ValueError, match="Invalid file"):
            getattr(loop, method)(left, print)

    @pytest.mark.parametrize("method", ["add_reader", "add_writer"])
    def test_a_number_that_is_not_open(self, loop, method):
        left, right = socket_pair()
        number = left.fileno()
        left.close()
        right.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            getattr(loop, method)(number, print)
        assert not loop.remove_reader(number)
        assert not loop.remove_writer(number)

    def test_a_regular_file(self, loop, tmp_path):
        with open(tmp_path / "file", "w") as file, pytest.raises(PermissionError):
            loop.add_reader(file, print)

    def test_a_refused_one_may_be_added_later(self, loop):
        left, right = socket_pair()
        number = left.fileno()
        left.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            loop.add_reader(number, print)
        os.dup2(right.fileno(), number)
        loop.add_writer(number, loop.stop)
        loop.run_forever()
        loop.remove_writer(number)
        os.close(number)
        right.close()

    @pytest.mark.parametrize("method", ["add_reader", "add_writer", "remove_reader", "remove_writer"])
    async def test_the_descriptor_of_a_transport(self, loop, method):
        async with facing_socket(loop) as (protocol, _):
            number = protocol.transport.get_extra_info("socket").fileno()
            with pytest.raises(RuntimeError, match="is used by transport"):
                getattr(loop, method)(*((number, print) if method.startswith("add") else (number,)))

    async def test_a_transport_for_a_watched_descriptor_may_come_after_removal(self, loop):
        left, right = socket_pair()
        loop.add_reader(left, print)
        loop.remove_reader(left)
        reader, writer = await asyncio.open_connection(sock=left)
        right.send(b"hello\n")
        assert await reader.readline() == b"hello\n"
        writer.close()
        await writer.wait_closed()
        right.close()


def fill(sock: socket.socket) -> int:
    """Send until the buffer is full; return how many bytes went."""
    sent = 0
    try:
        while True:
            sent += sock.send(bytes(1 << 16))
    except BlockingIOError:
        return sent
