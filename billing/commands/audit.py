"""`flask billing audit`: who did what."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import click
from flask.cli import with_appcontext

from billing.audit import Row, Wanted
from billing.commands.base import AS_JSON, group, service
from billing.operations import trail
from billing.operations.base import SHOWN, plain
from billing.telemetry import observed


@group.command("audit")
@click.option("--who", help="A user's subject, service:NAME, an operator's name, or command.")
@click.option("--action", help="portal, checkout, tenant.link, token.revoke, …")
@click.option("--tenant", help="What concerns this tenant.")
@click.option("--outcome", help="ok, opened, forbidden, …")
@click.option("--since", type=click.DateTime(), help="At or after this moment, in UTC.")
@click.option("--until", type=click.DateTime(), help="Before this moment, in UTC.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=SHOWN, show_default=True)
@AS_JSON
@with_appcontext
@observed("command.audit")
def show_audit(
    who: str | None,
    action: str | None,
    tenant: str | None,
    outcome: str | None,
    since: datetime | None,
    until: datetime | None,
    limit: int,
    as_json: bool,
) -> None:
    """Who did what, the newest first: what fits everything you say."""
    wanted = Wanted(
        actor=who,
        action=action,
        tenant_id=tenant,
        outcome=outcome,
        since=since and since.replace(tzinfo=UTC),
        until=until and until.replace(tzinfo=UTC),
    )
    found = _found(wanted, limit)
    if as_json:
        click.echo(json.dumps([plain(row) for row in found]))
    elif not found:
        click.echo("Nothing fits.")
    else:
        for row in found:
            click.echo(_line(row))


def _found(wanted: Wanted, limit: int) -> list[Row]:
    found: list[Row] = []
    after: str | None = None
    while len(found) < limit:
        page = trail.read(service(), wanted, after, min(limit - len(found), trail.EXPORTED_AT_ONCE))
        found += page.rows
        if (after := page.after) is None:
            break
    return found


def _line(row: Row) -> str:
    said = (
        *(row.actor, row.tenant_id or "-", row.action, row.outcome, row.flow, row.stripe_object),
        row.reason and f'"{row.reason}"',
        row.ip and f"ip {row.ip}",
        row.request_id and f"req {row.request_id}",
    )
    return f"{row.at.astimezone(UTC):%Y-%m-%d %H:%M:%S}  {'  '.join(filter(None, said))}"
