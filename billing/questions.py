"""What Stripe has to be asked, one row per Stripe customer: the table `stripe_customers`.

A question is always about a customer, and never in flight twice: to put one is to count it, and to schedule
its own retry for the end of its lease. An answer is accepted only if no later question was put, and only for
subscriptions no event has confirmed or changed since (`heard`). The row's lock is what all who write a
customer's state take first. A deleted customer stays as a tombstone.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import BigInteger, Column, Connection, DateTime, Index, Integer, Table, Text, text

from billing.db import along_indexes, metadata

LEASE = timedelta(seconds=30)  # renewed with each read: one wait for the budget, one deadline, and room
TOO_LONG = timedelta(minutes=5)  # for an answer to be owed
TOO_OFTEN = 2  # failures of a question in a row: Stripe is away

stripe_customers = Table(
    "stripe_customers",
    metadata,
    Column("stripe_customer_id", Text, primary_key=True),
    Column("deleted_at", DateTime(timezone=True)),
    Column("heard", BigInteger, nullable=False, server_default="0"),  # counts what an answer may have missed
    Column("latest_created", DateTime(timezone=True)),  # of the events that wanted a question, in Stripe's time
    Column("wanted_at", DateTime(timezone=True)),  # a question is wanted from then on
    Column("owed_since", DateTime(timezone=True)),  # when the first question was wanted that has no answer yet
    Column("put", BigInteger, nullable=False, server_default="0"),  # the number of the latest question
    Column("asking_until", DateTime(timezone=True)),  # its lease, while it is in flight
    Column("failures", Integer, nullable=False, server_default="0"),  # of questions, in a row
    Column("answered", BigInteger, nullable=False, server_default="0"),  # the latest question with an answer
    Column("answered_seen", BigInteger, nullable=False, server_default="0"),  # events up to this were in it
    Column("answered_at", DateTime(timezone=True)),
    Index("ix_stripe_customers_wanted_at", "wanted_at", postgresql_where=text("wanted_at IS NOT NULL")),
    Index("ix_stripe_customers_answered_at", "answered_at", postgresql_where=text("wanted_at IS NULL")),
    Index("ix_stripe_customers_owed_since", "owed_since", postgresql_where=text("owed_since IS NOT NULL")),
    Index(
        "ix_stripe_customers_unanswered",
        "stripe_customer_id",
        postgresql_where=text("answered_at IS NULL"),
    ),
)


@dataclass(frozen=True, slots=True)
class Customer:
    """A customer whose row is locked."""

    id: str
    is_deleted: bool
    heard: int
    answered_seen: int
    is_asked: bool  # a question is in flight
    failures: int = 0  # of questions, in a row


# Those that are missing only: on another's row it would wait for whoever is changing it.
_KNOW = text("""
    INSERT INTO stripe_customers (stripe_customer_id)
    SELECT id FROM unnest(CAST(:ids AS text[])) AS given (id)
    WHERE NOT EXISTS (SELECT FROM stripe_customers WHERE stripe_customer_id = id)
    ORDER BY id ON CONFLICT DO NOTHING
""")
_KNOWN = text("SELECT stripe_customer_id FROM stripe_customers WHERE stripe_customer_id = ANY(:ids)")
_LOCK = """
    SELECT stripe_customer_id, deleted_at IS NOT NULL, heard, answered_seen, asking_until IS NOT NULL,
           failures
    FROM stripe_customers WHERE stripe_customer_id = ANY(:ids) ORDER BY stripe_customer_id FOR NO KEY UPDATE
"""
_LOCK_ONE = text(_LOCK)
_LOCK_FREE = text(f"{_LOCK} SKIP LOCKED")


def lock(connection: Connection, customer: str) -> Customer:
    """Lock this customer, known or not. Nobody else writes its state meanwhile."""
    while True:
        for row in connection.execute(_LOCK_ONE, {"ids": [customer]}):
            return Customer(*row)
        connection.execute(_KNOW, {"ids": [customer]})  # and once more: it may be pruned while we wait for it


def lock_free(connection: Connection, customers: Collection[str]) -> dict[str, Customer]:
    """Lock those of these customers that nobody else has locked, those never heard of included."""
    ids = sorted(customers)
    missing = set(ids).difference(connection.scalars(_KNOWN, {"ids": ids}))
    if missing:  # before any is locked: who has one and waits for another may be waited for
        connection.execute(_KNOW, {"ids": sorted(missing)})
    return {row[0]: Customer(*row) for row in connection.execute(_LOCK_FREE, {"ids": ids})}


@dataclass(frozen=True, slots=True)
class Heard:
    """What a batch of events has brought for a customer."""

    customer: str
    heard: int
    latest_created: int | None
    wanted: bool


# While a question is in flight its answer, or its end, decides whether another one is wanted. An event does not
# shorten the pause after a failure; for a question that is only wanted later it does not wait.
_HEAR = text("""
    UPDATE stripe_customers c SET
        heard = told.heard,
        latest_created = greatest(c.latest_created, to_timestamp(told.latest_created)),
        wanted_at = CASE WHEN NOT wanted OR asking_until IS NOT NULL THEN c.wanted_at
                         WHEN put > answered THEN coalesce(c.wanted_at, clock_timestamp())
                         ELSE least(c.wanted_at, clock_timestamp()) END,
        owed_since = CASE WHEN wanted THEN least(c.owed_since, clock_timestamp()) ELSE c.owed_since END
    FROM jsonb_to_recordset(CAST(:rows AS jsonb))
        AS told (customer text, heard bigint, latest_created bigint, wanted boolean)
    WHERE stripe_customer_id = told.customer
""")


def hear(connection: Connection, told: Iterable[Heard]) -> None:
    """Write down what was judged, and who has to be asked about. The caller holds the locks."""
    rows = [{name: getattr(one, name) for name in Heard.__slots__} for one in told]
    if rows:
        connection.execute(_HEAR, {"rows": json.dumps(rows)})


# Before the lease's end, even where that has passed: so an answer sees that somebody came after its question.
_WANT = text("""
    INSERT INTO stripe_customers (stripe_customer_id, wanted_at, owed_since)
    SELECT id, at, at
    FROM unnest(CAST(:ids AS text[])) WITH ORDINALITY AS given (id, nth),
         LATERAL (SELECT clock_timestamp() + :after + (nth - 1) * CAST(:every AS interval)) AS turn (at)
    ORDER BY id
    ON CONFLICT (stripe_customer_id) DO UPDATE
    SET owed_since = least(stripe_customers.owed_since, excluded.owed_since),
        wanted_at = least(stripe_customers.wanted_at, excluded.wanted_at,
                          stripe_customers.asking_until - interval '1 microsecond')
""")


@dataclass(frozen=True, slots=True)
class Pace:
    """When the first of many questions is wanted, and how long after it each of the others."""

    after: timedelta = timedelta(0)
    every: timedelta = timedelta(0)


AT_ONCE = Pace()


def want(connection: Connection, customers: Collection[str], pace: Pace = AT_ONCE) -> None:
    """Have Stripe asked about these customers, whatever their events say; by then at the latest."""
    if customers:
        values = {"ids": sorted(set(customers)), "after": pace.after, "every": pace.every}
        connection.execute(_WANT, values)


_BORN = text("""
    INSERT INTO stripe_customers AS c (stripe_customer_id, answered_at) VALUES (:customer, clock_timestamp())
    ON CONFLICT (stripe_customer_id) DO UPDATE SET answered_at = coalesce(c.answered_at, excluded.answered_at)
""")
_IS_RESTING = text("""
    SELECT put > answered AND asking_until IS NULL AND wanted_at > clock_timestamp() FROM stripe_customers
    WHERE stripe_customer_id = :customer
""")
_IS_DELETED = text("SELECT deleted_at IS NOT NULL FROM stripe_customers WHERE stripe_customer_id = :customer")
_IS_WANTED = text("""
    SELECT answered_at IS NULL
        OR (wanted_at IS NOT NULL AND (wanted_at <= clock_timestamp() OR put > answered))
    FROM stripe_customers WHERE stripe_customer_id = :customer
""")


@dataclass(frozen=True, slots=True)
class Asked:
    """When Stripe was asked about a customer, and whether it owes us an answer."""

    answered_at: datetime | None
    owed_since: datetime | None
    failures: int
    deleted_at: datetime | None
    is_late: bool  # and what is held of it is served as stale


_ASKED = text("""
    SELECT answered_at, owed_since, failures, deleted_at,
           coalesce(failures >= :often OR owed_since < clock_timestamp() - CAST(:long AS interval), false)
    FROM stripe_customers
    WHERE stripe_customer_id = :customer
""")


def asked(connection: Connection, customer: str) -> Asked:
    """How it stands with this customer; one never heard of has never been asked about."""
    values = {"customer": customer, "often": TOO_OFTEN, "long": TOO_LONG}
    row = connection.execute(_ASKED, values).one_or_none()
    return Asked(*row) if row else Asked(None, None, 0, None, is_late=False)


def is_resting(connection: Connection, customer: str) -> bool:
    """Whether a question has just failed, and it is too soon to put it again."""
    return bool(connection.scalar(_IS_RESTING, {"customer": customer}))


@dataclass(frozen=True, slots=True)
class Standing:
    """How things stand between Stripe and us about a customer."""

    answered_at: datetime | None  # when Stripe last told everything
    answered_seen: int  # the events up to this one were in it
    owed_since: datetime | None  # Stripe owes an answer
    next_at: datetime | None  # when it is asked, or asked again
    failures: int  # of questions, in a row
    deleted_at: datetime | None


_STANDING = text("""
    SELECT answered_at, answered_seen, owed_since, wanted_at, failures, deleted_at FROM stripe_customers
    WHERE stripe_customer_id = :customer
""")


def standing(connection: Connection, customer: str) -> Standing | None:
    """What is known of the asking; None if nobody ever spoke of the customer."""
    row = connection.execute(_STANDING, {"customer": customer}).one_or_none()
    return Standing(*row) if row else None


@dataclass(frozen=True, slots=True)
class Answering:
    """How Stripe answers: when it last did, and what of what it has owed for longest keeps failing."""

    answered_at: datetime | None
    failing: int  # questions, up to LOOKED_AT
    owed_since: datetime | None  # the oldest of them


LOOKED_AT = 1_000
_ANSWERING = text("""
    SELECT (SELECT answered_at FROM stripe_customers WHERE wanted_at IS NULL AND answered_at IS NOT NULL
            ORDER BY answered_at DESC LIMIT 1),
           count(*) FILTER (WHERE failures >= :often), min(owed_since) FILTER (WHERE failures >= :often)
    FROM (
        SELECT failures, owed_since FROM stripe_customers WHERE owed_since IS NOT NULL
        ORDER BY owed_since LIMIT :most
    ) AS owed
""")


def answering(connection: Connection) -> Answering:
    """As it is now."""
    along_indexes(connection)
    return Answering(*connection.execute(_ANSWERING, {"often": TOO_OFTEN, "most": LOOKED_AT}).one())


def born(connection: Connection, customer: str) -> None:
    """We have just made this customer: all there is to know of it is that it has nothing."""
    connection.execute(_BORN, {"customer": customer})


def is_deleted(connection: Connection, customer: str) -> bool:
    """Whether Stripe has said that it is gone."""
    return bool(connection.scalar(_IS_DELETED, {"customer": customer}))


def is_wanted(connection: Connection, customer: str) -> bool:
    """Whether Stripe owes us an answer, or has never been asked. A question for later it does not owe yet."""
    return connection.scalar(_IS_WANTED, {"customer": customer}) is not False


# ---- putting a question


@dataclass(frozen=True, slots=True)
class Question:
    """A question in flight: which one it is of its customer's, and what was known when it was put."""

    customer: str
    put: int
    heard: int
    latest_created: int  # Stripe's clock cannot have been earlier than this
    seen: int  # the events up to this one had arrived
    failures: int


_PUT = text("""
    WITH next AS MATERIALIZED (
        SELECT stripe_customer_id FROM stripe_customers
        WHERE wanted_at <= statement_timestamp()
          AND (asking_until IS NULL OR asking_until < statement_timestamp())
          AND (CAST(:customer AS text) IS NULL OR stripe_customer_id = :customer)
        ORDER BY wanted_at LIMIT :most FOR UPDATE SKIP LOCKED
    )
    UPDATE stripe_customers SET put = put + 1, asking_until = now() + :lease, wanted_at = now() + :lease
    FROM next WHERE stripe_customers.stripe_customer_id = next.stripe_customer_id
    RETURNING stripe_customers.stripe_customer_id, put, heard,
              coalesce(extract(epoch FROM latest_created)::bigint, 0), failures
""")


def put(
    connection: Connection, *, seen: int, most: int, lease: timedelta = LEASE, customer: str | None = None
) -> list[Question]:
    """The next questions, of any customer or of this one; each is in flight until its lease ends.

    `seen` is read before this: what arrives later may not be in the answer.
    """
    found = connection.execute(_PUT, {"most": most, "lease": lease, "customer": customer})
    return [Question(row[0], row[1], row[2], row[3], seen, row[4]) for row in found]


def put_at_once(connection: Connection, customer: str, *, seen: int) -> Question | None:
    """A question about this customer, whoever wants one. None while another is in flight."""
    want(connection, [customer])
    return next(iter(put(connection, seen=seen, most=1, customer=customer)), None)


_AS_IT_IS = text("""
    SELECT answered, heard, coalesce(extract(epoch FROM latest_created)::bigint, 0), failures
    FROM stripe_customers WHERE stripe_customer_id = :customer
""")


def imagined(connection: Connection, customer: str, *, seen: int) -> Question:
    """A question as it could be put now, without a lease, and with the number of the latest that has an answer.

    The caller holds the lock.
    """
    row = connection.execute(_AS_IT_IS, {"customer": customer}).one()
    return Question(customer, row[0], row[1], row[2], seen, row[3])


_RENEW = text("""
    UPDATE stripe_customers SET
        wanted_at = CASE WHEN wanted_at = asking_until THEN now() + :lease ELSE wanted_at END,
        asking_until = now() + :lease
    WHERE stripe_customer_id = :customer AND put = :put AND asking_until IS NOT NULL
""")
_NUMBERS = text("SELECT put, answered FROM stripe_customers WHERE stripe_customer_id = :customer")
_ANSWERED = text("""
    UPDATE stripe_customers SET
        answered = :put, answered_seen = :seen, answered_at = clock_timestamp(),
        asking_until = NULL, failures = 0,
        wanted_at = CASE WHEN :again THEN clock_timestamp() WHEN wanted_at < asking_until THEN wanted_at END,
        owed_since = CASE WHEN :again OR wanted_at < asking_until THEN clock_timestamp() END,
        deleted_at = coalesce(deleted_at, CASE WHEN :deleted THEN clock_timestamp() END)
    WHERE stripe_customer_id = :customer
""")
_REFUSED = text("""
    UPDATE stripe_customers SET
        asking_until = NULL,
        wanted_at = clock_timestamp() + least(put - answered - 1, 10) * interval '1 second'
    WHERE stripe_customer_id = :customer
""")
_FAILED = text("""
    UPDATE stripe_customers SET
        asking_until = NULL, failures = failures + CASE WHEN :counted THEN 1 ELSE 0 END,
        wanted_at = clock_timestamp()
            + CASE WHEN wanted_at < asking_until THEN least(:delay, interval '1 second') ELSE :delay END
    WHERE stripe_customer_id = :customer AND put = :put
""")


def renew(connection: Connection, question: Question) -> bool:
    """Keep the question in flight for another lease. False if a later one has been put."""
    values = {"customer": question.customer, "put": question.put, "lease": LEASE}
    return connection.execute(_RENEW, values).rowcount == 1


def is_latest(connection: Connection, question: Question) -> bool:
    """Whether no later question has been put. The caller holds the lock."""
    return numbers(connection, question.customer)[0] == question.put


def numbers(connection: Connection, customer: str) -> tuple[int, int]:
    """The customer's latest question, and the latest that has an answer."""
    found = connection.execute(_NUMBERS, {"customer": customer}).one()
    return found.put, found.answered


def answered(connection: Connection, question: Question, *, deleted: bool, again: bool) -> None:
    """The answer is held now; `again` when events came in that it does not settle.

    Whoever wanted a question after this one was put wants another.
    """
    values = {"customer": question.customer, "put": question.put, "seen": question.seen}
    connection.execute(_ANSWERED, {**values, "deleted": deleted, "again": again})


def refused(connection: Connection, question: Question) -> None:
    """The answer was overtaken by an event: to be put again at once, or soon if that happens over and over."""
    connection.execute(_REFUSED, {"customer": question.customer})


def failed(connection: Connection, question: Question, *, delay: timedelta, counted: bool = True) -> None:
    """No answer: to be put again after the delay. Nobody's attempts are used up by it."""
    values = {"customer": question.customer, "put": question.put, "delay": delay, "counted": counted}
    connection.execute(_FAILED, values)


_DROP = text("""
    UPDATE stripe_customers
    SET put = put + 1, asking_until = NULL, wanted_at = NULL, owed_since = NULL, answered_at = NULL
    WHERE stripe_customer_id = :customer
""")


def drop(connection: Connection, customer: str) -> None:
    """Nobody wants to know any more: as if it had never been asked about, and no answer under way is taken.

    The caller holds the lock.
    """
    connection.execute(_DROP, {"customer": customer})


# ---- for the walk

# Along the index of those nobody has to ask about; strangers among them are few, for they are pruned.
_STALEST = text("""
    SELECT c.stripe_customer_id FROM stripe_customers c
    WHERE c.wanted_at IS NULL AND c.answered_at < statement_timestamp() - CAST(:older AS interval)
      AND EXISTS (
          SELECT FROM tenant_config t
          WHERE t.stripe_customer_id = c.stripe_customer_id AND t.stripe_customer_id <> ''
      )
    ORDER BY c.answered_at LIMIT :most FOR NO KEY UPDATE OF c SKIP LOCKED
""")
_UNASKED = text("""
    WITH stretch AS (
        SELECT stripe_customer_id FROM tenant_config
        WHERE stripe_customer_id > :after AND stripe_customer_id <> ''
        ORDER BY stripe_customer_id LIMIT :stretch
    )
    SELECT max(stripe_customer_id),
           array_agg(stripe_customer_id ORDER BY stripe_customer_id)
               FILTER (WHERE c.answered_at IS NULL AND c.wanted_at IS NULL)
    FROM stretch LEFT JOIN stripe_customers c USING (stripe_customer_id)
""")
_IN_LINE = text("""
    SELECT count(*) FROM (
        SELECT FROM stripe_customers WHERE wanted_at <= statement_timestamp() LIMIT :most
    ) AS waiting
""")
# Who was unlinked and is linked all the same was linked past us, after that.
_MET = text("""
    SELECT c.stripe_customer_id FROM stripe_customers c JOIN tenant_config t USING (stripe_customer_id)
    WHERE c.stripe_customer_id = ANY(:customers) AND t.stripe_customer_id <> ''
      AND c.answered_at > coalesce(
          (SELECT max(greatest(l.linked_at, l.unlinked_at)) FROM tenant_links l
           WHERE l.stripe_customer_id = t.stripe_customer_id AND l.tenant_id = t.tenant_id),
          t.created_at)
""")
_WANTED = text("SELECT count(*) FROM stripe_customers WHERE wanted_at IS NOT NULL")
_WAS_ANSWERED = text("""
    SELECT answered_at > coalesce(CAST(:since AS timestamptz), '-infinity') FROM stripe_customers
    WHERE stripe_customer_id = :customer
""")
_LINKED = text("""
    SELECT t.stripe_customer_id, coalesce(c.answered_at > :since, false)
    FROM tenant_config t LEFT JOIN stripe_customers c USING (stripe_customer_id)
    WHERE t.stripe_customer_id > :after AND t.stripe_customer_id <> '' ORDER BY t.stripe_customer_id LIMIT :most
""")
_HOW_MANY = text("""
    SELECT count(*) FROM tenant_config WHERE stripe_customer_id > :after AND stripe_customer_id <> ''
""")


def stalest(connection: Connection, *, older: timedelta, most: int) -> Sequence[str]:
    """Linked customers whose last answer is this old, the oldest first: locked, and none that others have."""
    along_indexes(connection)
    return connection.scalars(_STALEST, {"older": older, "most": most}).all()


# To look for those that have no row would be to look at every tenant; workers give them one within minutes.
_NEVER_ANSWERED = text("""
    SELECT count(*)
    FROM (SELECT stripe_customer_id FROM stripe_customers WHERE answered_at IS NULL LIMIT :most) AS c
    JOIN tenant_config t ON t.stripe_customer_id = c.stripe_customer_id AND t.stripe_customer_id <> ''
""")


def never_answered(connection: Connection, *, most: int) -> int:
    """How many linked customers Stripe has never told about; counted up to `most`, and one more."""
    return int(connection.scalar(_NEVER_ANSWERED, {"most": most + 1}))


def unasked(connection: Connection, *, after: str, most: int) -> tuple[Sequence[str], str]:
    """Those of the next stretch of linked customers whom nobody asks about, and where to go on; "" at the end.

    They were linked by other means than ours.
    """
    along_indexes(connection)
    last, found = connection.execute(_UNASKED, {"after": after, "stretch": LINKED_STRETCH}).one()
    found = found or []
    return found[:most], (found[most - 1] if len(found) > most else last) or ""


def wanted(connection: Connection) -> int:
    """How many questions wait to be put, or for their time to come."""
    return int(connection.scalar(_WANTED) or 0)


def in_line(connection: Connection, *, most: int) -> int:
    """How many questions wait to be put, counted up to this many."""
    return int(connection.scalar(_IN_LINE, {"most": most}) or 0)


def was_answered(connection: Connection, customer: str, *, since: datetime | None = None) -> bool:
    """Whether an answer about this customer is held; one that came since then."""
    return bool(connection.scalar(_WAS_ANSWERED, {"customer": customer, "since": since}))


def met(connection: Connection, customers: Collection[str]) -> set[str]:
    """Those of these customers about whom Stripe has answered since they were linked."""
    return set(connection.scalars(_MET, {"customers": list(customers)}))


def linked(connection: Connection, *, after: str, since: datetime, most: int) -> list[tuple[str, bool]]:
    """The next linked customers by their ids, each with whether it was answered since then."""
    found = connection.execute(_LINKED, {"after": after, "since": since, "most": most})
    return [(row[0], row[1]) for row in found]


def how_many(connection: Connection, *, after: str = "") -> int:
    """How many customers are linked whose id comes after this one."""
    return int(connection.scalar(_HOW_MANY, {"after": after}) or 0)


_PRUNE = text("""
    WITH stretch AS (
        SELECT stripe_customer_id FROM stripe_customers WHERE stripe_customer_id > :after
        ORDER BY stripe_customer_id LIMIT :most
    ), strangers AS MATERIALIZED (
        SELECT c.stripe_customer_id FROM stripe_customers c JOIN stretch USING (stripe_customer_id)
        WHERE c.wanted_at IS NULL
          AND NOT EXISTS (
              SELECT FROM tenant_config t
              WHERE t.stripe_customer_id = c.stripe_customer_id AND t.stripe_customer_id <> ''
          )
          AND NOT EXISTS (SELECT FROM subscriptions s WHERE s.stripe_customer_id = c.stripe_customer_id)
        ORDER BY c.stripe_customer_id FOR UPDATE OF c SKIP LOCKED
    ), gone AS (
        DELETE FROM stripe_customers USING strangers
        WHERE stripe_customers.stripe_customer_id = strangers.stripe_customer_id
    )
    SELECT max(stripe_customer_id) FROM (SELECT stripe_customer_id FROM stretch) AS looked_at
""")
STRETCH = 5_000
LINKED_STRETCH = 5_000  # read only, in some 10 ms


def prune(connection: Connection, *, after: str) -> str:
    """Forget the next stretch's strangers: customers nobody is linked to. Where to go on; "" at the end."""
    return connection.scalar(_PRUNE, {"after": after, "most": STRETCH}) or ""
