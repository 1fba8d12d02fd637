"""OpenAPI 3.1, written from the same annotations that `web.contract` checks by."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any, get_type_hints

from flask import Blueprint, Flask, Response, current_app
from pydantic import BaseModel, TypeAdapter

from billing import errors
from billing.errors import BillingError
from billing.telemetry import observed
from billing.web.contract import View, answers_with, refusals

REF = "#/components/schemas/{model}"
REQUEST_ID = {"X-Request-Id": {"description": "Names this request in our logs", "schema": {"type": "string"}}}
RETRY_AFTER = {
    "Retry-After": {"description": "Seconds, where it is worth waiting", "schema": {"type": "integer"}}
}
CHALLENGE = {"WWW-Authenticate": {"description": "Bearer", "schema": {"type": "string"}}}
HEADERS = {401: CHALLENGE, 429: RETRY_AFTER, 500: RETRY_AFTER, 503: RETRY_AFTER}
IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "description": "The `ETag` of what you have",
    "schema": {"type": "string", "pattern": "^[ -~]*$"},
}
IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The same key gives the same result for 24 hours",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"},
}

blueprint = Blueprint("openapi", __name__)


class Error(BaseModel):
    """Every error of every route. `code`, `request_id` and `param` come with newer refusals."""

    error: str
    code: str | None = None
    request_id: str | None = None
    param: str | None = None


@blueprint.get("/api/openapi.json")
@observed("openapi")
def openapi() -> Response:
    """This document."""
    return Response(json.dumps(describe(current_app)), content_type="application/json")


def describe(app: Flask) -> dict[str, Any]:
    """Every view of `app` that states its contract."""
    views = {
        (_path(rule.rule), method.lower()): app.view_functions[rule.endpoint]
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if hasattr(app.view_functions[rule.endpoint], "__refusals__")
    }
    models = [(model, mode, TypeAdapter(model)) for view in views.values() for model, mode in _models(view)]
    schemas, definitions = TypeAdapter.json_schemas(
        [*models, (Error, "serialization", TypeAdapter(Error))], ref_template=REF
    )
    paths: dict[str, dict[str, Any]] = {}
    for (path, method), view in sorted(views.items()):
        paths.setdefault(path, {})[method] = _operation(view, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Billing",
            "version": "1",
            "description": "Between a multi-tenant product and Stripe.",
        },
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {"userToken": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def _path(rule: str) -> str:
    return re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule)


def _models(view: View) -> list[tuple[Any, Any]]:
    hints = get_type_hints(view)
    asked = [(hints["body"], "validation")] if "body" in hints else []
    return [*asked, (answers_with(view), "serialization")]


def _operation(view: View, schemas: dict[Any, Any]) -> dict[str, Any]:
    hints = get_type_hints(view)
    summary, _, description = inspect.cleandoc(view.__doc__ or "").partition("\n")
    operation: dict[str, Any] = {
        "operationId": view.__name__,
        "summary": summary,
        "description": description.strip(),
        "responses": {
            "200": _response("Done", schemas[answers_with(view), "serialization"]),
            **_refusals([*refusals(view), BillingError, errors.ServiceUnavailable]),
        },
    }
    if "body" in hints:
        operation["requestBody"] = {
            "required": False,
            "content": {"application/json": {"schema": schemas[hints["body"], "validation"]}},
        }
    takes = list(getattr(view, "__takes__", ()))
    if errors.IdempotencyKeyReused in refusals(view):
        takes.append(IDEMPOTENCY_KEY)
    if getattr(view, "__may_be_same__", False):
        takes.append(IF_NONE_MATCH)
        operation["responses"]["304"] = {"description": "What you have is what there is", "headers": REQUEST_ID}
    if takes:
        operation["parameters"] = takes
    if security := getattr(view, "__security__", None):
        operation["security"] = security
    return operation


def _refusals(kinds: list[type[BillingError]]) -> dict[str, Any]:
    by_status: dict[int, list[type[BillingError]]] = {}
    for kind in sorted(set(kinds), key=lambda kind: (kind.status, kind.__name__)):
        by_status.setdefault(kind.status, []).append(kind)
    return {str(status): _refusal(status, found) for status, found in by_status.items()}


def _refusal(status: int, kinds: list[type[BillingError]]) -> dict[str, Any]:
    response = _response(
        "; ".join((kind.__doc__ or "").split("\n")[0].rstrip(".") for kind in kinds),
        {"$ref": REF.format(model="Error")},
    )
    response["headers"] = REQUEST_ID | HEADERS.get(status, {})
    response["content"]["application/json"]["examples"] = {
        kind.__name__: {"value": _example(kind)} for kind in kinds
    }
    return response


def _example(kind: type[BillingError]) -> dict[str, str]:
    body = {"error": kind.sentence}
    return body | {"code": kind.code, "request_id": "7d0c41f2"} if kind.code else body


def _response(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "description": description,
        "headers": REQUEST_ID,
        "content": {"application/json": {"schema": schema}},
    }
