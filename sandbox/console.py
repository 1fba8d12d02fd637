"""The control page at the sandbox's root: all levers in sight, and what came of them.

A view of `control` and `overview` with no logic of its own: each form of the page is sent to the lever of
/_sandbox that programs use, and `lead_back` answers it with a way back here, or with the page and the
sentence that says what was wrong.
"""

from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from flask import Blueprint, Response, make_response, redirect, render_template, request, url_for

from sandbox import control, overview
from sandbox.account import Account
from sandbox.deliveries import Deliveries
from sandbox.errors import Refusal
from sandbox.pages import HEADERS

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


def blueprint(account: Account, deliveries: Deliveries) -> Blueprint:
    console = Blueprint("console", __name__)

    @console.get("/")
    def page() -> Response:
        return shown(request.args.get("before"))

    @console.errorhandler(Refusal)
    def explain(refusal: Refusal) -> Response:
        return shown(problem=str(refusal), status=refusal.status)

    @console.after_app_request
    def lead_back(answer: Response) -> Response:
        if request.blueprint != "control" or not control.is_form(request):
            return answer
        if answer.status_code in (403, 500) or not answer.is_json:  # strangers are shown nothing
            return answer
        told = answer.get_json()
        if answer.status_code >= 400:
            return shown(problem=told["error"], status=answer.status_code)
        lever = request.path.split("/")[2]
        if lever == "portal":
            return to(urlsplit(told["url"]).path)
        place = request.args.get("back", lever)
        return to(url_for("console.page", before=request.args.get("before"), _anchor=place))

    def shown(before: str | None = None, *, problem: str | None = None, status: int = 200) -> Response:
        store = account.store
        with store.lock:  # or it would be of several moments
            seen: dict[str, Any] = {
                "events": overview.latest_events(store, deliveries, before),
                "standings": overview.standings(store),
                "pending": overview.pending(store),
                "endpoints": overview.endpoints(store),
                "now": store.now(),
                "declines_left": store.declines_left,
                "after_retries": store.after_retries,
                "retry_days": store.retry_days,
            }
        html = render_template(
            "control.html",
            **seen,
            before=before,
            calls=account.log.list(overview.CALLS_SHOWN)[::-1],
            faults=account.faults.list(),
            is_full=len(seen["events"]) == overview.EVENTS_SHOWN,
            latency_seconds=account.latency_seconds,
            outstanding=deliveries.outstanding(),
            problem=problem,
            switches=deliveries.switches,
        )
        answer = make_response(html, status)
        answer.headers.update({**HEADERS, "Content-Security-Policy": POLICY})
        return answer

    console.add_app_template_filter(to_the_second)
    console.add_app_template_filter(iso)
    return console


def to(address: str) -> Response:
    """Seen by GET, so that reloading it repeats nothing."""
    return make_response(redirect(address, 303))


def to_the_second(instant: int) -> str:
    moment = moment_of(instant)
    return f"{moment.day} {moment:%b %Y, %H:%M:%S} UTC" if moment else str(instant)


def iso(instant: int) -> str:
    moment = moment_of(instant)
    return moment.isoformat() if moment else ""


def moment_of(instant: int) -> datetime | None:
    """None for what was made up and is no date."""
    try:
        return datetime.fromtimestamp(instant, UTC)
    except (OverflowError, ValueError, OSError):
        return None
