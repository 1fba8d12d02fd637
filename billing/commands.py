"""The door for operators at a terminal: `flask billing …`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from flask import Flask, current_app
from flask.cli import AppGroup, with_appcontext

from billing import customers, errors, inbox, reconcile, signatures, sync
from billing.budget import Budget
from billing.db import SYSTEM
from billing.inbox import Choice
from billing.listening import Listener, Told
from billing.telemetry import observed
from billing.wiring import Billing

LISTEN_SECONDS = 1.0
AWAY_SECONDS = 3.0


class Commands(AppGroup):
    """What goes wrong is told in a sentence, and with the short word the logs have for it."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command the operator named."""
        try:
            return super().invoke(ctx)
        except errors.BillingError as e:
            raise click.ClickException(f"{e} ({e.outcome})") from e


group = Commands("billing", help="Look after the inbox and the tenants.")
tenants = Commands("tenants", help="Whose a Stripe customer is.")
group.add_command(tenants)


def install(app: Flask) -> None:
    """Give the app its commands."""
    app.cli.add_command(group)


def _billing() -> Billing:
    billing: Billing = current_app.extensions["billing"]
    return billing


@group.command("inbox")
@with_appcontext
@observed("command.inbox")
def show_inbox() -> None:
    """How much is under way, what failed and why, and which secrets Stripe signs with."""
    with _billing().db.begin(SYSTEM) as connection:
        overview = inbox.overview(connection)
    if not overview.states:
        click.echo("Nothing is under way.")
    for row in overview.states:
        click.echo(f"{row['state']:<8} {row['events']:>8}   oldest {timedelta(seconds=row['oldest_seconds'])}")
    for row in overview.reasons:
        click.echo(f"{row['state']:<8} {row['events']:>8}   {row['reason']} ({row['type']})")
    for row in overview.secrets:
        latest = f"{row['latest']:%Y-%m-%d %H:%M} UTC"
        click.echo(
            f"signed with {_place(row['secret'])}: {row['events']} of the last 1000, the latest {latest}"
        )


def _place(fingerprint: str) -> str:
    """Which of STRIPE_WEBHOOK_SECRET's secrets it is; they are told apart by their order."""
    known = [
        signatures.fingerprint(secret.get_secret_value())
        for secret in _billing().settings.stripe_webhook_secret
    ]
    if fingerprint not in known:
        return "a secret that is no longer configured"
    return f"secret {known.index(fingerprint) + 1} of {len(known)}"


@group.command("replay")
@click.argument("event_ids", nargs=-1, metavar="[EVENT]...")
@click.option("--type", "kind", help="Events of this type.")
@click.option("--tenant", help="Events of this tenant's customer.")
@click.option("--since", type=click.DateTime(), help="Received at or after this moment, in UTC.")
@click.option("--until", type=click.DateTime(), help="Received before this moment, in UTC.")
@click.option("--failed", is_flag=True, help="Those that were buried.")
@with_appcontext
@observed("command.replay")
def replay(
    event_ids: tuple[str, ...],
    kind: str | None,
    tenant: str | None,
    since: datetime | None,
    until: datetime | None,
    failed: bool,
) -> None:
    """Work on events again, and ask Stripe about their customers.

    Give event ids, or describe the events: all that fit everything you say.
    """
    if not (event_ids or kind or tenant or since or until or failed):
        raise click.UsageError("Say which events: by id, or with one of the options.")
    choice = Choice(
        event_ids=event_ids or None,
        type=kind,
        customers=[_customer_of(tenant)] if tenant else None,
        since=since and since.replace(tzinfo=UTC),
        until=until and until.replace(tzinfo=UTC),
        failed=failed,
    )
    click.echo(f"{sum(_replay(choice))} events are due again.")


def _replay(choice: Choice) -> Iterator[int]:
    """A stretch of the inbox at a time, so that no lock is held for long."""
    db = _billing().db
    with db.begin(SYSTEM) as connection:
        after, last = inbox.span(connection)
    while after < last:
        with db.begin(SYSTEM) as connection:
            yield sync.replay(connection, choice, after=after)
        after += inbox.REPLAYED_AT_ONCE


def _customer_of(tenant: str) -> str:
    customer = _billing().db.run(SYSTEM, customers.find(tenant))
    if customer is None:
        raise click.ClickException("This tenant has no Stripe customer.")
    return customer


@group.command("reconcile")
@with_appcontext
@observed("command.reconcile")
def reconcile_now() -> None:
    """Have Stripe asked about every tenant, and fetch what it could not deliver.

    A worker does the asking; this waits for nobody.
    """
    billing, began = _billing(), time.monotonic()
    asked = 0
    # those answered since this began are not asked about again, or a worker that keeps up would keep it going
    while found := reconcile.walk(billing.db, older=timedelta(seconds=time.monotonic() - began)):
        asked += found
    click.echo(f"{asked} customers are asked about as soon as a worker gets to them.")
    fetched = reconcile.undelivered(
        billing.db, billing.stripe, billing.budget, livemode=billing.settings.livemode
    )
    click.echo(f"{fetched} events that Stripe could not deliver were fetched.")


@group.command("listen")
@click.option("--to", "address", help="The webhook; default http://localhost:$PORT/webhooks/stripe.")
@with_appcontext
def listen(address: str | None) -> None:
    """Bring a test account's events to the local webhook, until Ctrl-C.

    Stripe's list of events is asked for: no tunnel and no other tool is needed.
    """
    billing = _billing()
    if billing.settings.livemode:
        raise click.ClickException(
            "Live events belong to a webhook endpoint at Stripe; listen with a test key."
        )
    to = address or f"http://localhost:{os.environ.get('PORT', '8000')}/webhooks/stripe"
    secret = billing.settings.stripe_webhook_secret[0].get_secret_value()
    listener = Listener(billing.stripe, billing.budget, to=to, secret=secret)
    click.echo(f"Bringing this account's events to {to}")
    with suppress(KeyboardInterrupt):
        while True:
            time.sleep(LISTEN_SECONDS if _look(listener) else AWAY_SECONDS)


@observed("command.listen")
def _look(listener: Listener) -> bool:
    """Whether both sides were there."""
    try:
        return listener.look(_tell)
    except (errors.StripeFailed, errors.ServiceUnavailable) as e:
        click.echo(f"{datetime.now():%H:%M:%S} waiting ({e.outcome})")  # noqa: DTZ005  # for the eyes beside it
        return False


def _tell(told: Told) -> None:
    now = f"{datetime.now():%H:%M:%S}"  # noqa: DTZ005  # for the eyes beside it
    click.echo(f"{now} {told.type} {told.event_id} → {told.status or 'no answer'}")


@tenants.command("link")
@click.argument("tenant")
@click.argument("customer")
@click.option("--replace", is_flag=True, help="In place of the customer the tenant has now.")
@with_appcontext
@observed("command.link")
def link(tenant: str, customer: str, replace: bool) -> None:
    """Make CUSTOMER, an id of Stripe's (cus_…), the customer of TENANT."""
    if not customer.startswith("cus_"):
        raise click.BadParameter("must be the id of a Stripe customer, cus_…", param_hint="CUSTOMER")
    click.echo(_link(tenant, customer, replace))


def _link(tenant: str, customer: str, replace: bool) -> str:
    billing = _billing()
    budget = Budget(billing.db, billing.settings.billing_stripe_reads_per_second)
    budget.spend("customers.retrieve", "waiting")
    found = billing.stripe.customer(customer)
    if found is None or found.things[0].get("deleted"):
        raise click.ClickException("Stripe knows no such customer, or only as a deleted one.")
    woken = sync.link(billing.db, tenant, customer, by="command", replace=replace)
    if woken is None:
        raise click.ClickException("This tenant has another customer; --replace takes this one in its place.")
    is_current = sync.now(billing.db, billing.stripe, budget, customer)
    state = "and is up to date" if is_current else "and is brought up to date as soon as Stripe answers"
    return f"{tenant} is linked to {customer} {state}; {woken} events had waited for it."
