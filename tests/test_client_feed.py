"""A copy kept by the feed ends as the service has it, whatever fails on the way; so does the client's own."""

from __future__ import annotations

import json
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from client.billing_client import LOOKED_UP_SECONDS, Batch, BillingClient
from tests.unruly import CHANGES, TOKEN, Asked, Clock, Reply, Service, a_service, answer

EVERY = 0.02  # seconds between polls, for tests that are to end
ACME, GLOBEX = "t_acme", "t_globex"


@pytest.fixture
def service() -> Iterator[Service]:
    with a_service() as service:
        yield service


@pytest.fixture
def clock(service: Service) -> Clock:
    return Clock(service)


@pytest.fixture
def billing(service: Service, clock: Clock) -> Iterator[BillingClient]:
    client = BillingClient(service.url, TOKEN, {"sso": False}, clock=clock)
    yield client
    client.close()


class Copy:
    """A consumer's own database, as docs/api.md would have it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.applied: list[Batch] = []
        self.fails = threading.Event()
        with self._begin() as db:
            db.execute("CREATE TABLE IF NOT EXISTS place (cursor TEXT)")
            db.execute(
                "CREATE TABLE IF NOT EXISTS copies (tenant TEXT PRIMARY KEY, epoch TEXT, version, body TEXT)"
            )
            db.execute("INSERT INTO place SELECT NULL WHERE NOT EXISTS (SELECT * FROM place)")

    @contextmanager
    def _begin(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self._path, timeout=10)
        try:
            with db:
                yield db
        finally:
            db.close()

    def load(self) -> str | None:
        with self._begin() as db:
            found: tuple[str | None] = db.execute("SELECT cursor FROM place").fetchone()
            return found[0]

    def apply(self, batch: Batch) -> None:
        with self._begin() as db:
            moved = db.execute(
                "UPDATE place SET cursor = ? WHERE cursor IS ?", (batch.cursor, batch.after)
            ).rowcount
            for change in batch.changes if moved else ():
                if change.document is None:
                    db.execute("DELETE FROM copies WHERE tenant = ?", [change.tenant_id])
                else:
                    row = (
                        change.tenant_id,
                        batch.epoch,
                        change.document.version,
                        json.dumps(dict(change.document.body)),
                    )
                    db.execute(
                        "INSERT INTO copies VALUES (?, ?, ?, ?) ON CONFLICT (tenant) DO UPDATE"
                        " SET epoch = excluded.epoch, version = excluded.version, body = excluded.body"
                        " WHERE epoch <> excluded.epoch OR version <= excluded.version",
                        row,
                    )
            if self.fails.is_set():
                raise sqlite3.OperationalError("the consumer's database is away")
        self.applied.append(batch)

    def caught_up(self, epoch: str | None) -> None:
        with self._begin() as db:
            db.execute("DELETE FROM copies WHERE epoch <> ?", [epoch])

    def documents(self) -> dict[str, Any]:
        with self._begin() as db:
            return {tenant: json.loads(body) for tenant, body in db.execute("SELECT tenant, body FROM copies")}

    def set_cursor(self, cursor: str) -> None:
        with self._begin() as db:
            db.execute("UPDATE place SET cursor = ?", [cursor])


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path / "consumer.db")


@contextmanager
def following(billing: BillingClient, copy: Copy) -> Iterator[None]:
    options: dict[str, Any] = {"load": copy.load, "apply": copy.apply, "caught_up": copy.caught_up}
    with running(billing.follow, every=EVERY, **options):
        yield


@contextmanager
def running(loop: Callable[..., None], **options: Any) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=loop, kwargs={"stop": stop, **options})
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(5)
        assert not thread.is_alive()


def eventually(is_so: Callable[[], bool], seconds: float = 5) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.005)


def polls(service: Service) -> list[Asked]:
    return [asked for asked in service.asked if asked.path.startswith(CHANGES)]


def at_the_end(service: Service, billing: BillingClient, *, more: int = 2) -> None:
    """Wait until the service was asked some times more: what it said before is applied by then."""
    already = len(polls(service))
    eventually(lambda: len(polls(service)) >= already + more)


# ---- a copy of one's own


def test_a_copy_that_begins_has_every_tenant_and_then_every_change(
    service: Service, billing: BillingClient, copy: Copy
) -> None:
    for n in range(250):  # three pages
        service.put(f"t_{n}", 1, sso=True)

    with following(billing, copy):
        eventually(lambda: copy.documents() == service.documents)
        assert [len(batch.changes) for batch in copy.applied] == [100, 100, 50]
        service.put("t_7", 2, sso=False)
        service.forget("t_8")
        eventually(lambda: copy.documents() == service.documents)

    assert copy.documents()["t_7"]["version"] == 2
    assert "t_8" not in copy.documents()


def test_at_the_end_it_is_asked_by_tag_and_nothing_is_sent(
    service: Service, billing: BillingClient, copy: Copy
) -> None:
    service.put(ACME, 1)

    with following(billing, copy):
        at_the_end(service, billing, more=5)

    *_, before, last = polls(service)
    assert before.headers["if-none-match"] == last.headers["if-none-match"] == 'W/"k3f9-1"'
    assert len(copy.applied) == 1


def test_what_could_not_be_applied_comes_again(
    service: Service, billing: BillingClient, copy: Copy, caplog: pytest.LogCaptureFixture
) -> None:
    service.put(ACME, 1)
    copy.fails.set()

    with following(billing, copy):
        at_the_end(service, billing)
        assert (copy.documents(), copy.load()) == ({}, None)
        copy.fails.clear()
        eventually(lambda: copy.documents() == service.documents)

    assert "the consumer's database is away" in caplog.text
    assert TOKEN not in caplog.text


def test_a_copy_goes_on_where_it_was_after_a_restart(
    service: Service, billing: BillingClient, copy: Copy
) -> None:
    service.put(ACME, 1)
    with following(billing, copy):
        eventually(lambda: copy.documents() == service.documents)
    service.put(GLOBEX, 1)

    with following(billing, copy):
        eventually(lambda: copy.documents() == service.documents)

    assert [[change.tenant_id for change in batch.changes] for batch in copy.applied] == [[ACME], [GLOBEX]]


def test_another_database_of_the_services_is_believed(
    service: Service, billing: BillingClient, copy: Copy
) -> None:
    """Lower versions are taken, and what it does not have is gone."""
    service.put(ACME, 42, sso=True)
    service.put(GLOBEX, 7)
    with following(billing, copy):
        eventually(lambda: copy.documents() == service.documents)
        service.become_another("r2d2")
        service.put(ACME, 12, sso=False)
        eventually(lambda: copy.documents() == service.documents)

    assert copy.documents()[ACME]["version"] == 12
    assert GLOBEX not in copy.documents()


def test_of_an_empty_database_the_copy_is_empty(service: Service, billing: BillingClient, copy: Copy) -> None:
    """No event tells of its epoch. The cursor moves there first, and then `caught_up` is told of it."""
    service.put(ACME, 42)
    told: list[tuple[str | None, str | None]] = []

    def caught_up(epoch: str | None) -> None:
        told.append((epoch, copy.load()))
        copy.caught_up(epoch)

    with running(billing.follow, every=EVERY, load=copy.load, apply=copy.apply, caught_up=caught_up):
        eventually(lambda: told != [])
        service.become_another("r2d2")
        eventually(lambda: copy.documents() == {})

    assert copy.applied[-1] == Batch((), "k3f9-0000000000000001", "r2d2-0", "r2d2")
    assert {(epoch, cursor) for epoch, cursor in told} == {
        ("k3f9", "k3f9-0000000000000001"),
        ("r2d2", "r2d2-0"),
    }


@pytest.mark.parametrize("tag", ['W/"r2d2-7"', 'W/"r2d2"', '"5e1f"', "r2d2-0", ""])
def test_a_tag_that_names_no_beginning_moves_nobody(
    service: Service, billing: BillingClient, copy: Copy, tag: str
) -> None:
    """A proxy may have put it there."""
    service.put(ACME, 1)
    with following(billing, copy):
        eventually(lambda: copy.documents() == service.documents)
        service.reply = lambda _: answer([], ETag=tag)
        at_the_end(service, billing)

    assert copy.load() == "k3f9-0000000000000001"
    assert copy.documents() == service.documents


def test_an_older_version_in_the_same_epoch_is_not_taken(
    service: Service, billing: BillingClient, copy: Copy
) -> None:
    service.put(ACME, 42)
    with following(billing, copy):
        eventually(lambda: copy.documents() == service.documents)
        service.put(ACME, 41)
        eventually(lambda: len(copy.applied) == 2)

    assert copy.documents()[ACME]["version"] == 42


def test_a_cursor_that_cannot_be_read_begins_anew(service: Service, billing: BillingClient, copy: Copy) -> None:
    service.put(ACME, 1)
    copy.set_cursor("nonsense")

    with following(billing, copy):
        eventually(lambda: copy.documents() == service.documents)

    assert copy.load() == "k3f9-0000000000000001"


def event(id: Any = "k3f9-5", **members: Any) -> dict[str, Any]:
    data = {"tenant_id": ACME, "version": 9, "features": {}}
    return {"id": id, "type": "billing.tenant.state", "subject": ACME, "data": data, **members}


NONSENSE: dict[str, Reply] = {
    "500": lambda _: answer({"error": "…"}, 500),
    "a refused token": lambda _: answer({"error": "Unauthorized"}, 401),
    "HTML": lambda _: answer(b"<html>"),
    "an object": lambda _: answer({"events": []}),
    "events of text": lambda _: answer(["k3f9-5"]),
    "no id": lambda _: answer([event(id=None)]),
    "an id without a position": lambda _: answer([event(id="k3f9")]),
    "two epochs": lambda _: answer([event(), event(id="r2d2-6")]),
    "backwards": lambda _: answer([event(), event(id="k3f9-4")]),
    "in circles": lambda asked: answer([event(id="k3f9-0000000000000001")]),
    "no tenant": lambda _: answer([event(subject="")]),
    "another tenant's data": lambda _: answer([event(subject=GLOBEX)]),
    "no data": lambda _: answer([event(data=None)]),
    "an end that is a word": lambda _: answer([event(lastsuntil="soon")]),
    "304 to a question without a tag": lambda _: answer(status=304, Content_Length=""),
    "half": lambda _: [answer([event()], Content_Length="9000")],
}


@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE.keys())
def test_nonsense_is_neither_applied_nor_skipped(
    service: Service, billing: BillingClient, copy: Copy, nonsense: Reply
) -> None:
    service.put(ACME, 1)
    copy.set_cursor("k3f9-0000000000000001")
    service.put(GLOBEX, 1)
    service.reply = nonsense

    with following(billing, copy):
        at_the_end(service, billing)
        assert copy.applied == []
        service.reply = None
        eventually(lambda: copy.documents() == {GLOBEX: service.documents[GLOBEX]})

    assert billing.counters()["errors"] >= 1


def test_events_of_a_kind_nobody_knows_are_passed_by(
    service: Service, billing: BillingClient, copy: Copy
) -> None:
    service.reply = lambda asked: answer([event(), event(id="k3f9-6", type="billing.of.tomorrow", data=3)])

    with following(billing, copy):
        eventually(lambda: copy.load() == "k3f9-6")

    assert [change.tenant_id for change in copy.applied[0].changes] == [ACME]


def test_failures_are_asked_after_less_and_less_and_a_stop_is_heard_meanwhile(
    service: Service, billing: BillingClient, copy: Copy
) -> None:
    service.reply = lambda _: answer({"error": "…"}, 500)
    begun = time.monotonic()

    with following(billing, copy):  # 0.02 s doubled: at 0, 0.04, 0.12, 0.28, 0.6 …
        eventually(lambda: time.monotonic() > begun + 0.5)

    assert 2 <= len(service.asked) <= 4
    assert time.monotonic() - begun < 2


def test_consumers_that_share_a_cursor_end_with_what_the_service_has(
    service: Service, billing: BillingClient, copy: Copy, tmp_path: Path
) -> None:
    """Three of them, a service that fails at random, and tenants that come, change and go."""
    chance = random.Random(3)
    others = [Copy(tmp_path / "consumer.db") for _ in range(2)]
    service.reply = lambda asked: answer(b"", 500) if chance.random() < 0.1 else service.by_contract(asked)

    with following(billing, copy), following(billing, others[0]), following(billing, others[1]):
        for n in range(300):
            tenant = f"t_{chance.randrange(20)}"
            if tenant in service.documents and chance.random() < 0.2:
                service.forget(tenant)
            else:
                service.put(tenant, n + 1, projects=n)
            time.sleep(0.001)
        eventually(lambda: copy.documents() == service.documents, seconds=10)

    applied = [batch.after for one in (copy, *others) for batch in one.applied]
    assert len(applied) > 3


# ---- the client's own copy


@contextmanager
def kept_warm(billing: BillingClient) -> Iterator[None]:
    """From the moment on at which it has caught up. The feed's last word holds for three polls."""
    with running(billing.keep_warm, every=EVERY):
        eventually(lambda: billing._in_step_until > 0)
        yield


def asked_directly(service: Service) -> int:
    return len(service.asked) - len(polls(service))


def test_what_the_feed_keeps_warm_is_read_without_a_request(service: Service, billing: BillingClient) -> None:
    for n in range(150):
        service.put(f"t_{n}", n + 1, sso=True)

    with kept_warm(billing):
        assert [billing.get(f"t_{n}").version for n in range(150)] == list(range(1, 151))

    assert asked_directly(service) == 0
    assert billing.counters()["fresh"] == 150


def test_a_change_is_seen_with_the_next_poll(service: Service, billing: BillingClient) -> None:
    service.put(ACME, 1, sso=False)

    with kept_warm(billing):
        assert not billing.enabled(ACME, "sso")
        service.put(ACME, 2, sso=True)
        eventually(lambda: billing.enabled(ACME, "sso"))

    assert asked_directly(service) == 0


def test_a_feed_that_is_silent_keeps_nothing_fresh(
    service: Service, billing: BillingClient, clock: Clock
) -> None:
    service.put(ACME, 1)
    with kept_warm(billing):
        pass

    clock.pass_by(2.9 * EVERY)
    assert billing.get(ACME).origin == "fresh"
    clock.pass_by(0.2 * EVERY)
    assert billing.get(ACME).origin == "changed"


def test_what_the_feed_brought_serves_in_need(service: Service, billing: BillingClient, clock: Clock) -> None:
    service.put(ACME, 1)
    with kept_warm(billing):
        pass
    service.stop()

    clock.pass_by(3600)
    assert (billing.get(ACME).origin, billing.get(ACME).version) == ("stale", 1)
    clock.pass_by(86_400)
    assert billing.get(ACME).origin == "fallback"


def test_what_the_feed_brought_ends_with_its_end(
    service: Service, billing: BillingClient, clock: Clock
) -> None:
    document = service.put(ACME, 1, sso=True)
    document["valid_until"] = service.now.replace(second=30).isoformat()

    with kept_warm(billing):
        assert billing.enabled(ACME, "sso")
        del service.documents[ACME]  # and no feed that would say so
        clock.pass_by(30)
        at_the_end(service, billing)
        assert not billing.enabled(ACME, "sso")

    assert asked_directly(service) == 1


def test_what_the_feed_brought_serves_in_need_until_time_may_change_it(
    service: Service, billing: BillingClient, clock: Clock
) -> None:
    """What an operator granted for an hour ends then, though access has no end that is known."""
    service.lasts_until[ACME] = service.now + timedelta(hours=1)
    service.put(ACME, 1, sso=True)
    with kept_warm(billing):
        pass
    service.stop()

    clock.pass_by(3598)
    assert billing.enabled(ACME, "sso")
    clock.pass_by(2)
    assert not billing.enabled(ACME, "sso")


def test_the_feed_alone_keeps_nothing_fresh_for_ever(
    service: Service, billing: BillingClient, clock: Clock
) -> None:
    """It says what was written. That the service's own clock stands still, only a question tells."""
    service.put(ACME, 1)

    with kept_warm(billing):
        clock.pass_by(LOOKED_UP_SECONDS - 1)
        at_the_end(service, billing)
        assert billing.get(ACME).origin == "fresh"
        clock.pass_by(2)
        at_the_end(service, billing)
        assert billing.get(ACME).origin == "changed"
        clock.pass_by(LOOKED_UP_SECONDS + 1)
        at_the_end(service, billing)
        assert billing.get(ACME).origin == "revalidated"


def test_a_tenant_the_feed_says_is_gone_is_asked_about(service: Service, billing: BillingClient) -> None:
    service.put(ACME, 1, sso=True)

    with kept_warm(billing):
        assert billing.enabled(ACME, "sso")
        service.forget(ACME)
        eventually(lambda: not billing.enabled(ACME, "sso"))

    assert asked_directly(service) == 1


@contextmanager
def a_reader_who_waits(service: Service, billing: BillingClient, clock: Clock) -> Iterator[Callable[[], int]]:
    """Its answer is on its way and says version 41. Called, it has arrived, and what was read is returned."""
    service.put(ACME, 41, sso=True)
    may_answer, seen = threading.Event(), []
    before = service.entitlements(Asked(f"/api/tenants/{ACME}/entitlements", {}, 0))

    def late(asked: Asked) -> bytes:
        assert may_answer.wait(5)
        return before

    service.reply = late
    reader = threading.Thread(target=lambda: seen.append(billing.get(ACME).version))
    reader.start()
    service.wait_until_asked(1)
    service.reply = None
    clock.pass_by(1)

    def arrive() -> int:
        may_answer.set()
        reader.join()
        return int(seen[0])

    yield arrive
    arrive()


def test_an_answer_from_before_the_feed_said_gone_is_not_kept(
    service: Service, billing: BillingClient, clock: Clock
) -> None:
    """Or it would stay: of a tenant that is gone no further event comes."""
    with a_reader_who_waits(service, billing, clock) as arrive, kept_warm(billing):
        service.forget(ACME)
        at_the_end(service, billing)
        assert arrive() == 41

        assert billing.get(ACME).origin == "fallback"


def test_an_answer_the_feed_has_overtaken_changes_nothing(
    service: Service, billing: BillingClient, clock: Clock
) -> None:
    with a_reader_who_waits(service, billing, clock) as arrive:
        service.put(ACME, 42)
        with kept_warm(billing):
            assert arrive() == 42
            assert billing.get(ACME).version == 42

    assert asked_directly(service) == 1
    assert billing.counters()["errors"] == 0


def test_another_database_replaces_what_is_kept(service: Service, billing: BillingClient) -> None:
    service.put(ACME, 42, sso=True)
    service.put(GLOBEX, 7, sso=True)

    with kept_warm(billing):
        assert billing.enabled(GLOBEX, "sso")
        service.become_another("r2d2")
        service.put(ACME, 12, sso=False)
        eventually(lambda: billing.get(ACME).version == 12)
        assert billing.get(GLOBEX).origin == "fallback"

    assert asked_directly(service) == 1


def test_an_empty_database_keeps_nothing_of_another_fresh(
    service: Service, billing: BillingClient, clock: Clock
) -> None:
    service.put(ACME, 42, sso=True)

    with kept_warm(billing):
        clock.pass_by(31)
        at_the_end(service, billing)
        assert billing.get(ACME).origin == "fresh"
        service.become_another("r2d2")
        eventually(lambda: billing.get(ACME).origin == "fallback")


def test_the_feed_drives_out_nobody_who_is_asked_for(service: Service, clock: Clock) -> None:
    billing = BillingClient(service.url, TOKEN, {}, clock=clock, tenants=3)
    service.put(ACME, 1)
    billing.get(ACME)
    for n in range(10):
        service.put(f"t_{n}", 1)

    with kept_warm(billing):
        assert billing.get(ACME).origin == "fresh"
        assert len(billing._tenants) == 3
        for n in range(10):
            billing.get(f"t_{n}")

    assert len(billing._tenants) == 3
    billing.close()
