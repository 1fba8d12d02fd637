from typing import Any

import pytest
import stripe

from sandbox.errors import Refusal
from tests.sandbox.conftest import Raw
from tests.sandbox.shapes import differences
from tests.sandbox.shop import DAY, START, Shop


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def price(api: stripe.StripeClient) -> str:
    product = api.v1.products.create({"name": "Pro"})
    recurring: Any = {"interval": "month"}
    made = api.v1.prices.create(
        {"product": product.id, "currency": "eur", "unit_amount": 900, "recurring": recurring}
    )
    return made.id


@pytest.fixture
def payer(api: stripe.StripeClient) -> str:
    customer = api.v1.customers.create({"email": "ada@acme.example"})
    method = api.v1.payment_methods.attach("pm_card_visa", {"customer": customer.id})
    api.v1.customers.update(customer.id, {"invoice_settings": {"default_payment_method": method.id}})
    return customer.id


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"trial_period_days": 14, "metadata": {"tenant": "t1"}},
        {"payment_behavior": "default_incomplete"},
        {"cancel_at_period_end": True},
    ],
    ids=["paid", "trial", "incomplete", "ending"],
)
def test_a_subscription_has_every_field_the_sdk_promises(
    api: stripe.StripeClient, raw: Raw, price: str, payer: str, more: Any
) -> None:
    params: Any = {"customer": payer, "items": [{"price": price}], **more}
    made = api.v1.subscriptions.create(params)

    answer = raw("GET", f"/v1/subscriptions/{made.id}").json()

    assert list(differences(stripe.Subscription, answer)) == []


def test_what_belongs_to_a_subscription_can_be_expanded(
    api: stripe.StripeClient, price: str, payer: str
) -> None:
    made = api.v1.subscriptions.create({"customer": payer, "items": [{"price": price}]})

    found = api.v1.subscriptions.retrieve(
        made.id, {"expand": ["customer", "latest_invoice", "items.data.price.product"]}
    )

    assert isinstance(found.customer, stripe.Customer)
    assert isinstance(found.latest_invoice, stripe.Invoice)
    assert found.to_dict()["items"]["data"][0]["price"]["product"]["name"] == "Pro"


def test_a_list_leaves_out_canceled_subscriptions_unless_asked(
    api: stripe.StripeClient, price: str, payer: str
) -> None:
    kept = api.v1.subscriptions.create({"customer": payer, "items": [{"price": price}]})
    gone = api.v1.subscriptions.create({"customer": payer, "items": [{"price": price}]})
    api.v1.subscriptions.cancel(gone.id)

    def listed(**more: Any) -> list[str]:
        params: Any = {"customer": payer, **more}
        return [found.id for found in api.v1.subscriptions.list(params).data]

    assert listed() == [kept.id]
    assert listed(status="all") == [gone.id, kept.id]
    assert listed(status="ended") == [gone.id]
    assert listed(status="all", limit=1) == [gone.id]
    assert listed(status="all", starting_after=gone.id) == [kept.id]
    assert listed(price="price_other") == []


def test_more_than_ten_items_are_paged(api: stripe.StripeClient, raw: Raw, price: str, payer: str) -> None:
    made = api.v1.subscriptions.create({"customer": payer, "items": [{"price": price}] * 12})
    shown = raw("GET", f"/v1/subscriptions/{made.id}").json()["items"]

    first = api.v1.subscription_items.list({"subscription": made.id})
    rest = api.v1.subscription_items.list({"subscription": made.id, "starting_after": first.data[-1].id})

    assert (len(shown["data"]), shown["has_more"]) == (10, True)
    assert [item.id for item in first.data] == [item["id"] for item in shown["data"]]
    assert (first.has_more, len(rest.data), rest.has_more) == (True, 2, False)
    assert (
        list(
            differences(stripe.SubscriptionItem, raw("GET", f"/v1/subscription_items/{rest.data[0].id}").json())
        )
        == []
    )


def test_items_come_and_go(api: stripe.StripeClient, price: str, payer: str) -> None:
    made = api.v1.subscriptions.create({"customer": payer, "items": [{"price": price}]})

    added = api.v1.subscription_items.create({"subscription": made.id, "price": price, "quantity": 3})
    api.v1.subscription_items.update(added.id, {"quantity": 5})
    first = api.v1.subscription_items.list({"subscription": made.id}).data[0]
    api.v1.subscription_items.delete(first.id)

    items = api.v1.subscriptions.retrieve(made.id).to_dict()["items"]["data"]
    assert [(item["id"], item["quantity"]) for item in items] == [(added.id, 5)]
    with pytest.raises(stripe.InvalidRequestError, match="at least one"):
        api.v1.subscription_items.delete(added.id)


def test_an_ended_subscription_cannot_be_canceled_again(
    api: stripe.StripeClient, price: str, payer: str
) -> None:
    made = api.v1.subscriptions.create({"customer": payer, "items": [{"price": price}]})
    api.v1.subscriptions.cancel(made.id)

    with pytest.raises(stripe.InvalidRequestError, match="No such subscription") as refused:
        api.v1.subscriptions.cancel(made.id)

    assert refused.value.http_status == 404


@pytest.mark.parametrize(
    "more",
    [
        {"collection_method": "send_invoice", "days_until_due": 7},
        {"coupon": "x"},
        {"discounts": [{"coupon": "x"}]},
    ],
)
def test_what_is_not_spoken_here_is_refused(
    api: stripe.StripeClient, price: str, payer: str, more: Any
) -> None:
    params: Any = {"customer": payer, "items": [{"price": price}], **more}

    with pytest.raises(stripe.StripeError) as refused:
        api.v1.subscriptions.create(params)

    assert refused.value.http_status in (400, 501)


def test_a_card_that_pays_makes_it_active_at_once(shop: Shop) -> None:
    made = shop.subscribe()

    assert made["status"] == "active"
    assert shop.told()[-5:] == [
        "customer.subscription.created",
        "invoice.created",
        "invoice.finalized",
        "invoice.paid",
        "invoice.payment_succeeded",
    ]
    assert shop.events("customer.subscription.created")[-1]["data"]["object"]["status"] == "active"


def test_a_card_that_does_not_pay_leaves_it_incomplete(shop: Shop) -> None:
    shop.takes("pm_card_chargeCustomerFail")

    made = shop.subscribe()

    assert made["status"] == "incomplete"
    assert shop.told()[-1] == "invoice.payment_failed"
    assert shop.latest_invoice(made)["attempt_count"] == 1
    assert shop.latest_invoice(made)["next_payment_attempt"] is None


def test_an_error_leaves_no_subscription_if_one_wants_that(shop: Shop) -> None:
    shop.takes("pm_card_chargeCustomerFail")

    with pytest.raises(Refusal, match="declined") as refused:
        shop.subscribe(payment_behavior="error_if_incomplete")

    assert refused.value.status == 402
    assert not shop.store.collection("subscription")
    assert not shop.events("customer.subscription.created")


def test_default_incomplete_waits_for_the_first_payment(shop: Shop) -> None:
    made = shop.subscribe(payment_behavior="default_incomplete")
    assert made["status"] == "incomplete"
    assert shop.latest_invoice(made)["attempted"] is False

    shop.pay(made["latest_invoice"])

    assert made["status"] == "active"
    assert shop.told()[-4:] == [
        "invoice.finalized",
        "invoice.paid",
        "invoice.payment_succeeded",
        "customer.subscription.updated",
    ]
    assert shop.events()[-1]["data"]["previous_attributes"] == {"status": "incomplete"}


def test_a_trial_needs_no_card_and_bills_nothing(shop: Shop) -> None:
    made = shop.subscribe(trial_period_days=14)

    invoice = shop.latest_invoice(made)
    assert (made["status"], made["trial_end"]) == ("trialing", START + 14 * DAY)
    assert (invoice["status"], invoice["total"], invoice["attempt_count"]) == ("paid", 0, 0)


def test_without_any_card_a_first_charge_is_refused(shop: Shop) -> None:
    settings = shop.store.collection("customer")[shop.customer]["invoice_settings"]
    settings["default_payment_method"] = None

    with pytest.raises(Refusal, match="no attached payment source"):
        shop.subscribe()


def test_a_change_of_price_and_quantity_tells_what_was_before(shop: Shop) -> None:
    made = shop.subscribe()
    item = made["items"]["data"][0]["id"]
    dearer = shop.sells(amount=5000, interval="month")

    shop.update(made, items=[{"id": item, "price": dearer, "quantity": 4}])

    event = shop.events()[-1]
    now = event["data"]["object"]["items"]["data"][0]
    before = event["data"]["previous_attributes"]["items"]["data"][0]
    assert (now["price"]["id"], now["quantity"], now["plan"]["id"]) == (dearer, 4, dearer)
    assert (before["price"]["id"], before["quantity"]) == (shop.price, 1)


def test_another_interval_starts_a_period_and_is_billed_at_once(shop: Shop) -> None:
    made = shop.subscribe()
    item = made["items"]["data"][0]["id"]
    shop.pass_days(10)

    shop.update(made, items=[{"id": item, "price": shop.sells(amount=9000, interval="year")}])

    invoice = shop.latest_invoice(made)
    assert (invoice["status"], invoice["total"], invoice["billing_reason"]) == (
        "paid",
        9000,
        "subscription_update",
    )
    assert made["items"]["data"][0]["current_period_start"] == START + 10 * DAY
    assert made["items"]["data"][0]["current_period_end"] == START + 375 * DAY


def test_items_of_different_intervals_are_more_than_it_can_do(shop: Shop) -> None:
    with pytest.raises(Refusal, match="different intervals"):
        shop.subscribe(items=[{"price": shop.price}, {"price": shop.sells(interval="year")}])


def test_an_incomplete_subscription_takes_no_other_items(shop: Shop) -> None:
    made = shop.subscribe(payment_behavior="default_incomplete")

    with pytest.raises(Refusal, match="incomplete"):
        shop.update(made, items=[{"price": shop.price}])


def test_to_cancel_at_the_end_of_the_period_can_be_taken_back(shop: Shop) -> None:
    made = shop.subscribe()
    end = made["items"]["data"][0]["current_period_end"]

    shop.update(made, cancel_at_period_end=True)
    asked = (made["cancel_at"], made["canceled_at"], made["cancellation_details"]["reason"])
    shop.update(made, cancel_at_period_end=False)

    assert asked == (end, START, "cancellation_requested")
    assert (made["cancel_at"], made["canceled_at"], made["cancel_at_period_end"]) == (None, None, False)
    assert made["cancellation_details"]["reason"] is None


def test_an_update_that_changes_nothing_tells_nothing(shop: Shop) -> None:
    made = shop.subscribe(metadata={"tenant": "t1"})
    told = len(shop.events())

    shop.update(made, metadata={"tenant": "t1"})

    assert len(shop.events()) == told


def test_ending_a_trial_now_charges_now(shop: Shop) -> None:
    made = shop.subscribe(trial_period_days=14)
    shop.pass_days(2)

    shop.update(made, trial_end="now")

    assert (made["status"], made["trial_end"]) == ("active", START + 2 * DAY)
    assert shop.latest_invoice(made)["amount_paid"] == 1000
    assert "customer.subscription.trial_will_end" in shop.told(since=START + 2 * DAY)


def test_a_trial_can_be_made_longer(shop: Shop) -> None:
    made = shop.subscribe(trial_period_days=5)

    shop.update(made, trial_end=START + 20 * DAY)
    shop.pass_days(19)

    assert made["status"] == "trialing"
    assert made["items"]["data"][0]["current_period_end"] == START + 20 * DAY
    assert shop.told().count("customer.subscription.trial_will_end") == 1


def test_a_paused_subscription_goes_on_when_its_new_period_is_paid(shop: Shop) -> None:
    nobody = shop.store.collection("customer")[shop.customer]["invoice_settings"]
    nobody["default_payment_method"] = None
    made = shop.subscribe(
        trial_period_days=14, trial_settings={"end_behavior": {"missing_payment_method": "pause"}}
    )
    shop.pass_days(40)
    assert made["status"] == "paused"
    shop.takes("pm_card_visa")

    shop.resume(made)

    assert made["status"] == "active"
    assert made["items"]["data"][0]["current_period_start"] == START + 40 * DAY
    assert shop.told()[-2:] == ["customer.subscription.updated", "customer.subscription.resumed"]


def test_to_cancel_what_is_paused_at_the_end_of_its_period_is_to_cancel_it_now(shop: Shop) -> None:
    settings = shop.store.collection("customer")[shop.customer]["invoice_settings"]
    settings["default_payment_method"] = None
    made = shop.subscribe(
        trial_period_days=1, trial_settings={"end_behavior": {"missing_payment_method": "pause"}}
    )
    shop.pass_days(30)

    shop.update(made, cancel_at_period_end=True)
    shop.pass_days(1)

    assert (made["status"], made["ended_at"]) == ("canceled", START + 30 * DAY)
