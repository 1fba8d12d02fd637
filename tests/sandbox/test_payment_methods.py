import pytest
import stripe

from tests.sandbox.conftest import Raw
from tests.sandbox.shapes import differences


@pytest.fixture
def customer(api: stripe.StripeClient) -> str:
    return api.v1.customers.create().id


def test_a_test_id_becomes_a_card_of_the_customer(api: stripe.StripeClient, raw: Raw, customer: str) -> None:
    made = api.v1.payment_methods.attach("pm_card_visa", {"customer": customer})

    answer = raw("GET", f"/v1/payment_methods/{made.id}").json()

    assert list(differences(stripe.PaymentMethod, answer)) == []
    assert (answer["customer"], answer["card"]["last4"]) == (customer, "4242")


def test_cards_are_listed_by_customer(api: stripe.StripeClient, customer: str) -> None:
    made = api.v1.payment_methods.attach("pm_card_visa", {"customer": customer})

    assert [card.id for card in api.v1.payment_methods.list({"customer": customer}).data] == [made.id]
    assert [card.id for card in api.v1.customers.payment_methods.list(customer).data] == [made.id]


def test_a_card_of_somebody_else_is_no_default(api: stripe.StripeClient, customer: str) -> None:
    other = api.v1.customers.create().id
    card = api.v1.payment_methods.attach("pm_card_visa", {"customer": other}).id

    with pytest.raises(stripe.InvalidRequestError, match="must be attached"):
        api.v1.customers.update(customer, {"invoice_settings": {"default_payment_method": card}})
    with pytest.raises(stripe.InvalidRequestError, match="already been attached"):
        api.v1.payment_methods.attach(card, {"customer": customer})


def test_a_detached_card_is_nobodys_default(api: stripe.StripeClient, customer: str) -> None:
    card = api.v1.payment_methods.attach("pm_card_visa", {"customer": customer}).id
    api.v1.customers.update(customer, {"invoice_settings": {"default_payment_method": card}})

    api.v1.payment_methods.detach(card)

    settings = api.v1.customers.retrieve(customer).invoice_settings
    assert settings
    assert settings.default_payment_method is None
    assert api.v1.payment_methods.list({"customer": customer}).data == []


def test_an_unknown_card_is_refused(api: stripe.StripeClient, customer: str) -> None:
    with pytest.raises(stripe.InvalidRequestError, match="No such payment_method"):
        api.v1.payment_methods.attach("pm_none", {"customer": customer})
