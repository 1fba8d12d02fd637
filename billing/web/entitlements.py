"""`GET /api/entitlements`: what the caller's tenant may use. `GET /api/plans`: what can be bought.

A document is answered as it is stored. Its `ETag` is no other document's; one that is stale never answers
304, and none may be cached beyond the moment at which time changes it.
"""

from __future__ import annotations

import functools
import hashlib
import json

from flask import Blueprint, request
from pydantic import BaseModel, Field

from billing import catalogue, errors, policy
from billing.catalogue import Catalogue, Plan
from billing.db import PUBLIC
from billing.documents import Document
from billing.events import Json
from billing.identity import Caller
from billing.telemetry import observed
from billing.web.contract import Answer, checked, service, signed_in

blueprint = Blueprint("entitlements", __name__)

FRESH, REVALIDATE, ON_ERROR = 30, 60, 86_400  # seconds a copy may be used: as it is, once more, and in need
CACHED_PLANS = "public, max-age=300"
SYNC = {
    "name": "sync",
    "in": "query",
    "required": False,
    "description": "Ask Stripe first, at most once in five seconds; `Billing-Sync` says what came of it",
    "schema": {"type": "string", "enum": ["true", "false"]},
}


class Feature(BaseModel):
    """Whether it may be used, and how much of it; `limit` null is without end."""

    enabled: bool
    limit: int | None = Field(None, description="Only on features that have limits")


class AtStripe(BaseModel):
    """Where to look it up."""

    customer: str | None = Field(examples=["cus_123"])
    subscription: str | None = Field(examples=["sub_123"])
    status: str | None = Field(description="Stripe's own word", examples=["active"])


class Entitlements(BaseModel):
    """What a tenant may use. Members are only ever added."""

    tenant_id: str = Field(examples=["t_8f2"])
    version: int = Field(description="Grows by one when anything but `as_of` and `stale` has changed")
    as_of: str | None = Field(description="When this was last confirmed", examples=["2026-11-20T10:00:03Z"])
    stale: bool = Field(description="News may be late: use it, and do not keep it")
    state: str = Field(
        pattern="^(active|trialing|grace|suspended|pending|none)$", description="The best of its subscriptions"
    )
    access: bool = Field(description="Whether a subscription counts; the default plan holds otherwise")
    plan: str | None = Field(examples=["team_monthly"])
    quantity: int | None
    current_period_end: str | None
    trial_end: str | None
    grace_until: str | None = Field(description="When access ends unless somebody pays")
    cancel_at: str | None
    valid_until: str | None = Field(description="Access is certain until then at most")
    features: dict[str, Feature] = Field(description="Every feature there is, the disabled ones too")
    stripe: AtStripe
    livemode: bool


class OfferedPlan(BaseModel):
    """A plan that can be bought."""

    plan: str = Field(examples=["team_monthly"])
    product: str = Field(examples=["Team"])
    description: str | None
    currency: str = Field(examples=["usd"])
    amount: int | None = Field(description="In the currency's smallest unit; null where it is not one number")
    interval: str = Field(examples=["month"])
    interval_count: int
    per_seat: bool
    min_quantity: int
    trial_days: int
    features: dict[str, Feature] = Field(description="Of one unit")


class Plans(BaseModel):
    """In the order of a pricing page."""

    plans: list[OfferedPlan]


@blueprint.get("/api/entitlements")
@observed("entitlements.read")
@signed_in
@checked(errors.InvalidRequest, errors.StateUnknown, takes=[SYNC], may_be_same=True)
def entitlements(caller: Caller) -> Answer[Entitlements]:
    """What may my tenant use?"""
    documents = service().documents
    wanted = request.args.get("sync", "false") if request.query_string else "false"
    if wanted not in ("true", "false"):
        raise errors.InvalidRequest("sync: must be true or false", param="sync")
    document = documents.synced(caller.tenant_id) if wanted == "true" else documents.of(caller.tenant_id)
    return _answer(document)


def _answer(document: Document) -> Answer[Entitlements]:
    headers = {"ETag": f'W/"{document.tag}"', "Cache-Control": _cached(document), "Vary": "Authorization"}
    if document.synced:
        headers["Billing-Sync"] = document.synced
    if not document.is_stale and request.if_none_match.contains_weak(document.tag):
        return Answer("", headers, 304)
    return Answer(document.body, headers)


def _cached(document: Document) -> str:
    """For how long a copy is good. A yes never outlives its known end, whoever serves it."""
    if document.is_stale:
        return "private, no-cache"
    lasts = ON_ERROR + FRESH if document.lasts is None else max(0, int(document.lasts))
    fresh = min(FRESH, lasts)
    revalidate, on_error = min(REVALIDATE, lasts - fresh), min(ON_ERROR, lasts - fresh)
    return f"private, max-age={fresh}, stale-while-revalidate={revalidate}, stale-if-error={on_error}"


@blueprint.get("/api/plans")
@observed("plans.read")
@checked(errors.CatalogueUnknown, may_be_same=True)
def plans() -> Answer[Plans]:
    """What can be bought?"""
    with service().db.begin(PUBLIC) as connection:
        sold = catalogue.current(connection)
    if not sold.edition:
        raise errors.CatalogueUnknown
    written, tag = _plans_of(sold, service().settings.billing_trial_days)
    headers = {"ETag": f'W/"{tag}"', "Cache-Control": CACHED_PLANS}
    if request.if_none_match.contains_weak(tag):
        return Answer("", headers, 304)
    return Answer(written, headers)


@functools.lru_cache(maxsize=2)
def _plans_of(sold: Catalogue, usual_trial: int) -> tuple[str, str]:
    """The answer, and its tag: once per edition, for anybody may ask."""
    written = json.dumps({"plans": [_offered(plan, sold, usual_trial) for plan in sold.plans.values()]})
    return written, hashlib.blake2b(written.encode(), digest_size=8).hexdigest()


def _offered(plan: Plan, sold: Catalogue, usual_trial: int) -> Json:
    return {
        "plan": plan.key,
        "product": plan.product.name,
        "description": plan.product.description,
        "currency": plan.price.currency,
        "amount": plan.price.amount,
        "interval": plan.price.interval,
        "interval_count": plan.price.interval_count,
        "per_seat": plan.per_seat,
        "min_quantity": plan.least,
        "trial_days": plan.trial_days(usual_trial),
        "features": policy.features_of(plan, sold),
    }
