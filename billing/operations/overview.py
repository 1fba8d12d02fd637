"""What needs attention first, and how the service is: the console's first page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from billing import feed, inbox, triage, vitals
from billing.db import SYSTEM
from billing.doctor import FAR_BEHIND, LATE
from billing.findings import many, span
from billing.inbox import Lately
from billing.vitals import Vitals
from billing.wiring import Billing

Place = Literal["inbox", "tenants", "plans", "consumers", "doctor"]


@dataclass(frozen=True, slots=True)
class Attention:
    """Something that somebody should look at, the worst first, and where."""

    level: Literal["problem", "warning"]
    sentence: str
    place: Place
    state: str = ""  # which events, of the inbox


@dataclass(frozen=True, slots=True)
class Overview:
    """All of it, at one moment."""

    attention: list[Attention]
    vitals: Vitals
    lately: Lately
    head: str


def overview(billing: Billing) -> Overview:
    """How the service is now."""
    with billing.db.begin(SYSTEM) as connection:
        taken = vitals.taken(connection)
        lately = inbox.lately(connection)
        failures = triage.failures(connection)
        head = str(feed.overview(connection).head)
    buried = [one for one in failures if one.state == "buried"]
    why = ", ".join(f"{one.events} \N{MULTIPLICATION SIGN} {one.reason}" for one in buried)
    found = [*_problems(billing, taken, why), *_warnings(taken)]
    return Overview(found, taken, lately, head)


def _problems(billing: Billing, taken: Vitals, why: str) -> Iterator[Attention]:
    if not taken.workers:
        yield Attention("problem", "No worker is alive: nothing is applied until one is", "doctor")
    if taken.buried:
        yield Attention("problem", f"{many(taken.buried)} events are buried: {why}", "inbox", "buried")
    if taken.oldest_unprocessed is not None and taken.oldest_unprocessed > LATE.total_seconds():
        sentence = f"The oldest event that is not done came {span(taken.oldest_unprocessed)} ago"
        yield Attention("problem", sentence, "inbox", "due")
    if taken.is_silent(billing.settings.billing_expect_webhook_every):
        silence = f"for {span(taken.last_webhook)}" if taken.last_webhook else "for long"
        yield Attention("problem", f"Stripe has posted nothing {silence}", "doctor")


def _warnings(taken: Vitals) -> Iterator[Attention]:
    if taken.waiting:
        sentence = f"{many(taken.waiting)} events wait for somebody to own their customer"
        yield Attention("warning", sentence, "inbox", "waiting")
    if taken.never_synced:
        sentence = f"Stripe was never asked about {many(taken.never_synced)} linked tenants"
        yield Attention("warning", sentence, "tenants")
    for one in taken.consumers:
        if one.behind >= FAR_BEHIND:
            yield Attention("warning", f"{one.name} is {many(one.behind)} changes behind", "consumers")
