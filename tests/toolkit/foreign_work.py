"""What the tests have done in other processes and interpreters, which import this module: nothing of tideloop's."""

from __future__ import annotations

import os
import signal
import time


def sleep_for_ever(path):
    """Says where it is, and stays."""
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(3600)


def pause(seconds):
    time.sleep(seconds)
    return os.getpid()


def kill_myself(number=None):
    if number is None:
        os._exit(3)
    os.kill(os.getpid(), number)


def leave_a_child_that_holds_the_pipe():
    """A child that outlives this process and has copies of what it had open."""
    if not os.fork():
        time.sleep(5)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


def fail(words):
    raise LookupError(words)


class Proud(Exception):
    """Pickled, but not unpickled: it wants two arguments."""

    def __init__(self, one, two):
        super().__init__(one)


def fail_proudly():
    raise Proud(1, 2)


def give_a_lambda():
    return lambda: None
