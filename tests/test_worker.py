"""The worker: leases, poison, Stripe's faults, signals, and what it costs to wait."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from billing import inbox, questions, sync, versions
from billing.db import SYSTEM, Database
from billing.inbox import Claimed
from billing.worker import Worker
from sandbox.server import Control
from tests.conftest import create_customer, link, rows
from tests.deliveries import (
    a_catalogue,
    a_price,
    a_subscription,
    a_worker,
    an_event,
    keep,
    leave_the_catalogue,
    logged,
    make_due,
    subscribe,
    take_in,
    until_quiet,
    working,
)
from tests.gateway import a_gateway
from tests.test_portal_options import wait_until

AT = 1_790_000_000
UPDATED = "customer.subscription.updated"
LEASE = timedelta(seconds=20)


def tell(database: Database, customer: str, *, at: int = AT, late: int = 0, **facts: object) -> str:
    event = an_event(UPDATED, a_subscription(customer, **facts), created=at)
    keep(database, event, late=late)
    return str(event["id"])


def claim(database: Database, *, most: int = 200) -> list[Claimed]:
    with database.begin(SYSTEM) as connection:
        return inbox.claim(connection, most=most, lease=LEASE)


def lapse(database: Database) -> None:
    """As if whoever holds events had died, and their leases were over."""
    rows(
        database,
        "UPDATE inbox SET due_at = clock_timestamp() - interval '1 s' WHERE held IS NOT NULL RETURNING 1",
    )


def inbox_of(database: Database, columns: str = "state") -> list[object]:
    found = rows(database, f"SELECT {columns} FROM inbox ORDER BY id")
    return [tuple(row.values()) if len(row) > 1 else next(iter(row.values())) for row in found]


def statuses(database: Database) -> dict[str, str]:
    found = rows(database, "SELECT stripe_subscription_id AS id, status FROM subscriptions ORDER BY 1")
    return {row["id"]: row["status"] for row in found}


# ---- leases


def test_a_claimed_event_is_nobody_elses_until_its_lease_is_over(
    database: Database, acme: str, customer: str
) -> None:
    tell(database, customer)
    [first] = claim(database)

    assert claim(database) == []
    lapse(database)
    [second] = claim(database)
    assert (first.attempt, second.attempt) == (1, 2)


def test_the_oldest_due_are_claimed_first_and_no_more_than_asked_for(database: Database, customer: str) -> None:
    told = [tell(database, customer) for _ in range(5)]

    assert [event.event_id for event in claim(database, most=3)] == told[:3]
    assert [event.event_id for event in claim(database, most=3)] == told[3:]


def test_a_worker_that_comes_late_changes_nothing(database: Database, acme: str, customer: str) -> None:
    """What it would hold is not written either: an effect without its receipt would be doubled."""
    tell(database, customer)
    late = claim(database)
    lapse(database)
    [again] = claim(database)

    outcome = sync.apply(database, late)

    assert (outcome.settled, outcome.writes) == ([], [])
    assert statuses(database) == {}
    assert inbox_of(database, "state, attempt") == [("due", 2)]
    assert sync.apply(database, [again]).settled == [again.id]


def test_a_worker_that_comes_after_it_was_settled_changes_nothing(
    database: Database, acme: str, customer: str
) -> None:
    tell(database, customer)
    late = claim(database)
    lapse(database)
    take_in(database)
    before = rows(database, "SELECT xmin::text FROM subscriptions")

    sync.apply(database, late)

    assert rows(database, "SELECT xmin::text FROM subscriptions") == before


def test_a_late_failure_of_what_is_claimed_anew_is_not_counted(database: Database, customer: str) -> None:
    tell(database, customer)
    [late] = claim(database)
    lapse(database)
    claim(database)

    with database.begin(SYSTEM) as connection:
        inbox.fail(connection, late, reason="late", delay=timedelta())

    assert inbox_of(database, "failures, held") == [(0, "alone")]


def test_what_lapsed_is_claimed_alone_and_its_neighbours_go_on_together(
    database: Database, acme: str, customer: str
) -> None:
    lapsed = [tell(database, customer, id=f"sub_{n}") for n in range(2)]
    claim(database)
    fresh = [tell(database, customer, id=f"sub_{n}") for n in range(2, 5)]
    lapse(database)

    batches = [[event.event_id for event in claim(database)] for _ in range(4)]

    assert batches == [[lapsed[0]], [lapsed[1]], fresh, []]


def test_one_lapse_in_company_is_charged_to_nobody(database: Database, customer: str) -> None:
    """A worker is killed for many reasons; only who was alone with it each time is suspected."""
    for n in range(3):
        tell(database, customer, id=f"sub_{n}")
    claim(database)
    lapse(database)

    claim(database)

    assert inbox_of(database, "lapses") == [0, 0, 0]


def test_what_ends_its_worker_five_times_is_left_unread_and_stripe_is_asked_before_it_is_buried(
    environ: dict[str, str],
    database: Database,
    acme: str,
    customer: str,
    sandbox: Control,
    caplog: pytest.LogCaptureFixture,
) -> None:
    said = logged(caplog)
    id = subscribe(sandbox, customer)["id"]
    poison = tell(database, customer, id="sub_of_the_poison")
    for _ in range(7):
        [claimed] = claim(database)
        assert claimed.event_id == poison
        lapse(database)
    neighbour = tell(database, "cus_of_a_neighbour")
    lapses = inbox_of(database, "lapses")

    with a_worker(environ) as worker:
        until_quiet(worker)

    assert lapses == [5, 0]
    [(event, state, reason), *_] = rows_of(database, poison)
    assert (event, state, reason) == (poison, "buried", "its worker died with it, again and again")
    assert statuses(database) == {id: "active"}
    assert [line["event_id"] for line in said() if line["event"] == "inbox.buried"] == [poison]
    assert rows_of(database, neighbour) == [(neighbour, "waiting", None)]


def rows_of(database: Database, event: str) -> list[tuple[str, str, str | None]]:
    found = rows(database, "SELECT event_id, state, reason FROM inbox WHERE event_id = :event", event=event)
    return [(row["event_id"], row["state"], row["reason"]) for row in found]


def test_poison_is_not_buried_before_stripe_has_answered(
    environ: dict[str, str], database: Database, acme: str, customer: str, sandbox: Control
) -> None:
    poison = tell(database, customer)
    rows(database, "UPDATE inbox SET lapses = 5, held = 'alone', due_at = now() - interval '1 s' RETURNING 1")
    sandbox.fault("500", path="/v1/subscriptions")
    with a_worker(environ) as worker:
        until_quiet(worker)

        [(_, during, _)] = rows_of(database, poison)
        sandbox.clear()
        make_due(database)
        until_quiet(worker)

    [(_, after, _)] = rows_of(database, poison)
    assert (during, after) == ("asking", "buried")


# ---- a fault of one event


@pytest.fixture
def refused(database: Database) -> Iterator[str]:
    """A subscription that our own database does not take."""
    rule = "ALTER TABLE subscriptions {} CONSTRAINT refuses_one"
    with database.begin(SYSTEM) as connection:
        connection.exec_driver_sql(rule.format("ADD") + " CHECK (stripe_subscription_id <> 'sub_refused')")
    yield "sub_refused"
    with database.begin(SYSTEM) as connection:
        connection.exec_driver_sql(rule.format("DROP"))


def test_a_batch_that_fails_falls_apart_and_only_the_bad_event_fails(
    environ: dict[str, str], database: Database, acme: str, customer: str, refused: str
) -> None:
    for n in range(4):
        tell(database, customer, id=f"sub_{n}" if n != 1 else refused)

    with a_worker(environ) as worker:
        worker.work()

    assert set(statuses(database)) == {"sub_0", "sub_2", "sub_3"}
    good = ("settled", 0, None)
    assert inbox_of(database, "state, failures, reason") == [good, ("due", 1, "IntegrityError"), good, good]


def no_walk(database: Database) -> None:
    """Stripe is asked about those who are wanted only, not about those it was never asked about."""
    rows(database, "INSERT INTO chores VALUES ('meet', now() + interval '1 hour') RETURNING 1")


def test_what_fails_ten_times_is_buried_and_stripe_is_asked_first(
    environ: dict[str, str], database: Database, acme: str, customer: str, sandbox: Control, refused: str
) -> None:
    no_walk(database)
    tell(database, customer, id=refused)
    with a_worker(environ) as worker:
        for _ in range(12):
            until_quiet(worker)
            make_due(database)

    assert inbox_of(database, "state, failures, reason") == [
        ("buried", inbox.MOST_FAILURES, "it could not be applied, again and again")
    ]
    [kept] = rows(database, "SELECT fault, cardinality(failed_at) AS failed FROM inbox")
    assert kept["failed"] == inbox.MOST_FAILURES
    assert kept["fault"].splitlines()[0] == "IntegrityError from CheckViolation"
    assert "billing.subscriptions, line " in kept["fault"]
    assert refused not in kept["fault"]
    assert "/v1/subscriptions" in [request["path"] for request in sandbox.requests()]


def test_a_body_that_is_no_event_delays_nobody(
    environ: dict[str, str], database: Database, acme: str, customer: str, sandbox: Control
) -> None:
    bad = tell(database, customer)
    rows(database, "UPDATE inbox SET body = '\\xff' RETURNING 1")
    good = tell(database, customer, id="sub_good")

    with a_worker(environ) as worker:
        until_quiet(worker)

    assert rows_of(database, bad) == [(bad, "buried", "is not JSON")]
    assert rows_of(database, good) == [(good, "settled", None)]


# ---- the database away


def test_a_worker_outlives_the_database(
    environ: dict[str, str],
    database: Database,
    database_url: str,
    acme: str,
    customer: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    said = logged(caplog)
    tell(database, customer)
    with a_gateway(database_url) as gateway, a_worker({**environ, "DATABASE_URL": gateway.url}) as worker:
        gateway.refuse()
        with running(worker):
            wait_until(lambda: any(line["event"] == "worker.waiting" for line in said()))
            gateway.restore()

            wait_until(lambda: inbox_of(database) == ["settled"])


@contextmanager
def running(worker: Worker) -> Iterator[None]:
    """The worker at work in a thread."""
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield
    finally:
        worker.stop()
        thread.join()


# ---- Stripe's faults

FAULTS = ["429", "500", "503", "hang", "drip", "reset", "truncated", "html", "list", "401"]


@pytest.mark.parametrize("kind", FAULTS)
def test_while_stripe_fails_nothing_is_lost_or_buried_and_afterwards_all_is_settled(
    environ: dict[str, str], database: Database, acme: str, customer: str, sandbox: Control, kind: str
) -> None:
    id = subscribe(sandbox, customer)["id"]
    certain = tell(database, customer, id="sub_certain", status="canceled")
    unsure = tell(database, customer, id=id, late=3600)
    sandbox.fault(kind, path="/v1/subscriptions")
    with a_worker({**environ, "STRIPE_DEADLINE_SECONDS": "1"}) as worker:
        until_quiet(worker)
        during = [rows_of(database, event) for event in (certain, unsure)]
        [question] = rows(database, "SELECT failures, wanted_at IS NOT NULL AS wanted FROM stripe_customers")

        sandbox.clear()
        rows(database, "DELETE FROM stripe_reads RETURNING 1")
        make_due(database)
        until_quiet(worker)

    assert during == [[(certain, "settled", None)], [(unsure, "asking", None)]]
    assert question == {"failures": 1, "wanted": True}
    assert statuses(database) == {id: "active", "sub_certain": "canceled"}
    assert inbox_of(database, "state, failures, lapses") == [("settled", 0, 0)] * 2


def test_an_outage_of_stripes_buries_nothing_and_delays_only_what_must_be_asked(
    environ: dict[str, str], database: Database, sandbox: Control
) -> None:
    """As many failed tries as ten minutes bring: at one a minute once they have become that rare."""
    price = a_price(sandbox)
    customers = [create_customer(sandbox) for _ in range(3)]
    ids = [subscribe(sandbox, customer, price=price)["id"] for customer in customers]
    for n, customer in enumerate(customers):
        link(database, f"t_{n}", customer)
        tell(database, customer, id=ids[n], late=3600)
    sandbox.fault("503")
    with a_worker(environ) as worker:
        for _ in range(16):
            until_quiet(worker)
            make_due(database)
        tell(database, customers[0], id="sub_certain", status="canceled")
        until_quiet(worker)
        during = inbox_of(database)
        sandbox.clear()
        make_due(database)
        until_quiet(worker)

    assert during == ["asking"] * 3 + ["settled"]
    assert statuses(database) == {**dict.fromkeys(ids, "active"), "sub_certain": "canceled"}
    assert inbox_of(database, "state, failures, lapses") == [("settled", 0, 0)] * 4


def test_questions_that_fail_come_back_later_and_later_up_to_a_minute() -> None:
    for failures in range(40):
        delay = sync.backoff(failures).total_seconds()

        longest = min(60, 2**failures)
        assert longest / 2 <= delay <= longest


# ---- retention


def test_what_is_long_settled_or_waiting_is_forgotten_and_nothing_else(
    environ: dict[str, str], database: Database
) -> None:
    for state in ("settled", "waiting", "buried", "due", "asking"):
        for age in ("34 days", "36 days"):
            tell(database, f"cus_{state}")
            rows(
                database,
                "UPDATE inbox SET state = :state, received_at = now() - CAST(:age AS interval),"
                " settled_at = CASE WHEN :state IN ('settled', 'buried') THEN now() END,"
                " reason = CASE WHEN :state = 'buried' THEN 'x' END, due_at = now() + interval '1 hour'"
                " WHERE state = 'due' AND due_at <= now() RETURNING 1",
                state=state,
                age=age,
            )

    with a_worker(environ) as worker:
        worker.work()

    left = rows(database, "SELECT state, count(*) AS n FROM inbox GROUP BY state")
    assert {row["state"]: row["n"] for row in left} == {
        **{"settled": 1, "waiting": 1},
        **{"buried": 2, "due": 2, "asking": 2},
    }


def test_forgetting_goes_in_batches_to_its_end(
    environ: dict[str, str], database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "PRUNED_AT_ONCE", 5)
    monkeypatch.setattr(versions, "PRUNED_AT_ONCE", 5)
    for number in range(12):
        tell(database, "cus_1")
        rows(
            database,
            "INSERT INTO tenant_versions (tenant_id, version, at, cause, changes)"
            " VALUES ('t_1', :number, now() - interval '36 days', 'catalogue', '{}') RETURNING 1",
            number=number,
        )
    rows(
        database,
        "UPDATE inbox SET state = 'settled', settled_at = now(), received_at = now() - interval '36 days'"
        " RETURNING 1",
    )
    with a_worker(environ) as worker:
        worker.work()

    assert inbox_of(database) == []
    assert rows(database, "SELECT FROM tenant_versions") == []


# ---- chores


def test_a_chore_that_cannot_have_a_customer_costs_the_others_nothing(
    environ: dict[str, str],
    database: Database,
    acme: str,
    customer: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Somebody holds the customer who was not asked about for longest, and one who was never met."""
    with a_worker(environ) as worker:
        until_quiet(worker)
    rows(
        database,
        "UPDATE stripe_customers SET answered_at = now() - interval '30 hours', wanted_at = NULL RETURNING 1",
    )
    link(database, "t_new", "cus_new")
    rows(database, "DELETE FROM chores RETURNING 1")
    said = logged(caplog)
    with a_worker(environ) as worker, database.begin(SYSTEM) as connection:
        questions.lock(connection, customer)
        questions.lock(connection, "cus_new")
        worker.work()

    done = {row["name"] for row in rows(database, "SELECT name FROM chores")}
    failed = [line["chore"] for line in said() if line["event"] == "chore.failed"]
    assert done == {"clock", "sweep", "prune", "meet", "walk", "look", "tell", "catalogue"}
    assert failed == ["meet"]  # it waits, for there are no others; the walk goes round the customer


def test_a_chore_is_done_by_one_worker(environ: dict[str, str], database: Database, sandbox: Control) -> None:
    with a_worker(environ) as first, a_worker(environ) as second:
        for worker in (first, second, first, second):
            until_quiet(worker)

    looks = [request for request in sandbox.requests() if request["path"] == "/v1/events"]
    assert len(looks) == 2  # what could not be delivered, and what time it is, to look from then on


# ---- the process


class Process:
    """A running worker and what it has logged."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log
        wait_until(lambda: "worker.ready" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()

    def stop(self) -> float:
        """Ask it to end as a platform does; how long that took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(25)
        return time.monotonic() - began

    @property
    def cpu_seconds(self) -> float:
        """User's and system's, as the kernel counts."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def a_real_worker(environ: dict[str, str], tmp_path: Path) -> Iterator[Process]:
    log = tmp_path / "worker"
    with working(environ, log) as [process]:
        yield Process(process, log.with_suffix(".0"))


def test_an_idle_worker_is_soon_at_work_and_costs_next_to_nothing(
    environ: dict[str, str], database: Database, acme: str, customer: str, tmp_path: Path
) -> None:
    leave_the_catalogue(database)
    with a_real_worker(environ, tmp_path) as worker:
        tell(database, customer)
        wait_until(lambda: inbox_of(database) == ["settled"])  # the first round, with all that is loaded for it
        spent, began = worker.cpu_seconds, time.monotonic()
        time.sleep(2)  # what it costs to do nothing for a while
        share = (worker.cpu_seconds - spent) / (time.monotonic() - began)

        arrived = time.monotonic()
        tell(database, customer, id="sub_2")
        wait_until(lambda: inbox_of(database) == ["settled"] * 2)
        seconds = time.monotonic() - arrived

        assert worker.stop() < 5
        assert worker.process.returncode == 0

    assert seconds < 4 * 0.25
    assert share < 0.05


def test_a_worker_told_to_end_claims_nothing_more_and_finishes_its_questions(
    environ: dict[str, str], database: Database, acme: str, customer: str, sandbox: Control, tmp_path: Path
) -> None:
    a_catalogue(database)  # without entitlements: a question is one request
    id = subscribe(sandbox, customer)["id"]
    tell(database, customer, id=id, late=3600)
    sandbox.send("DELETE", "requests")
    with a_real_worker(environ, tmp_path) as worker:
        sandbox.latency(1.5)
        wait_until(lambda: any(r["path"] == "/v1/subscriptions" for r in sandbox.requests()))
        assert worker.stop() < 10
        lines = [json.loads(line) for line in worker.log.read_text().splitlines()]

    assert worker.process.returncode == 0
    assert statuses(database) == {id: "active"}
    assert inbox_of(database) == ["settled"]
    assert lines[-1]["event"] == "worker.stopped"


def test_a_second_signal_ends_it_at_once_and_the_lease_brings_everything_back(
    environ: dict[str, str], database: Database, acme: str, customer: str, sandbox: Control, tmp_path: Path
) -> None:
    id = subscribe(sandbox, customer)["id"]
    tell(database, customer, id=id, late=3600)
    sandbox.send("DELETE", "requests")
    sandbox.fault("hang", path="/v1/subscriptions")
    with a_real_worker(environ, tmp_path) as worker:
        wait_until(lambda: any(r["path"] == "/v1/subscriptions" for r in sandbox.requests()))
        worker.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)  # two that arrive together are one
        assert worker.process.poll() is None
        assert worker.stop() < 1
        assert worker.process.returncode == 128 + signal.SIGTERM

    sandbox.clear()
    rows(
        database,
        "UPDATE stripe_customers SET asking_until = now() - interval '1 s', wanted_at = now() - interval '1 s'"
        " RETURNING 1",
    )
    with a_worker(environ) as next_one, running(next_one):
        wait_until(lambda: inbox_of(database) == ["settled"])


def test_every_line_a_worker_logs_is_json_and_tells_no_secret(
    environ: dict[str, str], database: Database, acme: str, customer: str, sandbox: Control, tmp_path: Path
) -> None:
    tell(database, customer, late=3600)
    sandbox.fault("401", path="/v1/subscriptions", times=1)
    with a_real_worker(environ, tmp_path) as worker:
        wait_until(lambda: "stripe.key_refused" in worker.log.read_text())
        worker.stop()
        text = worker.log.read_text()

    assert all(isinstance(json.loads(line), dict) for line in text.splitlines())
    for name in ("STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET", "JWT_SECRET_KEY", "DATABASE_URL"):
        assert environ[name] not in text


def test_a_worker_does_not_start_as_a_superuser(
    environ: dict[str, str], server_url: str, tmp_path: Path
) -> None:
    log = tmp_path / "worker"
    with working({**environ, "DATABASE_URL": server_url}, log) as [process]:
        assert process.wait(20) != 0

    output = log.with_suffix(".0").read_text()
    assert "BILLING_ALLOW_SUPERUSER" in output
    assert "Traceback" not in output


def test_a_worker_waits_for_the_release_to_be_migrated(
    environ: dict[str, str], database: Database, acme: str, customer: str, caplog: pytest.LogCaptureFixture
) -> None:
    said = logged(caplog)
    tell(database, customer)
    [[newest]] = [row.values() for row in rows(database, "SELECT version_num FROM alembic_version")]
    migrate_to(database, "0001")
    try:
        with a_worker(environ) as worker, running(worker):
            wait_until(lambda: any(line.get("outcome") == "schema_unavailable" for line in said()))
            before = inbox_of(database, "attempt")
            migrate_to(database, newest)
            wait_until(lambda: inbox_of(database) == ["settled"])
    finally:
        migrate_to(database, newest)

    assert before == [0]


def migrate_to(database: Database, revision: str) -> None:
    """As far as the row that says so."""
    rows(database, "UPDATE alembic_version SET version_num = :revision RETURNING 1", revision=revision)


def test_a_database_that_is_slow_for_long_charges_no_event_and_ends_no_round_late(
    environ: dict[str, str], database: Database, database_url: str, acme: str, customer: str
) -> None:
    other = Database(database_url, pool_size=1)
    for number in range(3):
        keep(database, an_event("customer.subscription.updated", a_subscription(customer, id=f"sub_{number}")))
    with a_worker(environ, lease=timedelta(seconds=6)) as worker, other.begin(SYSTEM) as connection:
        connection.execute(text("LOCK TABLE subscriptions IN SHARE MODE"))
        began = time.monotonic()
        worker.work()
        took = time.monotonic() - began
    other.close()

    charged = rows(database, "SELECT sum(failures) AS failures, sum(lapses) AS lapses FROM inbox")
    assert charged == [{"failures": 0, "lapses": 0}]
    assert took < 8
