"""Stripe's events as Stripe sends them: made once by the sandbox, then told of as many customers as wanted.

Bodies are pretty-printed and as long as real ones. Two of a kind differ in their ids, their moment, and, if
they are `changes`, in when the subscription is to be cancelled, which counts them: each of a subscription's
changes is certainly newer than the one before. A `renewal` is what a new month makes happen to a subscription.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from tests.histories import Buyer, Told, a_history, renewals

CANCEL_AT = 2_000_000_000  # of the first change; each of the following is a second later
APART_SECONDS = 10  # from one change of a subscription to the next
ID = re.compile(r"\b((?:sub|in|si|il)_\w{6,})\w{8}\b")
SOLD_AS = {"tenant_id": "tenant-0001", "user_id": "user-0001", "source": "checkout"} | {
    f"campaign_{number}": "a few words that a shop likes to remember of whom it sold to" for number in range(6)
}
RENEWAL = (
    *("customer.subscription.updated", "invoice.created", "invoice.finalized"),
    *("invoice.updated", "invoice.paid", "invoice.payment_succeeded"),
)


@dataclass(frozen=True, slots=True)
class Made:
    """An event, ready to be signed and sent."""

    id: str
    type: str
    object_id: str
    customer: str
    created: int
    body: bytes


class Template:
    """An event of the sandbox's, to be told of others."""

    def __init__(self, told: Told, customer: str) -> None:
        text = json.dumps(json.loads(told.body), indent=2)
        text = text.replace(f'"created": {told.created}', '"created": ${created}', 1)
        text = text.replace(told.id, "${event}").replace(customer, "${customer}")
        text = text.replace(str(CANCEL_AT), "${cancel_at}")
        self._type = told.type
        self._object_id = ID.sub(r"\g<1>${number}", json.loads(told.body)["data"]["object"]["id"])
        self._text = string.Template(ID.sub(r"\g<1>${number}", text))

    def about(self, number: int, customer: str, created: int, cancel_at: int = CANCEL_AT) -> Made:
        """The same of another customer, whose things have this number in their ids."""
        event = f"evt_1{secrets.token_hex(12)}"
        values = {"number": f"{number:08d}", "customer": customer, "event": event}
        body = self._text.substitute(values, created=created, cancel_at=cancel_at).encode()
        object_id = string.Template(self._object_id).substitute(number=values["number"])
        return Made(event, self._type, object_id, customer, created, body)


def changes(count: int, customers: Sequence[str], first_created: int) -> Iterator[Made]:
    """Changes of each customer's subscription, all customers in turn."""
    template = _change()
    for place in range(count):
        turn, number = divmod(place, len(customers))
        created = first_created + turn * APART_SECONDS
        yield template.about(number, customers[number], created, CANCEL_AT + turn)


def subscribed(number: int, customer: str, created: int) -> Made:
    """How the subscription that will be renewed began."""
    return _year()["customer.subscription.created"].about(number, customer, created)


def renewal(number: int, customer: str, created: int) -> list[Made]:
    """What Stripe says when a subscription's next month begins and is paid for."""
    return [_year()[kind].about(number, customer, created) for kind in RENEWAL]


@cache
def _change() -> Template:
    def changed(buyer: Buyer) -> None:
        subscription = buyer.subscribes(metadata=SOLD_AS)
        buyer.lets_pass(60)
        buyer.changes(subscription, cancel_at=CANCEL_AT)

    history = a_history(0, lives=(changed,), steps=0)
    return Template(history.told[-1], history.customer)


@cache
def _year() -> dict[str, Template]:
    """One event of each kind, the last there was."""
    history = a_history(0, lives=(renewals,), steps=0)
    return {told.type: Template(told, history.customer) for told in history.told}


def signature(body: bytes, secret: str, at: int) -> bytes:
    """What Stripe puts into Stripe-Signature."""
    digest = hmac.new(secret.encode(), b"%d." % at + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}".encode()
