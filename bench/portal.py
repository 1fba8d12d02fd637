"""The portal route beside two bare Flask routes that do the least one can: `python -m bench.portal`.

Contestants take turns in shuffled order, each freshly started, warmed, and left to finish what the warm-up
abandoned. On a shared machine only runs of one round can be compared, so every verdict is a ratio taken within
rounds. The table is all that is left behind; exit code 1 when a limit does not hold.
"""

from __future__ import annotations

import argparse
import os
import random
import secrets
import signal
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from bench import machine
from bench.load import TENANTS, Answers, Clients
from bench.machine import ROOT, Database

WORKERS = "2"
WARM_UP_SECONDS = 1
GUNICORN = (sys.executable, "-m", "gunicorn")
OURS = (*GUNICORN, "-c", "gunicorn.conf.py", "wsgi:app")
BARE = (*GUNICORN, "--no-control-socket", "--keep-alive", "95", "--worker-class", "gthread")


@dataclass(frozen=True)
class Load:
    """How many ask at once, and how long Stripe takes."""

    clients: int
    stripe_milliseconds: int

    def __str__(self) -> str:
        return f"{self.clients} clients, Stripe at {self.stripe_milliseconds} ms"


CROWD = Load(clients=256, stripe_milliseconds=200)
STEADY = Load(clients=16, stripe_milliseconds=0)


@dataclass(frozen=True)
class Contestant:
    """A server and the load it is measured under. `traced` gives it a collector to export to."""

    name: str
    load: Load
    command: tuple[str, ...]
    traced: bool = False
    environ: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_ours(self) -> bool:
        return self.command == OURS


CONTESTANTS = (
    Contestant("crowd: ours", CROWD, OURS),
    Contestant("crowd: bare, releasing", CROWD, (*BARE, "--threads", "32", "bench.bare:release")),
    Contestant("crowd: bare, holding", CROWD, (*BARE, "--threads", "32", "bench.bare:hold")),
    Contestant("cpu: ours", STEADY, OURS),
    Contestant("cpu: ours, traced", STEADY, OURS, traced=True),
    Contestant("cpu: bare, holding", STEADY, (*BARE, "--threads", "8", "bench.bare:hold")),
)


@dataclass(frozen=True)
class Run:
    """One contestant's turn. CPU is milliseconds per answer; `foreign` is how many cores others used."""

    seen: Answers
    server_cpu: float
    database_cpu: float
    megabytes: float
    foreign: float

    @property
    def rate(self) -> float:
        return self.seen.answers / self.seen.seconds

    @property
    def cpu(self) -> float:
        return self.server_cpu + self.database_cpu


@dataclass(frozen=True)
class Limit:
    """What must hold: a ratio of two contestants, its median over the rounds at least or at most a bound."""

    what: str
    over: str
    under: str
    bound: float
    is_rate: bool = False  # else CPU per answer

    def ratios(self, rounds: list[dict[str, Run]]) -> list[float]:
        value = "rate" if self.is_rate else "cpu"
        return [
            getattr(runs[self.over], value) / getattr(runs[self.under], value)
            for runs in rounds
            if self.over in runs and self.under in runs
        ]

    def holds(self, ratio: float) -> bool:
        return ratio >= self.bound if self.is_rate else ratio <= self.bound


LIMITS = (
    Limit("rate over bare, releasing", "crowd: ours", "crowd: bare, releasing", 1.5, is_rate=True),
    Limit("rate over bare, holding", "crowd: ours", "crowd: bare, holding", 4, is_rate=True),
    Limit("CPU over bare, holding", "cpu: ours", "cpu: bare, holding", 1.2),
    Limit("CPU with telemetry over without", "cpu: ours, traced", "cpu: ours", 1.25),
)
MEGABYTES_PER_WORKER = 120


class Arena:
    """What all contestants share: the database, Stripe, the collector, the clients."""

    def __init__(self, scratch: Path, resources: ExitStack) -> None:
        self._scratch = scratch
        self._resources = resources
        key = secrets.token_hex(32)
        self._clients = Clients(key, scratch)
        server = resources.enter_context(machine.postgres(scratch))
        self._database: Database = resources.enter_context(machine.database(server, TENANTS))
        self._stubs: dict[int, str] = {}
        self._environ = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "WEB_CONCURRENCY": WORKERS,
            "DATABASE_URL": self._database.url,
            "DATABASE_POOL_SIZE": "10",
            "APP_URL": "https://app.example.com",
            "STRIPE_SECRET_KEY": "sk_test_bench",
            "STRIPE_WEBHOOK_SECRET": f"whsec_{key}",
            "JWT_SECRET_KEY": key,
            "BILLING_LINKS_PER_MINUTE": "1000000",
        }

    def measure(self, contestant: Contestant, seconds: int) -> Run:
        """One turn, from a fresh start to the end of its processes."""
        port, log = machine.free_port(), self._scratch / "server.log"
        environ = {
            **self._environ,
            "STRIPE_API_BASE": self._stub(contestant.load.stripe_milliseconds),
            "PORT": str(port),
            **contestant.environ,
        }
        if contestant.traced:
            environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = self._stub(0)
        # gunicorn reads a gunicorn.conf.py where it stands: only the service is to find one
        cwd = ROOT if contestant.is_ours else self._scratch
        with machine.started(*contestant.command, log=log, env=environ, cwd=cwd) as server:
            machine.wait_for_port(port, server, log)
            self._clients.ask(port, clients=contestant.load.clients, seconds=WARM_UP_SECONDS)
            machine.settle(server.pid)
            return self._window(server.pid, port, contestant.load, seconds)

    def _window(self, server: int, port: int, load: Load, seconds: int) -> Run:
        before = self._cpu(server)
        seen = self._clients.ask(port, clients=load.clients, seconds=seconds)
        ours, database, own, busy = (after - was for after, was in zip(self._cpu(server), before, strict=True))
        return Run(
            seen,
            server_cpu=ours * 1000 / seen.answers,
            database_cpu=database * 1000 / seen.answers,
            megabytes=max(machine.megabytes(worker) for worker in machine.tree(server) - {server}),
            foreign=max(0.0, busy - own) / seen.seconds,
        )

    def _cpu(self, server: int) -> tuple[float, float, float, float]:
        """Seconds so far: the server, its backends, all that this program started, and the whole machine."""
        backends = self._database.backends()
        everything = machine.tree(os.getpid()) | set(backends)
        return (
            machine.cpu_seconds(machine.tree(server)),
            machine.cpu_seconds(backends),
            machine.cpu_seconds(everything, ended_children=True),
            machine.busy_seconds(),
        )

    def _stub(self, milliseconds: int) -> str:
        if milliseconds not in self._stubs:
            port, log = machine.free_port(), self._scratch / "stub.log"
            command = (sys.executable, "-m", "bench.stub", str(port), str(milliseconds))
            process = self._resources.enter_context(machine.started(*command, log=log, cwd=ROOT))
            machine.wait_for_port(port, process, log)
            self._stubs[milliseconds] = f"http://127.0.0.1:{port}"
        return self._stubs[milliseconds]


def main() -> int:
    options = _options()
    contestants = [c for c in (*CONTESTANTS, *_variants(options.ours)) if options.only in c.name]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended on the way out
    rounds: list[dict[str, Run]] = []
    with tempfile.TemporaryDirectory(prefix="billing-bench-") as scratch, ExitStack() as resources:
        Path(scratch).chmod(0o711)  # PostgreSQL may run as somebody else
        arena = Arena(Path(scratch), resources)
        for number in range(options.rounds):
            rounds.append({})
            for contestant in random.sample(contestants, len(contestants)):
                run = arena.measure(contestant, options.seconds)
                rounds[-1][contestant.name] = run
                print(
                    f"round {number + 1}  {contestant.name:40} {run.rate:7.0f}/s {run.cpu:6.2f} ms", flush=True
                )
    for load in (CROWD, STEADY):
        _print_table(load, [c.name for c in contestants if c.load == load], rounds)
    return 0 if _all_hold(rounds) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.portal", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="how long each turn is measured")
    parser.add_argument("--only", default="", metavar="PART", help="contestants with this in their name")
    parser.add_argument(
        "--ours",
        action="append",
        default=[],
        metavar="ARGUMENTS",
        help="also the service with other gunicorn arguments: --ours='--worker-class gthread --threads 32'",
    )
    return parser.parse_args()


def _variants(ours: Iterable[str]) -> Iterable[Contestant]:
    for arguments in ours:
        for plain in CONTESTANTS:
            if plain.is_ours and not plain.traced:
                yield replace(plain, name=f"{plain.name} {arguments}", environ={"GUNICORN_CMD_ARGS": arguments})


def _print_table(load: Load, names: list[str], rounds: list[dict[str, Run]]) -> None:
    if names:
        print(f"\n{load}; median (min-max) of {len(rounds)} rounds")
        print(
            f"{'':40}{'answers/s':>20}{'CPU ms: server':>20}{'database':>18}{'p50 ms':>8}{'p99 ms':>8}", end=""
        )
        print(f"{'MB/worker':>11}{'foreign':>9}{'failed':>8}")
    for name in names:
        runs = [turns[name] for turns in rounds]
        print(
            f"{name:40}{_spread([run.rate for run in runs], 0):>20}"
            f"{_spread([run.server_cpu for run in runs]):>20}{_spread([run.database_cpu for run in runs]):>18}"
            f"{median(run.seen.p50 for run in runs):8.0f}{median(run.seen.p99 for run in runs):8.0f}"
            f"{max(run.megabytes for run in runs):11.0f}{median(run.foreign for run in runs):9.2f}"
            f"{sum(run.seen.failures for run in runs):8}"
        )


def _all_hold(rounds: list[dict[str, Run]]) -> bool:
    """Say which limits hold; those whose contestants did not run are left out."""
    print("\nLimits, as ratios within a round")
    verdicts = []
    for limit in LIMITS:
        if ratios := limit.ratios(rounds):
            bound = f"{'at least' if limit.is_rate else 'at most'} {limit.bound:g}"
            verdicts.append(_verdict(limit.holds(median(ratios)), limit.what, bound, _spread(ratios)))
    ours = {contestant.name for contestant in CONTESTANTS if contestant.is_ours}
    if sizes := [run.megabytes for turns in rounds for name, run in turns.items() if name in ours]:
        bound = f"at most {MEGABYTES_PER_WORKER}"
        verdicts.append(
            _verdict(max(sizes) <= MEGABYTES_PER_WORKER, "MB per worker", bound, f"{max(sizes):.0f}")
        )
    failures = sum(run.seen.failures for turns in rounds for run in turns.values())
    verdicts.append(_verdict(not failures, "requests that failed", "none", str(failures)))
    return all(verdicts)


def _verdict(holds: bool, what: str, bound: str, found: str) -> bool:
    print(f"  {'holds' if holds else 'FAILS'}  {what:34} {bound:14} {found}")
    return holds


def _spread(values: list[float], digits: int = 2) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


if __name__ == "__main__":
    sys.exit(main())
