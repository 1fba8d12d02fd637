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
    first = a_price(api, product, lookup_key="pro_found_once")

    with pytest.raises(stripe.InvalidRequestError, match="already uses that lookup key"):
        a_price(api, product, lookup_key="pro_found_once")

    found = api.v1.prices.list({"lookup_keys": ["pro_found_once", "none"], "expand": ["data.product"]}).data
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


def test_prices_come_by_page_with_their_products(api: stripe.StripeClient, product: str) -> None:
    made = [a_price(api, product).id for _ in range(3)]

    newest = api.v1.prices.list({"product": product, "limit": 2, "expand": ["data.product"]})

    paged = list(newest.auto_paging_iter())
    assert newest.has_more
    assert [price.id for price in paged] == made[::-1]
    assert {price.product.name for price in paged if isinstance(price.product, stripe.Product)} == {"Pro"}


def test_a_change_of_metadata_is_told_with_what_was_before(api: stripe.StripeClient, product: str) -> None:
    price = a_price(api, product, metadata={"limit.projects": "5"}).id

    api.v1.prices.update(price, {"metadata": {"limit.projects": "50"}})

    event = api.v1.events.list({"type": "price.updated", "limit": 1}).data[0].to_dict()["data"]
    assert (event["object"]["id"], event["object"]["metadata"]) == (price, {"limit.projects": "50"})
    assert event["previous_attributes"] == {"metadata": {"limit.projects": "5"}}


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
