"""`flask billing feed`: the order in which documents changed, and who copies them."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC

import click
from flask.cli import with_appcontext

from billing import feed
from billing.commands.base import AS_JSON, group, service
from billing.db import SYSTEM
from billing.telemetry import observed


@group.group("feed", invoke_without_command=True)
@AS_JSON
@click.pass_context
@with_appcontext
@observed("command.feed")
def show_feed(ctx: click.Context, as_json: bool) -> None:
    """Where the feed of changes ends, and how far behind its consumers are."""
    if ctx.invoked_subcommand:
        return
    with service().db.begin(SYSTEM) as connection:
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
    with service().db.begin(SYSTEM) as connection:
        head = feed.rewind(connection)
    click.echo(f"The feed is {head} now: consumers start over, and get each tenant once.")
