"""The first page: what needs attention."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, request

from billing.console import pages
from billing.console.access import viewed
from billing.operations.overview import overview
from billing.telemetry import observed
from billing.web.contract import service

page = Blueprint("overview", __name__)


@page.get("/")
@observed("console.overview")
@viewed
def show() -> Any:
    """What needs attention first, then how all is. It renews itself only for those who want it to."""
    return pages.page("overview.html", seen=overview(service()), renews=request.args.get("renew") == "1")
