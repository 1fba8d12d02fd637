"""From Stripe's request to the feed: one may follow what happened, in both directions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from billing import questions
from billing.db import SYSTEM, Database
from billing.worker import Worker
from sandbox.server import Control
from tests.conftest import ROOT, SIGNING_SECRET, MakeApp, rows
from tests.deliveries import (
    a_catalogue,
    a_worker,
    an_event,
    at_stripe,
    deliver,
    keep,
    logged,
    make_due,
    subscribe,
    until_quiet,
)
from tests.traced import Heard, listening, said

ASKS = "entitlements.active_entitlement_summary.updated"
SPAN = re.compile(r"(?:POST /webhooks/stripe|HTTP GET|(?:inbox|worker|document)\.\w+)(?=  |$)", re.MULTILINE)
UPDATED = "customer.subscription.updated"


@pytest.fixture
def heard() -> Iterator[Heard]:
    with listening() as heard:
        yield heard


def links(span: ReadableSpan) -> dict[str, tuple[int, int]]:
    """Where a span's links lead, by event."""
    return {
        str((link.attributes or {})["billing.event"]): (link.context.trace_id, link.context.span_id)
        for link in span.links
    }


def place(span: ReadableSpan) -> tuple[int, int]:
    return span.context.trace_id, span.context.span_id


def parents(span: ReadableSpan, heard: Heard) -> list[str]:
    """The names of the spans it is in, innermost first."""
    by_id = {one.context.span_id: one for one in heard.all()}
    names = []
    while span.parent is not None:
        span = by_id[span.parent.span_id]
        names.append(span.name)
    return names


def drawn() -> set[str]:
    """The spans in the picture that the documents have of this."""
    told = (ROOT / "docs" / "architecture.md").read_text().partition("## From a request to the feed")[2]
    return set(SPAN.findall(told.split("```")[1]))


def a_minute_passes(database: Database) -> None:
    """As if what is held had been true for a while: a change close to an answer would have Stripe asked."""
    back = "as_of = as_of - interval '1 minute', as_of_end = as_of_end - interval '1 minute'"
    assert rows(database, f"UPDATE subscriptions SET {back} RETURNING 1")


class Story:
    """A tenant with a subscription, and everything that is told of it."""

    def __init__(self, database: Database, worker: Worker, heard: Heard, customer: str) -> None:
        self.database, self.worker, self.heard, self.customer = database, worker, heard, customer

    def document(self) -> dict[str, Any]:
        [row] = rows(self.database, "SELECT tenant_id, version, position FROM tenant_states")
        return row

    def work(self) -> None:
        make_due(self.database)
        until_quiet(self.worker)

    def change(self) -> ReadableSpan:
        """The span of the version that the document has now."""
        document = self.document()
        [span] = self.heard.of("document.changed", tenant=document["tenant_id"], version=document["version"])
        assert said(span, "position") == document["position"]
        return span

    def delivery(self, event: dict[str, Any]) -> ReadableSpan:
        """The span of the request that brought the event."""
        [span] = self.heard.of("POST /webhooks/stripe", event=event["id"])
        return span


def test_a_version_leads_to_the_requests_that_made_it_and_a_request_to_what_it_changed(
    make_app: MakeApp,
    database: Database,
    environ: dict[str, str],
    sandbox: Control,
    acme: str,
    customer: str,
    heard: Heard,
    caplog: pytest.LogCaptureFixture,
) -> None:
    a_catalogue(database)
    bought = subscribe(sandbox, customer)
    service = make_app().test_client()
    lines = logged(caplog)
    with a_worker(environ) as worker:
        story = Story(database, worker, heard, customer)
        with database.begin(SYSTEM) as connection:
            questions.want(connection, [customer])
        story.work()
        first = story.document()["version"]

        # an event that is certain: the worker's batch applies it
        a_minute_passes(database)
        certain = an_event(UPDATED, {**bought, "cancel_at_period_end": True})
        assert deliver(service, certain).status_code == 200
        story.work()
        applied = story.change()

        # one that has Stripe asked: the answer changes the document
        at_stripe(sandbox, "DELETE", f"subscriptions/{bought['id']}")
        asks = an_event(ASKS, {"object": "entitlements.active_entitlement_summary", "customer": customer})
        assert deliver(service, asks).status_code == 200
        sandbox.fault("500", path="/v1/subscriptions", times=1)
        story.work()
        [failed] = heard.of("worker.ask", customer=customer, failure="broken")
        story.work()
        answered = story.change()

        # one that we fetched ourselves: no request brought it
        subscribe(sandbox, customer)
        fetched = an_event(ASKS, {"object": "entitlements.active_entitlement_summary", "customer": customer})
        keep(database, fetched)
        story.work()
        mended = story.change()

    changes = (applied, answered, mended)
    assert [said(span, "version") for span in changes] == [first + 1, first + 2, first + 3]
    for span, event, within in ((applied, certain, "worker.apply"), (answered, asks, "worker.ask")):
        assert links(span) == {event["id"]: place(story.delivery(event))}
        assert parents(span, heard) == [within]
        [cause] = [one for one in heard.of(within) if span.parent and place(one)[1] == span.parent.span_id]
        assert links(cause) == links(span)
    assert links(failed) == links(answered)
    [batch] = [one for one in heard.of("worker.apply") if asks["id"] in links(one)]
    assert links(batch) == {asks["id"]: place(story.delivery(asks))}
    assert (links(mended), said(mended, "events")) == ({}, (fetched["id"],))
    assert parents(mended, heard) == ["worker.ask"]

    told = {(line["version"], *line["events"]) for line in lines() if line["event"] == "document.changed"}
    assert {(first + 1, certain["id"]), (first + 2, asks["id"]), (first + 3, fetched["id"])} <= told
    assert {"POST /webhooks/stripe", "worker.ask"} < drawn() < {span.name for span in heard.all()}
    everything = "".join(span.to_json() for span in heard.all())
    for secret in (SIGNING_SECRET, sandbox.key, "ada@acme.example", "Acme GmbH"):
        assert secret not in everything
