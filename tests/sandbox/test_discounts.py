"""What coupons and codes take off, from Checkout's page to the last invoice."""

from typing import Any

import pytest
import stripe
from hypothesis import given
from hypothesis import strategies as st

from sandbox import discounts
from sandbox.errors import Refusal
from sandbox.resources import checkout, coupons, promotion_codes
from sandbox.store import Json
from tests.sandbox.shapes import differences
from tests.sandbox.shop import DAY, START, Shop


@pytest.fixture
def shop() -> Shop:
    return Shop()


def a_coupon(shop: Shop, **params: Any) -> str:
    return str(coupons.create(shop.call(**{"percent_off": 25.0, **params}))["id"])


def a_code(shop: Shop, coupon: str, **params: Any) -> Json:
    return promotion_codes.create(shop.call(promotion={"type": "coupon", "coupon": coupon}, **params))


def a_session(shop: Shop, **params: Any) -> Json:
    given: Json = {"mode": "subscription", "success_url": "https://app.example/", **params}
    return checkout.create(shop.call(line_items=[{"price": shop.price, "quantity": 2}], **given))


def totals(shop: Shop) -> list[int]:
    return [invoice["total"] for invoice in shop.store.collection("invoice").values()]


def test_a_code_is_taken_off_the_session(shop: Shop) -> None:
    code = a_code(shop, a_coupon(shop))

    session = a_session(shop, discounts=[{"promotion_code": code["id"]}])

    assert list(differences(stripe.checkout.Session, session)) == []
    assert (session["amount_subtotal"], session["amount_total"]) == (2000, 1500)
    assert session["total_details"]["amount_discount"] == 500
    assert session["discounts"] == [{"coupon": None, "promotion_code": code["id"]}]
    line = checkout.list_line_items(shop.call(), session["id"])["data"][0]
    assert (line["amount_discount"], line["amount_total"]) == (500, 1500)


def test_a_completed_session_counts_as_one_redemption(shop: Shop) -> None:
    code = a_code(shop, a_coupon(shop), max_redemptions=1)
    session = a_session(shop, discounts=[{"promotion_code": code["id"]}])
    before = code["times_redeemed"]

    checkout.complete(shop.store, session["id"])

    assert (before, code["times_redeemed"], code["active"]) == (0, 1, False)


def test_the_first_invoice_is_what_the_page_said(shop: Shop) -> None:
    session = a_session(shop, discounts=[{"coupon": a_coupon(shop)}])

    checkout.complete(shop.store, session["id"])

    invoice = shop.store.find("invoice", session["invoice"])
    assert list(differences(stripe.Invoice, invoice)) == []
    assert (invoice["subtotal"], invoice["total"], invoice["amount_paid"]) == (2000, 1500, 1500)
    assert [each["amount"] for each in invoice["total_discount_amounts"]] == [500]


@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        ({"duration": "once"}, [750, 1000, 1000, 1000]),
        ({"duration": "repeating", "duration_in_months": 2}, [750, 750, 1000, 1000]),
        ({"duration": "forever"}, [750, 750, 750, 750]),
    ],
    ids=["once", "repeating", "forever"],
)
def test_a_discount_lasts_as_long_as_its_coupon_says(
    shop: Shop, duration: dict[str, Any], expected: list[int]
) -> None:
    shop.subscribe(discounts=[{"coupon": a_coupon(shop, **duration)}])

    shop.pass_days(92)

    assert totals(shop) == expected


def test_a_trial_does_not_use_up_what_applies_once(shop: Shop) -> None:
    shop.subscribe(trial_period_days=7, discounts=[{"coupon": a_coupon(shop)}])

    shop.pass_days(40)

    assert totals(shop) == [0, 750, 1000]


def test_a_discount_is_an_object_of_the_subscription_and_told_of(shop: Shop) -> None:
    made = shop.subscribe(discounts=[{"coupon": a_coupon(shop, duration="forever")}])

    [discount] = shop.store.collection("discount").values()

    assert list(differences(stripe.Discount, discount)) == []
    assert made["discounts"] == [discount["id"]]
    assert discount["subscription"] == made["id"]
    assert "customer.discount.created" in shop.told()


def test_a_deleted_coupon_goes_on_for_those_who_have_it(shop: Shop) -> None:
    coupon = a_coupon(shop, duration="forever")
    shop.subscribe(discounts=[{"coupon": coupon}])

    coupons.delete(shop.call(), coupon)
    shop.pass_days(31.5)

    assert totals(shop) == [750, 750]


def test_what_costs_nothing_at_first_needs_no_card_where_that_is_allowed(shop: Shop) -> None:
    coupon = a_coupon(shop, percent_off=100.0)
    session = a_session(shop, discounts=[{"coupon": coupon}], payment_method_collection="if_required")

    checkout.complete(shop.store, session["id"], payment_method=None)

    assert session["payment_status"] == "no_payment_required"
    assert shop.store.find("subscription", session["subscription"])["status"] == "active"


def test_a_code_can_be_typed_in_where_that_is_allowed(shop: Shop) -> None:
    a_code(shop, a_coupon(shop), code="SPRING")
    open_to_codes, closed = a_session(shop, allow_promotion_codes=True), a_session(shop)

    checkout.complete(shop.store, open_to_codes["id"], promotion_code="spring")
    with pytest.raises(Refusal, match="takes no promotion codes"):
        checkout.complete(shop.store, closed["id"], promotion_code="spring")

    assert (open_to_codes["amount_total"], totals(shop)) == (1500, [1500])


def test_a_session_takes_a_discount_or_asks_for_one(shop: Shop) -> None:
    with pytest.raises(Refusal, match="only specify one of these parameters: allow_promotion_codes, discounts"):
        a_session(shop, allow_promotion_codes=True, discounts=[{"coupon": a_coupon(shop)}])


def test_an_unknown_code_or_coupon_is_missing(shop: Shop) -> None:
    for name in ("promotion_code", "coupon"):
        with pytest.raises(Refusal) as refused:
            a_session(shop, discounts=[{name: "none"}])
        error = refused.value.body["error"]
        assert (refused.value.status, error["code"]) == (400, "resource_missing")
        assert error["param"] == f"discounts[0][{name}]"


def test_a_code_that_is_off_or_over_is_refused(shop: Shop) -> None:
    coupon = a_coupon(shop)
    off, over = a_code(shop, coupon, active=False), a_code(shop, coupon, expires_at=START + DAY)
    shop.pass_days(1)

    for code, reason in ((off, "not active"), (over, "expired")):
        with pytest.raises(Refusal, match=reason) as refused:
            a_session(shop, discounts=[{"promotion_code": code["id"]}])
        assert refused.value.body["error"]["param"] == "discounts[0][promotion_code]"
    assert not over["active"]


def test_a_coupon_that_is_over_or_used_up_is_expired(shop: Shop) -> None:
    over, used = a_coupon(shop, redeem_by=START + DAY), a_coupon(shop, max_redemptions=1)
    shop.subscribe(discounts=[{"coupon": used}])
    shop.pass_days(1)

    for coupon in (over, used):
        with pytest.raises(Refusal) as refused:
            a_session(shop, discounts=[{"coupon": coupon}])
        assert refused.value.body["error"]["code"] == "coupon_expired"


@pytest.mark.parametrize(
    "restrictions",
    [
        {"first_time_transaction": True},
        {"minimum_amount": 2001, "minimum_amount_currency": "eur"},
        {"minimum_amount": 1, "minimum_amount_currency": "usd"},
    ],
)
def test_a_code_that_is_not_for_this_order_is_refused(shop: Shop, restrictions: dict[str, Any]) -> None:
    shop.subscribe()
    code = a_code(shop, a_coupon(shop), restrictions=restrictions)

    with pytest.raises(Refusal):
        a_session(shop, customer=shop.customer, discounts=[{"promotion_code": code["id"]}])


def test_a_code_that_ends_while_the_page_is_open_is_refused_before_anything_happens(shop: Shop) -> None:
    code = a_code(shop, a_coupon(shop))
    session = a_session(shop, discounts=[{"promotion_code": code["id"]}])
    promotion_codes.update(shop.call(active=False), code["id"])
    told = len(shop.told())

    with pytest.raises(Refusal, match="not active"):
        checkout.complete(shop.store, session["id"])

    assert (session["status"], len(shop.told())) == ("open", told)


@given(
    coupon=st.one_of(
        st.builds(lambda percent: {"percent_off": percent}, st.floats(0.01, 100)),
        st.builds(lambda amount: {"percent_off": None, "amount_off": amount}, st.integers(1, 10_000)),
    ),
    amounts=st.lists(st.integers(0, 100_000), min_size=1, max_size=12),
)
def test_the_shares_of_a_discount_add_up_and_leave_nothing_below_zero(coupon: Json, amounts: list[int]) -> None:
    taken = discounts.shares(coupon, amounts)

    assert sum(taken) == discounts.off(coupon, sum(amounts))
    assert all(0 <= share <= amount for share, amount in zip(taken, amounts, strict=True))


def test_a_code_can_be_entered_to_see_what_it_takes_off(shop: Shop) -> None:
    a_code(shop, a_coupon(shop), code="LAUNCH")
    session = a_session(shop, allow_promotion_codes=True)

    totals = [checkout.enter_code(shop.store, session["id"], word)["amount_total"] for word in ("launch", None)]

    assert totals == [1500, 2000]
    assert session["discounts"] == []
    assert session["total_details"]["amount_discount"] == 0
