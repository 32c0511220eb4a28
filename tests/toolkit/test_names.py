"""What the toolkit's modules offer is importable from the package itself."""

from __future__ import annotations

import importlib

import pytest
import tideloop

MODULES = (
    "adaptive",
    "background",
    "batching",
    "caching",
    "channels",
    "gathering",
    "groups",
    "keyed_pools",
    "limits",
    "offload",
    "outcome",
    "policies",
    "pools",
    "processes",
    "queues",
    "rates",
    "scopes",
    "selection",
    "streams",
    "sync",
    "thread_iterators",
)


@pytest.mark.parametrize("module", MODULES)
def test_each_public_name_is_the_packages(module):
    home = importlib.import_module(f"tideloop.{module}")
    assert home.__all__
    for name in home.__all__:
        assert name in tideloop.__all__
        if (module, name) != ("streams", "batched"):  # which the package's is for streams, too
            assert getattr(tideloop, name) is getattr(home, name)
