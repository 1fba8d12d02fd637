"""/v1/prices: what a product costs, once or by interval. An amount never changes; a new price replaces it."""

from stripe.params import PriceCreateParams, PriceListParams, PriceRetrieveParams, PriceUpdateParams

from sandbox import changes
from sandbox.errors import Refusal, missing
from sandbox.resources import Call, Operation, listed, merged_metadata, new_id, pick
from sandbox.store import Json, Store
from sandbox.wire import Params

KIND = "price"


def create(call: Call) -> Json:
    given = pick(
        call.params,
        *("active", "billing_scheme", "currency", "lookup_key", "metadata", "nickname", "product"),
        *("recurring", "tax_behavior", "transfer_lookup_key", "unit_amount"),
    )
    for name in ("product", "unit_amount"):
        if name not in given:
            raise missing(name)
    call.store.find("product", given["product"], param="product")
    take_lookup_key(call.store, given)
    price = {
        "id": new_id("price", 24),
        "object": KIND,
        "active": given.get("active", True),
        "billing_scheme": given.get("billing_scheme", "per_unit"),
        "created": call.store.now(),
        "currency": given["currency"].lower(),
        "custom_unit_amount": None,
        "livemode": False,
        "lookup_key": given.get("lookup_key"),
        "metadata": given.get("metadata", {}),
        "nickname": given.get("nickname"),
        "product": given["product"],
        "recurring": recurring(given["recurring"]) if "recurring" in given else None,
        "tax_behavior": given.get("tax_behavior", "unspecified"),
        "tiers_mode": None,
        "transform_quantity": None,
        "type": "recurring" if "recurring" in given else "one_time",
        "unit_amount": given["unit_amount"],
        "unit_amount_decimal": str(given["unit_amount"]),
    }
    return changes.created(call.store, price)


def recurring(given: Params) -> Json:
    """A price's own trial days are long out of use at Stripe and ignored."""
    chosen = pick(given, "interval", "interval_count", "trial_period_days", "usage_type")
    if chosen.get("usage_type", "licensed") != "licensed":
        raise Refusal("The sandbox knows licensed prices only.", param="recurring[usage_type]")
    return {
        "interval": chosen["interval"],
        "interval_count": chosen.get("interval_count", 1),
        "meter": None,
        "trial_period_days": None,
        "usage_type": "licensed",
    }


def take_lookup_key(store: Store, given: Params) -> None:
    """One active price has a lookup key; another gets it only when told to take it over."""
    key, transfers = given.get("lookup_key"), given.pop("transfer_lookup_key", False)
    for price in [price for price in store.collection(KIND).values() if key and price["lookup_key"] == key]:
        if not transfers:
            raise Refusal(
                f"A price (`{price['id']}`) already uses that lookup key.",
                code="resource_already_exists",
                param="lookup_key",
            )
        changed(store, price, {"lookup_key": None})


def retrieve(call: Call, id: str) -> Json:
    return call.store.find(KIND, id)


def update(call: Call, id: str) -> Json:
    price = call.store.find(KIND, id)
    given = pick(
        call.params, "active", "lookup_key", "metadata", "nickname", "tax_behavior", "transfer_lookup_key"
    )
    if given.get("lookup_key") != price["lookup_key"]:
        take_lookup_key(call.store, given)
    given.pop("transfer_lookup_key", None)
    if "metadata" in given:
        given["metadata"] = merged_metadata(price["metadata"], given["metadata"])
    return changed(call.store, price, given)


def changed(store: Store, price: Json, given: Params) -> Json:
    """The items that were chosen with it show it as it is."""
    changes.updated(store, price, **given)
    shown = [s["items"]["data"] for s in store.collection("subscription").values()]
    for items in [store.collection("subscription_item").values(), *shown]:
        for item in items:
            if item["price"]["id"] == price["id"]:
                item["price"] = price
    return price


def list_prices(call: Call) -> Json:
    keys = call.params.pop("lookup_keys", None)
    interval = call.params.pop("recurring", {})
    among = [
        price
        for price in call.store.collection(KIND).values()
        if (keys is None or price["lookup_key"] in keys)
        and interval.items() <= (price["recurring"] or {}).items()
    ]
    return listed(call, KIND, "/v1/prices", "active", "currency", "product", "type", among=among)


OPERATIONS = [
    Operation("POST", "/v1/prices", PriceCreateParams, create),
    Operation("GET", "/v1/prices", PriceListParams, list_prices),
    Operation("GET", "/v1/prices/<id>", PriceRetrieveParams, retrieve),
    Operation("POST", "/v1/prices/<id>", PriceUpdateParams, update, empty_unsets=True),
]
