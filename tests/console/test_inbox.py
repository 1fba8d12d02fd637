"""The inbox before an operator: what fails is found, understood, retried or ignored, whatever races."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from sqlalchemy import text

from billing import config, inbox, questions, sync, triage, wiring
from billing.audit import By
from billing.db import SYSTEM, Database
from billing.inbox import Claimed
from billing.operations import events
from billing.operations.events import Dealt, Wanted
from billing.wiring import Billing
from sandbox.server import Control
from tests.conftest import link, rows
from tests.console.conftest import HOME, Browser, words
from tests.deliveries import (
    a_subscription,
    a_worker,
    an_event,
    at_stripe,
    deliver,
    keep,
    make_due,
    subscribe,
    take_in,
    until_quiet,
)
from tests.test_commands import UPDATED, bury, states, tell

ANA = By("ana", "seen to it")


@pytest.fixture
def billing(environ: dict[str, str], database: Database) -> Iterator[Billing]:
    billing = wiring.build(config.load(environ))
    yield billing
    billing.db.close()


def event_page(event: str) -> str:
    return f"inbox/event?id={event}"


def leads_to(browser: Browser, page: str, name: str) -> str:
    """Where the link of that name on a page leads."""
    found = re.search(
        rf'<a href="{HOME}([^"]+)"[^>]*>\s*(?:<[^>]+>)*{re.escape(name)}', browser.opens(page).text
    )
    assert found, f"{page} has no link {name}"
    return unescape(found[1])


def trail(database: Database) -> list[dict[str, Any]]:
    return rows(
        database,
        """SELECT actor, action, tenant_id, stripe_object, reason FROM audit_log
           WHERE action <> 'console.sign_in' ORDER BY id""",
    )


# ---- nights


def test_a_poison_event_is_found_by_its_reason_and_ignored_and_can_still_be_retried(
    ana: Browser, raj: Browser, environ: dict[str, str], database: Database
) -> None:
    """A subscription of nobody's is what no code of ours can use."""
    nameless = an_event(UPDATED, {**a_subscription("cus_1"), "customer": None})
    deliver(ana.client.application.test_client(), nameless)
    with a_worker(environ) as worker:
        until_quiet(worker)

    group = leads_to(ana, "inbox", "names no customer")
    page = leads_to(ana, group, nameless["id"])
    assert "1 matches" in ana.reads(group)
    assert all(word in ana.reads(page) for word in (UPDATED, "buried", "names no customer", "secret 1 of 1"))
    assert "Ignore" not in raj.reads(page)
    answer = ana.sends("inbox/ignore", seen=page, id=nameless["id"], reason="a test of theirs")

    assert (answer.status_code, answer.location) == (303, HOME + page)
    assert "It is ignored." in ana.reads(page)
    assert "a test of theirs" in ana.reads(page)
    assert "Nothing fails." in ana.reads("inbox")
    [row] = rows(database, "SELECT state, reason, settled_at IS NOT NULL AS finished FROM inbox")
    assert row == {"state": "settled", "reason": "ignored", "finished": True}
    deed = {"actor": "ana", "action": "event.ignore", "tenant_id": None, "stripe_object": nameless["id"]}
    assert trail(database) == [{**deed, "reason": "a test of theirs"}]

    ana.sends("inbox/retry", seen=page, id=nameless["id"], reason="mended")
    assert states(database) == {nameless["id"]: "due"}


def test_an_unknown_customer_is_linked_and_what_waited_for_it_is_applied(
    ana: Browser, environ: dict[str, str], database: Database, customer: str, sandbox: Control
) -> None:
    id = subscribe(sandbox, customer)["id"]
    event = tell(database, customer)
    take_in(database)
    at_stripe(sandbox, "POST", f"customers/{customer}", **{"metadata[tenant_id]": "t_other"})
    group = leads_to(ana, "inbox", customer)
    page = leads_to(ana, group, event)

    refused = ana.sends("inbox/link", seen=page, id=event, tenant="t_new", reason="asked for by phone")
    at_stripe(sandbox, "POST", f"customers/{customer}", **{"metadata[tenant_id]": ""})
    sandbox.fault("429", method="POST", path=f"/v1/customers/{customer}", times=None)
    linked = ana.sends("inbox/link", seen=page, id=event, tenant="t_new", reason="asked for by phone")
    sandbox.clear()
    with a_worker(environ) as worker:
        until_quiet(worker)

    assert (refused.status_code, "another tenant_id" in words(refused)) == (409, True)
    assert linked.status_code == 303
    assert f"{customer} is t_new's now" in (said := ana.reads(page))
    assert "does not say so yet" in said
    assert states(database) == {event: "settled"}
    held = rows(database, "SELECT status FROM subscriptions WHERE stripe_subscription_id = :id", id=id)
    assert held == [{"status": "active"}]
    deed = {"actor": "ana", "action": "tenant.link", "tenant_id": "t_new", "stripe_object": customer}
    assert trail(database) == [{**deed, "reason": "asked for by phone"}]
    unnamed = ana.sends("inbox/link", seen=page, id=event, tenant=" ", reason="no tenant")
    assert unnamed.status_code == 400


def test_a_tenant_that_has_another_customer_is_told_where_it_can_be_replaced(
    ana: Browser, database: Database, customer: str
) -> None:
    link(database, "t_old", "cus_old")
    event = tell(database, customer)
    take_in(database)

    answer = ana.sends("inbox/link", seen=event_page(event), id=event, tenant="t_old", reason="moved")

    assert (answer.status_code, "t_old has another customer. On its page" in words(answer)) == (409, True)


# ---- finding


@pytest.fixture
def many(database: Database) -> dict[str, str]:
    """Events by what sets each apart."""
    link(database, "t_acme", "cus_acme")
    product = an_event("product.updated", {"id": "prod_1", "object": "product"})
    keep(database, product)
    told = {
        "product": product["id"],
        "tenant": tell(database, "cus_acme"),
        "type": tell(database, "cus_1", kind="invoice.paid"),
        "old": tell(database, "cus_1"),
        "buried": tell(database, "cus_2"),
        "failing": tell(database, "cus_2"),
        "waiting": tell(database, "cus_3"),
        "due": tell(database, "cus_acme"),
    }
    for name, change in {
        "product": "state = 'settled', settled_at = now()",
        "tenant": "state = 'settled', settled_at = now()",
        "type": "state = 'settled', settled_at = now(), object_id = 'in_1'",
        "old": "state = 'settled', settled_at = now(), received_at = now() - interval '2 days'",
        "buried": "state = 'buried', settled_at = now(), reason = 'is not JSON'",
        "failing": "reason = 'KeyError', failures = 1, fault = E'KeyError from X\\nsomewhere'",
        "waiting": "state = 'waiting'",
    }.items():
        rows(database, f"UPDATE inbox SET {change} WHERE event_id = :event RETURNING 1", event=told[name])
    return told


SAID: dict[str, set[str]] = {
    "of=t_acme": {"tenant", "due"},
    "of=cus_acme&state=due": {"due"},
    "of=cus_acme&state=settled": {"tenant"},
    "of=prod_1": {"product"},
    "of=in_1": {"type"},
    "of=cus_1&type=invoice.paid": {"type"},
    "of=nobody": set(),
    "type=invoice.paid": {"type"},
    "state=buried": {"buried"},
    "state=failing": {"failing"},
    "state=failing&kind=KeyError+from+X": {"failing"},
    "state=failing&kind=KeyError": set(),
    "state=due": {"failing", "due"},
    "state=waiting": {"waiting"},
    "because=is+not+JSON": {"buried"},
    "state=settled&span=day": {"product", "tenant", "type"},
    "span=week": {"product", "tenant", "type", "old", "buried", "failing", "waiting", "due"},
}


def test_events_are_found_by_everything_that_is_said(ana: Browser, many: dict[str, str]) -> None:
    by_id = {f"of={event}": {name} for name, event in many.items()}
    for query, found in (SAID | by_id).items():
        page = ana.opens(f"inbox/events?{query}").text
        assert {name for name, event in many.items() if f'id={event}"' in page} == found, query
    for query in ("state=gone", "span=ever", "of=%00", f"because={'x' * 256}"):
        assert ana.opens(f"inbox/events?{query}").status_code == 400, query


def test_going_on_through_a_list_shows_each_that_fits_once_however_few_are_looked_at(
    billing: Billing, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triage, "LOOKED_AT", 5)
    told = [
        tell(database, "cus_1", kind="invoice.paid" if n in (1, 2, 3, 4, 17) else UPDATED) for n in range(20)
    ]
    rows(database, "UPDATE inbox SET state = 'settled', settled_at = now() RETURNING 1")
    seen: list[str] = []
    after: str | None = ""
    sizes = []
    while after is not None:
        page = events.find(billing, Wanted(type="invoice.paid"), after=after, most=3).page
        seen += [entry.event_id for entry in page.rows]
        sizes.append(len(page.rows))
        after = page.after

    assert seen == [told[n] for n in (17, 4, 3, 2, 1)]
    assert 0 in sizes[:-1]  # none fits among those, and others further on


# ---- many at once


def test_all_that_match_are_dealt_with_in_stretches_as_far_as_there_is_time(
    ana: Browser, billing: Billing, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "AT_ONCE", 2)
    for _ in range(5):
        bury(database, tell(database, "cus_1"), "is not JSON")
    other = tell(database, "cus_1", kind="invoice.paid")
    bury(database, other, "is not JSON")
    wanted = Wanted(state="buried", type=UPDATED)

    assert events.find(billing, wanted).matching == 5
    assert events.ignore_all(billing, ANA, wanted, seconds=0) == Dealt(2, is_done=False)
    page = f"inbox/events?state=buried&type={UPDATED}"
    assert "Retry all 3 matching" in ana.reads(page)
    ana.sends("inbox/retry-all", seen=page, state="buried", type=UPDATED, reason="mended in v42")
    assert "3 events are due again." in ana.reads(page)

    assert sorted(states(database).values()) == ["buried", "due", "due", "due", "settled", "settled"]
    assert states(database)[other] == "buried"
    deeds = [(deed["action"], deed["reason"]) for deed in trail(database)]
    assert deeds == [("event.ignore", "seen to it")] * 2 + [("event.retry", "mended in v42")] * 3
    for state in ("", "due", "settled"):  # nobody means all that is merely due, or done
        answer = ana.sends("inbox/ignore-all", seen=page, state=state, reason="by mistake")
        assert answer.status_code == 400, state
    assert ana.sends("inbox/retry-all", seen=page, state="waiting", reason="of no use").status_code == 400


def test_what_fails_of_a_customer_is_found_however_much_is_due_before_it(
    billing: Billing, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triage, "LOOKED_AT", 3)
    for customer in ("cus_due", "cus_failing", "cus_1"):
        for _ in range(2 if customer == "cus_1" else 4):
            tell(database, customer)
    fails = "UPDATE inbox SET reason = 'KeyError', failures = 1, due_at = now() + interval '1 minute'"
    rows(database, f"{fails} WHERE customer <> 'cus_due' RETURNING 1")
    wanted = Wanted(state="failing", of="cus_1")

    assert len(events.find(billing, Wanted(of="cus_1")).page.rows) == 2
    assert events.ignore_all(billing, ANA, wanted) == Dealt(2, is_done=True)
    assert sorted(states(database).values()) == ["due"] * 8 + ["settled"] * 2


def test_a_customer_in_other_hands_holds_up_no_others(ana: Browser, database: Database) -> None:
    for number in range(3):
        link(database, f"t_{number}", f"cus_{number}")
        tell(database, f"cus_{number}")
    rows(database, "UPDATE inbox SET reason = 'KeyError', failures = 1 RETURNING 1")
    rows(database, "INSERT INTO stripe_customers (stripe_customer_id) VALUES ('cus_1') RETURNING 1")
    page = "inbox/events?state=failing"
    with database.begin(SYSTEM) as connection:
        questions.lock(connection, "cus_1")
        ana.sends("inbox/ignore-all", seen=page, state="failing", reason="no use")

    assert "2 events are ignored. 1 more: their customers are being worked on." in ana.reads(page)
    assert rows(database, "SELECT customer FROM inbox WHERE state = 'due'") == [{"customer": "cus_1"}]


# ---- races


def claim(database: Database) -> list[Claimed]:
    with database.begin(SYSTEM) as connection:
        return inbox.claim(connection, most=10, lease=timedelta(seconds=20))


def test_what_is_ignored_in_a_workers_hands_is_not_applied_and_stripe_is_asked_instead(
    billing: Billing, environ: dict[str, str], database: Database, acme: str, customer: str, sandbox: Control
) -> None:
    id = subscribe(sandbox, customer)["id"]
    event = tell(database, customer, late=1)
    claimed = claim(database)

    assert events.ignore(billing, ANA, [event]) == 1
    outcome = sync.apply(database, claimed)
    with database.begin(SYSTEM) as connection:
        inbox.fail(connection, claimed[0], reason="late", delay=timedelta(0))
    with a_worker(environ) as worker:
        until_quiet(worker)

    assert (outcome.settled, outcome.writes) == ([], [])
    assert rows(database, "SELECT state, reason, held, failures FROM inbox") == [
        {"state": "settled", "reason": "ignored", "held": None, "failures": 0}
    ]
    held = rows(database, "SELECT stripe_subscription_id AS id, source FROM subscriptions")
    assert held == [{"id": id, "source": "answer"}]
    assert trail(database)[0]["tenant_id"] == acme


def test_ignoring_what_is_asked_about_leaves_the_question_to_be_answered(
    billing: Billing, environ: dict[str, str], database: Database, acme: str, customer: str
) -> None:
    first, second = tell(database, customer, late=3600), tell(database, customer, late=3600)
    take_in(database)
    assert set(states(database).values()) == {"asking"}

    events.ignore(billing, ANA, [first])
    with a_worker(environ) as worker:
        until_quiet(worker)

    assert rows(database, "SELECT event_id, state, reason FROM inbox ORDER BY id") == [
        {"event_id": first, "state": "settled", "reason": "ignored"},
        {"event_id": second, "state": "settled", "reason": None},
    ]
    [row] = rows(database, "SELECT wanted_at, owed_since, asking_until FROM stripe_customers")
    assert row == {"wanted_at": None, "owed_since": None, "asking_until": None}


def test_behind_many_who_are_retried_no_event_waits_for_long(billing: Billing, database: Database) -> None:
    for n in range(40):
        link(database, f"t_{n}", f"cus_{n:02}")
        tell(database, f"cus_{n:02}")
    rows(database, "UPDATE inbox SET state = 'buried', settled_at = now(), reason = 'X' RETURNING 1")

    dealt = events.retry_all(billing, ANA, Wanted(state="buried"))

    per_second = billing.budget.unhurried_per_second
    with database.begin(SYSTEM) as connection:
        assert questions.in_line(connection, most=100) < per_second
    [last] = rows(database, "SELECT max(wanted_at) - now() AS late FROM stripe_customers")
    assert dealt.events == 40
    assert 35 / per_second < last["late"].total_seconds() < 41 / per_second


def test_what_was_ignored_while_it_waited_is_not_woken_by_a_link(billing: Billing, database: Database) -> None:
    event, other = tell(database, "cus_1"), tell(database, "cus_1")
    take_in(database)
    events.ignore(billing, ANA, [event])

    assert sync.link(database, "t_acme", "cus_1", by="test") == 1
    assert states(database) == {event: "settled", other: "due"}


def test_who_ignores_what_is_just_being_settled_waits_and_changes_nothing(
    billing: Billing, database: Database
) -> None:
    """And who retries it makes it due after all: it was settled by then."""
    event = tell(database, "cus_1")
    [claimed] = claim(database)
    done: list[int] = []
    with database.begin(SYSTEM) as connection:
        inbox.still_mine(connection, [claimed])
        ignoring = threading.Thread(target=lambda: done.append(events.ignore(billing, ANA, [event])))
        ignoring.start()
        until_waited_for(database)
        inbox.settle(connection, [claimed.id])
    ignoring.join()

    assert done == [0]
    assert rows(database, "SELECT state, reason FROM inbox") == [{"state": "settled", "reason": None}]
    assert trail(database) == []
    assert events.retry(billing, ANA, [event]) == 1


def until_waited_for(database: Database) -> None:
    """Until somebody waits for a lock."""
    waits = """SELECT count(*) AS n FROM pg_stat_activity
               WHERE wait_event_type = 'Lock' AND datname = current_database()"""
    for _ in range(2000):
        if rows(database, waits) != [{"n": 0}]:
            return
    raise AssertionError("nobody waits")


# ---- one event


def test_an_event_tells_its_story(
    ana: Browser, billing: Billing, environ: dict[str, str], database: Database, acme: str, customer: str
) -> None:
    """Which failed once, by a fault of ours, and is about a subscription that is held."""
    trigger = """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            RAISE unique_violation USING MESSAGE = 'ada@acme.example is in the way', CONSTRAINT = 'uq_x';
        END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON subscriptions FOR EACH ROW EXECUTE FUNCTION refuse();
    """
    event = an_event(UPDATED, a_subscription(customer), api_version="2026-10-28.endive")
    with database.begin(SYSTEM) as connection:
        connection.execute(text(trigger))
    try:
        keep(database, event)
        with a_worker(environ) as worker:
            worker.work()
    finally:
        with database.begin(SYSTEM) as connection:
            connection.execute(text("DROP TRIGGER refuse ON subscriptions; DROP FUNCTION refuse"))
    failing = ana.reads("inbox")
    make_due(database)
    take_in(database)
    other = tell(database, customer)
    page = ana.reads(event_page(event["id"]))

    assert "IntegrityError" in failing
    story = events.one(billing, event["id"])
    assert story
    assert story.fault
    assert story.fault.splitlines()[0] == "IntegrityError from UniqueViolation"
    assert "billing.subscriptions, line" in story.fault
    assert "ada@" not in story.fault
    assert len(story.failed_at) == 1
    assert story.held
    assert (story.held.kind, story.held.status, story.held.source) == ("subscription", "active", "event")
    assert [one.event_id for one in story.related] == [other]
    assert story.tenant_id == acme
    for word in ("settled", acme, customer, "sub_1", "failed 1 of at most 10", other, "2026-10-28.endive"):
        assert word in page, word


def test_a_payload_is_masked_until_somebody_says_why_they_must_see_it(ana: Browser, database: Database) -> None:
    event = an_event("customer.deleted", {"id": "cus_1", "object": "customer", "email": "ada@acme.example"})
    keep(database, event)
    page = event_page(event["id"])

    masked = ana.opens(page).text
    revealed = ana.sends("inbox/reveal", seen=page, id=event["id"], reason="a dispute")

    assert "ada@acme.example" not in masked
    assert "ada@acme.example" in unescape(revealed.text)
    assert revealed.headers["Cache-Control"] == "no-store"
    deed = {"actor": "ana", "action": "payload.reveal", "tenant_id": None, "stripe_object": event["id"]}
    assert trail(database) == [{**deed, "reason": "a dispute"}]
    assert "ada@acme.example" not in ana.opens(page).text


def test_no_body_is_too_strange_for_its_page(ana: Browser, database: Database) -> None:
    """No text, nested too deep, half of a surrogate pair, no number."""
    event = tell(database, "cus_1")
    for body in (
        b"\xff",
        b"[" * 5000,
        b'{"id":"e","type":"t","n":"\\ud800"}',
        b'{"id":"e","type":"t","a":NaN}',
    ):
        rows(database, "UPDATE inbox SET body = :body RETURNING 1", body=body)
        shown = ana.opens(event_page(event))
        revealed = ana.sends("inbox/reveal", seen=event_page(event), id=event, reason="why not")
        assert (shown.status_code, revealed.status_code) == (200, 200), body[:40]


def test_an_event_that_is_not_here_is_not_found(ana: Browser, database: Database) -> None:
    for path in ("reveal", "link"):
        answer = ana.sends(f"inbox/{path}", seen="", id="evt_gone", tenant="t_1", reason="why not")
        assert answer.status_code == 404, path
    assert ana.opens("inbox/event?id=evt_gone").status_code == 404
    assert ana.opens("inbox/event").status_code == 400
    assert trail(database) == []
