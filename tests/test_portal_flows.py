"""The portal's flows about a subscription: which one, what Stripe is asked for, what is refused before that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text
from werkzeug.test import TestResponse

from billing import sync
from billing.db import SYSTEM, Database
from sandbox.server import Control
from tests.conftest import MakeApp
from tests.deliveries import Json, at_stripe
from tests.shopping import Shop, a_shop, goods, subscribes
from tests.test_portal import PORTAL, SESSIONS

CANCEL, UPDATE, CONFIRM = "subscription_cancel", "subscription_update", "subscription_update_confirm"
FLOWS: list[Json] = [{"flow": CANCEL}, {"flow": UPDATE}, {"flow": CONFIRM, "quantity": 2}]

OpenShop = Callable[..., Shop]


@pytest.fixture
def open_shop(make_app: MakeApp, database: Database, sandbox: Control) -> OpenShop:
    """A shop whose portal lets people change to these plans."""

    def opened(*offered: str) -> Shop:
        configuration = a_configuration(sandbox, *offered)
        return a_shop(make_app(BILLING_PORTAL_CONFIGURATION=configuration), database, sandbox)

    return opened


@pytest.fixture
def shop(open_shop: OpenShop) -> Shop:
    """A tenant that subscribes to the team plan, and an account that knows of it."""
    shop = open_shop("team_monthly", "team_yearly").linked()
    subscribes(shop)
    return shop.look()


def a_configuration(sandbox: Control, *offered: str) -> str:
    """Customers may cancel, and change to these prices, which are of one product."""
    prices = {price["id"]: price["product"] for price in goods(sandbox).content["prices"]}
    wanted = [goods(sandbox).prices[key] for key in offered]
    update = "features[subscription_update]"
    listed = {f"{update}[products][0][prices][{n}]": price for n, price in enumerate(wanted)}
    features = {
        "features[payment_method_update][enabled]": "true",
        "features[subscription_cancel][enabled]": "true",
        f"{update}[enabled]": "true",
        f"{update}[default_allowed_updates][0]": "price",
        f"{update}[default_allowed_updates][1]": "quantity",
        f"{update}[products][0][product]": prices[wanted[0]],
    }
    made = at_stripe(sandbox, "POST", "billing_portal/configurations", **features, **listed)
    return str(made["id"])


def lead(shop: Shop, **body: Any) -> TestResponse:
    return shop.app.test_client().post(PORTAL, headers=shop.headers, json=body)


def refusal(answer: TestResponse) -> tuple[int, str]:
    return answer.status_code, (answer.json or {}).get("code", "")


def flow_data(shop: Shop) -> Json:
    """What Stripe was asked to lead to, last."""
    data: Json = shop.asked("POST", SESSIONS)[-1]["params"]["flow_data"]
    return data


def held(shop: Shop) -> Json:
    [subscription] = [one for one in shop.subscriptions() if one["status"] != "canceled"]
    return subscription


def back_to(url: str) -> Json:
    return {"type": "redirect", "redirect": {"return_url": url}}


BACK = back_to("https://app.example.com/settings/billing?billing=updated")


# ---- where it leads


@pytest.mark.parametrize("flow", [CANCEL, UPDATE])
def test_a_flow_is_about_the_tenants_own_subscription(shop: Shop, flow: str) -> None:
    answer = lead(shop, flow=flow)

    assert answer.status_code == 200
    assert set(answer.json or {}) == {"url"}
    assert flow_data(shop) == {
        "type": flow,
        "after_completion": BACK,
        flow: {"subscription": held(shop)["id"]},
    }


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        ({"plan": "team_yearly"}, {"price": "team_yearly"}),
        ({"quantity": 12}, {"quantity": "12"}),
        ({"plan": "team_yearly", "quantity": 12}, {"price": "team_yearly", "quantity": "12"}),
        ({"plan": "team_monthly", "quantity": 12}, {"quantity": "12"}),
    ],
    ids=["plan", "quantity", "both", "the same plan"],
)
def test_a_change_is_confirmed_with_the_one_item_it_is_about(shop: Shop, change: Json, asked: Json) -> None:
    answer = lead(shop, flow=CONFIRM, **change)

    assert answer.status_code == 200
    subscription = held(shop)
    if "price" in asked:
        asked = {**asked, "price": goods(shop.sandbox).prices[asked["price"]]}
    assert flow_data(shop) == {
        "type": CONFIRM,
        "after_completion": BACK,
        CONFIRM: {
            "subscription": subscription["id"],
            "items": [{"id": subscription["items"]["data"][0]["id"], **asked}],
        },
    }


@pytest.mark.parametrize("body", FLOWS, ids=lambda body: body["flow"])
def test_a_flow_leads_back_to_where_the_caller_wants_and_says_that_something_changed(
    shop: Shop, body: Json
) -> None:
    lead(shop, **body, return_url="/seats?tab=2#top")

    assert flow_data(shop)["after_completion"] == back_to(
        "https://app.example.com/seats?tab=2&billing=updated#top"
    )
    assert shop.asked("POST", SESSIONS)[-1]["params"]["return_url"] == "https://app.example.com/seats?tab=2#top"


def test_the_trail_says_which_flow_it_was(shop: Shop) -> None:
    lead(shop, flow=CANCEL)
    lead(shop, flow=CONFIRM, plan="team_monthly")

    with shop.database.begin(SYSTEM) as connection:
        trail = connection.execute(text("SELECT flow, outcome FROM audit_log ORDER BY id")).all()
    assert [tuple(row) for row in trail] == [(CANCEL, "opened"), (CONFIRM, "no_change")]


# ---- whose subscription


def test_two_tenants_are_led_to_their_own_subscriptions(shop: Shop) -> None:
    other = shop.of(f"{shop.tenant}_2").linked()
    subscribes(other)
    other.look()

    lead(shop, flow=CANCEL)
    lead(other, flow=CANCEL)

    led = [one["params"]["flow_data"][CANCEL]["subscription"] for one in shop.asked("POST", SESSIONS)]
    assert led == [held(shop)["id"], held(other)["id"]]


@pytest.mark.parametrize("member", ["subscription", "customer", "items"])
def test_nobody_says_which_subscription(shop: Shop, member: str) -> None:
    answer = lead(shop, flow=CANCEL, **{member: "sub_of_another"})

    assert refusal(answer) == (400, "invalid_request")
    assert (answer.json or {})["param"] == member


def test_what_a_former_customer_has_is_not_the_tenants(shop: Shop) -> None:
    other = at_stripe(shop.sandbox, "POST", "customers")["id"]
    sync.link(shop.database, shop.tenant, other, by="command", replace=True)

    answer = lead(shop, flow=CANCEL)

    assert refusal(answer) == (409, "no_subscription")


def test_after_a_new_start_the_flow_is_about_the_subscription_that_counts(shop: Shop) -> None:
    at_stripe(shop.sandbox, "DELETE", f"subscriptions/{held(shop)['id']}")
    again = subscribes(shop)
    shop.look()

    lead(shop, flow=CANCEL)

    assert flow_data(shop)[CANCEL] == {"subscription": again["id"]}


# ---- what is refused


@pytest.mark.parametrize("body", FLOWS, ids=lambda body: body["flow"])
def test_a_tenant_without_a_customer_is_404_as_ever(open_shop: OpenShop, body: Json) -> None:
    answer = lead(open_shop("team_monthly"), **body)

    assert (answer.status_code, answer.data) == (404, b'{"error":"No Stripe customer found for this tenant"}')


@pytest.mark.parametrize("body", FLOWS, ids=lambda body: body["flow"])
@pytest.mark.parametrize("had", [False, True], ids=["never had one", "it has ended"])
def test_without_a_subscription_there_is_nothing_to_change(open_shop: OpenShop, body: Json, had: bool) -> None:
    shop = open_shop("team_monthly").linked()
    if had:
        at_stripe(shop.sandbox, "DELETE", f"subscriptions/{subscribes(shop)['id']}")
        shop.look()

    answer = lead(shop, **body)

    assert refusal(answer) == (409, "no_subscription")
    assert shop.asked("POST", SESSIONS) == []


@pytest.mark.parametrize("body", FLOWS, ids=lambda body: body["flow"])
def test_a_subscription_whose_first_payment_never_came_is_none_yet(open_shop: OpenShop, body: Json) -> None:
    shop = open_shop("team_monthly").linked()
    subscribes(shop, payment_behavior="default_incomplete")
    shop.look()

    answer = lead(shop, **body)

    assert refusal(answer) == (409, "no_subscription")


@pytest.mark.parametrize("ends", [{"cancel_at_period_end": "true"}, {"cancel_at": 4_000_000_000}])
def test_what_ends_already_is_not_canceled_again(shop: Shop, ends: Json) -> None:
    at_stripe(shop.sandbox, "POST", f"subscriptions/{held(shop)['id']}", **ends)
    shop.hear()

    answer = lead(shop, flow=CANCEL)

    assert refusal(answer) == (409, "already_canceling")
    assert lead(shop, flow=UPDATE).status_code == 200


@pytest.mark.parametrize(
    "change",
    [{"plan": "team_monthly"}, {"quantity": 1}, {"plan": "team_monthly", "quantity": 1}],
    ids=["plan", "quantity", "both"],
)
def test_what_is_so_already_is_no_change(shop: Shop, change: Json) -> None:
    answer = lead(shop, flow=CONFIRM, **change)

    assert refusal(answer) == (409, "no_change")
    assert shop.asked("POST", SESSIONS) == []


@pytest.mark.parametrize("plan", ["no_such_plan", "secret_monthly", "pro_former"])
def test_a_plan_that_is_not_on_offer_is_not_found(shop: Shop, plan: str) -> None:
    answer = lead(shop, flow=CONFIRM, plan=plan)

    assert refusal(answer) == (404, "plan_not_found")
    assert (answer.json or {})["param"] == "plan"


def test_a_plan_the_portal_does_not_offer_is_refused_before_stripe_does(shop: Shop) -> None:
    answer = lead(shop, flow=CONFIRM, plan="pro_monthly")

    assert refusal(answer) == (409, "plan_not_offered")
    assert shop.asked("POST", SESSIONS) == []


def test_a_portal_in_which_plans_cannot_be_changed_offers_none_whatever_it_lists(shop: Shop) -> None:
    [one] = at_stripe(shop.sandbox, "GET", "billing_portal/configurations", limit=1)["data"]
    off = {"features[subscription_update][enabled]": "false"}
    at_stripe(shop.sandbox, "POST", f"billing_portal/configurations/{one['id']}", **off)

    answer = lead(shop, flow=CONFIRM, plan="team_yearly")

    assert refusal(answer) == (409, "plan_not_offered")
    assert shop.asked("POST", SESSIONS) == []


def test_without_a_configuration_of_its_own_the_accounts_default_one_counts(
    make_app: MakeApp, database: Database, sandbox: Control
) -> None:
    shop = a_shop(make_app(), database, sandbox).linked()
    subscribes(shop)
    shop.look()

    answer = lead(shop, flow=CONFIRM, plan="team_yearly")

    assert refusal(answer) == (409, "plan_not_offered")
    [asked] = shop.asked("GET", "/v1/billing_portal/configurations")
    assert asked["params"]["is_default"] == "true"


@pytest.mark.parametrize("body", FLOWS[1:], ids=lambda body: body["flow"])
def test_a_subscription_with_several_items_is_not_changed_in_the_portal(
    open_shop: OpenShop, body: Json
) -> None:
    shop = open_shop("team_monthly", "team_yearly").linked()
    subscribes(shop, **{"items[1][price]": goods(shop.sandbox).prices["pro_monthly"]})
    shop.look()

    answer = lead(shop, **body)

    assert refusal(answer) == (409, "multiple_items")
    assert lead(shop, flow=CANCEL).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {"flow": CONFIRM},
        {"flow": CANCEL, "plan": "team_yearly"},
        {"quantity": 2},
        {"flow": CONFIRM, "quantity": 0},
        {"flow": CONFIRM, "quantity": True},
        {"flow": "subscription_pause"},
    ],
    ids=str,
)
def test_a_flow_with_other_members_than_its_own_is_refused(shop: Shop, body: Json) -> None:
    answer = lead(shop, **body)

    assert refusal(answer) == (400, "invalid_request")
    assert shop.asked("POST", SESSIONS) == []


@pytest.mark.parametrize("away", ["/v1/billing_portal/configurations", SESSIONS])
def test_without_stripe_it_is_a_500_that_says_when_to_come_back(shop: Shop, away: str) -> None:
    shop.sandbox.fault("429", path=away)

    answer = lead(shop, flow=CONFIRM, plan="team_yearly")

    assert (answer.status_code, answer.data) == (500, b'{"error":"Internal server error"}')
    assert answer.headers["Retry-After"]
    shop.sandbox.send("DELETE", "faults")
    assert lead(shop, flow=CONFIRM, plan="team_yearly").status_code == 200
