"""`kind`: a loop that can have a virtual clock, asyncio's and ours, as far as `--backend` asks for them."""

import pytest

from tests.toolkit.harness import KINDS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        wanted = metafunc.config.getoption("backend") or KINDS
        metafunc.parametrize("kind", [kind for kind in KINDS if kind in wanted])
