"""`POST /api/subscriptions/checkout`: one customer and one session per tenant, whatever races or dies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import text
from werkzeug.test import TestResponse

from billing import buying, checkouts, sync
from billing.db import SYSTEM, Database
from billing.errors import CheckoutUnderWay
from sandbox.server import Control
from tests.conftest import MakeApp, create_customer, link, rows
from tests.deliveries import a_subscription, an_event, at_stripe, deliver, logged, take_in
from tests.shopping import (
    BANK_ACCOUNT,
    CHECKOUT,
    CUSTOMERS,
    SESSIONS,
    Shop,
    a_code,
    a_shop,
    goods,
    later,
    subscribes,
)
from tests.tokens import a_token

NO_RETRIES = {"STRIPE_DEADLINE_SECONDS": "1"}  # so little time is left that each call is tried once

OpenShop = Callable[..., Shop]


@pytest.fixture
def open_shop(make_app: MakeApp, database: Database, sandbox: Control) -> OpenShop:
    """A shop with these settings."""
    return lambda **settings: a_shop(make_app(**settings), database, sandbox)


@pytest.fixture
def shop(open_shop: OpenShop) -> Shop:
    return open_shop()


def refusal(answer: TestResponse) -> tuple[int, str]:
    return answer.status_code, (answer.json or {}).get("code", "")


def params_of(shop: Shop) -> dict[str, Any]:
    """What Stripe was asked to open last."""
    params: dict[str, Any] = shop.asked("POST", SESSIONS)[-1]["params"]
    return params


def audited(shop: Shop) -> list[str]:
    found = rows(
        shop.database, "SELECT outcome FROM audit_log WHERE tenant_id = :tenant ORDER BY id", tenant=shop.tenant
    )
    return [row["outcome"] for row in found]


# ---- one click


def test_a_click_makes_the_customer_and_opens_a_session(shop: Shop) -> None:
    answer = shop.click("team_monthly", quantity=5)

    opened = answer.json or {}
    assert answer.status_code == 200
    assert set(opened) == {"url", "session_id", "expires_at"}
    assert answer.headers["Cache-Control"] == "no-store"
    session = shop.at_stripe(opened["session_id"])
    assert (session["url"], session["customer"]) == (opened["url"], shop.customer)
    assert shop.customers_made() == [shop.customer]


def test_everything_but_the_wish_is_decided_by_the_service(shop: Shop) -> None:
    shop.click("team_monthly", quantity=5)

    assert params_of(shop) == {
        "mode": "subscription",
        "customer": shop.customer,
        "line_items": [{"price": goods(shop.sandbox).prices["team_monthly"], "quantity": "5"}],
        "client_reference_id": shop.tenant,
        "metadata": {"tenant_id": shop.tenant},
        "subscription_data": {"metadata": {"tenant_id": shop.tenant}},
        "success_url": "https://app.example.com/settings/billing?checkout={CHECKOUT_SESSION_ID}",
        "cancel_url": "https://app.example.com/settings/billing",
    }


def test_a_tenant_with_a_customer_keeps_it(shop: Shop) -> None:
    shop.linked()

    shop.click()

    assert shop.asked("POST", CUSTOMERS) == []
    assert shop.customers_made() == [shop.customer]


def test_a_tenant_whose_name_is_too_long_for_stripes_reference_is_known_by_the_metadata(shop: Shop) -> None:
    shop = shop.of(shop.tenant.ljust(255, "x"))

    session = shop.at_stripe(shop.opened())

    assert (session["client_reference_id"], session["metadata"]) == (None, {"tenant_id": shop.tenant})


@pytest.mark.parametrize(
    "member", ["customer", "price", "subscription_data", "client_reference_id", "success_url", "tenant_id"]
)
def test_what_the_service_decides_cannot_be_sent(shop: Shop, member: str) -> None:
    answer = shop.click(**{member: "canary-5512"})

    assert refusal(answer) == (400, "invalid_request")
    assert (answer.json or {})["param"] == member
    assert "canary-5512" not in answer.text
    assert shop.sandbox.requests() == []


# ---- plans


@pytest.mark.parametrize(
    "plan", ["secret_monthly", "retired_monthly", "pro_former", "pro_once", "no_such_plan", "TEAM_MONTHLY"]
)
def test_a_plan_that_is_not_on_offer_is_not_found(shop: Shop, plan: str) -> None:
    answer = shop.click(plan)

    assert refusal(answer) == (404, "plan_not_found")
    assert shop.sandbox.requests() == []


def test_a_price_is_not_sold_by_its_id(shop: Shop) -> None:
    answer = shop.click(goods(shop.sandbox).prices["team_monthly"])

    assert refusal(answer) == (404, "plan_not_found")


def test_before_the_catalogue_was_read_nothing_can_be_sold(shop: Shop) -> None:
    later(shop.database, "DELETE FROM catalogue")

    answer = shop.click()

    assert answer.status_code == 503
    assert answer.headers["Retry-After"]


@pytest.mark.parametrize(
    ("plan", "quantity"),
    [
        ("team_monthly", 0),
        ("team_monthly", 1_000_001),
        ("team_monthly", "5"),
        ("team_monthly", True),
        ("crew_monthly", 2),
        ("crew_monthly", 11),
        ("pro_monthly", 2),
    ],
)
def test_a_quantity_that_is_not_sold_is_refused(shop: Shop, plan: str, quantity: object) -> None:
    answer = shop.click(plan, quantity=quantity)

    assert refusal(answer) == (400, "invalid_request")
    assert (answer.json or {})["param"] == "quantity"
    assert shop.sandbox.requests() == []


@pytest.mark.parametrize(
    ("plan", "quantity", "bought"),
    [
        ("team_monthly", None, "1"),
        ("crew_monthly", None, "3"),
        ("crew_monthly", 10, "10"),
        ("pro_monthly", 1, "1"),
    ],
)
def test_without_a_quantity_it_is_the_smallest_that_is_sold(
    shop: Shop, plan: str, quantity: int | None, bought: str
) -> None:
    shop.click(plan, quantity=quantity)

    assert params_of(shop)["line_items"][0]["quantity"] == bought


# ---- promotion codes

PROMOTED = {"BILLING_PROMOTION_CODES": "true"}


def test_a_promotion_code_is_taken_off(open_shop: OpenShop) -> None:
    shop = open_shop(**PROMOTED)
    code = a_code(shop.sandbox, f"SPRING-{shop.tenant[2:]}")

    session = shop.at_stripe(shop.opened(promotion_code=code["code"].lower()))

    assert session["discounts"][0]["promotion_code"] == code["id"]
    assert session["amount_total"] == 900


def test_where_there_are_codes_a_customer_without_one_may_type_it_at_stripe(open_shop: OpenShop) -> None:
    shop = open_shop(**PROMOTED)

    shop.click()

    assert params_of(shop)["allow_promotion_codes"] == "true"
    assert "discounts" not in params_of(shop)


def unknown(shop: Shop, word: str) -> None:
    pass


def no_longer_active(shop: Shop, word: str) -> None:
    code = a_code(shop.sandbox, word)
    at_stripe(shop.sandbox, "POST", f"promotion_codes/{code['id']}", active="false")


def expired(shop: Shop, word: str) -> None:
    a_code(shop.sandbox, word, expires_at=shop.sandbox.now() + 10)
    shop.sandbox.advance(10)


def good(shop: Shop, word: str) -> None:
    a_code(shop.sandbox, word)


@pytest.mark.parametrize(
    ("code", "allowed"),
    [(unknown, "true"), (no_longer_active, "true"), (expired, "true"), (good, "false")],
    ids=["unknown", "no longer active", "expired", "good where none are taken"],
)
def test_a_promotion_code_that_does_not_hold_is_refused(
    open_shop: OpenShop, code: Callable[[Shop, str], None], allowed: str
) -> None:
    shop = open_shop(BILLING_PROMOTION_CODES=allowed)
    word = f"SUMMER-{shop.tenant[2:]}"
    code(shop, word)

    answer = shop.click(promotion_code=word)

    assert refusal(answer) == (400, "invalid_request")
    assert (answer.json or {})["param"] == "promotion_code"
    assert shop.asked("POST", SESSIONS) == []


def test_a_promotion_code_that_is_not_for_this_purchase_is_refused_and_stands_in_nobodys_way(
    open_shop: OpenShop,
) -> None:
    shop = open_shop(**PROMOTED)
    word = f"LARGE-{shop.tenant[2:]}"
    least = {"restrictions[minimum_amount]": 5000, "restrictions[minimum_amount_currency]": "usd"}
    a_code(shop.sandbox, word, **least)

    answer = shop.click(promotion_code=word)

    assert refusal(answer) == (400, "invalid_request")
    assert (answer.json or {})["param"] == "promotion_code"
    assert shop.click(promotion_code=word, quantity=5).status_code == 200


# ---- return addresses


@pytest.mark.parametrize(
    ("return_url", "success_url", "cancel_url"),
    [
        (
            "/plans",
            "https://app.example.com/plans?checkout={CHECKOUT_SESSION_ID}",
            "https://app.example.com/plans",
        ),
        (
            "/plans?tab=team&x=%7B1%7D#prices",
            "https://app.example.com/plans?tab=team&x=%7B1%7D&checkout={CHECKOUT_SESSION_ID}#prices",
            "https://app.example.com/plans?tab=team&x=%7B1%7D#prices",
        ),
        (
            "https://shop.example.com/done",
            "https://shop.example.com/done?checkout={CHECKOUT_SESSION_ID}",
            "https://shop.example.com/done",
        ),
    ],
)
def test_checkout_leads_back_to_where_the_caller_wants(
    open_shop: OpenShop, return_url: str, success_url: str, cancel_url: str
) -> None:
    shop = open_shop(BILLING_RETURN_ORIGINS="https://shop.example.com")

    shop.click(return_url=return_url)

    assert (params_of(shop)["success_url"], params_of(shop)["cancel_url"]) == (success_url, cancel_url)


@pytest.mark.parametrize(
    "return_url",
    [
        *("https://evil.example", "//evil.example", "https://app.example.com@evil.example"),
        "/back?checkout={CHECKOUT_SESSION_ID}",
    ],
)
def test_a_return_address_outside_the_list_is_refused(shop: Shop, return_url: str) -> None:
    answer = shop.click(return_url=return_url)

    assert refusal(answer) == (400, "return_url_not_allowed")
    assert shop.sandbox.requests() == []


# ---- trials and taxes


def test_a_plan_is_tried_for_as_long_as_the_catalogue_says(open_shop: OpenShop) -> None:
    shop = open_shop(BILLING_TRIAL_DAYS="7")

    shop.click("pro_tried")
    shop.click("pro_monthly")

    asked = [one["params"] for one in shop.asked("POST", SESSIONS) if not one["path"].endswith("/expire")]
    assert [one["subscription_data"]["trial_period_days"] for one in asked] == ["14", "7"]


def test_a_tenant_tries_once_even_if_it_canceled(shop: Shop) -> None:
    shop.sandbox.complete_checkout(shop.opened("pro_tried"))
    [subscription] = shop.subscriptions()
    at_stripe(shop.sandbox, "DELETE", f"subscriptions/{subscription['id']}")
    shop.hear()

    shop.click("pro_tried")

    assert "trial_period_days" not in params_of(shop)["subscription_data"]


def test_a_trial_that_another_of_its_customers_had_was_the_tenants(shop: Shop) -> None:
    shop.sandbox.complete_checkout(shop.opened("pro_tried"))
    former = shop.customer
    at_stripe(shop.sandbox, "DELETE", f"customers/{former}")
    shop.hear()

    shop.click("pro_tried")

    assert shop.customer != former
    assert "trial_period_days" not in params_of(shop)["subscription_data"]


def test_where_stripe_works_out_taxes_it_may_ask_for_what_they_depend_on(open_shop: OpenShop) -> None:
    shop = open_shop(BILLING_AUTOMATIC_TAX="true")

    session = shop.opened()

    assert params_of(shop)["automatic_tax"] == {"enabled": "true"}
    shop.sandbox.complete_checkout(session)
    assert shop.at_stripe(session)["automatic_tax"]["status"] == "complete"


# ---- one open session


def test_the_same_wish_leads_to_the_same_session(shop: Shop) -> None:
    first, second = shop.click(quantity=5), shop.click(quantity=5)

    assert first.json == second.json
    assert len(shop.open_sessions()) == 1


@pytest.mark.parametrize("other", [{"quantity": 6}, {"plan": "team_yearly"}, {"return_url": "/elsewhere"}])
def test_another_wish_closes_the_session_before_it_opens_its_own(shop: Shop, other: dict[str, Any]) -> None:
    first = shop.opened()

    second = shop.opened(**other)

    calls = [one["path"] for one in shop.asked("POST", SESSIONS)]
    assert calls == [SESSIONS, f"{SESSIONS}/{first}/expire", SESSIONS]
    assert shop.open_sessions() == [second]


def test_a_session_that_has_expired_gives_way(shop: Shop) -> None:
    first = shop.opened()
    at_stripe(shop.sandbox, "POST", f"checkout/sessions/{first}/expire")

    second = shop.opened()

    assert second != first
    assert shop.open_sessions() == [second]


def test_no_session_is_opened_while_stripe_does_not_say_that_the_old_one_is_over(
    open_shop: OpenShop, sandbox: Control
) -> None:
    shop = open_shop(**NO_RETRIES)
    first = shop.opened()
    sandbox.fault("400", path=f"{SESSIONS}/{first}/expire")

    answer = shop.click(quantity=6)

    assert refusal(answer) == (502, "stripe_error")
    assert shop.open_sessions() == [first]


def test_two_tenants_have_nothing_to_do_with_each_other(shop: Shop) -> None:
    other = shop.of(f"{shop.tenant}_2")

    sessions = [shop.opened(), other.opened()]

    assert sessions == [*shop.open_sessions(), *other.open_sessions()]
    assert shop.customer != other.customer


# ---- races


def test_fifty_clicks_at_once_make_one_customer_and_one_session(open_shop: OpenShop) -> None:
    shop = open_shop(BILLING_LINKS_PER_MINUTE="1000")

    with ThreadPoolExecutor(50) as callers:
        answers = list(callers.map(lambda _: shop.click(quantity=5), range(50)))

    assert Counter(answer.status_code for answer in answers) == {200: 50}
    assert len({(answer.json or {})["url"] for answer in answers}) == 1
    assert len(shop.asked("POST", CUSTOMERS)) == 1
    assert len(shop.open_sessions()) == 1


def test_of_wishes_that_race_one_session_stays_open(open_shop: OpenShop) -> None:
    shop = open_shop(BILLING_LINKS_PER_MINUTE="1000")

    with ThreadPoolExecutor(12) as callers:
        answers = list(callers.map(lambda n: shop.click(quantity=1 + n % 3), range(12)))

    assert {answer.status_code for answer in answers} <= {200, 503}
    assert len(shop.open_sessions()) == 1
    assert len(shop.customers_made()) == 1


@pytest.mark.parametrize("wishes", [1, 2], ids=["of one mind", "of two minds"])
def test_without_turns_it_would_still_be_one_customer_and_one_session(
    open_shop: OpenShop, monkeypatch: pytest.MonkeyPatch, wishes: int
) -> None:
    """Turns spare Stripe the race; that it ends well is owed to what is written down before."""
    monkeypatch.setattr(checkouts, "take_turn", lambda *_: True)
    shop = open_shop(BILLING_LINKS_PER_MINUTE="1000")

    with ThreadPoolExecutor(6) as callers:
        answers = list(callers.map(lambda n: shop.click(quantity=1 + n % wishes), range(6)))

    assert {answer.status_code for answer in answers} <= {200, 503}
    assert shop.customers_made() == [shop.customer]
    assert len(shop.open_sessions()) <= 1
    session = shop.opened(quantity=1)
    assert shop.open_sessions() == [session]


def test_whoever_died_in_the_middle_holds_the_next_one_up_for_a_while_only(shop: Shop) -> None:
    holding = "INSERT INTO checkout_turns VALUES (:tenant, 'dead', clock_timestamp() + interval '0.3 seconds')"
    later(shop.database, holding, tenant=shop.tenant)

    answer = shop.click()

    assert answer.status_code == 200


def test_who_waits_in_vain_is_told_to_come_back_and_it_is_written_down(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buying, "PATIENCE_SECONDS", 0.2)
    later(
        shop.database,
        "INSERT INTO checkout_turns VALUES (:tenant, 'slow', clock_timestamp() + interval '1 minute')",
        tenant=shop.tenant,
    )

    answer = shop.click()

    assert answer.status_code == 503
    assert answer.headers["Retry-After"]
    assert audited(shop) == ["checkout_busy"]


# ---- bought already


@pytest.mark.parametrize("status", ["trialing", "active", "past_due", "unpaid", "paused"])
def test_whoever_has_a_subscription_is_sent_to_the_portal(shop: Shop, status: str) -> None:
    shop.linked()
    held = a_subscription(shop.customer, status=status, id=f"sub_of_{shop.tenant}")
    deliver(shop.app.test_client(), an_event("customer.subscription.updated", held))
    take_in(shop.database)

    answer = shop.click()

    assert refusal(answer) == (409, "already_subscribed")
    assert "portal" in (answer.json or {})["error"]
    assert shop.open_sessions() == []


@pytest.mark.parametrize("wish", [{}, {"quantity": 6}], ids=["the same", "another"])
def test_what_was_just_bought_is_not_sold_again_although_nothing_was_heard_of_it(
    shop: Shop, wish: dict[str, Any]
) -> None:
    shop.sandbox.complete_checkout(shop.opened())

    answer = shop.click(**wish)

    assert refusal(answer) == (409, "already_subscribed")
    assert shop.document()["state"] == "active"


def test_a_session_that_is_paid_just_before_it_would_be_closed_counts(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = shop.opened()
    expire = shop.app.extensions["billing"].stripe.expire_checkout

    def too_late(id: str) -> object:
        shop.sandbox.complete_checkout(id)
        return expire(id)

    monkeypatch.setattr(shop.app.extensions["billing"].stripe, "expire_checkout", too_late)

    answer = shop.click(quantity=6)

    assert refusal(answer) == (409, "already_subscribed")
    assert [one["path"] for one in shop.asked("POST", f"{SESSIONS}/")] == [f"{SESSIONS}/{session}/expire"]
    assert shop.document()["quantity"] == 1


def test_a_subscription_from_elsewhere_that_nobody_told_of_is_found_before_anything_is_sold(shop: Shop) -> None:
    shop.linked()
    subscribes(shop)

    answer = shop.click()

    assert refusal(answer) == (409, "already_subscribed")
    assert shop.open_sessions() == []


def test_after_a_subscription_has_ended_another_can_be_bought(shop: Shop) -> None:
    shop.linked()
    subscription = subscribes(shop)
    at_stripe(shop.sandbox, "DELETE", f"subscriptions/{subscription['id']}")

    answer = shop.click()

    assert answer.status_code == 200


# ---- first payments that did not come, or are on their way


def test_a_subscription_whose_first_payment_never_came_is_canceled_before_another_is_sold(shop: Shop) -> None:
    shop.linked()
    subscription = subscribes(shop, payment_behavior="default_incomplete")

    answer = shop.click()

    calls = [(one["method"], one["path"]) for one in shop.sandbox.requests()]
    assert answer.status_code == 200
    assert calls.index(("DELETE", f"/v1/subscriptions/{subscription['id']}")) < calls.index(("POST", SESSIONS))
    assert [one["status"] for one in shop.subscriptions()] == ["incomplete_expired"]


def test_a_first_payment_that_came_without_our_hearing_of_it_is_not_canceled(shop: Shop) -> None:
    shop.linked()
    subscription = subscribes(shop, payment_behavior="default_incomplete")
    shop.look()
    at_stripe(shop.sandbox, "POST", f"invoices/{subscription['latest_invoice']}/pay")

    answer = shop.click()

    assert refusal(answer) == (409, "already_subscribed")
    assert [one["status"] for one in shop.subscriptions()] == ["active"]


def test_one_that_is_paid_in_the_moment_before_it_is_canceled_is_said_loudly(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shop.linked()
    subscription = subscribes(shop, payment_behavior="default_incomplete")
    stripe, said = shop.app.extensions["billing"].stripe, logged(caplog)
    cancel = stripe.cancel_subscription

    def too_late(id: str) -> object:
        at_stripe(shop.sandbox, "POST", f"invoices/{subscription['latest_invoice']}/pay")
        return cancel(id)

    monkeypatch.setattr(stripe, "cancel_subscription", too_late)

    shop.click()

    loud = [line for line in said() if line["event"] == "subscription.canceled_though_paid"]
    assert [(line["subscription"], line["level"]) for line in loud] == [(subscription["id"], "error")]


def test_where_stripe_will_not_cancel_the_unpaid_one_nothing_else_is_sold(shop: Shop) -> None:
    shop.linked()
    subscription = subscribes(shop, payment_behavior="default_incomplete")
    shop.sandbox.fault("400", method="DELETE")

    answer = shop.click()

    assert refusal(answer) == (409, "payment_processing")
    assert [one["id"] for one in shop.subscriptions()] == [subscription["id"]]
    assert shop.open_sessions() == []


@pytest.mark.parametrize("paid", [True, False])
def test_while_a_bank_is_about_to_pay_nothing_else_is_sold_and_neither_afterwards(
    shop: Shop, paid: bool
) -> None:
    session = shop.opened()
    shop.sandbox.complete_checkout(session, BANK_ACCOUNT)

    during = shop.click(quantity=6)
    shop.sandbox.settle_payment(session, succeed=paid)
    shop.hear()
    afterwards = shop.click(quantity=6)

    assert during.status_code == 409
    assert refusal(afterwards) == (409, "already_subscribed")
    assert shop.document()["state"] == ("active" if paid else "grace")
    assert shop.open_sessions() == []


# ---- customers that are being made

LOST: dict[str, dict[str, Any]] = {
    "made, and the answer lost": {"kind": "reset", "after": True},
    "made, and no answer": {"kind": "hang", "after": True},
    "not available": {"kind": "503"},
    "failed, for this key for ever": {"kind": "500"},
}


@pytest.mark.parametrize("fault", LOST.values(), ids=LOST)
def test_a_customer_that_may_have_been_made_is_not_made_again(
    open_shop: OpenShop, sandbox: Control, fault: dict[str, Any]
) -> None:
    shop = open_shop(**NO_RETRIES)
    sandbox.fault(**fault, method="POST", path=CUSTOMERS, times=1)

    first, second = shop.click(), shop.click()

    assert refusal(first) == (503, "stripe_unavailable")
    assert first.headers["Retry-After"]
    assert second.status_code == 200
    assert shop.customers_made() == [shop.customer]
    assert audited(shop)[1:] == ["opened"]


def test_a_customer_that_was_made_before_stripe_failed_is_left_behind_and_never_linked(
    open_shop: OpenShop, sandbox: Control
) -> None:
    shop = open_shop(**NO_RETRIES)
    sandbox.fault("500", after=True, method="POST", path=CUSTOMERS, times=1)
    shop.click()
    [spare] = shop.customers_made()

    shop.opened()

    assert set(shop.customers_made()) == {spare, shop.customer}
    assert spare != shop.customer


def test_a_customer_that_was_deleted_before_we_heard_of_it_is_made_anew(
    open_shop: OpenShop, sandbox: Control
) -> None:
    shop = open_shop(**NO_RETRIES)
    sandbox.fault("reset", after=True, method="POST", path=CUSTOMERS, times=1)
    shop.click()
    [gone] = shop.customers_made()
    at_stripe(sandbox, "DELETE", f"customers/{gone}")

    shop.opened()

    assert shop.customers_made() == [shop.customer]


def test_when_stripe_may_have_forgotten_the_key_the_customer_is_looked_for(
    open_shop: OpenShop, sandbox: Control
) -> None:
    shop = open_shop(**NO_RETRIES)
    sandbox.fault("reset", after=True, method="POST", path=CUSTOMERS, times=1)
    shop.click()
    [made] = shop.customers_made()
    later(shop.database, "UPDATE customer_intents SET created_at = created_at - interval '23 hours'")

    shop.opened()

    assert shop.customer == made
    assert len(shop.asked("POST", CUSTOMERS)) == 1


def test_where_nothing_is_found_by_then_a_customer_is_made(open_shop: OpenShop, sandbox: Control) -> None:
    shop = open_shop(**NO_RETRIES)
    sandbox.fault("503", method="POST", path=CUSTOMERS, times=1)
    shop.click()
    later(shop.database, "UPDATE customer_intents SET created_at = created_at - interval '23 hours'")

    shop.opened()

    assert shop.customers_made() == [shop.customer]


def test_a_customer_that_is_deleted_at_stripe_gets_a_successor(shop: Shop) -> None:
    shop.opened()
    former = shop.customer
    at_stripe(shop.sandbox, "DELETE", f"customers/{former}")
    shop.hear()

    session = shop.opened()

    assert shop.customers_made() == [shop.customer]
    assert shop.at_stripe(session)["customer"] == shop.customer


def test_a_customer_whose_end_nobody_told_of_gets_a_successor_with_the_second_click_at_the_latest(
    shop: Shop,
) -> None:
    shop.linked()
    shop.opened()
    former = shop.customer
    at_stripe(shop.sandbox, "POST", f"checkout/sessions/{shop.open_sessions()[0]}/expire")
    at_stripe(shop.sandbox, "DELETE", f"customers/{former}")

    shop.click()
    second = shop.click()

    assert second.status_code == 200
    assert shop.customer != former


# ---- sessions that are being opened


@pytest.mark.parametrize("fault", LOST.values(), ids=LOST)
def test_a_session_that_may_have_been_opened_is_not_opened_again(
    open_shop: OpenShop, sandbox: Control, fault: dict[str, Any]
) -> None:
    shop = open_shop(**NO_RETRIES)
    sandbox.fault(**fault, method="POST", path=SESSIONS, times=1)

    first, second = shop.click(), shop.click()

    assert refusal(first) == (503, "stripe_unavailable")
    assert first.headers["Retry-After"]
    assert second.status_code == 200
    assert shop.open_sessions() == [(second.json or {})["session_id"]]
    assert shop.customers_made() == [shop.customer]


def test_a_session_of_which_nobody_heard_is_closed_before_another_wish_has_its_own(
    open_shop: OpenShop, sandbox: Control
) -> None:
    shop = open_shop(**NO_RETRIES)
    sandbox.fault("reset", after=True, method="POST", path=SESSIONS, times=1)
    shop.click()

    session = shop.opened(quantity=6)

    assert shop.open_sessions() == [session]


def test_a_wish_that_stripe_will_never_take_does_not_stand_in_the_way_of_another(
    open_shop: OpenShop, sandbox: Control
) -> None:
    shop = open_shop(**NO_RETRIES)
    sandbox.fault("503", method="POST", path=SESSIONS, times=1)
    shop.click()
    sandbox.fault("400", method="POST", path=SESSIONS, times=1)

    answer = shop.click(quantity=6)

    assert answer.status_code == 200


# ---- Stripe is away


def without_a_customer(shop: Shop) -> None:
    pass


def with_a_session(shop: Shop) -> None:
    shop.opened(quantity=2)


def with_a_customer_nobody_has_asked_about(shop: Shop) -> None:
    shop.linked()


STEPS = {
    "making the customer": (without_a_customer, "POST", CUSTOMERS),
    "asking about the customer": (with_a_customer_nobody_has_asked_about, "GET", "/v1/subscriptions"),
    "opening the session": (without_a_customer, "POST", SESSIONS),
    "looking at the session": (with_a_session, "GET", SESSIONS),
    "closing the session": (with_a_session, "POST", SESSIONS),
    "looking up the code": (without_a_customer, "GET", "/v1/promotion_codes"),
}


@pytest.mark.parametrize(
    ("kind", "told"), [("503", (503, "stripe_unavailable")), ("400", (502, "stripe_error"))]
)
@pytest.mark.parametrize(("before", "method", "path"), STEPS.values(), ids=STEPS)
def test_without_stripe_at_any_step_nothing_is_lost(
    open_shop: OpenShop,
    monkeypatch: pytest.MonkeyPatch,
    before: Callable[[Shop], None],
    method: str,
    path: str,
    kind: str,
    told: tuple[int, str],
) -> None:
    monkeypatch.setattr(sync, "INSIST_SECONDS", 0.3)
    shop = open_shop(**NO_RETRIES, **PROMOTED)
    word = a_code(shop.sandbox, f"CODE-{shop.tenant[2:]}")["code"]
    before(shop)
    shop.sandbox.fault(kind, method=method, path=path)

    during = shop.click(promotion_code=word)
    shop.sandbox.send("DELETE", "faults")
    monkeypatch.undo()
    later(shop.database, "UPDATE stripe_customers SET wanted_at = now() WHERE wanted_at IS NOT NULL")
    afterwards = shop.click(promotion_code=word)

    told = (503, "stripe_unavailable") if path == "/v1/subscriptions" else told
    assert refusal(during) == told
    assert (during.headers.get("Retry-After") is not None) == (told[0] == 503)
    assert afterwards.status_code == 200
    assert shop.open_sessions() == [(afterwards.json or {})["session_id"]]
    assert len(shop.customers_made()) == 1


# ---- the caller's own key


def test_the_same_key_and_wish_give_the_same_session(shop: Shop) -> None:
    first, second = shop.click(key="k1"), shop.click(key="k1")

    assert (first.status_code, first.json) == (200, second.json)


@pytest.mark.parametrize("other", [{"quantity": 2}, {"plan": "pro_monthly"}, {"return_url": "/elsewhere"}])
def test_a_key_is_good_for_one_wish(shop: Shop, other: dict[str, Any]) -> None:
    session = shop.opened(key="k1")

    answer = shop.click(**other, key="k1")

    assert refusal(answer) == (422, "idempotency_key_reused")
    assert shop.open_sessions() == [session]


def test_a_key_that_came_with_a_session_that_was_open_already_is_good_for_that_wish_only(shop: Shop) -> None:
    session = shop.opened()
    shop.opened(key="k1")

    answer = shop.click(quantity=2, key="k1")

    assert refusal(answer) == (422, "idempotency_key_reused")
    assert shop.open_sessions() == [session]


def test_two_tenants_may_use_the_same_key(shop: Shop) -> None:
    other = shop.of(f"{shop.tenant}_2")

    answers = [shop.click(key="k1"), other.click(quantity=2, key="k1")]

    assert [answer.status_code for answer in answers] == [200, 200]


@pytest.mark.parametrize("key", ["", "k" * 256, "schlüssel"])
def test_a_key_that_is_none_is_refused(shop: Shop, key: str) -> None:
    answer = shop.click(key=key)

    assert refusal(answer) == (400, "invalid_request")
    assert (answer.json or {})["param"] == "Idempotency-Key"


# ---- who may, how often, and what is left behind


def test_only_those_who_manage_billing_may_buy(open_shop: OpenShop) -> None:
    shop = open_shop(BILLING_MANAGER_ROLES="owner")
    owner = {"Authorization": f"Bearer {a_token(tenant_id=shop.tenant, roles=['owner'])}"}

    refused = shop.click()
    bought = shop.app.test_client().post(CHECKOUT, headers=owner, json={"plan": "team_monthly"})

    assert refusal(refused) == (403, "forbidden")
    assert bought.status_code == 200
    assert audited(shop) == ["forbidden", "opened"]


def test_a_tenant_gets_so_many_links_a_minute(open_shop: OpenShop) -> None:
    shop = open_shop(BILLING_LINKS_PER_MINUTE="2")

    answers = [shop.click() for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert refusal(answers[-1]) == (429, "rate_limited")
    assert 1 <= int(answers[-1].headers["Retry-After"]) <= 60


def test_without_a_token_there_is_nothing_to_buy(shop: Shop) -> None:
    answer = shop.app.test_client().post(CHECKOUT, json={"plan": "team_monthly"})

    assert answer.status_code == 401
    assert shop.sandbox.requests() == []


def test_every_attempt_leaves_a_row_that_says_what_came_of_it(shop: Shop) -> None:
    session = shop.opened()
    shop.click("no_such_plan")
    shop.sandbox.complete_checkout(session)
    shop.click()

    trail = rows(shop.database, "SELECT action, outcome, stripe_object FROM audit_log ORDER BY id")
    assert [tuple(row.values()) for row in trail] == [
        ("checkout", "opened", session),
        ("checkout", "plan_not_found", None),
        ("checkout", "already_subscribed", None),
    ]


def test_the_link_is_kept_nowhere(shop: Shop) -> None:
    url = (shop.click().json or {})["url"]

    with shop.database.begin(SYSTEM) as connection:
        tables = connection.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).all()
    kept = {table: str(rows(shop.database, f"SELECT * FROM {table}")) for table in tables}
    assert [table for table, content in kept.items() if url in content] == []


# ---- and the operator


def test_a_tenant_gets_no_other_customer_while_it_may_be_paying(shop: Shop) -> None:
    session = shop.opened()
    other = create_customer(shop.sandbox)

    with pytest.raises(CheckoutUnderWay):
        sync.link(shop.database, shop.tenant, other, by="command", replace=True)

    at_stripe(shop.sandbox, "POST", f"checkout/sessions/{session}/expire")
    shop.hear()
    sync.link(shop.database, shop.tenant, other, by="command", replace=True)
    assert shop.customer == other


def test_a_tenant_gets_no_other_customer_while_its_own_is_being_made(
    open_shop: OpenShop, sandbox: Control
) -> None:
    shop = open_shop(**NO_RETRIES)
    sandbox.fault("503", method="POST", path=CUSTOMERS, times=1)
    shop.click()

    with pytest.raises(CheckoutUnderWay):
        sync.link(shop.database, shop.tenant, create_customer(sandbox), by="command")


def test_the_command_says_that_a_checkout_is_under_way(shop: Shop) -> None:
    shop.opened()
    other = create_customer(shop.sandbox)

    told = shop.app.test_cli_runner().invoke(
        args=["billing", "tenants", "link", shop.tenant, other, "--replace"]
    )

    assert told.exit_code == 1
    assert "checkout_under_way" in told.output


def test_a_customer_that_another_tenant_has_is_not_taken_from_it(shop: Shop, customer: str) -> None:
    link(shop.database, "t_other", customer)

    shop.opened()

    assert shop.customer != customer
