"""What an operator granted a tenant, or took from it, whatever its plan says: the table `overrides`.

One per tenant and feature, with its author, its reason and, where it has one, its end. Its value is written as
in the catalogue: `true`, `false`, a number, or `unlimited`. Whoever changes one refreshes the tenant's `state`
in the same transaction.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import CheckConstraint, Column, Connection, DateTime, Table, Text, func, text

from billing.catalogue import KEY, Term, read_term
from billing.db import metadata

overrides = Table(
    "overrides",
    metadata,
    Column("tenant_id", Text, primary_key=True),
    Column("feature", Text, primary_key=True),
    Column("value", Text, nullable=False),
    Column("author", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("expires_at", DateTime(timezone=True)),
    CheckConstraint("tenant_id <> ''", name="tenant_id_given"),
    CheckConstraint("author <> '' AND reason <> ''", name="accounted_for"),
)


@dataclass(frozen=True, slots=True)
class Override:
    """One feature's value, until its end."""

    feature: str
    value: str
    author: str
    reason: str
    expires_at: float | None  # in seconds of our database's clock

    @property
    def term(self) -> Term | None:
        """What it gives; None where it makes no sense."""
        if "quantity" in self.value.lower():
            return None  # of what?
        return read_term("feature", self.value) or read_term("limit", self.value)


_OF = text("""
    SELECT tenant_id, feature, value, author, reason, extract(epoch FROM expires_at)::float8
    FROM overrides WHERE tenant_id = ANY(:tenants) ORDER BY tenant_id, feature
""")
_SET = text("""
    INSERT INTO overrides (tenant_id, feature, value, author, reason, expires_at)
    VALUES (:tenant, :feature, :value, :author, :reason, :expires_at)
    ON CONFLICT (tenant_id, feature) DO UPDATE SET
        value = excluded.value, author = excluded.author, reason = excluded.reason,
        expires_at = excluded.expires_at, created_at = clock_timestamp()
""")
_LIFT = text("DELETE FROM overrides WHERE tenant_id = :tenant AND feature = :feature")
_FORGET = text("DELETE FROM overrides WHERE tenant_id = :tenant")


def of(connection: Connection, tenants: Collection[str]) -> dict[str, list[Override]]:
    """What these tenants have, expired ones included."""
    found: dict[str, list[Override]] = {}
    for tenant, *rest in connection.execute(_OF, {"tenants": list(tenants)}):
        found.setdefault(tenant, []).append(Override(*rest))
    return found


def put(
    connection: Connection,
    tenant_id: str,
    feature: str,
    value: str,
    *,
    author: str,
    reason: str,
    expires_at: datetime | None = None,
) -> None:
    """Set it, in an earlier one's place. `ValueError` where feature or value make no sense."""
    if not KEY.fullmatch(feature):
        raise ValueError("a feature's key is lower-case letters, digits and underscores")
    if Override(feature, value, author, reason, None).term is None:
        raise ValueError("a value is true, false, a number or unlimited")
    values = {"tenant": tenant_id, "feature": feature, "value": value, "author": author, "reason": reason}
    connection.execute(_SET, {**values, "expires_at": expires_at})


def lift(connection: Connection, tenant_id: str, feature: str) -> bool:
    """Take it away. Whether there was one."""
    return connection.execute(_LIFT, {"tenant": tenant_id, "feature": feature}).rowcount == 1


def forget(connection: Connection, tenant_id: str) -> bool:
    """Take all of the tenant's away. Whether there were any."""
    return connection.execute(_FORGET, {"tenant": tenant_id}).rowcount > 0
