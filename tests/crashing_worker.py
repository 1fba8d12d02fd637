"""Workers that are killed: `python -m tests.crashing_worker` keeps some running until it is told to end.

Each is a process of its own, forked from this one, which has imported everything once: forty deaths cost
forty forks. FATES says how they die, one word for each, in the order of birth: `written:3` kills itself with
SIGKILL the third time it gets there, `outside:0.2` is killed 0.2 s after its birth; who comes later lives. The
points are wrapped round the service's functions here: the service knows nothing of them. LEDGER says who died.
"""

from __future__ import annotations

import functools
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

from billing import config, events, questions, subscriptions, sync, telemetry, wiring
from billing.events import Event
from billing.worker import Worker, end_on_signals

LOOK_SECONDS = 0.01  # between two looks at who has died

Work = Callable[..., Any]
Arrive = Callable[[], None]


@dataclass(frozen=True)
class Fate:
    """Where a worker dies, and the how-manieth time it gets there (`outside`: after how many seconds)."""

    point: str
    count: float

    @classmethod
    def read(cls, word: str) -> Fate:
        point, _, count = word.partition(":")
        return cls(point, float(count))


def die() -> None:
    """As the kernel does it: nothing is finished, nothing closed, nobody told."""
    os.kill(os.getpid(), signal.SIGKILL)


def countdown(count: float) -> Arrive:
    """Dies the `count`th time it is called, by whichever thread."""
    turn, calls = threading.Lock(), iter(range(1, sys.maxsize))

    def arrive() -> None:
        with turn:
            if next(calls) == count:
                die()

    return arrive


# ---- the points


def before(work: Work, arrive: Arrive) -> Work:
    @functools.wraps(work)
    def inner(*arguments: Any, **options: Any) -> Any:
        arrive()
        return work(*arguments, **options)

    return inner


def after(work: Work, arrive: Arrive) -> Work:
    @functools.wraps(work)
    def inner(*arguments: Any, **options: Any) -> Any:
        done = work(*arguments, **options)
        arrive()
        return done

    return inner


def after_a_find(claim: Work, arrive: Arrive) -> Work:
    """A round that found nothing holds nothing that could be lost."""

    @functools.wraps(claim)
    def inner(worker: Worker) -> Any:
        claimed, asked = claim(worker)
        if claimed or asked:
            arrive()
        return claimed, asked

    return inner


def after_a_change(write: Work, arrive: Arrive) -> Work:
    """A batch that changes nothing in the mirror has no half of it done."""

    @functools.wraps(write)
    def inner(connection: Any, writes: Any) -> None:
        write(connection, writes)
        if writes:
            arrive()

    return inner


POINTS: dict[str, list[tuple[Any, str, Callable[[Work, Arrive], Work]]]] = {
    "claimed": [(Worker, "_claim", after_a_find)],
    "read": [(sync, "hold", before)],
    "written": [(subscriptions, "write", after_a_change)],
    "before_commit": [(sync, "_let_go", after)],  # of an answer, what is written last is the mirror
    "after_commit": [(sync, "apply", after), (sync, "hold", after)],
}


def doom(fate: Fate) -> None:
    """Let this process die at its point."""
    arrive = countdown(fate.count)
    for owner, name, wrap in POINTS[fate.point]:
        setattr(owner, name, wrap(getattr(owner, name), arrive))


def be_poisoned_by(event_id: str) -> None:
    """Let this process die of reading an event."""
    read = events.read

    def fatally(raw: bytes) -> Event:
        if event_id.encode() in raw:
            die()
        return read(raw)

    events.read = fatally


# ---- the processes


@dataclass(frozen=True)
class Life:
    """A worker that runs: how it will die, and when somebody has to see to it."""

    fate: Fate | None
    ends: float


class Nursery:
    """Keeps `size` workers alive, and writes down how they died."""

    def __init__(self, size: int, fates: Iterator[Fate], ledger: Path) -> None:
        self._size = size
        self._fates = fates
        self._ledger = ledger
        self._alive: dict[int, Life] = {}
        self._ending = threading.Event()
        self._cord = os.pipe()  # its one end the workers read, the other is ours alone: see `end_with`

    def run(self) -> None:
        """Until SIGTERM, which the workers get too."""
        signal.signal(signal.SIGTERM, lambda *_: self._ending.set())
        while not self._ending.wait(LOOK_SECONDS):
            while len(self._alive) < self._size:
                self._bear()
            for pid, life in self._alive.items():
                if time.monotonic() > life.ends:
                    os.kill(pid, signal.SIGKILL)
            self._bury(os.WNOHANG)
        for pid in self._alive:
            os.kill(pid, signal.SIGTERM)
        while self._alive:
            self._bury(0)

    def _bear(self) -> None:
        fate = next(self._fates, None)
        ends = time.monotonic() + fate.count if fate and fate.point == "outside" else math.inf
        pid = os.fork()
        if pid == 0:
            os.close(self._cord[1])
            live(fate, self._cord[0])
        self._alive[pid] = Life(fate, ends)

    def _bury(self, options: int) -> None:
        for pid in list(self._alive):
            found, status = os.waitpid(pid, options)
            if found:
                fate = self._alive.pop(pid).fate
                death = {"pid": pid, "at": time.time(), "code": os.waitstatus_to_exitcode(status)}
                self._note({**death, "point": fate.point if fate else None})

    def _note(self, death: dict[str, Any]) -> None:
        with self._ledger.open("a") as ledger:
            ledger.write(json.dumps(death) + "\n")


def live(fate: Fate | None, cord: int) -> NoReturn:
    """A worker's whole life, in a process just forked; it never returns."""
    code = 1
    try:
        threading.Thread(target=end_with, args=[cord], daemon=True).start()
        if fate and fate.point != "outside":
            doom(fate)
        if poison := os.environ.get("POISON"):
            be_poisoned_by(poison)
        work()
        code = 0
    finally:
        os._exit(code)


def end_with(cord: int) -> None:
    """Nothing is ever written: the read ends when the nursery has, however that came."""
    os.read(cord, 1)
    die()


def work() -> None:
    """As `python -m billing.worker` does, with leases that a test can wait for."""
    lease = timedelta(seconds=float(os.environ["LEASE_SECONDS"]))
    vars(questions).update(LEASE=lease, put=functools.partial(questions.put, lease=lease))
    billing = wiring.build(config.load())
    worker = Worker(billing, lease=lease, batch=int(os.environ["BATCH"]))
    end_on_signals(worker)
    worker.run()
    billing.db.close()


if __name__ == "__main__":
    telemetry.configure_logging()
    Nursery(
        int(os.environ["WORKERS"]),
        iter([Fate.read(word) for word in os.environ.get("FATES", "").split()]),
        Path(os.environ["LEDGER"]),
    ).run()
