"""Runs the migrations: one at a time over all releases, impatient with locks, and seeing every row.

Row-level security is forced on tables with tenant data, for their owner too: without a scope a data migration
would change nothing and say nothing. So the scope is set here, for each migration's transaction.
"""

from __future__ import annotations

import os
import sys
import time

from alembic import context
from sqlalchemy import Connection, event, make_url, text

from billing import (
    audit,
    budget,
    catalogue,
    checkouts,
    chores,
    config,
    customers,
    directory,
    drift,
    entitlements,
    feed,
    inbox,
    invoices,
    operators,
    overrides,
    questions,
    runs,
    state,
    subscriptions,
    tokens,
    versions,
    workers,
)
from billing.db import metadata, owner_engine

# Importing the subjects is what fills `metadata`.
SUBJECTS = (
    *(audit, budget, catalogue, checkouts, chores, customers, directory, drift, entitlements, feed, inbox),
    *(invoices, operators, overrides, questions, runs, state, subscriptions, tokens, versions, workers),
)
SEQUENCES = ("inbox_id_seq",)  # read, to know what has arrived; counting needs no grant
ONE_RELEASE_AT_A_TIME = {"key": 7_238_114}  # an advisory lock: a second release waits, then finds nothing to do


def main() -> None:
    """`alembic upgrade head`, as the owner of the tables."""
    if context.is_offline_mode():
        sys.exit("Migrations run against a database only; leave out --sql.")
    try:
        service_url, owner_url = config.database_addresses(os.environ)
    except config.SettingsError as e:
        sys.exit(str(e))
    with owner_engine(owner_url).connect() as connection:
        _wait_for_our_turn(connection)
        try:
            _migrate(connection)
            _grant(connection, make_url(service_url).username)
        finally:
            connection.rollback()
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), ONE_RELEASE_AT_A_TIME)
            connection.commit()


def _wait_for_our_turn(connection: Connection) -> None:
    """Asking now and then: who waits inside a statement is waited for by the one that builds an index."""
    while not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), ONE_RELEASE_AT_A_TIME):
        connection.rollback()
        time.sleep(0.2)
    connection.commit()


def _migrate(connection: Connection) -> None:
    event.listen(connection, "begin", _enter)
    context.configure(connection=connection, target_metadata=metadata, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()
    event.remove(connection, "begin", _enter)


def _enter(connection: Connection) -> None:
    """Every row is in sight; a migration that cannot get its lock gives up before it holds up the traffic."""
    connection.exec_driver_sql(
        "SELECT set_config('billing.scope', 'system', true),"
        " set_config('lock_timeout', '4s', true), set_config('statement_timeout', '120s', true)"
    )


def _grant(connection: Connection, service_role: str | None) -> None:
    """Where the service connects as somebody else than the owner, let it in: to the rows, not to the tables."""
    if service_role is None or service_role == connection.scalar(text("SELECT current_user")):
        return
    role = connection.dialect.identifier_preparer.quote_identifier(service_role)
    connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA public TO {role}")
    for table in metadata.tables:  # by name: others may have tables here, too
        if connection.scalar(text("SELECT to_regclass(:table)"), {"table": table}):
            connection.exec_driver_sql(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {role}")
    for sequence in SEQUENCES:
        if connection.scalar(text("SELECT to_regclass(:sequence)"), {"sequence": sequence}):
            connection.exec_driver_sql(f"GRANT SELECT ON SEQUENCE {sequence} TO {role}")
    connection.exec_driver_sql(f"GRANT SELECT ON alembic_version TO {role}")
    connection.commit()


main()
