"""/v1/coupons: what is off, a percentage or an amount, and for how long: once, some months, forever.

A deleted coupon is kept out of sight, because what was redeemed before goes on.
"""

from stripe.params import (
    CouponCreateParams,
    CouponDeleteParams,
    CouponListParams,
    CouponRetrieveParams,
    CouponUpdateParams,
)

from sandbox import changes, discounts
from sandbox.errors import Refusal, missing, no_such
from sandbox.resources import Call, Operation, listed, merged_metadata, new_id, pick
from sandbox.store import Json, Store
from sandbox.wire import Params

KIND = "coupon"

KEPT = [
    *("amount_off", "currency", "duration", "duration_in_months", "id", "max_redemptions", "metadata"),
    *("name", "percent_off", "redeem_by"),
]


def create(call: Call) -> Json:
    given = pick(call.params, *KEPT)
    check(call.store, given)
    coupon: Json = {
        "id": new_id("", 8).lstrip("_"),
        "object": KIND,
        "amount_off": None,
        "created": call.store.now(),
        "currency": None,
        "duration": "once",
        "duration_in_months": None,
        "livemode": False,
        "max_redemptions": None,
        "metadata": {},
        "name": None,
        "percent_off": None,
        "redeem_by": None,
        "times_redeemed": 0,
        "valid": True,
    }
    return changes.created(call.store, coupon | given)


def check(store: Store, given: Params) -> None:
    if len({"amount_off", "percent_off"} & given.keys()) != 1:
        raise Refusal("You must pass either `percent_off` or `amount_off`.", param="percent_off")
    if "amount_off" in given and "currency" not in given:
        raise missing("currency")
    if not 0 < given.get("percent_off", 100) <= 100:
        raise Refusal("Invalid percent_off: must be between 0 and 100", param="percent_off")
    if given.get("amount_off", 1) < 1:
        raise Refusal("Invalid positive integer", code="parameter_invalid_integer", param="amount_off")
    if (given.get("duration") == "repeating") != ("duration_in_months" in given):
        raise Refusal(
            "`duration_in_months` goes with `duration=repeating` and with nothing else.",
            param="duration_in_months",
        )
    if given.get("redeem_by", store.now() + 1) <= store.now():
        raise Refusal("`redeem_by` must be a timestamp in the future.", param="redeem_by")
    if given.get("id") in store.collection(KIND):
        raise Refusal("Coupon already exists.", code="resource_already_exists", param="id")


def living(store: Store, id: str, *, param: str = "id") -> Json:
    coupon = store.find(KIND, id, param=param)
    if coupon.get("deleted"):
        raise no_such(KIND, id, param=param)
    return coupon


def retrieve(call: Call, id: str) -> Json:
    return living(call.store, id)


def update(call: Call, id: str) -> Json:
    coupon = living(call.store, id)
    given = pick(call.params, "metadata", "name")
    if "metadata" in given:
        given["metadata"] = merged_metadata(coupon["metadata"], given["metadata"])
    return changes.updated(call.store, coupon, **given)


def delete(call: Call, id: str) -> Json:
    coupon = living(call.store, id)
    discounts.lapse(call.store, coupon)
    changes.happened(call.store, coupon, "deleted")
    call.store.change(coupon, deleted=True)
    return {"id": id, "object": KIND, "deleted": True}


def list_coupons(call: Call) -> Json:
    among = [coupon for coupon in call.store.collection(KIND).values() if not coupon.get("deleted")]
    return listed(call, KIND, "/v1/coupons", among=among)


OPERATIONS = [
    Operation("POST", "/v1/coupons", CouponCreateParams, create),
    Operation("GET", "/v1/coupons", CouponListParams, list_coupons),
    Operation("GET", "/v1/coupons/<id>", CouponRetrieveParams, retrieve),
    Operation("POST", "/v1/coupons/<id>", CouponUpdateParams, update),
    Operation("DELETE", "/v1/coupons/<id>", CouponDeleteParams, delete),
]
