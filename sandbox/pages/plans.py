"""What the Portal lets a customer change a subscription to, and what that would come to.

The plans are those of the session's configuration, in the currency of the subscription, and quantities
within its bounds. What a change does is `subscriptions.update`'s; foretold here is only what it charges.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sandbox import bills, discounts
from sandbox.errors import Refusal
from sandbox.pages import words
from sandbox.store import Json, Store


@dataclass(frozen=True)
class Offer:
    """A price, and how many of it: where both bounds are the same there is nothing to choose."""

    price: Json
    name: str
    least: int
    most: int | None

    @property
    def is_adjustable(self) -> bool:
        return self.least != self.most

    @property
    def bounds(self) -> str:
        if self.most is None:
            return f"{words.seats(self.least)} or more"
        return f"{self.least} to {words.seats(self.most)}" if self.is_adjustable else words.seats(self.least)


@dataclass(frozen=True)
class Change:
    price: Json
    name: str
    quantity: int
    due: int | None  # what is charged at once; None where the next invoice is the first to show it
    ends_trial: bool
    is_none: bool  # it is what they have
    params: Json


def described(store: Store, subscription: Json, features: Json) -> Json:
    """A subscription as the overview and the page that cancels it show it."""
    items = bills.items_of(store, subscription)
    label, sentence = words.standing(subscription)
    has_begun = subscription["status"] not in (*bills.ENDED, "incomplete")
    return {
        "id": subscription["id"],
        "name": ", ".join(words.name_of(store, item["price"]) for item in items),
        "quantity": sum(item["quantity"] for item in items),
        "amount": words.amount_of(store, subscription),
        "reductions": words.reductions(store, subscription),
        "status": subscription["status"],
        "label": label,
        "sentence": sentence,
        "period_end": items[0]["current_period_end"],
        "ends": subscription["cancel_at"],
        "can_be_canceled": has_begun,
        "can_change": has_begun
        and any(
            offer.is_adjustable or offer.price["id"] != items[0]["price"]["id"]
            for offer in offers(store, subscription, features)
        ),
    }


def offers(store: Store, subscription: Json, features: Json) -> list[Offer]:
    feature = features["subscription_update"]
    items = bills.items_of(store, subscription)
    if not feature["enabled"] or len(items) > 1:
        return []
    [item] = items
    found = []
    for entry in feature["products"] or []:
        bounds = entry["adjustable_quantity"]
        fixed = not bounds["enabled"] or "quantity" not in feature["default_allowed_updates"]
        least, most = (item["quantity"],) * 2 if fixed else (bounds["minimum"], bounds["maximum"])
        for price in (store.find("price", id) for id in entry["prices"]):
            is_own = price["id"] == item["price"]["id"]
            if is_own or (
                "price" in feature["default_allowed_updates"]
                and price["active"]
                and price["currency"] == subscription["currency"]
            ):
                found.append(Offer(price, words.name_of(store, price), least, most))
    return found


def chosen(store: Store, subscription: Json, form: Mapping[str, Any], features: Json) -> Json:
    """The entry of an item's update that a form asks for, or refused in words for the customer."""
    [item, *_] = bills.items_of(store, subscription)
    offer = next(
        (offer for offer in offers(store, subscription, features) if offer.price["id"] == form.get("price")),
        None,
    )
    if offer is None:
        raise Refusal("Choose one of the plans.", param="price")
    quantity = str(form.get("quantity", item["quantity"]))
    if not re.fullmatch("[0-9]{1,9}", quantity):
        raise Refusal("The number of seats is a whole number.", param="quantity")
    if int(quantity) < offer.least or (offer.most is not None and int(quantity) > offer.most):
        raise Refusal(f"{offer.name} takes {offer.bounds}.", param="quantity")
    return {"price": offer.price["id"], "quantity": int(quantity)}


def change(store: Store, subscription: Json, entry: Json, features: Json) -> Change:
    """What it will be: a trial ends with it where the configuration says so; another interval begins anew."""
    feature = features["subscription_update"]
    [item, *_] = bills.items_of(store, subscription)
    wanted: Json = {"price": item["price"]["id"], "quantity": item["quantity"]} | entry
    price, quantity = store.find("price", wanted["price"]), wanted["quantity"]
    on_trial = subscription["status"] == "trialing"
    ends_trial = on_trial and feature["trial_update_behavior"] == "end_trial"
    restarts = not on_trial and words.per(price) != words.per(item["price"])
    params: Json = {
        "items": [{"id": item["id"], "price": price["id"], "quantity": quantity}],
        "proration_behavior": feature["proration_behavior"],
    }
    if ends_trial:
        params["trial_end"] = "now"
    due = reduced(store, subscription, price["unit_amount"] * quantity) if ends_trial or restarts else None
    is_none = (price["id"], quantity) == (item["price"]["id"], item["quantity"])
    return Change(price, words.name_of(store, price), quantity, due, ends_trial, is_none, params)


def reduced(store: Store, subscription: Json, amount: int) -> int:
    for discount in discounts.current(store, subscription):
        amount -= discounts.off(discounts.coupon_of(store, discount), amount)
    return amount
