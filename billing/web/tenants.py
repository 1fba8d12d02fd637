"""`PUT /api/tenants/{tenant_id}`: what a service of the house says of a tenant; and tenants in addresses.

An id may be any that a token may name, percent-encoded, but for `.` and `..`. What no token could name is
answered as what nobody has heard of, and so are those two.
"""

from __future__ import annotations

import unicodedata
from typing import Annotated
from urllib.parse import unquote_to_bytes

import structlog
from flask import Blueprint, request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from werkzeug.routing import BaseConverter

from billing import enrolling, errors, tokens
from billing.identity import Service, is_name
from billing.telemetry import observed
from billing.web import links
from billing.web.contract import checked, for_services, service, told

TENANT = "/api/tenants/<tenant:tenant_id>"
TENANT_ID = {
    "name": "tenant_id",
    "in": "path",
    "required": True,
    "description": "As tokens have it, percent-encoded: a slash in it is `%2F`",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    "example": "t_8f2",
}
NO_UTF_8 = "\ufffd"  # stands where the address was none
STEPS = frozenset({".", ".."})  # in a path, which clients and proxies take before anybody sees it
CONTROL = frozenset({"Cc", "Cs", "Zl", "Zp"})  # in Unicode's words; a wide space is none

blueprint = Blueprint("tenants", __name__)


class TenantConverter(BaseConverter):
    """Whatever stands there, for `require_id` to judge: slashes too, which an id may have."""

    part_isolating = False
    regex = "(?s:.*)"
    weight = 200


def is_id(tenant_id: str) -> bool:
    """Whether a token could name this tenant, and the address does so to the letter."""
    is_possible = is_name(tenant_id) and NO_UTF_8 not in tenant_id and tenant_id not in STEPS
    return is_possible and _is_to_the_letter(tenant_id)


def _is_to_the_letter(tenant_id: str) -> bool:
    """A slash of the id's own is `%2F`, and every other a plain one: else it says another thing than was meant.

    Where the server does not tell how the address was written, an id with a slash is nobody's.
    """
    sent = str(request.environ.get("RAW_URI", "")).partition("?")[0]
    if not sent:
        return "/" not in tenant_id
    assert request.url_rule
    meant = [tenant_id if part.startswith("<") else part for part in request.url_rule.rule.split("/")[1:]]
    parts = sent.encode("latin-1", "replace").split(b"/")[-len(meant) :]  # WSGI shows bytes as Latin-1
    return [unquote_to_bytes(part) for part in parts] == [part.encode() for part in meant]


def require_id(tenant_id: str) -> None:
    """`TenantNotFound` where no tenant can have this id."""
    if not is_id(tenant_id):
        raise errors.TenantNotFound
    structlog.contextvars.bind_contextvars(tenant=tenant_id)


# ---- what a service says of one


def _plain(said: str) -> str:
    if not said.strip() or any(unicodedata.category(character) in CONTROL for character in said):
        raise ValueError("must not be blank, nor have control characters")
    return said


class TenantRequest(BaseModel):
    """All of it is optional. What is left out stays as it is."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(max_length=256), AfterValidator(_plain)] | None = Field(
        None, description="What it is called, for Stripe's customer; null takes it back", examples=["Acme GmbH"]
    )
    email: (
        Annotated[str, Field(max_length=512, pattern=r"^[^@\s]+@[^@\s]+$"), AfterValidator(_plain)] | None
    ) = Field(None, description="Where bills go; null takes it back", examples=["billing@acme.example"])
    stripe_customer_id: Annotated[str, Field(pattern=r"^cus_[A-Za-z0-9_]{1,250}$")] | None = Field(
        None,
        description="The Stripe customer that is this tenant's. None is ever replaced or taken away here",
        examples=["cus_123"],
    )


class Tenant(BaseModel):
    """A tenant as it is now."""

    tenant_id: str = Field(examples=["t_8f2"])
    name: str | None = Field(examples=["Acme GmbH"])
    email: str | None = Field(examples=["billing@acme.example"])
    stripe_customer_id: str | None = Field(examples=["cus_123"])
    version: int = Field(
        description="That of its document: ask for it at this version or a later one", examples=[42]
    )


@blueprint.put(TENANT, merge_slashes=False)
@observed("tenants.put")
@for_services(tokens.WRITE)
@told
@checked(
    errors.TenantNotFound,
    errors.CustomerNotFound,
    errors.AlreadyLinked,
    errors.OtherCustomer,
    errors.CustomerOfAnother,
    errors.CheckoutUnderWay,
    takes=[TENANT_ID],
)
def put_tenant(caller: Service, tenant_id: str, body: TenantRequest) -> Tenant:
    """Say what a tenant is called, and which Stripe customer is its own

    A tenant nobody has heard of is known from then on. Said twice it is as said once.
    """
    require_id(tenant_id)
    billing = service()
    tenant = enrolling.put(
        billing.db,
        billing.stripe,
        billing.budget,
        links.attempt(tenant_id, caller.actor, "tenant"),
        body.model_dump(exclude_unset=True),
    )
    return Tenant(
        tenant_id=tenant_id,
        name=tenant.name,
        email=tenant.email,
        stripe_customer_id=tenant.customer,
        version=tenant.version,
    )
