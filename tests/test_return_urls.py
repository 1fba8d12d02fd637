"""Return addresses: where Stripe may send a browser back to, and the many places where it may not.

The service here allows its own origin and four more. A refused address reaches neither Stripe nor the answer;
an allowed one reaches Stripe put together anew.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import hypothesis
import pytest
from flask.testing import FlaskClient
from hypothesis import strategies as st
from sqlalchemy import text

from app import create_app
from billing import config
from billing.config import Settings
from billing.db import SYSTEM, Database
from billing.errors import ReturnUrlNotAllowed
from billing.web import links
from sandbox.server import Control
from tests.conftest import create_customer, link
from tests.tokens import SHARED_SECRET, a_token

PORTAL = "/api/subscriptions/portal"
APP = "https://app.example.com"
ORIGINS = (
    "https://admin.example.com:8443",
    "http://localhost:3000",
    "http://[::1]:3000",
    "https://xn--bcher-kva.example",
)
ALLOWED = {
    ("https", "app.example.com", 443),
    ("https", "admin.example.com", 8443),
    ("http", "localhost", 3000),
    ("http", "::1", 3000),
    ("https", "xn--bcher-kva.example", 443),
}


def settings(database_url: str = "postgresql://nowhere", **others: str) -> Settings:
    return config.load(
        {
            "DATABASE_URL": database_url,
            "APP_URL": APP,
            "BILLING_RETURN_ORIGINS": ",".join(ORIGINS),
            "STRIPE_SECRET_KEY": "sk_test_unused",
            "STRIPE_WEBHOOK_SECRET": "whsec_0123456789abcdef",
            "JWT_SECRET_KEY": SHARED_SECRET,
            "BILLING_LINKS_PER_MINUTE": "1000000",
            **others,
        }
    )


@pytest.fixture(scope="module")
def client(database_url: str, stripe_stand_in: Control) -> Iterator[FlaskClient]:
    """The service, to which Acme is a tenant with a customer, for all of this module."""
    chosen = settings(database_url, STRIPE_SECRET_KEY=stripe_stand_in.key, STRIPE_API_BASE=stripe_stand_in.url)
    app = create_app(chosen)
    database: Database = app.extensions["billing"].db
    with database.begin(SYSTEM) as connection:
        connection.execute(text("TRUNCATE tenant_config, audit_log"))
    link(database, "t_acme", create_customer(stripe_stand_in))
    yield app.test_client()
    database.close()


@pytest.fixture(scope="module")
def headers() -> dict[str, str]:
    return {"Authorization": f"Bearer {a_token()}"}


GOOD = {
    "/": f"{APP}/",
    "/settings/billing/seats": f"{APP}/settings/billing/seats",
    "/a?tab=billing&back=https://evil.example#plan": f"{APP}/a?tab=billing&back=https://evil.example#plan",
    "/a/../b;v=1/%2e%2e/%5Cevil.example": f"{APP}/a/../b;v=1/%2e%2e/%5Cevil.example",
    "/a//evil.example": f"{APP}/a//evil.example",
    "/?@evil.example": f"{APP}/?@evil.example",
    "/#": f"{APP}/",
    "/" + "a" * 1999: f"{APP}/" + "a" * 1999,
    APP: f"{APP}/",
    f"{APP}/billing": f"{APP}/billing",
    f"{APP}//billing": f"{APP}//billing",
    f"{APP}?paid=1": f"{APP}/?paid=1",
    f"{APP}#paid": f"{APP}/#paid",
    f"{APP}:443/billing": f"{APP}/billing",
    f"{APP}:/billing": f"{APP}/billing",
    "HTTPS://APP.Example.COM/Billing": f"{APP}/Billing",
    "https://admin.example.com:8443/t/acme": "https://admin.example.com:8443/t/acme",
    "http://localhost:3000/billing": "http://localhost:3000/billing",
    "http://[::1]:3000/billing": "http://[::1]:3000/billing",
    "https://xn--bcher-kva.example/konto": "https://xn--bcher-kva.example/konto",
    "https://XN--BCHER-KVA.example/konto": "https://xn--bcher-kva.example/konto",
}


@pytest.mark.parametrize(("wanted", "sent"), GOOD.items(), ids=[wanted[:60] for wanted in GOOD])
def test_an_address_on_an_allowed_origin_reaches_stripe(
    wanted: str, sent: str, client: FlaskClient, headers: dict[str, str], sandbox: Control
) -> None:
    answer = client.post(PORTAL, json={"return_url": wanted}, headers=headers)

    assert answer.status_code == 200
    [request] = sandbox.requests()
    assert request["params"]["return_url"] == sent


def test_null_is_the_address_of_the_settings(
    client: FlaskClient, headers: dict[str, str], sandbox: Control
) -> None:
    client.post(PORTAL, json={"return_url": None}, headers=headers)

    [request] = sandbox.requests()
    assert request["params"]["return_url"] == f"{APP}/settings/billing"


HOSTILE: dict[str, list[Any]] = {
    "another host": [
        "https://evil.example",
        "https://evil.example/https://app.example.com",
        "https://evil.example?https://app.example.com",
        "https://evil.example#https://app.example.com/",
        "https://evil.example/app.example.com",
        "https://203.0.113.7/",
        "https://[2001:db8::1]/",
    ],
    "nearly ours": [
        "https://app.example.com.evil.example/",
        "https://app.example.comevil.example/",
        "https://evilapp.example.com/",
        "https://evil.app.example.com/",
        "https://app-example.com/",
        "https://appXexample.com/",
        "https://example.com/",
        "https://app.example.co/",
        "https://app.example.com./",
        "https://app.example.com../",
        "https://.app.example.com/",
        "https://app..example.com/",
        "https://app.example.com,evil.example/",
        "https://app.example.com;evil.example/",
        "https://app.example.com&evil.example/",
        "https://*.example.com/",
    ],
    "another scheme": [
        "http://app.example.com/",
        "http://app.example.com:443/",
        "ftp://app.example.com/",
        "ws://app.example.com/",
        "javascript://app.example.com/%0aalert(1)",
        "javascript:alert(document.domain)",
        "JaVaScRiPt:alert(1)",
        "data:text/html,<script>alert(1)</script>",
        "data://app.example.com/,x",
        "vbscript:msgbox(1)",
        "file:///etc/passwd",
        "blob:https://app.example.com/1",
        "view-source:https://app.example.com/",
        "intent://app.example.com/#Intent;end",
        "mailto:ada@app.example.com",
        "about:blank",
        "https:",
        "://app.example.com/",
    ],
    "another port": [
        "https://app.example.com:8443/",
        "https://app.example.com:80/",
        "https://app.example.com:0/",
        "https://app.example.com:44300/",
        "https://app.example.com:65979/",
        "https://app.example.com:443:443/",
        "https://app.example.com:port/",
        "https://app.example.com:-443/",
        "https://app.example.com:+443/",
        "https://app.example.com: 443/",
        "https://app.example.com:4_43/",
        "https://admin.example.com/",
        "https://admin.example.com:443/",
        "http://localhost/",
        "http://localhost:3001/",
        "https://localhost:3000/",
    ],
    "a user": [
        "https://app.example.com@evil.example/",
        "https://app.example.com:443@evil.example/",
        "https://app.example.com%40evil.example/",
        "https://evil.example@app.example.com/",
        "https://user:pw@app.example.com/",
        "https://@app.example.com/",
        "https://:@app.example.com/",
        "https://app.example.com@/",
        "https://a@b@app.example.com/",
    ],
    "scheme-relative": [
        "//evil.example",
        "//app.example.com/",
        "///evil.example",
        "////evil.example",
        "//evil.example/..",
        "https:app.example.com",
        "https:/app.example.com/",
        "https:///app.example.com/",
        "https:evil.example",
        "https:///evil.example/",
    ],
    "backslashes": [
        "\\\\evil.example",
        "/\\evil.example",
        "\\/evil.example",
        "/a\\b",
        "https:\\\\evil.example",
        "https:/\\evil.example",
        "https://app.example.com\\@evil.example/",
        "https://app.example.com\\.evil.example/",
        "https://evil.example\\@app.example.com/",
        "https://evil.example\\app.example.com/",
    ],
    "blanks and controls": [
        " https://app.example.com/",
        "https://app.example.com/ ",
        "https://app.example.com/a b",
        " //evil.example",
        "/\t/evil.example",
        "/\n/evil.example",
        "/\r/evil.example",
        "\t//evil.example",
        "ht\ntps://app.example.com/",
        "https://app.exa\tmple.com/",
        "https://app.example.com\x00.evil.example/",
        "https://app.example.com\x0b.evil.example/",
        "/\x00",
        "/a\r\nLocation: https://evil.example",
        "/\x7f",
        "\x1b/",
        "java\nscript:alert(1)",
    ],
    "encoded and other alphabets": [
        "https://app%2eexample.com/",
        "https://%61pp.example.com/",
        "https://app.example.com%2f@evil.example/",
        "https://app.example.com%00.evil.example/",
        "https://app.example.com%23.evil.example/",
        "https://app.example.com\u3002evil.example/",
        "https://app\u3002example.com/",
        "https://\uff41pp.example.com/",
        "https://\u0430pp.example.com/",
        "https://xn--pp-6kc.example.com/",
        "https://app.example.com\uff0f.evil.example/",
        "https://b\u00fccher.example/",
        "https://app.example.\u212aom/",
        "/b\u00fccher",
        "/\u2028",
        "/\u202e",
        "/\ufeff",
        "/\u00a0",
        "\ufeffhttps://app.example.com/",
        "https://[::ffff:127.0.0.1]:3000/",
        "http://[::1%25eth0]:3000/",
        "http://[::1/",
        "http://::1:3000/",
        "http://127.0.0.1:3000/",
        "http://2130706433:3000/",
        "http://[0:0:0:0:0:0:0:1]:3000/",
    ],
    "characters of other languages": [
        "/<script>alert(1)</script>",
        '/"onload="alert(1)',
        "/{{7*7}}",
        "/`id`",
        "/|id",
        "/^",
    ],
    "no address": [
        "",
        "settings/billing",
        "./settings",
        "../settings",
        "?paid=1",
        "#paid",
        "app.example.com",
        "app.example.com/settings",
        "null",
        "*",
        "@",
    ],
    "too long": ["/" + "a" * 2000, f"{APP}/" + "a" * 2000],
    "no text": [5, 0, True, False, 1.5, [], ["/settings"], {}, {"url": "/settings"}, [None]],
}
CASES = [
    pytest.param(wanted, id=f"{kind}-{ascii(wanted)[:60]}")
    for kind, list_ in HOSTILE.items()
    for wanted in list_
]


@pytest.mark.parametrize("wanted", CASES)
def test_any_other_address_is_refused_and_reaches_nobody(
    wanted: Any, client: FlaskClient, headers: dict[str, str], sandbox: Control
) -> None:
    answer = client.post(PORTAL, json={"return_url": wanted}, headers=headers)

    assert answer.status_code == 400
    assert answer.json
    assert answer.json["code"] in {"return_url_not_allowed", "invalid_request"}
    assert answer.json["param"].split(".")[0] == "return_url"
    if len(str(wanted)) > 5:  # shorter ones are part of any sentence
        assert str(wanted) not in answer.text
        assert "evil" not in answer.text
    assert sandbox.requests() == []


def test_bytes_that_are_no_text_are_refused(
    client: FlaskClient, headers: dict[str, str], sandbox: Control
) -> None:
    answer = client.post(
        PORTAL, data=b'{"return_url": "/\xff"}', content_type="application/json", headers=headers
    )

    assert answer.status_code == 400
    assert sandbox.requests() == []


def test_an_address_given_twice_counts_once(
    client: FlaskClient, headers: dict[str, str], sandbox: Control
) -> None:
    twice = '{"return_url": "/settings", "return_url": "https://evil.example/"}'

    client.post(PORTAL, data=twice, content_type="application/json", headers=headers)

    assert "evil" not in str(sandbox.requests())


Place = tuple[str, str, int | None]


def as_python_reads(url: str) -> Place:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def as_browsers_read(url: str) -> Place:
    """The WHATWG's way: blanks at the ends, tabs and line ends do not count, a backslash is a slash, the
    number of slashes does not matter, and the host begins after the last @."""
    bare = re.sub(r"[\t\n\r]", "", url.strip("".join(map(chr, range(33))))).replace("\\", "/")
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):/*([^/?#]*)", bare)
    assert match, "not absolute"
    scheme, authority = match[1].lower(), match[2].rpartition("@")[2]
    host, _, port = authority.rpartition(":") if re.search(r":\d*$", authority) else (authority, "", "")
    name = str(ipaddress.ip_address(host[1:-1])) if host.startswith("[") else host.lower()
    return scheme, name, int(port) if port else {"http": 80, "https": 443}.get(scheme)


FRAGMENTS = [
    *(
        "https:",
        "http:",
        "HTTPS:",
        "javascript:",
        "/",
        "//",
        "\\",
        "\\\\",
        "@",
        ":",
        ".",
        "%",
        "%2f",
        "%5c",
        "%00",
    ),
    *("app.example.com", "APP.example.com", "admin.example.com", "localhost", "[::1]", "::1", "evil.example"),
    *(
        ":443",
        ":8443",
        ":3000",
        ":80",
        ":0",
        ":",
        "?",
        "#",
        ";",
        "\t",
        "\n",
        "\r",
        " ",
        "\x00",
        "\x0b",
        "a",
        "..",
        "*",
    ),
    *("\u3002", "\uff0f", "\u212a", "\ufeff", "[", "]", "<", '"', "user:pw@", *ORIGINS, APP),
]
addresses = (
    st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join)
    | st.text(max_size=60)
    | st.text(max_size=40).map(lambda rest: APP + rest)
    | st.lists(st.sampled_from(FRAGMENTS), max_size=5).map(lambda rest: APP + "".join(rest))
)
SETTINGS = settings()


@hypothesis.settings(max_examples=800, deadline=None, database=None)
@hypothesis.given(addresses)
def test_no_text_leads_anywhere_but_to_an_allowed_origin(wanted: str) -> None:
    try:
        sent = links.return_url(SETTINGS, wanted)
    except ReturnUrlNotAllowed:
        return

    assert as_python_reads(sent) in ALLOWED
    assert as_browsers_read(sent) in ALLOWED
    assert as_python_reads(sent) == as_browsers_read(sent)
    assert re.fullmatch(r"[!-~]+", sent)


def test_the_reading_that_judges_them_sees_through_the_usual_tricks() -> None:
    evil = ("https", "evil.example", 443)

    for trick in (
        "https:\\\\evil.example",
        " https:evil.example",
        "https:///evil.example",
        "ht\ntps://a@evil.example",
    ):
        assert as_browsers_read(trick) == evil
    assert as_browsers_read("https://app.example.com\\@evil.example") == ("https", "app.example.com", 443)
