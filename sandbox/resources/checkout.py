"""/v1/checkout/sessions: a page where somebody subscribes, and what comes of it.

`complete` is what happens when the customer presses the button. Some cards then want their holder to
`authenticate`, and what a bank is to pay is there or not when it has to `settle`. What was ordered, and
what is waited for, is kept beside the session, which shows of it only `line_items`, when asked to.
"""

from stripe.params.checkout import (
    SessionCreateParams,
    SessionExpireParams,
    SessionLineItemListParams,
    SessionListParams,
    SessionRetrieveParams,
)

from sandbox import bills, changes, discounts, life
from sandbox.bills import DAY
from sandbox.errors import Refusal, missing, not_here
from sandbox.resources import (
    Call,
    Operation,
    check_url,
    customers,
    listed,
    new_id,
    page,
    payment_methods,
    pick,
    promotion_codes,
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
    *("customer_email", "locale", "submit_type", "success_url"),
]

SUBSCRIPTION_DATA = ("description", "metadata", "trial_end", "trial_period_days", "trial_settings")
LEAST_TRIAL_SECONDS = 2 * DAY

# What pays beside cards, by currency: banks, which take days to do so.
BANK_DEBITS = {"eur": "sepa_debit", "usd": "us_bank_account"}

# What the customer fills in where tax depends on it.
ADDRESS = customers.ADDRESS | {"country": "US", "postal_code": "94107"}

# What no session here has, or not from the start.
NOT_SET = dict.fromkeys(
    [
        *("after_expiration", "client_secret", "collected_information", "consent", "consent_collection"),
        *("currency_conversion", "customer_account", "customer_details", "integration_identifier"),
        *("invoice", "invoice_creation", "origin_context"),
        *("payment_intent", "payment_link", "payment_method_configuration_details", "permissions"),
        *("recovered_from", "saved_payment_method_options", "setup_intent"),
        *("shipping_address_collection", "shipping_cost", "subscription", "wallet_options"),
    ]
)


def create(call: Call) -> Json:
    given = pick(
        call.params,
        *SHOWN,
        *("automatic_tax", "currency", "customer", "customer_creation", "customer_update", "discounts"),
        *("expires_at", "line_items", "metadata", "mode", "payment_method_collection"),
        *("payment_method_types", "phone_number_collection", "subscription_data", "tax_id_collection"),
        *("ui_mode",),
    )
    mode = given.get("mode", "payment")
    check(call.store, given, mode)
    order = [
        line_item(call.store, entry, place, mode) for place, entry in enumerate(given.get("line_items", []))
    ]
    check_order(order, mode)
    session = new(call, given, mode, order)
    data = {**given.get("subscription_data", {}), "items": [item_of(line) for line in order]}
    call.store.insert(
        {
            "id": order_id(session),
            "object": ORDER,
            "authenticating": None,  # the payment method whose holder is to be authenticated
            "email": None,  # what they had typed before that
            "line_items": order,
            "settling": False,
            "subscription_data": data,
        }
    )
    discount(call.store, session, given.get("discounts") or [])
    return call.store.insert(session)


def check(store: Store, given: Params, mode: str) -> None:
    if "success_url" not in given:
        raise missing("success_url")
    for name in ("success_url", "cancel_url"):
        check_url(given.get(name), name)
    if mode != "setup" and not given.get("line_items"):
        raise missing("line_items")
    if mode != "subscription" and "subscription_data" in given:
        raise Refusal("You can not pass `subscription_data` in this mode.", param="subscription_data")
    if "discounts" in given and "allow_promotion_codes" in given:
        raise Refusal(
            "You may only specify one of these parameters: allow_promotion_codes, discounts.",
            param="allow_promotion_codes",
        )
    check_trial(store, pick(given.get("subscription_data", {}), *SUBSCRIPTION_DATA))
    if "customer" in given:
        customers.living(store, given["customer"], param="customer")
        if "customer_email" in given:
            raise Refusal("You may only specify one of these parameters: customer, customer_email.")
    elif "customer_update" in given:
        raise Refusal("`customer_update` can only be used with `customer`.", param="customer_update")
    check_tax(store, given)
    wait = given.get("expires_at", store.now() + LONGEST_SECONDS) - store.now()
    if not SHORTEST_SECONDS <= wait <= LONGEST_SECONDS:
        raise Refusal(
            "The `expires_at` timestamp must be at least 30 minutes and at most 24 hours from now.",
            param="expires_at",
        )


def check_trial(store: Store, data: Params) -> None:
    if data.get("trial_period_days", 1) < 1:
        raise Refusal(
            "The minimum number of trial period days is 1.", param="subscription_data[trial_period_days]"
        )
    if data.get("trial_end", store.now() + LEAST_TRIAL_SECONDS) < store.now() + LEAST_TRIAL_SECONDS:
        raise Refusal(
            "The `subscription_data[trial_end]` timestamp must be at least 48 hours from now.",
            param="subscription_data[trial_end]",
        )


def check_tax(store: Store, given: Params) -> None:
    """An existing customer is changed by the page only where that was allowed."""
    if "customer" not in given:
        return
    updates = given.get("customer_update", {})
    if (
        given.get("automatic_tax", {}).get("enabled")
        and "auto" not in (updates.get("address"), updates.get("shipping"))
        and not store.find("customer", given["customer"])["address"]
    ):
        raise Refusal(
            "Automatic tax calculation in Checkout requires a valid address on the Customer. Add a valid"
            " address to the Customer or set either `customer_update[address]` to 'auto' or"
            " `customer_update[shipping]` to 'auto' to save the address entered in Checkout to the Customer.",
            code="customer_tax_location_invalid",
        )
    if given.get("tax_id_collection", {}).get("enabled") and updates.get("name") != "auto":
        raise Refusal(
            "Tax ID collection requires updating business name on the customer. To enable tax ID collection for"
            " an existing customer, please set `customer_update[name]` to `auto`."
        )


def check_order(order: list[Json], mode: str) -> None:
    kinds = {line["price"]["type"] for line in order}
    if mode == "subscription" and "recurring" not in kinds:
        raise Refusal(
            "You must provide at least one recurring price in `subscription` mode when using prices.",
            param="line_items",
        )
    if mode == "subscription" and len(kinds) > 1:
        raise not_here("one-time prices beside recurring ones (line_items)")


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
    if quantity < 1:
        raise Refusal(
            "This value must be greater than or equal to 1.",
            code="parameter_invalid_integer",
            param=f"line_items[{place}][quantity]",
        )
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
    taxed = given.get("automatic_tax", {}).get("enabled", False)
    bank_debits = [BANK_DEBITS[currency]] if currency in BANK_DEBITS else []
    session_id = new_id("cs_test", 58)
    return {
        "id": session_id,
        "object": KIND,
        **NOT_SET,
        "adaptive_pricing": {"enabled": False},
        "amount_subtotal": total if order else None,
        "amount_total": total if order else None,
        "automatic_tax": {
            "enabled": taxed,
            "liability": {"type": "self"} if taxed else None,
            "provider": "stripe" if taxed else None,
            "status": "requires_location_inputs" if taxed else None,
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
        "managed_payments": {"enabled": False},
        "metadata": given.get("metadata", {}),
        "mode": mode,
        "payment_method_collection": given.get(
            "payment_method_collection", "always" if mode == "subscription" else "if_required"
        ),
        "payment_method_options": {},
        "payment_method_types": given.get("payment_method_types", ["card", *bank_debits]),
        "payment_status": "no_payment_required" if mode == "setup" else "unpaid",
        "phone_number_collection": given.get("phone_number_collection", {"enabled": False}),
        "shipping_options": [],
        "status": "open",
        "tax_id_collection": {"enabled": False, "required": "never"} | given.get("tax_id_collection", {}),
        "total_details": {"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0},
        "ui_mode": "hosted_page",
        "url": f"{call.public_url}/c/pay/{session_id}",
        **{name: given.get(name) for name in SHOWN},
    }


def discount(store: Store, session: Json, entries: list[Params]) -> None:
    """Take off what the coupon or code is worth, if any. It counts as redeemed when the session completes."""
    if len(entries) > 1:
        raise Refusal("Only one coupon or promotion code can be applied to a session.", param="discounts")
    choices = chosen(store, session, entries)
    lines = store.find(ORDER, order_id(session))["line_items"]
    amounts, whole = [line["amount_subtotal"] for line in lines], session["amount_subtotal"]
    off, taken = 0, [0] * len(lines)
    for coupon, _ in choices:
        off, taken = discounts.off(coupon, whole or 0), discounts.shares(coupon, amounts)
    for line, amount in zip(lines, taken, strict=True):
        line |= {"amount_discount": amount, "amount_total": line["amount_subtotal"] - amount}
    session["amount_total"] = None if whole is None else whole - off
    session["total_details"] = session["total_details"] | {"amount_discount": off}
    session["discounts"] = [
        {"coupon": None if code else coupon["id"], "promotion_code": code["id"] if code else None}
        for coupon, code in choices
    ]


def chosen(store: Store, session: Json, entries: list[Params]) -> promotion_codes.Chosen:
    return promotion_codes.chosen(
        store,
        entries,
        customer=session["customer"],
        currency=session["currency"],
        amount=session["amount_subtotal"] or 0,
    )


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
        "data": store.find(ORDER, order_id(session))["line_items"],
        "has_more": False,
        "url": f"/v1/checkout/sessions/{session['id']}/line_items",
    }


def order_id(session: Json) -> str:
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


def complete(
    store: Store,
    session_id: str,
    payment_method: str | None = "pm_card_visa",
    promotion_code: str | None = None,
    email: str | None = None,
) -> Json:
    """The customer pays by one of the test payment methods; without one only what is free now can be had.

    A promotion code is what they type where the session allows that, an e-mail address where none is known.
    Where the holder of a card is to be authenticated the session stays open.
    """
    with store.lock:
        session = still_open(store, session_id)
        if promotion_code is not None:
            type_in(store, session, promotion_code)
        chosen(store, session, session["discounts"])  # or refused, before anything comes of it
        customers.check_email(email)
        check_method(store, session, payment_method)
        if payment_method in payment_methods.AUTHENTICATED:
            store.change(store.find(ORDER, order_id(session)), authenticating=payment_method, email=email)
            return session
        return finish(store, session, payment_method, email)


def authenticate(store: Store, session_id: str, succeed: bool = True) -> Json:
    """The holder of the card proves to be that, and has paid; or does not, and may try again."""
    with store.lock:
        session = still_open(store, session_id)
        order = store.find(ORDER, order_id(session))
        card = order["authenticating"]
        if card is None:
            raise Refusal("Nobody is to be authenticated in this Checkout Session.")
        store.change(order, authenticating=None)
        return finish(store, session, card, order.get("email")) if succeed else session


def settle(store: Store, session_id: str, succeed: bool = True) -> Json:
    """The bank has paid, or has not: then the customer owes what they subscribed to."""
    with store.lock:
        session = store.find(KIND, session_id)
        order = store.find(ORDER, order_id(session))
        if not order["settling"]:
            raise Refusal("No bank is to pay for this Checkout Session.")
        store.change(order, settling=False)
        if session["invoice"]:
            invoice = store.find(bills.KIND, session["invoice"])
            if invoice["status"] == "open":
                (bills.pay if succeed else bills.fail)(store, invoice)
        store.change(session, payment_status="paid" if succeed else "unpaid")
        changes.happened(store, session, f"async_payment_{'succeeded' if succeed else 'failed'}")
        return session


def is_settling(store: Store, invoice: Json) -> bool:
    """Whether a bank is about to pay it, or not."""
    sessions = [one for one in store.collection(KIND).values() if one["invoice"] == invoice["id"]]
    return any(store.find(ORDER, order_id(session))["settling"] for session in sessions)


def still_open(store: Store, session_id: str) -> Json:
    session = store.find(KIND, session_id)
    if session["status"] != "open":
        raise Refusal("This Checkout Session is no longer open.")
    return session


def enter_code(store: Store, session_id: str, promotion_code: str | None) -> Json:
    """What the customer types before they pay, to see what it takes off; None takes it out again."""
    with store.lock:
        session = still_open(store, session_id)
        type_in(store, session, promotion_code)
        return session


def type_in(store: Store, session: Json, word: str | None) -> None:
    if not session["allow_promotion_codes"]:
        raise Refusal("This Checkout Session takes no promotion codes.")
    if word is None:
        discount(store, session, [])
        return
    codes = store.collection(promotion_codes.KIND).values()
    found = [code["id"] for code in codes if code["active"] and code["code"].lower() == word.lower()]
    if not found:
        raise Refusal("This code is invalid.", param="promotion_code")
    discount(store, session, [{"promotion_code": found[0]}])


def check_method(store: Store, session: Json, payment_method: str | None) -> None:
    if payment_method is None:
        if session["amount_total"] or session["payment_method_collection"] != "if_required":
            raise missing("payment_method")
        return
    number = payment_methods.CARDS.get(payment_method, ("", ""))[1]
    if payment_method in payment_methods.DECLINED or (number == bills.NEVER_PAYS and session["amount_total"]):
        raise bills.declined()
    type = payment_methods.type_of(store, payment_method)
    if type not in session["payment_method_types"]:
        raise Refusal(f"This Checkout Session takes no {type}.", param="payment_method")


def finish(store: Store, session: Json, payment_method: str | None, email: str | None) -> Json:
    customer = buyer(store, session, session["customer_email"] or email)
    method = payment_methods.attached(store, payment_method, customer["id"]) if payment_method else None
    settling = bool(session["amount_total"] and method and method["type"] != "card")
    outcome: Json = {"customer": customer["id"]}
    if session["automatic_tax"]["enabled"]:
        changes.updated(store, customer, address=customer["address"] or ADDRESS)
        outcome["automatic_tax"] = session["automatic_tax"] | {"status": "complete"}
    outcome["customer_details"] = details_of(customer)
    if session["mode"] == "subscription":
        outcome |= subscribed(store, session, customer["id"], method, settling)
    elif session["discounts"]:
        choices = chosen(store, session, session["discounts"])
        promotion_codes.redeem(store, choices, customer=customer["id"], checkout_session=session["id"])
    if session["mode"] != "setup" and not settling:
        outcome["payment_status"] = "paid" if session["amount_total"] else "no_payment_required"
    store.change(store.find(ORDER, order_id(session)), settling=settling)
    store.change(session, **outcome, status="complete", url=None)
    changes.happened(store, session, "completed")
    return session


def buyer(store: Store, session: Json, email: str | None) -> Json:
    """A new customer, or the session's: whose e-mail address is theirs to change, unless there is none."""
    call = Call(store, {"email": email} if email else {}, "")
    if session["customer"] is None:
        return customers.create(call)
    customer = customers.living(store, session["customer"], param="customer")
    return customer if customer["email"] else customers.update(call, customer["id"])


def subscribed(store: Store, session: Json, customer: str, method: Json | None, settling: bool) -> Json:
    """Incomplete until its first invoice is paid, a moment later, or until a bank has been told to pay it."""
    data = store.find(ORDER, order_id(session))["subscription_data"]
    params = {
        **data,
        "automatic_tax": {"enabled": session["automatic_tax"]["enabled"]},
        "customer": customer,
        "discounts": session["discounts"],
        "payment_behavior": "default_incomplete",
    }
    if method:
        params["default_payment_method"] = method["id"]
    subscription = subscriptions.create(Call(store, params, ""))
    invoice = store.find(bills.KIND, subscription["latest_invoice"])
    if settling:
        changes.updated(store, subscription, status="active")
    elif invoice["status"] == "open":
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
    Operation("GET", "/v1/checkout/sessions/<id>/line_items", SessionLineItemListParams, list_line_items),
]
