"""The day on which everybody's month begins: `python -m bench.renewal --events 60000 --seconds 600`.

Six events for each subscription, from the change of the month to the payment, come at a fixed rate whatever the
service does, those of one subscription within seconds and not quite in order, some of them twice. One gunicorn
and one worker, as deployed, take them. A delivery's time runs from the moment it was due to be sent, so that a
service that stalls is charged for all that piles up behind. Afterwards every event must be settled, and every
subscription be held in its new month. Nobody is at Stripe to answer: what has to be asked shows in the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import secrets
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

import psycopg

from bench import events, machine
from bench.events import RENEWAL, Made
from bench.limits import verdict
from bench.load import HEAD
from bench.machine import ROOT, Database
from bench.portal import OURS, WORKERS
from billing.stripe_api import API_VERSION

P99_MS = 250
DRAINED_SECONDS = 60
QUESTIONS = 0.05
MONTH = 30 * 24 * 3600
SPREAD_SECONDS = 3.0  # within which the events of one renewal are sent
REPEATED = 0.02
LATEST_SECONDS = 30.0  # Stripe waits about this long for an answer

CALM = """
    INSERT INTO chores SELECT name, now() + interval '1 day'
    FROM unnest('{prune,walk,undelivered}'::text[]) AS name ON CONFLICT DO NOTHING
"""
KEEP = f"""
    INSERT INTO inbox (event_id, type, object_id, customer, created, api_version, livemode, sent_at, body)
    VALUES (%s, %s, %s, %s, to_timestamp(%s), '{API_VERSION}', false, to_timestamp(%s), %b)
"""
UNSETTLED = "SELECT count(*) FROM inbox WHERE state <> 'settled'"
ASKED = "SELECT coalesce(sum(put), 0) FROM stripe_customers"
RENEWED = """
    SELECT count(*) FROM subscriptions JOIN invoices ON stripe_invoice_id = latest_invoice_id
    WHERE subscriptions.status = 'active' AND invoices.status = 'paid' AND as_of_end >= to_timestamp(%s)
"""


@dataclass
class Stripe:
    """Delivers at its own pace, over as many connections as it takes."""

    port: int
    secret: str
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    failures: int = 0

    async def deliver(self, planned: list[tuple[float, Made]]) -> None:
        """Send each at its moment, in seconds from now."""
        began = time.monotonic()
        sent = []
        for moment, made in planned:
            await asyncio.sleep(began + moment - time.monotonic())
            sent.append(asyncio.create_task(self._send(made, began + moment)))
        await asyncio.gather(*sent)

    async def _send(self, made: Made, due: float) -> None:
        signature = events.signature(made.body, self.secret, int(time.time()))
        status = b""
        with suppress(OSError, EOFError, TimeoutError):
            status = await asyncio.wait_for(
                self._post(HEAD % (len(made.body), signature) + made.body), LATEST_SECONDS
            )
        self.failures += status != b"200"
        self.milliseconds.append((time.monotonic() - due) * 1000)

    async def _post(self, request: bytes) -> bytes:
        while self.idle and self.idle[-1][0].at_eof():  # a worker that has served its time hangs up
            self.idle.pop()[1].close()
        reader, writer = self.idle.pop() if self.idle else await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        await reader.readexactly(length)
        self.idle.append((reader, writer))
        return head.split()[1]


def main() -> int:
    options = _options()
    customers = options.events // len(RENEWAL)
    tenants = [f"tenant-{number:05d}" for number in range(customers)]
    secret = secrets.token_hex(32)
    with tempfile.TemporaryDirectory(prefix="billing-bench-") as name, ExitStack() as resources:
        scratch = Path(name)
        scratch.chmod(0o711)  # PostgreSQL may run as somebody else
        server = resources.enter_context(machine.postgres(scratch))
        database = resources.enter_context(machine.database(server, tenants, past=1))
        mine = resources.enter_context(psycopg.connect(database.plain_url, autocommit=True))
        mine.execute("SELECT set_config('billing.scope', 'system', false)")
        mine.execute(CALM)
        port = _start(resources, scratch, database, secret)
        _subscribe(mine, tenants)
        stripe, began = Stripe(port, f"whsec_{secret}"), int(time.time())
        asyncio.run(stripe.deliver(_planned(tenants, options.seconds, began)))
        drained = _drained(mine)
        [(renewed,)] = mine.execute(RENEWED, [began])
        [(asked,)] = mine.execute(ASKED)
    return _report(stripe, options, drained, customers - renewed, asked)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.renewal", description=__doc__)
    parser.add_argument("--events", type=int, default=6000)
    parser.add_argument("--seconds", type=int, default=60)
    return parser.parse_args()


def _start(resources: ExitStack, scratch: Path, database: Database, secret: str) -> int:
    """One gunicorn and one worker."""
    port, log = machine.free_port(), scratch / "server.log"
    environ = {**machine.environ(database, secret), "WEB_CONCURRENCY": WORKERS, "PORT": str(port)}
    web = resources.enter_context(machine.started(*OURS, log=log, env=environ, cwd=ROOT))
    worker = (sys.executable, "-m", "billing.worker")
    resources.enter_context(machine.started(*worker, log=scratch / "worker.log", env=environ, cwd=ROOT))
    machine.wait_for_port(port, web, log)
    machine.wait_for_answer(port)
    return port


def _subscribe(mine: psycopg.Connection[Any], tenants: list[str]) -> None:
    """Everybody has subscribed a month ago, and that is held."""
    began = int(time.time()) - MONTH
    made = [events.subscribed(number, f"cus_{tenant}", began) for number, tenant in enumerate(tenants)]
    mine.cursor().executemany(
        KEEP, [(one.id, one.type, one.object_id, one.customer, began, began, one.body) for one in made]
    )
    _drained(mine)


def _drained(mine: psycopg.Connection[Any]) -> float:
    """Wait until everything is settled; how many seconds that took, more than the limit if it did not."""
    began = time.monotonic()
    while mine.execute(UNSETTLED).fetchone() != (0,):
        if time.monotonic() - began > 2 * DRAINED_SECONDS:
            break
        time.sleep(0.5)
    return time.monotonic() - began


def _planned(tenants: list[str], seconds: int, now: int) -> list[tuple[float, Made]]:
    """What is sent when: at an even rate, renewals one after the other and each somewhat shuffled."""
    chance = random.Random(0)
    every = seconds / (len(tenants) * len(RENEWAL))
    wished = []
    for number, tenant in enumerate(tenants):
        begins = number * len(RENEWAL) * every
        for made in events.renewal(number, f"cus_{tenant}", now + int(begins)):
            wished.append((begins + chance.uniform(0, SPREAD_SECONDS), made))
    wished.sort(key=lambda one: one[0])
    planned = [(place * every, made) for place, (_, made) in enumerate(wished)]
    again = [(at + chance.uniform(1, 5), made) for at, made in planned if chance.random() < REPEATED]
    return sorted(planned + again, key=lambda one: one[0])


def _report(stripe: Stripe, options: argparse.Namespace, drained: float, missing: int, asked: int) -> int:
    cuts = quantiles(stripe.milliseconds, n=100)
    sent = len(stripe.milliseconds)
    print(f"{sent} deliveries in {options.seconds} s over {len(stripe.idle)} connections at most")
    print(f"acknowledged: p50 {cuts[49]:.0f} ms, p99 {cuts[98]:.0f}, at most {max(stripe.milliseconds):.0f}\n")
    each = asked / options.events
    return not all(
        (
            verdict(cuts[98] <= P99_MS, f"p99 ms of an acknowledgement, at most {P99_MS}", f"{cuts[98]:.0f}"),
            verdict(
                drained <= DRAINED_SECONDS, f"seconds to drain, at most {DRAINED_SECONDS}", f"{drained:.1f}"
            ),
            verdict(each <= QUESTIONS, f"questions per event, at most {QUESTIONS}", f"{each:.4f}"),
            verdict(not missing, "subscriptions not in their new month, none", str(missing)),
            verdict(not stripe.failures, "deliveries that failed, none", str(stripe.failures)),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
