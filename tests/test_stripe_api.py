"""Our side of Stripe's API: every fault ends in time, is told apart, and leaks nothing."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import pytest
import stripe
from flask.testing import FlaskClient

from billing import stripe_api
from billing.errors import IdempotencyKeyReused, StripeFailed
from billing.stripe_api import Stripe
from sandbox.server import Control
from tests.conftest import MakeApp, create_customer
from tests.test_portal import PORTAL, SESSIONS, asked_of_stripe
from tests.test_portal_options import wait_until

BACK = "https://app.example.com/settings/billing"


def a_stripe(sandbox: Control, *, deadline: float = 2.0, connections: int = 10) -> Stripe:
    return Stripe(sandbox.key, base=sandbox.url, deadline=deadline, connections=connections)


def test_the_pinned_api_version_is_the_sdks() -> None:
    assert stripe.api_version == stripe_api.API_VERSION


def test_every_language_of_the_portal_is_known() -> None:
    source = Path(stripe.params.billing_portal._session_create_params.__file__).read_text()
    [known] = re.findall(r"locale: NotRequired\[\s*\"Literal\[(.*?)\]", source)

    assert {word.strip(" '") for word in known.split(",")} == set(get_args(stripe_api.PortalLocale))


def test_the_sdk_reports_nothing_about_us() -> None:
    assert stripe.enable_telemetry is False


def test_stripe_is_told_the_pinned_version(sandbox: Control, customer: str) -> None:
    a_stripe(sandbox).open_portal(customer, return_url=BACK)

    assert sandbox.requests()[-1]["stripe_version"] == stripe_api.API_VERSION


FAULTS = {
    "rate limited": ("429", "rate_limited", True),
    "500": ("500", "broken", True),
    "503": ("503", "broken", True),
    "refused": ("400", "refused", False),
    "wrong key": ("401", "key_refused", False),
    "silent": ("hang", "unreachable", True),
    "dripping body": ("drip", "unreachable", True),
    "dripping headers": ("drip_headers", "unreachable", True),
    "reset": ("reset", "unreachable", True),
    "cut short": ("truncated", "unreachable", True),
    "html": ("html", "broken", True),
    "a list": ("list", "nonsense", True),
}


@pytest.mark.parametrize(("kind", "reason", "again"), FAULTS.values(), ids=FAULTS)
def test_a_fault_of_stripes_ends_within_the_deadline_and_says_what_it_was(
    sandbox: Control, customer: str, kind: str, reason: str, again: bool
) -> None:
    stripe = a_stripe(sandbox, deadline=1.0)
    sandbox.fault(kind, path=SESSIONS)
    began = time.monotonic()

    with pytest.raises(StripeFailed) as failure:
        stripe.open_portal(customer, return_url=BACK)

    assert time.monotonic() - began < 1.0 + 0.5
    assert failure.value.reason == reason
    assert ("Retry-After" in failure.value.headers) is again


@pytest.mark.parametrize("kind", ["500", "reset", "hang", "drip_headers", "truncated", "list"])
def test_no_connection_is_leaked_by_a_fault(sandbox: Control, customer: str, kind: str) -> None:
    stripe = a_stripe(sandbox, deadline=0.3, connections=2)
    stripe.open_portal(customer, return_url=BACK)
    before = sandbox.connections()["open"]  # this one, and those that other tests' clients still keep
    sandbox.fault(kind, path=SESSIONS)
    for _ in range(3):
        with pytest.raises(StripeFailed):
            stripe.open_portal(customer, return_url=BACK)

    sandbox.clear()
    stripe.open_portal(customer, return_url=BACK)

    wait_until(lambda: sandbox.connections()["open"] <= before)


def test_failed_tries_are_made_up_for_and_open_one_session_only(sandbox: Control, customer: str) -> None:
    sandbox.fault("503", path=SESSIONS, times=1)
    sandbox.fault("reset", path=SESSIONS, after=True, times=1)

    session = a_stripe(sandbox, deadline=8).open_portal(customer, return_url=BACK)

    tries = asked_of_stripe(sandbox)
    assert session.url
    assert [request["replayed"] for request in tries] == [False, False, True]
    assert len({request["idempotency_key"] for request in tries}) == 1


def test_a_refusal_is_not_tried_again(sandbox: Control) -> None:
    with pytest.raises(StripeFailed):
        a_stripe(sandbox).open_portal("cus_nobody", return_url=BACK)

    assert len(asked_of_stripe(sandbox)) == 1


def test_one_key_for_two_wishes_is_the_callers_fault(sandbox: Control, customer: str) -> None:
    stripe = a_stripe(sandbox)
    stripe.open_portal(customer, return_url=BACK, idempotency_key="k")

    with pytest.raises(IdempotencyKeyReused):
        stripe.open_portal(customer, return_url=BACK + "/seats", idempotency_key="k")


def test_many_threads_share_one_pool_of_connections(sandbox: Control, customer: str) -> None:
    stripe = a_stripe(sandbox, deadline=10, connections=4)
    stripe.open_portal(customer, return_url=BACK)
    before = sandbox.connections()["opened"]

    for _ in range(5):
        with ThreadPoolExecutor(4) as threads:  # new threads each time: a connection per thread would open more
            list(threads.map(lambda _: stripe.open_portal(customer, return_url=BACK), range(8)))

    assert sandbox.connections()["opened"] - before <= 4


@contextmanager
def a_port_that_never_answers() -> Iterator[str]:
    """Its queue of waiting connections is full, so that connecting itself gets no answer."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        address = server.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        yield f"http://127.0.0.1:{address[1]}"
        for filler in fillers:
            filler.close()


def test_an_address_that_does_not_even_accept_ends_within_the_deadline() -> None:
    with a_port_that_never_answers() as address:
        began = time.monotonic()
        with pytest.raises(StripeFailed) as failure:
            Stripe("sk_test_x", base=address, deadline=0.5).open_portal("cus_x", return_url=BACK)

    assert failure.value.reason == "unreachable"
    assert time.monotonic() - began < 1.0


def test_a_server_that_does_not_read_ends_within_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        stripe = Stripe("sk_test_x", base=f"http://127.0.0.1:{server.getsockname()[1]}", deadline=0.5)
        began = time.monotonic()
        with pytest.raises(StripeFailed):
            stripe.open_portal("cus_x", return_url="https://app.example.com/" + "x" * 8_000_000)

    assert time.monotonic() - began < 1.0


def test_the_route_answers_500_within_the_deadline_and_frees_what_it_held(
    make_app: MakeApp, headers: dict[str, str], sandbox: Control
) -> None:
    app = make_app(STRIPE_DEADLINE_SECONDS="1", DATABASE_POOL_SIZE="1")
    client = app.test_client()
    sandbox.fault("drip_headers", path=SESSIONS)
    began = time.monotonic()

    failed = client.post(PORTAL, headers=headers)
    took = time.monotonic() - began
    sandbox.clear()
    well = client.post(PORTAL, headers=headers)

    assert (failed.status_code, failed.data) == (500, b'{"error":"Internal server error"}')
    assert failed.headers["Retry-After"] == "5"
    assert took < 2
    assert well.status_code == 200
    assert app.extensions["billing"].db.connections_in_use == 0


def test_a_customer_stripe_no_longer_has_is_500_without_retry_after(
    client: FlaskClient, headers: dict[str, str], sandbox: Control, customer: str
) -> None:
    delete_customer(sandbox, customer)

    answer = client.post(PORTAL, headers=headers)

    assert (answer.status_code, answer.data) == (500, b'{"error":"Internal server error"}')
    assert "Retry-After" not in answer.headers


def delete_customer(sandbox: Control, customer: str) -> None:
    stripe.StripeClient(sandbox.key, base_addresses={"api": sandbox.url}).v1.customers.delete(customer)


def test_no_database_connection_is_held_while_stripe_is_asked(
    make_app: MakeApp, headers: dict[str, str], sandbox: Control
) -> None:
    app = make_app(DATABASE_POOL_SIZE="1", STRIPE_DEADLINE_SECONDS="10")
    sandbox.latency(0.5)
    held: list[int] = []
    began = time.monotonic()
    threads = [
        threading.Thread(target=lambda: app.test_client().post(PORTAL, headers=headers)) for _ in range(10)
    ]
    for thread in threads:
        thread.start()
    while len(asked_of_stripe(sandbox)) < 10:
        assert time.monotonic() - began < 10
        time.sleep(0.01)
    held.append(app.extensions["billing"].db.connections_in_use)
    for thread in threads:
        thread.join()

    assert max(held) <= 1
    assert time.monotonic() - began < 10 * 0.5  # one after the other would take longer


def test_another_customers_session_is_never_given_for_a_key(sandbox: Control, customer: str) -> None:
    other = create_customer(sandbox)

    ours = stripe_api.idempotency_key("t_a", customer, "k")
    theirs = stripe_api.idempotency_key("t_a", other, "k")

    assert ours != theirs
    assert stripe_api.idempotency_key("a", "b\0c", "d") != stripe_api.idempotency_key("a\0b", "c", "d")
