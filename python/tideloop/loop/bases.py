"""LoopBase: the two loops that EventLoop is made of, and what type checkers need to know of them.

``LoopCore`` comes first in the order of resolution: what it defines replaces asyncio's engine. The
names with a leading underscore are asyncio's own internals, the same in every supported Python, and
the native half's side of them. No stub file lists them, so they are declared here, once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tideloop._tideloop import LoopCore

__all__ = ["LoopBase"]

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any

    class LoopBase(asyncio.SelectorEventLoop):
        selector_name: str
        _debug: bool
        _internal_fds: int
        _signal_handlers: dict[int, asyncio.Handle]
        _thread_id: int | None

        tasks: str
        _task_factory: Callable[..., asyncio.Future[Any]] | None

        def __new__(cls, *, selector: str | None = None, tasks: str | None = None) -> LoopBase: ...

        # asyncio's
        def _asyncgen_finalizer_hook(self, agen: Any) -> None: ...
        def _asyncgen_firstiter_hook(self, agen: Any) -> None: ...
        def _check_callback(self, callback: object, method: str) -> None: ...
        def _check_closed(self) -> None: ...
        def _check_running(self) -> None: ...
        def _check_signal(self, sig: int) -> None: ...
        def _check_thread(self) -> None: ...
        def _read_from_self(self) -> None: ...
        def _make_socket_transport(
            self, sock: socket.socket, protocol: asyncio.BaseProtocol, *args: Any, **kwargs: Any
        ) -> asyncio.Transport: ...
        async def _sendfile_native(self, transp: Any, file: Any, offset: int, count: int | None) -> int: ...
        def _set_coroutine_origin_tracking(self, enabled: bool) -> None: ...
        def _start_serving(
            self,
            protocol_factory: Callable[[], asyncio.BaseProtocol],
            sock: socket.socket,
            sslcontext: Any = None,
            server: Any = None,
            backlog: int = 100,
            *args: Any,
            **kwargs: Any,
        ) -> None: ...

        # LoopCore's
        def _add_reader(self, fd: Any, callback: Callable[..., object], *args: Any) -> asyncio.Handle: ...
        def _remove_reader(self, fd: Any) -> bool: ...
        def _native_tasks(self) -> list[asyncio.Task[Any]]: ...
        def _interest(self, fd: int) -> tuple[bool, bool]: ...
        def _run(self) -> None: ...
        def _set_debug(self, enabled: bool) -> None: ...
        def _shutdown(self) -> None: ...
        def _wake_up(self) -> None: ...

else:

    class LoopBase(LoopCore, asyncio.SelectorEventLoop):
        """LoopCore before asyncio's selector loop."""
