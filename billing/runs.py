"""How far reconciling has come: the tables `reconcile_runs` and `events_listed`.

A run belongs to a door: the worker's last an hour each and follow one another, a command's lasts until every
linked customer has been compared. There is one open run per door. A command that is killed, or had enough for
one time, leaves its run open, with the place it had come to, and the next one goes on there.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

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

from billing.db import metadata

Door = Literal["worker", "command"]

GOES_ON = timedelta(
    days=8
)  # how long after somebody was told of it a run may be taken up, so once a week is enough
KEPT = timedelta(days=35)

reconcile_runs = Table(
    "reconcile_runs",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("door", Text, nullable=False),
    Column("began_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("ended_at", DateTime(timezone=True)),
    Column("place", Text, nullable=False, server_default=""),  # a command's: customers up to this are compared
    Column("compared", BigInteger, nullable=False, server_default="0"),
    Column("fetched", BigInteger, nullable=False, server_default="0"),  # events that had not come
    # What was found in it before has been reported.
    Column("told_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    CheckConstraint("door IN ('worker', 'command')", name="door_known"),
    Index("uq_reconcile_runs_open", "door", unique=True, postgresql_where=text("ended_at IS NULL")),
)

events_listed = Table(
    "events_listed",
    metadata,
    Column("one", Boolean, primary_key=True, server_default=text("true")),
    Column("until", DateTime(timezone=True), nullable=False),  # Stripe's time: all events before it are here
    CheckConstraint("one", name="one_row"),
)


@dataclass(frozen=True, slots=True)
class Run:
    """A run, ended or under way."""

    id: int
    door: str
    began_at: datetime
    ended_at: datetime | None
    place: str
    compared: int
    fetched: int
    told_at: datetime


_COLUMNS = "id, door, began_at, ended_at, place, compared, fetched, told_at"
_END_OLD = text("""
    UPDATE reconcile_runs SET ended_at = clock_timestamp()
    WHERE door = :door AND ended_at IS NULL AND told_at <= clock_timestamp() - CAST(:goes_on AS interval)
""")
_OPEN = text("INSERT INTO reconcile_runs (door) VALUES (:door) ON CONFLICT DO NOTHING")
_OPENED = text(f"SELECT {_COLUMNS} FROM reconcile_runs WHERE door = :door AND ended_at IS NULL")  # noqa: S608  # ours
_ADD = text("""
    UPDATE reconcile_runs SET compared = compared + :compared, fetched = fetched + :fetched
    WHERE door = :door AND ended_at IS NULL
""")
_GO_ON = text("""
    UPDATE reconcile_runs SET place = :place, compared = compared + :compared WHERE id = :id AND place < :place
""")
_TOLD = text("UPDATE reconcile_runs SET told_at = clock_timestamp() WHERE id = :id")
_END = text("UPDATE reconcile_runs SET ended_at = clock_timestamp() WHERE id = :id AND ended_at IS NULL")
_LAST = text(f"""
    SELECT {_COLUMNS} FROM reconcile_runs WHERE ended_at IS NOT NULL ORDER BY ended_at DESC LIMIT 1
""")  # noqa: S608  # ours
_PRUNE = text("DELETE FROM reconcile_runs WHERE ended_at < clock_timestamp() - CAST(:kept AS interval)")


def begin(connection: Connection, door: Door, *, goes_on: timedelta = GOES_ON) -> Run:
    """The run of this door that is under way; a new one, if none is, or if it was reported too long ago."""
    connection.execute(_END_OLD, {"door": door, "goes_on": goes_on})
    connection.execute(_OPEN, {"door": door})
    return Run(*connection.execute(_OPENED, {"door": door}).one())


def add(connection: Connection, door: Door, *, compared: int = 0, fetched: int = 0) -> None:
    """Count what was done in the run that is under way, if any is."""
    if compared or fetched:
        connection.execute(_ADD, {"door": door, "compared": compared, "fetched": fetched})


def go_on(connection: Connection, run: Run, *, place: str, compared: int) -> None:
    """All customers up to this one are compared. Of two who go through a run at once, the one ahead counts."""
    connection.execute(_GO_ON, {"id": run.id, "place": place, "compared": compared})


def told(connection: Connection, run: Run) -> None:
    """What was found in it until now is reported."""
    connection.execute(_TOLD, {"id": run.id})


def end(connection: Connection, run: Run) -> None:
    """There is nobody left to compare."""
    connection.execute(_END, {"id": run.id})


def current(connection: Connection, door: Door) -> Run | None:
    """The one of this door that is under way."""
    row = connection.execute(_OPENED, {"door": door}).one_or_none()
    return Run(*row) if row else None


def last(connection: Connection) -> Run | None:
    """The one that ended last, whoever's it was."""
    row = connection.execute(_LAST).one_or_none()
    return Run(*row) if row else None


def prune(connection: Connection) -> None:
    """Forget those that ended long ago."""
    connection.execute(_PRUNE, {"kept": KEPT})


_NOW = text("SELECT clock_timestamp()")


def now(connection: Connection) -> datetime:
    """The database's clock, which all runs go by."""
    moment: datetime = connection.execute(_NOW).scalar_one()
    return moment


# ---- Stripe's list of events

_LISTED_UNTIL = text("SELECT extract(epoch FROM until)::bigint FROM events_listed")
_LISTED = text("""
    INSERT INTO events_listed AS e (until) VALUES (to_timestamp(:until))
    ON CONFLICT (one) DO UPDATE SET until = greatest(e.until, excluded.until)
""")


def listed_until(connection: Connection) -> int | None:
    """Up to when every event Stripe lists is here, in Stripe's time. None if nobody has ever looked."""
    moment: int | None = connection.scalar(_LISTED_UNTIL)
    return moment


def listed(connection: Connection, until: int) -> None:
    """Everything Stripe lists up to then is here. It never moves back."""
    connection.execute(_LISTED, {"until": until})
