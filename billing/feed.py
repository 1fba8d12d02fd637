"""The order in which documents changed, for those who copy them: the tables `feed` and `feed_consumers`.

Each tenant has one position in `tenant_states`, and moves to the end when its document changes. The one row of
`feed` is the end. Whoever needs positions moves it, as the last lock of its transaction and once only, so they
come into sight in their order: who has seen one has seen all before it. A sequence would not do that.

Positions mean something within one epoch only. It is made of what the database knows about itself, so that of a
copy which went another way, restored or promoted, is another one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
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
    Table,
    Text,
    Uuid,
    func,
    text,
)

from billing.db import Query, metadata

CURSOR = re.compile(r"([0-9A-Za-z]{1,64})-([0-9]{16})")
COUNTED = 10_000  # as far as it is counted how much a consumer has before it

feed = Table(
    "feed",
    metadata,
    Column("one", Boolean, primary_key=True, server_default=text("true")),
    Column("position", BigInteger, nullable=False, server_default="0"),  # the latest that was given
    Column("seed", Uuid, nullable=False, server_default=func.gen_random_uuid()),  # the epoch's random part
    CheckConstraint("one", name="one_row"),
)

feed_consumers = Table(
    "feed_consumers",
    metadata,
    Column("name", Text, primary_key=True),  # its token's
    Column("epoch", Text, nullable=False),
    Column("position", BigInteger, nullable=False),  # it has all up to here
    Column("asked_at", DateTime(timezone=True), nullable=False),
)


# ---- the end

# For the statement that writes documents: `moved` are those that need a position, each with its place from the
# end. All that may come after it is the commit; who is silent instead would hold up everybody.
ADVANCED = """
    INSERT INTO feed AS f (position) SELECT count(*) FROM moved HAVING count(*) > 0
    ON CONFLICT (one) DO UPDATE SET position = f.position + excluded.position
    RETURNING f.position, set_config('idle_in_transaction_session_timeout', '2000', true)
"""

# The timeline changes when a replica is promoted and when a backup is rolled forward; the identifier with the
# cluster; the table with a dump that is restored, also beside the original.
_EPOCH = """
    substr(encode(sha256(convert_to(concat_ws(
        ' ', f.seed, f.tableoid, (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()),
        (SELECT c.system_identifier FROM pg_control_system() c),
        substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
    ), 'UTF8')), 'hex'), 1, 10)
"""
_END = f"""
    SELECT {_EPOCH} AS epoch, coalesce(f.position, 0) AS position FROM (SELECT) AS one LEFT JOIN feed f ON true
"""  # noqa: S608  # ours


# ---- reading


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a consumer has come. One of another epoch means nothing here, and leads to the beginning."""

    epoch: str = ""
    position: int = 0

    @classmethod
    def read(cls, written: str) -> Cursor | None:
        """What a consumer kept; None if that was never one of ours."""
        found = CURSOR.fullmatch(written)
        return cls(found[1], int(found[2])) if found else None

    def __str__(self) -> str:
        return f"{self.epoch}-{self.position:016d}"


@dataclass(frozen=True, slots=True)
class Entry:
    """A tenant that changed, and what it has now. Nothing: it was forgotten."""

    id: Cursor
    tenant_id: str
    changed_at: str
    body: str
    lasts_until: str | None  # time may change it then


@dataclass(frozen=True, slots=True)
class Page:
    """What comes after a cursor: `since`, which is the consumer's or the beginning."""

    since: Cursor
    entries: Sequence[Entry]
    is_news: bool  # that the consumer stands there has not been noted


# One statement, so one snapshot. At the end the documents are not looked at.
_READ = f"""
    SELECT head.epoch, head.since,
           coalesce(head.asked_at <= clock_timestamp() - interval '1 minute', true)
           OR head.has_moved AND (
               entry.position IS NULL OR head.asked_at <= clock_timestamp() - interval '5 seconds'
           ) AS is_news,
           entry.position, entry.tenant_id, entry.changed_at, entry.body, entry.lasts_until
    FROM (
        SELECT known.epoch, known.position, known.since, c.asked_at,
               (c.epoch, c.position) IS DISTINCT FROM (known.epoch, known.since) AS has_moved
        FROM (
            SELECT tail.epoch, tail.position,
                   CASE WHEN tail.epoch = %(epoch)s AND tail.position >= %(position)s
                        THEN %(position)s::bigint ELSE 0 END AS since
            FROM ({_END} OFFSET 0) AS tail
        ) AS known
        LEFT JOIN feed_consumers c ON c.name = current_setting('billing.service', true)
        OFFSET 0
    ) AS head
    LEFT JOIN LATERAL (
        SELECT s.position, s.tenant_id, s.body,
               to_char(s.changed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS changed_at,
               to_char(s.next_look AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS lasts_until
        FROM tenant_states s
        WHERE head.since < head.position AND s.position > head.since
          AND (s.as_of IS NOT NULL AND s.edition > 0 OR s.body = '')
        ORDER BY s.position LIMIT %(most)s
    ) AS entry ON true
    ORDER BY entry.position
"""  # noqa: S608  # ours
# Whoever finds the row in somebody's hands leaves it: it is being noted.
_NOTE = """
    WITH moved AS (
        UPDATE feed_consumers
        SET epoch = %(epoch)s, position = %(position)s, asked_at = clock_timestamp()
        WHERE name = (
            SELECT name FROM feed_consumers
            WHERE name = %(name)s
              AND (asked_at <= clock_timestamp() - interval '5 seconds'
                   OR %(at_end)s AND (epoch, position) IS DISTINCT FROM (%(epoch)s, %(position)s))
            FOR NO KEY UPDATE SKIP LOCKED
        )
    )
    INSERT INTO feed_consumers (name, epoch, position, asked_at)
    SELECT %(name)s, %(epoch)s, %(position)s, clock_timestamp()
    WHERE NOT EXISTS (SELECT FROM feed_consumers WHERE name = %(name)s)
    ON CONFLICT DO NOTHING
"""


def read(cursor: Cursor, most: int) -> Query[Page]:
    """What changed after the cursor, in its order."""
    values = {"epoch": cursor.epoch, "position": cursor.position, "most": most}
    return Query("feed.read", _READ, values, _page)


def note(consumer: str, page: Page) -> Query[None]:
    """Remember how far the consumer has come: once in five seconds, over all processes, but the end at once.

    Who reads in bursts would seem to stand where the last one began.
    """
    since, at_end = page.since, not page.entries
    values = {"name": consumer, "epoch": since.epoch, "position": since.position, "at_end": at_end}
    return Query("feed.note", _NOTE, values, lambda _: None)


def _page(found: psycopg.Cursor[Any]) -> Page:
    rows = found.fetchall()
    epoch, since, is_news, first, *_ = rows[0]
    entries = [] if first is None else [Entry(Cursor(epoch, row[3]), *row[4:]) for row in rows]
    return Page(Cursor(epoch, since), entries, is_news)


# ---- for operators


@dataclass(frozen=True, slots=True)
class Consumer:
    """Who reads the feed, by its token's name, and how many changed tenants it has before it."""

    name: str
    position: int
    behind: int  # counted up to COUNTED, and one more where there are more
    asked_at: datetime


@dataclass(frozen=True, slots=True)
class Overview:
    """The end of the feed, and who is on the way there."""

    head: Cursor
    consumers: Sequence[Consumer]


_CONSUMERS = text("""
    SELECT c.name, at.position, before.n, c.asked_at
    FROM feed_consumers c
    CROSS JOIN LATERAL (SELECT CASE WHEN c.epoch = :epoch THEN c.position ELSE 0 END AS position) AS at
    CROSS JOIN LATERAL (
        SELECT count(*) AS n FROM (
            SELECT FROM tenant_states s WHERE s.position > at.position LIMIT :counted
        ) AS changed
    ) AS before
    WHERE EXISTS (SELECT FROM service_tokens t WHERE t.name = c.name AND t.ended_at IS NULL)
    ORDER BY c.name
""")
_REWIND = text("""
    INSERT INTO feed AS f (position) VALUES (0) ON CONFLICT (one) DO UPDATE SET seed = gen_random_uuid()
""")


def overview(connection: Connection) -> Overview:
    """Where the feed ends, and how far its consumers have come, but those whose tokens have all been ended."""
    head = Cursor(*connection.execute(text(_END)).one())
    found = connection.execute(_CONSUMERS, {"epoch": head.epoch, "counted": COUNTED + 1})
    return Overview(head, [Consumer(*row) for row in found])


def rewind(connection: Connection) -> Cursor:
    """Begin a new epoch: every consumer starts over, and gets each tenant once. Where the feed ends then."""
    connection.execute(_REWIND)
    return Cursor(*connection.execute(text(_END)).one())
