"""The feed of changes: its head, a document's place in it, who reads it; and why an operator did something.

No row is rewritten here, so no lock lasts: the workers give the documents that are there their positions, 500
at a time. The release before this one goes on writing documents without one; those are found, too
(`state.enter`).
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

IN_SYSTEM = "current_setting('billing.scope', true) = 'system'"
IN_SERVICE = "current_setting('billing.scope', true) = 'service'"
OWN_NAME = "name = current_setting('billing.service', true)"


def upgrade() -> None:
    """Add the columns, create the tables, and force a policy on each."""
    op.add_column("tenant_states", sa.Column("position", sa.BigInteger))
    op.add_column("tenant_states", sa.Column("fed", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("audit_log", sa.Column("reason", sa.Text))
    op.create_table(
        "feed",
        sa.Column("one", sa.Boolean, nullable=False, server_default=sa.text("true")),
        sa.Column("position", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("seed", sa.Uuid, nullable=False, server_default=sa.func.gen_random_uuid()),
        sa.PrimaryKeyConstraint("one", name="pk_feed"),
        sa.CheckConstraint("one", name=op.f("ck_feed_one_row")),
    )
    op.create_table(
        "feed_consumers",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("epoch", sa.Text, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("asked_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_feed_consumers"),
    )
    op.execute("INSERT INTO feed DEFAULT VALUES")
    for table in ("feed", "feed_consumers"):
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY system ON {table} USING ({IN_SYSTEM})")
    op.execute(f"CREATE POLICY services ON feed FOR SELECT USING ({IN_SERVICE})")
    op.execute(f"CREATE POLICY own_row ON feed_consumers FOR SELECT USING ({IN_SERVICE} AND {OWN_NAME})")


def downgrade() -> None:
    """Drop them all; the tables' policies go with them."""
    op.drop_table("feed_consumers")
    op.drop_table("feed")
    op.drop_column("audit_log", "reason")
    op.drop_column("tenant_states", "fed")
    op.drop_column("tenant_states", "position")
