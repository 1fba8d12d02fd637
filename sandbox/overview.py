"""What there is to see of the account at a glance: what happened and who heard of it, who has what, what waits.

The latest of each, however much there is, once all has happened that is due by now. `control` tells it as
JSON, `console` shows it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import dropwhile, islice
from typing import Any

from sandbox import bills, life
from sandbox.deliveries import Attempt, Deliveries, Due
from sandbox.resources import checkout, customers, events, products, subscriptions, webhook_endpoints
from sandbox.store import Json, Store

EVENTS_SHOWN = 25
CALLS_SHOWN = 20
OTHERS_SHOWN = 50


@dataclass(frozen=True)
class Told:
    """An event, what it is about, and what became of it at those who were to hear of it."""

    id: str
    type: str
    created: int
    object: str | None
    customer: str | None
    pending_webhooks: int
    tried: list[Attempt]
    due: list[Due]


@dataclass(frozen=True)
class Standing:
    """A customer, and one of their subscriptions if there is any."""

    customer: str
    name: str | None
    subscription: str | None = None
    status: str | None = None
    plan: str | None = None
    quantity: int | None = None
    next: str | None = None  # what comes by itself: "renews", "trial ends" …
    at: int | None = None


@dataclass(frozen=True)
class Pending:
    """A Checkout somebody has to go on with."""

    session: str
    name: str | None  # of the customer
    waits_for: str  # "customer", "3-D Secure" or "bank"
    url: str | None


def latest_events(store: Store, deliveries: Deliveries, before: str | None = None) -> list[Told]:
    """Newest first: the latest, or those before one that was shown."""
    with store.lock:
        life.catch_up(store)
        newest_first: Iterator[Json] = reversed(store.collection(events.KIND).values())
        if before is not None:
            store.find(events.KIND, before)
            newest_first = islice(dropwhile(lambda event: event["id"] != before, newest_first), 1, None)
        shown = [*islice(newest_first, EVENTS_SHOWN)]
        tried, due = deliveries.fates({event["id"] for event in shown})
        return [
            Told(
                event["id"],
                event["type"],
                event["created"],
                *about(event["data"]["object"]),
                event["pending_webhooks"],
                [attempt for attempt in tried if attempt.event == event["id"]],
                [delivery for delivery in due if delivery.event == event["id"]],
            )
            for event in shown
        ]


def about(thing: Json) -> tuple[str | None, str | None]:
    """The ids of what an event is about and of its customer; a made up one may be about anything."""
    id = text(thing.get("id"))
    return id, id if thing.get("object") == customers.KIND else text(thing.get("customer"))


def text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def standings(store: Store) -> list[Standing]:
    """The latest customers, each with what they subscribed to, newest first."""
    with store.lock:
        life.catch_up(store)
        everybody = reversed(store.collection(customers.KIND).values())
        latest = [*islice((c for c in everybody if not c.get("deleted")), OTHERS_SHOWN)]
        of: dict[str, list[Json]] = {customer["id"]: [] for customer in latest}
        for subscription in reversed(store.collection(subscriptions.KIND).values()):
            of.get(subscription["customer"], []).append(subscription)
        return [row for customer in latest for row in rows_of(store, customer, of[customer["id"]])]


def rows_of(store: Store, customer: Json, subscribed: list[Json]) -> list[Standing]:
    return [standing(store, customer, subscription) for subscription in subscribed] or [
        Standing(customer["id"], name_of(customer))
    ]


def standing(store: Store, customer: Json, subscription: Json) -> Standing:
    first = subscription["items"]["data"][0]
    product = store.collection(products.KIND)[first["price"]["product"]]
    return Standing(
        customer["id"],
        name_of(customer),
        subscription["id"],
        subscription["status"],
        product["name"],
        first["quantity"],
        *coming(store, subscription),
    )


def coming(store: Store, subscription: Json) -> tuple[str | None, int | None]:
    """What happens to a subscription next, and when."""
    status = subscription["status"]
    if status in (*bills.ENDED, "paused"):
        return None, None
    if status == "incomplete":
        return "expires", subscription["created"] + life.FIRST_PAYMENT_SECONDS
    if subscription["cancel_at"]:
        return "ends", subscription["cancel_at"]
    if status == "trialing":
        return "trial ends", subscription["trial_end"]
    invoice = store.collection(bills.KIND).get(subscription["latest_invoice"], {})
    if status == "past_due" and invoice.get("next_payment_attempt"):
        return "charged again", invoice["next_payment_attempt"]
    return "renews", life.period_of(subscription)[1]


def name_of(customer: Json) -> str | None:
    return text(customer.get("name")) or text(customer.get("email"))


def pending(store: Store) -> list[Pending]:
    """Newest first."""
    with store.lock:
        life.catch_up(store)
        newest_first = reversed(store.collection(checkout.KIND).values())
        waiting = ((session, waits_for(store, session)) for session in newest_first)
        return [
            Pending(session["id"], who(store, session), someone, session["url"])
            for session, someone in islice(((s, w) for s, w in waiting if w), OTHERS_SHOWN)
        ]


def waits_for(store: Store, session: Json) -> str | None:
    order = store.find(checkout.ORDER, checkout.order_id(session))
    if order["settling"]:
        return "bank"
    if session["status"] != "open":
        return None
    return "3-D Secure" if order["authenticating"] else "customer"


def who(store: Store, session: Json) -> str | None:
    customer = store.collection(customers.KIND).get(session["customer"], {})
    return name_of(customer) or text(session["customer_email"])


def endpoints(store: Store) -> dict[str, str]:
    """The addresses that are told of events, by id."""
    with store.lock:
        return {id: endpoint["url"] for id, endpoint in store.collection(webhook_endpoints.KIND).items()}
