"""What is done now and then, by one worker at a time: the table `chores`."""

from __future__ import annotations

from datetime import timedelta

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
