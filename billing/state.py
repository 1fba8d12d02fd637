"""The one document per tenant, its version, and its position in the feed: the table `tenant_states`.

`refresh` writes documents from what is held, in the transaction that changed it. A document's version grows
by one when anything in it but its freshness differs, and by nothing else; with that it moves to the end of the
`feed`, once Stripe has told what it is made of. It is stored as the bytes callers get. The rows are locked in
the order of their tenants, after all others but the end of the feed; facts and the clock are read after the
lock, so whoever comes last has seen everything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import psycopg
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Connection,
    DateTime,
    Index,
    LargeBinary,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from billing import catalogue, entitlements, feed, invoices, overrides, policy, subscriptions, versions
from billing.catalogue import Catalogue
from billing.db import Query, along_indexes, metadata
from billing.events import Json
from billing.policy import Evaluation, Held, Tenant
from billing.versions import Cause, Step

NOBODY: Mapping[str, float] = {}
NO_EVENTS: Mapping[str, Collection[str]] = {}
OLD = timedelta(hours=26)  # everybody is asked about once a day
CHUNK = 500
NEVER = 2**63 - 1  # an edition no catalogue comes to: what is forgotten is not measured anew
UNFED = "version > fed AND as_of IS NOT NULL AND edition > 0"

tenant_states = Table(
    "tenant_states",
    metadata,
    Column("tenant_id", Text, primary_key=True),
    Column("stripe_customer_id", Text),  # whose facts it was made of
    Column("version", BigInteger, nullable=False, server_default="0"),
    Column("body", Text, nullable=False, server_default=""),  # JSON in ASCII, as callers get it
    Column("digest", LargeBinary, nullable=False, server_default=text("''")),  # of all that is versioned
    Column("state", Text),  # the document's word, to find tenants by
    Column("why", JSONB, nullable=False, server_default=text("'{}'")),
    Column("edition", BigInteger, nullable=False, server_default="0"),  # of the catalogue it was measured by
    Column("as_of", DateTime(timezone=True)),  # NULL: Stripe has never been asked about this customer
    Column("next_look", DateTime(timezone=True)),  # when time alone may change it
    Column("changed_at", DateTime(timezone=True)),
    Column("synced_at", DateTime(timezone=True)),  # when somebody last had Stripe asked, and waited
    Column("position", BigInteger),  # in the feed; NULL: not in it yet
    Column("fed", BigInteger, nullable=False, server_default="0"),  # the version that has it
    CheckConstraint("tenant_id <> ''", name="tenant_id_given"),
    Index("ix_tenant_states_next_look", "next_look", postgresql_where=text("next_look IS NOT NULL")),
    Index("ix_tenant_states_edition", "edition"),
    Index("ix_tenant_states_state", "state", "tenant_id"),
    Index("uq_tenant_states_position", "position", unique=True),
    Index("ix_tenant_states_unfed", "tenant_id", postgresql_where=text(UNFED)),
)


# ---- reading


@dataclass(frozen=True, slots=True)
class State:
    """A tenant's row, as a reader needs it."""

    version: int
    digest: bytes
    body: str
    customer: str | None
    edition: int
    is_known: bool
    is_due: bool  # time may have changed it since
    is_old: bool  # nobody has confirmed it for too long
    lasts: float | None  # seconds until time may change it


_AS_READ = """
    version, digest, body, stripe_customer_id AS customer, edition, as_of IS NOT NULL AS is_known,
    coalesce(next_look <= clock_timestamp(), false) AS is_due,
    stripe_customer_id IS NOT NULL AND as_of < clock_timestamp() - %(old)s IS TRUE AS is_old,
    extract(epoch FROM next_look - clock_timestamp())::float8 AS lasts
"""
# The scope is entered in the statement that reads: the row is looked up by what entering returned, so that
# cannot come later. One statement is one transaction.
_READ = f"""
    SELECT version, digest, body, customer, edition, is_known, is_due, is_old, lasts
    FROM (
        SELECT set_config('billing.scope', %(scope)s, true) AS scope,
               set_config('billing.tenant', %(tenant)s, true) AS tenant
        OFFSET 0
    ) AS entered
    CROSS JOIN LATERAL (
        SELECT {_AS_READ}
        FROM tenant_states
        WHERE tenant_id = entered.tenant AND entered.scope <> '' AND body <> ''
        OFFSET 0
    ) AS state
"""  # noqa: S608  # the columns are ours
_READ_OF = f"SELECT {_AS_READ} FROM tenant_states WHERE tenant_id = %(tenant_id)s AND body <> ''"  # noqa: S608
_VERSION = text("SELECT version FROM tenant_states WHERE tenant_id = :tenant")
_SHOWN = text("""
    SELECT tenant_id, version, CASE WHEN body <> '' THEN body::json->>'state' END FROM tenant_states
    WHERE tenant_id = ANY(:tenants)
""")


def read() -> Query[State | None]:
    """The row of the tenant on whose behalf it is run, if there is a document in it."""
    return Query("state.read", _READ, {"old": OLD}, _state, enters=True)


@dataclass(frozen=True, slots=True)
class Stored:
    """A tenant's row, as operators look at it."""

    version: int
    document: Json | None  # None where there is none yet, or none any more
    why: Json
    customer: str | None  # whose facts it was made of
    as_of: datetime | None  # None: Stripe has never been asked about this customer
    changed_at: datetime | None
    next_look: datetime | None
    is_due: bool
    is_old: bool
    is_forgotten: bool


NOWHERE = Stored(0, None, {}, None, None, None, None, is_due=False, is_old=False, is_forgotten=False)
_STORED = text("""
    SELECT version, CAST(nullif(body, '') AS json), why, stripe_customer_id, as_of, changed_at, next_look,
           coalesce(next_look <= clock_timestamp(), false),
           stripe_customer_id IS NOT NULL AND as_of < clock_timestamp() - CAST(:old AS interval) IS TRUE,
           edition = :never
    FROM tenant_states WHERE tenant_id = :tenant
""")


def stored(connection: Connection, tenant_id: str) -> Stored | None:
    """The tenant's row as it is, and nothing made of it; None where nobody has ever asked for its document."""
    row = connection.execute(_STORED, {"tenant": tenant_id, "old": OLD, "never": NEVER}).one_or_none()
    return Stored(*row) if row else None


def version_of(connection: Connection, tenant_id: str) -> int:
    """The version of the tenant's document; 0 before there is one."""
    return connection.scalar(_VERSION, {"tenant": tenant_id}) or 0


@dataclass(frozen=True, slots=True)
class Shown:
    """What a tenant is told, in short."""

    version: int
    state: str | None


def shown(connection: Connection, tenants: Collection[str]) -> dict[str, Shown]:
    """What these tenants' documents say, by tenant; those without a document are left out."""
    found = connection.execute(_SHOWN, {"tenants": list(tenants)})
    return {row[0]: Shown(row[1], row[2]) for row in found}


def read_of(tenant_id: str) -> Query[State | None]:
    """This tenant's row, for a scope that sees the rows of others."""
    return Query("state.read_of", _READ_OF, {"tenant_id": tenant_id, "old": OLD}, _state)


def _state(found: psycopg.Cursor[Any]) -> State | None:
    row = found.fetchone()
    return State(*row) if row else None


# ---- writing


@dataclass(frozen=True, slots=True)
class Changed:
    """A document that has a new version, or a place in the feed that it had not."""

    tenant_id: str
    version: int
    position: int | None  # in the feed; None: it is not shown there yet


_ENSURE = text("""
    INSERT INTO tenant_states (tenant_id)
    SELECT id FROM unnest(CAST(:tenants AS text[])) AS given (id)
    WHERE NOT EXISTS (SELECT FROM tenant_states WHERE tenant_id = id)
    ORDER BY id ON CONFLICT DO NOTHING
""")
_LOCK = text("""
    SELECT tenant_id, version, digest, stripe_customer_id, extract(epoch FROM as_of)::float8, fed,
           body, edition = :never
    FROM tenant_states
    WHERE tenant_id = ANY(:tenants) ORDER BY tenant_id FOR NO KEY UPDATE
""")
# A tenant that has no customer has nothing at Stripe that anybody could ask about.
_LINKED = text("""
    SELECT given.id, t.stripe_customer_id,
           CASE WHEN t.stripe_customer_id IS NULL THEN extract(epoch FROM clock_timestamp())
                ELSE extract(epoch FROM c.answered_at) END::float8
    FROM unnest(CAST(:tenants AS text[])) AS given (id)
    LEFT JOIN tenant_config t ON t.tenant_id = given.id AND t.stripe_customer_id <> ''
    LEFT JOIN stripe_customers c ON c.stripe_customer_id = t.stripe_customer_id
""")
_NAMED = text("SELECT tenant_id FROM tenant_config WHERE tenant_id = ANY(:tenants)")
_NOW = text("SELECT extract(epoch FROM clock_timestamp())::float8")
_WRITE = text(f"""
    WITH written AS MATERIALIZED (
        SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS w (
            tenant text, customer text, version bigint, digest text, body text, state text, why jsonb,
            edition bigint, next_look float8, is_known boolean, as_of float8, moves boolean)
    ), moved AS (
        SELECT tenant, row_number() OVER (ORDER BY tenant DESC) - 1 AS place FROM written WHERE moves
    ), head AS ({feed.ADVANCED})
    UPDATE tenant_states s SET
        stripe_customer_id = w.customer, version = w.version, digest = decode(w.digest, 'hex'),
        body = w.body, state = w.state, why = w.why, edition = w.edition, next_look = to_timestamp(w.next_look),
        as_of = CASE WHEN w.is_known THEN to_timestamp(w.as_of) END,
        changed_at = CASE WHEN w.version > s.version THEN clock_timestamp() ELSE s.changed_at END,
        position = coalesce((SELECT position FROM head) - m.place, s.position),
        fed = CASE WHEN w.moves THEN w.version ELSE s.fed END
    FROM written w LEFT JOIN moved m USING (tenant)
    WHERE s.tenant_id = w.tenant
    RETURNING s.tenant_id, CASE WHEN w.moves THEN s.position END
""")  # noqa: S608  # ours


def refresh(
    connection: Connection,
    tenants: Collection[str],
    *,
    cause: Cause,
    events: Mapping[str, Collection[str]] = NO_EVENTS,
    confirmed: Mapping[str, float] = NOBODY,
    revives: bool = False,
) -> list[Changed]:
    """Write these tenants' documents anew. Of those that are `confirmed`, Stripe told us what was true then.

    One that was forgotten stays so until somebody has named it again, by a row in `tenant_config` or by a
    token (`revives`); and until its document is known, or consumers would not hear that it was gone.

    What moves is written down with its `cause` and, where there are any, the `events` behind it, by tenant.

    Once per transaction, and the last that it locks: where a version moves, it holds the end of the feed. Which
    documents have changed is for the caller to say, when that is committed (`sync.tell`).
    """
    if not tenants:
        return []
    ids = sorted(tenants)
    connection.execute(_ENSURE, {"tenants": ids})
    locked = connection.execute(_LOCK, {"tenants": ids, "never": NEVER}).all()
    found = evaluate(connection, ids)
    forgotten = {row[0] for row in locked if row[-1]}
    back = forgotten if revives or not forgotten else _named(connection, forgotten)
    rows, steps, numbers = [], [], {}
    for tenant, version, digest, customer, as_of, fed, body, is_forgotten in locked:
        one = found[tenant]
        if is_forgotten and (tenant not in back or one.answered_at is None):
            continue
        measured = one.digest()
        grows = measured != bytes(digest)
        version += grows
        held = as_of if as_of is not None and customer == one.tenant.customer else one.answered_at
        at = min(one.now, max(held or 0.0, confirmed.get(tenant, 0.0)))
        moves = one.is_shown and version > fed
        rows.append({**one.row(version, measured, at), "moves": moves})
        if grows:
            steps.append(Step(tenant, version, body, rows[-1]["body"]))
        if grows or moves:
            numbers[tenant] = version
    versions.keep(connection, steps, cause, events)
    places = connection.execute(_WRITE, {"rows": json.dumps(rows)})
    return [Changed(tenant, numbers[tenant], place) for tenant, place in places if tenant in numbers]


def _named(connection: Connection, tenants: Collection[str]) -> set[str]:
    return set(connection.scalars(_NAMED, {"tenants": list(tenants)}))


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A tenant's document at a moment of the database's clock, before it has a version."""

    tenant: Tenant
    evaluation: Evaluation
    edition: int
    answered_at: float | None  # when Stripe last answered; None if it was never asked
    now: float

    @property
    def is_shown(self) -> bool:
        """Whether the feed has it: consumers act on what Stripe has told, and on what is sold."""
        return self.answered_at is not None and self.edition > 0

    def digest(self) -> bytes:
        """The same for equal documents of one tenant only."""
        written = json.dumps([self.tenant.id, self.evaluation.document], sort_keys=True)
        return hashlib.blake2b(written.encode(), digest_size=16).digest()

    def body(self, version: int, as_of: str | None) -> str:
        """The document as callers get it."""
        freshness = {"version": version, "as_of": as_of, "stale": False}
        return json.dumps({"tenant_id": self.tenant.id, **freshness, **self.evaluation.document})

    def row(self, version: int, digest: bytes, as_of: float) -> Json:
        """What is kept of it."""
        return {
            "tenant": self.tenant.id,
            "customer": self.tenant.customer,
            "version": version,
            "digest": digest.hex(),
            "body": self.body(version, policy.written(as_of)),
            "state": self.evaluation.document["state"],
            "why": self.evaluation.why,
            "edition": self.edition,
            "next_look": self.evaluation.next_look,
            "is_known": self.answered_at is not None,
            "as_of": as_of,
        }


def evaluate(connection: Connection, tenants: Collection[str]) -> dict[str, Evaluated]:
    """These tenants' documents as they are now, from all that is held."""
    edition = catalogue.current(connection)
    linked = {row[0]: (row[1], row[2]) for row in connection.execute(_LINKED, {"tenants": list(tenants)})}
    facts = _facts(connection, {id: customer for id, (customer, _) in linked.items()}, edition)
    granted = overrides.of(connection, tenants)
    now: float = connection.scalar(_NOW) or 0.0
    return {
        one.id: Evaluated(
            one,
            policy.evaluate(one, edition, granted.get(one.id, ()), edition.rules, now),
            edition.edition,
            linked[one.id][1],
            now,
        )
        for one in facts
    }


def _facts(connection: Connection, linked: Mapping[str, str | None], edition: Catalogue) -> Iterable[Tenant]:
    customers = [customer for customer in linked.values() if customer]
    held = subscriptions.of(connection, customers) if customers else {}
    entitled = entitlements.of(connection, customers) if customers and edition.entitlements else {}
    delinquent = [
        id for ones in held.values() for id, facts in ones if facts.status in subscriptions.DELINQUENT
    ]
    overdue = invoices.overdue_since(connection, delinquent) if delinquent else {}
    for id, customer in linked.items():
        ones = held.get(customer or "", ())
        subscribed = tuple(Held(sub, facts, overdue.get(sub)) for sub, facts in ones)
        yield Tenant(id, customer, subscribed, entitled.get(customer or "", frozenset()))


def subscription_of(connection: Connection, tenant_id: str) -> Held | None:
    """The subscription this tenant's document is about, unless it is over."""
    one = evaluate(connection, [tenant_id])[tenant_id]
    wanted = one.evaluation.document["stripe"]["subscription"]
    return next((held for held in one.tenant.subscriptions if held.id == wanted), None)


# ---- the feed

_ENTER = text(f"""
    WITH unfed AS MATERIALIZED (
        SELECT tenant_id, version FROM tenant_states WHERE {UNFED}
        ORDER BY tenant_id LIMIT :most FOR NO KEY UPDATE SKIP LOCKED
    ), moved AS (
        SELECT tenant_id, version, row_number() OVER (ORDER BY tenant_id DESC) - 1 AS place FROM unfed
    ), head AS ({feed.ADVANCED})
    UPDATE tenant_states s SET position = (SELECT position FROM head) - m.place, fed = m.version
    FROM moved m WHERE s.tenant_id = m.tenant_id
""")  # noqa: S608  # ours
_KEEP = text("SELECT edition < :never FROM tenant_states WHERE tenant_id = :tenant FOR NO KEY UPDATE")
_IS_FORGOTTEN = text("SELECT edition = :never FROM tenant_states WHERE tenant_id = :tenant")
_FORGET = text(f"""
    WITH moved AS MATERIALIZED (
        SELECT tenant_id, 0 AS place FROM tenant_states
        WHERE tenant_id = :tenant AND edition < :never FOR NO KEY UPDATE
    ), head AS ({feed.ADVANCED})
    UPDATE tenant_states s SET
        stripe_customer_id = NULL, version = s.version + 1, body = '', digest = '', state = NULL,
        why = '{{}}', edition = :never, as_of = NULL, next_look = NULL,
        changed_at = clock_timestamp(), synced_at = NULL, position = (SELECT position FROM head),
        fed = s.version + 1
    FROM moved m WHERE s.tenant_id = m.tenant_id
""")  # noqa: S608  # ours


def enter(connection: Connection, most: int = CHUNK) -> int:
    """Give those documents a position whose version has none: written by a release that knew of no feed.

    How many those were. Its only locks are theirs and, last, the end of the feed.
    """
    along_indexes(connection)
    return connection.execute(_ENTER, {"most": most}).rowcount


def is_forgotten(connection: Connection, tenant_id: str) -> bool:
    """Whether nothing but the tenant's end is kept of it."""
    return bool(connection.scalar(_IS_FORGOTTEN, {"tenant": tenant_id, "never": NEVER}))


def lock(connection: Connection, tenant_id: str) -> bool:
    """Let nobody else write the tenant's document meanwhile. Whether there is one."""
    return bool(connection.scalar(_KEEP, {"tenant": tenant_id, "never": NEVER}))


def forget(connection: Connection, tenant_id: str) -> None:
    """Leave an empty body in the document's place, if there is one, which the feed tells of.

    Should the tenant come back, its versions go on. This locks the end of the feed, as `refresh` does.
    """
    connection.execute(_FORGET, {"tenant": tenant_id, "never": NEVER})


# ---- whose turn it is

_DUE = text("""
    SELECT tenant_id, stripe_customer_id FROM tenant_states
    WHERE next_look <= clock_timestamp() ORDER BY next_look LIMIT :most
""")
_BEHIND = text("""
    SELECT tenant_id FROM tenant_states
    WHERE edition < (SELECT edition FROM catalogue) ORDER BY edition LIMIT :most
""")
_MAY_SYNC = text("""
    INSERT INTO tenant_states AS s (tenant_id, synced_at) VALUES (:tenant, clock_timestamp())
    ON CONFLICT (tenant_id) DO UPDATE SET synced_at = excluded.synced_at
    WHERE s.synced_at IS NULL OR s.synced_at <= clock_timestamp() - :pause OR s.synced_at < :reason
""")


def due(connection: Connection, most: int = CHUNK) -> list[tuple[str, str | None]]:
    """Tenants whose documents time may have changed, with their customers."""
    return [(row[0], row[1]) for row in connection.execute(_DUE, {"most": most})]


def behind(connection: Connection, most: int = CHUNK) -> list[str]:
    """Tenants whose documents were measured by an earlier edition of the catalogue."""
    return list(connection.scalars(_BEHIND, {"most": most}))


def may_sync(connection: Connection, tenant_id: str, pause: timedelta, reason: datetime | None = None) -> bool:
    """Whether nobody has had Stripe asked about this tenant for that long, or since there was a `reason` to.

    If so, somebody now has.
    """
    values = {"tenant": tenant_id, "pause": pause, "reason": reason}
    return connection.execute(_MAY_SYNC, values).rowcount == 1
