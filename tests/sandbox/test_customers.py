from typing import Any

import pytest
import stripe

from tests.sandbox.conftest import Raw
from tests.sandbox.shapes import differences


def test_a_new_customer_is_what_was_asked_for(api: stripe.StripeClient) -> None:
    customer = api.v1.customers.create(
        {"name": "Ada", "email": "ada@acme.example", "metadata": {"tenant": "t1"}}
    )

    assert customer.id.startswith("cus_")
    assert (customer.name, customer.email, customer.to_dict()["metadata"]) == (
        "Ada",
        "ada@acme.example",
        {"tenant": "t1"},
    )


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"address": {"city": "Rome"}, "preferred_locales": ["it", "en"], "tax_exempt": "reverse"},
        {"shipping": {"name": "Ada", "address": {"line1": "Via 1"}}, "balance": -500, "phone": "1"},
        {"invoice_settings": {"footer": "f", "custom_fields": [{"name": "PO", "value": "7"}]}},
    ],
    ids=["nothing", "address", "shipping", "invoices"],
)
def test_a_customer_has_every_field_the_sdk_promises(raw: Raw, api: stripe.StripeClient, params: Any) -> None:
    customer = api.v1.customers.create(params)

    answer = raw("GET", f"/v1/customers/{customer.id}").json()

    assert list(differences(stripe.Customer, answer)) == []


def test_an_update_changes_what_it_names(api: stripe.StripeClient) -> None:
    customer = api.v1.customers.create({"name": "Ada", "metadata": {"a": "1", "b": "2"}})

    api.v1.customers.update(customer.id, {"email": "ada@acme.example", "metadata": {"a": "", "c": "3"}})

    found = api.v1.customers.retrieve(customer.id)
    assert (found.name, found.email) == ("Ada", "ada@acme.example")
    assert found.to_dict()["metadata"] == {"b": "2", "c": "3"}


def test_an_empty_value_unsets(api: stripe.StripeClient) -> None:
    customer = api.v1.customers.create({"name": "Ada", "metadata": {"a": "1"}, "address": {"city": "Rome"}})

    found = api.v1.customers.update(customer.id, {"name": "", "metadata": "", "address": ""})

    assert (found.name, found.to_dict()["metadata"], found.address) == (None, {}, None)


def test_a_deleted_customer_leaves_a_tombstone(raw: Raw, api: stripe.StripeClient) -> None:
    customer = api.v1.customers.create()

    api.v1.customers.delete(customer.id)

    answer = raw("GET", f"/v1/customers/{customer.id}")
    assert answer.json() == {"id": customer.id, "object": "customer", "deleted": True}


def test_a_deleted_customer_cannot_be_changed(api: stripe.StripeClient) -> None:
    customer = api.v1.customers.create()
    api.v1.customers.delete(customer.id)

    with pytest.raises(stripe.InvalidRequestError) as refused:
        api.v1.customers.update(customer.id, {"name": "Ada"})

    assert (refused.value.http_status, refused.value.code) == (404, "resource_missing")


def test_an_unknown_customer_is_refused_in_stripes_words(api: stripe.StripeClient) -> None:
    with pytest.raises(stripe.InvalidRequestError, match="No such customer: 'cus_none'") as refused:
        api.v1.customers.retrieve("cus_none")

    error = refused.value
    assert (error.http_status, error.code, error.param) == (404, "resource_missing", "id")


def test_what_the_sandbox_cannot_honour_is_not_accepted_silently(api: stripe.StripeClient) -> None:
    with pytest.raises(stripe.APIError, match="'test_clock'") as refused:
        api.v1.customers.create({"test_clock": "clock_1"})

    assert refused.value.http_status == 501


def test_an_address_that_is_no_email_is_refused(api: stripe.StripeClient) -> None:
    with pytest.raises(stripe.InvalidRequestError, match="Invalid email address: ada") as refused:
        api.v1.customers.create({"email": "ada"})

    assert (refused.value.code, refused.value.param) == ("email_invalid", "email")


def test_customers_are_listed_newest_first_by_address(api: stripe.StripeClient) -> None:
    email = "listed@acme.example"
    first, second, deleted = (api.v1.customers.create({"email": email}).id for _ in range(3))
    api.v1.customers.delete(deleted)

    newest = api.v1.customers.list({"email": email, "limit": 1})
    older = api.v1.customers.list({"email": email, "starting_after": second})

    assert ([customer.id for customer in newest.data], newest.has_more) == ([second], True)
    assert ([customer.id for customer in older.data], older.has_more) == ([first], False)


def test_customers_are_found_by_their_metadata(raw: Raw, api: stripe.StripeClient) -> None:
    wanted = api.v1.customers.create({"metadata": {"tenant": "t-search", "plan": "pro"}}).id
    api.v1.customers.create({"metadata": {"tenant": "t-other", "plan": "pro"}})

    answer = raw("GET", "/v1/customers/search", params={"query": "metadata['tenant']:'t-search'"}).json()

    assert list(differences(stripe.Customer, answer["data"][0])) == []
    assert [customer["id"] for customer in answer.pop("data")] == [wanted]
    assert answer == {
        "object": "search_result",
        "url": "/v1/customers/search",
        "has_more": False,
        "next_page": None,
    }


@pytest.mark.parametrize("joint", [" AND ", " and ", " "])
def test_all_clauses_of_a_search_have_to_hold(api: stripe.StripeClient, joint: str) -> None:
    wanted = api.v1.customers.create({"metadata": {"tenant": f"t{joint}", "plan": "pro"}}).id
    api.v1.customers.create({"metadata": {"tenant": f"t{joint}", "plan": "free"}})

    found = api.v1.customers.search(
        {"query": f"metadata['tenant']:'t{joint}'{joint}metadata[\"plan\"]:\"pro\""}
    )

    assert [customer.id for customer in found.data] == [wanted]


def test_a_quote_in_a_search_is_escaped(api: stripe.StripeClient) -> None:
    tenant = "o'reilly' AND metadata['plan']:'pro"
    wanted = api.v1.customers.create({"metadata": {"tenant": tenant}}).id
    escaped = tenant.replace("'", "\\'")

    found = api.v1.customers.search({"query": f"metadata['tenant']:'{escaped}'"})

    assert [customer.id for customer in found.data] == [wanted]


def test_a_search_comes_by_page(api: stripe.StripeClient) -> None:
    made = [api.v1.customers.create({"metadata": {"tenant": "t-paged"}}).id for _ in range(3)]

    first = api.v1.customers.search({"query": "metadata['tenant']:'t-paged'", "limit": 2})

    assert first.has_more
    assert [customer.id for customer in first.auto_paging_iter()] == made[::-1]


def test_a_deleted_customer_is_not_found(api: stripe.StripeClient) -> None:
    gone = api.v1.customers.create({"metadata": {"tenant": "t-gone"}}).id
    api.v1.customers.delete(gone)

    found = api.v1.customers.search({"query": "metadata['tenant']:'t-gone'"})

    assert found.data == []


@pytest.mark.parametrize(
    "query",
    ["name:'Ada'", "metadata['a']:'1' OR metadata['a']:'2'", "-metadata['a']:'1'", "metadata['a']~'1'", "Ada"],
)
def test_a_search_for_more_than_metadata_is_not_spoken_here(api: stripe.StripeClient, query: str) -> None:
    with pytest.raises(stripe.APIError, match="search query") as refused:
        api.v1.customers.search({"query": query})

    assert refused.value.http_status == 501
