"""The verb of customers: every tenant that buys has one at Stripe, and only one, whatever races.

What is to be made is written down first; its id is Stripe's idempotency key (`checkouts.customer_intents`). The
next one is made only where Stripe has lost the first, or has deleted it. A customer that is there already
becomes a tenant's by `link`, where nothing speaks for another tenant. `put` takes in what a service says.

What a tenant is called is kept here first, and `tell` has Stripe's customer say the same. What is kept is
untold until then, so that whoever comes after a crash, or a failure of Stripe's, tells it; in the end a worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import structlog

from billing import audit, checkouts, customers, deadline, questions, state, sync
from billing.audit import Attempt, By
from billing.budget import Budget, Lane
from billing.checkouts import Intent
from billing.customers import Profile
from billing.db import SYSTEM, Database
from billing.errors import (
    AlreadyLinked,
    BillingError,
    CustomerNotFound,
    CustomerOfAnother,
    InvalidRequest,
    OtherCustomer,
    ServiceUnavailable,
    StripeFailed,
)
from billing.stripe_api import Stripe

GENERATIONS = 3  # made in a row before something is very wrong
ROUNDS = 3  # of telling, while others change what is to be told
UNTOLD = timedelta(minutes=5)  # by then whoever was about to tell has failed
AT_ONCE = 100  # tenants that are looked up
PUT_SECONDS = 24.0
CURRENT_SECONDS = 5.0  # how long a service waits for what its new customer has

log = structlog.get_logger(__name__)


def customer_of(db: Database, stripe: Stripe, budget: Budget, tenant_id: str) -> str:
    """The tenant's Stripe customer, made if it has none, or if Stripe has deleted the one it had."""
    with db.begin(SYSTEM) as connection:
        linked = customers.of(connection, tenant_id)
        is_behind = linked is not None and questions.is_wanted(connection, linked)
    if linked and is_behind:
        sync.insist(db, stripe, budget, linked)
    for generation in range(GENERATIONS):
        with db.begin(SYSTEM) as connection:
            # Stripe may have refused the name or the e-mail: what is made after that has neither.
            given = {} if generation else customers.profile(connection, tenant_id).given
            intent = checkouts.intend_customer(connection, tenant_id, given)  # waits for whoever is linking one
            linked = customers.of(connection, tenant_id)
            if linked and not questions.is_deleted(connection, linked):
                checkouts.close_intent(connection, intent.id, linked)
                return linked
        if made := _made(stripe, budget, tenant_id, intent):
            return _enrolled(db, stripe, tenant_id, intent, made, instead_of=linked)
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
        made = stripe.create_customer(whose, idempotency_key=intent.id, **intent.params)
    except StripeFailed as e:
        if e.replayed or (e.reason == "refused" and e.about in intent.params):
            return None
        raise
    return None if made.replayed and _is_gone(stripe, budget, made.id) else made.id


def _is_gone(stripe: Stripe, budget: Budget, customer: str) -> bool:
    budget.spend("customers.retrieve", "waiting")
    found = stripe.customer(customer)
    return found is None or found.things[0].get("deleted") is True


def _enrolled(
    db: Database, stripe: Stripe, tenant_id: str, intent: Intent, customer: str, *, instead_of: str | None
) -> str:
    """Make it the tenant's. There is nothing of it at Stripe yet that anybody would have to ask about."""
    says = Profile(customer, intent.params.get("name"), intent.params.get("email"), is_untold=False)
    with db.begin(SYSTEM) as connection:
        questions.lock(connection, customer)
        customers.link(connection, tenant_id, customer, by="checkout", instead_of=instead_of)
        questions.born(connection, customer)
        checkouts.close_intent(connection, intent.id, customer)
        linked = customers.of(connection, tenant_id)
        is_told = customers.told(connection, tenant_id, says)
        changed = state.refresh(connection, [tenant_id], cause="link")
    sync.tell(changed)
    if linked and linked != customer:
        log.warning("customer.spare", tenant=tenant_id, customer=customer)
        return linked
    log.info("customer.linked", tenant=tenant_id, customer=customer, by="checkout")
    if not is_told:
        try_to_tell(db, stripe, tenant_id)
    return customer


# ---- a customer that is there already


def link(
    db: Database,
    stripe: Stripe,
    budget: Budget,
    tenant_id: str,
    customer: str,
    *,
    by: str | By,
    replace: bool = False,
    whosever: bool = False,
) -> int:
    """Make this customer of Stripe's the tenant's, unless it is gone or another's. How many events had waited.

    `whosever` its metadata says it is: our own links decide alone, and Stripe's customer is to be told.
    """
    with db.begin(SYSTEM) as connection:
        if customers.owners(connection, [customer]).get(customer, tenant_id) != tenant_id:
            raise AlreadyLinked
    check(stripe, budget, tenant_id, customer, whosever=whosever)
    woken = sync.link(db, tenant_id, customer, by=by, replace=replace)
    if woken is None:
        raise OtherCustomer
    return woken


def check(
    stripe: Stripe,
    budget: Budget,
    tenant_id: str,
    customer: str,
    *,
    whosever: bool = False,
    lane: Lane = "waiting",
) -> None:
    """Refuse a customer that is gone, or that names another tenant unless it may be `whosever`."""
    budget.spend("customers.retrieve", lane)
    found = stripe.customer(customer)
    if found is None or found.things[0].get("deleted"):
        raise CustomerNotFound
    named = customers.named(found.things[0])
    if named and named != tenant_id and not whosever:
        raise CustomerOfAnother


def unlink(db: Database, stripe: Stripe, budget: Budget, tenant_id: str, by: By) -> tuple[str, bool]:
    """Leave the tenant without a customer: which it was, and whether Stripe's no longer says whose it is.

    It is unlinked here first. Where Stripe fails then, its customer goes on naming a tenant it is not: nobody
    becomes its owner by that.
    """
    customer = sync.unlink(db, tenant_id, by)
    try:
        budget.spend("customers.retrieve", "waiting")
        found = stripe.customer(customer)
        if found and customers.named(found.things[0]) == tenant_id:
            stripe.update_customer(customer, {"tenant_id": ""})
    except (StripeFailed, ServiceUnavailable) as e:
        log.warning("customer.untold", tenant=tenant_id, customer=customer, reason=e.outcome)
        return customer, False
    return customer, True


def tell(db: Database, stripe: Stripe, tenant_id: str) -> None:
    """Have Stripe's customer say whose it is and what the tenant is called, if that is untold.

    Of several who tell at once, each goes on until what it told is what is kept: the last word is the newest,
    unless it was an older one's whose process died over it.
    """
    for done in range(ROUNDS):
        with db.begin(SYSTEM) as connection:
            kept = customers.profile(connection, tenant_id)
        if kept.customer is None or not (kept.is_untold or done):
            return
        if not _say(stripe, tenant_id, kept):
            with db.begin(SYSTEM) as connection:  # it is gone: the next purchase makes another
                questions.want(connection, [kept.customer])
            return
        with db.begin(SYSTEM) as connection:
            if customers.told(connection, tenant_id, kept):
                return
    raise StripeFailed("overtaken", retry_after=1)


def _say(stripe: Stripe, tenant_id: str, kept: Profile) -> bool:
    """False if Stripe has no such customer any more."""
    assert kept.customer
    named = {key: said for key, said in (("name", kept.name), ("email", kept.email)) if said is not None}
    try:
        stripe.update_customer(kept.customer, {"tenant_id": tenant_id}, **named)
    except StripeFailed as e:
        if e.code_at_stripe == "resource_missing":
            return False
        if e.reason == "refused" and e.about in named:
            raise InvalidRequest(f"{e.about}: Stripe does not take this", param=e.about) from e
        raise
    return True


def try_to_tell(db: Database, stripe: Stripe, tenant_id: str) -> bool:
    """The customer does without, if need be: nobody's purchase waits for a name. Whether it did not have to."""
    try:
        tell(db, stripe, tenant_id)
    except (StripeFailed, InvalidRequest) as e:
        log.warning("customer.untold", tenant=tenant_id, reason=e.outcome)
        return False
    return True


def tell_late(db: Database, stripe: Stripe, budget: Budget, *, after: str = "") -> str:
    """Tell what nobody came to tell. Where to go on: after whom Stripe failed at; "" at the end.

    What Stripe will not take stays untold, and is in nobody's way.
    """
    while True:
        with db.begin(SYSTEM) as connection:
            late = customers.untold(connection, older=UNTOLD, after=after, most=AT_ONCE)
        for tenant_id in late:
            after = tenant_id
            budget.spend("customers.update", "background")
            try:
                tell(db, stripe, tenant_id)
            except (StripeFailed, InvalidRequest) as e:
                log.warning("customer.untold", tenant=tenant_id, reason=e.outcome)
                if isinstance(e, StripeFailed) and e.is_away:
                    return after
        if len(late) < AT_ONCE:
            return ""


# ---- what a service says


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant as it is, and the version of its document."""

    name: str | None
    email: str | None
    customer: str | None
    version: int


def put(
    db: Database, stripe: Stripe, budget: Budget, attempt: Attempt, said: Mapping[str, str | None]
) -> Tenant:
    """Take in `name`, `email` and `stripe_customer_id`, as far as they are said.

    A refused customer changes nothing. Saying it all twice is saying it once, and mends what the first had to
    leave undone.
    """
    entry = db.run(SYSTEM, audit.begin(attempt))
    try:
        with deadline.within(PUT_SECONDS):
            tenant = _put(db, stripe, budget, attempt, said)
    except ServiceUnavailable:
        raise  # the database is away: there is nowhere to write
    except BillingError as e:
        db.run(SYSTEM, audit.settle(entry, e.outcome, None))
        raise
    except Exception:
        with suppress(ServiceUnavailable):  # the bug is what has to be heard of
            db.run(SYSTEM, audit.settle(entry, "failed", None))
        raise
    db.run(SYSTEM, audit.settle(entry, "done", tenant.customer))
    return tenant


def _put(
    db: Database, stripe: Stripe, budget: Budget, attempt: Attempt, said: Mapping[str, str | None]
) -> Tenant:
    tenant_id, customer = attempt.tenant_id, said.get("stripe_customer_id")
    with db.begin(SYSTEM) as connection:
        linked = customers.of(connection, tenant_id)
    if "stripe_customer_id" in said and linked and linked != customer:
        raise OtherCustomer
    is_new = customer is not None and linked is None
    if customer and is_new:
        link(db, stripe, budget, tenant_id, customer, by=attempt.actor)
    with db.begin(SYSTEM) as connection:
        customers.describe(connection, tenant_id, said)
        changed = state.refresh(connection, [tenant_id], cause="name")
    sync.tell(changed)
    tell(db, stripe, tenant_id)
    if customer and is_new:
        sync.now(db, stripe, budget, customer, patience=min(CURRENT_SECONDS, max(0.0, deadline.left())))
    with db.begin(SYSTEM) as connection:
        kept = customers.profile(connection, tenant_id)
        version = state.version_of(connection, tenant_id)
    return Tenant(kept.name or None, kept.email or None, kept.customer, version)
