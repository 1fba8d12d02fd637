"""What a claim takes when nearly all of a large inbox is settled: `python -m bench.claim --settled 10000000`.

The settled are made in one statement and have small bodies. Between claims what was claimed is settled, as a
worker would, and the due are filled up again when they run out. Times are the statement's, as the worker waits
for it, and the whole transaction's, which ends with a flush to the disk.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import quantiles

import psycopg

from bench import machine
from bench.limits import verdict
from billing import inbox
from billing.db import SYSTEM
from billing.db import Database as Ours
from billing.worker import BATCH, LEASE

LIMIT_MS = 5
DUE = 10_000
SIZES = (1, 20, BATCH)

FILL = """
    INSERT INTO inbox (event_id, type, object_id, customer, created, api_version, livemode, received_at,
                       sent_at, body, due_at, state, settled_at)
    SELECT concat_ws('_', %(state)s::text, n, clock_timestamp()), 'customer.subscription.updated',
           'sub_' || mod(n, 100000), 'cus_' || mod(n, 100000), at, '2026-10-28.endive', false, at,
           at, convert_to(rpad('{"id": "evt_' || n || '"', 100), 'UTF8'), at, %(state)s,
           CASE %(state)s::text WHEN 'settled' THEN at END
    FROM generate_series(1, %(count)s) AS n,
         LATERAL (SELECT now() - interval '30 days' * (1 - n::float8 / %(count)s)) AS moment (at)
"""


def main() -> int:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="billing-bench-") as scratch, ExitStack() as resources:
        Path(scratch).chmod(0o711)  # PostgreSQL may run as somebody else
        server = resources.enter_context(machine.postgres(Path(scratch)))
        database = resources.enter_context(machine.database(server, []))
        mine = resources.enter_context(psycopg.connect(database.plain_url, autocommit=True))
        mine.execute("SELECT set_config('billing.scope', 'system', false)")
        began = time.monotonic()
        _fill(mine, "settled", options.settled)
        mine.execute("VACUUM ANALYZE inbox")
        print(f"{options.settled:,} settled events made in {time.monotonic() - began:.0f} s", flush=True)
        db = Ours(database.url, pool_size=1)
        resources.callback(db.close)
        slowest = [_measure(db, mine, size, options.claims) for size in SIZES]
    held = max(slowest)
    return not verdict(held <= LIMIT_MS, f"p99 ms of a claim, at most {LIMIT_MS}", f"{held:.1f}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.claim", description=__doc__)
    parser.add_argument("--settled", type=int, default=1_000_000)
    parser.add_argument("--claims", type=int, default=500, help="how many of each size are timed")
    return parser.parse_args()


def _fill(mine: psycopg.Connection[tuple[object, ...]], state: str, count: int) -> None:
    mine.execute(FILL, {"state": state, "count": count})


def _measure(db: Ours, mine: psycopg.Connection[tuple[object, ...]], size: int, claims: int) -> float:
    """Print what claims of this size take; the statement's p99 in milliseconds."""
    statements: list[float] = []
    whole: list[float] = []
    while len(statements) < claims:
        began = time.perf_counter()
        with db.begin(SYSTEM) as connection:
            entered = time.perf_counter()
            claimed = inbox.claim(connection, most=size, lease=LEASE)
            statement = time.perf_counter() - entered
        if len(claimed) < size:
            _fill(mine, "due", DUE)
            continue
        statements.append(statement * 1000)
        whole.append((time.perf_counter() - began) * 1000)
        with db.begin(SYSTEM) as connection:
            inbox.settle(connection, [event.id for event in claimed])
    p50, p99 = _percentiles(statements)
    whole_p50, whole_p99 = _percentiles(whole)
    print(
        f"claims of {size:3}: p50 {p50:5.2f} ms, p99 {p99:5.2f};"
        f" with begin and commit p50 {whole_p50:5.2f}, p99 {whole_p99:5.2f}",
        flush=True,
    )
    return p99


def _percentiles(values: list[float]) -> tuple[float, float]:
    cuts = quantiles(values, n=100)
    return cuts[49], cuts[98]


if __name__ == "__main__":
    sys.exit(main())
