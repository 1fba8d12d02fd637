"""The feed's order: who polls it misses nobody, whatever transactions overlap, roll back or die.

Positions are given by the ways documents are really written. A harness with many writers and a polling reader
shows that the reader's copy ends as the source, and the same harness that a sequence in the head's place loses
changes: so it would notice. SOAK=1 makes it ten times as long.
"""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import psycopg
import pytest
from sqlalchemy import Connection, text

from billing import clock, feed, overrides, state
from billing.db import PUBLIC, SERVICE, SYSTEM, Database, Scope, along_indexes
from billing.errors import ServiceUnavailable
from billing.feed import Cursor, Entry, Page
from sandbox.server import Control
from tests.a_postgres import Postgres, a_copy_of, a_postgres
from tests.conftest import IS_SOAK, alembic, create_customer, link, rows
from tests.deliveries import a_worker, an_event, keep
from tests.test_migrations import plain
from tests.test_portal_options import wait_until
from tests.test_state import (
    answered,
    keep_catalogue,
    lose_the_connection,
    override,
    refresh,
    team,
    told,
    waits,
    work_until,
)

START = Cursor()
ALL = 500


@pytest.fixture
def other(database_url: str) -> Iterator[Database]:
    """Another process's way in."""
    database = Database(database_url, pool_size=10)
    yield database
    database.close()


def page(database: Database, since: Cursor = START, most: int = ALL) -> Page:
    return database.run(SERVICE, feed.read(since, most))


def told_of(database: Database, since: Cursor = START) -> list[str]:
    """The tenants that changed, in the feed's order."""
    return [entry.tenant_id for entry in page(database, since).entries]


def end(database: Database) -> Cursor:
    """How far a reader is that has read all."""
    entries = page(database).entries
    return entries[-1].id if entries else page(database).since


# ---- what is in it


def test_a_document_that_changes_moves_to_the_end_and_stands_there_once(database: Database) -> None:
    team(database)
    refresh(database, "t_1", "t_2", "t_3")
    before = page(database)

    override(database, "t_1", "true")

    after = page(database)
    assert [entry.tenant_id for entry in before.entries] == ["t_1", "t_2", "t_3"]
    assert [entry.tenant_id for entry in after.entries] == ["t_2", "t_3", "t_1"]
    assert after.entries[-1].id.position == before.entries[-1].id.position + 1
    assert json.loads(after.entries[-1].body)["version"] == 2


def test_what_only_confirms_a_document_moves_nobody(database: Database, acme: str, customer: str) -> None:
    team(database)
    answered(database, customer)
    told(database, customer)
    before = end(database)

    refresh(database, acme, confirmed=(acme,))
    told(database, customer)

    assert (end(database), told_of(database, before)) == (before, [])


def test_pages_follow_each_other_to_the_end(database: Database) -> None:
    team(database)
    refresh(database, *(f"t_{number}" for number in range(7)))
    since, sizes, seen = START, [], []

    while entries := page(database, since, most=3).entries:
        since = entries[-1].id
        sizes.append(len(entries))
        seen += [entry.tenant_id for entry in entries]

    assert (sizes, seen) == ([3, 3, 1], [f"t_{number}" for number in range(7)])


def test_nobody_is_told_of_a_tenant_before_stripe_has_told_of_it(
    database: Database, acme: str, customer: str
) -> None:
    team(database)
    refresh(database, acme)
    refresh(database, "t_other")
    unknown, since = told_of(database), end(database)

    answered(database, customer)
    refresh(database, acme)

    assert (unknown, told_of(database, since)) == (["t_other"], [acme])
    assert rows(database, "SELECT version, fed FROM tenant_states") == [{"version": 1, "fed": 1}] * 2


def test_nobody_is_told_of_a_tenant_before_it_is_known_what_is_sold(database: Database) -> None:
    refresh(database, "t_1")
    unknown = told_of(database)

    team(database)
    clock.catch_up(database)

    assert (unknown, told_of(database)) == ([], ["t_1"])


def test_of_a_tenant_with_a_new_customer_the_old_copy_holds_until_stripe_has_told_of_that(
    database: Database, acme: str, customer: str, sandbox: Control
) -> None:
    team(database)
    answered(database, customer)
    told(database, customer)
    before = end(database)
    new = create_customer(sandbox)

    rows(database, "UPDATE tenant_config SET stripe_customer_id = :new RETURNING 1", new=new)
    refresh(database, acme)
    meanwhile = told_of(database, before), told_of(database)
    answered(database, new)
    refresh(database, acme)

    assert meanwhile == ([], [])
    assert told_of(database, before) == [acme]


def test_a_batch_takes_one_position_each_in_the_order_of_its_tenants(database: Database) -> None:
    team(database)
    refresh(database, *(f"t_{number:03}" for number in range(300)))
    refresh(database, *(f"t_{number:03}" for number in range(300)))

    given = rows(database, "SELECT tenant_id, position FROM tenant_states ORDER BY position")
    assert given == [{"tenant_id": f"t_{number:03}", "position": number + 1} for number in range(300)]


def test_only_services_and_we_ourselves_see_the_feed(database: Database) -> None:
    team(database)
    refresh(database, "t_1", "t_2")

    seen = {
        scope.name: len(database.run(scope, feed.read(START, ALL)).entries)
        for scope in (SYSTEM, SERVICE, PUBLIC, Scope("stranger"), Scope("webhook"))
    }

    assert seen == {"system": 2, "service": 2, "public": 0, "stranger": 0, "webhook": 0}


# ---- the order


def test_positions_come_into_sight_in_their_order(database: Database, other: Database) -> None:
    """Step by step: who comes later waits for who came before, and a reader sees neither too early."""
    team(database)
    with ThreadPoolExecutor(1) as somebody:
        with database.begin(SYSTEM) as first:
            state.refresh(first, ["t_first"], cause="time")
            later = somebody.submit(refresh, other, "t_later")
            wait_until(lambda: waits(first) == 1)
            meanwhile = told_of(other)
        later.result()

    assert (meanwhile, told_of(database)) == ([], ["t_first", "t_later"])


def test_what_moves_no_version_waits_for_nobody(database: Database, other: Database) -> None:
    team(database)
    refresh(database, "t_other")

    with database.begin(SYSTEM) as first:
        state.refresh(first, ["t_first"], cause="time")
        refresh(other, "t_other")

    assert told_of(database) == ["t_other", "t_first"]


@pytest.mark.parametrize("is_lost", [False, True], ids=["rolled back", "connection lost"])
def test_a_transaction_that_ends_badly_leaves_nothing_a_reader_could_wait_for(
    database: Database, other: Database, *, is_lost: bool
) -> None:
    team(database)
    refresh(database, "t_1")
    before = end(database)

    def end_badly() -> None:
        with other.begin(SYSTEM) as connection:
            state.refresh(connection, ["t_2"], cause="time")
            if is_lost:
                lose_the_connection(connection)
            raise RuntimeError

    with pytest.raises((RuntimeError, ServiceUnavailable)):
        end_badly()
    refresh(database, "t_3")

    assert told_of(database, before) == ["t_3"]
    assert end(database).position == before.position + 1


def test_who_falls_silent_with_the_end_in_hand_loses_it_within_two_seconds(
    database: Database, other: Database
) -> None:
    """Or everybody's documents would wait for one frozen process as long as for any transaction."""
    team(database)
    refresh(database, "t_0")

    def fall_silent() -> None:
        with other.begin(SYSTEM) as connection:
            state.refresh(connection, ["t_silent"], cause="time")
            has_it.set()
            wait_until(lambda: not is_held(database))

    has_it = threading.Event()
    with ThreadPoolExecutor(1) as somebody:
        silent = somebody.submit(fall_silent)
        has_it.wait(10)
        assert is_held(database)
        with pytest.raises(ServiceUnavailable):
            silent.result()
    refresh(database, "t_1")

    assert told_of(database) == ["t_0", "t_1"]


def is_held(database: Database) -> bool:
    """Whether somebody has the end of the feed in hand."""
    with database.begin(SYSTEM) as connection:
        return not connection.execute(text("SELECT FROM feed FOR UPDATE SKIP LOCKED")).all()


def test_writers_of_the_same_tenants_and_of_the_catalogue_do_not_meet_in_a_deadlock(
    database: Database, other: Database
) -> None:
    """Batches with a hint about the catalogue hold its chore, too; all come together at the end of the feed."""
    team(database)
    keep_catalogue(database)
    for number in range(40):
        link(database, f"t_{number}", f"cus_{number}")
        answered(database, f"cus_{number}")

    def often(database: Database, *, backwards: bool) -> None:
        for _ in range(15):
            tenants = [f"t_{number}" for number in range(40)]
            with database.begin(SYSTEM) as connection:
                for tenant in sorted(tenants):
                    value = random.choice(["true", "false"])
                    overrides.put(connection, tenant, "sso", value, author="ana", reason="a promise")
                state.refresh(connection, tenants[::-1] if backwards else tenants, cause="time")

    def hint(database: Database) -> None:
        for number in range(15):
            keep(database, an_event("product.updated", {"id": f"prod_{number}", "object": "product"}))
            told(database, f"cus_{number}", id=f"sub_{number}")

    with ThreadPoolExecutor(3) as all_:
        done = [all_.submit(often, database, backwards=False), all_.submit(often, other, backwards=True)]
        done.append(all_.submit(hint, other))
        for one in done:
            one.result()

    assert len(told_of(database)) == 40


# ---- the harness


class Copy:
    """A consumer: it polls, keeps what it is told, and remembers the last position. Nothing else."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.since = START
        self.tenants: dict[str, str] = {}
        self.polls = 0

    def poll(self, most: int = 50) -> bool:
        """One request; whether there was anything."""
        entries = page(self._database, self.since, most).entries
        for entry in entries:
            self._apply(entry)
        self.polls += 1
        return bool(entries)

    def _apply(self, entry: Entry) -> None:
        self.since = entry.id
        if entry.body:
            self.tenants[entry.tenant_id] = entry.body
        else:
            self.tenants.pop(entry.tenant_id, None)


def run_the_harness(database: Database, other: Database, seconds: float) -> tuple[Copy, dict[str, str]]:
    """Eight writers of sixty tenants, and a reader all the while. The reader's copy, and the source."""
    copy, until = Copy(other), time.monotonic() + seconds
    counter = itertools.count()

    def write(chance: random.Random) -> None:
        while time.monotonic() < until:
            tenants = sorted(chance.sample([f"t_{number:02}" for number in range(60)], 2))
            with database.begin(SYSTEM) as connection:
                for tenant in tenants:
                    put(connection, tenant, next(counter))
                state.refresh(connection, tenants, cause="time")
                time.sleep(chance.choice([0, 0, 0.002, 0.01]))  # a commit that takes its time
                if chance.random() < 0.1:
                    connection.rollback()

    with ThreadPoolExecutor(9) as threads:
        writers = [threads.submit(patiently, write, random.Random(seed)) for seed in range(8)]
        while not all(one.done() for one in writers):
            copy.poll()
        for one in writers:
            one.result()
    while copy.poll():
        pass
    source = rows(database, "SELECT tenant_id, body FROM tenant_states WHERE version > 0")
    return copy, {row["tenant_id"]: row["body"] for row in source}


def patiently(write: Callable[[random.Random], None], chance: random.Random) -> None:
    """Again where the machine was too slow for a lock: that transaction has not happened."""
    while True:
        try:
            return write(chance)
        except ServiceUnavailable:
            pass


def put(connection: Connection, tenant: str, number: int) -> None:
    """Something that shows in the document; every fifth or so does not."""
    value = "true" if number % 5 else "false"
    overrides.put(connection, tenant, "seats", str(number // 2), author="ana", reason="a promise")
    overrides.put(connection, tenant, "sso", value, author="ana", reason="a promise")


@pytest.fixture
def busy(database_url: str) -> Iterator[Database]:
    """A pool for many writers."""
    database = Database(database_url, pool_size=9)
    yield database
    database.close()


def test_who_polls_while_many_write_ends_with_a_copy_of_the_source(
    database: Database, busy: Database, other: Database
) -> None:
    team(database)

    copy, source = run_the_harness(busy, other, 30 if IS_SOAK else 3)

    assert copy.tenants == source
    assert len(source) > 30
    assert copy.polls > 10


def test_with_a_sequence_in_its_place_the_same_harness_loses_changes(
    database: Database, busy: Database, other: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers of a sequence are given before the commit: a reader sees the later one, and goes on past it."""
    team(database)
    sequence = "SELECT nextval('plain') AS position FROM moved HAVING count(*) > 0"
    written = str(state._WRITE)
    assert feed.ADVANCED in written
    with psycopg.connect(plain(database_of(database)), autocommit=True) as connection:
        connection.execute("CREATE SEQUENCE plain INCREMENT BY 2")
    rows(database, "INSERT INTO feed (position) VALUES (10 ^ 12) RETURNING 1")  # no cursor is beyond it
    monkeypatch.setattr(state, "_WRITE", text(written.replace(feed.ADVANCED, sequence)))

    try:
        copies = [run_the_harness(busy, other, 1.5) for _ in range(3)]
    finally:
        with psycopg.connect(plain(database_of(database)), autocommit=True) as connection:
            connection.execute("DROP SEQUENCE plain")

    assert any(copy.tenants != source for copy, source in copies)


def database_of(database: Database) -> str:
    return database._engine.url.render_as_string(hide_password=False)


# ---- documents without a position


def written_by_the_release_before(database: Database, *tenants: str) -> None:
    """Its UPDATE says nothing of `position` and `fed`."""
    older = (
        "version = version + 1, changed_at = clock_timestamp(), body = replace(body, 'tenant_id', 'tenant_id')"
    )
    for tenant in tenants:
        rows(database, f"UPDATE tenant_states SET {older} WHERE tenant_id = :id RETURNING 1", id=tenant)


def test_what_the_release_before_writes_beside_this_one_is_taken_in_by_the_worker(
    database: Database, environ: dict[str, str]
) -> None:
    team(database)
    refresh(database, "t_1", "t_2", "t_3")
    before = end(database)
    keep_catalogue(database)
    written_by_the_release_before(database, "t_2", "t_1")
    assert told_of(database, before) == []

    with a_worker(environ, catalogues=True) as worker:
        work_until(worker, lambda: bool(told_of(database, before)))

    assert told_of(database, before) == ["t_1", "t_2"]
    assert clock.enter(database) == 0


def test_a_document_that_was_missed_and_changes_again_is_told_of_once(database: Database) -> None:
    team(database)
    refresh(database, "t_1")
    before = end(database)
    written_by_the_release_before(database, "t_1")

    override(database, "t_1", "true")

    assert (told_of(database, before), clock.enter(database)) == (["t_1"], 0)


def test_documents_from_before_the_feed_enter_it_in_chunks(database: Database) -> None:
    team(database)
    some = "SELECT 't_' || lpad(n::text, 4, '0') FROM generate_series(1, 1200) AS n"
    rows(database, f"INSERT INTO tenant_states (tenant_id) {some} RETURNING 1")
    while clock.catch_up(database):
        pass
    rows(database, "UPDATE tenant_states SET fed = 0, position = NULL RETURNING 1")
    rows(database, "UPDATE tenant_states SET as_of = NULL WHERE tenant_id = 't_0007' RETURNING 1")

    chunks = [clock.enter(database) for _ in range(4)]

    assert chunks == [500, 500, 199, 0]
    assert told_of(database) == [f"t_{number:04}" for number in range(1, 502) if number != 7]


def test_taking_in_leaves_those_alone_whom_somebody_is_writing(database: Database, other: Database) -> None:
    team(database)
    refresh(database, "t_1", "t_2")
    before = end(database)
    written_by_the_release_before(database, "t_1", "t_2")

    with other.begin(SYSTEM) as writer:
        writer.execute(text("SELECT FROM tenant_states WHERE tenant_id = 't_1' FOR UPDATE"))
        entered = clock.enter(database)

    assert (entered, told_of(database, before)) == (1, ["t_2"])


def test_a_killed_worker_takes_in_a_whole_chunk_or_nothing(database: Database, other: Database) -> None:
    team(database)
    refresh(database, "t_1", "t_2")
    before = end(database)
    written_by_the_release_before(database, "t_1", "t_2")

    def be_killed() -> None:
        with other.begin(SYSTEM) as connection:
            state.enter(connection)
            lose_the_connection(connection)

    with pytest.raises(ServiceUnavailable):
        be_killed()

    assert told_of(database, before) == []
    assert clock.enter(database) == 2
    assert told_of(database, before) == ["t_1", "t_2"]


# ---- size


def explained(database: Database, query: str, **values: object) -> str:
    """The plan for any values, as of a statement that was prepared."""
    with database.begin(SERVICE) as connection:
        driver = psycopg.Cursor(connection.connection.driver_connection)  # type: ignore[arg-type]  # psycopg's
        driver.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        for number, name in enumerate(values, 1):
            query = query.replace(f"%({name})s", f"${number}")
        driver.execute(f"PREPARE asked AS {query}")
        driver.execute("EXPLAIN EXECUTE asked ({})".format(", ".join(map(repr, values.values()))))
        plan = "\n".join(row[0] for row in driver.fetchall())
        driver.execute("DEALLOCATE asked")
        return plan


def test_among_many_tenants_a_page_is_read_along_the_index_and_so_is_what_has_no_position(
    database: Database, database_url: str
) -> None:
    """The million behaves like this hundred thousand: the plans are the same, and no sort is in them."""
    body = '{"features": "' + "x" * 700 + '"}'
    with psycopg.connect(plain(database_url), autocommit=True) as connection:
        connection.execute("SELECT set_config('billing.scope', 'system', false)")
        connection.execute(
            "INSERT INTO tenant_states (tenant_id, version, body, edition, as_of, changed_at, position, fed)"
            " SELECT 't_' || n, 1, %s, 1, now(), now(), (n * 7919) %% 100003, 1"
            " FROM generate_series(1, 100000) AS n",
            [body],
        )
        connection.execute("INSERT INTO feed (position) VALUES (100003)")
        connection.execute("ANALYZE tenant_states")

    reading = explained(database, feed._READ, epoch="x", position=5, most=200)
    with database.begin(SYSTEM) as connection:
        along_indexes(connection)
        taking_in = "\n".join(connection.scalars(text(f"EXPLAIN {state._ENTER}"), {"most": 500}))

    assert "Index Scan using uq_tenant_states_position" in reading
    assert "Seq Scan on tenant_states" not in reading
    assert "Index Scan using ix_tenant_states_unfed" in taking_in
    assert "Seq Scan on tenant_states" not in taking_in


# ---- the epoch


def test_after_a_rewind_every_consumer_starts_over(database: Database) -> None:
    team(database)
    refresh(database, "t_1", "t_2")
    before = end(database)
    assert told_of(database, before) == []

    with database.begin(SYSTEM) as connection:
        feed.rewind(connection)

    after = page(database, before)
    assert [entry.tenant_id for entry in after.entries] == ["t_1", "t_2"]
    assert after.entries[-1].id.position == before.position
    assert after.entries[-1].id.epoch != before.epoch


def test_a_position_beyond_the_end_leads_to_the_beginning(database: Database) -> None:
    team(database)
    refresh(database, "t_1", "t_2")
    last = end(database)

    assert told_of(database, Cursor(last.epoch, last.position + 1)) == ["t_1", "t_2"]
    assert told_of(database, Cursor(last.epoch, 10**15)) == ["t_1", "t_2"]
    assert told_of(database, Cursor("0123456789", last.position)) == ["t_1", "t_2"]


def test_two_databases_of_a_server_have_epochs_of_their_own(database: Database, server_url: str) -> None:
    """Also where one is a copy of the other's files, the seed included."""
    team(database)
    refresh(database, "t_1")
    with a_twin(server_url, database_of(database)) as copied:
        assert end(copied).position == end(database).position == 1
        assert end(copied).epoch != end(database).epoch


@contextmanager
def a_twin(server_url: str, url: str) -> Iterator[Database]:
    """A database made with this one as its template, which nobody may be in meanwhile."""
    name = url.rsplit("/", 1)[1].split("?")[0]
    copied = Database(url.replace(name, f"{name}_copy"), pool_size=1)
    with psycopg.connect(server_url, autocommit=True) as server:
        server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        server.execute(f'CREATE DATABASE "{name}_copy" TEMPLATE "{name}" OWNER billing_test')
        try:
            yield copied
        finally:
            copied.close()
            server.execute(f'DROP DATABASE "{name}_copy" WITH (FORCE)')


def test_a_replica_that_is_promoted_begins_an_epoch_though_it_has_every_position() -> None:
    """It may have missed the last seconds, and give the same numbers to others."""
    with a_postgres() as primary:
        with psycopg.connect(primary.url, autocommit=True) as owner:
            owner.execute("CREATE ROLE billing LOGIN")
            owner.execute("CREATE DATABASE billing OWNER billing")
        alembic(service_of(primary), "upgrade", "head")
        with service_at(primary) as database, a_copy_of_what(primary, database) as replica:
            known = end(database)
            with service_at(replica) as promoted:
                with pytest.raises(ServiceUnavailable):
                    page(promoted, known)  # it takes no writes, and is not asked

                with psycopg.connect(replica.url, autocommit=True) as owner:
                    assert owner.execute("SELECT pg_promote()").fetchone() == (True,)

                assert told_of(promoted, known) == ["t_1", "t_2"]
                assert end(promoted).position == known.position
            assert (end(database), told_of(database, known)) == (known, [])  # and this one goes on


@contextmanager
def a_copy_of_what(primary: Postgres, database: Database) -> Iterator[Postgres]:
    """A replica that has two tenants."""
    team(database)
    refresh(database, "t_1", "t_2")
    with a_copy_of(primary) as replica:
        yield replica


@contextmanager
def service_at(server: Postgres) -> Iterator[Database]:
    """The service's way in there."""
    with closing(Database(service_of(server), pool_size=2)) as database:
        yield database


def service_of(server: Postgres) -> str:
    """The address of an ordinary role."""
    return server.url.replace("postgres@/postgres", "billing@/billing")
