"""`flask billing inbox` and `replay`: what came, and once more."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import click
from flask.cli import with_appcontext

from billing import customers, inbox, signatures, sync
from billing.commands.base import group, service
from billing.db import SYSTEM
from billing.inbox import Choice
from billing.telemetry import observed


@group.command("inbox")
@with_appcontext
@observed("command.inbox")
def show_inbox() -> None:
    """How much is under way, what failed and why, and which secrets Stripe signs with."""
    with service().db.begin(SYSTEM) as connection:
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
        signatures.fingerprint(secret.get_secret_value()) for secret in service().settings.stripe_webhook_secret
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
    db = service().db
    with db.begin(SYSTEM) as connection:
        after, last = inbox.span(connection)
    while after < last:
        with db.begin(SYSTEM) as connection:
            yield sync.replay(connection, choice, after=after)
        after += inbox.REPLAYED_AT_ONCE


def _customer_of(tenant: str) -> str:
    customer = service().db.run(SYSTEM, customers.find(tenant))
    if customer is None:
        raise click.ClickException("This tenant has no Stripe customer.")
    return customer
