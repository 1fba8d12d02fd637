"""Tenants and the audit trail, each behind row-level security."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None

IN_SYSTEM = "current_setting('billing.scope', true) = 'system'"
OWN_ROW = "tenant_id = nullif(current_setting('billing.tenant', true), '')"


def upgrade() -> None:
    """Create both tables, and force their policies on the owner too: with one role for all, it is the owner."""
    op.create_table(
        "tenant_config",
        sa.Column("tenant_id", sa.Text, nullable=False),
        sa.Column("stripe_customer_id", sa.Text),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.PrimaryKeyConstraint("tenant_id", name="pk_tenant_config"),
        sa.CheckConstraint("tenant_id <> ''", name=op.f("ck_tenant_config_tenant_id_given")),
    )
    op.create_index(
        "uq_tenant_config_stripe_customer_id",
        "tenant_config",
        ["stripe_customer_id"],
        unique=True,
        postgresql_where=sa.text("stripe_customer_id <> ''"),
    )
    op.create_table(
        "audit_log",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.clock_timestamp()),
        sa.Column("settled_at", sa.DateTime(timezone=True)),
        sa.Column("tenant_id", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("flow", sa.Text),
        sa.Column("started", sa.Boolean, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("stripe_object", sa.Text),
        sa.Column("request_id", sa.Text),
        sa.Column("ip", postgresql.INET),
        sa.Column("user_agent", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_audit_log"),
        sa.CheckConstraint("tenant_id <> ''", name=op.f("ck_audit_log_tenant_id_given")),
        sa.CheckConstraint(
            "(outcome = 'started') = (settled_at IS NULL)", name=op.f("ck_audit_log_settled_once_known")
        ),
    )
    op.create_index("ix_audit_log_tenant_id_at", "audit_log", ["tenant_id", "at"])
    for table in ("tenant_config", "audit_log"):
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY system ON {table} USING ({IN_SYSTEM})")
        op.execute(f"CREATE POLICY own_rows ON {table} FOR SELECT USING ({OWN_ROW})")
    op.execute(f"CREATE POLICY own_attempts ON audit_log FOR INSERT WITH CHECK ({OWN_ROW})")
    op.execute(f"CREATE POLICY own_outcomes ON audit_log FOR UPDATE USING ({OWN_ROW})")


def downgrade() -> None:
    """Drop both tables; their policies go with them."""
    op.drop_table("audit_log")
    op.drop_table("tenant_config")
