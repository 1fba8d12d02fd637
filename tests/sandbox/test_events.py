import time
from typing import Any, cast

import pytest
import stripe

from sandbox.resources import events
from sandbox.server import Control
from sandbox.store import Store

DAY = 24 * 3600


def test_an_event_keeps_the_thing_as_it_was() -> None:
    store = Store()
    thing = {"id": "cus_1", "object": "customer", "metadata": {"tags": ["a"]}}

    event = events.written(store, "customer.updated", thing, {"name": "Ada"})
    thing["metadata"]["tags"].append("b")  # type: ignore[index]

    assert event["data"]["object"]["metadata"] == {"tags": ["a"]}
    assert event["data"]["previous_attributes"] == {"name": "Ada"}


def test_an_event_is_found_by_its_id(sandbox: Control, api: stripe.StripeClient) -> None:
    made = sandbox.happen("product.created", {"id": "prod_1", "object": "product"})

    found = api.v1.events.retrieve(made["id"])

    assert (found.type, found.data.object["id"]) == ("product.created", "prod_1")


def test_the_newest_event_comes_first_also_within_a_second(sandbox: Control, api: stripe.StripeClient) -> None:
    made = [sandbox.happen("product.created", {"n": n}, created=sandbox.now())["id"] for n in range(3)]

    pages = api.v1.events.list({"limit": 2, "type": "product.created"})
    rest = api.v1.events.list({"limit": 1, "starting_after": pages.data[-1].id})

    assert [event.id for event in [*pages.data, *rest.data]] == made[::-1]
    assert pages.has_more


@pytest.mark.parametrize(
    ("chosen", "types"),
    [
        ({"type": "invoice.paid"}, ["invoice.paid"]),
        ({"type": "customer.*"}, ["customer.updated", "customer.created"]),
        ({"types": ["invoice.paid", "customer.created"]}, ["invoice.paid", "customer.created"]),
    ],
    ids=["one", "a group", "several"],
)
def test_events_are_listed_by_type(
    sandbox: Control, api: stripe.StripeClient, chosen: Any, types: list[str]
) -> None:
    for type in ("customer.created", "customer.updated", "invoice.paid"):
        sandbox.happen(type, {})

    # not those of tests that were ahead of time
    found = api.v1.events.list(chosen | {"limit": len(types), "created": {"lte": sandbox.now()}})

    assert [event.type for event in found.data] == types


@pytest.mark.parametrize(
    "chosen", [{"type": "a", "types": ["a"]}, {"types": ["a"] * 21}], ids=["both", "more than 20"]
)
def test_types_are_chosen_in_one_way_and_few(api: stripe.StripeClient, chosen: Any) -> None:
    with pytest.raises(stripe.InvalidRequestError, match="types"):
        api.v1.events.list(chosen)


@pytest.mark.parametrize(
    ("bounds", "ages"),
    [
        ({"gt": 200}, [100]),
        ({"gte": 200}, [100, 200]),
        ({"lt": 200}, [300]),
        ({"gte": 300, "lte": 200}, [200, 300]),
        (200, [200]),
    ],
)
def test_events_are_listed_by_their_time(
    sandbox: Control, api: stripe.StripeClient, bounds: Any, ages: list[int]
) -> None:
    # each run in hours of its own, for the events of earlier ones are still there
    base = int(time.time()) - 20 * DAY + time.monotonic_ns() % (15 * DAY)
    for age in (300, 200, 100):
        sandbox.happen("price.created", {"age": age}, created=base - age)
    since = {name: base - age for name, age in bounds.items()} if isinstance(bounds, dict) else base - bounds

    found = api.v1.events.list({"type": "price.created", "created": cast(Any, since), "limit": 100})

    listed = [event.data.object["age"] for event in found.data if base - 300 <= event.created <= base]
    assert listed == ages


def test_events_are_forgotten_after_30_days(sandbox: Control, api: stripe.StripeClient) -> None:
    old = sandbox.happen("plan.created", {}, created=sandbox.now() - 30 * DAY)
    young = sandbox.happen("plan.created", {}, created=sandbox.now() - 29 * DAY)

    found = api.v1.events.list({"type": "plan.created"})

    assert [event.id for event in found.data] == [young["id"]]
    with pytest.raises(stripe.InvalidRequestError, match="No such event"):
        api.v1.events.retrieve(old["id"])


def test_thousands_of_events_cost_little() -> None:
    store = Store()
    item = {f"field_{n}": {"a": n, "b": [n]} for n in range(50)}

    began = time.process_time()
    for _ in range(2000):
        events.written(store, "invoice.paid", item)
    seconds = time.process_time() - began

    assert seconds < 2  # 1 ms each would be ten times what it takes


def test_an_event_says_which_request_caused_it_unless_time_did(
    sandbox: Control, api: stripe.StripeClient
) -> None:
    made = api.v1.products.create({"name": "Pro"}, {"idempotency_key": "k-of-a-product"})
    happened = sandbox.happen("product.updated", {"id": made.id, "object": "product"})

    [event] = api.v1.events.list({"type": "product.created", "limit": 1}).data

    assert made.last_response is not None
    assert event.to_dict()["request"] == {
        "id": made.last_response.request_id,
        "idempotency_key": "k-of-a-product",
    }
    assert happened["request"] == {"id": None, "idempotency_key": None}
