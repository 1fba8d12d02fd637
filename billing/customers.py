"""Which Stripe customer a tenant is: the table `tenant_config`, which other services may join.

A tenant is linked by id only, never by e-mail, and a Stripe customer belongs to one tenant at most.
"""

from __future__ import annotations

from sqlalchemy import (
    CheckConstraint,
    Column,
    Connection,
    DateTime,
    Index,
    Table,
    Text,
    bindparam,
    func,
    select,
    text,
)

from billing.db import metadata

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

_FIND = select(tenant_config.c.stripe_customer_id).where(tenant_config.c.tenant_id == bindparam("tenant_id"))


def find(connection: Connection, tenant_id: str) -> str | None:
    """The tenant's Stripe customer, or None where it has none yet."""
    return connection.scalar(_FIND, {"tenant_id": tenant_id}) or None
