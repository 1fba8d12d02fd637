"""Who did what: to look at, and to take away as CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from flask import Blueprint, Response, request

from billing.audit import LOOKED_THROUGH, By, Row, Wanted
from billing.console import pages
from billing.console.access import acted, viewed
from billing.console.pages import Refused
from billing.operations import trail
from billing.operations.base import SHOWN, Page, plain
from billing.telemetry import observed
from billing.web.contract import service

page = Blueprint("audit", __name__, url_prefix="/audit")

SAID = {"actor": "who", "action": "action", "tenant_id": "tenant", "outcome": "outcome"}
COLUMNS = tuple(field.name for field in fields(Row))
# A spreadsheet runs what begins so, after blanks, too, or after what it takes to separate two cells.
FORMULA = re.compile(
    r"(^|[;,|\t\r\n])([\s\u200b\ufeff]*)([=+\-@\uff1d\uff0b\uff0d\uff20\ufe66\ufe62\ufe63\ufe6b])"
)


@page.get("")
@observed("console.audit")
@viewed
def show() -> Any:
    """What fits the filter, the newest first."""
    billing, said = service(), request.args
    found = trail.read(billing, _wanted(said), said.get("after"))
    return pages.page(
        "audit.html",
        found=found,
        said={name: said.get(name, "") for name in (*SAID.values(), "from", "to")},
        actions=trail.actions(billing),
        is_cut=found.after is not None and len(found.rows) < SHOWN,
        looked=LOOKED_THROUGH,
        exported=trail.EXPORTED,
    )


@page.post("/export")
@observed("console.audit.export")
@acted
def export(by: By) -> Any:
    """The same as a file. It leaves the house, so it is an action, and has its own row in the trail."""
    found = trail.export(service(), _wanted(request.form), by)
    name = f"audit-{datetime.now(UTC):%Y-%m-%d-%H%M%S}.csv"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(_written(found), content_type="text/csv; charset=utf-8", headers=headers)


def _wanted(said: Mapping[str, str]) -> Wanted:
    words = {column: _word(said, name) for column, name in SAID.items()}
    return Wanted(**words, since=_moment(said, "from"), until=_moment(said, "to"))


def _word(said: Mapping[str, str], name: str) -> str | None:
    word = said.get(name, "").strip()
    if "\0" in word or len(word) > 1000:
        raise Refused(f"Nothing in the trail can be called so: {name}.", 400)
    return word or None


def _moment(said: Mapping[str, str], name: str) -> datetime | None:
    written = said.get(name, "").strip()
    if not written:
        return None
    try:
        moment = datetime.fromisoformat(written)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise Refused(f"{name.capitalize()} must be a moment in UTC, as in 2026-11-27T12:00.", 400) from None


# ---- as a file


def _written(found: Iterable[Page[Row]]) -> Iterator[str]:
    yield _lines([COLUMNS])
    rest: str | None = None
    for some in found:
        yield _lines(plain(row).values() for row in some.rows)
        rest = some.after
    if rest:
        yield _lines([["More fits than is here. Ask again for what was before the last row."]])


def _lines(rows: Iterable[Iterable[Any]]) -> str:
    written = io.StringIO()
    csv.writer(written, quoting=csv.QUOTE_ALL).writerows([_cell(value) for value in row] for row in rows)
    return written.getvalue()


def _cell(value: Any) -> str:
    """No formula, whoever made up what stands there."""
    return FORMULA.sub(r"\1'\2\3", "" if value is None else str(value))
