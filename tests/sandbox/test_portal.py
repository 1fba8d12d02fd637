from typing import Any

import pytest
import stripe

from sandbox.server import Control
from tests.sandbox.conftest import Raw
from tests.sandbox.shapes import differences

BACK = "https://app.example.com/settings/billing"
INVOICES: Any = {"invoice_history": {"enabled": True}}


@pytest.fixture
def customer(api: stripe.StripeClient) -> str:
    return api.v1.customers.create({"name": "Ada"}).id


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
        {"type": "subscription_cancel", "subscription_cancel": {"subscription": "sub_1"}},
        {
            "type": "subscription_update_confirm",
            "subscription_update_confirm": {
                "subscription": "sub_1",
                "items": [{"id": "si_1", "price": "price_1", "quantity": 2}],
            },
        },
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


def test_a_configuration_keeps_what_was_given_and_fills_in_the_rest(raw: Raw, api: stripe.StripeClient) -> None:
    configuration = api.v1.billing_portal.configurations.create(
        {
            "name": "Team",
            "business_profile": {"headline": "Hello"},
            "features": {
                "subscription_cancel": {"enabled": True, "mode": "immediately"},
                "subscription_update": {
                    "enabled": True,
                    "default_allowed_updates": ["price"],
                    "products": [{"product": "prod_1", "prices": ["price_1"]}],
                },
            },
        }
    )

    answer = raw("GET", f"/v1/billing_portal/configurations/{configuration.id}").json()

    assert list(differences(stripe.billing_portal.Configuration, answer)) == []
    assert answer["features"]["subscription_cancel"]["mode"] == "immediately"
    assert answer["features"]["subscription_cancel"]["proration_behavior"] == "none"
    assert not answer["features"]["invoice_history"]["enabled"]


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
