"""What is sold, as this service reads Stripe's catalogue: each plan, what it gives, and what cannot be read."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from billing import audit, catalogue, cataloguing, chores, deadline, errors, policy, subscriptions
from billing.audit import By
from billing.catalogue import Catalogue, Fault, Limit, Standing, key_of
from billing.db import SYSTEM
from billing.operations.base import SHOWN, Page
from billing.wiring import Billing

PATIENCE = 2.0  # seconds for what only Stripe knows of the portal: the page is more than that
PLACES = {  # after the point, where that is not two
    **dict.fromkeys(("bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga"), 0),
    **dict.fromkeys(("pyg", "rwf", "vnd", "vuv", "xaf", "xof", "xpf"), 0),
    **dict.fromkeys(("bhd", "jod", "kwd", "omr", "tnd"), 3),
}


@dataclass(frozen=True, slots=True)
class Feature:
    """What a plan says of a feature, and where: in metadata, or by Stripe's own features."""

    key: str
    is_on: bool
    limit: str | None  # unlimited, 25, or "10 for each"
    source: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Something that is paid again and again."""

    key: str
    product: str
    product_id: str
    price_id: str
    currency: str
    amount: int | None
    interval: str
    interval_count: int
    per_seat: bool
    standing: Standing
    in_portal: bool | None  # None: Stripe did not say
    subscriptions: int  # that are not over
    counted_all: bool  # or there may be more of them
    features: Sequence[Feature]

    @property
    def costs(self) -> str:
        """For people: `12.00 USD a month per seat`."""
        count, currency = self.interval_count, self.currency.upper()
        every = f"a {self.interval}" if count == 1 else f"every {count} {self.interval}s"
        if self.amount is None:
            return f"more than one amount in {currency} {every}"
        places = PLACES.get(self.currency, 2)
        amount = f"{self.amount / 10**places:,.{places}f} {currency}"
        return f"{amount} {every}{' per seat' if self.per_seat else ''}"


@dataclass(frozen=True, slots=True)
class Plans:
    """The catalogue in force. Edition 0 was never read."""

    edition: int
    age: float | None  # seconds since it was read
    default_plan: str | None  # the product of those without a subscription
    portal: str | None  # why Stripe did not say what the portal offers
    faults: Sequence[Fault]
    plans: Page[Plan]


def read(billing: Billing, after: str | None = None, most: int = SHOWN) -> Plans:
    """All that is sold, what is on sale first; `after` is the price to go on after."""
    offered, problem = _offered(billing)
    with billing.db.begin(SYSTEM) as connection:
        sold, age = catalogue.current(connection), catalogue.age(connection)
        every = sold.recurring
        first = next((place for place, plan in enumerate(every, 1) if plan.price.id == after), 0)
        shown = every[first : first + most + 1]
        ids = [plan.price.id for plan in shown]
        counted: dict[str, subscriptions.Counted] = {}
        for start in range(0, len(ids), SHOWN):
            counted |= subscriptions.counted(connection, ids[start : start + SHOWN])
    default = sold.default(sold.rules.default_plan)
    rows = [_plan(plan, sold, offered, counted[plan.price.id]) for plan in shown]
    return Plans(
        edition=sold.edition,
        age=age,
        default_plan=default.name if default else None,
        portal=problem,
        faults=sold.faults,
        plans=Page.of(rows, most, lambda plan: plan.price_id),
    )


def refresh(billing: Billing, by: By) -> None:
    """Have a worker read the catalogue at Stripe, at once."""
    with billing.db.begin(SYSTEM) as connection:
        audit.note(connection, by, "catalogue.refresh")
        chores.hasten(connection, cataloguing.CHORE)


def refresh_now(billing: Billing, by: By) -> None:
    """Read the catalogue at Stripe, for somebody who waits: with Stripe's features a thousand products take a
    minute.
    """
    refresh(billing, by)
    cataloguing.read(billing.db, billing.stripe, billing.budget)


def _offered(billing: Billing) -> tuple[Collection[str] | None, str | None]:
    """What the portal lets people change to; or that Stripe did not say, and why."""
    configuration = billing.settings.billing_portal_configuration
    try:
        with deadline.within(PATIENCE):
            return cataloguing.offered(billing.stripe, billing.budget, configuration, "background"), None
    except errors.StripeFailed as e:
        return None, e.outcome


def _plan(
    plan: catalogue.Plan, sold: Catalogue, offered: Collection[str] | None, counted: subscriptions.Counted
) -> Plan:
    price = plan.price
    return Plan(
        key=plan.key,
        product=plan.product.name,
        product_id=plan.product.id,
        price_id=price.id,
        currency=price.currency,
        amount=price.amount,
        interval=price.interval or "",
        interval_count=price.interval_count,
        per_seat=plan.per_seat,
        standing=plan.standing,
        in_portal=None if offered is None else price.id in offered,
        subscriptions=counted.number,
        counted_all=counted.exact,
        features=_features(plan, sold),
    )


def _features(plan: catalogue.Plan, sold: Catalogue) -> list[Feature]:
    """Those it speaks of. Whether one is on is what a document would say of it."""
    entitled = {key for key in map(key_of, plan.product.entitles) if key}
    given = policy.features_of(plan, sold)
    found = []
    for key in sorted(entitled | plan.terms.keys()):
        term = plan.terms.get(key)
        limit = _written(term.limit) if term and term.limit else None
        source = f"metadata says {term.says}" if term else "Stripe's feature"
        found.append(Feature(key, given[key]["enabled"], limit, source))
    return found


def _written(limit: Limit) -> str:
    if limit.unlimited:
        return "unlimited"
    return f"{limit.per_unit:,} for each" if limit.per_unit else f"{limit.fixed:,}"
