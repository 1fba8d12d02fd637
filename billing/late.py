"""Whose news is late: customers with events or questions that have waited for too long.

Their documents are served, and said to be stale. Looked up every few seconds by each process that reads
documents, for all customers at once, so that no read pays for it.
"""

from __future__ import annotations

import threading
import time

import psycopg
import structlog

from billing.db import SYSTEM, Database, Query
from billing.errors import ServiceUnavailable
from billing.questions import TOO_LONG, TOO_OFTEN

LOOK_SECONDS = 5.0
MOST = 10_000  # where so many are late, all may be

# Each half along an index of few rows. An event that is asked about has its customer in the second.
_LATE = """
    (
        SELECT customer FROM inbox
        WHERE state = 'due' AND received_at < clock_timestamp() - %(too_long)s AND customer IS NOT NULL
        LIMIT %(most)s
    ) UNION ALL (
        SELECT stripe_customer_id FROM stripe_customers
        WHERE owed_since IS NOT NULL
          AND (failures >= %(too_often)s OR owed_since < clock_timestamp() - %(too_long)s)
        LIMIT %(most)s
    )
"""

log = structlog.get_logger(__name__)


class Late:
    """What this process knows of them."""

    def __init__(self, db: Database, *, look_seconds: float = LOOK_SECONDS) -> None:
        self._db = db
        self._look_seconds = look_seconds
        self._looking = threading.Lock()
        self._next_look = 0.0
        self._late: frozenset[str] = frozenset()
        self._may_be_all = False

    def has(self, customer: str | None) -> bool:
        """Whether this customer's news is late."""
        if time.monotonic() >= self._next_look and self._looking.acquire(blocking=False):
            try:
                found = self._db.run(SYSTEM, _query())
                self._late, self._may_be_all = frozenset(found), len(found) >= MOST
            except ServiceUnavailable as e:  # no read fails of it: what was known last still holds
                log.warning("late.unknown", outcome=e.outcome)
            finally:
                self._next_look = time.monotonic() + self._look_seconds
                self._looking.release()
        return customer is not None and (customer in self._late or self._may_be_all)


def _query() -> Query[list[str]]:
    values = {"too_long": TOO_LONG, "too_often": TOO_OFTEN, "most": MOST}
    return Query("late.read", _LATE, values, _customers)


def _customers(found: psycopg.Cursor[tuple[str]]) -> list[str]:
    return [row[0] for row in found]
