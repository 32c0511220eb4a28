"""A run is a process: what comes back when it goes well, crashes, hangs or talks nonsense."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from tideloop.lab.backends import BACKENDS, BLOCKING, Backend
from tideloop.lab.load import find_load_client
from tideloop.lab.plan import Cell, Job
from tideloop.lab.results import outcome_of
from tideloop.lab.runner import Run, run_job
from tideloop.lab.scenarios import QUICK, TASK_SPAWN, WIRE, Params, Scenario

SMALL = replace(TASK_SPAWN, params={"task_count": 10, "payload_sleep": 0.0})
BY_NAME = {scenario.name: scenario for scenario in QUICK.scenarios + WIRE.scenarios}


def job(scenario: Scenario = SMALL, backend: Backend = BACKENDS["asyncio"], rep: int = 1) -> Job:
    return Job(Cell(scenario, backend), rep, rep - 1)


def run_python(code: str, scenario: Scenario = SMALL) -> Run:
    return run_job(job(scenario), [sys.executable, "-c", code])


def test_a_run_has_metrics_and_what_it_cost() -> None:
    run = run_job(job())
    assert run.ok
    assert run.error is None
    assert run.metrics["tasks"] == 10
    assert run.duration_s == run.metrics["duration_s"]
    assert run.resources["cpu_s"] > 0


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("raise ValueError('no such loop')", "ValueError: no such loop"),
        ("import sys; sys.exit(3)", "the worker ended with code 3 and said nothing"),
        ("print('hello')", "the worker ended with code 0 and said nothing"),
        pytest.param(
            "import os; os.abort()",
            "crashed: SIGABRT",
            marks=pytest.mark.skipif(sys.platform == "win32", reason="no signals there"),
        ),
    ],
)
def test_a_worker_that_ends_badly_is_a_failed_run(code: str, error: str) -> None:
    assert run_python(code).error == error


def test_a_worker_that_never_ends_is_given_up_with_its_children() -> None:
    # The child holds the pipe open: unless it is ended too, reading the worker's output never finishes.
    child = "import sys; sys.stdin.read()"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}], stdin=subprocess.PIPE).wait()"
    run = run_python(code, replace(SMALL, limit_s=0.5))
    assert run.error == "took longer than 0.5 s"


def test_a_wrong_result_names_what_differs() -> None:
    run = run_job(job(replace(SMALL, body="cancellation", params={"cancel_tasks": 0, "cancel_after": 0, "how": "?"})))
    assert run.error is not None
    assert run.error.startswith("KeyError")


def test_one_failing_run_makes_a_failed_cell_and_keeps_the_others_in_the_json() -> None:
    good, bad = Run(job(), {"tasks_per_sec": 1.0}, 1.0), Run(job(rep=2), error="crashed: SIGSEGV")
    outcome = outcome_of(good.job.cell, None, [good, bad])
    assert outcome.status == "failed"
    assert outcome.reason == "crashed: SIGSEGV (1 of 2 runs)"
    assert good.to_json()["ok"]
    assert bad.to_json()["error"] == "crashed: SIGSEGV"


@pytest.mark.parametrize("name", ["asyncio", "uvloop", "trio", "anyio", "anyio+trio", "tideloop"])
def test_the_echo_scenario_end_to_end(name: str) -> None:
    if find_load_client() is None:
        pytest.skip("tideloop-load is not built; run `make build`")
    if reason := BACKENDS[name].missing():
        pytest.skip(reason)
    params = {"connections": 3, "size": 200, "seconds": 0.1, "warmup_s": 0.02, "how": "usual"}
    run = run_job(job(replace(BY_NAME["tcp_echo"], params=params), BACKENDS[name]))
    assert run.error is None
    assert run.metrics["requests"] > 3
    assert run.metrics["server_cpu_us_per_request"] > 0
    assert run.metrics["latency_p50_us"] <= run.metrics["latency_p99_us"]


@pytest.mark.parametrize(
    "scenario", [scenario for scenario in WIRE.scenarios if scenario.driven], ids=lambda it: it.name
)
@pytest.mark.parametrize("name", ["asyncio", "tideloop", "limit"])
def test_the_driven_scenarios_end_to_end(name: str, scenario: Scenario) -> None:
    if find_load_client() is None:
        pytest.skip("tideloop-load is not built; run `make build`")
    if BACKENDS[name].family not in scenario.families:
        pytest.skip("no cell of this scenario")
    if reason := Cell(scenario, BACKENDS[name]).missing():
        pytest.skip(reason)
    small: Params = {"connections": 3}
    small |= {"requests": 3} if "requests" in scenario.params else {"seconds": 0.05}
    small |= {"warmup_s": 0.01} if scenario.params["warmup_s"] else {}
    small |= {"size": 3000, "times": 200} if "times" in scenario.params else {}
    run = run_job(job(replace(scenario, params=scenario.params | small), BACKENDS[name]))
    assert run.error is None
    for metric in scenario.metrics:
        # Three connections may fit into memory that the server already had.
        assert run.metrics[metric.name] > 0 or metric.name == "bytes_per_connection"
    assert run.metrics.get("requests", 3) >= 3 * scenario.params.get("pipelined", 1)


@pytest.mark.parametrize("name", ["asyncio", "tideloop"])
@pytest.mark.parametrize("threads", [1, 4])
def test_calls_between_threads_are_all_run(name: str, threads: int) -> None:
    params = {"threads": threads, "calls": 1000}
    run = run_job(job(replace(BY_NAME["threadsafe.1"], params=params), BACKENDS[name]))
    assert run.error is None
    assert run.metrics["cpu_us_per_call"] > 0


@pytest.mark.parametrize("name", ["asyncio", "uvloop", "tideloop"])
def test_calls_of_an_executor_all_return(name: str) -> None:
    if reason := BACKENDS[name].missing():
        pytest.skip(reason)
    params = {"threads": 3, "calls": 250, "at_once": 100}
    run = run_job(job(replace(BY_NAME["executor"], params=params), BACKENDS[name]))
    assert run.error is None
    assert run.metrics["cpu_us_per_call"] > 0


@pytest.mark.parametrize("name", ["asyncio", "tideloop"])
def test_no_more_than_a_write_is_kept_above_the_high_water_mark(name: str) -> None:
    params = {"size": 16 * 1024, "pauses": 20}
    run = run_job(job(replace(BY_NAME["slow_reader"], params=params), BACKENDS[name]))
    assert run.error is None
    assert run.metrics["pauses"] >= 20
    assert 0 < run.metrics["over_high_water_writes"] <= 1


@pytest.mark.parametrize("name", ["sequential", "threads", "asyncio", "tideloop"])
def test_the_http_scenario_end_to_end(name: str) -> None:
    pytest.importorskip("requests")
    pytest.importorskip("aiohttp")
    backend = {**BACKENDS, **BLOCKING}[name]
    if reason := backend.missing():
        pytest.skip(reason)
    params = {"requests": 5, "delay_s": 0.0, "threads": 2}
    run = run_job(job(replace(BY_NAME["http_50"], params=params), backend))
    assert run.error is None
    assert run.metrics["requests"] == 5
