"""Which migrations this code knows, and whether the database has had them."""

from __future__ import annotations

import functools
from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

MIGRATIONS = Path(__file__).parent.parent / "migrations"

_APPLIED = text("SELECT to_regclass('alembic_version') IS NOT NULL")
_REVISION = text("SELECT version_num FROM alembic_version")


def is_current(connection: Connection) -> bool:
    """Whether the database has our newest migration, or one we have not heard of.

    The latter is a newer release's, in the minutes when old and new code run side by side; each migration works
    with the release before it.
    """
    known, head = _revisions()
    revision = applied(connection)
    return revision == head or (revision is not None and revision not in known)


def applied(connection: Connection) -> str | None:
    """The migration the database has had last."""
    revision: str | None = connection.scalar(_REVISION) if connection.scalar(_APPLIED) else None
    return revision


def newest() -> str | None:
    """The last migration this code knows."""
    return _revisions()[1]


@functools.cache
def _revisions() -> tuple[frozenset[str], str | None]:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    scripts = ScriptDirectory.from_config(config)
    return frozenset(script.revision for script in scripts.walk_revisions()), scripts.get_current_head()
