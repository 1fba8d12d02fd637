import secrets
from typing import Any

import pytest
import stripe

from tests.sandbox.conftest import Raw
from tests.sandbox.shapes import differences
from tests.sandbox.shop import Shop


@pytest.fixture
def product(api: stripe.StripeClient) -> str:
    return api.v1.products.create({"name": "Pro"}).id


def a_feature(api: stripe.StripeClient, **more: Any) -> stripe.entitlements.Feature:
    params: Any = {"lookup_key": f"sso-{secrets.token_hex(4)}", "name": "Single sign-on", **more}
    return api.v1.entitlements.features.create(params)


def test_a_feature_has_every_field_the_sdk_promises(api: stripe.StripeClient, raw: Raw) -> None:
    made = a_feature(api, lookup_key="audit-log", metadata={"team": "core"})

    answer = raw("GET", f"/v1/entitlements/features/{made.id}").json()

    assert list(differences(stripe.entitlements.Feature, answer)) == []
    assert (answer["lookup_key"], answer["metadata"], answer["active"]) == ("audit-log", {"team": "core"}, True)


def test_a_lookup_key_belongs_to_one_feature(api: stripe.StripeClient) -> None:
    made = a_feature(api)

    with pytest.raises(stripe.InvalidRequestError, match="already exists") as refused:
        a_feature(api, lookup_key=made.lookup_key)

    assert refused.value.param == "lookup_key"


def test_the_lookup_key_of_an_archived_feature_is_free(api: stripe.StripeClient) -> None:
    made = a_feature(api)
    api.v1.entitlements.features.update(made.id, {"active": False})

    another = a_feature(api, lookup_key=made.lookup_key)

    assert another.id != made.id


def test_a_lookup_key_longer_than_stripe_takes_is_refused(api: stripe.StripeClient) -> None:
    with pytest.raises(stripe.InvalidRequestError, match="80 characters"):
        a_feature(api, lookup_key="k" * 81)


def test_a_feature_can_be_renamed(api: stripe.StripeClient) -> None:
    made = a_feature(api, metadata={"a": "1", "b": "2"})

    changed = api.v1.entitlements.features.update(made.id, {"name": "SSO", "metadata": {"a": ""}})

    assert (changed.name, changed.to_dict()["metadata"]) == ("SSO", {"b": "2"})


def test_an_archived_feature_stays_as_it_is(api: stripe.StripeClient) -> None:
    made = a_feature(api)
    api.v1.entitlements.features.update(made.id, {"active": False})

    with pytest.raises(stripe.InvalidRequestError, match="archived"):
        api.v1.entitlements.features.update(made.id, {"active": True})


def test_features_are_listed_by_key_and_whether_archived(api: stripe.StripeClient) -> None:
    retired = a_feature(api)
    api.v1.entitlements.features.update(retired.id, {"active": False})
    current = a_feature(api, lookup_key=retired.lookup_key)

    def listed(**more: Any) -> list[str]:
        params: Any = {"lookup_key": retired.lookup_key, **more}
        return [feature.id for feature in api.v1.entitlements.features.list(params).data]

    assert listed() == [current.id]
    assert listed(archived=False) == [current.id]
    assert listed(archived=True) == [retired.id]


def test_features_come_by_page(api: stripe.StripeClient) -> None:
    made = [a_feature(api).id for _ in range(3)]

    newest = api.v1.entitlements.features.list({"limit": 2})
    older = api.v1.entitlements.features.list({"limit": 1, "starting_after": newest.data[-1].id})

    assert [feature.id for feature in [*newest.data, *older.data]] == made[::-1]


def test_an_attachment_has_every_field_the_sdk_promises(
    api: stripe.StripeClient, raw: Raw, product: str
) -> None:
    feature = a_feature(api)
    made = api.v1.products.features.create(product, {"entitlement_feature": feature.id})

    answer = raw("GET", f"/v1/products/{product}/features/{made.id}").json()

    assert list(differences(stripe.ProductFeature, answer)) == []
    assert answer["entitlement_feature"]["id"] == feature.id


def test_what_is_attached_to_a_product_is_listed_by_page(api: stripe.StripeClient, product: str) -> None:
    features = [a_feature(api).id for _ in range(11)]
    for feature in features:
        api.v1.products.features.create(product, {"entitlement_feature": feature})

    first = api.v1.products.features.list(product)
    rest = api.v1.products.features.list(product, {"starting_after": first.data[-1].id})

    attached = [one.entitlement_feature.id for one in [*first.data, *rest.data]]
    assert (len(first.data), first.has_more, rest.has_more) == (10, True, False)
    assert attached == features[::-1]


def test_what_was_detached_is_gone(api: stripe.StripeClient, product: str) -> None:
    made = api.v1.products.features.create(product, {"entitlement_feature": a_feature(api).id})

    gone = api.v1.products.features.delete(product, made.id)

    assert (gone.id, gone.deleted) == (made.id, True)
    assert api.v1.products.features.list(product).data == []
    with pytest.raises(stripe.InvalidRequestError, match="No such product_feature"):
        api.v1.products.features.retrieve(product, made.id)


def test_an_attachment_is_found_at_its_own_product_only(api: stripe.StripeClient, product: str) -> None:
    made = api.v1.products.features.create(product, {"entitlement_feature": a_feature(api).id})
    other = api.v1.products.create({"name": "Team"}).id

    with pytest.raises(stripe.InvalidRequestError, match="No such product_feature"):
        api.v1.products.features.delete(other, made.id)


def test_a_feature_is_attached_once(api: stripe.StripeClient, product: str) -> None:
    feature = a_feature(api).id
    api.v1.products.features.create(product, {"entitlement_feature": feature})

    with pytest.raises(stripe.InvalidRequestError, match="already attached"):
        api.v1.products.features.create(product, {"entitlement_feature": feature})


def test_an_archived_feature_cannot_be_attached(api: stripe.StripeClient, product: str) -> None:
    feature = a_feature(api).id
    api.v1.entitlements.features.update(feature, {"active": False})

    with pytest.raises(stripe.InvalidRequestError, match="archived"):
        api.v1.products.features.create(product, {"entitlement_feature": feature})


def test_nobody_is_told_of_features() -> None:
    shop = Shop()
    before = shop.told()

    shop.removes(shop.adds("sso"))

    assert shop.told() == before
