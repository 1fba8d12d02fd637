"""The first page says what needs attention, and nothing that does not."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import text

from billing.budget import ALL
from billing.db import SYSTEM, Database
from billing.errors import InvalidRequest, ServiceUnavailable, StripeFailed
from billing.operations.cures import told
from tests.conftest import MakeApp, link
from tests.console.conftest import HERE, HOME, USERS, Browser, signed_in
from tests.test_commands import NO_WAY_TO_STRIPE

EVENT = """
    INSERT INTO inbox (event_id, type, body, state, settled_at, reason, received_at, sent_at)
    SELECT :state || n, 'invoice.paid', '{}', :state, CASE WHEN :state = 'buried' THEN clock_timestamp() END,
           CASE WHEN :state = 'buried' THEN 'incomplete' END, clock_timestamp() - interval '1 hour',
           clock_timestamp() - interval '1 hour'
    FROM generate_series(1, :count) AS n
"""
GONE = """
    INSERT INTO drift (tenant_id, stripe_customer_id, kind, seen, version_before, found_at)
    VALUES ('t_new', 'cus_new', 'customer_deleted', 0, 1, clock_timestamp())
"""
BEAT = "INSERT INTO workers (name, release) VALUES ('dyno:7', 'v42')"


@pytest.fixture
def calm(database: Database) -> Database:
    """Nothing to do, and somebody who would do it."""
    do(database, BEAT)
    return database


def do(database: Database, statement: str, **values: object) -> None:
    with database.begin(SYSTEM) as connection:
        connection.execute(text(statement), values)


def test_a_calm_night_needs_nothing(calm: Database, ana: Browser) -> None:
    page = ana.reads("")

    assert "Needs attention Nothing. ok" in page
    assert re.search(r"dyno:7 alive \d+ s ago", page)
    assert "release v42" in page


def test_the_page_renews_itself_for_who_wants_it_only(ana: Browser) -> None:
    asked = "?renew=1"
    assert 'http-equiv="refresh"' not in ana.opens("").text
    assert 'http-equiv="refresh" content="30"' in ana.opens(asked).text
    assert f'href="/billing/console/{asked}"' in ana.opens("").text
    assert 'href="/billing/console/">Stop that' in ana.opens(asked).text


def test_what_is_wrong_stands_first_and_leads_to_where_it_is_mended(
    database: Database, make_app: MakeApp
) -> None:
    do(database, EVENT, state="buried", count=14)
    do(database, EVENT, state="due", count=2)
    do(database, EVENT, state="waiting", count=3)
    link(database, "t_new", "cus_new")
    do(database, "INSERT INTO stripe_customers (stripe_customer_id) VALUES ('cus_new')")
    do(database, GONE)
    raj = signed_in(make_app(BILLING_CONSOLE_USERS=USERS, BILLING_EXPECT_WEBHOOK_EVERY="30m"), "raj")

    page = raj.reads("")

    assert [
        sentence
        for sentence in (
            "problem No worker is alive",
            "problem 14 events are buried: 14 \N{MULTIPLICATION SIGN} incomplete",
            "problem The oldest event that is not done came 60 min ago",
            "problem Stripe has posted nothing for 60 min",
            "warning t_new: its customer was deleted at Stripe (cus_new)",
            "warning 3 events wait: no tenant owns the customer",
            "warning Stripe was never asked about 1 linked tenant ",
        )
        if sentence not in page
    ] == []
    assert page.index("problem Stripe has posted") < page.index("warning 3 events wait")
    for lead in ("inbox/events?state=buried", "tenants/one?id=t_new", "tenants?state=never", "doctor"):
        assert f'href="/billing/console/{lead}"' in raj.opens("").text


def test_tenants_are_counted_by_their_state(calm: Database, ana: Browser) -> None:
    three = "SELECT 't_' || n, 'grace' FROM generate_series(1, 3) AS n"
    do(calm, f"INSERT INTO tenant_states (tenant_id, state) {three}")

    assert "active 0 active trialing 0 trialing grace 3 grace suspended 0" in ana.reads("")
    assert "t_2" in ana.reads("tenants?state=grace")


def test_the_doctor_is_asked_in_a_browser_too(ana: Browser) -> None:
    page = ana.reads("doctor")

    assert "problem none is alive: events are kept, and nothing more" in page
    assert "ok APP_URL https://app.example.com" in page


def test_who_stripe_refuses_or_does_not_answer_is_told_first(calm: Database, make_app: MakeApp) -> None:
    app = make_app(BILLING_CONSOLE_USERS=USERS, **NO_WAY_TO_STRIPE)
    ana, held = signed_in(app, "ana"), app.extensions["billing"]
    link(calm, "t_new", "cus_new")
    owed = """
        INSERT INTO stripe_customers (stripe_customer_id, wanted_at, owed_since, failures)
        SELECT 'cus_new' || n, now(), now() - interval '9 minutes', 3 FROM generate_series(1, 2) AS n
    """
    do(calm, owed)
    answered = "INSERT INTO stripe_customers (stripe_customer_id, answered_at) VALUES (:id, now())"

    assert "problem Stripe does not answer: it owes 2 answers, the oldest for 9 min" in ana.reads("")
    told = ana.opens("tenants/compare?id=t_new", Referer=f"{HERE}{HOME}tenants/one?id=t_new")
    assert (told.status_code, "Stripe does not answer: try again" in told.text) == (503, True)
    assert f'href="{HOME}tenants/one?id=t_new">Back' in told.text
    for elsewhere in (
        "https://evil.example/billing/console/",
        f"{HERE}/api/plans",
        f"{HERE}{HOME}plans/refresh",
    ):
        assert "Back" not in ana.opens("tenants/compare?id=t_new", Referer=elsewhere).text
    do(calm, answered, id="cus_a")
    assert "warning 2 questions to Stripe keep failing, the oldest for 9 min, while it" in ana.reads("")

    held.budget.pause(ALL, 60, because="key_refused")
    page = ana.reads("")
    assert "problem Stripe does not take STRIPE_SECRET_KEY" in page
    assert "Our key refused" in page
    told = ana.opens("tenants/compare?id=t_new")
    assert "Stripe is not asked just now" in told.text
    do(calm, "UPDATE stripe_reads SET reserved_until = now() - interval '1 second'")
    do(calm, answered, id="cus_b")
    assert "STRIPE_SECRET_KEY" not in ana.reads("")


def test_every_failure_of_stripes_has_a_sentence_with_a_cure() -> None:
    assert told(StripeFailed("key_refused")).startswith("Stripe does not take STRIPE_SECRET_KEY")
    assert told(StripeFailed("something new")).startswith("Stripe could not be asked: try again")
    assert told(StripeFailed("refused", code="resource_missing")).endswith("(resource_missing)")
    assert told(InvalidRequest("must be in the future", param="expires")) == "The end must be in the future"
    assert told(ServiceUnavailable("database")).startswith("The database is away")
