"""Webhook endpoints and what reaches them, over real HTTP: a receiver on this machine notes what arrives."""

import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import stripe

from sandbox.server import Control, open_server, running
from tests.sandbox.conftest import Raw, client_for, wait_until


@dataclass
class Arrival:
    headers: dict[str, str]
    body: str

    @property
    def event(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(self.body)
        return event

    @property
    def place(self) -> int:
        return int(self.event["data"]["object"]["place"])

    def is_signed_with(self, secret: str | None) -> bool:
        signature = self.headers["Stripe-Signature"]
        try:
            stripe.WebhookSignature.verify_header(self.body, signature, secret, tolerance=300)
        except stripe.SignatureVerificationError:
            return False
        return True


class Receiver(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 100

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Conversation)
        self.url = f"http://127.0.0.1:{self.server_port}/hook?from=stripe"
        self.arrivals: list[Arrival] = []
        self.statuses: deque[int] = deque()  # of the next answers; 200 when there are no more
        self.answers = threading.Event()
        self.answers.set()

    def events(self) -> list[str]:
        return [arrival.event["id"] for arrival in self.arrivals]

    def places(self) -> list[int]:
        return [arrival.place for arrival in self.arrivals]


class Conversation(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:  # the name is http.server's
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.arrivals.append(Arrival(dict(self.headers), body))
        self.server.answers.wait(30)
        self.send_response(self.server.statuses.popleft() if self.server.statuses else 200)
        self.send_header("Location", self.path)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.answers.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def endpoint(api: stripe.StripeClient, receiver: Receiver) -> stripe.WebhookEndpoint:
    return listening(api, receiver)


def listening(
    api: stripe.StripeClient, receiver: Receiver, *, to: tuple[Any, ...] = ("*",)
) -> stripe.WebhookEndpoint:
    return api.v1.webhook_endpoints.create({"url": receiver.url, "enabled_events": list(to)})


def burst(sandbox: Control, size: int) -> list[str]:
    return [sandbox.happen("invoice.paid", {"place": place})["id"] for place in range(size)]


def test_the_secret_is_shown_once(api: stripe.StripeClient, endpoint: stripe.WebhookEndpoint) -> None:
    again = api.v1.webhook_endpoints.retrieve(endpoint.id)
    listed = api.v1.webhook_endpoints.list().data[0]

    assert str(endpoint.secret).startswith("whsec_")
    assert "secret" not in again.to_dict() | listed.to_dict()


def test_an_endpoint_can_be_changed(api: stripe.StripeClient, endpoint: stripe.WebhookEndpoint) -> None:
    changed = api.v1.webhook_endpoints.update(
        endpoint.id, {"enabled_events": ["invoice.paid"], "metadata": {"a": "1"}, "disabled": True}
    )

    assert (changed.enabled_events, changed.status) == (["invoice.paid"], "disabled")
    assert changed.to_dict()["metadata"] == {"a": "1"}


def test_a_deleted_endpoint_is_gone(api: stripe.StripeClient, endpoint: stripe.WebhookEndpoint) -> None:
    deleted = api.v1.webhook_endpoints.delete(endpoint.id)

    assert deleted.deleted
    with pytest.raises(stripe.InvalidRequestError):
        api.v1.webhook_endpoints.retrieve(endpoint.id)


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"url": "localhost:8000", "enabled_events": ["*"]}, 400),
        ({"url": "http://localhost:8000", "enabled_events": ["no.such"]}, 400),
        ({"url": "http://localhost:8000", "enabled_events": ["*"], "connect": True}, 501),
        ({"url": "http://localhost:8000", "enabled_events": ["*"], "api_version": "2024-06-20"}, 501),
    ],
    ids=["no address", "an unknown type", "of connected accounts", "another version"],
)
def test_an_endpoint_is_refused(api: stripe.StripeClient, given: Any, status: int) -> None:
    with pytest.raises(stripe.StripeError) as refused:
        api.v1.webhook_endpoints.create(given)

    assert refused.value.http_status == status


def test_an_event_arrives_signed(
    sandbox: Control, receiver: Receiver, endpoint: stripe.WebhookEndpoint
) -> None:
    event = sandbox.happen("invoice.paid", {"id": "in_1", "object": "invoice", "name": "Ädä"})
    sandbox.settled()

    [arrival] = receiver.arrivals
    assert arrival.is_signed_with(endpoint.secret)
    assert not arrival.is_signed_with("whsec_other")
    assert arrival.event == event
    assert arrival.body == json.dumps(arrival.event, indent=2, ensure_ascii=False)
    assert arrival.headers["User-Agent"] == "Stripe/1.0 (+https://stripe.com/docs/webhooks)"
    assert arrival.headers["Content-Type"] == "application/json; charset=utf-8"


def test_what_the_api_does_is_told(
    sandbox: Control, api: stripe.StripeClient, receiver: Receiver, endpoint: stripe.WebhookEndpoint
) -> None:
    customer = api.v1.customers.create({"name": "Ada"})
    sandbox.settled()

    [arrival] = receiver.arrivals
    assert arrival.event["type"] == "customer.created"
    assert arrival.event["data"]["object"]["id"] == customer.id


def test_an_endpoint_hears_of_the_types_it_asked_for(
    sandbox: Control, api: stripe.StripeClient, receiver: Receiver
) -> None:
    listening(api, receiver, to=("invoice.paid", "invoice.created"))

    other = sandbox.happen("price.created", {})
    asked = sandbox.happen("invoice.paid", {})
    sandbox.settled()

    assert receiver.events() == [asked["id"]]
    assert (other["pending_webhooks"], asked["pending_webhooks"]) == (0, 1)


def test_every_endpoint_is_told(sandbox: Control, api: stripe.StripeClient, receiver: Receiver) -> None:
    endpoints = [listening(api, receiver).id, listening(api, receiver).id]

    event = sandbox.happen("invoice.paid", {})
    sandbox.settled()

    assert {attempt["endpoint"] for attempt in sandbox.deliveries(event["id"])} == set(endpoints)
    assert api.v1.events.retrieve(event["id"]).pending_webhooks == 0


def test_a_disabled_endpoint_is_told_nothing(
    sandbox: Control, api: stripe.StripeClient, receiver: Receiver, endpoint: stripe.WebhookEndpoint
) -> None:
    sandbox.webhooks(paused=True)
    burst(sandbox, 1)
    api.v1.webhook_endpoints.update(endpoint.id, {"disabled": True})
    burst(sandbox, 1)
    sandbox.webhooks(paused=False)
    sandbox.settled()

    assert receiver.arrivals == []


def test_a_failed_delivery_is_tried_again(
    sandbox: Control, api: stripe.StripeClient, receiver: Receiver, endpoint: stripe.WebhookEndpoint
) -> None:
    sandbox.webhooks(retry_seconds=[0.01, 0.02, 0.03])
    receiver.statuses.extend([500, 302])  # a redirect is not followed

    [event] = burst(sandbox, 1)
    sandbox.settled()

    attempts = sandbox.deliveries(event)
    assert [(attempt["attempt"], attempt["status"]) for attempt in attempts] == [(1, 500), (2, 302), (3, 200)]
    assert receiver.events() == [event] * 3
    assert api.v1.events.retrieve(event).pending_webhooks == 0


def test_every_attempt_is_signed_anew(
    sandbox: Control, receiver: Receiver, endpoint: stripe.WebhookEndpoint
) -> None:
    sandbox.webhooks(retry_seconds=[1.1])
    receiver.statuses.append(500)

    burst(sandbox, 1)
    sandbox.settled()

    first, second = (arrival.headers["Stripe-Signature"].split(",")[0] for arrival in receiver.arrivals)
    assert first != second


def test_an_event_nobody_took_is_listed_as_such(
    sandbox: Control, api: stripe.StripeClient, receiver: Receiver, endpoint: stripe.WebhookEndpoint
) -> None:
    sandbox.webhooks(retry_seconds=[0.01])
    receiver.statuses.extend([500, 500])

    [lost] = burst(sandbox, 1)
    sandbox.settled()
    [taken] = burst(sandbox, 1)
    sandbox.settled()

    # not those of tests that were ahead of time
    until_now: Any = {"created": {"lte": sandbox.now()}, "limit": 1}
    undelivered = api.v1.events.list(until_now | {"delivery_success": False})
    delivered = api.v1.events.list(until_now | {"delivery_success": True})
    assert [event.id for event in undelivered.data] == [lost]
    assert [event.id for event in delivered.data] == [taken]


def test_an_event_can_be_redelivered(
    sandbox: Control, api: stripe.StripeClient, receiver: Receiver, endpoint: stripe.WebhookEndpoint
) -> None:
    sandbox.webhooks(retry_seconds=[])
    receiver.statuses.append(500)
    [event] = burst(sandbox, 1)
    sandbox.settled()

    sandbox.redeliver(event)
    sandbox.settled()

    assert receiver.events() == [event, event]
    assert api.v1.events.retrieve(event).pending_webhooks == 0


def test_only_what_happened_can_be_redelivered(sandbox: Control) -> None:
    with pytest.raises(ValueError, match="No such event: 'evt_none'"):
        sandbox.redeliver("evt_none")


def test_no_answer_in_time_is_a_failure(
    sandbox: Control, receiver: Receiver, endpoint: stripe.WebhookEndpoint
) -> None:
    sandbox.webhooks(retry_seconds=[], timeout_seconds=0.1)
    receiver.answers.clear()

    burst(sandbox, 1)
    sandbox.settled()

    [attempt] = sandbox.deliveries()
    assert (attempt["status"], attempt["failure"]) == (None, "TimeoutError: timed out")
    assert attempt["seconds"] >= 0.1


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/", "http://127.0.0.1:99999/"], ids=["closed", "nonsense"])
def test_an_address_where_nobody_is_gets_noted(sandbox: Control, api: stripe.StripeClient, url: str) -> None:
    sandbox.webhooks(retry_seconds=[])
    api.v1.webhook_endpoints.create({"url": url, "enabled_events": ["*"]})

    burst(sandbox, 1)
    sandbox.settled()

    assert sandbox.deliveries()[0]["failure"]


def test_a_rolled_secret_signs_beside_the_new_one(
    sandbox: Control, receiver: Receiver, endpoint: stripe.WebhookEndpoint
) -> None:
    new = sandbox.roll_secret(endpoint.id, keep_seconds=3600)

    burst(sandbox, 1)
    sandbox.settled()

    [arrival] = receiver.arrivals
    assert arrival.is_signed_with(endpoint.secret)
    assert arrival.is_signed_with(new)


def test_a_rolled_secret_ends(sandbox: Control, receiver: Receiver, endpoint: stripe.WebhookEndpoint) -> None:
    new = sandbox.roll_secret(endpoint.id, keep_seconds=0)

    burst(sandbox, 1)
    sandbox.settled()

    [arrival] = receiver.arrivals
    assert not arrival.is_signed_with(endpoint.secret)
    assert arrival.is_signed_with(new)


def test_several_events_are_told_at_once(
    sandbox: Control, receiver: Receiver, endpoint: stripe.WebhookEndpoint
) -> None:
    receiver.answers.clear()

    made = burst(sandbox, 6)
    wait_until(lambda: len(receiver.arrivals) == 4)
    receiver.answers.set()
    sandbox.settled()

    assert sorted(receiver.events()) == sorted(made)


def test_a_single_deliverer_keeps_the_order(
    sandbox: Control, receiver: Receiver, endpoint: stripe.WebhookEndpoint
) -> None:
    sandbox.webhooks(deliverers=1)

    burst(sandbox, 10)
    sandbox.settled()

    assert receiver.places() == [*range(10)]


def test_a_burst_comes_last_first_when_so_ordered(
    sandbox: Control, receiver: Receiver, endpoint: stripe.WebhookEndpoint
) -> None:
    sandbox.webhooks(reverse=True, paused=True)
    burst(sandbox, 5)

    sandbox.webhooks(paused=False)
    sandbox.settled()

    assert receiver.places() == [4, 3, 2, 1, 0]


def test_paused_deliveries_wait(sandbox: Control, receiver: Receiver, endpoint: stripe.WebhookEndpoint) -> None:
    sandbox.webhooks(paused=True)
    burst(sandbox, 3)

    with pytest.raises(TimeoutError, match="3 deliveries"):
        sandbox.settled(timeout=0.05)
    held = len(receiver.arrivals)
    sandbox.webhooks(paused=False)
    sandbox.settled()

    assert (held, len(receiver.arrivals)) == (0, 3)


@pytest.mark.parametrize("delay", [0.2, [0.2, 0.3]], ids=["fixed", "from to"])
def test_a_delay_holds_each_event(
    sandbox: Control, receiver: Receiver, endpoint: stripe.WebhookEndpoint, delay: Any
) -> None:
    sandbox.webhooks(delay=delay)
    began = time.monotonic()

    burst(sandbox, 1)
    wait_until(lambda: bool(receiver.arrivals))

    assert time.monotonic() - began >= 0.2


def test_an_event_comes_twice_when_so_ordered(
    sandbox: Control, api: stripe.StripeClient, receiver: Receiver, endpoint: stripe.WebhookEndpoint
) -> None:
    sandbox.webhooks(double=1.0)

    [event] = burst(sandbox, 1)
    sandbox.settled()

    assert receiver.events() == [event, event]
    assert api.v1.events.retrieve(event).pending_webhooks == 0


def test_a_dropped_event_stays_undelivered(
    sandbox: Control, api: stripe.StripeClient, receiver: Receiver, endpoint: stripe.WebhookEndpoint
) -> None:
    sandbox.webhooks(drop=1.0)

    [event] = burst(sandbox, 1)
    sandbox.settled()

    assert receiver.arrivals == []
    assert event in [found.id for found in api.v1.events.list({"delivery_success": False}).data]


def test_a_seed_brings_the_same_luck_again(
    sandbox: Control, receiver: Receiver, endpoint: stripe.WebhookEndpoint
) -> None:
    runs = []
    for _ in range(2):
        receiver.arrivals.clear()
        sandbox.webhooks(drop=0.4, double=0.4, seed=7)
        burst(sandbox, 20)
        sandbox.settled()
        runs.append(sorted(receiver.places()))

    assert runs[0] == runs[1]
    assert set(runs[0]) < set(range(20))  # some dropped
    assert len(runs[0]) > len(set(runs[0]))  # some doubled


def let_a_second_pass() -> None:
    """A real one: the account's clock may be far ahead."""
    began = int(time.time())
    wait_until(lambda: int(time.time()) > began)


def test_the_clock_can_stand_still(sandbox: Control) -> None:
    sandbox.webhooks(same_second=True)
    first = sandbox.happen("invoice.created", {})
    let_a_second_pass()
    second = sandbox.happen("invoice.paid", {})
    sandbox.webhooks(same_second=False)
    third = sandbox.happen("invoice.paid", {})

    assert second["created"] == first["created"] < third["created"]


def test_an_older_account_tells_of_periods_on_the_subscription(
    sandbox: Control, api: stripe.StripeClient
) -> None:
    period = {"current_period_start": 1, "current_period_end": 2}
    sandbox.webhooks(api_version="2024-06-20")

    made = sandbox.happen(
        "customer.subscription.updated",
        {"object": "subscription", "items": {"data": [{"id": "si_1", **period}]}},
    )

    event = api.v1.events.retrieve(made["id"]).to_dict()
    assert event["api_version"] == "2024-06-20"
    assert event["data"]["object"] == {"object": "subscription", "items": {"data": [{"id": "si_1"}]}, **period}


@pytest.mark.parametrize("switch", [{"double": 2.0}, {"unknown": True}, {"paused": "yes"}])
def test_a_switch_that_means_nothing_is_refused(sandbox: Control, switch: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(switch))):
        sandbox.webhooks(**switch)


def test_a_completed_checkout_is_told(
    sandbox: Control, api: stripe.StripeClient, receiver: Receiver, endpoint: stripe.WebhookEndpoint
) -> None:
    product = api.v1.products.create({"name": "Gold"})
    price = api.v1.prices.create(
        {"product": product.id, "currency": "eur", "unit_amount": 900, "recurring": {"interval": "month"}}
    )
    session = api.v1.checkout.sessions.create(
        {
            "mode": "subscription",
            "line_items": [{"price": price.id, "quantity": 1}],
            "success_url": "https://acme.example/",
        }
    )

    done = sandbox.complete_checkout(session.id)
    sandbox.settled()

    told = {arrival.event["type"]: arrival.event["data"]["object"] for arrival in receiver.arrivals}
    assert done["status"] == "complete"
    assert told["checkout.session.completed"]["subscription"] == done["subscription"]
    assert {"customer.subscription.created", "invoice.paid"} < set(told)


def test_answers_are_dated_by_stripes_clock(sandbox: Control, raw: Raw) -> None:
    sandbox.webhooks(same_second=True)
    let_a_second_pass()

    answer = raw("GET", "/v1/events")

    assert parsedate_to_datetime(answer.headers["Date"]).timestamp() == sandbox.now()


def test_clearing_leaves_nothing_for_the_next_test(
    sandbox: Control, api: stripe.StripeClient, receiver: Receiver, endpoint: stripe.WebhookEndpoint
) -> None:
    switches = sandbox.webhooks(retry_seconds=[60.0], timeout_seconds=60.0) | {
        "retry_seconds": [3.0, 60.0, 3600.0],
        "timeout_seconds": 10.0,
        "outstanding": 0,
    }
    receiver.answers.clear()
    burst(sandbox, 6)
    wait_until(lambda: len(receiver.arrivals) == 4)

    sandbox.clear()

    assert sandbox.webhooks() == switches
    assert sandbox.deliveries() == []
    assert api.v1.webhook_endpoints.list().data == []


def test_stopping_does_not_wait_for_a_receiver(receiver: Receiver) -> None:
    before = set(threading.enumerate())
    receiver.answers.clear()
    with running() as control:
        listening(client_for(control), receiver)
        burst(control, 6)
        wait_until(lambda: len(receiver.arrivals) == 4)
        began = time.monotonic()

    assert time.monotonic() - began < 3
    assert "deliverer" not in {thread.name for thread in set(threading.enumerate()) - before}


def test_an_endpoint_known_in_advance_is_made_once(tmp_path: Path, receiver: Receiver) -> None:
    for secret in ("whsec_before", "whsec_now"):
        server = open_server(
            port=0,
            data=tmp_path / "sandbox.json",
            key="sk_test_sandbox",
            webhook_url=receiver.url,
            webhook_secret=secret,
            environ={},
        )
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        control = Control(server.url, "sk_test_sandbox")
        burst(control, 1)
        control.settled()
        server.shutdown()
        thread.join()

    assert [arrival.is_signed_with("whsec_now") for arrival in receiver.arrivals] == [False, True]


def test_a_rolled_secret_ends_when_its_time_has_passed(receiver: Receiver) -> None:
    with running() as control:
        endpoint = listening(client_for(control), receiver)
        control.roll_secret(endpoint.id, keep_seconds=3600)
        before = control.now()

        control.advance(3600)
        burst(control, 1)
        control.settled()

        passed = control.now() - before

    assert passed >= 3600
    assert not receiver.arrivals[0].is_signed_with(endpoint.secret)
