"""/v1/events: what happened, each with the thing as it was then. Listed and found for 30 days.

`announce` is how the other resources tell of a change. It only writes the event down, and gives a signal to
who wants to look on; `deliveries` looks for new ones after each call, so that a store without a server keeps
its history and nothing else.
"""

from fnmatch import fnmatchcase
from typing import Any

import stripe
from blinker import Signal
from stripe.params import EventListParams, EventRetrieveParams

from sandbox.errors import Refusal, no_such
from sandbox.resources import Call, Operation, is_within, new_id, page
from sandbox.store import Json, Store
from sandbox.wire import Params

KIND = "event"
KEPT_SECONDS = 30 * 24 * 3600
MOST_TYPES = 20  # that one list can be asked for

# Since this version a subscription's periods are those of its items.
PERIODS_OF_ITEMS = "2025-03-31"
PERIOD = ("current_period_start", "current_period_end")

announced = Signal()  # with the event as its sender


def announce(store: Store, type: str, thing: Json, previous: Json | None = None) -> Json:
    """`previous` holds the changed members as they were before, for `*.updated`."""
    event = written(store, type, thing, previous)
    announced.send(event)
    return event


def written(store: Store, type: str, thing: Json, previous: Json | None = None) -> Json:
    data = {"object": snapshot(thing)}
    if previous is not None:
        data["previous_attributes"] = snapshot(previous)
    with store.lock:
        event = {
            "id": new_id("evt", 24),
            "object": KIND,
            "api_version": stripe.api_version,
            "created": store.now(),
            "data": data,
            "livemode": False,
            "pending_webhooks": len(wanting(store, type)),
            "request": dict(store.request),
            "type": type,
        }
        return store.insert(event)


def wanting(store: Store, type: str) -> list[Json]:
    """The webhook endpoints that are told of events of this type."""
    return [
        endpoint
        for endpoint in store.collection("webhook_endpoint").values()
        if endpoint["status"] == "enabled" and {"*", type} & set(endpoint["enabled_events"])
    ]


def snapshot(value: Any) -> Any:
    """A deep copy of JSON, many times faster than copy.deepcopy."""
    if isinstance(value, dict):
        return {name: snapshot(member) for name, member in value.items()}
    return [snapshot(member) for member in value] if isinstance(value, list) else value


def render_in(event: Json, version: str) -> None:
    """Make a new event look as it does in an account of another API version."""
    event["api_version"] = version
    thing = event["data"]["object"]
    if thing.get("object") == "subscription" and version < PERIODS_OF_ITEMS:
        for item in reversed(thing.get("items", {}).get("data", [])):
            thing |= {name: item.pop(name, None) for name in PERIOD}


def list_events(call: Call) -> Json:
    if "type" in call.params and "types" in call.params:
        raise Refusal("You may only specify one of these parameters: type, types.", param="type")
    if len(call.params.get("types", [])) > MOST_TYPES:
        raise Refusal(f"Invalid array: types may hold up to {MOST_TYPES} values.", param="types")
    matching = [event for event in recent(call.store) if matches(event, call.params)]
    return page(matching, call.params, "/v1/events")


def recent(store: Store) -> list[Json]:
    oldest = store.now() - KEPT_SECONDS
    kept = [event for event in store.collection(KIND).values() if event["created"] > oldest]
    return sorted(kept, key=lambda event: int(event["created"]))


def matches(event: Json, params: Params) -> bool:
    patterns = params.get("types", [params.get("type", "*")])
    delivered = event["pending_webhooks"] == 0
    return (
        any(fnmatchcase(event["type"], pattern) for pattern in patterns)
        and params.get("delivery_success", delivered) == delivered
        and is_within(event["created"], params.get("created", {}))
    )


def retrieve(call: Call, id: str) -> Json:
    event = call.store.find(KIND, id)
    if event["created"] <= call.store.now() - KEPT_SECONDS:
        raise no_such(KIND, id)
    return event


OPERATIONS = [
    Operation("GET", "/v1/events", EventListParams, list_events),
    Operation("GET", "/v1/events/<id>", EventRetrieveParams, retrieve),
]
