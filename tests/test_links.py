"""Whose a Stripe customer is: how it becomes so, who waits until then, and what never makes it so."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from flask.testing import FlaskClient

from billing import inbox, questions, sync
from billing.db import SYSTEM, Database, Scope
from billing.errors import AlreadyLinked
from sandbox.server import Control
from tests.conftest import create_customer, link, rows
from tests.deliveries import (
    a_price,
    a_subscription,
    a_worker,
    an_event,
    at_stripe,
    deliver,
    happened,
    keep,
    subscribe,
    take_in,
    until_quiet,
)
from tests.test_portal_options import wait_until

AT = 1_790_000_000
UPDATED = "customer.subscription.updated"
COMPLETED = "checkout.session.completed"


@pytest.fixture
def other(database_url: str) -> Iterator[Database]:
    """Another process's way in."""
    database = Database(database_url, pool_size=2)
    yield database
    database.close()


def tell(database: Database, customer: str, *, at: int = AT, **facts: Any) -> None:
    keep(database, an_event(UPDATED, a_subscription(customer, **facts), created=at))


def states(database: Database) -> list[str]:
    """Of the events there is a use for."""
    found = rows(database, "SELECT state FROM inbox WHERE reason IS NULL ORDER BY id")
    return [row["state"] for row in found]


def owners(database: Database) -> dict[str, str]:
    found = rows(database, "SELECT tenant_id, stripe_customer_id AS customer FROM tenant_config ORDER BY 1")
    return {row["tenant_id"]: row["customer"] for row in found}


def is_wanted(database: Database, customer: str) -> bool:
    found = rows(
        database,
        "SELECT FROM stripe_customers WHERE stripe_customer_id = :customer AND wanted_at IS NOT NULL",
        customer=customer,
    )
    return bool(found)


# ---- events of nobody's


def test_events_of_a_customer_nobody_owns_wait_and_change_nothing(database: Database, customer: str) -> None:
    tell(database, customer)

    take_in(database)

    assert states(database) == ["waiting"]
    assert rows(database, "SELECT FROM subscriptions") == []
    assert not is_wanted(database, customer)


def test_linking_wakes_what_has_waited_and_has_stripe_asked(database: Database, customer: str) -> None:
    tell(database, customer)
    take_in(database)

    woken = sync.link(database, "t_acme", customer, by="command")

    assert (woken, states(database)) == (1, ["due"])
    assert is_wanted(database, customer)
    take_in(database)
    assert states(database) == ["settled"]


# ---- an event and a link that meet


def test_a_link_waits_for_the_worker_that_has_read_that_nobody_owns_the_customer(
    database: Database, other: Database, customer: str
) -> None:
    """Both take the customer's lock: the event is waiting, for all to see, before it is woken."""
    tell(database, customer)
    with database.begin(SYSTEM) as connection:
        [claimed] = inbox.claim(connection, most=1, lease=timedelta(seconds=20))
    with ThreadPoolExecutor(1) as operator, database.begin(SYSTEM) as connection:
        questions.lock(connection, customer)
        linking = operator.submit(sync.link, other, "t_acme", customer, by="command")
        wait_until(lambda: is_waiting_for_a_lock(database))
        inbox.wait(connection, inbox.still_mine(connection, [claimed]))
        connection.commit()

        assert linking.result() == 1

    assert states(database) == ["due"]


def test_a_worker_waits_for_the_link_that_is_being_made(
    database: Database, other: Database, customer: str
) -> None:
    tell(database, customer)
    with ThreadPoolExecutor(1) as worker, other.begin(SYSTEM) as connection:
        questions.lock(connection, customer)
        applying = worker.submit(take_in, database)
        wait_until(lambda: is_waiting_for_a_lock(other))
        rows(database, "INSERT INTO tenant_config VALUES ('t_acme', :c) RETURNING 1", c=customer)
        connection.commit()

        applying.result()

    assert states(database) == ["settled"]


def is_waiting_for_a_lock(database: Database) -> bool:
    return bool(
        rows(
            database,
            "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
        )
    )


def test_a_row_that_others_wrote_is_found_by_the_sweep(database: Database, customer: str) -> None:
    tell(database, customer)
    tell(database, "cus_of_nobody")
    take_in(database)
    link(database, "t_acme", customer)

    with database.begin(SYSTEM) as connection:
        swept = inbox.sweep(connection)

    assert (swept, states(database)) == (1, ["due", "waiting"])


def test_a_worker_sweeps_by_itself(
    environ: dict[str, str], database: Database, customer: str, sandbox: Control
) -> None:
    tell(database, customer)
    take_in(database)
    link(database, "t_acme", customer)

    with a_worker(environ) as worker:
        worker.work()
        until_quiet(worker)

    assert states(database)[0] == "settled"


# ---- moving


def test_a_customer_belongs_to_one_tenant(database: Database, acme: str, customer: str) -> None:
    with pytest.raises(AlreadyLinked):
        sync.link(database, "t_globex", customer, by="command", replace=True)

    assert owners(database) == {acme: customer}


def test_a_tenant_keeps_its_customer_unless_told_otherwise(
    database: Database, acme: str, customer: str
) -> None:
    assert sync.link(database, acme, "cus_other", by="command") is None

    assert owners(database) == {acme: customer}


def test_linking_again_what_is_linked_only_asks(database: Database, customer: str) -> None:
    sync.link(database, "t_acme", customer, by="command")

    assert sync.link(database, "t_acme", customer, by="command") == 0

    assert len(rows(database, "SELECT FROM tenant_links")) == 1


def test_a_tenant_that_moves_on_has_its_history_and_the_old_customers_events_wait(database: Database) -> None:
    sync.link(database, "t_acme", "cus_old", by="command")
    tell(database, "cus_old", id="sub_old")
    take_in(database)

    sync.link(database, "t_acme", "cus_new", by="command", replace=True)
    tell(database, "cus_old", at=AT + 50, id="sub_old", status="past_due")
    tell(database, "cus_new", at=AT + 50, id="sub_new")
    take_in(database)

    assert states(database) == ["settled", "waiting", "settled"]
    assert rows(
        database,
        "SELECT stripe_customer_id AS c, unlinked_at IS NULL AS current FROM tenant_links ORDER BY id",
    ) == [{"c": "cus_old", "current": False}, {"c": "cus_new", "current": True}]


def test_what_a_former_customer_has_is_not_the_tenants(database: Database) -> None:
    sync.link(database, "t_acme", "cus_old", by="command")
    tell(database, "cus_old", id="sub_old")
    take_in(database)
    sync.link(database, "t_acme", "cus_new", by="command", replace=True)
    tell(database, "cus_new", id="sub_new")
    take_in(database)

    with database.begin(Scope.tenant("t_acme")) as connection:
        seen = connection.exec_driver_sql("SELECT stripe_subscription_id FROM subscriptions").scalars().all()

    assert seen == ["sub_new"]


# ---- Checkout


def a_session(sandbox: Control, reference: str | None, **params: Any) -> str:
    """A Checkout session, opened by somebody at Stripe."""
    wanted = {"client_reference_id": reference} if reference else {}
    session = at_stripe(
        sandbox,
        "POST",
        "checkout/sessions",
        mode="subscription",
        success_url="https://app.example.com",
        **{"line_items[0][price]": a_price(sandbox), "line_items[0][quantity]": 1},
        **wanted,
        **params,
    )
    return str(session["id"])


def completed(client: FlaskClient, sandbox: Control, session: str) -> None:
    """Pay on Stripe's page and deliver all that came of it."""
    customer: str = sandbox.complete_checkout(session)["customer"]
    for event in happened(sandbox, customer):
        assert deliver(client, event).status_code == 200


def test_a_checkout_makes_its_customer_nobodys(
    client: FlaskClient, database: Database, acme: str, customer: str, sandbox: Control
) -> None:
    """Ours begin with a customer that is linked already, so no event has to link anybody."""
    for reference in (acme, "t_globex", None):
        completed(client, sandbox, a_session(sandbox, reference))

    take_in(database)

    assert owners(database) == {acme: customer}
    assert set(states(database)) == {"waiting"}


# ---- what proves nothing


def test_an_email_address_links_nobody(
    client: FlaskClient, database: Database, acme: str, customer: str, sandbox: Control
) -> None:
    """Both customers say ada@acme.example."""
    namesake = create_customer(sandbox)
    subscribe(sandbox, namesake)
    for event in happened(sandbox, namesake):
        deliver(client, event)

    take_in(database)

    assert owners(database) == {acme: customer}
    assert set(states(database)) == {"waiting"}


def test_metadata_binds_and_moves_nobody(database: Database, acme: str, customer: str) -> None:
    says: dict[str, Any] = {"metadata": {"tenant_id": "t_globex"}, "client_reference_id": "t_globex"}
    tell(database, customer, **says)
    tell(database, "cus_of_nobody", **says)

    take_in(database)

    assert owners(database) == {acme: customer}
    assert states(database) == ["settled", "waiting"]
