"""`GET /api/subscriptions/checkout/{session_id}`: back from Stripe before the webhook, after it, or without.

Whichever comes first, the tenant's document ends up the same and its version has grown by one.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from werkzeug.test import TestResponse

from billing import sync
from billing.db import Database
from sandbox.server import Control
from tests.conftest import MakeApp
from tests.deliveries import Json, at_stripe
from tests.shopping import (
    BANK_ACCOUNT,
    CHECKOUT,
    DECLINED,
    SESSIONS,
    THREE_D_SECURE,
    Shop,
    a_shop,
    long_after_the_last_look,
)


@pytest.fixture
def shop(make_app: MakeApp, database: Database, sandbox: Control) -> Shop:
    return a_shop(make_app(STRIPE_DEADLINE_SECONDS="1"), database, sandbox)


def status_of(answer: TestResponse) -> str:
    assert answer.status_code == 200, answer.text
    return str((answer.json or {})["status"])


def looks(shop: Shop, session: str) -> int:
    """How often Stripe was asked about the session."""
    return len(shop.asked("GET", f"{SESSIONS}/{session}"))


# ---- whose it is


@pytest.mark.parametrize(
    "session", ["cs_test_nobodys", "cs_", "cus_1", "cs_test_1%00", "cs_té", f"cs_{'x' * 300}"]
)
def test_a_session_that_is_none_is_not_found(shop: Shop, session: str) -> None:
    answer = shop.back(session)

    assert (answer.status_code, (answer.json or {})["code"]) == (404, "checkout_not_found")
    assert shop.sandbox.requests() == []


def test_another_tenants_session_is_not_found_either_and_not_told_from_one_that_is_none(shop: Shop) -> None:
    session = shop.opened()
    other = shop.of(f"{shop.tenant}_2")
    other.opened()

    answers = [other.back(id).json or {} for id in (session, "cs_test_nobodys")]

    assert [answer.pop("request_id") is None for answer in answers] == [False, False]
    assert answers[0] == answers[1]
    assert looks(shop, session) == 0


def test_a_session_that_was_opened_by_other_ways_than_ours_is_not_found(shop: Shop) -> None:
    shop.linked()
    opened = {"mode": "setup", "currency": "usd", "success_url": "https://app.example.com"}
    session = at_stripe(shop.sandbox, "POST", "checkout/sessions", customer=shop.customer, **opened)

    assert shop.back(session["id"]).status_code == 404


def test_without_a_token_nothing_is_told(shop: Shop) -> None:
    session = shop.opened()

    answer = shop.app.test_client().get(f"{CHECKOUT}/{session}")

    assert answer.status_code == 401


# ---- how it stands


def test_a_session_that_is_open_can_be_gone_on_with(shop: Shop) -> None:
    opened = shop.click().json or {}

    answer = shop.back(opened["session_id"])

    assert answer.json == {
        "session_id": opened["session_id"],
        "status": "open",
        "url": opened["url"],
        "entitlements": None,
    }
    assert answer.headers["Retry-After"] == "2"
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("heard", [False, True])
def test_a_session_that_has_expired_says_so(shop: Shop, heard: bool) -> None:
    session = shop.opened()
    at_stripe(shop.sandbox, "POST", f"checkout/sessions/{session}/expire")
    if heard:
        shop.hear()

    answer = shop.back(session)

    assert status_of(answer) == "expired"
    assert "Retry-After" not in answer.headers
    assert looks(shop, session) == (0 if heard else 1)


def test_a_session_that_gave_way_to_another_wish_has_expired(shop: Shop) -> None:
    session = shop.opened()
    shop.opened(quantity=2)

    assert status_of(shop.back(session)) == "expired"


def test_a_trial_needs_no_payment_to_be_complete(shop: Shop) -> None:
    session = shop.opened("pro_tried")
    shop.sandbox.complete_checkout(session)

    answer = shop.back(session)

    assert status_of(answer) == "complete"
    assert (answer.json or {})["entitlements"]["state"] == "trialing"


# ---- before, after, at once


def back_alone(shop: Shop, session: str) -> None:
    shop.back(session)


def back_before_the_webhook(shop: Shop, session: str) -> None:
    shop.back(session)
    shop.hear()


def back_after_the_webhook(shop: Shop, session: str) -> None:
    shop.hear()
    shop.back(session)


def back_and_webhook_at_once(shop: Shop, session: str) -> None:
    with ThreadPoolExecutor(2) as at_once:
        coming, hearing = at_once.submit(shop.back, session), at_once.submit(shop.hear)
        coming.result()
        hearing.result()
    shop.hear()


def back_in_three_tabs(shop: Shop, session: str) -> None:
    with ThreadPoolExecutor(3) as tabs:
        list(tabs.map(shop.back, [session] * 3))


def webhook_alone(shop: Shop, session: str) -> None:
    shop.hear()


def webhook_twice(shop: Shop, session: str) -> None:
    shop.hear()
    shop.hear()


WAYS = [
    back_alone,
    back_before_the_webhook,
    back_after_the_webhook,
    back_and_webhook_at_once,
    back_in_three_tabs,
    webhook_alone,
    webhook_twice,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_whichever_comes_first_the_document_is_the_same_and_one_version_on(
    shop: Shop, way: Callable[[Shop, str], None]
) -> None:
    session = shop.opened(quantity=5)
    before = shop.document()
    shop.sandbox.complete_checkout(session)

    way(shop, session)

    after = shop.document()
    assert (before["state"], after["state"]) == ("none", "active")
    assert after["version"] == before["version"] + 1
    assert (after["plan"], after["quantity"], after["access"]) == ("team_monthly", 5, True)
    assert after["features"]["seats"] == {"enabled": True, "limit": 5}
    assert after["stripe"]["subscription"] == shop.subscriptions()[0]["id"]
    long_after_the_last_look(shop.database)
    assert without_freshness((shop.back(session).json or {})["entitlements"]) == without_freshness(after)


def without_freshness(document: Json) -> Json:
    return {name: value for name, value in document.items() if name not in ("as_of", "stale")}


def test_what_was_bought_is_there_for_the_next_reader(shop: Shop) -> None:
    session = shop.opened()
    shop.document()
    shop.sandbox.complete_checkout(session)

    answer = shop.back(session)

    assert shop.document() == (answer.json or {})["entitlements"]


def test_what_became_of_it_later_is_no_news_of_the_session(shop: Shop) -> None:
    session = shop.opened()
    shop.sandbox.complete_checkout(session)
    shop.back(session)
    at_stripe(shop.sandbox, "DELETE", f"subscriptions/{shop.subscriptions()[0]['id']}")
    shop.hear()

    answer = shop.back(session)

    assert status_of(answer) == "complete"
    assert (answer.json or {})["entitlements"]["state"] == "none"


# ---- how often Stripe is asked


def test_a_page_that_asks_all_the_time_has_stripe_asked_once_in_two_seconds(shop: Shop) -> None:
    session = shop.opened()

    for _ in range(4):
        assert status_of(shop.back(session)) == "open"

    assert looks(shop, session) == 1
    long_after_the_last_look(shop.database)
    shop.back(session)
    assert looks(shop, session) == 2


def test_what_the_webhook_brings_meanwhile_does_not_wait_for_the_next_look(shop: Shop) -> None:
    session = shop.opened()
    shop.back(session)
    shop.sandbox.complete_checkout(session)
    assert status_of(shop.back(session)) == "open"

    shop.hear()

    assert status_of(shop.back(session)) == "complete"
    assert looks(shop, session) == 1


def test_once_it_has_arrived_stripe_is_not_asked_again(shop: Shop) -> None:
    session = shop.opened()
    shop.sandbox.complete_checkout(session)
    shop.back(session)
    long_after_the_last_look(shop.database)
    asked = len(shop.sandbox.requests())

    assert status_of(shop.back(session)) == "complete"

    assert len(shop.sandbox.requests()) == asked


# ---- Stripe is away


@pytest.mark.parametrize("away", [SESSIONS, "/v1/subscriptions"])
@pytest.mark.parametrize("kind", ["503", "reset"])
def test_without_stripe_the_page_asks_on_and_the_webhook_finishes_the_job(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, away: str, kind: str
) -> None:
    monkeypatch.setattr(sync, "INSIST_SECONDS", 0.2)
    session = shop.opened()
    shop.sandbox.complete_checkout(session)
    shop.sandbox.fault(kind, method="GET", path=away)

    answer = shop.back(session)

    assert (answer.status_code, (answer.json or {})["code"]) == (503, "stripe_unavailable")
    assert int(answer.headers["Retry-After"]) > 0
    shop.sandbox.send("DELETE", "faults")
    shop.hear()
    assert status_of(shop.back(session)) == "complete"
    assert shop.document()["state"] == "active"


def test_without_the_webhook_the_next_look_finishes_the_job(shop: Shop) -> None:
    session = shop.opened()
    shop.sandbox.complete_checkout(session)
    shop.sandbox.fault("503", method="GET", path=SESSIONS, times=1)
    shop.back(session)
    long_after_the_last_look(shop.database)

    answer = shop.back(session)

    assert status_of(answer) == "complete"


# ---- cards and banks


def test_a_card_that_is_declined_leaves_the_session_open(shop: Shop) -> None:
    session = shop.opened()
    with pytest.raises(ValueError, match="declined"):
        shop.sandbox.complete_checkout(session, DECLINED)
    assert status_of(shop.back(session)) == "open"

    shop.sandbox.complete_checkout(session)
    long_after_the_last_look(shop.database)

    assert status_of(shop.back(session)) == "complete"


def test_a_card_whose_holder_is_to_be_authenticated_has_paid_after_that(shop: Shop) -> None:
    session = shop.opened()
    shop.sandbox.complete_checkout(session, THREE_D_SECURE)
    assert status_of(shop.back(session)) == "open"
    assert shop.document()["access"] is False

    shop.sandbox.authenticate(session)
    long_after_the_last_look(shop.database)

    assert status_of(shop.back(session)) == "complete"
    assert shop.document()["access"] is True


@pytest.mark.parametrize("heard", [False, True])
def test_a_payment_on_its_way_is_said_to_be_that(shop: Shop, heard: bool) -> None:
    session = shop.opened()
    shop.sandbox.complete_checkout(session, BANK_ACCOUNT)
    if heard:
        shop.hear()

    answer = shop.back(session)

    assert (status_of(answer), answer.headers["Retry-After"]) == ("processing", "5")
    assert (answer.json or {})["entitlements"] is None


@pytest.mark.parametrize("heard", [False, True])
def test_a_bank_that_pays_completes_it(shop: Shop, heard: bool) -> None:
    session = shop.opened()
    shop.sandbox.complete_checkout(session, BANK_ACCOUNT)
    shop.back(session)
    shop.sandbox.settle_payment(session)
    long_after_the_last_look(shop.database)
    if heard:
        shop.hear()

    answer = shop.back(session)

    assert status_of(answer) == "complete"
    assert (answer.json or {})["entitlements"]["state"] == "active"


def test_a_bank_that_does_not_pay_leaves_a_subscription_that_is_owed_for(shop: Shop) -> None:
    session = shop.opened()
    shop.sandbox.complete_checkout(session, BANK_ACCOUNT)
    shop.back(session)
    shop.sandbox.settle_payment(session, succeed=False)

    shop.hear()

    answer = shop.back(session)
    assert status_of(answer) == "complete"
    assert (answer.json or {})["entitlements"]["state"] == "grace"
