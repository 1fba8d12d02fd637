"""`POST /api/subscriptions/portal`: a link to Stripe's Customer Portal for the caller's tenant.

The tenant comes from the verified token, the customer from our own row of that tenant, and nothing of either
from the request. It never creates a customer.
"""

from __future__ import annotations

from flask import Blueprint
from pydantic import BaseModel, ConfigDict, Field

from billing import errors, stripe_api
from billing.identity import Caller
from billing.telemetry import observed
from billing.web import links
from billing.web.contract import checked, service, signed_in

blueprint = Blueprint("portal", __name__)


class PortalRequest(BaseModel):
    """All of it is optional: no body at all opens the plain portal."""

    model_config = ConfigDict(extra="forbid", strict=True)

    return_url: str | None = Field(
        None,
        description="Where the portal leads back to: a path of the product, or an address on an allowed origin",
        examples=["/settings/billing/seats"],
    )
    locale: stripe_api.PortalLocale | None = Field(
        None, description="The portal's language; without it, the browser's", examples=["de"]
    )
    flow: stripe_api.PortalFlow | None = Field(
        None, description="Lead straight to one task", examples=["payment_method_update"]
    )


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
    errors.IdempotencyKeyReused,
    errors.TooManyLinks,
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
    session = service().stripe.open_portal(
        customer,
        return_url=return_url,
        flow=body.flow,
        locale=body.locale,
        configuration=settings.billing_portal_configuration,
        idempotency_key=key and stripe_api.idempotency_key(caller.tenant_id, customer, key),
    )
    trail.stripe_object = session.id
    return PortalLink(url=session.url)
