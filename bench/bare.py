"""The routes as one writes them in a minute: Flask, an ORM session and Stripe's SDK as they come.

No audit row, no rate limit, no row-level security, no deadline, no log line. `hold` keeps its session open
while Stripe is asked, as a `with` block round the whole view does; `release` gives the connection back first.
`keep` takes webhooks with less still: no ORM and no SDK, a signature checked by hand and one durable INSERT.
`look_up` answers what a tenant may use from a row that holds the document as JSON; `say` asks nobody who they
are, and answers as many bytes, also where the service tells of changes.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import queue
import time
from typing import Any

import jwt
import psycopg
import stripe
from flask import Flask, Response, abort, jsonify, request
from flask_jwt_extended import JWTManager, get_jwt, jwt_required
from sqlalchemy import create_engine, select
from sqlalchemy.dialects.postgresql import JSONB
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
hold, release, keep = Flask("hold"), Flask("release"), Flask("keep")
look_up, say = Flask("look_up"), Flask("say")
look_up.config.update(JWT_SECRET_KEY=KEY)
JWTManager(look_up)

PLAIN_URL = os.environ["DATABASE_URL"].replace("+psycopg", "", 1)
SECRET = os.environ["STRIPE_WEBHOOK_SECRET"].encode()
TOLERANCE_SECONDS = 300
KEEP = "INSERT INTO bare_events (id, body) VALUES (%s, %b) ON CONFLICT DO NOTHING"
SAID = b'{"features": "%b"}' % (b"x" * 850)

CHANGES = b"[%b]" % b",\n".join([b'{"data": "%b"}' % (b"x" * 1150)] * 200)

connections: queue.LifoQueue[psycopg.Connection[Any] | None] = queue.LifoQueue()
for _ in range(int(os.environ["DATABASE_POOL_SIZE"])):
    connections.put(None)


class Base(DeclarativeBase):
    """The root SQLAlchemy wants."""


class Tenant(Base):
    """A plain table with what the service's own has."""

    __tablename__ = "bare_tenants"

    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    stripe_customer_id: Mapped[str]


class Document(Base):
    """The same for what tenants may use."""

    __tablename__ = "bare_documents"

    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int]
    document: Mapped[dict[str, Any]] = mapped_column(JSONB)


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


@keep.post("/webhooks/stripe")
def keep_event() -> Response:
    body = request.get_data()
    check_signature(body)
    connection = connections.get()
    try:
        connection = connection or psycopg.connect(PLAIN_URL, autocommit=True)
        connection.execute(KEEP, [json.loads(body)["id"], body])
    finally:
        connections.put(connection)
    return Response(b'{"received":true}', mimetype="application/json")


def check_signature(body: bytes) -> None:
    given = dict(part.split("=", 1) for part in request.headers["Stripe-Signature"].split(","))
    expected = hmac.new(SECRET, given["t"].encode() + b"." + body, hashlib.sha256).hexdigest()
    if not hmac.compare_digest(expected, given["v1"]) or abs(time.time() - int(given["t"])) > TOLERANCE_SECONDS:
        abort(400)


@look_up.get("/api/entitlements")
@jwt_required()  # type: ignore[untyped-decorator]  # the extension's own
def read_document() -> Response:
    tenant_id = get_jwt()["tenant_id"]
    with Session(engine) as session:
        found = session.scalars(select(Document).where(Document.tenant_id == tenant_id)).one()
        return with_tag(jsonify(found.document), found.version)


@say.get("/api/entitlements")
def say_document() -> Response:
    return with_tag(Response(SAID, mimetype="application/json"), 1)


@say.get("/api/changes")
def say_changes() -> Response:
    if request.if_none_match:
        return with_tag(Response(b"[]", mimetype="application/json"), 1)
    return Response(CHANGES, mimetype="application/json")


@say.get("/api/tenants/<tenant_id>/entitlements")
def say_any_document(tenant_id: str) -> Response:
    return say_document()


def with_tag(answer: Response, version: int) -> Response:
    answer.set_etag(str(version), weak=True)
    answer.make_conditional(request)
    return answer
