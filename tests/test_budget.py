"""How often Stripe is read: one budget for all threads and processes, and what closes it for a while."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from billing import questions, sync
from billing.budget import ALL, Budget, Lane
from billing.db import SYSTEM, Database
from billing.errors import StripeFailed
from billing.stripe_api import Stripe
from sandbox.server import Control
from tests.conftest import create_customer, link, rows
from tests.deliveries import a_price, a_subscription, a_worker, an_event, keep, logged, make_due, subscribe
from tests.test_portal_options import wait_until

SUBSCRIPTIONS = "subscriptions.list"


@pytest.fixture
def other(database_url: str) -> Iterator[Database]:
    """Another process's way in."""
    database = Database(database_url, pool_size=5)
    yield database
    database.close()


class Turns(threading.Event):
    """A budget whose turns are noted and not waited for."""

    def __init__(self, database: Database, per_second: int = 20) -> None:
        super().__init__()
        self._budget = Budget(database, per_second, stopping=self)
        self._until_turn = 0.0

    def wait(self, timeout: float | None = None) -> bool:
        self._until_turn = timeout or 0.0
        return False

    def next(self, endpoint: str = SUBSCRIPTIONS, lane: Lane = "background") -> float:
        """When the next read may be sent."""
        self._budget.spend(endpoint, lane)
        return time.monotonic() + self._until_turn

    def until_refused(self) -> float:
        """Take turns until the next one would be too far away; how far the last one was."""
        with contextlib.suppress(StripeFailed):
            for _ in range(500):
                self.next()
            pytest.fail("nobody is ever refused")
        return self._until_turn


def most_within_a_second(moments: list[float]) -> int:
    ordered = sorted(moments)
    return max(sum(1 for other in ordered if began <= other < began + 1) for began in ordered)


def test_all_processes_together_keep_to_the_rate_of_an_endpoint(database: Database, other: Database) -> None:
    """15 a second in the background, 5 for people: reserved in the database, so that nobody has to count."""
    lanes: list[tuple[Turns, Lane]] = [
        (Turns(db), lane) for db in (database, other) for lane in ("background", "waiting")
    ]

    moments = [turns.next(lane=lane) for _ in range(12) for turns, lane in lanes]

    assert len(moments) == 48
    assert most_within_a_second(moments) <= 20 + 4  # read from a clock of ours, a trip to the database later


def test_stripe_sees_no_more_than_its_rate_and_pages_count(
    database: Database, other: Database, sandbox: Control
) -> None:
    """Stripe takes 25 a second. A question of several reads is not one to it."""
    price = a_price(sandbox)
    customers = [create_customer(sandbox) for _ in range(35)]
    for customer in customers[:5]:
        subscribe(sandbox, customer, price=price)
    with database.begin(SYSTEM) as connection:
        questions.want(connection, customers)
        put = questions.put(connection, seen=0, most=35)
    sandbox.send("DELETE", "requests")
    stripe = Stripe(sandbox.key, base=sandbox.url)

    with ThreadPoolExecutor(7) as askers:
        dbs = [(database, other)[n % 2] for n in range(35)]
        asked = [
            askers.submit(sync.ask, db, stripe, Budget(db, 20), question)
            for db, question in zip(dbs, put, strict=True)
        ]
        assert all(one.result() for one in asked)

    reads = sandbox.requests()
    for path in ("/v1/subscriptions", "/v1/customers/"):
        moments = [read["at"] for read in reads if read["path"].startswith(path)]
        assert len(moments) >= 30
        assert most_within_a_second(moments) <= 20


def test_endpoints_do_not_wait_for_each_other(database: Database) -> None:
    turns = Turns(database)
    for _ in range(20):
        turns.next()
    before = time.monotonic()

    assert turns.next("invoices.list") < before + 0.5


def test_who_waits_does_not_stand_behind_the_backlog(database: Database) -> None:
    turns = Turns(database)
    for _ in range(60):
        turns.next()
    backlog = turns.next() - time.monotonic()
    before = time.monotonic()

    assert turns.next(lane="waiting") < before + 0.5
    assert backlog > 2


def test_a_turn_that_is_far_away_is_refused(database: Database) -> None:
    assert 4 < Turns(database).until_refused() < 5.5


def test_a_read_that_is_refused_takes_nobodys_turn(database: Database) -> None:
    """Or those who come back to ask again would move the lane away for ever."""
    turns = Turns(database)
    turns.until_refused()

    for _ in range(50):
        turns.until_refused()

    [lane] = rows(
        database, "SELECT extract(epoch FROM reserved_until - clock_timestamp()) AS s FROM stripe_reads"
    )
    assert lane["s"] < 5.5


def test_who_is_told_to_stop_asks_nothing_more(database: Database) -> None:
    stopping = threading.Event()
    stopping.set()

    with pytest.raises(StripeFailed):
        Budget(database, 20, stopping).spend(SUBSCRIPTIONS, "background")


def test_a_pause_holds_for_every_endpoint_lane_and_process(database: Database, other: Database) -> None:
    Budget(database, 20).pause(ALL, 60)

    for lane in ("background", "waiting"):
        with pytest.raises(StripeFailed):
            Turns(other).next("invoices.list", lane)


def test_a_pause_of_one_endpoint_leaves_the_others_open(database: Database) -> None:
    Budget(database, 20).pause(SUBSCRIPTIONS, 60)

    Turns(database).next("invoices.list")
    with pytest.raises(StripeFailed):
        Turns(database).next()


def test_a_shorter_pause_does_not_end_a_longer_one(database: Database) -> None:
    budget = Budget(database, 20)
    budget.pause(ALL, 60)
    budget.pause(ALL, 1)

    with pytest.raises(StripeFailed):
        Turns(database).next()


# ---- what Stripe says


def refused_by_stripe(database: Database, sandbox: Control, fault: str, customers: int = 1) -> list[str]:
    """Customers that are wanted, each by one event, while Stripe answers with the fault."""
    found = [create_customer(sandbox) for _ in range(customers)]
    for n, customer in enumerate(found):
        link(database, f"t_{n}", customer)
        snapshot = a_subscription(customer, id=f"sub_{n}")
        keep(database, an_event("customer.subscription.updated", snapshot, created=1_790_000_000), late=3600)
    sandbox.send("DELETE", "requests")
    sandbox.fault(fault, path="/v1/subscriptions")
    return found


def test_too_many_requests_make_everybody_pause(
    environ: dict[str, str], database: Database, sandbox: Control
) -> None:
    refused_by_stripe(database, sandbox, "429")
    with a_worker(environ) as worker:
        worker.work()
        worker.work()
        wait_until(lambda: not worker.is_asking)

    [pause] = rows(
        database,
        "SELECT endpoint, extract(epoch FROM reserved_until - clock_timestamp()) AS s"
        " FROM stripe_reads WHERE lane = 'pause'",
    )
    assert pause["endpoint"] == ALL
    assert 0 < pause["s"] <= 3


def test_a_refused_key_stops_the_asking_loudly_and_uses_up_nothing(
    environ: dict[str, str], database: Database, sandbox: Control, caplog: pytest.LogCaptureFixture
) -> None:
    said = logged(caplog)
    refused_by_stripe(database, sandbox, "401", customers=12)
    with a_worker(environ) as worker:
        for _ in range(5):
            worker.work()
            wait_until(lambda: not worker.is_asking)
            make_due(database)

    asked = [r for r in sandbox.requests() if r["path"] == "/v1/subscriptions"]
    assert 1 <= len(asked) <= 8  # those that were in flight when the first was refused
    loud = [line for line in said() if line["event"] == "stripe.key_refused"]
    assert {line["level"] for line in loud} == {"error"}
    assert len(loud) == len(asked)
    [events] = rows(
        database, "SELECT max(failures) AS failures, max(lapses) AS lapses, min(state) AS state FROM inbox"
    )
    assert events == {"failures": 0, "lapses": 0, "state": "asking"}
