"""The catalogue, what every tenant may use by it, and what we begin at Stripe for a tenant."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"

IN_SYSTEM = "current_setting('billing.scope', true) = 'system'"
OWN_ROW = "tenant_id = nullif(current_setting('billing.tenant', true), '')"
OWN_CUSTOMER = (
    "stripe_customer_id = (SELECT t.stripe_customer_id FROM tenant_config t"
    " WHERE t.tenant_id = nullif(current_setting('billing.tenant', true), ''))"
)
LIVE = "state IN ('opening', 'open', 'processing')"

OWN = {
    "catalogue": "current_setting('billing.scope', true) IN ('public', 'tenant')",
    "tenant_states": OWN_ROW,
    "overrides": OWN_ROW,
    "active_entitlements": OWN_CUSTOMER,
    "customer_intents": OWN_ROW,
    "checkouts": OWN_ROW,
    "checkout_turns": None,
}


def time(name: str, **options: object) -> sa.Column[object]:
    """A moment, with its zone."""
    return sa.Column(name, sa.DateTime(timezone=True), **options)  # type: ignore[arg-type]  # a column's own


def tenant(table: str) -> tuple[sa.Column[str], sa.CheckConstraint]:
    """Whose row it is."""
    given = sa.CheckConstraint("tenant_id <> ''", name=op.f(f"ck_{table}_tenant_id_given"))
    return sa.Column("tenant_id", sa.Text, nullable=False), given


def upgrade() -> None:
    """Create the tables, then force a policy on each. No row was ever written into the old `checkouts`."""
    op.drop_table("checkouts")
    op.add_column("invoices", time("due_at"))
    op.add_column("stripe_customers", time("owed_since"))
    op.execute("UPDATE stripe_customers SET owed_since = wanted_at WHERE wanted_at IS NOT NULL")
    op.create_index(
        "ix_stripe_customers_owed_since",
        "stripe_customers",
        ["owed_since"],
        postgresql_where=sa.text("owed_since IS NOT NULL"),
    )
    create_documents()
    create_checkouts()
    for table, own_rows in OWN.items():
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY system ON {table} USING ({IN_SYSTEM})")
        if own_rows:
            op.execute(f"CREATE POLICY own_rows ON {table} FOR SELECT USING ({own_rows})")


def create_documents() -> None:
    """What documents are made of, and the documents."""
    op.create_table(
        "catalogue",
        sa.Column("one", sa.Boolean, nullable=False, server_default=sa.text("true")),
        sa.Column("edition", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("reading", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("kept", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("content", JSONB, nullable=False, server_default=sa.text("'{}'")),
        sa.Column("rules", JSONB, nullable=False, server_default=sa.text("'{}'")),
        sa.Column("measure", sa.LargeBinary, nullable=False, server_default=sa.text("''")),
        time("read_at"),
        sa.PrimaryKeyConstraint("one", name="pk_catalogue"),
        sa.CheckConstraint("one", name=op.f("ck_catalogue_one_row")),
    )
    op.create_table(
        "tenant_states",
        *tenant("tenant_states"),
        sa.Column("stripe_customer_id", sa.Text),
        sa.Column("version", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("body", sa.Text, nullable=False, server_default=""),
        sa.Column("digest", sa.LargeBinary, nullable=False, server_default=sa.text("''")),
        sa.Column("why", JSONB, nullable=False, server_default=sa.text("'{}'")),
        sa.Column("edition", sa.BigInteger, nullable=False, server_default="0"),
        time("as_of"),
        time("next_look"),
        time("changed_at"),
        time("synced_at"),
        sa.PrimaryKeyConstraint("tenant_id", name="pk_tenant_states"),
    )
    op.create_index(
        "ix_tenant_states_next_look",
        "tenant_states",
        ["next_look"],
        postgresql_where=sa.text("next_look IS NOT NULL"),
    )
    op.create_index("ix_tenant_states_edition", "tenant_states", ["edition"])
    op.create_table(
        "overrides",
        *tenant("overrides"),
        sa.Column("feature", sa.Text, nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.Column("author", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        time("created_at", nullable=False, server_default=sa.func.clock_timestamp()),
        time("expires_at"),
        sa.PrimaryKeyConstraint("tenant_id", "feature", name="pk_overrides"),
        sa.CheckConstraint("author <> '' AND reason <> ''", name=op.f("ck_overrides_accounted_for")),
    )
    op.create_table(
        "active_entitlements",
        sa.Column("stripe_customer_id", sa.Text, nullable=False),
        sa.Column("lookup_key", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("stripe_customer_id", "lookup_key", name="pk_active_entitlements"),
    )


def create_checkouts() -> None:
    """At most one customer under way per tenant, and one Checkout: by unique indexes, whatever races."""
    op.create_table(
        "customer_intents",
        sa.Column("id", sa.Text, nullable=False),
        *tenant("customer_intents"),
        time("created_at", nullable=False, server_default=sa.func.clock_timestamp()),
        sa.Column("stripe_customer_id", sa.Text),
        time("closed_at"),
        sa.PrimaryKeyConstraint("id", name="pk_customer_intents"),
    )
    op.create_index(
        "uq_customer_intents_tenant_id",
        "customer_intents",
        ["tenant_id"],
        unique=True,
        postgresql_where=sa.text("closed_at IS NULL"),
    )
    op.create_table(
        "checkouts",
        sa.Column("id", sa.Text, nullable=False),
        *tenant("checkouts"),
        time("created_at", nullable=False, server_default=sa.func.clock_timestamp()),
        sa.Column("stripe_customer_id", sa.Text, nullable=False),
        sa.Column("wish", JSONB, nullable=False),
        sa.Column("params", JSONB, nullable=False),
        sa.Column("caller_key", sa.Text),
        sa.Column("stripe_session_id", sa.Text),
        time("expires_at"),
        sa.Column("state", sa.Text, nullable=False, server_default="opening"),
        sa.Column("subscription", sa.Text),
        time("looked_at"),
        sa.PrimaryKeyConstraint("id", name="pk_checkouts"),
        sa.UniqueConstraint("stripe_session_id", name="uq_checkouts_stripe_session_id"),
        sa.CheckConstraint(
            "state IN ('opening', 'open', 'processing', 'complete', 'expired', 'failed')",
            name=op.f("ck_checkouts_state_known"),
        ),
        sa.CheckConstraint(
            "state IN ('opening', 'failed') OR stripe_session_id IS NOT NULL",
            name=op.f("ck_checkouts_opened_once_known"),
        ),
    )
    op.create_index("ix_checkouts_tenant_id", "checkouts", ["tenant_id", "created_at"])
    op.create_index(
        "uq_checkouts_tenant_id", "checkouts", ["tenant_id"], unique=True, postgresql_where=sa.text(LIVE)
    )
    op.create_table(
        "checkout_turns",
        sa.Column("tenant_id", sa.Text, nullable=False),
        sa.Column("holder", sa.Text, nullable=False),
        time("until", nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", name="pk_checkout_turns"),
    )


def downgrade() -> None:
    """Drop them all; the old `checkouts` comes back as empty as it was."""
    for table in reversed(OWN):
        op.drop_table(table)
    op.drop_column("invoices", "due_at")
    op.drop_column("stripe_customers", "owed_since")
    op.create_table(
        "checkouts",
        sa.Column("stripe_session_id", sa.Text, nullable=False),
        sa.Column("tenant_id", sa.Text, nullable=False),
        time("created_at", nullable=False, server_default=sa.func.clock_timestamp()),
        sa.PrimaryKeyConstraint("stripe_session_id", name="pk_checkouts"),
        sa.CheckConstraint("tenant_id <> ''", name=op.f("ck_checkouts_tenant_id_given")),
    )
    op.execute("ALTER TABLE checkouts ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE checkouts FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY system ON checkouts USING ({IN_SYSTEM})")
    op.execute(f"CREATE POLICY own_rows ON checkouts FOR SELECT USING ({OWN_ROW})")
