"""Bring the account's events to a webhook by asking for them, where Stripe cannot post: a developer's machine.

Stripe lists its latest events over and over; what was not on the list before is signed and posted as Stripe
would, oldest first. What happened before the first look is left alone. Looks overlap, for an event may be
listed later than a younger one, and several fall into one second; whoever is told twice must not mind.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

from urllib3.exceptions import HTTPError

from billing import deadline, outbound, signatures
from billing.budget import Budget
from billing.errors import StripeFailed
from billing.events import Json
from billing.stripe_api import Reading, Stripe, pages

OVERLAP_SECONDS = 120
POST_SECONDS = 10.0  # Stripe itself waits no longer


@dataclass(frozen=True, slots=True)
class Told:
    """An attempt to tell the webhook of an event; no status where there was no answer."""

    type: str
    event_id: str
    status: int | None

    @property
    def is_over(self) -> bool:
        """Whether it took or refused the event. Who is away, or says so, is told again."""
        return self.status is not None and self.status < 500 and self.status != 429


class Listener:
    """The way from the account's list of events to one webhook."""

    def __init__(self, stripe: Stripe, budget: Budget, *, to: str, secret: str) -> None:
        self._stripe = stripe
        self._budget = budget
        self._to = to
        self._secret = secret
        self._http = outbound.Http(to, connections=1, direct=True)
        self._since: int | None = None  # from when on to look, in Stripe's time; nobody has looked yet
        self._known: set[str] = set()  # of what was created since then

    def look(self, tell: Callable[[Told], None]) -> bool:
        """Post what is new. False if the webhook is away: what is left comes with the next look."""
        listed, since = self._listed()
        if self._since is not None:
            for event in reversed(listed):
                if event["id"] not in self._known and not self._post(event, tell):
                    return False
        self._since = since
        self._known = {event["id"] for event in listed}
        return True

    def _listed(self) -> tuple[list[Json], int]:
        """The events to look at, newest first, and from when on to look the next time."""
        listed: list[Json] = []
        since: int | None = None
        for page in pages(self._page):
            since = page.asked - OVERLAP_SECONDS if since is None else since
            listed += page.things
            if self._since is None and page.things and page.things[-1]["created"] < since:
                break  # the rest is older than any later look
        if since is None:
            raise StripeFailed("nonsense")
        return listed, since

    def _page(self, after: str | None) -> Reading | None:
        self._budget.spend("events.list", "background")
        return self._stripe.events_since(self._since or 0, after)

    def _post(self, event: Json, tell: Callable[[Told], None]) -> bool:
        body = json.dumps(event).encode()
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "Stripe-Signature": signatures.sign(body, self._secret, int(time.time())),
        }
        try:
            with deadline.within(POST_SECONDS):
                status = self._http.request("POST", self._to, headers=headers, body=body).status
        except HTTPError:
            status = None
        told = Told(event["type"], event["id"], status)
        tell(told)
        if told.is_over:
            self._known.add(told.event_id)
        return told.is_over
