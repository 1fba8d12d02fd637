"""The verb of the catalogue: read all of it from Stripe, and keep it.

Asked for when an event says that a product or a price has changed, and every few minutes besides: attaching a
feature to a product sends no event. Of readings that overlap, the one that began last counts in the end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import timedelta

import structlog

from billing import catalogue, chores
from billing.budget import Budget, Lane
from billing.catalogue import Catalogue, Rules
from billing.db import SYSTEM, Database
from billing.events import Json, name
from billing.stripe_api import Reading, Stripe, pages

CHORE = "catalogue"
LEASE = timedelta(minutes=1)  # renewed with each read; a reading that fails is begun again after it
AGE = timedelta(minutes=10)
SOON = timedelta(seconds=1)  # after an event: many may come together

log = structlog.get_logger(__name__)


def read(db: Database, stripe: Stripe, budget: Budget) -> bool:
    """Bring our catalogue up to date. Whether that made a new edition, by which all documents are measured."""
    with db.begin(SYSTEM) as connection:
        reading, due = catalogue.begin(connection), chores.due(connection, CHORE)

    def things(endpoint: str, read: Callable[[str | None], Reading | None]) -> Iterator[Json]:
        def counted(after: str | None) -> Reading | None:
            nonlocal due
            budget.spend(endpoint, "background")
            with db.begin(SYSTEM) as connection:
                due = chores.renew(connection, CHORE, LEASE, due=due)
            return read(after)

        for page in pages(counted):
            yield from page.things

    features = [
        name(thing.get("lookup_key")) for thing in things("entitlements.features.list", stripe.features)
    ]
    sold = list(things("products.list", stripe.products))
    entitles: dict[str, list[str]] = defaultdict(list)
    for product in sold if features else ():
        id = str(product.get("id"))
        for attached in things("products.features.list", lambda after, id=id: stripe.features_of(id, after)):  # type: ignore[misc]
            feature = attached.get("entitlement_feature")
            if isinstance(feature, dict) and (lookup_key := name(feature.get("lookup_key"))):
                entitles[id].append(lookup_key)
    prices = [catalogue.price_from(thing) for thing in things("prices.list", stripe.prices)]
    products = [catalogue.product_from(thing, entitles[str(thing.get("id"))]) for thing in sold]
    content = {
        "products": sorted(filter(None, products), key=lambda one: str(one["id"])),
        "prices": sorted(filter(None, prices), key=lambda one: str(one["id"])),
        "features": sorted(filter(None, features)),
    }
    with db.begin(SYSTEM) as connection:
        is_new = catalogue.keep(connection, reading, content)
        chores.done(connection, CHORE, AGE, due=due)
        current = catalogue.current(connection)
    if is_new:
        tell(current)
    return is_new


def offered(
    stripe: Stripe, budget: Budget, configuration: str | None, lane: Lane = "waiting"
) -> frozenset[str]:
    """The prices that the portal lets people change to, by this configuration or the account's default one."""
    budget.spend("billing_portal.configurations", lane)
    return catalogue.offered(stripe.portal_configuration(configuration))


def rule(db: Database, rules: Rules) -> None:
    """Have documents follow these settings."""
    with db.begin(SYSTEM) as connection:
        is_new = catalogue.rule(connection, rules)
        current = catalogue.current(connection)
    if is_new:
        tell(current)


def tell(current: Catalogue) -> None:
    """Write a new edition and its faults into the log."""
    log.info("catalogue.changed", edition=current.edition, plans=len(current.plans), faults=len(current.faults))
    for fault in current.faults:
        log.warning("catalogue.fault", where=fault.where, key=fault.key, fault=fault.sentence)
