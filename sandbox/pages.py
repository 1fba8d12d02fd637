"""What a customer sees: the hosted page behind a portal session's address.

The address is the only credential, so it ends after five minutes without a visit and leaks to nobody.
"""

from urllib.parse import urlsplit

from flask import Blueprint, Response, render_template

from sandbox.account import Account
from sandbox.resources import customers, portal

UNUSED_SECONDS = 300

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def blueprint(account: Account) -> Blueprint:
    hosted = Blueprint("pages", __name__)

    @hosted.get("/p/session/<token>")
    def portal_session(token: str) -> tuple[str, int]:
        now = account.store.now()
        with account.store.lock:
            page = account.store.collection(portal.PAGE).get(token)
            if not page:
                return gone("No such page", "This address was never given out, or was forgotten since."), 404
            if now - page["seen"] > UNUSED_SECONDS:
                return gone(
                    "This link has expired", "Go back to where you came from and ask for a new one."
                ), 410
            page["seen"] = now
            customer = account.store.collection(customers.KIND)[page["session"]["customer"]]
            return render_template("portal.html", session=page["session"], customer=customer), 200

    @hosted.app_template_filter()
    def site(url: str) -> str:
        return urlsplit(url).netloc

    @hosted.after_request
    def protect(response: Response) -> Response:
        response.headers.update(HEADERS)
        return response

    return hosted


def gone(heading: str, explanation: str) -> str:
    return render_template("gone.html", heading=heading, explanation=explanation)
