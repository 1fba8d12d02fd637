"""Who may use the console, and who tries to: the tables `operator_sessions` and `sign_ins`.

A session is a random token in the operator's browser, and its hash here: it ends when it is not used for two
hours, after twelve at the latest, and at once when the operator's entry in BILLING_CONSOLE_USERS changes.
Passwords are tried at most so fast, over all processes: each attempt is counted before it is judged, by name
and address, by address alone and by name alone, and what is counted too often has to wait. People type
passwords where the name belongs, so what is counted is kept as a hash only, with a key that is not here.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg
from sqlalchemy import (
    CheckConstraint,
    Column,
    Connection,
    DateTime,
    Index,
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
KEPT = 10_000  # counts at most, the newest
FREE = (5, 30, 50)  # attempts before the first pause, by what they are counted by (`Attempt.tried`)
DOUBLINGS = (9, 9, 3)  # each pause is twice as long as the one before, so many times: 512 s, and 8 s

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
    Column("tried", LargeBinary, primary_key=True),  # the keyed hash of what is counted
    Column("attempts", Integer, nullable=False),
    Column("latest_at", DateTime(timezone=True), nullable=False),
    Index("ix_sign_ins_latest_at", "latest_at"),
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


@dataclass(frozen=True, slots=True)
class Attempt:
    """Somebody tries a name from an address; `key` is what its parts are hashed with."""

    name: str
    address: str
    key: bytes

    @property
    def tried(self) -> list[bytes]:
        """What it is counted by: name and network, network, name."""
        network = _network(self.address)
        parts = (f"both {network} {self.name}", f"network {network}", f"name {self.name}")
        return [hmac.digest(self.key, part.encode(), "sha256") for part in parts]


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
        SELECT * FROM unnest(CAST(:tried AS bytea[]), CAST(:free AS int[]), CAST(:doublings AS int[]))
            AS g (tried, free, doublings)
        ORDER BY tried
    ), counted AS (
        INSERT INTO sign_ins AS s (tried, attempts, latest_at)
        SELECT tried, 1, clock_timestamp() FROM given
        ON CONFLICT (tried) DO UPDATE SET
            attempts = CASE WHEN s.latest_at < clock_timestamp() - interval '1 day' THEN 1
                            ELSE s.attempts + 1 END,
            latest_at = clock_timestamp()
        WHERE s.latest_at + interval '1 second' * (
            SELECT CASE WHEN s.attempts < free THEN 0 ELSE power(2, least(s.attempts - free, doublings)) END
            FROM given WHERE given.tried = s.tried
        ) <= clock_timestamp()
        RETURNING tried
    )
    SELECT count(*) FROM counted
""")
_FORGIVE = text("""
    UPDATE sign_ins AS s SET attempts = CASE WHEN s.tried = :network THEN s.attempts - 1 ELSE 0 END
    FROM (SELECT tried FROM sign_ins WHERE tried = ANY(:tried) ORDER BY tried FOR UPDATE) AS held
    WHERE held.tried = s.tried
""")
_FORGET = text("""
    DELETE FROM sign_ins WHERE tried IN (
        SELECT tried FROM sign_ins
        WHERE latest_at < greatest(
            statement_timestamp() - interval '1 day',
            (SELECT latest_at FROM sign_ins ORDER BY latest_at DESC OFFSET :kept LIMIT 1)
        )
        FOR UPDATE SKIP LOCKED
    )
""")


def may_try(connection: Connection, attempt: Attempt) -> bool:
    """Count an attempt, unless something it is counted by has to wait.

    That is up to eight and a half minutes after the latest for an address, and eight seconds for a name by
    itself: whoever tries a name from everywhere must not keep out whose it is.
    """
    given = {"tried": attempt.tried, "free": list(FREE), "doublings": list(DOUBLINGS)}
    counted: int = connection.scalar(_TRY, given) or 0
    connection.execute(_FORGET, {"kept": KEPT - 1})  # last, and waits for nobody
    return counted == len(FREE)


def forgive(connection: Connection, attempt: Attempt) -> None:
    """The password was right: the name's attempts are forgotten, and the address is not charged with this."""
    tried = attempt.tried
    connection.execute(_FORGIVE, {"tried": tried, "network": tried[1]})


def _network(address: str) -> str:
    """Whose address it is: an IPv6 address is one of the many that each house has."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if ip.version == 4:
        return str(ip)
    return str(ip.ipv4_mapped or ipaddress.ip_network((int(ip), 64), strict=False))


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
