"""The inbox, what it keeps true (subscriptions, items, invoices), and how often Stripe is asked."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

IN_SYSTEM = "current_setting('billing.scope', true) = 'system'"
IN_WEBHOOK = "current_setting('billing.scope', true) = 'webhook'"
OWN_ROW = "tenant_id = nullif(current_setting('billing.tenant', true), '')"
OWN_CUSTOMER = (  # tenant_config has a policy of its own, which leaves the tenant's row
    "stripe_customer_id = (SELECT t.stripe_customer_id FROM tenant_config t"
    " WHERE t.tenant_id = nullif(current_setting('billing.tenant', true), ''))"
)
OWN_SUBSCRIPTION = "stripe_subscription_id IN (SELECT s.stripe_subscription_id FROM subscriptions s)"

OWN = {
    "inbox": None,
    "stripe_customers": None,
    "subscriptions": OWN_CUSTOMER,
    "subscription_items": OWN_SUBSCRIPTION,
    "invoices": OWN_SUBSCRIPTION,
    "checkouts": OWN_ROW,
    "tenant_links": OWN_ROW,
    "stripe_reads": None,
    "chores": None,
}


def time(name: str, **options: object) -> sa.Column[object]:
    """A moment, with its zone."""
    return sa.Column(name, sa.DateTime(timezone=True), **options)  # type: ignore[arg-type]  # a column's own


def upgrade() -> None:
    """Create the tables, then force a policy on each."""
    create_inbox()
    create_mirror()
    create_links()
    create_clocks()
    for table, own_rows in OWN.items():
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY system ON {table} USING ({IN_SYSTEM})")
        if own_rows:
            op.execute(f"CREATE POLICY own_rows ON {table} FOR SELECT USING ({own_rows})")
    op.execute(f"CREATE POLICY deliveries ON inbox FOR INSERT WITH CHECK ({IN_WEBHOOK})")


def create_inbox() -> None:
    """Bodies are bytes: JSON may hold what text refuses. lz4, where the server has it, is cheaper."""
    op.create_table(
        "inbox",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("event_id", sa.Text, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("object_id", sa.Text),
        sa.Column("customer", sa.Text),
        time("created"),
        sa.Column("api_version", sa.Text),
        sa.Column("livemode", sa.Boolean),
        time("received_at", nullable=False, server_default=sa.func.clock_timestamp()),
        time("sent_at"),
        sa.Column("secret", sa.Text),
        sa.Column("trace", sa.Text),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("state", sa.Text, nullable=False, server_default="due"),
        time("due_at", nullable=False, server_default=sa.func.clock_timestamp()),
        sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
        sa.Column("held", sa.Text),
        sa.Column("lapses", sa.Integer, nullable=False, server_default="0"),
        sa.Column("failures", sa.Integer, nullable=False, server_default="0"),
        sa.Column("looks", sa.Integer, nullable=False, server_default="0"),
        time("settled_at"),
        sa.Column("reason", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_inbox"),
        sa.UniqueConstraint("event_id", name="uq_inbox_event_id"),
        sa.CheckConstraint(
            "state IN ('due', 'waiting', 'asking', 'settled', 'buried')", name=op.f("ck_inbox_state_known")
        ),
        sa.CheckConstraint(
            "held IN ('together', 'alone') AND state = 'due' OR held IS NULL",
            name=op.f("ck_inbox_held_while_due"),
        ),
        sa.CheckConstraint(
            "(state IN ('settled', 'buried')) = (settled_at IS NOT NULL)",
            name=op.f("ck_inbox_settled_once_finished"),
        ),
        sa.CheckConstraint(
            "state <> 'buried' OR reason IS NOT NULL", name=op.f("ck_inbox_buried_with_a_reason")
        ),
    )
    op.create_index("ix_inbox_due_at", "inbox", ["due_at", "id"], postgresql_where=sa.text("state = 'due'"))
    op.create_index(
        "ix_inbox_customer",
        "inbox",
        ["customer", "id"],
        postgresql_where=sa.text("state IN ('waiting', 'asking')"),
    )
    op.create_index("ix_inbox_buried", "inbox", ["id"], postgresql_where=sa.text("state = 'buried'"))
    op.execute("""
        DO $$ BEGIN
            IF EXISTS (
                SELECT FROM pg_settings WHERE name = 'default_toast_compression' AND 'lz4' = ANY (enumvals)
            )
            THEN ALTER TABLE inbox ALTER COLUMN body SET COMPRESSION lz4;
            END IF;
        END $$
    """)


def create_mirror() -> None:
    """What is held of Stripe's: one row per customer, subscription, item and invoice."""
    op.create_table(
        "stripe_customers",
        sa.Column("stripe_customer_id", sa.Text, nullable=False),
        time("deleted_at"),
        sa.Column("heard", sa.BigInteger, nullable=False, server_default="0"),
        time("latest_created"),
        time("wanted_at"),
        sa.Column("put", sa.BigInteger, nullable=False, server_default="0"),
        time("asking_until"),
        sa.Column("failures", sa.Integer, nullable=False, server_default="0"),
        sa.Column("answered", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("answered_seen", sa.BigInteger, nullable=False, server_default="0"),
        time("answered_at"),
        sa.PrimaryKeyConstraint("stripe_customer_id", name="pk_stripe_customers"),
    )
    op.create_index(
        "ix_stripe_customers_wanted_at",
        "stripe_customers",
        ["wanted_at"],
        postgresql_where=sa.text("wanted_at IS NOT NULL"),
    )
    op.create_table(
        "subscriptions",
        sa.Column("stripe_subscription_id", sa.Text, nullable=False),
        sa.Column("stripe_customer_id", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("cancel_at_period_end", sa.Boolean, nullable=False),
        time("cancel_at"),
        time("canceled_at"),
        time("ended_at"),
        time("trial_end"),
        sa.Column("pause_behavior", sa.Text),
        time("pause_resumes_at"),
        sa.Column("latest_invoice_id", sa.Text),
        time("started_at"),
        sa.Column("facts", sa.LargeBinary, nullable=False),
        time("as_of", nullable=False),
        time("as_of_end", nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("heard", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("stripe_subscription_id", name="pk_subscriptions"),
        sa.CheckConstraint("source IN ('event', 'answer')", name=op.f("ck_subscriptions_source_known")),
        sa.CheckConstraint("as_of <= as_of_end", name=op.f("ck_subscriptions_as_of_in_order")),
    )
    op.create_index("ix_subscriptions_stripe_customer_id", "subscriptions", ["stripe_customer_id"])
    op.create_table(
        "subscription_items",
        sa.Column("stripe_subscription_id", sa.Text, nullable=False),
        sa.Column("stripe_item_id", sa.Text, nullable=False),
        sa.Column("stripe_price_id", sa.Text, nullable=False),
        sa.Column("stripe_product_id", sa.Text, nullable=False),
        sa.Column("quantity", sa.BigInteger),
        time("period_start"),
        time("period_end"),
        sa.PrimaryKeyConstraint("stripe_subscription_id", "stripe_item_id", name="pk_subscription_items"),
        sa.ForeignKeyConstraint(
            ["stripe_subscription_id"],
            ["subscriptions.stripe_subscription_id"],
            name="fk_subscription_items_stripe_subscription_id_subscriptions",
            ondelete="CASCADE",
        ),
    )
    op.create_table(  # no foreign key: an invoice may be heard of before its subscription
        "invoices",
        sa.Column("stripe_invoice_id", sa.Text, nullable=False),
        sa.Column("stripe_subscription_id", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("attempted", sa.Boolean, nullable=False),
        time("finalized_at"),
        time("as_of", nullable=False),
        sa.PrimaryKeyConstraint("stripe_invoice_id", name="pk_invoices"),
        sa.CheckConstraint(
            "status IN ('draft', 'open', 'uncollectible', 'paid', 'void')",
            name=op.f("ck_invoices_status_known"),
        ),
    )
    op.create_index("ix_invoices_stripe_subscription_id", "invoices", ["stripe_subscription_id"])


def create_links() -> None:
    """Whose a Stripe customer may become, and whose it was."""
    op.create_table(
        "checkouts",
        sa.Column("stripe_session_id", sa.Text, nullable=False),
        sa.Column("tenant_id", sa.Text, nullable=False),
        time("created_at", nullable=False, server_default=sa.func.clock_timestamp()),
        sa.PrimaryKeyConstraint("stripe_session_id", name="pk_checkouts"),
        sa.CheckConstraint("tenant_id <> ''", name=op.f("ck_checkouts_tenant_id_given")),
    )
    op.create_table(
        "tenant_links",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("tenant_id", sa.Text, nullable=False),
        sa.Column("stripe_customer_id", sa.Text, nullable=False),
        sa.Column("linked_by", sa.Text, nullable=False),
        time("linked_at", nullable=False, server_default=sa.func.clock_timestamp()),
        time("unlinked_at"),
        sa.PrimaryKeyConstraint("id", name="pk_tenant_links"),
        sa.CheckConstraint("tenant_id <> ''", name=op.f("ck_tenant_links_tenant_id_given")),
    )
    op.create_index("ix_tenant_links_tenant_id", "tenant_links", ["tenant_id"])


def create_clocks() -> None:
    """What all processes together may ask of Stripe, and what they do now and then."""
    op.create_table(
        "stripe_reads",
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("lane", sa.Text, nullable=False),
        time("reserved_until", nullable=False),
        sa.PrimaryKeyConstraint("endpoint", "lane", name="pk_stripe_reads"),
    )
    op.create_table(
        "chores",
        sa.Column("name", sa.Text, nullable=False),
        time("due_at", nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_chores"),
    )


def downgrade() -> None:
    """Drop them all; their policies go with them."""
    for table in ("subscription_items", *(table for table in reversed(OWN) if table != "subscription_items")):
        op.drop_table(table)
