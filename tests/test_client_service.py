"""The client against the service itself, over HTTP: what each promises is what the other goes by."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from werkzeug.serving import BaseWSGIServer, make_server

from billing import documents, feed, tokens
from billing.db import SYSTEM, Database
from client.billing_client import TIMEOUT_SECONDS, BillingClient
from sandbox.server import Control
from tests.conftest import MakeApp, create_customer, link, rows
from tests.test_client_feed import Copy, eventually, following, running
from tests.test_commands import say
from tests.test_state import override, refresh, team

ACME = "t_acme"


@dataclass
class Clock:
    """The client's; the service goes by the database's."""

    seconds: float = 1000.0

    def __call__(self) -> float:
        return self.seconds


@dataclass
class House:
    """The service at work, and one that asks it."""

    make_app: MakeApp
    database: Database
    token: str
    clock: Clock = field(default_factory=Clock)
    port: int = 0

    def __post_init__(self) -> None:
        self._app = self.make_app()
        self.open()
        self.billing = BillingClient(
            f"http://127.0.0.1:{self.port}", self.token, {"sso": False, "seats": 3}, clock=self.clock
        )

    def open(self) -> None:
        self._server: BaseWSGIServer = make_server("127.0.0.1", self.port, self._app, threaded=True)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def copies(self) -> dict[str, object]:
        """What the service holds of all its tenants."""
        known = rows(
            self.database, "SELECT tenant_id, body FROM tenant_states WHERE body <> '' AND as_of IS NOT NULL"
        )
        return {row["tenant_id"]: json.loads(row["body"]) for row in known}


@pytest.fixture
def house(make_app: MakeApp, database: Database) -> Iterator[House]:
    team(database)
    link(database, ACME, None)
    refresh(database, ACME)
    with database.begin(SYSTEM) as connection:
        token, _ = tokens.create(connection, "search", (tokens.READ,), None)
    house = House(make_app, database, token)
    yield house
    house.billing.close()
    house.close()


@contextmanager
def as_long_as(house: House, loop: Callable[..., None]) -> Iterator[None]:
    with running(loop, every=0.05):
        eventually(lambda: house.billing._in_step_until > 0)
        yield


def test_a_document_is_read_looked_up_and_read_anew(house: House) -> None:
    seen = [house.billing.get(ACME), house.billing.get(ACME)]
    house.clock.seconds += 31
    seen.append(house.billing.get(ACME))
    override(house.database, ACME, "true")
    house.clock.seconds += 31
    seen.append(house.billing.get(ACME))

    assert [document.origin for document in seen] == ["changed", "fresh", "revalidated", "changed"]
    assert [document.version for document in seen] == [1, 1, 1, 2]
    assert [document.features["sso"].enabled for document in seen] == [False, False, False, True]
    assert dict(seen[-1].body) == house.copies()[ACME]
    assert house.billing.counters()["errors"] == 0


def test_a_version_somebody_has_seen_is_asked_for(house: House) -> None:
    house.billing.get(ACME)
    override(house.database, ACME, "true")

    assert not house.billing.enabled(ACME, "sso")
    assert house.billing.enabled(ACME, "sso", at_least=2)


def test_what_an_operator_granted_for_seconds_is_kept_no_longer(house: House) -> None:
    override(house.database, ACME, "true", expires_at=time.time() + 20)
    assert house.billing.enabled(ACME, "sso")
    house.close()

    house.clock.seconds += 18
    assert house.billing.enabled(ACME, "sso")
    house.clock.seconds += 3
    assert not house.billing.enabled(ACME, "sso")
    house.open()


def test_what_an_operator_granted_for_seconds_the_feed_keeps_no_longer(house: House) -> None:
    override(house.database, ACME, "true", expires_at=time.time() + 20)
    with as_long_as(house, house.billing.keep_warm):
        assert house.billing.get(ACME).origin == "fresh"
    house.close()

    house.clock.seconds += 17
    assert house.billing.enabled(ACME, "sso")
    house.clock.seconds += 4
    assert not house.billing.enabled(ACME, "sso")
    house.open()


@pytest.mark.parametrize("tenant", ["a/b", "t %25\u00e9", "../t_acme", "t_acme/", "T_ACME"])
def test_each_id_is_one_tenants_or_nobodys(house: House, tenant: str) -> None:
    assert house.billing.get(tenant).origin == "fallback"
    link(house.database, tenant, None)
    refresh(house.database, tenant)
    house.clock.seconds += 6

    assert house.billing.get(tenant).tenant_id == tenant
    assert house.billing.get(tenant).version == 1
    assert house.billing.counters()["errors"] == 0


def test_a_tenant_nobody_knows_has_what_is_declared_and_leaves_no_row(house: House) -> None:
    assert house.billing.limit("t_nobody", "seats") == 3

    assert house.billing.counters()["errors"] == 0
    assert rows(house.database, "SELECT FROM tenant_states WHERE tenant_id = 't_nobody'") == []


def test_a_service_that_restarts_takes_nothing_away(house: House) -> None:
    override(house.database, ACME, "true")
    house.billing.get(ACME)
    house.clock.seconds += 31
    house.close()
    assert house.billing.get(ACME).origin == "stale"
    house.open()
    house.clock.seconds += 5

    assert house.billing.get(ACME).origin == "revalidated"


def test_a_stripe_that_is_slow_about_one_tenant_takes_nobody_elses_answer_away(
    house: House, sandbox: Control
) -> None:
    """The service gives up, and says so, while the client still listens: it waits for less long than that."""
    link(house.database, "t_new", create_customer(sandbox))
    sandbox.fault("hang")

    assert documents.KNOW_SECONDS < TIMEOUT_SECONDS / 1.5  # its own work takes time, too
    assert house.billing.get("t_new").origin == "fallback"
    assert house.billing.get(ACME).origin == "changed"
    assert house.billing.counters()["errors"] == 1


def test_a_token_that_was_revoked_leaves_the_last_copy(house: House) -> None:
    override(house.database, ACME, "true")
    house.billing.get(ACME)
    say(house.make_app, "tokens", "revoke", "search")
    house.clock.seconds += 31

    assert house.billing.enabled(ACME, "sso")
    assert house.billing.counters()["errors"] == 1


def test_a_copy_by_the_feed_is_the_service_in_small(house: House, tmp_path: Path) -> None:
    copy = Copy(tmp_path / "consumer.db")
    for n in range(230):
        link(house.database, f"t_{n}", None)
    refresh(house.database, *(f"t_{n}" for n in range(230)))

    with following(house.billing, copy):
        eventually(lambda: copy.documents() == house.copies())
        override(house.database, "t_7", "true")
        say(house.make_app, "tenants", "forget", "t_8", "--reason", "moved away", "--yes")
        eventually(lambda: "t_8" not in copy.documents())
        eventually(lambda: copy.documents() == house.copies())
        before = len(copy.applied)
        with house.database.begin(SYSTEM) as connection:
            feed.rewind(connection)
        eventually(lambda: sum(len(batch.changes) for batch in copy.applied[before:]) >= 230)  # all of it again
        eventually(lambda: copy.documents() == house.copies())

    assert len(copy.documents()) == 230
    assert house.billing.counters()["errors"] == 0


def test_reads_need_no_request_while_the_feed_is_followed(house: House) -> None:
    with as_long_as(house, house.billing.keep_warm):
        assert house.billing.get(ACME).origin == "fresh"
        override(house.database, ACME, "true")
        eventually(lambda: house.billing.enabled(ACME, "sso"))
        say(house.make_app, "tenants", "forget", ACME, "--reason", "moved away", "--yes")
        eventually(lambda: house.billing.get(ACME).origin == "fallback")

    assert house.billing.counters()["changed"] == house.billing.counters()["errors"] == 0
