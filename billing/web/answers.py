"""How every answer leaves: request ids, safe headers, one log line, and the one error shape.

`hooks(target)` gives them to a whole app, or to the blueprint alone where another app mounts it.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterable

import structlog
from flask import Blueprint, Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from billing import telemetry
from billing.errors import BillingError

log = structlog.get_logger(__name__)


def hooks(target: Flask | Blueprint) -> None:
    """Request ids, the one error shape, safe headers and one log line, for everything under `target`."""
    target.before_request(_begin)
    target.after_request(_finish)
    target.teardown_request(_forget)
    target.register_error_handler(BillingError, _refused)
    target.register_error_handler(HTTPException, _framework_error)
    target.register_error_handler(Exception, _unforeseen)


def body(error: BillingError, request_id: str) -> dict[str, str]:
    """What a caller is told of an error."""
    told = {"error": str(error)}
    if error.code:
        told |= {"code": error.code, "request_id": request_id}
    return told | {"param": error.param} if error.param else told


def framework_body(error: HTTPException) -> dict[str, str]:
    """The same, of one that is Flask's own."""
    return {"error": error.name.capitalize()}


def _begin() -> None:
    given = request.headers.get("X-Request-Id", "")
    g.request_id = given if re.fullmatch(r"[A-Za-z0-9._-]{1,128}", given) else uuid.uuid4().hex
    g.began = time.perf_counter()
    structlog.contextvars.bind_contextvars(request_id=g.request_id)
    if request.query_string:
        telemetry.hide_query(request.path)


def _finish(response: Response) -> Response:
    if "began" not in g:
        return response  # the app that we are mounted in has answered in our place
    response.headers["X-Request-Id"] = g.request_id
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers["X-Content-Type-Options"] = "nosniff"
    if "row_says_it" not in g:
        _log_answer(response)
    return response


def _log_answer(response: Response) -> None:
    log.info(
        "http.answered",
        method=request.method,
        route=request.url_rule.rule if request.url_rule else None,
        status=response.status_code,
        ms=round((time.perf_counter() - g.began) * 1000, 1),
    )


def _forget(_error: BaseException | None) -> None:
    """The thread's next log line may be about somebody else."""
    structlog.contextvars.clear_contextvars()


def _refused(error: BillingError) -> Response:
    if error.status >= 500:
        log.warning("http.failed", outcome=error.outcome, cause=type(error.__cause__).__name__)
    return _json(error.status, body(error, g.get("request_id", "")), error.headers.items())


def _framework_error(error: HTTPException) -> Response:
    """Flask's own refusals, keeping their headers (Allow, …) and losing their HTML."""
    kept = [(name, value) for name, value in error.get_headers() if name != "Content-Type"]
    return _json(error.code or 500, framework_body(error), kept)


def _unforeseen(error: Exception) -> Response:
    log.error("http.unforeseen", exc_info=error)
    return _json(500, {"error": BillingError.sentence}, ())


def _json(status: int, body: dict[str, str], headers: Iterable[tuple[str, str]]) -> Response:
    response = Response(json.dumps(body, separators=(",", ":")), status, content_type="application/json")
    response.headers.extend(list(headers))
    return response
