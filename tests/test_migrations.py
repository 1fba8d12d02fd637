"""What a release does to the database."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url

from billing import clock, feed
from billing.db import SERVICE, SYSTEM, Database
from billing.feed import Cursor
from tests.conftest import ROOT, MakeApp, a_database, alembic, link
from tests.tokens import a_token

SCHEMA = """
    SELECT 'column', table_name, column_name, data_type || is_nullable || coalesce(column_default, '')
    FROM information_schema.columns WHERE table_schema = 'public'
    UNION ALL SELECT 'index', tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
    UNION ALL SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid)
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace
    UNION ALL SELECT 'policy', tablename, policyname, cmd || coalesce(qual, '') || coalesce(with_check, '')
    FROM pg_policies
    ORDER BY 1, 2, 3
"""


@pytest.fixture
def empty_database_url(server_url: str) -> Iterator[str]:
    """A database that no release has touched."""
    yield from a_database(server_url, migrated=False)


def schema(url: str) -> list[tuple[str, ...]]:
    with psycopg.connect(plain(url)) as connection:
        return connection.execute(SCHEMA).fetchall()


def plain(url: str) -> str:
    return url.replace("+psycopg", "")


def test_up_down_and_up_again_give_the_same_schema(empty_database_url: str) -> None:
    alembic(empty_database_url, "upgrade", "head")
    first = schema(empty_database_url)
    alembic(empty_database_url, "downgrade", "base")
    emptied = schema(empty_database_url)
    alembic(empty_database_url, "upgrade", "head")

    assert {table for _, table, *_ in emptied} == {"alembic_version"}
    assert {table for _, table, *_ in first} >= {"tenant_config", "audit_log"}
    assert schema(empty_database_url) == first


def test_the_tables_in_the_code_are_the_tables_in_the_database(database_url: str) -> None:
    assert "No new upgrade operations detected" in alembic(database_url, "check").stdout


def test_every_constraint_has_a_name_of_ours(database_url: str) -> None:
    names = {
        name
        for kind, table, name, _ in schema(database_url)
        if kind == "constraint" and table != "alembic_version"
    }

    assert all(name.startswith(("pk_", "ck_", "uq_", "fk_")) or name.endswith("_not_null") for name in names), (
        names
    )


def test_two_releases_at_once_both_succeed(empty_database_url: str) -> None:
    with ThreadPoolExecutor(3) as releases:
        codes = list(
            releases.map(lambda _: alembic(empty_database_url, "upgrade", "head").returncode, range(3))
        )

    assert codes == [0, 0, 0]


def test_a_release_gives_up_on_a_lock_rather_than_hold_up_the_traffic(empty_database_url: str) -> None:
    alembic(empty_database_url, "upgrade", "head")
    with psycopg.connect(plain(empty_database_url)) as busy:
        busy.execute("SELECT count(*) FROM tenant_config")
        release = alembic(empty_database_url, "downgrade", "base", MAY_FAIL="1")

    assert release.returncode != 0
    assert "LockNotAvailable" in release.stderr


def test_documents_from_before_the_feed_lose_nothing_by_its_release_and_enter_it_afterwards(
    empty_database_url: str,
) -> None:
    """While an index is built others write, and the release waits for those that began before it."""
    alembic(empty_database_url, "upgrade", "0004")
    older = (
        "INSERT INTO tenant_states (tenant_id, version, body, edition, as_of) VALUES (%s, 7, '{}', 1, now())"
    )
    with psycopg.connect(plain(empty_database_url)) as writer, ThreadPoolExecutor(1) as release:
        writer.execute("SELECT set_config('billing.scope', 'system', false)")
        writer.execute(older, ["t_before"])
        writer.commit()
        alembic(empty_database_url, "upgrade", "0005")
        writer.execute(older, ["t_meanwhile"])
        released = release.submit(alembic, empty_database_url, "upgrade", "head")
        with psycopg.connect(plain(empty_database_url), autocommit=True) as neighbour:
            neighbour.execute("SELECT set_config('billing.scope', 'system', false)")
            until(neighbour, "SELECT EXISTS (SELECT FROM pg_stat_progress_create_index)")
            neighbour.execute(older, ["t_beside"])
        assert not released.done()
        writer.commit()
        released.result()

    database = Database(empty_database_url, pool_size=1)
    entered = clock.enter(database)
    page = database.run(SERVICE, feed.read(Cursor(), 500))
    database.close()

    assert entered == 3
    assert [entry.tenant_id for entry in page.entries] == ["t_before", "t_beside", "t_meanwhile"]


def until(connection: psycopg.Connection[tuple[bool]], question: LiteralString) -> None:
    ends = time.monotonic() + 20
    while connection.execute(question).fetchone() != (True,):
        assert time.monotonic() < ends, "it did not happen within 20 s"
        time.sleep(0.01)


def test_a_release_that_was_cut_off_while_it_built_an_index_may_be_run_again(empty_database_url: str) -> None:
    alembic(empty_database_url, "upgrade", "0005")
    with psycopg.connect(plain(empty_database_url), autocommit=True) as connection:
        connection.execute("CREATE INDEX uq_tenant_states_position ON tenant_states (tenant_id)")  # a wrong one

    alembic(empty_database_url, "upgrade", "head")

    assert "No new upgrade operations detected" in alembic(empty_database_url, "check").stdout


LATEST = max(path.name[:4] for path in (ROOT / "migrations" / "versions").glob("0*.py"))
TOUCH = f"""
from alembic import op

revision, down_revision = "touch", "{LATEST}"


def upgrade():
    op.execute("UPDATE tenant_config SET stripe_customer_id = 'cus_touched'")
"""


def test_a_migration_sees_the_rows_of_every_tenant(empty_database_url: str, tmp_path: Path) -> None:
    """Row-level security is forced on the owner too: without a scope it would change nothing, silently."""
    alembic(empty_database_url, "upgrade", "head")
    with psycopg.connect(plain(empty_database_url)) as connection:
        connection.execute("SELECT set_config('billing.scope', 'system', true)")
        connection.execute("INSERT INTO tenant_config (tenant_id, stripe_customer_id) VALUES ('t_1', 'cus_1')")
    shutil.copytree(ROOT / "migrations", tmp_path / "migrations")
    (tmp_path / "migrations" / "versions" / "touch.py").write_text(TOUCH)
    (tmp_path / "alembic.ini").write_text((ROOT / "alembic.ini").read_text())

    alembic(empty_database_url, "-c", str(tmp_path / "alembic.ini"), "upgrade", "head")

    with psycopg.connect(plain(empty_database_url)) as connection:
        connection.execute("SELECT set_config('billing.scope', 'system', true)")
        assert connection.execute("SELECT stripe_customer_id FROM tenant_config").fetchall() == [
            ("cus_touched",)
        ]


def test_a_release_without_an_address_says_so_in_one_sentence() -> None:
    release = alembic("", "upgrade", "head", MAY_FAIL="1")

    assert release.returncode == 1
    assert release.stderr.strip().startswith("DATABASE_URL")
    assert "Traceback" not in release.stderr


def test_a_release_may_have_an_owner_of_its_own(
    server_url: str, empty_database_url: str, make_app: MakeApp, customer: str
) -> None:
    """The service's role then owns nothing and may use everything."""
    role = f"billing_test_service_{secrets.token_hex(3)}"
    service_url = make_url(empty_database_url).set(username=role).render_as_string(hide_password=False)
    with psycopg.connect(server_url, autocommit=True) as server:
        server.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'test'").format(sql.Identifier(role)))

    alembic(service_url, "upgrade", "head", MIGRATIONS_DATABASE_URL=empty_database_url)
    database = Database(service_url, pool_size=1)
    link(database, "t_acme", customer)
    client = make_app(DATABASE_URL=service_url).test_client()
    ready = client.get("/readyz")
    answer = client.post("/api/subscriptions/portal", headers={"Authorization": f"Bearer {a_token()}"})
    with database.begin(SYSTEM) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.connection.cursor().execute("DROP TABLE audit_log")
    database.close()

    assert (ready.status_code, answer.status_code) == (200, 200)
    drop_role(server_url, role, empty_database_url)


def test_while_a_release_is_under_way_the_one_before_writes_what_it_always_did(
    server_url: str, empty_database_url: str
) -> None:
    """It may use no table that is new; and it locks documents by their tenants, wherever they lie."""
    role = f"billing_test_service_{secrets.token_hex(3)}"
    service_url = make_url(empty_database_url).set(username=role).render_as_string(hide_password=False)
    with psycopg.connect(server_url, autocommit=True) as server:
        server.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'test'").format(sql.Identifier(role)))
    owner = {"MIGRATIONS_DATABASE_URL": empty_database_url}
    alembic(service_url, "upgrade", "0012", **owner)
    with psycopg.connect(plain(empty_database_url)) as before_the_end:
        before_the_end.execute(sql.SQL("REVOKE ALL ON tenant_words FROM {}").format(sql.Identifier(role)))

    with (
        psycopg.connect(plain(service_url)) as writer,
        psycopg.connect(plain(empty_database_url), autocommit=True) as neighbour,
        ThreadPoolExecutor(1) as release,
    ):
        writer.execute("SELECT set_config('billing.scope', 'system', false)")
        for tenant in ("t_2", "t_1"):
            writer.execute("INSERT INTO tenant_config (tenant_id, name) VALUES (%s, 'Acme')", [tenant])
            writer.execute(
                """INSERT INTO tenant_states (tenant_id, body) VALUES (%s, '{"state": "active"}')""", [tenant]
            )
        assert writer.execute("SELECT current_setting('billing.scope')").fetchall() == [("system",)]
        writer.commit()
        lock = "SELECT FROM tenant_states WHERE tenant_id = %s FOR NO KEY UPDATE NOWAIT"
        writer.execute(lock, ["t_1"])
        released = release.submit(alembic, service_url, "upgrade", "head", **owner)
        until(
            neighbour,
            """SELECT EXISTS (SELECT FROM pg_stat_activity
                              WHERE datname = current_database() AND wait_event_type = 'Lock')""",
        )
        writer.execute(lock, ["t_2"])
        writer.commit()
        released.result()
        words = writer.execute("SELECT word, tenant_id FROM tenant_words ORDER BY 1, 2").fetchall()
        found = writer.execute("SELECT state, count(*) FROM tenant_states GROUP BY 1").fetchall()

    assert words == [("acme", "t_1"), ("acme", "t_2"), ("t_1", "t_1"), ("t_2", "t_2")]
    assert found == [("active", 2)]
    drop_role(server_url, role, empty_database_url)


def drop_role(server_url: str, role: str, database_url: str) -> None:
    """Roles outlive databases; a role that may do something in one cannot be dropped."""
    inside = make_url(server_url).set(database=make_url(database_url).database)
    with psycopg.connect(inside.render_as_string(hide_password=False), autocommit=True) as server:
        server.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role)))
        server.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def test_a_release_lets_the_service_at_its_own_tables_only(server_url: str, empty_database_url: str) -> None:
    role = f"billing_test_service_{secrets.token_hex(3)}"
    service_url = make_url(empty_database_url).set(username=role).render_as_string(hide_password=False)
    with psycopg.connect(server_url, autocommit=True) as server:
        server.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'test'").format(sql.Identifier(role)))
    with psycopg.connect(plain(empty_database_url), autocommit=True) as neighbour:
        neighbour.execute("CREATE TABLE neighbour (id int)")

    alembic(service_url, "upgrade", "head", MIGRATIONS_DATABASE_URL=empty_database_url)

    with psycopg.connect(plain(empty_database_url), autocommit=True) as owner:
        may = "SELECT has_table_privilege(%s, %s, %s)"
        rights = {
            (table, right): owner.execute(may, [role, table, right]).fetchone() == (True,)
            for table in ("audit_log", "tenant_config", "alembic_version", "neighbour")
            for right in ("SELECT", "INSERT")
        }
    assert {pair for pair, allowed in rights.items() if allowed} == {
        ("audit_log", "SELECT"),
        ("audit_log", "INSERT"),
        ("tenant_config", "SELECT"),
        ("tenant_config", "INSERT"),
        ("alembic_version", "SELECT"),
    }
    drop_role(server_url, role, empty_database_url)


# ---- /readyz


def test_ready_says_yes_on_a_migrated_database(make_app: MakeApp) -> None:
    answer = make_app().test_client().get("/readyz")

    assert (answer.status_code, answer.json) == (200, {"status": "ok"})


def test_ready_says_no_before_the_first_release(make_app: MakeApp, empty_database_url: str) -> None:
    answer = make_app(DATABASE_URL=empty_database_url).test_client().get("/readyz")

    assert (answer.status_code, answer.data) == (503, b'{"error":"Service unavailable"}')


def test_ready_says_yes_beside_a_newer_release(make_app: MakeApp, empty_database_url: str) -> None:
    """For some minutes of every deploy the old code serves on the new schema."""
    alembic(empty_database_url, "upgrade", "head")
    with psycopg.connect(plain(empty_database_url)) as newer:
        newer.execute("UPDATE alembic_version SET version_num = '9999'")

    assert make_app(DATABASE_URL=empty_database_url).test_client().get("/readyz").status_code == 200


def test_ready_says_no_while_the_database_is_away_and_healthy_says_yes(make_app: MakeApp) -> None:
    client = make_app(DATABASE_URL="postgresql://nobody@127.0.0.1:1/nothing").test_client()

    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == 200
