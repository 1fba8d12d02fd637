"""What needs attention first, and how the service is: the console's first page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from sqlalchemy import Connection

from billing import budget, directory, feed, inbox, questions, reconcile, triage, vitals
from billing.db import SYSTEM
from billing.doctor import FAR_BEHIND, LATE
from billing.drift import Kind
from billing.findings import number_of, span
from billing.inbox import Lately
from billing.operations.cures import STRIPES
from billing.policy import STATES
from billing.questions import Answering
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
class AtStripe:
    """Whether Stripe answers, as far as those know who ask it."""

    answering: Answering
    takes_key: bool  # or nothing was answered since it refused it

    @property
    def is_away(self) -> bool:
        """Whether what is owed has failed for long, and nothing was answered meanwhile."""
        at, owed = self.answering.answered_at, self.answering.owed_since
        return owed is not None and (at is None or at < owed)


@dataclass(frozen=True, slots=True)
class Overview:
    """All of it, at one moment."""

    attention: list[Attention]
    vitals: Vitals
    stripe: AtStripe
    lately: Lately
    tenants: dict[str, int]  # by state, counted up to COUNTED
    reconciled: Standing
    head: str


def overview(billing: Billing) -> Overview:
    """How the service is now."""
    with billing.db.begin(SYSTEM) as connection:
        taken = vitals.taken(connection)
        stripe = _at_stripe(connection)
        lately = inbox.lately(connection)
        failures = triage.failures(connection)
        tenants = directory.counted(connection, STATES, most=COUNTED)
        reconciled = reconcile.standing(connection)
        head = str(feed.overview(connection).head)
    buried = [one for one in failures if one.state == "buried"]
    why = ", ".join(f"{one.events} \N{MULTIPLICATION SIGN} {one.reason}" for one in buried)
    found = [*_problems(billing, taken, stripe, why), *_warnings(taken, stripe, reconciled)]
    return Overview(found, taken, stripe, lately, tenants, reconciled, head)


def _at_stripe(connection: Connection) -> AtStripe:
    """What pauses ends before anything more is answered: an answer after that says that the key is taken."""
    answering, refused = questions.answering(connection), budget.paused_until(connection, "key_refused")
    at = answering.answered_at
    return AtStripe(answering, takes_key=refused is None or (at is not None and at > refused))


def _problems(billing: Billing, taken: Vitals, stripe: AtStripe, why: str) -> Iterator[Attention]:
    if not stripe.takes_key:
        yield Attention("problem", STRIPES["key_refused"], "doctor")
    elif stripe.is_away:
        owed = number_of(stripe.answering.failing, "answer")
        sentence = f"Stripe does not answer: it owes {owed}, the oldest for {_since(stripe.answering)}"
        yield Attention("problem", sentence, "doctor")
    if not taken.workers:
        yield Attention("problem", "No worker is alive: nothing is applied until one is", "doctor")
    if taken.buried:
        buried = number_of(taken.buried, "event is buried", "events are buried")
        yield Attention("problem", f"{buried}: {why}", "inbox", "buried")
    if taken.oldest_unprocessed is not None and taken.oldest_unprocessed > LATE.total_seconds():
        sentence = f"The oldest event that is not done came {span(taken.oldest_unprocessed)} ago"
        yield Attention("problem", sentence, "inbox", "due")
    if taken.is_silent(billing.settings.billing_expect_webhook_every):
        silence = f"for {span(taken.last_webhook)}" if taken.last_webhook else "for long"
        yield Attention("problem", f"Stripe has posted nothing {silence}", "doctor")


def _since(answering: Answering) -> str:
    owed = answering.owed_since or datetime.now(UTC)
    return span((datetime.now(UTC) - owed).total_seconds())


def _warnings(taken: Vitals, stripe: AtStripe, reconciled: Standing) -> Iterator[Attention]:
    if stripe.answering.failing and stripe.takes_key and not stripe.is_away:
        fail = number_of(stripe.answering.failing, "question to Stripe keeps", "questions to Stripe keep")
        sentence = f"{fail} failing, the oldest for {_since(stripe.answering)}, while it answers others"
        yield Attention("warning", sentence, "inbox", "asking")
    for needing in reconciled.needing[:NAMED]:
        sentence = f"{needing.tenant_id}: {NEEDS[needing.kind]} ({needing.customer})"
        yield Attention("warning", sentence, "tenants", tenant_id=needing.tenant_id)
    unnamed = sum(taken.drifted.get(kind, 0) for kind in NEEDS) - len(reconciled.needing[:NAMED])
    if unnamed > 0:
        rest = number_of(unnamed, "more tenant has", "more tenants have")
        yield Attention("warning", f"{rest} a customer that cannot be right", "tenants")
    if taken.waiting:
        waiting = number_of(taken.waiting, "event waits", "events wait")
        yield Attention("warning", f"{waiting}: no tenant owns the customer", "inbox", "waiting")
    if taken.never_synced:
        linked = number_of(taken.never_synced, "linked tenant")
        yield Attention("warning", f"Stripe was never asked about {linked}", "tenants", "never")
    for one in taken.consumers:
        if one.behind >= FAR_BEHIND:
            yield Attention("warning", f"{one.name} is {number_of(one.behind, 'change')} behind", "consumers")
