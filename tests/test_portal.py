"""The ticket, line by line: `POST /api/subscriptions/portal` as its acceptance criteria and test list say."""

from __future__ import annotations

from typing import Any

import pytest
import requests
from flask.testing import FlaskClient

from billing.db import Database
from sandbox.server import Control
from tests.conftest import MakeApp, create_customer, link, rows
from tests.tokens import a_token

PORTAL = "/api/subscriptions/portal"
SESSIONS = "/v1/billing_portal/sessions"


def asked_of_stripe(sandbox: Control) -> list[dict[str, Any]]:
    return [request for request in sandbox.requests() if request["path"] == SESSIONS]


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_an_authenticated_request_with_a_customer_gets_a_url(
    client: FlaskClient, headers: dict[str, str]
) -> None:
    answer = client.post(PORTAL, headers=headers)

    assert answer.status_code == 200
    assert answer.content_type == "application/json"
    assert set(answer.json or {}) == {"url"}


def test_the_portal_url_is_valid_and_accessible(client: FlaskClient, headers: dict[str, str]) -> None:
    answer = client.post(PORTAL, headers=headers)

    page = requests.get((answer.json or {})["url"])
    assert page.status_code == 200
    assert "Acme GmbH" in page.text
    assert "https://app.example.com/settings/billing" in page.text


def test_the_portal_session_is_created_in_stripe_for_the_tenants_own_customer(
    client: FlaskClient, headers: dict[str, str], customer: str, sandbox: Control
) -> None:
    client.post(PORTAL, headers=headers)

    [request] = asked_of_stripe(sandbox)
    assert request["method"] == "POST"
    assert request["params"]["customer"] == customer


@pytest.mark.parametrize("app_url", ["https://app.example.com", "https://app.example.com/"])
def test_the_return_url_is_set_correctly(
    make_app: MakeApp, headers: dict[str, str], sandbox: Control, app_url: str
) -> None:
    make_app(APP_URL=app_url).test_client().post(PORTAL, headers=headers)

    [request] = asked_of_stripe(sandbox)
    assert request["params"]["return_url"] == "https://app.example.com/settings/billing"


def test_an_unauthenticated_request_is_401(client: FlaskClient, sandbox: Control) -> None:
    answer = client.post(PORTAL)

    assert (answer.status_code, answer.data) == (401, b'{"error":"Unauthorized"}')
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert sandbox.requests() == []


def test_a_token_without_a_tenant_is_400(client: FlaskClient) -> None:
    answer = client.post(PORTAL, headers=bearer(a_token(tenant_id=None)))

    assert (answer.status_code, answer.data) == (400, b'{"error":"No tenant context found"}')


@pytest.mark.parametrize(
    "tenant", ["", "  ", 5, True, ["t_acme"], {"id": "t_acme"}, "t\x00acme", "\ud800", "t" * 256]
)
def test_a_tenant_claim_that_is_no_usable_name_is_no_tenant(client: FlaskClient, tenant: object) -> None:
    answer = client.post(PORTAL, headers=bearer(a_token(tenant_id=tenant)))

    assert (answer.status_code, answer.data) == (400, b'{"error":"No tenant context found"}')


@pytest.mark.parametrize("customer_id", ["no row", None, ""])
def test_a_tenant_without_a_stripe_customer_is_404_and_none_is_made(
    client: FlaskClient, database: Database, sandbox: Control, customer_id: str | None
) -> None:
    if customer_id != "no row":
        link(database, "t_new", customer_id)

    answer = client.post(PORTAL, headers=bearer(a_token(tenant_id="t_new")))

    assert (answer.status_code, answer.data) == (404, b'{"error":"No Stripe customer found for this tenant"}')
    assert sandbox.requests() == []


def test_stripe_failing_is_500(client: FlaskClient, headers: dict[str, str], sandbox: Control) -> None:
    sandbox.fault("500", path=SESSIONS)

    answer = client.post(PORTAL, headers=headers)

    assert (answer.status_code, answer.data) == (500, b'{"error":"Internal server error"}')
    assert answer.headers["Retry-After"]


def test_two_tenants_get_their_own_portals(
    client: FlaskClient, database: Database, headers: dict[str, str], sandbox: Control, customer: str
) -> None:
    other = create_customer(sandbox)
    link(database, "t_other", other)
    sandbox.clear()

    client.post(PORTAL, headers=headers)
    client.post(PORTAL, headers=bearer(a_token(tenant_id="t_other")))

    assert [request["params"]["customer"] for request in asked_of_stripe(sandbox)] == [customer, other]


def test_the_answer_is_a_credential_and_stored_nowhere(
    client: FlaskClient, headers: dict[str, str], database: Database
) -> None:
    answer = client.post(PORTAL, headers=headers)

    trail = rows(database, "SELECT * FROM audit_log")
    assert answer.headers["Cache-Control"] == "no-store"
    assert len(trail) == 1
    assert (answer.json or {})["url"] not in str(trail)
