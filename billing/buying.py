"""The verb of Checkout: a tenant gets one session to subscribe in, and hears how that stands.

Every step can be repeated by anybody: what Stripe is to make is written down first (`checkouts`). A new session
is opened only when Stripe has said that the old one is over. No transaction is open while we talk to Stripe.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import structlog
from sqlalchemy import Connection

from billing import (
    cataloguing,
    checkouts,
    chores,
    customers,
    deadline,
    enrolling,
    errors,
    questions,
    subscriptions,
    sync,
)
from billing.budget import Budget
from billing.catalogue import Plan
from billing.checkouts import Checkout
from billing.db import SYSTEM, Database
from billing.errors import StripeFailed
from billing.stripe_api import CheckoutSession, Stripe

PATIENCE_SECONDS = 8.0  # for a turn
DEADLINE_SECONDS = 24.0
LONGEST_REFERENCE = 200  # Stripe's

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Terms:
    """What the settings decide of every Checkout."""

    trial_days: int
    automatic_tax: bool
    promotion_codes: bool


@dataclass(frozen=True, slots=True)
class Wish:
    """What a caller asks for. Two that are equal get one session."""

    plan: str
    quantity: int
    promotion_code: str | None
    success_url: str
    cancel_url: str


@dataclass(frozen=True, slots=True)
class Opened:
    """A session to send the browser to. `url` is a credential: not logged, not stored."""

    url: str
    session: str
    expires_at: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How a session stands: open, processing, complete, or expired."""

    status: str
    url: str | None = None


class Buying:
    """Checkout, for one process."""

    def __init__(self, db: Database, stripe: Stripe, budget: Budget, terms: Terms) -> None:
        self._db = db
        self._stripe = stripe
        self._budget = budget
        self._terms = terms

    # ---- opening one

    def open(self, tenant_id: str, plan: Plan, wish: Wish, *, caller_key: str | None = None) -> Opened:
        """The tenant's session for this wish: the one that is open, or a new one in place of any other.

        All of it in time for a router's 30 seconds; wherever it is cut off, the next caller takes it up.
        """
        with deadline.within(DEADLINE_SECONDS):
            return self._open(tenant_id, plan, wish, caller_key)

    def _open(self, tenant_id: str, plan: Plan, wish: Wish, caller_key: str | None) -> Opened:
        until, holder = time.monotonic() + PATIENCE_SECONDS, uuid.uuid4().hex
        while True:
            with self._db.begin(SYSTEM) as connection:
                self._refuse_reused(connection, tenant_id, wish, caller_key)
                live = checkouts.live(connection, tenant_id)
                is_open = live is not None and live.state == "open"
                same = live if live and is_open and self._is_good(connection, live, plan, wish) else None
                if same and caller_key:
                    checkouts.came_with(connection, same, caller_key)
                is_ours = not same and checkouts.take_turn(connection, tenant_id, holder)
            if same and (opened := _opened(self._look(same))):
                return opened
            if is_ours:
                with self._turn(tenant_id, holder):
                    return self._open_in_turn(tenant_id, plan, wish, caller_key)
            if time.monotonic() > until:
                raise errors.CheckoutBusy
            time.sleep(0.1)

    @contextmanager
    def _turn(self, tenant_id: str, holder: str) -> Iterator[None]:
        try:
            yield
        finally:
            with self._db.begin(SYSTEM) as connection:
                checkouts.end_turn(connection, tenant_id, holder)

    def _refuse_reused(
        self, connection: Connection, tenant_id: str, wish: Wish, caller_key: str | None
    ) -> None:
        if caller_key and checkouts.wished_with(connection, tenant_id, caller_key) not in (None, asdict(wish)):
            raise errors.IdempotencyKeyReused

    def _open_in_turn(self, tenant_id: str, plan: Plan, wish: Wish, caller_key: str | None) -> Opened:
        with self._db.begin(SYSTEM) as connection:
            live = checkouts.live(connection, tenant_id)
        if live and (opened := self._take_up(live, plan, wish)):
            return opened
        promotion = self._promotion(wish)
        customer = enrolling.customer_of(self._db, self._stripe, self._budget, tenant_id)
        self._refuse_subscribed(tenant_id, customer)
        with self._db.begin(SYSTEM) as connection:
            if customers.of(connection, tenant_id, keep=True) != customer:
                raise errors.CheckoutBusy  # somebody has just linked another
            had_trial = subscriptions.had_trial(connection, customers.ever(connection, tenant_id))
            checkouts.intend(
                connection,
                tenant_id,
                customer,
                wish=asdict(wish),
                params=self._params(tenant_id, customer, plan, wish, promotion, had_trial=had_trial),
                caller_key=caller_key,
            )
            live = checkouts.live(connection, tenant_id)
        opened = self._take_up(live, plan, wish, is_new=True) if live else None
        if not opened:  # somebody whose turn it was before came after all
            raise errors.CheckoutBusy
        return opened

    def _take_up(self, live: Checkout, plan: Plan, wish: Wish, *, is_new: bool = False) -> Opened | None:
        """What is under way, if it is what is wished for; else it is over when this returns."""
        session = self._look(live, is_new=is_new)
        with self._db.begin(SYSTEM) as connection:
            is_good = self._is_good(connection, live, plan, wish)
        if session and session.status == "open" and not is_good:
            session = self._expire(live, session)
        if session and session.status == "complete":
            self._refuse_bought(live, session)
        return _opened(session)

    def _is_good(self, connection: Connection, live: Checkout, plan: Plan, wish: Wish) -> bool:
        """Whether this is what is wished for, at today's price, and the tenant may still buy it so."""
        return (
            live.wish == asdict(wish)
            and live.params["line_items"][0]["price"] == plan.price.id
            and live.customer == customers.of(connection, live.tenant_id)
            and not questions.is_deleted(connection, live.customer)
            and not any(map(_counts, subscriptions.statuses(connection, live.customer).values()))
            and not (
                "trial_period_days" in live.params["subscription_data"]
                and subscriptions.had_trial(connection, customers.ever(connection, live.tenant_id))
            )
        )

    def _look(self, live: Checkout, *, is_new: bool = False) -> CheckoutSession | None:
        """How Stripe says it stands, which is then written down. None if nothing came of an earlier attempt."""
        try:
            if live.session:
                session = self._stripe.checkout(live.session)
            else:
                session = self._stripe.open_checkout(live.params, idempotency_key=live.id)
        except StripeFailed as e:
            is_lost = live.session is not None and e.code_at_stripe == "resource_missing"
            is_refused = live.session is None and (e.reason == "refused" or e.replayed)
            if not (is_lost or is_refused):
                raise
            self._settle(live, "failed")
            self._learn(live, e)
            if is_new:
                raise _refusal(e) from e
            return None
        self._settle(live, checkouts.state_of(session.status, session.payment_status), session)
        return session

    def _learn(self, live: Checkout, failure: StripeFailed) -> None:
        """Refused for its customer, or its price: that may be gone, and nobody has told us."""
        about = failure.about or ""
        with self._db.begin(SYSTEM) as connection:
            if about == "customer":
                questions.want(connection, [live.customer])
            if about.startswith("line_items"):
                chores.hasten(connection, cataloguing.CHORE)

    def _expire(self, live: Checkout, session: CheckoutSession) -> CheckoutSession:
        """Close it; or see what became of it instead."""
        try:
            session = self._stripe.expire_checkout(session.id)
        except StripeFailed as e:
            if e.reason != "refused":
                raise
            session = self._stripe.checkout(session.id)
            if session.status == "open":
                raise
        self._settle(live, checkouts.state_of(session.status, session.payment_status), session)
        return session

    def _settle(self, live: Checkout, state: str, session: CheckoutSession | None = None) -> None:
        with self._db.begin(SYSTEM) as connection:
            checkouts.settle(
                connection,
                live,
                state,
                session=session.id if session else None,
                subscription=session.subscription if session else None,
                expires_at=session.expires_at if session else None,
            )

    def _bought(self, live: Checkout, session: CheckoutSession) -> str | None:
        """How the subscription of a session that is done stands; None if there is none.

        Of a debit that came to nothing the session never tells, but the subscription does.
        """
        status = self._status(live, session)
        if status in (None, "incomplete"):
            sync.insist(self._db, self._stripe, self._budget, live.customer)
            status = self._status(live, session)
        if not session.is_paid and status in subscriptions.FINAL | subscriptions.DELINQUENT:
            self._settle(live, "failed", session)
        return status

    def _status(self, live: Checkout, session: CheckoutSession) -> str | None:
        with self._db.begin(SYSTEM) as connection:
            return subscriptions.statuses(connection, live.customer).get(session.subscription or "")

    def _refuse_bought(self, live: Checkout, session: CheckoutSession) -> None:
        status = self._bought(live, session)
        if status == "incomplete":
            raise errors.PaymentProcessing
        if status and _counts(status):
            raise errors.AlreadySubscribed

    def _refuse_subscribed(self, tenant_id: str, customer: str) -> None:
        """One subscription per tenant. One whose first payment never came gives way, at Stripe first."""
        with self._db.begin(SYSTEM) as connection:
            is_awaited = checkouts.is_awaited(connection, tenant_id) or questions.is_wanted(
                connection, customer
            )
        if is_awaited or self._unpaid(customer):
            # it may have been paid, and the event be on its way
            sync.insist(self._db, self._stripe, self._budget, customer)
        unpaid = self._unpaid(customer)
        for id in unpaid:
            self._cancel(id)
        if unpaid:
            sync.insist(self._db, self._stripe, self._budget, customer)
            if self._unpaid(customer):
                raise errors.PaymentProcessing

    def _unpaid(self, customer: str) -> list[str]:
        """Subscriptions whose first payment is not through. `AlreadySubscribed` if there are any others."""
        with self._db.begin(SYSTEM) as connection:
            held = subscriptions.statuses(connection, customer)
        if any(map(_counts, held.values())):
            raise errors.AlreadySubscribed
        return [id for id, status in held.items() if status == "incomplete"]

    def _cancel(self, subscription: str) -> None:
        try:
            became = self._stripe.cancel_subscription(subscription)
        except StripeFailed as e:
            if e.reason != "refused":
                raise
        else:
            if became == "canceled":  # an unpaid one expires: this one was paid in the moment since we asked
                log.error("subscription.canceled_though_paid", subscription=subscription, advice="refund it")

    def _promotion(self, wish: Wish) -> str | None:
        if wish.promotion_code is None:
            return None
        found = None
        if self._terms.promotion_codes:
            self._budget.spend("promotion_codes.list", "waiting")
            found = self._stripe.promotion_code(wish.promotion_code)
        if not found:
            raise errors.InvalidRequest("promotion_code: is not valid", param="promotion_code")
        return found

    def _params(
        self,
        tenant_id: str,
        customer: str,
        plan: Plan,
        wish: Wish,
        promotion: str | None,
        *,
        had_trial: bool,
    ) -> dict[str, Any]:
        """All of it decided here: nothing of the caller's goes to Stripe but by `wish`."""
        whose = {"tenant_id": tenant_id}
        data: dict[str, Any] = {"metadata": whose}
        if (days := plan.trial_days(self._terms.trial_days)) and not had_trial:
            data["trial_period_days"] = days
        item = (
            {"price": plan.price.id}
            if plan.price.metered
            else {"price": plan.price.id, "quantity": wish.quantity}
        )
        params: dict[str, Any] = {
            "mode": "subscription",
            "customer": customer,
            "line_items": [item],
            "success_url": wish.success_url,
            "cancel_url": wish.cancel_url,
            "metadata": whose,
            "subscription_data": data,
        }
        if len(tenant_id) <= LONGEST_REFERENCE:
            params["client_reference_id"] = tenant_id
        if promotion:
            params["discounts"] = [{"promotion_code": promotion}]
        elif self._terms.promotion_codes:
            params["allow_promotion_codes"] = True
        if self._terms.automatic_tax:
            params["automatic_tax"] = {"enabled": True}
            params["customer_update"] = {"address": "auto", "name": "auto"}
            params["tax_id_collection"] = {"enabled": True}
        return params

    # ---- coming back

    def progress(self, tenant_id: str, session_id: str) -> Progress:
        """How the tenant's session stands. Once it is complete, the tenant's document has what was bought."""
        with self._db.begin(SYSTEM) as connection:
            checkout = checkouts.find(connection, tenant_id, session_id)
            if checkout is None:
                raise errors.CheckoutNotFound
            if self._has_arrived(connection, checkout):
                return Progress("complete")
            if checkout.state in ("expired", "failed"):
                return Progress("expired")
            if not checkouts.may_look(connection, checkout):
                return Progress("open" if checkout.state == "open" else "processing")
        self._budget.spend("checkout.sessions.retrieve", "waiting")
        session = self._look(checkout)
        if session is None or session.status != "complete":
            status = "open" if session and session.status == "open" else "expired"
            return Progress(status, session.url if session else None)
        bought = self._bought(checkout, session)
        if bought not in (None, "incomplete") and (session.is_paid or bought in subscriptions.DELINQUENT):
            return Progress("complete")
        return Progress("expired" if bought in subscriptions.FINAL else "processing")

    def _has_arrived(self, connection: Connection, checkout: Checkout) -> bool:
        """Whether what was bought is held here, however it stands by now."""
        held = subscriptions.statuses(connection, checkout.customer)
        status = held.get(checkout.subscription or "", "incomplete")
        if checkout.state == "failed":
            return _counts(status)
        return checkout.state == "complete" and status != "incomplete"


def _counts(status: str) -> bool:
    """Whether a tenant with such a subscription is a subscriber, however it stands."""
    return status not in subscriptions.FINAL | {"incomplete"}


def _opened(session: CheckoutSession | None) -> Opened | None:
    if session is None or session.status != "open" or session.url is None:
        return None
    return Opened(session.url, session.id, session.expires_at)


def _refusal(failure: StripeFailed) -> errors.BillingError:
    """A code may be real and yet not for this customer or this plan; only Stripe knows."""
    if failure.about and failure.about.startswith("discounts"):
        return errors.InvalidRequest("promotion_code: is not valid for this purchase", param="promotion_code")
    return failure
