"""`flask billing overrides …`: what a tenant is granted, or denied, whatever its plan says."""

from __future__ import annotations

from datetime import datetime

import click
from flask.cli import with_appcontext

from billing.commands.base import AS_JSON, REASON, Commands, by, group, minute, service, shown
from billing.commands.tokens import end
from billing.errors import InvalidRequest
from billing.operations import grants, tenants
from billing.operations.grants import Granted
from billing.telemetry import observed

overrides = Commands("overrides", help="What a tenant is granted, or denied, whatever its plan says.")
group.add_command(overrides)


@overrides.command("list")
@click.argument("tenant")
@AS_JSON
@with_appcontext
@observed("command.list_overrides")
def list_overrides(tenant: str, as_json: bool) -> None:
    """What TENANT is granted or denied, by whom, why, and until when."""
    found = tenants.show(service(), tenant).overrides
    lines = [
        f"{one.feature:<20} {one.value:<10} {minute(one.expires_at) or 'without end':<20}"
        f"{' over' if one.is_over else ''} {one.author}: {one.reason}"
        for one in found
    ]
    shown(found, as_json, lines or ["There are none."])


@overrides.command("set")
@click.argument("tenant")
@click.argument("feature")
@click.argument("value")
@click.option("--ends", callback=end, help="2027-01-01, or 90d from now; without it, never.")
@click.option("--unsold", is_flag=True, help="Even if nothing that is sold has this feature.")
@REASON
@AS_JSON
@with_appcontext
@observed("command.set_override")
def set_override(
    tenant: str,
    feature: str,
    value: str,
    ends: datetime | None,
    unsold: bool,
    reason: str,
    as_json: bool,
) -> None:
    """Give TENANT this VALUE of FEATURE: true, false, a number or unlimited. An earlier one is replaced."""
    try:
        granted = grants.grant(service(), tenant, feature, value, by(reason), expires_at=ends, unsold=unsold)
    except InvalidRequest as e:
        if e.param != "feature":
            raise
        raise click.ClickException("Nothing that is sold has this feature; if it is meant: --unsold") from e
    shown(granted, as_json, [_said(granted)])


@overrides.command("lift")
@click.argument("tenant")
@click.argument("feature")
@REASON
@AS_JSON
@with_appcontext
@observed("command.lift_override")
def lift(tenant: str, feature: str, reason: str, as_json: bool) -> None:
    """Let TENANT have of FEATURE what its plan says."""
    granted = grants.lift(service(), tenant, feature, by(reason))
    shown(granted, as_json, [_said(granted)])


def _said(granted: Granted) -> str:
    changes = ", ".join(granted.changes) or "the document says what it said"
    what = f"{granted.feature} {granted.value or 'lifted'}"
    return f"{granted.tenant_id}  {what}   v{granted.version}   {changes}"
