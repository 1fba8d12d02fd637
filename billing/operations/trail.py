"""Who did what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields

from billing import audit, errors
from billing.audit import By, Place, Row, Wanted
from billing.db import SYSTEM
from billing.operations.base import SHOWN, Page
from billing.wiring import Billing

EXPORTED = 100_000  # rows at most, of one question
EXPORTED_AT_ONCE = 2_000
EXPORT_LOOKS = 100  # answers at most: what hardly anything fits must end, too


def read(billing: Billing, wanted: Wanted, after: str | None = None, most: int = SHOWN) -> Page[Row]:
    """What fits, the newest first. A page may be short, or empty, and yet not be the last: `after` tells."""
    place = Place.read(after) if after else None
    if after and place is None:
        raise errors.InvalidRequest("must be from a link of this list", param="after")
    with billing.db.begin(SYSTEM) as connection:
        rows, rest = audit.find(connection, wanted, after=place, most=most)
    return Page(rows, str(rest) if rest else None)


def actions(billing: Billing) -> Sequence[str]:
    """Everything that was ever done, by name."""
    with billing.db.begin(SYSTEM) as connection:
        return audit.actions(connection)


def export(billing: Billing, wanted: Wanted, by: By) -> Iterator[Page[Row]]:
    """All that fits, as far as an export goes: where that ended too soon, the last page is not the last one.

    That somebody took it away is in the trail before the first row is read.
    """
    said = {field.name: getattr(wanted, field.name) for field in fields(wanted)}
    what = " ".join(f"{name}={value}" for name, value in said.items() if value is not None)
    with billing.db.begin(SYSTEM) as connection:
        audit.note(connection, by, "audit.export", tenant_id=wanted.tenant_id, flow=what or "everything")
    return _pages(billing, wanted)


def _pages(billing: Billing, wanted: Wanted) -> Iterator[Page[Row]]:
    after, given = None, 0
    for _ in range(EXPORT_LOOKS):
        page = read(billing, wanted, after, min(EXPORTED_AT_ONCE, EXPORTED - given))
        given += len(page.rows)
        yield page
        after = page.after
        if after is None or given >= EXPORTED:
            return
