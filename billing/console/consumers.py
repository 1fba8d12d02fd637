"""Which services may ask, and how far those are that follow the feed."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, request, url_for

from billing import feed, tokens
from billing.audit import By
from billing.console import pages
from billing.console.access import acted, viewed
from billing.console.pages import Refused
from billing.operations import consumers
from billing.telemetry import observed
from billing.web.contract import service

page = Blueprint("consumers", __name__, url_prefix="/consumers")


@page.get("")
@observed("console.consumers")
@viewed
def show() -> Any:
    """Every service with a token, and where it stands in the feed."""
    found = consumers.read(service())
    return pages.page("consumers.html", found=found, counted=feed.COUNTED, scopes=tokens.SCOPES)


@page.post("/create")
@observed("console.consumers.create")
@acted
def create(by: By) -> Any:
    """Make a token. It stands on this answer, and nowhere else ever after."""
    form = request.form
    ends = consumers.end(form.get("expires", "").strip())
    secret, token = consumers.create(service(), by, form.get("name", "").strip(), form.getlist("scope"), ends)
    return pages.page("token.html", secret=secret, token=token, status=201)


@page.post("/revoke")
@observed("console.consumers.revoke")
@acted
def revoke(by: By) -> Any:
    """End one token."""
    name, id = request.form.get("name", ""), request.form.get("id", "")
    if not (id.isascii() and id.isdigit() and len(id) < 19 and name.isprintable()):
        raise Refused("There is no such token.", 404)
    if not consumers.revoke(service(), by, name, [int(id)]):
        raise Refused("No such token is alive.", 409)
    return pages.done(f"Token {id} of {name} has ended.", url_for("billing_console.consumers.show"))
