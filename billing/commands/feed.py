"""`flask billing feed`: the order in which documents changed, and who copies them."""

from __future__ import annotations

import json
from datetime import UTC

import click
from flask.cli import with_appcontext

from billing import feed
from billing.commands.base import AS_JSON, REASONED, by, group, service, shown
from billing.operations import consumers
from billing.operations.base import plain
from billing.operations.consumers import Consumer
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
    found = consumers.read(service())
    if as_json:
        click.echo(json.dumps({"head": found.head, "consumers": plain(found.readers)}))
        return
    click.echo(f"The feed ends at {found.head}.")
    for one in found.readers:
        click.echo(_line(one))


def _line(one: Consumer) -> str:
    assert one.behind is not None  # who reads stands somewhere
    assert one.asked_at is not None
    behind = f"more than {feed.COUNTED}" if one.behind > feed.COUNTED else str(one.behind)
    seen = f"{one.asked_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    return f"{one.name:<24} at {one.position:>10}   {behind:>15} behind   last seen {seen}"


@show_feed.command("rewind")
@REASONED
@AS_JSON
@with_appcontext
@observed("command.rewind")
def rewind(reason: str, as_json: bool) -> None:
    """Let every consumer start over: after the database went back to a snapshot of its storage."""
    head = consumers.rewind(service(), by(reason))
    said = f"The feed is {head} now: consumers start over, and get each tenant once."
    shown({"head": str(head)}, as_json, [said])
