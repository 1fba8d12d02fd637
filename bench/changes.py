"""The feed of changes beside a bare Flask route: `python -m bench.changes`.

Among many tenants, by the token of a service: asking at the end of the feed whether there is anything new,
reading it 200 changes at a time from places all over it, and asking about one tenant after the other. The bare
route knows nobody and answers as many bytes. Before that every document gets its position, as after the release
that brought the feed. Both are started once and then take short turns in shuffled order, under the service's
own gunicorn.conf.py, without telemetry; every verdict is a ratio of turns taken one after the other.
"""

from __future__ import annotations

import argparse
import random
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median

from bench import documents, machine
from bench.acks import Run
from bench.entitlements import COMMANDS
from bench.limits import spread, verdict
from bench.load import Services
from bench.machine import ROOT, Database
from bench.portal import WORKERS
from billing import clock, feed, tokens
from billing.db import SERVICE, SYSTEM
from billing.db import Database as Ours
from billing.feed import Cursor

BATCH = 200
PLACES = 5_000  # all over the feed; and as many tenants
END, CHANGES, DOCUMENT = "304 at the end", "200 changes", "a document"
LEAST = {END: 0.2, CHANGES: 0.1, DOCUMENT: 0.2}  # of the bare route's rate; measured: 0.24, 0.12, 0.26
CONTESTANTS = ("ours", "bare")


@dataclass(frozen=True)
class Wish:
    """Which paths are asked for in turn, with which tag, and the status that answers."""

    paths: Sequence[str]
    status: int
    tag: str | None = None


class Arena:
    """A feed of so many tenants, and those who follow it."""

    def __init__(self, tenants: int, scratch: Path, resources: ExitStack) -> None:
        self._log = scratch / "server.log"
        server = resources.enter_context(machine.postgres(scratch))
        self._database: Database = resources.enter_context(machine.database(server, []))
        documents.fill(self._database, tenants)
        token, end = _fed(self._database, tenants)
        self._wishes = _wishes(end, tenants)
        self._services = Services(token, scratch)
        self._environ = {**machine.environ(self._database, secrets.token_hex(32)), "WEB_CONCURRENCY": WORKERS}
        self._servers = {name: self._start(name, resources) for name in CONTESTANTS}

    def measure(self, name: str, case: str, clients: int, seconds: int) -> Run:
        """One turn."""
        process, port = self._servers[name]
        wish = self._wishes[case]
        before = self._cpu(process)
        seen = self._services.ask(port, wish.paths, clients=clients, seconds=seconds, tag=wish.tag)
        used = [after - was for after, was in zip(self._cpu(process), before, strict=True)]
        return Run(seen, *(part * 1e6 / seen.answers for part in used))

    def _start(self, name: str, resources: ExitStack) -> tuple[int, int]:
        port = machine.free_port()
        environ = {**self._environ, "PORT": str(port)}
        started = machine.started(*COMMANDS[name], log=self._log, env=environ, cwd=ROOT)
        process = resources.enter_context(started)
        machine.wait_for_port(port, process, self._log)
        for case, wish in self._wishes.items():
            tag = wish.tag if name == "ours" or not wish.tag else 'W/"1"'
            status, _, body = self._services.first(port, wish.paths[0], tag)
            if status != wish.status:
                sys.exit(f"{name} answered {status} instead of {wish.status}: there is nothing to compare.")
            print(f"{name}: {case} is {len(body):,} bytes", flush=True)
        return process.pid, port

    def _cpu(self, process: int) -> tuple[float, float]:
        """Seconds so far: the server, its workers that were replaced meanwhile included, and its backends."""
        server_seconds = machine.cpu_seconds(machine.tree(process), ended_children=True)
        return server_seconds, machine.cpu_seconds(self._database.backends())


def _fed(database: Database, tenants: int) -> tuple[str, Cursor]:
    """A service's token, and the end of the feed once every document is in it."""
    db = Ours(database.url, pool_size=1)
    began, entered = time.monotonic(), 0
    while chunk := clock.enter(db):
        entered += chunk
    took = time.monotonic() - began
    print(f"{entered:,} documents entered the feed in {took:.0f} s, {entered / took:,.0f} a second", flush=True)
    with db.begin(SYSTEM) as connection:
        token, _ = tokens.create(connection, "bench", (tokens.READ,), None)
    epoch = db.run(SERVICE, feed.read(Cursor(), 1)).since.epoch
    db.close()
    return token, Cursor(epoch, tenants)


def _wishes(end: Cursor, tenants: int) -> dict[str, Wish]:
    places = [Cursor(end.epoch, random.randrange(max(1, tenants - BATCH))) for _ in range(PLACES)]
    asked = [documents.tenant(random.randrange(tenants)) for _ in range(PLACES)]
    return {
        END: Wish([f"/api/changes?lastEventId={end}"], 304, f'W/"{end}"'),
        CHANGES: Wish([f"/api/changes?lastEventId={place}&limit={BATCH}" for place in places], 200),
        DOCUMENT: Wish([f"/api/tenants/{tenant}/entitlements" for tenant in asked], 200),
    }


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended on the way out
    rounds: list[dict[tuple[str, str], Run]] = []
    with tempfile.TemporaryDirectory(prefix="billing-bench-") as name, ExitStack() as resources:
        scratch = Path(name)
        scratch.chmod(0o711)  # PostgreSQL may run as somebody else
        arena = Arena(options.tenants, scratch, resources)
        for number in range(options.rounds):
            rounds.append({})
            for case in random.sample(list(LEAST), len(LEAST)):
                for who in random.sample(CONTESTANTS, len(CONTESTANTS)):
                    run = arena.measure(who, case, options.clients, options.seconds)
                    rounds[-1][who, case] = run
                    print(f"round {number + 1} {who} {case:14} {run.rate:6.0f}/s {run.cpu:6.0f} us", flush=True)
    return _report(rounds, options.tenants)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.changes", description=__doc__)
    parser.add_argument("--tenants", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=int, default=2, help="how long each turn is")
    parser.add_argument("--clients", type=int, default=16)
    return parser.parse_args()


def _report(rounds: Sequence[dict[tuple[str, str], Run]], tenants: int) -> int:
    print(f"\nMedian (min-max) of {len(rounds)} rounds among {tenants:,} tenants, without telemetry")
    print(f"{'':20}{'answers/s':>20}{'p50 ms':>18}{'p99 ms':>22}{'CPU us: server':>20}{'database':>16}")
    for case, who in product(LEAST, CONTESTANTS):
        runs = [turns[who, case] for turns in rounds]
        print(
            f"{case:15}{who:5}{spread([run.rate for run in runs]):>20}"
            f"{spread([run.seen.p50 for run in runs], 1):>18}{spread([run.seen.p99 for run in runs], 1):>22}"
            f"{spread([run.server_cpu for run in runs]):>20}{spread([run.database_cpu for run in runs]):>16}"
        )
    print()
    verdicts = []
    for case, least in LEAST.items():
        ratios = [turns["ours", case].rate / turns["bare", case].rate for turns in rounds]
        what = f"{case}: rate over the bare route's, at least {least:g}"
        verdicts.append(verdict(median(ratios) >= least, what, spread(ratios, 2)))
    failures = sum(run.seen.failures for turns in rounds for run in turns.values())
    return not all((*verdicts, verdict(not failures, "answers that failed, none", str(failures))))


if __name__ == "__main__":
    sys.exit(main())
