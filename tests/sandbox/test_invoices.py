import pytest
import stripe

from sandbox.errors import Refusal
from sandbox.resources import invoices
from tests.sandbox.conftest import Raw
from tests.sandbox.shapes import differences
from tests.sandbox.shop import DAY, Shop


@pytest.fixture
def shop() -> Shop:
    return Shop()


def test_an_invoice_has_every_field_the_sdk_promises(shop: Shop) -> None:
    made = shop.subscribe(items=[{"price": shop.price, "quantity": 3}])

    invoice = shop.latest_invoice(made)

    assert list(differences(stripe.Invoice, invoice)) == []
    assert (invoice["amount_paid"], invoice["amount_remaining"], invoice["currency"]) == (3000, 0, "eur")
    assert invoice["parent"]["subscription_details"]["subscription"] == made["id"]
    assert invoice["number"].endswith("-0001")


def test_invoices_are_listed_by_what_they_are_for(api: stripe.StripeClient, raw: Raw) -> None:
    customer = api.v1.customers.create().id
    product = api.v1.products.create({"name": "Pro"}).id
    price = api.v1.prices.create(
        {"product": product, "currency": "eur", "unit_amount": 900, "recurring": {"interval": "month"}}
    ).id
    paid, due = (
        api.v1.subscriptions.create(
            {"customer": customer, "items": [{"price": price}], "payment_behavior": "default_incomplete"}
        )
        for _ in range(2)
    )
    method = api.v1.payment_methods.attach("pm_card_visa", {"customer": customer}).id
    api.v1.invoices.pay(str(paid.latest_invoice), {"payment_method": method})

    by_subscription = api.v1.invoices.list({"subscription": paid.id}).data
    by_status = api.v1.invoices.list({"customer": customer, "status": "open"}).data

    assert [invoice.id for invoice in by_subscription] == [paid.latest_invoice]
    assert [invoice.id for invoice in by_status] == [due.latest_invoice]
    assert list(differences(stripe.Invoice, raw("GET", f"/v1/invoices/{due.latest_invoice}").json())) == []
    assert api.v1.subscriptions.retrieve(paid.id).status == "active"


def test_a_declined_payment_changes_nothing(shop: Shop) -> None:
    shop.takes("pm_card_chargeCustomerFail")
    made = shop.subscribe()

    with pytest.raises(Refusal) as refused:
        shop.pay(made["latest_invoice"])

    assert (refused.value.status, refused.value.body["error"]["code"]) == (402, "card_declined")
    assert made["status"] == "incomplete"
    assert shop.latest_invoice(made)["attempt_count"] == 1
    assert shop.told()[-1] == "invoice.payment_failed"


def test_a_paid_invoice_is_not_paid_twice(shop: Shop) -> None:
    made = shop.subscribe()

    with pytest.raises(Refusal, match="already paid"):
        shop.pay(made["latest_invoice"])


def test_voiding_the_first_invoice_ends_what_never_began(shop: Shop) -> None:
    made = shop.subscribe(payment_behavior="default_incomplete")

    invoices.void(shop.call(), made["latest_invoice"])

    assert made["status"] == "incomplete_expired"
    assert shop.told()[-2:] == ["invoice.voided", "customer.subscription.updated"]


def test_voiding_a_failed_renewal_leaves_it_to_the_invoice_before(shop: Shop) -> None:
    made = shop.subscribe()
    shop.takes("pm_card_chargeCustomerFail")
    shop.pass_days(32)
    assert made["status"] == "past_due"

    invoices.void(shop.call(), made["latest_invoice"])

    assert made["status"] == "active"


def test_writing_a_renewal_off_makes_it_active_again(shop: Shop) -> None:
    made = shop.subscribe()
    shop.takes("pm_card_chargeCustomerFail")
    shop.pass_days(32)

    invoices.mark_uncollectible(shop.call(), made["latest_invoice"])

    assert made["status"] == "active"
    assert shop.told()[-2:] == ["invoice.marked_uncollectible", "customer.subscription.updated"]


def test_a_draft_can_be_finalized_before_its_hour_is_over(shop: Shop) -> None:
    made = shop.subscribe()
    shop.pass_days(31)
    draft = shop.latest_invoice(made)
    assert draft["status"] == "draft"

    invoices.finalize(shop.call(), draft["id"])

    assert draft["status"] == "open"
    assert draft["status_transitions"]["finalized_at"] == shop.store.now()


def test_paying_an_older_invoice_does_not_mend_a_newer_one(shop: Shop) -> None:
    shop.store.retry_days = [60]
    made = shop.subscribe()
    older = made["latest_invoice"]
    shop.takes("pm_card_chargeCustomerFail")
    shop.pass_days(32)
    older, made_of = made["latest_invoice"], made["items"]["data"][0]["current_period_end"]
    shop.pass_days((made_of - shop.store.now()) / DAY + 1)
    shop.takes("pm_card_visa")

    shop.pay(older)
    after_older = made["status"]
    shop.pay(made["latest_invoice"])

    assert (after_older, made["status"]) == ("past_due", "active")
