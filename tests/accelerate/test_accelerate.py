"""accelerate() and its end: what is replaced, what is not, and that nothing stays behind."""

import asyncio
import subprocess
import sys
import textwrap

import pytest
import tideloop
from tideloop import accelerated, stock


@pytest.fixture(autouse=True)
def restored():
    yield
    tideloop.decelerate()
    assert asyncio.Queue is stock.Queue


def places():
    return {
        (module, name): value
        for module in (asyncio, asyncio.locks, asyncio.queues, asyncio.tasks, asyncio.timeouts, asyncio.streams)
        for name, value in vars(module).items()
        if not name.startswith("__")
    }


@pytest.mark.parametrize("name", accelerated.REPLACED)
def test_asyncio_has_ours_until_it_is_undone(name):
    assert getattr(asyncio, name) is getattr(stock, name)
    with tideloop.accelerate() as acceleration:
        assert acceleration.active
        assert getattr(asyncio, name) is getattr(accelerated, name)
    assert not acceleration.active
    assert getattr(asyncio, name) is getattr(stock, name)


def test_everything_is_as_it_was():
    before = places()
    tideloop.accelerate().undo()
    assert places() == before


def test_calls_nest_in_any_order():
    first, second = tideloop.accelerate(), tideloop.accelerate()
    first.undo()
    first.undo()
    assert asyncio.Queue is tideloop.Queue
    second.undo()
    assert asyncio.Queue is stock.Queue
    tideloop.accelerate()
    tideloop.accelerate()
    tideloop.decelerate()
    assert asyncio.Queue is stock.Queue


def test_what_somebody_else_replaced_is_left_alone(monkeypatch):
    def mine(delay):
        """Somebody's own sleep."""

    monkeypatch.setattr(asyncio, "sleep", mine)
    with tideloop.accelerate():
        assert asyncio.sleep is mine
        monkeypatch.setattr(asyncio, "Lock", mine)
    assert asyncio.sleep is mine
    assert asyncio.Lock is mine


def test_stock_and_native_objects_live_side_by_side(backend):
    old = asyncio.Queue()
    with tideloop.accelerate():
        new = asyncio.Queue()
        assert isinstance(new, stock.Queue)
        assert not isinstance(old, asyncio.Queue)

        async def main():
            for queue in (old, new):
                getter = asyncio.create_task(queue.get())
                await asyncio.sleep(0)
                await queue.put(1)
                assert await getter == 1
            # A method taken from the class serves both.
            asyncio.Queue.put_nowait(old, 2)
            assert await asyncio.Queue.get(old) == 2
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(0))
            async with asyncio.Condition() as condition:
                assert isinstance(condition, bool | None)

        with asyncio.Runner(loop_factory=backend.new_event_loop) as runner:
            runner.run(main())


def run(*arguments, program, tmp_path):
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(program))
    return subprocess.run(
        [sys.executable, "-m", "tideloop", "run", *arguments, str(path)], capture_output=True, text=True, timeout=30
    )


@pytest.mark.parametrize("option", [(), ("--accelerate",)])
def test_run_accelerate(tmp_path, option):
    program = """
        import asyncio, atexit
        atexit.register(lambda: print(asyncio.Lock.__module__))
        async def main():
            await asyncio.sleep(0)
            print(asyncio.Queue.__module__)
        asyncio.run(main())
    """
    done = run(*option, program=program, tmp_path=tmp_path)
    expected = "tideloop\ntideloop\n" if option else "asyncio.queues\nasyncio.locks\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


def test_importing_tideloop_does_not_import_the_primitives():
    command = "import sys, tideloop; print([name for name in sys.modules if 'accelerat' in name or 'queues' in name])"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, timeout=30, check=True)
    assert "tideloop." not in done.stdout


def test_unknown_names():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tideloop.nothing
    assert set(tideloop.__all__) <= set(dir(tideloop))


@pytest.mark.parametrize("new_event_loop", [tideloop.new_event_loop, asyncio.new_event_loop])
def test_the_writer_of_a_connection_that_we_open_is_native(new_event_loop):
    stock_writer = asyncio.StreamWriter

    async def echo(reader, writer):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def main():
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"one ")
            writer.writelines([b"two ", b"three"])
            await writer.drain()
            writer.write_eof()
            answer = await reader.read()
            writer.close()
            await writer.wait_closed()
            with pytest.raises(ConnectionError):
                await writer.drain()
        return answer, writer

    with tideloop.accelerate():
        assert asyncio.StreamWriter is asyncio.streams.StreamWriter is not stock_writer
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            answer, writer = runner.run(main())
    assert asyncio.StreamWriter is stock_writer
    assert answer == b"one two three"
    assert type(writer).__module__ == "tideloop"
    assert isinstance(writer, asyncio.StreamWriter)


@pytest.mark.parametrize("new_event_loop", [asyncio.new_event_loop, tideloop.new_event_loop])
def test_writers_of_a_subclasss_own_making(new_event_loop):
    class Redefined(asyncio.StreamWriter):
        _transport = None

    async def serve(reader, writer):
        writer.write(await reader.read(9))
        await writer.drain()
        writer.close()

    async def main():
        with tideloop.accelerate():

            class Bare(asyncio.StreamWriter):
                def __init__(self, writer):
                    self._transport, self._protocol = writer._transport, writer._protocol
                    self._reader, self._loop = writer._reader, writer._loop

            class Again(asyncio.StreamWriter):
                _transport = None

            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            async with server:
                for make in (
                    Bare,
                    *(
                        lambda writer, kind=kind: kind(
                            writer._transport, writer._protocol, writer._reader, asyncio.get_running_loop()
                        )
                        for kind in (Redefined, Again)
                    ),
                ):
                    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
                    own = make(writer)
                    own.write(b"abc")
                    await own.drain()
                    assert await reader.read() == b"abc"
                    writer.close()
                    await writer.wait_closed()

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main())
