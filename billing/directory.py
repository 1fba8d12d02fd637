"""By what operators find tenants: the table `tenant_words`, and the lists they look through.

A tenant's words are its id, its name and its e-mail address, in lower case; the database keeps them itself
(triggers on `tenant_states` and `tenant_config`), whoever writes those. They are compared byte by byte, so that
what begins with something lies in one stretch of the index. What is looked for is one index's stretch and no
more, however many tenants there are.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import CheckConstraint, Column, Connection, Index, Table, Text, text

from billing.db import along_indexes, metadata

tenant_words = Table(
    "tenant_words",
    metadata,
    Column("word", Text(collation="C"), primary_key=True),
    Column("tenant_id", Text, primary_key=True),
    CheckConstraint("tenant_id <> ''", name="tenant_id_given"),
    Index("ix_tenant_words_tenant_id", "tenant_id"),
)

# From one place to the highest character there is. With LIKE, a prefix that is a parameter finds no index; and
# of two conditions that say where to begin, the index may begin at the lower one.
_BEGINNING_WITH = text("""
    SELECT word, tenant_id FROM tenant_words
    WHERE (word, tenant_id) > (greatest(lower(:beginning) COLLATE "C", :word), :tenant)
      AND word < lower(:beginning) || chr(1114111)
    ORDER BY word, tenant_id LIMIT :most
""")
_EVERY = text("""
    SELECT tenant_id FROM (
        (SELECT tenant_id FROM tenant_states WHERE tenant_id > :after ORDER BY tenant_id LIMIT :most)
        UNION
        (SELECT tenant_id FROM tenant_config WHERE tenant_id > :after ORDER BY tenant_id LIMIT :most)
    ) AS known ORDER BY tenant_id LIMIT :most
""")
_IN_STATE = text("""
    SELECT tenant_id FROM tenant_states WHERE state = :state AND tenant_id > :after
    ORDER BY tenant_id LIMIT :most
""")
# By customer, for that is how the index of those without an answer is ordered.
_NEVER_SYNCED = text("""
    SELECT c.stripe_customer_id, t.tenant_id
    FROM stripe_customers c
    JOIN tenant_config t ON t.stripe_customer_id = c.stripe_customer_id AND t.stripe_customer_id <> ''
    WHERE c.answered_at IS NULL AND c.stripe_customer_id > :after
    ORDER BY c.stripe_customer_id LIMIT :most
""")


def beginning_with(
    connection: Connection, beginning: str, *, after: tuple[str, str], most: int
) -> list[tuple[str, str]]:
    """Words that begin so, in order, each with its tenant."""
    along_indexes(connection)
    values = {"beginning": beginning, "word": after[0], "tenant": after[1], "most": most}
    return [(row[0], row[1]) for row in connection.execute(_BEGINNING_WITH, values)]


def every(connection: Connection, *, after: str, most: int) -> list[str]:
    """All tenants anybody has ever named, by id."""
    along_indexes(connection)
    return list(connection.scalars(_EVERY, {"after": after, "most": most}))


def in_state(connection: Connection, state: str, *, after: str, most: int) -> list[str]:
    """The tenants whose documents say this state, by id."""
    along_indexes(connection)
    return list(connection.scalars(_IN_STATE, {"state": state, "after": after, "most": most}))


_COUNTED = text("""
    SELECT given.state, counted.n FROM unnest(CAST(:states AS text[])) AS given (state)
    CROSS JOIN LATERAL (
        SELECT count(*) AS n FROM (SELECT FROM tenant_states WHERE state = given.state LIMIT :most) AS those
    ) AS counted
""")


def counted(connection: Connection, states: Collection[str], *, most: int) -> dict[str, int]:
    """How many documents say each state, counted up to `most` and one more."""
    found = connection.execute(_COUNTED, {"states": list(states), "most": most + 1})
    return {row[0]: row[1] for row in found}


def never_synced(connection: Connection, *, after: str, most: int) -> list[tuple[str, str]]:
    """Customers Stripe has never told about, each with the tenant it is linked to."""
    along_indexes(connection)
    found = connection.execute(_NEVER_SYNCED, {"after": after, "most": most})
    return [(row[0], row[1]) for row in found]


# ---- by an id of Stripe's

_OF_SUBSCRIPTION = "SELECT stripe_customer_id FROM subscriptions WHERE stripe_subscription_id = :id"
_CUSTOMERS = {
    "cus_": text("SELECT CAST(:id AS text)"),
    "sub_": text(_OF_SUBSCRIPTION),
    "in_": text("""
        SELECT s.stripe_customer_id FROM invoices i JOIN subscriptions s USING (stripe_subscription_id)
        WHERE i.stripe_invoice_id = :id
    """),
    "evt_": text("SELECT customer FROM inbox WHERE event_id = :id"),
    "cs_": text("SELECT stripe_customer_id FROM checkouts WHERE stripe_session_id = :id"),
}
_LINKED_EVER = text("""
    SELECT tenant_id FROM tenant_config WHERE stripe_customer_id = :customer AND stripe_customer_id <> ''
    UNION SELECT tenant_id FROM tenant_links WHERE stripe_customer_id = :customer
    ORDER BY tenant_id LIMIT :most
""")


def by_stripe_id(connection: Connection, id: str, *, most: int) -> list[str]:
    """The tenants this customer, subscription, invoice, event or Checkout is of, or once was."""
    query = next((sql for prefix, sql in _CUSTOMERS.items() if id.startswith(prefix)), None)
    customer = connection.scalar(query, {"id": id}) if query is not None else None
    return list(connection.scalars(_LINKED_EVER, {"customer": customer, "most": most})) if customer else []


# ---- what a list says of each


@dataclass(frozen=True, slots=True)
class Found:
    """A tenant in a list, before its document is read."""

    tenant_id: str
    name: str | None
    email: str | None
    customer: str | None
    body: str  # of its document; '' where there is none
    version: int
    as_of: datetime | None
    next_look: datetime | None
    is_forgotten: bool


_FOUND = text("""
    SELECT given.id, t.name, t.email, nullif(t.stripe_customer_id, ''), coalesce(s.body, ''),
           coalesce(s.version, 0), s.as_of, s.next_look, coalesce(s.body = '' AND s.version > 0, false)
    FROM unnest(CAST(:tenants AS text[])) AS given (id)
    LEFT JOIN tenant_states s ON s.tenant_id = given.id
    LEFT JOIN tenant_config t ON t.tenant_id = given.id
    WHERE s.tenant_id IS NOT NULL OR t.tenant_id IS NOT NULL
""")


def found(connection: Connection, tenants: Collection[str]) -> Sequence[Found]:
    """These tenants, in the order they are given in; those nobody has named are left out."""
    by_id = {row[0]: Found(*row) for row in connection.execute(_FOUND, {"tenants": list(tenants)})}
    return [by_id[id] for id in tenants if id in by_id]
