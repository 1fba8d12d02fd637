"""`flask billing tenants …`: who they are, why one is in its state, and what makes it right again."""

from __future__ import annotations

from collections.abc import Iterator

import click
from flask.cli import with_appcontext

from billing import errors, forgetting
from billing.commands.base import AS_JSON, REASON, REASONED, Commands, by, group, minute, service, shown
from billing.findings import number_of
from billing.operations import repairs, tenants
from billing.operations.tenants import TIMES, Happening, Line, Tenant
from billing.telemetry import observed

tenants_group = Commands("tenants", help="Who they are, and what makes one right again.")
group.add_command(tenants_group)


@tenants_group.command("find")
@click.argument("text", default="")
@click.option("--state", type=click.Choice(tenants.STATES), help="Those whose documents say this.")
@click.option("--never-synced", is_flag=True, help="Those Stripe was never asked about.")
@click.option("--after", help="Go on there: what the page before ended with.")
@AS_JSON
@with_appcontext
@observed("command.find_tenants")
def find(text: str, state: str | None, never_synced: bool, after: str | None, as_json: bool) -> None:
    """Find tenants whose id or name begins with TEXT, or whose e-mail address or id at Stripe it is."""
    page = tenants.find(service(), text, state=state, never_synced=never_synced, after=after)
    lines = [_line(one) for one in page.rows] or ["Nobody is known by this."]
    shown(page, as_json, [*lines, *([f"More: --after '{page.after}'"] if page.after else [])])


def _line(one: Line) -> str:
    quantity = f" {TIMES}{one.quantity}" if one.quantity is not None else ""
    plan = f"{one.plan or ''}{quantity}"
    rest = [one.name or "", one.state or "unknown", plan, one.note, f"v{one.version}", one.customer or ""]
    return "  ".join(part for part in (f"{one.tenant_id:<20}", *rest) if part)


@tenants_group.command("show")
@click.argument("tenant")
@click.option("--after", help="Go on in the timeline there.")
@AS_JSON
@with_appcontext
@observed("command.show_tenant")
def show(tenant: str, after: str | None, as_json: bool) -> None:
    """How TENANT stands, why, and how it came to that."""
    one, past = tenants.show(service(), tenant), tenants.timeline(service(), tenant, after=after)
    more = [f"  More: --after '{past.after}'"] if past.after else []
    lines = [*_told(one), "TIMELINE", *(_happened(row) for row in past.rows), *more]
    shown({"tenant": one, "timeline": past}, as_json, lines)


def _told(one: Tenant) -> Iterator[str]:
    document = one.document or {}
    stale = " (stale)" if one.is_stale else ""
    yield " ".join(part for part in (one.tenant_id, one.name) if part)
    yield f"STATE      v{one.version} {one.state}: {one.because or '—'}"
    yield f"           plan {document.get('plan') or 'none'}, as of {minute(one.as_of) or 'never'}{stale}"
    for name, feature in enumerate(one.features):
        label = "FEATURES" if name == 0 else ""
        yield f"{label:<11}{feature.key} {feature.value} ({'; '.join(feature.because)})"
    yield f"CUSTOMER   {one.customer or 'none'}"
    for link in one.links:
        until = f" until {minute(link.until)}" if link.until else ""
        yield f"           {link.customer} by {link.by} {minute(link.at)}{until}"
    for held in one.subscriptions:
        items = ", ".join(f"{item.plan} {TIMES} {item.quantity}" for item in held.items)
        yield f"           {held.id} {held.status}: {items}; {held.because}"
        for invoice in held.invoices:
            yield f"           {invoice.id} open{', payment failed' if invoice.attempted else ''}"
    for override in one.overrides:
        end = f"until {minute(override.expires_at)}" if override.expires_at else "without end"
        over = " (over)" if override.is_over else ""
        yield f"OVERRIDE   {override.feature} = {override.value}, {end}{over}, by {override.author}"
        yield f"           {override.reason}"
    for event in one.unsettled:
        yield f"EVENT      {event.event_id} {event.type} {event.state} {event.reason or ''}".rstrip()


def _happened(one: Happening) -> str:
    parts = [
        f"  {minute(one.at)}  {one.what}",
        one.stripe_object or "",
        f"({one.outcome})" if one.outcome else "",
        f"by {one.by}" if one.by else "",
        ", ".join(one.changes),
        " ".join(one.events),
        f'"{one.reason}"' if one.reason else "",
    ]
    return "  ".join(part for part in parts if part)


@tenants_group.command("sync")
@click.argument("tenant")
@REASONED
@AS_JSON
@with_appcontext
@observed("command.sync")
def sync(tenant: str, reason: str, as_json: bool) -> None:
    """Have Stripe asked about TENANT now, and its document say what it answers."""
    synced = repairs.sync_now(service(), tenant, by(reason))
    moved = f"v{synced.before} → v{synced.after}" if synced.after != synced.before else f"v{synced.after}"
    what = ", ".join(synced.changes) or "as it was"
    shown(synced, as_json, [f"{tenant}  {moved}   {what}   ({synced.seconds:.2f} s)"])
    if not synced.is_current:
        raise click.ClickException("Stripe did not answer in time; a worker goes on asking.")


@tenants_group.command("compare")
@click.argument("tenant")
@AS_JSON
@with_appcontext
@observed("command.compare")
def compare(tenant: str, as_json: bool) -> None:
    """Read TENANT at Stripe and say what differs; exit code 1 where something does. Nothing is written."""
    compared = repairs.compare(service(), tenant)
    sides = [("", compared.document), *((f"{one.id} ", one.rows) for one in compared.subscriptions)]
    lines = [
        f"  {of}{row.what}: here {row.here}, at Stripe {row.there}"
        for of, rows in sides
        for row in rows
        if row.differs
    ]
    shown(compared, as_json, [f"{tenant}  {'no difference' if compared.is_equal else 'differs'}", *lines])
    if not compared.is_equal:
        click.get_current_context().exit(1)


@tenants_group.command("link")
@click.argument("tenant")
@click.argument("customer")
@click.option("--replace", is_flag=True, help="In place of the customer the tenant has now.")
@click.option("--whosever", is_flag=True, help="Even if the customer's metadata has another tenant_id.")
@REASONED
@AS_JSON
@with_appcontext
@observed("command.link")
def link(tenant: str, customer: str, replace: bool, whosever: bool, reason: str, as_json: bool) -> None:
    """Make CUSTOMER, an id of Stripe's (cus_…), the customer of TENANT."""
    if not customer.startswith("cus_"):
        raise click.BadParameter("must be the id of a Stripe customer, cus_…", param_hint="CUSTOMER")
    try:
        linked = repairs.link(service(), tenant, customer, by(reason), replace=replace, whosever=whosever)
    except errors.OtherCustomer as e:
        raise click.ClickException(
            "This tenant has another customer; --replace takes this one in its place."
        ) from e
    state = "and is up to date" if linked.is_current else "and is brought up to date as soon as Stripe answers"
    waited = number_of(linked.woken, "event", exact=True)
    said = f"{tenant} is linked to {customer} {state}; {waited} had waited for it."
    untold = [] if linked.is_told else ["Stripe's customer does not say so yet; a worker goes on telling it."]
    shown(linked, as_json, [said, *untold])


@tenants_group.command("unlink")
@click.argument("tenant")
@REASON
@AS_JSON
@with_appcontext
@observed("command.unlink")
def unlink(tenant: str, reason: str, as_json: bool) -> None:
    """Leave TENANT without a customer. Stripe's subscriptions go on; they grant it nothing any more.

    Refused while the tenant is buying.
    """
    unlinked = repairs.unlink(service(), tenant, by(reason))
    untold = "" if unlinked.is_told else " Stripe did not answer: its customer still names this tenant."
    shown(unlinked, as_json, [f"{tenant} is unlinked from {unlinked.customer}.{untold}"])


@tenants_group.command("forget")
@click.argument("tenant")
@REASON
@click.confirmation_option(prompt="All that is held of the tenant is deleted. Go on?")
@AS_JSON
@with_appcontext
@observed("command.forget")
def forget(tenant: str, reason: str, as_json: bool) -> None:
    """Keep nothing of TENANT but the trail, and have the feed say that it is gone. Stripe is left as it is.

    Refused while the tenant has a subscription that is not over, or is buying one.
    """
    billing = service()
    known = forgetting.forget(billing.db, billing.stripe, billing.budget, tenant, by(reason))
    if not known:
        raise click.ClickException("Nothing is held of such a tenant.")
    shown({"tenant_id": tenant, "forgotten": True}, as_json, [f"{tenant} is forgotten; the feed says so."])
