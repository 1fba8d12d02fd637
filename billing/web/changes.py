"""`GET /api/changes`: every tenant whose document changed after a position, each with the document of now.

A batch of CloudEvents, as HTTP Feeds write them. Documents go out as the bytes that are stored. Only the empty
answer, at the end, has an `ETag`: so a 304 always says that there is nothing new.
"""

from __future__ import annotations

import json
import re
from typing import Literal

import structlog
from flask import Blueprint, request
from pydantic import BaseModel, ConfigDict, Field, RootModel

from billing import errors, feed, tokens
from billing.db import SYSTEM, Query
from billing.feed import Cursor, Entry, Page
from billing.identity import Service
from billing.telemetry import observed
from billing.web.contract import Answer, Moment, checked, for_services, service, unfit
from billing.web.entitlements import Entitlements

blueprint = Blueprint("changes", __name__)
log = structlog.get_logger(__name__)

BATCH = "application/cloudevents-batch+json"
SOURCE = "/api/changes"  # a reference, which holds under whatever address we are asked
TYPE = "billing.tenant.state"
USUAL, MOST = 200, 500

LAST_EVENT_ID = {
    "name": "lastEventId",
    "in": "query",
    "required": False,
    "description": "The `id` of the last change you have applied; without it, or with one of another epoch, "
    "from the beginning",
    "schema": {"type": "string", "pattern": f"^({feed.CURSOR.pattern})?$"},
    "example": "5d1c0a93be-0000000000000122",
}
LIMIT = {
    "name": "limit",
    "in": "query",
    "required": False,
    "description": "How many changes at most",
    "schema": {"type": "integer", "minimum": 1, "maximum": MOST, "default": USUAL},
    "example": USUAL,
}
TIMEOUT = {
    "name": "timeout",
    "in": "query",
    "required": False,
    "description": "Accepted, as HTTP Feeds has it; whatever it says, the answer comes at once",
    "schema": {"type": "string"},
    "example": "5000",
}


class Event(BaseModel):
    """What all CloudEvents of the feed have."""

    specversion: Literal["1.0"]
    id: str = Field(
        description="Where to go on from, as `lastEventId`", examples=["5d1c0a93be-0000000000000123"]
    )
    source: str = Field(examples=[SOURCE])
    type: Literal["billing.tenant.state"]
    subject: str = Field(description="The tenant's id", examples=["t_8f2"])
    time: Moment = Field(description="When its document changed")


class Changed(Event):
    """A tenant whose document changed, with the document of now."""

    lastsuntil: Moment | None = Field(
        None,
        description="Time may change the document then; without it, time does not",
        examples=["2026-12-20T10:00:00Z"],
    )
    datacontenttype: Literal["application/json"]
    data: Entitlements


class Forgotten(Event):
    """A tenant that is known no longer."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "specversion": "1.0",
                    "id": "5d1c0a93be-0000000000000124",
                    "source": SOURCE,
                    "type": TYPE,
                    "subject": "t_17c",
                    "time": "2026-11-20T10:00:04Z",
                    "method": "DELETE",
                }
            ]
        }
    )

    method: Literal["DELETE"]


class Changes(RootModel[list[Changed | Forgotten]]):
    """In the order of the changes, each tenant once. Empty: that is all, for now."""


def _wanted() -> tuple[Cursor, int]:
    """From where on, and how much at most."""
    given = request.args.get("lastEventId")
    cursor = Cursor.read(given) if given else Cursor()
    if cursor is None:
        raise errors.BadCursor(param="lastEventId")
    limit = request.args.get("limit", str(USUAL))
    if not re.fullmatch(r"\d{1,3}", limit, re.ASCII) or not 1 <= int(limit) <= MOST:
        raise unfit(LIMIT)
    return cursor, int(limit)


def _asked(**_: object) -> Query[Page] | None:
    """The same as a query, for the trip that checks the token; None if the view is going to refuse it."""
    try:
        return feed.read(*_wanted())
    except errors.InvalidRequest:
        return None


@blueprint.get("/api/changes")
@observed("changes.read")
@for_services(tokens.READ, reads=_asked)
@checked(
    errors.InvalidRequest,
    errors.BadCursor,
    takes=[LAST_EVENT_ID, LIMIT, TIMEOUT],
    may_be_same=True,
    media_type=BATCH,
)
def get_changes(caller: Service, found: Page | None) -> Answer[Changes]:
    """Which tenants have changed?

    Without `lastEventId` it begins with every tenant. Ask on with the `id` of the last change until the batch
    is empty, and from there every few seconds.
    """
    _wanted()  # once more: what is refused is refused to those who may ask
    assert found
    if found.is_news:
        _note(caller.name, found)
    headers = {"Cache-Control": "private, no-cache", "Vary": "Authorization"}
    if found.entries:
        return Answer("[" + ",\n".join(map(_event, found.entries)) + "]", headers)
    headers["ETag"] = f'W/"{found.since}"'
    if request.if_none_match.contains_weak(str(found.since)):
        return Answer("", headers, 304)
    return Answer("[]", headers)


def _note(consumer: str, page: Page) -> None:
    """If this fails the consumer has its page all the same."""
    try:
        service().db.run(SYSTEM, feed.note(consumer, page))
    except errors.ServiceUnavailable as e:
        log.warning("feed.unnoted", consumer=consumer, reason=e.outcome)


def _event(entry: Entry) -> str:
    head = (
        f'{{"specversion": "1.0", "id": "{entry.id}", "source": "{SOURCE}", "type": "{TYPE}", '
        f'"subject": {json.dumps(entry.tenant_id)}, "time": "{entry.changed_at}", '
    )
    if not entry.body:
        return head + '"method": "DELETE"}'
    lasts = f'"lastsuntil": "{entry.lasts_until}", ' if entry.lasts_until else ""
    return head + f'{lasts}"datacontenttype": "application/json", "data": {entry.body}}}'
