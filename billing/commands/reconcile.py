"""`flask billing reconcile`: find what no event has told."""

from __future__ import annotations

import time
from datetime import timedelta

import click
from flask.cli import with_appcontext

from billing import reconcile
from billing.commands.base import group, service
from billing.telemetry import observed


@group.command("reconcile")
@with_appcontext
@observed("command.reconcile")
def reconcile_now() -> None:
    """Have Stripe asked about every tenant, and fetch what it could not deliver.

    A worker does the asking; this waits for nobody.
    """
    billing, began = service(), time.monotonic()
    asked = 0
    # those answered since this began are not asked about again, or a worker that keeps up would keep it going
    while found := reconcile.walk(billing.db, older=timedelta(seconds=time.monotonic() - began)):
        asked += found
    click.echo(f"{asked} customers are asked about as soon as a worker gets to them.")
    fetched = reconcile.undelivered(
        billing.db, billing.stripe, billing.budget, livemode=billing.settings.livemode
    )
    click.echo(f"{fetched} events that Stripe could not deliver were fetched.")
