"""`flask billing reconcile`: find what no event has told."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any, TextIO

import click
from flask.cli import with_appcontext

from billing import reconcile
from billing.commands import importing
from billing.commands.base import AS_JSON, FOUND, group, progress, second, service
from billing.drift import Finding
from billing.findings import number_of
from billing.reconcile import Report
from billing.telemetry import observed

SAYS = {
    "customer_deleted": "customer deleted in Stripe",
    "foreign_customer": "customer is another tenant's, or unknown to Stripe",
}
ASKS = {
    "customer_deleted": 'flask billing tenants unlink {tenant} --reason "deleted at Stripe"',
    "foreign_customer": "look at {customer} in Stripe",
}


@group.command("reconcile")
@click.option(
    "--import", "source", help="`metadata`, or a CSV of tenant_id and customer_id: link whom it names."
)
@click.option("--report", type=click.File("w"), help="With --import: a CSV of what was not linked, and why.")
@click.option("--dry-run", is_flag=True, help="Compare and tell, and write nothing.")
@click.option(
    "--most", type=click.IntRange(min=1), help="Compare so many customers; the next run goes on there."
)
@click.option("--anew", is_flag=True, help="Begin with the first customer, whatever the last run came to.")
@AS_JSON
@with_appcontext
@observed("command.reconcile")
def reconcile_now(
    source: str | None, report: TextIO | None, dry_run: bool, most: int | None, anew: bool, as_json: bool
) -> None:
    """Fetch events that did not come, compare every tenant with Stripe, and mend what differs.

    Ends with 0 where nothing differed, and with 1 where something did or Stripe did not answer. With --import
    customers are linked instead, and 1 says that some could not be; workers ask Stripe about the others.
    """
    if source:
        importing.take_over(source, report, dry_run, as_json)
    elif report:
        raise click.UsageError("--report is for --import.")
    else:
        _reconcile(dry_run, most, anew, as_json)


def _reconcile(dry_run: bool, most: int | None, anew: bool, as_json: bool) -> None:
    billing = service()
    find = reconcile.imagine if dry_run else partial(reconcile.run, anew=anew)
    with progress("Comparing") as tell:
        report = find(
            *(billing.db, billing.stripe, billing.budget),
            livemode=billing.settings.livemode,
            most=most,
            tell=tell,
        )
    click.echo(json.dumps(_as_json(report, dry_run)) if as_json else "\n".join(_as_text(report, dry_run)))
    if report.findings or report.unanswered or report.failed:
        sys.exit(FOUND)


def _as_text(report: Report, dry_run: bool) -> Iterator[str]:
    yield f"Events that had not come: {report.fetched} {'to be fetched' if dry_run else 'fetched'}"
    yield f"Compared {number_of(report.compared, 'tenant', exact=True)} with Stripe in {report.seconds:.0f} s"
    for one in report.findings:
        yield f"  {one.tenant_id:<12} {_difference(one):<46} {_what_is_done(one, dry_run)}"
    if report.unanswered:
        yield f"{report.unanswered} not answered by Stripe; they are asked about again."
    if report.failed:
        yield f"Stripe did not answer any more ({report.failed})."
    if report.left > 0:
        left = number_of(report.left, "is left", "are left", exact=True)
        yield f"{left}; run this again to go on."
    mended = len(report.findings) - report.needing
    need = number_of(report.needing, "needs", "need", exact=True)
    yield f"{mended} {'to be fixed' if dry_run else 'fixed'}, {need} you"


def _difference(one: Finding) -> str:
    if one.needs_somebody:
        return SAYS[one.kind]
    states = (
        f"state {one.state_before} → {one.state_after}"
        if one.state_before != one.state_after
        else one.state_after
    )
    why = f"missed {one.event_id}" if one.event_id else "no event told"
    return f"differs: {states} ({why})"


def _what_is_done(one: Finding, dry_run: bool) -> str:
    if one.needs_somebody:
        return f"needs you: {ASKS[one.kind].format(tenant=shlex.quote(one.tenant_id), customer=one.customer)}"
    return f"{'would be fixed' if dry_run else 'fixed'} (v{one.version_before} → v{one.version_after})"


def _as_json(report: Report, dry_run: bool) -> dict[str, Any]:
    findings = [
        {**asdict(one), "found_at": second(one.found_at), "mended_at": second(one.mended_at)}
        for one in report.findings
    ]
    return {
        "dry_run": dry_run,
        "fetched": report.fetched,
        "compared": report.compared,
        "unanswered": report.unanswered,
        "left": max(0, report.left),
        "failed": report.failed,
        "seconds": round(report.seconds, 1),
        "findings": findings,
    }
