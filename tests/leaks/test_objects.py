"""Cycles through the loop's objects die, and references to callbacks and arguments are dropped in time."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import signal
import socket
import sys
import weakref

import pytest
import tideloop

from tests.backends import deviates
from tests.peers import LOOPBACK, Recorder, connected, socket_pair

FAR = 1000.0


class Thing:
    """Something that may be part of a cycle and may be watched."""

    def method(self, *args):
        pass


def run_ready(loop):
    loop.call_soon(loop.stop)
    loop.run_forever()


def collected(*refs: weakref.ref) -> bool:
    """Whether all of them die in a collection."""
    for _ in range(3):
        gc.collect()
    return all(ref() is None for ref in refs)


class TestHandles:
    """A handle that its own callback or argument refers to."""

    @pytest.mark.parametrize("end", ["run", "cancelled", "dropped with the loop"])
    @pytest.mark.parametrize("kind", ["call_soon", "call_later", "call_soon_threadsafe"])
    def test_cycle_dies(self, backend, kind, end):
        loop = backend.new_event_loop()
        thing = Thing()
        delay = (0 if end == "run" else FAR,) if kind == "call_later" else ()
        thing.handle = getattr(loop, kind)(*delay, thing.method, thing)
        if end == "run":
            loop.call_later(0.002, loop.stop)
            loop.run_forever()
        elif end == "cancelled":
            thing.handle.cancel()
        ref = weakref.ref(thing)
        del thing
        if end == "dropped with the loop":
            loop.close()
            del loop
            assert collected(ref)
        else:
            assert collected(ref)
            loop.close()

    @pytest.mark.parametrize("kind", ["call_soon", "call_later"])
    def test_close_drops_what_is_pending(self, backend, kind):
        loop = backend.new_event_loop()
        thing = Thing()
        getattr(loop, kind)(*(() if kind == "call_soon" else (FAR,)), thing.method)
        ref = weakref.ref(thing)
        del thing
        assert ref() is not None
        loop.close()
        assert collected(ref)

    @pytest.mark.parametrize("kind", ["call_soon", "call_later"])
    def test_reference_counts_return_after_the_run(self, loop, kind):
        callee, argument = Thing(), Thing()
        before = sys.getrefcount(callee), sys.getrefcount(argument)
        for _ in range(100):
            getattr(loop, kind)(*(() if kind == "call_soon" else (0,)), callee.method, argument)
        assert sys.getrefcount(argument) == before[1] + 100
        loop.call_later(0.002, loop.stop)
        loop.run_forever()
        assert (sys.getrefcount(callee), sys.getrefcount(argument)) == before

    @pytest.mark.parametrize("kind", ["call_soon", "call_later"])
    def test_reference_counts_return_after_cancel(self, loop, kind):
        callee, argument = Thing(), Thing()
        before = sys.getrefcount(callee), sys.getrefcount(argument)
        handles = [
            getattr(loop, kind)(*(() if kind == "call_soon" else (FAR,)), callee.method, argument) for _ in range(100)
        ]
        for handle in handles:
            handle.cancel()
        assert (sys.getrefcount(callee), sys.getrefcount(argument)) == before

    def test_a_kept_handle_that_ran_does_not_keep_the_loop_running(self, loop):
        argument = Thing()
        handle = loop.call_soon(argument.method)
        ref = weakref.ref(argument)
        run_ready(loop)
        del argument, handle
        assert collected(ref)

    def test_contexts_are_dropped(self, loop):
        variable = contextvars.ContextVar("variable")
        thing = Thing()
        context = contextvars.copy_context()
        context.run(variable.set, thing)
        loop.call_soon(int, context=context)
        loop.call_later(0, int, context=context)
        loop.call_later(0.002, loop.stop)
        loop.run_forever()
        ref = weakref.ref(thing)
        del thing, context
        assert collected(ref)

    def test_an_exception_in_a_callback_is_not_kept(self, loop, handled):
        error = LookupError("expected")
        error.thing = Thing()
        ref = weakref.ref(error.thing)

        def fail(error):
            raise error

        loop.call_soon(fail, error)
        run_ready(loop)
        handled.clear()
        del error
        assert collected(ref)

    def test_10_000_cancelled_timers_are_swept(self, loop):
        """Their handles die, not only what they called."""
        handles = [loop.call_later(FAR + i, int) for i in range(10_000)]
        refs = [weakref.ref(handle) for handle in handles]
        for handle in handles:
            handle.cancel()
        del handles, handle
        run_ready(loop)
        run_ready(loop)
        assert sum(ref() is not None for ref in refs) <= 100

    def test_cancelled_timers_are_gone_when_the_loop_stops(self):
        """Until then they may lie about, as many as it takes to make a sweep worth it."""
        loop = tideloop.new_event_loop()
        timers = [loop.call_later(FAR, Thing().method) for _ in range(20)]
        handles = [weakref.ref(timer) for timer in timers]
        for timer in timers[:10]:
            timer.cancel()
        del timer
        timers.clear()
        run_ready(loop)
        assert [handle() is None for handle in handles] == [True] * 10 + [False] * 10
        loop.close()


class TestLoop:
    @pytest.mark.parametrize("used", [False, True])
    def test_a_closed_one_dies(self, backend, used):
        loop = backend.new_event_loop()
        if used:
            loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        ref = weakref.ref(loop)
        del loop
        assert collected(ref)

    @pytest.mark.filterwarnings("ignore:unclosed event loop:ResourceWarning")
    @pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    @deviates("uvloop", "an unclosed loop is kept")
    def test_one_that_is_never_closed_dies(self, backend):
        loop = backend.new_event_loop()
        loop.run_until_complete(asyncio.sleep(0))
        loop.call_later(FAR, loop.stop)
        loop.call_soon(loop.stop)
        ref = weakref.ref(loop)
        del loop
        assert collected(ref)

    def test_a_cycle_through_its_handlers_dies(self, backend):
        loop = backend.new_event_loop()
        thing = Thing()
        thing.loop = loop
        loop.set_exception_handler(thing.method)
        loop.set_task_factory(thing.method)
        loop.close()
        refs = weakref.ref(loop), weakref.ref(thing)
        del loop, thing
        assert collected(*refs)

    @deviates("uvloop", "keeps the handlers")
    def test_a_signal_handler_does_not_keep_it(self, backend):
        loop = backend.new_event_loop()

        async def main(loop):
            loop.add_signal_handler(signal.SIGUSR1, loop.stop)

        loop.run_until_complete(main(loop))
        loop.close()
        ref = weakref.ref(loop)
        del loop
        assert collected(ref)

    def test_tasks_and_futures_of_a_closed_loop_die(self, backend):
        loop = backend.new_event_loop()

        async def main():
            await asyncio.sleep(0)
            return Thing()

        task = loop.create_task(main())
        loop.run_until_complete(task)
        refs = weakref.ref(task), weakref.ref(task.result()), weakref.ref(loop)
        loop.close()
        del task, loop, main
        assert collected(*refs)


class TestDescriptors:
    @pytest.mark.parametrize("kind", ["reader", "writer"])
    def test_a_cycle_through_a_removed_one_dies(self, loop, kind):
        left, right = socket_pair()
        thing = Thing()
        thing.sock = left
        getattr(loop, f"add_{kind}")(left, thing.method, thing)
        getattr(loop, f"remove_{kind}")(left)
        refs = weakref.ref(thing), weakref.ref(left)
        right.close()
        left.close()
        run_ready(loop)
        del thing, left
        assert collected(*refs)

    def test_a_replaced_callback_is_dropped(self, loop):
        left, right = socket_pair()
        thing = Thing()
        loop.add_reader(left, thing.method)
        ref = weakref.ref(thing)
        del thing
        loop.add_reader(left, int)
        assert collected(ref)
        loop.remove_reader(left)
        left.close()
        right.close()

    def test_callbacks_die_with_the_closed_loop(self, backend):
        loop = backend.new_event_loop()
        left, right = socket_pair()
        thing = Thing()
        thing.loop = loop
        loop.add_reader(left, thing.method)
        loop.close()
        refs = weakref.ref(thing), weakref.ref(loop)
        del thing, loop
        left.close()
        right.close()
        assert collected(*refs)


class TestTransports:
    def test_transport_and_protocol_die_after_the_connection(self, loop):
        refs = []

        async def main():
            async with connected(loop) as (client, server):
                client.transport.write(b"hello")
                await server.received(5)
                for end in (client, server):
                    refs.extend([weakref.ref(end), weakref.ref(end.transport)])
                client.transport.close()
                await server.lost

        loop.run_until_complete(main())
        run_ready(loop)
        assert collected(*refs)

    def test_buffered_data_dies_with_an_aborted_transport(self, loop):
        class Data(bytearray):
            pass

        async def main():
            left, right = socket_pair()
            transport, protocol = await loop.create_connection(lambda: Recorder(loop), sock=left)
            data = Data(16 << 20)
            ref = weakref.ref(data)
            transport.write(data)
            del data
            transport.abort()
            await protocol.lost
            right.close()
            return ref

        ref = loop.run_until_complete(main())
        run_ready(loop)
        assert collected(ref)

    def test_a_factory_dies_with_its_server(self, loop):
        class Factory:
            def __call__(self):
                return Recorder(loop)

        async def main():
            factory = Factory()
            server = await loop.create_server(factory, LOOPBACK, 0)
            _, client = await loop.create_connection(lambda: Recorder(loop), *server.sockets[0].getsockname())
            refs = weakref.ref(factory), weakref.ref(server)
            server.close()
            client.transport.abort()
            await client.lost
            return refs

        refs = loop.run_until_complete(main())
        run_ready(loop)
        run_ready(loop)
        assert collected(*refs)

    def test_1000_connections_leave_nothing(self, loop):
        async def one(address):
            _, client = await loop.create_connection(lambda: Recorder(loop), *address)
            client.transport.write(b"x")
            client.transport.close()
            await client.lost

        async def main():
            alive = weakref.WeakSet()

            def factory():
                protocol = Recorder(loop)
                alive.add(protocol)
                return protocol

            server = await loop.create_server(factory, LOOPBACK, 0)
            address = server.sockets[0].getsockname()
            for _ in range(1000):
                await one(address)
            await asyncio.gather(*(protocol.lost for protocol in alive))
            server.close()
            await server.wait_closed()
            return alive

        alive = loop.run_until_complete(main())
        run_ready(loop)
        gc.collect()
        assert len(alive) == 0

    @pytest.mark.filterwarnings("ignore::ResourceWarning")
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_a_given_socket_is_not_leaked_with_an_unclosed_transport(self, backend):
        """Open transports of a closed loop go with it, and their descriptors too."""
        loop = backend.new_event_loop()
        left, right = socket.socketpair()

        async def main(loop, sock):
            await loop.create_connection(lambda: Recorder(loop), sock=sock)

        loop.run_until_complete(main(loop, left))
        loop.close()
        ref = weakref.ref(loop)
        del loop, left
        assert collected(ref)
        right.close()


class TestEndpoints:
    """A datagram endpoint whose protocol refers to its transport, as most do."""

    class Protocol(asyncio.DatagramProtocol):
        transport: asyncio.DatagramTransport

        def __init__(self):
            self.received = 0
            self.wanted = 1
            self.enough = asyncio.Event()

        def connection_made(self, transport):
            self.transport = transport

        def datagram_received(self, data, addr):
            self.received += 1
            if self.received == self.wanted:
                self.enough.set()

    async def opened(self, loop):
        transport, protocol = await loop.create_datagram_endpoint(self.Protocol, local_addr=(LOOPBACK, 0))
        return transport, protocol, transport.get_extra_info("sockname")

    def test_a_closed_one_dies(self, loop):
        async def use():
            transport, protocol, address = await self.opened(loop)
            transport.sendto(b"hello", address)
            await protocol.enough.wait()
            transport.close()
            return weakref.ref(protocol)

        ref = loop.run_until_complete(use())
        run_ready(loop)
        run_ready(loop)
        assert collected(ref)

    @pytest.mark.filterwarnings("ignore::ResourceWarning")
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_one_that_is_dropped_with_its_loop_dies(self, backend):
        if backend.name == "uvloop":
            pytest.skip("uvloop keeps an unclosed loop's transports")
        loop = backend.new_event_loop()
        _, protocol, _ = loop.run_until_complete(self.opened(loop))
        ref = weakref.ref(protocol)
        del protocol, _
        loop.close()
        del loop
        assert collected(ref)

    def test_datagrams_and_addresses_are_not_kept(self, loop, backend):
        if backend.name == "uvloop":
            pytest.skip("uvloop remembers addresses; if an earlier test had this one, it keeps that test's object")
        kept = []

        class Keeps(self.Protocol):
            def datagram_received(self, data, addr):
                super().datagram_received(data, addr)
                kept.append(sys.getrefcount(data))

        async def use():
            transport, protocol = await loop.create_datagram_endpoint(Keeps, local_addr=(LOOPBACK, 0))
            data, address = b"a datagram", transport.get_extra_info("sockname")
            before = sys.getrefcount(data), sys.getrefcount(address)
            protocol.wanted = 100
            for _ in range(100):
                transport.sendto(data, address)
            await protocol.enough.wait()
            transport.abort()
            await asyncio.sleep(0)
            return before, (sys.getrefcount(data), sys.getrefcount(address))

        before, after = loop.run_until_complete(use())
        assert after == before
        assert len(set(kept)) == 1
