"""`POST /api/subscriptions/portal`: a link to Stripe's Customer Portal for the caller's tenant.

The tenant comes from the verified token, the customer from our own row of that tenant, and nothing of either
from the request. It never creates a customer. Where a flow wants a subscription, it is the one of the tenant's
own that its document is about.
"""

from __future__ import annotations

from typing import Annotated

from flask import Blueprint
from pydantic import BaseModel, ConfigDict, Field, model_validator

from billing import catalogue, cataloguing, errors, policy, state, stripe_api
from billing.catalogue import Catalogue
from billing.events import Json
from billing.identity import Caller
from billing.policy import Held
from billing.telemetry import observed
from billing.web import links
from billing.web.contract import checked, service, signed_in

blueprint = Blueprint("portal", __name__)

CONFIRM = "subscription_update_confirm"


class PortalRequest(BaseModel):
    """All of it is optional: no body at all opens the plain portal."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {"flow": "payment_method_update", "return_url": "/settings/billing"},
                {"flow": CONFIRM, "plan": "team_yearly", "quantity": 12},
            ]
        },
    )

    return_url: str | None = Field(
        None,
        description="Where the portal leads back to: a path of the product, or an address on an allowed origin",
        examples=["/settings/billing/seats"],
    )
    locale: Annotated[stripe_api.PortalLocale, Field(title="Locale")] | None = Field(
        None, description="The portal's language; without it, the browser's", examples=["de"]
    )
    flow: Annotated[stripe_api.PortalFlow, Field(title="Flow")] | None = Field(
        None, description="Lead straight to one task", examples=["payment_method_update"]
    )
    plan: str | None = Field(
        None, description=f"With `{CONFIRM}`: the plan to change to", examples=["team_yearly"]
    )
    quantity: int | None = Field(
        None, description=f"With `{CONFIRM}`: how many from then on", examples=[12], ge=1, le=1_000_000
    )

    @model_validator(mode="after")
    def _change_or_none(self) -> PortalRequest:
        wants_change = self.plan is not None or self.quantity is not None
        if wants_change is not (self.flow == CONFIRM):
            raise ValueError(f"plan and quantity: one of them or both, and only with {CONFIRM}")
        return self


class PortalLink(BaseModel):
    """A short-lived credential: redirect to it, keep it nowhere."""

    url: str = Field(examples=["https://billing.stripe.com/p/session/test_YWNjdF8x"])


@blueprint.post("/api/subscriptions/portal")
@observed("portal.open")
@signed_in
@links.audited("portal")
@checked(
    errors.ReturnUrlNotAllowed,
    errors.Forbidden,
    errors.NoCustomer,
    errors.PlanNotFound,
    errors.NoSubscription,
    errors.AlreadyCanceling,
    errors.MultipleItems,
    errors.PlanNotOffered,
    errors.NoChange,
    errors.IdempotencyKeyReused,
    errors.TooManyLinks,
    errors.StripeFailed,
)
def open_portal(caller: Caller, trail: links.Trail, body: PortalRequest) -> PortalLink:
    """Open the customer portal

    Sent twice with one `Idempotency-Key`, it gives the same session.
    """
    settings = service().settings
    trail.flow = body.flow
    links.require_manager(caller)
    return_url = links.return_url(settings, body.return_url)
    key = links.idempotency_key()
    customer = trail.start()
    if not customer:
        raise errors.NoCustomer
    session = service().stripe.open_portal(
        customer,
        return_url=return_url,
        flow=_flow(caller, body, return_url) if body.flow else None,
        locale=body.locale,
        configuration=settings.billing_portal_configuration,
        idempotency_key=key and stripe_api.idempotency_key(caller.tenant_id, customer, key),
    )
    trail.stripe_object = session.id
    return PortalLink(url=session.url)


# ---- flows


def _flow(caller: Caller, body: PortalRequest, return_url: str) -> Json:
    """Where in the portal it leads, as Stripe writes that."""
    back = links.with_query(return_url, "billing=updated")
    flow: Json = {
        "type": body.flow,
        "after_completion": {"type": "redirect", "redirect": {"return_url": back}},
    }
    if body.flow == "payment_method_update":
        return flow
    held, sold = _subscription(caller)
    if body.flow != "subscription_cancel" and len(held.facts.items) != 1:
        raise errors.MultipleItems
    if body.flow == "subscription_cancel" and policy.ends_at(held.facts) is not None:
        raise errors.AlreadyCanceling
    aim: Json = {"subscription": held.id}
    if body.flow == CONFIRM:
        aim["items"] = [_changed_item(held, sold, body)]
    return {**flow, str(body.flow): aim}


def _subscription(caller: Caller) -> tuple[Held, Catalogue]:
    """The one the tenant's document is about, from our own state and never from the request."""
    with service().db.begin(caller.scope) as connection:
        held = state.subscription_of(connection, caller.tenant_id)
        if held is None or held.facts.status == "incomplete":  # which a Checkout supersedes
            raise errors.NoSubscription
        return held, catalogue.current(connection)


def _changed_item(held: Held, sold: Catalogue, body: PortalRequest) -> Json:
    [item] = held.facts.items
    plan = sold.plans.get(body.plan) if body.plan is not None else None
    if body.plan is not None and plan is None:
        raise errors.PlanNotFound
    chosen = plan or next((one for one in sold.plans.values() if one.price.id == item.price), None)
    if chosen and body.quantity is not None and not chosen.least <= body.quantity <= chosen.most:
        raise errors.InvalidRequest(chosen.bounds, param="quantity")
    changed: Json = {"id": item.id}
    if plan and plan.price.id != item.price:
        billing, configuration = service(), service().settings.billing_portal_configuration
        if plan.price.id not in cataloguing.offered(billing.stripe, billing.budget, configuration):
            raise errors.PlanNotOffered
        changed["price"] = plan.price.id
    if body.quantity is not None and body.quantity != item.quantity:
        changed["quantity"] = body.quantity
    if len(changed) == 1:
        raise errors.NoChange
    return changed
