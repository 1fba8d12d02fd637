"""/v1/payment_methods: cards and bank accounts, made from the test ids of Stripe's test mode and no others.

Attaching `pm_card_visa` makes a card that always pays, `pm_card_chargeCustomerFail` one that never does;
`pm_card_visa_chargeDeclined` cannot even be attached. That a card wants its holder authenticated, or that
a bank takes days, shows where somebody pays by it on a Checkout page: later charges go through at once.
"""

from stripe.params import (
    CustomerPaymentMethodListParams,
    PaymentMethodAttachParams,
    PaymentMethodDetachParams,
    PaymentMethodListParams,
    PaymentMethodRetrieveParams,
)

from sandbox import changes
from sandbox.bills import NEVER_PAYS, declined
from sandbox.errors import Refusal, missing
from sandbox.resources import Call, Operation, customers, listed, new_id, pick
from sandbox.store import Json, Store

KIND = "payment_method"

CARDS = {
    "pm_card_visa": ("visa", "4242"),
    "pm_card_mastercard": ("mastercard", "4444"),
    "pm_card_chargeCustomerFail": ("visa", NEVER_PAYS),
    "pm_card_visa_chargeDeclined": ("visa", "0002"),
    "pm_card_threeDSecureRequired": ("visa", "3063"),
}
DECLINED = {"pm_card_visa_chargeDeclined"}
AUTHENTICATED = {"pm_card_threeDSecureRequired"}

BANK_ACCOUNTS: dict[str, tuple[str, Json]] = {
    "pm_success_de": (
        "sepa_debit",
        {
            "bank_code": "37040044",
            "branch_code": "",
            "country": "DE",
            "fingerprint": "sandboxsepa3000",
            "generated_from": {"charge": None, "setup_attempt": None},
            "last4": "3000",
        },
    ),
    "pm_usBankAccount_success": (
        "us_bank_account",
        {
            "account_holder_type": "company",
            "account_type": "checking",
            "bank_name": "STRIPE TEST BANK",
            "financial_connections_account": None,
            "fingerprint": "sandboxbank6789",
            "last4": "6789",
            "networks": {"preferred": "ach", "supported": ["ach"]},
            "routing_number": "110000000",
            "status_details": None,
        },
    ),
}


def attach(call: Call, id: str) -> Json:
    given = pick(call.params, "customer")
    if "customer" not in given:
        raise missing("customer")
    customers.living(call.store, given["customer"], param="customer")
    return attached(call.store, id, given["customer"])


def attached(store: Store, id: str, customer: str) -> Json:
    if id in DECLINED:
        raise declined()
    method = made(store, id) or store.find(KIND, id)
    if method["customer"] not in (None, customer):
        raise Refusal("The payment method you provided has already been attached to a customer.")
    store.change(method, customer=customer)
    changes.happened(store, method, "attached")
    return method


def type_of(store: Store, id: str) -> str:
    """Of a payment method, or of what a test id stands for."""
    if id in CARDS:
        return "card"
    return BANK_ACCOUNTS[id][0] if id in BANK_ACCOUNTS else str(store.find(KIND, id)["type"])


def made(store: Store, id: str) -> Json | None:
    """A new payment method, where the id is one of the test mode's."""
    if id in CARDS:
        return store.insert(new(store, "card", card(*CARDS[id])))
    return store.insert(new(store, *BANK_ACCOUNTS[id])) if id in BANK_ACCOUNTS else None


def new(store: Store, type: str, details: Json) -> Json:
    return {
        "id": new_id("pm", 24),
        "object": KIND,
        "allow_redisplay": "unspecified",
        "billing_details": {
            "address": dict.fromkeys(customers.ADDRESS),
            "email": None,
            "name": None,
            "phone": None,
            "tax_id": None,
        },
        "created": store.now(),
        "customer": None,
        "customer_account": None,
        "livemode": False,
        "metadata": {},
        "type": type,
        type: details,
    }


def card(brand: str, last4: str) -> Json:
    return {
        "brand": brand,
        "checks": {
            "address_line1_check": None,
            "address_postal_code_check": None,
            "cvc_check": "pass",
        },
        "country": "US",
        "display_brand": brand,
        "exp_month": 12,
        "exp_year": 2040,
        "fingerprint": f"sandbox{brand}{last4}",
        "funding": "credit",
        "generated_from": None,
        "last4": last4,
        "networks": {"available": [brand], "preferred": None},
        "regulated_status": "unregulated",
        "three_d_secure_usage": {"supported": True},
        "wallet": None,
    }


def detach(call: Call, id: str) -> Json:
    method = call.store.find(KIND, id)
    customer = call.store.collection("customer").get(method["customer"])
    if customer is None:
        raise Refusal(
            "The payment method you provided is not attached to a customer so detachment is impossible."
        )
    call.store.change(method, customer=None)
    changes.happened(call.store, method, "detached")
    settings = customer.get("invoice_settings", {})
    if settings.get("default_payment_method") == id:
        changes.updated(call.store, customer, invoice_settings=settings | {"default_payment_method": None})
    for subscription in call.store.collection("subscription").values():
        if subscription["default_payment_method"] == id:
            changes.updated(call.store, subscription, default_payment_method=None)
    return method


def retrieve(call: Call, id: str) -> Json:
    return call.store.find(KIND, id)


def list_methods(call: Call, customer: str | None = None) -> Json:
    url = f"/v1/customers/{customer}/payment_methods" if customer else "/v1/payment_methods"
    owner = customer or call.params.get("customer")
    if owner is None:
        raise missing("customer")
    customers.living(call.store, owner, param="id" if customer else "customer")
    among = [method for method in call.store.collection(KIND).values() if method["customer"] == owner]
    return listed(call, KIND, url, "customer", "type", among=among)


OPERATIONS = [
    Operation("GET", "/v1/payment_methods", PaymentMethodListParams, list_methods),
    Operation("GET", "/v1/payment_methods/<id>", PaymentMethodRetrieveParams, retrieve),
    Operation("POST", "/v1/payment_methods/<id>/attach", PaymentMethodAttachParams, attach),
    Operation("POST", "/v1/payment_methods/<id>/detach", PaymentMethodDetachParams, detach),
    Operation("GET", "/v1/customers/<customer>/payment_methods", CustomerPaymentMethodListParams, list_methods),
]
