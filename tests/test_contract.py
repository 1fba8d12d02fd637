"""One error shape for everything, and a description that tells the truth."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from flask import Flask, request
from flask.testing import FlaskClient
from hypothesis import HealthCheck, Phase, given, settings
from openapi_spec_validator import validate
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import positive_data_acceptance

from billing import wiring
from billing.config import load
from billing.db import Database
from billing.web import mount
from tests.conftest import MakeApp
from tests.deliveries import a_catalogue
from tests.test_portal import PORTAL


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("GET", "/nowhere", 404, {"error": "Not found"}),
        ("GET", "/api/subscriptions/portal/", 404, {"error": "Not found"}),
        ("GET", PORTAL, 405, {"error": "Method not allowed"}),
        ("DELETE", "/healthz", 405, {"error": "Method not allowed"}),
        ("BREW", "/healthz", 405, {"error": "Method not allowed"}),
    ],
)
def test_the_frameworks_own_errors_have_the_same_shape(
    client: FlaskClient, method: str, path: str, status: int, body: dict[str, str]
) -> None:
    answer = client.open(path, method=method)

    assert (answer.status_code, answer.json) == (status, body)
    assert answer.content_type == "application/json"
    assert answer.headers["X-Request-Id"]


def test_a_wrong_method_says_which_are_right(client: FlaskClient) -> None:
    assert set(client.get(PORTAL).headers["Allow"].split(", ")) == {"OPTIONS", "POST"}


def test_the_unforeseen_is_a_500_that_tells_nothing(
    make_app: MakeApp, headers: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    app = make_app()
    app.add_url_rule("/broken", view_func=lambda: os.environ["A SECRET OF OURS"])

    answer = app.test_client().get("/broken")

    assert (answer.status_code, answer.data) == (500, b'{"error":"Internal server error"}')
    assert "A SECRET OF OURS" in capfd.readouterr().out  # the operator is told


def test_a_request_id_is_kept_when_it_is_harmless_and_made_otherwise(client: FlaskClient) -> None:
    kept = client.get("/healthz", headers={"X-Request-Id": "abc-123._X"})
    made = [client.get("/healthz", headers={"X-Request-Id": bad}) for bad in ("", "a b", "x" * 129, 'a"b')]

    assert kept.headers["X-Request-Id"] == "abc-123._X"
    assert all(len(answer.headers["X-Request-Id"]) == 32 for answer in made)


def test_every_answer_forbids_sniffing_and_storing(client: FlaskClient) -> None:
    for answer in (client.get("/healthz"), client.get("/nowhere"), client.post(PORTAL)):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"


def test_forwarded_headers_are_believed_as_far_as_configured_and_no_further(make_app: MakeApp) -> None:
    spoofed = {"X-Forwarded-For": "203.0.113.9, 198.51.100.7"}

    def seen(app: Flask) -> Any:
        app.add_url_rule("/seen", view_func=lambda: {"ip": request.remote_addr})
        return (app.test_client().get("/seen", headers=spoofed).json or {})["ip"]

    assert seen(make_app()) == "127.0.0.1"
    assert seen(make_app(TRUSTED_PROXIES="1")) == "198.51.100.7"
    assert seen(make_app(TRUSTED_PROXIES="2")) == "203.0.113.9"


# ---- another app may mount the service


@pytest.fixture
def host(environ: dict[str, str], database: object) -> Iterator[Flask]:
    """Somebody's own Flask app, with routes and errors of its own."""
    app = Flask("host")
    app.add_url_rule("/hello", view_func=lambda: "hello")
    billing = wiring.build(load(environ))
    mount(app, billing, url_prefix="/billing")
    yield app
    billing.db.close()


def test_the_service_works_inside_another_app(host: Flask, headers: dict[str, str]) -> None:
    client = host.test_client()

    assert client.post("/billing" + PORTAL, headers=headers).status_code == 200
    assert client.post("/billing" + PORTAL).data == b'{"error":"Unauthorized"}'


def test_a_body_is_limited_inside_another_app_too(host: Flask, headers: dict[str, str]) -> None:
    answer = host.test_client().post(
        "/billing" + PORTAL, headers=headers, json={"return_url": "/" + "x" * 17_000}
    )

    assert answer.status_code == 413


def test_the_other_apps_answers_stay_its_own(host: Flask) -> None:
    client = host.test_client()

    assert client.get("/hello").text == "hello"
    assert client.get("/nowhere").content_type.startswith("text/html")
    assert "X-Request-Id" not in client.get("/hello").headers


# ---- OpenAPI


@pytest.fixture
def document(client: FlaskClient) -> dict[str, Any]:
    return dict(client.get("/api/openapi.json").json or {})


def test_the_description_is_valid_openapi(document: dict[str, Any]) -> None:
    validate(document)

    assert document["openapi"].startswith("3.1")


def test_every_route_is_described_and_observed(make_app: MakeApp) -> None:
    app = make_app()
    rules = [rule for rule in app.url_map.iter_rules() if rule.endpoint != "static"]

    unobserved = [
        rule.rule for rule in rules if not hasattr(app.view_functions[rule.endpoint], "__operation__")
    ]
    described = app.test_client().get("/api/openapi.json").json["paths"]  # type: ignore[index]
    undescribed = {rule.rule.replace("<", "{").replace(">", "}") for rule in rules} - set(described)

    assert unobserved == []
    assert undescribed == {"/api/openapi.json"}


def test_the_idempotency_key_and_when_to_come_back_are_described(document: dict[str, Any]) -> None:
    operation = document["paths"][PORTAL]["post"]

    assert [parameter["name"] for parameter in operation["parameters"]] == ["Idempotency-Key"]
    assert "Retry-After" in operation["responses"]["429"]["headers"]
    assert "WWW-Authenticate" in operation["responses"]["401"]["headers"]


def test_the_portals_refusals_are_described_with_examples(document: dict[str, Any]) -> None:
    responses = document["paths"][PORTAL]["post"]["responses"]
    examples = {
        (status, example["value"]["error"])
        for status, response in responses.items()
        for example in response["content"]["application/json"].get("examples", {}).values()
    }

    assert set(responses) == {
        *("200", "400", "401", "403", "404", "409", "413", "415", "422", "429", "500", "503"),
    }
    assert examples >= {
        ("401", "Unauthorized"),
        ("400", "No tenant context found"),
        ("404", "No Stripe customer found for this tenant"),
        ("500", "Internal server error"),
        ("503", "Service unavailable"),
    }


@pytest.mark.parametrize("signed_in", [True, False], ids=["with a token", "without"])
def test_random_requests_get_described_answers_and_never_a_500(
    make_app: MakeApp, database: Database, headers: dict[str, str], signed_in: bool
) -> None:
    a_catalogue(database)
    app = make_app(BILLING_LINKS_PER_MINUTE="100000")
    seen: list[int] = []

    for result in schemathesis.openapi.from_wsgi("/api/openapi.json", app).get_all_operations():
        assert isinstance(result, Ok)

        @given(case=result.ok().as_strategy())
        @settings(
            max_examples=60,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def ask(case: schemathesis.Case[Any]) -> None:
            response = case.call_and_validate(
                headers=headers if signed_in else {},
                excluded_checks=[positive_data_acceptance],  # no schema can say what the allow-list says
            )
            seen.append(response.status_code)

        ask()

    assert len(seen) >= 60
    assert 500 not in seen


def test_the_served_document_is_json_of_moderate_size(client: FlaskClient) -> None:
    assert len(json.dumps(client.get("/api/openapi.json").json)) < 100_000
