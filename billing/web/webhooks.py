"""`POST /webhooks/stripe`: an event of Stripe's, kept before it is acknowledged.

The bytes as they came, verified, then one INSERT, then 200. Nothing is asked of the database before the
signature holds, and nothing is worked on here: that is the worker's. An event we have no use for is kept too,
with the reason: 4xx would make Stripe try again for days.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Literal

import psycopg
import structlog
from flask import Blueprint, g, request
from pydantic import BaseModel, ConfigDict, Field

from billing import errors, events, inbox, signatures, telemetry
from billing.db import WEBHOOK, UnsafeRole
from billing.inbox import Delivery
from billing.signatures import Signed
from billing.telemetry import observed
from billing.web.contract import checked, raw_body, service

LARGEST_EVENT = 1024 * 1024
CLOCK_SLACK_SECONDS = 6  # between Stripe's own machines

SIGNATURE = {
    "name": "Stripe-Signature",
    "in": "header",
    "required": True,
    "description": "When it was signed, and one signature of the body for each of the endpoint's secrets",
    "schema": {"type": "string"},
    "example": "t=1763632803,v1=5257a869e7ecebeda32affa62cdca3fa51cad7e77a0e56ff536d0ce8e108d8bd",
}

blueprint = Blueprint("webhooks", __name__)

log = structlog.get_logger(__name__)


class StripeEvent(BaseModel):
    """As Stripe writes it, with all it writes. It is read once its signature holds."""

    model_config = ConfigDict(extra="allow")

    id: str = Field(min_length=1, examples=["evt_1R2t3Z"])
    type: str = Field(min_length=1, examples=["customer.subscription.updated"])


class Received(BaseModel):
    """Kept, and Stripe need not send it again."""

    received: Literal[True]


@blueprint.post("/webhooks/stripe")
@observed("webhook.receive")
@checked(errors.BadSignature, errors.BadEvent, errors.BodyTooLarge, takes=[SIGNATURE], raw=StripeEvent)
def receive_stripe_event() -> Received:
    """Take an event from Stripe.

    Stripe's signature in `Stripe-Signature` stands in for a token. 200 means the event is stored.
    """
    raw = raw_body(LARGEST_EVENT)
    delivery = _delivery(raw, _signed(raw))
    try:
        is_new = service().db.run(WEBHOOK, inbox.receive(delivery))
    except (psycopg.Error, UnsafeRole) as e:  # whatever it is, the event is not stored
        raise errors.ServiceUnavailable("database") from e
    if is_new:
        g.row_says_it = True  # when it came, what it is and who signed it; a line for each would say it twice
    return Received(received=True)


def _signed(raw: bytes) -> Signed:
    header, now = request.headers.get("Stripe-Signature", ""), time.time()
    secrets = [secret.get_secret_value() for secret in service().settings.stripe_webhook_secret]
    signed = signatures.verify(header, raw, secrets, now)
    if signed is None:
        telemetry.signatures.add(1, {"secret": "none", "outcome": signatures.fault(header, now)})
        raise errors.BadSignature
    telemetry.signatures.add(1, {"secret": str(signed.place), "outcome": "holds"})
    return signed


def _delivery(raw: bytes, signed: Signed) -> Delivery:
    try:
        event = events.read(raw)
    except events.Unreadable as e:
        log.warning("webhook.unreadable", reason=str(e))
        raise errors.BadEvent from e
    telemetry.mention(event=event.id, customer=event.customer)
    kept = Delivery.of(event, raw, livemode=service().settings.livemode)
    made_before_sent = event.created is not None and event.created <= signed.at + CLOCK_SLACK_SECONDS
    return replace(
        kept,
        created=event.created if made_before_sent else None,  # else it would put every later one in the past
        sent_at=signed.at,
        secret=signed.secret,
        trace=telemetry.traceparent(),
    )
