"""The inbox for operators: what fails and why, each event with its whole story, and what can be done about it.

Nothing done here can make a tenant's state wrong: who retries has Stripe asked as well, and in place of what
is ignored unread Stripe is asked. Many events are dealt with in stretches, each in a transaction of its own, so
that no lock is held for long; `Dealt` says whether there are more.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from billing import (
    audit,
    checkouts,
    customers,
    errors,
    events,
    inbox,
    invoices,
    questions,
    signatures,
    subscriptions,
    sync,
    triage,
)
from billing.audit import By
from billing.db import SYSTEM
from billing.operations import masking, repairs
from billing.operations.base import SHOWN, Page
from billing.operations.repairs import Linked
from billing.questions import Pace, Standing
from billing.triage import Choice, Entry, Record
from billing.wiring import Billing

AT_ONCE = 1_000  # events, in one transaction
SECONDS = 3.0  # for which a request goes on
RELATED = 20
DEEDS = 20
LONGEST = 200_000  # characters of a payload that are shown


# ---- the whole at a glance


@dataclass(frozen=True, slots=True)
class Overview:
    """The inbox as a whole; secrets stand with their place in STRIPE_WEBHOOK_SECRET."""

    states: Sequence[triage.Count]
    failures: Sequence[triage.Group]
    strangers: Sequence[triage.Group]
    secrets: Sequence[Signed]


@dataclass(frozen=True, slots=True)
class Signed:
    """A signing secret, told by its place and never shown, and how many of the newest 1000 events it has."""

    place: str
    events: int
    latest: datetime


def overview(billing: Billing) -> Overview:
    """How much is under way, what failed and why, whom nobody owns, and which secrets Stripe signs with."""
    with billing.db.begin(SYSTEM) as connection:
        seen = triage.overview(connection)
    secrets = [Signed(_place(billing, one.fingerprint), one.events, one.latest) for one in seen.secrets]
    return Overview(seen.states, seen.failures, seen.strangers, secrets)


def _place(billing: Billing, fingerprint: str) -> str:
    """Which of STRIPE_WEBHOOK_SECRET's secrets it is; they are told apart by their order."""
    secrets = billing.settings.stripe_webhook_secret
    known = [signatures.fingerprint(secret.get_secret_value()) for secret in secrets]
    if fingerprint not in known:
        return "a secret that is no longer configured"
    return f"secret {known.index(fingerprint) + 1} of {len(known)}"


# ---- finding events


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an operator looks for: what fits everything that is said.

    `of` is a tenant, or an id of Stripe's: of an event, a customer or an object.
    """

    event_ids: Sequence[str] | None = None
    state: triage.State | None = None
    type: str | None = None
    reason: str | None = None
    kind: str | None = None
    of: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def may_be_retried(self) -> bool:
        """Whether all that fit may be retried together: what was given up. The rest goes on by itself."""
        return self.state == "buried"

    @property
    def may_be_ignored(self) -> bool:
        """Whether all that fit may be ignored together: what fails or waits, never what is merely due."""
        return self.state in triage.UNFINISHED


@dataclass(frozen=True, slots=True)
class Found:
    """Events that fit. `matching` is how many there are in all; None where that would take long to know."""

    page: Page[Entry]
    matching: int | None
    is_counted: bool  # to the end: else there may be more than `matching`


def find(billing: Billing, wanted: Wanted, *, after: str | None = None, most: int = SHOWN) -> Found:
    """The events that fit everything that is said, the newest first."""
    with billing.db.begin(SYSTEM) as connection:
        choice = _choice(connection, wanted)
        entries, on = triage.look(connection, choice, most=most, past=_number(after))
        matching, is_more = triage.count(connection, choice) if wanted.may_be_ignored else (None, True)
    return Found(Page(entries, None if on is None else str(on)), matching, is_counted=not is_more)


def _number(after: str | None) -> int | None:
    return int(after) if after and after.isascii() and after.isdigit() and len(after) < 19 else None


def _choice(connection: Connection, wanted: Wanted) -> Choice:
    """In words of the inbox: whose events they are, and about what."""
    said = Choice(
        event_ids=wanted.event_ids,
        state=wanted.state,
        type=wanted.type,
        reason=wanted.reason,
        kind=wanted.kind,
        since=wanted.since,
        until=wanted.until,
    )
    of = wanted.of
    if not of:
        return said
    if customer := customers.of(connection, of):
        return replace(said, about=customer)
    if of.startswith("evt_"):
        return replace(said, event_ids=[of])
    if of.startswith(("cus_", "prod_", "price_")):
        return replace(said, about=of)
    return replace(said, object_id=of, about=_customer_of(connection, of))


def _customer_of(connection: Connection, object_id: str) -> str | None:
    """Whose subscription or invoice it is, as far as we know."""
    invoice = invoices.find(connection, object_id)
    held = subscriptions.rows(connection, ids=[invoice.subscription if invoice else object_id])
    return next((row.customer for row in held.values()), None)


# ---- one event


@dataclass(frozen=True, slots=True)
class Payload:
    """An event's body, as text; `is_whole` unless it was cut off or is no JSON."""

    text: str
    is_masked: bool
    is_whole: bool


@dataclass(frozen=True, slots=True)
class Thing:
    """What is held of the object an event is about."""

    kind: str
    id: str
    status: str
    as_of: datetime | None  # in Stripe's time
    source: str | None  # whether an event or an answer said so


@dataclass(frozen=True, slots=True)
class Story:
    """Everything known of an event; the record without its body."""

    event: Entry
    api_version: str | None
    livemode: bool | None
    sent_at: datetime | None
    secret: str | None
    trace_id: str | None
    fault: str | None
    failed_at: Sequence[datetime]
    tenant_id: str | None
    customer: Standing | None
    is_answered: bool  # Stripe was asked after it had come, and what it said is held
    held: Thing | None
    related: Sequence[Entry]
    deeds: Sequence[audit.Row]
    payload: Payload
    at_stripe: str | None  # the address of its page there

    @property
    def may_be_retried(self) -> bool:
        """Whether it would change anything: what is under way goes on by itself."""
        return self.event.state not in ("due", "asking")

    @property
    def may_be_ignored(self) -> bool:
        """Whether it is not finished well already."""
        return self.event.state != "settled"

    @property
    def may_be_linked(self) -> bool:
        """Whether it has a customer that nobody owns."""
        return self.event.customer is not None and self.tenant_id is None


def one(billing: Billing, event_id: str) -> Story | None:
    """The event with all that is known around it, or None if it is not here, or no more."""
    with billing.db.begin(SYSTEM) as connection:
        record = triage.record(connection, event_id)
        return _story(billing, connection, record, _masked(record.body)) if record else None


def reveal(billing: Billing, by: By, event_id: str) -> Story | None:
    """The same, with the payload as it came. That somebody saw it stays in the trail."""
    with billing.db.begin(SYSTEM) as connection:
        record = triage.record(connection, event_id)
        if record is None:
            return None
        _note(connection, by, "payload.reveal", [(record.event_id, record.customer)])
        return _story(billing, connection, record, _as_it_came(record.body))


def _story(billing: Billing, connection: Connection, record: Record, payload: Payload) -> Story:
    customer = record.customer
    standing = questions.standing(connection, customer) if customer else None
    about = customer or record.object_id
    related: list[Entry] = []
    if about:
        related, _ = triage.look(connection, Choice(about=about), most=RELATED + 1)
    return Story(
        event=Entry(*(getattr(record, name) for name in Entry.__slots__)),
        api_version=record.api_version,
        livemode=record.livemode,
        sent_at=record.sent_at,
        secret=_place(billing, record.secret) if record.secret else None,
        trace_id=record.trace.split("-")[1] if record.trace and record.trace.count("-") == 3 else None,
        fault=record.fault,
        failed_at=record.failed_at,
        tenant_id=customers.owners(connection, [customer]).get(customer) if customer else None,
        customer=standing,
        is_answered=bool(standing and record.id <= standing.answered_seen),
        held=_held(connection, record),
        related=[other for other in related if other.id != record.id][:RELATED],
        deeds=audit.about(connection, record.event_id, most=DEEDS),
        payload=payload,
        at_stripe=_at_stripe(billing, record),
    )


def _held(connection: Connection, record: Record) -> Thing | None:
    """What is held now of what it is about: a subscription, an invoice, or a Checkout of ours."""
    if record.object_id is None:
        return None
    for row in subscriptions.rows(connection, ids=[record.object_id]).values():
        return Thing("subscription", row.id, row.held.status, _moment(row.held.as_of), row.held.source)
    if invoice := invoices.find(connection, record.object_id):
        return Thing("invoice", invoice.id, invoice.status, _moment(invoice.as_of), None)
    if state := checkouts.state_here(connection, record.object_id):
        return Thing("checkout", record.object_id, state, None, None)
    return None


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _at_stripe(billing: Billing, record: Record) -> str | None:
    """Its page at Stripe; a stand-in has none."""
    is_an_id = record.event_id.startswith("evt_") and record.event_id.replace("_", "").isalnum()
    if billing.settings.stripe_api_base is not None or not is_an_id:
        return None
    mode = "" if record.livemode else "test/"
    return f"https://dashboard.stripe.com/{mode}events/{record.event_id}"


def _masked(body: bytes) -> Payload:
    """Of what is no JSON nothing is shown: nobody can tell what is in it."""
    try:
        events.read(body)
        read = json.loads(body.decode())
    except (events.Unreadable, ValueError, RecursionError):
        return Payload(f"{len(body):,} bytes that cannot be read.", is_masked=True, is_whole=False)
    return _payload(_written(masking.event(read)), is_masked=True)


def _as_it_came(body: bytes) -> Payload:
    try:
        written = _written(json.loads(body.decode()))
    except (ValueError, RecursionError):
        written = body.decode("utf-8", "replace")
    return _payload(written, is_masked=False)


def _written(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _payload(written: str, *, is_masked: bool) -> Payload:
    """Half of a surrogate pair, which JSON may hold, is no text."""
    shown = written[:LONGEST].encode("utf-8", "replace").decode()
    return Payload(shown, is_masked, is_whole=len(written) <= LONGEST)


# ---- doing something about them


@dataclass(frozen=True, slots=True)
class Dealt:
    """How many events were dealt with; `is_done` unless there was no time for all that fit.

    Those that are `left` were passed over, for somebody else was at work on their customers.
    """

    events: int
    is_done: bool
    left: int = 0


Step = Callable[[Connection, Sequence[Entry], Pace], list[inbox.Named]]
ACTIONS: dict[str, Step] = {"event.retry": sync.replay, "event.ignore": sync.ignore}


def retry(billing: Billing, by: By, event_ids: Sequence[str]) -> int:
    """Work on these events again, and ask Stripe about their customers. How many; not what is under way."""
    return _deal(billing, by, "event.retry", Choice(event_ids=event_ids, to_replay=True)).events


def ignore(billing: Billing, by: By, event_ids: Sequence[str]) -> int:
    """Be done with these events, whatever they say. How many; not what is settled already."""
    return _deal(billing, by, "event.ignore", Choice(event_ids=event_ids)).events


def retry_all(billing: Billing, by: By, wanted: Wanted, *, seconds: float | None = SECONDS) -> Dealt:
    """Retry what fits, for so many seconds or to the end; never what is under way."""
    return _deal_with_all(billing, by, "event.retry", wanted, seconds)


def ignore_all(billing: Billing, by: By, wanted: Wanted, *, seconds: float | None = SECONDS) -> Dealt:
    """Ignore what fits, for so many seconds or to the end. It must be said in which state they are."""
    if not wanted.may_be_ignored:
        raise errors.InvalidRequest(
            f"Say in which state they are: {', '.join(triage.UNFINISHED)}", param="state"
        )
    return _deal_with_all(billing, by, "event.ignore", wanted, seconds)


def _deal_with_all(billing: Billing, by: By, action: str, wanted: Wanted, seconds: float | None) -> Dealt:
    with billing.db.begin(SYSTEM) as connection:
        choice = _choice(connection, wanted)
        newest = inbox.newest(connection)  # what comes meanwhile is not meant
    return _deal(billing, by, action, replace(choice, to_replay=action == "event.retry"), seconds, newest)


def _deal(
    billing: Billing,
    by: By,
    action: str,
    choice: Choice,
    seconds: float | None = None,
    newest: int = triage.LAST,
) -> Dealt:
    """From the oldest on, a stretch at a time: no lock is held for long, nor waited for where any will do."""
    until = time.monotonic() + seconds if seconds is not None else None
    per_second = billing.budget.unhurried_per_second
    past: int | None = 0
    dealt = left = 0
    while past is not None and past < newest:
        if past and until is not None and time.monotonic() >= until:
            return Dealt(dealt, is_done=False, left=left)
        with billing.db.begin(SYSTEM) as connection:
            found, past = triage.look(connection, choice, most=AT_ONCE, past=past, upwards=True)
            meant = [entry for entry in found if entry.id <= newest]
            free = meant if choice.event_ids is not None else _free(connection, meant)
            pace = _in_turn(connection, per_second) if dealt + len(free) > per_second else questions.AT_ONCE
            done = ACTIONS[action](connection, free, pace)
            _note(connection, by, action, done)
        dealt += len(done)
        left += len(meant) - len(free)
    return Dealt(dealt, is_done=True, left=left)


def _free(connection: Connection, entries: Sequence[Entry]) -> list[Entry]:
    """Those whose customers nobody else has locked; we have them now."""
    owned = customers.owners(connection, {entry.customer for entry in entries if entry.customer})
    free = questions.lock_free(connection, owned)
    return [entry for entry in entries if entry.customer not in owned or entry.customer in free]


def _in_turn(connection: Connection, per_second: int) -> Pace:
    """Behind all who wait, and so many a second: the events that come meanwhile do not wait for them."""
    every = timedelta(seconds=1 / per_second)
    return Pace(questions.wanted(connection) * every, every)


def _note(connection: Connection, by: By, action: str, done: Sequence[inbox.Named]) -> None:
    owners = customers.owners(connection, {customer for _, customer in done if customer})
    named = [(event_id, owners.get(customer or "")) for event_id, customer in done]
    audit.note_each(connection, by, action, named)


def link(billing: Billing, by: By, event_id: str, tenant_id: str) -> Linked | None:
    """Make the event's customer the tenant's, on the terms of `repairs.link`; what waited is worked on then.

    None if there is no such event, or it names no customer.
    """
    with billing.db.begin(SYSTEM) as connection:
        record = triage.record(connection, event_id)
    if record is None or record.customer is None:
        return None
    return repairs.link(billing, tenant_id, record.customer, by)
