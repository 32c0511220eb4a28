"""The server in whole processes: while the GIL is held, over a fork, at the end, and if the environment asks for it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tideloop
from tideloop.observe import places
from tideloop.observe.commands import record, web

from tests.observe.serving import ask, document, token_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")

SERVED = Path(__file__).with_name("served.py")
PACKAGE = Path(tideloop.__file__).parent.parent


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(PACKAGE))
    return tmp_path / "tideloop"


@contextlib.contextmanager
def program(*arguments, command=(str(SERVED),), **environment):
    """A program that has said its first line."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", *command, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    with process:
        try:
            process.first = process.stdout.readline().strip()
            yield process
        finally:
            process.kill()


def ended(process):
    """Has it end; returns its exit code and what it has complained of."""
    _, complaints = process.communicate("\n", timeout=20)
    return process.returncode, complaints


def server_of(process):
    """The server in that process, by its socket."""
    return SimpleNamespace(socket=str(places.socket_of(process.pid)))


def block_of(server, known=lambda block: "matches" in [frame[2] for frame in block["stack"]]):
    """The block that is looked for, as soon as it is told of. On a busy machine there may be others."""
    while True:
        for block in document(server, "/v1/blocks")["blocks"]:
            if known(block):
                return block


def test_it_answers_while_c_code_holds_the_gil():
    environment = {"TIDELOOP_OBSERVE_SOCKET": "1", "TIDELOOP_BLOCK_THRESHOLD": "0.05"}
    with program("block", **environment) as process:
        server = server_of(process)
        block = block_of(server)
        (loop,) = document(server, "/v1/loops")["loops"]
        # Python cannot be asked: who asks is not kept waiting, and is told what is known.
        tasks = document(server, "/v1/tasks")
        assert block_of(server)["ended"] is False, "all of this was while it lasted"
        assert (block["ended"], block["task"], block["what"]) == (False, None, "")
        ours = [function for file, _, function in block["stack"] if Path(file).parent == SERVED.parent]
        assert ours[:2] == ["matches", "block"]
        assert loop["blocked_for"] >= 0.05
        assert (loop["name"], loop["running"]) == ("MainThread", True)
        assert tasks["age"] is None or tasks["age"] >= 0
        ended_block = block_of(server, lambda told: told["id"] == block["id"] and told["ended"])
        assert ended_block["duration"] >= 0.7
        assert ended_block["what"] == "block"
        assert ended_block["task"].startswith("Task-")
        assert ended_block["stack"] == block["stack"]
        assert 0.05 <= ended_block["captured"] == block["captured"] <= ended_block["duration"]
        while loop["blocked_for"] is not None:
            (loop,) = document(server, "/v1/loops")["loops"]
        _, metrics = ask(server, "/metrics")
        name = f'tideloop_eventloop_blocked_seconds_total{{loop="1",cause="{ended_block["cause"]}"}} '
        (line,) = [line for line in metrics.decode().splitlines() if line.startswith(name)]
        assert float(line.removeprefix(name)) >= 0.7
        assert ended(process)[0] == 0


def test_the_socket_goes_with_the_process(folder):
    with program("leave", TIDELOOP_OBSERVE_SOCKET="1") as process:
        assert document(server_of(process), "/v1/loops")["program"] == "served.py"
        assert ended(process)[0] == 7
    assert list(folder.iterdir()) == []


def test_a_child_does_not_serve_and_its_parent_goes_on(folder):
    with program("fork") as process:
        assert process.first == "0 True"
        server = server_of(process)
        assert document(server, "/v1/loops")["pid"] == process.pid
        assert document(server, "/v1/tasks")["age"] is not None
        assert ended(process) == (0, "")
    assert list(folder.iterdir()) == []


def test_the_interpreter_ends_though_the_collector_does_not(folder):
    with program("hang") as process:
        assert document(server_of(process), "/v1/tasks") == {"age": None, "loops": []}
        assert ended(process) == (7, "")
    assert list(folder.iterdir()) == []


def test_the_environment_asks_for_a_page():
    with program("wait", TIDELOOP_OBSERVE_WEB="0") as process:
        assert not places.socket_of(process.pid).exists()
        line = process.stderr.readline()
        server = SimpleNamespace(url=line.split()[-1])
        assert line.startswith("tideloop: observed at http://127.0.0.1:")
        assert ask(server, "/v1/loops", by_port=True)[0] == 200
        assert ended(process)[0] == 0


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("TIDELOOP_OBSERVE_SOCKET", "yes", "TIDELOOP_OBSERVE_SOCKET is 'yes'; expected '0' or '1'"),
        ("TIDELOOP_OBSERVE_WEB", "http", "TIDELOOP_OBSERVE_WEB is 'http'; expected a port, 0 for any"),
        ("TIDELOOP_OBSERVE_WEB", "65536", "TIDELOOP_OBSERVE_WEB is '65536'; expected a port, 0 for any"),
    ],
)
def test_nonsense_in_the_environment_is_named(name, value, words):
    with program("wait", **{name: value}) as process:
        code, complaints = ended(process)
    assert code == 1
    assert words in complaints


def test_what_cannot_be_opened_does_not_stop_the_program(folder):
    folder.mkdir()
    folder.chmod(0o755)
    with program("wait", TIDELOOP_OBSERVE_SOCKET="1") as process:
        code, complaints = ended(process)
    assert code == 0
    assert "nobody can observe this process" in complaints
    assert "has mode 0755" in complaints


def test_run_observe(capsys):
    command = ("-m", "tideloop", "run", "--observe", str(SERVED))
    with program("wait", command=command) as process:
        server = server_of(process)
        told = document(server, "/v1/loops")
        assert (told["pid"], told["program"]) == (process.pid, "served.py")
        assert web.main([str(process.pid)]) == 0
        url = capsys.readouterr().out.strip()
        assert document(server, "/v1/web")["url"] == url
        page = SimpleNamespace(url=url)
        assert token_of(page)
        assert ask(page, "/v1/loops", by_port=True)[0] == 200
        assert ended(process) == (0, "")
    assert web.main([str(process.pid)]) == 3
    assert capsys.readouterr().err == f"tideloop web: no such process: {process.pid}\n"


def test_record_of_a_running_program(capsys, tmp_path):
    command = ("-m", "tideloop", "run", "--observe", str(SERVED))
    trace = tmp_path / "trace.json"
    with program("wait", command=command, TIDELOOP_OBSERVE="trace") as process:
        assert record.main([str(process.pid), "-o", str(trace)]) == 0
        assert capsys.readouterr().out.startswith(f"{trace}: ")
        assert ended(process) == (0, "")
    events = json.loads(trace.read_text())["traceEvents"]
    assert {event["pid"] for event in events} == {process.pid}
    assert any(event["name"] == "wait" and event["ph"] == "X" for event in events if "args" in event)


def test_run_observe_web():
    with program("wait", command=("-m", "tideloop", "run", "--observe-web", str(SERVED))) as process:
        page = SimpleNamespace(url=process.stderr.readline().split()[-1])
        assert ask(page, "/v1/blocks", by_port=True)[0] == 200
        assert ended(process)[0] == 0
    with program(command=("-m", "tideloop", "run", "--observe-web=x", str(SERVED))) as process:
        assert ended(process) == (2, "tideloop run: --observe-web is 'x'; expected a port, 0 for any\n")


@pytest.mark.parametrize("arguments", [["1", "2"], ["--port", "1"], ["self"], ["-1"]])
def test_wrong_usage_of_web(arguments, capsys):
    assert web.main(arguments) == 2
    assert "tideloop web" in capsys.readouterr().err


def test_help_of_web(capsys):
    assert web.main(["--help"]) == 0
    assert "--open" in capsys.readouterr().out
