"""What the sandbox makes of a request before any resource sees it."""

import pytest
import stripe

from sandbox.server import Control
from sandbox.wire import decode
from tests.sandbox.conftest import Raw, client_for, wait_until

SESSIONS = "/v1/billing_portal/sessions"
CONFIGURATIONS = "/v1/billing_portal/configurations"

REFUSED = {
    "unknown": (SESSIONS, "nonsense=1", "nonsense", "parameter_unknown"),
    "unknown in a hash": (SESSIONS, "flow_data[typ]=x", "flow_data[typ]", "parameter_unknown"),
    "an option of the SDK": (SESSIONS, "api_key=sk_test_x", "api_key", "parameter_unknown"),
    "unknown in a list": (
        SESSIONS,
        "flow_data[type]=subscription_update_confirm"
        "&flow_data[subscription_update_confirm][subscription]=sub_1"
        "&flow_data[subscription_update_confirm][items][0][prize]=1",
        "flow_data[subscription_update_confirm][items][0][prize]",
        "parameter_unknown",
    ),
    "missing in a hash": (
        SESSIONS,
        "flow_data[after_completion][type]=portal_homepage",
        "flow_data[type]",
        "parameter_missing",
    ),
    "missing": (CONFIGURATIONS, "name=x", "features", "parameter_missing"),
    "enum": (SESSIONS, "locale=xx", "locale", None),
    "enum in a hash": (SESSIONS, "flow_data[type]=dance", "flow_data[type]", None),
    "enum in a list": (
        CONFIGURATIONS,
        "features[customer_update][enabled]=true&features[customer_update][allowed_updates][0]=shoes",
        "features[customer_update][allowed_updates][0]",
        None,
    ),
    "integer": ("/v1/customers", "balance=two", "balance", "parameter_invalid_integer"),
    "a fraction": ("/v1/customers", "balance=2.5", "balance", "parameter_invalid_integer"),
    "boolean": (
        CONFIGURATIONS,
        "features[invoice_history][enabled]=yes",
        "features[invoice_history][enabled]",
        None,
    ),
    "a hash for a string": ("/v1/customers", "name[first]=Ada", "name", None),
    "a string for a hash": (SESSIONS, "flow_data=payment_method_update", "flow_data", None),
    "a string for a list": ("/v1/customers", "preferred_locales=de", "preferred_locales", None),
    "both at once": ("/v1/customers", "name=Ada&name[first]=Ada", "name[first]", None),
    "empty": (SESSIONS, "customer=", "customer", "parameter_invalid_empty"),
    "empty in a list": ("/v1/customers", "expand[]=", "expand[0]", "parameter_invalid_empty"),
    "less than nothing": (
        "/v1/prices",
        "currency=eur&unit_amount=-1",
        "unit_amount",
        "parameter_invalid_integer",
    ),
    "a long key": ("/v1/customers", f"metadata[{'k' * 41}]=v", "metadata", None),
    "a long value": ("/v1/customers", f"metadata[k]={'v' * 501}", "metadata", None),
}


@pytest.mark.parametrize(("path", "form", "param", "code"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_parameter_is_refused_by_name(
    raw: Raw, path: str, form: str, param: str, code: str | None
) -> None:
    answer = raw("POST", path, data=form, headers={"Content-Type": "application/x-www-form-urlencoded"})

    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert (error["param"], error.get("code")) == (param, code)


REFUSED_QUERIES = {
    "unknown": ("nonsense=1", "nonsense", "parameter_unknown"),
    "an option of the SDK": ("idempotency_key=k", "idempotency_key", "parameter_unknown"),
    "integer": ("limit=ten", "limit", "parameter_invalid_integer"),
    "empty": ("email=", "email", "parameter_invalid_empty"),
    "nothing after the name": ("limit", "limit", "parameter_invalid_empty"),
    "not expandable": ("expand[]=data.email", "expand", None),
    "an id to expand": ("expand[]=data.id", "expand", None),
    "a part to expand": ("expand[]=data.metadata", "expand", None),
    "too deep": ("expand[]=data.a.b.c.d", None, "property_expansion_max_depth"),
}


@pytest.mark.parametrize(("query", "param", "code"), REFUSED_QUERIES.values(), ids=REFUSED_QUERIES)
def test_a_query_is_read_as_strictly_as_a_form(
    raw: Raw, query: str, param: str | None, code: str | None
) -> None:
    raw("POST", "/v1/customers", data={"email": "ada@acme.example"})

    answer = raw("GET", f"/v1/customers?{query}")

    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert (error.get("param"), error.get("code")) == (param, code)


@pytest.mark.parametrize(
    ("name", "value", "status", "words"),
    [
        ("Stripe-Version", "2026-1-1", 400, "Invalid Stripe API version: 2026-1-1"),
        ("Stripe-Version", "2024-06-20", 501, "the API version 2024-06-20"),
        ("Stripe-Account", "acct_1", 403, "does not have access to account 'acct_1'"),
    ],
)
def test_a_header_is_not_passed_over(raw: Raw, name: str, value: str, status: int, words: str) -> None:
    answer = raw("GET", "/v1/customers", headers={name: value})

    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("a=1&b=", {"a": "1", "b": ""}),
        ("a[b][c]=1&a[d]=2", {"a": {"b": {"c": "1"}, "d": "2"}}),
        ("a[1]=y&a[0]=x", {"a": ["x", "y"]}),
        ("a[]=x&a[]=y", {"a": ["x", "y"]}),
        ("a[0][b]=x&a[1][b]=y", {"a": [{"b": "x"}, {"b": "y"}]}),
        ("a[5]=x", {"a": {"5": "x"}}),
        ("a%5Bb%5D=%C3%A9+1", {"a": {"b": "é 1"}}),
    ],
)
def test_a_form_is_read_as_nested_values(text: str, tree: object) -> None:
    assert decode(text) == tree


def test_a_number_is_a_fine_name_for_metadata(api: stripe.StripeClient) -> None:
    customer = api.v1.customers.create({"metadata": {"0": "zero", "1": "one"}})

    assert customer.to_dict()["metadata"] == {"0": "zero", "1": "one"}


def test_json_is_not_what_stripe_reads(raw: Raw) -> None:
    answer = raw("POST", "/v1/customers", json={"name": "Ada"})

    assert answer.status_code == 400
    assert "application/x-www-form-urlencoded" in answer.json()["error"]["message"]


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PUT"])
def test_what_the_sandbox_does_not_speak_is_named(raw: Raw, method: str) -> None:
    answer = raw(method, "/v1/charges/ch_1")

    assert answer.status_code == 501
    assert f"{method} /v1/charges/ch_1" in answer.json()["error"]["message"]


def test_the_key_may_come_as_basic_user_name(sandbox: Control, raw: Raw) -> None:
    answer = raw("GET", CONFIGURATIONS, auth=(sandbox.key, ""))

    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("", "You did not provide an API key."),
        ("sk_test_another_one_1234", "Invalid API Key provided: sk_test_********1234"),
        ("sk_live_1234567890abcdef", "A live key was sent to the sandbox."),
        ("rk_live_1234567890abcdef", "A live key was sent to the sandbox."),
    ],
    ids=["none", "another", "live", "restricted live"],
)
def test_another_key_is_refused_and_not_repeated(raw: Raw, key: str, message: str) -> None:
    answer = raw("POST", "/v1/customers", key=key)

    assert answer.status_code == 401
    assert answer.json()["error"]["message"].startswith(message)
    assert not key or key not in answer.text


def test_the_sdk_takes_a_wrong_key_for_what_it_is(sandbox: Control, api: stripe.StripeClient) -> None:
    with pytest.raises(stripe.AuthenticationError):
        api.v1.customers.create({}, {"api_key": "sk_test_wrong"})


def test_every_answer_says_which_request_and_version_it_is_for(raw: Raw) -> None:
    asked = raw("GET", CONFIGURATIONS, headers={"Stripe-Version": stripe.api_version})
    silent = raw("GET", "/v1/customers/cus_none")

    assert asked.headers["Stripe-Version"] == stripe.api_version
    assert silent.headers["Stripe-Version"] == stripe.api_version
    assert asked.headers["Request-Id"].startswith("req_")
    assert asked.headers["Request-Id"] != silent.headers["Request-Id"]
    assert asked.headers["Date"].endswith("GMT")


def test_what_was_asked_is_noted_newest_last(sandbox: Control, api: stripe.StripeClient) -> None:
    customer = api.v1.customers.create({"metadata": {"a": "1"}}, {"idempotency_key": "k-noted"}).id
    api.v1.customers.retrieve(customer)

    created, retrieved = sandbox.requests()

    assert (created["method"], created["path"], created["status"]) == ("POST", "/v1/customers", 200)
    assert (created["params"], created["idempotency_key"]) == ({"metadata": {"a": "1"}}, "k-noted")
    assert (retrieved["method"], retrieved["path"]) == ("GET", f"/v1/customers/{customer}")
    assert retrieved["stripe_version"] == stripe.api_version
    assert retrieved["at"] >= created["at"]


def test_the_sdk_keeps_its_connection(sandbox: Control, api: stripe.StripeClient) -> None:
    before = sandbox.connections()["opened"]

    for _ in range(5):
        api.v1.customers.create()

    assert sandbox.connections()["opened"] == before + 1
    assert len({noted["connection"] for noted in sandbox.requests()}) == 1


def test_a_returned_connection_is_no_longer_open(sandbox: Control) -> None:
    http_client = stripe.RequestsClient()
    client_for(sandbox, http_client=http_client).v1.customers.create()
    opened = sandbox.connections()["open"]

    http_client.close()  # type: ignore[no-untyped-call]  # the SDK left it so

    wait_until(lambda: sandbox.connections()["open"] == opened - 1)
