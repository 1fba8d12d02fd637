"""`flask billing doctor`: what is wrong with the service, and what would cure it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from itertools import groupby

import click
from flask import current_app
from flask.cli import with_appcontext

from billing import account, config, doctor, signatures
from billing.account import CannotMend, Mended
from billing.budget import Budget
from billing.commands.base import AS_JSON, group, service
from billing.config import Settings
from billing.db import Database
from billing.errors import BillingError
from billing.findings import Expected, Finding, Level
from billing.stripe_api import Stripe
from billing.telemetry import observed

SIGNS = {"ok": "✓", "note": "·", "warning": "!", "problem": "✗"}
OF_DATABASE = {"DATABASE_URL"}
OF_STRIPE = {"STRIPE_SECRET_KEY", "STRIPE_KEY", "STRIPE_API_BASE"}
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
@AS_JSON
@with_appcontext
@observed("command.doctor")
def examine(fix: bool, url: str | None, as_json: bool) -> None:
    """Look at settings, database, Stripe and workers, and say what is wrong and what to do.

    Exits with 0 if nothing has to be done, with 1 if something has, with 2 if this was said wrongly.
    """
    if url and not fix:
        raise click.UsageError("--url goes with --fix.")
    settings, faults = service().settings, current_app.extensions.get(FAULTS, ())
    faulty = config.names_in(faults)
    # A role that the service would refuse is looked at all the same: that it is one is a finding.
    own = Database(settings.database_url, pool_size=1, allow_superuser=True)
    with closing(own):
        stripe, budget = service().stripe, Budget(own, settings.billing_stripe_reads_per_second)
        mended = _mend(None if faulty & OF_STRIPE else stripe, budget, url, as_json=as_json) if fix else None
        findings = [
            *of_settings(settings, faults),
            *doctor.look(
                None if faulty & OF_DATABASE else own,
                None if faulty & OF_STRIPE else stripe,
                budget,
                _expected(settings, faulty),
            ),
        ]
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


def _expected(settings: Settings, faulty: set[str]) -> Expected:
    secrets = [] if "STRIPE_WEBHOOK_SECRET" in faulty else settings.stripe_webhook_secret
    return Expected(
        livemode=settings.livemode,
        secrets=[signatures.fingerprint(secret.get_secret_value()) for secret in secrets],
        portal=settings.billing_portal_configuration,
        webhook_every=settings.billing_expect_webhook_every,
        may_bypass=settings.billing_allow_superuser,
    )


def of_settings(settings: Settings, faults: Sequence[str]) -> Iterator[Finding]:
    """Every fault, and of what is set without one, what may well be looked at."""
    faulty = config.names_in(faults)
    for fault in faults:
        yield Finding("Settings", "problem", fault, "README.md, Settings; the service does not start before")
    if "APP_URL" not in faulty:
        is_here = settings.livemode and not settings.app_url.startswith("https://")
        level: Level = "warning" if is_here else "ok"
        cure = "people would be led to their own machines" if is_here else None
        yield Finding("Settings", level, f"APP_URL {settings.app_url}", cure)
    if not faulty & set(config.JWT_KEYS):
        algorithms = " or ".join(settings.jwt_algorithms)
        yield Finding("Settings", "ok", f'tokens: {algorithms}, tenant claim "{settings.jwt_tenant_claim}"')
        if settings.jwt_jwks_url and not settings.jwt_audience:
            yield Finding(
                "Settings",
                "note",
                "JWT_AUDIENCE is not set: whatever your issuer's tokens are for, they are taken here",
            )
    if settings.stripe_api_base:
        yield Finding("Settings", "note", f"STRIPE_API_BASE {settings.stripe_api_base}: this is not Stripe")


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
    for title, members in groupby(_in_order(findings), key=lambda one: one.group):
        click.echo(click.style(title, bold=True))
        for one in members:
            click.echo(f"  {SIGNS[one.level]} {one.sentence}")
            if one.cure:
                click.echo(f"      → {one.cure}")
    problems, warnings = _count(findings, "problem"), _count(findings, "warning")
    click.echo(f"Problems: {problems}, warnings: {warnings}" if problems or warnings else "All is well.")


def _in_order(findings: Sequence[Finding]) -> list[Finding]:
    """Each group once, where its first finding stands."""
    groups = list(dict.fromkeys(one.group for one in findings))
    return sorted(findings, key=lambda one: groups.index(one.group))


def _count(findings: Sequence[Finding], level: str) -> int:
    return sum(one.level == level for one in findings)
