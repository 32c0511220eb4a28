"""The rules of the Chrome trace event format, which a trace has to keep to be shown as it is meant.

Written after the document "Trace Event Format" (JSON object form): which fields each phase has, that slices of a track
nest, and that both ends of a flow are in a slice.
"""

import bisect
import collections
import itertools
import json
import numbers

NAMES = {"process_name", "thread_name"}
COMMON = {"ph", "name", "pid", "tid"}
FIELDS = {
    "M": COMMON | {"args"},
    "X": COMMON | {"ts", "dur", "args"},
    "i": COMMON | {"ts", "s", "args"},
    "s": COMMON | {"ts", "cat", "id"},
    "f": COMMON | {"ts", "cat", "id", "bp"},
}
OPTIONAL = {"args"}


def _time(event, field):
    value = event[field]
    assert isinstance(value, numbers.Real), event
    assert not isinstance(value, bool), event
    assert value >= 0, event
    # In nanoseconds, which are whole: microseconds have three decimals.
    return round(value * 1_000)


def _constant(name):
    raise AssertionError(f"{name} is no JSON")


def check(document):
    """The events of a trace that keeps the rules, by phase; an AssertionError tells the one that does not."""
    trace = json.loads(document, parse_constant=_constant)
    assert set(trace) == {"displayTimeUnit", "traceEvents"}
    assert trace["displayTimeUnit"] in ("ms", "ns")
    by_phase = collections.defaultdict(list)
    slices = collections.defaultdict(list)
    for event in trace["traceEvents"]:
        phase = event["ph"]
        assert phase in FIELDS, event
        assert FIELDS[phase] - OPTIONAL <= set(event) <= FIELDS[phase], event
        assert all(type(event[field]) is int and event[field] >= 0 for field in ("pid", "tid")), event
        assert isinstance(event["name"], str), event
        assert event["name"], event
        assert isinstance(event.get("args", {}), dict), event
        by_phase[phase].append(event)
        if phase == "X":
            began = _time(event, "ts")
            slices[event["pid"], event["tid"]].append((began, began + _time(event, "dur"), event))
    _check_names(by_phase["M"], slices)
    for track in slices.values():
        _check_nesting(track)
    for event in by_phase["i"]:
        _time(event, "ts")
        assert event["s"] in ("g", "p", "t"), event
    _check_flows(by_phase["s"], by_phase["f"], slices)
    return by_phase


def _check_names(meta, slices):
    named = collections.Counter()
    for event in meta:
        assert event["name"] in NAMES, event
        assert set(event["args"]) == {"name"}, event
        assert isinstance(event["args"]["name"], str), event
        named[event["name"], event["pid"], event["tid"]] += 1
    assert set(named.values()) <= {1}, named
    # Every track has a name, and so has the process.
    for pid, tid in slices:
        assert named["thread_name", pid, tid] == 1
    assert len({pid for pid, _ in slices}) <= sum(name == "process_name" for name, _, _ in named) == 1


def _check_nesting(track):
    """Slices of one track follow each other, or one is within the other."""
    around = []
    # They may be written in any order; of two that begin together the longer one is around the other.
    for began, ended, event in sorted(track, key=lambda each: (each[0], -each[1])):
        while around and around[-1] <= began:
            around.pop()
        assert not around or ended <= around[-1], event
        if ended > began:
            around.append(ended)


def _check_flows(begins, ends, slices):
    ids = [event["id"] for event in begins]
    assert len(set(ids)) == len(ids)
    starts = {event["id"]: event for event in begins}
    assert {event["id"] for event in ends} == set(starts)
    for event in ends:
        start = starts[event["id"]]
        assert event["bp"] == "e", event
        assert (event["cat"], event["name"]) == (start["cat"], start["name"]), event
        assert _time(start, "ts") <= _time(event, "ts"), event
    tracks = {key: _covered(track) for key, track in slices.items()}
    for event in (*begins, *ends):
        at = _time(event, "ts")
        began, ended = tracks[event["pid"], event["tid"]]
        before = bisect.bisect_right(began, at)
        assert before, event
        assert at <= ended[before - 1], event


def _covered(track):
    """When the slices of a track begin, in order, and until when at most those that have begun by then last."""
    spans = sorted((began, ended) for began, ended, _ in track)
    return [began for began, _ in spans], list(itertools.accumulate((ended for _, ended in spans), max))
