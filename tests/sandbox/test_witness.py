"""What no sandbox may say is noticed, whoever it is said to."""

import json
from pathlib import Path
from typing import Any

import pytest
import requests

from sandbox.resources import events
from sandbox.server import Control, running
from tests.sandbox import witness
from tests.sandbox.shop import Shop

ERROR = {"message": "No.", "type": "invalid_request_error"}


def test_an_answer_unlike_stripes_is_noted_with_the_place(sandbox: Control) -> None:
    made = requests.post(f"{sandbox.url}/v1/customers", {"name": "Ada"}, auth=(sandbox.key, "")).json()
    path = f"/v1/customers/{made['id']}"

    wrong = witness.wrong_in_answer("GET", path, 200, made | {"balance": "0", "surplus": 1})

    assert witness.wrong_in_answer("GET", path, 200, made) == []
    assert wrong == [
        ".balance: '0' is no <class 'int'>",
        ".surplus: the SDK's Customer has no such field",
    ]


def test_another_resource_than_the_addresss_is_noted() -> None:
    product = Shop().store.collection("product").popitem()[1]

    assert witness.wrong_in_answer("GET", "/v1/products/prod_1", 200, product) == []
    assert witness.wrong_in_answer("GET", "/v1/customers/cus_1", 200, product)


def test_every_sandbox_is_looked_at_and_so_is_all_it_answers(tmp_path: Path) -> None:
    data = tmp_path / "account.json"
    little = {"id": "cus_1", "object": "customer", "livemode": False}
    data.write_text(json.dumps({"customer": {"cus_1": little}}))

    with running(data=data) as control:
        requests.get(f"{control.url}/v1/customers", auth=(control.key, ""))

    assert "GET /v1/customers 200: answer.data[0].created: is missing" in witness.taken()


def test_an_event_unlike_stripes_is_noted(sandbox: Control) -> None:
    shop = Shop()
    customer = shop.store.find("customer", shop.customer)
    clean = witness.taken()

    events.announce(shop.store, "customer.changed", customer | {"metadata": {"n": 1}}, {"shoe": "left"})

    assert clean == []
    noted = witness.taken()
    assert noted[0].startswith("customer.changed: event.type: 'customer.changed' is none of")
    assert noted[1:] == [
        "customer.changed: event.data.object.metadata.n: 1 is no <class 'str'>",
        "customer.changed: event.data.previous_attributes.shoe: is no member",
    ]


@pytest.mark.parametrize(
    ("status", "error", "wrong"),
    [
        (400, ERROR, []),
        (400, {"type": "invalid_request_error"}, [".message: is missing"]),
        (400, ERROR | {"code": "resource_missing"}, [".doc_url: goes with a code"]),
        (402, ERROR, [".type: 'invalid_request_error' does not go with 402"]),
        (500, ERROR | {"type": "api_error"}, []),
        (400, ERROR | {"hint": "x"}, [".hint: the SDK's Invoice.LastFinalizationError has no such field"]),
    ],
)
def test_an_error_is_held_against_stripes(status: int, error: Any, wrong: list[str]) -> None:
    assert witness.wrong_in_error(status, error) == wrong
