"""PostgreSQL stopped and started under traffic: no acknowledgement is lost, nobody hangs, all else stays up.

Real gunicorn, a real worker, and senders that keep at it as Stripe does, with a ledger of what they were told.
SOAK=1 makes it 20 restarts instead of 4.
"""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from billing.db import Database
from sandbox.server import Server
from tests.a_postgres import Postgres, Stop, a_postgres
from tests.conftest import IS_SOAK, a_database, link
from tests.deliveries import WEBHOOK, Json, signature
from tests.test_crashes import (
    a_history,
    a_stripe,
    crashing,
    interleaved,
    know,
    unfinished,
    within,
    wrong_states,
)
from tests.test_workers import Served, served

pytestmark = pytest.mark.made_up  # `a_history`, which says what it has to and no more

RESTARTS = 20 if IS_SOAK else 4
CUSTOMERS = 60 * RESTARTS  # each has some fifteen events, more than are told
SENDERS = 4
PACE_SECONDS = 0.02  # between two deliveries of a sender
ANSWER_SECONDS = 4 * 2.0  # four times what is promised, here and below
BACK_SECONDS = 4 * 5.0


@dataclass(frozen=True)
class Answered:
    """A line in the senders' ledger: what became of one delivery. Moments are of this process's own clock."""

    event: str
    status: int
    sent: float
    took: float


class Senders:
    """Deliver endlessly, each event until it is acknowledged, and note every answer."""

    def __init__(self, url: str, next_event: Callable[[], Json]) -> None:
        self._url = url + WEBHOOK
        self._next_event = next_event
        self._enough = threading.Event()
        self.ledger: list[Answered] = []

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Meanwhile; what was begun is finished, but not tried again."""
        with ThreadPoolExecutor(SENDERS) as threads:
            senders = [threads.submit(self._send) for _ in range(SENDERS)]
            try:
                yield
            finally:
                self._enough.set()
            for sender in senders:
                sender.result()

    def _send(self) -> None:
        with requests.Session() as session:
            while not self._enough.wait(PACE_SECONDS):
                event = self._next_event()
                while self._deliver(session, event) != 200 and not self._enough.wait(PACE_SECONDS):
                    pass

    def _deliver(self, session: requests.Session, event: Json) -> int:
        body = json.dumps(event).encode()
        headers = {"Stripe-Signature": signature(body), "Content-Type": "application/json"}
        sent = time.monotonic()
        status = session.post(self._url, data=body, headers=headers).status_code
        self.ledger.append(Answered(event["id"], status, sent, time.monotonic() - sent))
        return status

    def since(self, moment: float, status: int) -> list[Answered]:
        """The deliveries begun since then that were answered so."""
        return [line for line in list(self.ledger) if line.sent >= moment and line.status == status]


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    with a_postgres() as server:
        yield server


@pytest.fixture
def database_url(postgres: Postgres) -> Iterator[str]:
    """In place of the one all other tests share: this one goes away and comes back."""
    yield from a_database(postgres.url)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url, pool_size=5)
    yield database
    database.close()


def pids(service: Served) -> list[str]:
    """Of all the workers there ever were."""
    return re.findall(r"Worker ready \(pid: (\d+)\)", service.log.read_text())


def events_of(customers: int, stripe: Server) -> Callable[[], Json]:
    """The histories of so many customers, event by event, to whichever sender asks."""
    chance, turn = random.Random(9), threading.Lock()

    def events() -> Iterator[Json]:
        for first in range(0, customers, 5):
            histories = [a_history(number) for number in range(first, first + 5)]
            for history in histories:
                know(stripe, history)
            yield from interleaved(histories, chance)

    told = events()

    def next_event() -> Json:
        with turn:
            return next(told)

    return next_event


@pytest.mark.timeout(1800 if IS_SOAK else 120)
def test_restarts_under_traffic_lose_no_acknowledgement_hang_nobody_and_restart_nothing_else(
    database: Database, environ: dict[str, str], postgres: Postgres, tmp_path: Path
) -> None:
    for number in range(CUSTOMERS):
        link(database, f"t_{number}", f"cus_{number}")
    with a_stripe() as stripe:
        settings = {**environ, "STRIPE_API_BASE": stripe.url, "BILLING_STRIPE_READS_PER_SECOND": "100"}
        with (
            served(settings, tmp_path / "log") as service,
            crashing(settings, tmp_path, [], batch=50, lease=2) as workers,
        ):
            began_with = pids(service)
            senders = Senders(service.url, events_of(CUSTOMERS, stripe))
            with senders.sending():
                for number in range(RESTARTS):
                    restart(postgres, senders, "immediate" if number % 2 else "fast")
            within(60, lambda: unfinished(database) == 0)
            ended_with, deaths = pids(service), workers.deaths()

    acknowledged = {line.event: "settled" for line in senders.ledger if line.status == 200}
    assert {line.status for line in senders.ledger} == {200, 503}
    assert max(line.took for line in senders.ledger) < ANSWER_SECONDS
    assert wrong_states(database, acknowledged) == {}
    assert (ended_with, deaths) == (began_with, [])


def restart(postgres: Postgres, senders: Senders, how: Stop) -> None:
    """Stop it in the middle of traffic until that was noticed, and wait until all is well again."""
    began = time.monotonic()
    within(BACK_SECONDS, lambda: len(senders.since(began, 200)) > 20)

    postgres.stop(how)
    away = time.monotonic()
    within(BACK_SECONDS, lambda: len(senders.since(away, 503)) >= SENDERS)
    postgres.start()
    back = time.monotonic()

    within(BACK_SECONDS, lambda: bool(senders.since(back, 200)))
