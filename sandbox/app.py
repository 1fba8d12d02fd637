"""The pretend Stripe as a Flask app: `Api.view` takes every call to /v1 through the same steps.

Note the call, spoil it if so ordered, know the caller, find the operation, hold its idempotency key, read
the parameters, run it, save the result. `resources` has the operations, `control` and `pages` the app's
other addresses. The server hands each request its `Line`.
"""

import hmac
import json
import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import stripe
from flask import Flask, Request, Response, request
from flask.typing import ResponseReturnValue
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule

from sandbox import console, control, life, pages, wire
from sandbox.account import Account, Record, is_live
from sandbox.deliveries import Deliveries
from sandbox.errors import Refusal, failure, not_here
from sandbox.faults import Fault
from sandbox.idempotency import Claim, Keys
from sandbox.lines import HungUp, Line
from sandbox.resources import (
    Call,
    Operation,
    active_entitlements,
    checkout,
    coupons,
    customers,
    events,
    expanded,
    features,
    invoices,
    new_id,
    payment_methods,
    portal,
    prices,
    products,
    promotion_codes,
    subscriptions,
    webhook_endpoints,
)
from sandbox.safety import stranger

RESOURCES = [
    active_entitlements,
    checkout,
    coupons,
    customers,
    events,
    features,
    invoices,
    payment_methods,
    portal,
    prices,
    products,
    promotion_codes,
    subscriptions,
    webhook_endpoints,
]
OPERATIONS = [operation for resource in RESOURCES for operation in resource.OPERATIONS]
ADDRESSES = Map([Rule(o.path, methods=[o.method], endpoint=o) for o in OPERATIONS]).bind("")
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


def create_app(account: Account, deliveries: Deliveries) -> Flask:
    app = Flask(__name__, static_url_path="/assets")
    view = Api(account).view
    app.add_url_rule("/v1/", "v1", view, methods=METHODS)
    app.add_url_rule("/v1/<path:_>", "v1", view, methods=METHODS)
    app.register_blueprint(control.blueprint(account, deliveries))
    app.register_blueprint(console.blueprint(account, deliveries))
    app.register_blueprint(pages.blueprint(account))
    app.register_error_handler(500, lambda _: Answer.error(failure()).response())

    @app.before_request
    def keep_out_strangers() -> ResponseReturnValue | None:
        reason = stranger(request, account.public_url)
        if reason and request.path.startswith("/v1/"):
            return Answer.error(Refusal(reason, status=403)).response()
        return ({"error": reason}, 403) if reason else None

    @app.after_request
    def tell(response: Response) -> Response:
        deliveries.collect()
        return response

    return app


@dataclass(frozen=True)
class Answer:
    status: int
    body: str
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/json"

    @classmethod
    def error(cls, refusal: Refusal) -> "Answer":
        return cls(refusal.status, json.dumps(refusal.body, indent=2), refusal.headers)

    @classmethod
    def of(cls, fault: Fault) -> "Answer":
        return cls(fault.status, fault.body, fault.headers, fault.content_type)

    def response(self) -> Response:
        return Response(self.body, self.status, self.headers, content_type=self.content_type)


class Api:
    def __init__(self, account: Account) -> None:
        self.account = account
        self.keys = Keys(account.store)

    def view(self, _: str = "") -> Response:
        line: Line = request.environ["sandbox.line"]
        # before the call is noted: who sees it there may count on its fault being under way
        line.fault = self.account.faults.take(request.method, request.path)
        record = self.note(request, line)
        request_id = new_id("req")
        try:
            answer = self.answer(record, request_id, line)
        except HungUp:
            answer = Answer(499, "")
        record.status = answer.status
        record.replayed = "Idempotent-Replayed" in answer.headers
        response = answer.response()
        response.headers["Request-Id"] = request_id
        response.headers["Stripe-Version"] = stripe.api_version
        response.headers["Cache-Control"] = "no-cache, no-store"
        return response

    def note(self, request: Request, line: Line) -> Record:
        record = Record(
            method=request.method,
            path=request.path,
            idempotency_key=request.headers.get("Idempotency-Key"),
            stripe_version=request.headers.get("Stripe-Version", stripe.api_version),
            connection=self.account.lines.number_of(line),
        )
        return self.account.log.add(record)

    def answer(self, record: Record, request_id: str, line: Line) -> Answer:
        if line.fault and line.fault.kind == "hang" and not line.fault.after:
            line.hang()
            line.fault = None
        if line.fault and line.fault.comes_first:
            line.pause(self.account.latency_seconds)
            return Answer.of(line.fault)
        try:
            answer = self.perform(record, request_id, line)
        except Refusal as refusal:
            line.pause(self.account.latency_seconds)
            answer = Answer.error(refusal)
        return Answer.of(line.fault) if line.fault and line.fault.replaces_answer else answer

    def perform(self, record: Record, request_id: str, line: Line) -> Answer:
        authenticate(request, self.account.key)
        check_headers(request.headers, self.account.key)
        record.params = read_params(request)
        operation, ids = find(record.method, record.path)
        with self.claim(record) as claim:
            params = wire.check(operation.params, record.params, empty_unsets=operation.empty_unsets)
            line.pause(self.account.latency_seconds)
            if claim.saved:
                return replay(claim.saved)
            caller = {"id": request_id, "idempotency_key": record.idempotency_key}
            call = Call(self.account.store, params, self.account.public_url, caller)
            answer = self.run(operation, call, ids, line.fault)
            claim.result = {"status": answer.status, "body": answer.body, "request_id": request_id}
        if record.method != "GET":
            self.account.store.save()
        return answer

    def claim(self, record: Record) -> AbstractContextManager[Claim]:
        if record.method != "POST" or record.idempotency_key is None:
            return nullcontext(Claim())
        return self.keys.claim(record.idempotency_key, record.path, record.params)

    def run(self, operation: Operation, call: Call, ids: dict[str, str], fault: Fault | None) -> Answer:
        """A failure inside Stripe is a result like any other: it is saved and replayed."""
        failing = fault if fault and fault.kind == "500" else None
        if failing and not failing.after:
            return Answer.of(failing)
        try:
            with self.account.store.lock:
                life.catch_up(self.account.store)
                with self.account.store.answering(call.request):
                    answer = Answer(200, json.dumps(expanded(call, operation.run(call, **ids)), indent=2))
        except Refusal as refusal:
            answer = Answer.error(refusal)
        return Answer.of(failing) if failing else answer


def find(method: str, path: str) -> tuple[Operation, dict[str, str]]:
    """The operation at an address, and the ids that are in it."""
    try:
        operation, ids = ADDRESSES.match(path, method)
    except HTTPException as unknown:
        raise not_here(f"{method} {path}") from unknown
    return operation, dict(ids)


def read_params(request: Request) -> wire.Params:
    body = request.get_data(as_text=True)
    if body and request.mimetype != "application/x-www-form-urlencoded":
        raise Refusal(
            "Invalid request (check that your POST content type is application/x-www-form-urlencoded)."
            " If you have any questions, we can help at https://support.stripe.com/."
        )
    return wire.decode("&".join(part for part in (request.query_string.decode(), body) if part))


def replay(saved: dict[str, Any]) -> Answer:
    headers = {"Idempotent-Replayed": "true", "Original-Request": saved["request_id"]}
    return Answer(saved["status"], saved["body"], headers)


def authenticate(request: Request, key: str) -> None:
    """The key comes as a bearer token or as the user name of Basic."""
    given = request.authorization
    token = (given.token or given.username) if given else None
    if not token:
        raise unauthorized(
            "You did not provide an API key. You need to provide your API key in the Authorization header,"
            " using Bearer auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY'). See"
            " https://stripe.com/docs/api#authentication for details, or we can help at"
            " https://support.stripe.com/."
        )
    if is_live(token):
        raise unauthorized("A live key was sent to the sandbox. Use the sandbox's own test key instead.")
    if not hmac.compare_digest(token.encode(), key.encode()):
        raise unauthorized(f"Invalid API Key provided: {masked(token)}")


def unauthorized(message: str) -> Refusal:
    return Refusal(message, status=401, headers={"WWW-Authenticate": 'Basic realm="Stripe"'})


def check_headers(headers: Headers, key: str) -> None:
    """One version is spoken here, the SDK's, and there is one account."""
    version = headers.get("Stripe-Version", stripe.api_version)
    if not re.fullmatch(r"\d{4}-\d\d-\d\d(\.[a-z]+)?", version):
        raise Refusal(f"Invalid Stripe API version: {version}")
    if version != stripe.api_version:
        raise not_here(f"the API version {version}, only {stripe.api_version}")
    if account := headers.get("Stripe-Account"):
        raise Refusal(
            f"The provided key '{masked(key)}' does not have access to account '{account}' (or that account"
            " does not exist). Application access may have been revoked.",
            status=403,
            code="account_invalid",
        )


def masked(key: str) -> str:
    shown = key[:8] if key.startswith(("sk_test_", "rk_test_")) else key[:2]
    return f"{shown}{'*' * 8}{key[-4:]}" if len(key) > 16 else "*" * len(key)
