"""The figures an alarm goes by: they show what is wrong, name nobody, and cost nothing where nobody listens."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest
from opentelemetry.metrics import Meter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from billing import alarms, drift, telemetry, vitals
from billing.db import SYSTEM, Database
from billing.errors import StripeFailed
from billing.feed import Consumer
from billing.stripe_api import Stripe
from billing.telemetry import Figure, Gauge
from sandbox.server import Control
from tests.conftest import SIGNING_SECRET, MakeApp
from tests.deliveries import a_subscription, a_worker, an_event, deliver, signature, until_quiet
from tests.test_webhooks import NOWHERE
from tests.traced import Point, counting, point, taken

ALL = {gauge.name for gauge in alarms.GAUGES}
NOW = datetime(2026, 11, 27, 3, 0, tzinfo=UTC)


def a_meter() -> tuple[Meter, InMemoryMetricReader]:
    """And an exporter, which takes what it measures whenever it is asked."""
    reader = InMemoryMetricReader()
    return MeterProvider(metric_readers=[reader]).get_meter("billing"), reader


def exported() -> dict[str, Counter[Point]]:
    """What a process that begins to export now would send first."""
    meter, reader = a_meter()
    telemetry.report(meter)
    return taken(reader)


# ---- gauges


def test_the_gauges_say_what_the_vitals_say(database: Database) -> None:
    with database.begin(SYSTEM) as connection:
        idle = vitals.taken(connection)
    hour_ago = NOW - timedelta(hours=1)
    ill = replace(
        idle,
        buried=3,
        oldest_unprocessed=400.0,
        last_webhook=7200.0,
        never_synced=2,
        drifted={**drift.none(), "changed": 4},
        consumers=[Consumer("search", 10, 212, hour_ago), Consumer("reports", 222, 0, NOW)],
    )
    search, reports = {"consumer": "search"}, {"consumer": "reports"}

    assert list(alarms.figures(ill, timedelta(hours=1), NOW)) == [
        Figure("billing.inbox.oldest", 400.0),
        Figure("billing.inbox.buried", 3),
        Figure("billing.webhook.age", 7200.0),
        Figure("billing.webhook.silent", 1),
        Figure("billing.workers", 0),
        Figure("billing.tenants.unsynced", 2),
        Figure("billing.tenants.drifted", 4, {"kind": "changed"}),
        *(Figure("billing.tenants.drifted", 0, {"kind": kind}) for kind in drift.KINDS[1:]),
        Figure("billing.feed.behind", 212, search),
        Figure("billing.feed.unseen", 3600.0, search),
        Figure("billing.feed.behind", 0, reports),
        Figure("billing.feed.unseen", 0.0, reports),
    ]
    assert {one.gauge for one in alarms.figures(ill, None, NOW)} == ALL
    assert Figure("billing.webhook.silent", 0) in alarms.figures(ill, None, NOW)  # nothing is expected


def test_all_gauges_are_of_one_measure_and_of_none_that_failed(
    database: Database, environ: dict[str, str]
) -> None:
    always = ALL - {"billing.webhook.age", "billing.feed.behind", "billing.feed.unseen"}  # nobody is there yet
    with counting("billing.calls") as calls, a_worker(environ) as worker:
        worker.work()
        first = exported()
        measured = calls()[point(operation="alarms.measure", outcome="ok")]
    alarms.watch(away := Database(NOWHERE, pool_size=1), None)
    unmeasured = exported()
    away.close()

    assert set(first) == always
    assert first["billing.workers"] == {point(): 1}
    assert measured == 1
    assert unmeasured == {}


def test_what_could_not_be_measured_is_not_said_to_be_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "AT_ONCE_SECONDS", 0.0)
    answers: Iterator[object] = iter([7, KeyError("a bug"), 8])
    meter, reader = a_meter()

    def measure() -> Iterator[Figure]:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        yield Figure("billing.it", cast(float, answer))

    telemetry.report(meter, {(Gauge("billing.it", "1", "It"),): measure})

    said = [taken(reader).get("billing.it") for _ in range(3)]

    assert said == [{point(): 7}, None, {point(): 8}]


def test_where_nobody_exports_nothing_is_measured(environ: dict[str, str], database: Database) -> None:
    with counting("billing.calls") as calls, a_worker(environ) as worker:
        telemetry.start()
        until_quiet(worker)

    assert calls()[point(operation="alarms.measure", outcome="ok")] == 0
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("Otel")]


# ---- counters


def test_signatures_are_counted_by_the_place_of_their_secret_and_by_what_was_wrong(
    make_app: MakeApp, database: Database
) -> None:
    client = make_app(STRIPE_WEBHOOK_SECRET=f"whsec_the_new_one_of_two,{SIGNING_SECRET}").test_client()
    body = json.dumps(an_event("customer.updated", a_subscription("cus_1"))).encode()
    with counting("billing.webhook.signatures") as signatures:
        for header in (
            signature(body),
            signature(body),
            signature(body, secret="whsec_the_new_one_of_two"),
            signature(body, secret="whsec_of_somebody_else"),
            signature(body, at=int(time.time()) - 3600),
            "",
        ):
            deliver(client, body, Stripe_Signature=header)

    assert signatures() == {
        point(secret="2", outcome="holds"): 2,
        point(secret="1", outcome="holds"): 1,
        point(secret="none", outcome="no_match"): 1,
        point(secret="none", outcome="out_of_time"): 1,
        point(secret="none", outcome="unsigned"): 1,
    }


def test_requests_to_stripe_are_counted_by_endpoint_and_outcome_and_never_by_id(
    sandbox: Control, customer: str
) -> None:
    stripe = Stripe(sandbox.key, base=sandbox.url, deadline=0.5)
    nobody = Stripe(sandbox.key, base="http://127.0.0.1:1", deadline=0.5)
    one, many = "GET /v1/customers/{id}", "GET /v1/subscriptions"
    with counting("billing.stripe.calls") as calls:
        stripe.customer(customer)
        stripe.customer("cus_nobody")
        stripe.customers_with(tenant_id="t_acme")
        stripe.entitlements_of(customer)
        for fault in ("429", "401", "500", "hang"):
            sandbox.fault(fault, path="/v1/subscriptions", times=1)
            with pytest.raises(StripeFailed):
                stripe.subscriptions_of(customer)
        with pytest.raises(StripeFailed):
            nobody.expire_checkout("cs_test_1")

    assert calls() == {
        point(endpoint=one, outcome="ok"): 1,
        point(endpoint=one, outcome="not_found"): 1,
        point(endpoint="GET /v1/customers/search", outcome="ok"): 1,
        point(endpoint="GET /v1/entitlements/active_entitlements", outcome="ok"): 1,
        point(endpoint=many, outcome="rate_limited"): 1,
        point(endpoint=many, outcome="key_refused"): 1,
        point(endpoint=many, outcome="broken"): 1,
        point(endpoint=many, outcome="timeout"): 1,
        point(endpoint="POST /v1/checkout/sessions/{id}/expire", outcome="unreachable"): 1,
    }
