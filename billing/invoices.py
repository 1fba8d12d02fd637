"""What is known of a subscription's invoices: how they stand, and since when one is overdue.

Everything kept here only ever moves one way: an invoice is drafted, opened, given up, paid or voided; an
attempt to collect it has been made; it was finalized at one moment. So facts are merged in whatever order
they come, and need neither clock nor question. Grace begins when the oldest open invoice was finalized that
somebody tried to collect, or fell due where it is only sent: no retry changes that.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from sqlalchemy import Boolean, CheckConstraint, Column, Connection, DateTime, Index, Table, Text, text

from billing.db import metadata
from billing.events import Json, invoiced_subscription, moment, name

RANK = {"draft": 0, "open": 1, "uncollectible": 2, "paid": 3, "void": 3}

invoices = Table(
    "invoices",
    metadata,
    Column("stripe_invoice_id", Text, primary_key=True),
    Column("stripe_subscription_id", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("attempted", Boolean, nullable=False),
    Column("finalized_at", DateTime(timezone=True)),
    Column("due_at", DateTime(timezone=True)),  # of one that is sent, and charged to nothing
    Column("as_of", DateTime(timezone=True), nullable=False),
    CheckConstraint("status IN ('draft', 'open', 'uncollectible', 'paid', 'void')", name="status_known"),
    Index("ix_invoices_stripe_subscription_id", "stripe_subscription_id"),
)


@dataclass(frozen=True, slots=True)
class Invoice:
    """What is kept of an invoice. `as_of` is Stripe's time."""

    id: str
    subscription: str
    status: str
    attempted: bool
    finalized_at: int | None
    as_of: int
    due_at: int | None = None  # where it is sent, and nobody is charged

    @property
    def is_overdue(self) -> bool:
        """Whether somebody tried to collect it, and it is still open."""
        return self.status == "open" and self.attempted

    @property
    def may_be_overdue(self) -> bool:
        """Whether it explains a subscription that is past due: nobody attempts what is sent and has a date."""
        return self.status == "open" and (self.attempted or self.due_at is not None)


def read(thing: Json, as_of: int) -> Invoice | None:
    """An invoice as Stripe writes it; None for one that no subscription has, or that is only foretold."""
    invoice_id, subscription, status = name(thing.get("id")), invoiced_subscription(thing), thing.get("status")
    if invoice_id is None or subscription is None or status not in RANK:
        return None
    transitions = thing.get("status_transitions")
    finalized = moment(transitions.get("finalized_at")) if isinstance(transitions, dict) else None
    attempted, due = thing.get("attempted") is True, moment(thing.get("due_date"))
    return Invoice(invoice_id, subscription, status, attempted, finalized, as_of, due)


def merge(one: Invoice, other: Invoice) -> Invoice:
    """What both together say; the order does not matter."""
    ahead = max(one, other, key=lambda invoice: (RANK[invoice.status], invoice.status))
    finalized = [at for at in (one.finalized_at, other.finalized_at) if at is not None]
    due = [at for at in (one.due_at, other.due_at) if at is not None]  # it is put off, if anything
    return Invoice(
        one.id,
        ahead.subscription,
        ahead.status,
        one.attempted or other.attempted,
        min(finalized, default=None),
        max(one.as_of, other.as_of),
        max(due, default=None),
    )


_MERGE = text("""
    INSERT INTO invoices (
        stripe_invoice_id, stripe_subscription_id, status, attempted, finalized_at, due_at, as_of)
    SELECT id, subscription, status, attempted, to_timestamp(finalized_at), to_timestamp(due_at),
           to_timestamp(as_of)
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS written (id text, subscription text, status text,
         attempted boolean, finalized_at bigint, due_at bigint, as_of bigint)
    ON CONFLICT (stripe_invoice_id) DO UPDATE SET
        stripe_subscription_id = excluded.stripe_subscription_id, status = excluded.status,
        attempted = excluded.attempted, finalized_at = excluded.finalized_at,
        due_at = excluded.due_at, as_of = excluded.as_of
""")
_HELD = text("""
    SELECT stripe_invoice_id, stripe_subscription_id, status, attempted,
           extract(epoch FROM finalized_at)::bigint, extract(epoch FROM as_of)::bigint,
           extract(epoch FROM due_at)::bigint
    FROM invoices WHERE stripe_invoice_id = ANY(:ids)
""")
_OPEN = text("""
    SELECT stripe_invoice_id, stripe_subscription_id, status, attempted,
           extract(epoch FROM finalized_at)::bigint, extract(epoch FROM as_of)::bigint,
           extract(epoch FROM due_at)::bigint
    FROM invoices WHERE stripe_subscription_id = ANY(:subscriptions) AND status = 'open'
""")


def learn(connection: Connection, told: Iterable[Invoice]) -> dict[str, Invoice]:
    """Merge what was told with what is held; the result, by id. The caller holds their customers' locks."""
    together: dict[str, Invoice] = {}
    for invoice in told:
        together[invoice.id] = merge(together[invoice.id], invoice) if invoice.id in together else invoice
    if not together:
        return {}
    held = {row[0]: Invoice(*row) for row in connection.execute(_HELD, {"ids": list(together)})}
    merged = {id: merge(held[id], invoice) if id in held else invoice for id, invoice in together.items()}
    changed = [invoice for id, invoice in sorted(merged.items()) if held.get(id) != invoice]
    if changed:
        rows = [{field: getattr(invoice, field) for field in Invoice.__slots__} for invoice in changed]
        connection.execute(_MERGE, {"rows": json.dumps(rows)})
    return merged


def find(connection: Connection, id: str) -> Invoice | None:
    """What is held of this invoice."""
    row = connection.execute(_HELD, {"ids": [id]}).one_or_none()
    return Invoice(*row) if row else None


def still_open(connection: Connection, subscriptions: Collection[str]) -> list[Invoice]:
    """The invoices of these subscriptions that are open, as far as we know."""
    found = connection.execute(_OPEN, {"subscriptions": list(subscriptions)})
    return [Invoice(*row) for row in found]


_OVERDUE = text("""
    SELECT stripe_subscription_id, extract(epoch FROM min(coalesce(due_at, finalized_at)))::bigint
    FROM invoices
    WHERE stripe_subscription_id = ANY(:subscriptions) AND status = 'open'
      AND (attempted OR due_at IS NOT NULL)
    GROUP BY stripe_subscription_id
""")


def overdue_since(connection: Connection, subscriptions: Collection[str]) -> dict[str, int | None]:
    """Since when these subscriptions are overdue, as far as their open invoices tell."""
    found = connection.execute(_OVERDUE, {"subscriptions": list(subscriptions)})
    return {row[0]: row[1] for row in found}


_FORGET = text("DELETE FROM invoices WHERE stripe_subscription_id = ANY(:subscriptions)")


def forget(connection: Connection, subscriptions: Collection[str]) -> None:
    """Keep nothing of these subscriptions' invoices. The caller holds their customers' locks."""
    connection.execute(_FORGET, {"subscriptions": list(subscriptions)})
