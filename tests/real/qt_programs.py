"""Qt programs with tideloop as their guest; `python -m tests.real.qt_programs NAME BINDING` runs one of them.

Each is a process of its own, so that Qt never enters the process that runs the tests. It ends with code 0 and
has printed nothing if what it asserts holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import os
import signal
import sys
import threading
import warnings
import weakref

import tideloop
from tideloop.loop.hosting import Guest

PROGRAMS = {}


def program(function):
    """Makes a function a program that can be named on the command line."""
    PROGRAMS[function.__name__] = function
    return function


def load(binding):
    """The modules of a Qt binding, as globals, and an application."""
    global QtCore, QtWidgets, app
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the bindings' own, while they are imported
        QtCore = importlib.import_module(f"{binding}.QtCore")
        QtWidgets = importlib.import_module(f"{binding}.QtWidgets")
    app = QtWidgets.QApplication(["test"])


@contextlib.contextmanager
def raises(kind, text=""):
    try:
        yield
    except kind as error:
        if text not in str(error):
            raise
    else:
        raise AssertionError(f"no {kind.__name__}")


@contextlib.asynccontextmanager
async def echo_server():
    """The address of a server on our loop; at the end all its connections are over."""

    async def answer(reader, writer):
        answers.add(asyncio.current_task())
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    answers = set()
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()
        await asyncio.gather(*answers)


async def talk(address, number):
    reader, writer = await asyncio.open_connection(*address)
    for length in (1, 1000, 300_000):
        message = bytes([number]) * length
        writer.write(message)
        assert await reader.readexactly(length) == message
    writer.close()
    await writer.wait_closed()


@contextlib.contextmanager
def counted_calls():
    """A list that grows with every call of Qt's into a guest that is started meanwhile."""
    calls, originals = [], {}
    for owner, name in ((Guest, "step"), (tideloop.qt._NotifierWait, "_activated")):
        original = originals[owner, name] = getattr(owner, name)

        def counted(self, *arguments, original=original):
            calls.append(original)
            return original(self, *arguments)

        setattr(owner, name, counted)
    try:
        yield calls
    finally:
        for (owner, name), original in originals.items():
            setattr(owner, name, original)


def later(milliseconds, callback):
    QtCore.QTimer.singleShot(milliseconds, callback)


# --- both loops live ----------------------------------------------------------------------------------


@program
def a_widgets_signal_starts_a_task():
    async def work(number):
        assert asyncio.get_running_loop() is loop
        await asyncio.sleep(0.001)
        label.setText(f"{label.text()}{number}")
        if number == 3:
            done.set()

    async def main():
        nonlocal loop
        loop = asyncio.get_running_loop()
        later(0, button.click)
        await done.wait()
        return label.text()

    def clicked():
        # The host's own code: no loop runs here, but one can be scheduled on.
        assert asyncio._get_running_loop() is None
        numbers.append(len(numbers))
        tasks.append(loop.create_task(work(numbers[-1])))
        if len(numbers) < 4:
            later(0, button.click)

    loop, tasks, numbers, done = None, [], [], asyncio.Event()
    window = QtWidgets.QWidget()
    layout = QtWidgets.QVBoxLayout(window)
    button, label = QtWidgets.QPushButton("go"), QtWidgets.QLabel("")
    layout.addWidget(button)
    layout.addWidget(label)
    button.clicked.connect(clicked)
    window.show()
    assert tideloop.qt.run(main, app) == "0123"


@program
def sockets_while_a_timer_ticks():
    ticks = []
    timer = QtCore.QTimer()
    timer.timeout.connect(lambda: ticks.append(asyncio._get_running_loop()))
    timer.start(0)

    async def main():
        async with echo_server() as address:
            await asyncio.gather(*(talk(address, number) for number in range(50)))
        return "talked"

    assert tideloop.qt.run(main(), app) == "talked"
    assert len(ticks) > 3
    assert set(ticks) == {None}


@program
def a_busy_loop_leaves_qt_its_turns():
    ticks = 0

    def tick():
        nonlocal ticks
        ticks += 1
        if ticks == 20:
            enough.append(True)

    timer, enough = QtCore.QTimer(), []
    timer.timeout.connect(tick)
    timer.start(0)

    async def main():
        spins = 0
        while not enough:
            spins += 1
            await asyncio.sleep(0)
        return spins

    assert tideloop.qt.run(main, app) > 10


@program
def an_idle_loop_does_nothing():
    """Neither loop has anything to do for a while: the process must sleep, not spin."""

    async def main():
        await asyncio.sleep(0)
        before = len(calls)
        await asyncio.sleep(0.1)
        return len(calls) - before

    with counted_calls() as calls:
        # The timer's own step, and perhaps one that came early; a notifier that spins makes thousands.
        assert tideloop.qt.run(main, app) < 10


@program
def timers_threads_and_subprocesses():
    async def main():
        loop = asyncio.get_running_loop()
        for delay in (0.0005, 0.003, 0.01):
            started = loop.time()
            await asyncio.sleep(delay)
            assert loop.time() - started >= delay
        assert await asyncio.to_thread(sum, range(100)) == 4950
        event = asyncio.Event()
        thread = threading.Thread(target=loop.call_soon_threadsafe, args=(event.set,))
        thread.start()
        await event.wait()
        thread.join()
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "print(input()[::-1])", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await child.communicate(b"guest\n")
        assert (out, child.returncode) == (b"tseug\n", 0)
        with raises(TimeoutError):
            async with asyncio.timeout(0.005):
                await asyncio.Event().wait()

    tideloop.qt.run(main, app)


@program
def a_dialog_inside_a_task_stops_our_loop_but_not_qt():
    order = []

    async def other():
        order.append("other task")

    async def main():
        task = asyncio.create_task(other())
        dialog = QtWidgets.QDialog()
        later(100, dialog.accept)
        later(10, lambda: order.append("qt timer"))
        before = len(calls)
        code = dialog.exec()
        order.append("dialog")
        assert len(calls) - before < 10, "the notifier spins"
        await task
        return code

    window = QtWidgets.QWidget()  # so that the dialog is not the last window, whose end is the application's
    window.show()
    with counted_calls() as calls:
        assert tideloop.qt.run(main, app) == 1
    assert order == ["qt timer", "dialog", "other task"]


@program
def a_dialog_awaited_stops_nothing():
    order = []

    async def other():
        order.append("other task")

    async def main():
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(other())
        dialog, finished = QtWidgets.QDialog(), loop.create_future()
        dialog.finished.connect(finished.set_result)
        dialog.open()
        later(5, dialog.accept)
        code = await finished
        order.append("dialog")
        await task
        return code

    window = QtWidgets.QWidget()
    window.show()
    assert tideloop.qt.run(main, app) == 1
    assert order == ["other task", "dialog"]


@program
def qts_own_nested_loop_runs_our_tasks():
    """A slot that runs a loop of Qt's: our turns go on under it."""
    order = []

    async def main():
        loop = asyncio.get_running_loop()
        inner_done = loop.create_future()

        def slot():
            nested = QtCore.QEventLoop()
            inner_done.add_done_callback(lambda _: (order.append("task"), nested.quit()))
            loop.call_later(0.001, inner_done.set_result, None)
            nested.exec()
            order.append("nested loop over")
            left.set()

        left = asyncio.Event()
        later(0, slot)
        await left.wait()

    # Event.set() is called between two steps, from Qt's code.
    tideloop.qt.run(main, app)
    assert order == ["task", "nested loop over"]


@program
def guests_of_an_application_that_runs():
    """Started from slots, several at once, each with a loop of its own."""
    outcomes = []

    async def main(number):
        async with echo_server() as address:
            await talk(address, number)
        return number, id(asyncio.get_running_loop())

    def done(outcome):
        outcomes.append(outcome.result())
        if len(outcomes) == 5:
            app.exit(7)

    def slot():
        # Nobody keeps the guest: it lives until it ends all the same.
        guests.append(weakref.ref(tideloop.qt.guest(done, main(len(guests)))))
        gc.collect()
        if len(guests) < 5:
            later(0, slot)

    guests = []
    later(0, slot)
    assert app.exec() == 7
    assert {number for number, _ in outcomes} == set(range(5))
    assert len({loop for _, loop in outcomes}) == 5
    gc.collect()
    assert [guest for guest in guests if guest() is not None] == []


# --- the end --------------------------------------------------------------------------------------------


@program
def closing_the_last_window_cancels_main():
    order = []
    window = QtWidgets.QWidget()
    app.aboutToQuit.connect(lambda: order.append("about to quit"))

    async def main():
        window.show()
        later(0, window.close)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            order.append("cancelled")
            # While main ends, Qt's timers and our sockets still work.
            ticked = asyncio.get_running_loop().create_future()
            later(1, lambda: ticked.set_result(None))
            await ticked
            async with echo_server() as address:
                await talk(address, 7)
            order.append("cleaned")
            raise

    assert tideloop.qt.run(main, app) == 0
    assert order == ["about to quit", "cancelled", "cleaned"]


@program
def the_exit_code_is_the_applications():
    async def forever():
        later(0, lambda: app.exit(3))
        await asyncio.Event().wait()

    async def swallow():
        later(0, lambda: app.exit(4))
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "main's own value, which nobody waits for"

    async def fail():
        later(0, lambda: app.exit(5))
        try:
            await asyncio.Event().wait()
        finally:
            raise LookupError("while ending")

    assert tideloop.qt.run(forever, app) == 3
    assert tideloop.qt.run(swallow, app) == 4
    with raises(LookupError, "while ending"):
        tideloop.qt.run(fail, app)


@program
def quitting_again_while_main_ends():
    async def main():
        later(0, app.quit)
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(3):
                app.exit(9)
                await asyncio.sleep(0.001)

    assert tideloop.qt.run(main, app) == 0

    # The application can be run again afterwards, and so can a nested loop.
    async def again():
        await asyncio.sleep(0)
        return "again"

    assert tideloop.qt.run(again, app) == "again"
    nested = QtCore.QEventLoop()
    later(0, nested.quit)
    nested.exec()


@program
def main_ends_first():
    async def value():
        return {"any": "value"}

    async def fail():
        await asyncio.sleep(0)
        raise LookupError("main's own")

    async def leave():
        sys.exit(7)

    async def cancel_itself():
        asyncio.current_task().cancel()
        await asyncio.sleep(0)

    assert tideloop.qt.run(value, app) == {"any": "value"}
    assert tideloop.qt.run(value(), app) == {"any": "value"}
    assert tideloop.qt.run(value()) == {"any": "value"}
    with raises(LookupError, "main's own"):
        tideloop.qt.run(fail, app)
    with raises(SystemExit, "7"):
        tideloop.qt.run(leave, app)
    with raises(asyncio.CancelledError):
        tideloop.qt.run(cancel_itself, app)


@program
def what_main_leaves_is_wound_down():
    ended = []

    async def forever():
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.001)
            ended.append("task")

    async def numbers():
        try:
            yield 1
        finally:
            await asyncio.sleep(0.001)
            ended.append("generator")

    async def main():
        kept.append(asyncio.create_task(forever()))
        kept.append(numbers())
        await anext(kept[-1])
        await asyncio.to_thread(ended.append, "thread")

    kept = []
    tideloop.qt.run(main, app)
    assert ended == ["thread", "task", "generator"]
    assert threading.active_count() == 1


@program
def ctrl_c_cancels_main():
    cleaned = []

    async def main():
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.001)
            cleaned.append(True)

    with raises(KeyboardInterrupt):
        tideloop.qt.run(main, app)
    assert cleaned == [True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@program
def a_second_ctrl_c_winds_down():
    cleaned = []

    async def main():
        for _ in range(2):
            # In Qt's own code, between two steps; inside of a step it would hit main wherever it is.
            later(0, lambda: signal.raise_signal(signal.SIGINT))
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        cleaned.append(True)  # the second cancellation was that of winding down

    with raises(KeyboardInterrupt):
        tideloop.qt.run(main, app)
    assert cleaned == [True]


@program
def what_cannot_be_run_is_refused():
    async def main():
        pass

    with raises(TypeError, "expected a QCoreApplication"):
        tideloop.qt.run(main(), 42)
    with raises(ValueError, "expected a coroutine"):
        tideloop.qt.run(42, app)

    async def inside():
        with raises(RuntimeError, "cannot be called from a running event loop"):
            tideloop.qt.run(main(), app)
        with raises(RuntimeError, "guest of another one"):
            asyncio.get_running_loop().run_forever()

    tideloop.qt.run(inside, app)

    async def from_a_slot():
        loop = asyncio.get_running_loop()
        refused = loop.create_future()

        def slot():
            with raises(RuntimeError, "use tideloop.qt.guest() instead"):
                tideloop.qt.run(main(), app)
            refused.set_result(None)

        later(0, slot)
        await refused

    tideloop.qt.run(from_a_slot, app)
    failed = []

    def elsewhere():
        with raises(RuntimeError, "in the thread of the application"):
            tideloop.qt.run(main(), app)
        failed.append(True)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert failed == [True]


# --- leaks ---------------------------------------------------------------------------------------------


def open_fds():
    return len(os.listdir("/proc/self/fd"))


def qt_objects():
    """How many notifiers, timers and receivers of posted events live."""
    gc.collect()
    kinds = (QtCore.QSocketNotifier, QtCore.QTimer)
    return sum(isinstance(found, kinds) or type(found).__name__ == "Receiver" for found in gc.get_objects())


@program
def fifty_runs_leave_nothing():
    loops = []

    async def main():
        loops.append(weakref.ref(asyncio.get_running_loop()))
        async with echo_server() as address:
            await talk(address, 7)
        if len(loops) % 2:
            app.quit()
            await asyncio.Event().wait()
        await asyncio.sleep(0.0001)

    for number in range(51):
        if number == 1:
            gc.collect()
            fds, threads, objects, watched = open_fds(), threading.active_count(), qt_objects(), len(gc.get_objects())
        tideloop.qt.run(main, app)
    gc.collect()
    assert open_fds() == fds
    assert threading.active_count() == threads
    assert qt_objects() == objects == 0
    assert [loop for loop in loops if loop() is not None] == []
    assert len(gc.get_objects()) - watched < 500, len(gc.get_objects()) - watched


if __name__ == "__main__":
    name, binding = sys.argv[1:]
    load(binding)
    PROGRAMS[name]()
