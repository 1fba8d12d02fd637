"""What an account does about unpaid invoices, as it is set from outside."""

from typing import Any

import pytest
import stripe

from sandbox.resources import subscriptions
from sandbox.server import Control, running
from tests.sandbox.conftest import client_for
from tests.sandbox.shop import DAY, START, Shop

HOUR = 3600


def test_an_account_may_leave_subscriptions_unpaid_and_they_recover_by_another_card() -> None:
    with running() as sandbox:  # of its own: its clock is moved
        api = client_for(sandbox)
        product = api.v1.products.create({"name": "Pro"}).id
        recurring: Any = {"interval": "week"}
        price = api.v1.prices.create(
            {"product": product, "currency": "eur", "unit_amount": 900, "recurring": recurring}
        ).id
        customer = api.v1.customers.create().id
        pays_by(api, customer, "pm_card_visa")
        made = api.v1.subscriptions.create({"customer": customer, "items": [{"price": price}]}).id
        pays_by(api, customer, "pm_card_chargeCustomerFail")
        sandbox.dunning(after_retries="unpaid", retry_days=[1])

        sandbox.advance(7 * DAY + 2 * HOUR)
        retrying = api.v1.subscriptions.retrieve(made, {"expand": ["latest_invoice"]})
        sandbox.advance(DAY)
        given_up = api.v1.subscriptions.retrieve(made)
        pays_by(api, customer, "pm_card_visa")
        api.v1.invoices.pay(str(given_up.latest_invoice))

        assert isinstance(retrying.latest_invoice, stripe.Invoice)
        assert (retrying.status, given_up.status) == ("past_due", "unpaid")
        assert retrying.latest_invoice.next_payment_attempt
        assert api.v1.subscriptions.retrieve(made).status == "active"


def pays_by(api: stripe.StripeClient, customer: str, card: str) -> None:
    method = api.v1.payment_methods.attach(card, {"customer": customer}).id
    api.v1.customers.update(customer, {"invoice_settings": {"default_payment_method": method}})


@pytest.mark.parametrize("settings", [{"after_retries": "forgiven"}, {"retry_days": [0]}, {"days": 3}])
def test_settings_that_make_no_sense_are_refused(sandbox: Control, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        sandbox.dunning(**settings)


def test_canceling_what_was_never_paid_voids_its_invoice_and_expires_it() -> None:
    shop = Shop()
    made = shop.subscribe(payment_behavior="default_incomplete")

    subscriptions.cancel(shop.call(), made["id"])

    assert (made["status"], made["canceled_at"], made["ended_at"]) == ("incomplete_expired", START, START)
    assert shop.latest_invoice(made)["status"] == "void"
    assert shop.told()[-2:] == ["invoice.voided", "customer.subscription.updated"]
