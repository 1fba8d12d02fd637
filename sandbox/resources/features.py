"""/v1/entitlements/features, and /v1/products/<id>/features: what can be had, and which products bring it.

A feature is archived rather than deleted, for good, and its lookup key is free again then. Nothing here is
told as an event: who has what changes with the subscriptions, as `entitlements` says.
"""

from stripe.params import (
    ProductFeatureCreateParams,
    ProductFeatureDeleteParams,
    ProductFeatureListParams,
    ProductFeatureRetrieveParams,
)
from stripe.params.entitlements import (
    FeatureCreateParams,
    FeatureListParams,
    FeatureRetrieveParams,
    FeatureUpdateParams,
)

from sandbox.entitlements import ATTACHMENT
from sandbox.errors import Refusal, no_such
from sandbox.resources import Call, Operation, listed, merged_metadata, new_id, pick
from sandbox.store import Json, Store

KIND = "entitlements.feature"
LONGEST_KEY = 80


def create(call: Call) -> Json:
    given = pick(call.params, "lookup_key", "metadata", "name")
    check_key(call.store, given["lookup_key"])
    feature = {
        "id": new_id("feat", 24),
        "object": KIND,
        "active": True,
        "livemode": False,
        "metadata": {},
    }
    return call.store.insert(feature | given)


def check_key(store: Store, key: str) -> None:
    if len(key) > LONGEST_KEY:
        raise Refusal(f"Invalid string: a lookup key has up to {LONGEST_KEY} characters.", param="lookup_key")
    if any(feature["active"] and feature["lookup_key"] == key for feature in store.collection(KIND).values()):
        raise Refusal(
            f"A feature with the lookup key {key} already exists.",
            code="resource_already_exists",
            param="lookup_key",
        )


def retrieve(call: Call, id: str) -> Json:
    return call.store.find(KIND, id)


def update(call: Call, id: str) -> Json:
    feature = call.store.find(KIND, id)
    given = pick(call.params, "active", "metadata", "name")
    if not feature["active"]:
        raise Refusal("An archived feature cannot be changed any more.")
    if "metadata" in given:
        given["metadata"] = merged_metadata(feature["metadata"], given["metadata"])
    call.store.change(feature, **given)
    return feature


def list_features(call: Call) -> Json:
    archived = call.params.pop("archived", False)
    features = call.store.collection(KIND).values()
    among = [feature for feature in features if feature["active"] != archived]
    return listed(call, KIND, "/v1/entitlements/features", "lookup_key", among=among)


def attach(call: Call, product: str) -> Json:
    call.store.find("product", product)
    id = pick(call.params, "entitlement_feature")["entitlement_feature"]
    feature = call.store.find(KIND, id, param="entitlement_feature")
    if not feature["active"]:
        raise Refusal("An archived feature cannot be attached to a product.", param="entitlement_feature")
    if any(attachment["feature"] == id for attachment in attachments_of(call.store, product)):
        raise Refusal("This feature is already attached to the product.", param="entitlement_feature")
    attachment = {"id": new_id("prodft"), "object": ATTACHMENT, "feature": id, "product": product}
    return shown(call.store, call.store.insert(attachment))


def attachments_of(store: Store, product: str) -> list[Json]:
    return [one for one in store.collection(ATTACHMENT).values() if one["product"] == product]


def attachment_of(store: Store, product: str, id: str) -> Json:
    attachment = store.find(ATTACHMENT, id)
    if attachment["product"] != product:
        raise no_such(ATTACHMENT, id)
    return attachment


def shown(store: Store, attachment: Json) -> Json:
    """As Stripe shows it: with the whole feature, without the product."""
    return {
        "id": attachment["id"],
        "object": ATTACHMENT,
        "entitlement_feature": store.find(KIND, attachment["feature"]),
        "livemode": False,
    }


def retrieve_attached(call: Call, product: str, id: str) -> Json:
    return shown(call.store, attachment_of(call.store, product, id))


def list_attached(call: Call, product: str) -> Json:
    call.store.find("product", product)
    among = attachments_of(call.store, product)
    attached = listed(call, ATTACHMENT, f"/v1/products/{product}/features", among=among)
    return attached | {"data": [shown(call.store, attachment) for attachment in attached["data"]]}


def detach(call: Call, product: str, id: str) -> Json:
    attachment_of(call.store, product, id)
    del call.store.collection(ATTACHMENT)[id]
    return {"id": id, "object": ATTACHMENT, "deleted": True}


OPERATIONS = [
    Operation("POST", "/v1/entitlements/features", FeatureCreateParams, create),
    Operation("GET", "/v1/entitlements/features", FeatureListParams, list_features),
    Operation("GET", "/v1/entitlements/features/<id>", FeatureRetrieveParams, retrieve),
    Operation("POST", "/v1/entitlements/features/<id>", FeatureUpdateParams, update),
    Operation("POST", "/v1/products/<product>/features", ProductFeatureCreateParams, attach),
    Operation("GET", "/v1/products/<product>/features", ProductFeatureListParams, list_attached),
    Operation("GET", "/v1/products/<product>/features/<id>", ProductFeatureRetrieveParams, retrieve_attached),
    Operation("DELETE", "/v1/products/<product>/features/<id>", ProductFeatureDeleteParams, detach),
]
