"""`GET /api/entitlements`: what the caller's tenant may use, and `GET /api/tenants/{id}/entitlements`, for a
service, what any may. `GET /api/plans`: what can be bought.

A document is answered as it is stored. Its `ETag` is no other document's; one that is stale never answers
304, and none may be cached beyond the moment at which time changes it.
"""

from __future__ import annotations

import functools
import hashlib
import json
from typing import Literal

from flask import Blueprint, request
from pydantic import BaseModel, Field

from billing import catalogue, errors, policy, state, tokens
from billing.catalogue import Catalogue, Plan
from billing.db import PUBLIC, Query
from billing.documents import Document
from billing.events import Json
from billing.identity import Caller, Service
from billing.state import State
from billing.telemetry import observed
from billing.web import tenants
from billing.web.contract import Answer, Moment, checked, for_services, service, signed_in, unfit

blueprint = Blueprint("entitlements", __name__)

FRESH, REVALIDATE, ON_ERROR = 30, 60, 86_400  # seconds a copy may be used: as it is, once more, and in need
CACHED_PLANS = "public, max-age=300"
SYNC = {
    "name": "sync",
    "in": "query",
    "required": False,
    "description": (
        "Ask Stripe first, at most once in five seconds, and once more after each link to the portal or "
        "Checkout; `Billing-Sync` says what came of it"
    ),
    "schema": {"type": "boolean"},
    "example": True,
}
BILLING_SYNC = {
    "description": "What came of asking Stripe first; only with `sync=true`",
    "schema": {"type": "string", "enum": ["done", "recent", "failed"]},
    "example": "done",
}


class Feature(BaseModel):
    """Whether it may be used, and how much of it."""

    enabled: bool = Field(examples=[True])
    limit: int | None = Field(
        None, description="Only on features that have limits; null is without end", examples=[12]
    )


class AtStripe(BaseModel):
    """Where to look it up."""

    customer: str | None = Field(examples=["cus_Q1w2E3"])
    subscription: str | None = Field(examples=["sub_1R2t3Z"])
    status: str | None = Field(description="Stripe's own word", examples=["active"])


class Entitlements(BaseModel):
    """What a tenant may use. Members are only ever added."""

    tenant_id: str = Field(examples=["t_8f2"])
    version: int = Field(
        description="Grows by one when anything but `as_of` and `stale` has changed", examples=[42]
    )
    as_of: Moment | None = Field(description="When this was last confirmed")
    stale: bool = Field(description="News may be late: use it, and do not keep it", examples=[False])
    state: Literal["active", "trialing", "grace", "suspended", "pending", "none"] = Field(
        description="The best of its subscriptions", examples=["active"]
    )
    access: bool = Field(
        description="Whether a subscription counts; the default plan holds otherwise", examples=[True]
    )
    plan: str | None = Field(description="Its key, or the default plan's name", examples=["team_monthly"])
    quantity: int | None = Field(description="Of the subscription's main item", examples=[12])
    current_period_end: Moment | None = Field(description="Of the same", examples=["2026-12-20T10:00:00Z"])
    trial_end: Moment | None = Field(description="While it is on trial", examples=[None])
    grace_until: Moment | None = Field(description="When access ends unless somebody pays", examples=[None])
    cancel_at: Moment | None = Field(description="When it will end, where that is set", examples=[None])
    valid_until: Moment | None = Field(description="Access is certain until then at most", examples=[None])
    features: dict[str, Feature] = Field(
        description="Every feature there is, the disabled ones too",
        examples=[{"audit_log": {"enabled": False}, "seats": {"enabled": True, "limit": 12}}],
    )
    stripe: AtStripe
    livemode: bool = Field(description="Whether this is about money", examples=[True])


class OfferedPlan(BaseModel):
    """A plan that can be bought."""

    plan: str = Field(description="Its key", examples=["team_monthly"])
    product: str = Field(description="Its name", examples=["Team"])
    description: str | None = Field(description="The product's", examples=["For growing teams"])
    currency: str = Field(examples=["usd"])
    amount: int | None = Field(
        description="In the currency's smallest unit; null where it is not one number", examples=[1200]
    )
    interval: str = Field(description="day, week, month or year", examples=["month"])
    interval_count: int = Field(description="How many of them are paid for at once", examples=[1])
    per_seat: bool = Field(description="Whether a quantity may be chosen", examples=[True])
    min_quantity: int = Field(description="The least it is sold in", examples=[1])
    trial_days: int = Field(description="How long it may be tried, once", examples=[14])
    features: dict[str, Feature] = Field(
        description="Of one unit", examples=[{"seats": {"enabled": True, "limit": 1}, "sso": {"enabled": True}}]
    )


class OfferedPlans(BaseModel):
    """In the order of a pricing page."""

    plans: list[OfferedPlan]


@blueprint.get("/api/entitlements")
@observed("entitlements.read")
@signed_in
@checked(
    errors.InvalidRequest,
    errors.StateUnknown,
    takes=[SYNC],
    gives={"Billing-Sync": BILLING_SYNC},
    may_be_same=True,
)
def get_entitlements(caller: Caller) -> Answer[Entitlements]:
    """What may my tenant use?

    Decide by `features`; the rest is for showing. A stale document is never a 304.
    """
    documents = service().documents
    read = documents.synced if _asks_first() else documents.of
    return _answer(read(caller.tenant_id, revives=True))


def _row(tenant_id: str) -> Query[State | None] | None:
    return state.read_of(tenant_id) if tenants.is_id(tenant_id) else None


@blueprint.get(f"{tenants.TENANT}/entitlements", merge_slashes=False)
@observed("entitlements.read_of")
@for_services(tokens.READ, reads=_row)
@checked(
    errors.InvalidRequest,
    errors.TenantNotFound,
    errors.StateUnknown,
    takes=[tenants.TENANT_ID, SYNC],
    gives={"Billing-Sync": BILLING_SYNC},
    may_be_same=True,
)
def get_tenant_entitlements(caller: Service, found: State | None, tenant_id: str) -> Answer[Entitlements]:
    """What may this tenant use?

    What its members are told, byte for byte. A tenant nobody has heard of is not made by asking.
    """
    tenants.require_id(tenant_id)
    documents, asks_first = service().documents, _asks_first()
    if found is None:
        documents.require(tenant_id)
    return _answer(documents.synced(tenant_id) if asks_first else documents.of(tenant_id, found))


def _asks_first() -> bool:
    wanted = request.args.get("sync", "false") if request.query_string else "false"
    if wanted not in ("true", "false"):
        raise unfit(SYNC)
    return wanted == "true"


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
def list_plans() -> Answer[OfferedPlans]:
    """What can be bought?

    For anybody, and the same for everybody.
    """
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
