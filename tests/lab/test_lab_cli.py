"""The command line: what it accepts, how it complains, what it writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tideloop
from tideloop.lab import cli, main
from tideloop.lab.plan import Job
from tideloop.lab.runner import Run, run_job

TINY = ["--profile", "seed", "--benchmarks", "task_spawn", "--task-count", "20", "--payload-sleep", "0"]


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--profile", "fast"], ["--profile", "'fast'", "quick, seed"]),
        (["--benchmarks", "tcp"], ["--benchmarks", "'tcp'", "tcp_echo"]),
        (["--benchmarks", "tcp_echo", "--profile", "seed"], ["'tcp_echo'", "seed profile has: task_spawn"]),
        (["--libraries", "asyncio", "gevent"], ["--libraries", "'gevent'", "tideloop"]),
        (["--repetitions", "0"], ["--repetitions", "'0'", "at least 1"]),
        (["--repetitions", "many"], ["--repetitions", "'many'", "whole number"]),
        (["--payload-sleep", "-1"], ["--payload-sleep", "'-1'", "at least 0"]),
        (["--payload-sleep", "nan"], ["--payload-sleep", "'nan'"]),
        (["--mean-io-ms", "0"], ["--mean-io-ms", "'0'", "more than 0"]),
        (["--cancel-after", "soon"], ["--cancel-after", "'soon'"]),
        (["--benchmarks", "tcp_echo", "--task-count", "5"], ["--task-count", "no chosen benchmark"]),
        (["--output", "."], ["--output", "'.'", "folder"]),
        (["--frobnicate"], ["--frobnicate"]),
        (["--task-count"], ["--task-count", "expected one argument"]),
    ],
)
def test_a_bad_value_is_one_line_and_exit_code_2(
    argv: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    for part in ["tideloop lab: ", *parts]:
        assert part in err


def test_help_documents_the_exit_codes_and_every_flag_of_the_reference(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "exit codes:" in text
    for flag in (
        *("--benchmarks", "--libraries", "--repetitions", "--output", "--task-count", "--payload-sleep"),
        *("--concurrency", "--ops-per-worker", "--mean-io-ms", "--io-seed", "--cancel-tasks", "--cancel-after"),
    ):
        assert flag in text


def test_list_names_scenarios_and_backends(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    text = capsys.readouterr().out
    for name in ("io_bound.fair", "tcp_echo", "http_50", "anyio+trio", "zuvloop"):
        assert name in text


def test_the_json_is_a_superset_of_the_reference_s(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "results" / "latest.json"
    argv = [*TINY, "--libraries", "asyncio", "--repetitions", "2", "--json", "--output", str(output)]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document == json.loads(output.read_text())
    assert "lab: run 1 of each cell" in err

    meta = document["meta"]
    assert {"python", "platform", "timestamp", "benchmarks", "libraries", "repetitions"} <= meta.keys()
    assert (meta["benchmarks"], meta["libraries"], meta["repetitions"]) == (["task_spawn"], ["asyncio"], 2)
    assert isinstance(meta["order_seed"], int)
    for rep, row in enumerate(document["results"], 1):
        assert list(row)[:6] == ["library", "scenario", "params", "metrics", "rep", "duration_s"]
        assert (row["library"], row["scenario"], row["rep"], row["ok"]) == ("asyncio", "task_spawn", rep, True)
        assert row["params"] == {"task_count": 20, "payload_sleep": 0.0}
        assert {"tasks", "payload_sleep_s", "duration_s", "tasks_per_sec"} <= row["metrics"].keys()
        assert {"latency_p50_ms", "latency_p95_ms"} <= row["metrics"].keys()
    assert (output.parent / "report.html").is_file()
    leftovers = [path.name for path in output.parent.iterdir() if path.name.startswith(".")]
    assert leftovers == []


def test_the_pictures_have_the_reference_s_names(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    argv = ["--profile", "seed", "--libraries", "asyncio", "--task-count", "9", "--concurrency", "2"]
    argv += ["--ops-per-worker", "2", "--mean-io-ms", "0.01", "--cancel-tasks", "5", "--cancel-after", "0"]
    assert main([*argv, "--output", str(tmp_path / "latest.json")]) == 0
    for name in ("task_spawn", "io_bound_ops", "io_bound_latency", "cancellation"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (tmp_path / f"{name}.svg").read_text()


def without_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a tideloop that has none; its names are imported when they are asked for, if it lists them."""
    monkeypatch.delattr(tideloop, "new_event_loop", raising=False)
    monkeypatch.setattr(tideloop, "__all__", [name for name in tideloop.__all__ if name != "new_event_loop"])


def test_a_backend_that_is_missing_is_skipped_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_a_loop(monkeypatch)
    output = tmp_path / "latest.json"
    assert main([*TINY, "--libraries", "asyncio,tideloop", "--output", str(output)]) == 0
    out, err = capsys.readouterr()
    reason = "tideloop.new_event_loop is missing"
    assert f"lab: skipped: tideloop: this tideloop has no event loop yet ({reason})" in err
    assert reason in out
    assert reason in (tmp_path / "report.html").read_text()
    cells = {cell["library"]: cell for cell in json.loads(output.read_text())["cells"]}
    assert cells["asyncio"]["status"] == "ok"
    assert cells["tideloop"]["status"] == "skipped"
    assert reason in cells["tideloop"]["reason"]


def test_nothing_that_can_run_is_said_and_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_a_loop(monkeypatch)
    assert main([*TINY, "--libraries", "tideloop", "--output", str(tmp_path / "latest.json")]) == 1
    assert "nothing can run here" in capsys.readouterr().err


@pytest.mark.parametrize(("failing", "code"), [("asyncio", 0), ("tideloop", 1)])
def test_a_failed_cell_is_not_the_end_and_ours_is_exit_code_1(
    failing: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(job: Job) -> Run:
        if job.cell.backend.name == failing:
            return Run(job, error="crashed: SIGSEGV")
        return Run(job, {"tasks": 1, "tasks_per_sec": 1.0, "early_wakes": 0}, 1.0)

    monkeypatch.setattr(cli, "run_job", crash)
    monkeypatch.setattr(tideloop, "new_event_loop", object, raising=False)
    assert main([*TINY, "--libraries", "asyncio", "tideloop", "--output", str(tmp_path / "latest.json")]) == code
    out, err = capsys.readouterr()
    assert f"failed: task_spawn on {failing}, run 1: crashed: SIGSEGV" in err
    assert "failed: crashed: SIGSEGV" in out
    assert "1.00" in out


def test_a_run_in_which_everything_fails_is_exit_code_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "run_job", lambda job: Run(job, error="crashed: SIGSEGV"))
    assert main([*TINY, "--libraries", "asyncio", "--output", str(tmp_path / "latest.json")]) == 1


def test_an_interrupt_writes_what_there_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[Job] = []

    def stop_at_the_second(job: Job) -> Run:
        if done:
            raise KeyboardInterrupt
        done.append(job)
        return run_job(job)

    monkeypatch.setattr(cli, "run_job", stop_at_the_second)
    output = tmp_path / "latest.json"
    assert main([*TINY, "--libraries", "asyncio", "--repetitions", "3", "--output", str(output)]) == 130
    document = json.loads(output.read_text())
    assert document["meta"]["complete"] is False
    assert len(document["results"]) == 1
    assert "Interrupted" in (tmp_path / "report.html").read_text()


def test_an_output_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main([*TINY, "--libraries", "asyncio", "--output", str(tmp_path / "file" / "latest.json")]) == 1
    assert "cannot write results" in capsys.readouterr().err.splitlines()[-1]


def test_importing_tideloop_imports_no_lab_and_the_lab_no_matplotlib() -> None:
    code = "import sys, tideloop; assert 'tideloop.lab' not in sys.modules\n"
    code += "import tideloop.lab; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
