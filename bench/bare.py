"""The portal route as one writes it in a minute: Flask, an ORM session and Stripe's SDK as they come.

No audit row, no rate limit, no row-level security, no deadline, no log line. `hold` keeps its session open
while Stripe is asked, as a `with` block round the whole view does; `release` gives the connection back first.
"""

from __future__ import annotations

import os

import jwt
import stripe
from flask import Flask, request
from sqlalchemy import create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

KEY = os.environ["JWT_SECRET_KEY"]
RETURN_URL = os.environ["APP_URL"] + "/settings/billing"

engine = create_engine(
    os.environ["DATABASE_URL"], pool_size=int(os.environ["DATABASE_POOL_SIZE"]), max_overflow=0
)
client = stripe.StripeClient(
    os.environ["STRIPE_SECRET_KEY"],
    base_addresses={"api": os.environ["STRIPE_API_BASE"]},
    max_network_retries=0,
)
hold, release = Flask("hold"), Flask("release")


class Base(DeclarativeBase):
    """The root SQLAlchemy wants."""


class Tenant(Base):
    """A plain table with what the service's own has."""

    __tablename__ = "bare_tenants"

    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    stripe_customer_id: Mapped[str]


@hold.post("/api/subscriptions/portal")
def open_portal_holding() -> dict[str, str]:
    tenant_id = verified_tenant()
    with Session(engine) as session:
        return {"url": portal_url(find_customer(session, tenant_id))}


@release.post("/api/subscriptions/portal")
def open_portal() -> dict[str, str]:
    tenant_id = verified_tenant()
    with Session(engine) as session:
        customer = find_customer(session, tenant_id)
    return {"url": portal_url(customer)}


def verified_tenant() -> str:
    token = request.headers["Authorization"].removeprefix("Bearer ")
    return str(jwt.decode(token, KEY, algorithms=["HS256"])["tenant_id"])


def find_customer(session: Session, tenant_id: str) -> str:
    return session.scalars(select(Tenant).where(Tenant.tenant_id == tenant_id)).one().stripe_customer_id


def portal_url(customer: str) -> str:
    session = client.v1.billing_portal.sessions.create({"customer": customer, "return_url": RETURN_URL})
    return session.url
