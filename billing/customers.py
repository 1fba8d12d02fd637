"""Which Stripe customer a tenant is: the table `tenant_config`, which other services may join.

A tenant is linked by id only, never by e-mail, and a Stripe customer belongs to one tenant at most. Whose it
was before stays in `tenant_links`; what a former customer has grants nothing. Who links holds the customer's
lock (`questions.lock`), as does who reads its owner to decide by it: an event finds an owner or is woken by
the link.
"""

from __future__ import annotations

from collections.abc import Collection

import psycopg
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Connection,
    DateTime,
    Identity,
    Index,
    Table,
    Text,
    func,
    text,
)

from billing.db import Query, metadata
from billing.errors import AlreadyLinked

tenant_config = Table(
    "tenant_config",
    metadata,
    Column("tenant_id", Text, primary_key=True),
    Column("stripe_customer_id", Text),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    CheckConstraint("tenant_id <> ''", name="tenant_id_given"),
    Index(
        "uq_tenant_config_stripe_customer_id",
        "stripe_customer_id",
        unique=True,
        postgresql_where=text("stripe_customer_id <> ''"),
    ),
)

tenant_links = Table(
    "tenant_links",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("tenant_id", Text, nullable=False),
    Column("stripe_customer_id", Text, nullable=False),
    Column("linked_by", Text, nullable=False),
    Column("linked_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("unlinked_at", DateTime(timezone=True)),
    CheckConstraint("tenant_id <> ''", name="tenant_id_given"),
    Index("ix_tenant_links_tenant_id", "tenant_id"),
)

_FIND = "SELECT stripe_customer_id FROM tenant_config WHERE tenant_id = %(tenant_id)s"


def find(tenant_id: str) -> Query[str | None]:
    """The tenant's Stripe customer, or None where it has none yet."""
    return Query("customers.find", _FIND, {"tenant_id": tenant_id}, _customer)


def _customer(found: psycopg.Cursor[tuple[str | None]]) -> str | None:
    row = found.fetchone()
    return (row[0] or None) if row else None


# Not the empty ids: without saying so, a long list of customers would not find the index that leaves them out.
_OWNERS = text("""
    SELECT stripe_customer_id, tenant_id FROM tenant_config
    WHERE stripe_customer_id = ANY(:customers) AND stripe_customer_id <> ''
""")
_LINK = text("""
    INSERT INTO tenant_config AS t (tenant_id, stripe_customer_id) VALUES (:tenant, :customer)
    ON CONFLICT (tenant_id) DO UPDATE
    SET stripe_customer_id = excluded.stripe_customer_id, updated_at = clock_timestamp()
    WHERE t.stripe_customer_id IS DISTINCT FROM excluded.stripe_customer_id
      AND (:replace OR coalesce(t.stripe_customer_id, '') = '')
    RETURNING tenant_id
""")
_UNLINKED = text("""
    UPDATE tenant_links SET unlinked_at = clock_timestamp() WHERE tenant_id = :tenant AND unlinked_at IS NULL
""")
_LINKED = text("""
    INSERT INTO tenant_links (tenant_id, stripe_customer_id, linked_by) VALUES (:tenant, :customer, :by)
""")


def owners(connection: Connection, customers: Collection[str]) -> dict[str, str]:
    """The tenants these customers are linked to, by customer; those of nobody are left out."""
    return {row[0]: row[1] for row in connection.execute(_OWNERS, {"customers": list(customers)})}


def link(connection: Connection, tenant_id: str, customer: str, *, by: str, replace: bool = False) -> bool:
    """Make the customer the tenant's; with `replace` in another one's place. False if nothing changed.

    The caller holds the customer's lock, asks Stripe about it afterwards, and wakes its events.
    """
    if owners(connection, [customer]).get(customer, tenant_id) != tenant_id:
        raise AlreadyLinked
    values = {"tenant": tenant_id, "customer": customer}
    if connection.scalar(_LINK, {**values, "replace": replace}) is None:
        return False
    connection.execute(_UNLINKED, values)
    connection.execute(_LINKED, {**values, "by": by})
    return True
