from typing import Any

import pytest
import stripe

from sandbox.errors import Refusal
from sandbox.resources import checkout, customers
from sandbox.store import Json
from tests.sandbox.conftest import Raw
from tests.sandbox.shapes import differences
from tests.sandbox.shop import DAY, START, Shop


@pytest.fixture
def shop() -> Shop:
    return Shop()


def a_session(shop: Shop, **params: Any) -> Json:
    given = {"mode": "subscription", "success_url": "https://app.example/", **params}
    return checkout.create(shop.call(line_items=[{"price": shop.price, "quantity": 2}], **given))


def test_a_session_has_every_field_the_sdk_promises(api: stripe.StripeClient, raw: Raw) -> None:
    product = api.v1.products.create({"name": "Pro"}).id
    price = api.v1.prices.create(
        {"product": product, "currency": "eur", "unit_amount": 900, "recurring": {"interval": "month"}}
    ).id
    made = api.v1.checkout.sessions.create(
        {
            "mode": "subscription",
            "line_items": [{"price": price, "quantity": 2}],
            "success_url": "https://app.example/done",
            "cancel_url": "https://app.example/plans",
            "client_reference_id": "t_acme",
            "subscription_data": {"trial_period_days": 14, "metadata": {"tenant": "t_acme"}},
            "allow_promotion_codes": True,
            "locale": "de",
            "metadata": {"tenant": "t_acme"},
        }
    )

    answer = raw("GET", f"/v1/checkout/sessions/{made.id}", params={"expand[]": "line_items"}).json()

    assert list(differences(stripe.checkout.Session, answer)) == []
    assert (answer["status"], answer["payment_status"], answer["amount_total"]) == ("open", "unpaid", 0)
    assert answer["line_items"]["data"][0]["quantity"] == 2
    assert answer["url"].endswith(f"/c/pay/{made.id}")


def test_pressing_the_button_makes_a_customer_who_pays(shop: Shop) -> None:
    session = a_session(
        shop, customer_email="bob@acme.example", subscription_data={"metadata": {"tenant": "t1"}}
    )

    checkout.complete(shop.store, session["id"])

    subscription = shop.store.find("subscription", session["subscription"])
    customer = shop.store.find("customer", session["customer"])
    assert (session["status"], session["payment_status"], session["url"]) == ("complete", "paid", None)
    assert (subscription["status"], subscription["metadata"]) == ("active", {"tenant": "t1"})
    assert (customer["email"], subscription["customer"]) == ("bob@acme.example", customer["id"])
    assert list(differences(stripe.checkout.Session, session)) == []


def test_it_is_told_as_stripe_tells_it(shop: Shop) -> None:
    session = a_session(shop, customer=shop.customer)
    told = len(shop.told())

    checkout.complete(shop.store, session["id"])

    assert shop.told()[told:] == [
        "payment_method.attached",
        "customer.subscription.created",
        "invoice.created",
        "invoice.finalized",
        "invoice.paid",
        "invoice.payment_succeeded",
        "customer.subscription.updated",
        "checkout.session.completed",
    ]
    assert shop.events("customer.subscription.created")[-1]["data"]["object"]["status"] == "incomplete"


def test_a_trial_asks_for_no_payment(shop: Shop) -> None:
    session = a_session(shop, customer=shop.customer, subscription_data={"trial_period_days": 14})

    checkout.complete(shop.store, session["id"])

    assert session["payment_status"] == "no_payment_required"
    assert shop.store.find("subscription", session["subscription"])["status"] == "trialing"


def test_a_trial_may_go_without_a_card_where_that_is_allowed(shop: Shop) -> None:
    session = a_session(
        shop, subscription_data={"trial_period_days": 14}, payment_method_collection="if_required"
    )

    checkout.complete(shop.store, session["id"], payment_method=None)

    assert shop.store.find("subscription", session["subscription"])["default_payment_method"] is None


def test_a_declined_card_leaves_everything_as_it_was(shop: Shop) -> None:
    session = a_session(shop)
    told = len(shop.told())

    with pytest.raises(Refusal, match="declined"):
        checkout.complete(shop.store, session["id"], "pm_card_chargeCustomerFail")

    assert (session["status"], len(shop.told())) == ("open", told)


def test_a_session_expires_when_its_time_is_up(shop: Shop) -> None:
    session = a_session(shop, expires_at=START + 1800)

    shop.pass_days(1)

    assert (session["status"], session["url"]) == ("expired", None)
    expired = shop.events("checkout.session.expired")
    assert [event["created"] for event in expired] == [START + 1800]
    with pytest.raises(Refusal, match="no longer open"):
        checkout.complete(shop.store, session["id"])


def test_an_open_session_can_be_expired_once(shop: Shop) -> None:
    session = a_session(shop)

    checkout.expire(shop.call(), session["id"])

    with pytest.raises(Refusal, match="Only Checkout Sessions"):
        checkout.expire(shop.call(), session["id"])


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"expires_at": START + 60}, "expires_at"),
        ({"expires_at": START + 2 * DAY}, "expires_at"),
        ({"success_url": "app.example"}, "success_url"),
        ({"customer": "cus_none"}, "customer"),
        ({"mode": "payment"}, "line_items[0][price]"),
        ({"customer_update": {"name": "auto"}}, "customer_update"),
        ({"subscription_data": {"trial_period_days": 0}}, "subscription_data[trial_period_days]"),
        ({"subscription_data": {"trial_end": START + DAY}}, "subscription_data[trial_end]"),
    ],
)
def test_what_stripe_refuses_is_refused(shop: Shop, params: dict[str, Any], param: str) -> None:
    with pytest.raises(Refusal) as refused:
        a_session(shop, **params)

    assert (refused.value.status, refused.value.body["error"]["param"]) == (400, param)


def test_the_other_modes_can_be_completed_too(shop: Shop) -> None:
    once = checkout.create(
        shop.call(
            mode="payment",
            success_url="https://app.example/",
            line_items=[{"price": shop.sells_once(500)}],
        )
    )
    setup = checkout.create(shop.call(mode="setup", success_url="https://app.example/", currency="eur"))

    for session in (once, setup):
        checkout.complete(shop.store, session["id"])

    assert (once["payment_status"], setup["payment_status"]) == ("paid", "no_payment_required")
    assert list(differences(stripe.checkout.Session, once)) == []
    assert list(differences(stripe.checkout.Session, setup)) == []


def test_the_address_to_return_to_keeps_the_place_for_the_session(shop: Shop) -> None:
    session = a_session(shop, success_url="https://app.example/?checkout={CHECKOUT_SESSION_ID}")

    assert session["success_url"] == "https://app.example/?checkout={CHECKOUT_SESSION_ID}"


def test_what_a_trial_without_a_card_comes_to_is_passed_on(shop: Shop) -> None:
    settings = {"end_behavior": {"missing_payment_method": "pause"}}
    session = a_session(
        shop,
        subscription_data={"trial_period_days": 14, "trial_settings": settings},
        payment_method_collection="if_required",
    )
    checkout.complete(shop.store, session["id"], payment_method=None)

    shop.pass_days(15)

    assert shop.store.find("subscription", session["subscription"])["status"] == "paused"


def test_subscribing_wants_a_recurring_price(shop: Shop) -> None:
    once = [{"price": shop.sells_once(500)}]

    with pytest.raises(Refusal, match="at least one recurring price"):
        checkout.create(shop.call(mode="subscription", success_url="https://a.example/", line_items=once))


def test_tax_on_a_known_customer_wants_their_address(shop: Shop) -> None:
    taxed: Json = {"customer": shop.customer, "automatic_tax": {"enabled": True}}

    with pytest.raises(Refusal) as refused:
        a_session(shop, **taxed)
    session = a_session(shop, **taxed, customer_update={"address": "auto"})
    checkout.complete(shop.store, session["id"])

    assert refused.value.body["error"]["code"] == "customer_tax_location_invalid"
    assert shop.store.find("customer", shop.customer)["address"]["country"] == "US"
    assert session["automatic_tax"]["status"] == "complete"
    assert shop.store.find("subscription", session["subscription"])["automatic_tax"]["enabled"]
    assert list(differences(stripe.checkout.Session, session)) == []


def test_tax_ids_of_a_known_customer_want_their_name(shop: Shop) -> None:
    wanted: Json = {"customer": shop.customer, "tax_id_collection": {"enabled": True}}

    with pytest.raises(Refusal, match="requires updating business name"):
        a_session(shop, **wanted)
    session = a_session(shop, **wanted, customer_update={"name": "auto"})

    assert session["tax_id_collection"] == {"enabled": True, "required": "never"}


def test_an_address_is_taken_over_where_none_was_known(shop: Shop) -> None:
    nameless = customers.create(shop.call())["id"]
    sessions = [a_session(shop), a_session(shop, customer=nameless), a_session(shop, customer=shop.customer)]

    for session in sessions:
        checkout.complete(shop.store, session["id"], email="bob@acme.example")

    addresses = [session["customer_details"]["email"] for session in sessions]
    assert addresses == ["bob@acme.example", "bob@acme.example", "ada@acme.example"]
    assert shop.store.find("customer", nameless)["email"] == "bob@acme.example"


def test_a_wrong_address_is_refused_before_anybody_is_asked(shop: Shop) -> None:
    session = a_session(shop)

    with pytest.raises(Refusal, match="Invalid email address"):
        checkout.complete(shop.store, session["id"], "pm_card_threeDSecureRequired", email="bob@")
    with pytest.raises(Refusal, match="Nobody is to be authenticated"):
        checkout.authenticate(shop.store, session["id"])


@pytest.mark.parametrize("name", ["success_url", "cancel_url"])
@pytest.mark.parametrize("url", ["ftp://app.example", "http://", "http://[x", "http://a[b]"])
def test_an_address_that_cannot_be_read_is_refused(shop: Shop, name: str, url: str) -> None:
    with pytest.raises(Refusal, match="Not a valid URL") as refused:
        a_session(shop, **{name: url})

    assert refused.value.body["error"]["param"] == name


def test_nobody_buys_nothing(shop: Shop) -> None:
    """As at Stripe, though a subscription may go down to none afterwards: stripe/openapi#93."""
    items = [{"price": shop.price, "quantity": 0}]

    with pytest.raises(Refusal, match="greater than or equal to 1") as refused:
        checkout.create(shop.call(line_items=items, mode="subscription", success_url="https://app.example/"))

    assert refused.value.body["error"]["param"] == "line_items[0][quantity]"
    assert refused.value.body["error"]["code"] == "parameter_invalid_integer"
