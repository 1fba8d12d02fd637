"""What a tenant may use, read beside a bare Flask route and an ORM: `python -m bench.entitlements`.

All run under the service's own gunicorn.conf.py, on one PostgreSQL, without telemetry, and are asked first for
documents, then whether these have changed, on behalf of many tenants. The bare route knows nobody and answers
as many bytes; the ORM's reads one row, by the tenant of a token that the same library verifies; the service is
the whole of it as deployed. Each size of table has a database of its own. All are started once and then take
short turns in shuffled order; every verdict is a ratio of turns taken one after the other.
"""

from __future__ import annotations

import argparse
import random
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median

from bench import documents, machine
from bench.acks import Run
from bench.limits import spread, verdict
from bench.load import Clients, Wish
from bench.machine import ROOT, Database
from bench.portal import OURS, WORKERS

RATIO = 2.5
MOVES = 0.1
MOST_READERS = 50_000  # tenants on whose behalf anybody asks
READ = Wish("GET", "/api/entitlements")
ANSWERS = (200, 304)
COMMANDS = {
    "ours": OURS,
    "orm": (*OURS[:-1], "bench.bare:look_up"),
    "bare": (*OURS[:-1], "bench.bare:say"),
}


@dataclass(frozen=True)
class Case:
    """Who is asked, among how many tenants, and what the answer is."""

    name: str
    tenants: int
    status: int


@dataclass(frozen=True)
class Server:
    """Somebody to ask, and what for."""

    process: int
    port: int
    wishes: dict[int, Wish]


class Arena:
    """A database with so many tenants, and those who read it."""

    def __init__(self, server: str, tenants: int, scratch: Path, resources: ExitStack) -> None:
        scratch.mkdir()
        self._log = scratch / "server.log"
        self._database: Database = resources.enter_context(machine.database(server, []))
        documents.fill(self._database, tenants)
        key = secrets.token_hex(32)
        readers = random.sample(range(tenants), min(tenants, MOST_READERS))
        self._clients = Clients(key, scratch, map(documents.tenant, readers))
        self._environ = {**machine.environ(self._database, key), "WEB_CONCURRENCY": WORKERS}
        self._servers = {name: self._start(name, resources) for name in COMMANDS}

    def measure(self, case: Case, clients: int, seconds: int) -> Run:
        """One turn."""
        server = self._servers[case.name]
        before = self._cpu(server)
        seen = self._clients.ask(server.port, clients=clients, seconds=seconds, wish=server.wishes[case.status])
        used = [after - was for after, was in zip(self._cpu(server), before, strict=True)]
        return Run(seen, *(part * 1e6 / seen.answers for part in used))

    def _start(self, name: str, resources: ExitStack) -> Server:
        port = machine.free_port()
        environ = {**self._environ, "PORT": str(port)}
        started = machine.started(*COMMANDS[name], log=self._log, env=environ, cwd=ROOT)
        process = resources.enter_context(started)
        machine.wait_for_port(port, process, self._log)
        wishes = self._wishes(name, port)
        self._clients.ask(port, clients=16, seconds=1, wish=READ)
        return Server(process.pid, port, wishes)

    def _wishes(self, name: str, port: int) -> dict[int, Wish]:
        """What to ask for, seen to be answered so. All tenants' documents have one tag."""
        _, tag = self._clients.first(port, READ)
        wishes = dict(zip(ANSWERS, (READ, replace(READ, tag=tag)), strict=True))
        answered = [self._clients.first(port, wish)[0] for wish in wishes.values()]
        if answered != list(ANSWERS):
            sys.exit(f"{name} answered {answered}: there is nothing to compare.")
        return wishes

    def _cpu(self, server: Server) -> tuple[float, float]:
        """Seconds so far: the server, its workers that were replaced meanwhile included, and its backends."""
        server_seconds = machine.cpu_seconds(machine.tree(server.process), ended_children=True)
        return server_seconds, machine.cpu_seconds(self._database.backends())


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended on the way out
    rounds: list[dict[Case, Run]] = []
    with tempfile.TemporaryDirectory(prefix="billing-bench-") as name, ExitStack() as resources:
        scratch = Path(name)
        scratch.chmod(0o711)  # PostgreSQL may run as somebody else
        server = resources.enter_context(machine.postgres(scratch))
        arenas = {tenants: _arena(server, tenants, scratch, resources) for tenants in options.tenants}
        for number in range(options.rounds):
            rounds.append({})
            for case in _turns(options.tenants):
                run = arenas[case.tenants].measure(case, options.clients, options.seconds)
                rounds[-1][case] = run
                who = f"{case.tenants:9,} {case.name:4} {case.status}"
                print(f"round {number + 1} {who} {run.rate:6.0f}/s {run.cpu:6.0f} us", flush=True)
    return _report(rounds, options.tenants)


def _turns(sizes: Sequence[int]) -> Iterator[Case]:
    """Those that are compared come one after the other."""
    comparisons = list(product(sizes, ANSWERS))
    for tenants, status in random.sample(comparisons, len(comparisons)):
        for name in random.sample(list(COMMANDS), len(COMMANDS)):
            yield Case(name, tenants, status)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.entitlements", description=__doc__)
    parser.add_argument("--tenants", type=int, nargs="+", default=[1_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=int, default=2, help="how long each turn is")
    parser.add_argument("--clients", type=int, default=16)
    return parser.parse_args()


def _arena(server: str, tenants: int, scratch: Path, resources: ExitStack) -> Arena:
    began = time.monotonic()
    arena = Arena(server, tenants, scratch / str(tenants), resources)
    print(f"{tenants:,} tenants made in {time.monotonic() - began:.0f} s", flush=True)
    return arena


def _report(rounds: Sequence[dict[Case, Run]], sizes: Sequence[int]) -> int:
    print(f"\nMedian (min-max) of {len(rounds)} rounds, without telemetry")
    print(f"{'':18}{'reads/s':>20}{'p50 ms':>18}{'p99 ms':>22}{'CPU us: server':>20}{'database':>16}")
    for tenants, status, name in product(sizes, ANSWERS, COMMANDS):
        runs = [turns[Case(name, tenants, status)] for turns in rounds]
        print(
            f"{tenants:9,} {name:4} {status:3}{spread([run.rate for run in runs]):>20}"
            f"{spread([run.seen.p50 for run in runs], 1):>18}{spread([run.seen.p99 for run in runs], 1):>22}"
            f"{spread([run.server_cpu for run in runs]):>20}{spread([run.database_cpu for run in runs]):>16}"
        )
    print()
    verdicts = [_is_faster(rounds, tenants, status) for status in ANSWERS for tenants in sizes]
    verdicts += [_stays(rounds, min(sizes), max(sizes), status) for status in ANSWERS if len(sizes) > 1]
    failures = sum(run.seen.failures for turns in rounds for run in turns.values())
    return not all((*verdicts, verdict(not failures, "reads that failed, none", str(failures))))


def _is_faster(rounds: Sequence[dict[Case, Run]], tenants: int, status: int) -> bool:
    ratios = _ratios(rounds, "orm", tenants, status)
    ours, orm = (Case(name, tenants, status) for name in ("ours", "orm"))
    cpu = spread([turns[ours].cpu / turns[orm].cpu for turns in rounds], 2)
    what = f"{status} among {tenants:,}: rate over the ORM's, at least {RATIO:g}"
    beside_bare = spread(_ratios(rounds, "bare", tenants, status), 2)
    return verdict(
        median(ratios) >= RATIO, what, f"{spread(ratios, 2)}; CPU {cpu}; rate over the bare route {beside_bare}"
    )


def _stays(rounds: Sequence[dict[Case, Run]], few: int, many: int, status: int) -> bool:
    of_many, of_few = (_ratios(rounds, "orm", tenants, status) for tenants in (many, few))
    moved = [large / small for large, small in zip(of_many, of_few, strict=True)]
    what = f"{status}: that ratio among {many:,} over among {few:,}, {1 - MOVES:g} to {1 + MOVES:g}"
    return verdict(abs(median(moved) - 1) <= MOVES, what, spread(moved, 2))


def _ratios(rounds: Sequence[dict[Case, Run]], rival: str, tenants: int, status: int) -> list[float]:
    ours, theirs = (Case(name, tenants, status) for name in ("ours", rival))
    return [turns[ours].rate / turns[theirs].rate for turns in rounds]


if __name__ == "__main__":
    sys.exit(main())
