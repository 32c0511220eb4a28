"""The allowed dependency directions: between the crates, and between the Python modules.

py -> sys -> core,  py -> core,  load -> sys, core
loop -> _tideloop;  nothing imports lab or testing but their own entry points
"""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CRATES = {"core": set(), "sys": {"core"}, "py": {"core", "sys"}, "load": {"core", "sys"}}
# External crates that only one of ours may know.
FENCED = {"pyo3": {"py"}, "libc": {"sys"}, "polling": {"sys"}, "socket2": {"sys"}, "rustix": set()}


def manifest(crate):
    return tomllib.loads((ROOT / "crates" / crate / "Cargo.toml").read_text())


def dependencies(crate):
    """Names of everything a crate needs to be built, for any system."""
    tables = manifest(crate)
    found = set(tables.get("dependencies", {})) | set(tables.get("build-dependencies", {}))
    for target in tables.get("target", {}).values():
        found |= set(target.get("dependencies", {}))
    return found


def test_every_crate_has_a_rule():
    assert {path.parent.name for path in (ROOT / "crates").glob("*/Cargo.toml")} == set(CRATES)


@pytest.mark.parametrize("crate", CRATES)
def test_crates_depend_in_the_allowed_directions(crate):
    ours = {name.removeprefix("tideloop-") for name in dependencies(crate) if name.startswith("tideloop-")}
    assert ours <= CRATES[crate]
    for name, owners in FENCED.items():
        assert name not in dependencies(crate) or crate in owners, f"{crate} must not know {name}"


def test_core_is_pure():
    assert dependencies("core") == set()
    source = (ROOT / "crates/core/src/lib.rs").read_text()
    assert "#![forbid(unsafe_code)]" in source
    for path in (ROOT / "crates/core/src").rglob("*.rs"):
        body = path.read_text().split("#[cfg(test)]")[0]
        for clock in ("Instant", "SystemTime", "std::net", "std::io", "std::thread"):
            assert clock not in body, f"{path.name} knows {clock}"


def test_unsafe_is_fenced():
    for path in (ROOT / "crates").glob("*/src/**/*.rs"):
        relative = path.relative_to(ROOT / "crates").as_posix()
        if relative.startswith(("sys/", "py/src/ffi/")):
            continue
        assert "unsafe {" not in path.read_text(), f"{relative} has unsafe code"


def imported(path):
    """Modules of ours that a Python file imports, at any depth of its code."""
    package = ".".join(path.relative_to(ROOT / "python").with_suffix("").parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [base])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def area(module):
    """The part of the package that a module belongs to: loop, lab, ...; "" for the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


ALLOWED = {
    "loop": {"adopted", "exits", "loop", "observe", "observed", "outcome", "watchdog", "_tideloop"},
    "observed": {"observe", "_tideloop"},
    # It knows of the loop what the loop tells it, and so it is with graphs, which it names for types only.
    "observe": {"graphs", "observed", "watchdog", "_tideloop"},
    "watchdog": {"_tideloop"},
    "lab": {"lab"},
    "adopted": set(),
    "__init__": {
        "accelerated",
        "acceleration",
        "adaptive",
        "channels",
        "checkpoints",
        "gathering",
        "groups",
        "background",
        "batching",
        "breakers",
        "captures",
        "caching",
        "deadlines",
        "graphs",
        "failures",
        "flights",
        "hedges",
        "keyed_pools",
        "lifespan",
        "policies",
        "pools",
        "retries",
        "limits",
        "process_results",
        "process_runs",
        "processes",
        "loop",
        "offload",
        "observe",
        "outcome",
        "qt",
        "queues",
        "rates",
        "redis_store",
        "scopes",
        "selection",
        "shared_flights",
        "shared_limits",
        "shared_rates",
        "shutdown",
        "streams",
        "sync",
        "thread_iterators",
        "worker_processes",
    },
    "__main__": {"cli"},
    "cli": {"program", "lab", "observe"},
    "program": {"loop", "acceleration", "observe"},
    # The primitives know nothing of the loop: they run on any.
    # Of the loop only the stream writer, which runs on any, too.
    "acceleration": {"accelerated", "loop", "stock"},
    "accelerated": {"queues", "stock", "sync", "timeouts", "waits", "_tideloop"},
    "queues": {"earlier_queues", "stock", "_tideloop"},
    "earlier_queues": set(),
    # The toolkit knows of no loop of ours: it runs on any.
    "channels": {"queues", "_tideloop"},
    "selection": {"channels", "deadlines", "queues", "_tideloop"},
    # Imported when a store is given, and for types.
    "limits": {"redis_store", "shared_limits", "_tideloop"},
    "rates": {"redis_store", "shared_rates", "_tideloop"},
    "redis_store": {"deadlines", "durations"},
    "kept": {"deadlines", "redis_store"},
    "shared_limits": {"kept", "limits", "redis_store", "_tideloop"},
    "shared_rates": {"kept", "limits", "rates", "redis_store", "_tideloop"},
    "durations": set(),
    "changes": {"deadlines"},
    # Of pools: what is there, what is made, who is next, and its two faces. A lease names its lender for checkers only.
    "pool_options": {"durations"},
    "shelves": set(),
    "pool_upkeep": {"changes", "deadlines", "durations", "pool_options", "shelves"},
    "pool_housekeeping": {"pool_upkeep", "shelves"},
    "turns": {"shelves"},
    "lending": {"deadlines", "durations", "pool_housekeeping", "pool_options", "shelves", "turns"},
    "leases": {"lending", "shelves"},
    "pools": {"leases", "lending", "pool_options", "shelves", "_tideloop"},
    "keyed_pools": {"leases", "lending", "pool_options", "shelves", "_tideloop"},
    "breakers": {"durations", "_tideloop"},
    "deadlines": {"cancellation", "durations", "_tideloop"},
    "hedges": {"durations"},
    "retries": {"breakers", "durations"},
    "policies": {"accelerated", "breakers", "cancellation", "deadlines", "durations", "hedges", "retries", "_tideloop"},
    "shutdown": {"cancellation", "changes"},
    "lifespan": {"durations", "loop", "observe", "shutdown"},
    "answers": set(),
    "failures": set(),
    "per_loop": set(),
    # The last two when a store is given, and for types.
    "flights": {"deadlines", "failures", "per_loop", "redis_store", "shared_flights", "_tideloop"},
    "shared_flights": {"deadlines", "failures", "flights", "per_loop", "redis_store"},
    "caching": {"answers", "deadlines", "durations", "failures", "flights", "_tideloop"},
    # It is of streams' items, too: the name is one.
    "batching": {"answers", "deadlines", "durations", "failures", "per_loop", "streams", "_tideloop"},
    "checkpoints": {"_tideloop"},
    "worker_threads": {"limits"},
    "worker_processes": {"worker_threads"},
    "worker_interpreters": {"worker_processes", "worker_threads"},
    "offload": {"deadlines", "durations", "limits", "worker_interpreters", "worker_processes", "worker_threads"},
    "thread_iterators": {"channels", "limits", "offload", "worker_threads"},
    "background": {
        "accelerated",
        "cancellation",
        "changes",
        "deadlines",
        "durations",
        "limits",
        "shutdown",
        "_tideloop",
    },
    "captures": set(),
    "process_results": set(),
    "process_output": {"captures", "changes"},
    "processes": {"cancellation", "captures", "changes", "children", "durations", "process_output", "process_results"},
    "exits": set(),
    "starts": set(),
    "children": {"exits", "starts"},
    "process_runs": {
        "captures",
        "deadlines",
        "durations",
        "process_output",
        "process_results",
        "processes",
        "scopes",
    },
    "adaptive": {"limits", "_tideloop"},
    "sync": {"stock", "_tideloop"},
    "timeouts": {"stock", "_tideloop"},
    "waits": {"stock", "_tideloop"},
    "stock": set(),
    "qt": {"loop", "_tideloop"},
    # The toolkit: on any loop, by the public names of asyncio.
    "outcome": set(),
    "cancellation": {"_tideloop"},
    "scopes": {"accelerated", "cancellation"},
    "groups": {"accelerated", "cancellation", "outcome", "_tideloop"},
    "gathering": {"accelerated", "groups", "outcome", "_tideloop"},
    "graphs": {
        "cancellation",
        "deadlines",
        "durations",
        "failures",
        "groups",
        "limits",
        "observe",
        "offload",
        "outcome",
        "policies",
        "retries",
        "_tideloop",
    },
    "mapping": {"groups", "limits", "outcome", "pumps"},
    "pumps": {"cancellation"},
    "flows": {"mapping", "pumps"},
    "streams": {"accelerated", "flows", "groups", "mapping", "outcome", "pumps"},
    # For tests of programs: nothing of ours imports it.
    "testing": {"loop"},
}


def python_files():
    return sorted((ROOT / "python" / "tideloop").rglob("*.py"))


@pytest.mark.parametrize("path", python_files(), ids=lambda path: path.relative_to(ROOT / "python").as_posix())
def test_python_modules_import_in_the_allowed_directions(path):
    inside = path.relative_to(ROOT / "python/tideloop").with_suffix("").parts
    mine = inside[0]
    known = {p.relative_to(ROOT / "python/tideloop").with_suffix("").parts[0] for p in python_files()} | {"_tideloop"}
    used = {area(module) for module in imported(path) if module.split(".")[0] == "tideloop"}
    used = (used & known) - {mine}
    assert used <= ALLOWED[mine] | {mine}, f"{path.name} imports {sorted(used - ALLOWED[mine])}"
