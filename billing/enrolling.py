"""The verb of customers: every tenant that buys has one at Stripe, and only one, whatever races.

What is to be made is written down first; its id is Stripe's idempotency key (`checkouts.customer_intents`). The
next one is made only where Stripe has lost the first, or has deleted it.
"""

from __future__ import annotations

import structlog

from billing import checkouts, customers, questions, state, sync
from billing.budget import Budget
from billing.checkouts import Intent
from billing.db import SYSTEM, Database
from billing.errors import StripeFailed
from billing.stripe_api import Stripe

GENERATIONS = 3  # made in a row before something is very wrong

log = structlog.get_logger(__name__)


def customer_of(db: Database, stripe: Stripe, budget: Budget, tenant_id: str) -> str:
    """The tenant's Stripe customer, made if it has none, or if Stripe has deleted the one it had."""
    with db.begin(SYSTEM) as connection:
        linked = customers.of(connection, tenant_id)
        is_behind = linked is not None and questions.is_wanted(connection, linked)
    if linked and is_behind:
        sync.insist(db, stripe, budget, linked)
    for _ in range(GENERATIONS):
        with db.begin(SYSTEM) as connection:
            intent = checkouts.intend_customer(connection, tenant_id)  # waits for whoever is linking one
            linked = customers.of(connection, tenant_id)
            if linked and not questions.is_deleted(connection, linked):
                checkouts.close_intent(connection, intent.id, linked)
                return linked
        if made := _made(stripe, budget, tenant_id, intent):
            return _link(db, tenant_id, intent, made, instead_of=linked)
        with db.begin(SYSTEM) as connection:
            checkouts.close_intent(connection, intent.id, None)
    raise StripeFailed("no_customer")


def _made(stripe: Stripe, budget: Budget, tenant_id: str, intent: Intent) -> str | None:
    """The customer this intent has come to; None if it needs another."""
    if intent.is_old:  # Stripe may have made it, and forgotten the key
        budget.spend("customers.search", "waiting")
        found = stripe.customers_with(billing_intent=intent.id)
        return str(found.things[0].get("id")) if found and found.things else None
    whose = {"tenant_id": tenant_id, "billing_intent": intent.id}
    try:
        made = stripe.create_customer(whose, idempotency_key=intent.id)
    except StripeFailed as e:
        if e.replayed:
            return None
        raise
    return None if made.replayed and _is_gone(stripe, budget, made.id) else made.id


def _is_gone(stripe: Stripe, budget: Budget, customer: str) -> bool:
    budget.spend("customers.retrieve", "waiting")
    found = stripe.customer(customer)
    return found is None or found.things[0].get("deleted") is True


def _link(db: Database, tenant_id: str, intent: Intent, customer: str, *, instead_of: str | None) -> str:
    """Make it the tenant's. There is nothing of it at Stripe yet that anybody would have to ask about."""
    with db.begin(SYSTEM) as connection:
        questions.lock(connection, customer)
        customers.link(connection, tenant_id, customer, by="checkout", instead_of=instead_of)
        questions.born(connection, customer)
        checkouts.close_intent(connection, intent.id, customer)
        state.refresh(connection, [tenant_id])
        linked = customers.of(connection, tenant_id)
    if linked and linked != customer:
        log.warning("customer.spare", tenant=tenant_id, customer=customer)
        return linked
    log.info("customer.linked", tenant=tenant_id, customer=customer, by="checkout")
    return customer
