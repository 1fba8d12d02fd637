"""The verb of comparing: every linked customer with what Stripe says of it, and what that comes to.

Nothing of a tenant's is written here. Customers are asked about, so whatever mends them is `sync`, which writes
down what it was the first to tell (`drift`). Here that is judged, once an event that explains it would have
come (`missing`). Workers `look` for events every few minutes and `walk` round the customers once a day; `run`
does both at once for somebody at a terminal, and `imagine` says what it would find, with nothing written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

import structlog
from sqlalchemy import Connection

from billing import chores, customers, drift, inbox, missing, questions, runs, sync, versions
from billing.budget import Budget
from billing.db import SYSTEM, Database
from billing.drift import PERSONAL, Finding, Kind, Pending
from billing.errors import Busy, StripeFailed
from billing.runs import Run
from billing.state import Shown
from billing.stripe_api import Stripe
from billing.sync import Difference

EVERY = timedelta(hours=1)  # a worker's run
LOOK = "look"  # the chore
LOOK_EVERY = timedelta(minutes=5)
STALE = timedelta(hours=24)  # Stripe counts reads: 500 for each transaction, and a month has 720 hours
IN_LINE = 12  # questions the walk leaves standing in line: an event's waits for as many at most
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


def meet(db: Database, *, after: str = "", most: int = IN_LINE) -> tuple[int, str]:
    """Have Stripe asked about customers it was never asked about, in the next stretch of those that are linked.

    They were imported, or linked by other means than ours. No more than leave `most` questions in line, as in
    the walk. How many those are, and where to go on; "" at the end.
    """
    with db.begin(SYSTEM) as connection:
        room = most - questions.in_line(connection, most=most)
        if room <= 0:
            return 0, after
        found, place = questions.unasked(connection, after=after, most=room)
        questions.want(connection, found)
    return len(found), place


def look(db: Database, stripe: Stripe, budget: Budget, *, livemode: bool) -> None:
    """Fetch what has not come, and judge what was suspected before that.

    However long that takes, nobody else looks meanwhile: the chore is ours as long as pages come.
    """
    with db.begin(SYSTEM) as connection:
        runs.begin(connection, "worker", goes_on=EVERY)
        began, due = runs.now(connection), chores.due(connection, LOOK)

    def renew() -> None:
        nonlocal due
        with db.begin(SYSTEM) as connection:
            due = chores.renew(connection, LOOK, LOOK_EVERY, due=due)

    fetched = missing.undelivered(db, stripe, budget, livemode=livemode, go_on=renew)
    fetched += missing.missed(db, stripe, budget, livemode=livemode, go_on=renew)
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
    failed: str | None = None  # why it ended before its end: what was found by then holds
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
    db: Database,
    stripe: Stripe,
    budget: Budget,
    *,
    livemode: bool,
    most: int | None,
    tell: Tell,
    anew: bool = False,
) -> Report:
    """Fetch what has not come, and compare every linked customer with Stripe, or `most` of them.

    A run that was killed, or had its `most`, is gone on with where it was, unless this is to begin `anew`.
    """
    began, report = time.monotonic(), Report()
    with db.begin(SYSTEM) as connection:
        this = runs.begin(connection, "command", goes_on=timedelta(0) if anew else runs.GOES_ON)
        at = runs.now(connection)
    report.fetched = missing.undelivered(db, stripe, budget, livemode=livemode)
    report.fetched += missing.missed(db, stripe, budget, livemode=livemode)
    with _as_far_as_it_comes(report):
        _compare_all(db, stripe, budget, this, at, report, most, tell)
    with _as_far_as_it_comes(report):
        with db.begin(SYSTEM) as connection:
            compared = runs.now(connection)
        report.fetched += missing.missed(db, stripe, budget, livemode=livemode)  # what has changed meanwhile
        judge(db, before=compared)
    with db.begin(SYSTEM) as connection:
        runs.add(connection, "command", fetched=report.fetched)
        report.findings = drift.found(connection, since=this.told_at)
        runs.told(connection, this)
        if report.left <= 0:
            runs.end(connection, this)
    report.seconds = time.monotonic() - began
    return report


@contextmanager
def _as_far_as_it_comes(report: Report) -> Iterator[None]:
    """Where Stripe is away, what was found by then is reported all the same."""
    try:
        yield
    except StripeFailed as e:
        report.failed = report.failed or e.reason


def imagine(
    db: Database, stripe: Stripe, budget: Budget, *, livemode: bool, most: int | None, tell: Tell
) -> Report:
    """What `run` would report, had it begun now: each comparison is taken back as soon as it is made."""
    began, report = time.monotonic(), Report()
    with db.begin(SYSTEM) as connection:
        at = runs.now(connection)
    listed = list(missing.unknown(db, stripe, budget, livemode=livemode))
    report.fetched = len({one.event_id for one in listed})
    late = {one.customer: one.event_id for one in listed if one.is_late and one.customer}
    come = {one.customer for one in listed}
    differing: list[Difference] = []
    with _as_far_as_it_comes(report):
        for one in _imagine_all(db, stripe, budget, at, report, most, tell):
            differing.append(one)  # also those that came before a failure
    if differing:
        try:
            come |= {one.customer for one in missing.unknown(db, stripe, budget, livemode=livemode)}
        except StripeFailed as e:
            report.failed = e.reason
            come |= {one.customer for one in differing}  # for all that anybody can tell
    report.findings = list(_imagined(differing, late, come, at))
    report.seconds = time.monotonic() - began
    return report


def _imagine_all(
    db: Database, stripe: Stripe, budget: Budget, at: datetime, report: Report, most: int | None, tell: Tell
) -> Iterator[Difference]:
    def compare(customer: str, _: bool) -> Difference | StripeFailed:
        try:
            return sync.imagine(db, stripe, budget, customer)
        except StripeFailed as e:
            return e
        except Busy:
            return StripeFailed("busy")

    for page, total in _in_pages(db, report, after="", since=at, most=most):
        failures = []
        for one in _each(page, compare):
            tell(total)
            if isinstance(one, StripeFailed):
                failures.append(one)
            elif one.kind in PERSONAL or (one.is_told and _differs(one.before, one.after)):
                yield one
        _go_on(report, failures)


def _compare_all(
    db: Database,
    stripe: Stripe,
    budget: Budget,
    this: Run,
    at: datetime,
    report: Report,
    most: int | None,
    tell: Tell,
) -> None:
    def compare(customer: str, is_answered: bool) -> StripeFailed | None:
        """Why there is no answer, if there is none. Whom somebody else is asking about is in good hands."""
        if is_answered:
            return None
        try:
            with db.begin(SYSTEM) as connection:
                question = questions.put_at_once(connection, customer, seen=inbox.newest(connection))
            return sync.attempt(db, stripe, budget, question) if question else None
        except Busy:
            return StripeFailed("busy")

    for page, total in _in_pages(db, report, after=this.place, since=at, most=most):
        failures = []
        for failure in _each(page, compare):
            tell(total)
            if failure:
                failures.append(failure)
        _go_on(report, failures)
        with db.begin(SYSTEM) as connection:
            runs.go_on(connection, this, place=page[-1][0], compared=len(page))


def _go_on(report: Report, failures: Sequence[StripeFailed]) -> None:
    """Unless Stripe is away: then nobody is answered, and it is no matter of a customer's."""
    if len(failures) >= AT_ONCE and all(failure.is_away for failure in failures):
        raise failures[-1]
    report.unanswered += len(failures)


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
