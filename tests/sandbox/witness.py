"""Looks at all that any sandbox in this process says, whoever asked, and notes where Stripe would not say so.

Each answer of /v1 is held against what the SDK says of its address, or against the SDK's error; each event
against the SDK's event and what it is about. It looks on through signals, so that no test and no operation
can forget to be looked at, and tests/conftest.py fails the test that caused a difference.
"""

import json
from collections import deque
from typing import Any

import stripe
from flask import Flask, Response, request, request_finished

from sandbox import faults
from sandbox.app import find
from sandbox.resources import events
from tests.sandbox.sdk import address_of
from tests.sandbox.shapes import differences, of_a_resource

# What a proxy says, or nobody: faults that were ordered.
NOT_OF_STRIPE = {faults.HTML, faults.LIST}

UNTOLD_CODE = "property_expansion_max_depth"  # the only one of ours that the SDK has not heard of

NO_ANSWER = 499  # the caller hung up

noted: deque[str] = deque(maxlen=1000)  # enough to see what is wrong, over hours too


def taken() -> list[str]:
    """What was noted since the last time."""
    found = list(dict.fromkeys(noted))
    noted.clear()
    return found


@request_finished.connect
def look_at_answer(app: Flask, response: Response) -> None:
    if app.import_name != "sandbox.app" or not request.path.startswith("/v1/"):
        return
    status, body = response.status_code, response.get_data(as_text=True)
    if status != NO_ANSWER and body not in NOT_OF_STRIPE:
        call = f"{request.method} {request.path} {status}"
        wrong = wrong_in_answer(request.method, request.path, status, json.loads(body))
        noted.extend(f"{call}: answer{where}" for where in wrong)


@events.announced.connect
def look_at_event(event: Any) -> None:
    noted.extend(f"{event['type']}: event{where}" for where in wrong_in_event(event))


def wrong_in_answer(method: str, path: str, status: int, answer: Any) -> list[str]:
    if status == 200:
        operation, _ = find(method, path)
        return differences(address_of(operation.method, operation.path).answer, answer)
    if answer.keys() != {"error"}:
        return [f": {answer!r} has no error"]
    return [f".error{where}" for where in wrong_in_error(status, answer["error"])]


def wrong_in_error(status: int, error: Any) -> list[str]:
    """An invoice keeps its last error, and only there does the SDK say which types and codes there are."""
    told = {name: value for name, value in error.items() if (name, value) != ("code", UNTOLD_CODE)}
    wrong = differences(stripe.Invoice.LastFinalizationError, told)
    if not error.get("message"):
        wrong.append(".message: is missing")
    if ("code" in error) != ("doc_url" in error):
        wrong.append(".doc_url: goes with a code")
    if error.get("type") not in types_of(status):
        wrong.append(f".type: {error.get('type')!r} does not go with {status}")
    return wrong


def types_of(status: int) -> set[str]:
    if status >= 500:
        return {"api_error"}
    return {"card_error"} if status == 402 else {"idempotency_error", "invalid_request_error"}


def wrong_in_event(event: Any) -> list[str]:
    thing, before = event["data"]["object"], event["data"].get("previous_attributes", {})
    return [
        *differences(stripe.Event, event),
        *(f".data.object{where}" for where in of_a_resource(thing)),
        *(f".data.previous_attributes.{name}: is no member" for name in before.keys() - thing.keys()),
    ]
