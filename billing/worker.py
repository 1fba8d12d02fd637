"""The door for time: `python -m billing.worker` claims events, applies them, puts questions, and does the
chores.

One thread claims and applies; a few more wait for Stripe. Any number of such processes may run, on any number
of machines. A killed one costs the lease of what it held. SIGTERM: claim nothing more, finish, go; a second
one goes at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from typing import Any

import structlog

from billing import (
    cataloguing,
    chores,
    clock,
    config,
    enrolling,
    errors,
    inbox,
    questions,
    reconcile,
    schema,
    state,
    sync,
    telemetry,
    versions,
    wiring,
    workers,
)
from billing.budget import Budget
from billing.db import SYSTEM, Database, UnsafeRole
from billing.errors import Busy, ServiceUnavailable, StripeFailed
from billing.inbox import Claimed
from billing.questions import Question
from billing.telemetry import observed
from billing.wiring import Billing

LEASE = timedelta(seconds=20)
BATCH = 100
ASKING = 8  # questions in flight per process; the budget, not this, is what limits them
IDLE_SECONDS = 0.2  # an event that arrives is seen within this
AWAY_SECONDS = 0.5  # between two tries while the database is away
BUSY = timedelta(seconds=10)  # before an event is tried again that the database took too long over
CHORE_SECONDS = 0.5  # at a time: the events that have just come wait for it
MEETING_SECONDS = 60.0  # between two rounds to look for customers Stripe was never asked about
EVERY_SECOND = timedelta(seconds=1)

log = structlog.get_logger("billing.worker")  # also where it runs as __main__


class Worker:
    """A process's share of the work."""

    def __init__(self, billing: Billing, *, lease: timedelta = LEASE, batch: int = BATCH) -> None:
        self._billing = billing
        self._db = billing.db
        self._lease = lease
        self._batch = batch
        self._process = workers.Process()
        self._next_beat = 0.0
        self._stopping = threading.Event()
        self._budget = Budget(billing.db, billing.settings.billing_stripe_reads_per_second, self._stopping)
        self._askers = ThreadPoolExecutor(ASKING + 3, thread_name_prefix="asking")
        self._in_flight: set[Future[Any]] = set()
        self._looking: Future[Any] | None = None
        self._cataloguing: Future[Any] | None = None
        self._telling: Future[Any] | None = None
        self._pruned_events: int | None = 0  # where pruning goes on: it is done a little at a time
        self._pruned_customers = ""
        self._met = ""
        self._meeting = Chore("meet", EVERY_SECOND, self._meet)
        self._told = ""
        self._chores = self._list_chores()

    def _list_chores(self) -> list[Chore]:
        return [
            Chore("clock", EVERY_SECOND, self._let_time_pass),  # before those that may take long
            Chore("sweep", timedelta(seconds=30), self._sweep),
            Chore("prune", timedelta(minutes=10), self._prune),
            self._meeting,
            Chore("walk", EVERY_SECOND, self._walk),
            Chore(reconcile.LOOK, reconcile.LOOK_EVERY, self._begin_looking),
            Chore("tell", timedelta(minutes=5), self._begin_telling),
            Chore(cataloguing.CHORE, cataloguing.LEASE, self._begin_cataloguing, look=2 * EVERY_SECOND),
        ]

    @property
    def is_stopping(self) -> bool:
        """Whether it has been told to end."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Claim nothing more; `run` returns when what was begun is finished."""
        self._stopping.set()

    def run(self) -> None:
        """Work until `stop`."""
        log.info("worker.ready", pid=os.getpid())
        self._wait_for_the_schema()
        while not self._stopping.is_set():
            try:
                pause = 0.0 if self.work() else IDLE_SECONDS
            except ServiceUnavailable as e:
                log.warning("worker.waiting", outcome=e.outcome)
                pause = AWAY_SECONDS
            except UnsafeRole:
                raise
            except Exception:  # one fault must not end it; what it held comes back after the lease
                log.exception("worker.failed")
                pause = AWAY_SECONDS
            if pause:
                self._stopping.wait(pause)
        self.finish()
        log.info("worker.stopped", pid=os.getpid())

    def finish(self) -> None:
        """Wait for the questions in flight, and be no worker any more."""
        self._askers.shutdown(wait=True)
        with suppress(ServiceUnavailable):  # then it is taken for one that was killed
            self._db.run(SYSTEM, workers.leave(self._process))

    @property
    def is_asking(self) -> bool:
        """Whether Stripe owes us an answer."""
        begun = [*self._in_flight, self._looking, self._cataloguing, self._telling]
        return any(future is not None and not future.done() for future in begun)

    def _wait_for_the_schema(self) -> None:
        """A release may still be migrating; what fails for want of a column is no event's fault."""
        while not self._stopping.is_set():
            try:
                with self._db.begin(SYSTEM) as connection:
                    is_current = schema.is_current(connection)
                if is_current:
                    cataloguing.rule(self._db, self._billing.rules)
                    return
                log.warning("worker.waiting", outcome="schema_unavailable")
            except ServiceUnavailable as e:
                log.warning("worker.waiting", outcome=e.outcome)
            self._stopping.wait(AWAY_SECONDS)

    def work(self) -> bool:
        """One round: what is due, and who must be asked about. False if there was neither."""
        self._beat()
        claimed, asked = self._claim()
        for question in asked:
            self._in_flight.add(self._askers.submit(self._safely, self._ask, question))
        if claimed:
            self._apply(claimed)
        for chore in self._chores:
            self._do(chore)
        return bool(claimed or asked)

    def _beat(self) -> None:
        """Here and in no thread of its own: it says that the rounds go on."""
        if time.monotonic() >= self._next_beat:
            self._db.run(SYSTEM, workers.beat(self._process))
            self._next_beat = time.monotonic() + workers.BEAT_SECONDS

    # ---- events

    def _claim(self) -> tuple[list[Claimed], list[Question]]:
        self._in_flight = {future for future in self._in_flight if not future.done()}
        free = ASKING - len(self._in_flight)
        with self._db.begin(SYSTEM) as connection:
            asked: list[Question] = []
            if free > 0:
                seen = inbox.newest(connection)
                asked = questions.put(connection, seen=seen, most=free)
            return inbox.claim(connection, most=self._batch, lease=self._lease), asked

    @observed("worker.apply")
    def _apply(self, claimed: Sequence[Claimed]) -> None:
        """Apply a batch. If it fails as a whole, one of it may be at fault: each of it alone."""
        telemetry.follow({event.event_id: event.trace for event in claimed})
        began = time.monotonic()
        fault = self._try(claimed)
        if fault is None:
            log.info("inbox.applied", events=len(claimed), ms=round((time.monotonic() - began) * 1000, 1))
        elif len(claimed) == 1:
            self._fail(claimed[0], fault)
        else:
            log.warning("inbox.batch_failed", events=len(claimed), kind=type(fault).__name__)
            self._apply_apart(claimed)

    def _apply_apart(self, claimed: Sequence[Claimed]) -> None:
        """Each by itself, for as long as the lease surely lasts; it brings back those that are left."""
        until = time.monotonic() + self._lease.total_seconds() / 2
        for event in claimed:
            if self._stopping.is_set() or time.monotonic() > until:
                return
            self._apply([event])

    def _try(self, claimed: Sequence[Claimed]) -> Exception | None:
        """Apply them, again while the database is away, for as long as the lease surely lasts."""
        until = time.monotonic() + self._lease.total_seconds() / 2
        while True:
            try:
                sync.apply(self._db, claimed)
            except Busy as e:
                return e
            except ServiceUnavailable:
                if time.monotonic() > until or self._stopping.wait(AWAY_SECONDS):
                    raise  # the lease brings them back
            except Exception as e:
                return e
            else:
                return None

    def _fail(self, event: Claimed, fault: Exception) -> None:
        is_ours = not isinstance(fault, Busy)  # a database that is slow is no event's fault
        log.error("event.failed", event_id=event.event_id, counted=is_ours, exc_info=fault)
        with self._db.begin(SYSTEM) as connection:
            delay = sync.backoff(event.failures) if is_ours else BUSY
            kind, where = type(fault).__name__, errors.outline(fault)
            inbox.fail(connection, event, reason=kind, delay=delay, counted=is_ours, fault=where)

    # ---- questions

    def _safely(self, task: Callable[..., object], *arguments: object) -> None:
        """A thread's task: what goes wrong is logged, and what it leased comes back by itself."""
        try:
            task(*arguments)
        except ServiceUnavailable as e:
            log.warning("worker.waiting", outcome=e.outcome)
        except Exception:
            log.exception("worker.failed")

    @observed("worker.ask")
    def _ask(self, question: Question) -> None:
        telemetry.mention(customer=question.customer, question=question.put)
        sync.ask(self._db, self._billing.stripe, self._budget, question)

    # ---- chores

    def _do(self, chore: Chore) -> None:
        """What goes wrong with one is no reason to leave out the others: it is done at its next time."""
        try:
            chore.do(self._db)
        except ServiceUnavailable as e:
            log.warning("chore.failed", chore=chore.name, outcome=e.outcome)
        except UnsafeRole:
            raise
        except Exception:
            log.exception("chore.failed", chore=chore.name)

    def _sweep(self) -> None:
        with self._db.begin(SYSTEM) as connection:
            inbox.sweep(connection)

    def _meet(self) -> None:
        """A stretch at a time; and once there is nobody, not again for a while."""
        most = self._budget.unhurried_per_second
        found, self._met = reconcile.meet(self._db, after=self._met, most=most)
        if not found and not self._met:
            self._meeting.next_look = time.monotonic() + MEETING_SECONDS

    def _walk(self) -> None:
        reconcile.walk(self._db, most=self._budget.unhurried_per_second)

    def _prune(self) -> None:
        """In small batches, each its own transaction, until one is not old enough or it takes too long."""
        until = time.monotonic() + CHORE_SECONDS
        self._pruned_events = self._pruned_events or 0
        while self._pruned_events is not None and time.monotonic() < until:
            with self._db.begin(SYSTEM) as connection:
                self._pruned_events = inbox.prune(connection, after=self._pruned_events)
        _until_done(_prune_versions, self._db, full=versions.PRUNED_AT_ONCE)
        with self._db.begin(SYSTEM) as connection:
            workers.prune(connection)
            self._pruned_customers = questions.prune(connection, after=self._pruned_customers)
        reconcile.prune(self._db)

    def _begin_looking(self) -> None:
        """In a thread of its own, for it may take long: not at the questions' cost, and one at a time."""
        if self._looking is None or self._looking.done():
            self._looking = self._askers.submit(self._safely, self._look)

    @observed("worker.look")
    def _look(self) -> None:
        try:
            livemode = self._billing.settings.livemode
            reconcile.look(self._db, self._billing.stripe, self._budget, livemode=livemode)
        except StripeFailed as e:
            log.warning("reconcile.failed", reason=e.reason)

    def _begin_telling(self) -> None:
        if self._telling is None or self._telling.done():
            self._telling = self._askers.submit(self._safely, self._tell)

    @observed("worker.tell")
    def _tell(self) -> None:
        try:
            self._told = enrolling.tell_late(self._db, self._billing.stripe, self._budget, after=self._told)
        except StripeFailed as e:
            log.warning("customer.untold", reason=e.reason)

    def _let_time_pass(self) -> None:
        _until_done(clock.strike, self._db)
        _until_done(clock.catch_up, self._db)
        _until_done(clock.enter, self._db)

    def _begin_cataloguing(self) -> None:
        if self._cataloguing is None or self._cataloguing.done():
            self._cataloguing = self._askers.submit(self._safely, self._catalogue)
            return
        with self._db.begin(SYSTEM) as connection:  # the one under way may have begun too early for what is new
            chores.hasten(connection, cataloguing.CHORE, cataloguing.SOON)

    @observed("worker.catalogue")
    def _catalogue(self) -> None:
        try:
            cataloguing.read(self._db, self._billing.stripe, self._budget)
        except StripeFailed as e:
            log.warning("catalogue.failed", reason=e.reason)


def _prune_versions(db: Database) -> int:
    with db.begin(SYSTEM) as connection:
        return versions.prune(connection)


def _until_done(step: Callable[[Database], int], db: Database, *, full: int = state.CHUNK) -> None:
    """Chunk after chunk, each its own transaction, until one is not full or it takes too long."""
    until = time.monotonic() + CHORE_SECONDS
    while step(db) == full and time.monotonic() < until:
        pass


class Chore:
    """Something done every so often, by whichever worker comes first."""

    def __init__(
        self, name: str, every: timedelta, work: Callable[[], object], *, look: timedelta | None = None
    ) -> None:
        self.name = name
        self._every = every
        self._look = look or every  # sooner, where somebody may hasten it
        self._work = work
        self.next_look = 0.0  # this process's own clock; whose turn it is the database knows

    def do(self, db: Database) -> None:
        """Do it if it is due and nobody else has."""
        if time.monotonic() < self.next_look:
            return
        self.next_look = time.monotonic() + self._look.total_seconds()
        with db.begin(SYSTEM) as connection:
            is_ours = chores.take(connection, self.name, self._every)
        if is_ours:
            self._work()


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    telemetry.configure_logging()
    try:
        billing = wiring.build(config.load())
    except config.SettingsError as e:
        sys.exit(str(e))
    telemetry.start()
    worker = Worker(billing)
    end_on_signals(worker)
    try:
        worker.run()
    except UnsafeRole as e:
        sys.exit(str(e))
    finally:
        telemetry.stop()  # which measures once more
        billing.db.close()


def end_on_signals(worker: Worker) -> None:
    """The first signal lets it finish, the second does not."""

    def end(number: int, _frame: object) -> None:
        if worker.is_stopping:
            os._exit(128 + number)
        worker.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


if __name__ == "__main__":
    main()
