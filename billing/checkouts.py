"""The Checkout sessions we opened, and for whom: the table `checkouts`.

A session is proof of whose a Stripe customer is only if we opened it, for the tenant it still names.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import CheckConstraint, Column, Connection, DateTime, Table, Text, func, text

from billing.db import metadata

checkouts = Table(
    "checkouts",
    metadata,
    Column("stripe_session_id", Text, primary_key=True),
    Column("tenant_id", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    CheckConstraint("tenant_id <> ''", name="tenant_id_given"),
)

_REMEMBER = text("INSERT INTO checkouts (stripe_session_id, tenant_id) VALUES (:session, :tenant)")
_TENANTS = text("SELECT stripe_session_id, tenant_id FROM checkouts WHERE stripe_session_id = ANY(:sessions)")


def remember(connection: Connection, session: str, tenant_id: str) -> None:
    """We opened this session for this tenant."""
    connection.execute(_REMEMBER, {"session": session, "tenant": tenant_id})


def tenants(connection: Connection, sessions: Collection[str]) -> dict[str, str]:
    """For whom we opened these sessions; those that are not ours are left out."""
    return {row[0]: row[1] for row in connection.execute(_TENANTS, {"sessions": list(sessions)})}
