"""Who asked for what, and what came of it: the table `audit_log`.

An attempt is written as `started` before the outside world is touched and settled after, so that a crash in
between leaves its trace. The same rows are the count behind the limit of links per tenant and minute, which
therefore holds over all processes. Never kept here: a link itself, a token, or an e-mail address.
"""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Identity,
    Index,
    Table,
    Text,
    func,
)
from sqlalchemy.dialects.postgresql import INET

from billing.db import Query, metadata

audit_log = Table(
    "audit_log",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("settled_at", DateTime(timezone=True)),
    Column("tenant_id", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("flow", Text),
    Column("outcome", Text, nullable=False),
    Column("stripe_object", Text),
    Column("request_id", Text),
    Column("ip", INET),
    Column("user_agent", Text),
    CheckConstraint("tenant_id <> ''", name="tenant_id_given"),
    CheckConstraint("(outcome = 'started') = (settled_at IS NULL)", name="settled_once_known"),
    Index("ix_audit_log_tenant_id_at", "tenant_id", "at"),
)

_START = """
    WITH recent AS (
        SELECT count(*) AS links, min(at) AS oldest FROM audit_log
        WHERE tenant_id = %(tenant_id)s AND at > clock_timestamp() - interval '1 minute'
          AND action IN ('portal') AND outcome <> 'rate_limited'
    ), told AS (
        SELECT links < %(limit)s AS allowed,
               ceil(extract(epoch FROM oldest + interval '1 minute' - clock_timestamp()))::int AS seconds
        FROM recent
    )
    INSERT INTO audit_log (tenant_id, actor, action, flow, outcome, settled_at, request_id, ip, user_agent)
    SELECT %(tenant_id)s, %(actor)s, %(action)s, %(flow)s,
           CASE WHEN allowed THEN 'started' ELSE 'rate_limited' END,
           CASE WHEN allowed THEN NULL ELSE clock_timestamp() END,
           %(request_id)s, %(ip)s, %(user_agent)s
    FROM told
    RETURNING id, outcome, (SELECT seconds FROM told)
"""
_SETTLE = """
    UPDATE audit_log
    SET outcome = %(outcome)s, stripe_object = %(stripe_object)s, settled_at = clock_timestamp()
    WHERE id = %(id)s AND tenant_id = %(tenant_id)s AND outcome = 'started'
"""
_REFUSE = """
    INSERT INTO audit_log (tenant_id, actor, action, outcome, settled_at, request_id, ip, user_agent)
    VALUES (%(tenant_id)s, %(actor)s, %(action)s, %(outcome)s, clock_timestamp(),
            %(request_id)s, %(ip)s, %(user_agent)s)
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
    """An attempt's row. With `retry_after` (seconds) it was one too many, and is settled already."""

    id: int
    tenant_id: str
    retry_after: int | None


def start(attempt: Attempt, *, flow: str | None, limit: int) -> Query[Entry]:
    """Write the attempt down as started, or as one more than `limit` links in the last minute.

    Run it `in_turn`, or two attempts could both be the last one allowed.
    """

    def entry(written: psycopg.Cursor[tuple[int, str, int | None]]) -> Entry:
        [(number, outcome, seconds)] = written
        return Entry(number, attempt.tenant_id, None if outcome == "started" else max(1, seconds or 0))

    return Query("audit.start", _START, {**vars(attempt), "flow": flow, "limit": limit}, entry)


def settle(entry: Entry, outcome: str, stripe_object: str | None) -> Query[None]:
    """Say what came of a started attempt. Saying it twice changes nothing."""
    values = {"id": entry.id, "tenant_id": entry.tenant_id, "outcome": outcome, "stripe_object": stripe_object}
    return Query("audit.settle", _SETTLE, values, _nothing)


def refuse(attempt: Attempt, outcome: str) -> Query[None]:
    """Write down an attempt that was turned away before it started."""
    return Query("audit.refuse", _REFUSE, {**vars(attempt), "outcome": outcome}, _nothing)


def _nothing(_: psycopg.Cursor[object]) -> None:
    return None
