"""Channels: items in order, from tasks and threads to tasks and threads, each delivered exactly once.

    tx, rx = tideloop.Channel[bytes](64, name="frames")

Both ends may be used from any number of tasks, event loops and threads. Nobody is overtaken: who waits longest
is served first, and a newcomer stands behind everybody who waits or was just woken. A cancelled ``send`` has
not sent, a cancelled ``recv`` has not taken anything: the item stays at the head.

Runs on any asyncio event loop.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Generic, NamedTuple, Self, TypeVar

from tideloop._tideloop import ReceiverCore, SenderCore, function, open_channel
from tideloop.queues import QueueShutDown

__all__ = ["Channel", "ChannelClosed", "ChannelStats", "Receiver", "Sender"]

T = TypeVar("T")


class ChannelClosed(QueueShutDown):
    """This end of a channel is closed, or there is nobody at the other one any more."""


class ChannelStats(NamedTuple):
    """A channel at one moment."""

    name: str | None
    maxsize: int
    """How many items it holds at most; 0 for any number."""
    size: int
    """Items in it."""
    peak: int
    """The most items that were ever in it."""
    sent: int
    """Items that went in so far."""
    received: int
    """Items that came out so far; what was dropped when the last receiver closed is not counted."""
    senders: int
    """Open senders."""
    receivers: int
    """Open receivers."""
    waiting_senders: int
    """Tasks and threads that wait for room."""
    waiting_receivers: int
    """Tasks and threads that wait for an item."""


def _not_ours(handle: object, name: str) -> TypeError:
    return TypeError(f"{name}() is a method of a channel's ends, not of {handle!r}")


class _End:
    """What both ends have."""

    if TYPE_CHECKING:

        def __new__(cls, origin: object) -> Self: ...
        @property
        def name(self) -> str | None: ...
        @property
        def maxsize(self) -> int: ...
        def _stats(self) -> tuple[int, int, int, int, int, int, int, int]: ...
        def close(self) -> None: ...

    def clone(self) -> Self:
        """Another handle of the same kind. Raises ChannelClosed if this one is closed."""
        return type(self)(self)

    def stats(self) -> ChannelStats:
        """The state of the channel."""
        return ChannelStats(self.name, self.maxsize, *self._stats())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Sends(_End, Generic[T]):
    """The signatures and documentation of a sender's native methods."""

    async def send(self, item: T) -> None:
        """Put an item in, waiting for room if need be.

        Raises ChannelClosed if this sender or every receiver is closed. Cancelled, or ended by an
        exception in any way, it has not put the item in.
        """
        raise _not_ours(self, "send")

    def try_send(self, item: T) -> None:
        """Put an item in if there is room.

        Raises asyncio.QueueFull if there is none, or if others are waiting to send;
        ChannelClosed as send() does.
        """
        raise _not_ours(self, "try_send")

    def blocking_send(self, item: T, timeout: float | None = None) -> None:
        """Put an item in from a thread without an event loop, blocking it until there is room.

        Raises TimeoutError after ``timeout`` seconds, ChannelClosed as send() does, what a signal handler
        raises in the main thread, and RuntimeError in a thread whose event loop would be blocked. In all of
        these cases the item was not put in.
        """
        raise _not_ours(self, "blocking_send")


class _Receives(_End, Generic[T]):
    """The signatures and documentation of a receiver's native methods."""

    async def recv(self) -> T:
        """Take the first item, waiting for one if need be.

        Raises ChannelClosed once the channel is empty and every sender is closed, or if this receiver is
        closed. Cancelled, or ended by an exception in any way, it has not taken anything.
        """
        raise _not_ours(self, "recv")

    def try_recv(self) -> T:
        """Take the first item if there is one.

        Raises asyncio.QueueEmpty if there is none, or if others are waiting for it;
        ChannelClosed as recv() does.
        """
        raise _not_ours(self, "try_recv")

    def blocking_recv(self, timeout: float | None = None) -> T:
        """Take the first item in a thread without an event loop, blocking it until there is one.

        Raises TimeoutError after ``timeout`` seconds, ChannelClosed as recv() does, what a signal handler
        raises in the main thread, and RuntimeError in a thread whose event loop would be blocked. In all of
        these cases nothing was taken.
        """
        raise _not_ours(self, "blocking_recv")

    async def __anext__(self) -> T:
        raise _not_ours(self, "__anext__")


class Sender(SenderCore, _Sends[T]):
    """The end of a channel where items go in.

    It is closed by ``close()``, by the end of a ``with`` block, or when nobody has it any more. Once every
    sender is closed and what was waiting to be sent has been, receivers take what is left, and then end.
    """

    if not TYPE_CHECKING:
        send = function("Sender.send", _Sends.send)
        try_send = function("Sender.try_send", _Sends.try_send)
        blocking_send = function("Sender.blocking_send", _Sends.blocking_send)

    def __repr__(self) -> str:
        return f"<tideloop.Sender of {self._words()}>"


class Receiver(ReceiverCore, _Receives[T]):
    """The end of a channel where items come out; ``async for`` takes them until the channel ends.

    It is closed by ``close()``, by the end of a ``with`` block, or when nobody has it any more. When every
    receiver is closed, what is in the channel is dropped and senders get ChannelClosed.
    """

    if not TYPE_CHECKING:
        recv = function("Receiver.recv", _Receives.recv)
        try_recv = function("Receiver.try_recv", _Receives.try_recv)
        blocking_recv = function("Receiver.blocking_recv", _Receives.blocking_recv)
        __anext__ = function("Receiver.__anext__", _Receives.__anext__)

    def __aiter__(self) -> Receiver[T]:
        return self

    def __repr__(self) -> str:
        return f"<tideloop.Receiver of {self._words()}>"


class _Ends(NamedTuple, Generic[T]):
    tx: Sender[T]
    rx: Receiver[T]


class Channel(_Ends[T]):
    """A new channel, as the pair of its ends: ``tx, rx = tideloop.Channel(64)``.

    It holds up to ``maxsize`` items; 0 stands for any number. ``name`` is what errors and ``stats()`` call it.
    Raises ValueError for a negative ``maxsize``, TypeError for one that is no integer.
    """

    __slots__ = ()

    def __new__(cls, maxsize: int = 0, *, name: str | None = None) -> Channel[T]:
        if not isinstance(maxsize, int):
            raise TypeError(f"Channel(maxsize={maxsize!r}): expected an integer")
        if maxsize < 0:
            raise ValueError(f"Channel(maxsize={maxsize!r}): expected 0 for no limit, or a positive number")
        return tuple.__new__(cls, open_channel(Sender, Receiver, maxsize, name))
