"""`flask billing reconcile --import …`: whose the customers are that an account had before us."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

import click

from billing import importing
from billing.commands.base import FOUND, progress, service
from billing.importing import COLUMNS, EXPECTED, WHYS, Judged, Why

SHOWN = 10  # of each reason, at a terminal
REASONS: dict[Why, str] = {
    "names_no_tenant": "its metadata names no tenant",
    "unusable_tenant": "what its metadata names cannot be a tenant's id",
    "claimed_twice": "several customers say that they are this tenant's",
    "claims_two": "the file gives it to several tenants",
    "other_customer": "the tenant has another customer",
    "other_tenant": "it is another tenant's customer here",
    "named_otherwise": "its metadata names another tenant",
    "unknown_customer": "Stripe knows no such customer",
    "checkout_under_way": "the tenant is buying; import again when that is done",
    "forgotten": "the tenant was forgotten; `tenants link` alone brings it back",
    "unlinked": "it was unlinked from this tenant; `tenants link` alone brings it back",
    "not_answered": "Stripe, or the database, did not answer; import again",
}


def take_over(source: str, report: TextIO | None, dry_run: bool, as_json: bool) -> None:
    """Link whom the metadata, or this file, names; tell who was not linked, and why."""
    judged = list(_reported(_judged(source, dry_run), report))
    click.echo(_import_as_json(judged, dry_run) if as_json else "\n".join(_import_as_text(judged, dry_run)))
    if any(one.why and one.why not in EXPECTED for one in judged):
        sys.exit(FOUND)


def _reported(judged: Iterable[Judged], report: TextIO | None) -> Iterator[Judged]:
    """Line by line: one that is cut off has told what it came to."""
    lines = csv.writer(report) if report else None
    if lines:
        lines.writerow([*COLUMNS, "why"])
    for one in judged:
        if lines and report and one.why:
            lines.writerow([one.claim.tenant_id, one.claim.customer, one.why])
            report.flush()
        yield one


def _judged(source: str, dry_run: bool) -> Iterator[Judged]:
    billing = service()
    db, stripe, budget = billing.db, billing.stripe, billing.budget
    if source == "metadata":
        claims = list(importing.from_metadata(stripe, budget))
    else:
        try:
            claims = importing.from_file(Path(source).read_bytes())
        except OSError as e:
            raise click.UsageError(f"{source}: {e.strerror}") from e
        except importing.Unreadable as e:
            raise click.UsageError(f"{source}: {e}; nothing was linked") from e
    look = source != "metadata"
    with progress("Linking") as tell:
        for one in importing.link(db, stripe, budget, claims, source=source, look=look, dry=dry_run):
            tell(len(claims))
            yield one


def _import_as_text(judged: list[Judged], dry_run: bool) -> Iterator[str]:
    linked = [one.claim for one in judged if one.became == "linked"]
    already = sum(one.became == "already" for one in judged)
    yield f"{len(linked)} {'would be linked' if dry_run else 'linked'}, {already} were so already"
    if untold := sum(not one.is_told for one in judged):
        yield f"{untold} of them could not be told at Stripe whose they are; a worker goes on telling them"
    for why in WHYS:
        claims = [one.claim for one in judged if one.why == why]
        if claims:
            yield f"{len(claims)} not linked: {REASONS[why]}"
            yield from (f"  {one.tenant_id:<12} {one.customer}" for one in claims[:SHOWN])
            if len(claims) > SHOWN:
                yield f"  … and {len(claims) - SHOWN} more: --report FILE has them all"


def _import_as_json(judged: list[Judged], dry_run: bool) -> str:
    def pairs(wanted: list[Judged]) -> list[dict[str, str]]:
        return [{"tenant_id": one.claim.tenant_id, "customer_id": one.claim.customer} for one in wanted]

    refused = {why: pairs([one for one in judged if one.why == why]) for why in WHYS}
    return json.dumps(
        {
            "dry_run": dry_run,
            "linked": pairs([one for one in judged if one.became == "linked"]),
            "untold": sum(not one.is_told for one in judged),
            "already": sum(one.became == "already" for one in judged),
            "not_linked": {why: found for why, found in refused.items() if found},
        }
    )
