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


def test_products_come_by_page(api: stripe.StripeClient) -> None:
    made = [api.v1.products.create({"name": "Pro"}).id for _ in range(3)]

    newest = api.v1.products.list({"limit": 2, "active": True})
    older = api.v1.products.list({"limit": 1, "active": True, "starting_after": newest.data[-1].id})

    assert [product.id for product in [*newest.data, *older.data]] == made[::-1]
    assert newest.has_more


def test_a_change_of_metadata_is_told_with_what_was_before(api: stripe.StripeClient) -> None:
    product = api.v1.products.create({"name": "Pro", "metadata": {"limit.projects": "5"}}).id

    api.v1.products.update(product, {"metadata": {"limit.projects": "50"}})

    event = api.v1.events.list({"type": "product.updated", "limit": 1}).data[0].to_dict()["data"]
    assert (event["object"]["id"], event["object"]["metadata"]) == (product, {"limit.projects": "50"})
    assert event["previous_attributes"]["metadata"] == {"limit.projects": "5"}


def test_the_end_of_a_product_is_told(api: stripe.StripeClient) -> None:
    product = api.v1.products.create({"name": "Pro"}).id

    api.v1.products.delete(product)

    event = api.v1.events.list({"type": "product.deleted", "limit": 1}).data[0]
    assert event.data.object["id"] == product
