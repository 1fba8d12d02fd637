"""How fast an event is taken, beside a bare Flask route that takes it too: `python -m bench.acks`.

Both run under gunicorn with the same workers and threads on one PostgreSQL, verify the signature, read the
event and answer once it is stored durably. The bare route keeps its id and its bytes; the service is the whole
of it as deployed. Every event is new and signed just before. Contestants take turns, each freshly started and
warmed; every verdict is a ratio taken within a round.
"""

from __future__ import annotations

import argparse
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psycopg

from bench import events, machine
from bench.limits import spread, verdict
from bench.load import TENANTS, Answers, Deliverers
from bench.machine import ROOT
from bench.portal import BARE, OURS, WORKERS
from billing.outbound import KEPT_OPEN

RATIO = 1.0
MOST_PER_SECOND = 6000  # events made beforehand for each second
MAKE = (
    "CREATE TABLE bare_events (id text PRIMARY KEY, at timestamptz NOT NULL DEFAULT now(), body bytea NOT NULL)"
)
COMMANDS = {"ours": OURS, "bare": (*BARE, "--threads", str(KEPT_OPEN), "bench.bare:keep")}
TABLES = {"ours": "inbox", "bare": "bare_events"}


@dataclass(frozen=True)
class Run:
    """One contestant's turn; CPU is microseconds per answer."""

    seen: Answers
    server_cpu: float
    database_cpu: float

    @property
    def rate(self) -> float:
        return self.seen.answers / self.seen.seconds

    @property
    def cpu(self) -> float:
        return self.server_cpu + self.database_cpu


class Arena:
    """What both contestants share: the database, and Stripe delivering."""

    def __init__(self, scratch: Path, resources: ExitStack) -> None:
        self._log = scratch / "server.log"
        self._scratch = scratch
        server = resources.enter_context(machine.postgres(scratch))
        self._database = resources.enter_context(machine.database(server, TENANTS))
        self._mine = resources.enter_context(psycopg.connect(self._database.plain_url, autocommit=True))
        self._mine.execute("SELECT set_config('billing.scope', 'system', false)")
        self._mine.execute(MAKE)
        key = secrets.token_hex(32)
        self._stripe = Deliverers(f"whsec_{key}", scratch)
        self._environ = {**machine.environ(self._database, key), "WEB_CONCURRENCY": WORKERS}

    def measure(self, name: str, clients: int, seconds: int) -> Run:
        """One turn, from a fresh start to the end of its processes, on empty tables."""
        self._mine.execute(f"TRUNCATE {', '.join(TABLES.values())}")
        port = machine.free_port()
        cwd = ROOT if name == "ours" else self._scratch  # gunicorn reads a gunicorn.conf.py where it stands
        environ = {**self._environ, "PORT": str(port)}
        with machine.started(*COMMANDS[name], log=self._log, env=environ, cwd=cwd) as server:
            machine.wait_for_port(port, server, self._log)
            machine.wait_for_answer(port)
            self._make(1)
            self._stripe.deliver(port, clients=clients, seconds=1)
            machine.settle(server.pid)
            self._make(seconds)
            stored = self._stored(name)
            before = self._cpu(server.pid)
            seen = self._stripe.deliver(port, clients=clients, seconds=seconds)
            cpu = [after - was for after, was in zip(self._cpu(server.pid), before, strict=True)]
        if self._stored(name) - stored < seen.answers:
            sys.exit("Fewer events are stored than were acknowledged.")
        return Run(seen, *(part * 1e6 / seen.answers for part in cpu))

    def _make(self, seconds: int) -> None:
        customers = [f"cus_{tenant}" for tenant in TENANTS]
        self._stripe.sign(events.changes(seconds * MOST_PER_SECOND, customers, int(time.time())))

    def _stored(self, name: str) -> int:
        [(stored,)] = self._mine.execute(f"SELECT count(*) FROM {TABLES[name]}")
        return int(stored)

    def _cpu(self, server: int) -> tuple[float, float]:
        return machine.cpu_seconds(machine.tree(server)), machine.cpu_seconds(self._database.backends())


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended on the way out
    rounds: list[dict[str, Run]] = []
    with tempfile.TemporaryDirectory(prefix="billing-bench-") as scratch, ExitStack() as resources:
        Path(scratch).chmod(0o711)  # PostgreSQL may run as somebody else
        arena = Arena(Path(scratch), resources)
        for number in range(options.rounds):
            turn = list(COMMANDS) if number % 2 else list(reversed(COMMANDS))
            rounds.append({name: arena.measure(name, options.clients, options.seconds) for name in turn})
            said = "  ".join(f"{name} {run.rate:.0f}/s {run.cpu:.0f} us" for name, run in rounds[-1].items())
            print(f"round {number + 1}  {said}", flush=True)
    return _report(rounds)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.acks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=4, help="how long each turn is measured")
    parser.add_argument("--clients", type=int, default=16)
    return parser.parse_args()


def _report(rounds: Sequence[dict[str, Run]]) -> int:
    print(f"\n{'':6}{'acks/s':>22}{'p50 ms':>18}{'p95':>18}{'p99':>20}{'CPU us: server':>22}{'database':>18}")
    for name in COMMANDS:
        runs = [turns[name] for turns in rounds]
        print(
            f"{name:6}{spread([run.rate for run in runs]):>22}{spread([run.seen.p50 for run in runs], 1):>18}"
            f"{spread([run.seen.p95 for run in runs], 1):>18}{spread([run.seen.p99 for run in runs], 1):>20}"
            f"{spread([run.server_cpu for run in runs]):>22}{spread([run.database_cpu for run in runs]):>18}"
        )
    rates = [turns["ours"].rate / turns["bare"].rate for turns in rounds]
    costs = [turns["ours"].cpu / turns["bare"].cpu for turns in rounds]
    failures = sum(run.seen.failures for turns in rounds for run in turns.values())
    print(f"\nCPU per event over the bare route: {spread(costs, 2)}")
    return not all(
        (
            verdict(median(rates) >= RATIO, f"rate over the bare route, at least {RATIO:g}", spread(rates, 2)),
            verdict(not failures, "deliveries that failed, none", str(failures)),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
