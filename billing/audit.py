"""Who asked for what, and what came of it: the table `audit_log`.

An attempt is written as `started` before the outside world is touched and settled after, so that a crash in
between leaves its trace. The rows of those that were let through are the count behind the limit of links per
tenant and minute, which therefore holds over all processes. Never kept here: a link itself, a token, or an
e-mail address.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
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

from billing.db import Query, along_indexes, metadata

REFUSALS_PER_MINUTE = 600  # of one tenant: who is refused over and over fills the log, not the table
REFUSED_PER_MINUTE = 10  # sign-ins of anybody: a stranger must not bury what operators did

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
    Index("ix_audit_log_at_id", "at", "id"),
    Index("ix_audit_log_actor_at_id", "actor", "at", "id"),
    Index("ix_audit_log_action_at_id", "action", "at", "id"),
    Index(
        "ix_audit_log_stripe_object",
        "stripe_object",
        "id",
        postgresql_where=text("NOT started AND stripe_object IS NOT NULL"),
    ),
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
        (tenant_id, actor, action, flow, started, outcome, settled_at, stripe_object, reason, request_id, ip)
    VALUES (:tenant, :actor, :action, :flow, false, :outcome, clock_timestamp(), :object, :reason, :request_id,
            CAST(:ip AS inet))
""")


def note(
    connection: Connection,
    by: By,
    action: str,
    *,
    tenant_id: str | None = None,
    flow: str | None = None,
    stripe_object: str | None = None,
    outcome: str = "ok",
) -> None:
    """Write down what an operator did, in the transaction that does it; `flow` says what exactly."""
    values = {"tenant": tenant_id, "action": action, "flow": flow, "object": stripe_object, "outcome": outcome}
    connection.execute(_NOTE, {**asdict(by), **values})


_REFUSED_LATELY = text("""
    SELECT count(*) FROM audit_log
    WHERE action = :action AND at > statement_timestamp() - interval '1 minute' AND outcome = 'refused'
""")


def note_refused(connection: Connection, by: By, action: str) -> None:
    """Write down that somebody was not let in, unless the last minute has enough of that."""
    if (connection.scalar(_REFUSED_LATELY, {"action": action}) or 0) < REFUSED_PER_MINUTE:
        note(connection, by, action, outcome="refused")


_NOTE_EACH = text("""
    INSERT INTO audit_log
        (tenant_id, actor, action, started, outcome, settled_at, stripe_object, reason, request_id, ip)
    SELECT tenant, :actor, :action, false, 'ok', clock_timestamp(), object, :reason, :request_id,
           CAST(:ip AS inet)
    FROM unnest(CAST(:objects AS text[]), CAST(:tenants AS text[])) AS done (object, tenant)
""")


def note_each(connection: Connection, by: By, action: str, done: Sequence[tuple[str, str | None]]) -> None:
    """Write down what an operator did to many of Stripe's objects: each with its tenant, if it has one."""
    if done:
        objects, tenants = [one[0] for one in done], [one[1] for one in done]
        connection.execute(_NOTE_EACH, {**asdict(by), "action": action, "objects": objects, "tenants": tenants})


def _values(attempt: Attempt, flow: str | None) -> dict[str, Any]:
    return {**vars(attempt), "flow": flow, "refusals": REFUSALS_PER_MINUTE}


def _nothing(_: psycopg.Cursor[object]) -> None:
    return None


# ---- reading it

LOOKED_THROUGH = 10_000  # rows at most for one answer: what is rare is found bit by bit
FIRST = datetime(1970, 1, 1, tzinfo=UTC)
PLACE = re.compile(r"(\d{1,17})-(\d{1,18})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rows: those that fit all that is said."""

    actor: str | None = None
    action: str | None = None
    tenant_id: str | None = None
    outcome: str | None = None
    since: datetime | None = None
    until: datetime | None = None  # before this moment


@dataclass(frozen=True, slots=True)
class Row:
    """What somebody did, or was refused."""

    id: int
    at: datetime
    settled_at: datetime | None
    tenant_id: str | None
    actor: str
    action: str
    flow: str | None
    outcome: str
    stripe_object: str | None
    reason: str | None
    request_id: str | None
    ip: str | None
    user_agent: str | None


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a row stands in the trail."""

    at: datetime
    id: int

    @classmethod
    def read(cls, written: str) -> Place | None:
        """As it was written into a link; None if that was never one of ours."""
        found = PLACE.fullmatch(written)
        return cls(FIRST + timedelta(microseconds=int(found[1])), int(found[2])) if found else None

    def __str__(self) -> str:
        return f"{(self.at - FIRST) // timedelta(microseconds=1)}-{self.id}"


# The rows that fit the most telling of the conditions are gone through along its index, the newest first, and
# no more than so many: of the rest of what is wanted there may be none in ten million. The last of them comes
# along in any case, to go on from. The telling column is compared as part of the place: by itself it would
# leave the planner free to take another index, and hope.
_ALONG = ("tenant_id", "actor", "action")
_FIND = {
    column: text(f"""
        SELECT number = :looked AS is_last, fits, id, at, settled_at, tenant_id, actor, action, flow, outcome,
               stripe_object, reason, request_id, ip, user_agent
        FROM (
            SELECT id, at, settled_at, tenant_id, actor, action, flow, outcome, stripe_object, reason,
                   request_id, host(ip) AS ip, user_agent,
                   row_number() OVER (ORDER BY {first}at DESC, id DESC) AS number,
                   actor = coalesce(:actor, actor) AND action = coalesce(:action, action)
                   AND (CAST(:tenant_id AS text) IS NULL OR tenant_id IS NOT DISTINCT FROM :tenant_id)
                   AND outcome = coalesce(:outcome, outcome) AS fits
            FROM audit_log
            WHERE ({named}at, id) >= ({given}CAST(:since AS timestamptz), 0)
              AND ({named}at, id) < ({given}CAST(:at AS timestamptz), CAST(:id AS bigint))
            ORDER BY {first}at DESC, id DESC LIMIT :looked
        ) AS looked_through
        WHERE fits OR number = :looked
        ORDER BY {first}at DESC, id DESC LIMIT :most
    """)  # noqa: S608  # ours
    for column, first, named, given in (
        (None, "", "", ""),
        *((name, f"{name} DESC, ", f"{name}, ", f":{name}, ") for name in _ALONG),
    )
}
_ACTIONS = text("""
    WITH RECURSIVE known (action) AS (
        (SELECT action FROM audit_log ORDER BY action LIMIT 1)
        UNION ALL
        SELECT (SELECT a.action FROM audit_log a WHERE a.action > known.action ORDER BY a.action LIMIT 1)
        FROM known WHERE known.action IS NOT NULL
    )
    SELECT action FROM known WHERE action IS NOT NULL LIMIT 200
""")


def find(
    connection: Connection, wanted: Wanted, *, after: Place | None = None, most: int
) -> tuple[Sequence[Row], Place | None]:
    """What fits, the newest first, and where to go on from; None at the end.

    There may be fewer than are asked for, or none, and more to be found all the same: no answer looks through
    more than `LOOKED_THROUGH` rows.
    """
    ends = Place(wanted.until, 0) if wanted.until else None
    before = min((place for place in (after, ends) if place), default=None)
    values = {
        **asdict(wanted),
        "since": wanted.since or "-infinity",
        "at": before.at if before else "infinity",
        "id": before.id if before else 0,
        "looked": LOOKED_THROUGH,
        "most": most + 1,
    }
    telling = next((column for column in _ALONG if values[column] is not None), None)
    along_indexes(connection)
    found = connection.execute(_FIND[telling], values).all()
    rows = [Row(*row[2:]) for row in found if row.fits][:most]
    if len(found) > most:
        return rows, Place(rows[-1].at, rows[-1].id)
    return rows, Place(found[-1].at, found[-1].id) if found and found[-1].is_last else None


_ABOUT = text("""
    SELECT id, at, settled_at, tenant_id, actor, action, flow, outcome, stripe_object, reason, request_id,
           host(ip), user_agent
    FROM audit_log WHERE stripe_object = :object AND NOT started ORDER BY id DESC LIMIT :most
""")


def about(connection: Connection, stripe_object: str, *, most: int) -> list[Row]:
    """What operators did to one of Stripe's objects, the latest first."""
    return [Row(*row) for row in connection.execute(_ABOUT, {"object": stripe_object, "most": most})]


def actions(connection: Connection) -> Sequence[str]:
    """Everything that was ever done, by name: one step along an index for each."""
    along_indexes(connection)
    return connection.scalars(_ACTIONS).all()
