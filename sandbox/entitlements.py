"""What customers are entitled to: the features of the products they are subscribed to, as Stripe settles them.

A subscription brings what its products have when it begins, when a period begins and when it gets other
prices; what is attached to a product or taken off it in between waits for that. It goes on bringing it while
past due, unpaid or paused, until it ends. `changes` has every change of a subscription followed here, and a
customer's entitlements are told of when that makes them others.
"""

from sandbox.resources import new_id, page
from sandbox.resources.events import announce
from sandbox.store import Json, Store

KIND = "entitlements.active_entitlement"
SUMMARY = "entitlements.active_entitlement_summary"
ATTACHMENT = "product_feature"

# one for each customer: what each subscription brings, and the entitlements that come of it
HOLDING = "holding"

BRINGS_NOTHING = ("incomplete", "incomplete_expired", "canceled")


def follow(store: Store, subscription: Json) -> None:
    holding = holding_of(store, subscription["customer"])
    settled_for = holding["brought"].get(subscription["id"], {"terms": [], "features": []})
    terms = terms_of(store, subscription)
    if terms == settled_for["terms"]:
        return
    features = features_of(store, terms)
    brought = holding["brought"] | {subscription["id"]: {"terms": terms, "features": features}}
    store.change(holding, brought=brought)
    settle(store, holding)


def holding_of(store: Store, customer: str) -> Json:
    id = f"holding of {customer}"
    none: Json = {"id": id, "object": HOLDING, "customer": customer, "brought": {}, "active": []}
    return store.collection(HOLDING).get(id) or store.insert(none)


def terms_of(store: Store, subscription: Json) -> list[list[str | int]]:
    """What it brings is settled anew when these change: each item's product, price and start of the period."""
    if subscription["status"] in BRINGS_NOTHING:
        return []
    items = subscription["items"]["data"]
    if subscription["items"]["has_more"]:
        every = store.collection("subscription_item").values()
        items = [item for item in every if item["subscription"] == subscription["id"]]
    return [[item["price"]["product"], item["price"]["id"], item["current_period_start"]] for item in items]


def features_of(store: Store, terms: list[list[str | int]]) -> list[str]:
    products = {product for product, *_ in terms}
    return [one["feature"] for one in store.collection(ATTACHMENT).values() if one["product"] in products]


def settle(store: Store, holding: Json) -> None:
    """One entitlement for each feature, however many subscriptions bring it."""
    wanted = dict.fromkeys(feature for one in holding["brought"].values() for feature in one["features"])
    kept = [entitlement for entitlement in holding["active"] if entitlement["feature"] in wanted]
    held = {entitlement["feature"] for entitlement in kept}
    new = [entitlement_to(store, feature) for feature in wanted if feature not in held]
    before = summary(holding)["entitlements"]["data"]
    if store.change(holding, active=kept + new):
        announce(store, f"{SUMMARY}.updated", summary(holding), {"entitlements": {"data": before}})


def entitlement_to(store: Store, feature: str) -> Json:
    return {
        "id": new_id("ent", 24),
        "object": KIND,
        "feature": feature,
        "livemode": False,
        "lookup_key": store.find("entitlements.feature", feature)["lookup_key"],
    }


def summary(holding: Json) -> Json:
    """With the first ten, without an id, and with an address at which nothing answers: as at Stripe."""
    url = f"/v1/customer/{holding['customer']}/entitlements"
    return {
        "object": SUMMARY,
        "customer": holding["customer"],
        "entitlements": page(holding["active"], {}, url),
        "livemode": False,
    }
