"""Workers killed with SIGKILL, at random and at every named point: nothing lost, nothing doubled.

`tests.crashing_worker` does the dying. Histories are made by hand and most of their events are certain; a share
has to be asked, and the stand-in answers as the history ends. SOAK=1 makes it 1,000 kills over 50,000 events.
"""

from __future__ import annotations

import contextlib
import json
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import text

from billing import subscriptions
from billing.db import SYSTEM, Database
from billing.stripe_api import API_VERSION
from sandbox.server import DEFAULT_KEY, Server, open_server
from tests.conftest import IS_SOAK, link, rows
from tests.deliveries import Json, a_process, a_subscription, an_event, an_invoice, deliver

pytestmark = pytest.mark.made_up

KILLS, EVENTS = (1000, 50_000) if IS_SOAK else (45, 0)  # at least
LEASE_SECONDS = 0.5
POINTS = ("claimed", "read", "written", "before_commit", "after_commit")
ANOTHER_VERSION = "2024-06-20"  # whatever it carries has to be asked
DAY = 86400


def within(seconds: float, condition: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"it did not happen within {seconds} s"
        time.sleep(0.02)


# ---- histories


@dataclass
class History:
    """A customer with one subscription: what is told of it, and what it is in the end."""

    customer: str
    events: list[Json]
    subscription: Json
    invoices: dict[str, Json] = field(default_factory=dict)


def a_history(number: int) -> History:
    """Seven versions in half a minute, each paid for; some end, some are late to pay, some have to be asked."""
    now = int(time.time())
    history = History(f"cus_{number}", [], {})
    for version in range(7):
        created = now - 45 + 4 * version
        history.subscription = a_version(number, version, created)
        invoice = history.subscription["latest_invoice"]
        if history.subscription["status"] == "past_due":
            tell_invoice(history, invoice, created, status="open")
        history.events.append(of_subscription(history.subscription, number, version, created))
        if version:
            tell_invoice(history, f"in_{number}_{version - 1}", created, status="paid")
    tell_invoice(history, history.subscription["latest_invoice"], created, status="paid")
    return history


def a_version(number: int, version: int, created: int) -> Json:
    """A subscription of so many seats as it has versions; the invoices' names are in order, too."""
    changes: Json = {}
    if number % 5 == 1 and version == 3:
        changes = {"status": "past_due"}
    if number % 3 == 1 and version == 6:
        changes = {"status": "canceled", "canceled_at": created, "ended_at": created}
    seats = [(f"si_{number}", "price_1", version + 1)]
    thing = a_subscription(
        f"cus_{number}", id=f"sub_{number}", items=seats, latest_invoice=f"in_{number}_{version}", **changes
    )
    for item in thing["items"]["data"]:  # or the stand-in would renew it
        item["current_period_end"] = created - created % DAY + 30 * DAY
    return thing


def of_subscription(thing: Json, number: int, version: int, created: int) -> Json:
    change = "created" if version == 0 else "deleted" if thing["status"] == "canceled" else "updated"
    api_version = ANOTHER_VERSION if number % 4 == 3 else API_VERSION
    return an_event(f"customer.subscription.{change}", thing, created=created, api_version=api_version)


def tell_invoice(history: History, id: str, created: int, *, status: str) -> None:
    thing = an_invoice(history.customer, history.subscription["id"], id=id, status=status)
    history.invoices[id] = thing
    kind = "invoice.paid" if status == "paid" else "invoice.payment_failed"
    history.events.append(an_event(kind, thing, created=created))


@contextlib.contextmanager
def a_stripe() -> Iterator[Server]:
    """A stand-in whose store is at hand: what is in there, it answers."""
    server = open_server(port=0, data=None, key=DEFAULT_KEY)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def know(stripe: Server, history: History) -> None:
    """Let the stand-in answer as the history ends."""
    created = {"created": int(time.time()), "livemode": False}
    stripe.store.insert({"id": history.customer, "object": "customer", **created})
    for invoice in history.invoices.values():
        stripe.store.insert({**invoice, "auto_advance": False, **created})
    stripe.store.insert({**history.subscription, **created})


def interleaved(histories: Iterable[History], chance: random.Random) -> list[Json]:
    """Their events almost in order, neighbours swapped here and there, a tenth of them twice."""
    placed = [
        (place + 1.5 * chance.random(), event["id"], event)
        for history in histories
        for place, event in enumerate(history.events)
        for _ in range(1 + (chance.random() < 0.1))
    ]
    return [event for *_, event in sorted(placed, key=lambda one: one[:2])]


# ---- what must have become of them


@dataclass
class Acknowledged:
    """What was answered 200, and how each has to end."""

    histories: list[History] = field(default_factory=list)
    states: dict[str, str] = field(default_factory=dict)


def wrong_states(database: Database, expected: Mapping[str, str]) -> dict[str, tuple[str, str | None]]:
    """Of what was acknowledged, what is not as it should be; None is lost."""
    found = {row["event_id"]: row["state"] for row in rows(database, "SELECT event_id, state FROM inbox")}
    return {event: (state, found.get(event)) for event, state in expected.items() if state != found.get(event)}


def mirror(database: Database) -> dict[str, tuple[bytes, list[tuple[str, int]]]]:
    items: dict[str, list[tuple[str, int]]] = {}
    for row in rows(database, "SELECT * FROM subscription_items ORDER BY stripe_item_id"):
        items.setdefault(row["stripe_subscription_id"], []).append((row["stripe_item_id"], row["quantity"]))
    return {
        row["stripe_subscription_id"]: (bytes(row["facts"]), items[row["stripe_subscription_id"]])
        for row in rows(database, "SELECT stripe_subscription_id, facts FROM subscriptions")
    }


def expected_mirror(histories: Iterable[History]) -> dict[str, tuple[bytes, list[tuple[str, int]]]]:
    read = [subscriptions.read(history.subscription) for history in histories]
    return {
        one.id: (one.facts.digest(), [(item.id, item.quantity or 0) for item in one.facts.items])
        for one in read
    }


def paid_and_open(database: Database) -> dict[str, str]:
    found = rows(database, "SELECT stripe_invoice_id AS id, status FROM invoices")
    return {row["id"]: row["status"] for row in found}


WITNESS = """
    CREATE TABLE witnessed (place bigint GENERATED ALWAYS AS IDENTITY, kind text, id text, what text);
    CREATE FUNCTION witness_event() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO witnessed (kind, id, what) VALUES ('finished', NEW.event_id, NEW.state); RETURN NULL;
    END $$;
    CREATE FUNCTION witness_facts() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO witnessed (kind, id, what)
        VALUES ('facts', NEW.stripe_subscription_id, NEW.latest_invoice_id);
        RETURN NULL;
    END $$;
    CREATE TRIGGER finished AFTER UPDATE ON inbox FOR EACH ROW
        WHEN (NEW.state IN ('settled', 'buried')) EXECUTE FUNCTION witness_event();
    CREATE TRIGGER first_facts AFTER INSERT ON subscriptions FOR EACH ROW EXECUTE FUNCTION witness_facts();
    CREATE TRIGGER new_facts AFTER UPDATE ON subscriptions FOR EACH ROW
        WHEN (OLD.facts <> NEW.facts) EXECUTE FUNCTION witness_facts();
"""
BLIND = """
    DROP FUNCTION witness_event CASCADE; DROP FUNCTION witness_facts CASCADE; DROP TABLE witnessed;
"""


@pytest.fixture
def witness(database: Database) -> Iterator[None]:
    """Every finishing of an event and every change of a subscription's facts that is committed leaves a row."""
    with database.begin(SYSTEM) as connection:
        connection.execute(text(WITNESS))
    yield
    with database.begin(SYSTEM) as connection:
        connection.execute(text(BLIND))


def finished_twice(database: Database) -> list[str]:
    found = rows(
        database, "SELECT id FROM witnessed WHERE kind = 'finished' GROUP BY id HAVING count(*) > 1 ORDER BY id"
    )
    return [row["id"] for row in found]


def gone_back_or_repeated(database: Database) -> list[str]:
    """Subscriptions whose versions did not come one after the other, each at most once."""
    found = rows(
        database,
        "SELECT DISTINCT id FROM (SELECT id, what, lag(what) OVER (PARTITION BY id ORDER BY place) AS before"
        " FROM witnessed WHERE kind = 'facts') AS change WHERE what <= before",
    )
    return [row["id"] for row in found]


# ---- workers that die


@dataclass
class Crashing:
    """Workers under their fates, and the ledger of their deaths."""

    ledger: Path
    log: Path

    def deaths(self) -> list[dict[str, Any]]:
        """The dead so far; each is a fate that has been met, or a worker that ended by itself."""
        if not self.ledger.exists():
            return []
        return [json.loads(line) for line in self.ledger.read_text().splitlines()]

    def by_point(self) -> Counter[str]:
        return Counter(death["point"] for death in self.deaths() if death["code"] == -signal.SIGKILL)


@contextlib.contextmanager
def crashing(
    environ: dict[str, str],
    directory: Path,
    fates: Sequence[str],
    *,
    workers: int = 1,
    batch: int = 10,
    lease: float = LEASE_SECONDS,
    **more: str,
) -> Iterator[Crashing]:
    """So many workers at a time, that die as `fates` say and are replaced; those that are left end in order."""
    crash = Crashing(directory / "deaths", directory / "workers.log")
    given = {
        "FATES": " ".join(fates),
        "LEDGER": str(crash.ledger),
        "WORKERS": str(workers),
        "BATCH": str(batch),
        "LEASE_SECONDS": str(lease),
    }
    with a_process({**environ, **given, **more}, crash.log, "tests.crashing_worker") as nursery:
        yield crash
        nursery.send_signal(signal.SIGTERM)
        assert nursery.wait(25) == 0, crash.log.read_text()[-3000:]
    survivors = crash.deaths()[-workers:]
    assert [death["code"] for death in survivors] == [0] * workers


@pytest.fixture
def stripe() -> Iterator[Server]:
    with a_stripe() as server:
        yield server


@pytest.fixture
def asking(environ: dict[str, str], stripe: Server) -> dict[str, str]:
    """What workers start with: this stand-in, and a budget that does not make the test wait."""
    return {
        **environ,
        "STRIPE_API_BASE": stripe.url,
        "STRIPE_SECRET_KEY": DEFAULT_KEY,
        "BILLING_STRIPE_READS_PER_SECOND": "100",
    }


@pytest.fixture
def undisturbed(database: Database) -> None:
    """Whatever is asked is asked because of an event: the chores that ask by themselves are put off."""
    with database.begin(SYSTEM) as connection:
        connection.execute(
            text("INSERT INTO chores SELECT unnest(ARRAY['meet', 'walk', 'look']), 'infinity'::timestamptz")
        )


def unfinished(database: Database) -> int:
    """How many events are due, or wait for an answer; each part has an index of its own."""
    count = "(SELECT count(*) FROM inbox WHERE state = '{}')"
    [row] = rows(database, f"SELECT {count.format('due')} + {count.format('asking')} AS n")
    return int(row["n"])


def begin(database: Database, stripe: Server, numbers: Iterable[int]) -> list[History]:
    """Histories of tenants' customers that the stand-in knows, ready to be told."""
    histories = [a_history(number) for number in numbers]
    for history in histories:
        know(stripe, history)
        link(database, f"t_of_{history.customer}", history.customer)
    return histories


def tell(client: FlaskClient, told: Iterable[Json]) -> list[str]:
    """Deliver events; the ids of those that were acknowledged, which is all of them."""
    told = list(told)
    statuses = Counter(deliver(client, event).status_code for event in told)
    assert statuses == {200: len(told)}
    return [event["id"] for event in told]


def some_fates(chance: random.Random, count: int) -> list[str]:
    """One in six from outside; few questions are put, so who dies of one does so at the first or the second."""

    def fate(point: str) -> str:
        if point == "outside":
            return f"outside:{chance.uniform(0.1, 0.8):.3f}"
        return f"{point}:{chance.randint(1, 2 if point == 'read' else 8)}"

    return [fate(("outside", *POINTS)[number % 6]) for number in range(count)]


def tell_some(
    client: FlaskClient,
    database: Database,
    stripe: Server,
    acknowledged: Acknowledged,
    chance: random.Random,
) -> None:
    """Five more customers' histories, a stranger's event, and one that names nobody."""
    first = len(acknowledged.histories)
    histories = begin(database, stripe, range(first, first + 5))
    acknowledged.histories += histories
    acknowledged.states |= dict.fromkeys(tell(client, interleaved(histories, chance)), "settled")
    stranger = an_event("customer.subscription.updated", a_subscription(f"cus_nobodys_{first}"))
    nameless = an_event("customer.subscription.updated", a_subscription(""))
    acknowledged.states |= dict.fromkeys(tell(client, [stranger]), "waiting")
    acknowledged.states |= dict.fromkeys(tell(client, [nameless]), "buried")


@pytest.mark.timeout(7200 if IS_SOAK else 120)
def test_kills_at_random_and_at_every_point_lose_nothing_double_nothing_and_bury_no_innocent(
    client: FlaskClient,
    database: Database,
    asking: dict[str, str],
    stripe: Server,
    tmp_path: Path,
    witness: None,
    undisturbed: None,
) -> None:
    chance = random.Random(7)
    acknowledged = Acknowledged()
    with crashing(asking, tmp_path, some_fates(chance, KILLS), workers=3) as crash:
        while len(crash.deaths()) < KILLS or len(acknowledged.states) < EVENTS:
            tell_some(client, database, stripe, acknowledged, chance)
            within(30, lambda: unfinished(database) < 60)
        within(60, lambda: unfinished(database) == 0)
        kills = crash.by_point()

    assert kills.total() >= KILLS
    assert set(kills) == {"outside", *POINTS}
    assert wrong_states(database, acknowledged.states) == {}
    assert finished_twice(database) == []
    assert gone_back_or_repeated(database) == []
    assert mirror(database) == expected_mirror(acknowledged.histories)
    assert set(paid_and_open(database).items()) >= {
        (id, invoice["status"])
        for history in acknowledged.histories
        for id, invoice in history.invoices.items()
    }


@pytest.mark.parametrize("point", POINTS)
def test_what_a_killed_worker_held_is_taken_up_within_the_lease(
    point: str,
    client: FlaskClient,
    database: Database,
    asking: dict[str, str],
    stripe: Server,
    tmp_path: Path,
    undisturbed: None,
) -> None:
    """One that has to be asked (3) and one that is certain (4); four times the lease is allowed."""
    lease = 1.0
    histories = begin(database, stripe, [3, 4])
    tell(client, (history.events[0] for history in histories))

    with crashing(asking, tmp_path, [f"{point}:1"], lease=lease) as crash:
        within(20, lambda: len(crash.deaths()) == 1)
        within(10, lambda: unfinished(database) == 0)
        took = time.time() - crash.deaths()[0]["at"]

    assert crash.by_point() == {point: 1}
    assert took < 4 * lease
    assert {row["state"] for row in rows(database, "SELECT state FROM inbox")} == {"settled"}


def test_an_event_that_kills_every_worker_is_buried_alone_after_stripe_was_asked_for_its_customer(
    client: FlaskClient,
    database: Database,
    asking: dict[str, str],
    stripe: Server,
    tmp_path: Path,
    undisturbed: None,
) -> None:
    histories = begin(database, stripe, [2, 4, 5])
    guilty = histories[0].events[-2]
    tell(client, (event for history in histories for event in history.events))

    with crashing(asking, tmp_path, [], workers=2, POISON=guilty["id"]) as crash:
        within(60, lambda: unfinished(database) == 0)
        deaths = sum(death["code"] == -signal.SIGKILL for death in crash.deaths())

    buried = rows(database, "SELECT event_id, reason FROM inbox WHERE state <> 'settled'")
    assert buried == [{"event_id": guilty["id"], "reason": "its worker died with it, again and again"}]
    assert deaths == 6  # in a batch, and five times alone
    assert mirror(database) == expected_mirror(histories)
