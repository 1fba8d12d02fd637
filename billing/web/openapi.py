"""OpenAPI 3.1, written from the same annotations that `web.contract` checks by.

Every example is one the service could send: those of errors come from `errors` by way of `web.answers`, those
of models are put together from the examples of their members. `docs/openapi.json` is this document, written by
`make contract`.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from flask import Blueprint, Flask, Response, current_app
from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from werkzeug.exceptions import NotFound

from billing import errors
from billing.errors import BillingError
from billing.telemetry import observed
from billing.web import answers, contract
from billing.web.contract import View, answers_with, refusals

Json = dict[str, Any]

INFO = {
    "title": "Billing",
    "version": "1",
    "summary": "Between a multi-tenant product and Stripe.",
    "description": (
        "Every answer is JSON and names its request in `X-Request-Id`: by yours, if you sent one of at most 128"
        " letters, digits, `.`, `_` and `-`. Every error has the shape of `Error`, also a path that is not here"
        ' (404, `{"error": "Not found"}`) and a method that a path does not take (405, with `Allow`).'
        " Members are only ever added: leave aside those you do not know."
    ),
    "license": {"name": "MIT", "identifier": "MIT"},
}
SERVERS = [{"url": "/", "description": "Where this document came from"}]
SCHEMES = {
    "userToken": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "The product's own token of a signed-in user; it names the tenant",
    },
    "serviceToken": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "bsk_…",
        "description": "Of a service, made by an operator; the scopes it needs stand at each route",
    },
}
ERROR = {
    "type": "object",
    "description": "Every error of every route. Where there is a `code`, decide by it: sentences may change.",
    "required": ["error"],
    "properties": {
        "error": {"type": "string", "description": "What went wrong, in a sentence"},
        "code": {"type": "string", "description": "The same, in a word", "pattern": "^[a-z_]+$"},
        "request_id": {"type": "string", "description": "The value of `X-Request-Id`"},
        "param": {"type": "string", "description": "The member or parameter at fault"},
    },
    "dependentRequired": {"code": ["request_id"], "param": ["code"]},
}
RETRY_AFTER: Json = {
    "description": "Seconds, where it is worth waiting",
    "schema": {"type": "integer", "minimum": 1},
    "example": 5,
}
HEADERS: dict[str, Json] = {
    "X-Request-Id": {
        "description": "Names this request in our logs",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
        "example": "7d0c41f2",
    },
    "X-Content-Type-Options": {
        "description": "No browser guesses what this is",
        "required": True,
        "schema": {"type": "string", "const": "nosniff"},
    },
    "Cache-Control": {
        "description": "`no-store`, unless this says for how long a copy is good",
        "required": True,
        "schema": {"type": "string"},
        "example": "no-store",
    },
    "ETag": {
        "description": "For `If-None-Match`",
        "schema": {"type": "string", "pattern": '^W/"[!-~]+"$'},
        "example": 'W/"42-9f86d081884c"',
    },
    "Retry-After": RETRY_AFTER,
    "Vary": {
        "description": "A copy is for its caller alone",
        "schema": {"type": "string", "const": "Authorization"},
    },
    "WWW-Authenticate": {
        "description": "What is missing",
        "required": True,
        "schema": {"type": "string", "const": "Bearer"},
    },
}
ALWAYS = ("X-Request-Id", "X-Content-Type-Options", "Cache-Control")
IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "description": "The `ETag` of what you have",
    "schema": {"type": "string"},
    "example": 'W/"42-9f86d081884c"',
}
IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The same key gives the same result for 24 hours",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"},
    "example": "3f0c1c7e-8a40-4c0b-9a51-1d1f0a9c7a11",
}
EXAMPLE_REQUEST = "7d0c41f2"

blueprint = Blueprint("openapi", __name__)


@blueprint.get("/api/openapi.json")
@observed("openapi")
def openapi() -> Response:
    """This document."""
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # the proxy is no key
    return Response(written(app), content_type="application/json")


@functools.lru_cache(maxsize=2)
def written(app: Flask) -> str:
    """The contract of an app's routes, in an order that only changes with it."""
    return json.dumps(describe(app), indent=2, ensure_ascii=False) + "\n"


def describe(app: Flask) -> Json:
    """Every view of `app` that states its contract."""
    operations = sorted(_operations(app), key=lambda one: (one.path, one.method))
    models = [(model, mode, TypeAdapter(model)) for one in operations for model, mode in one.models]
    references, definitions = TypeAdapter.json_schemas(
        models, ref_template="#/components/schemas/{model}", schema_generator=_Plain
    )
    schemas = _Schemas(references, definitions["$defs"])
    paths: dict[str, Json] = {}
    for one in operations:
        paths.setdefault(one.path, {})[one.method] = one.described(schemas)
    kinds = {kind for one in operations for kind in one.refusals} - {errors.InvalidRequest}
    headers = {name: header for one in operations for name, header in one.own_headers.items()}
    return {
        "openapi": "3.1.0",
        "info": INFO,
        "servers": SERVERS,
        "tags": [{"name": name, "description": said} for name, said in sorted({one.tag for one in operations})],
        "paths": paths,
        "components": {
            "schemas": dict(sorted({**definitions["$defs"], "Error": ERROR}.items())),
            "examples": {
                "NotFound": {"summary": "No path of ours", "value": answers.framework_body(NotFound())},
                **{kind.__name__: _example(kind.example()) for kind in sorted(kinds, key=lambda k: k.__name__)},
            },
            "headers": HEADERS | dict(sorted(headers.items())),
            "securitySchemes": {
                name: SCHEMES[name]
                for name in sorted({name for one in operations for choice in one.security for name in choice})
            },
        },
    }


class _Plain(GenerateJsonSchema):
    """A member's name says what it is; it needs no title."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


@dataclass(frozen=True)
class _Schemas:
    """The models' schemas: where each stands, and what it says."""

    references: Mapping[Any, Any]
    definitions: Mapping[str, Json]

    def media(self, model: Any, mode: str) -> Json:
        """The model as JSON, with an example."""
        reference = self.references[model, mode]
        return {"schema": reference, "example": self._example(reference)}

    def _example(self, schema: Json) -> Any:
        """The schema's own, or one made of its members'. One that has none is a fault of ours."""
        if "$ref" in schema:
            return self._example(self.definitions[schema["$ref"].rpartition("/")[2]])
        if "examples" in schema:
            return schema["examples"][0]
        if "const" in schema:
            return schema["const"]
        if "properties" in schema:
            return {name: self._example(member) for name, member in schema["properties"].items()}
        if "items" in schema:
            return [self._example(kind) for kind in schema["items"].get("anyOf", [schema["items"]])]
        if "anyOf" in schema:
            return self._example(schema["anyOf"][0])
        return schema["default"]


@dataclass(frozen=True)
class _Operation:
    """One view under one path and method, and all it says of itself."""

    path: str
    method: str
    view: View

    @property
    def tag(self) -> tuple[str, str]:
        """Its module, by name and by the first paragraph of what that says."""
        module = sys.modules[self.view.__module__]
        said = inspect.cleandoc(module.__doc__ or "").partition("\n\n")[0]
        return module.__name__.rpartition(".")[2], " ".join(said.split())

    @property
    def body(self) -> type[BaseModel] | None:
        """What it reads, checked or raw."""
        checked: type[BaseModel] | None = get_type_hints(self.view).get("body")
        return checked or getattr(self.view, "__raw__", None)

    @property
    def models(self) -> list[tuple[Any, Any]]:
        """The models it has to do with."""
        asked = [(self.body, "validation")] if self.body else []
        return [*asked, (answers_with(self.view), "serialization")]

    @property
    def refusals(self) -> list[type[BillingError]]:
        """What it may answer beside its success, the unforeseen included."""
        every = {*refusals(self.view), BillingError, errors.ServiceUnavailable}
        return sorted(every, key=lambda kind: (kind.status, kind.__name__))

    @property
    def own_headers(self) -> Mapping[str, Json]:
        """Headers that it sends with its answers."""
        given: Mapping[str, Json] = getattr(self.view, "__gives__", {})
        return given

    @property
    def security(self) -> list[dict[str, list[str]]]:
        """Who may come in."""
        schemes: list[dict[str, list[str]]] = getattr(self.view, "__security__", [])
        return schemes

    @property
    def parameters(self) -> list[Mapping[str, Any]]:
        """Of path, query and header."""
        takes = list(getattr(self.view, "__takes__", ()))
        if errors.IdempotencyKeyReused in self.refusals:
            takes.append(IDEMPOTENCY_KEY)
        if getattr(self.view, "__may_be_same__", False):
            takes.append(IF_NONE_MATCH)
        return takes

    @property
    def _needs(self) -> list[str]:
        """In words, too: to OpenAPI, scopes of bearer tokens are a note in the margin."""
        scopes = [scope for choice in self.security for needed in choice.values() for scope in needed]
        return [f"The service's token needs the scope `{scope}`." for scope in scopes]

    def described(self, schemas: _Schemas) -> Json:
        """As OpenAPI has it."""
        summary, _, description = inspect.cleandoc(self.view.__doc__ or "").partition("\n")
        said = (" ".join(description.split()) or summary, *self._needs)
        operation: Json = {
            "operationId": self.view.__name__,
            "tags": [self.tag[0]],
            "summary": summary.rstrip("."),
            "description": " ".join(said),
            "security": self.security,
        }
        if self.parameters:
            operation["parameters"] = self.parameters
        if self.body:
            operation["requestBody"] = {
                "required": any(field.is_required() for field in self.body.model_fields.values()),
                "content": {"application/json": schemas.media(self.body, "validation")},
            }
        operation["responses"] = dict(self._responses(schemas))
        return operation

    def _responses(self, schemas: _Schemas) -> Iterator[tuple[str, Json]]:
        model = answers_with(self.view)
        may_be_same = getattr(self.view, "__may_be_same__", False)
        of_copies = ["ETag", *(["Vary"] if self.security else [])] if may_be_same else []
        headers = _headers([*ALWAYS, *of_copies, *self.own_headers])
        media_type = getattr(self.view, "__media_type__", "application/json")
        yield (
            "200",
            {
                "description": f"{_first_line(model)}.",
                "headers": headers,
                "content": {media_type: schemas.media(model, "serialization")},
            },
        )
        if may_be_same:
            yield "304", {"description": "What you have is what there is.", "headers": headers}
        by_status: dict[int, list[type[BillingError]]] = {}
        for kind in self.refusals:
            by_status.setdefault(kind.status, []).append(kind)
        for status, kinds in by_status.items():
            yield str(status), self._refusal(kinds)

    def _refusal(self, kinds: list[type[BillingError]]) -> Json:
        examples: Json = {kind.__name__: _ref("examples", kind.__name__) for kind in kinds}
        if errors.InvalidRequest in kinds:
            examples["InvalidRequest"] = _example(self._mistake())
        if kinds[0].status == NotFound.code and "{" in self.path:
            examples["NotFound"] = _ref("examples", "NotFound")
        own = {name for kind in kinds for name in kind.example().headers}
        return {
            "description": " ".join(f"{_first_line(kind)}." for kind in kinds),
            "headers": _headers([*ALWAYS, *sorted(own)]),
            "content": {"application/json": {"schema": _ref("schemas", "Error"), "examples": examples}},
        }

    def _mistake(self) -> BillingError:
        """How a mistake in what this operation takes is answered."""
        read = get_type_hints(self.view).get("body")
        if read:
            return contract.fault_of(read, b'{"surprise": true}')
        return contract.unfit(next(one for one in self.parameters if one["schema"]["type"] != "string"))


def _operations(app: Flask) -> Iterator[_Operation]:
    for rule in app.url_map.iter_rules():
        view = app.view_functions[rule.endpoint]
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
            if hasattr(view, "__refusals__"):
                yield _Operation(re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method.lower(), view)


def _example(error: BillingError) -> Json:
    return {"summary": _first_line(type(error)), "value": answers.body(error, EXAMPLE_REQUEST)}


def _first_line(documented: type) -> str:
    return (documented.__doc__ or "").partition("\n")[0].rstrip(".")


def _headers(names: Iterable[str]) -> Json:
    return {name: _ref("headers", name) for name in names}


def _ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}
