"""Who asked for what, and what came of it: the table `audit_log`.

An attempt is written as `started` before the outside world is touched and settled after, so that a crash in
between leaves its trace. The rows of those that were let through are the count behind the limit of links per
tenant and minute, which therefore holds over all processes. Never kept here: a link itself, a token, or an
e-mail address.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import psycopg
from sqlalchemy import (
    BigInteger,
    Boolean,
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
from sqlalchemy.dialects.postgresql import INET

from billing.db import Query, metadata

REFUSALS_PER_MINUTE = 600  # of one tenant: who is refused over and over fills the log, not the table

audit_log = Table(
    "audit_log",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("settled_at", DateTime(timezone=True)),
    Column("tenant_id", Text),  # NULL where it concerns no tenant
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("flow", Text),
    Column("started", Boolean, nullable=False),  # was let through, and counts towards the limit
    Column("outcome", Text, nullable=False),
    Column("stripe_object", Text),
    Column("request_id", Text),
    Column("ip", INET),
    Column("user_agent", Text),
    Column("reason", Text),  # where an operator gave one
    CheckConstraint("tenant_id <> ''", name="tenant_id_given"),
    CheckConstraint("(outcome = 'started') = (settled_at IS NULL)", name="settled_once_known"),
    Index("ix_audit_log_tenant_id_at", "tenant_id", "at"),
)

# `statement_timestamp()`, because an index can be searched by it: `clock_timestamp()` differs from row to row.
_START = """
    WITH recent AS (
        SELECT count(*) FILTER (WHERE started) AS links,
               min(at) FILTER (WHERE started) AS oldest,
               count(*) FILTER (WHERE NOT started) AS refusals
        FROM audit_log
        WHERE tenant_id = %(tenant_id)s AND at > statement_timestamp() - interval '1 minute'
    ), told AS (
        SELECT links < %(limit)s AS allowed,
               refusals < %(refusals)s AS written,
               ceil(extract(epoch FROM oldest + interval '1 minute' - statement_timestamp()))::int AS seconds
        FROM recent
    ), entry AS (
        INSERT INTO audit_log
            (tenant_id, actor, action, flow, started, outcome, settled_at, request_id, ip, user_agent)
        SELECT %(tenant_id)s, %(actor)s, %(action)s, %(flow)s, allowed,
               CASE WHEN allowed THEN 'started' ELSE 'rate_limited' END,
               CASE WHEN allowed THEN NULL ELSE clock_timestamp() END,
               %(request_id)s, %(ip)s, %(user_agent)s
        FROM told WHERE allowed OR written
        RETURNING id
    )
    SELECT (SELECT id FROM entry), allowed, seconds FROM told
"""
_BEGIN = """
    INSERT INTO audit_log (tenant_id, actor, action, started, outcome, request_id, ip, user_agent)
    VALUES (%(tenant_id)s, %(actor)s, %(action)s, false, 'started', %(request_id)s, %(ip)s, %(user_agent)s)
    RETURNING id
"""
_SETTLE = """
    UPDATE audit_log
    SET outcome = %(outcome)s, stripe_object = %(stripe_object)s, settled_at = clock_timestamp()
    WHERE id = %(id)s AND tenant_id = %(tenant_id)s AND outcome = 'started'
"""
_REFUSE = """
    INSERT INTO audit_log
        (tenant_id, actor, action, flow, started, outcome, settled_at, request_id, ip, user_agent)
    SELECT %(tenant_id)s, %(actor)s, %(action)s, %(flow)s, false, %(outcome)s, clock_timestamp(),
           %(request_id)s, %(ip)s, %(user_agent)s
    WHERE (
        SELECT count(*) FROM audit_log
        WHERE tenant_id = %(tenant_id)s AND at > statement_timestamp() - interval '1 minute' AND NOT started
    ) < %(refusals)s
"""


@dataclass(frozen=True)
class Attempt:
    """Somebody asks for something on a tenant's behalf."""

    tenant_id: str
    actor: str
    action: str
    request_id: str
    ip: str | None
    user_agent: str


@dataclass(frozen=True)
class Entry:
    """The row of an attempt that may go on."""

    id: int
    tenant_id: str


@dataclass(frozen=True)
class Limited:
    """An attempt that was one too many."""

    retry_after: int  # seconds


def start(attempt: Attempt, *, flow: str | None, limit: int) -> Query[Entry | Limited]:
    """Write the attempt down as started, or as one more than `limit` links in the last minute.

    Run it `in_turn`, or two attempts could both be the last one allowed.
    """

    def entry(written: psycopg.Cursor[tuple[int, bool, int | None]]) -> Entry | Limited:
        [(number, allowed, seconds)] = written
        return Entry(number, attempt.tenant_id) if allowed else Limited(max(1, seconds or 60))

    return Query("audit.start", _START, {**_values(attempt, flow), "limit": limit}, entry)


def begin(attempt: Attempt) -> Query[Entry]:
    """Write the attempt down as started, where no limit holds it and it counts towards none."""

    def entry(written: psycopg.Cursor[tuple[int]]) -> Entry:
        [(number,)] = written
        return Entry(number, attempt.tenant_id)

    return Query("audit.begin", _BEGIN, vars(attempt), entry)


def settle(entry: Entry, outcome: str, stripe_object: str | None) -> Query[None]:
    """Say what came of a started attempt. Saying it twice changes nothing."""
    values = {"id": entry.id, "tenant_id": entry.tenant_id, "outcome": outcome, "stripe_object": stripe_object}
    return Query("audit.settle", _SETTLE, values, _nothing)


def refuse(attempt: Attempt, outcome: str, *, flow: str | None) -> Query[None]:
    """Write down an attempt that was turned away before it started. It does not count towards the limit."""
    return Query("audit.refuse", _REFUSE, {**_values(attempt, flow), "outcome": outcome}, _nothing)


# An attempt is over within half a minute.
_LAST_LINK = text("""
    SELECT max(settled_at) FROM audit_log
    WHERE tenant_id = :tenant AND at > statement_timestamp() - interval '1 minute'
      AND started AND outcome = 'opened'
""")


def last_link(connection: Connection, tenant_id: str) -> datetime | None:
    """When the tenant was last handed a link to Stripe, if that was in the last half minute."""
    handed: datetime | None = connection.scalar(_LAST_LINK, {"tenant": tenant_id})
    return handed


@dataclass(frozen=True, slots=True)
class By:
    """An operator who does something, and why; `ip` and `request_id` where it was done in a browser."""

    actor: str
    reason: str
    request_id: str | None = None
    ip: str | None = None


_NOTE = text("""
    INSERT INTO audit_log
        (tenant_id, actor, action, started, outcome, settled_at, stripe_object, reason, request_id, ip)
    VALUES (:tenant, :actor, :action, false, :outcome, clock_timestamp(), :object, :reason, :request_id,
            CAST(:ip AS inet))
""")


def note(
    connection: Connection,
    by: By,
    action: str,
    *,
    tenant_id: str | None = None,
    stripe_object: str | None = None,
    outcome: str = "ok",
) -> None:
    """Write down what an operator did, in the transaction that does it."""
    values = {**asdict(by), "tenant": tenant_id, "action": action, "object": stripe_object, "outcome": outcome}
    connection.execute(_NOTE, values)


def _values(attempt: Attempt, flow: str | None) -> dict[str, Any]:
    return {**vars(attempt), "flow": flow, "refusals": REFUSALS_PER_MINUTE}


def _nothing(_: psycopg.Cursor[object]) -> None:
    return None
