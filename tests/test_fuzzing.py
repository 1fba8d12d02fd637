"""Requests nobody thought of, made from the contract by schemathesis: each gets an answer the contract has.

Examples first, then the edges of every schema, then random ones; right and wrong. Most of the right ones would
end at the first check that no schema can express, so every other is led on: to a session, a plan and a copy
of a document that are there, and past Stripe's signature. `make soak` does the same for longer.
"""

from __future__ import annotations

import io
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import schemathesis
from flask import Flask
from schemathesis import Case, GenerationMode, HookContext
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema
from schemathesis.engine.events import EngineEvent

from billing.db import Database
from sandbox.server import Control
from tests.conftest import IS_SOAK, MakeApp
from tests.deliveries import signature
from tests.documented import document
from tests.shopping import Shop, a_shop

CONFIG = {
    "seed": 1,
    "continue-on-failure": True,
    "generation": {"max-examples": 1000 if IS_SOAK else 15, "deterministic": not IS_SOAK, "no-shrink": True},
    "phases": {"stateful": {"enabled": False}},
    "checks": {
        "positive_data_acceptance": {"enabled": False},  # no schema can say what the allow-list says
        "ignored_auth": {"enabled": False},  # does not work in process; see the requests without a token
    },
}
LEAST = 3_500 if IS_SOAK else 100  # of each of the three who ask
SIGN_HERE = "t=0,v1=sign-here"

Wsgi = Callable[[dict[str, Any], Any], Iterable[bytes]]


@dataclass
class Seen:
    """What came of it, by operation and status."""

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def note(self, event: EngineEvent) -> None:
        """Take in what schemathesis reports."""
        if isinstance(event, events.FatalError):
            raise event.exception
        if isinstance(event, events.NonFatalError):
            self.faults.append(f"{event.label}: {event.value!r}")
        if not isinstance(event, events.ScenarioFinished):
            return
        for id, interaction in event.recorder.interactions.items():
            case = event.recorder.cases[id].value
            assert interaction.response
            self.answers[f"{case.method} {case.path}", interaction.response.status_code] += 1
        for check in itertools.chain.from_iterable(event.recorder.checks.values()):
            if check.failure_info:
                told = check.failure_info
                self.faults.append(
                    f"{event.label}: {told.failure.title}. {told.failure.message} {told.code_sample}"
                )


@pytest.fixture
def shop(make_app: MakeApp, database: Database, sandbox: Control) -> Shop:
    return a_shop(make_app(BILLING_LINKS_PER_MINUTE="1000000"), database, sandbox)


def test_somebody_who_has_bought_gets_described_answers_and_never_a_500(shop: Shop) -> None:
    session = shop.opened()
    shop.sandbox.complete_checkout(session)
    assert (shop.back(session).json or {})["status"] == "complete"

    seen = ask(shop.app, session, shop.headers)

    assert seen.faults == []
    assert seen.answers.total() >= LEAST
    assert successes() - set(seen.answers) == {("POST /api/subscriptions/checkout", 200)}  # has one already
    assert ("POST /api/subscriptions/checkout", 409) in seen.answers


def test_somebody_who_is_buying_gets_described_answers_and_never_a_500(shop: Shop) -> None:
    session = shop.opened()

    seen = ask(shop.app, session, shop.headers)

    assert seen.faults == []
    assert seen.answers.total() >= LEAST
    assert successes() - set(seen.answers) == set()


def test_somebody_without_a_token_gets_described_answers_and_no_further(shop: Shop) -> None:
    session = shop.opened()

    seen = ask(shop.app, session, {})

    assert seen.faults == []
    assert seen.answers.total() >= LEAST
    assert {
        (name, status) for name, status in seen.answers if name in with_a_token() and status not in (401, 405)
    } == set()


def successes() -> set[tuple[str, int]]:
    """Every 200 and 304 the contract has."""
    return {
        (f"{method.upper()} {path}", int(status))
        for path, methods in document()["paths"].items()
        for method, operation in methods.items()
        for status in operation["responses"]
        if int(status) < 400
    }


def with_a_token() -> set[str]:
    """The operations that want one."""
    return {
        f"{method.upper()} {path}"
        for path, methods in document()["paths"].items()
        for method, operation in methods.items()
        if operation["security"]
    }


def ask(app: Flask, session: str, headers: dict[str, str]) -> Seen:
    """Everything schemathesis can think of, asked with these headers."""
    config = SchemathesisConfig.from_dict({**CONFIG, "headers": headers})
    schema = schemathesis.openapi.from_wsgi("/api/openapi.json", signing(app), config=config)
    is_led = itertools.cycle([True, False])

    def before_call(_context: HookContext, case: Case[Any], _kwargs: dict[str, Any]) -> None:
        if case.meta and case.meta.generation.mode is GenerationMode.POSITIVE and next(is_led):
            lead(case, session, app, headers)

    seen = Seen()
    with hooked(before_call):
        for event in from_schema(schema).execute():
            seen.note(event)
    return seen


def lead(case: Case[Any], session: str, app: Flask, headers: dict[str, str]) -> None:
    """Have a request that is right name things that are there."""
    if "session_id" in case.path_parameters:
        case.path_parameters["session_id"] = session
    if isinstance(case.body, dict):
        case.body.pop("return_url", None)
        case.body.pop("promotion_code", None)
        if "plan" in case.body:
            case.body["plan"] = "team_yearly"
    if "Idempotency-Key" in case.headers:
        case.headers["Idempotency-Key"] = case.id
    if "Stripe-Signature" in case.headers:
        case.headers["Stripe-Signature"] = SIGN_HERE
    if "If-None-Match" in case.headers:
        now = app.test_client().get(case.path, headers=headers)
        case.headers["If-None-Match"] = now.headers.get("ETag", "")


@contextmanager
def hooked(before_call: Callable[..., None]) -> Iterator[None]:
    """For as long as this lasts: schemathesis has hooks before a call for all schemas only."""
    schemathesis.hook(before_call)
    try:
        yield
    finally:
        schemathesis.hooks.unregister(before_call)


def signing(app: Flask) -> Wsgi:
    """The app, behind somebody who has Stripe's secret and signs what he is asked to sign."""

    def signed(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ.get("HTTP_STRIPE_SIGNATURE") == SIGN_HERE:
            body = environ["wsgi.input"].read()
            environ["wsgi.input"] = io.BytesIO(body)
            environ["HTTP_STRIPE_SIGNATURE"] = signature(body)
        return app(environ, start_response)

    return signed
