"""The door for operators at a terminal: `flask billing …`."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from flask import Flask, current_app
from flask.cli import AppGroup, with_appcontext

from billing import (
    customers,
    enrolling,
    errors,
    feed,
    forgetting,
    inbox,
    reconcile,
    signatures,
    sync,
    tokens,
)
from billing.db import SYSTEM
from billing.inbox import Choice
from billing.listening import Listener, Told
from billing.telemetry import observed
from billing.tokens import Token
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


group = Commands("billing", help="Look after the inbox, the tenants and the feed.")
tenants = Commands("tenants", help="Whose a Stripe customer is.")
group.add_command(tenants)
service_tokens = Commands("tokens", help="What other services show to be let in.")
group.add_command(service_tokens)


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
@click.option("--reason", required=True, help="Why; it stays in the trail.")
@click.confirmation_option(prompt="All that is held of the tenant is deleted. Go on?")
@with_appcontext
@observed("command.forget")
def forget(tenant: str, reason: str) -> None:
    """Keep nothing of TENANT but the trail, and have the feed say that it is gone. Stripe is left as it is.

    Refused while the tenant has a subscription that is not over, or is buying one.
    """
    if not reason.strip():
        raise click.BadParameter("must say why", param_hint="--reason")
    billing = _billing()
    known = forgetting.forget(
        billing.db, billing.stripe, billing.budget, tenant, by="command", reason=reason.strip()
    )
    if not known:
        raise click.ClickException("Nothing is held of such a tenant.")
    click.echo(f"{tenant} is forgotten; the feed says so.")


def _link(tenant: str, customer: str, *, replace: bool, whosever: bool) -> str:
    billing = _billing()
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


# ---- tokens

AS_JSON = click.option("--json", "as_json", is_flag=True, help="For programs to read.")


def _end(_context: click.Context, _option: click.Parameter, wanted: str | None) -> datetime | None:
    """When a token ends: on a day, as it begins in UTC, or so many days from now."""
    if wanted is None:
        return None
    try:
        if days := re.fullmatch(r"(\d{1,6})d", wanted, re.ASCII):
            end = datetime.now(UTC) + timedelta(days=int(days[1]))
        else:
            end = datetime.strptime(wanted, "%Y-%m-%d").replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise click.BadParameter("must be a day, as in 2027-01-01, or so many days, as in 90d") from None
    if end <= datetime.now(UTC):
        raise click.BadParameter("must be in the future")
    return end


@service_tokens.command("create")
@click.argument("name")
@click.option("--scope", "scopes", multiple=True, required=True, type=click.Choice(tokens.SCOPES))
@click.option("--expires", callback=_end, help="2027-01-01, or 90d from now; without it, never.")
@AS_JSON
@with_appcontext
@observed("command.create_token")
def create_token(name: str, scopes: tuple[str, ...], expires: datetime | None, as_json: bool) -> None:
    """Make a token for the service NAME, and show it this once.

    Two of a name may be alive, so that one can follow the other without a gap.
    """
    if not re.fullmatch(tokens.NAME, name):
        raise click.BadParameter(
            "must be at most 63 of a-z, 0-9, '.', '_' and '-', the first a letter or digit", param_hint="NAME"
        )
    with _billing().db.begin(SYSTEM) as connection:
        secret, token = tokens.create(connection, name, scopes, expires)
    if as_json:
        click.echo(json.dumps({**_described(token), "token": secret}))
    else:
        click.echo(secret)
        click.echo(f"This is token {token.id} of {name}. It is not shown again.", err=True)


@service_tokens.command("list")
@AS_JSON
@with_appcontext
@observed("command.list_tokens")
def list_tokens(as_json: bool) -> None:
    """Who has tokens, for what, until when, and when they were last used."""
    with _billing().db.begin(SYSTEM) as connection:
        found = tokens.every(connection)
    if as_json:
        click.echo(json.dumps([_described(token) for token in found]))
    elif not found:
        click.echo("There are no tokens.")
    else:
        for token in found:
            click.echo(
                f"{token.name:<20} {token.id:>6}  {' '.join(token.scopes):<27} {_standing(token):<25}"
                f" last used {_minute(token.last_used_at) or 'never'}"
            )


@service_tokens.command("revoke")
@click.argument("name")
@click.option("--id", "id", type=int, help="This one alone, by its number in the list.")
@click.option("--all", "is_all", is_flag=True, help="All that are alive.")
@AS_JSON
@with_appcontext
@observed("command.revoke_token")
def revoke_token(name: str, id: int | None, is_all: bool, as_json: bool) -> None:
    """End the token of the service NAME, at once. Where two are alive, say which."""
    with _billing().db.begin(SYSTEM) as connection:
        alive = [token.id for token in tokens.alive(connection, name)]
        if id is None and not is_all and len(alive) > 1:
            which = " or ".join(f"--id {one}" for one in alive)
            raise click.UsageError(f"Several are alive: say {which}, or --all.")
        ended = tokens.revoke(connection, name, alive if id is None else [id])
    if not ended:
        raise click.ClickException("No such token is alive.")
    if as_json:
        click.echo(json.dumps({"name": name, "revoked": sorted(ended)}))
    else:
        click.echo(f"Revoked: {', '.join(str(one) for one in sorted(ended))} of {name}.")


def _described(token: Token) -> dict[str, Any]:
    moments = ("created_at", "expires_at", "ended_at", "last_used_at")
    written = {name: _second(getattr(token, name)) for name in moments}
    plain = {"id": token.id, "name": token.name, "scopes": token.scopes, "is_alive": token.is_alive}
    return {**plain, **written}


def _standing(token: Token) -> str:
    if token.is_alive:
        return f"until {_minute(token.expires_at)}" if token.expires_at else "alive"
    return f"ended {_minute(token.ended_at or token.expires_at)}"


def _minute(at: datetime | None) -> str | None:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if at else None


def _second(at: datetime | None) -> str | None:
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}" if at else None


# ---- the feed


@group.group("feed", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_context
@with_appcontext
@observed("command.feed")
def show_feed(ctx: click.Context, as_json: bool) -> None:
    """Where the feed of changes ends, and how far behind its consumers are."""
    if ctx.invoked_subcommand:
        return
    with _billing().db.begin(SYSTEM) as connection:
        overview = feed.overview(connection)
    if as_json:
        consumers = [{**asdict(one), "asked_at": one.asked_at.isoformat()} for one in overview.consumers]
        click.echo(json.dumps({"head": str(overview.head), "consumers": consumers}))
        return
    click.echo(f"The feed ends at {overview.head}.")
    for one in overview.consumers:
        behind = f"more than {feed.COUNTED}" if one.behind > feed.COUNTED else str(one.behind)
        seen = f"{one.asked_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
        click.echo(f"{one.name:<24} at {one.position:>10}   {behind:>15} behind   last seen {seen}")


@show_feed.command("rewind")
@with_appcontext
@observed("command.rewind")
def rewind() -> None:
    """Let every consumer start over: after the database went back to a snapshot of its storage."""
    with _billing().db.begin(SYSTEM) as connection:
        head = feed.rewind(connection)
    click.echo(f"The feed is {head} now: consumers start over, and get each tenant once.")
