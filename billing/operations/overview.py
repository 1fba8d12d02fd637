"""What needs attention first, and how the service is: the console's first page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from billing import directory, feed, inbox, reconcile, triage, vitals
from billing.db import SYSTEM
from billing.doctor import FAR_BEHIND, LATE
from billing.drift import Kind
from billing.findings import many, span
from billing.inbox import Lately
from billing.policy import STATES
from billing.reconcile import Standing
from billing.vitals import Vitals
from billing.wiring import Billing

COUNTED = 10_000
NAMED = 3  # of the tenants whose customers cannot be right
NEEDS: dict[Kind, str] = {
    "customer_deleted": "its customer was deleted at Stripe",
    "foreign_customer": "its customer is another's, or unknown to Stripe",
}

Place = Literal["inbox", "tenants", "plans", "consumers", "doctor"]


@dataclass(frozen=True, slots=True)
class Attention:
    """Something that somebody should look at, the worst first, and where."""

    level: Literal["problem", "warning"]
    sentence: str
    place: Place
    state: str = ""  # of which events or tenants
    tenant_id: str = ""  # which tenant alone


@dataclass(frozen=True, slots=True)
class Overview:
    """All of it, at one moment."""

    attention: list[Attention]
    vitals: Vitals
    lately: Lately
    tenants: dict[str, int]  # by state, counted up to COUNTED
    reconciled: Standing
    head: str


def overview(billing: Billing) -> Overview:
    """How the service is now."""
    with billing.db.begin(SYSTEM) as connection:
        taken = vitals.taken(connection)
        lately = inbox.lately(connection)
        failures = triage.failures(connection)
        tenants = directory.counted(connection, STATES, most=COUNTED)
        reconciled = reconcile.standing(connection)
        head = str(feed.overview(connection).head)
    buried = [one for one in failures if one.state == "buried"]
    why = ", ".join(f"{one.events} \N{MULTIPLICATION SIGN} {one.reason}" for one in buried)
    found = [*_problems(billing, taken, why), *_warnings(taken, reconciled)]
    return Overview(found, taken, lately, tenants, reconciled, head)


def _problems(billing: Billing, taken: Vitals, why: str) -> Iterator[Attention]:
    if not taken.workers:
        yield Attention("problem", "No worker is alive: nothing is applied until one is", "doctor")
    if taken.buried:
        buried = _said(taken.buried, "event is buried", "events are buried")
        yield Attention("problem", f"{buried}: {why}", "inbox", "buried")
    if taken.oldest_unprocessed is not None and taken.oldest_unprocessed > LATE.total_seconds():
        sentence = f"The oldest event that is not done came {span(taken.oldest_unprocessed)} ago"
        yield Attention("problem", sentence, "inbox", "due")
    if taken.is_silent(billing.settings.billing_expect_webhook_every):
        silence = f"for {span(taken.last_webhook)}" if taken.last_webhook else "for long"
        yield Attention("problem", f"Stripe has posted nothing {silence}", "doctor")


def _warnings(taken: Vitals, reconciled: Standing) -> Iterator[Attention]:
    for needing in reconciled.needing[:NAMED]:
        sentence = f"{needing.tenant_id}: {NEEDS[needing.kind]} ({needing.customer})"
        yield Attention("warning", sentence, "tenants", tenant_id=needing.tenant_id)
    if len(reconciled.needing) > NAMED:
        rest = len(reconciled.needing) - NAMED
        yield Attention("warning", f"{rest} more tenants have a customer that cannot be right", "tenants")
    if taken.waiting:
        waiting = _said(taken.waiting, "event waits", "events wait")
        yield Attention("warning", f"{waiting}: no tenant owns the customer", "inbox", "waiting")
    if taken.never_synced:
        linked = _said(taken.never_synced, "linked tenant", "linked tenants")
        yield Attention("warning", f"Stripe was never asked about {linked}", "tenants", "never")
    for one in taken.consumers:
        if one.behind >= FAR_BEHIND:
            yield Attention("warning", f"{one.name} is {many(one.behind)} changes behind", "consumers")


def _said(number: int, one: str, more: str) -> str:
    return f"{many(number)} {one if number == 1 else more}"
