"""What all pages of the console share: how they are made, what goes with them, and how an action ends.

A page is a template and the dataclasses of `operations`. An action answers with `done`: a redirect, so that
reloading repeats nothing, and a sentence for the next page. Only what is shown just once stands on the answer
itself, a new token or what is revealed: reloading that does it again. What is refused is a page, too.
"""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import structlog
from flask import (
    Blueprint,
    Response,
    current_app,
    g,
    make_response,
    redirect,
    render_template,
    request,
    url_for,
)
from markupsafe import Markup
from werkzeug.exceptions import HTTPException

from billing import findings
from billing.console import access, style
from billing.errors import BillingError, StripeFailed
from billing.operations import cures
from billing.web.contract import service

POLICY = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
NOTICE = "__Host-billing_notice"
PLACES = (
    ("Overview", "overview"),
    ("Inbox", "inbox"),
    ("Tenants", "tenants"),
    ("Plans", "plans"),
    ("Consumers", "consumers"),
    ("Audit", "audit"),
    ("Doctor", "doctor"),
)

log = structlog.get_logger(__name__)


class Refused(Exception):
    """What was asked for is not done, and the operator is told why."""

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


def page(template: str, *, status: int = 200, **values: Any) -> Response:
    """A page of the console."""
    access.begin()
    notice = _read_notice()
    html = render_template(
        f"billing_console/{template}",
        operator=g.operator,
        signs_in="billing_console.sign_out" in current_app.view_functions,
        places=[place for place in PLACES if f"billing_console.{place[1]}.show" in current_app.view_functions],
        here=(request.blueprint or "").rpartition(".")[2],
        form_token=access.form_token(),
        livemode=service().settings.livemode,
        notice=notice,
        sheet=style.TAG,
        now=datetime.now(UTC),
        **values,
    )
    response = make_response(html, status)
    if notice:
        response.delete_cookie(NOTICE, path="/", secure=True, httponly=True, samesite="Strict")
    return response


def done(sentence: str, back: str) -> Response:
    """On to a page, which alone says what was done. `back` is an address of ours, never one that was sent."""
    response = make_response(redirect(back, 303))
    written = base64.urlsafe_b64encode(json.dumps([urlsplit(back).path, sentence]).encode()).decode()
    response.set_cookie(NOTICE, written, max_age=60, path="/", secure=True, httponly=True, samesite="Strict")
    return response


def prepare(blueprint: Blueprint) -> None:
    """Give every page its headers, and every refusal a page."""

    @blueprint.after_request
    def protect(response: Response) -> Response:
        if not access.has_begun():
            return response
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        if "text/html" in response.content_type:
            response.headers["Cache-Control"] = "no-store"
        return response

    blueprint.register_error_handler(Refused, lambda e: _page_of(str(e), e.status))
    blueprint.register_error_handler(BillingError, _refused)
    blueprint.register_error_handler(HTTPException, _of_the_framework)
    blueprint.register_error_handler(Exception, _unforeseen)
    for mark in (ago, in_time, moment, quantity, number_of, pretty):
        blueprint.add_app_template_filter(mark, f"console_{mark.__name__}")


def _read_notice() -> str | None:
    """What the last action has left for this page."""
    try:
        path, sentence = json.loads(base64.urlsafe_b64decode(request.cookies.get(NOTICE, "")))
    except (ValueError, TypeError):
        return None
    here = url_for(request.endpoint, **(request.view_args or {})) if request.endpoint else None
    return str(sentence) if path == here else None


# ---- what went wrong


def _refused(error: BillingError) -> Response:
    if error.status >= 500:
        log.warning("http.failed", outcome=error.outcome, cause=type(error.__cause__).__name__)
    status = error.told.status if isinstance(error, StripeFailed) else error.status
    response = _page_of(f"{cures.told(error)}.".replace("..", "."), status)
    response.headers.extend(error.headers)
    return response


def _of_the_framework(error: HTTPException) -> Response:
    return _page_of(error.description or error.name, error.code or 500)


def _unforeseen(error: Exception) -> Response:
    log.error("http.unforeseen", exc_info=error)
    sentence = "Something went wrong that nobody foresaw. The log has it under the request's id."
    return _page_of(sentence, 500)


def _page_of(problem: str, status: int) -> Response:
    return page("refused.html", problem=problem, back=_came_from(), status=status)


def _came_from() -> str | None:
    """The page of ours that led here, to go back to; none of another's, and none that only a form leads to."""
    at = urlsplit(request.referrer or "")
    adapter = current_app.create_url_adapter(request)
    if at.netloc != request.host or not at.path.startswith(request.root_path) or adapter is None:
        return None
    try:
        endpoint, _ = adapter.match(at.path.removeprefix(request.root_path), method="GET")
    except HTTPException:
        return None
    ours = (request.blueprint or "").partition(".")[0]
    if endpoint.partition(".")[0] != ours or endpoint == f"{ours}.nowhere" or at.path == request.path:
        return None
    return f"{at.path}?{at.query}" if at.query else at.path


# ---- how things are written


def moment(at: datetime | None) -> Markup | str:
    """A moment to the second, in UTC."""
    if at is None:
        return "never"
    at = at.astimezone(UTC)
    return Markup('<time datetime="{}">{}</time>').format(at.isoformat(), f"{at:%Y-%m-%d %H:%M:%S} UTC")


def ago(at: datetime | None) -> Markup | str:
    """How long ago it was; the moment itself for those who point at it, or listen."""
    if at is None:
        return "never"
    at = at.astimezone(UTC)
    seconds = (datetime.now(UTC) - at).total_seconds()
    written = f"in {in_time(-seconds)}" if seconds < -1 else f"{in_time(seconds)} ago"
    return Markup('<time datetime="{0}" title="{0}">{1}</time>').format(
        at.isoformat(timespec="seconds"), written
    )


def in_time(seconds: float) -> str:
    """A length of time, as roughly as people say it."""
    for length, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{int(seconds // length)}\N{NO-BREAK SPACE}{name}"
    return f"{max(0, int(seconds))}\N{NO-BREAK SPACE}s"


def quantity(number: int) -> str:
    """With a comma at each thousand."""
    return f"{number:,}"


def number_of(number: int, one: str, more: str | None = None) -> str:
    """The same, and of what."""
    return findings.number_of(number, one, more, exact=True)


def pretty(value: Any) -> str:
    """JSON for the eye."""
    return json.dumps(value, indent=2, ensure_ascii=False)
