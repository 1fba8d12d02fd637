"""Find and mend what no event told us: events that were never delivered, and customers nobody asked about.

Nothing of a tenant's is written here: undelivered events go through the inbox, and customers are put on the
list of questions, so that whatever mends them is the verb.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import timedelta

import structlog

from billing import events, inbox, questions
from billing.budget import Budget
from billing.db import SYSTEM, Database
from billing.events import Json
from billing.inbox import Delivery
from billing.stripe_api import Stripe

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
    for things in _listed(stripe, budget, since):
        deliveries = [one for one in (_delivery(thing, livemode) for thing in things) if one]
        with db.begin(SYSTEM) as connection:
            known = inbox.known(connection, [one.event_id for one in deliveries])
        found += sum(db.run(SYSTEM, inbox.receive(one)) for one in deliveries if one.event_id not in known)
    if found:
        log.warning("reconcile.undelivered", events=found)
    return found


def _listed(stripe: Stripe, budget: Budget, since: int) -> Iterator[list[Json]]:
    after: str | None = None
    while True:
        budget.spend("events.list", "background")
        page = stripe.undelivered_events(since, after)
        if page is None:
            return
        yield page.things
        if not page.has_more or not page.things:
            return
        after = str(page.things[-1].get("id"))


def _delivery(thing: Json, livemode: bool) -> Delivery | None:
    body = json.dumps(thing).encode()
    try:
        event = events.read(body)
    except events.Unreadable as e:
        log.warning("reconcile.unreadable", reason=str(e))
        return None
    return Delivery(
        event_id=event.id,
        type=event.type,
        object_id=event.object_id,
        customer=event.customer,
        created=event.created,
        api_version=event.api_version,
        livemode=event.livemode,
        body=body,
        unused=events.why_unused(event, livemode=livemode),
    )
