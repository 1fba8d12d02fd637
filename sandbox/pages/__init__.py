"""What a customer sees, plain HTML that works without a script: `checkout`, `portal` and `invoices`.

Each page calls what /v1 and /_sandbox call and has no rules of its own. `visits` is one request to a page,
`guests` whose session of the Portal it is, `methods` what can be chosen to pay by, `plans` what to change
to, and `words` how all that is said. An address is the only credential, so it leaks to nobody; that only a
page of ours may post here is seen to by `safety`.

Who is done is led on by a page (`left.html`), not by a redirect of the post: browsers hold `form-action`
against each address such a redirect passes, and where an app sends people on to is not known here.
"""

from flask import Blueprint, Response, g, make_response, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from sandbox.account import Account
from sandbox.errors import Refusal
from sandbox.pages import checkout, invoices, portal, words
from sandbox.pages.visits import Gone, gone, no_page

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "same-origin",  # with none at all a browser would keep the origin of our own forms back
    "X-Content-Type-Options": "nosniff",
}


def blueprint(account: Account) -> Blueprint:
    hosted = Blueprint("pages", __name__)
    for part in (checkout, portal, invoices):
        hosted.register_blueprint(part.routes)

    @hosted.before_request
    def enter() -> None:
        g.store = account.store

    @hosted.after_request
    def protect(response: Response) -> Response:
        response.headers.update(HEADERS)
        return response

    @hosted.app_errorhandler(NotFound)
    @hosted.app_errorhandler(MethodNotAllowed)
    def nowhere(error: HTTPException) -> ResponseReturnValue:
        """An address without a view is no blueprint's, so this is asked about those of levers, too."""
        if request.path.startswith("/_sandbox/"):
            return {"error": f"No such lever: {request.method} {request.path}"}, error.code or 404
        why = no_page()
        if error.code == 405:
            why = Gone("Nothing is shown here", "Go back to the page before, and on from there.", 405)
        response = protect(make_response(gone(why)))
        response.allow.update(getattr(error, "valid_methods", None) or ())
        return response

    hosted.register_error_handler(Gone, gone)
    hosted.register_error_handler(
        Refusal, lambda refusal: gone(Gone("This cannot be done", str(refusal), refusal.status))
    )
    for name, filter in words.FILTERS.items():
        hosted.add_app_template_filter(filter, name)
    return hosted
