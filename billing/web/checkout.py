"""`POST /api/subscriptions/checkout`, `GET /api/subscriptions/checkout/{session_id}`: buying, and coming back.

A caller chooses among plans on offer, by their keys; customer, price, trial, taxes and metadata are ours. The
browser may be back before Stripe's webhook: asked how a session stands, we ask Stripe.
"""

from __future__ import annotations

import json
import re
from typing import Literal

from flask import Blueprint
from pydantic import BaseModel, ConfigDict, Field

from billing import catalogue, errors, policy
from billing.buying import Wish
from billing.catalogue import Plan
from billing.db import PUBLIC
from billing.identity import Caller
from billing.telemetry import observed
from billing.web import links
from billing.web.contract import Answer, Moment, checked, service, signed_in, told
from billing.web.entitlements import Entitlements
from billing.web.openapi import RETRY_AFTER

blueprint = Blueprint("checkout", __name__)

SESSION = re.compile(r"cs_\w{1,250}", re.ASCII)
AGAIN_SECONDS = {"open": 2, "processing": 5}
SESSION_ID = {
    "name": "session_id",
    "in": "path",
    "required": True,
    "description": "As the return address had it in `checkout`",
    "schema": {"type": "string", "pattern": r"^cs_\w+$"},
    "example": "cs_test_a1",
}


class CheckoutRequest(BaseModel):
    """What to buy."""

    model_config = ConfigDict(extra="forbid", strict=True)

    plan: str = Field(
        description="A plan's key, as `GET /api/plans` lists them",
        min_length=1,
        max_length=200,
        examples=["team_monthly"],
    )
    quantity: int | None = Field(
        None, description="How many, of a plan sold by the seat", examples=[5], ge=1, le=catalogue.MOST_SEATS
    )
    promotion_code: str | None = Field(
        None, description="As the customer types it", pattern=r"^[A-Za-z0-9_-]{1,100}$", examples=["SPRING"]
    )
    return_url: str | None = Field(
        None,
        description="Where Checkout leads back to: a path of the product, or an address on an allowed origin",
        examples=["/settings/billing"],
    )


class CheckoutLink(BaseModel):
    """A short-lived credential: redirect to it, keep it nowhere."""

    url: str = Field(description="Stripe's page", examples=["https://checkout.stripe.com/c/pay/cs_test_a1"])
    session_id: str = Field(description="To ask how it stands", examples=["cs_test_a1"])
    expires_at: Moment | None = Field(
        description="Until when it can be paid", examples=["2026-11-21T10:00:00Z"]
    )


class CheckoutProgress(BaseModel):
    """How it stands. Once it is `complete`, `entitlements` has what was bought."""

    session_id: str = Field(examples=["cs_test_a1"])
    status: Literal["open", "processing", "complete", "expired"] = Field(
        description="`processing`: done, and the money is not there yet", examples=["complete"]
    )
    url: str | None = Field(description="To go on with it while it is open", examples=[None])
    entitlements: Entitlements | None = Field(description="Once it is complete")


@blueprint.post("/api/subscriptions/checkout")
@observed("checkout.open")
@signed_in
@told
@links.audited("checkout")
@checked(
    errors.ReturnUrlNotAllowed,
    errors.Forbidden,
    errors.PlanNotFound,
    errors.AlreadySubscribed,
    errors.PaymentProcessing,
    errors.CatalogueUnknown,
    errors.CheckoutBusy,
    errors.IdempotencyKeyReused,
    errors.TooManyLinks,
)
def open_checkout(caller: Caller, trail: links.Trail, body: CheckoutRequest) -> CheckoutLink:
    """Open a Checkout

    A tenant has one at a time: asked for the same again, it is the same; asked for another, the old one closes.
    """
    settings = service().settings
    links.require_manager(caller)
    return_url = links.return_url(settings, body.return_url)
    key = links.idempotency_key()
    plan = _plan(body.plan)
    trail.flow = plan.key
    wish = Wish(
        plan=plan.key,
        quantity=_quantity(plan, body.quantity),
        promotion_code=body.promotion_code,
        success_url=links.with_query(return_url, "checkout={CHECKOUT_SESSION_ID}"),
        cancel_url=return_url,
    )
    trail.start()
    opened = service().buying.open(caller.tenant_id, plan, wish, caller_key=key)
    trail.stripe_object = opened.session
    return CheckoutLink(
        url=opened.url, session_id=opened.session, expires_at=policy.written(opened.expires_at or None)
    )


@blueprint.get("/api/subscriptions/checkout/<session_id>")
@observed("checkout.progress")
@signed_in
@told
@checked(errors.CheckoutNotFound, errors.StateUnknown, takes=[SESSION_ID], gives={"Retry-After": RETRY_AFTER})
def get_checkout(caller: Caller, session_id: str) -> Answer[CheckoutProgress]:
    """Has my purchase arrived?

    Asks Stripe where the webhook has not come yet, at most once in two seconds.
    """
    if not SESSION.fullmatch(session_id):
        raise errors.CheckoutNotFound
    progress = service().buying.progress(caller.tenant_id, session_id)
    entitlements = None
    if progress.status == "complete":
        entitlements = json.loads(service().documents.of(caller.tenant_id).body)
    again = AGAIN_SECONDS.get(progress.status)
    written = {
        "session_id": session_id,
        "status": progress.status,
        "url": progress.url if links.is_manager(caller) else None,
        "entitlements": entitlements,
    }
    return Answer(json.dumps(written), {"Retry-After": str(again)} if again else {})


def _plan(key: str) -> Plan:
    with service().db.begin(PUBLIC) as connection:
        sold = catalogue.current(connection)
    if not sold.edition:
        raise errors.CatalogueUnknown
    if key not in sold.plans:
        raise errors.PlanNotFound
    return sold.plans[key]


def _quantity(plan: Plan, wanted: int | None) -> int:
    quantity = plan.least if wanted is None else wanted
    if not plan.least <= quantity <= plan.most:
        raise errors.InvalidRequest(plan.bounds, param="quantity")
    return quantity
