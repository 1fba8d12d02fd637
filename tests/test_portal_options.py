"""What the portal route takes beyond the ticket: a body, an Idempotency-Key, roles and a limit."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import requests
from flask import Flask
from flask.testing import FlaskClient

from billing import audit
from billing.db import SYSTEM, Database, Query
from sandbox.server import Control
from tests.conftest import MakeApp, create_customer, link, rows
from tests.test_portal import PORTAL, SESSIONS, asked_of_stripe, bearer
from tests.tokens import a_token


@pytest.mark.parametrize(
    ("body", "content_type"),
    [(b"", None), (b"", "text/plain"), (b"  \n", "application/json"), (b"{}", "application/json")],
    ids=["none", "empty text", "white space", "empty object"],
)
def test_no_body_and_an_empty_one_open_the_plain_portal(
    client: FlaskClient, headers: dict[str, str], sandbox: Control, body: bytes, content_type: str | None
) -> None:
    answer = client.post(PORTAL, headers=headers, data=body, content_type=content_type)

    assert answer.status_code == 200
    [request] = asked_of_stripe(sandbox)
    assert set(request["params"]) == {"customer", "return_url"}


def test_a_flow_leads_straight_to_its_task_and_back(
    client: FlaskClient, headers: dict[str, str], sandbox: Control
) -> None:
    answer = client.post(
        PORTAL, headers=headers, json={"flow": "payment_method_update", "return_url": "/seats"}
    )

    assert answer.status_code == 200
    [request] = asked_of_stripe(sandbox)
    assert request["params"]["flow_data"] == {
        "type": "payment_method_update",
        "after_completion": {
            "type": "redirect",
            "redirect": {"return_url": "https://app.example.com/seats?billing=updated"},
        },
    }


def test_a_locale_reaches_stripe(client: FlaskClient, headers: dict[str, str], sandbox: Control) -> None:
    client.post(PORTAL, headers=headers, json={"locale": "fr-CA"})

    [request] = asked_of_stripe(sandbox)
    assert request["params"]["locale"] == "fr-CA"


def test_the_portal_configuration_is_the_operators_choice(
    make_app: MakeApp, headers: dict[str, str], sandbox: Control
) -> None:
    chosen = create_portal_configuration(sandbox)

    make_app(BILLING_PORTAL_CONFIGURATION=chosen).test_client().post(PORTAL, headers=headers)

    assert asked_of_stripe(sandbox)[-1]["params"]["configuration"] == chosen


def create_portal_configuration(sandbox: Control) -> str:
    answer = requests.post(
        f"{sandbox.url}/v1/billing_portal/configurations",
        {"features[invoice_history][enabled]": "true"},
        auth=(sandbox.key, ""),
    )
    return str(answer.json()["id"])


CANARY = "sesame-7391"
REFUSED_BODIES: dict[str, tuple[object, str]] = {
    "unknown member": ({"retrun_url": CANARY}, "retrun_url"),
    "customer of another": ({"customer": CANARY}, "customer"),
    "tenant of another": ({"tenant_id": CANARY}, "tenant_id"),
    "configuration": ({"configuration": CANARY}, "configuration"),
    "flow of no kind": ({"flow": CANARY}, "flow"),
    "flow as a number": ({"flow": 7391}, "flow"),
    "locale unknown": ({"locale": CANARY}, "locale"),
    "locale as a list": ({"locale": [CANARY]}, "locale"),
    "return_url as an object": ({"return_url": {"to": CANARY}}, "return_url"),
    "return_url as a number": ({"return_url": 7391}, "return_url"),
    "return_url elsewhere": ({"return_url": f"https://{CANARY}.example"}, "return_url"),
}


@pytest.mark.parametrize(("body", "member"), REFUSED_BODIES.values(), ids=REFUSED_BODIES)
def test_a_wrong_member_is_named_and_its_value_is_not_echoed(
    client: FlaskClient, headers: dict[str, str], sandbox: Control, body: object, member: str
) -> None:
    answer = client.post(PORTAL, headers=headers, json=body)

    refusal = answer.json or {}
    assert answer.status_code == 400
    assert refusal["param"] == member
    assert member in refusal["error"]
    assert refusal["code"] in {"invalid_request", "return_url_not_allowed"}
    assert refusal["request_id"] == answer.headers["X-Request-Id"]
    assert "7391" not in answer.text.replace(refusal["request_id"], "")  # which may have any digits
    assert asked_of_stripe(sandbox) == []


MALFORMED = {
    "cut short": b'{"flow": ',
    "two values": b"{}{}",
    "a list": b"[]",
    "a string": b'"x"',
    "null": b"null",
    "not utf-8": b'{"locale": "\xff"}',
    "half a surrogate": b'{"return_url": "\\ud800"}',
    "a NUL": b'{"return_url": "/\\u0000"}',
    "deep": b"[" * 5000,
    "NaN": b'{"return_url": NaN}',
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_malformed_json_is_400_with_a_sentence(
    client: FlaskClient, headers: dict[str, str], sandbox: Control, body: bytes
) -> None:
    answer = client.post(PORTAL, headers=headers, data=body, content_type="application/json")

    assert answer.status_code == 400
    assert (answer.json or {})["error"]
    assert asked_of_stripe(sandbox) == []


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None]
)
def test_a_body_of_another_kind_is_415(
    client: FlaskClient, headers: dict[str, str], sandbox: Control, content_type: str | None
) -> None:
    answer = client.post(PORTAL, headers=headers, data=b"flow=payment_method_update", content_type=content_type)

    assert answer.status_code == 415
    assert (answer.json or {})["error"] == "Content-Type must be application/json"
    assert asked_of_stripe(sandbox) == []


def test_a_body_past_16_kib_is_413(client: FlaskClient, headers: dict[str, str]) -> None:
    answer = client.post(PORTAL, headers=headers, json={"return_url": "/" + "x" * 17_000})

    assert answer.status_code == 413
    assert (answer.json or {})["error"] == "The request body is too large"


# ---- the same Idempotency-Key


def test_a_retry_with_the_same_key_gets_the_same_session(
    client: FlaskClient, headers: dict[str, str], sandbox: Control
) -> None:
    first = client.post(PORTAL, headers={**headers, "Idempotency-Key": "k1"})
    second = client.post(PORTAL, headers={**headers, "Idempotency-Key": "k1"})

    assert first.status_code == second.status_code == 200
    assert first.data == second.data
    assert [request["replayed"] for request in asked_of_stripe(sandbox)] == [False, True]


def test_without_a_key_every_call_is_its_own(client: FlaskClient, headers: dict[str, str]) -> None:
    assert client.post(PORTAL, headers=headers).data != client.post(PORTAL, headers=headers).data


def test_the_same_key_with_other_parameters_is_422(client: FlaskClient, headers: dict[str, str]) -> None:
    client.post(PORTAL, headers={**headers, "Idempotency-Key": "k1"}, json={"locale": "de"})

    answer = client.post(PORTAL, headers={**headers, "Idempotency-Key": "k1"}, json={"locale": "fr"})

    assert answer.status_code == 422
    assert (answer.json or {})["code"] == "idempotency_key_reused"


def test_two_tenants_with_the_same_key_never_meet(
    client: FlaskClient, database: Database, headers: dict[str, str], sandbox: Control
) -> None:
    link(database, "t_other", create_customer(sandbox))

    ours = client.post(PORTAL, headers={**headers, "Idempotency-Key": "k1"})
    theirs = client.post(PORTAL, headers={**bearer(a_token(tenant_id="t_other")), "Idempotency-Key": "k1"})

    assert ours.status_code == theirs.status_code == 200
    assert ours.data != theirs.data
    keys = {request["idempotency_key"] for request in asked_of_stripe(sandbox)}
    assert len(keys) == 2
    assert "k1" not in keys


def test_a_500_that_stripe_would_replay_is_not_worth_another_try(
    client: FlaskClient, headers: dict[str, str], sandbox: Control
) -> None:
    sandbox.fault("500", path=SESSIONS, times=1)

    first = client.post(PORTAL, headers={**headers, "Idempotency-Key": "k1"})
    again = client.post(PORTAL, headers={**headers, "Idempotency-Key": "k1"})
    with_a_new_key = client.post(PORTAL, headers={**headers, "Idempotency-Key": "k2"})

    assert (first.status_code, again.status_code, with_a_new_key.status_code) == (500, 500, 200)
    assert "Retry-After" not in first.headers
    assert "Retry-After" not in again.headers


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\there", "caf\xe9"])
def test_an_unusable_idempotency_key_is_400(client: FlaskClient, headers: dict[str, str], key: str) -> None:
    answer = client.post(PORTAL, headers={**headers, "Idempotency-Key": key})

    assert answer.status_code == 400
    assert (answer.json or {})["param"] == "Idempotency-Key"


# ---- the limit


def test_one_link_too_many_is_429_and_says_when_to_come_back(
    make_app: MakeApp, headers: dict[str, str], database: Database, sandbox: Control
) -> None:
    client = make_app(BILLING_LINKS_PER_MINUTE="3").test_client()
    allowed = [client.post(PORTAL, headers=headers).status_code for _ in range(3)]

    answer = client.post(PORTAL, headers=headers)

    assert allowed == [200, 200, 200]
    assert answer.status_code == 429
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    assert (answer.json or {})["code"] == "rate_limited"
    assert len(asked_of_stripe(sandbox)) == 3


def test_the_limit_is_per_tenant_and_ends_with_the_minute(
    make_app: MakeApp, headers: dict[str, str], database: Database, sandbox: Control
) -> None:
    client = make_app(BILLING_LINKS_PER_MINUTE="1").test_client()
    link(database, "t_other", create_customer(sandbox))
    client.post(PORTAL, headers=headers)

    other = client.post(PORTAL, headers=bearer(a_token(tenant_id="t_other")))
    limited = client.post(PORTAL, headers=headers)
    age_the_audit_log(database, seconds=61)
    later = client.post(PORTAL, headers=headers)

    assert (other.status_code, limited.status_code, later.status_code) == (200, 429, 200)


def test_attempts_that_were_limited_do_not_extend_the_limit(
    make_app: MakeApp, headers: dict[str, str], database: Database
) -> None:
    client = make_app(BILLING_LINKS_PER_MINUTE="1").test_client()
    client.post(PORTAL, headers=headers)
    age_the_audit_log(database, seconds=50)
    client.post(PORTAL, headers=headers)
    age_the_audit_log(database, seconds=11)

    assert client.post(PORTAL, headers=headers).status_code == 200


def test_those_who_are_turned_away_do_not_use_up_the_managers_links(
    make_app: MakeApp, headers: dict[str, str]
) -> None:
    client = make_app(BILLING_MANAGER_ROLES="owner", BILLING_LINKS_PER_MINUTE="2").test_client()

    turned_away = {client.post(PORTAL, headers=headers).status_code for _ in range(5)}
    manager = client.post(PORTAL, headers=bearer(a_token(roles=["owner"])))

    assert turned_away == {403}
    assert manager.status_code == 200


def test_refusals_without_end_are_answered_and_not_written_without_end(
    make_app: MakeApp, headers: dict[str, str], database: Database
) -> None:
    client = make_app(BILLING_LINKS_PER_MINUTE="1").test_client()
    client.post(PORTAL, headers=headers)
    rows(
        database,
        """
        INSERT INTO audit_log (tenant_id, actor, action, started, outcome, settled_at)
        SELECT 't_acme', 'u', 'portal', false, 'forbidden', now() FROM generate_series(1, :many) RETURNING id
        """,
        many=audit.REFUSALS_PER_MINUTE,
    )

    limited = client.post(PORTAL, headers=headers)
    refused = client.post(PORTAL, headers=headers, json={"flow": "x"})

    assert (limited.status_code, refused.status_code) == (429, 400)
    assert int(limited.headers["Retry-After"]) >= 1
    assert rows(database, "SELECT count(*) AS n FROM audit_log") == [{"n": audit.REFUSALS_PER_MINUTE + 1}]


def test_the_count_is_as_quick_for_a_tenant_with_a_long_history(database: Database) -> None:
    """The index finds the last minute; what is older is not read."""
    rows(
        database,
        """
        INSERT INTO audit_log (tenant_id, actor, action, started, outcome, at, settled_at)
        SELECT 't_acme', 'u', 'portal', true, 'opened', now() - n * interval '1 minute', now()
        FROM generate_series(1, 20000) n RETURNING id
        """,
    )
    attempt = audit.Attempt("t_acme", "u", "portal", "r", None, "")
    query = audit.start(attempt, flow=None, limit=30)
    plan = Query("plan", "EXPLAIN " + query.sql, query.values, lambda found: str(found.fetchall()))

    with database.begin(SYSTEM) as connection:
        connection.exec_driver_sql("ANALYZE audit_log")

    assert re.search(r"Index Cond: .*\bat\b > ", database.run(SYSTEM, plan))


def age_the_audit_log(database: Database, *, seconds: int) -> None:
    rows(
        database, "UPDATE audit_log SET at = at - make_interval(secs => :seconds) RETURNING id", seconds=seconds
    )


def test_the_limit_holds_across_processes_and_races(
    make_app: MakeApp, headers: dict[str, str], sandbox: Control
) -> None:
    apps = [make_app(BILLING_LINKS_PER_MINUTE="5", DATABASE_POOL_SIZE="5") for _ in range(2)]
    sandbox.latency(0.1)

    statuses = all_at_once(apps, headers, times=10)

    assert Counter(statuses) == {200: 5, 429: 15}


def all_at_once(apps: list[Flask], headers: dict[str, str], *, times: int) -> list[int]:
    """Two apps share nothing but the database, as two processes do."""
    statuses: list[int] = []
    ready = threading.Barrier(len(apps) * times)

    def ask(app: Flask) -> None:
        client = app.test_client()
        ready.wait()
        statuses.append(client.post(PORTAL, headers=headers).status_code)

    threads = [threading.Thread(target=ask, args=[app]) for app in apps for _ in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses


# ---- the trail


def test_an_opened_portal_leaves_a_settled_row_that_says_who_and_what(
    client: FlaskClient, database: Database, headers: dict[str, str], sandbox: Control
) -> None:
    client.post(
        PORTAL,
        headers={**headers, "X-Request-Id": "req-42", "User-Agent": "Firefox/140"},
        json={"flow": "payment_method_update"},
    )

    [row] = rows(database, "SELECT * FROM audit_log")
    assert row["tenant_id"] == "t_acme"
    assert row["actor"] == "u_ada"
    assert (row["action"], row["flow"], row["outcome"]) == ("portal", "payment_method_update", "opened")
    assert (row["request_id"], str(row["ip"]), row["user_agent"]) == ("req-42", "127.0.0.1", "Firefox/140")
    assert row["stripe_object"].startswith("bps_")
    assert row["settled_at"] >= row["at"]


def test_the_attempt_is_on_record_before_stripe_is_asked(
    make_app: MakeApp, database: Database, headers: dict[str, str], sandbox: Control
) -> None:
    client = make_app().test_client()
    sandbox.fault("hang", path="/v1/billing_portal")
    thread = threading.Thread(target=client.post, args=[PORTAL], kwargs={"headers": headers})
    thread.start()

    wait_until(lambda: bool(asked_of_stripe(sandbox)))
    during = rows(database, "SELECT outcome, settled_at FROM audit_log")
    sandbox.clear()
    thread.join()

    assert during == [{"outcome": "started", "settled_at": None}]


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until, "it did not happen within 10 s"
        time.sleep(0.01)


OUTCOMES: dict[str, tuple[dict[str, str], dict[str, Any], str]] = {
    "forbidden": ({"BILLING_MANAGER_ROLES": "owner"}, {}, "forbidden"),
    "wrong body": ({}, {"json": {"flow": "x"}}, "invalid_request"),
    "wrong return address": ({}, {"json": {"return_url": "//x"}}, "return_url_not_allowed"),
    "wrong kind": ({}, {"data": "x", "content_type": "text/plain"}, "unsupported_media_type"),
    "too large": ({}, {"data": "x" * 20_000, "content_type": "application/json"}, "body_too_large"),
    "wrong key": ({}, {"headers": {"Idempotency-Key": "x" * 300}}, "invalid_request"),
}


@pytest.mark.parametrize(("settings", "request_", "outcome"), OUTCOMES.values(), ids=OUTCOMES)
def test_an_attempt_that_was_turned_away_leaves_a_row_too(
    make_app: MakeApp,
    database: Database,
    headers: dict[str, str],
    settings: dict[str, str],
    request_: dict[str, Any],
    outcome: str,
) -> None:
    sent = {**request_, "headers": {**headers, **request_.get("headers", {})}}

    make_app(**settings).test_client().post(PORTAL, **sent)

    [row] = rows(database, "SELECT tenant_id, outcome, settled_at IS NOT NULL AS settled FROM audit_log")
    assert row == {"tenant_id": "t_acme", "outcome": outcome, "settled": True}


@pytest.mark.parametrize(
    ("prepare", "outcome"),
    [
        ("no customer", "NoCustomer"),
        ("500", "stripe_broken"),
        ("429", "stripe_rate_limited"),
        ("401", "stripe_key_refused"),
    ],
)
def test_an_attempt_that_failed_says_how(
    client: FlaskClient,
    database: Database,
    sandbox: Control,
    headers: dict[str, str],
    prepare: str,
    outcome: str,
) -> None:
    if prepare == "no customer":
        headers = bearer(a_token(tenant_id="t_new"))
    else:
        sandbox.fault(prepare, path="/v1/billing_portal")

    client.post(PORTAL, headers=headers)

    [row] = rows(database, "SELECT outcome, settled_at IS NOT NULL AS settled FROM audit_log")
    assert row == {"outcome": outcome, "settled": True}


def test_an_attempt_that_was_turned_away_keeps_its_flow(
    make_app: MakeApp, database: Database, headers: dict[str, str]
) -> None:
    client = make_app(BILLING_MANAGER_ROLES="owner").test_client()

    client.post(PORTAL, headers=headers, json={"flow": "payment_method_update"})

    assert rows(database, "SELECT flow, outcome FROM audit_log") == [
        {"flow": "payment_method_update", "outcome": "forbidden"}
    ]


def test_a_trail_that_cannot_be_settled_does_not_cost_the_caller_its_link(
    client: FlaskClient, database: Database, headers: dict[str, str]
) -> None:
    """Whatever the database has against it: here it is a trigger."""
    broken = """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE 'no' USING ERRCODE = '42501'; END $$;
        CREATE TRIGGER refuse BEFORE UPDATE ON audit_log FOR EACH ROW EXECUTE FUNCTION refuse()
    """
    with database.begin(SYSTEM) as connection:
        connection.exec_driver_sql(broken)
    try:
        answer = client.post(PORTAL, headers=headers)
    finally:
        with database.begin(SYSTEM) as connection:
            connection.exec_driver_sql("DROP FUNCTION refuse CASCADE")

    assert answer.status_code == 200
    assert rows(database, "SELECT outcome FROM audit_log") == [{"outcome": "started"}]


def test_a_request_that_reaches_no_tenant_leaves_no_row(client: FlaskClient, database: Database) -> None:
    client.post(PORTAL)
    client.post(PORTAL, headers=bearer(a_token(tenant_id=None)))

    assert rows(database, "SELECT * FROM audit_log") == []


def test_a_user_agent_of_any_length_and_kind_is_kept_safely(
    client: FlaskClient, database: Database, headers: dict[str, str]
) -> None:
    client.post(PORTAL, headers={**headers, "User-Agent": "x" * 5000 + "\xe9"})

    [row] = rows(database, "SELECT user_agent FROM audit_log")
    assert row["user_agent"] == "x" * 400


def test_nothing_a_caller_sends_chooses_the_tenant(
    client: FlaskClient, database: Database, headers: dict[str, str], sandbox: Control, customer: str
) -> None:
    other = create_customer(sandbox)
    link(database, "t_other", other)
    spoofs = [
        "X-Tenant-Id",
        "X-Tenant",
        "Tenant-Id",
        "X-Org-Id",
        "X-User-Id",
        "X-Stripe-Customer",
        "Nile-Tenant-Id",
    ]

    for name in spoofs:
        client.post(
            PORTAL,
            headers={**headers, name: "t_other"},
            query_string={"tenant_id": "t_other", "customer": other},
        )
        client.post(PORTAL, headers={**headers, "Cookie": "tenant_id=t_other"})

    assert {request["params"]["customer"] for request in asked_of_stripe(sandbox)} == {customer}


def test_duplicate_members_cannot_smuggle_a_second_return_address(
    client: FlaskClient, headers: dict[str, str], sandbox: Control
) -> None:
    body = json.dumps({"return_url": "/a"})[:-1] + ', "return_url": "https://evil.example"}'

    answer = client.post(PORTAL, headers=headers, data=body, content_type="application/json")

    assert answer.status_code == 400
    assert asked_of_stripe(sandbox) == []
