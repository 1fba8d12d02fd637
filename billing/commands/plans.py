"""`flask billing plans`: what is sold, as this service reads Stripe's catalogue."""

from __future__ import annotations

import json

import click
from flask.cli import with_appcontext

from billing.commands.base import AS_JSON, REASONED, by, group, service
from billing.findings import number_of, span
from billing.operations import plans
from billing.operations.base import plain
from billing.operations.plans import Plan, Plans
from billing.telemetry import observed

EVERY = 1_000_000


@group.command("plans")
@click.option("--refresh", is_flag=True, help="Read the catalogue at Stripe first.")
@click.option("--check", is_flag=True, help="Exit with 1 where some of it cannot be read, or it never was.")
@REASONED
@AS_JSON
@with_appcontext
@observed("command.plans")
def show_plans(refresh: bool, check: bool, reason: str, as_json: bool) -> None:
    """What is sold, what it gives, how many have it, and what in the catalogue cannot be read."""
    if refresh:
        plans.refresh_now(service(), by(reason))
    found = plans.read(service(), most=EVERY)
    if as_json:
        click.echo(json.dumps({**plain(found), "plans": plain(found.plans.rows)}))
    else:
        _show(found)
    if check and (found.faults or not found.edition):
        raise SystemExit(1)


def _show(found: Plans) -> None:
    if not found.edition:
        click.echo("The catalogue was never read.")
        return
    click.echo(f"Edition {found.edition} of the catalogue, read {span(found.age or 0)} ago.")
    for plan in found.plans.rows:
        click.echo(_line(plan))
        if plan.features:
            click.echo("    " + " · ".join(_feature(one) for one in plan.features))
    if found.default_plan:
        click.echo(f"Without a subscription: {found.default_plan}")
    if found.portal:
        click.echo(f"! What the portal offers could not be read ({found.portal}).")
    for fault in found.faults:
        click.echo(f"! {fault.where}: {fault.key} {fault.sentence}. To mend it, {fault.cure}.")


def _line(plan: Plan) -> str:
    portal = {True: "in the portal", False: "not in the portal", None: "in the portal?"}[plan.in_portal]
    number = (
        f"{'' if plan.counted_all else 'at least '}{number_of(plan.subscriptions, 'subscription', exact=True)}"
    )
    return f"{plan.key:<20} {plan.product}   {plan.costs}   {plan.standing}   {portal}   {number}"


def _feature(one: plans.Feature) -> str:
    return f"{one.key} {one.limit or 'on' if one.is_on else 'off'}"
