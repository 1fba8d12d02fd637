"""Who is let into the console, and what guards its actions.

An operator signs in with a name of BILLING_CONSOLE_USERS and its password, at most so fast (`operators`). The
session is a cookie that no script sees and no other site's page sends. Each form carries a token made of that
cookie, so that what is posted came from a page of ours. `viewed` goes round what may be seen by every
operator, `acted` round what only those with the role may do, and it insists on a reason.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import re
import secrets
import threading
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import unquote

import structlog
from flask import Blueprint, Request, Response, current_app, g, make_response, redirect, request, url_for
from werkzeug.security import check_password_hash

from billing import audit, operators
from billing.audit import By
from billing.config import ConsoleUser
from billing.console import pages
from billing.console.pages import Refused
from billing.db import SYSTEM
from billing.operators import Attempt, Operator
from billing.telemetry import observed
from billing.web.contract import service
from billing.web.links import ip_of

COOKIE = "__Host-billing_console"
TOKEN = re.compile(r"[\w-]{43}", re.ASCII)
LONGEST_PASSWORD = 1000
LONGEST_REASON = 500
LARGEST_FORM = 64 * 1024
FOR_ANYBODY = {"billing_console.style.sheet", "billing_console.sign_in"}  # whose session is not looked up
AT_ONCE = 2  # passwords checked in a process: each takes a third of a second and 32 MB
WAITING = 4  # who come while that many are checked; more would hold the threads of webhooks and reads
NOBODYS = (
    "scrypt:32768:8:3$billing$"  # no password has it: who is not known must take as long
    + "0" * 128
)

WhoIsIt = Callable[[Request], Operator | None]
View = TypeVar("View", bound=Callable[..., Any])

log = structlog.get_logger(__name__)

_door = threading.BoundedSemaphore(AT_ONCE + WAITING)
_checking = threading.BoundedSemaphore(AT_ONCE)


def prepare(blueprint: Blueprint, who: WhoIsIt | None) -> None:
    """Let the pages know who asks, and give the blueprint its ways in and out."""

    @blueprint.before_request
    def find_operator() -> None:
        begin()
        request.max_content_length = request.max_form_memory_size = LARGEST_FORM
        if request.endpoint not in FOR_ANYBODY:
            g.operator = who(request) if who else None if g.is_new else _signed_in(g.token)

    @blueprint.after_request
    def keep_token(response: Response) -> Response:
        if has_begun() and g.is_new and "text/html" in response.content_type:
            _keep(response, g.token)
        return response

    blueprint.add_url_rule("/<path:anywhere>", view_func=nowhere)
    for rule in ("/", "/<path:anywhere>"):
        blueprint.add_url_rule(rule, view_func=nothing, methods=["POST"])
    if who is None:
        blueprint.add_url_rule("/sign-in", view_func=sign_in_page, methods=["GET"])
        blueprint.add_url_rule("/sign-in", view_func=sign_in, methods=["POST"])
        blueprint.add_url_rule("/sign-out", view_func=sign_out, methods=["POST"])


def begin() -> None:
    """From here on the answer is ours: there is a token, and nobody who asks until we have found them."""
    if not has_begun():
        given = request.cookies.get(COOKIE, "")
        g.token = given if TOKEN.fullmatch(given) else secrets.token_urlsafe(32)
        g.is_new = g.token != given
        g.operator = None


def has_begun() -> bool:
    """Or the app that the console is mounted in has answered in its place."""
    return "token" in g


def viewed(view: View) -> View:
    """For every operator; anybody else is led to the way in."""

    @functools.wraps(view)
    def inner(**kwargs: Any) -> Any:
        if g.operator is None:
            return _lead_in()
        return view(**kwargs)

    return inner  # type: ignore[return-value]  # of the same kind


def acted(view: Callable[..., Any]) -> Callable[..., Any]:
    """For operators who may act. The view gets `by`: who does it and why, for the trail."""

    @functools.wraps(view)
    def inner(**kwargs: Any) -> Any:
        if g.operator is None:
            return _lead_in()
        if not g.operator.may_act:
            raise Refused("Your role may look and not act.", 403)
        require_own_form()
        return view(by=_by(), **kwargs)

    return inner


@observed("console.nowhere")
@viewed
def nowhere(anywhere: str) -> Any:
    """No page of the console is there; none has an address that ends in a slash, but for the first."""
    if anywhere.endswith("/"):
        query = request.query_string.decode("ascii", "ignore")
        there = url_for(".nowhere", anywhere=anywhere.rstrip("/"))
        return redirect(f"{there}?{query}" if query else there, 308)
    raise Refused("There is no such page.", 404)


@observed("console.nothing")
@acted
def nothing(by: By, anywhere: str = "") -> Any:
    """No action of the console is there."""
    raise Refused("Nothing can be sent to this address. Nothing was done.", 404)


def form_token() -> str:
    """What a form carries to show that it is one of ours."""
    return hmac.new(g.token.encode(), b"form", hashlib.sha256).hexdigest()


def require_own_form() -> None:
    """Refuse what was posted from anywhere but a page of ours."""
    if g.is_new or not hmac.compare_digest(request.form.get("form", "").encode(), form_token().encode()):
        raise Refused("This form is out of date. Go back, reload the page, and send it again.", 403)


def _by() -> By:
    reason = request.form.get("reason", "").strip()
    if not reason:
        raise Refused("Say why: every action needs a reason.", 400)
    if len(reason) > LONGEST_REASON or not reason.isprintable():
        raise Refused(f"The reason must be one line of at most {LONGEST_REASON} characters.", 400)
    return By(g.operator.name, reason, g.request_id, ip_of(request))


# ---- the way in and out


def _users() -> dict[str, ConsoleUser]:
    return {user.name: user for user in service().settings.billing_console_users}


def _signed_in(token: str) -> Operator | None:
    """Whose session it is. A page that renews itself is not used by anybody."""
    if request.args.get("renew") == "1":
        session = service().db.run(SYSTEM, operators.find(token))
    else:
        session, _ = service().db.run(SYSTEM, operators.find(token), operators.use(token))
    user = _users().get(session.name) if session else None
    if session is None or user is None or session.entry != user.fingerprint:
        return None
    return Operator(user.name, user.may_act)


def _lead_in() -> Any:
    """To the way in; who comes from another site comes once more from here, for the cookie was kept back."""
    if request.method != "GET":
        raise Refused("You are not signed in any more. Nothing was done.", 401)
    if request.headers.get("Sec-Fetch-Site") == "cross-site":
        return pages.page("through.html", status=200)
    if "billing_console.sign_in_page" not in current_app.view_functions:
        raise Refused("You are not one of the operators.", 403)
    return redirect(url_for("billing_console.sign_in_page", back=request.full_path.rstrip("?")), 303)


@observed("console.sign_in_page")
def sign_in_page() -> Any:
    """Name and password."""
    if g.operator:
        return redirect(_back())
    return pages.page("sign_in.html", back=_back())


@observed("console.sign_in")
def sign_in() -> Any:
    """Open a session, or say that this was nobody's name and password."""
    require_own_form()
    if not _door.acquire(blocking=False):
        return _turned_away(None, "Too many are signing in just now. Try again in a moment.", 429)
    try:
        return _judged(request.form.get("name", "").strip().lower(), request.form.get("password", ""))
    finally:
        _door.release()


def _judged(name: str, password: str) -> Any:
    user = _users().get(name)
    attempt = Attempt(name, ip_of(request) or "unknown", _key())
    with service().db.begin(SYSTEM) as connection:
        may_try = operators.may_try(connection, attempt)
    if not may_try:
        return _turned_away(user, "Too many attempts. Wait a moment; after many of them, some minutes.", 429)
    if not _is_right(user, password):
        with service().db.begin(SYSTEM) as connection:
            by = By(user.name if user else "unknown", "wrong password", g.request_id, ip_of(request))
            audit.note_refused(connection, by, "console.sign_in")
        return _turned_away(user, "No operator has this name and password.", 401)
    assert user
    token = secrets.token_urlsafe(32)
    with service().db.begin(SYSTEM) as connection:
        operators.forgive(connection, attempt)
        operators.open_session(connection, token, user.name, user.fingerprint)
        audit.note(connection, By(user.name, "signed in", g.request_id, ip_of(request)), "console.sign_in")
    log.info("console.signed_in", operator=user.name)
    response = make_response(redirect(_back(), 303))
    _keep(response, token)
    return response


@observed("console.sign_out")
def sign_out() -> Any:
    """End the session, here and in the browser."""
    require_own_form()
    with service().db.begin(SYSTEM) as connection:
        operators.close_session(connection, g.token)
    response = redirect(url_for("billing_console.sign_in_page"), 303)
    response.delete_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="Strict")
    return response


def _key() -> bytes:
    """Known to whoever knows the setting, and to nobody who has the database only."""
    hashes = " ".join(user.hash.get_secret_value() for user in _users().values())
    return hashlib.sha256(hashes.encode()).digest()


def _is_right(user: ConsoleUser | None, password: str) -> bool:
    """In the same time for those who are known and those who are not."""
    if len(password) > LONGEST_PASSWORD:
        return False
    with _checking:
        is_right = check_password_hash(user.hash.get_secret_value() if user else NOBODYS, password)
    return is_right and user is not None


def _turned_away(user: ConsoleUser | None, sentence: str, status: int) -> Any:
    log.warning("console.refused", operator=user.name if user else None, ip=ip_of(request), status=status)
    response = pages.page("sign_in.html", back=_back(), problem=sentence, status=status)
    if status == 429:
        response.headers["Retry-After"] = "2"
    return response


def _keep(response: Response, token: str) -> None:
    response.set_cookie(COOKIE, token, path="/", secure=True, httponly=True, samesite="Strict")


def _back() -> str:
    """Where they wanted to go: a page of the console, and nowhere else."""
    home = url_for("billing_console.overview.show")
    wanted = request.values.get("back", "")
    path = unquote(wanted.partition("?")[0].partition("#")[0])  # a browser takes %2e for a dot
    is_plain = wanted.isascii() and wanted.isprintable() and not re.search(r"\\|//|/\.", path)
    return wanted if wanted.startswith(home) and is_plain else home
