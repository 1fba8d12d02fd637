"""Hundreds of customers at once, through the door, PostgreSQL and real workers: in the end as it is at Stripe.

The histories are those of test_convergence. Stripe is a sandbox behind HTTP that shows them as they were at one
moment, in the midst of things, and then as they ended; events of before and after arrive in any order, some of
them twice and some never, and what was lost is found by asking about everybody.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import text

from billing import reconcile, sync, triage
from billing.db import SYSTEM, Database
from billing.invoices import Invoice
from billing.subscriptions import DELINQUENT, Facts, Item
from billing.triage import Choice
from sandbox.account import Account
from sandbox.resources import Call, customers
from sandbox.server import DEFAULT_KEY, Server
from sandbox.store import Store
from tests.conftest import IS_SOAK, MakeApp, rows
from tests.deliveries import a_worker, deliver, working
from tests.histories import START, Clock, History, Told, a_history
from tests.test_convergence import digested, grace, true_invoices, truth

CASES = 300
PASSES = 34 if IS_SOAK else 1
LOST = 0.1
TWICE = 0.3

UNDER_WAY = """
    SELECT (SELECT count(*) FROM inbox WHERE state <> 'settled')
         + (SELECT count(*) FROM stripe_customers WHERE wanted_at IS NOT NULL) AS number
"""


# ---- Stripe, in the midst of things


class Stage:
    """A sandbox that shows what all the histories have come to by a moment, and dates its answers by it."""

    def __init__(self, histories: Sequence[History]) -> None:
        self.histories = histories
        self.clock = Clock()
        self.store = Store(clock=self.clock)
        self.server = Server(Account(DEFAULT_KEY, self.store), 0)
        self.somebody = customers.create(Call(Store(), {}, ""))

    def show(self, moment: float) -> None:
        """Written past the store's own ways: what it shows has happened, and nothing else is to fall due."""
        with self.store.lock:
            self.clock.now = moment
            for history in self.histories:
                state = history.at(moment)
                self.store.collection("subscription").update(state.subscriptions)
                self.store.collection("invoice").update(state.invoices)
                gone = {"object": "customer", "deleted": True}
                customer = (gone if state.is_deleted else self.somebody) | {"id": history.customer}
                self.store.collection("customer")[history.customer] = customer
                for items in state.items.values():
                    self.store.collection("subscription_item").update({item["id"]: item for item in items})


@contextlib.contextmanager
def a_stage(histories: Sequence[History]) -> Iterator[Stage]:
    stage = Stage(histories)
    thread = threading.Thread(target=stage.server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield stage
    finally:
        stage.server.shutdown()
        thread.join()


def around(moment: float, seed: int) -> History:
    """A history one of whose events, any of them, is made at about that moment."""
    middle = random.Random(seed).choice(a_history(seed).told).at
    return a_history(seed, start=START + moment - middle)


def link_all(database: Database, histories: Sequence[History]) -> None:
    with database.begin(SYSTEM) as connection:
        connection.execute(
            text("INSERT INTO tenant_config (tenant_id, stripe_customer_id) VALUES (:tenant, :customer)"),
            [{"tenant": f"t_{place}", "customer": one.customer} for place, one in enumerate(histories)],
        )


def deliver_all(client: FlaskClient, told: Sequence[Told], chance: random.Random) -> None:
    """In any order, some of them twice."""
    twice = [one for one in told if chance.random() < TWICE]
    for one in chance.sample([*told, *twice], len(told) + len(twice)):
        assert deliver(client, one.body).status_code == 200


def until_settled(database: Database, *, work: Callable[[], object] = lambda: None) -> None:
    """By the worker processes there are, or by the rounds of one in this process."""
    deadline = time.monotonic() + 60
    while left := rows(database, UNDER_WAY)[0]["number"]:
        assert time.monotonic() < deadline, f"{left} events and questions are still under way"
        work()
        time.sleep(0.1)


# ---- what is held


def seconds(*columns: str) -> str:
    """Moments as Stripe writes them."""
    return ", ".join(f"extract(epoch FROM {column})::bigint AS {column}" for column in columns)


SUBSCRIPTIONS = f"""
    SELECT stripe_subscription_id AS id, facts, status, cancel_at_period_end, pause_behavior, latest_invoice_id,
           {seconds("cancel_at", "canceled_at", "ended_at", "trial_end", "pause_resumes_at", "started_at")}
    FROM subscriptions
"""
ITEMS = f"""
    SELECT stripe_subscription_id AS subscription, stripe_item_id AS id, stripe_price_id AS price,
           stripe_product_id AS product, quantity, {seconds("period_start", "period_end")}
    FROM subscription_items ORDER BY stripe_item_id COLLATE "C"
"""
INVOICES = f"""
    SELECT stripe_invoice_id AS id, stripe_subscription_id AS subscription, status, attempted,
           {seconds("finalized_at")}, 0 AS as_of
    FROM invoices
"""


class Mirror:
    """The tables, in the words of what they hold."""

    def __init__(self, database: Database) -> None:
        items: dict[str, list[Item]] = {}
        for row in rows(database, ITEMS):
            items.setdefault(row.pop("subscription"), []).append(Item(**row))
        self.facts: dict[str, Facts] = {}
        self.digests: dict[str, tuple[bytes, str]] = {}
        for row in rows(database, SUBSCRIPTIONS):
            id = row.pop("id")
            self.digests[id] = bytes(row.pop("facts")), row["status"]
            self.facts[id] = Facts(items=tuple(items[id]), **row)
        self.invoices = {row["id"]: Invoice(**row) for row in rows(database, INVOICES)}
        deleted = rows(database, "SELECT stripe_customer_id FROM stripe_customers WHERE deleted_at IS NOT NULL")
        self.deleted = {row["stripe_customer_id"] for row in deleted}


def differences(mirror: Mirror, histories: Sequence[History]) -> list[str]:
    """Where what is held is not what Stripe holds in the end."""
    found = []
    for history in histories:
        wrong = [what for what, ours, theirs in compared(mirror, history) if ours != theirs]
        found += [f"{history.life}, {history.seed}: {', '.join(wrong)}"] if wrong else []
    return found


def strangers(mirror: Mirror, histories: Sequence[History]) -> set[str]:
    """Subscriptions that are nobody's."""
    return mirror.facts.keys() - {id for history in histories for id in truth(history)}


def compared(mirror: Mirror, history: History) -> Iterator[tuple[str, object, object]]:
    theirs = true_invoices(history)
    yield "deleted", history.customer in mirror.deleted, history.end.is_deleted
    for id, facts in truth(history).items():
        latest = facts.latest_invoice_id or ""
        yield f"facts of {id}", mirror.facts.get(id), facts
        yield f"digest of {id}", mirror.digests.get(id), digested(history)[id]
        yield f"latest invoice of {id}", mirror.invoices.get(latest), theirs[latest]
        if facts.status in DELINQUENT:
            yield f"grace of {id}", grace(mirror.invoices, id), grace(theirs, id)


# ---- the claims


@pytest.mark.parametrize("number", range(PASSES))
def test_what_workers_make_of_any_delivery_is_as_it_is_at_stripe(
    database: Database, make_app: MakeApp, environ: dict[str, str], tmp_path: Path, number: int
) -> None:
    seed = int(os.environ.get("SEED", "0")) + number * CASES
    print(f"SEED={seed}")  # noqa: T201  # to see it again
    chance, noon = random.Random(seed), time.time()
    histories = [around(noon, seed + case) for case in range(CASES)]
    link_all(database, histories)
    whole, torn = histories[::2], histories[1::2]  # of these everything arrives, of those not
    arriving = [told for history in whole for told in history.told]
    arriving += [told for history in torn for told in history.told if chance.random() >= LOST]
    early = {told.id for told in arriving if told.at <= noon and chance.random() < 0.7}

    with a_stage(histories) as stage:
        settings = {"STRIPE_API_BASE": stage.server.url, "BILLING_STRIPE_READS_PER_SECOND": "100"}
        client = make_app(**settings).test_client()
        with working(environ | settings, tmp_path / "worker", processes=2):
            stage.show(noon)
            deliver_all(client, [told for told in arriving if told.id in early], chance)
            stage.show(max(history.states[-1][0] for history in histories))
            deliver_all(client, [told for told in arriving if told.id not in early], chance)
            until_settled(database)
            unasked = differences(Mirror(database), whole)
            while reconcile.meet(database, most=CASES)[0]:
                pass
            reconcile.walk(database, older=timedelta(0), most=CASES)
            until_settled(database)

    mirror = Mirror(database)
    assert (unasked, differences(mirror, histories), strangers(mirror, histories)) == ([], [], set())


def test_delivering_and_replaying_everything_again_changes_no_row(
    database: Database, make_app: MakeApp, environ: dict[str, str]
) -> None:
    chance, noon = random.Random(1), time.time()
    histories = [around(noon, seed) for seed in range(44)]
    told = [told for history in histories for told in history.told]
    link_all(database, histories)

    with a_stage(histories) as stage:
        settings = {"STRIPE_API_BASE": stage.server.url, "BILLING_STRIPE_READS_PER_SECOND": "100"}
        client = make_app(**settings).test_client()
        stage.show(max(history.states[-1][0] for history in histories))
        with a_worker(environ | settings) as worker:
            deliver_all(client, told, chance)
            until_settled(database, work=worker.work)
            before = everything(database)

            deliver_all(client, told, chance)
            replay_all(database)
            until_settled(database, work=worker.work)

    assert differences(Mirror(database), histories) == []
    assert everything(database) == before


def replay_all(database: Database) -> None:
    with database.begin(SYSTEM) as connection:
        entries, _ = triage.look(connection, Choice(to_replay=True), most=triage.LOOKED_AT)
        assert sync.replay(connection, entries)


def everything(database: Database) -> list[list[dict[str, Any]]]:
    """All columns of the mirror but when it was read, and by which way."""
    read = ("as_of", "as_of_end", "source")
    tables = ("subscriptions", "subscription_items", "invoices", "tenant_config", "tenant_links")
    found = [rows(database, f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables]
    return [[{name: row[name] for name in row if name not in read} for row in table] for table in found]
