"""What is created or changed at Stripe is also told as an event, in the same second.

`created` and `updated` write an object and announce that; `happened` announces what has a name of its own,
as `invoice.paid` has. What an update changed goes along as it was before. What a customer is entitled to
follows each change of a subscription.
"""

from typing import Any

from sandbox import entitlements
from sandbox.resources.events import announce
from sandbox.store import Json, Store

FAMILY = {"discount": "customer.discount", "subscription": "customer.subscription"}


def created(store: Store, thing: Json) -> Json:
    store.insert(thing)
    happened(store, thing, "created")
    return thing


def updated(store: Store, thing: Json, **changes: Any) -> Json:
    if before := store.change(thing, **changes):
        happened(store, thing, "updated", before)
    return thing


def happened(store: Store, thing: Json, what: str, before: Json | None = None) -> None:
    announce(store, f"{family(thing)}.{what}", thing, before)
    if thing["object"] == "subscription":
        entitlements.follow(store, thing)


def family(thing: Json) -> str:
    kind: str = thing["object"]
    return FAMILY.get(kind, kind)
