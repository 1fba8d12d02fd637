"""The verb of events that did not come: Stripe lists them, and they go through the inbox like any other.

`undelivered` are those whose delivery failed. `missed` is whatever else of use Stripe lists and we do not have:
no delivery of it need ever have failed, for the endpoint may not have wanted its type, or not have been there.
Whom a late event is about is suspected of having been wrong; `reconcile` judges that.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import structlog
from sqlalchemy import Connection

from billing import events, inbox, runs, sync
from billing.budget import Budget
from billing.db import SYSTEM, Database
from billing.errors import StripeFailed
from billing.events import Json
from billing.inbox import Delivery
from billing.stripe_api import Reading, Stripe, pages

DAY_SECONDS = 24 * 3600
UNDELIVERED_SECONDS = 4 * DAY_SECONDS  # Stripe itself tries for three days
LISTED_SECONDS = 30 * DAY_SECONDS  # how far back Stripe lists events
STRETCH_SECONDS = 3600  # that are read at once: a listing that fails is begun again there
LONGEST_STRETCH_SECONDS = DAY_SECONDS  # where little is listed
OVERLAP_SECONDS = 120  # an event may be listed later than a younger one
ON_ITS_WAY_SECONDS = 60  # a younger one is not late yet
TYPES_AT_ONCE = 20  # that Stripe lists
TYPES = [sorted(events.USED)[n : n + TYPES_AT_ONCE] for n in range(0, len(events.USED), TYPES_AT_ONCE)]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Missed:
    """An event that is not here, and whether it ought to be by now."""

    event_id: str
    customer: str | None
    is_late: bool


def _nothing() -> None:
    return None


def undelivered(
    db: Database,
    stripe: Stripe,
    budget: Budget,
    *,
    livemode: bool,
    since: int | None = None,
    go_on: Callable[[], object] = _nothing,
) -> int:
    """Fetch what Stripe could not deliver, to us or to another endpoint. How many of them were new to us.

    `go_on` is done with each page.
    """
    found = 0
    for page in _undelivered(stripe, budget, since):
        go_on()
        found += _take(db, page, livemode)
    if found:
        log.warning("reconcile.undelivered", events=found)
    return found


def missed(
    db: Database, stripe: Stripe, budget: Budget, *, livemode: bool, go_on: Callable[[], object] = _nothing
) -> int:
    """Fetch all that is of use and was listed since everything listed was here. How many were new to us.

    How far the list is here is noted stretch by stretch, each when all of it is kept, and by Stripe's clock:
    ours may be wrong. What happened before anybody looked is left alone: every link has Stripe asked.
    """
    found, since, stretch = 0, listed_until(db), STRETCH_SECONDS
    if since is None:
        _begin_listing(db, stripe, budget)
    while since is not None:
        asked, until = [], since + stretch
        for page in _of_use(stripe, budget, since, until):
            go_on()
            asked.append(page.asked)
            found += _take(db, page, livemode)
        with db.begin(SYSTEM) as connection:
            runs.listed(connection, min(until, *asked))
        since, stretch = _next(until, asked), _next_stretch(stretch, asked)
    if found:
        log.warning("reconcile.missed", events=found)
    return found


def _begin_listing(db: Database, stripe: Stripe, budget: Budget) -> None:
    budget.spend("events.list", "background")
    if latest := stripe.latest_event():
        with db.begin(SYSTEM) as connection:
            runs.listed(connection, latest.asked)


def _next(until: int, asked: Sequence[int]) -> int | None:
    """Where the list goes on, by when its pages were asked for; None at its end, which is now."""
    return until - OVERLAP_SECONDS if until <= min(asked) else None


def _next_stretch(stretch: int, asked: Sequence[int]) -> int:
    """Twice as long where one page of each had all; short again where there is much, for it may have to be read
    once more.
    """
    return min(2 * stretch, LONGEST_STRETCH_SECONDS) if len(asked) == len(TYPES) else STRETCH_SECONDS


def listed_until(db: Database) -> int | None:
    """From when on the list has to be looked at, in Stripe's time. None if nobody has looked yet."""
    with db.begin(SYSTEM) as connection:
        until = runs.listed_until(connection)
    return None if until is None else max(until - OVERLAP_SECONDS, int(time.time()) - LISTED_SECONDS)


def unknown(db: Database, stripe: Stripe, budget: Budget, *, livemode: bool) -> Iterator[Missed]:
    """All that `undelivered` and `missed` would fetch. One may come twice."""
    for page in chain(_undelivered(stripe, budget), _listed_since(stripe, budget, listed_until(db))):
        with db.begin(SYSTEM) as connection:
            new = _new(connection, page, livemode)
        yield from (Missed(one.event_id, one.customer, _is_late(one, page)) for one in new)


def _listed_since(stripe: Stripe, budget: Budget, since: int | None) -> Iterator[Reading]:
    stretch = STRETCH_SECONDS
    while since is not None:
        asked, until = [], since + stretch
        for page in _of_use(stripe, budget, since, until):
            asked.append(page.asked)
            yield page
        since, stretch = _next(until, asked), _next_stretch(stretch, asked)


def _undelivered(stripe: Stripe, budget: Budget, since: int | None = None) -> Iterator[Reading]:
    since = int(time.time()) - UNDELIVERED_SECONDS if since is None else since
    return _listed(budget, lambda after: stripe.undelivered_events(since, after))


def _of_use(stripe: Stripe, budget: Budget, since: int, until: int) -> Iterator[Reading]:
    for types in TYPES:
        yield from _listed(budget, lambda after, types=types: stripe.events_of(types, since, until, after))  # type: ignore[misc]


def _listed(budget: Budget, read: Callable[[str | None], Reading | None]) -> Iterator[Reading]:
    def counted(after: str | None) -> Reading:
        budget.spend("events.list", "background")
        page = read(after)
        if page is None:  # the event to go on after is no longer listed: what follows is not known
            raise StripeFailed("nonsense")
        return page

    return pages(counted)


def _take(db: Database, page: Reading, livemode: bool) -> int:
    """Keep those of a page that are not here, and suspect whom the late ones among them are about.

    The suspicion comes first: whoever is killed in between begins this page again.
    """
    with db.begin(SYSTEM) as connection:
        new = _new(connection, page, livemode)
        late = {one.customer: one.event_id for one in new if one.customer and _is_late(one, page)}
        if late:
            sync.suspect(connection, late, "missed_event", seen=inbox.newest(connection))
    return sum(db.run(SYSTEM, inbox.receive(one)) for one in new)


def _new(connection: Connection, page: Reading, livemode: bool) -> Sequence[Delivery]:
    deliveries = [one for one in (_delivery(thing, livemode) for thing in page.things) if one]
    known = inbox.known(connection, [one.event_id for one in deliveries])
    return [one for one in deliveries if one.event_id not in known]


def _is_late(one: Delivery, page: Reading) -> bool:
    """Whether it is of use, and ought to have come by now."""
    return not one.unused and (one.created or 0) <= page.asked - ON_ITS_WAY_SECONDS


def _delivery(thing: Json, livemode: bool) -> Delivery | None:
    body = json.dumps(thing).encode()
    try:
        event = events.read(body)
    except events.Unreadable as e:
        log.warning("reconcile.unreadable", reason=str(e))
        return None
    return Delivery.of(event, body, livemode=livemode)
