"""The inbox: failures grouped by what is wrong, the events that fit a filter, and one event with its story."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from flask import Blueprint, request, url_for

from billing import events, triage
from billing.audit import By
from billing.console import pages
from billing.console.access import acted, viewed
from billing.console.pages import Refused
from billing.errors import OtherCustomer
from billing.findings import number_of
from billing.identity import is_name
from billing.operations import cures
from billing.operations import events as inbox
from billing.operations.events import Dealt, Story, Wanted
from billing.telemetry import observed
from billing.web.contract import service

page = Blueprint("inbox", __name__, url_prefix="/inbox")

SPANS = {
    "hour": ("the last hour", timedelta(hours=1)),
    "day": ("the last 24 hours", timedelta(days=1)),
    "week": ("the last 7 days", timedelta(days=7)),
}
LONGEST = 255  # of what is looked for
SAID = {"state": "state", "type": "type", "because": "reason", "kind": "kind", "of": "of", "span": "span"}
TYPES = sorted(events.USED)


@page.get("")
@observed("console.inbox")
@viewed
def show() -> Any:
    """How much is under way, and what fails for which reason."""
    return pages.page("inbox/groups.html", inbox=inbox.overview(service()), **_choices())


@page.get("/events")
@observed("console.events")
@viewed
def find() -> Any:
    """The events that fit the filter, the newest first."""
    wanted, said = _wanted(request.args)
    found = inbox.find(service(), wanted, after=request.args.get("after"))
    return pages.page("inbox/events.html", wanted=wanted, said=said, found=found, **_choices())


@page.get("/event")
@observed("console.event")
@viewed
def one() -> Any:
    """An event, its payload masked."""
    return _page_of(inbox.one(service(), _id(request.args)))


@page.post("/reveal")
@observed("console.reveal")
@acted
def reveal(by: By) -> Any:
    """The same with its payload as it came, this once."""
    return _page_of(inbox.reveal(service(), by, _id(request.form)))


@page.post("/retry")
@observed("console.retry")
@acted
def retry(by: By) -> Any:
    """Work on an event again."""
    event_id = _id(request.form)
    done = inbox.retry(service(), by, [event_id])
    said = "It is due again." if done else "Nothing was done: it is under way, or not here any more."
    return pages.done(said, url_for(".one", id=event_id))


@page.post("/ignore")
@observed("console.ignore")
@acted
def ignore(by: By) -> Any:
    """Be done with an event, whatever it says."""
    event_id = _id(request.form)
    done = inbox.ignore(service(), by, [event_id])
    said = "It is ignored." if done else "Nothing was done: it is settled, or not here any more."
    return pages.done(said, url_for(".one", id=event_id))


@page.post("/link")
@observed("console.link_event")
@acted
def link(by: By) -> Any:
    """Give an event's customer its tenant."""
    event_id, tenant_id = _id(request.form), request.form.get("tenant", "").strip()
    if not is_name(tenant_id):
        raise Refused("Say which tenant it is, by its id.", 400)
    try:
        linked = inbox.link(service(), by, event_id, tenant_id)
    except OtherCustomer:
        sentence = f"{tenant_id} has another customer. On its page you can put this one in that one's place."
        raise Refused(sentence, 409) from None
    if linked is None:
        raise Refused("There is no such event, or it names no customer.", 404)
    waited = number_of(linked.woken, "event", exact=True)
    said = f"{linked.customer} is {linked.tenant_id}'s now. {waited} had waited for it."
    untold = "" if linked.is_told else " Stripe's customer does not say so yet; a worker goes on telling it."
    return pages.done(said + untold, url_for(".one", id=event_id))


@page.post("/retry-all")
@observed("console.retry_all")
@acted
def retry_all(by: By) -> Any:
    """Retry what fits the filter, as far as there is time."""
    wanted, said = _wanted(request.form)
    if not wanted.may_be_retried:
        raise Refused("Only buried events are retried together; the others go on by themselves.", 400)
    return _dealt(inbox.retry_all(service(), by, wanted), "due again", said)


@page.post("/ignore-all")
@observed("console.ignore_all")
@acted
def ignore_all(by: By) -> Any:
    """Ignore what fits the filter, as far as there is time."""
    wanted, said = _wanted(request.form)
    return _dealt(inbox.ignore_all(service(), by, wanted), "ignored", said)


def _dealt(dealt: Dealt, done: str, said: dict[str, Any]) -> Any:
    left = "" if dealt.is_done else " There was no time for the rest: do it again for what is left."
    if dealt.left:
        left += f" {dealt.left:,} more: their customers are being worked on. Do it again for them."
    events_are = number_of(dealt.events, "event is", "events are", exact=True)
    return pages.done(f"{events_are} {done}.{left}", url_for(".find", **said))


def _page_of(story: Story | None) -> Any:
    if story is None:
        raise Refused("There is no such event here. What is settled is kept for 35 days.", 404)
    return pages.page(
        "inbox/event.html", story=story, event=story.event, means=cures.of_reason(story.event.reason)
    )


def _id(given: Any) -> str:
    event_id = events.name(given.get("id"))
    if event_id is None:
        raise Refused("Say which event, by its id.", 400)
    return event_id


def _wanted(given: Any) -> tuple[Wanted, dict[str, Any]]:
    """What is looked for; and the same as it was said, for the form and for addresses.

    The reason that an event has is `because` there: `reason` is why an operator does something.
    """
    said = {name: given.get(name, "").strip() for name in SAID}
    said = {name: value for name, value in said.items() if value}
    if any(len(value) > LONGEST or not value.isprintable() for value in said.values()):
        raise Refused("What is looked for is too long, or no text.", 400)
    if said.get("state", "due") not in triage.STATES or said.get("span", "day") not in SPANS:
        raise Refused("There is no such state, or no such time.", 400)
    wanted = Wanted(**{SAID[name]: value for name, value in said.items() if name != "span"})
    if span := said.get("span"):
        wanted = replace(wanted, since=datetime.now(UTC) - SPANS[span][1])
    return wanted, said


def _choices() -> dict[str, Any]:
    return {"states": triage.STATES, "spans": {key: name for key, (name, _) in SPANS.items()}, "types": TYPES}
