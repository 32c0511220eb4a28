"""The commands that look at a running program: what they print, what they complain of, their exit codes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tideloop.cli import main

from tests.observe import documents as d

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="over UNIX sockets")
COMMANDS = ("top", "tasks", "blocked", "doctor", "flame", "record")
OK, FOUND, USAGE, UNREACHABLE = 0, 1, 2, 3


@pytest.fixture
def says(capsys):
    """Run a command: what it prints. It ends with `code`, and nothing else than progress is told."""

    def says(*argv, code=OK):
        assert main(list(argv)) == code
        told = capsys.readouterr()
        assert all(line.startswith("looking at process") for line in told.err.splitlines()), told.err
        assert "\033" not in told.out, "no colours where nobody looks"
        return told.out

    return says


@pytest.fixture
def complains(capsys):
    """Run a command that fails with `code`: its one line."""

    def complains(*argv, code):
        assert main(list(argv)) == code
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err.count("\n") == 1
        return told.err.rstrip("\n")

    return complains


@pytest.mark.parametrize("command", COMMANDS)
def test_help_tells_the_exit_codes(command, says):
    text = says(command, "--help")
    assert text.startswith(f"usage: tideloop {command}")
    assert "exit codes: 0 all is well, 1 " in text


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["top", "x"], "argument PID: 'x' is not the number of a process"),
        (["blocked", "-3"], "argument PID: '-3' is not the number of a process"),
        (["blocked", "0"], "argument PID: '0' is not the number of a process"),
        (["blocked", "99999999999999999999"], "is not the number of a process"),
        (["blocked", "1", "2"], "unrecognized arguments: 2"),
        (["top", "--interval", "0"], "'0' is not a number of seconds above 0"),
        (["top", "--onc"], "unrecognized arguments: --onc"),
        (["top"], "the output is no terminal; --once prints once, --json for programs"),
        (["tasks", "--stacks"], "--stacks goes with --tree"),
        (["tasks", "--tree", "--sort", "busy"], "--sort orders the table of tasks"),
        (["tasks", "--sort", "colour"], "invalid choice: 'colour'"),
        (["doctor", "--seconds", "nan"], "'nan' is not a number of seconds"),
        (["flame"], "the following arguments are required: -o/--output"),
        (["flame", "-o", "x.png"], "expected a name that ends in .svg or .speedscope.json"),
        (["flame", "--json", "-o", "x.svg"], "unrecognized arguments: --json"),
        (["record", "-o"], "argument -o/--output: expected one argument"),
    ],
)
def test_wrong_usage_is_one_line(argv, complaint, complains):
    said = complains(*argv, code=USAGE)
    assert said.startswith(f"tideloop {argv[0]}: ")
    assert complaint in said


@pytest.mark.parametrize("command", COMMANDS)
def test_a_process_that_cannot_be_asked(command, folder, complains):
    options = {"top": ["--once"], "flame": ["-o", "x.svg"], "record": ["-o", "x.json"]}.get(command, [])
    said = complains(command, *options, str(os.getpid()), code=UNREACHABLE)
    assert said.startswith(f"tideloop {command}: process {os.getpid()} is not observed")


def test_what_a_stranger_says_cannot_command_the_terminal(process, answers, says, complains):
    evil = "\033[2Jgone\n"
    answers["/v1/loops"] = d.loops(d.loop(name=evil), program=evil)
    answers["/v1/blocks"] = d.blocks(d.block(task=evil, stack=[[evil, 1, evil]]))
    answers["/v1/tasks"] = d.tasks(d.task(1, evil, evil, waiting_on=evil), functions=[d.function(evil)])
    for line in ("tasks", "tasks --tree --stacks", "tasks --functions", "blocked", "blocked --stacks"):
        assert "gone" in says(*line.split())
    says("top", "--once", "--interval", "0.001")
    says("doctor", "--seconds", "0.001", code=FOUND)
    answers["/v1/loops"] = (500, evil.encode())
    assert "gone" in complains("blocked", code=UNREACHABLE)


# --- tasks ---------------------------------------------------------------------------------------------------------


def test_tasks_as_a_table(process, answers, says):
    busy = d.task(2, "the busy one", busy=2.5, state="running", waiting_on="")
    answers["/v1/tasks"] = d.tasks(d.task(1, busy=0.001), busy)
    assert says("tasks").splitlines() == [
        "MainThread: 2 tasks",
        "task          coroutine           state      age  steps    busy  scheduled   idle  longest  waits on",
        "the busy one  handle (app.py:30)  running  3.0 s      5   2.5 s     1.0 ms  3.0 s   1.0 ms  -",
        "Task-1        handle (app.py:30)  waiting  3.0 s      5  1.0 ms     1.0 ms  3.0 s   1.0 ms  Event",
    ]
    assert says("tasks", "--sort", "name").splitlines()[2].startswith("Task-1")


def test_tasks_without_times_have_no_columns_for_them(process, answers, says):
    nothing = dict.fromkeys(("steps", "busy", "scheduled", "idle", "longest"))
    each = [d.task(1, age=1.0, **nothing), d.task(2, age=5.0, **nothing)]
    answers["/v1/tasks"] = d.tasks(*each, age=4.0, truncated=True)
    assert says("tasks").splitlines() == [
        "MainThread: 2 tasks, as it was 4.0 s ago (something keeps the GIL), the first ones",
        "task    coroutine           state      age  waits on",
        "Task-2  handle (app.py:30)  waiting  5.0 s  Event",
        "Task-1  handle (app.py:30)  waiting  1.0 s  Event",
    ]


def test_tasks_by_function(process, answers, says):
    answers["/v1/tasks"] = d.tasks(functions=[d.function(), d.function("slow", busy=3.0, created=1_234_567)])
    lines = says("tasks", "--functions").splitlines()
    assert " ".join(lines[1].split()) == "coroutine live created ok failed cancelled busy scheduled longest where"
    assert [line.split()[0] for line in lines[2:]] == ["slow", "handle"]
    assert "1.2 M" in lines[2]


def test_tasks_by_function_where_nobody_counts_them(process, answers, says):
    counts = dict.fromkeys(("created", "ok", "failed", "cancelled", "busy", "scheduled", "longest"))
    known = [d.function(name, live=live, **counts) for name, live in (("fetch", 3), ("handle", 1))]
    answers["/v1/tasks"] = d.tasks(functions=known)
    assert says("tasks", "--functions").splitlines()[1:] == [
        "coroutine  live  where",
        "fetch         3  app.py:30",
        "handle        1  app.py:30",
    ]


def test_the_tree_of_who_waits_for_whom(process, answers, says):
    answers["/v1/tasks"] = d.tasks(
        d.task(1, "main", "main", waits_for=[2, 3, 4, 5, 6, 8]),
        *(d.task(number, coroutine="fetch", waiting_on="sleep") for number in range(2, 6)),
        d.task(6, waits_for=[7], stack=[]),
        d.task(7, coroutine="query", state="ready", age=None),
        d.task(8, waits_for=[7]),
        d.task(9, "heart", "beat", parent=1, waiting_on="sleep"),
        d.task(10, waits_for=[11], parent=99),
        d.task(11, waits_for=[10], line=None),
        d.task(12, parent=12, file=None),
        *(d.task(number, coroutine="listen") for number in range(13, 33)),
    )
    assert says("tasks", "--tree").splitlines() == [
        "MainThread: 32 tasks",
        "main  main (app.py:30)  waits on Event  3.0 s",
        "├─ 4 of fetch (app.py:30)  waits on sleep  (Task-2 … Task-5)",
        "├─ Task-6  handle (app.py:30)  waits on Event  3.0 s",
        "│  └─ Task-7  query (app.py:30)  ready",
        "├─ Task-8  handle (app.py:30)  waits on Event  3.0 s",
        "│  └─ Task-7  see above",
        "└─ spawned heart  beat (app.py:30)  waits on sleep  3.0 s",
        "Task-12  handle  waits on Event  3.0 s",
        "20 of listen (app.py:30)  waits on Event  (Task-13 … Task-32)",
        "Task-10  handle (app.py:30)  waits on Event  3.0 s",
        "└─ Task-11  handle (app.py)  waits on Event  3.0 s",
        "   └─ Task-10  waits in a circle",
    ]
    assert "├─ Task-3  fetch (app.py:30)  waits on sleep  3.0 s" in says("tasks", "--tree", "--all").splitlines()
    assert "│        fetch (app.py:31)" in says("tasks", "--tree", "--stacks").splitlines()


def test_a_tree_of_any_depth(process, answers, says):
    answers["/v1/tasks"] = d.tasks(*(d.task(number, waits_for=[number + 1]) for number in range(1, 3000)))
    lines = says("tasks", "--tree").splitlines()
    assert sum("  handle " in line for line in lines) == 2999
    assert any(line.endswith("└─ … 1 task further down") for line in lines)


def test_two_loops_are_told_one_after_the_other(process, answers, says):
    answers["/v1/loops"] = d.loops(d.loop(), d.loop(2, "worker"))
    answers["/v1/tasks"] = {"age": 0.0, "loops": [d.tasks()["loops"][0], d.tasks(d.task(1), number=2)["loops"][0]]}
    assert [line for line in says("tasks").splitlines() if line.endswith(("task", "tasks"))] == [
        "MainThread: 0 tasks",
        "worker: 1 task",
    ]


@pytest.mark.parametrize(("command", "path"), [("tasks", "/v1/tasks"), ("blocked", "/v1/blocks")])
def test_json_is_what_the_process_says(command, path, process, answers, says):
    answers["/v1/tasks"] = d.tasks(d.task(1, "naïve"), functions=[d.function()])
    answers["/v1/blocks"] = d.blocks(d.block())
    assert json.loads(says(command, "--json", str(os.getpid()))) == answers[path]


# --- blocked, flame, record ------------------------------------------------------------------------------------------


def long_ago(seconds, number=1, **changed):
    return d.block(number, at=time.time() - seconds - changed.get("duration", 0.25), **changed)


def test_blocked(process, answers, says):
    assert says("blocked") == "no loop of process 4711 was blocked, in 2 min\n"
    library = [["/usr/lib/python3.14/re/__init__.py", 167, "match"], ["/srv/app.py", 22, "parse"]]
    answers["/v1/blocks"] = d.blocks(
        long_ago(7200, 1, loop=9),
        long_ago(240, 2, stack=library, cause="c", task=None, duration=3.0, captured=0.1012),
        long_ago(0, 3, stack=[], stacks=[], ended=False, duration=1.5),
    )
    assert says("blocked").splitlines() == [
        "when          for  cause    loop            where                       in task",
        "2.0 h ago  250 ms  syscall  an earlier one  fetch (app.py:12)           fetch 3",
        "4 min ago   3.0 s  c        MainThread      parse (app.py:22) in match  -",
        "now         1.5 s  syscall  MainThread      fetch (app.py:12)           fetch 3",
        "",
        "3 blocks, 4.8 s in all, blocked now; --stacks shows the stacks",
    ]
    assert says("blocked", "--stacks").splitlines()[3:] == [
        "4 min ago: MainThread was blocked for 3.0 s (c) by parse (app.py:22) in match",
        "  its stack after 101 ms:",
        '  File "/usr/lib/python3.14/re/__init__.py", line 167, in match',
        '  File "/srv/app.py", line 22, in parse',
        "now: MainThread has been blocked for 1.5 s (syscall) by fetch (app.py:12), task 'fetch 3'",
        "  its stack is not known",
        "",
        "3 blocks, 4.8 s in all, blocked now",
    ]


def test_flame(process, answers, says, complains, tmp_path):
    for name in ("x.svg", "x.speedscope.json"):
        path = tmp_path / name
        said = complains("flame", "-o", str(path), code=FOUND)
        assert said.endswith("was blocked in 2 min, so there is nothing to draw")
        assert not path.exists()
    answers["/v1/blocks"] = d.blocks(d.block(), d.block(2))
    for name, start in (("x.svg", "<svg "), ("x.speedscope.json", '{\n "$schema"')):
        path = tmp_path / name
        assert says("flame", "-o", str(path)) == f"{path}: 2 blocks, 500 ms in all\n"
        assert path.read_text().startswith(start)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["x.speedscope.json", "x.svg"]


def test_flame_of_what_comes(process, answers, says, tmp_path):
    old, new = d.block(1), d.block(3, duration=2.0)
    lasts = d.block(2, duration=0.5, ended=False)
    ended = lasts | {"duration": 0.75, "ended": True}
    answers["/v1/blocks"] = [d.blocks(old, lasts), d.blocks(old, ended), d.blocks(new)]
    assert says("flame", "-o", str(tmp_path / "x.svg"), "--seconds", "0.001").endswith(": 2 blocks, 2.8 s in all\n")


def test_files_that_cannot_be_written(process, answers, complains, tmp_path):
    answers["/v1/blocks"] = d.blocks(d.block())
    path = tmp_path / "folder.svg"
    path.mkdir()
    assert complains("flame", "-o", str(path), code=FOUND).endswith(f"cannot write '{path}': it is a folder")
    missing = tmp_path / "no" / "x.svg"
    said = complains("flame", "-o", str(missing), code=FOUND)
    assert said == f"tideloop flame: cannot write '{missing}': No such file or directory"


def test_record(process, answers, says, complains, tmp_path):
    path = tmp_path / "trace.json"
    asked = ("record", "-o", str(path), "--seconds", "2.5")
    assert complains(*asked, code=FOUND).endswith("has a flight recorder; start it with TIDELOOP_OBSERVE=trace")
    answers["/v1/loops"] = d.loops(d.loop(level=2))
    for trace in (b"[]]", b"{}", b"3"):
        answers["/v1/record"] = trace
        assert "something else than a trace" in complains(*asked, code=FOUND)
    trace = answers["/v1/record"] = json.dumps({"traceEvents": [{"ph": "X"}] * 3}).encode()
    assert says(*asked).startswith(f"{path}: 3 events, {len(trace)} bytes; open it at https://ui.perfetto.dev")
    assert (path.read_bytes(), process.asked[-1]) == (trace, "/v1/record?seconds=2.5")
    os.umask(mask := os.umask(0))
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


# --- doctor, top ----------------------------------------------------------------------------------------------------


def test_doctor_of_a_healthy_program(process, says):
    lines = says("doctor", "--seconds", "0.001").splitlines()
    assert lines[0].startswith(f"app.py ({os.getpid()}), Python 3.14.1, up 2 min, 1 loop, looked at for ")
    assert lines[1:] == ["", "nothing found: loops busy for 25 % of the time, 0 tasks"]


def test_doctor_of_a_program_that_is_ill(process, answers, says):
    answers["/v1/loops"] = d.loops(d.loop(level=0, blocked_for=3.0))
    answers["/v1/blocks"] = d.blocks(d.block(duration=3.0, ended=False))
    lines = says("doctor", "--seconds", "0.001", code=FOUND).splitlines()
    assert lines[2:5] == [
        "PROBLEM  The loop of MainThread has been blocked for 3.0 s and still is, by fetch (app.py:12) in",
        "         task 'fetch 3' (cause: syscall).",
        "         do: await an asynchronous call instead, or call it by tideloop.run_blocking()",
    ]
    assert any(line.startswith("note     Times of tasks are not counted") for line in lines)
    assert lines[-1] == "1 problem"


def test_doctor_for_programs(process, answers, says):
    document = json.loads(says("doctor", "--seconds", "0.001", "--json"))
    assert (document["healthy"], document["findings"], document["notes"]) == (True, [], [])
    answers["/v1/blocks"] = d.blocks(long_ago(5))
    answers["/v1/loops"] = d.loops(d.loop(level=0))
    document = json.loads(says("doctor", "--seconds", "0.001", "--json", code=FOUND))
    (finding,) = document["findings"]
    assert (document["healthy"], document["pid"], document["program"]) == (False, os.getpid(), "app.py")
    assert (finding["kind"], finding["severity"]) == ("blocks", "warning")
    assert finding["evidence"]["frame"] == ["/srv/app.py", 12, "fetch"]
    assert [note["kind"] for note in document["notes"]] == ["not_seen"]


def test_top_once(process, answers, says):
    answers["/v1/loops"] = [d.loops(), d.loops(d.loop(blocked_for=1.25))]
    answers["/v1/blocks"] = d.blocks(long_ago(240))
    answers["/v1/tasks"] = d.tasks(*(d.task(n) for n in range(20)), functions=[d.function()])
    limiter = d.gauge("limiter", capacity=10, waiting=3, closed=False)
    answers["/v1/gauges"] = d.gauges(limiter, d.gauge("queue", 7, None, size=1500))
    lines = says("top", "--once", "--interval", "0.001").splitlines()
    assert lines[0] == "app.py (4711), Python 3.14.1, up 2 min, 20 tasks, MainThread BLOCKED for 1.2 s"
    assert " ".join(lines[2].split()) == "loop busy 1 s 10 s 1 min steps p99 ready timers fds conns executor"
    assert " ".join(lines[3].split()) == "MainThread 25 % 30 % 20 % 0/s 4.0 ms 3 12 7 4 0"
    assert "… 8 more tasks" in lines
    assert [line for line in lines if line.startswith(("queue", "limiter"))] == [
        "queue 7        1,500  size 1,500",
        "limiter api        3  capacity 10, waiting 3",
    ]
    assert lines[-1] == "fetch (app.py:12)  4 min ago  250 ms  syscall  fetch 3"


def test_top_for_programs_asks_once(process, answers, says):
    document = json.loads(says("top", "--json"))
    assert (document["pid"], document["blocks"], document["gauges"]) == (4711, [], [])
    assert document["tasks"]["loops"][0]["tasks"] == []
    assert len(process.asked) == 4


def test_top_of_a_loop_that_has_just_begun_and_one_that_counts_nothing(process, answers, says):
    silent = d.loop(3, "silent", metrics=None, running=False)
    answers["/v1/loops"] = [d.loops(), d.loops(d.loop(), d.loop(2, "new"), silent)]
    lines = says("top", "--once", "--interval", "0.001").splitlines()
    assert [line.split()[0] for line in lines[3:6]] == ["MainThread", "new", "silent"]
    assert lines[5].split()[1:3] == ["(not", "running)"]


def test_the_example_runs():
    example = Path(__file__).parents[2] / "examples" / "ill_service.py"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tideloop", "run", str(example), "0.1"],
        capture_output=True,
        text=True,
        timeout=25,
        env=os.environ | {"TIDELOOP_BLOCK_THRESHOLD": "off"},
    )
    assert done.returncode == 0
    assert "OSError: the disk is full" in done.stderr, "nobody has asked for it"
