"""What the documents print works as it is printed: what needs no more than the service, its database and HTTP.

tests/browser/test_recipes.py has what needs all of `make run`.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from flask import Flask

from billing import config, feed, state, tokens
from billing.db import SYSTEM, Database
from sandbox.server import Control
from tests.conftest import ROOT, MakeApp, a_database, rows
from tests.recipes import BLOCKS, TO_LOOK_AT, printed, surroundings
from tests.sandbox.conftest import wait_until
from tests.shopping import a_shop
from tests.test_generated_client import served
from tests.test_state import override, refresh, team

NOT_RUN = {
    "make run": "tests/test_dev.py starts it, and so does the stage of tests/browser",
    "make test": "it is what runs this",
    "start a run for tests": "the stage of tests/browser is the same, and the next block is run there",
}


# ---- every block is run


def test_every_block_says_what_it_is_written_in_and_code_has_a_name() -> None:
    assert [block for block in BLOCKS if not block.language] == []
    assert [block.code for block in BLOCKS if bool(block.name) == (block.language in TO_LOOK_AT)] == []
    assert len(BLOCKS) > 25  # they were found


def test_every_recipe_is_run_by_a_test_or_says_why_not() -> None:
    runs = [
        name
        for file in (Path(__file__), ROOT / "tests" / "browser" / "test_recipes.py")
        for name in names_in(file)
    ]

    assert sorted({*runs, *NOT_RUN}) == sorted(block.name for block in BLOCKS if block.name)
    assert not NOT_RUN.keys() & set(runs)


def test_every_printed_answer_has_the_members_of_the_contract() -> None:
    schemas = json.loads((ROOT / "docs" / "openapi.json").read_text())["components"]["schemas"]
    members = {name: set(schema.get("properties", ())) for name, schema in schemas.items()}
    answers = [
        json.loads(re.sub(r", …}", "}", block.code))  # the document within the feed is not printed again
        for block in BLOCKS
        if block.language == "json"
    ]
    [document] = [answer for answer in answers if "features" in answer]
    [feed_batch] = [answer for answer in answers if isinstance(answer, list)]
    [tenant] = [answer for answer in answers if "email" in answer]
    [offered] = [answer["plans"] for answer in answers if "plans" in answer]

    assert len(answers) == 4
    assert set(document) == members["Entitlements"]
    assert set(document["stripe"]) == members["AtStripe"]
    assert [set(change) for change in feed_batch] == [members["Changed"], members["Forgotten"]]
    assert set(tenant) == members["Tenant"]
    assert [set(plan) for plan in offered] == [members["OfferedPlan"]]


def names_in(file: Path) -> Iterator[str]:
    """What the tests of a file take from the documents."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "printed":
            yield ast.literal_eval(node.args[0])


# ---- keep a copy, react to a change


@dataclass(frozen=True)
class Consumer:
    """Somebody's process that keeps a copy in somebody's database."""

    service: Database
    database: str
    program: Path
    environ: dict[str, str]

    def ask(self, query: str) -> list[Any]:
        with psycopg.connect(self.database) as db:
            return db.execute(query.encode()).fetchall()

    def copies(self) -> dict[str, Any]:
        return dict(self.ask("SELECT tenant_id, body FROM tenant_billing"))

    def catches_up(self) -> None:
        """Runs until its copy is what the service has now, and is killed."""
        source = rows(self.service, "SELECT tenant_id, body FROM tenant_states WHERE body <> ''")
        documents = {row["tenant_id"]: json.loads(row["body"]) for row in source}
        with self.service.begin(SYSTEM) as connection:
            epoch = feed.overview(connection).head.epoch
        with self.running():
            wait_until(lambda: self.epoch() == epoch and self.copies() == documents, seconds=20)

    def epoch(self) -> Any:
        [(epoch,)] = self.ask("SELECT epoch FROM billing_cursor")
        return epoch

    @contextmanager
    def running(self) -> Iterator[None]:
        process = subprocess.Popen([sys.executable, self.program], env=self.environ)
        try:
            yield
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def consumer(make_app: MakeApp, database: Database, server_url: str, tmp_path: Path) -> Iterator[Consumer]:
    """Over HTTP, with a database of its own that has the printed tables and one for jobs."""
    team(database)
    with database.begin(SYSTEM) as connection:
        token, _ = tokens.create(connection, "search", (tokens.READ,), None)
    for mine in a_database(server_url, migrated=False):
        address = mine.replace("postgresql+psycopg", "postgresql")
        with psycopg.connect(address) as db, served(make_app()) as url:
            db.execute(printed("tables of the copy").encode())
            db.execute("CREATE TABLE jobs (job text, tenant_id text)")
            db.commit()
            environ = surroundings(BILLING_URL=url, BILLING_TOKEN=token, DATABASE_URL=address)
            program = tmp_path / "follow_billing.py"
            program.write_text(printed("keep a copy"))
            yield Consumer(database, address, program, environ)


def test_the_copy_follows_changes_deletions_and_a_restored_database(consumer: Consumer) -> None:
    service = consumer.service
    refresh(service, *(f"t_{number:03}" for number in range(250)))  # three pages of the client's
    consumer.catches_up()
    override(service, "t_007", "true")
    forget(service, "t_008")
    consumer.catches_up()
    followed = consumer.copies()

    with psycopg.connect(consumer.database) as db:
        db.execute("INSERT INTO tenant_billing SELECT 't_lost', epoch, body FROM tenant_billing LIMIT 1")
    with service.begin(SYSTEM) as connection:
        feed.rewind(connection)
    consumer.catches_up()

    assert (len(followed), followed["t_007"]["version"], "t_008" in followed) == (249, 2, False)
    assert consumer.copies() == followed
    assert len(consumer.ask("SELECT DISTINCT epoch FROM tenant_billing")) == 1


def test_the_copy_of_a_database_that_lost_everything_is_empty(consumer: Consumer) -> None:
    refresh(consumer.service, "t_acme", "t_globex")
    consumer.catches_up()
    rows(consumer.service, "DELETE FROM tenant_states RETURNING 1")
    with consumer.service.begin(SYSTEM) as connection:
        feed.rewind(connection)

    consumer.catches_up()

    assert consumer.copies() == {}


def test_two_processes_keep_one_copy(consumer: Consumer) -> None:
    refresh(consumer.service, *(f"t_{number:03}" for number in range(250)))

    with consumer.running():
        consumer.catches_up()


def test_a_process_that_is_behind_a_restore_drops_nothing_of_the_new_copy(
    consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh(consumer.service, "t_acme")
    consumer.catches_up()
    with consumer.service.begin(SYSTEM) as connection:
        feed.rewind(connection)
    before = consumer.epoch()
    consumer.catches_up()

    for name, value in consumer.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(ROOT / "client")
    functions: dict[str, Any] = {}
    exec(printed("keep a copy").partition("billing.follow(")[0], functions)  # noqa: S102  # ours
    functions["caught_up"](before)

    assert consumer.epoch() != before
    assert list(consumer.copies()) == ["t_acme"]


def test_a_loss_is_noticed_once_in_the_transaction_that_applies_it(consumer: Consumer) -> None:
    program = consumer.program.read_text()
    head, loop = program.split("billing.follow(")
    head = head.replace("            keep(db,", "            keep_and_react(db,")
    consumer.program.write_text(f"{head}{printed('react to a change')}\n\nbilling.follow({loop}")
    for tenant in ("t_loses", "t_keeps", "t_is_forgotten"):
        override(consumer.service, tenant, "true")
    refresh(consumer.service, "t_never_had")
    consumer.catches_up()
    before = consumer.ask("SELECT * FROM jobs")

    override(consumer.service, "t_loses", "false")
    forget(consumer.service, "t_is_forgotten")
    consumer.catches_up()
    consumer.catches_up()

    assert before == []
    assert sorted(consumer.ask("SELECT * FROM jobs")) == [
        ("switch_sso_off", "t_is_forgotten"),
        ("switch_sso_off", "t_loses"),
    ]


def forget(service: Database, tenant: str) -> None:
    with service.begin(SYSTEM) as connection:
        state.forget(connection, tenant)


# ---- settings, and code around the service


@pytest.mark.parametrize("settings", [printed("Clerk"), printed("Auth0"), printed("Nile")])
def test_the_settings_for_an_issuer_are_complete(settings: str, environ: dict[str, str]) -> None:
    filled = re.sub("<your-[a-z]+>", "acme", settings.replace("<at least 32 bytes>", "x" * 32))
    issuer = dict(line.split("=", 1) for line in filled.split())
    del environ["JWT_SECRET_KEY"]

    loaded = config.load({**environ, **issuer})

    assert loaded.jwt_tenant_claim == issuer["JWT_TENANT_CLAIM"]


def test_a_host_mounts_the_service(
    environ: dict[str, str], database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    host = Flask("host")

    exec(printed("mount"), {"app": host})  # noqa: S102  # ours
    answer = host.test_client().get("/billing/readyz")
    host.extensions["billing"].db.close()

    assert answer.status_code == 200


def test_a_client_is_generated_and_asks(
    make_app: MakeApp, database: Database, sandbox: Control, tmp_path: Path
) -> None:
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    generate = printed("generate a client").removeprefix("pipx run ")  # it is installed here
    app = make_app()
    shop = a_shop(app, database, sandbox).linked().look()
    override(database, shop.tenant, "true")
    token = shop.headers["Authorization"].removeprefix("Bearer ")
    with database.begin(SYSTEM) as connection:
        service_token, _ = tokens.create(connection, "search", (tokens.READ,), None)
    given = (
        f"token, service_token, cursor = {token!r}, {service_token!r}, ''",
        "show_sso = lambda: print('shown')",
        "apply = lambda tenant, document: print(tenant, document.features['sso'].enabled)",
    )
    use = "\n".join([*given, printed("use a generated client"), printed("follow by a generated client")])

    env = surroundings()
    subprocess.run(["bash", "-euc", generate], cwd=tmp_path, env=env, check=True, capture_output=True)
    with served(app) as url:
        done = subprocess.run(
            [sys.executable, "-c", use],
            cwd=tmp_path,
            env=env | {"BILLING_URL": url},
            capture_output=True,
            text=True,
        )

    assert (done.stdout, done.stderr) == (f"shown\n{shop.tenant} True\n", "")
