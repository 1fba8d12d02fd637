"""The console is closed: to everybody where it is not configured, and to everybody else where it is."""

from __future__ import annotations

import hmac
import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flask import Blueprint, Flask, Request, abort, request
from flask.testing import FlaskClient
from sqlalchemy import Connection, text
from werkzeug.routing import Rule

from billing import audit, config, console, operators, web, wiring
from billing.config import SettingsError
from billing.console import access
from billing.db import SYSTEM, Database
from billing.operators import Attempt, Operator
from tests.conftest import MakeApp, rows
from tests.console.conftest import HASH, HERE, HOME, PASSWORD, USERS, Browser, words
from tests.test_webhooks import NOWHERE

WRONG = "wrong horse"
TOO_LONG = "x" * 2000  # nobody's, and never looked at


def test_nobody_configured_means_no_console(client: FlaskClient) -> None:
    assert client.get(HOME).status_code == client.post(f"{HOME}sign-in").status_code == 404


def test_who_signs_in_is_led_to_the_page_they_wanted(stranger: Browser) -> None:
    way_in = stranger.opens("?of=today")
    assert (way_in.status_code, way_in.location) == (303, f"{HOME}sign-in?back={HOME}?of%3Dtoday")

    signed_in = stranger.client.post(
        way_in.location,
        base_url=HERE,
        data={"form": stranger.token("sign-in"), "name": "ana", "password": PASSWORD},
    )

    assert (signed_in.status_code, signed_in.location) == (303, f"{HOME}?of=today")
    assert "ana (operator)" in stranger.reads("")


@pytest.mark.parametrize(
    "elsewhere",
    [
        *("https://evil.example", "//evil.example", f"{HOME}\\evil", "/api/plans", f"{HERE}{HOME}"),
        *(f"{HOME}../../demo", f"{HOME}inbox/%2e%2E/..%2f../demo", f"{HOME}/evil.example"),
    ],
)
def test_nobody_is_led_away_by_signing_in(ana: Browser, elsewhere: str) -> None:
    answer = ana.client.get(f"{HOME}sign-in", base_url=HERE, query_string={"back": elsewhere})

    assert answer.location == HOME


@pytest.mark.parametrize(
    ("name", "password"), [("ana", WRONG), ("nobody", PASSWORD), ("", ""), ("ana", TOO_LONG)]
)
def test_a_wrong_name_and_a_wrong_password_are_answered_alike(
    stranger: Browser, database: Database, name: str, password: str
) -> None:
    answer = stranger.signs_in(name, password)

    assert answer.status_code == 401
    assert "No operator has this name and password." in words(answer)
    assert stranger.opens("").status_code == 303
    trail = rows(database, "SELECT actor, action, outcome, tenant_id FROM audit_log")
    actor = name if name == "ana" else "unknown"  # people type their password there
    assert trail == [{"actor": actor, "action": "console.sign_in", "outcome": "refused", "tenant_id": None}]


def test_passwords_are_tried_ever_more_slowly_and_the_right_one_waits_too(
    stranger: Browser, database: Database
) -> None:
    assert [stranger.signs_in("ana", WRONG).status_code for _ in range(5)] == [401] * 5
    for attempts, pause in [(5, 1), (8, 8), (50, 512)]:
        set_back(database, attempts, seconds=pause)
        assert stranger.signs_in("ana", WRONG).status_code == 401, (attempts, pause)
    for attempts, seconds in [(9, 0), (50, 480)]:  # 16 s are to go, or 32
        set_back(database, attempts, seconds=seconds)
        assert stranger.signs_in("ana").status_code == 429, (attempts, seconds)
    set_back(database, 9, seconds=0)
    raj = Browser(stranger.client.application.test_client())
    assert raj.signs_in("raj").status_code == 303  # nobody else is kept out

    set_back(database, 50, seconds=600)
    assert stranger.signs_in("ana").status_code == 303
    set_back(database, 1, seconds=0)  # what the address has tried
    other = Browser(stranger.client.application.test_client())
    assert other.signs_in("ana", WRONG).status_code == 401  # what was counted is forgiven


def set_back(database: Database, attempts: int, *, seconds: float) -> None:
    with database.begin(SYSTEM) as connection:
        connection.execute(
            text("UPDATE sign_ins SET attempts = :n, latest_at = clock_timestamp() - CAST(:ago AS interval)"),
            {"n": attempts, "ago": f"{seconds} s"},
        )


def test_an_address_that_tries_many_names_is_slowed_too(stranger: Browser, database: Database) -> None:
    assert stranger.signs_in("guess1", TOO_LONG).status_code == 401
    for attempts, answer in [(29, 401), (35, 429)]:
        set_back(database, attempts, seconds=0)
        assert stranger.signs_in(f"guess{attempts}", TOO_LONG).status_code == answer


def test_who_signs_in_while_many_do_is_sent_away_at_once_and_nothing_is_written(
    stranger: Browser, database: Database
) -> None:
    """Or strangers at the door would hold every thread that webhooks and reads need, too."""
    crowd = [Browser(stranger.client.application.test_client()) for _ in range(16)]
    for number, one in enumerate(crowd):
        one.client.environ_base["REMOTE_ADDR"] = f"10.0.0.{number}"
    forms = [{"form": one.token("sign-in"), "name": "ana", "password": WRONG} for one in crowd]
    together = threading.Barrier(len(crowd))

    def tries(one: Browser, form: dict[str, str]) -> tuple[int, bool]:
        together.wait()
        answer = one.client.post(f"{HOME}sign-in", base_url=HERE, data=form)
        return answer.status_code, "Retry-After" in answer.headers

    with ThreadPoolExecutor(len(crowd)) as threads:
        answers = Counter(threads.map(tries, crowd, forms))

    assert answers.keys() == {(401, False), (429, True)}
    assert answers[401, False] >= access.AT_ONCE + access.WAITING
    counted = rows(database, "SELECT sum(attempts)::int AS n FROM sign_ins")
    assert counted == [{"n": 3 * answers[401, False]}]


def attempts_of(connection: Connection, name: str, addresses: Iterable[str]) -> list[bool]:
    """Which of them may be made, one from each address."""
    return [operators.may_try(connection, Attempt(name, one, b"key")) for one in addresses]


def test_a_network_is_one_address_however_many_it_has(database: Database) -> None:
    with database.begin(SYSTEM) as connection:
        home = attempts_of(connection, "ana", [f"2001:db8::{n:x}" for n in range(6)])
        others = attempts_of(connection, "ana", [f"::ffff:192.0.2.{n}" for n in range(6)])

    assert (home, others) == ([True] * 5 + [False], [True] * 6)


def test_a_name_that_is_tried_from_everywhere_waits_for_seconds_and_no_longer(database: Database) -> None:
    with database.begin(SYSTEM) as connection:
        tried = attempts_of(connection, "ana", [f"2001:db8:{n:x}::1" for n in range(51)])
        assert tried == [True] * 50 + [False]
        assert attempts_of(connection, "raj", ["2001:db8:33::1"]) == [True]
    set_back(database, 5_000, seconds=8)
    with database.begin(SYSTEM) as connection:
        assert attempts_of(connection, "ana", ["2001:db8:ffff::1"]) == [True]


def test_passwords_that_are_right_do_not_make_their_house_wait(database: Database) -> None:
    """Or all who work behind one address would, some weeks later."""
    attempt = Attempt("ana", "192.0.2.1", b"key")
    for _ in range(60):
        with database.begin(SYSTEM) as connection:
            assert operators.may_try(connection, attempt)
            operators.forgive(connection, attempt)


def test_strangers_fill_neither_the_trail_nor_the_table_of_attempts(
    stranger: Browser, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operators, "KEPT", 20)
    for number in range(audit.REFUSED_PER_MINUTE + 2):
        stranger.client.environ_base["REMOTE_ADDR"] = f"10.0.0.{number}"
        assert stranger.signs_in(f"guess{number}", TOO_LONG).status_code == 401

    assert rows(database, "SELECT count(*) AS n FROM audit_log") == [{"n": audit.REFUSED_PER_MINUTE}]
    assert len(rows(database, "SELECT * FROM sign_ins")) in range(20, 23)  # of one moment all are kept
    assert stranger.signs_in("ana").status_code == 303
    assert rows(database, "SELECT actor FROM audit_log WHERE outcome = 'ok'") == [{"actor": "ana"}]


def test_what_was_typed_as_a_name_cannot_be_guessed_from_the_table_alone(database: Database) -> None:
    with database.begin(SYSTEM) as connection:
        for key in (b"of one setting", b"of another"):
            operators.may_try(connection, Attempt("my password", "192.0.2.1", key))

    assert rows(database, "SELECT count(*) AS n FROM sign_ins") == [{"n": 6}]


def test_the_cookie_is_for_this_host_alone_and_no_script_reads_it(stranger: Browser) -> None:
    [cookie] = stranger.signs_in("ana").headers.getlist("Set-Cookie")

    assert re.fullmatch(r"__Host-billing_console=[\w-]{43}; Secure; HttpOnly; Path=/; SameSite=Strict", cookie)


def test_signing_in_changes_the_cookie(stranger: Browser) -> None:
    """Or whoever has put one into a browser would be signed in with its owner."""
    stranger.opens("sign-in")
    before = stranger.client.get_cookie("__Host-billing_console", "billing.example.com")
    stranger.signs_in("ana")
    after = stranger.client.get_cookie("__Host-billing_console", "billing.example.com")

    assert before
    assert after
    assert before.value != after.value


def test_a_session_ends_by_signing_out_and_by_time(stranger: Browser, database: Database) -> None:
    stranger.signs_in("ana")
    cookie = stranger.client.get_cookie("__Host-billing_console", "billing.example.com")
    stranger.sends("sign-out", seen="")
    assert cookie
    stranger.client.set_cookie(cookie.key, cookie.value, domain="billing.example.com")
    assert stranger.opens("").status_code == 303  # the old cookie is worth nothing

    for column, ago in [("used_at", "2 hours"), ("began_at", "12 hours")]:
        stranger.signs_in("ana")
        assert stranger.opens("").status_code == 200
        with database.begin(SYSTEM) as connection:
            connection.execute(
                text(f"UPDATE operator_sessions SET {column} = clock_timestamp() - CAST(:ago AS interval)"),
                {"ago": ago},
            )
        assert stranger.opens("").status_code == 303, column


def test_a_page_that_renews_itself_keeps_no_session_alive(ana: Browser, database: Database) -> None:
    def used(path: str) -> bool:
        set_at = "UPDATE operator_sessions SET used_at = statement_timestamp() - interval '1 hour'"
        with database.begin(SYSTEM) as connection:
            connection.execute(text(set_at))
        assert ana.opens(path).status_code == 200
        [row] = rows(database, "SELECT used_at > now() - interval '1 minute' AS used FROM operator_sessions")
        return bool(row["used"])

    assert [used(path) for path in ("", "?renew=1", "console.css")] == [True, False, False]


def test_what_was_done_is_told_by_the_page_that_it_leads_to_and_once(ana: Browser) -> None:
    done = ana.sends("plans/refresh", reason="it has changed", seen="plans")
    told = [ana.reads(path) for path in ("?renew=1", "tenants", "plans", "plans")]

    assert done.location == f"{HOME}plans"
    assert ["A worker reads it now." in page for page in told] == [False, False, True, False]


def test_whose_entry_changes_is_signed_out(ana: Browser, make_app: MakeApp) -> None:
    cookie = ana.client.get_cookie("__Host-billing_console", "billing.example.com")
    assert cookie
    changed = HASH.replace(HASH[-1], "0" if HASH[-1] != "0" else "1")
    for users in (USERS.replace("operator", "viewer"), f"ana:{changed}:operator", f"raj:{HASH}:viewer"):
        client = make_app(BILLING_CONSOLE_USERS=users).test_client()
        client.set_cookie(cookie.key, cookie.value, domain="billing.example.com")
        assert client.get(HOME, base_url=HERE).status_code == 303


def test_a_database_dump_lets_nobody_in(ana: Browser, database: Database) -> None:
    cookie = ana.client.get_cookie("__Host-billing_console", "billing.example.com")
    [kept] = rows(database, "SELECT * FROM operator_sessions")

    assert cookie
    assert cookie.value.encode() not in b" ".join(str(value).encode() for value in kept.values())


def test_who_comes_from_another_site_is_let_in_at_the_second_knock(stranger: Browser) -> None:
    """The browser keeps the cookie back on the way from another site, not on the way from our page."""
    answer = stranger.opens("", **{"Sec-Fetch-Site": "cross-site"})

    assert answer.status_code == 200
    assert '<meta http-equiv="refresh" content="0">' in answer.text


# ---- every page there is


@pytest.fixture
def rules(stranger: Browser) -> list[Rule]:
    every = stranger.client.application.url_map.iter_rules()
    return [rule for rule in every if rule.rule.startswith(HOME)]


OPEN_TO_ALL = {f"billing_console.{end}" for end in ("sign_in_page", "sign_in", "sign_out", "style.sheet")}


def paths(rules: list[Rule], method: str) -> Iterator[str]:
    """An address of each, but those that everybody may ask."""
    for rule in rules:
        if rule.endpoint not in OPEN_TO_ALL and method in (rule.methods or ()):
            yield re.sub(r"<[^>]+>", "1", rule.rule.removeprefix(HOME))


def test_no_page_is_shown_and_nothing_is_done_without_signing_in(stranger: Browser, rules: list[Rule]) -> None:
    shown = {path: stranger.opens(path).status_code for path in paths(rules, "GET")}
    done = {
        path: stranger.sends(path, seen="sign-in", reason="why not").status_code
        for path in paths(rules, "POST")
    }

    assert shown == dict.fromkeys(shown, 303)
    assert done == dict.fromkeys(done, 401)


def test_a_viewer_does_nothing_and_no_action_goes_without_its_forms_token_or_a_reason(
    ana: Browser, raj: Browser, rules: list[Rule], database: Database
) -> None:
    trail = "SELECT count(*) AS n FROM audit_log WHERE action <> 'console.sign_in'"
    for path in paths(rules, "POST"):
        by_a_viewer = raj.sends(path, seen="", reason="why not")
        unsigned = ana.client.post(HOME + path, base_url=HERE, data={"reason": "why not"})
        of_another = ana.client.post(
            HOME + path, base_url=HERE, data={"reason": "why not", "form": raj.token("")}
        )
        unreasoned = ana.sends(path, seen="", reason=" ")
        answers = [answer.status_code for answer in (by_a_viewer, unsigned, of_another, unreasoned)]
        assert answers == [403, 403, 403, 400], path
    assert rows(database, trail) == [{"n": 0}]


def test_every_page_is_observed_and_forbids_all_that_it_does_not_need(ana: Browser, rules: list[Rule]) -> None:
    views = ana.client.application.view_functions
    assert [rule.rule for rule in rules if not hasattr(views[rule.endpoint], "__operation__")] == []
    for path in ["sign-in", "nowhere", *paths(rules, "GET")]:
        answer = ana.opens(path)
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; style-src 'self'; base-uri 'none'"), path
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["Cache-Control"] == "no-store", path
        assert not re.search("<script| style=", answer.text), path


def test_what_is_not_there_is_a_page_of_the_console(ana: Browser) -> None:
    for answer in (ana.opens("nowhere"), ana.sends("inbox", reason="why not"), ana.sends("", reason="why not")):
        assert (answer.status_code, answer.content_type) == (404, "text/html; charset=utf-8")


def test_an_address_with_a_slash_too_many_leads_to_its_page(ana: Browser) -> None:
    for path in ("inbox/", "tenants/"):
        answer = ana.opens(f"{path}?state=due&_scheme=ftp")
        assert answer.location == f"{HOME}{path.rstrip('/')}?state=due&_scheme=ftp"


def test_while_the_database_is_away_an_operator_is_told_so(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make_app(BILLING_CONSOLE_USERS=USERS, DATABASE_URL=NOWHERE).test_client()
    client.set_cookie(access.COOKIE, "x" * 43, domain="billing.example.com")
    answer = client.get(HOME, base_url=HERE)

    assert (answer.status_code, answer.content_type) == (503, "text/html; charset=utf-8")
    assert (answer.headers["Retry-After"], "The database is away, or has too much to do" in words(answer)) == (
        "2",
        True,
    )
    assert client.get(f"{HOME}console.css", base_url=HERE).status_code == 200
    monkeypatch.setattr(access, "_door", threading.BoundedSemaphore(1))
    with access._door:  # who is sent away from there has asked the database for nothing
        form = {"form": hmac.digest(b"x" * 43, b"form", "sha256").hex()}
        assert client.post(f"{HOME}sign-in", base_url=HERE, data=form).status_code == 429


def test_nobody_is_read_whose_form_is_too_large(stranger: Browser) -> None:
    assert stranger.sends("sign-in", name="x" * access.LARGEST_FORM).status_code == 413


# ---- settings


@pytest.mark.parametrize(
    "entry",
    [
        "ana",
        f"ana:{HASH}:owner",
        f"Ana Lee:{HASH}:viewer",
        "ana:plaintext:operator",
        f"ana:{HASH.replace('32768', '16384')}:operator",
        f"ana:{HASH}:viewer,ana:{HASH}:operator",
    ],
)
def test_a_setting_that_would_let_in_the_wrong_is_a_fault_and_is_not_repeated(
    environ: dict[str, str], entry: str
) -> None:
    with pytest.raises(SettingsError, match="BILLING_CONSOLE_USERS: ") as caught:
        config.load({**environ, "BILLING_CONSOLE_USERS": entry})

    assert HASH not in str(caught.value)


def test_a_command_makes_the_entry_of_an_operator(make_app: MakeApp) -> None:
    runner = make_app().test_cli_runner()
    made = runner.invoke(
        args=["billing", "console", "password", "ana", "--role", "operator"], input=f"{PASSWORD}\n" * 2
    )
    entry = made.output.splitlines()[-1]

    browser = Browser(make_app(BILLING_CONSOLE_USERS=entry).test_client())
    assert browser.signs_in("ana").status_code == 303
    assert "ana (operator)" in browser.reads("")
    shown = runner.invoke(args=["billing", "console", "password", "ana", "--password", PASSWORD])
    assert "No such option" in shown.output  # `ps` would show it to all of the machine
    short = runner.invoke(args=["billing", "console", "password", "ana"], input="short\nshort\n")
    assert (short.exit_code, "at least 12 characters" in short.output) == (2, True)


# ---- mounted elsewhere

STAFF = {"X-Staff": "mia"}


def who(request: Request) -> Operator | None:
    """How the host knows them."""
    name = request.headers.get("X-Staff")
    if name == "unreadable":
        raise KeyError(name)
    return Operator(name, may_act=True) if name else None


@pytest.fixture
def host(environ: dict[str, str], database: Database, tmp_path: Path) -> Iterator[Flask]:
    """Another app, which knows its operators, and has a console of its own."""
    (tmp_path / "console").mkdir()
    (tmp_path / "console" / "base.html").write_text("The host's own page.")
    app = Flask("host", template_folder=str(tmp_path))
    app.register_blueprint(Blueprint("console", __name__))

    @app.before_request
    def wall() -> str | None:
        if walled := request.headers.get("X-Walled"):
            return walled if walled == "Come back later." else abort(403)
        return None

    billing = wiring.build(config.load(environ))
    web.mount(app, billing, url_prefix="/pay")
    console.mount(app, billing, who=who, url_prefix="/pay")
    yield app
    billing.db.close()


def test_a_host_that_knows_its_operators_lets_them_in_itself(host: Flask) -> None:
    client = host.test_client()

    let_in = client.get("/pay/billing/console/", base_url=HERE, headers=STAFF)
    kept_out = client.get("/pay/billing/console/", base_url=HERE)

    assert (let_in.status_code, "mia (operator)" in words(let_in)) == (200, True)
    assert "Sign out" not in let_in.text
    assert kept_out.status_code == 403
    assert client.post("/pay/billing/console/sign-in", base_url=HERE).status_code == 401


@pytest.mark.parametrize(
    "path", ["/pay/billing/console/", "/pay/billing/console/console.css", "/pay/api/plans"]
)
def test_a_wall_of_the_hosts_answers_in_our_place(host: Flask, path: str) -> None:
    client = host.test_client()

    walled = client.get(path, base_url=HERE, headers={"X-Walled": "Come back later."})
    refused = client.get(path, base_url=HERE, headers={"X-Walled": "Nobody comes in."})

    assert (walled.status_code, walled.text) == (200, "Come back later.")
    assert set(walled.headers.keys()) == {"Content-Type", "Content-Length"}  # it knows what its pages may do
    assert (refused.status_code, "Content-Security-Policy" in refused.headers) == (403, "console" in path)


def test_a_host_that_cannot_tell_who_it_is_shows_a_page(host: Flask) -> None:
    answer = host.test_client().get("/pay/billing/console/", base_url=HERE, headers={"X-Staff": "unreadable"})

    assert (answer.status_code, answer.content_type) == (500, "text/html; charset=utf-8")
