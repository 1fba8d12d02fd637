"""How each tenant's document came to say what it says: the table `tenant_versions`.

One row per version, written by `state.refresh` in the transaction that moved it: what changed, and what it came
of. `event` and `answer` name the events behind it; an override, a link or a name has its own row in the trail,
from the same moment. Nothing is made of these rows but pages for operators, so they are kept as long as the
inbox, and no longer.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

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
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from billing.db import along_indexes, metadata
from billing.events import Json

KEPT = timedelta(days=35)
PRUNED_AT_ONCE = 5_000
NAMED = 10  # events, of the many that one answer may settle

Cause = Literal["event", "answer", "link", "unlink", "override", "name", "time", "catalogue"]

tenant_versions = Table(
    "tenant_versions",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("tenant_id", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("cause", Text, nullable=False),
    Column("events", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    Column("changes", JSONB, nullable=False),  # by name: what it said, and what it says
    CheckConstraint("tenant_id <> ''", name="tenant_id_given"),
    Index("ix_tenant_versions_tenant_id_at", "tenant_id", "at", "id"),
)


# ---- what differs

FRESHNESS = frozenset({"tenant_id", "version", "as_of", "stale"})


def differences(before: Json, after: Json) -> dict[str, list[Any]]:
    """What two documents of a tenant say differently, by name: `quantity`, `features.sso`, `stripe.status`."""
    was, is_now = flat(before), flat(after)
    names = [*is_now, *(name for name in was if name not in is_now)]
    pairs = {name: [was.get(name), is_now.get(name)] for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def flat(document: Json) -> Json:
    """What a document says, name by name, but for how fresh it is."""
    said: Json = {}
    for name, value in document.items():
        if name in ("features", "stripe"):
            said |= {f"{name}.{key}": one for key, one in value.items()}
        elif name not in FRESHNESS:
            said[name] = value
    return said


# ---- keeping


@dataclass(frozen=True, slots=True)
class Step:
    """A document that says something else from now on."""

    tenant: str
    version: int
    before: str  # as they are stored; '' where there was none
    after: str

    @property
    def changes(self) -> dict[str, list[Any]]:
        """Of a first version, only what is worth saying: how the tenant stands."""
        after = json.loads(self.after)
        if not self.before:
            return {"state": [None, after["state"]], "plan": [None, after["plan"]]}
        return differences(json.loads(self.before), after)


_KEEP = text("""
    INSERT INTO tenant_versions (tenant_id, version, cause, events, changes)
    SELECT tenant, version, :cause, events, changes
    FROM jsonb_to_recordset(CAST(:rows AS jsonb))
        AS w (tenant text, version bigint, events text[], changes jsonb)
""")


def keep(
    connection: Connection, steps: Iterable[Step], cause: Cause, events: Mapping[str, Collection[str]]
) -> None:
    """Write down what moved, and why; `events` are those behind it, by tenant."""
    rows = [
        {
            "tenant": step.tenant,
            "version": step.version,
            "events": list(events.get(step.tenant, ()))[:NAMED],
            "changes": step.changes,
        }
        for step in steps
    ]
    if rows:
        connection.execute(_KEEP, {"rows": json.dumps(rows), "cause": cause})


# From the lowest number on, for they are the oldest.
_PRUNE = text("""
    WITH stretch AS MATERIALIZED (SELECT id, at FROM tenant_versions ORDER BY id LIMIT :most), gone AS (
        DELETE FROM tenant_versions v USING stretch
        WHERE v.id = stretch.id AND stretch.at < statement_timestamp() - :kept
        RETURNING v.id
    )
    SELECT count(*) FROM gone
""")
_FORGET = text("DELETE FROM tenant_versions WHERE tenant_id = :tenant")


def prune(connection: Connection) -> int:
    """Forget the oldest of those that nobody needs any more. How many those were; at most PRUNED_AT_ONCE."""
    along_indexes(connection)
    return int(connection.scalar(_PRUNE, {"most": PRUNED_AT_ONCE, "kept": KEPT}))


def forget(connection: Connection, tenant_id: str) -> None:
    """Keep none of the tenant's."""
    connection.execute(_FORGET, {"tenant": tenant_id})


# ---- for judging what an event, or an answer, came to

# The state is written down only where it changed.
_TOLD = text("""
    SELECT since.tenant, told.version, (
        SELECT v.changes->'state'->>1 FROM tenant_versions v
        WHERE v.tenant_id = since.tenant AND v.version > since.version AND v.version <= told.version
          AND v.changes ? 'state'
        ORDER BY v.version DESC LIMIT 1
    )
    FROM jsonb_to_recordset(CAST(:since AS jsonb)) AS since (tenant text, version bigint)
    CROSS JOIN LATERAL (
        SELECT max(v.version) AS version FROM tenant_versions v
        WHERE v.tenant_id = since.tenant AND v.version > since.version AND v.cause IN ('event', 'answer')
    ) AS told
    WHERE told.version IS NOT NULL
""")


def told(connection: Connection, since: Mapping[str, int]) -> dict[str, tuple[int, str | None]]:
    """The latest version that Stripe has brought about after these, by tenant; with its state, if that changed.

    Those are left out whose document has not moved since, or for reasons of our own.
    """
    rows = [{"tenant": tenant, "version": version} for tenant, version in since.items()]
    found = connection.execute(_TOLD, {"since": json.dumps(rows)})
    return {row[0]: (row[1], row[2]) for row in found}


# ---- for operators


@dataclass(frozen=True, slots=True)
class Version:
    """A version: what changed with it, and what that came of."""

    id: int
    version: int
    at: datetime
    cause: str
    events: Sequence[str]
    changes: Mapping[str, Sequence[Any]]


_OF = text("""
    SELECT id, version, at, cause, events, changes FROM tenant_versions
    WHERE tenant_id = :tenant AND (at, id) < (:at, :id) ORDER BY at DESC, id DESC LIMIT :most
""")


def of(connection: Connection, tenant_id: str, *, before: tuple[datetime, int], most: int) -> list[Version]:
    """What the tenant's document came to say before that moment and row, newest first."""
    values = {"tenant": tenant_id, "at": before[0], "id": before[1], "most": most}
    along_indexes(connection)
    return [Version(*row) for row in connection.execute(_OF, values)]
