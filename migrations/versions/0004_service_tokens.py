"""Tokens of services and what these may read; what a tenant is called."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0004"
down_revision = "0003"

IN_SYSTEM = "current_setting('billing.scope', true) = 'system'"
IN_SERVICE = "current_setting('billing.scope', true) = 'service'"
BY_STRANGER = "current_setting('billing.scope', true) = 'stranger'"


def time(name: str, **options: object) -> sa.Column[object]:
    """A moment, with its zone."""
    return sa.Column(name, sa.DateTime(timezone=True), **options)  # type: ignore[arg-type]  # a column's own


def upgrade() -> None:
    """Create the table, force its policies, and let services see every tenant's document."""
    create_tokens()
    op.execute("ALTER TABLE service_tokens ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE service_tokens FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY system ON service_tokens USING ({IN_SYSTEM})")
    op.execute(f"CREATE POLICY strangers ON service_tokens FOR SELECT USING ({BY_STRANGER})")
    op.execute(f"CREATE POLICY services ON tenant_states FOR SELECT USING ({IN_SERVICE})")
    op.add_column("tenant_config", sa.Column("name", sa.Text))
    op.add_column("tenant_config", sa.Column("email", sa.Text))
    op.add_column("tenant_config", time("untold_since"))
    op.add_column(
        "customer_intents", sa.Column("params", JSONB, nullable=False, server_default=sa.text("'{}'"))
    )


def create_tokens() -> None:
    """Two of a name may be alive at once: a slot for each, by a unique index, whatever races."""
    op.create_table(
        "service_tokens",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("slot", sa.SmallInteger, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.Column("scopes", ARRAY(sa.Text), nullable=False),
        time("created_at", nullable=False, server_default=sa.func.clock_timestamp()),
        time("expires_at"),
        time("ended_at"),
        time("last_used_at"),
        sa.PrimaryKeyConstraint("id", name="pk_service_tokens"),
        sa.UniqueConstraint("hash", name="uq_service_tokens_hash"),
        sa.CheckConstraint("name ~ '^[a-z0-9][a-z0-9._-]{0,62}$'", name=op.f("ck_service_tokens_name_plain")),
        sa.CheckConstraint("slot IN (1, 2)", name=op.f("ck_service_tokens_two_at_most")),
        sa.CheckConstraint(
            "scopes <@ ARRAY['billing:read', 'billing:write'] AND cardinality(scopes) > 0",
            name=op.f("ck_service_tokens_scopes_known"),
        ),
    )
    op.create_index(
        "uq_service_tokens_name_slot",
        "service_tokens",
        ["name", "slot"],
        unique=True,
        postgresql_where=sa.text("ended_at IS NULL"),
    )


def downgrade() -> None:
    """Drop the table and the columns; what tenants were called is lost."""
    op.drop_column("customer_intents", "params")
    for column in ("untold_since", "email", "name"):
        op.drop_column("tenant_config", column)
    op.execute("DROP POLICY services ON tenant_states")
    op.drop_table("service_tokens")
