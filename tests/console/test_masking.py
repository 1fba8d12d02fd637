"""What of Stripe's objects is shown, and what is not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from billing.operations.masking import DEEPEST, MASK, masked

PEOPLE = {
    "name": "Ada Lovelace",
    "email": "ada@acme.example",
    "phone": "+442079460000",
    "address": {"line1": "12 St James's Square", "city": "London", "postal_code": "SW1Y", "country": "GB"},
}
CUSTOMER = {
    "id": "cus_1",
    "object": "customer",
    "balance": -500,
    "currency": "eur",
    "description": "Ada's own company",
    "invoice_settings": {"default_payment_method": "pm_1", "footer": "Thank you, Ada"},
    "shipping": {"name": "Ada Lovelace", "address": {"city": "London", "country": "GB"}, "carrier": "postman"},
    "metadata": {"tenant_id": "t_acme", "contact": "lovelace", "phone_2": "0207"},
    "tax_ids": {"object": "list", "data": [{"type": "eu_vat", "value": "DE123456789"}]},
    "preferred_locales": ["en-GB"],
    **PEOPLE,
}
INVOICE = {
    "id": "in_1",
    "object": "invoice",
    "number": "ABC-0001",
    "amount_due": 1200,
    "status": "open",
    "attempt_count": 2,
    "customer": "cus_1",
    "customer_email": "ada@acme.example",
    "customer_name": "Ada Lovelace",
    "customer_phone": "+442079460000",
    "customer_address": PEOPLE["address"],
    "customer_tax_ids": [{"type": "eu_vat", "value": "DE123456789"}],
    "hosted_invoice_url": "https://invoice.stripe.com/i/acct_1/live_secret",
    "invoice_pdf": "https://pay.stripe.com/invoice/acct_1/live_secret/pdf",
    "custom_fields": [{"name": "Order", "value": "Ada-77"}],
    "lines": {"data": [{"description": "One Team, for Ada", "price": {"object": "price", "nickname": "Team"}}]},
    "parent": {"subscription_details": {"subscription": "sub_1"}, "type": "subscription_details"},
}
CHECKOUT = {
    "id": "cs_test_1",
    "object": "checkout.session",
    "payment_status": "paid",
    "mode": "subscription",
    "url": "https://checkout.stripe.com/c/pay/cs_live_secret",
    "client_secret": "cs_live_secret",
    "customer_details": {**PEOPLE, "tax_exempt": "none", "business_name": "Acme GmbH"},
    "success_url": "https://app.example.com/settings/billing?token=live_secret",
}
METHOD = {
    "id": "pm_1",
    "object": "payment_method",
    "type": "card",
    "billing_details": PEOPLE,
    "card": {
        "brand": "visa",
        "country": "GB",
        "last4": "4711",
        "fingerprint": "Xt5EWLLDS7FJjR1c",
        "exp_year": 2031,
    },
    "us_bank_account": {"bank_name": "STRIPE BANK", "last4": "6789", "routing_number": "110000000"},
}
SECRETS = (
    *("Ada", "lovelace", "acme.example", "2079460000", "St James", "London", "SW1Y", "postman", "0207"),
    *("DE123456789", "live_secret", "Acme GmbH", "4711", "Xt5EWLLDS7FJjR1c", "STRIPE BANK", "110000000"),
)


@pytest.mark.parametrize("thing", [CUSTOMER, INVOICE, CHECKOUT, METHOD], ids=lambda thing: str(thing["object"]))
def test_of_a_person_nothing_is_shown_but_the_country(thing: dict[str, Any]) -> None:
    shown = json.dumps(masked({"id": "evt_1", "data": {"object": thing, "previous_attributes": thing}}))

    assert [secret for secret in SECRETS if secret in shown] == []


def test_what_a_machine_says_is_shown() -> None:
    customer, invoice, method = masked(CUSTOMER), masked(INVOICE), masked(METHOD)

    assert customer["address"] == {"line1": MASK, "city": MASK, "postal_code": MASK, "country": "GB"}
    assert (customer["balance"], customer["currency"], customer["id"]) == (-500, "eur", "cus_1")
    assert customer["metadata"] == {"tenant_id": "t_acme", "contact": MASK, "phone_2": MASK}
    assert customer["invoice_settings"]["default_payment_method"] == "pm_1"
    assert (invoice["number"], invoice["amount_due"], invoice["attempt_count"]) == ("ABC-0001", 1200, 2)
    assert invoice["parent"] == INVOICE["parent"]
    assert invoice["lines"]["data"][0]["price"]["nickname"] == "Team"
    assert (method["card"]["brand"], method["card"]["country"]) == ("visa", "GB")
    assert masked({"object": "product", "name": "Pro plan"})["name"] == "Pro plan"
    assert masked({"name": None, "email": "", "address": None}) == {"name": None, "email": "", "address": None}


def test_what_nobody_has_thought_of_is_masked_by_its_looks() -> None:
    odd = {"nick": "ada@acme.example", "note": "call her", "origin": "Zürich", "state": "past_due", "amount": 3}

    assert masked(odd) == {"nick": MASK, "note": MASK, "origin": MASK, "state": "past_due", "amount": 3}


def test_what_is_nested_too_deep_is_not_shown() -> None:
    deep: Any = "word"
    for _ in range(DEEPEST + 5):
        deep = [deep]

    assert "word" not in json.dumps(masked(deep))
