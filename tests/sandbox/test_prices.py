from typing import Any

import pytest
import stripe

from tests.sandbox.conftest import Raw
from tests.sandbox.shapes import differences
from tests.sandbox.shop import Shop

MONTHLY: Any = {"interval": "month"}


@pytest.fixture
def product(api: stripe.StripeClient) -> str:
    return api.v1.products.create({"name": "Pro"}).id


def a_price(api: stripe.StripeClient, product: str, **more: Any) -> stripe.Price:
    params: Any = {"product": product, "currency": "eur", "unit_amount": 900, "recurring": MONTHLY, **more}
    return api.v1.prices.create(params)


@pytest.mark.parametrize("recurring", [True, False])
def test_a_price_has_every_field_the_sdk_promises(
    api: stripe.StripeClient, raw: Raw, product: str, recurring: bool
) -> None:
    params: Any = {"product": product, "currency": "EUR", "unit_amount": 900}
    made = api.v1.prices.create(params | ({"recurring": MONTHLY} if recurring else {}))

    answer = raw("GET", f"/v1/prices/{made.id}").json()

    assert list(differences(stripe.Price, answer)) == []
    assert (answer["currency"], answer["type"]) == ("eur", "recurring" if recurring else "one_time")


def test_a_lookup_key_is_found_and_belongs_to_one_price(api: stripe.StripeClient, product: str) -> None:
    first = a_price(api, product, lookup_key="pro_monthly")

    with pytest.raises(stripe.InvalidRequestError, match="already uses that lookup key"):
        a_price(api, product, lookup_key="pro_monthly")

    found = api.v1.prices.list({"lookup_keys": ["pro_monthly", "none"], "expand": ["data.product"]}).data
    assert [price.id for price in found] == [first.id]
    assert isinstance(found[0].product, stripe.Product)


def test_a_lookup_key_is_handed_on_when_asked(api: stripe.StripeClient, product: str) -> None:
    first = a_price(api, product, lookup_key="pro_handed_on")

    second = a_price(api, product, lookup_key="pro_handed_on", transfer_lookup_key=True)

    assert (second.lookup_key, api.v1.prices.retrieve(first.id).lookup_key) == ("pro_handed_on", None)


def test_prices_are_listed_by_product_interval_and_whether_active(
    api: stripe.StripeClient, product: str
) -> None:
    monthly = a_price(api, product)
    yearly = a_price(api, product, recurring={"interval": "year"})
    api.v1.prices.update(monthly.id, {"active": False})

    def listed(**more: Any) -> list[str]:
        params: Any = {"product": product, **more}
        return [price.id for price in api.v1.prices.list(params).data]

    assert listed() == [yearly.id, monthly.id]
    assert listed(active=True) == [yearly.id]
    assert listed(recurring=MONTHLY) == [monthly.id]


def test_an_update_without_a_lookup_key_leaves_it(api: stripe.StripeClient, product: str) -> None:
    price = a_price(api, product, lookup_key="pro_kept")

    after = api.v1.prices.update(price.id, {"nickname": "Pro"})

    assert (after.lookup_key, after.nickname) == ("pro_kept", "Pro")


def test_usage_is_not_metered_here(api: stripe.StripeClient, product: str) -> None:
    with pytest.raises(stripe.InvalidRequestError, match="licensed"):
        a_price(api, product, recurring={"interval": "month", "usage_type": "metered"})


def test_a_subscription_shows_its_price_as_it_is_now() -> None:
    shop = Shop()
    made = shop.subscribe()

    shop.rename(shop.price, "Pro, monthly")

    assert made["items"]["data"][0]["price"]["nickname"] == "Pro, monthly"
