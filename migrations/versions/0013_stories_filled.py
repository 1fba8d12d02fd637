"""The words and states of the tenants that are there already, and the indexes they are found by.

Filled and built beside the traffic, so outside of a transaction: run again after it was cut off, it goes on. A
document that the release before writes meanwhile keeps the state it had, until it is written again: a day at
most.
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
    yield
    op.execute("COMMIT")


def fill(table: str, after: str) -> str | None:
    """The next stretch. Where to go on; None at the end."""
    connection = op.get_bind()
    stretch = f"SELECT tenant_id FROM {table} WHERE tenant_id > :after ORDER BY tenant_id LIMIT {AT_ONCE}"  # noqa: S608
    words = sa.text(f"""
        INSERT INTO tenant_words (tenant_id, word)
        SELECT s.tenant_id, lower(left(w.word, 500))
        FROM {table} s CROSS JOIN LATERAL {WORDS_OF[table]} AS w (word)
        WHERE s.tenant_id IN ({stretch}) AND w.word <> ''
        ON CONFLICT DO NOTHING
    """)  # noqa: S608  # ours
    connection.execute(words, {"after": after})
    if table == "tenant_states":
        states = sa.text(f"""
            UPDATE tenant_states SET state = body::json ->> 'state'
            WHERE tenant_id IN ({stretch}) AND body <> '' AND state IS NULL
        """)  # noqa: S608
        connection.execute(states, {"after": after})
    last = sa.text(f"SELECT max(tenant_id) FROM ({stretch}) AS looked_at")  # noqa: S608
    on: str | None = connection.scalar(last, {"after": after})
    return on


def downgrade() -> None:
    """Drop the indexes; what was filled in goes with its columns."""
    for name in INDEXES:
        op.execute(f"DROP INDEX {name}")
