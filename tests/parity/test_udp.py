"""Datagram endpoints: UDP and UNIX datagram sockets, from making them to their end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import socket
import sys
import warnings

import pytest

from tests.backends import deviates
from tests.peers import LOOPBACK, settled, turns

SENDS_EMPTY = sys.version_info >= (3, 13)
HEADER = 8 if SENDS_EMPTY else 0
NO_UNIX = deviates("uvloop", "has no UNIX datagram endpoints")


class Recorder(asyncio.DatagramProtocol):
    """Writes down, in order, what happens to it: `events`, `datagrams` with their origins, `errors`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.events: list[str] = []
        self.datagrams: list[tuple[bytes, object]] = []
        self.errors: list[Exception] = []
        self.transport: asyncio.DatagramTransport | None = None
        self.lost = loop.create_future()
        self._changed = asyncio.Event()

    def connection_made(self, transport):
        self.transport = transport
        self.events.append("made")

    def datagram_received(self, data, addr):
        self.events.append("data")
        self.datagrams.append((data, addr))
        self._changed.set()

    def error_received(self, exc):
        self.events.append("error")
        self.errors.append(exc)
        self._changed.set()

    def pause_writing(self):
        self.events.append("pause")

    def resume_writing(self):
        self.events.append("resume")
        self._changed.set()

    def connection_lost(self, exc):
        self.events.append("lost")
        self.lost.set_result(exc)

    async def until(self, holds) -> None:
        """Wait until `holds(self)`."""
        while not holds(self):
            self._changed.clear()
            await self._changed.wait()

    async def received(self, count: int) -> list[bytes]:
        """Wait for `count` datagrams in all, and return what they hold."""
        await self.until(lambda self: len(self.datagrams) >= count)
        return [data for data, _ in self.datagrams]

    async def failed(self) -> Exception:
        """Wait for the first error."""
        await self.until(lambda self: self.errors)
        return self.errors[0]


@contextlib.asynccontextmanager
async def endpoint(loop, factory=None, **options):
    """A datagram endpoint's protocol; bound to the loopback address unless told otherwise; aborted in the end."""
    if not options.keys() & {"local_addr", "remote_addr", "sock"}:
        options["local_addr"] = (LOOPBACK, 0)
    transport, protocol = await loop.create_datagram_endpoint(factory or (lambda: Recorder(loop)), **options)
    try:
        yield protocol
    finally:
        if not protocol.lost.done():
            transport.abort()
            await protocol.lost


@contextlib.contextmanager
def plain(family=socket.AF_INET, address=(LOOPBACK, 0)):
    """A plain datagram socket that waits at most a few seconds."""
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind(address)
        sock.settimeout(5)
        yield sock


def name_of(protocol: Recorder):
    return protocol.transport.get_extra_info("sockname")


@pytest.fixture
def paths(tmp_path):
    return str(tmp_path / "one"), str(tmp_path / "two")


@contextlib.asynccontextmanager
async def full(loop, paths, **options):
    """A UNIX endpoint whose peer takes nothing more, and the peer: what is sent next is queued."""
    with plain(socket.AF_UNIX, paths[0]) as peer:
        async with endpoint(loop, family=socket.AF_UNIX, remote_addr=paths[0], **options) as protocol:
            sock = protocol.transport.get_extra_info("socket")
            with socket.socket(fileno=os.dup(sock.fileno())) as raw:
                raw.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        raw.send(b"filling")
            yield protocol, peer


def drain(peer: socket.socket) -> list[bytes]:
    """What a plain socket has got, but for the filling."""
    peer.setblocking(False)
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            if (data := peer.recv(1 << 18)) != b"filling":
                found.append(data)
    return found


class TestMaking:
    async def test_there_and_back(self, loop):
        async with endpoint(loop) as one, endpoint(loop) as two:
            one.transport.sendto(b"question", name_of(two))
            assert await two.received(1) == [b"question"]
            assert two.datagrams[0][1] == name_of(one)
            two.transport.sendto(b"answer", two.datagrams[0][1])
            assert await one.received(1) == [b"answer"]
            assert one.events == ["made", "data"]

    async def test_connected(self, loop):
        async with endpoint(loop) as two, endpoint(loop, remote_addr=name_of(two)) as one:
            assert one.transport.get_extra_info("peername") == name_of(two)
            assert two.transport.get_extra_info("peername") is None
            one.transport.sendto(b"one")
            one.transport.sendto(b"two", None)
            one.transport.sendto(b"three", name_of(two))
            assert await two.received(3) == [b"one", b"two", b"three"]

    async def test_connected_hears_nobody_else(self, loop):
        async with (
            endpoint(loop) as peer,
            endpoint(loop) as stranger,
            endpoint(loop, local_addr=(LOOPBACK, 0), remote_addr=name_of(peer)) as one,
        ):
            stranger.transport.sendto(b"no", name_of(one))
            peer.transport.sendto(b"yes", name_of(one))
            assert await one.received(1) == [b"yes"]

    async def test_on_a_socket(self, loop):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((LOOPBACK, 0))
        async with endpoint(loop, sock=sock) as one, endpoint(loop) as two:
            assert not sock.getblocking()
            two.transport.sendto(b"hello", sock.getsockname())
            assert await one.received(1) == [b"hello"]
            one.transport.close()
            await one.lost
            await turns(1)
            assert sock.fileno() == -1

    async def test_on_a_connected_socket(self, loop):
        async with endpoint(loop) as two:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.connect(name_of(two))
            async with endpoint(loop, sock=sock) as one:
                one.transport.sendto(b"hello")
                assert await two.received(1) == [b"hello"]

    async def test_without_an_address(self, loop):
        async with endpoint(loop) as two:
            transport, one = await loop.create_datagram_endpoint(lambda: Recorder(loop), family=socket.AF_INET)
            transport.sendto(b"hello", name_of(two))
            assert await two.received(1) == [b"hello"]
            transport.abort()
            await one.lost

    async def test_reuse_port_shares_an_address(self, loop):
        async with (
            endpoint(loop, local_addr=(LOOPBACK, 0), reuse_port=True) as one,
            endpoint(loop, local_addr=name_of(one), reuse_port=True) as two,
        ):
            assert name_of(one) == name_of(two)
            with plain() as sock:
                sock.sendto(b"hello", name_of(one))
                while not (one.datagrams or two.datagrams):
                    await settled(loop, 1)

    @deviates("uvloop", "leaves its handle to the garbage collector")
    async def test_an_address_that_is_taken(self, loop):
        async with endpoint(loop) as one:
            with pytest.raises(OSError, match="in use"):
                await loop.create_datagram_endpoint(lambda: Recorder(loop), local_addr=name_of(one))

    async def test_broadcast(self, loop):
        async with endpoint(loop, local_addr=("0.0.0.0", 0), allow_broadcast=True) as one:
            sock = one.transport.get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST) == 1
            one.transport.sendto(b"all", ("127.255.255.255", name_of(one)[1]))
            assert await one.received(1) == [b"all"]

    async def test_broadcast_is_refused_by_default(self, loop):
        async with endpoint(loop, local_addr=("0.0.0.0", 0)) as one:
            one.transport.sendto(b"all", ("127.255.255.255", name_of(one)[1]))
            assert isinstance(await one.failed(), PermissionError)

    @deviates("uvloop", "connects the socket")
    async def test_a_fixed_peer_that_the_system_does_not_know(self, loop):
        async with endpoint(loop) as two, endpoint(loop, remote_addr=name_of(two), allow_broadcast=True) as one:
            assert one.transport.get_extra_info("peername") is None
            one.transport.sendto(b"one")
            one.transport.sendto(b"two", name_of(two))
            assert await two.received(2) == [b"one", b"two"]

    async def test_a_stream_socket_is_refused(self, loop):
        with socket.socket() as sock, pytest.raises(ValueError, match="ocket was expected"):
            await loop.create_datagram_endpoint(lambda: Recorder(loop), sock=sock)

    async def test_connection_made_comes_before_the_endpoint(self, loop):
        async with endpoint(loop) as one:
            assert one.events == ["made"]


class TestIPv6:
    @pytest.fixture(autouse=True)
    def there(self):
        try:
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
                sock.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 here")

    @pytest.mark.parametrize("parts", [2, 3, 4])
    async def test_there_and_back(self, loop, parts):
        async with endpoint(loop, local_addr=("::1", 0)) as one, endpoint(loop, local_addr=("::1", 0)) as two:
            one.transport.sendto(b"question", name_of(two)[:parts])
            assert await two.received(1) == [b"question"]
            assert two.datagrams[0][1] == name_of(one)
            assert len(name_of(one)) == 4

    async def test_a_scope_is_kept(self, loop):
        index = socket.if_nametoindex("lo")
        try:
            with plain(socket.AF_INET6, ("ff01::1", 0, 0, index)):
                pass
        except OSError:
            pytest.skip("no IPv6 multicast on the loopback interface here")
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        sock.bind(("ff01::1", 0, 0, index))
        async with endpoint(loop, sock=sock) as one:
            assert name_of(one)[3] == index


class TestUnix:
    @NO_UNIX
    async def test_there_and_back(self, loop, paths):
        async with (
            endpoint(loop, family=socket.AF_UNIX, local_addr=paths[0]) as one,
            endpoint(loop, family=socket.AF_UNIX, local_addr=paths[1]) as two,
        ):
            one.transport.sendto(b"question", paths[1])
            assert await two.received(1) == [b"question"]
            assert two.datagrams == [(b"question", paths[0])]
            two.transport.sendto(b"answer", os.fsencode(paths[0]))
            assert await one.received(1) == [b"answer"]

    @NO_UNIX
    async def test_a_sender_without_a_name(self, loop, paths):
        async with endpoint(loop, family=socket.AF_UNIX, local_addr=paths[0]) as one:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"hello", paths[0])
            await one.received(1)
            assert one.datagrams == [(b"hello", None)]

    @NO_UNIX
    async def test_abstract(self, loop):
        name = f"\0tideloop-udp-{os.getpid()}"
        async with (
            endpoint(loop, family=socket.AF_UNIX, local_addr=name + "-1") as one,
            endpoint(loop, family=socket.AF_UNIX, local_addr=name + "-2") as two,
        ):
            one.transport.sendto(b"hello", name + "-2")
            await two.received(1)
            assert two.datagrams == [(b"hello", (name + "-1").encode())]

    @NO_UNIX
    async def test_larger_than_ip_allows(self, loop, paths):
        large = os.urandom(150_000)
        async with (
            endpoint(loop, family=socket.AF_UNIX, local_addr=paths[0]) as one,
            endpoint(loop, family=socket.AF_UNIX, remote_addr=paths[0]) as two,
        ):
            two.transport.sendto(large)
            two.transport.sendto(b"next")
            assert await one.received(2) == [large, b"next"]

    @NO_UNIX
    async def test_a_stale_socket_file_is_replaced(self, loop, paths):
        with plain(socket.AF_UNIX, paths[0]):
            pass
        async with endpoint(loop, family=socket.AF_UNIX, local_addr=paths[0]) as one:
            assert name_of(one) == paths[0]


class TestSending:
    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    async def test_kinds_of_data(self, loop, kind):
        async with endpoint(loop) as two, endpoint(loop, remote_addr=name_of(two)) as one:
            one.transport.sendto(kind(b"hello"))
            assert await two.received(1) == [b"hello"]
            assert type(two.datagrams[0][0]) is bytes

    @pytest.mark.parametrize("data", ["text", 7, [1]])
    async def test_other_data_is_refused(self, loop, data):
        async with endpoint(loop) as one:
            with pytest.raises(TypeError):
                one.transport.sendto(data, name_of(one))
            one.transport.sendto(b"works", name_of(one))
            assert await one.received(1) == [b"works"]

    async def test_by_keyword(self, loop):
        async with endpoint(loop) as one:
            one.transport.sendto(data=b"both", addr=name_of(one))
            one.transport.sendto(b"address", addr=name_of(one))
            assert await one.received(2) == [b"both", b"address"]

    async def test_other_arguments_are_refused(self, loop):
        async with endpoint(loop) as one:
            name = name_of(one)
            refused = (((), {}), ((b"a", name, 0), {}), ((b"a",), {"data": b"b"}), ((b"a",), {"else": name}))
            for arguments, keywords in refused:
                with pytest.raises(TypeError):
                    one.transport.sendto(*arguments, **keywords)
            one.transport.sendto(b"works", name)
            assert await one.received(1) == [b"works"]

    @deviates("uvloop", "never sends empty datagrams", when=SENDS_EMPTY)
    async def test_empty(self, loop):
        async with endpoint(loop) as two, endpoint(loop, remote_addr=name_of(two)) as one:
            one.transport.sendto(b"")
            one.transport.sendto(b"after")
            expected = [b"", b"after"] if SENDS_EMPTY else [b"after"]
            assert await two.received(len(expected)) == expected

    @pytest.mark.skipif(SENDS_EMPTY, reason="empty datagrams are sent since 3.13")
    async def test_an_empty_one_from_elsewhere_arrives(self, loop):
        async with endpoint(loop) as one:
            with plain() as sock:
                sock.sendto(b"", name_of(one))
            assert await one.received(1) == [b""]

    async def test_the_largest(self, loop):
        largest = os.urandom(65_507)
        async with endpoint(loop) as two, endpoint(loop, remote_addr=name_of(two)) as one:
            one.transport.sendto(largest)
            assert await two.received(1) == [largest]

    async def test_too_large(self, loop):
        async with endpoint(loop) as two, endpoint(loop, remote_addr=name_of(two)) as one:
            one.transport.sendto(bytes(65_508))
            assert (await one.failed()).errno == errno.EMSGSIZE
            one.transport.sendto(b"fits")
            assert await two.received(1) == [b"fits"]

    async def test_errors_come_inside_sendto(self, loop, backend):
        async with endpoint(loop) as two, endpoint(loop, remote_addr=name_of(two)) as one:
            one.transport.sendto(bytes(65_508))
            if backend.name != "uvloop":  # it tells in the next turn
                assert one.events == ["made", "error"]
            await one.failed()

    async def test_a_wrong_address_on_a_connected_endpoint(self, loop):
        async with endpoint(loop) as two, endpoint(loop, remote_addr=name_of(two)) as one:
            with pytest.raises(ValueError, match="Invalid address"):
                one.transport.sendto(b"hello", (LOOPBACK, 1))

    async def test_nobody_there(self, loop):
        with plain() as gone:
            address = gone.getsockname()
        async with endpoint(loop, remote_addr=address) as one:
            one.transport.sendto(b"hello")
            assert isinstance(await one.failed(), ConnectionRefusedError)
            assert not one.transport.is_closing()

    @deviates("uvloop", "raises")
    async def test_a_name_to_look_up(self, loop):
        async with endpoint(loop) as one, endpoint(loop) as two:
            one.transport.sendto(b"hello", ("localhost", name_of(two)[1]))
            assert await two.received(1) == [b"hello"]

    @deviates("uvloop", "raises")
    @pytest.mark.parametrize("address", [None, 7, "text", (LOOPBACK,), (LOOPBACK, "port"), (LOOPBACK, 1 << 20)])
    async def test_what_is_no_address_ends_the_endpoint(self, loop, handled, address):
        async with endpoint(loop) as one:
            one.transport.sendto(b"hello", address)
            assert one.transport.is_closing()
            assert isinstance(await one.lost, TypeError | OverflowError)
        assert [context["message"] for context in handled] == ["Fatal write error on datagram transport"]

    @deviates("uvloop", "raises")
    async def test_a_name_that_nobody_has(self, loop):
        async with endpoint(loop) as one:
            one.transport.sendto(b"hello", ("nobody.invalid", 9))
            assert isinstance(await one.failed(), socket.gaierror)

    @NO_UNIX
    async def test_one_that_the_protocol_changes_afterwards(self, loop, paths):
        async with full(loop, paths) as (one, peer):
            data = bytearray(b"before")
            one.transport.sendto(data)
            data[:] = b"after!"
            while b"before" not in (found := drain(peer)):
                assert b"after!" not in found
                await settled(loop, 1)


class TestReceiving:
    async def test_a_burst_arrives_whole_and_in_order(self, loop):
        async with endpoint(loop) as one:
            one.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            with plain() as sock:
                for number in range(200):
                    sock.sendto(number.to_bytes(2, "big") * (number % 50 + 1), name_of(one))
            assert await one.received(200) == [n.to_bytes(2, "big") * (n % 50 + 1) for n in range(200)]

    @pytest.mark.parametrize("how", ["close", "abort"])
    async def test_nothing_is_delivered_after_the_end(self, loop, how):
        class Ends(Recorder):
            def datagram_received(self, data, addr):
                super().datagram_received(data, addr)
                if len(self.datagrams) == 3:
                    getattr(self.transport, how)()

        async with endpoint(loop, lambda: Ends(loop)) as one:
            with plain() as sock:
                for number in range(20):
                    sock.sendto(bytes([number]), name_of(one))
            await one.lost
            assert one.events == ["made", "data", "data", "data", "lost"]

    @deviates("uvloop", "has no pause_reading for datagrams")
    async def test_a_pause_holds_the_rest_back(self, loop):
        class Pauses(Recorder):
            def datagram_received(self, data, addr):
                super().datagram_received(data, addr)
                if len(self.datagrams) % 3 == 0:
                    self.transport.pause_reading()

        async with endpoint(loop, lambda: Pauses(loop)) as one:
            with plain() as sock:
                for number in range(20):
                    sock.sendto(bytes([number]), name_of(one))
            for count in (3, 6, 9):
                await one.received(count)
                await settled(loop)
                assert len(one.datagrams) == count
                assert not one.transport.is_reading()
                one.transport.resume_reading()
                assert one.transport.is_reading()
            await one.received(12)
            assert [data for data, _ in one.datagrams] == [bytes([n]) for n in range(len(one.datagrams))]

    @deviates("uvloop", "has no pause_reading for datagrams")
    async def test_a_pause_in_connection_made(self, loop):
        class Pauses(Recorder):
            def connection_made(self, transport):
                super().connection_made(transport)
                transport.pause_reading()

        async with endpoint(loop, lambda: Pauses(loop)) as one:
            one.transport.sendto(b"hello", name_of(one))
            await settled(loop)
            assert one.datagrams == []
            one.transport.resume_reading()
            assert await one.received(1) == [b"hello"]

    async def test_another_protocol_gets_what_follows(self, loop):
        class Hands(Recorder):
            def datagram_received(self, data, addr):
                super().datagram_received(data, addr)
                self.transport.set_protocol(heir)

        heir = Recorder(loop)
        async with endpoint(loop, lambda: Hands(loop)) as one:
            one.lost = heir.lost
            heir.transport = one.transport
            with plain() as sock:
                for number in range(5):
                    sock.sendto(bytes([number]), name_of(one))
            await heir.received(4)
            assert one.transport.get_protocol() is heir
            assert [data for data, _ in one.datagrams + heir.datagrams] == [bytes([n]) for n in range(5)]

    async def test_a_protocol_that_raises_gets_the_next_one(self, loop, handled):
        class Raises(Recorder):
            def datagram_received(self, data, addr):
                super().datagram_received(data, addr)
                raise LookupError(data)

        async with endpoint(loop, lambda: Raises(loop)) as one:
            with plain() as sock:
                for number in range(3):
                    sock.sendto(bytes([number]), name_of(one))
            await one.received(3)
            assert not one.transport.is_closing()
        assert [context["exception"].args for context in handled] == [(bytes([n]),) for n in range(3)]

    def test_an_interruption_loses_nothing(self, loop):
        class Interrupted(Recorder):
            def datagram_received(self, data, addr):
                super().datagram_received(data, addr)
                if len(self.datagrams) == 2:
                    raise KeyboardInterrupt

        opening = endpoint(loop, lambda: Interrupted(loop))
        one = loop.run_until_complete(opening.__aenter__())
        with plain() as sock:
            for number in range(6):
                sock.sendto(bytes([number]), name_of(one))
        with pytest.raises(KeyboardInterrupt):
            loop.run_forever()
        assert loop.run_until_complete(one.received(6)) == [bytes([n]) for n in range(6)]
        loop.run_until_complete(opening.__aexit__(None, None, None))

    @deviates("uvloop", "calls error_received from elsewhere")
    async def test_error_received_that_raises(self, loop, handled):
        class Raises(Recorder):
            def error_received(self, exc):
                super().error_received(exc)
                raise LookupError("in error_received")

        with plain() as gone:
            address = gone.getsockname()
        async with endpoint(loop, lambda: Raises(loop), remote_addr=address) as one:
            one.transport.sendto(b"hello")
            await one.failed()
            assert not one.transport.is_closing()
            with pytest.raises(LookupError):
                one.transport.sendto(bytes(65_508))
        assert [type(context["exception"]) for context in handled] == [LookupError]

    def test_what_was_scheduled_before_comes_first(self, loop):
        opening = endpoint(loop)
        one = loop.run_until_complete(opening.__aenter__())
        with plain() as sock:
            sock.sendto(b"hello", name_of(one))

        async def prepare():
            seen = list(one.datagrams)
            await one.received(1)
            return seen

        assert loop.run_until_complete(prepare()) == []
        loop.run_until_complete(opening.__aexit__(None, None, None))

    async def test_callbacks_run_in_the_context_of_their_maker(self, loop):
        from contextvars import ContextVar

        who: ContextVar[str] = ContextVar("who", default="nobody")
        seen = []

        class Looks(Recorder):
            def datagram_received(self, data, addr):
                seen.append(who.get())
                super().datagram_received(data, addr)

        who.set("maker")
        async with endpoint(loop, lambda: Looks(loop)) as one:
            who.set("sender")
            one.transport.sendto(b"hello", name_of(one))
            await one.received(1)
        assert seen == ["maker"]


class TestAnswering:
    """What is sent while datagrams are being received."""

    class Answers(Recorder):
        def answer(self, data, addr):
            self.transport.sendto(data, addr)

        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            self.answer(data, addr)

    def asked(self, sock: socket.socket, protocol: Recorder, count: int) -> None:
        for number in range(count):
            sock.sendto(bytes([number]), name_of(protocol))

    async def test_every_one_is_answered_in_order(self, loop):
        async with endpoint(loop, lambda: self.Answers(loop)) as one:
            with plain() as sock:
                self.asked(sock, one, 100)
                await one.received(100)
                assert [sock.recv(10) for _ in range(100)] == [bytes([n]) for n in range(100)]

    async def test_several_are_answered_to_whom_they_came_from(self, loop):
        async with endpoint(loop, lambda: self.Answers(loop)) as one, contextlib.AsyncExitStack() as stack:
            socks = [stack.enter_context(plain()) for _ in range(100)]
            for number, sock in enumerate(socks):
                sock.sendto(bytes([number]), name_of(one))
                sock.sendto(bytes([number]), name_of(one))
            await one.received(200)
            for number, sock in enumerate(socks):
                assert [sock.recv(10), sock.recv(10)] == [bytes([number])] * 2

    async def test_more_peers_than_are_remembered(self, loop):
        async with endpoint(loop, lambda: self.Answers(loop)) as one, contextlib.AsyncExitStack() as stack:
            socks = [stack.enter_context(plain()) for _ in range(400)]
            for start in [*range(0, 400, 100)] * 2:
                some = socks[start : start + 100]
                for number, sock in enumerate(some, start):
                    sock.sendto(str(number).encode(), name_of(one))
                await one.received(len(one.datagrams) + 100)
                assert [sock.recv(10) for sock in some] == [
                    str(number).encode() for number in range(start, start + 100)
                ]

    async def test_small_and_large_ones_keep_their_order(self, loop):
        class Mixed(self.Answers):
            def answer(self, data, addr):
                self.transport.sendto(data * (1 if data[0] % 3 else 10_000), addr)

        async with endpoint(loop, lambda: Mixed(loop)) as one:
            with plain() as sock:
                self.asked(sock, one, 12)
                await one.received(12)
                assert [sock.recv(1 << 16)[0] for _ in range(12)] == list(range(12))

    @pytest.mark.parametrize("how", ["close", "abort"])
    async def test_what_was_sent_before_the_end_has_gone(self, loop, how):
        class Ends(self.Answers):
            def answer(self, data, addr):
                super().answer(data, addr)
                if data[0] == 2:
                    getattr(self.transport, how)()

        async with endpoint(loop, lambda: Ends(loop)) as one:
            with plain() as sock:
                self.asked(sock, one, 6)
                await one.lost
                assert sorted(drain(sock)) == [bytes([n]) for n in range(3)]

    async def test_data_that_is_changed_at_once_goes_as_it_was(self, loop):
        class Reuses(self.Answers):
            buffer = bytearray(1)

            def answer(self, data, addr):
                self.buffer[:] = data
                self.transport.sendto(self.buffer, addr)
                self.buffer[:] = b"!"

        async with endpoint(loop, lambda: Reuses(loop)) as one:
            with plain() as sock:
                self.asked(sock, one, 10)
                await one.received(10)
                assert [sock.recv(10) for _ in range(10)] == [bytes([n]) for n in range(10)]

    async def test_one_that_fails_does_not_hold_up_the_others(self, loop):
        class Fails(self.Answers):
            def answer(self, data, addr):
                if data[0] in (3, 4):
                    addr = ("127.255.255.255", addr[1])  # not allowed to broadcast
                self.transport.sendto(data, addr)

        async with endpoint(loop, lambda: Fails(loop), local_addr=("0.0.0.0", 0)) as one:
            with plain() as sock:
                for number in range(8):
                    sock.sendto(bytes([number]), (LOOPBACK, name_of(one)[1]))
                await one.until(lambda one: len(one.errors) == 2 and len(one.datagrams) == 8)
                assert [sock.recv(10)[0] for _ in range(6)] == [0, 1, 2, 5, 6, 7]
                assert [type(error) for error in one.errors] == [PermissionError] * 2

    async def test_a_callback_that_takes_long_holds_up_no_other_answer(self, loop):
        seen = []

        class Slow(self.Answers):
            def answer(self, data, addr):
                seen.append(len(drain(sock)))
                super().answer(data, addr)
                until = loop.time() + 0.002
                while loop.time() < until:
                    pass

        async with endpoint(loop, lambda: Slow(loop)) as one:
            with plain() as sock:
                self.asked(sock, one, 6)
                await one.received(6)
            assert seen == [0, 1, 1, 1, 1, 1]

    async def test_answers_before_an_exception_go(self, loop, handled):
        class Raises(self.Answers):
            def answer(self, data, addr):
                super().answer(data, addr)
                raise LookupError(data)

        async with endpoint(loop, lambda: Raises(loop)) as one:
            with plain() as sock:
                self.asked(sock, one, 5)
                await one.received(5)
                assert [sock.recv(10)[0] for _ in range(5)] == list(range(5))
        assert len(handled) == 5

    @NO_UNIX
    async def test_answers_to_a_full_peer_are_queued_in_order(self, loop, paths):
        with plain(socket.AF_UNIX, paths[1]) as peer:
            async with endpoint(loop, lambda: self.Answers(loop), family=socket.AF_UNIX, local_addr=paths[0]) as one:
                peer.setblocking(False)
                found, asked = [], 0
                while one.transport.get_write_buffer_size() == 0:
                    with contextlib.suppress(BlockingIOError):
                        peer.sendto(asked.to_bytes(4, "big"), paths[0])
                        asked += 1
                    await settled(loop, 1)
                while len(found) < asked:
                    found += drain(peer)
                    await settled(loop, 1)
                assert found == [number.to_bytes(4, "big") for number in range(asked)]


class TestFlow:
    @NO_UNIX
    async def test_a_full_peer_pauses_the_writer_and_then_resumes_it(self, loop, paths):
        async with full(loop, paths) as (one, peer):
            one.transport.set_write_buffer_limits(high=100, low=20)
            assert one.transport.get_write_buffer_limits() == (20, 100)
            one.transport.sendto(bytes(100 - HEADER))
            assert one.transport.get_write_buffer_size() == 100
            assert one.events == ["made"]
            one.transport.sendto(b"last")
            assert one.transport.get_write_buffer_size() == 104 + HEADER
            assert one.events == ["made", "pause"]
            found = []
            while len(found) < 2:
                found += drain(peer)
                await settled(loop, 1)
            assert found == [bytes(100 - HEADER), b"last"]
            await one.until(lambda one: one.events[-1] == "resume")
            if sys.version_info[:2] != (3, 13):  # its count forgets the headers
                assert one.transport.get_write_buffer_size() == 0
            assert one.events == ["made", "pause", "resume"]

    @NO_UNIX
    async def test_much_is_queued_and_sent_in_order(self, loop, paths):
        async with full(loop, paths) as (one, peer):
            sent = [number.to_bytes(4, "big") for number in range(1000)]
            for data in sent:
                one.transport.sendto(data)
            assert one.transport.get_write_buffer_size() == sum(map(len, sent)) + HEADER * len(sent)
            found = []
            while len(found) < len(sent):
                found += drain(peer)
                await settled(loop, 1)
            assert found == sent

    @NO_UNIX
    async def test_addresses_are_queued_with_their_datagrams(self, loop, paths):
        with plain(socket.AF_UNIX, paths[0]) as slow, plain(socket.AF_UNIX, paths[1]) as quick:
            async with endpoint(loop, family=socket.AF_UNIX, local_addr="\0tideloop-udp-queue") as one:
                while one.transport.get_write_buffer_size() == 0:
                    one.transport.sendto(b"filling", paths[0])
                one.transport.sendto(b"later", paths[1])
                assert drain(quick) == []  # one queue: the order among peers is kept too
                found = []
                while not found:
                    drain(slow)
                    await settled(loop, 1)
                    found = drain(quick)
                assert found == [b"later"]

    @NO_UNIX
    async def test_close_sends_what_is_queued_first(self, loop, paths):
        async with full(loop, paths) as (one, peer):
            one.transport.sendto(b"one")
            one.transport.sendto(b"two")
            one.transport.close()
            assert one.transport.is_closing()
            one.transport.sendto(b"three")
            await settled(loop)
            assert one.events == ["made"]
            found = []
            while not one.lost.done():
                found += drain(peer)
                await settled(loop, 1)
            found += drain(peer)
            assert found == [b"one", b"two", b"three"]
            assert one.lost.result() is None

    @NO_UNIX
    async def test_abort_drops_what_is_queued(self, loop, paths):
        async with full(loop, paths) as (one, peer):
            one.transport.sendto(b"one")
            one.transport.close()
            one.transport.abort()
            assert await one.lost is None
            await settled(loop)
            assert drain(peer) == []
            assert one.events == ["made", "lost"]

    @deviates("uvloop", "has a low mark of 16 bytes")
    async def test_limits(self, loop):
        async with endpoint(loop) as one:
            assert one.transport.get_write_buffer_limits() == (16 * 1024, 64 * 1024)
            one.transport.set_write_buffer_limits(high=1000)
            assert one.transport.get_write_buffer_limits() == (250, 1000)
            with pytest.raises(ValueError, match="must be >="):
                one.transport.set_write_buffer_limits(high=1, low=2)

    @NO_UNIX
    async def test_a_peer_that_goes_while_datagrams_are_queued(self, loop, paths):
        async with full(loop, paths) as (one, peer):
            one.transport.sendto(b"one")
            one.transport.sendto(b"two")
            peer.close()
            await one.until(lambda one: len(one.errors) == 2)
            assert isinstance(one.errors[0], ConnectionRefusedError)
            assert isinstance(one.errors[1], OSError)  # not connected any more
            await settled(loop)
            assert not one.transport.is_closing()
            one.transport.close()
            await one.lost


class TestTheEnd:
    async def test_close(self, loop):
        async with endpoint(loop) as one:
            assert not one.transport.is_closing()
            one.transport.close()
            assert one.transport.is_closing()
            one.transport.close()
            assert await one.lost is None
            assert one.events == ["made", "lost"]

    async def test_sendto_a_peer_after_the_end_is_dropped(self, loop, caplog):
        async with endpoint(loop) as two, endpoint(loop, remote_addr=name_of(two)) as one:
            one.transport.abort()
            await one.lost
            for _ in range(4):
                one.transport.sendto(b"too late")
            assert caplog.messages == []
            await settled(loop)
            assert two.datagrams == []

    async def test_many_of_them_are_warned_of(self, loop, caplog):
        async with endpoint(loop) as two, endpoint(loop, remote_addr=name_of(two)) as one:
            one.transport.abort()
            for _ in range(6):
                one.transport.sendto(b"too late")
            assert caplog.messages == ["socket.send() raised exception."] * 2

    @deviates("uvloop", "drops it")
    async def test_without_a_peer_the_last_words_still_go(self, loop):
        async with endpoint(loop) as one, endpoint(loop) as two:
            one.transport.close()
            one.transport.sendto(b"last words", name_of(two))
            await one.lost
            await settled(loop)
            assert [data for data, _ in two.datagrams] == [b"last words"]

    async def test_a_socket_that_is_closed_behind_its_back(self, loop, backend):
        if backend.name == "uvloop":
            pytest.skip("it has a descriptor of its own")
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((LOOPBACK, 0))
        async with endpoint(loop, sock=sock) as one:
            sock.close()
            with plain() as other:
                one.transport.sendto(b"hello", other.getsockname())
            await turns(1)
            assert [error.errno for error in one.errors] == [errno.EBADF]

    @pytest.mark.parametrize("known", ["kept", "shown"])
    async def test_a_socket_that_is_closed_when_it_was_used_for_a_while(self, loop, backend, known):
        if backend.name == "uvloop":
            pytest.skip("it has a descriptor of its own")
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((LOOPBACK, 0))
        async with endpoint(loop, sock=sock) as one:
            kept = sock if known == "kept" else None
            del sock
            with plain() as other:
                for number in range(1, 4):
                    other.sendto(b"hello", name_of(one))
                    await one.received(number)
                    one.transport.sendto(b"hello", other.getsockname())
                (kept or one.transport.get_extra_info("socket")._sock).close()
                one.transport.sendto(b"hello", other.getsockname())
            await turns(1)
            assert [error.errno for error in one.errors] == [errno.EBADF]

    async def test_connection_lost_that_raises(self, loop, handled):
        class Raises(Recorder):
            def connection_lost(self, exc):
                super().connection_lost(exc)
                raise LookupError("in connection_lost")

        async with endpoint(loop, lambda: Raises(loop)) as one:
            one.transport.close()
            await one.lost
            await turns(2)
        assert [type(context["exception"]) for context in handled] == [LookupError]

    def test_an_unclosed_transport_is_warned_of(self, loop, backend):
        if backend.name == "uvloop":
            pytest.skip("it closes its transports with the loop")

        async def leave():
            transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=(LOOPBACK, 0))
            return transport

        transport = loop.run_until_complete(leave())
        loop.close()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del transport
            gc.collect()
        assert any("unclosed" in str(warning.message) for warning in caught)


class TestWhatItTells:
    @deviates("uvloop", "gives the default for a peer that is not there")
    async def test_extra_info(self, loop):
        async with endpoint(loop) as one:
            info = one.transport.get_extra_info
            assert info("socket").getsockname() == info("sockname")
            assert info("socket").type == socket.SOCK_DGRAM
            assert info("peername", "nobody") is None
            assert info("else") is None
            assert info("else", 7) == 7

    @deviates("uvloop", "its transports are no asyncio transports")
    async def test_classes(self, loop):
        async with endpoint(loop) as one:
            assert isinstance(one.transport, asyncio.BaseTransport)
            assert isinstance(one.transport, asyncio.DatagramTransport | asyncio.Transport)

    @deviates("uvloop", "has words of its own")
    async def test_repr(self, loop):
        async with endpoint(loop) as one:
            transport = one.transport
            await turns(1)
            fd = transport.get_extra_info("socket").fileno()
            assert f"fd={fd} read=polling write=<idle, bufsize=0>" in repr(transport)
            transport.close()
            assert " closing " in repr(transport)
            await one.lost
            await turns(1)
            assert " closed" in repr(transport)

    async def test_its_descriptor_is_taken(self, loop):
        async with endpoint(loop) as one:
            with pytest.raises(RuntimeError, match="is used by transport"):
                loop.add_reader(one.transport.get_extra_info("socket").fileno(), print)


class TestOrder:
    """Of what several endpoints are told that have data in one turn."""

    def test_what_one_schedules_comes_behind_all_others(self, runner):
        async def main():
            loop = asyncio.get_running_loop()
            log = []
            over = loop.create_future()

            def told(name):
                log.append(f"{name} told")
                if len(log) == 6:
                    over.set_result(None)

            class Noted(asyncio.DatagramProtocol):
                def __init__(self, name):
                    self.name = name

                def datagram_received(self, data, addr):
                    log.append(f"{self.name} read")
                    loop.call_soon(told, self.name)

            ends = []
            for name in "abc":
                end, _ = await loop.create_datagram_endpoint(lambda name=name: Noted(name), local_addr=(LOOPBACK, 0))
                ends.append(end)
            addresses = [end.get_extra_info("sockname") for end in ends]
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                for address in addresses:
                    sender.sendto(b"x", address)
                # All are there before the loop looks, and nothing else is to be done when it does.
                await over
            for end in ends:
                end.close()
            await turns(2)
            return log

        log = runner.run(main())
        assert all(entry.endswith("read") for entry in log[:3]), log
        assert all(entry.endswith("told") for entry in log[3:]), log


def test_a_socket_that_is_closed_behind_our_back_sends_to_nobody_else(runner):
    async def main():
        loop = asyncio.get_running_loop()
        there, _ = await loop.create_datagram_endpoint(lambda: Recorder(loop), local_addr=(LOOPBACK, 0))
        errors = []

        class Told(asyncio.DatagramProtocol):
            def error_received(self, exc):
                errors.append(exc)

        end, _ = await loop.create_datagram_endpoint(Told, remote_addr=there.get_extra_info("sockname"))
        # The endpoint is not asked for its socket: it would know that somebody has it.
        name = end.get_extra_info("sockname")
        end.sendto(b"first")
        await turns(3)
        # As fixtures do that close what a test has left open.
        number = None
        for found in gc.get_objects():
            if type(found) is socket.socket and found.fileno() != -1 and found.getsockname() == name:
                number = found.fileno()
                found.close()
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        far.setblocking(False)
        with near, far:
            taken = near if near.fileno() == number else far if far.fileno() == number else None
            other = far if taken is near else near
            other.setblocking(False)
            end.sendto(b"secret")
            await turns(3)
            with contextlib.suppress(BlockingIOError):
                assert other.recv(10) == b"", "a stranger has got it"
        end.abort()
        there.close()
        await turns(3)

    runner.get_loop().set_exception_handler(lambda loop, context: None)
    runner.run(main())
