"""What Stripe sends, read without believing more of it than can be seen.

`read` takes an event's bytes apart, pure and total: an `Event`, or `Unreadable` with the reason. What cannot be
used is left out (None) rather than guessed; text that no database column takes counts as absent. Which events
say anything about a tenant's state is listed here, too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

Json = dict[str, Any]

LATEST = 32_503_680_000  # the year 3000: later than any moment Stripe means

SUBSCRIPTION = frozenset(
    f"customer.subscription.{change}"
    for change in (
        *("created", "updated", "deleted", "paused", "resumed"),
        *("pending_update_applied", "pending_update_expired", "trial_will_end"),
    )
)
INVOICE = frozenset(
    f"invoice.{change}"
    for change in (
        *("created", "finalized", "finalization_failed", "updated", "paid", "payment_succeeded"),
        *("payment_failed", "payment_action_required", "voided", "marked_uncollectible"),
    )
)
CHECKOUT = frozenset(
    f"checkout.session.{change}"
    for change in ("completed", "async_payment_succeeded", "async_payment_failed", "expired")
)
CATALOGUE = frozenset(
    f"{kind}.{change}" for kind in ("product", "price") for change in ("created", "updated", "deleted")
)
ENTITLEMENTS = "entitlements.active_entitlement_summary.updated"
CUSTOMER_DELETED = "customer.deleted"
# Known, and nothing is kept of them here: what they change is read where it is needed.
SILENT = frozenset(
    {
        *("customer.created", "customer.updated", "invoice.upcoming", "invoice_payment.paid"),
        *("charge.dispute.created", "charge.dispute.closed", "charge.refunded"),
        *("account.application.deauthorized", "test_helpers.test_clock.ready"),
        *(
            f"subscription_schedule.{change}"
            for change in ("created", "updated", "released", "canceled", "completed", "aborted", "expiring")
        ),
        *(
            f"payment_method.{change}"
            for change in ("attached", "updated", "automatically_updated", "detached")
        ),
    }
)
USED = SUBSCRIPTION | INVOICE | CHECKOUT | CATALOGUE | {ENTITLEMENTS, CUSTOMER_DELETED}


class Unreadable(Exception):
    """Why these bytes are no event, in a few words that repeat nothing of them."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event's envelope, and the object as it was when the event was made."""

    id: str
    type: str
    object: Json
    object_id: str | None
    customer: str | None
    created: int | None  # Stripe's time, whole seconds
    api_version: str | None
    livemode: bool | None
    account: str | None  # of a connected account, whose business is not ours
    thin: bool  # names what changed and does not carry it


def read(raw: bytes) -> Event:
    """The event these bytes are. `Unreadable` unless they are a JSON object with an id and a type."""
    try:
        event = _parsed(raw)
    except (ValueError, RecursionError) as e:  # no UTF-8, no JSON, a number of thousands of digits; too deep
        raise Unreadable("is not JSON") from e
    if not isinstance(event, dict):
        raise Unreadable("is not a JSON object")
    event_id, kind = name(event.get("id")), name(event.get("type"))
    if event_id is None or kind is None:
        raise Unreadable("has no id and type")
    data = event.get("data")
    thing = data.get("object") if isinstance(data, dict) else None
    thing = thing if isinstance(thing, dict) else {}
    return Event(
        id=event_id,
        type=kind,
        object=thing,
        object_id=name(thing.get("id")),
        customer=_customer(thing),
        created=moment(event.get("created")),
        api_version=name(event.get("api_version")),
        livemode=event["livemode"] if isinstance(event.get("livemode"), bool) else None,
        account=name(event.get("account")),
        thin=event.get("object") == "v2.core.event" or not thing,
    )


def _parsed(raw: bytes) -> Any:
    """By the quicker parser, unless the event has what only the other one takes: half of a surrogate pair."""
    try:
        return from_json(raw)
    except ValueError:
        return json.loads(raw.decode())


def _customer(thing: Json) -> str | None:
    if thing.get("object") == "customer":
        return name(thing.get("id"))
    return reference(thing.get("customer"))


def name(value: Any) -> str | None:
    """An id, a type, a version: short, visible ASCII."""
    usable = isinstance(value, str) and 0 < len(value) <= 255 and value.isascii() and value.isprintable()
    return value if usable else None


def part(thing: Json, key: str) -> Json:
    """An object within another; empty where there is none."""
    found = thing.get(key)
    return found if isinstance(found, dict) else {}


def reference(value: Any) -> str | None:
    """The id of another object, which Stripe may have written out in full."""
    return name(value.get("id")) if isinstance(value, dict) else name(value)


def moment(value: Any) -> int | None:
    """A moment in whole seconds."""
    return value if type(value) is int and 0 <= value < LATEST else None


def invoiced_subscription(invoice: Json) -> str | None:
    """The subscription an invoice is for; before 2025-03-31 it stood at the top."""
    parent = invoice.get("parent")
    details = parent.get("subscription_details") if isinstance(parent, dict) else None
    current = reference(details.get("subscription")) if isinstance(details, dict) else None
    return current or reference(invoice.get("subscription"))


def why_unused(event: Event, *, livemode: bool) -> str | None:
    """Why an event is kept and not worked on, or None. By its id it can still be replayed."""
    if event.thin:
        return "thin_event"
    if event.account is not None:
        return "other_account"
    if event.livemode is not livemode:
        return "wrong_livemode"
    if event.type in SILENT:
        return "nothing_to_keep"
    if event.type not in USED:
        return "unknown_type"
    return None
