"""One error shape for everything, headers that every answer has, and a service that others can mount."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask, request
from flask.testing import FlaskClient

from billing import wiring
from billing.config import load
from billing.web import mount
from tests.conftest import MakeApp
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
