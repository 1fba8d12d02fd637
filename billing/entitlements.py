"""What Stripe's own Entitlements give a customer: the table `active_entitlements`.

Known from answers only: the event carries ten at most, and none is sent when a feature joins a product. They
say what a customer has, never whether it has access: Stripe leaves them while a subscription is paused.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection

from sqlalchemy import Column, Connection, Table, Text, text

from billing.db import metadata

active_entitlements = Table(
    "active_entitlements",
    metadata,
    Column("stripe_customer_id", Text, primary_key=True),
    Column("lookup_key", Text, primary_key=True),
)

_OF = text("""
    SELECT stripe_customer_id, lookup_key FROM active_entitlements WHERE stripe_customer_id = ANY(:customers)
""")
_DROP = text("""
    DELETE FROM active_entitlements
    WHERE stripe_customer_id = :customer
      AND lookup_key NOT IN (SELECT jsonb_array_elements_text(CAST(:keys AS jsonb)))
""")
_ADD = text("""
    INSERT INTO active_entitlements (stripe_customer_id, lookup_key)
    SELECT :customer, jsonb_array_elements_text(CAST(:keys AS jsonb)) ON CONFLICT DO NOTHING
""")


def of(connection: Connection, customers: Collection[str]) -> dict[str, frozenset[str]]:
    """The lookup keys of what these customers have, by customer."""
    found: dict[str, set[str]] = defaultdict(set)
    for customer, lookup_key in connection.execute(_OF, {"customers": list(customers)}):
        found[customer].add(lookup_key)
    return {customer: frozenset(keys) for customer, keys in found.items()}


def replace(connection: Connection, customer: str, lookup_keys: Collection[str]) -> None:
    """This is all the customer has. The caller holds the customer's lock."""
    values = {"customer": customer, "keys": json.dumps(sorted(lookup_keys))}
    connection.execute(_DROP, values)
    if lookup_keys:
        connection.execute(_ADD, values)
