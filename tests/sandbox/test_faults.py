import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
import stripe

from sandbox.server import Control
from tests.sandbox.conftest import Raw, wait_until

CUSTOMERS = "/v1/customers"


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("400", stripe.InvalidRequestError),
        ("401", stripe.AuthenticationError),
        ("403", stripe.PermissionError),
        ("429", stripe.RateLimitError),
        ("500", stripe.APIError),
        ("503", stripe.APIError),
        ("html", stripe.APIError),
        ("drip", stripe.APIError),
        ("drip_headers", stripe.APIError),
        ("reset", stripe.APIConnectionError),
        ("truncated", stripe.APIConnectionError),
    ],
)
def test_the_sdk_meets_the_ordered_fault(
    sandbox: Control, api: stripe.StripeClient, kind: str, error: type[Exception]
) -> None:
    sandbox.fault(kind, seconds=0.0001)

    with pytest.raises(error) as met:
        api.v1.customers.create()

    assert type(met.value) is error


def test_an_answer_may_be_json_and_still_not_stripes(sandbox: Control, raw: Raw) -> None:
    sandbox.fault("list")

    answer = raw("POST", CUSTOMERS)

    assert (answer.status_code, answer.json()) == (200, [])


def test_a_fault_strikes_as_often_as_ordered(sandbox: Control, raw: Raw) -> None:
    sandbox.fault("503", times=2)

    assert [raw("POST", CUSTOMERS).status_code for _ in range(3)] == [503, 503, 200]


def test_a_fault_strikes_only_what_it_names(sandbox: Control, raw: Raw) -> None:
    sandbox.fault("503", method="POST", path="/v1/billing_portal/")

    assert raw("POST", "/v1/billing_portal/sessions").status_code == 503
    assert raw("GET", "/v1/billing_portal/configurations").status_code == 200
    assert raw("POST", CUSTOMERS).status_code == 200


def test_a_fault_carries_the_headers_ordered_with_it(sandbox: Control, raw: Raw) -> None:
    sandbox.fault("429", retry_after=3, should_retry=False)

    answer = raw("POST", CUSTOMERS)

    assert answer.headers["Retry-After"] == "3"
    assert answer.headers["Stripe-Should-Retry"] == "false"
    assert "Stripe-Rate-Limited-Reason" in answer.headers


def test_by_default_nothing_happens_but_the_fault(sandbox: Control, raw: Raw) -> None:
    customer = raw("POST", CUSTOMERS, data={"name": "Ada"}).json()["id"]
    sandbox.fault("503", times=1)

    raw("POST", f"{CUSTOMERS}/{customer}", data={"name": "Bob"})

    assert raw("GET", f"{CUSTOMERS}/{customer}").json()["name"] == "Ada"


@pytest.mark.parametrize("kind", ["500", "503", "html", "reset", "truncated"])
def test_only_the_answer_is_lost_when_so_ordered(sandbox: Control, raw: Raw, kind: str) -> None:
    customer = raw("POST", CUSTOMERS, data={"name": "Ada"}).json()["id"]
    sandbox.fault(kind, times=1, after=True)

    try:
        status = raw("POST", f"{CUSTOMERS}/{customer}", data={"name": "Bob"}).status_code
    except requests.RequestException:
        status = None

    assert status != 200
    assert raw("GET", f"{CUSTOMERS}/{customer}").json()["name"] == "Bob"


@pytest.mark.parametrize(("kind", "dripping"), [("drip", "body"), ("drip_headers", "head")])
def test_a_drip_comes_byte_by_byte(sandbox: Control, kind: str, dripping: str) -> None:
    sandbox.fault(kind, seconds=0.001, after=True)
    connection = http.client.HTTPConnection(urlsplit(sandbox.url).netloc, timeout=5)

    connection.request("POST", CUSTOMERS, headers={"Authorization": f"Bearer {sandbox.key}"})
    assert connection.sock
    began, received = time.monotonic(), b""
    while not received.endswith(b"\n}"):
        received += connection.sock.recv(4096)
    seconds = time.monotonic() - began
    connection.close()

    head, body = received.split(b"\r\n\r\n")
    assert seconds >= 0.001 * len(body if dripping == "body" else head)
    assert json.loads(body)["object"] == "customer"


def test_a_hang_ends_when_its_time_is_up(sandbox: Control, raw: Raw) -> None:
    sandbox.fault("hang", seconds=0.2)
    started = time.monotonic()

    answer = raw("POST", CUSTOMERS)

    assert answer.status_code == 200
    assert time.monotonic() - started >= 0.2


@pytest.mark.parametrize("after", [False, True])
def test_a_hang_ends_when_faults_are_cleared(sandbox: Control, raw: Raw, after: bool) -> None:
    sandbox.fault("hang", after=after)
    with ThreadPoolExecutor() as pool:
        hanging = pool.submit(raw, "POST", CUSTOMERS)
        wait_until(lambda: [noted["status"] for noted in sandbox.requests()] == [200 if after else None])

        sandbox.clear()

        with pytest.raises(requests.ConnectionError):
            hanging.result(timeout=5)


def test_a_caller_who_hangs_up_is_noticed(sandbox: Control) -> None:
    sandbox.fault("hang")
    with requests.Session() as session, pytest.raises(requests.ReadTimeout):
        session.post(sandbox.url + CUSTOMERS, timeout=0.1)

    # 499: the caller was gone before there was an answer
    wait_until(lambda: [noted["status"] for noted in sandbox.requests()] == [499])


def test_latency_slows_every_answer(sandbox: Control, raw: Raw) -> None:
    sandbox.latency(0.1)
    sandbox.fault("503", path="/v1/billing_portal/")

    for path in (CUSTOMERS, f"{CUSTOMERS}/cus_none", "/v1/unknown", "/v1/billing_portal/sessions"):
        started = time.monotonic()
        raw("POST", path)
        assert time.monotonic() - started >= 0.1


def test_hundreds_are_served_at_once(sandbox: Control) -> None:
    sandbox.latency(0.2)
    url, auth = sandbox.url + CUSTOMERS, (sandbox.key, "")

    started = time.monotonic()
    with ThreadPoolExecutor(200) as pool:
        statuses = list(pool.map(lambda _: requests.post(url, auth=auth).status_code, range(200)))
    seconds = time.monotonic() - started

    assert statuses == [200] * 200
    assert seconds < 200 * 0.2 / 4  # one after another they would take 40


def test_orders_are_listed_and_cleared(sandbox: Control) -> None:
    sandbox.fault("503", times=2, path="/v1/customers")

    listed = requests.get(f"{sandbox.url}/_sandbox/faults").json()
    sandbox.clear()

    assert [(f["kind"], f["path"], f["times"], f["left"]) for f in listed] == [("503", "/v1/customers", 2, 2)]
    assert requests.get(f"{sandbox.url}/_sandbox/faults").json() == []


@pytest.mark.parametrize(
    ("lever", "body", "named"),
    [
        ("faults", {"kind": "gremlins"}, "kind"),
        ("faults", {}, "kind"),
        ("faults", {"kind": "503", "often": 1}, "often"),
        ("faults", {"kind": "503", "times": 0}, "times"),
        ("faults", {"kind": "hang", "seconds": "long"}, "seconds"),
        ("latency", {"seconds": -1}, "seconds"),
        ("latency", {}, "seconds"),
        ("latency", [], ""),
    ],
)
def test_a_wrong_order_is_refused_by_name(sandbox: Control, lever: str, body: Any, named: str) -> None:
    answer = requests.post(f"{sandbox.url}/_sandbox/{lever}", json=body)

    assert answer.status_code == 400
    assert answer.json()["error"].startswith(named)
