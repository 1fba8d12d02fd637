"""Events against answers against each other, in the orders in which they can really meet.

Nothing is left to chance here: who claims, asks, reads and writes does so when the test says so, each with a
connection of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import pytest
from sqlalchemy import text

from billing import inbox, questions, subscriptions, sync
from billing.budget import Budget
from billing.db import SYSTEM, Database
from billing.events import Json
from billing.questions import Question
from billing.stripe_api import API_VERSION, Stripe
from billing.sync import Answer
from sandbox.server import Control, running
from tests.conftest import link, rows
from tests.deliveries import (
    a_price,
    a_subscription,
    an_event,
    an_invoice,
    at_stripe,
    happened,
    keep,
    logged,
    make_due,
    pays_by,
    subscribe,
    take_in,
)
from tests.test_portal_options import wait_until

AT = 1_790_000_000
UPDATED = "customer.subscription.updated"


@pytest.fixture(scope="module")
def stripe_stand_in() -> Iterator[Control]:
    """A sandbox of our own: its time is moved, which cannot be undone."""
    with running() as control:
        yield control


@pytest.fixture
def stripe(sandbox: Control) -> Stripe:
    return Stripe(sandbox.key, base=sandbox.url)


@pytest.fixture
def budget(database: Database) -> Budget:
    return Budget(database, 100)


@pytest.fixture
def other(database_url: str) -> Iterator[Database]:
    """Another process's way in."""
    database = Database(database_url, pool_size=2)
    yield database
    database.close()


def tell(
    database: Database, customer: str, *, at: int, kind: str = UPDATED, late: int = 0, **facts: Any
) -> None:
    """Have an event arrive, sent so many seconds after it was made."""
    keep(database, an_event(kind, a_subscription(customer, **facts), created=at), late=late)


def put(database: Database, customer: str, *, lease: timedelta = questions.LEASE) -> Question:
    """Put the question about this customer, which is wanted from now on."""
    with database.begin(SYSTEM) as connection:
        questions.want(connection, [customer])
    with database.begin(SYSTEM) as connection:
        seen = inbox.newest(connection)
        [question] = questions.put(connection, seen=seen, most=1, lease=lease, customer=customer)
    return question


def an_answer(customer: str, *, at: int = AT, **facts: Any) -> Answer:
    """What Stripe says of the customer's only subscription, read from this second to the next."""
    subscription = subscriptions.read(a_subscription(customer, **facts))
    return Answer(subscriptions={subscription.id: (subscription, at, at + 1)})


def statuses(database: Database) -> dict[str, str]:
    found = rows(database, "SELECT stripe_subscription_id AS id, status FROM subscriptions ORDER BY 1")
    return {row["id"]: row["status"] for row in found}


def states(database: Database) -> list[str]:
    return [row["state"] for row in rows(database, "SELECT state FROM inbox ORDER BY id")]


def is_wanted(database: Database) -> bool:
    [row] = rows(database, "SELECT wanted_at IS NOT NULL AS wanted FROM stripe_customers")
    return bool(row["wanted"])


# ---- what is held of an event


def test_every_fact_of_a_snapshot_is_held(database: Database, acme: str, customer: str) -> None:
    pause = {"behavior": "void", "resumes_at": AT + 9}
    times: Json = {"cancel_at": AT + 1, "canceled_at": AT + 2, "ended_at": AT + 3, "trial_end": AT + 4}
    tell(database, customer, at=AT, items=[("si_1", "price_1", 2)], pause_collection=pause, **times)

    take_in(database)

    [row] = rows(
        database,
        """
        SELECT status, cancel_at_period_end, extract(epoch FROM cancel_at)::int AS cancel_at,
               extract(epoch FROM canceled_at)::int AS canceled_at,
               extract(epoch FROM ended_at)::int AS ended_at,
               extract(epoch FROM trial_end)::int AS trial_end, pause_behavior, latest_invoice_id,
               extract(epoch FROM pause_resumes_at)::int AS resumes_at, source,
               extract(epoch FROM as_of)::int AS as_of, extract(epoch FROM as_of_end)::int AS as_of_end
        FROM subscriptions
        """,
    )
    assert row == {
        **times,
        **{"status": "active", "cancel_at_period_end": False, "latest_invoice_id": "in_1", "source": "event"},
        **{"pause_behavior": "void", "resumes_at": AT + 9, "as_of": AT, "as_of_end": AT},
    }
    assert rows(
        database,
        "SELECT stripe_item_id, stripe_price_id, stripe_product_id, quantity,"
        " extract(epoch FROM period_end - period_start)::int AS seconds FROM subscription_items",
    ) == [
        {
            **{"stripe_item_id": "si_1", "stripe_price_id": "price_1", "quantity": 2},
            **{"stripe_product_id": "prod_of_price_1", "seconds": 30 * 86400},
        }
    ]


def test_an_item_that_was_removed_is_gone(database: Database, acme: str, customer: str) -> None:
    tell(database, customer, at=AT - 10, items=[("si_1", "price_1", 1), ("si_2", "price_2", 1)])
    take_in(database)
    tell(database, customer, at=AT, items=[("si_2", "price_2", 5)])

    take_in(database)

    items = rows(database, "SELECT stripe_item_id AS id, quantity FROM subscription_items")
    assert items == [{"id": "si_2", "quantity": 5}]


def test_applying_everything_again_changes_no_row(database: Database, acme: str, customer: str) -> None:
    for at, status in ((AT - 20, "trialing"), (AT - 10, "active")):
        tell(database, customer, at=at, status=status)
    take_in(database)
    versions = "SELECT xmin::text AS x FROM subscriptions UNION ALL SELECT xmin::text FROM subscription_items"
    before = rows(database, versions)

    rows(database, "UPDATE inbox SET state = 'due', settled_at = NULL, due_at = now() RETURNING id")
    take_in(database)

    assert rows(database, versions) == before
    assert states(database) == ["settled", "settled"]


def test_a_snapshot_that_agrees_moves_the_time_and_writes_no_facts(
    database: Database, acme: str, customer: str
) -> None:
    tell(database, customer, at=AT - 10)
    take_in(database)
    items = rows(database, "SELECT xmin::text FROM subscription_items")

    tell(database, customer, at=AT - 9)
    take_in(database)

    [row] = rows(database, "SELECT extract(epoch FROM as_of)::int AS as_of FROM subscriptions")
    assert row["as_of"] == AT - 9
    assert rows(database, "SELECT xmin::text FROM subscription_items") == items


def test_the_end_of_an_old_subscription_leaves_the_new_plan_alone(
    database: Database, acme: str, customer: str
) -> None:
    tell(database, customer, at=AT - 20, id="sub_old")
    tell(database, customer, at=AT - 10, id="sub_new", items=[("si_2", "price_2", 1)])
    take_in(database)

    ended: Json = {"status": "canceled", "ended_at": AT}
    tell(database, customer, at=AT, kind="customer.subscription.deleted", id="sub_old", **ended)
    take_in(database)

    assert statuses(database) == {"sub_new": "active", "sub_old": "canceled"}


# ---- which events ask


@pytest.mark.parametrize(
    ("change", "version", "late"),
    [({}, API_VERSION, 61), ({}, "2024-06-20", 0), ({"items": None}, API_VERSION, 0)],
    ids=["long on its way", "other version", "no items"],
)
def test_a_first_snapshot_that_is_not_certain_asks(
    database: Database, acme: str, customer: str, change: dict[str, Any], version: str, late: int
) -> None:
    snapshot = a_subscription(customer) | change
    keep(database, an_event(UPDATED, snapshot, created=AT, api_version=version), late=late)

    take_in(database)

    assert (statuses(database), states(database)) == ({}, ["asking"])
    assert is_wanted(database)


def test_a_subscription_that_begins_unpaid_is_asked_about_before_anybody_sees_it(
    database: Database, acme: str, customer: str
) -> None:
    """A purchase is `incomplete` for a moment; its next event may be in another batch."""
    tell(database, customer, at=AT, status="incomplete")

    take_in(database)

    assert (statuses(database), states(database)) == ({}, ["asking"])
    assert is_wanted(database)


def test_several_that_ask_are_settled_by_one_question(database: Database, acme: str, customer: str) -> None:
    for status in ("active", "past_due", "unpaid"):
        tell(database, customer, at=AT, late=3600, status=status)
    take_in(database)
    question = put(database, customer)

    assert sync.hold(database, question, an_answer(customer))

    assert states(database) == ["settled"] * 3
    assert not is_wanted(database)


def test_a_subscription_nobody_has_heard_of_waits_for_its_snapshot_and_then_asks(
    database: Database, acme: str, customer: str
) -> None:
    keep(database, an_event("invoice.paid", an_invoice(customer), created=AT))

    take_in(database)
    after_one_look = states(database)
    make_due(database)
    take_in(database)

    assert (after_one_look, states(database)) == (["due"], ["asking"])


def test_an_invoice_that_agrees_with_what_is_held_asks_nobody(
    database: Database, acme: str, customer: str
) -> None:
    tell(database, customer, at=AT)
    keep(database, an_event("invoice.paid", an_invoice(customer), created=AT))

    take_in(database)

    assert states(database) == ["settled", "settled"]


@pytest.mark.parametrize(
    ("status", "invoice"),
    [
        ("past_due", {"status": "paid"}),
        ("incomplete", {"status": "paid"}),
        ("active", {"status": "open", "attempted": True}),
    ],
)
def test_an_invoice_that_contradicts_what_is_held_asks_unless_the_snapshot_comes(
    database: Database,
    acme: str,
    customer: str,
    status: str,
    invoice: dict[str, Any],
) -> None:
    tell(database, customer, at=AT - 100, status="active")
    take_in(database)
    tell(database, customer, at=AT - 50, status=status)
    keep(database, an_event("invoice.updated", an_invoice(customer, **invoice), created=AT))
    take_in(database)
    make_due(database)

    take_in(database)

    assert states(database)[-1] == "asking"


# ---- grace


def grace_start(database: Database) -> int | None:
    """When the oldest invoice that is open and was attempted was finalized."""
    [row] = rows(
        database,
        "SELECT extract(epoch FROM min(finalized_at))::int AS at FROM invoices"
        " WHERE status = 'open' AND attempted",
    )
    at: int | None = row["at"]
    return at


def test_grace_begins_with_the_oldest_open_invoice_and_retries_do_not_move_it(
    database: Database, acme: str, customer: str
) -> None:
    for number, finalized in ((2, AT - 50), (1, AT - 100)):
        for created in (AT - 40, AT - 10):
            told: Json = {"status": "open", "status_transitions": {"finalized_at": finalized}}
            invoice = an_invoice(customer, id=f"in_{number}", **told)
            keep(database, an_event("invoice.payment_failed", invoice, created=created))

    take_in(database)

    assert grace_start(database) == AT - 100


@pytest.mark.parametrize("told", [True, False], ids=["by events", "by the API"])
def test_grace_begins_at_the_same_moment_whether_events_or_the_api_told_of_it(
    database: Database,
    acme: str,
    customer: str,
    sandbox: Control,
    stripe: Stripe,
    budget: Budget,
    told: bool,
) -> None:
    subscription = subscribe(sandbox, customer)
    pays_by(sandbox, customer, "pm_card_chargeCustomerFail")
    sandbox.advance(32 * 86400)
    if told:
        for event in happened(sandbox, customer):
            keep(database, event)
        take_in(database)
    else:
        assert sync.ask(database, stripe, budget, put(database, customer))

    [unpaid] = at_stripe(sandbox, "GET", "invoices", subscription=subscription["id"], status="open")["data"]
    assert grace_start(database) == unpaid["status_transitions"]["finalized_at"]


# ---- an answer against events


def test_an_answer_is_refused_after_a_newer_snapshot_and_asked_again(
    database: Database, acme: str, customer: str
) -> None:
    tell(database, customer, at=AT - 100)
    take_in(database)
    question = put(database, customer)
    tell(database, customer, at=AT - 50, status="past_due")
    take_in(database)

    assert not sync.hold(database, question, an_answer(customer, at=AT))

    assert statuses(database) == {"sub_1": "past_due"}
    assert sync.hold(database, put(database, customer), an_answer(customer, at=AT, status="unpaid"))
    assert statuses(database) == {"sub_1": "unpaid"}


def test_an_answer_read_before_a_change_back_is_refused_although_the_event_only_agreed(
    database: Database, acme: str, customer: str
) -> None:
    """Held: active. Stripe is read while it says past_due; then it is active again, and the event agrees."""
    tell(database, customer, at=AT - 100)
    take_in(database)
    question = put(database, customer)
    stale = an_answer(customer, at=AT - 99, status="past_due")
    tell(database, customer, at=AT - 99)
    take_in(database)

    assert not sync.hold(database, question, stale)

    assert statuses(database) == {"sub_1": "active"}
    assert is_wanted(database)


def test_an_answer_is_refused_after_an_end(database: Database, acme: str, customer: str) -> None:
    tell(database, customer, at=AT - 100)
    take_in(database)
    question = put(database, customer)
    tell(database, customer, at=AT, kind="customer.subscription.deleted", status="canceled")
    take_in(database)

    assert not sync.hold(database, question, an_answer(customer))

    assert statuses(database) == {"sub_1": "canceled"}


def test_an_answer_is_refused_after_the_first_snapshot_of_a_subscription_it_knows(
    database: Database, acme: str, customer: str
) -> None:
    question = put(database, customer)
    tell(database, customer, at=AT)
    take_in(database)

    assert not sync.hold(database, question, an_answer(customer, status="incomplete"))

    assert statuses(database) == {"sub_1": "active"}


def test_what_the_answer_says_of_other_subscriptions_is_held_all_the_same(
    database: Database, acme: str, customer: str
) -> None:
    question = put(database, customer)
    tell(database, customer, at=AT)
    take_in(database)
    answer = an_answer(customer, status="incomplete")
    answer.subscriptions |= an_answer(customer, id="sub_2").subscriptions

    assert not sync.hold(database, question, answer)

    assert statuses(database) == {"sub_1": "active", "sub_2": "active"}


def test_an_older_snapshot_in_between_refuses_no_answer(database: Database, acme: str, customer: str) -> None:
    tell(database, customer, at=AT - 20)
    take_in(database)
    question = put(database, customer)
    tell(database, customer, at=AT - 40, status="trialing")
    take_in(database)

    assert sync.hold(database, question, an_answer(customer, status="past_due"))

    assert statuses(database) == {"sub_1": "past_due"}


def test_an_answer_never_revives_what_is_over(database: Database, acme: str, customer: str) -> None:
    tell(database, customer, at=AT - 100, kind="customer.subscription.deleted", status="canceled")
    take_in(database)

    assert sync.hold(database, put(database, customer), an_answer(customer, at=AT))

    assert statuses(database) == {"sub_1": "canceled"}


def test_what_arrived_before_the_question_is_settled_by_its_answer_whatever_it_says(
    database: Database, acme: str, customer: str
) -> None:
    """Its time is of no account: Stripe was asked after it had happened."""
    tell(database, customer, at=AT + 50, status="unpaid")
    question = put(database, customer)
    assert sync.hold(database, question, an_answer(customer, at=AT))

    take_in(database)

    assert (statuses(database), states(database)) == ({"sub_1": "active"}, ["settled"])


def test_what_arrived_after_the_question_is_not_settled_by_its_answer(
    database: Database, acme: str, customer: str
) -> None:
    question = put(database, customer)
    tell(database, customer, at=AT, late=3600)
    take_in(database)

    assert sync.hold(database, question, an_answer(customer))

    assert states(database) == ["asking"]
    assert is_wanted(database)


def test_what_the_answer_could_not_know_is_judged_by_its_time(
    database: Database, acme: str, customer: str
) -> None:
    question = put(database, customer)
    tell(database, customer, at=AT + 20, status="paused")
    assert sync.hold(database, question, an_answer(customer, at=AT))

    take_in(database)

    assert (statuses(database), states(database)) == ({"sub_1": "paused"}, ["settled"])


# ---- questions against each other


def test_the_late_answer_of_a_lapsed_question_is_refused(
    database: Database, other: Database, acme: str, customer: str
) -> None:
    slow = put(database, customer, lease=timedelta(seconds=-1))
    quick = put(other, customer)
    assert sync.hold(other, quick, an_answer(customer, status="past_due"))

    assert not sync.hold(database, slow, an_answer(customer))

    assert statuses(database) == {"sub_1": "past_due"}


def test_the_late_answer_of_a_lapsed_question_is_refused_while_the_next_is_still_in_flight(
    database: Database, other: Database, acme: str, customer: str
) -> None:
    slow = put(database, customer, lease=timedelta(seconds=-1))
    quick = put(other, customer)

    assert not sync.hold(database, slow, an_answer(customer))

    assert statuses(database) == {}
    assert sync.hold(other, quick, an_answer(customer))


def test_a_lapsed_question_that_nobody_put_again_is_still_good(
    database: Database, acme: str, customer: str
) -> None:
    question = put(database, customer, lease=timedelta(seconds=-1))

    assert sync.hold(database, question, an_answer(customer))

    assert statuses(database) == {"sub_1": "active"}


def test_the_failure_of_a_lapsed_question_leaves_the_next_one_alone(
    database: Database, other: Database, acme: str, customer: str
) -> None:
    slow = put(database, customer, lease=timedelta(seconds=-1))
    put(other, customer)

    with database.begin(SYSTEM) as connection:
        questions.failed(connection, slow, delay=timedelta())

    [row] = rows(database, "SELECT failures, asking_until IS NOT NULL AS asking FROM stripe_customers")
    assert row == {"failures": 0, "asking": True}


def test_a_question_in_flight_is_not_put_again(database: Database, other: Database, customer: str) -> None:
    put(database, customer)

    with other.begin(SYSTEM) as connection:
        questions.want(connection, [customer])
        again = questions.put(connection, seen=0, most=10)

    assert again == []


def test_of_many_who_put_at_once_each_customer_is_asked_about_once(database: Database, other: Database) -> None:
    customers = [f"cus_{n}" for n in range(40)]
    with database.begin(SYSTEM) as connection:
        questions.want(connection, customers)
    together = threading.Barrier(2)

    def putting(db: Database) -> list[str]:
        together.wait()
        found = []
        for _ in range(10):
            with db.begin(SYSTEM) as connection:
                found += [question.customer for question in questions.put(connection, seen=0, most=4)]
        return found

    with ThreadPoolExecutor(2) as askers:
        asked = [customer for found in askers.map(putting, (database, other)) for customer in found]

    assert sorted(asked) == sorted(customers)


# ---- two workers


def test_two_workers_without_a_row_yet_leave_the_newer_snapshot(
    database: Database, other: Database, acme: str, customer: str
) -> None:
    """The customer is locked, not the row: there is none. Whoever comes second sees what the first has left."""
    tell(database, customer, at=AT, status="paused")
    with database.begin(SYSTEM) as connection:
        newer = inbox.claim(connection, most=1, lease=timedelta(seconds=20))
    tell(database, customer, at=AT - 20)
    with other.begin(SYSTEM) as connection:
        older = inbox.claim(connection, most=1, lease=timedelta(seconds=20))
    with ThreadPoolExecutor(2) as workers, database.begin(SYSTEM) as connection:
        questions.lock(connection, customer)
        both = [workers.submit(sync.apply, database, newer), workers.submit(sync.apply, other, older)]
        wait_until(lambda: waiting_for_a_lock(database) == 2)
        connection.commit()
        for one in both:
            one.result()
    make_due(database)  # for one of them may have found the customer in the other's hands
    take_in(database)

    assert statuses(database) == {"sub_1": "paused"}
    assert states(database) == ["settled", "settled"]


def waiting_for_a_lock(database: Database) -> int:
    [row] = rows(
        database,
        "SELECT count(*) AS n FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'",
    )
    return int(row["n"])


def test_batches_that_name_the_same_customers_in_another_order_do_not_deadlock(
    database: Database, other: Database, acme: str, customer: str
) -> None:
    """Each round two workers apply a batch about both customers, at the same moment and the other way round."""
    link(database, "t_other", "cus_other")
    for number in range(20):
        for id in (customer, "cus_other", "cus_other", customer):
            tell(database, id, at=AT + number, id=f"sub_of_{id}")
    together = threading.Barrier(2, timeout=10)

    def working(db: Database) -> None:
        for _ in range(20):
            with db.begin(SYSTEM) as connection:
                claimed = inbox.claim(connection, most=2, lease=timedelta(seconds=20))
            together.wait()
            sync.apply(db, claimed)

    with ThreadPoolExecutor(2) as workers:
        list(workers.map(working, (database, other)))
    make_due(database)  # those whose customer was in the other's hands
    take_in(database)

    assert set(states(database)) <= {"settled", "asking"}
    assert rows(database, "SELECT DISTINCT failures, lapses FROM inbox") == [{"failures": 0, "lapses": 0}]


# ---- deleted customers


def test_after_a_customers_end_a_late_snapshot_gives_no_access(
    database: Database,
    acme: str,
    customer: str,
    sandbox: Control,
    stripe: Stripe,
    budget: Budget,
) -> None:
    subscribe(sandbox, customer)
    at_stripe(sandbox, "DELETE", f"customers/{customer}")
    *_, deleted = happened(sandbox, customer)
    [created] = [e for e in happened(sandbox, customer) if e["type"] == "customer.subscription.created"]
    keep(database, deleted)
    take_in(database)
    assert states(database) == ["asking"]
    assert sync.ask(database, stripe, budget, put(database, customer))

    keep(database, created)
    later = created["created"] + 100
    keep(database, an_event(UPDATED, a_subscription(customer, id="sub_never_heard_of"), created=later))
    take_in(database)

    assert set(statuses(database).values()) == {"canceled"}
    assert states(database) == ["settled"] * 3
    [row] = rows(database, "SELECT deleted_at IS NOT NULL AS gone FROM stripe_customers")
    assert row["gone"]


# ---- reading from Stripe


def test_a_customer_is_read_with_all_pages_all_items_and_what_has_ended(
    database: Database, acme: str, customer: str, sandbox: Control, stripe: Stripe, budget: Budget
) -> None:
    prices = [a_price(sandbox) for _ in range(12)]
    wide = subscribe(
        sandbox, customer, price=prices[0], **{f"items[{n}][price]": prices[n] for n in range(1, 12)}
    )
    ended = subscribe(sandbox, customer, price=prices[0])["id"]
    at_stripe(sandbox, "DELETE", f"subscriptions/{ended}")

    assert sync.ask(database, stripe, budget, put(database, customer))

    assert statuses(database) == {wide["id"]: "active", ended: "canceled"}
    [row] = rows(
        database,
        "SELECT count(DISTINCT stripe_price_id) AS n FROM subscription_items"
        " WHERE stripe_subscription_id = :id",
        id=wide["id"],
    )
    assert row["n"] == 12


def test_a_row_that_is_missing_from_the_list_is_read_by_its_id(
    database: Database, acme: str, customer: str, sandbox: Control, stripe: Stripe, budget: Budget
) -> None:
    """It is no proof that the subscription is gone; nor is it that Stripe knows no such id."""
    assert sync.hold(database, put(database, customer), an_answer(customer))
    sandbox.send("DELETE", "requests")

    assert sync.ask(database, stripe, budget, put(database, customer))

    assert "/v1/subscriptions/sub_1" in [request["path"] for request in sandbox.requests()]
    assert statuses(database) == {"sub_1": "active"}


def test_an_answer_is_dated_by_stripes_clock(
    database: Database, acme: str, customer: str, sandbox: Control, stripe: Stripe, budget: Budget
) -> None:
    subscribe(sandbox, customer)
    sandbox.advance(3600)
    before = sandbox.now()

    assert sync.ask(database, stripe, budget, put(database, customer))

    [row] = rows(
        database,
        "SELECT extract(epoch FROM as_of)::int AS began, extract(epoch FROM as_of_end)::int AS ended"
        " FROM subscriptions",
    )
    assert before - 2 <= row["began"] <= before + 1
    assert before <= row["ended"] <= sandbox.now() + 1


def test_an_answer_never_moves_the_time_back(database: Database, acme: str, customer: str) -> None:
    """One of Stripe's machines may be late by its own clock, and yet know what the event told."""
    tell(database, customer, at=AT + 3)
    take_in(database)
    assert sync.hold(database, put(database, customer), an_answer(customer, at=AT - 10))

    tell(database, customer, at=AT, late=600, status="trialing")
    take_in(database)

    assert statuses(database) == {"sub_1": "active"}


def test_an_answer_is_no_older_than_what_had_arrived_before_its_question(
    database: Database, acme: str, customer: str
) -> None:
    tell(database, customer, at=AT + 3)
    assert sync.hold(database, put(database, customer), an_answer(customer, at=AT - 10))
    take_in(database)

    tell(database, customer, at=AT, late=600, status="trialing")
    take_in(database)

    assert statuses(database) == {"sub_1": "active"}


def test_the_very_first_event_is_not_taken_for_one_that_had_arrived_before(
    database: Database, acme: str, customer: str
) -> None:
    """A sequence nobody has used yet says 1, as does one that has given out 1."""
    with database.begin(SYSTEM) as connection:
        connection.execute(text("ALTER SEQUENCE inbox_id_seq RESTART"))
    question = put(database, customer)
    tell(database, customer, at=AT)

    assert sync.hold(database, question, Answer())
    take_in(database)

    assert statuses(database) == {"sub_1": "active"}


def test_a_customer_stripe_has_never_heard_of_settles_nothing_and_is_asked_about_again(
    database: Database, stripe: Stripe, budget: Budget, caplog: pytest.LogCaptureFixture
) -> None:
    """It is the key of another account, more likely than not."""
    said = logged(caplog)
    link(database, "t_x", "cus_of_another_account")
    tell(database, "cus_of_another_account", at=AT, late=600)
    take_in(database)

    answered = sync.ask(database, stripe, budget, put(database, "cus_of_another_account"))

    assert not answered
    assert states(database) == ["asking"]
    assert is_wanted(database)
    assert "stripe.unknown_customer" in [line["event"] for line in said()]


def test_no_transaction_is_open_while_stripe_is_read(
    database: Database, acme: str, customer: str, sandbox: Control, stripe: Stripe, budget: Budget
) -> None:
    question = put(database, customer)
    sandbox.fault("hang", path="/v1/subscriptions", seconds=0.5, times=1)
    sandbox.send("DELETE", "requests")
    with ThreadPoolExecutor(1) as asker:
        asking = asker.submit(sync.ask, database, stripe, budget, question)
        wait_until(lambda: bool(sandbox.requests()))

        held = database.connections_in_use

        assert held == 0
        assert asking.result()


# ---- for those who wait


def test_who_waits_gets_an_answer_that_began_after_the_call(
    database: Database, acme: str, customer: str, sandbox: Control, stripe: Stripe, budget: Budget
) -> None:
    id = subscribe(sandbox, customer)["id"]

    assert sync.now(database, stripe, budget, customer)

    assert statuses(database) == {id: "active"}


def test_who_waits_while_a_question_is_in_flight_gets_one_that_began_later(
    database: Database, acme: str, customer: str, sandbox: Control, stripe: Stripe, budget: Budget
) -> None:
    in_flight = put(database, customer)
    id = subscribe(sandbox, customer)["id"]
    with ThreadPoolExecutor(1) as waiting:
        answer = waiting.submit(sync.now, database, stripe, budget, customer, patience=3)
        time.sleep(0.2)  # it is in its loop by then; that it is not yet is no failure
        assert sync.hold(database, in_flight, Answer())

        assert answer.result()

    assert statuses(database) == {id: "active"}


@pytest.mark.parametrize("hands", ["locks it", "changes it"])
def test_a_customer_in_somebody_elses_hands_holds_up_nobody_else(
    database: Database, other: Database, acme: str, customer: str, hands: str
) -> None:
    link(database, "t_other", "cus_other")
    tell(database, customer, at=AT)
    tell(database, "cus_other", at=AT, id="sub_other")
    with other.begin(SYSTEM) as connection:
        questions.want(connection, [customer])

    with other.begin(SYSTEM) as connection:
        if hands == "locks it":
            questions.lock(connection, customer)
        else:
            questions.want(connection, [customer])
        began = time.monotonic()
        take_in(database)
        took = time.monotonic() - began
    before = states(database)
    make_due(database)
    take_in(database)

    assert took < 1  # a lock is waited for 1.5 s
    assert before == ["due", "settled"]
    assert states(database) == ["settled", "settled"]
    charged = rows(database, "SELECT DISTINCT looks, failures, lapses FROM inbox")
    assert charged == [{"looks": 0, "failures": 0, "lapses": 0}]


def test_a_want_that_comes_after_the_lease_has_lapsed_outlives_the_late_answer(
    database: Database, acme: str, customer: str
) -> None:
    question = put(database, customer, lease=timedelta(0))
    with database.begin(SYSTEM) as connection:
        questions.want(connection, [customer])

    assert sync.hold(database, question, an_answer(customer))

    assert is_wanted(database)


def test_an_answer_that_cannot_be_held_is_asked_for_again_later_and_later(
    database: Database, acme: str, customer: str
) -> None:
    """Whatever is wrong with it, or with us: its reads are not spent again at once."""
    question = put(database, customer)
    broken = an_answer(customer)
    [(subscription, asked, answered)] = broken.subscriptions.values()
    facts = replace(subscription.facts, status="\0")  # which no column takes
    broken.subscriptions["sub_1"] = (replace(subscription, facts=facts), asked, answered)
    stripe = cast(Stripe, None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sync._Reader, "answer", lambda _: broken)
        assert not sync.ask(database, stripe, Budget(database, 20), question)

    [row] = rows(database, "SELECT failures, asking_until, wanted_at > now() AS later FROM stripe_customers")
    assert row == {"failures": 1, "asking_until": None, "later": True}


def test_an_item_that_stands_on_two_pages_is_held_once(database: Database, acme: str, customer: str) -> None:
    twice = [("si_1", "price_1", 1), ("si_1", "price_1", 2)]

    assert sync.hold(database, put(database, customer), an_answer(customer, items=twice))

    assert rows(database, "SELECT quantity FROM subscription_items") == [{"quantity": 2}]


def test_with_its_customer_gone_a_subscription_stripe_no_longer_knows_is_over(
    database: Database, acme: str, customer: str
) -> None:
    tell(database, customer, at=AT)
    take_in(database)

    assert sync.hold(database, put(database, customer), Answer(is_deleted=True))

    assert statuses(database) == {"sub_1": "canceled"}


def test_a_subscription_of_another_customers_row_is_asked_about(
    database: Database, acme: str, customer: str
) -> None:
    """Only the holder of a customer's lock writes its rows."""
    link(database, "t_other", "cus_other")
    tell(database, "cus_other", at=AT)
    take_in(database)

    tell(database, customer, at=AT + 100, status="past_due")
    take_in(database)

    assert statuses(database) == {"sub_1": "active"}
    assert states(database) == ["settled", "asking"]


def test_events_do_not_shorten_the_pause_after_a_failure(database: Database, acme: str, customer: str) -> None:
    question = put(database, customer)
    with database.begin(SYSTEM) as connection:
        questions.failed(connection, question, delay=timedelta(minutes=1))

    tell(database, customer, at=AT, late=600)
    take_in(database)

    [row] = rows(database, "SELECT wanted_at > now() + interval '30 seconds' AS paused FROM stripe_customers")
    assert states(database) == ["asking"]
    assert row["paused"]


def test_events_do_not_wait_for_a_question_that_is_only_wanted_later(
    database: Database, acme: str, customer: str
) -> None:
    with database.begin(SYSTEM) as connection:
        questions.born(connection, customer)
        for seconds in (60, 90):
            questions.want(connection, [customer], questions.Pace(timedelta(seconds=seconds)))
        assert not questions.is_wanted(connection, customer)
    [row] = rows(database, "SELECT wanted_at < now() + interval '61 seconds' AS early FROM stripe_customers")
    assert row["early"]  # whoever wants it later does not put it off

    tell(database, customer, at=AT, late=600)
    take_in(database)

    assert states(database) == ["asking"]
    with database.begin(SYSTEM) as connection:
        assert questions.is_wanted(connection, customer)
        assert questions.put(connection, seen=0, most=1)


def test_a_list_in_place_of_the_customer_is_no_answer(
    database: Database, acme: str, customer: str, sandbox: Control, stripe: Stripe, budget: Budget
) -> None:
    sandbox.fault("list", path=f"/v1/customers/{customer}", times=1)

    assert not sync.ask(database, stripe, budget, put(database, customer))

    [row] = rows(database, "SELECT failures, answered FROM stripe_customers")
    assert row == {"failures": 1, "answered": 0}
