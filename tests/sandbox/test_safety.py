"""Where the sandbox does not start, and whom it does not answer."""

from urllib.parse import urlsplit

import pytest
import requests
import stripe

from sandbox.safety import CannotStart, refuse_production
from sandbox.server import Control, open_server, running
from tests.sandbox.conftest import Raw

LOCAL = {
    "by name": "postgresql://billing@localhost/billing",
    "by another case": "postgresql://LOCALHOST/billing",
    "by number": "postgres://billing:secret@127.0.0.1:5432/billing",
    "by IPv6": "postgresql+psycopg://billing@[::1]:5432/billing",
    "by IPv6 without brackets": "postgresql:///billing?host=::1",
    "by the default": "postgresql:///billing",
    "by the default, as a user": "postgresql+psycopg://billing@/billing",
    "by a directory": "postgresql://postgres@/postgres?host=/var/run/postgresql",
    "by a directory in front": "postgresql://billing@%2Fvar%2Frun%2Fpostgresql:5433/billing",
    "by several": "postgresql://localhost:5432,127.0.0.1:5433/billing",
    "by several parameters": "postgresql+psycopg:///billing?host=localhost:5432&host=[::1]:5433",
}

FOREIGN = {
    "a name": "postgresql://billing:p4ssword@db.example.com/billing",
    "a driver of its own": "postgresql+psycopg_async://db.example.com/billing",
    "a number": "postgres://10.0.0.7:5432/billing",
    "IPv6": "postgresql://[2001:db8::7]/billing",
    "a name that begins alike": "postgresql://localhost.example.com/billing",
    "a parameter": "postgresql:///billing?host=db.example.com",
    "a parameter beside a host": "postgresql://localhost/billing?host=db.example.com",
    "an address in a parameter": "postgresql://localhost/billing?hostaddr=10.0.0.7",
    "the second of several": "postgresql://localhost,db.example.com/billing",
    "the second parameter": "postgresql+psycopg:///billing?host=localhost&host=db.example.com:5432",
    "an encoded name": "postgresql://db%2Eexample%2Ecom/billing",
    "a service": "postgresql:///billing?service=production",
    "behind a password with a slash": "postgresql://localhost:p4/ss@db.example.com/billing",
    "behind a password with a hash": "postgresql://localhost:p4#ss@db.example.com/billing",
    "libpq's own words": "host=db.example.com dbname=billing",
    "open brackets": "postgresql://[::1/billing",
}


@pytest.mark.parametrize("database", LOCAL.values(), ids=LOCAL)
def test_it_starts_beside_a_database_of_this_machine(database: str) -> None:
    refuse_production("sk_test_1", {"DATABASE_URL": database, "MIGRATIONS_DATABASE_URL": database})


@pytest.mark.parametrize("database", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("name", ["DATABASE_URL", "MIGRATIONS_DATABASE_URL"])
def test_it_does_not_start_beside_a_database_of_another_machine(name: str, database: str) -> None:
    with pytest.raises(CannotStart) as refused:
        open_server(port=0, data=None, key="sk_test_1", environ={name: database})

    reason = str(refused.value)
    assert reason == f"{name} names a database on another machine: unset it, or name one of this machine."


@pytest.mark.parametrize(
    ("variable", "database"),
    [
        ({"PGHOST": "db.example.com"}, "postgresql:///billing"),
        ({"PGHOST": "localhost,db.example.com"}, "postgresql:///billing"),
        ({"PGHOSTADDR": "10.0.0.7"}, "postgresql://localhost/billing"),
        ({"PGSERVICE": "production"}, "postgresql:///billing"),
    ],
    ids=["a host", "several hosts", "an address", "a service"],
)
def test_what_libpq_would_add_counts(variable: dict[str, str], database: str) -> None:
    with pytest.raises(CannotStart, match="another machine"):
        refuse_production("sk_test_1", {"DATABASE_URL": database, **variable})


def test_what_libpq_would_not_use_does_not_count() -> None:
    refuse_production("sk_test_1", {"DATABASE_URL": "postgresql://localhost/x", "PGHOST": "db.example.com"})


def test_a_sandbox_in_a_thread_does_not_start_there_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", FOREIGN["a name"])

    with pytest.raises(CannotStart, match="DATABASE_URL"), running():
        pass


PLACES = ["/", "/_sandbox/requests", "/p/session/test_1", "/assets/control.css", "/nowhere"]


@pytest.mark.parametrize("path", PLACES)
@pytest.mark.parametrize("host", ["evil.example", "evil.example:4242", "localhost.evil.example", "[::1"])
def test_a_name_that_leads_here_from_elsewhere_is_not_answered(sandbox: Control, path: str, host: str) -> None:
    answer = requests.get(sandbox.url + path, headers={"Host": host})

    assert answer.status_code == 403
    assert "localhost" in answer.json()["error"]


@pytest.mark.parametrize("host", ["localhost", "localhost:4242", "127.0.0.1", "[::1]:4242"])
def test_names_of_this_machine_are_answered(sandbox: Control, host: str) -> None:
    assert requests.get(sandbox.url, headers={"Host": host}).status_code == 200


def test_the_address_given_to_browsers_is_answered() -> None:
    server = open_server(
        port=0, data=None, key="sk_test_1", public_url="https://stripe.acme.example:8443", environ={}
    )
    caller = server.app.test_client()  # type: ignore[attr-defined]  # it is Flask's

    own = caller.get("/", headers={"Host": "stripe.acme.example"}).status_code
    other = caller.get("/", headers={"Host": "acme.example"}).status_code

    server.server_close()
    assert (own, other) == (200, 403)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:4242", "localhost.evil.example"])
def test_the_key_opens_the_api_by_the_names_of_this_machine_alone(raw: Raw, host: str) -> None:
    refused, answered = (raw("GET", "/v1/customers", headers=headers) for headers in ({"Host": host}, {}))

    assert (refused.status_code, answered.status_code) == (403, 200)
    assert "localhost" in refused.json()["error"]["message"]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "header",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ],
    ids=str,
)
def test_no_page_of_elsewhere_reaches_the_api_with_a_key_that_is_known(
    raw: Raw, method: str, header: dict[str, str]
) -> None:
    answer = raw(method, "/v1/webhook_endpoints", headers=header, data={})

    assert answer.status_code == 403
    assert "Another site" in answer.json()["error"]["message"]


def test_what_the_sdk_raises_of_it_says_why(sandbox: Control, api: stripe.StripeClient) -> None:
    with pytest.raises(stripe.PermissionError, match="by no other name"):
        api.v1.customers.list(options={"headers": {"Host": "evil.example"}})


@pytest.mark.parametrize(
    ("header", "is_ours"),
    [
        ({}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://evil.example"}, True),
        ({"Origin": "http://{here}"}, True),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "http://{here}0"}, False),
        ({"Origin": "null"}, False),
    ],
    ids=str,
)
def test_only_a_page_of_ours_may_post(sandbox: Control, header: dict[str, str], is_ours: bool) -> None:
    here = urlsplit(sandbox.url).netloc
    header = {name: value.format(here=here) for name, value in header.items()}

    lever = requests.post(f"{sandbox.url}/_sandbox/payments", json={"times": 1}, headers=header)
    pages = [
        requests.post(sandbox.url + path, headers=header).status_code
        for path in ("/p/session/test_none/payment-method", "/c/pay/cs_none", "/i/in_none")
    ]

    assert lever.status_code == (200 if is_ours else 403)
    assert pages == [404 if is_ours else 403] * 3
    assert sandbox.payments()["declining"] is is_ours


def test_a_page_at_the_address_given_to_browsers_may_post() -> None:
    server = open_server(port=0, data=None, key="sk_test_1", public_url="https://stripe.test:8443", environ={})
    caller = server.app.test_client()  # type: ignore[attr-defined]  # it is Flask's

    origins = ("https://stripe.test:8443", "https://other.test:8443")
    posts = [caller.post("/i/in_none", headers={"Origin": origin}).status_code for origin in origins]

    server.server_close()
    assert posts == [404, 403]


@pytest.mark.parametrize("header", [{"Host": "evil.example"}, {"Sec-Fetch-Site": "cross-site"}])
def test_a_stranger_who_sends_a_form_sees_nothing_of_the_page(sandbox: Control, header: dict[str, str]) -> None:
    answer = requests.post(
        f"{sandbox.url}/_sandbox/payments", files={"times": (None, "1")}, headers=header, allow_redirects=False
    )

    assert answer.status_code == 403
    assert answer.headers["Content-Type"] == "application/json"
    assert sandbox.payments() == {"declining": False, "left": 0}


def test_another_site_may_link_here(sandbox: Control) -> None:
    assert requests.get(sandbox.url, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200
