"""`flask billing inbox …` and `replay`: what came, what became of it, and once more."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from flask.cli import with_appcontext

from billing import customers, triage
from billing.commands.base import AS_JSON, REASON, Commands, by, group, minute, second, service
from billing.db import SYSTEM
from billing.findings import few, number_of
from billing.operations import cures, events
from billing.operations.base import plain
from billing.operations.events import Dealt, Overview, Story, Wanted
from billing.telemetry import observed
from billing.triage import Entry

SINCE = click.option("--since", type=click.DateTime(), help="Received at or after this moment, in UTC.")
UNTIL = click.option("--until", type=click.DateTime(), help="Received before this moment, in UTC.")
KIND = click.option("--type", "kind", help="Events of this type.")
TENANT = click.option("--tenant", help="Events of this tenant's customer.")
ARE = ("event is", "events are")
STATE = click.option("--state", type=click.Choice(triage.STATES), help="In this state.")


@group.group("inbox", cls=Commands, invoke_without_command=True)
@STATE
@KIND
@click.option("--reason", "because", help="Those that have this reason.")
@TENANT
@click.option("--customer", help="Events of this customer of Stripe's.")
@SINCE
@UNTIL
@click.option("--after", help="Go on with the list where `next` says.")
@AS_JSON
@click.pass_context
@with_appcontext
@observed("command.inbox")
def show_inbox(ctx: click.Context, /, *, as_json: bool, after: str | None, **said: Any) -> None:
    """How much is under way, what failed and why, and which secrets Stripe signs with.

    With an option: the events that fit everything you say, the newest first; by --after alone, all of them.
    """
    if ctx.invoked_subcommand:
        return
    if after or any(said.values()):
        _list(_wanted(**said), after, as_json=as_json)
        return
    overview = events.overview(service())
    if as_json:
        click.echo(json.dumps(plain(overview)))
    else:
        _write(overview)


def _write(overview: Overview) -> None:
    if not overview.states:
        click.echo("Nothing is under way.")
    for count in overview.states:
        number = f"{'>' if count.events > triage.COUNTED else ''}{min(count.events, triage.COUNTED)}"
        click.echo(f"{count.state:<8} {number:>8}   oldest {timedelta(seconds=count.oldest_seconds)}")
    for one in overview.failures:
        kind = f", {one.kind}" if one.kind and one.kind != one.reason else ""
        click.echo(f"{one.state:<8} {one.events:>8}   {one.reason} ({one.type}{kind})")
    for signed in overview.secrets:
        click.echo(
            f"signed with {signed.place}: {signed.events} of the last 1000, the latest {minute(signed.latest)}"
        )


def _list(wanted: Wanted, after: str | None, *, as_json: bool) -> None:
    found = events.find(service(), wanted, after=after)
    if as_json:
        click.echo(json.dumps(plain(found)))
        return
    for event in found.page.rows:
        click.echo(_line(event))
    if found.page.after:
        click.echo(f"There may be more: --after {found.page.after}")
    elif not found.page.rows:
        click.echo("No event fits.")


def _line(event: Entry) -> str:
    why = f"   {event.reason}" if event.reason else ""
    whose = event.customer or event.object_id or "-"
    return f"{second(event.received_at)}  {event.state:<8} {event.event_id}  {event.type}  {whose}{why}"


@show_inbox.command("show")
@click.argument("event_id", metavar="EVENT")
@click.option("--reveal", is_flag=True, help="The payload as it came. Say why: it stays in the trail.")
@click.option("--reason", help="Why you have to see it.")
@AS_JSON
@with_appcontext
@observed("command.inbox_show")
def show(event_id: str, reveal: bool, reason: str | None, as_json: bool) -> None:
    """Everything known of an EVENT, its payload masked."""
    billing = service()
    story = events.reveal(billing, by(reason or ""), event_id) if reveal else events.one(billing, event_id)
    if story is None:
        raise click.ClickException("There is no such event here. What is settled is kept for 35 days.")
    if as_json:
        click.echo(json.dumps(plain(story)))
    else:
        _tell(story)


def _tell(story: Story) -> None:
    event, asked = story.event, story.customer
    facts = {
        "state": event.state + (", in a worker's hands" if event.is_held else ""),
        "reason": event.reason,
        "created": second(event.created),
        "sent": second(story.sent_at) or "fetched from Stripe's list",
        "received": second(event.received_at),
        "finished": second(event.settled_at),
        "next": second(event.due_at) if event.state == "due" else None,
        "attempts": f"{event.attempt}, failed {event.failures}, lapsed {event.lapses}, looked {event.looks}",
        "failed at": "  ".join(filter(None, map(second, story.failed_at))),
        "tenant": story.tenant_id,
        "customer": event.customer,
        "object": event.object_id,
        "held now": f"{story.held.kind} {story.held.status}" if story.held else None,
        "asked": second(asked.answered_at) if asked else None,
        "signed with": story.secret,
        "API": story.api_version,
        "trace": story.trace_id,
        "at Stripe": story.at_stripe,
    }
    if means := cures.of_reason(event.reason):
        facts["reason"] = f"{event.reason}: {means}"
    click.echo(f"{event.event_id}  {event.type}")
    for name, fact in facts.items():
        if fact:
            click.echo(f"  {name:<12} {fact}")
    for line in (story.fault or "").splitlines():
        click.echo(f"  {'fault':<12} {line}")
    for deed in story.deeds:
        click.echo(f"  {second(deed.at)} {deed.actor}: {deed.action}, {deed.reason}")
    for other in story.related:
        click.echo(f"  related      {_line(other)}")
    click.echo(story.payload.text)


@show_inbox.command("ignore")
@click.argument("event_ids", nargs=-1, metavar="[EVENT]...")
@STATE
@KIND
@click.option("--reason-is", "because", help="Those that have this reason.")
@TENANT
@click.option("--customer", help="Events of this customer of Stripe's.")
@SINCE
@UNTIL
@REASON
@AS_JSON
@with_appcontext
@observed("command.inbox_ignore")
def ignore(event_ids: tuple[str, ...], reason: str, as_json: bool, **said: Any) -> None:
    """Be done with events, whatever they say.

    Give event ids; or describe what fails or waits by --state and more: all that fit everything you say.
    """
    if bool(event_ids) == any(said.values()):
        raise click.UsageError("Say which events: by id, or with the options.")
    missing: list[str] = []
    if event_ids:
        missing = _missing(event_ids)
        dealt = Dealt(events.ignore(service(), by(reason), event_ids), is_done=True)
    elif said["state"] in triage.UNFINISHED:
        dealt = events.ignore_all(service(), by(reason), _wanted(**said), seconds=None)
    else:
        raise click.UsageError(f"Say in which state they are: --state {', '.join(triage.UNFINISHED)}.")
    _say(dealt, "ignored", as_json)
    _tell_missing(missing)


@group.command("replay")
@click.argument("event_ids", nargs=-1, metavar="[EVENT]...")
@KIND
@TENANT
@SINCE
@UNTIL
@click.option("--failed", is_flag=True, help="Those that were buried.")
@click.option("--reason", default="by command", help="Why; it stays in the trail.")
@AS_JSON
@with_appcontext
@observed("command.replay")
def replay(event_ids: tuple[str, ...], failed: bool, reason: str, as_json: bool, **said: Any) -> None:
    """Work on events again, and ask Stripe about their customers.

    Give event ids, or describe the events: all that fit everything you say.
    """
    if not (event_ids or failed or any(said.values())):
        raise click.UsageError("Say which events: by id, or with one of the options.")
    wanted = _wanted(event_ids=event_ids or None, state="buried" if failed else None, **said)
    dealt = events.retry_all(service(), by(reason), wanted, seconds=None)
    missing = _missing(event_ids)
    _say(dealt, "due", as_json)
    _tell_missing(missing)


def _say(dealt: Dealt, became: str, as_json: bool) -> None:
    again = " again" if became == "due" else ""
    left = f" {dealt.left} more: their customers are being worked on. Run this again." if dealt.left else ""
    said = f"{number_of(dealt.events, *ARE, exact=True)} {became}{again}.{left}"
    click.echo(json.dumps({became: dealt.events, "left": dealt.left}) if as_json else said)


def _missing(event_ids: tuple[str, ...]) -> list[str]:
    """Those of them that are not here."""
    if not event_ids:
        return []
    found = events.find(service(), Wanted(event_ids=event_ids), most=len(event_ids)).page.rows
    return sorted({*event_ids} - {one.event_id for one in found})


def _tell_missing(missing: list[str]) -> None:
    if missing:
        raise click.ClickException(f"Not here: {few(missing)}. What is settled is kept for 35 days.")


def _wanted(
    *,
    event_ids: tuple[str, ...] | None = None,
    state: triage.State | None = None,
    kind: str | None = None,
    because: str | None = None,
    tenant: str | None = None,
    customer: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Wanted:
    if tenant and customer:
        raise click.UsageError("Say --tenant or --customer: a tenant has one customer.")
    return Wanted(
        event_ids=event_ids,
        state=state,
        type=kind,
        reason=because,
        of=_customer_of(tenant) if tenant else customer,
        since=since and since.replace(tzinfo=UTC),
        until=until and until.replace(tzinfo=UTC),
    )


def _customer_of(tenant: str) -> str:
    customer = service().db.run(SYSTEM, customers.find(tenant))
    if customer is None:
        raise click.ClickException("This tenant has no Stripe customer.")
    return customer
