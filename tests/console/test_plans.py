"""The plans as operators see them, in the console and at a terminal."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import text

from billing import subscriptions
from billing.db import SYSTEM, Database
from sandbox.server import Control
from tests.conftest import MakeApp, rows
from tests.console.conftest import USERS, Browser, signed_in
from tests.deliveries import Json, a_catalogue
from tests.shopping import goods
from tests.test_commands import NO_WAY_TO_STRIPE, say
from tests.test_portal_flows import a_configuration


def a_browser(make_app: MakeApp, **settings: str) -> Browser:
    return signed_in(make_app(BILLING_CONSOLE_USERS=USERS, **settings), "ana")


def subscribed(database: Database, price: str, *statuses: str) -> None:
    """So many subscriptions to a price."""
    with database.begin(SYSTEM) as connection:
        connection.execute(
            text("""
                WITH made AS (
                    INSERT INTO subscriptions (stripe_subscription_id, stripe_customer_id, status, heard, facts,
                        cancel_at_period_end, as_of, as_of_end, source)
                    SELECT 'sub_' || :price || n, 'cus_' || n, status, 0, '', false, now(), now(), 'event'
                    FROM unnest(CAST(:statuses AS text[])) WITH ORDINALITY AS given (status, n)
                    RETURNING stripe_subscription_id
                )
                INSERT INTO subscription_items (stripe_subscription_id, stripe_item_id, stripe_price_id,
                    stripe_product_id)
                SELECT stripe_subscription_id, 'si_1', :price, 'prod_1' FROM made
            """),
            {"price": price, "statuses": list(statuses)},
        )


def by_key(found: Json) -> dict[str, Json]:
    return {plan["key"]: plan for plan in found["plans"]}


def test_every_plan_is_shown_with_what_it_gives_and_who_has_it(
    make_app: MakeApp, database: Database, sandbox: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "COUNTED", 4)
    a_catalogue(database, **goods(sandbox).content, features=["support"])
    prices = goods(sandbox).prices
    subscribed(database, prices["team_monthly"], "active", "past_due", "canceled")
    subscribed(database, prices["pro_former"], *["active"] * 5)
    portal = {"BILLING_PORTAL_CONFIGURATION": a_configuration(sandbox, "team_monthly")}

    page = a_browser(make_app, **portal).reads("plans")
    said = say(make_app, "plans", **portal).output
    found = json.loads(say(make_app, "plans", "--json", **portal).output)

    plans = by_key(found)
    assert [key for key, plan in plans.items() if plan["standing"] == "on sale"] == [
        *("crew_monthly", "pro_monthly", "pro_tried", "team_monthly", "team_yearly"),
    ]
    assert (plans["secret_monthly"]["standing"], plans["retired_monthly"]["standing"]) == ("hidden", "archived")
    assert [key for key, plan in plans.items() if plan["in_portal"]] == ["team_monthly"]
    team = plans["team_monthly"]
    assert (team["subscriptions"], team["counted_all"]) == (2, True)
    assert team["features"] == [
        {"key": "seats", "is_on": True, "limit": "1 for each", "source": "metadata says quantity"},
        {"key": "sso", "is_on": True, "limit": None, "source": "metadata says true"},
    ]
    assert (plans["pro_former"]["subscriptions"], plans["pro_former"]["counted_all"]) == (4, False)
    for written in (
        "team_monthly on sale in the portal Team 12.00 USD a month per seat 2 subscriptions",
        "secret_monthly hidden Secret",
        "pro_former archived Pro 12.00 USD a month at least 4 subscriptions",
        "seats 1 for each (metadata says quantity)",
    ):
        assert written in page
    assert "Team   12.00 USD a month per seat   on sale   in the portal   2 subscriptions\n    seats 1" in said


def test_a_catalogue_with_faults_says_what_ends_them_and_fails_a_check(
    make_app: MakeApp, database: Database
) -> None:
    never_read = say(make_app, "plans", "--check")
    product: Json = {"id": "prod_1", "name": "Pro", "description": None, "active": True, "entitles": []}
    a_catalogue(database, products=[{**product, "metadata": {"limit.projects": "fifty"}}])
    faulty = say(make_app, "plans", "--check")
    page = a_browser(make_app).opens("plans")
    a_catalogue(database, products=[{**product, "metadata": {"limit.projects": "50"}}])
    mended = say(make_app, "plans", "--check")

    assert [never_read.exit_code, faulty.exit_code, mended.exit_code] == [1, 1, 0]
    cure = "To mend it, change the metadata limit.projects of prod_1 at Stripe, or take it away."
    assert f"limit.projects must be a number, unlimited, quantity or 10*quantity. {cure}" in faulty.output
    assert cure in page.text
    assert 'href="https://dashboard.stripe.com/test/products/prod_1"' in page.text


def test_without_stripe_the_plans_are_there_but_for_the_portal(
    make_app: MakeApp, database: Database, sandbox: Control
) -> None:
    a_catalogue(database, **goods(sandbox).content)

    page = a_browser(make_app, **NO_WAY_TO_STRIPE).reads("plans")

    assert "Stripe did not say what the portal offers ( stripe_unreachable )." in page
    assert "team_monthly on sale Team" in page


def test_the_catalogue_is_read_again_on_request_and_the_trail_says_for_whom(
    make_app: MakeApp, database: Database, sandbox: Control
) -> None:
    goods(sandbox)
    done = a_browser(make_app).sends("plans/refresh", seen="plans", reason="a new price")
    [chore] = rows(database, "SELECT name, due_at <= now() AS is_due FROM chores")
    read = say(make_app, "plans", "--refresh", "--json", "--reason", "CI of the shop")

    assert (done.status_code, chore) == (303, {"name": "catalogue", "is_due": True})
    assert "team_monthly" in by_key(json.loads(read.output))
    trail = "SELECT actor, action, reason FROM audit_log WHERE action = 'catalogue.refresh' ORDER BY id"
    assert [tuple(row.values()) for row in rows(database, trail)] == [
        ("ana", "catalogue.refresh", "a new price"),
        ("command", "catalogue.refresh", "CI of the shop"),
    ]
