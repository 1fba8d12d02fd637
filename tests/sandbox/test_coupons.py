"""Coupons and promotion codes as resources: made, found, changed, refused."""

import time
from typing import Any

import pytest
import stripe

from tests.sandbox.conftest import Raw
from tests.sandbox.shapes import differences


@pytest.fixture
def coupon(api: stripe.StripeClient) -> str:
    return api.v1.coupons.create({"percent_off": 25, "duration": "once"}).id


def a_code(api: stripe.StripeClient, coupon: str, **more: Any) -> stripe.PromotionCode:
    params: Any = {"promotion": {"type": "coupon", "coupon": coupon}, **more}
    return api.v1.promotion_codes.create(params)


def test_a_coupon_has_every_field_the_sdk_promises(api: stripe.StripeClient, raw: Raw) -> None:
    made = api.v1.coupons.create(
        {
            "amount_off": 500,
            "currency": "eur",
            "duration": "repeating",
            "duration_in_months": 3,
            "name": "Spring",
        }
    )

    answer = raw("GET", f"/v1/coupons/{made.id}").json()

    assert list(differences(stripe.Coupon, answer)) == []
    assert (answer["amount_off"], answer["percent_off"], answer["valid"]) == (500, None, True)


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({}, "percent_off"),
        ({"percent_off": 10, "amount_off": 5, "currency": "eur"}, "percent_off"),
        ({"percent_off": 101}, "percent_off"),
        ({"amount_off": 5}, "currency"),
        ({"percent_off": 10, "duration": "repeating"}, "duration_in_months"),
        ({"percent_off": 10, "redeem_by": 1}, "redeem_by"),
    ],
)
def test_a_coupon_that_makes_no_sense_is_refused(api: stripe.StripeClient, params: Any, param: str) -> None:
    with pytest.raises(stripe.InvalidRequestError) as refused:
        api.v1.coupons.create(params)

    assert refused.value.param == param


def test_a_coupon_can_be_renamed(api: stripe.StripeClient, coupon: str) -> None:
    api.v1.coupons.update(coupon, {"name": "Autumn", "metadata": {"campaign": "a"}})

    assert api.v1.coupons.retrieve(coupon).name == "Autumn"


def test_a_deleted_coupon_is_gone_and_so_are_its_codes(api: stripe.StripeClient, coupon: str) -> None:
    code = a_code(api, coupon)

    api.v1.coupons.delete(coupon)

    with pytest.raises(stripe.InvalidRequestError, match="No such coupon"):
        api.v1.coupons.retrieve(coupon)
    assert coupon not in [each.id for each in api.v1.coupons.list().data]
    assert not api.v1.promotion_codes.retrieve(code.id).active


def test_a_code_has_every_field_the_sdk_promises(api: stripe.StripeClient, raw: Raw, coupon: str) -> None:
    made = a_code(api, coupon, restrictions={"first_time_transaction": True}, metadata={"campaign": "a"})

    answer = raw("GET", f"/v1/promotion_codes/{made.id}", params={"expand[]": "promotion.coupon"}).json()

    assert list(differences(stripe.PromotionCode, answer)) == []
    assert answer["promotion"]["coupon"]["percent_off"] == 25.0


def test_a_code_is_found_by_what_customers_type(api: stripe.StripeClient, coupon: str) -> None:
    api.v1.promotion_codes.update(a_code(api, coupon, code="TYPED-IN").id, {"active": False})
    made = a_code(api, coupon, code="TYPED-IN")

    found = api.v1.promotion_codes.list({"code": "typed-in", "active": True}).data

    assert [code.id for code in found] == [made.id]


def test_two_active_codes_are_never_the_same(api: stripe.StripeClient, coupon: str) -> None:
    a_code(api, coupon, code="ONLYONE")

    with pytest.raises(stripe.InvalidRequestError, match="already exists"):
        a_code(api, coupon, code="OnlyOne")


def test_a_code_needs_a_coupon_that_exists(api: stripe.StripeClient) -> None:
    with pytest.raises(stripe.InvalidRequestError) as refused:
        a_code(api, "nothing")

    assert (refused.value.code, refused.value.param) == ("resource_missing", "promotion[coupon]")


def test_a_code_is_switched_off_and_on(api: stripe.StripeClient, coupon: str) -> None:
    code = a_code(api, coupon, expires_at=int(time.time()) + 400 * 24 * 3600)

    states = [api.v1.promotion_codes.update(code.id, {"active": on}).active for on in (False, True)]

    assert states == [False, True]


def test_a_code_of_a_dead_coupon_stays_off(api: stripe.StripeClient, coupon: str) -> None:
    code = a_code(api, coupon)
    api.v1.coupons.delete(coupon)

    with pytest.raises(stripe.InvalidRequestError, match="cannot be reactivated"):
        api.v1.promotion_codes.update(code.id, {"active": True})
