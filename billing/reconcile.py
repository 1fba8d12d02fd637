"""The verb of comparing: every linked customer with what Stripe says of it, and what that comes to.

Nothing of a tenant's is written here. Customers are asked about, so whatever mends them is `sync`, which writes
down what it was the first to tell (`drift`). Here that is judged, once an event that explains it would have
come (`missing`). Workers `look` for events every few minutes and `walk` round the customers once a day; `run`
does both at once for somebody at a terminal, and `imagine` says what it would find, with nothing written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

import structlog
from sqlalchemy import Connection

from billing import customers, drift, inbox, missing, questions, runs, sync, versions
from billing.budget import Budget
from billing.db import SYSTEM, Database
from billing.drift import PERSONAL, Finding, Kind, Pending
from billing.errors import StripeFailed
from billing.runs import Run
from billing.state import Shown
from billing.stripe_api import Stripe
from billing.sync import Difference

EVERY = timedelta(hours=1)  # a worker's run
STALE = timedelta(hours=24)  # Stripe counts reads: 500 for each transaction, and a month has 720 hours
IN_LINE = 12  # questions the walk leaves standing in line: an event's waits for as many at most
LINKED_AT_ONCE = 100
NOTHING_BOUGHT = frozenset({None, "none", "pending"})
AT_ONCE = 100  # customers, between two notes of how far a run has come
COMPARING = 8  # at a time; the budget, not this, is what limits them

Compared = TypeVar("Compared")

log = structlog.get_logger(__name__)


# ---- what a worker does


def walk(db: Database, *, older: timedelta = STALE, most: int = IN_LINE) -> int:
    """Have Stripe asked about the linked customers it was not asked about for longest. How many those are.

    No more than leave `most` questions in line: while others wait to be put, the walk adds fewer, or none.
    """
    with db.begin(SYSTEM) as connection:
        room = most - questions.in_line(connection, most=most)
        found = questions.stalest(connection, older=older, most=room) if room > 0 else ()
        questions.want(connection, found)
        runs.add(connection, "worker", compared=len(found))
    return len(found)


def meet(db: Database, *, after: str = "") -> tuple[int, str]:
    """Have Stripe asked about customers that were linked by other means than ours, in the next stretch of them.

    How many those are, and where to go on; "" at the end.
    """
    with db.begin(SYSTEM) as connection:
        found, place = questions.unasked(connection, after=after, most=LINKED_AT_ONCE)
        questions.want(connection, found)
    return len(found), place


def look(db: Database, stripe: Stripe, budget: Budget, *, livemode: bool) -> None:
    """Fetch what has not come, and judge what was suspected before that."""
    with db.begin(SYSTEM) as connection:
        runs.begin(connection, "worker", goes_on=EVERY)
        began = runs.now(connection)
    fetched = missing.undelivered(db, stripe, budget, livemode=livemode)
    fetched += missing.missed(db, stripe, budget, livemode=livemode)
    with db.begin(SYSTEM) as connection:
        runs.add(connection, "worker", fetched=fetched)
    judge(db, before=began)


def prune(db: Database) -> None:
    """Forget what was found, and the runs, of long ago."""
    with db.begin(SYSTEM) as connection:
        runs.prune(connection)
        drift.prune(connection)


# ---- judging


def judge(db: Database, *, before: datetime) -> int:
    """Say which suspicions from before then were right, once all events have been listed since. How many were.

    A change was none of ours to find if an event of it has come since. A late event did no harm if neither it
    nor an answer has moved the document.
    """
    found, after = 0, ""
    while True:
        pending, right = _judge_next(db, before, after)
        for one, became in right.items():
            _tell(one, became)
        found += len(right)
        if len(pending) < drift.JUDGED_AT_ONCE:
            return found
        after = pending[-1].suspicion.tenant_id


def _judge_next(db: Database, before: datetime, after: str) -> tuple[list[Pending], dict[Pending, Shown]]:
    """The next ones in one transaction, and those of them that were right, with what came of them."""
    with db.begin(SYSTEM) as connection:
        pending = drift.pending(connection, before=before, after=after)
        facts = _facts(connection, pending)
        verdicts = {one.id: _is_drift(connection, one, facts) for one in pending}
        right = {one: facts.became(one) for one in pending if verdicts[one.id]}
        drift.settle(
            connection,
            {one.id: (became.version, became.state) for one, became in right.items()},
            [id for id, verdict in verdicts.items() if verdict is False],
        )
    return pending, right


@dataclass(frozen=True, slots=True)
class _Facts:
    """What suspicions are judged by."""

    owners: Mapping[str, str]  # by customer
    due: Mapping[str, int] | None  # the newest due event by customer; None: too many are due to tell
    told: Mapping[str, tuple[int, str | None]]  # what Stripe has made of the document since, by tenant

    def became(self, one: Pending) -> Shown:
        """What the tenant is told by what Stripe said since it was suspected."""
        before = one.suspicion
        version, state = self.told.get(before.tenant_id, (before.version, None))
        return Shown(version, state or before.state)


def _facts(connection: Connection, pending: Collection[Pending]) -> _Facts:
    suspected = [one.suspicion for one in pending]
    concerned = [one.customer for one in suspected]
    return _Facts(
        customers.owners(connection, concerned),
        inbox.newest_due(connection, concerned),
        versions.told(connection, {one.tenant_id: one.version for one in suspected}),
    )


def _is_drift(connection: Connection, one: Pending, facts: _Facts) -> bool | None:
    """None while nobody can tell: its events are here, and not worked on yet."""
    kind, customer, seen = one.suspicion.kind, one.suspicion.customer, one.suspicion.seen
    if facts.owners.get(customer) != one.suspicion.tenant_id:
        return False
    if kind in PERSONAL:
        return True
    differs = _differs(Shown(one.suspicion.version, one.suspicion.state), facts.became(one))
    newest = None if facts.due is None else facts.due.get(customer, 0)
    if kind == "changed":
        if inbox.has_come(connection, customer, after=seen) or (newest or 0) > seen:
            return False
        return None if newest is None else differs
    if differs or questions.was_answered(connection, customer, since=one.since):
        return differs
    return None if newest != 0 or inbox.is_asking(connection, customer) else False


def _differs(before: Shown, after: Shown) -> bool:
    """Whether the document is another one now, and not only for a Checkout that was begun and abandoned."""
    return before.version != after.version and not {before.state, after.state} <= NOTHING_BOUGHT


def _tell(one: Pending, after: Shown) -> None:
    before = one.suspicion
    log.warning(
        "drift.found",
        kind=before.kind,
        tenant=before.tenant_id,
        customer=before.customer,
        event_id=before.event_id,
        before=f"v{before.version} {before.state}",
        after=f"v{after.version} {after.state}",
    )


# ---- all of it at once


@dataclass
class Report:
    """What a run has come to."""

    fetched: int = 0  # events that had not come
    linked: int = 0  # customers, with whom the run began
    compared: int = 0
    unanswered: int = 0  # of those compared: Stripe will be asked again
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)

    @property
    def left(self) -> int:
        """How many the next run begins with."""
        return self.linked - self.compared

    @property
    def needing(self) -> int:
        """How many of the findings are for a person to mend."""
        return sum(one.needs_somebody for one in self.findings)


Tell = Callable[[int], object]  # one more is compared, of so many


def run(
    db: Database, stripe: Stripe, budget: Budget, *, livemode: bool, most: int | None, tell: Tell
) -> Report:
    """Fetch what has not come, and compare every linked customer with Stripe, or `most` of them.

    A run that was killed, or had its `most`, is gone on with where it was.
    """
    began, report = time.monotonic(), Report()
    with db.begin(SYSTEM) as connection:
        this = runs.begin(connection, "command")
    report.fetched = missing.undelivered(db, stripe, budget, livemode=livemode)
    report.fetched += missing.missed(db, stripe, budget, livemode=livemode)
    _compare_all(db, stripe, budget, this, report, most, tell)
    with db.begin(SYSTEM) as connection:
        compared = runs.now(connection)
    report.fetched += missing.missed(db, stripe, budget, livemode=livemode)  # what has changed meanwhile
    judge(db, before=compared)
    with db.begin(SYSTEM) as connection:
        runs.add(connection, "command", fetched=report.fetched)
        if report.left <= 0:
            runs.end(connection, this)
        report.findings = drift.found(connection, since=this.began_at)
    report.seconds = time.monotonic() - began
    return report


def imagine(
    db: Database, stripe: Stripe, budget: Budget, *, livemode: bool, most: int | None, tell: Tell
) -> Report:
    """What `run` would report, had it begun now: each comparison is taken back as soon as it is made."""
    began, report = time.monotonic(), Report()
    with db.begin(SYSTEM) as connection:
        at = runs.now(connection)
    listed = list(missing.unknown(db, stripe, budget, livemode=livemode))
    report.fetched = len({one.event_id for one, _ in listed})
    late = {one.customer: one.event_id for one, is_late in listed if is_late and one.customer}
    differing: list[Difference] = []
    for page, total in _in_pages(db, report, after="", since=at, most=most):
        for one in _each(page, lambda customer, _: sync.imagine(db, stripe, budget, customer)):
            tell(total)
            if one.kind in PERSONAL or (one.is_told and _differs(one.before, one.after)):
                differing.append(one)
    again = missing.unknown(db, stripe, budget, livemode=livemode) if differing else ()
    come = {one.customer for one, _ in (*listed, *again)}
    report.findings = list(_imagined(differing, late, come, at))
    report.seconds = time.monotonic() - began
    return report


def _compare_all(
    db: Database, stripe: Stripe, budget: Budget, this: Run, report: Report, most: int | None, tell: Tell
) -> None:
    def compare(customer: str, is_answered: bool) -> bool:
        """False if Stripe has not answered. Whom somebody else is asking about is in good hands."""
        if is_answered:
            return True
        with db.begin(SYSTEM) as connection:
            question = questions.put_at_once(connection, customer, seen=inbox.newest(connection))
        return question is None or sync.ask(db, stripe, budget, question)

    for page, total in _in_pages(db, report, after=this.place, since=this.began_at, most=most):
        answers = []
        for answer in _each(page, compare):
            answers.append(answer)
            tell(total)
        if not any(answers):
            raise StripeFailed("unanswered", retry_after=5)
        report.unanswered += answers.count(False)
        with db.begin(SYSTEM) as connection:
            runs.go_on(connection, this, place=page[-1][0], compared=len(page))


def _in_pages(
    db: Database, report: Report, *, after: str, since: datetime, most: int | None
) -> Iterator[tuple[list[tuple[str, bool]], int]]:
    """The linked customers after that id, each with whether it was answered since; and of how many in all.

    A page counts as compared when the next one is wanted.
    """
    with db.begin(SYSTEM) as connection:
        report.linked = questions.how_many(connection, after=after)
    total = report.linked if most is None else min(most, report.linked)
    while (size := min(AT_ONCE, total - report.compared)) > 0:
        with db.begin(SYSTEM) as connection:
            page = questions.linked(connection, after=after, since=since, most=size)
        if not page:
            report.linked = report.compared  # some were unlinked meanwhile
            return
        yield page, total
        after = page[-1][0]
        report.compared += len(page)


def _each(page: list[tuple[str, bool]], compare: Callable[[str, bool], Compared]) -> Iterator[Compared]:
    """Several at a time, for each of them waits for Stripe."""
    with ThreadPoolExecutor(COMPARING, thread_name_prefix="comparing") as comparers:
        yield from comparers.map(lambda one: compare(*one), page)


def _imagined(
    differing: Collection[Difference],
    late: Mapping[str, str],
    come: Collection[str | None],
    at: datetime,
) -> Iterator[Finding]:
    """As `judge` would have it, of events that are not kept."""
    for one in differing:
        kind: Kind | None = one.kind
        if kind not in PERSONAL:
            kind = "missed_event" if one.customer in late else None if one.customer in come else kind
        if kind:
            event_id = late.get(one.customer) if kind == "missed_event" else None
            whose = (one.tenant_id, one.customer, kind, event_id)
            became = (one.before.version, one.before.state, one.after.version, one.after.state)
            yield Finding(*whose, *became, found_at=at, mended_at=None)


# ---- for operators


@dataclass(frozen=True, slots=True)
class Standing:
    """How reconciling stands: the last run with what was found in it, the next one, and what needs somebody."""

    last: Run | None
    next_at: datetime | None
    drift: dict[Kind, int]
    needing: list[Finding]


def standing(connection: Connection) -> Standing:
    """For whoever looks on: console, doctor, metrics."""
    last, current = runs.last(connection), runs.current(connection, "worker")
    return Standing(
        last=last,
        next_at=current.began_at + EVERY if current else None,
        drift=drift.count(connection, since=last.began_at, until=last.ended_at) if last else drift.none(),
        needing=drift.needing(connection),
    )
