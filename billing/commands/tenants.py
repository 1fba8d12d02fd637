"""`flask billing tenants …`: whose a Stripe customer is."""

from __future__ import annotations

import click
from flask.cli import with_appcontext

from billing import enrolling, errors, forgetting, sync
from billing.commands.base import REASON, Commands, by, group, service
from billing.telemetry import observed

tenants = Commands("tenants", help="Whose a Stripe customer is.")
group.add_command(tenants)


@tenants.command("link")
@click.argument("tenant")
@click.argument("customer")
@click.option("--replace", is_flag=True, help="In place of the customer the tenant has now.")
@click.option("--whosever", is_flag=True, help="Even if the customer's metadata has another tenant_id.")
@with_appcontext
@observed("command.link")
def link(tenant: str, customer: str, replace: bool, whosever: bool) -> None:
    """Make CUSTOMER, an id of Stripe's (cus_…), the customer of TENANT."""
    if not customer.startswith("cus_"):
        raise click.BadParameter("must be the id of a Stripe customer, cus_…", param_hint="CUSTOMER")
    click.echo(_link(tenant, customer, replace=replace, whosever=whosever))


@tenants.command("forget")
@click.argument("tenant")
@REASON
@click.confirmation_option(prompt="All that is held of the tenant is deleted. Go on?")
@with_appcontext
@observed("command.forget")
def forget(tenant: str, reason: str) -> None:
    """Keep nothing of TENANT but the trail, and have the feed say that it is gone. Stripe is left as it is.

    Refused while the tenant has a subscription that is not over, or is buying one.
    """
    billing = service()
    known = forgetting.forget(billing.db, billing.stripe, billing.budget, tenant, by(reason))
    if not known:
        raise click.ClickException("Nothing is held of such a tenant.")
    click.echo(f"{tenant} is forgotten; the feed says so.")


def _link(tenant: str, customer: str, *, replace: bool, whosever: bool) -> str:
    billing = service()
    db, stripe, budget = billing.db, billing.stripe, billing.budget
    try:
        woken = enrolling.link(
            db, stripe, budget, tenant, customer, by="command", replace=replace, whosever=whosever
        )
    except errors.OtherCustomer as e:
        raise click.ClickException(
            "This tenant has another customer; --replace takes this one in its place."
        ) from e
    is_current = sync.now(db, stripe, budget, customer)
    enrolling.tell(db, stripe, tenant)
    state = "and is up to date" if is_current else "and is brought up to date as soon as Stripe answers"
    return f"{tenant} is linked to {customer} {state}; {woken} events had waited for it."
