"""What makes a tenant right again: having Stripe asked, and saying which customer it is.

Each is done by the verb that always does it; here it gets its row in the trail, and its result in words.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from billing import (
    audit,
    customers,
    deadline,
    enrolling,
    inbox,
    policy,
    questions,
    state,
    sync,
    versions,
)
from billing.audit import By
from billing.db import SYSTEM
from billing.errors import CustomerNotFound, InvalidRequest, NoCustomer, StripeFailed, TenantNotFound
from billing.events import moment, name, part
from billing.operations import masking, tenants
from billing.operations.base import SHOWN
from billing.operations.tenants import TIMES, said, word
from billing.subscriptions import Facts, Item
from billing.wiring import Billing

PATIENCE = 8.0  # how long an operator waits for Stripe
MOMENTS = frozenset({"cancel_at", "canceled_at", "ended_at", "trial_end", "pause_resumes_at", "started_at"})


@dataclass(frozen=True, slots=True)
class Synced:
    """What Stripe's answer made of a tenant's document."""

    tenant_id: str
    customer: str
    before: int  # versions
    after: int
    changes: Sequence[str]
    seconds: float
    is_current: bool  # or Stripe did not answer; a worker goes on asking


def sync_now(billing: Billing, tenant_id: str, by: By) -> Synced:
    """Bring the tenant up to date from Stripe, and wait for it."""
    with billing.db.begin(SYSTEM) as connection:
        customer = customers.of(connection, tenant_id)
        if customer is None:
            raise NoCustomer
        before = state.stored(connection, tenant_id) or state.NOWHERE
        questions.want(connection, [customer])
        audit.note(connection, by, "tenant.sync", tenant_id=tenant_id, stripe_object=customer)
    began = time.monotonic()
    is_current = sync.now(billing.db, billing.stripe, billing.budget, customer, patience=PATIENCE)
    seconds = time.monotonic() - began
    with billing.db.begin(SYSTEM) as connection:
        after = state.stored(connection, tenant_id) or state.NOWHERE
    changes = said(versions.differences(before.document or {}, after.document or {}))
    return Synced(tenant_id, customer, before.version, after.version, changes, round(seconds, 2), is_current)


# ---- beside Stripe


@dataclass(frozen=True, slots=True)
class Row:
    """Something that is held, and what Stripe says of it."""

    what: str
    here: str
    there: str
    differs: bool


@dataclass(frozen=True, slots=True)
class Sides:
    """A subscription, here and at Stripe."""

    id: str
    rows: Sequence[Row]

    @property
    def differs(self) -> bool:
        """Whether anything of it does."""
        return any(row.differs for row in self.rows)


@dataclass(frozen=True, slots=True)
class Compared:
    """A tenant, here and at Stripe."""

    tenant_id: str
    customer: str
    is_equal: bool
    document: Sequence[Row]
    subscriptions: Sequence[Sides]
    is_deleted: bool  # at Stripe
    is_overtaken: bool  # something came in meanwhile: look again
    is_owed: bool  # a worker is about to ask Stripe in any case
    seconds: float


def compare(billing: Billing, tenant_id: str) -> Compared:
    """Read the tenant's customer at Stripe and say what that would change. Nothing is written."""
    with billing.db.begin(SYSTEM) as connection:
        customer = customers.of(connection, tenant_id)
        if customer is None:
            raise NoCustomer
        is_owed = questions.is_wanted(connection, customer)
    began = time.monotonic()
    try:
        with deadline.within(PATIENCE):
            beside = sync.compare(billing.db, billing.stripe, billing.budget, customer)
    except StripeFailed as e:
        if e.reason == "unknown_customer":
            raise CustomerNotFound from e
        raise
    document = _rows(versions.flat(beside.here.document), versions.flat(beside.there.document))
    held, told = beside.here.subscriptions, beside.there.subscriptions
    sides = [Sides(id, _rows(_facts(held.get(id)), _facts(told.get(id)))) for id in sorted({*held, *told})]
    return Compared(
        tenant_id,
        customer,
        not any(row.differs for row in document) and not any(one.differs for one in sides),
        document,
        sorted(sides, key=lambda one: not one.differs),
        beside.is_deleted,
        beside.is_overtaken,
        is_owed,
        round(time.monotonic() - began, 2),
    )


def _rows(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[Row]:
    names = dict.fromkeys((*here, *there))
    return [
        Row(name.removeprefix("features."), word(a), word(b), a != b)
        for name, a, b in ((name, here.get(name), there.get(name)) for name in names)
    ]


def _facts(facts: Facts | None) -> dict[str, Any]:
    """All that is held of a subscription and is not nothing."""
    if facts is None:
        return {}
    said = {field: getattr(facts, field) for field in Facts.__slots__ if field != "items"}
    written = {
        field: policy.written(value) if field in MOMENTS else value
        for field, value in said.items()
        if value is not None
    }
    return {**written, "items": ", ".join(map(_item, facts.items))}


def _item(item: Item) -> str:
    start, end = (policy.written(at) or "" for at in (item.period_start, item.period_end))
    return f"{item.price} {TIMES} {word(item.quantity)} ({start[:10]} to {end[:10]})"


# ---- whose a customer is


@dataclass(frozen=True, slots=True)
class Candidate:
    """A customer of Stripe's, as it is to be seen before it becomes a tenant's; masked unless revealed."""

    customer: str
    tenant_id: str
    name: str | None
    email: str | None
    metadata: Mapping[str, str]
    created: datetime | None
    owner: str | None  # the tenant it is linked to already
    named: str | None  # the tenant its metadata names
    current: str | None  # the customer the tenant has now
    waiting: int  # events of it that wait for an owner, up to a screenful
    is_masked: bool

    @property
    def is_of_another(self) -> bool:
        """Whether our links say that it is another tenant's."""
        return self.owner not in (None, self.tenant_id)

    @property
    def is_named_otherwise(self) -> bool:
        """Whether its metadata names another tenant."""
        return self.named not in (None, self.tenant_id)

    @property
    def replaces(self) -> bool:
        """Whether the tenant has another customer now."""
        return self.current not in (None, self.customer)


def candidate(billing: Billing, tenant_id: str, customer: str, reveal: By | None = None) -> Candidate:
    """Look at a customer of Stripe's before it is linked. `CustomerNotFound` where there is none.

    Whoever is to `reveal` all of it says why, and for which known tenant; that it was seen stays in the trail.
    """
    if not customer.startswith("cus_"):
        raise InvalidRequest("must begin with cus_", param="customer")
    billing.budget.spend("customers.retrieve", "background")
    found = billing.stripe.customer(customer)
    if found is None or found.things[0].get("deleted"):
        raise CustomerNotFound
    thing = found.things[0]
    metadata = part(thing, "metadata") if reveal else masking.metadata(thing)
    called, email = name(thing.get("name")), name(thing.get("email"))
    with billing.db.begin(SYSTEM) as connection:
        if reveal:
            if not (state.stored(connection, tenant_id) or customers.is_known(connection, tenant_id)):
                raise TenantNotFound
            audit.note(connection, reveal, "customer.reveal", tenant_id=tenant_id, stripe_object=customer)
        owner = customers.owners(connection, [customer]).get(customer)
        current = customers.of(connection, tenant_id)
        waiting = [one for one in inbox.unsettled(connection, customer, most=SHOWN) if one.state == "waiting"]
    return Candidate(
        customer,
        tenant_id,
        called if reveal or not called else masking.MASK,
        email if reveal else masking.address(email),
        {str(key): str(value) for key, value in metadata.items()},
        tenants.moment(moment(thing.get("created"))),
        owner,
        customers.named(thing),
        current,
        len(waiting),
        is_masked=reveal is None,
    )


@dataclass(frozen=True, slots=True)
class Linked:
    """A tenant and the customer it has from now on."""

    tenant_id: str
    customer: str
    woken: int  # events that had waited for it
    is_current: bool
    is_told: bool  # or Stripe's customer does not say so yet; a worker goes on telling it


def link(
    billing: Billing, tenant_id: str, customer: str, by: By, *, replace: bool = False, whosever: bool = False
) -> Linked:
    """Make the customer the tenant's, and bring it up to date; its events are applied.

    `OtherCustomer` where the tenant has one, unless it is to `replace` that; refused in any case where it is
    another tenant's.
    """
    db, stripe, budget = billing.db, billing.stripe, billing.budget
    woken = enrolling.link(db, stripe, budget, tenant_id, customer, by=by, replace=replace, whosever=whosever)
    is_current = sync.now(db, stripe, budget, customer, patience=PATIENCE)
    is_told = enrolling.try_to_tell(db, stripe, tenant_id)
    return Linked(tenant_id, customer, woken, is_current, is_told)


@dataclass(frozen=True, slots=True)
class Unlinked:
    """A tenant and the customer it had."""

    tenant_id: str
    customer: str
    is_told: bool  # or Stripe's customer still names the tenant, for Stripe did not answer


def unlink(billing: Billing, tenant_id: str, by: By) -> Unlinked:
    """Leave the tenant without a customer. Refused while it is buying."""
    customer, is_told = enrolling.unlink(billing.db, billing.stripe, billing.budget, tenant_id, by)
    return Unlinked(tenant_id, customer, is_told)
