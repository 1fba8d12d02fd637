"""Tenants: who they are, and one of them with its whole story and what can be done about it.

An id may be anything a token may name, slashes included, so it stands in the query and in forms.
"""

from __future__ import annotations

from typing import Any

from flask import Blueprint, request, url_for

from billing.audit import By
from billing.console import pages
from billing.console.access import acted, viewed
from billing.errors import TenantNotFound
from billing.findings import number_of
from billing.identity import is_name
from billing.operations import consumers, grants, repairs, tenants
from billing.operations.repairs import Synced
from billing.telemetry import observed
from billing.web.contract import service

page = Blueprint("tenants", __name__, url_prefix="/tenants")


@page.get("")
@observed("console.tenants")
@viewed
def show() -> Any:
    """Find one, or go through them all."""
    wanted, state = request.args.get("q", "").strip(), request.args.get("state", "")
    found = tenants.find(
        service(),
        wanted,
        state=state if state in tenants.STATES else None,
        never_synced=state == "never",
        after=request.args.get("after"),
    )
    return pages.page(
        "tenants.html", found=found, wanted=wanted, state=state, states=tenants.STATES, looked=tenants.LOOKED_AT
    )


@page.get("/one")
@observed("console.tenant")
@viewed
def one() -> Any:
    """How a tenant stands, why, and how it came to that."""
    tenant_id = _tenant()
    billing = service()
    return pages.page(
        "tenant.html",
        tenant=tenants.show(billing, tenant_id),
        timeline=tenants.timeline(billing, tenant_id, after=request.args.get("after")),
        offered=grants.offered(billing),
    )


@page.get("/compare")
@observed("console.compare")
@viewed
def compare() -> Any:
    """What is held of a tenant, and what Stripe says, side by side."""
    return pages.page("compare.html", compared=repairs.compare(service(), _tenant()))


@page.get("/link")
@observed("console.candidate")
@viewed
def candidate() -> Any:
    """A customer of Stripe's, to be looked at before it is linked."""
    return pages.page("link.html", candidate=repairs.candidate(service(), _tenant(), _customer()))


@page.post("/reveal")
@observed("console.reveal_customer")
@acted
def reveal(by: By) -> Any:
    """The same with what it is called and all that its metadata says, this once."""
    return pages.page("link.html", candidate=repairs.candidate(service(), _tenant(), _customer(), by))


@page.post("/link")
@observed("console.link")
@acted
def link(by: By) -> Any:
    """Make a customer the tenant's."""
    ticked = {name: request.form.get(name) == "yes" for name in ("replace", "whosever")}
    linked = repairs.link(service(), _tenant(), _customer(), by, **ticked)
    current = "It is up to date" if linked.is_current else "It is brought up to date as soon as Stripe answers"
    untold = "" if linked.is_told else " Stripe's customer does not say so yet; a worker goes on telling it."
    waited = number_of(linked.woken, "event", exact=True)
    return _done(f"{linked.customer} is linked. {current}; {waited} had waited for it.{untold}")


@page.post("/unlink")
@observed("console.unlink")
@acted
def unlink(by: By) -> Any:
    """Leave the tenant without a customer."""
    unlinked = repairs.unlink(service(), _tenant(), by)
    untold = "" if unlinked.is_told else " Stripe did not answer: its customer still names this tenant."
    return _done(f"{unlinked.customer} is unlinked.{untold}")


@page.post("/sync")
@observed("console.sync")
@acted
def sync(by: By) -> Any:
    """Have Stripe asked now."""
    return _done(in_words(repairs.sync_now(service(), _tenant(), by)))


@page.post("/grant")
@observed("console.grant")
@acted
def grant(by: By) -> Any:
    """Set an override."""
    granted = grants.grant(
        service(),
        _tenant(),
        request.form.get("feature", ""),
        request.form.get("value", ""),
        by,
        expires_at=consumers.end(request.form.get("ends", "")),
        unsold=request.form.get("unsold") == "yes",
    )
    return _done(f"{granted.feature} is overridden: {granted.value}. {_changes(granted.changes)}")


@page.post("/lift")
@observed("console.lift")
@acted
def lift(by: By) -> Any:
    """Take an override away."""
    granted = grants.lift(service(), _tenant(), request.form.get("feature", ""), by)
    return _done(f"The override of {granted.feature} is lifted. {_changes(granted.changes)}")


def in_words(synced: Synced) -> str:
    """What came of asking Stripe, in a sentence."""
    if not synced.is_current:
        return "Stripe did not answer in time. A worker goes on asking."
    moved = f"v{synced.before} → v{synced.after}. " if synced.after != synced.before else ""
    return f"Stripe was asked ({synced.seconds:.2f} s). {moved}{_changes(synced.changes)}"


def _changes(changes: Any) -> str:
    return f"Changed: {', '.join(changes)}." if changes else "The document says what it said."


def _done(sentence: str) -> Any:
    return pages.done(sentence, url_for("billing_console.tenants.one", id=_tenant()))


def _customer() -> str:
    return request.values.get("customer", "").strip()


def _tenant() -> str:
    """Whom it is about."""
    tenant_id = request.values.get("id", "")
    if not is_name(tenant_id):
        raise TenantNotFound
    return tenant_id
