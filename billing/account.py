"""The verb of how our account at Stripe is set up: key, clocks, webhook endpoint, portal.

`look` only reads. What a restricted key may not read is a note, and the rest is looked at all the same. `mend`
makes the webhook endpoint what it ought to be, once however often it is called.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

import structlog

from billing import catalogue
from billing.budget import Budget
from billing.catalogue import Catalogue
from billing.errors import ServiceUnavailable, StripeFailed
from billing.events import USED, Json, name, part
from billing.findings import Expected, Finding, Level, few, span
from billing.signatures import TOLERANCE_SECONDS
from billing.stripe_api import API_VERSION, Reading, Stripe

WEBHOOK_PATH = "/webhooks/stripe"
SLOW_SECONDS = 2.0
CLOCK_SECONDS = 60  # of difference, long before signatures fail

Answer = TypeVar("Answer")

log = structlog.get_logger(__name__)

found = partial(Finding, "Stripe")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A webhook endpoint, as far as it matters here."""

    id: str
    url: str
    is_enabled: bool
    version: str | None  # None: the account's own
    types: frozenset[str]

    @classmethod
    def of(cls, thing: Json) -> Endpoint:
        """As Stripe writes it."""
        given = thing.get("enabled_events")
        types = frozenset(filter(None, map(name, given))) if isinstance(given, list) else frozenset()
        return cls(
            id=name(thing.get("id")) or "",
            url=name(thing.get("url")) or "",
            is_enabled=thing.get("status") == "enabled",
            version=name(thing.get("api_version")),
            types=types,
        )

    @property
    def leads_to_us(self) -> bool:
        """Whether its path is the webhook's: by which host we are called, nobody here knows."""
        return self.url.partition("?")[0].rstrip("/").endswith(WEBHOOK_PATH)

    @property
    def lacks(self) -> list[str]:
        """The types of events that are used here and not sent."""
        return [] if "*" in self.types else sorted(USED - self.types)

    def sends_ours(self, account_version: str | None) -> bool:
        """Whether its events come in the version that is read here."""
        return (self.version or account_version) == API_VERSION


@dataclass(frozen=True)
class _Asked(Generic[Answer]):
    """What came of a read: an answer, which may be that there is no such thing, or a failure."""

    answer: Answer | None
    failure: StripeFailed | None
    seconds: float
    at: float

    @property
    def is_forbidden(self) -> bool:
        """A restricted key may do some things and not others."""
        return self.failure is not None and self.failure.status_at_stripe == 403


def _ask(budget: Budget, endpoint: str, read: Callable[[], Answer]) -> _Asked[Answer]:
    """A read, counted where that can be done, and made all the same where it cannot."""
    try:
        budget.spend(endpoint, "background")
    except (ServiceUnavailable, StripeFailed) as e:
        log.info("doctor.uncounted", endpoint=endpoint, outcome=e.outcome)
    began = time.monotonic()
    try:
        answer, failure = read(), None
    except StripeFailed as e:
        answer, failure = None, e
    return _Asked(answer, failure, time.monotonic() - began, time.time())


def look(stripe: Stripe, budget: Budget, expected: Expected, sold: Catalogue | None) -> Iterator[Finding]:
    """Everything there is to find; with the catalogue, also what of it the portal offers."""
    latest = _ask(budget, "events.list", stripe.latest_event)
    if latest.failure and not latest.is_forbidden:
        yield _no_answer(latest.failure)
        return
    mode = "live" if expected.livemode else "test"
    yield found(
        "warning" if latest.seconds > SLOW_SECONDS else "ok",
        f"the key works ({mode} mode); an answer took {latest.seconds * 1000:.0f} ms",
    )
    if latest.is_forbidden:
        yield _forbidden("events", "what was not delivered is not fetched")
    account_version = _version_in(latest.answer)
    if latest.answer:
        yield _clock(latest.answer, latest.at)
    if account_version not in (None, API_VERSION):
        yield found("note", f"the account's default version is {account_version}: what is fetched comes in it")
    endpoints = _ask(budget, "webhook_endpoints.list", stripe.webhook_endpoints)
    if endpoints.failure:
        yield _unread(endpoints, "webhook endpoints", "the endpoint was not looked at")
    else:
        yield from _endpoints(_listed(endpoints.answer), account_version, expected)
    portal = _ask(budget, "billing_portal.configurations", lambda: stripe.portal_configuration(expected.portal))
    if portal.failure:
        yield _unread(portal, "portal configurations", "the portal was not looked at")
    else:
        yield from _portal(portal.answer, expected, sold)
    yield found(
        "note",
        "cannot be read by API: Dashboard › Settings › Checkout › Limit customers to one subscription",
        "turn it on: it stands behind what is done here",
    )


def _version_in(latest: Reading | None) -> str | None:
    """The account's own: the events that are listed come in it."""
    return next((name(one.get("api_version")) for one in latest.things), None) if latest else None


def _listed(page: Reading | None) -> list[Endpoint]:
    """One page has them all: Stripe lets an account have 16."""
    return [Endpoint.of(thing) for thing in page.things] if page else []


def _no_answer(failure: StripeFailed) -> Finding:
    if failure.status_at_stripe == 401:
        cure = "STRIPE_SECRET_KEY: Dashboard › Developers › API keys"
        return found("problem", "Stripe does not take the key", cure)
    cure = "status.stripe.com; the way out of this network, its proxy, STRIPE_API_BASE"
    return found("problem", f"Stripe gave no answer ({failure.reason})", cure)


def _forbidden(what: str, so: str) -> Finding:
    cure = "Dashboard › Developers › API keys: give it the right to read them, if you want that"
    return found("note", f"this restricted key may not read {what}: {so}", cure)


def _unread(asked: _Asked[Any], what: str, so: str) -> Finding:
    if asked.is_forbidden:
        return _forbidden(what, so)
    reason = asked.failure.reason if asked.failure else "nonsense"
    return found("problem", f"Stripe did not tell its {what} ({reason})", "try again")


def _clock(reading: Reading, at: float) -> Finding:
    """By how much Stripe's clock and this machine's surely differ: its `Date` has whole seconds."""
    seconds = max(0.0, reading.asked - at, at - reading.answered)
    says = f"clocks differ by {span(seconds)}" if seconds else "clocks agree to the second"
    if seconds < CLOCK_SECONDS:
        return found("ok", f"{says} (signatures tolerate {TOLERANCE_SECONDS} s)")
    level: Level = "problem" if seconds >= TOLERANCE_SECONDS else "warning"
    cure = "have this machine's clock set by NTP"
    return found(level, f"{says}, and signatures tolerate {TOLERANCE_SECONDS} s", cure)


def _endpoints(
    every: Collection[Endpoint], account_version: str | None, expected: Expected
) -> Iterator[Finding]:
    ours = [one for one in every if one.leads_to_us]
    if not ours:
        level: Level = "problem" if expected.livemode else "warning"
        cure = f"flask billing doctor --fix --url https://<service>{WEBHOOK_PATH}"
        cure += "" if expected.livemode else "; on a developer's machine, flask billing listen"
        yield found(level, f"no webhook endpoint leads to {WEBHOOK_PATH}", cure)
    if len({one.url for one in ours}) > 1:
        yield found("note", f"several endpoints lead to {WEBHOOK_PATH}: is each a deployment's of yours?")
    for one in ours:
        others = [other for other in ours if other is not one and other.url == one.url and other.is_enabled]
        yield from _endpoint(one, account_version, others)


def _endpoint(one: Endpoint, account_version: str | None, others: Sequence[Endpoint]) -> Iterator[Finding]:
    which = f"webhook endpoint {one.id} at {one.url}"
    fix = f"flask billing doctor --fix --url {one.url}"
    if not one.is_enabled:
        level: Level = "note" if others else "problem"
        yield found(level, f"{which} is disabled", None if others else f"{fix} enables it")
        return
    if one.lacks:
        says = f"{which} lacks {len(one.lacks)} of {len(USED)} event types: {few(one.lacks)}"
        yield found("warning", says, f"{fix} adds them")
    if not one.sends_ours(account_version):
        version = one.version or f"the account's default version, {account_version or 'whatever that is'}"
        cure = f"{fix} makes one in that version"
        if pinned := next((other for other in others if other.sends_ours(account_version)), None):
            cure = f"delete it in the Dashboard once events come by {pinned.id}: flask billing inbox tells"
        yield found("warning", f"{which} sends {version}, and {API_VERSION} is read here", cure)
    elif not one.lacks:
        types = "every event type" if "*" in one.types else f"{len(USED)} of {len(USED)} event types"
        yield found("ok", f"{which}: enabled, {one.version or account_version}, {types}")


PORTAL = "Dashboard › Settings › Billing › Customer portal"
FEATURES = {
    "payment_method_update": "change their card",
    "subscription_cancel": "cancel",
    "subscription_update": "change plans",
    "invoice_history": "see their invoices",
}


def _portal(portal: Json | None, expected: Expected, sold: Catalogue | None) -> Iterator[Finding]:
    if portal is None:
        which = expected.portal or "of the account, by default,"
        cure = "correct BILLING_PORTAL_CONFIGURATION" if expected.portal else f"save one: {PORTAL}"
        yield found("problem", f"there is no portal configuration {which} in this mode", cure)
        return
    id, features = name(portal.get("id")) or "", portal.get("features")
    features = features if isinstance(features, dict) else {}
    if portal.get("active") is not True:
        yield found("problem", f"portal configuration {id} is not active", "activate it, or choose another one")
    on = {feature for feature in FEATURES if part(features, feature).get("enabled") is True}
    yield found(
        "ok", f"portal configuration {id}: people can {few(FEATURES[one] for one in FEATURES if one in on)}"
    )
    for feature in (one for one in FEATURES if one not in on):
        level: Level = "note" if feature == "invoice_history" else "warning"
        says = f"portal configuration {id} does not let people {FEATURES[feature]} ({feature})"
        yield found(level, says, PORTAL)
    if "subscription_update" in on and sold:
        offered = catalogue.offered(portal)
        for plan in (plan for plan in sold.plans.values() if plan.price.id not in offered):
            says = f"plan {plan.key} is on sale and not in the portal: to change to it is answered 409"
            yield found("warning", says, f"add its price {plan.price.id}: {PORTAL}")


# ---- mending


class CannotMend(Exception):
    """Why not, and what to say to have it done."""


@dataclass(frozen=True, slots=True)
class Mended:
    """What was done to which endpoint. A new one's secret is shown this once."""

    id: str
    did: str
    secret: str | None = field(default=None, repr=False)


def mend(stripe: Stripe, budget: Budget, url: str | None, *, may_create: bool = True) -> Mended | None:
    """Have an endpoint that is enabled, in our version, and sends all that is used here. None: there is one.

    An endpoint's version cannot be changed: in place of one in another, a new one is made beside it.
    """
    asked = _ask(budget, "webhook_endpoints.list", stripe.webhook_endpoints)
    if asked.failure:
        raise asked.failure
    every = _listed(asked.answer)
    url = url or _only_address(every)
    there = [one for one in every if one.url == url]
    own = _version_in(_ask(budget, "events.list", stripe.latest_event).answer)
    usable = sorted((one for one in there if one.sends_ours(own)), key=lambda one: (not one.is_enabled, one.id))
    if not usable:
        if not may_create:
            raise CannotMend("A new endpoint is needed, whose secret is shown once: leave out --json.")
        made = stripe.create_webhook_endpoint(url, sorted(USED))
        return Mended(made.id, f"made webhook endpoint {made.id} at {url}", made.secret)
    one = usable[0]
    if one.is_enabled and not one.lacks:
        return None
    stripe.update_webhook_endpoint(one.id, sorted(one.types if "*" in one.types else USED | one.types))
    did = [f"added {len(one.lacks)} event types to"] if one.lacks else []
    did += [] if one.is_enabled else ["enabled"]
    return Mended(one.id, f"{' and '.join(did)} webhook endpoint {one.id}")


def _only_address(every: Iterable[Endpoint]) -> str:
    addresses = sorted({one.url for one in every if one.leads_to_us})
    if not addresses:
        raise CannotMend(f"Say where this service is: --url https://<service>{WEBHOOK_PATH}")
    if len(addresses) > 1:
        raise CannotMend(f"Say with --url which of these is this service: {', '.join(addresses)}")
    return addresses[0]
