"""PostgreSQL, and the only way into it.

`Database.begin(scope)` opens a transaction, and `run(scope, …)` is a whole one in a single trip. Either way the
first statement tells PostgreSQL on whose behalf it speaks; row-level security, forced on every table with
tenant data, shows that scope its rows and no others. Trouble of the database's own (down, locked, too slow,
no connection free) becomes `ServiceUnavailable` here, within seconds: no caller hangs.

Tables are SQLAlchemy Core tables beside their rules, in the subjects; `metadata` names their constraints.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, LiteralString, TypeVar, overload

import psycopg
from opentelemetry import trace
from psycopg import errors as pg
from psycopg.abc import PQGen
from sqlalchemy import Connection, Engine, MetaData, create_engine, event, text
from sqlalchemy.exc import InterfaceError, InternalError, InvalidatePoolError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionFree
from sqlalchemy.pool import NullPool

from billing.errors import Busy, ServiceUnavailable

Result = TypeVar("Result")
Answer = TypeVar("Answer")
First = TypeVar("First")
Second = TypeVar("Second")

tracer = trace.get_tracer("billing")

# A silent server is given up after WAIT for a free connection and CONNECT or ANSWER: under 4 s. Each statement
# of a `begin` has its own ANSWER.
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

_ENTER = "SELECT set_config('billing.scope', %s, true), set_config('billing.tenant', %s, true)"
_ENTER_IN_TURN = f"{_ENTER}, pg_advisory_xact_lock(hashtextextended(%s || ' ' || %s, 0))"
_POSTGRESQL = {"db.system.name": "postgresql"}
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
WEBHOOK = Scope("webhook")  # may add to the inbox, and see nothing
PUBLIC = Scope("public")  # sees the catalogue, and nothing of any tenant's
STRANGER = Scope("stranger")  # sees service tokens, of which one may make it a service (`tokens.find`)
SERVICE = Scope("service")  # another service of the house, by its token: reads what any tenant may use


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


@dataclass(frozen=True)
class Query(Generic[Answer]):
    """One statement, its values, and what to make of the answer. Subjects make them, doors `run` them."""

    name: str
    sql: LiteralString
    values: Mapping[str, Any]
    read: Callable[[psycopg.Cursor[Any]], Answer]
    enters: bool = False  # says itself on whose behalf it speaks: %(scope)s, %(tenant)s


_ALONG_INDEXES = text("SET LOCAL enable_sort = off")
_SORTING = text("SET LOCAL enable_sort = on")


def along_indexes(connection: Connection) -> None:
    """For the rest of the transaction, have rows that are wanted in an index's order read along it.

    The planner takes row-level security for a filter that leaves hardly any row, and would rather sort a
    million of them than walk along their index to the fiftieth.
    """
    connection.execute(_ALONG_INDEXES)


def sorting_again(connection: Connection) -> None:
    """For the rest of the transaction, have few rows sorted rather than many read along an index."""
    connection.execute(_SORTING)


class Database:
    """A pool of connections that holds no more than `pool_size`, opened when first needed."""

    def __init__(self, url: str, *, pool_size: int, allow_superuser: bool = False) -> None:
        self._engine = _engine(url, pool_size, allow_superuser)

    @overload
    def run(self, scope: Scope, query: Query[Answer], /, *, in_turn: str | None = None) -> Answer: ...

    @overload
    def run(
        self, scope: Scope, first: Query[First], second: Query[Second], /, *, in_turn: str | None = None
    ) -> tuple[First, Second]: ...

    def run(self, scope: Scope, /, *queries: Query[Any], in_turn: str | None = None) -> Any:
        """A whole transaction in one trip to the server, for those whose statements are known beforehand.

        Of transactions that name the same `in_turn` for the same tenant, one runs at a time.
        """
        name = " ".join(query.name for query in queries)
        if queries[0].enters:
            return self._run_alone(scope, *queries)
        with _trouble_is_ours(), self._connected() as (_, driver):
            with (
                tracer.start_as_current_span(name, kind=trace.SpanKind.CLIENT, attributes=_POSTGRESQL),
                _one_transaction(driver),
            ):
                _send(driver, *_entrance(scope, in_turn))
                cursors = [_send(driver, query.sql, query.values) for query in queries]
            answers = tuple(query.read(cursor) for query, cursor in zip(queries, cursors, strict=True))
        return answers if len(answers) > 1 else answers[0]

    def _run_alone(self, scope: Scope, query: Query[Answer]) -> Answer:
        """One statement is a transaction by itself, and cheaper than a pipeline of two."""
        with _trouble_is_ours(), self._connected() as (_, driver):
            with tracer.start_as_current_span(query.name, kind=trace.SpanKind.CLIENT, attributes=_POSTGRESQL):
                values = {**query.values, "scope": scope.name, "tenant": scope.tenant_id}
                return query.read(_send(driver, query.sql, values))

    @contextmanager
    def begin(self, scope: Scope, *, in_turn: str | None = None, keep: bool = True) -> Iterator[Connection]:
        """A transaction whose statements depend on one another: committed when the block ends well.

        Without `keep` it is only imagined: whatever it wrote is taken back in the end.
        """
        with _trouble_is_ours(), self._connected() as (connection, driver):
            statement, values = _entrance(scope, in_turn)
            psycopg.ClientCursor(driver).execute("BEGIN; " + statement, values)  # a simple query, in one trip
            connection.begin()  # or `commit` would do nothing where all statements went past SQLAlchemy
            yield connection
            if keep:
                connection.commit()
            else:
                connection.rollback()

    @contextmanager
    def _connected(self) -> Iterator[tuple[Connection, psycopg.Connection[Any]]]:
        with self._engine.connect() as connection:
            driver = _driver(connection)
            try:
                yield connection, driver
            finally:
                if driver.closed:
                    connection.invalidate()

    @property
    def connections_in_use(self) -> int:
        """How many of the pool's connections are out with somebody."""
        return self._engine.pool.checkedout()  # type: ignore[attr-defined,no-any-return]  # a QueuePool

    def close(self) -> None:
        """Let go of every connection; the next `begin` opens new ones."""
        self._engine.dispose()


def bypasses_policies(connection: Connection) -> bool:
    """Whether row-level security does not hold the role we are."""
    return bool(connection.exec_driver_sql(_BYPASSES).scalar())


def rows(connection: Connection, sql: LiteralString, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """A statement's rows as the driver reads them, in binary: for the many, and for those that hold bytes."""
    return psycopg.Cursor(_driver(connection)).execute(sql, values, binary=True).fetchall()


@contextmanager
def _trouble_is_ours() -> Iterator[None]:
    """The database's own troubles, whoever noticed them, are no fault of the caller's."""
    try:
        yield
    except (psycopg.OperationalError, OperationalError, InterfaceError, NoConnectionFree) as e:
        is_busy = isinstance(
            getattr(e, "orig", e), pg.LockNotAvailable | pg.QueryCanceled | pg.DeadlockDetected
        )
        raise (Busy if is_busy else ServiceUnavailable)("database") from e
    except (psycopg.InternalError, InternalError) as e:
        # A former primary after a fail-over; or we were silent for so long that the server let others go first.
        if isinstance(getattr(e, "orig", e), pg.ReadOnlySqlTransaction | pg.IdleInTransactionSessionTimeout):
            raise ServiceUnavailable("database") from e
        raise


@contextmanager
def _one_transaction(driver: psycopg.Connection[Any]) -> Iterator[None]:
    """Up to its end a pipeline is one implicit transaction, which needs no BEGIN and COMMIT."""
    with driver.pipeline():
        try:
            yield
        except BaseException:
            driver.close()  # or the pipeline's end would commit what was sent so far
            raise


def _entrance(scope: Scope, in_turn: str | None) -> tuple[LiteralString, list[str]]:
    """On whose behalf the transaction speaks, and the lock that makes it wait for its turn."""
    if in_turn is None:
        return _ENTER, [scope.name, scope.tenant_id]
    return _ENTER_IN_TURN, [scope.name, scope.tenant_id, in_turn, scope.tenant_id]


def _send(driver: psycopg.Connection[Any], sql: LiteralString, values: Any = None) -> psycopg.Cursor[Any]:
    """Bypasses the instrumentation's cursors: in a pipeline nothing has happened yet when `execute` returns."""
    return psycopg.Cursor(driver).execute(sql, values)


def _driver(connection: Connection) -> psycopg.Connection[Any]:
    driver: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
    return driver


def _engine(url: str, pool_size: int, allow_superuser: bool) -> Engine:
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
        driver = ImpatientConnection.connect(*arguments, autocommit=True, **options)  # BEGIN is said here
        # Here, and not when SQLAlchemy says "connect": that waits in line behind every other new connection.
        if not allow_superuser:
            _refuse_unsafe_role(driver)
        return driver

    @event.listens_for(engine, "checkout")
    def look(driver: psycopg.Connection[Any], _record: Any, _proxy: Any) -> None:
        if _has_died(driver):
            raise InvalidatePoolError  # SQLAlchemy then opens a new one, here and for all that are as old

    return engine


def _has_died(driver: psycopg.Connection[Any]) -> bool:
    """Whether the server has closed a connection while it lay in the pool; asks the kernel, not the server."""
    socket = select.poll()
    socket.register(driver.fileno(), select.POLLIN)
    try:
        while socket.poll(0):
            driver.pgconn.consume_input()
    except psycopg.OperationalError:
        return True
    return False


def _refuse_unsafe_role(driver: psycopg.Connection[Any]) -> None:
    try:
        row = driver.execute(_BYPASSES).fetchone()
    except BaseException:
        driver.close()
        raise
    if row and row[0]:
        driver.close()
        raise UnsafeRole(
            "DATABASE_URL: this role bypasses row-level security; use one that is no superuser and has no "
            "BYPASSRLS, or set BILLING_ALLOW_SUPERUSER=1"
        )


def owner_engine(url: str) -> Engine:
    """For migrations: one plain connection without the service's limits."""
    return create_engine(url, poolclass=NullPool, hide_parameters=True, connect_args={"connect_timeout": 10})
