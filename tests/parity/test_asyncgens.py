"""Asynchronous generators: the loop finalises those that are dropped, and closes those that are left."""

from __future__ import annotations

import gc
import threading

import pytest

from tests.peers import turns


class Expected(Exception):
    pass


async def numbers(log):
    try:
        for i in range(10):
            yield i
    finally:
        log.append("closed")


async def test_a_dropped_one_is_closed(loop):
    log = []
    generator = numbers(log)
    assert await anext(generator) == 0
    del generator
    gc.collect()
    await turns()
    assert log == ["closed"]


async def test_one_left_by_break_is_closed(loop):
    log = []
    async for number in numbers(log):
        if number == 2:
            break
    gc.collect()
    await turns()
    assert log == ["closed"]


async def test_one_dropped_by_another_thread_is_closed_by_the_loop(loop):
    log = []
    threads = []

    async def generator():
        try:
            yield
        finally:
            threads.append(threading.get_ident())
            log.append("closed")

    box = [generator()]
    await anext(box[0])
    await loop.run_in_executor(None, box.clear)
    gc.collect()
    while not log:
        await turns()
    assert threads == [threading.get_ident()]
    await loop.shutdown_default_executor()


def test_shutdown_closes_those_that_are_left(loop):
    log = []
    left = [numbers(log) for _ in range(3)]

    async def main():
        for generator in left:
            await anext(generator)

    loop.run_until_complete(main())
    assert log == []
    loop.run_until_complete(loop.shutdown_asyncgens())
    assert log == ["closed"] * 3


def test_shutdown_without_generators(loop):
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_asyncgens())


def test_shutdown_reports_one_that_fails_and_closes_the_others(loop, handled):
    log = []

    async def failing():
        try:
            yield
        finally:
            raise Expected

    left = [failing(), numbers(log)]

    async def main():
        for generator in left:
            await anext(generator)

    loop.run_until_complete(main())
    loop.run_until_complete(loop.shutdown_asyncgens())
    assert log == ["closed"]
    (context,) = handled
    assert "an error occurred during closing of asynchronous generator" in context["message"]
    assert isinstance(context["exception"], Expected)
    assert context["asyncgen"] is left[0]


def test_after_shutdown_a_new_one_is_warned_about(loop):
    async def main():
        generator = numbers([])
        with pytest.warns(ResourceWarning, match="was scheduled after loop.shutdown_asyncgens"):
            await anext(generator)
        await generator.aclose()

    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(main())
