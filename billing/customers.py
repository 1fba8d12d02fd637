"""Which Stripe customer a tenant is, and its name there: the table `tenant_config`, which others may join.

A tenant is linked by id only, never by e-mail, and a Stripe customer belongs to one tenant at most. Whose it
was before stays in `tenant_links`; what a former customer has grants nothing. Who links holds the customer's
lock (`questions.lock`), as does who reads its owner to decide by it: an event finds an owner or is woken by
the link.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

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
from billing.errors import AlreadyLinked, Busy
from billing.events import Json

tenant_config = Table(
    "tenant_config",
    metadata,
    Column("tenant_id", Text, primary_key=True),
    Column("stripe_customer_id", Text),
    Column("name", Text),  # as the product calls it, for Stripe's customer; '' is said to be none
    Column("email", Text),
    Column("untold_since", DateTime(timezone=True)),  # until Stripe's customer has been told what is kept here
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    CheckConstraint("tenant_id <> ''", name="tenant_id_given"),
    Index(
        "uq_tenant_config_stripe_customer_id",
        "stripe_customer_id",
        unique=True,
        postgresql_where=text("stripe_customer_id <> ''"),
    ),
    Index(
        "ix_tenant_config_untold",
        "tenant_id",
        postgresql_where=text("untold_since IS NOT NULL AND stripe_customer_id <> ''"),
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
    Index("ix_tenant_links_stripe_customer_id", "stripe_customer_id"),
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
    INSERT INTO tenant_config AS t (tenant_id, stripe_customer_id, untold_since)
    VALUES (:tenant, :customer, clock_timestamp())
    ON CONFLICT (tenant_id) DO UPDATE
    SET stripe_customer_id = excluded.stripe_customer_id, untold_since = excluded.untold_since,
        updated_at = clock_timestamp()
    WHERE t.stripe_customer_id IS DISTINCT FROM excluded.stripe_customer_id
      AND (:replace OR coalesce(t.stripe_customer_id, '') IN ('', :instead_of))
    RETURNING tenant_id
""")
_WAS_UNLINKED = text("""
    SELECT EXISTS (SELECT FROM tenant_links WHERE tenant_id = :tenant AND stripe_customer_id = :customer
                   AND unlinked_at IS NOT NULL)
""")
_FORMER = text("SELECT DISTINCT tenant_id FROM tenant_links WHERE stripe_customer_id = :customer")
_OF = "SELECT stripe_customer_id FROM tenant_config WHERE tenant_id = :tenant"
_GIVEN = text(_OF)
_KEPT = text(f"{_OF} FOR NO KEY UPDATE")
_IS_KNOWN = text("SELECT EXISTS (SELECT FROM tenant_config WHERE tenant_id = :tenant)")
_LINKED_COUNT = text("""
    SELECT count(*) FROM (SELECT FROM tenant_config WHERE stripe_customer_id <> '' LIMIT :most) AS counted
""")
_LEFT_BEHIND = text("""
    SELECT DISTINCT l.tenant_id, l.stripe_customer_id
    FROM tenant_links l JOIN subscriptions s USING (stripe_customer_id)
    WHERE l.unlinked_at IS NOT NULL AND s.status = ANY(:living) AND NOT EXISTS (
        SELECT FROM tenant_config t
        WHERE t.stripe_customer_id = l.stripe_customer_id AND t.stripe_customer_id <> ''
    )
    ORDER BY l.tenant_id, l.stripe_customer_id LIMIT :most
""")
_EVER = text("""
    SELECT stripe_customer_id FROM tenant_links WHERE tenant_id = :tenant
    UNION SELECT stripe_customer_id FROM tenant_config WHERE tenant_id = :tenant AND stripe_customer_id <> ''
""")
# One that came into the table past us has no history; it gets one before it is overwritten.
_RECALL = text("""
    INSERT INTO tenant_links (tenant_id, stripe_customer_id, linked_by, linked_at)
    SELECT t.tenant_id, t.stripe_customer_id, 'unknown', t.created_at FROM tenant_config t
    WHERE t.tenant_id = :tenant AND t.stripe_customer_id <> '' AND NOT EXISTS (
        SELECT FROM tenant_links l
        WHERE l.tenant_id = t.tenant_id AND l.stripe_customer_id = t.stripe_customer_id
    )
""")
_UNLINKED = text("""
    UPDATE tenant_links SET unlinked_at = clock_timestamp() WHERE tenant_id = :tenant AND unlinked_at IS NULL
""")
_LEAVE = text("""
    UPDATE tenant_config SET stripe_customer_id = NULL, untold_since = NULL, updated_at = clock_timestamp()
    WHERE tenant_id = :tenant AND stripe_customer_id = :customer
""")
_UNLINK = text("DELETE FROM tenant_config WHERE tenant_id = :tenant RETURNING stripe_customer_id")
_UNKNOW = text("DELETE FROM tenant_links WHERE tenant_id = :tenant")
_LINKED = text("""
    INSERT INTO tenant_links (tenant_id, stripe_customer_id, linked_by) VALUES (:tenant, :customer, :by)
""")


def owners(connection: Connection, customers: Collection[str]) -> dict[str, str]:
    """The tenants these customers are linked to, by customer; those of nobody are left out."""
    return {row[0]: row[1] for row in connection.execute(_OWNERS, {"customers": list(customers)})}


def of(connection: Connection, tenant_id: str, *, keep: bool = False) -> str | None:
    """The tenant's Stripe customer, or None where it has none yet. `keep` lets nobody change it meanwhile."""
    return connection.scalar(_KEPT if keep else _GIVEN, {"tenant": tenant_id}) or None


def named(customer: Json) -> str | None:
    """The tenant that the metadata of Stripe's customer names, if any."""
    metadata = customer.get("metadata")
    tenant = metadata.get("tenant_id") if isinstance(metadata, dict) else None
    return tenant if isinstance(tenant, str) and tenant else None


def is_known(connection: Connection, tenant_id: str) -> bool:
    """Whether the tenant has a row here, with a customer or without."""
    return bool(connection.scalar(_IS_KNOWN, {"tenant": tenant_id}))


def linked(connection: Connection, *, most: int) -> int:
    """How many tenants have a customer; counted up to `most`, and one more where there are more."""
    return int(connection.scalar(_LINKED_COUNT, {"most": most + 1}))


def left_behind(connection: Connection, living: Collection[str], *, most: int) -> list[tuple[str, str]]:
    """Tenants, with a customer each was before and that nobody is now, with a subscription in these states."""
    return [tuple(row) for row in connection.execute(_LEFT_BEHIND, {"living": list(living), "most": most})]


def ever(connection: Connection, tenant_id: str) -> list[str]:
    """Every Stripe customer the tenant has been."""
    return list(connection.scalars(_EVER, {"tenant": tenant_id}))


def former(connection: Connection, customer: str) -> list[str]:
    """Every tenant this Stripe customer has been linked to."""
    return list(connection.scalars(_FORMER, {"customer": customer}))


def was_unlinked(connection: Connection, tenant_id: str, customer: str) -> bool:
    """Whether this Stripe customer was the tenant's, and was taken from it."""
    return bool(connection.scalar(_WAS_UNLINKED, {"tenant": tenant_id, "customer": customer}))


@dataclass(frozen=True, slots=True)
class Link:
    """A customer a tenant had, from when to when."""

    id: int
    customer: str
    by: str
    at: datetime
    until: datetime | None


_HISTORY = text("""
    SELECT id, stripe_customer_id, linked_by, linked_at, unlinked_at FROM tenant_links
    WHERE tenant_id = :tenant ORDER BY id DESC LIMIT 100
""")


def history(connection: Connection, tenant_id: str) -> list[Link]:
    """The tenant's customers, the latest first. One that came into the table past us has none."""
    return [Link(*row) for row in connection.execute(_HISTORY, {"tenant": tenant_id})]


def link(
    connection: Connection,
    tenant_id: str,
    customer: str,
    *,
    by: str,
    replace: bool = False,
    instead_of: str | None = None,
) -> bool:
    """Make the customer the tenant's; with `replace` in another one's place, or only `instead_of` that one.

    False if nothing changed.

    The caller holds the customer's lock, asks Stripe about it afterwards, and wakes its events.
    """
    if owners(connection, [customer]).get(customer, tenant_id) != tenant_id:
        raise AlreadyLinked
    values = {"tenant": tenant_id, "customer": customer}
    connection.execute(_RECALL, values)
    if connection.scalar(_LINK, {**values, "replace": replace, "instead_of": instead_of or ""}) is None:
        return False
    connection.execute(_UNLINKED, values)
    connection.execute(_LINKED, {**values, "by": by})
    return True


def unlink(connection: Connection, tenant_id: str, customer: str) -> None:
    """Leave the tenant without a customer; that it had this one stays in its history.

    The caller holds the customer's lock.
    """
    values = {"tenant": tenant_id, "customer": customer}
    connection.execute(_RECALL, values)
    connection.execute(_LEAVE, values)
    connection.execute(_UNLINKED, values)


def forget(connection: Connection, tenant_id: str, customer: str | None) -> bool:
    """Unlink the tenant from this customer, and keep nothing of its links. Whether there was anything.

    `Busy` if it has another by now. To look first is not enough: what is not there yet cannot be locked.
    """
    unlinked = connection.scalars(_UNLINK, {"tenant": tenant_id}).all()
    if unlinked and (unlinked[0] or None) != customer:
        raise Busy("database")
    return connection.execute(_UNKNOW, {"tenant": tenant_id}).rowcount + len(unlinked) > 0


# ---- what a tenant is called


@dataclass(frozen=True, slots=True)
class Profile:
    """What is kept of a tenant for its Stripe customer. A name of '' was taken back, None never given."""

    customer: str | None
    name: str | None
    email: str | None
    is_untold: bool  # Stripe's customer may say otherwise

    @property
    def given(self) -> dict[str, str]:
        """What a customer that is made now is to be called."""
        return {key: said for key, said in (("name", self.name), ("email", self.email)) if said}


_ENSURE = text("INSERT INTO tenant_config (tenant_id) VALUES (:tenant) ON CONFLICT DO NOTHING")
_PROFILE = """
    SELECT stripe_customer_id, name, email, untold_since IS NOT NULL FROM tenant_config
    WHERE tenant_id = :tenant
"""
_PROFILED = text(_PROFILE)
_PROFILE_KEPT = text(f"{_PROFILE} FOR NO KEY UPDATE")
_DESCRIBE = text("""
    UPDATE tenant_config
    SET name = :name, email = :email, untold_since = clock_timestamp(), updated_at = clock_timestamp()
    WHERE tenant_id = :tenant
""")
_UNTOLD = text("""
    SELECT tenant_id FROM tenant_config
    WHERE untold_since < clock_timestamp() - CAST(:older AS interval) AND untold_since IS NOT NULL
      AND stripe_customer_id <> '' AND tenant_id > :after
    ORDER BY tenant_id LIMIT :most
""")
_TOLD = text("""
    UPDATE tenant_config SET untold_since = NULL
    WHERE tenant_id = :tenant AND stripe_customer_id = :customer
      AND name IS NOT DISTINCT FROM :name AND email IS NOT DISTINCT FROM :email
""")


def untold(connection: Connection, *, older: timedelta, after: str, most: int) -> Sequence[str]:
    """The next tenants of whose customers Stripe has not been told for that long."""
    return connection.scalars(_UNTOLD, {"older": older, "after": after, "most": most}).all()


def profile(connection: Connection, tenant_id: str) -> Profile:
    """What is kept of the tenant; nothing, if it has no row."""
    row = connection.execute(_PROFILED, {"tenant": tenant_id}).one_or_none()
    return Profile(row[0] or None, *row[1:]) if row else Profile(None, None, None, False)


def describe(connection: Connection, tenant_id: str, said: Mapping[str, str | None]) -> None:
    """Keep the tenant, and those of `name` and `email` that are said; None takes back what was said before."""
    kept = new = _kept(connection, tenant_id)
    if "name" in said:
        new = replace(new, name=said["name"] or (None if kept.name is None else ""))
    if "email" in said:
        new = replace(new, email=said["email"] or (None if kept.email is None else ""))
    if new != kept:
        connection.execute(_DESCRIBE, {"tenant": tenant_id, "name": new.name, "email": new.email})


def _kept(connection: Connection, tenant_id: str) -> Profile:
    while True:
        connection.execute(_ENSURE, {"tenant": tenant_id})
        for row in connection.execute(_PROFILE_KEPT, {"tenant": tenant_id}):
            return Profile(*row)  # and once more where it was forgotten while we waited


def told(connection: Connection, tenant_id: str, says: Profile) -> bool:
    """Stripe's customer says this of the tenant. False if something else is kept by now."""
    values = {"tenant": tenant_id, "customer": says.customer, "name": says.name, "email": says.email}
    return connection.execute(_TOLD, values).rowcount == 1
