"""The verb of time: documents that change because it passes, or because the catalogue has.

A grace period or a trial ends on the second, whether or not anybody hears of it. Where Stripe ought to have
said something by then, it is asked. Customers are locked before documents, as everywhere.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection

from billing import questions, state, sync
from billing.db import SYSTEM, Database
from billing.state import Changed


def strike(db: Database) -> int:
    """Bring up to date the documents whose moment has come. How many those were; at most a chunk."""
    with db.begin(SYSTEM) as connection:
        due = state.due(connection)
        free = questions.lock_free(connection, {customer for _, customer in due if customer})
        ours = [tenant for tenant, customer in due if not customer or customer in free]
        changed = pass_by(connection, ours, list(free))
    sync.tell(changed)
    return len(ours)


def pass_by(
    connection: Connection, tenants: Collection[str], customers: Collection[str], *, revives: bool = False
) -> list[Changed]:
    """Their moment has come: have Stripe asked about the customers, and write the documents of now."""
    questions.want(connection, customers)
    return state.refresh(connection, tenants, cause="time", revives=revives)


def catch_up(db: Database) -> int:
    """Measure documents of an earlier edition by the one in force. How many those were; at most a chunk."""
    with db.begin(SYSTEM) as connection:
        behind = state.behind(connection)
        changed = state.refresh(connection, behind, cause="catalogue")
    sync.tell(changed)
    return len(behind)


def enter(db: Database) -> int:
    """Take documents that have no place in the feed into it. How many those were; at most a chunk."""
    with db.begin(SYSTEM) as connection:
        return state.enter(connection)
