"""Whether the watchdog has had this thread write its stack: what a block that is made for a test waits for.

On a busy machine the watchdog may get no processor for as long as any fixed time.
"""

import os
import time

LIMIT = 15.0
"""Seconds after which a test gives up waiting; what it asserts says then what is missing."""


def _file():
    """The descriptor that stacks are written to; None: it is not known here."""
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:
        return None
    for name in names:
        try:
            if "tideloop-stack" in os.readlink(f"/proc/self/fd/{name}"):
                return int(name)
        except OSError:
            continue
    return None


def forget():
    """What was captured before counts no more."""
    file = _file()
    if file is not None:
        os.ftruncate(file, 0)


def is_there():
    """Whether a stack was captured since; where this is not known it is."""
    file = _file()
    return file is None or os.fstat(file).st_size > 0


def block(at_least, bit, clock=time.perf_counter):
    """Call `bit` until so many seconds have passed by a clock and a stack was captured, and for half as long again."""
    forget()
    began, limit = clock(), time.monotonic() + LIMIT
    while clock() - began < at_least:
        bit()
    while not is_there() and time.monotonic() < limit:
        bit()
    end = clock() + at_least / 2
    while clock() < end:
        bit()


def standing():
    """Nanoseconds for which this thread has run, and has waited for a processor."""
    with open("/proc/thread-self/schedstat") as file:
        ran, waited, _ = map(int, file.read().split())
    return ran, waited
