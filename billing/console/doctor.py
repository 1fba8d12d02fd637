"""What the doctor finds, in a browser."""

from __future__ import annotations

from typing import Any

from flask import Blueprint

from billing.console import pages
from billing.console.access import viewed
from billing.operations import health
from billing.telemetry import observed
from billing.web.contract import service

page = Blueprint("doctor", __name__, url_prefix="/doctor")


@page.get("")
@observed("console.doctor")
@viewed
def show() -> Any:
    """Look at everything now: a second or two, most of it Stripe's."""
    held = service()
    found = health.findings(held.settings, held.db, held.stripe, held.budget)
    return pages.page("doctor.html", groups=health.by_group(found))
