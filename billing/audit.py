"""Who asked for what, and what came of it: the table `audit_log`.

An attempt is written as `started` before the outside world is touched and settled after, so that a crash in
between leaves its trace. The same rows are the count behind the limit of links per tenant and minute, which
therefore holds over all processes. Never kept here: a link itself, a token, or an e-mail address.
"""

from __future__ import annotations

from dataclasses import dataclass

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
from sqlalchemy.dialects.postgresql import INET

from billing.db import metadata

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

_START = text(
    """
    WITH recent AS (
        SELECT count(*) AS links, min(at) AS oldest FROM audit_log
        WHERE tenant_id = :tenant_id AND at > clock_timestamp() - interval '1 minute'
          AND action IN ('portal') AND outcome <> 'rate_limited'
    ), told AS (
        SELECT links < :limit AS allowed,
               ceil(extract(epoch FROM oldest + interval '1 minute' - clock_timestamp()))::int AS seconds
        FROM recent
    )
    INSERT INTO audit_log (tenant_id, actor, action, flow, outcome, settled_at, request_id, ip, user_agent)
    SELECT :tenant_id, :actor, :action, :flow, CASE WHEN allowed THEN 'started' ELSE 'rate_limited' END,
           CASE WHEN allowed THEN NULL ELSE clock_timestamp() END, :request_id, :ip, :user_agent
    FROM told
    RETURNING id, outcome, (SELECT seconds FROM told)
    """
)
_SETTLE = text(
    """
    UPDATE audit_log SET outcome = :outcome, stripe_object = :stripe_object, settled_at = clock_timestamp()
    WHERE id = :id AND tenant_id = :tenant_id AND outcome = 'started'
    """
)
_REFUSE = text(
    """
    INSERT INTO audit_log (tenant_id, actor, action, outcome, settled_at, request_id, ip, user_agent)
    VALUES (:tenant_id, :actor, :action, :outcome, clock_timestamp(), :request_id, :ip, :user_agent)
    """
)


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


def start(connection: Connection, attempt: Attempt, *, flow: str | None, limit: int) -> Entry:
    """Write the attempt down as started, or as one more than `limit` links in the last minute.

    Call it in a transaction that is `in_turn`, or two attempts could both be the last one allowed.
    """
    row = connection.execute(_START, {**vars(attempt), "flow": flow, "limit": limit}).one()
    return Entry(row.id, attempt.tenant_id, None if row.outcome == "started" else max(1, row.seconds))


def settle(connection: Connection, entry: Entry, outcome: str, stripe_object: str | None) -> None:
    """Say what came of a started attempt. Saying it twice changes nothing."""
    connection.execute(
        _SETTLE,
        {"id": entry.id, "tenant_id": entry.tenant_id, "outcome": outcome, "stripe_object": stripe_object},
    )


def refuse(connection: Connection, attempt: Attempt, outcome: str) -> None:
    """Write down an attempt that was turned away before it started."""
    connection.execute(_REFUSE, {**vars(attempt), "outcome": outcome})
