"""What is wrong with limiters, pools, queues, caches and the like, from their ``stats()``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tideloop.observe.verdicts.finding import Finding
from tideloop.observe.verdicts.window import Gauge, Window, number
from tideloop.observe.wording import count, percent, plural, rate, seconds

__all__ = ["adaptive", "backgrounds", "batchers", "breakers", "caches", "limiters", "pools", "queues", "rates"]

LONG_WAIT = 1.0
"""Seconds that whoever comes now will wait: a problem; less is a warning."""
ASKED = 100
"""Lookups in the window, from which a rate of hits can be told."""
POOR = 0.2
"""Hits for each lookup, below which a cache costs more than it spares."""
GROWTH = 100
"""Items by which a queue without a limit must grow."""
BATCHES, ALONE = 50, 1.5
"""Batches in the window, and keys in each, below which nothing is batched."""


def limiters(window: Window) -> Iterator[Finding]:
    """Limiters whose permits are all taken while others wait."""
    for gauge in _limiters(window):
        waiting, after = gauge.both("waiting"), gauge.after
        evidence: dict[str, Any] = {
            "name": gauge.label,
            "waiting": after.get("waiting"),
            "in_use": after.get("in_use"),
            "capacity": after.get("capacity"),
        }
        if waiting and "granted" in after:
            granted = gauge.growth("granted") / window.seconds
            evidence["granted_per_second"] = granted
            yield _starving(gauge, granted, evidence) if granted else _held(gauge, window, evidence)
        elif waiting:
            yield Finding(
                "limiter", "warning", f"{_waits(gauge)} for the {gauge.label}.", "raise its capacity", evidence
            )
        if after.get("away"):
            yield _away(gauge)
        if lost := gauge.growth("lost"):
            yield Finding(
                "limiter",
                "warning",
                f"The {gauge.label} has lost {plural(int(lost), 'permit')}: their lease ended while they were in use.",
                "was the loop blocked for longer than a lease?",
                {**evidence, "lost": lost},
            )
        yield from _refused(gauge, ("timed_out", "gave up waiting"), ("rejected", "were refused"))


def _limiters(window: Window) -> Iterator[Gauge]:
    yield from window.gauges("limiter", "shared_limiter", "keyed_limiter")
    for gauge in window.gauges("resource_limits"):
        for resource, usage in gauge.after.items():
            was = gauge.before.get(resource)
            if isinstance(usage, Mapping) and isinstance(was, Mapping):
                yield Gauge("limiter", f"resource {resource!r} of {gauge.label}", was, usage)


def _held(gauge: Gauge, window: Window, evidence: dict[str, Any]) -> Finding:
    in_use = count(number(gauge.after.get("in_use")))
    return Finding(
        "limiter",
        "problem",
        f"{_waits(gauge)} for the {gauge.label}, and nobody has got a permit in {seconds(window.seconds)}: "
        f"the {in_use} in use are not given back.",
        'find who holds them ("tideloop tasks"), and give that work a timeout',
        evidence,
    )


def _starving(gauge: Gauge, granted: float, evidence: dict[str, Any]) -> Finding:
    wait = number(gauge.after["waiting"]) / granted
    in_use, capacity = count(number(gauge.after.get("in_use"))), count(number(gauge.after.get("capacity")))
    return Finding(
        "limiter",
        "problem" if wait >= LONG_WAIT else "warning",
        f"The {gauge.label} starves: {_waits(gauge)}, {in_use} of {capacity} permits are in use, and {rate(granted)} "
        f"come through, so that who comes now waits {seconds(wait)}.",
        "raise its capacity if what it protects takes more; else let fewer wait (queue_limit), or hold permits shorter",
        {**evidence, "wait": wait},
    )


def _away(gauge: Gauge) -> Finding:
    return Finding(
        "store",
        "problem",
        f"The {gauge.label} cannot reach its server.",
        "is the server up, and the network between?",
        {"name": gauge.label, "calls": gauge.after.get("calls")},
    )


def rates(window: Window) -> Iterator[Finding]:
    """Rate limits that are asked for more than they admit."""
    for gauge in window.gauges("rate", "shared_rate", "keyed_rate"):
        if gauge.both("waiting"):
            admitted = gauge.growth("admitted") / window.seconds if "admitted" in gauge.after else None
            wait = number(gauge.after["waiting"]) / admitted if admitted else None
            says = f"{_waits(gauge)} for the {gauge.label}"
            says += f", which admits {rate(admitted)}" if admitted is not None else ""
            says += f": who comes now waits {seconds(wait)}" if wait is not None else ""
            yield Finding(
                "rate",
                "problem" if admitted == 0 or (wait or 0.0) >= LONG_WAIT else "warning",
                f"{says}.",
                "ask for less, or for a higher rate where it is sold",
                {"name": gauge.label, "waiting": gauge.after["waiting"], "admitted_per_second": admitted, "wait": wait},
            )
        if penalties := gauge.growth("penalties"):
            yield Finding(
                "rate",
                "warning",
                f"The {gauge.label} was told to slow down {plural(int(penalties), 'time')} by the other side.",
                "lower the rate to what the other side says that it takes",
                {"name": gauge.label, "penalties": penalties},
            )
        if gauge.after.get("away"):
            yield _away(gauge)


def adaptive(window: Window) -> Iterator[Finding]:
    """Adaptive limits whose backend drops or slows down."""
    for gauge in window.gauges("adaptive"):
        waiting, dropped = gauge.both("waiting"), gauge.growth("dropped")
        if not (waiting or dropped):
            continue
        allowed = number(gauge.after.get("allowed"))
        says = f"The {gauge.label} lets {count(allowed)} run at once (why: {gauge.after.get('reason')})"
        says += f", {count(number(gauge.after['waiting']))} wait" if waiting else ""
        says += f", {count(dropped)} were dropped in {seconds(window.seconds)}" if dropped else ""
        yield Finding(
            "adaptive",
            "warning",
            f"{says}.",
            "what it protects is at its limit: make that faster or larger, or let in less",
            {"name": gauge.label, "waiting": gauge.after.get("waiting"), "dropped": dropped, "allowed": allowed},
        )


def pools(window: Window) -> Iterator[Finding]:
    """Pools that are too small, whose resources are not given back, or cannot be made."""
    for gauge in window.gauges("pool", "keyed_pool"):
        after = gauge.after
        size = sum(number(after.get(part)) for part in ("idle", "borrowed", "creating"))
        evidence = {"name": gauge.label, "waiting": after.get("waiting"), "size": size, "idle": after.get("idle")}
        timeouts = gauge.growth("timeouts")
        had_idle = gauge.before.get("idle") or after.get("idle")
        if (gauge.both("waiting") and not had_idle) or timeouts:
            lent = gauge.growth("lent") / window.seconds
            says = f"The {gauge.label} is too small: {count(number(after.get('borrowed')))} of {count(size)} are lent"
            says += f" and {count(number(after.get('waiting')))} wait" if after.get("waiting") else ""
            says += f", {plural(int(timeouts), 'borrower')} gave up in {seconds(window.seconds)}" if timeouts else ""
            says += f"; {rate(lent)} are lent" if lent else "; none was lent meanwhile, so that none came back"
            yield Finding(
                "pool",
                "problem" if timeouts or not lent else "warning",
                f"{says}.",
                "raise max if the other side allows it, or borrow for less time"
                if lent
                else "find who keeps what was lent (leak_after= tells)",
                {**evidence, "timeouts": timeouts, "lent_per_second": lent},
            )
        for name, words, remedy in (
            ("leaked", "loans are longer than leak_after allows", "the log says where they were borrowed"),
            ("failed", "resources could not be made", "is what it connects to there?"),
        ):
            if grew := gauge.growth(name):
                yield Finding(
                    "pool",
                    "problem",
                    f"The {gauge.label}: {count(grew)} {words}, in {seconds(window.seconds)}.",
                    remedy,
                    {**evidence, name: grew},
                )


def queues(window: Window) -> Iterator[Finding]:
    """Queues and channels that fill faster than they are emptied."""
    for gauge in window.gauges("queue", "channel"):
        before, after = gauge.before, gauge.after
        size, most = number(after.get("size")), number(after.get("maxsize"))
        came = gauge.growth("put" if "put" in after else "sent")
        went = max(came - (size - number(before.get("size"))), 0)
        speeds = f"{rate(came / window.seconds)} come, {rate(went / window.seconds)} go"
        evidence = {
            "name": gauge.label,
            "size": size,
            "maxsize": most,
            "in_per_second": came / window.seconds,
            "out_per_second": went / window.seconds,
        }
        writers = number(after.get("putters", after.get("waiting_senders")))
        if most > 0 and gauge.both("size") >= most:
            yield Finding(
                "queue",
                "problem" if not went else "warning",
                f"The {gauge.label} is full: {count(size)} of {count(most)} items, {speeds}"
                + (f", and {plural(int(writers), 'writer waits', 'writers wait')} for room." if writers else "."),
                "more or faster readers; a larger queue only fills later"
                if went
                else "nobody reads: has the reader died?",
                {**evidence, "writers": writers},
            )
        elif most <= 0 and size - number(before.get("size")) >= GROWTH:
            yield Finding(
                "queue",
                "warning",
                f"The {gauge.label} grows without a limit: {count(size)} items, "
                f"{count(size - number(before.get('size')))} more than {seconds(window.seconds)} ago ({speeds}).",
                "give it a maxsize, so that writers wait, or add readers",
                evidence,
            )


def caches(window: Window) -> Iterator[Finding]:
    """Caches that hardly ever have what they are asked for, or cannot load it."""
    for gauge in window.gauges("cache"):
        hits, misses = gauge.growth("hits"), gauge.growth("misses")
        evidence = {"name": gauge.label, "hits": hits, "misses": misses, "entries": gauge.after.get("entries")}
        if hits + misses >= ASKED and hits < POOR * (hits + misses):
            evicted, expired = gauge.growth("evicted"), gauge.growth("expired")
            why, remedy = "its keys hardly ever come again", "cache something that is asked for more than once"
            if evicted >= misses / 2:
                why, remedy = f"{count(evicted)} entries were driven out", "raise its maxsize"
            elif expired >= misses / 2:
                why, remedy = (
                    f"{count(expired)} entries were too old",
                    "raise its ttl, or serve stale entries meanwhile",
                )
            yield Finding(
                "cache",
                "warning",
                f"The {gauge.label} had {percent(hits / (hits + misses))} of what it was asked for "
                f"({count(hits + misses)} lookups in {seconds(window.seconds)}): {why}.",
                remedy,
                {**evidence, "evicted": evicted, "expired": expired},
            )
        failed, loads = gauge.growth("failed"), gauge.growth("loads")
        if failed and failed >= loads / 2:
            yield Finding(
                "cache",
                "problem",
                f"The {gauge.label}: {count(failed)} loads of {count(max(loads, failed))} failed "
                f"in {seconds(window.seconds)}.",
                "is what it loads from there?",
                {**evidence, "failed": failed, "loads": loads},
            )


def batchers(window: Window) -> Iterator[Finding]:
    """Batchers whose batches fail, or hold one key each."""
    for gauge in window.gauges("batcher"):
        batches, keys, failed = (gauge.growth(name) for name in ("batches", "keys", "failed"))
        evidence = {"name": gauge.label, "batches": batches, "keys": keys, "failed": failed}
        if failed:
            yield Finding(
                "batcher",
                "problem" if failed >= batches / 2 else "warning",
                f"The {gauge.label}: {count(failed)} batches of {count(max(batches, failed))} failed "
                f"in {seconds(window.seconds)}.",
                "the exception is told to every caller; a smaller max_size= loses less",
                evidence,
            )
        elif batches >= BATCHES and keys < ALONE * batches:
            yield Finding(
                "batcher",
                "warning",
                f"The {gauge.label} batches nothing: {count(keys)} keys in {count(batches)} batches.",
                "let it wait a little longer for more keys, or call without it",
                evidence,
            )


def backgrounds(window: Window) -> Iterator[Finding]:
    """Background tasks that fail, are begun again and again, or wait for a place."""
    for gauge in window.gauges("background"):
        yield from _refused(
            gauge, ("failed", "tasks failed"), ("restarts", "tasks were begun again"), kind="background"
        )
        if gauge.both("waiting"):
            yield Finding(
                "background",
                "warning",
                f"{_waits(gauge)} for a place in the {gauge.label}, {count(number(gauge.after.get('running')))} run.",
                "raise its limit, or spawn less",
                {"name": gauge.label, "waiting": gauge.after.get("waiting")},
            )


def breakers(window: Window) -> Iterator[Finding]:
    """Breakers that are open, and policies whose calls fail for good."""
    for gauge in window.gauges("breaker"):
        state = gauge.after.get("state")
        if state not in ("open", "half-open"):
            continue
        refused = gauge.growth("refused")
        yield Finding(
            "breaker",
            "problem",
            f"The {gauge.label} is {state}: {count(refused)} calls were refused in {seconds(window.seconds)}.",
            "what it calls has failed; see why in the log",
            {"name": gauge.label, "state": state, "refused": refused},
        )
    for gauge in window.gauges("policy"):
        yield from _refused(
            gauge, ("exhausted", "calls failed for good"), ("timeouts", "attempts took too long"), kind="policy"
        )


def _refused(gauge: Gauge, *counters: tuple[str, str], kind: str = "limiter") -> Iterator[Finding]:
    for name, words in counters:
        if grew := gauge.growth(name):
            yield Finding(
                kind,
                "warning",
                f"The {gauge.label}: {count(grew)} {words} while it was looked at.",
                "the callers have got an exception: is that what they expect?",
                {"name": gauge.label, name: grew},
            )


def _waits(gauge: Gauge) -> str:
    return plural(int(number(gauge.after.get("waiting"))), "waits", "wait")
