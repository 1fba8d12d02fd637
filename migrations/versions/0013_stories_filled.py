"""The words and states of the tenants that are there already, and the indexes they are found by.

Filled and built beside the traffic, so outside of a transaction: run again after it was cut off, it goes on. A
document that the release before writes meanwhile keeps the state it had, until it is written again: a day at
most. Rows are locked in the order of their tenants, as the service locks them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"

AT_ONCE = 5_000

INDEXES = {
    "ix_tenant_states_state": "tenant_states (state, tenant_id)",
    "ix_tenant_links_stripe_customer_id": "tenant_links (stripe_customer_id)",
}
WORDS_OF = {
    "tenant_config": "(VALUES (s.tenant_id), (s.name), (s.email))",
    "tenant_states": "(VALUES (s.tenant_id))",
}


def upgrade() -> None:
    """Fill in some thousand tenants at a time; then build each index."""
    with op.get_context().autocommit_block():
        for table in WORDS_OF:
            after: str | None = ""
            while after is not None:
                with transaction():
                    after = fill(table, after)
        for name, on in INDEXES.items():
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
            op.execute(f"CREATE INDEX CONCURRENTLY {name} ON {on}")


@contextmanager
def transaction() -> Iterator[None]:
    """One that sees every row."""
    op.execute("BEGIN")
    op.execute("SELECT set_config('billing.scope', 'system', true), set_config('lock_timeout', '4s', true)")
    op.execute("SET LOCAL enable_sort = off")  # behind row-level security, or each stretch would sort the table
    yield
    op.execute("COMMIT")


def fill(table: str, after: str) -> str | None:
    """The next stretch. Where to go on; None at the end."""
    connection = op.get_bind()
    stretch = sa.text(f"""
        SELECT tenant_id FROM {table} WHERE tenant_id > :after
        ORDER BY tenant_id LIMIT {AT_ONCE} FOR NO KEY UPDATE
    """)  # noqa: S608  # ours
    tenants: list[str] = list(connection.scalars(stretch, {"after": after}))
    if not tenants:
        return None
    words = sa.text(f"""
        INSERT INTO tenant_words (tenant_id, word)
        SELECT s.tenant_id, lower(left(w.word, 500))
        FROM {table} s CROSS JOIN LATERAL {WORDS_OF[table]} AS w (word)
        WHERE s.tenant_id = ANY(:tenants) AND w.word <> ''
        ORDER BY s.tenant_id ON CONFLICT DO NOTHING
    """)  # noqa: S608
    connection.execute(words, {"tenants": tenants})
    if table == "tenant_states":
        states = sa.text("""
            UPDATE tenant_states SET state = body::json ->> 'state'
            WHERE tenant_id = ANY(:tenants) AND body <> '' AND state IS NULL
        """)
        connection.execute(states, {"tenants": tenants})
    return tenants[-1]


def downgrade() -> None:
    """Drop the indexes; what was filled in goes with its columns."""
    for name in INDEXES:
        op.execute(f"DROP INDEX {name}")
