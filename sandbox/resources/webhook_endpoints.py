"""/v1/webhook_endpoints: who is told of which events, and the secrets that sign what they are told.

The secret is shown once, in the answer that creates an endpoint. A rolled one can stay valid beside
the new for a while; `secrets_of` are those that sign now.
"""

import stripe
from stripe.params import (
    WebhookEndpointCreateParams,
    WebhookEndpointDeleteParams,
    WebhookEndpointListParams,
    WebhookEndpointRetrieveParams,
    WebhookEndpointUpdateParams,
)

from sandbox.errors import not_here
from sandbox.resources import Call, Operation, check_url, listed, merged_metadata, new_id, pick
from sandbox.store import Json, Store

KIND = "webhook_endpoint"
KEPT = ("description", "enabled_events", "metadata", "url")


def create(call: Call) -> Json:
    given = pick(call.params, *KEPT, "api_version")
    if given.get("api_version", stripe.api_version) != stripe.api_version:
        raise not_here("webhook endpoints with an API version of their own")
    check_url(given["url"], "url")
    given["metadata"] = merged_metadata({}, given.get("metadata", {}))
    endpoint = insert(call.store, new_id("whsec", 32), given)
    return shown(endpoint) | {"secret": endpoint["secrets"][0]["secret"]}


def insert(store: Store, secret: str, given: Json) -> Json:
    endpoint: Json = {
        "id": new_id("we", 24),
        "object": KIND,
        "api_version": None,
        "application": None,
        "created": store.now(),
        "description": None,
        "livemode": False,
        "metadata": {},
        "secrets": [{"secret": secret, "until": None}],
        "status": "enabled",
    }
    return store.insert(endpoint | given)


def shown(endpoint: Json) -> Json:
    return {name: value for name, value in endpoint.items() if name != "secrets"}


def retrieve(call: Call, id: str) -> Json:
    return shown(call.store.find(KIND, id))


def list_endpoints(call: Call) -> Json:
    endpoints = [shown(endpoint) for endpoint in call.store.collection(KIND).values()]
    return listed(call, KIND, "/v1/webhook_endpoints", among=endpoints)


def update(call: Call, id: str) -> Json:
    endpoint = call.store.find(KIND, id)
    given = pick(call.params, *KEPT, "disabled")
    check_url(given.get("url"), "url")
    if "metadata" in given:
        given["metadata"] = merged_metadata(endpoint["metadata"], given["metadata"])
    if "disabled" in given:
        given["status"] = "disabled" if given.pop("disabled") else "enabled"
    call.store.change(endpoint, **given)
    return shown(endpoint)


def delete(call: Call, id: str) -> Json:
    call.store.find(KIND, id)
    del call.store.collection(KIND)[id]
    return {"id": id, "object": KIND, "deleted": True}


def secrets_of(endpoint: Json, now: int) -> list[str]:
    return [kept["secret"] for kept in endpoint["secrets"] if kept["until"] is None or now < kept["until"]]


def roll(store: Store, id: str, keep_seconds: int) -> str:
    """A new secret; the one before it goes on signing for so long."""
    with store.lock:
        endpoint = store.find(KIND, id)
        old = endpoint["secrets"][0] | {"until": store.now() + keep_seconds}
        endpoint["secrets"] = [{"secret": new_id("whsec", 32), "until": None}, old]
        return str(endpoint["secrets"][0]["secret"])


def ensure(store: Store, url: str, secret: str) -> None:
    """An endpoint for everything at this address, with a secret known in advance."""
    with store.lock:
        known = [endpoint for endpoint in store.collection(KIND).values() if endpoint["url"] == url]
        for endpoint in known:
            endpoint["secrets"] = [{"secret": secret, "until": None}]
        if not known:
            insert(store, secret, {"enabled_events": ["*"], "url": url})
        store.save()


OPERATIONS = [
    Operation("POST", "/v1/webhook_endpoints", WebhookEndpointCreateParams, create),
    Operation("GET", "/v1/webhook_endpoints", WebhookEndpointListParams, list_endpoints),
    Operation("GET", "/v1/webhook_endpoints/<id>", WebhookEndpointRetrieveParams, retrieve),
    Operation("POST", "/v1/webhook_endpoints/<id>", WebhookEndpointUpdateParams, update),
    Operation("DELETE", "/v1/webhook_endpoints/<id>", WebhookEndpointDeleteParams, delete),
]
