"""An invoice at its `hosted_invoice_url`: what it says, and how somebody pays it."""

from collections.abc import Iterator
from typing import Any

import pytest
import requests
import stripe

from sandbox.server import Control, running
from tests.sandbox.visitor import Page, visit


class Bill:
    """The first invoice of a subscription nobody has paid for yet."""

    def __init__(self, api: stripe.StripeClient, **more: Any) -> None:
        self.api = api
        self.product = api.v1.products.create({"name": "Team"}).id
        price = api.v1.prices.create(
            {
                "product": self.product,
                "currency": "eur",
                "unit_amount": 1200,
                "recurring": {"interval": "month"},
            }
        ).id
        self.customer = api.v1.customers.create({"name": "Acme <GmbH>"}).id
        params: Any = {
            "customer": self.customer,
            "items": [{"price": price, "quantity": 3}],
            "payment_behavior": "default_incomplete",
            **more,
        }
        self.subscription = api.v1.subscriptions.create(params).id
        self.invoice = str(api.v1.subscriptions.retrieve(self.subscription).latest_invoice)

    def now(self) -> stripe.Invoice:
        return self.api.v1.invoices.retrieve(self.invoice)

    def page(self) -> Page:
        return visit(str(self.now().hosted_invoice_url))


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Control]:
    """One of their own: its clock is moved."""
    with running() as control:
        yield control


@pytest.fixture
def bill(api: stripe.StripeClient) -> Bill:
    return Bill(api)


def test_an_invoice_has_a_page(sandbox: Control, bill: Bill) -> None:
    page = bill.page()

    assert page.url == f"{sandbox.url}/i/{bill.invoice}"
    for said in (f"Invoice {bill.now().number}", "open", "Acme <GmbH>", "Team 3 seats", "Total €36.00"):
        assert said in page.text


def test_an_open_invoice_is_paid_there(bill: Bill, api: stripe.StripeClient) -> None:
    page = bill.page().press("Pay €36.00")

    assert page.answer.history[-1].status_code == 303
    assert "Status paid" in page.text
    assert not page.buttons
    assert bill.now().amount_paid == 3600
    assert api.v1.subscriptions.retrieve(bill.subscription).status == "active"


@pytest.mark.parametrize("card", ["pm_card_visa_chargeDeclined", "pm_card_chargeCustomerFail"])
def test_after_a_declined_card_another_one_pays(bill: Bill, card: str) -> None:
    declined = bill.page().press("Pay €36.00", payment_method=card)
    status = bill.now().status
    declined.press("Pay €36.00", payment_method="pm_card_visa")

    assert (declined.status, declined.alerts, status) == (402, ["Your card was declined."], "open")
    assert bill.now().status == "paid"


def test_what_is_paid_is_not_paid_again(bill: Bill) -> None:
    before = bill.page()
    before.press("Pay €36.00")
    told = len(bill.api.v1.events.list({"limit": 100}).data)

    page = before.press("Pay €36.00")

    assert page.status == 200
    assert len(bill.api.v1.events.list({"limit": 100}).data) == told


def test_what_is_void_cannot_be_paid(bill: Bill) -> None:
    bill.api.v1.invoices.void_invoice(bill.invoice)

    page = bill.page()

    assert "Status void" in page.text
    assert not page.buttons


def test_what_is_taken_off_is_shown(api: stripe.StripeClient) -> None:
    coupon = api.v1.coupons.create({"amount_off": 600, "currency": "eur", "duration": "once"}).id

    page = Bill(api, discounts=[{"coupon": coupon}]).page()

    assert "Discount \N{MINUS SIGN}€6.00 Total €30.00" in page.text


def test_a_trial_is_free(api: stripe.StripeClient) -> None:
    page = Bill(api, trial_period_days=14).page()

    assert "free trial Total €0.00" in page.text


def test_a_draft_has_no_page(sandbox: Control, bill: Bill) -> None:
    bill.page().press("Pay €36.00")
    period: Any = bill.api.v1.subscriptions.retrieve(bill.subscription).to_dict()["items"]["data"][0]
    sandbox.advance(period["current_period_end"] - sandbox.now() + 60)
    draft = str(bill.api.v1.subscriptions.retrieve(bill.subscription).latest_invoice)

    assert bill.api.v1.invoices.retrieve(draft).status == "draft"
    assert requests.get(f"{sandbox.url}/i/{draft}").status_code == 404


def test_what_a_bank_is_about_to_pay_is_not_asked_for_again(
    sandbox: Control, bill: Bill, api: stripe.StripeClient
) -> None:
    price = api.v1.prices.list({"product": bill.product}).data[0].id
    session = api.v1.checkout.sessions.create(
        {"mode": "subscription", "line_items": [{"price": price}], "success_url": "https://app.example.com/"}
    ).id
    bill.invoice = sandbox.complete_checkout(session, "pm_success_de")["invoice"]
    under_way = bill.page()

    sandbox.settle_payment(session, succeed=False)

    assert "A bank debit is under way." in under_way.text
    assert not under_way.buttons
    assert bill.page().offers("Pay €12.00")
