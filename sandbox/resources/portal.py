"""/v1/billing_portal: configurations, of which there is always a default one, and sessions.

A session's `url` carries a token; `pages` opens it. Sessions cannot be asked for again through the API.
Which products a configuration lets customers change to is told only to those who expand it.
"""

from stripe.params.billing_portal import (
    ConfigurationCreateParams,
    ConfigurationListParams,
    ConfigurationRetrieveParams,
    ConfigurationUpdateParams,
    SessionCreateParams,
)

from sandbox import bills
from sandbox.errors import Refusal, missing, no_such
from sandbox.resources import Call, Operation, check_url, customers, merged, merged_metadata, new_id, page, pick
from sandbox.store import Json, Store
from sandbox.wire import Params

CONFIGURATION = "billing_portal.configuration"
PAGE = "billing_portal.page"

# the flows that are about a subscription, and what each does to it
FLOWS = {
    "subscription_cancel": "canceled",
    "subscription_pause": "paused",
    "subscription_update": "updated",
    "subscription_update_confirm": "updated",
}

UNTOLD = "features.subscription_update.products"

# A configuration made through the API offers what it names and nothing else.
NOTHING_OFFERED: Json = {
    "customer_update": {"allowed_updates": [], "enabled": False},
    "invoice_history": {"enabled": False},
    "payment_method_update": {"enabled": False, "payment_method_configuration": None},
    "subscription_cancel": {
        "cancellation_reason": {
            "enabled": False,
            "feedback_options": None,
            "options": ["too_expensive", "missing_features", "switched_service", "unused", "other"],
        },
        "enabled": False,
        "mode": "at_period_end",
        "proration_behavior": "none",
    },
    "subscription_pause": {
        "duration": {
            "interval_options": [{"interval": "month", "interval_count": 1}],
            "type": "interval_options",
        },
        "enabled": False,
    },
    "subscription_update": {
        "billing_cycle_anchor": None,
        "default_allowed_updates": [],
        "enabled": False,
        "products": None,
        "proration_behavior": "none",
        "schedule_at_period_end": {"conditions": []},
        "trial_update_behavior": "end_trial",
    },
}

OFFERED_BY_DEFAULT: Json = {
    "customer_update": {
        "allowed_updates": ["email", "name", "address", "phone", "tax_id"],
        "enabled": True,
    },
    "invoice_history": {"enabled": True},
    "payment_method_update": {"enabled": True},
    "subscription_cancel": {"enabled": True},
}


def create_configuration(call: Call) -> Json:
    configuration = changed(call.store, new_configuration(call.store), call.params)
    return told(call, call.store.insert(configuration))


def retrieve_configuration(call: Call, id: str) -> Json:
    return told(call, call.store.find(CONFIGURATION, id))


def update_configuration(call: Call, id: str) -> Json:
    configuration = call.store.find(CONFIGURATION, id)
    if configuration["is_default"] and call.params.get("active") is False:
        raise Refusal("The default configuration cannot be deactivated.", param="active")
    after = changed(call.store, configuration, call.params) | {"updated": call.store.now()}
    return told(call, call.store.insert(after))


def list_configurations(call: Call) -> Json:
    filters = {name: call.params[name] for name in ("active", "is_default") if name in call.params}
    matching = [c for c in call.store.collection(CONFIGURATION).values() if filters.items() <= flags(c)]
    return page([told(call, c) for c in matching], call.params, "/v1/billing_portal/configurations")


def told(call: Call, configuration: Json) -> Json:
    if any(name.removeprefix("data.") == UNTOLD for name in call.params.get("expand", [])):
        return configuration
    features = configuration["features"]
    update = {name: value for name, value in features["subscription_update"].items() if name != "products"}
    return configuration | {"features": features | {"subscription_update": update}}


def flags(configuration: Json) -> set[tuple[str, bool]]:
    return {(name, configuration[name]) for name in ("active", "is_default")}


def ensure_default_configuration(store: Store) -> None:
    with store.lock:
        if not store.collection(CONFIGURATION):
            features = {"features": OFFERED_BY_DEFAULT}
            store.insert(changed(store, new_configuration(store), features) | {"is_default": True})
        store.save()


def new_configuration(store: Store) -> Json:
    now = store.now()
    return {
        "id": new_id("bpc", 24),
        "object": CONFIGURATION,
        "active": True,
        "application": None,
        "business_profile": dict.fromkeys(("headline", "privacy_policy_url", "terms_of_service_url")),
        "created": now,
        "default_return_url": None,
        "features": NOTHING_OFFERED,
        "is_default": False,
        "livemode": False,
        "login_page": {"enabled": False, "url": None},
        "metadata": {},
        "name": None,
        "updated": now,
    }


def changed(store: Store, configuration: Json, params: Params) -> Json:
    given = pick(params, "active", "business_profile", "default_return_url", "features", "metadata", "name")
    metadata = merged_metadata(configuration["metadata"], given.pop("metadata", {}))
    check_url(given.get("default_return_url"), "default_return_url")
    after: Json = merged(configuration, given) | {"metadata": metadata}
    check_features(store, after["features"])
    for product in after["features"]["subscription_update"]["products"] or []:
        quantity = {"enabled": False, "maximum": None, "minimum": 1}
        product["adjustable_quantity"] = quantity | product.get("adjustable_quantity", {})
    return after


def check_features(store: Store, features: Json) -> None:
    update = features["subscription_update"]
    if update["enabled"] and not features["payment_method_update"]["enabled"]:
        raise Refusal("Cannot enable subscription updates while payment method update is disabled.")
    for place, entry in enumerate(update["products"] or []):
        param = f"features[subscription_update][products][{place}]"
        product = store.find("product", entry["product"], param=f"{param}[product]")
        for number, id in enumerate(entry["prices"]):
            price = store.find("price", id, param=f"{param}[prices][{number}]")
            if price["product"] != product["id"] or price["type"] != "recurring":
                raise Refusal(
                    f"The price {id} is no recurring price of the product {product['id']}.",
                    param=f"{param}[prices][{number}]",
                )


def create_session(call: Call) -> Json:
    given = pick(
        call.params,
        "after_expiration",
        "configuration",
        "customer",
        "flow_data",
        "locale",
        "on_behalf_of",
        "return_url",
    )
    if "customer" not in given:
        raise missing("customer")
    customer = customers.living(call.store, given["customer"], param="customer")
    configuration = usable_configuration(call.store, given.get("configuration"))
    check_url(given.get("return_url"), "return_url")
    token, now = new_id("test", 32), call.store.now()
    session = {
        "id": new_id("bps", 24),
        "object": "billing_portal.session",
        "after_expiration": given.get("after_expiration"),
        "configuration": configuration["id"],
        "created": now,
        "customer": customer["id"],
        "customer_account": None,
        "flow": flow(call.store, given["flow_data"], customer, configuration) if "flow_data" in given else None,
        "livemode": False,
        "locale": given.get("locale"),
        "on_behalf_of": given.get("on_behalf_of"),
        "return_url": given.get("return_url", configuration["default_return_url"]),
        "url": f"{call.public_url}/p/session/{token}",
    }
    call.store.insert_short_lived(PAGE, token, {"session": session, "at": now, "seen": now, "done": False})
    return session


def usable_configuration(store: Store, id: str | None) -> Json:
    if id is None:
        return next(c for c in store.collection(CONFIGURATION).values() if c["is_default"])
    configuration = store.find(CONFIGURATION, id, param="configuration")
    if not configuration["active"]:
        raise Refusal(f"The configuration '{id}' is not active.", param="configuration")
    return configuration


def flow(store: Store, data: Params, customer: Json, configuration: Json) -> Json:
    kind = data["type"]
    after, param = data.get("after_completion", {}), "flow_data[after_completion][redirect]"
    if after.get("type") == "redirect" and "redirect" not in after:
        raise missing(param)
    check_url(after.get("redirect", {}).get("return_url"), f"{param}[return_url]")
    if kind in FLOWS:
        check_flow(store, kind, data, customer, configuration["features"])
    return {
        "type": kind,
        "after_completion": {"type": "portal_homepage", "hosted_confirmation": None, "redirect": None} | after,
        "customer_update": {} if kind == "customer_update" else None,
        **{name: data.get(name) for name in FLOWS},
    }


def check_flow(store: Store, kind: str, data: Params, customer: Json, features: Json) -> None:
    """What the page of this flow would be about must be the customer's, and open to them."""
    if kind not in data:
        raise missing(f"flow_data[{kind}]")
    details, param = data[kind], f"flow_data[{kind}][subscription]"
    subscription = store.find("subscription", details["subscription"], param=param)
    if subscription["customer"] != customer["id"]:
        raise no_such("subscription", subscription["id"], param=param)
    feature = kind.removesuffix("_confirm")
    if not features[feature]["enabled"]:
        what = feature.replace("_", " ")
        raise cannot(kind, f"the {what} feature in the portal configuration is disabled")
    if subscription["status"] in (*bills.ENDED, "incomplete"):
        raise cannot(kind, f"it is {subscription['status']}")
    items = bills.items_of(store, subscription)
    if feature == "subscription_update" and len(items) > 1:
        raise cannot(kind, "it contains multiple items")
    if kind == "subscription_update_confirm":
        check_update(items[0], details["items"], features["subscription_update"]["products"] or [])


def check_update(item: Json, entries: list[Params], products: list[Json]) -> None:
    kind, param = "subscription_update_confirm", "flow_data[subscription_update_confirm][items]"
    if len(entries) != 1:
        raise Refusal("Exactly one item can be updated.", param=param)
    [entry] = entries
    if entry["id"] != item["id"]:
        raise no_such("subscription_item", entry["id"], param=f"{param}[0][id]")
    price = entry.get("price", item["price"]["id"])
    if "price" in entry and price not in [id for product in products for id in product["prices"]]:
        raise Refusal(
            f"The price {price} must also be included in the configuration's `{UNTOLD}`.",
            param=f"{param}[0][price]",
        )
    if (price, entry.get("quantity", item["quantity"])) == (item["price"]["id"], item["quantity"]):
        raise cannot(kind, "there are no changes to confirm")


def cannot(kind: str, reason: str) -> Refusal:
    return Refusal(f"This subscription cannot be {FLOWS[kind]} because {reason}.")


OPERATIONS = [
    Operation("POST", "/v1/billing_portal/configurations", ConfigurationCreateParams, create_configuration),
    Operation("GET", "/v1/billing_portal/configurations", ConfigurationListParams, list_configurations),
    Operation(
        "GET", "/v1/billing_portal/configurations/<id>", ConfigurationRetrieveParams, retrieve_configuration
    ),
    Operation(
        "POST", "/v1/billing_portal/configurations/<id>", ConfigurationUpdateParams, update_configuration
    ),
    Operation("POST", "/v1/billing_portal/sessions", SessionCreateParams, create_session),
]
