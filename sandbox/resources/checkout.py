"""/v1/checkout/sessions: a page where somebody subscribes, and what comes of it.

`complete` is what happens when the customer presses the button. What was ordered is kept beside the
session, which shows it only when asked to (`line_items`).
"""

import re

from stripe.params.checkout import (
    SessionCreateParams,
    SessionExpireParams,
    SessionListLineItemsParams,
    SessionListParams,
    SessionRetrieveParams,
)

from sandbox import bills, changes, life
from sandbox.bills import DAY
from sandbox.errors import Refusal, missing
from sandbox.resources import (
    Call,
    Operation,
    customers,
    listed,
    new_id,
    page,
    payment_methods,
    pick,
    subscriptions,
)
from sandbox.store import Json, Store
from sandbox.wire import Params

KIND = "checkout.session"
ORDER = "checkout.order"

SHORTEST_SECONDS = 30 * 60
LONGEST_SECONDS = DAY

# What only the page would make something of is kept as it was given.
SHOWN = [
    *("allow_promotion_codes", "billing_address_collection", "cancel_url", "client_reference_id"),
    *("customer_email", "locale", "payment_method_collection", "submit_type"),
    *("success_url",),
]

# What no session here has, or not from the start.
NOT_SET = dict.fromkeys(
    [
        *("after_expiration", "client_secret", "collected_information", "consent"),
        *("currency_conversion", "customer_details", "invoice", "invoice_creation", "origin_context"),
        *("payment_intent", "payment_link", "payment_method_configuration_details", "permissions"),
        *("recovered_from", "saved_payment_method_options", "setup_intent"),
        *("shipping_address_collection", "shipping_cost", "subscription", "wallet_options"),
    ]
)


def create(call: Call) -> Json:
    given = pick(
        call.params,
        *SHOWN,
        *("automatic_tax", "currency", "customer", "customer_creation", "customer_update", "expires_at"),
        *("line_items", "metadata", "mode", "payment_method_types", "phone_number_collection"),
        *("subscription_data", "tax_id_collection", "ui_mode"),
    )
    mode = given.get("mode", "payment")
    check(call.store, given, mode)
    order = [
        line_item(call.store, entry, place, mode) for place, entry in enumerate(given.get("line_items", []))
    ]
    session = new(call, given, mode, order)
    data = {**given.get("subscription_data", {}), "items": [item_of(line) for line in order]}
    call.store.insert(
        {"id": order_of(session), "object": ORDER, "line_items": order, "subscription_data": data}
    )
    return call.store.insert(session)


def check(store: Store, given: Params, mode: str) -> None:
    if "success_url" not in given:
        raise missing("success_url")
    for name in ("success_url", "cancel_url"):
        if not re.match(r"https?://[^/?#\s]", given.get(name, "http://none")):
            raise Refusal("Not a valid URL", code="url_invalid", param=name)
    if mode != "setup" and not given.get("line_items"):
        raise missing("line_items")
    if mode != "subscription" and "subscription_data" in given:
        raise Refusal("You can not pass `subscription_data` in this mode.", param="subscription_data")
    if "customer" in given:
        customers.living(store, given["customer"], param="customer")
        if "customer_email" in given:
            raise Refusal("You may only specify one of these parameters: customer, customer_email.")
    elif "customer_update" in given:
        raise Refusal("`customer_update` can only be used with `customer`.", param="customer_update")
    wait = given.get("expires_at", store.now() + LONGEST_SECONDS) - store.now()
    if not SHORTEST_SECONDS <= wait <= LONGEST_SECONDS:
        raise Refusal(
            "The `expires_at` timestamp must be at least 30 minutes and at most 24 hours from now.",
            param="expires_at",
        )


def line_item(store: Store, entry: Params, place: int, mode: str) -> Json:
    given = pick(entry, "price", "quantity", "adjustable_quantity", "metadata")
    param = f"line_items[{place}][price]"
    if "price" not in given:
        raise missing(param)
    price = store.find("price", given["price"], param=param)
    if not price["active"]:
        raise Refusal("The price specified is inactive. This field only accepts active prices.", param=param)
    if mode == "payment" and price["type"] == "recurring":
        raise Refusal(
            "You specified `payment` mode but passed a recurring price. Either switch to `subscription` mode or"
            " use only one-time prices.",
            param=param,
        )
    quantity = given.get("quantity", 1)
    amount = price["unit_amount"] * quantity
    return {
        "id": new_id("li", 24),
        "object": "item",
        "adjustable_quantity": None,
        "amount_discount": 0,
        "amount_subtotal": amount,
        "amount_tax": 0,
        "amount_total": amount,
        "currency": price["currency"],
        "description": store.find("product", price["product"])["name"],
        "metadata": given.get("metadata", {}),
        "price": price,
        "quantity": quantity,
    }


def item_of(line: Json) -> Params:
    return {"price": line["price"]["id"], "quantity": line["quantity"], "metadata": line["metadata"]}


def new(call: Call, given: Params, mode: str, order: list[Json]) -> Json:
    now = call.store.now()
    trial = {"trial_end", "trial_period_days"} & given.get("subscription_data", {}).keys()
    total = 0 if trial else sum(line["amount_total"] for line in order)
    currency = order[0]["currency"] if order else given.get("currency")
    session_id = new_id("cs_test", 58)
    return {
        "id": session_id,
        "object": KIND,
        **NOT_SET,
        "adaptive_pricing": {"enabled": False},
        "amount_subtotal": total if order else None,
        "amount_total": total if order else None,
        "automatic_tax": {
            "enabled": given.get("automatic_tax", {}).get("enabled", False),
            "liability": None,
            "provider": None,
            "status": None,
        },
        "created": now,
        "currency": currency,
        "custom_fields": [],
        "custom_text": dict.fromkeys(
            ("after_submit", "shipping_address", "submit", "terms_of_service_acceptance")
        ),
        "customer": given.get("customer"),
        "customer_creation": None if "customer" in given else given.get("customer_creation", "always"),
        "discounts": [],
        "expires_at": given.get("expires_at", now + LONGEST_SECONDS),
        "livemode": False,
        "metadata": given.get("metadata", {}),
        "mode": mode,
        "payment_method_options": {},
        "payment_method_types": given.get("payment_method_types", ["card"]),
        "payment_status": "no_payment_required" if mode == "setup" else "unpaid",
        "phone_number_collection": given.get("phone_number_collection", {"enabled": False}),
        "shipping_options": [],
        "status": "open",
        "total_details": {"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0},
        "ui_mode": "hosted_page",
        "url": f"{call.public_url}/c/pay/{session_id}",
        **{name: given.get(name) for name in SHOWN},
    }


def retrieve(call: Call, id: str) -> Json:
    session = call.store.find(KIND, id)
    if any(name.split(".")[0] == "line_items" for name in call.params.get("expand", [])):
        return session | {"line_items": line_items(call.store, session)}
    return session


def list_sessions(call: Call) -> Json:
    return listed(call, KIND, "/v1/checkout/sessions", "customer", "status", "subscription")


def list_line_items(call: Call, id: str) -> Json:
    lines = line_items(call.store, call.store.find(KIND, id))
    return page(lines["data"][::-1], call.params, lines["url"])


def line_items(store: Store, session: Json) -> Json:
    return {
        "object": "list",
        "data": store.find(ORDER, order_of(session))["line_items"],
        "has_more": False,
        "url": f"/v1/checkout/sessions/{session['id']}/line_items",
    }


def order_of(session: Json) -> str:
    return f"order of {session['id']}"


def expire(call: Call, id: str) -> Json:
    session = call.store.find(KIND, id)
    if session["status"] != "open":
        raise Refusal(
            f'Only Checkout Sessions with a status in ["open"] can be expired. This Checkout Session has a'
            f" status of {session['status']}."
        )
    life.session_due(call.store, session)
    return session


def complete(store: Store, session_id: str, payment_method: str | None = "pm_card_visa") -> Json:
    """The customer pays, by one of the test cards; without one only a trial or what is free can be had."""
    with store.lock:
        session = store.find(KIND, session_id)
        if session["status"] != "open":
            raise Refusal("This Checkout Session is no longer open.")
        check_card(session, payment_method)
        customer = session["customer"] or new_customer(store, session)["id"]
        method = payment_methods.attached(store, payment_method, customer)["id"] if payment_method else None
        outcome: Json = {"customer": customer, "customer_details": details_of(store.find("customer", customer))}
        if session["mode"] == "subscription":
            outcome |= subscribed(store, session, customer, method)
        if session["mode"] != "setup":
            outcome["payment_status"] = "paid" if session["amount_total"] else "no_payment_required"
        store.change(session, **outcome, status="complete", url=None)
        changes.happened(store, session, "completed")
        return session


def check_card(session: Json, payment_method: str | None) -> None:
    number = payment_methods.CARDS.get(payment_method or "", ("", ""))[1]
    if number == bills.NEVER_PAYS and session["amount_total"]:
        raise bills.declined()
    if payment_method is None and (
        session["amount_total"] or session["payment_method_collection"] != "if_required"
    ):
        raise missing("payment_method")


def new_customer(store: Store, session: Json) -> Json:
    params = {"email": session["customer_email"]} if session["customer_email"] else {}
    return customers.create(Call(store, params, ""))


def subscribed(store: Store, session: Json, customer: str, method: str | None) -> Json:
    """Incomplete until its first invoice is paid, a moment later."""
    data = store.find(ORDER, order_of(session))["subscription_data"]
    params = {**data, "customer": customer, "payment_behavior": "default_incomplete"}
    if method:
        params["default_payment_method"] = method
    subscription = subscriptions.create(Call(store, params, ""))
    invoice = store.find(bills.KIND, subscription["latest_invoice"])
    if invoice["status"] == "open":
        bills.pay(store, invoice)
    return {"subscription": subscription["id"], "invoice": invoice["id"]}


def details_of(customer: Json) -> Json:
    return {
        "address": customer["address"],
        "business_name": None,
        "email": customer["email"],
        "individual_name": None,
        "name": customer["name"],
        "phone": customer["phone"],
        "tax_exempt": customer["tax_exempt"],
        "tax_ids": [],
    }


OPERATIONS = [
    Operation("POST", "/v1/checkout/sessions", SessionCreateParams, create),
    Operation("GET", "/v1/checkout/sessions", SessionListParams, list_sessions),
    Operation("GET", "/v1/checkout/sessions/<id>", SessionRetrieveParams, retrieve),
    Operation("POST", "/v1/checkout/sessions/<id>/expire", SessionExpireParams, expire),
    Operation("GET", "/v1/checkout/sessions/<id>/line_items", SessionListLineItemsParams, list_line_items),
]
