"""The verb of leaving: a tenant of which nothing is to be kept here.

Stripe is asked once more, about every customer the tenant was, and left as it is. What stays is the trail,
with who did this, why, and which customer at Stripe it was: whoever has to account for old payments finds them
there. The feed tells its consumers.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog
from sqlalchemy import Connection

from billing import (
    audit,
    checkouts,
    customers,
    drift,
    entitlements,
    inbox,
    invoices,
    overrides,
    questions,
    state,
    subscriptions,
    sync,
    versions,
)
from billing.audit import By
from billing.budget import Budget
from billing.db import SYSTEM, Database
from billing.errors import Busy, CheckoutUnderWay, StillSubscribed, StripeFailed
from billing.stripe_api import Stripe
from billing.subscriptions import FINAL

log = structlog.get_logger(__name__)


def forget(db: Database, stripe: Stripe, budget: Budget, tenant_id: str, by: By) -> bool:
    """Forget the tenant, unless it is buying or has a subscription that is not over. False if it is unknown."""
    with db.begin(SYSTEM) as connection:
        asked = _its_own(connection, tenant_id, customers.ever(connection, tenant_id))
    for one in asked:  # what happens to a former one since it was left, nobody has told us
        _ask(db, stripe, budget, one)
    with db.begin(SYSTEM) as connection:
        its_own = _locked(connection, tenant_id)
        customer = customers.of(connection, tenant_id, keep=True)
        if not {*its_own, customer} <= {*asked, None}:
            raise Busy("database")  # somebody is linking another
        if checkouts.is_under_way(connection, tenant_id):
            raise CheckoutUnderWay
        if checkouts.is_awaited(connection, tenant_id, within=checkouts.AWAITED):
            raise CheckoutUnderWay
        for one in its_own:
            if not FINAL.issuperset(subscriptions.statuses(connection, one).values()):
                raise StillSubscribed
            _forget_customer(connection, one)
        held = [
            checkouts.forget(connection, tenant_id),
            overrides.forget(connection, tenant_id),
            customers.forget(connection, tenant_id, customer),
            state.lock(connection, tenant_id),
        ]
        drift.forget(connection, tenant_id)
        if customers.is_known(connection, tenant_id):  # named for the first time while we were at it
            raise Busy("database")
        if was_known := any(held):
            audit.note(connection, by, "tenant.forget", tenant_id=tenant_id, stripe_object=customer)
        versions.forget(connection, tenant_id)
        state.forget(connection, tenant_id)
    log.info("tenant.forgotten", tenant=tenant_id, known=was_known)
    return was_known


def _ask(db: Database, stripe: Stripe, budget: Budget, customer: str) -> None:
    """See that we know of its subscriptions. A customer that Stripe has never heard of has none."""
    budget.spend("customers.retrieve", "waiting")
    if stripe.customer(customer) is not None and not sync.now(db, stripe, budget, customer):
        raise StripeFailed("unanswered", retry_after=5)


def _locked(connection: Connection, tenant_id: str) -> list[str]:
    """Its own customers; nobody else writes their state meanwhile."""
    ever = customers.ever(connection, tenant_id)
    for customer in sorted(ever):
        questions.lock(connection, customer)
    return _its_own(connection, tenant_id, ever)


def _its_own(connection: Connection, tenant_id: str, ever: Sequence[str]) -> list[str]:
    """Those of the customers it has or had that nobody else has by now."""
    owners = customers.owners(connection, ever)
    return sorted(customer for customer in ever if owners.get(customer, tenant_id) == tenant_id)


def _forget_customer(connection: Connection, customer: str) -> None:
    invoices.forget(connection, subscriptions.forget(connection, [customer]))
    entitlements.replace(connection, customer, ())
    questions.drop(connection, customer)
    inbox.release(connection, customer)
