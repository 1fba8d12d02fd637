"""What is taken off: by a coupon from amounts, by a subscription's discounts from its next invoice.

A coupon that applies once is used up by the first invoice it takes something off; one for some months ends
at a date. `resources.promotion_codes` says what may be redeemed, `life` when that is over.
"""

from itertools import accumulate

from sandbox import changes
from sandbox.store import Json, Store

KIND = "discount"


def off(coupon: Json, amount: int) -> int:
    if coupon["percent_off"] is None:
        return min(int(coupon["amount_off"]), amount)
    return int(amount * coupon["percent_off"] / 100 + 0.5)


def shares(coupon: Json, amounts: list[int]) -> list[int]:
    """What is off each of these, in proportion; together it is what is off their sum."""
    whole = sum(amounts)
    taken = off(coupon, whole)
    upto = [taken * part // max(whole, 1) for part in accumulate(amounts)]
    return [after - before for before, after in zip([0, *upto], upto, strict=False)]


def take_off(store: Store, subscription: Json, lines: list[Json]) -> list[Json]:
    """Note in the lines of a new invoice what is off each; answers what each discount takes off in all."""
    totals = []
    for discount in current(store, subscription):
        left = [line["amount"] - sum(each["amount"] for each in line["discount_amounts"]) for line in lines]
        taken = shares(coupon_of(store, discount), left)
        for line, amount in zip(lines, taken, strict=True):
            line["discount_amounts"].append({"amount": amount, "discount": discount["id"]})
        totals.append({"amount": sum(taken), "discount": discount["id"]})
    return totals


def use_up(store: Store, subscription: Json, taken: list[Json]) -> None:
    """What has been taken off once, or has come to its end, is off the subscription."""
    worked = {each["discount"] for each in taken if each["amount"]}
    lasting = [
        discount["id"]
        for discount in current(store, subscription)
        if not (discount["id"] in worked and coupon_of(store, discount)["duration"] == "once")
    ]
    gone = [id for id in subscription["discounts"] if id not in lasting]
    store.change(subscription, discounts=lasting)
    for id in gone:
        changes.happened(store, store.find(KIND, id), "deleted")


def current(store: Store, subscription: Json) -> list[Json]:
    discounts = [store.find(KIND, id) for id in subscription["discounts"]]
    return [discount for discount in discounts if discount["end"] is None or discount["end"] > store.now()]


def coupon_of(store: Store, discount: Json) -> Json:
    return store.find("coupon", discount["source"]["coupon"])


def lapse(store: Store, thing: Json) -> None:
    """Nobody can redeem this coupon any more, nor any code of it; or this code."""
    if thing["object"] == "promotion_code":
        store.change(thing, active=False)
        return
    store.change(thing, valid=False)
    for code in store.collection("promotion_code").values():
        if code["promotion"]["coupon"] == thing["id"]:
            store.change(code, active=False)
