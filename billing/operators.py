"""Who may use the console, and who tries to: the tables `operator_sessions` and `sign_ins`.

A session is a random token in the operator's browser, and its hash here: it ends when it is not used for two
hours, after twelve at the latest, and at once when the operator's entry in BILLING_CONSOLE_USERS changes.
Passwords are tried at most so fast, over all processes: each attempt is counted before it is judged, by name
and address and by address alone, and what is counted too often has to wait. A name that is tried is kept as
a hash only, for people type passwords there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg
from sqlalchemy import (
    CheckConstraint,
    Column,
    Connection,
    DateTime,
    Integer,
    LargeBinary,
    Table,
    Text,
    func,
    text,
)

from billing.db import Query, metadata

LASTS = timedelta(hours=12)
UNUSED = timedelta(hours=2)
FREE_BY_NAME = 5  # attempts before the first pause; each pause is twice as long as the one before
FREE_BY_ADDRESS = 30

operator_sessions = Table(
    "operator_sessions",
    metadata,
    Column("hash", LargeBinary, primary_key=True),
    Column("name", Text, nullable=False),
    Column("entry", LargeBinary, nullable=False),  # the fingerprint of the setting that let it in
    Column("began_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("used_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    CheckConstraint("name <> ''", name="name_given"),
)

sign_ins = Table(
    "sign_ins",
    metadata,
    Column("tried", LargeBinary, primary_key=True),  # the hash of a name and an address, or of an address
    Column("attempts", Integer, nullable=False),
    Column("latest_at", DateTime(timezone=True), nullable=False),
)


@dataclass(frozen=True, slots=True)
class Operator:
    """Somebody who looks after the service."""

    name: str
    may_act: bool  # or only look


@dataclass(frozen=True, slots=True)
class Session:
    """Whose it is, by the entry of the settings that let them in."""

    name: str
    entry: bytes


# ---- sessions

_OPEN = text("INSERT INTO operator_sessions (hash, name, entry) VALUES (:hash, :name, :entry)")
_PRUNE = text("""
    DELETE FROM operator_sessions
    WHERE began_at <= clock_timestamp() - CAST(:lasts AS interval)
       OR used_at <= clock_timestamp() - CAST(:unused AS interval)
""")
_FIND = """
    SELECT name, entry FROM operator_sessions
    WHERE hash = %(hash)s AND began_at > clock_timestamp() - %(lasts)s
      AND used_at > clock_timestamp() - %(unused)s
"""
_USE = """
    UPDATE operator_sessions SET used_at = clock_timestamp()
    WHERE hash = %(hash)s AND used_at BETWEEN clock_timestamp() - %(unused)s
                                          AND clock_timestamp() - interval '1 minute'
"""
_CLOSE = text("DELETE FROM operator_sessions WHERE hash = :hash")


def open_session(connection: Connection, token: str, name: str, entry: bytes) -> None:
    """Let the holder of the token in; those that have ended are cleared away."""
    connection.execute(_PRUNE, {"lasts": LASTS, "unused": UNUSED})
    connection.execute(_OPEN, {"hash": _hash(token), "name": name, "entry": entry})


def find(token: str) -> Query[Session | None]:
    """The session of this token, if it has not ended."""

    def session(found: psycopg.Cursor[Any]) -> Session | None:
        row = found.fetchone()
        return Session(row[0], bytes(row[1])) if row else None

    return Query("operators.find", _FIND, {"hash": _hash(token), "lasts": LASTS, "unused": UNUSED}, session)


def use(token: str) -> Query[None]:
    """Write down that it is in use, once a minute."""
    return Query("operators.use", _USE, {"hash": _hash(token), "unused": UNUSED}, lambda _: None)


def close_session(connection: Connection, token: str) -> None:
    """Nobody gets in by it any more."""
    connection.execute(_CLOSE, {"hash": _hash(token)})


# ---- attempts to sign in

# The rows of one attempt are locked in their order: two attempts cannot wait for each other.
_TRY = text("""
    WITH given AS (
        SELECT tried, free FROM unnest(CAST(:tried AS bytea[]), CAST(:free AS int[])) AS g (tried, free)
        ORDER BY tried
    ), counted AS (
        INSERT INTO sign_ins AS s (tried, attempts, latest_at)
        SELECT tried, 1, clock_timestamp() FROM given
        ON CONFLICT (tried) DO UPDATE SET
            attempts = CASE WHEN s.latest_at < clock_timestamp() - interval '1 day' THEN 1
                            ELSE s.attempts + 1 END,
            latest_at = clock_timestamp()
        WHERE s.latest_at + interval '1 second' * CASE
            WHEN s.attempts < (SELECT free FROM given WHERE given.tried = s.tried) THEN 0
            ELSE power(2, least(s.attempts - (SELECT free FROM given WHERE given.tried = s.tried), 9))
        END <= clock_timestamp()
        RETURNING tried
    )
    SELECT count(*) FROM counted
""")
_FORGIVE = text("DELETE FROM sign_ins WHERE tried = ANY(:tried)")
_FORGET = text("DELETE FROM sign_ins WHERE latest_at < clock_timestamp() - interval '1 day'")


def may_try(connection: Connection, name: str, address: str) -> bool:
    """Count an attempt, unless one of them has to wait: up to eight and a half minutes after the latest."""
    connection.execute(_FORGET)
    tried = _tried(name, address)
    counted: int = connection.scalar(_TRY, {"tried": tried, "free": [FREE_BY_NAME, FREE_BY_ADDRESS]}) or 0
    return counted == len(tried)


def forgive(connection: Connection, name: str, address: str) -> None:
    """The password was right: what was counted under this name from there is forgotten."""
    connection.execute(_FORGIVE, {"tried": _tried(name, address)[:1]})


def _tried(name: str, address: str) -> Sequence[bytes]:
    return [_hash(f"{name} {address}"), _hash(address)]


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
