"""`POST /webhooks/stripe`: an event of Stripe's, kept before it is acknowledged.

The bytes as they came, verified, then one INSERT, then 200. Nothing is asked of the database before the
signature holds, and nothing is worked on here: that is the worker's. An event we have no use for is kept too,
with the reason: 4xx would make Stripe try again for days.
"""

from __future__ import annotations

import time
from dataclasses import replace

import psycopg
import structlog
from flask import Blueprint, g, request
from opentelemetry.propagate import inject
from opentelemetry.trace import get_current_span
from pydantic import BaseModel

from billing import errors, events, inbox, signatures
from billing.db import WEBHOOK, UnsafeRole
from billing.inbox import Delivery
from billing.signatures import Signed
from billing.telemetry import observed
from billing.web.contract import checked, raw_body, service

LARGEST_EVENT = 1024 * 1024
CLOCK_SLACK_SECONDS = 6  # between Stripe's own machines

blueprint = Blueprint("webhooks", __name__)

log = structlog.get_logger(__name__)


class Received(BaseModel):
    """Kept, and Stripe need not send it again."""

    received: bool = True


@blueprint.post("/webhooks/stripe")
@observed("webhook.receive")
@checked(errors.BadSignature, errors.BadEvent, errors.BodyTooLarge)
def stripe_webhook() -> Received:
    """Take an event from Stripe.

    Stripe's signature in `Stripe-Signature` stands in for a token. 200 means the event is stored.
    """
    raw = raw_body(LARGEST_EVENT)
    secrets = [secret.get_secret_value() for secret in service().settings.stripe_webhook_secret]
    signed = signatures.verify(request.headers.get("Stripe-Signature", ""), raw, secrets, time.time())
    if signed is None:
        raise errors.BadSignature
    delivery = _delivery(raw, signed)
    try:
        is_new = service().db.run(WEBHOOK, inbox.receive(delivery))
    except (psycopg.Error, UnsafeRole) as e:  # whatever it is, the event is not stored
        raise errors.ServiceUnavailable("database") from e
    if is_new:
        g.row_says_it = True  # when it came, what it is and who signed it; a line for each would say it twice
    return Received()


def _delivery(raw: bytes, signed: Signed) -> Delivery:
    try:
        event = events.read(raw)
    except events.Unreadable as e:
        log.warning("webhook.unreadable", reason=str(e))
        raise errors.BadEvent from e
    trace: dict[str, str] = {}
    if get_current_span().is_recording():
        inject(trace)
    kept = Delivery.of(event, raw, livemode=service().settings.livemode)
    made_before_sent = event.created is not None and event.created <= signed.at + CLOCK_SLACK_SECONDS
    return replace(
        kept,
        created=event.created if made_before_sent else None,  # else it would put every later one in the past
        sent_at=signed.at,
        secret=signed.secret,
        trace=trace.get("traceparent"),
    )
