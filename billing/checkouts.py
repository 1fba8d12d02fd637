"""What we began at Stripe for a tenant: its customer, and its Checkouts. `customer_intents` and `checkouts`.

No lock can span Stripe's answer. So what is to be made is committed first, with everything it will be made of,
and its id is Stripe's idempotency key: whoever takes it up again, after a crash or at the same time, makes the
same thing. A tenant has one such customer, and one Checkout under way, whatever races; a `turn` spares Stripe
the race and proves nothing.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import (
    CheckConstraint,
    Column,
    Connection,
    DateTime,
    Index,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from billing.db import metadata
from billing.events import Json

KEY_KEPT = timedelta(hours=23)  # Stripe keeps an idempotency key for 24
TURN = timedelta(seconds=25)  # longer than one takes
# A Checkout is open for a day, and Stripe will list what came of it within another.
AWAITED = timedelta(days=2)

customer_intents = Table(
    "customer_intents",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant_id", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("params", JSONB, nullable=False, server_default=text("'{}'")),  # name and e-mail, while it is open
    Column("stripe_customer_id", Text),
    Column("closed_at", DateTime(timezone=True)),
    CheckConstraint("tenant_id <> ''", name="tenant_id_given"),
    Index(
        "uq_customer_intents_tenant_id", "tenant_id", unique=True, postgresql_where=text("closed_at IS NULL")
    ),
)

checkouts = Table(
    "checkouts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant_id", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("stripe_customer_id", Text, nullable=False),
    Column("wish", JSONB, nullable=False),  # what the caller asked for
    Column("params", JSONB, nullable=False),  # what Stripe is asked for, to the letter
    Column("caller_key", Text),
    Column("stripe_session_id", Text, unique=True),
    Column("expires_at", DateTime(timezone=True)),  # as Stripe says
    Column("state", Text, nullable=False, server_default="opening"),
    Column("subscription", Text),
    Column("looked_at", DateTime(timezone=True)),  # when Stripe was last asked how it stands
    CheckConstraint("tenant_id <> ''", name="tenant_id_given"),
    CheckConstraint(
        "state IN ('opening', 'open', 'processing', 'complete', 'expired', 'failed')", name="state_known"
    ),
    CheckConstraint(
        "state IN ('opening', 'failed') OR stripe_session_id IS NOT NULL", name="opened_once_known"
    ),
    Index("ix_checkouts_tenant_id", "tenant_id", "created_at"),
    Index(
        "uq_checkouts_tenant_id",
        "tenant_id",
        unique=True,
        postgresql_where=text("state IN ('opening', 'open', 'processing')"),
    ),
)

checkout_turns = Table(
    "checkout_turns",
    metadata,
    Column("tenant_id", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("until", DateTime(timezone=True), nullable=False),
)


# ---- customers to be made


@dataclass(frozen=True, slots=True)
class Intent:
    """A customer that is being made."""

    id: str
    params: Mapping[
        str, str
    ]  # what it is called, fixed when it was begun: a key goes with what it was sent with
    is_old: bool  # Stripe may have forgotten its key


_INTEND_CUSTOMER = text("""
    INSERT INTO customer_intents (id, tenant_id, params) VALUES (:id, :tenant, CAST(:params AS jsonb))
    ON CONFLICT (tenant_id) WHERE closed_at IS NULL DO NOTHING
""")
_INTENT = text("""
    SELECT id, params, created_at < clock_timestamp() - :kept FROM customer_intents
    WHERE tenant_id = :tenant AND closed_at IS NULL
""")
_CLOSE_INTENT = text("""
    UPDATE customer_intents
    SET closed_at = clock_timestamp(), stripe_customer_id = :customer, params = '{}'
    WHERE id = :id AND closed_at IS NULL
""")


def intend_customer(connection: Connection, tenant_id: str, params: Mapping[str, str]) -> Intent:
    """The customer under way for this tenant; a new one, with these `params`, where there is none."""
    wanted = {"tenant": tenant_id, "params": json.dumps(params)}
    while True:
        connection.execute(_INTEND_CUSTOMER, {"id": uuid.uuid4().hex, **wanted})
        for row in connection.execute(_INTENT, {"tenant": tenant_id, "kept": KEY_KEPT}):
            return Intent(*row)  # and once more where it was closed in between


def close_intent(connection: Connection, intent: str, customer: str | None) -> None:
    """It has come to this customer, or to nothing: the next one gets a key of its own."""
    connection.execute(_CLOSE_INTENT, {"id": intent, "customer": customer})


# ---- Checkouts


@dataclass(frozen=True, slots=True)
class Checkout:
    """A row of ours. `session` is Stripe's id, once we know it."""

    id: str
    tenant_id: str
    customer: str
    wish: Json
    params: Json
    session: str | None
    state: str
    subscription: str | None


_COLUMNS = """
    id, tenant_id, stripe_customer_id, wish, params, stripe_session_id, state, subscription
"""
_LIVE = text(f"""
    SELECT {_COLUMNS} FROM checkouts
    WHERE tenant_id = :tenant AND state IN ('opening', 'open', 'processing')
""")  # noqa: S608  # the columns are ours
_ONE = text(f"""
    SELECT {_COLUMNS} FROM checkouts WHERE tenant_id = :tenant AND stripe_session_id = :session
""")  # noqa: S608
_BY_KEY = text("""
    SELECT wish FROM checkouts
    WHERE tenant_id = :tenant AND caller_key = :key AND created_at > clock_timestamp() - interval '24 hours'
    ORDER BY created_at DESC LIMIT 1
""")
_INTEND = text("""
    INSERT INTO checkouts (id, tenant_id, stripe_customer_id, wish, params, caller_key)
    VALUES (:id, :tenant, :customer, CAST(:wish AS jsonb), CAST(:params AS jsonb), :key)
    ON CONFLICT (tenant_id) WHERE state IN ('opening', 'open', 'processing') DO NOTHING
""")
_SETTLE = text("""
    UPDATE checkouts SET state = :state, subscription = coalesce(:subscription, subscription),
                         stripe_session_id = coalesce(stripe_session_id, :session),
                         expires_at = coalesce(to_timestamp(:expires_at), expires_at)
    WHERE id = :id AND state IN ('opening', 'open', 'processing')
      AND NOT (state = 'processing' AND :state IN ('opening', 'open'))
""")
_HEAR = text("""
    UPDATE checkouts c SET state = told.state, subscription = coalesce(told.subscription, c.subscription)
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS told (session text, state text, subscription text)
    WHERE c.stripe_session_id = told.session AND c.state IN ('open', 'processing')
      AND NOT (c.state = 'processing' AND told.state = 'processing')
""")
_CAME_WITH = text("UPDATE checkouts SET caller_key = :key WHERE id = :id AND caller_key IS NULL")
_MAY_LOOK = text("""
    UPDATE checkouts SET looked_at = clock_timestamp()
    WHERE id = :id AND (looked_at IS NULL OR looked_at <= clock_timestamp() - interval '2 seconds')
""")
_STATE_HERE = text("SELECT state FROM checkouts WHERE stripe_session_id = :session")


def live(connection: Connection, tenant_id: str) -> Checkout | None:
    """The tenant's Checkout under way."""
    row = connection.execute(_LIVE, {"tenant": tenant_id}).one_or_none()
    return Checkout(*row) if row else None


def state_of(status: str, payment_status: str | None) -> str:
    """What we call a session that stands so at Stripe: one that is done may still have to be paid."""
    if status == "complete":
        return "processing" if payment_status == "unpaid" else "complete"
    return "open" if status == "open" else "expired"


def find(connection: Connection, tenant_id: str, session: str) -> Checkout | None:
    """The tenant's own Checkout of this id."""
    row = connection.execute(_ONE, {"tenant": tenant_id, "session": session}).one_or_none()
    return Checkout(*row) if row else None


def state_here(connection: Connection, session: str) -> str | None:
    """How we think this session stands, whoever's it is; None if it is none of ours."""
    state: str | None = connection.scalar(_STATE_HERE, {"session": session})
    return state


def wished_with(connection: Connection, tenant_id: str, caller_key: str) -> Json | None:
    """What the caller asked for when it last used this Idempotency-Key."""
    wish: Json | None = connection.scalar(_BY_KEY, {"tenant": tenant_id, "key": caller_key})
    return wish


def intend(
    connection: Connection,
    tenant_id: str,
    customer: str,
    *,
    wish: Mapping[str, Any],
    params: Mapping[str, Any],
    caller_key: str | None,
) -> None:
    """Write down a Checkout before Stripe hears of it, unless another one is under way."""
    values = {"id": uuid.uuid4().hex, "tenant": tenant_id, "customer": customer}
    wanted = {"wish": json.dumps(wish), "params": json.dumps(params), "key": caller_key}
    connection.execute(_INTEND, {**values, **wanted})


def settle(
    connection: Connection,
    checkout: Checkout,
    state: str,
    *,
    session: str | None = None,
    subscription: str | None = None,
    expires_at: int | None = None,
) -> None:
    """How it stands, as Stripe has just told. One that is over stays so."""
    told = {"state": state, "session": session, "subscription": subscription, "expires_at": expires_at}
    connection.execute(_SETTLE, {"id": checkout.id, **told})


@dataclass(frozen=True, slots=True)
class News:
    """What an event says of a session."""

    session: str
    state: str
    subscription: str | None


def hear(connection: Connection, told: Iterable[News]) -> None:
    """Take in what events say, in the order they were made."""
    rows = {one.session: {name: getattr(one, name) for name in News.__slots__} for one in told}
    if rows:
        connection.execute(_HEAR, {"rows": json.dumps(list(rows.values()))})


def came_with(connection: Connection, checkout: Checkout, caller_key: str) -> None:
    """Remember the caller's key with the Checkout it was answered with, unless that has one."""
    connection.execute(_CAME_WITH, {"id": checkout.id, "key": caller_key})


def may_look(connection: Connection, checkout: Checkout) -> bool:
    """Whether Stripe was not asked about it within two seconds. If so, it now is."""
    return connection.execute(_MAY_LOOK, {"id": checkout.id}).rowcount == 1


_IS_AWAITED = text("""
    SELECT EXISTS (
        SELECT FROM checkouts c LEFT JOIN subscriptions s ON s.stripe_subscription_id = c.subscription
        WHERE c.id = (
            SELECT id FROM checkouts WHERE tenant_id = :tenant AND state = 'complete'
            ORDER BY created_at DESC LIMIT 1
        ) AND s.stripe_subscription_id IS NULL
          AND coalesce(c.created_at > clock_timestamp() - CAST(:within AS interval), true)
    )
""")


def is_awaited(connection: Connection, tenant_id: str, *, within: timedelta | None = None) -> bool:
    """Whether the latest Checkout, if begun `within` that, is complete and what was bought has not come yet."""
    return bool(connection.scalar(_IS_AWAITED, {"tenant": tenant_id, "within": within}))


# ---- turns

_TAKE_TURN = text("""
    INSERT INTO checkout_turns AS t (tenant_id, holder, until)
    VALUES (:tenant, :holder, clock_timestamp() + :turn)
    ON CONFLICT (tenant_id) DO UPDATE SET holder = excluded.holder, until = excluded.until
    WHERE t.until < clock_timestamp()
""")
_END_TURN = text("DELETE FROM checkout_turns WHERE tenant_id = :tenant AND holder = :holder")


def take_turn(connection: Connection, tenant_id: str, holder: str) -> bool:
    """Whether nobody else is opening a Checkout for this tenant just now."""
    values = {"tenant": tenant_id, "holder": holder, "turn": TURN}
    return connection.execute(_TAKE_TURN, values).rowcount == 1


def end_turn(connection: Connection, tenant_id: str, holder: str) -> None:
    """Let the next one in."""
    connection.execute(_END_TURN, {"tenant": tenant_id, "holder": holder})


# ---- for whoever links

_UNDER_WAY = text("""
    SELECT EXISTS (SELECT FROM checkouts WHERE tenant_id = :tenant
                   AND (state = 'processing' AND created_at > clock_timestamp() - interval '30 days'
                        OR state IN ('opening', 'open')
                        AND coalesce(expires_at, created_at + interval '1 day') > clock_timestamp()))
        OR EXISTS (SELECT FROM customer_intents WHERE tenant_id = :tenant AND closed_at IS NULL
                   AND created_at > clock_timestamp() - interval '1 day')
""")


def is_under_way(connection: Connection, tenant_id: str) -> bool:
    """Whether something of this tenant's is being made or paid at Stripe."""
    return bool(connection.scalar(_UNDER_WAY, {"tenant": tenant_id}))


_FORGET = tuple(
    text(f"DELETE FROM {table} WHERE tenant_id = :tenant")  # noqa: S608  # ours
    for table in ("customer_intents", "checkouts", "checkout_turns")
)


def forget(connection: Connection, tenant_id: str) -> bool:
    """Keep nothing of what was begun for the tenant. Whether there was anything."""
    return sum(connection.execute(sql, {"tenant": tenant_id}).rowcount for sql in _FORGET) > 0
