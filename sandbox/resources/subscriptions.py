"""/v1/subscriptions and /v1/subscription_items: who pays for what, as asked for through the API.

A subscription shows its first ten items; all of them are objects of their own. What time makes of it is in
`life`, what its invoices make of it in `bills`.
"""

from stripe.params import (
    SubscriptionCancelParams,
    SubscriptionCreateParams,
    SubscriptionItemCreateParams,
    SubscriptionItemDeleteParams,
    SubscriptionItemListParams,
    SubscriptionItemRetrieveParams,
    SubscriptionItemUpdateParams,
    SubscriptionListParams,
    SubscriptionResumeParams,
    SubscriptionRetrieveParams,
    SubscriptionUpdateParams,
)

from sandbox import bills, changes, life
from sandbox.bills import DAY
from sandbox.errors import Refusal, missing, no_such, not_here
from sandbox.resources import (
    Call,
    Operation,
    customers,
    listed,
    merged,
    merged_metadata,
    new_id,
    pick,
    promotion_codes,
)
from sandbox.store import Json, Store
from sandbox.wire import Params

KIND = "subscription"
ITEM = "subscription_item"

CHANGEABLE = [
    *("cancel_at", "cancel_at_period_end", "cancellation_details", "collection_method"),
    *("default_payment_method", "description", "items", "metadata", "off_session", "pause_collection"),
    *("payment_behavior", "proration_behavior", "trial_end", "trial_settings"),
]

PERIOD = ("current_period_start", "current_period_end")

# What no subscription here has, or not from the start.
NOT_SET = dict.fromkeys(
    [
        *("application", "application_fee_percent", "billing_cycle_anchor_config"),
        *("billing_thresholds", "cancel_at", "canceled_at", "customer_account", "days_until_due"),
        *("default_payment_method", "default_source", "description", "ended_at"),
        *("next_pending_invoice_item_invoice", "on_behalf_of", "pause_collection"),
        *("pending_invoice_item_interval", "pending_setup_intent", "pending_update", "schedule"),
        *("test_clock", "transfer_data", "trial_end", "trial_start"),
    ]
)

# Changes in the middle of a period are not prorated here.
IGNORED = ("proration_behavior", "proration_date")


def create(call: Call) -> Json:
    store = call.store
    given = pick(
        call.params, *CHANGEABLE, "automatic_tax", "currency", "customer", "discounts", "trial_period_days"
    )
    check(given)
    if not given.get("items"):
        raise missing("items")
    if "customer" not in given:
        raise missing("customer")
    customers.living(store, given["customer"], param="customer")
    subscription = new(store, given)
    items = [new_item(store, subscription["id"], entry) for entry in given["items"]]
    trial_end = end_of_trial(store, given)
    subscription |= start_of(store, items, trial_end)
    subscription |= changes_of(store, subscription, given)
    if trial_end is None:
        subscription["status"] = first_status(store, subscription, items, given.get("payment_behavior"))
    subscription["discounts"] = discounted(store, subscription, items, given.get("discounts") or [])
    for item in items:
        store.insert(item)
    changes.created(store, subscription)
    invoice = bills.draw_up(store, subscription, "subscription_create", id=subscription["latest_invoice"])
    bills.finalize(store, invoice)
    if given.get("payment_behavior") != "default_incomplete" or invoice["total"] == 0:
        bills.collect(store, invoice)
    life.warn_early(store, subscription)
    return subscription


def new(store: Store, given: Params) -> Json:
    now = store.now()
    return {
        "id": new_id("sub", 24),
        "object": KIND,
        **NOT_SET,
        "automatic_tax": {"disabled_reason": None, "liability": None, "enabled": False}
        | given.get("automatic_tax", {}),
        "billing_cycle_anchor": now,
        "billing_mode": {
            "flexible": {"proration_discounts": "included"},
            "type": "flexible",
            "updated_at": now,
        },
        "billing_schedules": [],
        "cancel_at_period_end": False,
        "cancellation_details": {"comment": None, "feedback": None, "reason": None},
        "collection_method": "charge_automatically",
        "created": now,
        "currency": "",
        "customer": given["customer"],
        "default_tax_rates": [],
        "discounts": [],
        "invoice_settings": {
            "account_tax_ids": None,
            "custom_fields": None,
            "description": None,
            "footer": None,
            "issuer": {"type": "self"},
        },
        "items": {},
        "latest_invoice": new_id("in", 24),
        "livemode": False,
        "managed_payments": {"enabled": False},
        "metadata": {},
        "payment_settings": {
            "payment_method_options": None,
            "payment_method_types": None,
            "save_default_payment_method": "off",
        },
        "start_date": now,
        "status": "active",
        "trial_settings": {"end_behavior": {"missing_payment_method": "create_invoice"}},
    }


def new_item(store: Store, subscription_id: str, entry: Params) -> Json:
    given = pick(entry, "price", "quantity", "metadata", "deleted")
    if "price" not in given:
        raise missing("items[0][price]")
    price = usable_price(store, given["price"])
    now = store.now()
    return {
        "id": new_id("si"),
        "object": ITEM,
        "billing_thresholds": None,
        "created": now,
        "current_period_end": now,
        "current_period_start": now,
        "discounts": [],
        "metadata": given.get("metadata", {}),
        "plan": plan(price),
        "price": price,
        "quantity": given.get("quantity", 1),
        "subscription": subscription_id,
        "tax_rates": [],
    }


def usable_price(store: Store, id: str) -> Json:
    price = store.find("price", id, param="items[0][price]")
    if not price["active"]:
        raise Refusal(
            "The price specified is inactive. This field only accepts active prices.", param="items[0][price]"
        )
    if price["type"] != "recurring":
        raise Refusal(
            "The price specified is set to `type=one_time` but this field only accepts prices with"
            " `type=recurring`.",
            param="items[0][price]",
        )
    return price


def plan(price: Json) -> Json:
    """A price in the words of older days, which items still carry."""
    return {
        "id": price["id"],
        "object": "plan",
        "active": price["active"],
        "amount": price["unit_amount"],
        "amount_decimal": price["unit_amount_decimal"],
        "billing_scheme": price["billing_scheme"],
        "created": price["created"],
        "currency": price["currency"],
        "interval": price["recurring"]["interval"],
        "interval_count": price["recurring"]["interval_count"],
        "livemode": False,
        "metadata": price["metadata"],
        "meter": None,
        "nickname": price["nickname"],
        "product": price["product"],
        "tiers_mode": None,
        "transform_usage": None,
        "trial_period_days": None,
        "usage_type": "licensed",
    }


def start_of(store: Store, items: list[Json], trial_end: int | None) -> Json:
    """The first period, which is the trial where there is one."""
    now = store.now()
    interval = common_interval(items)
    end = trial_end or life.next_date(now, *interval, now)
    for item in items:
        item["current_period_end"] = end
    start: Json = {
        "currency": items[0]["price"]["currency"],
        "items": bills.embedded(items[0]["subscription"], items),
    }
    if trial_end is None:
        return start
    return start | on_trial(now, trial_end)


def on_trial(start: int, end: int) -> Json:
    return {"status": "trialing", "trial_start": start, "trial_end": end, "billing_cycle_anchor": end}


def common_interval(items: list[Json]) -> tuple[str, int]:
    kinds = {(i["price"]["recurring"]["interval"], i["price"]["recurring"]["interval_count"]) for i in items}
    if len(kinds) > 1:
        raise not_here("items of different intervals in one subscription")
    if len({item["price"]["currency"] for item in items}) > 1:
        raise Refusal("All prices of a subscription must be of the same currency.", param="items")
    return kinds.pop()


def end_of_trial(store: Store, given: Params) -> int | None:
    now = store.now()
    if days := given.get("trial_period_days"):
        return now + int(days) * DAY
    end = given.get("trial_end")
    if end is None or end == "now":
        return None
    if end <= now:
        raise Refusal("Timestamp can't be before now.", param="trial_end")
    return int(end)


def first_status(store: Store, subscription: Json, items: list[Json], behavior: str | None) -> str:
    """What paying the first invoice is about to make of it, known beforehand."""
    if bills.price_of(items) == 0:
        return "active"
    if behavior == "default_incomplete":
        return "incomplete"
    method = bills.method_of(store, subscription)
    if method is None:
        raise Refusal(
            "This customer has no attached payment source or default payment method. Please consider adding"
            " a default payment method.",
            code="resource_missing",
        )
    if behavior == "error_if_incomplete" and not bills.charge(store, method):
        raise bills.declined()
    return "active" if bills.would_pay(store, method) else "incomplete"


def discounted(store: Store, subscription: Json, items: list[Json], entries: list[Params]) -> list[str]:
    choices = promotion_codes.chosen(
        store,
        entries,
        customer=subscription["customer"],
        currency=subscription["currency"],
        amount=bills.price_of(items),
    )
    return promotion_codes.redeem(
        store, choices, customer=subscription["customer"], subscription=subscription["id"]
    )


def check(given: Params) -> None:
    if given.get("collection_method", "charge_automatically") != "charge_automatically":
        raise not_here("invoices that are sent (collection_method)")
    if given.get("payment_behavior") == "pending_if_incomplete":
        raise not_here("pending updates (payment_behavior)")


def changes_of(store: Store, subscription: Json, given: Params) -> Json:
    """What the parameters shared by create and update make of a subscription."""
    after: Json = {name: given[name] for name in ("description", "pause_collection") if name in given}
    if after.get("pause_collection"):
        after["pause_collection"] = {"resumes_at": None} | after["pause_collection"]
    if "metadata" in given:
        after["metadata"] = merged_metadata(subscription["metadata"], given["metadata"])
    for name in ("trial_settings", "cancellation_details"):
        if name in given:
            after[name] = merged(subscription[name], given[name])
    if "default_payment_method" in given:
        method = given["default_payment_method"]
        customers.check_method(store, subscription["customer"], method, "default_payment_method")
        after["default_payment_method"] = method
    return after | cancellation(store, subscription, given)


def cancellation(store: Store, subscription: Json, given: Params) -> Json:
    at = given.get("cancel_at", subscription["cancel_at"])
    if given.get("cancel_at_period_end") or at in ("min_period_end", "max_period_end"):
        at = life.period_end(store, subscription)
    elif given.get("cancel_at_period_end") is False and subscription["cancel_at_period_end"]:
        at = given.get("cancel_at")
    elif "cancel_at" in given and at is not None and at <= store.now():
        raise Refusal("`cancel_at` must be a timestamp in the future.", param="cancel_at")
    if at == subscription["cancel_at"] and "cancel_at_period_end" not in given:
        return {}
    reason = "cancellation_requested" if at else None
    return {
        "cancel_at": at,
        "cancel_at_period_end": given.get("cancel_at_period_end", False),
        "canceled_at": (subscription["canceled_at"] or store.now()) if at else None,
        "cancellation_details": merged(
            subscription["cancellation_details"], given.get("cancellation_details", {}) | {"reason": reason}
        ),
    }


def retrieve(call: Call, id: str) -> Json:
    return call.store.find(KIND, id)


def update(call: Call, id: str) -> Json:
    given = pick(call.params, *CHANGEABLE)
    check(given)
    return changed(call.store, call.store.find(KIND, id), given)


def changed(store: Store, subscription: Json, given: Params) -> Json:
    check_status(subscription, given)
    before = bills.items_of(store, subscription)
    items = chosen(store, before, given.get("items", []), subscription["id"])
    after = changes_of(store, subscription, given)
    trial_end = end_of_trial(store, given)
    ends_trial = given.get("trial_end") == "now" and subscription["status"] == "trialing"
    if trial_end is not None:
        items = [item | {"current_period_end": trial_end} for item in items]
        after |= on_trial(subscription["trial_start"] or store.now(), trial_end)
    restarts = subscription["status"] != "trialing" and common_interval(items) != common_interval(before)
    put(store, before, items)
    if ends_trial or (restarts and trial_end is None):
        after |= life.out_of_trial(store, subscription) if ends_trial else {}
        life.collect(store, life.restart(store, subscription, items, **after))
    else:
        after["items"] = bills.embedded(subscription["id"], items)
        if items != before and after["items"] == subscription["items"]:  # beyond those that are shown
            changes.happened(store, subscription, "updated")
        changes.updated(store, subscription, **after | life.end_with_period(store, subscription | after))
        life.warn_early(store, subscription)
    return subscription


def chosen(store: Store, items: list[Json], entries: list[Params], subscription_id: str) -> list[Json]:
    """The items after an update; an entry without an id is one more."""
    after = {item["id"]: item for item in items}
    for entry in entries:
        if "id" not in entry:
            item = new_item(store, subscription_id, entry)
            after[item["id"]] = item | {name: items[0][name] for name in PERIOD}
        elif entry["id"] not in after:
            raise no_such(ITEM, entry["id"], param="items[0][id]")
        elif entry.get("deleted"):
            del after[entry["id"]]
        else:
            after[entry["id"]] = changed_item(store, after[entry["id"]], entry)
    if not after:
        raise Refusal("A subscription must have at least one active plan.", param="items")
    common_interval(list(after.values()))
    return list(after.values())


def changed_item(store: Store, item: Json, entry: Params) -> Json:
    given = pick(entry, "id", "price", "quantity", "metadata", "deleted")
    if "price" in given:
        price = usable_price(store, given["price"])
        given |= {"price": price, "plan": plan(price)}
    if "metadata" in given:
        given["metadata"] = merged_metadata(item["metadata"], given["metadata"])
    return item | {name: value for name, value in given.items() if name != "deleted"}


def put(store: Store, before: list[Json], after: list[Json]) -> None:
    for item in before:
        del store.collection(ITEM)[item["id"]]
    for item in after:
        store.insert(item)


def check_status(subscription: Json, given: Params) -> None:
    """What is over, or has not begun, cannot be changed much."""
    harmless = {"metadata", "cancellation_details", "default_payment_method", "off_session"}
    if subscription["status"] in bills.ENDED and given.keys() - harmless:
        raise Refusal("A canceled subscription can only update its cancellation_details and metadata.")
    if subscription["status"] == "incomplete" and given.keys() - harmless:
        raise Refusal(
            "This subscription is incomplete: until its first invoice is paid only its metadata and default"
            " payment method can be updated."
        )


def cancel(call: Call, id: str) -> Json:
    given = pick(call.params, "cancellation_details", "invoice_now", "prorate")
    subscription = call.store.find(KIND, id)
    if subscription["status"] in bills.ENDED:
        raise no_such(KIND, id)
    life.end(call.store, subscription, **given.get("cancellation_details", {}))
    return subscription


def resume(call: Call, id: str) -> Json:
    """The invoice of the new period has to be paid before a paused subscription goes on."""
    pick(call.params, "proration_behavior")
    subscription = call.store.find(KIND, id)
    if subscription["status"] != "paused":
        raise Refusal("This subscription cannot be resumed because it is not paused.")
    items = bills.items_of(call.store, subscription)
    life.collect(call.store, life.restart(call.store, subscription, items))
    return subscription


def list_subscriptions(call: Call) -> Json:
    status = call.params.pop("status", None)
    price = call.params.pop("price", None)
    among = [
        subscription
        for subscription in call.store.collection(KIND).values()
        if has_status(subscription, status)
        and (price is None or price in {i["price"]["id"] for i in bills.items_of(call.store, subscription)})
    ]
    return listed(call, KIND, "/v1/subscriptions", "collection_method", "customer", among=among)


def has_status(subscription: Json, wanted: str | None) -> bool:
    status = subscription["status"]
    if wanted is None:
        return bool(status != "canceled")
    return wanted == "all" or status == wanted or (wanted == "ended" and status in bills.ENDED)


def create_item(call: Call) -> Json:
    given = pick(call.params, "subscription", "price", "quantity", "metadata", "payment_behavior", *IGNORED)
    subscription = call.store.find(KIND, given["subscription"], param="subscription")
    changed(call.store, subscription, {"items": [entry_of(given)]})
    return bills.items_of(call.store, subscription)[-1]


def retrieve_item(call: Call, id: str) -> Json:
    return call.store.find(ITEM, id)


def update_item(call: Call, id: str) -> Json:
    given = pick(call.params, "price", "quantity", "metadata", "payment_behavior", *IGNORED)
    item = call.store.find(ITEM, id)
    subscription = call.store.find(KIND, item["subscription"])
    changed(call.store, subscription, {"items": [entry_of(given) | {"id": id}]})
    return call.store.find(ITEM, id)


def delete_item(call: Call, id: str) -> Json:
    pick(call.params, "payment_behavior", *IGNORED)
    item = call.store.find(ITEM, id)
    changed(call.store, call.store.find(KIND, item["subscription"]), {"items": [{"id": id, "deleted": True}]})
    return {"id": id, "object": ITEM, "deleted": True}


def entry_of(given: Params) -> Params:
    return {name: given[name] for name in ("price", "quantity", "metadata") if name in given}


def list_items(call: Call) -> Json:
    subscription = call.store.find(KIND, call.params["subscription"], param="subscription")
    newest_last = bills.items_of(call.store, subscription)
    return listed(call, ITEM, "/v1/subscription_items", "subscription", among=reversed(newest_last))


OPERATIONS = [
    Operation("POST", "/v1/subscriptions", SubscriptionCreateParams, create),
    Operation("GET", "/v1/subscriptions", SubscriptionListParams, list_subscriptions),
    Operation("GET", "/v1/subscriptions/<id>", SubscriptionRetrieveParams, retrieve),
    Operation("POST", "/v1/subscriptions/<id>", SubscriptionUpdateParams, update, empty_unsets=True),
    Operation("DELETE", "/v1/subscriptions/<id>", SubscriptionCancelParams, cancel),
    Operation("POST", "/v1/subscriptions/<id>/resume", SubscriptionResumeParams, resume),
    Operation("POST", "/v1/subscription_items", SubscriptionItemCreateParams, create_item),
    Operation("GET", "/v1/subscription_items", SubscriptionItemListParams, list_items),
    Operation("GET", "/v1/subscription_items/<id>", SubscriptionItemRetrieveParams, retrieve_item),
    Operation("POST", "/v1/subscription_items/<id>", SubscriptionItemUpdateParams, update_item),
    Operation("DELETE", "/v1/subscription_items/<id>", SubscriptionItemDeleteParams, delete_item),
]
