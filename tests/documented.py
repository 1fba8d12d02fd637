"""The contract as a judge: an answer that the document does not have fails the test that got it.

The clients of `make_app` are `Judged`, so every test of the suite is a test of `docs/openapi.json`, too. A
document may have more than is ever seen here, and never less.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.exceptions import MethodNotAllowed, NotFound
from werkzeug.routing import Rule
from werkzeug.test import TestResponse

from billing import web

Json = dict[str, Any]

OF_HTTP = {"Content-Type", "Content-Length"}


class Judged(FlaskClient):
    """Somebody who takes the contract at its word."""

    def open(self, *args: Any, **kwargs: Any) -> TestResponse:
        """Ask, and compare the answer with the contract."""
        answer = super().open(*args, **kwargs)
        judge(self.application, answer)
        return answer


@functools.cache
def document() -> Json:
    """The contract."""
    read: Json = json.loads(web.contract())
    return read


def operations() -> Iterator[tuple[str, Json]]:
    """Every operation, as `GET /path`."""
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def judge(app: Flask, answer: TestResponse) -> None:
    """Whether the contract has this answer to this request. What a test added to the app is not judged."""
    method, path = answer.request.method, answer.request.path
    if method == "OPTIONS":
        return
    try:
        rule, _ = app.url_map.bind("localhost").match(path, method, return_rule=True)
    except (NotFound, MethodNotAllowed):
        _judge_body(answer, {"$ref": "#/components/schemas/Error"})
        _judge_headers(answer, {name: _header(name) for name in _always()} | {"Allow": {}})
        return
    operations = document()["paths"].get(written(rule))
    if operations is None:
        return
    where = f"{method} {rule.rule}"
    responses = operations["get" if method == "HEAD" else method.lower()]["responses"]
    assert str(answer.status_code) in responses, (
        f"{where} answered {answer.status_code}, which is not documented"
    )
    response = responses[str(answer.status_code)]
    _judge_headers(answer, response["headers"])
    if "content" not in response:
        assert answer.data == b"", f"{where} sent a body with {answer.status_code}"
    elif method != "HEAD":
        assert answer.content_type in response["content"], f"{where} sent {answer.content_type}"
        _judge_body(answer, response["content"][answer.content_type]["schema"])


def written(rule: Rule) -> str:
    """A route's path as the document has it."""
    return re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)


def faults(schema: Json, value: Any) -> list[str]:
    """How a value is not what a schema of the document says."""
    return [str(fault) for fault in _validator(json.dumps(schema)).iter_errors(value)]


def _judge_body(answer: TestResponse, schema: Json) -> None:
    assert faults(schema, json.loads(answer.data)) == []


def _judge_headers(answer: TestResponse, documented: Json) -> None:
    headers = {name: resolved(header) for name, header in documented.items()}
    assert set(answer.headers.keys()) - OF_HTTP <= set(headers), "a header is not documented"
    for name, header in headers.items():
        value: Any = answer.headers.get(name)
        if value is None:
            assert not header.get("required"), f"{name} is missing"
        elif schema := header.get("schema"):
            assert faults(schema, int(value) if schema["type"] == "integer" else value) == []


def _always() -> set[str]:
    """What every answer has."""
    every = [
        set(response["headers"])
        for operations in document()["paths"].values()
        for operation in operations.values()
        for response in operation["responses"].values()
    ]
    return set.intersection(*every)


def _header(name: str) -> Json:
    return {"$ref": f"#/components/headers/{name}"}


def resolved(thing: Json) -> Json:
    """What a reference leads to, or the thing itself."""
    if "$ref" not in thing:
        return thing
    found: Any = document()
    for part in thing["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return dict(found)


@functools.cache
def _validator(schema: str) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(
        {**json.loads(schema), "components": document()["components"]}, validate_formats=True
    )
