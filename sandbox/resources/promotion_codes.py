"""/v1/promotion_codes: words that stand for a coupon; and what the parameter `discounts` may name.

`chosen` refuses what cannot be redeemed now and changes nothing, `redeem` makes discounts of the rest and
counts them. What the discounts then take off is in `sandbox.discounts`.
"""

import secrets
from typing import Any

from stripe.params import (
    PromotionCodeCreateParams,
    PromotionCodeListParams,
    PromotionCodeRetrieveParams,
    PromotionCodeUpdateParams,
)

from sandbox import changes, discounts, life
from sandbox.errors import Refusal, missing
from sandbox.resources import Call, Operation, coupons, customers, listed, merged_metadata, new_id, pick
from sandbox.store import Json, Store
from sandbox.wire import Params

KIND = "promotion_code"

RESTRICTIONS = ("first_time_transaction", "minimum_amount", "minimum_amount_currency")

Chosen = list[tuple[Json, Json | None]]  # coupons, each with the code it came by


def create(call: Call) -> Json:
    store = call.store
    given = pick(
        call.params,
        *("active", "code", "customer", "expires_at", "max_redemptions", "metadata", "promotion"),
        "restrictions",
    )
    if "coupon" not in given["promotion"]:
        raise missing("promotion[coupon]")
    coupon = coupons.living(store, given["promotion"]["coupon"], param="promotion[coupon]")
    if not coupon["valid"]:
        raise coupon_expired(coupon, "promotion[coupon]")
    if "customer" in given:
        customers.living(store, given["customer"], param="customer")
    if given.get("expires_at", store.now() + 1) <= store.now():
        raise Refusal("`expires_at` must be a timestamp in the future.", param="expires_at")
    restrictions = pick(given.pop("restrictions", {}), *RESTRICTIONS)
    code: Json = {
        "id": new_id("promo", 24),
        "object": KIND,
        "active": True,
        "code": secrets.token_hex(4).upper(),
        "created": store.now(),
        "customer": None,
        "customer_account": None,
        "expires_at": None,
        "livemode": False,
        "max_redemptions": None,
        "metadata": {},
        "restrictions": {
            "first_time_transaction": False,
            "minimum_amount": None,
            "minimum_amount_currency": None,
            **restrictions,
        },
        "times_redeemed": 0,
        **given,
    }
    check_unique(store, code)
    return changes.created(store, code)


def check_unique(store: Store, code: Json) -> None:
    for other in store.collection(KIND).values():
        if (
            other["active"]
            and code["active"]
            and other["id"] != code["id"]
            and other["code"].lower() == code["code"].lower()
            and (other["customer"] == code["customer"] or None in (other["customer"], code["customer"]))
        ):
            raise Refusal(f"An active promotion code with `code: {code['code']}` already exists.", param="code")


def retrieve(call: Call, id: str) -> Json:
    return call.store.find(KIND, id)


def update(call: Call, id: str) -> Json:
    code = call.store.find(KIND, id)
    given = pick(call.params, "active", "metadata")
    if "metadata" in given:
        given["metadata"] = merged_metadata(code["metadata"], given["metadata"])
    if given.get("active") and not code["active"]:
        check_revival(call.store, code)
    return changes.updated(call.store, code, **given)


def check_revival(store: Store, code: Json) -> None:
    coupon = store.find(coupons.KIND, code["promotion"]["coupon"])
    if not coupon["valid"] or has_expired(store, code) or is_spent(code):
        raise Refusal("This promotion code cannot be reactivated: it can be redeemed no more.", param="active")
    check_unique(store, code | {"active": True})


def list_codes(call: Call) -> Json:
    wanted = call.params.pop("code", None)
    coupon = call.params.pop("coupon", None)
    among = [
        code
        for code in call.store.collection(KIND).values()
        if (wanted is None or code["code"].lower() == wanted.lower())
        and coupon in (None, code["promotion"]["coupon"])
    ]
    return listed(call, KIND, "/v1/promotion_codes", "active", "customer", among=among)


def chosen(
    store: Store, entries: list[Params], *, customer: str | None, currency: str | None, amount: int
) -> Chosen:
    return [
        choice(store, entry, f"discounts[{place}]", customer, currency, amount)
        for place, entry in enumerate(entries)
    ]


def choice(
    store: Store, entry: Params, param: str, customer: str | None, currency: str | None, amount: int
) -> tuple[Json, Json | None]:
    given = {name: value for name, value in pick(entry, "coupon", "promotion_code").items() if value}
    if len(given) > 1:
        raise Refusal("You may only specify one of these parameters: coupon, promotion_code.", param=param)
    if "promotion_code" in given:
        param = f"{param}[promotion_code]"
        code = store.find(KIND, given["promotion_code"], param=param)
        check_code(store, code, param, customer, currency, amount)
        coupon = coupons.living(store, code["promotion"]["coupon"], param=param)
    elif "coupon" in given:
        param, code = f"{param}[coupon]", None
        coupon = coupons.living(store, given["coupon"], param=param)
    else:
        raise missing(f"{param}[coupon]")
    if not coupon["valid"]:
        raise coupon_expired(coupon, param)
    if coupon["currency"] not in (None, currency):
        raise Refusal(f"This coupon is in {coupon['currency']}, not in {currency}.", param=param)
    return coupon, code


def check_code(
    store: Store, code: Json, param: str, customer: str | None, currency: str | None, amount: int
) -> None:
    restrictions = code["restrictions"]
    if has_expired(store, code):
        raise Refusal(f"This promotion code has expired: {code['code']}", param=param)
    if not code["active"]:
        raise Refusal(f"This promotion code is not active: {code['code']}", param=param)
    if code["customer"] not in (None, customer):
        raise Refusal("This promotion code belongs to another customer.", param=param)
    if restrictions["first_time_transaction"] and has_paid(store, customer):
        raise Refusal(
            "This promotion code cannot be redeemed because the associated customer has prior transactions.",
            param=param,
        )
    if restrictions["minimum_amount"] is not None and (
        restrictions["minimum_amount_currency"] != currency or amount < restrictions["minimum_amount"]
    ):
        raise Refusal("This promotion code wants a larger order.", param=param)


def has_expired(store: Store, code: Json) -> bool:
    return code["expires_at"] is not None and code["expires_at"] <= store.now()


def is_spent(thing: Json) -> bool:
    return thing["max_redemptions"] is not None and thing["times_redeemed"] >= thing["max_redemptions"]


def has_paid(store: Store, customer: str | None) -> bool:
    return any(
        invoice["customer"] == customer and invoice["amount_paid"]
        for invoice in store.collection("invoice").values()
    )


def coupon_expired(coupon: Json, param: str) -> Refusal:
    return Refusal(f"Coupon expired: {coupon['id']}", code="coupon_expired", param=param)


def redeem(store: Store, choices: Chosen, **what: Any) -> list[str]:
    """Discounts on `what` is named: a customer, with a subscription or a Checkout session."""
    made = []
    for coupon, code in choices:
        for thing in filter(None, (coupon, code)):
            store.change(thing, times_redeemed=thing["times_redeemed"] + 1)
            if is_spent(thing):
                discounts.lapse(store, thing)
        made.append(changes.created(store, discount(store, coupon, code, what))["id"])
    return made


def discount(store: Store, coupon: Json, code: Json | None, what: Json) -> Json:
    now, months = store.now(), coupon["duration_in_months"]
    return {
        "id": new_id("di", 24),
        "object": discounts.KIND,
        "checkout_session": None,
        "customer_account": None,
        "end": life.stepped(now, "month", months) if months else None,
        "invoice": None,
        "invoice_item": None,
        "promotion_code": code["id"] if code else None,
        "source": {"coupon": coupon["id"], "type": "coupon"},
        "start": now,
        "subscription": None,
        "subscription_item": None,
        **what,
    }


OPERATIONS = [
    Operation("POST", "/v1/promotion_codes", PromotionCodeCreateParams, create),
    Operation("GET", "/v1/promotion_codes", PromotionCodeListParams, list_codes),
    Operation("GET", "/v1/promotion_codes/<id>", PromotionCodeRetrieveParams, retrieve),
    Operation("POST", "/v1/promotion_codes/<id>", PromotionCodeUpdateParams, update),
]
