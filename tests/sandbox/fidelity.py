"""Asks Stripe and the sandbox the same and says where their answers are not of one shape: `make fidelity`.

STRIPE_TEST_KEY names a test account of Stripe's; without one nothing is checked, and said to be so. `script`
is what is asked: each operation that needs no time to pass, and some refusals. What it makes it takes back,
as far as Stripe lets anybody. Compared are members, JSON types, null or not, and words such as `past_due`;
what may differ is in ACCEPTED, each with its reason.
"""

import os
import re
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from fnmatch import fnmatchcase
from itertools import zip_longest
from typing import Any, NamedTuple

import requests
import stripe
from stripe._encode import _api_encode

from sandbox.account import is_live
from sandbox.app import find
from sandbox.server import running

STRIPE = "https://api.stripe.com"

ACCEPTED = {
    "*.error.request_log_url": "leads to the Dashboard, which the sandbox has none of",
    "*.account_name": "the account's own",
    "*.account_country": "the account's own",
    "*.payment_method_types[[]0]": "what the account accepts",
    "*.payment_method_configuration_details": "what the account accepts",
    "* /v1/subscriptions*.plan": "of older days, in no description of Stripe's any more",
    "* /v1/subscriptions*.quantity": "of older days, in no description of Stripe's any more",
    "* /v1/customers/search: .data[[]0]": "Stripe finds what is new a minute later",
}

# A word of Stripe's own, as enums and types have them; what has a digit or a capital is an id or a text.
WORD = re.compile(r"[a-z_]+(\.[a-z_]+)*")


class Exchange(NamedTuple):
    """`call` has the method and the address, as the operations name it."""

    call: str
    status: int
    answer: Any


Ask = Callable[..., Any]  # of a method, a path and its parameters; the answer, or Refused


class Refused(Exception):
    """A call that had to succeed did not."""


class Side:
    """Stripe or a sandbox, and the log of what it was asked."""

    def __init__(self, address: str, key: str) -> None:
        self.address = address
        self.session = requests.Session()
        self.session.headers["Authorization"] = f"Bearer {key}"
        self.session.headers["Stripe-Version"] = stripe.api_version
        self.log: list[Exchange] = []

    def ask(self, method: str, path: str, *, refused: bool = False, **params: Any) -> Any:
        given = dict(_api_encode(params))
        form, query = (given, None) if method == "POST" else (None, given)
        response = self.session.request(method, self.address + path, params=query, data=form, timeout=60)
        call = f"{method} {find(method, path)[0].path}"
        self.log.append(Exchange(call, response.status_code, response.json()))
        if response.status_code != 200 and not refused:
            raise Refused(f"{call}: {response.status_code} {response.text}")
        return self.log[-1].answer


def script(ask: Ask, run: str) -> None:
    """`run` is a word for this run alone, of capitals and digits."""
    with ExitStack() as afterwards:
        price = sell(ask, afterwards, run)
        customer, method = sign_up(ask, afterwards, run)
        code = promote(ask, afterwards, run)
        subscribe(ask, customer, price, code)
        settle_invoices(ask, customer, price, method)
        use_features(ask, customer)
        check_out(ask, customer, price)
        open_portal(ask, afterwards, customer)
        listen(ask, afterwards)
        be_refused(ask, customer, price)
        ask("POST", f"/v1/payment_methods/{method}/detach")


def sell(ask: Ask, afterwards: ExitStack, run: str) -> str:
    product = ask("POST", "/v1/products", name="Fidelity", metadata={"run": run})["id"]
    afterwards.callback(ask, "POST", f"/v1/products/{product}", active=False)
    ask("GET", f"/v1/products/{product}")
    ask("POST", f"/v1/products/{product}", description="Sold to nobody")
    ask("GET", "/v1/products", limit=1)
    ask("DELETE", f"/v1/products/{ask('POST', '/v1/products', name='Fidelity, unsold')['id']}")
    monthly = {"product": product, "currency": "usd", "recurring": {"interval": "month"}}
    price = ask("POST", "/v1/prices", **monthly, unit_amount=1000, lookup_key=f"fidelity_{run}")["id"]
    afterwards.callback(ask, "POST", f"/v1/prices/{price}", active=False)
    ask("GET", f"/v1/prices/{price}")
    ask("POST", f"/v1/prices/{price}", nickname="Fidelity")
    ask("GET", "/v1/prices", product=product, expand=["data.product"])
    attach_feature(ask, afterwards, product, run)
    return str(price)


def attach_feature(ask: Ask, afterwards: ExitStack, product: str, run: str) -> None:
    feature = ask("POST", "/v1/entitlements/features", name="Fidelity", lookup_key=f"fidelity_{run}")["id"]
    afterwards.callback(ask, "POST", f"/v1/entitlements/features/{feature}", active=False)
    ask("GET", f"/v1/entitlements/features/{feature}")
    ask("POST", f"/v1/entitlements/features/{feature}", name="Fidelity to Stripe")
    ask("GET", "/v1/entitlements/features", lookup_key=f"fidelity_{run}")
    attached = ask("POST", f"/v1/products/{product}/features", entitlement_feature=feature)["id"]
    afterwards.callback(ask, "DELETE", f"/v1/products/{product}/features/{attached}")
    ask("GET", f"/v1/products/{product}/features/{attached}")
    ask("GET", f"/v1/products/{product}/features")


def sign_up(ask: Ask, afterwards: ExitStack, run: str) -> tuple[str, str]:
    email = f"{run.lower()}@fidelity.example"
    customer = ask("POST", "/v1/customers", name="Fidelity", email=email, metadata={"run": run})["id"]
    afterwards.callback(ask, "GET", f"/v1/customers/{customer}")
    afterwards.callback(ask, "DELETE", f"/v1/customers/{customer}")
    ask("GET", f"/v1/customers/{customer}")
    ask("GET", "/v1/customers", email=email)
    ask("GET", "/v1/customers/search", query=f"metadata['run']:'{run}'")
    method = ask("POST", "/v1/payment_methods/pm_card_visa/attach", customer=customer)["id"]
    ask("GET", f"/v1/payment_methods/{method}")
    ask("GET", "/v1/payment_methods", customer=customer)
    ask("GET", f"/v1/customers/{customer}/payment_methods")
    ask("POST", f"/v1/customers/{customer}", invoice_settings={"default_payment_method": method})
    return customer, method


def promote(ask: Ask, afterwards: ExitStack, run: str) -> str:
    coupon = ask("POST", "/v1/coupons", percent_off=25, duration="forever")["id"]
    afterwards.callback(ask, "DELETE", f"/v1/coupons/{coupon}")
    ask("GET", f"/v1/coupons/{coupon}")
    ask("POST", f"/v1/coupons/{coupon}", name="Fidelity")
    ask("GET", "/v1/coupons", limit=1)
    promotion = {"type": "coupon", "coupon": coupon}
    code = ask("POST", "/v1/promotion_codes", promotion=promotion, code=f"FIDELITY{run}")["id"]
    ask("GET", f"/v1/promotion_codes/{code}")
    ask("POST", f"/v1/promotion_codes/{code}", metadata={"run": run})
    ask("GET", "/v1/promotion_codes", code=f"FIDELITY{run}")
    return str(code)


def subscribe(ask: Ask, customer: str, price: str, code: str) -> None:
    items = {"items": [{"price": price, "quantity": 2}], "discounts": [{"promotion_code": code}]}
    made = ask("POST", "/v1/subscriptions", customer=customer, **items, expand=["latest_invoice", "discounts"])
    subscription, item = made["id"], made["items"]["data"][0]["id"]
    ask("GET", f"/v1/subscriptions/{subscription}")
    ask("GET", "/v1/subscriptions", customer=customer, status="all")
    ask("GET", "/v1/subscription_items", subscription=subscription)
    ask("GET", f"/v1/subscription_items/{item}")
    ask("POST", f"/v1/subscription_items/{item}", quantity=3, proration_behavior="none")
    product = ask("GET", f"/v1/prices/{price}")["product"]
    other = {"product": product, "currency": "usd", "recurring": {"interval": "month"}}
    second = ask("POST", "/v1/prices", **other, unit_amount=500)["id"]
    more = ask("POST", "/v1/subscription_items", subscription=subscription, price=second)["id"]
    ask("DELETE", f"/v1/subscription_items/{more}")
    ask("POST", f"/v1/prices/{second}", active=False)
    ask("POST", f"/v1/subscriptions/{subscription}", cancel_at_period_end=True)
    ask("GET", "/v1/invoices", subscription=subscription)
    on_trial = ask(
        "POST", "/v1/subscriptions", customer=customer, items=[{"price": price}], trial_period_days=7
    )
    ask("DELETE", f"/v1/subscriptions/{on_trial['id']}", cancellation_details={"comment": "Fidelity"})


def settle_invoices(ask: Ask, customer: str, price: str, method: str) -> None:
    for act, params in (("pay", {"payment_method": method}), ("void", {}), ("mark_uncollectible", {})):
        waiting = {"items": [{"price": price}], "payment_behavior": "default_incomplete"}
        invoice = ask("POST", "/v1/subscriptions", customer=customer, **waiting)["latest_invoice"]
        ask("GET", f"/v1/invoices/{invoice}")
        ask("POST", f"/v1/invoices/{invoice}/{act}", **params)


def use_features(ask: Ask, customer: str) -> None:
    active = ask("GET", "/v1/entitlements/active_entitlements", customer=customer)
    for entitlement in active["data"]:
        ask("GET", f"/v1/entitlements/active_entitlements/{entitlement['id']}")


def check_out(ask: Ask, customer: str, price: str) -> None:
    order = {"mode": "subscription", "line_items": [{"price": price, "quantity": 1}]}
    back = {"success_url": "https://example.com/done", "cancel_url": "https://example.com/plans"}
    session = ask("POST", "/v1/checkout/sessions", customer=customer, **order, **back)["id"]
    ask("GET", f"/v1/checkout/sessions/{session}", expand=["line_items"])
    ask("GET", "/v1/checkout/sessions", customer=customer)
    ask("GET", f"/v1/checkout/sessions/{session}/line_items")
    ask("POST", f"/v1/checkout/sessions/{session}/expire")


def open_portal(ask: Ask, afterwards: ExitStack, customer: str) -> None:
    features = {"invoice_history": {"enabled": True}, "subscription_cancel": {"enabled": True}}
    configuration = ask("POST", "/v1/billing_portal/configurations", features=features)["id"]
    path = f"/v1/billing_portal/configurations/{configuration}"
    afterwards.callback(ask, "POST", path, active=False)
    ask("GET", path)
    ask("POST", path, name="Fidelity")
    ask("GET", "/v1/billing_portal/configurations", limit=1)
    opened = {"customer": customer, "configuration": configuration, "return_url": "https://example.com/"}
    ask("POST", "/v1/billing_portal/sessions", **opened)
    ask("POST", "/v1/billing_portal/sessions", **opened, flow_data={"type": "payment_method_update"})


def listen(ask: Ask, afterwards: ExitStack) -> None:
    hook = {"url": "https://example.com/webhooks/stripe", "enabled_events": ["customer.created"]}
    endpoint = ask("POST", "/v1/webhook_endpoints", **hook)["id"]
    afterwards.callback(ask, "DELETE", f"/v1/webhook_endpoints/{endpoint}")
    ask("GET", f"/v1/webhook_endpoints/{endpoint}")
    ask("POST", f"/v1/webhook_endpoints/{endpoint}", disabled=True)
    ask("GET", "/v1/webhook_endpoints", limit=1)
    told = ask("GET", "/v1/events", type="customer.created", limit=1)
    ask("GET", f"/v1/events/{told['data'][0]['id']}")


def be_refused(ask: Ask, customer: str, price: str) -> None:
    ask("GET", "/v1/customers/cus_0NONE", refused=True)
    ask("POST", "/v1/customers", nonsense=1, refused=True)
    ask("POST", "/v1/customers", metadata={"text": "x" * 501}, refused=True)
    ask("POST", "/v1/prices", currency="usd", refused=True)
    ask("POST", "/v1/subscriptions", customer="cus_0NONE", items=[{"price": price}], refused=True)
    ask("POST", "/v1/payment_methods/pm_card_visa_chargeDeclined/attach", customer=customer, refused=True)
    ask("GET", "/v1/customers", limit=1000, refused=True)
    ask("GET", "/v1/subscriptions", expand=["data.items.data.price.product"], refused=True)


def compared(stripes: list[Exchange], ours: list[Exchange]) -> Iterator[str]:
    for theirs, own in zip_longest(stripes, ours):
        if theirs is None or own is None or theirs.call != own.call:
            yield f"{(theirs or own).call}: one of them was asked something else from here on"
            return
        if theirs.status != own.status:
            yield f"{theirs.call}: Stripe answers {theirs.status}, the sandbox {own.status}"
        yield from (f"{theirs.call}: {where}" for where in different(theirs.answer, own.answer, ""))


def different(theirs: Any, ours: Any, path: str) -> Iterator[str]:
    if kind(theirs) != kind(ours):
        yield f"{path}: {kind(theirs)} at Stripe, {kind(ours)} in the sandbox"
    elif isinstance(theirs, dict) and not path.endswith(".metadata"):
        yield from (f"{path}.{name}: only at Stripe" for name in sorted(theirs.keys() - ours.keys()))
        yield from (f"{path}.{name}: only in the sandbox" for name in sorted(ours.keys() - theirs.keys()))
        for name in sorted(theirs.keys() & ours.keys()):
            yield from different(theirs[name], ours[name], f"{path}.{name}")
    elif isinstance(theirs, list):
        yield from (
            different(theirs[0], ours[0], f"{path}[0]") if theirs and ours else one_empty(theirs, ours, path)
        )
    elif theirs != ours and all(isinstance(value, str) and WORD.fullmatch(value) for value in (theirs, ours)):
        yield f"{path}: {theirs} at Stripe, {ours} in the sandbox"


def one_empty(theirs: list[Any], ours: list[Any], path: str) -> Iterator[str]:
    if theirs or ours:
        yield f"{path}[0]: only {'at Stripe' if theirs else 'in the sandbox'}"


def kind(value: Any) -> str:
    names = {dict: "a hash", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def unaccepted(found: Iterator[str]) -> list[str]:
    return [
        line for line in dict.fromkeys(found) if not any(fnmatchcase(line, f"{place}: *") for place in ACCEPTED)
    ]


def main(environ: Mapping[str, str] = os.environ) -> int:
    key = environ.get("STRIPE_TEST_KEY", "")
    if not key:
        print("not checked: set STRIPE_TEST_KEY")
        return 0
    if is_live(key) or not key.startswith(("sk_test_", "rk_test_")):
        print("STRIPE_TEST_KEY is no test key: use one that starts with sk_test_.")
        return 1
    with running() as sandbox:
        asked = [Side(STRIPE, key), Side(sandbox.url, sandbox.key)]
        stopped = [reason for side in asked if (reason := go_through(side))]
    found = [*stopped, *unaccepted(compared(asked[0].log, asked[1].log))]
    print(*found, f"{len(found)} differences over {len(asked[0].log)} calls", sep="\n")
    return 1 if found else 0


def go_through(side: Side) -> str | None:
    """Why the script ended early, where it did."""
    try:
        script(side.ask, secrets.token_hex(4).upper())
    except Refused as reason:
        return str(reason)
    return None


if __name__ == "__main__":
    sys.exit(main())
