"""A description that tells the truth: complete, valid, and with examples that the service would send."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from openapi_spec_validator import validate

from billing import tokens
from billing.db import Database
from billing.errors import BillingError
from billing.web import answers, contract
from billing.web.openapi import EXAMPLE_REQUEST
from tests.conftest import ROOT, MakeApp
from tests.documented import Json, document, faults, judge, operations, resolved, written
from tests.test_portal import PORTAL
from tests.test_tokens import a_service, bearer

KEPT = ROOT / "docs" / "openapi.json"


OPERATIONS = dict(operations())
every_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())


# ---- the document


def test_the_description_is_valid_openapi() -> None:
    validate(document())

    assert document()["openapi"].startswith("3.1")


def test_what_is_kept_is_what_the_code_says() -> None:
    assert KEPT.read_text() == contract(), "write docs/openapi.json anew: make contract"


def test_what_is_served_is_what_is_kept(client: FlaskClient) -> None:
    assert client.get("/api/openapi.json").text == contract()


def test_it_is_written_without_settings_and_without_a_database() -> None:
    wrote = subprocess.run(
        [sys.executable, "-m", "billing.web"], cwd=ROOT, env={}, capture_output=True, text=True, check=True
    )

    assert wrote.stdout == contract()


def test_it_is_of_moderate_size() -> None:
    assert len(contract()) < 200_000


def test_every_route_is_described_and_observed(make_app: MakeApp) -> None:
    app = make_app()
    rules = [rule for rule in app.url_map.iter_rules() if rule.endpoint != "static"]

    unobserved = [
        rule.rule for rule in rules if not hasattr(app.view_functions[rule.endpoint], "__operation__")
    ]
    undescribed = {written(rule) for rule in rules} - set(document()["paths"])

    assert unobserved == []
    assert undescribed == {"/api/openapi.json"}


# ---- every operation


@every_operation
def test_an_operation_says_what_it_is(operation: Json) -> None:
    assert operation["summary"]
    assert operation["description"]
    assert operation["operationId"].isidentifier()
    assert set(operation["tags"]) <= {tag["name"] for tag in document()["tags"]}
    assert {name for choice in operation["security"] for name in choice} <= set(
        document()["components"]["securitySchemes"]
    )


@every_operation
def test_the_scope_that_a_services_token_needs_is_said_in_words_and_refused_without(operation: Json) -> None:
    scopes = [scope for choice in operation["security"] for scope in choice.get("serviceToken", [])]

    assert [scope for scope in tokens.SCOPES if f"the scope `{scope}`" in operation["description"]] == scopes
    refusals = operation["responses"].get("403", {"content": {"application/json": {"examples": {}}}})
    examples = refusals["content"]["application/json"]["examples"]
    assert ({"InsufficientScope", "ServiceTokenRequired"} <= set(examples)) is bool(scopes)


def test_no_two_operations_have_one_name() -> None:
    assert len({operation["operationId"] for operation in OPERATIONS.values()}) == len(OPERATIONS)


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_it_takes_is_described_with_examples_that_fit(name: str) -> None:
    parameters = OPERATIONS[name].get("parameters", [])

    for parameter in parameters:
        assert parameter["description"]
        assert faults(parameter["schema"], parameter["example"]) == []
    in_path = [part.strip("{}") for part in name.split("/") if part.startswith("{")]
    assert [one["name"] for one in parameters if one["in"] == "path"] == in_path
    for media in OPERATIONS[name].get("requestBody", {}).get("content", {}).values():
        assert faults(media["schema"], media["example"]) == []


@every_operation
def test_every_answer_has_examples_that_fit_and_the_headers_of_all(operation: Json) -> None:
    for status, response in operation["responses"].items():
        assert response["description"]
        assert set(response["headers"]) >= {"X-Request-Id", "Cache-Control", "X-Content-Type-Options"}
        assert ("content" in response) is (status != "304")
        for media in response.get("content", {}).values():
            examples = [resolved(example)["value"] for example in media.get("examples", {}).values()]
            examples += [media["example"]] if "example" in media else []
            assert examples
            assert [faults(media["schema"], example) for example in examples] == [[]] * len(examples)


def test_every_member_is_described_or_has_an_example_and_every_example_fits() -> None:
    for name, schema in document()["components"]["schemas"].items():
        assert schema["description"], name
        assert [faults(schema, one) for one in schema.get("examples", [])] == [[]] * len(
            schema.get("examples", [])
        )
        for member, said in schema.get("properties", {}).items():
            is_clear = {"description", "examples", "const", "items", "$ref"} & set(said)
            assert is_clear, f"{name}.{member}"
            assert [faults(said, one) for one in said.get("examples", [])] == [[]] * len(
                said.get("examples", [])
            )


def test_every_header_is_described_and_its_example_fits() -> None:
    for name, header in document()["components"]["headers"].items():
        assert header["description"], name
        assert faults(header["schema"], header.get("example", header["schema"].get("const"))) == []


# ---- refusals


def kinds(kind: type[BillingError] = BillingError) -> Iterator[type[BillingError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from kinds(below)


DESCRIBED = [kind for kind in kinds() if kind.__name__ in document()["components"]["examples"]]


@pytest.mark.parametrize("kind", DESCRIBED, ids=lambda kind: kind.__name__)
def test_an_errors_example_is_what_is_sent(kind: type[BillingError]) -> None:
    def refuse() -> str:
        raise kind.example()

    app = Flask("refusing")
    answers.hooks(app)
    app.add_url_rule("/", view_func=refuse)

    answer = app.test_client().get("/", headers={"X-Request-Id": EXAMPLE_REQUEST})

    assert answer.json == document()["components"]["examples"][kind.__name__]["value"]
    assert answer.status_code == kind.status
    for response in (response for one in OPERATIONS.values() for response in one["responses"].values()):
        if kind.__name__ in response.get("content", {}).get("application/json", {}).get("examples", {}):
            assert set(answer.headers.keys()) <= {*response["headers"], "Content-Type", "Content-Length"}


def test_the_example_of_a_mistake_is_what_is_sent(
    client: FlaskClient, headers: dict[str, str], database: Database
) -> None:
    named = {**headers, "X-Request-Id": EXAMPLE_REQUEST}
    service = named | bearer(a_service(database, "crm", *tokens.SCOPES))

    def example(operation: str) -> Any:
        media = OPERATIONS[operation]["responses"]["400"]["content"]["application/json"]
        return media["examples"]["InvalidRequest"]["value"]

    body = client.post(PORTAL, headers=named, json={"surprise": True})
    query = client.get("/api/entitlements?sync=perhaps", headers=named)
    limit = client.get("/api/changes?limit=501", headers=service)
    member = client.put("/api/tenants/t_acme", headers=service, json={"surprise": True})

    assert body.json == example(f"POST {PORTAL}")
    assert query.json == example("GET /api/entitlements")
    assert limit.json == example("GET /api/changes")
    assert member.json == example("PUT /api/tenants/{tenant_id}")


def test_the_idempotency_key_and_when_to_come_back_are_described() -> None:
    operation = OPERATIONS[f"POST {PORTAL}"]

    assert [parameter["name"] for parameter in operation["parameters"]] == ["Idempotency-Key"]
    assert "Retry-After" in operation["responses"]["429"]["headers"]
    assert "WWW-Authenticate" in operation["responses"]["401"]["headers"]


def test_the_portals_refusals_are_described_with_examples() -> None:
    responses = OPERATIONS[f"POST {PORTAL}"]["responses"]
    examples = {
        (status, resolved(example)["value"]["error"])
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


# ---- the judge of every other test


@pytest.mark.parametrize(
    "answer",
    [
        ('{"status":"ok"}', 201),
        ('{"status":"fine"}', 200),
        ("{}", 200),
        ('{"status":"ok"}', 200, {"X-Surprise": "1"}),
        ('{"status":"ok"}', 200, {"Content-Type": "text/plain"}),
        ('{"error":"Internal server error"}', 500, {"Retry-After": "5"}),
        ('{"error":"Not ours","code":"odd"}', 503),
    ],
    ids=["status", "value", "shape", "header", "kind", "header of another", "half an error"],
)
def test_an_answer_that_is_not_documented_fails_the_test_that_got_it(make_app: MakeApp, answer: Any) -> None:
    body, status, *headers = answer
    app = make_app()
    app.view_functions["billing.health.check_health"] = lambda: (
        body,
        status,
        {"Content-Type": "application/json", **(headers[0] if headers else {})},
    )

    with pytest.raises(AssertionError):
        app.test_client().get("/healthz")


def test_an_error_of_the_framework_is_judged_too(make_app: MakeApp) -> None:
    app = Flask("bare")  # which answers in HTML

    with pytest.raises((AssertionError, json.JSONDecodeError)):
        judge(app, app.test_client().get("/nowhere"))
