"""`flask billing doctor`: what is wrong with the service, and what would cure it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict

import click
from flask import current_app
from flask.cli import with_appcontext

from billing import account, config
from billing.account import CannotMend, Mended
from billing.budget import Budget
from billing.commands.base import AS_JSON, REASONED, by, group, service
from billing.db import Database
from billing.errors import BillingError
from billing.findings import Finding
from billing.operations import health
from billing.stripe_api import Stripe
from billing.telemetry import observed

SIGNS = {"ok": "✓", "note": "·", "warning": "!", "problem": "✗"}
FAULTS = "billing.faults"  # where an app that cannot start keeps what is wrong with its settings


def _address(_context: click.Context, _option: click.Parameter, url: str | None) -> str | None:
    """The webhook's address; an origin alone will do."""
    if url is None:
        return None
    try:
        config.http_address(url)
    except ValueError as e:
        raise click.BadParameter(str(e)) from None
    if {"?", "#"} & set(url):
        raise click.BadParameter("must end with the path")
    url = url.rstrip("/")
    return url if url.endswith(account.WEBHOOK_PATH) else url + account.WEBHOOK_PATH


@group.command("doctor")
@click.option("--fix", is_flag=True, help="Make or mend the webhook endpoint at Stripe first.")
@click.option("--url", callback=_address, help="With --fix: this service's address, https://….")
@REASONED
@AS_JSON
@with_appcontext
@observed("command.doctor")
def examine(fix: bool, url: str | None, reason: str, as_json: bool) -> None:
    """Look at settings, database, Stripe and workers, and say what is wrong and what to do.

    Exits with 0 if nothing has to be done, with 1 if something has, with 2 if this was said wrongly.
    """
    if url and not fix:
        raise click.UsageError("--url goes with --fix.")
    settings, faults = service().settings, current_app.extensions.get(FAULTS, ())
    may_ask = not config.names_in(faults) & health.OF_STRIPE
    # A role that the service would refuse is looked at all the same: that it is one is a finding.
    own = Database(settings.database_url, pool_size=1, allow_superuser=True)
    with closing(own):
        stripe, budget = service().stripe, Budget(own, settings.billing_stripe_reads_per_second)
        mended = _mend(stripe if may_ask else None, budget, url, as_json=as_json) if fix else None
        if mended and not health.note_mended(own, by(reason), mended):
            click.echo("It is mended, and the trail could not be told.", err=True)
        findings = health.findings(settings, own, stripe, budget, faults)
    if as_json:
        _tell_programs(findings, mended)
    else:
        _tell_people(findings)
    if any(one.level in ("warning", "problem") for one in findings):
        sys.exit(1)


def _mend(stripe: Stripe | None, budget: Budget, url: str | None, *, as_json: bool) -> Mended | None:
    """Once it is there, whatever else is wrong is told as ever."""
    if stripe is None:
        raise click.ClickException("Without a key that could be one, nothing can be mended at Stripe.")
    try:
        mended = account.mend(stripe, budget, url, may_create=not as_json)
    except CannotMend as e:
        raise click.UsageError(str(e)) from e
    except BillingError as e:
        click.echo(f"Nothing was mended ({e.outcome}).", err=True)
        return None
    if not as_json:
        _tell_of(mended)
    return mended


def _tell_of(mended: Mended | None) -> None:
    """At once: a secret that is not shown now is lost."""
    click.echo(f"Mended: {mended.did}." if mended else "There was nothing to mend.")
    if mended and mended.secret:
        click.echo("Its signing secret is shown this once. Put it in front of those you have, and restart:")
        click.echo(f"STRIPE_WEBHOOK_SECRET={mended.secret}")


def _tell_programs(findings: Sequence[Finding], mended: Mended | None) -> None:
    """A new endpoint's secret is never in it: such output is kept."""
    told = {
        "mended": mended and mended.did,
        "problems": _count(findings, "problem"),
        "warnings": _count(findings, "warning"),
        "findings": [asdict(one) for one in findings],
    }
    click.echo(json.dumps(told, ensure_ascii=False))


def _tell_people(findings: Sequence[Finding]) -> None:
    for title, members in health.by_group(findings).items():
        click.echo(click.style(title, bold=True))
        for one in members:
            click.echo(f"  {SIGNS[one.level]} {one.sentence}")
            if one.cure:
                click.echo(f"      → {one.cure}")
    problems, warnings = _count(findings, "problem"), _count(findings, "warning")
    click.echo(f"Problems: {problems}, warnings: {warnings}" if problems or warnings else "All is well.")


def _count(findings: Sequence[Finding], level: str) -> int:
    return sum(one.level == level for one in findings)
