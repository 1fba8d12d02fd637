"""Which worker processes are alive: the table `workers`.

A worker writes its row from its main loop, so that a fresh `seen_at` means that the loop turns. A clean stop
removes the row; that of one that was killed is pruned after a day.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import psycopg
from sqlalchemy import Column, Connection, DateTime, Table, Text, Uuid, func, text

from billing.db import Query, metadata

BEAT_SECONDS = 10.0
ALIVE = timedelta(seconds=30)  # since it was last seen: two beats may be late
KEPT = timedelta(days=1)
RELEASES = ("HEROKU_RELEASE_VERSION", "HEROKU_BUILD_COMMIT", "HEROKU_SLUG_COMMIT")

workers = Table(
    "workers",
    metadata,
    Column("id", Uuid, primary_key=True, server_default=func.gen_random_uuid()),
    Column("name", Text, nullable=False),  # not unique: containers may share host name and process number
    Column("release", Text),
    Column("began_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("seen_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
)


def _release(environ: Mapping[str, str] = os.environ) -> str | None:
    return next((environ[name] for name in RELEASES if environ.get(name)), None)


@dataclass(frozen=True, slots=True)
class Process:
    """One that works: where it runs, and which release it is of, where the platform says so."""

    id: UUID = field(default_factory=uuid4)
    name: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}")
    release: str | None = field(default_factory=_release)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A worker that is alive."""

    name: str
    release: str | None
    began_at: datetime
    seen: float  # seconds ago


_BEAT = """
    INSERT INTO workers (id, name, release) VALUES (%(id)s, %(name)s, %(release)s)
    ON CONFLICT (id) DO UPDATE SET seen_at = clock_timestamp()
"""
_LEAVE = "DELETE FROM workers WHERE id = %(id)s"
_PRUNE = text("DELETE FROM workers WHERE seen_at < clock_timestamp() - :kept")
_ALIVE = text("""
    SELECT name, release, began_at, extract(epoch FROM clock_timestamp() - seen_at)::float8 AS seen
    FROM workers WHERE seen_at > clock_timestamp() - :alive ORDER BY name, began_at
""")


def beat(process: Process) -> Query[None]:
    """The process's loop turns."""
    values = {"id": process.id, "name": process.name, "release": process.release}
    return Query("workers.beat", _BEAT, values, _nothing)


def leave(process: Process) -> Query[None]:
    """The process ends as it should."""
    return Query("workers.leave", _LEAVE, {"id": process.id}, _nothing)


def prune(connection: Connection) -> None:
    """Forget those that were not seen for long."""
    connection.execute(_PRUNE, {"kept": KEPT})


def alive(connection: Connection) -> list[Heartbeat]:
    """Those seen a moment ago."""
    return [Heartbeat(*row) for row in connection.execute(_ALIVE, {"alive": ALIVE})]


def _nothing(_: psycopg.Cursor[object]) -> None:
    return None
