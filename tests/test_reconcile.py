"""What no event told us is found all the same: undelivered events, and customers nobody asked about."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import text

from billing import (
    chores,
    drift,
    events,
    inbox,
    missing,
    operations,
    overrides,
    questions,
    reconcile,
    runs,
    state,
    sync,
)
from billing.audit import By
from billing.budget import Budget
from billing.db import SYSTEM, Database
from billing.reconcile import Report
from billing.stripe_api import Stripe
from sandbox.server import Control, running
from tests.conftest import TABLES, MakeApp, create_customer, link, rows
from tests.deliveries import (
    a_catalogue,
    a_subscription,
    a_worker,
    an_event,
    an_invoice,
    at_stripe,
    deliver,
    happened,
    keep,
    logged,
    make_due,
    subscribe,
    take_in,
    until_quiet,
)
from tests.test_portal_options import wait_until

Fetch = Callable[[], int]
Caplog = pytest.LogCaptureFixture

FOREVER = datetime.max.replace(tzinfo=UTC)
LATE_SECONDS = missing.ON_ITS_WAY_SECONDS + 5  # an answer's time is known to a second or two


@pytest.fixture(scope="module")
def stripe_stand_in() -> Iterator[Control]:
    """A sandbox of our own: what is never delivered in it would be fetched in other tests, too."""
    with running() as control:
        yield control


@pytest.fixture
def fetch(database: Database, sandbox: Control) -> Fetch:
    """Fetch what was not delivered since the test began."""
    stripe, since = Stripe(sandbox.key, base=sandbox.url), sandbox.now()
    return lambda: missing.undelivered(database, stripe, Budget(database, 100), livemode=False, since=since)


@pytest.fixture
def deaf(sandbox: Control) -> None:
    """An endpoint to which nothing is ever delivered."""
    endpoint = {"url": "http://127.0.0.1:9/webhooks/stripe", "enabled_events[0]": "*"}
    at_stripe(sandbox, "POST", "webhook_endpoints", **endpoint)
    sandbox.webhooks(drop=1.0)


def kept_of(database: Database, customer: str) -> list[str]:
    found = rows(database, "SELECT type FROM inbox WHERE customer = :customer ORDER BY type", customer=customer)
    return [row["type"] for row in found]


def is_wanted(database: Database, customer: str) -> bool:
    found = rows(
        database,
        "SELECT FROM stripe_customers WHERE stripe_customer_id = :customer AND wanted_at IS NOT NULL",
        customer=customer,
    )
    return bool(found)


@pytest.mark.usefixtures("deaf")
def test_events_that_were_never_delivered_are_fetched_and_settled(
    environ: dict[str, str], database: Database, acme: str, customer: str, sandbox: Control, fetch: Fetch
) -> None:
    id = subscribe(sandbox, customer)["id"]

    assert fetch() > 0
    with a_worker(environ) as worker:
        until_quiet(worker)
        make_due(database)
        until_quiet(worker)

    assert kept_of(database, customer) == sorted(event["type"] for event in happened(sandbox, customer))
    assert rows(database, "SELECT stripe_subscription_id AS id, status FROM subscriptions") == [
        {"id": id, "status": "active"}
    ]
    assert rows(database, "SELECT FROM inbox WHERE state <> 'settled' AND customer = :c", c=customer) == []


@pytest.mark.usefixtures("deaf")
def test_what_is_here_already_is_not_fetched_twice(
    client: FlaskClient, database: Database, acme: str, customer: str, sandbox: Control, fetch: Fetch
) -> None:
    subscribe(sandbox, customer)
    first, *_ = happened(sandbox, customer)
    deliver(client, first)

    fetch()
    again = fetch()

    assert again == 0
    assert kept_of(database, customer) == sorted(event["type"] for event in happened(sandbox, customer))


@pytest.mark.usefixtures("deaf")
def test_an_event_that_comes_after_it_was_fetched_is_acknowledged_and_kept_once(
    client: FlaskClient, database: Database, acme: str, customer: str, sandbox: Control, fetch: Fetch
) -> None:
    at_stripe(sandbox, "DELETE", f"customers/{customer}")
    fetch()
    [deleted] = [event for event in happened(sandbox, customer) if event["type"] == "customer.deleted"]

    assert deliver(client, deleted).status_code == 200

    assert kept_of(database, customer).count("customer.deleted") == 1


@pytest.mark.usefixtures("deaf")
def test_all_pages_of_what_was_not_delivered_are_fetched(
    database: Database, customer: str, sandbox: Control, fetch: Fetch
) -> None:
    for n in range(120):
        sandbox.happen("customer.deleted", {"id": f"cus_of_a_page_{n}", "object": "customer"})

    assert fetch() >= 120


def test_a_worker_fetches_what_was_not_delivered_by_itself(
    environ: dict[str, str], database: Database, acme: str, customer: str, sandbox: Control, deaf: None
) -> None:
    subscribe(sandbox, customer)

    with a_worker(environ) as worker:
        until_quiet(worker)

    assert "customer.subscription.created" in kept_of(database, customer)


def test_a_customer_whose_events_were_all_lost_is_right_after_a_walk(
    environ: dict[str, str], database: Database, acme: str, customer: str, sandbox: Control
) -> None:
    id = subscribe(sandbox, customer)["id"]

    assert reconcile.meet(database) == (1, customer)
    with a_worker(environ) as worker:
        until_quiet(worker)
    before = rows(database, "SELECT stripe_subscription_id AS id, status FROM subscriptions")
    at_stripe(sandbox, "DELETE", f"subscriptions/{id}")
    assert reconcile.walk(database, older=timedelta()) == 1
    with a_worker(environ) as worker:
        until_quiet(worker)

    after = rows(database, "SELECT stripe_subscription_id AS id, status FROM subscriptions")
    assert (before, after) == ([{"id": id, "status": "active"}], [{"id": id, "status": "canceled"}])


@pytest.fixture
def aged(database: Database) -> list[str]:
    """Linked customers, by how long ago Stripe was last asked about them."""
    ages = {"cus_never": None, "cus_old": "30 hours", "cus_older": "40 hours", "cus_fresh": "1 hour"}
    for customer, age in ages.items():
        link(database, f"t_of_{customer}", customer)
        with database.begin(SYSTEM) as connection:
            questions.lock(connection, customer)
        rows(
            database,
            "UPDATE stripe_customers SET answered_at = now() - CAST(:age AS interval)"
            " WHERE stripe_customer_id = :customer RETURNING 1",
            age=age,
            customer=customer,
        )
    return list(ages)


def test_a_walk_goes_to_those_nobody_asked_about_for_longest(database: Database, aged: list[str]) -> None:
    (met, _), found = reconcile.meet(database), reconcile.walk(database, most=2)

    assert (met, found) == (1, 1)  # one place in line is taken already
    assert [customer for customer in aged if is_wanted(database, customer)] == ["cus_never", "cus_older"]


def test_a_walk_adds_nobody_while_questions_wait_and_goes_on_when_they_are_put(
    database: Database, aged: list[str]
) -> None:
    with database.begin(SYSTEM) as connection:
        questions.want(connection, [f"cus_of_an_event_{n}" for n in range(5)])

    assert (reconcile.meet(database, most=5), reconcile.walk(database, most=5)) == ((0, ""), 0)
    with database.begin(SYSTEM) as connection:
        questions.put(connection, seen=0, most=5)
    assert reconcile.meet(database, most=5) == (1, "cus_older")
    assert reconcile.walk(database, most=5) == 2


def test_a_walk_leaves_those_alone_whom_nobody_has_linked(database: Database, customer: str) -> None:
    with database.begin(SYSTEM) as connection:
        questions.lock(connection, customer)
    link(database, "t_without", None)
    link(database, "t_empty", "")

    assert (reconcile.meet(database), reconcile.walk(database, older=timedelta())) == ((0, ""), 0)


def test_a_listing_that_takes_long_is_not_begun_again_and_keeps_nobody_from_asking(
    database: Database, environ: dict[str, str], acme: str, customer: str, sandbox: Control
) -> None:
    with a_worker(environ) as worker:
        sandbox.fault("hang", path="/v1/events", seconds=2, times=None)
        for _ in range(10):
            with database.begin(SYSTEM) as connection:
                connection.execute(text("UPDATE chores SET due_at = now() WHERE name = 'look'"))
            for chore in worker._chores:
                chore.next_look = 0.0
            worker.work()
        with database.begin(SYSTEM) as connection:
            questions.want(connection, [customer])

        wait_until(lambda: worker.work() or not is_wanted(database, customer))

        listings = [call for call in sandbox.requests() if call["path"] == "/v1/events"]
        sandbox.clear()
    assert len(listings) == 1


# ---- events nobody was told of


class Account:
    """A tenant's customer at Stripe, of whose changes nobody is told; and all that can be done about it."""

    def __init__(self, database: Database, sandbox: Control, tenant: str = "t_acme") -> None:
        self.db = database
        self.sandbox = sandbox
        self.tenant = tenant
        self.customer = create_customer(sandbox)
        self.stripe = Stripe(sandbox.key, base=sandbox.url)
        self.budget = Budget(database, 1000)
        self.all = (database, self.stripe, self.budget)
        link(database, tenant, self.customer)

    def look(self) -> int:
        return missing.missed(*self.all, livemode=False)

    def run(self, most: int | None = None) -> Report:
        return reconcile.run(*self.all, livemode=False, most=most, tell=lambda total: None)

    def imagine(self) -> Report:
        return reconcile.imagine(*self.all, livemode=False, most=None, tell=lambda total: None)

    def compare(self) -> None:
        """As a walk does, with no look at the events."""
        with self.db.begin(SYSTEM) as connection:
            question = questions.put_at_once(connection, self.customer, seen=inbox.newest(connection))
        assert question
        assert sync.ask(*self.all, question)

    def ask(self) -> None:
        assert sync.now(*self.all, self.customer)

    def subscribe(self, **params: str) -> str:
        """A subscription we know of, as Stripe's list of events is read up to it."""
        id = str(subscribe(self.sandbox, self.customer, **params)["id"])
        self.ask()
        self.past()
        self.look()
        return id

    def past(self) -> None:
        """What has happened is no longer on its way, and not even within what is listed again."""
        self.sandbox.advance(missing.OVERLAP_SECONDS + LATE_SECONDS)
        with self.db.begin(SYSTEM) as connection:
            runs.listed(connection, self.sandbox.now())

    def believe(self, status: str) -> None:
        """Hold what is not so."""
        change = "UPDATE subscriptions SET status = :s, facts = 'otherwise' WHERE stripe_customer_id = :c"
        rows(self.db, f"{change} RETURNING 1", s=status, c=self.customer)
        with self.db.begin(SYSTEM) as connection:
            state.refresh(connection, [self.tenant], cause="answer")

    def cancel(self, subscription: str) -> None:
        at_stripe(self.sandbox, "DELETE", f"subscriptions/{subscription}")

    @property
    def version(self) -> int:
        with self.db.begin(SYSTEM) as connection:
            return state.version_of(connection, self.tenant)


@pytest.fixture
def account(database: Database, sandbox: Control) -> Account:
    a_catalogue(database)
    return Account(database, sandbox)


def kinds(report: Report) -> dict[str, str]:
    return {one.tenant_id: one.kind for one in report.findings}


class Killed(BaseException):
    """As if the process had ended."""


class Mortal(Database):
    """Dies before its transactions with this number, and not again."""

    dies_at = 0

    def begin(self, *args: Any, **options: Any) -> Any:
        self._live()
        return super().begin(*args, **options)

    def run(self, *args: Any, **options: Any) -> Any:
        self._live()
        return super().run(*args, **options)

    def _live(self) -> None:
        self.dies_at -= 1
        if self.dies_at == 0:
            raise Killed


def test_a_look_that_is_killed_anywhere_loses_no_event_and_no_suspicion(
    account: Account, database_url: str
) -> None:
    account.ask()
    account.past()
    subscribe(account.sandbox, account.customer)
    account.sandbox.advance(LATE_SECONDS)
    mortal, deaths = Mortal(database_url, pool_size=2), 0
    [before] = rows(account.db, "SELECT until FROM events_listed")

    for mortal.dies_at in itertools.count(1):
        try:
            missing.missed(mortal, account.stripe, account.budget, livemode=False)
        except Killed:
            deaths += 1
            assert rows(account.db, "SELECT until FROM events_listed") == [before]
            rows(account.db, "DELETE FROM inbox WHERE id > (SELECT min(id) FROM inbox) RETURNING 1")
        else:
            break
    mortal.close()

    happen = [event["type"] for event in happened(account.sandbox, account.customer)]
    assert deaths > len(happen)
    assert kept_of(account.db, account.customer) == sorted(set(happen) & events.USED)
    assert rows(account.db, "SELECT until > :u AS moved FROM events_listed", u=before["until"])[0]["moved"]
    assert rows(account.db, "SELECT kind, version_before FROM drift") == [
        {"kind": "missed_event", "version_before": account.version}
    ]


def test_a_list_that_was_left_for_long_is_read_in_growing_stretches_and_no_further_back_than_stripe_has_it(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(missing, "time", SimpleNamespace(time=account.sandbox.now))
    before = len(listings(account.sandbox))
    with account.db.begin(SYSTEM) as connection:
        runs.listed(connection, account.sandbox.now() - 400 * missing.DAY_SECONDS)

    account.look()

    since = [int(one["params"]["created"]["gte"]) for one in listings(account.sandbox)[before:]]
    assert min(since) >= account.sandbox.now() - missing.LISTED_SECONDS - 60
    begun = sorted(set(since))
    assert [round((b - a) / 3600) for a, b in itertools.pairwise(begun)][:6] == [1, 2, 4, 8, 16, 24]
    assert all(b - a < missing.DAY_SECONDS for a, b in itertools.pairwise(begun))  # a little is read twice
    assert len(begun) < 40


def test_the_first_look_notes_stripes_time_and_no_clock_of_ours_moves_it_on(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscription = account.subscribe()
    rows(account.db, "DELETE FROM events_listed RETURNING 1")
    ahead = SimpleNamespace(time=lambda: account.sandbox.now() + 7200)
    monkeypatch.setattr(missing, "time", ahead)

    account.look()
    account.sandbox.advance(LATE_SECONDS)
    account.cancel(subscription)

    found = [account.look(), account.look()]
    at_stripe(account.sandbox, "DELETE", f"customers/{account.customer}")

    assert [*found, account.look()] == [1, 0, 1]


def test_a_look_keeps_its_turn_for_as_long_as_pages_come(account: Account) -> None:
    with account.db.begin(SYSTEM) as connection:
        chores.take(connection, reconcile.LOOK, timedelta(seconds=1))

    reconcile.look(*account.all, livemode=False)

    with account.db.begin(SYSTEM) as connection:
        due = chores.due(connection, reconcile.LOOK)
        assert due
        assert due > runs.now(connection) + reconcile.LOOK_EVERY / 2


@pytest.mark.usefixtures("deaf")
def test_what_would_be_fetched_is_read_page_by_page_as_it_is_wanted(account: Account) -> None:
    for n in range(120):
        account.sandbox.happen("customer.deleted", {"id": f"cus_of_a_list_{n}", "object": "customer"})
    before = len(listings(account.sandbox))

    unknown = missing.unknown(*account.all, livemode=False)

    assert next(unknown).customer == "cus_of_a_list_119"
    assert len(listings(account.sandbox)) == before + 1
    assert len({one.event_id for one in unknown}) >= 119


def listings(sandbox: Control) -> list[Any]:
    return [request for request in sandbox.requests() if request["path"] == "/v1/events"]


# ---- drift


def test_a_change_whose_event_was_missed_is_mended_and_told_once(account: Account) -> None:
    subscription = account.subscribe()
    before = account.version
    account.cancel(subscription)
    account.sandbox.advance(LATE_SECONDS)

    imagined, found, again = account.imagine(), account.run(), account.run()

    [one] = found.findings
    deleted = happened(account.sandbox, account.customer)[-1]
    assert (one.kind, one.event_id, one.needs_somebody) == ("missed_event", deleted["id"], False)
    assert (one.version_before, one.state_before) == (before, "active")
    assert (one.version_after, one.state_after) == (account.version, "none")
    assert kinds(imagined) == {account.tenant: "missed_event"}
    assert (imagined.fetched, found.fetched, again.fetched) == (1, 1, 0)
    assert (again.findings, again.compared) == ([], 1)


def test_a_worker_finds_the_same(account: Account, environ: dict[str, str], caplog: Caplog) -> None:
    subscription = account.subscribe()
    account.cancel(subscription)
    account.sandbox.advance(LATE_SECONDS)
    told = logged(caplog)

    with a_worker(environ) as worker:
        until_quiet(worker)  # looks, and applies what has come of it
        make_due(account.db)
        until_quiet(worker)
        reconcile.look(*account.all, livemode=False)
    rows(account.db, "UPDATE reconcile_runs SET told_at = told_at - interval '1 hour' RETURNING 1")
    reconcile.look(*account.all, livemode=False)

    with account.db.begin(SYSTEM) as connection:
        standing = reconcile.standing(connection)
    [line] = [line for line in told() if line["event"] == "drift.found"]
    assert (line["kind"], line["tenant"]) == ("missed_event", account.tenant)
    assert standing.last
    assert (standing.last.door, standing.last.fetched) == ("worker", 1)
    assert standing.drift == {**drift.none(), "missed_event": 1}
    assert (standing.needing, standing.next_at is not None) == ([], True)


def test_a_change_no_event_tells_of_is_mended_and_told(account: Account) -> None:
    account.subscribe()
    account.believe("unpaid")

    imagined, found = account.imagine(), account.run()

    [one] = found.findings
    assert (one.kind, one.state_before, one.state_after) == ("changed", "suspended", "active")
    assert one.mended_at
    assert kinds(imagined) == {account.tenant: "changed"}


def test_a_change_whose_event_is_on_its_way_is_no_drift(account: Account, client: FlaskClient) -> None:
    """Whether Stripe has only made it, or it is here and waits for a worker."""
    made, delivered = account.subscribe(), Account(account.db, account.sandbox, "t_globex")
    there = delivered.subscribe()
    account.cancel(made)
    delivered.cancel(there)
    deliver(client, happened(account.sandbox, delivered.customer)[-1])

    imagined, found = account.imagine(), account.run()

    assert (imagined.findings, found.findings) == ([], [])
    statuses = rows(account.db, "SELECT status FROM subscriptions")
    assert statuses == [{"status": "canceled"}] * 2
    assert rows(account.db, "SELECT FROM drift") == []


@pytest.mark.parametrize(("late", "kinds"), [(1, []), (LATE_SECONDS, ["missed_event"])], ids=["young", "late"])
def test_a_change_is_judged_by_the_event_that_comes_after_it(
    account: Account, late: int, kinds: list[str]
) -> None:
    """If it is late, the document is as wrong as it was before the answer that mended it."""
    subscription = account.subscribe()
    before = account.version
    account.cancel(subscription)
    account.compare()
    [suspicion] = rows(account.db, "SELECT kind, version_before FROM drift")
    account.sandbox.advance(late)

    assert account.look() == 1
    reconcile.judge(account.db, before=FOREVER)

    assert suspicion == {"kind": "changed", "version_before": before}
    found = rows(account.db, "SELECT kind, version_before, version_after FROM drift")
    assert found == [
        {"kind": kind, "version_before": before, "version_after": account.version} for kind in kinds
    ]


def test_what_no_event_was_taken_in_for_is_drift_and_what_one_was_passed_over_for_is_none(
    account: Account, client: FlaskClient, make_app: MakeApp
) -> None:
    """Ignoring an event has Stripe asked in its place. One that is held for what it says explains no more."""
    passed_over, taken_in = account.subscribe(), Account(account.db, account.sandbox, "t_globex")
    paid = an_event("invoice.paid", an_invoice(taken_in.customer, taken_in.subscribe()))
    account.cancel(passed_over)
    canceled = happened(account.sandbox, account.customer)[-1]
    deliver(client, canceled)
    operations.events.ignore(make_app().extensions["billing"], By("ana", "poison"), [canceled["id"]])
    keep(account.db, paid)
    take_in(account.db)
    states = rows(
        account.db, "SELECT state FROM inbox WHERE event_id IN (:a, :b)", a=canceled["id"], b=paid["id"]
    )
    taken_in.believe("unpaid")

    account.compare()
    taken_in.compare()

    assert states == [{"state": "settled"}] * 2
    assert rows(account.db, "SELECT tenant_id, kind FROM drift") == [
        {"tenant_id": "t_globex", "kind": "changed"}
    ]
    assert rows(account.db, "SELECT status FROM subscriptions ORDER BY status") == [
        {"status": "active"},
        {"status": "canceled"},
    ]


def test_while_too_many_events_are_due_to_look_through_nobody_is_suspected_or_judged(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = Account(account.db, account.sandbox, "t_globex")
    for one in (account, later):
        one.subscribe()
        one.believe("unpaid")
    account.compare()
    keep(account.db, an_event("customer.subscription.updated", a_subscription("cus_of_another")))

    with monkeypatch.context() as patched:
        patched.setattr(inbox, "LOOKED_AT", 0)
        later.compare()
        crowded = reconcile.judge(account.db, before=FOREVER)
    pending = rows(account.db, "SELECT tenant_id, found_at FROM drift")

    assert (crowded, pending) == (0, [{"tenant_id": account.tenant, "found_at": None}])
    assert reconcile.judge(account.db, before=FOREVER) == 1


def test_what_the_first_answer_of_a_link_tells_is_no_drift(account: Account) -> None:
    """Whether or not the customer had been the tenant's before."""
    subscription, other = account.subscribe(), create_customer(account.sandbox)
    sync.link(account.db, account.tenant, other, by="ana", replace=True)
    account.cancel(subscription)
    new = Account(account.db, account.sandbox, "t_globex")
    subscribe(account.sandbox, new.customer)
    account.sandbox.advance(LATE_SECONDS)
    sync.link(account.db, account.tenant, account.customer, by="ana", replace=True)

    account.compare()
    told = rows(account.db, "SELECT kind FROM drift")
    assert account.look() > 0
    late = rows(account.db, "SELECT kind FROM drift WHERE tenant_id = :t", t=new.tenant)
    new.compare()

    assert told == late == []
    assert rows(account.db, "SELECT status FROM subscriptions ORDER BY status") == [
        {"status": "active"},
        {"status": "canceled"},
    ]


def test_a_document_that_moves_for_a_reason_of_ours_makes_no_late_event_drift(account: Account) -> None:
    subscription = account.subscribe()
    at_stripe(account.sandbox, "POST", f"subscriptions/{subscription}", **{"metadata[note]": "harmless"})
    account.sandbox.advance(LATE_SECONDS)
    assert account.look() == 1
    before = account.version
    with account.db.begin(SYSTEM) as connection:
        overrides.put(connection, account.tenant, "sso", "true", author="ana", reason="a deal")
        state.refresh(connection, [account.tenant], cause="override")
    take_in(account.db)
    account.ask()

    suspected = rows(account.db, "SELECT kind FROM drift")
    found = reconcile.judge(account.db, before=FOREVER)

    assert (suspected, found, account.version) == ([{"kind": "missed_event"}], 0, before + 1)
    assert rows(account.db, "SELECT FROM drift") == []


def test_a_change_is_of_the_document_and_of_nothing_else(account: Account) -> None:
    """Of Stripe's entitlements no subscription tells; a note in a subscription no document tells."""
    a_catalogue(account.db, features=["sso"])
    noted = Account(account.db, account.sandbox, "t_globex")
    for one in (account, noted):
        one.subscribe()
    rows(account.db, "UPDATE subscriptions SET facts = 'otherwise' RETURNING 1")
    entitled = "INSERT INTO active_entitlements VALUES (:customer, 'sso') RETURNING 1"
    rows(account.db, entitled, customer=account.customer)
    with account.db.begin(SYSTEM) as connection:
        state.refresh(connection, [account.tenant], cause="answer")
    before = account.version

    account.compare()
    noted.compare()
    assert reconcile.judge(account.db, before=FOREVER) == 1

    assert rows(
        account.db, "SELECT tenant_id, kind, version_before, version_after, state_after FROM drift"
    ) == [
        {
            "tenant_id": account.tenant,
            "kind": "changed",
            "version_before": before,
            "version_after": before + 1,
            "state_after": "active",
        }
    ]


def test_what_is_newer_than_the_answer_is_no_difference(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever writes nothing puts no question: another's may be answered meanwhile."""
    subscription = account.subscribe()
    answer = sync._Reader.answer

    def overtaken(reader: sync._Reader) -> sync.Answer:
        read = answer(reader)
        if not reader._leased:
            day = {"proration_behavior": "none", "trial_end": str(account.sandbox.now() + 86_400)}
            at_stripe(account.sandbox, "POST", f"subscriptions/{subscription}", **day)
            account.ask()
        return read

    monkeypatch.setattr(sync._Reader, "answer", overtaken)

    imagined, beside = account.imagine(), sync.compare(*account.all, account.customer)

    assert imagined.findings == []
    assert beside.is_overtaken
    assert beside.here == beside.there
    assert beside.here.document["state"] == "trialing"


def test_what_is_new_here_or_was_abandoned_is_no_drift(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(missing, "STRETCH_SECONDS", 2 * missing.DAY_SECONDS)
    subscribe(account.sandbox, account.customer)
    buyer = Account(account.db, account.sandbox, "t_buyer")
    abandoned = buyer.subscribe(payment_behavior="default_incomplete")
    account.sandbox.advance(days=1)

    imagined, found = account.imagine(), account.run()

    assert (imagined.findings, found.findings) == ([], [])
    held = rows(account.db, "SELECT status FROM subscriptions WHERE stripe_subscription_id = :a", a=abandoned)
    assert held == [{"status": "incomplete_expired"}]


def test_a_deleted_or_foreign_customer_is_for_a_person_until_the_tenant_has_another(account: Account) -> None:
    account.subscribe()
    at_stripe(account.sandbox, "DELETE", f"customers/{account.customer}")
    of_another = Account(account.db, account.sandbox, "t_globex")
    of_another.subscribe()
    whose = {"metadata[tenant_id]": "t_somebody"}
    at_stripe(account.sandbox, "POST", f"customers/{of_another.customer}", **whose)
    link(account.db, "t_lost", "cus_of_another_account")
    expected = {
        account.tenant: "customer_deleted",
        "t_globex": "foreign_customer",
        "t_lost": "foreign_customer",
    }

    imagined, found, again = account.imagine(), account.run(), account.run()
    whose = {"metadata[tenant_id]": "t_globex"}
    at_stripe(account.sandbox, "POST", f"customers/{of_another.customer}", **whose)
    rows(account.db, "UPDATE tenant_config SET stripe_customer_id = '' WHERE tenant_id = 't_acme' RETURNING 1")
    mended = account.run()

    assert kinds(imagined) == kinds(found) == kinds(again) == expected
    assert (found.needing, found.unanswered) == (3, 1)
    assert kinds(mended) == {"t_lost": "foreign_customer"}


def test_imagining_writes_nothing(account: Account) -> None:
    subscription = account.subscribe()
    account.cancel(subscription)
    at_stripe(account.sandbox, "DELETE", f"customers/{account.customer}")
    account.sandbox.advance(LATE_SECONDS)
    before = everything(account.db)

    report = account.imagine()

    assert kinds(report) == {account.tenant: "customer_deleted"}
    assert report.fetched >= 2
    assert everything(account.db) == before


def everything(database: Database) -> dict[str, list[dict[str, Any]]]:
    """All rows of all tables, but for how often Stripe was read."""
    with database.begin(SYSTEM) as connection:
        tables = set(connection.scalars(text(TABLES))) - {"stripe_reads"}
    return {table: rows(database, f"SELECT * FROM {table} ORDER BY {table}::text") for table in sorted(tables)}


def test_a_report_is_whole_however_much_is_found(account: Account) -> None:
    account.ask()
    rows(
        account.db,
        """INSERT INTO drift (tenant_id, stripe_customer_id, kind, seen, version_before, found_at, mended_at)
           SELECT 't_' || n, 'cus_' || n, 'changed', 0, 1, now() + interval '1 hour', now()
           FROM generate_series(1, 150) AS n RETURNING 1""",
    )
    for n in range(150):
        link(account.db, f"t_{n}", f"cus_{n}")
    rows(
        account.db,
        """INSERT INTO drift (tenant_id, stripe_customer_id, kind, seen, version_before, found_at)
           SELECT tenant_id, stripe_customer_id, 'customer_deleted', 0, 1, now() FROM tenant_config
           WHERE tenant_id <> 't_acme' RETURNING 1""",
    )

    with account.db.begin(SYSTEM) as connection:
        found = drift.found(connection, since=datetime.now(UTC))
        shown = drift.needing(connection)

    assert (len(found), sum(one.needs_somebody for one in found), len(shown)) == (300, 150, drift.SHOWN)


# ---- runs


def test_a_run_goes_on_where_the_one_before_was_cut_off(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(3):
        Account(account.db, account.sandbox, f"t_{n}")
    account.past()

    first = account.run(most=3)
    account.sandbox.fault("500", path="/v1/subscriptions", times=None)
    monkeypatch.setattr(reconcile, "AT_ONCE", 1)
    away = account.run()
    account.sandbox.clear()
    second, third = account.run(), account.run()

    assert (away.failed, away.compared, away.left) == ("broken", 0, 1)
    asked = rows(account.db, "SELECT put, answered > 0 AS is_answered FROM stripe_customers")
    assert [(report.compared, report.left) for report in (first, second, third)] == [(3, 1), (1, 0), (4, 0)]
    assert all(row["is_answered"] for row in asked)
    done = rows(account.db, "SELECT compared, ended_at IS NOT NULL AS ended FROM reconcile_runs ORDER BY id")
    assert done == [{"compared": 4, "ended": True}, {"compared": 4, "ended": True}]


def test_a_customer_that_cannot_be_compared_ends_no_run_and_one_answer_that_fails_no_dry_one(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "AT_ONCE", 1)
    link(account.db, "t_lost", "cus_zzz_of_another_account")
    found = account.run()
    monkeypatch.setattr(reconcile, "AT_ONCE", 100)
    account.sandbox.fault("500", path="/v1/subscriptions", times=1)

    imagined = account.imagine()

    assert kinds(found)["t_lost"] == "foreign_customer"
    assert (found.failed, found.unanswered, found.left) == (None, 1, 0)
    assert rows(account.db, "SELECT ended_at IS NOT NULL AS ended FROM reconcile_runs") == [{"ended": True}]
    assert (imagined.failed, imagined.unanswered, imagined.compared) == (None, 1, 2)


def test_a_few_each_week_come_round_to_all_and_what_is_found_is_told_once(account: Account) -> None:
    four = [account, *(Account(account.db, account.sandbox, f"t_{n}") for n in range(3))]
    first = min(four, key=lambda one: one.customer)
    first.cancel(first.subscribe())
    account.sandbox.advance(LATE_SECONDS)

    weeks = []
    for _ in range(5):
        weeks.append(account.run(most=1))
        for column in ("reconcile_runs.began_at", "reconcile_runs.told_at", "drift.found_at"):
            table, moment = column.split(".")
            rows(account.db, f"UPDATE {table} SET {moment} = {moment} - interval '7 days' RETURNING 1")
    anew = reconcile.run(*account.all, livemode=False, most=1, tell=lambda total: None, anew=True)

    assert [(week.compared, week.left) for week in weeks] == [(1, 3), (1, 2), (1, 1), (1, 0), (1, 3)]
    assert [kinds(week) for week in weeks] == [{first.tenant: "missed_event"}, {}, {}, {}, {}]
    assert (anew.compared, anew.left) == (1, 3)
    asked = rows(account.db, "SELECT put FROM stripe_customers ORDER BY stripe_customer_id")
    assert [row["put"] for row in asked] == [4, 1, 1, 1]


def test_two_runs_at_once_do_no_harm(account: Account) -> None:
    for n in range(4):
        Account(account.db, account.sandbox, f"t_{n}")

    with ThreadPoolExecutor(2) as operators:
        reports = [done.result() for done in [operators.submit(account.run) for _ in range(2)]]

    assert [(report.findings, report.unanswered) for report in reports] == [([], 0)] * 2
    assert rows(account.db, "SELECT FROM stripe_customers WHERE answered = 0") == []
