"""The sandbox against what the SDK says of each address, and the comparison with Stripe against itself."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest

from sandbox.app import OPERATIONS, find
from sandbox.resources import Operation
from sandbox.server import Control, running
from tests.sandbox import fidelity
from tests.sandbox.fidelity import Exchange, Side
from tests.sandbox.sdk import address_of

DAY = 24 * 3600


@pytest.fixture(scope="module")
def own() -> Iterator[Control]:
    """A sandbox of these tests' own: its clock is moved."""
    with running() as control:
        yield control


@pytest.fixture(scope="module")
def side(own: Control) -> Side:
    """A sandbox that was asked everything."""
    side = Side(own.url, own.key)
    assert fidelity.go_through(side) is None
    return side


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: f"{operation.method} {operation.path}")
def test_every_operation_takes_what_the_sdk_sends(operation: Operation) -> None:
    assert address_of(operation.method, operation.path).params is operation.params


def test_every_operation_is_asked_and_answers(own: Control, side: Side) -> None:
    """By `script`, but for two that are about what only time brings."""
    subscription, draft = what_time_brings(own, side)
    side.ask("POST", f"/v1/subscriptions/{subscription}/resume")
    side.ask("POST", f"/v1/invoices/{draft}/finalize")

    answered = {find(noted["method"], noted["path"])[0] for noted in own.requests() if noted["status"] == 200}

    assert set(OPERATIONS) == answered


def what_time_brings(own: Control, side: Side) -> tuple[str, str]:
    """A subscription that is paused for want of a card, and an invoice that is kept as a draft."""
    product = side.ask("POST", "/v1/products", name="Pro")["id"]
    price = side.ask(
        "POST", "/v1/prices", product=product, currency="eur", unit_amount=1000, recurring={"interval": "month"}
    )["id"]
    customers = [side.ask("POST", "/v1/customers")["id"] for _ in range(2)]
    method = side.ask("POST", "/v1/payment_methods/pm_card_visa/attach", customer=customers[1])["id"]
    trial: Any = {
        "trial_period_days": 3,
        "trial_settings": {"end_behavior": {"missing_payment_method": "pause"}},
    }
    items: Any = {"items": [{"price": price}]}
    paused = side.ask("POST", "/v1/subscriptions", customer=customers[0], **items, **trial)["id"]
    paying = {"customer": customers[1], "default_payment_method": method, **items}
    held = side.ask("POST", "/v1/subscriptions", **paying)["id"]
    side.ask("POST", f"/v1/subscriptions/{held}", pause_collection={"behavior": "keep_as_draft"})
    own.advance(32 * DAY)
    side.ask("POST", f"/v1/customers/{customers[0]}", invoice_settings={"default_payment_method": ""})
    return paused, side.ask("GET", f"/v1/subscriptions/{held}")["latest_invoice"]


def test_two_sandboxes_are_of_one_shape(side: Side, sandbox: Control) -> None:
    other = Side(sandbox.url, sandbox.key)

    stopped = fidelity.go_through(other)

    assert stopped is None
    assert list(fidelity.compared(other.log, side.log[: len(other.log)])) == []
    assert {exchange.status for exchange in other.log} == {200, 400, 402, 404}


def lack(answer: Any) -> None:
    del answer["items"]["data"][0]["price"]["type"]


def add(answer: Any) -> None:
    answer["surplus"] = None


def retype(answer: Any) -> None:
    answer["created"] = str(answer["created"])


def void(answer: Any) -> None:
    answer["automatic_tax"] = None


def reword(answer: Any) -> None:
    answer["billing_mode"]["type"] = "classic"


def empty(answer: Any) -> None:
    answer["items"]["data"].clear()


@pytest.mark.parametrize(
    ("alter", "where"),
    [
        (lack, ".items.data[0].price.type: only at Stripe"),
        (add, ".surplus: only in the sandbox"),
        (retype, ".created: a number at Stripe, a string in the sandbox"),
        (void, ".automatic_tax: a hash at Stripe, null in the sandbox"),
        (reword, ".billing_mode.type: flexible at Stripe, classic in the sandbox"),
        (empty, ".items.data[0]: only at Stripe"),
    ],
)
def test_an_answer_that_is_altered_is_found(side: Side, alter: Callable[[Any], None], where: str) -> None:
    log = deepcopy(side.log)
    altered = next(each for each in log if each.call == "GET /v1/subscriptions/<id>")

    alter(altered.answer)

    assert fidelity.unaccepted(fidelity.compared(side.log, log)) == [f"GET /v1/subscriptions/<id>: {where}"]


def test_another_status_is_found_and_so_is_an_end_before_the_end(side: Side) -> None:
    call, status, answer = side.log[0]

    refused = [Exchange(call, 400, answer), *side.log[1:]]
    cut = side.log[:-1]

    assert list(fidelity.compared(refused, side.log)) == [f"{call}: Stripe answers 400, the sandbox {status}"]
    assert list(fidelity.compared(cut, side.log)) == [
        f"{side.log[-1].call}: one of them was asked something else from here on"
    ]


def test_what_is_accepted_is_accepted_there_and_nowhere_else() -> None:
    found = [
        "GET /v1/customers/<id>: .error.request_log_url: only at Stripe",
        "GET /v1/customers/<id>: .request_log_url: only at Stripe",
    ]

    assert fidelity.unaccepted(iter(found)) == found[1:]


def test_a_call_that_fails_ends_the_script_but_not_the_taking_back(sandbox: Control) -> None:
    sandbox.fault("500", path="/v1/coupons")
    side = Side(sandbox.url, sandbox.key)

    reason = fidelity.go_through(side)

    assert reason is not None
    assert reason.startswith("POST /v1/coupons: 500")
    assert side.log[-1].call == "POST /v1/products/<id>"
    assert side.log[-1].answer["active"] is False


def test_without_a_key_nothing_is_said_to_be_checked(capsys: pytest.CaptureFixture[str]) -> None:
    status = fidelity.main({})

    assert (status, capsys.readouterr().out) == (0, "not checked: set STRIPE_TEST_KEY\n")


@pytest.mark.parametrize("key", ["sk_live_1234", "rk_live_1234", "whsec_1234"])
def test_a_key_that_is_no_test_key_is_refused_and_not_repeated(
    key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = fidelity.main({"STRIPE_TEST_KEY": key})

    said = capsys.readouterr().out
    assert status == 1
    assert "no test key" in said
    assert key not in said
