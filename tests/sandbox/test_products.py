import pytest
import stripe

from tests.sandbox.conftest import Raw
from tests.sandbox.shapes import differences


def test_a_product_has_every_field_the_sdk_promises(api: stripe.StripeClient, raw: Raw) -> None:
    made = api.v1.products.create({"name": "Pro", "description": "All of it", "metadata": {"plan": "pro"}})

    answer = raw("GET", f"/v1/products/{made.id}").json()

    assert list(differences(stripe.Product, answer)) == []
    assert (answer["name"], answer["metadata"]) == ("Pro", {"plan": "pro"})


def test_a_product_may_bring_its_own_id_once(api: stripe.StripeClient) -> None:
    made = api.v1.products.create({"name": "Pro", "id": "pro_of_its_own"})

    with pytest.raises(stripe.InvalidRequestError, match="already exists"):
        api.v1.products.create({"name": "Pro", "id": made.id})


def test_products_are_listed_by_whether_they_are_sold(api: stripe.StripeClient) -> None:
    sold, retired = (api.v1.products.create({"name": "Pro"}).id for _ in range(2))
    api.v1.products.update(retired, {"active": False})

    found = api.v1.products.list({"ids": [sold, retired], "active": True}).data

    assert [product.id for product in found] == [sold]


def test_a_product_with_prices_stays(api: stripe.StripeClient) -> None:
    product = api.v1.products.create({"name": "Pro"}).id
    api.v1.prices.create({"product": product, "currency": "eur", "unit_amount": 100})

    with pytest.raises(stripe.InvalidRequestError, match="prices"):
        api.v1.products.delete(product)


def test_a_deleted_product_is_gone(api: stripe.StripeClient) -> None:
    product = api.v1.products.create({"name": "Pro"}).id

    api.v1.products.delete(product)

    with pytest.raises(stripe.InvalidRequestError, match="No such product"):
        api.v1.products.retrieve(product)
