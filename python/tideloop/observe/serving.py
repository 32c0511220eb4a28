"""The server that whoever looks from outside asks: its threads are native (``crates/py/src/observe/serve``).

What Python has to do with them is here: where the socket is, forks, and the end of the interpreter.

Nothing listens unless ``serve()`` is called, ``tideloop run --observe`` used, or the environment asks for it.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import sys
import threading
from pathlib import Path

from tideloop._tideloop import (
    serve_forked,
    serve_pause,
    serve_resume,
    serve_start,
    serve_stop,
    serve_url,
    serve_web,
)
from tideloop.observe import collected as _collected
from tideloop.observe import places

__all__ = ["Server", "serve"]

_logger = logging.getLogger("tideloop")

_PATIENCE = 5.0
"""Seconds that a client may take to ask, and to take a piece of its answer."""

_lock = threading.Lock()
_server: Server | None = None


class Server:
    """What serves this process's figures; there is one at most. A context manager, which closes it."""

    def __init__(self, socket: Path | None) -> None:
        self._socket = socket
        self._made = os.lstat(socket) if socket is not None else None
        self._pid = os.getpid()

    @property
    def socket(self) -> str | None:
        """The path of the UNIX socket; None: there is none, or the server is closed."""
        return os.fspath(self._socket) if self._socket is not None and _server is self else None

    @property
    def url(self) -> str | None:
        """The address of the web page with the token that opens it; None: it was not asked for, or is closed."""
        return serve_url() if _server is self else None

    def close(self) -> None:
        """Serve nobody any more and remove the socket. Closing it twice does nothing."""
        global _server
        with _lock:
            if _server is not self:
                return
            _server = None
            _collected.leaving = True
            serve_stop()
        if self._socket is not None and self._made is not None and self._pid == os.getpid():
            places.unbind(self._socket, self._made)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if _server is not self:
            return "<tideloop.observe.Server closed>"
        # The token opens the page: it is not for logs.
        page = (serve_url() or "").partition("?")[0]
        return f"<tideloop.observe.Server socket={self.socket!r} web={page or None!r}>"


def serve(socket: bool = True, web: bool | int = False, *, program: str | None = None) -> Server:
    """Let who may see this process ask what its loops do: on a UNIX socket for the commands, and for browsers.

    socket: whether to open the UNIX socket, which only this user and root can use. web: a port of 127.0.0.1 for the
    web page and for Prometheus, True for any that is free; asking there takes the token in ``Server.url``. program:
    what the process is called; the script's name unless given. The answers come from a native thread that needs no
    GIL, so that they come while every loop is blocked.

    If this process serves already, a page that it does not have yet is opened, and the same Server returned. It
    ends with ``close()`` or with the process; a forked child does not serve.

    Raises ValueError for a port that is none, NotImplementedError for a UNIX socket on Windows, RuntimeError if the
    process serves without the socket that is asked for, PermissionError if the socket's folder is not safe, and OSError
    if the port is taken, or there may be no more threads.
    """
    port = _port(web)
    if socket and not places.has_sockets():
        raise NotImplementedError(
            "this system's Python has no UNIX sockets; tideloop.observe.serve(socket=False, web=True) serves a page"
        )
    global _server
    with _lock:
        if _server is None:
            _server = _started(socket, port, program or _program())
        elif socket and _server.socket is None:
            raise RuntimeError("tideloop serves already, without a socket; close() that server first")
        elif port is not None:
            serve_web(port)
        return _server


def _port(web: bool | int) -> int | None:
    """None: no page."""
    if isinstance(web, bool):
        return 0 if web else None
    if not isinstance(web, int) or not 0 <= web <= 65535:
        raise ValueError(f"web is {web!r}; expected a port, True or False")
    return web


def _started(socket: bool, port: int | None, program: str) -> Server:
    import secrets
    from importlib import metadata

    _collected.leaving = False
    path = places.socket_of(os.getpid()) if socket else None
    listening = places.bind(path) if path is not None else None
    try:
        server = Server(path)
        identity = (
            sys.version.partition(" ")[0],
            metadata.version("tideloop"),
            program.encode(errors="replace").decode(),
        )
        descriptor = listening.fileno() if listening is not None else None
        serve_start(identity, secrets.token_urlsafe(32), secrets.token_urlsafe(16), _PATIENCE, descriptor)
    except BaseException:
        if path is not None:
            path.unlink(missing_ok=True)
        raise
    finally:
        if listening is not None:
            # The threads have a copy.
            listening.close()
    _at_the_end()
    if port is not None:
        try:
            serve_web(port)
        except BaseException:
            serve_stop()
            if path is not None:
                path.unlink(missing_ok=True)
            raise
    return server


def _program() -> str:
    argv = getattr(sys, "argv", None) or [""]
    return os.path.basename(argv[0]) or "python"


@functools.cache
def _at_the_end() -> None:
    """What is done before forks, after them and at the end of the interpreter; once in the life of a process."""
    atexit.register(_exits)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)


def _exits() -> None:
    if _server is not None:
        _server.close()


def _before_fork() -> None:
    # Nobody starts or closes it meanwhile.
    _lock.acquire()
    _collected.leaving = True
    serve_pause()


def _in_parent() -> None:
    _collected.leaving = False
    try:
        serve_resume()
    finally:
        _lock.release()


def _in_child() -> None:
    global _server, _lock
    _lock = threading.Lock()
    _server = None
    serve_forked()


@functools.cache
def serve_if_asked() -> None:
    """The first loop of the process is about to run: serve if the environment says so.

    A folder that is not safe or a port that is taken is logged: the program is not about that. Raises ValueError
    for values that mean nothing.
    """
    socket = os.environ.get("TIDELOOP_OBSERVE_SOCKET") or "0"
    if socket not in ("0", "1"):
        raise ValueError(f"TIDELOOP_OBSERVE_SOCKET is {socket!r}; expected '0' or '1'")
    web: bool | int = False
    asked = os.environ.get("TIDELOOP_OBSERVE_WEB")
    if asked:
        web = port_of(asked, "TIDELOOP_OBSERVE_WEB")
    if socket == "0" and web is False:
        return
    try:
        server = serve(socket=socket == "1", web=web)
    except (OSError, NotImplementedError) as error:
        _logger.warning("nobody can observe this process: %s", error)
        return
    announce(server)


def announce(server: Server) -> None:
    """Tell who has started the program where its page is, if there is one."""
    if server.url is not None:
        print(f"tideloop: observed at {server.url}", file=sys.stderr, flush=True)


def port_of(text: str, name: str) -> int:
    """A port that somebody has written; 0: any. Raises ValueError that names it."""
    port = int(text) if text.isascii() and text.isdecimal() else -1
    if not 0 <= port <= 65535:
        raise ValueError(f"{name} is {text!r}; expected a port, 0 for any")
    return port
