"""What differed from Stripe, and how far the looking for it has come; and the indexes by which to look.

The indexes come first and outside of a transaction, as those of the feed do: cut off, it may be run again.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

IN_SYSTEM = "current_setting('billing.scope', true) = 'system'"
INDEXES = {
    "ix_stripe_customers_answered_at": "stripe_customers (answered_at) WHERE wanted_at IS NULL",
    "ix_tenant_config_untold": (
        "tenant_config (tenant_id) WHERE untold_since IS NOT NULL AND stripe_customer_id <> ''"
    ),
}
TABLES = ("drift", "reconcile_runs", "events_listed")


def time(name: str, **options: object) -> sa.Column[object]:
    """A moment, with its zone."""
    return sa.Column(name, sa.DateTime(timezone=True), **options)  # type: ignore[arg-type]  # a column's own


def upgrade() -> None:
    """Build the indexes, create the tables, and force a policy on each."""
    with op.get_context().autocommit_block():
        for name, on in INDEXES.items():
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
            op.execute(f"CREATE INDEX CONCURRENTLY {name} ON {on}")
    create_drift()
    create_runs()
    for table in TABLES:
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY system ON {table} USING ({IN_SYSTEM})")


def create_drift() -> None:
    """One open row per tenant: what is worse takes the place of what is less."""
    op.create_table(
        "drift",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("tenant_id", sa.Text, nullable=False),
        sa.Column("stripe_customer_id", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("event_id", sa.Text),
        sa.Column("seen", sa.BigInteger, nullable=False),
        sa.Column("version_before", sa.BigInteger, nullable=False),
        sa.Column("state_before", sa.Text),
        sa.Column("version_after", sa.BigInteger),
        sa.Column("state_after", sa.Text),
        time("suspected_at", nullable=False, server_default=sa.func.clock_timestamp()),
        time("found_at"),
        time("mended_at"),
        sa.PrimaryKeyConstraint("id", name="pk_drift"),
        sa.CheckConstraint("tenant_id <> ''", name=op.f("ck_drift_tenant_id_given")),
        sa.CheckConstraint(
            "kind IN ('changed', 'missed_event', 'customer_deleted', 'foreign_customer')",
            name=op.f("ck_drift_kind_known"),
        ),
        sa.CheckConstraint("mended_at IS NULL OR found_at IS NOT NULL", name=op.f("ck_drift_found_first")),
    )
    op.create_index(
        "uq_drift_open", "drift", ["tenant_id"], unique=True, postgresql_where=sa.text("mended_at IS NULL")
    )
    op.create_index("ix_drift_found_at", "drift", ["found_at"])


def create_runs() -> None:
    """The runs of each door, and up to when Stripe's list of events is known to be here."""
    op.create_table(
        "reconcile_runs",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("door", sa.Text, nullable=False),
        time("began_at", nullable=False, server_default=sa.func.clock_timestamp()),
        time("ended_at"),
        sa.Column("place", sa.Text, nullable=False, server_default=""),
        sa.Column("compared", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("fetched", sa.BigInteger, nullable=False, server_default="0"),
        time("told_at", nullable=False, server_default=sa.func.clock_timestamp()),
        sa.PrimaryKeyConstraint("id", name="pk_reconcile_runs"),
        sa.CheckConstraint("door IN ('worker', 'command')", name=op.f("ck_reconcile_runs_door_known")),
    )
    op.create_index(
        "uq_reconcile_runs_open",
        "reconcile_runs",
        ["door"],
        unique=True,
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_table(
        "events_listed",
        sa.Column("one", sa.Boolean, nullable=False, server_default=sa.text("true")),
        time("until", nullable=False),
        sa.PrimaryKeyConstraint("one", name="pk_events_listed"),
        sa.CheckConstraint("one", name=op.f("ck_events_listed_one_row")),
    )


def downgrade() -> None:
    """Drop them."""
    for table in TABLES:
        op.drop_table(table)
    for name in INDEXES:
        op.drop_index(name)
