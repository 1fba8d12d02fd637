"""Who may use the console; and a trail of what concerns no tenant."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

IN_SYSTEM = "current_setting('billing.scope', true) = 'system'"


def time(name: str, **options: object) -> sa.Column[object]:
    """A moment, with its zone."""
    return sa.Column(name, sa.DateTime(timezone=True), **options)  # type: ignore[arg-type]  # a column's own


def upgrade() -> None:
    """Create the tables, which only the service itself sees, and let a row of the trail name no tenant."""
    op.create_table(
        "operator_sessions",
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("entry", sa.LargeBinary, nullable=False),
        time("began_at", nullable=False, server_default=sa.func.clock_timestamp()),
        time("used_at", nullable=False, server_default=sa.func.clock_timestamp()),
        sa.PrimaryKeyConstraint("hash", name="pk_operator_sessions"),
        sa.CheckConstraint("name <> ''", name=op.f("ck_operator_sessions_name_given")),
    )
    op.create_table(
        "sign_ins",
        sa.Column("tried", sa.LargeBinary, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        time("latest_at", nullable=False),
        sa.PrimaryKeyConstraint("tried", name="pk_sign_ins"),
    )
    op.create_index("ix_sign_ins_latest_at", "sign_ins", ["latest_at"])
    for table in ("operator_sessions", "sign_ins"):
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY system ON {table} USING ({IN_SYSTEM})")
    op.alter_column("audit_log", "tenant_id", nullable=True)


def downgrade() -> None:
    """Drop the tables, and the rows of the trail that the release before could not have written."""
    op.execute("DELETE FROM audit_log WHERE tenant_id IS NULL")
    op.alter_column("audit_log", "tenant_id", nullable=False)
    op.drop_table("sign_ins")
    op.drop_table("operator_sessions")
