"""Requests nobody thought of, made from the contract by schemathesis: each gets an answer the contract has.

Examples first, then the edges of every schema, then random ones; right and wrong; from callers of every kind.
Most right ones would end at the first check that no schema can express, so every other is led on: to a session,
a plan, a tenant, a place in the feed and a copy of a document that are there, and past Stripe's signature.
`make soak` does the same for longer.
"""

from __future__ import annotations

import io
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pytest
import schemathesis
from flask import Flask
from schemathesis import Case, GenerationMode, HookContext, Response
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema
from schemathesis.engine.events import EngineEvent

from billing import feed, tokens
from billing.db import SYSTEM, Database
from sandbox.server import Control
from tests.conftest import IS_SOAK, MakeApp
from tests.deliveries import signature
from tests.documented import Json, operations
from tests.shopping import Shop, a_shop
from tests.test_tokens import a_service, bearer

CONFIG = {
    "seed": 1,
    "continue-on-failure": True,
    "generation": {"max-examples": 500 if IS_SOAK else 8, "deterministic": not IS_SOAK, "no-shrink": True},
    "phases": {
        "stateful": {"enabled": False},
        **{name: {"extra-data-sources": {"responses": False}} for name in ("coverage", "fuzzing")},  # we lead
    },
    "checks": {
        "positive_data_acceptance": {"enabled": False},  # no schema can say what the allow-list says
        "ignored_auth": {"enabled": False},  # does not work in process; see the requests without a token
    },
    "operations": [
        {  # whose address is that of a tenant, too, which may be PUT: ids have slashes
            "include-path": "/api/tenants/{tenant_id}/entitlements",
            "checks": {"allow_header_conformance": {"enabled": False}},
        }
    ],
}
LEAST = 3_500 if IS_SOAK else 100  # of each who asks
SIGN_HERE = "t=0,v1=sign-here"
CHANGES = "GET /api/changes"
CHECKOUT = "POST /api/subscriptions/checkout"
PUT_TENANT = "PUT /api/tenants/{tenant_id}"
USER = "userToken"

Wsgi = Callable[[dict[str, Any], Any], Iterable[bytes]]


@dataclass
class Seen:
    """What came of it, by operation and status; members of bodies that were taken; batches with changes."""

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    taken: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    news: int = 0
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
            assert interaction.response
            self._count(event.recorder.cases[id].value, interaction.response)
        for check in itertools.chain.from_iterable(event.recorder.checks.values()):
            if check.failure_info:
                told = check.failure_info
                self.faults.append(
                    f"{event.label}: {told.failure.title}. {told.failure.message} {told.code_sample}"
                )

    def _count(self, case: Case[Any], response: Response) -> None:
        name = f"{case.method} {case.path}"
        self.answers[name, response.status_code] += 1
        if response.status_code != 200:
            return
        if isinstance(case.body, dict):
            self.taken[name] |= set(case.body)
        if name == CHANGES:
            self.news += len(response.json()) > 0

    def of(self, name: str) -> set[int]:
        """The statuses of an operation."""
        return {status for operation, status in self.answers if operation == name}


@pytest.fixture
def shop(make_app: MakeApp, database: Database, sandbox: Control) -> Shop:
    return a_shop(make_app(BILLING_LINKS_PER_MINUTE="1000000"), database, sandbox)


def test_somebody_who_has_bought_gets_described_answers_and_never_a_500(shop: Shop) -> None:
    session = shop.opened()
    shop.sandbox.complete_checkout(session)
    assert (shop.back(session).json or {})["status"] == "complete"

    seen = ask(shop, session, shop.headers)

    assert_described(seen)
    assert successes(USER) - set(seen.answers) == {(CHECKOUT, 200)}  # has one already
    assert (CHECKOUT, 409) in seen.answers
    assert_no_further(seen, {401, 403}, USER)


def test_somebody_who_is_buying_gets_described_answers_and_never_a_500(shop: Shop) -> None:
    session = shop.opened()

    seen = ask(shop, session, shop.headers)

    assert_described(seen)
    assert successes(USER) - set(seen.answers) == set()
    assert_no_further(seen, {401, 403}, USER)


def test_a_service_gets_described_answers_and_never_a_500(shop: Shop) -> None:
    session = shop.opened()

    seen = ask(shop, session, bearer(a_service(shop.database, "crm", *tokens.SCOPES)))

    assert_described(seen)
    assert successes(*tokens.SCOPES) - set(seen.answers) == set()
    assert seen.taken[PUT_TENANT] == {"name", "email", "stripe_customer_id"}
    assert seen.of(PUT_TENANT) >= {200, 400, 404}
    assert seen.news
    assert_no_further(seen, {401, 403}, *tokens.SCOPES)


def test_a_service_that_may_only_read_gets_described_answers_and_no_further(shop: Shop) -> None:
    session = shop.opened()

    seen = ask(shop, session, bearer(a_service(shop.database, "search", tokens.READ)))

    assert_described(seen)
    assert successes(tokens.READ) - set(seen.answers) == set()
    assert seen.news
    assert_no_further(seen, {401, 403}, tokens.READ)


def test_somebody_without_a_token_that_holds_gets_described_answers_and_no_further(shop: Shop) -> None:
    session = shop.opened()
    expired = a_service(shop.database, "crm", *tokens.SCOPES, expires_at=datetime.now(UTC))

    seen = ask(shop, session, {}, bearer(expired))

    assert_described(seen)
    assert successes() - set(seen.answers) == set()
    assert_no_further(seen, {401})


def assert_described(seen: Seen) -> None:
    """Every answer was one of the contract's, and none was a fault of ours."""
    assert seen.faults == []
    assert seen.answers.total() >= LEAST
    assert not any(status >= 500 for _, status in seen.answers)


def assert_no_further(seen: Seen, refusals: set[int], *may: str) -> None:
    """What is not open to this caller answered all of it with these."""
    closed = [name for name, operation in operations() if not is_open(operation, *may)]
    assert [(name, status) for name in closed for status in seen.of(name) - refusals] == []


def successes(*may: str) -> set[tuple[str, int]]:
    """Every 200 and 304 the contract has for this caller."""
    return {
        (name, int(status))
        for name, operation in operations()
        for status in operation["responses"]
        if int(status) < 400 and is_open(operation, *may)
    }


def is_open(operation: Json, *may: str) -> bool:
    """Whether somebody with these comes in: scopes, or the token of a user."""
    needed = [{scheme, *scopes} for choice in operation["security"] for scheme, scopes in choice.items()]
    return not needed or any(set(may) & one for one in needed)


def ask(shop: Shop, session: str, headers: dict[str, str], *others: dict[str, str]) -> Seen:
    """Everything schemathesis can think of, asked with these headers, or by turns with others."""
    config = SchemathesisConfig.from_dict({**CONFIG, "headers": headers})
    schema = schemathesis.openapi.from_wsgi("/api/openapi.json", signing(shop.app), config=config)
    is_led = itertools.cycle([True, False])
    instead = itertools.cycle([{}, *others])

    def before_call(_context: HookContext, case: Case[Any], _kwargs: dict[str, Any]) -> None:
        case.headers.update(next(instead))
        if case.meta and case.meta.generation.mode is GenerationMode.POSITIVE and next(is_led):
            lead(case, shop, session, headers)

    seen = Seen()
    with hooked(before_call):
        for event in from_schema(schema).execute():
            seen.note(event)
    return seen


def lead(case: Case[Any], shop: Shop, session: str, headers: dict[str, str]) -> None:
    """Have a request that is right name things that are there."""
    there = {"session_id": session, "tenant_id": shop.tenant}
    case.path_parameters = {name: there[name] for name in case.path_parameters}
    if isinstance(case.body, dict):
        case.body = led_body(case.body, shop)
    if "Idempotency-Key" in case.headers:
        case.headers["Idempotency-Key"] = case.id
    if "Stripe-Signature" in case.headers:
        case.headers["Stripe-Signature"] = SIGN_HERE
    if "lastEventId" in case.query:
        place = a_place(shop, at_the_end="If-None-Match" in case.headers)
        case.query = {**case.query, "lastEventId": place}
    if "If-None-Match" in case.headers:
        since = {"lastEventId": case.query["lastEventId"]} if "lastEventId" in case.query else {}
        now = shop.app.test_client().get(case.formatted_path, headers=headers, query_string=since)
        case.headers["If-None-Match"] = now.headers.get("ETag", "")


def led_body(body: Json, shop: Shop) -> Json:
    """The same, as far as what it names has to be there."""
    there = {"plan": "team_yearly", "stripe_customer_id": shop.customer}
    left_out = ("return_url", "promotion_code")
    return {name: there.get(name, said) for name, said in body.items() if name not in left_out}


def a_place(shop: Shop, *, at_the_end: bool) -> str:
    """The end of the feed, or a place half way."""
    with shop.database.begin(SYSTEM) as connection:
        head = feed.overview(connection).head
    return str(head if at_the_end else replace(head, position=head.position // 2))


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
