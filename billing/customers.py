"""Which Stripe customer a tenant is: the table `tenant_config`, which other services may join.

A tenant is linked by id only, never by e-mail, and a Stripe customer belongs to one tenant at most.
"""

from __future__ import annotations

import psycopg
from sqlalchemy import (
    CheckConstraint,
    Column,
    DateTime,
    Index,
    Table,
    Text,
    func,
    text,
)

from billing.db import Query, metadata

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

_FIND = "SELECT stripe_customer_id FROM tenant_config WHERE tenant_id = %(tenant_id)s"


def find(tenant_id: str) -> Query[str | None]:
    """The tenant's Stripe customer, or None where it has none yet."""
    return Query("customers.find", _FIND, {"tenant_id": tenant_id}, _customer)


def _customer(found: psycopg.Cursor[tuple[str | None]]) -> str | None:
    row = found.fetchone()
    return (row[0] or None) if row else None
