"""The stored document: what its version counts, which transaction writes it, what time makes of it.

Facts come by the ways they really come: events through the inbox, answers held by the verb, catalogues kept
whole. Nothing of Stripe's is needed here; moments are brought near by writing rows whose end is a second away.
SOAK=1 makes the random history fifty times as long.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, text

from billing import catalogue, clock, inbox, overrides, questions, state, subscriptions, sync
from billing.catalogue import Rules
from billing.db import SYSTEM, Database
from billing.errors import ServiceUnavailable
from billing.events import Json
from billing.sync import Answer
from billing.worker import Worker
from sandbox.server import Control
from tests.conftest import IS_SOAK, create_customer, link, rows
from tests.deliveries import (
    a_catalogue,
    a_subscription,
    a_worker,
    an_event,
    an_invoice,
    keep,
    logged,
    take_in,
)
from tests.test_portal_options import wait_until
from tests.test_worker import lapse

AT = 1_790_000_000
UPDATED = "customer.subscription.updated"
DAY = 86_400
PRODUCT = "prod_of_price_1"  # of which `a_subscription` is
FRESHNESS = ("version", "as_of", "stale")

_moments = itertools.count(AT, 10)  # of events: each later than all before it


@pytest.fixture
def other(database_url: str) -> Iterator[Database]:
    """Another process's way in."""
    database = Database(database_url, pool_size=2)
    yield database
    database.close()


# ---- what others use, too


def a_product(id: str = PRODUCT, **metadata: str) -> Json:
    """A product as the catalogue keeps it."""
    return {
        **{"id": id, "name": "Team", "description": None, "active": True},
        **{"metadata": metadata, "entitles": []},
    }


def a_plan(id: str = "price_1", product: str = PRODUCT, key: str = "team_monthly", **metadata: str) -> Json:
    """A monthly price as the catalogue keeps it."""
    return {
        **{"id": id, "product": product, "lookup_key": key, "active": True, "currency": "eur"},
        **{"amount": 1000, "interval": "month", "interval_count": 1, "metered": False, "metadata": metadata},
    }


FREE = a_product("prod_free", plan="free", **{"limit.seats": "3"})


def team(database: Database, **metadata: str) -> int:
    """Sell what `a_subscription` subscribes to, with these terms, and a free plan. The edition."""
    terms = metadata or {"feature.sso": "true", "limit.seats": "quantity"}
    return a_catalogue(database, products=[a_product(**terms), FREE], prices=[a_plan()])


def rule(database: Database, **rules: Any) -> None:
    with database.begin(SYSTEM) as connection:
        catalogue.rule(connection, Rules(**rules))


def refresh(database: Database, *tenants: str, confirmed: tuple[str, ...] = ()) -> None:
    """Write their documents anew; of those confirmed, Stripe has just told us."""
    with database.begin(SYSTEM) as connection:
        state.refresh(connection, tenants, confirmed=dict.fromkeys(confirmed, math.inf), cause="time")


def keep_catalogue(database: Database) -> None:
    """Let no worker read another one from Stripe."""
    rows(database, "INSERT INTO chores VALUES ('catalogue', now() + interval '1 day') RETURNING 1")


def answered(database: Database, customer: str) -> None:
    """As if Stripe had been asked about it, and had known of nothing."""
    with database.begin(SYSTEM) as connection:
        questions.born(connection, customer)


def told(database: Database, customer: str, *, kind: str = UPDATED, **facts: Any) -> None:
    """Have an event of the customer's subscription come in and be applied."""
    keep(database, an_event(kind, a_subscription(customer, **facts), created=next(_moments)))
    take_in(database)


def document(database: Database, tenant: str = "t_acme") -> Json:
    """The tenant's document as it is stored."""
    [row] = rows(database, "SELECT body FROM tenant_states WHERE tenant_id = :tenant", tenant=tenant)
    stored: Json = json.loads(row["body"])
    return stored


def versioned(body: Json) -> Json:
    """All of it that a version stands for."""
    return {name: value for name, value in body.items() if name not in FRESHNESS}


def now(database: Database) -> float:
    """By the clock that documents follow."""
    return float(rows(database, "SELECT extract(epoch FROM clock_timestamp())::float8 AS now")[0]["now"])


def work_until(worker: Worker, condition: Callable[[], bool]) -> None:
    """Make rounds until that is so."""
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until, "it did not happen within 10 s"
        worker.work()
        time.sleep(0.01)


def override(database: Database, tenant: str, value: str, *, expires_at: float | None = None) -> None:
    """Give the tenant this value of `sso`, until then."""
    ends = None if expires_at is None else datetime.fromtimestamp(expires_at, UTC)
    with database.begin(SYSTEM) as connection:
        overrides.put(connection, tenant, "sso", value, author="ana", reason="a promise", expires_at=ends)
        state.refresh(connection, [tenant], cause="time")


# ---- the version


def test_a_first_document_is_version_1(database: Database, acme: str) -> None:
    team(database)

    refresh(database, acme)

    assert document(database)["version"] == 1


def test_writing_the_same_again_changes_nothing_but_its_freshness(
    database: Database, acme: str, customer: str
) -> None:
    team(database)
    answered(database, customer)
    told(database, customer)
    before = document(database)
    rows(database, "UPDATE tenant_states SET as_of = '2026-01-01T00:00Z', changed_at = NULL RETURNING 1")

    refresh(database, acme)
    unconfirmed = document(database)
    refresh(database, acme, confirmed=(acme,))
    confirmed = document(database)

    assert unconfirmed == {**before, "as_of": "2026-01-01T00:00:00Z"}
    assert versioned(confirmed) == versioned(before)
    assert confirmed["version"] == before["version"]
    assert confirmed["as_of"] >= before["as_of"]
    assert rows(database, "SELECT changed_at FROM tenant_states") == [{"changed_at": None}]


def test_a_batch_of_events_is_one_step_however_many_they_are(
    database: Database, acme: str, customer: str
) -> None:
    team(database)
    told(database, customer)
    for quantity in range(2, 9):
        seats = [("si_1", "price_1", quantity)]
        keep(database, an_event(UPDATED, a_subscription(customer, items=seats), created=next(_moments)))

    take_in(database)

    assert (document(database)["version"], document(database)["quantity"]) == (2, 8)


def test_the_version_is_what_the_body_says_it_is(database: Database, acme: str, customer: str) -> None:
    team(database)
    told(database, customer)
    told(database, customer, status="canceled")

    [row] = rows(database, "SELECT version, body FROM tenant_states")

    assert json.loads(row["body"])["version"] == row["version"] == 2


class History:
    """One tenant whose facts, catalogue, rules and overrides change at random, in every way they can."""

    def __init__(self, database: Database, tenant: str, customer: str, chance: random.Random) -> None:
        self._database = database
        self._tenant = tenant
        self._customer = customer
        self._chance = chance
        self._latest: Json = {}

    def step(self) -> str:
        """Let something happen. Its name, for whoever reads the failure."""
        steps = [
            *(self.an_event, self.the_same_event, self.an_answer, self.a_catalogue, self.rules),
            *(self.an_override, self.no_override, self.nothing, self.the_clock),
        ]
        happens: Callable[[], None] = self._chance.choice(steps)
        happens()
        return happens.__name__

    def an_event(self) -> None:
        self._latest = self._facts()
        told(self._database, self._customer, **self._latest)

    def the_same_event(self) -> None:
        told(self._database, self._customer, **self._latest)

    def an_answer(self) -> None:
        with self._database.begin(SYSTEM) as connection:
            questions.want(connection, [self._customer])
        with self._database.begin(SYSTEM) as connection:
            seen = inbox.newest(connection)
            [question] = questions.put(connection, seen=seen, most=1, customer=self._customer)
        at = next(_moments)
        one = subscriptions.read(a_subscription(self._customer, **self._facts()))
        entitled = set(self._chance.sample(["sso", "audit-log"], self._chance.randint(0, 2)))
        answer = Answer(subscriptions={one.id: (one, at, at + 1)}, entitlements=entitled)
        assert sync.hold(self._database, question, answer)

    def a_catalogue(self) -> None:
        says = self._chance.choice(["true", "false", "perhaps"])
        seats = self._chance.choice(["quantity", "2*quantity", "unlimited", "many"])
        features = self._chance.choice([[], ["sso", "audit-log"]])
        products = [a_product(**{"feature.sso": says, "limit.seats": seats}), FREE]
        a_catalogue(self._database, products=products, prices=[a_plan()], features=features)
        clock.catch_up(self._database)

    def rules(self) -> None:
        plan, days = self._chance.choice([None, "free", "none"]), self._chance.choice([None, 3])
        rule(self._database, default_plan=plan, grace_days=days)
        clock.catch_up(self._database)

    def an_override(self) -> None:
        expires_at = self._chance.choice([None, AT - 5e7, AT + 5e8])  # long ago, in many years
        override(self._database, self._tenant, self._chance.choice(["true", "false"]), expires_at=expires_at)

    def no_override(self) -> None:
        with self._database.begin(SYSTEM) as connection:
            overrides.lift(connection, self._tenant, "sso")
            state.refresh(connection, [self._tenant], cause="time")

    def nothing(self) -> None:
        refresh(self._database, self._tenant, confirmed=(self._tenant,))

    def the_clock(self) -> None:
        rows(self._database, "UPDATE tenant_states SET next_look = now() RETURNING 1")
        clock.strike(self._database)

    def _facts(self) -> Json:
        status = self._chance.choice(["active", "trialing", "past_due", "unpaid", "paused", "incomplete"])
        ends: Json = {} if self._chance.random() < 0.7 else {"cancel_at": int(time.time()) + 9 * DAY}
        return {"status": status, "items": [("si_1", "price_1", self._chance.randint(1, 3))], **ends}


@pytest.mark.parametrize("seed", range(50) if IS_SOAK else [1])
def test_whatever_happens_the_version_grows_by_one_with_each_visible_change_and_never_else(
    database: Database, acme: str, customer: str, seed: int
) -> None:
    history = History(database, acme, customer, random.Random(seed))
    answered(database, customer)
    team(database)
    told(database, customer)
    before = document(database)
    changes = 0

    for _ in range(120):
        step = history.step()

        after = document(database)
        is_changed = versioned(after) != versioned(before)
        assert after["version"] == before["version"] + is_changed, step
        with database.begin(SYSTEM) as connection:
            held = state.evaluate(connection, [acme])[acme]
        assert versioned(after) == {"tenant_id": acme, **held.evaluation.document}, step
        before, changes = after, changes + is_changed

    assert 20 < changes < 120


# ---- the transaction


def lose_the_connection(connection: Connection) -> None:
    connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))


def fail(_: Connection) -> None:
    raise RuntimeError("somebody's mistake")


@pytest.mark.parametrize("end", [fail, lose_the_connection])
def test_a_document_is_written_with_the_settling_of_its_events_or_not_at_all(
    database: Database,
    acme: str,
    customer: str,
    end: Callable[[Connection], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    team(database)
    told(database, customer)
    before = document(database)
    written = state.refresh

    def written_and_lost(connection: Connection, *arguments: Any, **options: Any) -> None:
        written(connection, *arguments, **options)
        end(connection)

    with monkeypatch.context() as patched:
        patched.setattr(state, "refresh", written_and_lost)
        with pytest.raises((RuntimeError, ServiceUnavailable)):
            told(database, customer, status="canceled")
    assert document(database) == before
    assert rows(database, "SELECT state FROM inbox ORDER BY id") == [{"state": "settled"}, {"state": "due"}]

    lapse(database)
    take_in(database)

    assert (document(database)["version"], document(database)["state"]) == (2, "none")
    assert rows(database, "SELECT DISTINCT state FROM inbox") == [{"state": "settled"}]


def test_an_answer_and_its_document_are_held_together_or_not_at_all(
    database: Database, acme: str, customer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    team(database)
    history = History(database, acme, customer, random.Random(1))
    monkeypatch.setattr(state, "refresh", lambda connection, *_, **__: lose_the_connection(connection))

    with pytest.raises(ServiceUnavailable):
        history.an_answer()

    assert rows(database, "SELECT 1 FROM subscriptions UNION ALL SELECT 1 FROM tenant_states") == []
    assert rows(database, "SELECT answered FROM stripe_customers") == [{"answered": 0}]


def test_whoever_waits_for_a_document_sees_what_it_waited_for(
    database: Database, other: Database, acme: str
) -> None:
    team(database)
    refresh(database, acme)

    with ThreadPoolExecutor(1) as somebody:
        with database.begin(SYSTEM) as connection:
            state.refresh(connection, [acme], cause="time")
            waiting = somebody.submit(refresh, other, acme)
            wait_until(lambda: bool(waits(connection)))
            overrides.put(connection, acme, "sso", "true", author="ana", reason="a promise")
            state.refresh(connection, [acme], cause="time")
        waiting.result()

    assert document(database)["features"]["sso"] == {"enabled": True}
    assert document(database)["version"] == 2


def waits(connection: Connection) -> int:
    """How many wait for what this transaction has locked."""
    asked = text(
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))"
    )
    return int(connection.scalar(asked) or 0)


def test_two_processes_that_refresh_the_same_tenants_in_opposite_orders_do_not_meet_in_a_deadlock(
    database: Database, other: Database
) -> None:
    team(database)

    def often(database: Database, *, backwards: bool) -> None:
        for number in range(10):
            tenants = [f"t_{number}_{one}" for one in range(50)]
            for _ in range(2):
                refresh(database, *(reversed(tenants) if backwards else tenants))

    with ThreadPoolExecutor(2) as both:
        done = [both.submit(often, database, backwards=False), both.submit(often, other, backwards=True)]
        for one in done:
            one.result()

    written = "SELECT count(*) AS n, min(version) AS first, max(version) AS last FROM tenant_states"
    assert rows(database, written) == [{"n": 500, "first": 1, "last": 1}]


# ---- whose facts


def test_a_former_customers_facts_grant_nothing_and_the_new_one_has_to_be_asked_about(
    database: Database, acme: str, customer: str, sandbox: Control
) -> None:
    team(database)
    answered(database, customer)
    told(database, customer)
    new = create_customer(sandbox)

    sync.link(database, acme, new, by="test", replace=True)
    told(database, customer, items=[("si_1", "price_1", 9)])  # which is nobody's by now

    moved = document(database)
    assert (moved["version"], moved["access"], moved["stripe"]["customer"]) == (2, False, new)
    assert moved["features"]["sso"] == {"enabled": False}
    assert rows(database, "SELECT stripe_customer_id, as_of FROM tenant_states") == [
        {"stripe_customer_id": new, "as_of": None}
    ]
    with database.begin(SYSTEM) as connection:
        assert questions.is_wanted(connection, new)


def test_the_end_of_an_old_subscription_leaves_the_new_plan_alone(
    database: Database, acme: str, customer: str
) -> None:
    team(database)
    told(database, customer, id="sub_old")
    told(database, customer, id="sub_new", items=[("si_2", "price_1", 5)])

    told(database, customer, kind="customer.subscription.deleted", id="sub_old", status="canceled")

    left = document(database)
    assert (left["state"], left["quantity"], left["stripe"]["subscription"]) == ("active", 5, "sub_new")
    assert left["features"]["seats"] == {"enabled": True, "limit": 5}


def test_a_payment_that_is_late_keeps_the_seats(database: Database, acme: str, customer: str) -> None:
    team(database)
    told(database, customer, items=[("si_1", "price_1", 7)])

    told(database, customer, items=[("si_1", "price_1", 7)], status="past_due")

    late = document(database)
    assert (late["state"], late["access"], late["quantity"]) == ("grace", True, 7)
    assert late["features"] == {"seats": {"enabled": True, "limit": 7}, "sso": {"enabled": True}}


def test_events_of_a_customer_that_is_nobodys_write_no_document(database: Database, customer: str) -> None:
    team(database)

    told(database, customer)

    assert rows(database, "SELECT 1 FROM tenant_states") == []


def test_every_feature_says_beside_the_document_where_it_comes_from(
    database: Database, acme: str, customer: str
) -> None:
    team(database)
    told(database, customer, items=[("si_1", "price_1", 2)])

    override(database, acme, "false")

    [row] = rows(database, "SELECT why, body FROM tenant_states")
    source = {"from": "subscription", "subscription": "sub_1", "price": "price_1", "quantity": 2}
    assert row["why"]["state"] == "active at Stripe"
    assert row["why"]["features"]["seats"] == [{**source, "says": "quantity"}]
    assert [one["from"] for one in row["why"]["features"]["sso"]] == ["subscription", "override"]
    assert "ana" not in row["body"]


def test_who_gave_a_feature_and_why_is_not_versioned(database: Database, acme: str) -> None:
    team(database)
    override(database, acme, "true")

    with database.begin(SYSTEM) as connection:
        overrides.put(connection, acme, "sso", "true", author="ben", reason="another promise")
        state.refresh(connection, [acme], cause="time")

    assert document(database)["version"] == 1
    [row] = rows(database, "SELECT why FROM tenant_states")
    assert row["why"]["features"]["sso"][0]["author"] == "ben"


# ---- time


def ends_soon(database: Database, sandbox: Control, *, seconds: float = 1.0) -> tuple[int, dict[str, str]]:
    """Three tenants whose grace, trial and override end at the next whole second after that. Who has what."""
    rule(database, grace_days=3)
    team(database)
    end = int(now(database) + seconds) + 1
    for tenant in ("t_grace", "t_trial", "t_override"):
        customer = create_customer(sandbox)
        link(database, tenant, customer)
        answered(database, customer)
        if tenant == "t_grace":
            failed = {"finalized_at": end - 3 * DAY}
            unpaid = an_invoice(customer, "sub_late", status="open", status_transitions=failed)
            keep(database, an_event("invoice.payment_failed", unpaid, created=next(_moments)))
            told(database, customer, id="sub_late", status="past_due")
        elif tenant == "t_trial":
            told(database, customer, id="sub_trial", status="trialing", trial_end=end - 3600)
        else:
            override(database, tenant, "true", expires_at=end)
    return end, {"t_grace": "suspended", "t_trial": "suspended", "t_override": "none"}


def test_the_clock_ends_grace_trial_and_override_at_their_second_though_nobody_reads(
    database: Database, environ: dict[str, str], sandbox: Control
) -> None:
    end, then = ends_soon(database, sandbox)
    keep_catalogue(database)
    before = {tenant: document(database, tenant) for tenant in then}
    assert all(one["features"]["sso"]["enabled"] for one in before.values())

    with a_worker({**environ, "BILLING_GRACE_DAYS": "3"}, catalogues=True) as worker:
        while now(database) < end:
            worker.work()
            if now(database) < end:
                assert {tenant: document(database, tenant) for tenant in then} == before
        work_until(worker, lambda: moved(database, before))

    after = {tenant: document(database, tenant) for tenant in then}
    assert {tenant: one["state"] for tenant, one in after.items()} == then
    assert not any(one["features"]["sso"]["enabled"] for one in after.values())
    assert all(after[tenant]["version"] == before[tenant]["version"] + 1 for tenant in then)
    in_time = "SELECT min(changed_at) >= to_timestamp(:end) AS in_time FROM tenant_states"
    assert rows(database, in_time, end=end) == [{"in_time": True}]


def moved(database: Database, before: dict[str, Json]) -> bool:
    return all(document(database, tenant)["version"] > one["version"] for tenant, one in before.items())


def test_the_clock_leaves_those_alone_whose_moment_has_not_come(
    database: Database, acme: str, customer: str
) -> None:
    team(database)
    told(database, customer, cancel_at=int(time.time()) + DAY)
    written = "SELECT xmin::text FROM tenant_states"
    before = rows(database, written)

    assert clock.strike(database) == 0
    assert rows(database, written) == before


def test_where_stripe_owes_us_word_by_then_the_clock_has_it_asked(
    database: Database, acme: str, customer: str
) -> None:
    team(database)
    answered(database, customer)
    told(database, customer, trial_end=int(now(database)) - 601, status="active")
    told(database, customer, trial_end=int(now(database)) - 600 + 1, status="active")  # in a second
    assert not rows(database, "SELECT 1 FROM stripe_customers WHERE wanted_at IS NOT NULL")

    wait_until(lambda: clock.strike(database) == 1)

    assert rows(database, "SELECT 1 AS asked FROM stripe_customers WHERE wanted_at IS NOT NULL")
    assert document(database)["version"] == 1  # a trial's end is in it only while the trial lasts


def test_one_customer_on_two_documents_stops_no_clock(database: Database, acme: str, customer: str) -> None:
    """As an operator leaves it who moves a customer by hand."""
    refresh(database, acme, "t_former")
    due = "next_look = now() - interval '1 second', stripe_customer_id = :customer"
    rows(database, f"UPDATE tenant_states SET {due} RETURNING 1", customer=customer)

    assert clock.strike(database) == 2
    assert rows(database, "SELECT FROM tenant_states WHERE next_look <= now()") == []


# ---- editions


def test_a_new_edition_reaches_every_document_in_chunks_of_500(database: Database) -> None:
    team(database)
    with database.begin(SYSTEM) as connection:
        connection.execute(
            text("INSERT INTO tenant_states (tenant_id) SELECT 't_' || n FROM generate_series(1, 1200) AS n")
        )
    while clock.catch_up(database):
        pass
    edition = team(database, **{"feature.sso": "true", "feature.new": "true"})

    chunks = [clock.catch_up(database) for _ in range(4)]

    assert chunks == [500, 500, 200, 0]
    caught_up = "SELECT edition, version, count(*) AS n FROM tenant_states GROUP BY 1, 2"
    assert rows(database, caught_up) == [{"edition": edition, "version": 2, "n": 1200}]


def test_what_an_edition_moves_is_told_like_any_change(
    database: Database, acme: str, caplog: pytest.LogCaptureFixture
) -> None:
    team(database)
    refresh(database, acme)
    team(database, **{"feature.new": "true"})
    said = logged(caplog)

    clock.catch_up(database)

    told = [line for line in said() if line["event"] == "document.changed"]
    assert [(line["tenant"], line["version"]) for line in told] == [(acme, document(database)["version"])]


def test_an_edition_that_changes_nothing_for_a_tenant_changes_nothing_of_its_document(
    database: Database, acme: str
) -> None:
    team(database)
    refresh(database, acme)
    before = document(database)
    a_catalogue(
        database,
        products=[a_product(**{"feature.sso": "true", "limit.seats": "quantity"}), {**FREE, "name": "Gratis"}],
        prices=[a_plan()],
    )

    assert clock.catch_up(database) == 1
    assert document(database) == before
    assert clock.catch_up(database) == 0


def test_what_is_held_by_somebody_else_is_caught_up_with_later(
    database: Database, other: Database, acme: str
) -> None:
    """It takes as long as a lock may; the transaction that has the row is not disturbed."""
    team(database)
    refresh(database, acme)
    team(database, **{"feature.new": "true"})

    with other.begin(SYSTEM) as holder:
        holder.execute(text("SELECT 1 FROM tenant_states FOR UPDATE"))
        with pytest.raises(ServiceUnavailable):
            clock.catch_up(database)

    assert clock.catch_up(database) == 1
    assert "new" in document(database)["features"]


# ---- whose turn it is


def test_of_many_who_want_stripe_asked_one_may_and_the_next_with_a_newer_reason_or_after_the_pause(
    database: Database, other: Database
) -> None:
    def may(database: Database, seconds: int, reason: datetime | None = None) -> bool:
        with database.begin(SYSTEM) as connection:
            return state.may_sync(connection, "t_acme", timedelta(seconds=seconds), reason)

    def many(reason: datetime | None = None) -> list[bool]:
        with ThreadPoolExecutor(4) as callers:
            return sorted(callers.map(lambda n: may((database, other)[n % 2], 5, reason), range(8)))

    [earlier] = rows(database, "SELECT clock_timestamp() AS now")
    assert many() == [False] * 7 + [True]
    [later] = rows(database, "SELECT clock_timestamp() AS now")

    assert not may(other, 5, earlier["now"])
    assert many(later["now"]) == [False] * 7 + [True]
    assert may(other, 0)
