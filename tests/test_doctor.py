"""`flask billing doctor`: whatever can be wrong is made wrong once, and found; `--fix` mends what it can."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from billing import cataloguing, config, doctor, feed, questions, schema, workers
from billing.account import Mended
from billing.audit import By
from billing.budget import Budget
from billing.db import SYSTEM, Database
from billing.events import USED
from billing.feed import Cursor, Page
from billing.operations import health
from billing.operations.health import of_settings
from billing.stripe_api import API_VERSION, Stripe
from sandbox.server import Control, running
from tests.conftest import ROOT, SIGNING_SECRET, MakeApp, rows
from tests.deliveries import (
    Json,
    a_subscription,
    a_worker,
    an_event,
    at_stripe,
    deliver,
    subscribe,
    until_quiet,
)
from tests.test_commands import bury, say, tell

OURS = "https://billing.example.com/webhooks/stripe"
OLD = "2023-10-16"
AWAY = "postgresql://nobody@127.0.0.1:1/nothing"


@pytest.fixture(scope="module")
def stripe_stand_in() -> Iterator[Control]:
    """A sandbox of our own: what is on sale and in the portal matters here."""
    with running() as control:
        yield control


@dataclass
class Visit:
    """What the doctor found."""

    exit_code: int
    told: dict[str, Any]
    by_level: dict[str, list[str]] = field(default_factory=dict)

    def cure_of(self, words: str) -> str:
        [cure] = [one["cure"] for one in self.told["findings"] if words in one["sentence"]]
        return str(cure)


def visit(make_app: MakeApp, *words: str, **settings: str) -> Visit:
    result = say(make_app, "doctor", "--json", *words, **settings)
    assert result.exit_code in (0, 1), result.output
    told = json.loads(result.stdout)
    seen = Visit(result.exit_code, told)
    for one in told["findings"]:
        seen.by_level.setdefault(one["level"], []).append(f"{one['group']}: {one['sentence']}")
    serious = seen.by_level.get("problem", []) + seen.by_level.get("warning", [])
    assert (seen.exit_code == 1) == bool(serious), serious
    return seen


def serious(seen: Visit) -> list[str]:
    return sorted(seen.by_level.get("problem", []) + seen.by_level.get("warning", []))


@pytest.fixture
def well(sandbox: Control, database: Database, environ: dict[str, str], make_app: MakeApp) -> str:
    """A service with nothing wrong: its plan, whose price is in the portal. The price."""
    types = {f"enabled_events[{n}]": kind for n, kind in enumerate(sorted(USED))}
    at_stripe(sandbox, "POST", "webhook_endpoints", url=OURS, api_version=API_VERSION, **types)
    at_stripe(sandbox, "POST", "products", name="makes an event")
    known = at_stripe(sandbox, "GET", "prices", **{"lookup_keys[0]": "team"})["data"]
    price = str(known[0]["id"]) if known else sell(sandbox, "team")
    offer(sandbox, price)
    read_the_catalogue(sandbox, database)
    deliver(make_app().test_client(), an_event("customer.subscription.updated", a_subscription("cus_1")))
    rows(database, "UPDATE inbox SET state = 'settled', settled_at = now() RETURNING 1")
    database.run(SYSTEM, workers.beat(workers.Process()))
    return price


def sell(sandbox: Control, key: str) -> str:
    product = at_stripe(sandbox, "POST", "products", name=key.title())["id"]
    price = {"product": product, "currency": "eur", "unit_amount": 900, "recurring[interval]": "month"}
    return str(at_stripe(sandbox, "POST", "prices", lookup_key=key, **price)["id"])


def offer(sandbox: Control, price: str, **changes: str) -> None:
    """Let the portal change to it, and do all else."""
    [portal] = at_stripe(sandbox, "GET", "billing_portal/configurations", is_default="true")["data"]
    product = at_stripe(sandbox, "GET", f"prices/{price}")["product"]
    update = "features[subscription_update]"
    wanted = {
        "features[payment_method_update][enabled]": "true",
        "features[subscription_cancel][enabled]": "true",
        f"{update}[enabled]": "true",
        f"{update}[default_allowed_updates][0]": "price",
        f"{update}[products][0][product]": product,
        f"{update}[products][0][prices][0]": price,
        **changes,
    }
    at_stripe(sandbox, "POST", f"billing_portal/configurations/{portal['id']}", **wanted)


def read_the_catalogue(sandbox: Control, database: Database) -> None:
    cataloguing.read(database, Stripe(sandbox.key, base=sandbox.url), Budget(database, 100))


def test_of_a_service_that_is_well_the_doctor_says_so(make_app: MakeApp, well: str) -> None:
    result = say(make_app, "doctor")
    lines = result.output.splitlines()

    assert result.exit_code == 0, result.output
    assert lines[-1] == "All is well."
    assert [line for line in lines if not line.startswith(" ")][:-1] == [
        *("Settings", "Database", "Stripe", "Catalogue", "Tenants", "Events", "Workers"),
    ]
    assert {line.strip()[0] for line in lines if line.startswith("  ")} == {"✓", "·", "→"}
    assert f"enabled, {API_VERSION}, {len(USED)} of {len(USED)} event types" in result.output
    assert "Limit customers to one subscription" in result.output
    told = visit(make_app).told
    assert (told["problems"], told["warnings"], told["mended"]) == (0, 0, None)


# ---- settings


def test_every_fault_of_the_settings_is_told_and_all_else_is_looked_at(
    environ: dict[str, str], database: Database
) -> None:
    """The service cannot start with them. What is at fault is neither used nor shown."""
    broken = environ | {"JWT_SECRET_KEY": "short", "STRIPE_WEBHOOK_SECRET": "", "TRUSTED_PROXIES": "many"}
    del broken["APP_URL"]

    examined = subprocess.run(
        [sys.executable, "-m", "flask", "billing", "doctor", "--fix", "--url", OURS],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **broken},
        capture_output=True,
        text=True,
        check=False,
    )

    assert examined.returncode == 1
    assert {"APP_URL", "JWT_SECRET_KEY", "STRIPE_WEBHOOK_SECRET", "TRUSTED_PROXIES"} <= set(
        re.findall(r"✗ ([A-Z_]+): ", examined.stdout)
    )
    assert "✓ migrations are current" in examined.stdout
    assert "✓ the key works" in examined.stdout
    assert "· signing secrets were not looked at" in examined.stdout
    assert re.search(r"^STRIPE_WEBHOOK_SECRET=whsec_\w+$", examined.stdout, re.MULTILINE)  # now it can start
    assert examined.stderr == ""
    assert "short" not in examined.stdout
    assert "app.invalid" not in examined.stdout  # which stands in for what is not there


def test_settings_that_may_well_be_a_mistake_are_told() -> None:
    given = {
        "DATABASE_URL": AWAY,
        "APP_URL": "http://localhost:3000",
        "STRIPE_SECRET_KEY": "sk_live_of_the_tests",
        "STRIPE_WEBHOOK_SECRET": SIGNING_SECRET,
        "JWT_JWKS_URL": "https://issuer.example.com/jwks",
    }

    found = {one.level: one.sentence for one in of_settings(config.load(given), ())}

    assert found["warning"] == "APP_URL http://localhost:3000"
    assert found["note"].startswith("JWT_AUDIENCE is not set")


# ---- the database


@contextmanager
def changed(url: str, change: str, back: str) -> Iterator[None]:
    """As somebody who may do anything did it."""
    with psycopg.connect(url, autocommit=True) as anybody:
        anybody.execute(change.encode())
        yield
        anybody.execute(back.encode())


@pytest.fixture
def as_superuser(server_url: str, database_url: str) -> str:
    inside = make_url(server_url).set(database=make_url(database_url).database)
    return inside.render_as_string(hide_password=False)


INDEX = "uq_tenant_config_stripe_customer_id"
MARK = "UPDATE pg_index SET indisvalid = {} WHERE indexrelid = '" + INDEX + "'::regclass"


@pytest.mark.parametrize(
    ("change", "back", "found", "cure"),
    [
        (
            "ALTER TABLE overrides NO FORCE ROW LEVEL SECURITY",
            "ALTER TABLE overrides FORCE ROW LEVEL SECURITY",
            "no policy is forced on overrides",
            "FORCE ROW LEVEL SECURITY",
        ),
        (MARK.format("false"), MARK.format("true"), f"the index {INDEX} is not valid", f"CONCURRENTLY {INDEX}"),
        (
            "UPDATE alembic_version SET version_num = '0003'",
            f"UPDATE alembic_version SET version_num = '{schema.newest()}'",
            "has had 0003",
            "alembic upgrade head",
        ),
        (
            "ALTER TABLE workers RENAME TO away",
            "ALTER TABLE away RENAME TO workers",
            "the database refused to show it (UndefinedTable)",
            "alembic upgrade head",
        ),
    ],
    ids=["policy", "index", "migrations", "table"],
)
def test_what_is_wrong_in_the_database_is_found(
    make_app: MakeApp, well: str, as_superuser: str, change: str, back: str, found: str, cure: str
) -> None:
    with changed(as_superuser, change, back):
        seen = visit(make_app)

    assert [one for one in seen.by_level["problem"] if found in one]
    assert cure in seen.cure_of(found)
    assert any("the key works" in one for one in seen.by_level["ok"])


def test_a_newer_release_beside_this_one_is_no_trouble(make_app: MakeApp, well: str, as_superuser: str) -> None:
    set_to = "UPDATE alembic_version SET version_num = '{}'"
    with changed(as_superuser, set_to.format("9999"), set_to.format(schema.newest())):
        seen = visit(make_app)

    assert seen.exit_code == 0
    assert any("a newer release (9999" in one for one in seen.by_level["note"])


def test_a_role_that_no_policy_holds_is_found_though_the_service_would_not_start(
    make_app: MakeApp, well: str, as_superuser: str
) -> None:
    refused = visit(make_app, DATABASE_URL=as_superuser)
    allowed = visit(make_app, DATABASE_URL=as_superuser, BILLING_ALLOW_SUPERUSER="1")

    says = "row-level security does not hold this role"
    assert [one for one in refused.by_level["problem"] if says in one]
    assert [one for one in allowed.by_level["warning"] if says in one]


@pytest.mark.parametrize(("number", "level"), [(140_009, "problem"), (150_000, "ok"), (180_001, "ok")])
def test_a_server_that_is_too_old_is_found(number: int, level: str) -> None:
    assert doctor.server("any", number).level == level


def test_without_a_database_stripe_is_looked_at_all_the_same(
    make_app: MakeApp, well: str, database_url: str
) -> None:
    wrong = make_url(database_url).set(database="no_such").render_as_string(hide_password=False)

    away, nameless = visit(make_app, DATABASE_URL=AWAY), visit(make_app, DATABASE_URL=wrong)

    assert serious(away) == ["Database: the database cannot be reached: nobody listens at its address"]
    assert serious(nameless) == ["Database: the database cannot be reached: there is no such role or database"]
    assert any("the key works" in one for one in away.by_level["ok"])


# ---- Stripe


def test_a_stripe_that_does_not_answer_is_found_and_the_database_is_looked_at(
    make_app: MakeApp, well: str, sandbox: Control
) -> None:
    found = []
    for fault in ("401", "503", "reset"):
        sandbox.fault(fault)
        seen = visit(make_app)
        found += serious(seen)
        assert any("plans on sale" in one for one in seen.by_level["ok"])
        sandbox.send("DELETE", "faults")

    assert found == [
        "Stripe: Stripe does not take the key",
        "Stripe: Stripe gave no answer (broken)",
        "Stripe: Stripe gave no answer (unreachable)",
    ]


def test_what_a_restricted_key_may_not_read_is_a_note_and_the_rest_is_read(
    make_app: MakeApp, well: str, sandbox: Control
) -> None:
    sandbox.fault("403", path="/v1/webhook_endpoints")
    no_endpoints = visit(make_app)
    sandbox.fault("403")
    nothing = visit(make_app)

    assert no_endpoints.exit_code == nothing.exit_code == 0
    assert any("may not read webhook endpoints" in one for one in no_endpoints.by_level["note"])
    assert any("portal configuration" in one for one in no_endpoints.by_level["ok"])
    notes = " ".join(nothing.by_level["note"])
    assert all(f"may not read {what}" in notes for what in ("events", "webhook endpoints", "portal config"))


def test_single_answers_that_are_missing_are_problems(make_app: MakeApp, well: str, sandbox: Control) -> None:
    sandbox.fault("500", path="/v1/webhook_endpoints")
    sandbox.fault("500", path="/v1/billing_portal")

    assert serious(visit(make_app)) == [
        "Stripe: Stripe did not tell its portal configurations (broken)",
        "Stripe: Stripe did not tell its webhook endpoints (broken)",
    ]


def an_account(path: Path, *, ahead: int = 0, event: Json | None = None, **endpoint: Any) -> Path:
    """The file of a sandbox with one endpoint, as years may have left it."""
    made = {
        **{"id": "we_old", "object": "webhook_endpoint", "api_version": OLD, "application": None},
        **{"created": 1_700_000_000, "description": None, "livemode": False, "metadata": {}, "url": OURS},
        **{"enabled_events": sorted(USED), "status": "enabled"},
        "secrets": [{"secret": SIGNING_SECRET, "until": None}],
        **endpoint,
    }
    held = {
        "webhook_endpoint": {"we_old": made},
        "event": {event["id"]: event} if event else {},
        "settings": {"offset_seconds": ahead},
    }
    path.write_text(json.dumps(held))
    return path


def test_clocks_that_differ_are_found_before_signatures_fail(
    make_app: MakeApp, well: str, tmp_path: Path
) -> None:
    for seconds, level in ((20, "ok"), (120, "warning"), (3600, "problem"), (-3600, "problem")):
        with running(data=an_account(tmp_path / "stripe", ahead=seconds)) as other:
            seen = visit(make_app, STRIPE_API_BASE=other.url)

        assert any("clocks differ by" in one for one in seen.by_level[level]), seconds


@pytest.mark.parametrize(
    ("version", "sends"), [(OLD, OLD), (None, f"the account's default version, {OLD}")], ids=["own", "default"]
)
def test_an_endpoint_of_another_version_gets_a_successor_whose_secret_is_shown_once(
    make_app: MakeApp, well: str, sandbox: Control, tmp_path: Path, version: str | None, sends: str
) -> None:
    """An endpoint keeps the version it was made with. The old one stays until the new secret is in use."""
    event = at_stripe(sandbox, "GET", "events", limit=1)["data"][0] | {"api_version": OLD}
    with running(data=an_account(tmp_path / "stripe", event=event, api_version=version)) as other:
        before = visit(make_app, STRIPE_API_BASE=other.url)
        silent = say(make_app, "doctor", "--fix", "--json", STRIPE_API_BASE=other.url)
        fixed = say(make_app, "doctor", "--fix", STRIPE_API_BASE=other.url)
        after = visit(make_app, "--fix", STRIPE_API_BASE=other.url)
        endpoints = at_stripe(other, "GET", "webhook_endpoints")["data"]

    says = f"we_old at {OURS} sends {sends}, and {API_VERSION} is read here"
    assert any(f"default version is {OLD}" in one for one in before.by_level["note"])
    assert [one for one in before.by_level["warning"] if says in one]
    assert "--fix" in before.cure_of(says)
    assert (silent.exit_code, "whsec_" in silent.output) == (2, False)
    [secret] = re.findall(r"^STRIPE_WEBHOOK_SECRET=(whsec_\w{20,})$", fixed.output, re.MULTILINE)
    assert fixed.output.count("whsec_") == 1
    assert after.told["mended"] is None
    assert secret not in json.dumps(after.told)
    new, old = sorted(endpoints, key=lambda one: one["id"] == "we_old")
    assert (new["api_version"], new["enabled_events"], new["url"]) == (API_VERSION, sorted(USED), OURS)
    assert (old["id"], old["status"]) == ("we_old", "enabled")
    assert f"delete it in the Dashboard once events come by {new['id']}" in after.cure_of(says)


# ---- the webhook endpoint


def the_endpoint(sandbox: Control, **changes: str) -> str:
    [endpoint] = at_stripe(sandbox, "GET", "webhook_endpoints")["data"]
    at_stripe(sandbox, "POST", f"webhook_endpoints/{endpoint['id']}", **changes)
    return str(endpoint["id"])


def test_without_an_endpoint_one_is_made_where_it_is_said_to_be(
    make_app: MakeApp, well: str, sandbox: Control
) -> None:
    at_stripe(sandbox, "DELETE", f"webhook_endpoints/{the_endpoint(sandbox)}")

    seen = visit(make_app)
    nowhere = say(make_app, "doctor", "--fix")
    unsafe = say(make_app, "doctor", "--fix", "--url", "http://billing.example.com")
    odd = say(make_app, "doctor", "--fix", "--url", "https://billing.example.com?at=home")
    unasked = say(make_app, "doctor", "--url", "https://billing.example.com")
    made = say(make_app, "doctor", "--fix", "--url", "https://billing.example.com/")
    again = say(make_app, "doctor", "--fix")

    assert serious(seen) == ["Stripe: no webhook endpoint leads to /webhooks/stripe"]
    assert [one.exit_code for one in (nowhere, unsafe, odd, unasked)] == [2, 2, 2, 2]
    assert "--url https://<service>" in nowhere.output
    assert (made.exit_code, again.exit_code) == (0, 0)
    assert f"at {OURS}" in made.output.splitlines()[0]
    assert "whsec_" in made.output
    assert again.output.startswith("There was nothing to mend.")
    assert [one["url"] for one in at_stripe(sandbox, "GET", "webhook_endpoints")["data"]] == [OURS]


def test_a_neglected_endpoint_is_found_and_mended_and_keeps_what_else_it_sends(
    make_app: MakeApp, well: str, sandbox: Control, database: Database
) -> None:
    types = {"enabled_events[0]": "charge.refunded", "enabled_events[1]": "invoice.paid"}
    id = the_endpoint(sandbox, **types)

    lacking = visit(make_app)
    the_endpoint(sandbox, disabled="true")
    disabled = visit(make_app)
    fixed = visit(make_app, "--fix")
    again = visit(make_app, "--fix")

    [lacks] = serious(lacking)
    assert f"{id} at {OURS} lacks {len(USED) - 1} of {len(USED)} event types" in lacks
    assert serious(disabled) == [f"Stripe: webhook endpoint {id} at {OURS} is disabled"]
    assert fixed.told["mended"] == f"added {len(USED) - 1} event types to and enabled webhook endpoint {id}"
    assert (serious(fixed), again.told["mended"]) == ([], None)
    [endpoint] = at_stripe(sandbox, "GET", "webhook_endpoints")["data"]
    assert set(endpoint["enabled_events"]) == USED | {"charge.refunded"}
    deeds = rows(database, "SELECT actor, action, flow, stripe_object, reason FROM audit_log")
    assert [tuple(deed.values()) for deed in deeds] == [
        ("command", "webhook_endpoint.mend", fixed.told["mended"], id, "by command")
    ]
    with closing(Database(AWAY, pool_size=1)) as away:
        assert not health.note_mended(away, By("command", "by command"), Mended(id, "enabled"))


def test_of_several_addresses_the_one_that_is_meant_has_to_be_said(
    make_app: MakeApp, well: str, sandbox: Control
) -> None:
    staging = "https://staging.example.com/webhooks/stripe"
    other = {"url": staging, "enabled_events[0]": "*", "api_version": API_VERSION}
    at_stripe(sandbox, "POST", "webhook_endpoints", **other)
    elsewhere = {"url": "https://example.com/another/hook", "enabled_events[0]": "*"}
    at_stripe(sandbox, "POST", "webhook_endpoints", **elsewhere)

    seen, refused = visit(make_app), say(make_app, "doctor", "--fix")
    said = say(make_app, "doctor", "--fix", "--url", staging)

    assert seen.exit_code == said.exit_code == 0
    assert any("several endpoints lead to" in one for one in seen.by_level["note"])
    assert "another/hook" not in json.dumps(seen.told)
    assert refused.exit_code == 2
    assert all(address in refused.output for address in (staging, OURS))


def test_without_stripe_nothing_is_mended_and_nothing_is_made_twice(
    make_app: MakeApp, well: str, sandbox: Control
) -> None:
    the_endpoint(sandbox, disabled="true")
    sandbox.fault("503", method="POST")

    failed = say(make_app, "doctor", "--fix")
    sandbox.send("DELETE", "faults")

    assert failed.exit_code == 1
    assert "Nothing was mended (stripe_broken)" in failed.output
    assert serious(visit(make_app, "--fix")) == []


# ---- the portal and the catalogue


def test_what_the_portal_does_not_do_is_found(
    make_app: MakeApp, well: str, database: Database, sandbox: Control
) -> None:
    yearly = sell(sandbox, "team_yearly")
    hidden = at_stripe(sandbox, "POST", "products", name="Old", **{"metadata[limit.seats]": "fifty"})["id"]
    read_the_catalogue(sandbox, database)

    seen = visit(make_app)
    offer(sandbox, well, **{"features[subscription_cancel][enabled]": "false"})
    without_cancelling = visit(make_app)
    unknown = visit(make_app, BILLING_PORTAL_CONFIGURATION="bpc_unknown")
    at_stripe(sandbox, "POST", f"prices/{yearly}", active="false")  # the next test has this sandbox, too
    at_stripe(sandbox, "POST", f"products/{hidden}", **{"metadata[limit.seats]": ""})

    says = "plan team_yearly is on sale and not in the portal"
    assert [one for one in seen.by_level["warning"] if says in one]
    assert yearly in seen.cure_of(says)
    [fault] = seen.by_level["problem"]
    assert fault.startswith(f"Catalogue: {hidden}: limit.seats must be a number")
    assert any("does not let people cancel" in one for one in without_cancelling.by_level["warning"])
    assert any("no portal configuration bpc_unknown" in one for one in unknown.by_level["problem"])


def test_a_catalogue_that_is_empty_old_or_was_never_read_is_found(
    make_app: MakeApp, well: str, database: Database
) -> None:
    rows(database, "UPDATE catalogue SET read_at = now() - interval '3 h' RETURNING 1")
    old = visit(make_app)
    rows(database, "DELETE FROM catalogue RETURNING 1")
    never = visit(make_app)

    assert serious(old) == ["Catalogue: it was last read 3 h ago"]
    assert serious(never) == ["Catalogue: it was never read: nobody has a document"]


# ---- tenants, events, workers, consumers


def test_tenants_of_whom_nothing_is_known_or_who_pay_twice_are_found(
    make_app: MakeApp,
    well: str,
    database: Database,
    sandbox: Control,
    environ: dict[str, str],
    customer: str,
    acme: str,
) -> None:
    with database.begin(SYSTEM) as connection:
        questions.want(connection, [customer])
    unknown = visit(make_app)
    subscribe(sandbox, customer)
    with a_worker(environ) as worker:
        until_quiet(worker)
        database.run(SYSTEM, workers.beat(worker._process))
        known = visit(make_app)
    new = at_stripe(sandbox, "POST", "customers")["id"]
    say(make_app, "tenants", "link", acme, new, "--replace")
    database.run(SYSTEM, workers.beat(workers.Process()))
    twice = visit(make_app)

    assert serious(unknown) == ["Tenants: 1 linked to a customer, none twice; 1 of whom Stripe has never told"]
    assert serious(known) == []
    [pays_twice] = serious(twice)
    assert f"t_acme has a subscription at {customer}, too" in pays_twice


def test_events_that_wait_fail_or_do_not_come_are_found(
    make_app: MakeApp, well: str, database: Database
) -> None:
    tell(database, "cus_1")
    rows(database, "UPDATE inbox SET received_at = now() - interval '3 h' RETURNING 1")
    bury(database, tell(database, "cus_1"), "names no customer")
    nobodys = tell(database, "cus_of_nobody")
    rows(database, "UPDATE inbox SET state = 'waiting' WHERE event_id = :id RETURNING 1", id=nobodys)
    rows(database, "UPDATE inbox SET sent_at = NULL WHERE state <> 'settled' RETURNING 1")

    seen, silent = visit(make_app), visit(make_app, BILLING_EXPECT_WEBHOOK_EVERY="2h")

    assert serious(seen) == ["Events: 1 given up", "Events: 1 under way, the oldest for 3 h"]
    assert "replay --failed" in seen.cure_of("given up")
    assert any("1 wait for a tenant" in one for one in seen.by_level["note"])
    assert set(serious(silent)) - set(serious(seen)) == {
        "Events: last webhook 3 h ago, and one is expected every 2 h"
    }


def test_secrets_that_match_and_those_that_do_not_are_told_apart_and_never_shown(
    make_app: MakeApp, well: str, database: Database
) -> None:
    two = visit(make_app, STRIPE_WEBHOOK_SECRET=f"{SIGNING_SECRET},whsec_which_nobody_signs_with")
    rows(database, "DELETE FROM inbox RETURNING 1")
    fresh = visit(make_app)

    assert serious(two) == ["Events: signing secret 2 of 2 matched none of the last 1000 events"]
    assert any("signing secret 1 of 2 matched last at" in one for one in two.by_level["ok"])
    assert "whsec_" not in json.dumps(two.told)
    assert fresh.exit_code == 0
    assert any("never seen to match" in one for one in fresh.by_level["note"])


def test_workers_that_died_and_consumers_that_stay_away_are_found(
    make_app: MakeApp, well: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows(database, "UPDATE workers SET seen_at = now() - interval '1 min' RETURNING 1")
    say(make_app, "tokens", "create", "search", "--scope", "billing:read")
    rows(
        database,
        """INSERT INTO tenant_states (tenant_id, version, body, edition, as_of, position)
           VALUES ('t_1', 1, '{}', 1, now(), 1) RETURNING 1""",
    )
    with database.begin(SYSTEM) as connection:
        head = feed.overview(connection).head
    database.run(SYSTEM, feed.note("search", Page(Cursor(head.epoch, 0), [], True)))
    lately = visit(make_app)
    rows(database, "UPDATE feed_consumers SET asked_at = now() - interval '3 h' RETURNING 1")
    gone = visit(make_app)

    dead = "Workers: none is alive: events are kept, and nothing more"
    assert serious(lately) == [dead]
    assert serious(gone) == ["Consumers: search is 1 changed tenants behind, and asked 3 h ago", dead]
