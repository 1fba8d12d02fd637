"""/v1/payment_methods: cards, made from the test ids of Stripe's test mode, which is all there is of them.

Attaching `pm_card_visa` makes a card that always pays; `pm_card_chargeCustomerFail` one that never does.
"""

from stripe.params import (
    CustomerListPaymentMethodsParams,
    PaymentMethodAttachParams,
    PaymentMethodDetachParams,
    PaymentMethodListParams,
    PaymentMethodRetrieveParams,
)

from sandbox import changes
from sandbox.bills import NEVER_PAYS
from sandbox.errors import Refusal, missing
from sandbox.resources import Call, Operation, customers, listed, new_id, pick
from sandbox.store import Json, Store

KIND = "payment_method"

CARDS = {
    "pm_card_visa": ("visa", "4242"),
    "pm_card_mastercard": ("mastercard", "4444"),
    "pm_card_chargeCustomerFail": ("visa", NEVER_PAYS),
}


def attach(call: Call, id: str) -> Json:
    given = pick(call.params, "customer")
    if "customer" not in given:
        raise missing("customer")
    customers.living(call.store, given["customer"], param="customer")
    return attached(call.store, id, given["customer"])


def attached(store: Store, id: str, customer: str) -> Json:
    method = store.insert(card(store, *CARDS[id])) if id in CARDS else store.find(KIND, id)
    if method["customer"] not in (None, customer):
        raise Refusal("The payment method you provided has already been attached to a customer.")
    store.change(method, customer=customer)
    changes.happened(store, method, "attached")
    return method


def card(store: Store, brand: str, last4: str) -> Json:
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
        "card": {
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
        },
        "created": store.now(),
        "customer": None,
        "livemode": False,
        "metadata": {},
        "type": "card",
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
    Operation(
        "GET", "/v1/customers/<customer>/payment_methods", CustomerListPaymentMethodsParams, list_methods
    ),
]
