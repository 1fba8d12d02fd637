"""`flask billing tokens …`: what other services show to be let in."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import click
from flask.cli import with_appcontext

from billing import errors, tokens
from billing.commands.base import AS_JSON, REASONED, Commands, by, group, minute, second, service
from billing.operations import consumers
from billing.telemetry import observed
from billing.tokens import Token

service_tokens = Commands("tokens", help="What other services show to be let in.")
group.add_command(service_tokens)


def end(_context: click.Context, _option: click.Parameter, wanted: str | None) -> datetime | None:
    """When it ends: on a day, as it begins in UTC, or so many days from now."""
    if wanted == "":
        raise click.BadParameter("must be left out for one that never ends")
    try:
        return consumers.end(wanted or "")
    except errors.InvalidRequest as e:
        raise click.BadParameter(str(e)) from None


@service_tokens.command("create")
@click.argument("name")
@click.option("--scope", "scopes", multiple=True, required=True, type=click.Choice(tokens.SCOPES))
@click.option("--expires", callback=end, help="2027-01-01, or 90d from now; without it, never.")
@REASONED
@AS_JSON
@with_appcontext
@observed("command.create_token")
def create_token(
    name: str, scopes: tuple[str, ...], expires: datetime | None, reason: str, as_json: bool
) -> None:
    """Make a token for the service NAME, and show it this once.

    Two of a name may be alive, so that one can follow the other without a gap.
    """
    try:
        secret, token = consumers.create(service(), by(reason), name, scopes, expires)
    except errors.InvalidRequest as e:
        raise click.BadParameter(str(e), param_hint="NAME") from None
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
    found = consumers.every_token(service())
    if as_json:
        click.echo(json.dumps([_described(token) for token in found]))
    elif not found:
        click.echo("There are no tokens.")
    else:
        for token in found:
            click.echo(
                f"{token.name:<20} {token.id:>6}  {' '.join(token.scopes):<27} {_standing(token):<25}"
                f" last used {minute(token.last_used_at) or 'never'}"
            )


@service_tokens.command("revoke")
@click.argument("name")
@click.option("--id", "id", type=int, help="This one alone, by its number in the list.")
@click.option("--all", "is_all", is_flag=True, help="All that are alive.")
@REASONED
@AS_JSON
@with_appcontext
@observed("command.revoke_token")
def revoke_token(name: str, id: int | None, is_all: bool, reason: str, as_json: bool) -> None:
    """End the token of the service NAME, at once. Where two are alive, say which."""
    which = [id] if id is not None else None if is_all else _only(name)
    ended = consumers.revoke(service(), by(reason), name, which)
    if not ended:
        raise click.ClickException("No such token is alive.")
    if as_json:
        click.echo(json.dumps({"name": name, "revoked": ended}))
    else:
        click.echo(f"Revoked: {', '.join(str(one) for one in ended)} of {name}.")


def _only(name: str) -> list[int]:
    """The one that is alive, if there is one."""
    alive = [token.id for token in consumers.alive(service(), name)]
    if len(alive) > 1:
        which = " or ".join(f"--id {one}" for one in alive)
        raise click.UsageError(f"Several are alive: say {which}, or --all.")
    return alive


def _described(token: Token) -> dict[str, Any]:
    moments = ("created_at", "expires_at", "ended_at", "last_used_at")
    written = {name: second(getattr(token, name)) for name in moments}
    plain = {"id": token.id, "name": token.name, "scopes": token.scopes, "is_alive": token.is_alive}
    return {**plain, **written}


def _standing(token: Token) -> str:
    if token.is_alive:
        return f"until {minute(token.expires_at)}" if token.expires_at else "alive"
    return f"ended {minute(token.ended_at or token.expires_at)}"
