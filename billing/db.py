"""PostgreSQL, and the only way into it.

`Database.begin(scope)` opens a transaction whose first statement tells PostgreSQL on whose behalf it speaks;
row-level security, forced on every table with tenant data, shows that scope its rows and nobody else any.
Whoever opens the block commits it by leaving it. Trouble of the database's own (down, locked, too slow, no
connection free) becomes `ServiceUnavailable` here, within seconds: neither a refused nor a silent server
hangs a caller.

Tables are SQLAlchemy Core tables beside their rules, in the subjects; `metadata` names their constraints.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg
from psycopg import errors as pg
from psycopg.abc import PQGen
from sqlalchemy import Connection, Engine, MetaData, create_engine, event
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionFree
from sqlalchemy.pool import NullPool

from billing.errors import ServiceUnavailable

Result = TypeVar("Result")

# A silent server is given up after WAIT for a free connection + CONNECT or ANSWER: under 4 s for a caller.
WAIT_SECONDS = 1.0
CONNECT_SECONDS = 2
ANSWER_SECONDS = 2.5
SERVER_LIMITS = "-c statement_timeout=2000 -c lock_timeout=1500 -c idle_in_transaction_session_timeout=30000"

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_ENTER = "BEGIN; SELECT set_config('billing.scope', %s, true), set_config('billing.tenant', %s, true)"
_ENTER_IN_TURN = _ENTER + "; SELECT pg_advisory_xact_lock(hashtextextended(%s || ' ' || %s, 0))"
_BYPASSES = "SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user"


@dataclass(frozen=True)
class Scope:
    """On whose behalf a transaction speaks. The policies in migrations/ know these names."""

    name: str
    tenant_id: str = ""

    @classmethod
    def tenant(cls, tenant_id: str) -> Scope:
        """One tenant's rows. `tenant_id` comes from a verified token, or from our own rows."""
        return cls("tenant", tenant_id)


SYSTEM = Scope("system")  # every row: the service itself, never on a user's behalf


class UnsafeRole(Exception):
    """The database role would not be held by row-level security."""


class NoAnswer(psycopg.OperationalError):
    """The server took the question and stayed silent; the connection is gone with it."""


class ImpatientConnection(psycopg.Connection[Any]):
    """A connection that stops waiting: `statement_timeout` cannot help when the server is out of reach."""

    def wait(self, gen: PQGen[Result], interval: float = 0.2, timeout: float | None = ANSWER_SECONDS) -> Result:
        try:
            return super().wait(gen, interval, timeout)
        except pg._WaitTimeout as e:
            self.pgconn.finish()
            raise NoAnswer("the database did not answer in time") from e


class Database:
    """A pool of connections that holds no more than `pool_size`, opened when first needed."""

    def __init__(self, url: str, *, pool_size: int, allow_superuser: bool = False) -> None:
        self._engine = _engine(url, pool_size)
        if not allow_superuser:
            event.listen(self._engine, "connect", _refuse_unsafe_role)

    @contextmanager
    def begin(self, scope: Scope, *, in_turn: str | None = None) -> Iterator[Connection]:
        """A transaction in `scope`: committed when the block ends, rolled back when it raises.

        Of those that name the same `in_turn` for the same tenant, one runs at a time.
        """
        try:
            with self._enter(scope, in_turn) as connection:
                yield connection
                connection.commit()
        except (OperationalError, InterfaceError, NoConnectionFree, psycopg.OperationalError) as e:
            raise ServiceUnavailable("database") from e
        except InternalError as e:
            if isinstance(e.orig, pg.ReadOnlySqlTransaction):  # a former primary, after a fail-over
                raise ServiceUnavailable("database") from e
            raise

    def _enter(self, scope: Scope, in_turn: str | None) -> Connection:
        """What is sent first also finds out whether a pooled connection still lives; a dead one is replaced."""
        while True:
            connection = self._engine.connect()
            try:
                _speak_for(scope, in_turn, _driver(connection))
            except BaseException as e:
                died = _driver(connection).closed and not isinstance(e, NoAnswer)
                was_pooled = connection.info.get("used", False)
                if _driver(connection).closed:
                    connection.invalidate()
                connection.close()
                if died and was_pooled:
                    continue
                raise
            connection.info["used"] = True
            return connection

    @property
    def connections_in_use(self) -> int:
        """How many of the pool's connections are out with somebody."""
        return self._engine.pool.checkedout()  # type: ignore[attr-defined,no-any-return]  # a QueuePool

    def close(self) -> None:
        """Let go of every connection; the next `begin` opens new ones."""
        self._engine.dispose()


def _driver(connection: Connection) -> psycopg.Connection[Any]:
    driver: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
    return driver


def _speak_for(scope: Scope, in_turn: str | None, connection: psycopg.Connection[Any]) -> None:
    """BEGIN, the scope and the turn in one trip to the server: a simple query may hold several statements."""
    said = [scope.name, scope.tenant_id]
    with psycopg.ClientCursor(connection) as cursor:
        if in_turn:
            cursor.execute(_ENTER_IN_TURN, [*said, in_turn, scope.tenant_id])
        else:
            cursor.execute(_ENTER, said)


def _engine(url: str, pool_size: int) -> Engine:
    engine = create_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=WAIT_SECONDS,
        pool_recycle=1800,
        hide_parameters=True,
        connect_args={
            "connect_timeout": CONNECT_SECONDS,
            "application_name": "billing",
            "options": SERVER_LIMITS,
            "target_session_attrs": "read-write",
        },
    )

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: Any, _record: Any, arguments: Any, options: Any) -> ImpatientConnection:
        return ImpatientConnection.connect(*arguments, autocommit=True, **options)  # `begin` says BEGIN

    return engine


def _refuse_unsafe_role(connection: psycopg.Connection[Any], _record: Any) -> None:
    with connection.cursor() as cursor:
        bypasses = cursor.execute(_BYPASSES).fetchone()
    if bypasses and bypasses[0]:
        raise UnsafeRole(
            "DATABASE_URL: this role bypasses row-level security; use one that is no superuser and has no "
            "BYPASSRLS, or set BILLING_ALLOW_SUPERUSER=1"
        )


def owner_engine(url: str) -> Engine:
    """For migrations: one plain connection without the service's limits."""
    return create_engine(url, poolclass=NullPool, hide_parameters=True, connect_args={"connect_timeout": 10})
