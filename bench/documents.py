"""Documents of as many tenants as wanted: one is made by the service's own rules, and the others are like it.

Each tenant has a customer Stripe was asked about, a team's subscription in the middle of its month, and a
document of some 900 bytes that nothing makes stale. All documents have the digest of the one, and so one tag.
`bare_documents` holds the same for the bare routes.
"""

from __future__ import annotations

import json
import time

import psycopg

from bench.machine import Database
from billing import catalogue, policy
from billing.catalogue import Catalogue
from billing.db import SYSTEM
from billing.db import Database as Ours
from billing.events import Json
from billing.policy import Held, Tenant
from billing.state import Evaluated
from billing.subscriptions import Facts, Item

HALF_A_MONTH = 15 * 24 * 3600
TEAM = {
    **{f"feature.{key}": "true" for key in ("api_access", "audit_log", "custom_domain", "exports", "sso")},
    **{f"feature.{key}": "true" for key in ("priority_support", "two_factor", "webhooks", "white_label")},
    **{"limit.members": "quantity", "limit.projects": "10*quantity", "limit.storage_gb": "unlimited"},
}
FREE = {"plan": "free", "limit.projects": "3", "feature.exports": "false"}
SOLD: Json = {
    "products": [
        {"id": id, "name": name, "description": None, "active": True, "metadata": metadata, "entitles": []}
        for id, name, metadata in (("prod_Team", "Team", TEAM), ("prod_Free", "Free", FREE))
    ],
    "prices": [
        {
            **{"id": "price_Team", "product": "prod_Team", "lookup_key": "team_monthly", "active": True},
            **{"currency": "usd", "amount": 1200, "interval": "month", "interval_count": 1},
            **{"metered": False, "metadata": {}},
        }
    ],
}

FILL = (
    """
    INSERT INTO tenant_config (tenant_id, stripe_customer_id)
    SELECT tenant, 'cus_' || tenant FROM unnest(%(tenants)s::text[]) AS tenant
    """,
    """
    INSERT INTO stripe_customers (stripe_customer_id, answered_at)
    SELECT stripe_customer_id, now() FROM tenant_config
    """,
    """
    INSERT INTO tenant_states (tenant_id, stripe_customer_id, version, body, digest, why, edition, as_of,
                               next_look, changed_at)
    SELECT c.tenant_id, c.stripe_customer_id, w.version, replace(w.body, w.tenant, c.tenant_id),
           decode(w.digest, 'hex'), w.why, w.edition, to_timestamp(w.as_of), to_timestamp(w.next_look), now()
    FROM tenant_config c, jsonb_to_record(%(row)s::jsonb) AS w (
        tenant text, version bigint, digest text, body text, why jsonb, edition bigint, next_look float8,
        as_of float8)
    """,
    "CREATE TABLE bare_documents AS SELECT tenant_id, version, body::jsonb AS document FROM tenant_states",
    "ALTER TABLE bare_documents ADD PRIMARY KEY (tenant_id)",
    "VACUUM ANALYZE",
)


def tenant(number: int) -> str:
    """A tenant's id. All are equally long."""
    return f"tenant-{number:07d}"


def fill(database: Database, tenants: int) -> None:
    """Give so many tenants a document each."""
    db = Ours(database.url, pool_size=1)
    with db.begin(SYSTEM) as connection:
        catalogue.keep(connection, catalogue.begin(connection), SOLD)
        row = _row(catalogue.current(connection))
    db.close()
    values = {"tenants": [tenant(number) for number in range(tenants)], "row": json.dumps(row)}
    with psycopg.connect(database.plain_url, autocommit=True) as mine:
        mine.execute("SELECT set_config('billing.scope', 'system', false)")
        for statement in FILL:
            mine.execute(statement, values)


def _row(sold: Catalogue) -> Json:
    """The first tenant's, as the service would write it now."""
    now = int(time.time())
    began, ends = now - HALF_A_MONTH, now + HALF_A_MONTH
    facts = Facts(
        status="active",
        items=(Item("si_Bench000000001", "price_Team", "prod_Team", 5, began, ends),),
        cancel_at_period_end=False,
        cancel_at=None,
        canceled_at=None,
        ended_at=None,
        trial_end=None,
        pause_behavior=None,
        pause_resumes_at=None,
        latest_invoice_id="in_1Bench000000000000000001",
        started_at=began,
    )
    held = Held("sub_1Bench00000000000000001", facts, None)
    whose = Tenant(tenant(0), f"cus_{tenant(0)}", (held,))
    evaluation = policy.evaluate(whose, sold, (), sold.rules, now)
    one = Evaluated(whose, evaluation, sold.edition, answered_at=now, now=now)
    return one.row(1, one.digest(), now)
