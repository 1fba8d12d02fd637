"""`flask billing listen`: a test account's events come to the webhook without Stripe ever posting one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from flask import Flask
from werkzeug.serving import make_server

from billing.budget import Budget
from billing.db import Database
from billing.listening import OVERLAP_SECONDS, Listener, Told
from billing.stripe_api import Stripe
from sandbox.server import Control, running
from tests.conftest import ROOT, SIGNING_SECRET, MakeApp, rows
from tests.deliveries import subscribe
from tests.sandbox.conftest import wait_until
from tests.test_commands import say

NOBODY = "http://127.0.0.1:9/webhooks/stripe"


@pytest.fixture(scope="module")
def stripe_stand_in() -> Iterator[Control]:
    """An account of our own, for these tests see all that happens in it; it has no webhook endpoint."""
    with running() as control:
        yield control


@contextmanager
def served(app: Flask, port: int = 0) -> Iterator[str]:
    """The address of the app's webhook, over real HTTP."""
    server = make_server("127.0.0.1", port, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/webhooks/stripe"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


MakeListener = Callable[..., Listener]


@pytest.fixture
def make_listener(database: Database, sandbox: Control) -> MakeListener:
    """A listener that has had its first look."""

    def make(to: str, secret: str = SIGNING_SECRET) -> Listener:
        stripe = Stripe(sandbox.key, base=sandbox.url)
        listener = Listener(stripe, Budget(database, 100), to=to, secret=secret)
        assert listener.look(lambda told: pytest.fail(str(told)))
        return listener

    return make


def hears(listener: Listener) -> list[Told]:
    """What it tells in one look."""
    told: list[Told] = []
    listener.look(told.append)
    return told


def happen(sandbox: Control, *names: str, created: int | None = None) -> list[str]:
    """Events about nothing in particular, in this order."""
    return [
        str(sandbox.happen("invoice.paid", {"id": name, "object": "invoice"}, created=created)["id"])
        for name in names
    ]


def test_what_happens_comes_to_the_webhook_signed_and_oldest_first(
    make_app: MakeApp, make_listener: MakeListener, database: Database, sandbox: Control
) -> None:
    with served(make_app()) as webhook:
        listener = make_listener(webhook)
        happened = happen(sandbox, "first", "second", "third")

        told = hears(listener)

    assert [(one.event_id, one.status) for one in told] == [(event, 200) for event in happened]
    assert [row["event_id"] for row in rows(database, "SELECT event_id FROM inbox ORDER BY id")] == happened


def test_what_happened_before_is_left_alone(
    make_app: MakeApp, make_listener: MakeListener, sandbox: Control
) -> None:
    happen(sandbox, "before")
    with served(make_app()) as webhook:
        listener = make_listener(webhook)

        assert hears(listener) == []


def test_an_event_of_the_same_second_and_one_that_is_listed_late_are_not_missed(
    make_app: MakeApp, make_listener: MakeListener, sandbox: Control
) -> None:
    now = sandbox.now()
    happen(sandbox, "before", created=now)
    with served(make_app()) as webhook:
        listener = make_listener(webhook)
        same_second = happen(sandbox, "after", created=now)
        listed_late = happen(sandbox, "late", created=now - OVERLAP_SECONDS // 2)

        told = {one.event_id for one in hears(listener)}

        assert hears(listener) == []
    assert told == {*same_second, *listed_late}


def test_more_than_a_page_comes_whole(make_app: MakeApp, make_listener: MakeListener, sandbox: Control) -> None:
    with served(make_app()) as webhook:
        listener = make_listener(webhook)
        happened = happen(sandbox, *(f"in_{number}" for number in range(130)))

        assert [one.event_id for one in hears(listener)] == happened


def test_while_the_webhook_is_away_nothing_is_lost_and_the_order_is_kept(
    make_app: MakeApp, make_listener: MakeListener, database: Database, sandbox: Control
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    listener = make_listener(f"http://127.0.0.1:{port}/webhooks/stripe")
    happened = happen(sandbox, "first", "second")

    away = hears(listener)
    with served(make_app(), port):
        back = hears(listener)
        after = hears(listener)

    assert [(one.event_id, one.status) for one in away] == [(happened[0], None)]
    assert [(one.event_id, one.status) for one in back] == [(event, 200) for event in happened]
    assert after == []


def test_a_webhook_that_refuses_an_event_holds_up_no_other(
    make_app: MakeApp, make_listener: MakeListener, sandbox: Control
) -> None:
    with served(make_app()) as webhook:
        listener = make_listener(webhook, secret="whsec_of_somebody_else")
        happen(sandbox, "first", "second")

        assert [one.status for one in hears(listener)] == [400, 400]
        assert hears(listener) == []


def test_each_look_counts_in_the_budget_of_reads(
    make_app: MakeApp, make_listener: MakeListener, database: Database, sandbox: Control
) -> None:
    make_listener(NOBODY)

    lanes = rows(database, "SELECT endpoint, lane FROM stripe_reads")
    assert lanes == [{"endpoint": "events.list", "lane": "background"}]


def test_a_live_key_is_refused_before_anything_is_asked(make_app: MakeApp, environ: dict[str, str]) -> None:
    del environ["STRIPE_API_BASE"]

    result = say(make_app, "listen", STRIPE_SECRET_KEY="sk_live_x")

    assert result.exit_code == 1
    assert "listen with a test key" in result.output


def test_the_command_goes_on_through_an_outage_of_stripe_and_ends_quietly(
    make_app: MakeApp, environ: dict[str, str], database: Database, acme: str, customer: str, sandbox: Control,
    tmp_path: Path,
) -> None:  # fmt: skip
    log = tmp_path / "log"
    with served(make_app()) as webhook, log.open("wb") as output:
        command = [sys.executable, "-m", "flask", "billing", "listen", "--to", webhook]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], **environ},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        with process:
            try:
                wait_until(lambda: "from now on" in log.read_text(), seconds=60)  # a process starts
                sandbox.fault("500", path="/v1/events", times=1)
                wait_until(lambda: "waiting (stripe_broken)" in log.read_text())
                subscription = subscribe(sandbox, customer)["id"]
                wait_until(lambda: "customer.subscription.created" in log.read_text())
            finally:
                process.send_signal(signal.SIGINT)
            code = process.wait(timeout=10)

    held = rows(database, "SELECT FROM inbox WHERE object_id = :id", id=subscription)
    assert (code, len(held) > 0) == (0, True)
    assert "Traceback" not in log.read_text()
