"""Where we differed from Stripe without having been told: the table `drift`, one open row per tenant.

A row begins as a suspicion, written by the verb in the transaction that gave rise to it, with the document's
version as it was before. `reconcile` judges it later, when an event that explains it would be here: it is taken
back, or found. What is found is mended by then, but for what needs a person: a customer that is deleted, or
another tenant's. Those stay open for as long as they are true.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

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

from billing.db import metadata

Kind = Literal["changed", "missed_event", "customer_deleted", "foreign_customer"]

KINDS: tuple[Kind, ...] = ("changed", "missed_event", "customer_deleted", "foreign_customer")
PERSONAL: frozenset[str] = frozenset({"customer_deleted", "foreign_customer"})  # they need a person
KEPT = timedelta(days=35)
LATELY = timedelta(hours=1)
SHOWN = 100
JUDGED_AT_ONCE = 50  # their rows are locked meanwhile, and an answer may have something to add

drift = Table(
    "drift",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("tenant_id", Text, nullable=False),
    Column("stripe_customer_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("event_id", Text),  # the one that was missed
    Column("seen", BigInteger, nullable=False),  # the events up to this one had arrived
    Column("version_before", BigInteger, nullable=False),  # of the tenant's document
    Column("state_before", Text),
    Column("version_after", BigInteger),
    Column("state_after", Text),
    Column("suspected_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("found_at", DateTime(timezone=True)),
    Column("mended_at", DateTime(timezone=True)),
    CheckConstraint("tenant_id <> ''", name="tenant_id_given"),
    CheckConstraint(
        "kind IN ('changed', 'missed_event', 'customer_deleted', 'foreign_customer')", name="kind_known"
    ),
    CheckConstraint("mended_at IS NULL OR found_at IS NOT NULL", name="found_first"),
    Index("uq_drift_open", "tenant_id", unique=True, postgresql_where=text("mended_at IS NULL")),
    Index("ix_drift_found_at", "found_at"),
)


@dataclass(frozen=True, slots=True)
class Suspicion:
    """A tenant whose document may have been wrong: what it said, and what speaks for it."""

    tenant_id: str
    customer: str
    kind: Kind
    version: int
    state: str | None
    seen: int
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """A tenant that differed from Stripe, or whose customer cannot be right."""

    tenant_id: str
    customer: str
    kind: Kind
    event_id: str | None
    version_before: int
    state_before: str | None
    version_after: int | None
    state_after: str | None
    found_at: datetime
    mended_at: datetime | None

    @property
    def needs_somebody(self) -> bool:
        """Whether it is for a person to mend."""
        return self.kind in PERSONAL


_RELINKED = text("""
    DELETE FROM drift USING jsonb_to_recordset(CAST(:rows AS jsonb)) AS told (tenant_id text, customer text)
    WHERE drift.tenant_id = told.tenant_id AND stripe_customer_id <> customer AND mended_at IS NULL
""")
# What is worse goes before what is less; `array_position` is the order of KINDS.
_SUSPECT = text("""
    INSERT INTO drift AS d (tenant_id, stripe_customer_id, kind, event_id, seen, version_before, state_before)
    SELECT tenant_id, customer, kind, event_id, seen, version, state
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS told (
        tenant_id text, customer text, kind text, version bigint, state text, seen bigint, event_id text)
    ORDER BY tenant_id
    ON CONFLICT (tenant_id) WHERE mended_at IS NULL DO UPDATE
    SET kind = excluded.kind, event_id = excluded.event_id, found_at = NULL
    WHERE array_position(CAST(:kinds AS text[]), excluded.kind) > array_position(CAST(:kinds AS text[]), d.kind)
""")
_SUSPECTED = text("SELECT kind FROM drift WHERE tenant_id = :tenant AND mended_at IS NULL")
_CLEAR = text("""
    DELETE FROM drift
    WHERE tenant_id = ANY(:tenants) AND mended_at IS NULL AND kind = ANY(:kinds) AND kind <> :still
""")
_PENDING = text("""
    SELECT id, suspected_at, tenant_id, stripe_customer_id, kind, version_before, state_before, seen, event_id
    FROM drift WHERE mended_at IS NULL AND found_at IS NULL AND suspected_at < :before AND tenant_id > :after
    ORDER BY tenant_id LIMIT :most FOR UPDATE SKIP LOCKED
""")
_FIND = text("""
    UPDATE drift d SET found_at = clock_timestamp(), version_after = told.version, state_after = told.state,
                       mended_at = CASE WHEN d.kind = ANY(:personal) THEN NULL ELSE clock_timestamp() END
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS told (id bigint, version bigint, state text)
    WHERE d.id = told.id
""")
_DROP = text("DELETE FROM drift WHERE id = ANY(:ids)")
_FORGET = text("DELETE FROM drift WHERE tenant_id = :tenant")
# A tenant that is unlinked, or has another customer by now, needs nobody.
_IS_LINKED = """
    EXISTS (SELECT FROM tenant_config t
            WHERE t.tenant_id = drift.tenant_id AND t.stripe_customer_id = drift.stripe_customer_id)
"""
_PRUNE = text(f"""
    DELETE FROM drift
    WHERE mended_at < clock_timestamp() - CAST(:kept AS interval)
       OR (found_at IS NOT NULL AND mended_at IS NULL AND NOT {_IS_LINKED})
""")  # noqa: S608  # ours


def suspect(connection: Connection, suspicions: Iterable[Suspicion]) -> None:
    """Write them down. Of a tenant that has an open one, the worse kind counts, and the first version."""
    rows = [{name: getattr(one, name) for name in Suspicion.__slots__} for one in suspicions]
    if rows:
        connection.execute(_RELINKED, {"rows": json.dumps(rows)})
        connection.execute(_SUSPECT, {"rows": json.dumps(rows), "kinds": list(KINDS)})


def suspected(connection: Connection, tenant_id: str) -> Kind | None:
    """What the tenant is suspected of, or was found to be and still is."""
    kind: Kind | None = connection.scalar(_SUSPECTED, {"tenant": tenant_id})
    return kind


def clear(connection: Connection, tenants: Iterable[str], *, still: Kind | None) -> None:
    """Nothing is wrong any more with the customers of these tenants, but for `still`."""
    values = {"tenants": list(tenants), "kinds": sorted(PERSONAL), "still": still or ""}
    connection.execute(_CLEAR, values)


@dataclass(frozen=True, slots=True)
class Pending:
    """A suspicion that is to be judged. Its row is locked."""

    id: int
    since: datetime
    suspicion: Suspicion


def pending(connection: Connection, *, before: datetime, after: str) -> list[Pending]:
    """The suspicions from before then that nobody else is judging: the next ones by tenant."""
    found = connection.execute(_PENDING, {"before": before, "after": after, "most": JUDGED_AT_ONCE})
    return [Pending(row[0], row[1], Suspicion(*row[2:])) for row in found]


def settle(connection: Connection, found: Mapping[int, tuple[int, str | None]], dropped: Iterable[int]) -> None:
    """Those that are found, with the version and state that came of them; and those that were none."""
    rows = [{"id": id, "version": version, "state": state} for id, (version, state) in sorted(found.items())]
    if rows:
        connection.execute(_FIND, {"rows": json.dumps(rows), "personal": sorted(PERSONAL)})
    if ids := list(dropped):
        connection.execute(_DROP, {"ids": ids})


def forget(connection: Connection, tenant_id: str) -> None:
    """Keep nothing of the tenant's."""
    connection.execute(_FORGET, {"tenant": tenant_id})


def prune(connection: Connection) -> None:
    """Forget what was mended long ago, and what is out of the world since nobody is linked so any more."""
    connection.execute(_PRUNE, {"kept": KEPT})


# ---- for operators

_COLUMNS = (
    "tenant_id, stripe_customer_id, kind, event_id, version_before, state_before, version_after, state_after,"
    " found_at, mended_at"
)
_MENDED = text(f"""
    SELECT {_COLUMNS} FROM drift WHERE found_at >= :since AND mended_at IS NOT NULL
    ORDER BY found_at, tenant_id
""")  # noqa: S608  # ours
_NEEDING = text(f"""
    SELECT {_COLUMNS} FROM drift WHERE found_at IS NOT NULL AND mended_at IS NULL AND {_IS_LINKED}
    ORDER BY found_at, tenant_id LIMIT :most
""")  # noqa: S608  # ours
_COUNT = text("""
    SELECT kind, count(*) FROM drift WHERE found_at >= :since AND found_at < coalesce(:until, 'infinity')
    GROUP BY kind
""")


def needing(connection: Connection, *, most: int | None = SHOWN) -> list[Finding]:
    """What needs a person, the oldest first; all of it with None."""
    return [Finding(*row) for row in connection.execute(_NEEDING, {"most": most})]


def found(connection: Connection, *, since: datetime) -> list[Finding]:
    """All that was found and mended since then, and whatever needs a person, whenever it was found."""
    mended = connection.execute(_MENDED, {"since": since})
    return [*(Finding(*row) for row in mended), *needing(connection, most=None)]


def none() -> dict[Kind, int]:
    """What there is when there is nothing, by kind."""
    return dict.fromkeys(KINDS, 0)


def count(connection: Connection, *, since: datetime, until: datetime | None = None) -> dict[Kind, int]:
    """How many were found in that time, by kind."""
    counted = none()
    for kind, number in connection.execute(_COUNT, {"since": since, "until": until}):
        counted[kind] = number
    return counted


_LATELY = text(f"""
    SELECT kind, count(*) FROM (
        (SELECT kind FROM drift
         WHERE found_at >= clock_timestamp() - CAST(:lately AS interval) AND mended_at IS NOT NULL LIMIT :most)
        UNION ALL
        (SELECT kind FROM drift WHERE found_at IS NOT NULL AND mended_at IS NULL AND {_IS_LINKED} LIMIT :most)
    ) AS counted
    GROUP BY kind
""")  # noqa: S608  # ours


def lately(connection: Connection, *, most: int) -> dict[Kind, int]:
    """How many were found and mended within LATELY, or still need a person, by kind; counted up to `most`."""
    counted = none()
    for kind, number in connection.execute(_LATELY, {"lately": LATELY, "most": most + 1}):
        counted[kind] = number
    return counted
