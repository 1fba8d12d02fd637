import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import stripe
import time_machine

from sandbox.server import Control
from tests.sandbox.conftest import Raw, wait_until

CUSTOMERS = "/v1/customers"


def with_key(key: str) -> dict[str, str]:
    return {"Idempotency-Key": key}


def test_the_same_key_gets_the_same_answer(raw: Raw) -> None:
    first = raw("POST", CUSTOMERS, data={"name": "Ada"}, headers=with_key("k-same"))
    again = raw("POST", CUSTOMERS, data={"name": "Ada"}, headers=with_key("k-same"))

    assert again.text == first.text
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.headers["Original-Request"] == first.headers["Request-Id"]
    assert again.headers["Request-Id"] != first.headers["Request-Id"]
    assert "Idempotent-Replayed" not in first.headers


def test_a_replay_is_noted_as_one(sandbox: Control, raw: Raw) -> None:
    for _ in range(2):
        raw("POST", CUSTOMERS, headers=with_key("k-noted-twice"))

    assert [noted["replayed"] for noted in sandbox.requests()] == [False, True]


def test_another_key_makes_another_customer(raw: Raw) -> None:
    first = raw("POST", CUSTOMERS, headers=with_key("k-one"))
    other = raw("POST", CUSTOMERS, headers=with_key("k-other"))

    assert first.json()["id"] != other.json()["id"]


def test_a_key_cannot_be_used_for_other_parameters(api: stripe.StripeClient) -> None:
    api.v1.customers.create({"name": "Ada"}, {"idempotency_key": "k-params"})

    with pytest.raises(stripe.IdempotencyError, match="same parameters") as refused:
        api.v1.customers.create({"name": "Bob"}, {"idempotency_key": "k-params"})

    assert refused.value.http_status == 400


def test_a_key_cannot_be_used_for_another_address(api: stripe.StripeClient) -> None:
    customer = api.v1.customers.create({"name": "Ada"}, {"idempotency_key": "k-path"})

    with pytest.raises(stripe.IdempotencyError, match="same endpoint"):
        api.v1.customers.update(customer.id, {"name": "Ada"}, {"idempotency_key": "k-path"})


def test_a_key_in_use_is_refused_until_its_request_is_done(sandbox: Control, raw: Raw) -> None:
    sandbox.latency(0.5)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(raw, "POST", CUSTOMERS, headers=with_key("k-busy"))
        wait_until(lambda: bool(sandbox.requests()))
        busy = raw("POST", CUSTOMERS, headers=with_key("k-busy"))

    assert (busy.status_code, busy.json()["error"]["code"]) == (409, "idempotency_key_in_use")
    assert raw("POST", CUSTOMERS, headers=with_key("k-busy")).text == first.result().text


def test_many_at_once_with_one_key_make_one_customer(raw: Raw) -> None:
    start = threading.Barrier(8)

    def create(_: int) -> str | None:
        start.wait()
        answer = raw("POST", CUSTOMERS, headers=with_key("k-race"))
        return answer.json().get("id") if answer.status_code != 409 else None

    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(create, range(8)))

    assert len(made - {None}) == 1


def test_refused_parameters_do_not_use_up_a_key(raw: Raw) -> None:
    refused = raw("POST", CUSTOMERS, data={"nonsense": "1"}, headers=with_key("k-typo"))

    mended = raw("POST", CUSTOMERS, data={"name": "Ada"}, headers=with_key("k-typo"))

    assert (refused.status_code, mended.status_code) == (400, 200)


def test_a_refusal_by_the_operation_is_saved(raw: Raw) -> None:
    for _ in range(2):
        answer = raw(
            "POST",
            "/v1/billing_portal/sessions",
            data={"customer": "cus_none"},
            headers=with_key("k-refused"),
        )

    assert answer.status_code == 400
    assert answer.headers["Idempotent-Replayed"] == "true"


def test_a_failure_inside_stripe_is_saved(sandbox: Control, raw: Raw) -> None:
    sandbox.fault("500", times=1)

    first = raw("POST", CUSTOMERS, headers=with_key("k-500"))
    again = raw("POST", CUSTOMERS, headers=with_key("k-500"))

    assert (first.status_code, again.status_code) == (500, 500)
    assert again.headers["Idempotent-Replayed"] == "true"


def test_a_failure_that_came_after_the_effect_is_saved_too(sandbox: Control, raw: Raw) -> None:
    sandbox.fault("500", times=1, after=True)
    data = {"email": "after@acme.example"}

    first = raw("POST", CUSTOMERS, data=data, headers=with_key("k-500-after"))
    again = raw("POST", CUSTOMERS, data=data, headers=with_key("k-500-after"))

    assert (first.status_code, again.status_code) == (500, 500)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert len(raw("GET", CUSTOMERS, params=data).json()["data"]) == 1


def test_a_replay_knows_nothing_of_what_happened_since(raw: Raw) -> None:
    first = raw("POST", CUSTOMERS, headers=with_key("k-deleted-since"))
    raw("DELETE", f"{CUSTOMERS}/{first.json()['id']}")

    again = raw("POST", CUSTOMERS, headers=with_key("k-deleted-since"))

    assert (again.status_code, again.text) == (200, first.text)
    assert again.headers["Idempotent-Replayed"] == "true"


@pytest.mark.parametrize("kind", ["400", "401", "429", "503"])
def test_a_failure_on_the_way_in_is_not_saved(sandbox: Control, raw: Raw, kind: str) -> None:
    sandbox.fault(kind, times=1)

    first = raw("POST", CUSTOMERS, headers=with_key(f"k-{kind}"))
    again = raw("POST", CUSTOMERS, headers=with_key(f"k-{kind}"))

    assert (first.status_code, again.status_code) == (int(kind), 200)


def test_a_key_is_forgotten_after_24_hours(raw: Raw) -> None:
    with time_machine.travel("2026-01-21T12:00:00Z", tick=False) as clock:
        first = raw("POST", CUSTOMERS, headers=with_key("k-old")).json()["id"]
        clock.shift(timedelta(hours=24))
        kept = raw("POST", CUSTOMERS, headers=with_key("k-old")).json()["id"]
        clock.shift(timedelta(seconds=1))
        new = raw("POST", CUSTOMERS, headers=with_key("k-old")).json()["id"]

    assert kept == first
    assert new != first


def test_a_retry_by_the_sdk_makes_one_customer(sandbox: Control, raw: Raw, api: stripe.StripeClient) -> None:
    sandbox.fault("reset", times=1, after=True)

    customer = api.v1.customers.create({"name": "Ada"}, {"max_network_retries": 1})

    first, retry = sandbox.requests()
    assert first["idempotency_key"] == retry["idempotency_key"]
    assert (first["status"], retry["replayed"]) == (200, True)
    assert raw("GET", f"{CUSTOMERS}/{customer.id}").status_code == 200
