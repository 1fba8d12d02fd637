"""What is worth an alarm, as gauges: docs/operations.md says what each means, from where on, and what to do.

Every process that exports measures them, web processes too: no worker can say that no worker is left. All say
the same, so whoever looks takes the greatest. They are measured when they are exported, and what could not be
measured is not exported, so no figure outlives its time.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import structlog

from billing import telemetry, vitals
from billing.db import SYSTEM, Database
from billing.errors import ServiceUnavailable
from billing.telemetry import Figure, Gauge, observed
from billing.vitals import Vitals

GAUGES = (
    Gauge("billing.inbox.oldest", "s", "Since the oldest event came that is due or asked about; 0: none is"),
    Gauge("billing.inbox.buried", "{event}", "Events that were given up"),
    Gauge("billing.webhook.age", "s", "Since Stripe last posted an event"),
    Gauge("billing.webhook.silent", "1", "1 while none has come for longer than is expected"),
    Gauge("billing.workers", "{process}", "Workers whose loop turns"),
    Gauge("billing.tenants.unsynced", "{tenant}", "Linked tenants about whom Stripe has never answered"),
    Gauge(
        "billing.tenants.drifted", "{tenant}", "Found to differ from Stripe within the hour, or not mended yet"
    ),
    Gauge("billing.feed.behind", "{tenant}", "Changed tenants that a consumer has before it"),
    Gauge("billing.feed.unseen", "s", "Since a consumer last asked"),
)

log = structlog.get_logger(__name__)


def watch(db: Database, expect_webhook_every: timedelta | None) -> None:
    """Have them measured here, once this process exports anything."""

    def measure() -> list[Figure]:
        try:
            return list(figures(_taken(db), expect_webhook_every, datetime.now(UTC)))
        except ServiceUnavailable as e:
            log.warning("alarms.unmeasured", outcome=e.outcome)
            return []

    telemetry.watch(GAUGES, measure)


@observed("alarms.measure")
def _taken(db: Database) -> Vitals:
    with db.begin(SYSTEM) as connection:
        return vitals.taken(connection)


def figures(of: Vitals, expect_webhook_every: timedelta | None, now: datetime) -> Iterator[Figure]:
    """The gauges' values. Consumers and kinds are few; no tenant, customer or event is ever named."""
    yield Figure("billing.inbox.oldest", of.oldest_unprocessed or 0.0)
    yield Figure("billing.inbox.buried", of.buried)
    if of.last_webhook is not None:
        yield Figure("billing.webhook.age", of.last_webhook)
    yield Figure("billing.webhook.silent", int(of.is_silent(expect_webhook_every)))
    yield Figure("billing.workers", len(of.workers))
    yield Figure("billing.tenants.unsynced", of.never_synced)
    for kind, tenants in of.drifted.items():
        yield Figure("billing.tenants.drifted", tenants, {"kind": kind})
    for consumer in of.consumers:
        named = {"consumer": consumer.name}
        yield Figure("billing.feed.behind", consumer.behind, named)
        yield Figure("billing.feed.unseen", max(0.0, (now - consumer.asked_at).total_seconds()), named)
