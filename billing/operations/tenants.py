"""Who the tenants are, and one tenant's story: how it stands, why, and how it came to that.

Nothing here asks Stripe or writes anything. What a tenant is shown to have is its document as it is stored, and
the reasons are those stored with it, put into words. `repairs` compares it with Stripe and mends it, `grants`
sets what operators grant.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection

from billing import (
    audit,
    catalogue,
    customers,
    directory,
    inbox,
    invoices,
    overrides,
    policy,
    questions,
    state,
    versions,
)
from billing.audit import Place, Wanted
from billing.catalogue import Catalogue
from billing.customers import Link
from billing.db import SYSTEM
from billing.directory import Found
from billing.errors import TenantNotFound
from billing.events import Json
from billing.inbox import Unsettled
from billing.invoices import Invoice
from billing.operations import masking
from billing.operations.base import SHOWN, Page
from billing.policy import STATES
from billing.questions import Asked
from billing.wiring import Billing

__all__ = ["STATES", "Line", "Tenant", "find", "show", "timeline"]

TIMES = "\u00d7"
LOOKED_AT = 1_000  # words at once, where a state is wanted as well
FIRST = ("", "")


# ---- the list


@dataclass(frozen=True, slots=True)
class Line:
    """A tenant in a list."""

    tenant_id: str
    name: str | None
    email: str | None  # enough of it to tell two apart
    customer: str | None
    state: str | None  # None where there is no document
    plan: str | None
    quantity: int | None
    note: str  # what comes next for it, or is wrong with it
    version: int
    as_of: datetime | None


def find(
    billing: Billing,
    wanted: str = "",
    *,
    state: str | None = None,
    never_synced: bool = False,
    after: str | None = None,
) -> Page[Line]:
    """The tenants whose id or name begins with what is wanted, or whose e-mail address or id at Stripe it is.

    With a `state`, those whose documents say it; or those Stripe was never asked about. All of them, where
    nothing is said.
    """
    with billing.db.begin(SYSTEM) as connection:
        wanted = wanted.strip().replace("\0", "")
        if wanted:
            page = _beginning(connection, wanted, state, after)
            by_id = directory.by_stripe_id(connection, wanted, most=SHOWN) if after is None else []
            return Page([*_lines(connection, by_id), *page.rows], page.after)
        if never_synced:
            pairs = directory.never_synced(connection, after=after or "", most=SHOWN + 1)
            some = Page.of(pairs, SHOWN, lambda pair: pair[0])
            return Page(_lines(connection, [tenant for _, tenant in some.rows]), some.after)
        if state:
            ids = directory.in_state(connection, state, after=after or "", most=SHOWN + 1)
        else:
            ids = directory.every(connection, after=after or "", most=SHOWN + 1)
        ones = Page.of(ids, SHOWN, str)
        return Page(_lines(connection, ones.rows), ones.after)


def _beginning(connection: Connection, wanted: str, state: str | None, after: str | None) -> Page[Line]:
    """Those of the next LOOKED_AT words that have the state, if one is wanted.

    Of an e-mail address only the whole counts: letter by letter it could be read out from behind its mask.
    """
    found = directory.beginning_with(connection, wanted, after=_pair(after), most=LOOKED_AT + 1)
    looked = Page.of(found, LOOKED_AT, json.dumps)
    fits = [(word, tenant) for word, tenant in looked.rows if "@" not in word or word == wanted.lower()]
    some = Page.of(fits, SHOWN, json.dumps) if state is None else Page(fits, None)
    lines = _lines(connection, dict.fromkeys(tenant for _, tenant in some.rows))
    return Page([line for line in lines if state in (None, line.state)], some.after or looked.after)


def _pair(after: str | None) -> tuple[str, str]:
    """Where a page of words begins; what cannot be read is the first."""
    try:
        word, tenant = json.loads(after or "")
    except (ValueError, TypeError):
        return FIRST
    return (word, tenant) if isinstance(word, str) and isinstance(tenant, str) else FIRST


def _lines(connection: Connection, tenants: Iterable[str]) -> list[Line]:
    return [_line(one) for one in directory.found(connection, list(tenants))]


def _line(one: Found) -> Line:
    document = json.loads(one.body) if one.body else {}
    return Line(
        one.tenant_id,
        one.name or None,
        masking.address(one.email),
        one.customer,
        "forgotten" if one.is_forgotten else document.get("state"),
        document.get("plan"),
        document.get("quantity"),
        _note(one, document),
        one.version,
        one.as_of,
    )


def _note(one: Found, document: Json) -> str:
    if not document:
        return ""
    if one.customer and one.as_of is None:
        return "Stripe was never asked"
    if document["state"] == "grace":
        until = document["grace_until"]
        return "payment failed" + (f", grace until {day(until)}" if until else "")
    if document["cancel_at"]:
        return f"ends {day(document['cancel_at'])}"
    if document["trial_end"]:
        return f"trial until {day(document['trial_end'])}"
    if document["current_period_end"] and document["access"]:
        return f"renews {day(document['current_period_end'])}"
    return "" if one.customer else "no customer"


def day(moment: str) -> str:
    """Of a moment as documents have it."""
    return moment[:10]


# ---- one tenant


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature, what the tenant has of it, and why: a sentence for each source."""

    key: str
    value: str
    because: Sequence[str]


@dataclass(frozen=True, slots=True)
class Item:
    """What is subscribed to."""

    plan: str  # its key, or its price where it has none
    price: str
    quantity: int | None
    period_start: datetime | None
    period_end: datetime | None


@dataclass(frozen=True, slots=True)
class Subscription:
    """A subscription as it is held, and where that puts the tenant."""

    id: str
    status: str
    state: str
    because: str
    items: Sequence[Item]
    ends_at: datetime | None
    trial_end: datetime | None
    overdue_since: datetime | None
    invoices: Sequence[OpenInvoice]


@dataclass(frozen=True, slots=True)
class OpenInvoice:
    """An invoice that is not paid."""

    id: str
    attempted: bool
    finalized_at: datetime | None
    due_at: datetime | None


@dataclass(frozen=True, slots=True)
class Override:
    """What an operator granted or took away."""

    feature: str
    value: str
    author: str
    reason: str
    expires_at: datetime | None
    is_over: bool


@dataclass(frozen=True, slots=True)
class Tenant:
    """One tenant, but for its timeline."""

    tenant_id: str
    name: str | None
    email: str | None
    customer: str | None
    asked: Asked | None  # how it stands with Stripe about the customer
    links: Sequence[Link]
    version: int
    document: Json | None
    state: str
    because: str
    as_of: datetime | None
    changed_at: datetime | None
    is_stale: bool
    is_due: bool  # time may have changed it; whoever reads it has it written anew
    features: Sequence[Feature]
    subscriptions: Sequence[Subscription]
    overrides: Sequence[Override]
    unsettled: Sequence[Unsettled]


def show(billing: Billing, tenant_id: str) -> Tenant:
    """How the tenant stands, and why. `TenantNotFound` where nobody has ever named it."""
    with billing.db.begin(SYSTEM) as connection:
        row = state.stored(connection, tenant_id)
        if row is None and not customers.is_known(connection, tenant_id):
            raise TenantNotFound
        row = row or state.NOWHERE
        profile = customers.profile(connection, tenant_id)
        sold = catalogue.current(connection)
        asked = questions.asked(connection, profile.customer) if profile.customer else None
        document = row.document or {}
        return Tenant(
            tenant_id=tenant_id,
            name=profile.name or None,
            email=masking.address(profile.email),
            customer=profile.customer,
            asked=asked,
            links=customers.history(connection, tenant_id),
            version=row.version,
            document=row.document,
            state="forgotten" if row.is_forgotten else document.get("state", "unknown"),
            because=row.why.get("state", "" if row.is_forgotten else "nobody has asked for it yet"),
            as_of=row.as_of,
            changed_at=row.changed_at,
            is_stale=row.is_old or bool(asked and asked.is_late),
            is_due=row.is_due,
            features=features(document, row.why, sold),
            subscriptions=list(_subscriptions(connection, tenant_id, sold)),
            overrides=list(_overrides(connection, tenant_id)),
            unsettled=inbox.unsettled(connection, profile.customer, most=SHOWN) if profile.customer else [],
        )


def features(document: Json, why: Json, sold: Catalogue) -> list[Feature]:
    """Every feature of the document with its reasons, in words."""
    sources = why.get("features", {})
    return [
        Feature(key, value_of(value), because(key, sources.get(key, ()), sold))
        for key, value in document.get("features", {}).items()
    ]


def value_of(feature: Any) -> str:
    """What a tenant has of a feature, in a word."""
    if not isinstance(feature, Mapping):
        return "—"
    if "limit" not in feature:
        return "on" if feature.get("enabled") else "off"
    return "unlimited" if feature["limit"] is None else str(feature["limit"])


def because(key: str, sources: Sequence[Json], sold: Catalogue) -> list[str]:
    """Why it has its value: one sentence for each source, the one that decides last."""
    return [_because(key, source, sold) for source in sources] or ["not in the plan"]


def _because(key: str, source: Json, sold: Catalogue) -> str:
    says = source.get("says", "")
    term = f"{'feature' if says.strip().lower() in ('true', 'false') else 'limit'}.{key} = {says}"
    if source["from"] == "override":
        end = source.get("expires_at")
        until = f"until {day(end)}" if end else "without end"
        return f"override by {source['author']}, {until}: {says} ({source['reason']})"
    if source["from"] == "entitlement":
        return f"Stripe feature {says}"
    if source["from"] == "default_plan":
        product = sold.products.get(source["product"])
        return f"default plan {product.name if product else source['product']}: {term}"
    quantity = f" {TIMES} {source['quantity']}" if source.get("quantity") is not None else ""
    return f"{plan_of(source['price'], sold)}{quantity}: {term}"


def plan_of(price: str, sold: Catalogue) -> str:
    """What people call a price."""
    known = sold.prices.get(price)
    return (known and known.lookup_key) or price


def _subscriptions(connection: Connection, tenant_id: str, sold: Catalogue) -> Iterator[Subscription]:
    """As they are held, the one that counts most first."""
    one = state.evaluate(connection, [tenant_id])[tenant_id]
    still_open = invoices.still_open(connection, [held.id for held in one.tenant.subscriptions])
    standings = [policy.stands(held, sold.rules, one.now) for held in one.tenant.subscriptions]
    for standing in sorted(standings, key=lambda standing: STATES.index(standing.state)):
        held, facts = standing.held, standing.held.facts
        yield Subscription(
            held.id,
            facts.status,
            standing.state,
            standing.because,
            [
                Item(plan_of(i.price, sold), i.price, i.quantity, moment(i.period_start), moment(i.period_end))
                for i in facts.items
            ],
            moment(policy.ends_at(facts)),
            moment(facts.trial_end),
            moment(held.overdue_since),
            [_open(invoice) for invoice in still_open if invoice.subscription == held.id],
        )


def _open(invoice: Invoice) -> OpenInvoice:
    return OpenInvoice(invoice.id, invoice.attempted, moment(invoice.finalized_at), moment(invoice.due_at))


def _overrides(connection: Connection, tenant_id: str) -> Iterator[Override]:
    now = datetime.now(UTC)
    for one in overrides.of(connection, [tenant_id]).get(tenant_id, ()):
        end = moment(one.expires_at)
        yield Override(one.feature, one.value, one.author, one.reason, end, end is not None and end <= now)


def moment(seconds: float | None) -> datetime | None:
    """A moment, aware; None where there is none, or none that a calendar has."""
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None


# ---- how it came to that


@dataclass(frozen=True, slots=True)
class Happening:
    """Something in a tenant's past: a deed of somebody's, a version of its document, or a link."""

    at: datetime
    kind: str  # did, became, linked, unlinked
    id: int
    what: str
    by: str | None = None
    reason: str | None = None
    outcome: str | None = None
    stripe_object: str | None = None
    request_id: str | None = None
    version: int | None = None
    events: Sequence[str] = ()
    changes: Sequence[str] = ()


CAUSES = {
    "event": "an event",
    "answer": "Stripe's answer",
    "link": "a link",
    "unlink": "an unlinking",
    "override": "an override",
    "name": "what a service said",
    "time": "time",
    "catalogue": "the catalogue",
}
RANKS = ("became", "did", "linked", "unlinked")  # of what is of one moment
LATEST = datetime(9000, 1, 1, tzinfo=UTC)
HIGHEST = 2**63 - 1


def timeline(billing: Billing, tenant_id: str, *, after: str | None = None) -> Page[Happening]:
    """Who did what for the tenant, and what became of its document, newest first."""
    at, kind, id = _place(after)
    became, did = _before(at, kind, id, "became"), Place(*_before(at, kind, id, "did"))
    with billing.db.begin(SYSTEM) as connection:
        found = [
            *map(_became, versions.of(connection, tenant_id, before=became, most=SHOWN + 1)),
            *map(_did, audit.find(connection, Wanted(tenant_id=tenant_id), after=did, most=SHOWN + 1)[0]),
            *(one for link in customers.history(connection, tenant_id) for one in _linked(link)),
        ]
    earlier = [one for one in found if _key(one) < (at, RANKS.index(kind), id)]
    earlier.sort(key=_key, reverse=True)
    return Page.of(earlier, SHOWN, lambda one: json.dumps([one.at.isoformat(), one.kind, one.id]))


def _key(one: Happening) -> tuple[datetime, int, int]:
    return one.at, RANKS.index(one.kind), one.id


def _place(after: str | None) -> tuple[datetime, str, int]:
    """Where a page of the timeline begins; what cannot be read is its newest end."""
    try:
        at, kind, id = json.loads(after or "")
        moment = datetime.fromisoformat(at)
    except (ValueError, TypeError):
        return LATEST, RANKS[-1], HIGHEST
    if moment.tzinfo is None or kind not in RANKS or type(id) is not int or not -HIGHEST < id < HIGHEST:
        return LATEST, RANKS[-1], HIGHEST
    return moment, kind, id


def _before(at: datetime, kind: str, id: int, mine: str) -> tuple[datetime, int]:
    """The same place, among rows of one kind."""
    if mine == kind:
        return at, id
    return at, HIGHEST if RANKS.index(mine) < RANKS.index(kind) else -1


def _became(one: versions.Version) -> Happening:
    return Happening(
        one.at,
        "became",
        one.id,
        f"v{one.version} by {CAUSES.get(one.cause, one.cause)}",
        version=one.version,
        events=one.events,
        changes=said(one.changes),
    )


def _did(one: audit.Row) -> Happening:
    what = f"{one.action} ({one.flow})" if one.flow else one.action
    return Happening(
        one.at,
        "did",
        one.id,
        what,
        by=one.actor,
        reason=one.reason,
        outcome=None if one.outcome == "ok" else one.outcome,
        stripe_object=one.stripe_object,
        request_id=one.request_id,
    )


def _linked(link: Link) -> Iterator[Happening]:
    yield Happening(link.at, "linked", link.id, "linked", by=link.by, stripe_object=link.customer)
    if link.until:
        yield Happening(link.until, "unlinked", link.id, "unlinked", stripe_object=link.customer)


def said(changes: Mapping[str, Sequence[Any]]) -> list[str]:
    """What changed, each in a few words: `seats 10 → 12`; features after all that stands above them."""
    in_order = sorted(changes.items(), key=lambda change: ("." in change[0], change[0]))
    return [f"{name.removeprefix('features.')} {word(a)} → {word(b)}" for name, (a, b) in in_order]


def word(value: Any) -> str:
    """A value of a document, as people write it."""
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value_of(value) if isinstance(value, Mapping) else str(value)
