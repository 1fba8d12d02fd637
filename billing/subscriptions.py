"""The mirror of Stripe's subscriptions, and the verdict on what an event says of one.

Held facts carry when they were true, in Stripe's time and never ours: a snapshot from an event at the second it
was `created`, an answer somewhere between question and answer. `verdict` compares a snapshot with what is held:
certainly newer facts are merged, certainly older ones ignored, and where it is too close to call, Stripe is
asked. "Ask" is always right; every other verdict must be certain. `fold` takes one subscription's snapshots in,
each against what its predecessor left. Both are pure.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Connection,
    DateTime,
    ForeignKey,
    Index,
    LargeBinary,
    Table,
    Text,
    text,
)

from billing import db
from billing.db import metadata
from billing.events import Json, moment, name, reference

FINAL = frozenset({"canceled", "incomplete_expired"})  # Stripe never revives these
DELINQUENT = frozenset({"past_due", "unpaid"})
FRESH_SECONDS = 60  # a first snapshot that was this long on its way may have been overtaken
COUNTED = 500  # subscriptions that are looked at, of each price
MARGIN_SECONDS = {"event": 2, "answer": 6}  # whole seconds, and the slack of Stripe's own clocks

subscriptions = Table(
    "subscriptions",
    metadata,
    Column("stripe_subscription_id", Text, primary_key=True),
    Column("stripe_customer_id", Text, nullable=False),
    Column("status", Text, nullable=False),  # Stripe's word, until it forgets the customer
    Column("cancel_at_period_end", Boolean, nullable=False),
    Column("cancel_at", DateTime(timezone=True)),
    Column("canceled_at", DateTime(timezone=True)),
    Column("ended_at", DateTime(timezone=True)),
    Column("trial_end", DateTime(timezone=True)),
    Column("pause_behavior", Text),  # of pause_collection, which leaves the status as it is
    Column("pause_resumes_at", DateTime(timezone=True)),
    Column("latest_invoice_id", Text),
    Column("started_at", DateTime(timezone=True)),
    Column("facts", LargeBinary, nullable=False),  # a digest of all of the above, and of the items
    Column("as_of", DateTime(timezone=True), nullable=False),
    Column("as_of_end", DateTime(timezone=True), nullable=False),
    Column("source", Text, nullable=False),
    Column(
        "heard", BigInteger, nullable=False
    ),  # the customer's count when an event last confirmed or changed it
    CheckConstraint("source IN ('event', 'answer')", name="source_known"),
    CheckConstraint("as_of <= as_of_end", name="as_of_in_order"),
    Index("ix_subscriptions_stripe_customer_id", "stripe_customer_id"),
)

subscription_items = Table(
    "subscription_items",
    metadata,
    Column(
        "stripe_subscription_id",
        Text,
        ForeignKey("subscriptions.stripe_subscription_id", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("stripe_item_id", Text, primary_key=True),
    Column("stripe_price_id", Text, nullable=False),
    Column("stripe_product_id", Text, nullable=False),
    Column("quantity", BigInteger),
    Column("period_start", DateTime(timezone=True)),
    Column("period_end", DateTime(timezone=True)),
    Index("ix_subscription_items_price", "stripe_price_id", "stripe_subscription_id"),
)


# ---- facts


class Incomplete(Exception):
    """Something Stripe always says is missing, or makes no sense."""


@dataclass(frozen=True, slots=True)
class Item:
    """What is subscribed to, how many, and for which period."""

    id: str
    price: str
    product: str
    quantity: int | None
    period_start: int | None
    period_end: int | None


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is kept of a subscription. Moments are whole seconds, as Stripe gives them."""

    status: str
    items: tuple[Item, ...]
    cancel_at_period_end: bool
    cancel_at: int | None
    canceled_at: int | None
    ended_at: int | None
    trial_end: int | None
    pause_behavior: str | None
    pause_resumes_at: int | None
    latest_invoice_id: str | None
    started_at: int | None

    def digest(self) -> bytes:
        """The same for equal facts only."""
        items = [(i.id, i.price, i.product, i.quantity, i.period_start, i.period_end) for i in self.items]
        rest = [getattr(self, field) for field in Facts.__slots__ if field != "items"]
        return hashlib.blake2b(repr((items, rest)).encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Subscription:
    """Whose subscription it is, and its facts; `whole` unless Stripe left items out."""

    id: str
    customer: str
    facts: Facts
    whole: bool


def read(thing: Json, items: Sequence[Json] | None = None) -> Subscription:
    """A subscription as Stripe writes it, in an event or an answer; `items` where they were read separately."""
    listed = thing.get("items")
    if not isinstance(listed, dict) or not isinstance(listed.get("data"), list):
        raise Incomplete("no items")
    subscription_id, customer = name(thing.get("id")), reference(thing.get("customer"))
    status, pause = name(thing.get("status")), thing.get("pause_collection")
    ends = thing.get("cancel_at_period_end")
    if subscription_id is None or customer is None or status is None or not isinstance(ends, bool):
        raise Incomplete("no id, customer, status or cancel_at_period_end")
    by_id = {
        item.id: item for item in (_item(item, thing) for item in (listed["data"] if items is None else items))
    }
    facts = Facts(
        status=status,
        items=tuple(by_id[id] for id in sorted(by_id)),  # one may have been listed on two pages
        cancel_at_period_end=ends,
        **{key: _moment(thing, key) for key in ("cancel_at", "canceled_at", "ended_at", "trial_end")},
        pause_behavior=name(pause.get("behavior")) if isinstance(pause, dict) else None,
        pause_resumes_at=_moment(pause, "resumes_at") if isinstance(pause, dict) else None,
        latest_invoice_id=reference(thing.get("latest_invoice")),
        started_at=_moment(thing, "start_date"),
    )
    return Subscription(subscription_id, customer, facts, items is not None or not listed.get("has_more"))


def _item(item: Any, subscription: Json) -> Item:
    """Since 2025-03-31 each item has a period of its own; before, all had the subscription's."""
    price = item.get("price") if isinstance(item, dict) else None
    if not isinstance(price, dict):
        raise Incomplete("an item without its price")
    item_id, price_id, product = name(item.get("id")), name(price.get("id")), reference(price.get("product"))
    quantity = item.get("quantity")
    if item_id is None or price_id is None or product is None:
        raise Incomplete("an item without id, price or product")
    if quantity is not None and not (type(quantity) is int and 0 <= quantity < 2**63):
        raise Incomplete("an item whose quantity is no number")
    dated = item if "current_period_end" in item else subscription
    start, end = _moment(dated, "current_period_start"), _moment(dated, "current_period_end")
    return Item(item_id, price_id, product, quantity, start, end)


def _moment(thing: Json, key: str) -> int | None:
    value = thing.get(key)
    if value is not None and moment(value) is None:
        raise Incomplete(f"{key} is no time")
    return moment(value)


# ---- the verdict


@dataclass(frozen=True, slots=True)
class Held:
    """What is held of a subscription, as far as a verdict needs it."""

    status: str
    digest: bytes
    as_of: int
    as_of_end: int
    source: str

    @property
    def is_final(self) -> bool:
        """Whether nothing but more of the same can follow."""
        return self.status in FINAL


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A subscription as an event carries it."""

    subscription: Subscription
    event: int  # its number in the inbox
    created: int
    fresh: bool  # was sent soon after it was made
    ours: bool  # in the API version we read

    @property
    def is_final(self) -> bool:
        """Whether it says that the subscription is over."""
        return self.subscription.facts.status in FINAL


class Verdict(Enum):
    """What to do with a snapshot."""

    NEWER = "newer"
    FINAL = "final"
    AGREES = "agrees"
    OLDER = "older"
    ASK = "ask"


HEARD = frozenset({Verdict.NEWER, Verdict.FINAL, Verdict.AGREES})  # an answer on its way may not know of these


def verdict(held: Held | None, snapshot: Snapshot) -> Verdict:
    """Certain, or asked. The order of these lines matters; docs/inbox.md says why."""
    if held and held.is_final and not snapshot.is_final:
        return Verdict.OLDER
    readable = snapshot.ours and snapshot.subscription.whole
    if snapshot.is_final and not (held and held.is_final):
        return Verdict.FINAL if readable else Verdict.ASK
    if held is None:
        return Verdict.NEWER if snapshot.fresh and readable else Verdict.ASK
    margin = MARGIN_SECONDS[held.source]
    if snapshot.created >= held.as_of_end + margin:
        return Verdict.NEWER if readable else Verdict.ASK
    if snapshot.created <= held.as_of - margin:
        return Verdict.OLDER
    if readable and snapshot.subscription.facts.digest() == held.digest:
        return Verdict.AGREES
    return Verdict.ASK


@dataclass(frozen=True, slots=True)
class Folded:
    """What a subscription's snapshots have come to: what to hold, what to write, and each one's verdict."""

    held: Held | None
    merged: Subscription | None
    verdicts: Mapping[int, Verdict]

    @property
    def heard(self) -> bool:
        """Whether an answer to a question put before now could be out of date."""
        return not HEARD.isdisjoint(self.verdicts.values())

    @property
    def is_in_doubt(self) -> bool:
        """Whether Stripe has to be asked what they have come to."""
        return Verdict.ASK in self.verdicts.values()


def fold(held: Held | None, snapshots: Iterable[Snapshot], answered_seen: int = 0) -> Folded:
    """Take them in as they were made, each judged by what the one before it left.

    Those up to number `answered_seen` had arrived before the question whose answer is held: they are in it.
    """
    merged: Subscription | None = None
    verdicts: dict[int, Verdict] = {}
    in_order = sorted(snapshots, key=lambda snapshot: (snapshot.created, snapshot.event))
    for snapshot in in_order:
        if snapshot.event <= answered_seen:
            verdicts[snapshot.event] = Verdict.OLDER
            held = _read_after(held, snapshot.created)
    for snapshot in in_order:
        if snapshot.event <= answered_seen:
            continue
        judged = verdicts[snapshot.event] = verdict(held, snapshot)
        if judged in (Verdict.NEWER, Verdict.FINAL):
            merged, facts = snapshot.subscription, snapshot.subscription.facts
            held = Held(facts.status, facts.digest(), snapshot.created, snapshot.created, "event")
        elif judged is Verdict.AGREES and held and held.source == "event":
            later = max(held.as_of, snapshot.created)
            held = replace(held, as_of=later, as_of_end=later)
    return Folded(held, merged, verdicts)


def _read_after(held: Held | None, created: int) -> Held | None:
    """What is held: an answer is no older than an event it was read after."""
    if not held or held.source != "answer" or created <= held.as_of:
        return held
    return replace(held, as_of=created, as_of_end=max(created, held.as_of_end))


# ---- the tables

_HELD = text("""
    SELECT stripe_subscription_id AS id, stripe_customer_id AS customer, status, facts AS digest,
           extract(epoch FROM as_of)::bigint AS as_of, extract(epoch FROM as_of_end)::bigint AS as_of_end,
           source, heard
    FROM subscriptions
    WHERE stripe_subscription_id = ANY(:ids) OR stripe_customer_id = ANY(:customers)
""")


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the mirror, but for its facts. Who reads it to change it holds its customer's lock."""

    id: str
    customer: str
    held: Held
    heard: int


def rows(
    connection: Connection, *, ids: Collection[str] = (), customers: Collection[str] = ()
) -> dict[str, Row]:
    """What is held of these subscriptions, and of these customers' subscriptions, by id."""
    found = connection.execute(_HELD, {"ids": list(ids), "customers": list(customers)})
    return {
        row.id: Row(
            row.id,
            row.customer,
            Held(row.status, bytes(row.digest), row.as_of, row.as_of_end, row.source),
            row.heard,
        )
        for row in found
    }


@dataclass(frozen=True, slots=True)
class Write:
    """A subscription to be held from now on: with new facts where there are any, else with a new time only."""

    id: str
    held: Held
    heard: int
    subscription: Subscription | None


# fmt: off
_COLUMNS = (
    "id text, customer text, status text, cancel_at_period_end boolean, cancel_at bigint, canceled_at bigint,"
    " ended_at bigint, trial_end bigint, pause_behavior text, pause_resumes_at bigint, latest_invoice_id text,"
    " started_at bigint, digest text, as_of bigint, as_of_end bigint, source text, heard bigint"
)
# fmt: on
_MERGE = text(f"""
    INSERT INTO subscriptions (
        stripe_subscription_id, stripe_customer_id, status, cancel_at_period_end, cancel_at, canceled_at,
        ended_at, trial_end, pause_behavior, pause_resumes_at, latest_invoice_id, started_at, facts, as_of,
        as_of_end, source, heard)
    SELECT id, customer, status, cancel_at_period_end, to_timestamp(cancel_at), to_timestamp(canceled_at),
           to_timestamp(ended_at), to_timestamp(trial_end), pause_behavior, to_timestamp(pause_resumes_at),
           latest_invoice_id, to_timestamp(started_at), decode(digest, 'hex'), to_timestamp(as_of),
           to_timestamp(as_of_end), source, heard
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS written ({_COLUMNS})
    ON CONFLICT (stripe_subscription_id) DO UPDATE SET
        stripe_customer_id = excluded.stripe_customer_id, status = excluded.status,
        cancel_at_period_end = excluded.cancel_at_period_end, cancel_at = excluded.cancel_at,
        canceled_at = excluded.canceled_at, ended_at = excluded.ended_at, trial_end = excluded.trial_end,
        pause_behavior = excluded.pause_behavior, pause_resumes_at = excluded.pause_resumes_at,
        latest_invoice_id = excluded.latest_invoice_id, started_at = excluded.started_at,
        facts = excluded.facts, as_of = excluded.as_of, as_of_end = excluded.as_of_end,
        source = excluded.source, heard = excluded.heard
""")  # noqa: S608  # the column list is ours
_END = text("""
    UPDATE subscriptions SET status = 'canceled'
    WHERE stripe_customer_id = :customer AND status <> ALL(:final)
""")
_CONFIRM = text("""
    UPDATE subscriptions
    SET as_of = to_timestamp(w.as_of), as_of_end = to_timestamp(w.as_of_end), source = w.source, heard = w.heard
    FROM jsonb_to_recordset(CAST(:rows AS jsonb))
        AS w (id text, as_of bigint, as_of_end bigint, source text, heard bigint)
    WHERE stripe_subscription_id = w.id
""")
_DROP_ITEMS = text("""
    DELETE FROM subscription_items
    WHERE stripe_subscription_id = ANY(:ids) AND stripe_item_id <> ALL(:items)
""")
_MERGE_ITEMS = text("""
    INSERT INTO subscription_items (
        stripe_subscription_id, stripe_item_id, stripe_price_id, stripe_product_id, quantity, period_start,
        period_end)
    SELECT subscription, id, price, product, quantity, to_timestamp(period_start), to_timestamp(period_end)
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS written (subscription text, id text, price text,
         product text, quantity bigint, period_start bigint, period_end bigint)
    ON CONFLICT (stripe_subscription_id, stripe_item_id) DO UPDATE SET
        stripe_price_id = excluded.stripe_price_id, stripe_product_id = excluded.stripe_product_id,
        quantity = excluded.quantity, period_start = excluded.period_start, period_end = excluded.period_end
    WHERE (subscription_items.*) IS DISTINCT FROM (excluded.*)
""")


def write(connection: Connection, writes: Sequence[Write]) -> None:
    """Hold all of these, in one statement for each table."""
    merged = [one for one in writes if one.subscription]
    confirmed = [one for one in writes if not one.subscription]
    if merged:
        items = [item for one in merged for item in _items(one)]
        connection.execute(_MERGE, {"rows": json.dumps([_columns(one) for one in merged])})
        connection.execute(
            _DROP_ITEMS, {"ids": [one.id for one in merged], "items": [item["id"] for item in items]}
        )
        connection.execute(_MERGE_ITEMS, {"rows": json.dumps(items)})
    if confirmed:
        times = [{"id": one.id, "heard": one.heard, **_times(one.held)} for one in confirmed]
        connection.execute(_CONFIRM, {"rows": json.dumps(times)})


def end(connection: Connection, customer: str) -> None:
    """The customer is gone, and with it whatever Stripe no longer tells of."""
    connection.execute(_END, {"customer": customer, "final": sorted(FINAL)})


def _times(held: Held) -> Json:
    return {"as_of": held.as_of, "as_of_end": held.as_of_end, "source": held.source}


def _columns(one: Write) -> Json:
    assert one.subscription
    facts = {field: getattr(one.subscription.facts, field) for field in Facts.__slots__ if field != "items"}
    whose = {"id": one.id, "customer": one.subscription.customer, "heard": one.heard}
    return {**facts, **whose, "digest": one.held.digest.hex(), **_times(one.held)}


def _items(one: Write) -> Iterable[Json]:
    assert one.subscription
    for item in one.subscription.facts.items:
        yield {"subscription": one.id, **{field: getattr(item, field) for field in Item.__slots__}}


# ---- for those who read the facts

_OF = """
    SELECT stripe_subscription_id, stripe_customer_id, status, cancel_at_period_end,
           extract(epoch FROM cancel_at)::bigint, extract(epoch FROM canceled_at)::bigint,
           extract(epoch FROM ended_at)::bigint, extract(epoch FROM trial_end)::bigint, pause_behavior,
           extract(epoch FROM pause_resumes_at)::bigint, latest_invoice_id,
           extract(epoch FROM started_at)::bigint
    FROM subscriptions WHERE stripe_customer_id = ANY(%(customers)s)
    ORDER BY stripe_subscription_id
"""
_ITEMS_OF = """
    SELECT stripe_subscription_id, stripe_item_id, stripe_price_id, stripe_product_id, quantity,
           extract(epoch FROM period_start)::bigint, extract(epoch FROM period_end)::bigint
    FROM subscription_items WHERE stripe_subscription_id = ANY(%(ids)s)
    ORDER BY stripe_subscription_id, stripe_item_id
"""
_FIELDS = tuple(field for field in Facts.__slots__ if field not in ("status", "items"))


def of(connection: Connection, customers: Collection[str]) -> dict[str, list[tuple[str, Facts]]]:
    """The subscriptions of these customers, ended ones included, by customer."""
    found = db.rows(connection, _OF, {"customers": list(customers)})
    items: dict[str, list[Item]] = defaultdict(list)
    for id, *rest in db.rows(connection, _ITEMS_OF, {"ids": [row[0] for row in found]}) if found else ():
        items[id].append(Item(*rest))
    by_customer: dict[str, list[tuple[str, Facts]]] = defaultdict(list)
    for id, customer, status, *rest in found:
        facts = Facts(status, tuple(items[id]), **dict(zip(_FIELDS, rest, strict=True)))
        by_customer[customer].append((id, facts))
    return by_customer


_STATUSES = text(
    "SELECT stripe_subscription_id, status FROM subscriptions WHERE stripe_customer_id = :customer"
)
_HAD_TRIAL = text("""
    SELECT EXISTS (
        SELECT FROM subscriptions
        WHERE stripe_customer_id = ANY(:customers) AND trial_end IS NOT NULL AND status <> 'incomplete_expired'
    )
""")


def statuses(connection: Connection, customer: str) -> dict[str, str]:
    """How the customer's subscriptions stand, ended ones included."""
    return {row[0]: row[1] for row in connection.execute(_STATUSES, {"customer": customer})}


def had_trial(connection: Connection, customers: Collection[str]) -> bool:
    """Whether any of these customers has ever had a trial."""
    return bool(connection.scalar(_HAD_TRIAL, {"customers": list(customers)}))


@dataclass(frozen=True, slots=True)
class Counted:
    """How many subscriptions to a price are not over; where that is not `exact`, at least so many."""

    number: int
    exact: bool


# Each is looked up by its key: the planner takes row-level security for a filter that leaves hardly any row,
# and would rather join all there are.
_COUNTED = text("""
    SELECT price, counted.number, counted.seen < :most
    FROM unnest(CAST(:prices AS text[])) AS given (price)
    CROSS JOIN LATERAL (
        SELECT count(*) AS seen, count(*) FILTER (WHERE (
            SELECT s.status FROM subscriptions s WHERE s.stripe_subscription_id = items.stripe_subscription_id
        ) <> ALL(:final)) AS number
        FROM (
            SELECT i.stripe_subscription_id FROM subscription_items i WHERE i.stripe_price_id = price
            ORDER BY i.stripe_subscription_id DESC LIMIT :most
        ) AS items
    ) AS counted
""")


def counted(connection: Connection, prices: Collection[str]) -> dict[str, Counted]:
    """How many subscribe to each of these prices, by `COUNTED` of those who ever did."""
    values = {"prices": list(prices), "most": COUNTED, "final": sorted(FINAL)}
    return {row[0]: Counted(row[1], row[2]) for row in connection.execute(_COUNTED, values)}


_FORGET = text("""
    DELETE FROM subscriptions WHERE stripe_customer_id = ANY(:customers) RETURNING stripe_subscription_id
""")


def forget(connection: Connection, customers: Collection[str]) -> list[str]:
    """Keep nothing of what these customers had. Which subscriptions those were; the caller holds the locks."""
    return list(connection.scalars(_FORGET, {"customers": list(customers)}))
