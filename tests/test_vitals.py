"""How the service is, in figures that stay cheap; and who says that a worker is alive."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import text

from billing import drift, inbox, questions, vitals, workers
from billing.db import SYSTEM, Database
from billing.vitals import Vitals
from billing.worker import Worker
from tests.conftest import link, rows
from tests.deliveries import a_subscription, a_worker, an_event, keep


def taken(database: Database) -> Vitals:
    with database.begin(SYSTEM) as connection:
        return vitals.taken(connection)


def events(database: Database, state: str, *, count: int, hours: int, **columns: str) -> None:
    """So many in this state, the oldest of which came so many hours ago."""
    for number in range(count):
        event = an_event("customer.subscription.updated", a_subscription("cus_1"))
        keep(database, event)
        given = ", ".join(f"{name} = {value}" for name, value in columns.items())
        rows(
            database,
            f"""UPDATE inbox SET state = :state, received_at = now() - :hours * interval '1 hour', reason = 'r',
                settled_at = CASE WHEN :state IN ('settled', 'buried') THEN now() END {given and ", " + given}
                WHERE event_id = :event RETURNING 1""",
            state=state,
            hours=hours - number,
            event=event["id"],
        )


def drifted(
    database: Database, tenant: str, customer: str, kind: str, *, hours: int, mended: bool = False
) -> None:
    """It was found so many hours ago."""
    rows(
        database,
        """INSERT INTO drift (tenant_id, stripe_customer_id, kind, seen, version_before, found_at, mended_at)
           SELECT :tenant, :customer, :kind, 0, 1, at, CASE WHEN :mended THEN at END
           FROM CAST(now() - :hours * interval '1 hour' AS timestamptz) AS at RETURNING 1""",
        tenant=tenant,
        customer=customer,
        kind=kind,
        hours=hours,
        mended=mended,
    )


def test_the_figures_of_an_idle_service_are_noughts(database: Database) -> None:
    assert taken(database) == Vitals(0, 0, 0, 0, None, None, None, [], [], 0, 0, drift.none())


def test_each_figure_counts_what_it_says_and_nothing_else(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    events(database, "settled", count=1, hours=90)
    events(database, "buried", count=3, hours=80)
    events(database, "waiting", count=2, hours=70)
    events(database, "asking", count=1, hours=6)
    events(database, "due", count=2, hours=5)
    events(database, "settled", count=1, hours=2)
    events(database, "settled", count=1, hours=1, sent_at="NULL")  # fetched: no webhook brought it
    for number in range(3):
        link(database, f"t_{number}", f"cus_{number}")
    link(database, "t_unlinked", None)
    link(database, "t_empty", "")
    with database.begin(SYSTEM) as connection:
        questions.want(connection, ["cus_0", "cus_1", "cus_of_nobody"])
        connection.execute(
            text("UPDATE stripe_customers SET answered_at = now() WHERE stripe_customer_id = 'cus_0'")
        )
    drifted(database, "t_0", "cus_0", "changed", hours=2, mended=True)
    for tenant in ("t_a", "t_b"):
        drifted(database, tenant, "cus_a", "changed", hours=0, mended=True)
    drifted(database, "t_1", "cus_1", "customer_deleted", hours=9)
    drifted(database, "t_2", "cus_of_before", "foreign_customer", hours=9)

    now = taken(database)

    assert now.drifted == {**drift.none(), "changed": 2, "customer_deleted": 1}
    assert (now.due, now.waiting, now.asking, now.buried) == (2, 2, 1, 3)
    assert [round((age or 0) / 3600) for age in (now.oldest_unprocessed, now.oldest_waiting)] == [6, 70]
    assert round((now.last_webhook or 0) / 3600) == 2
    assert (now.linked, now.never_synced) == (3, 1)
    monkeypatch.setattr(vitals, "COUNTED", 1)
    assert (taken(database).buried, taken(database).linked) == (2, 2)  # more than one


def test_silence_is_what_lasts_longer_than_is_expected(database: Database) -> None:
    never = taken(database)
    lately = replace(never, last_webhook=3599.0)

    assert never.is_silent(timedelta(hours=1))
    assert not never.is_silent(None)
    assert not lately.is_silent(timedelta(hours=1))
    assert replace(lately, last_webhook=3601.0).is_silent(timedelta(hours=1))


def test_among_many_settled_events_none_is_looked_at(database: Database) -> None:
    """The plans are asked for once the table is large enough for an index to be worth it."""
    with database.begin(SYSTEM) as connection:
        connection.execute(
            text("""
                INSERT INTO inbox (event_id, type, body, sent_at, state, settled_at, reason)
                SELECT 'evt_' || n, 'invoice.paid', '', now(), state,
                       CASE WHEN state IN ('settled', 'buried') THEN now() END, 'r'
                FROM (
                    SELECT n, (ARRAY['due', 'waiting', 'asking', 'buried', 'settled'])[least(1 + n % 500, 5)]
                    FROM generate_series(1, 10000) AS n
                ) AS made (n, state)
            """)
        )
        connection.execute(text("ANALYZE inbox"))
        plans = [
            "\n".join(connection.scalars(text(f"EXPLAIN {query.text}"), values))
            for query, values in (
                (inbox._BACKLOG, {"most": vitals.COUNTED}),
                (inbox._LAST_WEBHOOK, {"looked_at": inbox.LOOKED_AT}),
            )
        ]

    assert "Seq Scan" not in "".join(plans)
    assert {"ix_inbox_due_at", "ix_inbox_state", "ix_inbox_buried"} <= set(plans[0].split())
    assert "Index Scan Backward using pk_inbox" in plans[1]


# ---- workers


@pytest.fixture
def worker(environ: dict[str, str], database: Database) -> Iterator[Worker]:
    with a_worker(environ) as worker:
        yield worker


def names(database: Database) -> list[str]:
    return [one.name for one in taken(database).workers]


def test_a_worker_is_alive_while_its_rounds_go_on(
    environ: dict[str, str], database: Database, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEROKU_RELEASE_VERSION", "v42")
    before = names(database)
    worker.work()
    with a_worker(environ) as another:
        another.work()
        two = taken(database).workers
    one = taken(database).workers

    rows(
        database,
        """UPDATE workers SET seen_at = now() - interval '31 s', began_at = began_at - interval '1 h'
           RETURNING 1""",
    )
    dead = names(database)
    worker.work()  # too soon for another beat
    still_dead = names(database)
    worker._next_beat = time.monotonic()
    worker.work()
    [again] = taken(database).workers

    assert (before, dead, still_dead) == ([], [], [])
    assert {beat.release for beat in two} == {None, "v42"}
    assert [beat.release for beat in one] == [None]
    assert again.seen < 10
    assert again.name == one[0].name
    assert again.began_at < one[0].began_at
    worker.finish()
    assert rows(database, "SELECT FROM workers") == []


def test_a_worker_that_cannot_say_good_bye_ends_all_the_same(
    environ: dict[str, str], database: Database
) -> None:
    with a_worker(environ) as worker:
        worker.work()
        rows(database, "UPDATE workers SET seen_at = now() - interval '25 h' RETURNING 1")
        with database.begin(SYSTEM) as connection:
            workers.prune(connection)
        assert rows(database, "SELECT FROM workers") == []
        worker._db = Database("postgresql+psycopg://nobody@127.0.0.1:1/nothing", pool_size=1)
        worker.finish()
