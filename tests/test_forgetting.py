"""`flask billing tenants forget`: what is deleted, what stays, when it is refused, what consumers hear."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import Result
from flask.testing import FlaskClient
from sqlalchemy import text

from billing import checkouts, clock, forgetting, inbox, questions, state, subscriptions, sync
from billing.db import SYSTEM, Database
from sandbox.server import Control
from tests.conftest import MakeApp, create_customer, link, rows
from tests.deliveries import a_subscription, an_event, an_invoice, at_stripe, keep, subscribe, take_in
from tests.test_changes import Ask, a_consumer, ask, ids, subjects
from tests.test_commands import NO_WAY_TO_STRIPE, say
from tests.test_feed import Copy, end, other, page
from tests.test_portal_options import wait_until
from tests.test_state import (
    answered,
    document,
    lose_the_connection,
    override,
    refresh,
    team,
    told,
    versioned,
    waits,
)
from tests.tokens import a_token

__all__ = ["ask", "other"]  # fixtures

OF_A_TENANT = ("tenant_config", "tenant_links", "overrides", "customer_intents", "checkouts", "checkout_turns")
OF_A_CUSTOMER = ("subscriptions", "subscription_items", "invoices", "active_entitlements")


def forget(make_app: MakeApp, tenant: str = "t_acme", reason: str = "asked us to", **settings: str) -> Result:
    return say(make_app, "tenants", "forget", tenant, "--reason", reason, "--yes", **settings)


def left(database: Database, tables: tuple[str, ...]) -> dict[str, int]:
    """How many rows each of these has that has any."""
    counted = {table: rows(database, f"SELECT count(*) AS n FROM {table}")[0]["n"] for table in tables}
    return {table: number for table, number in counted.items() if number}


def had(database: Database, customer: str, tenant: str = "t_acme") -> None:
    """A life here: a subscription that is over, its invoice, an entitlement, an override, an old Checkout."""
    team(database)
    with database.begin(SYSTEM) as connection:
        questions.want(connection, [customer])
    answered(database, customer)
    keep(database, an_event("invoice.paid", an_invoice(customer)))
    told(database, customer, status="canceled")
    override(database, tenant, "true")
    for statement in (
        "INSERT INTO tenant_links (tenant_id, stripe_customer_id, linked_by) VALUES (:t, :c, 'test')",
        "INSERT INTO active_entitlements VALUES (:c, 'sso')",
        "INSERT INTO customer_intents (id, tenant_id, closed_at) VALUES ('i_1', :t, now())",
        "INSERT INTO checkout_turns VALUES (:t, 'somebody', now())",
        "INSERT INTO checkouts (id, tenant_id, stripe_customer_id, wish, params, state)"
        " VALUES ('c_1', :t, :c, '{}', '{}', 'failed')",
    ):
        rows(database, statement + " RETURNING 1", t=tenant, c=customer)


# ---- what is gone, and what stays


def test_nothing_of_the_tenant_is_left_but_the_trail_and_its_place_in_the_feed(
    database: Database, make_app: MakeApp, acme: str, customer: str
) -> None:
    had(database, customer)
    assert len(left(database, OF_A_TENANT + OF_A_CUSTOMER)) == 10

    result = forget(make_app)

    assert (result.exit_code, result.output) == (0, "t_acme is forgotten; the feed says so.\n")
    assert left(database, OF_A_TENANT + OF_A_CUSTOMER) == {}
    [row] = rows(database, "SELECT * FROM tenant_states")
    assert {name for name, value in row.items() if value not in (None, "", b"", {})} == {
        *("tenant_id", "version", "edition", "position", "fed", "changed_at"),
    }
    [entry] = rows(database, "SELECT * FROM audit_log")
    assert (entry["tenant_id"], entry["actor"], entry["action"]) == (acme, "command", "tenant.forget")
    assert (entry["reason"], entry["outcome"], entry["stripe_object"]) == ("asked us to", "ok", customer)


def test_stripe_is_left_as_it_is(
    database: Database, make_app: MakeApp, acme: str, customer: str, sandbox: Control
) -> None:
    team(database)
    before = len(sandbox.requests())

    assert forget(make_app).exit_code == 0

    assert {request["method"] for request in sandbox.requests()[before:]} == {"GET"}


def test_another_tenants_things_stay(
    database: Database, make_app: MakeApp, acme: str, customer: str, sandbox: Control
) -> None:
    """One whose customer was this tenant's before, too."""
    other = create_customer(sandbox)
    link(database, "t_other", other)
    had(database, customer)
    had_before(database, other)
    answered(database, other)
    told(database, other, id="sub_other")
    before = document(database, "t_other")

    assert forget(make_app).exit_code == 0

    assert document(database, "t_other") == before
    assert left(database, ("tenant_config", "subscriptions")) == {"tenant_config": 1, "subscriptions": 1}


# ---- consumers


def test_the_feed_tells_of_it_with_a_deletion_in_its_turn(
    database: Database, make_app: MakeApp, acme: str, customer: str, ask: Ask
) -> None:
    had(database, customer)
    refresh(database, "t_other")
    last = ids(ask())[-1]

    forget(make_app)

    [event] = ask(last).json or []
    assert event.pop("id") > last
    assert event.pop("time")
    assert event == {
        "specversion": "1.0",
        "source": "/api/changes",
        "type": "billing.tenant.state",
        "subject": acme,
        "method": "DELETE",
    }
    assert subjects(ask()) == ["t_other", acme]


def test_a_copy_drops_the_tenant_and_has_it_again_when_it_comes_back_under_a_later_version(
    database: Database, make_app: MakeApp, acme: str, customer: str, client: FlaskClient
) -> None:
    had(database, customer)
    copy = Copy(database)
    copy.poll()
    before = json.loads(copy.tenants[acme])["version"]

    forget(make_app)
    copy.poll()
    gone = dict(copy.tenants)
    answer = client.get("/api/entitlements", headers={"Authorization": f"Bearer {a_token(tenant_id=acme)}"})
    copy.poll()

    assert gone == {}
    assert answer.status_code == 200
    assert answer.json == json.loads(copy.tenants[acme])
    assert (answer.json or {})["version"] == before + 2
    assert (answer.json or {})["stripe"]["customer"] is None


def test_the_deletion_is_heard_of_though_the_tenant_is_linked_again_before_anybody_asks(
    database: Database, make_app: MakeApp, acme: str, customer: str, sandbox: Control
) -> None:
    """What it has now is not known before Stripe has told."""
    had(database, customer)
    last = end(database)
    forget(make_app)
    new = create_customer(sandbox)
    mine = {"Authorization": f"Bearer {a_token(tenant_id=acme)}"}

    sync.link(database, acme, new, by="test")
    unknown = make_app(**NO_WAY_TO_STRIPE).test_client().get("/api/entitlements", headers=mine)
    [gone] = page(database, last).entries
    rows(database, "UPDATE stripe_customers SET wanted_at = now() RETURNING 1")
    known = make_app().test_client().get("/api/entitlements", headers=mine)
    [back] = page(database, gone.id).entries

    assert (unknown.status_code, (unknown.json or {})["code"]) == (503, "state_unknown")
    assert (gone.tenant_id, gone.body, back.tenant_id) == (acme, "", acme)
    assert known.json == json.loads(back.body)
    assert json.loads(back.body)["stripe"]["customer"] == new


def test_a_service_that_asks_for_a_forgotten_tenant_does_not_bring_it_back(
    database: Database, make_app: MakeApp, acme: str, customer: str, client: FlaskClient
) -> None:
    had(database, customer)
    forget(make_app)
    gone = rows(database, "SELECT * FROM tenant_states")

    answer = client.get(f"/api/tenants/{acme}/entitlements", headers=a_consumer(database))

    assert (answer.status_code, (answer.json or {})["code"]) == (404, "tenant_not_found")
    assert rows(database, "SELECT * FROM tenant_states") == gone


def test_nothing_of_ours_brings_a_forgotten_tenant_back(
    database: Database, make_app: MakeApp, acme: str, customer: str
) -> None:
    """Not a new edition, not the clock, not a late event, nor whoever gets its customer."""
    had(database, customer)
    forget(make_app)
    gone = rows(database, "SELECT * FROM tenant_states")

    team(database, **{"feature.new": "true"})
    for step in (clock.catch_up, clock.strike, clock.enter):
        assert step(database) == 0
    keep(database, an_event("invoice.paid", an_invoice(customer)))
    take_in(database)
    sync.link(database, "t_heir", customer, by="test")

    assert rows(database, "SELECT * FROM tenant_states WHERE tenant_id = 't_acme'") == gone


def test_what_the_heir_of_a_customer_has_is_asked_of_stripe_again(
    database: Database, make_app: MakeApp, acme: str, customer: str
) -> None:
    had(database, customer)
    forget(make_app)

    sync.link(database, "t_heir", customer, by="test")

    [row] = rows(database, "SELECT as_of, position FROM tenant_states WHERE tenant_id = 't_heir'")
    assert row == {"as_of": None, "position": None}


def test_an_answer_under_way_brings_nothing_back(
    database: Database, make_app: MakeApp, acme: str, customer: str
) -> None:
    """Of a customer that the tenant had before, say, which is not asked about first."""
    had(database, customer)
    had_before(database, "cus_former")
    with database.begin(SYSTEM) as connection:
        questions.want(connection, ["cus_former"])
        [question] = questions.put(connection, seen=10**9, most=1, customer="cus_former")
    assert forget(make_app).exit_code == 0
    one = subscriptions.read(a_subscription("cus_former"))

    held = sync.hold(database, question, sync.Answer(subscriptions={one.id: (one, 1, 2)}))

    assert not held
    assert left(database, OF_A_CUSTOMER) == {}


def test_of_a_customer_that_is_forgotten_as_somebody_is_about_to_ask_nothing_is_kept(
    database: Database, make_app: MakeApp, acme: str, customer: str
) -> None:
    had(database, customer)
    forget(make_app)
    with database.begin(SYSTEM) as connection:  # by who had read whose it is before
        questions.want(connection, [customer])
        [question] = questions.put(connection, seen=10**9, most=1, customer=customer)
    one = subscriptions.read(a_subscription(customer))

    sync.hold(database, question, sync.Answer(subscriptions={one.id: (one, 1, 2)}))

    assert left(database, OF_A_CUSTOMER) == {}
    assert rows(database, "SELECT wanted_at, answered_at FROM stripe_customers") == [
        {"wanted_at": None, "answered_at": None}
    ]


def had_before(database: Database, customer: str, tenant: str = "t_acme") -> None:
    """Another customer was the tenant's once."""
    rows(
        database,
        "INSERT INTO tenant_links (tenant_id, stripe_customer_id, linked_by, unlinked_at)"
        " VALUES (:t, :c, 'test', now()) RETURNING 1",
        t=tenant,
        c=customer,
    )


def test_events_that_waited_for_an_answer_wait_for_an_owner(
    database: Database, make_app: MakeApp, acme: str, customer: str
) -> None:
    had(database, customer)
    former = "cus_former"
    had_before(database, former)
    keep(database, an_event("customer.subscription.updated", a_subscription(former)))
    rows(database, "UPDATE inbox SET state = 'asking', reason = 'x' WHERE state = 'due' RETURNING 1")

    forget(make_app)

    assert rows(database, "SELECT state, reason FROM inbox WHERE customer = :c", c=former) == [
        {"state": "waiting", "reason": None}
    ]


def test_what_was_buried_of_it_goes_from_the_inbox_in_its_time_like_the_rest(
    database: Database, make_app: MakeApp, acme: str, customer: str
) -> None:
    had(database, customer)
    keep(database, an_event("invoice.paid", an_invoice("cus_another")))
    rows(
        database,
        "UPDATE inbox SET state = 'buried', reason = 'x', settled_at = now(), received_at = :past RETURNING 1",
        past=datetime.now(UTC) - inbox.KEPT - timedelta(hours=1),
    )

    forget(make_app)
    with database.begin(SYSTEM) as connection:
        inbox.prune(connection, after=0)

    assert rows(database, "SELECT state, customer FROM inbox") == [
        {"state": "buried", "customer": "cus_another"}
    ]


# ---- when it is refused


@pytest.mark.parametrize("status", ["active", "trialing", "past_due", "unpaid", "paused", "incomplete", "odd"])
def test_a_tenant_whose_subscription_is_not_over_is_not_forgotten(
    database: Database, make_app: MakeApp, acme: str, customer: str, sandbox: Control, status: str
) -> None:
    """Also where Stripe does not list it: a row that is missing there proves nothing."""
    had(database, customer)
    subscribe(sandbox, customer)
    with database.begin(SYSTEM) as connection:
        questions.want(connection, [customer])
    before = left(database, OF_A_TENANT)
    rows(database, "UPDATE subscriptions SET status = :status RETURNING 1", status=status)

    result = forget(make_app)

    assert result.exit_code == 1
    assert "not over" in result.output
    assert left(database, OF_A_TENANT) == before
    assert left(database, ("audit_log",)) == {}


def test_a_subscription_we_had_not_heard_of_is_found_first(
    database: Database, make_app: MakeApp, acme: str, customer: str, sandbox: Control
) -> None:
    team(database)
    subscribe(sandbox, customer)

    assert "not over" in forget(make_app).output


def test_what_a_former_customer_has_is_asked_of_stripe_which_told_nobody_here(
    database: Database, make_app: MakeApp, acme: str, customer: str, sandbox: Control
) -> None:
    team(database)
    subscribed = subscribe(sandbox, customer)
    sync.link(database, acme, create_customer(sandbox), by="test", replace=True)

    refused = forget(make_app)
    at_stripe(sandbox, "DELETE", f"subscriptions/{subscribed['id']}")
    done = forget(make_app)

    assert (refused.exit_code, "not over" in refused.output) == (1, True)
    assert (done.exit_code, left(database, OF_A_TENANT + OF_A_CUSTOMER)) == (0, {})


def test_what_was_bought_and_never_came_is_no_hindrance_for_ever(
    database: Database, make_app: MakeApp, acme: str, customer: str
) -> None:
    had(database, customer)
    rows(
        database,
        "INSERT INTO checkouts (id, tenant_id, stripe_customer_id, wish, params, state, stripe_session_id,"
        " subscription, created_at) VALUES ('c_2', :t, :c, '{}', '{}', 'complete', 'cs_1', 'sub_lost', :at)"
        " RETURNING 1",
        t=acme,
        c=customer,
        at=datetime.now(UTC) - checkouts.AWAITED,
    )
    rows(
        database,
        "UPDATE checkouts SET created_at = created_at - interval '1 year' WHERE id = 'c_1' RETURNING 1",
    )

    assert forget(make_app).exit_code == 0


@pytest.mark.parametrize(
    "under_way",
    [
        "INSERT INTO customer_intents (id, tenant_id) VALUES ('i_2', 't_acme') RETURNING 1",
        "INSERT INTO checkouts (id, tenant_id, stripe_customer_id, wish, params)"
        " VALUES ('c_2', 't_acme', 'cus_1', '{}', '{}') RETURNING 1",
        "INSERT INTO checkouts (id, tenant_id, stripe_customer_id, wish, params, state, stripe_session_id)"
        " VALUES ('c_2', 't_acme', 'cus_1', '{}', '{}', 'complete', 'cs_1') RETURNING 1",
    ],
    ids=["a customer is being made", "a Checkout is open", "what was bought has not come"],
)
def test_a_tenant_that_is_buying_is_not_forgotten(
    database: Database, make_app: MakeApp, acme: str, customer: str, under_way: str
) -> None:
    had(database, customer)
    rows(database, under_way)

    result = forget(make_app)

    assert (result.exit_code, "checkout_under_way" in result.output) == (1, True)
    assert document(database)["version"]


def test_without_stripes_word_nobody_is_forgotten(
    database: Database, make_app: MakeApp, acme: str, customer: str
) -> None:
    had(database, customer)

    result = forget(make_app, **NO_WAY_TO_STRIPE)

    assert result.exit_code == 1
    assert left(database, ("tenant_config",)) == {"tenant_config": 1}


def test_a_customer_that_stripe_has_never_heard_of_is_no_hindrance(
    database: Database, make_app: MakeApp
) -> None:
    link(database, "t_acme", "cus_of_another_account")
    team(database)

    assert forget(make_app).exit_code == 0


def test_a_tenant_without_a_customer_is_forgotten_without_asking(database: Database, make_app: MakeApp) -> None:
    team(database)
    refresh(database, "t_acme")

    assert forget(make_app, **NO_WAY_TO_STRIPE).exit_code == 0


def test_who_is_unknown_or_forgotten_already_is_said_to_be(
    database: Database, make_app: MakeApp, acme: str, customer: str
) -> None:
    had(database, customer)
    forget(make_app)
    gone = rows(database, "SELECT * FROM tenant_states")

    for tenant in ("t_acme", "t_nobody"):
        result = forget(make_app, tenant)
        assert (result.exit_code, "Nothing is held" in result.output) == (1, True)
    assert rows(database, "SELECT * FROM tenant_states") == gone
    assert left(database, ("audit_log",)) == {"audit_log": 1}


def test_it_takes_a_reason_and_a_yes(database: Database, make_app: MakeApp, acme: str) -> None:
    without = say(make_app, "tenants", "forget", acme, "--yes")
    blank = say(make_app, "tenants", "forget", acme, "--reason", " ", "--yes")
    unsure = say(make_app, "tenants", "forget", acme, "--reason", "x")

    assert [result.exit_code for result in (without, blank, unsure)] == [2, 2, 1]
    assert left(database, ("tenant_config",)) == {"tenant_config": 1}


# ---- races and crashes


@pytest.mark.parametrize("step", ["checkouts", "overrides", "customers", "state", "audit"])
def test_a_crash_between_any_two_steps_leaves_the_tenant_as_it_was(
    database: Database, make_app: MakeApp, acme: str, customer: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    had(database, customer)
    before = left(database, OF_A_TENANT + OF_A_CUSTOMER), versioned(document(database))
    subject, name = getattr(forgetting, step), "note" if step == "audit" else "forget"
    done: Callable[..., object] = getattr(subject, name)

    def and_die(connection: object, *arguments: object, **options: object) -> None:
        done(connection, *arguments, **options)
        lose_the_connection(connection)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(subject, name, and_die)
        assert forget(make_app).exit_code == 1

    assert (left(database, OF_A_TENANT + OF_A_CUSTOMER), versioned(document(database))) == before
    assert forget(make_app).exit_code == 0


def test_who_links_in_the_same_moment_comes_before_or_after_and_never_in_between(
    database: Database, make_app: MakeApp, customer: str
) -> None:
    """The link is under way when the tenant, which has no customer yet, is forgotten."""
    team(database)
    refresh(database, "t_acme")

    with ThreadPoolExecutor(1) as operator:
        with database.begin(SYSTEM) as connection:
            questions.lock(connection, customer)
            connection.execute(
                text("INSERT INTO tenant_config (tenant_id, stripe_customer_id) VALUES ('t_acme', :c)"),
                {"c": customer},
            )
            state.refresh(connection, ["t_acme"], cause="time")
            forgotten = operator.submit(forget, make_app)
            wait_until(lambda: waits(connection) == 1)
        result = forgotten.result()

    assert "database_busy" in result.output
    assert document(database)["stripe"]["customer"] == customer


def test_a_first_link_is_not_undone_by_who_looked_before_it(
    database: Database, make_app: MakeApp, customer: str, sandbox: Control
) -> None:
    """Without a customer there is no row to lock. Who forgets is held up after the look, by an override."""
    team(database)
    subscribe(sandbox, customer)
    override(database, "t_acme", "true")

    with ThreadPoolExecutor(1) as operator:
        with database.begin(SYSTEM) as connection:
            connection.execute(text("SELECT FROM overrides FOR UPDATE"))
            forgotten = operator.submit(forget, make_app)
            wait_until(lambda: waits(connection) == 1)
            sync.link(database, "t_acme", customer, by="test")
        result = forgotten.result()

    assert "database_busy" in result.output
    assert rows(
        database, "SELECT tenant_id, stripe_customer_id FROM tenant_links WHERE unlinked_at IS NULL"
    ) == [{"tenant_id": "t_acme", "stripe_customer_id": customer}]
    assert left(database, ("tenant_config", "overrides")) == {"tenant_config": 1, "overrides": 1}


@pytest.mark.parametrize("verb", ["catch_up", "strike"])
def test_a_worker_that_chose_the_document_before_does_not_bring_the_tenant_back(
    database: Database, other: Database, verb: str
) -> None:
    team(database)
    refresh(database, "t_acme")
    rows(database, "UPDATE tenant_states SET next_look = now(), edition = edition - 1 RETURNING 1")

    with ThreadPoolExecutor(1) as worker:
        with database.begin(SYSTEM) as connection:
            state.forget(connection, "t_acme")
            done = worker.submit(getattr(clock, verb), other)
            wait_until(lambda: waits(connection) == 1)
        assert done.result() == 1

    assert rows(database, "SELECT body, edition FROM tenant_states") == [{"body": "", "edition": state.NEVER}]


def test_a_service_that_had_read_the_document_before_does_not_bring_the_tenant_back(
    database: Database, client: FlaskClient
) -> None:
    team(database)
    refresh(database, "t_acme")
    rows(database, "UPDATE tenant_states SET next_look = now() RETURNING 1")
    headers = a_consumer(database)

    with ThreadPoolExecutor(1) as service:
        with database.begin(SYSTEM) as connection:
            state.forget(connection, "t_acme")
            asked = service.submit(client.get, "/api/tenants/t_acme/entitlements", headers=headers)
            wait_until(lambda: waits(connection) == 1)
        late = asked.result()
    next_one = client.get("/api/tenants/t_acme/entitlements", headers=headers)

    assert ((late.json or {})["code"], (next_one.json or {})["code"]) == ("state_unknown", "tenant_not_found")
    assert rows(database, "SELECT body, edition FROM tenant_states") == [{"body": "", "edition": state.NEVER}]


def test_nobody_else_waits_for_the_end_of_the_feed_while_the_trail_is_written(
    database: Database, make_app: MakeApp, acme: str, customer: str, other: Database
) -> None:
    had(database, customer)

    with ThreadPoolExecutor(1) as operator:
        with database.begin(SYSTEM) as connection:
            connection.execute(text("LOCK TABLE audit_log IN SHARE MODE"))
            forgotten = operator.submit(forget, make_app)
            wait_until(lambda: waits(connection) == 1)
            with other.begin(SYSTEM) as writer:
                writer.execute(text("SELECT FROM feed FOR UPDATE NOWAIT"))
        assert forgotten.result().exit_code == 0
