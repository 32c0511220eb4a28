"""The Python half on other systems' asyncio, as far as that can be shown here.

A child interpreter is told that it is on Windows before it imports asyncio: then asyncio's own Windows half
is what tideloop inherits from, with empty modules in the place of the system's. Sockets stay this system's.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

AS_ON_WINDOWS = """
import sys, types
import concurrent.futures, multiprocessing, selectors, signal, socket, ssl, subprocess, tempfile, threading

class Empty(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return 0

for name in ("_overlapped", "_winapi", "msvcrt"):
    sys.modules[name] = Empty(name)
sys.platform = "win32"
import asyncio
assert "asyncio.windows_events" in sys.modules and "asyncio.unix_events" not in sys.modules
import tideloop
assert asyncio.SelectorEventLoop in tideloop.EventLoop.__mro__
"""


def run(source: str) -> None:
    child = subprocess.run(
        [sys.executable, "-c", AS_ON_WINDOWS + source],
        capture_output=True,
        text=True,
        timeout=20,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=False,
    )
    assert (child.returncode, child.stdout, child.stderr) == (0, "", "")


def test_what_is_lacking_raises_by_name():
    run("""
import signal
async def main():
    loop = asyncio.get_running_loop()
    awaited = {
        "subprocess_exec": (asyncio.SubprocessProtocol, "program"),
        "subprocess_shell": (asyncio.SubprocessProtocol, "command"),
        "connect_read_pipe": (asyncio.Protocol, None),
        "connect_write_pipe": (asyncio.Protocol, None),
        "create_unix_connection": (asyncio.Protocol, "path"),
        "create_unix_server": (asyncio.Protocol, "path"),
    }
    for name, arguments in awaited.items():
        try:
            await getattr(loop, name)(*arguments)
        except NotImplementedError as error:
            assert str(error) == f"EventLoop.{name}() is not available on Windows", error
        else:
            raise AssertionError(name)
    for name, arguments in {"add_signal_handler": (2, print), "remove_signal_handler": (2,)}.items():
        try:
            getattr(loop, name)(*arguments)
        except NotImplementedError as error:
            assert str(error) == f"EventLoop.{name}() is not available on Windows", error
        else:
            raise AssertionError(name)
tideloop.run(main())
""")


def test_what_is_there_works():
    run("""
class Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport
    def datagram_received(self, data, addr):
        self.transport.sendto(data, addr)

class Answer(asyncio.DatagramProtocol):
    def __init__(self):
        self.answer = asyncio.get_running_loop().create_future()
    def datagram_received(self, data, addr):
        self.answer.set_result(data)

async def main():
    loop = asyncio.get_running_loop()
    async def serve(reader, writer):
        writer.write(await reader.readexactly(5))
        await writer.drain()
        writer.close()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"hello")
    assert await reader.read() == b"hello"
    writer.close()
    await writer.wait_closed()
    server.close()

    echo, _ = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
    address = echo.get_extra_info("sockname")
    asker, answer = await loop.create_datagram_endpoint(Answer, remote_addr=address)
    asker.sendto(b"question")
    assert await answer.answer == b"question"
    asker.close()
    echo.close()

    await asyncio.sleep(0.001)
    assert await asyncio.to_thread(lambda: 7) == 7
    done = asyncio.Event()
    threading.Thread(target=loop.call_soon_threadsafe, args=(done.set,)).start()
    await done.wait()
tideloop.run(main())
""")


def test_an_interrupt_ends_an_idle_loop():
    run("""
import os
async def main():
    threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT)).start()
    await asyncio.Event().wait()
try:
    tideloop.run(main())
except KeyboardInterrupt:
    pass
else:
    raise AssertionError
""")


@pytest.mark.skipif(sys.platform == "win32", reason="it is lacking there")
def test_nothing_is_lacking_here():
    import tideloop
    from tideloop.loop.absent import AbsentLoop

    assert "subprocess_exec" not in vars(AbsentLoop)
    assert "add_signal_handler" not in vars(AbsentLoop)
    assert AbsentLoop in tideloop.EventLoop.__mro__
