"""What the operators' pages take among a million tenants and ten million events: `python -m bench.console`.

The tables are filled by a few statements: documents as the service writes them, a subscription for each, events
of which nearly all are settled, a trail of many users. Then each page of the console is opened through Flask's
own client, as one operator, with nothing else going on. Pages are found by their routes; `ASKED` has the
questions worth asking of them. What cannot be opened, or not in time, fails.
"""

from __future__ import annotations

import argparse
import logging
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import psycopg
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.security import generate_password_hash

from app import create_app
from bench import documents, machine
from bench.limits import spread, verdict
from billing import clock, config
from billing.db import Database as Ours

LIMIT_MS = 300
HOME = "/billing/console"
HERE = "https://localhost"
SEVERAL = documents.tenant(1)

# By route, or by its beginning: addresses that go further than the plain page.
ASKED: Mapping[str, Sequence[str]] = {
    "": [""],
    "/inbox": [""],
    "/inbox/events": [
        *("", "?state=buried", "?state=waiting", "?state=settled", "?type=invoice.paid", "?of=cus_nobody"),
        *(f"?of=cus_{SEVERAL}", f"?of={SEVERAL}", "?reason=names+no+customer", "?span=week"),
    ],
    "/inbox/event": ["?id=evt_7"],
    "/tenants": [
        *("", f"?q={SEVERAL}", "?q=nobody", f"?q=cus_{SEVERAL}", "?state=grace", "?state=none", "?state=never"),
        *(f"?q=sub_{SEVERAL}", "?q=in_1", "?q=evt_7", "?q=tenant-00", "?q=tenant-00&state=active"),
    ],
    "/tenants/one": [f"?id={SEVERAL}"],
    "/audit": [
        *("", "?action=portal", "?action=token.revoke", "?outcome=nothing", f"?tenant={SEVERAL}"),
        *("?who=user-7", "?who=user-7&action=token.revoke", "?action=portal&outcome=nothing"),
        "?from=2026-01-01&to=2026-01-02",
    ],
}
VALUES = {"event_id": "evt_7", "id": "7", "tenant_id": SEVERAL}
LEFT_OUT = {  # the last two are as slow as Stripe
    *("billing_console.nowhere", "billing_console.sign_in_page", "billing_console.style.sheet"),
    *("billing_console.tenants.compare", "billing_console.tenants.candidate"),
}

FILL = {
    "subscriptions": """
        INSERT INTO subscriptions (stripe_subscription_id, stripe_customer_id, status, cancel_at_period_end,
                                   facts, as_of, as_of_end, source, heard)
        SELECT 'sub_' || tenant_id, stripe_customer_id, 'active', false, '', now(), now(), 'event', 0
        FROM tenant_config
    """,
    "items": """
        INSERT INTO subscription_items (stripe_subscription_id, stripe_item_id, stripe_price_id,
                                        stripe_product_id, quantity)
        SELECT 'sub_' || tenant_id, 'si_' || tenant_id, 'price_Team', 'prod_Team', 1 FROM tenant_config
    """,
    "events": """
        INSERT INTO inbox (event_id, type, object_id, customer, created, api_version, livemode, received_at,
                           sent_at, body, state, due_at, settled_at, reason)
        SELECT 'evt_' || n, CASE mod(n, 3) WHEN 0 THEN 'invoice.paid' ELSE 'customer.subscription.updated' END,
               'sub_tenant-' || t, 'cus_tenant-' || t, at, '2026-10-28.endive', false, at, at,
               convert_to(rpad('{"id": "evt_' || n || '"', 100) || '}', 'UTF8'), state, at,
               CASE WHEN state IN ('settled', 'buried') THEN at END,
               CASE state WHEN 'buried' THEN 'names no customer' END
        FROM generate_series(1, %(events)s::bigint) AS n,
             LATERAL (SELECT to_char(mod(n, %(tenants)s), 'FM0000000'),
                             now() - interval '30 days' * (1 - n::float8 / %(events)s),
                             CASE mod(n, 1000) WHEN 7 THEN 'buried' WHEN 8 THEN 'waiting' ELSE 'settled' END
             ) AS made (t, at, state)
    """,
    "trail": """
        INSERT INTO audit_log (at, settled_at, tenant_id, actor, action, started, outcome, reason)
        SELECT at, at, 'tenant-' || to_char(mod(n * 7919, %(tenants)s), 'FM0000000'),
               CASE mod(n, 1000) WHEN 0 THEN 'ana' ELSE 'user-' || mod(n, 30011) END,
               CASE WHEN mod(n, 1000) = 0 THEN 'token.revoke' WHEN mod(n, 3) = 0 THEN 'checkout'
                    ELSE 'portal' END,
               false, 'opened', CASE mod(n, 1000) WHEN 0 THEN 'it leaked' END
        FROM generate_series(1, %(events)s::bigint) AS n,
             LATERAL (SELECT now() - interval '700 days' * (1 - n::float8 / %(events)s)) AS moment (at)
    """,
}


def main() -> int:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="billing-bench-") as scratch, ExitStack() as resources:
        Path(scratch).chmod(0o711)  # PostgreSQL may run as somebody else
        server = resources.enter_context(machine.postgres(Path(scratch)))
        database = resources.enter_context(machine.database(server, []))
        _fill(database, options.tenants, options.events)
        password = secrets.token_hex(16)
        entry = f"ana:{generate_password_hash(password, 'scrypt:32768:8:1')}:operator"
        environ = {**machine.environ(database, secrets.token_hex(32)), "BILLING_CONSOLE_USERS": entry}
        app = create_app(config.load(environ))
        resources.callback(app.extensions["billing"].db.close)
        logging.disable()  # a line for each answer would bury the figures
        client = _signed_in(app, password)
        verdicts = [_measure(client, address, options.rounds) for address in _addresses(app)]
    return not all(verdicts)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.console", description=__doc__)
    parser.add_argument("--tenants", type=int, default=1_000_000)
    parser.add_argument("--events", type=int, default=10_000_000, help="and as many rows of the trail")
    parser.add_argument("--rounds", type=int, default=9)
    return parser.parse_args()


def _fill(database: machine.Database, tenants: int, events: int) -> None:
    """Say how long each took: filling is most of the time."""
    began = time.monotonic()
    documents.fill(database, tenants)
    print(f"{tenants:,} documents made in {time.monotonic() - began:.0f} s", flush=True)
    with psycopg.connect(database.plain_url, autocommit=True) as mine:
        mine.execute("SELECT set_config('billing.scope', 'system', false)")
        for what, statement in FILL.items():
            began = time.monotonic()
            made = mine.execute(statement, {"tenants": tenants, "events": events}).rowcount
            print(f"{made:,} {what} made in {time.monotonic() - began:.0f} s", flush=True)
        mine.execute("VACUUM ANALYZE")
    db = Ours(database.url, pool_size=1)
    while clock.enter(db):
        pass
    db.close()


def _signed_in(app: Flask, password: str) -> FlaskClient:
    client = app.test_client()
    page = client.get(f"{HOME}/sign-in", base_url=HERE).text
    form = page.partition('name="form" value="')[2].partition('"')[0]
    given = {"form": form, "name": "ana", "password": password}
    if client.post(f"{HOME}/sign-in", base_url=HERE, data=given).status_code != 303:
        sys.exit("Nobody could sign in: there is nothing to measure.")
    return client


def _addresses(app: Flask) -> Iterator[str]:
    """Of every page there is, each question that is asked of it."""
    for rule in app.url_map.iter_rules():
        if rule.endpoint in LEFT_OUT or "GET" not in (rule.methods or ()) or not rule.rule.startswith(HOME):
            continue
        if unknown := rule.arguments - VALUES.keys():
            sys.exit(f"{rule.rule}: VALUES lacks {', '.join(sorted(unknown))}.")
        values = {name: VALUES[name] for name in rule.arguments}
        page = app.url_map.bind("localhost").build(rule.endpoint, values)
        for question in ASKED.get(page.removeprefix(HOME).rstrip("/"), [""]):
            yield page + question


def _measure(client: FlaskClient, address: str, rounds: int) -> bool:
    took: list[float] = []
    statuses: set[int] = set()
    for _ in range(rounds):
        began = time.perf_counter()
        answer = client.get(address, base_url=HERE)
        took.append((time.perf_counter() - began) * 1000)
        statuses.add(answer.status_code)
    holds = statuses == {200} and sorted(took)[len(took) // 2] <= LIMIT_MS
    return verdict(holds, f"{address}: {sorted(statuses)}, ms, at most {LIMIT_MS}", spread(took))


if __name__ == "__main__":
    sys.exit(main())
