"""The verb of who looks after the service: what is wrong with it, and what would cure that.

The database is asked here, and Stripe by `account`; neither is changed. What cannot be asked is a finding like
any other, and the rest is looked at all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial

import psycopg
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from billing import account, catalogue, customers, feed, schema, triage, vitals
from billing.budget import Budget
from billing.catalogue import Catalogue
from billing.db import SYSTEM, Database, bypasses_policies, metadata
from billing.errors import BillingError, ServiceUnavailable
from billing.findings import SHOWN, Expected, Finding, few, many, span
from billing.stripe_api import Stripe
from billing.vitals import Vitals

OLDEST_POSTGRESQL = 15
LATE = timedelta(minutes=5)  # an event is worked on within a second
CATALOGUE_OLD = timedelta(hours=1)  # it is read every ten minutes
FAR_BEHIND = 1000  # changed tenants; or
GONE = timedelta(minutes=5)  # not heard of for so long, with changes to come
LIVING = ("active", "trialing", "past_due", "unpaid", "paused")  # subscriptions Stripe goes on with


def look(db: Database | None, stripe: Stripe | None, budget: Budget, expected: Expected) -> Iterator[Finding]:
    """Everything there is to find. None: the settings do not say where to look."""
    held = _Held()
    yield from _database(db, expected, held)
    if stripe is None:
        sentence = "was not looked at: STRIPE_SECRET_KEY or STRIPE_API_BASE is at fault"
        yield Finding("Stripe", "note", sentence)
    else:
        yield from account.look(stripe, budget, expected, held.sold)
    yield from held.findings


@dataclass
class _Held:
    """What the database told, for the groups that come later."""

    sold: Catalogue | None = None
    findings: list[Finding] = field(default_factory=list)


# ---- the database


def _database(db: Database | None, expected: Expected, held: _Held) -> Iterator[Finding]:
    found = partial(Finding, "Database")
    if db is None:
        yield found("note", "was not looked at: DATABASE_URL is at fault")
        return
    try:
        with db.begin(SYSTEM) as connection:
            version, number = connection.execute(_VERSION).one()
    except ServiceUnavailable as e:
        yield found(
            "problem", f"the database cannot be reached: {_why_away(e)}", "start it, or correct DATABASE_URL"
        )
        return
    yield server(version, number)
    is_current = False
    for check in (_migrations, partial(_role, expected=expected), _policies, _indexes):
        for finding in _seen(db, "Database", check):
            yield finding
            is_current |= check is _migrations and finding.level != "problem"
    if not is_current:
        yield found("note", "what is in it was not looked at, for the migrations come first")
        return
    held.findings += _seen(db, "Catalogue", partial(_catalogue, held=held))
    held.findings += _seen(db, "Tenants", _left_behind)
    held.findings += _seen(db, "Events", partial(_vitals, expected=expected))
    held.findings += _seen(db, "Events", partial(_secrets, expected=expected))


def _seen(db: Database, group: str, check: Callable[[Connection], Iterable[Finding]]) -> list[Finding]:
    """A check, in a transaction of its own: of what it cannot read, the others are not to suffer."""
    try:
        with db.begin(SYSTEM) as connection:
            return list(check(connection))
    except BillingError as e:
        return [Finding(group, "problem", f"could not be looked at ({e.outcome})", "try again")]
    except (DBAPIError, psycopg.Error) as e:
        why = type(getattr(e, "orig", e)).__name__
        cure = "run the release: alembic upgrade head grants the service's role what it needs"
        return [Finding(group, "problem", f"the database refused to show it ({why})", cure)]


_VERSION = text("SELECT current_setting('server_version'), current_setting('server_version_num')::int")
_TABLES = text("""
    SELECT relname FROM pg_class
    WHERE relnamespace = current_schema()::regnamespace AND relname = ANY(:tables) AND relkind IN ('r', 'p')
      AND NOT (relrowsecurity AND relforcerowsecurity
               AND EXISTS (SELECT FROM pg_policy WHERE polrelid = pg_class.oid))
    ORDER BY relname
""")
_BROKEN_INDEXES = text("""
    SELECT i.indexrelid::regclass::text FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid
    WHERE t.relnamespace = current_schema()::regnamespace AND t.relname = ANY(:tables) AND NOT i.indisvalid
    ORDER BY 1
""")
AWAY = {  # what the driver says, in words that repeat nothing of the address
    "password authentication failed": "it refuses the password",
    "does not exist": "there is no such role or database",
    "resolve": "its host name leads nowhere",
    "translate host name": "its host name leads nowhere",
    "refused": "nobody listens at its address",
    "timeout": "it does not answer",
    "too many connections": "it has no connection left",
    "remaining connection slots": "it has no connection left",
    "read-only": "it takes no writes",
}


def _why_away(e: ServiceUnavailable) -> str:
    said = str(e.__cause__).lower()
    return next((words for sign, words in AWAY.items() if sign in said), "it does not answer")


def server(version: str, number: int) -> Finding:
    """Whether it is new enough."""
    if number >= OLDEST_POSTGRESQL * 10_000:
        return Finding("Database", "ok", f"PostgreSQL {version}")
    old = f"PostgreSQL {version} is older than {OLDEST_POSTGRESQL}"
    return Finding("Database", "problem", old, f"upgrade the server to {OLDEST_POSTGRESQL} or newer")


def _migrations(connection: Connection) -> Iterator[Finding]:
    found = partial(Finding, "Database")
    applied, newest = schema.applied(connection), schema.newest()
    if applied == newest:
        yield found("ok", f"migrations are current ({applied})")
    elif schema.is_current(connection):
        yield found("note", f"migrations are of a newer release ({applied}; this one knows {newest})")
    else:
        had = f"has had {applied}" if applied else "has had no migration"
        yield found("problem", f"the database {had}, and this release needs {newest}", "alembic upgrade head")


def _role(connection: Connection, *, expected: Expected) -> Iterator[Finding]:
    found = partial(Finding, "Database")
    if not bypasses_policies(connection):
        yield found("ok", "row-level security holds the service's role")
    elif expected.may_bypass:
        yield found(
            "warning", "row-level security does not hold this role, and BILLING_ALLOW_SUPERUSER allows it"
        )
    else:
        cure = "use a role that is no superuser and has no BYPASSRLS; the service does not start with this one"
        yield found("problem", "row-level security does not hold this role", cure)


def _policies(connection: Connection) -> Iterator[Finding]:
    found = partial(Finding, "Database")
    if bare := connection.scalars(_TABLES, {"tables": list(metadata.tables)}).all():
        cure = "ALTER TABLE … ENABLE, then FORCE ROW LEVEL SECURITY; its policies are in migrations/"
        yield found("problem", f"no policy is forced on {', '.join(bare)}", cure)
    else:
        yield found("ok", f"policies are forced on all {len(metadata.tables)} tables")


def _indexes(connection: Connection) -> Iterator[Finding]:
    for index in connection.scalars(_BROKEN_INDEXES, {"tables": list(metadata.tables)}):
        cure = f"REINDEX INDEX CONCURRENTLY {index}"
        yield Finding(
            "Database", "problem", f"the index {index} is not valid: it finds and forbids nothing", cure
        )


# ---- what is held


def _catalogue(connection: Connection, *, held: _Held) -> Iterator[Finding]:
    found = partial(Finding, "Catalogue")
    sold, age = catalogue.current(connection), catalogue.age(connection)
    if not sold.edition:
        yield found("problem", "it was never read: nobody has a document", "start a worker, which reads it")
        return
    held.sold = sold
    if age is not None and age > CATALOGUE_OLD.total_seconds():
        cure = "start a worker; if one runs, its log says catalogue.failed and why"
        yield found("warning", f"it was last read {span(age)} ago", cure)
    if sold.plans:
        yield found("ok", f"plans on sale ({len(sold.plans)}): {few(sold.plans)}")
    else:
        cure = "at Stripe, give an active price of an active product a lookup_key"
        yield found("warning", "no plan is on sale", cure)
    for fault in sold.faults:
        yield found("problem", f"{fault.where}: {fault.key} {fault.sentence}", fault.cure)


def _left_behind(connection: Connection) -> Iterator[Finding]:
    """Nobody can be linked twice: an index forbids it. What a tenant pays for twice is another thing."""
    for tenant, customer in customers.left_behind(connection, LIVING, most=SHOWN):
        yield Finding(
            "Tenants",
            "warning",
            f"{tenant} has a subscription at {customer}, too, which it was before, and gets nothing for it",
            f"end it at Stripe, or flask billing tenants link {tenant} {customer} --replace",
        )


def _secrets(connection: Connection, *, expected: Expected) -> Iterator[Finding]:
    found = partial(Finding, "Events")
    if not expected.secrets:
        yield found("note", "signing secrets were not looked at: STRIPE_WEBHOOK_SECRET is at fault")
        return
    seen, total = {one.fingerprint: one.latest for one in triage.secrets(connection)}, len(expected.secrets)
    for place, secret in enumerate(expected.secrets, 1):
        which = f"signing secret {place} of {total}" if total > 1 else "the signing secret"
        if secret in seen:
            yield found("ok", f"{which} matched last at {seen[secret]:%Y-%m-%d %H:%M} UTC")
        elif seen:
            cure = (
                "unset it if it was rolled away, or roll it in: docs/operations.md, Rolling the signing secret"
            )
            yield found("warning", f"{which} matched none of the last 1000 events", cure)
        else:
            yield found("note", f"{which} was never seen to match: no webhook has come")


def _vitals(connection: Connection, *, expected: Expected) -> Iterator[Finding]:
    now = vitals.taken(connection)
    yield from _tenants(now)
    yield from _inbox(now, expected)
    yield from _workers(now)
    yield from _consumers(now)


def _tenants(now: Vitals) -> Iterator[Finding]:
    linked = f"{many(now.linked)} linked to a customer, none twice"
    if now.never_synced:
        cure = "a worker asks about them; if one runs, its log says why Stripe does not answer"
        never = f"{many(now.never_synced)} of whom Stripe has never told"
        yield Finding("Tenants", "warning", f"{linked}; {never}", cure)
    else:
        yield Finding("Tenants", "ok", linked)


def _inbox(now: Vitals, expected: Expected) -> Iterator[Finding]:
    found = partial(Finding, "Events")
    under_way, oldest = now.due + now.asking, now.oldest_unprocessed
    if oldest is not None and oldest > LATE.total_seconds():
        cure = "flask billing inbox says what holds them up"
        yield found("problem", f"{many(under_way)} under way, the oldest for {span(oldest)}", cure)
    else:
        yield found("ok", f"{many(under_way)} under way")
    if now.buried:
        cure = "flask billing inbox says why; then flask billing replay --failed"
        yield found("problem", f"{many(now.buried)} given up", cure)
    if now.waiting:
        waits = f"{many(now.waiting)} wait for a tenant to be linked to their customer"
        yield found("note", f"{waits}, the oldest for {span(now.oldest_waiting or 0)}")
    last = "no webhook has come" if now.last_webhook is None else f"last webhook {span(now.last_webhook)} ago"
    if now.is_silent(expected.webhook_every):
        every = span(expected.webhook_every.total_seconds() if expected.webhook_every else 0)
        cure = "is the endpoint enabled, and does Stripe reach it? Dashboard › Developers › Webhooks"
        yield found("problem", f"{last}, and one is expected every {every}", cure)
    else:
        yield found("note" if now.last_webhook is None else "ok", last)


def _workers(now: Vitals) -> Iterator[Finding]:
    found = partial(Finding, "Workers")
    if not now.workers:
        yield found("problem", "none is alive: events are kept, and nothing more", "python -m billing.worker")
    for one in now.workers:
        release = f", release {one.release}" if one.release else ""
        yield found("ok", f"{one.name} was alive {span(one.seen)} ago{release}")
    if len({one.release for one in now.workers}) > 1:
        yield found("note", "they are of different releases")


def _consumers(now: Vitals) -> Iterator[Finding]:
    for one in now.consumers:
        behind = f"more than {feed.COUNTED}" if one.behind > feed.COUNTED else str(one.behind)
        seconds = (datetime.now(UTC) - one.asked_at).total_seconds()
        says = f"{one.name} is {behind} changed tenants behind, and asked {span(seconds)} ago"
        if one.behind > FAR_BEHIND or (one.behind and seconds > GONE.total_seconds()):
            cure = f"does that service run? If it is gone: flask billing tokens revoke {one.name}"
            yield Finding("Consumers", "warning", says, cure)
        else:
            yield Finding("Consumers", "ok", says)
