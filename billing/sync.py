"""The verb: bring customers up to date, from what events carry or by asking Stripe.

The only code that writes a tenant's billing state. `apply` judges a batch of claimed events and, in one
transaction, holds what is certain, marks whom to ask about, and settles the events. `ask` puts a question
with no transaction open, then holds the answer and settles what had arrived before it was put. Whoever
writes a customer's state has the customer's lock, and takes it first.
"""

from __future__ import annotations

import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

import structlog
from sqlalchemy import Connection

from billing import (
    audit,
    catalogue,
    cataloguing,
    checkouts,
    chores,
    customers,
    deadline,
    drift,
    entitlements,
    events,
    inbox,
    invoices,
    questions,
    state,
    subscriptions,
    telemetry,
)
from billing.audit import By
from billing.budget import ALL, Budget, Lane
from billing.db import SYSTEM, Database
from billing.drift import Kind, Suspicion
from billing.errors import Busy, CheckoutUnderWay, NoCustomer, ServiceUnavailable, StripeFailed
from billing.events import Event, Json
from billing.inbox import Asking, Claimed
from billing.invoices import Invoice
from billing.questions import AT_ONCE, Customer, Pace, Question
from billing.state import Changed, Evaluated, Shown
from billing.stripe_api import API_VERSION, Reading, Stripe, pages
from billing.subscriptions import FINAL, Facts, Folded, Held, Snapshot, Subscription, Verdict
from billing.telemetry import Causes
from billing.triage import Entry

SECOND_LOOK = timedelta(seconds=5)  # the events of one change arrive within seconds of each other
IN_OTHER_HANDS = timedelta(seconds=0.2)  # then the customer may be free again
LONGEST_BACKOFF_SECONDS = 60.0
UNKNOWN = timedelta(hours=1)  # before a customer Stripe has never heard of is asked about again
KEY_REFUSED_SECONDS = 60.0  # how long nobody asks anything once Stripe has refused our key
RATE_LIMITED_SECONDS = 2.0
INSIST_SECONDS = 8.0  # how long somebody waits who cannot go on without an answer

DELAYS = {"stopping": timedelta(0), "unknown_customer": UNKNOWN}
NOT_STRIPES = frozenset(
    {"stopping", "paused", "out_of_time"}
)  # reasons to come back that say nothing about the question
CLOSED = frozenset({"paid", "void", "uncollectible"})
PAYING = frozenset({"active", "trialing"})
NO_CAUSES: Mapping[str, Causes] = {}

log = structlog.get_logger(__name__)


# ---- what an event says, before anything is held against it


@dataclass(frozen=True, slots=True)
class Told:
    """A claimed event, read as far as it can be; `unreadable` says why no further."""

    claimed: Claimed
    event: Event | None = None
    snapshot: Snapshot | None = None
    invoice: Invoice | None = None
    unreadable: str | None = None

    @property
    def id(self) -> int:
        """Its number in the inbox."""
        return self.claimed.id

    @property
    def customer(self) -> str | None:
        """Whom it is about."""
        return self.claimed.customer

    @property
    def subscription(self) -> str | None:
        """Which subscription it is about."""
        if self.snapshot:
            return self.snapshot.subscription.id
        if self.invoice:
            return self.invoice.subscription
        if self.event and self.claimed.type == "checkout.session.completed":
            return events.reference(self.event.object.get("subscription"))
        return None


def told(claimed: Claimed) -> Told:
    """Read an event. One that was its worker's end too often is not touched again."""
    if claimed.lapses >= inbox.MOST_LAPSES:
        return Told(claimed, unreadable="its worker died with it, again and again")
    if claimed.failures >= inbox.MOST_FAILURES:
        return Told(claimed, unreadable="it could not be applied, again and again")
    try:
        event = events.read(claimed.body)
    except events.Unreadable as e:
        return Told(claimed, unreadable=str(e))
    if claimed.type in events.SUBSCRIPTION:
        return _snapshot(claimed, event)
    if claimed.type in events.INVOICE:
        return Told(claimed, event, invoice=invoices.read(event.object, claimed.created or 0))
    return Told(claimed, event)


def _snapshot(claimed: Claimed, event: Event) -> Told:
    try:
        subscription = subscriptions.read(event.object)
    except subscriptions.Incomplete as e:
        log.warning(
            "event.incomplete", event_id=claimed.event_id, missing=str(e), api_version=event.api_version
        )
        return Told(claimed, event)
    if claimed.created is None or subscription.customer != claimed.customer:
        return Told(claimed, event)
    fresh = claimed.sent_at is not None and claimed.sent_at - claimed.created <= subscriptions.FRESH_SECONDS
    ours = event.api_version == API_VERSION
    return Told(claimed, event, Snapshot(subscription, claimed.id, claimed.created, fresh, ours))


# ---- judging a batch


@dataclass
class Outcome:
    """What becomes of a batch's events, and of what is held."""

    settled: list[int] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    later: list[int] = field(default_factory=list)
    asking: dict[str | None, list[int]] = field(default_factory=lambda: defaultdict(list))
    buried: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    asked: set[int] = field(default_factory=set)
    wanted: set[str] = field(default_factory=set)
    heard: dict[str, int] = field(default_factory=dict)
    confirmed: dict[str, float] = field(default_factory=dict)  # when Stripe said so
    writes: list[subscriptions.Write] = field(default_factory=list)

    def ask(self, one: Told, reason: str | None = None) -> None:
        """Leave it to Stripe's next answer about its customer."""
        assert one.customer
        self.asking[reason].append(one.id)
        self.asked.add(one.id)
        self.wanted.add(one.customer)

    def doubt(self, one: Told) -> None:
        """It contradicts what is held: wait for what normally comes with it, then ask."""
        if one.claimed.looks:
            self.ask(one)
        else:
            self.later.append(one.id)


def apply(db: Database, claimed: Sequence[Claimed]) -> Outcome:
    """Bring customers up to date from the events they have, as far as those are certain."""
    batch = [told(event) for event in claimed]
    with db.begin(SYSTEM) as connection:
        locked = questions.lock_free(connection, {one.customer for one in batch if one.customer})
        mine = inbox.still_mine(connection, claimed)
        batch = [one for one in batch if one.id in mine]
        busy = [one.id for one in batch if one.customer and one.customer not in locked]
        inbox.put_off(connection, busy, delay=IN_OTHER_HANDS)
        batch = [one for one in batch if not one.customer or one.customer in locked]
        owned = customers.owners(connection, list(locked))
        outcome = _judge(connection, batch, locked, owned)
        subscriptions.write(connection, outcome.writes)
        questions.hear(connection, _heard(batch, locked, outcome))
        _let_go(connection, outcome)
        checkouts.hear(connection, _checkouts(batch))
        changed = _refresh(connection, batch, owned, outcome)
    tell(changed, _causes(batch, owned))
    for reason, ids in outcome.buried.items():
        log.error("inbox.buried", reason=reason, ids=ids)
    return outcome


def _let_go(connection: Connection, outcome: Outcome) -> None:
    inbox.settle(connection, outcome.settled)
    inbox.wait(connection, outcome.waiting)
    inbox.look_again(connection, outcome.later, delay=SECOND_LOOK)
    for reason, ids in outcome.asking.items():
        inbox.ask(connection, ids, reason)
    for reason, ids in outcome.buried.items():
        inbox.bury(connection, ids, reason)


def _refresh(
    connection: Connection, batch: Sequence[Told], owned: Mapping[str, str], outcome: Outcome
) -> list[Changed]:
    """The documents of all whom these events are about; and the catalogue, where one says it has changed."""
    told = {one.customer for one in batch if one.customer and one.customer in owned}
    unsure = {one.customer for one in batch if one.id in outcome.asked or one.id in outcome.later}
    confirmed = {owned[id]: told for id, told in outcome.confirmed.items() if id not in unsure}
    if any(one.claimed.type in events.CATALOGUE for one in batch):
        chores.hasten(connection, cataloguing.CHORE, cataloguing.SOON)
    tenants = {owned[customer] for customer in told}
    return state.refresh(connection, tenants, cause="event", events=_causes(batch, owned), confirmed=confirmed)


def _causes(batch: Sequence[Told], owned: Mapping[str, str]) -> dict[str, dict[str, str | None]]:
    """The events of each tenant: one that asks, or waits for a second look, may have told something as well."""
    causes: dict[str, dict[str, str | None]] = defaultdict(dict)
    for one in batch:
        if one.customer and one.customer in owned:
            causes[owned[one.customer]][one.claimed.event_id] = one.claimed.trace
    return causes


def _checkouts(batch: Sequence[Told]) -> Iterator[checkouts.News]:
    """What became of sessions: one that is done may still have to be paid."""
    told = [one for one in batch if one.event and one.claimed.type in events.CHECKOUT]
    for one in sorted(told, key=lambda one: (one.claimed.created or 0, "async" in one.claimed.type, one.id)):
        assert one.event
        change, thing = one.claimed.type.removeprefix("checkout.session."), one.event.object
        paid = "paid" if change == "async_payment_succeeded" else events.name(thing.get("payment_status"))
        done = checkouts.state_of("expired" if change == "expired" else "complete", paid)
        became = "failed" if change == "async_payment_failed" else done
        if one.event.object_id:
            yield checkouts.News(one.event.object_id, became, events.reference(thing.get("subscription")))


def _judge(
    connection: Connection, batch: Sequence[Told], locked: Mapping[str, Customer], owned: Mapping[str, str]
) -> Outcome:
    outcome = Outcome()
    ours = list(_for_us(batch, owned, outcome))
    held = subscriptions.rows(connection, ids={one.subscription for one in ours if one.subscription})
    after = {id: row.held for id, row in held.items()}
    sold = catalogue.current(connection)
    entitled = entitlements.of(connection, list(locked)) if sold.entitlements else {}

    def lacks(one: Subscription) -> bool:
        """Whether its products give something of Stripe's that no event tells."""
        return not sold.entitled(item.product for item in one.facts.items) <= entitled.get(one.customer, set())

    _fold(ours, held, locked, after, outcome, lacks=lacks)
    merged = invoices.learn(connection, [one.invoice for one in ours if one.invoice])
    overdue = _overdue(connection, ours, after)
    for one in ours:
        _settle(one, locked[str(one.customer)], after, merged, overdue, outcome)
    return outcome


def _for_us(batch: Sequence[Told], owned: Mapping[str, str], outcome: Outcome) -> Iterator[Told]:
    """Those of customers that are linked; what is to become of the others is clear."""
    for one in batch:
        if one.customer is None and one.unreadable:
            outcome.buried[one.unreadable].append(one.id)
        elif one.customer is None and one.claimed.type in events.SUBSCRIPTION:
            outcome.buried["names no customer"].append(one.id)
        elif one.customer is None:
            outcome.settled.append(one.id)
        elif one.customer not in owned:
            outcome.waiting.append(one.id)
        else:
            yield one


def _fold(
    ours: Sequence[Told],
    rows: Mapping[str, subscriptions.Row],
    locked: Mapping[str, Customer],
    after: dict[str, Held],
    outcome: Outcome,
    *,
    lacks: Callable[[Subscription], bool],
) -> None:
    """Take each subscription's snapshots in. Those that ask are asked about; `after` is what is held then."""
    by_subscription: dict[str, list[Told]] = defaultdict(list)
    for one in ours:
        if one.snapshot:
            by_subscription[one.snapshot.subscription.id].append(one)
    for id, ones in by_subscription.items():
        customer, row = locked[str(ones[0].customer)], rows.get(id)
        if customer.is_deleted:
            continue
        if row and row.customer != customer.id:  # whose lock we do not have
            for one in ones:
                outcome.ask(one)
            continue
        snapshots = [one.snapshot for one in ones if one.snapshot]
        folded = subscriptions.fold(row.held if row else None, snapshots, customer.answered_seen)
        if (
            _waits(folded, row, lacks) and not customer.failures
        ):  # or Stripe keeps us waiting: what is certain holds
            for one in ones:
                outcome.ask(one)
            if row:
                after[id] = row.held
            continue
        heard = row.heard if row else 0
        if folded.heard:
            told = max(snapshot.created for snapshot in snapshots)
            outcome.confirmed[customer.id] = max(told, outcome.confirmed.get(customer.id, 0))
        if folded.heard and customer.is_asked:  # whoever is asking must learn that this came in between
            heard = outcome.heard[customer.id] = outcome.heard.get(customer.id, customer.heard) + 1
        if folded.held and (not row or folded.held != row.held or heard != row.heard):
            outcome.writes.append(subscriptions.Write(id, folded.held, heard, folded.merged))
        if folded.held:
            after[id] = folded.held
        for one in ones:
            if folded.verdicts[one.id] is Verdict.ASK:
                outcome.ask(one)


def _waits(folded: Folded, row: subscriptions.Row | None, lacks: Callable[[Subscription], bool]) -> bool:
    """Whether the answer is waited for: no step on the way to it is shown, such as the moment before a purchase
    is paid. An end waits for nothing.
    """
    if folded.held and folded.held.is_final:
        return False
    is_unpaid = row is None and folded.held is not None and folded.held.status == "incomplete"
    return folded.is_in_doubt or is_unpaid or (folded.merged is not None and lacks(folded.merged))


def _is_answered(one: Told, customer: Customer) -> bool:
    """Whether Stripe was asked after this event had arrived, and what it answered is held."""
    return one.id <= customer.answered_seen


def _overdue(connection: Connection, ours: Sequence[Told], after: Mapping[str, Held]) -> set[str]:
    """The delinquent subscriptions among these of which the invoice that made them so is known."""
    delinquent = {
        one.subscription
        for one in ours
        if (held := after.get(one.subscription or "")) and held.status in subscriptions.DELINQUENT
    }
    if not delinquent:
        return set()
    still_open = invoices.still_open(connection, [id for id in delinquent if id])
    return {invoice.subscription for invoice in still_open if invoice.may_be_overdue}


def _settle(
    one: Told,
    customer: Customer,
    after: Mapping[str, Held],
    merged: Mapping[str, Invoice],
    overdue: set[str],
    outcome: Outcome,
) -> None:
    """What becomes of one event, now that the whole batch is taken in."""
    held = after.get(one.subscription or "")
    if one.id in outcome.asked:
        return
    if one.unreadable:
        outcome.ask(one, one.unreadable)
    elif customer.is_deleted or _is_answered(one, customer):
        outcome.settled.append(one.id)
    elif one.claimed.type in (events.CUSTOMER_DELETED, events.ENTITLEMENTS) or _is_incomplete(one):
        outcome.ask(one)
    elif one.subscription and (
        held is None
        or (one.invoice and _contradicts(merged[one.invoice.id], held))
        or (held.status in subscriptions.DELINQUENT and one.subscription not in overdue)
    ):
        outcome.doubt(one)
    else:
        outcome.settled.append(one.id)


def _is_incomplete(one: Told) -> bool:
    return one.claimed.type in events.SUBSCRIPTION and one.snapshot is None


def _contradicts(invoice: Invoice, held: Held) -> bool:
    """Whether the subscription should have moved on with its invoice."""
    if invoice.status in CLOSED:
        return held.status in subscriptions.DELINQUENT or held.status == "incomplete"
    return invoice.is_overdue and held.status in PAYING


def _heard(
    batch: Sequence[Told], locked: Mapping[str, Customer], outcome: Outcome
) -> Iterator[questions.Heard]:
    for id in sorted(outcome.wanted | outcome.heard.keys()):
        created = [one.claimed.created or 0 for one in batch if one.customer == id]
        heard = outcome.heard.get(id, locked[id].heard)
        yield questions.Heard(id, heard, max(created), id in outcome.wanted)


def tell(changed: Iterable[Changed], causes: Mapping[str, Causes] = NO_CAUSES) -> None:
    """Say which documents have a new version and, by tenant, which events made it. To be said once it is so."""
    for one in changed:
        telemetry.happened(
            "document.changed",
            causes.get(one.tenant_id, {}),
            tenant=one.tenant_id,
            version=one.version,
            position=one.position,
        )


# ---- asking


@dataclass
class Answer:
    """All Stripe says of a customer, each subscription with the time of the page it stood on."""

    subscriptions: dict[str, tuple[Subscription, int, int]] = field(default_factory=dict)
    invoices: list[Invoice] = field(default_factory=list)
    entitlements: set[str] | None = None  # None: not asked, for the catalogue has none
    is_deleted: bool = False
    named: str | None = None  # the tenant that the customer's metadata names


def ask(db: Database, stripe: Stripe, budget: Budget, question: Question, lane: Lane = "background") -> bool:
    """Bring one customer up to date by what Stripe says. False if it has to be asked again.

    What nobody waits for is watched: where it changes something that no event has told, that is written down.
    Who waits comes before the events of what has just happened.
    """
    return attempt(db, stripe, budget, question, lane) is None


def attempt(
    db: Database, stripe: Stripe, budget: Budget, question: Question, lane: Lane = "background"
) -> StripeFailed | None:
    """The same, and why it has to be asked again."""
    try:
        answer = _Reader(db, stripe, budget, question, lane).answer()
        is_held = hold(db, question, answer, watched=lane == "background")
        return None if is_held else StripeFailed("overtaken")
    except StripeFailed as e:  # of a deadline that is ours, Stripe knows nothing
        failure = e if deadline.left() > 0 else StripeFailed("out_of_time")
    except Busy:
        failure = StripeFailed("busy")
    except ServiceUnavailable:
        raise  # its lease brings it back
    except Exception:
        log.exception("question.broken", customer=question.customer)
        failure = StripeFailed("broken_answer")
    _failed(db, budget, question, failure)
    return failure


def hold(db: Database, question: Question, answer: Answer, *, watched: bool = False) -> bool:
    """Write an answer unless a later question or a newer event has overtaken it; settle what it settles.

    Of a customer that was forgotten as somebody was about to ask, nothing is kept.
    """
    with db.begin(SYSTEM) as connection:
        if (holding := _hold(connection, question, answer, watched=watched)) is None:
            return False
    for one in holding.asked_by:
        if one.reason is not None and not holding.again:
            log.error("inbox.buried", event_id=one.event_id, reason=one.reason, customer=question.customer)
    causes = {one.event_id: one.trace for one in holding.asked_by}
    telemetry.follow(causes)
    tell(holding.changed, {one.tenant_id: causes for one in holding.changed})
    log.info("question.answered", customer=question.customer, put=question.put, again=holding.again)
    return not holding.again


@dataclass(frozen=True, slots=True)
class _Holding:
    """What became of an answer: the events it was asked by, what it changed, and whether to ask once more."""

    asked_by: Sequence[Asking] = ()
    changed: Sequence[Changed] = ()
    again: bool = False
    news: bool = False  # of a customer that is watched: a document says something else by it


def _hold(connection: Connection, question: Question, answer: Answer, *, watched: bool) -> _Holding | None:
    """None where a later question has been put."""
    customer = questions.lock(connection, question.customer)
    if not questions.is_latest(connection, question):
        return None
    tenants = customers.owners(connection, [question.customer]).values()
    if not tenants and not customers.former(connection, question.customer):
        questions.drop(connection, question.customer)
        return _Holding()
    rows = subscriptions.rows(connection, ids=answer.subscriptions, customers=[question.customer])
    rows = {id: row for id, row in rows.items() if row.customer == question.customer}
    overtaken = {id for id, row in rows.items() if row.heard > question.heard}
    writes = list(_answered(answer, rows, overtaken))
    before = _known(connection, question.customer, tenants) if watched else {}
    if overtaken:
        questions.refused(connection, question)
        asked_by = inbox.asking(connection, question.customer)
    else:
        asked_by = _finish(connection, question, answer)
    invoices.learn(connection, answer.invoices)
    subscriptions.write(connection, writes)
    if answer.is_deleted and not overtaken:
        subscriptions.end(connection, question.customer)
    if answer.entitlements is not None:
        entitlements.replace(connection, question.customer, answer.entitlements)
    news = _is_news(connection, before)
    if watched:
        is_untold = news and not (asked_by or _is_told(connection, customer))
        _watch(connection, question, answer, tenants, is_untold=is_untold)
    confirmed = {} if overtaken else dict.fromkeys(tenants, math.inf)
    behind = {tenant: [one.event_id for one in asked_by] for tenant in tenants}
    changed = state.refresh(connection, tenants, cause="answer", events=behind, confirmed=confirmed)
    return _Holding(asked_by, changed, bool(overtaken), news)


def _finish(connection: Connection, question: Question, answer: Answer) -> list[Asking]:
    """Settle what the question was for; one with a reason ends buried."""
    finished = inbox.answered(connection, question.customer, seen=question.seen)
    again = inbox.is_asking(connection, question.customer)
    questions.answered(connection, question, deleted=answer.is_deleted, again=again)
    return finished


# ---- what no event has told


def _known(connection: Connection, customer: str, tenants: Collection[str]) -> dict[str, Evaluated]:
    """The documents by what is held before the answer. Of a link's first answer, none: it has all to tell."""
    return state.evaluate(connection, tenants) if questions.met(connection, [customer]) else {}


def _is_news(connection: Connection, before: Mapping[str, Evaluated]) -> bool:
    """Whether one of these documents says something else by what is held now. The time is that of now for both,
    and the edition may not be another: so nothing but the answer counts.
    """
    after = state.evaluate(connection, before.keys()) if before else {}
    return any(
        one.edition == after[tenant].edition and one.digest() != after[tenant].digest()
        for tenant, one in before.items()
    )


def _is_told(connection: Connection, customer: Customer) -> bool:
    """Whether an event has come since the last answer that is not held for what it says: Stripe is, or will be,
    asked in its place.
    """
    since = customer.answered_seen
    due = inbox.newest_due(connection, [customer.id])
    return (
        due is None
        or due.get(customer.id, 0) > since
        or inbox.is_passed_over(connection, customer.id, after=since)
    )


def _watch(
    connection: Connection, question: Question, answer: Answer, tenants: Collection[str], *, is_untold: bool
) -> None:
    """Suspect what this answer, by which no document is written yet, is the first to tell."""
    kind: Kind | None = None
    if answer.is_deleted:
        kind = "customer_deleted"
    elif any(_is_named_otherwise(connection, tenant, answer.named) for tenant in tenants):
        kind = "foreign_customer"
    elif is_untold:
        kind = "changed"
    drift.clear(connection, tenants, still=kind)
    if kind:
        suspect(connection, {question.customer: None}, kind, seen=question.seen)


def _is_named_otherwise(connection: Connection, tenant: str, named: str | None) -> bool:
    """Whether Stripe's customer says that it is another tenant's, and not because it has not been told yet."""
    return named is not None and named != tenant and not customers.profile(connection, tenant).is_untold


def suspect(connection: Connection, events: Mapping[str, str | None], kind: Kind, *, seen: int) -> None:
    """Write down that the documents of these customers' tenants may have been wrong, as they are now.

    With each customer goes the event that was missed, if there is one. Before a link's first answer nobody was
    told anything that it could contradict.
    """
    owners = customers.owners(connection, events.keys())
    if kind == "missed_event":
        known = questions.met(connection, owners.keys())
        owners = {customer: tenant for customer, tenant in owners.items() if customer in known}
    shown = state.shown(connection, owners.values())
    unknown = Shown(0, None)
    drift.suspect(
        connection,
        (
            Suspicion(tenant, customer, kind, one.version, one.state, seen, events[customer])
            for customer, tenant in owners.items()
            if (one := shown.get(tenant, unknown))
        ),
    )


@dataclass(frozen=True, slots=True)
class Difference:
    """How a tenant's document would change by Stripe's answer, and what it would be suspected of."""

    tenant_id: str
    customer: str
    before: Shown
    after: Shown
    kind: Kind | None
    is_told: bool  # something, by the answer: else it changes for reasons of our own


def imagine(
    db: Database, stripe: Stripe, budget: Budget, customer: str, lane: Lane = "background"
) -> Difference:
    """What asking Stripe about this linked customer would change. All of it is taken back."""
    try:
        question, answer = _imagined(db, stripe, budget, customer, lane)
    except StripeFailed as e:
        if e.reason != "unknown_customer":
            raise
        answer = None
    with db.begin(SYSTEM, keep=False) as connection:
        questions.lock(connection, customer)
        tenant = customers.owners(connection, [customer]).get(customer, "")
        before = state.shown(connection, [tenant]).get(tenant, Shown(0, None))
        if answer is None:
            return Difference(tenant, customer, before, before, "foreign_customer", is_told=False)
        holding = _hold_imagined(connection, question, answer, watched=True)
        after = state.shown(connection, [tenant]).get(tenant, before)
        is_told = holding is not None and holding.news
        return Difference(tenant, customer, before, after, drift.suspected(connection, tenant), is_told)


@dataclass(frozen=True, slots=True)
class Side:
    """A tenant as it is, or as it would be: its document, and what its customer has."""

    document: Json
    subscriptions: Mapping[str, Facts]


@dataclass(frozen=True, slots=True)
class Beside:
    """What is held of a customer, and what Stripe says: as it would be held."""

    tenant_id: str
    here: Side
    there: Side
    is_deleted: bool  # at Stripe
    is_overtaken: bool  # while Stripe was read, an event came in, or an answer: that may be on one side only


def compare(db: Database, stripe: Stripe, budget: Budget, customer: str) -> Beside:
    """What asking Stripe about this linked customer would change. All of it is taken back."""
    question, answer = _imagined(db, stripe, budget, customer, "background")
    with db.begin(SYSTEM, keep=False) as connection:
        questions.lock(connection, customer)
        if (tenant := customers.owners(connection, [customer]).get(customer)) is None:
            raise NoCustomer
        here = _side(connection, tenant, customer)
        holding = _hold_imagined(connection, question, answer, watched=False)
        there = _side(connection, tenant, customer)
    return Beside(tenant, here, there, answer.is_deleted, is_overtaken=holding is None or holding.again)


def _side(connection: Connection, tenant: str, customer: str) -> Side:
    """By the clock of now, so that the two differ by nothing but what Stripe says."""
    document = state.evaluate(connection, [tenant])[tenant].evaluation.document
    return Side(document, dict(subscriptions.of(connection, [customer]).get(customer, ())))


def _imagined(
    db: Database, stripe: Stripe, budget: Budget, customer: str, lane: Lane
) -> tuple[Question, Answer]:
    """A question that nobody puts, and Stripe's answer."""
    with db.begin(SYSTEM, keep=False) as connection:
        questions.lock(connection, customer)
        question = questions.imagined(connection, customer, seen=inbox.newest(connection))
    return question, _Reader(db, stripe, budget, question, lane, leased=False).answer()


def _hold_imagined(
    connection: Connection, question: Question, answer: Answer, *, watched: bool
) -> _Holding | None:
    """Hold the answer as if it had been asked for now. None where another has come in meanwhile, which may be
    the newer one. The caller holds the lock, and takes all of it back.
    """
    put, answered = questions.numbers(connection, question.customer)
    if answered != question.put:
        return None
    return _hold(connection, replace(question, put=put), answer, watched=watched)


def _answered(
    answer: Answer, rows: Mapping[str, subscriptions.Row], overtaken: set[str]
) -> Iterator[subscriptions.Write]:
    for id, (subscription, asked, until) in answer.subscriptions.items():
        row, status = rows.get(id), subscription.facts.status
        if id in overtaken or (row and row.held.is_final and status not in FINAL):
            continue
        asked = max(asked, row.held.as_of) if row else asked  # what is held was known when the question was put
        held = Held(status, subscription.facts.digest(), asked, max(asked, until), "answer")
        changed = row is None or row.held.digest != held.digest
        yield subscriptions.Write(id, held, row.heard if row else 0, subscription if changed else None)


def _failed(db: Database, budget: Budget, question: Question, failure: StripeFailed) -> None:
    """Nobody's attempts are used up: it is asked again, later and later, for as long as it takes."""
    if failure.reason == "key_refused":
        log.error("stripe.key_refused", advice="check STRIPE_SECRET_KEY and what the key may read")
        budget.pause(ALL, KEY_REFUSED_SECONDS, because=failure.reason)
    elif failure.reason == "rate_limited":
        budget.pause(ALL, RATE_LIMITED_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311  # spreads, hides nothing
    delay = DELAYS.get(failure.reason, backoff(question.failures))
    with db.begin(SYSTEM) as connection:
        questions.failed(connection, question, delay=delay, counted=failure.reason not in NOT_STRIPES)
        if failure.reason == "unknown_customer":
            suspect(connection, {question.customer: None}, "foreign_customer", seen=question.seen)
        asked_by = inbox.asking(connection, question.customer)
    telemetry.mention(failure=failure.reason)
    telemetry.follow({one.event_id: one.trace for one in asked_by})
    log.warning("question.failed", customer=question.customer, reason=failure.reason, before=question.failures)


def backoff(failures: int) -> timedelta:
    """Twice as long each time, up to a minute, and never in step with others."""
    seconds = min(LONGEST_BACKOFF_SECONDS, 2.0 ** min(failures, 10))
    return timedelta(seconds=seconds * random.uniform(0.5, 1.0))  # noqa: S311  # spreads, hides nothing


class _Reader:
    """Reads a customer from Stripe, one counted request at a time, with no transaction open."""

    def __init__(
        self,
        db: Database,
        stripe: Stripe,
        budget: Budget,
        question: Question,
        lane: Lane,
        *,
        leased: bool = True,
    ) -> None:
        self._leased = leased  # else nobody has put the question
        self._db = db
        self._stripe = stripe
        self._budget = budget
        self._question = question
        self._lane = lane
        self._found = Answer()

    def answer(self) -> Answer:
        """Everything that is kept of the customer."""
        held, still_open, has_entitlements = self._known()
        for page in self._pages("subscriptions.list", self._stripe.subscriptions_of, self._question.customer):
            for thing in page.things:
                self._add(thing, page)
        for id, row in held.items():  # a row missing from a list is no proof
            if id not in self._found.subscriptions and not row.held.is_final:
                self._add_one(id)
        self._add_overdue(still_open)
        if has_entitlements:
            self._found.entitlements = set(self._entitlements())
        if all(one.facts.status in FINAL for one, *_ in self._found.subscriptions.values()):
            customer = self._one("customers.retrieve", self._stripe.customer, self._question.customer)
            if customer is None:  # not even as a deleted one
                log.error(
                    "stripe.unknown_customer",
                    customer=self._question.customer,
                    advice="is STRIPE_SECRET_KEY a key of the account this customer is in?",
                )
                raise StripeFailed("unknown_customer")
            self._found.is_deleted = customer.things[0].get("deleted") is True
            self._add_name(customer.things[0])
        return self._found

    def _known(self) -> tuple[dict[str, subscriptions.Row], list[Invoice], bool]:
        with self._db.begin(SYSTEM) as connection:
            held = subscriptions.rows(connection, customers=[self._question.customer])
            sold = catalogue.current(connection)
            has_entitlements = (
                bool(sold.entitlements)
                or not sold.edition
                or inbox.is_asking(connection, self._question.customer, events.ENTITLEMENTS)
            )
            return held, invoices.still_open(connection, list(held)), has_entitlements

    def _entitlements(self) -> Iterator[str]:
        read = self._stripe.entitlements_of
        for page in self._pages("entitlements.active_entitlements.list", read, self._question.customer):
            yield from filter(None, (events.name(thing.get("lookup_key")) for thing in page.things))

    def _add(self, thing: Json, page: Reading) -> None:
        items, asked, answered = None, page.asked, page.answered
        listed = thing.get("items")
        if isinstance(listed, dict) and listed.get("has_more"):
            items = []
            for more in self._pages("subscription_items.list", self._stripe.items_of, str(thing.get("id"))):
                items += more.things
                asked, answered = min(asked, more.asked), max(answered, more.answered)
        asked = max(asked, self._question.latest_created)
        try:
            subscription = subscriptions.read(thing, items)
        except subscriptions.Incomplete as e:
            log.warning("stripe.incomplete", customer=self._question.customer, missing=str(e))
            raise StripeFailed("nonsense") from e
        self._found.subscriptions[subscription.id] = (subscription, asked, max(asked, answered))
        self._add_name(thing.get("customer"))
        latest = thing.get("latest_invoice")
        self._add_invoice(latest if isinstance(latest, dict) else {}, asked)

    def _add_name(self, customer: object) -> None:
        """Whose the customer is by its metadata, where it is written out."""
        if isinstance(customer, dict):
            self._found.named = customers.named(customer) or self._found.named

    def _add_one(self, id: str) -> None:
        page = self._one("subscriptions.retrieve", self._stripe.subscription, id)
        if page is None:
            log.warning("stripe.unknown_subscription", subscription=id, customer=self._question.customer)
        else:
            self._add(page.things[0], page)

    def _add_overdue(self, still_open: Iterable[Invoice]) -> None:
        """Since when the delinquent are so: their open invoices, and what became of those we thought open."""
        delinquent = {
            id
            for id, (one, *_) in self._found.subscriptions.items()
            if one.facts.status in subscriptions.DELINQUENT
        }
        listed = set()
        for id in sorted(delinquent):
            for page in self._pages("invoices.list", self._stripe.open_invoices_of, id):
                for thing in page.things:
                    self._add_invoice(thing, page.asked)
                    listed.add(thing.get("id"))
        for invoice in still_open:
            if invoice.subscription in delinquent and invoice.id not in listed:
                one = self._one("invoices.retrieve", self._stripe.invoice, invoice.id)
                self._add_invoice(one.things[0] if one else {}, one.asked if one else 0)

    def _add_invoice(self, thing: Json, as_of: int) -> None:
        if invoice := invoices.read(thing, as_of):
            self._found.invoices.append(invoice)

    def _pages(
        self, endpoint: str, read: Callable[[str, str | None], Reading | None], of: str
    ) -> Iterator[Reading]:
        def counted(after: str | None) -> Reading | None:
            self._spend(endpoint)
            return read(of, after)

        return pages(counted)

    def _one(self, endpoint: str, read: Callable[[str], Reading | None], id: str) -> Reading | None:
        self._spend(endpoint)
        return read(id)

    def _spend(self, endpoint: str) -> None:
        self._budget.spend(endpoint, self._lane)
        if not self._leased:
            return
        with self._db.begin(SYSTEM) as connection:
            if not questions.renew(connection, self._question):
                raise StripeFailed("overtaken")


# ---- for those who wait


def now(db: Database, stripe: Stripe, budget: Budget, customer: str, *, patience: float = 15.0) -> bool:
    """Ask about this customer while somebody waits. False if no answer that began after this call is held."""
    with db.begin(SYSTEM) as connection:
        questions.want(connection, [customer])
        before, _ = questions.numbers(connection, customer)
    until = time.monotonic() + patience
    while time.monotonic() < until:
        with db.begin(SYSTEM) as connection:
            seen = inbox.newest(connection)
            is_early = until - time.monotonic() > patience / 2  # or it would be cut off before it is answered
            put = questions.put(connection, seen=seen, most=1, customer=customer) if is_early else []
        for question in put:
            with deadline.within(until - time.monotonic()):
                if ask(db, stripe, budget, question, "waiting"):
                    return True
        with db.begin(SYSTEM) as connection:
            _, answered = questions.numbers(connection, customer)
        if answered > before:
            return True
        time.sleep(0.1)
    return False


def insist(db: Database, stripe: Stripe, budget: Budget, customer: str) -> None:
    """The same, where nothing can go on without; as long as the deadline around it allows."""
    if not now(db, stripe, budget, customer, patience=min(INSIST_SECONDS, deadline.left())):
        raise StripeFailed("unanswered", retry_after=5)


def link(
    db: Database,
    tenant_id: str,
    customer: str,
    *,
    by: str | By,
    replace: bool = False,
    hurried: bool = True,
) -> int | None:
    """Make the customer the tenant's, wake its events, and have Stripe asked. None if the tenant has another.

    Under the customer's lock: an event either finds its owner, or waits already and is woken here. What an
    operator links (`By`) is in the trail. One of many is not `hurried`: where Stripe was never asked about it,
    that is left to `reconcile.meet`, and events do not wait behind all of them.
    """
    actor = by.actor if isinstance(by, By) else by
    with db.begin(SYSTEM) as connection:
        questions.lock(connection, customer)
        is_new = customers.of(connection, tenant_id, keep=True) != customer
        if is_new and checkouts.is_under_way(connection, tenant_id):
            raise CheckoutUnderWay
        customers.link(connection, tenant_id, customer, by=actor, replace=replace)
        if customer not in customers.owners(connection, [customer]):
            return None
        if hurried or questions.was_answered(connection, customer):
            questions.want(connection, [customer])
        woken = inbox.wake(connection, customer)
        if isinstance(by, By):
            audit.note(connection, by, "tenant.link", tenant_id=tenant_id, stripe_object=customer)
        whose = {tenant_id, *customers.former(connection, customer)}
        changed = state.refresh(connection, whose, cause="link")
    tell(changed)
    log.info("customer.linked", tenant=tenant_id, customer=customer, by=actor)
    return woken


def unlink(db: Database, tenant_id: str, by: By) -> str:
    """Leave the tenant without a customer; which one it was. `CheckoutUnderWay` while it is buying.

    Under the customer's lock: an event still finds its owner, or waits for the next one. What the customer has
    stays held, and grants nothing.
    """
    with db.begin(SYSTEM) as connection:
        customer = customers.of(connection, tenant_id)
        if customer is None:
            raise NoCustomer
        questions.lock(connection, customer)
        if customers.of(connection, tenant_id, keep=True) != customer:
            raise Busy("database")  # somebody is linking another
        if checkouts.is_under_way(connection, tenant_id):
            raise CheckoutUnderWay
        if checkouts.is_awaited(connection, tenant_id, within=checkouts.AWAITED):
            raise CheckoutUnderWay
        customers.unlink(connection, tenant_id, customer)
        audit.note(connection, by, "tenant.unlink", tenant_id=tenant_id, stripe_object=customer)
        changed = state.refresh(connection, [tenant_id], cause="unlink")
    tell(changed)
    log.info("customer.unlinked", tenant=tenant_id, customer=customer, by=by.actor)
    return customer


def replay(connection: Connection, events: Sequence[Entry], pace: Pace = AT_ONCE) -> list[inbox.Named]:
    """Make events due again and have Stripe asked about their customers: a replay is there to repair. Which."""
    concerned = {event.customer for event in events if event.customer}
    questions.want(connection, customers.owners(connection, concerned), pace)
    return inbox.replay(connection, [event.id for event in events])


def ignore(connection: Connection, events: Sequence[Entry], pace: Pace = AT_ONCE) -> list[inbox.Named]:
    """Finish events unread. Stripe is asked in place of those that nobody has judged yet, so that no state is
    wrong for it; a question that one of them has put goes on. Which.
    """
    concerned = {event.customer for event in events if event.customer and event.state == "due"}
    questions.want(connection, customers.owners(connection, concerned), pace)
    return inbox.ignore(connection, [event.id for event in events])
