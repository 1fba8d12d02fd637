"""The indexes of the feed, built beside the traffic: documents are written all the while.

Outside of a transaction, so nothing is undone where it is cut off: run again, it drops what it left.
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"

INDEXES = {
    "uq_tenant_states_position": "CREATE UNIQUE INDEX CONCURRENTLY uq_tenant_states_position"
    " ON tenant_states (position)",
    "ix_tenant_states_unfed": "CREATE INDEX CONCURRENTLY ix_tenant_states_unfed ON tenant_states (tenant_id)"
    " WHERE version > fed AND as_of IS NOT NULL AND edition > 0",
}


def upgrade() -> None:
    """Build each; it waits for the transactions under way, those of a backup included."""
    with op.get_context().autocommit_block():
        for name, create in INDEXES.items():
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
            op.execute(create)


def downgrade() -> None:
    """Drop them."""
    for name in INDEXES:
        op.execute(f"DROP INDEX {name}")
