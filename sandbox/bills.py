"""Invoices of subscriptions: drawn up, finalized, charged, written off; and what that makes of the status.

The most recent invoice that is not void decides how a subscription stands, as at Stripe: paid or written
off it is active, failed it is past due. An automatic charge that fails is tried again after the account's
`retry_days`; `life` sees to the dates, and to the end when no try is left.
"""

import secrets
from typing import Any

from sandbox import changes, discounts
from sandbox.errors import Refusal
from sandbox.resources import new_id
from sandbox.store import Json, Store

KIND = "invoice"
DAY = 24 * 3600
DRAFT_SECONDS = 3600

SETTLED = ("paid", "uncollectible")
ENDED = ("canceled", "incomplete_expired")

# What no invoice here has, or not from the start.
NOT_SET = dict.fromkeys(
    [
        *("account_tax_ids", "application", "custom_fields", "customer_account", "default_payment_method"),
        *("default_source", "description", "due_date", "effective_at", "ending_balance", "footer"),
        *("from_invoice", "hosted_invoice_url", "invoice_pdf", "last_finalization_error"),
        *("latest_revision", "number", "on_behalf_of", "receipt_number", "rendering"),
        *("shipping_cost", "shipping_details", "statement_descriptor", "test_clock"),
    ]
)

# The card of Stripe's that can be attached and never charged.
NEVER_PAYS = "0341"


def items_of(store: Store, subscription: Json) -> list[Json]:
    """All of them, where the subscription itself shows the first ten."""
    items = store.collection("subscription_item")
    if subscription["items"]["has_more"]:
        return [item for item in items.values() if item["subscription"] == subscription["id"]]
    return [items[item["id"]] for item in subscription["items"]["data"]]


def embedded(subscription_id: str, items: list[Json]) -> Json:
    """The items as their subscription shows them."""
    return {
        "object": "list",
        "data": items[:10],
        "has_more": len(items) > 10,
        "url": f"/v1/subscription_items?subscription={subscription_id}",
    }


def method_of(store: Store, subscription: Json) -> Json | None:
    """What an automatic charge would use."""
    customer = store.collection("customer")[subscription["customer"]]
    default = customer.get("invoice_settings", {}).get("default_payment_method")
    return store.collection("payment_method").get(subscription["default_payment_method"] or default)


def pays(method: Json | None) -> bool:
    return method is not None and method.get("card", {}).get("last4") != NEVER_PAYS


def would_pay(store: Store, method: Json | None) -> bool:
    """Whether an automatic charge goes through, as things stand."""
    return store.declines_left == 0 and pays(method)


def charge(store: Store, method: Json | None) -> bool:
    """An attempt to, whether it goes through or not: declines that were ordered are counted by these."""
    goes_through = would_pay(store, method)
    if store.declines_left:
        store.declines_left -= 1
    return goes_through


def declined() -> Refusal:
    return Refusal(
        "Your card was declined.",
        status=402,
        type="card_error",
        code="card_declined",
        decline_code="generic_decline",
    )


def price_of(items: list[Json]) -> int:
    return sum((item["price"]["unit_amount"] or 0) * item["quantity"] for item in items)


def draw_up(
    store: Store,
    subscription: Json,
    reason: str,
    *,
    id: str | None = None,
    period: tuple[int, int] | None = None,
) -> Json:
    """A new draft over the current period of the items, which is free while on trial, less its discounts."""
    now = store.now()
    invoice_id = id or new_id("in", 24)
    lines = [line(subscription, item, invoice_id) for item in items_of(store, subscription)]
    subtotal = sum(line["amount"] for line in lines)
    taken = discounts.take_off(store, subscription, lines)
    total = subtotal - sum(each["amount"] for each in taken)
    customer = store.collection("customer")[subscription["customer"]]
    start, end = period or (now, now)
    # what is not collected, or no more attempted, stays a draft that nobody finalizes
    paused = (subscription["pause_collection"] or {}).get("behavior") == "keep_as_draft"
    advances = not paused and subscription["status"] != "unpaid"
    invoice = {
        "id": invoice_id,
        "object": KIND,
        **NOT_SET,
        "account_country": "US",
        "account_name": "Sandbox",
        "amount_due": total,
        "amount_overpaid": 0,
        "amount_paid": 0,
        "amount_remaining": total,
        "amount_shipping": 0,
        "attempt_count": 0,
        "attempted": False,
        "auto_advance": advances,
        "automatic_tax": {
            "disabled_reason": None,
            "enabled": False,
            "liability": None,
            "provider": None,
            "status": None,
        },
        "automatically_finalizes_at": now + DRAFT_SECONDS if advances else None,
        "billing_reason": reason,
        "collection_method": "charge_automatically",
        "created": now,
        "currency": subscription["currency"],
        "customer": subscription["customer"],
        "customer_address": customer["address"],
        "customer_email": customer["email"],
        "customer_name": customer["name"],
        "customer_phone": customer["phone"],
        "customer_shipping": customer["shipping"],
        "customer_tax_exempt": customer["tax_exempt"],
        "customer_tax_ids": [],
        "default_tax_rates": [],
        "discounts": [each["discount"] for each in taken],
        "issuer": {"type": "self"},
        "lines": {
            "object": "list",
            "data": lines[:10],
            "has_more": len(lines) > 10,
            "url": f"/v1/invoices/{invoice_id}/lines",
        },
        "livemode": False,
        "metadata": {},
        "next_payment_attempt": now + DRAFT_SECONDS if advances else None,
        "parent": {
            "quote_details": None,
            "subscription_details": {
                "metadata": subscription["metadata"],
                "subscription": subscription["id"],
            },
            "type": "subscription_details",
        },
        "payment_settings": {
            "default_mandate": None,
            "payment_method_options": None,
            "payment_method_types": None,
        },
        "period_end": end,
        "period_start": start,
        "post_payment_credit_notes_amount": 0,
        "pre_payment_credit_notes_amount": 0,
        "starting_balance": 0,
        "status": "draft",
        "status_transitions": dict.fromkeys(
            ("finalized_at", "marked_uncollectible_at", "paid_at", "voided_at")
        ),
        "subtotal": subtotal,
        "subtotal_excluding_tax": subtotal,
        "total": total,
        "total_discount_amounts": taken,
        "total_excluding_tax": total,
        "total_pretax_credit_amounts": [],
        "total_taxes": [],
        "webhooks_delivered_at": now,
    }
    changes.created(store, invoice)
    discounts.use_up(store, subscription, taken)
    return invoice


def line(subscription: Json, item: Json, invoice_id: str) -> Json:
    price = item["price"]
    on_trial = subscription["status"] == "trialing"
    amount = 0 if on_trial else price_of([item])
    return {
        "id": new_id("il", 24),
        "object": "line_item",
        "amount": amount,
        "currency": price["currency"],
        "description": "Free trial" if on_trial else f"{item['quantity']} x {price['nickname'] or price['id']}",
        "discount_amounts": [],
        "discountable": True,
        "discounts": [],
        "invoice": invoice_id,
        "livemode": False,
        "metadata": item["metadata"],
        "parent": {
            "invoice_item_details": None,
            "subscription_item_details": {
                "invoice_item": None,
                "proration": False,
                "proration_details": {"credited_items": None},
                "subscription": subscription["id"],
                "subscription_item": item["id"],
            },
            "type": "subscription_item_details",
        },
        "period": {"start": item["current_period_start"], "end": item["current_period_end"]},
        "pretax_credit_amounts": [],
        "pricing": {
            "price_details": {"price": price["id"], "product": price["product"]},
            "type": "price_details",
            "unit_amount_decimal": "0" if on_trial else price["unit_amount_decimal"],
        },
        "quantity": item["quantity"],
        "quantity_decimal": str(item["quantity"]),
        "subscription": subscription["id"],
        "subtotal": amount,
        "taxes": [],
    }


def finalize(store: Store, invoice: Json) -> None:
    customer = store.collection("customer")[invoice["customer"]]
    number = customer.get("next_invoice_sequence", 1)
    store.change(customer, next_invoice_sequence=number + 1)
    move(
        store,
        invoice,
        "open",
        "finalized_at",
        automatically_finalizes_at=None,
        effective_at=store.now(),
        ending_balance=0,
        hosted_invoice_url=f"{store.public_url}/i/{invoice['id']}",
        # an address that leads nowhere: the page can be printed
        invoice_pdf=f"https://invoice.stripe.test/i/{invoice['id']}/pdf",
        next_payment_attempt=None,
        number=f"{customer.get('invoice_prefix', secrets.token_hex(4).upper())}-{number:04}",
    )
    changes.happened(store, invoice, "finalized")


def collect(store: Store, invoice: Json) -> None:
    """Charge an open invoice, as is due: what comes of it is in the invoice."""
    if invoice["amount_remaining"] == 0 or charge(store, method_of(store, subscription_of(store, invoice))):
        pay(store, invoice)
    else:
        fail(store, invoice)


def pay(store: Store, invoice: Json) -> None:
    attempts = invoice["attempt_count"] + 1 if invoice["total"] else 0
    move(
        store,
        invoice,
        "paid",
        "paid_at",
        amount_paid=invoice["amount_due"],
        amount_remaining=0,
        attempt_count=attempts,
        attempted=True,
        auto_advance=False,
        next_payment_attempt=None,
    )
    changes.happened(store, invoice, "paid")
    changes.happened(store, invoice, "payment_succeeded")
    settle(store, invoice)


def fail(store: Store, invoice: Json) -> None:
    """An attempt in vain. The first invoice of a subscription is left at that, until somebody pays it."""
    attempts = invoice["attempt_count"] + 1
    waits = (
        store.retry_days[attempts - 1 : attempts] if invoice["billing_reason"] != "subscription_create" else []
    )
    tell(
        store,
        invoice,
        attempt_count=attempts,
        attempted=True,
        auto_advance=bool(waits),
        next_payment_attempt=store.now() + waits[0] * DAY if waits else None,
    )
    changes.happened(store, invoice, "payment_failed")
    subscription = subscription_of(store, invoice)
    if subscription["status"] == "active" and deciding(store, subscription) is invoice:
        changes.updated(store, subscription, status="past_due")


def void(store: Store, invoice: Json) -> None:
    move(store, invoice, "void", "voided_at", auto_advance=False, next_payment_attempt=None)
    changes.happened(store, invoice, "voided")
    settle(store, invoice)


def write_off(store: Store, invoice: Json) -> None:
    move(
        store,
        invoice,
        "uncollectible",
        "marked_uncollectible_at",
        auto_advance=False,
        next_payment_attempt=None,
    )
    changes.happened(store, invoice, "marked_uncollectible")
    settle(store, invoice)


def give_up(store: Store, subscription: Json) -> None:
    """No more attempts at what an ended or unpaid subscription owes; its invoices stay as they are."""
    for invoice in invoices_of(store, subscription):
        if invoice["auto_advance"]:
            changes.updated(
                store,
                invoice,
                auto_advance=False,
                automatically_finalizes_at=None,
                next_payment_attempt=None,
            )


def settle(store: Store, invoice: Json) -> None:
    """How a subscription stands once one of its invoices asks for nothing any more."""
    subscription = subscription_of(store, invoice)
    if subscription["status"] not in ("incomplete", "past_due", "unpaid", "paused"):
        return
    latest = deciding(store, subscription)
    if latest is None:
        changes.updated(store, subscription, status="incomplete_expired", ended_at=store.now())
    elif latest["status"] not in SETTLED:
        return
    elif subscription["status"] != "paused":
        changes.updated(store, subscription, status="active")
    elif latest is invoice:
        resume(store, subscription)


def resume(store: Store, subscription: Json) -> None:
    changes.updated(store, subscription, status="active")
    changes.happened(store, subscription, "resumed")


def deciding(store: Store, subscription: Json) -> Json | None:
    """The most recent invoice that is not void."""
    latest = store.collection(KIND).get(subscription["latest_invoice"])
    if latest is None or latest["status"] != "void":
        return latest
    left = [invoice for invoice in invoices_of(store, subscription) if invoice["status"] != "void"]
    return left[-1] if left else None


def invoices_of(store: Store, subscription: Json) -> list[Json]:
    return [
        invoice
        for invoice in store.collection(KIND).values()
        if invoice["parent"]["subscription_details"]["subscription"] == subscription["id"]
    ]


def subscription_of(store: Store, invoice: Json) -> Json:
    subscription: str = invoice["parent"]["subscription_details"]["subscription"]
    return store.collection("subscription")[subscription]


def move(store: Store, invoice: Json, status: str, date: str, **more: Any) -> None:
    transitions = {**invoice["status_transitions"], date: store.now()}
    tell(store, invoice, status=status, status_transitions=transitions, **more)


def tell(store: Store, invoice: Json, **more: Any) -> None:
    """Change an invoice; an older one is also said to be updated, a new one just came into being."""
    if invoice["created"] == store.now():
        store.change(invoice, **more)
    else:
        changes.updated(store, invoice, **more)
