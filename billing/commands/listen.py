"""`flask billing listen`: a test account's events, brought to this machine."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from datetime import datetime

import click
from flask.cli import with_appcontext

from billing import errors
from billing.commands.base import group, service
from billing.listening import Listener, Told
from billing.telemetry import observed

LISTEN_SECONDS = 1.0
AWAY_SECONDS = 3.0


@group.command("listen")
@click.option("--to", "address", help="The webhook; default http://localhost:$PORT/webhooks/stripe.")
@with_appcontext
def listen(address: str | None) -> None:
    """Bring a test account's events to the local webhook, until Ctrl-C.

    Stripe's list of events is asked for: no tunnel and no other tool is needed.
    """
    billing = service()
    if billing.settings.livemode:
        raise click.ClickException(
            "Live events belong to a webhook endpoint at Stripe; listen with a test key."
        )
    to = address or f"http://localhost:{os.environ.get('PORT', '8000')}/webhooks/stripe"
    secret = billing.settings.stripe_webhook_secret[0].get_secret_value()
    listener = Listener(billing.stripe, billing.budget, to=to, secret=secret)
    with suppress(KeyboardInterrupt):
        while not _look(listener):
            time.sleep(AWAY_SECONDS)
        click.echo(f"Bringing what happens from now on to {to}")
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
