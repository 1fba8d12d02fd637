"""The verb of reading: a tenant's document, no older than a reader may trust.

Normally one row, as it is stored. A reader that comes at or after the moment time changes a document has the
change made first. A tenant Stripe was never asked about is asked about now. Stripe being away takes nothing
down: what was last known is served, and said to be stale.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Literal

from billing import audit, clock, customers, questions, state, sync
from billing.budget import Budget
from billing.db import SYSTEM, Database, Scope
from billing.errors import Busy, StateUnknown, TenantNotFound
from billing.late import Late
from billing.state import State
from billing.stripe_api import Stripe

SYNC_EVERY = timedelta(seconds=5)
SYNC_SECONDS = 5.0  # how long a reader waits for Stripe when it asks for that
KNOW_SECONDS = 1.2  # for what was never known: services listen for 2, our own work included
WAITING = 16  # at once in a process: the rest of its threads are for those who need not wait

Synced = Literal["done", "recent", "failed"]


@dataclass(frozen=True, slots=True)
class Document:
    """What a reader gets. Documents of one tag are the same, but for their freshness."""

    body: str
    tag: str
    lasts: float | None  # seconds until time changes it
    is_stale: bool = False
    synced: Synced | None = None


class Documents:
    """The documents, for one process."""

    def __init__(self, db: Database, stripe: Stripe, budget: Budget) -> None:
        self._db = db
        self._stripe = stripe
        self._budget = budget
        self._late = Late(db)
        self._waiting = threading.BoundedSemaphore(WAITING)

    def of(self, tenant_id: str, found: State | None = None, *, revives: bool = False) -> Document:
        """The tenant's document as it is now; `found` is its row, where somebody has just read it.

        `revives` it if it was forgotten: who asks has a token of the tenant's own.
        """
        found = found or self._read(tenant_id)
        if found and found.is_known and found.edition and not found.is_due:
            return _served(found, is_stale=found.is_old or self._late.has(found.customer))
        return self._made(tenant_id, found, revives=revives)

    def synced(self, tenant_id: str, *, revives: bool = False) -> Document:
        """The same, after Stripe was asked; unless it just was, or cannot be.

        Whoever was handed a link to Stripe since then may have changed something there: it is asked again.
        """
        with self._db.begin(SYSTEM) as connection:
            customer = customers.of(connection, tenant_id)
            link = audit.last_link(connection, tenant_id)
            may = customer is not None and state.may_sync(connection, tenant_id, SYNC_EVERY, link)
        if customer is None:
            synced: Synced = "done"  # there is nothing at Stripe that could be asked about
        elif may:
            synced = "done" if self._ask(customer, SYNC_SECONDS) else "failed"
        else:
            synced = self._put_off(customer)
        document = replace(self.of(tenant_id, revives=revives), synced=synced)
        return _stale(document) if synced == "failed" else document

    def require(self, tenant_id: str) -> None:
        """`TenantNotFound` unless a token, a service or an operator has ever named this tenant.

        To be asked where anybody may be named: reading makes the row of a tenant that has none.
        """
        if self._read(tenant_id) is None:
            with self._db.begin(SYSTEM) as connection:
                if not customers.is_known(connection, tenant_id):
                    raise TenantNotFound

    def _read(self, tenant_id: str) -> State | None:
        return self._db.run(Scope.tenant(tenant_id), state.read())

    def _made(self, tenant_id: str, found: State | None, *, revives: bool) -> Document:
        """There is no document yet, or it is not what it should be by now."""
        try:
            with self._db.begin(SYSTEM) as connection:
                customer = customers.of(connection, tenant_id)
                due = [customer] if customer and found and found.is_due else []
                changed = clock.pass_by(connection, [tenant_id], due, revives=revives)
        except Busy:
            return self._unwritten(tenant_id, found)
        sync.tell(changed)
        found = self._read(tenant_id)
        unheard = found.customer if found and found.edition and not found.is_known else None
        if found is None:  # forgotten, and linked again
            unheard = customer
        if unheard:
            self._ask(unheard, KNOW_SECONDS, again=False)
            found = self._read(tenant_id)
        if found is None or not found.is_known or not found.edition:
            raise StateUnknown
        return _served(found, is_stale=found.is_old or self._late.has(found.customer))

    def _ask(self, customer: str, patience: float, *, again: bool = True) -> bool:
        """Have Stripe asked while a reader waits, unless too many do, or somebody else has the customer.

        `again`: even where it just failed.
        """
        if not self._waiting.acquire(blocking=False):
            return False
        try:
            with self._db.begin(SYSTEM) as connection:
                if not again and questions.is_resting(connection, customer):
                    return False
            return sync.now(self._db, self._stripe, self._budget, customer, patience=patience)
        except Busy:
            return False
        finally:
            self._waiting.release()

    def _put_off(self, customer: str) -> Synced:
        """Stripe was asked a moment ago; what has changed since, a worker asks about when it may be again."""
        try:
            with self._db.begin(SYSTEM) as connection:
                is_owed = questions.is_wanted(connection, customer)
                questions.want(connection, [customer], questions.Pace(after=SYNC_EVERY))
        except Busy:  # somebody else has the customer: nobody would be asked about what changes after them
            return "failed"
        return "failed" if is_owed else "recent"

    def _unwritten(self, tenant_id: str, found: State | None) -> Document:
        """Somebody else has the row: the document of now, with a tag of its own."""
        if found is None or not found.is_known or not found.edition:
            raise StateUnknown
        with self._db.begin(SYSTEM) as connection:
            one = state.evaluate(connection, [tenant_id])[tenant_id]
        as_of = json.loads(found.body)["as_of"]
        document = Document(one.body(found.version, as_of), _tag(found.version, one.digest()), 0.0)
        return _stale(document) if found.is_old or self._late.has(found.customer) else document


def _tag(version: int, digest: bytes) -> str:
    """Unlike any other tenant's, whose copy a cache may try; and unlike that of a lost database."""
    return f"{version}-{digest.hex()[:12]}"


def _served(found: State, *, is_stale: bool) -> Document:
    document = Document(found.body, _tag(found.version, found.digest), found.lasts)
    return _stale(document) if is_stale else document


def _stale(document: Document) -> Document:
    body = json.dumps({**json.loads(document.body), "stale": True})
    return replace(document, body=body, is_stale=True)
