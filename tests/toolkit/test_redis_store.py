"""What of shared limits needs no server, and no package redis. The rest is in tests/real/test_shared_*.py."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import tideloop


def test_without_the_package_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "redis", None)
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(ImportError, match=r"pip install 'tideloop\[redis\]'"):
        tideloop.RedisStore("redis://127.0.0.1/0")


def test_nothing_of_it_is_imported_unasked():
    made = "tideloop.Limiter(1); tideloop.RateLimiter(tideloop.rate(1)); tideloop.SingleFlight()"
    program = f"import sys, tideloop; {made}; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=20
    ).stdout.split()
    unwanted = [
        "redis",
        *(f"tideloop.{name}" for name in ("redis_store", "shared_flights", "shared_limits", "shared_rates")),
    ]
    assert not set(unwanted) & set(modules)


def test_a_store_is_a_store():
    for make in (tideloop.Limiter, tideloop.RateLimiter):
        given = 1 if make is tideloop.Limiter else tideloop.rate(1)
        with pytest.raises(TypeError, match="expected a RedisStore"):
            make(given, store="redis://127.0.0.1/0", name="x")
    with pytest.raises(TypeError, match="expected a RedisStore"):
        tideloop.SingleFlight(store="redis://127.0.0.1/0", name="x")
    with pytest.raises(TypeError, match="a codec is for a store"):
        tideloop.SingleFlight(codec=json)
