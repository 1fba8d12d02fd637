"""Stripe's events as they arrive: made by hand, signed for real, delivered over HTTP; and workers for them."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import itertools
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from flask.testing import FlaskClient
from sqlalchemy import text
from werkzeug.test import TestResponse

from billing import catalogue, cataloguing, chores, config, events, inbox, sync, telemetry, wiring
from billing.db import SYSTEM, Database
from billing.db import WEBHOOK as WEBHOOK_SCOPE
from billing.inbox import Delivery
from billing.stripe_api import API_VERSION
from billing.sync import Outcome
from billing.worker import Worker
from sandbox.server import Control
from tests.conftest import ROOT, SIGNING_SECRET

WEBHOOK = "/webhooks/stripe"

Json = dict[str, Any]

_numbers = itertools.count(1)


def a_subscription(customer: str, **changes: Any) -> Json:
    """A subscription as events carry it, with what is kept of one; `items` are (id, price, quantity)."""
    items = [("si_1", "price_1", 1)] if "items" not in changes else changes.pop("items")
    start = 1_700_000_000
    return {
        "id": "sub_1",
        "object": "subscription",
        "customer": customer,
        "status": "active",
        "cancel_at": None,
        "cancel_at_period_end": False,
        "canceled_at": None,
        "ended_at": None,
        "trial_end": None,
        "pause_collection": None,
        "latest_invoice": "in_1",
        "start_date": start,
        "items": {
            "object": "list",
            "has_more": False,
            "data": [
                {
                    "id": id,
                    "object": "subscription_item",
                    "price": {"id": price, "object": "price", "product": f"prod_of_{price}"},
                    "quantity": quantity,
                    "current_period_start": start,
                    "current_period_end": start + 30 * 86400,
                }
                for id, price, quantity in items
            ],
        },
        **changes,
    }


def a_catalogue(database: Database, **content: Any) -> int:
    """Have a catalogue been read: `products`, `prices` and `features` as they are kept. Its edition."""
    with database.begin(SYSTEM) as connection:
        catalogue.keep(connection, catalogue.begin(connection), {"products": [], "prices": [], **content})
        return catalogue.current(connection).edition


def an_invoice(customer: str, subscription: str = "sub_1", **changes: Any) -> Json:
    """An invoice as Stripe writes it into events, with what is kept of one."""
    return {
        "id": "in_1",
        "object": "invoice",
        "customer": customer,
        "status": "paid",
        "attempted": True,
        "parent": {"type": "subscription_details", "subscription_details": {"subscription": subscription}},
        "status_transitions": {"finalized_at": 1_700_000_000},
        **changes,
    }


def an_event(kind: str, thing: Json, *, created: int | None = None, **changes: Any) -> Json:
    """An event about a thing, made just now unless `created` says otherwise."""
    return {
        "id": f"evt_{os.getpid()}_{next(_numbers)}",
        "object": "event",
        "api_version": API_VERSION,
        "created": int(time.time()) if created is None else created,
        "data": {"object": thing},
        "livemode": False,
        "type": kind,
        **changes,
    }


def signature(body: bytes, *, secret: str = SIGNING_SECRET, at: int | None = None) -> str:
    """What Stripe puts into Stripe-Signature."""
    at = int(time.time()) if at is None else at
    digest = hmac.new(secret.encode(), str(at).encode() + b"." + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


def deliver(client: FlaskClient, event: Json | bytes, **headers: str) -> TestResponse:
    """POST the event as Stripe does; `Stripe_Signature` replaces the good signature."""
    body = event if isinstance(event, bytes) else json.dumps(event, indent=2).encode()
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    given.setdefault("Stripe-Signature", signature(body))
    return client.post(WEBHOOK, data=body, headers=given, content_type="application/json; charset=utf-8")


def at_stripe(sandbox: Control, method: str, path: str, **params: Any) -> Json:
    """A call of Stripe's API by somebody else: the Dashboard, or the shop."""
    query, body = (params, None) if method == "GET" else (None, params)
    answer = requests.request(
        method, f"{sandbox.url}/v1/{path}", params=query, data=body, auth=(sandbox.key, "")
    )
    answer.raise_for_status()
    told: Json = answer.json()
    return told


def a_price(sandbox: Control) -> str:
    """Something that can be subscribed to, by the month."""
    product = at_stripe(sandbox, "POST", "products", name="Pro")["id"]
    price = {"product": product, "currency": "eur", "unit_amount": 1000, "recurring[interval]": "month"}
    return str(at_stripe(sandbox, "POST", "prices", **price)["id"])


def pays_by(sandbox: Control, customer: str, card: str) -> None:
    """Have the customer pay by this test card from now on."""
    method = at_stripe(sandbox, "POST", f"payment_methods/{card}/attach", customer=customer)["id"]
    at_stripe(sandbox, "POST", f"customers/{customer}", **{"invoice_settings[default_payment_method]": method})


def subscribe(sandbox: Control, customer: str, *, price: str | None = None, **params: Any) -> Json:
    """A subscription at Stripe, paid by a card that works."""
    pays_by(sandbox, customer, "pm_card_visa")
    wanted = {"customer": customer, "items[0][price]": price or a_price(sandbox), **params}
    return at_stripe(sandbox, "POST", "subscriptions", **wanted)


def happened(sandbox: Control, customer: str) -> list[Json]:
    """The events Stripe has made of a customer's subscriptions, invoices and end, oldest first."""
    listed = at_stripe(sandbox, "GET", "events", limit=100)["data"]
    return [
        event
        for event in reversed(listed)
        if customer in (event["data"]["object"].get("customer"), event["data"]["object"].get("id"))
    ]


def keep(database: Database, event: Json, *, late: int = 0) -> None:
    """As the door does with an event that was sent so many seconds after it was made, whenever that was."""
    read = events.read(json.dumps(event).encode())
    assert read.created is not None
    given = {name: getattr(read, name) for name in ("type", "object_id", "customer", "created", "api_version")}
    delivery = Delivery(
        read.id,
        **given,
        livemode=read.livemode,
        body=json.dumps(event).encode(),
        sent_at=read.created + late,
        unused=events.why_unused(read, livemode=False),
    )
    assert database.run(WEBHOOK_SCOPE, inbox.receive(delivery))


def take_in(database: Database) -> Outcome:
    """Claim and apply what is due, once and in this thread; nobody is asked."""
    with database.begin(SYSTEM) as connection:
        claimed = inbox.claim(connection, most=200, lease=timedelta(seconds=20))
    return sync.apply(database, claimed)


def make_due(database: Database) -> None:
    """As if the delays before a second look and before the next question were over."""
    with database.begin(SYSTEM) as connection:
        connection.execute(
            text("UPDATE inbox SET due_at = clock_timestamp() WHERE state = 'due' AND held IS NULL")
        )
        connection.execute(
            text("UPDATE stripe_customers SET wanted_at = clock_timestamp() WHERE wanted_at IS NOT NULL")
        )


def logged(caplog: pytest.LogCaptureFixture) -> Callable[[], list[Json]]:
    """Listen to the service; the answer tells what it has said since, as it would be written."""
    telemetry.configure_logging()
    logging.getLogger().addHandler(caplog.handler)  # which configuring has removed
    return lambda: [record.msg for record in caplog.records if isinstance(record.msg, dict)]


def leave_the_catalogue(database: Database) -> None:
    """No worker reads it today."""
    with database.begin(SYSTEM) as connection:
        chores.take(connection, cataloguing.CHORE, timedelta(days=1))


@contextlib.contextmanager
def a_worker(environ: dict[str, str], *, catalogues: bool = False, **options: Any) -> Iterator[Worker]:
    """A worker in this process, for tests that make its rounds one by one with `work()`.

    Unless it `catalogues`, it leaves the catalogue alone: all tests of a process sell in the same sandbox.
    """
    billing = wiring.build(config.load(environ))
    if not catalogues:
        leave_the_catalogue(billing.db)
    worker = Worker(billing, **options)
    yield worker
    worker.finish()
    billing.db.close()


def until_quiet(worker: Worker, *, seconds: float = 20) -> None:
    """Make rounds until nothing is due and no question is in flight."""
    deadline = time.monotonic() + seconds
    while worker.work() or worker.is_asking:
        assert time.monotonic() < deadline, "it did not become quiet"


@contextlib.contextmanager
def working(
    environ: dict[str, str], log: Path, *, module: str = "billing.worker", processes: int = 1
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Real worker processes; `module` may be one of the tests' that does something at a point of the work."""
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(a_process(environ, log.with_suffix(f".{number}"), module))
            for number in range(processes)
        ]
        yield started


@contextlib.contextmanager
def a_process(environ: dict[str, str], log: Path, module: str) -> Iterator[subprocess.Popen[bytes]]:
    """One worker process, killed at the end if it still runs."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], **environ},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
