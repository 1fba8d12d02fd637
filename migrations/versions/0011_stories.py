"""How documents came to say what they say, and by what operators find their tenants.

Whatever a tenant is found by is a column that is compared as it is: behind row-level security, no index of an
expression is ever searched. Triggers keep the words, for services of the house write `tenant_config` too, and
so does the release before. Neither may write the words themselves: the function does it by its owner's rights,
as the service itself, and nobody else may hang it on a table of their own.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0011"
down_revision = "0010"

IN_SYSTEM = "current_setting('billing.scope', true) = 'system'"
KEEP_WORDS = """
    CREATE FUNCTION keep_tenant_words() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    DECLARE
        writers text := current_setting('billing.scope', true);
    BEGIN
        PERFORM set_config('billing.scope', 'system', true);
        IF TG_OP = 'UPDATE' OR TG_OP = 'DELETE' THEN
            DELETE FROM tenant_words
            WHERE tenant_id = OLD.tenant_id AND word <> lower(left(OLD.tenant_id, 500));
        END IF;
        IF TG_TABLE_NAME = 'tenant_states' THEN
            INSERT INTO tenant_words (tenant_id, word) VALUES (NEW.tenant_id, lower(left(NEW.tenant_id, 500)))
            ON CONFLICT DO NOTHING;
        ELSIF TG_OP <> 'DELETE' THEN
            INSERT INTO tenant_words (tenant_id, word)
            SELECT NEW.tenant_id, lower(left(w.word, 500))
            FROM (VALUES (NEW.tenant_id), (NEW.name), (NEW.email)) AS w (word) WHERE w.word <> ''
            ON CONFLICT DO NOTHING;
        END IF;
        PERFORM set_config('billing.scope', coalesce(writers, ''), true);
        RETURN NULL;
    END $$
"""
TRIGGERS = {
    "tenant_config": "AFTER INSERT OR DELETE OR UPDATE OF name, email",
    "tenant_states": "AFTER INSERT",
}


def time(name: str, **options: object) -> sa.Column[object]:
    """A moment, with its zone."""
    return sa.Column(name, sa.DateTime(timezone=True), **options)  # type: ignore[arg-type]  # a column's own


def upgrade() -> None:
    """Create the tables behind their policies; documents get a column for their state."""
    create_versions()
    create_words()
    op.add_column("tenant_states", sa.Column("state", sa.Text))


def create_versions() -> None:
    """A row for each version from now on."""
    op.create_table(
        "tenant_versions",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("tenant_id", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        time("at", nullable=False, server_default=sa.func.clock_timestamp()),
        sa.Column("cause", sa.Text, nullable=False),
        sa.Column("events", ARRAY(sa.Text), nullable=False, server_default=sa.text("'{}'")),
        sa.Column("changes", JSONB, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_tenant_versions"),
        sa.CheckConstraint("tenant_id <> ''", name=op.f("ck_tenant_versions_tenant_id_given")),
    )
    op.create_index("ix_tenant_versions_tenant_id_at", "tenant_versions", ["tenant_id", "at", "id"])
    hide("tenant_versions")


def create_words() -> None:
    """Ids, names and e-mail addresses in lower case, compared byte by byte."""
    op.create_table(
        "tenant_words",
        sa.Column("word", sa.Text(collation="C"), nullable=False),
        sa.Column("tenant_id", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("word", "tenant_id", name="pk_tenant_words"),
        sa.CheckConstraint("tenant_id <> ''", name=op.f("ck_tenant_words_tenant_id_given")),
    )
    op.create_index("ix_tenant_words_tenant_id", "tenant_words", ["tenant_id"])
    hide("tenant_words")
    op.execute(KEEP_WORDS)
    op.execute("REVOKE EXECUTE ON FUNCTION keep_tenant_words() FROM PUBLIC")
    for table, when in TRIGGERS.items():
        op.execute(
            f"CREATE TRIGGER keep_words {when} ON {table} FOR EACH ROW EXECUTE FUNCTION keep_tenant_words()"
        )


def hide(table: str) -> None:
    """From everybody but the service itself."""
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY system ON {table} USING ({IN_SYSTEM})")


def downgrade() -> None:
    """Drop all of it; policies and indexes go with their tables."""
    for table in TRIGGERS:
        op.execute(f"DROP TRIGGER keep_words ON {table}")
    op.execute("DROP FUNCTION keep_tenant_words()")
    op.drop_table("tenant_words")
    op.drop_table("tenant_versions")
    op.drop_column("tenant_states", "state")
