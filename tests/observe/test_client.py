"""Who is asked, and what is said where nobody answers."""

import copy
import functools
import json
import operator
import os
import random
import subprocess
import sys

import pytest
from tideloop import cli
from tideloop.observe.client import Client, Found, Unreachable, _folders, find, visible
from tideloop.observe.shapes import amiss

from tests.observe import answering
from tests.observe import documents as d

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="over UNIX sockets")


@pytest.fixture
def other():
    """The number of a process that lives and is not this one."""
    child = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    yield child.pid
    child.communicate(b"\n")


@pytest.mark.parametrize("session", [None, "/run/user/123456", "/somewhere"])
def test_where_the_sockets_of_a_user_are(session, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 123_456)
    if session is None:
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    else:
        monkeypatch.setenv("XDG_RUNTIME_DIR", session)
    usual = ["/run/user/123456/tideloop", "/tmp/tideloop-123456"]
    folders = [str(folder) for folder in _folders(123_456)]
    assert [folder for folder in folders if folder in usual] == usual
    if session is not None:
        assert folders[0] == f"{session}/tideloop"
        assert f"{session}/tideloop" not in map(str, _folders(0)), "the session is not another user's"


def whole(**changed):
    answers = {"/v1/loops": d.loops(), "/v1/blocks": d.blocks(), "/v1/tasks": d.tasks(), "/v1/gauges": d.gauges()}
    return answers | changed


def refused(pid=None):
    with pytest.raises(Unreachable) as raised:
        find(pid)
    return str(raised.value)


def test_a_process_is_found_by_its_number_and_alone_without(folder):
    assert visible() == []
    with answering.serving(folder, os.getpid(), whole()) as server, Client(find(None)) as client:
        assert visible() == [find(os.getpid())] == [find(None)]
        assert client.pid == os.getpid()
        assert client.snapshot().to_json()["program"] == "app.py"
        assert server.asked == ["/v1/loops", "/v1/blocks", "/v1/tasks", "/v1/gauges"]


def test_several_are_named(folder, other):
    with answering.serving(folder, os.getpid(), whole()), answering.serving(folder, other, whole()):
        assert [found.pid for found in visible()] == sorted([os.getpid(), other])
        assert refused() == f"2 processes are observed: {min(os.getpid(), other)}, {max(os.getpid(), other)}; say which"
        assert find(other).pid == other


def test_what_a_killed_process_left_is_not_visible(folder):
    with answering.serving(folder, 77, whole()):
        pass
    assert (folder / "tideloop" / "77.sock").exists()
    (folder / "tideloop" / "notes.txt").touch()
    assert visible() == []
    assert refused() == (
        'no observed process of yours: start it with "tideloop run --observe", '
        "or with TIDELOOP_OBSERVE_SOCKET=1 in its environment"
    )


def test_no_such_process(folder):
    child = subprocess.Popen([sys.executable, "-S", "-c", ""])
    child.wait()
    assert refused(child.pid) == f"no such process: {child.pid}"
    assert refused(2**31 - 1) == f"no such process: {2**31 - 1}"


def test_a_process_that_is_not_observed(folder):
    assert refused(os.getpid()).startswith(f'process {os.getpid()} is not observed: start it with "tideloop run --obs')


def test_a_process_of_somebody_else(folder, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 65_533)
    assert refused(os.getpid()).startswith(f"process {os.getpid()} is not yours: it belongs to ")


def test_a_socket_in_a_folder_that_others_can_write_to_is_not_trusted(folder):
    with answering.serving(folder, os.getpid(), whole()):
        (folder / "tideloop").chmod(0o777)
        assert "is not trusted" in refused(os.getpid())
        assert visible() == []
        (folder / "tideloop").rename(folder / "real")
        (folder / "real").chmod(0o700)
        (folder / "tideloop").symlink_to(folder / "real")
        assert "is not trusted" in refused(os.getpid()), "a link may lead elsewhere in a moment"


def asks(folder, method="loops", **answers):
    """What comes of a question, as a text."""
    with answering.serving(folder, os.getpid(), whole(**answers)), Client(find(os.getpid())) as client:
        with pytest.raises(Unreachable) as raised:
            getattr(client, method)()
        return str(raised.value).removeprefix(f"process {os.getpid()} ")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"{", "answered /v1/loops with something else than was expected: b'{'"),
        ([[]], "answered /v1/loops with something else than was expected: b'[]'"),
        ({"version": 1, "loops": None}, "answered /v1/loops with something else"),
        ({"version": 1, "loops": [3]}, "answered /v1/loops with something else than was expected: loops has 3"),
        (
            {"version": 1, "loops": [{}]},
            "answered /v1/loops with something else than was expected: loops has one",
        ),
        ((500, b"it is ill\nvery ill"), "answered /v1/loops with 500 Internal Server Error: it is ill"),
        ((403, b""), "answered /v1/loops with 403 Forbidden: "),
        ((0, None), "broke off: Remote end closed connection without response"),
        (
            d.loops(version=2),
            "speaks version 2 of what this tideloop understands as version 1; ask it with the tideloop",
        ),
    ],
)
def test_answers_that_are_none(folder, said, told):
    assert asks(folder, **{"/v1/loops": said}).startswith(told)


@pytest.mark.parametrize(
    ("tasks", "wrong"),
    [
        ({"loops": [{"id": 1}]}, "loops has one without 'tasks'"),
        ({"loops": [{"id": 1, "tasks": 1, "functions": [], "unretrieved": []}]}, "tasks is 1"),
        (d.tasks({"id": 1}), "tasks has one without 'name'"),
        (d.tasks(functions=[d.function(), {"coroutine": "f"}]), "functions has one without 'live'"),
    ],
)
def test_tasks_that_are_not_as_expected(folder, tasks, wrong):
    assert asks(folder, "tasks", **{"/v1/tasks": tasks}).endswith(f"expected: {wrong}")


def paths(document, way=()):
    """Every place of a document, as keys and numbers that lead there."""
    for key, value in document.items() if isinstance(document, dict) else enumerate(document):
        yield (*way, key)
        if isinstance(value, dict | list):
            yield from paths(value, (*way, key))


FULL = whole(
    **{
        "/v1/loops": d.loops(d.loop(), d.loop(2, metrics=None, attached=True, lag=d.histogram())),
        "/v1/blocks": d.blocks(d.block(), d.block(2, ended=False)),
        "/v1/tasks": d.tasks(
            d.task(1, waits_for=[2], parent=2),
            d.task(2),
            functions=[d.function(live=70)],
            unretrieved=[{"task": "lost", "coroutine": "save", "exception": "OSError()", "age": 3.0}],
        ),
        "/v1/gauges": d.gauges(
            d.gauge("limiter", capacity=2, in_use=2, waiting=3, granted=7),
            d.gauge("resource_limits", 2, gpu={"capacity": 2, "in_use": 2, "waiting": 3}),
        ),
    }
)
COMMANDS = (
    ["top", "--once", "--interval", "0.001"],
    ["tasks"],
    ["tasks", "--tree", "--stacks"],
    ["tasks", "--functions"],
    ["blocked"],
    ["blocked", "--stacks"],
    ["doctor", "--seconds", "0.001"],
    ["flame", "-o", "x.svg"],
)


@pytest.mark.parametrize("path", FULL)
def test_no_document_gives_a_traceback(folder, path, capsys, monkeypatch):
    """Each part of each document is replaced by what it is not, or left out: a command ends with a code and a line."""
    monkeypatch.setattr("tideloop.observe.commands.flame.save", lambda path, content: None)
    chance = random.Random(path)
    answers = dict(FULL)
    with answering.serving(folder, os.getpid(), answers):
        for way in paths(FULL[path]):
            strange = copy.deepcopy(FULL[path])
            inner = functools.reduce(operator.getitem, way[:-1], strange)
            wrong = chance.choice([None, True, "words", b"1e999", b"9" * 400, -1, [], [[]], {}, {"a": 1}, "gone"])
            if wrong == "gone":
                del inner[way[-1]]
            else:
                inner[way[-1]] = "number" if isinstance(wrong, bytes) else wrong
            said = json.dumps(strange).encode()
            answers[path] = said.replace(b'"number"', wrong) if isinstance(wrong, bytes) else said
            command = chance.choice(COMMANDS)
            code = cli.main(command)
            err = capsys.readouterr().err
            lines = [line for line in err.splitlines() if not line.startswith("looking at process")]
            assert (code, len(lines)) in ((0, 0), (1, 0), (1, 1), (3, 1)), (way, wrong, command, err)
            assert "Traceback" not in err


def test_what_is_nested_too_deep_is_no_document(folder):
    deep = b'{"loops":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert asks(folder, **{"/v1/loops": deep}).startswith("answered /v1/loops with something else than was expected")


@pytest.mark.parametrize(
    ("value", "shape", "wrong"),
    [
        (3, int, None),
        (3, float, None),
        (2.5, int, "x is 2.5"),
        (True, int, "x is True"),
        (float("nan"), float, "x is nan"),
        (10**400, int, "x is 1000"),
        ([["f", 3, "g"]], [(str, int, str)], None),
        ([["f", 3]], [(str, int, str)], "x has ['f', 3]"),
        ([["f", 3, None]], [(str, int, str)], "x has ['f', 3, None]"),
        ({"a": None}, {"a?": int}, None),
        ({"a": "b"}, {"a?": int}, "a is 'b'"),
        ({}, {"a": int}, "x has one without 'a'"),
        ([3], [{"a": int}], "x has 3"),
        ([], {}, "x is []"),
    ],
)
def test_shapes(value, shape, wrong):
    found = amiss(value, shape, "x")
    assert found is None if wrong is None else found.startswith(wrong)


def test_a_list_that_is_absent_is_empty():
    document = {"a": None}
    assert amiss(document, {"a?": [int], "b?": [int]}, "x") is None
    assert document == {"a": [], "b": []}


def test_what_an_older_tideloop_does_not_tell_is_none(folder):
    older = {"/v1/loops": d.loops(), "/v1/blocks": d.blocks()}
    with answering.serving(folder, os.getpid(), older), Client(find(os.getpid())) as client:
        snapshot = client.snapshot()
        with pytest.raises(Unreachable, match="answered /v1/tasks with 404"):
            client.tasks()
    assert (snapshot.tasks, snapshot.gauges) == (None, None)


def test_a_server_that_hangs_up_between_two_questions_is_asked_again(folder):
    with answering.serving(folder, os.getpid(), whole()) as server, Client(find(os.getpid())) as client:
        server.hangs_up = True
        assert [client.loops()["pid"], client.loops()["pid"]] == [4711, 4711]


def test_a_process_that_ends_meanwhile(folder):
    with answering.serving(folder, os.getpid(), whole()) as server, Client(find(os.getpid())) as client:
        server.hangs_up = True
        client.loops()
    with pytest.raises(Unreachable, match="is not observed any more: it has closed its socket"):
        client.loops()


def test_a_path_that_is_too_long_for_a_socket(tmp_path):
    with pytest.raises(Unreachable, match="process 7 broke off: AF_UNIX path too long"):
        Client(Found(7, tmp_path / ("x" * 120))).loops()


def test_a_process_that_does_not_answer_is_waited_for_a_while(folder, monkeypatch):
    import socket

    monkeypatch.setattr("tideloop.observe.client._PATIENCE", 0.01)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(folder / "tideloop" / f"{os.getpid()}.sock"))
        silent.listen()
        with pytest.raises(Unreachable, match=r"did not answer /v1/loops within 0.01 s"), Client(find(None)) as client:
            client.loops()
