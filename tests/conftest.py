"""What every test stands on: a real PostgreSQL, a real sandbox behind real HTTP, real tokens.

`make test` puts the address of a server in TEST_SERVER_URL. Each test process makes one database of its own
there, migrated by Alembic, whose owner `billing_test` is an ordinary role; a test starts with empty tables.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests
from flask import Flask
from flask.testing import FlaskClient
from psycopg import sql
from sqlalchemy import make_url, text
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]  # it has no stubs

from app import create_app
from billing import config
from billing.db import SYSTEM, Database
from sandbox.server import Control, running
from tests import documented
from tests.sandbox import witness
from tests.tokens import SHARED_SECRET, a_token

ROOT = Path(__file__).parent.parent
ROLE = "billing_test"
SHARING_A_RUN = ("tests/browser/", "tests/test_dev_running.py")
IS_SOAK = os.environ.get("SOAK") == "1"  # `make soak`: the same tests at full length
TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
EMPTIED = f"""
    DO $$ DECLARE name text; BEGIN
        FOR name IN {TABLES} LOOP
            IF pg_relation_size(name::regclass) > 1000000 THEN EXECUTE 'TRUNCATE ' || name;
            ELSE EXECUTE 'DELETE FROM ' || name;  -- where there is little, in a tenth of the time
            END IF;
        END LOOP;
    END $$
"""
SIGNING_SECRET = "whsec_of_the_tests_own_endpoint"
ROLE_OF_THE_SERVICE = """
    DO $$ BEGIN
        CREATE ROLE billing_test LOGIN PASSWORD 'test';
        GRANT billing_test TO CURRENT_USER;
    EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;  -- several test processes start at once
    END $$
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "database_url" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.database)


class OneRun(LoadScopeScheduling):  # type: ignore[misc]  # for the same reason
    """Sends all that looks at one `make run` to one worker, which starts it once."""

    def _split_scope(self, nodeid: str) -> str:
        return next(filter(nodeid.startswith, SHARING_A_RUN), nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneRun:
    return OneRun(config, log)


@pytest.fixture(autouse=True)
def stripe_could_have_said_it(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails the test to which a sandbox said what Stripe would not, unless the test itself made that up."""
    yield
    unlike_stripe = witness.taken()
    assert unlike_stripe == [] or request.node.get_closest_marker("made_up")


@pytest.fixture(scope="session")
def server_url() -> str:
    """Somebody who may create databases and roles, on a server that is thrown away or meant for this."""
    url = os.environ.get("TEST_SERVER_URL")
    if not url:
        pytest.exit("TEST_SERVER_URL is not set: run the tests with `make test`", returncode=2)
    return url


@pytest.fixture(scope="session")
def database_url(server_url: str) -> Iterator[str]:
    """A migrated database, as the service's own role sees it."""
    yield from a_database(server_url)


def a_database(server_url: str, *, migrated: bool = True) -> Iterator[str]:
    """A database that lives as long as its fixture."""
    name = f"billing_test_{os.getpid()}_{secrets.token_hex(3)}"
    with psycopg.connect(server_url, autocommit=True) as server:
        server.execute(ROLE_OF_THE_SERVICE)
        server.execute(
            sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), sql.Identifier(ROLE))
        )
    url = make_url(server_url).set(database=name, username=ROLE, password="test")
    address = url.render_as_string(hide_password=False)
    if migrated:
        alembic(address, "upgrade", "head")
    yield address
    with psycopg.connect(server_url, autocommit=True) as server:
        server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def alembic(database_url: str, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """The command of the release process, as the release process runs it."""
    return subprocess.run(
        [sys.executable, "-m", "alembic", *command],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "DATABASE_URL": database_url, **environ},
        capture_output=True,
        text=True,
        check=not environ.get("MAY_FAIL"),
    )


@pytest.fixture(scope="session")
def stripe_stand_in() -> Iterator[Control]:
    """One sandbox per test process, over HTTP."""
    with running() as control:
        yield control


@pytest.fixture
def sandbox(stripe_stand_in: Control) -> Iterator[Control]:
    """The sandbox without the faults, latency and requests of any other test."""
    stripe_stand_in.clear()
    yield stripe_stand_in
    stripe_stand_in.clear()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """The service's way in, on empty tables."""
    database = Database(database_url, pool_size=5)
    with database.begin(SYSTEM) as connection:
        connection.execute(text(EMPTIED))
    yield database
    database.close()


@pytest.fixture
def environ(database_url: str, sandbox: Control) -> dict[str, str]:
    """The least the service starts with."""
    return {
        "DATABASE_URL": database_url,
        "APP_URL": "https://app.example.com",
        "STRIPE_SECRET_KEY": sandbox.key,
        "STRIPE_API_BASE": sandbox.url,
        "STRIPE_WEBHOOK_SECRET": SIGNING_SECRET,
        "JWT_SECRET_KEY": SHARED_SECRET,
    }


MakeApp = Callable[..., Flask]


@pytest.fixture
def make_app(environ: dict[str, str], database: Database) -> Iterator[MakeApp]:
    """The service with the settings of `environ` and those given, which are named as in the environment.

    Its clients compare every answer with the contract.
    """
    made: list[Flask] = []

    def make(**settings: str) -> Flask:
        app = create_app(config.load({**environ, **settings}))
        app.test_client_class = documented.Judged
        made.append(app)
        return app

    yield make
    for app in made:
        app.extensions["billing"].db.close()


@pytest.fixture
def client(make_app: MakeApp) -> FlaskClient:
    """Somebody who speaks HTTP to the service."""
    return make_app().test_client()


@pytest.fixture
def customer(sandbox: Control) -> str:
    """A customer at Stripe that no tenant is linked to yet."""
    return create_customer(sandbox)


def create_customer(sandbox: Control) -> str:
    answer = requests.post(
        f"{sandbox.url}/v1/customers",
        {"name": "Acme GmbH", "email": "ada@acme.example"},
        auth=(sandbox.key, ""),
    )
    answer.raise_for_status()
    return str(answer.json()["id"])


@pytest.fixture
def acme(database: Database, customer: str) -> str:
    """A tenant that is linked to a Stripe customer."""
    link(database, "t_acme", customer)
    return "t_acme"


def link(database: Database, tenant_id: str, customer: str | None) -> None:
    with database.begin(SYSTEM) as connection:
        connection.execute(
            text("INSERT INTO tenant_config (tenant_id, stripe_customer_id) VALUES (:tenant, :customer)"),
            {"tenant": tenant_id, "customer": customer},
        )


@pytest.fixture
def headers(acme: str) -> dict[str, str]:
    """What a member of Acme sends."""
    return {"Authorization": f"Bearer {a_token(tenant_id=acme)}"}


def rows(database: Database, query: str, **parameters: Any) -> list[dict[str, Any]]:
    """What the tables say, seen by the service itself."""
    with database.begin(SYSTEM) as connection:
        return [dict(row) for row in connection.execute(text(query), parameters).mappings()]
