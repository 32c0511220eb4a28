"""Who looks from outside is answered, and who may not look is not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import tideloop
from tideloop import observed
from tideloop.observe import collected, places, serving
from tideloop.observe.client import Unreachable, find
from tideloop.program import _Asked

from tests.observe.serving import ask, connected, document, everything, port_of, said, token_of

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="UNIX sockets")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "tideloop"


@pytest.fixture
def server(folder):
    with tideloop.observe.serve(web=True) as server:
        yield server
    assert not list(folder.iterdir())


@contextlib.contextmanager
def a_loop(main, name="worker"):
    """A loop that runs this coroutine in a thread of its own until the block ends."""
    ready, done = threading.Event(), threading.Event()

    async def run():
        loop = asyncio.get_running_loop()
        over = asyncio.Event()
        task = asyncio.create_task(main(), name="the main one")
        for _ in range(5):
            await asyncio.sleep(0)

        def wait():
            done.wait()
            loop.call_soon_threadsafe(over.set)

        threading.Thread(target=wait, daemon=True).start()
        # When this task waits, too.
        loop.call_soon(ready.set)
        await over.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    thread = threading.Thread(target=lambda: tideloop.run(run()), name=name)
    thread.start()
    ready.wait()
    try:
        yield
    finally:
        done.set()
        thread.join()


async def waits():
    await asyncio.Event().wait()


def mine(documents, name="worker"):
    (found,) = [one for one in documents["loops"] if one["name"] == name]
    return found


# --- what is told ------------------------------------------------------------------------------------


def test_loops_are_told_with_their_figures(server):
    with a_loop(waits):
        told = document(server, "/v1/loops")
        one = mine(told)
        assert (told["version"], told["pid"]) == (1, os.getpid())
        assert told["python"] == sys.version.split()[0]
        assert (one["level"], one["running"], one["blocked_for"]) == (0, True, None)
        metrics = one["metrics"]
        assert metrics["steps"] > 0
        assert set(metrics["spent"]) == {"callbacks", "internal", "idle"}
        assert 0 <= metrics["utilization"]["second"] <= 1
        assert metrics["ready_delay"]["count"] >= 1
        assert metrics["ready_delay"]["p50"] <= metrics["ready_delay"]["longest"] or metrics["ready_delay"]["count"]
    assert not [one for one in document(server, "/v1/loops")["loops"] if one["name"] == "worker"], "it is closed"


def test_figures_are_those_of_metrics(server):
    loop = tideloop.EventLoop()
    loop.run_until_complete(asyncio.sleep(0.001))
    # It is at rest: nothing changes.
    told = next(one for one in document(server, "/v1/loops")["loops"] if one["id"] == loop._number())
    metrics = loop.metrics()
    assert told["running"] is False
    assert told["name"] == threading.current_thread().name
    assert told["metrics"]["steps"] == metrics.steps
    assert told["metrics"]["spent"]["idle"] == pytest.approx(metrics.spent.idle)
    for name in ("step_seconds", "ready_delay", "timer_lateness"):
        histogram = getattr(metrics, name)
        assert told["metrics"][name]["count"] == histogram.count
        assert told["metrics"][name]["total"] == pytest.approx(histogram.total)
        assert told["metrics"][name]["p90"] == pytest.approx(histogram.quantile(0.9), rel=0.05)
        assert [tuple(bucket) for bucket in told["metrics"][name]["buckets"]] == list(histogram.buckets)
    loop.close()


def test_what_takes_the_gil_is_collected(server):
    async def main():
        loop = asyncio.get_running_loop()
        listening = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
        told = await loop.run_in_executor(None, document, server, "/v1/loops")
        writer.close()
        await writer.wait_closed()
        listening.close()
        return next(one for one in told["loops"] if one["id"] == loop._number())

    one = tideloop.run(main())
    assert one["metrics"]["transports"] >= 1
    assert one["metrics"]["executor_queue"] == 0


def test_tasks_are_told_with_their_stacks(server):
    async def inner():
        await asyncio.Event().wait()

    async def outer():
        await inner()

    async def main():
        other = asyncio.create_task(outer(), name="other")
        await asyncio.gather(other, asyncio.create_task(waits(), name="gathered"))

    with a_loop(main):
        told = document(server, "/v1/tasks")
    assert told["age"] < 5
    (loop,) = [one for one in told["loops"] if any(task["name"] == "other" for task in one["tasks"])]
    tasks = {task["name"]: task for task in loop["tasks"]}
    other, waiter = tasks["other"], tasks["the main one"]
    assert other["coroutine"].endswith("outer")
    assert other["state"] == "waiting"
    assert [frame[2].rpartition(".")[2] for frame in other["stack"]] == ["wait", "inner", "outer"]
    assert other["stack"][1][0] == __file__
    assert set(waiter["waits_for"]) == {other["id"], tasks["gathered"]["id"]}
    assert (other["busy"], other["age"]) == (None, None), "level 1 tells these"
    live = {row["coroutine"]: row["live"] for row in loop["functions"]}
    assert live["waits"] == 1


def test_more_tasks_than_are_told(server, monkeypatch):
    monkeypatch.setattr(collected, "MOST", 3)

    async def main():
        await asyncio.gather(*(waits() for _ in range(10)))

    with a_loop(main):
        told = document(server, "/v1/tasks")
    (loop,) = [loop for loop in told["loops"] if loop["tasks"]]
    assert len(loop["tasks"]) == 3
    assert loop["truncated"] is True


def test_what_python_raises_is_told(server, monkeypatch):
    def fails():
        raise ZeroDivisionError('a "quoted" word')

    monkeypatch.setattr(collected, "tasks", fails)
    told = document(server, "/v1/tasks")
    assert told["error"] == 'ZeroDivisionError: a "quoted" word'
    assert told["loops"] == []
    monkeypatch.setattr(collected, "gauges", lambda: "no bytes")
    told = document(server, "/v1/gauges")
    assert "error" in told
    assert told["gauges"] == []


def test_gauges_are_a_list(server):
    told = document(server, "/v1/gauges")
    assert isinstance(told["gauges"], list)
    assert told["age"] < 5


def test_prometheus_is_told(server):
    with a_loop(waits):
        number = mine(document(server, "/v1/loops"))["id"]
        status, body = ask(server, "/metrics", by_port=True)
    assert status == 200
    lines = body.decode().splitlines()
    sample = re.compile(r'[a-z_]+(\{[a-z_]+="[^"]*"(,[a-z_]+="[^"]*")*\})? [0-9.e+-]+')
    assert [line for line in lines if not line.startswith("#") and not sample.fullmatch(line)] == []
    assert f'tideloop_eventloop_running{{loop="{number}"}} 1' in lines
    assert any(
        line.startswith(f'tideloop_eventloop_time_seconds_total{{loop="{number}",state="idle"}}') for line in lines
    )
    assert f'tideloop_eventloop_blocked_total{{loop="{number}",cause="gil_wait"}} 0' in lines
    assert [line for line in lines if line.startswith("tideloop_tasks{")] == [
        f'tideloop_tasks{{loop="{number}",state="{state}"}} {count}'
        for state, count in [("running", 0), ("ready", 0), ("waiting", 2)]
    ]
    counts = [
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith(f'tideloop_eventloop_ready_delay_seconds_bucket{{loop="{number}"')
    ]
    assert counts == sorted(counts)
    families = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(families) == len(set(families))


def test_events_go_on(server):
    with connected(server) as client:
        client.sendall(b"GET /v1/events HTTP/1.1\r\n\r\n")
        seen, text = [], b""
        while seen.count("loops") < 2 or "gauges" not in seen:
            text += client.recv(65536)
            seen = re.findall(r"^event: (\w+)$", text.decode(), re.M)
        head, _, rest = text.decode().partition("\r\n\r\n")
    assert "Content-Type: text/event-stream" in head
    assert {"loops", "blocks", "tasks", "gauges"} <= set(seen)
    for data in re.findall(r"^data: (.*)\n\n", rest, re.M):
        json.loads(data)


def test_the_page_is_one_file_that_asks_nobody_else(server):
    with connected(server, by_port=True) as client:
        asked = f"GET /?token={token_of(server)} HTTP/1.1\r\nHost: 127.0.0.1:{port_of(server)}\r\n\r\n"
        client.sendall(asked.encode())
        head, _, page = everything(client).decode().partition("\r\n\r\n")
    nonce = re.search(r"script-src 'nonce-([\w-]+)'", head)[1]
    assert page.count(f'nonce="{nonce}"') == 2
    assert token_of(server) not in page
    assert "default-src 'none'" in head
    assert "Referrer-Policy: no-referrer" in head
    assert re.findall(r"(?:src|href|url)\s*[=(]", page) == []
    assert set(re.findall(r"https?://[^\"\s]+", page)) == {"http://www.w3.org/2000/svg"}


def test_the_page_is_opened_when_it_is_asked_for(folder):
    with tideloop.observe.serve() as server:
        assert server.url is None
        first = document(server, "/v1/web")["url"]
        assert document(server, "/v1/web")["url"] == first == server.url
        assert ask(server, "/v1/loops", by_port=True)[0] == 200


def test_levels_are_told(server):
    made = [tideloop.EventLoop(observe=level) for level in ("counts", "tasks", "trace")]
    told = {one["id"]: one["level"] for one in document(server, "/v1/loops")["loops"]}
    assert [told[loop._number()] for loop in made] == [0, 1, 2]
    for loop in made:
        loop.close()


def test_flight_recorders_are_told_all_in_one(server):
    for query in ("", "?seconds=3"):
        status, body = ask(server, f"/v1/record{query}")
        assert (status, json.loads(body)) == (404, {"error": "no loop of this process records"})
    made = [tideloop.EventLoop(observe="trace") for _ in range(2)]
    for loop in made:
        loop.run_until_complete(asyncio.sleep(0))
    events = document(server, "/v1/record")["traceEvents"]
    loops = {f"event loop {loop._number()} (MainThread)" for loop in made}
    assert loops <= {event["args"]["name"] for event in events if event["ph"] == "M"}
    assert len({event["tid"] for event in events if event["ph"] == "X" and event["name"] == "step"}) == 2
    for wrong in ("-1", "x", "nan", ""):
        status, body = ask(server, f"/v1/record?seconds={wrong}")
        assert (status, json.loads(body)) == (400, {"error": "seconds: expected a number of at least 0"})
    for loop in made:
        loop.close()


# --- who is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "headers", "words"),
    [
        ("/", ["Authorization: none"], "expected a token"),
        ("/v1/loops", ["Authorization: none"], "expected a token"),
        ("/v1/events", ["Authorization: none"], "expected a token"),
        ("/metrics", ["Authorization: Bearer guessed"], "the token is another one"),
        ("/nothing", ["Authorization: none"], "expected a token"),
        ("/v1/loops", ["Host: evil.example"], "expected the host 127.0.0.1"),
        ("/v1/loops", ["Host: 127.0.0.1"], "expected the host 127.0.0.1"),
        ("/v1/loops", ["Origin: http://evil.example"], "asked by a page of another origin"),
        ("/v1/loops", ["Origin: null"], "asked by a page of another origin"),
    ],
)
def test_the_port_refuses(server, path, headers, words):
    status, body = ask(server, path, *headers, by_port=True)
    assert (status, json.loads(body)) == (403, {"error": words})


def test_the_port_takes_the_token_in_the_query_and_its_own_origin(server):
    origin = f"Origin: http://127.0.0.1:{port_of(server)}"
    path = f"/v1/loops?token={token_of(server)}"
    assert ask(server, path, "Authorization: none", origin, by_port=True)[0] == 200


def test_the_socket_refuses_pages_too(server):
    assert ask(server, "/v1/loops", "Origin: http://evil.example")[0] == 403


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"POST /v1/loops HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"GET /v1/loops HTTP/3\r\n\r\n", 505),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
        (b"GET /no/such/path HTTP/1.1\r\n\r\n", 404),
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"GET /v1/record HTTP/1.1\r\n\r\n", 404),
    ],
)
def test_what_is_not_understood_is_refused(server, text, status):
    assert said(server, text)[0] == status


def test_the_port_opens_no_ports(server):
    assert ask(server, "/v1/web", by_port=True)[0] == 404


def test_the_port_is_this_machines_alone(server):
    with socket.socket() as taken, pytest.raises(OSError, match="in use"):
        taken.bind(("127.0.0.1", port_of(server)))
    if sys.platform == "linux":
        lines = Path("/proc/net/tcp").read_text().splitlines()
        listening = [line.split()[1] for line in lines if f":{port_of(server):04X} " in line and " 0A " in line]
        assert listening == [f"0100007F:{port_of(server):04X}"]


# Python's own files may be where that user cannot see them: the modules come first.
KNOCK = """
import os, socket, sys
os.setgid(65534)
os.setuid(65534)
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
client.sendall(b"GET /v1/loops HTTP/1.1\\r\\n\\r\\n")
print(client.makefile().readline().strip())
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="takes root to be somebody else")
def test_another_user_is_refused_even_if_the_files_let_him_in(server):
    def knock():
        command = [sys.executable, "-c", KNOCK, server.socket]
        return subprocess.run(command, capture_output=True, text=True, timeout=20)

    assert "PermissionError" in knock().stderr
    path, opened = os.path.dirname(server.socket), []
    while path != "/":
        opened.append((path, stat.S_IMODE(os.stat(path).st_mode)))
        path = os.path.dirname(path)
    try:
        for path, mode in opened:
            os.chmod(path, mode | 0o711)
        os.chmod(server.socket, 0o666)
        assert knock().stdout.strip() == "HTTP/1.1 403 Forbidden"
    finally:
        for path, mode in opened:
            os.chmod(path, mode)


# --- slow clients ------------------------------------------------------------------------------------


def test_slow_clients_hold_nobody(server):
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connected(server)) for _ in range(100)]
        for client in slow:
            with contextlib.suppress(OSError):
                client.sendall(b"GET /v1/loops HTTP/1.1\r\n")
        assert document(server, "/v1/loops")["pid"] == os.getpid()
        assert ask(server, "/v1/loops", by_port=True)[0] == 200
        # The first ones had to give way.
        with contextlib.suppress(ConnectionResetError):
            assert slow[0].recv(1) == b""


def test_who_does_not_ask_in_time_is_hung_up_on(folder, monkeypatch):
    monkeypatch.setattr(serving, "_PATIENCE", 0.05)
    with tideloop.observe.serve() as server, connected(server) as client:
        client.sendall(b"GET /v1/loops HTTP/1.1\r\n")
        assert client.recv(1) == b""


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
def test_who_does_not_take_the_answer_in_time_is_hung_up_on(folder, monkeypatch):
    monkeypatch.setattr(serving, "_PATIENCE", 0.5)
    monkeypatch.setattr(collected, "tasks", lambda: b'{"x":"' + b"x" * 4_000_000 + b'"}')
    with tideloop.observe.serve() as server:
        idle = len(os.listdir("/proc/self/fd"))
        with connected(server) as client:
            client.sendall(b"GET /v1/tasks HTTP/1.1\r\n\r\n")
            assert document(server, "/v1/loops")["pid"] == os.getpid()
            # Our end is left, theirs is closed.
            while len(os.listdir("/proc/self/fd")) > idle + 1:
                pass
            with contextlib.suppress(ConnectionResetError):
                assert len(everything(client)) < 4_000_000


def test_a_request_may_come_in_pieces(server):
    with connected(server) as client:
        for byte in b"GET /v1/blocks HTTP/1.1\r\nHost: x\r\n\r\n":
            client.send(bytes([byte]))
        assert everything(client).startswith(b"HTTP/1.1 200 OK\r\n")


# --- where it listens --------------------------------------------------------------------------------


def test_nothing_listens_unless_asked(folder):
    tideloop.run(asyncio.sleep(0))
    assert serving._server is None
    assert not folder.exists()


def test_the_socket_is_this_users_alone(server, folder):
    assert server.socket == str(folder / f"{os.getpid()}.sock")
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(server.socket).st_mode) == 0o600


def test_without_a_runtime_folder_it_is_in_tmp(monkeypatch):
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert str(places.socket_of(7)) == f"/tmp/tideloop-{os.geteuid()}/7.sock"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    assert places.folder().is_absolute()


def test_a_folder_that_others_can_enter_is_refused(folder):
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    with pytest.raises(PermissionError, match="has mode 0755, so that others can enter it; expected 0700"):
        tideloop.observe.serve()
    folder.chmod(0o700)
    tideloop.observe.serve().close()


def test_a_folder_that_is_a_link_is_refused(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    folder.symlink_to(elsewhere)
    with pytest.raises(PermissionError, match="is no folder; it is not trusted"):
        tideloop.observe.serve()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="takes root to give a folder away")
def test_a_folder_of_somebody_else_is_refused(folder):
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, 65534)
    with pytest.raises(PermissionError, match="belongs to user 65534, expected 0"):
        tideloop.observe.serve()


def test_the_socket_of_a_dead_process_is_replaced(folder):
    folder.mkdir(mode=0o700)
    path = places.socket_of(os.getpid())
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with tideloop.observe.serve() as server:
        assert document(server, "/v1/loops")["pid"] == os.getpid()
    assert not path.exists()


def test_the_socket_of_a_living_process_is_not(folder):
    folder.mkdir(mode=0o700)
    path = places.socket_of(os.getpid())
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(str(path))
        living.listen()
        with pytest.raises(FileExistsError, match="is another process's, which lives"):
            tideloop.observe.serve()
    path.unlink()
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="is there and is no socket"):
        tideloop.observe.serve()
    assert path.read_text() == "precious"


def test_a_socket_that_was_replaced_is_left_alone(folder):
    server = tideloop.observe.serve()
    path = places.socket_of(os.getpid())
    path.unlink()
    path.write_text("another's")
    server.close()
    assert path.read_text() == "another's"


def test_a_path_that_is_too_long_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / ("x" * 100)))
    with pytest.raises(OSError, match=r"is too long for a UNIX socket: 100 bytes at most"):
        tideloop.observe.serve()


def test_a_port_that_is_taken_leaves_nothing_behind(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        tideloop.observe.serve(web=taken.getsockname()[1])
    assert not list(folder.iterdir())
    assert serving._server is None


@pytest.mark.parametrize("web", [-1, 65536, "8000", 1.5])
def test_a_port_that_is_none_is_refused(web):
    with pytest.raises(ValueError, match=r"web is .*; expected a port, True or False"):
        tideloop.observe.serve(web=web)


def test_there_is_one_server(folder):
    with tideloop.observe.serve() as server:
        assert tideloop.observe.serve() is server
        assert server.url is None
        assert tideloop.observe.serve(web=True) is server
        assert server.url is not None
        assert token_of(server) not in repr(server)
    assert (server.socket, server.url) == (None, None)
    assert repr(server) == "<tideloop.observe.Server closed>"
    server.close()
    with tideloop.observe.serve(socket=False, web=True) as other:
        assert other.socket is None
        with pytest.raises(RuntimeError, match="serves already, without a socket"):
            tideloop.observe.serve()


def test_where_there_are_no_unix_sockets_the_page_is_served_alone(monkeypatch, caplog):
    monkeypatch.delattr(socket, "AF_UNIX")
    with pytest.raises(NotImplementedError, match=r"no UNIX sockets; tideloop.observe.serve\(socket=False, web=True\)"):
        tideloop.observe.serve()
    with pytest.raises(Unreachable, match="which this system's Python has not"):
        find(None)
    asked = _Asked()
    assert asked.takes("--observe")
    assert asked.obey("app.py").startswith("--observe: this system's Python has no UNIX sockets")
    assert serving._server is None
    assert asked.takes("--observe-web")
    assert asked.obey("app.py") is None
    with serving._server as server:
        assert server.socket is None
        assert ask(server, "/v1/loops", by_port=True)[0] == 200
    monkeypatch.setenv("TIDELOOP_OBSERVE_SOCKET", "1")
    serving.serve_if_asked.cache_clear()
    serving.serve_if_asked()
    assert "nobody can observe this process: this system's Python has no UNIX sockets" in caplog.text


def test_run_opens_the_page(capsys):
    async def main():
        (url,) = (line.split()[-1] for line in capsys.readouterr().err.splitlines())
        assert url == serving._server.url
        return (await asyncio.to_thread(ask, serving._server, "/v1/loops", by_port=True))[0]

    assert tideloop.run(main(), observe_web=True) == 200
    assert serving._server.socket is None
    serving._server.close()
    with pytest.raises(ValueError, match="web is 'yes'"):
        tideloop.run(main(), observe_web="yes")
    assert serving._server is None


def test_closing_frees_everything(folder):
    before = set(os.listdir("/proc/self/fd")) if sys.platform == "linux" else set()
    for _ in range(3):
        with tideloop.observe.serve(web=True) as server, connected(server), connected(server, by_port=True):
            document(server, "/v1/tasks")
    if sys.platform == "linux":
        assert set(os.listdir("/proc/self/fd")) == before
        names = [task.joinpath("comm").read_text() for task in Path("/proc/self/task").iterdir()]
        assert not [name for name in names if name.startswith(("tideloop-serve", "tideloop-collec"))]


def test_loops_are_not_kept_alive():
    loop = tideloop.EventLoop()
    loop.run_until_complete(asyncio.sleep(0))
    assert loop in observed.loops()
    loop.close()
    assert loop not in observed.loops()
