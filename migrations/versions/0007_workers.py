"""Which workers are alive; and what makes the service's figures cheap however much is settled.

The indexes are built beside the traffic, so outside of a transaction: run again after it was cut off, the
migration drops what it left.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

IN_SYSTEM = "current_setting('billing.scope', true) = 'system'"

INDEXES = {
    "ix_inbox_state": "CREATE INDEX CONCURRENTLY ix_inbox_state ON inbox (state, id)"
    " WHERE state IN ('waiting', 'asking')",
    "ix_stripe_customers_unanswered": "CREATE INDEX CONCURRENTLY ix_stripe_customers_unanswered"
    " ON stripe_customers (stripe_customer_id) WHERE answered_at IS NULL",
}


def time(name: str, **options: object) -> sa.Column[object]:
    """A moment, with its zone."""
    return sa.Column(name, sa.DateTime(timezone=True), **options)  # type: ignore[arg-type]  # a column's own


def upgrade() -> None:
    """Build each index, waiting for the transactions under way; then create the table behind its policy."""
    with op.get_context().autocommit_block():
        for name, create in INDEXES.items():
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
            op.execute(create)
    op.create_table(
        "workers",
        sa.Column("id", sa.Uuid, nullable=False, server_default=sa.func.gen_random_uuid()),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("release", sa.Text),
        time("began_at", nullable=False, server_default=sa.func.clock_timestamp()),
        time("seen_at", nullable=False, server_default=sa.func.clock_timestamp()),
        sa.PrimaryKeyConstraint("id", name="pk_workers"),
    )
    op.execute("ALTER TABLE workers ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE workers FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY system ON workers USING ({IN_SYSTEM})")


def downgrade() -> None:
    """Drop them; the table's policy goes with it."""
    op.drop_table("workers")
    for name in INDEXES:
        op.execute(f"DROP INDEX {name}")
