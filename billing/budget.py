"""How often Stripe is read, over all processes: the table `stripe_reads`.

Each endpoint has a lane for work in the background and one for people who wait, so that a long backlog never
stands in front of a person. A read reserves the next free moment of its lane and sleeps until then;
reservations are rows of the database, so they hold for every process on every machine. Stripe itself can
close the lanes for a while: too many requests, or a key it does not take.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from threading import Event
from typing import Literal

import psycopg
from sqlalchemy import Column, Connection, DateTime, Table, Text, text

from billing import deadline
from billing.db import SYSTEM, Database, Query, metadata
from billing.errors import StripeFailed

Lane = Literal["background", "waiting"]

KEPT_FOR_PEOPLE = 5  # reads a second
PATIENCE = timedelta(seconds=5)  # who would have to wait for longer comes back later

stripe_reads = Table(
    "stripe_reads",
    metadata,
    Column("endpoint", Text, primary_key=True),
    Column("lane", Text, primary_key=True),
    Column("reserved_until", DateTime(timezone=True), nullable=False),
)

ALL = "all"  # the endpoint under which a pause stands that holds for every one

# No row comes back where the next free moment is too far away: nothing is reserved then.
_RESERVE = """
    WITH pause AS (
        SELECT coalesce(max(reserved_until), '-infinity') AS until FROM stripe_reads
        WHERE lane = 'pause' AND endpoint IN (%(endpoint)s, 'all')
    )
    INSERT INTO stripe_reads AS r (endpoint, lane, reserved_until)
    SELECT %(endpoint)s, %(lane)s, greatest(clock_timestamp(), until) + %(every)s
    FROM pause WHERE until < clock_timestamp() + %(patience)s
    ON CONFLICT (endpoint, lane) DO UPDATE
    SET reserved_until = greatest(r.reserved_until, excluded.reserved_until - %(every)s) + %(every)s
    WHERE r.reserved_until < clock_timestamp() + %(patience)s
    RETURNING extract(epoch FROM reserved_until - %(every)s - clock_timestamp())::float8
"""
# Why is kept under its own word: it is for people, and is not looked at by who reserves.
_PAUSE = """
    INSERT INTO stripe_reads AS r (endpoint, lane, reserved_until)
    SELECT %(endpoint)s, lane, clock_timestamp() + %(pause)s
    FROM unnest(array_remove(ARRAY['pause', %(because)s], NULL)) AS lane ORDER BY lane
    ON CONFLICT (endpoint, lane) DO UPDATE
    SET reserved_until = greatest(r.reserved_until, excluded.reserved_until)
"""


class Budget:
    """What this process may ask, of the one rate that all share. Once `stopping` is set, nothing more."""

    def __init__(self, db: Database, reads_per_second: int, stopping: Event | None = None) -> None:
        kept = min(KEPT_FOR_PEOPLE, reads_per_second // 2)
        rates = {"background": reads_per_second - kept, "waiting": kept}
        self.background_per_second = reads_per_second - kept
        # Of questions nobody is in a hurry for: who asks for an event waits for less than a second behind them.
        self.unhurried_per_second = max(1, self.background_per_second * 4 // 5)
        self._every = {lane: timedelta(seconds=1 / rate) for lane, rate in rates.items() if rate}
        self._db = db
        self._stopping = stopping or Event()

    def spend(self, endpoint: str, lane: Lane) -> None:
        """Return when one read of this endpoint may be sent; `StripeFailed` if that is not in time."""
        every = self._every.get(lane, self._every["background"])
        patience = min(PATIENCE, timedelta(seconds=max(0.0, min(deadline.left(), 60.0))))
        values = {"endpoint": endpoint, "lane": lane, "every": every, "patience": patience}
        seconds = self._db.run(SYSTEM, Query("budget.reserve", _RESERVE, values, _seconds))
        if seconds is None:
            raise StripeFailed("paused", retry_after=5)
        if self._stopping.wait(max(0.0, seconds)):
            raise StripeFailed("stopping")

    def pause(self, endpoint: str, seconds: float, *, because: str | None = None) -> None:
        """Stripe said no: nobody reads this endpoint, or any when it is `ALL`, for that long."""
        values = {"endpoint": endpoint, "pause": timedelta(seconds=seconds), "because": because}
        self._db.run(SYSTEM, Query("budget.pause", _PAUSE, values, _nothing))


_PAUSED = text("SELECT reserved_until FROM stripe_reads WHERE endpoint = :endpoint AND lane = :because")


def paused_until(connection: Connection, because: str) -> datetime | None:
    """Until when the latest pause of everything for this reason lasts or lasted."""
    until: datetime | None = connection.scalar(_PAUSED, {"endpoint": ALL, "because": because})
    return until


def _seconds(cursor: psycopg.Cursor[tuple[float]]) -> float | None:
    row = cursor.fetchone()
    return row[0] if row else None


def _nothing(_: psycopg.Cursor[object]) -> None:
    return None
