"""Which services may ask us, and for what: the table `service_tokens`.

A token is `bsk_` and 32 random bytes in base62. It is shown once, to whoever makes it; kept is its SHA-256, by
which it is looked up. What does not hold is not there: unknown, ended and expired are one answer, after the
same lookup. Two of a name may be alive, so that one follows the other without a gap; the database keeps it at
that, by a slot for each. None is cached, so what is revoked has ended with the next request.
"""

from __future__ import annotations

import hashlib
import secrets
import string
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Connection,
    DateTime,
    Identity,
    Index,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY

from billing.db import Query, metadata
from billing.errors import TooManyTokens

PREFIX = "bsk_"
READ, WRITE = "billing:read", "billing:write"
SCOPES = (READ, WRITE)  # neither has the other in it: a token names all it may
NAME = r"[a-z0-9][a-z0-9._-]{0,62}"

BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
SECRET_BYTES, SECRET_DIGITS = 32, 43
SLOTS = (1, 2)

service_tokens = Table(
    "service_tokens",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("name", Text, nullable=False),
    Column("slot", SmallInteger, nullable=False),
    Column("hash", LargeBinary, nullable=False, unique=True),
    Column("scopes", ARRAY(Text), nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("expires_at", DateTime(timezone=True)),
    Column("ended_at", DateTime(timezone=True)),  # revoked, or found expired when its slot was wanted
    Column("last_used_at", DateTime(timezone=True)),  # to the minute
    CheckConstraint(f"name ~ '^{NAME}$'", name="name_plain"),
    CheckConstraint("slot IN (1, 2)", name="two_at_most"),
    CheckConstraint(
        "scopes <@ ARRAY['billing:read', 'billing:write'] AND cardinality(scopes) > 0", name="scopes_known"
    ),
    Index(
        "uq_service_tokens_name_slot", "name", "slot", unique=True, postgresql_where=text("ended_at IS NULL")
    ),
)


# ---- looking one up


@dataclass(frozen=True, slots=True)
class Alive:
    """A token that holds."""

    id: int
    name: str
    scopes: frozenset[str]
    is_unseen: bool  # its use was not written down for a minute


# What follows in the transaction speaks for a service only if this token lets it: row-level security shows a
# stranger no tenant's row, so that neither an answer nor its time tells whether there is one.
_FIND = """
    WITH alive AS MATERIALIZED (
        SELECT id, name, scopes, last_used_at FROM service_tokens
        WHERE hash = %(hash)s AND ended_at IS NULL
          AND (expires_at IS NULL OR expires_at > clock_timestamp())
    )
    SELECT id, name, scopes, coalesce(last_used_at <= clock_timestamp() - interval '1 minute', true),
           CASE WHEN %(needs)s = ANY (scopes) THEN
               set_config('billing.scope', 'service', true) || set_config('billing.service', name, true) END
    FROM alive
"""
_USE = """
    UPDATE service_tokens SET last_used_at = clock_timestamp()
    WHERE id = (
        SELECT id FROM service_tokens
        WHERE id = %(id)s AND coalesce(last_used_at <= clock_timestamp() - interval '1 minute', true)
        FOR NO KEY UPDATE SKIP LOCKED
    )
"""


def find(token: str, needs: str = "") -> Query[Alive | None]:
    """The token, if it holds. Run as `db.STRANGER`; the rest of the transaction is a service's if it has what
    `needs` says.
    """
    return Query("tokens.find", _FIND, {"hash": _hash(token), "needs": needs}, _alive)


def use(id: int) -> Query[None]:
    """Write down that it is in use, once a minute over all processes; nobody waits for anybody's doing so."""
    return Query("tokens.use", _USE, {"id": id}, _nothing)


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _alive(found: psycopg.Cursor[Any]) -> Alive | None:
    row = found.fetchone()
    return Alive(row[0], row[1], frozenset(row[2]), row[3]) if row else None


def _nothing(_: psycopg.Cursor[object]) -> None:
    return None


# ---- for operators


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token, which is everything but the token."""

    id: int
    name: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None
    ended_at: datetime | None
    last_used_at: datetime | None
    is_alive: bool


_COLUMNS = """
    id, name, scopes, created_at, expires_at, ended_at, last_used_at,
    ended_at IS NULL AND (expires_at IS NULL OR expires_at > clock_timestamp())
"""
_EXPIRED = text("""
    UPDATE service_tokens SET ended_at = expires_at
    WHERE name = :name AND ended_at IS NULL AND expires_at <= clock_timestamp()
""")
_CREATE = text(f"""
    INSERT INTO service_tokens (name, slot, hash, scopes, expires_at)
    VALUES (:name, :slot, :hash, :scopes, :expires_at)
    ON CONFLICT (name, slot) WHERE ended_at IS NULL DO NOTHING
    RETURNING {_COLUMNS}
""")  # noqa: S608  # the columns are ours
_ALL = text(f"SELECT {_COLUMNS} FROM service_tokens ORDER BY name, ended_at IS NOT NULL, id")  # noqa: S608
_STANDING = text(f"SELECT {_COLUMNS} FROM service_tokens WHERE ended_at IS NULL ORDER BY name, id")  # noqa: S608
_ALIVE = text(f"""
    SELECT {_COLUMNS} FROM service_tokens
    WHERE name = :name AND ended_at IS NULL AND (expires_at IS NULL OR expires_at > clock_timestamp())
    ORDER BY id
""")  # noqa: S608
_REVOKE = text("""
    UPDATE service_tokens SET ended_at = clock_timestamp()
    WHERE name = :name AND id = ANY(:ids) AND ended_at IS NULL
    RETURNING id
""")


def create(
    connection: Connection, name: str, scopes: tuple[str, ...], expires_at: datetime | None
) -> tuple[str, Token]:
    """A new token, and what is kept of it. `TooManyTokens` if two of the name are alive."""
    token = PREFIX + _base62(secrets.token_bytes(SECRET_BYTES))
    wanted = {"name": name, "hash": _hash(token), "scopes": sorted(set(scopes)), "expires_at": expires_at}
    connection.execute(_EXPIRED, {"name": name})
    for slot in SLOTS:
        for row in connection.execute(_CREATE, {**wanted, "slot": slot}):
            return token, _token(row)
    raise TooManyTokens


def every(connection: Connection) -> list[Token]:
    """All there ever were, by name, those that have ended last."""
    return [_token(row) for row in connection.execute(_ALL)]


def standing(connection: Connection) -> list[Token]:
    """Those that nobody has ended, by name: also what has run out, until its slot is wanted."""
    return [_token(row) for row in connection.execute(_STANDING)]


def alive(connection: Connection, name: str) -> list[Token]:
    """Those of this name that hold, the oldest first."""
    return [_token(row) for row in connection.execute(_ALIVE, {"name": name})]


def revoke(connection: Connection, name: str, ids: list[int]) -> list[int]:
    """End these of the name's tokens, for whatever asks after the commit. Those that had not ended before."""
    return list(connection.scalars(_REVOKE, {"name": name, "ids": ids}))


def _token(row: Any) -> Token:
    return Token(row[0], row[1], tuple(row[2]), *row[3:])


def _base62(secret: bytes) -> str:
    number, digits = int.from_bytes(secret), ""
    for _ in range(SECRET_DIGITS):
        number, digit = divmod(number, len(BASE62))
        digits = BASE62[digit] + digits
    return digits
