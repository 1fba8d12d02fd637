"""What no event told us is found all the same: undelivered events, and customers nobody asked about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from flask.testing import FlaskClient
from sqlalchemy import text

from billing import questions, reconcile
from billing.budget import Budget
from billing.db import SYSTEM, Database
from billing.stripe_api import Stripe
from sandbox.server import Control, running
from tests.conftest import link, rows
from tests.deliveries import (
    a_worker,
    at_stripe,
    deliver,
    happened,
    make_due,
    subscribe,
    until_quiet,
)
from tests.test_portal_options import wait_until

Fetch = Callable[[], int]


@pytest.fixture(scope="module")
def stripe_stand_in() -> Iterator[Control]:
    """A sandbox of our own: what is never delivered in it would be fetched in other tests, too."""
    with running() as control:
        yield control


@pytest.fixture
def fetch(database: Database, sandbox: Control) -> Fetch:
    """Fetch what was not delivered since the test began."""
    stripe, since = Stripe(sandbox.key, base=sandbox.url), sandbox.now()
    return lambda: reconcile.undelivered(database, stripe, Budget(database, 100), livemode=False, since=since)


@pytest.fixture
def deaf(sandbox: Control) -> None:
    """An endpoint to which nothing is ever delivered."""
    endpoint = {"url": "http://127.0.0.1:9/webhooks/stripe", "enabled_events[0]": "*"}
    at_stripe(sandbox, "POST", "webhook_endpoints", **endpoint)
    sandbox.webhooks(drop=1.0)


def kept_of(database: Database, customer: str) -> list[str]:
    found = rows(database, "SELECT type FROM inbox WHERE customer = :customer ORDER BY type", customer=customer)
    return [row["type"] for row in found]


def is_wanted(database: Database, customer: str) -> bool:
    found = rows(
        database,
        "SELECT FROM stripe_customers WHERE stripe_customer_id = :customer AND wanted_at IS NOT NULL",
        customer=customer,
    )
    return bool(found)


@pytest.mark.usefixtures("deaf")
def test_events_that_were_never_delivered_are_fetched_and_settled(
    environ: dict[str, str], database: Database, acme: str, customer: str, sandbox: Control, fetch: Fetch
) -> None:
    id = subscribe(sandbox, customer)["id"]

    assert fetch() > 0
    with a_worker(environ) as worker:
        until_quiet(worker)
        make_due(database)
        until_quiet(worker)

    assert kept_of(database, customer) == sorted(event["type"] for event in happened(sandbox, customer))
    assert rows(database, "SELECT stripe_subscription_id AS id, status FROM subscriptions") == [
        {"id": id, "status": "active"}
    ]
    assert rows(database, "SELECT FROM inbox WHERE state <> 'settled' AND customer = :c", c=customer) == []


@pytest.mark.usefixtures("deaf")
def test_what_is_here_already_is_not_fetched_twice(
    client: FlaskClient, database: Database, acme: str, customer: str, sandbox: Control, fetch: Fetch
) -> None:
    subscribe(sandbox, customer)
    first, *_ = happened(sandbox, customer)
    deliver(client, first)

    fetch()
    again = fetch()

    assert again == 0
    assert kept_of(database, customer) == sorted(event["type"] for event in happened(sandbox, customer))


@pytest.mark.usefixtures("deaf")
def test_an_event_that_comes_after_it_was_fetched_is_acknowledged_and_kept_once(
    client: FlaskClient, database: Database, acme: str, customer: str, sandbox: Control, fetch: Fetch
) -> None:
    at_stripe(sandbox, "DELETE", f"customers/{customer}")
    fetch()
    [deleted] = [event for event in happened(sandbox, customer) if event["type"] == "customer.deleted"]

    assert deliver(client, deleted).status_code == 200

    assert kept_of(database, customer).count("customer.deleted") == 1


@pytest.mark.usefixtures("deaf")
def test_all_pages_of_what_was_not_delivered_are_fetched(
    database: Database, customer: str, sandbox: Control, fetch: Fetch
) -> None:
    for n in range(120):
        sandbox.happen("customer.deleted", {"id": f"cus_of_a_page_{n}", "object": "customer"})

    assert fetch() >= 120


def test_a_worker_fetches_what_was_not_delivered_by_itself(
    environ: dict[str, str], database: Database, acme: str, customer: str, sandbox: Control, deaf: None
) -> None:
    subscribe(sandbox, customer)

    with a_worker(environ) as worker:
        until_quiet(worker)

    assert "customer.subscription.created" in kept_of(database, customer)


def test_a_customer_whose_events_were_all_lost_is_right_after_a_walk(
    environ: dict[str, str], database: Database, acme: str, customer: str, sandbox: Control
) -> None:
    id = subscribe(sandbox, customer)["id"]

    assert reconcile.walk(database) == 1
    with a_worker(environ) as worker:
        until_quiet(worker)
    before = rows(database, "SELECT stripe_subscription_id AS id, status FROM subscriptions")
    at_stripe(sandbox, "DELETE", f"subscriptions/{id}")
    reconcile.walk(database, older=timedelta())
    with a_worker(environ) as worker:
        until_quiet(worker)

    after = rows(database, "SELECT stripe_subscription_id AS id, status FROM subscriptions")
    assert (before, after) == ([{"id": id, "status": "active"}], [{"id": id, "status": "canceled"}])


def test_a_walk_goes_to_those_nobody_asked_about_for_longest(database: Database) -> None:
    ages = {"cus_never": None, "cus_old": "30 hours", "cus_older": "40 hours", "cus_fresh": "1 hour"}
    for customer, age in ages.items():
        link(database, f"t_of_{customer}", customer)
        if age:
            with database.begin(SYSTEM) as connection:
                questions.lock(connection, customer)
            rows(
                database,
                "UPDATE stripe_customers SET answered_at = now() - CAST(:age AS interval)"
                " WHERE stripe_customer_id = :customer RETURNING 1",
                age=age,
                customer=customer,
            )

    found = reconcile.walk(database, most=2)

    assert found == 2
    assert [customer for customer in ages if is_wanted(database, customer)] == ["cus_never", "cus_older"]


def test_a_walk_leaves_those_alone_whom_nobody_has_linked(database: Database, customer: str) -> None:
    with database.begin(SYSTEM) as connection:
        questions.lock(connection, customer)
    link(database, "t_without", None)
    link(database, "t_empty", "")

    assert reconcile.walk(database) == 0


def test_a_listing_that_takes_long_is_not_begun_again_and_keeps_nobody_from_asking(
    database: Database, environ: dict[str, str], acme: str, customer: str, sandbox: Control
) -> None:
    with a_worker(environ) as worker:
        sandbox.fault("hang", path="/v1/events", seconds=2, times=None)
        for _ in range(10):
            with database.begin(SYSTEM) as connection:
                connection.execute(text("UPDATE chores SET due_at = now() WHERE name = 'undelivered'"))
            for chore in worker._chores:
                chore.next_look = 0.0
            worker.work()
        with database.begin(SYSTEM) as connection:
            questions.want(connection, [customer])

        wait_until(lambda: worker.work() or not is_wanted(database, customer))

        listings = [call for call in sandbox.requests() if call["path"] == "/v1/events"]
        sandbox.clear()
    assert len(listings) == 1
