"""What is done now and then, by one worker at a time: the table `chores`."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Column, Connection, DateTime, Table, Text, text

from billing.db import metadata

chores = Table(
    "chores",
    metadata,
    Column("name", Text, primary_key=True),
    Column("due_at", DateTime(timezone=True), nullable=False),
)

_TAKE = text("""
    INSERT INTO chores (name, due_at) VALUES (:name, clock_timestamp() + :every)
    ON CONFLICT (name) DO UPDATE SET due_at = excluded.due_at WHERE chores.due_at <= clock_timestamp()
    RETURNING name
""")


def take(connection: Connection, name: str, every: timedelta) -> bool:
    """Whether the chore is due and ours. Taking it sets its next time: one that fails is done then."""
    return connection.scalar(_TAKE, {"name": name, "every": every}) is not None


_DUE = text("SELECT due_at FROM chores WHERE name = :name")
_RENEW = text("""
    UPDATE chores SET due_at = clock_timestamp() + :lease WHERE name = :name AND due_at = :due RETURNING due_at
""")
_DONE = text("UPDATE chores SET due_at = clock_timestamp() + :every WHERE name = :name AND due_at = :due")
_HASTEN = text("""
    INSERT INTO chores (name, due_at) VALUES (:name, clock_timestamp() + :delay)
    ON CONFLICT (name) DO UPDATE SET due_at = least(chores.due_at, excluded.due_at)
""")


def due(connection: Connection, name: str) -> datetime | None:
    """When its next turn is."""
    moment: datetime | None = connection.scalar(_DUE, {"name": name})
    return moment


def renew(connection: Connection, name: str, lease: timedelta, *, due: datetime | None) -> datetime | None:
    """Put its next turn off by the lease, unless it was changed since it was `due`. When it is due then."""
    moment: datetime | None = connection.scalar(_RENEW, {"name": name, "lease": lease, "due": due})
    return moment or due


def done(connection: Connection, name: str, every: timedelta, *, due: datetime | None) -> None:
    """It need not be done again for so long, unless its turn was changed since it was `due`."""
    connection.execute(_DONE, {"name": name, "every": every, "due": due})


def hasten(connection: Connection, name: str, delay: timedelta = timedelta(0)) -> None:
    """Have it done sooner than its turn would be."""
    connection.execute(_HASTEN, {"name": name, "delay": delay})
