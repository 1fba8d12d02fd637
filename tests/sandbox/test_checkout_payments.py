"""Who pays on Checkout's page, and by what: declined, authenticated, settled days later."""

from typing import Any

import pytest
import stripe

from sandbox.errors import Refusal
from sandbox.resources import checkout
from sandbox.server import Control
from sandbox.store import Json
from tests.sandbox.conftest import Raw
from tests.sandbox.shapes import differences
from tests.sandbox.shop import Shop

THREE_D_SECURE = "pm_card_threeDSecureRequired"
BANK_ACCOUNT = "pm_success_de"


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def session(api: stripe.StripeClient) -> str:
    """An open page that sells a month for 9 euros."""
    product = api.v1.products.create({"name": "Pro"}).id
    price = api.v1.prices.create(
        {"product": product, "currency": "eur", "unit_amount": 900, "recurring": {"interval": "month"}}
    ).id
    params: Any = {
        "mode": "subscription",
        "line_items": [{"price": price, "quantity": 1}],
        "success_url": "https://app.example/",
    }
    return api.v1.checkout.sessions.create(params).id


def a_session(shop: Shop, **params: Any) -> Json:
    given: Json = {"mode": "subscription", "success_url": "https://app.example/", **params}
    return checkout.create(shop.call(customer=shop.customer, line_items=[{"price": shop.price}], **given))


def test_after_a_declined_card_another_one_pays(
    sandbox: Control, api: stripe.StripeClient, session: str
) -> None:
    with pytest.raises(ValueError, match="declined"):
        sandbox.complete_checkout(session, "pm_card_visa_chargeDeclined")
    still_open = api.v1.checkout.sessions.retrieve(session).status

    done = sandbox.complete_checkout(session)

    assert (still_open, done["status"]) == ("open", "complete")


def test_a_card_that_is_declined_cannot_begin_a_trial(shop: Shop) -> None:
    session = a_session(shop, subscription_data={"trial_period_days": 14})

    with pytest.raises(Refusal) as refused:
        checkout.complete(shop.store, session["id"], "pm_card_visa_chargeDeclined")

    assert (refused.value.status, refused.value.body["error"]["code"]) == (402, "card_declined")


def test_a_card_waits_for_its_holder_and_then_pays(
    sandbox: Control, api: stripe.StripeClient, session: str
) -> None:
    waiting = sandbox.complete_checkout(session, THREE_D_SECURE)

    done = sandbox.authenticate(session)

    assert (waiting["status"], waiting["subscription"]) == ("open", None)
    assert (done["status"], done["payment_status"]) == ("complete", "paid")
    assert api.v1.subscriptions.retrieve(done["subscription"]).status == "active"


def test_a_holder_who_is_not_authenticated_may_try_again(sandbox: Control, session: str) -> None:
    sandbox.complete_checkout(session, THREE_D_SECURE)

    failed = sandbox.authenticate(session, succeed=False)
    with pytest.raises(ValueError, match="Nobody is to be authenticated"):
        sandbox.authenticate(session)
    done = sandbox.complete_checkout(session)

    assert (failed["status"], done["status"]) == ("open", "complete")


def test_a_session_expires_even_while_a_holder_is_awaited(shop: Shop) -> None:
    session = a_session(shop)
    checkout.complete(shop.store, session["id"], THREE_D_SECURE)

    shop.pass_days(1)

    assert session["status"] == "expired"
    with pytest.raises(Refusal, match="no longer open"):
        checkout.authenticate(shop.store, session["id"])


def test_a_bank_debit_completes_the_session_before_it_is_paid(shop: Shop) -> None:
    session = a_session(shop)
    told = len(shop.told())

    checkout.complete(shop.store, session["id"], BANK_ACCOUNT)

    assert (session["status"], session["payment_status"]) == ("complete", "unpaid")
    assert shop.store.find("subscription", session["subscription"])["status"] == "active"
    assert shop.store.find("invoice", session["invoice"])["status"] == "open"
    assert shop.told()[told:] == [
        "payment_method.attached",
        "customer.subscription.created",
        "invoice.created",
        "invoice.finalized",
        "customer.subscription.updated",
        "checkout.session.completed",
    ]


def test_days_later_the_bank_has_paid(shop: Shop) -> None:
    session = a_session(shop)
    checkout.complete(shop.store, session["id"], BANK_ACCOUNT)
    shop.pass_days(4)
    told = len(shop.told())

    checkout.settle(shop.store, session["id"])

    assert session["payment_status"] == "paid"
    assert shop.store.find("subscription", session["subscription"])["status"] == "active"
    assert shop.told()[told:] == [
        "invoice.updated",
        "invoice.paid",
        "invoice.payment_succeeded",
        "checkout.session.async_payment_succeeded",
    ]


def test_or_the_bank_has_not_and_the_customer_owes_it(shop: Shop) -> None:
    session = a_session(shop)
    checkout.complete(shop.store, session["id"], BANK_ACCOUNT)
    told = len(shop.told())

    checkout.settle(shop.store, session["id"], succeed=False)
    owed = shop.store.find("subscription", session["subscription"])["status"]
    types = shop.told()[told:]
    shop.pay(session["invoice"])

    assert (session["status"], session["payment_status"], owed) == ("complete", "unpaid", "past_due")
    assert types == [
        "invoice.payment_failed",
        "customer.subscription.updated",
        "checkout.session.async_payment_failed",
    ]
    assert shop.store.find("subscription", session["subscription"])["status"] == "active"


def test_a_bank_settles_once_and_only_what_it_was_told_to_pay(sandbox: Control, session: str) -> None:
    with pytest.raises(ValueError, match="No bank is to pay"):
        sandbox.settle_payment(session)
    sandbox.complete_checkout(session, BANK_ACCOUNT)

    done = sandbox.settle_payment(session)

    assert done["payment_status"] == "paid"
    with pytest.raises(ValueError, match="No bank is to pay"):
        sandbox.settle_payment(session)


def test_a_trial_leaves_a_bank_nothing_to_settle(shop: Shop) -> None:
    session = a_session(shop, subscription_data={"trial_period_days": 14})

    checkout.complete(shop.store, session["id"], BANK_ACCOUNT)

    assert session["payment_status"] == "no_payment_required"
    with pytest.raises(Refusal, match="No bank is to pay"):
        checkout.settle(shop.store, session["id"])


def test_a_bank_account_renews_like_a_card(shop: Shop) -> None:
    session = a_session(shop)
    checkout.complete(shop.store, session["id"], BANK_ACCOUNT)
    checkout.settle(shop.store, session["id"])

    shop.pass_days(31.5)

    subscription = shop.store.find("subscription", session["subscription"])
    assert (subscription["status"], shop.latest_invoice(subscription)["status"]) == ("active", "paid")


@pytest.mark.parametrize(
    "restriction", [{"payment_method_types": ["card"]}, {}], ids=["by type", "by currency"]
)
def test_only_what_the_session_takes_can_pay(shop: Shop, restriction: Json) -> None:
    session = a_session(shop, **restriction)

    with pytest.raises(Refusal, match="takes no"):
        checkout.complete(
            shop.store, session["id"], BANK_ACCOUNT if restriction else "pm_usBankAccount_success"
        )


@pytest.mark.parametrize("test_id", [BANK_ACCOUNT, "pm_usBankAccount_success", THREE_D_SECURE])
def test_what_pays_has_every_field_the_sdk_promises(api: stripe.StripeClient, raw: Raw, test_id: str) -> None:
    customer = api.v1.customers.create().id
    made = api.v1.payment_methods.attach(test_id, {"customer": customer})

    answer = raw("GET", f"/v1/payment_methods/{made.id}").json()

    assert list(differences(stripe.PaymentMethod, answer)) == []
