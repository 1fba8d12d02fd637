"""A tenant is left without its customer: nothing is granted any more, nothing is lost, whatever races."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from flask import Flask

from billing import customers, enrolling, forgetting, questions, state, sync, versions
from billing.audit import By
from billing.db import SYSTEM, Database
from billing.errors import AlreadyLinked, BillingError, Busy, CheckoutUnderWay, NoCustomer, TenantNotFound
from billing.operations import grants
from billing.wiring import Billing
from sandbox.server import Control
from tests.conftest import MakeApp, link, rows
from tests.deliveries import a_subscription, an_event, at_stripe, happened, keep, make_due, take_in
from tests.shopping import Shop, a_shop, later, subscribes, work
from tests.test_links import is_waiting_for_a_lock
from tests.test_portal_options import wait_until

BY = By("ana", "not theirs")


@pytest.fixture
def app(make_app: MakeApp) -> Flask:
    return make_app()


@pytest.fixture
def shop(app: Flask, database: Database, sandbox: Control) -> Shop:
    """A tenant with a customer that pays."""
    shop = a_shop(app, database, sandbox).linked()
    subscribes(shop)
    shop.hear()
    return shop


def unlink(shop: Shop) -> tuple[str, bool]:
    billing: Billing = shop.app.extensions["billing"]
    return enrolling.unlink(billing.db, billing.stripe, billing.budget, shop.tenant, BY)


def test_a_tenant_without_its_customer_has_nothing_of_it_and_its_history_says_so(
    shop: Shop, database: Database
) -> None:
    customer, before = shop.customer, shop.document()
    assert before["access"]

    told = unlink(shop)

    after = shop.document()
    assert told == (customer, True)
    assert (after["access"], after["state"], after["stripe"]["customer"]) == (False, "none", None)
    assert after["version"] == before["version"] + 1
    assert after["features"]["seats"] == {"enabled": False, "limit": 0}
    assert at_stripe(shop.sandbox, "GET", f"customers/{customer}")["metadata"] == {}
    assert at_stripe(shop.sandbox, "GET", "subscriptions", customer=customer)["data"][0]["status"] == "active"
    [link_kept] = rows(database, "SELECT stripe_customer_id, linked_by, unlinked_at FROM tenant_links")
    assert (link_kept["stripe_customer_id"], link_kept["linked_by"]) == (customer, "unknown")
    assert link_kept["unlinked_at"]
    trail = rows(
        database, "SELECT actor, action, reason, stripe_object FROM audit_log WHERE action LIKE 'tenant.%'"
    )
    assert trail == [
        {"actor": "ana", "action": "tenant.unlink", "reason": "not theirs", "stripe_object": customer}
    ]
    with pytest.raises(NoCustomer):
        unlink(shop)


def test_what_happens_to_a_customer_of_nobodys_waits_for_the_next_owner(
    shop: Shop, app: Flask, database: Database, sandbox: Control
) -> None:
    customer = shop.customer
    unlink(shop)
    held = at_stripe(sandbox, "GET", "subscriptions", customer=customer)["data"][0]["id"]
    at_stripe(sandbox, "POST", f"subscriptions/{held}", cancel_at_period_end="true")

    for event in happened(sandbox, customer)[-1:]:
        keep(database, event)
    work(app, database)

    assert rows(database, "SELECT DISTINCT state FROM inbox WHERE settled_at IS NULL") == [{"state": "waiting"}]
    billing: Billing = app.extensions["billing"]
    enrolling.link(billing.db, billing.stripe, billing.budget, "t_next", customer, by=BY)
    work(app, database)
    assert shop.of("t_next").document()["cancel_at"]
    assert rows(database, "SELECT count(*) AS n FROM inbox WHERE settled_at IS NULL") == [{"n": 0}]
    assert not shop.document()["access"]


def test_metadata_that_names_somebody_else_is_left_and_stripe_away_undoes_nothing(
    shop: Shop, database: Database, sandbox: Control
) -> None:
    customer = shop.customer
    at_stripe(sandbox, "POST", f"customers/{customer}", **{"metadata[tenant_id]": "t_somebody"})
    assert unlink(shop) == (customer, True)
    assert at_stripe(sandbox, "GET", f"customers/{customer}")["metadata"] == {"tenant_id": "t_somebody"}

    later(database, "UPDATE tenant_config SET stripe_customer_id = :id", id=customer)
    sandbox.fault("503", path=f"/v1/customers/{customer}", times=5)
    assert unlink(shop) == (customer, False)
    assert rows(database, "SELECT stripe_customer_id FROM tenant_config") == [{"stripe_customer_id": None}]


def test_nobody_is_unlinked_while_it_buys(shop: Shop, app: Flask, database: Database, sandbox: Control) -> None:
    buyer = a_shop(app, database, sandbox).linked()
    session = buyer.opened()
    with pytest.raises(CheckoutUnderWay):
        unlink(buyer)
    sandbox.complete_checkout(session)
    later(database, "UPDATE checkouts SET state = 'complete'")  # done, and what was bought has not come
    with pytest.raises(CheckoutUnderWay):
        unlink(buyer)
    assert buyer.customer
    buyer.hear()
    later(
        database, "UPDATE checkouts SET subscription = (SELECT max(stripe_subscription_id) FROM subscriptions)"
    )

    unlink(buyer)

    assert not buyer.document()["access"]


# ---- races

OWNERS = "SELECT tenant_id FROM tenant_config WHERE stripe_customer_id = :id"
SHOWN = "SELECT tenant_id FROM tenant_states WHERE stripe_customer_id = :id"


def together(*doings: Callable[[], object]) -> list[BillingError]:
    """All at once. What was refused."""
    refused: list[BillingError] = []
    surprises: list[BaseException] = []
    ready = threading.Barrier(len(doings))

    def do(doing: Callable[[], object]) -> None:
        ready.wait()
        try:
            doing()
        except BillingError as e:
            refused.append(e)
        except BaseException as e:
            surprises.append(e)

    threads = [threading.Thread(target=do, args=[doing]) for doing in doings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert surprises == []
    return refused


def test_an_event_that_comes_while_its_customer_is_unlinked_is_applied_or_waits(
    app: Flask, database: Database, sandbox: Control
) -> None:
    """Ten times, for either may be first: it is not settled for a tenant that has lost it, nor lost itself."""
    for turn in range(10):
        tenant, customer = f"t_{turn}", f"cus_{turn}"
        link(database, tenant, customer)
        with database.begin(SYSTEM) as connection:
            questions.born(connection, customer)
        keep(database, an_event("customer.subscription.updated", a_subscription(customer, id=f"sub_{turn}")))

        together(partial(take_in, database), partial(sync.unlink, database, tenant, BY))

        if rows(database, "SELECT FROM inbox WHERE state = 'due'"):  # its customer was in other hands
            make_due(database)
            take_in(database)
        [event] = rows(database, "SELECT state FROM inbox WHERE customer = :id", id=customer)
        held = rows(database, "SELECT FROM subscriptions WHERE stripe_customer_id = :id", id=customer)
        assert (event["state"], len(held)) in [("settled", 1), ("waiting", 0)]
        [document] = rows(database, "SELECT state FROM tenant_states WHERE tenant_id = :id", id=tenant)
        assert document["state"] == "none"  # whoever was first, what it had grants nothing now


def test_of_links_and_unlinkings_at_once_one_link_at_most_is_open(
    shop: Shop, app: Flask, database: Database, sandbox: Control
) -> None:
    customer = shop.customer
    for _ in range(8):
        refused = together(
            lambda: sync.unlink(database, shop.tenant, BY),
            lambda: sync.link(database, "t_one", customer, by=BY),
            lambda: sync.link(database, "t_two", customer, by=BY),
        )
        assert all(isinstance(e, AlreadyLinked | NoCustomer | Busy) for e in refused)
        owners = rows(database, OWNERS, id=customer)
        still = rows(database, "SELECT tenant_id FROM tenant_links WHERE unlinked_at IS NULL")
        assert len(owners) <= 1
        assert owners == still or not still  # a link that came past us has no history yet
        states = rows(database, SHOWN, id=customer)
        assert states == owners
        later(database, "UPDATE tenant_config SET stripe_customer_id = NULL")
        later(database, "UPDATE tenant_links SET unlinked_at = now() WHERE unlinked_at IS NULL")
        sync.link(database, shop.tenant, customer, by=BY)


# ---- what is kept of a document's past


def test_versions_are_kept_for_a_while_and_go_with_a_tenant_that_is_forgotten(
    shop: Shop, database: Database
) -> None:
    told = rows(database, "SELECT version, cause, cardinality(events) > 0 AS has_events FROM tenant_versions")
    assert told[0] == {"version": 1, "cause": "event", "has_events": True}
    unlink(shop)
    causes = rows(database, "SELECT cause FROM tenant_versions ORDER BY version")
    assert causes[-1] == {"cause": "unlink"}

    later(database, "UPDATE tenant_versions SET at = at - interval '36 days' WHERE version = 1")
    with database.begin(SYSTEM) as connection:
        assert versions.prune(connection) == 1
        assert versions.prune(connection) == 0
    assert len(rows(database, "SELECT FROM tenant_versions")) == len(causes) - 1


def test_an_override_and_a_forgetting_at_once_leave_an_override_to_nobody(
    app: Flask, database: Database
) -> None:
    billing: Billing = app.extensions["billing"]
    for turn in range(6):
        tenant = f"t_{turn}"
        link(database, tenant, None)
        with database.begin(SYSTEM) as connection:
            state.refresh(connection, [tenant], cause="name")

        together(
            partial(grants.grant, billing, tenant, "beta", "true", BY, unsold=True),
            partial(forgetting.forget, billing.db, billing.stripe, billing.budget, tenant, BY),
        )

        kept = rows(database, "SELECT FROM overrides WHERE tenant_id = :id", id=tenant)
        known = rows(database, "SELECT FROM tenant_config WHERE tenant_id = :id", id=tenant)
        assert len(kept) <= len(known)


@pytest.mark.parametrize("is_named", [True, False])
def test_a_tenant_that_is_forgotten_while_a_grant_waits_for_it_does_not_come_back(
    app: Flask, database: Database, is_named: bool
) -> None:
    if is_named:
        link(database, "t_gone", None)
    with database.begin(SYSTEM) as connection:
        state.refresh(connection, ["t_gone"], cause="name")

    with ThreadPoolExecutor(1) as operator, database.begin(SYSTEM) as connection:
        customers.of(connection, "t_gone", keep=True)
        state.lock(connection, "t_gone")
        granting = operator.submit(
            grants.grant, app.extensions["billing"], "t_gone", "beta", "true", BY, unsold=True
        )
        wait_until(lambda: is_waiting_for_a_lock(database))
        customers.forget(connection, "t_gone", None)
        state.forget(connection, "t_gone")
        connection.commit()
        with pytest.raises(TenantNotFound):
            granting.result()

    assert rows(database, "SELECT tenant_id FROM tenant_config UNION SELECT tenant_id FROM overrides") == []


def test_a_tenant_that_is_named_for_the_first_time_while_it_is_forgotten_stays(
    app: Flask, database: Database
) -> None:
    billing: Billing = app.extensions["billing"]
    with database.begin(SYSTEM) as connection:
        state.refresh(connection, ["t_new"], cause="name")

    with ThreadPoolExecutor(1) as operator, database.begin(SYSTEM) as connection:
        state.lock(connection, "t_new")
        customers.describe(connection, "t_new", {"name": "New"})
        forgetting_it = operator.submit(
            forgetting.forget, billing.db, billing.stripe, billing.budget, "t_new", BY
        )
        wait_until(lambda: is_waiting_for_a_lock(database))
        connection.commit()
        with pytest.raises(Busy):
            forgetting_it.result()

    assert forgetting.forget(billing.db, billing.stripe, billing.budget, "t_new", BY)
    assert rows(database, "SELECT FROM tenant_config") == []
