"""The demo beside the real service, by HTTP: what the browser gets, what is noted, what passes untouched."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import Client, TestResponse

from billing import catalogue, cataloguing, tokens
from billing.catalogue import Rules
from billing.db import SYSTEM, Database
from sandbox.demo import SERVICE_TOKEN, TENANT, ada, place
from sandbox.demo.witness import Arrival, Facts, Purchase, race
from sandbox.server import Control
from tests.conftest import ROOT, MakeApp, create_customer, link, rows
from tests.deliveries import WEBHOOK, Json, a_catalogue, a_subscription, an_event, happened, signature
from tests.shopping import CHECKOUT, goods


class Browser:
    """Somebody before the demo, who keeps all that was ever sent to it."""

    def __init__(self, app: Any) -> None:
        self.http = Client(app)
        self.received: list[TestResponse] = []

    def ask(self, method: str, path: str, **options: Any) -> TestResponse:
        answer = self.http.open(path, method=method, buffered=True, **options)
        self.received.append(answer)
        return answer

    def get(self, path: str, **options: Any) -> TestResponse:
        return self.ask("GET", path, **options)

    @property
    def signed_in(self) -> dict[str, str]:
        session = self.get("/demo/session").json or {}
        return {"Authorization": f"Bearer {session['token']}"}

    def add_note(self, text: str = "one more") -> TestResponse:
        return self.ask("POST", "/demo/workspace/notes", json={"text": text}, headers=self.signed_in)

    def facts(self) -> Json:
        return dict(self.get("/demo/facts").json or {})


MakeBrowser = Callable[..., Browser]


@pytest.fixture
def browse(make_app: MakeApp, environ: dict[str, str]) -> MakeBrowser:
    """A browser before the demo, with these settings of service and demo."""

    def make(**settings: str) -> Browser:
        service = make_app(**{"APP_URL": "http://localhost:8000", "BILLING_RETURN_PATH": "/demo", **settings})
        return Browser(place.beside(service, {**environ, **settings}))

    return make


def told(browser: Browser, event: Json | bytes, **headers: str) -> int:
    """Stripe tells of an event, through the demo."""
    body = event if isinstance(event, bytes) else json.dumps(event).encode()
    given = {"Stripe-Signature": signature(body), **headers}
    return browser.ask("POST", WEBHOOK, data=body, headers=given).status_code


# ---- who is signed in


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"JWT_TENANT_CLAIM": "app_metadata.org"},
        {"JWT_TENANT_CLAIM": "https://acme.example/tenant"},
        {"JWT_TENANT_CLAIM": "sub"},
        {"JWT_ISSUER": "https://issuer.example", "JWT_AUDIENCE": "billing,others"},
        {"JWT_AUTHORIZED_PARTIES": "https://app.example,https://b.example"},
        {"JWT_ROLES_CLAIM": "o.rol", "BILLING_MANAGER_ROLES": "owner,admin"},
    ],
    ids=lambda settings: ",".join(settings) or "least",
)
def test_ada_is_signed_in_and_may_manage_billing_whatever_the_settings_want_of_a_token(
    browse: MakeBrowser, database: Database, sandbox: Control, settings: dict[str, str]
) -> None:
    link(database, TENANT, create_customer(sandbox))
    browser = browse(**settings)

    answer = browser.ask("POST", "/api/subscriptions/portal", headers=browser.signed_in)

    assert answer.status_code == 200, answer.text


def test_where_somebody_else_signs_tokens_the_page_says_so(
    browse: MakeBrowser, environ: dict[str, str]
) -> None:
    del environ["JWT_SECRET_KEY"]
    browser = browse(JWT_JWKS_URL="https://issuer.example/keys")

    assert "signed by your own issuer" in browser.get("/demo").text
    assert browser.get("/demo/session").status_code == 404


def test_the_page_takes_nothing_from_elsewhere_and_has_no_script_or_style_of_its_own(
    browse: MakeBrowser,
) -> None:
    browser = browse(DEMO_CONTROL_URL="http://localhost:4242/")
    page = browser.get("/demo")

    policy = page.headers["Content-Security-Policy"]
    assert page.status_code == 200
    assert "script-src 'self'; style-src 'self'" in policy
    assert "unsafe" not in policy
    assert "<style" not in page.text
    assert " style=" not in page.text
    assert page.text.count("<script") == page.text.count('<script type="module" src="/demo/static/demo.js"')
    assert 'href="http://localhost:4242/"' in page.text
    for name in ("demo.js", "demo.css", "icon.svg"):
        assert browser.get(f"/demo/static/{name}").status_code == 200


def test_another_name_for_this_machine_is_refused(browse: MakeBrowser) -> None:
    browser = browse(APP_URL="https://workspace.example")

    statuses = {
        host: browser.get("/demo/session", headers={"Host": host}).status_code
        for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "workspace.example", "rebound.example")
    }

    assert [host for host, status in statuses.items() if status == 403] == ["rebound.example"]


# ---- what a plan limits


def give_notes(database: Database, limit: str) -> None:
    """Who has no plan has room for so many notes."""
    metadata = {"plan": "free", "limit.notes": limit}
    product = {"id": "prod_free", "name": "Free", "description": None, "active": True, "metadata": metadata}
    rules = Rules(livemode=False, default_plan="free", grace_days=None, grace_after_trial=True)
    cataloguing.rule(database, rules)
    a_catalogue(database, products=[catalogue.product_from(product)])


@pytest.mark.parametrize(
    ("limit", "statuses"),
    [("3", [403, 403]), ("4", [201, 403]), ("unlimited", [201, 201]), ("0", [403, 403])],
    ids=["full", "room for one", "without end", "none"],
)
def test_a_note_is_refused_where_the_document_has_no_room_for_it(
    browse: MakeBrowser, database: Database, limit: str, statuses: list[int]
) -> None:
    give_notes(database, limit)
    browser = browse()

    assert [browser.add_note().status_code for _ in statuses] == statuses
    assert len((browser.get("/demo/workspace").json or {})["notes"]) == 3 + statuses.count(201)


def test_notes_and_switches_are_for_those_the_service_knows(browse: MakeBrowser, database: Database) -> None:
    give_notes(database, "unlimited")
    browser = browse()

    answers = [
        browser.ask("POST", "/demo/workspace/notes", json={"text": "hello"}),
        browser.ask("DELETE", "/demo/workspace/notes/1"),
        browser.ask("PUT", "/demo/workspace/sso", json={"on": True}),
    ]

    assert [(answer.status_code, answer.json) for answer in answers] == [(401, {"error": "Unauthorized"})] * 3


@pytest.mark.parametrize("body", ['"x"', "[1]", "[]", "null", "5", "true", "{"])
def test_what_is_no_json_object_is_refused_and_changes_nothing(
    browse: MakeBrowser, database: Database, body: str
) -> None:
    give_notes(database, "unlimited")
    browser = browse()
    before = browser.get("/demo/workspace").json

    answers = [
        browser.ask(method, path, data=body, content_type="application/json", headers=browser.signed_in)
        for method, path in (("POST", "/demo/workspace/notes"), ("PUT", "/demo/workspace/sso"))
    ]

    assert [(answer.status_code, answer.json) for answer in answers] == [(400, {"error": "Bad Request"})] * 2
    assert browser.get("/demo/workspace").json == before


def test_single_sign_on_is_refused_to_a_plan_without_it(browse: MakeBrowser, database: Database) -> None:
    give_notes(database, "3")
    browser = browse()

    answer = browser.ask("PUT", "/demo/workspace/sso", json={"on": True}, headers=browser.signed_in)

    assert (answer.status_code, (answer.json or {})["code"]) == (403, "not_in_plan")
    assert browser.get("/demo/workspace").json == {**(browser.get("/demo/workspace").json or {}), "sso": False}


# ---- what is noted, and passes untouched


def test_a_webhook_reaches_the_inbox_byte_for_byte_and_is_noted(
    browse: MakeBrowser, database: Database
) -> None:
    browser = browse()
    event = an_event("customer.subscription.updated", a_subscription("cus_1"))
    body = b"\r\n " + json.dumps(event, indent=3, ensure_ascii=False).encode() + b"\n\t "

    assert told(browser, body) == 200

    [kept] = rows(database, "SELECT body FROM inbox")
    [noted] = browser.facts()["arrivals"]
    assert bytes(kept["body"]) == body
    assert {**noted, "at": None} == {
        "at": None,
        "status": 200,
        "event": event["id"],
        "type": event["type"],
        "about": "sub_1",
        "subscription": "sub_1",
    }


@pytest.mark.parametrize(
    ("body", "headers"),
    [(b"{}", {}), (b"{}", {"Stripe-Signature": "t=1,v1=no"}), (b"x" * (1024 * 1024 + 1), {})],
    ids=["no event", "a wrong signature", "too large"],
)
def test_a_webhook_that_was_not_taken_has_not_arrived(
    browse: MakeBrowser, database: Database, body: bytes, headers: dict[str, str]
) -> None:
    browser = browse()

    status = told(browser, body, **headers)

    assert status >= 400
    assert browser.facts()["arrivals"] == []


def test_a_webhook_that_could_not_be_stored_has_not_arrived(browse: MakeBrowser) -> None:
    browser = browse(DATABASE_URL="postgresql://nobody@127.0.0.1:9/nothing")

    assert told(browser, an_event("invoice.paid", {"id": "in_1", "object": "invoice"})) == 503
    assert browser.facts()["arrivals"] == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/healthz"),
        ("GET", "/demonstration"),
        ("GET", "/api/plans"),
        ("GET", "/api/entitlements"),
        ("POST", CHECKOUT),
        ("GET", f"{CHECKOUT}/cs_test_nobodys"),
        ("HEAD", f"{CHECKOUT}/cs_test_nobodys"),
        ("PUT", WEBHOOK),
        ("OPTIONS", "*"),
    ],
)
def test_the_service_answers_through_the_demo_as_it_does_alone(
    make_app: MakeApp, environ: dict[str, str], database: Database, method: str, path: str
) -> None:
    a_catalogue(database)
    service = make_app()
    headers = {"Authorization": f"Bearer {ada.token(environ)}", "X-Request-Id": "the-same"}

    alone, beside = (
        Client(app).open(path, method=method, headers=headers)
        for app in (service, place.beside(service, environ))
    )

    assert (beside.status, beside.data) == (alone.status, alone.data)
    assert dict(beside.headers) == dict(alone.headers)


def test_a_purchase_is_seen_from_leaving_to_the_webhook_that_comes_late(
    browse: MakeBrowser, database: Database, sandbox: Control
) -> None:
    a_catalogue(database, **goods(sandbox).content)
    browser = browse()
    wish = {"plan": "team_monthly", "quantity": 5, "return_url": "/demo"}

    opened = browser.ask("POST", CHECKOUT, json=wish, headers=browser.signed_in).json or {}
    sandbox.send("POST", "checkout", {"session": opened["session_id"]})
    [back] = [
        call["params"]["success_url"]
        for call in sandbox.requests()
        if call["path"] == "/v1/checkout/sessions" and call["method"] == "POST"
    ]
    browser.get(back.replace("{CHECKOUT_SESSION_ID}", opened["session_id"]))
    answer = browser.get(f"{CHECKOUT}/{opened['session_id']}", headers=browser.signed_in).json or {}
    before = browser.facts()["race"]
    customer = answer["entitlements"]["stripe"]["customer"]
    for event in happened(sandbox, customer):
        assert told(browser, event) == 200
    after = browser.facts()["race"]

    assert answer["entitlements"]["quantity"] == 5
    assert (before["came_from"], before["webhook"]) == ("return", None)
    assert (after["came_from"], after["version"]) == ("return", answer["entitlements"]["version"])
    assert before["left"] < before["returned"] < before["answered"] < after["webhook"]["at"]


def test_a_made_up_return_does_not_take_the_place_of_a_purchase(
    browse: MakeBrowser, database: Database, sandbox: Control
) -> None:
    a_catalogue(database, **goods(sandbox).content)
    browser = browse()
    wish = {"plan": "team_monthly", "quantity": 5, "return_url": "/demo"}

    browser.get("/demo?checkout=cs_test_made_up")
    before = browser.facts()["race"]
    opened = browser.ask("POST", CHECKOUT, json=wish, headers=browser.signed_in).json or {}
    browser.get("/demo?checkout=cs_test_made_up")
    race = browser.facts()["race"]

    assert before is None
    assert (race["session"], race["returned"]) == (opened["session_id"], None)


AN_ARRIVAL = Arrival(5.0, 200, "evt_1", "checkout.session.completed", "cs_1", "sub_1")
A_PURCHASE = Purchase("cs_1", left=1.0, returned=4.0, answered=6.0, version=2, subscription="sub_1")


def arrived(at: float, **changes: Any) -> Arrival:
    return Arrival(**{**AN_ARRIVAL.__dict__, "at": at, **changes})


@pytest.mark.parametrize(
    ("arrivals", "came_from", "first"),
    [
        ([], "return", None),
        ([arrived(7.0)], "return", 7.0),
        ([arrived(3.0), arrived(7.0)], "webhook", 3.0),
        ([arrived(5.0)], "either", 5.0),
        ([arrived(0.5)], "return", None),
        ([arrived(3.0, type="invoice.paid", about="in_1")], "webhook", 3.0),
        ([arrived(3.0, about="cs_0", subscription=None)], "return", None),
        ([arrived(3.0, type="invoice.paid", about="in_0", subscription="sub_0")], "return", None),
        ([arrived(3.0, type="customer.updated", about="cus_1", subscription=None)], "return", None),
    ],
    ids=[
        *("never", "late", "early", "between", "of an earlier one", "of its subscription"),
        *("of another Checkout", "of another subscription", "of no purchase"),
    ],
)
def test_who_won_the_race_follows_from_when_things_passed(
    arrivals: list[Arrival], came_from: str, first: float | None
) -> None:
    found = race(A_PURCHASE, arrivals)

    assert found["came_from"] == came_from
    assert (found["webhook"] or {}).get("at") == first


def test_before_the_answer_its_session_says_which_subscription_was_bought() -> None:
    waiting = Purchase("cs_1", left=1.0, returned=4.0)
    earlier = arrived(4.5, type="customer.subscription.created", about="sub_1")
    another = arrived(2.0, type="customer.subscription.created", about="sub_0", subscription="sub_0")

    found = race(waiting, [another, earlier, arrived(5.0)])

    assert (found["came_from"], found["webhook"]["at"]) == (None, 4.5)


@pytest.mark.parametrize(
    ("thing", "subscription"),
    [
        ({"id": "cs_1", "object": "checkout.session", "subscription": "sub_1"}, "sub_1"),
        ({"id": "cs_1", "object": "checkout.session", "subscription": None}, None),
        ({"id": "sub_1", "object": "subscription"}, "sub_1"),
        ({"id": "in_1", "object": "invoice", "subscription": "sub_1"}, "sub_1"),
        ({"id": "in_1", "parent": {"subscription_details": {"subscription": "sub_1"}}}, "sub_1"),
        ({"id": "in_1", "object": "invoice", "parent": {"subscription_details": None}}, None),
        ({"id": "in_1", "object": "invoice", "parent": None}, None),
        ({"id": "cus_1", "object": "customer"}, None),
    ],
    ids=[
        *("a Checkout", "an open Checkout", "a subscription", "an invoice of before 2025-03-31", "an invoice"),
        *("a quote's invoice", "an invoice of nothing", "a customer"),
    ],
)
def test_an_arrival_knows_the_subscription_it_is_about(thing: Json, subscription: str | None) -> None:
    facts = Facts()

    facts.arrived(200, json.dumps({"id": "evt_1", "type": "any", "data": {"object": thing}}).encode())

    assert [arrival.subscription for arrival in facts.arrivals] == [subscription]


# ---- the feed, and the token that reads it


def kept(directory: Path, token: str) -> dict[str, str]:
    """The setting that names a file with this token in it."""
    file = directory / "dev.json"
    file.write_text(json.dumps({SERVICE_TOKEN: token}))
    return {"DEMO_SECRETS": str(file)}


@pytest.fixture
def service_token(database: Database) -> str:
    """The demo's own, as `make run` has one made."""
    a_catalogue(database)
    with database.begin(SYSTEM) as connection:
        token, _ = tokens.create(connection, "demo", (tokens.READ,), None)
    return token


def test_the_feed_is_read_on_the_browsers_behalf_and_goes_on_where_it_was(
    browse: MakeBrowser, service_token: str, tmp_path: Path
) -> None:
    browser = browse(**kept(tmp_path, service_token))
    document = browser.get("/api/entitlements", headers=browser.signed_in).json or {}

    first = browser.get("/demo/changes?after=").json or {}
    [change] = first["changes"]
    after = browser.get(f"/demo/changes?after={change['id']}").json

    assert first["feed"] == "here"
    assert (change["subject"], change["version"], change["state"]) == (TENANT, document["version"], "none")
    assert after == {"feed": "here", "changes": []}


@pytest.mark.parametrize(("status", "said"), [(404, "none"), (503, "away"), (400, "away")], ids=str)
def test_a_feed_that_has_nothing_to_say_is_told_calmly(tmp_path: Path, status: int, said: str) -> None:
    service = Flask("a service that has no feed to give")
    service.add_url_rule("/api/changes", view_func=lambda: ({"error": "No"}, status))
    browser = Browser(place.beside(service, kept(tmp_path, "bsk_any")))

    assert (browser.get("/demo/changes").json or {})["feed"] == said


def test_a_token_that_is_refused_or_missing_is_told_too(browse: MakeBrowser, tmp_path: Path) -> None:
    refused = browse(**kept(tmp_path, f"bsk_{'x' * 43}"))
    missing = browse()

    assert refused.get("/demo/changes").json == {"feed": "refused"}
    assert missing.get("/demo/changes").json == {"feed": "no token"}


def test_no_byte_the_browser_gets_holds_the_service_token(
    browse: MakeBrowser, service_token: str, tmp_path: Path
) -> None:
    browser = browse(**kept(tmp_path, service_token))

    for path in ("", "/session", "/facts", "/workspace", "/changes", "/changes?after=x", "/static/demo.js"):
        browser.get(f"/demo{path}")
    browser.get("/demo/nothing")
    browser.add_note()

    sent = [f"{answer.headers}".encode() + answer.data for answer in browser.received]
    assert len(sent) > 9
    assert not [answer for answer in sent if b"bsk_" in answer]
    assert (browser.get("/demo/changes").json or {})["feed"] == "here"  # it was used, all the same


# ---- where it may be


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"DYNO": "web.1"}, "Heroku dyno"),
        ({"STRIPE_SECRET_KEY": "sk_live_x"}, "STRIPE_SECRET_KEY holds a live key"),
        ({"STRIPE_KEY": " rk_live_x"}, "STRIPE_KEY holds a live key"),
        ({"SOME_OTHER_NAME": "sk_live_x"}, "SOME_OTHER_NAME holds a live key"),
    ],
    ids=["dyno", "live key", "live restricted key", "under any name"],
)
def test_it_cannot_be_imported_in_production(settings: dict[str, str], word: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sandbox.demo.wsgi"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **settings},
        capture_output=True,
        text=True,
    )

    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith("sandbox.demo.place.NotHere: ")
    assert word in last
    assert "live_x" not in last
    assert "DATABASE_URL" not in done.stderr  # the service would have missed it


def test_what_a_slug_leaves_out_the_service_does_not_need(tmp_path: Path) -> None:
    """Heroku removes what .slugignore names before it builds."""
    left_out = [line for line in (ROOT / ".slugignore").read_text().splitlines() if line and line[0] != "#"]
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, tracked.stdout.split("\0")):
        if not any(f"/{name}".startswith(pattern) for pattern in left_out):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes((ROOT / name).read_bytes())

    done = subprocess.run(
        [sys.executable, "-c", "import app, billing.worker, migrations"], cwd=tmp_path, capture_output=True
    )

    assert {"/sandbox/", "/tests/", "/bench/"} <= set(left_out)
    assert not (tmp_path / "sandbox").exists()
    assert (tmp_path / "Procfile").exists()
    assert (tmp_path / "requirements.txt").exists()
    assert done.returncode == 0, done.stderr
