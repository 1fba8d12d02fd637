"""What is sold, and what it gives."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, request, url_for

from billing.audit import By
from billing.console import pages
from billing.console.access import acted, viewed
from billing.operations import plans
from billing.telemetry import observed
from billing.web.contract import service

page = Blueprint("plans", __name__, url_prefix="/plans")


@page.get("")
@observed("console.plans")
@viewed
def show() -> Any:
    """Every plan, as this service reads Stripe's catalogue, and what it cannot read."""
    return pages.page("plans.html", found=plans.read(service(), request.args.get("after")))


@page.post("/refresh")
@observed("console.plans.refresh")
@acted
def refresh(by: By) -> Any:
    """Have the catalogue read again."""
    plans.refresh(service(), by)
    return pages.done("A worker reads it now. Reload in some seconds.", url_for("billing_console.plans.show"))
