"""How the service is: the figures that alarms, the doctor and the operators' overview share.

Taken in one go, and bounded by what is unfinished: each figure comes along an index that leaves out the settled
events, and none is counted beyond `COUNTED`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection

from billing import customers, drift, feed, inbox, questions, workers
from billing.db import along_indexes
from billing.drift import Kind
from billing.feed import Consumer
from billing.workers import Heartbeat

COUNTED = 100_000


@dataclass(frozen=True, slots=True)
class Vitals:
    """A number that is greater than `COUNTED` means more than that. Times are seconds."""

    due: int
    waiting: int  # nobody owns their customers
    asking: int
    buried: int
    oldest_unprocessed: float | None  # since the oldest event that is due or asked about came
    oldest_waiting: float | None  # … that waits for an owner; that alone is no alarm
    last_webhook: float | None  # since Stripe last posted an event; None: never, or not for long
    workers: Sequence[Heartbeat]  # that are alive
    consumers: Sequence[Consumer]
    linked: int  # tenants with a Stripe customer
    never_synced: int  # of those, about whom Stripe has never answered; who was linked past us counts once seen
    drifted: Mapping[
        Kind, int
    ]  # tenants found to differ from Stripe within the hour, or still for a person to mend

    def is_silent(self, expected_every: timedelta | None) -> bool:
        """Whether no webhook has come for longer than is expected; never, where nothing is."""
        if expected_every is None:
            return False
        return self.last_webhook is None or self.last_webhook > expected_every.total_seconds()


def taken(connection: Connection) -> Vitals:
    """As it is now."""
    along_indexes(connection)
    backlog = inbox.backlog(connection, most=COUNTED)
    return Vitals(
        due=backlog.due,
        waiting=backlog.waiting,
        asking=backlog.asking,
        buried=backlog.buried,
        oldest_unprocessed=backlog.oldest_unprocessed,
        oldest_waiting=backlog.oldest_waiting,
        last_webhook=inbox.last_webhook(connection),
        workers=workers.alive(connection),
        consumers=feed.overview(connection).consumers,
        linked=customers.linked(connection, most=COUNTED),
        never_synced=questions.never_answered(connection, most=COUNTED),
        drifted=drift.lately(connection, most=COUNTED),
    )
