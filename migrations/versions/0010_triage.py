"""What operators look for in the inbox: by whom or what an event is about, and where in our code it failed.

The indexes are built beside the traffic, so outside of a transaction: run again after it was cut off, the
migration drops what it left.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"

INDEXES = {
    "ix_inbox_failing": "CREATE INDEX CONCURRENTLY ix_inbox_failing ON inbox (id)"
    " WHERE state = 'due' AND reason IS NOT NULL",
    "ix_inbox_of_customer": "CREATE INDEX CONCURRENTLY ix_inbox_of_customer ON inbox (customer, id)"
    " WHERE customer IS NOT NULL AND state <> 'due'",
    "ix_inbox_of_object": "CREATE INDEX CONCURRENTLY ix_inbox_of_object ON inbox (object_id, id)"
    " WHERE customer IS NULL AND state <> 'due'",
    "ix_audit_log_stripe_object": "CREATE INDEX CONCURRENTLY ix_audit_log_stripe_object"
    " ON audit_log (stripe_object, id) WHERE NOT started AND stripe_object IS NOT NULL",
}


def upgrade() -> None:
    """Build each index, waiting for the transactions under way; then add the columns, rewriting nothing."""
    with op.get_context().autocommit_block():
        for name, create in INDEXES.items():
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
            op.execute(create)
    op.add_column("inbox", sa.Column("fault", sa.Text))
    moments = postgresql.ARRAY(sa.DateTime(timezone=True))
    op.add_column("inbox", sa.Column("failed_at", moments, nullable=False, server_default="{}"))


def downgrade() -> None:
    """Drop them."""
    op.drop_column("inbox", "failed_at")
    op.drop_column("inbox", "fault")
    for name in INDEXES:
        op.execute(f"DROP INDEX {name}")
