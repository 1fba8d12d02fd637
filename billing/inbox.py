"""Every event Stripe sent us, and what became of it: the table `inbox`.

An event is `due` until it is settled. To claim one is to schedule its own retry: the claim counts the attempt
and moves `due_at` past the lease, so that a killed worker costs the lease and no more; the attempt number keeps
a worker that comes late from settling what is no longer its own. An event is `waiting` while nobody owns its
customer, `asking` while Stripe is asked about it (`questions`), and in the end `settled`, or `buried` with the
reason. After a lapsed lease it is claimed alone: whatever killed its worker must not charge its neighbours.
What operators look for among all of them is in `triage`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import psycopg
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Connection,
    DateTime,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    func,
    text,
)

from billing.db import Query, along_indexes, metadata, rows, sorting_again
from billing.events import Event, why_unused

MOST_LAPSES = 5  # leases lost while it was alone, before its body is left unread for good
MOST_FAILURES = 10  # recorded failures of our own: some minutes
KEPT = timedelta(days=35)  # Stripe lists its events for 30
IGNORED = "ignored"  # the reason of what an operator wants nothing more of
PRUNED_AT_ONCE = 1000

inbox = Table(
    "inbox",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("event_id", Text, nullable=False, unique=True),
    Column("type", Text, nullable=False),
    Column("object_id", Text),
    Column("customer", Text),
    Column("created", DateTime(timezone=True)),  # Stripe's time, like `sent_at`
    Column("api_version", Text),
    Column("livemode", Boolean),
    Column("received_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("sent_at", DateTime(timezone=True)),  # from the signature; none where we fetched the event ourselves
    Column("secret", Text),  # the fingerprint of the one that matched
    Column("trace", Text),  # the delivery's traceparent
    Column("body", LargeBinary, nullable=False),  # the verified bytes
    Column("state", Text, nullable=False, server_default="due"),
    Column("due_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("attempt", Integer, nullable=False, server_default="0"),
    Column("held", Text),  # claimed and not yet let go: in a batch, or by itself
    Column("lapses", Integer, nullable=False, server_default="0"),
    Column("failures", Integer, nullable=False, server_default="0"),
    Column("looks", Integer, nullable=False, server_default="0"),  # how often it was put off for another look
    Column("settled_at", DateTime(timezone=True)),
    Column("reason", Text),
    Column("fault", Text),  # of the latest failure of our own: its kind, and where in the code it was
    Column("failed_at", ARRAY(DateTime(timezone=True)), nullable=False, server_default="{}"),  # the latest ten
    CheckConstraint("state IN ('due', 'waiting', 'asking', 'settled', 'buried')", name="state_known"),
    CheckConstraint("held IN ('together', 'alone') AND state = 'due' OR held IS NULL", name="held_while_due"),
    CheckConstraint(
        "(state IN ('settled', 'buried')) = (settled_at IS NOT NULL)", name="settled_once_finished"
    ),
    CheckConstraint("state <> 'buried' OR reason IS NOT NULL", name="buried_with_a_reason"),
    Index("ix_inbox_due_at", "due_at", "id", postgresql_where=text("state = 'due'")),
    Index("ix_inbox_customer", "customer", "id", postgresql_where=text("state IN ('waiting', 'asking')")),
    Index("ix_inbox_state", "state", "id", postgresql_where=text("state IN ('waiting', 'asking')")),
    Index("ix_inbox_buried", "id", postgresql_where=text("state = 'buried'")),
    Index("ix_inbox_failing", "id", postgresql_where=text("state = 'due' AND reason IS NOT NULL")),
    Index(
        "ix_inbox_of_customer",
        "customer",
        "id",
        postgresql_where=text("customer IS NOT NULL AND state <> 'due'"),
    ),
    Index(
        "ix_inbox_of_object",
        "object_id",
        "id",
        postgresql_where=text("customer IS NULL AND state <> 'due'"),
    ),
)


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event as it arrived, ready to be kept. With `unused` it is settled at once, for that reason."""

    event_id: str
    type: str
    object_id: str | None
    customer: str | None
    created: int | None
    api_version: str | None
    livemode: bool | None
    body: bytes
    sent_at: int | None = None
    secret: str | None = None
    trace: str | None = None
    unused: str | None = None

    @classmethod
    def of(cls, event: Event, body: bytes, *, livemode: bool) -> Delivery:
        """The event, whose bytes these are, for an account in that mode."""
        return cls(
            event_id=event.id,
            type=event.type,
            object_id=event.object_id,
            customer=event.customer,
            created=event.created,
            api_version=event.api_version,
            livemode=event.livemode,
            body=body,
            unused=why_unused(event, livemode=livemode),
        )


# What FROM names is run before a row is made of it, so the policy sees the scope. There is no conflict target:
# naming a column would mean to read it, which the webhook's scope may not.
_RECEIVE = """
    INSERT INTO inbox (event_id, type, object_id, customer, created, api_version, livemode, body, sent_at,
                       secret, trace, state, settled_at, reason)
    SELECT %(event_id)s, %(type)s, %(object_id)s, %(customer)s, to_timestamp(%(created)s), %(api_version)s,
           %(livemode)s, %(body)b, to_timestamp(%(sent_at)s), %(secret)s, %(trace)s,
           CASE WHEN %(unused)s::text IS NULL THEN 'due' ELSE 'settled' END,
           CASE WHEN %(unused)s::text IS NOT NULL THEN clock_timestamp() END, %(unused)s
    FROM set_config('billing.scope', %(scope)s, true) AS scope,
         set_config('billing.tenant', %(tenant)s, true) AS tenant
    ON CONFLICT DO NOTHING
"""


def receive(delivery: Delivery) -> Query[bool]:
    """Keep the event. False if it was here already, whatever has become of it since."""
    values = {name: getattr(delivery, name) for name in Delivery.__slots__}
    return Query("inbox.receive", _RECEIVE, values, _written, enters=True)


def _written(cursor: psycopg.Cursor[Any]) -> bool:
    return cursor.rowcount == 1


_KNOWN = text("SELECT event_id FROM inbox WHERE event_id = ANY(:event_ids)")


def known(connection: Connection, event_ids: Collection[str]) -> set[str]:
    """Those of these events that are here already."""
    return set(connection.scalars(_KNOWN, {"event_ids": list(event_ids)}))


# ---- claiming


@dataclass(frozen=True, slots=True)
class Claimed:
    """An event in a worker's hands for the length of a lease."""

    id: int
    attempt: int
    event_id: str
    type: str
    customer: str | None
    created: int | None
    sent_at: int | None
    looks: int
    lapses: int
    failures: int
    alone: bool
    trace: str | None
    body: bytes


# The oldest that are due, up to the first whose lease has lapsed; if that is the very first, it alone.
_CLAIM = """
    WITH oldest AS MATERIALIZED (
        SELECT id, due_at, held FROM inbox
        WHERE state = 'due' AND due_at <= statement_timestamp()
        ORDER BY due_at, id LIMIT %(most)s FOR UPDATE SKIP LOCKED
    ), mine AS (
        SELECT id, row_number() OVER line AS place, bool_or(held IS NOT NULL) OVER line AS past_a_lapse
        FROM oldest WINDOW line AS (ORDER BY due_at, id)
    )
    UPDATE inbox SET attempt = attempt + 1,
                     due_at = clock_timestamp() + %(lease)s,
                     lapses = lapses + CASE WHEN held = 'alone' THEN 1 ELSE 0 END,
                     held = CASE WHEN held IS NULL THEN 'together' ELSE 'alone' END
    FROM mine WHERE inbox.id = mine.id AND (place = 1 OR NOT past_a_lapse)
    RETURNING inbox.id, attempt, event_id, type, customer, extract(epoch FROM created)::bigint,
              extract(epoch FROM sent_at)::bigint, looks, lapses, failures, held = 'alone', trace, body
"""


def claim(connection: Connection, *, most: int, lease: timedelta) -> list[Claimed]:
    """Up to `most` due events, oldest first, for the length of the lease."""
    found = rows(connection, _CLAIM, {"most": most, "lease": lease})
    return sorted((Claimed(*row) for row in found), key=lambda event: event.id)


_STILL_MINE = text("""
    SELECT inbox.id FROM inbox JOIN unnest(:ids, :attempts) AS mine (id, attempt) USING (id, attempt)
    WHERE state = 'due' AND held IS NOT NULL
    ORDER BY inbox.id FOR UPDATE OF inbox
""")


def still_mine(connection: Connection, claimed: Sequence[Claimed]) -> set[int]:
    """Lock those nobody else has claimed meanwhile. The others must not be judged: they are not ours."""
    values = {"ids": [event.id for event in claimed], "attempts": [event.attempt for event in claimed]}
    return set(connection.scalars(_STILL_MINE, values))


# ---- letting go; the caller holds the rows' locks

_SETTLE = text("""
    UPDATE inbox SET state = 'settled', settled_at = clock_timestamp(), held = NULL, reason = :reason
    WHERE id = ANY(:ids)
""")
_BURY = text("""
    UPDATE inbox SET state = 'buried', settled_at = clock_timestamp(), held = NULL, reason = :reason
    WHERE id = ANY(:ids)
""")
_WAIT = text("UPDATE inbox SET state = 'waiting', held = NULL, reason = NULL WHERE id = ANY(:ids)")
_ASK = text("UPDATE inbox SET state = 'asking', held = NULL, reason = :reason WHERE id = ANY(:ids)")
_LOOK_AGAIN = text("""
    UPDATE inbox SET held = NULL, looks = looks + 1, reason = NULL, due_at = clock_timestamp() + :delay
    WHERE id = ANY(:ids)
""")
_PUT_OFF = text("UPDATE inbox SET held = NULL, due_at = clock_timestamp() + :delay WHERE id = ANY(:ids)")
_FAIL = text("""
    UPDATE inbox SET held = NULL, failures = failures + CASE WHEN :counted THEN 1 ELSE 0 END, reason = :reason,
                     due_at = clock_timestamp() + :delay, fault = :fault,
                     failed_at = (failed_at || clock_timestamp())[cardinality(failed_at) - 8:]
    WHERE id = :id AND attempt = :attempt AND state = 'due'
""")


def settle(connection: Connection, ids: Collection[int], reason: str | None = None) -> None:
    """Done: what the events say is held, or known to be out of date."""
    if ids:
        connection.execute(_SETTLE, {"ids": list(ids), "reason": reason})


def bury(connection: Connection, ids: Collection[int], reason: str) -> None:
    """Given up; an operator can replay them."""
    if ids:
        connection.execute(_BURY, {"ids": list(ids), "reason": reason})


def wait(connection: Connection, ids: Collection[int]) -> None:
    """Nobody owns their customer yet."""
    if ids:
        connection.execute(_WAIT, {"ids": list(ids)})


def ask(connection: Connection, ids: Collection[int], reason: str | None = None) -> None:
    """Stripe's next answer about their customer settles them; with a reason it buries them."""
    if ids:
        connection.execute(_ASK, {"ids": list(ids), "reason": reason})


def look_again(connection: Connection, ids: Collection[int], *, delay: timedelta) -> None:
    """What normally comes with them may still be on its way."""
    if ids:
        connection.execute(_LOOK_AGAIN, {"ids": list(ids), "delay": delay})


def put_off(connection: Connection, ids: Collection[int], *, delay: timedelta) -> None:
    """Nothing is known of them yet: their customer is in somebody else's hands."""
    if ids:
        connection.execute(_PUT_OFF, {"ids": list(ids), "delay": delay})


def fail(
    connection: Connection,
    event: Claimed,
    *,
    reason: str,
    delay: timedelta,
    counted: bool = True,
    fault: str | None = None,
) -> None:
    """It could not be worked on, for a reason of ours: again after the delay and, if counted, not for ever."""
    values = {"id": event.id, "attempt": event.attempt, "reason": reason, "delay": delay}
    connection.execute(_FAIL, {**values, "counted": counted, "fault": fault})


# The lock order everywhere is by id, and UPDATE alone promises none.
_ANSWERED = text("""
    WITH answered AS MATERIALIZED (
        SELECT id FROM inbox WHERE customer = :customer AND state = 'asking' AND id <= :seen
        ORDER BY id FOR UPDATE
    )
    UPDATE inbox SET state = CASE WHEN reason IS NULL THEN 'settled' ELSE 'buried' END,
                     settled_at = clock_timestamp()
    FROM answered WHERE inbox.id = answered.id
    RETURNING event_id, trace, reason
""")
_ASKING = text("""
    SELECT event_id, trace, reason FROM inbox WHERE customer = :customer AND state = 'asking'
    ORDER BY id LIMIT 100
""")


@dataclass(frozen=True, slots=True)
class Asking:
    """An event that Stripe is asked about, and why it is to be buried, if it is."""

    event_id: str
    trace: str | None
    reason: str | None


def answered(connection: Connection, customer: str, *, seen: int) -> list[Asking]:
    """Finish what was waiting for this answer: every event that had arrived when the question was put."""
    found = connection.execute(_ANSWERED, {"customer": customer, "seen": seen})
    return [Asking(*row) for row in found]


def asking(connection: Connection, customer: str) -> list[Asking]:
    """Those that wait for an answer about this customer, the first hundred."""
    return [Asking(*row) for row in connection.execute(_ASKING, {"customer": customer})]


_IS_ASKING = text("""
    SELECT EXISTS (
        SELECT FROM inbox
        WHERE customer = :customer AND state = 'asking' AND (CAST(:type AS text) IS NULL OR type = :type)
    )
""")
# Of what is due no index knows the customers: it would cost every delivery.
_NEWEST_DUE = text("""
    WITH due AS MATERIALIZED (
        SELECT customer, id FROM inbox WHERE state = 'due' ORDER BY due_at, id LIMIT :most
    )
    SELECT (SELECT count(*) FROM due), (
        SELECT jsonb_object_agg(customer, newest) FROM (
            SELECT customer, max(id) AS newest FROM due WHERE customer = ANY(:customers) GROUP BY customer
        ) AS of
    )
""")
_COME = """
    SELECT EXISTS (SELECT FROM inbox WHERE customer = :customer AND id > :after AND state <> 'due' {})
"""
_HAS_COME = text(_COME.format(""))
_IS_PASSED_OVER = text(_COME.format("AND (state = 'asking' OR reason = :ignored)"))
# Each part has an index of its own.
_RELEASE = text("""
    WITH held AS MATERIALIZED (
        SELECT id FROM inbox
        WHERE state IN ('asking', 'buried') AND id IN (
            SELECT id FROM inbox WHERE customer = :customer AND state = 'asking'
            UNION ALL SELECT id FROM inbox WHERE customer = :customer AND state = 'buried'
        )
        ORDER BY id FOR UPDATE
    )
    UPDATE inbox SET state = 'waiting', settled_at = NULL, reason = NULL FROM held WHERE inbox.id = held.id
""")
# Numbers are given out in order: whatever has a higher one had not arrived when this was read.
_NEWEST = text("SELECT last_value - CASE WHEN is_called THEN 0 ELSE 1 END FROM inbox_id_seq")


def is_asking(connection: Connection, customer: str, type: str | None = None) -> bool:
    """Whether an event of this customer, or one of this type, still needs an answer."""
    return bool(connection.scalar(_IS_ASKING, {"customer": customer, "type": type}))


def newest_due(connection: Connection, customers: Collection[str]) -> dict[str, int] | None:
    """The newest event that is due of each of these customers; None while too many are due to look through."""
    along_indexes(connection)
    row = connection.execute(_NEWEST_DUE, {"customers": list(customers), "most": LOOKED_AT + 1}).one()
    sorting_again(connection)
    return None if row[0] > LOOKED_AT else row[1] or {}


def has_come(connection: Connection, customer: str, *, after: int) -> bool:
    """Whether an event of this customer came after that one, whatever has become of it; unless it is due."""
    return bool(connection.scalar(_HAS_COME, {"customer": customer, "after": after}))


def is_passed_over(connection: Connection, customer: str, *, after: int) -> bool:
    """Whether Stripe is asked, by whom it may be, in place of an event that came after that one."""
    values = {"customer": customer, "after": after, "ignored": IGNORED}
    return bool(connection.scalar(_IS_PASSED_OVER, values))


def release(connection: Connection, customer: str) -> None:
    """There will be no answer, for nobody owns the customer any more: its events wait for an owner.

    The buried ones, too, which nobody would replay: whatever waits is pruned in its time.
    """
    connection.execute(_RELEASE, {"customer": customer})


def newest(connection: Connection) -> int:
    """The number of the event that arrived last; none that is still to arrive has a lower one."""
    return int(connection.scalar(_NEWEST))


# ---- waking, and cleaning up

_WAKE = text("""
    WITH waiting AS MATERIALIZED (
        SELECT id FROM inbox WHERE customer = :customer AND state = 'waiting' ORDER BY id FOR UPDATE
    )
    UPDATE inbox SET state = 'due', due_at = clock_timestamp() FROM waiting WHERE inbox.id = waiting.id
""")
_SWEEP = text("""
    WITH linked AS MATERIALIZED (
        SELECT id FROM inbox WHERE state = 'waiting'
          AND customer IN (SELECT stripe_customer_id FROM tenant_config WHERE stripe_customer_id <> '')
        ORDER BY id LIMIT 1000 FOR UPDATE SKIP LOCKED
    )
    UPDATE inbox SET state = 'due', due_at = clock_timestamp() FROM linked WHERE inbox.id = linked.id
""")
# From the lowest number on, for they are the oldest: an index on the time would cost every delivery.
_PRUNE = text("""
    WITH stretch AS MATERIALIZED (
        SELECT id, received_at < statement_timestamp() - :kept AS is_old FROM inbox
        WHERE id > :after ORDER BY id LIMIT :most
    ), old AS MATERIALIZED (
        SELECT inbox.id FROM inbox JOIN stretch USING (id) WHERE is_old AND state IN ('settled', 'waiting')
        ORDER BY inbox.id FOR UPDATE OF inbox SKIP LOCKED
    ), gone AS (
        DELETE FROM inbox USING old WHERE inbox.id = old.id
    )
    SELECT CASE WHEN count(*) = :most AND bool_and(is_old) THEN max(id) END FROM stretch
""")


def wake(connection: Connection, customer: str) -> int:
    """Somebody owns the customer now: its events are due. How many there were."""
    return connection.execute(_WAKE, {"customer": customer}).rowcount


def sweep(connection: Connection) -> int:
    """Wake the events of customers that were linked by other means than ours."""
    return connection.execute(_SWEEP).rowcount


def prune(connection: Connection, *, after: int) -> int | None:
    """Forget the next stretch of what is long settled, or has waited too long for an owner. Where to go on."""
    values = {"after": after, "kept": KEPT, "most": PRUNED_AT_ONCE}
    on: int | None = connection.scalar(_PRUNE, values)
    return on


# ---- for operators

# Each counts an attempt: whoever holds one of them can no longer settle it.
_REPLAY = text("""
    WITH chosen AS MATERIALIZED (
        SELECT id FROM inbox WHERE id = ANY(:ids) AND state NOT IN ('due', 'asking') ORDER BY id FOR UPDATE
    )
    UPDATE inbox SET state = 'due', due_at = clock_timestamp(), settled_at = NULL, reason = NULL,
                     lapses = 0, failures = 0, looks = 0, attempt = attempt + 1
    FROM chosen WHERE inbox.id = chosen.id
    RETURNING event_id, customer
""")
_IGNORE = text("""
    WITH chosen AS MATERIALIZED (
        SELECT id FROM inbox WHERE id = ANY(:ids) AND state <> 'settled' ORDER BY id FOR UPDATE
    )
    UPDATE inbox SET state = 'settled', settled_at = clock_timestamp(), held = NULL, reason = :reason,
                     attempt = attempt + 1
    FROM chosen WHERE inbox.id = chosen.id
    RETURNING event_id, customer
""")

Named = tuple[str, str | None]  # an event, and whom it is about


def replay(connection: Connection, ids: Collection[int]) -> list[Named]:
    """Make those of these events that are finished, or wait, due again as if they had just come. Which."""
    return [(row[0], row[1]) for row in connection.execute(_REPLAY, {"ids": list(ids)})]


def ignore(connection: Connection, ids: Collection[int]) -> list[Named]:
    """Finish those of these events that are not finished well, whatever they say. Which."""
    return [(row[0], row[1]) for row in connection.execute(_IGNORE, {"ids": list(ids), "reason": IGNORED})]


@dataclass(frozen=True, slots=True)
class Unsettled:
    """An event of a customer's that is not settled, and is not due either."""

    event_id: str
    type: str
    state: str
    received_at: datetime
    reason: str | None


# Each part has an index of its own.
_UNSETTLED = text("""
    SELECT event_id, type, state, received_at, reason FROM inbox
    WHERE id IN (
        (SELECT id FROM inbox WHERE customer = :customer AND state IN ('waiting', 'asking')
         ORDER BY id DESC LIMIT :most)
        UNION ALL
        (SELECT id FROM (
             SELECT id, customer FROM inbox WHERE state = 'buried' ORDER BY id DESC LIMIT 10000
         ) AS newest
         WHERE customer = :customer LIMIT :most)
    )
    ORDER BY id DESC LIMIT :most
""")


def unsettled(connection: Connection, customer: str, *, most: int) -> list[Unsettled]:
    """The customer's newest events that wait, ask, or are buried; of the buried, among the newest 10,000."""
    found = connection.execute(_UNSETTLED, {"customer": customer, "most": most})
    return [Unsettled(*row) for row in found]


# The numbers are given out as events come, so the lowest is the oldest; for those that are due, whose index is
# in another order, it is looked for as far as they are counted.
_BACKLOG = text("""
    SELECT due.n AS due, waiting.n AS waiting, asking.n AS asking, buried.n AS buried,
           extract(epoch FROM clock_timestamp() - least(due.oldest, asking.oldest))::float8 AS unprocessed,
           extract(epoch FROM clock_timestamp() - waiting.oldest)::float8 AS waits
    FROM (
        SELECT count(*) AS n, min(received_at) AS oldest FROM (
            SELECT received_at FROM inbox WHERE state = 'due' ORDER BY due_at, id LIMIT :most
        ) AS counted
    ) AS due, (
        SELECT count(*) AS n, (
            SELECT received_at FROM inbox WHERE state = 'asking' ORDER BY id LIMIT 1
        ) AS oldest FROM (SELECT FROM inbox WHERE state = 'asking' ORDER BY id LIMIT :most) AS counted
    ) AS asking, (
        SELECT count(*) AS n, (
            SELECT received_at FROM inbox WHERE state = 'waiting' ORDER BY id LIMIT 1
        ) AS oldest FROM (SELECT FROM inbox WHERE state = 'waiting' ORDER BY id LIMIT :most) AS counted
    ) AS waiting, (
        SELECT count(*) AS n FROM (SELECT FROM inbox WHERE state = 'buried' ORDER BY id LIMIT :most) AS counted
    ) AS buried
""")
# The first row ends it, unless all of the newest were fetched by ourselves.
_LAST_WEBHOOK = text("""
    SELECT extract(epoch FROM clock_timestamp() - received_at)::float8
    FROM (SELECT id, received_at, sent_at FROM inbox ORDER BY id DESC LIMIT :looked_at) AS newest
    WHERE sent_at IS NOT NULL ORDER BY id DESC LIMIT 1
""")
LOOKED_AT = 10_000


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is not settled: how many, counted up to `most` and one more; and for how many seconds the oldest."""

    due: int
    waiting: int
    asking: int
    buried: int
    oldest_unprocessed: float | None
    oldest_waiting: float | None


def backlog(connection: Connection, *, most: int) -> Backlog:
    """How much there is to do."""
    return Backlog(*connection.execute(_BACKLOG, {"most": most + 1}).one())


def last_webhook(connection: Connection) -> float | None:
    """Seconds since an event came by webhook; None where none of the newest LOOKED_AT did."""
    seconds: float | None = connection.scalar(_LAST_WEBHOOK, {"looked_at": LOOKED_AT})
    return seconds


LATELY = 1000
_LATELY = text("""
    SELECT count(*) AS events, count(*) FILTER (WHERE state = 'settled') AS settled,
           min(received_at) AS since,
           percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM settled_at - received_at))
               FILTER (WHERE state = 'settled') AS median
    FROM (
        SELECT state, received_at, settled_at FROM inbox ORDER BY id DESC LIMIT :most
    ) AS newest
""")


@dataclass(frozen=True, slots=True)
class Lately:
    """The newest events: how many, how many of them are settled, and how long that took half of them."""

    events: int
    settled: int
    since: datetime | None
    median: float | None  # seconds


def lately(connection: Connection) -> Lately:
    """How the newest LATELY events fared."""
    return Lately(*connection.execute(_LATELY, {"most": LATELY}).one())
