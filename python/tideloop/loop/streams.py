"""StreamReader, StreamReaderProtocol and StreamWriter: asyncio's, with a native core.

``asyncio.open_connection`` and ``asyncio.start_server`` make the stock classes. Where a stock stream protocol
gets a transport of ours, it and its reader become these (`attach`); subclasses stay what they are.
"""

from __future__ import annotations

import sys
from asyncio import streams as _streams
from types import MethodType
from typing import TYPE_CHECKING, Any

from tideloop._tideloop import FlowCore, ReaderCore, WriterCore, function
from tideloop.adopted import adopt

__all__ = ["StreamReader", "StreamReaderProtocol", "StreamWriter", "attach"]

StockReader = _streams.StreamReader
StockProtocol = _streams.StreamReaderProtocol
StockWriter = _streams.StreamWriter

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamReaderProtocol, StreamWriter

    def attach(protocol: Any) -> None: ...

else:

    def _shown(name, core="_core"):
        """One of asyncio's private attributes: what a core has under its own name."""

        def get(self):
            return getattr(getattr(self, core), name)

        def put(self, value):
            setattr(getattr(self, core), name, value)

        return property(get, put)

    class Replaceable:
        """A method that a program may replace on one object; that object's core is told, and asks from then on."""

        __slots__ = ("_core", "_function", "_name")

        def __init__(self, function, core):
            self._function = function
            self._core = core

        def __set_name__(self, owner, name):
            self._name = name

        def __get__(self, owned, owner=None):
            if owned is None:
                return self._function
            name = self._name
            # A class that overrides the method asks for this one, by super().
            if name in vars(owned) and getattr(type(owned), name) is self._function:
                return vars(owned)[name]
            return MethodType(self._function, owned)

        def __set__(self, owned, value):
            vars(owned)[self._name] = value
            core = getattr(owned, self._core, None)
            # None: before __init__(), which looks itself.
            if core is not None:
                core.replaced()

        def __delete__(self, owned):
            if vars(owned).pop(self._name, self) is self:
                raise AttributeError(self._name)

    # What asyncio's reader calls on itself, so that a subclass may override it.
    _HOOKS = (
        "_maybe_resume_transport",
        "_wait_for_data",
        "_wakeup_waiter",
        "feed_data",
        "read",
        "readline",
        "readuntil",
    )

    def _overrides(cls):
        return any(getattr(cls, name) is not getattr(StreamReader, name) for name in _HOOKS)

    class StreamReader(StockReader):
        __doc__ = StockReader.__doc__
        __module__ = "tideloop"

        def __init__(self, limit=_streams._DEFAULT_LIMIT, loop=None):
            if limit <= 0:
                raise ValueError("Limit cannot be <= 0")
            self._core = ReaderCore(loop, limit)
            if "feed_data" in vars(self):
                self._core.replaced()
            super().__init__(limit, loop)
            cls = type(self)
            if cls is not StreamReader and any(
                getattr(cls, name) is not getattr(StreamReader, name) for name in _HOOKS
            ):
                self._core.divert()

        _buffer = _shown("buffer")
        _eof = _shown("eof")
        _exception = _shown("exception")
        _limit = _shown("limit")
        _loop = _shown("event_loop")
        _paused = _shown("paused")
        _transport = _shown("transport")
        _waiter = _shown("waiter")

        read = function("StreamReader.read", StockReader.read)
        readexactly = function("StreamReader.readexactly", StockReader.readexactly)
        readline = function("StreamReader.readline", StockReader.readline)
        readuntil = function("StreamReader.readuntil", StockReader.readuntil)
        __anext__ = function("StreamReader.__anext__", StockReader.__anext__)
        at_eof = function("StreamReader.at_eof", StockReader.at_eof)
        exception = function("StreamReader.exception", StockReader.exception)
        feed_data = Replaceable(function("StreamReader.feed_data", StockReader.feed_data), "_core")
        feed_eof = function("StreamReader.feed_eof", StockReader.feed_eof)
        set_exception = function("StreamReader.set_exception", StockReader.set_exception)

        def __repr__(self):
            core = self._core
            words = ["StreamReader"]
            if len(core):
                words.append(f"{len(core)} bytes")
            if core.eof:
                words.append("eof")
            if core.limit != _streams._DEFAULT_LIMIT:
                words.append(f"limit={core.limit}")
            if core.waiter:
                words.append(f"waiter={core.waiter!r}")
            if core.exception:
                words.append(f"exception={core.exception!r}")
            if core.transport:
                words.append(f"transport={core.transport!r}")
            if core.paused:
                words.append("paused")
            return f"<{' '.join(words)}>"

    class StreamWriter(StockWriter):
        __doc__ = StockWriter.__doc__
        __module__ = "tideloop"
        __slots__ = ("_core",)

        def __new__(cls, *args, **kwargs):
            # Not in __init__, which a subclass need not call.
            writer = super().__new__(cls)
            writer._core = WriterCore()
            return writer

        _protocol = _shown("protocol")
        _reader = _shown("reader")
        _transport = _shown("transport")

        write = function("StreamWriter.write", StockWriter.write)
        drain = function("StreamWriter.drain", StockWriter.drain)

    class StreamReaderProtocol(StockProtocol):
        __doc__ = StockProtocol.__doc__
        __module__ = "tideloop"

        def __init__(self, *args, **kwargs):
            self._flow = FlowCore()
            if "data_received" in vars(self):
                self._flow.replaced()
            super().__init__(*args, **kwargs)

        _connection_lost = _shown("lost", "_flow")
        _paused = _shown("paused", "_flow")
        _stream_reader_wr = _shown("reader", "_flow")

        connection_made = adopt(StockProtocol.connection_made, StreamWriter=StreamWriter)
        _drain_helper = function("StreamReaderProtocol._drain_helper", StockProtocol._drain_helper)
        data_received = Replaceable(
            function("StreamReaderProtocol.data_received", StockProtocol.data_received), "_flow"
        )

    # What a stock reader has of its own before it is used; the core has the same under its own names.
    _FRESH = {"_eof": False, "_waiter": None, "_exception": None, "_transport": None, "_paused": False}

    def attach(protocol):
        """Make a stock stream protocol ours, and its reader, if that is a stock one which nobody has used.

        Does nothing for a protocol of any other class.
        """
        if type(protocol) is not StockProtocol:
            return
        reader = protocol._stream_reader
        if type(reader) is not StockReader:
            return
        fields = vars(reader)
        if any(fields.get(name, protocol) is not value for name, value in _FRESH.items()):
            return
        limit = fields["_limit"]
        if fields["_buffer"] or type(limit) is not int or limit > sys.maxsize:
            return
        core = ReaderCore(fields["_loop"], limit)
        for name in ("_buffer", "_limit", "_loop", *_FRESH):
            del fields[name]
        reader.__class__ = StreamReader
        reader._core = core
        flow = FlowCore()
        fields = vars(protocol)
        flow.paused, flow.lost = fields.pop("_paused"), fields.pop("_connection_lost")
        flow.reader = fields.pop("_stream_reader_wr")
        if "data_received" in fields:
            flow.replaced()
        if "feed_data" in vars(reader):
            core.replaced()
        protocol.__class__ = StreamReaderProtocol
        protocol._flow = flow
