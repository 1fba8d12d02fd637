"""Who may use what, and when that changes."""

import secrets
from typing import Any

import pytest
import stripe

from sandbox import life
from sandbox.entitlements import holding_of
from sandbox.resources import customers
from sandbox.server import Control
from sandbox.store import Store
from tests.sandbox.conftest import Raw
from tests.sandbox.shapes import differences
from tests.sandbox.shop import DAY, START, Shop

UPDATED = "entitlements.active_entitlement_summary.updated"
MONTHLY: Any = {"interval": "month"}


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def subscriber(api: stripe.StripeClient) -> str:
    """Of a product with twelve features."""
    product = api.v1.products.create({"name": "Pro"}).id
    for n in range(12):
        feature = api.v1.entitlements.features.create(
            {"lookup_key": f"f{n}-{secrets.token_hex(4)}", "name": "One of many"}
        )
        api.v1.products.features.create(product, {"entitlement_feature": feature.id})
    price = api.v1.prices.create(
        {"product": product, "currency": "eur", "unit_amount": 900, "recurring": MONTHLY}
    )
    customer = api.v1.customers.create().id
    api.v1.subscriptions.create({"customer": customer, "items": [{"price": price.id}], "trial_period_days": 14})
    return customer


def leave_without_card(shop: Shop) -> None:
    settings = shop.store.collection("customer")[shop.customer]["invoice_settings"]
    settings["default_payment_method"] = None


def test_an_entitlement_has_every_field_the_sdk_promises(
    api: stripe.StripeClient, raw: Raw, subscriber: str
) -> None:
    listed = api.v1.entitlements.active_entitlements.list({"customer": subscriber})

    answer = raw("GET", f"/v1/entitlements/active_entitlements/{listed.data[0].id}").json()

    assert list(differences(stripe.entitlements.ActiveEntitlement, answer)) == []
    assert answer["lookup_key"] == listed.data[0].lookup_key


def test_entitlements_come_ten_at_a_time(api: stripe.StripeClient, subscriber: str) -> None:
    first = api.v1.entitlements.active_entitlements.list({"customer": subscriber})

    every = list(first.auto_paging_iter())

    assert (len(first.data), first.has_more) == (10, True)
    assert len({entitlement.lookup_key for entitlement in every}) == 12


def test_the_feature_of_an_entitlement_can_be_expanded(api: stripe.StripeClient, subscriber: str) -> None:
    listed = api.v1.entitlements.active_entitlements.list({"customer": subscriber, "expand": ["data.feature"]})

    feature = listed.data[0].feature
    assert isinstance(feature, stripe.entitlements.Feature)
    assert feature.name == "One of many"


def test_the_summary_has_every_field_the_sdk_promises_and_ten_entitlements(
    raw: Raw, sandbox: Control, subscriber: str
) -> None:
    newest = raw("GET", "/v1/events", params={"type": UPDATED, "limit": 1}).json()["data"][0]

    summary = newest["data"]["object"]

    assert list(differences(stripe.entitlements.ActiveEntitlementSummary, summary)) == []
    assert "id" not in summary
    assert summary["customer"] == subscriber
    assert (len(summary["entitlements"]["data"]), summary["entitlements"]["has_more"]) == (10, True)
    assert newest["data"]["previous_attributes"] == {"entitlements": {"data": []}}


def test_entitlements_of_nobody_are_refused(api: stripe.StripeClient) -> None:
    with pytest.raises(stripe.InvalidRequestError, match="No such customer") as refused:
        api.v1.entitlements.active_entitlements.list({"customer": "cus_none"})

    assert (refused.value.http_status, refused.value.param) == (400, "customer")


def test_an_unknown_entitlement_is_not_found(api: stripe.StripeClient) -> None:
    with pytest.raises(stripe.InvalidRequestError, match="No such active_entitlement") as refused:
        api.v1.entitlements.active_entitlements.retrieve("ent_none")

    assert refused.value.http_status == 404


def test_a_new_subscription_brings_the_features_of_its_product_at_once(shop: Shop) -> None:
    shop.adds("sso")

    shop.subscribe()

    assert shop.entitlements() == {"sso"}
    assert shop.told().count(UPDATED) == 1


def test_a_subscription_on_trial_brings_them_too(shop: Shop) -> None:
    shop.adds("sso")

    shop.subscribe(trial_period_days=14)

    assert shop.entitlements() == {"sso"}


def test_a_product_without_features_tells_nothing(shop: Shop) -> None:
    shop.subscribe()

    assert UPDATED not in shop.told()


def test_what_is_attached_reaches_a_subscription_with_its_next_period(shop: Shop) -> None:
    made = shop.subscribe()
    shop.adds("sso")
    shop.update(made, metadata={"touched": "yes"})
    before = shop.entitlements()

    shop.pass_days(32)

    assert (before, shop.entitlements()) == (set(), {"sso"})
    assert [event["created"] for event in shop.events(UPDATED)] == [START + 31 * DAY]


def test_what_is_detached_leaves_with_the_next_period(shop: Shop) -> None:
    attachment = shop.adds("sso")
    shop.subscribe()
    shop.removes(attachment)
    before = shop.entitlements()

    shop.pass_days(32)

    assert (before, shop.entitlements()) == ({"sso"}, set())


def test_a_renewal_that_brings_the_same_tells_nothing(shop: Shop) -> None:
    shop.adds("sso")
    shop.subscribe()

    shop.pass_days(100)

    assert shop.told().count(UPDATED) == 1


def test_another_price_settles_the_features_anew(shop: Shop) -> None:
    made = shop.subscribe()
    shop.adds("sso")
    item = made["items"]["data"][0]["id"]

    shop.update(made, items=[{"id": item, "price": shop.sells(amount=2000, interval="month")}])

    assert shop.entitlements() == {"sso"}


def test_another_quantity_does_not(shop: Shop) -> None:
    made = shop.subscribe()
    shop.adds("sso")
    item = made["items"]["data"][0]["id"]

    shop.update(made, items=[{"id": item, "quantity": 5}])

    assert shop.entitlements() == set()


def test_an_item_beyond_the_tenth_brings_features_too(shop: Shop) -> None:
    basic = shop.price
    shop.opens("Add-on")
    shop.adds("sso")
    add_on = shop.sells(interval="month")

    shop.subscribe(items=[{"price": basic}] * 10 + [{"price": add_on}])

    assert shop.entitlements() == {"sso"}


def test_an_incomplete_subscription_brings_nothing_until_it_is_paid(shop: Shop) -> None:
    shop.adds("sso")
    made = shop.subscribe(payment_behavior="default_incomplete")
    before = shop.entitlements()

    shop.pay(made["latest_invoice"])

    assert (before, shop.entitlements()) == (set(), {"sso"})


def test_one_that_expires_unpaid_never_brought_anything(shop: Shop) -> None:
    shop.adds("sso")
    shop.subscribe(payment_behavior="default_incomplete")

    shop.pass_days(2)

    assert UPDATED not in shop.told()


@pytest.mark.parametrize("status", ["past_due", "unpaid"])
def test_an_unpaid_subscription_still_brings_its_features(shop: Shop, status: str) -> None:
    shop.store.after_retries = status
    shop.adds("sso")
    made = shop.subscribe()
    shop.takes("pm_card_chargeCustomerFail")

    shop.pass_days(60)

    assert (made["status"], shop.entitlements()) == (status, {"sso"})


def test_a_paused_subscription_still_brings_its_features(shop: Shop) -> None:
    leave_without_card(shop)
    shop.adds("sso")
    made = shop.subscribe(
        trial_period_days=14, trial_settings={"end_behavior": {"missing_payment_method": "pause"}}
    )

    shop.pass_days(40)

    assert (made["status"], shop.entitlements()) == ("paused", {"sso"})
    assert shop.told().count(UPDATED) == 1


def test_an_end_takes_the_features_along(shop: Shop) -> None:
    shop.adds("sso")
    made = shop.subscribe()
    shop.update(made, cancel_at_period_end=True)

    shop.pass_days(32)

    last = shop.events(UPDATED)[-1]["data"]
    assert shop.entitlements() == set()
    assert last["object"]["entitlements"]["data"] == []
    assert [one["lookup_key"] for one in last["previous_attributes"]["entitlements"]["data"]] == ["sso"]


def test_a_feature_stays_as_long_as_one_subscription_brings_it(shop: Shop) -> None:
    shop.adds("sso")
    first, second = shop.subscribe(), shop.subscribe()
    held = holding_of(shop.store, shop.customer)["active"]

    life.end(shop.store, first)
    between = holding_of(shop.store, shop.customer)["active"]
    life.end(shop.store, second)

    assert between == held
    assert (len(held), shop.entitlements()) == (1, set())


def test_a_deleted_customer_is_entitled_to_nothing(shop: Shop) -> None:
    shop.adds("sso")
    shop.subscribe()

    customers.delete(shop.call(), shop.customer)

    assert shop.entitlements() == set()
    assert shop.told()[-3:] == ["customer.subscription.deleted", UPDATED, "customer.deleted"]


def test_entitlements_survive_a_restart(shop: Shop, tmp_path: Any) -> None:
    shop.adds("sso")
    shop.subscribe()
    shop.store.path = tmp_path / "sandbox.json"
    shop.store.save()

    shop.store = Store(shop.store.path, clock=shop.store.clock)
    shop.pass_days(32)

    assert shop.entitlements() == {"sso"}
    assert shop.told().count(UPDATED) == 1
