"""Fixtures for those who ask observed processes.

tideloop is imported by the fixtures: pytest reads this before it is configured, so before the watchdog is turned off.
"""

import os

import pytest


@pytest.fixture
def folder(monkeypatch):
    """Where the sockets of this test's processes are, and no others."""
    from tideloop.observe import client

    from tests.observe import answering

    with answering.runtime() as folder:
        monkeypatch.setattr(client, "_folders", lambda user: iter([folder / "tideloop"]))
        yield folder


@pytest.fixture
def answers():
    """What the process of `process` says; may be changed while it runs."""
    from tests.observe import documents

    return {
        "/v1/loops": documents.loops(),
        "/v1/blocks": documents.blocks(),
        "/v1/tasks": documents.tasks(),
        "/v1/gauges": documents.gauges(),
    }


@pytest.fixture
def process(folder, answers):
    """A process that can be asked: the number of this one, so that there is such a process."""
    from tests.observe import answering

    with answering.serving(folder, os.getpid(), answers) as server:
        yield server
