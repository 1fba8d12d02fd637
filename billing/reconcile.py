"""Find and mend what no event told us: events that were never delivered, and customers nobody asked about.

Nothing of a tenant's is written here: undelivered events go through the inbox, and customers are put on the
list of questions, so that whatever mends them is the verb.
"""

from __future__ import annotations

import json
import time
from datetime import timedelta

import structlog

from billing import events, inbox, questions
from billing.budget import Budget
from billing.db import SYSTEM, Database
from billing.events import Json
from billing.inbox import Delivery
from billing.stripe_api import Reading, Stripe, pages

STALE = timedelta(hours=24)
WALKED_AT_ONCE = 100
LOOK_BACK_SECONDS = 4 * 24 * 3600  # Stripe itself tries for three days

log = structlog.get_logger(__name__)


def walk(db: Database, *, older: timedelta = STALE, most: int = WALKED_AT_ONCE) -> int:
    """Have Stripe asked about the linked customers it was not asked about for longest. How many those are."""
    with db.begin(SYSTEM) as connection:
        found = questions.stalest(connection, older=older, most=most)
        questions.want(connection, found)
    return len(found)


def undelivered(
    db: Database,
    stripe: Stripe,
    budget: Budget,
    *,
    livemode: bool,
    since: int | None = None,
) -> int:
    """Fetch what Stripe could not deliver, to us or to another endpoint. How many of them were new to us."""
    since = int(time.time()) - LOOK_BACK_SECONDS if since is None else since
    found = 0

    def read(after: str | None) -> Reading | None:
        budget.spend("events.list", "background")
        return stripe.undelivered_events(since, after)

    for page in pages(read):
        deliveries = [one for one in (_delivery(thing, livemode) for thing in page.things) if one]
        with db.begin(SYSTEM) as connection:
            known = inbox.known(connection, [one.event_id for one in deliveries])
        found += sum(db.run(SYSTEM, inbox.receive(one)) for one in deliveries if one.event_id not in known)
    if found:
        log.warning("reconcile.undelivered", events=found)
    return found


def _delivery(thing: Json, livemode: bool) -> Delivery | None:
    body = json.dumps(thing).encode()
    try:
        event = events.read(body)
    except events.Unreadable as e:
        log.warning("reconcile.unreadable", reason=str(e))
        return None
    return Delivery.of(event, body, livemode=livemode)
