"""The product: one page, and the little backend behind it. Mounted at /demo.

The backend is what a product has to write: before it does something that a plan limits, it asks the service
with the caller's own token and goes by `features`. It also reads the change feed, as another service would,
with a service token that never leaves it.
"""

import itertools
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from flask import Flask, Response, render_template, request
from werkzeug.exceptions import BadRequest, HTTPException
from werkzeug.test import Client

from sandbox.demo import SERVICE_TOKEN, ada
from sandbox.demo.witness import Facts
from sandbox.pages import words

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

Json = dict[str, Any]
Answer = tuple[Json, int]

LOCAL_NAMES = {"localhost", "127.0.0.1", "::1"}
LONGEST_NOTE = 200
ROOM_WITHOUT_A_WORD = 3  # notes, where the catalogue has never heard of any
FEED_PAGE = 50

# The decimals of an amount at Stripe where they are not two. Browsers go by another list.
DECIMALS = {**dict.fromkeys(sorted(words.WHOLE), 0), **dict.fromkeys(sorted(words.THOUSANDTHS), 3)}

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


@dataclass
class Workspace:
    """What Acme keeps in its product."""

    notes: dict[int, str] = field(
        default_factory=lambda: dict(enumerate(["Buy more paper", "Call the bank", "Water the ferns"], start=1))
    )
    numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(4))
    sso: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def shown(self) -> Json:
        with self.lock:
            return {"notes": [{"id": id, "text": text} for id, text in self.notes.items()], "sso": self.sso}


class Refused(Exception):
    """What the service, or the plan, says no with."""

    def __init__(self, status: int, body: Json) -> None:
        super().__init__(body)
        self.status = status
        self.body = body


class Service:
    """The service's routes, asked in this process as a product's backend asks them over the network."""

    def __init__(self, service: "WSGIApplication") -> None:
        self.service = service

    def ask(self, path: str, authorization: str) -> tuple[int, Any]:
        answer = Client(self.service).get(path, headers={"Authorization": authorization})
        return answer.status_code, json.loads(answer.data) if answer.data else None

    def features(self, authorization: str) -> Json:
        """What the caller's tenant may use; `Refused` with the service's own answer where it says no."""
        status, document = self.ask("/api/entitlements", authorization)
        if status != 200:
            raise Refused(status, document)
        features: Json = document["features"]
        return features


def create_app(service: "WSGIApplication", facts: Facts, environ: Mapping[str, str]) -> Flask:
    """The pages, over a service that nobody overhears: what the demo itself asks is no visitor's doing."""
    app = Flask(__name__, static_url_path="/static")
    product = Service(service)
    workspace = Workspace()
    control = environ.get("DEMO_CONTROL_URL", "")
    hosts = LOCAL_NAMES | {urlsplit(environ.get("APP_URL", "")).hostname}

    @app.before_request
    def only_here() -> Answer | None:
        """Another site's name may be made to lead to this machine; a browser then says that name."""
        if urlsplit(f"//{request.host}").hostname not in hosts:
            return {"error": "The demo answers on this machine only"}, 403
        return None

    @app.get("/")
    def page() -> str:
        if session := request.args.get("checkout"):
            facts.returned(session)
        signed_in = bool(ada.token(environ))
        return render_template("demo.html", control=control, signed_in=signed_in, decimals=DECIMALS)

    @app.get("/session")
    def session() -> Answer:
        """What a product's login would leave in the browser."""
        token = ada.token(environ)
        return {"token": token}, 200 if token else 404

    @app.get("/facts")
    def noted() -> Answer:
        return facts.shown(), 200

    @app.get("/workspace")
    def show() -> Answer:
        return workspace.shown(), 200

    @app.post("/workspace/notes")
    def add_note() -> Answer:
        text = str(asked().get("text", "")).strip()[:LONGEST_NOTE]
        if not text:
            return {"error": "Write something first"}, 400
        room = room_in(product.features(request.headers.get("Authorization", "")))
        with workspace.lock:
            if room is not None and len(workspace.notes) >= room:
                return {"error": f"Your plan has room for {room} notes", "code": "limit_reached"}, 403
            workspace.notes[next(workspace.numbers)] = text
        return workspace.shown(), 201

    @app.delete("/workspace/notes/<int:id>")
    def remove_note(id: int) -> Answer:
        product.features(request.headers.get("Authorization", ""))
        with workspace.lock:
            workspace.notes.pop(id, None)
        return workspace.shown(), 200

    @app.put("/workspace/sso")
    def switch_sso() -> Answer:
        on = asked().get("on") is True
        features = product.features(request.headers.get("Authorization", ""))
        if on and not features.get("sso", {}).get("enabled"):
            return {"error": "Your plan has no single sign-on", "code": "not_in_plan"}, 403
        workspace.sso = on
        return workspace.shown(), 200

    @app.get("/changes")
    def changes() -> Answer:
        """The feed, as another service reads it. The browser gets what it shows, and no token."""
        service_token = kept_token(environ)
        if not service_token:
            return {"feed": "no token"}, 200
        after = request.args.get("after")
        query = urlencode({"limit": FEED_PAGE} | ({"lastEventId": after} if after else {}))
        status, batch = product.ask(f"/api/changes?{query}", f"Bearer {service_token}")
        if status == 304:
            return {"feed": "here", "changes": []}, 200
        if status != 200:
            return {"feed": {404: "none", 401: "refused", 403: "refused"}.get(status, "away")}, 200
        return {"feed": "here", "changes": [shown(change) for change in batch]}, 200

    @app.errorhandler(Refused)
    def pass_on(refusal: Refused) -> Answer:
        return refusal.body, refusal.status

    @app.errorhandler(HTTPException)
    def in_json(error: HTTPException) -> Answer:
        return {"error": error.name}, error.code or 500

    @app.after_request
    def protect(response: Response) -> Response:
        response.headers.update(HEADERS)
        return response

    return app


def asked() -> Json:
    """What the browser sent, which is a JSON object."""
    body = request.get_json()
    if not isinstance(body, dict):
        raise BadRequest
    return body


def kept_token(environ: Mapping[str, str]) -> str | None:
    """The service token `make run` keeps; looked up each time, for it may be made anew meanwhile."""
    file = Path(environ.get("DEMO_SECRETS", ""))
    token: str | None = json.loads(file.read_text()).get(SERVICE_TOKEN) if file.is_file() else None
    return token


def room_in(features: Json) -> int | None:
    """How many notes fit; None is without end. Where nobody has named the limit, it is our own choice."""
    limit: int | None = features.get("notes", {"limit": ROOM_WITHOUT_A_WORD}).get("limit")
    return limit


def shown(change: Json) -> Json:
    """Of one entry of the feed, what a line of the page needs."""
    document = change.get("data") or {}
    told = {name: change.get(name) for name in ("id", "time", "subject", "method")}
    return told | {name: document.get(name) for name in ("version", "state", "plan", "quantity")}
