"""The webhook's door: what is kept before it is acknowledged, what is refused, and what trouble does to it.

Signatures by themselves are in test_signatures, the reading of events in test_events. The last part is about
the door as it is deployed: real gunicorn processes, thousands of bad requests, and kill -9.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import requests
from flask.testing import FlaskClient
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError
from werkzeug.test import TestResponse

from billing.db import WEBHOOK as WEBHOOKS_SCOPE
from billing.db import Database
from billing.signatures import fingerprint
from billing.stripe_api import API_VERSION
from billing.web.webhooks import LARGEST_EVENT
from tests.conftest import IS_SOAK, SIGNING_SECRET, MakeApp, link, rows
from tests.deliveries import (
    WEBHOOK,
    Json,
    a_subscription,
    a_worker,
    an_event,
    deliver,
    signature,
    until_quiet,
)
from tests.gateway import Gateway, a_gateway
from tests.test_events import UNREADABLE
from tests.test_portal_options import wait_until
from tests.test_signatures import FORGED, NEW, OLD, Forgery
from tests.test_workers import Served, a_collector, served

HOW_MANY = 10_000 if IS_SOAK else 2_000
KILLS = 20 if IS_SOAK else 4
SENDERS = 8

RECEIVED = (200, b'{"received":true}')
BAD_SIGNATURE = (400, b'{"error":"Invalid signature"}')
BAD_PAYLOAD = (400, b'{"error":"Invalid payload"}')
UNAVAILABLE = (503, b'{"error":"Service unavailable"}')

NOWHERE = "postgresql://nobody:x@127.0.0.1:1/nothing"


def said(answer: TestResponse) -> tuple[int, bytes]:
    return answer.status_code, answer.data


def a_change(customer: str = "cus_1", **changes: Any) -> Json:
    """An event that is worked on, if somebody owns the customer."""
    return an_event("customer.subscription.updated", a_subscription(customer), **changes)


def kept(database: Database) -> list[str]:
    return [row["event_id"] for row in rows(database, "SELECT event_id FROM inbox ORDER BY id")]


# ---- what is kept


def test_an_event_is_kept_and_acknowledged(client: FlaskClient, database: Database) -> None:
    answer = deliver(client, a_change(id="evt_1"))

    assert said(answer) == RECEIVED
    assert kept(database) == ["evt_1"]


def test_an_event_that_is_here_already_is_acknowledged_and_not_kept_again(
    client: FlaskClient, database: Database
) -> None:
    event = a_change()
    deliver(client, event)
    [first] = rows(database, "SELECT * FROM inbox")

    again = deliver(client, event)

    assert said(again) == RECEIVED
    assert rows(database, "SELECT * FROM inbox") == [first]


def test_of_20_first_deliveries_at_once_one_is_kept_and_all_are_acknowledged(
    make_app: MakeApp, database: Database
) -> None:
    app, event, together = make_app(), a_change(id="evt_1"), threading.Barrier(20)

    def send(_: int) -> tuple[int, bytes]:
        client = app.test_client()
        together.wait()
        return said(deliver(client, event))

    with ThreadPoolExecutor(20) as senders:
        answers = list(senders.map(send, range(20)))

    assert Counter(answers) == {RECEIVED: 20}
    assert kept(database) == ["evt_1"]


def test_the_row_says_what_the_event_and_its_signature_say(client: FlaskClient, database: Database) -> None:
    body = json.dumps(a_change("cus_1", id="evt_1", created=1_700_000_000)).encode()
    at = int(time.time()) - 7

    deliver(client, body, Stripe_Signature=signature(body, at=at))

    [row] = rows(database, "SELECT * FROM inbox")
    assert isinstance(row.pop("id"), int)
    assert datetime.now(UTC) - row["received_at"] < timedelta(seconds=10)
    assert timedelta() <= row.pop("due_at") - row.pop("received_at") < timedelta(seconds=1)
    assert row == {
        "event_id": "evt_1",
        "type": "customer.subscription.updated",
        "object_id": "sub_1",
        "customer": "cus_1",
        "created": datetime.fromtimestamp(1_700_000_000, UTC),
        "api_version": API_VERSION,
        "livemode": False,
        "sent_at": datetime.fromtimestamp(at, UTC),
        "secret": fingerprint(SIGNING_SECRET),
        "trace": None,
        "body": body,
        "state": "due",
        "attempt": 0,
        "held": None,
        "lapses": 0,
        "failures": 0,
        "looks": 0,
        "settled_at": None,
        "reason": None,
        "fault": None,
        "failed_at": [],
    }


def test_what_the_event_does_not_say_is_left_open(client: FlaskClient, database: Database) -> None:
    deliver(client, b'{"id": "evt_1", "type": "x"}')

    [row] = rows(database, "SELECT object_id, customer, created, api_version, livemode FROM inbox")
    assert set(row.values()) == {None}


AN_EVENT = '{"id": "evt_1", "type": "customer.subscription.updated", %s}'
BODIES = {
    "pretty printed": json.dumps(json.loads(AN_EVENT % '"data": {"object": {"id": "sub_1"}}'), indent=2),
    "line ends of another system": AN_EVENT % '\r\n\t"data": {}\r\n',
    "a NUL": AN_EVENT % '"name": "a\\u0000b"',
    "half a character": AN_EVENT % '"name": "\\ud800"',
    "characters as they are": AN_EVENT % '"name": "Café 🍰"',
    "characters as escapes": AN_EVENT % '"name": "Caf\\u00e9 \\ud83c\\udf70"',
    "a member twice": AN_EVENT % '"id": "evt_1", "created": 1, "created": 2',
    "numbers of any kind": AN_EVENT % '"a": 1.0, "b": 1e400, "c": 0.1000, "d": -0, "e": 18446744073709551617',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_the_body_is_kept_byte_for_byte(client: FlaskClient, database: Database, body: str) -> None:
    answer = deliver(client, body.encode())

    assert said(answer) == RECEIVED
    assert rows(database, "SELECT body FROM inbox") == [{"body": body.encode()}]


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""])
def test_the_body_is_bytes_whatever_it_is_said_to_be(
    client: FlaskClient, database: Database, kind: str
) -> None:
    body = json.dumps(a_change(id="evt_1")).encode()

    answer = client.post(WEBHOOK, data=body, headers={"Stripe-Signature": signature(body)}, content_type=kind)

    assert said(answer) == RECEIVED
    assert kept(database) == ["evt_1"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"type": "charge.succeeded"}, "unknown_type"),
        ({"type": "customer.updated"}, "nothing_to_keep"),
        ({"livemode": True}, "wrong_livemode"),
        ({"account": "acct_1"}, "other_account"),
        ({"object": "v2.core.event", "type": "v1.billing.meter.error_report_triggered"}, "thin_event"),
        ({"data": {}, "related_object": {"id": "sub_1", "type": "subscription"}}, "thin_event"),
    ],
)
def test_an_event_we_have_no_use_for_is_kept_with_the_reason_and_never_due(
    client: FlaskClient, database: Database, environ: dict[str, str], acme: str, change: Json, reason: str
) -> None:
    answer = deliver(client, a_change() | change)
    with a_worker(environ) as worker:
        until_quiet(worker)

    assert said(answer) == RECEIVED
    assert rows(database, "SELECT state, reason, attempt FROM inbox") == [
        {"state": "settled", "reason": reason, "attempt": 0}
    ]


def test_an_event_of_a_customer_nobody_owns_waits_outside_the_due(
    client: FlaskClient, database: Database, environ: dict[str, str]
) -> None:
    answer = deliver(client, a_change("cus_of_nobody"))
    with a_worker(environ) as worker:
        until_quiet(worker)

    assert said(answer) == RECEIVED
    assert rows(database, "SELECT state, attempt, held FROM inbox") == [
        {"state": "waiting", "attempt": 1, "held": None}
    ]


def test_the_row_names_the_trace_the_delivery_belongs_to(
    environ: dict[str, str], database: Database, tmp_path: Path
) -> None:
    trace, body = "4bf92f3577b34da6a3ce929d0e0e4736", json.dumps(a_change()).encode()
    headers = {"Stripe-Signature": signature(body), "traceparent": f"00-{trace}-00f067aa0ba902b7-01"}

    with a_collector() as (endpoint, _):
        exporting = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
        with served({**environ, **exporting}, tmp_path / "log") as service:
            answer = requests.post(service.url + WEBHOOK, body, headers=headers)

    assert answer.status_code == 200
    [row] = rows(database, "SELECT trace FROM inbox")
    assert re.fullmatch(rf"00-{trace}-[0-9a-f]{{16}}-01", row["trace"])


# ---- what is refused


@pytest.fixture
def without_database(make_app: MakeApp) -> FlaskClient:
    """A service whose database is not there: whatever it asks of it ends as 503."""
    client = make_app(DATABASE_URL=NOWHERE).test_client()
    assert said(deliver(client, a_change())) == UNAVAILABLE
    return client


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
def test_all_that_is_wrong_with_a_signature_gets_one_answer_and_costs_no_query(
    without_database: FlaskClient, forge: Forgery
) -> None:
    header, body = forge(json.dumps(a_change()).encode())

    assert said(deliver(without_database, body, Stripe_Signature=header)) == BAD_SIGNATURE


def test_no_signature_at_all_gets_the_same_answer_and_costs_no_query(without_database: FlaskClient) -> None:
    assert said(without_database.post(WEBHOOK, json=a_change())) == BAD_SIGNATURE


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
def test_what_is_signed_and_no_event_is_refused_and_costs_no_query(
    without_database: FlaskClient, body: bytes
) -> None:
    assert said(deliver(without_database, body)) == BAD_PAYLOAD


def test_what_is_refused_is_not_kept(client: FlaskClient, database: Database) -> None:
    header, body = FORGED["wrong"](json.dumps(a_change()).encode())

    deliver(client, body, Stripe_Signature=header)
    deliver(client, UNREADABLE["no type"])

    assert kept(database) == []


def padded(size: int) -> bytes:
    """An event of that many bytes."""
    return json.dumps(a_change(id="evt_1")).encode().ljust(size)


def deliver_in_chunks(client: FlaskClient, body: bytes) -> TestResponse:
    """Without a length, as gunicorn hands over a chunked body."""
    return client.post(
        WEBHOOK,
        input_stream=BytesIO(body),
        headers={"Stripe-Signature": signature(body), "Transfer-Encoding": "chunked"},
        environ_overrides={"wsgi.input_terminated": True},
    )


WAYS: dict[str, Callable[[FlaskClient, bytes], TestResponse]] = {
    "declared": deliver,
    "chunked": deliver_in_chunks,
}


@pytest.mark.parametrize("send", WAYS.values(), ids=WAYS)
def test_an_event_of_a_mebibyte_is_taken(
    client: FlaskClient, database: Database, send: Callable[[FlaskClient, bytes], TestResponse]
) -> None:
    answer = send(client, padded(1024 * 1024))

    assert said(answer) == RECEIVED
    assert rows(database, "SELECT octet_length(body) AS size FROM inbox") == [{"size": 1024 * 1024}]


@pytest.mark.parametrize("send", WAYS.values(), ids=WAYS)
def test_one_byte_more_is_refused_and_costs_no_query(
    without_database: FlaskClient, send: Callable[[FlaskClient, bytes], TestResponse]
) -> None:
    answer = send(without_database, padded(1024 * 1024 + 1))

    assert answer.status_code == 413
    assert answer.get_json()["code"] == "body_too_large"


class Unread(BytesIO):
    """A body nobody may wait for."""

    def read(self, size: int | None = -1, /) -> bytes:
        raise AssertionError("it was read")

    readinto = read  # type: ignore[assignment]


def test_what_is_declared_too_large_is_refused_unread(without_database: FlaskClient) -> None:
    """Or a caller that declares and sends nothing holds a thread."""
    answer = without_database.post(
        WEBHOOK,
        input_stream=Unread(),
        environ_overrides={"CONTENT_LENGTH": str(1024 * 1024 + 1), "wsgi.input_terminated": True},
    )

    assert answer.status_code == 413


# ---- rolling the secret


def signed_with(secrets: Iterable[str], body: bytes) -> str:
    """One time, and a signature for each secret, as Stripe sends while both are valid."""
    at = int(time.time())
    signatures = [signature(body, secret=secret, at=at).partition(",")[2] for secret in secrets]
    return ",".join([f"t={at}", *signatures])


def test_rolling_the_secret_loses_no_event(make_app: MakeApp, database: Database) -> None:
    """Ours learns the new one first, Stripe then signs with both, and ours forgets the old one last."""
    ours = {
        secrets: make_app(STRIPE_WEBHOOK_SECRET=",".join(secrets)).test_client()
        for secrets in [(OLD,), (OLD, NEW), (NEW,)]
    }
    steps: list[tuple[tuple[str, ...], list[tuple[str, ...]]]] = [  # Stripe's, and each serving instance's
        ((OLD,), [(OLD,)]),
        ((OLD,), [(OLD,), (OLD, NEW)]),
        ((OLD, NEW), [(OLD, NEW)]),
        ((NEW,), [(OLD, NEW)]),
        ((NEW,), [(OLD, NEW), (NEW,)]),
        ((NEW,), [(NEW,)]),
    ]
    sent = []
    for stripes, serving in steps:
        for client in (ours[secrets] for secrets in serving):
            event = a_change()
            body = json.dumps(event).encode()
            sent.append((event["id"], deliver(client, body, Stripe_Signature=signed_with(stripes, body))))

    assert {said(answer) for _, answer in sent} == {RECEIVED}
    assert kept(database) == [event_id for event_id, _ in sent]


def test_the_row_says_which_secret_held(make_app: MakeApp, database: Database) -> None:
    client = make_app(STRIPE_WEBHOOK_SECRET=f"{OLD}, {NEW}").test_client()

    for secret in (OLD, NEW):
        body = json.dumps(a_change()).encode()
        deliver(client, body, Stripe_Signature=signature(body, secret=secret))

    found = rows(database, "SELECT secret FROM inbox ORDER BY id")
    assert [row["secret"] for row in found] == [fingerprint(OLD), fingerprint(NEW)]


def test_an_instance_that_has_not_heard_of_the_new_secret_refuses_and_another_takes_the_next_try(
    make_app: MakeApp, database: Database
) -> None:
    body = json.dumps(a_change(id="evt_1")).encode()
    late, ready = (make_app(STRIPE_WEBHOOK_SECRET=secret).test_client() for secret in (OLD, NEW))

    answers = [
        said(deliver(client, body, Stripe_Signature=signature(body, secret=NEW))) for client in (late, ready)
    ]

    assert answers == [BAD_SIGNATURE, RECEIVED]
    assert kept(database) == ["evt_1"]


# ---- what the door itself may do


def test_the_webhooks_scope_sees_and_changes_nothing(client: FlaskClient, database: Database) -> None:
    deliver(client, a_change())
    link(database, "t_acme", "cus_1")

    with database.begin(WEBHOOKS_SCOPE) as connection:
        for table in ("inbox", "tenant_config"):
            assert connection.execute(text(f"SELECT FROM {table}")).all() == []
            assert connection.execute(text(f"DELETE FROM {table}")).rowcount == 0
        assert connection.execute(text("UPDATE inbox SET state = 'waiting'")).rowcount == 0

    assert rows(database, "SELECT state FROM inbox") == [{"state": "due"}]


def test_the_webhooks_scope_adds_to_the_inbox_only(database: Database) -> None:
    with (
        pytest.raises(ProgrammingError, match="row-level security"),
        database.begin(WEBHOOKS_SCOPE) as connection,
    ):
        connection.execute(text("INSERT INTO tenant_config (tenant_id) VALUES ('t_acme')"))


# ---- while the database is in trouble


@pytest.fixture
def gateway(database_url: str) -> Iterator[Gateway]:
    with a_gateway(database_url) as gateway:
        yield gateway


@contextmanager
def refusing(gateway: Gateway, _: str) -> Iterator[None]:
    gateway.refuse()
    yield
    gateway.restore()


@contextmanager
def swallowing(gateway: Gateway, _: str) -> Iterator[None]:
    gateway.swallow()
    yield
    gateway.restore()


@contextmanager
def without_the_table(_: Gateway, database_url: str) -> Iterator[None]:
    with psycopg.connect(plain(database_url), autocommit=True) as owner:
        owner.execute("ALTER TABLE inbox RENAME TO inbox_away")
        yield
        owner.execute("ALTER TABLE inbox_away RENAME TO inbox")


@contextmanager
def locked(_: Gateway, database_url: str) -> Iterator[None]:
    with psycopg.connect(plain(database_url)) as owner:
        owner.execute("LOCK TABLE inbox")
        yield


def plain(database_url: str) -> str:
    """The address as libpq knows it."""
    return database_url.replace("postgresql+psycopg://", "postgresql://")


Trouble = Callable[[Gateway, str], AbstractContextManager[None]]


@pytest.mark.parametrize("trouble", [refusing, swallowing, without_the_table, locked])
def test_an_event_that_cannot_be_stored_is_asked_for_again_in_seconds_and_then_taken(
    make_app: MakeApp, gateway: Gateway, database: Database, database_url: str, trouble: Trouble
) -> None:
    client = make_app(DATABASE_URL=gateway.url).test_client()
    deliver(client, a_change(id="evt_before"))

    with trouble(gateway, database_url):
        began = time.monotonic()
        answer = deliver(client, a_change(id="evt_1"))
        took = time.monotonic() - began
    again = deliver(client, a_change(id="evt_1"))

    assert said(answer) == UNAVAILABLE
    assert int(answer.headers["Retry-After"]) > 0
    assert took < 4.5
    assert said(again) == RECEIVED
    assert kept(database) == ["evt_before", "evt_1"]


def test_a_database_that_is_silent_from_the_start_is_no_reason_to_hang(
    make_app: MakeApp, gateway: Gateway, database: Database
) -> None:
    client = make_app(DATABASE_URL=gateway.url).test_client()
    gateway.swallow()

    began = time.monotonic()
    answer = deliver(client, a_change())
    took = time.monotonic() - began

    assert said(answer) == UNAVAILABLE
    assert took < 4.5


def test_a_commit_whose_news_is_lost_on_the_way_costs_a_second_delivery_and_no_second_row(
    make_app: MakeApp, gateway: Gateway, database: Database, database_url: str
) -> None:
    client, event = make_app(DATABASE_URL=gateway.url).test_client(), a_change(id="evt_1")
    with ThreadPoolExecutor(1) as sender:
        with locked(gateway, database_url):
            first = sender.submit(deliver, client, event)
            wait_until(lambda: bool(rows(database, WAITING_FOR_THE_TABLE)))
            gateway.swallow()
        wait_until(lambda: kept(database) == ["evt_1"])
    gateway.restore()

    again = deliver(client, event)

    assert said(first.result()) == UNAVAILABLE
    assert said(again) == RECEIVED
    assert kept(database) == ["evt_1"]


WAITING_FOR_THE_TABLE = """
    SELECT FROM pg_locks WHERE NOT granted AND relation = 'inbox'::regclass
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


# ---- as it is deployed


class Caller:
    """One connection to the service, kept open for request after request as long as the service does."""

    def __init__(self, service: Served) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(service.url).netloc, timeout=20)

    def post(self, header: str, body: bytes, *, chunked: bool = False) -> tuple[int, bytes]:
        headers = {"Stripe-Signature": header, "Content-Type": "application/json"}
        data = iter([body]) if chunked else body
        self._connection.request("POST", WEBHOOK, data, headers, encode_chunked=chunked)
        return self._answer()

    def declare(self, size: int) -> tuple[int, bytes]:
        """Announce a body, and hear what is said to that."""
        self._connection.putrequest("POST", WEBHOOK)
        self._connection.putheader("Content-Length", str(size))
        self._connection.endheaders()
        answer = self._answer()
        self._connection.close()
        return answer

    def close(self) -> None:
        self._connection.close()

    def _answer(self) -> tuple[int, bytes]:
        answer = self._connection.getresponse()
        return answer.status, answer.read()


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def memory(process: int) -> int:
    """What a process really occupies, in bytes."""
    [kilobytes] = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(kilobytes) * 1024


CANARY = "evt_canary"
Bad = Callable[[Caller], tuple[int, bytes]]


def bad_requests() -> list[Bad]:
    """One of every kind there is."""
    body = json.dumps(a_change(id=CANARY)).encode()
    replayed = signature(body, at=int(time.time()) - 3600)
    too_large = body.ljust(LARGEST_EVENT + 1)

    def forged(forge: Forgery) -> Bad:
        return lambda caller: caller.post(*forge(body))

    def malformed(body: bytes) -> Bad:
        return lambda caller: caller.post(signature(body), body)

    return [
        *map(forged, FORGED.values()),
        *map(malformed, UNREADABLE.values()),
        lambda caller: caller.post(replayed, body),
        lambda caller: caller.post("t=1,v1=00", too_large, chunked=True),
        lambda caller: caller.post(signature(too_large), too_large, chunked=True),
        lambda caller: caller.declare(LARGEST_EVENT + 1),
        lambda caller: caller.declare(10**12),
    ]


def test_thousands_of_bad_requests_are_all_refused_without_a_query_or_growth(
    environ: dict[str, str], tmp_path: Path
) -> None:
    """The database is not there, so that a single query would be a 503."""
    bad = bad_requests()

    with served({**environ, "DATABASE_URL": NOWHERE}, tmp_path / "log") as service:
        workers = children(service.process.pid)

        def send(numbers: range) -> list[tuple[int, bytes]]:
            caller = Caller(service)
            answers = [bad[number % len(bad)](caller) for number in numbers]
            caller.close()
            return answers

        def send_all(start: int, stop: int) -> list[tuple[int, bytes]]:
            with ThreadPoolExecutor(SENDERS) as senders:
                shares = [range(start + sender, stop, SENDERS) for sender in range(SENDERS)]
                return [answer for answers in senders.map(send, shares) for answer in answers]

        answers = send_all(0, HOW_MANY // 4)  # until every thread and buffer there will be is there
        before = [memory(worker) for worker in workers]
        answers += send_all(HOW_MANY // 4, HOW_MANY)
        grown = [memory(worker) - was for worker, was in zip(workers, before, strict=True)]
        said_of_it = service.log.read_text()

    assert len(answers) == HOW_MANY
    assert {status for status, _ in answers} == {400, 413}
    assert {json.loads(body)["error"] for _, body in answers} == {
        "Invalid signature",
        "Invalid payload",
        "The request body is too large",
    }
    assert max(grown) < 20 * 1024 * 1024
    assert CANARY not in said_of_it


@dataclass
class Ledger:
    """What a sender was told, event by event."""

    acknowledged: list[str] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)

    def note(self, caller: Caller, event_id: str) -> None:
        """Send the event once, and write down what came of it."""
        body = json.dumps(a_change(id=event_id)).encode()
        try:
            status, _ = caller.post(signature(body), body)
        except (http.client.HTTPException, OSError):
            caller.close()
            status = 0
        (self.acknowledged if status == 200 else self.unanswered).append(event_id)


def test_whatever_was_acknowledged_by_a_worker_that_is_killed_has_its_row(
    environ: dict[str, str], database: Database, tmp_path: Path
) -> None:
    ledger, numbers, stop = Ledger(), itertools.count(), threading.Event()

    def send(service: Served) -> None:
        caller = Caller(service)
        while not stop.is_set():
            ledger.note(caller, f"evt_{next(numbers)}")
        caller.close()

    with served(environ, tmp_path / "log") as service, ThreadPoolExecutor(SENDERS) as senders:
        try:
            traffic = [senders.submit(send, service) for _ in range(SENDERS)]
            for kill in range(1, KILLS + 1):
                been = len(ledger.acknowledged)
                wait_until(lambda been=been: len(ledger.acknowledged) > been + 50)  # type: ignore[misc]
                os.kill(min(children(service.process.pid)), signal.SIGKILL)  # the older has the connections
                wait_until(lambda ready=2 + kill: count_of_ready(service) == ready)  # type: ignore[misc]
        finally:
            stop.set()
        for sender in traffic:
            sender.result()
        kept_at_first = kept(database)
        again, caller = Ledger(), Caller(service)
        for event_id in ledger.unanswered:
            again.note(caller, event_id)
        caller.close()

    assert ledger.unanswered, "no kill met a delivery"
    assert set(ledger.acknowledged) <= set(kept_at_first)
    assert again.acknowledged == ledger.unanswered
    assert Counter(kept(database)) == Counter(ledger.acknowledged + ledger.unanswered)


def count_of_ready(service: Served) -> int:
    return service.log.read_text().count("Worker ready")
