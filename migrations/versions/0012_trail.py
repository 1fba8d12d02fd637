"""What lets operators go through the trail by whoever and whatever it was, and count who subscribes to what.

The indexes are built beside the traffic, so outside of a transaction: run again after it was cut off, the
migration drops what it left.
"""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"

INDEXES = {
    "ix_audit_log_at_id": "audit_log (at, id)",
    "ix_audit_log_actor_at_id": "audit_log (actor, at, id)",
    "ix_audit_log_action_at_id": "audit_log (action, at, id)",
    "ix_subscription_items_price": "subscription_items (stripe_price_id, stripe_subscription_id)",
}


def upgrade() -> None:
    """Build each; it waits for the transactions under way, those of a backup included."""
    with op.get_context().autocommit_block():
        for name, columns in INDEXES.items():
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
            op.execute(f"CREATE INDEX CONCURRENTLY {name} ON {columns}")


def downgrade() -> None:
    """Drop them."""
    for name in INDEXES:
        op.execute(f"DROP INDEX {name}")
