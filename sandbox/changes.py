"""What is created or changed at Stripe is also told as an event, in the same second.

`created` and `updated` write an object and announce that; `happened` announces what has a name of its own,
as `invoice.paid` has. What an update changed goes along as it was before.
"""

from typing import Any

from sandbox.resources.events import announce
from sandbox.store import Json, Store

FAMILY = {"subscription": "customer.subscription"}


def created(store: Store, thing: Json) -> Json:
    store.insert(thing)
    happened(store, thing, "created")
    return thing


def updated(store: Store, thing: Json, **changes: Any) -> Json:
    if before := store.change(thing, **changes):
        announce(store, f"{family(thing)}.updated", thing, before)
    return thing


def happened(store: Store, thing: Json, what: str) -> None:
    announce(store, f"{family(thing)}.{what}", thing)


def family(thing: Json) -> str:
    kind: str = thing["object"]
    return FAMILY.get(kind, kind)
