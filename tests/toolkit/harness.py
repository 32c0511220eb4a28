"""What every primitive of the toolkit goes through. A primitive plugs in as data:

    SEMAPHORE = Permits("Semaphore", lambda: Semaphore(2), use=visit, idle=all_back, limit=2)
    QUEUE = Pipe("Queue", lambda: Queue(2), put=Queue.put, get=Queue.get, left=drain)

    cancel_everywhere(kind, permits_scenario(SEMAPHORE))    again and again, cancelled at the n-th suspension
    interleave(kind, SEMAPHORE, seed)                       a random schedule with random cancellations
    close_loop(kind, SEMAPHORE)                             a loop is closed under those who wait
    close_in_the_turn_of_a_grant(kind, SEMAPHORE)           a loop is closed under those who were let in but did not go
    share(kind, SEMAPHORE)                                  several loops in as many threads
    fork_with_waiters(kind, SEMAPHORE)                      a forked child uses it

Whatever breaks raises `Broken` (an invariant) or `Stuck` (somebody waits for ever, whom the message lists). Loops
run on the virtual clock of `tideloop.testing`, so nothing here takes real time, and a seed is a seed. uvloop
cannot have that clock; the two that use real loops, `share` and `close_loop`, run there too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

import tideloop
from tideloop.testing import new_virtual_loop
from tideloop.testing.steps import Observer, driven

from tests import backends

KINDS = ("asyncio", "tideloop")
"""The loops that can have a virtual clock."""

PATIENCE = 1e6
"""Virtual seconds after which whoever still waits is stuck."""

REAL_PATIENCE = 10.0
"""Seconds, where threads or processes are involved."""


class Broken(AssertionError):
    """A primitive broke a promise."""


class Stuck(Broken):
    """Somebody waits for what never comes."""


def demand(condition: bool, complaint: str) -> None:
    if not condition:
        raise Broken(complaint)


# --- what plugs in -------------------------------------------------------------------------------

Inside = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Permits:
    """A primitive that lets so many in at a time.

    use: enters, awaits what it is given, leaves, whatever happens inside. idle: raises if not all is as it was at
    first: nobody inside, nobody waiting, all permits there. limit: who may be inside at once; None for no bound.
    fifo: whether who came first gets in first. several_loops: whether more than one loop may use it.
    """

    name: str
    make: Callable[[], Any]
    use: Callable[[Any, Inside], Awaitable[None]]
    idle: Callable[[Any], None]
    limit: int | None = None
    fifo: bool = True
    several_loops: bool = False

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Pipe:
    """A primitive that takes items in and gives them out, each once.

    left: takes out, without waiting, what is still in it. fifo: whether each producer's items come out in its order.
    """

    name: str
    make: Callable[[], Any]
    put: Callable[[Any, Any], Awaitable[Any]]
    get: Callable[[Any], Awaitable[Any]]
    left: Callable[[Any], list[Any]]
    fifo: bool = True

    def __str__(self) -> str:
        return self.name


# --- running on a virtual clock ------------------------------------------------------------------


def run(kind: str, main: Coroutine[Any, Any, Any]) -> Any:
    """Run `main` on a new loop with a virtual clock; Stuck if it, or a task that it left, does not end.

    What reaches the loop's exception handler is a failure, too.
    """
    contexts: list[dict[str, Any]] = []
    loop = new_virtual_loop(kind)
    loop.set_exception_handler(lambda _, context: contexts.append(context))
    try:
        result = loop.run_until_complete(_bounded(main))
    finally:
        loop.close()
    demand(not contexts, f"reached the exception handler: {contexts}")
    return result


async def _bounded(main: Coroutine[Any, Any, Any]) -> Any:
    task = asyncio.ensure_future(main)
    await asyncio.wait({task}, timeout=PATIENCE)
    me = asyncio.current_task()
    pending = [other for other in asyncio.all_tasks() if other is not me and not other.done()]
    stuck = [repr(other) for other in pending]
    for other in pending:
        other.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    if stuck:
        if task.done() and not task.cancelled() and (error := task.exception()):
            raise error
        raise Stuck("wait for ever:\n" + "\n".join(stuck))
    return task.result()


# --- cancel at every await -----------------------------------------------------------------------

MOMENTS = ("waiting", "granted", "scope")
"""When the victim is cancelled: while it waits; once it has been told, before it goes on; by a scope around it,
which is asyncio's and ours by turns."""


@dataclass
class Attack:
    """Counts the suspensions of its victims, and cancels the one that is in the `at`-th."""

    at: int | None = None
    moment: str = "waiting"
    suspensions: int = 0
    victims: list[asyncio.Task[Any]] = field(default_factory=list)

    def task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task that does `work`, as a victim. How it ended does not matter, unless it failed by itself."""
        victim = asyncio.ensure_future(self._suffer(work))
        self.victims.append(victim)
        return victim

    async def settle(self) -> None:
        """Wait for the victims; raises what one of them raised of its own."""
        for result in await asyncio.gather(*self.victims, return_exceptions=True):
            if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError | TimeoutError):
                raise result

    async def _suffer(self, work: Coroutine[Any, Any, Any]) -> Any:
        with tideloop.CancelScope() as own:
            async with asyncio.timeout(None) as stock:
                return await driven(work, _Suspensions(lambda future: self._suspended(future, own, stock)))

    def _suspended(self, future: asyncio.Future[Any] | None, own: tideloop.CancelScope, stock: asyncio.Timeout) -> None:
        self.suspensions += 1
        if self.suspensions - 1 != self.at:
            return
        victim = asyncio.current_task()
        loop = asyncio.get_running_loop()
        assert victim is not None
        if self.moment == "scope":
            if self.at % 2:
                own.cancel()
            else:
                stock.reschedule(loop.time())
        elif self.moment == "granted" and future is not None:
            # Before the task hangs itself on the future, so it is cancelled before it is woken.
            future.add_done_callback(lambda _: victim.cancel())
        else:
            loop.call_soon(victim.cancel)


class _Suspensions(Observer):
    """Tells of each suspension of a coroutine."""

    def __init__(self, told: Callable[[Any], None]) -> None:
        self.suspended = told  # type: ignore[method-assign]


Scenario = Callable[[Attack], Coroutine[Any, Any, None]]


def cancel_everywhere(kind: str, scenario: Scenario) -> int:
    """Run a scenario unharmed, then cancelled at each suspension in each way; returns how many there are.

    The scenario makes its tasks with `attack.task()` where they may be cancelled, and raises when something is
    wrong in the end.
    """
    unharmed = Attack()
    run(kind, scenario(unharmed))
    for moment in MOMENTS:
        for at in range(unharmed.suspensions):
            attack = Attack(at, moment)
            try:
                run(kind, scenario(attack))
            except BaseException as error:
                error.add_note(f"cancelled at suspension {at} of {unharmed.suspensions} ({moment})")
                raise
            demand(attack.suspensions > at, f"suspension {at} never came: the scenario is not deterministic")
    return unharmed.suspensions


def permits_scenario(primitive: Permits, visitors: int = 5) -> Scenario:
    """More visitors than get in at once; in the end all is as it was, and one more gets in."""

    async def scenario(attack: Attack) -> None:
        subject = primitive.make()
        crowd = Crowd(primitive)

        async def stay() -> None:
            await asyncio.sleep(0)
            await asyncio.sleep(1)

        for _ in range(visitors):
            attack.task(crowd.visit(subject, stay))
        await attack.settle()
        primitive.idle(subject)
        await crowd.visit(subject, stay)
        primitive.idle(subject)
        crowd.check()

    return scenario


def pipe_scenario(primitive: Pipe, producers: int = 3, each: int = 3) -> Scenario:
    """Producers, and fewer consumers at first; every item arrives once, whoever was cancelled."""

    async def scenario(attack: Attack) -> None:
        subject = primitive.make()
        traffic = Traffic(primitive)

        async def produce(number: int) -> None:
            for item in range(each):
                await traffic.put(subject, (number, item))

        async def consume() -> None:
            for _ in range(each):
                await traffic.get(subject)

        consumers = [attack.task(consume()) for _ in range(producers - 1)]
        for number in range(producers):
            attack.task(produce(number))
        # Whoever remains: takes what the victims did not, and gives what they wait for.
        await asyncio.sleep(1)
        spare = 0
        while any(not task.done() for task in attack.victims):
            if any(not task.done() for task in consumers):
                await traffic.put(subject, (producers, spare))
                spare += 1
            else:
                await traffic.get(subject)
            await asyncio.sleep(1)
        await attack.settle()
        traffic.check(primitive.left(subject))

    return scenario


# --- what is watched -----------------------------------------------------------------------------


class Crowd:
    """Those who use a `Permits`, who must not be too many inside nor pass each other."""

    def __init__(self, primitive: Permits) -> None:
        self._primitive = primitive
        self._waiting: dict[int, asyncio.Task[Any] | None] = {}
        self._came = 0
        self.inside = 0
        self.passed: list[tuple[int, int]] = []

    async def visit(self, subject: Any, stay: Inside) -> None:
        number = self._came
        self._came += 1
        self._waiting[number] = asyncio.current_task()

        async def inside() -> None:
            del self._waiting[number]
            self._check_order(number)
            self.inside += 1
            limit = self._primitive.limit
            try:
                demand(limit is None or self.inside <= limit, f"{self.inside} inside, {limit} allowed")
                await stay()
            finally:
                self.inside -= 1

        try:
            await self._primitive.use(subject, inside)
        finally:
            self._waiting.pop(number, None)

    def _check_order(self, number: int) -> None:
        if not self._primitive.fifo:
            return
        earlier = [other for other in self._waiting if other < number and self._waits(other)]
        if earlier:
            # They may have been let in before, and be about to go on in this very turn.
            asyncio.get_running_loop().call_soon(self._confirm, number, earlier)

    def _confirm(self, number: int, earlier: list[int]) -> None:
        self.passed += [(number, other) for other in earlier if self._waits(other)]

    def _waits(self, number: int) -> bool:
        task = self._waiting.get(number)
        return task is not None and not task.done() and not task.cancelling()

    def check(self) -> None:
        demand(not self.passed, f"(who, whom) was passed: {self.passed}")


class Traffic:
    """What went through a `Pipe`."""

    def __init__(self, primitive: Pipe) -> None:
        self._primitive = primitive
        self.put_in: list[Any] = []
        self.got: list[Any] = []

    async def put(self, subject: Any, item: Any) -> None:
        await self._primitive.put(subject, item)
        self.put_in.append(item)

    async def get(self, subject: Any) -> None:
        self.got.append(await self._primitive.get(subject))

    def check(self, left: list[Any]) -> None:
        """Each item that a put() ended for was got once or is left; one that was cancelled is nowhere."""
        out = self.got + left
        demand(len(set(out)) == len(out), f"came out twice: {sorted(item for item in out if out.count(item) > 1)}")
        lost = set(self.put_in) - set(out)
        demand(not lost, f"put and lost: {sorted(lost)}")
        stray = set(out) - set(self.put_in)
        demand(not stray, f"refused or cancelled, and delivered all the same: {sorted(stray)}")
        if self._primitive.fifo:
            for producer in {item[0] for item in out}:
                mine = [item for item in out if item[0] == producer]
                demand(mine == sorted(mine), f"out of order: {mine}")


# --- random schedules ----------------------------------------------------------------------------


def interleave(kind: str, primitive: Permits | Pipe, seed: int, steps: int = 60) -> None:
    """A random schedule: coming, staying, being cancelled at any point. In the end all is as it was."""
    play = _interleave_permits if isinstance(primitive, Permits) else _interleave_pipe
    try:
        run(kind, play(primitive, random.Random(seed), steps))  # type: ignore[arg-type]
    except BaseException as error:
        error.add_note(f"{primitive} on {kind}, seed {seed}")
        raise


async def _idle_about(dice: random.Random) -> None:
    for _ in range(dice.randrange(3)):
        await asyncio.sleep(0)
    if dice.random() < 0.5:
        await asyncio.sleep(dice.random())


async def _act(dice: random.Random, steps: int, come: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Start tasks and cancel some, in between and in the same turn as others do; then let all end."""
    tasks: list[asyncio.Task[None]] = []
    for _ in range(steps):
        action = dice.random()
        pending = [task for task in tasks if not task.done()]
        if action < 0.5:
            tasks.append(asyncio.ensure_future(come()))
        elif action < 0.7 and pending:
            dice.choice(pending).cancel()
        elif action < 0.75:
            await asyncio.sleep(dice.random())
        else:
            await asyncio.sleep(0)
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
            raise result


async def _interleave_permits(primitive: Permits, dice: random.Random, steps: int) -> None:
    subject = primitive.make()
    crowd = Crowd(primitive)
    await _act(dice, steps, lambda: crowd.visit(subject, lambda: _idle_about(dice)))
    primitive.idle(subject)
    crowd.check()


async def _interleave_pipe(primitive: Pipe, dice: random.Random, steps: int) -> None:
    subject = primitive.make()
    traffic = Traffic(primitive)
    numbers = iter(range(steps))
    balance = 0

    async def put() -> None:
        nonlocal balance
        item = (next(numbers), "a producer of its own")
        await traffic.put(subject, item)
        balance += 1

    async def get() -> None:
        nonlocal balance
        await traffic.get(subject)
        balance -= 1

    async def even_out() -> None:
        # Whoever waits in the end is let go: a getter by an item, a putter by a getter.
        for round_ in range(10 * steps):
            await asyncio.sleep(10)
            if not waiting:
                return
            if any(kind == "get" for kind in waiting.values()):
                await traffic.put(subject, (-1, round_))
            else:
                await traffic.get(subject)

    waiting: dict[int, str] = {}
    serial = iter(range(10 * steps))

    async def come() -> None:
        number = next(serial)
        which = "put" if dice.random() < 0.5 else "get"
        waiting[number] = which
        try:
            await (put() if which == "put" else get())
        finally:
            del waiting[number]

    evening = asyncio.ensure_future(even_out())
    await _act(dice, steps, come)
    await evening
    traffic.check(primitive.left(subject))


# --- real loops: closed, in threads, forked ------------------------------------------------------


def new_real_loop(kind: str) -> asyncio.AbstractEventLoop:
    """A loop of any backend, uvloop too, on the system's clock."""
    return backends.load(kind).new_event_loop()


@contextlib.contextmanager
def _real_loop(kind: str) -> Iterator[asyncio.AbstractEventLoop]:
    loop = new_real_loop(kind)
    try:
        yield loop
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if not loop.is_closed():
            if left:
                loop.run_until_complete(asyncio.wait(left, timeout=REAL_PATIENCE))
            loop.close()


async def _in_time(work: Awaitable[Any], complaint: str) -> Any:
    done, _ = await asyncio.wait({asyncio.ensure_future(work)}, timeout=REAL_PATIENCE)
    if not done:
        raise Stuck(complaint)
    return done.pop().result()


def close_loop(kind: str, primitive: Permits) -> None:
    """A loop is closed while its tasks wait. Who uses the primitive elsewhere is neither stuck nor let in twice.

    A primitive of one loop may refuse the other one, by RuntimeError.
    """
    subject = primitive.make()
    crowd = Crowd(primitive)
    abandoned: list[asyncio.Task[None]] = []

    async def fill(leave: asyncio.Event) -> list[asyncio.Task[None]]:
        async def stay() -> None:
            await leave.wait()

        holders = [asyncio.ensure_future(crowd.visit(subject, stay)) for _ in range(primitive.limit or 1)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return holders

    async def wait_in_vain() -> None:
        abandoned.extend(asyncio.ensure_future(crowd.visit(subject, _at_once)) for _ in range(2))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    with _real_loop(kind) as loop:
        if not primitive.several_loops:
            # The first loop holds all and waits for itself; the second one is refused or served.
            doomed = new_real_loop(kind)
            holders = doomed.run_until_complete(fill(asyncio.Event()))
            doomed.run_until_complete(wait_in_vain())
            doomed.close()
            with contextlib.suppress(RuntimeError):
                fresh = primitive.make()
                loop.run_until_complete(_in_time(primitive.use(fresh, _at_once), "a new one is stuck"))
            for task in holders + abandoned:
                _abandon(task)
            return
        leave = asyncio.Event()
        holders = loop.run_until_complete(fill(leave))
        doomed = new_real_loop(kind)
        doomed.run_until_complete(wait_in_vain())
        doomed.close()

        async def go_on() -> None:
            late = asyncio.ensure_future(crowd.visit(subject, _at_once))
            await asyncio.sleep(0)
            leave.set()
            await asyncio.gather(*holders)
            await late

        # Who waited on the closed loop waits no more, whether its task still exists or not.
        crowd._waiting.clear()
        loop.run_until_complete(_in_time(go_on(), "stuck behind waiters of a closed loop"))
        for task in abandoned:
            _abandon(task)
        primitive.idle(subject)


def close_in_the_turn_of_a_grant(kind: str, primitive: Permits) -> None:
    """A loop is stopped in the turn in which some are let in there, and closed; their tasks are kept, and never run.

    Who waited on another loop meanwhile gets in, and so does who comes later. For primitives of several loops.
    """
    subject = primitive.make()
    crowd = Crowd(primitive)
    limit = primitive.limit or 1
    entered: list[int] = []

    async def die(holders: list[asyncio.Task[None]], leave: asyncio.Event) -> None:
        """Lets all go in one turn, in which the loop stops."""
        await asyncio.sleep(0)
        leave.set()
        await asyncio.gather(*holders)

    async def fill(leave: asyncio.Event) -> list[asyncio.Task[None]]:
        async def stay() -> None:
            await leave.wait()
            asyncio.get_running_loop().stop()

        holders = [asyncio.ensure_future(crowd.visit(subject, stay)) for _ in range(limit)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return holders

    async def wait_in_vain(number: int) -> list[asyncio.Task[None]]:
        async def enter() -> None:
            entered.append(number)

        tasks = [asyncio.ensure_future(crowd.visit(subject, enter)) for _ in range(number)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return tasks

    with _real_loop(kind) as loop:
        doomed = new_real_loop(kind)
        leave = asyncio.Event()
        holders = doomed.run_until_complete(fill(leave))
        abandoned = doomed.run_until_complete(wait_in_vain(limit))
        late = loop.run_until_complete(wait_in_vain(1))
        last = doomed.create_task(die(holders, leave))
        doomed.run_forever()
        # uvloop's stop() lets a turn pass: there they get in, and the rest has to hold all the same.
        demand(not entered or kind == "uvloop", "the loop went on for another turn: this tests nothing")
        doomed.close()
        crowd._waiting = {number: task for number, task in crowd._waiting.items() if task in late}
        work = asyncio.wait_for(_gather(*late), REAL_PATIENCE)
        loop.run_until_complete(_in_time(work, "a permit stays with a task that never runs"))
        for _ in range(limit + 1):
            loop.run_until_complete(_in_time(primitive.use(subject, _at_once), "a permit is gone"))
        for task in [*abandoned, last]:
            if not task.done():
                _abandon(task)
        primitive.idle(subject)


def _abandon(task: asyncio.Task[Any]) -> None:
    """A task whose loop is closed is never run again; asyncio is not to complain."""
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    with contextlib.suppress(RuntimeError):
        task.get_coro().close()  # type: ignore[union-attr]


async def _at_once() -> None:
    pass


def share(kind: str, primitive: Permits, threads: int = 3, visits: int = 40, visitors: int = 4) -> None:
    """Several loops in as many threads; never more inside than allowed, and everybody gets in."""
    subject = primitive.make()
    lock = threading.Lock()
    inside = 0
    faults: list[BaseException] = []

    async def stay() -> None:
        nonlocal inside
        with lock:
            inside += 1
            crowded = primitive.limit is not None and inside > primitive.limit
        try:
            await asyncio.sleep(0)
        finally:
            with lock:
                inside -= 1
        demand(not crowded, f"more than {primitive.limit} inside")

    async def visitor(dice: random.Random) -> None:
        for _ in range(visits):
            task = asyncio.ensure_future(primitive.use(subject, stay))  # type: ignore[arg-type]
            if dice.random() < 0.2:
                await asyncio.sleep(0)
                task.cancel()
            await asyncio.wait({task})
            if not task.cancelled() and (error := task.exception()):
                raise error

    def work(seed: int) -> None:
        dice = random.Random(seed)
        with _real_loop(kind) as loop:
            try:
                crowd = asyncio.wait_for(_gather(*(visitor(dice) for _ in range(visitors))), REAL_PATIENCE)
                loop.run_until_complete(crowd)
            except BaseException as error:
                faults.append(error)

    workers = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(2 * REAL_PATIENCE)
    if any(worker.is_alive() for worker in workers) or any(isinstance(fault, TimeoutError) for fault in faults):
        raise Stuck(f"{primitive}: a thread does not end; {faults}")
    if faults:
        raise faults[0]
    primitive.idle(subject)


async def _gather(*work: Awaitable[Any]) -> None:
    for result in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


def fork_with_waiters(kind: str, primitive: Permits) -> None:
    """A process is forked with somebody inside and somebody waiting. The child's own loop may use a fresh primitive,
    and the inherited one serves it or refuses by RuntimeError; it never hangs. The parent goes on as ever.
    """
    subject = primitive.make()

    async def parent() -> None:
        leave = asyncio.Event()

        async def stay() -> None:
            await leave.wait()

        crowd = [asyncio.ensure_future(primitive.use(subject, stay)) for _ in range((primitive.limit or 1) + 2)]  # type: ignore[arg-type]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        child = os.fork()
        if child == 0:
            os._exit(_in_child(kind, primitive, subject))
        try:
            _, status = await asyncio.to_thread(os.waitpid, child, 0)
        finally:
            leave.set()
        await _in_time(asyncio.gather(*crowd), "the parent is stuck")
        if os.waitstatus_to_exitcode(status) == -signal.SIGALRM:
            raise Stuck(f"{primitive}: the child hangs")
        demand(status == 0, f"the child failed: {os.waitstatus_to_exitcode(status)}")

    with _real_loop(kind) as loop:
        loop.run_until_complete(parent())
        loop.run_until_complete(loop.shutdown_default_executor())
    primitive.idle(subject)


def _in_child(kind: str, primitive: Permits, inherited: Any) -> int:
    """What the child does, within the alarm's time; its exit code."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(int(REAL_PATIENCE))
    asyncio._set_running_loop(None)
    code = 3
    try:
        loop = new_real_loop(kind)
        loop.run_until_complete(primitive.use(primitive.make(), _at_once))  # type: ignore[arg-type]
        code = 4
        # All permits are held by tasks that do not exist here, so it may wait; it must let itself be cancelled.
        with contextlib.suppress(TimeoutError, RuntimeError):
            loop.run_until_complete(asyncio.wait_for(primitive.use(inherited, _at_once), 0.1))
        loop.close()
        code = 0
    except BaseException as error:
        os.write(2, f"forked child: {error!r}\n".encode())
    return code
