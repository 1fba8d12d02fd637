"""`GET /api/entitlements` and `GET /api/plans` over HTTP: what readers get, and how fresh it is.

The database, the sandbox and the app are real. A process of the service is an app of its own: what one has
learned of Stripe the others learn from the database.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from flask.testing import FlaskClient
from sqlalchemy import text
from werkzeug.test import TestResponse

from billing import cataloguing, clock, documents, events, questions, sync
from billing.budget import ALL, Budget
from billing.db import SYSTEM, Database, Scope
from billing.events import Json
from billing.stripe_api import Stripe
from sandbox.server import Control, running
from tests.conftest import MakeApp, create_customer, link, rows
from tests.deliveries import (
    a_subscription,
    a_worker,
    an_event,
    at_stripe,
    deliver,
    happened,
    keep,
    pays_by,
    subscribe,
    take_in,
    until_quiet,
)
from tests.test_portal_options import wait_until
from tests.test_state import (
    answered,
    document,
    ends_soon,
    keep_catalogue,
    now,
    override,
    refresh,
    rule,
    team,
    told,
    versioned,
    work_until,
)
from tests.tokens import a_token

ENTITLEMENTS = "/api/entitlements"
PLANS = "/api/plans"
NO_CACHE = "private, no-cache"
DAY = 86_400


@pytest.fixture(scope="module")
def stripe_stand_in() -> Iterator[Control]:
    """A sandbox of our own: its time is moved, which cannot be undone."""
    with running() as control:
        yield control


@pytest.fixture(scope="module")
def plan(stripe_stand_in: Control) -> str:
    """The price of a plan at Stripe, `team_monthly`, and beside it a plan for nobody in particular."""
    terms = {"metadata[feature.sso]": "true", "metadata[limit.seats]": "quantity"}
    product = at_stripe(stripe_stand_in, "POST", "products", name="Team", **terms)["id"]
    free = {"metadata[plan]": "free", "metadata[limit.seats]": "3"}
    at_stripe(stripe_stand_in, "POST", "products", name="Free", **free)
    monthly = {"currency": "eur", "unit_amount": 1000, "recurring[interval]": "month"}
    price = at_stripe(stripe_stand_in, "POST", "prices", product=product, lookup_key="team_monthly", **monthly)
    return str(price["id"])


@pytest.fixture
def stripe(sandbox: Control) -> Stripe:
    return Stripe(sandbox.key, base=sandbox.url)


@pytest.fixture
def budget(database: Database) -> Budget:
    return Budget(database, 100)


@pytest.fixture
def at_sale(database: Database, stripe: Stripe, budget: Budget, plan: str) -> str:
    """Stripe's catalogue has been read, and who has no subscription is on the free plan. The plan's price."""
    rule(database, default_plan="free")
    cataloguing.read(database, stripe, budget)
    return plan


def bearer(tenant: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {a_token(tenant_id=tenant)}"}


def read(
    client: FlaskClient, tenant: str = "t_acme", *, query: str = "", tag: str | None = None
) -> TestResponse:
    conditional = {"If-None-Match": tag} if tag else {}
    return client.get(ENTITLEMENTS + query, headers={**bearer(tenant), **conditional})


def known(answer: TestResponse) -> Json:
    """The document of an answer that is one."""
    assert answer.status_code == 200, answer.text
    assert isinstance(answer.json, dict)
    return answer.json


def lifetimes(answer: TestResponse) -> dict[str, int]:
    """For how long which use of a copy is allowed."""
    return {
        name: int(seconds) for name, seconds in re.findall(r"([\w-]+)=(\d+)", answer.headers["Cache-Control"])
    }


def reads_of(sandbox: Control, customer: str) -> int:
    """How many times the customer's subscriptions have been asked for."""
    asked = [
        call for call in sandbox.requests() if call["path"] == "/v1/subscriptions" and call["method"] == "GET"
    ]
    return sum(call["params"].get("customer") == customer for call in asked)


# ---- the document


def test_a_tenant_that_has_no_customer_is_on_the_default_plan(client: FlaskClient, at_sale: str) -> None:
    answer = read(client, "t_nobody")

    assert known(answer) == {
        **{"tenant_id": "t_nobody", "version": 1, "as_of": known(answer)["as_of"], "stale": False},
        **{"state": "none", "access": False, "plan": "free", "quantity": None},
        **dict.fromkeys(["current_period_end", "trial_end", "grace_until", "cancel_at", "valid_until"]),
        **{"features": {"seats": {"enabled": True, "limit": 3}, "sso": {"enabled": False}}},
        **{"stripe": {"customer": None, "subscription": None, "status": None}, "livemode": False},
    }
    assert re.fullmatch(r'W/"1\b[^"]*"', answer.headers["ETag"])
    assert answer.headers["Cache-Control"] == (
        "private, max-age=30, stale-while-revalidate=60, stale-if-error=86400"
    )
    assert answer.headers["Vary"] == "Authorization"
    assert answer.content_type == "application/json"


def test_nobody_reads_without_a_token_or_without_a_tenant(client: FlaskClient, at_sale: str) -> None:
    nowhere = {"Authorization": f"Bearer {a_token(tenant_id=None)}"}

    assert client.get(ENTITLEMENTS).status_code == 401
    assert client.get(ENTITLEMENTS, headers=nowhere).status_code == 400


def test_each_tenant_reads_its_own_over_one_connection(
    make_app: MakeApp, at_sale: str, database: Database
) -> None:
    client = make_app(DATABASE_POOL_SIZE="1").test_client()
    override(database, "t_other", "true")

    told = [known(read(client, tenant)) for tenant in ("t_acme", "t_other") * 3]

    assert [one["tenant_id"] for one in told] == ["t_acme", "t_other"] * 3
    assert [one["features"]["sso"]["enabled"] for one in told] == [False, True] * 3


def test_before_the_catalogue_was_ever_read_nobody_knows(client: FlaskClient, database: Database) -> None:
    answer = read(client, "t_nobody")

    assert (answer.status_code, (answer.json or {})["code"]) == (503, "state_unknown")
    assert answer.headers["Retry-After"] == "5"


def test_a_document_is_served_as_it_is_stored(client: FlaskClient, at_sale: str, database: Database) -> None:
    refresh(database, "t_acme")
    [stored] = rows(database, "SELECT body FROM tenant_states")

    assert read(client).text == stored["body"]


def test_documents_follow_the_rules_of_the_edition_and_not_of_the_process_that_answers(
    make_app: MakeApp, at_sale: str
) -> None:
    plans = [{"BILLING_DEFAULT_PLAN": "gold"}, {}, {"BILLING_DEFAULT_PLAN": "free"}]

    answers = [read(make_app(**settings).test_client(), "t_nobody") for settings in plans]

    assert {answer.text for answer in answers} == {answers[0].text}
    assert known(answers[0])["plan"] == "free"


# ---- what was never asked


def test_a_tenant_that_was_never_asked_about_is_asked_about_at_once(
    client: FlaskClient, at_sale: str, acme: str, customer: str, sandbox: Control
) -> None:
    subscribe(sandbox, customer, price=at_sale, **{"items[0][quantity]": 4})

    first, second = read(client), read(client)

    assert known(first)["state"] == "active"
    assert known(first)["features"]["seats"] == {"enabled": True, "limit": 4}
    assert second.text == first.text
    assert reads_of(sandbox, customer) == 1


def test_while_stripe_is_away_nobody_knows_and_afterwards_somebody_does(
    client: FlaskClient, at_sale: str, acme: str, sandbox: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "KNOW_SECONDS", 0.2)
    sandbox.fault("503")

    away = read(client)
    sandbox.clear()
    monkeypatch.undo()
    wait_until(lambda: read(client).status_code == 200)  # after a failure Stripe is left alone for a second

    assert (away.status_code, (away.json or {})["code"]) == (503, "state_unknown")
    assert away.headers["Retry-After"] == "5"
    assert known(read(client))["state"] == "none"


@pytest.mark.parametrize(("query", "limit"), [("", "KNOW_SECONDS"), ("?sync=true", "SYNC_SECONDS")])
def test_a_reader_waits_no_longer_for_a_silent_stripe_than_it_is_meant_to(
    client: FlaskClient,
    at_sale: str,
    database: Database,
    acme: str,
    customer: str,
    sandbox: Control,
    monkeypatch: pytest.MonkeyPatch,
    query: str,
    limit: str,
) -> None:
    if query:
        answered(database, customer)
    monkeypatch.setattr(documents, limit, 0.5)
    sandbox.fault("hang")

    began = time.monotonic()
    answer = read(client, query=query)

    assert answer.status_code == (200 if query else 503)
    assert time.monotonic() - began < 4  # one try of a silent Stripe takes 5


# ---- copies


@pytest.mark.parametrize("tags", ["{weak}", "{strong}", 'W/"7", {weak}', '"0" , {strong}', "*"])
def test_a_copy_of_this_version_is_still_good(client: FlaskClient, at_sale: str, tags: str) -> None:
    whole = read(client)
    weak = whole.headers["ETag"]

    same = read(client, tag=tags.format(weak=weak, strong=weak.removeprefix("W/")))

    assert (same.status_code, same.data) == (304, b"")
    for name in ("ETag", "Cache-Control", "Vary"):
        assert same.headers[name] == whole.headers[name]


@pytest.mark.parametrize("tags", ['W/"2"', '"11"', 'W/"0", W/"2"', '"', "nonsense", "W/*"])
def test_a_copy_of_another_version_is_not(client: FlaskClient, at_sale: str, tags: str) -> None:
    assert known(read(client, tag=tags))["version"] == 1


def test_a_copy_of_another_tenants_document_is_none_of_this_one(client: FlaskClient, at_sale: str) -> None:
    """One address serves all: a cache may send the tag of what it holds with somebody else's token."""
    theirs = read(client, "t_other").headers["ETag"]

    assert known(read(client, "t_acme", tag=theirs))["tenant_id"] == "t_acme"


def test_a_copy_is_good_until_something_changes(client: FlaskClient, at_sale: str, database: Database) -> None:
    tag = read(client).headers["ETag"]
    refresh(database, "t_acme", confirmed=("t_acme",))
    assert read(client, tag=tag).status_code == 304

    override(database, "t_acme", "true")

    assert known(read(client, tag=tag))["version"] == 2


def test_a_stale_document_is_never_the_same_and_never_kept(
    client: FlaskClient, at_sale: str, database: Database, acme: str, customer: str
) -> None:
    answered(database, customer)
    tag = read(client).headers["ETag"]
    rows(database, "UPDATE tenant_states SET as_of = now() - interval '27 h' RETURNING 1")

    for condition in (tag, "*"):
        answer = read(client, tag=condition)
        assert known(answer)["stale"] is True
        assert answer.headers["Cache-Control"] == NO_CACHE


@pytest.mark.parametrize("seconds", [0.9, 10.5, 40.5, 80.5, 3600.5])
def test_no_use_of_a_copy_outlives_the_moment_at_which_the_document_may_change(
    client: FlaskClient, at_sale: str, database: Database, seconds: float
) -> None:
    override(database, "t_acme", "true", expires_at=now(database) + seconds)

    life = lifetimes(read(client))

    fresh, left = life["max-age"], int(seconds)
    assert fresh in (min(30, left), min(30, left) - 1, 0)
    assert fresh + life["stale-while-revalidate"] <= left
    assert fresh + life["stale-if-error"] <= left


# ---- time


def test_a_reader_sees_grace_trial_and_override_end_at_their_second_though_no_worker_runs(
    client: FlaskClient, database: Database, sandbox: Control
) -> None:
    end, then = ends_soon(database, sandbox)
    at_first = {tenant: read(client, tenant) for tenant in then}
    seen: dict[str, Json] = {}

    while seen.keys() != then.keys():
        for tenant in then:
            before = now(database)
            answer = read(client, tenant, tag=at_first[tenant].headers["ETag"])
            if now(database) < end:
                assert answer.status_code == 304
            elif before >= end:
                seen[tenant] = known(answer)

    assert {tenant: one["state"] for tenant, one in seen.items()} == then
    assert not any(one["features"]["sso"]["enabled"] for one in seen.values())
    for tenant in then:
        assert seen[tenant]["version"] == known(at_first[tenant])["version"] + 1
        assert document(database, tenant)["version"] == seen[tenant]["version"]


def test_a_reader_past_the_moment_gets_the_truth_though_somebody_else_has_the_row(
    client: FlaskClient, at_sale: str, database: Database
) -> None:
    end = now(database) + 0.3
    override(database, "t_acme", "true", expires_at=end)
    past = read(client).headers["ETag"]
    wait_until(lambda: now(database) >= end)

    with ThreadPoolExecutor(2) as pair, database.begin(SYSTEM) as holder:
        holder.execute(text("SELECT 1 FROM tenant_states FOR UPDATE"))
        held, again = pair.map(lambda _: read(client.application.test_client(), tag=past), range(2))
    free = read(client, tag=held.headers["ETag"])

    assert known(held)["features"]["sso"] == {"enabled": False}
    assert known(held)["version"] == 1
    assert held.headers["ETag"] == again.headers["ETag"]
    assert len({past, held.headers["ETag"], free.headers["ETag"]}) == 3
    assert set(lifetimes(held).values()) == {0}
    assert versioned(known(free)) == versioned(known(held))
    assert known(free)["version"] == 2


# ---- how fresh


def test_stripe_being_away_takes_no_reader_down_and_is_said_after_two_failures(
    make_app: MakeApp,
    at_sale: str,
    database: Database,
    acme: str,
    customer: str,
    sandbox: Control,
    stripe: Stripe,
    budget: Budget,
) -> None:
    link(database, "t_other", "cus_other")
    answered(database, "cus_other")
    assert sync.now(database, stripe, budget, customer)
    sandbox.fault("500")
    told = []

    for _ in range(3):
        told.append(known(read(make_app().test_client()))["stale"])  # each a process that has just started
        assert not sync.now(database, stripe, budget, customer, patience=0.3)
        rows(database, "UPDATE stripe_customers SET wanted_at = now() WHERE wanted_at IS NOT NULL RETURNING 1")

    assert told == [False, False, True]
    assert known(read(make_app().test_client(), "t_other"))["stale"] is False

    sandbox.clear()
    assert sync.now(database, stripe, budget, customer)
    assert known(read(make_app().test_client()))["stale"] is False


LATE = {
    "an event that nobody has worked on": "UPDATE inbox SET received_at = now() - interval '301 s' RETURNING 1",
    "a question that nobody has put": (
        "UPDATE stripe_customers SET wanted_at = now(), owed_since = now() - interval '301 s' RETURNING 1"
    ),
    "nobody has confirmed it since yesterday": (
        "UPDATE tenant_states SET as_of = now() - interval '26 h 1 s' RETURNING 1"
    ),
}


@pytest.mark.parametrize("late", LATE)
def test_a_document_whose_news_is_late_says_so(
    make_app: MakeApp, at_sale: str, database: Database, acme: str, customer: str, late: str
) -> None:
    answered(database, customer)
    keep(database, an_event("customer.subscription.updated", a_subscription(customer)))
    assert known(read(make_app().test_client()))["stale"] is False

    rows(database, LATE[late])

    assert known(read(make_app().test_client()))["stale"] is True


def test_an_event_whose_question_is_put_off_again_and_again_is_late_like_any_other(
    make_app: MakeApp,
    at_sale: str,
    database: Database,
    acme: str,
    customer: str,
    stripe: Stripe,
    budget: Budget,
) -> None:
    """As for most customers while Stripe refuses our key: the pause is nobody's failure."""
    answered(database, customer)
    summary = {"object": "entitlements.active_entitlement_summary", "customer": customer}
    keep(database, an_event(events.ENTITLEMENTS, summary))
    take_in(database)
    budget.pause(ALL, 60)
    assert not sync.now(database, stripe, budget, customer, patience=0.05)

    rows(database, "UPDATE stripe_customers SET owed_since = owed_since - interval '301 s' RETURNING 1")

    assert known(read(make_app().test_client()))["stale"] is True


def test_an_event_in_time_and_one_that_is_done_leave_a_document_fresh(
    make_app: MakeApp, at_sale: str, database: Database, acme: str, customer: str
) -> None:
    answered(database, customer)
    told(database, customer)
    rows(database, "UPDATE inbox SET received_at = now() - interval '1 day' RETURNING 1")
    keep(database, an_event("customer.subscription.updated", a_subscription(customer)))
    rows(database, "UPDATE inbox SET received_at = now() - interval '290 s' WHERE state = 'due' RETURNING 1")

    assert known(read(make_app().test_client()))["stale"] is False


def test_what_has_no_customer_does_not_grow_old(client: FlaskClient, at_sale: str, database: Database) -> None:
    refresh(database, "t_acme")
    rows(database, "UPDATE tenant_states SET as_of = now() - interval '1 year' RETURNING 1")

    assert known(read(client))["stale"] is False


def test_old_news_makes_no_document_fresh_again(
    make_app: MakeApp,
    at_sale: str,
    database: Database,
    acme: str,
    customer: str,
    sandbox: Control,
    stripe: Stripe,
    budget: Budget,
) -> None:
    """An event that tells of last week says nothing about today."""
    subscription = subscribe(sandbox, customer, price=at_sale)
    assert sync.now(database, stripe, budget, customer)
    rows(database, "UPDATE tenant_states SET as_of = now() - interval '27 h' RETURNING 1")
    last_week = int(time.time()) - 7 * DAY

    keep(database, an_event("customer.subscription.updated", subscription, created=last_week), late=7 * DAY)
    take_in(database)

    assert known(read(make_app().test_client()))["stale"] is True


def test_looking_for_late_news_takes_no_reader_down(
    make_app: MakeApp, at_sale: str, database: Database
) -> None:
    """The inbox is out of reach for a while, as during a migration of it; documents are not in it."""
    refresh(database, "t_acme")

    with database.begin(SYSTEM) as migration:
        migration.execute(text("LOCK TABLE inbox IN ACCESS EXCLUSIVE MODE"))
        answer = read(make_app().test_client())

    assert answer.status_code == 200


# ---- asking first


def test_a_reader_who_asks_for_it_gets_what_stripe_says_now(
    client: FlaskClient, at_sale: str, database: Database, acme: str, customer: str, sandbox: Control
) -> None:
    before = read(client)
    assert known(before)["state"] == "none"
    subscribe(sandbox, customer, price=at_sale)

    answer = read(client, query="?sync=true", tag=before.headers["ETag"])

    assert answer.headers["Billing-Sync"] == "done"
    assert (known(answer)["state"], known(answer)["version"]) == ("active", 2)


def test_a_reader_who_has_stripe_asked_may_find_the_same(client: FlaskClient, at_sale: str, acme: str) -> None:
    tag = read(client).headers["ETag"]

    same = read(client, query="?sync=true", tag=tag)

    assert (same.status_code, same.headers["Billing-Sync"]) == (304, "done")


def test_in_five_seconds_stripe_is_asked_once_by_all_processes_together(
    make_app: MakeApp, at_sale: str, database: Database, acme: str, customer: str, sandbox: Control
) -> None:
    processes = [make_app().test_client() for _ in range(2)]
    answered(database, customer)

    came_of_it = [read(client, query="?sync=true").headers["Billing-Sync"] for client in processes * 2]
    rows(database, "UPDATE tenant_states SET synced_at = synced_at - interval '5 s' RETURNING 1")
    later = read(processes[1], query="?sync=true").headers["Billing-Sync"]

    assert came_of_it == ["done", "recent", "recent", "recent"]
    assert later == "done"
    assert reads_of(sandbox, customer) == 2


LINKS: dict[str, Json] = {"portal": {}, "checkout": {"plan": "team_monthly"}}


@pytest.mark.parametrize("door", LINKS)
def test_who_was_handed_a_link_to_stripe_may_have_it_asked_at_once_when_back(
    make_app: MakeApp, at_sale: str, database: Database, acme: str, customer: str, sandbox: Control, door: str
) -> None:
    """However lately it was asked, no webhook needed; and once for each link, whichever process answers."""
    processes = [make_app().test_client() for _ in range(2)]
    answered(database, customer)
    assert read(processes[0], query="?sync=true").headers["Billing-Sync"] == "done"
    opened = processes[0].post(f"/api/subscriptions/{door}", headers=bearer(acme), json=LINKS[door])
    assert opened.status_code == 200
    subscribe(sandbox, customer, price=at_sale)
    before = reads_of(sandbox, customer)

    back = [read(client, query="?sync=true") for client in reversed(processes)]

    assert [answer.headers["Billing-Sync"] for answer in back] == ["done", "recent"]
    assert [known(answer)["state"] for answer in back] == ["active", "active"]
    assert reads_of(sandbox, customer) == before + 1


def test_a_link_that_was_refused_gives_nobody_the_right_to_ask_again(
    client: FlaskClient, at_sale: str, database: Database, acme: str, customer: str, sandbox: Control
) -> None:
    answered(database, customer)
    assert read(client, query="?sync=true").headers["Billing-Sync"] == "done"
    sandbox.fault("400", path="/v1/billing_portal/sessions")
    refused = client.post("/api/subscriptions/portal", headers=bearer(acme))
    assert refused.status_code == 500

    assert read(client, query="?sync=true").headers["Billing-Sync"] == "recent"


def test_where_stripe_cannot_be_asked_for_somebody_has_the_customer_the_document_is_stale(
    client: FlaskClient, at_sale: str, database: Database, acme: str, customer: str
) -> None:
    """Somebody else has the customer for longer than a lock is waited for."""
    answered(database, customer)
    assert read(client, query="?sync=true").headers["Billing-Sync"] == "done"
    with database.begin(SYSTEM) as connection:
        questions.lock(connection, customer)
        soon = read(client, query="?sync=true")
        rows(database, "UPDATE tenant_states SET synced_at = synced_at - interval '5 s' RETURNING 1")
        later = read(client, query="?sync=true")

    for answer in (soon, later):
        assert (answer.status_code, answer.headers["Billing-Sync"]) == (200, "failed")
        assert known(answer)["stale"]


def test_what_has_changed_since_stripe_was_just_asked_is_asked_about_when_it_may_be_again(
    client: FlaskClient,
    environ: dict[str, str],
    at_sale: str,
    database: Database,
    acme: str,
    customer: str,
    sandbox: Control,
) -> None:
    """Two tabs: one has Stripe asked a moment before the other is back. No webhook, and nobody reads again."""
    answered(database, customer)
    assert read(client, query="?sync=true").headers["Billing-Sync"] == "done"
    subscribe(sandbox, customer, price=at_sale)

    told = [read(client, query="?sync=true") for _ in range(3)]

    assert [answer.headers["Billing-Sync"] for answer in told] == ["recent"] * 3
    assert [known(answer)["stale"] for answer in told] == [False] * 3
    with a_worker(environ) as worker:
        until_quiet(worker)
        assert known(read(client))["state"] == "none"
        assert reads_of(sandbox, customer) == 1
        rows(database, "UPDATE stripe_customers SET wanted_at = wanted_at - interval '5 s' RETURNING 1")
        until_quiet(worker)
    assert known(read(client))["state"] == "active"
    assert reads_of(sandbox, customer) == 2


def test_where_stripe_cannot_be_asked_what_was_last_known_is_answered_and_called_stale(
    client: FlaskClient,
    at_sale: str,
    database: Database,
    acme: str,
    customer: str,
    sandbox: Control,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(documents, "SYNC_SECONDS", 0.2)
    answered(database, customer)
    sandbox.fault("503")

    answer = read(client, query="?sync=true", tag="*")

    assert answer.headers["Billing-Sync"] == "failed"
    assert answer.headers["Cache-Control"] == NO_CACHE
    assert (known(answer)["stale"], known(answer)["state"]) == (True, "none")


def test_what_could_not_be_asked_a_moment_ago_is_not_passed_off_as_fresh(
    client: FlaskClient,
    at_sale: str,
    database: Database,
    acme: str,
    customer: str,
    sandbox: Control,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever asks for the newest there is hears that Stripe still owes the answer."""
    monkeypatch.setattr(documents, "SYNC_SECONDS", 0.2)
    answered(database, customer)
    sandbox.fault("503")

    answers = [read(client, query="?sync=true", tag="*") for _ in range(2)]

    assert [known(answer)["stale"] for answer in answers] == [True, True]


def test_without_a_customer_there_is_nothing_to_ask(
    client: FlaskClient, at_sale: str, sandbox: Control
) -> None:
    before = len(sandbox.requests())

    answer = read(client, query="?sync=true")

    assert (known(answer)["plan"], answer.headers["Billing-Sync"]) == ("free", "done")
    assert len(sandbox.requests()) == before


@pytest.mark.parametrize("value", ["", "yes", "True", "1"])
def test_sync_is_true_or_false(client: FlaskClient, at_sale: str, value: str) -> None:
    answer = read(client, query=f"?sync={value}")

    assert (answer.status_code, (answer.json or {})["param"]) == (400, "sync")


def test_one_who_says_false_asks_nobody(client: FlaskClient, at_sale: str) -> None:
    answer = read(client, query="?sync=false&other=1")

    assert known(answer)["version"] == 1
    assert "Billing-Sync" not in answer.headers


# ---- journeys


def test_what_was_just_bought_is_in_every_processs_next_answer(
    make_app: MakeApp, at_sale: str, database: Database, sandbox: Control
) -> None:
    one, other = make_app().test_client(), make_app().test_client()
    assert known(read(other))["plan"] == "free"
    wish = {"plan": "team_monthly", "quantity": 5}
    opened = one.post("/api/subscriptions/checkout", headers=bearer("t_acme"), json=wish).json or {}
    sandbox.complete_checkout(opened["session_id"])

    back = one.get(f"/api/subscriptions/checkout/{opened['session_id']}", headers=bearer("t_acme")).json or {}
    read_elsewhere = read(other)

    assert back["status"] == "complete"
    assert back["entitlements"] == known(read_elsewhere)
    assert known(read_elsewhere)["features"]["seats"] == {"enabled": True, "limit": 5}
    assert known(read_elsewhere)["stale"] is False


def test_a_delivered_event_changes_the_document_in_the_workers_next_round(
    client: FlaskClient,
    environ: dict[str, str],
    at_sale: str,
    database: Database,
    acme: str,
    customer: str,
    sandbox: Control,
) -> None:
    keep_catalogue(database)
    known(read(client))
    subscribe(sandbox, customer, price=at_sale)
    for event in happened(sandbox, customer):
        assert deliver(client, event).status_code == 200

    with a_worker(environ, catalogues=True) as worker:
        worker.work()
        until_quiet(worker)

    assert known(read(client))["state"] == "active"


def test_a_trial_that_ends_without_a_card_loses_access_though_stripes_entitlement_stays(
    database: Database, at_sale: str, acme: str, customer: str, sandbox: Control, stripe: Stripe, budget: Budget
) -> None:
    trial = {"trial_period_days": 1, "trial_settings[end_behavior][missing_payment_method]": "pause"}
    with featured(sandbox, at_sale, "audit-log"):
        cataloguing.read(database, stripe, budget)
        at_stripe(sandbox, "POST", "subscriptions", customer=customer, **{"items[0][price]": at_sale}, **trial)
        assert sync.now(database, stripe, budget, customer)
        on_trial = document(database)

        sandbox.advance(DAY + 60)
        assert sync.now(database, stripe, budget, customer)

        paused = document(database)
        entitled = at_stripe(sandbox, "GET", "entitlements/active_entitlements", customer=customer)["data"]
    assert [one["lookup_key"] for one in entitled] == ["audit-log"]
    assert (on_trial["state"], on_trial["features"]["audit_log"]) == ("trialing", {"enabled": True})
    assert (paused["state"], paused["stripe"]["status"]) == ("suspended", "paused")
    assert paused["features"]["audit_log"] == {"enabled": False}


@contextmanager
def featured(sandbox: Control, price: str, *lookup_keys: str) -> Iterator[None]:
    """New entitlement features of Stripe's on what this price buys; they leave with the test."""
    product = at_stripe(sandbox, "GET", f"prices/{price}")["product"]
    for lookup_key in lookup_keys:
        feature = at_stripe(sandbox, "POST", "entitlements/features", lookup_key=lookup_key, name=lookup_key)
        at_stripe(sandbox, "POST", f"products/{product}/features", entitlement_feature=feature["id"])
    try:
        yield
    finally:
        for attached in at_stripe(sandbox, "GET", f"products/{product}/features", limit=100)["data"]:
            at_stripe(sandbox, "DELETE", f"products/{product}/features/{attached['id']}")
            feature = attached["entitlement_feature"]
            at_stripe(sandbox, "POST", f"entitlements/features/{feature['id']}", active="false")


def test_more_entitlements_than_fit_on_a_page_are_all_in_the_document(
    database: Database,
    at_sale: str,
    acme: str,
    customer: str,
    sandbox: Control,
    stripe: Stripe,
    budget: Budget,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [f"feature-{number}" for number in range(12)]
    monkeypatch.setattr("billing.stripe_api.PAGE", 5)
    with featured(sandbox, at_sale, *names):
        cataloguing.read(database, stripe, budget)
        subscribe(sandbox, customer, price=at_sale)

        assert sync.now(database, stripe, budget, customer)

    given = [key for key, one in document(database)["features"].items() if one["enabled"]]
    assert sorted(given) == sorted(["seats", "sso", *(one.replace("-", "_") for one in names)])


def test_the_end_of_a_customer_is_the_end_of_what_it_had(
    client: FlaskClient,
    environ: dict[str, str],
    at_sale: str,
    database: Database,
    acme: str,
    customer: str,
    sandbox: Control,
) -> None:
    keep_catalogue(database)
    subscribe(sandbox, customer, price=at_sale)
    assert known(read(client))["state"] == "active"

    at_stripe(sandbox, "DELETE", f"customers/{customer}")
    for event in happened(sandbox, customer):
        if event["type"] == "customer.deleted":
            deliver(client, event)
    with a_worker({**environ, "BILLING_DEFAULT_PLAN": "free"}, catalogues=True) as worker:
        work_until(worker, lambda: document(database)["state"] == "none")

    assert known(read(client))["features"]["seats"] == {"enabled": True, "limit": 3}


def test_a_payment_that_fails_at_stripe_keeps_the_seats_until_the_grace_is_over(
    client: FlaskClient,
    database: Database,
    at_sale: str,
    acme: str,
    customer: str,
    sandbox: Control,
    stripe: Stripe,
    budget: Budget,
) -> None:
    subscribe(sandbox, customer, price=at_sale, **{"items[0][quantity]": 4})
    pays_by(sandbox, customer, "pm_card_chargeCustomerFail")
    sandbox.advance(32 * DAY)  # the renewal and its first attempt

    late = known(read(client))

    assert (late["state"], late["stripe"]["status"]) == ("grace", "past_due")
    assert late["features"]["seats"] == {"enabled": True, "limit": 4}


def test_linking_asks_stripe_and_shows_the_new_customers_plan(
    client: FlaskClient, at_sale: str, acme: str, sandbox: Control
) -> None:
    before = read(client)
    assert known(before)["state"] == "none"
    new = create_customer(sandbox)
    subscribe(sandbox, new, price=at_sale)

    done = client.application.test_cli_runner().invoke(
        args=["billing", "tenants", "link", acme, new, "--replace"]
    )

    assert done.exit_code == 0, done.output
    moved = read(client, tag=before.headers["ETag"])
    assert (known(moved)["state"], known(moved)["stripe"]["customer"]) == ("active", new)


def test_what_stripe_entitled_a_former_customer_to_is_out_of_its_tenants_sight(
    database: Database, acme: str, customer: str
) -> None:
    rows(database, "INSERT INTO active_entitlements VALUES (:customer, 'sso') RETURNING 1", customer=customer)
    seen = []

    for current in (customer, "cus_new"):
        rows(database, "UPDATE tenant_config SET stripe_customer_id = :to RETURNING 1", to=current)
        with database.begin(Scope.tenant(acme)) as connection:
            seen.append(connection.scalar(text("SELECT count(*) FROM active_entitlements")))

    assert seen == [1, 0]


# ---- Stripe's own entitlements


def test_news_of_entitlements_is_asked_about(
    client: FlaskClient, at_sale: str, database: Database, acme: str, customer: str, sandbox: Control
) -> None:
    known(read(client))
    summary = {"object": "entitlements.active_entitlement_summary", "customer": customer}
    keep(database, an_event(events.ENTITLEMENTS, summary))

    take_in(database)

    with database.begin(SYSTEM) as connection:
        assert questions.is_wanted(connection, customer)


def test_a_feature_that_joins_a_product_reaches_its_subscribers_without_an_event(
    client: FlaskClient,
    database: Database,
    at_sale: str,
    acme: str,
    customer: str,
    sandbox: Control,
    environ: dict[str, str],
    stripe: Stripe,
    budget: Budget,
) -> None:
    """What new subscribers have at once, those of before have from their next period on, as at Stripe."""
    subscribe(sandbox, customer, price=at_sale)
    assert known(read(client))["state"] == "active"
    with featured(sandbox, at_sale, "beta"):
        sandbox.advance(32 * DAY)

        cataloguing.read(database, stripe, budget)
        clock.catch_up(database)
        listed = document(database)["features"]["beta"]
        rows(database, "UPDATE stripe_customers SET answered_at = now() - interval '25 h' RETURNING 1")
        with a_worker(environ, catalogues=True) as worker:
            work_until(worker, lambda: document(database)["features"]["beta"] != listed)

    assert listed == {"enabled": False}
    assert document(database)["features"]["beta"] == {"enabled": True}


def test_the_very_first_feature_reaches_those_who_were_asked_about_before_the_catalogue_had_it(
    client: FlaskClient,
    environ: dict[str, str],
    at_sale: str,
    database: Database,
    acme: str,
    customer: str,
    sandbox: Control,
    stripe: Stripe,
    budget: Budget,
) -> None:
    """No event tells of a new feature: the news of who has it may come before the catalogue is read again."""
    keep_catalogue(database)
    known(read(client))
    with featured(sandbox, at_sale, "early"), a_worker(environ, catalogues=True) as worker:
        subscribe(sandbox, customer, price=at_sale)
        for event in happened(sandbox, customer):
            deliver(client, event)
        until_quiet(worker)
        assert known(read(client))["state"] == "active"

        cataloguing.read(database, stripe, budget)
        clock.catch_up(database)
        until_quiet(worker)

    assert known(read(client))["features"]["early"] == {"enabled": True}


# ---- plans


def test_plans_are_listed_for_anybody(client: FlaskClient, at_sale: str) -> None:
    answer = client.get(PLANS)

    assert answer.json == {
        "plans": [
            {
                **{"plan": "team_monthly", "product": "Team", "description": None, "currency": "eur"},
                **{"amount": 1000, "interval": "month", "interval_count": 1, "per_seat": True},
                **{"min_quantity": 1, "trial_days": 0},
                "features": {"seats": {"enabled": True, "limit": 1}, "sso": {"enabled": True}},
            }
        ]
    }
    assert answer.headers["Cache-Control"] == "public, max-age=300"


def test_a_copy_of_the_plans_is_good_until_they_change(
    make_app: MakeApp, at_sale: str, database: Database
) -> None:
    client = make_app().test_client()
    tag = client.get(PLANS).headers["ETag"]

    same = client.get(PLANS, headers={"If-None-Match": f'"x", {tag}'})
    with_a_trial = make_app(BILLING_TRIAL_DAYS="7").test_client().get(PLANS, headers={"If-None-Match": tag})
    team(database, **{"feature.new": "true"})
    changed = client.get(PLANS, headers={"If-None-Match": tag})

    assert (same.status_code, same.data, same.headers["ETag"]) == (304, b"", tag)
    assert (with_a_trial.json or {})["plans"][0]["trial_days"] == 7
    assert changed.status_code == 200


def test_before_the_catalogue_was_ever_read_there_are_no_plans_to_list(
    client: FlaskClient, database: Database
) -> None:
    answer = client.get(PLANS)

    assert answer.status_code == 503
    assert answer.headers["Retry-After"]
