"""What of Stripe's objects is shown, and what is not."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from billing.operations.masking import DEEPEST, MASK, event

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
DISPUTED: dict[str, dict[str, Any]] = {  # what is met under names that tell little, of objects of every kind
    "customer.source.updated": {
        "object": "card",
        **dict.fromkeys(("address_city", "address_zip", "address_line1", "address_state"), "secret"),
        **{"last4": "4711", "exp_month": 4, "exp_year": 4711},
    },
    "credit_note.created": {"object": "credit_note", "pdf": "https://pay.stripe.com/credit_notes/secret/pdf"},
    "identity.verification_session.verified": {
        "object": "identity.verification_session",
        "verified_outputs": {"id_number": "secret", "id_number_type": "us_ssn", "dob": {"year": 4711}},
    },
    "review.opened": {
        "object": "review",
        "billing_zip": "secret",
        "ip_address_location": {"city": "secret", "latitude": 47.11, "longitude": 47.11},
    },
    "payment_intent.requires_action": {
        "object": "payment_intent",
        "client_secret": "pi_1_secret_2",
        "next_action": {
            "boleto_display_details": {"pdf": "https://payments.stripe.com/boleto/secret", "number": "secret"},
            "cashapp_handle_redirect_or_display_qr_code": {"qr_code": {"image_url_png": "https://qr/secret"}},
            "konbini_display_details": {
                "stores": {"lawson": {"payment_code": "4711", "confirmation_number": "4711"}}
            },
            "display_bank_transfer_instructions": {"financial_addresses": [{"spei": {"clabe": "4711"}}]},
        },
    },
    "charge.succeeded": {
        "object": "charge",
        "level3": {"shipping_address_zip": "secret", "customer_reference": "secret"},
        "payment_method_details": {
            "acss_debit": {"transit_number": "4711", "institution_number": "4711"},
            "cashapp": {"buyer_id": "secret", "cashtag": "$secret"},
        },
    },
    "promotion_code.created": {"object": "promotion_code", "id": "promo_1", "code": "secret"},
}
SECRETS = (
    *("Ada", "lovelace", "acme.example", "2079460000", "St James", "London", "SW1Y", "postman", "0207"),
    *("DE123456789", "live_secret", "Acme GmbH", "4711", "Xt5EWLLDS7FJjR1c", "STRIPE BANK", "110000000"),
)


def shown(thing: dict[str, Any], kind: str) -> Any:
    """An object as an operator sees it in an event of this type."""
    return event({"id": "evt_1", "object": "event", "type": kind, "data": {"object": thing}})["data"]["object"]


@pytest.mark.parametrize("thing", [CUSTOMER, INVOICE, CHECKOUT, METHOD], ids=lambda thing: str(thing["object"]))
@pytest.mark.parametrize("kind", ["invoice.paid", "payment_method.attached"])
def test_of_a_person_nothing_is_shown_but_the_country(thing: dict[str, Any], kind: str) -> None:
    body = {"id": "evt_1", "type": kind, "data": {"object": thing, "previous_attributes": thing}}

    assert [secret for secret in SECRETS if secret in json.dumps(event(body))] == []


@pytest.mark.parametrize("kind", DISPUTED)
def test_an_innocent_name_shows_nothing(kind: str) -> None:
    """Neither in an event that nothing is read of, nor where it turns up in one that is used."""
    for carrier in (kind, "invoice.paid"):
        written = json.dumps(shown(DISPUTED[kind], carrier))
        assert not re.search("secret_2|4711|47.11|https|(?<!_)secret", written.replace('"client_secret"', ""))


def test_what_a_machine_says_is_shown() -> None:
    customer, invoice = shown(CUSTOMER, "customer.deleted"), shown(INVOICE, "invoice.paid")
    product = {
        "object": "product",
        "id": "gold-plan",
        "name": "Pro plan",
        "metadata": {"plan": "pro", "limit.seats": "5*quantity", "margin": "80"},
    }

    assert customer["address"] == {"line1": MASK, "city": MASK, "postal_code": MASK, "country": "GB"}
    assert (customer["balance"], customer["currency"], customer["id"]) == (-500, "eur", "cus_1")
    assert customer["metadata"] == {"tenant_id": "t_acme", "contact": MASK, "phone_2": MASK}
    assert customer["invoice_settings"] == {"default_payment_method": "pm_1", "footer": MASK}
    assert (invoice["number"], invoice["amount_due"], invoice["attempt_count"]) == ("ABC-0001", 1200, 2)
    assert invoice["parent"] == INVOICE["parent"]
    assert invoice["lines"]["data"][0]["price"]["nickname"] == "Team"
    assert shown(product, "product.updated") == {
        **product,
        "metadata": {"plan": "pro", "limit.seats": "5*quantity", "margin": MASK},
    }
    assert shown({"object": "card", "name": None, "email": "", "address": None}, "invoice.paid") == {
        **{"object": "card", "name": None, "email": "", "address": None}
    }


def test_of_an_event_that_nothing_is_read_of_its_envelope_is_shown() -> None:
    body = {
        **{"id": "evt_1", "object": "event", "type": "payment_method.attached", "created": 1700000000},
        **{
            "livemode": False,
            "request": {"id": "req_1"},
            "data": {"object": METHOD, "previous_attributes": {}},
        },
    }

    seen = event(body)

    assert {**seen, "data": None} == {**body, "request": MASK, "data": None}
    assert seen["data"] == {"object": {**dict.fromkeys(METHOD, MASK), "id": "pm_1", "object": "payment_method"}}


def test_what_is_nested_too_deep_is_not_shown() -> None:
    deep: Any = "word"
    for _ in range(DEEPEST + 5):
        deep = [deep]

    assert "word" not in json.dumps(shown({"status": deep}, "invoice.paid"))
