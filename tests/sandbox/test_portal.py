from dataclasses import dataclass
from typing import Any

import pytest
import stripe

from sandbox.server import Control
from tests.sandbox.conftest import Raw
from tests.sandbox.shapes import differences

BACK = "https://app.example.com/settings/billing"
INVOICES: Any = {"invoice_history": {"enabled": True}}
PRODUCTS: Any = ["features.subscription_update.products"]


@pytest.fixture
def customer(api: stripe.StripeClient) -> str:
    return api.v1.customers.create({"name": "Ada"}).id


@dataclass
class Offer:
    """A product of two prices, and a configuration in which customers may change between them."""

    product: str
    monthly: str
    yearly: str
    configuration: str


@pytest.fixture
def offer(api: stripe.StripeClient) -> Offer:
    product = api.v1.products.create({"name": "Pro"}).id
    monthly, yearly = (a_price(api, product, interval) for interval in ("month", "year"))
    params: Any = {"features": updates(product, monthly, yearly)}
    configuration = api.v1.billing_portal.configurations.create(params).id
    return Offer(product, monthly, yearly, configuration)


def a_price(api: stripe.StripeClient, product: str, interval: Any = "month") -> str:
    return api.v1.prices.create(
        {"product": product, "currency": "eur", "unit_amount": 900, "recurring": {"interval": interval}}
    ).id


def updates(product: str, *prices: str) -> Any:
    return {
        "payment_method_update": {"enabled": True},
        "subscription_cancel": {"enabled": True, "mode": "immediately"},
        "subscription_update": {
            "enabled": True,
            "default_allowed_updates": ["price", "quantity"],
            "products": [{"product": product, "prices": list(prices)}],
        },
    }


def subscribed(api: stripe.StripeClient, customer: str, *prices: str, **more: Any) -> stripe.Subscription:
    params: Any = {
        "customer": customer,
        "items": [{"price": price} for price in prices],
        "trial_period_days": 30,
        **more,
    }
    return api.v1.subscriptions.create(params)


def item_of(subscription: stripe.Subscription) -> str:
    return str(subscription.to_dict()["items"]["data"][0]["id"])


def opened(api: stripe.StripeClient, customer: str, offer: Offer, kind: str, **details: Any) -> Any:
    """A session of the offer's configuration, for one flow."""
    params: Any = {
        "customer": customer,
        "configuration": offer.configuration,
        "flow_data": {"type": kind, kind: details},
    }
    return api.v1.billing_portal.sessions.create(params)


def test_a_session_belongs_to_its_customer_and_returns_to_the_app(
    sandbox: Control, api: stripe.StripeClient, customer: str
) -> None:
    session = api.v1.billing_portal.sessions.create({"customer": customer, "return_url": BACK, "locale": "de"})

    assert (session.customer, session.return_url, session.locale) == (customer, BACK, "de")
    assert session.url.startswith(sandbox.url.replace("127.0.0.1", "localhost") + "/p/session/test_")


@pytest.mark.parametrize(
    "flow",
    [
        {"type": "payment_method_update"},
        {"type": "customer_update", "after_completion": {"type": "redirect", "redirect": {"return_url": BACK}}},
    ],
    ids=lambda flow: str(flow["type"]),
)
def test_a_session_has_every_field_the_sdk_promises(raw: Raw, customer: str, flow: dict[str, Any]) -> None:
    form = dict(stripe._encode._api_encode({"customer": customer, "flow_data": flow, "return_url": BACK}))

    answer = raw("POST", "/v1/billing_portal/sessions", data=form).json()

    assert list(differences(stripe.billing_portal.Session, answer)) == []
    assert {name: answer["flow"][name] for name in flow if name != "after_completion"} == {
        name: flow[name] for name in flow if name != "after_completion"
    }


def test_the_flows_of_a_subscription_have_every_field_too(
    api: stripe.StripeClient, raw: Raw, customer: str, offer: Offer
) -> None:
    made = subscribed(api, customer, offer.monthly)
    item = {"id": item_of(made), "price": offer.yearly, "quantity": 2}
    for kind, more in {
        "subscription_cancel": {},
        "subscription_update": {},
        "subscription_update_confirm": {"items": [item]},
    }.items():
        details = {"subscription": made.id, **more}
        params = {
            "customer": customer,
            "configuration": offer.configuration,
            "flow_data": {"type": kind, kind: details},
        }

        answer = raw(
            "POST", "/v1/billing_portal/sessions", data=dict(stripe._encode._api_encode(params))
        ).json()

        assert list(differences(stripe.billing_portal.Session, answer)) == []
        assert answer["flow"][kind] == details


@pytest.mark.parametrize("kind", ["subscription_cancel", "subscription_update"])
def test_a_flow_is_about_a_subscription_of_the_customer(
    api: stripe.StripeClient, customer: str, offer: Offer, kind: str
) -> None:
    another = subscribed(api, api.v1.customers.create().id, offer.monthly).id

    for id in (another, "sub_none"):
        with pytest.raises(stripe.InvalidRequestError, match="No such subscription") as refused:
            opened(api, customer, offer, kind, subscription=id)
        assert refused.value.code == "resource_missing"
        assert refused.value.param == f"flow_data[{kind}][subscription]"


@pytest.mark.parametrize("kind", ["subscription_cancel", "subscription_update"])
def test_a_flow_is_about_a_subscription_that_is_alive(
    api: stripe.StripeClient, customer: str, offer: Offer, kind: str
) -> None:
    made = subscribed(api, customer, offer.monthly).id
    api.v1.subscriptions.cancel(made)

    with pytest.raises(stripe.InvalidRequestError, match="because it is canceled"):
        opened(api, customer, offer, kind, subscription=made)


def test_a_flow_needs_its_feature(api: stripe.StripeClient, customer: str, offer: Offer) -> None:
    made = subscribed(api, customer, offer.monthly).id
    offer.configuration = api.v1.billing_portal.configurations.create({"features": INVOICES}).id

    for kind, what in (("subscription_cancel", "canceled"), ("subscription_update", "updated")):
        with pytest.raises(stripe.InvalidRequestError, match=f"cannot be {what} because .* is disabled"):
            opened(api, customer, offer, kind, subscription=made)


def test_several_items_cannot_be_changed_in_the_portal(
    api: stripe.StripeClient, customer: str, offer: Offer
) -> None:
    made = subscribed(api, customer, offer.monthly, a_price(api, offer.product)).id

    with pytest.raises(stripe.InvalidRequestError, match="multiple items"):
        opened(api, customer, offer, "subscription_update", subscription=made)

    assert opened(api, customer, offer, "subscription_cancel", subscription=made).url


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([{"id": "OWN", "quantity": 2}, {"id": "OWN", "quantity": 3}], "Exactly one item"),
        ([{"id": "si_none", "quantity": 2}], "No such subscription_item"),
        ([{"id": "OWN", "price": "price_none"}], "must also be included in the configuration"),
        ([{"id": "OWN", "quantity": 1}], "there are no changes to confirm"),
    ],
    ids=["two", "another's", "not offered", "no change"],
)
def test_a_change_to_confirm_is_one_the_portal_offers(
    api: stripe.StripeClient, customer: str, offer: Offer, items: list[dict[str, Any]], reason: str
) -> None:
    made = subscribed(api, customer, offer.monthly)
    items = [item | {"id": item["id"].replace("OWN", item_of(made))} for item in items]

    with pytest.raises(stripe.InvalidRequestError, match=reason):
        opened(api, customer, offer, "subscription_update_confirm", subscription=made.id, items=items)


def test_a_flow_needs_its_details(api: stripe.StripeClient, customer: str) -> None:
    with pytest.raises(stripe.InvalidRequestError) as refused:
        api.v1.billing_portal.sessions.create(
            {"customer": customer, "flow_data": {"type": "subscription_cancel"}}
        )

    assert (refused.value.code, refused.value.param) == ("parameter_missing", "flow_data[subscription_cancel]")


def test_a_session_needs_a_customer(api: stripe.StripeClient) -> None:
    with pytest.raises(stripe.InvalidRequestError, match="Missing required param: customer") as refused:
        api.v1.billing_portal.sessions.create({"return_url": BACK})

    assert refused.value.param == "customer"


@pytest.mark.parametrize("was_deleted", [False, True], ids=["never there", "deleted"])
def test_a_session_needs_a_customer_that_exists(
    api: stripe.StripeClient, customer: str, was_deleted: bool
) -> None:
    if was_deleted:
        api.v1.customers.delete(customer)
    else:
        customer = "cus_none"

    with pytest.raises(stripe.InvalidRequestError, match=f"No such customer: '{customer}'") as refused:
        api.v1.billing_portal.sessions.create({"customer": customer})

    # 400, not 404: the address exists, a parameter names something that does not
    error = refused.value
    assert (error.http_status, error.code, error.param) == (400, "resource_missing", "customer")


@pytest.mark.parametrize("url", ["app.example.com", "javascript:alert(1)", "https://", "/settings"])
def test_a_return_address_is_absolute(api: stripe.StripeClient, customer: str, url: str) -> None:
    with pytest.raises(stripe.InvalidRequestError) as refused:
        api.v1.billing_portal.sessions.create({"customer": customer, "return_url": url})

    assert (refused.value.code, refused.value.param) == ("url_invalid", "return_url")


def test_without_a_configuration_the_default_one_is_used(api: stripe.StripeClient, customer: str) -> None:
    session = api.v1.billing_portal.sessions.create({"customer": customer})

    default = api.v1.billing_portal.configurations.list({"is_default": True}).data
    assert [c.id for c in default] == [session.configuration]
    assert default[0].active


def test_a_session_takes_its_return_address_from_its_configuration(
    api: stripe.StripeClient, customer: str
) -> None:
    configuration = api.v1.billing_portal.configurations.create(
        {"features": INVOICES, "default_return_url": BACK}
    )

    session = api.v1.billing_portal.sessions.create(
        {"customer": customer, "configuration": configuration.id, "expand": ["configuration"]}
    )

    assert session.return_url == BACK
    assert isinstance(session.configuration, stripe.billing_portal.Configuration)
    assert session.configuration.id == configuration.id


def test_a_configuration_that_is_off_or_unknown_opens_nothing(api: stripe.StripeClient, customer: str) -> None:
    off = api.v1.billing_portal.configurations.create({"features": INVOICES}).id
    api.v1.billing_portal.configurations.update(off, {"active": False})

    for id in (off, "bpc_none"):
        with pytest.raises(stripe.InvalidRequestError) as refused:
            api.v1.billing_portal.sessions.create({"customer": customer, "configuration": id})
        assert refused.value.param == "configuration"


def test_a_configuration_keeps_what_was_given_and_fills_in_the_rest(
    raw: Raw, api: stripe.StripeClient, offer: Offer
) -> None:
    configuration = api.v1.billing_portal.configurations.create(
        {
            "name": "Team",
            "business_profile": {"headline": "Hello"},
            "features": updates(offer.product, offer.monthly),
        }
    )

    answer = raw(
        "GET", f"/v1/billing_portal/configurations/{configuration.id}", params={"expand[]": PRODUCTS}
    ).json()

    assert list(differences(stripe.billing_portal.Configuration, answer)) == []
    assert answer["features"]["subscription_cancel"]["mode"] == "immediately"
    assert answer["features"]["subscription_cancel"]["proration_behavior"] == "none"
    assert not answer["features"]["invoice_history"]["enabled"]


def test_products_are_told_only_to_those_who_expand_them(api: stripe.StripeClient, offer: Offer) -> None:
    configurations = api.v1.billing_portal.configurations

    plain = configurations.retrieve(offer.configuration).to_dict()
    asked = configurations.retrieve(offer.configuration, {"expand": PRODUCTS}).to_dict()
    listed = configurations.list({"limit": 1, "expand": [f"data.{PRODUCTS[0]}"]}).to_dict()["data"][0]

    assert "products" not in plain["features"]["subscription_update"]
    [entry] = asked["features"]["subscription_update"]["products"]
    assert (entry["product"], entry["prices"]) == (offer.product, [offer.monthly, offer.yearly])
    assert listed["features"]["subscription_update"]["products"] == [entry]


def test_products_can_be_changed_later(api: stripe.StripeClient, offer: Offer) -> None:
    configurations = api.v1.billing_portal.configurations

    params: Any = {"features": updates(offer.product, offer.yearly), "expand": PRODUCTS}
    after = configurations.update(offer.configuration, params).to_dict()

    assert after["features"]["subscription_update"]["products"][0]["prices"] == [offer.yearly]


def test_a_configuration_offers_only_prices_of_its_products(api: stripe.StripeClient, offer: Offer) -> None:
    other = a_price(api, api.v1.products.create({"name": "Other"}).id)

    for prices in ([other], ["price_none"]):
        with pytest.raises(stripe.InvalidRequestError) as refused:
            api.v1.billing_portal.configurations.create({"features": updates(offer.product, *prices)})
        assert refused.value.param == "features[subscription_update][products][0][prices][0]"


def test_changes_of_subscriptions_want_changes_of_cards(api: stripe.StripeClient, offer: Offer) -> None:
    features = updates(offer.product, offer.monthly) | {"payment_method_update": {"enabled": False}}

    with pytest.raises(stripe.InvalidRequestError, match="while payment method update is disabled"):
        api.v1.billing_portal.configurations.create({"features": features})


def test_the_default_configuration_cannot_be_switched_off(api: stripe.StripeClient) -> None:
    default = api.v1.billing_portal.configurations.list({"is_default": True}).data[0]

    with pytest.raises(stripe.InvalidRequestError, match="default"):
        api.v1.billing_portal.configurations.update(default.id, {"active": False})


def test_configurations_are_listed_by_page_newest_first(raw: Raw, api: stripe.StripeClient) -> None:
    made = [api.v1.billing_portal.configurations.create({"features": INVOICES}).id for _ in range(3)]

    first = api.v1.billing_portal.configurations.list({"limit": 2})
    second = api.v1.billing_portal.configurations.list({"limit": 1, "starting_after": first.data[-1].id})
    back = api.v1.billing_portal.configurations.list({"limit": 2, "ending_before": second.data[0].id})

    assert [c.id for c in first.data] == made[:0:-1]
    assert first.has_more
    assert second.data[0].id == made[0]
    assert back.data == first.data
    answer = raw("GET", "/v1/billing_portal/configurations?limit=3").json()
    assert list(differences(stripe.ListObject[stripe.billing_portal.Configuration], answer)) == []


@pytest.mark.parametrize("limit", [0, 101])
def test_a_page_has_1_to_100_entries(api: stripe.StripeClient, limit: int) -> None:
    with pytest.raises(stripe.InvalidRequestError) as refused:
        api.v1.billing_portal.configurations.list({"limit": limit})

    assert refused.value.param == "limit"
