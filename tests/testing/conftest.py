"""`plugged`: a pytest of its own, with the plugin as an installed tideloop brings it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import tideloop

# A pytest inside of this one forgets what it has imported. What several of them use has to be there before.
import tideloop.loop
import tideloop.testing.attacks
import tideloop.testing.cancelling
import tideloop.testing.checks
import tideloop.testing.plugin
import tideloop.testing.running

KINDS = ("asyncio", "tideloop")
ROOT = Path(__file__).parents[2]
PACKAGE = str(Path(tideloop.__file__).parent.parent)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`kind`: the loop that the tests inside run on, as far as `--backend` asks for it."""
    if "kind" in metafunc.fixturenames:
        wanted = metafunc.config.getoption("backend") or KINDS
        metafunc.parametrize("kind", [kind for kind in KINDS if kind in wanted])


@pytest.fixture
def plugged(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder with the entry points of pyproject.toml, so that it does not matter what is installed."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    info = pytester.mkdir("installed") / "tideloop_here-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tideloop-here\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[pytest11]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()))
    (info / "RECORD").write_text("tideloop/__init__.py,,\ntideloop/testing/plugin.py,,\n")
    pytester.syspathinsert(info.parent)
    monkeypatch.setenv("PYTHONPATH", f"{info.parent}:{PACKAGE}")
    pytester.makeini("[pytest]\nfilterwarnings = error\naddopts = -p no:asyncio -p no:anyio -p no:cacheprovider\n")
    return pytester
