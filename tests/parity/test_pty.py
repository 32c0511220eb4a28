"""Pseudo-terminals: both ends as pipes of the loop, and a child that talks to a terminal."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tty

import pytest

from tests.peers import Recorder, settled


@pytest.fixture
def terminal(backend):
    """The program's end and the terminal's end, both raw."""
    if backend.name == "uvloop":
        pytest.skip("does not write to terminals, and does not end with them")
    ours, theirs = os.openpty()
    tty.setraw(ours)
    tty.setraw(theirs)
    return ours, theirs


async def read_from(loop, fd):
    transport, protocol = await loop.connect_read_pipe(lambda: Recorder(loop), os.fdopen(fd, "rb", 0))
    return transport, protocol


async def write_to(loop, fd):
    transport, protocol = await loop.connect_write_pipe(lambda: Recorder(loop), os.fdopen(fd, "wb", 0))
    return transport, protocol


async def test_reading(loop, terminal):
    ours, theirs = terminal
    transport, protocol = await read_from(loop, ours)
    os.write(theirs, b"hello")
    assert await protocol.received(5) == b"hello"
    transport.close()
    await protocol.lost
    os.close(theirs)


async def test_the_last_holder_leaves(loop, terminal):
    """Linux says it with EIO, which asyncio takes for an error of the pipe."""
    ours, theirs = terminal
    transport, protocol = await read_from(loop, ours)
    os.write(theirs, b"bye")
    await protocol.received(3)
    os.close(theirs)
    assert isinstance(await protocol.lost, OSError)
    transport.close()


async def test_writing(loop, terminal):
    ours, theirs = terminal
    transport, protocol = await write_to(loop, ours)
    transport.write(b"hello")
    received, reader = await read_from(loop, theirs)
    assert await reader.received(5) == b"hello"
    for end, told in ((received, reader), (transport, protocol)):
        end.close()
        await told.lost


async def test_both_directions_of_one_end(loop, terminal):
    ours, theirs = terminal
    incoming, reader = await read_from(loop, ours)
    outgoing, writer = await write_to(loop, os.dup(ours))
    peer, echoed = await read_from(loop, os.dup(theirs))
    for count in range(1, 4):
        outgoing.write(b"question")
        await echoed.received(8 * count)
        os.write(theirs, b"answer")
        await reader.received(6 * count)
    for end, told in ((outgoing, writer), (peer, echoed), (incoming, reader)):
        end.close()
        await told.lost
    os.close(theirs)


async def test_a_child_on_a_terminal(loop, terminal):
    ours, theirs = terminal
    incoming, reader = await read_from(loop, ours)
    outgoing, writer = await write_to(loop, os.dup(ours))
    child = await asyncio.create_subprocess_exec(
        *("sh", "-c", "tty -s && read line && echo $line $line"),
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    outgoing.write(b"hello\n")
    assert await child.wait() == 0
    assert await reader.received(12) == b"hello hello\n"
    for end, told in ((outgoing, writer), (incoming, reader)):
        end.close()
        await told.lost
    os.close(theirs)
    await settled(loop)
