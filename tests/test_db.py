"""The database: who sees which rows, and what happens when it is away."""

from __future__ import annotations

import ast
import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

import billing
from billing.db import SERVICE, STRANGER, SYSTEM, Database, Query, Scope, UnsafeRole
from billing.errors import ServiceUnavailable
from sandbox.server import Control
from tests.conftest import MakeApp, link, rows
from tests.gateway import Gateway, a_gateway
from tests.test_portal import PORTAL, asked_of_stripe
from tests.test_portal_options import wait_until

Timed = tuple[tuple[int, bytes], str | None, float]  # status and body, Retry-After, seconds

UNAVAILABLE = (503, b'{"error":"Service unavailable"}')


@pytest.fixture
def two_tenants(database: Database) -> Database:
    """Acme and Globex, each with one row in every table."""
    fill(database)
    return database


def fill(database: Database) -> None:
    """Of each of two tenants, a row into every table that has more than one."""
    with database.begin(SYSTEM) as connection:
        for tenant in ("t_acme", "t_globex"):
            for table, columns in A_ROW.items():
                values = ", ".join(f"'{value}'" for value in columns.values()).replace("{tenant}", tenant)
                connection.exec_driver_sql(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({values})")


A_ROW = {
    "tenant_config": {"tenant_id": "{tenant}", "stripe_customer_id": "cus_{tenant}"},
    "tenant_links": {"tenant_id": "{tenant}", "stripe_customer_id": "cus_{tenant}", "linked_by": "test"},
    "audit_log": {
        "tenant_id": "{tenant}",
        "actor": "u",
        "action": "portal",
        "started": "true",
        "outcome": "started",
    },
    "checkouts": {
        "id": "{tenant}",
        "tenant_id": "{tenant}",
        "stripe_customer_id": "cus_{tenant}",
        "wish": "{}",
        "params": "{}",
    },
    "customer_intents": {"id": "{tenant}", "tenant_id": "{tenant}"},
    "tenant_states": {"tenant_id": "{tenant}"},
    "overrides": {
        "tenant_id": "{tenant}",
        "feature": "sso",
        "value": "true",
        "author": "ana",
        "reason": "a promise",
    },
    "active_entitlements": {"stripe_customer_id": "cus_{tenant}", "lookup_key": "sso"},
    "subscriptions": {
        "stripe_subscription_id": "sub_{tenant}",
        "stripe_customer_id": "cus_{tenant}",
        "status": "active",
        "cancel_at_period_end": "false",
        "facts": "",
        "as_of": "2026-01-01T00:00Z",
        "as_of_end": "2026-01-01T00:00Z",
        "source": "event",
        "heard": "0",
    },
    "subscription_items": {
        "stripe_subscription_id": "sub_{tenant}",
        "stripe_item_id": "si_{tenant}",
        "stripe_price_id": "price_1",
        "stripe_product_id": "prod_1",
    },
    "invoices": {
        "stripe_invoice_id": "in_{tenant}",
        "stripe_subscription_id": "sub_{tenant}",
        "status": "open",
        "attempted": "true",
        "as_of": "2026-01-01T00:00Z",
    },
    "inbox": {"event_id": "evt_{tenant}", "type": "customer.updated", "body": "{}"},
    "stripe_customers": {"stripe_customer_id": "cus_{tenant}"},
    "stripe_reads": {"endpoint": "{tenant}", "lane": "waiting", "reserved_until": "2026-01-01T00:00Z"},
    "chores": {"name": "{tenant}", "due_at": "2026-01-01T00:00Z"},
    "checkout_turns": {"tenant_id": "{tenant}", "holder": "1", "until": "2026-01-01T00:00Z"},
    "feed_consumers": {"name": "{tenant}", "epoch": "e", "position": "0", "asked_at": "2026-01-01T00:00Z"},
    "drift": {
        "tenant_id": "{tenant}",
        "stripe_customer_id": "cus_{tenant}",
        "kind": "changed",
        "seen": "0",
        "version_before": "1",
    },
    "tenant_versions": {"tenant_id": "{tenant}", "version": "1", "cause": "time", "changes": "{}"},
    "tenant_words": {"tenant_id": "{tenant}", "word": "name of {tenant}"},
    "service_tokens": {"name": "of-{tenant}", "slot": "1", "hash": "{tenant}", "scopes": "{billing:read}"},
    "workers": {"name": "{tenant}"},
    "operator_sessions": {"hash": "{tenant}", "name": "ana", "entry": ""},
    "sign_ins": {"tried": "{tenant}", "attempts": "1", "latest_at": "2026-01-01T00:00Z"},
}
TABLES = list(A_ROW)
THE_SERVICES_OWN = (
    *("inbox", "stripe_customers", "stripe_reads", "chores", "checkout_turns", "feed_consumers"),
    *("service_tokens", "workers", "operator_sessions", "sign_ins", "drift", "tenant_versions"),
    "tenant_words",
)


def test_the_service_is_no_superuser_and_cannot_bypass_the_policies(database: Database) -> None:
    [role] = rows(database, "SELECT rolsuper, rolbypassrls FROM pg_roles WHERE rolname = current_user")

    assert role == {"rolsuper": False, "rolbypassrls": False}


def test_every_table_forces_row_level_security(database: Database) -> None:
    """A table without tenant data, and so without policies, has to be named here."""
    found = rows(
        database,
        """
        SELECT c.relname AS name, c.relrowsecurity AND c.relforcerowsecurity AS forced,
               EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid) AS has_policy
        FROM pg_class c WHERE c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace
        """,
    )

    open_tables = {table["name"] for table in found if not (table["forced"] and table["has_policy"])}
    assert open_tables == {"alembic_version"}
    assert {table["name"] for table in found} - open_tables == {
        *TABLES,
        "catalogue",
        "feed",
        "reconcile_runs",
        "events_listed",
    }


@pytest.mark.parametrize("table", TABLES)
def test_a_tenants_scope_sees_its_own_rows_only(two_tenants: Database, table: str) -> None:
    with two_tenants.begin(Scope.tenant("t_acme")) as connection:
        seen = connection.execute(text(f"SELECT * FROM {table}")).all()

    assert len(seen) == (0 if table in THE_SERVICES_OWN else 1)
    assert "t_globex" not in str(seen)


def test_what_a_former_customer_has_is_out_of_its_tenants_sight(two_tenants: Database) -> None:
    with two_tenants.begin(SYSTEM) as connection:
        connection.execute(
            text("UPDATE tenant_config SET stripe_customer_id = 'cus_new' WHERE tenant_id = 't_acme'")
        )
    with two_tenants.begin(Scope.tenant("t_acme")) as connection:
        for table in ("subscriptions", "subscription_items", "invoices"):
            assert connection.scalar(text(f"SELECT count(*) FROM {table}")) == 0


@pytest.mark.parametrize(("scope", "sees"), [(SERVICE, "tenant_states"), (STRANGER, "service_tokens")])
@pytest.mark.parametrize("table", TABLES)
def test_a_service_sees_documents_and_a_stranger_tokens_and_neither_anything_else(
    two_tenants: Database, table: str, scope: Scope, sees: str
) -> None:
    with two_tenants.begin(scope) as connection:
        assert connection.scalar(text(f"SELECT count(*) FROM {table}")) == (2 if table == sees else 0)


@pytest.mark.parametrize("scope", [SERVICE, STRANGER])
@pytest.mark.parametrize("table", TABLES)
def test_neither_a_service_nor_a_stranger_changes_anything(
    two_tenants: Database, table: str, scope: Scope
) -> None:
    with two_tenants.begin(scope) as connection:
        assert connection.execute(text(f"DELETE FROM {table}")).rowcount == 0
    columns = A_ROW[table] | {next(iter(A_ROW[table])): "new"}
    values = ", ".join(f"'{value}'" for value in columns.values())
    with pytest.raises(ProgrammingError, match="row-level security"), two_tenants.begin(scope) as connection:
        connection.exec_driver_sql(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({values})")


@pytest.mark.parametrize("scope", [Scope.tenant(""), Scope("nobody"), Scope("tenant"), Scope("System")])
@pytest.mark.parametrize("table", TABLES)
def test_a_scope_of_nobody_sees_nothing(two_tenants: Database, table: str, scope: Scope) -> None:
    with two_tenants.begin(scope) as connection:
        assert connection.scalar(text(f"SELECT count(*) FROM {table}")) == 0


@pytest.mark.parametrize("table", TABLES)
def test_a_connection_without_a_scope_sees_nothing(
    two_tenants: Database, database_url: str, table: str
) -> None:
    with psycopg.connect(database_url.replace("+psycopg", "")) as connection:
        assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


def test_a_scope_ends_with_its_transaction(two_tenants: Database, database_url: str) -> None:
    one_connection = Database(database_url, pool_size=1)
    with one_connection.begin(SYSTEM) as connection:
        before = connection.scalar(text("SELECT pg_backend_pid()"))
    with one_connection.begin(Scope.tenant("t_acme")) as connection:
        after, seen = connection.execute(text("SELECT pg_backend_pid(), count(*) FROM tenant_config")).one()
    one_connection.close()

    assert (before, seen) == (after, 1)


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO audit_log (tenant_id, actor, action, started, outcome)"
        " VALUES ('t_globex', 'u', 'x', true, 'started')",
        "INSERT INTO tenant_config (tenant_id) VALUES ('t_acme2')",
        "UPDATE audit_log SET tenant_id = 't_globex'",
    ],
)
def test_a_tenants_scope_cannot_write_anothers_rows(two_tenants: Database, statement: str) -> None:
    with pytest.raises(ProgrammingError), two_tenants.begin(Scope.tenant("t_acme")) as connection:
        connection.execute(text(statement))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE tenant_config SET stripe_customer_id = 'cus_mine'",
        "DELETE FROM tenant_config",
        "DELETE FROM audit_log",
        "UPDATE audit_log SET actor = 'x' WHERE tenant_id = 't_globex'",
    ],
)
def test_a_tenants_scope_cannot_change_links_or_erase_its_trail(two_tenants: Database, statement: str) -> None:
    with two_tenants.begin(Scope.tenant("t_acme")) as connection:
        assert connection.execute(text(statement)).rowcount == 0


def test_mixed_tenants_over_two_connections_never_see_each_other(
    two_tenants: Database, database_url: str
) -> None:
    def look(number: int) -> bool:
        tenant = ("t_acme", "t_globex")[number % 2]
        with shared.begin(Scope.tenant(tenant)) as connection:
            return connection.scalars(text("SELECT tenant_id FROM tenant_config")).all() == [tenant]

    with (
        contextlib.closing(Database(database_url, pool_size=2)) as shared,
        ThreadPoolExecutor(2) as threads,  # as many as connections: a pool is not fair to those who wait
    ):
        alone = list(threads.map(look, range(1000)))

    assert all(alone)


def test_a_transaction_in_one_trip_is_all_or_nothing(database: Database) -> None:
    written = Query("write", "INSERT INTO tenant_config (tenant_id) VALUES ('t_x')", {}, lambda _: None)
    wrong = Query("wrong", "SELECT 1 / 0", {}, lambda found: found.fetchone())

    with pytest.raises(psycopg.DataError):
        database.run(SYSTEM, written, wrong)

    assert rows(database, "SELECT * FROM tenant_config") == []
    assert database.connections_in_use == 0


def test_a_transaction_that_could_not_be_sent_whole_commits_nothing(database: Database) -> None:
    written = Query("write", "INSERT INTO tenant_config (tenant_id) VALUES ('t_x')", {}, lambda _: None)
    unsendable = Query("unsendable", "SELECT %(text)s", {"text": "a\0b"}, lambda found: found.fetchone())

    with pytest.raises(psycopg.DataError):
        database.run(SYSTEM, written, unsendable)

    assert rows(database, "SELECT * FROM tenant_config") == []
    assert database.connections_in_use == 0


def test_a_transaction_in_one_trip_sees_its_own_rows_and_leaves_no_scope_behind(
    two_tenants: Database, database_url: str
) -> None:
    mine = Query("mine", "SELECT tenant_id FROM tenant_config", {}, lambda found: found.fetchall())
    scope = Query("scope", "SELECT current_setting('billing.tenant', true)", {}, lambda found: found.fetchone())
    one_connection = Database(database_url, pool_size=1)

    seen = one_connection.run(Scope.tenant("t_acme"), mine)
    with one_connection._engine.connect() as connection:
        left = connection.exec_driver_sql(scope.sql).scalar()
    one_connection.close()

    assert seen == [("t_acme",)]
    assert left in (None, "")


def test_user_routes_open_no_scope_but_their_callers() -> None:
    """Every `begin(…)` and `run(…)` in a door is listed here; a new one has to be looked at."""
    doors = Path(billing.__file__).parent / "web"
    scopes = {
        (door.name, ast.unparse(call.args[0]))
        for door in doors.glob("*.py")
        for call in ast.walk(ast.parse(door.read_text()))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in {"begin", "run"}
    }

    assert scopes == {
        ("links.py", "self._caller.scope"),
        ("portal.py", "caller.scope"),
        ("changes.py", "SYSTEM"),  # notes how far a consumer has come
        ("checkout.py", "PUBLIC"),
        ("entitlements.py", "PUBLIC"),
        ("health.py", "SYSTEM"),
        ("webhooks.py", "WEBHOOK"),
    }


def test_one_stripe_customer_belongs_to_one_tenant_and_empty_ids_to_any(database: Database) -> None:
    link(database, "t_1", "")
    link(database, "t_2", "")
    link(database, "t_3", None)
    link(database, "t_4", "cus_x")

    with pytest.raises(Exception, match="uq_tenant_config_stripe_customer_id"):
        link(database, "t_5", "cus_x")


# ---- roles


def test_a_superuser_is_refused(server_url: str) -> None:
    database = Database(server_url.replace("postgresql://", "postgresql+psycopg://"), pool_size=1)

    with pytest.raises(UnsafeRole, match="BILLING_ALLOW_SUPERUSER"), database.begin(SYSTEM):
        pass

    database.close()


def test_a_superuser_is_let_in_on_request(server_url: str) -> None:
    url = server_url.replace("postgresql://", "postgresql+psycopg://")
    database = Database(url, pool_size=1, allow_superuser=True)

    with database.begin(SYSTEM) as connection:
        assert connection.scalar(text("SELECT 1")) == 1

    database.close()


# ---- outages


@pytest.fixture
def gateway(database_url: str) -> Iterator[Gateway]:
    with a_gateway(database_url) as gateway:
        yield gateway


@pytest.fixture
def behind_the_gateway(make_app: MakeApp, gateway: Gateway) -> Flask:
    return make_app(DATABASE_URL=gateway.url, DATABASE_POOL_SIZE="2")


def timed_post(client: FlaskClient, headers: dict[str, str]) -> Timed:
    began = time.monotonic()
    answer = client.post(PORTAL, headers=headers)
    return (answer.status_code, answer.data), answer.headers.get("Retry-After"), time.monotonic() - began


def test_a_refusing_database_is_503_at_once_and_needs_no_restart(
    behind_the_gateway: Flask, gateway: Gateway, headers: dict[str, str]
) -> None:
    client = behind_the_gateway.test_client()
    before, _, _ = timed_post(client, headers)

    gateway.refuse()
    answer, retry_after, took = timed_post(client, headers)
    gateway.restore()
    after, _, _ = timed_post(client, headers)

    assert (before[0], after[0]) == (200, 200)
    assert answer == UNAVAILABLE
    assert retry_after == "2"
    assert took < 2


def test_callers_of_a_cold_pool_do_not_queue_behind_one_another(database_url: str) -> None:
    """As after a fork: the server accepts, and then says nothing."""
    with a_gateway(database_url) as gateway:
        database = Database(gateway.url, pool_size=5)
        database.run(SYSTEM, Query("warm", "SELECT 1", {}, lambda _: None))
        database.close()
        gateway.swallow_once_connected()

        def ask(_: int) -> float:
            began = time.monotonic()
            with pytest.raises(ServiceUnavailable):
                database.run(SYSTEM, Query("ask", "SELECT 1", {}, lambda _: None))
            return time.monotonic() - began

        with ThreadPoolExecutor(5) as callers:
            took = list(callers.map(ask, range(5)))
        database.close()

    assert max(took) < 4


@pytest.mark.parametrize("used_before", [True, False], ids=["open connections", "new connections"])
def test_a_silent_database_is_503_within_four_seconds_and_needs_no_restart(
    behind_the_gateway: Flask, gateway: Gateway, headers: dict[str, str], used_before: bool
) -> None:
    client = behind_the_gateway.test_client()
    if used_before:
        timed_post(client, headers)

    gateway.swallow()
    answers = all_at_once(behind_the_gateway, headers, times=6)
    gateway.restore()
    after, _, _ = timed_post(client, headers)

    assert {answer for answer, _, _ in answers} == {UNAVAILABLE}
    assert max(took for _, _, took in answers) < 4
    assert after[0] == 200


def all_at_once(app: Flask, headers: dict[str, str], *, times: int) -> list[Timed]:
    with ThreadPoolExecutor(times) as threads:
        return list(threads.map(lambda _: timed_post(app.test_client(), headers), range(times)))


def test_connections_that_died_in_the_pool_cost_nobody_an_error(
    make_app: MakeApp, headers: dict[str, str], server_url: str, database_url: str
) -> None:
    client = make_app().test_client()
    client.post(PORTAL, headers=headers)

    cut_connections(server_url, database_url)

    assert client.post(PORTAL, headers=headers).status_code == 200


def cut_connections(server_url: str, database_url: str) -> None:
    name = database_url.rpartition("/")[2].partition("?")[0]
    with psycopg.connect(server_url, autocommit=True) as server:
        server.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = %s AND application_name = 'billing'",
            [name],
        )


def test_a_locked_table_is_503_and_not_a_hang(
    client: FlaskClient, headers: dict[str, str], database: Database
) -> None:
    with database.begin(SYSTEM) as connection:
        connection.execute(text("LOCK TABLE audit_log IN ACCESS EXCLUSIVE MODE"))
        answer, _, took = timed_post(client, headers)

    assert answer == UNAVAILABLE
    assert took < 4


def test_a_pool_without_a_free_connection_is_503_soon(database_url: str) -> None:
    database = Database(database_url, pool_size=1)
    began = time.monotonic()

    with database.begin(SYSTEM), pytest.raises(ServiceUnavailable), database.begin(SYSTEM):
        pass

    assert time.monotonic() - began < 2
    database.close()


def test_what_raises_inside_a_transaction_is_rolled_back(database: Database) -> None:
    with contextlib.suppress(ZeroDivisionError), database.begin(SYSTEM) as connection:
        connection.execute(text("INSERT INTO tenant_config (tenant_id) VALUES ('t_x')"))
        raise ZeroDivisionError

    assert rows(database, "SELECT * FROM tenant_config") == []


def test_an_unsettled_attempt_does_not_cost_the_caller_its_link(
    behind_the_gateway: Flask, gateway: Gateway, headers: dict[str, str], database: Database, sandbox: Control
) -> None:
    """The database goes away between Stripe's answer and the outcome: the session exists, so it is given."""
    sandbox.latency(0.5)
    answers: list[int] = []
    client = behind_the_gateway.test_client()
    asking = threading.Thread(target=lambda: answers.append(client.post(PORTAL, headers=headers).status_code))
    asking.start()
    wait_until(lambda: bool(asked_of_stripe(sandbox)))
    gateway.refuse()
    asking.join()
    gateway.restore()

    assert answers == [200]
    assert [row["outcome"] for row in rows(database, "SELECT outcome FROM audit_log")] == ["started"]
