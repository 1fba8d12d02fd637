"""A worker with a backlog, beside a loop that does the least one can: `python -m bench.drain`.

Both find the same events stored and due, changes of many linked customers' subscriptions, none in doubt. The
loop takes 500 at a time, reads them, keeps what is newest and marks them done; it judges nothing, locks nobody
and keeps six columns. The worker is a process as deployed, measured from the moment it is ready. Afterwards
every subscription must stand as its last event says, and Stripe must not have been asked. Contestants take
turns; every verdict is a ratio taken within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psycopg

from bench import events, machine
from bench.limits import spread, verdict
from bench.load import TENANTS
from bench.machine import ROOT, Database
from billing.stripe_api import API_VERSION

RATIO = 0.3
MEGABYTES = 150
BATCH = 500
DAY = 24 * 3600
PATIENCE_SECONDS = 300

MAKE = """
    CREATE TABLE stored (place int PRIMARY KEY, event_id text, type text, object_id text, customer text,
                         created bigint, body bytea);
    CREATE TABLE bare_inbox (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, event_id text NOT NULL UNIQUE,
                             type text NOT NULL, body bytea NOT NULL, done boolean NOT NULL DEFAULT false);
    CREATE INDEX ON bare_inbox (id) WHERE NOT done;
    CREATE TABLE bare_subscriptions (id text PRIMARY KEY, customer text NOT NULL, status text NOT NULL,
                                     cancel_at bigint, price text NOT NULL, created bigint NOT NULL);
"""
EMPTY = """
    TRUNCATE bare_inbox, bare_subscriptions;
    TRUNCATE inbox, stripe_customers, subscriptions, subscription_items, invoices, stripe_reads, chores;
    INSERT INTO chores SELECT name, now() + interval '1 day'
    FROM unnest('{sweep,prune,walk,undelivered}'::text[]) AS name;
"""
FILL_OURS = f"""
    INSERT INTO inbox (event_id, type, object_id, customer, created, api_version, livemode, sent_at, body)
    SELECT event_id, type, object_id, customer, to_timestamp(created), '{API_VERSION}', false,
           to_timestamp(created), body
    FROM stored ORDER BY place
"""
FILL_BARE = (
    "INSERT INTO bare_inbox (event_id, type, body) SELECT event_id, type, body FROM stored ORDER BY place"
)
SETTLED = "SELECT count(*) FROM inbox WHERE state = 'settled' AND reason IS NULL"
OURS_HELD = "SELECT stripe_customer_id, extract(epoch FROM cancel_at)::bigint FROM subscriptions"
BARE_HELD = "SELECT customer, cancel_at FROM bare_subscriptions"
ASKED = "SELECT coalesce(sum(put), 0) FROM stripe_customers"

TAKE = "SELECT id, body FROM bare_inbox WHERE NOT done ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED"
UPSERT = """
    INSERT INTO bare_subscriptions
    SELECT * FROM unnest(%b::text[], %b::text[], %b::text[], %b::bigint[], %b::text[], %b::bigint[])
    ON CONFLICT (id) DO UPDATE SET customer = excluded.customer, status = excluded.status,
        cancel_at = excluded.cancel_at, price = excluded.price, created = excluded.created
    WHERE bare_subscriptions.created <= excluded.created
"""
DONE = "UPDATE bare_inbox SET done = true WHERE id = ANY(%b)"


@dataclass(frozen=True)
class Run:
    """One contestant's turn; CPU is microseconds per event."""

    rate: float
    own_cpu: float
    database_cpu: float
    megabytes: float

    @property
    def cpu(self) -> float:
        return self.own_cpu + self.database_cpu


class Backlog:
    """A database with a backlog for either contestant, as often as wanted."""

    def __init__(self, database: Database, resources: ExitStack, count: int) -> None:
        self._database = database
        self._count = count
        self.mine = resources.enter_context(psycopg.connect(database.plain_url, autocommit=True))
        self.mine.execute("SELECT set_config('billing.scope', 'system', false)")
        self.mine.execute(MAKE)
        customers = [f"cus_{tenant}" for tenant in TENANTS]
        made = list(events.changes(count, customers, int(time.time()) - 30 * DAY))
        self._last = {
            one.customer: events.CANCEL_AT + place // len(customers) for place, one in enumerate(made)
        }
        with self.mine.cursor().copy("COPY stored FROM STDIN") as copy:
            for place, one in enumerate(made):
                copy.write_row((place, one.id, one.type, one.object_id, one.customer, one.created, one.body))

    def fill(self, statement: str, table: str) -> None:
        """Nothing but these events, all due."""
        self.mine.execute(EMPTY)
        self.mine.execute(statement)
        self.mine.execute(f"VACUUM ANALYZE {table}")

    def check(self, held: str) -> None:
        """Every subscription is held as its last event says."""
        if dict(self.mine.execute(held).fetchall()) != self._last:
            sys.exit("What is held afterwards is not what the events say.")

    @contextmanager
    def measured(self, pid: int) -> Iterator[list[Run]]:
        """The cost of what happens in the block, to one process and to the database, noted at its end."""
        runs: list[Run] = []
        began, own, database = time.monotonic(), machine.cpu_seconds([pid]), self._cpu()
        yield runs
        seconds = time.monotonic() - began
        own, database = machine.cpu_seconds([pid]) - own, self._cpu() - database
        each = 1e6 / self._count
        runs.append(Run(self._count / seconds, own * each, database * each, machine.megabytes(pid)))

    def _cpu(self) -> float:
        return machine.cpu_seconds(self._database.backends())


def ours(backlog: Backlog, environ: dict[str, str], log: Path, count: int) -> Run:
    """A worker process, from ready to everything settled."""
    backlog.fill(FILL_OURS, "inbox")
    log.write_bytes(b"")
    with machine.started(sys.executable, "-m", "billing.worker", log=log, env=environ, cwd=ROOT) as worker:
        said = _said(log)
        while next(said).get("event") != "worker.ready":
            pass
        with backlog.measured(worker.pid) as runs:
            applied = 0
            while applied < count:
                line = next(said)
                applied += line["events"] if line.get("event") == "inbox.applied" else 0
    if backlog.mine.execute(SETTLED).fetchone() != (count,):
        sys.exit("The worker did not settle every event.")
    if backlog.mine.execute(ASKED).fetchone() != (0,):
        sys.exit("Nothing was in doubt, and Stripe was asked.")
    backlog.check(OURS_HELD)
    return runs[0]


def _said(log: Path) -> Iterator[dict[str, Any]]:
    """The lines of a log, as they are written."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    with log.open() as lines:
        rest = ""
        while time.monotonic() < deadline:
            rest += lines.readline()
            if rest.endswith("\n"):
                yield json.loads(rest)
                rest = ""
            else:
                time.sleep(0.005)
    sys.exit(f"{log.read_text()[-2000:]}\nThe worker is too slow; its last words are above.")


def bare(backlog: Backlog, url: str, count: int) -> Run:
    """The loop, in this process."""
    backlog.fill(FILL_BARE, "bare_inbox")
    with psycopg.connect(url) as connection:
        with backlog.measured(os.getpid()) as runs:
            while taken := _take(connection):
                count -= taken
    if count:
        sys.exit("The loop did not take every event.")
    backlog.check(BARE_HELD)
    return runs[0]


def _take(connection: psycopg.Connection[Any]) -> int:
    with connection.transaction():
        rows = connection.execute(TAKE, [BATCH]).fetchall()
        newest: dict[str, tuple[Any, ...]] = {}
        for _, body in rows:
            facts = _facts(json.loads(body))
            if facts[0] not in newest or newest[facts[0]][-1] <= facts[-1]:
                newest[facts[0]] = facts
        if rows:
            columns = [list(column) for column in zip(*newest.values(), strict=True)]
            connection.execute(UPSERT, columns)
            connection.execute(DONE, [[id for id, _ in rows]])
    return len(rows)


def _facts(event: dict[str, Any]) -> tuple[Any, ...]:
    one = event["data"]["object"]
    price = one["items"]["data"][0]["price"]["id"]
    return one["id"], one["customer"], one["status"], one["cancel_at"], price, event["created"]


def main() -> int:
    options = _options()
    rounds: list[dict[str, Run]] = []
    with tempfile.TemporaryDirectory(prefix="billing-bench-") as scratch, ExitStack() as resources:
        Path(scratch).chmod(0o711)  # PostgreSQL may run as somebody else
        server = resources.enter_context(machine.postgres(Path(scratch)))
        database = resources.enter_context(machine.database(server, TENANTS))
        backlog = Backlog(database, resources, options.events)
        log, environ = Path(scratch) / "worker.log", machine.environ(database, secrets.token_hex(32))
        for number in range(options.rounds):
            turns = {
                "ours": lambda: ours(backlog, environ, log, options.events),
                "bare": lambda: bare(backlog, database.plain_url, options.events),
            }
            order = list(turns) if number % 2 else list(reversed(turns))
            rounds.append({name: turns[name]() for name in order})
            said = "  ".join(f"{name} {run.rate:.0f}/s" for name, run in rounds[-1].items())
            print(f"round {number + 1}  {said}", flush=True)
    return _report(rounds)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.drain", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--events", type=int, default=20_000)
    return parser.parse_args()


def _report(rounds: Sequence[dict[str, Run]]) -> int:
    print(f"\n{'':8}{'events/s':>22}{'CPU us: own':>20}{'database':>20}{'MB':>6}")
    for name in ("ours", "bare"):
        runs = [turns[name] for turns in rounds]
        columns = (f"{spread([getattr(run, of) for run in runs]):>20}" for of in ("own_cpu", "database_cpu"))
        print(
            f"{name:8}{spread([run.rate for run in runs]):>22}{''.join(columns)}"
            f"{max(run.megabytes for run in runs):6.0f}"
        )
    ratios = [turns["ours"].rate / turns["bare"].rate for turns in rounds]
    costs = [turns["ours"].cpu / turns["bare"].cpu for turns in rounds]
    size = max(turns["ours"].megabytes for turns in rounds)
    print(f"\nCPU per event over the bare loop: {spread(costs, 2)}")
    return not all(
        (
            verdict(median(ratios) >= RATIO, f"rate over the bare loop, at least {RATIO}", spread(ratios, 2)),
            verdict(size <= MEGABYTES, f"MB of the worker, at most {MEGABYTES}", f"{size:.0f}"),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
